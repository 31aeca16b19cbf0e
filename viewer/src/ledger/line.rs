//! What became of the packets of one or several streams.

use wire::ledger::{Losses, Outage};

use crate::tally::StreamTally;

/// Outages of a line that are named; further ones are only counted.
const OUTAGES_NAMED_MAX: usize = 3;

/// What is known of one or several streams, since they were joined.
#[derive(Clone, Debug, Default)]
pub struct Line {
    /// Streams.
    pub streams: u64,
    /// Packets of blocks that came whole.
    pub received_packets: u64,
    /// Their captured bytes.
    pub received_bytes: u64,
    /// What the writer did with them.
    pub written: StreamTally,
    /// Packets that were packed and do not come, by stage.
    pub missing: Losses,
    /// Packets that the sniffer lost before it packed them, by stage.
    pub unpacked: Losses,
    /// Packets that the kernel dropped.
    pub kernel_drops: u64,
    /// Packets that the kernel says it offered.
    pub offered_by_kernel: u64,
    /// Packets delivered shortened.
    pub cut_packets: u64,
    /// Blocks that came twice.
    pub duplicates: u64,
    /// The kernel's figure is not exact: joined in the middle, or without a report so far.
    pub is_about: bool,
    /// Not all have ended in order: something may be under way, or left in a ring.
    pub is_open: bool,
    /// Times in which nothing could be captured, outside the equation: the first ones...
    pub outages: Vec<Outage>,
    /// ... and how many there were.
    pub outage_count: u64,
}

impl Line {
    /// What was taken from the kernel's offer, as far as this viewer can tell.
    pub fn accounted(&self) -> u64 {
        [self.missing.packets(), self.unpacked.packets(), self.kernel_drops]
            .into_iter()
            .fold(self.received_packets, u64::saturating_add)
    }

    /// Adds another.
    pub fn add(&mut self, other: &Line) {
        self.streams += other.streams;
        self.received_packets += other.received_packets;
        self.received_bytes += other.received_bytes;
        self.written.add(&other.written);
        add_losses(&mut self.missing, &other.missing);
        add_losses(&mut self.unpacked, &other.unpacked);
        self.kernel_drops = self.kernel_drops.saturating_add(other.kernel_drops);
        self.offered_by_kernel = self.offered_by_kernel.saturating_add(other.offered_by_kernel);
        self.cut_packets = self.cut_packets.saturating_add(other.cut_packets);
        self.duplicates += other.duplicates;
        self.is_about |= other.is_about;
        self.is_open |= other.is_open;
        for outage in &other.outages {
            if self.outages.len() < OUTAGES_NAMED_MAX {
                self.outages.push(outage.clone());
            }
        }
        self.outage_count += other.outage_count;
    }

    /// Adds a time in which nothing could be captured.
    pub fn add_outage(&mut self, outage: &Outage) {
        self.outage_count += 1;
        if self.outages.len() < OUTAGES_NAMED_MAX {
            self.outages.push(outage.clone());
        }
    }
}

/// Adds losses to others.
pub fn add_losses(to: &mut Losses, losses: &Losses) {
    for (stage, loss) in &losses.0 {
        to.add(*stage, loss.packets, loss.bytes);
    }
}
