//! The mapping of a totals file into our memory.
//!
//! Invariant: memory of the mapping is touched as `AtomicU64` only, here and by no one else: the file is locked, and
//! readers of what a dead process left read the file, not a mapping.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use wire::limited;
use wire::log::FEW;

/// A whole file, mapped shared and writable.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<c_void>,
    bytes: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread, and is given out as shared atomics only.
unsafe impl Send for Mapping {}
// SAFETY: as above: `words`, all that a shared reference gives, may be used by any number of threads.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `bytes` of `file`, which must have them allocated: a store into a page that the disk has no room
    /// for would be SIGBUS. Its pages are made present now, so that the first stores do not wait for them.
    pub(super) fn new(file: &File, bytes: NonZeroUsize) -> io::Result<Mapping> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice; it aliases nothing of ours.
        let base = unsafe { mmap(None, bytes, protection, flags, file, 0) }?;
        Ok(Mapping { base, bytes: bytes.get() })
    }

    /// The mapping as words of 8 bytes.
    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is this long, aligned to a page, and lives as long as `self`; an AtomicU64 has the size and
        // alignment of a u64 and every pattern of bits is one; nobody makes any other reference to this memory.
        unsafe { std::slice::from_raw_parts(self.base.cast().as_ptr(), self.bytes / size_of::<u64>()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what mmap returned, once; the slices given out borrow from `self`.
        if let Err(errno) = unsafe { munmap(self.base, self.bytes) } {
            limited!(error, FEW, "totals file of {} bytes: cannot be unmapped: {errno}", self.bytes);
        }
    }
}
