//! A pcap or pcapng file: reading ends, what comes out is within the bounds, an error stays, and it
//! is the same however the bytes arrive. What is read can be packed.
#![no_main]

use std::io::Read;

use libfuzzer_sys::fuzz_target;
use wire::capture_file::{CaptureReader, Item, MAX_BLOCK_BYTES, MAX_INTERFACES};
use wire::pack::{Compression, PackError, Packer};
use wire::pcapng::Epbs;
use wire::pool::Pool;

/// Gives few bytes at a time.
struct Slow<'a>(&'a [u8], usize);

impl Read for Slow<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let count = out.len().min(self.1);
        self.0.read(&mut out[..count])
    }
}

/// A checksum over everything that came out, and the error at the end.
fn read(input: impl Read, mut packer: Option<Packer>) -> (u32, u32, Option<String>) {
    let mut reader = match CaptureReader::new(input) {
        Ok(reader) => reader,
        Err(error) => return (0, 0, Some(error.to_string())),
    };
    let (mut sum, mut interfaces) = (crc32fast::Hasher::new(), 0);
    let error = loop {
        match reader.next() {
            Ok(None) => break None,
            Err(error) => break Some(error.to_string()),
            Ok(Some(Item::Interface(interface))) => {
                interfaces += 1;
                sum.update(format!("{interface:?}").as_bytes());
            }
            Ok(Some(Item::Packet(packet))) => {
                assert!(packet.interface < interfaces);
                assert!(packet.data.len() <= MAX_BLOCK_BYTES as usize && packet.options.len() % 4 == 0);
                sum.update(packet.data);
                sum.update(packet.options);
                sum.update(&packet.time_ns.to_le_bytes());
                let Some(packer) = &mut packer else { continue };
                let push = |packer: &mut Packer| {
                    packer.push(
                        packet.interface,
                        packet.time_ns,
                        packet.original_len,
                        [packet.data],
                        packet.options,
                    )
                };
                let mut pushed = push(packer);
                if matches!(pushed, Err(PackError::Full)) {
                    check(packer, interfaces);
                    pushed = push(packer);
                }
                pushed.expect("what a file holds fits into a block");
            }
        }
    };
    assert!(interfaces <= MAX_INTERFACES);
    if let Some(error) = &error {
        assert_eq!(reader.next().err().map(|again| again.to_string()).as_ref(), Some(error));
    }
    if let Some(packer) = &mut packer {
        check(packer, interfaces);
    }
    (sum.finalize(), interfaces, error)
}

/// Seals what was packed: the viewer will take it.
fn check(packer: &mut Packer, interfaces: u32) {
    let Some(block) = packer.seal() else { return };
    let mut body = Vec::new();
    block.unpack_into(&mut body).expect("our own block");
    let is_large = |captured: usize| captured > wire::pcapng::CAPTURED_BYTES_MAX;
    let mut packets = 0;
    for epb in Epbs::new(&body, interfaces) {
        match epb {
            Ok(_) => packets += 1,
            // Of a few link types a file may hold larger frames than a viewer writes.
            Err(wire::pcapng::EpbError::Captured { found, .. }) if is_large(found as usize) => return,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(packets, block.header().packet_count);
}

fuzz_target!(|input: &[u8]| {
    let packer = Packer::new(fuzz::key(0), Pool::new(64 << 20), 1 << 16, Compression::Lz4);
    let whole = read(input, Some(packer));
    assert_eq!(read(Slow(input, 7), None), whole);
});
