//! Blocks for the benchmarks.

#![allow(dead_code)] // no benchmark needs all of it

use wire::block::{Epoch, PackedBlock, StreamKey};
use wire::pack::{Compression, Packer};
use wire::pool::Pool;

/// The stream that all blocks are of.
pub const KEY: StreamKey = StreamKey { epoch: Epoch(1), stream: 0 };
const SIZES: [usize; 12] = [64, 594, 64, 594, 64, 64, 594, 64, 1514, 64, 594, 64];

/// Packs bodies of up to a MiB.
pub fn packer() -> Packer {
    Packer::new(KEY, Pool::new(1 << 30), 1 << 20, Compression::Lz4)
}

/// Frames of a mix of sizes, about half a megabyte; text shrinks, noise does not.
pub fn frames(is_text: bool) -> Vec<Vec<u8>> {
    let mut state = 1u64;
    let mut noise = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let sizes = SIZES.iter().cycle().take(1440);
    sizes
        .map(|&bytes| {
            let mut frame = Vec::with_capacity(bytes + 64);
            while frame.len() < bytes {
                if is_text {
                    frame.extend_from_slice(b"GET /pages/index.html HTTP/1.1\r\nHost: www.example.net\r\n");
                    frame.extend_from_slice(&noise()[..2]);
                } else {
                    frame.extend_from_slice(&noise());
                }
            }
            frame.truncate(bytes);
            frame
        })
        .collect()
}

/// The next block, of these frames.
pub fn packed(packer: &mut Packer, frames: &[Vec<u8>]) -> PackedBlock {
    assert!(packer.prepare());
    for (index, frame) in frames.iter().enumerate() {
        let options = [2, 0, 4, 0, 1, 0, 0, 0]; // epb_flags
        packer.push(0, index as u64, frame.len() as u32, [frame], &options).expect("there is room");
    }
    packer.seal().expect("frames were gathered")
}
