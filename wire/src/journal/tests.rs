//! What a journal does, one thing at a time, and on the host's file system.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::block::{Epoch, Header, Kind, PackedBlock, StreamKey};
use crate::pool::Pool;

use super::format::{SEGMENT_HEADER_BYTES, emit_segment_header, segment_name};
use super::inspect;
use super::model::{block, header};
use super::sim_fs::{Faults, SimFs};
use super::{Config, Entry, Fs, Journal, JournalError, JournalEvent, RealFs, Recovered};

fn key(stream: u32) -> StreamKey {
    StreamKey { epoch: Epoch(5), stream }
}

fn config(directory: impl Into<PathBuf>, segment_bytes: u64, segments: u64) -> Config {
    let cap_bytes = segment_bytes * segments;
    Config { directory: directory.into(), cap_bytes, segment_bytes: Some(segment_bytes) }
}

fn open<F: Fs>(config: &Config, fs: F) -> (Journal<F>, Recovered) {
    Journal::open(config, fs, Instant::now()).expect("opens")
}

fn description(stream: u32, sequence: u64) -> PackedBlock {
    block(header(key(stream), sequence, Kind::Description), b"{}")
}

fn packets(stream: u32, sequence: u64, body_bytes: usize) -> PackedBlock {
    let time_ns = sequence * 1000;
    let header = Header {
        packet_count: 1,
        byte_count: 10,
        packets_before: sequence,
        bytes_before: sequence * 10,
        time_min_ns: time_ns,
        time_max_ns: time_ns + 999,
        ..header(key(stream), sequence, Kind::Packets)
    };
    block(header, &vec![sequence as u8; body_bytes])
}

/// A description and `count - 1` blocks of packets.
fn fill<F: Fs>(journal: &mut Journal<F>, stream: u32, count: u64, body_bytes: usize) {
    journal.append(&description(stream, 0), Instant::now()).expect("appends");
    for sequence in 1..count {
        journal.append(&packets(stream, sequence, body_bytes), Instant::now()).expect("appends");
    }
}

fn read_all<F: Fs>(journal: &mut Journal<F>) -> Vec<Entry> {
    let pool = Pool::new(256 << 20);
    std::iter::from_fn(|| journal.read_next(&pool).expect("reads")).collect()
}

fn originals(entries: &[Entry]) -> Vec<u64> {
    entries.iter().filter(|one| !one.is_copy).map(|one| one.block.header().sequence).collect()
}

fn events<F: Fs>(journal: &mut Journal<F>) -> Vec<JournalEvent> {
    std::iter::from_fn(|| journal.poll_event()).collect()
}

#[test]
fn each_segment_can_be_read_alone() {
    let (mut journal, _) = open(&config("/sim", 8192, 20), SimFs::new(1));
    for sequence in 0..60 {
        for stream in 1..=2 {
            let one = if sequence == 0 { description(stream, 0) } else { packets(stream, sequence, 700) };
            journal.append(&one, Instant::now()).expect("appends");
        }
    }
    let entries = read_all(&mut journal);
    let mut described = HashSet::new();
    for entry in &entries {
        let Header { key, kind, sequence, .. } = *entry.block.header();
        if kind == Kind::Description {
            assert_eq!(entry.is_copy, entry.position.segment > 1, "the first is the original");
            assert_eq!(sequence, 0, "a copy keeps its sequence");
            described.insert((entry.position.segment, key));
        } else {
            assert!(described.contains(&(entry.position.segment, key)), "described in the same segment");
        }
    }
    assert!(entries.last().expect("some").position.segment > 5);
    assert_eq!(originals(&entries).len(), 120);
}

#[test]
fn a_description_that_went_another_way_stands_before_the_first_block() {
    // The relay had it before the line was cut; only later blocks of the stream are spooled.
    let (mut journal, _) = open(&config("/sim", 8192, 20), SimFs::new(1));
    journal.describe(&description(1, 0));
    for sequence in 5..40 {
        journal.append(&packets(1, sequence, 700), Instant::now()).expect("appends");
    }
    let entries = read_all(&mut journal);
    let mut segments = HashSet::new();
    for entry in &entries {
        let is_first = segments.insert(entry.position.segment);
        assert_eq!(entry.is_copy, is_first, "a copy at the begin of each segment");
    }
    assert!(segments.len() > 1);
    assert_eq!(originals(&entries), (5..40).collect::<Vec<_>>());
    journal.forget(key(1));
    journal.describe(&packets(2, 0, 10)); // no description
    assert!(journal.descriptions.last(key(1)).or(journal.descriptions.last(key(2))).is_none());
}

#[test]
fn a_disk_smaller_than_the_cap_loses_its_oldest_only() {
    let fs = SimFs::new(1);
    fs.set_capacity(24 << 20);
    let config = Config { directory: "/sim".into(), cap_bytes: 1 << 30, segment_bytes: None };
    let (mut journal, _) = open(&config, fs);
    fill(&mut journal, 1, 60, 1 << 20);
    let found = originals(&read_all(&mut journal));
    assert!(found.len() > 12, "half the disk and more is in use: {found:?}");
    assert_eq!(found, (60 - found.len() as u64..60).collect::<Vec<_>>(), "the newest");
}

#[test]
fn a_full_disk_gets_back_a_segment_that_nobody_needs() {
    let fs = SimFs::new(1);
    let (mut journal, _) = open(&config("/sim", 1 << 20, 4), fs.clone());
    fill(&mut journal, 1, 10, 1000);
    let entries = read_all(&mut journal);
    // Somebody else fills the disk.
    fs.set_capacity(fs.used());
    let now = Instant::now();
    journal.acknowledge(entries.last().expect("some").next, now);
    journal.handle_timeout(now + Duration::from_secs(2));
    assert_eq!(fs.used_by(".seg"), 0);
    assert!(fs.used_by("cursor") > 0);
    assert!(journal.poll_timeout().is_none(), "nothing is tried again");
}

#[test]
fn reading_that_begins_in_a_segment_gives_its_descriptions_first() {
    let (mut journal, _) = open(&config("/sim", 1 << 20, 4), SimFs::new(1));
    fill(&mut journal, 1, 5, 100);
    fill(&mut journal, 2, 5, 100);
    let entries = read_all(&mut journal);
    journal.acknowledge(entries[6].next, Instant::now());
    journal.rewind();
    let again = read_all(&mut journal);
    let shape: Vec<_> =
        again.iter().map(|one| (one.block.header().key.stream, one.is_copy)).take(3).collect();
    assert_eq!(shape, [(1, true), (2, true), (2, false)]);
    assert_eq!(originals(&again), [2, 3, 4]);
    assert_eq!(again[0].next, entries[6].next, "a copy acknowledges nothing");
}

#[test]
fn a_damaged_body_is_stepped_over_and_priced_by_its_header() {
    let fs = SimFs::new(1);
    let (mut journal, _) = open(&config("/sim", 1 << 20, 4), fs.clone());
    fill(&mut journal, 1, 6, 300);
    let entries = read_all(&mut journal);
    let damaged = entries[2].position.offset;
    fs.edit(&segment_name(1), |bytes| bytes[damaged as usize + 200] ^= 1);
    journal.rewind();
    assert_eq!(originals(&read_all(&mut journal)), [0, 1, 3, 4, 5]);
    match &events(&mut journal)[..] {
        [JournalEvent::Damaged { segment: 1, from, to, reason, header: Some(header) }] => {
            assert_eq!((*from, *to), (damaged, entries[3].position.offset));
            assert_eq!(header.sequence, 2);
            assert!(reason.contains("checksum"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_packed_block_in_a_captured_packet_is_no_record() {
    let fs = SimFs::new(1);
    let (mut journal, _) = open(&config("/sim", 1 << 20, 4), fs.clone());
    // What the writer makes of a block, in another journal, at each multiple of 8 it may come to.
    let other = SimFs::new(2);
    let (mut stranger, _) = open(&config("/sim", 1 << 20, 4), other.clone());
    fill(&mut stranger, 66, 4, 20);
    stranger.sync().expect("syncs");
    let mut body = Vec::new();
    other.edit(&segment_name(1), |bytes| body.extend_from_slice(&bytes[..1000]));
    body.extend_from_slice(packets(66, 1, 50).bytes());
    fill(&mut journal, 1, 3, 300);
    journal.append(&block(header(key(1), 3, Kind::Packets), &body), Instant::now()).expect("appends");
    journal.append(&packets(1, 4, 300), Instant::now()).expect("appends");
    let entries = read_all(&mut journal);
    let outer = entries[3].position.offset as usize;
    // The frame of the block around it goes, so that the next record is looked for inside.
    fs.edit(&segment_name(1), |bytes| bytes[outer] ^= 1);
    journal.rewind();
    let again = read_all(&mut journal);
    assert!(again.iter().all(|one| one.block.header().key == key(1)));
    assert_eq!(originals(&again), [0, 1, 2, 4]);
    assert_eq!(events(&mut journal).len(), 1);
}

#[test]
fn eviction_counts_what_was_not_acknowledged_and_no_copies() {
    let (mut journal, _) = open(&config("/sim", 4096, 3), SimFs::new(1));
    fill(&mut journal, 1, 4, 400);
    let entries = read_all(&mut journal);
    journal.acknowledge(entries[1].next, Instant::now());
    let mut evicted = Vec::new();
    for sequence in 4..40 {
        journal.append(&packets(1, sequence, 400), Instant::now()).expect("appends");
        evicted.extend(events(&mut journal));
        assert!(journal.size_bytes() <= 3 * 4096);
    }
    let lost: Vec<_> = evicted
        .iter()
        .map(|event| match event {
            JournalEvent::Evicted { streams, .. } => streams[0],
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(lost[0].first_sequence, 2, "0 and 1 were acknowledged");
    let mut next = 2;
    for one in &lost {
        assert_eq!((one.key, one.first_sequence), (key(1), next), "no gap");
        assert_eq!(one.packets, one.next_sequence - one.first_sequence, "one each, no copies");
        next = one.next_sequence;
    }
    let merged = journal.evictions()[0];
    assert_eq!((merged.first_sequence, merged.next_sequence, merged.packets), (2, next, next - 2));
    let left = read_all(&mut journal);
    assert_eq!(originals(&left), (next..40).collect::<Vec<_>>());
    journal.evictions_told(key(1), next - 1, Instant::now());
    assert_eq!(journal.evictions().len(), 1, "more was evicted since");
    journal.evictions_told(key(1), next, Instant::now());
    assert!(journal.evictions().is_empty());
}

#[test]
fn a_damaged_cursor_means_the_oldest_block_and_is_said() {
    let fs = SimFs::new(1);
    let config = config("/sim", 1 << 20, 4);
    let (mut journal, _) = open(&config, fs.clone());
    fill(&mut journal, 1, 5, 100);
    let entries = read_all(&mut journal);
    journal.acknowledge(entries[2].next, Instant::now());
    journal.close().expect("ends in order");
    let (mut journal, recovered) = open(&config, fs.clone());
    assert_eq!((recovered.acknowledged, recovered.warnings.len()), (entries[2].next, 0));
    assert_eq!(originals(&read_all(&mut journal)), [3, 4]);
    drop(journal);
    fs.edit("cursor", |bytes| bytes[20] ^= 1);
    let (mut journal, recovered) = open(&config, fs);
    assert!(recovered.warnings[0].contains("cursor: damaged"), "{:?}", recovered.warnings);
    assert_eq!(originals(&read_all(&mut journal)), [0, 1, 2, 3, 4]);
}

#[test]
fn a_torn_last_body_is_cut_and_a_hole_before_whole_blocks_is_not() {
    let fs = SimFs::new(1);
    let config = config("/sim", 1 << 20, 4);
    let (mut journal, _) = open(&config, fs.clone());
    fill(&mut journal, 1, 6, 300);
    let entries = read_all(&mut journal);
    let fs = fs.kill();
    for torn in [2, 5] {
        let at = entries[torn].position.offset as usize + 200;
        fs.edit(&segment_name(1), |bytes| bytes[at] ^= 1);
    }
    let (mut journal, recovered) = open(&config, fs);
    assert_eq!((recovered.blocks, recovered.streams[0].next_sequence), (4, 5), "{recovered:?}");
    // All of the last record but its padding.
    assert_eq!(recovered.cut_bytes, 16 + 88 + 300);
    assert_eq!(recovered.warnings.len(), 2, "{:?}", recovered.warnings);
    assert_eq!(originals(&read_all(&mut journal)), [0, 1, 3, 4]);
}

/// A segment with a lost header was deleted as never written when the disk did not give its seal in
/// that moment, though the seal has all that the header tells.
#[test]
fn a_segment_without_header_and_with_an_unreadable_seal_is_kept() {
    let fs = SimFs::new(1);
    let config = config("/sim", 1 << 20, 4);
    let (mut journal, _) = open(&config, fs.clone());
    fill(&mut journal, 1, 6, 300);
    journal.close().expect("ends in order");
    fs.edit(&segment_name(1), |bytes| bytes[..SEGMENT_HEADER_BYTES].fill(0));
    for _ in 0..50 {
        fs.set_faults(Faults { read: 40, ..Faults::default() });
        drop(Journal::open(&config, fs.clone(), Instant::now()));
        fs.set_faults(Faults::default());
        let (mut journal, _) = open(&config, fs.clone());
        assert_eq!(originals(&read_all(&mut journal)), [0, 1, 2, 3, 4, 5]);
    }
}

#[test]
fn a_range_has_what_touches_its_time_and_the_descriptions() {
    let (mut journal, _) = open(&config("/sim", 8192, 30), SimFs::new(1));
    fill(&mut journal, 1, 100, 500);
    let pool = Pool::new(1 << 20);
    let mut range = journal.range(50_500, 53_000).expect("flushes");
    let entries: Vec<_> = std::iter::from_fn(|| range.read_next(&pool).expect("reads")).collect();
    let times: Vec<_> = entries.iter().map(|one| one.block.header().sequence).collect();
    assert_eq!(times[0], 0, "a description first");
    assert_eq!(times.iter().filter(|one| **one > 0).collect::<Vec<_>>(), [&50, &51, &52]);
    assert!(range.poll_event().is_none());
    let mut none = journal.range(u64::MAX - 1, u64::MAX).expect("flushes");
    assert!(none.read_next(&pool).expect("reads").is_none());
    assert_eq!(journal.oldest_time_ns(), Some(1000));
}

#[test]
fn without_a_buffer_nothing_is_skipped() {
    let (mut journal, _) = open(&config("/sim", 1 << 20, 4), SimFs::new(1));
    fill(&mut journal, 1, 4, 5000);
    let pool = Pool::new(8192);
    let held: Vec<_> = (0..2).map(|_| journal.read_next(&pool).expect("reads")).collect();
    let error = journal.read_next(&pool).expect_err("the pool is used up");
    assert!(matches!(error, JournalError::NoBuffer { .. }), "{error}");
    drop(held);
    assert_eq!(originals(&read_all(&mut journal)), [2, 3]);
}

#[test]
fn timeouts_tell_when_something_is_due() {
    let (mut journal, _) = open(&config("/sim", 1 << 20, 4), SimFs::new(1));
    assert_eq!(journal.poll_timeout(), None);
    let start = Instant::now();
    journal.append(&description(1, 0), start).expect("appends");
    assert_eq!(journal.poll_timeout(), Some(start + Duration::from_millis(100)), "to be written");
    journal.handle_timeout(start + Duration::from_millis(100));
    assert_eq!(journal.poll_timeout(), Some(start + Duration::from_secs(1)), "to be synced");
    journal.handle_timeout(start + Duration::from_secs(1));
    assert_eq!(journal.poll_timeout(), None);
    let entry = read_all(&mut journal).pop().expect("one");
    journal.acknowledge(entry.next, start + Duration::from_secs(2));
    assert_eq!(journal.poll_timeout(), Some(start + Duration::from_secs(3)), "the cursor");
    journal.handle_timeout(start + Duration::from_secs(3));
    assert_eq!(journal.poll_timeout(), None);
}

#[test]
fn impossible_sizes_and_blocks_are_refused() {
    let fails = |config: &Config| Journal::open(config, SimFs::new(1), Instant::now()).expect_err("refused");
    let text = fails(&config("/sim", 4095, 4)).to_string();
    assert!(text.contains("4095 bytes: out of range"), "{text}");
    let text = fails(&config("/sim", 8192, 1)).to_string();
    assert!(text.contains("at least two segments"), "{text}");
    let (mut journal, _) = open(&config("/sim", 4096, 2), SimFs::new(1));
    fill(&mut journal, 1, 2, 100);
    let error = journal.append(&packets(1, 2, 9000), Instant::now()).expect_err("over the cap");
    assert!(matches!(error, JournalError::BlockTooLong { .. }), "{error}");
    journal.append(&packets(1, 2, 7000), Instant::now()).expect("has a segment of its size");
    assert_eq!(originals(&read_all(&mut journal)), [0, 1, 2]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever a segment holds, opening and reading end, and give nothing that was not appended.
    #[test]
    fn no_bytes_make_it_panic_or_loop(
        noise in proptest::collection::vec(any::<u8>(), 0..3000),
        at in 0usize..3000,
        with_header: bool,
        over_a_journal: bool,
    ) {
        let fs = SimFs::new(1);
        let config = config("/sim", 4096, 8);
        if over_a_journal {
            let (mut journal, _) = open(&config, fs.clone());
            fill(&mut journal, 1, 8, 300);
            journal.close().expect("ends in order");
        }
        fs.edit(&segment_name(1), |bytes| {
            bytes.resize(bytes.len().max(at + noise.len()), 0);
            bytes[at..at + noise.len()].copy_from_slice(&noise);
            if with_header {
                bytes.resize(bytes.len().max(SEGMENT_HEADER_BYTES), 0);
                bytes[..SEGMENT_HEADER_BYTES].copy_from_slice(&emit_segment_header(1, 7));
            }
        });
        fs.edit("cursor", |bytes| bytes.clone_from(&noise));
        let (mut journal, _) = open(&config, fs);
        for entry in read_all(&mut journal) {
            let sequence = entry.block.header().sequence;
            let expected = if sequence == 0 { description(1, 0) } else { packets(1, sequence, 300) };
            prop_assert_eq!(entry.block.bytes(), expected.bytes());
        }
    }
}

// --- the host's file system ---

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory for the test")
}

#[test]
fn what_a_killed_process_wrote_is_there_again() {
    let directory = directory();
    let path = directory.path().join("spool");
    let config = config(&path, 1 << 20, 4);
    let (mut journal, recovered) = open(&config, RealFs);
    assert_eq!(recovered, Recovered { acknowledged: recovered.acknowledged, ..Recovered::default() });
    fill(&mut journal, 1, 30, 50_000);
    let before = read_all(&mut journal);
    assert_eq!(before.len(), 31, "30, and a copy in the second segment");
    drop(journal);
    let cut = 100;
    let last = path.join(segment_name(2));
    let end = before.last().expect("some").next.offset;
    std::fs::File::options().write(true).open(&last).and_then(|file| file.set_len(end - cut)).expect("cut");
    let (mut journal, recovered) = open(&config, RealFs);
    assert_eq!(recovered.blocks, 29, "{recovered:?}");
    assert!(recovered.cut_bytes > 49_000 && recovered.cut_bytes < 51_000, "{recovered:?}");
    assert_eq!((recovered.streams[0].next_sequence, recovered.streams[0].packets), (29, 29));
    assert_eq!(originals(&read_all(&mut journal)), (0..29).collect::<Vec<_>>());
    journal.append(&packets(1, 29, 50_000), Instant::now()).expect("goes on");
    assert_eq!(originals(&read_all(&mut journal)), [29]);
    let end = journal.end();
    journal.acknowledge(end, Instant::now());
    journal.close().expect("ends in order");
    assert!(!last.exists(), "all is acknowledged");
}

#[cfg(unix)]
#[test]
fn files_are_private_and_have_one_writer() {
    use std::os::unix::fs::PermissionsExt;
    let directory = directory();
    let path = directory.path().join("spool");
    let config = config(&path, 1 << 20, 4);
    let (mut journal, _) = open(&config, RealFs);
    fill(&mut journal, 1, 2, 100);
    journal.sync().expect("syncs");
    let mode = |path: &Path| path.metadata().expect("is there").permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join(segment_name(1))), 0o600);
    let text = Journal::open(&config, RealFs, Instant::now()).expect_err("in use").to_string();
    let expected = format!("journal {}: process {} writes to it", path.display(), std::process::id());
    assert!(text.starts_with(&expected), "{text}");
    // Looking needs no lock.
    let listing = inspect::list(&path).expect("lists");
    assert_eq!((listing.segments[0].blocks, listing.segments[0].sealed), (2, false));
    let verified = inspect::verify(&path, |damage| panic!("{damage}")).expect("verifies");
    assert_eq!((verified.blocks, verified.packets, verified.damaged), (2, 1, 0));
    drop(journal);
    open(&config, RealFs);
}

#[test]
fn inspection_names_damage_but_not_what_is_being_written() {
    let directory = directory();
    let config = config(directory.path(), 4096, 8);
    let (mut journal, _) = open(&config, RealFs);
    fill(&mut journal, 1, 20, 400);
    let entries = read_all(&mut journal);
    let flip = |entry: &Entry| {
        let path = directory.path().join(segment_name(entry.position.segment));
        let mut bytes = std::fs::read(&path).expect("reads");
        bytes[entry.position.offset as usize + 200] ^= 1;
        std::fs::write(&path, bytes).expect("writes");
    };
    flip(entries.last().expect("some"));
    let verified = inspect::verify(directory.path(), |damage| panic!("{damage}")).expect("verifies");
    assert_eq!(verified.blocks, 19, "the last may be half written");
    flip(&entries[3]);
    let mut lines = Vec::new();
    let verified = inspect::verify(directory.path(), |damage| lines.push(damage.to_string()));
    assert_eq!(verified.expect("verifies").damaged, 1);
    let at = entries[3].position;
    assert!(lines[0].starts_with(&format!("segment {:010}: body checksum", at.segment)), "{lines:?}");
    assert!(lines[0].contains(&format!("at byte {}", at.offset)), "{lines:?}");
    assert!(inspect::list(&directory.path().join("none")).is_err());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_evicts_and_then_says_so() {
    let directory = directory();
    let path = directory.path().join("small");
    std::fs::create_dir(&path).expect("makes");
    // Not by the program: a process that starts holds a copy of every lock of the other tests for a moment.
    let tmpfs = Some("tmpfs");
    if let Err(errno) = nix::mount::mount(tmpfs, &path, tmpfs, nix::mount::MsFlags::empty(), Some("size=6M"))
    {
        assert!(
            std::env::var_os("RINGCAST_REQUIRE_ALL").is_none(),
            "{errno}, but nothing may be skipped here"
        );
        println!("SKIPPED: mounting a small tmpfs needs root: {errno}");
        return;
    }
    let (mut journal, _) = open(&config(&path, 2 << 20, 100), RealFs);
    let mut evicted = 0;
    for sequence in 0..400 {
        let one = if sequence == 0 { description(1, 0) } else { packets(1, sequence, 60_000) };
        journal.append(&one, Instant::now()).expect("evicts before it fails");
        for event in events(&mut journal) {
            match event {
                JournalEvent::Evicted { streams, .. } => {
                    evicted += streams.iter().map(|one| one.next_sequence - one.first_sequence).sum::<u64>();
                }
                JournalEvent::Trouble { text } => assert!(text.contains("cursor"), "{text}"),
                other => panic!("{other:?}"),
            }
        }
    }
    let left = originals(&read_all(&mut journal));
    assert_eq!(left, (evicted..400).collect::<Vec<_>>(), "all that was not evicted");
    assert!(evicted > 200);
    drop(journal);
    nix::mount::umount(&path).expect("unmounts");
}

/// `cargo test --release -p wire --lib journal::tests::speed -- --ignored --nocapture`, with
/// `RINGCAST_JOURNAL_BENCH_DIR` naming a directory on the disk to measure.
#[test]
#[ignore = "measures the disk"]
fn speed() {
    let base = std::env::var_os("RINGCAST_JOURNAL_BENCH_DIR").map(PathBuf::from);
    for (body_bytes, total_bytes) in [(1 << 20, 1 << 30), (1 << 10, 256 << 20)] {
        let one: Vec<PackedBlock> = (0..64).map(|sequence| packets(1, sequence, body_bytes)).collect();
        let count = total_bytes / body_bytes as u64;
        let rate = |time: Duration| total_bytes as f64 / time.as_secs_f64() / 1e6;
        let (mut appended, mut read, mut slowest) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..7 {
            let directory = match &base {
                Some(base) => tempfile::tempdir_in(base).expect("a directory"),
                None => directory(),
            };
            let config =
                Config { directory: directory.path().into(), cap_bytes: 8 << 30, segment_bytes: None };
            let (mut journal, _) = open(&config, RealFs);
            let (start, mut worst) = (Instant::now(), Duration::ZERO);
            for at in 0..count as usize {
                let now = Instant::now();
                journal.append(&one[at % one.len()], now).expect("appends");
                worst = worst.max(now.elapsed());
            }
            journal.sync().expect("syncs");
            appended.push(rate(start.elapsed()));
            slowest.push(worst.as_secs_f64() * 1e3);
            let (start, pool) = (Instant::now(), Pool::new(64 << 20));
            let mut blocks = 0;
            while journal.read_next(&pool).expect("reads").is_some() {
                blocks += 1;
            }
            assert_eq!(blocks, count);
            read.push(rate(start.elapsed()));
        }
        let median = |numbers: &mut Vec<f64>| {
            numbers.sort_by(f64::total_cmp);
            numbers[numbers.len() / 2]
        };
        println!(
            "blocks of {body_bytes} B: append with sync {:.0} MB/s ({:.0} to {:.0}), slowest append {:.1} ms, read {:.0} MB/s",
            median(&mut appended),
            appended[0],
            appended[6],
            median(&mut slowest),
            median(&mut read)
        );
    }
}
