//! `view`: what a viewer takes to decompress into a pipe, beside `lz4 -d` that writes the same bytes to the same kind of
//! pipe, turn about.
//!
//! The other core plays prepared blocks to the viewer and reads the pipe, 1 MiB at a time; lz4 reads a file in memory.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use bench::blocks::Blocks;
use bench::figures::Spread;
use bench::frames::{Payload, Size};
use bench::measure::own_directory;
use bench::player::Player;
use bench::report::Machine;
use clap::Parser;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::Serialize;
use wire::pack::Compression;

/// Where files in memory go.
const MEMORY: &str = "/dev/shm";
/// Bytes read from the pipe at once.
const READ_BYTES: usize = 1 << 20;

/// Measures a viewer's decompression, beside lz4.
#[derive(Debug, Parser)]
struct Args {
    /// MiB of pcapng in each measurement
    #[arg(long, default_value_t = 2048)]
    mib: u64,
    /// Rounds: viewer and lz4 once in each, turn about
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// `mix`, or a length in bytes
    #[arg(long, default_value = "mix")]
    size: Size,
    /// What is in the packets
    #[arg(long, value_enum, default_value_t = Payload::Log)]
    payload: Payload,
    /// The Ethernet packets of this file instead, over and over
    #[arg(long)]
    pcap: Option<PathBuf>,
    /// Bytes of the pipe; the viewer widens a smaller one to 256 KiB, lz4 does not
    #[arg(long, default_value_t = 256 << 10)]
    pipe: i32,
    /// Core of the viewer and of lz4; all else runs on --other-core
    #[arg(long, default_value_t = 1)]
    core: usize,
    /// Core of the player and of the reader of the pipe
    #[arg(long, default_value_t = 0)]
    other_core: usize,
    /// Write all figures to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One measurement.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Taken {
    bytes: u64,
    /// From the first byte in the pipe to the last.
    seconds: f64,
    /// User and system, from start to end.
    cpu_seconds: f64,
}

impl Taken {
    fn mb_per_second(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.seconds
    }

    fn mb_per_cpu_second(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.cpu_seconds
    }
}

#[derive(Debug, Default, Serialize)]
struct Report {
    machine: Machine,
    command: String,
    traffic: String,
    packed_share: f64,
    pipe_bytes: i32,
    viewer: Vec<Taken>,
    lz4: Vec<Taken>,
    /// Bytes a second of CPU, the viewer's over lz4's.
    by_cpu: Spread,
    /// Bytes a second, the viewer's over lz4's.
    by_wall: Spread,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let scratch = Path::new(MEMORY).join(format!("ringcast-bench-{}", std::process::id()));
    let result = fs::create_dir(&scratch).and_then(|()| run(&args, &scratch));
    let _ = fs::remove_dir_all(&scratch);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("view: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args, scratch: &Path) -> io::Result<()> {
    let machine = Machine::here();
    if !core_affinity::set_for_current(core_affinity::CoreId { id: args.other_core }) {
        return Err(io::Error::other(format!("--other-core {}: cannot run there", args.other_core)));
    }
    let raw_bytes = args.mib << 20;
    let (blocks, traffic) = match &args.pcap {
        Some(path) => {
            let blocks = Blocks::read(path, Compression::Lz4, raw_bytes);
            let name = path.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
            (blocks.map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?, name)
        }
        None => {
            let blocks = Blocks::made(args.size, args.payload, Compression::Lz4, raw_bytes);
            (blocks.map_err(io::Error::other)?, format!("{} {}", args.size, args.payload))
        }
    };
    let mut player = Player::listen()?;
    let viewer = viewer(&player.url(), blocks.packet_count)?;
    let blocks: &'static Blocks = Box::leak(Box::new(blocks));
    std::thread::spawn(move || {
        if let Err(error) = player.play(blocks) {
            eprintln!("view: player: {error}");
        }
    });

    let (plain, packed) = (scratch.join("plain.pcapng"), scratch.join("packed.lz4"));
    take(&viewer, args, Some(&mut File::create(&plain)?))?;
    let status = Command::new("lz4").args(["-1", "-q", "-f"]).arg(&plain).arg(&packed).status()?;
    if !status.success() {
        return Err(io::Error::other(format!("lz4: {status}")));
    }
    let plain_bytes = fs::metadata(&plain)?.len();
    fs::remove_file(&plain)?;
    let lz4: Vec<String> = ["lz4", "-d", "-q", "-c"].map(str::to_owned).into();
    let lz4 = [lz4, vec![packed.display().to_string()]].concat();

    let mut report = Report {
        machine: Machine { wire: "loopback to the viewer, a pipe from it".to_owned(), ..machine },
        command: std::env::args().skip(1).fold("view".to_owned(), |all, one| format!("{all} {one}")),
        traffic,
        packed_share: blocks.packed_bytes as f64 / blocks.raw_bytes as f64,
        ..Report::default()
    };
    for round in 0..args.rounds {
        for is_viewer in if round % 2 == 0 { [true, false] } else { [false, true] } {
            let (taken, pipe_bytes) = take(if is_viewer { &viewer } else { &lz4 }, args, None)?;
            // Statistics at the end of a file differ in what they count up, not in length.
            if taken.bytes.abs_diff(plain_bytes) > 4096 {
                let what = if is_viewer { "viewer" } else { "lz4" };
                return Err(io::Error::other(format!("{what}: {} bytes, not {plain_bytes}", taken.bytes)));
            }
            report.pipe_bytes = pipe_bytes;
            if is_viewer { &mut report.viewer } else { &mut report.lz4 }.push(taken);
        }
    }
    let ratios = |of: fn(&Taken) -> f64| {
        Spread::of(report.viewer.iter().zip(&report.lz4).map(|(viewer, lz4)| of(viewer) / of(lz4)))
    };
    (report.by_cpu, report.by_wall) = (ratios(Taken::mb_per_cpu_second), ratios(Taken::mb_per_second));
    print(&report);
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(())
}

/// The command of the viewer, which leaves with the last packet.
fn viewer(url: &str, packets: u64) -> io::Result<Vec<String>> {
    let viewer = own_directory()?.join("viewer").display().to_string();
    let packets = packets.to_string();
    let command = [&viewer, "--relay", url, "-q", "-c", &packets];
    Ok(command.map(str::to_owned).into())
}

/// Runs a command to the end of what it writes to a pipe. Returns the size of that as well.
fn take(command: &[String], args: &Args, mut copy: Option<&mut File>) -> io::Result<(Taken, i32)> {
    let (output, input) = io::pipe()?;
    let (mut output, input) = (File::from(OwnedFd::from(output)), OwnedFd::from(input));
    fcntl(&output, FcntlArg::F_SETPIPE_SZ(args.pipe))?;
    let pipe_bytes = fcntl(&output, FcntlArg::F_GETPIPE_SZ)?;
    let cpu_before = children_cpu()?;
    let mut pinned = Command::new("taskset");
    pinned.args(["-c", &args.core.to_string()]).args(command).stdin(Stdio::null()).stdout(input);
    let mut child = pinned.spawn()?;
    // It has our end of the pipe, without which there is no end of reading.
    drop(pinned);
    let mut buffer = vec![0; READ_BYTES];
    let (mut taken, mut started) = (Taken::default(), None);
    loop {
        let count = output.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        started.get_or_insert_with(Instant::now);
        taken.bytes += count as u64;
        if let Some(copy) = &mut copy {
            copy.write_all(&buffer[..count])?;
        }
    }
    taken.seconds = started.map_or(0.0, |at| at.elapsed().as_secs_f64());
    let status = child.wait()?;
    taken.cpu_seconds = (children_cpu()? - cpu_before) as f64 / 1e9;
    if !status.success() {
        return Err(io::Error::other(format!("{}: {status}", command[0])));
    }
    Ok((taken, pipe_bytes))
}

fn children_cpu() -> io::Result<i64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    Ok((usage.user_time() + usage.system_time()).num_nanoseconds())
}

fn print(report: &Report) {
    let machine = &report.machine;
    println!("{}, load {:.2}; {}", machine.text(), machine.load_before, machine.wire);
    println!("command: {}", report.command);
    println!(
        "{}, packed to {:.2}; pipe of {} KiB",
        report.traffic,
        report.packed_share,
        report.pipe_bytes / 1024
    );
    for (name, taken) in [("viewer", &report.viewer), ("lz4 -d", &report.lz4)] {
        let text = |of: fn(&Taken) -> f64| {
            let Spread { median, min, max } = Spread::of(taken.iter().map(of));
            format!("{median:.0} ({min:.0}-{max:.0})")
        };
        let (wall, cpu) = (text(Taken::mb_per_second), text(Taken::mb_per_cpu_second));
        println!("  {name:<8} {wall} MB/s, {cpu} MB a CPU second");
    }
    for (name, Spread { median, min, max }) in [("CPU", report.by_cpu), ("wall", report.by_wall)] {
        println!("  viewer over lz4 by {name}: {median:.2} ({min:.2}-{max:.2})");
    }
}
