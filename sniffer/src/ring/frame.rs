//! The walk over the frames of one block: safe code over a byte slice.
//!
//! Invariants:
//! - The slice is one whole block, owned by us for as long as the slice lives (see `block`).
//! - Every offset and length read from the block is checked against it before use. What does not fit ends the walk;
//!   [`Frames::unread`] then says how many of the promised frames were not seen, so that they can be counted.
//! - The walk goes forward only, by at least one frame header a step: it ends whatever the block says.
//! - It goes by `num_pkts`, never by `tp_next_offset == 0`, which the kernel writes into the last frame only.

use super::uapi::{
    BLOCK_FIRST, BLOCK_HEADER_BYTES, BLOCK_LENGTH, BLOCK_PACKETS, FRAME_HEADER_BYTES, FRAME_KEPT, FRAME_MAC,
    FRAME_NANOSECONDS, FRAME_NEXT, FRAME_ORIGINAL, FRAME_PACKET_TYPE, FRAME_SECONDS, FRAME_STATUS,
    FRAME_VLAN_TCI, FRAME_VLAN_TPID, TP_STATUS_GSO_TCP,
};

/// One captured frame, borrowed from its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// When the kernel saw it, in ns since 1970 (software time of the capturing host's wall clock).
    pub time_ns: u64,
    /// Length it had, before the filter cut it; without a tag that is in `vlan`. (tp_len)
    pub original_len: u32,
    /// The bytes kept, from the link-layer header on; without a tag that is in `vlan`. (tp_snaplen from tp_mac)
    pub data: &'a [u8],
    /// The outer tag, where the kernel took it out of the bytes. Frames sent by this host may still have theirs in
    /// `data` instead.
    pub vlan: Option<VlanTag>,
    /// Whose frame it is. (sll_pkttype)
    pub direction: Direction,
    /// The transport checksum was left to the hardware and is not in the bytes. (TP_STATUS_CSUMNOTREADY)
    pub checksum_not_ready: bool,
    /// The hardware has found the transport checksum right. (TP_STATUS_CSUM_VALID)
    pub checksum_valid: bool,
    /// Several TCP segments in one frame, joined by an offload. Never said of UDP. (TP_STATUS_GSO_TCP)
    pub gso: bool,
}

/// A VLAN tag that the kernel moved out of the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VlanTag {
    /// Its EtherType: 0x8100, 0x88a8.
    pub tpid: u16,
    /// All 16 bits: priority 3, DEI 1, VLAN 12. 0 is a valid tag.
    pub tci: u16,
}

/// Whose a frame is, as the kernel classified it. (PACKET_HOST and so on, linux/if_packet.h)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Received, addressed to this host.
    Host,
    /// Received, broadcast.
    Broadcast,
    /// Received, multicast.
    Multicast,
    /// Received, addressed to another host (promiscuous mode).
    OtherHost,
    /// Sent by this host, whatever the address.
    Outgoing,
}

impl Direction {
    #[inline]
    fn from_packet_type(packet_type: u8) -> Direction {
        match packet_type {
            libc::PACKET_BROADCAST => Direction::Broadcast,
            libc::PACKET_MULTICAST => Direction::Multicast,
            libc::PACKET_OTHERHOST => Direction::OtherHost,
            libc::PACKET_OUTGOING => Direction::Outgoing,
            // PACKET_HOST; the types above 4 are never delivered to a packet socket.
            _ => Direction::Host,
        }
    }
}

/// Iterator over the frames of a block, in the order they were captured.
#[derive(Debug, Clone)]
pub struct Frames<'a> {
    /// The block from the next frame on; empty once a frame did not fit.
    rest: &'a [u8],
    remaining: u32,
}

impl<'a> Frames<'a> {
    /// Walks `block`, a whole block with its header.
    #[inline]
    pub(super) fn of_block(block: &'a [u8]) -> Frames<'a> {
        let Some(header) = block.first_chunk::<BLOCK_HEADER_BYTES>() else {
            return Frames { rest: &[], remaining: 0 };
        };
        // Frames end where the kernel says it stopped writing: what lies behind is left from an earlier round.
        let used = (u32_at(header, BLOCK_LENGTH) as usize).min(block.len());
        let first = u32_at(header, BLOCK_FIRST) as usize;
        let rest = if first < BLOCK_HEADER_BYTES { None } else { block[..used].get(first..) };
        Frames { rest: rest.unwrap_or(&[]), remaining: u32_at(header, BLOCK_PACKETS) }
    }

    /// Frames promised by the block and not yet seen. Above 0 once the iterator has ended, the block was malformed and
    /// so many frames are lost.
    #[inline]
    pub fn unread(&self) -> u32 {
        self.remaining
    }

    /// The frame at the head of `rest`, and the distance to the one behind it.
    #[inline]
    fn parse(rest: &'a [u8]) -> Option<(Frame<'a>, usize)> {
        let header = rest.first_chunk::<FRAME_HEADER_BYTES>()?;
        let mac = usize::from(u16_at(header, FRAME_MAC));
        if mac < FRAME_HEADER_BYTES {
            return None;
        }
        let data = rest.get(mac..)?.get(..u32_at(header, FRAME_KEPT) as usize)?;
        let status = u32_at(header, FRAME_STATUS);
        // By the status bit, not by the value: a priority tag may well be 0.
        let vlan = (status & libc::TP_STATUS_VLAN_VALID != 0).then(|| VlanTag {
            tpid: if status & libc::TP_STATUS_VLAN_TPID_VALID != 0 {
                u16_at(header, FRAME_VLAN_TPID)
            } else {
                0x8100
            },
            tci: u32_at(header, FRAME_VLAN_TCI) as u16,
        });
        let seconds = u64::from(u32_at(header, FRAME_SECONDS));
        let frame = Frame {
            time_ns: seconds * 1_000_000_000 + u64::from(u32_at(header, FRAME_NANOSECONDS)),
            original_len: u32_at(header, FRAME_ORIGINAL),
            data,
            vlan,
            direction: Direction::from_packet_type(header[FRAME_PACKET_TYPE]),
            checksum_not_ready: status & libc::TP_STATUS_CSUMNOTREADY != 0,
            checksum_valid: status & libc::TP_STATUS_CSUM_VALID != 0,
            gso: status & TP_STATUS_GSO_TCP != 0,
        };
        Some((frame, u32_at(header, FRAME_NEXT) as usize))
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Frame<'a>;

    #[inline]
    fn next(&mut self) -> Option<Frame<'a>> {
        if self.remaining == 0 {
            return None;
        }
        let Some((frame, next)) = Self::parse(self.rest) else {
            self.rest = &[];
            return None;
        };
        self.remaining -= 1;
        // A step shorter than a header would read a frame twice, or for ever; the last frame has 0 here.
        self.rest = if next < FRAME_HEADER_BYTES { &[] } else { self.rest.get(next..).unwrap_or(&[]) };
        Some(frame)
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        // The block may promise more than it holds, so nothing is sure from below.
        (0, Some(self.remaining as usize))
    }
}

impl std::iter::FusedIterator for Frames<'_> {}

#[inline]
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let field: [u8; 4] = [bytes[offset], bytes[offset + 1], bytes[offset + 2], bytes[offset + 3]];
    u32::from_ne_bytes(field)
}

#[inline]
fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_ne_bytes([bytes[offset], bytes[offset + 1]])
}

/// Blocks as the kernel writes them, for tests.
#[cfg(test)]
pub(super) mod fabricated {
    use super::super::uapi::BLOCK_STATUS;
    use super::*;

    /// Where the kernel puts the bytes of a frame with an Ethernet header.
    pub(in super::super) const MAC: usize = 82;

    /// Builds one block.
    pub(in super::super) struct BlockBuilder {
        bytes: Vec<u8>,
        used: usize,
        last: Option<usize>,
        packets: u32,
    }

    impl BlockBuilder {
        pub(in super::super) fn new(block_bytes: usize) -> BlockBuilder {
            // Not zeros: what the kernel leaves unwritten holds anything.
            BlockBuilder { bytes: vec![0xa5; block_bytes], used: BLOCK_HEADER_BYTES, last: None, packets: 0 }
        }

        /// Appends a frame and returns its offset in the block.
        pub(in super::super) fn push(&mut self, data: &[u8]) -> usize {
            let at = self.used;
            if let Some(last) = self.last {
                self.put_u32(last + FRAME_NEXT, (at - last) as u32);
            }
            let length = data.len() as u32;
            self.put_u32(at + FRAME_NEXT, 0);
            self.put_u32(at + FRAME_SECONDS, 1_700_000_000);
            self.put_u32(at + FRAME_NANOSECONDS, 123_456_789);
            self.put_u32(at + FRAME_KEPT, length);
            self.put_u32(at + FRAME_ORIGINAL, length);
            self.put_u32(at + FRAME_STATUS, libc::TP_STATUS_USER);
            self.put_u16(at + FRAME_MAC, MAC as u16);
            self.put_u32(at + FRAME_VLAN_TCI, 0);
            self.put_u16(at + FRAME_VLAN_TPID, 0);
            self.bytes[at + FRAME_PACKET_TYPE] = libc::PACKET_HOST;
            self.bytes[at + MAC..at + MAC + data.len()].copy_from_slice(data);
            self.used = (at + MAC + data.len()).next_multiple_of(8);
            self.last = Some(at);
            self.packets += 1;
            at
        }

        pub(in super::super) fn put_u32(&mut self, at: usize, value: u32) {
            self.bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }

        pub(in super::super) fn put_u16(&mut self, at: usize, value: u16) {
            self.bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        }

        pub(in super::super) fn put_u8(&mut self, at: usize, value: u8) {
            self.bytes[at] = value;
        }

        pub(in super::super) fn finish(mut self) -> Vec<u8> {
            self.put_u32(BLOCK_STATUS, 0);
            self.put_u32(BLOCK_PACKETS, self.packets);
            self.put_u32(BLOCK_FIRST, BLOCK_HEADER_BYTES as u32);
            self.put_u32(BLOCK_LENGTH, self.used as u32);
            self.bytes
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fabricated::{BlockBuilder, MAC};
    use super::*;

    /// The data of the frames that were read, and how many were not.
    fn walk(block: &[u8]) -> (Vec<Vec<u8>>, u32) {
        let mut frames = Frames::of_block(block);
        let read = frames.by_ref().map(|frame| frame.data.to_vec()).collect();
        (read, frames.unread())
    }

    fn three() -> (BlockBuilder, [usize; 3]) {
        let mut builder = BlockBuilder::new(4096);
        let offsets = [builder.push(b"first"), builder.push(b""), builder.push(&[7; 300])];
        (builder, offsets)
    }

    fn set_u32(block: &mut [u8], at: usize, value: u32) {
        block[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }

    #[test]
    fn frames_come_out_as_they_are() {
        let (builder, _) = three();
        let block = builder.finish();
        assert_eq!(walk(&block), (vec![b"first".to_vec(), vec![], vec![7; 300]], 0));
        let first = Frames::of_block(&block).next().expect("three frames");
        assert_eq!(first.time_ns, 1_700_000_000_123_456_789);
        assert_eq!(first.original_len, 5);
        assert_eq!((first.vlan, first.direction), (None, Direction::Host));
        assert!(!first.checksum_not_ready && !first.checksum_valid && !first.gso);
    }

    #[test]
    fn flags_and_tags_are_read_by_their_bits() {
        let status = |bits: u32| {
            let mut builder = BlockBuilder::new(4096);
            let at = builder.push(b"x");
            builder.put_u32(at + FRAME_STATUS, libc::TP_STATUS_USER | bits);
            builder.put_u32(at + FRAME_VLAN_TCI, 0xbabc);
            builder.put_u16(at + FRAME_VLAN_TPID, 0x88a8);
            let block = builder.finish();
            let frame = Frames::of_block(&block).next().expect("one frame");
            (frame.vlan, [frame.checksum_not_ready, frame.checksum_valid, frame.gso])
        };
        assert_eq!(status(0), (None, [false; 3]));
        assert_eq!(status(libc::TP_STATUS_VLAN_TPID_VALID), (None, [false; 3]));
        let tag = |tpid| Some(VlanTag { tpid, tci: 0xbabc });
        assert_eq!(status(libc::TP_STATUS_VLAN_VALID).0, tag(0x8100));
        assert_eq!(status(libc::TP_STATUS_VLAN_VALID | libc::TP_STATUS_VLAN_TPID_VALID).0, tag(0x88a8));
        assert_eq!(status(libc::TP_STATUS_CSUMNOTREADY).1, [true, false, false]);
        assert_eq!(status(libc::TP_STATUS_CSUM_VALID).1, [false, true, false]);
        assert_eq!(status(TP_STATUS_GSO_TCP).1, [false, false, true]);
    }

    #[test]
    fn every_direction_is_known() {
        use Direction::*;
        for (packet_type, direction) in
            [(0, Host), (1, Broadcast), (2, Multicast), (3, OtherHost), (4, Outgoing)]
        {
            let mut builder = BlockBuilder::new(4096);
            let at = builder.push(b"x");
            builder.put_u8(at + FRAME_PACKET_TYPE, packet_type);
            let block = builder.finish();
            assert_eq!(Frames::of_block(&block).next().map(|frame| frame.direction), Some(direction));
        }
    }

    #[test]
    fn a_snaplen_shows_as_a_shorter_frame() {
        let mut builder = BlockBuilder::new(4096);
        let at = builder.push(b"abc");
        builder.put_u32(at + FRAME_ORIGINAL, 1500);
        let block = builder.finish();
        let frame = Frames::of_block(&block).next().expect("one frame");
        assert_eq!((frame.original_len, frame.data), (1500, &b"abc"[..]));
    }

    #[test]
    fn too_many_packets_promised_are_reported_as_unread() {
        let (builder, _) = three();
        let mut block = builder.finish();
        set_u32(&mut block, BLOCK_PACKETS, 5);
        assert_eq!((walk(&block).0.len(), walk(&block).1), (3, 2));
        set_u32(&mut block, BLOCK_PACKETS, u32::MAX);
        assert_eq!((walk(&block).0.len(), walk(&block).1), (3, u32::MAX - 3));
    }

    #[test]
    fn too_few_packets_promised_are_believed() {
        let (builder, _) = three();
        let mut block = builder.finish();
        set_u32(&mut block, BLOCK_PACKETS, 2);
        assert_eq!((walk(&block).0.len(), walk(&block).1), (2, 0));
        set_u32(&mut block, BLOCK_PACKETS, 0);
        assert_eq!(walk(&block), (vec![], 0));
    }

    #[test]
    fn a_bad_first_offset_ends_the_walk() {
        for first in [0, 8, 47, 4096 - 67, 4096, 4097, u32::MAX] {
            let (builder, _) = three();
            let mut block = builder.finish();
            set_u32(&mut block, BLOCK_FIRST, first);
            assert_eq!(walk(&block), (vec![], 3), "first at {first}");
        }
    }

    #[test]
    fn a_bad_step_ends_the_walk_behind_the_frame() {
        for next in [0, 1, 67, 4096 - 48 - 67, 4096, u32::MAX] {
            let (builder, [first, ..]) = three();
            let mut block = builder.finish();
            set_u32(&mut block, first + FRAME_NEXT, next);
            assert_eq!(walk(&block), (vec![b"first".to_vec()], 2), "next at {next}");
        }
    }

    #[test]
    fn bytes_outside_of_the_block_are_not_touched() {
        for (mac, kept) in
            [(0, 5), (67, 5), (u16::MAX, 5), (82, 4096), (82, u32::MAX), (68, u32::MAX - 67), (4095, 1)]
        {
            let (mut builder, [_, second, _]) = three();
            builder.put_u16(second + FRAME_MAC, mac);
            builder.put_u32(second + FRAME_KEPT, kept);
            assert_eq!(walk(&builder.finish()), (vec![b"first".to_vec()], 2), "mac {mac}, kept {kept}");
        }
    }

    #[test]
    fn what_lies_behind_the_used_length_is_not_read() {
        let (builder, [_, second, third]) = three();
        let mut block = builder.finish();
        set_u32(&mut block, BLOCK_LENGTH, (third + MAC + 299) as u32);
        assert_eq!((walk(&block).0.len(), walk(&block).1), (2, 1));
        set_u32(&mut block, BLOCK_LENGTH, (second + 67) as u32);
        assert_eq!((walk(&block).0.len(), walk(&block).1), (1, 2));
        set_u32(&mut block, BLOCK_LENGTH, 0);
        assert_eq!(walk(&block), (vec![], 3));
        set_u32(&mut block, BLOCK_LENGTH, u32::MAX); // cut to what a block has
        assert_eq!(walk(&block).1, 0);
    }

    #[test]
    fn a_block_without_a_header_has_no_frames() {
        assert_eq!(walk(&[]), (vec![], 0));
        assert_eq!(walk(&[0xff; 47]), (vec![], 0));
    }

    /// Random damage: whatever is written, the walk ends, stays inside (a slice would panic) and adds up.
    #[test]
    fn random_damage_never_breaks_the_walk() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let rounds = if cfg!(miri) { 50 } else { 20_000 };
        for round in 0..rounds {
            let (builder, _) = three();
            let mut block = builder.finish();
            for _ in 0..1 + random() % 8 {
                let at = (random() % 420) as usize;
                let shift = random() % 64;
                block[at] = (random() >> shift) as u8;
            }
            let promised = u32_at(&block, BLOCK_PACKETS);
            let (read, unread) = walk(&block);
            assert_eq!(read.len() as u64 + u64::from(unread), u64::from(promised), "round {round}");
        }
    }
}
