//! The writer thread: takes what came, unpacks, maps and filters it, and writes pcapng.
//!
//! INVARIANT: every packet of a block that was passed on is written, filtered, or in a corrupt
//! block, and the tally says which; what waits at the end is in none of them.

mod table;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bpf::Program;
use tracing::warn;
use wire::block::{PackedBlock, StreamKey};
use wire::clock::wall_ns;
use wire::ledger::{Losses, Report, Stage};
use wire::pcapng::section_header;

use crate::config::Config;
use crate::interfaces::Interfaces;
use crate::merge::Merge;
use crate::output::{Output, Stop};
use crate::queue::{Item, Next, Queue};
use crate::tally::SharedTally;
use crate::unpack::{
    Count, Fate, PacketEnd, Route, Unpacked, Unpacker, append_commented, first_packets, packet_bytes,
    packets_of,
};

/// How often an idle writer looks whether its reader is still there.
const PROBE_TIME: Duration = Duration::from_millis(500);
/// Most bytes that wait for the merge by time.
const MERGE_BYTES_MAX: usize = 256 << 20;
/// Packets that leave the merge are written in pieces of about this size.
const MERGE_WRITE_BYTES: usize = 256 << 10;

#[derive(Debug, Default)]
struct Stream {
    name: String,
    first_sequence: u64,
    routes: Vec<Route>,
    /// Equal interfaces of its table so far.
    seen: HashMap<(String, String), u32>,
    /// Kernel drops by interface at the last report.
    kernel_drops: Vec<Option<u64>>,
    /// Lost, and no packet told so far.
    pending: Losses,
}

/// The writer. See the module's head.
pub struct Writer {
    config: Config,
    output: Output,
    queue: Arc<Queue>,
    tally: SharedTally,
    interfaces: Interfaces,
    streams: HashMap<StreamKey, Stream>,
    /// Programs by link type; the text says why there is none.
    programs: HashMap<u16, Result<Arc<Program>, String>>,
    unpacker: Unpacker,
    merge: Option<Merge>,
    /// Packets that may still be written.
    count_left: u64,
    scratch: Vec<u8>,
}

impl Writer {
    /// A writer to `output` of what comes through `queue`.
    pub fn new(config: &Config, output: Output, queue: Arc<Queue>, tally: SharedTally) -> Self {
        let merge = (!config.reorder.is_zero()).then(|| Merge::new(config.reorder, MERGE_BYTES_MAX));
        Self {
            config: config.clone(),
            output,
            queue,
            tally,
            interfaces: Interfaces::default(),
            streams: HashMap::new(),
            programs: HashMap::new(),
            unpacker: Unpacker::default(),
            merge,
            count_left: config.count.unwrap_or(u64::MAX),
            scratch: Vec::new(),
        }
    }

    /// Writes until nothing comes any more, or nothing more is to be written. `Ok` is the orderly
    /// end, `CountReached` one too.
    pub fn run(mut self) -> Result<(), Stop> {
        let ended = match self.write_all() {
            Ok(()) | Err(Stop::CountReached) => self.finish(),
            other => other,
        };
        self.queue.set_writer_ended();
        ended
    }

    fn write_all(&mut self) -> Result<(), Stop> {
        self.scratch.clear();
        let application = format!("ringcast viewer {}", env!("CARGO_PKG_VERSION"));
        section_header(
            &mut self.scratch,
            Some(std::env::consts::ARCH),
            Some(std::env::consts::OS),
            &application,
        );
        self.output.write(&self.scratch)?;
        loop {
            let idle_until = Instant::now() + PROBE_TIME;
            let merge_until = self.merge.as_ref().and_then(Merge::poll_timeout);
            match self.queue.pop(merge_until.map_or(idle_until, |until| until.min(idle_until))) {
                Next::Item(item) => self.handle(item)?,
                Next::Idle => self.output.probe()?,
                Next::Closed => break,
            }
            self.write_merged(false)?;
        }
        self.write_merged(true)
    }

    fn handle(&mut self, item: Item) -> Result<(), Stop> {
        match item {
            Item::Joined(key, name, first_sequence) => {
                let stream = self.streams.entry(key).or_default();
                if stream.routes.is_empty() {
                    (stream.name, stream.first_sequence) = (name, first_sequence);
                }
                if let Some(merge) = &mut self.merge {
                    merge.join(key);
                }
                Ok(())
            }
            Item::Description(key, description) => self.handle_description(key, &description),
            Item::Packets(block) => self.handle_packets(&block),
            Item::Report(key, report) => self.handle_report(key, &report),
            Item::Mark(key, through_ns) => {
                if let Some(merge) = &mut self.merge {
                    merge.advance(key, through_ns);
                }
                Ok(())
            }
            Item::Missing(key, losses) => {
                let stream = self.streams.entry(key).or_default();
                add_losses(&mut stream.pending, &losses);
                Ok(())
            }
            Item::Ended(key) => {
                if let Some(merge) = &mut self.merge {
                    merge.end(key);
                }
                Ok(())
            }
        }
    }

    fn handle_packets(&mut self, block: &PackedBlock) -> Result<(), Stop> {
        let header = block.header();
        let key = header.key;
        let Some(stream) = self.streams.get_mut(&key) else {
            self.tally.lock().corrupt.push(*header);
            return Ok(());
        };
        let unpacked = match self.unpacker.unpack(block, &stream.routes, self.merge.is_some()) {
            Ok(unpacked) => unpacked,
            Err(error) => {
                warn!("stream {key}: block {} is dropped: {error}", header.sequence);
                stream.pending.add(Stage::Corrupt, header.packet_count.into(), header.byte_count.into());
                self.tally.lock().corrupt.push(*header);
                return Ok(());
            }
        };
        let Unpacked { mut bytes, mut kept, ends, kept_by_interface, .. } = unpacked;
        if unpacked.filtered + unpacked.unfilterable > 0 {
            let mut tally = self.tally.lock();
            let tallied = tally.streams.entry(key).or_default();
            tallied.filtered += unpacked.filtered;
            tallied.unfilterable += unpacked.unfilterable;
        }
        if kept.packets == 0 {
            return Ok(());
        }
        // A loss is told by the first packet after it.
        self.scratch.clear();
        let mut first_bytes = 0;
        if stream.pending.packets() > 0 {
            let comment = loss_comment(&std::mem::take(&mut stream.pending), "before this one");
            first_bytes = packet_bytes(bytes);
            append_commented(&mut self.scratch, &bytes[..first_bytes], &comment);
        }
        if let Some(merge) = &mut self.merge {
            let now = Instant::now();
            if first_bytes == 0 {
                merge.push(key, bytes, ends, now);
            } else {
                let first = PacketEnd { end: self.scratch.len() as u32, ..ends[0] };
                merge.push(key, &self.scratch, &[first], now);
                let shifted = |one: &PacketEnd| PacketEnd { end: one.end - first_bytes as u32, ..*one };
                let rest: Vec<PacketEnd> = ends[1..].iter().map(shifted).collect();
                merge.push(key, &bytes[first_bytes..], &rest, now);
            }
            return Ok(());
        }
        if kept.packets > self.count_left {
            bytes = first_packets(bytes, self.count_left);
            kept = Count::default();
            for (id, captured_bytes) in packets_of(bytes) {
                kept.add(captured_bytes);
                self.interfaces.add_written(id, 1);
            }
        } else {
            for (route, packets) in stream.routes.iter().zip(kept_by_interface) {
                self.interfaces.add_written(route.id, *packets);
            }
        }
        self.output.write(&self.scratch)?;
        self.output.write(&bytes[first_bytes..])?;
        self.count_left -= kept.packets;
        self.tally.lock().streams.entry(key).or_default().written += kept;
        if self.count_left == 0 { Err(Stop::CountReached) } else { Ok(()) }
    }

    /// Writes what leaves the merge. `all`: everything, in order, until the time to end.
    fn write_merged(&mut self, all: bool) -> Result<(), Stop> {
        let Some(merge) = &mut self.merge else { return Ok(()) };
        loop {
            self.scratch.clear();
            let mut written: BTreeMap<StreamKey, Count> = BTreeMap::new();
            let now = Instant::now();
            while self.scratch.len() < MERGE_WRITE_BYTES
                && self.count_left > 0
                && let Some(leaving) = merge.poll_leaving(now, all)
            {
                let mut bytes = leaving.bytes;
                if leaving.packets as u64 > self.count_left {
                    bytes = first_packets(bytes, self.count_left);
                }
                let count = written.entry(leaving.key).or_default();
                for (id, captured_bytes) in packets_of(bytes) {
                    count.add(captured_bytes);
                    self.count_left -= 1;
                    self.interfaces.add_written(id, 1);
                }
                self.scratch.extend_from_slice(bytes);
            }
            if self.scratch.is_empty() {
                return Ok(());
            }
            self.output.write(&self.scratch)?;
            let mut tally = self.tally.lock();
            for (key, count) in written {
                tally.streams.entry(key).or_default().written += count;
            }
            drop(tally);
            if self.count_left == 0 {
                return Err(Stop::CountReached);
            }
            if all && self.queue.is_expired() {
                return Ok(());
            }
        }
    }

    fn handle_report(&mut self, key: StreamKey, report: &Report) -> Result<(), Stop> {
        if let Some(merge) = &mut self.merge {
            merge.advance(key, report.complete_through_ns);
        }
        let Some(stream) = self.streams.get_mut(&key) else { return Ok(()) };
        let now = Instant::now();
        self.scratch.clear();
        stream.kernel_drops.resize(stream.routes.len(), None);
        let reported = (0u32..).zip(&stream.routes).zip(&report.interfaces).zip(&mut stream.kernel_drops);
        for (((local, route), totals), known_drops) in reported {
            if !matches!(route.fate, Fate::Keep | Fate::Filter(_)) {
                continue;
            }
            // What was dropped before we came is nothing that we miss.
            let base = if stream.first_sequence == 0 { 0 } else { totals.kernel_drops };
            let drops = totals.kernel_drops.saturating_sub(known_drops.unwrap_or(base));
            *known_drops = Some(totals.kernel_drops);
            stream.pending.add(Stage::KernelRing, drops, 0);
            self.interfaces.update(route.id, key, local, totals, report.time_ns);
            self.interfaces.statistics_if_due(&mut self.scratch, route.id, now);
        }
        self.output.write(&self.scratch)
    }

    /// The last statistics of every interface, with the losses that no packet came after.
    fn finish(&mut self) -> Result<(), Stop> {
        let mut comments: HashMap<u32, Vec<String>> = HashMap::new();
        for stream in self.streams.values().filter(|stream| stream.pending.packets() > 0) {
            let written = |route: &&Route| matches!(route.fate, Fate::Keep | Fate::Filter(_));
            if let Some(route) = stream.routes.iter().find(written) {
                let comment = loss_comment(&stream.pending, "after the last one");
                comments.entry(route.id).or_default().push(comment);
            }
        }
        self.scratch.clear();
        self.interfaces.last_statistics(&mut self.scratch, wall_ns(), comments);
        self.output.write(&self.scratch)
    }
}

fn add_losses(to: &mut Losses, losses: &Losses) {
    for (stage, loss) in &losses.0 {
        to.add(*stage, loss.packets, loss.bytes);
    }
}

/// `ringcast: 12 packets lost before this one (viewer queue)`.
fn loss_comment(losses: &Losses, place: &str) -> String {
    let packets = losses.packets();
    let plural = if packets == 1 { "" } else { "s" };
    let stages = match losses.0.iter().next() {
        Some((stage, _)) if losses.0.len() == 1 => stage.text().to_owned(),
        _ => losses.text(),
    };
    format!("ringcast: {packets} packet{plural} lost {place} ({stages})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_name_the_stage() {
        let mut losses = Losses::default();
        losses.add(Stage::ViewerQueue, 12, 1);
        let text = "ringcast: 12 packets lost before this one (viewer queue)";
        assert_eq!(loss_comment(&losses, "before this one"), text);
        losses.add(Stage::KernelRing, 1, 0);
        assert!(
            loss_comment(&losses, "here").contains("13 packets lost here (1 kernel ring, 12 viewer queue)")
        );
    }
}
