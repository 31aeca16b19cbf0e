//! What the fuzz targets share: inputs of several parts, checksums made right again, and the
//! decoders of the programs, which have no library of their own.

pub mod ops;
pub mod seeds;

#[path = "../../viewer/src/unpack.rs"]
pub mod unpack;

// Much of these two belongs to the other direction, which is not fuzzed.
#[allow(dead_code)]
#[path = "../../sniffer/src/totals/layout.rs"]
mod layout;
#[allow(dead_code)]
mod ring;

pub use ring::walk as walk_ring_block;

use wire::block::{BODY_BYTES_MAX, Epoch, HEADER_BYTES, HEADER_BYTES_MAX, StreamKey};

/// The run that inputs and seeds are of.
pub const EPOCH: Epoch = Epoch(0x5eed);

/// A stream of that run.
pub fn key(stream: u32) -> StreamKey {
    StreamKey { epoch: EPOCH, stream }
}

/// Reads a totals file; `true` if it is one.
pub fn reads_totals(bytes: &[u8]) -> bool {
    layout::parse(bytes, EPOCH).is_ok()
}

/// The bytes of a totals file with a slot or two in use.
pub fn totals_file() -> Vec<u8> {
    let slots = 3;
    let mut bytes = vec![0; layout::file_bytes(slots)];
    let mut put = |base: usize, stores: &[layout::Store]| {
        for (word, value) in stores {
            let at = base + word * layout::WORD_BYTES;
            bytes[at..at + layout::WORD_BYTES].copy_from_slice(&value.to_le_bytes());
        }
    };
    put(0, &layout::header(EPOCH, 1));
    put(0, &[(1, 1 | (slots as u64) << 32)]);
    let totals = layout::Totals { next_sequence: 7, packets: 100, bytes: 5_000, ..Default::default() };
    for (slot, name) in ["eth0", "a-name-of-15-by"].into_iter().enumerate() {
        let base = layout::HEADER_BYTES + slot * layout::SLOT_BYTES;
        put(base, &layout::open(slot as u32, name, 5));
        put(base, &layout::record(1, &totals));
    }
    bytes
}

/// Takes an input of several parts apart: each is a length of four bytes, then so many. The last may
/// be cut, and has its rest.
pub fn parts(mut input: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let Some((length, rest)) = input.split_first_chunk::<4>() {
        let (part, rest) = rest.split_at(rest.len().min(u32::from_le_bytes(*length) as usize));
        parts.push(part);
        input = rest;
    }
    parts
}

/// An input of several parts.
pub fn join(parts: &[&[u8]]) -> Vec<u8> {
    let with_length = |part: &&[u8]| [&(part.len() as u32).to_le_bytes()[..], part].concat();
    parts.iter().flat_map(with_length).collect()
}

/// Makes the checksums and the lengths of a packed block right again where there is one, so that
/// what is behind them is reached. `raw_too`: a stored body unpacks to what it has.
pub fn fix_block(bytes: &mut [u8], raw_too: bool) {
    if bytes.len() < HEADER_BYTES {
        return;
    }
    let header_bytes = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    if !(HEADER_BYTES..=HEADER_BYTES_MAX.min(bytes.len())).contains(&header_bytes) {
        return;
    }
    let packed = (bytes.len() - header_bytes).min(BODY_BYTES_MAX) as u32;
    let body_crc = crc32fast::hash(&bytes[header_bytes..]);
    let is_stored = bytes[6] & 1 == 0;
    bytes[76..80].copy_from_slice(&packed.to_le_bytes());
    bytes[80..84].copy_from_slice(&body_crc.to_le_bytes());
    if raw_too && is_stored {
        bytes[72..76].copy_from_slice(&packed.to_le_bytes());
    }
    let crc = crc32fast::hash(&bytes[..header_bytes - 4]);
    bytes[header_bytes - 4..header_bytes].copy_from_slice(&crc.to_le_bytes());
}
