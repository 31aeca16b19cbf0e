//! The way of a block through the hub: checked, queued for each viewer or skipped for it, polled.

use super::*;

impl Hub {
    /// A packed block of a publisher. It is checked as far as its header goes, and shared.
    pub fn handle_block(&mut self, peer: PeerId, envelope: Envelope, bytes: Bytes) -> Result<(), HubError> {
        let Some(publisher) = self.publishers.get_mut(&peer) else {
            return Err(HubError::NotPublisher { what: "a block" });
        };
        let block = PackedBlock::new(bytes)?;
        let header = *block.header();
        let key = header.key;
        if header.kind != Kind::Packets && header.raw_bytes as usize > JSON_BYTES_MAX {
            return Err(HubError::TooLarge { key, found: header.raw_bytes });
        }
        let is_its = |stream: &&mut Stream| publisher.is_worker || stream.publisher == Some(peer);
        let Some(stream) = self.streams.get_mut(&key).filter(is_its) else {
            return Err(HubError::UnknownStream { key });
        };
        if envelope.replay {
            self.handle_replay(&block);
            return Ok(());
        }
        if !publisher.is_worker {
            publisher.acks_due.insert(key);
            self.acks_due.insert(peer);
        }
        let next = stream.next_sequence.unwrap_or(0);
        if header.sequence < next {
            self.totals.duplicates += 1;
            if header.kind == Kind::Description && !stream.is_started {
                // Of a stream that begins later than this, as another worker has said by now.
                self.handle_replay(&block);
            }
            return Ok(());
        }
        if stream.state == State::Ended {
            return Err(HubError::Ended { key, sequence: header.sequence });
        }
        if header.packets_before < stream.status.packets || header.bytes_before < stream.status.bytes {
            return Err(HubError::Counters { key, sequence: header.sequence });
        }
        publisher.received.add(block.bytes().len(), header.packet_count.into());
        let has_gap = header.sequence > next;
        let is_first = stream.next_sequence.is_none();
        stream.is_started |= header.kind != Kind::Description;
        if is_first && has_gap && !publisher.is_worker {
            // What came before this relay, or before its sniffer reached it, is not its loss.
            stream.next_sequence = Some(header.sequence);
            stream.status.packets = header.packets_before;
            stream.status.bytes = header.bytes_before;
            self.join_again(key, header.sequence);
        }
        let Some(stream) = self.streams.get_mut(&key) else { return Ok(()) };
        stream.next_sequence = Some(header.sequence + 1);
        let is_past = |notice: &Control| match notice {
            Control::Skipped { next_sequence, .. } => *next_sequence <= header.sequence + 1,
            _ => true,
        };
        let before = stream.notices.len();
        stream.notices.retain(|notice| !is_past(notice));
        let past = before - stream.notices.len();
        stream.status.packets = header.packets_before + u64::from(header.packet_count);
        stream.status.bytes = header.bytes_before + u64::from(header.byte_count);
        if header.kind == Kind::Description {
            stream.description = Some(block.bytes().clone());
        }
        if header.end {
            stream.state = State::Ended;
            stream.end = Some(block.clone());
        }
        let subscribers = stream.subscribers.clone();
        if past > 0 {
            self.holdings.shrink(key, past * NOTICE_BYTES);
        }
        self.recent.push(key, What::Block(block.clone()));
        let mut served = 0;
        for viewer in &subscribers {
            served += u32::from(self.push(*viewer, &block));
        }
        let Some(stream) = self.streams.get_mut(&key) else { return Ok(()) };
        // What nobody waits for is settled with what is before it, and need not be kept meanwhile.
        if served > 0 {
            stream.pending.push_back((header.sequence, served));
        }
        self.settle(key);
        if header.end {
            self.handle_ended(key);
        }
        Ok(())
    }

    /// A description out of its place: for a relay that starts anew, or from another worker after a
    /// gap. Whoever has joined cannot read the rest without.
    fn handle_replay(&mut self, block: &PackedBlock) {
        let key = block.header().key;
        let Some(stream) = self.streams.get_mut(&key) else { return };
        if block.header().kind != Kind::Description {
            return;
        }
        stream.description = Some(block.bytes().clone());
        for to in stream.subscribers.clone() {
            self.push_replay(to, block);
        }
    }

    /// Queues a description out of its place for a viewer, or remembers that it is owed one: a
    /// publisher may send it again and again.
    fn push_replay(&mut self, to: PeerId, description: &PackedBlock) {
        let Some(viewer) = self.viewers.get_mut(&to) else { return };
        let header = description.header();
        if let Some(behind) = viewer.behind.get_mut(&header.key) {
            behind.misses_description = true; // it goes before the next block out of the recent log
        } else if viewer.has_room(header) {
            viewer.push_again(header.key, description.bytes().clone(), true, self.now_ms);
            self.outputs.push_back(Output::Data { to });
        } else {
            viewer.owe_description(header.key);
        }
    }

    /// Queues a block for a viewer; `false` if it is skipped for it.
    pub(super) fn push(&mut self, peer: PeerId, block: &PackedBlock) -> bool {
        let Some(viewer) = self.viewers.get_mut(&peer) else { return false };
        let key = block.header().key;
        if viewer.behind.contains_key(&key) {
            return false; // it comes out of the recent log in its turn
        }
        if viewer.has_already(block.header()) {
            // A description that lies before the place where it joined may not have reached it.
            if block.header().kind == Kind::Description {
                self.push_replay(peer, block);
            }
            return false;
        }
        if !viewer.has_room(block.header()) {
            let stage = viewer.skip(block.header());
            if viewer.is_worker() {
                self.awaited.await_others(); // one of its viewers may come here before it is told
            } else if viewer.miss() {
                self.awaited.miss(viewer.run);
            }
            let header = block.header();
            self.totals.skipped.add(stage, header.packet_count.into(), header.byte_count.into());
            return false;
        }
        self.end_skip(peer, key, block.header().sequence);
        let Some(viewer) = self.viewers.get_mut(&peer) else { return false };
        let was_empty = viewer.is_empty();
        viewer.push(block, self.now_ms);
        if was_empty {
            self.outputs.push_back(Output::Data { to: peer });
        }
        true
    }

    /// A stream goes on for a viewer at `next_sequence`: it is told what does not come, and gets
    /// the description again, which may have been among that.
    pub(super) fn end_skip(&mut self, peer: PeerId, key: StreamKey, next_sequence: u64) {
        let Some(viewer) = self.viewers.get_mut(&peer) else { return };
        let Some(gaps) = viewer.end_skip(key) else { return };
        if let Some(description) = self.streams.get(&key).and_then(|stream| stream.description.clone()) {
            let was_empty = viewer.is_empty();
            viewer.push_again(key, description, true, self.now_ms);
            if was_empty {
                self.outputs.push_back(Output::Data { to: peer });
            }
        }
        for (mut gap, stage) in gaps {
            gap.next_sequence = gap.next_sequence.min(next_sequence);
            if gap.first_sequence < gap.next_sequence {
                self.tell(peer, gap.control(key, stage));
            }
        }
        if let Some(viewer) = self.viewers.get_mut(&peer) {
            viewer.misses_until(1); // a message behind what it is told
        }
    }

    /// A viewer has caught up: streams that ended while it was behind end for it, too.
    pub(super) fn finish_skipped(&mut self, peer: PeerId) {
        let Some(viewer) = self.viewers.get(&peer) else { return };
        for key in viewer.skipped() {
            let Some(end) = self.streams.get(&key).and_then(|stream| stream.end.clone()) else { continue };
            self.end_skip(peer, key, end.header().sequence);
            if let Some(viewer) = self.viewers.get_mut(&peer) {
                viewer.push_again(key, end.bytes().clone(), false, self.now_ms);
                self.outputs.push_back(Output::Data { to: peer });
            }
        }
    }

    /// Tells a viewer of streams given up, once their blocks have gone.
    pub(super) fn tell_gone(&mut self, peer: PeerId) {
        let Some(viewer) = self.viewers.get_mut(&peer) else { return };
        for (key, reason) in viewer.take_gone() {
            self.end_skip(peer, key, u64::MAX);
            let Some(stream) = self.streams.get(&key) else { continue };
            let (place, ended) = (stream.place(), stream.state == State::Ended);
            self.tell(peer, Control::Gone { place, reason, ended });
        }
    }

    /// The publisher of a stream, or an upstream worker, says that blocks do not come; viewers are
    /// told. A sniffer numbers before it queues, and says so before it sends what comes after.
    pub fn handle_skipped(&mut self, peer: PeerId, control: &Control) {
        let Control::Skipped { key, next_sequence, .. } = control else { return };
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.publisher != Some(peer) || stream.next_sequence.is_some_and(|next| *next_sequence <= next) {
            return;
        }
        if stream.notices.len() < NOTICES_MAX
            && !stream.notices.contains(control)
            && self.holdings.grow(*key, NOTICE_BYTES)
        {
            stream.notices.push_back(control.clone());
        }
        let subscribers = stream.subscribers.clone();
        self.recent.push(*key, What::Notice(control.clone()));
        for to in subscribers {
            // Who reads the recent log is told now as well: it may be gone from there by its turn.
            let behind = self.viewers.get_mut(&to).and_then(|viewer| viewer.behind.get_mut(key));
            if behind.is_none_or(|behind| behind.tell(control)) {
                self.tell(to, control.clone());
            }
        }
    }

    /// The publisher of a stream says where it ends, although its last block does not come.
    pub fn handle_end(&mut self, peer: PeerId, place: Cursor, reason: &str) {
        self.go_on_to(peer, place);
        let key = place.key;
        self.owe_ack(peer, key);
        let is_its = |one: &&mut Stream| one.publisher == Some(peer) && one.state != State::Ended;
        if let Some(stream) = self.streams.get_mut(&key).filter(is_its) {
            stream.state = State::Ended;
            stream.cut = Some(reason.to_owned());
            self.handle_gone(key, reason);
        }
    }

    /// An upstream worker says that nothing of a stream comes behind a place; for ever if it has
    /// `ended` there, or else until its sniffer is back.
    pub fn handle_worker_gone(&mut self, peer: PeerId, place: Cursor, reason: &str, ended: bool) {
        if ended {
            self.handle_end(peer, place, reason);
        } else {
            self.go_on_to(peer, place);
            self.give_up(place.key, reason);
        }
    }

    /// What lies before a place does not come any more.
    fn go_on_to(&mut self, peer: PeerId, place: Cursor) {
        let is_behind = |one: &&mut Stream| one.next_sequence.unwrap_or(0) < place.next_sequence;
        if let Some(stream) = self.streams.get_mut(&place.key).filter(|one| one.publisher == Some(peer))
            && let Some(stream) = Some(stream).filter(is_behind)
        {
            stream.next_sequence = Some(place.next_sequence);
            stream.status.packets = stream.status.packets.max(place.packets);
            stream.status.bytes = stream.status.bytes.max(place.bytes);
            self.settle(place.key);
        }
    }

    /// A time mark of a publisher's idle stream, passed on to those who asked for marks.
    pub fn handle_mark(&mut self, peer: PeerId, epoch: Epoch, number: u32, complete_through_ns: u64) {
        let Some(publisher) = self.publishers.get(&peer) else { return };
        let epoch = if publisher.is_worker { epoch } else { publisher.run.epoch };
        let key = StreamKey { epoch, stream: number };
        let Some(stream) = self.streams.get(&key) else { return };
        for to in stream.subscribers.iter().copied() {
            // Behind queued blocks the mark would overtake them and be wrong: it is left out.
            let takes = self.viewers.get(&to).is_some_and(|viewer| viewer.takes_marks() && viewer.is_idle());
            if takes {
                let control = Control::Mark { epoch, stream: number, complete_through_ns };
                self.outputs.push_back(Output::Control { to, control });
            }
        }
    }

    /// The next data message for a viewer: envelope and shared block.
    pub fn poll_data(&mut self, peer: PeerId) -> Option<(Envelope, Bytes)> {
        let viewer = self.viewers.get_mut(&peer)?;
        if viewer.controls_due > 0 {
            return None; // they go first, and then wake the connection again
        }
        if !viewer.is_worker() && viewer.in_flight_count() >= IN_FLIGHT_MAX {
            // What it does not settle would be kept here for ever, and unsettled for the sniffers.
            if !std::mem::replace(&mut viewer.is_mute, true) {
                let reason = format!("has not said of {IN_FLIGHT_MAX} data messages that they have arrived");
                self.outputs.push_back(Output::Close { peer, reason });
            }
            return None;
        }
        let (has_queued, is_behind) = (!viewer.is_empty(), !viewer.behind.is_empty());
        let delivery = match viewer.lanes.choose(has_queued, is_behind) {
            Some(Lane::Live) => viewer.pop(),
            Some(Lane::Backlog) => match self.poll_recent(peer) {
                Some(delivery) => Some(delivery),
                // Caught up, or a notice goes first.
                None => self.viewers.get_mut(&peer).filter(|one| one.controls_due == 0).and_then(Viewer::pop),
            },
            None => None,
        };
        let Some(delivery) = delivery else {
            self.finish_skipped(peer);
            self.tell_gone(peer);
            return None;
        };
        if let Some(viewer) = self.viewers.get_mut(&peer) {
            let lane = if delivery.is_recent { Lane::Backlog } else { Lane::Live };
            viewer.lanes.sent(lane, delivery.bytes.len(), has_queued && is_behind);
            viewer.delivered.packets += delivery.gap.packets;
            viewer.delivered.captured_bytes += delivery.gap.bytes;
            if !viewer.is_worker() {
                self.totals.sent.add(delivery.bytes.len(), delivery.gap.packets);
            }
        }
        Some((Envelope { replay: delivery.is_replay, ..Envelope::default() }, delivery.bytes))
    }

    /// Memory is short: what is kept for viewers that come back goes first, a quarter at a time;
    /// then the viewer with the longest queue loses it, and is told.
    ///
    /// `false`: there is nothing to let go of.
    pub fn shed(&mut self) -> bool {
        if self.recent.shrink(self.recent.bytes().saturating_sub(self.config.recent_bytes / 4)) {
            return true;
        }
        let longest = self.viewers.iter().max_by_key(|(peer, viewer)| (viewer.queued_bytes(), **peer));
        let Some((peer, _)) = longest.filter(|(_, viewer)| viewer.queued_bytes() > 0) else { return false };
        let peer = *peer;
        let Some(viewer) = self.viewers.get_mut(&peer) else { return false };
        let dropped = viewer.drop_queue(Stage::Budget);
        for (key, sequence, packets) in dropped {
            self.totals.skipped.add(Stage::Budget, packets, 0);
            self.serve(key, sequence);
        }
        self.outputs.push_back(Output::Data { to: peer }); // ends may have been dropped
        self.tell_gone(peer);
        true
    }
}
