//! Appending: which segment a block goes to, and what is done when the disk does not take it.

use std::io;
use std::time::Instant;

use crate::block::{Kind, PackedBlock, StreamKey};
use crate::pool::Pool;

use super::format::{SEGMENT_HEADER_BYTES, record_bytes, seal_bytes, segment_name};
use super::fs::{Fs, FsFile, is_full};
use super::index::Segment;
use super::reader::{Body, SegmentReader, Step};
use super::writer::Writing;
use super::{
    ALLOCATE_BYTES_MIN, INDEX_SPANS_MAX, Journal, JournalError, JournalEvent, Position, SEGMENT_BYTES_MIN,
    fresh_salt,
};

impl<F: Fs> Journal<F> {
    /// Appends a block, which is taken whole or, on error, not at all, and says where it stands.
    ///
    /// It may wait up to 100 ms in memory before it is written: a journal is to be ended by
    /// [`close`](Self::close) or [`sync`](Self::sync), not by dropping it.
    pub fn append(&mut self, block: &PackedBlock, now: Instant) -> Result<Position, JournalError> {
        self.now = now;
        let key = block.header().key;
        let is_description = block.header().kind == Kind::Description;
        let new_here = match &self.writing {
            Some(writing) => writing.index.span(key).is_none(),
            None => true,
        };
        let mut copy = if new_here && !is_description { self.last_description(key) } else { None };
        if !self.fits(block, copy.as_ref()) {
            if least_bytes(block, copy.as_ref()) > self.cap_bytes {
                let (block_bytes, cap_bytes) = (block.bytes().len(), self.cap_bytes);
                return Err(JournalError::BlockTooLong { block_bytes, cap_bytes });
            }
            self.finish_segment()?;
            if copy.is_none() && !is_description {
                copy = self.last_description(key);
            }
            self.begin_segment(block, copy.as_ref())?;
        }
        if let Some(copy) = copy {
            self.take(&copy, true)?;
        }
        let position = self.take(block, false)?;
        if is_description {
            self.descriptions.keep(block);
        }
        if block.header().end {
            self.descriptions.forget(key);
        }
        let (reading, begin_bytes) = (self.reading.position.segment, self.tuning.begin_bytes);
        // What is about to be read stays in memory.
        if let Some(writing) = self.writing.as_mut().filter(|writing| writing.number != reading) {
            writing.begin_sync(begin_bytes);
        }
        let unsynced = self.writing.as_ref().map_or(0, |writing| writing.end() - writing.synced);
        if unsynced >= self.tuning.sync_bytes {
            // The block was taken: what fails now is told by an event, or by the next call.
            let _ = self.sync_segment();
        }
        Ok(position)
    }

    /// Whether the block, and a copy of its description, may go into the segment that is written.
    fn fits(&self, block: &PackedBlock, copy: Option<&PackedBlock>) -> bool {
        let Some(writing) = &self.writing else { return false };
        let bytes = needed_bytes(block, copy) + seal_bytes(writing.index.spans.len() + 1);
        !writing.doubtful
            && writing.index.has_room_for(block.header().key)
            && self.span_count() < INDEX_SPANS_MAX
            && writing.end() + bytes <= writing.limit
    }

    /// Ends the segment that is written, if there is one.
    pub(super) fn finish_segment(&mut self) -> Result<(), JournalError> {
        if self.writing.is_none() {
            return Ok(());
        }
        // A doubtful segment is left as it is; any other is synced before its seal is written.
        let synced = self.sync_segment();
        if !matches!(synced, Ok(()) | Err(JournalError::Sync { .. })) {
            return synced;
        }
        let Some(writing) = self.writing.take() else { return Ok(()) };
        let (segment, spare, result) = writing.finish();
        if let Err(error) = result {
            self.trouble_text(format!("segment {:010}: cannot be sealed: {error}", segment.number));
        }
        self.spare = spare;
        self.sealed_spans += segment.index.spans.len();
        self.sealed.push_back(segment);
        self.delete_acknowledged();
        Ok(())
    }

    /// Begins a segment in which `block` has room.
    fn begin_segment(&mut self, block: &PackedBlock, copy: Option<&PackedBlock>) -> Result<(), JournalError> {
        let limit = self.segment_bytes.max(least_bytes(block, copy));
        if limit > self.cap_bytes {
            let (block_bytes, cap_bytes) = (block.bytes().len(), self.cap_bytes);
            return Err(JournalError::BlockTooLong { block_bytes, cap_bytes });
        }
        self.make_room(limit);
        let number = self.next_number;
        let path = self.directory.join(segment_name(number));
        let file = loop {
            match self.fs.create(&path) {
                Ok(file) => break file,
                Err(error) if is_full(&error) => {
                    if !self.evict_oldest() {
                        return Err(JournalError::Full { directory: self.directory.clone(), source: error });
                    }
                }
                Err(source) => return Err(JournalError::Create { segment: number, source }),
            }
        };
        // The number is used up even if nothing comes of it.
        self.next_number += 1;
        let (mut limit, mut allocate) = (limit, limit);
        while let Err(error) = file.allocate(allocate)
            && is_full(&error)
            && allocate / 2 >= ALLOCATE_BYTES_MIN
        {
            allocate /= 2;
            // The disk is smaller than the cap. In one segment that fills it there would be nothing
            // to evict but all.
            limit =
                (allocate / 4).max(SEGMENT_BYTES_MIN.min(self.segment_bytes)).max(least_bytes(block, copy));
        }
        let spare = std::mem::take(&mut self.spare);
        self.writing = Some(Writing::new(file, number, fresh_salt(), limit, spare));
        Ok(())
    }

    /// Gives a block to the segment that is written, where it fits.
    fn take(&mut self, block: &PackedBlock, copy: bool) -> Result<Position, JournalError> {
        let (block_bytes, now) = (block.bytes().len(), self.now);
        loop {
            // `append` has begun a segment.
            let Some(writing) = &mut self.writing else { return Ok(self.end()) };
            let position = Position { segment: writing.number, offset: writing.end() };
            let small = block_bytes <= self.tuning.small_bytes;
            let result = if small && writing.pending_bytes() + block_bytes <= self.tuning.pending_bytes {
                writing.push(block, copy, now);
                Ok(())
            } else if small {
                writing.flush().map(|()| writing.push(block, copy, now))
            } else {
                writing.write(block, copy, now)
            };
            match result {
                Ok(()) => return Ok(position),
                Err(error) => self.write_failed(error)?,
            }
        }
    }

    /// Writes what waits.
    pub(super) fn flush(&mut self) -> Result<(), JournalError> {
        while let Some(writing) = &mut self.writing
            && let Err(error) = writing.flush()
        {
            self.write_failed(error)?;
        }
        Ok(())
    }

    /// Evicts, if that may help the write that failed.
    fn write_failed(&mut self, source: io::Error) -> Result<(), JournalError> {
        if !is_full(&source) {
            let at = self.end();
            return Err(JournalError::Write { segment: at.segment, offset: at.offset, source });
        }
        if self.evict_oldest() {
            return Ok(());
        }
        Err(JournalError::Full { directory: self.directory.clone(), source })
    }

    /// Writes and syncs what the segment that is written holds.
    pub(super) fn sync_segment(&mut self) -> Result<(), JournalError> {
        self.flush()?;
        let Some(writing) = &mut self.writing else { return Ok(()) };
        if writing.doubtful || writing.unsynced_since.is_none() {
            return Ok(());
        }
        let (segment, from, to) = (writing.number, writing.synced, writing.flushed);
        let synced = if writing.named { Ok(()) } else { self.fs.sync_directory(&self.directory) };
        // Without its name durable the content is not.
        let synced = match synced {
            Ok(()) => {
                writing.named = true;
                writing.sync()
            }
            Err(error) => {
                writing.doubtful = true;
                writing.unsynced_since = None;
                Err(error)
            }
        };
        match synced {
            Ok(range) => {
                // What is synced can be dropped from memory, unless it is about to be read.
                if self.reading.position.segment != segment {
                    writing.forget(range);
                }
                Ok(())
            }
            Err(source) => {
                let from = from.max(SEGMENT_HEADER_BYTES as u64);
                self.push_event(JournalEvent::SyncFailed {
                    from: Position { segment, offset: from },
                    to: Position { segment, offset: to },
                    reason: source.to_string(),
                });
                Err(JournalError::Sync { segment, from, to, source })
            }
        }
    }

    /// The last description of a stream: from memory, or from the last segment that has it.
    fn last_description(&mut self, key: StreamKey) -> Option<PackedBlock> {
        if let Some(bytes) = self.descriptions.last(key) {
            return PackedBlock::new(bytes).ok();
        }
        let has_it = |segment: &&Segment| segment.index.span(key).is_some_and(|span| span.description_at > 0);
        let segment = self.sealed.iter().rev().find(has_it)?;
        let span = segment.index.span(key)?;
        let file = self.fs.open(&self.directory.join(segment_name(segment.number)), false).ok()?;
        let mut reader = SegmentReader::new(file, segment.salt, span.description_at.into(), 0);
        let Step::Record(record) = reader.step(segment.records_end) else { return None };
        if record.header.key != key || record.header.kind != Kind::Description {
            return None;
        }
        // A pool of its own, for a block that is kept no longer than memory has it anyway.
        match reader.body(&record, &Pool::new(record.block_bytes.next_power_of_two().max(512))) {
            Body::Whole(block) => {
                self.descriptions.keep(&block);
                Some(block)
            }
            Body::Damaged(_) | Body::NoBuffer => None,
        }
    }
}

/// Least bytes of a segment with this block in it.
fn least_bytes(block: &PackedBlock, copy: Option<&PackedBlock>) -> u64 {
    SEGMENT_HEADER_BYTES as u64 + needed_bytes(block, copy) + seal_bytes(2)
}

fn needed_bytes(block: &PackedBlock, copy: Option<&PackedBlock>) -> u64 {
    let copy = copy.map_or(0, |copy| record_bytes(copy.bytes().len()));
    copy + record_bytes(block.bytes().len())
}
