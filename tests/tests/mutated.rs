//! Streams of real blocks, mutated by a seed, against a running relay and a running viewer. A failure
//! prints its seed; `RINGCAST_MUTATION_SEED` runs it alone.

use std::fs;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use tests::peer::{FakeRelay, RawPeer, TEXT};
use tests::process::{Process, relay};
use tests::samples::{noise, udp_frame};
use tests::transfer::{Transfer, await_packet, frames};
use tests::{captures, program, tshark};
use wire::Interface;
use wire::block::{Epoch, HEADER_BYTES, HEADER_BYTES_MAX, Kind, PackedBlock, StreamKey};
use wire::capture_file::{CaptureReader, Item};
use wire::clock::wall_ns;
use wire::description::Description;
use wire::ledger::Report;
use wire::message::{Announcement, Control, PROTOCOL, Role, StreamStatus};
use wire::pack::{Compression, PackError, Packer};
use wire::pool::Pool;

/// What CI runs.
const SEEDS: [u64; 4] = [1, 2, 3, 4];
/// Connections of a mutating publisher for each seed; each sends a stream of some thirty blocks.
const CONNECTIONS: u64 = 12;
/// Connections that a viewer makes to a mutating relay. Between two it waits ever longer.
const ROUNDS: u64 = 3;
/// Bytes of a block before compression: small, so that there are many.
const BODY_BYTES: usize = 1 << 10;
const RELAY_MEMORY_BYTES: u64 = 64 << 20;
/// What a process takes beside its budget: code, stacks, what the allocator keeps.
const MARGIN_BYTES: u64 = 64 << 20;
const FIRST_S: u32 = 1_700_000_000;

fn seeds() -> Vec<u64> {
    match std::env::var("RINGCAST_MUTATION_SEED") {
        Ok(seed) => vec![seed.parse().expect("RINGCAST_MUTATION_SEED is a number")],
        Err(_) => SEEDS.to_vec(),
    }
}

/// Splitmix64: the same numbers for the same seed, for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn is_one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

/// Packets to make blocks of: from a real mix where the captures are there.
fn packets() -> Vec<Vec<u8>> {
    let Some(captures) = captures() else {
        return (0..600).map(|number| udp_frame(1, 2, &noise(number, 40 + number as usize * 2))).collect();
    };
    let file = fs::File::open(captures.join("mix-ethernet.pcap")).expect("it is among the captures");
    let mut reader = CaptureReader::new(file).expect("a capture file");
    let (mut packets, mut number) = (Vec::new(), 0);
    while packets.len() < 600
        && let Some(item) = reader.next().expect("a sound file")
    {
        if let Item::Packet(packet) = item {
            number += 1;
            if number % 20 == 0 {
                packets.push(packet.data.to_vec());
            }
        }
    }
    packets
}

/// A whole stream: its description, its packets, its end.
fn stream(key: StreamKey, packets: &[Vec<u8>], random: &mut Random) -> Vec<PackedBlock> {
    let compression = if random.is_one_in(3) { Compression::None } else { Compression::Lz4 };
    let mut packer = Packer::new(key, Pool::new(64 << 20), BODY_BYTES, compression);
    let interface = Interface { name: "eth9".into(), link_type: 1, snaplen: 262_144, ..Interface::default() };
    let description = Description {
        name: "liar".into(),
        agent: "a test".into(),
        opened_ns: wall_ns(),
        predecessor: None,
        file: None,
        interfaces: vec![interface],
    };
    let mut blocks = vec![packer.seal_json(Kind::Description, &description, wall_ns(), false).expect("room")];
    for (number, data) in packets.iter().enumerate() {
        let time_ns = (u64::from(FIRST_S) + number as u64) * 1_000_000_000;
        let options: &[u8] = if number % 2 == 0 { &[] } else { &[2, 0, 4, 0, 1, 0, 0, 0] };
        let push = |packer: &mut Packer| packer.push(0, time_ns, data.len() as u32, [&data[..]], options);
        if let Err(PackError::Full) = push(&mut packer) {
            blocks.extend(packer.seal());
            push(&mut packer).expect("an empty block has room");
        }
    }
    blocks.extend(packer.seal());
    blocks.push(packer.seal_json(Kind::Report, &Report::default(), wall_ns(), true).expect("room"));
    blocks
}

/// Makes the checksums right again, as far as there is a header; so that what is behind them is reached.
fn fix(block: &mut [u8], body_too: bool) {
    if block.len() < HEADER_BYTES {
        return;
    }
    let header_bytes = usize::from(u16::from_le_bytes([block[8], block[9]]));
    if !(HEADER_BYTES..=HEADER_BYTES_MAX.min(block.len())).contains(&header_bytes) {
        return;
    }
    if body_too {
        let crc = crc32fast::hash(&block[header_bytes..]);
        block[80..84].copy_from_slice(&crc.to_le_bytes());
    }
    let crc = crc32fast::hash(&block[..header_bytes - 4]);
    block[header_bytes - 4..header_bytes].copy_from_slice(&crc.to_le_bytes());
}

fn put(block: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = block.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// One block, changed in one way.
fn mutate_block(block: &mut Vec<u8>, random: &mut Random) {
    let length = block.len();
    let body = HEADER_BYTES.min(length);
    match random.below(9) {
        0 => {
            for _ in 0..=random.below(8) {
                let at = random.below(length);
                block[at] ^= 1 << random.below(8);
            }
        }
        1 => block.truncate(random.below(length)),
        2 => block.extend_from_slice(&noise(random.next(), 1 + random.below(3000))),
        3 => {
            // A field of the header: small, large, or anything.
            let at = 8 + 2 * random.below(40);
            let value = [0, 1, u64::MAX, 16 << 20, 1 << 31, random.next()][random.below(6)];
            let width = [2, 4, 8][random.below(3)];
            put(block, at, &value.to_le_bytes()[..width]);
        }
        4 => {
            // Within the body, where lengths of packets are.
            for _ in 0..=random.below(4) {
                let at = body + random.below(length - body);
                let value = [0, 0xff, random.next() as u8][random.below(3)];
                put(block, at, &[value]);
            }
        }
        5 => {
            // As if it came from another body: a run of it moves.
            let run = random.below(200);
            let (from, to) = (body + random.below(length - body), body + random.below(length - body));
            let copied = block[from..(from + run).min(length)].to_vec();
            put(block, to, &copied);
        }
        6 => {
            // Declares that it unpacks to the most that there is.
            put(block, 6, &[1]);
            put(block, 72, &(16u32 << 20).to_le_bytes());
        }
        7 => {
            // A bomb: it does unpack to so much, of one byte. (LZ4's block format: a literal, then a
            // match of distance 1 whose length goes on by 255 for each further byte.)
            let raw_bytes = [1u32 << 20, 16 << 20][random.below(2)];
            let mut bomb = vec![0x1f, 0, 1, 0];
            let mut rest = raw_bytes as usize - 1 - 19 - 5;
            while rest >= 255 {
                bomb.push(255);
                rest -= 255;
            }
            bomb.extend_from_slice(&[rest as u8, 0x50, 0, 0, 0, 0, 0]);
            block.truncate(body);
            block.extend_from_slice(&bomb);
            put(block, 6, &[1]);
            put(block, 72, &raw_bytes.to_le_bytes());
            put(block, 76, &(bomb.len() as u32).to_le_bytes());
        }
        _ => {
            // A body of another length, which the header knows.
            block.truncate(body + random.below(length - body));
            let packed = (block.len() - body.min(block.len())) as u32;
            put(block, 76, &packed.to_le_bytes());
            if random.is_one_in(2) {
                put(block, 72, &packed.to_le_bytes());
            }
        }
    }
}

/// The stream as a bad peer sends it. `seldom`: one block in so many is changed.
fn mutate(blocks: &[PackedBlock], seldom: usize, random: &mut Random) -> Vec<Vec<u8>> {
    let mut messages: Vec<Vec<u8>> = Vec::new();
    for block in blocks {
        let mut bytes = block.bytes().to_vec();
        if random.is_one_in(seldom) {
            mutate_block(&mut bytes, random);
            if random.is_one_in(2) {
                let body_too = !random.is_one_in(4);
                fix(&mut bytes, body_too);
            }
        }
        if random.is_one_in(12) {
            messages.push(bytes.clone());
        }
        messages.push(bytes);
        if random.is_one_in(60) {
            let (last, other) = (messages.len() - 1, random.below(messages.len()));
            messages.swap(last, other);
        }
    }
    messages
}

/// Waits until the other end has read all that was sent: an answer to a ping, or its reason to close.
/// `None`: it goes on.
fn answer(peer: &mut RawPeer) -> Option<String> {
    peer.control(&Control::Ping { clock_ns: 42 });
    let mut reason = None;
    while let Some((opcode, payload)) = peer.receive() {
        match (opcode, Control::from_json(&payload)) {
            (TEXT, Ok(Control::Pong { ping_ns: 42, .. })) => return None,
            (TEXT, Ok(Control::Error { reason: text })) => reason = Some(text),
            _ => {}
        }
    }
    Some(reason.expect("whoever is closed is told why"))
}

/// Most memory a process has had, in bytes.
fn peak_bytes(process: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel says");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

/// Wireshark's library reads a file to its end, too.
fn is_read_by_wireshark(path: &Path) {
    if tshark::is_available() {
        let (text, is_sound) = tshark::capinfos(path);
        assert!(is_sound, "{text}");
    }
}

fn viewer(url: &str, out: &Path, arguments: &[&str]) -> Process {
    let mut command = Command::new(program("viewer"));
    Process::start_quietly(command.args(["--relay", url, "-w"]).arg(out).args(arguments))
}

/// A publisher that sends what is almost right: the sound ones go on, complete and equal; the relay
/// says why it closes, and keeps to its memory; a viewer that takes the bad streams writes a file that
/// is whole.
#[test]
fn a_mutated_stream_harms_nobody_but_its_sender() {
    let packets = packets();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let memory = RELAY_MEMORY_BYTES.to_string();
    let (relay, url) = relay(&["--memory", &memory, "--viewer-queue", "8MiB", "--recent", "8MiB"]);
    let mut transfer = Transfer::start(&url, folder.path());
    let out = folder.path().join("bad.pcapng");
    let watcher = viewer(&url, &out, &["--sniffer", "liar"]);
    transfer.goes_on(&packets[..50]);
    let (mut closed, mut sent) = (0, 0);
    for seed in seeds() {
        println!("RINGCAST_MUTATION_SEED={seed}");
        let mut random = Random(seed);
        for connection in 0..CONNECTIONS {
            let key = StreamKey { epoch: Epoch((seed << 20) + connection + 1), stream: 0 };
            let mut peer = RawPeer::hello(&url, Role::Publish, "liar", key.epoch.0);
            let interfaces = vec!["eth9".to_owned()];
            peer.control(&Control::Stream(Announcement { key, interfaces, ..Announcement::default() }));
            let first = random.below(packets.len() - 300);
            let blocks = stream(key, &packets[first..first + 300], &mut random);
            // Some break at once, some go far.
            let seldom = [2, 8, 40][random.below(3)];
            for message in mutate(&blocks, seldom, &mut random) {
                peer.block(&message);
                sent += 1;
            }
            if let Some(reason) = answer(&mut peer) {
                assert!(!reason.is_empty() && !reason.contains(|c: char| c.is_control()), "{reason:?}");
                closed += 1;
            }
        }
        let first = random.below(packets.len() - 50);
        transfer.goes_on(&packets[first..first + 50]);
        let peak = peak_bytes(&relay);
        assert!(peak < RELAY_MEMORY_BYTES + MARGIN_BYTES, "seed {seed}: the relay has had {peak} bytes");
        println!("{sent} blocks sent, {closed} connections closed, the relay has had {} MiB", peak >> 20);
    }
    assert!(closed > 0, "nothing was refused, so nothing was tested");
    transfer.finish();
    let watcher = watcher.terminate();
    assert_eq!(watcher.code(), 0, "{}", watcher.stderr);
    assert!(!watcher.stderr.contains("connection lost"), "{}", watcher.stderr);
    assert!(!frames(&out).is_empty());
    is_read_by_wireshark(&out);
    let ended = relay.terminate();
    assert_eq!(ended.code(), 0);
    for stderr in [&watcher.stderr, &ended.stderr] {
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
}

/// Takes a viewer up to its subscription, and joins it to a stream.
fn join(relay: &FakeRelay, key: StreamKey) -> RawPeer {
    let mut peer = relay.welcome(PROTOCOL);
    peer.await_control("subscribe");
    peer.control(&Control::Subscribed { streams: 1 });
    let interfaces = vec!["eth9".to_owned()];
    let status = StreamStatus { key, name: "liar".into(), interfaces, ..StreamStatus::default() };
    peer.control(&Control::Join { status, next_sequence: 0 });
    // From here on it comes back when the connection is lost; a first that fails ends it.
    assert!(is_heard(&mut peer), "it leaves a sound relay");
    peer
}

/// Whether a viewer has read all that was sent, and stays.
fn is_heard(peer: &mut RawPeer) -> bool {
    peer.control(&Control::Ping { clock_ns: 42 });
    while let Some((_, payload)) = peer.receive() {
        if matches!(Control::from_json(&payload), Ok(Control::Pong { .. })) {
            return true;
        }
    }
    false
}

/// A relay that sends what is almost right: the viewer drops what is corrupt, leaves the connection
/// when the protocol is broken, comes back, and its file is whole.
#[test]
fn a_viewer_survives_a_mutated_stream() {
    let packets = packets();
    let rounds = |seed: u64| {
        println!("RINGCAST_MUTATION_SEED={seed}");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let out = folder.path().join("out.pcapng");
        let relay = FakeRelay::new();
        let mut viewer = viewer(&relay.url(), &out, &[]);
        let mut random = Random(seed);
        let mut stayed = 0;
        for round in 0..ROUNDS {
            let key = StreamKey { epoch: Epoch((seed << 20) + round + 1), stream: 0 };
            let mut peer = join(&relay, key);
            let blocks = stream(key, &packets[..300], &mut random);
            for message in mutate(&blocks, 2 + random.below(6), &mut random) {
                // Most of what would close the connection is kept back, so that it goes far.
                if PackedBlock::new(Bytes::from(message.clone())).is_ok() || random.is_one_in(40) {
                    peer.block(&message);
                }
            }
            stayed += u32::from(is_heard(&mut peer));
            assert!(viewer.is_running(), "seed {seed}, round {round}: {}", viewer.said());
        }
        // What is sound arrives after all that.
        let truth = udp_frame(1, 2, &noise(seed, 300));
        let key = StreamKey { epoch: Epoch((seed << 20) + 0xfff), stream: 1 };
        let mut peer = join(&relay, key);
        for block in stream(key, std::slice::from_ref(&truth), &mut random) {
            peer.block(block.bytes());
        }
        await_packet(&out, &truth, || {});
        let peak = peak_bytes(&viewer);
        viewer.signal("TERM");
        peer.read_to_end();
        let ended = viewer.wait();
        assert_eq!(ended.code(), 0, "seed {seed}: {}", ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "seed {seed}: {}", ended.stderr);
        assert_eq!(frames(&out).last(), Some(&truth), "seed {seed}");
        is_read_by_wireshark(&out);
        let summary = ended.stderr.lines().last().unwrap_or_default().to_owned();
        println!("seed {seed}: stayed {stayed} times of {ROUNDS}, has had {} MiB: {summary}", peak >> 20);
        assert!(peak < MARGIN_BYTES * 2, "seed {seed}: the viewer has had {peak} bytes");
        summary
    };
    let seeds = seeds();
    let summaries: Vec<String> = std::thread::scope(|scope| {
        let spawn = |seed: &u64| {
            let (rounds, seed) = (&rounds, *seed);
            scope.spawn(move || rounds(seed))
        };
        let threads: Vec<_> = seeds.iter().map(spawn).collect();
        threads.into_iter().map(|thread| thread.join().expect("a seed failed, see above")).collect()
    });
    assert!(seeds.len() < 2 || summaries.iter().any(|one| one.contains("corrupt")), "{summaries:?}");
}
