//! The streams that the writer knows, and what is still to be told of them in the file: losses, and
//! times in which nothing could be captured.
//!
//! It is told once, as a comment:
//! * on the next packet of the stream;
//! * if the stream ends before one comes, on the first packet of its successor, whichever of the two
//!   comes first, unless the successor has written packets by then (a backlog that is drained
//!   beside live streams): there it would be in the wrong place;
//! * else on the last statistics of the interface.

use std::collections::{BTreeMap, HashMap, VecDeque};

use wire::block::StreamKey;
use wire::ledger::{Losses, Outage};

use crate::unpack::{Fate, Route};

/// Most outages that wait for a packet of one stream; further ones are only counted.
const OUTAGES_MAX: usize = 32;
/// Most streams that ended with something to tell and wait for a successor.
const ORPHANS_MAX: usize = 1024;

/// What is to be told.
#[derive(Debug, Default)]
pub struct Pending {
    losses: Losses,
    outages: Vec<Outage>,
    more_outages: u64,
}

impl Pending {
    /// Packets were lost.
    pub fn add_losses(&mut self, losses: &Losses) {
        for (stage, loss) in &losses.0 {
            self.losses.add(*stage, loss.packets, loss.bytes);
        }
    }

    /// Nothing could be captured for a while.
    pub fn add_outage(&mut self, outage: Outage) {
        if self.outages.len() < OUTAGES_MAX {
            self.outages.push(outage);
        } else {
            self.more_outages += 1;
        }
    }

    /// There is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.losses.packets() == 0 && self.outages.is_empty()
    }

    /// Tells what `other` was to tell.
    fn absorb(&mut self, other: Pending) {
        self.add_losses(&other.losses);
        self.more_outages += other.more_outages;
        for outage in other.outages {
            self.add_outage(outage);
        }
    }

    /// The comments, `place` being where the losses lie.
    pub fn comments(&self, place: &str) -> Vec<String> {
        let mut comments = Vec::new();
        for outage in &self.outages {
            let lasts = if outage.until_ns.is_none() { ", to the end" } else { "" };
            comments.push(format!("ringcast: {}{lasts}, packets in it are not counted", outage.text()));
        }
        if self.more_outages > 0 {
            comments.push(format!("ringcast: {} more such times", self.more_outages));
        }
        if self.losses.packets() > 0 {
            comments.push(loss_comment(&self.losses, place));
        }
        comments
    }
}

/// `ringcast: 12 packets lost before this one (viewer queue)`.
fn loss_comment(losses: &Losses, place: &str) -> String {
    let packets = losses.packets();
    let plural = if packets == 1 { "" } else { "s" };
    let stages = match losses.0.iter().next() {
        Some((stage, _)) if losses.0.len() == 1 => stage.text().to_owned(),
        _ => losses.text(),
    };
    format!("ringcast: {packets} packet{plural} lost {place} ({stages})")
}

/// What the writer knows of one stream.
#[derive(Debug, Default)]
pub struct Stream {
    /// Name of its sniffer.
    pub name: String,
    /// Where the packets of each of its interfaces go.
    pub routes: Vec<Route>,
    /// Equal interfaces of its table so far.
    pub seen: HashMap<(String, String), u32>,
    /// Kernel drops by interface at the last report.
    pub kernel_drops: Vec<Option<u64>>,
    /// To be told by its next packet.
    pub pending: Pending,
    /// A packet of it was written.
    pub has_written: bool,
    is_ended: bool,
    predecessor: Option<StreamKey>,
}

impl Stream {
    /// The first of its interfaces that is in the output.
    fn interface(&self) -> Option<u32> {
        let is_written = |route: &&Route| matches!(route.fate, Fate::Keep | Fate::Filter(_));
        self.routes.iter().find(is_written).map(|route| route.id)
    }
}

/// All of them. See the module's head.
#[derive(Debug, Default)]
pub struct Streams {
    known: HashMap<StreamKey, Stream>,
    /// Who goes on from whom, as long as the successor is known.
    successors: HashMap<StreamKey, StreamKey>,
    /// What forgotten streams were to tell, with their interface, the oldest first.
    orphans: VecDeque<(StreamKey, u32, Pending)>,
    /// What is told by the last statistics of an interface.
    leftovers: BTreeMap<u32, Pending>,
}

impl Streams {
    /// A stream, which is new if it is not known, and which has not ended.
    pub fn join(&mut self, key: StreamKey) -> &mut Stream {
        let stream = self.known.entry(key).or_default();
        stream.is_ended = false;
        stream
    }

    /// A stream that is known.
    pub fn find(&mut self, key: StreamKey) -> Option<&mut Stream> {
        self.known.get_mut(&key)
    }

    /// Stream `key` goes on from another, and says what that had to say, if it has ended.
    pub fn succeed(&mut self, key: StreamKey, predecessor: StreamKey) {
        let Some(stream) = self.known.get_mut(&key).filter(|_| predecessor != key) else { return };
        stream.predecessor = Some(predecessor);
        let has_written = stream.has_written;
        self.successors.insert(predecessor, key);
        if has_written {
            return;
        }
        let orphan = self.orphans.iter().position(|(orphan, ..)| *orphan == predecessor);
        let inherited = match orphan.and_then(|at| self.orphans.remove(at)) {
            Some((_, _, pending)) => pending,
            None => match self.known.get_mut(&predecessor).filter(|former| former.is_ended) {
                Some(former) => std::mem::take(&mut former.pending),
                None => return,
            },
        };
        if let Some(stream) = self.known.get_mut(&key) {
            stream.pending.absorb(inherited);
        }
    }

    /// Nothing more of the stream is expected, although it might come back.
    pub fn end(&mut self, key: StreamKey) {
        let Some(stream) = self.known.get_mut(&key) else { return };
        stream.is_ended = true;
        let pending = std::mem::take(&mut stream.pending);
        let heir = self.successors.get(&key).copied().and_then(|heir| self.known.get_mut(&heir));
        match heir {
            Some(heir) if !heir.has_written => heir.pending.absorb(pending),
            _ => {
                if let Some(stream) = self.known.get_mut(&key) {
                    stream.pending = pending;
                }
            }
        }
    }

    /// The stream has ended for good: only what it still has to tell is kept.
    pub fn forget(&mut self, key: StreamKey) -> Option<Stream> {
        self.end(key);
        let mut stream = self.known.remove(&key)?;
        if let Some(predecessor) = stream.predecessor
            && self.successors.get(&predecessor) == Some(&key)
        {
            self.successors.remove(&predecessor);
        }
        let pending = std::mem::take(&mut stream.pending);
        if let Some(interface) = stream.interface().filter(|_| !pending.is_empty()) {
            if self.successors.contains_key(&key) {
                self.leftovers.entry(interface).or_default().absorb(pending);
            } else {
                self.orphans.push_back((key, interface, pending));
            }
        }
        if self.orphans.len() > ORPHANS_MAX
            && let Some((_, interface, pending)) = self.orphans.pop_front()
        {
            self.leftovers.entry(interface).or_default().absorb(pending);
        }
        Some(stream)
    }

    /// The last statistics of an interface are to tell of an outage.
    pub fn leave(&mut self, interface: u32, outage: Outage) {
        self.leftovers.entry(interface).or_default().add_outage(outage);
    }

    /// What no packet has told, by interface.
    pub fn finish(&mut self) -> HashMap<u32, Vec<String>> {
        let mut left = std::mem::take(&mut self.leftovers);
        for (_, interface, pending) in self.orphans.drain(..) {
            left.entry(interface).or_default().absorb(pending);
        }
        let mut keys: Vec<_> = self.known.keys().copied().collect();
        keys.sort();
        for stream in keys.iter().filter_map(|key| self.known.remove(key)) {
            if let Some(interface) = stream.interface() {
                left.entry(interface).or_default().absorb(stream.pending);
            }
        }
        let told = left.into_iter().map(|(id, pending)| (id, pending.comments("after the last one")));
        told.filter(|(_, comments)| !comments.is_empty()).collect()
    }

    /// Streams that are known and entries kept for others.
    #[cfg(test)]
    fn sizes(&self) -> [usize; 4] {
        [self.known.len(), self.successors.len(), self.orphans.len(), self.leftovers.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::block::Epoch;
    use wire::ledger::{OutageKind, Stage};

    fn key(stream: u32) -> StreamKey {
        StreamKey { epoch: Epoch(1), stream }
    }

    fn lost(packets: u64) -> Losses {
        let mut losses = Losses::default();
        losses.add(Stage::ViewerQueue, packets, 0);
        losses
    }

    fn streams(keys: &[u32]) -> Streams {
        let mut streams = Streams::default();
        for stream in keys {
            let route = Route { id: *stream, fate: Fate::Keep, offset_ns: 0 };
            streams.join(key(*stream)).routes.push(route);
        }
        streams
    }

    fn lose(streams: &mut Streams, stream: u32, packets: u64) {
        streams.find(key(stream)).expect("known").pending.add_losses(&lost(packets));
    }

    fn packets(streams: &mut Streams, stream: u32) -> u64 {
        streams.find(key(stream)).expect("known").pending.losses.packets()
    }

    #[test]
    fn comments_name_the_stage_and_the_time() {
        let mut pending = Pending::default();
        pending.add_losses(&lost(12));
        let text = "ringcast: 12 packets lost before this one (viewer queue)";
        assert_eq!(pending.comments("before this one"), [text]);
        pending.losses.add(Stage::KernelRing, 1, 0);
        let outage = |until_ns| Outage {
            kind: OutageKind::InterfaceDown,
            interface: "eth0".into(),
            from_ns: 1_000_000_000,
            until_ns,
        };
        pending.add_outage(outage(Some(4_200_000_000)));
        pending.add_outage(outage(None));
        let comments = pending.comments("here");
        assert_eq!(
            comments,
            [
                "ringcast: interface eth0: down for 3.2 s, packets in it are not counted",
                "ringcast: interface eth0: down, to the end, packets in it are not counted",
                "ringcast: 13 packets lost here (1 kernel ring, 12 viewer queue)",
            ]
        );
        (0..OUTAGES_MAX).for_each(|_| pending.add_outage(outage(None)));
        assert_eq!(pending.comments("here")[OUTAGES_MAX], "ringcast: 2 more such times");
    }

    #[test]
    fn a_successor_says_what_an_ended_stream_had_to_say() {
        // The usual order: the one ends, the other begins, before or after the first is forgotten.
        for forgotten in [false, true] {
            let mut streams = streams(&[1, 2]);
            lose(&mut streams, 1, 5);
            if forgotten {
                drop(streams.forget(key(1)))
            } else {
                streams.end(key(1))
            }
            streams.succeed(key(2), key(1));
            assert_eq!(packets(&mut streams, 2), 5);
            streams.forget(key(1));
            assert_eq!(streams.finish()[&2], ["ringcast: 5 packets lost after the last one (viewer queue)"]);
        }
        // The other order: the successor is there, has not written, and the first ends.
        let mut other = streams(&[1, 2]);
        other.succeed(key(2), key(1));
        lose(&mut other, 1, 5);
        assert_eq!(packets(&mut other, 2), 0, "the first may still tell it itself");
        other.end(key(1));
        assert_eq!(packets(&mut other, 2), 5);
    }

    #[test]
    fn what_a_backlog_lacks_is_not_told_by_a_live_stream() {
        let mut streams = streams(&[1, 2]);
        streams.succeed(key(2), key(1));
        streams.find(key(2)).expect("known").has_written = true;
        lose(&mut streams, 1, 5);
        streams.forget(key(1));
        streams.succeed(key(2), key(1)); // its table has grown
        assert_eq!(packets(&mut streams, 2), 0);
        let left = streams.finish();
        assert_eq!((left.len(), left[&1].len()), (1, 1), "{left:?}");
    }

    #[test]
    fn streams_that_follow_each_other_for_months_leave_nothing_behind() {
        let mut streams = streams(&[0]);
        for stream in 1..10_000 {
            streams.join(key(stream)).routes.push(Route { id: 0, fate: Fate::Keep, offset_ns: 0 });
            streams.succeed(key(stream), key(stream - 1));
            lose(&mut streams, stream, 1);
            streams.forget(key(stream - 1));
        }
        assert_eq!(streams.sizes(), [1, 1, 0, 0]);
        let mut streams = Streams::default();
        for stream in 0..10_000 {
            streams.join(key(stream)).routes.push(Route { id: 0, fate: Fate::Keep, offset_ns: 0 });
            lose(&mut streams, stream, 1);
            streams.forget(key(stream));
        }
        assert_eq!(streams.sizes(), [0, 0, ORPHANS_MAX, 1], "nobody goes on from them");
        assert!(streams.finish()[&0][0].starts_with("ringcast: 10000 packets lost after the last one"));
    }
}
