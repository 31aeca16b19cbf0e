//! What is kept until it is settled: in memory, beyond it in the spool, beyond that not at all; and when
//! a stream is succeeded by another.

use super::*;

impl Uplink {
    /// A block was packed: it is retained and will be sent. Its stream must have been announced.
    pub fn handle_block(&mut self, block: impl Into<SealedBlock>) {
        let block = block.into();
        let (key, end) = (block.header().key, block.header().end);
        let Some(stream) = self.streams.get_mut(&key) else { return };
        if end {
            stream.end_sequence = Some(block.header().sequence);
        }
        let place = if stream.is_spooled { Place::ToSpool } else { Place::Memory };
        self.retain(block, place);
        if self.state == State::Streaming && !self.config.is_paced {
            self.relieve_line();
        }
        if self.totals.retained_bytes > self.config.memory_bytes / 2 && self.spool.is_usable() {
            self.spool_all();
        }
        if self.totals.retained_bytes > self.config.memory_bytes {
            self.relieve(self.config.memory_bytes);
        }
    }

    pub(super) fn retain(&mut self, block: SealedBlock, place: Place) {
        let (key, sequence, bytes) = (block.header().key, block.header().sequence, block.byte_len());
        let Some(stream) = self.streams.get_mut(&key) else { return };
        let arrival = self.arrivals;
        self.arrivals += 1;
        let one = Retained { block, arrival, place, was_sent: false, in_flight: None, is_lent: false };
        if !stream.retain(one) {
            return;
        }
        self.totals.retained_bytes += bytes;
        self.busy.insert(key);
        if place == Place::ToSpool {
            self.spool.push(key, sequence);
        } else if !matches!(self.state, State::Offline(_)) {
            // Offline there is no order to keep: it is made anew with the line.
            self.queue_of(key).push(Waiting { arrival, key, sequence, bytes });
            self.announce(key);
        }
    }

    /// The lane of a stream.
    pub(super) fn queue_of(&mut self, key: StreamKey) -> &mut Queue {
        match self.streams.get(&key).map(|stream| stream.lane) {
            Some(Lane::Live) => &mut self.live,
            _ => &mut self.backlog,
        }
    }

    /// When live data comes faster than it leaves, what waits of it becomes backlog and capture
    /// goes on in new streams: what people watch stays fresh.
    pub(super) fn relieve_line(&mut self) {
        let is_over = self.live.bytes > (self.config.memory_bytes / 4).max(SUCCESSION_BYTES);
        if !is_over {
            return;
        }
        let waiting: BTreeSet<StreamKey> = self.live.entries.iter().map(|waiting| waiting.key).collect();
        waiting.into_iter().for_each(|key| self.ask_succession(key));
    }

    pub(super) fn ask_succession(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        let is_open = stream.end_sequence.is_none() && stream.lane == Lane::Live;
        if self.config.is_paced || !is_open || std::mem::replace(&mut stream.is_succeeded, true) {
            return;
        }
        self.successions.insert(key.stream);
        self.totals.successions += 1;
    }

    /// A stream of this run that is to end, and to be succeeded by one that names it as its
    /// predecessor.
    pub fn poll_succession(&mut self) -> Option<u32> {
        let epoch = self.config.epoch;
        let is_due = |stream: &&u32| {
            let known = self.streams.get(&StreamKey { epoch, stream: **stream });
            known.is_none_or(|one| one.opened_ms + SUCCESSION_MS <= self.now_ms)
        };
        let stream = *self.successions.iter().find(is_due)?;
        self.successions.remove(&stream);
        Some(stream)
    }

    /// Gives up blocks in memory until at most `target_bytes` remain: first those the relay has
    /// received; then, without a spool that takes them, the oldest, which are lost and counted.
    pub fn relieve(&mut self, target_bytes: usize) {
        for key in &self.busy {
            let Some(stream) = self.streams.get_mut(key) else { continue };
            let mut at = 0;
            while self.totals.retained_bytes > target_bytes
                && let Some(one) = stream.retained.get(at)
                && one.sequence() < stream.received.next_sequence
            {
                // What is in the spool too is let go of when it is settled there.
                if one.block.header().end || matches!(one.place, Place::Loaded(_)) {
                    at += 1;
                    continue;
                }
                let Some(one) = stream.retained.remove(at) else { break };
                forget(&mut self.totals, &mut self.backlog_in_flight_bytes, &one);
                one.take_back(self.lender.as_ref());
                // Lost only if the relay is, before it is settled.
                stream.add_dropped(one.block.begin(), one.block.end(), Stage::RelayRestarted);
                stream.keep_description(one.block);
            }
        }
        if self.totals.retained_bytes > target_bytes && self.spool.is_usable() {
            self.spool_all();
            if self.totals.retained_bytes <= self.config.memory_bytes {
                return; // the disk makes room; until then capture waits in its ring
            }
        }
        let stage = if self.spool.has_failed() { Stage::SpoolFailed } else { Stage::NoBuffer };
        while self.totals.retained_bytes > target_bytes {
            let oldest = self.busy.iter().filter_map(|key| {
                let stream = self.streams.get(key)?;
                let at = stream.retained.iter().position(is_droppable)?;
                Some((stream.retained[at].arrival, *key, at))
            });
            let Some((_, key, at)) = oldest.min() else { return };
            let Some(stream) = self.streams.get_mut(&key) else { return };
            let Some(dropped) = stream.retained.remove(at) else { return };
            stream.add_dropped(dropped.block.begin(), dropped.block.end(), stage);
            forget(&mut self.totals, &mut self.backlog_in_flight_bytes, &dropped);
        }
    }
}
