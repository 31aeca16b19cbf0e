//! The spool's directory: ours to write, nobody else's now, on a disk that is large and fast enough.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::stat::{major, minor};
use wire::doctor::{DiskUse, Finding, Host, disk, measure_writing, room};
use wire::text::io_text;

use crate::spool::check_ours;
use crate::text;

const SUBJECT: &str = "spool";

/// What is to be said of `directory`, of which up to `cap_bytes` may be used. `speed_bits`: of the interfaces together, 0 if
/// it is not known.
///
/// INVARIANT: called without capabilities, as the spool is opened.
pub fn check(host: &Host, directory: &Path, cap_bytes: u64, speed_bits: u64) -> Vec<Finding> {
    let shown = directory.display();
    let is_there = directory.is_dir();
    let mut findings = Vec::new();
    let ours = match is_there {
        true => check_ours(directory).map_err(|error| text(&error)),
        false => above_is_ours(directory),
    };
    match ours {
        Err(text) => {
            let user = nix::unistd::geteuid().as_raw();
            let advice = format!("install -d -m 700 -o {user} {shown}, or run it as the user whose it is");
            findings.push(Finding::problem(SUBJECT, text, advice));
        }
        Ok(()) if !is_there => {
            findings.push(Finding::ok(SUBJECT, format!("--spool {shown}: not there yet, and can be made")));
        }
        Ok(()) => {}
    }
    if let Some(holder) = holder(host, directory) {
        findings.push(Finding::problem(
            SUBJECT,
            format!("--spool {shown}: in use by process {holder}"),
            "give each sniffer a directory of its own; a doctor beside the sniffer it is about may say this",
        ));
    }
    let mut found = room(host, directory);
    let is_ours = findings.iter().all(|one| one.level == wire::doctor::Level::Ok);
    if is_there && is_ours {
        match measure_writing(directory, found.free_bytes.unwrap_or(0)) {
            Ok(rate) => found.write_rate = Some(rate),
            Err(error) => findings.push(Finding::problem(
                SUBJECT,
                format!("--spool {shown}: cannot be written: {}", io_text(&error)),
                "look at the disk: df, df -i, dmesg",
            )),
        }
    }
    let what = format!("--spool {shown}");
    let used = DiskUse {
        subject: SUBJECT,
        what: &what,
        bytes: Some(cap_bytes.saturating_sub(used_bytes(directory))),
        advice: "make room, or a smaller --spool-size: on a full disk what comes then is lost, counted as spool failed",
        rate: (speed_bits > 0).then_some(speed_bits / 8),
    };
    findings.extend(disk(&found, &used));
    findings
}

/// Whether a directory that is not there can be made.
fn above_is_ours(directory: &Path) -> Result<(), String> {
    use nix::unistd::{AccessFlags, eaccess};
    let above =
        directory.ancestors().skip(1).map(|path| if path == Path::new("") { Path::new(".") } else { path });
    let Some(above) = above.into_iter().find(|path| path.exists()) else { return Ok(()) };
    eaccess(above, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|errno| {
        let why = io_text(&errno.into());
        format!(
            "--spool {}: cannot be made without capabilities, {} is not ours: {why}",
            directory.display(),
            above.display()
        )
    })
}

/// Bytes of the files that are there.
fn used_bytes(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).filter(|one| one.is_file()).map(|one| one.len()).sum()
}

/// The process that has locked the spool, if one has: asked of the table of locks, which disturbs nobody.
fn holder(host: &Host, directory: &Path) -> Option<u32> {
    let path = directory.join("lock");
    let file = std::fs::metadata(&path).ok()?;
    let said = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
    lock_holder(&host.text("/proc/locks")?, file.ino(), (major(file.dev()), minor(file.dev())), said)
}

/// Of a line as `1: FLOCK  ADVISORY  WRITE 708 fe:00:1835 0 EOF` (proc_locks(5)). Some file systems show another device
/// there than stat(2) does; then it has to be the process that the file itself names.
fn lock_holder(table: &str, inode: u64, device: (u64, u64), said: Option<u32>) -> Option<u32> {
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", process, place, ..] = fields[..] else { return None };
        let process: u32 = process.parse().ok()?;
        let parts: Vec<&str> = place.split(':').collect();
        let [major, minor, number] = parts[..] else { return None };
        let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
        let is_device = hexadecimal(major) == Some(device.0) && hexadecimal(minor) == Some(device.1);
        (number.parse() == Ok(inode) && (is_device || said == Some(process))).then_some(process)
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Tree, text};
    use super::*;

    #[test]
    fn a_lock_is_found_by_its_file() {
        let table = "1: POSIX  ADVISORY  WRITE 5 fe:00:77 0 EOF\n2: FLOCK  ADVISORY  WRITE 708 fe:00:77 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 9 fe:00:78 0 EOF";
        for (inode, device, said, expected) in [
            (77, (254, 0), None, Some(708)),
            (77, (254, 1), None, None),
            (77, (0, 40), Some(708), Some(708)),
            (77, (0, 40), Some(5), None),
            (78, (254, 0), Some(9), None),
        ] {
            assert_eq!(lock_holder(table, inode, device, said), expected, "{inode} {device:?} {said:?}");
        }
    }

    #[test]
    fn a_directory_is_looked_at_and_left_as_it_was() {
        let tree = Tree::new(&[("proc/self/mountinfo", "22 1 254:0 / / rw - ext4 /dev/root rw\n")]);
        let base = tempfile::tempdir().expect("a directory");
        let found = |path: &Path, cap| text(&check(&tree.host(), path, cap, 0));
        let new = found(&base.path().join("new"), 4 << 20);
        assert!(
            new.contains("not there yet, and can be made") && !new.contains("written and synced"),
            "{new}"
        );
        assert!(!base.path().join("new").exists());
        let spool = base.path().join("spool");
        std::fs::create_dir(&spool).expect("made");
        assert!(found(&spool, 4 << 20).contains("MB/s written and synced"));
        assert!(found(&spool, 1 << 60).contains("free, and up to"));
        assert_eq!(std::fs::read_dir(&spool).expect("reads").count(), 0);
        std::fs::write(spool.join("lock"), "708\n").expect("written");
        let inode = std::fs::metadata(spool.join("lock")).expect("there").ino();
        tree.write("proc/locks", &format!("1: FLOCK  ADVISORY  WRITE 708 fe:00:{inode} 0 EOF\n"));
        assert!(found(&spool, 4 << 20).starts_with("Problem spool: --spool /"), "{}", found(&spool, 4 << 20));
    }
}
