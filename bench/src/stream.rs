//! Reads pcap or pcapng as it comes through a pipe, in large pieces and in place: the sink of every
//! chain has to be cheap. It trusts its input more than `wire::capture_file` does: what it cannot
//! read ends the measurement, with an error.

use std::io::{self, Read};

use thiserror::Error;

/// Bytes read together.
const READ_BYTES: usize = 1 << 20;
/// The first byte of a read from a pipe is mostly the first of a page, and so is where it goes. Where a copy's
/// destination is 1 to 47 bytes further into its page than the source, "rep movsb", by which the kernel copies, is slower
/// on some processors: 2 for 40 GB/s on AMD's Zen 3. Large memory of the allocator begins 16 bytes into a page.
const PAGE_BYTES: usize = 4096;
/// Most bytes of one block or record.
const BLOCK_BYTES_MAX: usize = 32 << 20;

/// Why the input cannot be read.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum StreamError {
    #[error("standard input: {0}")]
    Io(#[from] io::Error),
    #[error("neither pcap nor pcapng of this byte order: it begins with {0:08x}")]
    Format(u32),
    #[error("a block of {0} bytes")]
    Length(usize),
    #[error("a packet of interface {0}, which was not described")]
    Interface(u32),
    #[error("the input ends in the middle of a block")]
    Cut,
}

/// What the first bytes say the input is.
#[derive(Clone, Copy, Debug)]
enum Format {
    Unknown,
    /// Nanoseconds of a unit of the fraction.
    Pcap(u64),
    Pcapng,
}

/// Takes a capture apart as it comes.
#[derive(Debug)]
pub struct CaptureStream {
    format: Format,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Nanoseconds of a unit of the time stamps of each interface.
    units: Vec<u64>,
}

impl Default for CaptureStream {
    fn default() -> Self {
        let buffer = vec![0; 2 * READ_BYTES];
        Self { format: Format::Unknown, buffer, start: 0, end: 0, units: Vec::new() }
    }
}

impl CaptureStream {
    /// Reads once, and gives each whole packet (time in ns, captured bytes) to `take`; `begin` is
    /// called between the read and the first packet. `false`: the input has ended.
    pub fn read(
        &mut self,
        input: &mut impl Read,
        begin: impl FnOnce(usize),
        mut take: impl FnMut(u64, &[u8]),
    ) -> Result<bool, StreamError> {
        let left = self.end - self.start;
        if self.buffer.len() < left + PAGE_BYTES + READ_BYTES {
            self.buffer.resize(left + PAGE_BYTES + READ_BYTES, 0);
        }
        // What is left goes right before a page, where the rest of it follows.
        let page = left + self.buffer[left..].as_ptr().align_offset(PAGE_BYTES);
        self.buffer.copy_within(self.start..self.end, page - left);
        (self.start, self.end) = (page - left, page);
        let count = input.read(&mut self.buffer[page..])?;
        begin(count);
        if count == 0 {
            return if left == 0 { Ok(false) } else { Err(StreamError::Cut) };
        }
        self.end += count;
        if matches!(self.format, Format::Unknown) && !self.find_format()? {
            return Ok(true);
        }
        match self.format {
            Format::Unknown => {}
            Format::Pcap(unit) => self.records(unit, &mut take)?,
            Format::Pcapng => self.blocks(&mut take)?,
        }
        Ok(true)
    }

    fn find_format(&mut self) -> Result<bool, StreamError> {
        let input = &self.buffer[self.start..self.end];
        if input.len() < 24 {
            return Ok(false);
        }
        self.format = match word(input, 0) {
            0xa1b2_c3d4 => Format::Pcap(1000),
            0xa1b2_3c4d => Format::Pcap(1),
            0x0a0d_0d0a if word(input, 8) == 0x1a2b_3c4d => Format::Pcapng,
            other => return Err(StreamError::Format(other)),
        };
        if matches!(self.format, Format::Pcap(_)) {
            self.start += 24;
        }
        Ok(true)
    }

    fn records(&mut self, unit: u64, take: &mut impl FnMut(u64, &[u8])) -> Result<(), StreamError> {
        while self.end - self.start >= 16 {
            let record = &self.buffer[self.start..self.end];
            let length = word(record, 8) as usize;
            if length > BLOCK_BYTES_MAX {
                return Err(StreamError::Length(length));
            }
            let Some(data) = record.get(16..16 + length) else { break };
            let time_ns = u64::from(word(record, 0)) * 1_000_000_000 + u64::from(word(record, 4)) * unit;
            take(time_ns, data);
            self.start += 16 + length;
        }
        Ok(())
    }

    fn blocks(&mut self, take: &mut impl FnMut(u64, &[u8])) -> Result<(), StreamError> {
        while self.end - self.start >= 12 {
            let rest = &self.buffer[self.start..self.end];
            let (kind, length) = (word(rest, 0), word(rest, 4) as usize);
            if !(12..=BLOCK_BYTES_MAX).contains(&length) || !length.is_multiple_of(4) {
                return Err(StreamError::Length(length));
            }
            let Some(block) = rest.get(..length) else { break };
            match kind {
                6 if length >= 32 => {
                    let interface = word(block, 8);
                    let Some(unit) = self.units.get(interface as usize) else {
                        return Err(StreamError::Interface(interface));
                    };
                    let time = u64::from(word(block, 12)) << 32 | u64::from(word(block, 16));
                    let captured = word(block, 20) as usize;
                    let data = block.get(28..28 + captured).ok_or(StreamError::Length(captured))?;
                    take(time.saturating_mul(*unit), data);
                }
                1 => {
                    let unit = unit_of(&block[..length - 4]);
                    self.units.push(unit);
                }
                0x0a0d_0d0a => self.units.clear(),
                _ => {}
            }
            self.start += length;
        }
        Ok(())
    }
}

/// Nanoseconds of a unit of an interface's time stamps: option 9, a power of ten; by default µs.
fn unit_of(block: &[u8]) -> u64 {
    let mut at = 16;
    while let Some(head) = block.get(at..at + 4) {
        let (code, length) = (u16::from_le_bytes([head[0], head[1]]), u16::from_le_bytes([head[2], head[3]]));
        if code == 0 {
            break;
        }
        if let (9, Some(digits @ 0..=9)) = (code, block.get(at + 4)) {
            return 10u64.pow(9 - u32::from(*digits));
        }
        at += 4 + usize::from(length).next_multiple_of(4);
    }
    1000
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in pieces.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            assert_eq!(out.as_ptr().addr() % PAGE_BYTES, 0, "read to the begin of a page");
            let count = self.1.min(self.0.len()).min(out.len());
            out[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn packets(bytes: &[u8], piece: usize) -> Result<Vec<(u64, Vec<u8>)>, StreamError> {
        let (mut stream, mut input, mut found) = (CaptureStream::default(), Pieces(bytes, piece), Vec::new());
        while stream.read(&mut input, |_| {}, |time, data| found.push((time, data.to_vec())))? {}
        Ok(found)
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn pcapng() -> Vec<u8> {
        let mut bytes = words(&[0x0a0d_0d0a, 28, 0x1a2b_3c4d, 1, !0, !0, 28]);
        bytes.extend(words(&[1, 32, 1, 0, 1 << 16 | 9, 9, 0, 32]));
        bytes.extend(words(&[1, 20, 1, 0, 20]));
        bytes.extend(words(&[6, 40, 0, 1, 2, 5, 5, 0x0403_0201, 5, 40]));
        bytes.extend(words(&[5, 12, 12]));
        bytes.extend(words(&[6, 36, 1, 0, 7, 4, 4, 0x0403_0201, 36]));
        bytes
    }

    #[test]
    fn both_formats_come_out_whatever_the_pieces() {
        let ng = vec![((1 << 32) + 2, vec![1, 2, 3, 4, 5]), (7000, vec![1, 2, 3, 4])];
        let mut pcap = words(&[0xa1b2_c3d4, 0x0004_0002, 0, 0, 262_144, 1]);
        pcap.extend(words(&[1, 2, 4, 4, 0x0403_0201]));
        for piece in [1, 7, 64, 1 << 20] {
            assert_eq!(packets(&pcapng(), piece).expect("well formed"), ng);
            assert_eq!(packets(&pcap, piece).expect("well formed"), [(1_000_002_000, vec![1, 2, 3, 4])]);
        }
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let bytes = pcapng();
        assert!(matches!(packets(&bytes[..bytes.len() - 4], 1 << 20), Err(StreamError::Cut)));
        assert!(matches!(packets(&[0; 24], 24), Err(StreamError::Format(0))));
        let odd = [&bytes[..28], &words(&[6, 13, 0])].concat();
        assert!(matches!(packets(&odd, 100), Err(StreamError::Length(13))));
        let early = [&bytes[..28], &words(&[6, 32, 0, 0, 0, 0, 0, 32])].concat();
        assert!(matches!(packets(&early, 100), Err(StreamError::Interface(0))));
    }
}
