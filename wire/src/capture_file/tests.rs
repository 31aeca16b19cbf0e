//! Small files made by hand, cut everywhere, and changed at random.

use std::io::{self, Read};

use proptest::prelude::*;

use super::*;

/// Writes numbers in one byte order.
struct Builder {
    big: bool,
    bytes: Vec<u8>,
}

impl Builder {
    fn u16(&mut self, value: u16) -> &mut Self {
        let bytes = if self.big { value.to_be_bytes() } else { value.to_le_bytes() };
        self.raw(&bytes)
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        let bytes = if self.big { value.to_be_bytes() } else { value.to_le_bytes() };
        self.raw(&bytes)
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        let bytes = if self.big { value.to_be_bytes() } else { value.to_le_bytes() };
        self.raw(&bytes)
    }

    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn pcap(big: bool, magic: u32, version: (u16, u16), network: u32) -> Self {
        let mut file = Self { big, bytes: Vec::new() };
        file.u32(magic).u16(version.0).u16(version.1);
        file.u64(0).u32(65_535).u32(network);
        file
    }

    fn record(&mut self, seconds: u32, fraction: u32, lengths: (u32, u32), data: &[u8]) -> &mut Self {
        self.u32(seconds).u32(fraction).u32(lengths.0).u32(lengths.1).raw(data)
    }

    fn section(big: bool) -> Self {
        let mut file = Self { big, bytes: Vec::new() };
        file.begin_section(big);
        file
    }

    fn begin_section(&mut self, big: bool) -> &mut Self {
        self.big = big;
        self.block(0x0a0d_0d0a, |body| {
            body.u32(0x1a2b_3c4d).u16(1).u16(0).u64(u64::MAX);
        })
    }

    fn block(&mut self, kind: u32, body: impl FnOnce(&mut Self)) -> &mut Self {
        let mut inner = Self { big: self.big, bytes: Vec::new() };
        body(&mut inner);
        let padding = inner.bytes.len().next_multiple_of(4) - inner.bytes.len();
        inner.raw(&[0; 3][..padding]);
        let length = inner.bytes.len() as u32 + 12;
        self.u32(kind).u32(length).raw(&inner.bytes).u32(length)
    }

    fn option(&mut self, code: u16, value: &[u8]) -> &mut Self {
        let padding = value.len().next_multiple_of(4) - value.len();
        self.u16(code).u16(value.len() as u16).raw(value).raw(&[0; 3][..padding])
    }

    fn interface(&mut self, link_type: u16, snaplen: u32, resolution: Option<u8>) -> &mut Self {
        self.block(1, |body| {
            body.u16(link_type).u16(0).u32(snaplen);
            if let Some(resolution) = resolution {
                body.option(9, &[resolution]).u32(0);
            }
        })
    }

    fn packet(
        &mut self,
        interface: u32,
        time: u64,
        data: &[u8],
        options: impl FnOnce(&mut Self),
    ) -> &mut Self {
        self.block(6, |body| {
            body.u32(interface).u32((time >> 32) as u32).u32(time as u32);
            body.u32(data.len() as u32).u32(data.len() as u32 + 1).raw(data);
            let padding = data.len().next_multiple_of(4) - data.len();
            body.raw(&[0; 3][..padding]);
            options(body);
        })
    }
}

/// A packet that owns its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owned {
    interface: u32,
    time_ns: u64,
    original_len: u32,
    data: Vec<u8>,
    options: Vec<u8>,
}

/// All that a file gives.
#[derive(Debug, Default)]
struct All {
    interfaces: Vec<Interface>,
    packets: Vec<Owned>,
    error: Option<CaptureFileError>,
}

impl All {
    fn said(&self) -> String {
        self.error.as_ref().map_or(String::new(), ToString::to_string)
    }
}

fn read_from(input: impl Read) -> All {
    let mut all = All::default();
    let mut reader = match CaptureReader::new(input) {
        Ok(reader) => reader,
        Err(error) => {
            all.error = Some(error);
            return all;
        }
    };
    loop {
        match reader.next() {
            Ok(Some(Item::Interface(interface))) => all.interfaces.push(interface),
            Ok(Some(Item::Packet(packet))) => {
                assert!((packet.interface as usize) < all.interfaces.len());
                all.packets.push(Owned {
                    interface: packet.interface,
                    time_ns: packet.time_ns,
                    original_len: packet.original_len,
                    data: packet.data.to_vec(),
                    options: packet.options.to_vec(),
                });
            }
            Ok(None) => break,
            Err(error) => {
                all.error = Some(error);
                break;
            }
        }
    }
    assert!(reader.input.window_bytes() <= MAX_BLOCK_BYTES as usize);
    all
}

fn read(bytes: &[u8]) -> All {
    read_from(bytes)
}

fn read_clean(bytes: &[u8]) -> All {
    let all = read(bytes);
    assert!(all.error.is_none(), "{}", all.said());
    all
}

/// Two packets, of an odd and of an even length.
fn small_pcap(big: bool) -> Vec<u8> {
    let mut file = Builder::pcap(big, 0xa1b2_c3d4, (2, 4), 1);
    file.record(1, 2, (5, 60), b"hello");
    file.record(3, 4, (4, 4), b"more");
    file.bytes
}

/// Two sections of both byte orders, with an unknown block and options.
fn small_pcapng() -> Vec<u8> {
    let mut file = Builder::section(false);
    file.interface(1, 0, None).interface(101, 3, Some(9));
    file.packet(1, 7, b"abc", |body| {
        body.option(1, b"note").u32(0);
    });
    file.block(0x8000_0001, |body| {
        body.raw(b"whatever");
    });
    file.begin_section(true).interface(113, 65_535, Some(3));
    file.packet(0, 8, b"defgh", |body| {
        body.u16(2).u16(4).u32(1);
    });
    file.bytes
}

#[test]
fn pcap_of_both_orders_and_resolutions() {
    for big in [false, true] {
        for (magic, unit) in [(0xa1b2_c3d4, 1000), (0xa1b2_3c4d, 1)] {
            let mut file = Builder::pcap(big, magic, (2, 4), 1);
            file.record(1, 2, (5, 60), b"hello").record(3, 4, (0, 0), b"");
            let all = read_clean(&file.bytes);
            assert_eq!(all.interfaces.len(), 1);
            assert_eq!(all.interfaces[0].link_type, 1);
            assert_eq!(all.interfaces[0].snaplen, 65_535);
            assert_eq!(all.packets[0].time_ns, 1_000_000_000 + 2 * unit);
            assert_eq!(all.packets[0].original_len, 60);
            assert_eq!(all.packets[0].data, b"hello");
            assert_eq!(all.packets[1].data, b"");
        }
    }
}

#[test]
fn pcap_relatives() {
    // Patched records are longer, Ixia's file header is.
    let mut file = Builder::pcap(true, 0xa1b2_cd34, (2, 4), 1);
    file.u32(1).u32(2).u32(3).u32(3).raw(&[9; 8]).raw(b"abc");
    assert_eq!(read_clean(&file.bytes).packets[0].data, b"abc");
    let mut file = Builder::pcap(false, 0x1c00_01ac, (2, 4), 1);
    file.u32(19).record(1, 2, (3, 3), b"abc");
    assert_eq!(read_clean(&file.bytes).packets[0].time_ns, 1_000_000_002);
    // AIX: types of RFC 1573, nanoseconds, lengths the other way round, padding before FDDI.
    let mut file = Builder::pcap(true, 0xa1b2_c3d4, (2, 2), 15);
    file.record(1, 2, (63, 6), b"\0\0\0abc");
    let all = read_clean(&file.bytes);
    assert_eq!(all.interfaces[0].link_type, 10);
    assert_eq!(all.packets[0].time_ns, 1_000_000_002);
    assert_eq!((all.packets[0].original_len, &*all.packets[0].data), (60, &b"abc"[..]));
}

#[test]
fn pcap_lengths_by_version() {
    for (version, lengths) in [((2, 1), (60, 3)), ((2, 3), (60, 3)), ((2, 3), (3, 60)), ((543, 0), (60, 3))] {
        let mut file = Builder::pcap(false, 0xa1b2_c3d4, version, 1);
        file.record(1, 2, lengths, b"abc");
        let all = read_clean(&file.bytes);
        assert_eq!(all.packets[0].original_len, 60);
    }
    let file = Builder::pcap(false, 0xa1b2_c3d4, (1, 4), 1);
    assert_eq!(read(&file.bytes).said(), "file header at byte 0: version 1.4 is not supported");
}

#[test]
fn pcap_link_type_field() {
    let file = Builder::pcap(false, 0xa1b2_c3d4, (2, 4), 0x2400_0001);
    assert_eq!(read_clean(&file.bytes).interfaces[0].fcs_bits, Some(32));
    let file = Builder::pcap(false, 0xa1b2_c3d4, (2, 4), 0x3800_0084);
    let all = read_clean(&file.bytes);
    assert_eq!((all.interfaces[0].link_type, all.interfaces[0].fcs_bits), (132, None));
    let file = Builder::pcap(false, 0xa1b2_c3d4, (2, 4), 0x0001_0001);
    assert!(matches!(read(&file.bytes).error, Some(CaptureFileError::Unsupported { .. })));
}

#[test]
fn captured_length_is_bounded() {
    for (link_type, captured, fits) in [
        (1, 262_144, true),
        (1, 262_145, false),
        (231, 262_145, true),
        (249, MAX_LARGE_CAPTURED_BYTES + 1, false),
    ] {
        let mut file = Builder::pcap(false, 0xa1b2_c3d4, (2, 4), link_type);
        file.record(1, 2, (captured, captured), &vec![1; captured as usize]);
        assert_eq!(read(&file.bytes).error.is_none(), fits);
        let mut file = Builder::section(false);
        file.interface(link_type as u16, 0, None);
        file.packet(0, 1, &vec![1; captured as usize], |_| ());
        assert_eq!(read(&file.bytes).error.is_none(), fits);
    }
}

#[test]
fn sections_count_their_interfaces_on() {
    let all = read_clean(&small_pcapng());
    let link_types: Vec<u16> = all.interfaces.iter().map(|interface| interface.link_type).collect();
    assert_eq!(link_types, [1, 101, 113]);
    assert_eq!((all.packets[0].interface, all.packets[0].time_ns), (1, 7));
    assert_eq!((all.packets[1].interface, all.packets[1].time_ns), (2, 8_000_000));
    assert_eq!(all.packets[0].options, b"\x01\0\x04\0note");
    assert_eq!(all.packets[1].options, b"\x02\0\x04\0\x01\0\0\0");
    assert_eq!(all.packets[0].original_len, 4);
}

#[test]
fn interface_options_are_taken_over() {
    for big in [false, true] {
        let mut file = Builder::section(big);
        file.block(1, |body| {
            body.u16(1).u16(0).u32(96);
            body.option(2, b"eth0\0junk").option(3, b"uplink").option(6, &[1, 2, 3, 4, 5, 6]);
            body.u16(8).u16(8).u64(10_000_000_000);
            body.option(11, b"\0tcp port 80").option(12, b"Linux").option(13, &[32]);
            body.u16(14).u16(8).u64((-5i64).cast_unsigned());
            body.option(15, b"e1000").option(2, b"second").option(0x8123, b"?").u32(0).u32(0xffff_ffff);
        });
        let all = read_clean(&file.bytes);
        let expected = Interface {
            name: "eth0".into(),
            description: Some("uplink".into()),
            link_type: 1,
            snaplen: 96,
            filter: Some("tcp port 80".into()),
            os: Some("Linux".into()),
            hardware: Some("e1000".into()),
            speed_bits: Some(10_000_000_000),
            mac: Some([1, 2, 3, 4, 5, 6]),
            fcs_bits: Some(32),
            ts_offset_s: -5,
        };
        assert_eq!(all.interfaces, [expected]);
    }
}

/// All options of a big-endian packet come out as a little-endian writer would have written them.
#[test]
fn big_endian_options_are_turned() {
    let write = |big: bool| {
        let mut file = Builder::section(big);
        file.interface(1, 0, None);
        file.packet(0, 1, b"abc", |body| {
            body.option(1, b"comment").u16(2).u16(4).u32(0x0102_0304);
            body.option(3, &[3, 1, 2, 3, 4, 5]).u16(4).u16(8).u64(77);
            body.u16(5).u16(8).u64(0x0102_0304_0506_0708).u16(6).u16(4).u32(9);
            body.option(7, &[0, 1, 2, 3]);
            body.u16(2988).u16(7).u32(32_473).raw(b"abc\0");
            body.u16(19_373).u16(4).u32(32_473).option(0x8001, b"odd").u32(0);
        });
        read_clean(&file.bytes).packets.remove(0).options
    };
    assert_eq!(write(true), write(false));
    assert_eq!(write(false).len() % 4, 0);
}

#[test]
fn numeric_verdicts_are_turned() {
    let mut file = Builder::section(true);
    file.interface(1, 0, None);
    file.packet(0, 1, b"abcd", |body| {
        body.u16(7).u16(9).raw(&[2]).u64(2).raw(&[0; 3]);
    });
    let options = &read_clean(&file.bytes).packets[0].options;
    assert_eq!(options[..], [7, 0, 9, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn bad_options_are_damage() {
    let with = |write: &dyn Fn(&mut Builder)| {
        let mut file = Builder::section(false);
        file.interface(1, 0, None).packet(0, 1, b"abcd", write);
        read(&file.bytes).said()
    };
    let place = "block 3 (enhanced packet) at byte 48: ";
    let said = with(&|body| _ = body.u16(1).u16(9).u64(0));
    assert_eq!(said, format!("{place}option 1: length 9 exceeds the 8 bytes left"));
    let said = with(&|body| _ = body.option(2, b"abc"));
    assert_eq!(said, format!("{place}option 2: length 3 is not 4"));
    let said = with(&|body| _ = body.option(2988, b"abc"));
    assert_eq!(said, format!("{place}option 2988: length 3 is not 4 or more"));
}

#[test]
fn obsolete_and_simple_packets() {
    for big in [false, true] {
        let mut file = Builder::section(big);
        file.interface(1, 4, None);
        file.block(2, |body| {
            body.u16(0).u16(5).u32(0).u32(7).u32(3).u32(60).raw(b"abc\0").option(1, b"note");
        });
        file.block(2, |body| {
            body.u16(0).u16(0xffff).u32(0).u32(7).u32(4).u32(60).raw(b"abcd");
        });
        file.block(3, |body| {
            body.u32(60).raw(b"wxyz");
        });
        file.block(3, |body| {
            body.u32(2).raw(b"wx");
        });
        let all = read_clean(&file.bytes);
        let expected = b"\x01\0\x04\0note\x04\0\x08\0\x05\0\0\0\0\0\0\0";
        assert_eq!(all.packets[0].options, expected);
        assert_eq!((all.packets[0].time_ns, all.packets[0].original_len), (7000, 60));
        assert_eq!(all.packets[1].options, b"");
        assert_eq!((&*all.packets[2].data, all.packets[2].original_len), (&b"wxyz"[..], 60));
        assert_eq!((&*all.packets[3].data, all.packets[3].time_ns), (&b"wx"[..], 0));
    }
}

#[test]
fn every_resolution_becomes_nanoseconds() {
    for (resolution, ticks, ns) in [
        (0, 3, 3_000_000_000),
        (6, 3, 3000),
        (9, 3, 3),
        (12, 3999, 3),
        (19, u64::MAX, 1_844_674_407),
        (40, u64::MAX, 0),
        (127, u64::MAX, 0),
        (0, u64::MAX, u64::MAX),
        (0x80, 2, 2_000_000_000),
        (0x88, 384, 1_500_000_000),
        (0x80 + 63, 1 << 62, 500_000_000),
        (0xff, u64::MAX, 0),
        (0x80, u64::MAX, u64::MAX),
    ] {
        let mut file = Builder::section(false);
        file.interface(1, 0, Some(resolution)).packet(0, ticks, b"", |_| ());
        assert_eq!(read_clean(&file.bytes).packets[0].time_ns, ns, "{resolution} {ticks}");
    }
}

#[test]
fn blocks_that_lie() {
    let mut file = Builder::section(false);
    file.packet(0, 1, b"abcd", |_| ());
    let said = read(&file.bytes).said();
    assert!(said.ends_with("interface 0 is not among the 0 described in the section"), "{said}");

    for (length, tail, what) in [
        (8, 8, "block length 8 is less than 12"),
        (0x0100_0001, 0, "block length 16777217 exceeds 16777216"),
        (12, 16, "block length 16 at its end differs from 12 at its start"),
    ] {
        let mut file = Builder::section(false);
        file.u32(5).u32(length).u32(tail);
        assert_eq!(read(&file.bytes).said(), format!("block 2 (type 0x00000005) at byte 28: {what}"));
    }
    // A length without the padding is taken with it.
    let mut file = Builder::section(false);
    file.u32(5).u32(13).raw(&[0; 4]).u32(13).interface(1, 0, None);
    assert_eq!(read_clean(&file.bytes).interfaces.len(), 1);
}

#[test]
fn other_files_are_named() {
    assert_eq!(read(b"VD6Fx").said(), "not a pcap or pcapng file: it begins with 56 44 36 46");
    let said = read(&[0x1f, 0x8b, 8, 0, 0]).said();
    assert_eq!(said, "compressed with gzip: decompress it into a pipe, as in `zcat FILE | sniffer --read -`");
    assert_eq!(read(b"").said(), "file header at byte 0: the file ends after 0 of 4 bytes");
}

#[test]
fn host_order_headers_are_turned() {
    // NFLOG: two TLVs; USB: the id; cooked CAN: the id.
    let mut file = Builder::pcap(true, 0xa1b2_c3d4, (2, 4), 239);
    file.record(0, 0, (20, 20), &[2, 0, 0, 9, 0, 5, 0, 1, 7, 0, 0, 0, 0, 8, 0, 9, 1, 2, 3, 4]);
    let expected = [2, 0, 0, 9, 5, 0, 1, 0, 7, 0, 0, 0, 8, 0, 9, 0, 1, 2, 3, 4];
    assert_eq!(read_clean(&file.bytes).packets[0].data, expected);
    let mut file = Builder::section(true);
    file.interface(113, 0, None);
    let mut can = [0; 20];
    can[15] = 0x0c;
    can[16..].copy_from_slice(&[1, 2, 3, 4]);
    file.packet(0, 0, &can, |_| ());
    assert_eq!(read_clean(&file.bytes).packets[0].data[16..], [4, 3, 2, 1]);
}

/// At every length the whole packets come, and then the end or `Truncated`.
#[test]
fn cut_at_every_byte() {
    for file in [small_pcap(false), small_pcap(true), small_pcapng()] {
        let whole = read_clean(&file);
        let mut clean = 0;
        for length in 0..file.len() {
            let cut = read(&file[..length]);
            assert_eq!(cut.packets, whole.packets[..cut.packets.len()]);
            match cut.error {
                None => clean += 1,
                Some(CaptureFileError::Truncated { offset, expected, found, .. }) => {
                    assert_eq!(offset + found, length as u64);
                    assert!(found < expected);
                }
                Some(error) => panic!("cut at {length}: {error}"),
            }
        }
        // Only where a record or block ends, after the header.
        assert_eq!(clean, if file[0] == 0x0a { 7 } else { 2 });
    }
}

/// Gives a few bytes at a time, with interruptions, and counts what it was asked.
struct Dribble<'a> {
    bytes: &'a [u8],
    calls: usize,
}

impl Read for Dribble<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.calls += 1;
        if self.calls.is_multiple_of(3) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let count = self.bytes.len().min(room.len()).min(1 + self.calls % 7);
        let (now, later) = self.bytes.split_at(count);
        room[..count].copy_from_slice(now);
        self.bytes = later;
        Ok(count)
    }
}

#[test]
fn pieces_make_no_difference() {
    for file in [small_pcap(false), small_pcapng()] {
        let all = read_from(Dribble { bytes: &file, calls: 0 });
        assert!(all.error.is_none());
        assert_eq!(all.packets, read_clean(&file).packets);
    }
}

/// Fails once, in the middle of a record.
struct FailsOnce<'a>(&'a [u8], Option<&'a [u8]>);

impl Read for FailsOnce<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty()
            && let Some(rest) = self.1.take()
        {
            self.0 = rest;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.0.read(room)
    }
}

#[test]
fn a_failed_read_can_be_repeated() {
    let file = small_pcap(false);
    let (now, later) = file.split_at(50);
    let mut reader = CaptureReader::new(FailsOnce(now, Some(later))).expect("the header is there");
    let mut packets = 0;
    let mut failures = 0;
    loop {
        match reader.next() {
            Ok(Some(Item::Packet(_))) => packets += 1,
            Ok(Some(Item::Interface(_))) => {}
            Ok(None) => break,
            Err(CaptureFileError::Io { offset, .. }) => {
                assert_eq!(offset, 50);
                failures += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((packets, failures), (2, 1));
}

/// A stream longer than the window, with records of many sizes, comes out whole.
#[test]
fn records_straddle_the_window() {
    let mut file = Builder::pcap(false, 0xa1b2_c3d4, (2, 4), 1);
    let data: Vec<u8> = (0..200_000u32).map(|index| index as u8).collect();
    for index in 0..40u32 {
        let captured = (index * 7919) % 200_000;
        file.record(index, 0, (captured, captured), &data[..captured as usize]);
    }
    let all = read_clean(&file.bytes);
    assert_eq!(all.packets.len(), 40);
    for (index, packet) in all.packets.iter().enumerate() {
        assert_eq!(packet.data, data[..(index * 7919) % 200_000]);
    }
}

/// A block that claims 16 MiB and has little takes little.
#[test]
fn a_lying_length_takes_no_memory() {
    let mut file = Builder::section(false);
    file.u32(5).u32(MAX_BLOCK_BYTES).u32(0);
    let mut reader = CaptureReader::new(&file.bytes[..]).expect("the section is there");
    assert!(matches!(reader.next(), Err(CaptureFileError::Truncated { .. })));
    assert!(reader.input.window_bytes() < 1 << 20);
}

#[test]
fn interfaces_are_bounded() {
    let mut file = Builder::section(false);
    for _ in 0..=MAX_INTERFACES {
        file.interface(1, 0, None);
    }
    let all = read(&file.bytes);
    assert_eq!(all.interfaces.len(), MAX_INTERFACES as usize);
    assert!(matches!(all.error, Some(CaptureFileError::Unsupported { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is changed, nothing panics, and `read` checks the bound of the memory.
    #[test]
    fn changed_files_do_no_harm(
        which in 0..3,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut file = match which {
            0 => small_pcap(false),
            1 => small_pcap(true),
            _ => small_pcapng(),
        };
        for (at, value) in changes {
            let at = at.index(file.len());
            file[at] = value;
        }
        read(&file);
    }

    #[test]
    fn noise_does_no_harm(which in 0..4, noise in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut file = match which {
            0 => Builder::pcap(true, 0xa1b2_c3d4, (2, 4), 239),
            1 => Builder::pcap(true, 0xa1b2_c3d4, (2, 3), 220),
            2 => Builder::section(true),
            _ => Builder { big: false, bytes: Vec::new() },
        };
        file.raw(&noise);
        read(&file.bytes);
    }

    #[test]
    fn host_order_does_no_harm(
        link_type in prop::sample::select(vec![113u16, 189, 220, 239, 276]),
        mut frame in prop::collection::vec(0u8..16, 0..200),
    ) {
        host_order::to_little_endian(link_type, &mut frame);
    }
}
