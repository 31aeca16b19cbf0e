//! A capture ring with nothing around it: what the bare loop walks (`bin/bare.rs`), and the bare chain (`bin/floor.rs`).
//!
//! Not the sniffer's own ring, so that the floor does not move with what is measured against it. Size, block and
//! time-out are the sniffer's defaults.
//!
//! `unsafe` is confined to this module, as in [`sender`](crate::sender). INVARIANT: a block is read only between
//! TP_STATUS_USER seen in its status and TP_STATUS_KERNEL written there; in between the kernel leaves it alone
//! (linux/if_packet.h). No slice outlives [`Ring::walk`].

use std::ffi::c_void;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{NonNull, null_mut};
use std::slice;
use std::sync::atomic::{AtomicU32, Ordering};

use wire::pcapng::{EPB_HEAD_BYTES, EPB_TYPE};

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 1 << 20;
/// Bytes of the ring.
pub const RING_BYTES: usize = 64 << 20;
/// Time after which a block with packets is handed over although it is not full, in ms.
pub const RETIRE_MS: u32 = 10;
const BLOCKS: usize = RING_BYTES / BLOCK_BYTES;
/// All but meaningless in TPACKET_V3, yet it has to divide the block.
const SLOT_BYTES: usize = 2048;

/// Offsets in a block: its status, how many packets, where the first is (struct tpacket_block_desc).
const BLOCK_STATUS: usize = 8;
const BLOCK_PACKETS: usize = 12;
const BLOCK_FIRST: usize = 16;
/// Offsets in a frame (struct tpacket3_hdr).
const FRAME_SECONDS: usize = 4;
const FRAME_NANOSECONDS: usize = 8;
const FRAME_KEPT: usize = 12;
const FRAME_ORIGINAL: usize = 16;
const FRAME_MAC: usize = 24;

/// A frame in the ring.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// When it was captured, in ns since 1970.
    pub time_ns: u64,
    /// Bytes it had.
    pub original_bytes: u32,
    /// Bytes that were kept.
    pub data: &'a [u8],
}

impl Frame<'_> {
    /// Appends it as the sniffer gathers it: an Enhanced Packet Block of pcapng with the flags option.
    pub fn append_block(&self, gathered: &mut Vec<u8>) {
        let padded = self.data.len().next_multiple_of(4);
        let total = (EPB_HEAD_BYTES + padded + 12 + 4) as u32;
        let (high, low) = ((self.time_ns >> 32) as u32, self.time_ns as u32);
        for word in [EPB_TYPE, total, 0, high, low, self.data.len() as u32, self.original_bytes] {
            gathered.extend_from_slice(&word.to_le_bytes());
        }
        gathered.extend_from_slice(self.data);
        gathered.resize(gathered.len() + padded - self.data.len(), 0);
        for word in [4 << 16 | 2, 0x5u32, 0, total] {
            gathered.extend_from_slice(&word.to_le_bytes());
        }
    }
}

/// A ring on an interface.
#[derive(Debug)]
pub struct Ring {
    base: NonNull<u8>,
    socket: OwnedFd,
    /// The block that is read next.
    at: usize,
}

impl Ring {
    /// Opens a ring of [`RING_BYTES`] that takes every packet of an interface.
    pub fn open(interface: &str) -> io::Result<Self> {
        let index = nix::net::if_::if_nametoindex(interface)?;
        let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointer is passed. Protocol 0: nothing is received before it is bound.
        let fd = unsafe { libc::socket(libc::AF_PACKET, flags, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just opened, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        set_option(&socket, libc::PACKET_VERSION, libc::tpacket_versions::TPACKET_V3 as libc::c_int)?;
        let request = libc::tpacket_req3 {
            tp_block_size: BLOCK_BYTES as u32,
            tp_block_nr: BLOCKS as u32,
            tp_frame_size: SLOT_BYTES as u32,
            tp_frame_nr: (RING_BYTES / SLOT_BYTES) as u32,
            tp_retire_blk_tov: RETIRE_MS,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        set_option(&socket, libc::PACKET_RX_RING, request)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping where the kernel likes, of exactly the ring that was just made.
        let mapped = unsafe { libc::mmap(null_mut(), RING_BYTES, protection, libc::MAP_SHARED, fd, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let Some(base) = NonNull::new(mapped.cast::<u8>()) else { return Err(io::ErrorKind::Other.into()) };
        let ring = Self { base, socket, at: 0 };
        // SAFETY: zero is a valid value of every field of this plain structure.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index as i32;
        let bytes = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the pointer is to a sockaddr_ll of the length given, which outlives the call.
        let result = unsafe { libc::bind(fd, (&raw const address).cast(), bytes) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(ring) }
    }

    /// Walks the next block, if it is there, and hands it back. Returns how many frames were in it.
    pub fn walk(&mut self, mut each: impl FnMut(Frame<'_>)) -> Option<u32> {
        // SAFETY: `at` is below BLOCKS, so this is within the mapping.
        let block = unsafe { self.base.add(self.at * BLOCK_BYTES) };
        // SAFETY: four aligned bytes of the block, which kernel and we touch as an atomic only.
        let status = unsafe { AtomicU32::from_ptr(block.add(BLOCK_STATUS).as_ptr().cast()) };
        // Acquire: pairs with the kernel's barrier before it sets USER, so its writes are seen.
        if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            return None;
        }
        // SAFETY: one whole block of the mapping; it is ours until the store below, and the slice ends before. The
        // status is not read through it.
        let bytes = unsafe { slice::from_raw_parts(block.as_ptr(), BLOCK_BYTES) };
        let packets = u32_at(bytes, BLOCK_PACKETS);
        let mut at = u32_at(bytes, BLOCK_FIRST) as usize;
        let mut walked = 0;
        for _ in 0..packets {
            let Some(frame) = bytes.get(at..) else { break };
            if frame.len() < FRAME_MAC + 2 {
                break;
            }
            let begin = usize::from(u16::from_ne_bytes([frame[FRAME_MAC], frame[FRAME_MAC + 1]]));
            let kept = u32_at(frame, FRAME_KEPT) as usize;
            let Some(data) = frame.get(begin..).and_then(|rest| rest.get(..kept)) else { break };
            let (seconds, ns) = (u32_at(frame, FRAME_SECONDS), u32_at(frame, FRAME_NANOSECONDS));
            each(Frame {
                time_ns: u64::from(seconds) * 1_000_000_000 + u64::from(ns),
                original_bytes: u32_at(frame, FRAME_ORIGINAL),
                data,
            });
            walked += 1;
            at += u32_at(frame, 0) as usize;
        }
        // Release: all reads of the block are done before the kernel has it again.
        status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.at = (self.at + 1) % BLOCKS;
        Some(walked)
    }

    /// Packets offered and packets dropped, since this was asked last.
    pub fn statistics(&self) -> io::Result<(u32, u32)> {
        // SAFETY: zero is a valid value of every field of this plain structure.
        let mut found: libc::tpacket_stats_v3 = unsafe { std::mem::zeroed() };
        let mut bytes = size_of::<libc::tpacket_stats_v3>() as libc::socklen_t;
        // SAFETY: both pointers are to values of ours that outlive the call; `bytes` is the room there is.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut found).cast(),
                &raw mut bytes,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok((found.tp_packets, found.tp_drops)) }
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: what mmap returned, once, and no slice into it is left. The socket is closed after.
        unsafe { libc::munmap(self.base.as_ptr().cast::<c_void>(), RING_BYTES) };
    }
}

fn set_option<T>(socket: &OwnedFd, option: libc::c_int, value: T) -> io::Result<()> {
    let bytes = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer is to a value of the length given, which outlives the call; the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, (&raw const value).cast(), bytes)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(word)
}
