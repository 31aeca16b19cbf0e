use super::*;
use crate::summary::summary;
use crate::unpack::Count;
use wire::block::{Epoch, Kind};
use wire::ledger::{InterfaceTotals, OutageKind, Stage};

fn key(stream: u32) -> StreamKey {
    StreamKey { epoch: Epoch(1), stream }
}

fn header(stream: u32, packet_count: u32) -> Header {
    Header {
        kind: Kind::Packets,
        lz4: false,
        end: false,
        key: key(stream),
        sequence: 0,
        time_min_ns: 0,
        time_max_ns: 0,
        packets_before: 0,
        bytes_before: 0,
        packet_count,
        byte_count: packet_count * 10,
        raw_bytes: 0,
        packed_bytes: 0,
        body_crc: 0,
    }
}

fn state(first_sequence: u64) -> StreamState {
    let mut state = StreamState::default();
    state.name = "web".into();
    state.first_sequence = first_sequence;
    state
}

fn joined(stream: u32, first_sequence: u64) -> Ledger {
    let mut ledger = Ledger::default();
    ledger.handle_joined(key(stream), &state(first_sequence));
    ledger
}

fn report(offered: u64, kernel_drops: u64) -> Report {
    let totals = InterfaceTotals { offered, kernel_drops, ..InterfaceTotals::default() };
    Report { interfaces: vec![totals], ..Report::default() }
}

fn losses(stage: Stage, packets: u64) -> Losses {
    let mut losses = Losses::default();
    losses.add(stage, packets, 0);
    losses
}

fn tally(written: &[(u32, u64)]) -> Tally {
    let mut tally = Tally::default();
    for (stream, packets) in written {
        let written = Count { packets: *packets, bytes: packets * 10 };
        let one = StreamTally { interfaces: vec!["web:eth0".into()], written, ..StreamTally::default() };
        tally.streams.insert(key(*stream), one);
    }
    tally
}

fn told(ledger: &Ledger, tally: &Tally) -> String {
    summary(&ledger.lines(&BTreeMap::new(), tally), &tally.interface_drops).join("\n")
}

#[test]
fn a_stream_joined_at_its_beginning_adds_up_exactly() {
    let mut ledger = joined(0, 0);
    ledger.handle_packets(&header(0, 10));
    ledger.handle_missing(key(0), &losses(Stage::ViewerQueue, 4));
    ledger.handle_packets(&header(0, 6));
    ledger.handle_corrupt(&header(0, 6));
    assert!(ledger.handle_report(key(0), &report(25, 3), 0).is_whole);
    let tally = tally(&[(0, 10)]);
    let text = told(&ledger, &tally);
    assert!(
        text.contains("received 10 packets (100 B), written 10; missing 4 viewer queue, 6 corrupt"),
        "{text}"
    );
    let equation = "; offered 25 = written 10 + missing 10 (4 viewer queue, 6 corrupt) + kernel ring 3 + in the ring or under way 2";
    assert!(text.ends_with(equation), "{text}");
    ledger.handle_ended(key(0), true);
    let text = told(&ledger, &tally);
    assert!(text.contains(" + unexplained 2; 2 UNEXPLAINED, a defect"), "nothing is under way: {text}");
}

#[test]
fn what_was_before_this_viewer_joined_is_in_neither() {
    let mut ledger = joined(0, 70);
    ledger.handle_packets(&header(0, 5));
    assert!(!ledger.handle_report(key(0), &Report { cut_packets: 9, ..report(1000, 40) }, 70).is_whole);
    ledger.handle_packets(&header(0, 7));
    ledger.handle_report(key(0), &Report { cut_packets: 10, ..report(1010, 42) }, 70);
    let text = told(&ledger, &tally(&[(0, 12)]));
    let equation =
        "offered about 15 = written 12 + kernel ring 2 + in the ring or under way 1; 1 delivered shortened";
    assert!(text.contains(equation), "{text}");
    let text = told(&joined(1, 0), &Tally::default());
    assert!(text.contains("offered about 0 = written 0"), "no report came: {text}");
}

#[test]
fn a_ring_that_goes_on_in_another_stream_leaves_nothing_unexplained() {
    let mut ledger = joined(0, 0);
    ledger.handle_packets(&header(0, 10));
    ledger.handle_report(key(0), &report(13, 0), 0);
    assert_eq!(ledger.handle_ended(key(0), true), Some(key(0)));
    ledger.fold(key(0), tally(&[(0, 10)]).streams[&key(0)].clone(), 0);
    assert!(ledger.open.is_empty());
    // The three that the ring held are packed in the stream after it.
    ledger.handle_joined(key(1), &state(0));
    ledger.handle_packets(&header(1, 5));
    ledger.handle_report(key(1), &report(2, 0), 0);
    ledger.handle_ended(key(1), true);
    let text = told(&ledger, &tally(&[(1, 5)]));
    assert!(text.starts_with("web:eth0 (2 streams): received 15 packets"), "{text}");
    assert!(text.ends_with("offered 15 = written 15"), "{text}");
}

#[test]
fn what_the_sniffer_lost_before_packing_is_told_and_what_it_lost_after_is_not_told_twice() {
    let mut ledger = joined(0, 0);
    ledger.handle_packets(&header(0, 10));
    ledger.handle_packets(&header(0, 3));
    ledger.handle_corrupt(&header(0, 3)); // on its way to us, which is another matter
    let lost = losses(Stage::Corrupt, 2);
    assert_eq!(ledger.handle_report(key(0), &Report { lost: lost.clone(), ..report(15, 0) }, 0).lost, lost);
    let news = ledger.handle_report(key(0), &Report { lost: lost.clone(), ..report(15, 0) }, 0);
    assert_eq!(news.lost, Losses::default());
    // A gap of 5 that this report is ahead of.
    let mut both = lost.clone();
    both.add(Stage::SpoolEvicted, 5, 0);
    let news = ledger.handle_report(key(0), &Report { lost: both.clone(), ..report(15, 0) }, 0);
    assert_eq!(news.lost, Losses::default());
    ledger.handle_missing(key(0), &losses(Stage::SpoolEvicted, 5));
    assert_eq!(
        ledger.handle_report(key(0), &Report { lost: both, ..report(20, 0) }, 0).lost,
        Losses::default()
    );
    ledger.handle_ended(key(0), true);
    let text = told(&ledger, &tally(&[(0, 10)]));
    let equation =
        "offered 20 = written 10 + missing 8 (5 spool evicted, 3 corrupt) + lost before packing 2 (corrupt)";
    assert!(text.ends_with(equation), "{text}");
}

fn outage(from_ns: u64, until_ns: Option<u64>) -> Outage {
    Outage { kind: OutageKind::InterfaceDown, interface: "eth0".into(), from_ns, until_ns }
}

#[test]
fn each_outage_is_told_once_when_it_is_over_or_at_the_end() {
    let second = 1_000_000_000;
    let mut ledger = joined(0, 0);
    let mut news = |outages: &[Outage]| {
        let report = Report { outages: outages.to_vec(), ..report(1, 0) };
        ledger.handle_report(key(0), &report, 0).outages
    };
    assert_eq!(news(&[outage(5 * second, None)]), []);
    let over = outage(5 * second, Some(8 * second));
    let one = std::slice::from_ref(&over);
    assert_eq!(news(one), one);
    assert_eq!(news(&[over.clone(), outage(9 * second, None)]), []);
    ledger.handle_ended(key(0), true);
    ledger.fold(key(0), tally(&[(0, 0)]).streams[&key(0)].clone(), 0);
    // The stream after it repeats what is known, and the one that lasts is told at the end.
    ledger.handle_joined(key(1), &state(0));
    let report = Report { outages: vec![over, outage(9 * second, None)], ..report(1, 0) };
    assert!(ledger.handle_report(key(1), &report, 0).outages.is_empty());
    let lasting = ledger.take_lasting();
    assert_eq!((lasting.len(), lasting[0].key, lasting[0].name.as_str()), (1, key(1), "web"));
    assert!(ledger.take_lasting().is_empty());
    let mut tally = tally(&[(1, 0)]);
    tally.interface_drops.insert(0, ("web:eth0".into(), 7));
    let text = told(&ledger, &tally);
    let outside = "outside of this: 7 dropped by the interface, interface eth0: down for 3.0 s, interface eth0: down, to the end";
    assert!(text.ends_with(outside), "{text}");
}

#[test]
fn an_outage_before_this_viewer_is_not_its_own() {
    let mut ledger = joined(0, 3);
    let before = outage(1, Some(2));
    let mut news =
        |outages: Vec<Outage>| ledger.handle_report(key(0), &Report { outages, ..report(1, 0) }, 3).outages;
    assert_eq!(news(vec![before.clone(), outage(5, None)]), []);
    assert_eq!(news(vec![before.clone(), outage(5, Some(6))]), [outage(5, Some(6))]);
}

#[test]
fn thousands_of_streams_leave_one_line() {
    let mut ledger = Ledger::default();
    for stream in 0..5000 {
        ledger.handle_joined(key(stream), &state(0));
        ledger.handle_packets(&header(stream, 1));
        ledger.handle_report(key(stream), &report(1, 0), 0);
        let in_order = stream % 2 == 0;
        if let Some(done) = ledger.handle_ended(key(stream), in_order) {
            ledger.fold(done, tally(&[(stream, 1)]).streams[&key(stream)].clone(), 0);
        }
    }
    assert_eq!(
        (ledger.open.len(), ledger.given_up.len(), ledger.ended.len()),
        (GIVEN_UP_MAX, GIVEN_UP_MAX, 1)
    );
    // One that was given up goes on where it was; one that was forgotten counts anew.
    ledger.handle_joined(key(4999), &state(0));
    assert!(ledger.handle_report(key(4999), &report(2, 0), 0).is_whole);
    let mut former = state(0);
    former.received_packets = 1;
    ledger.handle_joined(key(1), &former);
    assert!(!ledger.handle_report(key(1), &report(2, 0), 0).is_whole);
}
