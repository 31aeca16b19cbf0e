//! Whether what is ready in a ring is left there, for the line has no room for it.
//!
//! Where all programs are short of one core, what is packed before it can go leaves the caches: it is written to and read
//! from cold memory then, each packet costs more, and the core stays short. In the ring nothing was done for it yet. So
//! more is left where the core is contested. Where it is not, packing costs nobody anything, and the ring needs its room:
//! at 40 Gbit/s an eighth of 64 MiB is full in two milliseconds.

use std::time::{Duration, Instant};

/// How much is left at most.
#[derive(Debug)]
struct Limits {
    /// From so many eighths of the ring on nothing more.
    eighths: usize,
    /// Nothing is left for longer: the line may be full of what another ring brings.
    time: Duration,
}

/// Nobody else wants the core, as far as is known.
const ALONE: Limits = Limits { eighths: 4, time: Duration::from_millis(100) };
/// Others keep the thread from it.
const CONTESTED: Limits = Limits { eighths: 7, time: Duration::from_secs(2) };

/// How a ring stands, and its line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Levels {
    /// More waits for the line than it can be given soon.
    pub(super) line_is_full: bool,
    /// Little does.
    pub(super) line_has_room: bool,
    /// Blocks of the ring that are ready.
    pub(super) ready_blocks: usize,
    /// Blocks of the ring.
    pub(super) blocks: usize,
    /// Other threads keep this one from its core.
    pub(super) core_is_contested: bool,
}

/// The state of one ring.
#[derive(Debug, Default)]
pub(super) struct Reserve {
    since: Option<Instant>,
}

impl Reserve {
    /// Whether what is ready is left in the ring: from when the line is full until it has room, if the ring has room
    /// itself, and not for long.
    pub(super) fn leaves(&mut self, levels: Levels, now: Instant) -> bool {
        let goes_on = if self.since.is_some() { !levels.line_has_room } else { levels.line_is_full };
        if !goes_on {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        let limits = if levels.core_is_contested { CONTESTED } else { ALONE };
        levels.ready_blocks * 8 < levels.blocks * limits.eighths && now < since + limits.time
    }

    /// The ring is empty: what comes next may be left for as long again.
    pub(super) fn clear(&mut self) {
        self.since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Levels = Levels {
        line_is_full: true,
        line_has_room: false,
        ready_blocks: 31,
        blocks: 64,
        core_is_contested: false,
    };
    /// There is a little room.
    const SOME: Levels = Levels { line_is_full: false, ..FULL };
    const ROOM: Levels = Levels { line_has_room: true, ..SOME };

    #[test]
    fn blocks_are_left_until_the_line_has_room() {
        let (mut reserve, now) = (Reserve::default(), Instant::now());
        let mut leaves = |levels| reserve.leaves(levels, now);
        assert!(!leaves(ROOM) && !leaves(SOME), "it is not full");
        assert!(leaves(FULL));
        assert!(leaves(SOME), "a little room is not enough");
        assert!(!leaves(Levels { ready_blocks: 32, ..SOME }), "the ring needs its own");
        assert!(leaves(SOME));
        assert!(!leaves(ROOM));
        assert!(!leaves(SOME), "the line has to be full again");
    }

    #[test]
    fn more_is_left_where_the_core_is_contested() {
        let (mut reserve, now) = (Reserve::default(), Instant::now());
        let contested = Levels { ready_blocks: 55, core_is_contested: true, ..FULL };
        assert!(reserve.leaves(contested, now));
        assert!(!reserve.leaves(Levels { ready_blocks: 56, ..contested }, now));
        assert!(!reserve.leaves(Levels { core_is_contested: false, ..contested }, now));
        assert!(reserve.leaves(contested, now + ALONE.time));
        assert!(!reserve.leaves(contested, now + CONTESTED.time));
    }

    #[test]
    fn nothing_is_left_for_long() {
        let (mut reserve, now) = (Reserve::default(), Instant::now());
        let last = now + ALONE.time - Duration::from_nanos(1);
        assert!(reserve.leaves(FULL, now) && reserve.leaves(FULL, last));
        assert!(!reserve.leaves(FULL, now + ALONE.time));
        assert!(!reserve.leaves(FULL, now + 2 * ALONE.time), "all that is there is taken");
        reserve.clear();
        assert!(reserve.leaves(FULL, now + 2 * ALONE.time));
    }
}
