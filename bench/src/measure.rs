//! One measurement: a chain is started, the generator plays, the chain drains and is ended.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::chain::{Kind, Options, Part, Ready, capturing, is_sink, parts};
use crate::figures::{Counted, Generated};
use crate::frames::{Payload, Size};
use crate::testbed::{Program, Start, Testbed, await_that};

/// A chain that is ready is left alone for this long before packets come.
const SETTLE: Duration = Duration::from_millis(300);
/// After the last packet CPU is counted on for at least this long: tcpdump looks into a ring that
/// is not full once a second.
const DRAIN_MIN: Duration = Duration::from_millis(1300);
/// ... and at most this long.
const DRAIN_MAX: Duration = Duration::from_secs(20);
/// How often it is looked whether the chain still works.
const DRAIN_LOOK: Duration = Duration::from_millis(100);
/// A chain that takes less than this share of a core has drained: reports and timers go on.
const IDLE_SHARE: f64 = 0.02;

/// What is played.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// Sizes of frames made.
    pub size: Size,
    /// What is in them.
    pub payload: Payload,
    /// File that is played instead.
    pub pcap: Option<PathBuf>,
    /// Packets a second; `None`: flat out.
    pub rate: Option<f64>,
}

impl Traffic {
    /// Name in reports: `mix text`, `1514 B random`, `mix-ethernet.pcap`.
    pub fn name(&self) -> String {
        let played = match (&self.pcap, self.size) {
            (Some(path), _) => {
                path.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned())
            }
            (None, Size::Mix) => format!("mix {}", self.payload),
            (None, Size::One(bytes)) => format!("{bytes} B {}", self.payload),
        };
        match self.rate {
            None => format!("{played}, flat out"),
            Some(rate) => format!("{played}, {rate:.0} pps"),
        }
    }

    fn arguments(&self, seconds: f64) -> Vec<String> {
        let mut arguments = vec![format!("--seconds={seconds}")];
        match &self.pcap {
            Some(path) => arguments.push(format!("--pcap={}", path.display())),
            None => {
                arguments.extend([format!("--size={}", self.size), format!("--payload={}", self.payload)])
            }
        }
        arguments.extend(self.rate.map(|rate| format!("--rate={rate}")));
        arguments
    }
}

/// Where things run, and what with.
#[derive(Clone, Debug)]
pub struct Place {
    /// Directory of our programs.
    pub programs: PathBuf,
    /// Core of the generator.
    pub generator_core: usize,
    /// Cores of the chain, as taskset(1) takes them: `1`, or `0,1`.
    pub chain_cores: String,
    /// Longest frame, in bytes.
    pub longest: usize,
    /// How our programs are started.
    pub options: Options,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Measurement {
    /// Name of the chain.
    pub chain: String,
    /// Name of the traffic.
    pub traffic: String,
    /// Which pair or round it belongs to.
    pub round: usize,
    /// What was sent.
    pub generated: Generated,
    /// What the sink counted; absent where there is none.
    pub counted: Option<Counted>,
    /// Packets of the generator at the end of the chain, each once.
    pub delivered: u64,
    /// Packets of the generator that are missing there.
    pub lost: u64,
    /// Where, as far as the programs say.
    pub lost_at: BTreeMap<String, u64>,
    /// CPU of each program, in ns a packet delivered.
    pub cpu_ns: BTreeMap<String, f64>,
    /// CPU of the chain without the sink, in ns a packet delivered.
    pub chain_ns: f64,
    /// Share of a core that the chain and the sink took while packets came and drained.
    pub busy_share: f64,
    /// Peak of each program's resident memory, in KiB.
    pub peak_kib: BTreeMap<String, u64>,
    /// Bytes on the line over bytes of the file format; absent for all but ours.
    pub packed_share: Option<f64>,
    /// The last lines of the programs that capture and view.
    pub said: Vec<String>,
}

/// Measures a chain once.
pub fn measure(place: &Place, kind: Kind, traffic: &Traffic, seconds: f64) -> io::Result<Measurement> {
    let testbed = Testbed::new(place.longest)?;
    let mut running = start(&testbed, place, kind)?;
    std::thread::sleep(SETTLE);

    let before = usage(&running)?;
    let started = Instant::now();
    let mut generate = testbed.far(&place.programs.join("generate"));
    generate.args(["--interface=gen", "--bypass"]).arg(format!("--core={}", place.generator_core));
    let output = generate.args(traffic.arguments(seconds)).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("generate: {}", output.status)));
    }
    let generated: Generated = serde_json::from_slice(&output.stdout)?;
    let after = drain(&running)?;
    let elapsed = started.elapsed();

    let peak_kib = running.iter().map(|program| (program.name.clone(), program.peak_kib())).collect();
    let counted = end(&mut running, kind)?;
    let said = |name: &str| {
        let said = running.iter().find(|program| program.name == name).map(Program::said);
        said.unwrap_or_default()
    };
    let (captured_text, viewed_text) = (said(capturing(kind)), said("viewer"));
    let delivered = match &counted {
        Some(counted) => counted.distinct.min(generated.packets),
        None => captured(kind, &captured_text),
    };
    let each = |ns: u64| ns as f64 / delivered.max(1) as f64;
    let spent: BTreeMap<String, u64> =
        after.iter().map(|(name, ns)| (name.clone(), ns - before.get(name).copied().unwrap_or(0))).collect();
    let chain: u64 = spent.iter().filter(|(name, _)| !is_sink(name)).map(|(_, ns)| ns).sum();
    let stream_bytes = counted.as_ref().map_or(0, |counted| counted.stream_bytes);
    Ok(Measurement {
        chain: kind.name().to_owned(),
        traffic: traffic.name(),
        round: 0,
        delivered,
        lost: generated.packets.saturating_sub(delivered),
        lost_at: lost_at(kind, &captured_text, &viewed_text, &generated),
        cpu_ns: spent.iter().map(|(name, ns)| (name.clone(), each(*ns))).collect(),
        chain_ns: each(chain),
        busy_share: spent.values().sum::<u64>() as f64 / elapsed.as_nanos() as f64,
        peak_kib,
        packed_share: sent_bytes(&captured_text)
            .filter(|_| stream_bytes > 0)
            .map(|b| b / stream_bytes as f64),
        said: captured_text.lines().chain(viewed_text.lines()).rev().take(6).map(str::to_owned).collect(),
        generated,
        counted,
    })
}

/// Starts the programs one after the other, each when the one before is ready.
fn start(testbed: &Testbed, place: &Place, kind: Kind) -> io::Result<Vec<Program>> {
    let parts = parts(kind, &place.programs, &place.options);
    let mut running: Vec<Program> = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let input = match running.last_mut().filter(|_| part.is_piped).and_then(Program::take_stdout) {
            Some(stdout) => Stdio::from(stdout),
            None => Stdio::null(),
        };
        let is_read = part.name == "count" || parts.get(index + 1).is_some_and(|next| next.is_piped);
        let output = is_read.then(Stdio::piped);
        let what = Start { name: part.name, command: &part.command, cores: &place.chain_cores };
        let mut program = testbed.start(&what, input, output)?;
        await_ready(testbed, place, part, &mut program)?;
        running.push(program);
    }
    Ok(running)
}

fn await_ready(testbed: &Testbed, place: &Place, part: &Part, program: &mut Program) -> io::Result<()> {
    match part.ready {
        Ready::Now => Ok(()),
        Ready::Says(text) => program.await_said(text),
        Ready::Listens(port) => await_that(&format!("{} to listen", part.name), || program.listens_on(port)),
        Ready::Captures => await_that(&format!("{} to capture", part.name), || program.captures()),
        Ready::Watched => await_listed(testbed, place, "\"viewers\": 1"),
        Ready::Listed => await_listed(testbed, place, "\"viewers\": 0"),
    }
}

/// Waits until our relay lists a stream with `text` in what it says of it.
fn await_listed(testbed: &Testbed, place: &Place, text: &str) -> io::Result<()> {
    await_that(&format!("the relay to list a stream with {text}"), || {
        let mut list = testbed.near(&place.programs.join("viewer"));
        list.args(place.options.to_relay("viewer")).args(["--list", "--json"]);
        let listed = list.stderr(Stdio::null()).output()?;
        Ok(String::from_utf8_lossy(&listed.stdout).contains(text))
    })
}

fn usage(running: &[Program]) -> io::Result<BTreeMap<String, u64>> {
    running.iter().map(|program| Ok((program.name.clone(), program.cpu_ns()?))).collect()
}

/// Waits until the chain has nothing left to do, and says what it has used by then.
fn drain(running: &[Program]) -> io::Result<BTreeMap<String, u64>> {
    let started = Instant::now();
    let mut last = usage(running)?;
    loop {
        let looked = Instant::now();
        std::thread::sleep(DRAIN_LOOK);
        let now = usage(running)?;
        let used = now.values().sum::<u64>() - last.values().sum::<u64>();
        let is_idle = (used as f64) < looked.elapsed().as_nanos() as f64 * IDLE_SHARE;
        if started.elapsed() > DRAIN_MAX || (is_idle && started.elapsed() > DRAIN_MIN) {
            return Ok(now);
        }
        last = now;
    }
}

/// Ends the capture, then what follows from it, then the rest.
fn end(running: &mut [Program], kind: Kind) -> io::Result<Option<Counted>> {
    let mut counted = None;
    if let Some(capture) = running.iter_mut().find(|program| program.name == capturing(kind)) {
        capture.terminate()?;
        capture.await_end()?;
    }
    if let Some(count) = running.iter_mut().find(|program| program.name == "count") {
        count.await_end()?;
        let mut text = String::new();
        if let Some(mut stdout) = count.take_stdout() {
            stdout.read_to_string(&mut text)?;
        }
        let parsed = serde_json::from_str(&text);
        counted =
            Some(parsed.map_err(|error| io::Error::other(format!("count: {error}: {}", count.said())))?);
    }
    for program in running.iter_mut() {
        program.terminate()?;
        program.await_end()?;
    }
    Ok(counted)
}

/// Packets that a program which delivers nothing says it has captured.
fn captured(kind: Kind, said: &str) -> u64 {
    match kind {
        Kind::Dumpcap => number_after(said, "Packets captured: "),
        Kind::Alone | Kind::Bare | Kind::BareBlocks => number_before(said, "captured"),
        _ => number_before(said, "packets passed filter"),
    }
}

/// Where packets were lost, by what the programs say.
fn lost_at(kind: Kind, capture: &str, viewer: &str, generated: &Generated) -> BTreeMap<String, u64> {
    let mut lost = BTreeMap::new();
    let (offered, dropped) = match kind {
        Kind::Floor | Kind::Bare | Kind::BareBlocks => (
            number_before(capture, "packets passed the filter"),
            number_before(capture, "dropped by the kernel"),
        ),
        Kind::Ringcast | Kind::TwoWorkers | Kind::Alone => {
            let unsent = number_after(capture, "lost before sending: ");
            if kind == Kind::Alone && unsent > 0 {
                lost.insert("before sending".to_owned(), unsent);
            }
            for (stage, count) in missing_terms(viewer) {
                *lost.entry(stage).or_default() += count;
            }
            // The kernel's own count is the sniffer's; the viewer repeats it.
            lost.remove("kernel ring");
            let offered = number_before(capture, "packets passed the filter");
            (offered, number_before(capture, "dropped by the kernel"))
        }
        Kind::Tcpdump | Kind::TcpdumpLz4 => (
            number_before(capture, "packets received by filter"),
            number_before(capture, "packets dropped by kernel"),
        ),
        Kind::Dumpcap => (generated.packets, number_after(capture, "(pcap:")),
        Kind::NetsniffNg => {
            (number_before(capture, "packets incoming"), number_before(capture, "packets failed filter"))
        }
    };
    lost.insert("before the ring".to_owned(), generated.packets.saturating_sub(offered));
    lost.insert("kernel ring".to_owned(), dropped);
    lost.retain(|_, count| *count > 0);
    lost
}

/// The terms of the viewer's equation but what was written: `offered 9 = written 6 + missing 3 (viewer queue)`.
fn missing_terms(said: &str) -> Vec<(String, u64)> {
    let Some((_, equation)) = said.split_once("; offered ") else { return Vec::new() };
    let equation = equation.split([';', '\n']).next().unwrap_or_default();
    let Some((_, terms)) = equation.split_once(" = ") else { return Vec::new() };
    let mut found = Vec::new();
    for term in terms.split(" + ") {
        let (term, detail) = term.split_once(" (").unwrap_or((term, ""));
        let Some((name, count)) = term.rsplit_once(' ') else { continue };
        let name = if detail.is_empty() { name } else { detail.trim_end_matches(')') };
        if let Some(count) = count.parse().ok().filter(|_| name != "written") {
            found.push((name.to_owned(), count));
        }
    }
    found
}

/// Bytes that our sniffer says it has sent.
fn sent_bytes(said: &str) -> Option<f64> {
    let (_, rest) = said.split_once(" blocks, ")?;
    let mut words = rest.split([' ', ';', ',', '\n']);
    let number: f64 = words.next()?.parse().ok()?;
    let unit =
        ["B", "KiB", "MiB", "GiB", "TiB"].iter().position(|unit| Some(*unit) == words.clone().next())?;
    Some(number * 1024f64.powi(unit as i32))
}

fn number_before(text: &str, mark: &str) -> u64 {
    let before = text.split(mark).next().filter(|before| before.len() < text.len());
    before.and_then(|before| before.split_whitespace().last()).and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn number_after(text: &str, mark: &str) -> u64 {
    let after = text.split_once(mark).map_or("", |(_, after)| after);
    after.split(|one: char| !one.is_ascii_digit()).next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// The directory our own programs are in: that of this program.
pub fn own_directory() -> io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    Ok(program.parent().unwrap_or(Path::new(".")).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_programs_say_is_read() {
        let sniffer = "interface cap: 120 packets passed the filter, 20 dropped by the kernel, 100 captured (1.0 KiB)\n\
                       sent: 100 packets in 3 blocks, 1.5 KiB; lost before sending: 0 packets";
        let viewer = "bench:cap: received 90 packets (1 B), written 90; missing 10 viewer queue; \
                      offered 120 = written 90 + missing 10 (viewer queue) + kernel ring 20";
        let generated = Generated { packets: 125, ..Generated::default() };
        let lost = lost_at(Kind::Ringcast, sniffer, viewer, &generated);
        let expected = [("before the ring", 5), ("kernel ring", 20), ("viewer queue", 10)];
        assert_eq!(lost, expected.map(|(stage, count)| (stage.to_owned(), count)).into());
        assert_eq!(sent_bytes(sniffer), Some(1536.0));
        assert_eq!(number_after("Packets captured: 7\n", "Packets captured: "), 7);
        assert_eq!(number_before("nothing", "packets"), 0);
    }
}
