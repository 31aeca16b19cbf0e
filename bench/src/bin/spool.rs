//! `spool`: how fast the spool takes packed blocks, beside what `dd oflag=direct bs=1M` writes to the same directory, turn
//! about. As the sniffer's spool thread does it, and until all is durable.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use bench::blocks::Blocks;
use bench::figures::Spread;
use bench::frames::{Payload, Size};
use bench::report::Machine;
use clap::Parser;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::Serialize;
use wire::journal::{Config, Journal, RealFs};
use wire::pack::Compression;

/// What is left over after a run, deleted.
const SPOOL: &str = "ringcast-bench-spool";
const DD: &str = "ringcast-bench-dd";

/// Measures what a spool writes, beside dd.
#[derive(Debug, Parser)]
struct Args {
    /// Directory on the disk to be measured
    #[arg(long)]
    directory: PathBuf,
    /// MiB of each measurement
    #[arg(long, default_value_t = 2048)]
    mib: u64,
    /// Rounds: dd and the spool once in each, turn about
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// `mix`, or a length in bytes
    #[arg(long, default_value = "1514")]
    size: Size,
    /// What is in the packets
    #[arg(long, value_enum, default_value_t = Payload::Random)]
    payload: Payload,
    /// Write all figures to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One measurement, in MB (10^6) a second, and CPU in ns a KiB.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Written {
    mb_per_second: f64,
    cpu_ns_per_kib: f64,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    machine: Machine,
    command: String,
    file_system: String,
    block_bytes: u64,
    dd: Vec<Written>,
    spool: Vec<Written>,
    spool_over_dd: Spread,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spool: {}: {error}", args.directory.display());
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> io::Result<()> {
    let (machine, compression) = (Machine::here(), Compression::None);
    let blocks =
        Blocks::made(args.size, args.payload, compression, args.mib << 20).map_err(io::Error::other)?;
    let mut report = Report {
        machine: Machine { wire: "none: blocks from memory to disk".to_owned(), ..machine },
        command: std::env::args().skip(1).fold("spool".to_owned(), |all, one| format!("{all} {one}")),
        file_system: file_system(&args.directory)?,
        block_bytes: blocks.packed_bytes / blocks.packets.len() as u64,
        ..Report::default()
    };
    for round in 0..args.rounds {
        let dd_first = round % 2 == 0;
        if dd_first {
            report.dd.push(dd(&args.directory, args.mib)?);
        }
        report.spool.push(spool(&args.directory, &blocks)?);
        if !dd_first {
            report.dd.push(dd(&args.directory, args.mib)?);
        }
        let (dd, spool) = (report.dd[round].mb_per_second, report.spool[round].mb_per_second);
        eprintln!("[{}/{}] dd {dd:.0} MB/s, spool {spool:.0} MB/s", round + 1, args.rounds);
    }
    let pairs = report.spool.iter().zip(&report.dd);
    report.spool_over_dd = Spread::of(pairs.map(|(spool, dd)| spool.mb_per_second / dd.mb_per_second));
    print(&report);
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(())
}

fn print(report: &Report) {
    println!("{}, load {:.2}; {}", report.machine.text(), report.machine.load_before, report.file_system);
    println!("command: {}; blocks of {} bytes", report.command, report.block_bytes);
    for (name, written) in [("dd oflag=direct bs=1M", &report.dd), ("spool", &report.spool)] {
        let speed = Spread::of(written.iter().map(|one| one.mb_per_second));
        let cpu = Spread::of(written.iter().map(|one| one.cpu_ns_per_kib)).median;
        let Spread { median, min, max } = speed;
        println!("  {name:<22} {median:>6.0} ({min:.0}-{max:.0}) MB/s, CPU {cpu:.0} ns/KiB");
    }
    let Spread { median, min, max } = report.spool_over_dd;
    println!("  spool over dd {median:.2} ({min:.2}-{max:.2})");
}

/// Appends every block, and waits until all is durable.
fn spool(directory: &Path, blocks: &Blocks) -> io::Result<Written> {
    let directory = directory.join(SPOOL);
    let config = Config {
        directory: directory.clone(),
        cap_bytes: blocks.packed_bytes * 2 + (1 << 30),
        segment_bytes: None,
    };
    let cpu_before = cpu_ns(UsageWho::RUSAGE_SELF)?;
    let started = Instant::now();
    let (mut journal, _) = Journal::open(&config, RealFs, started).map_err(io::Error::other)?;
    journal.append(&blocks.description, Instant::now()).map_err(io::Error::other)?;
    for block in &blocks.packets {
        journal.append(block, Instant::now()).map_err(io::Error::other)?;
        journal.handle_timeout(Instant::now());
    }
    journal.close().map_err(io::Error::other)?;
    let seconds = started.elapsed().as_secs_f64();
    let cpu = cpu_ns(UsageWho::RUSAGE_SELF)? - cpu_before;
    fs::remove_dir_all(&directory)?;
    Ok(written(blocks.packed_bytes, seconds, cpu))
}

/// The same with dd, which says nothing of itself but its output file.
fn dd(directory: &Path, mib: u64) -> io::Result<Written> {
    let path = directory.join(DD);
    let cpu_before = cpu_ns(UsageWho::RUSAGE_CHILDREN)?;
    let started = Instant::now();
    let mut command = Command::new("dd");
    command.args(["if=/dev/zero", "bs=1M", "oflag=direct", "status=none"]);
    let status = command.arg(format!("of={}", path.display())).arg(format!("count={mib}")).status()?;
    let seconds = started.elapsed().as_secs_f64();
    if !status.success() {
        return Err(io::Error::other(format!("dd: {status}")));
    }
    let cpu = cpu_ns(UsageWho::RUSAGE_CHILDREN)? - cpu_before;
    fs::remove_file(&path)?;
    Ok(written(mib << 20, seconds, cpu))
}

fn written(bytes: u64, seconds: f64, cpu_ns: u64) -> Written {
    Written {
        mb_per_second: bytes as f64 / 1e6 / seconds,
        cpu_ns_per_kib: cpu_ns as f64 * 1024.0 / bytes as f64,
    }
}

fn cpu_ns(of: UsageWho) -> io::Result<u64> {
    let usage = getrusage(of)?;
    Ok((usage.user_time() + usage.system_time()).num_nanoseconds() as u64)
}

/// What the directory is on, as df(1) says it.
fn file_system(directory: &Path) -> io::Result<String> {
    let output = Command::new("df").args(["--output=source,fstype"]).arg(directory).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().nth(1) {
        Some(line) => Ok(line.split_whitespace().collect::<Vec<_>>().join(", ")),
        None => Err(io::Error::other("no such directory")),
    }
}
