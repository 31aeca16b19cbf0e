//! A spool whose disk is too small, whose cap is reached, or that somebody else has filled: capture
//! goes on, and what is lost is counted.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tests::faults::{Account, Disk, Follow, Wide, await_drained, await_spooled, journal, occupied};
use tests::live::{captured, eventually};
use tests::process::DEADLINE;

const LONG: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;
/// A frame that fills a kilobyte of the spool, and how many come in a second: more than the memory
/// and a small spool hold comes within ten seconds.
const FRAME_BYTES: usize = 1400;
const RATE: u64 = 5000;
/// So many of them are more than 32 MiB of memory and 24 MiB of disk hold.
const TOO_MANY: u64 = 60_000;

/// An outage in which more comes than memory and spool hold. Returns the account of a viewer that
/// was there all the time. `in_outage` watches, until it is told that the outage is over.
fn outage(wide: &Wide, spool: &Path, size: &str, in_outage: impl Fn(&AtomicBool) + Sync) -> Account {
    let relay = wide.relay(&[]);
    let mut sniffer = wide.sniffer_with_spool(spool, &["--spool-size", size]);
    wide.await_viewers(0);
    let viewer = wide.viewer("out");
    wide.await_viewers(1);
    let traffic = wide.traffic(0, RATE, FRAME_BYTES);
    let mut follow = Follow::new(wide.path("out"));
    follow.await_count(2000, DEADLINE);
    let is_over = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        scope.spawn(|| in_outage(&is_over));
        relay.kill();
        sniffer.await_line("capture goes on");
        std::thread::sleep(Duration::from_millis(1000 * TOO_MANY / RATE)); // the fault lasts so long
        let _relay = wide.relay(&[]);
        sniffer.await_lines(": connected", 2, LONG);
        follow.await_more(10_000);
        let sent = traffic.stop();
        follow.await_number(sent - 1, LONG);
        await_drained(spool, LONG);
        is_over.store(true, Ordering::Release);
        let sniffer = sniffer.terminate();
        let (offered, dropped, packed) = captured(&sniffer);
        assert_eq!((sniffer.code(), offered, packed), (0, sent, sent - dropped));
        sent
    });
    Account::new(sent, &wide.path("out"), &viewer.wait_within(LONG))
}

#[test]
fn a_spool_on_a_full_disk_makes_room_for_the_newest() {
    let Some(wide) = Wide::new() else { return };
    let disk = Disk::new(wide.path("disk"), "24M");
    let spool = disk.path().join("spool");
    let account = outage(&wide, &spool, "1GiB", |_| ());
    account.assert_exact_at(&["spool evicted", "kernel ring"]);
    assert!(account.counted_at("spool evicted") > 0, "{account}");
    // The oldest of the outage went, not the newest.
    let last = account.missing.last().copied().unwrap_or(0);
    assert!(last < account.numbers.len() as u64 + account.missing.len() as u64 - 10_000, "{account}");
}

#[test]
fn a_spool_never_exceeds_its_cap() {
    let Some(wide) = Wide::new() else { return };
    let spool = wide.path("spool");
    let (most, most_beside) = (AtomicU64::new(0), AtomicU64::new(0));
    let account = outage(&wide, &spool, "8MiB", |is_over| {
        while !is_over.load(Ordering::Acquire) {
            most.fetch_max(occupied(&spool, |name| name.ends_with(".seg")), Ordering::Relaxed);
            most_beside.fetch_max(occupied(&spool, |name| !name.ends_with(".seg")), Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let (most, most_beside) = (most.into_inner(), most_beside.into_inner());
    eprintln!("[cap] at most {most} bytes of segments, {most_beside} of what is beside them");
    assert!(most <= 8 * MIB, "{most}");
    assert!(most > 4 * MIB, "it was used: {most}");
    assert!(most_beside <= 2 * MIB, "{most_beside}");
    account.assert_exact_at(&["spool evicted", "kernel ring"]);
    assert!(account.counted_at("spool evicted") > 0, "{account}");
}

#[test]
fn a_disk_that_somebody_else_filled_is_used_again_when_there_is_room() {
    let Some(wide) = Wide::new() else { return };
    let disk = Disk::new(wide.path("disk"), "48M");
    let spool = disk.path().join("spool");
    std::fs::create_dir(&spool).expect("a directory");
    let filler = disk.fill();
    let mut relay = wide.relay(&[]);
    let mut sniffer = wide.sniffer_with_spool(&spool, &["--spool-size", "64MiB"]);
    wide.await_viewers(0);
    let viewer = wide.viewer("out");
    wide.await_viewers(1);
    let traffic = wide.traffic(0, RATE, FRAME_BYTES);
    let mut follow = Follow::new(wide.path("out"));
    follow.await_count(2000, DEADLINE);
    relay.kill();
    sniffer.await_line("capture goes on");
    std::thread::sleep(Duration::from_millis(1000 * TOO_MANY / RATE)); // the fault lasts so long
    relay = wide.relay(&[]);
    sniffer.await_lines(": connected", 2, LONG);
    follow.await_more(10_000);

    // There is room again, and then another outage.
    std::fs::remove_file(&filler).expect("removed");
    relay.kill();
    sniffer.await_lines("capture goes on", 2, LONG);
    await_spooled(&spool, 5000, DEADLINE);
    let (status, verified) = journal("verify", &spool, &[]);
    assert_eq!(status, 0, "{verified}");
    let relay = wide.relay(&[]);
    sniffer.await_lines(": connected", 3, LONG);
    follow.await_more(10_000);
    let sent = traffic.stop();
    follow.await_number(sent - 1, LONG);
    await_drained(&spool, LONG);
    eventually("all is settled", || {
        let list = tests::live::Bench::list(&wide.middle, &[]);
        let live = list.iter().filter(|one| one["state"] == "live").count();
        if live == 1 { Ok(()) } else { Err(format!("{list:?}")) }
    });
    let sniffer = sniffer.terminate();
    let (offered, dropped, packed) = captured(&sniffer);
    assert_eq!((sniffer.code(), offered, packed), (0, sent, sent - dropped));
    drop(relay);
    let account = Account::new(sent, &wide.path("out"), &viewer.wait_within(LONG));
    // The second outage may fill what the disk holds.
    account.assert_exact_at(&["sniffer memory", "spool failed", "spool evicted", "kernel ring"]);
    assert!(account.counted() > 0, "it was more than memory holds: {account}");
}
