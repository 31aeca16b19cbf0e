//! What can be wrong with a capture file.

use std::fmt;
use std::io;

use thiserror::Error;

/// Why a capture file cannot be read, or not further. The text does not name the file: the reader
/// does not know its name.
#[derive(Debug, Error)]
pub enum CaptureFileError {
    /// The first bytes are those of no format that is read here.
    #[error("not a pcap or pcapng file: it begins with {}", Hex(found))]
    NotACapture {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// The file is compressed as a whole.
    #[error(
        "compressed with {compression}: decompress it into a pipe, as in \
         `{} FILE | sniffer --read -`", compression.command()
    )]
    Compressed {
        /// How, by the first bytes.
        compression: Compression,
    },
    /// The file ends in the middle of something. All whole packets before it were given.
    #[error("{what} at byte {offset}: the file ends after {found} of {expected} bytes")]
    Truncated {
        /// Where the incomplete part begins, in bytes from the start of the file.
        offset: u64,
        /// The incomplete part.
        what: Part,
        /// Bytes it should have, as far as its length is known.
        expected: u64,
        /// Bytes it has.
        found: u64,
    },
    /// The file contradicts itself or the format.
    #[error("{what} at byte {offset}: {fault}")]
    Corrupt {
        /// Where the part begins, in bytes from the start of the file.
        offset: u64,
        /// The part that is wrong.
        what: Part,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The file is of a kind that is not read.
    #[error("{what} at byte {offset}: {fault}")]
    Unsupported {
        /// Where the part begins, in bytes from the start of the file.
        offset: u64,
        /// The part that says so.
        what: Part,
        /// What is not supported.
        fault: Fault,
    },
    /// Reading failed.
    #[error("read at byte {offset} failed")]
    Io {
        /// Bytes read before, from the start of the file.
        offset: u64,
        /// What the operating system said.
        source: io::Error,
    },
}

/// A part of a capture file. Records and blocks count from 1, as frames do in Wireshark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The header of a pcap file, or the magic number of either format.
    FileHeader,
    /// A packet record of a pcap file.
    Record {
        /// Its number.
        number: u64,
    },
    /// A block of a pcapng file.
    Block {
        /// Its number.
        number: u64,
        /// Its type, 0 where that is not known yet.
        kind: u32,
    },
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::FileHeader => f.write_str("file header"),
            Self::Record { number } => write!(f, "record {number}"),
            Self::Block { number, kind } => match kind {
                0 => write!(f, "block {number}"),
                1 => write!(f, "block {number} (interface description)"),
                2 => write!(f, "block {number} (packet)"),
                3 => write!(f, "block {number} (simple packet)"),
                6 => write!(f, "block {number} (enhanced packet)"),
                0x0a0d_0d0a => write!(f, "block {number} (section header)"),
                _ => write!(f, "block {number} (type 0x{kind:08x})"),
            },
        }
    }
}

/// What is wrong with a part of the file, or not supported in it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// A frame longer than any reader takes.
    #[error("captured length {captured} exceeds {limit}")]
    CapturedTooLong {
        /// Captured length in the file.
        captured: u32,
        /// Most for the link type.
        limit: u32,
    },
    /// A record of AIX shorter than the padding that AIX writes before FDDI frames.
    #[error("captured length {captured} is less than {padding} bytes of padding")]
    CapturedTooShort {
        /// Captured length in the file.
        captured: u32,
        /// Bytes of padding.
        padding: u32,
    },
    /// A frame that does not fit its block.
    #[error("captured length {captured} does not fit in a block of {block} bytes")]
    CapturedBeyondBlock {
        /// Captured length in the file, or what follows from the interface's snaplen.
        captured: u32,
        /// Length of the block.
        block: u32,
    },
    /// A block too short for its type.
    #[error("block length {length} is less than {least}")]
    BlockTooShort {
        /// Length of the block.
        length: u32,
        /// Least for the type.
        least: u32,
    },
    /// A block longer than is taken.
    #[error("block length {length} exceeds {limit}")]
    BlockTooLong {
        /// Length of the block.
        length: u32,
        /// Most bytes of a block.
        limit: u32,
    },
    /// The two lengths of a block differ.
    #[error("block length {tail} at its end differs from {head} at its start")]
    BlockLengthsDiffer {
        /// Length at the start of the block.
        head: u32,
        /// Length at the end of the block.
        tail: u32,
    },
    /// A packet of an interface that its section has not described.
    #[error("interface {interface} is not among the {count} described in the section")]
    NoSuchInterface {
        /// Index in the section.
        interface: u32,
        /// Interfaces described so far.
        count: u32,
    },
    /// An option that runs out of its block.
    #[error("option {code}: length {length} exceeds the {left} bytes left")]
    OptionTooLong {
        /// Code of the option.
        code: u16,
        /// Length of its value.
        length: u16,
        /// Bytes left for value and padding.
        left: usize,
    },
    /// An option whose value has the wrong length.
    #[error("option {code}: length {length} is not {expected}")]
    OptionLength {
        /// Code of the option.
        code: u16,
        /// Length of its value.
        length: u16,
        /// What it should be.
        expected: &'static str,
    },
    /// A section header with an unknown byte-order magic.
    #[error("byte-order magic is {}", Hex(found))]
    ByteOrderMagic {
        /// The bytes in its place.
        found: [u8; 4],
    },
    /// A version that is not read.
    #[error("version {major}.{minor} is not supported")]
    Version {
        /// Major version.
        major: u16,
        /// Minor version.
        minor: u16,
    },
    /// A link type field with bits set that have no meaning.
    #[error("link type 0x{value:08x} has reserved bits set")]
    LinkType {
        /// The whole field.
        value: u32,
    },
    /// More interfaces than are taken.
    #[error("more than {limit} interfaces")]
    TooManyInterfaces {
        /// Most interfaces in a file.
        limit: u32,
    },
}

/// The compressions whose files are recognised, to say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// gzip (RFC 1952).
    Gzip,
    /// Zstandard (RFC 8878).
    Zstd,
    /// An LZ4 frame.
    Lz4,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
}

impl Compression {
    /// The compression whose files begin like this.
    pub(super) fn of(magic: [u8; 4]) -> Option<Self> {
        match magic {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd] => Some(Self::Zstd),
            [0x04, 0x22, 0x4d, 0x18] => Some(Self::Lz4),
            [b'B', b'Z', b'h', _] => Some(Self::Bzip2),
            [0xfd, b'7', b'z', b'X'] => Some(Self::Xz),
            _ => None,
        }
    }

    /// The command that decompresses to standard output.
    fn command(self) -> &'static str {
        match self {
            Self::Gzip => "zcat",
            Self::Zstd => "zstdcat",
            Self::Lz4 => "lz4cat",
            Self::Bzip2 => "bzcat",
            Self::Xz => "xzcat",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
        })
    }
}

/// Bytes as they are in the file, in hexadecimal.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(f, "{space}{byte:02x}")?;
        }
        Ok(())
    }
}
