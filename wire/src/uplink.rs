//! The sniffer's side of the protocol: which block goes when, what is kept until the relay has
//! settled it, what a cut costs. No I/O, no clock.
//!
//! Invariants:
//! * a block handed in is retained until it is settled, or dropped and counted in
//!   [`Uplink::lost`];
//! * within a stream blocks are sent in sequence, and after a cut from the first that the relay
//!   does not have;
//! * what is retained never exceeds the memory given: beyond it go first the blocks that the
//!   relay has received, then the oldest.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use thiserror::Error;

use crate::block::{Epoch, Kind, PackedBlock};
use crate::ledger::{Losses, Stage};
use crate::message::{Announcement, Control, Envelope, PROTOCOL, Role, StreamAck};

/// How the relay broke the protocol.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum UplinkError {
    #[error("the relay speaks protocol {found}, this sniffer {PROTOCOL}: upgrade the older of the two")]
    Protocol { found: u32 },
    #[error("the relay refused: {reason}")]
    Refused { reason: String },
    #[error("the relay acknowledges block {found} of stream {stream}, but {sent} were sent")]
    Ack { stream: u32, found: u64, sent: u64 },
    #[error("the relay sent {what} out of turn")]
    OutOfTurn { what: &'static str },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Offline,
    AwaitWelcome,
    Streaming,
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
    /// Packets that the relay has settled.
    pub settled_packets: u64,
    /// Bytes retained now.
    pub retained_bytes: usize,
    /// Bytes given to the connection and not settled yet.
    pub unsettled_sent_bytes: usize,
}

#[derive(Debug)]
struct Stream {
    announcement: Announcement,
    announced: bool,
    /// After a cut: nothing is sent until the relay has said how far it is.
    awaits_ack: bool,
    /// In sequence; may have gaps where blocks were dropped.
    retained: VecDeque<Retained>,
    /// One past the highest sequence ever sent.
    sent: u64,
    received: u64,
    lost: Losses,
    /// Dropped while nobody knew whether the relay had received them before the cut: sequence,
    /// packets and bytes. The next acknowledgement tells.
    doubtful: Vec<(u64, u64, u64)>,
    /// The last description that is not retained any more: a relay that starts anew needs it.
    description: Option<PackedBlock>,
    /// The last block has been settled.
    done: bool,
}

#[derive(Debug)]
struct Retained {
    block: PackedBlock,
    /// Order of arrival over all streams.
    arrival: u64,
    was_sent: bool,
    in_flight: bool,
}

/// The sniffer's side of the protocol.
#[derive(Debug)]
pub struct Uplink {
    name: String,
    agent: String,
    epoch: Epoch,
    memory_bytes: usize,
    state: State,
    streams: BTreeMap<u32, Stream>,
    /// Blocks to send, in order of arrival.
    unsent: VecDeque<(u64, u32, u64)>,
    arrivals: u64,
    control: VecDeque<Control>,
    totals: UplinkTotals,
    takers: (u32, bool),
    /// We wait rather than have a block skipped, and ask how much may be under way.
    is_paced: bool,
    window_bytes: Option<u64>,
    instance: Option<Epoch>,
}

impl Uplink {
    /// The uplink of one run; `memory_bytes` bounds what is retained.
    pub fn new(name: String, agent: String, epoch: Epoch, memory_bytes: usize) -> Self {
        Self {
            name,
            agent,
            epoch,
            memory_bytes,
            state: State::Offline,
            streams: BTreeMap::new(),
            unsent: VecDeque::new(),
            arrivals: 0,
            control: VecDeque::new(),
            totals: UplinkTotals::default(),
            takers: (0, false),
            is_paced: false,
            window_bytes: None,
            instance: None,
        }
    }

    /// Asks every relay how much may be under way, for a source that can wait.
    pub fn set_paced(&mut self) {
        self.is_paced = true;
    }

    /// A stream is opened, or its table has grown.
    pub fn handle_announcement(&mut self, announcement: Announcement) {
        let stream = announcement.key.stream;
        let entry = self.streams.entry(stream).or_insert_with(|| Stream {
            announcement: Announcement::default(),
            announced: false,
            awaits_ack: false,
            retained: VecDeque::new(),
            sent: 0,
            received: 0,
            lost: Losses::default(),
            doubtful: Vec::new(),
            description: None,
            done: false,
        });
        entry.announcement = announcement;
        entry.announced = false;
        if self.state == State::Streaming {
            self.announce(stream);
        }
    }

    /// A block was packed: it is retained and will be sent. Its stream must have been announced.
    pub fn handle_block(&mut self, block: PackedBlock) {
        let header = block.header();
        let (number, sequence, bytes) = (header.key.stream, header.sequence, block.bytes().len());
        let Some(stream) = self.streams.get_mut(&number) else { return };
        let arrival = self.arrivals;
        self.arrivals += 1;
        stream.retained.push_back(Retained { block, arrival, was_sent: false, in_flight: false });
        self.totals.retained_bytes += bytes;
        if self.state != State::Offline {
            self.unsent.push_back((arrival, number, sequence)); // else when there is a line again
        }
        if self.totals.retained_bytes > self.memory_bytes {
            self.relieve(self.memory_bytes);
        }
    }

    /// Gives up retained blocks until at most `target_bytes` remain: first those the relay has
    /// received, then the oldest, which are lost and counted.
    pub fn relieve(&mut self, target_bytes: usize) {
        for stream in self.streams.values_mut() {
            while self.totals.retained_bytes > target_bytes
                && stream
                    .retained
                    .front()
                    .map(|first| first.block.header())
                    .is_some_and(|header| header.sequence < stream.received && !header.end)
            {
                let Some(first) = stream.retained.pop_front() else { break };
                forget(&mut self.totals, &first);
                stream.keep_description(first.block);
            }
        }
        while self.totals.retained_bytes > target_bytes {
            let oldest = self.streams.iter().filter_map(|(number, stream)| {
                let at = stream.retained.iter().position(is_droppable)?;
                Some((stream.retained[at].arrival, *number, at))
            });
            let Some((_, number, at)) = oldest.min() else { return };
            let Some(stream) = self.streams.get_mut(&number) else { return };
            let Some(dropped) = stream.retained.remove(at) else { return };
            let header = dropped.block.header();
            let (packets, bytes) = (header.packet_count.into(), header.byte_count.into());
            if dropped.was_sent && stream.awaits_ack {
                stream.doubtful.push((header.sequence, packets, bytes));
            } else {
                stream.lost.add(Stage::NoBuffer, packets, bytes);
            }
            forget(&mut self.totals, &dropped);
        }
    }

    /// The connection is open: says hello.
    pub fn handle_connected(&mut self, clock_ns: u64) {
        self.state = State::AwaitWelcome;
        self.control.clear();
        self.unsent.clear();
        for (number, stream) in &self.streams {
            let all = stream.retained.iter();
            self.unsent.extend(all.map(|one| (one.arrival, *number, one.block.header().sequence)));
        }
        self.unsent.make_contiguous().sort_unstable();
        self.control.push_back(Control::Hello {
            protocol: PROTOCOL,
            role: Role::Publish,
            name: self.name.clone(),
            epoch: self.epoch,
            home: self.epoch,
            agent: self.agent.clone(),
            clock_ns,
        });
    }

    /// The connection is lost: what is not settled is sent again.
    pub fn handle_disconnected(&mut self) {
        self.state = State::Offline;
        self.control.clear();
        self.unsent.clear();
        self.takers = (0, false);
        self.window_bytes = None;
        for stream in self.streams.values_mut() {
            stream.announced = false;
            stream.awaits_ack = stream.sent > 0;
            for one in &mut stream.retained {
                one.in_flight = false;
            }
        }
        self.totals.unsettled_sent_bytes = 0;
    }

    /// A control message of the relay.
    pub fn handle_control(&mut self, control: Control, clock_ns: u64) -> Result<(), UplinkError> {
        match control {
            Control::Welcome { protocol, instance, .. } => {
                if self.state != State::AwaitWelcome {
                    return Err(UplinkError::OutOfTurn { what: "a second welcome" });
                }
                if protocol != PROTOCOL {
                    return Err(UplinkError::Protocol { found: protocol });
                }
                self.state = State::Streaming;
                self.instance = Some(instance);
                if self.is_paced {
                    self.control.push_back(Control::Paced);
                }
                for number in self.streams.keys().copied().collect::<Vec<_>>() {
                    self.announce(number);
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
            Control::Error { reason } => return Err(UplinkError::Refused { reason }),
            _ => {}
        }
        Ok(())
    }

    fn handle_ack(&mut self, ack: StreamAck) -> Result<(), UplinkError> {
        let StreamAck { received, settled } = ack;
        let (number, received) = (received.key.stream, received.next_sequence);
        let Some(stream) = self.streams.get_mut(&number) else { return Ok(()) };
        let found = received.max(settled);
        if found > stream.sent {
            return Err(UplinkError::Ack { stream: number, found, sent: stream.sent });
        }
        stream.received = received;
        for (sequence, packets, bytes) in stream.doubtful.drain(..) {
            if sequence >= received {
                stream.lost.add(Stage::NoBuffer, packets, bytes);
            }
        }
        if std::mem::take(&mut stream.awaits_ack)
            && let Some(description) = &stream.description
            && description.header().sequence >= received
            && let sequence = description.header().sequence
            && let Err(at) =
                stream.retained.binary_search_by_key(&sequence, |one| one.block.header().sequence)
        {
            // A relay that started anew: it was settled with the former.
            let block = description.clone();
            self.totals.retained_bytes += block.bytes().len();
            stream.retained.insert(at, Retained { block, arrival: 0, was_sent: true, in_flight: false });
            self.unsent.push_front((0, number, sequence));
        }
        while stream.retained.front().is_some_and(|first| first.block.header().sequence < settled) {
            let Some(first) = stream.retained.pop_front() else { break };
            self.totals.settled_packets += u64::from(first.block.header().packet_count);
            stream.done |= first.block.header().end;
            forget(&mut self.totals, &first);
            stream.keep_description(first.block);
        }
        Ok(())
    }

    fn announce(&mut self, number: u32) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        if !stream.announced && !stream.done {
            stream.announced = true;
            self.control.push_back(Control::Stream(stream.announcement.clone()));
        }
    }

    /// The next control message to send.
    pub fn poll_control(&mut self) -> Option<Control> {
        self.control.pop_front()
    }

    /// The next block to send, by reference.
    pub fn poll_data(&mut self) -> Option<(Envelope, Bytes)> {
        if self.state != State::Streaming {
            return None;
        }
        while let Some((_, number, sequence)) = self.unsent.front().copied() {
            let Some(stream) = self.streams.get_mut(&number) else {
                self.unsent.pop_front();
                continue;
            };
            if stream.awaits_ack {
                return None; // one round trip, at a reconnect only
            }
            self.unsent.pop_front();
            let received = stream.received;
            let found = stream.retained.binary_search_by_key(&sequence, |one| one.block.header().sequence);
            let Some(one) = found.ok().and_then(|at| stream.retained.get_mut(at)) else { continue };
            if sequence < received || one.in_flight {
                continue; // the relay has it; it is retained until it is settled
            }
            let envelope = Envelope { resend: one.was_sent, backlog: false };
            let bytes = one.block.bytes().clone();
            self.totals.sent_blocks += 1;
            self.totals.resent_blocks += u64::from(one.was_sent);
            self.totals.sent_packets += u64::from(one.block.header().packet_count);
            self.totals.sent_bytes += bytes.len() as u64;
            self.totals.unsettled_sent_bytes += bytes.len();
            one.was_sent = true;
            one.in_flight = true;
            stream.sent = stream.sent.max(sequence + 1);
            return Some((envelope, bytes));
        }
        None
    }

    /// Queues a time mark of an idle stream, if somebody wants it and the relay has all of the
    /// stream: the mark would overtake blocks that wait in the connection.
    pub fn handle_mark(&mut self, stream: u32, complete_through_ns: u64) {
        let is_received = self.streams.get(&stream).is_some_and(|stream| stream.received == stream.sent);
        let idle = self.unsent.is_empty() && is_received && self.state == State::Streaming;
        if self.takers.1 && idle {
            self.control.push_back(Control::Mark { epoch: self.epoch, stream, complete_through_ns });
        }
    }

    /// Viewers that take these streams now, as the relay says.
    pub fn viewers(&self) -> u32 {
        self.takers.0
    }

    /// What the relay lets a paced source have under way; `None` before it says so.
    pub fn window_bytes(&self) -> Option<u64> {
        self.window_bytes
    }

    /// Whether a viewer wants time marks of idle streams.
    pub fn marks_wanted(&self) -> bool {
        self.takers.1
    }

    /// Packets in blocks that are retained.
    pub fn retained_packets(&self) -> u64 {
        let of = |stream: &Stream| -> u64 {
            stream.retained.iter().map(|one| u64::from(one.block.header().packet_count)).sum()
        };
        self.streams.values().map(of).sum()
    }

    /// Whether the relay has welcomed us and the line stands.
    pub fn is_streaming(&self) -> bool {
        self.state == State::Streaming
    }

    /// Whether nothing is retained: all is settled.
    pub fn is_settled(&self) -> bool {
        self.totals.retained_bytes == 0
    }

    /// Counters.
    pub fn totals(&self) -> UplinkTotals {
        self.totals
    }

    /// What was lost here, of one stream. A block that was sent before a cut and dropped after it
    /// counts once the relay has said that it does not have it.
    pub fn lost(&self, stream: u32) -> Losses {
        self.streams.get(&stream).map(|stream| stream.lost.clone()).unwrap_or_default()
    }
}

impl Stream {
    fn keep_description(&mut self, block: PackedBlock) {
        if block.header().kind == Kind::Description {
            self.description = Some(block);
        }
    }
}

/// Whether a block may go when memory is short. Descriptions and the end are small and few, and
/// without them the rest cannot be read; reports go like packets, for the next says it all.
fn is_droppable(one: &Retained) -> bool {
    let header = one.block.header();
    !one.in_flight && !header.end && header.kind != Kind::Description
}

/// A retained block is let go: its bytes count no more.
fn forget(totals: &mut UplinkTotals, one: &Retained) {
    let bytes = one.block.bytes().len();
    totals.retained_bytes -= bytes;
    if one.in_flight {
        totals.unsettled_sent_bytes = totals.unsettled_sent_bytes.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::StreamKey;
    use crate::message::Cursor;
    use crate::pack::{Compression, Packer};
    use crate::pool::Pool;

    fn packer() -> Packer {
        let key = StreamKey { epoch: Epoch(5), stream: 0 };
        Packer::new(key, Pool::new(1 << 30), 64 << 10, Compression::None)
    }

    fn block(packer: &mut Packer, bytes: usize) -> PackedBlock {
        packer.push(0, 1, bytes as u32, [&vec![1; bytes][..]], &[]).expect("room");
        packer.seal().expect("a packet")
    }

    fn streaming(memory_bytes: usize) -> Uplink {
        let mut uplink = Uplink::new("host".into(), "test".into(), Epoch(5), memory_bytes);
        let key = StreamKey { epoch: Epoch(5), stream: 0 };
        uplink.handle_announcement(Announcement { key, ..Announcement::default() });
        connect(&mut uplink);
        uplink
    }

    fn connect(uplink: &mut Uplink) {
        uplink.handle_connected(0);
        assert!(matches!(uplink.poll_control(), Some(Control::Hello { .. })));
        let welcome =
            Control::Welcome { protocol: PROTOCOL, instance: Epoch(1), agent: String::new(), clock_ns: 0 };
        uplink.handle_control(welcome, 0).expect("in turn");
        assert!(matches!(uplink.poll_control(), Some(Control::Stream(_))));
    }

    fn ack(uplink: &mut Uplink, received: u64, settled: u64) -> Result<(), UplinkError> {
        let key = StreamKey { epoch: Epoch(5), stream: 0 };
        let received = Cursor { key, next_sequence: received, ..Cursor::default() };
        uplink.handle_control(Control::Ack { streams: vec![StreamAck { received, settled }] }, 0)
    }

    fn sent(uplink: &mut Uplink) -> Vec<(u64, bool)> {
        std::iter::from_fn(|| uplink.poll_data())
            .map(|(envelope, bytes)| {
                let block = PackedBlock::new(bytes).expect("ours");
                (block.header().sequence, envelope.resend)
            })
            .collect()
    }

    #[test]
    fn blocks_are_kept_until_settled_and_resent_after_a_cut() {
        let (mut packer, mut uplink) = (packer(), streaming(1 << 20));
        for _ in 0..4 {
            uplink.handle_block(block(&mut packer, 100));
        }
        assert_eq!(sent(&mut uplink), [(0, false), (1, false), (2, false), (3, false)]);
        ack(&mut uplink, 2, 1).expect("plausible");
        uplink.handle_disconnected();
        uplink.handle_block(block(&mut packer, 100));
        assert!(uplink.poll_data().is_none());
        connect(&mut uplink);
        assert!(uplink.poll_data().is_none(), "the relay says first how far it is");
        ack(&mut uplink, 3, 1).expect("plausible");
        assert_eq!(sent(&mut uplink), [(3, true), (4, false)]);
        ack(&mut uplink, 5, 5).expect("plausible");
        assert!(uplink.is_settled());
        assert_eq!(uplink.totals().settled_packets, 5);
        assert_eq!(uplink.totals().unsettled_sent_bytes, 0);
    }

    #[test]
    fn beyond_memory_the_received_go_first_then_the_oldest_and_counted() {
        let (mut packer, mut uplink) = (packer(), streaming(3 * 1300));
        for _ in 0..3 {
            uplink.handle_block(block(&mut packer, 1000));
        }
        assert_eq!(sent(&mut uplink).len(), 3);
        ack(&mut uplink, 1, 0).expect("plausible");
        uplink.handle_block(block(&mut packer, 1000));
        assert_eq!(uplink.lost(0), Losses::default(), "the relay has what was let go");
        uplink.handle_disconnected();
        uplink.handle_block(block(&mut packer, 1000));
        uplink.handle_block(block(&mut packer, 1000));
        connect(&mut uplink);
        ack(&mut uplink, 1, 0).expect("plausible");
        assert_eq!(uplink.lost(0).packets_at(Stage::NoBuffer), 2);
        assert_eq!(sent(&mut uplink), [(3, false), (4, false), (5, false)]);
    }

    #[test]
    fn what_the_relay_had_before_a_cut_is_not_counted_as_lost() {
        let (mut packer, mut uplink) = (packer(), streaming(3 * 1300));
        for _ in 0..3 {
            uplink.handle_block(block(&mut packer, 1000));
        }
        assert_eq!(sent(&mut uplink).len(), 3);
        uplink.handle_disconnected();
        for _ in 0..2 {
            uplink.handle_block(block(&mut packer, 1000));
        }
        assert_eq!(uplink.lost(0), Losses::default(), "nobody knows yet");
        connect(&mut uplink);
        ack(&mut uplink, 1, 1).expect("plausible");
        assert_eq!(uplink.lost(0).packets_at(Stage::NoBuffer), 1, "block 1; the relay had block 0");
    }

    #[test]
    fn reports_of_a_long_outage_stay_within_memory() {
        let (mut packer, mut uplink) = (packer(), streaming(5_000));
        uplink.handle_disconnected();
        for _ in 0..500 {
            let report = crate::ledger::Report::default();
            uplink.handle_block(packer.seal_json(Kind::Report, &report, 0, false).expect("room"));
        }
        assert!(uplink.totals().retained_bytes <= 5_000);
        assert_eq!(uplink.lost(0), Losses::default());
    }

    #[test]
    fn a_relay_that_starts_anew_is_given_the_last_description() {
        let (mut packer, mut uplink) = (packer(), streaming(1 << 20));
        let description = crate::description::Description::default();
        uplink.handle_block(packer.seal_json(Kind::Description, &description, 0, false).expect("room"));
        uplink.handle_block(block(&mut packer, 10));
        assert_eq!(sent(&mut uplink).len(), 2);
        ack(&mut uplink, 2, 2).expect("plausible");
        uplink.handle_disconnected();
        uplink.handle_block(block(&mut packer, 10));
        connect(&mut uplink);
        ack(&mut uplink, 0, 0).expect("plausible");
        assert_eq!(sent(&mut uplink), [(0, true), (2, false)]);
        ack(&mut uplink, 3, 3).expect("plausible");
        assert!(uplink.is_settled());
    }

    #[test]
    fn a_mark_waits_until_the_relay_has_what_was_sent() {
        let (mut packer, mut uplink) = (packer(), streaming(1 << 20));
        uplink.handle_control(Control::Takers { viewers: 1, marks: true }, 0).expect("in turn");
        uplink.handle_block(block(&mut packer, 10));
        assert_eq!(sent(&mut uplink).len(), 1);
        uplink.handle_mark(0, 7);
        assert!(uplink.poll_control().is_none(), "it would overtake the block in the connection");
        ack(&mut uplink, 1, 0).expect("plausible");
        uplink.handle_mark(0, 7);
        assert!(matches!(uplink.poll_control(), Some(Control::Mark { .. })));
    }

    #[test]
    fn an_impossible_acknowledgement_is_the_peers_fault() {
        let (mut packer, mut uplink) = (packer(), streaming(1 << 20));
        uplink.handle_block(block(&mut packer, 10));
        assert_eq!(ack(&mut uplink, 1, 0), Err(UplinkError::Ack { stream: 0, found: 1, sent: 0 }));
        let welcome = Control::Welcome { protocol: 9, instance: Epoch(1), agent: String::new(), clock_ns: 0 };
        assert!(matches!(uplink.handle_control(welcome, 0), Err(UplinkError::OutOfTurn { .. })));
    }
}
