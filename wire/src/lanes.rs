//! Two lanes share a line: live data first, backlog at least a fifth of it, and all that live data
//! leaves.

/// Bytes that the backlog is owed for each byte of live data: a quarter, so a fifth of both.
const LIVE_BYTES_PER_BACKLOG_BYTE: i64 = 4;
/// Most bytes that one lane can be owed by the other: neither may stop the other for long.
const OWED_BYTES_MAX: i64 = 4 << 20;

/// Which of two kinds of data a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Of a stream that is being captured.
    Live,
    /// Of a stream that ended at an outage, or that somebody missed.
    Backlog,
}

/// Decides whose turn it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lanes {
    /// What the backlog is owed; below zero, what it has had too much.
    owed_bytes: i64,
}

impl Lanes {
    /// The lane to send from, given which have something to send.
    pub fn choose(&self, live_is_ready: bool, backlog_is_ready: bool) -> Option<Lane> {
        match (live_is_ready, backlog_is_ready) {
            (false, false) => None,
            (true, false) => Some(Lane::Live),
            (false, true) => Some(Lane::Backlog),
            (true, true) if self.owed_bytes > 0 => Some(Lane::Backlog),
            (true, true) => Some(Lane::Live),
        }
    }

    /// So many bytes were sent from a lane, while the other had something to send or not. Nothing is
    /// owed for a time in which only one had.
    pub fn sent(&mut self, lane: Lane, bytes: usize, other_is_ready: bool) {
        let bytes = bytes as i64;
        let owed = match (lane, other_is_ready) {
            (Lane::Backlog, true) => self.owed_bytes - bytes,
            (Lane::Live, true) => self.owed_bytes + bytes / LIVE_BYTES_PER_BACKLOG_BYTE,
            (_, false) => 0,
        };
        self.owed_bytes = owed.clamp(-OWED_BYTES_MAX, OWED_BYTES_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes sent from each lane when both always have blocks of these sizes.
    fn shares(live_block: usize, backlog_block: usize) -> (usize, usize) {
        let (mut lanes, mut live, mut backlog) = (Lanes::default(), 0, 0);
        for _ in 0..100_000 {
            let lane = lanes.choose(true, true).expect("both are ready");
            let (bytes, sum) = match lane {
                Lane::Live => (live_block, &mut live),
                Lane::Backlog => (backlog_block, &mut backlog),
            };
            *sum += bytes;
            lanes.sent(lane, bytes, true);
        }
        (live, backlog)
    }

    #[test]
    fn the_backlog_gets_a_fifth_of_a_busy_line_and_all_of_an_idle_one() {
        for (live_block, backlog_block) in [(1 << 20, 1 << 20), (1000, 1 << 20), (1 << 20, 1000), (90, 400)] {
            let (live, backlog) = shares(live_block, backlog_block);
            let share = backlog as f64 / (live + backlog) as f64;
            assert!((0.19..0.22).contains(&share), "{share} of blocks of {live_block} and {backlog_block}");
        }
        let lanes = Lanes::default();
        assert_eq!(lanes.choose(false, true), Some(Lane::Backlog));
        assert_eq!(lanes.choose(true, false), Some(Lane::Live));
        assert_eq!(lanes.choose(true, true), Some(Lane::Live), "live data goes first");
        assert_eq!(lanes.choose(false, false), None);
    }

    #[test]
    fn nothing_is_owed_for_a_time_without_backlog() {
        let mut lanes = Lanes::default();
        lanes.sent(Lane::Live, 1 << 30, false);
        assert_eq!(lanes.choose(true, true), Some(Lane::Live));
    }
}
