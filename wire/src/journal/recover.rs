//! What an earlier run left: finds the segments, cuts what a crash tore, and seals what was open.
//!
//! A segment whose seal is there is believed: its records were synced before the seal was written,
//! and each is checked when it is read. Any other is scanned, bodies too, and cut behind the last
//! record that is whole. Behind the last, not before the first bad one: pages reach the disk in any
//! order, so whole records may stand behind a hole, a bad sector in synced data must not cost all
//! that follows it, and no record can be mistaken (see [`super`]). A hole is reported when it is read.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;

use crate::block::StreamKey;

use super::cursor::Cursor;
use super::format::{
    SEGMENT_HEADER_BYTES, TRAILER_BYTES, emit_seal, parse_seal, parse_segment_header, seal_length,
    segment_name, segment_number,
};
use super::fs::{Fs, FsFile};
use super::index::{Index, Segment};
use super::reader::{PIECE_BYTES, SegmentReader, Step};
use super::{CURSOR_FILE, CURSOR_FILE_NEW, RecoveredStream};

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// The segments, the oldest first.
    pub segments: VecDeque<Segment>,
    /// The cursor; all zero if there was none.
    pub cursor: Cursor,
    /// There is a cursor file, and it is of no use.
    pub cursor_damaged: bool,
    /// A number that no segment ever had.
    pub next_number: u64,
    /// Bytes of torn records that were cut.
    pub cut_bytes: u64,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// Looks through the directory and mends it.
pub fn recover<F: Fs>(fs: &F, directory: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    let mut files = Vec::new();
    let mut has_cursor = false;
    for (name, bytes) in fs.list(directory)? {
        has_cursor |= name == CURSOR_FILE;
        if name == CURSOR_FILE_NEW {
            let _ = fs.remove(&directory.join(name));
        } else if let Some(number) = segment_number(&name) {
            files.push((number, bytes));
        }
    }
    files.sort_unstable();
    if has_cursor {
        let why = match read_cursor(fs, directory) {
            Ok(Some(cursor)) => {
                found.cursor = cursor;
                None
            }
            Ok(None) => Some("damaged".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        found.cursor_damaged = why.is_some();
        found.warnings.extend(why.map(|why| format!("{CURSOR_FILE}: {why}, {CURSOR_LOST}")));
    }
    let last = files.last().map_or(0, |(number, _)| *number);
    let Cursor { acknowledged, oldest, .. } = found.cursor;
    found.next_number = last.max(acknowledged.segment).max(oldest.saturating_sub(1)).saturating_add(1);
    for (number, file_bytes) in files {
        // Counted as evicted, or acknowledged, before the crash that kept the name.
        if number < oldest || number < acknowledged.segment {
            if let Err(error) = fs.remove(&directory.join(segment_name(number))) {
                found.warnings.push(format!("segment {number:010}: cannot be deleted: {error}"));
            }
            continue;
        }
        recover_segment(fs, directory, number, file_bytes, &mut found);
    }
    // A process that was killed may have left a name that is not durable yet.
    if let Err(error) = fs.sync_directory(directory) {
        found.warnings.push(format!("directory cannot be synced: {error}"));
    }
    Ok(found)
}

const CURSOR_LOST: &str =
    "reading begins at the oldest segment, and what was evicted before and not told stays unknown";

/// The cursor file of a directory; `None` if it is damaged.
pub fn read_cursor<F: Fs>(fs: &F, directory: &Path) -> io::Result<Option<Cursor>> {
    let file = fs.open(&directory.join(CURSOR_FILE), false)?;
    let bytes = file.bytes()?.min(Cursor::BYTES_MAX);
    let mut content = vec![0; bytes as usize];
    let read = file.read_at(0, &mut content)?;
    Ok(Cursor::parse(&content[..read]))
}

/// How a segment's ends tell what it is.
pub enum Kind {
    /// Sealed: all is known.
    Sealed(Segment),
    /// Only its header is there: the records have to be looked for.
    Open {
        /// From the header.
        salt: u64,
    },
    /// Its header was never written.
    Blank,
    /// Its header is damaged, and there is no seal to replace it.
    Headless,
}

/// Reads header and seal of a segment.
pub fn read_ends<File: FsFile>(file: &File, number: u64, file_bytes: u64) -> io::Result<Kind> {
    let mut header = [0; SEGMENT_HEADER_BYTES];
    let read = file.read_at(0, &mut header)?;
    let salt = parse_segment_header(&header[..read], number);
    // A seal that cannot be read leaves the records to be looked for, if the header tells how. If it
    // does not, nothing is known, and the segment must not pass for one that was never written.
    let seal = match read_seal(file, number, file_bytes) {
        Err(error) if salt.is_none() => return Err(error),
        seal => seal.unwrap_or_default(),
    };
    if let Some(seal) = seal
        && salt.is_none_or(|salt| salt == seal.salt)
    {
        let (salt, records_end, index) = (seal.salt, seal.records_end, seal.index);
        return Ok(Kind::Sealed(Segment { number, salt, records_end, file_bytes, index }));
    }
    Ok(match salt {
        Some(salt) => Kind::Open { salt },
        None if header.iter().all(|byte| *byte == 0) => Kind::Blank,
        None => Kind::Headless,
    })
}

fn read_seal<File: FsFile>(
    file: &File,
    number: u64,
    file_bytes: u64,
) -> io::Result<Option<super::format::Seal>> {
    let mut trailer = [0; TRAILER_BYTES];
    let Some(at) = file_bytes.checked_sub(TRAILER_BYTES as u64) else { return Ok(None) };
    if file.read_at(at, &mut trailer)? < TRAILER_BYTES {
        return Ok(None);
    }
    let Some(bytes) = seal_length(&trailer, number, file_bytes) else { return Ok(None) };
    let mut seal = vec![0; bytes as usize];
    let read = file.read_at(file_bytes - bytes, &mut seal)?;
    Ok(parse_seal(&seal[..read]))
}

/// What the records of a segment without a seal are.
#[derive(Debug, Default)]
pub struct Scan {
    /// By stream.
    pub index: Index,
    /// First byte behind the last record that is whole.
    pub records_end: u64,
    /// Damage before that.
    pub holes: Vec<String>,
    /// Bytes behind it up to the last that is not zero.
    pub torn_bytes: u64,
    /// The disk failed to give some bytes: what they are is not known.
    pub failed: bool,
}

/// Looks through all records of a segment; with their bodies if `bodies`.
pub fn scan<File: FsFile>(file: File, salt: u64, file_bytes: u64, bodies: bool) -> Scan {
    let header = SEGMENT_HEADER_BYTES as u64;
    let mut found = Scan { records_end: header, ..Scan::default() };
    let mut reader = SegmentReader::new(file, salt, header, PIECE_BYTES);
    let mut damage = None;
    loop {
        match reader.step(file_bytes) {
            Step::End => break,
            Step::Damage(range, reason) => {
                damage.get_or_insert_with(|| format!("bytes {}..{}: {reason}", range.start, range.end));
            }
            Step::Record(record) => {
                let verified = if !found.index.has_room_for(record.header.key) {
                    Err("more streams than a segment has".to_owned())
                } else if bodies {
                    reader.verify(&record)
                } else {
                    Ok(())
                };
                reader.advance(&record);
                match verified {
                    Ok(()) => {
                        found.holes.extend(damage.take());
                        found.index.add(&record.header, record.copy, record.offset);
                        found.records_end = record.next().min(file_bytes);
                    }
                    Err(reason) => {
                        damage.get_or_insert_with(|| format!("byte {}: {reason}", record.offset));
                    }
                }
            }
        }
    }
    if damage.is_some() {
        found.torn_bytes = reader.torn_bytes(found.records_end, file_bytes);
    }
    found.failed = reader.failed();
    found
}

fn recover_segment<F: Fs>(fs: &F, directory: &Path, number: u64, file_bytes: u64, found: &mut Found) {
    let path = directory.join(segment_name(number));
    let unreadable = |found: &mut Found, reason: String| {
        // It stays until it is read, reported, acknowledged or evicted. Nothing can pass for a
        // record of it, with a salt that nobody knows.
        found.warnings.push(format!("segment {number:010}: {reason}"));
        let index = Index::default();
        let records_end = file_bytes;
        found.segments.push_back(Segment {
            number,
            salt: super::fresh_salt(),
            records_end,
            file_bytes,
            index,
        });
    };
    let file = match fs.open(&path, true) {
        Ok(file) => file,
        Err(error) => return unreadable(found, format!("cannot be opened: {error}")),
    };
    let salt = match read_ends(&file, number, file_bytes) {
        Ok(Kind::Sealed(segment)) => return found.segments.push_back(segment),
        Ok(Kind::Open { salt }) => salt,
        Ok(Kind::Headless) => return unreadable(found, "its header is damaged".to_owned()),
        Err(error) => return unreadable(found, format!("cannot be read: {error}")),
        // The header is synced with the first records: nothing here ever was.
        Ok(Kind::Blank) => {
            found.cut_bytes += SegmentReader::new(file, 0, 0, PIECE_BYTES).torn_bytes(0, file_bytes);
            let _ = fs.remove(&path);
            return;
        }
    };
    let reading = match fs.open(&path, false) {
        Ok(reading) => reading,
        Err(error) => return unreadable(found, format!("cannot be opened: {error}")),
    };
    let Scan { index, records_end, holes, torn_bytes, failed } = scan(reading, salt, file_bytes, true);
    if failed {
        // Nothing is cut that may be whole: reading steps over what cannot be read then.
        found.warnings.push(format!("segment {number:010}: some of it cannot be read"));
        let records_end = file_bytes;
        return found.segments.push_back(Segment { number, salt, records_end, file_bytes, index });
    }
    found.cut_bytes += torn_bytes;
    if torn_bytes > 0 {
        found
            .warnings
            .push(format!("segment {number:010}: {torn_bytes} torn bytes cut at byte {records_end}"));
    }
    found.warnings.extend(holes.iter().map(|hole| format!("segment {number:010}: {hole}")));
    if index.spans.is_empty() {
        let _ = fs.remove(&path);
        return;
    }
    let mut segment = Segment { number, salt, records_end, file_bytes, index };
    match reseal(&file, &segment) {
        Ok(bytes) => segment.file_bytes = bytes,
        // It is scanned again next time.
        Err(error) => found.warnings.push(format!("segment {number:010}: cannot be sealed: {error}")),
    }
    found.segments.push_back(segment);
}

/// Cuts a segment behind its records and seals it; returns the length of the file.
fn reseal<File: FsFile>(file: &File, segment: &Segment) -> io::Result<u64> {
    // The records first, so that no seal is durable before what it speaks of.
    file.truncate(segment.records_end)?;
    file.sync()?;
    let mut seal = Vec::new();
    emit_seal(&mut seal, segment.number, segment.salt, segment.records_end, &segment.index);
    if let Err(error) = file.write_at(segment.records_end, &seal) {
        file.truncate(segment.records_end)?;
        return Err(error);
    }
    file.sync()?;
    Ok(segment.records_end + seal.len() as u64)
}

/// How far each stream goes in these segments.
pub fn streams(segments: &VecDeque<Segment>) -> Vec<RecoveredStream> {
    let mut streams: BTreeMap<StreamKey, RecoveredStream> = BTreeMap::new();
    for span in segments.iter().flat_map(|segment| &segment.index.spans).filter(|span| span.blocks > 0) {
        let first_sequence = span.first_sequence;
        let fresh = RecoveredStream { key: span.key, first_sequence, ..RecoveredStream::default() };
        let stream = streams.entry(span.key).or_insert(fresh);
        stream.first_sequence = stream.first_sequence.min(first_sequence);
        stream.ended |= span.has_end;
        if span.next_sequence >= stream.next_sequence {
            stream.next_sequence = span.next_sequence;
            stream.packets = span.packets_through;
            stream.bytes = span.bytes_through;
        }
    }
    streams.into_values().collect()
}
