//! Looking at a journal without its lock and without writing to it, also while it is written.
//!
//! What the writer has not finished is no damage: the end of the last segment, if that has no seal,
//! and segments that are deleted meanwhile.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};

use crate::pool::Pool;

use super::cursor::Cursor;
use super::format::{SEGMENT_HEADER_BYTES, segment_name, segment_number};
use super::fs::{Fs, FsFile, RealFs};
use super::index::Index;
use super::reader::{Body, PIECE_BYTES, SegmentReader, Step};
use super::recover::{Kind, read_cursor, read_ends, scan};
use super::{CURSOR_FILE, Entry, Eviction, Position};

/// What a directory holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Its segments, the oldest first.
    pub segments: Vec<SegmentInfo>,
    /// All before it is acknowledged, as far as the cursor file tells.
    pub acknowledged: Position,
    /// Bytes of records behind that.
    pub unacknowledged_bytes: u64,
    /// Evicted and not told yet.
    pub evictions: Vec<Eviction>,
    /// Why the cursor file is of no use, if it is not.
    pub cursor_error: Option<String>,
}

/// One segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its number.
    pub number: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// It has a seal: nothing more is written to it.
    pub sealed: bool,
    /// Blocks, copies not counted.
    pub blocks: u64,
    /// Packets.
    pub packets: u64,
    /// Least and greatest time stamp of a packet, ns since 1970.
    pub time_ns: Option<(u64, u64)>,
    /// Streams of which there are blocks.
    pub streams: usize,
    /// Why it cannot be read, if so.
    pub error: Option<String>,
}

/// A part of a segment that is no record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Number of the segment.
    pub segment: u64,
    /// First byte.
    pub from: u64,
    /// First byte behind it.
    pub to: u64,
    /// Why.
    pub reason: String,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { segment, from, to, reason } = self;
        write!(formatter, "segment {segment:010}: {reason} at byte {from}, whole again at byte {to}")
    }
}

/// What was verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Segments read.
    pub segments: u64,
    /// Blocks whose checksums are right, copies not counted.
    pub blocks: u64,
    /// Packets in them.
    pub packets: u64,
    /// Bytes of all blocks read.
    pub bytes: u64,
    /// Parts that are damaged.
    pub damaged: u64,
}

/// Lists the segments. Those without a seal are looked through, without the bodies of blocks.
pub fn list(directory: &Path) -> io::Result<Listing> {
    list_on(&RealFs, directory)
}

fn list_on<F: Fs>(fs: &F, directory: &Path) -> io::Result<Listing> {
    let mut listing = Listing::default();
    match read_cursor(fs, directory) {
        Ok(Some(Cursor { acknowledged, evictions, .. })) => {
            (listing.acknowledged, listing.evictions) = (acknowledged, evictions);
        }
        Ok(None) => listing.cursor_error = Some(format!("{CURSOR_FILE}: damaged")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => listing.cursor_error = Some(format!("{CURSOR_FILE}: {error}")),
    }
    for number in numbers(fs, directory)? {
        let mut info = SegmentInfo { number, ..SegmentInfo::default() };
        match look(fs, directory, &mut info) {
            Ok((index, records_end)) => {
                info.blocks = index.blocks();
                info.packets = index.packets();
                info.streams = index.spans.iter().filter(|span| span.blocks > 0).count();
                let (min, max) = (index.time_min_ns, index.time_max_ns);
                info.time_ns = (min <= max).then_some((min, max));
                let start = match number.cmp(&listing.acknowledged.segment) {
                    std::cmp::Ordering::Less => records_end,
                    std::cmp::Ordering::Equal => listing.acknowledged.offset,
                    std::cmp::Ordering::Greater => 0,
                };
                let start = start.max(SEGMENT_HEADER_BYTES as u64);
                listing.unacknowledged_bytes += records_end.saturating_sub(start);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => info.error = Some(error.to_string()),
        }
        listing.segments.push(info);
    }
    Ok(listing)
}

/// What a segment holds, and where its records end.
fn look<F: Fs>(fs: &F, directory: &Path, info: &mut SegmentInfo) -> io::Result<(Index, u64)> {
    let file = fs.open(&directory.join(segment_name(info.number)), false)?;
    info.file_bytes = file.bytes()?;
    match read_ends(&file, info.number, info.file_bytes)? {
        Kind::Sealed(segment) => {
            info.sealed = true;
            Ok((segment.index, segment.records_end))
        }
        Kind::Open { salt } => {
            let found = scan(file, salt, info.file_bytes, false);
            Ok((found.index, found.records_end))
        }
        Kind::Blank => Ok((Index::default(), 0)),
        Kind::Headless => Err(io::Error::other("its header is damaged")),
    }
}

/// Reads everything and checks every checksum; `report` hears of each damaged part.
pub fn verify(directory: &Path, mut report: impl FnMut(&Damage)) -> io::Result<Verified> {
    let mut verified = Verified::default();
    let mut walk = Walk::new(RealFs, directory)?;
    while let Some(found) = walk.next(|reader, record| match reader.verify(&record) {
        Ok(()) => Read::Is(record),
        Err(reason) => Read::Damaged(reason),
    }) {
        match found {
            Found::Item(_, record) => {
                verified.bytes += record.block_bytes as u64;
                if !record.copy {
                    verified.blocks += 1;
                    verified.packets += u64::from(record.header.packet_count);
                }
            }
            Found::Damage(damage) => {
                verified.damaged += 1;
                report(&damage);
            }
            Found::NoBuffer(_) => break,
        }
    }
    verified.segments = walk.segments_read;
    Ok(verified)
}

/// What [`Blocks::read_next`] found.
#[derive(Debug)]
pub enum Item {
    /// A block, checked.
    Entry(Entry),
    /// A part that is damaged.
    Damage(Damage),
}

/// Reads the blocks of a directory, the oldest first, acknowledged or not.
#[derive(Debug)]
pub struct Blocks {
    walk: Walk<RealFs>,
}

impl Blocks {
    /// Begins at the oldest block of `directory`.
    pub fn open(directory: &Path) -> io::Result<Self> {
        Ok(Self { walk: Walk::new(RealFs, directory)? })
    }

    /// The next block, in a buffer of `pool`; `None` at the end. Fails when the pool has no room.
    pub fn read_next(&mut self, pool: &Pool) -> io::Result<Option<Item>> {
        let found = self.walk.next(|reader, record| match reader.body(&record, pool) {
            Body::Whole(block) => Read::Is((block, record)),
            Body::Damaged(reason) => Read::Damaged(reason),
            Body::NoBuffer => Read::NoBuffer(record.block_bytes),
        });
        match found {
            None => Ok(None),
            Some(Found::Damage(damage)) => Ok(Some(Item::Damage(damage))),
            Some(Found::NoBuffer(bytes)) => {
                Err(io::Error::other(format!("no buffer for a block of {bytes} bytes")))
            }
            Some(Found::Item(segment, (block, record))) => {
                let position = Position { segment, offset: record.offset };
                let next = Position { segment, offset: record.next() };
                Ok(Some(Item::Entry(Entry { block, position, next, is_copy: record.copy })))
            }
        }
    }
}

/// What came of a record's body.
enum Read<T> {
    Is(T),
    Damaged(String),
    NoBuffer(usize),
}

/// What comes next in a directory.
enum Found<T> {
    Item(u64, T),
    Damage(Damage),
    NoBuffer(usize),
}

/// Goes through all segments.
#[derive(Debug)]
struct Walk<F: Fs> {
    fs: F,
    directory: PathBuf,
    numbers: VecDeque<u64>,
    open: Option<Open<F::File>>,
    segments_read: u64,
}

#[derive(Debug)]
struct Open<File> {
    number: u64,
    reader: SegmentReader<File>,
    limit: u64,
    /// It is the last and has no seal: what is damaged at its end may be half written.
    growing: bool,
    /// Damage of such a segment, until something whole follows.
    held: VecDeque<Damage>,
}

impl<F: Fs> Walk<F> {
    fn new(fs: F, directory: &Path) -> io::Result<Self> {
        let numbers = numbers(&fs, directory)?.into();
        Ok(Self { fs, directory: directory.to_owned(), numbers, open: None, segments_read: 0 })
    }

    fn next<T>(
        &mut self,
        mut read: impl FnMut(&mut SegmentReader<F::File>, super::format::Record) -> Read<T>,
    ) -> Option<Found<T>> {
        loop {
            let Some(open) = &mut self.open else {
                match self.open_next()? {
                    Ok(open) => self.open = Some(open),
                    Err(damage) => return Some(Found::Damage(damage)),
                }
                continue;
            };
            let segment = open.number;
            let damage = match open.reader.step(open.limit) {
                Step::End => {
                    self.open = None;
                    continue;
                }
                Step::Damage(range, reason) => Damage { segment, from: range.start, to: range.end, reason },
                Step::Record(record) => {
                    if let Some(damage) = open.held.pop_front() {
                        return Some(Found::Damage(damage));
                    }
                    let body = read(&mut open.reader, record);
                    if let Read::NoBuffer(bytes) = body {
                        return Some(Found::NoBuffer(bytes));
                    }
                    open.reader.advance(&record);
                    match body {
                        Read::Is(item) => return Some(Found::Item(segment, item)),
                        Read::Damaged(reason) => {
                            Damage { segment, from: record.offset, to: record.next(), reason }
                        }
                        Read::NoBuffer(_) => continue,
                    }
                }
            };
            if !open.growing {
                return Some(Found::Damage(damage));
            }
            open.held.push_back(damage);
        }
    }

    /// Opens the next segment that is still there.
    fn open_next(&mut self) -> Option<Result<Open<F::File>, Damage>> {
        while let Some(number) = self.numbers.pop_front() {
            let opened = self.fs.open(&self.directory.join(segment_name(number)), false).and_then(|file| {
                let limit = file.bytes()?;
                Ok((read_ends(&file, number, limit)?, file, limit))
            });
            let failed = |reason: String| Some(Err(Damage { segment: number, from: 0, to: 0, reason }));
            let (salt, limit, growing, file) = match opened {
                Ok((Kind::Sealed(segment), file, _)) => (segment.salt, segment.records_end, false, file),
                Ok((Kind::Open { salt }, file, limit)) => (salt, limit, self.numbers.is_empty(), file),
                Ok((Kind::Blank, ..)) => continue,
                Ok((Kind::Headless, _, limit)) => {
                    let reason = "header is damaged".to_owned();
                    return Some(Err(Damage { segment: number, from: 0, to: limit, reason }));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return failed(error.to_string()),
            };
            self.segments_read += 1;
            let reader = SegmentReader::new(file, salt, 0, PIECE_BYTES);
            return Some(Ok(Open { number, reader, limit, growing, held: VecDeque::new() }));
        }
        None
    }
}

fn numbers<F: Fs>(fs: &F, directory: &Path) -> io::Result<Vec<u64>> {
    let files = fs.list(directory)?;
    let mut numbers: Vec<u64> = files.iter().filter_map(|(name, _)| segment_number(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}
