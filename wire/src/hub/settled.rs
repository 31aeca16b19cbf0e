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
        for (key, sequence) in viewer.settle(messages) {
            self.serve(key, sequence);
        }
    }

    /// A downstream worker has settled its blocks of one stream below `settled`.
    pub fn handle_worker_settled(&mut self, peer: PeerId, key: StreamKey, settled: u64) {
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
        while stream.pending.front().is_some_and(|(_, waiting)| *waiting == 0) {
            stream.pending.pop_front();
        }
        let next = stream.next_sequence.unwrap_or(0);
        let settled = stream.pending.front().map_or(next, |(sequence, _)| *sequence);
        if settled != stream.settled {
            stream.settled = settled;
            if let Some(publisher) = stream.publisher {
                self.owe_ack(publisher, key);
            }
        }
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

    /// How far the streams of an upstream worker are settled here.
    pub fn settled_of(&self, peer: PeerId) -> impl Iterator<Item = (StreamKey, u64)> + '_ {
        let of_peer = move |stream: &&Stream| stream.publisher == Some(peer);
        self.streams.values().filter(of_peer).map(|stream| (stream.status.key, stream.settled))
    }
}
