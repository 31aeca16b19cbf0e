//! What goes to the spool and comes back from it. The spool itself is served by somebody else, in
//! the order of the requests: this side asks, and is told what came of it.

use super::*;
use crate::description::Description;

/// After the spool failed it is tried again this much later.
const RETRY_MS: u64 = 5_000;
/// When no buffer was free to read into, the next attempt comes this much later.
const READ_RETRY_MS: u64 = 20;
/// Reads that are under way at a time.
const READS_MAX: usize = 4;
/// Blocks that came back and are not settled, at most: each may be of a stream of its own, and a relay
/// takes so many streams at a time.
const LOADED_MAX: usize = 2048;
/// Share of the memory for blocks on their way to the spool, and as much for those that came back.
const MEMORY_SHARE: usize = 8;
/// Descriptions of streams of which nothing else was loaded yet, at most.
const COPIES_MAX: usize = 4096;

/// What is asked of the spool. Requests are served in order.
#[derive(Debug)]
pub enum SpoolRequest {
    /// Append a block; answer with [`Uplink::handle_appended`]. After a failure every further
    /// append fails too, until [`SpoolRequest::Resume`].
    Append(SealedBlock),
    /// Try to append again after a failure. No answer.
    Resume,
    /// Read the next block; answer with [`Uplink::handle_loaded`].
    Read,
    /// So many of the blocks that were read in this run, copies of descriptions aside, are done
    /// with. No answer.
    Acknowledge(u64),
}

/// The answer to a read.
#[derive(Debug)]
pub enum Loaded {
    /// The next block. `is_copy`: a description repeated so that what follows can be read.
    Block {
        /// The block, its body checked.
        block: PackedBlock,
        /// It was appended before, too.
        is_copy: bool,
    },
    /// Everything appended so far has been read.
    End,
    /// No buffer is free, or the disk fails: to be asked again.
    Failed,
}

/// Blocks of one stream, without gaps between them, that the spool has thrown away. Where it had
/// gaps there are several of these: what lies in a gap may have gone another way.
#[derive(Clone, Copy, Debug)]
pub struct Evicted {
    /// Where the first of them begins.
    pub begin: Cursor,
    /// Where the last of them ends.
    pub end: Cursor,
    /// The end of the stream was among them.
    pub has_end: bool,
}

#[derive(Debug)]
pub(super) struct Spool {
    exists: bool,
    share_bytes: usize,
    now_ms: u64,
    /// To be appended.
    queue: VecDeque<(StreamKey, u64)>,
    /// Asked to be appended: stream, sequence, bytes.
    appending: VecDeque<(StreamKey, u64, usize)>,
    appending_bytes: usize,
    /// Could not be appended; they go first when the spool is tried again.
    failed: VecDeque<(StreamKey, u64)>,
    retry_at: Option<u64>,
    resume_due: bool,
    reading: usize,
    read_retry_at: Option<u64>,
    /// There may be something to read.
    may_have: bool,
    /// Whether each block that was loaded, from ticket `first_ticket` on, is done.
    loaded: VecDeque<bool>,
    first_ticket: u64,
    loaded_bytes: usize,
    acknowledge_due: bool,
    /// Descriptions of streams of which nothing else was loaded yet.
    copies: BTreeMap<StreamKey, PackedBlock>,
    /// Streams that are done, and what was lost of them.
    pub done: VecDeque<(StreamKey, Losses)>,
    /// Those of earlier runs among them.
    pub done_before: BTreeSet<StreamKey>,
}

impl Spool {
    pub fn new(exists: bool, memory_bytes: usize) -> Self {
        Self {
            exists,
            share_bytes: memory_bytes / MEMORY_SHARE,
            now_ms: 0,
            queue: VecDeque::new(),
            appending: VecDeque::new(),
            appending_bytes: 0,
            failed: VecDeque::new(),
            retry_at: None,
            resume_due: false,
            reading: 0,
            read_retry_at: None,
            may_have: exists, // an earlier run may have left something
            loaded: VecDeque::new(),
            first_ticket: 0,
            loaded_bytes: 0,
            acknowledge_due: false,
            copies: BTreeMap::new(),
            done: VecDeque::new(),
            done_before: BTreeSet::new(),
        }
    }

    pub fn push(&mut self, key: StreamKey, sequence: u64) {
        self.queue.push_back((key, sequence));
    }

    /// Whether it takes blocks.
    pub fn is_usable(&self) -> bool {
        self.exists && self.retry_at.is_none()
    }

    /// Whether there is one that does not take blocks.
    pub fn has_failed(&self) -> bool {
        self.retry_at.is_some()
    }

    /// Nothing is on its way to it.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.appending.is_empty() && self.failed.is_empty()
    }

    /// Nothing is in it either.
    pub fn is_empty(&self) -> bool {
        self.is_idle() && !self.may_have && self.reading == 0 && self.loaded.is_empty()
    }

    /// A loaded block is done with.
    pub fn handle_done(&mut self, ticket: u64, bytes: usize) {
        self.loaded_bytes = self.loaded_bytes.saturating_sub(bytes);
        let at = ticket.checked_sub(self.first_ticket).and_then(|at| usize::try_from(at).ok());
        if let Some(done) = at.and_then(|at| self.loaded.get_mut(at)) {
            *done = true;
        }
        while self.loaded.pop_front_if(|done| *done).is_some() {
            self.first_ticket += 1;
            self.acknowledge_due = true;
        }
    }

    pub fn handle_timeout(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        if self.retry_at.is_some_and(|at| now_ms >= at) && self.appending.is_empty() {
            self.retry_at = None;
            self.resume_due = true;
            let mut again = std::mem::take(&mut self.failed);
            again.append(&mut self.queue);
            self.queue = again;
        }
        if self.read_retry_at.is_some_and(|at| now_ms >= at) {
            self.read_retry_at = None;
        }
    }

    pub fn poll_timeout(&self) -> Option<u64> {
        [self.retry_at, self.read_retry_at].into_iter().flatten().min()
    }
}

impl Uplink {
    /// Everything that is not sent for good goes to the spool, in order of arrival, and so does what
    /// comes after it in these streams.
    pub(super) fn spool_all(&mut self) {
        let is_streaming = self.state == State::Streaming && !self.is_stuck;
        let mut moved = Vec::new();
        let mut cut = Vec::new();
        // Nothing is to be done of those of which the spool has all, and they are no longer looked at.
        self.busy.retain(|key| {
            let go_on = |one: &Stream| one.end_sequence.is_none() && !one.is_former;
            self.streams.get(key).is_some_and(|one| !one.retained.is_empty() || go_on(one))
        });
        for key in &self.busy {
            let Some(stream) = self.streams.get_mut(key) else { continue };
            let was_moved = moved.len();
            // What the relay has is safe as long as the line stands. But where something behind it
            // goes to the spool it goes too: it must come back in sequence.
            let received = if is_streaming { stream.received.next_sequence } else { 0 };
            let is_unsafe = |one: &Retained| one.place == Place::Memory && one.sequence() >= received;
            if stream.retained.iter().any(is_unsafe) {
                for one in stream.retained.iter_mut().filter(|one| one.place == Place::Memory) {
                    one.place = Place::ToSpool;
                    moved.push((one.arrival, *key, one.sequence()));
                }
            }
            let is_open = stream.end_sequence.is_none();
            if moved.len() > was_moved || (!is_streaming && is_open) {
                stream.is_spooled = true;
                if is_streaming {
                    cut.push(*key);
                }
            }
        }
        moved.sort_unstable();
        moved.into_iter().for_each(|(_, key, sequence)| self.spool.push(key, sequence));
        cut.into_iter().for_each(|key| self.ask_succession(key));
    }

    /// The program ends: what is not settled goes to the spool, whatever it is.
    pub fn spool_now(&mut self) {
        if self.spool.is_usable() {
            self.spool_all();
        }
    }

    /// What is asked of the spool next.
    pub fn poll_spool(&mut self) -> Option<SpoolRequest> {
        if std::mem::take(&mut self.spool.acknowledge_due) {
            return Some(SpoolRequest::Acknowledge(self.spool.first_ticket));
        }
        if std::mem::take(&mut self.spool.resume_due) {
            return Some(SpoolRequest::Resume);
        }
        while self.spool.is_usable()
            && self.spool.appending_bytes <= self.spool.share_bytes
            && let Some((key, sequence)) = self.spool.queue.pop_front()
        {
            let Some(stream) = self.streams.get_mut(&key) else { continue };
            // Settled or dropped meanwhile?
            let Some(at) = stream.find(sequence) else { continue };
            let block = stream.retained[at].block.clone();
            let block = match stream.description_to_spool(&block) {
                Some(description) => {
                    self.spool.queue.push_front((key, sequence));
                    description
                }
                None => {
                    stream.retained[at].place = Place::Appending;
                    block
                }
            };
            let bytes = block.byte_len();
            self.spool.appending.push_back((key, block.header().sequence, bytes));
            self.spool.appending_bytes += bytes;
            return Some(SpoolRequest::Append(block));
        }
        let may_read = self.state == State::Streaming
            && self.spool.may_have
            && self.spool.read_retry_at.is_none()
            && self.spool.reading < READS_MAX
            && self.spool.loaded.len() < LOADED_MAX
            && self.spool.loaded_bytes < self.spool.share_bytes;
        if may_read {
            self.spool.reading += 1;
            return Some(SpoolRequest::Read);
        }
        None
    }

    /// The oldest block that was to be appended is in the spool, or could not be written.
    pub fn handle_appended(&mut self, is_written: bool) {
        let Some((key, sequence, bytes)) = self.spool.appending.pop_front() else { return };
        self.spool.appending_bytes -= bytes;
        let stream = self.streams.get_mut(&key);
        if !is_written {
            self.spool.retry_at.get_or_insert(self.now_ms + RETRY_MS);
            if let Some(stream) = stream {
                stream.handle_spool_failed();
                let appending = |at: &usize| stream.retained[*at].place == Place::Appending;
                if let Some(at) = stream.find(sequence).filter(appending) {
                    self.spool.failed.push_back((key, sequence));
                    stream.retained[at].place = Place::ToSpool;
                }
            }
            return;
        }
        self.spool.may_have = true;
        // A description may be appended again, while it is retained or has come back.
        if let Some(stream) = stream
            && let Some(at) =
                stream.find(sequence).filter(|at| stream.retained[*at].place == Place::Appending)
            && let Some(one) = stream.retained.remove(at)
        {
            self.totals.spooled_blocks += 1;
            self.totals.spooled_packets += u64::from(one.block.header().packet_count);
            self.totals.spooled_bytes += bytes as u64;
            forget(&mut self.totals, &mut self.backlog_in_flight_bytes, &one);
        }
    }

    /// The answer to a read.
    pub fn handle_loaded(&mut self, loaded: Loaded) {
        self.spool.reading = self.spool.reading.saturating_sub(1);
        let (block, is_copy) = match loaded {
            Loaded::Block { block, is_copy } => (block, is_copy),
            Loaded::End => {
                self.spool.may_have = self.spool.reading > 0 || !self.spool.appending.is_empty();
                return;
            }
            Loaded::Failed => {
                self.spool.read_retry_at = Some(self.now_ms + READ_RETRY_MS);
                return;
            }
        };
        let key = block.header().key;
        if is_copy && self.is_forgotten(key) {
            return;
        }
        if is_copy {
            match self.streams.get_mut(&key) {
                Some(stream) => stream.keep_description(block.into()), // where it stood may be thrown away
                None => drop(self.spool.copies.insert(key, block)),
            }
            while self.spool.copies.len() > COPIES_MAX {
                self.spool.copies.pop_first();
            }
            return;
        }
        let ticket = self.spool.first_ticket + self.spool.loaded.len() as u64;
        self.spool.loaded.push_back(false);
        self.spool.loaded_bytes += block.bytes().len();
        self.totals.loaded_blocks += 1;
        if self.is_forgotten(key) {
            self.spool.handle_done(ticket, block.bytes().len());
            return;
        }
        self.open_former(key, Some(&block));
        let bytes = block.bytes().len();
        let Some(stream) = self.streams.get_mut(&key) else { return };
        if block.header().end {
            stream.end_sequence = Some(block.header().sequence);
        }
        let is_settled = block.header().sequence < stream.settled.max(stream.settled_place.next_sequence);
        if is_settled {
            stream.settle_through(block.end());
        }
        if is_settled || stream.find(block.header().sequence).is_some() {
            stream.keep_description(block.into());
            self.spool.handle_done(ticket, bytes);
        } else {
            self.retain(block.into(), Place::Loaded(ticket));
        }
        self.forget_if_done(key);
    }

    /// A stream is in the spool, by a block that came or by what was thrown away of it. If it is not
    /// known, an earlier run left it.
    fn open_former(&mut self, key: StreamKey, block: Option<&PackedBlock>) {
        if self.streams.contains_key(&key) {
            return;
        }
        let copy = self.spool.copies.remove(&key);
        let block = block.filter(|block| block.header().kind == Kind::Description);
        let announcement = block.or(copy.as_ref()).and_then(announcement_of).unwrap_or_default();
        let announcement = Announcement { key, backlog: true, ..announcement };
        let mut stream = Stream::new(announcement, Lane::Backlog, true, self.now_ms);
        if let Some(copy) = copy {
            stream.keep_description(copy.into());
        }
        self.streams.insert(key, stream);
        if self.state == State::Streaming {
            self.announce(key);
        }
    }

    /// A spool that takes nothing, and of which everything has come back, holds nothing up: what was
    /// meant for it is sent from memory.
    pub(super) fn fall_back(&mut self) {
        let is_drained = !self.spool.may_have && self.spool.reading == 0 && self.spool.appending.is_empty();
        if !self.spool.has_failed() || !is_drained {
            return;
        }
        let failed = std::mem::take(&mut self.spool.failed);
        let waiting = std::mem::take(&mut self.spool.queue);
        for (key, sequence) in failed.into_iter().chain(waiting) {
            let Some(stream) = self.streams.get_mut(&key) else { continue };
            let Some(one) = stream.find(sequence).map(|at| &mut stream.retained[at]) else { continue };
            // Behind what has come back of the same stream.
            (one.arrival, one.place) = (self.arrivals, Place::Memory);
            self.arrivals += 1;
            let waiting = Waiting { arrival: one.arrival, key, sequence, bytes: one.bytes() };
            stream.is_spooled = stream.is_former;
            if !matches!(self.state, State::Offline(_)) {
                self.queue_of(key).push(waiting);
                self.announce(key);
            }
        }
    }

    /// A stream of an earlier run that did not end in order: `end` is the block that ends it where
    /// that run had come. What the spool and the relay do not have before it is lost.
    pub fn handle_former_end(&mut self, announcement: Announcement, end: PackedBlock) {
        let key = announcement.key;
        if self.streams.contains_key(&key) {
            return;
        }
        let announcement = Announcement { backlog: true, ..announcement };
        self.streams.insert(key, Stream::new(announcement, Lane::Backlog, true, self.now_ms));
        self.retain(end.into(), Place::ToSpool);
        if self.state == State::Streaming {
            self.announce(key);
        }
    }

    /// The spool was full, and has thrown away blocks that were not settled.
    pub fn handle_evicted(&mut self, evicted: Evicted) {
        let key = evicted.begin.key;
        if self.is_forgotten(key) {
            return;
        }
        self.open_former(key, None);
        let Some(stream) = self.streams.get_mut(&key) else { return };
        stream.add_dropped(evicted.begin, evicted.end, Stage::SpoolEvicted);
        if evicted.has_end {
            stream.cut_at = Some(evicted.end);
            self.cuts.insert(key);
            self.forget_if_done(key);
        }
    }

    /// Tells the relay of streams whose end was thrown away, once everything before has gone.
    pub(super) fn tell_cut(&mut self) {
        if self.state != State::Streaming {
            return;
        }
        while self.cuts_under_way.len() < CUTS_MAX
            && let Some(key) = self.cuts.pop_first()
        {
            self.cuts_under_way.insert(key);
            self.announce(key);
        }
        // Not before the relay has everything that was sent: this would overtake it.
        let is_over = |one: &Stream| {
            let is_received = one.received.next_sequence >= one.told.next_sequence;
            let is_heard = one.announced && !one.awaits_ack && !one.is_cut_told;
            is_heard && is_received && one.cut_at.is_some() && one.retained.is_empty()
        };
        for key in &self.cuts_under_way {
            let Some(stream) = self.streams.get_mut(key).filter(|one| is_over(one)) else { continue };
            let Some(end) = stream.cut_at else { continue };
            self.control.extend(stream.notices_before(end));
            let reason = "its end was thrown away when the spool was full".to_owned();
            self.control.push_back(Control::End { place: end, reason });
            stream.sent = stream.sent.max(end.next_sequence);
            stream.is_cut_told = true;
            self.unreceived.insert(*key);
        }
    }
}

/// What a description block says of its stream, for the relay.
fn announcement_of(block: &PackedBlock) -> Option<Announcement> {
    let mut body = Vec::new();
    block.unpack_into(&mut body).ok()?;
    let description: Description = serde_json::from_slice(&body).ok()?;
    Some(description.announcement(block.header().key))
}
