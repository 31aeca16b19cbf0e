//! One viewer of a hub: what it joined, what waits for it, what it is skipping.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::Bytes;

use super::selection::Matcher;
use super::{Delivered, Gap, NOTICES_MAX, ViewerFigures};
use crate::block::{Epoch, Header, Kind, PackedBlock, StreamKey};
use crate::lanes::Lanes;
use crate::ledger::Stage;
use crate::message::{Control, Cursor, Selection, StreamStatus};

/// Entries that an empty queue keeps room for while nothing happens.
const QUEUE_KEPT: usize = 16;
/// Room beyond this is given back as soon as a queue is empty: it is more than live blocks need.
const QUEUE_LARGE: usize = 256;

/// A block on its way to one viewer.
#[derive(Clone, Debug)]
pub(super) struct Delivery {
    /// The shared block.
    pub bytes: Bytes,
    key: StreamKey,
    /// What it settles; a replayed description settles nothing.
    settles: Option<u64>,
    pub gap: Gap,
    /// It comes out of the recent log.
    pub is_recent: bool,
    /// A description out of its place.
    pub is_replay: bool,
    /// When it was queued, by the hub's clock.
    since_ms: u64,
}

/// A block with a viewer's connection, which the viewer has not said to have.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    key: StreamKey,
    settles: Option<u64>,
    since_ms: u64,
}

/// What a viewer that came back misses.
#[derive(Clone, Copy, Debug)]
enum Missing {
    Nothing,
    /// There is more to be handed to it.
    More,
    /// It has all when so many data messages of this connection have arrived.
    Until(u64),
}

/// Where a viewer is in a stream that it reads out of the recent log.
#[derive(Clone, Debug)]
pub(super) struct Behind {
    pub place: Cursor,
    /// What it was told that does not come, behind the place.
    pub told: Vec<Gap>,
    /// It may not have had the description yet, or there was one in what is missing before the place.
    pub misses_description: bool,
}

impl Behind {
    /// What lies between its place and `to` and was not told.
    pub fn untold(&self, to: &Cursor) -> Option<Gap> {
        let mut gap = Gap::between(&self.place, to);
        for told in self.told.iter().filter(|told| told.next_sequence <= to.next_sequence) {
            gap.packets = gap.packets.saturating_sub(told.packets);
            gap.bytes = gap.bytes.saturating_sub(told.bytes);
        }
        (gap.packets > 0).then_some(gap)
    }

    /// It is told that blocks do not come; `false` if it was told before.
    pub fn tell(&mut self, notice: &Control) -> bool {
        let Some(gap) = Gap::told(notice) else { return true };
        let is_new = gap.next_sequence > self.place.next_sequence && !self.told.contains(&gap);
        if is_new && self.told.len() < NOTICES_MAX {
            self.told.push(gap);
        }
        is_new
    }

    /// It goes on at a place.
    pub fn go_on(&mut self, at: Cursor) {
        self.place = at;
        self.told.retain(|told| told.next_sequence > at.next_sequence);
    }
}

#[derive(Debug)]
pub(super) struct Viewer {
    /// Its run: the same after a cut.
    pub run: Epoch,
    /// When it came, until it is certain that it knows the streams of then.
    pub arrived_at: Option<u64>,
    /// `None`: another worker.
    matcher: Option<Matcher>,
    marks: bool,
    /// It wants all backlog.
    backlog: bool,
    queue_bytes_max: usize,
    queue: VecDeque<Delivery>,
    queued_bytes: usize,
    /// Handed to the connection, and not arrived as far as the viewer has said.
    in_flight: VecDeque<InFlight>,
    /// It does not say what has arrived, and is to be closed.
    pub is_mute: bool,
    /// Data messages that have arrived.
    arrived: u64,
    /// Data messages handed to TCP.
    pub data_sent: u64,
    /// What it was given.
    pub delivered: Delivered,
    /// Packets that were skipped for it.
    skipped_packets: u64,
    joined: HashSet<StreamKey>,
    /// Where it was in the streams it had joined before.
    pub cursors: HashMap<StreamKey, Cursor>,
    /// Streams that it reads out of the recent log, and where it is in them.
    pub behind: HashMap<StreamKey, Behind>,
    /// Where it is in the recent log.
    pub recent_at: u64,
    /// It misses something, or has it once so many data messages have arrived.
    missing: Missing,
    /// What is live goes before what it missed.
    pub lanes: Lanes,
    /// What is being skipped, by stream. An empty list: a replayed description was dropped.
    skips: HashMap<StreamKey, Vec<(Gap, Stage)>>,
    /// Streams given up whose queued blocks go first, and why.
    gone: Vec<(StreamKey, String)>,
    /// Control messages for this peer that the hub has not handed out yet.
    pub controls_due: usize,
    worker_takers: (u32, bool),
}

impl Viewer {
    pub fn new(run: Epoch, matcher: Matcher, selection: &Selection, queue_bytes_max: usize) -> Self {
        Self {
            run,
            arrived_at: None,
            matcher: Some(matcher),
            marks: selection.marks,
            backlog: selection.backlog,
            queue_bytes_max,
            queue: VecDeque::new(),
            queued_bytes: 0,
            in_flight: VecDeque::new(),
            is_mute: false,
            arrived: 0,
            data_sent: 0,
            delivered: Delivered::default(),
            skipped_packets: 0,
            joined: HashSet::new(),
            cursors: HashMap::new(),
            behind: HashMap::new(),
            recent_at: 0,
            missing: Missing::Nothing,
            lanes: Lanes::default(),
            skips: HashMap::new(),
            gone: Vec::new(),
            controls_due: 0,
            worker_takers: (0, false),
        }
    }

    /// Another worker, which takes everything that is not from a worker.
    pub fn worker(queue_bytes_max: usize) -> Self {
        let everything = Selection { marks: true, backlog: true, ..Selection::default() };
        let mut viewer = match Matcher::new(&everything) {
            Ok(matcher) => Self::new(Epoch::default(), matcher, &everything, queue_bytes_max),
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

    /// It had joined a stream before, and goes on from there: out of the recent log, whose oldest
    /// entry has this number, if it `is_behind`; else it has more than is here.
    pub fn come_back(&mut self, cursor: Cursor, is_behind: bool, first_number: u64) {
        if is_behind {
            self.recent_at = first_number;
            self.behind
                .insert(cursor.key, Behind { place: cursor, told: Vec::new(), misses_description: true });
            self.cursors.insert(cursor.key, Cursor { next_sequence: 0, ..cursor });
        }
    }

    /// Whether it wants all backlog, or has this stream or had it before.
    pub fn has_known(&self, key: StreamKey) -> bool {
        self.backlog || self.joined.contains(&key) || self.cursors.contains_key(&key)
    }

    /// Whether it had streams of this run before it came back.
    pub fn knows_epoch(&self, epoch: Epoch) -> bool {
        self.cursors.keys().any(|key| key.epoch == epoch)
    }

    /// Whether it had this block before it came back.
    pub fn has_already(&self, header: &Header) -> bool {
        !self.cursors.is_empty()
            && self.cursors.get(&header.key).is_some_and(|cursor| header.sequence < cursor.next_sequence)
    }

    /// It misses something from now on; `false` if it did before.
    pub fn miss(&mut self) -> bool {
        !matches!(std::mem::replace(&mut self.missing, Missing::More), Missing::More | Missing::Until(_))
    }

    /// It will have all that it misses, or know what does not come, when all has arrived that is on its
    /// way and `more` data messages.
    pub fn misses_until(&mut self, more: usize) {
        if matches!(self.missing, Missing::More) && self.behind.is_empty() && self.skips.is_empty() {
            let messages = self.in_flight.len() + self.queue.len() + more;
            self.missing = Missing::Until(self.arrived + messages as u64);
        }
    }

    /// Whether it misses something.
    pub fn misses_some(&self) -> bool {
        !matches!(self.missing, Missing::Nothing)
    }

    /// `true` once: all that it missed has arrived.
    pub fn has_caught_up(&mut self) -> bool {
        let has = matches!(self.missing, Missing::Until(messages) if messages <= self.arrived);
        if has {
            self.missing = Missing::Nothing;
        }
        has
    }

    pub fn leave(&mut self, key: StreamKey) {
        self.joined.remove(&key);
        self.behind.remove(&key);
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
        let has_sent = self.is_worker() || self.unsent().next().is_none();
        self.queue.is_empty() && self.skips.is_empty() && self.behind.is_empty() && has_sent
    }

    /// What was handed to the connection and not yet to TCP.
    fn unsent(&self) -> impl Iterator<Item = &InFlight> {
        self.in_flight.iter().skip(self.data_sent.saturating_sub(self.arrived) as usize)
    }

    /// Data messages that have not arrived as far as it has said.
    pub fn in_flight_count(&self) -> usize {
        self.in_flight.len()
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
        self.queue.iter().any(|delivery| delivery.key == key)
            || self.behind.contains_key(&key)
            || (!self.is_worker() && self.unsent().any(|one| one.key == key))
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

    /// What those who watch over the relay are told of it.
    pub fn figures(&self, now_ms: u64) -> ViewerFigures {
        let oldest = self.in_flight.front().map(|one| one.since_ms);
        let oldest = oldest.or_else(|| self.queue.front().map(|one| one.since_ms));
        ViewerFigures {
            queued_bytes: self.queued_bytes,
            queued_blocks: self.queue.len(),
            lag_ms: oldest.map_or(0, |since_ms| now_ms.saturating_sub(since_ms)),
            sent_packets: self.delivered.packets,
            skipped_packets: self.skipped_packets,
        }
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

    /// Skips a block: at which stage it is lost for whoever is there.
    pub fn skip(&mut self, header: &Header) -> Stage {
        let stage = if self.is_worker() { Stage::WorkerQueue } else { Stage::ViewerQueue };
        self.add_skip(header.key, Gap::of(header), stage);
        stage
    }

    fn add_skip(&mut self, key: StreamKey, more: Gap, stage: Stage) {
        self.skipped_packets += more.packets;
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

    /// Queues a block that comes now.
    pub fn push(&mut self, block: &PackedBlock, since_ms: u64) {
        let header = block.header();
        let gap = Gap::of(header);
        let settles = Some(header.sequence);
        self.queued_bytes += block.bytes().len();
        let (bytes, key) = (block.bytes().clone(), header.key);
        let (is_recent, is_replay) = (false, false);
        self.queue.push_back(Delivery { bytes, key, settles, gap, is_recent, is_replay, since_ms });
    }

    /// Queues a block again, which settles nothing: a description, wherever it stood in its stream, or
    /// in its place the end of a stream.
    pub fn push_again(&mut self, key: StreamKey, bytes: Bytes, is_replay: bool, since_ms: u64) {
        self.queued_bytes += bytes.len();
        let (settles, gap, is_recent) = (None, Gap::default(), false);
        self.queue.push_back(Delivery { bytes, key, settles, gap, is_recent, is_replay, since_ms });
    }

    /// There is no room for a description out of its place: it goes before the stream's next block.
    pub fn owe_description(&mut self, key: StreamKey) {
        self.skips.entry(key).or_default();
    }

    pub fn pop(&mut self) -> Option<Delivery> {
        let delivery = self.queue.pop_front()?;
        self.queued_bytes -= delivery.bytes.len();
        let Delivery { key, settles, since_ms, .. } = delivery;
        self.in_flight.push_back(InFlight { key, settles, since_ms });
        shrink_empty(&mut self.queue, QUEUE_LARGE);
        Some(delivery)
    }

    /// A block out of the recent log, or without a header to count a description again: it settles
    /// nothing.
    pub fn deliver_recent(
        &mut self,
        bytes: Bytes,
        key: StreamKey,
        of: Option<&Header>,
        since_ms: u64,
    ) -> Delivery {
        let settles = None;
        self.in_flight.push_back(InFlight { key, settles, since_ms });
        let (gap, is_replay) = (of.map(Gap::of).unwrap_or_default(), of.is_none());
        Delivery { bytes, key, settles, gap, is_recent: true, is_replay, since_ms }
    }

    /// So many messages have arrived: what they settle.
    pub fn settle(&mut self, messages: u64) -> Vec<(StreamKey, u64)> {
        let mut settled = Vec::new();
        while self.arrived < messages {
            let Some(one) = self.in_flight.pop_front() else { break };
            self.arrived += 1;
            settled.extend(one.settles.map(|sequence| (one.key, sequence)));
        }
        shrink_empty(&mut self.in_flight, QUEUE_LARGE);
        settled
    }

    /// A worker has settled its blocks of `key` below `through`.
    pub fn settle_stream(&mut self, key: StreamKey, through: u64) -> Vec<(StreamKey, u64)> {
        let is_settled =
            |one: &InFlight| one.settles.is_none_or(|sequence| one.key == key && sequence < through);
        let (settled, waiting): (Vec<_>, Vec<_>) = self.in_flight.drain(..).partition(is_settled);
        self.in_flight = waiting.into();
        settled.into_iter().filter_map(|one| Some((one.key, one.settles?))).collect()
    }

    /// Gives back the room of queues in which nothing waits: a viewer that joins a thousand streams has
    /// as many descriptions to come, once.
    pub fn release(&mut self) {
        shrink_empty(&mut self.queue, QUEUE_KEPT);
        shrink_empty(&mut self.in_flight, QUEUE_KEPT);
    }

    /// Everything this viewer still owes: it is leaving.
    pub fn take_unsettled(&mut self) -> Vec<(StreamKey, u64)> {
        let queued = self.queue.drain(..).map(|delivery| (delivery.key, delivery.settles));
        self.queued_bytes = 0;
        let owed = self.in_flight.drain(..).map(|one| (one.key, one.settles)).chain(queued);
        owed.filter_map(|(key, settles)| Some((key, settles?))).collect()
    }

    /// Drops what is queued and skips its streams from there: stream, sequence and packets of each.
    pub fn drop_queue(&mut self, stage: Stage) -> Vec<(StreamKey, u64, u64)> {
        let mut dropped = Vec::new();
        for delivery in std::mem::take(&mut self.queue) {
            let key = delivery.key;
            let Some(sequence) = delivery.settles else {
                self.owe_description(key);
                continue;
            };
            dropped.push((key, sequence, delivery.gap.packets));
            self.add_skip(key, delivery.gap, stage);
        }
        self.queued_bytes = 0;
        dropped
    }
}

/// Leaves an empty queue that has room for more than `above` entries that for a few.
fn shrink_empty<T>(queue: &mut VecDeque<T>, above: usize) {
    if queue.is_empty() && queue.capacity() > above {
        queue.shrink_to(QUEUE_KEPT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_viewers_keep_no_room_for_what_once_waited() {
        let mut viewer = Viewer::worker(1 << 20);
        for stream in 0..1000 {
            viewer.push_again(StreamKey { epoch: Epoch(1), stream }, Bytes::from_static(b"block"), true, 0);
        }
        while viewer.pop().is_some() {}
        assert!(viewer.in_flight.len() == 1000 && viewer.queue.capacity() == QUEUE_KEPT, "at once");
        assert!(viewer.settle(1000).is_empty() && viewer.in_flight.capacity() == QUEUE_KEPT);
        for stream in 0..100 {
            viewer.push_again(StreamKey { epoch: Epoch(2), stream }, Bytes::from_static(b"block"), true, 0);
        }
        while viewer.pop().is_some() {}
        let room = viewer.queue.capacity();
        viewer.release();
        assert!(room >= 100 && viewer.queue.capacity() == QUEUE_KEPT, "when nothing happens");
    }
}
