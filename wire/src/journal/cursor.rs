//! What must outlive the process beside the blocks: how far they are acknowledged, and what was
//! evicted and not told yet. One small file, written aside, synced and renamed.
//!
//! ```text
//!  0          8         12      16        24        32        40
//!  | RCCURSOR | version | count | segment | offset  | oldest  | evictions ... | crc |
//!  an eviction: epoch 8, stream 4, flags 4, first 8, next 8, packets 8, bytes 8,
//!               packets through 8, bytes through 8
//! ```

use crate::block::{Epoch, StreamKey, u32_at, u64_at};

use super::format::SEGMENT_NUMBER_MAX;
use super::{Eviction, Position};

/// Most streams whose evictions are kept apart; what is evicted of one more is added to the oldest.
pub const EVICTIONS_MAX: usize = 4096;

const MAGIC: [u8; 8] = *b"RCCURSOR";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 40;
const EVICTION_BYTES: usize = 64;
const FLAG_END: u32 = 1;

/// What the cursor file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// All before it is acknowledged.
    pub acknowledged: Position,
    /// Segments below this number are gone, and what was lost with them is counted.
    pub oldest: u64,
    /// Evicted and not told yet, the oldest first; one for each stream.
    pub evictions: Vec<Eviction>,
}

impl Cursor {
    /// Adds what was evicted of one stream.
    pub fn add(&mut self, eviction: &Eviction) {
        if let Some(known) = self.evictions.iter_mut().find(|known| known.key == eviction.key) {
            known.first_sequence = known.first_sequence.min(eviction.first_sequence);
            known.next_sequence = known.next_sequence.max(eviction.next_sequence);
            known.has_end |= eviction.has_end;
            known.packets_through = known.packets_through.max(eviction.packets_through);
            known.bytes_through = known.bytes_through.max(eviction.bytes_through);
            known.packets += eviction.packets;
            known.bytes += eviction.bytes;
        } else if self.evictions.len() < EVICTIONS_MAX {
            self.evictions.push(*eviction);
        } else {
            self.evictions[0].packets += eviction.packets;
            self.evictions[0].bytes += eviction.bytes;
        }
    }

    /// The file's content.
    pub fn emit(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES + self.evictions.len() * EVICTION_BYTES + 4);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(self.evictions.len() as u32).to_le_bytes());
        for long in [self.acknowledged.segment, self.acknowledged.offset, self.oldest] {
            out.extend_from_slice(&long.to_le_bytes());
        }
        for one in &self.evictions {
            out.extend_from_slice(&one.key.epoch.0.to_le_bytes());
            out.extend_from_slice(&one.key.stream.to_le_bytes());
            out.extend_from_slice(&(if one.has_end { FLAG_END } else { 0 }).to_le_bytes());
            let range = [one.first_sequence, one.next_sequence, one.packets, one.bytes];
            for long in range.into_iter().chain([one.packets_through, one.bytes_through]) {
                out.extend_from_slice(&long.to_le_bytes());
            }
        }
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the file's content; `None` if it is damaged.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (content, crc) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
        let head = content.first_chunk::<HEAD_BYTES>()?;
        let count = u32_at(head, 12) as usize;
        let whole = head[..8] == MAGIC
            && u32_at(head, 8) == VERSION
            && count <= EVICTIONS_MAX
            && u64_at(head, 16).max(u64_at(head, 32)) <= SEGMENT_NUMBER_MAX + 1
            && content.len() == HEAD_BYTES + count * EVICTION_BYTES
            && u32_at(crc, 0) == crc32fast::hash(content);
        if !whole {
            return None;
        }
        let eviction = |one: &[u8]| Eviction {
            key: StreamKey { epoch: Epoch(u64_at(one, 0)), stream: u32_at(one, 8) },
            has_end: u32_at(one, 12) & FLAG_END != 0,
            first_sequence: u64_at(one, 16),
            next_sequence: u64_at(one, 24),
            packets: u64_at(one, 32),
            bytes: u64_at(one, 40),
            packets_through: u64_at(one, 48),
            bytes_through: u64_at(one, 56),
        };
        Some(Self {
            acknowledged: Position { segment: u64_at(head, 16), offset: u64_at(head, 24) },
            oldest: u64_at(head, 32),
            evictions: content[HEAD_BYTES..].chunks_exact(EVICTION_BYTES).map(eviction).collect(),
        })
    }

    /// Most bytes of the file.
    pub const BYTES_MAX: u64 = (HEAD_BYTES + EVICTIONS_MAX * EVICTION_BYTES + 4) as u64;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eviction(stream: u32, packets: u64) -> Eviction {
        let key = StreamKey { epoch: Epoch(7), stream };
        let (first_sequence, next_sequence, bytes) = (3, 9, packets * 10);
        let (packets_through, bytes_through) = (100, 1000);
        Eviction {
            key,
            first_sequence,
            next_sequence,
            packets,
            bytes,
            packets_through,
            bytes_through,
            has_end: false,
        }
    }

    #[test]
    fn what_is_written_is_read_and_every_flipped_bit_noticed() {
        let mut cursor =
            Cursor { acknowledged: Position { segment: 4, offset: 96 }, oldest: 3, ..Cursor::default() };
        cursor.add(&eviction(1, 5));
        cursor.add(&eviction(2, 6));
        cursor.add(&Eviction { has_end: true, next_sequence: 12, ..eviction(1, 7) });
        let merged = Eviction { has_end: true, next_sequence: 12, ..eviction(1, 12) };
        assert_eq!(cursor.evictions, [merged, eviction(2, 6)]);
        let bytes = cursor.emit();
        assert_eq!(Cursor::parse(&bytes), Some(cursor));
        for bit in 0..bytes.len() * 8 {
            let mut broken = bytes.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Cursor::parse(&broken), None, "bit {bit}");
        }
        assert_eq!(Cursor::parse(&[]), None);
    }

    #[test]
    fn evictions_of_too_many_streams_are_added_to_the_oldest() {
        let mut cursor = Cursor::default();
        for stream in 0..EVICTIONS_MAX as u32 + 10 {
            cursor.add(&eviction(stream, 2));
        }
        assert_eq!(cursor.evictions.len(), EVICTIONS_MAX);
        assert_eq!(cursor.evictions[0].packets, 22);
        assert!(cursor.emit().len() as u64 <= Cursor::BYTES_MAX);
        assert_eq!(Cursor::parse(&cursor.emit()), Some(cursor));
    }
}
