//! Deleting segments: what is acknowledged, and what must make room.

use std::io;

use super::format::segment_name;
use super::fs::Fs;
use super::index::{Index, Segment, Span};
use super::reader::{SegmentReader, Step};
use super::{Eviction, INDEX_SPANS_MAX, Journal, JournalEvent, Position};

impl<F: Fs> Journal<F> {
    /// Evicts until `bytes` more are within the cap.
    pub(super) fn make_room(&mut self, bytes: u64) {
        while (self.size_bytes() + bytes > self.cap_bytes || self.span_count() >= INDEX_SPANS_MAX)
            && self.evict_oldest()
        {}
    }

    pub(super) fn span_count(&self) -> usize {
        self.sealed_spans + self.writing.as_ref().map_or(0, |writing| writing.index.spans.len())
    }

    /// Deletes the oldest segment that is not being written, and counts what was not acknowledged.
    pub(super) fn evict_oldest(&mut self) -> bool {
        let Some(segment) = self.sealed.pop_front() else { return false };
        self.sealed_spans -= segment.index.spans.len();
        let streams = self.left_of(&segment, self.cursor.acknowledged);
        let read = self.cursor.acknowledged.max(self.reading.position);
        let unread = self.left_of(&segment, read);
        self.cursor.oldest = segment.number + 1;
        for eviction in &streams {
            self.cursor.add(eviction);
        }
        // What begins where the segment was goes on with the next.
        let start = self.start();
        if self.cursor.acknowledged < start {
            self.cursor.acknowledged = start;
        }
        if self.reading.position < start {
            self.reading.go_to(start);
        }
        // INVARIANT: the count is durable before the blocks are gone. On a full disk it cannot be,
        // and follows when the segment has made room.
        self.cursor_dirty_since.get_or_insert(self.now);
        let persisted = self.persist();
        self.remove(segment.number);
        if persisted.is_err() {
            self.try_persist();
        }
        self.push_event(JournalEvent::Evicted { segment: segment.number, streams, unread });
        true
    }

    /// Packets in blocks that are not acknowledged.
    pub fn unacknowledged_packets(&mut self) -> u64 {
        // The file holds what the index tells of.
        if let Err(error) = self.finish_segment() {
            self.trouble(&error);
        }
        let left = |segment| self.left_of(segment, self.cursor.acknowledged);
        self.sealed.iter().flat_map(left).map(|one| one.packets).sum()
    }

    /// What a segment holds from a place on, by stream.
    fn left_of(&self, segment: &Segment, from: Position) -> Vec<Eviction> {
        let mut left = &segment.index;
        let scanned;
        if from > Position::start_of(segment.number) {
            if from >= (Position { segment: segment.number, offset: segment.records_end }) {
                return Vec::new();
            }
            // If that cannot be read, what is before the place is counted as lost too.
            if let Ok(file) = self.fs.open(&self.directory.join(segment_name(segment.number)), false) {
                scanned = self.index_from(file, segment, from.offset);
                left = &scanned;
            }
        }
        let with_blocks = left.spans.iter().filter(|span| span.blocks > 0);
        with_blocks.map(Span::as_eviction).collect()
    }

    /// What a segment holds from `offset` on. Only heads of records are read.
    fn index_from(&self, file: F::File, segment: &Segment, offset: u64) -> Index {
        let mut index = Index::default();
        let mut reader = SegmentReader::new(file, segment.salt, offset, self.tuning.piece_bytes);
        loop {
            match reader.step(segment.records_end) {
                Step::End => return index,
                Step::Damage(..) => {}
                Step::Record(record) => {
                    if index.has_room_for(record.header.key) {
                        index.add(&record.header, record.copy, record.offset);
                    }
                    reader.advance(&record);
                }
            }
        }
    }

    /// Deletes the segments in which all is acknowledged.
    pub(super) fn delete_acknowledged(&mut self) {
        while let Some(first) = self.sealed.front()
            && self.cursor.acknowledged >= (Position { segment: first.number, offset: first.records_end })
        {
            let number = first.number;
            self.sealed_spans -= first.index.spans.len();
            self.sealed.pop_front();
            self.remove(number);
            let start = self.start();
            if self.cursor.acknowledged < start {
                self.cursor.acknowledged = start;
                self.cursor_dirty_since.get_or_insert(self.now);
            }
        }
    }

    fn remove(&mut self, number: u64) {
        if self.reading.open.as_ref().is_some_and(|(open, _)| *open == number) {
            self.reading.open = None;
        }
        self.doomed.push(number);
        let (fs, directory) = (&self.fs, &self.directory);
        let mut failed = None;
        self.doomed.retain(|number| match fs.remove(&directory.join(segment_name(*number))) {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => {
                failed = Some(format!("segment {number:010}: cannot be deleted: {error}"));
                true
            }
        });
        if let Some(text) = failed {
            self.trouble_text(text);
        }
    }
}
