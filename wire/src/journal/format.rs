//! What the files of a journal look like, byte for byte; nothing here touches a disk.

use crate::block::{Epoch, HEADER_BYTES, Header, StreamKey, u32_at, u64_at};

use super::index::{Index, Span};

/// Records begin at multiples of this, in bytes.
pub const ALIGNMENT: u64 = 8;
/// Bytes of a segment's header.
pub const SEGMENT_HEADER_BYTES: usize = 32;
/// Bytes of the frame in front of each block.
pub const FRAME_BYTES: usize = 16;
/// Bytes of one stream in a seal.
pub const SPAN_BYTES: usize = 72;
/// Bytes of the end of a seal, which are the last of a sealed segment.
pub const TRAILER_BYTES: usize = 64;
/// Most streams in one segment; a block of one more begins the next segment.
pub const SPANS_MAX: usize = 4096;
/// Greatest number of a segment that is believed: counting on from it never overflows.
pub const SEGMENT_NUMBER_MAX: u64 = 1 << 56;

const SEGMENT_MAGIC: [u8; 6] = *b"RCSEG\0";
const SEAL_MAGIC: [u8; 8] = *b"RCSEAL\0\x01";
const VERSION: u16 = 1;

/// The block in this record repeats a description that stands in an earlier segment.
const FRAME_COPY: u32 = 1;
const SPAN_END: u32 = 1;

/// Name of the segment `number` in its directory.
pub fn segment_name(number: u64) -> String {
    format!("{number:010}.seg")
}

/// The number in a segment's name, if it is one.
pub fn segment_number(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".seg")?.parse().ok()?;
    (number <= SEGMENT_NUMBER_MAX && segment_name(number) == name).then_some(number)
}

/// Bytes that a block of `block_bytes` takes in a segment, frame and padding included.
pub fn record_bytes(block_bytes: usize) -> u64 {
    ((FRAME_BYTES + block_bytes) as u64).next_multiple_of(ALIGNMENT)
}

/// Bytes of the seal of a segment with `spans` streams.
pub fn seal_bytes(spans: usize) -> u64 {
    (spans * SPAN_BYTES + TRAILER_BYTES) as u64
}

/// The first bytes of a segment.
pub fn emit_segment_header(number: u64, salt: u64) -> [u8; SEGMENT_HEADER_BYTES] {
    let mut out = [0; SEGMENT_HEADER_BYTES];
    out[0..6].copy_from_slice(&SEGMENT_MAGIC);
    out[6..8].copy_from_slice(&VERSION.to_le_bytes());
    out[8..16].copy_from_slice(&number.to_le_bytes());
    out[16..24].copy_from_slice(&salt.to_le_bytes());
    let crc = crc32fast::hash(&out[..28]);
    out[28..32].copy_from_slice(&crc.to_le_bytes());
    out
}

/// The salt of the segment `number`, if `bytes` begin with its header.
pub fn parse_segment_header(bytes: &[u8], number: u64) -> Option<u64> {
    let header = bytes.first_chunk::<SEGMENT_HEADER_BYTES>()?;
    let whole = header[0..6] == SEGMENT_MAGIC
        && header[6..8] == VERSION.to_le_bytes()
        && u64_at(header, 8) == number
        && u32_at(header, 28) == crc32fast::hash(&header[..28]);
    whole.then(|| u64_at(header, 16))
}

/// The first word of each frame in a segment: drawn with its salt, never 0.
pub fn mark(salt: u64) -> u32 {
    salt as u32 | 1
}

/// The frame of a block that begins with `block_header` and is put at `offset`.
pub fn emit_frame(
    salt: u64,
    offset: u64,
    block_bytes: usize,
    copy: bool,
    block_header: &[u8; HEADER_BYTES],
) -> [u8; FRAME_BYTES] {
    let mut out = [0; FRAME_BYTES];
    out[0..4].copy_from_slice(&mark(salt).to_le_bytes());
    out[4..8].copy_from_slice(&(block_bytes as u32).to_le_bytes());
    out[8..12].copy_from_slice(&(if copy { FRAME_COPY } else { 0 }).to_le_bytes());
    let crc = frame_crc(salt, offset, &out, block_header);
    out[12..16].copy_from_slice(&crc.to_le_bytes());
    out
}

fn frame_crc(salt: u64, offset: u64, frame: &[u8; FRAME_BYTES], block_header: &[u8; HEADER_BYTES]) -> u32 {
    let mut crc = crc32fast::Hasher::new_with_initial((salt >> 32) as u32);
    crc.update(&offset.to_le_bytes());
    crc.update(&frame[..12]);
    crc.update(block_header);
    crc.finalize()
}

/// A frame and the header of its block, checked.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// Where it begins in the segment.
    pub offset: u64,
    /// The block repeats a description of an earlier segment.
    pub copy: bool,
    /// The block's header.
    pub header: Header,
    /// Length of the block's header with its extensions.
    pub header_bytes: usize,
    /// Length of the block.
    pub block_bytes: usize,
}

impl Record {
    /// Where the next record may begin.
    pub fn next(&self) -> u64 {
        self.offset + record_bytes(self.block_bytes)
    }

    /// Where the block begins.
    pub fn block_offset(&self) -> u64 {
        self.offset + FRAME_BYTES as u64
    }
}

/// Reads the record at `offset`, of which `bytes` are the first, as far as its block's header; it
/// must end before `limit`.
pub fn parse_record(salt: u64, offset: u64, limit: u64, bytes: &[u8]) -> Result<Record, &'static str> {
    let (Some(frame), Some(block)) = (bytes.first_chunk::<FRAME_BYTES>(), bytes.get(FRAME_BYTES..)) else {
        return Err("frame is cut");
    };
    if u32_at(frame, 0) != mark(salt) {
        return Err("no frame");
    }
    let Some(fixed) = block.first_chunk::<HEADER_BYTES>() else { return Err("block header is cut") };
    if u32_at(frame, 12) != frame_crc(salt, offset, frame, fixed) {
        return Err("frame checksum differs");
    }
    let block_bytes = u32_at(frame, 4) as usize;
    if offset + (FRAME_BYTES + block_bytes) as u64 > limit {
        return Err("block is cut");
    }
    let block = &block[..block.len().min(block_bytes)];
    let Ok((header, header_bytes)) = Header::parse(block) else { return Err("block header is damaged") };
    if header_bytes + header.packed_bytes as usize != block_bytes {
        return Err("lengths of frame and block differ");
    }
    let copy = u32_at(frame, 8) & FRAME_COPY != 0;
    Ok(Record { offset, copy, header, header_bytes, block_bytes })
}

/// Where the records of a sealed segment end, and what they are.
#[derive(Clone, Debug)]
pub struct Seal {
    /// The segment's salt, as in its header.
    pub salt: u64,
    /// First byte behind the records, and of the seal.
    pub records_end: u64,
    /// What the records are.
    pub index: Index,
}

/// Appends the seal of the segment `number`, whose records end at `records_end`.
pub fn emit_seal(out: &mut Vec<u8>, number: u64, salt: u64, records_end: u64, index: &Index) {
    let start = out.len();
    for span in &index.spans {
        let flags = if span.has_end { SPAN_END } else { 0 };
        out.extend_from_slice(&span.key.epoch.0.to_le_bytes());
        for word in [span.key.stream, flags, span.blocks, span.description_at] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for long in [
            span.first_sequence,
            span.next_sequence,
            span.packets,
            span.bytes,
            span.packets_through,
            span.bytes_through,
        ] {
            out.extend_from_slice(&long.to_le_bytes());
        }
    }
    out.extend_from_slice(&SEAL_MAGIC);
    for long in [number, salt, records_end, index.time_min_ns, index.time_max_ns] {
        out.extend_from_slice(&long.to_le_bytes());
    }
    for word in [index.spans.len() as u32, 0, 0] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    let crc = crc32fast::hash(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
}

/// Length of the whole seal whose end is `trailer`, if that is one of the segment `number` in a
/// file of `file_bytes`. To be read whole and given to [`parse_seal`].
pub fn seal_length(trailer: &[u8; TRAILER_BYTES], number: u64, file_bytes: u64) -> Option<u64> {
    let (records_end, spans) = (u64_at(trailer, 24), u32_at(trailer, 48) as usize);
    let plausible = trailer[0..8] == SEAL_MAGIC
        && u64_at(trailer, 8) == number
        && spans <= SPANS_MAX
        && records_end >= SEGMENT_HEADER_BYTES as u64
        && records_end.checked_add(seal_bytes(spans)) == Some(file_bytes);
    plausible.then(|| seal_bytes(spans))
}

/// Reads a seal that [`seal_length`] found plausible.
pub fn parse_seal(bytes: &[u8]) -> Option<Seal> {
    let at = bytes.len().checked_sub(TRAILER_BYTES)?;
    let (spans, trailer) = bytes.split_at(at);
    if u32_at(trailer, 60) != crc32fast::hash(&bytes[..bytes.len() - 4]) {
        return None;
    }
    let span = |one: &[u8]| Span {
        key: StreamKey { epoch: Epoch(u64_at(one, 0)), stream: u32_at(one, 8) },
        has_end: u32_at(one, 12) & SPAN_END != 0,
        blocks: u32_at(one, 16),
        description_at: u32_at(one, 20),
        first_sequence: u64_at(one, 24),
        next_sequence: u64_at(one, 32),
        packets: u64_at(one, 40),
        bytes: u64_at(one, 48),
        packets_through: u64_at(one, 56),
        bytes_through: u64_at(one, 64),
    };
    let spans: Vec<Span> = spans.chunks_exact(SPAN_BYTES).map(span).collect();
    if !spans.is_sorted_by(|one, next| one.key < next.key) {
        return None;
    }
    let index = Index { time_min_ns: u64_at(trailer, 32), time_max_ns: u64_at(trailer, 40), spans };
    Some(Seal { salt: u64_at(trailer, 16), records_end: u64_at(trailer, 24), index })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Kind;

    #[test]
    fn names_are_numbers_of_ten_digits() {
        assert_eq!(segment_name(42), "0000000042.seg");
        assert_eq!(segment_number("0000000042.seg"), Some(42));
        assert_eq!(segment_number("12345678901.seg"), Some(12_345_678_901));
        for name in [
            "42.seg",
            "0000000042",
            "+000000042.seg",
            "cursor",
            "00000000042.seg",
            "18446744073709551615.seg",
        ] {
            assert_eq!(segment_number(name), None, "{name}");
        }
    }

    #[test]
    fn a_frame_holds_only_in_its_place_with_its_block() {
        let header = Header {
            kind: Kind::Report,
            lz4: false,
            end: false,
            key: StreamKey::default(),
            sequence: 5,
            time_min_ns: 1,
            time_max_ns: 1,
            packets_before: 0,
            bytes_before: 0,
            packet_count: 0,
            byte_count: 0,
            raw_bytes: 0,
            packed_bytes: 0,
            body_crc: 0,
        };
        let mut fixed = [0; HEADER_BYTES];
        header.emit(&mut fixed);
        let salt = 0x1234_5678_9abc_def0;
        let mut bytes = emit_frame(salt, 64, HEADER_BYTES, true, &fixed).to_vec();
        bytes.extend_from_slice(&fixed);
        let record = parse_record(salt, 64, 4096, &bytes).expect("as it was written");
        assert!(record.copy && record.header == header && record.next() == 64 + 104);
        assert!(parse_record(salt, 72, 4096, &bytes).is_err(), "another place");
        assert!(parse_record(salt ^ 1 << 40, 64, 4096, &bytes).is_err(), "another segment");
        assert!(parse_record(salt, 64, 167, &bytes).is_err(), "over the limit");
        for bit in 0..bytes.len() * 8 {
            let mut broken = bytes.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(parse_record(salt, 64, 4096, &broken).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_seal_comes_back_or_is_refused() {
        let key = StreamKey { epoch: Epoch(9), stream: 3 };
        let span = Span { key, has_end: true, packets: 7, next_sequence: 4, ..Span::default() };
        let index = Index { time_min_ns: 5, time_max_ns: 6, spans: vec![span] };
        let mut bytes = Vec::new();
        emit_seal(&mut bytes, 12, 77, 4096, &index);
        assert_eq!(bytes.len() as u64, seal_bytes(1));
        let file_bytes = 4096 + bytes.len() as u64;
        let trailer = *bytes.last_chunk().expect("long enough");
        assert_eq!(seal_length(&trailer, 12, file_bytes), Some(bytes.len() as u64));
        assert_eq!(seal_length(&trailer, 13, file_bytes), None);
        assert_eq!(seal_length(&trailer, 12, file_bytes + 1), None);
        let seal = parse_seal(&bytes).expect("as it was written");
        assert_eq!((seal.salt, seal.records_end, seal.index), (77, 4096, index));
        for bit in 0..bytes.len() * 8 {
            let mut broken = bytes.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(parse_seal(&broken).is_none(), "bit {bit}");
        }
    }
}
