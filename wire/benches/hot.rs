//! Times of what every block goes through: `cargo bench -p wire --bench hot`.
//!
//! For orders of magnitude and for profiles. Where a machine is shared, compare instructions
//! (`make bench-instructions`) or whole chains in one run (`bench/replay.sh`) instead.

#![allow(missing_docs)] // criterion's macros make public functions
#![allow(clippy::expect_used)]

use std::hint::black_box;
use std::time::Instant;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use wire::access::Grant;
use wire::block::{Epoch, PackedBlock, StreamKey};
use wire::connection::{apply_mask, copy_masked};
use wire::hub::{Hub, HubConfig, PeerId, Run};
use wire::journal::{Config, Journal, RealFs};
use wire::message::{Announcement, Envelope, Selection};
use wire::pack::{Compression, Packer};
use wire::pcapng::Epbs;
use wire::pool::Pool;

const KEY: StreamKey = StreamKey { epoch: Epoch(1), stream: 0 };
const SIZES: [usize; 12] = [64, 594, 64, 594, 64, 64, 594, 64, 1514, 64, 594, 64];

fn packer() -> Packer {
    Packer::new(KEY, Pool::new(1 << 30), 1 << 20, Compression::Lz4)
}

/// Frames of a mix of sizes, about half a megabyte; text shrinks, noise does not.
fn frames(is_text: bool) -> Vec<Vec<u8>> {
    let mut state = 1u64;
    let mut noise = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let sizes = SIZES.iter().cycle().take(1440);
    sizes
        .map(|&bytes| {
            let mut frame = Vec::with_capacity(bytes + 64);
            while frame.len() < bytes {
                if is_text {
                    frame.extend_from_slice(b"GET /pages/index.html HTTP/1.1\r\nHost: www.example.net\r\n");
                    frame.extend_from_slice(&noise()[..2]);
                } else {
                    frame.extend_from_slice(&noise());
                }
            }
            frame.truncate(bytes);
            frame
        })
        .collect()
}

fn packed(packer: &mut Packer, frames: &[Vec<u8>]) -> PackedBlock {
    assert!(packer.prepare());
    for (index, frame) in frames.iter().enumerate() {
        let options = [2, 0, 4, 0, 1, 0, 0, 0]; // epb_flags
        packer.push(0, index as u64, frame.len() as u32, [frame], &options).expect("there is room");
    }
    packer.seal().expect("frames were gathered")
}

fn blocks(criterion: &mut Criterion) {
    for (name, is_text) in [("text", true), ("random", false)] {
        let frames = frames(is_text);
        let mut packer = packer();
        let block = packed(&mut packer, &frames);
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(block.header().raw_bytes.into()));
        group.bench_function("pack", |bencher| bencher.iter(|| packed(&mut packer, &frames)));
        let mut body = vec![0; block.header().raw_bytes as usize];
        group.bench_function("unpack", |bencher| {
            bencher.iter(|| {
                block.unpack_to(&mut body).expect("a good body");
                Epbs::new(&body, 1).map(|epb| epb.expect("a good packet").data.len()).sum::<usize>()
            });
        });
        group.finish();
    }
}

fn masking(criterion: &mut Criterion) {
    let (from, mut to) = (vec![7; 256 << 10], vec![0; 256 << 10]);
    let mut group = criterion.benchmark_group("mask");
    group.throughput(Throughput::Bytes(from.len() as u64));
    group.bench_function("copy", |bencher| {
        bencher.iter(|| copy_masked(black_box(&from), &mut to, [1, 2, 3, 4], 1));
    });
    group.bench_function("in place", |bencher| {
        bencher.iter(|| apply_mask(black_box(&mut to), [1, 2, 3, 4], 1));
    });
    group.finish();
}

/// Blocks of about half a megabyte into a journal that fills up and evicts, as a spool does.
fn journal(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a directory");
    let config = Config { directory: directory.path().to_owned(), cap_bytes: 512 << 20, segment_bytes: None };
    let (mut journal, _) = Journal::open(&config, RealFs, Instant::now()).expect("a new journal");
    let (mut packer, frames) = (packer(), frames(false));
    let bytes = packed(&mut packer, &frames).bytes().len();
    let mut group = criterion.benchmark_group("journal");
    group.sample_size(20).throughput(Throughput::Bytes(bytes as u64));
    group.bench_function("append", |bencher| {
        bencher.iter_batched(
            || packed(&mut packer, &frames),
            |block| {
                journal.append(&block, Instant::now()).expect("appended");
                while journal.poll_event().is_some() {}
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
    journal.close().expect("closed");
}

fn hub(criterion: &mut Criterion) {
    for viewers in [1, 10, 100] {
        let sniffer = PeerId(1);
        let mut hub = Hub::new(HubConfig { viewer_queue_bytes: 64 << 20, recent_bytes: 1 << 20 });
        let run = Run { owner: "bench".into(), name: "bench".into(), epoch: KEY.epoch, home: KEY.epoch };
        hub.add_publisher(sniffer, run, "[::1]:1".into()).expect("its own");
        let announcement =
            Announcement { key: KEY, interfaces: vec!["eth0".into()], ..Announcement::default() };
        hub.handle_stream(sniffer, announcement).expect("a publisher");
        let all: Vec<PeerId> = (2..2 + viewers).map(PeerId).collect();
        for viewer in &all {
            hub.add_viewer(*viewer, &Selection::default(), &Grant::anyone(), &[]).expect("globs");
        }
        let (mut packer, frames, mut sent) = (packer(), frames(true), 0);
        let mut group = criterion.benchmark_group("forward a block");
        group.throughput(Throughput::Elements(viewers));
        group.bench_function(format!("{viewers} viewers"), |bencher| {
            bencher.iter_batched(
                || packed(&mut packer, &frames[..12]),
                |block| {
                    hub.handle_block(sniffer, Envelope::default(), block.bytes().clone()).expect("in order");
                    while hub.poll_output().is_some() {}
                    sent += 1;
                    for viewer in &all {
                        while hub.poll_data(*viewer).is_some() {}
                        hub.handle_data_sent(*viewer, sent);
                        hub.handle_progress(*viewer, sent);
                    }
                    while hub.poll_ack().is_some() {}
                },
                BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

criterion_group!(hot, blocks, masking, journal, hub);
criterion_main!(hot);
