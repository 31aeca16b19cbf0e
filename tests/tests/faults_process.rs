//! Programs that are killed, or told to end, at the wrong time: what was under way is delivered, or
//! counted.

use std::time::{Duration, Instant};

use tests::faults::{Account, Follow, Wide, await_drained, await_spooled, journal, packed, spooled, timed};
use tests::live::{Bench, Pcapng, captured, number_before};
use tests::process::{DEADLINE, Process};
use tests::tshark;

/// Kills the relay under traffic and starts it again, twice; every viewer gets every packet.
fn relay_dies_twice(arguments: &[&str], viewers: &[&str]) {
    let Some(wide) = Wide::new() else { return };
    let mut relay = wide.relay(arguments);
    // They are there first: a worker does not know of the viewers that another one has.
    let processes: Vec<Process> = viewers.iter().map(|name| wide.viewer(name)).collect();
    viewers.iter().for_each(|name| wide.await_file(name));
    let mut sniffer = wide.sniffer(&[]);
    sniffer.await_line(": connected");
    let traffic = wide.traffic(0, 3000, 300);
    let mut follow: Vec<Follow> = viewers.iter().map(|name| Follow::new(wide.path(name))).collect();
    for time in 1..=2 {
        follow.iter_mut().for_each(|one| one.await_more(1500));
        relay.kill();
        sniffer.await_lines("capture goes on", time, DEADLINE);
        relay = wide.relay(arguments);
        sniffer.await_lines(": connected", time + 1, DEADLINE);
    }
    follow.iter_mut().for_each(|one| one.await_more(1500));
    let sent = traffic.stop();
    follow.iter_mut().for_each(|one| one.await_all(sent, DEADLINE));
    let sniffer = sniffer.terminate();
    assert_eq!(captured(&sniffer), (sent, 0, sent));
    for (viewer, name) in processes.into_iter().zip(viewers) {
        Account::new(sent, &wide.path(name), &viewer.wait()).assert_complete();
    }
}

#[test]
fn a_relay_that_dies_twice_costs_no_packet() {
    relay_dies_twice(&[], &["out"]);
}

#[test]
fn a_relay_of_two_workers_that_dies_twice_costs_no_packet() {
    relay_dies_twice(&["--workers", "2"], &["one", "other"]);
}

#[test]
fn a_sniffer_killed_with_its_line_up_loses_one_interval() {
    let Some(wide) = Wide::new() else { return };
    let spool = wide.path("spool");
    let _relay = wide.relay(&[]);
    let sniffer = wide.sniffer_with_spool(&spool, &[]);
    wide.await_viewers(0);
    let viewer = wide.viewer("out");
    wide.await_viewers(1);
    let traffic = wide.traffic(0, 3000, 300);
    let mut follow = Follow::new(wide.path("out"));
    follow.await_count(5000, DEADLINE);
    sniffer.kill();
    let was_packed = packed(&spool);
    let mut sniffer = wide.sniffer_with_spool(&spool, &[]);
    sniffer.await_line(": connected");
    follow.await_more(3000);
    let sent = traffic.stop();
    follow.await_number(sent - 1, DEADLINE);
    let sniffer = sniffer.terminate();
    let account = Account::new(sent, &wide.path("out"), &viewer.wait());
    killed_once(&account, was_packed, &sniffer.stderr);
}

/// What must hold when the sniffer was killed once and had packed `was_packed` packets by then: what
/// is missing lies in one interval, of which it is exactly counted what was packed.
fn killed_once(account: &Account, was_packed: u64, said: &str) {
    let (begin, end) = account.interval().unwrap_or((was_packed, was_packed));
    eprintln!("[kill] {was_packed} packed, missing {begin}..{end}, counted {:?}", account.counted);
    assert!(begin <= was_packed && was_packed <= end, "{was_packed} were packed: {account}");
    assert_eq!(account.counted_at("sniffer restarted"), was_packed - begin, "{account}");
    assert_eq!(account.counted(), was_packed - begin, "nothing else is counted: {account}");
    let counted = was_packed - begin;
    let at = said.find("everything is sent or counted; lost: ").expect("the next run says what became of it");
    let line = said[at..].lines().next().unwrap_or_default();
    let told = if line.ends_with("none") { 0 } else { number_before(line, " sniffer restarted") };
    assert_eq!(told, counted, "{line}");
    assert!(account.has_comment("interface v1: not captured, its sniffer did not run"), "{account}");
}

#[test]
fn a_sniffer_killed_in_an_outage_leaves_what_it_spooled() {
    let Some(wide) = Wide::new() else { return };
    let spool = wide.path("spool");
    let relay = wide.relay(&[]);
    let mut sniffer = wide.sniffer_with_spool(&spool, &[]);
    wide.await_viewers(0);
    let viewer = wide.viewer("out");
    wide.await_viewers(1);
    let traffic = wide.traffic(0, 3000, 300);
    let mut follow = Follow::new(wide.path("out"));
    follow.await_count(3000, DEADLINE);
    relay.kill();
    sniffer.await_line("capture goes on");
    await_spooled(&spool, 6000, DEADLINE);
    sniffer.kill();
    let was_packed = packed(&spool);

    // What is left can be looked at, with our own tools and with others.
    let (status, list) = journal("list", &spool, &[]);
    assert_eq!(status, 0, "{list}");
    let (status, verified) = journal("verify", &spool, &[]);
    assert!(status == 0 && verified.contains(": whole"), "{verified}");
    let dump = wide.path("dump.pcapng");
    let (status, said) = journal("dump", &spool, &["-w", &dump.to_string_lossy()]);
    assert_eq!(status, 0, "{said}");
    let dumped = Pcapng::read(&dump).numbers();
    assert_eq!(dumped.len() as u64, number_before(&verified, " packets: whole"), "{verified}");
    assert!(dumped.len() >= 6000 && dumped.windows(2).all(|pair| pair[0] < pair[1]), "{dumped:?}");
    assert!(dumped.last() < Some(&was_packed));
    assert_eq!(tshark::fields(&dump, "udp.port == 5000", &["frame.number"]).len(), dumped.len());

    let mut sniffer = wide.sniffer_with_spool(&spool, &[]);
    sniffer.await_line("capture goes on");
    let _relay = wide.relay(&[]);
    sniffer.await_line(": connected");
    follow.await_more(12_000);
    let sent = traffic.stop();
    follow.await_number(sent - 1, DEADLINE);
    await_drained(&spool, DEADLINE);
    let sniffer = sniffer.terminate();
    let account = Account::new(sent, &wide.path("out"), &viewer.wait());
    let lost: Vec<u64> = dumped.into_iter().filter(|one| account.missing.contains(one)).collect();
    assert!(lost.is_empty(), "spooled, and not delivered: {lost:?}");
    killed_once(&account, was_packed, &sniffer.stderr);
}

#[test]
fn a_sniffer_that_ends_without_its_relay_leaves_all_in_the_spool() {
    let Some(wide) = Wide::new() else { return };
    let spool = wide.path("spool");
    let relay = wide.relay(&[]);
    let mut sniffer = wide.sniffer_with_spool(&spool, &[]);
    wide.await_viewers(0);
    let viewer = wide.viewer("out");
    wide.await_viewers(1);
    let traffic = wide.traffic(0, 3000, 300);
    let mut follow = Follow::new(wide.path("out"));
    follow.await_count(2000, DEADLINE);
    relay.kill();
    sniffer.await_line("capture goes on");
    await_spooled(&spool, 1000, DEADLINE);
    let sent = traffic.stop();
    let begin = Instant::now();
    let sniffer = timed("the sniffer's end without its relay", || sniffer.terminate());
    // It is bound to 5 s and one block timeout.
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert_eq!((sniffer.code(), captured(&sniffer)), (0, (sent, 0, sent)));
    let at = sniffer.stderr.find("in the spool for the next run: ").expect("it says what is left");
    let left = number_before(&sniffer.stderr[at..], " packets");
    follow.read();
    assert!(left >= sent - follow.numbers.len() as u64, "{left} left: {}", sniffer.stderr);
    assert!(left <= spooled(&spool), "{left} left");

    let _relay = wide.relay(&[]);
    let mut sniffer = wide.sniffer_with_spool(&spool, &[]);
    sniffer.await_line(": connected");
    follow.await_all(sent, DEADLINE);
    assert_eq!(sniffer.terminate().code(), 0);
    let account = Account::new(sent, &wide.path("out"), &viewer.wait());
    account.assert_complete();
}

#[test]
fn a_sniffer_that_ends_without_relay_and_spool_says_what_is_lost() {
    let Some(wide) = Wide::new() else { return };
    let mut sniffer = wide.sniffer(&[]);
    sniffer.await_line("capture goes on");
    let traffic = wide.traffic(0, 3000, 300);
    std::thread::sleep(Duration::from_secs(1)); // some traffic
    let sent = traffic.stop();
    let begin = Instant::now();
    let sniffer = timed("the sniffer's end without relay and spool", || sniffer.terminate());
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert_eq!((sniffer.code(), captured(&sniffer)), (0, (sent, 0, sent)));
    let at = sniffer.stderr.find("not settled by the relay: ").expect("it says what is lost");
    assert_eq!(number_before(&sniffer.stderr[at..], " packets"), sent);
}

#[test]
fn what_an_earlier_run_left_comes_to_a_viewer_that_asks_for_it() {
    let Some(wide) = Wide::new() else { return };
    let spool = wide.path("spool");
    let mut sniffer = wide.sniffer_with_spool(&spool, &[]);
    sniffer.await_line("capture goes on");
    let traffic = wide.traffic(0, 3000, 300);
    await_spooled(&spool, 3000, DEADLINE);
    let sent = traffic.stop();
    assert_eq!(captured(&sniffer.terminate()), (sent, 0, sent));

    let _relay = wide.relay(&[]);
    let viewer = Bench::viewer_in(&wide.middle, &wide.path("out"), &["--until-end", "--backlog"]);
    let mut follow = Follow::new(wide.path("out"));
    wide.await_file("out");
    let sniffer = wide.sniffer_with_spool(&spool, &[]);
    follow.await_all(sent, DEADLINE);
    assert_eq!(sniffer.terminate().code(), 0);
    Account::new(sent, &wide.path("out"), &viewer.wait()).assert_complete();
}
