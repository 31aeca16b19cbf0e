//! Files that are made, left behind and found.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::test_net::{let_go, start};

const DEAD: Epoch = Epoch(0xdead);
const OWN: Epoch = Epoch(0x0123);

/// Ends a run as a kill does: nothing is written, and its lock is gone; that is held by the mapping, too.
fn kill(file: TotalsFile, slots: Vec<TotalsSlot>) {
    let_go((file, slots));
}

fn former(dir: &Path) -> Vec<FormerRun> {
    former_runs(dir, OWN).expect("the directory is there")
}

#[test]
fn what_a_killed_run_recorded_is_found() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = TotalsFile::create(dir.path(), DEAD).expect("made");
    let path = dir.path().join("totals-000000000000dead");
    let metadata = std::fs::metadata(&path).expect("it is there");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let mut first = file.slot(3, "eth0", 77).expect("a slot");
    let mut second = file.slot(4, "eth1", 78).expect("a slot");
    file.slot(5, "lo", 79).expect("a slot");
    for step in 1..=5 {
        first.record(step, 10 * step, 100 * step, 11 * step, step, 1000 + step);
    }
    second.record(1, 0, 0, 0, 0, 1000);
    second.end();
    kill(file, vec![first]);

    let runs = former(dir.path());
    let [run] = &runs[..] else { panic!("one run, not {runs:?}") };
    assert_eq!((run.epoch, &run.path), (DEAD, &path));
    assert!(run.created_ns > 1 << 60);
    let stream = |stream, interface: &str, opened_ns| FormerStream {
        stream,
        interface: interface.to_owned(),
        opened_ns,
        next_sequence: 0,
        packets: 0,
        bytes: 0,
        offered: 0,
        kernel_drops: 0,
        updated_ns: 0,
        ended: false,
    };
    let expected = [
        FormerStream {
            next_sequence: 5,
            packets: 50,
            bytes: 500,
            offered: 55,
            kernel_drops: 5,
            updated_ns: 1005,
            ..stream(3, "eth0", 77)
        },
        FormerStream { next_sequence: 1, updated_ns: 1000, ended: true, ..stream(4, "eth1", 78) },
        stream(5, "lo", 79),
    ];
    assert_eq!(run.streams, expected);
    for run in runs {
        run.remove().expect("removed");
    }
    assert!(!path.exists());
    assert!(former(dir.path()).is_empty());
}

#[test]
fn a_slot_is_free_again_when_its_stream_has_ended_and_is_settled() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = TotalsFile::create(dir.path(), DEAD).expect("made");
    let slot = file.slot(0, "eth0", 1).expect("a slot");
    assert!(!file.release(0), "it is being written to");
    slot.end();
    assert!(file.release(0));
    assert!(!file.release(0), "it has none any more");
    let slots: Vec<_> = (1..=SLOT_COUNT as u32).map(|stream| file.slot(stream, "eth0", 1)).collect();
    assert!(slots.iter().all(Option::is_some));
    assert!(file.slot(9_999, "eth0", 1).is_none(), "all are used");
    kill(file, slots.into_iter().flatten().collect());
    let runs = former(dir.path());
    let found: std::collections::BTreeSet<u32> = runs[0].streams.iter().map(|one| one.stream).collect();
    assert!(found.into_iter().eq(1..=SLOT_COUNT as u32));
}

#[test]
fn files_of_others_are_told_apart() {
    let dir = tempfile::tempdir().expect("a directory");
    let own = TotalsFile::create(dir.path(), OWN).expect("made");
    let running = TotalsFile::create(dir.path(), Epoch(7)).expect("made");
    assert!(TotalsFile::create(dir.path(), Epoch(7)).is_err(), "an epoch has one file");
    std::fs::write(dir.path().join("totals-00000000000000aa"), b"short").expect("written");
    std::fs::write(dir.path().join("totals-00000000000000bb"), vec![7; 4 << 20]).expect("written");
    std::fs::write(dir.path().join("totals-00000000000000cc"), b"").expect("written");
    std::fs::write(dir.path().join("totals-zz"), b"").expect("written");
    std::fs::create_dir(dir.path().join("totals-00000000000000dd")).expect("made");
    std::os::unix::fs::symlink("/dev/zero", dir.path().join("totals-00000000000000ee")).expect("linked");
    let found: Vec<Epoch> = former(dir.path()).iter().map(|run| run.epoch).collect();
    assert_eq!(found, [Epoch(0xcc)], "the one that was stopped at once");
    running.remove().expect("removed");
    own.remove().expect("removed");
    assert!(former_runs(&dir.path().join("nowhere"), OWN).is_err());
}

/// Tells a copy of this program which directory to record in.
const CHILD_DIR: &str = "RINGCAST_TEST_TOTALS_DIR";

/// Not a test by itself: what the next one starts as a process of its own, to kill it.
#[test]
fn records_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let file = TotalsFile::create(Path::new(&dir), DEAD).expect("made");
    let mut slot = file.slot(1, "eth0", 5).expect("a slot");
    for step in 1u64.. {
        slot.record(step, 2 * step, 3 * step, 4 * step, 5 * step, 6 * step);
        if step == 1 {
            println!("recording");
        }
    }
}

#[test]
fn a_process_that_is_really_killed_leaves_whole_totals() {
    use std::io::BufRead;
    for _ in 0..5 {
        let dir = tempfile::tempdir().expect("a directory");
        let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
        command
            .args(["--exact", "totals::tests::records_until_it_is_killed", "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .stdout(std::process::Stdio::piped());
        let mut child = start(&mut command);
        let output = child.stdout.take().expect("a pipe");
        let mut lines = io::BufReader::new(output).lines().map(|line| line.expect("text"));
        assert!(lines.any(|line| line.contains("recording")), "it did not come to that");
        child.kill().expect("killed");
        child.wait().expect("it ended");
        let runs = former(dir.path());
        let stream = &runs[0].streams[0];
        let step = stream.next_sequence;
        assert!(step > 0);
        let found = [stream.packets, stream.bytes, stream.offered, stream.kernel_drops, stream.updated_ns];
        assert_eq!(found, [2 * step, 3 * step, 4 * step, 5 * step, 6 * step]);
    }
}
