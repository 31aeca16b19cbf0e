//! What a live capture shows is what was on the wire: against tcpdump, against the frames sent.

use tests::live::{
    Bench, HERE, Pcapng, THERE, await_bytes, captured, ipv4, python, start, tagged, tcp_syn, udp, viewed,
};
use tests::tshark;

/// Serves `count` connections and sends each so many bytes, or, with `count` 0, the other way round.
const BULK: &str = "
import socket, sys
address, port, total = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
family = socket.AF_INET6 if ':' in address else socket.AF_INET
if sys.argv[1] == 'serve':
    listener = socket.create_server((address, port), family=family)
    print('serving', file=sys.stderr, flush=True)
    peer, _ = listener.accept()
    while peer.recv(1 << 20):
        pass
else:
    peer = socket.create_connection((address, port))
    data, left = bytes(range(256)) * 4096, total
    while left > 0:
        left -= peer.send(data[:left])
    peer.shutdown(socket.SHUT_WR)
    peer.recv(1)
";

/// Sends `total` bytes by TCP to `address`, an address of `here`, from there.
fn bulk(bench: &Bench, address: &str, total: usize) {
    let arguments = ["-c", BULK, "serve", address, "8080", "0"];
    let mut server = start(&bench.here, "python3", &arguments);
    server.await_line("serving");
    python(&bench.there, BULK, &["send", address, "8080", &total.to_string()]);
    assert_eq!(server.wait().code(), 0);
}

#[test]
fn the_output_equals_what_tcpdump_wrote() {
    let Some(bench) = Bench::new().filter(|_| tshark::is_available()) else { return };
    let _relay = bench.relay();
    let sniffer = bench.sniffer("host", &["-i", "v1"]);
    bench.await_streams(1, 0);
    let (ours, theirs) = (bench.path("ours.pcapng"), bench.path("theirs.pcap"));
    let viewer = bench.viewer(&ours, &[]);
    bench.await_streams(1, 1);
    let output = theirs.to_string_lossy().into_owned();
    let arguments =
        ["--nano", "-U", "-n", "-B", "65536", "-s", "262144", "-Z", "root", "-i", "v1", "-w", &output];
    let mut tcpdump = start(&bench.here, "tcpdump", &arguments);
    tcpdump.await_line("listening on");

    // What capture programs see most: echo requests, bulk TCP both ways, datagrams, broken frames.
    assert_eq!(start(&bench.here, "ping", &["-c", "5", "-i", "0.02", "10.9.0.2"]).wait().code(), 0);
    bulk(&bench, "10.9.0.1", 3_000_000);
    let mut frames: Vec<Vec<u8>> =
        (0..200).map(|n| udp(1000 + n, 5000, &vec![n as u8; usize::from(n) * 7])).collect();
    frames.push([HERE.as_slice(), &THERE, &[0x88, 0xb5]].concat());
    frames.push(tagged(&[(0x8100, 0xbabc)], &ipv4(17, &[7; 40])));
    frames.push(tagged(&[(0x88a8, 200), (0x8100, 100)], &ipv4(17, &[7; 40])));
    bench.send(&bench.there, "v2", &frames);
    bench.send_all_numbered(0, 5000, 100);
    bench.send(&bench.there, "v2", &[udp(1, 5000, b"the very last one")]);

    await_bytes(&theirs, b"the very last one");
    let tcpdump = tcpdump.terminate();
    assert!(tcpdump.stderr.contains("\n0 packets dropped by kernel"), "{}", tcpdump.stderr);
    let sniffer = sniffer.terminate();
    let viewer = viewer.wait();
    assert_eq!((sniffer.code(), viewer.code()), (0, 0));

    let fields = ["frame.md5_hash", "frame.len", "frame.cap_len", "tcp.srcport", "frame.time_epoch"];
    let mut ours_told = tshark::fields(&ours, "", &fields);
    let mut theirs_told = tshark::fields(&theirs, "", &fields);
    // Two processors may put packets into two rings in different orders.
    ours_told.sort();
    theirs_told.sort();
    assert!(theirs_told.len() > 5200, "{} packets", theirs_told.len());
    assert_eq!(ours_told.len(), theirs_told.len());
    let mut stamped_apart = 0;
    for (one, other) in ours_told.iter().zip(&theirs_told) {
        assert_eq!(one[..4], other[..4]);
        if one[4] != other[4] {
            // A segment that TCP of the far namespace sent comes without a stamp, its own having
            // been the pacing clock's: each packet socket stamps it for itself.
            let micros = |told: &str| told.replace('.', "")[4..16].parse::<i64>().expect("a time");
            assert!(!one[3].is_empty(), "stamps of {one:?} and {other:?}");
            assert!((micros(&one[4]) - micros(&other[4])).abs() < 10_000, "{one:?} and {other:?}");
            stamped_apart += 1;
        }
    }
    eprintln!("{} packets, {stamped_apart} of TCP with stamps of their own", ours_told.len());
    assert!(stamped_apart < ours_told.len() / 10);
    let count = ours_told.len() as u64;
    assert_eq!(captured(&sniffer), (count, 0, count));
    assert_eq!(viewed(&viewer), (count, count));
    assert_eq!(Pcapng::read(&ours).interfaces[0].0, "host:v1");
}

#[test]
fn tags_come_out_as_they_were_on_the_wire() {
    let Some(bench) = Bench::new().filter(|_| tshark::is_available()) else { return };
    let _relay = bench.relay();
    let runs = [
        ("all", &[][..]),
        ("vlan5", &["-f", "vlan 5"][..]),
        ("vlan", &["-f", "vlan"][..]),
        ("http", &["-f", "tcp port 80"][..]),
        ("udp", &["-f", "udp"][..]),
        ("cut", &["-s", "20"][..]),
    ];
    let sniffers =
        runs.map(|(name, arguments)| bench.sniffer(name, &[&["-i", "v1"][..], arguments].concat()));
    bench.await_streams(runs.len(), 0);
    let viewers = runs.map(|(name, _)| bench.viewer(&bench.path(name), &["--sniffer", name]));
    bench.await_streams(runs.len(), 1);

    let datagram = |mark: u8| ipv4(17, &[&[0x10, 0, 0x13, 0x88, 0, 48, 0, 0], &[mark; 40][..]].concat());
    let segment = ipv4(6, &tcp_syn(80));
    let received = [
        tagged(&[], &datagram(0)),
        tagged(&[(0x8100, 0xbabc)], &datagram(1)), // priority 5, drop eligible, id 0xabc
        tagged(&[(0x8100, 0xe000)], &datagram(2)), // a priority tag: id 0
        tagged(&[(0x88a8, 0x00c8), (0x8100, 0x0064)], &datagram(3)),
        tagged(&[(0x8100, 5)], &datagram(4)),
        tagged(&[], &segment),
    ];
    let sent = [tagged(&[(0x8100, 0x3005)], &datagram(6)), tagged(&[(0x88a8, 7)], &datagram(7))];
    bench.send(&bench.there, "v2", &received);
    bench.send(&bench.here, "v1", &sent);

    for sniffer in sniffers {
        assert_eq!(sniffer.terminate().code(), 0);
    }
    for viewer in viewers {
        assert_eq!(viewer.wait().code(), 0);
    }
    let read = |name: &str| Pcapng::read(&bench.path(name));
    let all: Vec<&[u8]> = received.iter().chain(&sent).map(Vec::as_slice).collect();
    let file = read("all");
    assert_eq!(file.data(), all);
    let directions: Vec<u32> = file.packets.iter().map(|packet| packet.flags & 3).collect();
    assert_eq!(directions, [1, 1, 1, 1, 1, 1, 2, 2], "1 is inbound, 2 is outbound");
    for packet in &file.packets {
        assert_eq!(packet.original_len, packet.data.len());
    }

    // Of the sent frames the tag is in the data, where the kernel's filter does not look for it
    // with libpcap 1.10.3's code for a live capture: it looks at both places.
    assert_eq!(read("vlan5").data(), [all[4], all[6]]);
    assert_eq!(read("vlan").data(), [all[1], all[2], all[3], all[4], all[6], all[7]]);
    assert_eq!(read("http").data(), [all[5]]);
    // The tag is not in the way of a filter that does not ask for it, when the kernel took it off.
    assert_eq!(read("udp").data(), [all[0], all[1], all[2], all[4]]);
    let cut: Vec<&[u8]> = all.iter().map(|frame| &frame[..20]).collect();
    let file = read("cut");
    assert_eq!(file.data(), cut);
    let lengths: Vec<usize> = file.packets.iter().map(|packet| packet.original_len).collect();
    assert_eq!(lengths, all.iter().map(|frame| frame.len()).collect::<Vec<_>>());
}

#[test]
fn frames_larger_than_the_wire_takes_stay_whole() {
    let Some(bench) = Bench::new().filter(|_| tshark::is_available()) else { return };
    bench.here.ip(&["link", "set", "v1", "mtu", "65535"]);
    bench.there.ip(&["link", "set", "v2", "mtu", "65535"]);
    let _relay = bench.relay();
    let sniffer = bench.sniffer("host", &["-i", "v1", "-f", "udp"]);
    bench.await_streams(1, 0);
    let file = bench.path("out");
    let viewer = bench.viewer(&file, &[]);
    bench.await_streams(1, 1);
    let frames: Vec<Vec<u8>> =
        [60_000, 65_000, 65_507].iter().map(|bytes| udp(9, 5000, &vec![*bytes as u8; *bytes])).collect();
    bench.send(&bench.there, "v2", &frames);
    // From a socket: the checksum is left to a device that is not there.
    let script = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x' * 60000, ('10.9.0.1', 5000))";
    python(&bench.there, script, &[]);
    assert_eq!(sniffer.terminate().code(), 0);
    assert_eq!(viewer.wait().code(), 0);
    let read = Pcapng::read(&file);
    assert_eq!(read.data()[..3], frames);
    assert_eq!(read.packets[3].data.len(), 60_042);
    assert_eq!(read.packets[3].flags & (1 << 9), 1 << 9, "its checksum is not ready");
    assert_eq!(read.packets[0].flags & (1 << 9), 0);
}

#[test]
fn bulk_tcp_is_kept_up_to_the_longest_frame_that_wireshark_reads() {
    let Some(bench) = Bench::new().filter(|_| tshark::is_available()) else { return };
    for (netns, interface, address) in [(&bench.here, "v1", "fd00::1/64"), (&bench.there, "v2", "fd00::2/64")]
    {
        netns.ip(&["addr", "add", address, "dev", interface, "nodad"]);
        let sizes = ["gso_max_size", "524280", "gro_max_size", "524280"];
        netns.ip(&[&["link", "set", interface][..], &sizes].concat());
    }
    let _relay = bench.relay();
    // No filter: libpcap's `tcp` does not look behind the jumbo option that such frames have.
    // The viewer first: IPv6 sends packets of its own before ours.
    let file = bench.path("out");
    let viewer = bench.viewer(&file, &[]);
    let sniffer = bench.sniffer("host", &["-i", "v1"]);
    bench.await_streams(1, 1);
    bulk(&bench, "fd00::1", 24_000_000);
    bulk(&bench, "10.9.0.1", 3_000_000);
    let sniffer = sniffer.terminate();
    let viewer = viewer.wait();
    assert_eq!((sniffer.code(), viewer.code()), (0, 0));
    let read = Pcapng::read(&file);
    let longest = read.packets.iter().map(|packet| packet.original_len).max().unwrap_or_default();
    let whole = read.packets.iter().filter(|packet| packet.data.len() == packet.original_len);
    let longest_whole = whole.clone().map(|packet| packet.data.len()).max().unwrap_or_default();
    eprintln!("longest frame {longest} bytes, longest whole one {longest_whole}");
    assert!(longest_whole > 60_000);
    let cut: Vec<_> = read.packets.iter().filter(|packet| packet.data.len() < packet.original_len).collect();
    assert!(cut.iter().all(|packet| packet.data.len() == 262_144));
    if longest > 262_144 {
        let told = format!("{} of them cut", cut.len());
        assert!(sniffer.stderr.contains(&told), "{told}: {}", sniffer.stderr);
    }
    assert!(longest > 65_549, "BIG TCP, which was set");
    let count = read.packets.len() as u64;
    assert_eq!(captured(&sniffer).2, count);
    assert_eq!(viewed(&viewer), (count, count));
}

#[test]
fn loopback_shows_each_packet_once() {
    let Some(bench) = Bench::new().filter(|_| tshark::is_available()) else { return };
    let _relay = bench.relay();
    let one = bench.sniffer("one", &["-i", "lo", "-f", "udp"]);
    let two = bench.sniffer("two", &["-i", "lo", "-f", "udp", "--cores", "0,1", "--fanout", "lb"]);
    bench.await_streams(3, 0);
    let viewers = ["one", "two"].map(|name| bench.viewer(&bench.path(name), &["--sniffer", name]));
    bench.await_streams(3, 1);
    let script = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range(20):
    s.sendto(b'number=%08d' % n, ('127.0.0.1', 5000))
";
    python(&bench.here, script, &[]);
    for sniffer in [one, two] {
        assert_eq!(sniffer.terminate().code(), 0);
    }
    for viewer in viewers {
        assert_eq!(viewer.wait().code(), 0);
    }
    for name in ["one", "two"] {
        let read = Pcapng::read(&bench.path(name));
        let mut numbers = read.numbers();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..20).collect::<Vec<_>>(), "{name}");
        assert_eq!(read.interfaces.len(), 1);
    }
}

#[test]
fn a_tunnel_gives_raw_ip() {
    let Some(bench) = Bench::new().filter(|_| tshark::is_available()) else { return };
    bench.here.ip(&["tuntap", "add", "dev", "tun0", "mode", "tun"]);
    bench.here.ip(&["link", "set", "tun0", "addrgenmode", "none"]);
    bench.here.ip(&["link", "set", "tun0", "up"]);
    let _relay = bench.relay();
    let sniffer = bench.sniffer("host", &["-i", "tun0"]);
    bench.await_streams(1, 0);
    let file = bench.path("out");
    let viewer = bench.viewer(&file, &[]);
    bench.await_streams(1, 1);
    let packet = ipv4(17, &[&[0x10, 0, 0x13, 0x88, 0, 12, 0, 0][..], b"abcd"].concat());
    let script = "
import fcntl, os, struct, sys
tun = os.open('/dev/net/tun', os.O_RDWR)
fcntl.ioctl(tun, 0x400454ca, struct.pack('16sH', b'tun0', 0x1001))
for _ in range(5):
    os.write(tun, bytes.fromhex(sys.argv[1]))
";
    let hex: String = packet.iter().map(|byte| format!("{byte:02x}")).collect();
    python(&bench.here, script, &[&hex]);
    assert_eq!(sniffer.terminate().code(), 0);
    assert_eq!(viewer.wait().code(), 0);
    let read = Pcapng::read(&file);
    assert_eq!((read.interfaces[0].0.as_str(), read.interfaces[0].1), ("host:tun0", 101));
    assert_eq!(read.data(), [packet.as_slice(); 5]);
    assert_eq!(tshark::fields(&file, "udp.port == 5000 && ip.dst == 10.99.0.1", &["frame.number"]).len(), 5);
}

#[test]
fn interfaces_come_and_go_under_any() {
    let Some(bench) = Bench::new().filter(|_| tshark::is_available()) else { return };
    let _relay = bench.relay();
    let mut sniffer = bench.sniffer("host", &["-i", "any", "-f", "udp"]);
    bench.await_streams(2, 0); // lo, v1
    let file = bench.path("out");
    let viewer = bench.viewer(&file, &[]);
    bench.await_streams(2, 1);
    bench.send(&bench.there, "v2", &[udp(1, 5000, b"over the first wire")]);
    await_bytes(&file, b"over the first wire");

    bench.wire("w1", [2, 0, 0, 0, 0, 3], "w2", [2, 0, 0, 0, 0, 4]);
    sniffer.await_line("interface w1: capturing");
    bench.await_streams(3, 1);
    let mut frame = udp(1, 5000, b"over the second wire");
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 3]);
    bench.send(&bench.there, "w2", &[frame.clone()]);
    await_bytes(&file, b"over the second wire");

    bench.here.ip(&["link", "del", "w1"]);
    bench.await_streams(2, 1);
    // The same name again is another interface.
    bench.wire("w1", [2, 0, 0, 0, 0, 3], "w2", [2, 0, 0, 0, 0, 4]);
    bench.await_streams(3, 1);
    frame.extend(b" again");
    bench.send(&bench.there, "w2", &[frame]);
    bench.send(&bench.there, "v2", &[udp(1, 5000, b"the first wire to the end")]);
    await_bytes(&file, b" again");
    await_bytes(&file, b"the first wire to the end");
    assert!(sniffer.is_running());
    assert_eq!(sniffer.terminate().code(), 0);
    assert_eq!(viewer.wait().code(), 0);
    let read = Pcapng::read(&file);
    let names: Vec<&str> =
        read.packets.iter().map(|packet| read.interfaces[packet.interface].0.as_str()).collect();
    assert_eq!(names, ["host:v1", "host:w1", "host:w1", "host:v1"]);
}

#[test]
fn many_interfaces_at_once_under_any() {
    let Some(bench) = Bench::new() else { return };
    let _relay = bench.relay();
    let sniffer = bench.sniffer("host", &["-i", "any", "--ring-size", "2MiB"]);
    bench.await_streams(2, 0);
    let (commands, removals): (String, String) = (0..100)
        .map(|n| (format!("link add a{n} up type veth peer name b{n}\n"), format!("link del a{n}\n")))
        .unzip();
    let batch = |text: &str| {
        std::fs::write(bench.path("batch"), text).expect("written");
        bench.here.ip(&["-batch", &bench.path("batch").to_string_lossy()]);
    };
    batch(&commands);
    bench.await_streams(202, 0);
    batch(&removals);
    bench.await_streams(2, 0);
    let sniffer = sniffer.terminate();
    assert_eq!(sniffer.code(), 0);
}

#[test]
fn several_interfaces_in_one_run() {
    let Some(bench) = Bench::new().filter(|_| tshark::is_available()) else { return };
    bench.wire("w1", [2, 0, 0, 0, 0, 3], "w2", [2, 0, 0, 0, 0, 4]);
    let _relay = bench.relay();
    let sniffer = bench.sniffer("host", &["-i", "v1", "-i", "w1"]);
    bench.await_streams(2, 0);
    let file = bench.path("out");
    let viewer = bench.viewer(&file, &[]);
    bench.await_streams(2, 1);
    bench.send(&bench.there, "v2", &[udp(1, 5000, b"first")]);
    bench.send(&bench.there, "w2", &[udp(1, 5000, b"second"), udp(1, 5000, b"third")]);
    let sniffer = sniffer.terminate();
    assert_eq!((sniffer.code(), viewer.wait().code()), (0, 0));
    assert!(sniffer.stderr.contains("interface v1: 1 packets"), "{}", sniffer.stderr);
    assert!(sniffer.stderr.contains("interface w1: 2 packets"), "{}", sniffer.stderr);
    let read = Pcapng::read(&file);
    let mut found: Vec<(&str, &[u8])> = read
        .packets
        .iter()
        .map(|packet| (read.interfaces[packet.interface].0.as_str(), &packet.data[42..]))
        .collect();
    found.sort_unstable();
    assert_eq!(found, [("host:v1", &b"first"[..]), ("host:w1", b"second"), ("host:w1", b"third")]);
}

#[test]
fn a_lone_packet_on_a_quiet_link_comes_soon() {
    let Some(bench) = Bench::new().filter(|_| tshark::is_available()) else { return };
    let _relay = bench.relay();
    let sniffer = bench.sniffer("host", &["-i", "v1"]);
    bench.await_streams(1, 0);
    let file = bench.path("out");
    let viewer = bench.viewer(&file, &[]);
    bench.await_streams(1, 1);
    let seen: Vec<_> = (0..5)
        .map(|n| {
            let payload = format!("lone packet {n}");
            std::thread::scope(|scope| {
                let seen = scope.spawn(|| await_bytes(&file, payload.as_bytes()));
                bench.send(&bench.there, "v2", &[udp(1, 5000, payload.as_bytes())]);
                seen.join().expect("it comes")
            })
        })
        .collect();
    assert_eq!(sniffer.terminate().code(), 0);
    assert_eq!(viewer.wait().code(), 0);
    for (packet, seen) in Pcapng::read(&file).packets.iter().zip(seen) {
        let seen_ns = seen.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
        let latency_ms = seen_ns.saturating_sub(packet.time_ns) as f64 / 1e6;
        eprintln!("from the wire into the file: {latency_ms:.1} ms at most");
        assert!(latency_ms < 2000.0);
    }
}
