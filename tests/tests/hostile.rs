//! Peers that lie, stall and break off: each closes itself only, with a reason that can be read,
//! while a transfer between sound peers goes on.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tests::peer::{BINARY, CLOSE, FakeRelay, RawPeer, TEXT, frame, hello, upgrade_request};
use tests::process::{DEADLINE, Process, relay};
use tests::samples::{Order, Sample, noise, udp_frame};
use tests::transfer::{Transfer, frames};
use tests::{judge, program, tshark};
use wire::Interface;
use wire::block::{BLOCK_BYTES_MAX, Epoch, HEADER_BYTES, Header, Kind, PackedBlock, StreamKey};
use wire::clock::wall_ns;
use wire::description::Description;
use wire::ledger::Report;
use wire::message::{
    Announcement, Control, Cursor, ENVELOPE_BYTES, HELLO_BYTES_MAX, PROTOCOL, Role, SUBPROTOCOL, StreamAck,
    StreamStatus,
};
use wire::pack::{Compression, Packer};
use wire::pool::Pool;

/// Something that peers do to the relay at a URL.
type Attack = fn(&str);

const EPOCH: u64 = 0x5eed;
const FIRST_S: u32 = 1_700_000_000;

/// Packets to feed a transfer with.
fn some() -> Vec<Vec<u8>> {
    (0..50).map(|number| udp_frame(1, 2, &noise(number, 200 + number as usize))).collect()
}

fn key(stream: u32) -> StreamKey {
    StreamKey { epoch: Epoch(EPOCH), stream }
}

fn packer(stream: u32) -> Packer {
    Packer::new(key(stream), Pool::new(64 << 20), 1 << 20, Compression::None)
}

/// A block with one packet.
fn packets(packer: &mut Packer, data: &[u8]) -> PackedBlock {
    let time_ns = u64::from(FIRST_S) * 1_000_000_000;
    packer.push(0, time_ns, data.len() as u32, [data], &[]).expect("room");
    packer.seal().expect("a packet was pushed")
}

fn description(packer: &mut Packer) -> PackedBlock {
    let interface = Interface { name: "eth9".into(), link_type: 1, snaplen: 262_144, ..Interface::default() };
    let description = Description {
        name: "liar".into(),
        agent: "a test".into(),
        opened_ns: wall_ns(),
        predecessor: None,
        file: None,
        interfaces: vec![interface],
    };
    packer.seal_json(Kind::Description, &description, wall_ns(), false).expect("a buffer")
}

fn end(packer: &mut Packer) -> PackedBlock {
    packer.seal_json(Kind::Report, &Report::default(), wall_ns(), true).expect("a buffer")
}

/// The block with another header: lengths and checksums of header and body fit.
fn with_header(block: &PackedBlock, change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut header = *block.header();
    change(&mut header);
    let mut head = [0; HEADER_BYTES];
    header.emit(&mut head);
    [&head[..], block.body()].concat()
}

fn announce(peer: &mut RawPeer, epoch: u64) {
    let interfaces = vec!["eth9".to_owned()];
    let key = StreamKey { epoch: Epoch(epoch), stream: 0 };
    let announcement = Announcement { key, interfaces, opened_ns: 1, ..Announcement::default() };
    peer.control(&Control::Stream(announcement));
}

fn publisher(url: &str) -> RawPeer {
    let mut peer = RawPeer::hello(url, Role::Publish, "liar", EPOCH);
    announce(&mut peer, EPOCH);
    peer
}

/// What a peer did, and the words it must be told.
fn is_told(mut peer: RawPeer, text: &str) {
    let (error, close) = peer.reasons();
    let (error, close) = (error.expect("an error message"), close.expect("a close frame"));
    assert!(error.contains(text), "no {text:?} in {error:?}");
    // A close frame has room for 123 bytes.
    assert!(error.starts_with(close.as_str()) && !close.is_empty(), "{close:?} is not of {error:?}");
}

fn lies_of_a_sniffer(url: &str) {
    let mut pack = packer(0);
    let block = packets(&mut pack, b"the truth");
    let bytes = block.bytes().to_vec();
    let altered = |at: usize| {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x40;
        bytes
    };
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (Vec::new(), "0 bytes"),
        (bytes[..40].to_vec(), "40 bytes"),
        (altered(0), "magic"),
        (altered(4), "version"),
        (altered(8), "header length"),
        (altered(30), "header checksum"),
        (bytes[..bytes.len() - 1].to_vec(), "bytes in all"),
        ([&bytes[..], &[0]].concat(), "bytes in all"),
        (with_header(&block, |header| header.key.epoch = Epoch(EPOCH + 1)), "was not announced"),
        (with_header(&block, |header| header.key.stream = 7), "was not announced"),
        (with_header(&block, |header| header.raw_bytes = u32::MAX), "exceeds"),
        (with_header(&block, |header| header.packed_bytes += 1), "a stored body"),
        (with_header(&block, |header| header.time_min_ns = header.time_max_ns + 1), "reversed"),
        (with_header(&block, |header| header.packets_before = u64::MAX), "overflow"),
        (with_header(&block, |header| header.sequence = u64::MAX), "overflow"),
    ];
    for (bytes, text) in cases {
        let mut peer = publisher(url);
        peer.block(&bytes);
        is_told(peer, text);
    }
    // An envelope of another kind, and less than one.
    let mut peer = publisher(url);
    peer.frame(BINARY, &[&[9; ENVELOPE_BYTES][..], &bytes].concat());
    is_told(peer, "envelope");
    let mut peer = publisher(url);
    peer.frame(BINARY, &[1, 0, 0]);
    is_told(peer, "envelope");
}

/// A sequence that goes back is a resend: it is acknowledged, not forwarded, and nobody is closed.
/// Counters that go back are a lie.
fn sequences_that_go_back(url: &str) {
    let mut peer = RawPeer::hello(url, Role::Publish, "liar", EPOCH + 1);
    announce(&mut peer, EPOCH + 1);
    let mut pack = Packer::new(
        StreamKey { epoch: Epoch(EPOCH + 1), stream: 0 },
        Pool::new(64 << 20),
        1 << 20,
        Compression::None,
    );
    let (first, second) = (packets(&mut pack, b"first"), packets(&mut pack, b"second"));
    for block in [&first, &second, &first, &second, &first] {
        peer.block(block.bytes());
    }
    while let Control::Ack { streams } = peer.await_control("ack") {
        assert!(streams[0].received.next_sequence <= 2, "{streams:?}");
        if streams[0].received.next_sequence == 2 {
            break;
        }
    }
    peer.block(&with_header(&second, |header| {
        header.sequence = 2;
        (header.packets_before, header.bytes_before) = (0, 0);
    }));
    is_told(peer, "counters go back");
}

fn broken_messages(url: &str) {
    // Declared, never sent: refused by the length alone.
    let oversized = |length: u64, opcode: u8| {
        let mut bytes = vec![0x80 | opcode, 0x80 | 127];
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&[1, 2, 3, 4]);
        bytes
    };
    for length in [1 << 40, (BLOCK_BYTES_MAX + ENVELOPE_BYTES) as u64 + 1] {
        let mut peer = publisher(url);
        peer.send(&oversized(length, BINARY));
        is_told(peer, &format!("{length} bytes"));
    }
    let mut peer = publisher(url);
    peer.send(&oversized(HELLO_BYTES_MAX as u64 + 1, TEXT));
    is_told(peer, "at most 65536");
    // A stranger has less room.
    for (opcode, text) in [(TEXT, "at most 65536"), (BINARY, "no binary message is taken")] {
        let mut peer = RawPeer::open(url);
        peer.send(&oversized(HELLO_BYTES_MAX as u64 + 1, opcode));
        is_told(peer, text);
    }
    // The first bit of a length is not one.
    let mut peer = publisher(url);
    peer.send(&oversized(1 << 63, BINARY));
    is_told(peer, "websocket");

    let mut peer = publisher(url);
    peer.send(&frame(TEXT, br#"{"type":"ping","clock_ns":1}"#, false));
    is_told(peer, "mask");
    for (bytes, text) in [
        (frame(0, b"continues nothing", true), "websocket"),
        (frame(3, b"no such opcode", true), "websocket"),
        (frame(9, &[0; 126], true), "websocket"),
        ([&[0xc1, 0x80][..], &[0; 4]].concat(), "websocket"),
        (frame(TEXT, &[0xff, 0xfe], true), "not UTF-8"),
        (frame(TEXT, b"{", true), "control message"),
        (frame(TEXT, br#"{"type":"stream","stream":-1}"#, true), "control message"),
        (frame(TEXT, br#"{"no":"type"}"#, true), "control message"),
    ] {
        let mut peer = publisher(url);
        peer.send(&bytes);
        is_told(peer, text);
    }
    let deep = [vec![b'['; 30_000], vec![b']'; 30_000]].concat();
    let mut peer = publisher(url);
    peer.frame(TEXT, &deep);
    is_told(peer, "control message");
}

fn peers_out_of_turn(url: &str) {
    let mut peer = publisher(url);
    peer.control(&hello(Role::Publish, "liar", EPOCH));
    is_told(peer, "a second hello");
    let mut peer = RawPeer::hello(url, Role::Subscribe, "", 0);
    peer.control(&hello(Role::Subscribe, "", 0));
    is_told(peer, "a second hello");

    let mut pack = packer(0);
    let block = packets(&mut pack, b"from a viewer");
    let mut peer = RawPeer::hello(url, Role::Subscribe, "", 0);
    peer.block(block.bytes());
    is_told(peer, "without being a publisher");
    let mut peer = RawPeer::open(url);
    peer.block(block.bytes());
    is_told(peer, "no binary message is taken");

    let mut peer = RawPeer::open(url);
    peer.control(&Control::List);
    is_told(peer, "not a hello");
    let mut peer = publisher(url);
    peer.control(&Control::Subscribe { selection: Default::default(), cursors: Vec::new() });
    is_told(peer, "not for it to send");
    let mut peer = RawPeer::hello(url, Role::Subscribe, "", 0);
    announce(&mut peer, EPOCH);
    is_told(peer, "not for it to send");
    let mut peer = RawPeer::hello(url, Role::Subscribe, "", 0);
    let globs = vec!["a[".to_owned()];
    let selection = wire::message::Selection { sniffers: globs, ..Default::default() };
    peer.control(&Control::Subscribe { selection, cursors: Vec::new() });
    is_told(peer, "a[");

    let mut peer = RawPeer::open(url);
    let Control::Hello { role, name, epoch, home, former, agent, clock_ns, token, .. } =
        hello(Role::Publish, "new", 5)
    else {
        unreachable!("it is a hello");
    };
    peer.control(&Control::Hello {
        protocol: PROTOCOL + 1,
        role,
        name,
        epoch,
        home,
        former,
        agent,
        clock_ns,
        token,
    });
    is_told(peer, "protocol 2");
}

fn other_protocols(url: &str) {
    let answer = |bytes: &[u8]| {
        let mut peer = RawPeer::connect(url);
        peer.send(bytes);
        peer.read_to_end()
    };
    let text = answer(b"GET /index.html HTTP/1.1\r\nHost: relay\r\n\r\n");
    assert!(text.starts_with("HTTP/1.1 426 Upgrade Required\r\n"), "{text}");
    assert!(text.contains("\r\nUpgrade: websocket\r\n") && text.contains("Ringcast relay"), "{text}");
    let text = answer(upgrade_request("chat.7").as_bytes());
    assert!(
        text.starts_with("HTTP/1.1 400 ") && text.contains("chat.7") && text.contains(SUBPROTOCOL),
        "{text}"
    );
    // A page in somebody's browser.
    let page =
        upgrade_request(SUBPROTOCOL).replace("Host: relay", "Host: relay\r\nOrigin: https://a.example.net");
    let text = answer(page.as_bytes());
    assert!(text.starts_with("HTTP/1.1 403 ") && text.contains("origin https://a.example.net"), "{text}");
    let text = answer(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03 a TLS hello\r\n\r\n");
    assert!(text.starts_with("HTTP/1.1 400 ") && text.contains("not HTTP"), "{text}");
    for seed in 0..20 {
        let text = answer(&noise(seed, 9000));
        assert!(text.starts_with("HTTP/1.1 400 "), "{text}");
    }
    let endless = [&b"GET / HTTP/1.1\r\nX: "[..], &[b'a'; 100_000]].concat();
    let text = answer(&endless);
    assert!(text.starts_with("HTTP/1.1 400 ") && text.contains("8192"), "{text}");
}

fn thousand_connections(url: &str, relay: &mut Process) {
    let descriptors =
        |relay: &Process| fs::read_dir(format!("/proc/{}/fd", relay.id())).expect("it runs").count();
    let before = descriptors(relay);
    for index in 0..1000 {
        match index % 4 {
            0 => drop(RawPeer::connect(url)),
            1 => RawPeer::connect(url).send(b"GET / HT"),
            2 => drop(RawPeer::open(url)),
            _ => drop(RawPeer::hello(url, Role::Subscribe, "", 0)),
        }
    }
    let deadline = Instant::now() + DEADLINE;
    while descriptors(relay) > before {
        assert!(Instant::now() < deadline, "{} descriptors, {before} before", descriptors(relay));
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(relay.is_running());
}

/// Connections that say too little: closed after ten seconds, not before, not much later.
fn silent_ones(url: &str) {
    let began = Instant::now();
    let mut half = RawPeer::connect(url);
    half.send(b"GET / HTTP/1.1\r\nHost: relay\r\n");
    let mut mute = RawPeer::connect(url);
    let mut open = RawPeer::open(url);
    let (error, close) = open.reasons();
    assert!(error.is_some_and(|text| text.contains("no hello within 10 s")) && close.is_some());
    half.read_to_end();
    mute.read_to_end();
    let took = began.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(30)).contains(&took), "{took:?}");
}

#[test]
fn bad_peers_close_only_themselves() {
    for workers in ["1", "2"] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (mut relay, url) = relay(&["--workers", workers]);
        let mut transfer = Transfer::start(&url, folder.path());
        transfer.goes_on(&some());
        std::thread::scope(|scope| {
            let silent = scope.spawn(|| silent_ones(&url));
            let attacks: [(&str, Attack); 5] = [
                ("other protocols", other_protocols),
                ("broken messages", broken_messages),
                ("peers out of turn", peers_out_of_turn),
                ("lies of a sniffer", lies_of_a_sniffer),
                ("sequences that go back", sequences_that_go_back),
            ];
            for (name, attack) in attacks {
                println!("{name}");
                attack(&url);
                transfer.goes_on(&some());
            }
            silent.join().expect("the silent ones are closed");
        });
        thousand_connections(&url, &mut relay);
        transfer.goes_on(&some());
        transfer.finish();
        let ended = relay.terminate();
        assert_eq!(ended.code(), 0);
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    }
}

/// Names of peers go to terminals: what steers one is shown, not sent.
#[test]
fn names_do_not_steer_a_terminal() {
    let (mut relay, url) = relay(&[]);
    let name = "evil\u{1b}]0;title\u{7}\r\nrelay: all is well";
    let mut peer = RawPeer::hello(&url, Role::Publish, name, EPOCH);
    announce(&mut peer, EPOCH);
    peer.await_control("ack");
    relay.await_line("evil");
    let mut list = Command::new(program("viewer"));
    let (code, stdout, _) = tests::process::run(list.args(["--list", "--relay", &url]));
    let shown = String::from_utf8(stdout).expect("text");
    assert!(code == 0 && shown.contains("evil"), "{shown}");
    let said = relay.terminate().stderr;
    for text in [shown.as_str(), said.as_str()] {
        assert!(!text.contains(['\u{1b}', '\u{7}', '\r']), "{text:?}");
        assert!(!text.lines().any(|line| line.starts_with("relay: all")), "{text:?}");
    }
}

/// What a peer sends is repeated to it and in the log as far as a person reads on: a stranger must not
/// fill the disk by it.
#[test]
fn long_texts_of_a_stranger_make_short_lines() {
    let (mut relay, url) = relay(&[]);
    let long = "\u{7f}".repeat(60_000); // each becomes six characters where it is escaped
    for json in [
        format!(r#"{{"type":"error","reason":"{long}"}}"#),
        format!(r#"{{"type":"hello","protocol":"{long}"}}"#),
    ] {
        let mut peer = RawPeer::open(&url);
        peer.frame(TEXT, json.as_bytes());
        let (error, _) = peer.reasons();
        assert!(error.is_none_or(|error| error.len() < 2000));
    }
    relay.await_line("it said");
    relay.await_line("control message");
    let longest = relay.terminate().stderr.lines().map(str::len).max();
    assert!(longest.is_some_and(|longest| longest < 3000), "{longest:?}");
}

/// Takes a viewer up to its subscription, and joins it to a stream.
fn join_viewer(relay: &FakeRelay, next_sequence: u64) -> RawPeer {
    let mut peer = relay.welcome(PROTOCOL);
    peer.await_control("subscribe");
    peer.control(&Control::Subscribed { streams: 1 });
    let interfaces = vec!["eth9".to_owned()];
    let status = StreamStatus { key: key(0), name: "liar".into(), interfaces, ..StreamStatus::default() };
    peer.control(&Control::Join { status, next_sequence });
    peer
}

/// Bodies that the relay cannot check: the viewer drops the block, says so in the file, and goes on.
#[test]
fn a_viewer_drops_blocks_that_lie_and_goes_on() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("out.pcapng");
    let relay = FakeRelay::new();
    let mut command = Command::new(program("viewer"));
    command.args(["--relay", &relay.url(), "--until-end", "-w"]).arg(&out);
    let mut viewer = Process::start(&mut command);
    let mut peer = join_viewer(&relay, 0);
    let mut pack = packer(0);
    peer.block(description(&mut pack).bytes());
    let lies: [fn(&PackedBlock) -> Vec<u8>; 7] = [
        |block| with_header(block, |header| header.body_crc ^= 1),
        |block| with_header(block, |header| header.packet_count = 2),
        |block| with_header(block, |header| header.byte_count += 1),
        |block| with_header(block, |header| (header.lz4, header.raw_bytes) = (true, 16 << 20)),
        |block| with_body(block, |body| body[20] ^= 0x40), // captured length
        |block| with_body(block, |body| body[8] = 200),    // interface
        |block| with_body(block, |body| body[0] = 1),      // kind of block
    ];
    let mut fed = Vec::new();
    for (index, lie) in lies.iter().enumerate() {
        let truth = format!("truth {index}").into_bytes();
        let block = packets(&mut pack, &truth);
        peer.block(block.bytes());
        fed.push(truth);
        peer.block(&lie(&packets(&mut pack, format!("a lie {index}").as_bytes())));
    }
    let last = packets(&mut pack, b"the end");
    peer.block(last.bytes());
    fed.push(b"the end".to_vec());
    peer.block(end(&mut pack).bytes());
    viewer.await_line("missing 8 corrupt");
    peer.read_to_end();
    let ended = viewer.wait();
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    // One lie is about the count itself: what is missing is what the header said.
    let totals = format!("written {}; missing {} corrupt", fed.len(), lies.len() + 1);
    assert!(ended.stderr.contains(&totals), "{}", ended.stderr);
    assert_eq!(frames(&out), fed);
    if tshark::is_available() {
        let told = judge::ask_tshark(&out, folder.path());
        assert_eq!(told.complaint, "");
        let comments: Vec<&str> = told.packets.iter().map(|one| one.facts[4].as_str()).collect();
        assert!(comments[0].is_empty(), "{comments:?}");
        for comment in &comments[1..] {
            assert!(comment.contains("corrupt") && comment.contains("before this one"), "{comments:?}");
        }
    }
}

/// The block with another body, and checksums that fit.
fn with_body(block: &PackedBlock, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut body = block.body().to_vec();
    change(&mut body);
    let body_crc = crc32fast::hash(&body);
    let head = with_header(block, |header| header.body_crc = body_crc);
    [&head[..HEADER_BYTES], &body].concat()
}

/// A relay that breaks the protocol loses its viewer's connection, not its viewer: it says why,
/// tells the relay, connects again, and the file goes on where it was.
#[test]
fn a_viewer_leaves_a_lying_relay_and_comes_back() {
    let mut pack = packer(0);
    let descriptive = description(&mut pack);
    let (first, second) = (packets(&mut pack, b"first"), packets(&mut pack, b"second"));
    let last = end(&mut pack);
    let block = second.bytes().to_vec();
    let mut crooked = block.clone();
    crooked[30] ^= 1;
    let envelope = |block: &[u8]| frame(BINARY, &[&[1, 0, 0, 0, 0, 0, 0, 0][..], block].concat(), false);
    let huge = [&[0x82, 127][..], &(1u64 << 40).to_be_bytes()].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (envelope(&crooked), "header checksum"),
        (envelope(&with_header(&second, |header| header.key.stream = 9)), "not joined"),
        (envelope(&block[..50]), "50 bytes"),
        (frame(BINARY, &[7; 20], false), "envelope"),
        (frame(TEXT, b"not json", false), "control message"),
        (frame(TEXT, br#"{"type":"error","reason":"go\u001b away"}"#, false), "go\\u{1b} away"),
        (frame(BINARY, &block, true), "mask"),
        (frame(CLOSE, b"\x03\xf0bye", false), "bye"),
        (huge, "bytes, at most"),
        (vec![0xff; 16], "websocket"),
    ];
    std::thread::scope(|scope| {
        for (lie, text) in &cases {
            let (descriptive, first, second, last) = (&descriptive, &first, &second, &last);
            scope.spawn(move || {
                let folder = tempfile::tempdir().expect("a temporary folder");
                let out = folder.path().join("out.pcapng");
                let relay = FakeRelay::new();
                let mut command = Command::new(program("viewer"));
                command.args(["--relay", &relay.url(), "--until-end", "-w"]).arg(&out);
                let mut viewer = Process::start(&mut command);
                let mut peer = join_viewer(&relay, 0);
                peer.block(descriptive.bytes());
                peer.block(first.bytes());
                peer.send(lie);
                let line = viewer.await_line("connection lost");
                assert!(line.contains(text), "no {text:?} in {line:?}");
                drop(peer);
                let mut peer = join_viewer(&relay, 0);
                for block in [descriptive, first, second, last] {
                    peer.block(block.bytes());
                }
                let ended = viewer.wait();
                assert_eq!(ended.code(), 0, "{text}: {}", ended.stderr);
                assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
                assert_eq!(frames(&out), [b"first".to_vec(), b"second".to_vec()], "{text}");
            });
        }
    });
}

/// A relay that breaks the protocol: the sniffer says why, comes back, and sends again what was
/// not settled.
#[test]
fn a_sniffer_leaves_a_lying_relay_and_comes_back() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("a.pcap");
    let mut sample = Sample::pcap(Order::Little, false, 1);
    let data = udp_frame(1, 2, b"one");
    sample.record(FIRST_S, 0, &data, data.len() as u32);
    fs::write(&file, sample.bytes()).expect("room");
    let huge = [&[0x81, 127][..], &(1u64 << 40).to_be_bytes()].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (Vec::new(), "acknowledges block 1000000"), // made of what is announced
        (frame(BINARY, &[1; 100], false), "sent a block to a sniffer"),
        (frame(TEXT, b"not json", false), "control message"),
        (frame(TEXT, br#"{"type":"error","reason":"full"}"#, false), "full"),
        (frame(CLOSE, b"\x03\xf0bye", false), "bye"),
        (huge, "bytes, at most"),
        (vec![0xff; 16], "websocket"),
    ];
    std::thread::scope(|scope| {
        for (lie, text) in &cases {
            let (file, data) = (&file, &data);
            scope.spawn(move || {
                let relay = FakeRelay::new();
                let mut command = Command::new(program("sniffer"));
                command.arg("--read").arg(file).args(["--no-wait", "--relay", &relay.url()]);
                let mut sniffer = Process::start(&mut command);
                let mut peer = relay.welcome(PROTOCOL);
                let key = announced(&mut peer);
                sniffer.await_line("connected");
                peer.send(if lie.is_empty() { ack_frame(key, 1_000_000) } else { lie.clone() }.as_slice());
                let line = sniffer.await_line(text);
                assert!(line.contains(&relay.url()[5..]), "{line:?} does not name the relay");
                drop(peer);
                let mut peer = relay.welcome(PROTOCOL);
                peer.control(&Control::Takers { viewers: 1, marks: false });
                peer.control(&Control::Window { bytes: 16 << 20 });
                let key = announced(&mut peer);
                peer.send(&ack_frame(key, 0)); // it waits to hear how far we are
                let mut came: BTreeMap<u64, PackedBlock> = BTreeMap::new();
                while came.values().next_back().is_none_or(|block| !block.header().end) {
                    let (opcode, payload) = peer.receive().expect("it sends");
                    if opcode == TEXT {
                        continue;
                    }
                    let bytes = Bytes::from(payload).slice(ENVELOPE_BYTES..);
                    let block = PackedBlock::new(bytes).expect("a sound block");
                    block.check_body().expect("a sound body");
                    came.insert(block.header().sequence, block);
                }
                let body = came.values().map(|block| block.header().byte_count as usize).sum::<usize>();
                assert_eq!(body, data.len(), "{text}");
                peer.send(&ack_frame(key, came.len() as u64));
                peer.read_to_end();
                let ended = sniffer.wait();
                assert_eq!(ended.code(), 0, "{text}: {}", ended.stderr);
                assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
            });
        }
    });
}

/// Which stream a sniffer announces.
fn announced(peer: &mut RawPeer) -> StreamKey {
    match peer.await_control("stream") {
        Control::Stream(announcement) => announcement.key,
        other => panic!("{other:?}"),
    }
}

fn ack_frame(key: StreamKey, blocks: u64) -> Vec<u8> {
    let received = Cursor { key, next_sequence: blocks, ..Cursor::default() };
    let ack = Control::Ack { streams: vec![StreamAck { received, settled: blocks }] };
    frame(TEXT, &ack.to_json(), false)
}
