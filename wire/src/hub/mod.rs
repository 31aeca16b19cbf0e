//! The relay's core: streams, subscriptions, a bounded queue for each viewer, acknowledgement.
//! No I/O, no clock, no look past a block's header.
//!
//! ```text
//!  publisher --handle_block--> stream --push--> viewer queue --poll_data--> connection
//!                                 ^                                            |
//!                                 +------------- handle_data_sent -------------+
//! ```
//!
//! Invariants:
//! * a block goes to each viewer joined to its stream once, in sequence, or is covered by a
//!   `skipped` notice for that viewer;
//! * viewers share blocks by reference: what they queue costs its bytes once, however many wait;
//! * a block is settled when every viewer joined at its arrival has been handed it or told that it
//!   does not come. Nothing waits for that but the sniffer's memory;
//! * packets wait for a viewer up to its bound and one block over, descriptions, reports and ends
//!   up to twice the bound and one over; descriptions replayed at a join come on top;
//! * a block never overtakes the notice that explains what is missing before it.
//!
//! With several workers each has a hub. A hub sees another worker as an upstream, whose streams it
//! passes on, and as a downstream that takes all of its own.

mod awaited;
mod blocks;
mod catch_up;
mod figures;
mod holdings;
mod joining;
mod peers;
mod recent;
mod selection;
mod settled;
mod viewer;

use std::collections::{BTreeSet, HashMap, VecDeque};

use bytes::Bytes;
use thiserror::Error;

use crate::access::Grant;
use crate::block::{BlockError, Epoch, Header, Kind, PackedBlock, StreamKey};
use crate::description::JSON_BYTES_MAX;
use crate::globs::GlobError;
use crate::lanes::Lane;
use crate::ledger::Stage;
use crate::message::{
    Announcement, CONTROL_BYTES_MAX, Control, Cursor, Envelope, Selection, StreamAck, StreamStatus,
};
use crate::pool::Pool;
pub use awaited::Awaited;
use figures::Former;
pub use figures::{Flow, HubTotals, StreamCounts, ViewerFigures};
use holdings::{Full, Holdings, NOTICE_BYTES, STREAMS_PER_OWNER_MAX, bytes_of};
use recent::{Recent, What};
pub use selection::Matcher;
use viewer::{Delivery, Viewer};

/// Streams of one publisher, at most.
const STREAMS_PER_PUBLISHER_MAX: usize = 4096;
/// Ended streams that are still listed, at most.
const ENDED_STREAMS_MAX: usize = 1024;
/// Streams that are looked at to find out whether a viewer knows one that another goes on from.
const PREDECESSORS_MAX: usize = 64;

/// Bytes of a list besides its streams, at most.
const LIST_FRAME_BYTES: usize = 1024;
/// Openings of one stream that are told apart, at most.
const OPENINGS_MAX: usize = 16;
/// Notices of one stream that wait for their gap, at most.
const NOTICES_MAX: usize = 4096;

/// Data messages that are with a viewer's connection before it says that they have arrived, at most. What the
/// kernels and the network hold is less, if they are as short as can be.
const IN_FLIGHT_MAX: usize = 1 << 18;

/// State of a stream whose sniffer's connection is lost.
const AWAY: &str = "away";
/// Why a stream ends for a viewer that comes back when it had been given up.
const GIVEN_UP: &str = "its sniffer has been away for too long";

/// Names a peer of a hub: a connection, or another worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u64);

/// What the hub wants done.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a control message.
    Control {
        /// To whom.
        to: PeerId,
        /// What.
        control: Control,
    },
    /// Data waits for this peer: [`Hub::poll_data`].
    Data {
        /// For whom.
        to: PeerId,
    },
    /// Close a connection, with a reason.
    Close {
        /// Whose.
        peer: PeerId,
        /// Why.
        reason: String,
    },
}

/// How a publisher broke the protocol.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum HubError {
    #[error("{0}")]
    Block(#[from] BlockError),
    #[error("stream {key} was not announced")]
    UnknownStream { key: StreamKey },
    #[error("stream {key} is another sniffer's, which is connected")]
    Foreign { key: StreamKey },
    #[error("run {epoch} belongs to another sniffer")]
    Taken { epoch: Epoch },
    #[error("stream {key} has ended, but block {sequence} came")]
    Ended { key: StreamKey, sequence: u64 },
    #[error("stream {key}: a description or report of {found} bytes, at most {JSON_BYTES_MAX} are taken")]
    TooLarge { key: StreamKey, found: u32 },
    #[error("over {STREAMS_PER_PUBLISHER_MAX} streams")]
    TooManyStreams,
    #[error("over {STREAMS_PER_OWNER_MAX} streams under one name, those that are away among them")]
    TooManyOfOwner,
    #[error("stream {key}: no memory to remember it; what is known of one owner's streams has its bound")]
    Memory { key: StreamKey },
    #[error("block {sequence} of stream {key}: its counters go back")]
    Counters { key: StreamKey, sequence: u64 },
    #[error("{0}")]
    Selection(#[from] GlobError),
    #[error("sent {what} without being a publisher")]
    NotPublisher { what: &'static str },
}

/// Bounds of a hub.
#[derive(Clone, Copy, Debug)]
pub struct HubConfig {
    /// Most bytes of blocks that wait for one viewer.
    pub viewer_queue_bytes: usize,
    /// Most bytes of what came lately, kept while a viewer may come back for it.
    pub recent_bytes: usize,
}

/// A run of a sniffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Under which name it proved itself; its streams are nobody else's.
    pub owner: String,
    /// The name that viewers see.
    pub name: String,
    /// The run.
    pub epoch: Epoch,
    /// The same for all runs of one spool.
    pub home: Epoch,
    /// It was another relay's before, whose viewers may come here, too.
    pub was_elsewhere: bool,
}

#[derive(Debug)]
struct Publisher {
    run: Run,
    address: String,
    is_worker: bool,
    acks_due: BTreeSet<StreamKey>,
    /// Viewers and workers that take its streams, and how many of them each.
    /// In order; of a list the room for a thousand is half of that of a map.
    takers: Vec<(PeerId, u32)>,
    /// What it was told of them.
    told: (u32, bool),
    /// It waits rather than have a block skipped.
    is_paced: bool,
    /// What was taken from it.
    received: Flow,
}

impl Publisher {
    fn new(run: Run, address: String, is_worker: bool) -> Self {
        let (acks_due, takers, told) = (BTreeSet::new(), Vec::new(), (0, false));
        Self { run, address, is_worker, acks_due, takers, told, is_paced: false, received: Flow::default() }
    }

    /// Where a taker is among the takers, or would be.
    fn taker_at(&self, peer: PeerId) -> Result<usize, usize> {
        self.takers.binary_search_by_key(&peer, |(peer, _)| *peer)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Live,
    /// The publisher's connection is lost, since this time of the caller's clock, in ms.
    Away(u64),
    /// It stayed away for too long; it is live again if it comes back after all.
    GivenUp,
    Ended,
}

/// When a stream was opened to those who want it: at first, when its table had grown, when it was live again.
#[derive(Clone, Copy, Debug)]
struct Opening {
    /// Among the moments of [`Awaited`].
    moment: u64,
    /// Where it was.
    place: Cursor,
    /// Of its table, which only grows, so many interfaces were known.
    interfaces: usize,
    backlog: bool,
}

#[derive(Debug)]
struct Stream {
    status: StreamStatus,
    state: State,
    publisher: Option<PeerId>,
    /// The last description block, for those who join.
    description: Option<Bytes>,
    /// The last block, for those who were behind when it came.
    end: Option<PackedBlock>,
    /// It has ended at its place without such a block, and why.
    cut: Option<String>,
    /// A block other than a description has come: what is missing from here on is a loss.
    is_started: bool,
    /// Notices of an upstream worker about blocks still to come, for viewers that join before.
    notices: VecDeque<Control>,
    /// Blocks received: the next sequence expected. `None` before the first.
    next_sequence: Option<u64>,
    settled: u64,
    openings: Vec<Opening>,
    /// What is before this has arrived, or whoever waited for it has what came behind: it knows why.
    arrived: u64,
    /// Of another worker's stream: the same, with all workers.
    arrived_upstream: u64,
    /// Blocks not settled yet: sequence, and viewers still to be served.
    pending: VecDeque<(u64, u32)>,
    subscribers: Vec<PeerId>,
}

impl Stream {
    /// How far it has come.
    fn place(&self) -> Cursor {
        Cursor {
            key: self.status.key,
            next_sequence: self.next_sequence.unwrap_or(0),
            packets: self.status.packets,
            bytes: self.status.bytes,
        }
    }
}

/// What one viewer was given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Packets.
    pub packets: u64,
    /// Their captured bytes.
    pub captured_bytes: u64,
}

/// The relay's core. See the module's head.
#[derive(Debug)]
pub struct Hub {
    config: HubConfig,
    publishers: HashMap<PeerId, Publisher>,
    viewers: HashMap<PeerId, Viewer>,
    streams: HashMap<StreamKey, Stream>,
    ended: VecDeque<StreamKey>,
    holdings: Holdings,
    recent: Recent,
    awaited: Awaited,
    outputs: VecDeque<Output>,
    /// Publishers whose takers may have changed.
    takers_changed: BTreeSet<PeerId>,
    /// Publishers that are owed an acknowledgement.
    acks_due: BTreeSet<PeerId>,
    workers: Vec<PeerId>,
    /// Workers that are to be told how far streams are settled here.
    settled_due: BTreeSet<(PeerId, StreamKey)>,
    /// The caller's clock as last told.
    now_ms: u64,
    /// Of publishers that are there, what they count is not in it.
    totals: HubTotals,
    former: Former,
}

impl Hub {
    /// A hub without peers.
    pub fn new(config: HubConfig) -> Self {
        Self {
            recent: Recent::new(config.recent_bytes),
            config,
            publishers: HashMap::new(),
            viewers: HashMap::new(),
            streams: HashMap::new(),
            ended: VecDeque::new(),
            holdings: Holdings::default(),
            awaited: Awaited::default(),
            outputs: VecDeque::new(),
            takers_changed: BTreeSet::new(),
            acks_due: BTreeSet::new(),
            workers: Vec::new(),
            settled_due: BTreeSet::new(),
            now_ms: 0,
            totals: HubTotals::default(),
            former: Former::default(),
        }
    }

    /// What is remembered of streams counts against the budget of `pool`.
    pub fn set_budget(&mut self, pool: Pool) {
        self.holdings.set_budget(pool);
    }

    /// Viewers that may come back are those of all workers that share this.
    pub fn set_awaited(&mut self, awaited: Awaited) {
        self.awaited = awaited;
    }

    /// Queues a control message. What waits for that peer is held back until it is out: a notice
    /// must not come after the block it explains.
    fn tell(&mut self, to: PeerId, control: Control) {
        if let Some(viewer) = self.viewers.get_mut(&to) {
            viewer.controls_due += 1;
        }
        self.outputs.push_back(Output::Control { to, control });
    }

    /// A stream has ended: it stays listed for a while.
    fn handle_ended(&mut self, key: StreamKey) {
        self.ended.push_back(key);
        while self.ended.len() > ENDED_STREAMS_MAX {
            // The oldest that nobody waits for; the queue is short and this is rare.
            let is_read = |key: &StreamKey| !self.viewers.values().any(|one| one.behind.contains_key(key));
            let is_done = |key: &StreamKey| {
                self.streams.get(key).is_none_or(|stream| stream.pending.is_empty() && is_read(key))
            };
            let Some(at) = self.ended.iter().position(is_done) else { return };
            if let Some(key) = self.ended.remove(at)
                && let Some(stream) = self.streams.remove(&key)
            {
                self.holdings.forget(key);
                for peer in stream.subscribers {
                    if let Some(viewer) = self.viewers.get_mut(&peer) {
                        viewer.leave(key);
                    }
                    if let Some(publisher) = stream.publisher {
                        self.taker_left(publisher, peer);
                    }
                }
            }
        }
    }

    /// Gives up streams whose sniffer has been away for `limit_ms`; their viewers are told. Gives back
    /// what idle viewers once needed.
    pub fn handle_timeout(&mut self, now_ms: u64, limit_ms: u64) {
        self.now_ms = now_ms;
        self.viewers.values_mut().for_each(Viewer::release);
        let gone = |stream: &Stream| match stream.state {
            State::Away(since) => now_ms.saturating_sub(since) >= limit_ms,
            _ => false,
        };
        let mut keys: Vec<StreamKey> =
            self.streams.iter().filter(|(_, stream)| gone(stream)).map(|(key, _)| *key).collect();
        keys.sort_unstable();
        for key in keys {
            let reason = format!("its sniffer has been away for {} s", limit_ms / 1000);
            self.give_up(key, &reason);
        }
    }

    /// A stream is given up: its viewers are told, and it counts as ended.
    fn give_up(&mut self, key: StreamKey, reason: &str) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        if matches!(stream.state, State::Ended | State::GivenUp) {
            return;
        }
        stream.state = State::GivenUp;
        self.handle_gone(key, reason);
    }

    /// Tells the viewers of a stream, when its blocks have gone, that no more come.
    fn handle_gone(&mut self, key: StreamKey, reason: &str) {
        let Some(stream) = self.streams.get(&key) else { return };
        for to in stream.subscribers.clone() {
            if let Some(viewer) = self.viewers.get_mut(&to) {
                viewer.give_up(key, reason.to_owned());
            }
            self.tell_gone(to);
        }
        self.handle_ended(key);
    }

    /// What the hub wants done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.tell_takers();
        let output = self.outputs.pop_front()?;
        if let Output::Control { to, .. } = &output
            && let Some(viewer) = self.viewers.get_mut(to)
        {
            viewer.controls_due = viewer.controls_due.saturating_sub(1);
        }
        Some(output)
    }

    /// Streams of the sniffers that `may_see` lets pass, by name and number, as far as one message
    /// takes them; and how many more there are.
    pub fn list(&self, may_see: impl Fn(&str) -> bool) -> (Vec<StreamStatus>, u32) {
        let mut seen: Vec<&Stream> =
            self.streams.values().filter(|stream| may_see(&stream.status.name)).collect();
        seen.sort_by(|a, b| {
            let of = |stream: &'_ Stream| (stream.status.opened_ns, stream.status.key);
            a.status.name.cmp(&b.status.name).then_with(|| of(a).cmp(&of(b)))
        });
        let mut bytes = LIST_FRAME_BYTES;
        let fits = |status: &StreamStatus| {
            bytes += serde_json::to_vec(status).map_or(0, |json| json.len() + 1);
            bytes <= CONTROL_BYTES_MAX
        };
        let list: Vec<StreamStatus> =
            seen.iter().map(|stream| self.listed(stream)).take_while(fits).collect();
        let omitted = (seen.len() - list.len()) as u32;
        (list, omitted)
    }

    fn listed(&self, stream: &Stream) -> StreamStatus {
        let state = match stream.state {
            State::Live if stream.status.backlog => "backlog",
            State::Live => "live",
            State::Away(_) => AWAY,
            State::Ended | State::GivenUp => "ended",
        };
        // Another worker takes every stream; what counts is who is behind it.
        let takers = stream.subscribers.iter().filter_map(|peer| self.viewers.get(peer));
        let viewers = takers.map(|viewer| viewer.takers().0).sum();
        StreamStatus { state: state.to_owned(), viewers, ..stream.status.clone() }
    }

    /// Bytes of blocks that wait here for a viewer or another worker.
    pub fn queued_bytes(&self, peer: PeerId) -> Option<usize> {
        self.viewers.get(&peer).map(Viewer::queued_bytes)
    }

    /// What a viewer was given, replayed descriptions aside.
    pub fn delivered(&self, peer: PeerId) -> Delivered {
        self.viewers.get(&peer).map(|viewer| viewer.delivered).unwrap_or_default()
    }

    /// Publishers and viewers now, workers aside.
    pub fn peer_counts(&self) -> (usize, usize) {
        let publishers = self.publishers.values().filter(|publisher| !publisher.is_worker).count();
        let viewers = self.viewers.values().filter(|viewer| !viewer.is_worker()).count();
        (publishers, viewers)
    }
}

/// Blocks that do not come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Gap {
    first_sequence: u64,
    next_sequence: u64,
    packets: u64,
    bytes: u64,
}

impl Gap {
    /// One block.
    fn of(header: &Header) -> Self {
        Self {
            first_sequence: header.sequence,
            next_sequence: header.sequence + 1,
            packets: header.packet_count.into(),
            bytes: header.byte_count.into(),
        }
    }

    fn add(&mut self, more: Self) {
        self.first_sequence = self.first_sequence.min(more.first_sequence);
        self.next_sequence = self.next_sequence.max(more.next_sequence);
        self.packets += more.packets;
        self.bytes += more.bytes;
    }

    /// What a notice is about.
    fn told(notice: &Control) -> Option<Self> {
        let Control::Skipped { first_sequence, next_sequence, packets, bytes, .. } = *notice else {
            return None;
        };
        Some(Self { first_sequence, next_sequence, packets, bytes })
    }

    /// What lies between two places of a stream.
    fn between(from: &Cursor, to: &Cursor) -> Self {
        Self {
            first_sequence: from.next_sequence,
            next_sequence: to.next_sequence,
            packets: to.packets.saturating_sub(from.packets),
            bytes: to.bytes.saturating_sub(from.bytes),
        }
    }

    fn control(self, key: StreamKey, stage: Stage) -> Control {
        let Gap { first_sequence, next_sequence, packets, bytes } = self;
        Control::Skipped { key, first_sequence, next_sequence, packets, bytes, stage }
    }
}

#[cfg(test)]
mod tests;
