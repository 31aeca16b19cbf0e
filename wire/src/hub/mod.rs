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

mod selection;
mod viewer;

use std::collections::{BTreeSet, HashMap, VecDeque};

use bytes::Bytes;
use thiserror::Error;

use crate::block::{BlockError, Epoch, Header, Kind, PackedBlock, StreamKey};
use crate::description::JSON_BYTES_MAX;
use crate::ledger::Stage;
use crate::message::{Control, Envelope, Selection, StreamAck, StreamStatus};
pub use selection::{Matcher, SelectionError};
use viewer::Viewer;

/// Streams of one publisher, at most.
const STREAMS_PER_PUBLISHER_MAX: usize = 4096;
/// Ended streams that are still listed, at most.
const ENDED_STREAMS_MAX: usize = 256;

/// Notices of one stream that wait for their gap, at most.
const NOTICES_MAX: usize = 4096;

/// State of a stream whose sniffer's connection is lost.
const AWAY: &str = "away";

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
    #[error("block of epoch {found} from a sniffer whose epoch is {expected}")]
    Epoch { found: Epoch, expected: Epoch },
    #[error("stream {key} was not announced")]
    UnknownStream { key: StreamKey },
    #[error("stream {key} has ended, but block {sequence} came")]
    Ended { key: StreamKey, sequence: u64 },
    #[error("stream {key}: a description or report of {found} bytes, at most {JSON_BYTES_MAX} are taken")]
    TooLarge { key: StreamKey, found: u32 },
    #[error("over {STREAMS_PER_PUBLISHER_MAX} streams")]
    TooManyStreams,
    #[error("block {sequence} of stream {key}: its counters go back")]
    Counters { key: StreamKey, sequence: u64 },
    #[error("{0}")]
    Selection(#[from] SelectionError),
    #[error("sent {what} without being a publisher")]
    NotPublisher { what: &'static str },
}

/// Bounds of a hub.
#[derive(Clone, Copy, Debug)]
pub struct HubConfig {
    /// Most bytes of blocks that wait for one viewer.
    pub viewer_queue_bytes: usize,
}

#[derive(Debug)]
struct Publisher {
    name: String,
    epoch: Epoch,
    address: String,
    is_worker: bool,
    acks_due: BTreeSet<u32>,
    /// Viewers and workers that take its streams, and how many of them each.
    takers: HashMap<PeerId, u32>,
    /// What it was told of them.
    told: (u32, bool),
    /// It waits rather than have a block skipped.
    is_paced: bool,
}

impl Publisher {
    fn new(name: String, epoch: Epoch, address: String, is_worker: bool) -> Self {
        let (acks_due, takers) = (BTreeSet::new(), HashMap::new());
        Self { name, epoch, address, is_worker, acks_due, takers, told: (0, false), is_paced: false }
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

#[derive(Debug)]
struct Stream {
    status: StreamStatus,
    state: State,
    publisher: Option<PeerId>,
    /// The last description block, for those who join.
    description: Option<Bytes>,
    /// The last block, for those who were behind when it came.
    end: Option<PackedBlock>,
    /// A block other than a description has come: what is missing from here on is a loss.
    is_started: bool,
    /// Notices of an upstream worker about blocks still to come, for viewers that join before.
    notices: VecDeque<Control>,
    /// Blocks received: the next sequence expected. `None` before the first.
    next_sequence: Option<u64>,
    settled: u64,
    /// Blocks not settled yet: sequence, and viewers still to be served.
    pending: VecDeque<(u64, u32)>,
    subscribers: Vec<PeerId>,
}

/// Counters of a hub.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HubTotals {
    /// Blocks taken from publishers.
    pub blocks_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Packets in them.
    pub packets_in: u64,
    /// Blocks that had come before, after a resend.
    pub duplicates: u64,
    /// Blocks handed to viewers' connections.
    pub blocks_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Packets skipped for some viewer.
    pub packets_skipped: u64,
}

/// The relay's core. See the module's head.
#[derive(Debug)]
pub struct Hub {
    config: HubConfig,
    publishers: HashMap<PeerId, Publisher>,
    viewers: HashMap<PeerId, Viewer>,
    streams: HashMap<StreamKey, Stream>,
    ended: VecDeque<StreamKey>,
    outputs: VecDeque<Output>,
    /// Publishers whose takers may have changed.
    takers_changed: BTreeSet<PeerId>,
    /// Publishers that are owed an acknowledgement.
    acks_due: BTreeSet<PeerId>,
    /// The caller's clock as last told.
    now_ms: u64,
    totals: HubTotals,
}

impl Hub {
    /// A hub without peers.
    pub fn new(config: HubConfig) -> Self {
        Self {
            config,
            publishers: HashMap::new(),
            viewers: HashMap::new(),
            streams: HashMap::new(),
            ended: VecDeque::new(),
            outputs: VecDeque::new(),
            takers_changed: BTreeSet::new(),
            acks_due: BTreeSet::new(),
            now_ms: 0,
            totals: HubTotals::default(),
        }
    }

    /// A sniffer said hello. An older connection of its epoch is closed.
    pub fn add_publisher(&mut self, peer: PeerId, name: String, epoch: Epoch, address: String) {
        let is_older = |publisher: &Publisher| publisher.epoch == epoch && !publisher.is_worker;
        let older: Vec<PeerId> =
            self.publishers.iter().filter(|(_, one)| is_older(one)).map(|(peer, _)| *peer).collect();
        for peer in older {
            let reason = "a newer connection of the same sniffer took over".to_owned();
            self.outputs.push_back(Output::Close { peer, reason });
            self.remove_publisher(peer, self.now_ms);
        }
        self.publishers.insert(peer, Publisher::new(name, epoch, address, false));
    }

    /// Another worker, which takes all streams of our own and passes on its own.
    pub fn add_worker(&mut self, peer: PeerId, queue_bytes: usize) {
        self.publishers.insert(peer, Publisher::new(String::new(), Epoch(0), String::new(), true));
        self.viewers.insert(peer, Viewer::worker(queue_bytes));
    }

    /// A viewer subscribed: every stream that matches is joined from its next block on.
    pub fn add_viewer(&mut self, peer: PeerId, selection: &Selection) -> Result<(), HubError> {
        let matcher = Matcher::new(selection)?;
        self.remove_viewer(peer);
        self.viewers.insert(peer, Viewer::new(matcher, selection.marks, self.config.viewer_queue_bytes));
        let mut keys: Vec<StreamKey> = self.streams.keys().copied().collect();
        keys.sort_unstable();
        let joined = keys.into_iter().filter(|key| self.join(peer, *key)).count();
        self.outputs
            .push_back(Output::Control { to: peer, control: Control::Subscribed { streams: joined as u32 } });
        Ok(())
    }

    /// A connection is gone, whatever it was. `now_ms` is any clock that does not go back.
    pub fn remove_peer(&mut self, peer: PeerId, now_ms: u64) {
        self.now_ms = now_ms;
        self.remove_viewer(peer);
        self.remove_publisher(peer, now_ms);
    }

    /// A publisher that waits rather than have a block skipped asks how much may be under way.
    pub fn handle_paced(&mut self, peer: PeerId) {
        if let Some(publisher) = self.publishers.get_mut(&peer) {
            publisher.is_paced = true;
        }
        self.tell_windows();
    }

    /// All paced publishers together get half of a viewer's queue, or of a worker's: a viewer that
    /// takes all of them has room for what they send.
    fn tell_windows(&mut self) {
        let is_paced = |publisher: &Publisher| publisher.is_paced;
        let count = self.publishers.values().filter(|one| is_paced(one)).count() as u64;
        let workers = 1 + self.publishers.values().filter(|one| one.is_worker).count() as u64;
        let all_bytes = self.config.viewer_queue_bytes as u64 / 2 / workers;
        for (peer, _) in self.publishers.iter().filter(|(_, one)| is_paced(one)) {
            let control = Control::Window { bytes: all_bytes / count };
            self.outputs.push_back(Output::Control { to: *peer, control });
        }
    }

    fn remove_publisher(&mut self, peer: PeerId, now_ms: u64) {
        let Some(publisher) = self.publishers.remove(&peer) else { return };
        if publisher.is_paced {
            self.tell_windows();
        }
        let of_peer = |(_, stream): &(&StreamKey, &Stream)| stream.publisher == Some(peer);
        let mut keys: Vec<StreamKey> = self.streams.iter().filter(of_peer).map(|(key, _)| *key).collect();
        keys.sort_unstable(); // told in the same order by every run
        for key in keys {
            let Some(stream) = self.streams.get_mut(&key) else { continue };
            stream.publisher = None;
            if stream.state != State::Live {
                continue;
            }
            stream.state = State::Away(now_ms);
            let is_worker = |peer: &PeerId| self.viewers.get(peer).is_some_and(Viewer::is_worker);
            for to in stream.subscribers.iter().copied().filter(is_worker) {
                let status = StreamStatus { state: AWAY.to_owned(), ..stream.status.clone() };
                let control = Control::Join { status, next_sequence: 0 };
                self.outputs.push_back(Output::Control { to, control });
            }
        }
    }

    fn remove_viewer(&mut self, peer: PeerId) {
        let Some(mut viewer) = self.viewers.remove(&peer) else { return };
        for key in viewer.joined() {
            let Some(stream) = self.streams.get_mut(&key) else { continue };
            stream.subscribers.retain(|one| *one != peer);
            stream.status.viewers = stream.subscribers.len() as u32;
            if let Some(publisher) = stream.publisher {
                self.taker_left(publisher, peer);
            }
        }
        for (key, sequence) in viewer.take_unsettled() {
            self.serve(key, sequence);
        }
    }

    /// A publisher announces a stream, or that its table has grown.
    pub fn handle_stream(
        &mut self,
        peer: PeerId,
        number: u32,
        interfaces: Vec<String>,
        filter: Option<String>,
        opened_ns: u64,
    ) -> Result<(), HubError> {
        let Some(publisher) = self.publishers.get(&peer) else {
            return Err(HubError::NotPublisher { what: "a stream" });
        };
        let key = StreamKey { epoch: publisher.epoch, stream: number };
        let status = StreamStatus {
            key,
            name: publisher.name.clone(),
            interfaces,
            filter,
            opened_ns,
            address: publisher.address.clone(),
            ..StreamStatus::default()
        };
        if !self.streams.contains_key(&key) {
            let own = self.streams.values().filter(|stream| stream.publisher == Some(peer)).count();
            if own >= STREAMS_PER_PUBLISHER_MAX {
                return Err(HubError::TooManyStreams);
            }
        }
        self.open_stream(peer, status, 0);
        self.owe_ack(peer, number); // tells after a cut how far we are
        Ok(())
    }

    /// An upstream worker joined us to one of its streams, or says that its sniffer is away.
    pub fn handle_join(&mut self, peer: PeerId, status: StreamStatus, next_sequence: u64) {
        let (key, is_away) = (status.key, status.state == AWAY);
        self.open_stream(peer, status, next_sequence);
        if is_away
            && let Some(stream) = self.streams.get_mut(&key)
            && stream.state == State::Live
        {
            stream.state = State::Away(u64::MAX); // its owner decides when it is given up
        }
    }

    fn open_stream(&mut self, peer: PeerId, status: StreamStatus, next_sequence: u64) {
        let key = status.key;
        let stream = self.streams.entry(key).or_insert_with(|| Stream {
            status: status.clone(),
            state: State::Live,
            publisher: None,
            description: None,
            end: None,
            is_started: false,
            notices: VecDeque::new(),
            next_sequence: (next_sequence > 0).then_some(next_sequence),
            settled: next_sequence,
            pending: VecDeque::new(),
            subscribers: Vec::new(),
        });
        let former = stream.publisher.replace(peer);
        let has_grown = stream.status.interfaces != status.interfaces;
        let is_revived = stream.state == State::GivenUp;
        if stream.state != State::Ended {
            stream.state = State::Live;
        }
        // Another worker says where a stream begins that it got in the middle. Only descriptions
        // can be under way between us, so nothing is overtaken.
        let begins = !stream.is_started && next_sequence > stream.next_sequence.unwrap_or(0);
        if begins {
            stream.next_sequence = Some(next_sequence);
            (stream.status.packets, stream.status.bytes) = (status.packets, status.bytes);
        }
        stream.status = StreamStatus {
            packets: stream.status.packets,
            bytes: stream.status.bytes,
            viewers: stream.status.viewers,
            ..status
        };
        // Only a first join, or one that says where a stream begins, names a block.
        let begins_at = if begins { next_sequence } else { 0 };
        let status = stream.status.clone();
        for to in stream.subscribers.clone() {
            let is_worker = self.viewers.get(&to).is_some_and(Viewer::is_worker);
            if is_worker && (former != Some(peer) || has_grown) {
                self.tell(to, Control::Join { status: status.clone(), next_sequence: 0 });
            }
            if former != Some(peer) {
                self.taker_joined(peer, to);
            }
        }
        if is_revived {
            self.ended.retain(|ended| *ended != key);
        }
        if is_revived || begins {
            self.join_again(key, begins_at);
        }
        let mut viewers: Vec<PeerId> = self.viewers.keys().copied().collect();
        viewers.sort_unstable();
        for viewer in viewers {
            self.join(viewer, key);
        }
    }

    /// Tells those who have joined a stream that it is live again, or where it begins after all.
    fn join_again(&mut self, key: StreamKey, next_sequence: u64) {
        let Some(stream) = self.streams.get(&key) else { return };
        let status = stream.status.clone();
        for to in stream.subscribers.clone() {
            let Some(viewer) = self.viewers.get_mut(&to) else { continue };
            viewer.revive(key);
            self.tell(to, Control::Join { status: status.clone(), next_sequence });
        }
    }

    /// Queues a control message. What waits for that peer is held back until it is out: a notice
    /// must not come after the block it explains.
    fn tell(&mut self, to: PeerId, control: Control) {
        if let Some(viewer) = self.viewers.get_mut(&to) {
            viewer.controls_due += 1;
        }
        self.outputs.push_back(Output::Control { to, control });
    }

    /// Joins a viewer to a stream if it wants it and has not joined yet.
    fn join(&mut self, peer: PeerId, key: StreamKey) -> bool {
        let (Some(viewer), Some(stream)) = (self.viewers.get_mut(&peer), self.streams.get_mut(&key)) else {
            return false;
        };
        // A worker takes what is ours, not what it or another worker gave us.
        let from_worker = stream
            .publisher
            .and_then(|publisher| self.publishers.get(&publisher))
            .is_some_and(|publisher| publisher.is_worker);
        let is_over = matches!(stream.state, State::Ended | State::GivenUp);
        if is_over || !viewer.wants(&stream.status, from_worker) || !viewer.join(key) {
            return false;
        }
        stream.subscribers.push(peer);
        stream.status.viewers = stream.subscribers.len() as u32;
        let next_sequence = stream.next_sequence.unwrap_or(0);
        let mut controls = vec![Control::Join { status: stream.status.clone(), next_sequence }];
        controls.extend(stream.notices.iter().cloned());
        let has_description = stream.description.is_some();
        if let Some(description) = &stream.description {
            viewer.push_replay(key, description.clone());
        }
        if let Some(publisher) = stream.publisher {
            self.taker_joined(publisher, peer);
        }
        for control in controls {
            self.tell(peer, control);
        }
        if has_description {
            self.outputs.push_back(Output::Data { to: peer });
        }
        true
    }

    fn taker_joined(&mut self, publisher: PeerId, viewer: PeerId) {
        if let Some(one) = self.publishers.get_mut(&publisher) {
            *one.takers.entry(viewer).or_default() += 1;
            self.takers_changed.insert(publisher);
        }
    }

    fn taker_left(&mut self, publisher: PeerId, viewer: PeerId) {
        if let Some(one) = self.publishers.get_mut(&publisher)
            && let Some(count) = one.takers.get_mut(&viewer)
        {
            *count -= 1;
            if *count == 0 {
                one.takers.remove(&viewer);
                self.takers_changed.insert(publisher);
            }
        }
    }

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
    fn push(&mut self, peer: PeerId, block: &PackedBlock) -> bool {
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
    fn end_skip(&mut self, peer: PeerId, key: StreamKey, next_sequence: u64) {
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
    fn finish_skipped(&mut self, peer: PeerId) {
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
    fn tell_gone(&mut self, peer: PeerId) {
        let Some(viewer) = self.viewers.get_mut(&peer) else { return };
        for (key, reason) in viewer.take_gone() {
            self.end_skip(peer, key, u64::MAX);
            self.tell(peer, Control::Gone { key, reason });
        }
    }

    fn tell_gap(&mut self, subscribers: &[PeerId], key: StreamKey, gap: Gap, stage: Stage) {
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

    /// A stream has ended: it stays listed for a while.
    fn handle_ended(&mut self, key: StreamKey) {
        self.ended.push_back(key);
        while self.ended.len() > ENDED_STREAMS_MAX {
            // The oldest that nobody waits for; the queue is short and this is rare.
            let is_done =
                |key: &StreamKey| self.streams.get(key).is_none_or(|stream| stream.pending.is_empty());
            let Some(at) = self.ended.iter().position(is_done) else { return };
            if let Some(key) = self.ended.remove(at)
                && let Some(stream) = self.streams.remove(&key)
            {
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

    /// Gives up streams whose sniffer has been away for `limit_ms`; their viewers are told.
    pub fn handle_timeout(&mut self, now_ms: u64, limit_ms: u64) {
        self.now_ms = now_ms;
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
    pub fn give_up(&mut self, key: StreamKey, reason: &str) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        if matches!(stream.state, State::Ended | State::GivenUp) {
            return;
        }
        stream.state = State::GivenUp;
        for to in stream.subscribers.clone() {
            if let Some(viewer) = self.viewers.get_mut(&to) {
                viewer.give_up(key, reason.to_owned());
            }
            self.tell_gone(to);
        }
        self.handle_ended(key);
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

    /// The viewer's connection has handed `data_sent` data messages to TCP since it began.
    pub fn handle_data_sent(&mut self, peer: PeerId, data_sent: u64) {
        let Some(viewer) = self.viewers.get_mut(&peer) else { return };
        for (key, sequence) in viewer.settle(data_sent) {
            self.serve(key, sequence);
        }
        self.tell_gone(peer);
    }

    /// A downstream worker has settled its blocks of one stream below `settled`.
    pub fn handle_worker_settled(&mut self, peer: PeerId, key: StreamKey, settled: u64) {
        let Some(viewer) = self.viewers.get_mut(&peer) else { return };
        for (key, sequence) in viewer.settle_stream(key, settled) {
            self.serve(key, sequence);
        }
    }

    /// One viewer less waits for a block.
    fn serve(&mut self, key: StreamKey, sequence: u64) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        if let Ok(at) = stream.pending.binary_search_by_key(&sequence, |(sequence, _)| *sequence)
            && let Some((_, waiting)) = stream.pending.get_mut(at)
        {
            *waiting = waiting.saturating_sub(1);
        }
        self.settle(key);
    }

    /// Advances what is settled of a stream, and owes its publisher an acknowledgement.
    fn settle(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        while stream.pending.front().is_some_and(|(_, waiting)| *waiting == 0) {
            stream.pending.pop_front();
        }
        let next = stream.next_sequence.unwrap_or(0);
        let settled = stream.pending.front().map_or(next, |(sequence, _)| *sequence);
        if settled != stream.settled {
            stream.settled = settled;
            if let Some(publisher) = stream.publisher {
                self.owe_ack(publisher, key.stream);
            }
        }
    }

    /// A publisher is owed an acknowledgement of one of its streams.
    fn owe_ack(&mut self, peer: PeerId, stream: u32) {
        if let Some(publisher) = self.publishers.get_mut(&peer)
            && !publisher.is_worker
        {
            publisher.acks_due.insert(stream);
            self.acks_due.insert(peer);
        }
    }

    /// An acknowledgement that is due, and to whom: one message for all streams of a publisher.
    /// Poll once a turn, so that what came in the turn is acknowledged at once.
    pub fn poll_ack(&mut self) -> Option<(PeerId, Control)> {
        loop {
            let peer = self.acks_due.pop_first()?;
            if let Some(ack) = self.ack_of(peer) {
                return Some((peer, ack));
            }
        }
    }

    fn ack_of(&mut self, peer: PeerId) -> Option<Control> {
        let publisher = self.publishers.get_mut(&peer)?;
        let due = std::mem::take(&mut publisher.acks_due);
        let epoch = publisher.epoch;
        let ack = |stream: u32| {
            let found = self.streams.get(&StreamKey { epoch, stream })?;
            Some(StreamAck { stream, received: found.next_sequence.unwrap_or(0), settled: found.settled })
        };
        let streams: Vec<StreamAck> = due.into_iter().filter_map(ack).collect();
        (!streams.is_empty()).then_some(Control::Ack { streams })
    }

    /// How far the streams of an upstream worker are settled here.
    pub fn settled_of(&self, peer: PeerId) -> impl Iterator<Item = (StreamKey, u64)> + '_ {
        let of_peer = move |stream: &&Stream| stream.publisher == Some(peer);
        self.streams.values().filter(of_peer).map(|stream| (stream.status.key, stream.settled))
    }

    /// Tells publishers whose takers have changed.
    fn tell_takers(&mut self) {
        for peer in std::mem::take(&mut self.takers_changed) {
            let Some(publisher) = self.publishers.get_mut(&peer) else { continue };
            let mut takers = (0, false);
            for viewer in publisher.takers.keys().filter_map(|viewer| self.viewers.get(viewer)) {
                let (viewers, marks) = viewer.takers();
                takers = (takers.0 + viewers, takers.1 | marks);
            }
            if publisher.told != takers {
                publisher.told = takers;
                let control = Control::Takers { viewers: takers.0, marks: takers.1 };
                self.outputs.push_back(Output::Control { to: peer, control });
            }
        }
    }

    /// A downstream worker has that many viewers for our streams.
    pub fn handle_worker_takers(&mut self, peer: PeerId, viewers: u32, marks: bool) {
        if let Some(viewer) = self.viewers.get_mut(&peer) {
            viewer.set_worker_takers(viewers, marks);
            let takes = |publisher: &Publisher| publisher.takers.contains_key(&peer);
            let changed = self.publishers.iter().filter(|(_, one)| takes(one)).map(|(peer, _)| *peer);
            self.takers_changed.extend(changed);
        }
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

    /// Every stream, by sniffer name and number.
    pub fn list(&self) -> Vec<StreamStatus> {
        let mut list: Vec<StreamStatus> = self
            .streams
            .values()
            .map(|stream| {
                let state = match stream.state {
                    State::Live => "live",
                    State::Away(_) => AWAY,
                    State::Ended | State::GivenUp => "ended",
                };
                StreamStatus { state: state.to_owned(), ..stream.status.clone() }
            })
            .collect();
        list.sort_by(|a, b| (&a.name, a.opened_ns, a.key).cmp(&(&b.name, b.opened_ns, b.key)));
        list
    }

    /// Counters.
    pub fn totals(&self) -> HubTotals {
        self.totals
    }

    /// Bytes of blocks that wait here for a viewer or another worker.
    pub fn queued_bytes(&self, peer: PeerId) -> Option<usize> {
        self.viewers.get(&peer).map(Viewer::queued_bytes)
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

    fn control(self, key: StreamKey, stage: Stage) -> Control {
        let Gap { first_sequence, next_sequence, packets, bytes } = self;
        Control::Skipped { key, first_sequence, next_sequence, packets, bytes, stage }
    }
}

#[cfg(test)]
mod tests;
