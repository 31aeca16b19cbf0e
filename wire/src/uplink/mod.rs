//! The sniffer's side of the protocol: which block goes when, what is kept until the relay has
//! settled it, what goes to the spool and comes back from it, what a cut costs. No I/O, no clock.
//!
//! ```text
//!  capture --handle_block--> memory --poll_data--> relay          live lane
//!                              |  ^                               backlog lane
//!                   poll_spool v  | handle_loaded
//!                             spool
//! ```
//!
//! Invariants:
//! * a block handed in is retained, in memory or in the spool, until it is settled, or dropped and
//!   counted in [`Uplink::lost`]; the relay is told of what does not come before what comes after;
//! * within a stream blocks are sent in sequence, and after a cut from the first that the relay
//!   does not have;
//! * a stream of which a block went to the spool goes on through the spool to its end, so that it
//!   comes back in order. While the line stands such a stream is to be succeeded by another, which
//!   is live: [`Uplink::poll_succession`];
//! * what is retained in memory does not exceed the memory given: beyond it go first the blocks
//!   that the relay has received, then the oldest.

mod figures;
mod retaining;
mod sending;
mod spool;
mod stream;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use thiserror::Error;

use crate::block::{Epoch, Kind, PackedBlock, StreamKey};
use crate::lanes::{Lane, Lanes};
use crate::ledger::{Losses, Stage};
use crate::masked::{Payload, SealedBlock};
use crate::message::{Announcement, Control, Cursor, Envelope, PROTOCOL, Role, StreamAck};
use crate::pool::Pool;
use crate::secret::Secret;

pub use figures::{Amount, ClockOffset, Held};
use spool::Spool;
pub use spool::{Evicted, Loaded, SpoolRequest};
use stream::{Place, Retained, Stream, is_droppable};

/// With a spool an outage longer than this is written to it as it goes on.
const SPOOL_DELAY_MS: u64 = 1_000;
/// A line on which nothing has arrived for this long although something is under way may be dead, and
/// counts as an outage until the relay acknowledges something again.
const STUCK_MS: u64 = 2_000;
/// After a connection the backlog waits so long for the viewers that were there before the cut.
const BACKLOG_GRACE_MS: u64 = 15_000;
/// What is under way is no reason to wait with the next block as long as it is less than this.
const SMALL_BYTES: usize = 64 << 10;
/// A stream that has more than this to send when the line is back is succeeded.
const SUCCESSION_BYTES: usize = 1 << 20;
/// Streams of which only the end is to be told, at a time: they may be more than a connection or a relay
/// takes at once.
const CUTS_MAX: usize = 256;
/// A stream is not succeeded before it is so old: else a line that is too slow made ever more of them.
const SUCCESSION_MS: u64 = 1_000;

/// How the relay broke the protocol.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum UplinkError {
    #[error("the relay speaks protocol {found}, this sniffer {PROTOCOL}: upgrade the older of the two")]
    Protocol { found: u32 },
    #[error("the relay refused: {reason}")]
    Refused { reason: String },
    #[error("the relay acknowledges block {found} of stream {key}, but {sent} were sent")]
    Ack { key: StreamKey, found: u64, sent: u64 },
    #[error("the relay sent {what} out of turn")]
    OutOfTurn { what: &'static str },
}

/// What an uplink is made with.
#[derive(Clone, Debug)]
pub struct UplinkConfig {
    /// Name of the sniffer.
    pub name: String,
    /// Program and version.
    pub agent: String,
    /// This run.
    pub epoch: Epoch,
    /// The same for all runs of one spool; the epoch where there is none.
    pub home: Epoch,
    /// Most bytes of blocks retained in memory.
    pub memory_bytes: usize,
    /// There is a spool: [`Uplink::poll_spool`] is served.
    pub has_spool: bool,
    /// The source can wait: its blocks wait rather than have one skipped, its streams are never
    /// succeeded, and the relay is asked how much may be under way.
    pub is_paced: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Since that time, in ms.
    Offline(u64),
    AwaitWelcome,
    Streaming,
}

/// What is to be sent next.
#[derive(Debug)]
pub enum Transmit {
    /// A control message; it goes before the data polled after it.
    Control(Control),
    /// A block, by reference.
    Data(Envelope, Payload),
}

/// Counters of the uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UplinkTotals {
    /// Blocks, packets and block bytes given to the connection, resends included.
    pub sent_blocks: u64,
    /// Packets in them.
    pub sent_packets: u64,
    /// Bytes of them.
    pub sent_bytes: u64,
    /// Blocks sent again after a cut.
    pub resent_blocks: u64,
    /// Packets in them.
    pub resent_packets: u64,
    /// Bytes of them.
    pub resent_bytes: u64,
    /// Packets that the relay says it has.
    pub received_packets: u64,
    /// Packets that the relay has settled while they were retained here.
    pub settled_packets: u64,
    /// Bytes retained in memory now.
    pub retained_bytes: usize,
    /// Bytes given to the connection and not settled yet.
    pub unsettled_sent_bytes: usize,
    /// Blocks, packets and bytes written to the spool.
    pub spooled_blocks: u64,
    /// Packets in them.
    pub spooled_packets: u64,
    /// Bytes of them.
    pub spooled_bytes: u64,
    /// Blocks that came back from the spool.
    pub loaded_blocks: u64,
    /// Streams that were succeeded for want of a line.
    pub successions: u64,
}

/// Blocks of one lane that wait to be sent, in order of arrival.
#[derive(Debug, Default)]
struct Queue {
    entries: VecDeque<Waiting>,
    bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    arrival: u64,
    key: StreamKey,
    sequence: u64,
    bytes: usize,
}

impl Queue {
    fn push(&mut self, waiting: Waiting) {
        self.bytes += waiting.bytes;
        self.entries.push_back(waiting);
    }

    fn pop(&mut self) {
        if let Some(first) = self.entries.pop_front() {
            self.bytes -= first.bytes;
        }
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }

    /// Puts everything in order of arrival after entries were added out of order.
    fn sort(&mut self) {
        self.entries.make_contiguous().sort_unstable();
    }
}

/// The sniffer's side of the protocol.
#[derive(Debug)]
pub struct Uplink {
    config: UplinkConfig,
    token: Option<Secret>,
    state: State,
    /// Which run of a relay welcomed us last.
    relay: Epoch,
    now_ms: u64,
    streams: BTreeMap<StreamKey, Stream>,
    live: Queue,
    backlog: Queue,
    lanes: Lanes,
    arrivals: u64,
    control: VecDeque<Control>,
    totals: UplinkTotals,
    spool: Spool,
    /// To be told before the next block.
    notices: VecDeque<Control>,
    /// What was lost of streams that are done and forgotten.
    lost_of_done: Losses,
    /// When the relay last acknowledged something new, or nothing waited for that.
    progress_ms: u64,
    is_stuck: bool,
    takers: (u32, bool),
    /// Viewers before the line was cut.
    former_viewers: u32,
    /// The backlog waits for viewers until then.
    backlog_held_until: u64,
    backlog_in_flight_bytes: usize,
    is_pace_told: bool,
    window_bytes: Option<u64>,
    /// When hello was said on the present connection, on the wall clock.
    hello_ns: u64,
    clock_offset: Option<ClockOffset>,
    /// Own streams that are to be succeeded.
    successions: BTreeSet<u32>,
    /// Streams of which something is retained here, or that go on. There may be very many of which the
    /// spool has all.
    busy: BTreeSet<StreamKey>,
    /// Streams of which the relay may not have received all that was sent.
    unreceived: BTreeSet<StreamKey>,
    /// Streams whose end was thrown away, and is to be told.
    cuts: BTreeSet<StreamKey>,
    /// Those of them that are told at present.
    cuts_under_way: BTreeSet<StreamKey>,
    /// Masked blocks of its buffers are lent to the connection that sends them first.
    lender: Option<Pool>,
}

impl Uplink {
    /// The uplink of one run, offline since `now_ms`: any clock in ms that does not go back, the
    /// same at every call.
    pub fn new(config: UplinkConfig, now_ms: u64) -> Self {
        Self {
            spool: Spool::new(config.has_spool, config.memory_bytes),
            config,
            token: None,
            state: State::Offline(now_ms),
            relay: Epoch::default(),
            now_ms,
            streams: BTreeMap::new(),
            live: Queue::default(),
            backlog: Queue::default(),
            lanes: Lanes::default(),
            arrivals: 0,
            control: VecDeque::new(),
            totals: UplinkTotals::default(),
            notices: VecDeque::new(),
            lost_of_done: Losses::default(),
            progress_ms: now_ms,
            is_stuck: false,
            takers: (0, false),
            former_viewers: 0,
            backlog_held_until: 0,
            backlog_in_flight_bytes: 0,
            is_pace_told: false,
            window_bytes: None,
            hello_ns: 0,
            clock_offset: None,
            successions: BTreeSet::new(),
            busy: BTreeSet::new(),
            unreceived: BTreeSet::new(),
            cuts: BTreeSet::new(),
            cuts_under_way: BTreeSet::new(),
            lender: None,
        }
    }

    /// Blocks that are masked may be sent from where they lie, in buffers of `pool`: see [`Payload::is_lent`].
    pub fn lend_from(&mut self, pool: Pool) {
        self.lender = Some(pool);
    }

    /// A stream is opened, or its table has grown. Its predecessor, if it has one, is backlog from
    /// now on.
    pub fn handle_announcement(&mut self, announcement: Announcement) {
        let (key, predecessor) = (announcement.key, announcement.predecessor);
        let entry = self.streams.entry(key);
        let stream =
            entry.or_insert_with(|| Stream::new(announcement.clone(), Lane::Live, false, self.now_ms));
        stream.announcement = Announcement { backlog: stream.lane == Lane::Backlog, ..announcement };
        stream.announced = false;
        self.busy.insert(key);
        if let Some(predecessor) = predecessor {
            self.make_backlog(predecessor);
        }
        if self.state == State::Streaming {
            self.announce(key);
        }
    }

    /// What is left of a stream goes beside the live ones from now on.
    fn make_backlog(&mut self, key: StreamKey) {
        let is_streaming = self.state == State::Streaming;
        let Some(stream) = self.streams.get_mut(&key) else { return };
        if stream.lane == Lane::Backlog || self.config.is_paced {
            return;
        }
        stream.lane = Lane::Backlog;
        stream.announcement.backlog = true;
        stream.announced = false;
        let (kept, moved): (Vec<_>, Vec<_>) =
            self.live.entries.drain(..).partition(|waiting| waiting.key != key);
        self.live.clear();
        kept.into_iter().for_each(|waiting| self.live.push(waiting));
        if !moved.is_empty() {
            moved.into_iter().for_each(|waiting| self.backlog.push(waiting));
            self.backlog.sort();
        }
        if is_streaming {
            self.announce(key);
        }
    }

    /// From the next connection on, this is what it proves itself with.
    pub fn set_token(&mut self, token: Option<Secret>) {
        self.token = token;
    }

    /// The connection is open: says hello.
    pub fn handle_connected(&mut self, clock_ns: u64, now_ms: u64) {
        self.now_ms = now_ms;
        self.state = State::AwaitWelcome;
        self.hello_ns = clock_ns;
        self.control.clear();
        self.live.clear();
        self.backlog.clear();
        for (key, stream) in &self.streams {
            let queue = if stream.lane == Lane::Live { &mut self.live } else { &mut self.backlog };
            let is_here = |one: &&Retained| matches!(one.place, Place::Memory | Place::Loaded(_));
            for one in stream.retained.iter().filter(is_here) {
                let (arrival, sequence, bytes) = (one.arrival, one.sequence(), one.bytes());
                queue.push(Waiting { arrival, key: *key, sequence, bytes });
            }
        }
        self.live.sort();
        self.backlog.sort();
        self.control.push_back(Control::Hello {
            protocol: PROTOCOL,
            role: Role::Publish,
            name: self.config.name.clone(),
            epoch: self.config.epoch,
            home: self.config.home,
            former: self.relay,
            agent: self.config.agent.clone(),
            clock_ns,
            token: self.token.clone(),
        });
    }

    /// The connection is lost: what is not settled is sent again.
    pub fn handle_disconnected(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        self.state = State::Offline(now_ms);
        self.is_stuck = false;
        self.control.clear();
        self.notices.clear();
        self.live.clear();
        self.backlog.clear();
        self.former_viewers = self.former_viewers.max(self.takers.0);
        self.takers = (0, false);
        self.window_bytes = None;
        self.is_pace_told = false;
        self.backlog_in_flight_bytes = 0;
        self.successions.clear();
        self.unreceived.clear();
        for stream in self.streams.values_mut() {
            (stream.announced, stream.is_description_given) = (false, false);
            stream.awaits_ack = stream.sent > 0 || stream.is_former;
            (stream.is_succeeded, stream.is_cut_told) = (false, false);
            for one in &mut stream.retained {
                one.in_flight = None;
                one.is_lent = false; // who has its pages now will not say when it has read them
            }
        }
        self.totals.unsettled_sent_bytes = 0;
    }

    /// A control message of the relay.
    pub fn handle_control(&mut self, control: Control, clock_ns: u64) -> Result<(), UplinkError> {
        match control {
            Control::Welcome { protocol, instance, clock_ns: relay_ns, .. } => {
                if self.state != State::AwaitWelcome {
                    return Err(UplinkError::OutOfTurn { what: "a second welcome" });
                }
                if protocol != PROTOCOL {
                    return Err(UplinkError::Protocol { found: protocol });
                }
                self.state = State::Streaming;
                self.relay = instance;
                self.clock_offset = Some(ClockOffset::of(self.hello_ns, relay_ns, clock_ns));
                self.progress_ms = self.now_ms;
                self.backlog_held_until = self.now_ms + BACKLOG_GRACE_MS;
                for key in self.streams.keys().copied().collect::<Vec<_>>() {
                    self.announce(key);
                    let has_much = |one: &Stream| one.is_spooled || one.unsent_bytes() > SUCCESSION_BYTES;
                    if self.streams.get(&key).is_some_and(has_much) {
                        self.ask_succession(key);
                    }
                }
            }
            Control::Ack { streams } => {
                for ack in streams {
                    self.handle_ack(ack)?;
                }
            }
            Control::Takers { viewers, marks } => self.takers = (viewers, marks),
            Control::Window { bytes } => self.window_bytes = Some(bytes),
            Control::Ping { clock_ns: ping_ns } => {
                self.control.push_back(Control::Pong { ping_ns, clock_ns })
            }
            Control::Pong { ping_ns, clock_ns: relay_ns } => {
                self.clock_offset = Some(ClockOffset::of(ping_ns, relay_ns, clock_ns));
            }
            Control::Error { reason } => return Err(UplinkError::Refused { reason }),
            _ => {}
        }
        Ok(())
    }

    fn handle_ack(&mut self, ack: StreamAck) -> Result<(), UplinkError> {
        let StreamAck { received, settled } = ack;
        let key = received.key;
        let Some(stream) = self.streams.get_mut(&key) else { return Ok(()) };
        let found = received.next_sequence.max(settled);
        if stream.is_former && stream.awaits_ack {
            // What an earlier run sent is known to the relay alone.
            stream.sent = stream.sent.max(found);
        }
        if found > stream.sent {
            return Err(UplinkError::Ack { key, found, sent: stream.sent });
        }
        let more = received.packets.saturating_sub(stream.received.packets);
        let is_progress = received.next_sequence > stream.received.next_sequence;
        self.totals.received_packets += more;
        stream.handle_received(received, settled);
        stream.settled = settled;
        stream.awaits_ack = false;
        if stream.told.next_sequence <= stream.received.next_sequence {
            self.unreceived.remove(&key);
        }
        while let Some(first) = stream.retained.pop_front_if(|first| first.sequence() < settled) {
            self.totals.settled_packets += u64::from(first.block.header().packet_count);
            forget(&mut self.totals, &mut self.backlog_in_flight_bytes, &first);
            first.take_back(self.lender.as_ref());
            stream.settle_through(first.block.end());
            if let Place::Loaded(ticket) = first.place {
                self.spool.handle_done(ticket, first.bytes());
            }
            stream.keep_description(first.block);
        }
        self.forget_if_done(key);
        if is_progress {
            self.progress_ms = self.now_ms;
            self.end_stuck();
        }
        Ok(())
    }

    /// A stream of which nothing is left to do is forgotten, but for what was lost of it.
    fn forget_if_done(&mut self, key: StreamKey) {
        let is_done = |one: &Stream| one.is_done() && one.retained.is_empty();
        if self.streams.get(&key).is_some_and(is_done)
            && let Some(stream) = self.streams.remove(&key)
        {
            self.busy.remove(&key);
            self.unreceived.remove(&key);
            self.cuts.remove(&key);
            self.cuts_under_way.remove(&key);
            stream.lost.0.iter().for_each(|(stage, loss)| {
                self.lost_of_done.add(*stage, loss.packets, loss.bytes);
            });
            if key.epoch != self.config.epoch {
                self.spool.done_before.insert(key);
            }
            self.spool.done.push_back((key, stream.lost));
        }
    }

    /// Whether a stream was done and forgotten; the spool may still have some of it.
    fn is_forgotten(&self, key: StreamKey) -> bool {
        let was_here = key.epoch == self.config.epoch || self.spool.done_before.contains(&key);
        was_here && !self.streams.contains_key(&key)
    }

    /// A stream of which everything has arrived, or was told to be lost, and what was lost of it:
    /// nothing more is said of it.
    pub fn poll_done(&mut self) -> Option<(StreamKey, Losses)> {
        self.spool.done.pop_front()
    }

    /// Announces a stream of which there is something to say. What only the spool has is announced
    /// when it comes back, and what it threw away by and by: after a long outage there may be more
    /// streams than a relay takes at a time.
    fn announce(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        let is_due = stream.lane == Lane::Live || self.cuts_under_way.contains(&key) || stream.has_sendable();
        if self.state == State::Streaming && is_due && !stream.announced && !stream.is_done() {
            stream.announced = true;
            self.control.push_back(Control::Stream(stream.announcement.clone()));
        }
    }

    /// The next control message to send.
    pub fn poll_control(&mut self) -> Option<Control> {
        let wants_pace = self.config.is_paced || !self.backlog.entries.is_empty();
        if self.state == State::Streaming && wants_pace != self.is_pace_told {
            self.is_pace_told = wants_pace;
            self.control.push_back(Control::Paced { wants: wants_pace });
        }
        self.tell_cut();
        self.control.pop_front()
    }

    /// Time passes: an outage goes to the spool, a spool that failed is tried again.
    pub fn handle_timeout(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        if let State::Offline(since) = self.state
            && now_ms >= since + SPOOL_DELAY_MS
            && self.spool.is_usable()
        {
            self.spool_all();
        }
        if self.state == State::Streaming {
            if now_ms >= self.backlog_held_until {
                self.former_viewers = self.takers.0;
            }
            if self.totals.unsettled_sent_bytes == 0 {
                self.progress_ms = now_ms;
            }
            self.is_stuck |= now_ms >= self.progress_ms + STUCK_MS && self.has_unreceived();
            if self.is_stuck && self.spool.is_usable() {
                self.spool_all();
            }
        }
        self.spool.handle_timeout(now_ms);
        self.fall_back();
    }

    /// Whether something was sent that the relay has not acknowledged.
    fn has_unreceived(&self) -> bool {
        let is_unreceived =
            |one: &Stream| !one.awaits_ack && one.told.next_sequence > one.received.next_sequence;
        self.unreceived.iter().filter_map(|key| self.streams.get(key)).any(is_unreceived)
    }

    /// The line moves again: what was spooled of live streams meanwhile is backlog from now on.
    fn end_stuck(&mut self) {
        if !std::mem::take(&mut self.is_stuck) {
            return;
        }
        let is_spooled = |(_, stream): &(&StreamKey, &Stream)| stream.is_spooled;
        let spooled: Vec<StreamKey> = self.streams.iter().filter(is_spooled).map(|(key, _)| *key).collect();
        spooled.into_iter().for_each(|key| self.ask_succession(key));
    }

    /// When to call [`Uplink::handle_timeout`] at the latest, on the clock of `now_ms`.
    pub fn poll_timeout(&self) -> Option<u64> {
        let offline = match self.state {
            State::Offline(since) if self.spool.is_usable() => Some(since + SPOOL_DELAY_MS),
            _ => None,
        };
        let held = (self.state == State::Streaming && !self.backlog.entries.is_empty())
            .then_some(self.backlog_held_until);
        let epoch = self.config.epoch;
        let of = |stream: &u32| self.streams.get(&StreamKey { epoch, stream: *stream });
        let succession =
            self.successions.iter().filter_map(of).map(|one| one.opened_ms + SUCCESSION_MS).min();
        let stuck = (self.state == State::Streaming && !self.is_stuck && self.has_unreceived())
            .then_some(self.progress_ms + STUCK_MS);
        let due = [offline, held, stuck, succession, self.spool.poll_timeout()];
        due.into_iter().flatten().filter(|at| *at > self.now_ms).min()
    }
}

fn is_sent(one: &Retained) -> bool {
    one.in_flight.is_some()
}

/// A retained block is let go: its bytes count no more.
fn forget(totals: &mut UplinkTotals, backlog_in_flight_bytes: &mut usize, one: &Retained) {
    let bytes = one.bytes();
    totals.retained_bytes -= bytes;
    if let Some(lane) = one.in_flight {
        totals.unsettled_sent_bytes = totals.unsettled_sent_bytes.saturating_sub(bytes);
        if lane == Lane::Backlog {
            *backlog_in_flight_bytes = backlog_in_flight_bytes.saturating_sub(bytes);
        }
    }
}

#[cfg(test)]
mod tests;
