//! The clock: whether something keeps it right, and what it costs to read it.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Finding, Host};

/// timedatectl answers at once, or somebody it asks does not answer at all.
const ASKED_TIME: Duration = Duration::from_secs(3);
const TICK: Duration = Duration::from_millis(10);
/// Programs that keep a clock right, by the name the kernel knows.
const KEEPERS: [&str; 6] = ["chronyd", "ntpd", "systemd-timesyn", "ptp4l", "phc2sys", "VBoxService"];
/// Clock sources that are read without leaving the program (vDSO), or nearly as fast.
const FAST_SOURCES: [&str; 6] =
    ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "xen", "arch_sys_counter", "timebase"];

/// Packets have this host's time, and certificates and tokens are measured by it. Nothing is found where the system does
/// not say.
pub fn clock(host: &Host) -> Vec<Finding> {
    let has_systemd = host.has("/run/systemd/system"); // as sd_booted(3) tells
    judge(host, if has_systemd { synchronised() } else { None })
}

/// Whether the kernel holds its clock for synchronised (adjtimex(2)), asked of systemd: a call of our own would be an unsafe
/// one. `None` where it does not say.
fn synchronised() -> Option<bool> {
    let mut command = Command::new("timedatectl");
    command.args(["show", "--property=NTPSynchronized", "--value"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    let started = Instant::now();
    while matches!(child.try_wait(), Ok(None)) && started.elapsed() < ASKED_TIME {
        std::thread::sleep(TICK);
    }
    let _ = child.kill(); // it has ended, or is of no use
    let is_good = child.wait().is_ok_and(|status| status.success());
    let mut answer = String::new();
    child.stdout.take()?.read_to_string(&mut answer).ok()?;
    match answer.trim() {
        "yes" if is_good => Some(true),
        "no" if is_good => Some(false),
        _ => None,
    }
}

fn judge(host: &Host, synchronised: Option<bool>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if host.has("/proc/self") {
        findings.push(keeper(host, synchronised));
    }
    if let Some(source) = host.text("/sys/devices/system/clocksource/clocksource0/current_clocksource")
        && !FAST_SOURCES.contains(&source.as_str())
    {
        findings.push(Finding::warning(
            "clock",
            format!("clock source {source}: each time stamp takes microseconds, so fewer packets a second get one"),
            "choose another of /sys/devices/system/clocksource/clocksource0/available_clocksource, tsc if it is there; \
             the kernel's log says why it was left",
        ));
    }
    findings
}

fn keeper(host: &Host, synchronised: Option<bool>) -> Finding {
    let keepers = host.running(&KEEPERS);
    let names = keepers.join(", ").replace("systemd-timesyn", "systemd-timesyncd");
    let told = match keepers[..] {
        // It leaves a file when it has done so; others are asked themselves.
        ["systemd-timesyn"] => synchronised.or(Some(host.has("/run/systemd/timesync/synchronized"))),
        _ => synchronised,
    };
    match (keepers.is_empty(), told) {
        (true, Some(true)) => Finding::ok("clock", "synchronised, says the kernel"),
        (false, Some(true)) => Finding::ok("clock", format!("synchronised, by {names}")),
        (false, None) => {
            Finding::ok("clock", format!("kept by {names}; chronyc tracking, or ntpq -p, says how well"))
        }
        (false, Some(false)) => Finding::warning(
            "clock",
            format!("{names} runs, and the clock is not synchronised"),
            "timedatectl timesync-status, or chronyc sources, says with which server it speaks; UDP port 123 must be open \
             to it",
        ),
        (true, _) => Finding::warning(
            "clock",
            "nothing that keeps this clock right was found running: times of packets from several hosts will not agree",
            "install and start chrony (Debian: apt install chrony); where the host of a virtual machine keeps it, compare \
             with the clock of the relay",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::for_tests::text;
    use super::*;

    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().expect("a directory");
        for (path, content) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("not the root")).expect("made");
            std::fs::write(path, content).expect("written");
        }
        let host = Host::at(root.path());
        (root, host)
    }

    #[test]
    fn whoever_keeps_the_clock_is_named() {
        let (base, source) =
            (("proc/self/comm", "x"), "sys/devices/system/clocksource/clocksource0/current_clocksource");
        let chrony = vec![base, ("proc/9/comm", "chronyd")];
        let timesyncd = vec![base, ("proc/9/comm", "systemd-timesyn")];
        let done = [&timesyncd[..], &[("run/systemd/timesync/synchronized", "")]].concat();
        for (files, synchronised, expected) in [
            (chrony.clone(), None, "ok clock: kept by chronyd; chronyc"),
            (chrony.clone(), Some(true), "ok clock: synchronised, by chronyd\n"),
            (chrony, Some(false), "warning clock: chronyd runs, and the clock is not synchronised"),
            (vec![base], None, "warning clock: nothing that keeps"),
            (vec![base], Some(false), "warning clock: nothing that keeps"),
            (vec![base], Some(true), "ok clock: synchronised, says the kernel\n"),
            (timesyncd, None, "warning clock: systemd-timesyncd runs, and the clock is not"),
            (done.clone(), None, "ok clock: synchronised, by systemd-timesyncd\n"),
            (done, Some(false), "warning clock: systemd-timesyncd runs, and"),
            (vec![base, (source, "hpet\n")], None, "warning clock: clock source hpet"),
        ] {
            let (_root, host) = host(&files);
            let found = text(&judge(&host, synchronised));
            assert!(found.contains(expected), "{files:?}: {found}");
        }
        let (_root, fast) = host(&[(source, "tsc\n")]);
        assert_eq!(judge(&fast, None), [], "nothing is known of who keeps it");
    }
}
