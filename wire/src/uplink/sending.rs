//! What goes next: live data first, the backlog beside it, and notices before what they explain.

use super::*;

impl Uplink {
    /// What to send next: a block, or a notice that goes before it.
    pub fn poll_data(&mut self) -> Option<Transmit> {
        if self.state != State::Streaming {
            return None;
        }
        if let Some(notice) = self.notices.pop_front() {
            return Some(Transmit::Control(notice));
        }
        let live = self.first_ready(Lane::Live);
        let backlog = if self.backlog_may_go() { self.first_ready(Lane::Backlog) } else { None };
        let lane = self.lanes.choose(live.is_some(), backlog.is_some())?;
        let both_are_ready = live.is_some() && backlog.is_some();
        let (key, at) = if lane == Lane::Live { live? } else { backlog? };
        let stream = self.streams.get_mut(&key)?;
        if let Some(description) = stream.take_description_due() {
            let envelope = Envelope { resend: true, replay: true, ..Envelope::default() };
            return Some(Transmit::Data(envelope, description));
        }
        let begin = stream.retained.get(at)?.block.begin();
        if begin.next_sequence > stream.told.next_sequence {
            self.notices.extend(stream.notices_before(begin));
            if let Some(notice) = self.notices.pop_front() {
                return Some(Transmit::Control(notice));
            }
        }
        let one = stream.retained.get_mut(at)?;
        let (mut payload, bytes) = (one.block.payload(), one.bytes());
        let backlog = lane == Lane::Backlog;
        let envelope = Envelope { resend: one.was_sent, backlog, replay: false };
        self.totals.sent_blocks += 1;
        if one.was_sent {
            self.totals.resent_blocks += 1;
            self.totals.resent_packets += u64::from(one.block.header().packet_count);
            self.totals.resent_bytes += bytes as u64;
        }
        self.totals.sent_packets += u64::from(one.block.header().packet_count);
        self.totals.sent_bytes += bytes as u64;
        self.totals.unsettled_sent_bytes += bytes;
        // Once only: what a connection before may still have the pages of is not taken back by what this one settles.
        one.is_lent = !one.was_sent
            && payload.mask.is_some()
            && self.lender.as_ref().is_some_and(|pool| pool.lend(&payload.bytes));
        payload.is_lent = one.is_lent;
        (one.was_sent, one.in_flight) = (true, Some(lane));
        stream.told = one.block.end();
        stream.is_placed |= one.block.header().packet_count > 0;
        stream.sent = stream.sent.max(stream.told.next_sequence);
        self.unreceived.insert(key);
        match lane {
            Lane::Live => self.live.pop(),
            Lane::Backlog => {
                self.backlog_in_flight_bytes += bytes;
                self.backlog.pop();
            }
        }
        self.lanes.sent(lane, bytes, both_are_ready);
        Some(Transmit::Data(envelope, payload))
    }

    /// The first block of a lane that may be sent: its stream, and its place among what is retained.
    pub(super) fn first_ready(&mut self, lane: Lane) -> Option<(StreamKey, usize)> {
        let queue = if lane == Lane::Live { &mut self.live } else { &mut self.backlog };
        while let Some(waiting) = queue.entries.front() {
            let found = self.streams.get(&waiting.key).map(|stream| (stream, stream.find(waiting.sequence)));
            if let Some((stream, Some(at))) = found
                && stream.retained[at].arrival == waiting.arrival
                && !matches!(stream.retained[at].place, Place::ToSpool | Place::Appending)
            {
                if stream.awaits_ack {
                    return None; // one round trip, at a reconnect only
                }
                if waiting.sequence >= stream.told.next_sequence {
                    return Some((waiting.key, at));
                }
            }
            // Dropped, gone to the spool, or the relay has it. What has come back from the spool has a
            // place of its own, behind what came back before it.
            queue.pop();
        }
        None
    }

    /// Whether blocks of the backlog may be sent now: those who watched before the cut are back,
    /// and there is room for another under way.
    pub(super) fn backlog_may_go(&self) -> bool {
        if self.config.is_paced {
            return true;
        }
        let Some(first) = self.backlog.entries.front() else { return false };
        let is_held = self.now_ms < self.backlog_held_until && self.takers.0 < self.former_viewers.max(1);
        let under_way = self.backlog_in_flight_bytes;
        let has_room = |window: u64| under_way <= SMALL_BYTES || (under_way + first.bytes) as u64 <= window;
        !is_held && self.window_bytes.is_some_and(has_room)
    }

    /// Queues a time mark of an idle stream, if somebody wants it and the relay has all of the
    /// stream: the mark would overtake blocks that wait in the connection.
    pub fn handle_mark(&mut self, stream: u32, complete_through_ns: u64) {
        let epoch = self.config.epoch;
        let is_received = |one: &Stream| {
            let is_told = one.received.next_sequence == one.told.next_sequence;
            is_told && !one.is_spooled && one.retained.iter().all(is_sent)
        };
        let is_idle = self.state == State::Streaming
            && self.streams.get(&StreamKey { epoch, stream }).is_some_and(is_received);
        if self.takers.1 && is_idle {
            self.control.push_back(Control::Mark { epoch, stream, complete_through_ns });
        }
    }
}
