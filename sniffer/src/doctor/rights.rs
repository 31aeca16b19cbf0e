//! What the user who starts it may do, and the library that filters need.

use std::path::Path;

use caps::{CapSet, Capability};
use nix::unistd::{AccessFlags, eaccess, geteuid};
use wire::doctor::Finding;

use crate::args::Args;
use crate::fleet::Filters;
use crate::text;

const INSTALL: &str = "install it: apt install libpcap0.8, or dnf install libpcap";

/// Whether rings can be opened and the filter compiled.
pub fn check(args: &Args) -> Vec<Finding> {
    let mut findings = Vec::new();
    if args.read.is_none() {
        let permitted = caps::read(None, CapSet::Permitted).unwrap_or_default();
        let others = permitted.iter().any(|one| *one != Capability::CAP_NET_RAW);
        findings.push(capture(permitted.contains(&Capability::CAP_NET_RAW), others, geteuid().as_raw()));
    }
    if let Some(filter) = args.filter.as_deref().filter(|filter| !filter.trim().is_empty()) {
        findings.push(judge_filter(filter, args.snaplen));
    } else if bpf::library_version().is_none() {
        findings.push(Finding::note("filter", "no libpcap can be opened; -f would need it").advise(INSTALL));
    }
    findings
}

fn capture(has_raw: bool, has_others: bool, uid: u32) -> Finding {
    if !has_raw {
        let program = std::env::current_exe().map_or("sniffer".to_owned(), |path| path.display().to_string());
        return Finding::problem(
            "permissions",
            format!("uid {uid} has no CAP_NET_RAW here, so no ring can be opened"),
            format!(
                "run it as root, or once: setcap cap_net_raw+ep {program}; as a service: \
                 AmbientCapabilities=CAP_NET_RAW; in a container: --cap-add NET_RAW"
            ),
        );
    }
    let what =
        if has_others { "CAP_NET_RAW, and gives up what else it has" } else { "CAP_NET_RAW and no more" };
    Finding::ok("permissions", format!("uid {uid} has {what}"))
}

fn judge_filter(filter: &str, snaplen: u32) -> Finding {
    let version = bpf::library_version();
    match (Filters::compile(Some(filter), snaplen).fault(), version) {
        (_, None) => {
            Finding::problem("filter", "-f needs libpcap, and none can be opened".to_owned(), INSTALL)
        }
        (Some(fault), _) => {
            Finding::problem("filter", text(&*fault), "correct -f; pcap-filter(7) tells what can be written")
        }
        (None, Some(version)) => Finding::ok("filter", format!("compiled by {version}")),
    }
}

/// Whether the file of --read can be read.
pub fn file(path: &Path) -> Finding {
    if path.as_os_str() == "-" {
        return Finding::ok("file", "--read -: standard input");
    }
    let shown = path.display();
    match eaccess(path, AccessFlags::R_OK) {
        Ok(()) => Finding::ok("file", format!("--read {shown}: can be read")),
        Err(errno) => {
            let why = wire::text::io_text(&errno.into());
            Finding::problem(
                "file",
                format!("--read {shown}: {why}"),
                "correct the name, or let this user read it",
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::text;
    use super::*;

    #[test]
    fn the_one_right_is_asked_for() {
        let found = |raw, others| text(&[capture(raw, others, 1000)]);
        assert!(found(true, false).starts_with("Ok permissions: uid 1000 has CAP_NET_RAW and no more"));
        assert!(found(true, true).contains("gives up"));
        let missing = found(false, true);
        assert!(
            missing.starts_with("Problem permissions: uid 1000") && missing.contains("setcap"),
            "{missing}"
        );
    }

    #[test]
    fn a_filter_and_a_file_are_looked_at() {
        assert!(text(&[judge_filter("port 53", 65_535)]).starts_with("Ok filter: compiled by libpcap"));
        assert!(text(&[judge_filter("prot 53", 65_535)]).starts_with("Problem filter: "));
        assert!(text(&[file(Path::new("/nowhere/x.pcap"))]).contains("/nowhere/x.pcap: no such file"));
        assert!(text(&[file(Path::new("/proc/self/stat"))]).starts_with("Ok file"));
    }
}
