//! The hand-over from the threads that pack to the one that sends, and the wake-ups both ways.
//!
//! What waits here is bounded by the pool: every block is a buffer of it, and a thread that finds
//! no buffer free sleeps on its own wake-up, not on the ring (whose poll would spin).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use mio::{Registry, Token, Waker};
use nix::sys::eventfd::{EfdFlags, EventFd};
use wire::block::StreamKey;
use wire::description::Description;
use wire::ledger::Report;
use wire::masked::SealedBlock;

use crate::snapshot::{RingFigures, Snapshot};
use crate::spool::SpoolReply;

/// What a packing thread hands over.
#[derive(Debug)]
pub enum Handed {
    /// A stream is opened, or its table has grown. Its description block follows.
    Stream(StreamKey, Description),
    /// A packed block.
    Block(SealedBlock),
    /// Nothing older is to come in an idle stream: its number, and the time in ns.
    Mark(u32, u64),
    /// The spool's answer.
    Spool(SpoolReply),
    /// Where a stream stands, for the summary.
    Report {
        /// Number of the stream.
        stream: u32,
        /// What the relay is told, too.
        report: Report,
        /// Name of the thread that packs it.
        thread: Arc<str>,
        /// The ring that it comes from; `None` of a file, and when the ring ends with the stream.
        ring: Option<RingFigures>,
    },
    /// Somebody wants to know where everything stands, and waits for the answer.
    Look(SyncSender<Box<Snapshot>>),
    /// A packing thread has ended; an error is what it failed with.
    Ended(Result<(), String>),
}

/// The packing end. Clones feed the same uplink.
#[derive(Clone)]
pub struct Handover {
    sender: Sender<Handed>,
    waker: Arc<Waker>,
    room_is_short: Arc<AtomicBool>,
    masks_wanted: Arc<AtomicBool>,
    line: Arc<Line>,
}

/// What waits for the line.
#[derive(Debug)]
struct Line {
    /// Bytes of blocks that were handed over.
    handed_bytes: AtomicU64,
    /// How many of them wait no more; all, until somebody says otherwise.
    gone_bytes: AtomicU64,
}

/// More waits in the ring, where nothing was done for it yet: packed, it would have left the processor's caches when it
/// goes. Less would have a thread wait that packs one block of its ring after another.
const LINE_BYTES_MAX: u64 = 2 << 20;

impl Handover {
    /// Both ends; the receiving poll is woken under `token`.
    pub fn new(registry: &Registry, token: Token) -> io::Result<(Self, Receiver<Handed>)> {
        let (sender, receiver) = channel();
        let waker = Arc::new(Waker::new(registry, token)?);
        let (room_is_short, masks_wanted) = Default::default();
        let line = Line { handed_bytes: AtomicU64::new(0), gone_bytes: AtomicU64::new(u64::MAX) };
        Ok((Self { sender, waker, room_is_short, masks_wanted, line: Arc::new(line) }, receiver))
    }

    /// Hands over, and wakes the uplink.
    pub fn send(&self, handed: Handed) {
        self.put(handed);
        self.wake();
    }

    /// Hands over what has time until [`Handover::wake`], which must follow.
    pub fn put(&self, handed: Handed) {
        if let Handed::Block(block) = &handed {
            self.line.handed_bytes.fetch_add(block.byte_len() as u64, Ordering::AcqRel);
        }
        // When the uplink has ended there is nobody left to tell.
        let _ = self.sender.send(handed);
    }

    /// Whether bytes are dear, on the line or on the disk.
    pub fn room_is_short(&self) -> bool {
        self.room_is_short.load(Ordering::Relaxed)
    }

    /// Says whether they are.
    pub fn set_room_is_short(&self, is_short: bool) {
        self.room_is_short.store(is_short, Ordering::Relaxed);
    }

    /// Whether so much waits for the line that more had better stay in the ring until there is room again.
    pub fn line_is_full(&self) -> bool {
        self.waiting_bytes() > LINE_BYTES_MAX
    }

    /// Whether a line that was full has room again.
    pub fn line_has_room(&self) -> bool {
        self.waiting_bytes() <= LINE_BYTES_MAX / 2
    }

    fn waiting_bytes(&self) -> u64 {
        let gone = self.line.gone_bytes.load(Ordering::Acquire);
        self.line.handed_bytes.load(Ordering::Acquire).saturating_sub(gone)
    }

    /// Of what was handed over, so many bytes in all wait for the line no more, or are not meant to.
    pub fn set_gone(&self, bytes: u64) {
        self.line.gone_bytes.store(bytes, Ordering::Release);
    }

    /// Whether blocks go to a line on which masked ones are sent from where they lie.
    pub fn masks_wanted(&self) -> bool {
        self.masks_wanted.load(Ordering::Relaxed)
    }

    /// Says whether they do.
    pub fn set_masks_wanted(&self, are_wanted: bool) {
        self.masks_wanted.store(are_wanted, Ordering::Relaxed);
    }

    /// Wakes the uplink, to look at whatever else changed.
    pub fn wake(&self) {
        let _ = self.waker.wake();
    }
}

/// Wakes a packing thread out of its poll. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Wakeup {
    event: Arc<EventFd>,
    /// The thread found no buffer free.
    starved: Arc<AtomicBool>,
    /// The thread leaves what comes in its rings until the line has room.
    waits_for_line: Arc<AtomicBool>,
}

impl Wakeup {
    /// A wake-up that is not due.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { event: Arc::new(event), starved: Arc::default(), waits_for_line: Arc::default() })
    }

    /// Wakes the thread.
    pub fn wake(&self) {
        // Fails only when the counter is full, and then the thread is woken anyway.
        let _ = self.event.write(1);
    }

    /// Wakes the thread if it waits for a buffer.
    pub fn wake_if_starved(&self) {
        if self.starved.swap(false, Ordering::AcqRel) {
            self.wake();
        }
    }

    /// The thread waits for a buffer from now on. Look for one once more after this.
    pub fn set_starved(&self) {
        self.starved.store(true, Ordering::Release);
    }

    /// Wakes the thread if it waits for the line to have room.
    pub fn wake_if_it_waits_for_line(&self) {
        if self.waits_for_line.swap(false, Ordering::AcqRel) {
            self.wake();
        }
    }

    /// The thread waits for the line from now on. Look at it once more after this.
    pub fn set_waits_for_line(&self) {
        self.waits_for_line.store(true, Ordering::Release);
    }

    /// Takes note of a wake-up.
    pub fn clear(&self) {
        let _ = self.event.read();
    }
}

impl AsFd for Wakeup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// What is under way is no reason to wait for the next block as long as it is less than this.
const SMALL_BYTES: u64 = 64 << 10;

/// What paces the reading of a file: how much is under way, and whether somebody takes it.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    shared: Arc<(Mutex<PaceState>, Condvar)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct PaceState {
    handed_bytes: u64,
    settled_bytes: u64,
    /// What the relay lets us have under way; `None` while there is no relay.
    window_bytes: Option<u64>,
    has_been_taken: bool,
    stopped: bool,
}

impl Pace {
    /// Counts a block that is handed over.
    pub fn add(&self, bytes: usize) {
        self.lock().handed_bytes += bytes as u64;
    }

    /// The uplink has let go of so many bytes in all, so many viewers take them, and the relay
    /// lets so many be under way.
    pub fn update(&self, settled_bytes: u64, viewers: u32, window_bytes: Option<u64>) {
        let mut state = self.lock();
        state.settled_bytes = settled_bytes;
        state.window_bytes = window_bytes;
        state.has_been_taken |= viewers > 0;
        drop(state);
        self.shared.1.notify_all();
    }

    /// Ends every wait.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.shared.1.notify_all();
    }

    /// Waits until `next_bytes` more may be under way: at most `limit_bytes` in all, at most what
    /// the relay says, but always one block, and a description before it. With `for_viewer` also until a first viewer takes
    /// them. `false`: stopped.
    pub fn wait(&self, next_bytes: u64, limit_bytes: u64, for_viewer: bool) -> bool {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return false;
            }
            let under_way = state.handed_bytes.saturating_sub(state.settled_bytes);
            let may = state.window_bytes.is_some_and(|window| {
                under_way <= SMALL_BYTES || under_way + next_bytes <= window.min(limit_bytes)
            });
            if may && (!for_viewer || state.has_been_taken) {
                return true;
            }
            let waited = self.shared.1.wait_timeout(state, Duration::from_secs(1));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether everything is to end.
    pub fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, PaceState> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
