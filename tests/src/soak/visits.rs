//! Who comes and goes beside the chain: viewers, strangers, files that are sent.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::random::Random;
use super::world::{Place, RELAY};
use crate::live::{eventually, number_before, python};
use crate::process::{Ended, Process, run};
use crate::samples::{Order, Sample, udp_frame};
use crate::transfer::frames;

/// Connections of no good: noise, half a WebSocket, a hello that is none, silence, by the dozen.
const STRANGERS: &str = "
import os, socket, ssl, sys
context = ssl._create_unverified_context()
upgrade = (b'GET / HTTP/1.1\\r\\nHost: relay\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n'
           b'Sec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n'
           b'Sec-WebSocket-Protocol: ringcast.1\\r\\n\\r\\n')
def masked(opcode, payload):
    return bytes([0x80 | opcode, 0x80 | len(payload), 0, 0, 0, 0]) + payload
def visit(kind):
    with socket.create_connection(('10.8.0.2', 9440), 5) as plain:
        if kind == 0:
            plain.sendall(os.urandom(300))
        elif kind == 1:
            plain.sendall(b'GET / HTTP/1.1\\r\\nHost: relay\\r\\n\\r\\n')
        elif kind == 2:
            plain.sendall(b'\\x16\\x03\\x01\\x02\\x00\\x01')
            return
        elif kind == 3:
            return
        else:
            with context.wrap_socket(plain) as inner:
                inner.sendall([b'GET / HTTP/1.1\\r\\n', upgrade, upgrade + masked(1, b'{\"type\":\"hello\"}'),
                               upgrade + masked(2, os.urandom(100))][kind - 4])
                if kind == 4:
                    return
                while inner.recv(4096):
                    if kind == 5:
                        return
        while plain.recv(4096):
            pass
for number in range(int(sys.argv[1])):
    try:
        visit(number % 8)
    except OSError:
        pass
";

/// Has visitors come and go, one after the other, until the soak is over.
pub fn come_and_go(place: &Place, mut random: Random) {
    let sample = sample(&place.folder.join("visit.pcap"));
    let kinds: [(&str, Visit); 8] = [
        ("a viewer that counts", counting_viewer),
        ("a viewer for a time", timed_viewer),
        ("a viewer that is ended", ended_viewer),
        ("a viewer that is killed", killed_viewer),
        ("a list", list),
        ("a viewer with a wrong token", wrong_viewer),
        ("strangers", strangers),
        ("a file that is sent", file),
    ];
    let mut waiting = Vec::new();
    while !place.is_over.load(Ordering::Acquire) {
        if waiting.is_empty() {
            waiting = random.shuffled(&kinds);
        }
        let Some((name, visit)) = waiting.pop() else { continue };
        {
            let _held = place.visiting.lock();
            let before = place.generation.load(Ordering::Acquire);
            let visitor = Visitor { place, before, sample: &sample };
            visit(&visitor, &mut random);
        }
        place.count(name);
        std::thread::sleep(Duration::from_millis(random.within(50, 600)));
    }
}

type Visit = fn(&Visitor<'_>, &mut Random);

struct Visitor<'a> {
    place: &'a Place,
    /// Of the relay, when the visit began.
    before: u64,
    sample: &'a Path,
}

impl Visitor<'_> {
    fn viewer(&self, arguments: &[&str]) -> Process {
        Process::start_as("visitor", self.command("viewer", "viewer.token").args(arguments))
    }

    fn command(&self, program: &str, token: &str) -> Command {
        self.place.command(&self.place.wide.middle, program, RELAY, token)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.folder.join(name)
    }

    /// Whether the relay was there all the time. One that is not there, or goes between a program's
    /// first connection and its answer, is a reason to leave with status 1.
    fn had_relay(&self) -> bool {
        let now = self.place.generation.load(Ordering::Acquire);
        self.before == now && now.is_multiple_of(2)
    }

    /// A visitor has ended as it should; `false`: without the relay.
    fn ended(&self, ended: Ended) -> bool {
        let ended = self.place.ended("visitor", ended);
        let is_excused = ended.code() == 1 && !self.had_relay();
        assert!(ended.code() == 0 || is_excused, "{}: {}", ended.code(), ended.stderr);
        !is_excused
    }

    /// Waits until a viewer writes; `false` if it has left because there is no relay.
    fn writes(&self, viewer: &mut Process, path: &Path) -> bool {
        eventually("a visitor that writes", || {
            let is_there = path.exists();
            if is_there || !viewer.is_running() { Ok(is_there) } else { Err(viewer.said()) }
        })
    }
}

/// What it wrote is as many packets as it says.
fn is_as_it_says(path: &Path, said: &str) {
    let written = number_before(&said.replace(';', " ;"), " ; missing");
    assert_eq!(frames(path).len() as u64, written, "{said}");
}

fn counting_viewer(visitor: &Visitor<'_>, random: &mut Random) {
    let count = random.within(1, 3000).to_string();
    let viewer = visitor.viewer(&["-c", &count, "-w", "/dev/null"]);
    visitor.ended(viewer.wait());
}

fn timed_viewer(visitor: &Visitor<'_>, random: &mut Random) {
    let (path, time) = (visitor.path("visit.pcapng"), format!("{}ms", random.within(1, 2500)));
    let ended = visitor.viewer(&["--duration", &time, "-w", &path.to_string_lossy()]).wait();
    let said = ended.stderr.clone();
    if visitor.ended(ended) {
        if let Some(line) = said.lines().rfind(|line| line.contains(": received ")) {
            is_as_it_says(&path, line);
        }
        let _ = fs::remove_file(&path); // it may have left before anything came
    }
}

fn ended_viewer(visitor: &Visitor<'_>, random: &mut Random) {
    let path = visitor.path("visit.pcapng");
    let mut viewer = visitor.viewer(&["--backlog", "--reorder", "50ms", "-w", &path.to_string_lossy()]);
    if visitor.writes(&mut viewer, &path) {
        std::thread::sleep(Duration::from_millis(random.within(0, 2000)));
        visitor.ended(viewer.terminate());
        fs::remove_file(&path).expect("removed");
    } else {
        visitor.ended(viewer.wait());
    }
}

fn killed_viewer(visitor: &Visitor<'_>, random: &mut Random) {
    let path = visitor.path("visit.pcapng");
    let mut viewer = visitor.viewer(&["-w", &path.to_string_lossy()]);
    if visitor.writes(&mut viewer, &path) {
        std::thread::sleep(Duration::from_millis(random.within(0, 1500)));
        visitor.place.ended("visitor", viewer.kill());
        fs::remove_file(&path).expect("removed");
    } else {
        visitor.ended(viewer.wait());
    }
}

fn list(visitor: &Visitor<'_>, _: &mut Random) {
    let (code, list, said) = run(visitor.command("viewer", "viewer.token").args(["--list", "--json"]));
    if visitor.had_relay() {
        assert_eq!(code, 0, "{said}");
        let list: serde_json::Value = serde_json::from_slice(&list).expect("JSON");
        assert!(list.is_array(), "{list}");
    }
}

/// A token of a sniffer, which may not watch.
fn wrong_viewer(visitor: &Visitor<'_>, _: &mut Random) {
    let (code, _, said) = run(visitor.command("viewer", "sniffer.token").args(["-w", "/dev/null"]));
    assert_eq!(code, 1, "{said}");
    assert!(!visitor.had_relay() || said.contains("may not subscribe"), "{said}");
}

fn strangers(visitor: &Visitor<'_>, random: &mut Random) {
    python(&visitor.place.wide.middle, STRANGERS, &[&random.within(8, 33).to_string()]);
}

/// A capture file, through the relay, to a viewer of its own.
fn file(visitor: &Visitor<'_>, random: &mut Random) {
    let name = format!("file-{}", random.number());
    let path = visitor.path("visit.pcapng");
    let mut viewer = visitor.viewer(&["--sniffer", &name, "--until-end", "-w", &path.to_string_lossy()]);
    if !visitor.writes(&mut viewer, &path) {
        visitor.ended(viewer.wait());
        return;
    }
    let mut command = visitor.command("sniffer", "sniffer.token");
    command.args(["--name", &name, "--read"]).arg(visitor.sample);
    let reader = Process::start_as("reader", &mut command);
    if !visitor.ended(reader.wait()) {
        visitor.ended(viewer.terminate());
    } else if visitor.ended(viewer.wait()) {
        assert_eq!(frames(&path), frames(visitor.sample));
    }
    fs::remove_file(&path).expect("removed");
}

/// A capture file.
fn sample(path: &Path) -> PathBuf {
    let mut sample = Sample::pcap(Order::Little, false, 1);
    for number in 0..500 {
        let frame = udp_frame(1000 + number, 53, &[0; 100][..usize::from(number % 100)]);
        sample.record(1_700_000_000, u32::from(number), &frame, frame.len() as u32);
    }
    fs::write(path, sample.bytes()).expect("written");
    path.to_owned()
}
