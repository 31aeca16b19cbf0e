//! The ledger: what was offered, what was delivered, what was lost and at which stage.
//!
//! Totals are cumulative for a stream, so a repeated or a skipped report does no harm.
//! Offered is the kernel's `tp_packets`, drops included: offered = delivered + lost, where the
//! packets that are still under way belong to neither. *Cut* packets were delivered, shortened.
//! What happens *outside* (in the NIC, in softnet) is told beside it and is not in the equation.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where packets were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The ring was full (`tp_drops`).
    KernelRing,
    /// The sniffer's memory was used up while the relay was away or slow, and there was no spool.
    NoBuffer,
    /// The spool was full: its oldest segment made room.
    SpoolEvicted,
    /// The spool could not be written or read.
    SpoolFailed,
    /// The sniffer ended without sending or spooling what it had packed.
    SnifferRestarted,
    /// A worker of the relay was behind.
    WorkerQueue,
    /// The viewer was behind, and its queue at the relay full.
    ViewerQueue,
    /// The viewer was away for longer than the relay keeps blocks.
    ViewerAway,
    /// The relay's memory was used up.
    Budget,
    /// A block failed its checks.
    Corrupt,
    /// The relay was restarted.
    RelayRestarted,
    /// Nothing explains the gap: a defect.
    Unexplained,
}

impl Stage {
    /// The words a person reads.
    pub fn text(self) -> &'static str {
        match self {
            Stage::KernelRing => "kernel ring",
            Stage::NoBuffer => "sniffer memory",
            Stage::SpoolEvicted => "spool evicted",
            Stage::SpoolFailed => "spool failed",
            Stage::WorkerQueue => "worker queue",
            Stage::ViewerQueue => "viewer queue",
            Stage::ViewerAway => "viewer away",
            Stage::Budget => "relay memory",
            Stage::Corrupt => "corrupt",
            Stage::RelayRestarted => "relay restarted",
            Stage::SnifferRestarted => "sniffer restarted",
            Stage::Unexplained => "unexplained",
        }
    }
}

/// Packets and captured bytes lost at one stage; the kernel does not count bytes of its drops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Packets.
    pub packets: u64,
    /// Captured bytes, where known.
    #[serde(default)]
    pub bytes: u64,
}

/// Losses by stage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Losses(pub BTreeMap<Stage, Loss>);

impl Losses {
    /// Adds to a stage.
    pub fn add(&mut self, stage: Stage, packets: u64, bytes: u64) {
        if packets == 0 && bytes == 0 {
            return;
        }
        let loss = self.0.entry(stage).or_default();
        loss.packets = loss.packets.saturating_add(packets);
        loss.bytes = loss.bytes.saturating_add(bytes);
    }

    /// Sets a stage to a cumulative total, which never goes back.
    pub fn raise(&mut self, stage: Stage, packets: u64, bytes: u64) {
        if packets == 0 && bytes == 0 {
            return;
        }
        let loss = self.0.entry(stage).or_default();
        loss.packets = loss.packets.max(packets);
        loss.bytes = loss.bytes.max(bytes);
    }

    /// Packets lost at all stages.
    pub fn packets(&self) -> u64 {
        self.0.values().fold(0, |sum, loss| sum.saturating_add(loss.packets))
    }

    /// Packets lost at one stage.
    pub fn packets_at(&self, stage: Stage) -> u64 {
        self.0.get(&stage).map_or(0, |loss| loss.packets)
    }

    /// `12 kernel ring, 3 viewer queue`, or `none`.
    pub fn text(&self) -> String {
        let texts: Vec<String> = self
            .0
            .iter()
            .filter(|(_, loss)| loss.packets > 0)
            .map(|(stage, loss)| format!("{} {}", loss.packets, stage.text()))
            .collect();
        if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
    }
}

/// Cumulative counters of one interface of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InterfaceTotals {
    /// Packets the kernel's filter let through, drops included (`tp_packets`), or packets read
    /// from the file.
    pub offered: u64,
    /// Packets the kernel dropped because the ring was full (`tp_drops`).
    pub kernel_drops: u64,
    /// Times the ring became full (`tp_freeze_q_cnt`).
    pub freezes: u64,
    /// Packets the interface dropped itself, where it says so. Outside the equation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface_drops: Option<u64>,
}

/// Why nothing could be captured for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutageKind {
    /// The interface was switched off, or had no carrier.
    InterfaceDown,
    /// The interface was deleted.
    InterfaceGone,
    /// The sniffer did not run; what the kernel held for it is within the interval too.
    SnifferDown,
    /// Something a newer sniffer says.
    #[serde(other)]
    Other,
}

/// A time in which packets were lost *outside*: nobody can say how many, if any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    /// Why.
    pub kind: OutageKind,
    /// Interface that it concerns.
    #[serde(default)]
    pub interface: String,
    /// When it began, ns since 1970.
    pub from_ns: u64,
    /// When it ended; `None` while it lasts.
    #[serde(default)]
    pub until_ns: Option<u64>,
}

impl Outage {
    /// `interface eth0: down for 3.2 s`, as a person reads it.
    pub fn text(&self) -> String {
        let what = match self.kind {
            OutageKind::InterfaceDown => "down",
            OutageKind::InterfaceGone => "gone",
            OutageKind::SnifferDown => "not captured, its sniffer did not run",
            OutageKind::Other => "not captured",
        };
        let time = match self.until_ns {
            Some(until_ns) => format!(" for {:.1} s", until_ns.saturating_sub(self.from_ns) as f64 / 1e9),
            None => String::new(),
        };
        format!("interface {}: {what}{time}", self.interface)
    }
}

/// Most outages of one report: the latest.
pub const OUTAGES_MAX: usize = 16;

/// The body of a report block (JSON): where a stream stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// When it was made, ns since 1970.
    pub time_ns: u64,
    /// Nothing older than this is to come in the stream, ns since 1970.
    pub complete_through_ns: u64,
    /// Packets packed so far.
    pub packed_packets: u64,
    /// Captured bytes packed so far.
    pub packed_bytes: u64,
    /// Packets delivered shortened (snaplen, or larger than the ring's block).
    pub cut_packets: u64,
    /// Counters by interface id.
    pub interfaces: Vec<InterfaceTotals>,
    /// Packets lost before they reached the relay.
    pub lost: Losses,
    /// Times in which nothing could be captured, the latest of them. A report that repeats one knows
    /// more of it or the same; one is named by kind, interface and begin.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outages: Vec<Outage>,
    /// Why the stream ends, if it does not end in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_add_and_never_go_back() {
        let mut losses = Losses::default();
        losses.add(Stage::ViewerQueue, 3, 300);
        losses.add(Stage::ViewerQueue, 2, 0);
        losses.raise(Stage::KernelRing, 7, 0);
        losses.raise(Stage::KernelRing, 5, 0);
        assert_eq!(losses.packets(), 12);
        assert_eq!(losses.text(), "7 kernel ring, 5 viewer queue");
        assert_eq!(Losses::default().text(), "none");
        let json = serde_json::to_string(&losses).expect("serialises");
        assert!(json.contains("\"viewer-queue\""), "{json}");
    }
}
