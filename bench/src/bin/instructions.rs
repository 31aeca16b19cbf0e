//! `instructions SCENARIO ROUNDS`: does the same work over and over, for callgrind to count.
//!
//! `bench/instructions.sh` runs it with two numbers of rounds and divides the difference, so that
//! what comes before and after the rounds falls out.

use std::collections::VecDeque;
use std::process::ExitCode;

use bench::frames::{Frames, Payload, Size};
use clap::{Parser, ValueEnum};
use wire::access::Grant;
use wire::block::{Epoch, PackedBlock, StreamKey};
use wire::connection::copy_masked;
use wire::hub::{Hub, HubConfig, PeerId, Run};
use wire::message::{Announcement, Envelope, Selection};
use wire::pack::{Compression, Packer};
use wire::pcapng::Epbs;
use wire::pool::Pool;

/// Most rounds: what the rounds use up is made beforehand, always for as many.
const ROUNDS_MAX: usize = 64;
/// Bytes of a body.
const BODY_BYTES: usize = 1 << 20;
/// Blocks that are forwarded in a round, and viewers they go to.
const FORWARD_BLOCKS: usize = 4;
const FORWARD_VIEWERS: u64 = 4;
const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

/// Work whose instructions are counted.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Scenario {
    /// Frames of the mix with text: gathered and packed
    PackText,
    /// The same with random bytes
    PackRandom,
    /// 64-byte frames
    PackSmall,
    /// A block of text unpacked, each packet checked
    UnpackText,
    /// The same with random bytes
    UnpackRandom,
    /// 64-byte frames
    UnpackSmall,
    /// A quarter of a megabyte masked into another buffer
    Mask,
    /// A masked message taken apart, in pieces of 64 KiB; only with --cfg fuzzing
    Deframe,
    /// Blocks handed to the hub, and out of it to four viewers
    Forward,
}

#[derive(Debug, Parser)]
struct Args {
    scenario: Scenario,
    /// How often, 64 at most
    rounds: usize,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let rounds = args.rounds.min(ROUNDS_MAX);
    let done = match args.scenario {
        Scenario::PackText => pack(rounds, Size::Mix, Payload::Text),
        Scenario::PackRandom => pack(rounds, Size::Mix, Payload::Random),
        Scenario::PackSmall => pack(rounds, Size::One(64), Payload::Text),
        Scenario::UnpackText => unpack(rounds, Size::Mix, Payload::Text),
        Scenario::UnpackRandom => unpack(rounds, Size::Mix, Payload::Random),
        Scenario::UnpackSmall => unpack(rounds, Size::One(64), Payload::Text),
        Scenario::Mask => mask(rounds),
        Scenario::Deframe => deframe(rounds),
        Scenario::Forward => forward(rounds),
    };
    match done {
        Some(done) => {
            println!("{done}");
            ExitCode::SUCCESS
        }
        None => {
            eprintln!("instructions: {:?} could not be done", args.scenario);
            ExitCode::FAILURE
        }
    }
}

fn packer() -> Packer {
    let key = StreamKey { epoch: Epoch(1), stream: 0 };
    Packer::new(key, Pool::new(64 << 20), BODY_BYTES, Compression::Lz4)
}

/// Gathers all frames into a block, as the sniffer does.
fn packed(packer: &mut Packer, frames: &Frames) -> Option<PackedBlock> {
    if !packer.prepare() {
        return None;
    }
    let options = [2, 0, 4, 0, 1, 0, 0, 0]; // epb_flags
    for index in 0..frames.count() {
        let frame = frames.frame(index);
        packer.push(0, index as u64, frame.len() as u32, [frame], &options).ok()?;
    }
    packer.seal()
}

fn pack(rounds: usize, size: Size, payload: Payload) -> Option<u64> {
    let (mut packer, frames) = (packer(), Frames::make(size, payload));
    let mut bytes = 0;
    for _ in 0..rounds {
        bytes += packed(&mut packer, &frames)?.bytes().len() as u64;
    }
    Some(bytes)
}

fn unpack(rounds: usize, size: Size, payload: Payload) -> Option<u64> {
    let block = packed(&mut packer(), &Frames::make(size, payload))?;
    let mut body = vec![0; block.header().raw_bytes as usize];
    let mut bytes = 0;
    for _ in 0..rounds {
        block.unpack_to(&mut body).ok()?;
        for epb in Epbs::new(&body, 1) {
            bytes += epb.ok()?.data.len() as u64;
        }
    }
    Some(bytes)
}

fn mask(rounds: usize) -> Option<u64> {
    let (from, mut to) = (vec![7; 256 << 10], vec![0; 256 << 10]);
    for round in 0..rounds {
        copy_masked(&from, &mut to, MASK, round);
    }
    to.first().map(|byte| u64::from(*byte))
}

#[cfg(fuzzing)]
fn deframe(rounds: usize) -> Option<u64> {
    use wire::connection::fuzzing::{Deframer, Polled};
    use wire::connection::{Incoming, Limits};

    let payload = vec![7; 256 << 10];
    let mut message = vec![0x82, 0xff];
    message.extend_from_slice(&(payload.len() as u64).to_be_bytes());
    message.extend_from_slice(&MASK);
    message.extend_from_slice(&payload);
    let pool = Pool::new(4 << 20);
    let mut deframer = Deframer::new(true, Limits { text_bytes: 1 << 10, binary_bytes: 1 << 20 });
    let mut bytes = 0;
    for _ in 0..rounds {
        let mut rest = message.as_slice();
        loop {
            match deframer.poll(&pool).ok()? {
                Polled::Message(Incoming::Binary(message)) => break bytes += message.len() as u64,
                Polled::NeedBytes => {
                    let taken = deframer.take(&rest[..rest.len().min(64 << 10)]);
                    rest = &rest[taken..];
                }
                _ => return None,
            }
        }
    }
    Some(bytes)
}

#[cfg(not(fuzzing))]
fn deframe(_rounds: usize) -> Option<u64> {
    None
}

fn forward(rounds: usize) -> Option<u64> {
    let (sniffer, epoch) = (PeerId(1), Epoch(1));
    let mut hub = Hub::new(HubConfig { viewer_queue_bytes: 64 << 20, recent_bytes: 1 << 20 });
    let run = Run { owner: "bench".into(), name: "bench".into(), epoch, home: epoch, was_elsewhere: false };
    hub.add_publisher(sniffer, run, "[::1]:1".into()).ok()?;
    let key = StreamKey { epoch, stream: 0 };
    let announcement = Announcement { key, interfaces: vec!["eth0".into()], ..Announcement::default() };
    hub.handle_stream(sniffer, announcement).ok()?;
    let viewers = (2..2 + FORWARD_VIEWERS).map(PeerId);
    for viewer in viewers.clone() {
        hub.add_viewer(viewer, Epoch(1), &Selection::default(), &Grant::anyone(), &[]).ok()?;
    }
    let mut packer = packer();
    let mut blocks = VecDeque::new();
    for _ in 0..ROUNDS_MAX * FORWARD_BLOCKS {
        packer
            .push(0, 1, 64, [&[1; 64][..]], &[])
            .or_else(|_| {
                packer.prepare();
                packer.push(0, 1, 64, [&[1; 64][..]], &[])
            })
            .ok()?;
        blocks.push_back(packer.seal()?.bytes().clone());
    }
    let mut bytes = 0;
    for round in 1..=rounds {
        for _ in 0..FORWARD_BLOCKS {
            hub.handle_block(sniffer, Envelope::default(), blocks.pop_front()?).ok()?;
        }
        while hub.poll_output().is_some() {}
        for viewer in viewers.clone() {
            while let Some((_, block)) = hub.poll_data(viewer) {
                bytes += block.len() as u64;
            }
            hub.handle_data_sent(viewer, (round * FORWARD_BLOCKS) as u64);
            hub.handle_progress(viewer, (round * FORWARD_BLOCKS) as u64);
        }
        while hub.poll_ack().is_some() {}
    }
    Some(bytes)
}
