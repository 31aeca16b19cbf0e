//! What a segment holds, by stream: kept in memory for each segment, and written in its seal.

use crate::block::{Header, Kind, StreamKey};

use super::Eviction;
use super::format::SPANS_MAX;

/// What one segment holds of one stream. Copies of descriptions are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// The stream.
    pub key: StreamKey,
    /// Sequence of its first block here.
    pub first_sequence: u64,
    /// Sequence after its last block here.
    pub next_sequence: u64,
    /// Blocks; 0 if there is only a copy of its description.
    pub blocks: u32,
    /// Packets in them.
    pub packets: u64,
    /// Captured bytes of these packets.
    pub bytes: u64,
    /// Packets of the stream up to the end of its last block here.
    pub packets_through: u64,
    /// Captured bytes of the stream up to the end of its last block here.
    pub bytes_through: u64,
    /// The stream ends here.
    pub has_end: bool,
    /// Offset of the last description of it here, copy or not; 0 if there is none.
    pub description_at: u32,
}

impl Span {
    /// All of it as lost.
    pub fn as_eviction(&self) -> Eviction {
        Eviction {
            key: self.key,
            first_sequence: self.first_sequence,
            next_sequence: self.next_sequence,
            packets: self.packets,
            bytes: self.bytes,
            packets_through: self.packets_through,
            bytes_through: self.bytes_through,
            has_end: self.has_end,
        }
    }
}

/// What one segment holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Least time stamp of a packet, ns since 1970; `u64::MAX` without packets.
    pub time_min_ns: u64,
    /// Greatest time stamp of a packet, ns since 1970; 0 without packets.
    pub time_max_ns: u64,
    /// By stream, sorted by key.
    pub spans: Vec<Span>,
}

impl Default for Index {
    fn default() -> Self {
        Self { time_min_ns: u64::MAX, time_max_ns: 0, spans: Vec::new() }
    }
}

impl Index {
    /// Counts a block that stands at `offset`.
    pub fn add(&mut self, header: &Header, copy: bool, offset: u64) {
        let at = match self.spans.binary_search_by_key(&header.key, |span| span.key) {
            Ok(at) => at,
            Err(at) => {
                self.spans.insert(at, Span { key: header.key, ..Span::default() });
                at
            }
        };
        let span = &mut self.spans[at];
        if header.kind == Kind::Description {
            span.description_at = u32::try_from(offset).unwrap_or(0);
        }
        if copy {
            return;
        }
        let next = header.sequence + 1;
        if span.blocks == 0 {
            (span.first_sequence, span.next_sequence) = (header.sequence, next);
        }
        span.first_sequence = span.first_sequence.min(header.sequence);
        if next >= span.next_sequence {
            span.next_sequence = next;
            span.packets_through = header.packets_before + u64::from(header.packet_count);
            span.bytes_through = header.bytes_before + u64::from(header.byte_count);
        }
        span.blocks += 1;
        span.packets += u64::from(header.packet_count);
        span.bytes += u64::from(header.byte_count);
        span.has_end |= header.end;
        if header.kind == Kind::Packets && header.packet_count > 0 {
            self.time_min_ns = self.time_min_ns.min(header.time_min_ns);
            self.time_max_ns = self.time_max_ns.max(header.time_max_ns);
        }
    }

    /// Whether a block of this stream may come: segments have a bounded number of streams.
    pub fn has_room_for(&self, key: StreamKey) -> bool {
        self.spans.len() < SPANS_MAX || self.span(key).is_some()
    }

    /// What is here of a stream.
    pub fn span(&self, key: StreamKey) -> Option<&Span> {
        let at = self.spans.binary_search_by_key(&key, |span| span.key).ok()?;
        Some(&self.spans[at])
    }

    /// Blocks here, copies not counted.
    pub fn blocks(&self) -> u64 {
        self.spans.iter().map(|span| u64::from(span.blocks)).sum()
    }

    /// Packets here.
    pub fn packets(&self) -> u64 {
        self.spans.iter().map(|span| span.packets).sum()
    }

    /// Whether there is a packet with a time stamp in `from_ns..until_ns`, as far as the least and
    /// greatest tell.
    pub fn touches(&self, from_ns: u64, until_ns: u64) -> bool {
        self.time_min_ns < until_ns && self.time_max_ns >= from_ns
    }
}

/// One segment that is not written to any more.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Its number, which is its name.
    pub number: u64,
    /// What its frames were made with.
    pub salt: u64,
    /// First byte behind its records.
    pub records_end: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// What it holds.
    pub index: Index,
}
