//! The sniffer's admin port: its figures are those of the summary, and it says when it is not ready.

use tests::faults::{Follow, Wide};
use tests::live::{Bench, captured, eventually, number_before};
use tests::process::{DEADLINE, run};
use tests::scrape::{Scrape, get};

const PORT: u16 = 9441;

/// Waits until the figures are as they should be, and returns them.
fn await_figures(bench: &Bench, what: &str, is_so: impl Fn(&Scrape) -> bool) -> Scrape {
    eventually(what, || {
        let scrape = Scrape::new(&bench.here, PORT);
        if is_so(&scrape) { Ok(scrape) } else { Err(format!("{scrape:?}")) }
    })
}

/// Offered, dropped by the kernel, captured.
fn accounts(scrape: &Scrape) -> [u64; 3] {
    ["ring_packets_total", "ring_drops_total", "captured_packets_total"].map(|name| scrape.sniffer(name))
}

/// Waits until `/readyz` says so, and returns the text.
fn await_ready(bench: &Bench, status: u16) -> String {
    eventually(&format!("/readyz says {status}"), || match get(&bench.here, PORT, "/readyz") {
        (found, text) if found == status => Ok(text),
        other => Err(format!("{other:?}")),
    })
}

/// Also from behind the confinement, which the sniffer says, and with packets that the kernel drops.
#[test]
fn the_figures_are_those_of_the_summary() {
    let Some(bench) = Bench::new() else { return };
    let relay = bench.relay();
    let arguments = ["-i", "v1", "-f", "udp port 5000", "--admin", "9441"];
    let small = ["--ring-size", "256KiB", "--block-size", "128KiB"];
    let mut sniffer = bench.sniffer("host", &[&arguments[..], &small].concat());
    sniffer.await_line("confined: capabilities CAP_NET_RAW only; landlock ABI ");
    sniffer.await_line("admin port: http://127.0.0.1:9441/");
    bench.await_streams(1, 0);
    assert_eq!(get(&bench.here, PORT, "/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(await_ready(&bench, 200), "ready\n");

    let labels = "{interface=\"v1\",thread=\"capture\"}";
    let ring_packets = format!("ringcast_sniffer_ring_packets_total{labels}");
    await_figures(&bench, "a first report", |one| one.series(&ring_packets) == Some(0.0));

    bench.send_all_numbered(0, 3_000, 100);
    // The ring is small: under load even these may be too much for it.
    let is_captured = |one: &Scrape| {
        let [offered, drops, packets] = accounts(one);
        offered == 3_000 && packets == offered - drops
    };
    let scrape = await_figures(&bench, "all is captured", is_captured);
    assert_eq!(scrape.series("ringcast_sniffer_interface_up{interface=\"v1\"}"), Some(1.0));
    assert_eq!(scrape.series("ringcast_sniffer_rings{interface=\"v1\"}"), Some(1.0));
    let ring_bytes = scrape.series(&format!("ringcast_sniffer_ring_bytes{labels}"));
    assert_eq!(ring_bytes, Some(f64::from(256 << 10)));
    assert!(scrape.series("ringcast_sniffer_uplink_round_trip_seconds").is_some_and(|time| time > 0.0));
    let offset = scrape.series("ringcast_sniffer_clock_offset_seconds").expect("known");
    let error = scrape.series("ringcast_sniffer_clock_offset_error_seconds").expect("known");
    assert!(offset.abs() <= error + 1e-6, "one host has one clock: {offset}, {error}");

    // It does not run, and the ring is full.
    sniffer.signal("STOP");
    bench.send_all_numbered(3_000, 9_000, 0);
    sniffer.signal("CONT");
    let is_whole = |one: &Scrape| {
        let [offered, drops, packets] = accounts(one);
        offered == 12_000 && packets == offered - drops && one.sniffer("uplink_sent_packets_total") == packets
    };
    let scrape = await_figures(&bench, "all is sent or counted", is_whole);
    let [offered, drops, packets] = accounts(&scrape);
    assert!(drops > 0, "the ring was full");
    assert_eq!(
        scrape.series("ringcast_sniffer_lost_packets_total{stage=\"kernel ring\"}"),
        Some(drops as f64)
    );
    assert!(scrape.sniffer("ring_freezes_total") > 0);
    await_figures(&bench, "all is settled", |one| one.sniffer("uplink_settled_packets_total") == packets);

    let ended = sniffer.terminate();
    assert_eq!(ended.code(), 0);
    assert_eq!(captured(&ended), (offered, drops, packets));
    assert_eq!(number_before(&ended.stderr, " packets in "), scrape.sniffer("uplink_sent_packets_total"));
    drop(relay);
}

#[test]
fn a_relay_that_is_killed_makes_it_unready_and_not_unwell() {
    let Some(bench) = Bench::new() else { return };
    let mut relay = bench.relay();
    let sniffer = bench.sniffer("host", &["-i", "v1", "-f", "udp port 5000", "--admin", "9441"]);
    bench.await_streams(1, 0);
    assert_eq!(await_ready(&bench, 200), "ready\n");
    for round in 1..=2 {
        relay.kill();
        let text = await_ready(&bench, 503);
        assert!(text.starts_with("relay ws://127.0.0.1:9440") && text.contains(": away for "), "{text}");
        assert_eq!(get(&bench.here, PORT, "/healthz"), (200, "ok\n".to_owned()));
        let scrape = await_figures(&bench, "it is tried again", |one| {
            one.sniffer("uplink_connect_failures_total") > 0
        });
        let figures = ["uplink_connected", "uplink_connects_total"].map(|name| scrape.sniffer(name));
        assert_eq!(figures, [0, round]);
        assert_eq!(scrape.series("ringcast_sniffer_uplink_round_trip_seconds"), None);
        relay = bench.relay();
        assert_eq!(await_ready(&bench, 200), "ready\n");
    }
    assert_eq!(Scrape::new(&bench.here, PORT).sniffer("uplink_connects_total"), 3);
    // The interface is gone: it waits for it, and says so.
    bench.here.ip(&["link", "del", "v1"]);
    assert_eq!(await_ready(&bench, 503), "interface v1: not there, or cannot be opened\n");
    let scrape = await_figures(&bench, "its ring is closed", |one| one.sniffer("rings") == 0);
    assert_eq!(scrape.series("ringcast_sniffer_interface_up{interface=\"v1\"}"), Some(0.0));
    assert_eq!(sniffer.terminate().code(), 0);
}

#[test]
fn an_outage_is_seen_in_the_spool_and_goes_away_with_it() {
    let Some(wide) = Wide::new() else { return };
    let relay = wide.relay(&[]);
    let spool = wide.path("spool");
    let sniffer = wide.sniffer_with_spool(&spool, &["--admin", "9441"]);
    wide.await_viewers(0);
    let bench = &wide.bench;
    let scrape = Scrape::new(&bench.here, PORT);
    assert_eq!((scrape.sniffer("spool_unsettled_packets"), scrape.sniffer("backlog_packets")), (0, 0));
    relay.kill();
    await_figures(bench, "the relay is away", |one| one.sniffer("uplink_connected") == 0);
    let traffic = wide.traffic(0, 500, 300);
    let early = await_figures(bench, "it is spooled", |one| one.sniffer("spool_unsettled_packets") > 100);
    let later = await_figures(bench, "more of it", |one| {
        let grows = |name| one.sniffer(name) > early.sniffer(name);
        grows("spool_unsettled_packets")
            && grows("spool_oldest_age_seconds")
            && grows("spool_written_bytes_total")
    });
    assert!(later.sniffer("spool_bytes") >= later.sniffer("spool_unsettled_bytes"));
    assert!(later.sniffer("backlog_packets") >= later.sniffer("spool_unsettled_packets"));
    assert_eq!(later.sniffer("spool_limit_bytes"), 10 << 30);
    // What is captured goes somewhere.
    assert_eq!(await_ready(bench, 200), "ready\n");
    let sent = traffic.stop();

    let _relay = wide.relay(&[]);
    let viewer = Bench::viewer_in(&wide.middle, &wide.path("out"), &["--until-end", "--backlog"]);
    let mut follow = Follow::new(wide.path("out"));
    follow.await_all(sent, DEADLINE);
    let drained = await_figures(bench, "it is drained", |one| {
        one.sniffer("spool_unsettled_packets") == 0 && one.sniffer("spool_unsettled_bytes") == 0
    });
    assert_eq!(drained.sniffer("spool_oldest_age_seconds"), 0);
    assert_eq!(drained.sniffer("backlog_packets"), 0);
    let written = drained.sniffer("spool_written_packets_total");
    assert!(
        written >= later.sniffer("spool_written_packets_total") && written <= sent,
        "{written} of {sent}"
    );
    assert_eq!(drained.sniffer("captured_packets_total"), sent);
    let ended = sniffer.terminate();
    assert_eq!((ended.code(), captured(&ended)), (0, (sent, 0, sent)));
    assert_eq!(viewer.wait().code(), 0);
}

#[test]
fn a_port_that_cannot_be_had_or_is_too_open_is_refused() {
    let Some(bench) = Bench::new() else { return };
    let command = |arguments: &[&str]| {
        run(bench.here.command(tests::program("sniffer")).args(["-i", "v1"]).args(arguments))
    };
    let (status, _, errors) = command(&["--admin", "0.0.0.0:9441"]);
    assert!(status == 2 && errors.contains("--admin 0.0.0.0:9441: not a loopback address"), "{errors}");
    let mut first = bench.sniffer("host", &["-i", "v1", "--admin", "0.0.0.0:9441", "--insecure-admin"]);
    first.await_line("admin port: http://0.0.0.0:9441/");
    await_ready(&bench, 503); // there is no relay
    let (status, _, errors) = command(&["--admin", "9441"]);
    assert!(status == 1 && errors.contains("sniffer: --admin 127.0.0.1:9441: "), "{errors}");
    assert!(errors.to_lowercase().contains("in use"), "{errors}");
}
