//! `replay`: load-tests whole chains on one machine, and reports. Run it by `bench/replay.sh`, which
//! builds and installs what it needs.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use bench::chain::{Kind, Options};
use bench::frames::{Frames, Payload, Size};
use bench::measure::{Measurement, Place, Traffic, measure, own_directory};
use bench::report::{Machine, Report, Searched};
use clap::Parser;

/// Steps of a search: the result is within a sixtieth of what the generator can offer.
const SEARCH_STEPS: u32 = 6;

/// Load-tests the whole chain: generator on one core, chain on another.
#[derive(Debug, Parser)]
struct Args {
    /// Packets a second: a number, `max` (flat out), or `search` (highest rate without loss)
    #[arg(long, value_delimiter = ',', default_value = "max")]
    rate: Vec<Rate>,
    /// `mix` (64, 594, 1514 bytes, 7:4:1), or a length in bytes
    #[arg(long, value_delimiter = ',', default_value = "mix")]
    size: Vec<Size>,
    /// What is in the frames
    #[arg(long, value_delimiter = ',', value_enum, default_value = "text")]
    payload: Vec<Payload>,
    /// Play this capture file as well, over and over
    #[arg(long)]
    pcap: Vec<PathBuf>,
    /// Play files alone, no frames of our own
    #[arg(long, requires = "pcap")]
    pcap_only: bool,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Rounds: in each, every chain once, turn about. 7 where there are several chains, else 1
    #[arg(long)]
    pairs: Option<usize>,
    /// Measure the others too
    #[arg(long)]
    peers: bool,
    /// Of the others only `tcpdump | socat`
    #[arg(long, conflicts_with = "peers")]
    against_a: bool,
    /// The sniffer alone, its relay not counted, beside a bare loop of ring, gather and LZ4, and dumpcap
    #[arg(long, conflicts_with_all = ["peers", "against_a", "two_workers"])]
    alone: bool,
    /// Also the least that does what our chain does: three blocking loops, nothing checked or kept
    #[arg(long, conflicts_with = "alone")]
    floor: bool,
    /// Also our chain with `--workers 2` of the relay
    #[arg(long)]
    two_workers: bool,
    /// TLS and tokens between our programs
    #[arg(long)]
    tls: bool,
    /// Write all figures to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// One second each, one round: does it work?
    #[arg(long)]
    quick: bool,
    /// Core of the generator
    #[arg(long, default_value_t = 0)]
    generator_core: usize,
    /// Cores of the chain: `1`, or `0,1`
    #[arg(long, default_value = "1")]
    chain_core: String,
    /// More arguments of our sniffer, in one word
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    sniffer_args: String,
    /// More arguments of our relay
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    relay_args: String,
    /// More arguments of our viewer
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    viewer_args: String,
    /// More arguments of the floor's relay: `--recent-mib 256`
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    floor_args: String,
    /// Directory of sniffer, relay, viewer, generate and count; that of this program by default
    #[arg(long)]
    programs: Option<PathBuf>,
}

/// A rate as it was typed.
#[derive(Clone, Copy, Debug)]
enum Rate {
    Max,
    Search,
    Pps(f64),
}

impl std::str::FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "max" => Ok(Rate::Max),
            "search" => Ok(Rate::Search),
            _ => match text.parse::<f64>() {
                Ok(rate) if rate >= 1.0 && rate.is_finite() => Ok(Rate::Pps(rate)),
                _ => Err(format!("{text}: packets a second, `max` or `search`")),
            },
        }
    }
}

fn main() -> ExitCode {
    bench::end("replay", run(&Args::parse()).map(|report| report.table()))
}

fn run(args: &Args) -> io::Result<Report> {
    let keys = std::env::temp_dir().join(format!("ringcast-bench-keys-{}", std::process::id()));
    let result = measure_all(args, &keys);
    if args.tls {
        let _ = fs::remove_dir_all(&keys);
    }
    result
}

fn measure_all(args: &Args, keys: &PathBuf) -> io::Result<Report> {
    let programs = match &args.programs {
        Some(programs) => programs.clone(),
        None => own_directory()?,
    };
    if args.tls {
        let mut init = Command::new(programs.join("relay"));
        let output = init.arg("init").arg(keys).args(["--host", "127.0.0.1"]).output()?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(io::Error::other(format!("relay init: {}", text.trim())));
        }
    }
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
    let options = Options {
        filter: String::new(),
        keys: args.tls.then(|| keys.display().to_string()),
        sniffer: words(&args.sniffer_args),
        relay: words(&args.relay_args),
        viewer: words(&args.viewer_args),
        floor: words(&args.floor_args),
    };
    let mut kinds = match (args.peers, args.against_a, args.alone) {
        (true, _, _) => Kind::PEERS.to_vec(),
        (_, true, _) => vec![Kind::Ringcast, Kind::Tcpdump],
        (_, _, true) => Kind::ALONE.to_vec(),
        _ => vec![Kind::Ringcast],
    };
    if args.floor {
        kinds.insert(1, Kind::Floor);
    }
    if args.two_workers {
        kinds.insert(1, Kind::TwoWorkers);
    }
    let rounds = match (args.pairs, args.quick) {
        (Some(pairs), _) => pairs.max(1),
        (None, true) => 1,
        (None, false) => {
            if kinds.len() > 1 {
                7
            } else {
                1
            }
        }
    };
    let mut report = Report {
        machine: Machine::here(),
        command: std::env::args()
            .skip(1)
            .fold("bench/replay.sh".to_owned(), |all, one| format!("{all} {one}")),
        seconds: if args.quick { 1.0 } else { args.seconds },
        ..Report::default()
    };
    for (traffic, longest) in traffics(args)? {
        // A file has more than UDP in it; then nobody filters.
        let filter = if traffic.pcap.is_some() { String::new() } else { "udp".to_owned() };
        let place = Place {
            programs: programs.clone(),
            generator_core: args.generator_core,
            chain_cores: args.chain_core.clone(),
            longest,
            options: Options { filter, ..options.clone() },
        };
        for rate in &args.rate {
            let rate = match rate {
                Rate::Max => None,
                Rate::Pps(rate) => Some(*rate),
                Rate::Search => {
                    for kind in &kinds {
                        let found = search(&place, *kind, &traffic, report.seconds)?;
                        report.searched.push(found);
                    }
                    continue;
                }
            };
            let traffic = Traffic { rate, ..traffic.clone() };
            for round in 0..rounds {
                let mut order = kinds.clone();
                if round % 2 == 1 {
                    order.reverse();
                }
                for kind in order {
                    let measured = measure(&place, kind, &traffic, report.seconds)?;
                    tell(&measured, round, rounds);
                    report.measurements.push(Measurement { round, ..measured });
                }
            }
            report.sum_up();
            if let Some(path) = &args.json {
                fs::write(path, serde_json::to_vec_pretty(&report)?)?;
            }
        }
    }
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(report)
}

/// What is to be played, and the longest frame of it.
fn traffics(args: &Args) -> io::Result<Vec<(Traffic, usize)>> {
    let mut traffics = Vec::new();
    if !args.pcap_only {
        for &size in &args.size {
            for &payload in &args.payload {
                let longest = if let Size::One(bytes) = size { bytes } else { 1514 };
                traffics.push((Traffic { size, payload, pcap: None, rate: None }, longest));
            }
        }
    }
    for path in &args.pcap {
        let frames = Frames::read(path).map_err(|error| io::Error::other(error.to_string()))?;
        let path = fs::canonicalize(path)?;
        let traffic = Traffic { size: Size::Mix, payload: Payload::Text, pcap: Some(path), rate: None };
        traffics.push((traffic, frames.longest()));
    }
    Ok(traffics)
}

/// Finds the highest rate without loss, by halving.
fn search(place: &Place, kind: Kind, traffic: &Traffic, seconds: f64) -> io::Result<Searched> {
    let mut found =
        Searched { traffic: traffic.name(), chain: kind.name().to_owned(), ..Searched::default() };
    let flat_out = measure(place, kind, traffic, seconds)?;
    tell(&flat_out, 0, 1);
    let offered_pps = flat_out.generated.offered_pps;
    if flat_out.lost == 0 {
        return Ok(Searched { lossless_pps: offered_pps, is_flat_out: true, ..found });
    }
    let mut above = offered_pps;
    for _ in 0..SEARCH_STEPS {
        let rate = (found.lossless_pps + above) / 2.0;
        let measured = measure(place, kind, &Traffic { rate: Some(rate), ..traffic.clone() }, seconds)?;
        tell(&measured, 0, 1);
        if measured.lost == 0 {
            found.lossless_pps = measured.generated.offered_pps;
        } else {
            above = rate;
        }
    }
    Ok(found)
}

/// Says how it goes.
fn tell(measured: &Measurement, round: usize, rounds: usize) {
    eprintln!(
        "[{}/{rounds}] {}: {}: {:.0} kpps, lost {} of {}, {:.0} ns a packet",
        round + 1,
        measured.traffic,
        measured.chain,
        measured.generated.offered_pps / 1000.0,
        measured.lost,
        measured.generated.packets,
        measured.chain_ns
    );
}
