//! The pcap format (draft-ietf-opsawg-pcap) and its relatives.
//!
//! ```text
//! file header, 24 bytes                       record header, 16 bytes (24 when patched)
//!   magic u32                                   seconds u32
//!   version u16, u16                            fraction u32: us or ns, by the magic
//!   reserved u32, u32                           captured length u32
//!   snaplen u32                                 original length u32
//!   FCS length : link type u32                  [interface index, protocol, packet type: 8 bytes]
//!   [Ixia: bytes of all records, u32]           captured bytes
//! ```
//!
//! Captures of Red Hat 6.1 and of Nokia's firewalls have the standard magic and other record
//! headers. Wireshark guesses them from the first records when it can seek, and takes a pipe to
//! be standard pcap; libpcap does not know them. Neither is guessed here.

use std::io::Read;

use crate::Interface;

use super::byte_order::ByteOrder;
use super::error::{CaptureFileError, Fault, Part};
use super::input::Input;
use super::{MAGIC_BYTES, OptionsAt, PacketStep, Step, captured_limit};

const FILE_HEADER_BYTES: usize = 24;
const RECORD_HEADER_BYTES: usize = 16;
const PATCHED_RECORD_HEADER_BYTES: usize = 24;
/// Bytes that AIX writes before each FDDI frame, and counts.
const AIX_FDDI_PADDING_BYTES: u32 = 3;
const LINK_TYPE_FDDI: u16 = 10;

/// State of a pcap file.
#[derive(Debug)]
pub(super) struct Pcap {
    order: ByteOrder,
    /// Nanoseconds in a unit of the fraction field.
    fraction_ns: u64,
    lengths: Lengths,
    record_header_bytes: usize,
    /// Bytes before each frame that are not part of it.
    padding: u32,
    link_type: u16,
    /// The interface, until it was given out.
    interface: Option<Interface>,
    records: u64,
}

/// The order of the two length fields: versions before 2.3 had the original length first, and some
/// writers of 2.3 still did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lengths {
    CapturedFirst,
    OriginalFirst,
    /// The captured length is the smaller.
    Guess,
}

/// What the magic number says.
struct Magic {
    order: ByteOrder,
    fraction_ns: u64,
    /// Ixia puts a length behind the file header.
    ixia: bool,
    /// Alexey Kuznetzov's patch of 1999 made the record header longer.
    patched: bool,
    /// The standard magic, which AIX uses too.
    standard: bool,
}

impl Magic {
    fn of(bytes: [u8; MAGIC_BYTES]) -> Option<Self> {
        let little = u32::from_le_bytes(bytes);
        Self::of_value(little, ByteOrder::Little)
            .or_else(|| Self::of_value(little.swap_bytes(), ByteOrder::Big))
    }

    fn of_value(value: u32, order: ByteOrder) -> Option<Self> {
        let (fraction_ns, ixia, patched) = match value {
            0xa1b2_c3d4 => (1000, false, false),
            0xa1b2_3c4d => (1, false, false),
            0xa1b2_cd34 => (1000, false, true),
            0x1c00_01ab => (1000, true, false),
            0x1c00_01ac => (1, true, false),
            _ => return None,
        };
        Some(Self { order, fraction_ns, ixia, patched, standard: value == 0xa1b2_c3d4 })
    }
}

impl Pcap {
    /// Reads the file header; `None` if the magic number is not of this format.
    pub(super) fn open<R: Read>(
        magic: [u8; MAGIC_BYTES],
        input: &mut Input<R>,
    ) -> Result<Option<Self>, CaptureFileError> {
        let Some(magic) = Magic::of(magic) else {
            return Ok(None);
        };
        let order = magic.order;
        let header_bytes = FILE_HEADER_BYTES + if magic.ixia { 4 } else { 0 };
        let found = input.fill(header_bytes)?;
        if found < header_bytes {
            return Err(CaptureFileError::Truncated {
                offset: 0,
                what: Part::FileHeader,
                expected: header_bytes as u64,
                found: found as u64,
            });
        }
        let unsupported = |fault| CaptureFileError::Unsupported { offset: 0, what: Part::FileHeader, fault };
        let header = input.bytes();
        let (major, minor) = (order.u16(header, 4), order.u16(header, 6));
        if major < 2 {
            return Err(unsupported(Fault::Version { major, minor }));
        }
        let lengths = match (major, minor) {
            (2, 0..=2) => Lengths::OriginalFirst,
            (2, 3) => Lengths::Guess,
            (543, _) => Lengths::OriginalFirst, // tcpdump of DG/UX
            _ => Lengths::CapturedFirst,
        };
        let snaplen = order.u32(header, 16);
        let network = order.u32(header, 20);
        let aix_link_type = aix_link_type(network).filter(|_| magic.standard && (major, minor) == (2, 2));
        let network = aix_link_type.unwrap_or(network);
        let (link_type, fcs_bits) =
            split_link_type(network).ok_or_else(|| unsupported(Fault::LinkType { value: network }))?;
        let is_aix = aix_link_type.is_some();
        input.consume(header_bytes);
        Ok(Some(Self {
            order,
            fraction_ns: if is_aix { 1 } else { magic.fraction_ns },
            lengths,
            record_header_bytes: if magic.patched {
                PATCHED_RECORD_HEADER_BYTES
            } else {
                RECORD_HEADER_BYTES
            },
            padding: if is_aix && link_type == LINK_TYPE_FDDI { AIX_FDDI_PADDING_BYTES } else { 0 },
            link_type,
            interface: Some(Interface { link_type, snaplen, fcs_bits, ..Interface::default() }),
            records: 0,
        }))
    }

    /// The interface first, then the records.
    pub(super) fn next<R: Read>(&mut self, input: &mut Input<R>) -> Result<Option<Step>, CaptureFileError> {
        if let Some(interface) = self.interface.take() {
            return Ok(Some(Step::Interface(interface)));
        }
        let header_bytes = self.record_header_bytes;
        let offset = input.offset();
        let what = Part::Record { number: self.records + 1 };
        let truncated = |expected, found| CaptureFileError::Truncated {
            offset,
            what,
            expected: expected as u64,
            found: found as u64,
        };
        let corrupt = |fault| CaptureFileError::Corrupt { offset, what, fault };

        let found = input.fill(header_bytes)?;
        if found == 0 {
            return Ok(None);
        }
        if found < header_bytes {
            return Err(truncated(header_bytes, found));
        }
        let header = input.bytes();
        let seconds = self.order.u32(header, 0);
        // May be a second or more in a damaged file: the sum is what the fields say. (Wireshark
        // loses the upper bits of a microsecond field beyond 4,294,967 here.)
        let fraction = self.order.u32(header, 4);
        let (first, second) = (self.order.u32(header, 8), self.order.u32(header, 12));
        let (captured, original_len) = match self.lengths {
            Lengths::CapturedFirst => (first, second),
            Lengths::OriginalFirst => (second, first),
            Lengths::Guess => (first.min(second), first.max(second)),
        };
        // A record may exceed the snaplen of the file header: that is common, and harmless.
        let limit = captured_limit(self.link_type);
        if captured > limit {
            return Err(corrupt(Fault::CapturedTooLong { captured, limit }));
        }
        if captured < self.padding {
            return Err(corrupt(Fault::CapturedTooShort { captured, padding: self.padding }));
        }
        let record_bytes = header_bytes + captured as usize;
        let found = input.fill(record_bytes)?;
        if found < record_bytes {
            return Err(truncated(record_bytes, found));
        }
        self.records += 1;
        let place = input.consume(record_bytes);
        Ok(Some(Step::Packet(PacketStep {
            interface: 0,
            // At most 2^32 * 10^9 + 2^32 * 1000, which u64 holds.
            time_ns: u64::from(seconds) * 1_000_000_000 + u64::from(fraction) * self.fraction_ns,
            original_len: original_len.saturating_sub(self.padding),
            data: place + header_bytes + self.padding as usize..place + record_bytes,
            options: OptionsAt::Window(0..0),
            turn: (self.order == ByteOrder::Big).then_some(self.link_type),
        })))
    }
}

/// AIX has version 2.2, the standard magic, nanoseconds, and the interface's type of RFC 1573 where
/// the link type belongs. Nothing else tells it from other files of that version; these types were
/// not in use as link types then, but for 9, which is then token ring rather than PPP.
fn aix_link_type(interface_type: u32) -> Option<u32> {
    match interface_type {
        6 => Some(1), // Ethernet
        9 => Some(6), // token ring
        15 => Some(u32::from(LINK_TYPE_FDDI)),
        24 => Some(0), // loopback
        _ => None,
    }
}

/// Splits the field of section 4 of the draft: FCS length in units of 16 bits (4 bits), a reserved
/// bit that is ignored, the flag that the FCS length is there, reserved bits that must be zero (10),
/// link type (16). `None` if they are not zero. The FCS length comes in bits.
fn split_link_type(field: u32) -> Option<(u16, Option<u8>)> {
    const FCS_PRESENT: u32 = 0x0400_0000;
    const RESERVED: u32 = 0x03ff_0000;
    if field & RESERVED != 0 {
        return None;
    }
    let fcs_bits = (field & FCS_PRESENT != 0).then_some((field >> 28) as u8 * 16);
    Some(((field & 0xffff) as u16, fcs_bits))
}
