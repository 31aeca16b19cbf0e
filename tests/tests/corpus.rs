//! Every capture of the corpus through all three programs: what tshark reads in the viewer's
//! output is what it reads in the file, packet for packet.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tests::judge::{self, Told, TsharkFile};
use tests::process::{Ended, Process, relay, run};
use tests::{captures, program, samples, tshark};
use wire::capture_file::{CaptureReader, Item};

/// A line of the manifest.
#[derive(Debug)]
struct Listed {
    file: String,
    packets: u64,
    /// What capinfos counted; `None` where it refused the file.
    packets_capinfos: Option<u64>,
    libpcap_reads: bool,
}

fn manifest(folder: &Path) -> Vec<Listed> {
    let text = fs::read_to_string(folder.join("MANIFEST.tsv")).expect("a manifest");
    let mut lines = text.lines();
    let columns: Vec<&str> = lines.next().expect("a head").split('\t').collect();
    let column = |name: &str| columns.iter().position(|one| *one == name).expect("a known column");
    let (file, packets, capinfos) = (column("file"), column("packets"), column("packets_capinfos"));
    let libpcap = column("libpcap_1.10.3_reads");
    lines
        .map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            Listed {
                file: fields[file].to_owned(),
                packets: fields[packets].parse().unwrap_or(0),
                packets_capinfos: fields[capinfos].parse().ok(),
                libpcap_reads: fields[libpcap] == "ok",
            }
        })
        .collect()
}

/// A packet as our own reader tells it, where tshark has no word: time, original length, bytes.
type OwnPacket = (u64, u32, Vec<u8>);

/// Packets by name of interface, as our own reader reads them up to the first fault.
fn read_ourselves(path: &Path) -> BTreeMap<String, Vec<OwnPacket>> {
    let mut packets: BTreeMap<String, Vec<OwnPacket>> = BTreeMap::new();
    let mut names = Vec::new();
    let Ok(mut reader) = CaptureReader::new(fs::File::open(path).expect("the file is there")) else {
        return packets;
    };
    while let Ok(Some(item)) = reader.next() {
        match item {
            Item::Interface(interface) => names.push(interface.name),
            Item::Packet(packet) => {
                let one = (packet.time_ns, packet.original_len, packet.data.to_vec());
                packets.entry(names[packet.interface as usize].clone()).or_default().push(one);
            }
        }
    }
    packets
}

/// Where a file goes: to a viewer whose output tshark can read, or to the other.
fn name_of(index: usize, listed: &Listed, told: &TsharkFile) -> String {
    let is_judged = listed.packets_capinfos.is_some() && !told.complaint.contains(UNKNOWN_LINK_TYPE);
    format!("{}{index}", if is_judged { 'n' } else { 'x' })
}

/// One such interface makes tshark refuse a whole pcapng file, and with it all others in it.
const UNKNOWN_LINK_TYPE: &str = " unknown or unsupported";

/// What happened to one file.
struct Sent {
    index: usize,
    name: String,
    told: TsharkFile,
    ended: Ended,
}

/// A sniffer that holds its stream open, so that `viewer --until-end` does not leave before it is
/// let go. What was sent before it ends arrives before its end.
fn hold(url: &str, name: &str) -> (Process, std::process::ChildStdin) {
    use std::io::Write;
    let mut command = Command::new(program("sniffer"));
    command.args(["--read", "-", "--relay", url, "--name", name]);
    let (mut process, mut stdin) = Process::start_piped(&mut command);
    let head = samples::Sample::pcap(samples::Order::Little, false, 1);
    stdin.write_all(head.bytes()).expect("the sniffer reads");
    process.await_line("connected");
    (process, stdin)
}

fn viewer(url: &str, out: &Path, globs: &[&str]) -> Process {
    let mut command = Command::new(program("viewer"));
    command.args(["--relay", url, "--until-end", "-w"]).arg(out);
    for glob in globs {
        command.args(["--sniffer", glob]);
    }
    Process::start(&mut command)
}

#[test]
fn every_capture_comes_out_as_it_went_in() {
    let Some(folder) = captures() else { return };
    if !tshark::is_available() {
        return;
    }
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let listed = manifest(&folder);
    let (judged_out, other_out) = (scratch.path().join("n.pcapng"), scratch.path().join("x.pcapng"));
    let (relay, url) = relay(&["--viewer-queue", "256MiB"]);
    let (mut judged_hold, judged_stdin) = hold(&url, "nhold");
    let (mut other_hold, other_stdin) = hold(&url, "xhold");
    let judged_viewer = viewer(&url, &judged_out, &["n*"]);
    let other_viewer = viewer(&url, &other_out, &["x*"]);

    // Two at a time: tshark tells what is in a file, then a sniffer sends it.
    let next = AtomicUsize::new(0);
    let sent = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let index = next.fetch_add(1, Ordering::Relaxed)
                    && let Some(one) = listed.get(index)
                {
                    let path = folder.join(&one.file);
                    let told = judge::ask_tshark(&path, scratch.path());
                    let name = name_of(index, one, &told);
                    let mut command = Command::new(program("sniffer"));
                    command.arg("--read").arg(&path).args(["--relay", &url, "--name", &name]);
                    let ended = Process::start_quietly(&mut command).wait();
                    sent.lock().expect("no panic with it").push(Sent { index, name, told, ended });
                }
            });
        }
    });
    let mut sent = sent.into_inner().expect("the threads have ended");
    sent.sort_by_key(|one| one.index);
    assert!(judged_hold.is_running() && other_hold.is_running());
    drop((judged_stdin, other_stdin));
    assert_eq!((judged_hold.wait().code(), other_hold.wait().code()), (0, 0));
    let (judged_ended, other_ended) = (judged_viewer.wait(), other_viewer.wait());
    let relay_ended = relay.terminate();
    assert_eq!((judged_ended.code(), other_ended.code(), relay_ended.code()), (0, 0, 0));

    let mut complaints = Vec::new();
    let stderrs = sent.iter().map(|one| &one.ended.stderr);
    for stderr in stderrs.chain([&judged_ended.stderr, &other_ended.stderr, &relay_ended.stderr]) {
        if stderr.contains("panicked") {
            complaints.push(stderr.clone());
        }
    }
    let came = judge::ask_tshark(&judged_out, scratch.path());
    assert_eq!(came.complaint, "", "tshark complains of the viewer's output");
    let mut by_name: BTreeMap<&str, Vec<&Told>> = BTreeMap::new();
    for told in &came.packets {
        let name = told.interface_name.split(':').next().expect("one part at least");
        by_name.entry(name).or_default().push(told);
    }
    let others = read_ourselves(&other_out);

    let mut rules = Rules::default();
    let (mut packet_count, mut file_count) = (0, 0);
    for one in &sent {
        let listed = &listed[one.index];
        let outcome = if one.name.starts_with('n') {
            let came = by_name.get(one.name.as_str()).map(Vec::as_slice).unwrap_or_default();
            packet_count += came.len();
            file_count += 1;
            check_judged(&folder.join(&listed.file), listed, one, came, &mut rules)
        } else {
            check_other(&folder.join(&listed.file), listed, one, &others, &mut rules)
        };
        if let Err(complaint) = outcome {
            complaints.push(format!("{}: {complaint}", listed.file));
        }
    }
    rules.print();
    println!("{file_count} files with {packet_count} packets compared by tshark");
    assert_eq!(packet_count, came.packets.len(), "packets of no file that was sent");
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));

    // What the programs say of it agrees with the file.
    let total = judged_ended.stderr.lines().find(|line| line.contains("total ("));
    let total = total.unwrap_or_else(|| panic!("no total in {}", judged_ended.stderr));
    assert!(total.contains(&format!("received {packet_count} packets")), "{total}");
    assert!(total.contains(&format!("written {packet_count}; missing none")), "{total}");
    let capinfos =
        Command::new("capinfos").args(["-M", "-c"]).arg(&judged_out).output().expect("capinfos runs");
    let text = String::from_utf8_lossy(&capinfos.stdout).into_owned();
    assert!(capinfos.status.success() && capinfos.stderr.is_empty(), "{capinfos:?}");
    let counted: usize = text
        .lines()
        .find_map(|line| line.strip_prefix("Number of packets:"))
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or_else(|| panic!("{text}"));
    assert_eq!(counted, packet_count);
    let in_relay = relay_ended.stderr.lines().find(|line| line.contains("worker 0:")).expect("a summary");
    assert!(in_relay.contains(", 0 packets skipped"), "{in_relay}");
}

/// Differences that are known and accepted: each has a reason, and is printed.
#[derive(Default)]
struct Rules(BTreeMap<&'static str, Vec<String>>);

impl Rules {
    fn note(&mut self, rule: &'static str, file: &str) {
        let files = self.0.entry(rule).or_default();
        if files.last().is_none_or(|last| last != file) {
            files.push(file.to_owned());
        }
    }

    fn print(&self) {
        for (rule, files) in &self.0 {
            println!("{rule}: {} files: {}", files.len(), files.join(", "));
        }
    }
}

/// The sniffer's exit status and words: `failed` is whether the file has a fault.
fn check_sniffer(sent: &Sent, failed: bool, file: &str, packets: usize) -> Result<(), String> {
    let (status, stderr) = (sent.ended.code(), &sent.ended.stderr);
    if status != i32::from(failed) {
        return Err(format!("exit status {status}; tshark says {:?}; {stderr}", sent.told.complaint));
    }
    let faults: Vec<&str> = stderr.lines().filter(|line| line.starts_with("sniffer: ")).collect();
    let names_it = faults.iter().all(|line| line.contains(file));
    if faults.len() != usize::from(failed) || !names_it {
        return Err(format!("not one line that names it: {stderr}"));
    }
    let Some(summary) = stderr.lines().find(|line| line.starts_with("sent: ")) else {
        // It cannot be read at all, so nobody was connected to.
        let is_nothing = failed && packets == 0;
        return if is_nothing { Ok(()) } else { Err(format!("no summary: {stderr}")) };
    };
    if !summary.starts_with(&format!("sent: {packets} packets in "))
        || !summary.ends_with("; lost before sending: none")
    {
        return Err(format!("{packets} packets came: {summary}"));
    }
    match stderr.contains(&format!(": {packets} packets read (")) {
        true => Ok(()),
        false => Err(format!("{packets} packets came: {stderr}")),
    }
}

/// The name of each packet's interface, as our own reader has it.
fn names_by_packet(path: &Path) -> Vec<String> {
    let (mut names, mut by_packet) = (Vec::new(), Vec::new());
    let mut reader = CaptureReader::new(fs::File::open(path).expect("the file is there")).expect("a capture");
    while let Ok(Some(item)) = reader.next() {
        match item {
            Item::Interface(interface) => names.push(interface.name),
            Item::Packet(packet) => by_packet.push(names[packet.interface as usize].clone()),
        }
    }
    by_packet
}

fn check_judged(
    path: &Path,
    listed: &Listed,
    sent: &Sent,
    came: &[&Told],
    rules: &mut Rules,
) -> Result<(), String> {
    let file = base_name(&listed.file);
    let mut packets = sent.told.packets.clone();
    let is_later = |told: &Told| told.interface.is_some_and(|(section, _)| section > 1);
    if packets.iter().any(is_later) {
        rules.note(
            "tshark names interfaces of later sections by the first: our own reader's names",
            &listed.file,
        );
        let names = names_by_packet(path);
        for (told, name) in packets.iter_mut().zip(names).filter(|(told, _)| is_later(told)) {
            told.interface_name = name;
        }
    }
    let noted = Mutex::new(Vec::new());
    judge::compare(&sent.name, file, &packets, came, |sent, came| match same_time(sent, came) {
        Some(rule) => {
            noted.lock().expect("one thread").extend(rule);
            true
        }
        None => false,
    })?;
    for rule in noted.into_inner().expect("one thread") {
        rules.note(rule, &listed.file);
    }
    if !sent.told.complaint.is_empty() {
        rules.note("ends with a fault, told after its whole packets", &listed.file);
    }
    check_sniffer(sent, !sent.told.complaint.is_empty(), file, came.len())
}

/// Whether two times are the same, and by which rule if not by the letter.
#[allow(clippy::option_option)]
fn same_time(sent: &str, came: &str) -> Option<Option<&'static str>> {
    if sent == came {
        return Some(None);
    }
    if sent.is_empty() && came == "0.000000000" {
        return Some(Some("Simple Packet Blocks have no time; Enhanced ones must: 0"));
    }
    let (sent_seconds, sent_fraction) = sent.split_once('.')?;
    let (came_seconds, came_fraction) = came.split_once('.')?;
    let came_ns = came_seconds.parse::<u64>().ok()?.checked_mul(1_000_000_000)?;
    let came_ns = came_ns.checked_add(came_fraction.parse::<u64>().ok()?)?;
    // The sign is that of the fraction, of which tshark keeps 32 bits.
    let is_negative = sent_seconds.starts_with('-');
    let whole = sent_seconds.trim_start_matches('-').parse::<u64>().ok()?;
    let Some(whole_ns) = whole.checked_mul(1_000_000_000) else {
        let rule = "times beyond 2^64 ns become the last one that can be told";
        return (came_ns == u64::MAX).then_some(Some(rule));
    };
    let fraction: i64 = sent_fraction.parse().ok()?;
    let fraction = if is_negative { -fraction } else { fraction };
    let real = came_ns.checked_sub(whole_ns)?;
    let is_odd = is_negative || fraction >= 1_000_000_000 || real >= 1_000_000_000;
    let is_same = real as u32 == fraction as u32 && real <= u64::from(u32::MAX) * 1000;
    (is_odd && is_same).then_some(Some("microseconds of a second or more are carried over"))
}

/// Files that tshark or its release refuses: our own reader is the judge of what it made of them.
fn check_other(
    path: &Path,
    listed: &Listed,
    sent: &Sent,
    came: &BTreeMap<String, Vec<OwnPacket>>,
    rules: &mut Rules,
) -> Result<(), String> {
    let file = base_name(&listed.file);
    let expected = read_ourselves(path);
    let mut count = 0;
    for (name, packets) in &expected {
        let shown = format!("{}:{}", sent.name, if name.is_empty() { file } else { name });
        let found = came.get(&shown).map(Vec::as_slice).unwrap_or_default();
        if found != packets {
            return Err(format!("{shown}: {} packets sent, {} came, or others", packets.len(), found.len()));
        }
        count += packets.len();
    }
    let is_readable = listed.libpcap_reads || sent.told.complaint.contains(UNKNOWN_LINK_TYPE);
    if listed.libpcap_reads {
        rules.note("a link type that this tshark does not know: compared with our own reader", &listed.file);
        if count as u64 != listed.packets {
            return Err(format!("{count} packets came, libpcap reads {}", listed.packets));
        }
    } else {
        rules.note("nobody reads it: an error, after what is whole", &listed.file);
    }
    check_sniffer(sent, !is_readable, file, count)
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The real mix again, with a different way to each end: uncompressed blocks, two workers, and
/// standard output instead of a file give the same bytes as tshark tells them.
#[test]
fn the_mix_is_the_same_by_every_way() {
    let Some(folder) = captures() else { return };
    if !tshark::is_available() {
        return;
    }
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let path = folder.join("mix-ethernet.pcap");
    let told = judge::ask_tshark(&path, scratch.path());
    assert!(told.packets.len() > 10_000 && told.complaint.is_empty());
    for (workers, compression) in [("1", "none"), ("2", "lz4")] {
        let (relay, url) = relay(&["--workers", workers]);
        let mut sniffer = Command::new(program("sniffer"));
        sniffer.arg("--read").arg(&path).args([
            "--relay",
            &url,
            "--name",
            "mix",
            "--compression",
            compression,
        ]);
        let sniffer = Process::start(&mut sniffer);
        let mut viewer = Command::new(program("viewer"));
        let (code, stdout, stderr) = run(viewer.args(["--relay", &url, "--until-end"]));
        assert_eq!((code, sniffer.wait().code()), (0, 0), "{stderr}");
        assert_eq!(relay.terminate().code(), 0);
        let out: PathBuf = scratch.path().join("mix.pcapng");
        fs::write(&out, &stdout).expect("room for a file");
        let came = judge::ask_tshark(&out, scratch.path());
        let came: Vec<&Told> = came.packets.iter().collect();
        judge::compare("mix", "mix-ethernet.pcap", &told.packets, &came, |a, b| a == b).expect("the same");
    }
}
