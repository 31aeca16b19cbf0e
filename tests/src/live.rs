//! A live capture on a bench of its own: two namespaces joined by a wire, the three programs in
//! and around them, and the packets that cross.
//!
//! ```text
//!  here: sniffer, relay, viewers                 there: who sends
//!  v1 02:00:00:00:00:01 10.9.0.1/24  === veth === v2 02:00:00:00:00:02 10.9.0.2/24
//! ```
//!
//! Nothing crosses the wire by itself: no IPv6, known neighbours. Frames that the tests make go to
//! 10.99.0.1, which nobody has, so that nobody answers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use tempfile::TempDir;

use crate::netns::Netns;
use crate::process::{DEADLINE, Ended, Process, run};

/// MAC address of `v1`.
pub const HERE: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// MAC address of `v2`.
pub const THERE: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Sends the frames of a file, one a line in hexadecimal, out of an interface.
const SEND_FRAMES: &str = "
import socket, sys
out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
out.bind((sys.argv[1], 0))
for line in open(sys.argv[2]):
    out.send(bytes.fromhex(line))
";

/// Sends numbered datagrams of 64 flows out of an interface: count, then how many between pauses
/// of 5 ms (0: none). The number stands at the payload's begin, `number=00000000`.
const SEND_NUMBERED: &str = "
import socket, sys, time
interface, first, count, burst = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
out.bind((interface, 0))
head, tail = (bytes.fromhex(text) for text in sys.argv[5:7])
for number in range(first, first + count):
    out.send(head + (20000 + number % 64).to_bytes(2, 'big') + tail + b'number=%08d' % number)
    if number == first + 1000:
        print('under way', file=sys.stderr, flush=True)
    if burst and number % burst == burst - 1:
        time.sleep(0.005)
";

/// Two namespaces, a wire, a directory; all gone with it.
pub struct Bench {
    /// Where the sniffer is.
    pub here: Netns,
    /// The wire's other end.
    pub there: Netns,
    directory: TempDir,
}

impl Bench {
    /// A fresh bench; `None`, said, where there can be none.
    pub fn new() -> Option<Self> {
        if !crate::netns::is_available() {
            return None;
        }
        let bench = Self {
            here: Netns::new(),
            there: Netns::new(),
            directory: tempfile::tempdir().expect("a directory"),
        };
        bench.wire("v1", HERE, "v2", THERE);
        bench.here.ip(&["addr", "add", "10.9.0.1/24", "dev", "v1"]);
        bench.there.ip(&["addr", "add", "10.9.0.2/24", "dev", "v2"]);
        bench.here.ip(&["neigh", "add", "10.9.0.2", "lladdr", &mac_text(THERE), "dev", "v1"]);
        bench.there.ip(&["neigh", "add", "10.9.0.1", "lladdr", &mac_text(HERE), "dev", "v2"]);
        Some(bench)
    }

    /// A further wire between the two, up and silent.
    pub fn wire(&self, near: &str, near_mac: [u8; 6], far: &str, far_mac: [u8; 6]) {
        let (near_mac, far_mac) = (mac_text(near_mac), mac_text(far_mac));
        let one_end = ["link", "add", near, "address", &near_mac, "netns", self.here.name(), "type", "veth"];
        let other_end = ["peer", "name", far, "address", &far_mac, "netns", self.there.name()];
        crate::netns::ip(&[&one_end[..], &other_end].concat());
        self.here.ip(&["link", "set", near, "addrgenmode", "none"]);
        self.there.ip(&["link", "set", far, "addrgenmode", "none"]);
        self.here.ip(&["link", "set", near, "up"]);
        self.there.ip(&["link", "set", far, "up"]);
        self.here.await_up(near);
        self.there.await_up(far);
    }

    /// A path in the bench's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A relay here, on the default address.
    pub fn relay(&self) -> Process {
        Self::relay_in(&self.here, &[])
    }

    /// A relay with arguments of its own.
    pub fn relay_in(netns: &Netns, arguments: &[&str]) -> Process {
        let mut relay = Process::start(netns.command(crate::program("relay")).args(arguments));
        relay.await_line("listening on");
        relay
    }

    /// A sniffer here named `name`. To know that it captures, see [`Bench::await_streams`].
    pub fn sniffer(&self, name: &str, arguments: &[&str]) -> Process {
        let mut command = self.here.command(crate::program("sniffer"));
        Process::start(command.args(["--name", name]).args(arguments))
    }

    /// A viewer here that writes into `file`, until all streams that match have ended.
    pub fn viewer(&self, file: &Path, arguments: &[&str]) -> Process {
        Self::viewer_in(&self.here, file, &[&["--until-end"], arguments].concat())
    }

    /// A viewer with arguments of its own.
    pub fn viewer_in(netns: &Netns, file: &Path, arguments: &[&str]) -> Process {
        let mut command = netns.command(crate::program("viewer"));
        Process::start(command.arg("-w").arg(file).args(arguments))
    }

    /// What `viewer --list --json` says; empty without a relay.
    pub fn list(netns: &Netns, arguments: &[&str]) -> Vec<Value> {
        let mut command = netns.command(crate::program("viewer"));
        let output = command.args(["--list", "--json"]).args(arguments).output().expect("viewer runs");
        match serde_json::from_slice(&output.stdout) {
            Ok(Value::Array(list)) => list,
            _ => Vec::new(),
        }
    }

    /// Waits until the relay here lists `streams` live streams, each with `viewers` viewers.
    pub fn await_streams(&self, streams: usize, viewers: u64) {
        Self::await_streams_in(&self.here, &[], streams, viewers);
    }

    /// The same for another namespace or relay.
    pub fn await_streams_in(netns: &Netns, arguments: &[&str], streams: usize, viewers: u64) {
        eventually(&format!("{streams} live streams with {viewers} viewers each"), || {
            let list = Self::list(netns, arguments);
            let live: Vec<&Value> = list.iter().filter(|one| one["state"] == "live").collect();
            let ready = live.len() == streams && live.iter().all(|one| one["viewers"] == viewers);
            if ready { Ok(()) } else { Err(format!("{list:?}")) }
        });
    }

    /// Sends frames out of an interface, whole and in order.
    pub fn send(&self, netns: &Netns, interface: &str, frames: &[Vec<u8>]) {
        let file = tempfile::NamedTempFile::new_in(self.directory.path()).expect("a file");
        let text: String = frames.iter().map(|frame| hex(frame) + "\n").collect();
        std::fs::write(file.path(), text).expect("written");
        python(netns, SEND_FRAMES, &[interface, &file.path().to_string_lossy()]);
    }

    /// Sends `count` numbered datagrams from there to here, `burst` at once and then a pause
    /// (0: no pause). Runs beside the test; says `under way` after the first thousand.
    pub fn send_numbered(&self, first: u64, count: u64, burst: u64) -> Process {
        let frame = udp(0, 5000, &[0; 15]);
        let (head, tail) = (hex(&frame[..34]), hex(&frame[36..42]));
        let numbers = [first, count, burst].map(|number| number.to_string());
        let mut command = self.there.command("python3");
        command.args(["-c", SEND_NUMBERED, "v2", &numbers[0], &numbers[1], &numbers[2], &head, &tail]);
        Process::start(&mut command)
    }

    /// Sends numbered datagrams, and waits until the last one is sent.
    pub fn send_all_numbered(&self, first: u64, count: u64, burst: u64) {
        assert_eq!(self.send_numbered(first, count, burst).wait().code(), 0);
    }
}

/// Runs a script of Python to its end; returns its standard output.
pub fn python(netns: &Netns, script: &str, arguments: &[&str]) -> String {
    let (status, output, errors) = run(netns.command("python3").args(["-c", script]).args(arguments));
    assert_eq!(status, 0, "{errors}");
    String::from_utf8(output).expect("text")
}

/// A program that a test uses beside ours, until dropped.
pub fn start(netns: &Netns, program: &str, arguments: &[&str]) -> Process {
    Process::start(netns.command(program).args(arguments).stdout(std::process::Stdio::null()))
}

/// Calls `step` until it is content; what it said last is shown when that takes too long.
pub fn eventually<T>(what: &str, step: impl FnMut() -> Result<T, String>) -> T {
    eventually_within(DEADLINE, what, step)
}

/// The same with a deadline of its own, for what takes long by its nature.
pub fn eventually_within<T>(time: Duration, what: &str, mut step: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + time;
    loop {
        match step() {
            Ok(value) => return value,
            Err(why) => assert!(Instant::now() < deadline, "{what}: not within {time:?}: {why}"),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until a file has the bytes `needle` in it; returns when that was seen.
pub fn await_bytes(file: &Path, needle: &[u8]) -> SystemTime {
    eventually(&format!("{:?} in {}", String::from_utf8_lossy(needle), file.display()), || {
        let bytes = std::fs::read(file).unwrap_or_default();
        let found = bytes.windows(needle.len()).any(|window| window == needle);
        if found { Ok(SystemTime::now()) } else { Err(format!("{} bytes", bytes.len())) }
    })
}

/// The number in front of `words` in what a program said: of `12 captured` and `captured` it is 12.
pub fn number_before(text: &str, words: &str) -> u64 {
    let end = text.find(words).unwrap_or_else(|| panic!("no {words:?} in {text}"));
    let number = text[..end].trim_end().rsplit(|one: char| !one.is_ascii_digit()).next().unwrap_or_default();
    number.parse().unwrap_or_else(|_| panic!("no number before {words:?} in {text}"))
}

/// What a sniffer counted, by its summary: offered, dropped by the kernel, captured.
pub fn captured(sniffer: &Ended) -> (u64, u64, u64) {
    (
        number_before(&sniffer.stderr, " packets passed the filter"),
        number_before(&sniffer.stderr, " dropped by the kernel"),
        number_before(&sniffer.stderr, " captured ("),
    )
}

/// What a viewer of one interface counted, by its summary: received, written.
pub fn viewed(viewer: &Ended) -> (u64, u64) {
    let at = viewer.stderr.find("received ").unwrap_or_else(|| panic!("no summary: {}", viewer.stderr));
    let text = &viewer.stderr[at..];
    let written: String = text
        .split_once("written ")
        .map(|(_, rest)| rest.chars().take_while(char::is_ascii_digit).collect())
        .unwrap_or_default();
    (number_before(text, " packets ("), written.parse().expect("a number"))
}

/// A datagram in a frame from there to here, addressed to 10.99.0.1 port 5000 or another.
pub fn udp(source_port: u16, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    for number in [source_port, port, 8 + payload.len() as u16, 0] {
        datagram.extend(number.to_be_bytes());
    }
    datagram.extend(payload);
    tagged(&[], &ipv4(17, &datagram))
}

/// A frame from there to here of an IPv4 packet behind the given tags (TPID and TCI).
pub fn tagged(tags: &[(u16, u16)], packet: &[u8]) -> Vec<u8> {
    let mut frame = [HERE, THERE].concat();
    for (tpid, tci) in tags {
        frame.extend(tpid.to_be_bytes());
        frame.extend(tci.to_be_bytes());
    }
    frame.extend([0x08, 0x00]);
    frame.extend(packet);
    frame
}

/// An IPv4 packet from 10.9.0.2 to 10.99.0.1.
pub fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut head = vec![0x45, 0];
    head.extend((20 + payload.len() as u16).to_be_bytes());
    head.extend([0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 9, 0, 2, 10, 99, 0, 1]);
    let words = head.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    head[10..12].copy_from_slice(&checksum.to_be_bytes());
    [&head, payload].concat()
}

/// A TCP segment without data, SYN, for [`ipv4`].
pub fn tcp_syn(port: u16) -> Vec<u8> {
    let mut segment = [4321u16.to_be_bytes(), port.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0x20, 0, 0, 0, 0, 0]);
    segment
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A packet of a pcapng file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Interface.
    pub interface: usize,
    /// Time since 1970, ns.
    pub time_ns: u64,
    /// Length on the wire.
    pub original_len: usize,
    /// What was kept.
    pub data: Vec<u8>,
    /// The flags word, 0 without one.
    pub flags: u32,
    /// Its comments.
    pub comments: Vec<String>,
}

impl Packet {
    /// Number of a packet of [`Bench::send_numbered`].
    pub fn number(&self) -> Option<u64> {
        let text = self.data.get(42..57)?.strip_prefix(b"number=")?;
        std::str::from_utf8(text).ok()?.parse().ok()
    }
}

/// Statistics of an interface: the last block about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// isb_filteraccept.
    pub filter_accepted: Option<u64>,
    /// isb_osdrop.
    pub kernel_drops: Option<u64>,
    /// isb_usrdeliv.
    pub delivered: Option<u64>,
    /// Its comments.
    pub comments: Vec<String>,
}

/// A pcapng file of ours, read by hand: little-endian, one section, times in ns. It is another
/// reader than the one that the programs use.
#[derive(Clone, Debug, Default)]
pub struct Pcapng {
    /// Name, link type and statistics of each interface.
    pub interfaces: Vec<(String, u16, Statistics)>,
    /// All packets.
    pub packets: Vec<Packet>,
}

impl Pcapng {
    /// Reads a file, which must be whole, and which capinfos must read too.
    pub fn read(file: &Path) -> Self {
        let bytes = std::fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let (text, content) = crate::tshark::capinfos(file);
        assert!(content, "capinfos complains: {text}");
        let mut read = Self::default();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let length = word(rest, 4);
            assert_eq!(word(rest, length - 4), length, "both lengths of a block");
            read.block(word(rest, 0), &rest[8..length - 4]);
            rest = &rest[length..];
        }
        let status = Command::new("tshark").args(["-n", "-r"]).arg(file).output().expect("tshark runs");
        assert!(status.status.success(), "tshark: {}", String::from_utf8_lossy(&status.stderr));
        let lines = status.stdout.iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(lines, read.packets.len(), "tshark sees as many packets");
        read
    }

    fn block(&mut self, kind: usize, body: &[u8]) {
        match kind {
            1 => {
                let found = options(&body[8..]).find(|(code, _)| *code == 2);
                let name = found.map(|(_, value)| String::from_utf8_lossy(value).into_owned());
                let link_type = u16::from_le_bytes([body[0], body[1]]);
                self.interfaces.push((name.unwrap_or_default(), link_type, Statistics::default()));
            }
            5 => {
                let number = |code: u16| {
                    let (_, value) = options(&body[12..]).find(|(found, _)| *found == code)?;
                    Some(u64::from_le_bytes(value.try_into().ok()?))
                };
                self.interfaces[word(body, 0)].2 = Statistics {
                    filter_accepted: number(6),
                    kernel_drops: number(7),
                    delivered: number(8),
                    comments: comments(&body[12..]),
                };
            }
            6 => {
                let (captured, padded) = (word(body, 12), word(body, 12).next_multiple_of(4));
                let flags = options(&body[20 + padded..]).find(|(code, _)| *code == 2);
                self.packets.push(Packet {
                    interface: word(body, 0),
                    time_ns: (word(body, 4) as u64) << 32 | word(body, 8) as u64,
                    original_len: word(body, 16),
                    data: body[20..20 + captured].to_vec(),
                    flags: flags.map_or(0, |(_, value)| word(value, 0) as u32),
                    comments: comments(&body[20 + padded..]),
                });
            }
            _ => {}
        }
    }

    /// The numbers of all packets of [`Bench::send_numbered`], in the order of the file.
    pub fn numbers(&self) -> Vec<u64> {
        self.packets.iter().filter_map(Packet::number).collect()
    }

    /// All comments: of the packets in their order, then of the last statistics.
    pub fn comments(&self) -> Vec<&str> {
        let of_packets = self.packets.iter().flat_map(|packet| &packet.comments);
        let of_interfaces = self.interfaces.iter().flat_map(|(_, _, statistics)| &statistics.comments);
        of_packets.chain(of_interfaces).map(String::as_str).collect()
    }

    /// The data of all packets.
    pub fn data(&self) -> Vec<&[u8]> {
        self.packets.iter().map(|packet| packet.data.as_slice()).collect()
    }
}

fn comments(rest: &[u8]) -> Vec<String> {
    let comments = options(rest).filter(|(code, _)| *code == 1);
    comments.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
}

fn word(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
}

fn options(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = rest.get(..4)?;
        let (code, length) =
            (u16::from_le_bytes([head[0], head[1]]), usize::from(head[2]) | usize::from(head[3]) << 8);
        let value = &rest[4..4 + length];
        rest = &rest[4 + length.next_multiple_of(4)..];
        (code != 0).then_some((code, value))
    })
}
