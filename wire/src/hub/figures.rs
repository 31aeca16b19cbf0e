//! What those who watch over the relay are told of a hub. Other workers are no sniffers and no viewers here: what passes
//! between workers is counted where it comes in and where it goes out, and nowhere else.

use std::collections::HashSet;

use super::*;
use crate::ledger::Losses;

/// Names of sniffers whose counters are kept when they have left, at most.
const FORMER_MAX: usize = 1000;

/// Blocks that went one way, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Blocks.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets in them.
    pub packets: u64,
}

impl Flow {
    /// One block more.
    pub(super) fn add(&mut self, bytes: usize, packets: u64) {
        *self = self.and(Self { blocks: 1, bytes: bytes as u64, packets });
    }

    /// Both together.
    pub fn and(self, other: Self) -> Self {
        Self {
            blocks: self.blocks + other.blocks,
            bytes: self.bytes + other.bytes,
            packets: self.packets + other.packets,
        }
    }
}

/// Counters of a hub.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HubTotals {
    /// Taken from sniffers, once each.
    pub received: Flow,
    /// Blocks that had come before, after a resend.
    pub duplicates: u64,
    /// Handed to viewers' connections.
    pub sent: Flow,
    /// Skipped, for some viewer or for all of another worker.
    pub skipped: Losses,
}

/// One viewer as it is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ViewerFigures {
    /// Bytes of blocks that wait for it here.
    pub queued_bytes: usize,
    /// Those blocks.
    pub queued_blocks: usize,
    /// Time since the oldest block was queued that it has not said to have, in ms, as exact as the hub's clock; 0: it has
    /// all.
    pub lag_ms: u64,
    /// Packets that its connection was given.
    pub sent_packets: u64,
    /// Packets that were skipped for it.
    pub skipped_packets: u64,
}

/// Streams by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamCounts {
    /// Their sniffer sends them as it captures.
    pub live: u64,
    /// Their sniffer sends what it had kept.
    pub backlog: u64,
    /// Their sniffer is not connected.
    pub away: u64,
    /// They have ended, or were given up.
    pub ended: u64,
}

/// What has come from sniffers that have left, by name.
#[derive(Debug, Default)]
pub(super) struct Former {
    by_name: HashMap<String, Left>,
    lefts: u64,
}

#[derive(Debug)]
struct Left {
    received: Flow,
    /// Which of those that left it was, last.
    number: u64,
}

impl Former {
    /// One has left. Where there are too many names, one goes that nobody has now, the longest gone first.
    fn add(&mut self, name: &str, received: Flow, live: &HashMap<PeerId, Publisher>) {
        self.lefts += 1;
        let number = self.lefts;
        let left = self.by_name.entry(name.to_owned()).or_insert(Left { received: Flow::default(), number });
        *left = Left { received: left.received.and(received), number };
        if self.by_name.len() > FORMER_MAX {
            let live: HashSet<&str> = live.values().map(|one| one.run.name.as_str()).collect();
            let gone = self.by_name.iter().filter(|(name, _)| !live.contains(name.as_str()));
            let oldest = gone.min_by_key(|(_, left)| left.number).map(|(name, _)| name.clone());
            oldest.and_then(|name| self.by_name.remove(&name));
        }
    }
}

impl Hub {
    /// A publisher has left, and is no longer among those that are there.
    pub(super) fn count_former(&mut self, publisher: &Publisher) {
        if !publisher.is_worker {
            self.totals.received = self.totals.received.and(publisher.received);
            self.former.add(&publisher.run.name, publisher.received, &self.publishers);
        }
    }

    /// Counters.
    pub fn totals(&self) -> HubTotals {
        let mut totals = self.totals.clone();
        for publisher in self.publishers.values().filter(|one| !one.is_worker) {
            totals.received = totals.received.and(publisher.received);
        }
        totals
    }

    /// What has come from the sniffers of each name, those that left lately among them.
    pub fn received_by_name(&self) -> HashMap<String, Flow> {
        let former = self.former.by_name.iter();
        let mut by_name: HashMap<String, Flow> =
            former.map(|(name, left)| (name.clone(), left.received)).collect();
        for publisher in self.publishers.values().filter(|one| !one.is_worker) {
            let flow = by_name.entry(publisher.run.name.clone()).or_default();
            *flow = flow.and(publisher.received);
        }
        by_name
    }

    /// A viewer as it is now; `None` before it has subscribed.
    pub fn viewer_figures(&self, peer: PeerId) -> Option<ViewerFigures> {
        self.viewers.get(&peer).map(|viewer| viewer.figures(self.now_ms))
    }

    /// Streams of sniffers that are or were connected here.
    pub fn stream_counts(&self) -> StreamCounts {
        let mut counts = StreamCounts::default();
        for stream in self.streams.values() {
            let publisher = stream.publisher.and_then(|peer| self.publishers.get(&peer));
            if publisher.is_some_and(|one| one.is_worker) {
                continue;
            }
            let count = match stream.state {
                State::Live if stream.status.backlog => &mut counts.backlog,
                State::Live => &mut counts.live,
                State::Away(_) => &mut counts.away,
                State::Ended | State::GivenUp => &mut counts.ended,
            };
            *count += 1;
        }
        counts
    }

    /// Bytes of what came lately, kept for viewers that come back.
    pub fn recent_bytes(&self) -> usize {
        self.recent.bytes()
    }
}
