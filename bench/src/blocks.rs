//! Packed blocks as a sniffer makes them, ready in memory: for what is measured without a capture.

use std::fs::File;
use std::path::Path;

use thiserror::Error;
use wire::Interface;
use wire::block::{Epoch, HEADER_BYTES, Kind, PackedBlock, StreamKey};
use wire::capture_file::{CaptureFileError, CaptureReader, Item};
use wire::description::Description;
use wire::ledger::Report;
use wire::message::StreamStatus;
use wire::pack::{Compression, Packer};
use wire::pool::Pool;

use crate::frames::{Frames, Payload, Size};

/// The stream they are of.
pub const KEY: StreamKey = StreamKey { epoch: Epoch(1), stream: 0 };
/// Bytes of a body before compression, as the sniffer has them.
const BODY_BYTES: usize = (256 << 10) - HEADER_BYTES;
/// Name of the sniffer that they seem to be of.
const NAME: &str = "bench";
/// Time of the first packet, and from one to the next, in ns.
const FIRST_NS: u64 = 1_700_000_000_000_000_000;
const STEP_NS: u64 = 2_000;
/// Flags of an incoming packet, as an option of pcapng.
const FLAGS: [u8; 8] = [2, 0, 4, 0, 5, 0, 0, 0];

/// Why there are no blocks.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum BlocksError {
    #[error("cannot be opened: {0}")]
    Open(#[from] std::io::Error),
    #[error("{0}")]
    Read(#[from] CaptureFileError),
    #[error("no Ethernet packet in it")]
    Empty,
    #[error("a block: {0}")]
    Pack(String),
}

/// A whole stream.
#[derive(Debug)]
pub struct Blocks {
    /// What describes it.
    pub description: PackedBlock,
    /// Its packets.
    pub packets: Vec<PackedBlock>,
    /// Its end.
    pub end: PackedBlock,
    /// Packets in all of them.
    pub packet_count: u64,
    /// Bytes of their bodies before compression.
    pub raw_bytes: u64,
    /// Bytes of the blocks, headers included.
    pub packed_bytes: u64,
}

impl Blocks {
    /// Frames of our own, over and over, until bodies have `raw_bytes`.
    pub fn made(
        size: Size,
        payload: Payload,
        compression: Compression,
        raw_bytes: u64,
    ) -> Result<Self, BlocksError> {
        Self::of_frames(&Frames::make(size, payload), KEY, compression, raw_bytes)
    }

    /// These frames, over and over, until bodies of stream `key` have `raw_bytes`.
    pub fn of_frames(
        frames: &Frames,
        key: StreamKey,
        compression: Compression,
        raw_bytes: u64,
    ) -> Result<Self, BlocksError> {
        let frames: Vec<Vec<u8>> = (0..frames.count()).map(|index| frames.frame(index).to_vec()).collect();
        Self::of(&frames, key, compression, raw_bytes)
    }

    /// The Ethernet packets of a capture file, over and over.
    pub fn read(path: &Path, compression: Compression, raw_bytes: u64) -> Result<Self, BlocksError> {
        let mut reader = CaptureReader::new(File::open(path)?)?;
        let (mut links, mut frames) = (Vec::new(), Vec::new());
        while let Some(item) = reader.next()? {
            match item {
                Item::Interface(interface) => links.push(interface.link_type),
                Item::Packet(packet) if links.get(packet.interface as usize) == Some(&1) => {
                    frames.push(packet.data.to_vec());
                }
                Item::Packet(_) => {}
            }
        }
        Self::of(&frames, KEY, compression, raw_bytes)
    }

    fn of(
        frames: &[Vec<u8>],
        key: StreamKey,
        compression: Compression,
        raw_bytes: u64,
    ) -> Result<Self, BlocksError> {
        if frames.iter().all(Vec::is_empty) {
            return Err(BlocksError::Empty);
        }
        // All stay in memory: the pool lends without a bound of its own.
        let mut packer = Packer::new(key, Pool::new(usize::MAX / 2), BODY_BYTES, compression);
        let interface =
            Interface { name: "cap".into(), link_type: 1, snaplen: 262_144, ..Interface::default() };
        let description = Description {
            name: NAME.into(),
            opened_ns: FIRST_NS,
            interfaces: vec![interface],
            ..Description::default()
        };
        let json = |packer: &mut Packer, end: bool, time_ns: u64| {
            let sealed = if end {
                packer.seal_json(Kind::Report, &Report { time_ns, ..Report::default() }, time_ns, true)
            } else {
                packer.seal_json(Kind::Description, &description, time_ns, false)
            };
            sealed.ok_or_else(|| BlocksError::Pack("no room for a description or report".to_owned()))
        };
        let described = json(&mut packer, false, FIRST_NS)?;
        let (mut packets, mut made_bytes, mut time_ns) = (Vec::new(), 0, FIRST_NS);
        for frame in frames.iter().cycle() {
            let push =
                |packer: &mut Packer| packer.push(0, time_ns, frame.len() as u32, [&frame[..]], &FLAGS);
            if push(&mut packer).is_err() {
                let block =
                    packer.seal().ok_or_else(|| BlocksError::Pack("no room for a packet".to_owned()))?;
                made_bytes += u64::from(block.header().raw_bytes);
                packets.push(block);
                if made_bytes >= raw_bytes {
                    break; // with full blocks only
                }
                push(&mut packer).map_err(|error| BlocksError::Pack(error.to_string()))?;
            }
            time_ns += STEP_NS;
        }
        let end = json(&mut packer, true, time_ns)?;
        let sum = |of: fn(&PackedBlock) -> u64| packets.iter().map(of).sum();
        Ok(Self {
            packet_count: sum(|block| block.header().packet_count.into()),
            raw_bytes: sum(|block| block.header().raw_bytes.into()),
            packed_bytes: sum(|block| block.bytes().len() as u64),
            description: described,
            packets,
            end,
        })
    }

    /// What a relay says of the stream.
    pub fn status(&self) -> StreamStatus {
        StreamStatus {
            key: KEY,
            name: NAME.into(),
            interfaces: vec!["cap".into()],
            ..StreamStatus::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_whole() {
        let blocks =
            Blocks::made(Size::Mix, Payload::Text, Compression::Lz4, 3 << 20).expect("frames of our own");
        assert!(blocks.raw_bytes >= 3 << 20 && blocks.packed_bytes < blocks.raw_bytes / 2);
        let mut next = blocks.description.end();
        for block in blocks.packets.iter().chain([&blocks.end]) {
            assert_eq!(block.begin(), next);
            block.check_body().expect("whole");
            next = block.end();
        }
        assert_eq!(next.packets, blocks.packet_count);
        assert!(blocks.end.header().end);
    }
}
