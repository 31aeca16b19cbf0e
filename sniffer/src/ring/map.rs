//! The mapping of a ring into our memory.
//!
//! Invariant: the mapping ends before the socket is closed. A mapped ring keeps its socket alive in the kernel, where it
//! goes on to capture and to take its share of a fan-out group, silently.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use wire::limited;
use wire::log::FEW;

use super::block::Cursor;

/// A whole ring, mapped shared and writable.
#[derive(Debug)]
pub(super) struct Map {
    base: NonNull<c_void>,
    bytes: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread, and `Map` itself reads and writes nothing.
unsafe impl Send for Map {}

impl Map {
    /// Maps the ring of `socket`, which was made with exactly `bytes`. The kernel inserts all pages at once, so there are
    /// no page faults later.
    pub(super) fn new(socket: BorrowedFd<'_>, bytes: NonZeroUsize) -> Result<Map, Errno> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; it aliases nothing of ours.
        let base = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, socket, 0) }?;
        Ok(Map { base, bytes: bytes.get() })
    }

    /// A cursor at the start of the mapping, read as blocks of `block_bytes`. The mapping has to outlive it; [`Ring`],
    /// which owns both, sees to that.
    ///
    /// [`Ring`]: super::Ring
    pub(super) fn cursor(&self, block_bytes: usize) -> Cursor {
        assert!(self.bytes.is_multiple_of(block_bytes));
        // SAFETY: the mapping is aligned to a page and this many blocks long (checked above), and the kernel made it as a
        // ring of such blocks. `Ring` drops the cursor first, and the blocks it lends borrow from the ring.
        unsafe { Cursor::new(self.base.cast(), block_bytes, self.bytes / block_bytes) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: exactly what mmap returned, once. `Ring` owns map and cursor and lends no block beyond its own life.
        if let Err(errno) = unsafe { munmap(self.base, self.bytes) } {
            limited!(
                error,
                FEW,
                "ring of {} bytes: cannot be unmapped, its socket stays alive: {errno}",
                self.bytes
            );
        }
    }
}
