//! What others want to know of an uplink.

use super::*;

/// A number of blocks, with what is in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Blocks, descriptions and reports among them.
    pub blocks: u64,
    /// Packets in them.
    pub packets: u64,
    /// Bytes of them, as they are sent.
    pub bytes: u64,
}

impl Amount {
    /// Adds one block.
    pub fn add(&mut self, block: &SealedBlock) {
        self.blocks += 1;
        self.packets += u64::from(block.header().packet_count);
        self.bytes += block.byte_len() as u64;
    }
}

/// What is retained in memory, by how far it has come: each block waits, is unacknowledged or unsettled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// To be sent, or to be written to the spool.
    pub waiting: Amount,
    /// The part of that which came back from the spool, and is in there too until it is settled.
    pub waiting_loaded: Amount,
    /// Given to the present connection; the relay has not said that it has it.
    pub unacknowledged: Amount,
    /// The relay has it, and has not settled it.
    pub unsettled: Amount,
}

/// How far the relay's clock is ahead of ours, measured by one question and its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockOffset {
    /// Relay's clock less ours, in ns: negative where the relay's is behind.
    pub offset_ns: i64,
    /// The truth is within so many ns of it: half the time that the answer took.
    pub error_ns: u64,
}

impl ClockOffset {
    /// Asked and answered on our clock, with the relay's in between; ns since 1970.
    pub(super) fn of(asked_ns: u64, relay_ns: u64, answered_ns: u64) -> Self {
        // A clock that was set back meanwhile: nothing took that long.
        let error_ns = answered_ns.saturating_sub(asked_ns) / 2;
        let offset_ns = i128::from(relay_ns) - i128::from(asked_ns.saturating_add(error_ns));
        let clamped = offset_ns.clamp(i64::MIN.into(), i64::MAX.into());
        Self { offset_ns: clamped as i64, error_ns }
    }
}

impl Uplink {
    /// What is retained in memory. Looks at each block: for once a second, not for each turn.
    pub fn held(&self) -> Held {
        let mut held = Held::default();
        for stream in self.busy.iter().filter_map(|key| self.streams.get(key)) {
            for one in &stream.retained {
                let is_received = !stream.awaits_ack && one.sequence() < stream.received.next_sequence;
                let amount = match (is_received, is_sent(one)) {
                    (true, _) => &mut held.unsettled,
                    (false, true) => &mut held.unacknowledged,
                    (false, false) => &mut held.waiting,
                };
                amount.add(&one.block);
                if !is_received && !is_sent(one) && matches!(one.place, Place::Loaded(_)) {
                    held.waiting_loaded.add(&one.block);
                }
            }
        }
        held
    }

    /// How far the relay's clock is ahead of ours, as measured last: with each connection, and while
    /// nothing is sent. `None` before the first.
    pub fn clock_offset(&self) -> Option<ClockOffset> {
        self.clock_offset
    }

    /// Streams that are known: those that go on, and those of which not all is settled.
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

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

    /// The part of them that is live: the backlog waits for viewers, too.
    pub fn live_waiting_bytes(&self) -> usize {
        self.live.bytes
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
