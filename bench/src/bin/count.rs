//! `count`: the sink of every chain. Reads pcap or pcapng on standard input, and says as JSON which
//! of the generator's packets came, and how long after their capture.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use bench::figures::{Counted, Latency};
use bench::frames::number_of;
use bench::numbers::Numbers;
use bench::stream::{CaptureStream, StreamError};
use clap::Parser;
use hdrhistogram::Histogram;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// Runs of missing numbers that are told.
const GAPS_TOLD: usize = 16;
/// Latencies above this are told as this: an hour, in µs.
const LATENCY_MAX_US: u64 = 3_600_000_000;

/// Counts the generator's packets on standard input.
#[derive(Debug, Parser)]
struct Args {}

fn main() -> ExitCode {
    let Args {} = Args::parse();
    match count() {
        Ok((counted, error)) => {
            let text = serde_json::to_string(&counted).unwrap_or_default();
            let is_told = writeln!(io::stdout(), "{text}").is_ok();
            match error {
                None if is_told => ExitCode::SUCCESS,
                error => {
                    eprintln!("count: {}", error.map_or("standard output".to_owned(), |e| e.to_string()));
                    ExitCode::FAILURE
                }
            }
        }
        Err(error) => {
            eprintln!("count: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Reads to the end. What came before an error is told with it.
fn count() -> io::Result<(Counted, Option<StreamError>)> {
    // Not through `Stdin`, which copies through a buffer of its own.
    let mut input = std::fs::File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut latency = Histogram::<u64>::new_with_bounds(1, LATENCY_MAX_US, 2).map_err(io::Error::other)?;
    let (mut stream, mut numbers, mut counted) =
        (CaptureStream::default(), Numbers::default(), Counted::default());
    let error = loop {
        let now_ns = std::cell::Cell::new(0);
        let (mut packets, mut captured_bytes, mut foreign) = (0u64, 0u64, 0u64);
        let begin = |bytes: usize| {
            counted.stream_bytes += bytes as u64;
            now_ns.set(clock_ns());
        };
        let result = stream.read(&mut input, begin, |time_ns, frame| {
            packets += 1;
            captured_bytes += frame.len() as u64;
            match number_of(frame) {
                Some(number) if numbers.take(number) => {
                    latency.saturating_record(now_ns.get().saturating_sub(time_ns) / 1000);
                }
                _ => foreign += 1,
            }
        });
        counted.packets += packets;
        counted.captured_bytes += captured_bytes;
        counted.foreign += foreign;
        counted.reads += 1;
        match result {
            Ok(true) => {}
            Ok(false) => break None,
            Err(error) => break Some(error),
        }
    };
    (counted.distinct, counted.twice, counted.end) = (numbers.distinct(), numbers.twice(), numbers.end());
    counted.latency = Latency::of(&latency);
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    counted.cpu_ns = (usage.user_time() + usage.system_time()).num_nanoseconds() as u64;
    counted.gaps = numbers.gaps(GAPS_TOLD);
    Ok((counted, error))
}

fn clock_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}
