//! Lines that are cut, stalled or too thin, under traffic. Several of these take half a minute and
//! more: nothing but silence tells a line that was cut, and silence takes its time.

use std::time::{Duration, Instant};

use tests::faults::{
    Account, DEAD_TIME, Follow, RELAY_FROM_FAR, Wide, await_drained, await_spooled, cut_connections, journal,
    sent_bytes, timed,
};
use tests::live::{Bench, captured, number_before};
use tests::process::DEADLINE;

/// For what takes a dead line's time beside its own.
const LONG: Duration = Duration::from_secs(120);

/// How long a line is cut. Both ends give a dead line up within it.
const CUT_TIME: Duration = Duration::from_secs(30);

#[test]
fn a_line_that_is_cut_for_long_costs_no_packet() {
    let Some(wide) = Wide::new() else { return };
    let spool = wide.path("spool");
    let mut relay = wide.relay(&[]);
    let mut sniffer = wide.sniffer_with_spool(&spool, &[]);
    wide.await_viewers(0);
    let viewer = wide.viewer("out");
    wide.await_viewers(1);
    // What comes in the outage is more than the memory holds.
    let traffic = wide.traffic(0, 2000, 1400);
    let mut follow = Follow::new(wide.path("out"));
    follow.await_count(4000, DEADLINE);

    wide.set_line(false);
    let begin = Instant::now();
    sniffer.await_lines("capture goes on", 1, LONG);
    let sniffer_time = begin.elapsed();
    relay.await_lines("sniffer host", 2, LONG);
    eprintln!(
        "[time] the sniffer gave the line up after {sniffer_time:?}, the relay after {:?}",
        begin.elapsed()
    );
    assert!(begin.elapsed() >= DEAD_TIME / 2, "not by its silence");
    await_spooled(&spool, 10_000, LONG);
    std::thread::sleep(CUT_TIME.saturating_sub(begin.elapsed())); // the fault lasts so long
    wide.set_line(true);

    timed("connected again", || sniffer.await_lines(": connected", 2, LONG));
    follow.read();
    let last_of_old = follow.greatest().expect("some");
    follow.await_number(last_of_old + 20_000, LONG);
    let sent = traffic.stop();
    timed("all delivered", || follow.await_all(sent, LONG));
    let sniffer = sniffer.terminate();
    assert_eq!(captured(&sniffer), (sent, 0, sent));
    let account = Account::new(sent, &wide.path("out"), &viewer.wait_within(LONG));
    account.assert_complete();
    // Live packets did not wait for the backlog.
    let last = account.numbers.windows(2).rposition(|pair| pair[0] > pair[1]);
    eprintln!("[order] the last older packet after a newer one: at {last:?} of {}", account.numbers.len());
    assert!(last.is_some(), "the backlog came first: {account}");
    let (_, list) = journal("list", &spool, &[]);
    assert!(list.contains(", 0 B not acknowledged"), "what is delivered is not kept: {list}");
}

#[test]
fn a_viewer_that_does_not_read_loses_packets_of_its_own_only() {
    let Some(wide) = Wide::new() else { return };
    let mut relay = wide.relay(&["--viewer-queue", "4MiB", "--recent", "1MiB"]);
    let sniffer = wide.sniffer(&[]);
    wide.await_viewers(0);
    let [stopped, dead] = ["stopped", "dead"].map(|name| wide.far_viewer(name));
    let untouched = wide.viewer("untouched");
    wide.await_viewers(3);
    let heavy = wide.traffic(0, 4000, 1400);
    let mut follow = Follow::new(wide.path("untouched"));
    follow.await_count(4000, DEADLINE);
    stopped.signal("STOP");
    dead.signal("STOP");
    let begin = Instant::now();
    std::thread::sleep(Duration::from_secs(10)); // the fault lasts so long
    stopped.signal("CONT");
    let end = heavy.stop();
    let light = wide.traffic(end, 100, 300);
    let mut of_stopped = Follow::new(wide.path("stopped"));
    of_stopped.await_number(end + 100, DEADLINE);

    // The other one stays as it is until the relay has enough of it: that takes a minute.
    let line = timed("a viewer that never reads is closed", || relay.await_lines("has not read", 1, LONG));
    eprintln!("[stalled] {line}, {:.0} s after it stopped", begin.elapsed().as_secs_f64());
    assert!(begin.elapsed() >= Duration::from_secs(30), "{line}");
    dead.signal("CONT");
    let mut of_dead = Follow::new(wide.path("dead"));
    of_dead.await_number(end + 2000, DEADLINE);
    let sent = light.stop();
    let sniffer = sniffer.terminate();
    assert_eq!((sniffer.code(), captured(&sniffer)), (0, (sent, 0, sent)));
    assert!(sniffer.stderr.contains("lost before sending: none"), "{}", sniffer.stderr);
    Account::new(sent, &wide.path("untouched"), &untouched.wait()).assert_complete();
    let account = Account::new(sent, &wide.path("stopped"), &stopped.wait());
    account.assert_exact_at(&["viewer queue"]);
    assert!(account.counted_at("viewer queue") > 0, "it was behind: {account}");
    assert!(account.has_comment("lost before this one (viewer queue)"), "{account}");
    let dead = dead.wait();
    assert!(dead.stderr.contains("connecting again"), "{}", dead.stderr);
    let account = Account::new(sent, &wide.path("dead"), &dead);
    account.assert_exact_at(&["viewer queue", "viewer away"]);
    assert!(account.counted() > 0, "{account}");
}

#[test]
fn a_viewer_whose_line_was_cut_continues_its_file() {
    let Some(wide) = Wide::new() else { return };
    let _relay = wide.relay(&[]);
    let sniffer = wide.sniffer(&[]);
    wide.await_viewers(0);
    let mut cut = wide.far_viewer("cut");
    let untouched = wide.viewer("untouched");
    wide.await_viewers(2);
    let traffic = wide.traffic(0, 2000, 300);
    let mut follow = Follow::new(wide.path("cut"));
    follow.await_count(2000, DEADLINE);
    // A reset is noticed at once...
    if cut_connections(&wide.middle, &["sport", "=", ":9440", "and", "dst", "10.7.0.2"]) {
        cut.await_lines("connecting again", 1, DEADLINE);
        follow.await_more(6000);
    }
    // ... silence is not.
    let told = cut.said().matches("connecting again").count();
    wide.set_far_line(false);
    let begin = Instant::now();
    cut.await_lines("connecting again", told + 1, LONG);
    eprintln!("[time] the viewer gave the line up after {:?}", begin.elapsed());
    std::thread::sleep((DEAD_TIME + Duration::from_secs(5)).saturating_sub(begin.elapsed())); // the fault
    wide.set_far_line(true);
    let before = follow.greatest().unwrap_or(0);
    follow.await_number(before + 20_000, LONG);
    let sent = traffic.stop();
    follow.await_all(sent, LONG);
    let sniffer = sniffer.terminate();
    assert_eq!(captured(&sniffer), (sent, 0, sent));
    for (name, viewer) in [("cut", cut), ("untouched", untouched)] {
        let account = Account::new(sent, &wide.path(name), &viewer.wait());
        account.assert_complete();
        assert!(account.numbers.is_sorted(), "{name}: one stream, in order");
    }
}

#[test]
fn what_a_viewer_missed_beyond_the_recent_blocks_is_counted() {
    let Some(wide) = Wide::new() else { return };
    let mut relay = wide.relay(&["--recent", "1MiB"]);
    let sniffer = wide.sniffer(&[]);
    wide.await_viewers(0);
    let viewer = wide.far_viewer("out");
    let untouched = wide.viewer("untouched");
    wide.await_viewers(2);
    let traffic = wide.traffic(0, 2000, 1400);
    let mut follow = Follow::new(wide.path("out"));
    let mut reference = Follow::new(wide.path("untouched"));
    follow.await_count(2000, DEADLINE);
    // The viewer does not know of the cut before it may go on, when the relay has forgotten much.
    viewer.signal("STOP");
    let is_quick = cut_connections(&wide.middle, &["sport", "=", ":9440", "and", "dst", "10.7.0.2"]);
    if !is_quick {
        wide.set_far_line(false);
        relay.await_lines("viewer (10.7.0.2", 1, LONG);
    }
    reference.await_more(8000);
    wide.set_far_line(true);
    viewer.signal("CONT");
    let before = reference.greatest().unwrap_or(0);
    follow.await_number(before + 4000, LONG);
    let sent = traffic.stop();
    follow.await_number(sent - 1, LONG);
    let sniffer = sniffer.terminate();
    assert_eq!(captured(&sniffer), (sent, 0, sent));
    Account::new(sent, &wide.path("untouched"), &untouched.wait()).assert_complete();
    let account = Account::new(sent, &wide.path("out"), &viewer.wait());
    account.assert_exact_at(&["viewer away"]);
    assert!(account.counted_at("viewer away") > 0, "{account}");
    assert!(account.has_comment("(viewer away)"), "{account}");
}

#[test]
fn a_line_with_a_cap_carries_what_is_live_and_no_more() {
    let Some(wide) = Wide::new() else { return };
    let spool = wide.path("spool");
    let _relay = wide.relay(&[]);
    let sniffer = wide.sniffer_with_spool(&spool, &["--rate", "8Mbit"]);
    wide.await_viewers(0);
    let viewer = Bench::viewer_in(&wide.far, &wide.path("out"), &["--relay", RELAY_FROM_FAR]);
    wide.await_viewers(1);
    // Four times the cap.
    let traffic = wide.traffic(0, 3000, 1400);
    let mut follow = Follow::new(wide.path("out"));
    follow.await_count(2000, DEADLINE);
    let (begin, before) = (Instant::now(), sent_bytes(&wide.bench.here, "u1"));
    std::thread::sleep(Duration::from_secs(6)); // what is measured
    let bits = (sent_bytes(&wide.bench.here, "u1") - before) as f64 * 8.0;
    let rate = bits / begin.elapsed().as_secs_f64();
    eprintln!("[rate] {:.2} Mbit/s on the wire", rate / 1e6);
    assert!(rate < 8e6 * 1.1, "{rate} bit/s");
    assert!(rate > 8e6 * 0.25, "{rate} bit/s is not what the line could do");
    await_spooled(&spool, 1000, DEADLINE);
    let before = traffic.stop();

    // One late packet: it does not wait for those before it.
    let late = wide.traffic(before, 100, 1400);
    timed("a late packet", || follow.await_number(before, DEADLINE));
    let in_file = follow.numbers.len() as u64;
    let sent = late.stop();
    eprintln!("[late] {in_file} of {before} packets in the file when packet {before} came");
    assert!(in_file < before, "there was no backlog");

    let ended = timed("the sniffer's end", || sniffer.terminate());
    assert_eq!((ended.code(), captured(&ended)), (0, (sent, 0, sent)));
    assert!(ended.stderr.contains("lost before sending: none"), "{}", ended.stderr);
    let at = ended.stderr.find("in the spool for the next run: ").expect("it says what is left");
    let left = number_before(&ended.stderr[at..], " packets");
    follow.read();
    assert!(left >= sent - follow.numbers.len() as u64, "{left} left: {}", ended.stderr);
    // The next run has no cap, and delivers the rest.
    let sniffer = wide.sniffer_with_spool(&spool, &[]);
    follow.await_all(sent, DEADLINE);
    await_drained(&spool, DEADLINE);
    assert_eq!(sniffer.terminate().code(), 0);
    Account::new(sent, &wide.path("out"), &viewer.terminate()).assert_complete();
}
