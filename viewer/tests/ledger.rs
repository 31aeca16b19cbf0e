//! The ledger in the file and in the summary: losses of streams that follow each other, and times in
//! which nothing could be captured.

#[allow(dead_code)] // the other tests use the rest
mod common;

use common::{Capture, Relay, Source, Viewer, ethernet, output_of};
use wire::block::{PackedBlock, StreamKey};
use wire::description::Description;
use wire::ledger::{InterfaceTotals, Outage, OutageKind, Report, Stage};
use wire::message::Control;

fn report(offered: u64, kernel_drops: u64, outages: &[Outage]) -> Report {
    let interface_drops = Some(1);
    let totals = InterfaceTotals { offered, kernel_drops, interface_drops, ..InterfaceTotals::default() };
    Report { interfaces: vec![totals], outages: outages.to_vec(), ..Report::default() }
}

fn successor(epoch: u64, stream: u32, predecessor: StreamKey) -> Source {
    let interfaces = vec![ethernet("eth0")];
    let described = Description { predecessor: Some(predecessor), interfaces, ..Description::default() };
    Source::described(epoch, stream, "web", described)
}

fn join(relay: &Relay, source: &Source) {
    relay.control(source.join(0));
    relay.data(&source.description);
}

/// The block does not come.
fn skip(relay: &Relay, block: &PackedBlock, stage: Stage) {
    let header = block.header();
    relay.control(Control::Skipped {
        key: header.key,
        first_sequence: header.sequence,
        next_sequence: header.sequence + 1,
        packets: header.packet_count.into(),
        bytes: header.byte_count.into(),
        stage,
    });
}

fn comments(capture: &Capture) -> Vec<String> {
    capture.packets.iter().map(|packet| packet.comments.join("|")).collect()
}

#[test]
fn a_stream_says_what_the_one_before_it_had_to_say_and_wireshark_sees_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.pcapng");
    let file = path.to_str().expect("text");
    let relay = Relay::start();
    let viewer = Viewer::start(&relay.url, &["-w", file, "--until-end"]);
    let outage = |kind, from_s: u64, until_s: Option<u64>| Outage {
        kind,
        interface: "eth0".into(),
        from_ns: from_s * 1_000_000_000,
        until_ns: until_s.map(|until_s| until_s * 1_000_000_000),
    };
    let mut first = Source::new(1, 0, "web", &[ethernet("eth0")]);
    // The next run of the sniffer goes on from it.
    let mut second = successor(2, 0, first.key);
    relay.accept(&[&first]);
    relay.data(&first.packets(&[0, 0]));
    skip(&relay, &first.packets(&[0; 3]), Stage::NoBuffer);
    relay.data(&first.report(&report(9, 4, &[]), true));
    join(&relay, &second);
    let down = outage(OutageKind::SnifferDown, 50, Some(57));
    relay.data(&second.report(&report(0, 0, std::slice::from_ref(&down)), false));
    relay.data(&second.packets(&[0, 0]));
    let lasting = outage(OutageKind::InterfaceDown, 60, None);
    relay.data(&second.report(&report(2, 0, &[down.clone(), lasting]), false));
    relay.data(&second.packets(&[0]));
    let over = outage(OutageKind::InterfaceDown, 60, Some(64));
    let gone = outage(OutageKind::InterfaceGone, 70, None);
    relay.data(&second.report(&report(3, 0, &[down.clone(), over.clone(), gone.clone()]), false));
    relay.data(&second.packets(&[0]));
    let cut = Report { cut_packets: 1, ..report(4, 0, &[down, over, gone]) };
    relay.data(&second.report(&cut, true));
    let ended = viewer.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let line = "web:eth0 (2 streams): received 6 packets (360 B), written 6; missing 3 sniffer memory; \
                offered 13 = written 6 + missing 3 (sniffer memory) + kernel ring 4; 1 delivered shortened; \
                outside of this: 2 dropped by the interface, interface eth0: not captured, its sniffer did not \
                run for 7.0 s, interface eth0: down for 4.0 s, interface eth0: gone, to the end\n";
    assert!(ended.stderr.contains(line), "{}", ended.stderr);
    let capture = Capture::read(&std::fs::read(&path).expect("is there"));
    let restarted = "ringcast: interface eth0: not captured, its sniffer did not run for 7.0 s, packets in it are \
                     not counted|ringcast: 7 packets lost before this one (4 kernel ring, 3 sniffer memory)";
    let was_down = "ringcast: interface eth0: down for 4.0 s, packets in it are not counted";
    assert_eq!(comments(&capture), ["", "", restarted, "", "", was_down]);
    let last = capture.last_statistics(1);
    assert_eq!(last.comments, ["ringcast: interface eth0: gone, to the end, packets in it are not counted"]);
    assert_eq!((last.counts[&5], last.counts[&6], last.counts[&7], last.counts[&8]), (1, 4, 0, 4));
    let fields =
        ["-r", file, "-Y", "frame.comment", "-T", "fields", "-e", "frame.number", "-e", "frame.comment"];
    if let Some(text) = output_of("tshark", &fields) {
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        for (number, told) in [("3", restarted), ("6", was_down)] {
            let line = lines.iter().find(|line| line.starts_with(number)).expect("that packet");
            assert!(told.split('|').all(|comment| line.contains(comment)), "{text}");
        }
    }
}

/// A backlog is drained beside the live stream that goes on from it. What it lacks is said where it
/// is lacking, and not in the middle of the live stream.
#[test]
fn a_backlog_tells_its_own_losses() {
    for more in [&[][..], &["--reorder", "10ms"]] {
        let relay = Relay::start();
        let mut viewer = Viewer::start(&relay.url, &[&["--until-end"], more].concat());
        let output = viewer.read();
        let mut old = Source::new(1, 0, "web", &[ethernet("eth0")]);
        let mut live = successor(1, 1, old.key);
        relay.accept(&[&old]);
        relay.data(&old.packets(&[0]));
        join(&relay, &live);
        relay.data(&live.packets(&[0]));
        skip(&relay, &old.packets(&[0; 5]), Stage::SpoolEvicted);
        relay.data(&live.packets(&[0]));
        relay.data(&old.packets(&[0, 0]));
        skip(&relay, &old.packets(&[0; 2]), Stage::ViewerQueue);
        relay.data(&old.report(&report(10, 0, &[]), true));
        relay.data(&live.packets(&[0]));
        relay.data(&live.report(&report(3, 0, &[]), true));
        let ended = viewer.wait();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.stderr.contains("; offered 13 = written 6 + missing 7 (5 "), "{}", ended.stderr);
        let capture = Capture::read(&output.join().expect("reads"));
        let told: Vec<_> = comments(&capture).into_iter().filter(|comment| !comment.is_empty()).collect();
        assert_eq!(told, ["ringcast: 5 packets lost before this one (spool evicted)"]);
        let at = capture.packets.iter().position(|packet| !packet.comments.is_empty()).expect("told");
        if more.is_empty() {
            assert_eq!(at, 3, "the next of its own stream");
        }
        let last = capture.last_statistics(0);
        assert_eq!(last.comments, ["ringcast: 2 packets lost after the last one (viewer queue)"]);
        assert_eq!((capture.interfaces.len(), last.counts[&6], last.counts[&8]), (1, 13, 6));
        assert_eq!(last.counts[&5], 2, "one after the other");
    }
}
