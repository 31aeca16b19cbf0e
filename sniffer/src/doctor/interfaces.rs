//! The interfaces: there, up, of a kind that can be captured; what they dropped so far, and who else captures.

use wire::doctor::{Finding, Host};

use crate::args::Args;
use crate::interfaces::{self, InterfaceInfo};

/// Of an Ethernet header with two VLAN tags.
const LINK_HEADER_BYTES: u32 = 22;
/// A busy host may not let a thread run for so long.
const RING_MS: u64 = 50;
/// In /proc/net/packet: SOCK_RAW, SOCK_DGRAM as packet sockets have them.
const SOCKET_TYPES: [&str; 2] = ["3", "2"];

/// The interfaces that these options mean: those named, or all; what is said of those that are not there.
pub fn links(args: &Args, findings: &mut Vec<Finding>) -> Vec<InterfaceInfo> {
    let all = match interfaces::list() {
        Ok(all) => all,
        Err(error) => {
            let text = format!("they cannot be listed: {error}");
            findings.push(Finding::problem("interfaces", text, "look at what confines this program"));
            return Vec::new();
        }
    };
    if args.interface.is_empty() || args.interface.iter().any(|name| name == "any") {
        if args.interface.is_empty() {
            findings
                .push(Finding::note("interfaces", "none is named (-i), so those that are up are looked at"));
        }
        return all.into_iter().filter(|one| one.up && one.link_type.is_some()).collect();
    }
    let mut found = Vec::new();
    for name in &args.interface {
        match all.iter().find(|one| one.name == *name) {
            Some(link) => found.push(link.clone()),
            None => findings.push(missing(name, args.wait, &all)),
        }
    }
    found
}

fn missing(name: &str, is_waited_for: bool, all: &[InterfaceInfo]) -> Finding {
    let names = all.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", ");
    let text = format!("no such device; there are {names}");
    let subject = format!("interface {name}");
    match is_waited_for {
        true => Finding::warning(subject, text, "--wait waits for it; correct -i if the name is wrong"),
        false => {
            Finding::problem(subject, text, "correct -i (sniffer -D lists them), or wait for it with --wait")
        }
    }
}

/// What is to be said of one.
pub fn check(host: &Host, link: &InterfaceInfo, args: &Args) -> Vec<Finding> {
    let subject = format!("interface {}", link.name);
    let mut findings = vec![state(&subject, link)];
    let longest = link.mtu.saturating_add(LINK_HEADER_BYTES);
    if args.snaplen < longest {
        let text = format!(
            "--snaplen {} cuts frames, which have up to {longest} bytes (MTU {})",
            args.snaplen, link.mtu
        );
        findings
            .push(Finding::note(&subject, text).advise("leave --snaplen out where whole packets are wanted"));
    }
    findings.extend(ring_time(&subject, link, args));
    if is_foreign(host, link) {
        let text =
            "/sys shows another network namespace, so what the NIC missed and its queues are not known";
        findings.push(
            Finding::note(&subject, text).advise("run it by ip netns exec, which mounts the right one"),
        );
    } else {
        findings.extend(dropped(host, &subject, link));
    }
    findings.extend(others(host, &subject, link.index));
    findings
}

/// Whether what /sys says of this name is about another interface: it shows the namespace that it was mounted in.
pub fn is_foreign(host: &Host, link: &InterfaceInfo) -> bool {
    let shown: Option<u32> = host.number(&format!("/sys/class/net/{}/ifindex", link.name));
    shown.is_some_and(|index| index != link.index)
}

/// Interfaces that are made of others which are captured as well: bridges, bonds, VLANs.
pub fn doubled(host: &Host, links: &[InterfaceInfo]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for link in links.iter().filter(|link| !is_foreign(host, link)) {
        let names = host.names(&format!("/sys/class/net/{}", link.name));
        let lower = names.iter().filter_map(|name| name.strip_prefix("lower_"));
        let both: Vec<&str> = lower.filter(|name| links.iter().any(|other| other.name == *name)).collect();
        if !both.is_empty() {
            let text = format!("its frames come by {} too, and are captured on both: twice", both.join(", "));
            let finding = Finding::note(format!("interface {}", link.name), text);
            findings.push(finding.advise("name with -i those that are wanted"));
        }
    }
    findings
}

/// How long its rings take what comes at full speed while nobody reads them.
fn ring_time(subject: &str, link: &InterfaceInfo, args: &Args) -> Option<Finding> {
    let bytes = (args.ring_size as u64).saturating_mul(args.cores.len().max(1) as u64);
    let ms = bytes.saturating_mul(8_000) / link.speed_bits.filter(|bits| *bits > 0)?;
    (ms < RING_MS).then(|| {
        let text =
            format!("at full speed its rings are full after {ms} ms, if nobody reads them for so long");
        Finding::note(subject, text).advise("a larger --ring-size")
    })
}

fn state(subject: &str, link: &InterfaceInfo) -> Finding {
    let InterfaceInfo { name, mtu, .. } = link;
    if link.link_type.is_none() {
        return Finding::problem(
            subject,
            "frames of a kind that is not known",
            "capture on the interface below it",
        );
    }
    if !link.up {
        return Finding::warning(
            subject,
            "is down: nothing is captured until it is up",
            format!("ip link set {name} up"),
        );
    }
    if !link.running {
        let advice = "look at the cable and at the other end";
        return Finding::warning(
            subject,
            "up, and without a carrier: nothing comes until the other end is up",
            advice,
        );
    }
    let speed = link.speed_bits.map(|bits| format!(", {}", speed_text(bits))).unwrap_or_default();
    let driver = link.hardware.as_ref().map(|hardware| format!(", {hardware}")).unwrap_or_default();
    Finding::ok(subject, format!("up{speed}, MTU {mtu}{driver}"))
}

/// `10 Gbit/s`
pub fn speed_text(bits: u64) -> String {
    if bits.is_multiple_of(1_000_000_000) {
        format!("{} Gbit/s", bits / 1_000_000_000)
    } else {
        format!("{} Mbit/s", bits / 1_000_000)
    }
}

/// What the NIC and its driver threw away before the kernel could count it.
fn dropped(host: &Host, subject: &str, link: &InterfaceInfo) -> Option<Finding> {
    let name = &link.name;
    let counter = |counter: &str| -> u64 {
        host.number(&format!("/sys/class/net/{name}/statistics/{counter}")).unwrap_or(0)
    };
    let lost = counter("rx_missed_errors").saturating_add(counter("rx_fifo_errors"));
    let (nic, received) = (link.nic_ring, counter("rx_packets"));
    let ring =
        nic.map(|ring| format!("; its ring has {} of {} possible places", ring.received, ring.received_max));
    if lost > 0 {
        let advice = match nic {
            Some(ring) if ring.received < ring.received_max => {
                format!("ethtool -G {name} rx {}", ring.received_max)
            }
            _ => format!("more queues on more CPUs, if it has them: ethtool -l {name}"),
        };
        return Some(Finding::warning(
            subject,
            format!(
                "the NIC missed {lost} packets beside {received} received, since it came up{}: nobody could capture them",
                ring.unwrap_or_default()
            ),
            format!(
                "{advice}; ethtool -S {name} tells of which queue they were, and whether it still goes on"
            ),
        ));
    }
    nic.map(|ring| {
        Finding::ok(subject, format!("the NIC missed nothing; its ring has {} places", ring.received))
    })
}

/// Other packet sockets that see this interface (packet(7)); each costs the kernel a copy, or a run of its filter.
fn others(host: &Host, subject: &str, index: u32) -> Option<Finding> {
    let table = host.text("/proc/net/packet")?;
    let sees = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, _, kind, protocol, interface, ..] = fields[..] else { return false };
        let is_all = protocol == "0003"; // ETH_P_ALL
        SOCKET_TYPES.contains(&kind) && is_all && (interface == "0" || interface == index.to_string())
    };
    let count = table.lines().skip(1).filter(sees).count();
    (count > 0).then(|| {
        let plural = if count == 1 { "socket captures" } else { "sockets capture" };
        Finding::note(
            subject,
            format!("{count} other packet {plural} here too, which slows down every packet"),
        )
        .advise("ss -0 -p tells whose they are")
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::testing::{Tree, args, text};
    use super::*;
    use crate::interfaces::{NicRing, Offloads};

    pub fn link() -> InterfaceInfo {
        InterfaceInfo {
            name: "eth0".to_owned(),
            index: 2,
            link_type: Some(1),
            up: true,
            running: true,
            loopback: false,
            mtu: 1500,
            mac: None,
            addresses: Vec::new(),
            driver: Some("ixgbe".to_owned()),
            hardware: Some("ixgbe 0000:3b:00.0".to_owned()),
            speed_bits: Some(10_000_000_000),
            offloads: Offloads::default(),
            nic_ring: Some(NicRing { received: 512, received_max: 4096 }),
        }
    }

    #[test]
    fn a_good_one_is_described() {
        let tree = Tree::new(&[]);
        let found = text(&check(&tree.host(), &link(), &args("-i eth0")));
        assert_eq!(
            found,
            "Ok interface eth0: up, 10 Gbit/s, MTU 1500, ixgbe 0000:3b:00.0\n\
             Ok interface eth0: the NIC missed nothing; its ring has 512 places\n"
        );
    }

    #[test]
    fn what_is_wrong_is_told() {
        let found =
            |link: InterfaceInfo, line: &str| text(&check(&Tree::new(&[]).host(), &link, &args(line)));
        assert!(found(InterfaceInfo { up: false, ..link() }, "-i eth0").contains("-> ip link set eth0 up"));
        assert!(found(InterfaceInfo { running: false, ..link() }, "-i eth0").contains("without a carrier"));
        assert!(found(InterfaceInfo { link_type: None, ..link() }, "-i eth0").starts_with("Problem"));
        assert!(
            found(link(), "-i eth0 -s 96").contains("--snaplen 96 cuts frames, which have up to 1522 bytes")
        );
        assert!(!found(link(), "-i eth0 -s 1522").contains("--snaplen"));
        assert_eq!(speed_text(2_500_000_000), "2500 Mbit/s");
    }

    #[test]
    fn what_the_nic_missed_and_who_else_captures() {
        let tree = Tree::new(&[
            ("sys/class/net/eth0/statistics/rx_missed_errors", "70\n"),
            ("sys/class/net/eth0/statistics/rx_fifo_errors", "7\n"),
            ("sys/class/net/eth0/statistics/rx_packets", "1000\n"),
            (
                "proc/net/packet",
                "sk       RefCnt Type Proto  Iface R Rmem   User   Inode\n\
                 ffff 3 3 0003 2 1 0 0 1\nffff 3 3 0003 0 1 0 0 2\nffff 3 3 0003 9 1 0 0 3\nffff 3 2 88cc 2 1 0 0 4\n",
            ),
        ]);
        let found = text(&check(&tree.host(), &link(), &args("-i eth0")));
        assert!(found.contains("the NIC missed 77 packets beside 1000 received"), "{found}");
        assert!(found.contains("-> ethtool -G eth0 rx 4096; "), "{found}");
        assert!(found.contains("Note interface eth0: 2 other packet sockets capture here too"), "{found}");
        let elsewhere = InterfaceInfo { index: 3, ..link() };
        tree.write("sys/class/net/eth0/ifindex", "2\n");
        assert!(
            text(&check(&tree.host(), &elsewhere, &args("-i eth0"))).contains("another network namespace")
        );
        let full = InterfaceInfo { nic_ring: None, ..link() };
        assert!(text(&check(&tree.host(), &full, &args("-i eth0"))).contains("ethtool -l eth0"));
    }

    #[test]
    fn a_ring_lasts_for_a_time() {
        let fast = InterfaceInfo { speed_bits: Some(25_000_000_000), ..link() };
        let found = |line: &str| text(&check(&Tree::new(&[]).host(), &fast, &args(line)));
        assert!(found("-i eth0").contains("full after 21 ms, if nobody"), "{}", found("-i eth0"));
        assert!(!found("-i eth0 --ring-size 256MiB").contains("full after"));
        assert!(!found("-i eth0 --cores 0,1,2,3").contains("full after"));
    }

    #[test]
    fn who_is_made_of_another_is_told() {
        let tree =
            Tree::new(&[("sys/class/net/br0/lower_eth0/x", ""), ("sys/class/net/br0/lower_eth9/x", "")]);
        let bridge = InterfaceInfo { name: "br0".to_owned(), ..link() };
        let found = text(&doubled(&tree.host(), &[link(), bridge.clone()]));
        assert!(found.starts_with("Note interface br0: its frames come by eth0 too"), "{found}");
        assert_eq!(doubled(&tree.host(), &[bridge]), []);
    }

    #[test]
    fn one_that_is_missing_can_be_waited_for() {
        let found = |wait| text(&[missing("eth7", wait, &[link()])]);
        assert_eq!(
            found(false),
            "Problem interface eth7: no such device; there are eth0 -> correct -i (sniffer -D lists them), or wait for it \
             with --wait\n"
        );
        assert!(found(true).starts_with("Warning interface eth7"));
    }
}
