//! Interfaces that go down, go away, or are not there yet: capture goes on into the same file, which
//! tells of the gap.

use std::time::Duration;

use tests::faults::{Account, Follow, Wide};
use tests::live::{Bench, HERE, Pcapng, THERE, await_bytes, udp};
use tests::process::DEADLINE;
use tests::tshark;

/// How long the interface is away.
const AWAY_TIME: Duration = Duration::from_secs(2);

/// Sends 1000 packets, has `fault` done, sends 1000 more: all are in one file, which says `text`.
fn interface_fails(text: &str, name: &str, fault: impl FnOnce(&Wide, &mut tests::process::Process)) {
    let Some(wide) = Wide::new() else { return };
    let _relay = wide.relay(&[]);
    let mut sniffer = wide.sniffer(&[]);
    wide.await_viewers(0);
    // Not until the end of all streams: that comes when the interface is gone.
    let viewer = Bench::viewer_in(&wide.middle, &wide.path("out"), &[]);
    wide.await_viewers(1);
    let mut follow = Follow::new(wide.path("out"));
    wide.bench.send_all_numbered(0, 1000, 100);
    follow.await_count(1000, DEADLINE);
    fault(&wide, &mut sniffer);
    wide.bench.send_all_numbered(1000, 1000, 100);
    follow.await_count(2000, DEADLINE);
    assert_eq!(sniffer.terminate().code(), 0);
    let account = Account::new(2000, &wide.path("out"), &viewer.terminate());
    account.assert_complete();
    assert_eq!(account.file.interfaces.len(), 1, "{name}: one interface in the file: {account}");
    assert!(account.has_comment(text), "{text:?}: {account}");
    let told = account.file.packets.iter().position(|packet| !packet.comments.is_empty());
    assert_eq!(told, Some(1000), "the first packet after the gap tells of it: {account}");
}

#[test]
fn an_interface_that_goes_down_is_captured_when_it_is_up() {
    interface_fails("ringcast: interface v1: down for ", "down", |wide, sniffer| {
        let here = &wide.bench.here;
        here.ip(&["link", "set", "v1", "down"]);
        sniffer.await_line("interface v1: down");
        std::thread::sleep(AWAY_TIME); // the fault lasts so long
        here.ip(&["link", "set", "v1", "up"]);
        sniffer.await_line("interface v1: up again");
        here.await_up("v1");
        wide.bench.there.await_up("v2");
    });
}

#[test]
fn a_wire_that_is_pulled_is_captured_when_it_is_back() {
    interface_fails("ringcast: interface v1: down for ", "no carrier", |wide, sniffer| {
        wide.bench.there.ip(&["link", "set", "v2", "down"]);
        sniffer.await_line("interface v1: no carrier");
        std::thread::sleep(AWAY_TIME); // the fault lasts so long
        wide.bench.there.ip(&["link", "set", "v2", "up"]);
        sniffer.await_line("interface v1: up again");
        wide.bench.here.await_up("v1");
        wide.bench.there.await_up("v2");
    });
}

#[test]
fn an_interface_that_is_made_anew_is_captured_again() {
    interface_fails("ringcast: interface v1: gone for ", "gone", |wide, sniffer| {
        wide.bench.here.ip(&["link", "del", "v1"]);
        sniffer.await_line("interface v1: gone");
        std::thread::sleep(AWAY_TIME); // the fault lasts so long
        wide.bench.wire("v1", HERE, "v2", THERE);
        sniffer.await_line("interface v1: there again");
    });
}

#[test]
fn an_interface_that_is_missing_at_the_start_is_waited_for() {
    let Some(bench) = Bench::new().filter(|_| tshark::is_available()) else { return };
    let _relay = bench.relay();
    let mut sniffer = bench.sniffer("host", &["-i", "w1", "--wait", "-f", "udp port 5000"]);
    sniffer.await_line("w1");
    sniffer.await_line(": connected");
    let file = bench.path("out");
    let viewer = bench.viewer(&file, &[]);
    bench.wire("w1", [2, 0, 0, 0, 0, 3], "w2", [2, 0, 0, 0, 0, 4]);
    sniffer.await_line("interface w1: capturing");
    bench.await_streams(1, 1);
    bench.send(&bench.there, "w2", &[udp(1, 5000, b"there at last")]);
    await_bytes(&file, b"there at last");
    assert_eq!(sniffer.terminate().code(), 0);
    assert_eq!(viewer.wait().code(), 0);
    let read = Pcapng::read(&file);
    assert_eq!((read.interfaces[0].0.as_str(), read.packets.len()), ("host:w1", 1));
}
