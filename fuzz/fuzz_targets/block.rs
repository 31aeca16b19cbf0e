//! A packed block as it comes from a peer: header, body, and what the viewer makes of its packets.
//! The first byte says whether checksums are made right and how the packets are routed.
#![no_main]

use std::sync::Arc;

use bpf::Program;
use bytes::Bytes;
use fuzz::fix_block;
use fuzz::unpack::{Fate, Route, Unpacker, append_commented, first_packets, packet_bytes, packets_of};
use libfuzzer_sys::fuzz_target;
use wire::block::{BODY_BYTES_MAX, Header, PackedBlock};
use wire::pcapng::Epbs;

fuzz_target!(|input: &[u8]| {
    let Some((flags, bytes)) = input.split_first() else { return };
    let _ = Header::parse(bytes);
    let mut bytes = bytes.to_vec();
    if flags & 1 != 0 {
        fix_block(&mut bytes, flags & 2 != 0);
    }
    let Ok(block) = PackedBlock::new(Bytes::from(bytes)) else { return };
    let raw_bytes = block.header().raw_bytes as usize;
    assert!(raw_bytes <= BODY_BYTES_MAX);
    assert_eq!(block.end().next_sequence, block.begin().next_sequence + 1);
    // Large ones seldom: making room for them takes a thousand times as long.
    // (The largest are in tests/tests/mutated.rs.)
    if raw_bytes > if *flags == 0xe1 { 1 << 20 } else { 64 << 10 } {
        return;
    }
    let mut out = vec![7];
    match block.unpack_into(&mut out) {
        Ok(()) => assert_eq!(out.len(), 1 + raw_bytes),
        Err(_) => assert_eq!(out, [7]),
    }
    let filter = Fate::Filter(Arc::new(Program::accept_all(96)));
    let fates = [Fate::Keep, filter, Fate::Unwanted, Fate::Unfilterable];
    let route = |index: usize| Route {
        id: if flags & 4 != 0 { index as u32 } else { index as u32 + 9 },
        fate: if flags & 8 != 0 { Fate::Keep } else { fates[index].clone() },
        offset_ns: if flags & 16 != 0 { i64::MIN } else { i64::MAX },
    };
    let routes: Vec<Route> = (0..usize::from(flags >> 5).min(4)).map(route).collect();
    let mut unpacker = Unpacker::default();
    let Ok(unpacked) = unpacker.unpack(&block, &routes, true) else { return };
    // What is written is whole packets, and as many as are told.
    let mut count = 0;
    for epb in Epbs::new(&unpacked.bytes, u32::MAX) {
        let epb = epb.expect("only whole packets come out");
        assert_eq!(unpacked.ends[count].end as usize, epb.offset + epb.length);
        count += 1;
    }
    assert_eq!((count as u64, unpacked.ends.len()), (unpacked.kept.packets, count));
    assert_eq!(unpacked.kept_by_interface.iter().sum::<u64>(), unpacked.kept.packets);
    assert_eq!(packets_of(&unpacked.bytes).count(), count);
    assert_eq!(first_packets(&unpacked.bytes, count as u64), &unpacked.bytes[..]);
    if count > 0 {
        let mut commented = Vec::new();
        let first = &unpacked.bytes[..packet_bytes(&unpacked.bytes)];
        append_commented(&mut commented, first, &["a comment".to_owned()]);
        assert!(Epbs::new(&commented, u32::MAX).all(|epb| epb.is_ok()));
    }
});
