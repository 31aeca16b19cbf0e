//! What the NIC says it dropped before the kernel saw it.

/// Packets dropped by the interface itself since it came up: missed for want of buffers, and
/// overruns. Best effort, from sysfs, as libpcap does; `None` where it does not say.
pub fn interface_drops(name: &str) -> Option<u64> {
    let read = |counter: &str| -> Option<u64> {
        let text = std::fs::read_to_string(format!("/sys/class/net/{name}/statistics/{counter}")).ok()?;
        text.trim().parse().ok()
    };
    let (missed, overruns) = (read("rx_missed_errors"), read("rx_fifo_errors"));
    if missed.is_none() && overruns.is_none() {
        return None;
    }
    Some(missed.unwrap_or(0) + overruns.unwrap_or(0))
}
