//! The journal against a model: random operations by seed on a file system that fails, tears and
//! fills up. `RINGCAST_JOURNAL_SEEDS=N` runs N seeds, `RINGCAST_JOURNAL_SEED=S` one.
//!
//! What must hold:
//! * what was synced and neither evicted nor acknowledged comes back once in a pass, in order;
//! * what comes back was appended, byte for byte;
//! * what is evicted is told, by stream, in packets: appended = to be read + acknowledged + evicted +
//!   cut by a crash;
//! * the files have at most the cap's bytes;
//! * opening never fails because of what a crash tore.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::block::{Epoch, HEADER_BYTES, Header, Kind, PackedBlock, StreamKey};
use crate::pool::Pool;

use super::sim_fs::{Faults, Random, SimFs};
use super::{Config, Entry, Journal, JournalError, JournalEvent, Position, Recovered, Tuning};

/// A block with a body of `body_bytes` of the given byte.
pub fn block(header: Header, body: &[u8]) -> PackedBlock {
    let packed_bytes = body.len() as u32;
    let body_crc = crc32fast::hash(body);
    let header = Header { raw_bytes: packed_bytes, packed_bytes, body_crc, ..header };
    let mut fixed = [0; HEADER_BYTES];
    header.emit(&mut fixed);
    PackedBlock::new(Bytes::from([&fixed[..], body].concat())).expect("is a block")
}

/// A header whose other fields do not matter.
pub fn header(key: StreamKey, sequence: u64, kind: Kind) -> Header {
    Header {
        kind,
        lz4: false,
        end: false,
        key,
        sequence,
        time_min_ns: 1_000_000,
        time_max_ns: 1_000_000,
        packets_before: 0,
        bytes_before: 0,
        packet_count: 0,
        byte_count: 0,
        raw_bytes: 0,
        packed_bytes: 0,
        body_crc: 0,
    }
}

#[derive(Clone, Debug)]
struct Record {
    /// In the order of appending, over all lives.
    id: u64,
    key: StreamKey,
    packets: u64,
    position: Position,
    /// Known to be durable.
    synced: bool,
    /// A failed sync left it in doubt.
    doubtful: bool,
    acknowledged: bool,
}

#[derive(Default)]
struct Stream {
    key: StreamKey,
    sequence: u64,
    packets: u64,
    bytes: u64,
    /// It was not taken, and is appended again.
    held: Option<PackedBlock>,
}

struct Model {
    random: Random,
    fs: SimFs,
    config: Config,
    tuning: Tuning,
    now: Instant,
    journal: Option<Journal<SimFs>>,
    pool: Pool,
    streams: Vec<Stream>,
    next_stream: u32,
    /// Everything ever appended.
    appended: HashMap<(StreamKey, u64), (u64, Bytes)>,
    next_id: u64,
    /// What the journal has, as far as the model knows.
    log: Vec<Record>,
    /// Id of the record that was read last.
    read_id: Option<u64>,
    read_next: Vec<Position>,
    /// Reported as damaged since reading began.
    damaged: Vec<(Position, Position)>,
    evicted: BTreeMap<StreamKey, u64>,
    told: BTreeMap<StreamKey, u64>,
    /// Holes that crashes have left, and what failed syncs have put in doubt.
    holes: Vec<(Position, Position)>,
    faults: Faults,
    /// A call failed on the way to the cursor file, or a segment could not be deleted.
    trouble: bool,
    /// Ever before the last start.
    any_trouble: bool,
    evicted_ids: HashSet<u64>,
    cut: u64,
    evictions_seen: u64,
    repeats: u64,
}

impl Model {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let segment_bytes = 4096 + random.below(3) * 4096;
        let cap_bytes = segment_bytes * (2 + random.below(6));
        let small_bytes = [0, 300, 1000, 4000][random.below(4) as usize];
        let tuning = Tuning {
            small_bytes,
            pending_bytes: small_bytes.max(512) * 2,
            begin_bytes: 1000,
            sync_bytes: [1, 2000, 1 << 30][random.below(3) as usize],
            cursor_bytes: [1, 3000, 1 << 30][random.below(3) as usize],
            piece_bytes: 5000,
        };
        let fs = SimFs::new(random.next());
        let config =
            Config { directory: PathBuf::from("/sim"), cap_bytes, segment_bytes: Some(segment_bytes) };
        let now = Instant::now();
        let (journal, _) = Journal::open_tuned(&config, fs.clone(), now, tuning).expect("an empty directory");
        let mut model = Self {
            random,
            fs,
            config,
            tuning,
            now,
            journal: Some(journal),
            pool: Pool::new(1 << 20),
            streams: Vec::new(),
            next_stream: 0,
            appended: HashMap::new(),
            next_id: 0,
            log: Vec::new(),
            read_id: None,
            read_next: Vec::new(),
            damaged: Vec::new(),
            evicted: BTreeMap::new(),
            told: BTreeMap::new(),
            holes: Vec::new(),
            faults: Faults::default(),
            trouble: false,
            any_trouble: false,
            evicted_ids: HashSet::new(),
            cut: 0,
            evictions_seen: 0,
            repeats: 0,
        };
        for _ in 0..3 {
            let stream = model.new_stream();
            model.streams.push(stream);
        }
        model
    }

    fn new_stream(&mut self) -> Stream {
        self.next_stream += 1;
        Stream { key: StreamKey { epoch: Epoch(1), stream: self.next_stream }, ..Stream::default() }
    }

    fn journal(&mut self) -> &mut Journal<SimFs> {
        self.journal.as_mut().expect("open between operations")
    }

    fn step(&mut self) {
        self.now += Duration::from_millis(self.random.below(400));
        match self.random.below(100) {
            0..40 => {
                for _ in 0..1 + self.random.below(6) {
                    self.append();
                }
            }
            40..60 => {
                for _ in 0..1 + self.random.below(8) {
                    if !self.read() {
                        break;
                    }
                }
            }
            60..68 => self.acknowledge(),
            68..71 => {
                self.journal().rewind();
                self.read_id = None;
                self.read_next.clear();
                self.damaged.clear();
            }
            71..77 => self.sync(),
            77..84 => {
                let now = self.now;
                self.journal().handle_timeout(now);
                assert!(self.journal().poll_timeout().is_none_or(|at| at > now), "nothing is left due");
            }
            84..87 => self.tell(),
            87..92 => {
                let percent = 20 + self.random.below(80);
                let mut faults = Faults::default();
                match self.random.below(7) {
                    0 => faults.write = percent,
                    1 => faults.sync = percent,
                    2 => faults.rename = percent,
                    3 => faults.read = percent,
                    4 => faults.create = percent,
                    _ => {}
                }
                self.faults = faults;
                self.fs.set_faults(faults);
            }
            92..94 => {
                let used = self.fs.used();
                let spare = self.random.below(6000);
                self.fs.set_capacity(used.saturating_sub(1000) + spare);
            }
            94..97 => self.fs.set_capacity(u64::MAX),
            _ => self.reopen(),
        }
        self.take_events(false);
        assert!(self.fs.used_by(".seg") <= self.config.cap_bytes, "the cap is kept");
        let cap_bytes = self.config.cap_bytes;
        assert!(self.journal().size_bytes() <= cap_bytes, "the cap is kept as it is reported");
    }

    fn append(&mut self) {
        let which = self.random.below(self.streams.len() as u64) as usize;
        let stream = &self.streams[which];
        let kind = match (stream.sequence, self.random.below(20)) {
            (0, _) | (_, 0) => Kind::Description,
            (_, 1) => Kind::Report,
            _ => Kind::Packets,
        };
        let packets = if kind == Kind::Packets { 1 + self.random.below(9) } else { 0 };
        let most = if kind == Kind::Packets && self.random.chance(3) { 6000 } else { 1200 };
        let length = self.random.below(most) as usize;
        let mut body: Vec<u8> = (0..length).map(|_| self.random.next() as u8).collect();
        if self.random.chance(30) {
            // What is captured may be blocks, and even what lies in this journal.
            let inner =
                block(header(StreamKey { epoch: Epoch(666), stream: 1 }, 3, Kind::Packets), b"forged");
            for chunk in body.chunks_mut(inner.bytes().len()) {
                chunk.copy_from_slice(&inner.bytes()[..chunk.len()]);
            }
        }
        let stream = &self.streams[which];
        let new = block(
            Header {
                end: self.random.chance(2),
                packets_before: stream.packets,
                bytes_before: stream.bytes,
                packet_count: packets as u32,
                byte_count: packets as u32 * 10,
                ..header(stream.key, stream.sequence, kind)
            },
            &body,
        );
        let new = self.streams[which].held.take().unwrap_or(new);
        let now = self.now;
        match self.journal().append(&new, now) {
            Ok(position) => {
                let record = self.note_appended(which, &new, position);
                self.log.push(record);
                self.take_events(false);
            }
            Err(JournalError::Full { .. }) => {
                self.streams[which].held = Some(new);
                let sealed = self.journal().sealed.len();
                assert_eq!(sealed, 0, "full only when nothing is left to evict");
            }
            Err(JournalError::BlockTooLong { .. }) => assert!(new.bytes().len() > 4096),
            Err(error) => {
                let Faults { write, create, .. } = self.faults;
                assert!(write + create > 0, "nothing was to fail: {error}");
                self.streams[which].held = Some(new);
            }
        }
    }

    fn note_appended(&mut self, which: usize, new: &PackedBlock, position: Position) -> Record {
        let Header { key, sequence, packet_count, end, .. } = *new.header();
        let (id, packets) = (self.next_id, u64::from(packet_count));
        self.next_id += 1;
        self.appended.insert((key, sequence), (id, new.bytes().clone()));
        let stream = &mut self.streams[which];
        stream.sequence += 1;
        stream.packets += packets;
        stream.bytes += packets * 10;
        if end {
            self.streams[which] = self.new_stream();
        }
        let (synced, doubtful, acknowledged) = (false, false, false);
        Record { id, key, packets, position, synced, doubtful, acknowledged }
    }

    /// Reads one block and compares; false at the end.
    fn read(&mut self) -> bool {
        let pool = self.pool.clone();
        let result = self.journal().read_next(&pool);
        self.take_events(true);
        match result {
            Ok(Some(entry)) => {
                self.compare(&entry);
                true
            }
            Ok(None) => {
                self.skipped(u64::MAX);
                false
            }
            Err(error) => {
                let full = matches!(error, JournalError::Full { .. });
                assert!(full || self.faults.write > 0, "nothing was to fail: {error}");
                false
            }
        }
    }

    fn compare(&mut self, entry: &Entry) {
        let Header { key, sequence, .. } = *entry.block.header();
        let Some((id, bytes)) = self.appended.get(&(key, sequence)) else {
            panic!("block {sequence} of {key} was never appended");
        };
        assert_eq!(*bytes, *entry.block.bytes(), "block {sequence} of {key} as it was appended");
        let id = *id;
        if entry.is_copy {
            assert_eq!(entry.block.header().kind, Kind::Description, "only descriptions are copied");
            return;
        }
        assert!(self.read_id.is_none_or(|last| last < id), "once, and in order");
        self.skipped(id);
        let known = self.log.iter().find(|record| record.id == id).expect("not evicted, not deleted");
        assert_eq!(known.position, entry.position);
        self.read_id = Some(id);
        self.read_next.push(entry.next);
    }

    /// All that lies between the last block that was read and `id` must have a reason.
    fn skipped(&self, id: u64) {
        for record in &self.log {
            let between = self.read_id.is_none_or(|last| record.id > last) && record.id < id;
            let reported = self.damaged.iter().any(|(from, to)| (*from..*to).contains(&record.position));
            let may_be_missing = record.acknowledged || reported;
            assert!(!between || may_be_missing, "block was left out: {record:?}, before {id}");
        }
    }

    fn acknowledge(&mut self) {
        if self.read_next.is_empty() {
            return;
        }
        let at = self.random.below(self.read_next.len() as u64) as usize;
        let through = self.read_next[at];
        self.read_next.drain(..=at);
        let now = self.now;
        self.journal().acknowledge(through, now);
        self.note_acknowledged(through);
    }

    fn note_acknowledged(&mut self, through: Position) {
        for record in &mut self.log {
            record.acknowledged |= record.position < through;
        }
    }

    fn sync(&mut self) {
        let synced = self.journal().sync();
        self.take_events(false);
        if synced.is_ok() {
            for record in &mut self.log {
                record.synced |= !record.doubtful;
            }
        }
    }

    fn tell(&mut self) {
        let evictions = self.journal().evictions().to_vec();
        if let Some(one) = evictions.first() {
            let now = self.now;
            self.journal().evictions_told(one.key, one.next_sequence, now);
            *self.told.entry(one.key).or_default() += one.packets;
        }
    }

    fn take_events(&mut self, reading: bool) {
        while let Some(event) = self.journal().poll_event() {
            match event {
                JournalEvent::Evicted { segment, streams, .. } => self.evicted(segment, &streams),
                JournalEvent::SyncFailed { from, to, .. } => {
                    assert!(self.faults.sync > 0, "no sync was to fail");
                    self.holes.push((from, to));
                    for record in &mut self.log {
                        record.doubtful |= (from..to).contains(&record.position);
                    }
                }
                JournalEvent::Damaged { segment, from, to, reason, .. } => {
                    assert!(reading, "only who reads meets damage");
                    let at = |offset| Position { segment, offset };
                    self.damaged.push((at(from), at(to)));
                    let hole = |(start, end): &(Position, Position)| *start < at(to) && at(from) < *end;
                    let known = self.faults.read > 0 || self.holes.iter().any(hole);
                    assert!(known, "damage out of nothing at {segment} {from}..{to}: {reason}");
                }
                JournalEvent::Trouble { text } => {
                    let Faults { write, sync, rename, create, remove, .. } = self.faults;
                    let full = text.contains("cursor") || text.contains("full");
                    assert!(full || write + sync + rename + create + remove > 0, "{text}");
                    self.trouble = true;
                }
            }
        }
    }

    fn evicted(&mut self, segment: u64, streams: &[super::Eviction]) {
        self.evictions_seen += 1;
        let mut expected: BTreeMap<StreamKey, u64> = BTreeMap::new();
        let here = |record: &Record| record.position.segment == segment;
        // A seal may speak of blocks that a failed sync has dropped: they are lost, and counted so.
        let mut certain = self.faults.read == 0;
        certain &= !self.holes.iter().any(|(from, _)| from.segment == segment);
        for record in self.log.iter().filter(|record| here(record) && !record.acknowledged) {
            *expected.entry(record.key).or_default() += record.packets;
            certain &= !record.doubtful;
        }
        let told: BTreeMap<StreamKey, u64> = streams.iter().map(|one| (one.key, one.packets)).collect();
        if certain {
            assert_eq!(told, expected, "evicted with segment {segment}");
        }
        for (key, packets) in told {
            *self.evicted.entry(key).or_default() += packets;
        }
        let left = self.log.iter().filter(|record| !record.acknowledged);
        let oldest = left.map(|record| record.position.segment).min();
        assert!(oldest.is_none_or(|oldest| oldest >= segment), "the oldest first");
        self.forget_evicted(segment);
        self.read_next.retain(|position| position.segment > segment);
    }

    fn reopen(&mut self) {
        let journal = self.journal.take().expect("open");
        // After a crash of the host what is read is on the disk. Otherwise what a failed sync has
        // dropped may still be in memory, and no process that comes later is told.
        let mut settled = false;
        match self.random.below(3) {
            0 => {
                self.journal = Some(journal);
                self.sync();
                let journal = self.journal.take().expect("open");
                // What a full disk evicts now is told after the restart, which the model cannot follow.
                self.fs.set_capacity(u64::MAX);
                if journal.close().is_ok() {
                    for record in &mut self.log {
                        record.synced |= !record.doubtful;
                    }
                }
                self.fs = self.fs.kill();
            }
            1 => self.fs = self.fs.kill(),
            _ => {
                self.fs = self.fs.crash();
                settled = true;
            }
        }
        // Opening may fail when the disk does. It must not make anything worse.
        let mut doubtful = false;
        if self.random.chance(40) {
            self.fs.set_faults(Faults { read: 10, write: 10, sync: 10, rename: 10, create: 10, remove: 0 });
            let opened = Journal::open_tuned(&self.config, self.fs.clone(), self.now, self.tuning);
            // What was evicted and not told is lost with a cursor file that cannot be read.
            if let Ok((mut journal, found)) = opened {
                self.trouble |= found.warnings.iter().any(|text| text.contains("cursor"));
                self.evicted_at_open(&mut journal, true);
            }
            settled = self.random.chance(50);
            doubtful = !settled;
            self.fs = if settled { self.fs.crash() } else { self.fs.kill() };
        }
        self.fs.set_faults(Faults::default());
        self.faults = Faults::default();
        self.fs.set_capacity(u64::MAX);
        let (journal, recovered) = Journal::open_tuned(&self.config, self.fs.clone(), self.now, self.tuning)
            .expect("opens, whatever a crash tore");
        self.journal = Some(journal);
        self.read_all(&recovered, settled, doubtful);
    }

    /// What is there after a restart: everything that has to be, in order, and nothing else.
    fn read_all(&mut self, recovered: &Recovered, settled: bool, doubtful: bool) {
        let pool = self.pool.clone();
        let mut found: Vec<(u64, Position)> = Vec::new();
        self.holes.clear();
        let mut journal = self.journal.take().expect("open");
        self.evicted_at_open(&mut journal, false);
        self.journal = Some(journal);
        while let Some(entry) = self.journal().read_next(&pool).expect("nothing fails") {
            let Header { key, sequence, .. } = *entry.block.header();
            // A write may fail when all is written, and a crash keeps what nobody cut back.
            let offered = |stream: &Stream| {
                stream.held.as_ref().is_some_and(|held| held.bytes() == entry.block.bytes())
            };
            if let Some(which) = self.streams.iter().position(offered) {
                self.streams[which].held = None;
                let record = self.note_appended(which, &entry.block, entry.position);
                self.log.push(record);
            }
            let (id, bytes) = self.appended.get(&(key, sequence)).expect("was appended");
            assert_eq!(*bytes, *entry.block.bytes(), "as it was appended");
            if !entry.is_copy {
                assert!(found.last().is_none_or(|(last, _)| last < id), "once, and in order");
                found.push((*id, entry.position));
            }
        }
        while let Some(event) = self.journal().poll_event() {
            match event {
                JournalEvent::Damaged { segment, from, to, .. } => {
                    let at = |offset| Position { segment, offset };
                    self.holes.push((at(from), at(to)));
                }
                other => panic!("{other:?}"),
            }
        }
        for (id, _) in &found {
            let Header { key, sequence, .. } = self.header_of(*id);
            let known = recovered.streams.iter().find(|stream| stream.key == key);
            assert!(known.is_some_and(|known| known.next_sequence > sequence), "{key} is known");
        }
        for record in &self.log {
            let is_there = found.iter().any(|(id, _)| *id == record.id);
            let may_be_missing = record.acknowledged || !record.synced;
            assert!(is_there || may_be_missing, "synced block was lost: {record:?}, {recovered:?}");
            if !is_there && !record.acknowledged {
                self.cut += record.packets;
            }
        }
        let mut log = Vec::new();
        for (id, position) in found {
            match self.log.iter().find(|record| record.id == id) {
                Some(record) => {
                    self.repeats += u64::from(record.acknowledged);
                    let doubtful = !settled && (record.doubtful || (doubtful && !record.synced));
                    let (synced, acknowledged) = (!doubtful, false);
                    log.push(Record { position, synced, doubtful, acknowledged, ..record.clone() });
                }
                // Deleted, and not acknowledged durably: it is there again. What was evicted is not,
                // unless the count could not be written.
                None => {
                    let back = self.evicted_ids.contains(&id);
                    assert!(
                        !back || self.any_trouble || self.trouble,
                        "block {id} was evicted and counted, and is back"
                    );
                    let Header { key, packet_count, .. } = self.header_of(id);
                    let packets = u64::from(packet_count);
                    let (synced, doubtful, acknowledged) = (false, true, false);
                    log.push(Record { id, key, packets, position, synced, doubtful, acknowledged });
                    self.repeats += 1;
                }
            }
        }
        self.log = log;
        // What was evicted and not told is told again; what was told may be, too.
        for (key, evicted) in &self.evicted {
            let again: u64 =
                recovered.evictions.iter().filter(|one| one.key == *key).map(|one| one.packets).sum();
            let told = self.told.get(key).copied().unwrap_or(0);
            assert!(
                self.trouble || again + told >= *evicted,
                "{key}: {evicted} evicted, {told} told, {again} known after a restart"
            );
        }
        self.evicted = recovered.evictions.iter().map(|one| (one.key, one.packets)).collect();
        self.told.clear();
        self.any_trouble |= self.trouble;
        self.trouble = false;
        self.journal().rewind();
        self.read_id = None;
        self.read_next.clear();
        self.damaged.clear();
    }

    /// Deleted segments may be there again after a crash, and too much then.
    fn evicted_at_open(&mut self, journal: &mut Journal<SimFs>, faults: bool) {
        while let Some(event) = journal.poll_event() {
            let JournalEvent::Evicted { segment, streams, .. } = event else {
                assert!(faults, "{event:?}");
                self.trouble = true;
                continue;
            };
            let here = |record: &&Record| record.position.segment == segment;
            let certain = |record: &&Record| record.synced && !record.acknowledged;
            let expected: u64 =
                self.log.iter().filter(here).filter(certain).map(|record| record.packets).sum();
            let told: u64 = streams.iter().map(|one| one.packets).sum();
            assert!(faults || told >= expected, "evicted with segment {segment}");
            self.forget_evicted(segment);
        }
    }

    fn forget_evicted(&mut self, segment: u64) {
        let gone = self.log.iter().filter(|record| record.position.segment == segment);
        self.evicted_ids.extend(gone.map(|record| record.id));
        self.log.retain(|record| record.position.segment != segment);
    }

    fn header_of(&self, id: u64) -> Header {
        let (_, (_, bytes)) = self.appended.iter().find(|(_, (one, _))| *one == id).expect("was appended");
        Header::parse(bytes).expect("is a block").0
    }

    /// Everything there is, at the end, in one pass.
    fn finish(&mut self) {
        self.faults = Faults::default();
        self.fs.set_faults(self.faults);
        self.fs.set_capacity(u64::MAX);
        self.journal().rewind();
        self.read_id = None;
        self.read_next.clear();
        self.damaged.clear();
        while self.read() {}
        let untold: u64 = self.journal().evictions().iter().map(|one| one.packets).sum();
        let told: u64 = self.told.values().sum();
        assert_eq!(untold + told, self.evicted.values().sum::<u64>(), "evictions add up");
    }
}

fn run(seed: u64) -> (u64, u64, u64) {
    let mut model = Model::new(seed);
    for _ in 0..150 {
        model.step();
    }
    model.finish();
    (model.evictions_seen, model.cut, model.repeats)
}

#[test]
fn random_operations_agree_with_the_model() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (first, count) = match number("RINGCAST_JOURNAL_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("RINGCAST_JOURNAL_SEEDS").unwrap_or(400)),
    };
    let (mut evictions, mut cut, mut repeats) = (0, 0, 0);
    for seed in first..first + count {
        let result = std::panic::catch_unwind(|| run(seed));
        match result {
            Ok(counts) => {
                evictions += counts.0;
                cut += counts.1;
                repeats += counts.2;
            }
            Err(cause) => {
                eprintln!("RINGCAST_JOURNAL_SEED={seed} shows it again");
                std::panic::resume_unwind(cause);
            }
        }
    }
    println!("{count} seeds: {evictions} evictions, {cut} packets cut by crashes, {repeats} repeats");
    // The test is worth something only while all of this happens in it.
    assert!(count < 100 || (evictions > 0 && cut > 0 && repeats > 0));
}
