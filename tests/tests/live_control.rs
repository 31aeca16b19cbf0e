//! Starting and ending in any order, and several sniffers and viewers at once.

use std::time::{Duration, Instant};

use tests::live::{Bench, Pcapng, await_bytes, captured, eventually, number_before, start, udp, viewed};
use tests::process::Process;
use tests::tshark;

fn two_named(bench: &Bench) -> [Process; 2] {
    bench.wire("w1", [2, 0, 0, 0, 0, 3], "w2", [2, 0, 0, 0, 0, 4]);
    [("left", "v1"), ("right", "w1")].map(|(name, interface)| bench.sniffer(name, &["-i", interface]))
}

#[test]
fn all_that_was_captured_before_the_end_is_delivered() {
    let Some(bench) = Bench::new().filter(|_| tshark::is_available()) else { return };
    let _relay = bench.relay();
    // A block timeout so long that the last packets are still in the ring when the end comes.
    let sniffer = bench.sniffer("host", &["-i", "v1", "--block-timeout", "1s"]);
    bench.await_streams(1, 0);
    let file = bench.path("out");
    let viewer = bench.viewer(&file, &[]);
    bench.await_streams(1, 1);
    bench.send_all_numbered(0, 3000, 0);
    let begin = Instant::now();
    let sniffer = sniffer.terminate();
    eprintln!("ended within {:.1} s", begin.elapsed().as_secs_f64());
    assert!(begin.elapsed() < Duration::from_secs(10));
    let viewer = viewer.wait();
    assert_eq!((sniffer.code(), viewer.code()), (0, 0));
    assert_eq!(captured(&sniffer), (3000, 0, 3000));
    assert_eq!(viewed(&viewer), (3000, 3000));
    assert_eq!(Pcapng::read(&file).numbers(), (0..3000).collect::<Vec<_>>());
}

#[test]
fn a_sniffer_ends_without_its_relay() {
    let Some(bench) = Bench::new() else { return };
    let relay = bench.relay();
    let mut sniffer = bench.sniffer("host", &["-i", "v1"]);
    bench.await_streams(1, 0);
    relay.signal("KILL");
    sniffer.await_line("capture goes on");
    bench.send_all_numbered(0, 500, 0);
    let begin = Instant::now();
    let sniffer = sniffer.terminate();
    eprintln!("ended within {:.1} s", begin.elapsed().as_secs_f64());
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(captured(&sniffer), (500, 0, 500));
    assert_eq!(
        number_before(&sniffer.stderr[sniffer.stderr.find("not settled").expect("said")..], " packets"),
        500
    );
}

#[test]
fn a_sniffer_that_was_there_first_delivers_everything() {
    let Some(bench) = Bench::new().filter(|_| tshark::is_available()) else { return };
    // The sniffer's way to the relay is opened last, so that a viewer can be there before.
    let mut sniffer = bench.sniffer("host", &["-i", "v1", "--relay", "ws://127.0.0.1:9441"]);
    sniffer.await_line("capture goes on");
    bench.send_all_numbered(0, 3000, 100);
    let _relay = bench.relay();
    let file = bench.path("out");
    let viewer = bench.viewer(&file, &[]);
    // It has subscribed: it opens its file only then.
    eventually("the viewer's file", || file.exists().then_some(()).ok_or_else(String::new));
    bench.send_all_numbered(3000, 1000, 100);
    let _way = start(&bench.here, "socat", &["TCP-LISTEN:9441,fork,reuseaddr", "TCP:127.0.0.1:9440"]);
    sniffer.await_line("connected");
    bench.send_all_numbered(4000, 1000, 100);
    let sniffer = sniffer.terminate();
    let viewer = viewer.wait();
    assert_eq!((sniffer.code(), viewer.code()), (0, 0));
    assert_eq!(sniffer.stderr.matches("capture goes on").count(), 1, "said once: {}", sniffer.stderr);
    assert_eq!(captured(&sniffer), (5000, 0, 5000));
    assert_eq!(viewed(&viewer), (5000, 5000));
    assert_eq!(Pcapng::read(&file).numbers(), (0..5000).collect::<Vec<_>>());
}

#[test]
fn viewers_choose_and_come_and_go() {
    let Some(bench) = Bench::new().filter(|_| tshark::is_available()) else { return };
    let _relay = bench.relay();
    let [left, right] = two_named(&bench);
    bench.await_streams(2, 0);
    let list = Bench::list(&bench.here, &[]);
    let listed: Vec<_> =
        list.iter().map(|one| (one["name"].as_str(), one["interfaces"][0].as_str())).collect();
    assert_eq!(listed, [(Some("left"), Some("v1")), (Some("right"), Some("w1"))]);
    let by_name = bench.viewer(&bench.path("name"), &["--sniffer", "le*"]);
    let by_interface = bench.viewer(&bench.path("interface"), &["--interface", "w?", "-f", "udp port 5000"]);
    bench.await_streams(2, 1);

    let to_both = |text: &str| {
        for interface in ["v2", "w2"] {
            let payload = format!("{text} {interface}");
            let frames = [udp(1, 5000, payload.as_bytes()), udp(1, 5001, payload.as_bytes())];
            bench.send(&bench.there, interface, &frames);
        }
        await_bytes(&bench.path("name"), format!("{text} v2").as_bytes());
        await_bytes(&bench.path("interface"), format!("{text} w2").as_bytes());
    };
    to_both("first");
    // One comes late, leaves, and comes back.
    let late = |name: &str| {
        let viewer = Bench::viewer_in(&bench.here, &bench.path(name), &[]);
        bench.await_streams(2, 2);
        viewer
    };
    let once = late("once");
    to_both("second");
    await_bytes(&bench.path("once"), b"second w2");
    assert_eq!(once.terminate().code(), 0);
    bench.await_streams(2, 1);
    to_both("third");
    let again = late("again");
    to_both("fourth");
    await_bytes(&bench.path("again"), b"fourth w2");

    assert_eq!((left.terminate().code(), right.terminate().code()), (0, 0));
    for viewer in [by_name, by_interface] {
        assert_eq!(viewer.wait().code(), 0);
    }
    assert_eq!(again.terminate().code(), 0);
    let payloads = |name: &str| -> Vec<String> {
        let read = Pcapng::read(&bench.path(name));
        let text = |packet: &tests::live::Packet| {
            let interface = &read.interfaces[packet.interface].0;
            let port = u16::from_be_bytes([packet.data[36], packet.data[37]]);
            format!("{} {interface} {port}", String::from_utf8_lossy(&packet.data[42..]))
        };
        let mut payloads: Vec<String> = read.packets.iter().map(text).collect();
        payloads.sort();
        payloads
    };
    let mut expected: Vec<String> = Vec::new();
    for text in ["first", "fourth", "second", "third"] {
        expected.extend([5000, 5001].map(|port| format!("{text} v2 left:v1 {port}")));
    }
    assert_eq!(payloads("name"), expected);
    let expected = ["first", "fourth", "second", "third"].map(|text| format!("{text} w2 right:w1 5000"));
    assert_eq!(payloads("interface"), expected);
    for (name, text) in [("once", "second"), ("again", "fourth")] {
        let expected = ["v2 left:v1 5000", "v2 left:v1 5001", "w2 right:w1 5000", "w2 right:w1 5001"];
        assert_eq!(payloads(name), expected.map(|rest| format!("{text} {rest}")));
    }
}

#[test]
fn two_sniffers_are_merged_by_time() {
    let Some(bench) = Bench::new().filter(|_| tshark::is_available()) else { return };
    let _relay = bench.relay();
    bench.wire("w1", [2, 0, 0, 0, 0, 3], "w2", [2, 0, 0, 0, 0, 4]);
    // One hands over 50 times as late as the other.
    let left = bench.sniffer("left", &["-i", "v1", "--block-timeout", "2ms"]);
    let right = bench.sniffer("right", &["-i", "w1", "--block-timeout", "100ms"]);
    bench.await_streams(2, 0);
    let (plain, merged) = (bench.path("plain"), bench.path("merged"));
    let viewers = [bench.viewer(&plain, &[]), bench.viewer(&merged, &["--reorder", "400ms"])];
    bench.await_streams(2, 2);
    let script = "
import socket, sys, time
outs = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW) for _ in range(2)]
for out, interface in zip(outs, ['v2', 'w2']):
    out.bind((interface, 0))
for n in range(2000):
    outs[n % 2].send(bytes.fromhex(sys.argv[1]) + b'number=%08d' % n)
    time.sleep(0.0005)
";
    let hex: String = udp(7, 5000, &[0; 15])[..42].iter().map(|byte| format!("{byte:02x}")).collect();
    tests::live::python(&bench.there, script, &[&hex]);
    assert_eq!((left.terminate().code(), right.terminate().code()), (0, 0));
    for viewer in viewers {
        assert_eq!(viewer.wait().code(), 0);
    }
    let inversions = |file: &std::path::Path| {
        let read = Pcapng::read(file);
        assert_eq!(read.packets.len(), 2000);
        read.packets.windows(2).filter(|pair| pair[0].time_ns > pair[1].time_ns).count()
    };
    eprintln!("{} inversions without the merge", inversions(&plain));
    assert!(inversions(&plain) > 0, "the case is one that needs the merge");
    assert_eq!(inversions(&merged), 0);
    assert_eq!(Pcapng::read(&merged).numbers(), (0..2000).collect::<Vec<_>>());
}

#[test]
fn viewers_leave_by_count_and_by_time() {
    let Some(bench) = Bench::new().filter(|_| tshark::is_available()) else { return };
    let _relay = bench.relay();
    let mut sniffer = bench.sniffer("host", &["-i", "v1"]);
    bench.await_streams(1, 0);
    let (counted, timed) = (bench.path("counted"), bench.path("timed"));
    let by_count = Bench::viewer_in(&bench.here, &counted, &["-c", "137"]);
    bench.await_streams(1, 1);
    let begin = Instant::now();
    let by_time = Bench::viewer_in(&bench.here, &timed, &["--duration", "3s"]);
    bench.await_streams(1, 2);
    bench.send_all_numbered(0, 1000, 100);
    let (by_count, by_time) = (by_count.wait(), by_time.wait());
    let elapsed = begin.elapsed();
    assert_eq!((by_count.code(), by_time.code()), (0, 0));
    assert!(elapsed >= Duration::from_secs(3) && elapsed < Duration::from_secs(8), "{elapsed:?}");
    assert_eq!(Pcapng::read(&counted).numbers(), (0..137).collect::<Vec<_>>());
    assert_eq!(Pcapng::read(&timed).numbers(), (0..1000).collect::<Vec<_>>());
    assert!(sniffer.is_running());
    assert_eq!(sniffer.terminate().code(), 0);
}
