//! Whose turn it is: taking blocks from the kernel and handing them back.
//!
//! Invariants, on which every slice into the ring rests:
//! - A block belongs to us from the moment its `block_status` is read with TP_STATUS_USER until we write
//!   TP_STATUS_KERNEL; in between the kernel does not touch a byte of it. Slices exist only in between: they borrow
//!   from a [`Block`], and its `Drop` is what writes TP_STATUS_KERNEL.
//! - `block_status` is only touched as an atomic. There is never a `&mut` to ring memory.
//! - One block is lent at a time, in the order the kernel fills them, by an index of our own. The kernel takes blocks
//!   strictly in turn, so handing them back in another order would stop it while others are free.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU32, Ordering};

use super::frame::{Frames, u32_at};
use super::uapi::{BLOCK_HEADER_BYTES, BLOCK_LENGTH, BLOCK_PACKETS, BLOCK_SEQUENCE, BLOCK_STATUS};

/// Our place in a ring of blocks.
#[derive(Debug)]
pub(super) struct Cursor {
    base: NonNull<u8>,
    block_bytes: usize,
    block_count: usize,
    /// The block the kernel fills next, as far as we have read; always below `block_count`.
    index: usize,
}

// SAFETY: the pointer is into a mapping that is not bound to a thread, and the cursor is its only reader.
unsafe impl Send for Cursor {}

impl Cursor {
    /// A cursor at block 0 of a fresh ring.
    ///
    /// # Safety
    ///
    /// `base` points at `block_count` (at least 1) blocks of `block_bytes` each (a multiple of 8, at least 48), aligned
    /// to 8, valid for reads and writes as long as the cursor and its blocks live, and shared with nobody but a kernel
    /// that keeps to the protocol at the head of this module.
    pub(super) unsafe fn new(base: NonNull<u8>, block_bytes: usize, block_count: usize) -> Cursor {
        debug_assert!(block_count > 0 && block_bytes >= BLOCK_HEADER_BYTES && block_bytes.is_multiple_of(8));
        debug_assert!(base.cast::<u64>().is_aligned());
        Cursor { base, block_bytes, block_count, index: 0 }
    }

    fn block(&self, index: usize) -> NonNull<u8> {
        assert!(index < self.block_count);
        // SAFETY: the block is inside the ring (checked above), as `new` was promised.
        unsafe { self.base.add(index * self.block_bytes) }
    }

    #[inline]
    fn status(&self, index: usize) -> u32 {
        // Acquire: what the kernel wrote into the block before it set USER has to be seen by the reads that follow. It
        // pairs with the barrier in prb_flush_block.
        // SAFETY: 4 aligned bytes inside the block; kernel and we only use them atomically.
        unsafe { AtomicU32::from_ptr(self.block(index).add(BLOCK_STATUS).as_ptr().cast()) }
            .load(Ordering::Acquire)
    }

    /// Whether the next block is ours.
    #[inline]
    pub(super) fn ready(&self) -> bool {
        self.status(self.index) & libc::TP_STATUS_USER != 0
    }

    /// Blocks of the ring.
    pub(super) fn block_count(&self) -> usize {
        self.block_count
    }

    /// Blocks from ours on that are ours. The kernel hands them over strictly in turn, so that they are found by halves;
    /// what it hands over meanwhile may be counted or not.
    pub(super) fn ready_blocks(&self) -> usize {
        let is_ready = |ahead: usize| {
            let index = self.index + ahead;
            let index = if index < self.block_count { index } else { index - self.block_count };
            self.status(index) & libc::TP_STATUS_USER != 0
        };
        if !is_ready(0) {
            return 0;
        }
        // INVARIANT: `ready` blocks were seen to be ours, the one `end` ahead, if there is one, not to be.
        let (mut ready, mut end) = (1, self.block_count);
        while ready < end {
            let middle = ready + (end - ready) / 2;
            if is_ready(middle) { ready = middle + 1 } else { end = middle }
        }
        ready
    }

    /// Lends the next block, if it is ours. It is handed back when the guard is dropped; a guard that is forgotten
    /// leaves the block where it is, to be lent again.
    #[inline]
    pub(super) fn next(&mut self) -> Option<Block<'_>> {
        let status = self.status(self.index);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        let base = self.block(self.index);
        Some(Block { base, block_bytes: self.block_bytes, status, cursor: self, _bytes: PhantomData })
    }

    /// Goes to the oldest block that is ours, for the case that the one at our index is not although the kernel says
    /// that there is something to read. Returns whether there is one.
    pub(super) fn resynchronise(&mut self) -> bool {
        let oldest = (0..self.block_count)
            .filter(|&index| self.status(index) & libc::TP_STATUS_USER != 0)
            .min_by_key(|&index| {
                // SAFETY: status said USER, so the header is ours to read and nobody writes it; 8 aligned bytes of it.
                unsafe { self.block(index).add(BLOCK_SEQUENCE).cast::<u64>().read() }
            });
        if let Some(index) = oldest {
            self.index = index;
        }
        oldest.is_some()
    }

    #[cfg(test)]
    pub(super) fn set_index(&mut self, index: usize) {
        assert!(index < self.block_count);
        self.index = index;
    }
}

/// One block of the ring, lent by the kernel. Dropping it hands it back.
#[derive(Debug)]
pub struct Block<'a> {
    base: NonNull<u8>,
    block_bytes: usize,
    /// As it was when the block was taken.
    status: u32,
    cursor: &'a mut Cursor,
    _bytes: PhantomData<&'a [u8]>,
}

impl Block<'_> {
    #[inline]
    fn contents(&self) -> &[u8] {
        // SAFETY: one whole block inside the ring; ours until `drop`, which cannot run while this borrow lives, so
        // nobody writes to it.
        unsafe { slice::from_raw_parts(self.base.as_ptr(), self.block_bytes) }
    }

    /// The frames in it.
    #[inline]
    pub fn frames(&self) -> Frames<'_> {
        Frames::of_block(self.contents())
    }

    /// Frames in it, as the kernel says. May be 0: the kernel hands over an empty block when a frame needs a whole one.
    #[inline]
    pub fn packet_count(&self) -> u32 {
        u32_at(self.contents(), BLOCK_PACKETS)
    }

    /// Bytes used of it, headers and padding included; never more than a block has.
    #[inline]
    pub fn bytes(&self) -> usize {
        (u32_at(self.contents(), BLOCK_LENGTH) as usize).min(self.block_bytes)
    }

    /// The kernel's number of it: from 1, without gaps, also when packets were dropped. A gap is a defect of ours.
    #[inline]
    pub fn sequence(&self) -> u64 {
        let contents = self.contents();
        let mut field = [0; 8];
        field.copy_from_slice(&contents[BLOCK_SEQUENCE..BLOCK_SEQUENCE + 8]);
        u64::from_ne_bytes(field)
    }

    /// Handed over by the block timeout, not because it was full. Says nothing about the rate: the timer runs freely.
    #[inline]
    pub fn timed_out(&self) -> bool {
        self.status & libc::TP_STATUS_BLK_TMO != 0
    }

    /// Packets were dropped since statistics were last read; not necessarily near this block.
    #[inline]
    pub fn losing(&self) -> bool {
        self.status & libc::TP_STATUS_LOSING != 0
    }
}

impl Drop for Block<'_> {
    #[inline]
    fn drop(&mut self) {
        // Release: all our reads of the block have to be done before the kernel sees it as its own again.
        // SAFETY: as in `Cursor::status`; no slice into the block is left, for they borrow from `self`.
        unsafe { AtomicU32::from_ptr(self.base.add(BLOCK_STATUS).as_ptr().cast()) }
            .store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.cursor.index =
            if self.cursor.index + 1 == self.cursor.block_count { 0 } else { self.cursor.index + 1 };
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::fabricated::BlockBuilder;
    use super::*;

    /// A ring in our own memory, aligned as the kernel's is.
    struct Fabricated {
        memory: Vec<u64>,
        block_bytes: usize,
    }

    impl Fabricated {
        fn new(blocks: usize) -> Fabricated {
            let block_bytes = 4096;
            Fabricated { memory: vec![0; blocks * block_bytes / 8], block_bytes }
        }

        fn cursor(&mut self) -> (Cursor, Kernel) {
            let base =
                NonNull::new(self.memory.as_mut_ptr().cast::<u8>()).expect("a Vec's pointer is not null");
            let blocks = self.memory.len() * 8 / self.block_bytes;
            // SAFETY: so long is the memory, aligned to 8, and the tests touch it only through these two.
            let cursor = unsafe { Cursor::new(base, self.block_bytes, blocks) };
            (cursor, Kernel { base, block_bytes: self.block_bytes })
        }
    }

    /// The kernel's side of it.
    struct Kernel {
        base: NonNull<u8>,
        block_bytes: usize,
    }

    impl Kernel {
        fn fill(&self, index: usize, sequence: u64, flags: u32, frames: &[&[u8]]) {
            let mut builder = BlockBuilder::new(self.block_bytes);
            for data in frames {
                builder.push(data);
            }
            let mut bytes = builder.finish();
            bytes[BLOCK_SEQUENCE..BLOCK_SEQUENCE + 8].copy_from_slice(&sequence.to_ne_bytes());
            // SAFETY: one block inside the memory, which is not lent while a test fills it.
            unsafe {
                let block = self.base.add(index * self.block_bytes);
                block.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
                AtomicU32::from_ptr(block.add(BLOCK_STATUS).as_ptr().cast())
                    .store(libc::TP_STATUS_USER | flags, Ordering::Release);
            }
        }

        fn status(&self, index: usize) -> u32 {
            // SAFETY: inside the memory.
            unsafe {
                let block = self.base.add(index * self.block_bytes);
                AtomicU32::from_ptr(block.add(BLOCK_STATUS).as_ptr().cast()).load(Ordering::Acquire)
            }
        }
    }

    #[test]
    fn blocks_are_lent_in_order_and_handed_back_when_dropped() {
        let mut ring = Fabricated::new(3);
        let (mut cursor, kernel) = ring.cursor();
        assert!(!cursor.ready());
        assert!(cursor.next().is_none());
        for round in 0..4_u64 {
            for index in 0..3_usize {
                let sequence = round * 3 + index as u64 + 1;
                kernel.fill(index, sequence, libc::TP_STATUS_BLK_TMO, &[b"one", b"two"]);
                assert!(cursor.ready());
                let block = cursor.next().expect("filled");
                assert_eq!((block.sequence(), block.packet_count()), (sequence, 2));
                assert!(block.timed_out() && !block.losing());
                assert!(block.bytes() > BLOCK_HEADER_BYTES && block.bytes() <= 4096);
                let data: Vec<&[u8]> = block.frames().map(|frame| frame.data).collect();
                assert_eq!(data, [b"one", b"two"]);
                assert_ne!(kernel.status(index), libc::TP_STATUS_KERNEL);
                drop(block);
                assert_eq!(kernel.status(index), libc::TP_STATUS_KERNEL);
                assert!(!cursor.ready());
            }
        }
    }

    #[test]
    fn ready_blocks_are_counted_wherever_the_reader_is() {
        for blocks in 1..=9_usize {
            let mut ring = Fabricated::new(blocks);
            let (mut cursor, kernel) = ring.cursor();
            assert_eq!(cursor.block_count(), blocks);
            for start in 0..blocks {
                for ready in 0..=blocks {
                    cursor.set_index(start);
                    for ahead in 0..ready {
                        kernel.fill((start + ahead) % blocks, 1, 0, &[b"one"]);
                    }
                    assert_eq!(cursor.ready_blocks(), ready, "of {blocks}, from {start}");
                    while cursor.next().is_some() {}
                    assert_eq!(cursor.ready_blocks(), 0);
                }
            }
        }
    }

    #[test]
    fn an_empty_block_is_lent_and_handed_back() {
        let mut ring = Fabricated::new(2);
        let (mut cursor, kernel) = ring.cursor();
        kernel.fill(0, 1, libc::TP_STATUS_LOSING, &[]);
        let block = cursor.next().expect("filled");
        assert!(block.losing() && !block.timed_out());
        assert_eq!((block.packet_count(), block.frames().count()), (0, 0));
        drop(block);
        assert_eq!(kernel.status(0), libc::TP_STATUS_KERNEL);
    }

    #[test]
    fn a_forgotten_block_is_lent_again() {
        let mut ring = Fabricated::new(2);
        let (mut cursor, kernel) = ring.cursor();
        kernel.fill(0, 1, 0, &[b"one"]);
        kernel.fill(1, 2, 0, &[b"two"]);
        std::mem::forget(cursor.next());
        assert_eq!(cursor.next().map(|block| block.sequence()), Some(1));
        assert_eq!(cursor.next().map(|block| block.sequence()), Some(2));
    }

    #[test]
    fn a_reader_out_of_step_goes_to_the_oldest_block() {
        let mut ring = Fabricated::new(4);
        let (mut cursor, kernel) = ring.cursor();
        assert!(!cursor.resynchronise());
        kernel.fill(3, 4, 0, &[b"four"]);
        kernel.fill(0, 5, 0, &[b"five"]);
        assert!(
            cursor.next().is_some_and(|block| block.sequence() == 5),
            "the block at our index comes first"
        );
        kernel.fill(0, 5, 0, &[b"five"]);
        cursor.set_index(2);
        assert!(cursor.next().is_none());
        assert!(cursor.resynchronise());
        assert_eq!(cursor.next().map(|block| block.sequence()), Some(4));
        assert_eq!(cursor.next().map(|block| block.sequence()), Some(5));
    }
}
