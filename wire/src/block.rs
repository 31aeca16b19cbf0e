//! The packed block: the one unit that crosses every border, sent, spooled, forwarded and archived
//! as the same bytes.
//!
//! ```text
//!   0       4    5    6     8             10       12       16
//!   | RCB1  |ver |kind|flags|header_bytes |reserved| stream |
//!  16                      24                     32
//!   | epoch                | sequence             |
//!  32                      40                     48
//!   | time_min_ns          | time_max_ns          |
//!  48                      56                     64
//!   | packets_before       | bytes_before         |
//!  64          68          72         76          80         84
//!   | packets  | bytes     | raw      | packed    | body crc |
//!  84                                 header_bytes - 4
//!   | extensions: type u16, length u16, value, padded to 4 ... | header crc |
//!  header_bytes                                                    + packed
//!   | body: a run of pcapng blocks, stored or LZ4; or JSON for descriptions and reports |
//! ```
//!
//! Everything is little-endian. Checksums are CRC-32 (IEEE). `packets_before` and `bytes_before`
//! count what this stream packed before this block, so anyone can price any gap by subtraction.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::message::Cursor;

/// First four bytes of every packed block.
pub const MAGIC: [u8; 4] = *b"RCB1";
/// Version of the header layout that this code writes and reads.
pub const VERSION: u8 = 1;
/// Bytes of a header without extensions.
pub const HEADER_BYTES: usize = 88;
/// Most bytes of a header with its extensions.
pub const HEADER_BYTES_MAX: usize = 4096;
/// Most bytes of a body, packed or raw: 16 MiB.
pub const BODY_BYTES_MAX: usize = 16 << 20;
/// Most bytes of a whole block.
pub const BLOCK_BYTES_MAX: usize = HEADER_BYTES_MAX + BODY_BYTES_MAX;

/// The body is LZ4 (block format) rather than stored.
const FLAG_LZ4: u16 = 1;
/// Nothing follows in this stream.
const FLAG_END: u16 = 2;

/// One run of one sniffer: a fresh random number at each start. Written in hexadecimal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Epoch(pub u64);

impl std::fmt::Display for Epoch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

impl From<Epoch> for String {
    fn from(epoch: Epoch) -> Self {
        epoch.to_string()
    }
}

impl TryFrom<String> for Epoch {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match u64::from_str_radix(&text, 16) {
            Ok(value) if text.len() == 16 => Ok(Self(value)),
            _ => Err(format!("epoch {text:?}: not 16 hexadecimal digits")),
        }
    }
}

/// Identity of a stream: one run of blocks of one ring in one epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StreamKey {
    /// The sniffer's run.
    pub epoch: Epoch,
    /// Number of the stream in that run.
    pub stream: u32,
}

impl std::fmt::Display for StreamKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.epoch, self.stream)
    }
}

/// What the body of a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A run of pcapng Enhanced Packet Blocks.
    Packets,
    /// The stream's table of interfaces as JSON ([`crate::description::Description`]).
    Description,
    /// Totals of the ledger as JSON ([`crate::ledger::Report`]).
    Report,
}

/// The header of a packed block, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the body holds.
    pub kind: Kind,
    /// The body is LZ4 rather than stored.
    pub lz4: bool,
    /// Nothing follows in this stream.
    pub end: bool,
    /// The stream this block belongs to.
    pub key: StreamKey,
    /// Position in the stream, from 0, without gaps.
    pub sequence: u64,
    /// Time stamp of the oldest packet, ns since 1970; the sealing time in a block without packets.
    pub time_min_ns: u64,
    /// Time stamp of the newest packet, ns since 1970.
    pub time_max_ns: u64,
    /// Packets of this stream in earlier blocks.
    pub packets_before: u64,
    /// Captured bytes of this stream in earlier blocks.
    pub bytes_before: u64,
    /// Packets in this block.
    pub packet_count: u32,
    /// Captured bytes of the packets in this block.
    pub byte_count: u32,
    /// Length of the body after unpacking.
    pub raw_bytes: u32,
    /// Length of the body as it is here.
    pub packed_bytes: u32,
    /// CRC-32 of the body as it is here.
    pub body_crc: u32,
}

/// Why bytes are not a packed block.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum BlockError {
    #[error("packed block: {found} bytes, a header has at least {HEADER_BYTES}")]
    TooShort { found: usize },
    #[error("packed block: magic {found:02x?}, expected {MAGIC:02x?}")]
    Magic { found: [u8; 4] },
    #[error("packed block: version {found}, this program reads {VERSION}")]
    Version { found: u8 },
    #[error("packed block: header length {found} is out of range or not a multiple of 4")]
    HeaderLength { found: usize },
    #[error("packed block: header checksum {found:08x}, expected {expected:08x}")]
    HeaderChecksum { found: u32, expected: u32 },
    #[error("packed block: unknown kind {found}")]
    Kind { found: u8 },
    #[error("packed block: extension at byte {offset} runs past the header")]
    Extension { offset: usize },
    #[error("packed block: {name} {found} exceeds {BODY_BYTES_MAX}")]
    TooLong { name: &'static str, found: u32 },
    #[error("packed block: {found} bytes in all, its header says {expected}")]
    Length { found: usize, expected: usize },
    #[error("packed block: a stored body of {packed} bytes says it unpacks to {raw}")]
    Stored { packed: u32, raw: u32 },
    #[error("packed block: time range {min}..{max} is reversed")]
    TimeRange { min: u64, max: u64 },
    #[error("packed block: counters of stream {key} overflow")]
    Overflow { key: StreamKey },
    #[error("packed block: body checksum {found:08x}, expected {expected:08x}")]
    BodyChecksum { found: u32, expected: u32 },
    #[error("packed block: LZ4 body does not unpack to the {expected} bytes it declares")]
    Unpack { expected: u32 },
}

impl Header {
    /// Reads and checks the header at the start of `bytes`, and tells its length.
    ///
    /// Checked are magic, version, lengths, checksum, kind, extensions and the relations between
    /// fields; not the body, which need not be there.
    pub fn parse(bytes: &[u8]) -> Result<(Self, usize), BlockError> {
        let Some(fixed) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(BlockError::TooShort { found: bytes.len() });
        };
        let magic = [fixed[0], fixed[1], fixed[2], fixed[3]];
        if magic != MAGIC {
            return Err(BlockError::Magic { found: magic });
        }
        if fixed[4] != VERSION {
            return Err(BlockError::Version { found: fixed[4] });
        }
        let header_bytes = usize::from(u16_at(fixed, 8));
        let in_range = (HEADER_BYTES..=HEADER_BYTES_MAX).contains(&header_bytes);
        if !in_range || !header_bytes.is_multiple_of(4) {
            return Err(BlockError::HeaderLength { found: header_bytes });
        }
        let Some(header) = bytes.get(..header_bytes) else {
            return Err(BlockError::TooShort { found: bytes.len() });
        };
        let crc_at = header_bytes - 4;
        let (found, expected) = (u32_at(header, crc_at), crc32fast::hash(&header[..crc_at]));
        if found != expected {
            return Err(BlockError::HeaderChecksum { found, expected });
        }
        let kind = match fixed[5] {
            0 => Kind::Packets,
            1 => Kind::Description,
            2 => Kind::Report,
            found => return Err(BlockError::Kind { found }),
        };
        let flags = u16_at(fixed, 6);
        let parsed = Self {
            kind,
            lz4: flags & FLAG_LZ4 != 0,
            end: flags & FLAG_END != 0,
            key: StreamKey { stream: u32_at(fixed, 12), epoch: Epoch(u64_at(fixed, 16)) },
            sequence: u64_at(fixed, 24),
            time_min_ns: u64_at(fixed, 32),
            time_max_ns: u64_at(fixed, 40),
            packets_before: u64_at(fixed, 48),
            bytes_before: u64_at(fixed, 56),
            packet_count: u32_at(fixed, 64),
            byte_count: u32_at(fixed, 68),
            raw_bytes: u32_at(fixed, 72),
            packed_bytes: u32_at(fixed, 76),
            body_crc: u32_at(fixed, 80),
        };
        check_extensions(&header[..crc_at])?;
        parsed.check()?;
        Ok((parsed, header_bytes))
    }

    /// Writes this header, without extensions, into `out`.
    pub fn emit(&self, out: &mut [u8; HEADER_BYTES]) {
        let kind = match self.kind {
            Kind::Packets => 0,
            Kind::Description => 1,
            Kind::Report => 2,
        };
        let flags = if self.lz4 { FLAG_LZ4 } else { 0 } | if self.end { FLAG_END } else { 0 };
        out[0..4].copy_from_slice(&MAGIC);
        out[4] = VERSION;
        out[5] = kind;
        out[6..8].copy_from_slice(&flags.to_le_bytes());
        out[8..10].copy_from_slice(&(HEADER_BYTES as u16).to_le_bytes());
        out[10..12].copy_from_slice(&[0; 2]);
        out[12..16].copy_from_slice(&self.key.stream.to_le_bytes());
        out[16..24].copy_from_slice(&self.key.epoch.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        out[32..40].copy_from_slice(&self.time_min_ns.to_le_bytes());
        out[40..48].copy_from_slice(&self.time_max_ns.to_le_bytes());
        out[48..56].copy_from_slice(&self.packets_before.to_le_bytes());
        out[56..64].copy_from_slice(&self.bytes_before.to_le_bytes());
        out[64..68].copy_from_slice(&self.packet_count.to_le_bytes());
        out[68..72].copy_from_slice(&self.byte_count.to_le_bytes());
        out[72..76].copy_from_slice(&self.raw_bytes.to_le_bytes());
        out[76..80].copy_from_slice(&self.packed_bytes.to_le_bytes());
        out[80..84].copy_from_slice(&self.body_crc.to_le_bytes());
        let crc = crc32fast::hash(&out[..HEADER_BYTES - 4]);
        out[84..88].copy_from_slice(&crc.to_le_bytes());
    }

    /// The place in its stream at which the block begins.
    pub fn begin(&self) -> Cursor {
        let Header { key, sequence, packets_before, bytes_before, .. } = *self;
        Cursor { key, next_sequence: sequence, packets: packets_before, bytes: bytes_before }
    }

    /// The place behind the block.
    pub fn end_place(&self) -> Cursor {
        let Cursor { key, next_sequence, packets, bytes } = self.begin();
        Cursor {
            key,
            next_sequence: next_sequence + 1,
            packets: packets + u64::from(self.packet_count),
            bytes: bytes + u64::from(self.byte_count),
        }
    }

    fn check(&self) -> Result<(), BlockError> {
        for (name, found) in [("raw length", self.raw_bytes), ("packed length", self.packed_bytes)] {
            if found as usize > BODY_BYTES_MAX {
                return Err(BlockError::TooLong { name, found });
            }
        }
        if !self.lz4 && self.raw_bytes != self.packed_bytes {
            return Err(BlockError::Stored { packed: self.packed_bytes, raw: self.raw_bytes });
        }
        if self.time_min_ns > self.time_max_ns {
            return Err(BlockError::TimeRange { min: self.time_min_ns, max: self.time_max_ns });
        }
        let overflows = self.sequence == u64::MAX
            || self.packets_before.checked_add(self.packet_count.into()).is_none()
            || self.bytes_before.checked_add(self.byte_count.into()).is_none();
        if overflows {
            return Err(BlockError::Overflow { key: self.key });
        }
        Ok(())
    }
}

fn check_extensions(header: &[u8]) -> Result<(), BlockError> {
    let mut offset = HEADER_BYTES - 4;
    while offset < header.len() {
        let length = match header.get(offset..offset + 4) {
            Some(head) => usize::from(u16_at(head, 2)).next_multiple_of(4),
            None => return Err(BlockError::Extension { offset }),
        };
        if offset + 4 + length > header.len() {
            return Err(BlockError::Extension { offset });
        }
        offset += 4 + length;
    }
    Ok(())
}

/// A packed block whose header has been checked and whose length agrees with it. Cloning shares
/// the bytes.
#[derive(Clone, Debug)]
pub struct PackedBlock {
    header: Header,
    header_bytes: usize,
    bytes: Bytes,
}

impl PackedBlock {
    /// Checks the header and the length of `bytes`. The body is not read.
    pub fn new(bytes: Bytes) -> Result<Self, BlockError> {
        let (header, header_bytes) = Header::parse(&bytes)?;
        let expected = header_bytes + header.packed_bytes as usize;
        if bytes.len() != expected {
            return Err(BlockError::Length { found: bytes.len(), expected });
        }
        Ok(Self { header, header_bytes, bytes })
    }

    /// The checked header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The whole block, header and body.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The place in its stream at which this block begins.
    pub fn begin(&self) -> Cursor {
        self.header.begin()
    }

    /// The place behind it.
    pub fn end(&self) -> Cursor {
        self.header.end_place()
    }

    /// The body as it is here, LZ4 or stored.
    pub fn body(&self) -> &[u8] {
        &self.bytes[self.header_bytes..]
    }

    /// Checks the body against its checksum.
    pub fn check_body(&self) -> Result<(), BlockError> {
        let (found, expected) = (crc32fast::hash(self.body()), self.header.body_crc);
        if found == expected { Ok(()) } else { Err(BlockError::BodyChecksum { found, expected }) }
    }

    /// Checks the body and appends it, unpacked, to `out`. On error `out` is as it was.
    pub fn unpack_into(&self, out: &mut Vec<u8>) -> Result<(), BlockError> {
        if !self.header.lz4 {
            self.check_body()?;
            out.extend_from_slice(self.body());
            return Ok(());
        }
        let start = out.len();
        out.resize(start + self.header.raw_bytes as usize, 0);
        let unpacked = self.unpack_to(&mut out[start..]);
        if unpacked.is_err() {
            out.truncate(start);
        }
        unpacked
    }

    /// Checks the body and unpacks it into `out`, whose length must be the raw length. On error
    /// what `out` holds is of no use. For a buffer that is used again and again: nothing is zeroed.
    pub fn unpack_to(&self, out: &mut [u8]) -> Result<(), BlockError> {
        self.check_body()?;
        let expected = self.header.raw_bytes;
        if out.len() != expected as usize {
            return Err(BlockError::Unpack { expected });
        }
        if !self.header.lz4 {
            out.copy_from_slice(self.body());
            return Ok(());
        }
        match lz4_flex::block::decompress_into(self.body(), out) {
            Ok(length) if length == out.len() => Ok(()),
            _ => Err(BlockError::Unpack { expected }),
        }
    }
}

#[inline]
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

#[inline]
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let b = &bytes[offset..offset + 4];
    u32::from_le_bytes([b[0], b[1], b[2], b[3]])
}

#[inline]
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from(u32_at(bytes, offset)) | u64::from(u32_at(bytes, offset + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header {
            kind: Kind::Packets,
            lz4: false,
            end: false,
            key: StreamKey { epoch: Epoch(0x1234_5678_9abc_def0), stream: 7 },
            sequence: 42,
            time_min_ns: 1_700_000_000_000_000_000,
            time_max_ns: 1_700_000_000_000_000_009,
            packets_before: 1000,
            bytes_before: 100_000,
            packet_count: 3,
            byte_count: 180,
            raw_bytes: 5,
            packed_bytes: 5,
            body_crc: crc32fast::hash(b"hello"),
        }
    }

    fn block(header: &Header, body: &[u8]) -> Vec<u8> {
        let mut fixed = [0; HEADER_BYTES];
        header.emit(&mut fixed);
        [&fixed[..], body].concat()
    }

    #[test]
    fn header_survives_the_way_there_and_back() {
        let bytes = block(&header(), b"hello");
        let block = PackedBlock::new(bytes.into()).expect("is a block");
        assert_eq!(*block.header(), header());
        let mut out = b"before ".to_vec();
        block.unpack_into(&mut out).expect("unpacks");
        assert_eq!(out, b"before hello");
    }

    #[test]
    fn every_flipped_bit_of_the_header_is_noticed() {
        let bytes = block(&header(), b"hello");
        for bit in 0..HEADER_BYTES * 8 {
            let mut broken = bytes.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(PackedBlock::new(broken.into()).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_damaged_body_is_noticed_and_leaves_the_output_alone() {
        let mut bytes = block(&header(), b"hello");
        bytes[HEADER_BYTES] ^= 1;
        let block = PackedBlock::new(bytes.into()).expect("the header is whole");
        let mut out = b"kept".to_vec();
        assert!(matches!(block.unpack_into(&mut out), Err(BlockError::BodyChecksum { .. })));
        assert_eq!(out, b"kept");
    }

    #[test]
    fn a_body_that_lies_about_its_length_is_refused() {
        let body = lz4_flex::block::compress(&[7; 1000]);
        for raw_bytes in [999, 1001, BODY_BYTES_MAX as u32] {
            let lying = Header {
                lz4: true,
                raw_bytes,
                packed_bytes: body.len() as u32,
                body_crc: crc32fast::hash(&body),
                ..header()
            };
            let block = PackedBlock::new(block(&lying, &body).into()).expect("the header is whole");
            let mut out = Vec::new();
            assert_eq!(block.unpack_into(&mut out), Err(BlockError::Unpack { expected: raw_bytes }));
            assert!(out.is_empty());
        }
    }

    #[test]
    fn impossible_headers_are_refused() {
        let too_long = Header { lz4: true, raw_bytes: BODY_BYTES_MAX as u32 + 1, ..header() };
        let reversed = Header { time_min_ns: 2, time_max_ns: 1, ..header() };
        let overflow = Header { packets_before: u64::MAX, ..header() };
        let stored = Header { raw_bytes: 6, ..header() };
        for (bad, text) in [
            (too_long, "raw length 16777217"),
            (reversed, "reversed"),
            (overflow, "overflow"),
            (stored, "stored body"),
        ] {
            let error = PackedBlock::new(block(&bad, b"hello").into()).expect_err(text);
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn unknown_extensions_are_skipped_and_lying_ones_refused() {
        let plain = block(&header(), b"hello");
        let extended = |extension: &[u8]| {
            let mut bytes = plain[..HEADER_BYTES - 4].to_vec();
            bytes[8..10].copy_from_slice(&((HEADER_BYTES + extension.len()) as u16).to_le_bytes());
            bytes.extend_from_slice(extension);
            let crc = crc32fast::hash(&bytes);
            bytes.extend_from_slice(&crc.to_le_bytes());
            bytes.extend_from_slice(b"hello");
            PackedBlock::new(bytes.into())
        };
        let block = extended(&[9, 0, 3, 0, 1, 2, 3, 0]).expect("skipped");
        assert_eq!(block.body(), b"hello");
        assert!(matches!(extended(&[9, 0, 5, 0, 1, 2, 3, 0]), Err(BlockError::Extension { .. })));
    }

    #[test]
    fn epochs_are_written_in_hexadecimal() {
        let text = serde_json::to_string(&Epoch(255)).expect("serialises");
        assert_eq!(text, "\"00000000000000ff\"");
        assert_eq!(serde_json::from_str::<Epoch>(&text).expect("parses"), Epoch(255));
        assert!(serde_json::from_str::<Epoch>("\"ff\"").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Header::parse(&bytes);
            let _ = PackedBlock::new(bytes.into());
        }
    }
}
