//! Times of what every block goes through: `cargo bench -p wire --bench hot`.
//!
//! For orders of magnitude and for profiles. Where a machine is shared, compare instructions
//! (`make bench-instructions`) or whole chains in one run (`bench/replay.sh`) instead.

#![allow(missing_docs)] // criterion's macros make public functions
#![allow(clippy::expect_used)]

mod common;

use std::hint::black_box;

use common::{frames, packed, packer};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use wire::connection::{apply_mask, copy_masked};
use wire::pcapng::Epbs;

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

criterion_group!(hot, blocks, masking);
criterion_main!(hot);
