//! The journal: packed blocks in order, in append-only segment files of one directory. The sniffer's
//! spool is one, the relay's archive is one.
//!
//! ```text
//!  DIR/lock                who writes here: one process at a time
//!  DIR/cursor              how far all is acknowledged; what was evicted and not told yet
//!  DIR/0000000041.seg      sealed:   | header | record | record | ... | seal |
//!  DIR/0000000042.seg      written:  | header | record | ... | zeros, allocated           |
//!
//!  header  0       6        8        16       24         28    32
//!          | RCSEG | version | number | salt   | reserved | crc |
//!  record  0      4        8       12    16                          (begins at multiples of 8)
//!          | mark | length | flags | crc | the packed block as it is | padding |
//!  seal    | stream: key, flags, blocks, sequences, packets, bytes ... (72 bytes each)
//!          | RCSEAL | number | salt | records_end | time_min | time_max | streams | 0 | 0 | crc |
//! ```
//!
//! All little-endian, checksums CRC-32 (IEEE). `flags` 1 in a record: a copy of a description.
//!
//! **Why a frame in front of each block**, which has a magic, lengths and checksums of its own: what
//! is captured is written by strangers, and a stored body may hold the bytes of a packed block. After
//! damage a reader looks for the next record byte by byte, and must not find one in there. So a
//! frame's mark and the start of its checksum are the segment's salt, 64 random bits that never
//! leave the host, and the checksum covers the offset and the block's header, which holds the body's
//! checksum: a record is one only where it was written, in the segment it was written to. The frame
//! also says whether a description is a copy, which nothing else could tell.
//!
//! Invariants:
//! * `append` takes a block whole or not at all; what it took is read back once, in order, until it
//!   is acknowledged or evicted, or a crash comes before the next sync;
//! * nothing is handed out that was not appended: header and body of each block are checked;
//! * before a record of a stream stands, in the same segment, the stream's last description if one
//!   was ever appended: as it came, or as a copy. Copies are made when a stream's first record in a
//!   segment is written, not for all streams when a segment begins: so nobody has to guess which
//!   streams go on, and those that never said their end cost nothing;
//! * the files have at most the cap's bytes, the allocated zeros and the files of earlier runs
//!   counted, the cursor (at most 200 KiB) and a name that cannot be deleted not;
//! * a segment is deleted when all in it is acknowledged, or, the oldest first, when the cap or a
//!   full disk demands it; never the one being written. What was not acknowledged in it is counted
//!   by stream, and the count is durable before the file goes;
//! * whatever bytes the directory holds, opening and reading end, without a panic;
//! * three open files (lock, writing, reading), one more for each [`TimeRange`]. Memory: 72 bytes
//!   for each stream in each segment, at most [`INDEX_SPANS_MAX`] of them (beyond it the oldest
//!   segment is evicted), one piece of 1 MiB for each reader, a write buffer of 64 KiB and a frame,
//!   last descriptions up to 16 MiB.
//!
//! **Durable** is what was synced: after 16 MiB or a second, when a segment is sealed, and by
//! [`Journal::sync`]. Small blocks wait up to 100 ms in a buffer of the process, so that each does
//! not cost a system call; a reader that comes to them has them written first.
//!
//! **A failed sync** may have lost any page written since the last good one, and Linux reports it
//! once. So it is never tried again on that file: the event [`JournalEvent::SyncFailed`] names the
//! range, the segment is ended without a seal, the next block begins a new one. The blocks in doubt
//! stay readable: each is checked when it is read, as always.
//!
//! **A failed write** leaves what was there before it, and the next one writes over what it left.
//! A full disk evicts the oldest segment and tries again while there is one; then `append` says
//! [`JournalError::Full`], and the caller still has the block.
//!
//! **Damage** that is met while reading is stepped over, to the next record that is whole or to the
//! next segment, and reported once for each passage as [`JournalEvent::Damaged`].
//!
//! There is one owner, who calls from a thread of his own: calls block on the disk.

mod append;
mod cursor;
mod descriptions;
mod events;
mod evict;
mod format;
mod fs;
mod index;
mod range;
mod read;
mod reader;
mod recover;
mod writer;

pub mod inspect;

#[cfg(test)]
mod model;
#[cfg(test)]
mod sim_fs;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::block::{Header, Kind, PackedBlock, StreamKey};

pub use events::{Entry, Eviction, JournalError, JournalEvent, Recovered, RecoveredStream};
use fs::is_full;
pub use fs::{Fs, FsFile, LockError, RealFs};
pub use range::TimeRange;

use cursor::Cursor;
use descriptions::Descriptions;
use format::SEGMENT_HEADER_BYTES;
use index::Segment;
use read::Reading;
use reader::PIECE_BYTES;
use writer::Writing;

/// Bytes of a segment, unless the cap or the configuration wants less. So an eviction is a small
/// part of what is kept, and files are few.
pub const SEGMENT_BYTES: u64 = 64 << 20;
/// Most bytes of a segment: offsets in a seal are 32 bits.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// Most streams of all segments together, in the index in memory: 18 MiB.
pub const INDEX_SPANS_MAX: usize = 1 << 18;

const LOCK_FILE: &str = "lock";
const CURSOR_FILE: &str = "cursor";
const CURSOR_FILE_NEW: &str = "cursor.new";

/// Smallest segment that a small cap leads to.
const SEGMENT_BYTES_MIN: u64 = 1 << 20;
/// Below this preallocation is not tried: the file grows as it is written.
const ALLOCATE_BYTES_MIN: u64 = 1 << 20;
/// Longest that a small block waits to be written.
const FLUSH_TIME: Duration = Duration::from_millis(100);
/// Longest that something is not durable. (DESIGN: fdatasync every 16 MiB or second.)
const SYNC_TIME: Duration = Duration::from_secs(1);
/// Least time between two writes of the cursor file because of acknowledgements.
const CURSOR_TIME: Duration = Duration::from_secs(1);
/// Time after which something that failed at a timeout is tried again.
const RETRY_TIME: Duration = Duration::from_secs(1);
/// Most events that wait; beyond it the oldest that tell of damage or trouble are dropped.
const EVENTS_MAX: usize = 1024;

/// Where a journal is and how large it may get.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its directory. It is made, mode 0700, if it is not there.
    pub directory: PathBuf,
    /// Most bytes of its files; at least two segments.
    pub cap_bytes: u64,
    /// Bytes of a segment, 4 KiB to 1 GiB. Default an eighth of the cap, 1 MiB to 64 MiB. A block
    /// that is larger gets a segment of its size.
    pub segment_bytes: Option<u64>,
}

/// A place in a journal, between two blocks. Places grow with time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Number of the segment.
    pub segment: u64,
    /// Offset in it, in bytes.
    pub offset: u64,
}

impl Position {
    fn start_of(segment: u64) -> Self {
        Self { segment, offset: SEGMENT_HEADER_BYTES as u64 }
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "segment {:010}, byte {}", self.segment, self.offset)
    }
}

/// Sizes that tests make small.
#[derive(Clone, Copy, Debug)]
struct Tuning {
    /// Blocks of more bytes are written at once, from where they lie.
    small_bytes: usize,
    /// Blocks wait until this many bytes are there. Measured with blocks of 1 KiB: see the bench.
    pending_bytes: usize,
    /// Written bytes that the disk is told to begin with.
    begin_bytes: u64,
    /// Unsynced bytes that make a sync.
    sync_bytes: u64,
    /// Acknowledged bytes that make the cursor be written.
    cursor_bytes: u64,
    /// Bytes read at once.
    piece_bytes: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            small_bytes: 32 << 10,
            pending_bytes: 64 << 10,
            begin_bytes: 1 << 20,
            sync_bytes: 16 << 20,
            cursor_bytes: 16 << 20,
            piece_bytes: PIECE_BYTES,
        }
    }
}

/// The journal. See the module's head.
#[derive(Debug)]
pub struct Journal<F: Fs = RealFs> {
    fs: F,
    directory: PathBuf,
    cap_bytes: u64,
    segment_bytes: u64,
    tuning: Tuning,
    /// Those not written to any more, the oldest first.
    sealed: VecDeque<Segment>,
    /// Streams in all of them, one counted in each.
    sealed_spans: usize,
    writing: Option<Writing<F::File>>,
    next_number: u64,
    /// Names that could not be deleted: tried again with the next one.
    doomed: Vec<u64>,
    /// The write buffer while no segment is written.
    spare: Vec<u8>,
    descriptions: Descriptions,
    reading: Reading<F::File>,
    cursor: Cursor,
    /// Acknowledged bytes that the cursor file does not tell of.
    cursor_behind_bytes: u64,
    cursor_dirty_since: Option<Instant>,
    /// Nothing that failed is tried again before.
    retry_at: Option<Instant>,
    /// The time of the last call that told it.
    now: Instant,
    events: VecDeque<JournalEvent>,
    _lock: F::Lock,
}

impl<F: Fs> Journal<F> {
    /// Opens the journal of a directory: takes the lock, mends what a crash tore, goes to where the
    /// cursor is.
    pub fn open(config: &Config, fs: F, now: Instant) -> Result<(Self, Recovered), JournalError> {
        Self::open_tuned(config, fs, now, Tuning::default())
    }

    fn open_tuned(
        config: &Config,
        fs: F,
        now: Instant,
        tuning: Tuning,
    ) -> Result<(Self, Recovered), JournalError> {
        let cap_bytes = config.cap_bytes;
        let default_bytes = (cap_bytes / 8).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES);
        let segment_bytes = config.segment_bytes.unwrap_or(default_bytes);
        if !(4096..=SEGMENT_BYTES_MAX).contains(&segment_bytes) {
            return Err(JournalError::SegmentBytes { segment_bytes });
        }
        if cap_bytes / 2 < segment_bytes {
            return Err(JournalError::Cap { cap_bytes, segment_bytes });
        }
        let directory = config.directory.clone();
        let failed = |what| {
            let directory = directory.clone();
            move |source| JournalError::Directory { directory, what, source }
        };
        fs.create_directory(&directory).map_err(failed("directory cannot be made"))?;
        let lock = fs.lock(&directory.join(LOCK_FILE)).map_err(|error| match error {
            LockError::Held(holder) => JournalError::InUse { directory: directory.clone(), holder },
            LockError::Io(error) => failed("cannot be locked")(error),
        })?;
        let found = recover::recover(&fs, &directory).map_err(failed("directory cannot be read"))?;
        let mut journal = Self {
            fs,
            directory,
            cap_bytes,
            segment_bytes,
            tuning,
            sealed_spans: found.segments.iter().map(|segment| segment.index.spans.len()).sum(),
            sealed: found.segments,
            writing: None,
            next_number: found.next_number,
            doomed: Vec::new(),
            spare: Vec::new(),
            descriptions: Descriptions::default(),
            reading: Reading {
                position: Position::default(),
                open: None,
                descriptions: VecDeque::new(),
                prepared: false,
            },
            cursor: found.cursor,
            cursor_behind_bytes: 0,
            cursor_dirty_since: found.cursor_damaged.then_some(now),
            retry_at: None,
            now,
            events: VecDeque::new(),
            _lock: lock,
        };
        journal.delete_acknowledged();
        journal.make_room(0);
        journal.cursor.acknowledged = journal.cursor.acknowledged.max(journal.start());
        journal.rewind();
        let recovered = Recovered {
            segments: journal.sealed.len() as u64,
            bytes: journal.size_bytes(),
            blocks: journal.sealed.iter().map(|segment| segment.index.blocks()).sum(),
            packets: journal.sealed.iter().map(|segment| segment.index.packets()).sum(),
            cut_bytes: found.cut_bytes,
            acknowledged: journal.cursor.acknowledged,
            streams: recover::streams(&journal.sealed),
            evictions: journal.cursor.evictions.clone(),
            warnings: found.warnings,
        };
        Ok((journal, recovered))
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<JournalEvent> {
        self.events.pop_front()
    }

    /// Reads again from what is acknowledged.
    pub fn rewind(&mut self) {
        // What was read ahead is read again too: the disk is the truth.
        self.reading.open = None;
        self.reading.go_to(self.cursor.acknowledged);
    }

    /// Says that all before `through` is done: segments wholly before it are deleted. The cursor
    /// file follows within a second or 16 MiB.
    pub fn acknowledge(&mut self, through: Position, now: Instant) {
        self.now = now;
        let through = through.min(self.end());
        if through <= self.cursor.acknowledged {
            return;
        }
        self.cursor_behind_bytes += self.bytes_between(self.cursor.acknowledged, through);
        self.cursor.acknowledged = through;
        self.cursor_dirty_since.get_or_insert(self.now);
        self.delete_acknowledged();
        if self.reading.position < self.cursor.acknowledged {
            self.reading.go_to(self.cursor.acknowledged);
        }
        if self.cursor_behind_bytes >= self.tuning.cursor_bytes {
            self.try_persist();
        }
    }

    /// What a stream's blocks are of, which a reader of any of them needs. Call it with descriptions that
    /// are not appended, because they went another way: then a copy stands before the first block that is.
    pub fn describe(&mut self, description: &PackedBlock) {
        if description.header().kind == Kind::Description {
            self.descriptions.keep(description);
        }
    }

    /// Nothing more of a stream is appended.
    pub fn forget(&mut self, key: StreamKey) {
        self.descriptions.forget(key);
    }

    /// Evictions of a stream have been told as far as `next_sequence`: they need not be remembered
    /// any more, unless more of that stream was evicted since.
    pub fn evictions_told(&mut self, key: StreamKey, next_sequence: u64, now: Instant) {
        self.now = now;
        let before = self.cursor.evictions.len();
        self.cursor.evictions.retain(|one| one.key != key || one.next_sequence > next_sequence);
        if self.cursor.evictions.len() != before {
            self.cursor_dirty_since.get_or_insert(self.now);
        }
    }

    /// What was evicted and not told yet, in all, the oldest first.
    pub fn evictions(&self) -> &[Eviction] {
        &self.cursor.evictions
    }

    /// Does what is due: writes small blocks, syncs, writes the cursor. What fails is told by an
    /// event and tried again a second later.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        if self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.retry_at = None;
        let due = |since: Option<Instant>, time| since.is_some_and(|since| now >= since + time);
        let (pending, unsynced) =
            self.writing.as_ref().map_or((None, None), |one| (one.pending_since, one.unsynced_since));
        let done = if due(unsynced, SYNC_TIME) {
            self.sync_segment()
        } else if due(pending, FLUSH_TIME) {
            self.flush()
        } else {
            Ok(())
        };
        if let Err(error) = done {
            // A failed sync has an event of its own, and is not tried again.
            if !matches!(error, JournalError::Sync { .. }) {
                self.trouble(&error);
            }
            self.retry_at = Some(now + RETRY_TIME);
        }
        if due(self.cursor_dirty_since, CURSOR_TIME) {
            self.try_persist();
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let (pending, unsynced) =
            self.writing.as_ref().map_or((None, None), |one| (one.pending_since, one.unsynced_since));
        let due = [
            pending.map(|since| since + FLUSH_TIME),
            unsynced.map(|since| since + SYNC_TIME),
            self.cursor_dirty_since.map(|since| since + CURSOR_TIME),
        ];
        let first = due.into_iter().flatten().min()?;
        Some(self.retry_at.map_or(first, |at| first.max(at)))
    }

    /// Makes all that was appended and acknowledged durable now.
    pub fn sync(&mut self) -> Result<(), JournalError> {
        self.sync_segment()?;
        if self.cursor_dirty_since.is_some() {
            self.persist().map_err(|source| JournalError::Cursor { source })?;
        }
        Ok(())
    }

    /// Ends in order: seals the segment, which gives back what was allocated ahead, and makes all
    /// durable.
    pub fn close(mut self) -> Result<(), JournalError> {
        let synced = self.sync_segment();
        let finished = self.finish_segment();
        synced.and(finished)?;
        self.sync()
    }

    /// Behind the last block.
    pub fn end(&self) -> Position {
        match (&self.writing, self.sealed.back()) {
            (Some(writing), _) => Position { segment: writing.number, offset: writing.end() },
            (None, Some(last)) => Position { segment: last.number, offset: last.records_end },
            (None, None) => self.cursor.acknowledged,
        }
    }

    /// All before it is acknowledged.
    pub fn acknowledged(&self) -> Position {
        self.cursor.acknowledged
    }

    /// Bytes of the files, what is allocated ahead included.
    pub fn size_bytes(&self) -> u64 {
        let sealed: u64 = self.sealed.iter().map(|segment| segment.file_bytes).sum();
        sealed + self.writing.as_ref().map_or(0, |writing| writing.limit)
    }

    /// Bytes of records that are not acknowledged, copies and frames included.
    pub fn unacknowledged_bytes(&self) -> u64 {
        self.bytes_between(self.cursor.acknowledged, self.end())
    }

    /// Bytes of records that were not read since the last rewind, copies and frames included.
    pub fn unread_bytes(&self) -> u64 {
        self.bytes_between(self.reading.position, self.end())
    }

    /// Time stamp of the oldest packet, ns since 1970; as segments know it, so what is acknowledged
    /// may be among it.
    pub fn oldest_time_ns(&self) -> Option<u64> {
        let indexes = self.sealed.iter().map(|segment| &segment.index);
        let mut all = indexes.chain(self.writing.as_ref().map(|writing| &writing.index));
        all.find(|index| index.time_min_ns <= index.time_max_ns).map(|index| index.time_min_ns)
    }

    // --- cursor and events ---

    fn persist(&mut self) -> io::Result<()> {
        let new = self.directory.join(CURSOR_FILE_NEW);
        let file = self.fs.create(&new)?;
        file.write_at(0, &self.cursor.emit())?;
        file.sync()?;
        self.fs.rename(&new, &self.directory.join(CURSOR_FILE))?;
        self.fs.sync_directory(&self.directory)?;
        self.cursor_dirty_since = None;
        self.cursor_behind_bytes = 0;
        Ok(())
    }

    /// Writes the cursor file; if that fails, again a second later.
    fn try_persist(&mut self) {
        let mut persisted = self.persist();
        // The segment that is written may be what fills the disk, and nobody needs it any more.
        if persisted.as_ref().is_err_and(is_full) && self.cursor.acknowledged >= self.end() {
            match self.finish_segment() {
                Ok(()) => persisted = self.persist(),
                Err(error) => self.trouble(&error),
            }
        }
        if let Err(source) = persisted {
            self.trouble(&JournalError::Cursor { source });
            self.cursor_dirty_since = Some(self.now);
            self.cursor_behind_bytes = 0;
        }
    }

    fn damaged(&mut self, segment: u64, range: std::ops::Range<u64>, reason: String, header: Option<Header>) {
        let (from, to, header) = (range.start, range.end, header.map(Box::new));
        self.push_event(JournalEvent::Damaged { segment, from, to, reason, header });
    }

    fn trouble(&mut self, error: &JournalError) {
        let cause = std::error::Error::source(error).map_or(String::new(), |cause| format!(": {cause}"));
        self.trouble_text(format!("{error}{cause}"));
    }

    fn trouble_text(&mut self, text: String) {
        self.push_event(JournalEvent::Trouble { text });
    }

    fn push_event(&mut self, event: JournalEvent) {
        if self.events.len() >= EVENTS_MAX {
            let minor = |event: &JournalEvent| !matches!(event, JournalEvent::Evicted { .. });
            if let Some(at) = self.events.iter().position(minor) {
                self.events.remove(at);
            }
        }
        self.events.push_back(event);
    }
}

/// 64 random bits that nobody outside knows.
fn fresh_salt() -> u64 {
    // Without the system's random numbers a seeded hash is the next best: the salt is a guard
    // against forgery, not against accidents.
    getrandom::u64().unwrap_or_else(|_| {
        use std::hash::BuildHasher;
        std::hash::RandomState::new().hash_one(Instant::now())
    })
}
