//! What is settled, and the acknowledgements that follow from it.

use super::*;

impl Hub {
    /// The viewer's connection has handed `data_sent` data messages to TCP since it began: a control
    /// message no longer overtakes them.
    pub fn handle_data_sent(&mut self, peer: PeerId, data_sent: u64) {
        let Some(viewer) = self.viewers.get_mut(&peer) else { return };
        viewer.data_sent = data_sent;
        self.tell_gone(peer);
    }

    /// The viewer says that so many data messages have arrived: they are settled.
    pub fn handle_progress(&mut self, peer: PeerId, messages: u64) {
        let Some(viewer) = self.viewers.get_mut(&peer) else { return };
        let (settled, has_caught_up) = (viewer.settle(messages), viewer.has_caught_up());
        if let Some(moment) = viewer.arrived_at.take_if(|_| messages > 0) {
            self.awaited.knows(viewer.run, moment); // what it joined was told before any data
        }
        if has_caught_up {
            self.awaited.catch_up(viewer.run);
        }
        for (key, sequence) in settled {
            self.serve(key, sequence);
        }
        if has_caught_up {
            self.let_go();
        }
    }

    /// Another worker says how far a stream is settled with it: of a stream of its own, how far blocks
    /// have arrived with all workers; of one of ours, with its viewers.
    pub fn handle_worker_settled(&mut self, peer: PeerId, key: StreamKey, settled: u64) {
        if let Some(stream) = self.streams.get_mut(&key).filter(|stream| stream.publisher == Some(peer)) {
            stream.arrived_upstream = settled;
            return self.let_go();
        }
        let Some(viewer) = self.viewers.get_mut(&peer) else { return };
        for (key, sequence) in viewer.settle_stream(key, settled) {
            self.serve(key, sequence);
        }
    }

    /// One viewer less waits for a block.
    pub(super) fn serve(&mut self, key: StreamKey, sequence: u64) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        if let Ok(at) = stream.pending.binary_search_by_key(&sequence, |(sequence, _)| *sequence)
            && let Some((_, waiting)) = stream.pending.get_mut(at)
        {
            *waiting = waiting.saturating_sub(1);
        }
        self.settle(key);
    }

    /// Advances what is settled of a stream, and owes its publisher an acknowledgement.
    pub(super) fn settle(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        while let Some((sequence, 0)) = stream.pending.front() {
            stream.arrived = sequence + 1;
            stream.pending.pop_front();
        }
        let next = stream.next_sequence.unwrap_or(0);
        if stream.pending.is_empty() {
            stream.arrived = next;
        }
        let settled = stream.pending.front().map_or(next, |(sequence, _)| *sequence);
        if settled != stream.settled {
            stream.settled = settled;
            match stream.publisher {
                Some(worker) if self.workers.contains(&worker) => {
                    self.settled_due.insert((worker, key));
                }
                publisher => {
                    self.settled_due.extend(self.workers.iter().map(|worker| (*worker, key)));
                    if let Some(publisher) = publisher {
                        self.owe_ack(publisher, key);
                    }
                }
            }
            self.let_go();
        }
    }

    /// What has arrived, with all workers, is kept in the recent log only while somebody may come back
    /// for it.
    pub(super) fn let_go(&mut self) {
        if self.awaited.is_any() {
            return;
        }
        let (streams, workers) = (&self.streams, &self.workers);
        let arrived = |stream: &Stream| match stream.publisher {
            Some(publisher) if workers.contains(&publisher) => stream.arrived.min(stream.arrived_upstream),
            _ => stream.arrived,
        };
        self.recent.let_go(|entry| {
            let Some(stream) = streams.get(&entry.key) else { return true };
            match &entry.what {
                What::Block(block) => block.header().sequence < arrived(stream),
                // Whoever has what follows the gap has been told.
                What::Notice(notice) => Gap::told(notice).is_none_or(|gap| {
                    let is_over = matches!(stream.state, State::Ended | State::GivenUp);
                    let is_past = is_over || !stream.notices.contains(notice);
                    let has_all = arrived(stream) >= stream.next_sequence.unwrap_or(0);
                    arrived(stream) > gap.next_sequence || (is_past && has_all)
                }),
            }
        });
    }

    /// A publisher is owed an acknowledgement of one of its streams.
    pub(super) fn owe_ack(&mut self, peer: PeerId, key: StreamKey) {
        if let Some(publisher) = self.publishers.get_mut(&peer)
            && !publisher.is_worker
        {
            publisher.acks_due.insert(key);
            self.acks_due.insert(peer);
        }
    }

    /// Whether an acknowledgement is due to anybody.
    pub fn owes_acks(&self) -> bool {
        !self.acks_due.is_empty()
    }

    /// An acknowledgement that is due, and to whom: one message for all streams of a publisher, of all that came
    /// since the last. Each wakes a sniffer: poll when much has come, or after some milliseconds.
    pub fn poll_ack(&mut self) -> Option<(PeerId, Control)> {
        loop {
            let peer = self.acks_due.pop_first()?;
            if let Some(ack) = self.ack_of(peer) {
                return Some((peer, ack));
            }
        }
    }

    pub(super) fn ack_of(&mut self, peer: PeerId) -> Option<Control> {
        let publisher = self.publishers.get_mut(&peer)?;
        let due = std::mem::take(&mut publisher.acks_due);
        let ack = |key: StreamKey| {
            let found = self.streams.get(&key)?;
            Some(StreamAck { received: found.place(), settled: found.settled })
        };
        let streams: Vec<StreamAck> = due.into_iter().filter_map(ack).collect();
        (!streams.is_empty()).then_some(Control::Ack { streams })
    }

    /// Another worker that is to be told how far a stream is settled here.
    pub fn poll_settled(&mut self) -> Option<(PeerId, StreamKey, u64)> {
        while let Some((to, key)) = self.settled_due.pop_first() {
            if let Some(stream) = self.streams.get(&key) {
                let is_its = stream.publisher == Some(to);
                return Some((to, key, if is_its { stream.settled } else { stream.arrived }));
            }
        }
        None
    }
}
