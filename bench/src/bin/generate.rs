//! `generate`: plays numbered packets out of an interface, from memory, and says as JSON how many.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bench::figures::Generated;
use bench::frames::{Frames, Payload, Size};
use bench::pace::Pace;
use bench::sender::{BATCH, Sender};
use clap::Parser;

/// Plays numbered packets out of an interface.
#[derive(Debug, Parser)]
struct Args {
    /// Interface to send out of
    #[arg(short, long)]
    interface: String,
    /// Packets a second; flat out without
    #[arg(long)]
    rate: Option<f64>,
    /// How long, in seconds
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Stop after so many packets
    #[arg(long)]
    count: Option<u64>,
    /// `mix` (64, 594 and 1514 bytes, 7:4:1), or a length in bytes
    #[arg(long, default_value = "mix")]
    size: Size,
    /// What is in them
    #[arg(long, value_enum, default_value_t = Payload::Text)]
    payload: Payload,
    /// Play the Ethernet frames of this file instead, over and over
    #[arg(long)]
    pcap: Option<PathBuf>,
    /// Run on this core alone
    #[arg(long)]
    core: Option<usize>,
    /// Send past the queueing discipline
    #[arg(long)]
    bypass: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(generated) => {
            let text = serde_json::to_string(&generated).unwrap_or_default();
            if writeln!(io::stdout(), "{text}").is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(text) => {
            eprintln!("generate: {text}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<Generated, String> {
    if args.rate.is_some_and(|rate| rate.is_nan() || rate <= 0.0) {
        return Err("--rate: more than 0 packets a second".to_owned());
    }
    if let Some(core) = args.core
        && !core_affinity::set_for_current(core_affinity::CoreId { id: core })
    {
        return Err(format!("--core {core}: cannot run there"));
    }
    let mut frames = match &args.pcap {
        Some(path) => Frames::read(path).map_err(|error| error.to_string())?,
        None => Frames::make(args.size, args.payload),
    };
    let sender = Sender::open(&args.interface, args.bypass)
        .map_err(|error| format!("interface {}: {error}", args.interface))?;
    play(args, &mut frames, &sender).map_err(|error| format!("interface {}: {error}", args.interface))
}

/// Sends until the time or the count is over.
fn play(args: &Args, frames: &mut Frames, sender: &Sender) -> io::Result<Generated> {
    let (until, most) = (Duration::from_secs_f64(args.seconds), args.count.unwrap_or(u64::MAX));
    let mut generated = Generated { left_out: frames.left_out, ..Generated::default() };
    let (mut at, mut elapsed) = (0, Duration::ZERO);
    let pace = Pace::new(args.rate);
    while elapsed < until && generated.packets < most {
        let left = (most - generated.packets).min(BATCH as u64) as usize;
        let count = pace.wait(generated.packets, left).min(frames.count() - at);
        for index in 0..count {
            frames.number(at + index, generated.packets + index as u64);
        }
        let sent = match sender.send(frames, at, count) {
            Ok(sent) => sent,
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => 0,
            Err(error) => return Err(error),
        };
        generated.refused += u64::from(sent < count);
        generated.packets += sent as u64;
        generated.bytes += (at..at + sent).map(|index| frames.frame(index).len() as u64).sum::<u64>();
        at = (at + sent) % frames.count();
        elapsed = pace.elapsed();
    }
    generated.seconds = elapsed.as_secs_f64();
    generated.offered_pps = generated.packets as f64 / generated.seconds.max(1e-9);
    Ok(generated)
}
