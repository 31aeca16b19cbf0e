//! What is said at the end, as dumpcap does: captured, dropped by the kernel, sent.

use std::collections::BTreeMap;
use std::fmt;

use wire::ledger::{Losses, Report};
use wire::units::format_bytes;
use wire::uplink::UplinkTotals;

/// The figures of one run.
#[derive(Debug, Default)]
pub struct Summary {
    /// Names of the streams' interfaces or file.
    pub names: BTreeMap<u32, String>,
    /// The last report of each stream.
    pub reports: BTreeMap<u32, Report>,
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
        let mut by_name: BTreeMap<&str, [u64; 5]> = BTreeMap::new();
        for (stream, report) in &self.reports {
            let name = self.names.get(stream).map_or("?", String::as_str);
            let row = by_name.entry(name).or_default();
            for totals in &report.interfaces {
                row[0] += totals.offered;
                row[1] += totals.kernel_drops;
            }
            row[2] += report.packed_packets;
            row[3] += report.packed_bytes;
            row[4] += report.cut_packets;
        }
        for (name, [offered, drops, packets, bytes, cut]) in by_name {
            let cut = if cut > 0 { format!(", {cut} of them cut") } else { String::new() };
            if self.is_file {
                writeln!(out, "{name}: {packets} packets read ({}){cut}", format_bytes(bytes))?;
            } else {
                writeln!(
                    out,
                    "interface {name}: {offered} packets passed the filter, {drops} dropped by the kernel, \
                     {packets} captured ({}){cut}",
                    format_bytes(bytes)
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
