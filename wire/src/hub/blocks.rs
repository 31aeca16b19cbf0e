//! The way of a block through the hub: checked, queued for each viewer or skipped for it, polled.

use super::*;

impl Hub {
    /// A packed block of a publisher. It is checked as far as its header goes, and shared.
    pub fn handle_block(&mut self, peer: PeerId, bytes: Bytes) -> Result<(), HubError> {
        let Some(publisher) = self.publishers.get_mut(&peer) else {
            return Err(HubError::NotPublisher { what: "a block" });
        };
        let block = PackedBlock::new(bytes)?;
        let header = *block.header();
        let key = header.key;
        if header.kind != Kind::Packets && header.raw_bytes as usize > JSON_BYTES_MAX {
            return Err(HubError::TooLarge { key, found: header.raw_bytes });
        }
        if !publisher.is_worker && key.epoch != publisher.epoch {
            return Err(HubError::Epoch { found: key.epoch, expected: publisher.epoch });
        }
        let Some(stream) = self.streams.get_mut(&key) else { return Err(HubError::UnknownStream { key }) };
        if !publisher.is_worker {
            publisher.acks_due.insert(key.stream);
            self.acks_due.insert(peer);
        }
        let next = stream.next_sequence.unwrap_or(0);
        if header.sequence < next {
            self.totals.duplicates += 1;
            if header.kind == Kind::Description && !stream.is_started {
                // Of a stream that begins later than this: whoever has joined cannot read it without.
                stream.description = Some(block.bytes().clone());
                for to in stream.subscribers.clone() {
                    if let Some(viewer) = self.viewers.get_mut(&to) {
                        viewer.push_replay(key, block.bytes().clone());
                        self.outputs.push_back(Output::Data { to });
                    }
                }
            }
            return Ok(());
        }
        if stream.state == State::Ended {
            return Err(HubError::Ended { key, sequence: header.sequence });
        }
        if header.packets_before < stream.status.packets || header.bytes_before < stream.status.bytes {
            return Err(HubError::Counters { key, sequence: header.sequence });
        }
        self.totals.blocks_in += 1;
        self.totals.bytes_in += block.bytes().len() as u64;
        self.totals.packets_in += u64::from(header.packet_count);
        let gap = Gap {
            first_sequence: next,
            next_sequence: header.sequence,
            packets: header.packets_before - stream.status.packets,
            bytes: header.bytes_before - stream.status.bytes,
        };
        let is_started = stream.is_started;
        stream.is_started |= header.kind != Kind::Description;
        if !is_started && gap.next_sequence > gap.first_sequence && !publisher.is_worker {
            // What came before this relay, or before its sniffer reached it, is not its loss.
            stream.next_sequence = Some(header.sequence);
            stream.status.packets = header.packets_before;
            stream.status.bytes = header.bytes_before;
            self.join_again(key, header.sequence);
        }
        let Some(publisher) = self.publishers.get(&peer) else { return Ok(()) };
        let Some(stream) = self.streams.get_mut(&key) else { return Ok(()) };
        stream.next_sequence = Some(header.sequence + 1);
        let is_past = |notice: &Control| match notice {
            Control::Skipped { next_sequence, .. } => *next_sequence <= header.sequence + 1,
            _ => true,
        };
        stream.notices.retain(|notice| !is_past(notice));
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
        let upstream_told = publisher.is_worker;
        if is_started && gap.next_sequence > gap.first_sequence && !upstream_told {
            // The sniffer numbers before it queues: what does not come was dropped there.
            self.tell_gap(&subscribers, key, gap, Stage::NoBuffer);
        }
        let mut served = 0;
        for viewer in &subscribers {
            served += u32::from(self.push(*viewer, &block));
        }
        let Some(stream) = self.streams.get_mut(&key) else { return Ok(()) };
        stream.pending.push_back((header.sequence, served));
        self.settle(key);
        if header.end {
            self.handle_ended(key);
        }
        Ok(())
    }

    /// Queues a block for a viewer; `false` if it is skipped for it.
    pub(super) fn push(&mut self, peer: PeerId, block: &PackedBlock) -> bool {
        let Some(viewer) = self.viewers.get_mut(&peer) else { return false };
        let key = block.header().key;
        if !viewer.has_room(block.header()) {
            viewer.skip(block.header());
            self.totals.packets_skipped += u64::from(block.header().packet_count);
            return false;
        }
        self.end_skip(peer, key, block.header().sequence);
        let Some(viewer) = self.viewers.get_mut(&peer) else { return false };
        let was_empty = viewer.is_empty();
        viewer.push(block);
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
            viewer.push_replay(key, description);
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
    }

    /// A viewer has caught up: streams that ended while it was behind end for it, too.
    pub(super) fn finish_skipped(&mut self, peer: PeerId) {
        let Some(viewer) = self.viewers.get(&peer) else { return };
        for key in viewer.skipped() {
            let Some(end) = self.streams.get(&key).and_then(|stream| stream.end.clone()) else { continue };
            self.end_skip(peer, key, end.header().sequence);
            if let Some(viewer) = self.viewers.get_mut(&peer) {
                viewer.push_replay(key, end.bytes().clone());
                self.outputs.push_back(Output::Data { to: peer });
            }
        }
    }

    /// Tells a viewer of streams given up, once their blocks have gone.
    pub(super) fn tell_gone(&mut self, peer: PeerId) {
        let Some(viewer) = self.viewers.get_mut(&peer) else { return };
        for (key, reason) in viewer.take_gone() {
            self.end_skip(peer, key, u64::MAX);
            self.tell(peer, Control::Gone { key, reason });
        }
    }

    pub(super) fn tell_gap(&mut self, subscribers: &[PeerId], key: StreamKey, gap: Gap, stage: Stage) {
        for to in subscribers.iter().copied() {
            self.tell(to, gap.control(key, stage));
        }
    }

    /// An upstream worker says that blocks do not come; our viewers are told.
    pub fn handle_skipped(&mut self, control: &Control) {
        let Control::Skipped { key, .. } = control else { return };
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.notices.len() < NOTICES_MAX {
            stream.notices.push_back(control.clone());
        }
        for to in stream.subscribers.clone() {
            self.tell(to, control.clone());
        }
    }

    /// A time mark of a publisher's idle stream, passed on to those who asked for marks.
    pub fn handle_mark(&mut self, peer: PeerId, epoch: Epoch, number: u32, complete_through_ns: u64) {
        let Some(publisher) = self.publishers.get(&peer) else { return };
        let epoch = if publisher.is_worker { epoch } else { publisher.epoch };
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
        let Some(delivery) = viewer.pop() else {
            self.finish_skipped(peer);
            self.tell_gone(peer);
            return None;
        };
        self.totals.blocks_out += 1;
        self.totals.bytes_out += delivery.bytes.len() as u64;
        Some((Envelope::default(), delivery.bytes))
    }

    /// Memory is short: the viewer with the longest queue loses it, and is told.
    ///
    /// `false`: no viewer has anything queued.
    pub fn shed(&mut self) -> bool {
        let longest = self.viewers.iter().max_by_key(|(peer, viewer)| (viewer.queued_bytes(), **peer));
        let Some((peer, _)) = longest.filter(|(_, viewer)| viewer.queued_bytes() > 0) else { return false };
        let peer = *peer;
        let Some(viewer) = self.viewers.get_mut(&peer) else { return false };
        let dropped = viewer.drop_queue(Stage::Budget);
        for (key, sequence, packets) in dropped {
            self.totals.packets_skipped += packets;
            self.serve(key, sequence);
        }
        self.outputs.push_back(Output::Data { to: peer }); // ends may have been dropped
        self.tell_gone(peer);
        true
    }
}
