//! The kernel: whether it has what is needed, and what is known to be wrong with some.

use std::time::Duration;

use wire::doctor::{Finding, Host};

use crate::args::{Args, Fanout};

/// The first that does not lose packets of TPACKET_V3 rings while they are polled.
const LEAST: Release = (3, 19, 0);
/// Releases whose hash of a flow differs by direction, first and last. Both ends were fixed in stable releases.
const ASYMMETRIC: [(Release, Release); 2] = [((4, 3, 0), (4, 4, 15)), ((4, 5, 0), (4, 6, 4))];
/// The first whose timer of a block is exact, not in ticks of up to 10 ms.
const EXACT_TIMER: Release = (6, 18, 0);
/// Below this the block timeout is about as long as a tick.
const TICK: Duration = Duration::from_millis(10);

type Release = (u32, u32, u32);

/// Judges the running kernel.
pub fn check(host: &Host, args: &Args) -> Vec<Finding> {
    let Some(shown) = host.text("/proc/sys/kernel/osrelease") else { return Vec::new() };
    let mut findings = Vec::new();
    let Some(release) = parse(&shown) else {
        return vec![Finding::note("kernel", format!("{shown}: a release that is not known"))];
    };
    if release < LEAST {
        findings.push(Finding::problem(
            "kernel",
            format!("Linux {shown}: rings of version 3 lose packets before 3.19"),
            "upgrade the kernel",
        ));
    } else {
        findings.push(Finding::ok("kernel", format!("Linux {shown}")));
    }
    let is_asymmetric = ASYMMETRIC.iter().any(|(first, last)| (*first..=*last).contains(&release));
    if is_asymmetric && args.cores.len() > 1 && args.fanout == Fanout::Hash {
        findings.push(Finding::warning(
            "kernel",
            format!(
                "Linux {shown}: --fanout hash parts the two directions of a flow (fixed in 4.4.16 and 4.6.5)"
            ),
            "upgrade the kernel, or do without flows that stay together: --fanout cpu",
        ));
    }
    if args.block_timeout < TICK && release < EXACT_TIMER && args.read.is_none() {
        findings.push(Finding::note(
            "kernel",
            format!(
                "--block-timeout {:?}: before Linux 6.18 it is rounded up to ticks of 1 to 10 ms",
                args.block_timeout
            ),
        ));
    }
    findings.extend(confinement(host));
    findings
}

/// What the sniffer locks itself in with.
fn confinement(host: &Host) -> Option<Finding> {
    let status = host.text("/proc/self/status")?;
    let has_seccomp = status.lines().any(|line| line.starts_with("Seccomp:"));
    // The list is readable to root alone on some, and not mounted in containers: then nothing is known.
    let modules = host.text("/sys/kernel/security/lsm");
    let has_landlock = modules.as_ref().map(|modules| modules.split(',').any(|one| one == "landlock"));
    let lacking: Vec<&str> = [("seccomp", has_seccomp), ("landlock", has_landlock.unwrap_or(true))]
        .into_iter()
        .filter_map(|(name, is_there)| (!is_there).then_some(name))
        .collect();
    if lacking.is_empty() {
        return None;
    }
    Some(Finding::warning(
        "kernel",
        format!(
            "no {}: what a packet could make this program do would be confined less",
            lacking.join(", no ")
        ),
        "start the kernel with lsm=landlock,... before what /sys/kernel/security/lsm has, or run it as the service of \
         systemd, which confines it too",
    ))
}

/// `6.18.44-generic` as numbers.
fn parse(text: &str) -> Option<Release> {
    let numbers = text.split(|one: char| !one.is_ascii_digit() && one != '.').next()?;
    let mut parts = numbers.split('.').map(str::parse);
    let mut next = || parts.next().and_then(Result::ok);
    Some((next()?, next()?, next().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Tree, args, text};
    use super::*;

    #[test]
    fn releases_are_judged() {
        for (release, line, expected) in [
            ("6.18.44-fc-v657", "-i a", "Ok kernel: Linux 6.18.44-fc-v657\n"),
            (
                "3.10.0-1160.el7.x86_64",
                "-i a",
                "Problem kernel: Linux 3.10.0-1160.el7.x86_64: rings of version 3 lose",
            ),
            ("3.19.0", "-i a", "Ok kernel: Linux 3.19.0\n"),
            ("4.4.15", "-i a --cores 0,1", "Warning kernel: Linux 4.4.15: --fanout hash parts"),
            ("4.4.15", "-i a --cores 0,1 --fanout cpu", "Ok kernel: Linux 4.4.15\n"),
            ("4.4.16", "-i a --cores 0,1", "Ok kernel: Linux 4.4.16\n"),
            ("4.5", "-i a --cores 0,1", "--fanout hash parts"),
            ("6.17.3", "-i a --block-timeout 1ms", "--block-timeout 1ms: before Linux 6.18"),
            ("odd", "-i a", "Note kernel: odd: a release that is not known\n"),
        ] {
            let tree = Tree::new(&[("proc/sys/kernel/osrelease", release)]);
            let found = text(&check(&tree.host(), &args(line)));
            assert!(found.contains(expected), "{release}: {found}");
            if expected.starts_with("Ok") {
                assert_eq!(found, expected, "{release}");
            }
        }
    }

    #[test]
    fn what_it_cannot_be_locked_in_with_is_told() {
        let tree = Tree::new(&[
            ("proc/sys/kernel/osrelease", "6.18.1"),
            ("proc/self/status", "Name: x\nSeccomp:\t0\n"),
        ]);
        let found = || text(&check(&tree.host(), &args("-i a")));
        assert_eq!(found().lines().count(), 1, "what is not known is not said");
        tree.write("sys/kernel/security/lsm", "lockdown,capability,landlock,yama");
        assert_eq!(found().lines().count(), 1);
        tree.write("sys/kernel/security/lsm", "lockdown,capability,yama");
        assert!(found().contains("Warning kernel: no landlock: "), "{}", found());
    }
}
