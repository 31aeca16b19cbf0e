//! The journal's own reader, which follows the writer.

use std::collections::{BTreeMap, VecDeque};

use crate::block::Kind;
use crate::pool::Pool;

use super::format::{SEGMENT_HEADER_BYTES, segment_name};
use super::fs::{Fs, FsFile};
use super::reader::{Body, SegmentReader, Step};
use super::{Entry, Journal, JournalError, Position};

/// Where the journal's own reader is.
#[derive(Debug)]
pub struct Reading<File> {
    pub position: Position,
    pub open: Option<(u64, SegmentReader<File>)>,
    /// Offsets of the descriptions to give first, since reading began in the middle of a segment.
    pub descriptions: VecDeque<u64>,
    /// Whether these have been looked for.
    pub prepared: bool,
}

impl<F: Fs> Journal<F> {
    /// Reads the next block into a buffer of `pool`; `None` at the end of what was appended.
    ///
    /// Reading that begins in the middle of a segment gives the descriptions first that stand in it
    /// before, as copies. [`JournalError::NoBuffer`] changes nothing: try again later.
    pub fn read_next(&mut self, pool: &Pool) -> Result<Option<Entry>, JournalError> {
        loop {
            let position = self.reading.position;
            let Some((salt, limit, writing)) = self.readable(position.segment) else {
                match self.segment_after(position.segment) {
                    Some(number) => self.reading.go_to(Position::start_of(number)),
                    None => return Ok(None),
                }
                continue;
            };
            if position.offset >= limit {
                if !writing {
                    self.leave_segment(position.segment);
                } else if position < self.end() {
                    self.flush()?;
                } else {
                    return Ok(None);
                }
                continue;
            }
            if self.reading.open.as_ref().is_none_or(|(number, _)| *number != position.segment) {
                match self.fs.open(&self.directory.join(segment_name(position.segment)), false) {
                    Ok(file) => {
                        let reader = SegmentReader::new(file, salt, position.offset, self.tuning.piece_bytes);
                        self.reading.open = Some((position.segment, reader));
                    }
                    Err(error) => {
                        self.damaged(position.segment, position.offset..limit, error.to_string(), None);
                        self.reading.position.offset = limit;
                        continue;
                    }
                }
            }
            // It was opened just above, or before.
            let Some((_, reader)) = &mut self.reading.open else { continue };
            if !self.reading.prepared {
                self.reading.descriptions = descriptions_before(reader, position.offset);
                self.reading.prepared = true;
            }
            let first = self.reading.descriptions.front().copied();
            let at = first.unwrap_or(position.offset);
            if reader.at() != at {
                reader.seek(at);
            }
            match reader.step(if first.is_some() { position.offset } else { limit }) {
                Step::Record(record) => {
                    let body = reader.body(&record, pool);
                    if matches!(body, Body::NoBuffer) {
                        return Err(JournalError::NoBuffer { block_bytes: record.block_bytes });
                    }
                    let here = Position { offset: record.offset, ..position };
                    let next = if first.is_some() {
                        self.reading.descriptions.pop_front();
                        position
                    } else {
                        reader.advance(&record);
                        Position { offset: record.next().min(limit), ..position }
                    };
                    self.reading.position = next;
                    match body {
                        Body::Whole(block) => {
                            let is_copy = record.copy || first.is_some();
                            return Ok(Some(Entry { block, position: here, next, is_copy }));
                        }
                        Body::Damaged(reason) => {
                            let range = record.offset..record.next();
                            self.damaged(position.segment, range, reason, Some(record.header));
                        }
                        Body::NoBuffer => {}
                    }
                }
                Step::End if first.is_some() => drop(self.reading.descriptions.pop_front()),
                Step::Damage(..) if first.is_some() => drop(self.reading.descriptions.pop_front()),
                Step::End => self.reading.position.offset = limit,
                Step::Damage(range, reason) => {
                    self.reading.position.offset = range.end;
                    self.damaged(position.segment, range, reason, None);
                }
            }
        }
    }

    /// Salt of a segment, where its readable records end, and whether it is being written.
    fn readable(&self, number: u64) -> Option<(u64, u64, bool)> {
        if let Some(writing) = &self.writing
            && writing.number == number
        {
            return Some((writing.salt, writing.flushed, true));
        }
        let at = self.sealed.binary_search_by_key(&number, |segment| segment.number).ok()?;
        let segment = &self.sealed[at];
        Some((segment.salt, segment.records_end, false))
    }

    pub(super) fn segment_after(&self, number: u64) -> Option<u64> {
        let at = self.sealed.partition_point(|segment| segment.number <= number);
        let sealed = self.sealed.get(at).map(|segment| segment.number);
        sealed.or(self.writing.as_ref().map(|writing| writing.number).filter(|writing| *writing > number))
    }

    /// Goes to the next segment, if there is one, with what was read dropped from memory.
    fn leave_segment(&mut self, number: u64) {
        if let Some((_, reader)) = self.reading.open.take() {
            reader.forget();
        }
        match self.segment_after(number) {
            Some(next) => self.reading.go_to(Position::start_of(next)),
            // Nothing is written yet: the next segment will have a greater number.
            None => self.reading.go_to(Position::start_of(number + 1)),
        }
    }

    /// Where the oldest block is, or the next one will be.
    pub(super) fn start(&self) -> Position {
        let sealed = self.sealed.front().map(|segment| segment.number);
        let number = sealed.or(self.writing.as_ref().map(|writing| writing.number));
        Position::start_of(number.unwrap_or(self.next_number))
    }

    /// Bytes of records between two places.
    pub(super) fn bytes_between(&self, from: Position, to: Position) -> u64 {
        let header = SEGMENT_HEADER_BYTES as u64;
        let sealed = self.sealed.iter().map(|segment| (segment.number, segment.records_end));
        let all = sealed.chain(self.writing.as_ref().map(|writing| (writing.number, writing.end())));
        let clip = |number: u64, end: u64| {
            let within = |at: Position| match at.segment.cmp(&number) {
                std::cmp::Ordering::Less => header,
                std::cmp::Ordering::Equal => at.offset.clamp(header, end.max(header)),
                std::cmp::Ordering::Greater => end.max(header),
            };
            within(to).saturating_sub(within(from))
        };
        all.map(|(number, end)| clip(number, end)).sum()
    }
}

impl<File> Reading<File> {
    pub fn go_to(&mut self, position: Position) {
        self.position = position;
        self.descriptions.clear();
        self.prepared = position.offset <= SEGMENT_HEADER_BYTES as u64;
    }
}

/// Offsets of the last description of each stream before `offset`, in order.
fn descriptions_before<File: FsFile>(reader: &mut SegmentReader<File>, offset: u64) -> VecDeque<u64> {
    let mut last = BTreeMap::new();
    reader.seek(0);
    loop {
        match reader.step(offset) {
            Step::End => break,
            Step::Damage(..) => {}
            Step::Record(record) => {
                if record.header.kind == Kind::Description {
                    last.insert(record.header.key, record.offset);
                } else if record.header.end {
                    last.remove(&record.header.key);
                }
                reader.advance(&record);
            }
        }
    }
    let mut offsets: Vec<u64> = last.into_values().collect();
    offsets.sort_unstable();
    offsets.into()
}
