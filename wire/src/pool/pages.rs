//! Buffers whose memory can be given away: to a pipe, by reference, instead of a copy.
//!
//! A write to a pipe copies into pages that the kernel finds, charges to us and takes back when they were
//! read, each by itself: the copy is the least of it. vmsplice(2) hands over our own pages instead. But the
//! reader may look at them at any later time, and may pass them on by reference itself (splice, tee), so
//! they must never be written again, and nothing tells when they are done with. So they are not used again:
//! buffers are cut from slabs of one huge page each, and a slab of which something was given away is let go,
//! once nobody holds a buffer of it, and comes back as another huge page. The kernel frees the former when
//! the last reader is done, all at once. What this costs is the clearing of a huge page. What was only lent, to a
//! reader that says when it is done, is taken back then, and stays.
//!
//! 4 GiB in pieces of 256 KiB, each filled by a copy, both ends on one core of a Zen 3 (Linux 6.18, six runs):
//! 255 to 376 ns for 1,514 bytes where they are written and 219 to 273 where they are read; given away, 155 to
//! 248 and 98 to 125; in fresh small pages 770 to 1,350 and 108 to 142.
//!
//! Invariants:
//! * memory of a slab is written by who holds a [`Slice`] of it, exclusively, and no two slices overlap;
//! * a slab that a slice was given away of, and not taken back, has its memory replaced before another slice is cut from it.
//!
//! So where the system has no huge page, or takes long to find one, there is no slice for a while, and the
//! caller uses other memory.
#![allow(unsafe_code)]

use std::ffi::{c_long, c_void};
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use nix::sys::resource::{UsageWho, getrusage};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};

use super::PAGE_BYTES;

/// Bytes of a slab: a huge page, where small pages have [`PAGE_BYTES`]. Where those are larger, so are huge ones, and
/// there are no slices.
const SLAB_BYTES: usize = 2 << 20;
/// Without a huge page, or after some that were slow to come, so many slices that need another are refused before
/// the next attempt.
const REFUSED_MEANWHILE: u32 = 1024;
/// A huge page that took more of our time was not only cleared (0.1 to 0.4 ms; 3 to 5 where a host has to find the memory
/// of a guest first): memory was moved to make it.
const SLOW_TIME: Duration = Duration::from_millis(5);
/// So many in a row say it. One does not: what a host takes of a virtual processor's time counts as ours.
const SLOW_MAX: u32 = 3;

const PROTECTION: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);
const FLAGS: MapFlags = MapFlags::MAP_PRIVATE.union(MapFlags::MAP_NORESERVE);

/// Slabs, and what is cut from them.
#[derive(Debug)]
pub(super) struct Pages {
    mapping: NonNull<c_void>,
    mapping_bytes: NonZeroUsize,
    /// The first slab; the others follow it.
    base: NonNull<u8>,
    /// [`SLOW_TIME`].
    slow_time: Duration,
    state: Mutex<State>,
    /// Free slabs that have a page.
    kept: AtomicUsize,
}

// SAFETY: a mapping belongs to the process, not to a thread; its memory is reached through slices alone.
unsafe impl Send for Pages {}
// SAFETY: as above; which slices there are is decided under the mutex.
unsafe impl Sync for Pages {}

#[derive(Debug)]
struct State {
    slabs: Vec<Slab>,
    /// Slabs of which nobody holds a slice, the one to use next at the end; those that have a page are behind the others.
    free: Vec<usize>,
    /// The slab that slices are cut from, and its bytes that have been.
    open: Option<(usize, usize)>,
    /// So many slices that need another slab are refused before the next attempt to have a huge page.
    refusals: u32,
    /// So many huge pages in a row were slow to come.
    slow: u32,
    /// Part of the mapping may be unmapped, and somebody else's by now.
    is_torn: bool,
}

#[derive(Clone, Debug, Default)]
struct Slab {
    /// Slices that somebody holds.
    slices: u32,
    /// It has a huge page.
    has_page: bool,
    /// So often was something given away of that, and not taken back.
    given: u32,
}

/// Memory cut from a slab, owned by one.
#[derive(Debug)]
pub(super) struct Slice {
    start: NonNull<u8>,
    bytes: usize,
    slab: usize,
    pages: Arc<Pages>,
}

// SAFETY: it owns its memory, as a box would.
unsafe impl Send for Slice {}
// SAFETY: a shared reference gives shared bytes alone.
unsafe impl Sync for Slice {}

impl Pages {
    /// Slabs of `bytes` in all, rounded down. They take memory when they are used. `None` where the system has
    /// no huge pages of our size on demand.
    pub(super) fn new(bytes: usize) -> Option<Self> {
        let page_bytes = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
        let pages = Self::mapped(bytes, SLOW_TIME).filter(|_| page_bytes == Some(PAGE_BYTES as c_long))?;
        pages.advise(MmapAdvise::MADV_HUGEPAGE).then_some(pages)
    }

    fn mapped(bytes: usize, slow_time: Duration) -> Option<Self> {
        let count = bytes / SLAB_BYTES;
        let mapping_bytes = NonZeroUsize::new((count + 1) * SLAB_BYTES)?;
        // SAFETY: a new mapping at an address of the kernel's choice; it aliases nothing of ours.
        let mapping = unsafe { mmap_anonymous(None, mapping_bytes, PROTECTION, FLAGS) }.ok()?;
        let address = mapping.as_ptr().addr();
        // SAFETY: this is less than SLAB_BYTES further, and the mapping has that much over `count` slabs.
        let base = unsafe { mapping.cast::<u8>().add(address.next_multiple_of(SLAB_BYTES) - address) };
        let slabs = vec![Slab::default(); count];
        let free = (0..count).rev().collect();
        let state = State { slabs, free, open: None, refusals: 0, slow: 0, is_torn: false };
        let (state, kept) = (Mutex::new(state), AtomicUsize::new(0));
        Some(Self { mapping, mapping_bytes, base, slow_time, state, kept })
    }

    /// Gives an advice for all slabs. Whether it was taken.
    fn advise(&self, advice: MmapAdvise) -> bool {
        let bytes = self.lock().slabs.len() * SLAB_BYTES;
        // SAFETY: the range lies within our mapping; the advices that are given change no content.
        unsafe { madvise(self.base.cast(), bytes, advice) }.is_ok()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under the lock panics half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory of at least `bytes` bytes with arbitrary content of this process, beginning so many bytes into a page. `None`
    /// where there is none: the caller uses other memory.
    pub(super) fn take(self: &Arc<Self>, bytes: usize, into_page: usize) -> Option<Slice> {
        let all = bytes.checked_add(into_page)?.checked_next_multiple_of(PAGE_BYTES)?;
        if all > SLAB_BYTES || into_page >= PAGE_BYTES {
            return None;
        }
        let mut state = self.lock();
        let (slab, offset) = match state.open {
            Some((slab, filled)) if all <= SLAB_BYTES - filled => (slab, filled),
            _ => (self.open(&mut state)?, 0),
        };
        state.open = Some((slab, offset + all));
        state.slabs[slab].slices += 1;
        drop(state);
        // SAFETY: `into_page` is at most `all`, and `offset + all` at most SLAB_BYTES, so this lies within the slab.
        let start = unsafe { self.at(slab).add(offset + into_page) };
        Some(Slice { start, bytes: all - into_page, slab, pages: Arc::clone(self) })
    }

    /// Begins with a slab that nobody holds a slice of, after that under way.
    fn open(&self, state: &mut State) -> Option<usize> {
        if state.refusals > 0 {
            state.refusals -= 1;
            return None;
        }
        if let Some((slab, _)) = state.open.take()
            && state.slabs[slab].slices == 0
        {
            self.put_back(state, slab);
        }
        let slab = state.free.pop()?;
        if state.slabs[slab].has_page {
            self.kept.fetch_sub(1, Ordering::AcqRel);
            return Some(slab);
        }
        let before = used();
        self.touch(slab);
        let after = used();
        // A huge page comes at the first touch, whole, and the second touch is no fault.
        let (is_huge, is_slow) = match (before, after) {
            (Some(before), Some(after)) => {
                (after.faults <= before.faults + 1, after.time.saturating_sub(before.time) > self.slow_time)
            }
            _ => (false, true),
        };
        state.slow = if is_slow { state.slow + 1 } else { 0 };
        if !is_huge || state.slow >= SLOW_MAX {
            (state.refusals, state.slow) = (REFUSED_MEANWHILE, 0);
        }
        if is_huge {
            state.slabs[slab].has_page = true;
            return Some(slab);
        }
        match self.replace(slab) {
            true => state.free.insert(0, slab),
            false => state.is_torn = true,
        }
        None
    }

    /// Nobody holds a slice of the slab any more, and none is cut from it.
    fn put_back(&self, state: &mut State, slab: usize) {
        if std::mem::take(&mut state.slabs[slab].given) > 0 {
            state.slabs[slab].has_page = false;
            if !self.let_go(slab) {
                return; // it is not used again
            }
            // Those that have a page are used first.
            let at = state.free.partition_point(|slab| !state.slabs[*slab].has_page);
            return state.free.insert(at, slab);
        }
        self.kept.fetch_add(1, Ordering::AcqRel);
        state.free.push(slab);
    }

    /// Bytes of free slabs that keep their memory, for nothing was given away of it.
    pub(super) fn kept_bytes(&self) -> usize {
        self.kept.load(Ordering::Acquire) * SLAB_BYTES
    }

    /// One of them gives it up, the one that was used longest ago. `false`: there is none.
    pub(super) fn trim(&self) -> bool {
        let mut state = self.lock();
        let at = state.free.partition_point(|slab| !state.slabs[*slab].has_page);
        let Some(slab) = state.free.get(at).copied() else { return false };
        self.kept.fetch_sub(1, Ordering::AcqRel);
        state.slabs[slab].has_page = false;
        if !self.let_go(slab) {
            state.free.remove(at); // it is not used again
        }
        true
    }

    /// Leaves the slab's memory to who it was given to. Whether that was done.
    fn let_go(&self, slab: usize) -> bool {
        // SAFETY: the range is within our mapping, and nobody has a reference into it: slices alone have, and
        // there are none. What a pipe holds are the pages, not the mapping.
        unsafe { madvise(self.at(slab).cast(), SLAB_BYTES, MmapAdvise::MADV_DONTNEED) }.is_ok()
    }

    /// Maps the slab anew: once there were small pages, many kernels put no huge one there. Whether that was done; if
    /// not, nothing may be mapped there.
    fn replace(&self, slab: usize) -> bool {
        let place = self.at(slab).cast::<c_void>();
        let (Some(bytes), flags) = (NonZeroUsize::new(SLAB_BYTES), FLAGS | MapFlags::MAP_FIXED) else {
            return false;
        };
        // SAFETY: the range is within our mapping, and nobody has a reference into it, as above.
        let mapped = unsafe { mmap_anonymous(place.addr().into(), bytes, PROTECTION, flags) };
        // SAFETY: the range is what was mapped just now; the advice changes no content.
        mapped.is_ok() && unsafe { madvise(place, SLAB_BYTES, MmapAdvise::MADV_HUGEPAGE) }.is_ok()
    }

    /// Writes to two places of a slab that has no memory.
    fn touch(&self, slab: usize) {
        for offset in [0, SLAB_BYTES / 2] {
            // SAFETY: within the slab, which nobody has a reference into.
            unsafe { self.at(slab).add(offset).write_volatile(0) };
        }
    }

    fn at(&self, slab: usize) -> NonNull<u8> {
        // SAFETY: `slab` is an index of `State::slabs`, each of which lies within the mapping.
        unsafe { self.base.add(slab * SLAB_BYTES) }
    }

    /// The bytes are to be given away, if they are of a slab; whether they are. Their slice must be shared for
    /// good: nobody writes to it again.
    pub(super) fn give(&self, bytes: &[u8]) -> bool {
        let mut state = self.lock();
        match self.slab_of(&mut state, bytes) {
            Some(slab) => slab.given += 1,
            None => return false,
        }
        true
    }

    /// Nobody has a reference any more to bytes that were given away; somebody here still holds their slice.
    pub(super) fn take_back(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if let Some(slab) = self.slab_of(&mut state, bytes) {
            slab.given = slab.given.saturating_sub(1);
        }
    }

    #[cfg(test)]
    pub(super) fn given_now(&self) -> u32 {
        self.lock().slabs.iter().map(|slab| slab.given).sum()
    }

    fn slab_of<'a>(&self, state: &'a mut State, bytes: &[u8]) -> Option<&'a mut Slab> {
        let offset = bytes.as_ptr().addr().wrapping_sub(self.base.as_ptr().addr());
        state.slabs.get_mut(offset / SLAB_BYTES)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if self.lock().is_torn {
            return;
        }
        // SAFETY: the range that mmap returned, once, all of it still ours; every slice holds `self`, so there are none.
        let _ = unsafe { munmap(self.mapping, self.mapping_bytes.get()) };
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the memory is mapped as long as `pages` is, initialised (by the kernel, with zeros, at the least),
        // and belongs to this slice alone.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl DerefMut for Slice {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        let mut state = self.pages.lock();
        state.slabs[self.slab].slices -= 1;
        let is_open = state.open.is_some_and(|(open, _)| open == self.slab);
        if state.slabs[self.slab].slices == 0 && !is_open {
            self.pages.put_back(&mut state, self.slab);
        }
    }
}

/// What this thread has used.
struct Used {
    /// Page faults that needed no disk.
    faults: c_long,
    /// Time of a processor.
    time: Duration,
}

fn used() -> Option<Used> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).ok()?;
    // The usage tells the time as of the last tick: in steps of 4 ms, where that is 250 Hz.
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).ok()?.into();
    Some(Used { faults: usage.minor_page_faults(), time })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{IoSlice, Read};

    use nix::fcntl::{FcntlArg, SpliceFFlags, fcntl, splice, vmsplice};
    use nix::unistd::pipe;

    use super::*;

    const SLICE_BYTES: usize = 256 << 10;

    /// Two slabs, where the system has huge pages.
    fn two_slabs() -> Option<Arc<Pages>> {
        let pages = Arc::new(Pages::mapped(2 * SLAB_BYTES, Duration::MAX).expect("a mapping"));
        assert!(pages.advise(MmapAdvise::MADV_HUGEPAGE));
        if pages.take(1, 0).is_some() {
            return Some(pages);
        }
        assert!(
            std::env::var_os("RINGCAST_REQUIRE_ALL").is_none(),
            "no huge page (/sys/kernel/mm/transparent_hugepage/enabled), but nothing may be skipped here"
        );
        eprintln!("skipped: no huge page (/sys/kernel/mm/transparent_hugepage/enabled)");
        None
    }

    #[test]
    fn slices_do_not_overlap_and_come_back() {
        let Some(pages) = two_slabs() else { return };
        for round in 0..3u8 {
            let mut slices = Vec::new();
            for (number, bytes) in (round..).zip([1, 4096, 4097, SLICE_BYTES, SLAB_BYTES / 2].iter().cycle())
            {
                let Some(mut slice) = pages.take(*bytes, 0) else { break };
                assert!(slice.len() >= *bytes && slice.as_ptr().addr().is_multiple_of(PAGE_BYTES));
                slice.fill(number);
                slices.push(slice);
            }
            assert!(slices.iter().map(|slice| slice.len()).sum::<usize>() > SLAB_BYTES);
            for (number, slice) in (round..).zip(&slices) {
                assert!(slice.iter().all(|byte| *byte == number));
            }
        }
        assert!(pages.take(SLAB_BYTES + 1, 0).is_none());
    }

    #[test]
    fn memory_that_was_given_away_is_replaced_and_other_is_not() {
        let Some(pages) = two_slabs() else { return };
        // Given so often, taken back so often.
        for (given, back) in [(0, 0), (1, 1), (2, 2), (1, 0), (2, 1)] {
            let mut slice = pages.take(SLAB_BYTES, 0).expect("all of a slab");
            slice.fill(7);
            (0..given).for_each(|_| assert!(pages.give(&slice[100..200])));
            (0..back).for_each(|_| pages.take_back(&slice[100..200]));
            drop(slice);
            let slice = pages.take(SLAB_BYTES, 0).expect("the slab that was free last");
            assert_eq!((slice[0], slice[SLAB_BYTES - 1]), if given > back { (0, 0) } else { (7, 7) });
        }
        assert!(!pages.give(&[0; 10]), "that is other memory");
    }

    /// A reader may pass on what it was given by reference, and look at it when all our memory has been
    /// used again.
    #[test]
    fn what_was_given_away_stays_as_it_was() {
        let Some(pages) = two_slabs() else { return };
        let (from_us, to_reader) = pipe().expect("a pipe");
        let (kept, keeper) = pipe().expect("a pipe");
        for end in [&to_reader, &keeper] {
            fcntl(end, FcntlArg::F_SETPIPE_SZ(SLICE_BYTES as i32)).expect("within what anybody may have");
        }
        let mut kept = File::from(kept);
        for round in 1..=20u8 {
            let mut slice = pages.take(SLICE_BYTES, 0).expect("free");
            slice.fill(round);
            assert!(pages.give(&slice));
            let (mut given, mut passed_on) = (0, 0);
            while given < SLICE_BYTES {
                let rest = [IoSlice::new(&slice[given..])];
                given += vmsplice(&to_reader, &rest, SpliceFFlags::empty()).expect("a pipe");
            }
            while passed_on < SLICE_BYTES {
                let rest = SLICE_BYTES - passed_on;
                passed_on += splice(&from_us, None, &keeper, None, rest, SpliceFFlags::SPLICE_F_NONBLOCK)
                    .expect("room");
            }
            drop(slice);
            // All that is free, and once more, when the slab that was given of is free itself.
            for least in [8, 12] {
                let mut others = Vec::new();
                while let Some(mut other) = pages.take(SLICE_BYTES, 0) {
                    other.fill(0xff);
                    others.push(other);
                }
                assert!(others.len() >= least, "{}", others.len());
            }
            let mut seen = vec![0; SLICE_BYTES];
            kept.read_exact(&mut seen).expect("all of it");
            assert!(seen.iter().all(|byte| *byte == round));
        }
    }

    #[test]
    fn free_slabs_keep_their_memory_until_it_is_wanted() {
        let Some(pages) = two_slabs() else { return };
        let take = || pages.take(SLAB_BYTES, 0).expect("a slab is free");
        let (mut first, second) = (take(), take());
        assert!(pages.kept_bytes() == 0 && !pages.trim(), "both are held");
        first.fill(5);
        drop(first);
        assert_eq!(pages.kept_bytes(), SLAB_BYTES);
        let first = take();
        assert_eq!((first[0], pages.kept_bytes()), (5, 0));
        assert!(pages.give(&second));
        drop(second);
        assert_eq!(pages.kept_bytes(), 0, "its memory was given away");
        let second = take();
        drop(first);
        assert!(pages.trim() && !pages.trim());
        assert_eq!((pages.kept_bytes(), pages.lock().free.len()), (0, 1));
        assert_eq!(take()[0], 0, "another page");
        drop(second);
    }

    #[test]
    fn only_several_slow_pages_in_a_row_are_taken_for_a_lack() {
        if two_slabs().is_none() {
            return;
        }
        let pages = Arc::new(Pages::mapped(8 * SLAB_BYTES, Duration::ZERO).expect("a mapping"));
        assert!(pages.advise(MmapAdvise::MADV_HUGEPAGE));
        let take = || pages.take(SLAB_BYTES, 0);
        let mut held: Vec<Slice> = (1..SLOW_MAX).map_while(|_| take()).collect();
        assert_eq!(pages.lock().slow, SLOW_MAX - 1, "any time is slow");
        held.extend(take());
        assert_eq!((held.len(), pages.lock().slow), (SLOW_MAX as usize, 0));
        for _ in 0..REFUSED_MEANWHILE {
            assert!(take().is_none());
        }
        assert!(take().is_some());
    }

    #[test]
    fn without_huge_pages_there_is_nothing_until_there_are_some() {
        let has_huge_pages = two_slabs().is_some();
        let pages = Arc::new(Pages::mapped(2 * SLAB_BYTES, Duration::MAX).expect("a mapping"));
        assert!(pages.advise(MmapAdvise::MADV_NOHUGEPAGE));
        for _ in 0..REFUSED_MEANWHILE {
            assert!(pages.take(SLICE_BYTES, 0).is_none());
        }
        assert_eq!(pages.lock().free.len(), 2, "none is lost");
        // The last attempt was the first; a slab that failed is mapped anew, and may have one.
        assert!(pages.advise(MmapAdvise::MADV_HUGEPAGE));
        pages.lock().refusals = 0;
        let both: Vec<Slice> = std::iter::from_fn(|| pages.take(SLAB_BYTES, 0)).collect();
        assert_eq!(both.len(), if has_huge_pages { 2 } else { 0 });
    }
}
