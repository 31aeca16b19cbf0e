//! Interfaces that go down, go away and come back, in namespaces of the tests' own.

use clap::Parser;
use wire::block::StreamKey;
use wire::pool::Pool;

use super::*;
use crate::args::Args;
use crate::capture::tests::{Taken, Taker, config as capture_config, send};
use crate::config::Source;
use crate::test_net::{PATIENCE, Sender as Wire, in_namespace, ip, promiscuity};

const EPOCH: Epoch = Epoch(0xf1ee);

/// A fleet, and what it hands over.
struct Chain {
    fleet: Fleet,
    taker: Taker,
    /// Of the next packet.
    number: u32,
}

fn try_open(arguments: &str) -> Result<Chain, FleetError> {
    let base = "sniffer --ring-size 1MiB --block-size 128KiB --name test";
    let args = base.split_whitespace().chain(arguments.split_whitespace());
    let config = Config::new(&Args::try_parse_from(args).expect("usage"), String::new()).expect("settings");
    let Source::Live(live) = &config.source else { panic!("interfaces") };
    let (handover, taker) = Taker::new();
    let capture =
        CaptureConfig { block_timeout: config.block_timeout, ..capture_config(Pool::new(64 << 20), None) };
    let filters = Filters::compile(config.filter.as_deref(), config.snaplen);
    let mut fleet = Fleet::open(&config, live, filters, EPOCH, capture, &handover, BTreeMap::new())?;
    fleet.set_exclusions(&[])?;
    Ok(Chain { fleet, taker, number: 0 })
}

fn open(arguments: &str) -> Chain {
    try_open(arguments).expect("a fleet")
}

impl Chain {
    /// Turns the wheels until what is expected has come; `tend` is what the sending thread would do.
    fn turn(&mut self, what: &str, tend: impl Fn(&mut Fleet), done: impl Fn(&Taker) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(&self.taker) {
            assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
            tend(&mut self.fleet);
            if let Ok(handed) = self.taker.handed.recv_timeout(Duration::from_millis(5)) {
                self.taker.handle(handed);
            }
        }
    }

    fn until(&mut self, what: &str, done: impl Fn(&Taker) -> bool) {
        self.turn(what, Fleet::handle_link_events, done);
    }

    fn until_report(&mut self, what: &str, stream: u32, done: impl Fn(&[Outage]) -> bool) -> Vec<Outage> {
        self.until(what, |taker| taker.streams.get(&stream).is_some_and(|one| done(&one.report.outages)));
        self.taker.streams[&stream].report.outages.clone()
    }

    /// Sends until a packet comes through: a link that has just come up throws some away.
    fn until_packets_come(&mut self) {
        let wire = Wire::new("near");
        let (deadline, before) = (Instant::now() + PATIENCE, self.taker.numbers.len());
        while self.taker.numbers.len() == before {
            assert!(Instant::now() < deadline, "no packet came within {PATIENCE:?}");
            send(&wire, self.number..self.number + 1);
            self.number += 1;
            self.fleet.handle_link_events();
            if let Ok(handed) = self.taker.handed.recv_timeout(Duration::from_millis(50)) {
                self.taker.handle(handed);
            }
        }
    }

    fn stream(&self, stream: u32) -> &Taken {
        &self.taker.streams[&stream]
    }

    /// Stops, and checks that every packet came once at most.
    fn stop(mut self) {
        self.fleet.stop();
        while !self.taker.streams.values().all(|taken| taken.has_ended) {
            let handed = self.taker.handed.recv_timeout(PATIENCE).expect("the streams end");
            self.taker.handle(handed);
        }
        let mut numbers = self.taker.numbers;
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), count, "some came twice");
    }
}

fn lasts(outages: &[Outage]) -> bool {
    outages.last().is_some_and(|outage| outage.until_ns.is_none())
}

fn is_over(outages: &[Outage]) -> bool {
    outages.last().is_some_and(|outage| outage.until_ns.is_some())
}

fn make_pair() {
    ip("link add near address 02:00:00:00:00:01 type veth peer name far address 02:00:00:00:00:02");
    ip("link set near up");
    ip("link set far up");
}

#[test]
fn an_interface_that_is_down_for_a_while_is_an_outage_of_its_stream() {
    in_namespace(|| {
        let mut chain = open("-i far");
        chain.until_packets_come();
        for (down, up) in [("far down", "far up"), ("near down", "near up")] {
            ip(&format!("link set {down}"));
            let begun = chain.until_report(down, 0, lasts);
            ip(&format!("link set {up}"));
            let ended = chain.until_report(up, 0, is_over);
            assert_eq!(begun.len(), ended.len(), "the same outage");
            let (begun, ended) = (begun.last().expect("one"), ended.last().expect("one"));
            assert_eq!(
                (ended.kind, ended.interface.as_str(), ended.from_ns),
                (OutageKind::InterfaceDown, "far", begun.from_ns)
            );
            assert!(ended.until_ns > Some(ended.from_ns));
            chain.until_packets_come();
        }
        assert_eq!(chain.taker.streams.len(), 1, "the stream goes on");
        assert_eq!(chain.stream(0).report.outages.len(), 2);
        // A succession does not tell of what is over.
        chain.fleet.succeed(&[0]);
        chain.until("the next", |taker| taker.streams.len() == 2);
        chain.until_packets_come();
        chain.stop();
    });
}

#[test]
fn what_lasts_is_told_by_the_next_stream_too() {
    in_namespace(|| {
        ip("link set far down");
        let mut chain = open("-i far");
        let begun = chain.until_report("down from the start", 0, lasts);
        chain.fleet.succeed(&[0]);
        let passed_on = chain.until_report("passed on", 1, lasts);
        assert_eq!(begun, passed_on);
        ip("link set far up");
        let ended = chain.until_report("up", 1, is_over);
        assert_eq!((ended.len(), ended[0].from_ns), (1, begun[0].from_ns));
        assert_eq!(chain.stream(0).report.outages, begun);
        chain.until_packets_come();
        chain.stop();
    });
}

/// Deleted and made anew, once while it is down: new rings, a new group, promiscuous again, and each stream names the one
/// before it on its core.
#[test]
fn an_interface_of_the_same_name_is_captured_again() {
    let cores: Vec<String> = core_affinity::get_core_ids()
        .unwrap_or_default()
        .iter()
        .take(2)
        .map(|core| core.id.to_string())
        .collect();
    let rings = cores.len() as u32;
    for (arguments, rings) in
        [("-i far".to_owned(), 1), (format!("-i far --cores {} --fanout lb", cores.join(",")), rings)]
    {
        in_namespace(move || {
            let mut chain = open(&arguments);
            chain.until_packets_come();
            for round in 1..=2 {
                let (before, now) = ((round - 1) * rings, round * rings);
                if round == 2 {
                    ip("link set far down");
                    chain.until_report("down", before, lasts);
                }
                ip("link del far");
                chain.until("the end", |taker| taker.streams.values().all(|taken| taken.has_ended));
                for stream in before..now {
                    let report = &chain.stream(stream).report;
                    assert_eq!(report.note.as_deref(), Some("interface far: gone"));
                    assert!(report.outages.iter().all(|outage| outage.until_ns.is_some()));
                }
                make_pair();
                for ring in 0..rings {
                    let gone = |one: &Outage| one.kind == OutageKind::InterfaceGone && one.until_ns.is_some();
                    let outages = chain.until_report("back", now + ring, |all| all.iter().any(gone));
                    let first = outages.first().expect("one");
                    assert_eq!((first.kind, first.interface.as_str()), (OutageKind::InterfaceGone, "far"));
                    let predecessor = StreamKey { epoch: EPOCH, stream: before + ring };
                    assert_eq!(chain.stream(now + ring).predecessor, Some(predecessor));
                }
                assert_eq!(promiscuity("far"), rings);
                for _ in 0..4 {
                    chain.until_packets_come();
                }
            }
            chain.stop();
        });
    }
}

/// What the kernel has counted but not handed over yet, in a block that is being filled, was lost when the interface went:
/// the stream ended at once, with fewer packets than were offered.
#[test]
fn the_last_packets_of_an_interface_are_delivered() {
    in_namespace(|| {
        let mut chain = open("-i far --block-timeout 300ms -f ether[12:2]==0x88b5");
        chain.until_packets_come();
        let (before, wire) = (chain.taker.numbers.len(), Wire::new("near"));
        send(&wire, 1_000_000..1_000_003);
        ip("link del far");
        chain.until("the end", |taker| taker.streams[&0].has_ended);
        let report = &chain.stream(0).report;
        assert_eq!(chain.taker.numbers.len(), before + 3);
        assert_eq!(report.interfaces[0].offered, report.packed_packets);
        assert_eq!(report.lost.packets(), 0);
        chain.stop();
    });
}

/// Where events were lost, or were never sent, a ring finds out by itself that it is dead.
#[test]
fn an_interface_is_captured_again_without_any_event() {
    in_namespace(|| {
        let mut chain = open("-i far");
        ip("link set far down");
        ip("link del far");
        make_pair();
        let predecessor = Some(StreamKey { epoch: EPOCH, stream: 0 });
        let tend = |fleet: &mut Fleet| fleet.handle_timeout(Instant::now());
        let is_back = |taker: &Taker| taker.streams.values().any(|taken| taken.predecessor == predecessor);
        chain.turn("without events", tend, is_back);
        chain.until_packets_come();
        let back = chain.taker.streams.values().filter(|taken| taken.predecessor == predecessor);
        assert_eq!(back.count(), 1, "events that come late change nothing");
        chain.stop();
    });
}

#[test]
fn an_interface_that_is_missing_is_waited_for_if_asked() {
    in_namespace(|| {
        let error = try_open("-i eth7").err().expect("there is none");
        assert_eq!(error.to_string(), "interface eth7: no such device");
        assert!(try_open("-i a/b --wait").is_err(), "there never will be");
        let wrong = try_open("-i eth7 --wait -f nonsense").err().expect("wrong whatever the interface");
        assert!(wrong.is_usage(), "{wrong}");

        let mut chain = open("-i far -i eth7 --wait");
        chain.until_packets_come();
        assert_eq!(chain.fleet.interface_names(), ["far"]);
        ip("link add eth7 type veth peer name other");
        ip("link set eth7 up");
        ip("link set other up");
        chain.until("eth7", |taker| taker.streams.contains_key(&1));
        assert_eq!(chain.fleet.interface_names(), ["far", "eth7"]);
        assert_eq!(chain.stream(1).predecessor, None);
        let wire = Wire::new("other");
        let before = chain.taker.numbers.len();
        chain.until_report("up", 1, |outages| outages.is_empty() || is_over(outages));
        while chain.taker.numbers.len() == before {
            send(&wire, 1_000_000 + chain.number..1_000_001 + chain.number);
            chain.number += 1;
            let handed = chain.taker.handed.recv_timeout(PATIENCE).expect("reports come at least");
            chain.taker.handle(handed);
        }
        chain.stop();
    });
}
