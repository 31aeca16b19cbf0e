//! Reads capture files: pcap and pcapng, both byte orders, from a file or a pipe.
//!
//! ```text
//!            Input (window over the bytes, whole records at a time)
//!              |
//!   first 4 bytes: which format?
//!        |                        |
//!      pcap                     pcapng --- options (checked, made little-endian)
//!        |                        |
//!        +---- host_order --------+    link-layer headers in the writer's byte order
//!                  |
//!        Item::Interface, Item::Packet
//! ```
//!
//! The formats are draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng. Where they leave room,
//! where old writers went their own way, and in what counts as damage, this follows what Wireshark
//! does when it reads from a pipe: a file that Wireshark shows in full comes out in full, and a
//! damaged one gives the same packets, then an error.
//!
//! Invariants:
//!
//! - Nothing of the input is trusted. A length is compared with its bound before anything is read
//!   or allocated by it; the window never grows beyond [`MAX_BLOCK_BYTES`], and only as far as data
//!   has arrived, so a lying length costs no memory.
//! - Nothing is consumed before it is whole and checked. So after an error the next call gives the
//!   same error again, and a read that failed for a passing reason can be repeated.
//! - No seeking, and no reading ahead that waits for more than the record asked for: a packet
//!   that has arrived through a pipe is given out at once.
//! - Once the window and the option buffer have grown to the largest record, nothing is allocated.

mod byte_order;
mod error;
mod host_order;
mod input;
mod options;
mod pcap;
mod pcapng;
#[cfg(test)]
mod tests;

use std::io::Read;
use std::ops::Range;

use crate::Interface;

pub use error::{CaptureFileError, Compression, Fault, Part};

use input::Input;
use pcap::Pcap;
use pcapng::Pcapng;

/// Most bytes of one block of a pcapng file, and so most memory the reader takes. Wireshark's own
/// bound is 128 MiB, for D-Bus; a packed block holds no more than this.
pub const MAX_BLOCK_BYTES: u32 = 16 << 20;

/// Most captured bytes of a frame, as in Wireshark and libpcap, for all but a few link types.
pub const MAX_CAPTURED_BYTES: u32 = 262_144;

/// Most captured bytes of a frame of the link types whose frames Wireshark lets be larger: a block
/// with 128 KiB of options beside them.
pub const MAX_LARGE_CAPTURED_BYTES: u32 = MAX_BLOCK_BYTES - (128 << 10);

/// Most interfaces in one file. Real files have up to a few hundred; the bound keeps a file of
/// nothing but descriptions from filling the memory of everyone downstream.
pub const MAX_INTERFACES: u32 = 65_536;

/// One thing the file holds, in file order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A new entry of the file's table. Ids count from 0 over the whole file, through all its
    /// sections, in the order these items come.
    Interface(Interface),
    /// A packet, of an interface that came before it.
    Packet(Packet<'a>),
}

/// One captured packet. It borrows the reader's window, until the next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Index of its interface, over the whole file.
    pub interface: u32,
    /// Time stamp in ns; the real time is this plus [`Interface::ts_offset_s`] seconds since 1970.
    /// 0 where the file has none (Simple Packet Block). Finer resolutions are rounded down; what
    /// exceeds `u64` (the year 2554) is `u64::MAX`.
    pub time_ns: u64,
    /// Bytes of the frame as it was on the wire. As the file has it, so it may be less than
    /// `data` has.
    pub original_len: u32,
    /// The captured bytes.
    pub data: &'a [u8],
    /// Options of the Enhanced Packet Block (section 4.3): little-endian, padded, their lengths
    /// checked, without `opt_endofopt`. Empty if there are none.
    pub options: &'a [u8],
}

/// A reader of a pcap or pcapng file that gives its interfaces and packets one by one.
#[derive(Debug)]
pub struct CaptureReader<R: Read> {
    input: Input<R>,
    format: Format,
    /// The packet's options where they are not the file's own bytes.
    options: Vec<u8>,
}

#[derive(Debug)]
enum Format {
    Pcap(Pcap),
    Pcapng(Pcapng),
}

/// What a format found: ranges in the window, or in the option buffer.
#[derive(Debug)]
enum Step {
    Interface(Interface),
    Packet(PacketStep),
}

#[derive(Debug)]
struct PacketStep {
    interface: u32,
    time_ns: u64,
    original_len: u32,
    data: Range<usize>,
    options: OptionsAt,
    /// The link type whose header is to be turned around, if the file is big-endian.
    turn: Option<u16>,
}

#[derive(Debug)]
enum OptionsAt {
    Window(Range<usize>),
    Buffer,
}

impl<R: Read> CaptureReader<R> {
    /// Reads the file's header, or the first section's.
    ///
    /// # Errors
    ///
    /// The input is no pcap or pcapng file, ends within the header, is compressed, or is of a
    /// version or link type that cannot be read; or reading fails.
    pub fn new(input: R) -> Result<Self, CaptureFileError> {
        let mut input = Input::new(input);
        let found = input.fill(MAGIC_BYTES)?;
        let Some(magic) = input.bytes().first_chunk::<MAGIC_BYTES>().copied() else {
            return Err(CaptureFileError::Truncated {
                offset: 0,
                what: Part::FileHeader,
                expected: MAGIC_BYTES as u64,
                found: found as u64,
            });
        };
        let format = if magic == pcapng::SECTION_MAGIC {
            Format::Pcapng(Pcapng::open(&mut input)?)
        } else if let Some(pcap) = Pcap::open(magic, &mut input)? {
            Format::Pcap(pcap)
        } else if let Some(compression) = Compression::of(magic) {
            return Err(CaptureFileError::Compressed { compression });
        } else {
            return Err(CaptureFileError::NotACapture { found: magic });
        };
        Ok(Self { input, format, options: Vec::new() })
    }

    /// Gives the next interface or packet, `None` at a clean end.
    ///
    /// # Errors
    ///
    /// The file is damaged here, ends in the middle of a record, or reading fails. Nothing can be
    /// read beyond the first two: a further call gives the same again. After a failed read a call
    /// tries again.
    // Not an Iterator: the item borrows the reader.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Item<'_>>, CaptureFileError> {
        let step = match &mut self.format {
            Format::Pcap(pcap) => pcap.next(&mut self.input)?,
            Format::Pcapng(pcapng) => pcapng.next(&mut self.input, &mut self.options)?,
        };
        let packet = match step {
            None => return Ok(None),
            Some(Step::Interface(interface)) => return Ok(Some(Item::Interface(interface))),
            Some(Step::Packet(packet)) => packet,
        };
        if let Some(link_type) = packet.turn {
            host_order::to_little_endian(link_type, self.input.window_mut(packet.data.clone()));
        }
        Ok(Some(Item::Packet(Packet {
            interface: packet.interface,
            time_ns: packet.time_ns,
            original_len: packet.original_len,
            data: self.input.window(packet.data),
            options: match packet.options {
                OptionsAt::Window(range) => self.input.window(range),
                OptionsAt::Buffer => &self.options,
            },
        })))
    }
}

/// Bytes that tell the formats apart.
const MAGIC_BYTES: usize = 4;

/// Most captured bytes of a frame of `link_type`.
fn captured_limit(link_type: u16) -> u32 {
    /// D-Bus messages, USBPcap transfers and EBHSCR frames (tcpdump.org/linktypes.html).
    const LARGE: [u16; 3] = [231, 249, 279];
    if LARGE.contains(&link_type) { MAX_LARGE_CAPTURED_BYTES } else { MAX_CAPTURED_BYTES }
}
