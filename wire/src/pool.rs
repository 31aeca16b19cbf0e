//! Buffers that come back: byte buffers in size classes under one budget.
//!
//! Invariants:
//! * the bytes handed out, shared and kept for reuse never exceed the budget;
//! * a [`Buffer`] or the last clone of the [`Bytes`] made from it returns its memory here, from
//!   whatever thread drops it;
//! * memory is zeroed once, when it is first had, so a buffer may hold old bytes of this process
//!   but never uninitialised ones.
//!
//! Size classes are 2^k and 1.5 * 2^k bytes, so that a block and LZ4's worst case for it (1.1
//! times) waste at most a third.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Smallest class; also the granularity of accounting.
const CLASS_MIN_BYTES: usize = 512;
/// Classes up to 24 MiB, enough for the largest packed block and its header.
const CLASS_COUNT: usize = 32;

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
    free: Mutex<[Vec<Box<[u8]>>; CLASS_COUNT]>,
}

impl Shared {
    /// What is kept for reuse counts too: gives up kept buffers where there is no room for them.
    fn trim(&self, free: &mut [Vec<Box<[u8]>>; CLASS_COUNT]) {
        let used = self.used_bytes.load(Ordering::Acquire);
        for list in free.iter_mut() {
            while used + self.kept_bytes.load(Ordering::Acquire) > self.budget_bytes {
                let Some(memory) = list.pop() else { break };
                self.kept_bytes.fetch_sub(memory.len(), Ordering::AcqRel);
            }
        }
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
        };
        Self { shared: Arc::new(shared) }
    }

    /// A buffer of exactly `len` bytes with arbitrary content, or `None` when the budget is used up.
    pub fn take(&self, len: usize) -> Option<Buffer> {
        let (class, class_bytes) = class_of(len)?;
        let shared = &self.shared;
        let claim = |used: usize| {
            let after = used.checked_add(class_bytes)?;
            (after <= shared.budget_bytes).then_some(after)
        };
        shared.used_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, claim).ok()?;
        let mut free = shared.free.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = match free[class].pop() {
            Some(memory) => {
                shared.kept_bytes.fetch_sub(class_bytes, Ordering::AcqRel);
                memory
            }
            None => {
                shared.trim(&mut free);
                drop(free);
                vec![0; class_bytes].into_boxed_slice()
            }
        };
        Some(Buffer { memory, len, class, shared: Arc::clone(shared) })
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
        if shared.used_bytes.load(Ordering::Acquire) + shared.kept_bytes.load(Ordering::Acquire)
            > shared.budget_bytes
        {
            shared.trim(&mut shared.free.lock().unwrap_or_else(PoisonError::into_inner));
        }
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
    let mut class = 0;
    while class < CLASS_COUNT {
        let base = CLASS_MIN_BYTES << (class / 2);
        let class_bytes = if class % 2 == 0 { base } else { base + base / 2 };
        if len <= class_bytes {
            return Some((class, class_bytes));
        }
        class += 1;
    }
    None
}

/// A buffer of a [`Pool`]: writable, owned by one, returned when dropped.
#[derive(Debug)]
pub struct Buffer {
    /// Empty only while being dropped.
    memory: Box<[u8]>,
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

    /// Bytes of memory behind the buffer, at least its length.
    pub fn capacity(&self) -> usize {
        self.memory.len()
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
        let memory = std::mem::take(&mut self.memory);
        let bytes = memory.len();
        {
            let mut free = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner);
            free[self.class].push(memory);
            self.shared.kept_bytes.fetch_add(bytes, Ordering::AcqRel);
        }
        self.shared.used_bytes.fetch_sub(bytes, Ordering::AcqRel);
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
