//! Reads the records of one segment in order, in large pieces, and finds its way behind damage.
//!
//! INVARIANT: every step but the last moves forward, and no byte is looked at by more than a few
//! steps: whatever a segment holds, reading it ends.

use std::ops::Range;

use crate::block::{HEADER_BYTES_MAX, PackedBlock, u32_at};
use crate::pool::Pool;

use super::format::{ALIGNMENT, FRAME_BYTES, Record, SEGMENT_HEADER_BYTES, mark, parse_record};
use super::fs::FsFile;

/// Bytes read at once, unless records are large. Small blocks must not cost a system call each;
/// beyond 1 MiB reading gains nothing.
pub const PIECE_BYTES: usize = 1 << 20;
/// Enough for a frame and any block header.
const HEAD_BYTES: usize = FRAME_BYTES + HEADER_BYTES_MAX;
/// After a record of at least this many bytes only the next head is read ahead: its body goes
/// straight into its own buffer.
const LARGE_BYTES: u64 = 128 << 10;

/// What stands next in a segment.
#[derive(Clone, Debug)]
pub enum Step {
    /// A record whose frame and block header are right. Its body has not been looked at.
    Record(Record),
    /// Nothing follows.
    End,
    /// Bytes that are no record; what follows them is one, or the end.
    Damage(Range<u64>, String),
}

/// What came of a body.
#[derive(Debug)]
pub enum Body {
    /// It agrees with its checksum.
    Whole(PackedBlock),
    /// It does not, or cannot be read.
    Damaged(String),
    /// There is no buffer for it.
    NoBuffer,
}

/// A segment that is being read.
#[derive(Debug)]
pub struct SegmentReader<File> {
    file: File,
    salt: u64,
    /// Offset of the next step.
    at: u64,
    /// What was read last; of it the first `piece_bytes` count, and begin at `piece_at`.
    piece: Vec<u8>,
    piece_at: u64,
    piece_bytes: usize,
    /// Most bytes of a piece.
    piece_max: usize,
    /// The record before this one was large.
    large: bool,
    /// The disk failed to give some bytes.
    failed: bool,
}

impl<File: FsFile> SegmentReader<File> {
    /// Reads `file`, whose frames were made with `salt`, from `at` on, in pieces of `piece_max`.
    pub fn new(file: File, salt: u64, at: u64, piece_max: usize) -> Self {
        let at = at.max(SEGMENT_HEADER_BYTES as u64).next_multiple_of(ALIGNMENT);
        let piece_max = piece_max.max(HEAD_BYTES);
        Self {
            file,
            salt,
            at,
            piece: Vec::new(),
            piece_at: 0,
            piece_bytes: 0,
            piece_max,
            large: false,
            failed: false,
        }
    }

    /// Offset of the next step.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Whether the disk failed to give some bytes: they may be right all the same.
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// Goes to `at`, where a record begins or may begin.
    pub fn seek(&mut self, at: u64) {
        self.at = at.max(SEGMENT_HEADER_BYTES as u64).next_multiple_of(ALIGNMENT);
    }

    /// What comes next before `limit`. A record stays next until [`advance`](Self::advance).
    pub fn step(&mut self, limit: u64) -> Step {
        let from = self.at;
        if from + FRAME_BYTES as u64 > limit {
            // Less than a frame: the padding of the last record, or nothing.
            return Step::End;
        }
        let reason = match self.head(from, limit) {
            Ok(head) => match parse_record(self.salt, from, limit, &self.piece[head]) {
                Ok(record) => return Step::Record(record),
                Err(reason) => {
                    self.at = self.resynchronise(from + ALIGNMENT, limit);
                    reason.to_owned()
                }
            },
            Err(reason) => {
                self.at = self.resynchronise(self.behind_unreadable(from), limit);
                reason
            }
        };
        Step::Damage(from..self.at, reason)
    }

    /// Goes on behind `record`.
    pub fn advance(&mut self, record: &Record) {
        self.at = record.next();
        self.large = record.next() - record.offset >= LARGE_BYTES;
    }

    /// Reads the block of `record` into a buffer of `pool` and checks its body.
    pub fn body(&mut self, record: &Record, pool: &Pool) -> Body {
        let Some(mut buffer) = pool.take(record.block_bytes) else { return Body::NoBuffer };
        let have = self.have(record.block_offset());
        let have = &self.piece[have];
        let had = have.len().min(record.block_bytes);
        buffer[..had].copy_from_slice(&have[..had]);
        if had < record.block_bytes {
            match self.file.read_at(record.block_offset() + had as u64, &mut buffer[had..]) {
                Ok(read) if read == record.block_bytes - had => {}
                Ok(_) => return Body::Damaged("block is cut".to_owned()),
                Err(error) => return Body::Damaged(error.to_string()),
            }
        }
        let checked = PackedBlock::new(buffer.freeze()).and_then(|block| block.check_body().map(|()| block));
        match checked {
            Ok(block) => Body::Whole(block),
            Err(error) => Body::Damaged(error.to_string()),
        }
    }

    /// Checks the body of `record` without keeping it.
    pub fn verify(&mut self, record: &Record) -> Result<(), String> {
        // What the header of a block says has been checked, so the sum does not overflow.
        let mut at = record.block_offset() + record.header_bytes as u64;
        let mut left = u64::from(record.header.packed_bytes);
        let mut crc = crc32fast::Hasher::new();
        while left > 0 {
            if self.have(at).is_empty() {
                self.fill(at, at + left, self.piece_max).map_err(|error| error.to_string())?;
            }
            let have = self.have(at);
            let take = (have.len() as u64).min(left);
            if take == 0 {
                return Err("block is cut".to_owned());
            }
            crc.update(&self.piece[have.start..have.start + take as usize]);
            at += take;
            left -= take;
        }
        let (found, expected) = (crc.finalize(), record.header.body_crc);
        if found == expected {
            return Ok(());
        }
        Err(format!("body checksum {found:08x}, expected {expected:08x}"))
    }

    /// The kernel need not keep what was read.
    pub fn forget(&self) {
        self.file.forget(0, self.at);
    }

    /// Bytes from `from` to the last before `limit` that is not zero, as far as they can be read.
    pub fn torn_bytes(&mut self, from: u64, limit: u64) -> u64 {
        let (mut at, mut end) = (from, from);
        while at < limit && self.fill(at, limit, self.piece_max).is_ok() && self.piece_bytes > 0 {
            let piece = &self.piece[..self.piece_bytes];
            if let Some(last) = piece.iter().rposition(|byte| *byte != 0) {
                end = at + last as u64 + 1;
            }
            at += piece.len() as u64;
        }
        end - from
    }

    /// Where in the piece a frame and the header of its block are, as far as they lie before `limit`.
    fn head(&mut self, at: u64, limit: u64) -> Result<Range<usize>, String> {
        let wanted = (limit - at).min(HEAD_BYTES as u64) as usize;
        if self.have(at).len() < wanted {
            let bytes = if self.large { HEAD_BYTES } else { self.piece_max };
            self.fill(at, limit, bytes).map_err(|error| error.to_string())?;
        }
        let have = self.have(at);
        Ok(have.start..have.end.min(have.start + wanted))
    }

    /// The part of the piece from `at` on.
    fn have(&self, at: u64) -> Range<usize> {
        match at.checked_sub(self.piece_at) {
            Some(start) if start < self.piece_bytes as u64 => start as usize..self.piece_bytes,
            _ => 0..0,
        }
    }

    /// Reads up to `bytes` from `at`, none from `limit` on.
    fn fill(&mut self, at: u64, limit: u64, bytes: usize) -> std::io::Result<()> {
        let bytes = limit.saturating_sub(at).min(bytes as u64) as usize;
        if self.piece.len() < bytes {
            self.piece.resize(bytes, 0);
        }
        self.piece_bytes = 0;
        self.piece_at = at;
        let read = self.file.read_at(at, &mut self.piece[..bytes]);
        self.failed |= read.is_err();
        self.piece_bytes = read?;
        Ok(())
    }

    /// Where to go on when nothing can be read at `at`: a failing disk is not asked for every byte.
    fn behind_unreadable(&self, at: u64) -> u64 {
        (at + 1).next_multiple_of(self.piece_max as u64)
    }

    /// The next record from `at` on, or `limit`. A frame's mark and its checksum are both drawn
    /// with the segment's salt: what looks like a record inside a captured packet is not one.
    fn resynchronise(&mut self, mut at: u64, limit: u64) -> u64 {
        let mark = mark(self.salt);
        while at < limit {
            if self.have(at).len() < FRAME_BYTES && self.fill(at, limit, self.piece_max).is_err() {
                at = self.behind_unreadable(at);
                continue;
            }
            let have = self.have(at);
            if have.len() < FRAME_BYTES {
                return limit;
            }
            let piece = &self.piece[have];
            let step = ALIGNMENT as usize;
            let hit = piece.chunks_exact(step).position(|word| u32_at(word, 0) == mark);
            let Some(hit) = hit else {
                at += (piece.len() / step * step) as u64;
                continue;
            };
            at += (hit * step) as u64;
            if at + FRAME_BYTES as u64 > limit {
                return limit;
            }
            match self.head(at, limit) {
                Ok(head) if parse_record(self.salt, at, limit, &self.piece[head.clone()]).is_ok() => {
                    return at;
                }
                Ok(_) => at += ALIGNMENT,
                Err(_) => at = self.behind_unreadable(at),
            }
        }
        limit
    }
}
