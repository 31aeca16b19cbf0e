//! What a journal tells its owner: errors, events, what it found, what it read.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::block::{Header, PackedBlock, StreamKey};

use super::{Position, SEGMENT_BYTES_MAX};

/// Why a call failed. What the journal holds is as it was before.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum JournalError {
    #[error(
        "journal {}: {} writes to it: stop that one, or choose another directory", directory.display(),
        match holder { Some(id) => format!("process {id}"), None => "another process".to_owned() }
    )]
    InUse { directory: PathBuf, holder: Option<u32> },
    #[error("journal {}: {what}", directory.display())]
    Directory { directory: PathBuf, what: &'static str, source: io::Error },
    #[error("journal size {cap_bytes} bytes: at least two segments of {segment_bytes} bytes are needed")]
    Cap { cap_bytes: u64, segment_bytes: u64 },
    #[error("journal segment size {segment_bytes} bytes: out of range, 4096 to {SEGMENT_BYTES_MAX}")]
    SegmentBytes { segment_bytes: u64 },
    #[error("block of {block_bytes} bytes: the journal may have {cap_bytes} bytes in all")]
    BlockTooLong { block_bytes: usize, cap_bytes: u64 },
    #[error("journal {}: disk is full, and there is no older segment to evict", directory.display())]
    Full { directory: PathBuf, source: io::Error },
    #[error("segment {segment:010}: cannot be created")]
    Create { segment: u64, source: io::Error },
    #[error("segment {segment:010}: write failed at byte {offset}")]
    Write { segment: u64, offset: u64, source: io::Error },
    #[error("segment {segment:010}: sync failed, bytes {from}..{to} are in doubt")]
    Sync { segment: u64, from: u64, to: u64, source: io::Error },
    #[error("journal cursor: cannot be written")]
    Cursor { source: io::Error },
    #[error("journal: no buffer for a block of {block_bytes} bytes")]
    NoBuffer { block_bytes: usize },
}

/// What the owner must hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JournalEvent {
    /// A segment was deleted before all in it was acknowledged.
    Evicted {
        /// Its number.
        segment: u64,
        /// What of it was not acknowledged, by stream. Copies are not counted.
        streams: Vec<Eviction>,
        /// What of that nobody has read either: the rest may still be in its reader's memory.
        unread: Vec<Eviction>,
    },
    /// Part of a segment cannot be read; what follows is read on. Of what was lost the next block of
    /// each stream tells.
    Damaged {
        /// Number of the segment.
        segment: u64,
        /// First byte.
        from: u64,
        /// First byte behind it.
        to: u64,
        /// Why.
        reason: String,
        /// The block's header, when only its body is damaged.
        header: Option<Box<Header>>,
    },
    /// A sync failed: a crash of the host may lose what stands between, though not all of it must
    /// be lost then.
    SyncFailed {
        /// First block in doubt.
        from: Position,
        /// Behind the last.
        to: Position,
        /// Why.
        reason: String,
    },
    /// Something else failed that is tried again or done without.
    Trouble {
        /// What.
        text: String,
    },
}

/// What was evicted of one stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Eviction {
    /// The stream.
    pub key: StreamKey,
    /// Sequence of the first block.
    pub first_sequence: u64,
    /// Sequence after the last.
    pub next_sequence: u64,
    /// Packets.
    pub packets: u64,
    /// Captured bytes of these packets.
    pub bytes: u64,
    /// Packets of the stream up to the end of the last block.
    pub packets_through: u64,
    /// Captured bytes of the stream up to the end of the last block.
    pub bytes_through: u64,
    /// The stream's end was among it.
    pub has_end: bool,
}

/// What [`Journal::open`](super::Journal::open) found of earlier runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Segments.
    pub segments: u64,
    /// Bytes of their files.
    pub bytes: u64,
    /// Blocks in them, copies not counted.
    pub blocks: u64,
    /// Packets in these blocks.
    pub packets: u64,
    /// Bytes of records that a crash tore, and that were cut.
    pub cut_bytes: u64,
    /// Where reading begins.
    pub acknowledged: Position,
    /// The streams of which there are blocks, acknowledged or not.
    pub streams: Vec<RecoveredStream>,
    /// Evicted and not told yet: see [`Journal::evictions_told`](super::Journal::evictions_told).
    pub evictions: Vec<Eviction>,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// How far a stream goes in a journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveredStream {
    /// The stream.
    pub key: StreamKey,
    /// Sequence of its first block.
    pub first_sequence: u64,
    /// Sequence after its last block.
    pub next_sequence: u64,
    /// Packets of the stream before that.
    pub packets: u64,
    /// Captured bytes of the stream before that.
    pub bytes: u64,
    /// Its last block ends it.
    pub ended: bool,
}

/// A block that was read, header and body checked.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The block.
    pub block: PackedBlock,
    /// Where it stands.
    pub position: Position,
    /// Where reading goes on: what to acknowledge when this one is done.
    pub next: Position,
    /// A description that stands elsewhere too, given again so that what follows can be read. Its
    /// sequence is the original's.
    pub is_copy: bool,
}
