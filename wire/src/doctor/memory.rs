//! Memory: what is asked for, beside what there is.

use super::{Finding, Host};
use crate::units::format_bytes;

/// What a program may take at most.
#[derive(Clone, Debug)]
pub struct MemoryUse<'a> {
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes of these that count against the limit of a control group; the rings of a capture do not.
    pub charged_bytes: u64,
    /// What they are for, with the options that say how many.
    pub what: &'a str,
    /// How to ask for less.
    pub advice: &'a str,
}

/// Compares it with what is available, and with the limit of this process's control group.
pub fn memory(host: &Host, asked: &MemoryUse) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(available) = available_bytes(host) {
        let text = format!(
            "{} for {}, of {} available",
            format_bytes(asked.bytes),
            asked.what,
            format_bytes(available)
        );
        findings.push(if asked.bytes > available {
            Finding::problem("memory", text, asked.advice)
        } else if asked.bytes > available / 2 {
            Finding::warning("memory", format!("{text}: more than half of it"), asked.advice)
        } else {
            Finding::ok("memory", text)
        });
    }
    if let Some(limit) = group_limit_bytes(host)
        && asked.charged_bytes > limit / 10 * 9
    {
        let text = format!(
            "the control group may have {} (memory.max), and up to {} of it are asked for: the kernel would end the program",
            format_bytes(limit),
            format_bytes(asked.charged_bytes)
        );
        let advice = format!(
            "{}; or raise the limit (MemoryMax= of the service, or that of the container)",
            asked.advice
        );
        findings.push(Finding::problem("memory", text, advice));
    }
    findings
}

/// What programs can have without anything being swapped out (MemAvailable, proc_meminfo(5)).
fn available_bytes(host: &Host) -> Option<u64> {
    let text = host.text("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The least limit of the control groups (version 2) that this process is in.
fn group_limit_bytes(host: &Host) -> Option<u64> {
    let text = host.text("/proc/self/cgroup")?;
    let group = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mut path = group.trim_matches('/');
    let mut least = None;
    loop {
        let limit: Option<u64> = host.number(&format!("/sys/fs/cgroup/{path}/memory.max")); // `max` is no number
        least = [least, limit].into_iter().flatten().min();
        if path.is_empty() {
            return least;
        }
        path = path.rsplit_once('/').map_or("", |(above, _)| above);
    }
}

#[cfg(test)]
mod tests {
    use super::super::for_tests::text;
    use super::*;

    #[test]
    fn what_is_asked_for_is_compared_with_what_there_is() {
        let root = tempfile::tempdir().expect("a directory");
        let write = |path: &str, content: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("not the root")).expect("made");
            std::fs::write(path, content).expect("written");
        };
        let found = |mib: u64| {
            let asked = MemoryUse {
                bytes: mib << 20,
                charged_bytes: mib << 19,
                what: "--memory",
                advice: "a smaller --memory",
            };
            text(&memory(&Host::at(root.path()), &asked))
        };
        assert_eq!(found(1), "", "nothing is known");
        write("proc/meminfo", "MemTotal:  4096000 kB\nMemAvailable:    1048576 kB\n");
        assert_eq!(found(100), "ok memory: 100.0 MiB for --memory, of 1.0 GiB available\n");
        assert!(found(600).starts_with("warning memory: 600.0 MiB"), "{}", found(600));
        assert!(
            found(1025).starts_with("problem memory: ") && found(1025).ends_with("-> a smaller --memory\n")
        );
        write("proc/self/cgroup", "0::/system.slice/a.service\n");
        write("sys/fs/cgroup/system.slice/a.service/memory.max", "max\n");
        assert_eq!(found(100).lines().count(), 1);
        write("sys/fs/cgroup/system.slice/memory.max", "41943040\n");
        assert!(found(100).contains("may have 40.0 MiB"), "{}", found(100));
        assert_eq!(found(20).lines().count(), 1);
    }
}
