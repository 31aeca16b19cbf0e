//! A disk: what kind, how much room, how fast.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;

use super::{Finding, Host};
use crate::units::format_bytes;

/// A measurement ends after so many bytes, or this time.
const MEASURED_BYTES: u64 = 256 << 20;
const MEASURED_TIME: Duration = Duration::from_secs(2);
/// Written at a time, and between two calls of fdatasync(2).
const WRITE_BYTES: usize = 1 << 20;
const SYNC_BYTES: u64 = 16 << 20;
/// A write speed below this is no disk to spool a fast interface to, in bytes a second.
const SLOW_BYTES: u64 = 50_000_000;

/// What is known of a disk.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// Type of the file system: `ext4`, `nfs4`.
    pub file_system: Option<String>,
    /// What a program without privilege may still write, in bytes.
    pub free_bytes: Option<u64>,
    /// Bytes a second that were written and synced.
    pub write_rate: Option<u64>,
}

/// What a disk is for.
#[derive(Clone, Debug)]
pub struct DiskUse<'a> {
    /// Subject of the findings.
    pub subject: &'a str,
    /// The option and the directory.
    pub what: &'a str,
    /// Bytes that may be written, beside what is there already; `None`: nobody knows how many.
    pub bytes: Option<u64>,
    /// How to ask for less.
    pub advice: &'a str,
    /// Bytes a second that may come, where that is known.
    pub rate: Option<u64>,
}

/// Judges a disk by what it is to be used for.
pub fn disk(disk: &Disk, used: &DiskUse) -> Vec<Finding> {
    let DiskUse { subject, what, .. } = *used;
    let mut findings = Vec::new();
    match disk.file_system.as_deref() {
        Some(kind @ ("tmpfs" | "ramfs")) => findings.push(Finding::warning(
            subject,
            format!("{what}: {kind} is memory, not disk: it is lost with the host, and it takes memory from everybody"),
            "choose a directory on a disk",
        )),
        Some(kind @ ("nfs" | "nfs4" | "cifs" | "smb3" | "9p" | "ceph")) => findings.push(Finding::warning(
            subject,
            format!("{what}: {kind} goes over a network, which may be gone just when it is needed, and may be captured too"),
            "choose a directory on a disk of this host",
        )),
        Some("overlay") => findings.push(Finding::warning(
            subject,
            format!("{what}: overlay is a container's own file system, and gone with it"),
            "mount a volume there",
        )),
        _ => {}
    }
    if let Some(free) = disk.free_bytes {
        let free_text = format_bytes(free);
        findings.push(match used.bytes {
            Some(bytes) if bytes > free => Finding::warning(
                subject,
                format!(
                    "{what}: {free_text} free, and up to {} more are to be written there",
                    format_bytes(bytes)
                ),
                used.advice,
            ),
            None if free < 1 << 30 => Finding::warning(
                subject,
                format!("{what}: {free_text} free"),
                "make room, or write elsewhere",
            ),
            Some(bytes) => Finding::ok(
                subject,
                format!("{what}: {free_text} free for up to {} more", format_bytes(bytes)),
            ),
            None => Finding::ok(subject, format!("{what}: {free_text} free")),
        });
    }
    if let Some(rate) = disk.write_rate {
        let text = format!("{what}: {} MB/s written and synced", rate / 1_000_000);
        findings.push(match used.rate {
            Some(wanted) if wanted > rate => Finding::note(
                subject,
                format!(
                    "{text}; at full speed up to {} MB/s may come, before compression",
                    wanted / 1_000_000
                ),
            )
            .advise("a faster disk, a filter (-f) or a smaller --snaplen, if the link is ever that full"),
            _ if rate < SLOW_BYTES => Finding::warning(
                subject,
                format!("{text}: slow"),
                "use a faster disk, or give it to nobody else",
            ),
            _ => Finding::ok(subject, text),
        });
    }
    findings
}

/// The type of the file system that holds an absolute path, and how many bytes of it are free. Of a path that is not there,
/// that above it counts.
pub fn room(host: &Host, path: &Path) -> Disk {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(path);
    let there = there.canonicalize().unwrap_or_else(|_| there.to_owned());
    let mounts = host.text("/proc/self/mountinfo").unwrap_or_default();
    let stat = statvfs(&there).ok();
    Disk {
        file_system: file_system(&mounts, &there),
        // Both are 32 bits wide on some targets.
        #[allow(clippy::unnecessary_cast)]
        free_bytes: stat
            .map(|stat| (stat.blocks_available() as u64).saturating_mul(stat.fragment_size() as u64)),
        write_rate: None,
    }
}

/// The type of the file system that is mounted nearest above a path (proc_pid_mountinfo(5)).
fn file_system(mounts: &str, path: &Path) -> Option<String> {
    let mount = |line: &str| {
        let (place, kind) = line.split_once(" - ")?;
        let point = place.split(' ').nth(4)?.replace("\\040", " ");
        let depth = path.starts_with(&point).then(|| Path::new(&point).components().count())?;
        Some((depth, kind.split(' ').next()?.to_owned()))
    };
    // Of two that are mounted at one point the later one counts.
    mounts.lines().filter_map(mount).max_by_key(|(depth, _)| *depth).map(|(_, kind)| kind)
}

/// How many bytes a second a directory takes, written and synced. At most a quarter of `free_bytes`, 256 MiB or what two
/// seconds take is written, into a file that has no name any more when the first byte comes.
pub fn measure_writing(directory: &Path, free_bytes: u64) -> io::Result<u64> {
    let path = directory.join(format!(".doctor-{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    let bytes_max = MEASURED_BYTES.min(free_bytes / 4);
    let chunk = vec![0xa5; WRITE_BYTES];
    let (started, mut written, mut synced) = (Instant::now(), 0_u64, 0_u64);
    while written + WRITE_BYTES as u64 <= bytes_max && started.elapsed() < MEASURED_TIME {
        file.write_all(&chunk)?;
        written += WRITE_BYTES as u64;
        if written - synced >= SYNC_BYTES {
            file.sync_data()?;
            synced = written;
        }
    }
    file.sync_data()?;
    let nanos = started.elapsed().as_nanos().max(1);
    let rate = u128::from(written) * 1_000_000_000 / nanos;
    if written == 0 {
        Err(io::ErrorKind::StorageFull.into())
    } else {
        Ok(u64::try_from(rate).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::super::for_tests::text;
    use super::*;

    const MOUNTS: &str = "\
22 1 254:0 / / rw - ext4 /dev/root rw
30 22 0:25 / /tmp rw - tmpfs tmpfs rw
31 22 0:26 / /var rw - xfs /dev/a rw
32 31 0:27 / /var/my\\040spool rw shared:1 - nfs4 host:/x rw
33 31 0:28 / /var/my\\040spool rw - btrfs /dev/b rw";

    #[test]
    fn the_nearest_mount_counts() {
        for (path, kind) in
            [("/tmp/a", "tmpfs"), ("/tmpfile", "ext4"), ("/var/my spool/x", "btrfs"), ("/var/my", "xfs")]
        {
            assert_eq!(file_system(MOUNTS, Path::new(path)).as_deref(), Some(kind), "{path}");
        }
        assert_eq!(file_system("nonsense", Path::new("/")), None);
    }

    #[test]
    fn a_disk_is_judged_by_its_use() {
        let used = DiskUse {
            subject: "spool",
            what: "--spool /s",
            bytes: Some(10 << 30),
            advice: "a smaller --spool-size",
            rate: Some(125_000_000),
        };
        let found = |kind: &str, free_gib: u64, rate: u64| {
            let (file_system, free_bytes) = (Some(kind.to_owned()), Some(free_gib << 30));
            text(&disk(&Disk { file_system, free_bytes, write_rate: Some(rate) }, &used))
        };
        let good = found("ext4", 20, 500_000_000);
        assert_eq!(good.matches("ok spool").count(), 2, "{good}");
        assert!(
            good.contains("20.0 GiB free for up to 10.0 GiB more") && good.contains("500 MB/s"),
            "{good}"
        );
        assert!(found("tmpfs", 20, 500_000_000).starts_with("warning spool: --spool /s: tmpfs is memory"));
        assert!(
            found("nfs4", 20, 500_000_000).starts_with("warning spool: --spool /s: nfs4 goes over a network")
        );
        assert!(found("overlay", 20, 500_000_000).contains("mount a volume"));
        assert!(found("ext4", 5, 500_000_000).contains("5.0 GiB free, and up to 10.0 GiB more"));
        assert!(found("ext4", 20, 90_000_000).contains("up to 125 MB/s may come"));
        let slow = DiskUse { rate: None, bytes: None, ..used };
        let found =
            text(&disk(&Disk { write_rate: Some(9_000_000), free_bytes: Some(9), ..Disk::default() }, &slow));
        assert!(
            found.contains("9 MB/s written and synced: slow") && found.contains("9 B free -> make room"),
            "{found}"
        );
    }

    #[test]
    fn a_measurement_leaves_nothing_behind() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(measure_writing(directory.path(), 16 << 20).expect("writes") > 0);
        assert_eq!(std::fs::read_dir(directory.path()).expect("reads").count(), 0);
        assert!(measure_writing(&directory.path().join("none"), 1 << 30).is_err());
        let full = measure_writing(directory.path(), 100).expect_err("no room");
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        let found = room(&Host::this(), &directory.path().join("not/there/yet"));
        assert!(found.free_bytes.is_some_and(|bytes| bytes > 0) && found.file_system.is_some(), "{found:?}");
    }
}
