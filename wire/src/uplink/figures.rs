//! What others want to know of an uplink.

use super::*;

impl Uplink {
    /// Viewers that take these streams now, as the relay says.
    pub fn viewers(&self) -> u32 {
        self.takers.0
    }

    /// What the relay lets a source that can wait have under way; `None` before it says so.
    pub fn window_bytes(&self) -> Option<u64> {
        self.window_bytes
    }

    /// Whether a viewer wants time marks of idle streams.
    pub fn marks_wanted(&self) -> bool {
        self.takers.1
    }

    /// Packets in blocks that are retained in memory.
    pub fn retained_packets(&self) -> u64 {
        let of = |stream: &Stream| -> u64 {
            stream.retained.iter().map(|one| u64::from(one.block.header().packet_count)).sum()
        };
        self.streams.values().map(of).sum()
    }

    /// Whether the relay has welcomed us and the line stands.
    pub fn is_streaming(&self) -> bool {
        self.state == State::Streaming
    }

    /// Whether nothing is retained, in memory or in the spool: all is settled.
    pub fn is_settled(&self) -> bool {
        self.totals.retained_bytes == 0 && self.spool.is_empty()
    }

    /// Bytes of blocks in memory that wait to be sent.
    pub fn waiting_bytes(&self) -> usize {
        self.live.bytes + self.backlog.bytes
    }

    /// Whether anything is in the spool that is not settled.
    pub fn has_spooled(&self) -> bool {
        !self.spool.is_empty()
    }

    /// Whether what is not settled is in the spool.
    pub fn is_spooled(&self) -> bool {
        let is_safe = |one: &Retained| matches!(one.place, Place::Loaded(_));
        self.spool.is_idle() && self.streams.values().flat_map(|one| &one.retained).all(is_safe)
    }

    /// Blocks of live streams in memory that the relay has not received, and that it has not settled.
    pub fn waiting_blocks(&self) -> (u64, u64) {
        let live = self.streams.values().filter(|stream| stream.lane == Lane::Live);
        live.fold((0, 0), |(unreceived, unsettled), stream| {
            let is_new = |one: &&Retained| one.sequence() >= stream.received.next_sequence;
            let new = stream.retained.iter().filter(is_new).count() as u64;
            (unreceived + new, unsettled + stream.retained.len() as u64)
        })
    }

    /// Counters.
    pub fn totals(&self) -> UplinkTotals {
        self.totals
    }

    /// What was lost here, of one stream that is not done. A block that was sent before a cut and
    /// dropped after it counts once the relay has said that it does not have it.
    pub fn lost(&self, key: StreamKey) -> Losses {
        self.streams.get(&key).map(|stream| stream.lost.clone()).unwrap_or_default()
    }

    /// What was lost here of all streams, also of those that are done.
    pub fn lost_in_all(&self) -> Losses {
        let mut sum = self.lost_of_done.clone();
        for losses in self.streams.values().map(|stream| &stream.lost) {
            losses.0.iter().for_each(|(stage, loss)| sum.add(*stage, loss.packets, loss.bytes));
        }
        sum
    }

    /// What was lost here by stream of this run, as far as they are not done.
    pub fn losses(&self) -> impl Iterator<Item = (u32, &Losses)> {
        let epoch = self.config.epoch;
        let own = self.streams.iter().filter(move |(key, _)| key.epoch == epoch);
        own.map(|(key, stream)| (key.stream, &stream.lost))
    }
}
