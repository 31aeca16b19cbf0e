//! The account of one stream: its counters when it was joined and now, and what came between.

use wire::block::Header;
use wire::ledger::{InterfaceTotals, Losses, Report, Stage};

use super::line::{Line, add_losses};

/// Totals of a stream at one report, and what had come or was missing by then.
#[derive(Clone, Debug, Default)]
struct Point {
    offered: u64,
    kernel_drops: u64,
    cut_packets: u64,
    lost: Losses,
    passed: u64,
}

/// One stream.
#[derive(Debug, Default)]
pub struct Account {
    /// Name of its sniffer.
    pub name: String,
    /// It was forgotten and came back: it counts from here on.
    pub is_resumed: bool,
    /// It is joined, and has not ended.
    pub is_live: bool,
    /// It says why it ends, which is not in order: what the ring held may be lost.
    pub has_note: bool,
    /// Joined at its beginning, with a report.
    is_whole: bool,
    /// Where the counters begin, as of the first report.
    base: Option<Point>,
    last: Option<Point>,
    /// Packets of blocks that failed the checks here, which are among those missing.
    corrupt_packets: u64,
    /// What came and what is missing.
    pub line: Line,
}

impl Account {
    /// The account of a stream of the sniffer `name` that was forgotten and came back.
    pub fn resumed(name: String) -> Self {
        let mut account = Self { name, is_resumed: true, is_live: true, ..Self::default() };
        account.line.is_open = true;
        account
    }

    /// A report has come.
    pub fn is_reported(&self) -> bool {
        self.base.is_some()
    }

    /// Packets that came or are missing.
    fn passed(&self) -> u64 {
        self.line.received_packets.saturating_add(self.line.missing.packets())
    }

    /// Packets that came were in a block that failed its checks.
    pub fn handle_corrupt(&mut self, header: &Header) {
        let (packets, bytes) = (u64::from(header.packet_count), u64::from(header.byte_count));
        self.line.received_packets = self.line.received_packets.saturating_sub(packets);
        self.line.received_bytes = self.line.received_bytes.saturating_sub(bytes);
        self.line.missing.add(Stage::Corrupt, packets, bytes);
        self.corrupt_packets = self.corrupt_packets.saturating_add(packets);
    }

    /// What is to be told of `report` that no gap tells; the first one says where the counters begin.
    pub fn handle_report(&mut self, report: &Report, first_sequence: u64) -> Losses {
        let sum =
            |of: fn(&InterfaceTotals) -> u64| report.interfaces.iter().map(of).fold(0, u64::saturating_add);
        let point = Point {
            offered: sum(|totals| totals.offered),
            kernel_drops: sum(|totals| totals.kernel_drops),
            cut_packets: report.cut_packets,
            lost: report.lost.clone(),
            passed: self.passed(),
        };
        let is_whole = first_sequence == 0 && !self.is_resumed;
        self.is_whole = is_whole;
        let base = self.base.get_or_insert_with(|| if is_whole { Point::default() } else { point.clone() });
        let mut lost = Losses::default();
        for (stage, loss) in &point.lost.0 {
            let own = if *stage == Stage::Corrupt { self.corrupt_packets } else { 0 };
            let told = self.line.missing.packets_at(*stage).saturating_sub(own);
            let known = [base.lost.packets_at(*stage), told]
                .into_iter()
                .fold(self.line.unpacked.packets_at(*stage), u64::saturating_add);
            lost.add(*stage, loss.packets.saturating_sub(known), 0);
        }
        // The sniffer may also tell of what it lost after packing: that shows as a gap in the
        // stream, sooner or later. Only what the kernel offered and nobody packed was lost before.
        let offered = base.passed.saturating_add(point.offered.saturating_sub(base.offered));
        let drops = point.kernel_drops.saturating_sub(base.kernel_drops);
        let accounted = [point.passed, drops, lost.packets()]
            .into_iter()
            .fold(self.line.unpacked.packets(), u64::saturating_add);
        if accounted > offered {
            lost = Losses::default();
        }
        add_losses(&mut self.line.unpacked, &lost);
        self.last = Some(point);
        lost
    }

    /// The line as it stands.
    pub fn line(&self) -> Line {
        let mut line = self.line.clone();
        (line.streams, line.is_about) = (1, !self.is_whole);
        if let (Some(base), Some(last)) = (&self.base, &self.last) {
            let offered = last.offered.saturating_sub(base.offered);
            line.offered_by_kernel = base.passed.saturating_add(offered);
            line.kernel_drops = last.kernel_drops.saturating_sub(base.kernel_drops);
            line.cut_packets = last.cut_packets.saturating_sub(base.cut_packets);
        } else {
            line.offered_by_kernel = line.accounted();
        }
        line
    }
}
