//! The interfaces of the output: which pcapng interface each interface of each stream is, and what
//! is known of it for its statistics.
//!
//! The totals of an interface are the sum over its streams: those that are live, and one base for
//! those that have ended. What the interface itself dropped is the exception: each ring of a fan-out
//! group reports it whole. So it is summed along each *lineage*, a stream and those that go on from
//! it, and the greatest lineage counts.
//!
//! Streams of one epoch share an interface when name and all attributes agree: the rings of a
//! fan-out group, and a stream that goes on from another. Two equal entries in the table of one
//! stream (a capture file may have them) stay two.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use wire::Interface;
use wire::block::{Epoch, StreamKey};
use wire::ledger::InterfaceTotals;
use wire::pcapng::{InterfaceStatistics, interface_statistics};

/// Most interfaces of one output. Beyond it packets of further ones are left out, and counted.
const OUTPUT_INTERFACES_MAX: usize = 65_536;
/// Least time between two statistics blocks of one interface.
const STATISTICS_TIME: Duration = Duration::from_secs(1);

/// Most lineages of one interface, that is, rings of a fan-out group; further ones share the last.
const LINEAGES_MAX: usize = 256;

/// What makes an interface of the output: epoch, name, attributes as JSON, and which one of the
/// equal ones of its stream.
type Identity = (Epoch, String, String, u32);

/// All interfaces of the output.
#[derive(Debug, Default)]
pub struct Interfaces {
    ids: HashMap<Identity, u32>,
    list: Vec<OutputInterface>,
}

#[derive(Debug, Default)]
struct OutputInterface {
    name: String,
    written_packets: u64,
    /// Streams, and interfaces of their tables, that end up here.
    sources: BTreeMap<SourceKey, Source>,
    /// Totals of the streams that have ended.
    ended: InterfaceTotals,
    lineages: Vec<Lineage>,
    /// A report has come.
    is_reported: bool,
    start_ns: u64,
    end_ns: u64,
    ts_offset_s: i64,
    last_statistics: Option<Instant>,
}

/// A stream, and the interface of its table.
type SourceKey = (StreamKey, u32);

#[derive(Debug, Default)]
struct Source {
    /// Its last totals.
    totals: InterfaceTotals,
    /// Which one it belongs to.
    lineage: usize,
}

#[derive(Debug, Default)]
struct Lineage {
    newest: SourceKey,
    /// What the interface dropped itself during the streams of it that have ended.
    interface_drops: Option<u64>,
}

impl Interfaces {
    /// The id of an interface of a stream. `seen` counts the equal ones of that stream. The flag
    /// says that it is new, so a description has to be written; `None`: there are too many.
    pub fn assign(
        &mut self,
        epoch: Epoch,
        name: &str,
        interface: &Interface,
        opened_ns: u64,
        seen: &mut HashMap<(String, String), u32>,
    ) -> Option<(u32, bool)> {
        // Serialising strings and numbers has no way to fail.
        let attributes = serde_json::to_string(interface).unwrap_or_default();
        let nth = seen.entry((name.to_owned(), attributes.clone())).or_default();
        let identity = (epoch, name.to_owned(), attributes, *nth);
        *nth += 1;
        if let Some(id) = self.ids.get(&identity) {
            let known = &mut self.list[*id as usize];
            known.start_ns = known.start_ns.min(opened_ns);
            return Some((*id, false));
        }
        if self.list.len() >= OUTPUT_INTERFACES_MAX {
            return None;
        }
        let id = self.list.len() as u32;
        self.ids.insert(identity, id);
        let ts_offset_s = interface.ts_offset_s;
        let start_ns = opened_ns;
        let name = name.to_owned();
        self.list.push(OutputInterface { name, start_ns, ts_offset_s, ..OutputInterface::default() });
        Some((id, true))
    }

    /// Packets of interface `id` were written.
    pub fn add_written(&mut self, id: u32, packets: u64) {
        if let Some(interface) = self.list.get_mut(id as usize) {
            interface.written_packets += packets;
        }
    }

    /// Interface `local` of stream `key` is `id` here; the stream may go on from another.
    pub fn join(&mut self, id: u32, key: StreamKey, local: u32, predecessor: Option<StreamKey>) {
        if let Some(interface) = self.list.get_mut(id as usize) {
            interface.source((key, local), predecessor);
        }
    }

    /// A report says where interface `local` of stream `key` stands, which is `id` here.
    pub fn update(&mut self, id: u32, key: StreamKey, local: u32, totals: &InterfaceTotals, time_ns: u64) {
        let Some(interface) = self.list.get_mut(id as usize) else { return };
        interface.source((key, local), None).totals = totals.clone();
        interface.is_reported = true;
        interface.end_ns = interface.end_ns.max(time_ns);
    }

    /// Stream `key` has ended: its totals stay, without it.
    pub fn fold(&mut self, id: u32, key: StreamKey, local: u32) {
        let Some(interface) = self.list.get_mut(id as usize) else { return };
        let Some(Source { totals, lineage }) = interface.sources.remove(&(key, local)) else { return };
        let ended = &mut interface.ended;
        ended.offered = ended.offered.saturating_add(totals.offered);
        ended.kernel_drops = ended.kernel_drops.saturating_add(totals.kernel_drops);
        if let (Some(lineage), Some(drops)) = (interface.lineages.get_mut(lineage), totals.interface_drops) {
            lineage.interface_drops = Some(lineage.interface_drops.unwrap_or(0).saturating_add(drops));
        }
    }

    /// The newest interface of that name.
    pub fn find(&self, name: &str) -> Option<u32> {
        self.list.iter().rposition(|interface| interface.name == name).map(|id| id as u32)
    }

    /// Name of interface `id`, and what it dropped itself, if anything.
    pub fn own_drops(&self, id: u32) -> Option<(&str, u64)> {
        let interface = self.list.get(id as usize)?;
        let drops = interface.interface_drops().filter(|drops| *drops > 0)?;
        Some((&interface.name, drops))
    }

    /// Appends a statistics block of interface `id`, unless it had one within the last second.
    pub fn statistics_if_due(&mut self, out: &mut Vec<u8>, id: u32, now: Instant) {
        let Some(interface) = self.list.get_mut(id as usize) else { return };
        let due = interface.last_statistics.is_none_or(|last| now.duration_since(last) >= STATISTICS_TIME);
        if due {
            interface.last_statistics = Some(now);
            interface.emit(out, id, interface.end_ns, Vec::new());
        }
    }

    /// Appends the last statistics of every interface, with what is to be said of some.
    pub fn last_statistics(&self, out: &mut Vec<u8>, now_ns: u64, mut comments: HashMap<u32, Vec<String>>) {
        for (id, interface) in (0u32..).zip(&self.list) {
            interface.emit(out, id, now_ns, comments.remove(&id).unwrap_or_default());
        }
    }
}

impl OutputInterface {
    /// A stream's interface, which is new if it is not known.
    fn source(&mut self, key: SourceKey, predecessor: Option<StreamKey>) -> &mut Source {
        let lineages = &mut self.lineages;
        self.sources.entry(key).or_insert_with(|| {
            let former = predecessor.map(|predecessor| (predecessor, key.1));
            let known = lineages.iter().position(|one| Some(one.newest) == former || one.newest == key);
            let lineage = known.unwrap_or(lineages.len()).min(LINEAGES_MAX - 1);
            if lineage == lineages.len() {
                lineages.push(Lineage::default());
            }
            lineages[lineage].newest = key;
            Source { lineage, ..Source::default() }
        })
    }

    fn interface_drops(&self) -> Option<u64> {
        let mut sums: Vec<Option<u64>> = self.lineages.iter().map(|one| one.interface_drops).collect();
        for source in self.sources.values() {
            if let (Some(sum), Some(drops)) = (sums.get_mut(source.lineage), source.totals.interface_drops) {
                *sum = Some(sum.unwrap_or(0).saturating_add(drops));
            }
        }
        sums.into_iter().flatten().max()
    }

    fn emit(&self, out: &mut Vec<u8>, id: u32, time_ns: u64, comments: Vec<String>) {
        let sum = |of: fn(&InterfaceTotals) -> u64| {
            let live = self.sources.values().map(|source| of(&source.totals));
            live.fold(of(&self.ended), u64::saturating_add)
        };
        let reported = self.is_reported;
        let shown =
            |time_ns: u64| time_ns.saturating_add_signed(self.ts_offset_s.saturating_mul(-1_000_000_000));
        let statistics = InterfaceStatistics {
            time_ns: shown(time_ns),
            start_ns: (self.start_ns > 0).then(|| shown(self.start_ns)),
            end_ns: (self.end_ns > 0).then(|| shown(self.end_ns)),
            received: None,
            interface_drops: self.interface_drops(),
            filter_accepted: reported.then(|| sum(|totals| totals.offered)),
            kernel_drops: reported.then(|| sum(|totals| totals.kernel_drops)),
            delivered: Some(self.written_packets),
            comments,
        };
        interface_statistics(out, id, &statistics);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eth0() -> Interface {
        Interface { name: "eth0".into(), link_type: 1, ..Interface::default() }
    }

    #[test]
    fn rings_share_an_interface_and_equal_entries_of_a_file_do_not() {
        let mut interfaces = Interfaces::default();
        let mut assign = |epoch, interface: &Interface, seen: &mut HashMap<_, _>| {
            interfaces.assign(Epoch(epoch), "host:eth0", interface, 5, seen).expect("room")
        };
        let (mut first, mut second, mut third) = Default::default();
        assert_eq!(assign(1, &eth0(), &mut first), (0, true));
        assert_eq!(assign(1, &eth0(), &mut second), (0, false));
        assert_eq!(assign(1, &eth0(), &mut second), (1, true));
        let filtered = Interface { filter: Some("tcp".into()), ..eth0() };
        assert_eq!(assign(1, &filtered, &mut first), (2, true));
        assert_eq!(assign(2, &eth0(), &mut third), (3, true), "another run is another interface");
    }

    #[test]
    fn statistics_add_up_the_rings() {
        let mut interfaces = Interfaces::default();
        interfaces.assign(Epoch(1), "host:eth0", &eth0(), 5, &mut HashMap::new()).expect("room");
        for stream in 0..2 {
            let key = StreamKey { epoch: Epoch(1), stream };
            let totals =
                InterfaceTotals { offered: 10, kernel_drops: 2, interface_drops: Some(7), freezes: 1 };
            interfaces.update(0, key, 0, &totals, 100);
        }
        interfaces.add_written(0, 16);
        let (mut out, now) = (Vec::new(), Instant::now());
        interfaces.statistics_if_due(&mut out, 0, now);
        let length = out.len();
        interfaces.statistics_if_due(&mut out, 0, now);
        assert_eq!(out.len(), length, "one a second");
        let (_, block) = pcap_parser::parse_block_le(&out).expect("parses");
        let pcap_parser::Block::InterfaceStatistics(block) = block else { panic!("not statistics") };
        let value = |code: u16| {
            let found = block.options.iter().find(|option| option.code.0 == code).expect("there");
            u64::from_le_bytes(found.value[..8].try_into().expect("eight"))
        };
        assert_eq!((value(4 + 1), value(6), value(7), value(8)), (7, 20, 4, 16));
    }

    #[test]
    fn streams_that_follow_each_other_add_up_and_are_not_kept() {
        let mut interfaces = Interfaces::default();
        interfaces.assign(Epoch(1), "host:eth0", &eth0(), 5, &mut HashMap::new()).expect("room");
        let key = |stream| StreamKey { epoch: Epoch(1), stream };
        let rings = 2;
        for stream in 0..2000u32 {
            // The streams of a ring take turns; the last two are still live.
            let former = stream.checked_sub(rings).map(key);
            interfaces.join(0, key(stream), 0, former);
            let totals =
                InterfaceTotals { offered: 10, kernel_drops: 2, interface_drops: Some(7), freezes: 1 };
            interfaces.update(0, key(stream), 0, &totals, 100);
            if let Some(former) = former {
                interfaces.fold(0, former, 0);
                interfaces.fold(0, former, 0);
            }
        }
        let interface = &interfaces.list[0];
        assert_eq!((interface.sources.len(), interface.lineages.len()), (2, 2));
        assert_eq!(interface.interface_drops(), Some(7 * 1000), "each ring tells the whole");
        let mut out = Vec::new();
        interfaces.last_statistics(&mut out, 7, HashMap::new());
        let (_, block) = pcap_parser::parse_block_le(&out).expect("parses");
        let pcap_parser::Block::InterfaceStatistics(block) = block else { panic!("not statistics") };
        let offered = block.options.iter().find(|option| option.code.0 == 6).expect("there");
        assert_eq!(offered.value[..8], 20_000u64.to_le_bytes());
    }
}
