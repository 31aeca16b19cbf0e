//! What stands: namespaces, the relay, three sniffers with a sender each, two viewers that stay.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use super::frames::{Frames, Sender};
use super::gauge::Gauges;
use super::taker::Taker;
use crate::faults::{Disk, Wide, journal};
use crate::live::{Bench, captured, eventually_within};
use crate::netns::Netns;
use crate::pki::Pki;
use crate::process::{Ended, Process};

/// Where all but the viewers far away find the relay.
pub const RELAY: &str = "wss://10.8.0.2:9440";
/// Where those find it.
const RELAY_FROM_FAR: &str = "wss://10.7.0.1:9440";
/// What is captured: the numbered frames, with a tag or without.
const FILTER: &str = "udp port 5000 or (vlan and udp port 5000)";
/// For what takes a dead line's time, and a backlog behind it.
pub const LONG: Duration = Duration::from_secs(180);
/// Budgets, of which the tests of memory know: `--memory` of a sniffer and of the relay.
pub const SNIFFER_MEMORY: &str = "32MiB";
/// The relay's.
pub const RELAY_MEMORY: &str = "160MiB";

/// What the threads of a soak share.
pub struct Place {
    /// The namespaces and wires.
    pub wide: Wide,
    /// Certificates and tokens.
    pub pki: Pki,
    /// Where visits and senders have their files.
    pub folder: PathBuf,
    /// Odd while the relay is away; greater each time it goes or comes.
    pub generation: AtomicU64,
    /// The soak is over.
    pub is_over: AtomicBool,
    /// Held by a visit while it lasts.
    pub visiting: Mutex<()>,
    done: Mutex<BTreeMap<String, u64>>,
    logs: Mutex<Vec<Log>>,
}

/// How much a process said.
#[derive(Clone, Debug)]
pub struct Log {
    /// Which.
    pub title: String,
    /// Lines of its standard error.
    pub lines: usize,
    /// Their bytes.
    pub bytes: usize,
}

impl Place {
    /// Namespaces, wires and keys; `None`, said, where there can be none.
    pub fn new() -> Option<Self> {
        let wide = Wide::new()?;
        wide.bench.wire("w1", mac(3), "w2", mac(4));
        wide.bench.wire("x1", mac(5), "x2", mac(6));
        let pki = Pki::new(&["10.8.0.2", "10.7.0.1"]);
        let folder = wide.path("soak");
        fs::create_dir(&folder).expect("a directory");
        Some(Self {
            wide,
            pki,
            folder,
            generation: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            visiting: Mutex::new(()),
            done: Mutex::default(),
            logs: Mutex::default(),
        })
    }

    /// Something was done.
    pub fn count(&self, kind: &str) {
        *self.done.lock().expect("nobody panics").entry(kind.to_owned()).or_default() += 1;
    }

    /// What was done, by kind.
    pub fn done(&self) -> BTreeMap<String, u64> {
        self.done.lock().expect("nobody panics").clone()
    }

    /// A process has ended: what it said must not tell of a panic.
    pub fn ended(&self, title: &str, ended: Ended) -> Ended {
        assert!(!ended.stderr.contains("panicked"), "{title}: {}", ended.stderr);
        let (lines, bytes) = (ended.stderr.lines().count(), ended.stderr.len());
        self.logs.lock().expect("nobody panics").push(Log { title: title.to_owned(), lines, bytes });
        ended
    }

    /// How much each process said that has ended.
    pub fn logs(&self) -> Vec<Log> {
        self.logs.lock().expect("nobody panics").clone()
    }

    /// A program of ours in a namespace, with the credentials of an entry.
    pub fn command(&self, netns: &Netns, program: &str, relay: &str, token: &str) -> Command {
        let mut command = netns.command(crate::program(program));
        command.args(["--relay", relay]).args(self.pki.client(token));
        command
    }

    /// What the relay lists.
    pub fn list(&self) -> Vec<Value> {
        let credentials = self.pki.client("viewer.token");
        let mut arguments = vec!["--relay", RELAY];
        arguments.extend(credentials.iter().map(String::as_str));
        Bench::list(&self.wide.middle, &arguments)
    }
}

fn mac(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, last]
}

/// A sniffer and who sends what it captures.
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// What it captures.
    pub interface: &'static str,
    /// The wire's other end.
    pub far_interface: &'static str,
    /// Numbers that may not have been captured: an interface was away, or nobody captured.
    pub absent: Vec<Range<u64>>,
    /// Packets that runs which have ended had packed; `None` if one was killed.
    pub packed: Option<u64>,
    /// Packets that the kernel dropped in those of them that ended in order.
    pub kernel_drops: u64,
    /// It, while it runs.
    pub process: Option<Process>,
    spool: Option<PathBuf>,
    arguments: Vec<String>,
    sender: Option<Sender>,
}

impl Part {
    /// The process, which runs.
    pub fn running(&mut self) -> &mut Process {
        self.process.as_mut().expect("it runs")
    }

    /// Its sender, which sends.
    pub fn sender(&self) -> &Sender {
        self.sender.as_ref().expect("it sends")
    }
}

/// A viewer that stays, and what came to it.
pub struct Stayer {
    /// Its name.
    pub name: &'static str,
    /// It.
    pub process: Process,
    /// Who reads it.
    pub taker: Taker,
}

/// All that runs.
pub struct Chain<'a> {
    /// Where.
    pub place: &'a Place,
    /// What looks at all.
    pub gauges: Gauges,
    /// The relay, while it runs.
    pub relay: Option<Process>,
    /// `steady` is never disturbed itself, `moving` loses its interface, `mortal` is ended and killed.
    pub parts: Vec<Part>,
    /// `prompt` always reads, `tardy` is made not to.
    pub stayers: Vec<Stayer>,
    /// The disk of `mortal`.
    pub disk: Disk,
}

/// Place of each sniffer among the parts.
pub const STEADY: usize = 0;
/// The one that loses its interface.
pub const MOVING: usize = 1;
/// The one that is ended and killed.
pub const MORTAL: usize = 2;
/// Place of each viewer among those that stay.
pub const PROMPT: usize = 0;
/// The one that is made not to read.
pub const TARDY: usize = 1;

impl<'a> Chain<'a> {
    /// Starts all of it; each sender sends so many packets a second on average.
    pub fn start(place: &'a Place, rate: u64, look_every: Duration) -> Self {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let disk = Disk::new(place.folder.join("disk"), "24M");
        let part = |name, interface, far_interface, spool: Option<PathBuf>, size: &str| {
            let mut arguments = ["--memory", SNIFFER_MEMORY].map(str::to_owned).to_vec();
            if let Some(spool) = &spool {
                arguments.extend(["--spool".into(), text(spool), "--spool-size".into(), size.into()]);
            }
            place.pki.add(name, &["--role", "publish"]);
            Part {
                name,
                interface,
                far_interface,
                absent: Vec::new(),
                packed: Some(0),
                kernel_drops: 0,
                process: None,
                spool,
                arguments,
                sender: None,
            }
        };
        let parts = vec![
            part("steady", "v1", "v2", Some(place.folder.join("spool")), "4MiB"),
            part("moving", "w1", "w2", None, ""),
            part("mortal", "x1", "x2", Some(disk.path().join("spool")), "64MiB"),
        ];
        let marked = parts.iter().zip('a'..).map(|(part, mark)| (part.name.to_owned(), Frames::new(mark)));
        let frames: Arc<BTreeMap<String, Frames>> = Arc::new(marked.collect());
        let gauges = Gauges::start(look_every);
        let mut chain = Self { place, gauges, relay: None, parts, stayers: Vec::new(), disk };
        chain.start_relay();
        for name in ["prompt", "tardy"] {
            let token = place.pki.add(name, &["--role", "subscribe"]);
            chain.hang_up_relay();
            let mut command = place.command(&place.wide.far, "viewer", RELAY_FROM_FAR, &token);
            for part in &chain.parts {
                command.args(["--sniffer", part.name]);
            }
            let mut process = Process::start_as(name, command.stdout(Stdio::piped()));
            chain.gauges.born(name, process.id());
            let taker = Taker::start(process.stdout(), Arc::clone(&frames));
            chain.stayers.push(Stayer { name, process, taker });
        }
        // They are there before anything comes: the audit tells.
        let relay = chain.relay.as_mut().expect("it runs");
        relay.await_lines("subscription begins", chain.stayers.len(), LONG);
        for index in 0..chain.parts.len() {
            chain.start_sniffer(index);
            let part = &mut chain.parts[index];
            let frames = &frames[part.name];
            let there = &place.wide.bench.there;
            part.sender = Some(Sender::start(there, part.far_interface, frames, rate, &place.folder));
        }
        chain
    }

    /// Starts the relay.
    pub fn start_relay(&mut self) {
        let mut command = self.place.wide.middle.command(crate::program("relay"));
        command.args(["--listen", "0.0.0.0:9440", "--workers", "2", "--memory", RELAY_MEMORY]);
        command.args(["--viewer-queue", "8MiB", "--recent", "16MiB"]).args(self.place.pki.relay());
        let mut relay = Process::start_as("relay", &mut command);
        relay.await_line("listening on");
        self.gauges.born("relay", relay.id());
        self.relay = Some(relay);
        self.place.generation.fetch_and(!1, Ordering::AcqRel);
    }

    /// Ends the relay in order, or kills it.
    pub fn end_relay(&mut self, in_order: bool) {
        self.place.generation.fetch_add(3, Ordering::AcqRel);
        self.gauges.died("relay");
        let relay = self.relay.take().expect("it runs");
        let ended = self.place.ended("relay", if in_order { relay.terminate() } else { relay.kill() });
        assert_eq!(ended.status.code(), in_order.then_some(0), "{}", ended.stderr);
    }

    /// Has the relay read its files anew.
    pub fn hang_up_relay(&mut self) {
        let relay = self.relay.as_mut().expect("it runs");
        await_next(relay, "were read anew", |relay| relay.signal("HUP"));
    }

    /// Starts a sniffer.
    pub fn start_sniffer(&mut self, index: usize) {
        let (place, part) = (self.place, &mut self.parts[index]);
        let token = format!("{}.token", part.name);
        let mut command = place.command(&place.wide.bench.here, "sniffer", RELAY, &token);
        command.args(["-i", part.interface, "-f", FILTER, "--name", part.name]).args(&part.arguments);
        let mut process = Process::start_as(part.name, &mut command);
        // Connected or not: by then it captures.
        process.await_line(&format!("relay {RELAY}"));
        self.gauges.born(part.name, process.id());
        part.process = Some(process);
    }

    /// Ends a sniffer in order, which says what it packed, or kills it.
    pub fn end_sniffer(&mut self, index: usize, in_order: bool) -> Ended {
        let part = &mut self.parts[index];
        self.gauges.died(part.name);
        let process = part.process.take().expect("it runs");
        let ended = self.place.ended(part.name, if in_order { process.terminate() } else { process.kill() });
        assert_eq!(ended.status.code(), in_order.then_some(0), "{}", ended.stderr);
        if in_order {
            let (_, dropped, packed) = captured(&ended);
            part.packed = part.packed.map(|before| before + packed);
            part.kernel_drops += dropped;
        } else {
            part.packed = None;
        }
        ended
    }

    /// Something is done to what `index` captures, or to itself: numbers of that time may be absent.
    pub fn with_absence(&mut self, index: usize, fault: impl FnOnce(&mut Self)) {
        let begin = self.stayers[PROMPT].taker.next(self.parts[index].name);
        fault(self);
        let part = &mut self.parts[index];
        part.absent.push(begin..part.sender().begun());
    }

    /// Waits until everything flows: each sniffer has one live stream and nothing else to send, and
    /// what is sent now has come to each viewer that stays.
    pub fn settle(&mut self) {
        let sent: Vec<u64> = self.parts.iter().map(|part| part.sender().sent()).collect();
        let mut missing_before = None;
        eventually_within(LONG, "everything flows", || {
            let mut missing = Vec::new();
            for stayer in &self.stayers {
                let seen = stayer.taker.seen();
                for (part, sent) in self.parts.iter().zip(&sent) {
                    let seen = &seen[part.name];
                    assert!(seen.faults.is_empty(), "{} of {}: {:?}", part.name, stayer.name, seen.faults);
                    if seen.greatest < Some(*sent) {
                        let (got, name) = (seen.greatest, stayer.name);
                        drop(missing);
                        std::thread::sleep(Duration::from_millis(50));
                        return Err(format!("{name}: {got:?} of {}, and {sent} were sent", part.name));
                    }
                    missing.push(sent - seen.count_below(*sent));
                }
            }
            std::thread::sleep(Duration::from_millis(200));
            let list = self.place.list();
            for part in &self.parts {
                let states = list.iter().filter(|stream| stream["name"] == part.name);
                let states: Vec<&str> = states.filter_map(|stream| stream["state"].as_str()).collect();
                let count = |state: &str| states.iter().filter(|found| **found == state).count();
                if (count("live"), count("backlog"), count("away")) != (1, 0, 0) {
                    return Err(format!("{}: {states:?}", part.name));
                }
                if let Some(spool) = &part.spool {
                    let (_, text) = journal("list", spool, &[]);
                    if !text.contains(", 0 B not acknowledged") {
                        return Err(text);
                    }
                }
            }
            // A viewer that catches up gets what it missed beside what is live.
            if missing_before.replace(missing.clone()).is_some_and(|before| before == missing) {
                return Ok(());
            }
            Err(format!("still catching up: {missing:?}"))
        });
        assert!(self.relay.as_mut().is_some_and(Process::is_running), "the relay has ended");
    }

    /// Without visitors, when everything flows: how much all take.
    pub fn look_at_quiet(&mut self) {
        let _nobody = self.place.visiting.lock();
        self.settle();
        self.gauges.look_at_quiet();
    }

    /// Stops the senders, and when all has come, ends everything in order. Returns how many frames were
    /// sent, by sniffer.
    pub fn finish(&mut self) -> BTreeMap<&'static str, u64> {
        self.settle();
        let senders = self.parts.iter_mut();
        let sent = senders.map(|part| (part.name, part.sender.take().expect("it sends").stop())).collect();
        for index in 0..self.parts.len() {
            let ended = self.end_sniffer(index, true);
            for left in ["not settled by the relay", "in the spool for the next run"] {
                assert!(!ended.stderr.contains(left), "{}", ended.stderr);
            }
        }
        sent
    }
}

/// Does something, and waits until the process says these words once more.
pub fn await_next(process: &mut Process, words: &str, act: impl FnOnce(&mut Process)) -> String {
    let before = process.said().lines().filter(|line| line.contains(words)).count();
    act(process);
    process.await_lines(words, before + 1, LONG)
}
