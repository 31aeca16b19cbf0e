//! Several rings of an interface, and a ring that is too small: nothing twice, nothing uncounted.

use std::collections::BTreeSet;

use tests::live::{Bench, Pcapng, await_bytes, captured, viewed};
use tests::tshark;

/// Captures with two rings while packets flow from before the start on.
fn fan_out(mode: &str) {
    let Some(bench) = Bench::new().filter(|_| tshark::is_available()) else { return };
    let _relay = bench.relay();
    let file = bench.path("out");
    let viewer = bench.viewer(&file, &[]);
    let mut sender = bench.send_numbered(0, 20_000, 50);
    sender.await_line("under way");
    let sniffer = bench.sniffer("host", &["-i", "v1", "-f", "udp", "--cores", "0,1", "--fanout", mode]);
    bench.await_streams(2, 1);
    assert_eq!(sender.wait().code(), 0);
    bench.send_all_numbered(20_000, 2000, 50);
    await_bytes(&file, b"number=00021999");
    let sniffer = sniffer.terminate();
    let viewer = viewer.wait();
    assert_eq!((sniffer.code(), viewer.code()), (0, 0));

    let read = Pcapng::read(&file);
    let count = read.packets.len() as u64;
    assert_eq!(captured(&sniffer), (count, 0, count));
    assert_eq!(viewed(&viewer), (count, count));
    assert_eq!(read.interfaces.len(), 1, "the rings are one interface");
    assert_eq!(read.interfaces[0].2.filter_accepted, Some(count));
    assert!(count > 10_000, "{count}");
    let numbers: BTreeSet<u64> = read.numbers().into_iter().collect();
    assert_eq!(numbers.len() as u64, count, "none twice");
    assert_eq!(numbers.last(), Some(&21_999));
    // The rings are opened to packets one after the other: within that moment, far below a tenth
    // of a second, packets of the later ring are still missing; after it none is.
    let start_ns = read.packets.iter().map(|packet| packet.time_ns).min().unwrap_or_default();
    let settled = |packet: &&tests::live::Packet| packet.time_ns > start_ns + 100_000_000;
    let first = read.packets.iter().filter(settled).filter_map(|packet| packet.number()).min().expect("some");
    let missing: Vec<u64> = (first..22_000).filter(|number| !numbers.contains(number)).collect();
    assert_eq!(missing, [0; 0]);
    let early = numbers.first().map_or(0, |least| first - least);
    let seen = numbers.range(..first).count() as u64;
    eprintln!("{mode}: {count} packets, of the first {early} in the first 100 ms {} missing", early - seen);
}

#[test]
fn hash_deals_every_packet_out_once() {
    fan_out("hash");
}

#[test]
fn turns_deal_every_packet_out_once() {
    fan_out("lb");
}

#[test]
fn processors_deal_every_packet_out_once() {
    fan_out("cpu");
}

#[test]
fn what_the_kernel_drops_is_counted_to_the_packet() {
    let Some(bench) = Bench::new().filter(|_| tshark::is_available()) else { return };
    let _relay = bench.relay();
    let arguments = ["-i", "v1", "-f", "udp", "--ring-size", "64KiB", "--block-size", "4KiB"];
    let sniffer = bench.sniffer("host", &arguments);
    bench.await_streams(1, 0);
    let file = bench.path("out");
    let viewer = bench.viewer(&file, &[]);
    bench.await_streams(1, 1);
    bench.send_all_numbered(0, 1000, 10);
    await_bytes(&file, b"number=00000999");
    // What the viewer misses it counts from the first report on: isb_osdrop 0, then isb_usrdeliv.
    await_bytes(&file, &[7, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 8, 0]);
    // A sniffer that gets no processor, while more comes than the ring holds.
    sniffer.signal("STOP");
    bench.send_all_numbered(1000, 20_000, 0);
    sniffer.signal("CONT");
    bench.send_all_numbered(21_000, 1000, 10);
    await_bytes(&file, b"number=00021999");
    let sniffer = sniffer.terminate();
    let viewer = viewer.wait();
    assert_eq!((sniffer.code(), viewer.code()), (0, 0));

    let read = Pcapng::read(&file);
    let count = read.packets.len() as u64;
    let (offered, drops, kept) = captured(&sniffer);
    eprintln!("{offered} offered, {drops} dropped by the kernel, {kept} captured");
    assert_eq!(offered, 22_000);
    assert!(drops > 10_000);
    assert_eq!((kept, offered), (count, drops + kept));
    assert_eq!(viewed(&viewer), (count, count));
    assert!(viewer.stderr.contains(&format!("kernel ring {drops}")), "{}", viewer.stderr);
    let statistics = &read.interfaces[0].2;
    assert_eq!(statistics.filter_accepted, Some(offered));
    assert_eq!(statistics.kernel_drops, Some(drops));
    assert_eq!(statistics.delivered, Some(count));
    let disorder: Vec<_> = read
        .packets
        .windows(2)
        .filter(|pair| pair[0].number() >= pair[1].number())
        .map(|pair| (pair[0].number(), pair[0].time_ns, pair[1].number(), pair[1].time_ns))
        .collect();
    assert_eq!(disorder, [], "in order, none twice");
    // Whoever looks at the file sees it: at the first packet after the sniffer told, or at the end.
    let bytes = std::fs::read(&file).expect("the file");
    let told = format!("ringcast: {drops} packets lost ");
    assert!(String::from_utf8_lossy(&bytes).contains(&told), "{told}");
}
