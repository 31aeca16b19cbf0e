//! The viewer as a process against a small relay: what it writes, how it ends.

#[allow(dead_code)] // the other tests use the rest
mod common;

use std::io::Read;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Capture, Relay, Source, Viewer, ethernet, output_of, udp_frame};
use wire::Interface;
use wire::block::PackedBlock;
use wire::description::Description;
use wire::ledger::{InterfaceTotals, Report, Stage};
use wire::message::{Control, StreamStatus};

fn report(offered: u64, kernel_drops: u64) -> Report {
    let totals = InterfaceTotals { offered, kernel_drops, ..InterfaceTotals::default() };
    Report { time_ns: 1_700_000_001_000_000_000, interfaces: vec![totals], ..Report::default() }
}

#[test]
fn packets_of_several_streams_come_through_and_are_read_by_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.pcapng");
    let file = path.to_str().expect("text");
    let relay = Relay::start();
    let viewer = Viewer::start(&relay.url, &["-w", file, "--until-end"]);
    let mut rings = [0, 1].map(|stream| Source::new(1, stream, "web", &[ethernet("eth0")]));
    let raw = Interface { name: String::new(), link_type: 101, ..Interface::default() };
    let interfaces = vec![ethernet("lan"), raw];
    let described = Description { interfaces, file: Some("/x/old.pcap".into()), ..Default::default() };
    let mut read = Source::described(2, 0, "desk", described);
    relay.accept(&[&rings[0], &rings[1], &read]);
    for ring in &mut rings {
        relay.data(&ring.packets(&[0, 0, 0]));
        relay.data(&ring.report(&report(4, 0), false));
        relay.data(&ring.packets(&[0]));
    }
    relay.data(&read.packets(&[0]));
    read.push(1, 5_000_000_000, &udp_frame(53)[14..]); // goes back in time, and stays where it is
    relay.data(&read.packer.seal().expect("a packet"));
    for source in rings.iter_mut().chain([&mut read]) {
        relay.data(&source.end());
    }
    let ended = viewer.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("web:eth0 (2 streams): received 8 packets"), "{}", ended.stderr);
    assert!(ended.stderr.contains("total (3 streams): received 10 packets"), "{}", ended.stderr);
    assert!(ended.stderr.contains("written 10; missing none"), "{}", ended.stderr);
    let capture = Capture::read(&std::fs::read(&path).expect("is there"));
    assert!(capture.application.starts_with("ringcast viewer "), "{}", capture.application);
    let names: Vec<_> = capture.interfaces.iter().map(|(name, link)| (name.as_str(), *link)).collect();
    assert_eq!(names, [("web:eth0", 1), ("desk:lan", 1), ("desk:old.pcap", 101)]);
    let ids: Vec<_> = capture.packets.iter().map(|packet| packet.interface).collect();
    assert_eq!(ids, [0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
    let last = capture.last_statistics(0);
    assert_eq!((last.counts[&6], last.counts[&8]), (8, 8));
    if let Some(text) = output_of("tshark", &["-r", file, "-T", "fields", "-e", "udp.dstport"]) {
        assert_eq!(text.lines().filter(|line| *line == "53").count(), 10, "{text}");
    }
    if let Some(text) = output_of("capinfos", &["-c", "-M", file]) {
        assert!(text.contains("10"), "{text}");
    }
}

#[test]
fn blocks_that_are_torn_or_lie_are_dropped_whole_and_counted() {
    let relay = Relay::start();
    let mut viewer = Viewer::start(&relay.url, &["--until-end"]);
    let output = viewer.read();
    let mut source = Source::new(1, 0, "web", &[ethernet("eth0")]);
    relay.accept(&[&source]);
    relay.data(&source.packets(&[0, 0]));
    let mut torn = source.packets(&[0, 0, 0]).bytes().to_vec();
    let last = torn.len() - 1;
    torn[last] ^= 0x55; // the checksum of the body finds it
    relay.data(&PackedBlock::new(Bytes::from(torn)).expect("its header is right"));
    relay.data(&source.packets(&[0, 7])); // an interface nobody described
    relay.data(&source.packets(&[0]));
    relay.data(&source.end());
    let ended = viewer.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let text = "received 3 packets (180 B), written 3; missing 5 corrupt";
    assert!(ended.stderr.contains(text), "{}", ended.stderr);
    let capture = Capture::read(&output.join().expect("reads"));
    assert_eq!(capture.packets.len(), 3);
    assert_eq!(capture.packets[2].comments, ["ringcast: 5 packets lost before this one (corrupt)"]);
}

#[test]
fn a_reader_that_goes_away_is_success() {
    for is_idle in [true, false] {
        let relay = Relay::start();
        let mut viewer = Viewer::start(&relay.url, &[]);
        let mut pipe = viewer.stdout();
        let mut source = Source::new(1, 0, "web", &[ethernet("eth0")]);
        relay.accept(&[&source]);
        relay.data(&source.packets(&[0]));
        pipe.read_exact(&mut [0; 100]).expect("comes");
        drop(pipe);
        if !is_idle {
            relay.data(&source.packets(&[0]));
        }
        let ended = viewer.wait();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
}

#[test]
fn it_leaves_after_so_many_packets() {
    for more in [&[][..], &["--reorder", "50ms"]] {
        let relay = Relay::start();
        let mut viewer = Viewer::start(&relay.url, &[&["-c", "5"], more].concat());
        let output = viewer.read();
        let mut source = Source::new(1, 0, "web", &[ethernet("eth0")]);
        relay.accept(&[&source]);
        for _ in 0..3 {
            relay.data(&source.packets(&[0, 0, 0]));
        }
        let ended = viewer.wait();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.stderr.contains("written 5"), "{}", ended.stderr);
        let capture = Capture::read(&output.join().expect("reads"));
        assert_eq!(capture.packets.len(), 5);
        assert_eq!(capture.last_statistics(0).counts[&8], 5);
    }
}

#[test]
fn it_leaves_after_the_time_given() {
    let relay = Relay::start();
    let begin = Instant::now();
    let mut viewer = Viewer::start(&relay.url, &["--duration", "700ms"]);
    let output = viewer.read();
    let mut source = Source::new(1, 0, "web", &[ethernet("eth0")]);
    relay.accept(&[&source]);
    relay.data(&source.packets(&[0]));
    assert_eq!(viewer.wait().code, Some(0));
    assert!(begin.elapsed() >= Duration::from_millis(700));
    assert_eq!(Capture::read(&output.join().expect("reads")).packets.len(), 1);
}

#[test]
fn a_filter_chooses_what_is_written() {
    let relay = Relay::start();
    // Link types without Ethernet addresses cannot be asked for one.
    let mut viewer = Viewer::start(&relay.url, &["-f", "ether src 02:00:00:00:00:02", "--until-end"]);
    let output = viewer.read();
    let raw = Interface { name: "tun0".into(), link_type: 101, ..Interface::default() };
    let mut source = Source::new(1, 0, "web", &[ethernet("eth0"), raw]);
    relay.accept(&[&source]);
    let mut other = udp_frame(53);
    other[11] = 9;
    source.push(0, 1, &udp_frame(53));
    source.push(1, 2, &udp_frame(53)[14..]);
    source.push(0, 3, &other);
    source.push(0, 4, &udp_frame(80));
    relay.data(&source.packer.seal().expect("packets"));
    relay.data(&source.end());
    let ended = viewer.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("interface web:tun0: nothing of it is written: filter"),
        "{}",
        ended.stderr
    );
    let counts = "received 4 packets (226 B), written 2, 1 filtered, 1 of interfaces the filter does not fit";
    assert!(ended.stderr.contains(counts), "{}", ended.stderr);
    let capture = Capture::read(&output.join().expect("reads"));
    assert_eq!(capture.interfaces.len(), 1);
    let times: Vec<_> = capture.packets.iter().map(|packet| packet.time_ns).collect();
    assert_eq!(times, [1, 4]);
}

#[test]
fn interfaces_of_a_stream_are_chosen_by_name() {
    let relay = Relay::start();
    let mut viewer = Viewer::start(&relay.url, &["--interface", "eth1", "--sniffer", "w*", "--until-end"]);
    let output = viewer.read();
    let mut source = Source::new(1, 0, "web", &[ethernet("eth0"), ethernet("eth1")]);
    let selection = relay.accept(&[&source]);
    assert_eq!((selection.sniffers, selection.interfaces), (vec!["w*".into()], vec!["eth1".into()]));
    relay.data(&source.packets(&[0, 1, 0, 1, 1]));
    relay.data(&source.end());
    assert_eq!(viewer.wait().code, Some(0));
    let capture = Capture::read(&output.join().expect("reads"));
    assert_eq!(capture.interfaces, [("web:eth1".into(), 1)]);
    assert!(capture.packets.iter().all(|packet| packet.interface == 0));
    assert_eq!(capture.packets.len(), 3);
}

#[test]
fn a_loss_is_told_by_the_packet_after_it_or_at_the_end() {
    for more in [&[][..], &["--reorder", "10ms"]] {
        let relay = Relay::start();
        let mut viewer = Viewer::start(&relay.url, &[&["--until-end"], more].concat());
        let output = viewer.read();
        let mut source = Source::new(1, 0, "web", &[ethernet("eth0")]);
        relay.accept(&[&source]);
        relay.data(&source.packets(&[0, 0]));
        let skipped = source.packets(&[0; 12]);
        let sequence = skipped.header().sequence;
        relay.control(Control::Skipped {
            key: source.key,
            first_sequence: sequence,
            next_sequence: sequence + 1,
            packets: 12,
            bytes: 12 * 60,
            stage: Stage::ViewerQueue,
        });
        relay.data(&source.packets(&[0, 0, 0]));
        relay.data(&source.report(&report(21, 4), false));
        relay.data(&source.packets(&[0]));
        relay.data(&source.report(&report(24, 6), true));
        let ended = viewer.wait();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let equation = "written 6; missing 12 viewer queue; \
                        offered 24 = written 6 + missing 12 (viewer queue) + kernel ring 6\n";
        assert!(ended.stderr.contains(equation), "{}", ended.stderr);
        let capture = Capture::read(&output.join().expect("reads"));
        let comments: Vec<_> = capture.packets.iter().map(|packet| packet.comments.join("|")).collect();
        let first = "ringcast: 12 packets lost before this one (viewer queue)";
        let second = "ringcast: 4 packets lost before this one (kernel ring)";
        assert_eq!(comments, ["", "", first, "", "", second]);
        let last = capture.last_statistics(0);
        assert_eq!(last.comments, ["ringcast: 2 packets lost after the last one (kernel ring)"]);
        assert_eq!((last.counts[&6], last.counts[&7], last.counts[&8]), (24, 6, 6));
    }
}

#[test]
fn after_a_cut_it_goes_on_in_the_same_file() {
    let relay = Relay::start();
    let mut viewer = Viewer::start(&relay.url, &["--until-end"]);
    let output = viewer.read();
    let mut source = Source::new(1, 0, "web", &[ethernet("eth0")]);
    relay.accept(&[&source]);
    let first = source.packets(&[0, 0]);
    relay.data(&first);
    std::thread::sleep(Duration::from_millis(300));
    relay.set_instance(2);
    relay.cut();
    source.packets(&[0; 3]); // nobody gets these
    relay.accept(&[&source]);
    relay.data(&first); // sent again after the cut
    relay.data(&source.packets(&[0]));
    relay.data(&source.end());
    let ended = viewer.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("connection lost: the peer closed"), "{}", ended.stderr);
    assert!(ended.stderr.contains("connected again after"), "{}", ended.stderr);
    assert!(ended.stderr.contains("missing 3 relay restarted"), "{}", ended.stderr);
    let capture = Capture::read(&output.join().expect("reads"));
    assert_eq!(capture.interfaces.len(), 1);
    assert_eq!(capture.packets.len(), 3);
    assert_eq!(capture.packets[2].comments, ["ringcast: 3 packets lost before this one (relay restarted)"]);
}

#[test]
fn streams_are_merged_by_time() {
    let relay = Relay::start();
    let mut viewer = Viewer::start(&relay.url, &["--reorder", "10s", "--until-end"]);
    let output = viewer.read();
    let mut sources =
        [0, 1].map(|stream| Source::new(1, stream, "web", &[ethernet(&format!("eth{stream}"))]));
    let selection = relay.accept(&[&sources[0], &sources[1]]);
    assert!(selection.marks);
    for (at, source) in sources.iter_mut().enumerate() {
        for block in 0..5u64 {
            for packet in 0..4 {
                source.push(0, 1000 + (block * 4 + packet) * 10 + at as u64 * 3, &udp_frame(53));
            }
            relay.data(&source.packer.seal().expect("packets"));
        }
    }
    for source in &mut sources {
        relay.data(&source.end());
    }
    let ended = viewer.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let capture = Capture::read(&output.join().expect("reads"));
    assert_eq!(capture.packets.len(), 40);
    assert!(capture.packets.is_sorted_by_key(|packet| packet.time_ns));
    assert_eq!(capture.last_statistics(1).counts[&8], 20);
}

#[test]
fn the_list_is_a_table_or_json() {
    for (args, expected) in [(&["--list"][..], "SNIFFER"), (&["--list", "--json"], "\"name\": \"web\"")] {
        let relay = Relay::start();
        let mut viewer = Viewer::start(&relay.url, args);
        let output = viewer.read();
        let status = StreamStatus { name: "web".into(), state: "live".into(), ..StreamStatus::default() };
        while relay.next_control() != Control::List {}
        relay.control(Control::Streams { streams: vec![status], omitted: 0 });
        let ended = viewer.wait();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let text = String::from_utf8(output.join().expect("reads")).expect("text");
        assert!(text.contains(expected) && text.contains("live"), "{text}");
    }
}

#[test]
fn what_cannot_begin_says_why() {
    let refused = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let closed = format!("ws://{}", refused.local_addr().expect("an address"));
    drop(refused);
    let folder = tempfile::tempdir().expect("a folder");
    let precious = folder.path().join("precious.pcapng");
    std::fs::write(&precious, "packets").expect("writes");
    let file = precious.to_str().expect("text");
    for (relay, args, code, text) in [
        (closed.as_str(), &["-w", file][..], 1, "connection refused"),
        ("http://x", &[], 2, "relay url"),
        ("ws://x", &["-f", "tcp prot 80"], 2, "syntax error"),
        ("ws://x", &["--sniffer", "a["], 2, "glob"),
        ("ws://x", &["--duration", "soon"], 2, "soon"),
        ("ws://x", &["--json"], 2, "--list"),
        ("ws://x", &["--frobnicate"], 2, "--frobnicate"),
    ] {
        let ended = Viewer::start(relay, args).wait();
        assert_eq!(ended.code, Some(code), "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(text), "{args:?}: {}", ended.stderr);
    }
    let text = std::fs::read_to_string(&precious).expect("reads");
    assert_eq!(text, "packets", "an existing file is left alone when the relay is not there");

    let relay = Relay::start();
    let nowhere = folder.path().join("none/out.pcapng");
    let viewer = Viewer::start(&relay.url, &["-w", nowhere.to_str().expect("text")]);
    relay.accept(&[]);
    let ended = viewer.wait();
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("out.pcapng: no such file or directory"), "{}", ended.stderr);
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_in_order() {
    let relay = Relay::start();
    let mut viewer = Viewer::start(&relay.url, &[]);
    let output = viewer.read();
    let mut source = Source::new(1, 0, "web", &[ethernet("eth0")]);
    relay.accept(&[&source]);
    relay.data(&source.packets(&[0, 0]));
    std::thread::sleep(Duration::from_millis(300));
    viewer.interrupt();
    let ended = viewer.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("written 2"), "{}", ended.stderr);
    let capture = Capture::read(&output.join().expect("reads"));
    assert_eq!((capture.packets.len(), capture.last_statistics(0).counts[&8]), (2, 2));
}

/// The relay settles by what the viewer says has arrived: soon after it came, without a message for
/// each message, from 0 again on each connection, and the whole before it leaves.
#[test]
fn the_relay_is_told_what_has_arrived() {
    let progress = |relay: &Relay, goal: u64| {
        let mut told = Vec::new();
        while told.last() != Some(&goal) {
            if let Control::Progress { messages } = relay.next_control() {
                told.push(messages);
            }
        }
        told
    };
    let relay = Relay::start();
    let mut viewer = Viewer::start(&relay.url, &["--until-end"]);
    let output = viewer.read();
    let mut source = Source::new(1, 0, "web", &[ethernet("eth0")]);
    relay.accept(&[&source]);
    assert_eq!(progress(&relay, 1), [1], "the description");
    let begin = Instant::now();
    for _ in 0..200 {
        relay.data(&source.packets(&[0]));
    }
    let told = progress(&relay, 201);
    let took = begin.elapsed();
    assert!(told.is_sorted() && told.len() as u128 <= 2 + took.as_millis() / 50, "{told:?} in {took:?}");
    relay.cut();
    relay.accept(&[&source]);
    relay.data(&source.packets(&[0]));
    assert_eq!(progress(&relay, 2).last(), Some(&2), "counted anew");
    relay.data(&source.end());
    assert_eq!(viewer.wait().code, Some(0));
    assert_eq!(progress(&relay, 3).last(), Some(&3), "told before it leaves");
    assert_eq!(Capture::read(&output.join().expect("reads")).packets.len(), 201);
}

/// A reader that stops reading holds the relay back, costs bounded memory, gets everything once it
/// reads on; and an interrupt does not wait for it.
#[cfg(unix)]
#[test]
fn a_reader_that_stalls_holds_the_relay_back_and_nothing_is_lost() {
    let relay = Relay::start();
    let mut viewer = Viewer::start(&relay.url, &["--until-end"]);
    let pipe = viewer.stdout();
    let mut source = Source::new(1, 0, "web", &[ethernet("eth0")]);
    relay.accept(&[&source]);
    let (mut state, mut sent, mut sent_bytes) = (1u64, 0, 0);
    for block in 0..300u64 {
        for packet in 0..15 {
            let noise: Vec<u8> = std::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .take(65_000)
            .collect();
            source.push(0, block * 100 + packet, &noise);
            sent += 1;
        }
        let block = source.packer.seal().expect("packets");
        sent_bytes += block.bytes().len();
        relay.data(&block);
    }
    relay.data(&source.end());
    relay.wait_until_waiting(|bytes| bytes > 0);
    std::thread::sleep(Duration::from_millis(1500));
    let waiting = *relay.waiting.lock().expect("sound");
    assert!(waiting > 20 << 20, "only {waiting} bytes of {sent_bytes} are held back");
    let status = std::fs::read_to_string(format!("/proc/{}/status", viewer.child.id())).unwrap_or_default();
    if let Some(line) = status.lines().find(|line| line.starts_with("VmRSS:")) {
        let kib: u64 = line.split_whitespace().nth(1).expect("a number").parse().expect("a number");
        assert!(kib < 160 << 10, "{kib} KiB");
    }
    let mut pipe = pipe;
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).map(|_| bytes)
    });
    let ended = viewer.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains(&format!("written {sent}; missing none")), "{}", ended.stderr);
    let capture = Capture::read(&reader.join().expect("ends").expect("reads"));
    assert_eq!(capture.packets.len(), sent);

    let mut viewer = Viewer::start(&relay.url, &[]);
    let pipe = viewer.stdout();
    let mut source = Source::new(2, 0, "web", &[ethernet("eth0")]);
    relay.accept(&[&source]);
    for _ in 0..30 {
        relay.data(&source.packets(&[0; 3000]));
    }
    std::thread::sleep(Duration::from_millis(500));
    let begin = Instant::now();
    viewer.interrupt();
    let ended = viewer.wait();
    assert!(begin.elapsed() < Duration::from_millis(3000), "{:?}", begin.elapsed());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("left unfinished") && ended.stderr.contains("left unwritten"),
        "{}",
        ended.stderr
    );
    drop(pipe);
}

#[cfg(target_os = "linux")]
#[test]
fn it_does_not_write_packets_to_a_terminal() {
    let command = format!("{} --relay ws://127.0.0.1:1; echo code=$?", env!("CARGO_BIN_EXE_viewer"));
    let Some(text) = output_of("script", &["-qec", &command, "/dev/null"]) else { return };
    assert!(text.contains("viewer | wireshark -k -i -") && text.contains("code=2"), "{text}");
}
