//! The pcapng format (draft-ietf-opsawg-pcapng, sections 3 and 4).
//!
//! ```text
//! block:  type u32 | length u32 | body, padded to 4 bytes | length u32
//!
//! section header -> interface descriptions and packets -> section header -> ...
//! ```
//!
//! Each section has its own byte order and its own interface ids from 0; here they count on over
//! the whole file. Blocks other than those above (name resolution, statistics, secrets, custom,
//! journal, unknown) are skipped, with only their lengths checked.

use std::io::Read;
use std::ops::Range;

use crate::Interface;

use super::byte_order::ByteOrder;
use super::error::{CaptureFileError, Fault, Part};
use super::input::Input;
use super::options;
use super::{MAX_BLOCK_BYTES, MAX_INTERFACES, OptionsAt, PacketStep, Step, captured_limit};

/// The first bytes of the file: the section header's block type, the same in both byte orders.
pub(super) const SECTION_MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
/// Obsolete (appendix A): as the enhanced one, but interface and drops are 16 bits each.
const PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

/// Type and length.
const BLOCK_HEADER_BYTES: usize = 8;
/// The length again.
const BLOCK_TRAILER_BYTES: usize = 4;
/// Header, byte-order magic, version, section length, trailer.
const LEAST_SECTION_HEADER_BYTES: u32 = 28;
/// Header, link type, reserved, snaplen, trailer.
const LEAST_INTERFACE_DESCRIPTION_BYTES: u32 = 20;
/// Header, interface, time, two lengths, trailer.
const LEAST_PACKET_BYTES: u32 = 32;
/// Header, original length, trailer.
const LEAST_SIMPLE_PACKET_BYTES: u32 = 16;
const LEAST_BLOCK_BYTES: u32 = 12;
/// What the drops of an obsolete packet block say when they are not known.
const DROPS_UNKNOWN: u16 = 0xffff;

/// State of a pcapng file.
#[derive(Debug)]
pub(super) struct Pcapng {
    order: ByteOrder,
    /// Interfaces of the sections before this one.
    interfaces_before: u32,
    /// Interfaces of this section.
    interfaces: Vec<Described>,
    blocks: u64,
}

/// What the packets of an interface need of its description.
#[derive(Clone, Copy, Debug)]
struct Described {
    link_type: u16,
    snaplen: u32,
    resolution: Resolution,
}

/// A whole block in the input, not consumed: its lengths are checked and agree.
struct Block {
    kind: u32,
    order: ByteOrder,
    /// Of the whole block, a multiple of 4.
    length: u32,
}

impl Pcapng {
    /// Reads the first section header.
    pub(super) fn open<R: Read>(input: &mut Input<R>) -> Result<Self, CaptureFileError> {
        let mut pcapng =
            Self { order: ByteOrder::Little, interfaces_before: 0, interfaces: Vec::new(), blocks: 0 };
        if let Some(block) = pcapng.block(input)? {
            let place = Place::here(&pcapng, input, block.kind);
            pcapng.begin_section(&block, input.bytes(), place)?;
            pcapng.consume(input, &block);
        }
        Ok(pcapng)
    }

    /// The next interface or packet. `buffer` takes its options when they are not the file's own.
    pub(super) fn next<R: Read>(
        &mut self,
        input: &mut Input<R>,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Step>, CaptureFileError> {
        while let Some(block) = self.block(input)? {
            let place = Place::here(self, input, block.kind);
            let bytes = &input.bytes()[..block.length as usize]; // block() has filled it
            let step = match block.kind {
                SECTION_HEADER => {
                    self.begin_section(&block, bytes, place)?;
                    None
                }
                INTERFACE_DESCRIPTION => Some(Step::Interface(self.describe(&block, bytes, place)?)),
                PACKET | ENHANCED_PACKET => Some(Step::Packet(
                    self.packet(&block, bytes, buffer).map_err(|fault| place.corrupt(fault))?,
                )),
                SIMPLE_PACKET => Some(Step::Packet(
                    self.simple_packet(&block, bytes).map_err(|fault| place.corrupt(fault))?,
                )),
                _ => None,
            };
            let start = self.consume(input, &block);
            match step {
                None => {}
                Some(Step::Packet(packet)) => return Ok(Some(Step::Packet(packet.moved(start)))),
                interface => return Ok(interface),
            }
        }
        Ok(None)
    }

    fn consume<R: Read>(&mut self, input: &mut Input<R>, block: &Block) -> usize {
        self.blocks += 1;
        input.consume(block.length as usize)
    }

    /// Reads one whole block and checks its lengths (section 3.1). `None`: the file ends before it.
    fn block<R: Read>(&self, input: &mut Input<R>) -> Result<Option<Block>, CaptureFileError> {
        let mut place = Place::here(self, input, 0);
        let found = input.fill(BLOCK_HEADER_BYTES)?;
        if found == 0 {
            return Ok(None);
        }
        if found < BLOCK_HEADER_BYTES {
            return Err(place.truncated(BLOCK_HEADER_BYTES, found));
        }
        let mut order = self.order;
        if input.bytes()[..4] == SECTION_MAGIC {
            let wanted = BLOCK_HEADER_BYTES + 4;
            let found = input.fill(wanted)?;
            if found < wanted {
                return Err(place.truncated(wanted, found));
            }
            order = section_order(input.bytes()).map_err(|fault| place.corrupt(fault))?;
        }
        let kind = order.u32(input.bytes(), 0);
        place = Place::here(self, input, kind);
        // The draft wants a multiple of 4 since its first days, but some writers gave the length
        // without the padding; as Wireshark does, the padding is assumed.
        let length = order.u32(input.bytes(), 4);
        let least = match kind {
            SECTION_HEADER => LEAST_SECTION_HEADER_BYTES,
            INTERFACE_DESCRIPTION => LEAST_INTERFACE_DESCRIPTION_BYTES,
            PACKET | ENHANCED_PACKET => LEAST_PACKET_BYTES,
            SIMPLE_PACKET => LEAST_SIMPLE_PACKET_BYTES,
            _ => LEAST_BLOCK_BYTES,
        };
        if length < least {
            return Err(place.corrupt(Fault::BlockTooShort { length, least }));
        }
        if length > MAX_BLOCK_BYTES {
            return Err(place.corrupt(Fault::BlockTooLong { length, limit: MAX_BLOCK_BYTES }));
        }
        let head = length;
        let length = head.next_multiple_of(4);
        let found = input.fill(length as usize)?;
        if found < length as usize {
            return Err(place.truncated(length as usize, found));
        }
        let tail = order.u32(input.bytes(), length as usize - BLOCK_TRAILER_BYTES);
        if tail != head && tail != length {
            return Err(place.corrupt(Fault::BlockLengthsDiffer { head, tail }));
        }
        Ok(Some(Block { kind, order, length }))
    }

    /// Section Header Block (section 4.1). Its options describe the writer, not the packets.
    fn begin_section(&mut self, block: &Block, bytes: &[u8], place: Place) -> Result<(), CaptureFileError> {
        let (major, minor) = (block.order.u16(bytes, 12), block.order.u16(bytes, 14));
        // 1.2 was written by mistake and is the same as 1.0.
        if !matches!((major, minor), (1, 0 | 2)) {
            return Err(place.unsupported(Fault::Version { major, minor }));
        }
        self.order = block.order;
        // Both are bounded by MAX_INTERFACES.
        self.interfaces_before += self.interfaces.len() as u32;
        self.interfaces.clear();
        Ok(())
    }

    /// Interface Description Block (section 4.2).
    fn describe(&mut self, block: &Block, bytes: &[u8], place: Place) -> Result<Interface, CaptureFileError> {
        if self.interfaces_before + self.interfaces.len() as u32 >= MAX_INTERFACES {
            return Err(place.unsupported(Fault::TooManyInterfaces { limit: MAX_INTERFACES }));
        }
        let mut interface = Interface {
            link_type: block.order.u16(bytes, 8),
            snaplen: block.order.u32(bytes, 12),
            ..Interface::default()
        };
        let list = &bytes[16..bytes.len() - BLOCK_TRAILER_BYTES];
        let resolution = options::read_interface_options(block.order, list, &mut interface)
            .map_err(|fault| place.corrupt(fault))?;
        self.interfaces.push(Described {
            link_type: interface.link_type,
            snaplen: interface.snaplen,
            resolution: Resolution::of_option(resolution.unwrap_or(Resolution::DEFAULT)),
        });
        Ok(interface)
    }

    /// Enhanced Packet Block (section 4.3) and the obsolete Packet Block (appendix A). The ranges
    /// count from the start of the block.
    fn packet(&self, block: &Block, bytes: &[u8], buffer: &mut Vec<u8>) -> Result<PacketStep, Fault> {
        const DATA_AT: usize = 28;
        let order = block.order;
        let (index, drops) = if block.kind == PACKET {
            (u32::from(order.u16(bytes, 8)), order.u16(bytes, 10))
        } else {
            (order.u32(bytes, 8), DROPS_UNKNOWN)
        };
        let time = u64::from(order.u32(bytes, 12)) << 32 | u64::from(order.u32(bytes, 16));
        let (captured, original_len) = (order.u32(bytes, 20), order.u32(bytes, 24));
        let data = self.data(block, DATA_AT, captured)?;
        let interface = self.interface(index)?;
        check_captured(captured, interface)?;

        let list_at = data.end.next_multiple_of(4);
        let list = &bytes[list_at..bytes.len() - BLOCK_TRAILER_BYTES];
        buffer.clear();
        let mut options = OptionsAt::Buffer;
        let has_drops = match order {
            ByteOrder::Big => options::turn_packet_options(list, buffer)?,
            ByteOrder::Little => {
                let (length, has_drops) = options::check_packet_options(list)?;
                options = OptionsAt::Window(list_at..list_at + length);
                has_drops
            }
        };
        if drops != DROPS_UNKNOWN && !has_drops {
            if let OptionsAt::Window(range) = &options {
                buffer.extend_from_slice(&bytes[range.clone()]);
            }
            options::push_drop_count(buffer, u64::from(drops));
            options = OptionsAt::Buffer;
        }
        Ok(PacketStep {
            interface: self.interfaces_before + index,
            time_ns: interface.resolution.to_ns(time),
            original_len,
            data,
            options,
            turn: (order == ByteOrder::Big).then_some(interface.link_type),
        })
    }

    /// Simple Packet Block (section 4.4): of interface 0, without time, cut at its snaplen.
    fn simple_packet(&self, block: &Block, bytes: &[u8]) -> Result<PacketStep, Fault> {
        const DATA_AT: usize = 12;
        let interface = self.interface(0)?;
        let original_len = block.order.u32(bytes, 8);
        let captured = match interface.snaplen {
            0 => original_len,
            snaplen => original_len.min(snaplen),
        };
        let data = self.data(block, DATA_AT, captured)?;
        check_captured(captured, interface)?;
        Ok(PacketStep {
            interface: self.interfaces_before,
            time_ns: 0,
            original_len,
            data,
            options: OptionsAt::Window(0..0),
            turn: (block.order == ByteOrder::Big).then_some(interface.link_type),
        })
    }

    /// Where the captured bytes lie in the block, if they and their padding fit.
    fn data(&self, block: &Block, at: usize, captured: u32) -> Result<Range<usize>, Fault> {
        let space = block.length as usize - at - BLOCK_TRAILER_BYTES; // block() knows the least
        // The space is a multiple of 4: what fits, fits with its padding.
        if captured as usize > space {
            return Err(Fault::CapturedBeyondBlock { captured, block: block.length });
        }
        Ok(at..at + captured as usize)
    }

    fn interface(&self, index: u32) -> Result<Described, Fault> {
        self.interfaces
            .get(index as usize)
            .copied()
            .ok_or(Fault::NoSuchInterface { interface: index, count: self.interfaces.len() as u32 })
    }
}

impl PacketStep {
    /// The same with ranges in the window, where the block begins at `start`.
    fn moved(mut self, start: usize) -> Self {
        let moved = |range: Range<usize>| range.start + start..range.end + start;
        self.data = moved(self.data);
        if let OptionsAt::Window(range) = self.options {
            self.options = OptionsAt::Window(moved(range));
        }
        self
    }
}

fn check_captured(captured: u32, interface: Described) -> Result<(), Fault> {
    let limit = captured_limit(interface.link_type);
    if captured > limit {
        return Err(Fault::CapturedTooLong { captured, limit });
    }
    Ok(())
}

/// The byte order that a section header's magic tells; the caller has filled 12 bytes.
fn section_order(bytes: &[u8]) -> Result<ByteOrder, Fault> {
    let mut found = [0; 4];
    found.copy_from_slice(&bytes[8..12]);
    match found {
        [0x4d, 0x3c, 0x2b, 0x1a] => Ok(ByteOrder::Little),
        [0x1a, 0x2b, 0x3c, 0x4d] => Ok(ByteOrder::Big),
        _ => Err(Fault::ByteOrderMagic { found }),
    }
}

/// The unit of an interface's time stamps (`if_tsresol`, section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resolution {
    /// Ticks of so many nanoseconds.
    Coarse(u64),
    /// So many ticks a nanosecond; `None` is more than `u64` holds.
    Fine(Option<u64>),
    /// Ticks of `2^-n` seconds.
    Binary(u8),
}

impl Resolution {
    /// Microseconds, where the option is absent.
    const DEFAULT: u8 = 6;

    /// The upper bit chooses powers of 2, the others are the negative exponent.
    fn of_option(value: u8) -> Self {
        let exponent = value & 0x7f;
        if value & 0x80 != 0 {
            return Self::Binary(exponent);
        }
        match exponent.checked_sub(9) {
            None => Self::Coarse(10u64.pow(u32::from(9 - exponent))),
            Some(0) => Self::Coarse(1),
            Some(finer) => Self::Fine(10u64.checked_pow(u32::from(finer))),
        }
    }

    /// Rounds down; `u64::MAX` if it is more.
    fn to_ns(self, ticks: u64) -> u64 {
        match self {
            Self::Coarse(ns) => ticks.saturating_mul(ns),
            Self::Fine(Some(ticks_each)) => ticks / ticks_each,
            Self::Fine(None) => 0,
            Self::Binary(exponent) => {
                // 64 + 30 bits, shifted by at most 127.
                let ns = (u128::from(ticks) * 1_000_000_000) >> exponent;
                u64::try_from(ns).unwrap_or(u64::MAX)
            }
        }
    }
}

/// Which block it is, for errors.
#[derive(Clone, Copy)]
struct Place {
    offset: u64,
    what: Part,
}

impl Place {
    fn here<R: Read>(pcapng: &Pcapng, input: &Input<R>, kind: u32) -> Self {
        Self { offset: input.offset(), what: Part::Block { number: pcapng.blocks + 1, kind } }
    }

    fn truncated(self, expected: usize, found: usize) -> CaptureFileError {
        CaptureFileError::Truncated {
            offset: self.offset,
            what: self.what,
            expected: expected as u64,
            found: found as u64,
        }
    }

    fn corrupt(self, fault: Fault) -> CaptureFileError {
        CaptureFileError::Corrupt { offset: self.offset, what: self.what, fault }
    }

    fn unsupported(self, fault: Fault) -> CaptureFileError {
        CaptureFileError::Unsupported { offset: self.offset, what: self.what, fault }
    }
}
