//! Cores: where the NIC's queues and interrupts land against --cores, what node of memory they are on, how fast they run.

use std::collections::BTreeSet;

use wire::doctor::{Finding, Host};

use super::interfaces::speed_text;
use crate::args::{Args, Fanout};
use crate::interfaces::InterfaceInfo;

/// From this speed on one thread that the kernel moves about may not be enough, in bits a second.
const FAST_BITS: u64 = 10_000_000_000;

/// What is to be said of the CPUs by themselves.
pub fn check(host: &Host, args: &Args, links: &[InterfaceInfo]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let fastest = links.iter().filter_map(|link| link.speed_bits).max().unwrap_or(0);
    let online = host.list("/sys/devices/system/cpu/online").unwrap_or_default();
    if args.cores.is_empty() {
        if fastest >= FAST_BITS && online.len() > 1 {
            findings.push(
                Finding::note("cores", format!("one thread, not pinned, for up to {}", speed_text(fastest)))
                    .advise("--cores LIST has a thread and a ring of each interface on each of these CPUs"),
            );
        }
    } else {
        let text = format!("a capture thread on each of CPU {}", numbers(&args.cores));
        let is_one_left = online.is_empty() || online.iter().any(|cpu| !args.cores.contains(cpu));
        findings.push(match is_one_left {
            true => Finding::ok("cores", text),
            false => Finding::warning(
                "cores",
                format!("{text}: none is left for interrupts, for sending and for the spool"),
                "leave at least one CPU out of --cores",
            ),
        });
    }
    let slow: Vec<usize> = args
        .cores
        .iter()
        .copied()
        .filter(|core| {
            let path = format!("/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor");
            host.text(&path).as_deref() == Some("powersave")
        })
        .collect();
    if !slow.is_empty() {
        findings.push(Finding::warning(
            "cores",
            format!("CPU {}: governor powersave, so a burst meets a slow core", numbers(&slow)),
            format!("cpupower -c {} frequency-set -g performance", numbers(&slow)),
        ));
    }
    findings.extend(softnet(host));
    findings
}

/// What the kernel dropped between the NIC and everybody, since the host was started (column 2, hexadecimal).
fn softnet(host: &Host) -> Option<Finding> {
    let table = host.text("/proc/net/softnet_stat")?;
    let dropped =
        |line: &str| line.split_whitespace().nth(1).and_then(|text| u64::from_str_radix(text, 16).ok());
    let dropped: u64 = table.lines().filter_map(dropped).fold(0, u64::saturating_add);
    (dropped > 0).then(|| {
        Finding::warning(
            "cores",
            format!("{dropped} packets did not fit the kernel's queues (softnet) since the host was started"),
            "spread the load over more CPUs, or: sysctl -w net.core.netdev_max_backlog=10000; /proc/net/softnet_stat \
             tells whether it goes on",
        )
    })
}

/// What is to be said of an interface's queues beside --cores.
pub fn check_interface(host: &Host, name: &str, args: &Args) -> Vec<Finding> {
    let subject = format!("interface {name}");
    let mut findings = Vec::new();
    findings.extend(queues(host, &subject, name, args));
    findings.extend(interrupts(host, &subject, name, args));
    findings.extend(node(host, &subject, name, args));
    findings
}

/// `cpu` and `qm` deal out what the NIC or RPS has spread already.
fn queues(host: &Host, subject: &str, name: &str, args: &Args) -> Option<Finding> {
    let directory = format!("/sys/class/net/{name}/queues");
    let queues: Vec<String> =
        host.names(&directory).into_iter().filter(|one| one.starts_with("rx-")).collect();
    if queues.len() != 1 || args.cores.len() < 2 || !matches!(args.fanout, Fanout::Cpu | Fanout::Qm) {
        return None;
    }
    let mask = host.text(&format!("{directory}/rx-0/rps_cpus")).unwrap_or_default();
    let is_spread = mask
        .chars()
        .filter(|one| *one != ',')
        .filter_map(|one| one.to_digit(16))
        .map(u32::count_ones)
        .sum::<u32>()
        > 1;
    if is_spread && args.fanout == Fanout::Cpu {
        return None;
    }
    Some(Finding::warning(
        subject,
        format!("one receive queue, so this fan-out gives everything to one of {} rings", args.cores.len()),
        format!(
            "--fanout hash; or spread it (RPS): echo {:x} > {directory}/rx-0/rps_cpus, with --fanout cpu",
            mask_of(&args.cores)
        ),
    ))
}

/// Where the NIC interrupts. A core that does both is busy with interrupts just when the ring fills.
fn interrupts(host: &Host, subject: &str, name: &str, args: &Args) -> Vec<Finding> {
    let given: Vec<String> = host.names(&interrupt_directory(host, name));
    let active: Vec<String> = match given.is_empty() {
        true => named(host, name),
        false => given.into_iter().filter(|number| host.has(&format!("/proc/irq/{number}"))).collect(),
    };
    let place = |number: &String| {
        let list = |file: &str| host.list(&format!("/proc/irq/{number}/{file}"));
        // Where it goes now; on older kernels, where it may go.
        Some((
            number.clone(),
            list("effective_affinity_list")
                .filter(|cpus| !cpus.is_empty())
                .or_else(|| list("smp_affinity_list"))?,
        ))
    };
    let places: Vec<(String, Vec<usize>)> = active.iter().filter_map(place).collect();
    if places.is_empty() {
        return Vec::new();
    }
    let cpus: BTreeSet<usize> = places.iter().flat_map(|(_, cpus)| cpus.iter().copied()).collect();
    let all = numbers(&cpus.iter().copied().collect::<Vec<_>>());
    let shared: Vec<&(String, Vec<usize>)> =
        places.iter().filter(|(_, cpus)| cpus.iter().any(|cpu| args.cores.contains(cpu))).collect();
    let mut findings = Vec::new();
    if shared.is_empty() {
        findings.push(Finding::ok(subject, format!("interrupts on CPU {all}")));
    } else {
        let free: Vec<usize> = host
            .list("/sys/devices/system/cpu/online")
            .unwrap_or_default()
            .into_iter()
            .filter(|cpu| !args.cores.contains(cpu))
            .collect();
        let which: Vec<&str> = shared.iter().map(|(number, _)| number.as_str()).collect();
        let advice = match free.is_empty() {
            true => "leave a CPU for them: fewer --cores".to_owned(),
            false => format!(
                "other --cores; or send them elsewhere: for irq in {}; do echo {} > /proc/irq/$irq/smp_affinity_list; done",
                which.join(" "),
                numbers(&free)
            ),
        };
        let text = format!("interrupts {} land on CPU {all}, where captures are pinned", which.join(", "));
        findings.push(Finding::warning(subject, text, advice));
        if !host.running(&["irqbalance"]).is_empty() {
            let text = "irqbalance runs: it moves interrupts to the CPUs of the capture at any time";
            let advice = format!(
                "systemctl disable --now irqbalance, or IRQBALANCE_BANNED_CPULIST={}",
                numbers(&args.cores)
            );
            findings.push(Finding::warning(subject, text, advice));
        }
    }
    findings
}

/// The directory that has the interrupts of a NIC on a bus. A device of virtio has none of its own: that around it has.
fn interrupt_directory(host: &Host, name: &str) -> String {
    let device = format!("/sys/class/net/{name}/device");
    let place = host.path(&device).canonicalize().unwrap_or_default();
    let is_virtual = place.file_name().is_some_and(|last| last.to_string_lossy().starts_with("virtio"));
    if is_virtual { format!("{device}/../msi_irqs") } else { format!("{device}/msi_irqs") }
}

/// Interrupts that bear the interface's name: `eth0`, `eth0-TxRx-3`.
fn named(host: &Host, name: &str) -> Vec<String> {
    let table = host.text("/proc/interrupts").unwrap_or_default();
    let of_line = |line: &str| {
        let (number, rest) = line.trim_start().split_once(':')?;
        let last = rest.split_whitespace().last()?;
        let is_it = last == name || last.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'));
        (is_it && number.bytes().all(|byte| byte.is_ascii_digit())).then(|| number.to_owned())
    };
    table.lines().filter_map(of_line).collect()
}

/// Memory of a ring comes from the node of the core that makes it; the NIC writes to its own.
fn node(host: &Host, subject: &str, name: &str, args: &Args) -> Option<Finding> {
    let node: usize = host.number(&format!("/sys/class/net/{name}/device/numa_node"))?; // -1: it has none
    let near = host.list(&format!("/sys/devices/system/node/node{node}/cpulist"))?;
    let far: Vec<usize> = args.cores.iter().copied().filter(|core| !near.contains(core)).collect();
    if args.cores.is_empty() {
        return None;
    }
    Some(match far.is_empty() {
        true => Finding::ok(subject, format!("on NUMA node {node}, as the capture threads are")),
        false => Finding::warning(
            subject,
            format!(
                "on NUMA node {node}, and CPU {} on another: every packet crosses between them",
                numbers(&far)
            ),
            format!("choose --cores of {}", numbers(&near)),
        ),
    })
}

/// `0-2,5`
fn numbers(all: &[usize]) -> String {
    let mut sorted = all.to_vec();
    sorted.sort_unstable();
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for number in sorted {
        match ranges.last_mut() {
            Some((_, last)) if number <= *last + 1 => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let text = |(first, last): &(usize, usize)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.iter().map(text).collect::<Vec<_>>().join(",")
}

/// The CPUs as a mask, as far as 64 go.
fn mask_of(cores: &[usize]) -> u64 {
    cores.iter().filter(|core| **core < 64).fold(0, |mask, core| mask | 1 << core)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Tree, args, text};
    use super::*;

    #[test]
    fn interrupts_belong_elsewhere() {
        let tree = Tree::new(&[
            ("sys/devices/system/cpu/online", "0-3"),
            (
                "proc/interrupts",
                "           CPU0 CPU1\n 24:  5 6 PCI-MSI 1-edge  eth0-TxRx-0\n 25: 5 6 PCI-MSI 2-edge eth0-TxRx-1\n \
                 26: 1 2 PCI-MSI 3-edge eth01-TxRx-0\nNMI: 0 0 Non-maskable\n",
            ),
            ("proc/irq/24/effective_affinity_list", "1\n"),
            ("proc/irq/24/smp_affinity_list", "0-3\n"),
            ("proc/irq/25/smp_affinity_list", "0\n"),
            ("proc/irq/26/smp_affinity_list", "2\n"),
        ]);
        let found = |line: &str| text(&check_interface(&tree.host(), "eth0", &args(line)));
        assert_eq!(found("-i eth0"), "Ok interface eth0: interrupts on CPU 0-1\n");
        assert_eq!(found("-i eth0 --cores 2,3"), found("-i eth0"));
        let shared = found("-i eth0 --cores 1,2");
        assert!(shared.contains("Warning interface eth0: interrupts 24 land on CPU 0-1"), "{shared}");
        assert!(shared.contains("for irq in 24; do echo 0,3 > /proc/irq/$irq/smp_affinity_list"), "{shared}");
        assert!(!shared.contains("irqbalance"));
        tree.write("proc/9/comm", "irqbalance\n");
        assert!(found("-i eth0 --cores 1,2").contains("IRQBALANCE_BANNED_CPULIST=1-2"));
    }

    #[test]
    fn interrupts_of_virtual_devices_are_found_around_them() {
        let tree = Tree::new(&[
            ("sys/devices/pci/msi_irqs/37", "msix"),
            ("sys/devices/pci/virtio2/net", ""),
            ("sys/class/net/eth0/mtu", "1500"),
            ("proc/irq/37/effective_affinity_list", "1\n"),
        ]);
        let device = tree.host().path("/sys/class/net/eth0/device");
        std::os::unix::fs::symlink(tree.host().path("/sys/devices/pci/virtio2"), device).expect("made");
        let found = |line: &str| text(&check_interface(&tree.host(), "eth0", &args(line)));
        assert_eq!(found("-i eth0"), "Ok interface eth0: interrupts on CPU 1\n");
        assert!(found("-i eth0 --cores 1").contains("interrupts 37 land on CPU 1"));
    }

    #[test]
    fn one_queue_feeds_one_ring() {
        let tree = Tree::new(&[("sys/class/net/eth0/queues/rx-0/rps_cpus", "0,00000000")]);
        let found = |line: &str| text(&check_interface(&tree.host(), "eth0", &args(line)));
        let one = found("-i eth0 --cores 1,2 --fanout cpu");
        assert!(
            one.contains("everything to one of 2 rings -> --fanout hash; or spread it (RPS): echo 6 >"),
            "{one}"
        );
        assert_eq!(found("-i eth0 --cores 1,2"), "");
        assert_eq!(found("-i eth0 --cores 1 --fanout cpu"), "");
        tree.write("sys/class/net/eth0/queues/rx-0/rps_cpus", "0,00000006");
        assert_eq!(found("-i eth0 --cores 1,2 --fanout cpu"), "");
        assert!(found("-i eth0 --cores 1,2 --fanout qm").contains("--fanout hash"), "RPS makes no queues");
        tree.write("sys/class/net/eth0/queues/rx-1/rps_cpus", "0");
        assert_eq!(found("-i eth0 --cores 1,2 --fanout qm"), "");
    }

    #[test]
    fn memory_is_near_or_far() {
        let tree = Tree::new(&[
            ("sys/class/net/eth0/device/numa_node", "1\n"),
            ("sys/devices/system/node/node1/cpulist", "8-15\n"),
        ]);
        let found = |line: &str| text(&check_interface(&tree.host(), "eth0", &args(line)));
        assert!(found("-i eth0 --cores 8,9").starts_with("Ok interface eth0: on NUMA node 1"));
        assert!(
            found("-i eth0 --cores 7,8").contains("and CPU 7 on another"),
            "{}",
            found("-i eth0 --cores 7,8")
        );
        assert!(found("-i eth0 --cores 7,8").contains("-> choose --cores of 8-15"));
        assert_eq!(found("-i eth0"), "");
        tree.write("sys/class/net/eth0/device/numa_node", "-1\n");
        assert_eq!(found("-i eth0 --cores 7,8"), "");
    }

    #[test]
    fn cores_are_judged_by_themselves() {
        let tree = Tree::new(&[
            ("sys/devices/system/cpu/online", "0-3"),
            ("sys/devices/system/cpu/cpu2/cpufreq/scaling_governor", "powersave\n"),
            ("sys/devices/system/cpu/cpu3/cpufreq/scaling_governor", "performance\n"),
            ("proc/net/softnet_stat", "00001000 00000000 0\n00001000 0000000a 0\n"),
        ]);
        let fast = [super::super::interfaces::tests::link()];
        let found = |line: &str| text(&check(&tree.host(), &args(line), &fast));
        assert!(found("-i eth0").starts_with("Note cores: one thread, not pinned, for up to 10 Gbit/s"));
        let pinned = found("-i eth0 --cores 2,3");
        assert!(pinned.starts_with("Ok cores: a capture thread on each of CPU 2-3\n"), "{pinned}");
        assert!(pinned.contains("-> cpupower -c 2 frequency-set"), "{pinned}");
        assert!(pinned.contains("10 packets did not fit"), "{pinned}");
        assert!(
            found("-i eth0 --cores 0,1,2,3")
                .starts_with("Warning cores: a capture thread on each of CPU 0-3: none")
        );
    }
}
