//! Buffers that come back: byte buffers in size classes under one budget.
//!
//! Invariants:
//! * the bytes handed out, shared and kept for reuse do not exceed the budget when a buffer is taken (what is cut
//!   from a huge page counts by itself, and by the page when that is kept; what makes a long buffer begin at a page
//!   does not count);
//! * a [`Buffer`] or the last clone of the [`Bytes`] made from it returns its memory here, from
//!   whatever thread drops it;
//! * memory is zeroed once, when it is first had, so a buffer may hold old bytes of this process
//!   but never uninitialised ones.
//!
//! Size classes are 2^k and 1.5 * 2^k bytes, so that a block and LZ4's worst case for it (1.1
//! times) waste at most a third.

#[cfg_attr(not(target_os = "linux"), path = "no_pages.rs")]
mod pages;

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;

use self::pages::{Pages, Slice};
use crate::message::ENVELOPE_BYTES;

/// Smallest class; also the granularity of accounting.
const CLASS_MIN_BYTES: usize = 512;
/// Classes up to 24 MiB, enough for the largest packed block and its header.
const CLASS_COUNT: usize = 32;

/// A shorter buffer is never given away: it is cheaper to copy.
pub const GIVEN_BYTES_MIN: usize = 64 << 10;
/// What is not shorter begins at a page of so many bytes: see [`LENT_INTO_PAGE`].
const PAGE_BYTES: usize = 4096;
/// Where in its page a buffer begins that is to be lent: behind an envelope, as the block in a message that is read into a
/// long buffer. What is copied from one page to just behind the same place in another takes three times as long on some
/// processors (`rep movsb`, Zen 3), for each write seems to change what is read next.
const LENT_INTO_PAGE: usize = ENVELOPE_BYTES;

/// A pool of byte buffers under a budget. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    budget_bytes: usize,
    /// Bytes of buffers that somebody holds.
    used_bytes: AtomicUsize,
    /// Bytes of buffers waiting in `free`.
    kept_bytes: AtomicUsize,
    free: Mutex<[Vec<Kept>; CLASS_COUNT]>,
    /// Memory that can be given away, once that was preferred, where there is such.
    pages: OnceLock<Option<Arc<Pages>>>,
    /// Long buffers are to be had there.
    prefers_pages: AtomicBool,
}

impl Shared {
    /// What is kept for reuse counts too: gives up kept buffers where there is no room for them.
    fn trim(&self, free: &mut [Vec<Kept>; CLASS_COUNT]) {
        for list in free.iter_mut() {
            while self.is_over() {
                let Some(memory) = list.pop() else { break };
                self.kept_bytes.fetch_sub(memory.len(), Ordering::AcqRel);
            }
        }
        let pages = self.pages.get().and_then(Option::as_ref);
        while self.is_over() && pages.is_some_and(|pages| pages.trim()) {}
    }

    /// The same, where nothing is taken of what is kept.
    fn make_room(&self) {
        if self.is_over() {
            self.trim(&mut self.free.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Whether what is used and what is kept are too much together.
    fn is_over(&self) -> bool {
        let pages = self.pages.get().and_then(Option::as_ref).map_or(0, |pages| pages.kept_bytes());
        let kept = self.kept_bytes.load(Ordering::Acquire) + pages;
        self.used_bytes.load(Ordering::Acquire) + kept > self.budget_bytes
    }
}

impl Pool {
    /// A pool that hands out at most `budget_bytes` at a time.
    pub fn new(budget_bytes: usize) -> Self {
        let shared = Shared {
            budget_bytes,
            used_bytes: AtomicUsize::new(0),
            kept_bytes: AtomicUsize::new(0),
            free: Mutex::new(std::array::from_fn(|_| Vec::new())),
            pages: OnceLock::new(),
            prefers_pages: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Whether the long buffers that are taken from now on are to be given away by [`Pool::give`], as far as the
    /// system can do that; at first they are not. Memory that comes back is warmer in the processor's cache: it is
    /// the better one for what stays.
    pub fn prefer_giving(&self, prefers: bool) {
        if prefers {
            self.find_pages();
        }
        self.shared.prefers_pages.store(prefers, Ordering::Relaxed);
    }

    /// `bytes`, of a buffer of this pool, as what is to be given away, if it is long and of memory that can be.
    pub fn give<'a>(&self, bytes: &'a Bytes) -> Piece<'a> {
        let is_given = bytes.len() >= GIVEN_BYTES_MIN && self.pages().is_some_and(|pages| pages.give(bytes));
        Piece { bytes, is_given }
    }

    fn find_pages(&self) {
        self.shared.pages.get_or_init(|| Pages::new(self.shared.budget_bytes).map(Arc::new));
    }

    fn pages(&self) -> Option<&Arc<Pages>> {
        self.shared.pages.get()?.as_ref()
    }

    /// `bytes`, of a buffer of this pool, are to be read by somebody else by reference, until [`Pool::take_back`]; if that
    /// never comes, their memory is not used again. Whether they may be: they are long, and of memory that can be lent.
    pub fn lend(&self, bytes: &Bytes) -> bool {
        self.give(bytes).is_given
    }

    /// Nobody reads `bytes`, which were lent once, any more.
    pub fn take_back(&self, bytes: &Bytes) {
        if let Some(pages) = self.pages() {
            pages.take_back(bytes);
        }
    }

    /// Lent, or given away, and neither taken back nor replaced.
    #[cfg(test)]
    pub(crate) fn lent_now(&self) -> u32 {
        self.pages().map_or(0, |pages| pages.given_now())
    }

    /// A buffer of exactly `len` bytes with arbitrary content, or `None` when the budget is used up.
    pub fn take(&self, len: usize) -> Option<Buffer> {
        self.take_of(len, self.shared.prefers_pages.load(Ordering::Relaxed).then_some(0))
    }

    /// The same, and a long one is of memory that can be lent, where there is such.
    pub fn take_to_lend(&self, len: usize) -> Option<Buffer> {
        self.find_pages();
        self.take_of(len, Some(LENT_INTO_PAGE))
    }

    /// `into_page`: it is to be lent or given away, and begins so far into a page.
    fn take_of(&self, len: usize, into_page: Option<usize>) -> Option<Buffer> {
        let (class, class_bytes) = class_of(len)?;
        let shared = &self.shared;
        let claim = |used: usize| {
            let after = used.checked_add(class_bytes)?;
            (after <= shared.budget_bytes).then_some(after)
        };
        shared.used_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, claim).ok()?;
        if len >= GIVEN_BYTES_MIN
            && let Some(into_page) = into_page
            && let Some(slice) = self.pages().and_then(|pages| pages.take(len, into_page))
        {
            shared.make_room();
            return Some(Buffer { memory: Memory::Slice(slice), len, class, shared: Arc::clone(shared) });
        }
        let mut free = shared.free.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = match free[class].pop() {
            Some(memory) => {
                shared.kept_bytes.fetch_sub(class_bytes, Ordering::AcqRel);
                memory
            }
            None => {
                shared.trim(&mut free);
                drop(free);
                Kept::new(class_bytes)
            }
        };
        Some(Buffer { memory: Memory::Kept(memory), len, class, shared: Arc::clone(shared) })
    }

    /// Counts `bytes` of other memory against the budget, or `None` when it is used up.
    pub fn charge(&self, bytes: usize) -> Option<Charge> {
        let mut charge = Charge { bytes: 0, shared: Arc::clone(&self.shared) };
        charge.set(bytes).then_some(charge)
    }

    /// Bytes that are handed out now, as size classes count them.
    pub fn used_bytes(&self) -> usize {
        self.shared.used_bytes.load(Ordering::Acquire)
    }

    /// The budget this pool was made with, in bytes.
    pub fn budget_bytes(&self) -> usize {
        self.shared.budget_bytes
    }
}

/// Bytes on their way out of the process.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    bytes: &'a [u8],
    is_given: bool,
}

impl<'a> Piece<'a> {
    /// Whether a pipe may have their pages rather than a copy: that memory is not used again.
    pub fn is_given(self) -> bool {
        self.is_given
    }

    /// The first `bytes`, or all.
    pub fn until(self, bytes: usize) -> Self {
        Self { bytes: &self.bytes[..bytes.min(self.bytes.len())], ..self }
    }

    /// Without the first `bytes`.
    pub fn after(self, bytes: usize) -> Self {
        Self { bytes: &self.bytes[bytes.min(self.bytes.len())..], ..self }
    }
}

impl<'a> From<&'a [u8]> for Piece<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self { bytes, is_given: false }
    }
}

impl<'a> From<&'a Vec<u8>> for Piece<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        bytes[..].into()
    }
}

impl Deref for Piece<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

/// Memory that is not of the pool and counts against its budget all the same, until it is dropped.
#[derive(Debug)]
pub struct Charge {
    bytes: usize,
    shared: Arc<Shared>,
}

impl Charge {
    /// How much it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// It is `bytes` now. Less is always right; `false`, and nothing changed, when there is no room
    /// for more.
    pub fn set(&mut self, bytes: usize) -> bool {
        let shared = &self.shared;
        if bytes <= self.bytes {
            shared.used_bytes.fetch_sub(self.bytes - bytes, Ordering::AcqRel);
            self.bytes = bytes;
            return true;
        }
        let more = bytes - self.bytes;
        let claim = |used: usize| used.checked_add(more).filter(|after| *after <= shared.budget_bytes);
        if shared.used_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, claim).is_err() {
            return false;
        }
        self.bytes = bytes;
        shared.make_room();
        true
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.shared.used_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// The class that holds `len` bytes, and its size; `None` above the largest.
fn class_of(len: usize) -> Option<(usize, usize)> {
    (0..CLASS_COUNT).map(|class| (class, class_bytes(class))).find(|(_, class_bytes)| len <= *class_bytes)
}

/// Bytes of the buffers of a class.
fn class_bytes(class: usize) -> usize {
    let base = CLASS_MIN_BYTES << (class / 2);
    if class.is_multiple_of(2) { base } else { base + base / 2 }
}

/// Memory that is kept for the next buffer.
#[derive(Debug, Default)]
struct Kept {
    /// The buffer is what is behind `start`.
    memory: Vec<u8>,
    start: usize,
}

impl Kept {
    fn new(bytes: usize) -> Self {
        if bytes < GIVEN_BYTES_MIN {
            return Self { memory: vec![0; bytes], start: 0 };
        }
        let mut memory = vec![0; bytes + PAGE_BYTES];
        let start = memory.as_ptr().align_offset(PAGE_BYTES).min(PAGE_BYTES);
        memory.truncate(start + bytes);
        Self { memory, start }
    }
}

impl Deref for Kept {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..]
    }
}

impl DerefMut for Kept {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..]
    }
}

/// What is behind a buffer.
#[derive(Debug)]
enum Memory {
    /// Kept for the next one. Empty only while being dropped.
    Kept(Kept),
    /// It may be given away.
    Slice(Slice),
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Memory::Kept(memory) => memory,
            Memory::Slice(slice) => slice,
        }
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Memory::Kept(memory) => memory,
            Memory::Slice(slice) => slice,
        }
    }
}

/// A buffer of a [`Pool`]: writable, owned by one, returned when dropped.
#[derive(Debug)]
pub struct Buffer {
    memory: Memory,
    len: usize,
    class: usize,
    shared: Arc<Shared>,
}

impl Buffer {
    /// Shortens the buffer to `len` bytes; longer has no effect.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Makes the buffer `len` bytes long, if its memory is: what is added is old content.
    pub fn set_len(&mut self, len: usize) -> bool {
        let fits = len <= self.memory.len();
        if fits {
            self.len = len;
        }
        fits
    }

    /// Its bytes. Asked for each packet: the memory is not looked at.
    #[allow(clippy::len_without_is_empty)] // a slice has it
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes of memory behind the buffer, at least its length.
    pub fn capacity(&self) -> usize {
        self.memory.len()
    }

    /// Whether its memory can be lent or given away, if it is long.
    pub fn can_be_lent(&self) -> bool {
        matches!(self.memory, Memory::Slice(_))
    }

    /// Makes the content shareable without copying it; the memory returns with the last clone.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.len]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let class_bytes = class_bytes(self.class);
        if let Memory::Kept(memory) = &mut self.memory {
            let memory = std::mem::take(memory);
            let mut free = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner);
            free[self.class].push(memory);
            self.shared.kept_bytes.fetch_add(class_bytes, Ordering::AcqRel);
        }
        self.shared.used_bytes.fetch_sub(class_bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_grow_and_cover() {
        let mut last = 0;
        for len in [0, 1, 512, 513, 768, 769, 1 << 20, (1 << 20) + 1, 16 << 20, (16 << 20) + 200] {
            let (_, bytes) = class_of(len).expect("within the classes");
            assert!(bytes >= len && bytes >= last);
            last = bytes;
        }
        assert!(class_of(64 << 20).is_none());
    }

    #[test]
    fn budget_is_kept_and_memory_returns() {
        let pool = Pool::new(4096);
        let one = pool.take(2000).expect("fits");
        let two = pool.take(2048).expect("fits exactly");
        assert!(pool.take(1).is_none());
        let shared = two.freeze();
        let clone = shared.slice(10..20);
        drop(shared);
        assert!(pool.take(1).is_none(), "a clone still holds the memory");
        drop(clone);
        assert_eq!(pool.used_bytes(), 2048);
        drop(one);
        assert_eq!(pool.used_bytes(), 0);
        // Kept buffers of one class make room for another class.
        let all = pool.take(4096).expect("the whole budget");
        assert_eq!(all.len(), 4096);
        assert_eq!(pool.shared.kept_bytes.load(Ordering::Acquire), 0);
    }

    #[test]
    fn long_buffers_are_given_away_where_that_is_preferred() {
        let pool = Pool::new(8 << 20);
        let given = |pool: &Pool, len: usize| {
            let mut buffer = pool.take(len).expect("fits");
            buffer.fill(3);
            let bytes = buffer.freeze();
            let piece = pool.give(&bytes);
            assert_eq!((piece.len(), piece.until(10).len(), piece.after(10).len()), (len, 10, len - 10));
            assert!(piece.iter().all(|byte| *byte == 3));
            piece.is_given()
        };
        assert!(!given(&pool, GIVEN_BYTES_MIN), "not yet");
        pool.prefer_giving(true);
        let has_huge_pages = given(&pool, GIVEN_BYTES_MIN);
        assert!(!given(&pool, GIVEN_BYTES_MIN - 1));
        assert!(!given(&Pool::new(8 << 20), GIVEN_BYTES_MIN));
        // The budget is the same, wherever the memory is.
        let all: Vec<Buffer> = std::iter::from_fn(|| pool.take(1 << 20)).collect();
        assert_eq!((all.len(), pool.used_bytes()), (8, 8 << 20));
        let first = all.into_iter().next().expect("eight").freeze();
        assert_eq!((pool.give(&first).is_given(), pool.used_bytes()), (has_huge_pages, 1 << 20));
        drop(first);
        assert_eq!(pool.used_bytes(), 0);
    }

    #[test]
    fn other_memory_counts_too() {
        let pool = Pool::new(4096);
        drop(pool.take(2048).expect("fits"));
        let mut charge = pool.charge(1000).expect("fits");
        assert!(!charge.set(4097) && pool.used_bytes() == 1000);
        assert!(charge.set(4096));
        assert_eq!(pool.shared.kept_bytes.load(Ordering::Acquire), 0, "what was kept made room");
        assert!(pool.take(1).is_none() && pool.charge(1).is_none());
        assert!(charge.set(10) && pool.take(2048).is_some());
        drop(charge);
        assert_eq!(pool.used_bytes(), 0);
    }
}
