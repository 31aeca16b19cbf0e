//! What the system lets a relay have: descriptors, connections that wait, buffers of sockets, CPUs.

use nix::sys::resource::{Resource, getrlimit};
use wire::doctor::{Finding, Host};
use wire::units::format_bytes;

use crate::config::Config;
use crate::descriptors;
use crate::listener::WAITING_MAX;

/// Below this a far client cannot have much under way: 1 Gbit/s over 30 ms.
const SOCKET_BYTES: u64 = 4 << 20;

/// What is to be said of the limits of this process and of its host.
pub fn check(host: &Host, config: &Config) -> Vec<Finding> {
    let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(_, hard)| hard);
    let mut findings = vec![descriptors(hard, config)];
    findings.extend(waiting(host));
    for (file, direction) in [("tcp_wmem", "to a viewer"), ("tcp_rmem", "from a sniffer")] {
        findings.extend(buffers(host, file, direction));
    }
    let cpus = host.list("/sys/devices/system/cpu/online").map_or(usize::MAX, |cpus| cpus.len());
    if config.workers > cpus {
        findings.push(Finding::warning(
            "limits",
            format!("--workers {}, and {cpus} CPUs: they would wait for each other", config.workers),
            format!("--workers {cpus}, or 1: that is enough for tens of Gbit/s"),
        ));
    }
    findings
}

fn descriptors(hard: u64, config: &Config) -> Finding {
    let wanted = descriptors::wanted(config.connections, config.workers);
    if (wanted as u64) > hard {
        let possible = descriptors::possible(hard, config.workers);
        return Finding::warning(
            "limits",
            format!(
                "--connections {}: the limit of descriptors, {hard}, allows {possible}",
                config.connections
            ),
            format!("ulimit -Hn {wanted}, or LimitNOFILE={wanted} in the service; or fewer --connections"),
        );
    }
    Finding::ok("limits", format!("descriptors: {wanted} for --connections {}", config.connections))
}

/// Connections that come at once wait in a queue of this length at most.
fn waiting(host: &Host) -> Option<Finding> {
    let most: u64 = host.number("/proc/sys/net/core/somaxconn")?;
    (most < WAITING_MAX as u64).then(|| {
        Finding::note(
            "limits",
            format!("net.core.somaxconn {most}: of more connections that come at once, some wait a second"),
        )
        .advise(format!("sysctl -w net.core.somaxconn={WAITING_MAX}"))
    })
}

/// The third number is the most that a connection's buffer grows to (tcp(7)).
fn buffers(host: &Host, file: &str, direction: &str) -> Option<Finding> {
    let text = host.text(&format!("/proc/sys/net/ipv4/{file}"))?;
    let numbers: Vec<u64> = text.split_whitespace().map_while(|number| number.parse().ok()).collect();
    let [least, usual, most] = numbers[..] else { return None };
    (most < SOCKET_BYTES).then(|| {
        Finding::note(
            "limits",
            format!(
                "net.ipv4.{file}: at most {} are under way {direction}, which slows down long lines",
                format_bytes(most)
            ),
        )
        .advise(format!("sysctl -w net.ipv4.{file}='{least} {usual} {SOCKET_BYTES}'"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn config(line: &str) -> Config {
        let words = std::iter::once("relay").chain(line.split_whitespace());
        Config::new(&crate::args::Args::try_parse_from(words).expect("parses")).expect("good")
    }

    fn text(findings: &[Finding]) -> String {
        findings.iter().map(|one| format!("{:?} {} -> {:?}\n", one.level, one.text, one.advice)).collect()
    }

    #[test]
    fn a_limit_is_compared_with_what_is_wanted() {
        let config = config("--connections 1000 --workers 2");
        // 64 besides connections, and 4 for each worker.
        let good = text(&[descriptors(1072, &config)]);
        assert!(good.starts_with("Ok descriptors: 1072 for --connections 1000"), "{good}");
        let less = text(&[descriptors(572, &config)]);
        assert!(less.contains("descriptors, 572, allows 500") && less.contains("LimitNOFILE=1072"), "{less}");
    }

    #[test]
    fn what_the_host_says_is_judged() {
        let root = tempfile::tempdir().expect("a directory");
        let write = |path: &str, content: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("not the root")).expect("made");
            std::fs::write(path, content).expect("written");
        };
        let host = Host::at(root.path());
        assert_eq!(check(&host, &config("--workers 8")).len(), 1, "what is not known is not said");
        write("proc/sys/net/core/somaxconn", "128\n");
        write("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t1048576\n");
        write("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456\n");
        write("sys/devices/system/cpu/online", "0-1\n");
        let found = text(&check(&host, &config("--workers 8")));
        assert!(found.contains("sysctl -w net.core.somaxconn=4096"), "{found}");
        assert!(found.contains("sysctl -w net.ipv4.tcp_wmem='4096 16384 4194304'"), "{found}");
        assert!(!found.contains("tcp_rmem") && found.contains("--workers 8, and 2 CPUs"), "{found}");
    }
}
