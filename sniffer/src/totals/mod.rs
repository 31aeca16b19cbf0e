//! The totals file: where each stream stands, kept where `kill -9` cannot reach it.
//!
//! ```text
//! capture thread: seal a block -> record (stores into a mapping) -> hand over        killed at any instant
//! the next run:   former_runs() -> what was packed, less what was sent or spooled, is lost: exactly
//! ```
//!
//! Invariants:
//! - What a file says was packed is never less than what anybody can have received: a stream is recorded after a block is
//!   sealed and before it is handed over.
//! - Recording is a few stores: no system call, no allocation. A slot has one writer, which owns it.
//! - A process that is stopped at any instant leaves every slot whole (see `layout`).
//!
//! The page cache keeps the stores when the process dies, however it dies. It does not keep them when the host does: after
//! a power cut the file says what the disk had last, half a minute ago perhaps. Offered packets and the kernel's drops
//! are those of the last report, up to a second before the stop.
//!
//! The file's blocks are allocated at the start: into a hole of a sparse file on a full disk a store would be SIGBUS. A
//! store can wait when the file system has just begun to write that page back, as any store into a mapped file; the ring
//! holds what comes meanwhile. A directory in memory (/run) has neither that nor the disk's say after a power cut.

mod layout;
mod mapping;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::warn;
use wire::block::Epoch;
use wire::clock::wall_ns;
use wire::limited;
use wire::log::SOME;

pub use self::layout::Damage;
use self::layout::{HEADER_BYTES, SLOT_BYTES, SLOT_COUNT, State, Store, Totals, WORD_BYTES};
use self::mapping::Mapping;

/// What names of totals files begin with; the epoch follows.
const NAME_PREFIX: &str = "totals-";

/// The totals file of this run. A lock on it, which ends with the process, says that the run goes on.
#[derive(Debug)]
pub struct TotalsFile {
    path: PathBuf,
    mapping: Arc<Mapping>,
    book: Mutex<Book>,
    /// Holds the lock.
    _file: File,
}

/// Which slots are whose.
#[derive(Debug, Default)]
struct Book {
    by_stream: BTreeMap<u32, usize>,
    /// Slots that were used before.
    free: Vec<usize>,
    /// Slots from here on were never used.
    fresh: usize,
    has_warned: bool,
}

impl TotalsFile {
    /// Makes the file of `epoch` in `dir`, readable by this user only.
    pub fn create(dir: &Path, epoch: Epoch) -> io::Result<Self> {
        let path = dir.join(format!("{NAME_PREFIX}{epoch}"));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        let made = Self::fill(&file, epoch).inspect_err(|_| {
            let _ = std::fs::remove_file(&path); // the first failure is the one to tell
        })?;
        Ok(Self { path, mapping: Arc::new(made), book: Mutex::default(), _file: file })
    }

    fn fill(file: &File, epoch: Epoch) -> io::Result<Mapping> {
        file.try_lock().map_err(io::Error::from)?;
        let bytes = const { NonZeroUsize::new(layout::file_bytes(SLOT_COUNT)).expect("it has a header") };
        nix::fcntl::posix_fallocate(file, 0, bytes.get() as libc::off_t)?;
        let mapping = Mapping::new(file, bytes)?;
        store(mapping.words(), &layout::header(epoch, wall_ns()));
        Ok(mapping)
    }

    /// A slot for a stream. `None`: all are used, and this stream is not covered; said once.
    pub fn slot(&self, stream: u32, interface: &str, opened_ns: u64) -> Option<TotalsSlot> {
        let mut book = self.book();
        let index = match book.free.pop() {
            Some(index) => index,
            None if book.fresh < SLOT_COUNT => {
                book.fresh += 1;
                book.fresh - 1
            }
            None => {
                if !std::mem::replace(&mut book.has_warned, true) {
                    warn!(
                        "{}: all {SLOT_COUNT} slots are used; of the streams that begin now, what a kill of this \
                         process would lose will not be counted",
                        self.path.display()
                    );
                }
                return None;
            }
        };
        book.by_stream.insert(stream, index);
        let slot = TotalsSlot { mapping: Arc::clone(&self.mapping), index, stream, generation: 0 };
        store(slot.words(), &layout::open(stream, interface, opened_ns));
        Some(slot)
    }

    /// Frees the slot of a stream that has ended and is wholly settled: there is nothing left of it to lose. `false`: it
    /// has none, or has not ended.
    pub fn release(&self, stream: u32) -> bool {
        let mut book = self.book();
        let Some(index) = book.by_stream.get(&stream).copied() else { return false };
        let words = words_of(&self.mapping, index);
        let (at, ended) = layout::state(stream, State::Ended);
        // Its writer's last store was this one; ours come after it.
        if u64::from_le(words[at].load(Ordering::Acquire)) != ended {
            return false;
        }
        store(words, &[layout::state(0, State::Free)]);
        book.by_stream.remove(&stream);
        book.free.push(index);
        true
    }

    /// Removes the file: everything is sent, or spooled, or counted.
    pub fn remove(&self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // A panic under the lock can leave a slot that nobody uses, and no slot that two use.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slot of one stream. Whoever has it is its one writer.
#[derive(Debug)]
pub struct TotalsSlot {
    mapping: Arc<Mapping>,
    index: usize,
    stream: u32,
    generation: u64,
}

impl TotalsSlot {
    /// Records where the stream stands: number of the next block, packets and captured bytes in the blocks before it,
    /// packets offered and dropped by the kernel as far as is known.
    ///
    /// INVARIANT: called after a block is sealed and before it is handed over.
    pub fn record(
        &mut self,
        next_sequence: u64,
        packets: u64,
        bytes: u64,
        offered: u64,
        kernel_drops: u64,
        updated_ns: u64,
    ) {
        self.generation += 1;
        let totals = Totals { next_sequence, packets, bytes, offered, kernel_drops, updated_ns };
        store(self.words(), &layout::record(self.generation, &totals));
    }

    /// The stream's last block is packed and recorded. Dropping the slot ends nothing: so a thread that fails leaves its
    /// streams as a kill would.
    pub fn end(self) {
        store(self.words(), &[layout::state(self.stream, State::Ended)]);
    }

    fn words(&self) -> &[AtomicU64] {
        words_of(&self.mapping, self.index)
    }
}

fn words_of(mapping: &Mapping, index: usize) -> &[AtomicU64] {
    let at = (HEADER_BYTES + index * SLOT_BYTES) / WORD_BYTES;
    &mapping.words()[at..at + SLOT_BYTES / WORD_BYTES]
}

/// Makes a change: its stores in order, as far as order matters.
#[inline]
fn store(words: &[AtomicU64], stores: &[Store]) {
    // What the last change stored stays before all of this one, and what this one stores stays before its last. That is
    // for the compiler: a process is stopped between two of its instructions, never within the order it sees itself.
    fence(Ordering::Release);
    if let [rest @ .., (last, value)] = stores {
        rest.iter().for_each(|(at, value)| words[*at].store(value.to_le(), Ordering::Relaxed));
        words[*last].store(value.to_le(), Ordering::Release);
    }
}

/// A run that did not remove its totals file, and is over. While this lives no other process takes it for its own.
#[derive(Debug)]
pub struct FormerRun {
    /// The file.
    pub path: PathBuf,
    /// The run.
    pub epoch: Epoch,
    /// When it began, ns since 1970; 0 if it was stopped before it could say.
    pub created_ns: u64,
    /// Its streams that were not settled.
    pub streams: Vec<FormerStream>,
    /// Holds the lock.
    _file: File,
}

/// A stream of a former run, as it was left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormerStream {
    /// Its number.
    pub stream: u32,
    /// Name of its interface or file, its first 15 bytes.
    pub interface: String,
    /// When it was opened, ns since 1970.
    pub opened_ns: u64,
    /// Blocks that were sealed.
    pub next_sequence: u64,
    /// Packets in them.
    pub packets: u64,
    /// Captured bytes in them.
    pub bytes: u64,
    /// Packets that the kernel had offered, drops included, when it was asked last.
    pub offered: u64,
    /// Packets that the kernel had dropped, when it was asked last.
    pub kernel_drops: u64,
    /// When the last block was sealed, ns since 1970; 0 if none was.
    pub updated_ns: u64,
    /// Its last block was sealed, in order.
    pub ended: bool,
}

impl FormerRun {
    /// Removes the file: what it told is counted.
    pub fn remove(self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}

/// The totals files of other runs in `dir`, oldest first. Files of runs that go on are left out; damaged ones too, which
/// is said, and they stay.
pub fn former_runs(dir: &Path, own_epoch: Epoch) -> io::Result<Vec<FormerRun>> {
    let mut runs = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let epoch = name.to_str().and_then(|name| name.strip_prefix(NAME_PREFIX));
        let Some(epoch) = epoch.and_then(|text| Epoch::try_from(text.to_owned()).ok()) else { continue };
        if epoch == own_epoch {
            continue;
        }
        match read(&entry.path(), epoch) {
            Ok(run) => runs.push(run),
            Err(ReadError::Io(TryLockError::WouldBlock)) => {
                limited!(warn, SOME, "{}: of a sniffer that still runs; left to it", entry.path().display());
            }
            Err(ReadError::Io(TryLockError::Error(error))) => {
                limited!(warn, SOME, "{}: {error}", entry.path().display());
            }
            Err(ReadError::Damage(damage)) => {
                limited!(
                    warn,
                    SOME,
                    "{}: {damage}; what that run lost cannot be told",
                    entry.path().display()
                );
            }
        }
    }
    runs.sort_by_key(|run| (run.created_ns, run.epoch));
    Ok(runs)
}

enum ReadError {
    Io(TryLockError),
    Damage(Damage),
}

fn read(path: &Path, epoch: Epoch) -> Result<FormerRun, ReadError> {
    let io = |error| ReadError::Io(TryLockError::Error(error));
    // Neither a link to elsewhere nor a pipe that waits for a writer is a file of ours.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(io)?;
    file.try_lock().map_err(ReadError::Io)?;
    let (found, expected) = (file.metadata().map_err(io)?.len(), layout::file_bytes(SLOT_COUNT) as u64);
    if found > expected {
        return Err(ReadError::Damage(Damage::Length { found, expected }));
    }
    let mut bytes = Vec::new();
    (&file).take(expected).read_to_end(&mut bytes).map_err(io)?;
    let (created_ns, slots) = layout::parse(&bytes, epoch).map_err(ReadError::Damage)?;
    let streams = slots.into_iter().map(|slot| FormerStream {
        stream: slot.stream,
        interface: slot.interface,
        opened_ns: slot.opened_ns,
        next_sequence: slot.totals.next_sequence,
        packets: slot.totals.packets,
        bytes: slot.totals.bytes,
        offered: slot.totals.offered,
        kernel_drops: slot.totals.kernel_drops,
        updated_ns: slot.totals.updated_ns,
        ended: slot.has_ended,
    });
    Ok(FormerRun { path: path.to_owned(), epoch, created_ns, streams: streams.collect(), _file: file })
}

#[cfg(test)]
impl TotalsFile {
    /// Number of a stream's next block, as the file says now. (Of a slot that is being written to only single words can
    /// be relied on: this is for who died.)
    pub fn next_sequence(&self, stream: u32) -> Option<u64> {
        let bytes = std::fs::read(&self.path).ok()?;
        let name = self.path.file_name()?.to_str()?.strip_prefix(NAME_PREFIX)?.to_owned();
        let (_, slots) = layout::parse(&bytes, Epoch::try_from(name).ok()?).ok()?;
        slots.into_iter().find(|slot| slot.stream == stream).map(|slot| slot.totals.next_sequence)
    }
}
