//! Faults at a live capture: lines that are cut, programs that are killed, disks that are full; and
//! the account that has to be right after each of them.
//!
//! ```text
//!  there            here                    middle               far
//!  who sends        sniffer, spool          relay, viewers       viewers
//!  v2 ============= v1                      n2 ================= n1
//!                   u1 ==================== u2
//!        10.9.0.0/24       10.8.0.0/24               10.7.0.0/24
//! ```
//!
//! Numbered datagrams are sent at a steady rate beside the fault. At the end every number sent is
//! in a viewer's file once, or among those that the ledger counts: [`Account`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::live::{Bench, Pcapng, eventually_within, number_before, udp};
use crate::netns::Netns;
use crate::process::{DEADLINE, Ended, Process, run};

/// Where a sniffer here finds the relay.
pub const RELAY_FROM_HERE: &str = "ws://10.8.0.2:9440";
/// Where a viewer far away finds it.
pub const RELAY_FROM_FAR: &str = "ws://10.7.0.1:9440";
/// After so long without a sign of life a line is given up; nothing relies on it, faults that are
/// to be noticed by it take longer.
pub const DEAD_TIME: Duration = Duration::from_secs(20);
/// What is captured: nothing but the numbered datagrams.
const FILTER: &str = "udp port 5000";
/// Stages that a summary names in its equation only.
const UNPACKED_STAGES: [&str; 2] = ["lost before packing", "kernel ring"];
/// Bytes in front of a datagram's payload.
const HEADER_BYTES: usize = 42;

/// Sends numbered datagrams until SIGTERM: interface, first number, rate a second, bytes of the
/// frame. What follows the number is random, so that it does not shrink.
const SEND_STEADILY: &str = "
import os, signal, socket, sys, time
interface, first, rate, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
head, tail = (bytes.fromhex(text) for text in sys.argv[5:7])
out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
out.bind((interface, 0))
filler = os.urandom(1 << 21)
ends = []
signal.signal(signal.SIGTERM, lambda *_: ends.append(True))
number, begin = first, time.monotonic()
print('sending', file=sys.stderr, flush=True)
while not ends:
    due = first + int((time.monotonic() - begin) * rate)
    while number < due:
        at = number * size % (len(filler) - size)
        port = (20000 + number % 64).to_bytes(2, 'big')
        out.send(head + port + tail + b'number=%08d' % number + filler[at:at + size])
        number += 1
    time.sleep(0.005)
print('%d is the next number' % number, file=sys.stderr, flush=True)
";

/// A bench with the relay away from the sniffer, and a place for viewers away from both.
pub struct Wide {
    /// The wire that is captured, and the sniffer.
    pub bench: Bench,
    /// Where the relay is.
    pub middle: Netns,
    /// Viewers away from the relay.
    pub far: Netns,
}

impl Wide {
    /// A fresh one; `None`, said, where there can be none.
    pub fn new() -> Option<Self> {
        let bench = Bench::new().filter(|_| crate::tshark::is_available())?;
        let wide = Self { bench, middle: Netns::new(), far: Netns::new() };
        join(&wide.bench.here, "u1", "10.8.0.1/24", &wide.middle, "u2", "10.8.0.2/24");
        join(&wide.far, "n1", "10.7.0.2/24", &wide.middle, "n2", "10.7.0.1/24");
        Some(wide)
    }

    /// A path in the bench's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.bench.path(name)
    }

    /// The relay, reachable from all sides.
    pub fn relay(&self, arguments: &[&str]) -> Process {
        let open = ["--listen", "0.0.0.0:9440", "--insecure"];
        Bench::relay_in(&self.middle, &[&open[..], arguments].concat())
    }

    /// A sniffer of `v1`, named `host`.
    pub fn sniffer(&self, arguments: &[&str]) -> Process {
        let usual = ["-i", "v1", "-f", FILTER, "--relay", RELAY_FROM_HERE];
        self.bench.sniffer("host", &[&usual[..], arguments].concat())
    }

    /// A sniffer with the least memory and a spool in `directory`.
    pub fn sniffer_with_spool(&self, directory: &Path, arguments: &[&str]) -> Process {
        let directory = directory.to_string_lossy();
        let usual = ["--memory", "32MiB", "--spool", &directory];
        self.sniffer(&[&usual[..], arguments].concat())
    }

    /// A viewer beside the relay that writes into the file `name` until every stream has ended.
    pub fn viewer(&self, name: &str) -> Process {
        Bench::viewer_in(&self.middle, &self.path(name), &["--until-end"])
    }

    /// The same away from the relay.
    pub fn far_viewer(&self, name: &str) -> Process {
        Bench::viewer_in(&self.far, &self.path(name), &["--until-end", "--relay", RELAY_FROM_FAR])
    }

    /// Waits until the relay lists one live stream with so many viewers.
    pub fn await_viewers(&self, viewers: u64) {
        Bench::await_streams_in(&self.middle, &[], 1, viewers);
    }

    /// Waits until a viewer has subscribed: it makes its file only then.
    pub fn await_file(&self, name: &str) {
        let path = self.path(name);
        eventually_within(DEADLINE, name, || path.exists().then_some(()).ok_or_else(String::new));
    }

    /// Cuts the line between sniffer and relay, or mends it.
    pub fn set_line(&self, is_up: bool) {
        set_link(&self.middle, "u2", is_up);
    }

    /// Cuts the line between relay and far viewers, or mends it.
    pub fn set_far_line(&self, is_up: bool) {
        set_link(&self.middle, "n2", is_up);
    }

    /// Begins to send numbered frames of `frame_bytes`, `rate` a second, from number `first` on.
    pub fn traffic(&self, first: u64, rate: u64, frame_bytes: usize) -> Traffic {
        Traffic::start(&self.bench, first, rate, frame_bytes)
    }
}

/// Joins two namespaces by a wire with an address at each end.
pub fn join(one: &Netns, name: &str, address: &str, other: &Netns, other_name: &str, other_address: &str) {
    let one_end = ["link", "add", name, "netns", one.name(), "type", "veth"];
    crate::netns::ip(&[&one_end[..], &["peer", "name", other_name, "netns", other.name()]].concat());
    for (netns, name, address) in [(one, name, address), (other, other_name, other_address)] {
        netns.ip(&["link", "set", name, "addrgenmode", "none"]);
        netns.ip(&["addr", "add", address, "dev", name]);
        netns.ip(&["link", "set", name, "up"]);
    }
    one.await_up(name);
    other.await_up(other_name);
}

/// Switches an interface on or off.
pub fn set_link(netns: &Netns, name: &str, is_up: bool) {
    netns.ip(&["link", "set", name, if is_up { "up" } else { "down" }]);
}

/// Numbered datagrams that are being sent.
pub struct Traffic(Process);

impl Traffic {
    /// Begins to send from there to here.
    pub fn start(bench: &Bench, first: u64, rate: u64, frame_bytes: usize) -> Self {
        let filler = frame_bytes.saturating_sub(HEADER_BYTES + 15);
        let frame = udp(0, 5000, &vec![0; 15 + filler]);
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let (head, tail) = (hex(&frame[..34]), hex(&frame[36..HEADER_BYTES]));
        let numbers = [first, rate, filler as u64].map(|number| number.to_string());
        let mut command = bench.there.command("python3");
        command.args(["-c", SEND_STEADILY, "v2", &numbers[0], &numbers[1], &numbers[2], &head, &tail]);
        let mut process = Process::start(&mut command);
        process.await_line("sending");
        Self(process)
    }

    /// Stops it; returns the number after the last one sent.
    pub fn stop(self) -> u64 {
        let ended = self.0.terminate();
        assert_eq!(ended.code(), 0, "{}", ended.stderr);
        number_before(&ended.stderr, " is the next number")
    }
}

/// A file that a viewer is writing, followed as it grows.
pub struct Follow {
    path: PathBuf,
    offset: u64,
    /// Numbers of the packets so far, in the order of the file.
    pub numbers: Vec<u64>,
}

impl Follow {
    /// Follows a file, which may not be there yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, offset: 0, numbers: Vec::new() }
    }

    /// Reads what is new, block by block.
    pub fn read(&mut self) {
        let Ok(mut file) = File::open(&self.path) else { return };
        file.seek(SeekFrom::Start(self.offset)).expect("a file can seek");
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("a file can be read");
        let mut rest = bytes.as_slice();
        let word = |bytes: &[u8], at: usize| {
            u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
        };
        while rest.len() >= 12 && rest.len() >= word(rest, 4) {
            let length = word(rest, 4);
            if word(rest, 0) == 6 {
                let text = &rest[28 + HEADER_BYTES..28 + HEADER_BYTES + 15];
                let number = text.strip_prefix(b"number=").expect("nothing but numbered packets");
                self.numbers.push(std::str::from_utf8(number).expect("digits").parse().expect("a number"));
            }
            rest = &rest[length..];
        }
        self.offset += (bytes.len() - rest.len()) as u64;
    }

    /// Waits until so many packets are in the file.
    pub fn await_count(&mut self, count: u64, time: Duration) {
        self.await_that(&format!("{count} packets"), time, |one| one.numbers.len() as u64 >= count);
    }

    /// Waits until so many more packets are in the file.
    pub fn await_more(&mut self, count: u64) {
        self.read();
        self.await_count(self.numbers.len() as u64 + count, DEADLINE);
    }

    /// Waits until a packet of this number or a greater one is in the file.
    pub fn await_number(&mut self, number: u64, time: Duration) {
        self.await_that(&format!("packet {number}"), time, |one| one.greatest() >= Some(number));
    }

    /// Waits until all numbers below `end` are in the file.
    pub fn await_all(&mut self, end: u64, time: Duration) {
        let what = format!("all {end} packets in {}", self.path.display());
        eventually_within(time, &what, || {
            self.read();
            // Before there are as many, there is no need to look at each.
            let mut why = format!("{} packets", self.numbers.len());
            if self.numbers.len() as u64 >= end {
                match missing(&self.numbers, end).as_slice() {
                    [] => return Ok(()),
                    some => why += &format!(", without {}", ranges(some)),
                }
            }
            std::thread::sleep(Duration::from_millis(20));
            Err(why)
        });
    }

    /// The greatest number so far.
    pub fn greatest(&self) -> Option<u64> {
        self.numbers.iter().max().copied()
    }

    fn await_that(&mut self, what: &str, time: Duration, is_there: impl Fn(&Self) -> bool) {
        let what = format!("{what} in {}", self.path.display());
        eventually_within(time, &what, || {
            self.read();
            if is_there(self) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
            Err(format!("{} packets, the greatest number {:?}", self.numbers.len(), self.greatest()))
        });
    }
}

/// What a viewer's file and its summary say of the numbers from 0 to `sent`.
pub struct Account {
    /// The file.
    pub file: Pcapng,
    /// Its numbers in their order.
    pub numbers: Vec<u64>,
    /// Numbers sent that are not in the file.
    pub missing: Vec<u64>,
    /// Packets that the summary counts as lost, by stage.
    pub counted: BTreeMap<String, u64>,
    /// Streams that came.
    pub streams: u64,
    sent: u64,
    summary: String,
}

impl Account {
    /// Reads both. What holds in any case is checked: nothing twice, nothing that was not sent, each
    /// stream in order, the summary as the file, nothing unexplained.
    pub fn new(sent: u64, path: &Path, viewer: &Ended) -> Self {
        assert_eq!(viewer.code(), 0, "{}", viewer.stderr);
        let file = Pcapng::read(path);
        let numbers = file.numbers();
        assert_eq!(numbers.len(), file.packets.len(), "nothing but numbered packets");
        let mut present = BTreeSet::new();
        let doubles: Vec<u64> = numbers.iter().copied().filter(|one| !present.insert(*one)).collect();
        assert!(doubles.is_empty(), "{} packets twice: {}", doubles.len(), ranges(&doubles));
        assert!(present.last() < Some(&sent), "of {sent} packets");
        let missing = missing(&numbers, sent);

        let summary = summary_of(viewer);
        let streams = streams_in(&summary);
        assert_eq!(number_after(&summary, ", written "), Some(numbers.len() as u64), "{summary}");
        assert!(!viewer.stderr.contains("UNEXPLAINED"), "{}", viewer.stderr);
        assert!(!viewer.stderr.contains("unexplained"), "{}", viewer.stderr);
        let runs = increasing_runs(&numbers);
        assert!(runs as u64 <= streams, "{runs} runs of increasing numbers in {streams} streams: {summary}");

        let counted = counted_in(&summary);
        let account = Self { file, numbers, missing, counted, streams, sent, summary };
        eprintln!("[account] {account}");
        account
    }

    /// Packets counted at one stage.
    pub fn counted_at(&self, stage: &str) -> u64 {
        self.counted.get(stage).copied().unwrap_or(0)
    }

    /// Packets counted at all stages.
    pub fn counted(&self) -> u64 {
        self.counted.values().sum()
    }

    /// Sent = in the file + counted.
    pub fn assert_exact(&self) {
        assert_eq!(self.missing.len() as u64, self.counted(), "{self}");
    }

    /// Every packet came.
    pub fn assert_complete(&self) {
        assert!(self.missing.is_empty(), "{self}");
        assert_eq!(self.counted(), 0, "{self}");
    }

    /// Missing and counted exactly, at the given stages and no other.
    pub fn assert_exact_at(&self, stages: &[&str]) {
        self.assert_exact();
        let others =
            self.counted.iter().filter(|(stage, count)| **count > 0 && !stages.contains(&stage.as_str()));
        assert_eq!(others.count(), 0, "counted elsewhere than at {stages:?}: {self}");
    }

    /// The one interval in which numbers are missing, its end excluded; `None`: none is.
    pub fn interval(&self) -> Option<(u64, u64)> {
        let (first, last) = (*self.missing.first()?, *self.missing.last()?);
        assert_eq!(last - first + 1, self.missing.len() as u64, "more than one interval: {self}");
        Some((first, last + 1))
    }

    /// Whether a comment of the file contains `text`.
    pub fn has_comment(&self, text: &str) -> bool {
        self.file.comments().iter().any(|comment| comment.contains(text))
    }
}

impl std::fmt::Display for Account {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            out,
            "{} sent, {} in the file, {} missing ({}), counted {:?}; comments {:?}; {}",
            self.sent,
            self.numbers.len(),
            self.missing.len(),
            ranges(&self.missing),
            self.counted,
            self.file.comments(),
            self.summary
        )
    }
}

/// The summary's line: that of the total if there are several.
fn summary_of(viewer: &Ended) -> String {
    let lines: Vec<&str> = viewer.stderr.lines().filter(|line| line.contains(": received ")).collect();
    assert!(!lines.is_empty(), "no summary: {}", viewer.stderr);
    lines.last().map(|line| (*line).to_owned()).unwrap_or_default()
}

/// How many streams a line of a viewer's summary is about.
pub fn streams_in(line: &str) -> u64 {
    match line.split_once(" streams): received") {
        Some((before, _)) => before.rsplit('(').next().and_then(|count| count.parse().ok()).unwrap_or(1),
        None => 1,
    }
}

/// Packets that a line of a viewer's summary counts as lost, by stage.
pub fn counted_in(line: &str) -> BTreeMap<String, u64> {
    let mut counted = missing_in(line);
    for stage in UNPACKED_STAGES {
        if let Some(count) = number_after(line, &format!(" + {stage} ")) {
            *counted.entry(stage.to_owned()).or_default() += count;
        }
    }
    counted
}

/// The same without what was lost before it was packed.
pub fn missing_in(line: &str) -> BTreeMap<String, u64> {
    let mut counted: BTreeMap<String, u64> = BTreeMap::new();
    let text = line.split_once("; missing ").map_or("", |(_, rest)| rest);
    for one in text.split(';').next().unwrap_or_default().split(", ") {
        if let Some((count, stage)) = one.split_once(' ') {
            *counted.entry(stage.to_owned()).or_default() += count.parse::<u64>().expect("a count");
        }
    }
    counted
}

/// Numbers below `end` that are not among them.
fn missing(numbers: &[u64], end: u64) -> Vec<u64> {
    let present: BTreeSet<u64> = numbers.iter().copied().collect();
    (0..end).filter(|number| !present.contains(number)).collect()
}

/// `3-5, 9-9`, the first of them.
pub fn ranges(numbers: &[u64]) -> String {
    const SHOWN_MAX: usize = 12;
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    let more = ranges.len().saturating_sub(SHOWN_MAX);
    let mut texts: Vec<String> = ranges.iter().take(SHOWN_MAX).map(|(a, b)| format!("{a}-{b}")).collect();
    if more > 0 {
        texts.push(format!("{more} more"));
    }
    texts.join(", ")
}

/// The least number of increasing runs that the numbers are a mixture of.
fn increasing_runs(numbers: &[u64]) -> usize {
    let mut ends: BTreeSet<u64> = BTreeSet::new();
    for number in numbers {
        let end = ends.range(..*number).next_back().copied();
        if let Some(end) = end {
            ends.remove(&end);
        }
        ends.insert(*number);
    }
    ends.len()
}

/// The first number after these words.
pub fn number_after(text: &str, words: &str) -> Option<u64> {
    let (_, rest) = text.split_once(words)?;
    rest.split(|one: char| !one.is_ascii_digit()).next()?.parse().ok()
}

/// Asks `sniffer journal ACTION DIR`: exit status and what it says.
pub fn journal(action: &str, directory: &Path, more: &[&str]) -> (i32, String) {
    let mut command = Command::new(crate::program("sniffer"));
    command.args(["journal", action]).arg(directory).args(more);
    let (status, output, errors) = run(&mut command);
    (status, String::from_utf8_lossy(&output).into_owned() + &errors)
}

/// Packets in the segments of a spool now, with those that are acknowledged and not deleted yet.
pub fn spooled(directory: &Path) -> u64 {
    let (status, text) = journal("list", directory, &[]);
    if status != 0 {
        return 0; // it is not there yet
    }
    let total = text.lines().find(|line| line.contains(" segments, ")).unwrap_or_default();
    number_before(total, " packets; acknowledged")
}

/// Waits until everything in a spool is acknowledged.
pub fn await_drained(directory: &Path, time: Duration) {
    eventually_within(time, &format!("nothing to send in {}", directory.display()), || {
        let (_, text) = journal("list", directory, &[]);
        std::thread::sleep(Duration::from_millis(100));
        if text.contains(", 0 B not acknowledged") { Ok(()) } else { Err(text) }
    });
}

/// Waits until so many packets are in a spool.
pub fn await_spooled(directory: &Path, packets: u64, time: Duration) -> u64 {
    eventually_within(time, &format!("{packets} packets in {}", directory.display()), || {
        let found = spooled(directory);
        std::thread::sleep(Duration::from_millis(100));
        if found >= packets { Ok(found) } else { Err(format!("{found}")) }
    })
}

/// Packets that the totals files of a spool say were packed, by the runs' files.
pub fn packed(directory: &Path) -> u64 {
    let files = std::fs::read_dir(directory).expect("a directory").filter_map(Result::ok);
    let totals = files.filter(|file| file.file_name().to_string_lossy().starts_with("totals-"));
    totals.map(|file| packed_in(&std::fs::read(file.path()).expect("a file"))).sum()
}

/// A slot of 256 bytes holds its state in the low half of the first word, 0 being free, and two
/// copies of the totals, of which the one with the greater generation counts.
fn packed_in(bytes: &[u8]) -> u64 {
    let word = |slot: &[u8], at: usize| {
        u64::from_le_bytes(slot[at * 8..at * 8 + 8].try_into().expect("eight bytes"))
    };
    let slots = bytes[4096..].chunks(256).filter(|slot| word(slot, 0) as u32 != 0);
    let newest = |slot: &[u8]| {
        let copies = [8, 16].map(|copy| (word(slot, copy + 6), word(slot, copy + 1)));
        copies.into_iter().max().map_or(0, |(_, packets)| packets)
    };
    slots.map(newest).sum()
}

/// Bytes that the files of a directory occupy whose names are as `is_meant` says.
pub fn occupied(directory: &Path, is_meant: impl Fn(&str) -> bool) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let files = std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let meant = files.filter(|file| is_meant(&file.file_name().to_string_lossy()));
    // One that is deleted meanwhile occupies nothing.
    meant.filter_map(|file| file.metadata().ok()).map(|data| data.blocks() * 512).sum()
}

/// A disk in memory, of a size of its own. Gone when dropped.
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// An empty one, mounted at `path`.
    pub fn new(path: PathBuf, size: &str) -> Self {
        std::fs::create_dir_all(&path).expect("a directory");
        let options = format!("size={size},mode=700");
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "ringcast-test"]).arg(&path).status();
        assert!(status.expect("mount runs").success());
        Self { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills all that is left of it with somebody else's file.
    pub fn fill(&self) -> PathBuf {
        let path = self.path.join("somebody-elses");
        let mut file = File::create(&path).expect("a file");
        let zeros = vec![0; 1 << 16];
        while std::io::Write::write_all(&mut file, &zeros).is_ok() {}
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: the sniffer may not have ended yet.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// Cuts TCP connections in a namespace that match a filter of ss(8); `false`: this kernel cannot.
pub fn cut_connections(netns: &Netns, filter: &[&str]) -> bool {
    let arguments = [&["-H", "-t", "-n", "-K"], filter].concat();
    let output = netns.command("ss").args(arguments).output().expect("ss runs");
    !output.stdout.is_empty()
}

/// Bytes that an interface has sent so far.
pub fn sent_bytes(netns: &Netns, interface: &str) -> u64 {
    let path = format!("/sys/class/net/{interface}/statistics/tx_bytes");
    let output = netns.command("cat").arg(path).output().expect("cat runs");
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
}

/// How long something took, said.
pub fn timed<T>(what: &str, step: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let value = step();
    eprintln!("[time] {what}: {:.1} s", begin.elapsed().as_secs_f64());
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_ranges_are_counted() {
        assert_eq!(increasing_runs(&[]), 0);
        assert_eq!(increasing_runs(&[1, 2, 3, 7]), 1);
        assert_eq!(increasing_runs(&[1, 5, 2, 6, 3]), 2);
        assert_eq!(increasing_runs(&[3, 2, 1]), 3);
        assert_eq!(ranges(&[1, 2, 3, 7]), "1-3, 7-7");
    }
}
