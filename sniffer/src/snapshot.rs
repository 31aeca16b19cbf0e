//! Where a sniffer stands at one moment: plain figures, for whoever shows them.
//!
//! The sending thread makes one when it is asked to ([`crate::uplink::Sender`]). It is made of what that thread
//! counts by block, and of what the others tell it about once a second: nothing is counted by packet for it, and
//! nobody is waited for. So the figures of rings and of the spool are up to a second old.

use std::sync::Arc;
use std::time::Duration;

use wire::block::{Header, Kind};
use wire::ledger::{Losses, Stage};
use wire::uplink::{Amount, ClockOffset, Held, UplinkTotals};

use crate::spool::SpoolFigures;
use crate::tally::Captured;

/// All figures. Counters are cumulative for this run.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Time since the start of the sending thread.
    pub running: Duration,
    /// A file is sent; else interfaces are captured.
    pub is_file: bool,
    /// The end has begun: nothing is captured any more.
    pub is_stopping: bool,
    /// Interfaces that were asked for, and those that are captured; none of a file.
    pub interfaces: Vec<InterfaceSnapshot>,
    /// What was captured, by interface and thread.
    pub captured: Vec<CapturedSnapshot>,
    /// Threads that capture; none of a file, whose reader may rightly wait for ever.
    pub threads: Vec<ThreadSnapshot>,
    /// Packed blocks of packets.
    pub packed: PackedTotals,
    /// Bytes of the pool that somebody holds: packed blocks and the buffers to make them in.
    pub pool_used_bytes: u64,
    /// Most bytes of the pool (`--memory`).
    pub pool_bound_bytes: u64,
    /// The connection to the relay.
    pub line: LineSnapshot,
    /// Counters of what was sent.
    pub totals: UplinkTotals,
    /// Blocks in memory that are not settled.
    pub held: Held,
    /// What was lost before it reached the relay, by stage; the kernel's drops among them.
    pub lost: Losses,
    /// The spool, if there is one.
    pub spool: Option<SpoolFigures>,
    /// How far the relay's clock is ahead of ours; `None` before the first welcome.
    pub clock_offset: Option<ClockOffset>,
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceSnapshot {
    /// Its name.
    pub name: String,
    /// Its rings are open; else there is no such interface now, or it could not be opened.
    pub is_open: bool,
    /// It is up and has a carrier.
    pub is_up: bool,
}

/// What one thread captured of one interface, or what was read of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapturedSnapshot {
    /// Name of the interface or file.
    pub source: String,
    /// Name of the thread, as the system shows it.
    pub thread: Arc<str>,
    /// Counters, as of the thread's last report: up to a second old.
    pub totals: Captured,
    /// The ring; `None` of a file, and where there is none any more.
    pub ring: Option<RingFigures>,
}

/// A ring, as its thread tells of it each second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFigures {
    /// Bytes of it, as it was had.
    pub ring_bytes: usize,
    /// Blocks that it has.
    pub blocks: usize,
    /// Most of them that waited for the thread at one time, since the report before.
    pub ready_blocks_max: usize,
}

impl RingFigures {
    /// Most of the ring that waited for the thread at one time within the last second: 0 to 1. At 1 packets are
    /// dropped.
    pub fn fill(&self) -> f64 {
        self.ready_blocks_max as f64 / self.blocks.max(1) as f64
    }
}

/// A thread that captures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadSnapshot {
    /// Its name, as the system shows it.
    pub name: String,
    /// It has not ended.
    pub is_running: bool,
    /// Time since it last gave a sign of life, to a second: it gives one each second, whatever happens. Zero if it
    /// was not looked at yet.
    pub silent: Duration,
    /// It has been silent for too long.
    pub is_stuck: bool,
}

/// Packed blocks of packets, descriptions and reports not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackedTotals {
    /// Blocks.
    pub blocks: u64,
    /// Those of them that are compressed; the others are stored as they are.
    pub lz4_blocks: u64,
    /// Packets in them.
    pub packets: u64,
    /// Captured bytes of these packets.
    pub captured_bytes: u64,
    /// Bytes of their bodies before compression: packets as Enhanced Packet Blocks.
    pub raw_bytes: u64,
    /// Bytes of their bodies after it.
    pub packed_bytes: u64,
}

impl PackedTotals {
    /// Counts a block, if it is one of packets.
    pub fn add(&mut self, header: &Header) {
        if header.kind == Kind::Packets {
            self.blocks += 1;
            self.lz4_blocks += u64::from(header.lz4);
            self.packets += u64::from(header.packet_count);
            self.captured_bytes += u64::from(header.byte_count);
            self.raw_bytes += u64::from(header.raw_bytes);
            self.packed_bytes += u64::from(header.packed_bytes);
        }
    }
}

/// Where the connection to the relay is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LineState {
    /// The first attempt of this run is under way.
    #[default]
    Connecting,
    /// Hellos were exchanged, and the line stands as far as is known.
    Connected,
    /// The line was lost, or was not to be had; it is tried again and again.
    Away,
}

/// The connection to the relay.
#[derive(Clone, Debug, Default)]
pub struct LineSnapshot {
    /// Where it is.
    pub state: LineState,
    /// For how long.
    pub since: Duration,
    /// The relay, as it was given.
    pub relay: String,
    /// Why it is away.
    pub why_away: Option<String>,
    /// Connections that were had.
    pub connects: u64,
    /// Attempts that failed, one for each address that was tried.
    pub failed_connects: u64,
    /// TCP's smoothed round trip; `None` without a connection, and where the system does not say.
    pub round_trip: Option<Duration>,
}

impl Snapshot {
    /// Packets that were captured, those still in a ring not counted: as of now.
    pub fn packets(&self) -> u64 {
        self.packed.packets
    }

    /// Packets that the kernel offered, its drops included; as of a second ago at most.
    pub fn offered_packets(&self) -> u64 {
        self.captured.iter().map(|one| one.totals.offered).sum()
    }

    /// Packets that the kernel dropped because a ring was full; as of a second ago at most.
    pub fn kernel_drops(&self) -> u64 {
        self.lost.packets_at(Stage::KernelRing)
    }

    /// What is behind: what waits in memory, and what is in the spool and not settled. Blocks of the spool are not
    /// counted, as it does not tell.
    pub fn backlog(&self) -> Amount {
        let mut backlog = self.held.waiting;
        if let Some(spool) = &self.spool {
            let loaded = self.held.waiting_loaded;
            backlog.blocks -= loaded.blocks;
            backlog.packets = backlog.packets - loaded.packets + spool.packets;
            backlog.bytes = backlog.bytes - loaded.bytes + spool.unsettled_bytes;
        }
        backlog
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::block::{Header, StreamKey};

    #[test]
    fn packed_blocks_of_packets_are_counted_and_no_others() {
        let mut packed = PackedTotals::default();
        let block = Header {
            kind: Kind::Packets,
            lz4: true,
            end: false,
            key: StreamKey::default(),
            sequence: 3,
            time_min_ns: 1,
            time_max_ns: 2,
            packets_before: 11,
            bytes_before: 1_100,
            packet_count: 7,
            byte_count: 600,
            raw_bytes: 800,
            packed_bytes: 300,
            body_crc: 0,
        };
        packed.add(&block);
        packed.add(&Header { lz4: false, packed_bytes: 800, ..block });
        packed.add(&Header { kind: Kind::Report, ..block });
        packed.add(&Header { kind: Kind::Description, ..block });
        let expected = PackedTotals {
            blocks: 2,
            lz4_blocks: 1,
            packets: 14,
            captured_bytes: 1_200,
            raw_bytes: 1_600,
            packed_bytes: 1_100,
        };
        assert_eq!(packed, expected);
    }

    #[test]
    fn the_backlog_is_what_waits_in_memory_and_in_the_spool() {
        let waiting = Amount { blocks: 1, packets: 20, bytes: 300 };
        let under_way = Amount { blocks: 9, packets: 99, bytes: 999 };
        let held = Held { waiting, unacknowledged: under_way, unsettled: under_way, ..Held::default() };
        let mut snapshot = Snapshot { held, ..Snapshot::default() };
        assert_eq!(snapshot.backlog(), waiting);
        // What came back from the spool is there until it is settled, and counts once.
        snapshot.held.waiting_loaded = Amount { blocks: 1, packets: 5, bytes: 100 };
        snapshot.spool =
            Some(SpoolFigures { packets: 1_000, unsettled_bytes: 5_000, ..SpoolFigures::default() });
        assert_eq!(snapshot.backlog(), Amount { blocks: 0, packets: 1_015, bytes: 5_200 });
    }

    #[test]
    fn a_ring_is_as_full_as_it_was_at_most() {
        let ring = RingFigures { ring_bytes: 64 << 20, blocks: 64, ready_blocks_max: 16 };
        assert_eq!(ring.fill(), 0.25);
        assert_eq!(RingFigures { ready_blocks_max: 64, ..ring }.fill(), 1.0);
        assert_eq!(RingFigures::default().fill(), 0.0);
    }
}
