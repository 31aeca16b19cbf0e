//! Capture files through all three programs: every form of them, the options of `--read`, pipes
//! that pause, viewers that come late or are slow. The files are small and made here, so that what
//! is in them is known.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tests::judge::{self, Told};
use tests::process::{DEADLINE, Ended, Process, relay, run};
use tests::samples::{Order, Sample, noise, udp_frame};
use tests::{program, tshark};
use wire::Interface;
use wire::capture_file::{CaptureReader, Item};

const ORDERS: [Order; 2] = [Order::Little, Order::Big];
const SECOND: u32 = 1_700_000_000;
/// The least that the relay takes for `--viewer-queue`.
const SMALLEST_QUEUE: &str = "4MiB";

/// A packet of an output: its interface's name, time, original length, bytes.
type Row = (String, u64, u32, Vec<u8>);

/// Interfaces and packets of a file, as our reader has them.
fn contents(path: &Path) -> (Vec<Interface>, Vec<Row>) {
    let mut reader = CaptureReader::new(fs::File::open(path).expect("it is there")).expect("a capture file");
    let (mut interfaces, mut rows) = (Vec::<Interface>::new(), Vec::new());
    while let Some(item) = reader.next().expect("a sound file") {
        match item {
            Item::Interface(interface) => interfaces.push(interface),
            Item::Packet(packet) => {
                let name = interfaces[packet.interface as usize].name.clone();
                rows.push((name, packet.time_ns, packet.original_len, packet.data.to_vec()));
            }
        }
    }
    (interfaces, rows)
}

fn sniffer(url: &str, file: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("sniffer"));
    command.arg("--read").arg(file).args(["--relay", url, "--name", "m"]).args(arguments);
    command
}

fn viewer(url: &str, out: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("viewer"));
    command.args(["--relay", url, "--until-end", "-w"]).arg(out).args(arguments);
    command
}

/// Sends a file to one viewer; both ends.
fn pass(url: &str, file: &Path, out: &Path, sniffing: &[&str], viewing: &[&str]) -> (Ended, Ended) {
    let viewer = Process::start(&mut viewer(url, out, viewing));
    let sniffer = Process::start(&mut sniffer(url, file, sniffing));
    (sniffer.wait(), viewer.wait())
}

/// Asks the relay who is there, until the answer suits.
fn await_list(url: &str, mut suits: impl FnMut(&serde_json::Value) -> bool) -> serde_json::Value {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let mut list = Command::new(program("viewer"));
        let (code, stdout, stderr) = run(list.args(["--list", "--json", "--relay", url]));
        assert_eq!(code, 0, "{stderr}");
        let streams = serde_json::from_slice(&stdout).expect("JSON");
        if suits(&streams) {
            return streams;
        }
        assert!(Instant::now() < deadline, "{streams}");
    }
}

/// Waits until `file` holds `bytes`.
fn await_bytes(file: &Path, bytes: &[u8]) {
    let deadline = Instant::now() + DEADLINE;
    while !fs::read(file).is_ok_and(|all| all.windows(bytes.len()).any(|window| window == bytes)) {
        assert!(Instant::now() < deadline, "{:?} does not come", String::from_utf8_lossy(bytes));
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).expect("room for a file");
    path
}

/// Three packets, of which the last was cut.
fn pcap(order: Order, nanoseconds: bool, link_type: u32) -> Sample {
    let mut sample = Sample::pcap(order, nanoseconds, link_type);
    for (number, original) in [(0, 0), (1, 0), (2, 1500)] {
        let frame = udp_frame(1000 + number, 53, format!("packet {number}").as_bytes());
        let fraction = sample.fraction(123_456_789 + u32::from(number));
        sample.record(SECOND + u32::from(number), fraction, &frame, original.max(frame.len() as u32));
    }
    sample
}

/// Three interfaces of different kinds, with everything that is kept of them and their packets.
fn pcapng(order: Order) -> Sample {
    let mut sample = Sample::pcapng(order, &[(1, b"of the file"), (4, b"maker 1.0")]);
    let offset = if order == Order::Big { 3600i64.to_be_bytes() } else { 3600i64.to_le_bytes() };
    let speed = if order == Order::Big { 10_000_000u64.to_be_bytes() } else { 10_000_000u64.to_le_bytes() };
    sample.interface(
        1,
        0,
        &[
            (2, b"eth0"),
            (3, b"the first"),
            (6, &[2, 0, 0, 0, 0, 1]),
            (8, &speed),
            (9, &[9]),
            (11, b"\0udp"),
            (12, b"Plan 9"),
            (15, b"tin and string"),
        ],
    );
    sample.interface(101, 96, &[(2, b"tun0"), (9, &[6]), (14, &offset)]);
    sample.interface(1, 0, &[(9, &[0x8a])]);
    let frame = udp_frame(1, 53, b"with a comment");
    let ns = u64::from(SECOND) * 1_000_000_000 + 1;
    let word = |value: u32| if order == Order::Big { value.to_be_bytes() } else { value.to_le_bytes() };
    let drops = if order == Order::Big { 7u64.to_be_bytes() } else { 7u64.to_le_bytes() };
    let options: &[(u16, &[u8])] =
        &[(1, "größer".as_bytes()), (1, b"second, with a comma"), (2, &word(0x0a)), (4, &drops)];
    sample.packet(0, ns, &frame, frame.len() as u32, options);
    sample.packet(1, u64::from(SECOND) * 1_000_000 + 999_999, &frame[14..], frame.len() as u32 - 14, &[]);
    // 2^-10 s: 1/1024 s is a little less than a millisecond.
    sample.packet(2, u64::from(SECOND) * 1024 + 1, &frame, 9000, &[(1, b"last")]);
    let other = udp_frame(1, 80, b"of the first again");
    sample.packet(0, ns + 1, &other, other.len() as u32, &[]);
    sample
}

#[test]
fn every_form_of_file_comes_out_the_same() {
    if !tshark::is_available() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (relay, url) = relay(&[]);
    let mut files = Vec::new();
    for order in ORDERS {
        for nanoseconds in [false, true] {
            for link_type in [1, 113] {
                let name = format!("{order:?}-{nanoseconds}-{link_type}.pcap");
                files.push((name, pcap(order, nanoseconds, link_type)));
            }
        }
        files.push((format!("{order:?}.pcapng"), pcapng(order)));
    }
    for (name, sample) in &files {
        let path = write(folder.path(), name, sample.bytes());
        let out = folder.path().join("out.pcapng");
        let (sniffer, viewer) = pass(&url, &path, &out, &[], &[]);
        assert_eq!((sniffer.code(), viewer.code()), (0, 0), "{name}");
        let (sent, came) = (judge::ask_tshark(&path, folder.path()), judge::ask_tshark(&out, folder.path()));
        assert_eq!((sent.complaint.as_str(), came.complaint.as_str()), ("", ""), "{name}");
        assert!(sent.packets.len() >= 3, "{name}");
        let came: Vec<&Told> = came.packets.iter().collect();
        judge::compare("m", name, &sent.packets, &came, |a, b| a == b).expect(name);
        let count = came.len();
        assert!(sniffer.stderr.contains(&format!("{name}: {count} packets read (")), "{}", sniffer.stderr);
        assert!(viewer.stderr.contains(&format!("written {count}; missing none")), "{}", viewer.stderr);
        let (text, is_content) = tshark::capinfos(&out);
        assert!(is_content && text.contains(&format!("Number of packets:   {count}")), "{text}");
    }
    assert_eq!(relay.terminate().code(), 0);
}

#[test]
fn what_is_known_of_interfaces_is_kept() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (_relay, url) = relay(&[]);
    for order in ORDERS {
        let path = write(folder.path(), "in.pcapng", pcapng(order).bytes());
        let out = folder.path().join("out.pcapng");
        let (sniffer, viewer) = pass(&url, &path, &out, &[], &[]);
        assert_eq!((sniffer.code(), viewer.code()), (0, 0));
        let (mut sent, came) = (contents(&path).0, contents(&out).0);
        assert_eq!(sent[0].filter.as_deref(), Some("udp"));
        assert_eq!((sent[0].os.as_deref(), sent[0].speed_bits), (Some("Plan 9"), Some(10_000_000)));
        assert_eq!((sent[1].snaplen, sent[1].ts_offset_s), (96, 3600));
        for (interface, name) in sent.iter_mut().zip(["m:eth0", "m:tun0", "m:in.pcapng"]) {
            interface.name = name.to_owned();
            if interface.snaplen == 0 {
                interface.snaplen = 262_144; // the sniffer's own
            }
        }
        assert_eq!(sent, came);
    }
}

/// Two interfaces of different link types: the filter is compiled for each.
#[test]
fn filters_and_snaplen_work_on_files() {
    if !tshark::is_available() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (_relay, url) = relay(&[]);
    let mut sample = Sample::pcapng(Order::Little, &[]);
    sample.interface(1, 0, &[(2, b"eth0")]);
    sample.interface(101, 0, &[(2, b"tun0")]);
    for number in 0..200u16 {
        let frame = udp_frame(2000 + number, if number % 3 == 0 { 53 } else { 80 }, &[0; 100]);
        let at = if number % 2 == 0 { 0 } else { 14 };
        let data = &frame[at..];
        sample.packet(u32::from(number % 2), u64::from(SECOND), data, data.len() as u32, &[]);
    }
    let path = write(folder.path(), "in.pcapng", sample.bytes());
    let out = folder.path().join("out.pcapng");
    let names = ["frame.number", "udp.srcport", "frame.len", "frame.interface_name"];
    let judged = tshark::fields(&path, "udp.port == 53", &names[1..3]);
    assert_eq!(judged.len(), 67);
    for (sniffing, viewing) in [(&["-f", "udp port 53"][..], &[][..]), (&[], &["-f", "udp port 53"])] {
        let (sniffer, viewer) = pass(&url, &path, &out, sniffing, viewing);
        assert_eq!((sniffer.code(), viewer.code()), (0, 0));
        assert_eq!(tshark::fields(&out, "", &names[1..3]), judged);
        let accounted = if viewing.is_empty() { "received 67 packets" } else { "written 67, 133 filtered" };
        assert!(viewer.stderr.contains(accounted), "{}", viewer.stderr);
    }
    // An interface's filter is told where none was there before.
    let (sniffer, _) = pass(&url, &path, &out, &["-f", "udp port 53"], &[]);
    assert!(sniffer.stderr.contains("67 packets read"), "{}", sniffer.stderr);
    assert!(contents(&out).0.iter().all(|one| one.filter.as_deref() == Some("udp port 53")));

    let (sniffer, _) = pass(&url, &path, &out, &["-s", "60"], &[]);
    assert!(sniffer.stderr.contains("200 packets read") && sniffer.stderr.contains("200 of them cut"));
    let (sent, came) = (contents(&path).1, contents(&out).1);
    assert_eq!(sent.len(), came.len());
    for (sent, came) in sent.iter().zip(&came) {
        assert_eq!((came.2, came.3.as_slice()), (sent.2, &sent.3[..60]));
    }
    // One interface of two, and no more packets than asked for.
    pass(&url, &path, &out, &[], &["--interface", "tun*"]);
    let rows = contents(&out).1;
    assert!(rows.len() == 100 && rows.iter().all(|row| row.0 == "m:tun0"), "{}", rows.len());
    let (_, viewer) = pass(&url, &path, &out, &[], &["-c", "5"]);
    assert_eq!((viewer.code(), contents(&out).1.len()), (0, 5));
}

/// What a pipe has given so far arrives; nobody waits for its end.
#[test]
fn a_pipe_that_pauses_holds_nothing_back() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (_relay, url) = relay(&[]);
    let out = folder.path().join("out.pcapng");
    let viewer = Process::start(&mut viewer(&url, &out, &[]));
    let (mut sniffer, mut stdin) = Process::start_piped(&mut sniffer(&url, Path::new("-"), &[]));
    let whole = pcap(Order::Little, false, 1);
    let bytes = whole.bytes();
    // Byte by byte up to the middle of the second record, and then a pause.
    let second_end = bytes.len() - 24 - 8;
    for byte in &bytes[..second_end] {
        stdin.write_all(&[*byte]).expect("the sniffer reads");
        stdin.flush().expect("a pipe");
    }
    await_bytes(&out, b"packet 0");
    await_bytes(&out, b"packet 1");
    assert!(sniffer.is_running());
    stdin.write_all(&bytes[second_end..]).expect("the sniffer reads");
    await_bytes(&out, b"packet 2");
    drop(stdin);
    assert_eq!((sniffer.wait().code(), viewer.wait().code()), (0, 0));
    let rows = contents(&out).1;
    assert_eq!(rows.iter().map(|row| row.3.clone()).collect::<Vec<_>>(), payloads(&whole));
    assert!(rows.iter().all(|row| row.0 == "m:-"), "{rows:?}");
}

/// The frames of a little-endian pcap sample.
fn payloads(sample: &Sample) -> Vec<Vec<u8>> {
    let (mut rest, mut frames) = (&sample.bytes()[24..], Vec::new());
    while !rest.is_empty() {
        let length = u32::from_le_bytes(rest[8..12].try_into().expect("four")) as usize;
        frames.push(rest[16..16 + length].to_vec());
        rest = &rest[16 + length..];
    }
    frames
}

#[test]
fn a_file_waits_for_its_first_viewer_unless_told_otherwise() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (_relay, url) = relay(&[]);
    let path = write(folder.path(), "a.pcap", pcap(Order::Little, false, 1).bytes());

    let (code, _, stderr) = run(&mut sniffer(&url, &path, &["--no-wait"]));
    assert!(code == 0 && stderr.contains("a.pcap: 3 packets read"), "{stderr}");
    let streams = await_list(&url, |streams| streams[0]["state"] == "ended");
    assert_eq!((&streams[0]["packets"], &streams[0]["name"]), (&3.into(), &"m".into()), "{streams}");

    let mut waiting = Process::start(&mut sniffer(&url, &path, &[]));
    waiting.await_line("connected");
    let is_there = |streams: &serde_json::Value| {
        streams.as_array().is_some_and(|all| all.iter().any(|one| one["state"] == "live"))
    };
    let streams = await_list(&url, is_there);
    let live = streams.as_array().expect("a list").iter().find(|one| one["state"] == "live").expect("found");
    assert_eq!(live["packets"], 0, "{streams}");
    // A viewer that wants something else is not the one.
    let out = folder.path().join("other.pcapng");
    let other =
        Process::start(&mut viewer(&url, &out, &["--sniffer", "somebody-else", "--duration", "300ms"]));
    assert!(other.wait().stderr.contains("no stream matched"));
    assert!(waiting.is_running());
    let out = folder.path().join("out.pcapng");
    let viewer = Process::start(&mut viewer(&url, &out, &[]));
    assert_eq!((waiting.wait().code(), viewer.wait().code()), (0, 0));
    assert_eq!(contents(&out).1.len(), 3);

    // Told to end while it waits, it does.
    let mut waiting = Process::start(&mut sniffer(&url, &path, &[]));
    waiting.await_line("connected");
    let ended = waiting.terminate();
    assert!(ended.code() == 0 && ended.stderr.contains("sent: 0 packets"), "{}", ended.stderr);
}

/// All whole packets arrive, then the fault is told: whatever the place of the cut, and whether
/// or not a viewer was waited for.
#[test]
fn files_that_end_in_the_middle() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (_relay, url) = relay(&[]);
    let out = folder.path().join("out.pcapng");
    for (name, sample) in [("a.pcap", pcap(Order::Big, true, 1)), ("b.pcapng", pcapng(Order::Little))] {
        let whole = write(folder.path(), name, sample.bytes());
        let rows = contents(&whole).1;
        let length = sample.bytes().len();
        for cut in [1, 4, 20, 60, 70, 100, 130] {
            let path = write(folder.path(), name, &sample.bytes()[..length - cut]);
            let (sniffer, viewer) = pass(&url, &path, &out, &[], &[]);
            assert_eq!((sniffer.code(), viewer.code()), (1, 0), "{name} less {cut}: {}", sniffer.stderr);
            let faults: Vec<&str> =
                sniffer.stderr.lines().filter(|line| line.starts_with("sniffer: ")).collect();
            assert_eq!(faults.len(), 1, "{}", sniffer.stderr);
            assert!(faults[0].contains(name) && faults[0].contains("the file ends after"), "{}", faults[0]);
            let came = contents(&out).1;
            let whole_packets = rows.iter().zip(&came).filter(|(sent, came)| sent.3 == came.3).count();
            assert!(whole_packets == came.len() && came.len() < rows.len(), "{name} less {cut}");
            assert!(
                came.len() + 2 >= rows.len() - usize::from(cut > 70),
                "{name} less {cut}: {}",
                came.len()
            );
            let said = format!("{name}: {} packets read (", came.len());
            assert!(sniffer.stderr.contains(&said), "{}", sniffer.stderr);
            assert!(!sniffer.stderr.contains("not settled"), "{}", sniffer.stderr);

            // The relay has the same although nobody waits.
            let (code, _, stderr) = run(&mut self::sniffer(&url, &path, &["--no-wait"]));
            assert!(code == 1 && stderr.contains(&said), "{stderr}");
            assert!(stderr.contains(&format!("sent: {} packets", came.len())), "{stderr}");
            assert!(!stderr.contains("not settled"), "{stderr}");
        }
    }
}

/// A file of noise: about `bytes` long, in frames of 1,400 bytes.
fn large_file(folder: &Path, bytes: usize) -> (PathBuf, Vec<Vec<u8>>) {
    let mut sample = Sample::pcap(Order::Little, false, 1);
    let mut frames = Vec::new();
    for number in 0..bytes / 1_400 {
        let frame = udp_frame(1, 2, &noise(number as u64, 1_400 - 42));
        sample.record(SECOND + number as u32, 0, &frame, 1_400);
        frames.push(frame);
    }
    (write(folder, "large.pcap", sample.bytes()), frames)
}

/// Waits until the packets that the relay has of all streams stay the same for a second, as far as
/// buffers go, and tells how many they are.
fn await_standstill(url: &str) -> u64 {
    let (mut packets, mut since) = (0, Instant::now());
    await_list(url, |streams| {
        let all = streams.as_array().expect("a list").iter();
        let now: u64 = all.filter_map(|one| one["packets"].as_u64()).sum();
        if now != packets {
            (packets, since) = (now, Instant::now());
        }
        packets > 0 && since.elapsed() > Duration::from_secs(1)
    });
    packets
}

/// A viewer that stands still in the middle: the file waits for it, and nothing is skipped,
/// however small its queue at the relay.
#[test]
fn a_file_is_paced_by_its_slowest_viewer() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (path, frames) = large_file(folder.path(), 30 << 20);
    for workers in ["1", "2"] {
        let (relay, url) = relay(&["--viewer-queue", SMALLEST_QUEUE, "--workers", workers]);
        let outs = [folder.path().join("slow.pcapng"), folder.path().join("fast.pcapng")];
        let slow = Process::start(&mut viewer(&url, &outs[0], &[]));
        let fast = Process::start(&mut viewer(&url, &outs[1], &[]));
        // Both have subscribed when their files are there: only then is the file touched.
        for out in &outs {
            await_bytes(out, b"ringcast viewer");
        }
        slow.signal("STOP");
        let mut sniffer = Process::start(&mut sniffer(&url, &path, &["--compression", "none"]));
        let packets = await_standstill(&url);
        assert!(sniffer.is_running(), "the whole file went into buffers: {packets}");
        assert!(packets < frames.len() as u64, "{packets}");
        slow.signal("CONT");
        assert_eq!(sniffer.wait().code(), 0);
        for (viewer, out) in [(slow, &outs[0]), (fast, &outs[1])] {
            let ended = viewer.wait();
            assert_eq!(ended.code(), 0);
            assert!(ended.stderr.contains("missing none"), "{}", ended.stderr);
            let came: Vec<Vec<u8>> = contents(out).1.into_iter().map(|row| row.3).collect();
            assert!(came == frames, "{} of {} packets, or others", came.len(), frames.len());
        }
        outs.iter().for_each(|out| fs::remove_file(out).expect("ours"));
        let said = relay.terminate().stderr;
        let skipped: Vec<&str> = said.lines().filter(|line| line.contains("packets skipped")).collect();
        assert!(skipped.iter().all(|line| line.contains(", 0 packets skipped")), "{skipped:?}");
    }
}

/// Files at the same time have one viewer's queue between them, and still nothing is skipped.
#[test]
fn files_at_the_same_time_share_a_slow_viewer() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (path, frames) = large_file(folder.path(), 12 << 20);
    let (relay, url) = relay(&["--viewer-queue", SMALLEST_QUEUE]);
    let out = folder.path().join("out.pcapng");
    let mut hold = Command::new(program("sniffer"));
    let hold = hold.args(["--read", "-", "--relay", &url, "--name", "hold"]);
    let (mut hold, mut stdin) = Process::start_piped(hold);
    stdin.write_all(Sample::pcap(Order::Little, false, 1).bytes()).expect("it reads");
    hold.await_line("connected");
    let viewer = Process::start(&mut viewer(&url, &out, &[]));
    await_bytes(&out, b"ringcast viewer");
    viewer.signal("STOP");
    let sniffers: Vec<Process> = (0..4).map(|_| Process::start(&mut sniffer(&url, &path, &[]))).collect();
    let packets = await_standstill(&url);
    assert!(packets < 4 * frames.len() as u64, "all of it went into buffers: {packets}");
    viewer.signal("CONT");
    for sniffer in sniffers {
        assert_eq!(sniffer.wait().code(), 0);
    }
    drop(stdin);
    let (hold, viewer) = (hold.wait(), viewer.wait());
    assert_eq!((hold.code(), viewer.code()), (0, 0));
    let total = viewer.stderr.lines().last().expect("a summary");
    assert!(total.contains(&format!("written {}; missing none", 4 * frames.len())), "{total}");
    assert_eq!(contents(&out).1.len(), 4 * frames.len());
    assert_eq!(relay.terminate().code(), 0);
}

/// The same for a program behind the viewer that reads slowly.
#[test]
fn a_slow_reader_of_standard_output_gets_everything() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (path, frames) = large_file(folder.path(), 30 << 20);
    let (relay, url) = relay(&["--viewer-queue", SMALLEST_QUEUE]);
    let mut command = Command::new(program("viewer"));
    let mut viewer = Process::start(command.args(["--relay", &url, "--until-end"]).stdout(Stdio::piped()));
    let mut stdout = viewer.stdout();
    let sniffer = Process::start(&mut sniffer(&url, &path, &[]));
    let (mut bytes, mut chunk) = (Vec::new(), vec![0; 256 << 10]);
    loop {
        match stdout.read(&mut chunk).expect("a pipe") {
            0 => break,
            count => bytes.extend_from_slice(&chunk[..count]),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let ended = viewer.wait();
    assert_eq!((sniffer.wait().code(), ended.code()), (0, 0));
    assert!(ended.stderr.contains("missing none"), "{}", ended.stderr);
    let out = write(folder.path(), "out.pcapng", &bytes);
    let came: Vec<Vec<u8>> = contents(&out).1.into_iter().map(|row| row.3).collect();
    assert!(came == frames, "{} of {} packets, or others", came.len(), frames.len());
    assert_eq!(relay.terminate().code(), 0);
}

/// Two workers, and a viewer on each: one of them is not where the sniffer is.
#[test]
fn other_ways_give_the_same() {
    if !tshark::is_available() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = write(folder.path(), "in.pcapng", pcapng(Order::Little).bytes());
    let told = judge::ask_tshark(&path, folder.path());
    let ways: [(&[&str], &[&str]); 3] = [
        (&["--workers", "2"], &[]),
        (&[], &["--compression", "none"]),
        (&["--workers", "2"], &["--compression", "none"]),
    ];
    for (relaying, sniffing) in ways {
        let (relay, url) = relay(relaying);
        let outs = [folder.path().join("1.pcapng"), folder.path().join("2.pcapng")];
        let viewers: Vec<Process> =
            outs.iter().map(|out| Process::start(&mut viewer(&url, out, &[]))).collect();
        for out in &outs {
            await_bytes(out, b"ringcast viewer");
        }
        assert_eq!(Process::start(&mut sniffer(&url, &path, sniffing)).wait().code(), 0);
        for viewer in viewers {
            assert_eq!(viewer.wait().code(), 0);
        }
        assert_eq!(relay.terminate().code(), 0);
        for out in &outs {
            let came = judge::ask_tshark(out, folder.path());
            assert_eq!(came.complaint, "");
            let came: Vec<&Told> = came.packets.iter().collect();
            judge::compare("m", "in.pcapng", &told.packets, &came, |a, b| a == b).expect("the same");
            fs::remove_file(out).expect("ours");
        }
    }
}
