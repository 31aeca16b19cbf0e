//! A sniffer does not show its own connection: over the wire that it captures, over loopback,
//! after a reconnect; and where it cannot know the connection, it notices.

use std::path::Path;
use std::time::{Duration, Instant};

use tests::live::{Bench, await_bytes, eventually, python, start, udp};
use tests::tshark;

/// The relay's place in these tests: at the far end of the wire.
const FAR_RELAY: [&str; 2] = ["--relay", "ws://10.9.0.2:9440"];

/// A connection from here to there and back, to be seen beside our own.
const OTHER_TCP: &str = "
import socket
listener = socket.create_server(('127.0.0.1', 8080))
peer = socket.create_connection(('127.0.0.1', 8080))
peer.sendall(b'another connection')
listener.accept()[0].recv(100)
";

/// Packets of any connection with the relay's port, as tshark tells them.
fn own_packets(file: &Path) -> Vec<Vec<String>> {
    tshark::fields(file, "tcp.port == 9440", &["frame.number", "tcp.srcport", "tcp.flags.str", "frame.len"])
}

fn own_uplink_is_left_out(filter: &[&str]) {
    let Some(bench) = Bench::new().filter(|_| tshark::is_available()) else { return };
    let listen = ["--listen", "10.9.0.2:9440", "--insecure"];
    let relay = Bench::relay_in(&bench.there, &listen);
    let sniffer = bench.sniffer("host", &[&["-i", "v1"], &FAR_RELAY[..], filter].concat());
    Bench::await_streams_in(&bench.there, &FAR_RELAY, 1, 0);
    let file = bench.path("out");
    let viewer = Bench::viewer_in(&bench.there, &file, &FAR_RELAY);
    Bench::await_streams_in(&bench.there, &FAR_RELAY, 1, 1);
    // TCP of others is not our own.
    let mut syn = tests::live::tagged(&[], &tests::live::ipv4(6, &tests::live::tcp_syn(80)));
    syn.extend(b"before the cut");
    bench.send(&bench.there, "v2", &[syn.clone()]);
    await_bytes(&file, b"before the cut");
    bench.send_all_numbered(0, 2000, 100);
    // The relay is killed, and another takes its place: a new connection, from another port.
    relay.signal("KILL");
    drop(relay);
    syn.truncate(syn.len() - 14);
    syn.extend(b"while it was away");
    bench.send(&bench.there, "v2", &[syn.clone()]);
    let _relay = Bench::relay_in(&bench.there, &listen);
    Bench::await_streams_in(&bench.there, &FAR_RELAY, 1, 1);
    syn.truncate(syn.len() - 17);
    syn.extend(b"after the cut");
    bench.send(&bench.there, "v2", &[syn]);
    await_bytes(&file, b"after the cut");
    bench.send_all_numbered(2000, 2000, 100);
    let sniffer = sniffer.terminate();
    assert_eq!(sniffer.code(), 0);
    assert_eq!(viewer.terminate().code(), 0);
    assert_eq!(own_packets(&file), [[""; 0]; 0]);
    assert!(tshark::fields(&file, "tcp.port == 80", &["frame.number"]).len() >= 2);
    let (offered, drops, kept) = tests::live::captured(&sniffer);
    let expected = if filter.is_empty() { 4003 } else { 3 };
    assert_eq!((offered, drops, kept), (expected, 0, expected), "nothing else was on the wire");
}

#[test]
fn own_uplink_over_the_captured_wire() {
    own_uplink_is_left_out(&[]);
}

#[test]
fn own_uplink_with_a_filter_that_wants_it() {
    own_uplink_is_left_out(&["-f", "tcp"]);
    own_uplink_is_left_out(&["-f", "udp port 53 or tcp port 9440 or tcp port 80"]);
}

#[test]
fn everything_over_loopback() {
    let Some(bench) = Bench::new().filter(|_| tshark::is_available()) else { return };
    let relay = bench.relay();
    let sniffer = bench.sniffer("host", &["-i", "lo"]);
    bench.await_streams(1, 0);
    let file = bench.path("out");
    let viewer = bench.viewer(&file, &[]);
    bench.await_streams(1, 1);
    python(&bench.here, OTHER_TCP, &[]);
    await_bytes(&file, b"another connection");
    relay.signal("KILL");
    drop(relay);
    let _relay = bench.relay();
    bench.await_streams(1, 1);
    python(&bench.here, &OTHER_TCP.replace("another", "a further").replace("8080", "8081"), &[]);
    await_bytes(&file, b"a further connection");
    assert_eq!(sniffer.terminate().code(), 0);
    assert_eq!(viewer.wait().code(), 0);
    assert_eq!(own_packets(&file), [[""; 0]; 0]);
    assert!(tshark::fields(&file, "tcp.port in {8080, 8081}", &["frame.number"]).len() >= 8);
}

/// The sniffer reaches the relay through a proxy on its own host: whose connection is whose, no
/// filter can tell.
fn through_a_proxy(arguments: &[&str]) -> Option<(Bench, [tests::process::Process; 3])> {
    let bench = Bench::new().filter(|_| tshark::is_available())?;
    let relay = Bench::relay_in(&bench.there, &["--listen", "10.9.0.2:9440", "--insecure"]);
    let proxy =
        start(&bench.here, "socat", &["-d", "-d", "TCP-LISTEN:9000,fork,reuseaddr", "TCP:10.9.0.2:9440"]);
    let mut proxy = proxy;
    proxy.await_line("listening on");
    let sniffer =
        bench.sniffer("host", &[&["-i", "v1", "--relay", "ws://127.0.0.1:9000"], arguments].concat());
    Bench::await_streams_in(&bench.there, &FAR_RELAY, 1, 0);
    bench.send(&bench.there, "v2", &[udp(1, 5000, b"what starts it")]);
    Some((bench, [relay, proxy, sniffer]))
}

#[test]
fn a_proxied_uplink_is_noticed() {
    let begin = Instant::now();
    let Some((_bench, [_relay, _proxy, mut sniffer])) = through_a_proxy(&[]) else { return };
    sniffer.await_line("own uplink");
    eprintln!("noticed {:.1} s after the start", begin.elapsed().as_secs_f64());
    assert!(begin.elapsed() < Duration::from_secs(30));
    let sniffer = sniffer.wait();
    assert_eq!(sniffer.code(), 1);
    assert!(sniffer.stderr.contains("interface v1"), "{}", sniffer.stderr);
}

#[test]
fn a_proxied_uplink_goes_on_if_that_is_wanted() {
    let Some((bench, [_relay, _proxy, mut sniffer])) = through_a_proxy(&["--include-self"]) else { return };
    // Longer than it takes to notice.
    let begin = Instant::now();
    eventually("eight seconds of capturing itself", || {
        assert!(sniffer.is_running());
        let list = Bench::list(&bench.there, &FAR_RELAY);
        let packets = list.first().and_then(|one| one["packets"].as_u64()).unwrap_or_default();
        let done = begin.elapsed() > Duration::from_secs(8) && packets > 500;
        if done { Ok(()) } else { Err(format!("{packets} packets")) }
    });
    assert_eq!(sniffer.terminate().code(), 0);
}
