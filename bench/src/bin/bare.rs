//! `bare`: the floor under a sniffer. It walks a ring, gathers the packets into a flat buffer and compresses that with
//! LZ4, a block of the ring at a time. Nothing is sent, kept or recovered. On SIGTERM it tells how many packets it saw.

use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;

use bench::ring::{BLOCK_BYTES, Ring};
use clap::Parser;
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;

/// The least a sniffer has to do: ring, gather, LZ4.
#[derive(Debug, Parser)]
struct Args {
    /// Interface to capture on
    #[arg(short, long)]
    interface: String,
    /// Gather each packet as an Enhanced Packet Block of pcapng, not its bytes alone
    #[arg(long)]
    blocks: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(text) => {
            eprintln!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bare: interface {}: {error}", args.interface);
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> io::Result<String> {
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGTERM);
    ends.add(Signal::SIGINT);
    ends.thread_block()?;
    let ended = SignalFd::new(&ends)?;
    let mut ring = Ring::open(&args.interface)?;
    let (mut captured, mut gathered_bytes, mut packed_bytes) = (0u64, 0u64, 0u64);
    // A gathered packet takes less than it took in the ring, whose header alone has 68 bytes.
    let mut gathered = Vec::with_capacity(BLOCK_BYTES);
    let mut packed = vec![0; get_maximum_output_size(BLOCK_BYTES)];
    let mut table = CompressTable::large();
    loop {
        gathered.clear();
        let walked = if args.blocks {
            ring.walk(|frame| frame.append_block(&mut gathered))
        } else {
            ring.walk(|frame| gathered.extend_from_slice(frame.data))
        };
        let Some(walked) = walked else {
            let mut waited =
                [PollFd::new(ring.as_fd(), PollFlags::POLLIN), PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
            poll(&mut waited, PollTimeout::NONE)?;
            if waited[1].any() == Some(true) {
                break;
            }
            continue;
        };
        let bytes = compress_into_with_table(&gathered, &mut packed, &mut table).map_err(io::Error::other)?;
        captured += u64::from(walked);
        gathered_bytes += gathered.len() as u64;
        packed_bytes += bytes as u64;
    }
    let (offered, dropped) = ring.statistics()?;
    Ok(format!(
        "interface {}: {offered} packets passed the filter, {dropped} dropped by the kernel, {captured} captured; \
         {gathered_bytes} bytes gathered, {packed_bytes} packed",
        args.interface
    ))
}
