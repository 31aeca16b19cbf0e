//! The segment that is being written.
//!
//! ```text
//!   0        synced            flushed             end            limit
//!   | header | durable records | in the file       | in `pending` | zeros, allocated |
//! ```
//!
//! INVARIANT: `flushed + pending.len() == end`, and a failed write changes neither: what follows is
//! written over what the failure left.

use std::io;
use std::time::Instant;

use crate::block::{HEADER_BYTES, PackedBlock};

use super::format::{ALIGNMENT, emit_frame, emit_seal, emit_segment_header, record_bytes};
use super::fs::FsFile;
use super::index::{Index, Segment};

/// The segment that is being written. See the module's head.
#[derive(Debug)]
pub struct Writing<File> {
    pub number: u64,
    pub salt: u64,
    pub index: Index,
    /// Bytes it may have, seal included.
    pub limit: u64,
    /// First byte that is not in the file yet.
    pub flushed: u64,
    /// First byte that the disk was not told to begin with; `synced` where that is further on.
    begun: u64,
    /// First byte that is not known to be durable.
    pub synced: u64,
    /// Since when something waits in `pending`.
    pub pending_since: Option<Instant>,
    /// Since when something is not durable.
    pub unsynced_since: Option<Instant>,
    /// Its name is durable.
    pub named: bool,
    /// A sync failed: nothing more is written here, and no sync of it is believed.
    pub doubtful: bool,
    file: File,
    pending: Vec<u8>,
}

impl<File: FsFile> Writing<File> {
    /// Begins the segment `number` in an empty `file`. `pending` lends its memory.
    pub fn new(file: File, number: u64, salt: u64, limit: u64, mut pending: Vec<u8>) -> Self {
        pending.clear();
        pending.extend_from_slice(&emit_segment_header(number, salt));
        Self {
            number,
            salt,
            index: Index::default(),
            limit,
            flushed: 0,
            begun: 0,
            synced: 0,
            pending_since: None,
            unsynced_since: None,
            named: false,
            doubtful: false,
            file,
            pending,
        }
    }

    /// First byte behind the last record.
    pub fn end(&self) -> u64 {
        self.flushed + self.pending.len() as u64
    }

    /// Bytes that wait to be written.
    pub fn pending_bytes(&self) -> usize {
        self.pending.len()
    }

    /// Takes a block; it is written later, with others.
    pub fn push(&mut self, block: &PackedBlock, copy: bool, now: Instant) {
        let offset = self.end();
        self.push_frame(block, copy);
        self.pending.extend_from_slice(block.bytes());
        self.pad();
        self.taken(block, copy, offset, now);
    }

    /// Writes what waits, and `block`, from where it lies.
    pub fn write(&mut self, block: &PackedBlock, copy: bool, now: Instant) -> io::Result<()> {
        let offset = self.end();
        self.push_frame(block, copy);
        let written = self.flush().and_then(|()| self.file.write_at(self.flushed, block.bytes()));
        if let Err(error) = written {
            if self.pending.is_empty() {
                self.flushed = offset;
            } else {
                self.pending.truncate((offset - self.flushed) as usize);
            }
            return Err(error);
        }
        // The padding need not be written: nobody reads it.
        self.flushed = offset + record_bytes(block.bytes().len());
        self.taken(block, copy, offset, now);
        self.pending_since = None;
        Ok(())
    }

    fn push_frame(&mut self, block: &PackedBlock, copy: bool) {
        // The header was checked when the block was made, so it is there.
        let fixed: &[u8; HEADER_BYTES] = block.bytes().first_chunk().expect("a block has a header");
        let frame = emit_frame(self.salt, self.end(), block.bytes().len(), copy, fixed);
        self.pending.extend_from_slice(&frame);
    }

    fn pad(&mut self) {
        let padding = self.end().next_multiple_of(ALIGNMENT) - self.end();
        self.pending.extend_from_slice(&[0; ALIGNMENT as usize][..padding as usize]);
    }

    fn taken(&mut self, block: &PackedBlock, copy: bool, offset: u64, now: Instant) {
        self.index.add(block.header(), copy, offset);
        self.pending_since.get_or_insert(now);
        self.unsynced_since.get_or_insert(now);
    }

    /// Writes what waits.
    pub fn flush(&mut self) -> io::Result<()> {
        if !self.pending.is_empty() {
            self.file.write_at(self.flushed, &self.pending)?;
            self.flushed += self.pending.len() as u64;
            self.pending.clear();
        }
        self.pending_since = None;
        Ok(())
    }

    /// Lets the disk begin with what was flushed, once that is `bytes` or more: it works while the next blocks
    /// are copied, and the sync that follows finds little left to wait for.
    pub fn begin_sync(&mut self, bytes: u64) {
        let from = self.begun.max(self.synced);
        if self.flushed - from >= bytes {
            self.file.begin_sync(from, self.flushed - from);
            self.begun = self.flushed;
        }
    }

    /// Makes durable what was flushed, and says which bytes these are.
    ///
    /// On error the segment is `doubtful`: Linux has marked the pages clean that it could not
    /// write, so a second sync would succeed and mean nothing.
    pub fn sync(&mut self) -> io::Result<std::ops::Range<u64>> {
        let synced = self.synced..self.flushed;
        if let Err(error) = self.file.sync() {
            self.doubtful = true;
            self.unsynced_since = None;
            return Err(error);
        }
        self.synced = self.flushed;
        self.unsynced_since = None;
        Ok(synced)
    }

    /// The kernel need not keep these bytes.
    pub fn forget(&self, range: std::ops::Range<u64>) {
        self.file.forget(range.start, range.end - range.start);
    }

    /// Ends the segment, all of which was flushed: cuts it to its length and, unless it is
    /// doubtful, seals it. The seal is an index and a help, so failures only leave it out.
    pub fn finish(mut self) -> (Segment, Vec<u8>, io::Result<()>) {
        let records_end = self.flushed;
        let mut file_bytes = records_end;
        let mut result = Ok(());
        if !self.doubtful {
            self.pending.clear();
            emit_seal(&mut self.pending, self.number, self.salt, records_end, &self.index);
            if self.file.write_at(records_end, &self.pending).is_ok() {
                file_bytes += self.pending.len() as u64;
            }
        }
        if let Err(error) = self.file.truncate(file_bytes) {
            file_bytes = self.limit.max(file_bytes);
            result = Err(error);
        }
        if !self.doubtful
            && let Err(error) = self.file.sync()
        {
            result = Err(error);
        }
        let Self { number, salt, index, pending, .. } = self;
        (Segment { number, salt, records_end, file_bytes, index }, pending, result)
    }
}
