//! From a packed block to the packets to write: unpack, check every Enhanced Packet Block, leave out
//! what is not wanted, turn the stream's interface ids into the output's.
//!
//! A block whose body is stored and whose ids are right as they are is not copied at all; any other
//! is unpacked once, into a buffer that is used again and again, and changed in place. For an output
//! that takes pages, both are in memory that is given away instead, if they are long.
//!
//! INVARIANT: a block comes out whole and checked, or not at all.

use std::sync::Arc;

use bpf::Program;
use bytes::Bytes;
use thiserror::Error;
use wire::block::{BlockError, PackedBlock};
use wire::pcapng::{EPB_HEAD_BYTES, EpbError, Epbs, OPT_COMMENT, packet_option};
use wire::pool::{GIVEN_BYTES_MIN, Piece, Pool};

/// Most bytes of bodies that are unpacked to be given away, and are not written yet: many times the largest.
const UNPACKED_BYTES: usize = 64 << 20;

/// What happens to the packets of one interface of a stream.
#[derive(Clone, Debug)]
pub enum Fate {
    /// They are written.
    Keep,
    /// They are written if the program accepts them.
    Filter(Arc<Program>),
    /// They were not asked for.
    Unwanted,
    /// The filter does not compile for their link type, or there are too many interfaces.
    Unfilterable,
}

/// Where packets of one interface of a stream go.
#[derive(Clone, Debug)]
pub struct Route {
    /// Interface in the output.
    pub id: u32,
    /// What happens to them.
    pub fate: Fate,
    /// To be added to a time stamp for the time since 1970, in ns.
    pub offset_ns: i64,
}

/// Why a block is dropped whole.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum UnpackError {
    #[error("{0}")]
    Block(#[from] BlockError),
    #[error("{0}")]
    Packet(#[from] EpbError),
    #[error("{packets} packets of {bytes} bytes, its header says {header_packets} of {header_bytes}")]
    Counts { packets: u64, bytes: u64, header_packets: u32, header_bytes: u32 },
}

/// Packets and captured bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Captured bytes.
    pub bytes: u64,
}

impl Count {
    /// Adds one packet.
    pub fn add(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// Where a packet ends in the run of packets that came out, and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketEnd {
    /// Time since 1970, in ns.
    pub time_ns: u64,
    /// First byte behind it.
    pub end: u32,
}

/// What came of a block.
#[derive(Debug)]
pub struct Unpacked<'a> {
    /// The packets to write, with the output's interface ids.
    pub bytes: Piece<'a>,
    /// Packets in `bytes`.
    pub kept: Count,
    /// Packets the filter rejected, or that were not asked for.
    pub filtered: u64,
    /// Packets nothing can be said of.
    pub unfilterable: u64,
    /// Kept packets by interface of the stream.
    pub kept_by_interface: &'a [u64],
    /// Where each packet ends in `bytes`, if that was asked for.
    pub ends: &'a [PacketEnd],
}

/// Unpacks, with buffers that are used again.
#[derive(Debug, Default)]
pub struct Unpacker {
    body: Vec<u8>,
    /// Where the output takes pages.
    giving: Option<Giving>,
    /// What is given away.
    given: Bytes,
    kept_by_interface: Vec<u64>,
    ends: Vec<PacketEnd>,
}

/// Where what is given away is.
#[derive(Debug)]
struct Giving {
    /// Blocks, as they come.
    incoming: Pool,
    /// What they are unpacked to.
    unpacked: Pool,
}

impl Unpacker {
    /// One for an output that takes pages. The blocks come in buffers of `incoming`.
    pub fn giving(incoming: Pool) -> Self {
        let unpacked = Pool::new(UNPACKED_BYTES);
        unpacked.prefer_giving(true);
        Self { giving: Some(Giving { incoming, unpacked }), ..Self::default() }
    }

    /// What was unpacked last is written: we do not hold its memory any more.
    pub fn release(&mut self) {
        self.given = Bytes::new();
    }

    /// The output takes no pages any more.
    pub fn stop_giving(&mut self) {
        if let Some(giving) = self.giving.take() {
            giving.incoming.prefer_giving(false);
        }
    }

    /// Unpacks `block`, whose packets go where `routes`, by the stream's interface ids, says.
    pub fn unpack<'a>(
        &'a mut self,
        block: &'a PackedBlock,
        routes: &[Route],
        with_ends: bool,
    ) -> Result<Unpacked<'a>, UnpackError> {
        let header = block.header();
        self.kept_by_interface.clear();
        self.kept_by_interface.resize(routes.len(), 0);
        self.ends.clear();
        let unchanged =
            |(local, route): (usize, &Route)| route.id as usize == local && matches!(route.fate, Fate::Keep);
        if !header.lz4 && routes.iter().enumerate().all(unchanged) {
            block.check_body()?;
            let bytes = block.body();
            let mut kept = Count::default();
            for epb in Epbs::new(bytes, routes.len() as u32) {
                let epb = epb?;
                kept.add(epb.data.len());
                self.kept_by_interface[epb.interface as usize] += 1;
                if with_ends {
                    let time_ns = epb.time_ns.saturating_add_signed(routes[epb.interface as usize].offset_ns);
                    self.ends.push(PacketEnd { time_ns, end: (epb.offset + epb.length) as u32 });
                }
            }
            check_counts(block, kept)?;
            let bytes = match &self.giving {
                Some(giving) => {
                    giving.incoming.prefer_giving(true);
                    self.given = block.bytes().slice_ref(bytes);
                    giving.incoming.give(&self.given)
                }
                None => bytes.into(),
            };
            let Self { kept_by_interface, ends, .. } = self;
            return Ok(Unpacked { bytes, kept, filtered: 0, unfilterable: 0, kept_by_interface, ends });
        }
        let raw_bytes = header.raw_bytes as usize;
        let mut buffer = self.giving.as_ref().and_then(|giving| {
            giving.incoming.prefer_giving(false);
            if raw_bytes >= GIVEN_BYTES_MIN { giving.unpacked.take(raw_bytes) } else { None }
        });
        let body = match &mut buffer {
            Some(buffer) => &mut buffer[..],
            None => {
                if self.body.len() < raw_bytes {
                    self.body.resize(raw_bytes, 0);
                }
                &mut self.body[..raw_bytes]
            }
        };
        block.unpack_to(body)?;
        let (mut seen, mut kept) = (Count::default(), Count::default());
        let (mut filtered, mut unfilterable) = (0, 0);
        let (mut at, mut kept_end) = (0, 0);
        while at < raw_bytes {
            let Some(epb) = Epbs::new(&body[at..], routes.len() as u32).next() else { break };
            let epb = epb?;
            let route = &routes[epb.interface as usize];
            let keep = match &route.fate {
                Fate::Keep => true,
                Fate::Filter(program) => program.run(epb.data, epb.original_len) > 0,
                Fate::Unwanted | Fate::Unfilterable => false,
            };
            seen.add(epb.data.len());
            let length = epb.length;
            if keep {
                kept.add(epb.data.len());
                self.kept_by_interface[epb.interface as usize] += 1;
                if with_ends {
                    let time_ns = epb.time_ns.saturating_add_signed(route.offset_ns);
                    self.ends.push(PacketEnd { time_ns, end: (kept_end + length) as u32 });
                }
                if epb.interface != route.id {
                    body[at + 8..at + 12].copy_from_slice(&route.id.to_le_bytes());
                }
                if kept_end != at {
                    body.copy_within(at..at + length, kept_end);
                }
                kept_end += length;
            } else if matches!(route.fate, Fate::Unfilterable) {
                unfilterable += 1;
            } else {
                filtered += 1;
            }
            at += length;
        }
        check_counts(block, seen)?;
        let bytes = match (buffer, &self.giving) {
            (Some(mut buffer), Some(giving)) => {
                buffer.truncate(kept_end);
                self.given = buffer.freeze();
                giving.unpacked.give(&self.given)
            }
            _ => Piece::from(&self.body[..kept_end]),
        };
        let Self { kept_by_interface, ends, .. } = self;
        Ok(Unpacked { bytes, kept, filtered, unfilterable, kept_by_interface, ends })
    }
}

/// What the header says in the clear is what everybody counts by: it has to be right.
fn check_counts(block: &PackedBlock, seen: Count) -> Result<(), UnpackError> {
    let header = block.header();
    let (header_packets, header_bytes) = (header.packet_count, header.byte_count);
    if seen.packets == u64::from(header_packets) && seen.bytes == u64::from(header_bytes) {
        return Ok(());
    }
    Err(UnpackError::Counts { packets: seen.packets, bytes: seen.bytes, header_packets, header_bytes })
}

/// Length of the packet at the head of `bytes`, which were checked.
pub fn packet_bytes(bytes: &[u8]) -> usize {
    word(bytes, 4) as usize
}

/// Interface and captured length of the packet at the head of `bytes`, which were checked.
pub fn packet_head(bytes: &[u8]) -> (u32, usize) {
    (word(bytes, 8), word(bytes, 20) as usize)
}

fn word(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

/// Interface and captured length of each packet of `bytes`, which were checked.
pub fn packets_of(bytes: &[u8]) -> impl Iterator<Item = (u32, usize)> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = bytes.get(at..).filter(|rest| !rest.is_empty())?;
        at += packet_bytes(rest).max(1);
        Some(packet_head(rest))
    })
}

/// The first `count` packets of `bytes`, which were checked.
pub fn first_packets(bytes: &[u8], count: u64) -> &[u8] {
    let mut end = 0;
    for _ in 0..count {
        match bytes.get(end..) {
            Some(rest) if !rest.is_empty() => end += packet_bytes(rest).max(1),
            _ => break,
        }
    }
    bytes.get(..end).unwrap_or(bytes)
}

/// Appends `packet`, a checked Enhanced Packet Block, with comments before its other options.
pub fn append_commented(out: &mut Vec<u8>, packet: &[u8], comments: &[String]) {
    let start = out.len();
    let (_, captured_bytes) = packet_head(packet);
    let options_at =
        (EPB_HEAD_BYTES + captured_bytes.next_multiple_of(4)).min(packet.len().saturating_sub(4));
    let options = &packet[options_at..packet.len().saturating_sub(4)];
    out.extend_from_slice(&packet[..options_at]);
    for comment in comments {
        packet_option(out, OPT_COMMENT, comment.as_bytes());
    }
    out.extend_from_slice(options);
    if options.is_empty() {
        out.extend_from_slice(&[0; 4]);
    }
    let length = ((out.len() - start + 4) as u32).to_le_bytes();
    out.extend_from_slice(&length);
    out[start + 4..start + 8].copy_from_slice(&length);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use wire::block::{HEADER_BYTES, StreamKey};
    use wire::pack::{Compression, Packer};
    use wire::pool::Pool;

    fn packer(compression: Compression) -> Packer {
        Packer::new(StreamKey::default(), Pool::new(64 << 20), 1 << 20, compression)
    }

    fn keep(ids: &[u32]) -> Vec<Route> {
        ids.iter().map(|id| Route { id: *id, fate: Fate::Keep, offset_ns: 0 }).collect()
    }

    fn block(packets: &[(u32, u64, Vec<u8>)], compression: Compression) -> PackedBlock {
        let mut packer = packer(compression);
        for (interface, time_ns, data) in packets {
            packer.push(*interface, *time_ns, data.len() as u32, [&data[..]], &[]).expect("room");
        }
        packer.seal().expect("packets")
    }

    fn read(bytes: &[u8]) -> Vec<(u32, u64, Vec<u8>)> {
        let walk = Epbs::new(bytes, u32::MAX).map(|epb| epb.expect("whole"));
        walk.map(|epb| (epb.interface, epb.time_ns, epb.data.to_vec())).collect()
    }

    /// The block with its body replaced and its header made to agree.
    fn forged(block: &PackedBlock, body: &[u8]) -> PackedBlock {
        let mut header = *block.header();
        header.lz4 = false;
        header.raw_bytes = body.len() as u32;
        header.packed_bytes = body.len() as u32;
        // The checksum is that of the body, so only the walk can find what is wrong.
        let mut bytes = vec![0; HEADER_BYTES];
        bytes.extend_from_slice(body);
        header.body_crc = crc32(body);
        let mut head = [0; HEADER_BYTES];
        header.emit(&mut head);
        bytes[..HEADER_BYTES].copy_from_slice(&head);
        PackedBlock::new(Bytes::from(bytes)).expect("agrees")
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
            }
        }
        !crc
    }

    #[test]
    fn ids_are_patched_and_unwanted_packets_left_out() {
        let packets: Vec<_> = (0..6u8).map(|n| (u32::from(n % 3), u64::from(n), vec![n; 40])).collect();
        for compression in [Compression::Lz4, Compression::None] {
            let block = block(&packets, compression);
            let mut routes = keep(&[7, 8, 9]);
            let mut unpacker = Unpacker::default();
            let all = unpacker.unpack(&block, &routes, true).expect("whole");
            assert_eq!((all.kept.packets, all.kept.bytes), (6, 240));
            let expected: Vec<_> = packets.iter().map(|(i, t, d)| (i + 7, *t, d.clone())).collect();
            assert_eq!(read(&all.bytes), expected);
            assert_eq!((all.ends.len(), all.ends[5].time_ns), (6, 5));
            routes[1].fate = Fate::Unwanted;
            routes[2].fate = Fate::Unfilterable;
            let some = unpacker.unpack(&block, &routes, true).expect("whole");
            assert_eq!((some.kept.packets, some.filtered, some.unfilterable), (2, 2, 2));
            assert_eq!(read(&some.bytes), [expected[0].clone(), expected[3].clone()]);
            assert_eq!(some.ends.last().map(|last| last.end as usize), Some(some.bytes.len()));
            assert_eq!(some.kept_by_interface, [2, 0, 0]);
        }
    }

    #[test]
    fn what_is_given_away_is_the_same() {
        let packets: Vec<_> = (0..9u8).map(|n| (u32::from(n % 3), u64::from(n), vec![n; 20_000])).collect();
        let (incoming, mut unpacker) = (Pool::new(8 << 20), Unpacker::default());
        let mut giving = Unpacker::giving(incoming.clone());
        incoming.prefer_giving(true);
        for compression in [Compression::None, Compression::Lz4] {
            let block = block(&packets, compression);
            let mut buffer = incoming.take(block.bytes().len()).expect("free");
            buffer.copy_from_slice(block.bytes());
            let block = PackedBlock::new(buffer.freeze()).expect("the same");
            for mut routes in [keep(&[0, 1, 2]), keep(&[3, 4, 5]), keep(&[7, 8, 9])] {
                routes[2].fate = if routes[2].id == 9 { Fate::Unwanted } else { Fate::Keep };
                let expected = unpacker.unpack(&block, &routes, false).expect("whole");
                let given = giving.unpack(&block, &routes, false).expect("whole");
                assert!(given.bytes[..] == expected.bytes[..] && given.kept == expected.kept);
                if !given.bytes.is_given() {
                    let skipped = std::env::var_os("RINGCAST_REQUIRE_ALL").is_none();
                    assert!(skipped, "no huge page, but nothing may be skipped here");
                    eprintln!("in part skipped: no huge page (/sys/kernel/mm/transparent_hugepage/enabled)");
                }
            }
        }
        giving.stop_giving();
        let block = block(&packets, Compression::Lz4);
        assert!(!giving.unpack(&block, &keep(&[0, 1, 2]), false).expect("whole").bytes.is_given());
    }

    #[test]
    fn a_block_that_is_torn_or_lies_is_dropped_whole() {
        let good = block(&[(0, 1, vec![1; 10]), (0, 2, vec![2; 10])], Compression::None);
        let mut unpacker = Unpacker::default();
        for routes in [keep(&[0]), keep(&[1])] {
            let mut fails = |block: &PackedBlock| unpacker.unpack(block, &routes, false).map(drop).is_err();
            assert!(!fails(&good));
            let body = good.body().to_vec();
            assert!(fails(&forged(&good, &body[..body.len() - 4])), "torn");
            assert!(fails(&forged(&good, &body[..body.len() / 2])), "a packet less than it says");
            let mut other = body.clone();
            other[8] = 1; // an interface nobody described
            assert!(fails(&forged(&good, &other)));
            let mut bytes = good.bytes().to_vec();
            let last = bytes.len() - 9;
            bytes[last] ^= 1;
            assert!(fails(&PackedBlock::new(bytes.into()).expect("header is right")), "checksum");
        }
        assert!(unpacker.unpack(&good, &[], false).is_err(), "no interface was described");
    }

    #[test]
    fn a_comment_goes_before_the_other_options() {
        let mut packer = packer(Compression::None);
        packer.push(0, 1, 5, [b"abcde"], &[2, 0, 4, 0, 1, 0, 0, 0]).expect("room");
        packer.push(0, 1, 4, [b"abcd"], &[]).expect("room");
        let block = packer.seal().expect("packets");
        let first = packet_bytes(block.body());
        let mut out = Vec::new();
        append_commented(&mut out, &block.body()[..first], &["two lost".into()]);
        append_commented(&mut out, &block.body()[first..], &["x".into(), "yes".into()]);
        let epbs: Vec<_> = Epbs::new(&out, 1).collect::<Result<_, _>>().expect("whole");
        assert_eq!((epbs[0].data, epbs[1].data), (&b"abcde"[..], &b"abcd"[..]));
        assert_eq!(epbs[0].options, b"\x01\0\x08\0two lost\x02\0\x04\0\x01\0\0\0\0\0\0\0");
        assert_eq!(epbs[1].options, b"\x01\0\x01\0x\0\0\0\x01\0\x03\0yes\0\0\0\0\0");
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(body in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..100, value: u8) {
            let good = block(&[(0, 1, vec![1; 10]), (1, 2, vec![2; 10])], Compression::None);
            let mut mutated = good.body().to_vec();
            let length = mutated.len();
            mutated[at % length] = value;
            for routes in [keep(&[0, 1]), keep(&[1, 0])] {
                let _ = Unpacker::default().unpack(&forged(&good, &body), &routes, true);
                let _ = Unpacker::default().unpack(&forged(&good, &mutated), &routes, true);
            }
        }
    }
}
