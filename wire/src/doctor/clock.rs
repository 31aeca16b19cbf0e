//! The clock: whether something keeps it right, and what it costs to read it.

use super::{Finding, Host};

/// Programs that keep a clock right, by the name the kernel knows.
const KEEPERS: [&str; 6] = ["chronyd", "ntpd", "systemd-timesyn", "ptp4l", "phc2sys", "VBoxService"];
/// Clock sources that are read without leaving the program (vDSO), or nearly as fast.
const FAST_SOURCES: [&str; 6] =
    ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "xen", "arch_sys_counter", "timebase"];

/// Packets have this host's time, and certificates and tokens are measured by it. Nothing is found where the system does
/// not say.
pub fn clock(host: &Host) -> Vec<Finding> {
    let mut findings = Vec::new();
    if host.has("/proc/self") {
        findings.push(keeper(host));
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

fn keeper(host: &Host) -> Finding {
    let keepers = host.running(&KEEPERS);
    let by_timesyncd_alone = keepers == ["systemd-timesyn"];
    let names: Vec<&str> = keepers
        .iter()
        .map(|name| if *name == "systemd-timesyn" { "systemd-timesyncd" } else { name })
        .collect();
    if by_timesyncd_alone && !host.has("/run/systemd/timesync/synchronized") {
        return Finding::warning(
            "clock",
            "systemd-timesyncd runs, and has not been synchronised since it was started",
            "timedatectl timesync-status says with which server it speaks; UDP port 123 must be open to it",
        );
    }
    if names.is_empty() {
        return Finding::warning(
            "clock",
            "nothing that keeps this clock right was found running: times of packets from several hosts will not agree",
            "install and start chrony (Debian: apt install chrony); where the host of a virtual machine keeps it, compare \
             with the clock of the relay",
        );
    }
    let how = if names.contains(&"chronyd") { "; chronyc tracking says how well" } else { "" };
    Finding::ok("clock", format!("kept by {}{how}", names.join(", ")))
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
        for (files, expected) in [
            (vec![base, ("proc/9/comm", "chronyd")], "ok clock: kept by chronyd; chronyc"),
            (vec![base], "warning clock: nothing that keeps"),
            (vec![base, ("proc/9/comm", "systemd-timesyn")], "has not been synchronised"),
            (
                vec![base, ("proc/9/comm", "systemd-timesyn"), ("run/systemd/timesync/synchronized", "")],
                "ok clock: kept by systemd-timesyncd\n",
            ),
            (vec![base, (source, "hpet\n")], "warning clock: clock source hpet"),
        ] {
            let (_root, host) = host(&files);
            let found = text(&clock(&host));
            assert!(found.contains(expected), "{files:?}: {found}");
        }
        let (_root, fast) = host(&[(source, "tsc\n")]);
        assert_eq!(clock(&fast), [], "nothing is known of who keeps it");
    }
}
