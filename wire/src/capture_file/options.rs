//! Options of pcapng blocks (draft-ietf-opsawg-pcapng, section 3.5), checked and made
//! little-endian.
//!
//! ```text
//! code u16 | length u16 | value, padded to 4 bytes | ... | opt_endofopt, or the end of the block
//! ```
//!
//! What Wireshark takes for damage is damage here: an option that does not fit with its padding,
//! and a value of a wrong length where one is prescribed.

use crate::Interface;

use super::byte_order::ByteOrder;
use super::error::Fault;

const END_OF_OPTIONS: u16 = 0;
const HEADER_BYTES: usize = 4;

/// Options of the Enhanced Packet Block (section 4.3).
const EPB_FLAGS: u16 = 2;
const EPB_HASH: u16 = 3;
const EPB_DROPCOUNT: u16 = 4;
const EPB_PACKETID: u16 = 5;
const EPB_QUEUE: u16 = 6;
const EPB_VERDICT: u16 = 7;
/// Kinds of verdict whose value is a number of 64 bits.
const VERDICT_TC: u8 = 1;
const VERDICT_XDP: u8 = 2;
/// Custom options, which begin with a Private Enterprise Number: text and bytes, to be copied and
/// not to be copied.
const CUSTOM: [u16; 4] = [2988, 2989, 19372, 19373];

/// Options of the Interface Description Block (section 4.2).
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const IF_MAC_ADDR: u16 = 6;
const IF_SPEED: u16 = 8;
const IF_TSRESOL: u16 = 9;
const IF_FILTER: u16 = 11;
const IF_OS: u16 = 12;
const IF_FCSLEN: u16 = 13;
const IF_TSOFFSET: u16 = 14;
const IF_HARDWARE: u16 = 15;

/// One option.
struct Opt<'a> {
    code: u16,
    value: &'a [u8],
    /// Value and padding.
    padded: &'a [u8],
}

/// A walk over an option list.
struct Options<'a> {
    order: ByteOrder,
    list: &'a [u8],
    /// Where the next option begins; at the end, where the list without `opt_endofopt` ends.
    at: usize,
}

impl<'a> Options<'a> {
    fn new(order: ByteOrder, list: &'a [u8]) -> Self {
        Self { order, list, at: 0 }
    }

    fn next(&mut self) -> Result<Option<Opt<'a>>, Fault> {
        let rest = &self.list[self.at..];
        // Blocks are padded to 4 bytes, so fewer than 4 are none.
        if rest.len() < HEADER_BYTES {
            return Ok(None);
        }
        let (code, length) = (self.order.u16(rest, 0), self.order.u16(rest, 2));
        let rest = &rest[HEADER_BYTES..];
        let padded_bytes = usize::from(length).next_multiple_of(4);
        if padded_bytes > rest.len() {
            return Err(Fault::OptionTooLong { code, length, left: rest.len() });
        }
        if code == END_OF_OPTIONS {
            return Ok(None);
        }
        self.at += HEADER_BYTES + padded_bytes;
        Ok(Some(Opt { code, value: &rest[..usize::from(length)], padded: &rest[..padded_bytes] }))
    }
}

impl Opt<'_> {
    fn wrong_length(&self, expected: &'static str) -> Fault {
        Fault::OptionLength {
            code: self.code,
            length: self.value.len() as u16, // it was read from 16 bits
            expected,
        }
    }

    /// Checks a packet's option, and says where it has an integer, of how many bytes.
    fn check(&self) -> Result<Option<(usize, usize)>, Fault> {
        let length = self.value.len();
        match self.code {
            EPB_FLAGS | EPB_QUEUE if length != 4 => Err(self.wrong_length("4")),
            EPB_FLAGS | EPB_QUEUE => Ok(Some((0, 4))),
            EPB_DROPCOUNT | EPB_PACKETID if length != 8 => Err(self.wrong_length("8")),
            EPB_DROPCOUNT | EPB_PACKETID => Ok(Some((0, 8))),
            EPB_HASH | EPB_VERDICT if length == 0 => Err(self.wrong_length("1 or more")),
            EPB_VERDICT if matches!(self.value[0], VERDICT_TC | VERDICT_XDP) => {
                if length != 9 {
                    return Err(self.wrong_length("9"));
                }
                Ok(Some((1, 8)))
            }
            code if CUSTOM.contains(&code) && length < 4 => Err(self.wrong_length("4 or more")),
            code if CUSTOM.contains(&code) => Ok(Some((0, 4))),
            _ => Ok(None),
        }
    }
}

/// Checks the options of a packet in a little-endian section, which can stay as they are; gives
/// their length without `opt_endofopt`, and whether a count of drops is among them.
pub(super) fn check_packet_options(list: &[u8]) -> Result<(usize, bool), Fault> {
    let mut options = Options::new(ByteOrder::Little, list);
    let mut has_drops = false;
    while let Some(option) = options.next()? {
        option.check()?;
        has_drops |= option.code == EPB_DROPCOUNT;
    }
    Ok((options.at, has_drops))
}

/// Checks the options of a packet and writes them to `out`, little-endian. Numbers are turned
/// around: flags, drops, packet id, queue, the numeric verdicts, and the enterprise number of
/// custom options. Other values are bytes, or of a layout that only their inventor knows. Says
/// whether a count of drops is among them.
pub(super) fn turn_packet_options(list: &[u8], out: &mut Vec<u8>) -> Result<bool, Fault> {
    let mut options = Options::new(ByteOrder::Big, list);
    let mut has_drops = false;
    while let Some(option) = options.next()? {
        let integer = option.check()?;
        has_drops |= option.code == EPB_DROPCOUNT;
        out.extend_from_slice(&option.code.to_le_bytes());
        out.extend_from_slice(&(option.value.len() as u16).to_le_bytes()); // read from 16 bits
        let value_at = out.len();
        out.extend_from_slice(option.padded);
        if let Some((at, bytes)) = integer {
            out[value_at + at..value_at + at + bytes].reverse(); // within the value, by check()
        }
    }
    Ok(has_drops)
}

/// Appends a count of drops.
pub(super) fn push_drop_count(out: &mut Vec<u8>, drops: u64) {
    out.extend_from_slice(&EPB_DROPCOUNT.to_le_bytes());
    out.extend_from_slice(&8u16.to_le_bytes());
    out.extend_from_slice(&drops.to_le_bytes());
}

/// Takes the options of an interface description over into `interface`; gives the value of
/// `if_tsresol`, if there is one. Of a repeated option the first counts; a value of a wrong length,
/// and one that [`Interface`] has no place for, is left out.
pub(super) fn read_interface_options(
    order: ByteOrder,
    list: &[u8],
    interface: &mut Interface,
) -> Result<Option<u8>, Fault> {
    let mut options = Options::new(order, list);
    let mut name = None;
    let mut resolution = None;
    let mut ts_offset_s = None;
    while let Some(option) = options.next()? {
        let value = option.value;
        match option.code {
            IF_NAME => keep(&mut name, Some(text(value))),
            IF_DESCRIPTION => keep(&mut interface.description, Some(text(value))),
            IF_MAC_ADDR => keep(&mut interface.mac, value.try_into().ok()),
            IF_SPEED if value.len() == 8 => {
                keep(&mut interface.speed_bits, Some(order.u64(value, 0)));
            }
            IF_TSRESOL if value.len() == 1 => keep(&mut resolution, Some(value[0])),
            IF_FILTER => match value {
                [] => return Err(option.wrong_length("1 or more")),
                // Kind 0 is a pcap-filter expression; 1 is a program.
                [0, expression @ ..] => keep(&mut interface.filter, Some(text(expression))),
                _ => {}
            },
            IF_OS => keep(&mut interface.os, Some(text(value))),
            IF_FCSLEN if value.len() == 1 => keep(&mut interface.fcs_bits, Some(value[0])),
            IF_TSOFFSET if value.len() == 8 => {
                keep(&mut ts_offset_s, Some(order.u64(value, 0).cast_signed()));
            }
            IF_HARDWARE => keep(&mut interface.hardware, Some(text(value))),
            code if CUSTOM.contains(&code) && value.len() < 4 => {
                return Err(option.wrong_length("4 or more"));
            }
            _ => {}
        }
    }
    interface.name = name.unwrap_or_default();
    interface.ts_offset_s = ts_offset_s.unwrap_or_default();
    Ok(resolution)
}

/// Keeps the first value.
fn keep<T>(place: &mut Option<T>, value: Option<T>) {
    if place.is_none() {
        *place = value;
    }
}

/// UTF-8 up to the first zero byte, which writers in C leave behind; what is not UTF-8 becomes
/// U+FFFD.
fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&value[..end.unwrap_or(value.len())]).into_owned()
}
