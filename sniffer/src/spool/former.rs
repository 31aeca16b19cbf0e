//! What earlier runs left behind: streams that had packed more than anybody may have, and where each
//! of them ends.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use wire::block::{Kind, PackedBlock, StreamKey};
use wire::clock::wall_ns;
use wire::ledger::{InterfaceTotals, Losses, Outage, OutageKind, Report};
use wire::limited;
use wire::log::{FEW, SOME};
use wire::message::{Announcement, Cursor};
use wire::pack::Packer;
use wire::pool::Pool;

use crate::totals::{FormerRun, FormerStream};

/// Streams of earlier runs whose ends are still to arrive.
#[derive(Default)]
pub struct Former {
    runs: Vec<Run>,
}

struct Run {
    run: FormerRun,
    /// Its streams that are not done.
    left: BTreeSet<StreamKey>,
    /// What was lost of those that are.
    lost: Losses,
}

impl Former {
    pub(super) fn new(runs: Vec<FormerRun>) -> Self {
        let with_streams = |run: FormerRun| {
            let key = |one: &FormerStream| StreamKey { epoch: run.epoch, stream: one.stream };
            Run { left: run.streams.iter().map(key).collect(), run, lost: Losses::default() }
        };
        let mut former = Self { runs: runs.into_iter().map(with_streams).collect() };
        former.remove_done();
        former
    }

    /// The last streams of each interface, which new ones go on from.
    pub fn last_by_interface(&self) -> BTreeMap<String, VecDeque<StreamKey>> {
        let mut last: BTreeMap<String, VecDeque<StreamKey>> = BTreeMap::new();
        // A later run's streams go on from the earlier's already.
        let Some(Run { run, .. }) = self.runs.last() else { return last };
        for one in run.streams.iter().filter(|one| !one.ended) {
            let key = StreamKey { epoch: run.epoch, stream: one.stream };
            last.entry(one.interface.clone()).or_default().push_back(key);
        }
        last
    }

    /// What ends each stream, for the relay: where its run had come.
    pub fn ends(&self, pool: &Pool) -> Vec<(Announcement, PackedBlock)> {
        let mut ends = Vec::new();
        for Run { run, .. } in &self.runs {
            let packets: u64 = run.streams.iter().map(|one| one.packets).sum();
            limited!(
                info,
                SOME,
                "run {}: was killed, or could not end in order, with {packets} packets of which not all are settled; \
                 those that are neither at the relay nor in the spool are lost, and will be counted",
                run.epoch
            );
            for one in &run.streams {
                let key = StreamKey { epoch: run.epoch, stream: one.stream };
                match end_of(key, one, pool) {
                    Some(end) => ends.push((announcement_of(key, one), end)),
                    None => limited!(warn, FEW, "stream {key}: no memory for its end"),
                }
            }
        }
        ends
    }

    /// A stream is done: nothing is left of it to tell, and so much of it was lost.
    pub fn handle_done(&mut self, key: StreamKey, lost: &Losses) {
        for one in &mut self.runs {
            if one.left.remove(&key) {
                lost.0.iter().for_each(|(stage, loss)| one.lost.add(*stage, loss.packets, loss.bytes));
            }
        }
        self.remove_done();
    }

    /// Runs of which everything is told are forgotten.
    fn remove_done(&mut self) {
        let (done, left): (Vec<_>, Vec<_>) = self.runs.drain(..).partition(|one| one.left.is_empty());
        self.runs = left;
        for Run { run, lost, .. } in done {
            limited!(info, SOME, "run {}: everything is sent or counted; lost: {}", run.epoch, lost.text());
            let path = run.path.clone();
            if let Err(error) = run.remove() {
                limited!(warn, FEW, "{}: cannot be removed: {error}", path.display());
            }
        }
    }
}

fn announcement_of(key: StreamKey, one: &FormerStream) -> Announcement {
    let interfaces = vec![one.interface.clone()];
    Announcement { key, interfaces, opened_ns: one.opened_ns, backlog: true, ..Announcement::default() }
}

/// The block that ends a stream of an earlier run. One that had packed its end gets it again in the
/// same place; another gets one behind what it had packed. Nobody else ever used that place.
fn end_of(key: StreamKey, one: &FormerStream, pool: &Pool) -> Option<PackedBlock> {
    let next_sequence = one.next_sequence.saturating_sub(u64::from(one.ended));
    let (packets, bytes) = (one.packets, one.bytes);
    let mut packer = Packer::at(Cursor { key, next_sequence, packets, bytes }, pool.clone());
    let now_ns = wall_ns();
    let from_ns = one.updated_ns.max(one.opened_ns);
    let outage = Outage {
        kind: OutageKind::SnifferDown,
        interface: one.interface.clone(),
        from_ns,
        until_ns: Some(now_ns),
    };
    let totals = InterfaceTotals {
        // The kernel was asked up to a second before the end.
        offered: one.offered.max(packets.saturating_add(one.kernel_drops)),
        kernel_drops: one.kernel_drops,
        ..InterfaceTotals::default()
    };
    let report = Report {
        time_ns: now_ns,
        complete_through_ns: u64::MAX,
        packed_packets: packets,
        packed_bytes: bytes,
        interfaces: vec![totals],
        outages: if one.ended { Vec::new() } else { vec![outage] },
        note: (!one.ended).then(|| format!("interface {}: its sniffer was killed", one.interface)),
        ..Report::default()
    };
    packer.seal_json(Kind::Report, &report, now_ns, true)
}
