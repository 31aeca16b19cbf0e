//! Reading by time.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;

use crate::block::Kind;
use crate::pool::Pool;

use super::format::segment_name;
use super::fs::Fs;
use super::reader::{Body, PIECE_BYTES, SegmentReader, Step};
use super::{Entry, Journal, JournalError, JournalEvent, Position};

/// Reads the blocks of a stretch of time in the order they were appended. Made by
/// [`Journal::range`](super::Journal::range), and independent of it.
#[derive(Debug)]
pub struct TimeRange<F: Fs> {
    fs: F,
    directory: PathBuf,
    /// Number, salt and end of the records of each segment that is still to be read.
    segments: VecDeque<(u64, u64, u64)>,
    open: Option<SegmentReader<F::File>>,
    time_ns: Range<u64>,
    damaged: VecDeque<JournalEvent>,
}

impl<F: Fs> Journal<F> {
    /// Reads the blocks with packets, or of other kinds, of the time `from_ns..until_ns` (ns since
    /// 1970), whatever is acknowledged; with them the descriptions that they need. What is appended
    /// later is not in it, what is evicted meanwhile is left out.
    pub fn range(&mut self, from_ns: u64, until_ns: u64) -> Result<TimeRange<F>, JournalError> {
        self.flush()?;
        let mut segments = VecDeque::new();
        for one in &self.sealed {
            if one.index.touches(from_ns, until_ns) {
                segments.push_back((one.number, one.salt, one.records_end));
            }
        }
        if let Some(one) = &self.writing
            && one.index.touches(from_ns, until_ns)
        {
            segments.push_back((one.number, one.salt, one.flushed));
        }
        Ok(TimeRange::new(self.fs.clone(), self.directory.clone(), segments, from_ns..until_ns))
    }
}

impl<F: Fs> TimeRange<F> {
    pub(super) fn new(
        fs: F,
        directory: PathBuf,
        segments: VecDeque<(u64, u64, u64)>,
        time_ns: Range<u64>,
    ) -> Self {
        Self { fs, directory, segments, open: None, time_ns, damaged: VecDeque::new() }
    }

    /// The next block, in a buffer of `pool`; `None` at the end. [`JournalError::NoBuffer`] changes
    /// nothing: try again later.
    pub fn read_next(&mut self, pool: &Pool) -> Result<Option<Entry>, JournalError> {
        while let Some((segment, salt, limit)) = self.segments.front().copied() {
            let reader = match &mut self.open {
                Some(reader) => reader,
                // One that is gone was evicted, which the journal's owner hears of.
                None => match self.fs.open(&self.directory.join(segment_name(segment)), false) {
                    Ok(file) => self.open.insert(SegmentReader::new(file, salt, 0, PIECE_BYTES)),
                    Err(_) => {
                        self.segments.pop_front();
                        continue;
                    }
                },
            };
            match reader.step(limit) {
                Step::End => {
                    reader.forget();
                    self.segments.pop_front();
                    self.open = None;
                }
                Step::Damage(range, reason) => {
                    let (from, to) = (range.start, range.end);
                    self.damaged.push_back(JournalEvent::Damaged { segment, from, to, reason, header: None });
                }
                Step::Record(record) => {
                    let header = &record.header;
                    let outside =
                        header.time_max_ns < self.time_ns.start || header.time_min_ns >= self.time_ns.end;
                    if outside && header.kind != Kind::Description {
                        reader.advance(&record);
                        continue;
                    }
                    let body = reader.body(&record, pool);
                    if matches!(body, Body::NoBuffer) {
                        return Err(JournalError::NoBuffer { block_bytes: record.block_bytes });
                    }
                    reader.advance(&record);
                    let (from, to) = (record.offset, record.next());
                    match body {
                        Body::Whole(block) => {
                            let position = Position { segment, offset: from };
                            let next = Position { segment, offset: to };
                            return Ok(Some(Entry { block, position, next, is_copy: record.copy }));
                        }
                        Body::Damaged(reason) => {
                            let header = Some(Box::new(record.header));
                            self.damaged.push_back(JournalEvent::Damaged {
                                segment,
                                from,
                                to,
                                reason,
                                header,
                            });
                        }
                        Body::NoBuffer => {}
                    }
                }
            }
        }
        Ok(None)
    }

    /// Damage that was met: [`JournalEvent::Damaged`].
    pub fn poll_event(&mut self) -> Option<JournalEvent> {
        self.damaged.pop_front()
    }
}
