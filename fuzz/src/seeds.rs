//! The seed corpora, made by our own encoders: small, and made anew each time, so none is kept.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use wire::Interface;
use wire::block::{Epoch, HEADER_BYTES, Kind, PackedBlock};
use wire::connection::RelayUrl;
use wire::connection::fuzzing::{Policy, client_request};
use wire::description::Description;
use wire::journal::{Config, Journal, RealFs};
use wire::ledger::{InterfaceTotals, Losses, Outage, OutageKind, Report, Stage};
use wire::message::{Announcement, Control, Cursor, Envelope, Role, Selection, StreamAck, StreamStatus};
use wire::pack::{Compression, Packer};
use wire::pcapng::{interface_description, interface_statistics, section_header};
use wire::pool::Pool;

use crate::{join, key};

/// Captures that are no larger become seeds.
const CAPTURE_BYTES_MAX: u64 = 4 << 10;
const CAPTURES_MAX: usize = 150;

/// Writes the seeds of every target below `directory`, and says how many files these are. Of
/// `captures`, a folder, small capture files become seeds too.
pub fn write(directory: &Path, captures: Option<&Path>) -> io::Result<usize> {
    let mut written = 0;
    let mut put = |target: &str, seeds: Vec<Vec<u8>>| -> io::Result<()> {
        let folder = directory.join(target);
        fs::create_dir_all(&folder)?;
        for (index, seed) in seeds.into_iter().enumerate() {
            fs::write(folder.join(format!("seed-{index:03}")), seed)?;
            written += 1;
        }
        Ok(())
    };
    put("access", access_seeds())?;
    put("block", block_seeds())?;
    put("message", message_seeds())?;
    put("websocket", websocket_seeds())?;
    put("handshake", handshake_seeds())?;
    put("capture_file", capture_seeds(captures)?)?;
    put("pcapng", pcapng_seeds())?;
    put("journal", journal_seeds()?)?;
    put("config", config_seeds())?;
    put("ring", ring_seeds())?;
    put("totals", vec![crate::totals_file()])?;
    for target in ["bpf", "downlink", "hub", "uplink"] {
        put(target, [200, 1_000, 4_000].map(|length| noise(target.len() as u64, length)).to_vec())?;
    }
    Ok(written)
}

/// Bytes without a pattern, the same for the same seed (xorshift64).
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(next).collect()
}

fn packer(stream: u32, compression: Compression) -> Packer {
    Packer::new(key(stream), Pool::new(16 << 20), 1 << 16, compression)
}

fn interface() -> Interface {
    Interface {
        name: "eth0".into(),
        description: Some("a port".into()),
        link_type: 1,
        snaplen: 262_144,
        filter: Some("tcp".into()),
        os: Some("Linux".into()),
        hardware: Some("e1000".into()),
        speed_bits: Some(1_000_000_000),
        mac: Some([2, 0, 0, 0, 0, 1]),
        fcs_bits: Some(32),
        ts_offset_s: -1,
    }
}

fn description() -> Description {
    Description {
        name: "host".into(),
        agent: "sniffer/0".into(),
        opened_ns: 5,
        predecessor: Some(key(1)),
        file: Some("a.pcap".into()),
        interfaces: vec![interface(), Interface::default()],
    }
}

fn report() -> Report {
    let mut report = Report::default();
    report.interfaces.push(InterfaceTotals {
        offered: 5,
        kernel_drops: 1,
        freezes: 1,
        interface_drops: Some(2),
    });
    report.outages.push(Outage {
        kind: OutageKind::InterfaceDown,
        interface: "eth0".into(),
        from_ns: 1,
        until_ns: Some(9),
    });
    report
}

/// A description, two blocks of packets and the end of a stream.
fn stream(stream: u32, compression: Compression) -> Vec<PackedBlock> {
    let mut packer = packer(stream, compression);
    let mut blocks = vec![packer.seal_json(Kind::Description, &description(), 1, false)];
    for count in [1, 6] {
        for number in 0..count {
            let data = [number as u8; 90];
            let options: &[u8] = if number % 2 == 0 { &[] } else { &[2, 0, 4, 0, 1, 0, 0, 0] };
            let pushed = packer.push(number % 3, 7, 100, [&data[..60 + number as usize * 5]], options);
            debug_assert!(pushed.is_ok());
        }
        blocks.push(packer.seal());
    }
    blocks.push(packer.seal_json(Kind::Report, &report(), 9, true));
    blocks.into_iter().flatten().collect()
}

/// A block that no seed has.
pub fn one_block(number: u32) -> PackedBlock {
    let block = stream(number, Compression::None).swap_remove(1);
    PackedBlock::new(Bytes::copy_from_slice(block.bytes())).unwrap_or(block)
}

fn access_seeds() -> Vec<Vec<u8>> {
    let token = format!(
        "token_id = \"k3v7q2m5x4ab\"\nsalt = \"{}\"\nhash = \"{}\"\n",
        "5a".repeat(16),
        "c3".repeat(32)
    );
    let sniffer = format!("[[access]]\nname = \"web-1\"\nrole = \"publish\"\npublish = [\"web-1\"]\n{token}");
    let desk = "# the desk\n[[access]]\nname = \"desk\"\nrole = \"subscribe\"\nsee = [\"web-*\", \"db-*\"]\n\
                expires = 2027-03-01T00:00:00Z\ncertificate = \"desk.example.net\"\n";
    let root = "[[access]]\nname = \"root\"\nrole = \"admin\"\ncertificate = \"spiffe://x/root\"\n";
    let inline = "access = [{ name = \"a\", role = \"admin\", certificate = \"10.0.0.1\" }]\n";
    let all = [&sniffer, desk, root].join("\n");
    [sniffer.as_str(), desk, root, inline, &all].map(|text| text.as_bytes().to_vec()).to_vec()
}

fn block_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for compression in [Compression::Lz4, Compression::None] {
        for block in stream(0, compression) {
            for flags in [3 | 0x60, 3 | 4 | 0x80, 1 | 8 | 0x60, 3 | 4 | 8 | 16 | 0x60, 0x60] {
                seeds.push([&[flags][..], block.bytes()].concat());
            }
        }
    }
    // A body of LZ4 that unpacks to far more than it is: the header says the truth, and does not.
    let body = lz4_flex::block::compress(&vec![0; 1 << 20]);
    for raw_bytes in [1 << 20, (1 << 20) - 1, 100] {
        let mut header = *one_block(0).header();
        (header.lz4, header.raw_bytes, header.packed_bytes) = (true, raw_bytes, body.len() as u32);
        let mut head = [0; HEADER_BYTES];
        header.emit(&mut head);
        seeds.push([&[1 | 0xe0][..], &head, &body].concat());
    }
    seeds
}

fn message_seeds() -> Vec<Vec<u8>> {
    let place = Cursor { key: key(1), next_sequence: 3, packets: 2, bytes: 1 };
    let name = "host".to_owned();
    let status =
        StreamStatus { key: key(1), name, interfaces: vec!["eth0".into()], ..StreamStatus::default() };
    let interfaces = vec!["eth0".to_owned()];
    let filter = Some("udp".to_owned());
    let announcement = Announcement {
        key: key(1),
        interfaces,
        filter,
        opened_ns: 1,
        predecessor: Some(key(0)),
        backlog: true,
    };
    let reason = "because".to_owned();
    let agent = "a/0".to_owned();
    let controls = [
        Control::Hello {
            protocol: 1,
            role: Role::Publish,
            name: "host".into(),
            epoch: Epoch(1),
            home: Epoch(2),
            former: Epoch(0),
            agent: agent.clone(),
            clock_ns: 7,
            token: Some(wire::secret::Secret::new("rct_a_b")),
        },
        Control::Welcome {
            protocol: 1,
            instance: Epoch(3),
            agent,
            clock_ns: 8,
            sees: vec!["web-*".to_owned()],
        },
        Control::Stream(announcement),
        Control::Ack { streams: vec![StreamAck { received: place, settled: 2 }] },
        Control::Takers { viewers: 2, marks: true },
        Control::Paced { wants: true },
        Control::Window { bytes: 9 },
        Control::Mark { epoch: Epoch(1), stream: 2, complete_through_ns: 3 },
        Control::Subscribe {
            selection: Selection {
                sniffers: vec!["web-*".into()],
                interfaces: vec!["{a,b}[0-9]".into()],
                marks: true,
                backlog: true,
            },
            cursors: vec![place],
        },
        Control::Progress { messages: 6 },
        Control::Subscribed { streams: 1 },
        Control::Join { status: status.clone(), next_sequence: 4 },
        Control::Skipped {
            key: key(1),
            first_sequence: 1,
            next_sequence: 2,
            packets: 3,
            bytes: 4,
            stage: Stage::ViewerQueue,
        },
        Control::End { place, reason: reason.clone() },
        Control::Gone { place, reason: reason.clone(), ended: true },
        Control::List,
        Control::Streams { streams: vec![status], omitted: 0 },
        Control::Ping { clock_ns: 1 },
        Control::Pong { ping_ns: 1, clock_ns: 2 },
        Control::Error { reason },
    ];
    let mut losses = Losses::default();
    losses.add(Stage::Corrupt, 3, 4);
    let json =
        [serde_json::to_vec(&description()), serde_json::to_vec(&report()), serde_json::to_vec(&losses)];
    let envelope = Envelope { resend: true, ..Envelope::default() }.emit().to_vec();
    let controls = controls.iter().map(Control::to_json);
    controls.chain(json.into_iter().flatten()).chain([envelope]).collect()
}

/// A frame of a WebSocket.
fn frame(head: u8, mask: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
    let bit = if mask.is_some() { 0x80 } else { 0 };
    let mut out = vec![head];
    match payload.len() {
        length @ 0..=125 => out.push(bit | length as u8),
        length => {
            out.push(bit | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
    }
    out.extend(mask.iter().flatten());
    let keys = mask.unwrap_or_default();
    out.extend(payload.iter().zip(keys.iter().cycle()).map(|(byte, key)| byte ^ key));
    out
}

fn websocket_seeds() -> Vec<Vec<u8>> {
    let block = one_block(0);
    let data = [&Envelope::default().emit()[..], block.bytes()].concat();
    let mut seeds = Vec::new();
    for mask in [None, Some([1, 2, 3, 4])] {
        let streams = [
            frame(0x81, mask, br#"{"type":"list"}"#),
            frame(0x82, mask, &data),
            [frame(0x01, mask, b"frag"), frame(0x89, mask, b"ping"), frame(0x80, mask, b"ment")].concat(),
            [frame(0x02, mask, &data[..99]), frame(0x8a, mask, b""), frame(0x00, mask, &data[99..])].concat(),
            [frame(0x88, mask, b"\x03\xe8bye"), frame(0x88, mask, b"")].concat(),
            [frame(0x82, mask, &[5; 40_000]), frame(0x81, mask, b"x")].concat(),
        ];
        let all = streams.concat();
        for stream in streams.iter().chain([&all]) {
            seeds.push(join(&[stream, &[1, 7, 0]]));
            seeds.push(join(&[stream, &[200]]));
        }
    }
    seeds
}

fn handshake_seeds() -> Vec<Vec<u8>> {
    let accept = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                  Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
                  Sec-WebSocket-Protocol: ringcast.1\r\n\r\n";
    let mut seeds = vec![
        accept.as_bytes().to_vec(),
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\n\r\nno\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec(),
    ];
    if let Ok(url) = RelayUrl::parse("ws://relay.example.net:9440/path")
        && let Ok((request, _)) = client_request(&url, &Policy::default())
    {
        seeds.push(request);
    }
    seeds
}

/// A pcap file in both byte orders and resolutions, pcapng as we write it, and captures from outside.
fn capture_seeds(captures: Option<&Path>) -> io::Result<Vec<Vec<u8>>> {
    let mut seeds = vec![pcapng_file()];
    for magic in [0xa1b2_c3d4_u32, 0xa1b2_3c4d] {
        for big in [false, true] {
            let word = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
            let version = if big { [0, 2, 0, 4] } else { [2, 0, 4, 0] };
            let mut file = [word(magic), version].concat();
            for value in [0, 0, 262_144, 1, 1_700_000_000, 5, 60, 70] {
                file.extend_from_slice(&word(value));
            }
            file.extend_from_slice(&[9; 60]);
            seeds.push(file);
        }
    }
    let Some(captures) = captures.filter(|folder| folder.is_dir()) else { return Ok(seeds) };
    let mut folders = vec![captures.to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if metadata.len() <= CAPTURE_BYTES_MAX && entry.path().extension().is_some_and(is_capture)
            {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    for file in files.into_iter().take(CAPTURES_MAX) {
        seeds.push(fs::read(file)?);
    }
    Ok(seeds)
}

fn is_capture(extension: &std::ffi::OsStr) -> bool {
    ["pcap", "pcapng", "cap", "ntar"].iter().any(|known| extension == *known)
}

fn pcapng_file() -> Vec<u8> {
    let mut file = Vec::new();
    section_header(&mut file, Some("a machine"), Some("Linux"), "fuzz");
    for _ in 0..3 {
        interface_description(&mut file, &interface(), "host:eth0");
    }
    file.extend_from_slice(&packets());
    interface_statistics(&mut file, 0, &Default::default());
    file
}

/// A run of packet blocks.
fn packets() -> Vec<u8> {
    stream(0, Compression::None)[2].body().to_vec()
}

fn pcapng_seeds() -> Vec<Vec<u8>> {
    let json = serde_json::to_vec(&interface()).unwrap_or_default();
    vec![join(&[&packets(), &json, b"host:eth0"]), join(&[&packets(), b"", "h\u{f6}st".as_bytes()])]
}

/// Makes the checksums of a segment right again: of its header, of each frame and block where its
/// length leads, and of the seal.
pub fn fix_segment(segment: &mut [u8], number: u64) {
    const HEADER: usize = 32;
    const FRAME: usize = 16;
    const TRAILER: usize = 64;
    let u64_at = |bytes: &[u8], at: usize| {
        bytes.get(at..at + 8).and_then(|eight| eight.try_into().ok()).map_or(0, u64::from_le_bytes)
    };
    if segment.len() < HEADER {
        return;
    }
    segment[8..16].copy_from_slice(&number.to_le_bytes());
    let crc = crc32fast::hash(&segment[..28]);
    segment[28..32].copy_from_slice(&crc.to_le_bytes());
    let salt = u64_at(segment, 16);
    let mark = (salt as u32 | 1).to_le_bytes();
    let mut at = HEADER;
    while at + FRAME + HEADER_BYTES <= segment.len() && segment[at..at + 4] == mark {
        let length = [segment[at + 4], segment[at + 5], segment[at + 6], segment[at + 7]];
        let end = (at + FRAME).saturating_add(u32::from_le_bytes(length) as usize);
        if end > segment.len() {
            break;
        }
        crate::fix_block(&mut segment[at + FRAME..end], true);
        let mut crc = crc32fast::Hasher::new_with_initial((salt >> 32) as u32);
        crc.update(&(at as u64).to_le_bytes());
        crc.update(&segment[at..at + 12]);
        crc.update(&segment[at + FRAME..(at + FRAME + HEADER_BYTES).min(end)]);
        segment[at + 12..at + 16].copy_from_slice(&crc.finalize().to_le_bytes());
        at = end.next_multiple_of(8);
    }
    let Some(trailer) = segment.len().checked_sub(TRAILER) else { return };
    if segment[trailer..].starts_with(b"RCSEAL") {
        segment[trailer + 8..trailer + 16].copy_from_slice(&number.to_le_bytes());
        let spans = (u64_at(segment, trailer + 48) as u32 as usize).saturating_mul(72);
        let Some(start) = trailer.checked_sub(spans) else { return };
        segment[trailer + 24..trailer + 32].copy_from_slice(&(start as u64).to_le_bytes());
        let end = segment.len() - 4;
        let crc = crc32fast::hash(&segment[start..end]);
        segment[end..].copy_from_slice(&crc.to_le_bytes());
    }
}

/// A sealed segment, one that is being written, one that is torn, with and without a cursor.
fn journal_seeds() -> io::Result<Vec<Vec<u8>>> {
    let directory = std::env::temp_dir().join(format!("ringcast-fuzz-seeds-{}", std::process::id()));
    let config = Config { directory: directory.clone(), cap_bytes: 1 << 20, segment_bytes: Some(64 << 10) };
    let now = Instant::now();
    let (mut journal, _) = Journal::open(&config, RealFs, now).map_err(io::Error::other)?;
    let mut last = None;
    for block in (0..2).flat_map(|number| stream(number, Compression::Lz4)) {
        last = Some(journal.append(&block, now).map_err(io::Error::other)?);
    }
    journal.sync().map_err(io::Error::other)?;
    let mut open = fs::read(directory.join("0000000001.seg"))?;
    // What is allocated ahead is zeros.
    open.truncate(open.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 64));
    if let Some(last) = last {
        journal.acknowledge(last, now);
    }
    journal.close().map_err(io::Error::other)?;
    let sealed = fs::read(directory.join("0000000001.seg"))?;
    let cursor = fs::read(directory.join("cursor"))?;
    fs::remove_dir_all(&directory)?;
    let mut seeds = Vec::new();
    for flags in [0, 7, 15] {
        for (first, second) in [
            (&sealed[..], &open[..]),
            (&open, &sealed),
            (&sealed, &[]),
            (&[], &open),
            (&open[..open.len() / 2], &[]),
        ] {
            seeds.push(join(&[&[flags], first, second, &cursor]));
            seeds.push(join(&[&[flags], first, second, &[]]));
        }
    }
    Ok(seeds)
}

fn config_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "64MiB",
        "10GiB",
        "1.5s",
        "250ms",
        "2.5Gbit",
        "100kbit",
        "ws://127.0.0.1:9440",
        "ws://[::1]:9440/path",
        "wss://relay.example.net/x?y",
        "2026-11-24T10:00:00.123456789Z",
        "00000000000000ff",
        "web-*\n{a,b}[0-9]?\n**/x",
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

/// A block of the kernel's ring with two frames.
fn ring_seeds() -> Vec<Vec<u8>> {
    let mut block = vec![0; 48 + 2 * 128];
    for (at, word) in [(12, 2), (16, 48), (20, block.len() as u32)] {
        block[at..at + 4].copy_from_slice(&u32::to_ne_bytes(word));
    }
    for (base, next) in [(48, 128), (176, 0)] {
        let words = [next, 1_700_000_000, 5, 40, 60, 1 | 1 << 4 | 1 << 6];
        for (index, word) in words.into_iter().enumerate() {
            block[base + index * 4..base + index * 4 + 4].copy_from_slice(&u32::to_ne_bytes(word));
        }
        block[base + 24..base + 26].copy_from_slice(&82u16.to_ne_bytes());
    }
    vec![block]
}
