//! Memory: that of the rings, which the kernel cannot swap out, and that of what waits.

use wire::doctor::{Finding, Host, MemoryUse, memory};
use wire::units::format_bytes;

use crate::args::Args;

/// What these options ask for on so many interfaces.
pub fn check(host: &Host, args: &Args, interface_count: usize) -> Vec<Finding> {
    let rings = if args.read.is_some() { 0 } else { interface_count * args.cores.len().max(1) };
    let ring_bytes = (args.ring_size as u64).saturating_mul(rings as u64);
    let what = match rings {
        0 => format!("packed blocks ({}, --memory)", format_bytes(args.memory as u64)),
        1 => format!(
            "one ring ({}, --ring-size) and packed blocks ({}, --memory)",
            format_bytes(ring_bytes),
            format_bytes(args.memory as u64)
        ),
        _ => format!(
            "{rings} rings of {} ({}, --ring-size) and packed blocks ({}, --memory)",
            format_bytes(args.ring_size as u64),
            format_bytes(ring_bytes),
            format_bytes(args.memory as u64)
        ),
    };
    let asked = MemoryUse {
        bytes: ring_bytes.saturating_add(args.memory as u64),
        charged_bytes: args.memory as u64, // rings count against no control group
        what: &what,
        advice: "a smaller --ring-size or --memory, fewer --cores, or fewer interfaces",
    };
    memory(host, &asked)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Tree, args, text};
    use super::*;

    #[test]
    fn rings_are_multiplied() {
        let tree = Tree::new(&[("proc/meminfo", "MemAvailable: 1048576 kB\n")]);
        let found = |line: &str, count| text(&check(&tree.host(), &args(line), count));
        assert!(
            found("-i a", 1)
                .starts_with("Ok memory: 320.0 MiB for one ring (64.0 MiB, --ring-size) and packed")
        );
        let many = found("-i a -i b --cores 0,1 --ring-size 256MiB", 2);
        assert!(
            many.starts_with("Problem memory: 1.2 GiB for 4 rings of 256.0 MiB (1.0 GiB, --ring-size)"),
            "{many}"
        );
        assert!(found("--read x", 0).starts_with("Ok memory: 256.0 MiB for packed blocks"));
        // A limit of the control group does not count rings.
        tree.write("proc/self/cgroup", "0::/a\n");
        tree.write("sys/fs/cgroup/a/memory.max", &(300_u64 << 20).to_string());
        assert_eq!(found("-i a", 1).lines().count(), 1);
        assert!(found("-i a --memory 280MiB", 1).contains("may have 300.0 MiB (memory.max)"));
    }
}
