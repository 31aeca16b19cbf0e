//! pcapng as Ringcast writes it (draft-ietf-opsawg-pcapng): the blocks around the packets, and the
//! check of every Enhanced Packet Block that came over the network.
//!
//! Sections are little-endian, the byte order of packed bodies, which is the host's on every
//! machine Ringcast is built for; a big-endian host writes little-endian sections too, which
//! readers must accept (section 4.1 of the draft).

use thiserror::Error;

use crate::Interface;
use crate::block::{u16_at, u32_at};

/// Block type of the Enhanced Packet Block (section 4.3).
pub const EPB_TYPE: u32 = 6;
/// Bytes of an Enhanced Packet Block before its data.
pub const EPB_HEAD_BYTES: usize = 28;
/// Bytes of an Enhanced Packet Block without data and options.
pub const EPB_BYTES_MIN: usize = EPB_HEAD_BYTES + 4;
/// Most captured bytes of one packet. Beyond it Wireshark refuses the whole file
/// (WTAP_MAX_PACKET_SIZE_STANDARD, wiretap/wtap.h).
pub const CAPTURED_BYTES_MAX: usize = 262_144;

/// Option `opt_comment` (section 3.5).
pub const OPT_COMMENT: u16 = 1;
/// Option `epb_flags` (section 4.3): direction, reception type, checksum state.
pub const OPT_EPB_FLAGS: u16 = 2;

/// Bits of `epb_flags`.
pub mod flags {
    /// The frame came in.
    pub const INBOUND: u32 = 1;
    /// The frame was sent by the capture host.
    pub const OUTBOUND: u32 = 2;
    /// Sent to this host.
    pub const UNICAST: u32 = 1 << 2;
    /// Sent to a group.
    pub const MULTICAST: u32 = 2 << 2;
    /// Sent to all.
    pub const BROADCAST: u32 = 3 << 2;
    /// Sent to somebody else, and seen all the same.
    pub const PROMISCUOUS: u32 = 4 << 2;
    /// The sender left the checksum to the hardware, so it is not valid yet.
    pub const CHECKSUM_NOT_READY: u32 = 1 << 9;
    /// The receiver verified the checksum.
    pub const CHECKSUM_VALID: u32 = 1 << 10;
    /// Several TCP segments in one frame (offload).
    pub const TCP_SEGMENTATION_OFFLOADED: u32 = 1 << 11;
}

/// Builds one pcapng block: type, options or fixed fields, padding, both lengths.
struct BlockWriter<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> BlockWriter<'a> {
    fn new(out: &'a mut Vec<u8>, block_type: u32) -> Self {
        let start = out.len();
        out.extend_from_slice(&block_type.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        Self { out, start }
    }

    fn fixed(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }

    /// Appends an option; a value over 65,535 bytes is cut, at a character if it is text.
    fn option(&mut self, code: u16, value: &[u8]) -> &mut Self {
        let mut end = value.len().min(usize::from(u16::MAX));
        while end < value.len() && value[end] & 0xc0 == 0x80 {
            end -= 1;
        }
        self.out.extend_from_slice(&code.to_le_bytes());
        self.out.extend_from_slice(&(end as u16).to_le_bytes());
        self.out.extend_from_slice(&value[..end]);
        self.out.resize(self.start + (self.out.len() - self.start).next_multiple_of(4), 0);
        self
    }

    fn text(&mut self, code: u16, value: Option<&str>) -> &mut Self {
        match value {
            Some(value) if !value.is_empty() => self.option(code, value.as_bytes()),
            _ => self,
        }
    }

    fn finish(&mut self) {
        self.out.extend_from_slice(&[0; 4]); // opt_endofopt
        let length = (self.out.len() - self.start + 4) as u32;
        self.out[self.start + 4..self.start + 8].copy_from_slice(&length.to_le_bytes());
        self.out.extend_from_slice(&length.to_le_bytes());
    }
}

/// Appends a Section Header Block (section 4.1) of unknown section length.
pub fn section_header(out: &mut Vec<u8>, hardware: Option<&str>, os: Option<&str>, application: &str) {
    let mut block = BlockWriter::new(out, 0x0a0d_0d0a);
    block.fixed(&0x1a2b_3c4d_u32.to_le_bytes()).fixed(&1u16.to_le_bytes()).fixed(&0u16.to_le_bytes());
    block.fixed(&u64::MAX.to_le_bytes());
    block.text(2, hardware).text(3, os).text(4, Some(application)).finish();
}

/// Appends an Interface Description Block (section 4.2) in ns resolution, under the name `name`.
pub fn interface_description(out: &mut Vec<u8>, interface: &Interface, name: &str) {
    let mut block = BlockWriter::new(out, 1);
    block.fixed(&interface.link_type.to_le_bytes()).fixed(&[0; 2]).fixed(&interface.snaplen.to_le_bytes());
    block.text(2, Some(name)).text(3, interface.description.as_deref());
    if let Some(mac) = &interface.mac {
        block.option(6, mac);
    }
    if let Some(speed) = interface.speed_bits {
        block.option(8, &speed.to_le_bytes());
    }
    block.option(9, &[9]);
    if let Some(filter) = &interface.filter {
        block.option(11, &[&[0], filter.as_bytes()].concat());
    }
    block.text(12, interface.os.as_deref());
    if let Some(bits) = interface.fcs_bits {
        block.option(13, &[bits]);
    }
    if interface.ts_offset_s != 0 {
        block.option(14, &interface.ts_offset_s.to_le_bytes());
    }
    block.text(15, interface.hardware.as_deref()).finish();
}

/// What an Interface Statistics Block says (section 4.6); `None` leaves an option out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceStatistics {
    /// Time of the statistics, ns since 1970.
    pub time_ns: u64,
    /// Start of the capture, ns since 1970 (`isb_starttime`).
    pub start_ns: Option<u64>,
    /// End of the capture, ns since 1970 (`isb_endtime`).
    pub end_ns: Option<u64>,
    /// Packets the interface took in (`isb_ifrecv`).
    pub received: Option<u64>,
    /// Packets the interface itself dropped (`isb_ifdrop`).
    pub interface_drops: Option<u64>,
    /// Packets the kernel's filter let through, drops included (`isb_filteraccept`).
    pub filter_accepted: Option<u64>,
    /// Packets the kernel dropped for want of ring space (`isb_osdrop`).
    pub kernel_drops: Option<u64>,
    /// Packets written here (`isb_usrdeliv`).
    pub delivered: Option<u64>,
    /// Comments to attach.
    pub comments: Vec<String>,
}

/// Appends an Interface Statistics Block for interface `id`.
pub fn interface_statistics(out: &mut Vec<u8>, id: u32, statistics: &InterfaceStatistics) {
    let mut block = BlockWriter::new(out, 5);
    block.fixed(&id.to_le_bytes()).fixed(&time_words(statistics.time_ns));
    for comment in &statistics.comments {
        block.option(OPT_COMMENT, comment.as_bytes());
    }
    for (code, time) in [(2, statistics.start_ns), (3, statistics.end_ns)] {
        if let Some(time) = time {
            block.option(code, &time_words(time));
        }
    }
    let counts = [
        (4, statistics.received),
        (5, statistics.interface_drops),
        (6, statistics.filter_accepted),
        (7, statistics.kernel_drops),
        (8, statistics.delivered),
    ];
    for (code, count) in counts {
        if let Some(count) = count {
            block.option(code, &count.to_le_bytes());
        }
    }
    block.finish();
}

/// A time stamp as pcapng writes it: the upper 32 bits first.
fn time_words(time_ns: u64) -> [u8; 8] {
    let mut words = [0; 8];
    words[..4].copy_from_slice(&((time_ns >> 32) as u32).to_le_bytes());
    words[4..].copy_from_slice(&(time_ns as u32).to_le_bytes());
    words
}

/// Appends an option to a list of options that is being built for a packet.
pub fn packet_option(options: &mut Vec<u8>, code: u16, value: &[u8]) {
    let end = value.len().min(usize::from(u16::MAX));
    options.extend_from_slice(&code.to_le_bytes());
    options.extend_from_slice(&(end as u16).to_le_bytes());
    options.extend_from_slice(&value[..end]);
    options.resize(options.len().next_multiple_of(4), 0);
}

/// Why bytes are not a run of Enhanced Packet Blocks.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum EpbError {
    #[error("packet block at byte {offset}: {found} bytes left, at least {EPB_BYTES_MIN} needed")]
    TooShort { offset: usize, found: usize },
    #[error("packet block at byte {offset}: type {found}, expected {EPB_TYPE}")]
    Type { offset: usize, found: u32 },
    #[error("packet block at byte {offset}: length {found} is out of range or not a multiple of 4")]
    Length { offset: usize, found: u32 },
    #[error("packet block at byte {offset}: length {head} at its head, {tail} at its tail")]
    Trailer { offset: usize, head: u32, tail: u32 },
    #[error("packet block at byte {offset}: captured length {found} does not fit or exceeds 262144")]
    Captured { offset: usize, found: u32 },
    #[error("packet block at byte {offset}: interface {found} of {known}")]
    Interface { offset: usize, found: u32, known: u32 },
    #[error("packet block at byte {offset}: malformed options")]
    Options { offset: usize },
}

/// One Enhanced Packet Block inside a body, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epb<'a> {
    /// Where it begins in the body.
    pub offset: usize,
    /// Its length, head and trailer included.
    pub length: usize,
    /// Index into the stream's table of interfaces.
    pub interface: u32,
    /// Time stamp, ns since 1970 (less the interface's `ts_offset_s`).
    pub time_ns: u64,
    /// Length on the wire.
    pub original_len: u32,
    /// The captured bytes.
    pub data: &'a [u8],
    /// Options with `opt_endofopt`, or empty.
    pub options: &'a [u8],
}

/// Walks and checks the Enhanced Packet Blocks of a body. Ends after the first error.
#[derive(Debug)]
pub struct Epbs<'a> {
    body: &'a [u8],
    offset: usize,
    interface_count: u32,
}

impl<'a> Epbs<'a> {
    /// Walks `body`, whose blocks may name interfaces below `interface_count`.
    pub fn new(body: &'a [u8], interface_count: u32) -> Self {
        Self { body, offset: 0, interface_count }
    }

    #[inline]
    fn parse(&self) -> Result<Epb<'a>, EpbError> {
        let offset = self.offset;
        let rest = &self.body[offset..];
        if rest.len() < EPB_BYTES_MIN {
            return Err(EpbError::TooShort { offset, found: rest.len() });
        }
        let found = u32_at(rest, 0);
        if found != EPB_TYPE {
            return Err(EpbError::Type { offset, found });
        }
        let head = u32_at(rest, 4);
        let length = head as usize;
        if length < EPB_BYTES_MIN || length > rest.len() || !length.is_multiple_of(4) {
            return Err(EpbError::Length { offset, found: head });
        }
        let tail = u32_at(rest, length - 4);
        if tail != head {
            return Err(EpbError::Trailer { offset, head, tail });
        }
        let interface = u32_at(rest, 8);
        if interface >= self.interface_count {
            return Err(EpbError::Interface { offset, found: interface, known: self.interface_count });
        }
        let captured = u32_at(rest, 20);
        let captured_len = captured as usize;
        let data_end = EPB_HEAD_BYTES + captured_len.min(CAPTURED_BYTES_MAX).next_multiple_of(4);
        if captured_len > CAPTURED_BYTES_MAX || data_end > length - 4 {
            return Err(EpbError::Captured { offset, found: captured });
        }
        let options = &rest[data_end..length - 4];
        if !is_flags_alone(options) && !options_are_whole(options) {
            return Err(EpbError::Options { offset });
        }
        Ok(Epb {
            offset,
            length,
            interface,
            time_ns: u64::from(u32_at(rest, 12)) << 32 | u64::from(u32_at(rest, 16)),
            original_len: u32_at(rest, 24),
            data: &rest[EPB_HEAD_BYTES..EPB_HEAD_BYTES + captured_len],
            options,
        })
    }
}

impl<'a> Iterator for Epbs<'a> {
    type Item = Result<Epb<'a>, EpbError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.body.len() {
            return None;
        }
        let parsed = self.parse();
        match &parsed {
            Ok(epb) => self.offset += epb.length,
            Err(_) => self.offset = self.body.len(),
        }
        Some(parsed)
    }
}

/// Whether `options` is what a live sniffer writes: its flags and the end. Most packets have no more.
#[inline]
fn is_flags_alone(options: &[u8]) -> bool {
    matches!(options, [2, 0, 4, 0, _, _, _, _, 0, 0, 0, 0])
}

/// Whether `options` is a list of whole options, ended by `opt_endofopt` or by the end, whose values
/// are as long as they must be: at any other Wireshark gives up the file.
fn options_are_whole(options: &[u8]) -> bool {
    let mut offset = 0;
    while offset < options.len() {
        if options.len() - offset < 4 {
            return false;
        }
        let code = u16_at(options, offset);
        let length = usize::from(u16_at(options, offset + 2));
        let value_at = offset + 4;
        offset = value_at + length.next_multiple_of(4);
        if code == 0 {
            return length == 0 && offset == options.len();
        }
        if !options.get(value_at..value_at + length).is_some_and(|value| is_value_sound(code, value)) {
            return false;
        }
    }
    offset == options.len()
}

/// Whether the value of an option of a packet has the length that is prescribed (section 4.3; custom
/// options begin with a number of four bytes, section 3.5.1).
fn is_value_sound(code: u16, value: &[u8]) -> bool {
    match code {
        2 | 6 => value.len() == 4, // flags, queue
        4 | 5 => value.len() == 8, // count of drops, packet id
        3 => !value.is_empty(),    // hash
        7 => match value.first() {
            None => false,
            Some(1 | 2) => value.len() == 9, // verdicts that are numbers
            Some(_) => true,
        },
        2988 | 2989 | 19372 | 19373 => value.len() >= 4,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pcap_parser::{Block, OptionCode, parse_block_le};
    use proptest::prelude::*;

    #[test]
    fn blocks_read_back_by_an_independent_reader() {
        let interface = Interface {
            name: "eth0".into(),
            link_type: 1,
            snaplen: 262_144,
            filter: Some("tcp port 80".into()),
            os: Some("Linux 6".into()),
            hardware: Some("veth".into()),
            mac: Some([2, 0, 0, 0, 0, 1]),
            speed_bits: Some(10_000_000_000),
            fcs_bits: Some(4),
            ts_offset_s: -5,
            description: Some("uplink".into()),
        };
        let mut out = Vec::new();
        section_header(&mut out, None, Some("Linux"), "ringcast viewer");
        interface_description(&mut out, &interface, "host:eth0");
        let statistics = InterfaceStatistics {
            time_ns: 0x1_0000_0002,
            delivered: Some(9),
            comments: vec!["two lost".into()],
            ..Default::default()
        };
        interface_statistics(&mut out, 0, &statistics);

        let (rest, first) = parse_block_le(&out).expect("section");
        let Block::SectionHeader(section) = first else { panic!("not a section header") };
        assert_eq!((section.major_version, section.section_len), (1, -1));
        let (rest, second) = parse_block_le(rest).expect("interface");
        let Block::InterfaceDescription(idb) = second else { panic!("not an interface") };
        assert_eq!((idb.linktype.0, idb.snaplen, idb.if_tsresol, idb.if_tsoffset), (1, 262_144, 9, -5));
        let name = idb.options.iter().find(|option| option.code == OptionCode(2)).expect("named");
        assert_eq!(&name.value[..9], b"host:eth0");
        let (rest, third) = parse_block_le(rest).expect("statistics");
        let Block::InterfaceStatistics(isb) = third else { panic!("not statistics") };
        assert_eq!((isb.if_id, isb.ts_high, isb.ts_low), (0, 1, 2));
        assert!(rest.is_empty());
    }

    #[test]
    fn an_option_too_long_is_cut_at_a_character() {
        let interface = Interface { description: Some("é".repeat(40_000)), ..Default::default() };
        let mut out = Vec::new();
        interface_description(&mut out, &interface, "");
        let (_, block) = parse_block_le(&out).expect("parses");
        let Block::InterfaceDescription(idb) = block else { panic!("not an interface") };
        let text = idb.options.iter().find(|option| option.code == OptionCode(3)).expect("there");
        let length = usize::from(text.len);
        assert_eq!(length, 65_534);
        assert!(std::str::from_utf8(&text.value[..length]).is_ok());
    }

    fn epb(data: &[u8], options: &[u8]) -> Vec<u8> {
        let length = (EPB_BYTES_MIN + data.len().next_multiple_of(4) + options.len()) as u32;
        let mut out = Vec::new();
        let len = data.len() as u32;
        for word in [EPB_TYPE, length, 0, 1, 2, len, len + 5] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend_from_slice(options);
        out.extend_from_slice(&length.to_le_bytes());
        out
    }

    /// A sniffer that is not ours put flags of no bytes on a packet, and the file that the viewer
    /// wrote ended there for Wireshark. Whatever passes here, a reader of files must take.
    #[test]
    fn an_option_of_a_wrong_length_is_refused_as_a_reader_would() {
        let passes = |code: u16, value: &[u8]| {
            let mut options = Vec::new();
            packet_option(&mut options, code, value);
            let body = epb(b"abcde", &options);
            let mut file = Vec::new();
            section_header(&mut file, None, None, "");
            interface_description(&mut file, &Interface { link_type: 1, ..Interface::default() }, "");
            file.extend_from_slice(&body);
            let mut reader = crate::capture_file::CaptureReader::new(&file[..]).expect("a section");
            let is_read = reader.next().is_ok() && reader.next().is_ok();
            let is_taken = Epbs::new(&body, 1).all(|epb| epb.is_ok());
            assert_eq!(is_taken, is_read, "option {code} of {} bytes", value.len());
            is_taken
        };
        for code in (0..12).chain([2988, 2989, 19372, 19373, 0x8001]).filter(|code| *code != 0) {
            for kind in 0..4 {
                let sound = (0..12).filter(|length| passes(code, &vec![kind; *length])).count();
                assert!(sound > 0);
            }
        }
        assert!(!passes(OPT_EPB_FLAGS, &[]) && passes(OPT_EPB_FLAGS, &[1, 0, 0, 0]));
    }

    #[test]
    fn packet_blocks_are_walked_and_checked() {
        let mut options = Vec::new();
        packet_option(&mut options, OPT_COMMENT, b"hello");
        options.extend_from_slice(&[0; 4]);
        let body = [epb(b"abcde", &options), epb(b"", &[])].concat();
        let walked: Vec<_> = Epbs::new(&body, 1).collect::<Result<_, _>>().expect("whole");
        assert_eq!(walked.len(), 2);
        assert_eq!(walked[0].data, b"abcde");
        assert_eq!((walked[0].time_ns, walked[0].original_len), (0x1_0000_0002, 10));
        assert_eq!(walked[0].options, options);

        let refused = |at: usize, value: u8| {
            let mut bad = body.clone();
            bad[at] = value;
            Epbs::new(&bad, 1).find_map(Result::err).expect("refused")
        };
        assert!(matches!(refused(0, 5), EpbError::Type { found: 5, .. }));
        assert!(matches!(refused(4, 0xfe), EpbError::Length { .. }));
        assert!(matches!(refused(8, 1), EpbError::Interface { found: 1, known: 1, .. }));
        assert!(matches!(refused(20, 200), EpbError::Captured { found: 200, .. }));
        assert!(matches!(refused(38, 99), EpbError::Options { .. }));
        assert!(matches!(refused(body.len() - 4, 1), EpbError::Trailer { tail: 1, .. }));
        let cut = Epbs::new(&body[..body.len() - 1], 1).find_map(Result::err);
        assert!(matches!(cut, Some(EpbError::TooShort { .. })));
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            Epbs::new(&bytes, 3).for_each(drop);
        }

        #[test]
        fn no_mutation_makes_it_panic(at in 0usize..80, value: u8, data in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut bytes = [epb(&data, &[]), epb(&data, &[1, 0, 2, 0, 65, 66, 0, 0, 0, 0, 0, 0])].concat();
            let at = at % bytes.len();
            bytes[at] = value;
            Epbs::new(&bytes, 1).for_each(drop);
        }
    }
}
