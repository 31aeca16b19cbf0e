//! The writer thread: takes what came, unpacks, maps and filters it, and writes pcapng.
//!
//! INVARIANT: every packet of a block that was passed on is written, filtered, or in a corrupt
//! block, and the tally says which; what waits at the end is in none of them.

mod streams;
mod table;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bpf::Program;
use wire::block::{PackedBlock, StreamKey};
use wire::clock::wall_ns;
use wire::ledger::{Losses, Report, Stage};
use wire::limited;
use wire::log::FEW;
use wire::pcapng::section_header;
use wire::pool::Pool;

use crate::config::Config;
use crate::interfaces::Interfaces;
use crate::merge::Merge;
use crate::output::{Output, Stop};
use crate::queue::{Item, Next, Queue};
use crate::tally::SharedTally;
use crate::unpack::{
    Count, Fate, PacketEnd, Unpacked, Unpacker, append_commented, first_packets, packet_bytes, packets_of,
};

use self::streams::Streams;

/// How often an idle writer looks whether its reader is still there.
const PROBE_TIME: Duration = Duration::from_millis(500);
/// Most bytes that wait for the merge by time.
const MERGE_BYTES_MAX: usize = 256 << 20;
/// Packets that leave the merge are written in pieces of about this size.
const MERGE_WRITE_BYTES: usize = 256 << 10;

/// The writer. See the module's head.
pub struct Writer {
    config: Config,
    output: Output,
    queue: Arc<Queue>,
    tally: SharedTally,
    interfaces: Interfaces,
    streams: Streams,
    /// Streams that have ended for good, and may still have packets in the merge.
    leaving: Vec<StreamKey>,
    /// Programs by link type; the text says why there is none.
    programs: HashMap<u16, Result<Arc<Program>, String>>,
    unpacker: Unpacker,
    merge: Option<Merge>,
    /// Packets that may still be written.
    count_left: u64,
    scratch: Vec<u8>,
}

impl Writer {
    /// A writer to `output` of what comes through `queue`, its blocks in buffers of `incoming`.
    pub fn new(
        config: &Config,
        output: Output,
        queue: Arc<Queue>,
        incoming: Pool,
        tally: SharedTally,
    ) -> Self {
        let merge = (!config.reorder.is_zero()).then(|| Merge::new(config.reorder, MERGE_BYTES_MAX));
        // What goes through the merge is copied out of it.
        let gives = output.takes_pages() && merge.is_none();
        let unpacker = if gives { Unpacker::giving(incoming) } else { Unpacker::default() };
        Self {
            config: config.clone(),
            output,
            queue,
            tally,
            interfaces: Interfaces::default(),
            streams: Streams::default(),
            leaving: Vec::new(),
            programs: HashMap::new(),
            unpacker,
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
            self.tell_left();
        }
        self.write_merged(true)
    }

    /// The tally of a stream that has ended is not touched any more.
    fn tell_left(&mut self) {
        if self.leaving.is_empty() {
            return;
        }
        let merge = self.merge.as_ref();
        let still_here = |key: &StreamKey| merge.is_some_and(|merge| merge.has(*key));
        let (staying, left) = std::mem::take(&mut self.leaving).into_iter().partition(still_here);
        self.leaving = staying;
        self.tally.lock().left.extend::<Vec<StreamKey>>(left);
    }

    fn handle(&mut self, item: Item) -> Result<(), Stop> {
        match item {
            Item::Joined(key, name) => {
                let stream = self.streams.join(key);
                if stream.routes.is_empty() {
                    stream.name = name;
                }
                if let Some(merge) = &mut self.merge {
                    merge.join(key);
                }
                Ok(())
            }
            Item::Description(key, description) => self.handle_description(key, &description),
            Item::Packets(block) => self.handle_packets(&block),
            Item::Report(key, report, is_whole) => self.handle_report(key, &report, is_whole),
            Item::Mark(key, through_ns) => {
                if let Some(merge) = &mut self.merge {
                    merge.advance(key, through_ns);
                }
                Ok(())
            }
            Item::Missing(key, losses) => {
                if let Some(stream) = self.streams.find(key) {
                    stream.pending.add_losses(&losses);
                }
                Ok(())
            }
            Item::Outage(key, name, outage) => {
                if let Some(stream) = self.streams.find(key) {
                    stream.pending.add_outage(outage);
                } else if let Some(id) = self.interfaces.find(&format!("{name}:{}", outage.interface)) {
                    self.streams.leave(id, outage);
                }
                Ok(())
            }
            Item::Ended(key) => {
                if let Some(merge) = &mut self.merge {
                    merge.end(key);
                }
                self.streams.end(key);
                Ok(())
            }
            Item::Forget(key) => {
                if let Some(stream) = self.streams.forget(key) {
                    for (local, route) in (0u32..).zip(&stream.routes) {
                        self.interfaces.fold(route.id, key, local);
                    }
                }
                self.leaving.push(key);
                Ok(())
            }
        }
    }

    fn handle_packets(&mut self, block: &PackedBlock) -> Result<(), Stop> {
        let header = block.header();
        let key = header.key;
        let Some(stream) = self.streams.find(key) else {
            self.tally.lock().corrupt.push(*header);
            return Ok(());
        };
        let unpacked = match self.unpacker.unpack(block, &stream.routes, self.merge.is_some()) {
            Ok(unpacked) => unpacked,
            Err(error) => {
                limited!(warn, FEW, "stream {key}: block {} is dropped: {error}", header.sequence);
                let mut corrupt = Losses::default();
                corrupt.add(Stage::Corrupt, header.packet_count.into(), header.byte_count.into());
                stream.pending.add_losses(&corrupt);
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
        stream.has_written = true;
        if !stream.pending.is_empty() {
            let comments = std::mem::take(&mut stream.pending).comments("before this one");
            first_bytes = packet_bytes(&bytes);
            append_commented(&mut self.scratch, &bytes[..first_bytes], &comments);
        }
        if let Some(merge) = &mut self.merge {
            let now = Instant::now();
            if first_bytes == 0 {
                merge.push(key, &bytes, ends, now);
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
            bytes = bytes.until(first_packets(&bytes, self.count_left).len());
            kept = Count::default();
            for (id, captured_bytes) in packets_of(&bytes) {
                kept.add(captured_bytes);
                self.interfaces.add_written(id, 1);
            }
        } else {
            for (route, packets) in stream.routes.iter().zip(kept_by_interface) {
                self.interfaces.add_written(route.id, *packets);
            }
        }
        self.output.write(&self.scratch)?;
        self.output.write(bytes.after(first_bytes))?;
        self.unpacker.release();
        if !self.output.takes_pages() {
            self.unpacker.stop_giving();
        }
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

    fn handle_report(&mut self, key: StreamKey, report: &Report, is_whole: bool) -> Result<(), Stop> {
        if let Some(merge) = &mut self.merge {
            merge.advance(key, report.complete_through_ns);
        }
        let Some(stream) = self.streams.find(key) else { return Ok(()) };
        let now = Instant::now();
        self.scratch.clear();
        let mut dropped = Losses::default();
        stream.kernel_drops.resize(stream.routes.len(), None);
        let reported = (0u32..).zip(&stream.routes).zip(&report.interfaces).zip(&mut stream.kernel_drops);
        for (((local, route), totals), known_drops) in reported {
            if !matches!(route.fate, Fate::Keep | Fate::Filter(_)) {
                continue;
            }
            // What was dropped before we came is nothing that we miss.
            let base = if is_whole { 0 } else { totals.kernel_drops };
            let drops = totals.kernel_drops.saturating_sub(known_drops.unwrap_or(base));
            *known_drops = Some(totals.kernel_drops);
            dropped.add(Stage::KernelRing, drops, 0);
            self.interfaces.update(route.id, key, local, totals, report.time_ns);
            self.interfaces.statistics_if_due(&mut self.scratch, route.id, now);
            if let Some((name, drops)) = self.interfaces.own_drops(route.id) {
                self.tally.lock().interface_drops.insert(route.id, (name.to_owned(), drops));
            }
        }
        stream.pending.add_losses(&dropped);
        self.output.write(&self.scratch)
    }

    /// The last statistics of every interface, with the losses that no packet came after.
    fn finish(&mut self) -> Result<(), Stop> {
        let comments = self.streams.finish();
        self.scratch.clear();
        self.interfaces.last_statistics(&mut self.scratch, wall_ns(), comments);
        self.output.write(&self.scratch)
    }
}
