//! A simulated spool: it takes its time, may fail, throws the oldest away when it is full, and
//! outlives the run that wrote it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use wire::block::{Kind, PackedBlock, StreamKey};
use wire::uplink::{Evicted, Loaded, SpoolRequest, Uplink};

use crate::rng::Rng;

/// Blocks of a segment: so many go at a time.
const SEGMENT_BLOCKS: u64 = 8;

pub struct Spool {
    cap_bytes: usize,
    bytes: usize,
    /// Blocks from `first` on; those before were evicted or acknowledged.
    blocks: VecDeque<PackedBlock>,
    first: u64,
    /// Descriptions by stream, with their place.
    descriptions: BTreeMap<StreamKey, Vec<(u64, PackedBlock)>>,
    /// What the file of the cursor says; it lags behind.
    persisted: u64,
    acknowledged: u64,
    read_next: u64,
    /// Descriptions of the place where reading began, to be read first.
    copies: VecDeque<PackedBlock>,
    /// Places of blocks that were read in this run and are not acknowledged.
    handed: VecDeque<u64>,
    handed_before: u64,
    requests: VecDeque<SpoolRequest>,
    has_failed: bool,
    pub is_failing: bool,
    /// Not told yet: what was thrown away.
    evicted: Vec<Evicted>,
    /// Streams whose end was thrown away.
    pub evicted_ends: BTreeSet<StreamKey>,
}

impl Spool {
    pub fn new(cap_bytes: usize) -> Self {
        Self {
            cap_bytes,
            bytes: 0,
            blocks: VecDeque::new(),
            first: 0,
            descriptions: BTreeMap::new(),
            persisted: 0,
            acknowledged: 0,
            read_next: 0,
            copies: VecDeque::new(),
            handed: VecDeque::new(),
            handed_before: 0,
            requests: VecDeque::new(),
            has_failed: false,
            is_failing: false,
            evicted: Vec::new(),
            evicted_ends: BTreeSet::new(),
        }
    }

    /// The run was killed: what was asked is lost, and the next one begins at the persisted cursor.
    pub fn restart(&mut self) {
        self.requests.clear();
        self.has_failed = false;
        self.handed.clear();
        self.handed_before = 0;
        self.read_next = self.persisted.max(self.first);
        self.acknowledged = self.read_next;
        self.begin_reading();
    }

    fn begin_reading(&mut self) {
        let at = self.read_next;
        let before = |list: &Vec<(u64, PackedBlock)>| {
            list.iter().rev().find(|(place, _)| *place < at).map(|(_, block)| block.clone())
        };
        self.copies = self.descriptions.values().filter_map(before).collect();
    }

    /// Takes requests, and serves some.
    pub fn serve(&mut self, uplink: &mut Uplink, rng: &mut Rng) {
        while let Some(request) = uplink.poll_spool() {
            self.requests.push_back(request);
        }
        for _ in 0..rng.range(0, 12) {
            let Some(request) = self.requests.pop_front() else { break };
            match request {
                SpoolRequest::Append(block) => {
                    self.has_failed |= self.is_failing;
                    if !self.has_failed {
                        self.append(block.plain());
                    }
                    uplink.handle_appended(!self.has_failed);
                }
                SpoolRequest::Resume => self.has_failed = false,
                SpoolRequest::Acknowledge(count) => self.acknowledge(count, rng),
                SpoolRequest::Read => {
                    let loaded = if rng.one_in(20) { Loaded::Failed } else { self.read() };
                    uplink.handle_loaded(loaded);
                }
            }
        }
        for evicted in self.evicted.drain(..) {
            uplink.handle_evicted(evicted);
        }
    }

    fn append(&mut self, block: PackedBlock) {
        let place = self.first + self.blocks.len() as u64;
        self.bytes += block.bytes().len();
        if block.header().kind == Kind::Description {
            self.descriptions.entry(block.header().key).or_default().push((place, block.clone()));
        }
        self.blocks.push_back(block);
        while self.bytes > self.cap_bytes && self.blocks.len() as u64 > SEGMENT_BLOCKS {
            self.evict();
        }
    }

    /// Throws a segment away; what has been read of it is in somebody's memory, or done.
    fn evict(&mut self) {
        let mut lost: Vec<Evicted> = Vec::new();
        for _ in 0..SEGMENT_BLOCKS {
            let Some(block) = self.blocks.pop_front() else { break };
            self.bytes -= block.bytes().len();
            self.first += 1;
            if self.first <= self.read_next {
                continue;
            }
            let (begin, end, has_end) = (block.begin(), block.end(), block.header().end);
            match lost.iter_mut().find(|one| one.end == begin) {
                Some(one) => (one.end, one.has_end) = (end, has_end),
                None => lost.push(Evicted { begin, end, has_end }),
            }
        }
        self.evicted_ends.extend(lost.iter().filter(|one| one.has_end).map(|one| one.begin.key));
        self.evicted.append(&mut lost);
        if self.first > self.read_next {
            self.read_next = self.first;
            self.begin_reading();
        }
        self.acknowledged = self.acknowledged.max(self.first);
        self.persisted = self.persisted.max(self.first);
    }

    fn read(&mut self) -> Loaded {
        if let Some(block) = self.copies.pop_front() {
            return Loaded::Block { block, is_copy: true };
        }
        let at = (self.read_next - self.first) as usize;
        match self.blocks.get(at) {
            Some(block) => {
                self.handed.push_back(self.read_next);
                self.read_next += 1;
                Loaded::Block { block: block.clone(), is_copy: false }
            }
            None => Loaded::End,
        }
    }

    fn acknowledge(&mut self, count: u64, rng: &mut Rng) {
        while self.handed_before < count {
            let Some(place) = self.handed.pop_front() else { break };
            self.handed_before += 1;
            self.acknowledged = self.acknowledged.max(place + 1);
        }
        if rng.one_in(3) {
            self.persisted = self.persisted.max(self.acknowledged);
        }
        while self.first + SEGMENT_BLOCKS <= self.persisted
            && let Some(block) = self.blocks.pop_front()
        {
            self.bytes -= block.bytes().len();
            self.first += 1;
        }
    }

    pub fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }
}
