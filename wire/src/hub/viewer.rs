//! One viewer of a hub: what it joined, what waits for it, what it is skipping.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::Bytes;

use super::Gap;
use super::selection::Matcher;
use crate::block::{Header, Kind, PackedBlock, StreamKey};
use crate::ledger::Stage;
use crate::message::StreamStatus;

/// A block on its way to one viewer.
#[derive(Clone, Debug)]
pub(super) struct Delivery {
    /// The shared block.
    pub bytes: Bytes,
    key: StreamKey,
    /// What it settles; a replayed description settles nothing.
    settles: Option<(StreamKey, u64)>,
    gap: Gap,
}

#[derive(Debug)]
pub(super) struct Viewer {
    /// `None`: another worker.
    matcher: Option<Matcher>,
    marks: bool,
    queue_bytes_max: usize,
    queue: VecDeque<Delivery>,
    queued_bytes: usize,
    /// Handed to the connection, not yet to TCP.
    in_flight: VecDeque<Option<(StreamKey, u64)>>,
    data_sent: u64,
    joined: HashSet<StreamKey>,
    /// What is being skipped, by stream. An empty list: a replayed description was dropped.
    skips: HashMap<StreamKey, Vec<(Gap, Stage)>>,
    /// Streams given up whose queued blocks go first, and why.
    gone: Vec<(StreamKey, String)>,
    /// Control messages for this peer that the hub has not handed out yet.
    pub controls_due: usize,
    worker_takers: (u32, bool),
}

impl Viewer {
    pub fn new(matcher: Matcher, marks: bool, queue_bytes_max: usize) -> Self {
        Self {
            matcher: Some(matcher),
            marks,
            queue_bytes_max,
            queue: VecDeque::new(),
            queued_bytes: 0,
            in_flight: VecDeque::new(),
            data_sent: 0,
            joined: HashSet::new(),
            skips: HashMap::new(),
            gone: Vec::new(),
            controls_due: 0,
            worker_takers: (0, false),
        }
    }

    /// Another worker, which takes everything that is not from a worker.
    pub fn worker(queue_bytes_max: usize) -> Self {
        let everything = Matcher::new(&crate::message::Selection::default());
        let mut viewer = match everything {
            Ok(matcher) => Self::new(matcher, true, queue_bytes_max),
            Err(error) => unreachable!("an empty selection has no glob to refuse: {error}"),
        };
        viewer.matcher = None;
        viewer
    }

    pub fn is_worker(&self) -> bool {
        self.matcher.is_none()
    }

    pub fn wants(&self, status: &StreamStatus, from_worker: bool) -> bool {
        match &self.matcher {
            Some(matcher) => matcher.matches(status),
            None => !from_worker,
        }
    }

    /// `false` if it had joined before.
    pub fn join(&mut self, key: StreamKey) -> bool {
        self.joined.insert(key)
    }

    pub fn leave(&mut self, key: StreamKey) {
        self.joined.remove(&key);
        self.skips.remove(&key);
        self.gone.retain(|(of, _)| *of != key);
    }

    pub fn joined(&self) -> Vec<StreamKey> {
        self.joined.iter().copied().collect()
    }

    pub fn takes_marks(&self) -> bool {
        self.marks
    }

    /// Nothing waits, here or in the connection, and nothing is being skipped. Between workers
    /// nothing overtakes what was handed over.
    pub fn is_idle(&self) -> bool {
        let has_sent = self.is_worker() || self.in_flight.is_empty();
        self.queue.is_empty() && self.skips.is_empty() && has_sent
    }

    /// Nothing waits here.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Streams being skipped.
    pub fn skipped(&self) -> Vec<StreamKey> {
        let mut keys: Vec<_> = self.skips.keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    /// Whether a control message to this peer would overtake blocks of a stream.
    fn has_unsent(&self, key: StreamKey) -> bool {
        let of_stream = |settles: &Option<(StreamKey, u64)>| settles.is_some_and(|(of, _)| of == key);
        self.queue.iter().any(|delivery| of_stream(&delivery.settles))
            || (!self.is_worker() && self.in_flight.iter().any(of_stream))
    }

    /// A stream is given up: told once its blocks have gone.
    pub fn give_up(&mut self, key: StreamKey, reason: String) {
        self.gone.push((key, reason));
    }

    /// A stream is live again.
    pub fn revive(&mut self, key: StreamKey) {
        self.gone.retain(|(of, _)| *of != key);
    }

    /// Streams given up of which nothing waits any more.
    pub fn take_gone(&mut self) -> Vec<(StreamKey, String)> {
        let (waiting, gone) =
            self.gone.drain(..).collect::<Vec<_>>().into_iter().partition(|(key, _)| self.has_unsent(*key));
        self.gone = waiting;
        gone
    }

    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Viewers that this one stands for, and whether they want marks.
    pub fn takers(&self) -> (u32, bool) {
        if self.is_worker() { self.worker_takers } else { (1, self.marks) }
    }

    pub fn set_worker_takers(&mut self, viewers: u32, marks: bool) {
        self.worker_takers = (viewers, marks);
    }

    /// Whether the next block of a stream may be queued. A stream that is being skipped goes on
    /// only when the queue is half empty, so that a viewer at its limit loses whole runs rather
    /// than every other block. Descriptions, reports and the end of a stream, which are small and
    /// explain the rest, have as much room again.
    pub fn has_room(&self, header: &Header) -> bool {
        let limit = match header.kind {
            Kind::Packets if self.skips.contains_key(&header.key) => self.queue_bytes_max / 2,
            Kind::Packets => self.queue_bytes_max,
            Kind::Description | Kind::Report => self.queue_bytes_max.saturating_mul(2),
        };
        self.queued_bytes <= limit
    }

    pub fn skip(&mut self, header: &Header) {
        let stage = if self.is_worker() { Stage::WorkerQueue } else { Stage::ViewerQueue };
        self.add_skip(header.key, Gap::of(header), stage);
    }

    fn add_skip(&mut self, key: StreamKey, more: Gap, stage: Stage) {
        let gaps = self.skips.entry(key).or_default();
        match gaps.iter_mut().find(|(_, of)| *of == stage) {
            Some((gap, _)) => gap.add(more),
            None => gaps.push((more, stage)),
        }
    }

    /// The stream goes on: what was skipped until now.
    pub fn end_skip(&mut self, key: StreamKey) -> Option<Vec<(Gap, Stage)>> {
        self.skips.remove(&key)
    }

    /// Queues a block.
    pub fn push(&mut self, block: &PackedBlock) {
        let header = block.header();
        let gap = Gap::of(header);
        let settles = Some((header.key, header.sequence));
        self.queued_bytes += block.bytes().len();
        self.queue.push_back(Delivery { bytes: block.bytes().clone(), key: header.key, settles, gap });
    }

    /// Queues a description again, which settles nothing.
    pub fn push_replay(&mut self, key: StreamKey, bytes: Bytes) {
        self.queued_bytes += bytes.len();
        self.queue.push_back(Delivery { bytes, key, settles: None, gap: Gap::default() });
    }

    pub fn pop(&mut self) -> Option<Delivery> {
        let delivery = self.queue.pop_front()?;
        self.queued_bytes -= delivery.bytes.len();
        self.in_flight.push_back(delivery.settles);
        Some(delivery)
    }

    /// `data_sent` messages have been handed to TCP: what they settle.
    pub fn settle(&mut self, data_sent: u64) -> Vec<(StreamKey, u64)> {
        let mut settled = Vec::new();
        while self.data_sent < data_sent {
            let Some(one) = self.in_flight.pop_front() else { break };
            self.data_sent += 1;
            settled.extend(one);
        }
        settled
    }

    /// A worker has settled its blocks of `key` below `through`.
    pub fn settle_stream(&mut self, key: StreamKey, through: u64) -> Vec<(StreamKey, u64)> {
        let is_settled =
            |one: &Option<(StreamKey, u64)>| one.is_none_or(|(of, sequence)| of == key && sequence < through);
        let (settled, waiting): (Vec<_>, Vec<_>) = self.in_flight.drain(..).partition(is_settled);
        self.in_flight = waiting.into();
        settled.into_iter().flatten().collect()
    }

    /// Everything this viewer still owes: it is leaving.
    pub fn take_unsettled(&mut self) -> Vec<(StreamKey, u64)> {
        let queued = self.queue.drain(..).filter_map(|delivery| delivery.settles);
        self.queued_bytes = 0;
        self.in_flight.drain(..).flatten().chain(queued).collect()
    }

    /// Drops what is queued and skips its streams from there: stream, sequence and packets of each.
    pub fn drop_queue(&mut self, stage: Stage) -> Vec<(StreamKey, u64, u64)> {
        let mut dropped = Vec::new();
        for delivery in std::mem::take(&mut self.queue) {
            let Some((key, sequence)) = delivery.settles else {
                self.skips.entry(delivery.key).or_default(); // it is replayed before the next block
                continue;
            };
            dropped.push((key, sequence, delivery.gap.packets));
            self.add_skip(key, delivery.gap, stage);
        }
        self.queued_bytes = 0;
        dropped
    }
}
