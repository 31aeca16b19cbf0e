//! What is said at the end, as dumpcap does: captured, dropped by the kernel, sent.

use std::fmt;

use wire::ledger::Losses;
use wire::units::format_bytes;
use wire::uplink::UplinkTotals;

use crate::tally::{Captured, Tally};

/// The figures of one run.
#[derive(Debug, Default)]
pub struct Summary {
    /// What was captured, or read.
    pub tally: Tally,
    /// What was lost before it could be sent.
    pub lost: Losses,
    /// Counters of the uplink.
    pub totals: UplinkTotals,
    /// Packets that the relay had not settled when we left, without a spool.
    pub unsettled_packets: u64,
    /// Packets left in the spool, if there is one.
    pub spooled_packets: Option<u64>,
    /// A file was sent.
    pub is_file: bool,
}

impl fmt::Display for Summary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, captured) in self.tally.by_source() {
            let Captured { offered, kernel_drops, packets, bytes, cut_packets, .. } = captured;
            let bytes = format_bytes(bytes);
            let cut = if cut_packets > 0 { format!(", {cut_packets} of them cut") } else { String::new() };
            if self.is_file {
                writeln!(out, "{name}: {packets} packets read ({bytes}){cut}")?;
            } else {
                writeln!(
                    out,
                    "interface {name}: {offered} packets passed the filter, {kernel_drops} dropped by the \
                     kernel, {packets} captured ({bytes}){cut}"
                )?;
            }
        }
        let totals = &self.totals;
        write!(
            out,
            "sent: {} packets in {} blocks, {}",
            totals.sent_packets,
            totals.sent_blocks,
            format_bytes(totals.sent_bytes)
        )?;
        if totals.resent_blocks > 0 {
            write!(out, ", {} blocks sent again", totals.resent_blocks)?;
        }
        write!(out, "; lost before sending: {}", self.lost.text())?;
        if self.unsettled_packets > 0 {
            write!(out, "; not settled by the relay: {} packets", self.unsettled_packets)?;
        }
        if let Some(packets) = self.spooled_packets.filter(|packets| *packets > 0) {
            write!(out, "; in the spool for the next run: {packets} packets")?;
        }
        Ok(())
    }
}
