//! `relay_load`: what the relay forwards, beside HAProxy, and what idle connections cost it. Run it by
//! `bench/relay.sh`, which builds and installs what it needs.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bench::forward::idle;
use bench::forward::load::{self, Plan};
use bench::forward::middle::{Middle, Place};
use bench::forward::report::Report;
use bench::frames::{Frames, Payload, Size};
use bench::measure::own_directory;
use bench::report::Machine;
use clap::{Parser, ValueEnum};

/// Before a measurement: the relay's recent blocks take their 256 MiB, TCP finds its window.
const WARM_UP: Duration = Duration::from_secs(1);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// One to one, beside HAProxy
    Haproxy,
    /// The relay alone, one to several
    Viewers,
    /// Idle connections
    Idle,
}

/// Measures the relay alone: load on one core, relay or HAProxy on the other, loopback between them.
#[derive(Debug, Parser)]
struct Args {
    /// What is measured
    #[arg(long, value_enum, value_delimiter = ',', default_value = "haproxy,viewers,idle")]
    what: Vec<What>,
    /// Rounds: in each, everything once, turn about
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Seconds of each measurement, after one second that does not count
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// What is in the frames that are packed: random for blocks of about 220 kB, text for 18 kB
    #[arg(long, value_enum, value_delimiter = ',', default_value = "random,text")]
    payload: Vec<Payload>,
    /// Viewers of one sniffer
    #[arg(long, value_delimiter = ',', default_value = "1,10,100")]
    viewers: Vec<usize>,
    /// Idle sniffers, and as many viewers
    #[arg(long, default_value_t = 1000)]
    idle: usize,
    /// Seconds that they idle before memory is read
    #[arg(long, default_value_t = 15.0)]
    idle_seconds: f64,
    /// What each idle viewer watches
    #[arg(long, value_enum, value_delimiter = ',', default_value = "one,all")]
    watch: Vec<idle::Watch>,
    /// Most MiB that the source has sent and that are not settled
    #[arg(long, default_value_t = 16)]
    window_mib: usize,
    /// Core of source and sinks
    #[arg(long, default_value_t = 0)]
    load_core: usize,
    /// Core of what is in the middle
    #[arg(long, default_value_t = 1)]
    middle_core: usize,
    /// More arguments of the relay, in one word
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    relay_args: String,
    /// Write all figures to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// One second each, one round, few connections: does it work?
    #[arg(long)]
    quick: bool,
    /// Directory of the relay; that of this program by default
    #[arg(long)]
    programs: Option<PathBuf>,
}

fn main() -> ExitCode {
    bench::end("relay_load", run(&Args::parse()).map(|report| report.table()))
}

fn run(args: &Args) -> io::Result<Report> {
    let machine = Machine { wire: "loopback".to_owned(), ..Machine::here() };
    if !core_affinity::set_for_current(core_affinity::CoreId { id: args.load_core }) {
        return Err(io::Error::other(format!("core {}: cannot be pinned to", args.load_core)));
    }
    let programs = args.programs.clone().map_or_else(own_directory, Ok)?;
    let logs = std::env::temp_dir().join(format!("ringcast-relay-load-{}", std::process::id()));
    fs::create_dir_all(&logs)?;
    let relay = args.relay_args.split_whitespace().map(str::to_owned).collect();
    let place = Place { programs, logs: logs.clone(), core: args.middle_core, relay };
    let measured = measure_all(args, &place, machine);
    let _ = fs::remove_dir_all(&logs);
    measured
}

fn measure_all(args: &Args, place: &Place, machine: Machine) -> io::Result<Report> {
    let command = std::env::args().skip(1).fold("bench/relay.sh".to_owned(), |all, one| all + " " + &one);
    let mut report = Report { machine, command, ..Report::default() };
    let rounds = if args.quick { 1 } else { args.rounds };
    for round in 0..rounds {
        for payload in &args.payload {
            forward(args, place, *payload, round, &mut report)?;
        }
        if args.what.contains(&What::Idle) {
            for watch in &args.watch {
                let (count, seconds) = if args.quick { (20, 1.0) } else { (args.idle, args.idle_seconds) };
                let mut measured = idle::measure(place, count, *watch, Duration::from_secs_f64(seconds))?;
                measured.round = round;
                eprintln!("[{}/{rounds}] idle: {:.1} KiB a connection", round + 1, measured.kib_each());
                report.idle.push(measured);
            }
        }
        if let Some(path) = &args.json {
            fs::write(path, serde_json::to_string_pretty(&report)?)?;
        }
    }
    Ok(report)
}

/// One round of forwarding; every second in reverse order.
fn forward(
    args: &Args,
    place: &Place,
    payload: Payload,
    round: usize,
    report: &mut Report,
) -> io::Result<()> {
    let mut runs: Vec<(Middle, usize)> = Vec::new();
    if args.what.contains(&What::Haproxy) {
        runs.extend(Middle::ALL.map(|middle| (middle, 1)));
    }
    if args.what.contains(&What::Viewers) {
        runs.extend(args.viewers.iter().map(|count| (Middle::Relay, *count)));
    }
    let mut seen = Vec::new();
    runs.retain(|run| {
        !seen.contains(run) && {
            seen.push(*run);
            true
        }
    });
    if round % 2 == 1 {
        runs.reverse();
    }
    let frames = Frames::make(Size::Mix, payload);
    let seconds = if args.quick { 1.0 } else { args.seconds };
    for (middle, viewers) in runs {
        let plan = Plan {
            place,
            middle,
            viewers,
            frames: &frames,
            window_bytes: args.window_mib << 20,
            warm_up: WARM_UP,
            time: Duration::from_secs_f64(seconds),
        };
        let mut measured = load::measure(&plan)?;
        (measured.traffic, measured.round) = (format!("mix {payload}"), round);
        eprintln!(
            "[{}] mix {payload}: {}, {viewers} sink(s): {:.2} GB/s, {:.2} GB for a second of CPU",
            round + 1,
            middle.name(),
            measured.rate() / 1e9,
            measured.bytes_per_cpu() / 1e9
        );
        report.forwarded.push(measured);
    }
    Ok(())
}
