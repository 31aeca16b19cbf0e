//! The viewer's side of the protocol: what was received of each stream, what is missing and why.
//! No I/O, no clock.
//!
//! Invariants:
//! * a block is passed on at most once, and the blocks of a stream in sequence;
//! * every packet between the first block of a stream and the last that came is either passed on
//!   or counted as missing, at the stage that the relay or the sniffer names.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use thiserror::Error;

use crate::block::{BlockError, Epoch, Header, Kind, PackedBlock, StreamKey};
use crate::description::{Description, INTERFACES_MAX, JSON_BYTES_MAX};
use crate::ledger::{Losses, Report, Stage};
use crate::message::{Control, Cursor, Envelope, MessageError, PROTOCOL, Role, Selection, StreamStatus};
use crate::secret::Secret;

/// Most notices of one stream that wait for the gap they explain.
const NOTICES_MAX: usize = 4096;
/// Most streams that a relay is told our place in: the latest; as many as a message holds.
const CURSORS_MAX: usize = 512;
/// Ended streams that are remembered, so that what comes again is known: the latest. Twice as many may
/// wait to be forgotten.
const ENDED_STREAMS_MAX: usize = 4096;
/// Most streams of one viewer.
const STREAMS_MAX: usize = 1 << 20;

/// How the relay broke the protocol, or refused.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum DownlinkError {
    #[error("the relay speaks protocol {found}, this viewer {PROTOCOL}: upgrade the older of the two")]
    Protocol { found: u32 },
    #[error("the relay refused: {reason}")]
    Refused { reason: String },
    #[error("{0}")]
    Message(#[from] MessageError),
    #[error("{0}")]
    Block(#[from] BlockError),
    #[error("a block of stream {key}, which was not joined")]
    NotJoined { key: StreamKey },
    #[error("over {STREAMS_MAX} streams")]
    TooManyStreams,
}

/// What came.
#[derive(Debug)]
pub enum Event {
    /// The relay welcomed us and the subscription stands; so many streams match now.
    Subscribed(u32),
    /// A stream was joined.
    Joined(StreamKey),
    /// The stream's table of interfaces, whole.
    Description(StreamKey, Description),
    /// Packets, to be unpacked. Check the result and tell [`Downlink::handle_corrupt`] if it fails.
    Packets(PackedBlock),
    /// Totals of the stream.
    Report(StreamKey, Report),
    /// Nothing older is to come in an idle stream.
    Mark(StreamKey, u64),
    /// Packets are missing, and why.
    Missing(StreamKey, Losses),
    /// The stream has ended, in order or with a reason.
    Ended(StreamKey, Option<String>),
    /// The list that was asked for, and how many streams more it leaves out.
    List(Vec<StreamStatus>, u32),
}

/// What is known of one stream.
#[derive(Clone, Debug, Default)]
pub struct StreamState {
    /// Name of its sniffer.
    pub name: String,
    /// Its last description.
    pub description: Option<Description>,
    /// Its last report.
    pub report: Option<Report>,
    /// Packets in blocks that were passed on.
    pub received_packets: u64,
    /// Their captured bytes.
    pub received_bytes: u64,
    /// Packets that do not come, by stage. What the kernel dropped is in the report.
    pub missing: Losses,
    /// Blocks that came again.
    pub duplicates: u64,
    /// Whether the stream has ended.
    pub ended: bool,
    /// Sequence at which it was first joined; 0 is its beginning.
    pub first_sequence: u64,
    /// Joined on the present connection.
    is_joined: bool,
    /// First joined on the present connection: where it begins may still be corrected.
    is_new: bool,
    /// A block other than a description has come, or packets are missing.
    is_started: bool,
    /// Counted as ended only because it was given up, or not joined again after a cut.
    is_absent: bool,
    /// The relay was restarted since the last block: that explains a gap nothing else does.
    relay_restarted: bool,
    /// When a block of it came last, in data messages of all streams.
    moved_at: u64,
    next_sequence: Option<u64>,
    packets_before: u64,
    bytes_before: u64,
    notices: VecDeque<Notice>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Notice {
    first_sequence: u64,
    next_sequence: u64,
    packets: u64,
    bytes: u64,
    stage: Stage,
}

/// The viewer's side of the protocol.
#[derive(Debug)]
pub struct Downlink {
    run: Epoch,
    agent: String,
    token: Option<Secret>,
    sees: Vec<String>,
    selection: Option<Selection>,
    streams: BTreeMap<StreamKey, StreamState>,
    control: VecDeque<Control>,
    events: VecDeque<Event>,
    welcomed: bool,
    /// Which run of the relay welcomed us last.
    instance: Option<Epoch>,
    relay_restarted: bool,
    corrupt_blocks: u64,
    /// Data messages so far.
    messages: u64,
}

impl Downlink {
    /// A viewer that subscribes to `selection`, or that only asks for the list. By its `run`, a fresh random
    /// number, the relay knows it again after a cut.
    pub fn new(run: Epoch, agent: String, selection: Option<Selection>) -> Self {
        Self {
            run,
            agent,
            token: None,
            sees: Vec::new(),
            selection,
            streams: BTreeMap::new(),
            control: VecDeque::new(),
            events: VecDeque::new(),
            welcomed: false,
            instance: None,
            relay_restarted: false,
            corrupt_blocks: 0,
            messages: 0,
        }
    }

    /// From the next connection on, this is what it proves itself with.
    pub fn set_token(&mut self, token: Option<Secret>) {
        self.token = token;
    }

    /// Globs over the sniffer names that the relay lets us see; empty: all.
    pub fn sees(&self) -> &[String] {
        &self.sees
    }

    /// A connection is open, the first or one after a cut: says hello. What is known of the
    /// streams stays, so that what comes again is dropped and what does not come is missing.
    pub fn handle_connected(&mut self, clock_ns: u64) {
        self.welcomed = false;
        self.control.clear();
        for stream in self.streams.values_mut() {
            (stream.is_joined, stream.is_new) = (false, false);
        }
        self.control.push_back(Control::Hello {
            protocol: PROTOCOL,
            role: Role::Subscribe,
            name: String::new(),
            epoch: self.run,
            home: Epoch::default(),
            former: Epoch::default(),
            agent: self.agent.clone(),
            clock_ns,
            token: self.token.clone(),
        });
    }

    /// A control message of the relay.
    pub fn handle_control(&mut self, control: Control, clock_ns: u64) -> Result<(), DownlinkError> {
        match control {
            Control::Welcome { protocol, instance, sees, .. } => {
                if protocol != PROTOCOL {
                    return Err(DownlinkError::Protocol { found: protocol });
                }
                self.relay_restarted = self.instance.is_some_and(|former| former != instance);
                self.instance = Some(instance);
                for stream in self.streams.values_mut() {
                    stream.relay_restarted |= self.relay_restarted;
                }
                self.welcomed = true;
                self.sees = sees;
                self.control.push_back(match &self.selection {
                    Some(selection) => {
                        Control::Subscribe { selection: selection.clone(), cursors: self.cursors() }
                    }
                    None => Control::List,
                });
            }
            Control::Subscribed { streams } => {
                if !self.relay_restarted {
                    self.end_absent("ended while this viewer was away");
                }
                self.events.push_back(Event::Subscribed(streams));
            }
            Control::Join { status, next_sequence } => self.handle_join(status, next_sequence)?,
            Control::Skipped { key, first_sequence, next_sequence, packets, bytes, stage } => {
                let Some(stream) = self.streams.get_mut(&key) else {
                    return Err(DownlinkError::NotJoined { key });
                };
                if stream.next_sequence.is_some_and(|next| next_sequence <= next) {
                    return Ok(()); // another worker, that is behind the one we had
                }
                let notice = Notice { first_sequence, next_sequence, packets, bytes, stage };
                // One that came before a cut may come again after it.
                if stream.notices.len() < NOTICES_MAX && !stream.notices.contains(&notice) {
                    stream.notices.push_back(notice);
                }
            }
            Control::Gone { place, reason, ended } => {
                let key = place.key;
                if let Some(stream) = self.streams.get_mut(&key)
                    && !stream.ended
                {
                    (stream.ended, stream.is_absent) = (true, !ended);
                    if stream.next_sequence.is_some_and(|next| place.next_sequence > next)
                        && let Some(missing) =
                            stream.close_gap(place.next_sequence, place.packets, place.bytes)
                    {
                        self.events.push_back(Event::Missing(key, missing));
                    }
                    self.events.push_back(Event::Ended(key, Some(reason)));
                }
            }
            Control::Mark { epoch, stream, complete_through_ns } => {
                let key = StreamKey { epoch, stream };
                if self.streams.contains_key(&key) {
                    self.events.push_back(Event::Mark(key, complete_through_ns));
                }
            }
            Control::Streams { streams, omitted } => self.events.push_back(Event::List(streams, omitted)),
            Control::Ping { clock_ns: ping_ns } => {
                self.control.push_back(Control::Pong { ping_ns, clock_ns })
            }
            Control::Error { reason } => return Err(DownlinkError::Refused { reason }),
            _ => {}
        }
        Ok(())
    }

    /// Forgets the streams that ended first, in order and for good: a viewer may run for months.
    fn forget_ended(&mut self) {
        let is_over = |stream: &StreamState| stream.ended && !stream.is_absent;
        let mut ended: Vec<(u64, StreamKey)> = self
            .streams
            .iter()
            .filter(|(_, one)| is_over(one))
            .map(|(key, one)| (one.moved_at, *key))
            .collect();
        ended.sort_unstable();
        let surplus = ended.len().saturating_sub(ENDED_STREAMS_MAX);
        for (_, key) in &ended[..surplus] {
            self.streams.remove(key);
        }
    }

    /// How far we are in the streams that moved last, ended ones too: what goes on from them is ours.
    fn cursors(&self) -> Vec<Cursor> {
        let of = |(key, stream): (&StreamKey, &StreamState)| {
            let next_sequence = stream.next_sequence?;
            let (packets, bytes) = (stream.packets_before, stream.bytes_before);
            Some((stream.moved_at, Cursor { key: *key, next_sequence, packets, bytes }))
        };
        let mut cursors: Vec<(u64, Cursor)> = self.streams.iter().filter_map(of).collect();
        cursors.sort_unstable_by_key(|(moved_at, cursor)| (std::cmp::Reverse(*moved_at), cursor.key));
        cursors.into_iter().take(CURSORS_MAX).map(|(_, cursor)| cursor).collect()
    }

    fn handle_join(&mut self, status: StreamStatus, next_sequence: u64) -> Result<(), DownlinkError> {
        if self.streams.len() >= STREAMS_MAX {
            return Err(DownlinkError::TooManyStreams);
        }
        if self.streams.len() > 2 * ENDED_STREAMS_MAX {
            self.forget_ended();
        }
        let stream = self.streams.entry(status.key).or_default();
        let is_first_here = !std::mem::replace(&mut stream.is_joined, true);
        let Some(next) = stream.next_sequence else {
            stream.name = status.name;
            stream.is_new = true;
            // It may be ours from a beginning that only the former relay had.
            stream.relay_restarted = self.relay_restarted;
            stream.begin(next_sequence, status.packets, status.bytes);
            self.events.push_back(Event::Joined(status.key));
            return Ok(());
        };
        if stream.is_absent {
            stream.is_absent = false;
            stream.ended = false;
            self.events.push_back(Event::Joined(status.key));
        }
        let is_corrected = stream.is_new || !(is_first_here || stream.relay_restarted);
        if is_corrected && !stream.is_started && next_sequence > next {
            // The relay itself got it in the middle: what was before is not for us.
            stream.begin(next_sequence, status.packets, status.bytes);
            return Ok(());
        }
        if is_first_here {
            // What the former connection skipped beyond this place, this one need not, or says again.
            stream.notices.retain(|notice| notice.first_sequence.max(next) < next_sequence);
            for notice in &mut stream.notices {
                notice.next_sequence = notice.next_sequence.min(next_sequence);
            }
        }
        if next_sequence > next
            && let Some(missing) = stream.close_gap(next_sequence, status.packets, status.bytes)
        {
            self.events.push_back(Event::Missing(status.key, missing));
        }
        Ok(())
    }

    /// Streams that were not joined again on the present connection count as ended: the relay no
    /// longer has them. If one is joined later all the same, it goes on.
    pub fn end_absent(&mut self, reason: &str) {
        for (key, stream) in self.streams.iter_mut().filter(|(_, one)| !one.is_joined && !one.ended) {
            (stream.ended, stream.is_absent) = (true, true);
            self.events.push_back(Event::Ended(*key, Some(reason.to_owned())));
        }
    }

    /// Nothing is received any more: what the relay said does not come is missing now, rather than
    /// when the block after it comes.
    pub fn finish(&mut self) {
        for (key, stream) in &mut self.streams {
            if let Some(missing) = stream.take_told() {
                self.events.push_back(Event::Missing(*key, missing));
            }
        }
    }

    /// A data message of the relay.
    pub fn handle_data(&mut self, message: Bytes) -> Result<(), DownlinkError> {
        let envelope = Envelope::parse(&message)?;
        let block = PackedBlock::new(message.slice(crate::message::ENVELOPE_BYTES..))?;
        let header = *block.header();
        let key = header.key;
        let Some(stream) = self.streams.get_mut(&key) else { return Err(DownlinkError::NotJoined { key }) };
        self.messages += 1;
        stream.moved_at = self.messages;
        let next = stream.next_sequence.unwrap_or(0);
        let is_replay = header.sequence < next || envelope.replay;
        if is_replay && header.kind != Kind::Description {
            stream.duplicates += 1;
            return Ok(());
        }
        if !is_replay && let Some(missing) = stream.advance(&header) {
            self.events.push_back(Event::Missing(key, missing));
        }
        match header.kind {
            Kind::Packets => self.events.push_back(Event::Packets(block)),
            Kind::Description => match read_json::<Description>(&block) {
                Some(description) if description.interfaces.len() <= INTERFACES_MAX => {
                    // A replay is never older than what we have; but tables only grow.
                    let known = stream.description.as_ref().map_or(0, |known| known.interfaces.len());
                    if description.interfaces.len() >= known {
                        stream.description = Some(description.clone());
                        self.events.push_back(Event::Description(key, description));
                    }
                }
                _ => self.corrupt_blocks += 1,
            },
            Kind::Report => match read_json::<Report>(&block) {
                Some(report) => {
                    stream.report = Some(report.clone());
                    self.events.push_back(Event::Report(key, report));
                }
                None => self.corrupt_blocks += 1,
            },
        }
        if header.end
            && let Some(stream) = self.streams.get_mut(&key)
            && !stream.ended
        {
            stream.ended = true;
            self.events.push_back(Event::Ended(key, None));
        }
        Ok(())
    }

    /// The body of a block that was passed on failed its checks and was dropped whole.
    pub fn handle_corrupt(&mut self, header: &Header) {
        self.corrupt_blocks += 1;
        if let Some(stream) = self.streams.get_mut(&header.key) {
            stream.received_packets -= u64::from(header.packet_count).min(stream.received_packets);
            stream.received_bytes -= u64::from(header.byte_count).min(stream.received_bytes);
            stream.missing.add(Stage::Corrupt, header.packet_count.into(), header.byte_count.into());
        }
    }

    /// The next control message to send.
    pub fn poll_control(&mut self) -> Option<Control> {
        self.control.pop_front()
    }

    /// What came, in order.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The relay has welcomed us.
    pub fn is_welcomed(&self) -> bool {
        self.welcomed
    }

    /// Every stream that was joined.
    pub fn streams(&self) -> &BTreeMap<StreamKey, StreamState> {
        &self.streams
    }

    /// Blocks dropped because a check failed.
    pub fn corrupt_blocks(&self) -> u64 {
        self.corrupt_blocks
    }
}

impl StreamState {
    /// What comes before `next_sequence` is not for this viewer.
    fn begin(&mut self, next_sequence: u64, packets_before: u64, bytes_before: u64) {
        self.first_sequence = next_sequence;
        self.next_sequence = Some(next_sequence);
        self.packets_before = packets_before;
        self.bytes_before = bytes_before;
        self.notices.retain(|notice| notice.next_sequence > next_sequence);
    }

    /// Counts a block that came in sequence; what is missing before it, if anything.
    fn advance(&mut self, header: &Header) -> Option<Losses> {
        let missing = self.close_gap(header.sequence, header.packets_before, header.bytes_before);
        self.next_sequence = Some(header.sequence + 1);
        self.packets_before = header.packets_before + u64::from(header.packet_count);
        self.bytes_before = header.bytes_before + u64::from(header.byte_count);
        self.received_packets += u64::from(header.packet_count);
        self.received_bytes += u64::from(header.byte_count);
        self.relay_restarted = false;
        self.is_started |= header.kind != Kind::Description;
        missing
    }

    /// Nothing before `next_sequence` comes any more; counts, and explains, what is missing.
    fn close_gap(&mut self, next_sequence: u64, packets_before: u64, bytes_before: u64) -> Option<Losses> {
        let mut packets = packets_before.saturating_sub(self.packets_before);
        let mut bytes = bytes_before.saturating_sub(self.bytes_before);
        self.next_sequence = Some(next_sequence);
        self.packets_before = self.packets_before.max(packets_before);
        self.bytes_before = self.bytes_before.max(bytes_before);
        let mut missing = Losses::default();
        // Notices overtake the blocks queued before the gap, so they are here already. They come in
        // any order: one of the sniffer's gap overtakes one of the viewer's own queue.
        self.notices.retain(|notice| {
            if notice.next_sequence > next_sequence {
                return true;
            }
            let (told_packets, told_bytes) = (notice.packets.min(packets), notice.bytes.min(bytes));
            missing.add(notice.stage, told_packets, told_bytes);
            packets -= told_packets;
            bytes -= told_bytes;
            false
        });
        let rest = if self.relay_restarted { Stage::RelayRestarted } else { Stage::Unexplained };
        missing.add(rest, packets, if packets == 0 { 0 } else { bytes });
        self.miss(missing)
    }

    /// Counts what notices say that no block has come after. Not one that reaches back before our
    /// place (a relay that starts anew skipped what the former had sent): only the counters of a
    /// later block tell how much of it is missing.
    fn take_told(&mut self) -> Option<Losses> {
        let mut missing = Losses::default();
        let next = self.next_sequence.unwrap_or(0);
        for notice in std::mem::take(&mut self.notices).iter().filter(|one| one.first_sequence >= next) {
            missing.add(notice.stage, notice.packets, notice.bytes);
        }
        self.miss(missing)
    }

    fn miss(&mut self, missing: Losses) -> Option<Losses> {
        self.is_started |= missing.packets() > 0;
        for (stage, loss) in &missing.0 {
            self.missing.add(*stage, loss.packets, loss.bytes);
        }
        (missing.packets() > 0).then_some(missing)
    }
}

/// The JSON of a body. One that is larger than a relay takes is none: once it is read it takes many
/// times its size, `{}` a hundred times.
fn read_json<T: serde::de::DeserializeOwned>(block: &PackedBlock) -> Option<T> {
    if block.header().raw_bytes as usize > JSON_BYTES_MAX {
        return None;
    }
    let mut body = Vec::new();
    block.unpack_into(&mut body).ok()?;
    serde_json::from_slice(&body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Interface;
    use crate::pack::{Compression, Packer};
    use crate::pool::Pool;

    const KEY: StreamKey = StreamKey { epoch: Epoch(3), stream: 1 };

    fn message(block: &PackedBlock) -> Bytes {
        [&Envelope::default().emit()[..], block.bytes()].concat().into()
    }

    fn joined(next_sequence: u64) -> Downlink {
        let mut downlink = Downlink::new(Epoch(9), "test".into(), Some(Selection::default()));
        let status =
            StreamStatus { key: KEY, name: "host".into(), packets: next_sequence, ..Default::default() };
        downlink.handle_control(Control::Join { status, next_sequence }, 0).expect("joins");
        downlink
    }

    fn packets(packer: &mut Packer, count: usize) -> PackedBlock {
        for _ in 0..count {
            packer.push(0, 1, 10, [&[0; 10][..]], &[]).expect("room");
        }
        packer.seal().expect("packets")
    }

    #[test]
    fn json_beyond_its_bound_is_not_read() {
        let mut packer = Packer::new(KEY, Pool::new(1 << 26), 1 << 16, Compression::None);
        for (bytes, corrupt) in [(JSON_BYTES_MAX, 0), (JSON_BYTES_MAX + 1, 1)] {
            let empty = serde_json::to_vec(&Description::default()).expect("serialises").len();
            let description = Description { name: "x".repeat(bytes - empty), ..Description::default() };
            let block = packer.seal_json(Kind::Description, &description, 1, false).expect("a buffer");
            assert_eq!(block.header().raw_bytes as usize, bytes);
            let mut downlink = joined(block.header().sequence);
            downlink.handle_data(message(&block)).expect("joined");
            assert_eq!(downlink.corrupt_blocks(), corrupt);
        }
    }

    #[test]
    fn what_is_missing_is_priced_and_explained() {
        let mut packer = Packer::new(KEY, Pool::new(1 << 24), 1 << 16, Compression::None);
        let blocks: Vec<_> = (1..=5).map(|count| packets(&mut packer, count)).collect();
        let mut downlink = joined(0);
        downlink.handle_data(message(&blocks[0])).expect("joined");
        downlink.handle_data(message(&blocks[0])).expect("a duplicate");
        let notice = Control::Skipped {
            key: KEY,
            first_sequence: 1,
            next_sequence: 2,
            packets: 2,
            bytes: 20,
            stage: Stage::ViewerQueue,
        };
        downlink.handle_control(notice, 0).expect("joined");
        downlink.handle_data(message(&blocks[3])).expect("joined");
        downlink.handle_corrupt(blocks[3].header());
        downlink.handle_data(message(&blocks[4])).expect("joined");
        let stream = &downlink.streams()[&KEY];
        assert_eq!((stream.received_packets, stream.duplicates), (6, 1));
        assert_eq!(stream.missing.packets_at(Stage::ViewerQueue), 2);
        assert_eq!(stream.missing.packets_at(Stage::Unexplained), 3);
        assert_eq!(stream.missing.packets_at(Stage::Corrupt), 4);
        assert_eq!(stream.received_packets + stream.missing.packets(), 15);
    }

    #[test]
    fn a_replayed_description_is_taken_and_joins_do_not_count_what_was_before() {
        let mut packer = Packer::new(KEY, Pool::new(1 << 24), 1 << 16, Compression::None);
        let description =
            Description { interfaces: vec![Interface::default()], name: "host".into(), ..Default::default() };
        let first = packer.seal_json(Kind::Description, &description, 0, false).expect("room");
        let second = packets(&mut packer, 2);
        let third = packets(&mut packer, 1);
        let mut downlink = joined(2);
        downlink.handle_data(message(&first)).expect("joined");
        downlink.handle_data(message(&second)).expect("before us");
        downlink.handle_data(message(&third)).expect("ours");
        let end = packer.seal_json(Kind::Report, &Report::default(), 0, true).expect("room");
        downlink.handle_data(message(&end)).expect("ours");
        let events: Vec<_> = std::iter::from_fn(|| downlink.poll_event()).collect();
        assert!(matches!(
            events[..],
            [
                Event::Joined(KEY),
                Event::Description(KEY, _),
                Event::Packets(_),
                Event::Report(KEY, _),
                Event::Ended(KEY, None)
            ]
        ));
        assert_eq!(downlink.streams()[&KEY].received_packets, 1);
        assert_eq!(downlink.streams()[&KEY].missing, Losses::default());
    }

    fn welcome(downlink: &mut Downlink, instance: u64) {
        downlink.handle_connected(0);
        let agent = String::new();
        let welcome = Control::Welcome {
            protocol: PROTOCOL,
            instance: Epoch(instance),
            agent,
            clock_ns: 0,
            sees: Vec::new(),
        };
        downlink.handle_control(welcome, 0).expect("welcome");
    }

    fn join(downlink: &mut Downlink, packets: u64, next_sequence: u64) {
        let status = StreamStatus { key: KEY, packets, bytes: packets * 10, ..Default::default() };
        downlink.handle_control(Control::Join { status, next_sequence }, 0).expect("joins");
    }

    #[test]
    fn after_a_cut_a_stream_goes_on_where_it_was() {
        let mut packer = Packer::new(KEY, Pool::new(1 << 24), 1 << 16, Compression::None);
        let blocks: Vec<_> = (1..=5).map(|count| packets(&mut packer, count)).collect();
        let mut downlink = Downlink::new(Epoch(9), "test".into(), Some(Selection::default()));
        welcome(&mut downlink, 1);
        join(&mut downlink, 0, 0);
        downlink.handle_data(message(&blocks[0])).expect("joined");

        welcome(&mut downlink, 1); // the same relay: it skipped a block without a word
        join(&mut downlink, 3, 2);
        downlink.handle_data(message(&blocks[0])).expect("a duplicate");
        downlink.handle_data(message(&blocks[2])).expect("joined");
        let stream = &downlink.streams()[&KEY];
        assert_eq!((stream.received_packets, stream.duplicates), (4, 1));
        assert_eq!(stream.missing.packets_at(Stage::Unexplained), 2);

        welcome(&mut downlink, 2); // another relay, which knows nothing of the stream before
        join(&mut downlink, 0, 0);
        downlink.handle_data(message(&blocks[4])).expect("joined");
        let stream = &downlink.streams()[&KEY];
        assert_eq!(stream.missing.packets_at(Stage::RelayRestarted), 4);
        assert_eq!(stream.received_packets + stream.missing.packets(), 15);
    }

    #[test]
    fn a_stream_that_is_not_joined_again_has_ended_until_it_is() {
        let mut downlink = Downlink::new(Epoch(9), "test".into(), Some(Selection::default()));
        welcome(&mut downlink, 1);
        join(&mut downlink, 0, 0);
        let notice = Control::Skipped {
            key: KEY,
            first_sequence: 0,
            next_sequence: 2,
            packets: 7,
            bytes: 70,
            stage: Stage::ViewerQueue,
        };
        downlink.handle_control(notice, 0).expect("joined");
        welcome(&mut downlink, 1);
        downlink.handle_control(Control::Subscribed { streams: 0 }, 0).expect("subscribed");
        let stream = &downlink.streams()[&KEY];
        assert!(stream.ended);
        assert_eq!(stream.missing, Losses::default(), "it may still come");

        welcome(&mut downlink, 2);
        downlink.handle_control(Control::Subscribed { streams: 0 }, 0).expect("subscribed");
        join(&mut downlink, 9, 3);
        let stream = &downlink.streams()[&KEY];
        assert!(!stream.ended);
        assert_eq!(stream.missing.packets_at(Stage::RelayRestarted), 2);
        assert_eq!(stream.missing.packets(), 9);
    }

    fn notice(first_sequence: u64, next_sequence: u64, packets: u64, stage: Stage) -> Control {
        Control::Skipped { key: KEY, first_sequence, next_sequence, packets, bytes: packets * 10, stage }
    }

    #[test]
    fn notices_count_in_any_order_and_a_replay_within_a_gap_is_no_progress() {
        let mut packer = Packer::new(KEY, Pool::new(1 << 24), 1 << 16, Compression::None);
        let mut downlink = joined(0);
        let first = packets(&mut packer, 2);
        let description = packer.seal_json(Kind::Description, &Description::default(), 0, false);
        let later: Vec<_> = (0..3).map(|_| packets(&mut packer, 3)).collect();
        // The sniffer's gap, block 3, is told before the viewer's own, blocks 0 to 2.
        downlink.handle_control(notice(3, 4, 3, Stage::NoBuffer), 0).expect("joined");
        downlink.handle_control(notice(0, 3, 5, Stage::ViewerQueue), 0).expect("joined");
        let replay = Envelope { replay: true, ..Envelope::default() }.emit();
        let description = [&replay[..], description.expect("room").bytes()].concat();
        downlink.handle_data(description.into()).expect("joined");
        downlink.handle_data(message(&later[2])).expect("joined");
        downlink.handle_data(message(&first)).expect("a duplicate");
        let missing = &downlink.streams()[&KEY].missing;
        assert_eq!(missing.text(), "3 sniffer memory, 5 viewer queue");
    }

    #[test]
    fn what_a_new_relay_skips_of_what_we_have_is_not_missing() {
        let mut packer = Packer::new(KEY, Pool::new(1 << 24), 1 << 16, Compression::None);
        let blocks: Vec<_> = (0..4).map(|_| packets(&mut packer, 2)).collect();
        let mut downlink = Downlink::new(Epoch(9), "test".into(), Some(Selection::default()));
        welcome(&mut downlink, 1);
        join(&mut downlink, 0, 0);
        downlink.handle_data(message(&blocks[0])).expect("joined");
        welcome(&mut downlink, 2);
        join(&mut downlink, 0, 0);
        downlink.handle_control(notice(0, 3, 6, Stage::ViewerQueue), 0).expect("joined");
        downlink.handle_control(gone(3, 6), 0).expect("joined");
        join(&mut downlink, 6, 0);
        downlink.handle_data(message(&blocks[3])).expect("joined");
        downlink.handle_control(notice(0, 1, 2, Stage::ViewerQueue), 0).expect("joined");
        downlink.finish();
        let stream = &downlink.streams()[&KEY];
        assert_eq!((stream.received_packets, stream.missing.text()), (4, "4 viewer queue".to_owned()));
    }

    fn gone(next_sequence: u64, packets: u64) -> Control {
        let place = Cursor { key: KEY, next_sequence, packets, bytes: packets * 10 };
        Control::Gone { place, reason: "away".into(), ended: false }
    }

    #[test]
    fn what_is_told_of_a_stream_given_up_is_counted_when_it_goes_on() {
        let mut packer = Packer::new(KEY, Pool::new(1 << 24), 1 << 16, Compression::None);
        let blocks: Vec<_> = (0..4).map(|_| packets(&mut packer, 2)).collect();
        let mut downlink = joined(0);
        downlink.handle_data(message(&blocks[0])).expect("joined");
        downlink.handle_control(notice(2, 3, 2, Stage::NoBuffer), 0).expect("joined");
        downlink.handle_control(gone(1, 2), 0).expect("joined");
        assert_eq!(downlink.streams()[&KEY].missing, Losses::default(), "block 1 may still come");
        let status = StreamStatus { key: KEY, packets: 2, ..Default::default() };
        downlink.handle_control(Control::Join { status, next_sequence: 0 }, 0).expect("joins");
        downlink.handle_control(notice(1, 2, 2, Stage::SpoolEvicted), 0).expect("joined");
        downlink.handle_data(message(&blocks[3])).expect("joined");
        let stream = &downlink.streams()[&KEY];
        assert_eq!((stream.received_packets, stream.missing.packets_at(Stage::Unexplained)), (4, 0));
        assert_eq!(stream.missing.packets(), 4);
    }

    #[test]
    fn a_stream_given_up_counts_what_was_skipped_and_may_come_back() {
        let mut downlink = joined(0);
        downlink.handle_control(notice(0, 3, 5, Stage::ViewerQueue), 0).expect("joined");
        downlink.handle_control(gone(3, 5), 0).expect("joined");
        assert!(downlink.streams()[&KEY].ended);
        assert_eq!(downlink.streams()[&KEY].missing.packets_at(Stage::ViewerQueue), 5);
        let status = StreamStatus { key: KEY, packets: 5, ..Default::default() };
        downlink.handle_control(Control::Join { status, next_sequence: 0 }, 0).expect("joins");
        assert!(!downlink.streams()[&KEY].ended);
    }

    #[test]
    fn a_block_that_lies_is_refused() {
        let mut downlink = joined(0);
        assert!(downlink.handle_data(Bytes::from_static(b"short")).is_err());
        let key = StreamKey { epoch: Epoch(9), stream: 1 };
        let mut packer = Packer::new(key, Pool::new(1 << 24), 1 << 16, Compression::None);
        let foreign = message(&packets(&mut packer, 1));
        assert!(matches!(downlink.handle_data(foreign), Err(DownlinkError::NotJoined { .. })));
    }

    #[test]
    fn streams_that_ended_long_ago_are_forgotten() {
        let mut downlink = Downlink::new(Epoch(9), "test".into(), Some(Selection::default()));
        let count = 3 * ENDED_STREAMS_MAX as u32;
        for stream in 0..count {
            let key = StreamKey { epoch: Epoch(3), stream };
            let status = StreamStatus { key, ..Default::default() };
            downlink.handle_control(Control::Join { status, next_sequence: 0 }, 0).expect("joins");
            if stream > 0 {
                let mut packer = Packer::new(key, Pool::new(1 << 20), 1 << 10, Compression::None);
                let end = packer.seal_json(Kind::Report, &Report::default(), 0, true).expect("room");
                downlink.handle_data(message(&end)).expect("joined");
            }
            while downlink.poll_event().is_some() {}
        }
        assert!(downlink.streams().len() <= 2 * ENDED_STREAMS_MAX + 1, "{}", downlink.streams().len());
        let kept = |stream| downlink.streams().contains_key(&StreamKey { epoch: Epoch(3), stream });
        assert!(kept(0) && kept(count - 1), "one that goes on, and the latest");
        assert!(!kept(1));
    }
}
