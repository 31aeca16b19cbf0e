//! What was captured, by interface and thread: the sums over all streams of this run, those that have ended included.

use std::collections::BTreeMap;
use std::sync::Arc;

use wire::ledger::{Losses, Report, Stage};

use crate::snapshot::{CapturedSnapshot, RingFigures};

/// What was captured of an interface, or read of a file. Cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    /// Packets that the filter let through, those that the kernel dropped included.
    pub offered: u64,
    /// Packets that the kernel dropped because the ring was full.
    pub kernel_drops: u64,
    /// Times the ring became full.
    pub freezes: u64,
    /// Packets the interface dropped itself, where it says so. Each of its rings tells the same.
    pub interface_drops: Option<u64>,
    /// Packets packed.
    pub packets: u64,
    /// Captured bytes of them.
    pub bytes: u64,
    /// Those of them that were cut.
    pub cut_packets: u64,
    /// Packets in blocks of the ring that could not be read.
    pub corrupt_packets: u64,
    /// Packets that were left in the ring at its end.
    pub left_packets: u64,
}

impl Captured {
    fn of(report: &Report) -> Self {
        let mut captured = Self {
            packets: report.packed_packets,
            bytes: report.packed_bytes,
            cut_packets: report.cut_packets,
            corrupt_packets: report.lost.packets_at(Stage::Corrupt),
            left_packets: report.lost.packets_at(Stage::Unexplained),
            ..Self::default()
        };
        for totals in &report.interfaces {
            captured.offered += totals.offered;
            captured.kernel_drops += totals.kernel_drops;
            captured.freezes += totals.freezes;
            captured.interface_drops = add(captured.interface_drops, totals.interface_drops);
        }
        captured
    }

    fn plus(self, other: Self) -> Self {
        Self {
            offered: self.offered + other.offered,
            kernel_drops: self.kernel_drops + other.kernel_drops,
            freezes: self.freezes + other.freezes,
            interface_drops: add(self.interface_drops, other.interface_drops),
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
            cut_packets: self.cut_packets + other.cut_packets,
            corrupt_packets: self.corrupt_packets + other.corrupt_packets,
            left_packets: self.left_packets + other.left_packets,
        }
    }
}

fn add(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.zip(other).map(|(one, other)| one + other).or(one).or(other)
}

/// What packs: the name of an interface or file, and that of the thread.
type Source = (String, Arc<str>);

/// The sums.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Streams that go on, and what was reported of them last.
    open: BTreeMap<u32, Open>,
    /// Sums over the streams that have ended. There are as many of these as interfaces ever had rings.
    ended: BTreeMap<Source, Captured>,
    /// What was last told of the rings that are open.
    rings: BTreeMap<Source, RingFigures>,
}

#[derive(Clone, Debug)]
struct Open {
    name: String,
    last: Option<(Arc<str>, Captured)>,
}

impl Tally {
    /// A stream of this name is opened, or is described anew.
    pub fn handle_stream(&mut self, stream: u32, name: String) {
        let last = self.open.remove(&stream).and_then(|open| open.last);
        self.open.insert(stream, Open { name, last });
    }

    /// A thread says where a stream stands, and the ring that it comes from.
    pub fn handle_report(
        &mut self,
        stream: u32,
        report: &Report,
        thread: Arc<str>,
        ring: Option<RingFigures>,
    ) {
        let Some(open) = self.open.get_mut(&stream) else { return };
        let source = (open.name.clone(), Arc::clone(&thread));
        match ring {
            Some(ring) => self.rings.insert(source, ring),
            None => self.rings.remove(&source),
        };
        open.last = Some((thread, Captured::of(report)));
    }

    /// A stream has ended, after its last report.
    pub fn handle_end(&mut self, stream: u32) {
        if let Some(Open { name, last: Some((thread, captured)) }) = self.open.remove(&stream) {
            let sum = self.ended.entry((name, thread)).or_default();
            *sum = sum.plus(captured);
        }
    }

    /// Sums by interface or file, and thread.
    pub fn by_thread(&self) -> Vec<CapturedSnapshot> {
        let mut sums = self.ended.clone();
        for Open { name, last } in self.open.values() {
            if let Some((thread, captured)) = last {
                let sum = sums.entry((name.clone(), Arc::clone(thread))).or_default();
                *sum = sum.plus(*captured);
            }
        }
        let row = |(source, totals): (Source, Captured)| {
            let ring = self.rings.get(&source).copied();
            let (source, thread) = source;
            CapturedSnapshot { source, thread, totals, ring }
        };
        sums.into_iter().map(row).collect()
    }

    /// Sums by interface or file.
    pub fn by_source(&self) -> BTreeMap<String, Captured> {
        let mut sums: BTreeMap<String, Captured> = BTreeMap::new();
        for one in self.by_thread() {
            let sum = sums.entry(one.source).or_default();
            let own = [sum.interface_drops, one.totals.interface_drops].into_iter().flatten().max();
            *sum = Captured { interface_drops: own, ..sum.plus(one.totals) };
        }
        sums
    }

    /// What was lost here, before it could be packed, of all streams.
    pub fn lost(&self) -> Losses {
        let mut lost = Losses::default();
        for totals in self.by_source().values() {
            lost.add(Stage::KernelRing, totals.kernel_drops, 0);
            lost.add(Stage::Corrupt, totals.corrupt_packets, 0);
            lost.add(Stage::Unexplained, totals.left_packets, 0);
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::ledger::InterfaceTotals;

    fn report(offered: u64, kernel_drops: u64) -> Report {
        let interface_drops = Some(3);
        let totals = InterfaceTotals { offered, kernel_drops, freezes: 1, interface_drops };
        Report {
            packed_packets: offered - kernel_drops,
            packed_bytes: 100 * (offered - kernel_drops),
            cut_packets: 2,
            interfaces: vec![totals],
            ..Report::default()
        }
    }

    const RING: RingFigures = RingFigures { ring_bytes: 1 << 20, blocks: 8, ready_blocks_max: 2 };

    #[test]
    fn streams_that_succeed_each_other_add_up_and_do_not_pile_up() {
        let mut tally = Tally::default();
        for stream in 0..1_000 {
            tally.handle_stream(stream, "eth0".to_owned());
            tally.handle_report(stream, &report(7, 0), "capture".into(), Some(RING));
            tally.handle_report(stream, &report(10, 1), "capture".into(), Some(RING));
            assert_eq!(tally.by_thread().len(), 1);
            assert_eq!(tally.by_source()["eth0"].offered, 10 * (u64::from(stream) + 1));
            tally.handle_end(stream);
        }
        assert_eq!((tally.open.len(), tally.ended.len()), (0, 1));
        let rows = tally.by_thread();
        let expected = Captured {
            offered: 10_000,
            kernel_drops: 1_000,
            freezes: 1_000,
            interface_drops: Some(3_000),
            packets: 9_000,
            bytes: 900_000,
            cut_packets: 2_000,
            ..Captured::default()
        };
        assert_eq!((rows[0].totals, rows[0].ring), (expected, Some(RING)), "the ring goes on");
        assert_eq!(tally.lost().packets_at(Stage::KernelRing), 1_000);
    }

    #[test]
    fn rings_of_an_interface_add_up_but_for_what_each_tells_of_it() {
        let mut tally = Tally::default();
        for (stream, thread) in [(0, "capture-0"), (1, "capture-1")] {
            tally.handle_stream(stream, "eth0".to_owned());
            tally.handle_report(stream, &report(10, 4), thread.into(), Some(RING));
        }
        assert_eq!(tally.by_thread().len(), 2);
        let sum = tally.by_source()["eth0"];
        assert_eq!((sum.offered, sum.kernel_drops, sum.interface_drops), (20, 8, Some(3)));
        // One ends with its ring: what it counted stays.
        tally.handle_report(1, &report(11, 4), "capture-1".into(), None);
        tally.handle_end(1);
        let rows = tally.by_thread();
        assert_eq!(rows[1].totals.offered, 11);
        assert_eq!((rows[0].ring, rows[1].ring), (Some(RING), None));
    }

    #[test]
    fn what_cannot_be_packed_is_lost_where_it_was() {
        let mut tally = Tally::default();
        tally.handle_stream(4, "eth0".to_owned());
        let mut report = report(10, 1);
        report.lost.add(Stage::Corrupt, 5, 0);
        report.lost.add(Stage::Unexplained, 2, 0);
        report.lost.add(Stage::NoBuffer, 100, 1); // the sending thread counts these
        tally.handle_report(4, &report, "capture".into(), None);
        assert_eq!(tally.lost().text(), "1 kernel ring, 5 corrupt, 2 unexplained");
        tally.handle_report(5, &report, "capture".into(), None); // no such stream
        tally.handle_end(5);
        assert_eq!(tally.lost().packets(), 8);
    }
}
