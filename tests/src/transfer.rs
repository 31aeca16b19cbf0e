//! A transfer between sound peers, which goes on whatever others do to the relay.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command};
use std::time::{Duration, Instant};

use wire::capture_file::{CaptureReader, Item};

use crate::process::{DEADLINE, Process};
use crate::program;
use crate::samples::{Order, Sample, noise, udp_frame};

const FIRST_S: u32 = 1_700_000_000;

/// A sniffer that sends what it is fed, and a viewer that writes it.
pub struct Transfer {
    sniffer: Process,
    viewer: Process,
    stdin: ChildStdin,
    out: PathBuf,
    fed: Vec<Vec<u8>>,
}

impl Transfer {
    /// Through the relay at `url`; the viewer's file is in `folder`.
    pub fn start(url: &str, folder: &Path) -> Self {
        let out = folder.join("good.pcapng");
        let mut viewer = Command::new(program("viewer"));
        viewer.args(["--relay", url, "--sniffer", "good", "--until-end", "-w"]).arg(&out);
        let viewer = Process::start(&mut viewer);
        let mut sniffer = Command::new(program("sniffer"));
        sniffer.args(["--read", "-", "--relay", url, "--name", "good"]);
        let (sniffer, mut stdin) = Process::start_piped(&mut sniffer);
        stdin.write_all(Sample::pcap(Order::Little, false, 1).bytes()).expect("it reads");
        Self { sniffer, viewer, stdin, out, fed: Vec::new() }
    }

    /// Feeds packets, and one like no other behind them, and waits until that is in the viewer's file.
    pub fn goes_on(&mut self, packets: &[Vec<u8>]) {
        let mut piece = Sample::pcap(Order::Little, false, 1);
        let from = piece.bytes().len();
        let number = self.fed.len() + packets.len();
        let last = udp_frame(1, 2, &noise(number as u64, 200 + number % 1000));
        for packet in packets.iter().chain([&last]) {
            piece.record(FIRST_S + self.fed.len() as u32, 0, packet, packet.len() as u32);
            self.fed.push(packet.clone());
        }
        self.stdin.write_all(&piece.bytes()[from..]).expect("the sniffer reads");
        let (sniffer, viewer) = (&mut self.sniffer, &mut self.viewer);
        await_packet(&self.out, &last, || assert!(sniffer.is_running() && viewer.is_running()));
    }

    /// Ends the transfer: everything that was fed is there, in order, and nothing else.
    pub fn finish(self) {
        let Self { sniffer, viewer, stdin, out, fed } = self;
        drop(stdin);
        let (sniffer, viewer) = (sniffer.wait(), viewer.wait());
        assert_eq!((sniffer.code(), viewer.code()), (0, 0), "{}{}", sniffer.stderr, viewer.stderr);
        assert!(viewer.stderr.contains(&format!("written {}; missing none", fed.len())), "{}", viewer.stderr);
        assert!(!viewer.stderr.contains("connection lost"), "{}", viewer.stderr);
        assert_eq!(frames(&out), fed);
    }
}

/// Waits until `packet` stands in a file that a program writes; `check` is made meanwhile.
pub fn await_packet(out: &Path, packet: &[u8], mut check: impl FnMut()) {
    let deadline = Instant::now() + DEADLINE;
    while !fs::read(out).is_ok_and(|bytes| bytes.windows(packet.len()).rev().any(|one| one == packet)) {
        assert!(Instant::now() < deadline, "{}: a packet does not arrive", out.display());
        check();
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The frames of a capture file.
pub fn frames(path: &Path) -> Vec<Vec<u8>> {
    let mut reader = CaptureReader::new(fs::File::open(path).expect("it is there")).expect("a capture file");
    let mut frames = Vec::new();
    while let Some(item) = reader.next().expect("a sound file") {
        if let Item::Packet(packet) = item {
            frames.push(packet.data.to_vec());
        }
    }
    frames
}
