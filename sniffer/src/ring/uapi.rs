//! The shapes of `linux/if_packet.h` that the ring depends on, pinned at compile time.
//!
//! ```text
//! ring   | block 0 | block 1 | ... | block n-1 |        each block_bytes long, one mapping
//!
//! block  0   version            u32     struct tpacket_block_desc
//!        4   offset_to_priv     u32
//!        8   block_status       u32     TP_STATUS_USER: ours; else the kernel's
//!        12  num_pkts           u32
//!        16  offset_to_first    u32     from the start of the block
//!        20  blk_len            u32     bytes used, this header included
//!        24  seq_num            u64     from 1, no gaps
//!        32  ts_first_pkt, ts_last_pkt  (the first is when the block was *opened*: not used)
//!        48  frames
//!
//! frame  0   tp_next_offset     u32     from the start of this frame; 0 in the last
//!        4   tp_sec, 8 tp_nsec  u32     wall clock
//!        12  tp_snaplen         u32     bytes kept
//!        16  tp_len             u32     bytes there were
//!        20  tp_status          u32     bits, USER always among them
//!        24  tp_mac             u16     where the bytes begin, from the start of this frame
//!        28  tp_rxhash          u32
//!        32  tp_vlan_tci        u32
//!        36  tp_vlan_tpid       u16
//!        48  struct sockaddr_ll         sll_pkttype is at 58
//! ```
//!
//! The walk reads through these offsets out of a byte slice instead of casting to the structs: that needs no
//! `unsafe`, and compiles to the same loads.

use std::mem::{offset_of, size_of};

use libc::{sockaddr_ll, tpacket_block_desc, tpacket_hdr_v1, tpacket_req3, tpacket_stats_v3, tpacket3_hdr};

/// Offset of `block_status` in a block.
pub(super) const BLOCK_STATUS: usize = 8;
/// Offset of `num_pkts` in a block.
pub(super) const BLOCK_PACKETS: usize = 12;
/// Offset of `offset_to_first_pkt` in a block.
pub(super) const BLOCK_FIRST: usize = 16;
/// Offset of `blk_len` in a block.
pub(super) const BLOCK_LENGTH: usize = 20;
/// Offset of `seq_num` in a block.
pub(super) const BLOCK_SEQUENCE: usize = 24;
/// Length of a block's header; the first frame is not before it.
pub(super) const BLOCK_HEADER_BYTES: usize = 48;

/// Offset of `tp_next_offset` in a frame.
pub(super) const FRAME_NEXT: usize = 0;
/// Offset of `tp_sec` in a frame.
pub(super) const FRAME_SECONDS: usize = 4;
/// Offset of `tp_nsec` in a frame.
pub(super) const FRAME_NANOSECONDS: usize = 8;
/// Offset of `tp_snaplen` in a frame.
pub(super) const FRAME_KEPT: usize = 12;
/// Offset of `tp_len` in a frame.
pub(super) const FRAME_ORIGINAL: usize = 16;
/// Offset of `tp_status` in a frame.
pub(super) const FRAME_STATUS: usize = 20;
/// Offset of `tp_mac` in a frame.
pub(super) const FRAME_MAC: usize = 24;
/// Offset of `hv1.tp_vlan_tci` in a frame; the tag is in the low 16 of its 32 bits.
pub(super) const FRAME_VLAN_TCI: usize = 32;
/// Offset of `hv1.tp_vlan_tpid` in a frame.
pub(super) const FRAME_VLAN_TPID: usize = 36;
/// Offset of `sll_pkttype` of the `sockaddr_ll` that follows the frame's header.
pub(super) const FRAME_PACKET_TYPE: usize = 58;
/// Length of a frame's header with its `sockaddr_ll`; the bytes do not begin before it (TPACKET3_HDRLEN).
pub(super) const FRAME_HEADER_BYTES: usize = 68;

/// TCP segments joined by the sender's or the receiver's offload. Not in the `libc` crate yet.
/// (TP_STATUS_GSO_TCP, linux/if_packet.h)
pub(super) const TP_STATUS_GSO_TCP: u32 = 1 << 8;

/// `tp_frame_size`: all but meaningless in V3, yet it has to divide the block.
pub(super) const FRAME_SLOT_BYTES: usize = 2048;
/// Blocks the kernel can count: its index wraps here, although it accepts more.
pub(super) const MAX_BLOCKS: usize = 65_536;

const _: () = assert!(size_of::<tpacket_req3>() == 28);
const _: () = assert!(size_of::<tpacket_stats_v3>() == 12);

const _: () = assert!(size_of::<tpacket_block_desc>() == BLOCK_HEADER_BYTES);
const BH1: usize = offset_of!(tpacket_block_desc, hdr);
const _: () = assert!(BH1 == 8);
const _: () = assert!(BH1 + offset_of!(tpacket_hdr_v1, block_status) == BLOCK_STATUS);
const _: () = assert!(BH1 + offset_of!(tpacket_hdr_v1, num_pkts) == BLOCK_PACKETS);
const _: () = assert!(BH1 + offset_of!(tpacket_hdr_v1, offset_to_first_pkt) == BLOCK_FIRST);
const _: () = assert!(BH1 + offset_of!(tpacket_hdr_v1, blk_len) == BLOCK_LENGTH);
const _: () = assert!(BH1 + offset_of!(tpacket_hdr_v1, seq_num) == BLOCK_SEQUENCE);

const _: () = assert!(size_of::<tpacket3_hdr>() == 48 && size_of::<sockaddr_ll>() == 20);
const _: () = assert!(libc::TPACKET3_HDRLEN == FRAME_HEADER_BYTES);
const _: () = assert!(offset_of!(tpacket3_hdr, tp_next_offset) == FRAME_NEXT);
const _: () = assert!(offset_of!(tpacket3_hdr, tp_sec) == FRAME_SECONDS);
const _: () = assert!(offset_of!(tpacket3_hdr, tp_nsec) == FRAME_NANOSECONDS);
const _: () = assert!(offset_of!(tpacket3_hdr, tp_snaplen) == FRAME_KEPT);
const _: () = assert!(offset_of!(tpacket3_hdr, tp_len) == FRAME_ORIGINAL);
const _: () = assert!(offset_of!(tpacket3_hdr, tp_status) == FRAME_STATUS);
const _: () = assert!(offset_of!(tpacket3_hdr, tp_mac) == FRAME_MAC);
const _: () = assert!(offset_of!(tpacket3_hdr, hv1.tp_vlan_tci) == FRAME_VLAN_TCI);
const _: () = assert!(offset_of!(tpacket3_hdr, hv1.tp_vlan_tpid) == FRAME_VLAN_TPID);
const _: () = assert!(48 + offset_of!(sockaddr_ll, sll_pkttype) == FRAME_PACKET_TYPE);
