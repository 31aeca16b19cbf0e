//! The frames that are played, in memory: made here, or read from a capture file.
//!
//! The last eight bytes of each frame are its number: two bytes of magic, then 48 bits, most
//! significant first. Checksums are of no interest: nobody on the way looks at them.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use wire::capture_file::{CaptureFileError, CaptureReader, Item};

/// What a numbered frame's last eight bytes begin with.
pub const NUMBER_MAGIC: [u8; 2] = [0xb5, 0xc4];
/// Bytes of a frame's number, its magic included.
pub const NUMBER_BYTES: usize = 8;
/// Shortest frame that can be numbered: an Ethernet header and a number.
pub const FRAME_BYTES_MIN: usize = 14 + NUMBER_BYTES;
/// Longest frame that can be played: what a veth takes.
pub const FRAME_BYTES_MAX: usize = 65_535;
/// Frames made here take this much memory: several times LZ4's window of 64 KiB, so that no frame
/// finds its own copy there, and little enough for a second-level cache.
const MEMORY_BYTES: usize = 384 << 10;
/// The usual mix, in bytes without the frame check sequence: 7 to 4 to 1.
const MIX: [usize; 12] = [64, 594, 64, 594, 64, 64, 594, 64, 1514, 64, 594, 64];
/// Headers of Ethernet, IPv4 and UDP.
const HEADER_BYTES: usize = 42;

/// How long the frames are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Size {
    /// 64, 594 and 1514 bytes, 7 to 4 to 1; 359 on average.
    Mix,
    /// All of one length, in bytes.
    One(usize),
}

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "mix" {
            return Ok(Size::Mix);
        }
        match text.parse() {
            Ok(bytes) if (HEADER_BYTES + NUMBER_BYTES..=FRAME_BYTES_MAX).contains(&bytes) => {
                Ok(Size::One(bytes))
            }
            _ => Err(format!("{text}: `mix`, or bytes from 50 to {FRAME_BYTES_MAX}")),
        }
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Size::Mix => out.write_str("mix"),
            Size::One(bytes) => write!(out, "{bytes}"),
        }
    }
}

/// What is in the frames behind their headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Payload {
    /// HTTP requests that differ in their path: LZ4 shrinks large frames of them to 0.03.
    Text,
    /// Lines of an access log: LZ4 shrinks large frames of them to 0.39, at several times the cost.
    Log,
    /// Bytes that do not compress.
    Random,
}

impl std::fmt::Display for Payload {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Payload::Text => "text",
            Payload::Log => "log",
            Payload::Random => "random",
        })
    }
}

/// Why there are no frames.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum FramesError {
    #[error("{path}: {source}")]
    Open { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: CaptureFileError },
    #[error("{path}: no Ethernet frame of {FRAME_BYTES_MIN} to {FRAME_BYTES_MAX} bytes in it")]
    Empty { path: PathBuf },
}

/// Frames, one behind the other in memory.
#[derive(Debug, Default)]
pub struct Frames {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// Frames of the file that cannot be played: too short, too long, or not Ethernet.
    pub left_out: u64,
}

impl Frames {
    /// Makes frames: UDP over IPv4 from 64 ports. The same for the same arguments.
    pub fn make(size: Size, payload: Payload) -> Self {
        let mut frames = Self::default();
        let mut random = Random(0x5eed);
        let words: Vec<String> = (0..512).map(|_| word(&mut random)).collect();
        let sizes = match size {
            Size::Mix => MIX.to_vec(),
            Size::One(bytes) => vec![bytes; MIX.len()],
        };
        while frames.bytes.len() < MEMORY_BYTES {
            for &bytes in &sizes {
                let mut frame = header(frames.ends.len(), bytes);
                while frame.len() < bytes {
                    match payload {
                        Payload::Random => frame.extend_from_slice(&random.next().to_le_bytes()),
                        Payload::Text => frame.extend_from_slice(request(&mut random).as_bytes()),
                        Payload::Log => frame.extend_from_slice(line(&mut random, &words).as_bytes()),
                    }
                }
                frame.truncate(bytes);
                frames.push(&frame);
            }
        }
        frames
    }

    /// Reads the Ethernet frames of a pcap or pcapng file.
    pub fn read(path: &Path) -> Result<Self, FramesError> {
        let file = File::open(path).map_err(|source| FramesError::Open { path: path.into(), source })?;
        let failed = |source| FramesError::Read { path: path.into(), source };
        let mut reader = CaptureReader::new(file).map_err(failed)?;
        let (mut frames, mut ethernet) = (Self::default(), Vec::new());
        while let Some(item) = reader.next().map_err(failed)? {
            match item {
                Item::Interface(interface) => ethernet.push(interface.link_type == 1),
                Item::Packet(packet) => {
                    let is_ethernet = ethernet.get(packet.interface as usize) == Some(&true);
                    if is_ethernet && (FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&packet.data.len()) {
                        frames.push(packet.data);
                    } else {
                        frames.left_out += 1;
                    }
                }
            }
        }
        if frames.ends.is_empty() { Err(FramesError::Empty { path: path.into() }) } else { Ok(frames) }
    }

    fn push(&mut self, frame: &[u8]) {
        self.bytes.extend_from_slice(frame);
        self.ends.push(self.bytes.len());
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of all together.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of the longest.
    pub fn longest(&self) -> usize {
        (0..self.count()).map(|index| self.range(index).len()).max().unwrap_or(0)
    }

    /// A frame.
    pub fn frame(&self, index: usize) -> &[u8] {
        &self.bytes[self.range(index)]
    }

    /// Writes a number into a frame.
    pub fn number(&mut self, index: usize, number: u64) {
        let end = self.ends[index];
        let mut bytes = number.to_be_bytes();
        bytes[..2].copy_from_slice(&NUMBER_MAGIC);
        self.bytes[end - NUMBER_BYTES..end].copy_from_slice(&bytes);
    }

    fn range(&self, index: usize) -> std::ops::Range<usize> {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        start..self.ends[index]
    }
}

/// The number of a frame, if it has one.
#[inline]
pub fn number_of(frame: &[u8]) -> Option<u64> {
    let bytes = *frame.last_chunk::<NUMBER_BYTES>()?;
    (bytes[..2] == NUMBER_MAGIC).then_some(u64::from_be_bytes(bytes) & 0xffff_ffff_ffff)
}

/// Ethernet, IPv4 and UDP for a frame of so many bytes; the port tells the flow.
fn header(index: usize, bytes: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
    frame.extend_from_slice(&((bytes - 14) as u16).to_be_bytes());
    frame.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0, 10, 99, 0, 1, 10, 99, 0, 2]);
    let sum: u32 = frame[14..34].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let checksum = !((sum >> 16) + (sum & 0xffff)) as u16;
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    for word in [40_000 + (index % 64) as u16, 9, (bytes - 34) as u16, 0] {
        frame.extend_from_slice(&word.to_be_bytes());
    }
    frame
}

/// An HTTP request.
fn request(random: &mut Random) -> String {
    let page = random.next() % 10_000;
    format!(
        "GET /pages/{page}/index.html HTTP/1.1\r\nHost: www.example.net\r\nUser-Agent: Mozilla/5.0 (X11; Linux \
         x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\nAccept: text/html,application/xhtml+xml\r\n\
         Accept-Language: en\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n\r\n"
    )
}

/// A line of an access log.
fn line(random: &mut Random, words: &[String]) -> String {
    // Few words are used often, many seldom, as in any language.
    let mut word = || &words[(random.next() % 512).min(random.next() % 512) as usize];
    let (one, two, three, agent) = (word(), word(), word(), word());
    let mut below = |bound: u64| random.next() % bound;
    format!(
        "10.{}.{}.{} - - [24/Nov/2026:18:{:02}:{:02} +0000] \"GET /{one}/{two}?{three}={} HTTP/1.1\" {} {} \"-\" \"{agent}/{}.0\"\n",
        below(4),
        below(256),
        below(256),
        below(60),
        below(60),
        below(100_000),
        [200, 200, 200, 304, 404][below(5) as usize],
        below(100_000),
        below(9),
    )
}

/// A word of one to four syllables.
fn word(random: &mut Random) -> String {
    let (consonants, vowels) = (b"bcdfghklmnprstvw", b"aeiou");
    let mut word = String::new();
    for _ in 0..=random.next() % 4 {
        word.push(char::from(consonants[(random.next() % 16) as usize]));
        word.push(char::from(vowels[(random.next() % 5) as usize]));
    }
    word
}

/// Random numbers, the same for the same seed (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_their_sizes_and_numbers() {
        let mut frames = Frames::make(Size::Mix, Payload::Text);
        assert_eq!(frames.count() % MIX.len(), 0);
        assert_eq!(frames.bytes() / frames.count(), (7 * 64 + 4 * 594 + 1514) / 12);
        assert_eq!(frames.longest(), 1514);
        assert!(frames.bytes() >= MEMORY_BYTES && frames.bytes() < MEMORY_BYTES + 12 * 1514);
        assert_eq!(number_of(frames.frame(3)), None);
        frames.number(3, 1 << 40 | 77);
        assert_eq!(number_of(frames.frame(3)), Some(1 << 40 | 77));
        assert_eq!(number_of(frames.frame(4)), None);
        assert_eq!("64".parse(), Ok(Size::One(64)));
        assert!("49".parse::<Size>().is_err() && "x".parse::<Size>().is_err());
    }

    #[test]
    fn payloads_are_what_they_say() {
        let [text, log, random] = [Payload::Text, Payload::Log, Payload::Random].map(packed_share);
        assert!((0.02..0.1).contains(&text), "{text}");
        assert!((0.3..0.5).contains(&log), "{log}");
        assert!(random > 0.95, "{random}"); // headers shrink
    }

    fn packed_share(payload: Payload) -> f64 {
        use wire::block::{Epoch, StreamKey};
        use wire::pack::{Compression, Packer};
        use wire::pool::Pool;

        let frames = Frames::make(Size::One(1514), payload);
        let key = StreamKey { epoch: Epoch(1), stream: 1 };
        let mut packer = Packer::new(key, Pool::new(8 << 20), 1 << 20, Compression::Lz4);
        assert!(packer.prepare());
        for index in 0..frames.count() {
            let frame = frames.frame(index);
            packer.push(0, 1, frame.len() as u32, [frame], &[]).expect("there is room");
        }
        let block = packer.seal().expect("frames were gathered");
        f64::from(block.header().packed_bytes) / f64::from(block.header().raw_bytes)
    }
}
