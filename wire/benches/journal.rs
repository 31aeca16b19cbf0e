//! Times of the journal, which is the sniffer's spool: `cargo bench -p wire --bench journal`. In
//! `$TMPDIR`, so of the file system there; what is read back is still in the page cache.

#![allow(missing_docs)] // criterion's macros make public functions
#![allow(clippy::expect_used)]

mod common;

use std::time::{Duration, Instant};

use common::{frames, packed, packer};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tempfile::TempDir;
use wire::journal::{Config, Journal, RealFs};
use wire::pool::Pool;

/// A journal that fills up and evicts, as a spool does.
fn open() -> (Journal, TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let config = Config { directory: directory.path().to_owned(), cap_bytes: 512 << 20, segment_bytes: None };
    let (journal, _) = Journal::open(&config, RealFs, Instant::now()).expect("a new journal");
    (journal, directory)
}

/// Blocks of about half a megabyte, and of 2 KiB as a quiet link makes them.
fn journal(criterion: &mut Criterion) {
    for (name, frame_count) in [("journal, large blocks", 1440), ("journal, small blocks", 6)] {
        let (mut packer, frames) = (packer(), &frames(false)[..frame_count]);
        let bytes = packed(&mut packer, frames).bytes().len();
        let mut group = criterion.benchmark_group(name);
        group.sample_size(20).throughput(Throughput::Bytes(bytes as u64));
        let (mut journal, _directory) = open();
        group.bench_function("append", |bencher| {
            bencher.iter_batched(
                || packed(&mut packer, frames),
                |block| {
                    journal.append(&block, Instant::now()).expect("appended");
                    while journal.poll_event().is_some() {}
                },
                BatchSize::LargeInput,
            );
        });
        journal.close().expect("closed");
        let ((mut journal, _directory), pool) = (open(), Pool::new(64 << 20));
        group.bench_function("read back and acknowledge", |bencher| {
            bencher.iter_custom(|rounds| {
                let mut time = Duration::ZERO;
                for _ in 0..rounds {
                    journal.append(&packed(&mut packer, frames), Instant::now()).expect("appended");
                    let begin = Instant::now();
                    let entry = journal.read_next(&pool).expect("read").expect("what was appended");
                    assert_eq!(entry.block.bytes().len(), bytes);
                    journal.acknowledge(entry.next, begin);
                    time += begin.elapsed();
                    while journal.poll_event().is_some() {}
                }
                time
            });
        });
        group.finish();
        journal.close().expect("closed");
    }
}

criterion_group!(all, journal);
criterion_main!(all);
