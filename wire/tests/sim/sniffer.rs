//! A simulated sniffer: an uplink, a packer for each stream, a spool, packets that carry their
//! number; killed and started anew now and then.

use std::collections::BTreeMap;

use wire::Interface;
use wire::block::{Epoch, Kind, PackedBlock, StreamKey};
use wire::description::Description;
use wire::ledger::Report;
use wire::message::{Announcement, Control, Cursor};
use wire::pack::{Compression, PackError, Packer};
use wire::pool::Pool;
use wire::uplink::{Uplink, UplinkConfig};

use crate::plan::Plan;
use crate::rng::Rng;
use crate::spool::Spool;

/// Bytes of a block before compression: small, so that there are many.
const BODY_BYTES: usize = 3_000;
/// A tick in ms.
pub const TICK_MS: u64 = 50;

#[derive(Debug, Default, Clone)]
pub struct Truth {
    /// Packets made.
    pub packets: u64,
    /// Captured bytes made.
    pub bytes: u64,
    /// Blocks made.
    pub blocks: u64,
    pub interfaces: Vec<String>,
    pub opened: bool,
    pub predecessor: Option<StreamKey>,
    /// It ended at an outage: somebody may have come too late to be owed it.
    pub is_backlog: bool,
    pub ended: bool,
    /// When its end was made.
    pub ended_at: u64,
    /// Some relay has settled its end.
    pub is_done: bool,
    /// Its end was in the spool, and thrown away.
    pub is_end_evicted: bool,
}

struct Stream {
    packer: Packer,
    /// Name of its interfaces begins with this.
    prefix: &'static str,
    opens_at: u64,
    ends_at: u64,
    truth: Truth,
}

pub struct Sniffer {
    pub name: String,
    pub uplink: Uplink,
    pub connection: Option<u64>,
    pub connects_at: u64,
    pub spool: Option<Spool>,
    config: UplinkConfig,
    compression: Compression,
    /// Of this run, by number.
    streams: Vec<Stream>,
    /// Of earlier runs.
    former: BTreeMap<StreamKey, Truth>,
    /// Their ends, made anew by every run until they are done.
    former_ends: BTreeMap<StreamKey, (Announcement, PackedBlock)>,
    /// Received and settled as last acknowledged on this connection, by stream.
    pub acked: BTreeMap<StreamKey, (u64, u64)>,
    /// Bytes that may go over the budget: blocks that are never dropped.
    kept_bytes: usize,
    busy: u64,
    last_tick: u64,
}

/// The bytes of a packet: who made it, its number, and a length and filling that follow from that.
pub fn packet(key: StreamKey, number: u64) -> Vec<u8> {
    let mut data = Vec::new();
    data.extend_from_slice(&key.epoch.0.to_le_bytes());
    data.extend_from_slice(&key.stream.to_le_bytes());
    data.extend_from_slice(&number.to_le_bytes());
    data.resize(20 + (number.wrapping_mul(2_654_435_761) >> 7) as usize % 180, number as u8);
    data
}

impl Sniffer {
    pub fn new(index: usize, plan: &Plan, rng: &mut Rng) -> Self {
        let name = format!("{}-{index}", rng.pick(&["web", "db"]));
        let epoch = Epoch(rng.next());
        let compression = rng.pick(&[Compression::Lz4, Compression::None]);
        let config = UplinkConfig {
            name: name.clone(),
            agent: "sim".into(),
            epoch,
            home: epoch,
            memory_bytes: plan.memory_bytes,
            has_spool: plan.spool,
            is_paced: false,
        };
        let mut sniffer = Self {
            uplink: Uplink::new(config.clone(), 0),
            name,
            connection: None,
            connects_at: rng.range(0, 20),
            spool: plan.spool.then(|| Spool::new(plan.spool_bytes)),
            config,
            compression,
            streams: Vec::new(),
            former: BTreeMap::new(),
            former_ends: BTreeMap::new(),
            acked: BTreeMap::new(),
            kept_bytes: 0,
            busy: rng.range(1, 4),
            last_tick: 0,
        };
        for number in 0..rng.range(1, 3) {
            let opens_at = if number == 0 { 0 } else { rng.range(0, plan.ticks / 2) };
            let ends_at = if rng.one_in(3) { rng.range(opens_at + 1, plan.ticks) } else { plan.ticks };
            sniffer.add_stream(["eth", "wlan"][number as usize % 2], opens_at, ends_at, None);
        }
        sniffer
    }

    fn add_stream(
        &mut self,
        prefix: &'static str,
        opens_at: u64,
        ends_at: u64,
        predecessor: Option<StreamKey>,
    ) {
        let key = StreamKey { epoch: self.config.epoch, stream: self.streams.len() as u32 };
        let packer = Packer::new(key, Pool::new(64 << 20), BODY_BYTES, self.compression);
        let truth = Truth { predecessor, ..Truth::default() };
        self.streams.push(Stream { packer, prefix, opens_at, ends_at, truth });
    }

    pub fn truths(&self) -> impl Iterator<Item = (StreamKey, Truth)> + '_ {
        let own = self.streams.iter().map(|stream| (stream.packer.key(), stream.truth.clone()));
        let all = own.chain(self.former.iter().map(|(key, truth)| (*key, truth.clone())));
        let is_end_evicted =
            |key: &StreamKey| self.spool.as_ref().is_some_and(|spool| spool.evicted_ends.contains(key));
        all.map(move |(key, truth)| (key, Truth { is_end_evicted: is_end_evicted(&key), ..truth }))
    }

    /// Packets lost here, as the present run knows.
    pub fn lost(&self) -> u64 {
        self.uplink.lost_in_all().packets()
    }

    /// It is killed, and a new run begins. What was packed is known, as by a mapped file.
    pub fn kill(&mut self, now: u64, plan: &Plan, rng: &mut Rng) {
        let Some(spool) = &mut self.spool else { return };
        spool.restart();
        self.connection = None;
        self.connects_at = now + rng.range(1, 60);
        self.config.epoch = Epoch(rng.next());
        self.uplink = Uplink::new(self.config.clone(), now * TICK_MS);
        self.kept_bytes = 0;
        for stream in std::mem::take(&mut self.streams) {
            let key = stream.packer.key();
            let mut truth = stream.truth;
            if !truth.opened {
                continue;
            }
            let goes_on = !truth.ended;
            truth.is_backlog = true;
            // One that had packed its end ends there; another behind what was packed.
            let next_sequence = truth.blocks - u64::from(truth.ended);
            truth.blocks = next_sequence + 1;
            let (packets, bytes) = (truth.packets, truth.bytes);
            let place = Cursor { key, next_sequence, packets, bytes };
            let mut packer = Packer::at(place, Pool::new(1 << 20));
            let end = packer.seal_json(Kind::Report, &Report::default(), now, true).expect("room");
            let interfaces = truth.interfaces.clone();
            let announcement = Announcement { key, interfaces, ..Announcement::default() };
            self.former_ends.insert(key, (announcement, end));
            if goes_on {
                (truth.ended, truth.ended_at) = (true, now);
                self.add_stream(stream.prefix, now + 1, stream.ends_at.max(now + 2), Some(key));
            }
            self.former.insert(key, truth);
        }
        for (announcement, end) in self.former_ends.values() {
            self.kept_bytes += end.bytes().len() + 200;
            self.uplink.handle_former_end(announcement.clone(), end.clone());
        }
        if self.streams.is_empty() {
            self.add_stream("eth", now + 1, plan.ticks, None);
        }
    }

    /// Ends every stream that has not ended.
    pub fn end(&mut self, now: u64, rng: &mut Rng) -> Result<(), String> {
        for stream in &mut self.streams {
            stream.opens_at = stream.opens_at.min(now);
            stream.ends_at = 0;
        }
        self.capture(now, rng)
    }

    /// Makes packets, descriptions, reports and ends, and serves the spool.
    pub fn capture(&mut self, now: u64, rng: &mut Rng) -> Result<(), String> {
        self.last_tick = now;
        for index in 0..self.streams.len() {
            let stream = &mut self.streams[index];
            if now < stream.opens_at || stream.truth.ended {
                continue;
            }
            if !stream.truth.opened {
                stream.truth.opened = true;
                self.describe(index, now, true);
            } else if rng.one_in(40) {
                self.describe(index, now, true);
            }
            for _ in 0..rng.range(0, self.busy) {
                if rng.one_in(2) {
                    let count = rng.range(1, 25);
                    self.packets(index, count, now, rng);
                }
            }
            if rng.one_in(15) {
                self.report(index, now, false);
            }
            if now >= self.streams[index].ends_at {
                self.report(index, now, true);
            }
            let key = self.streams[index].packer.key();
            if rng.one_in(4) {
                self.uplink.handle_mark(key.stream, now * 1_000_000);
            }
            self.check_budget()?;
        }
        Ok(())
    }

    /// Streams that the uplink wants succeeded, the spool, and the clock.
    pub fn turn(&mut self, now: u64, plan: &Plan, rng: &mut Rng) -> Result<(), String> {
        self.uplink.handle_timeout(now * TICK_MS);
        while let Some(number) = self.uplink.poll_succession() {
            let index = number as usize;
            let Some(stream) = self.streams.get(index).filter(|one| one.truth.opened && !one.truth.ended)
            else {
                continue;
            };
            let (prefix, ends_at, key) = (stream.prefix, stream.ends_at, stream.packer.key());
            let interfaces = stream.truth.interfaces.clone();
            self.report(index, now, true);
            self.streams[index].truth.is_backlog = true;
            self.add_stream(prefix, now, ends_at, Some(key));
            let successor = self.streams.len() - 1;
            let truth = &mut self.streams[successor].truth;
            (truth.opened, truth.interfaces) = (true, interfaces);
            self.describe(successor, now, false);
        }
        if let Some(spool) = &mut self.spool {
            spool.is_failing = plan.spool_fails && now < plan.ticks && (now / 40) % 3 == 1;
            spool.serve(&mut self.uplink, rng);
        }
        while let Some((key, _)) = self.uplink.poll_done() {
            self.former_ends.remove(&key);
        }
        self.check_budget()
    }

    /// What is retained is within the budget, but for blocks that must not be dropped, that are
    /// being written or that came back.
    fn check_budget(&self) -> Result<(), String> {
        let found = self.uplink.totals().retained_bytes;
        let over = if self.spool.is_some() { self.config.memory_bytes / 2 + 10_000 } else { 0 };
        if found > self.config.memory_bytes + self.kept_bytes + over {
            return Err(format!("{}: retains {found} bytes of {}", self.name, self.config.memory_bytes));
        }
        Ok(())
    }

    /// Bytes of its descriptions, or more.
    pub fn description_bytes(&self) -> usize {
        self.kept_bytes
    }

    fn describe(&mut self, index: usize, now: u64, grows: bool) {
        let stream = &mut self.streams[index];
        let truth = &mut stream.truth;
        if grows {
            truth.interfaces.push(format!("{}{}", stream.prefix, truth.interfaces.len()));
        }
        let (interfaces, predecessor) = (truth.interfaces.clone(), truth.predecessor);
        let interface =
            |name: &String| Interface { name: name.clone(), link_type: 1, ..Interface::default() };
        let description = Description {
            name: self.name.clone(),
            interfaces: interfaces.iter().map(interface).collect(),
            opened_ns: stream.opens_at,
            predecessor,
            ..Description::default()
        };
        let key = stream.packer.key();
        self.uplink.handle_announcement(description.announcement(key));
        let block = stream.packer.seal_json(Kind::Description, &description, now * 1_000_000, false);
        let block = block.expect("the pool is large");
        stream.truth.blocks += 1;
        self.kept_bytes += block.bytes().len() + 1_000;
        self.uplink.handle_block(block);
    }

    fn packets(&mut self, index: usize, count: u64, now: u64, rng: &mut Rng) {
        let stream = &mut self.streams[index];
        let key = stream.packer.key();
        for _ in 0..count {
            let data = packet(key, stream.truth.packets);
            let interface = rng.next() % stream.truth.interfaces.len() as u64;
            let len = data.len() as u32;
            let time_ns = now * 1_000_000 + stream.truth.packets % 1_000;
            match stream.packer.push(interface as u32, time_ns, len, [&data[..]], &[]) {
                Ok(()) => {
                    stream.truth.packets += 1;
                    stream.truth.bytes += u64::from(len);
                }
                Err(PackError::Full) => break,
                Err(error) => panic!("packing: {error}"),
            }
        }
        if let Some(block) = stream.packer.seal() {
            stream.truth.blocks += 1;
            self.uplink.handle_block(block);
        }
    }

    fn report(&mut self, index: usize, now: u64, end: bool) {
        let stream = &mut self.streams[index];
        let key = stream.packer.key();
        let report = Report {
            time_ns: now * 1_000_000,
            packed_packets: stream.truth.packets,
            lost: self.uplink.lost(key),
            ..Report::default()
        };
        let block = stream.packer.seal_json(Kind::Report, &report, now * 1_000_000, end);
        stream.truth.blocks += 1;
        if end {
            (stream.truth.ended, stream.truth.ended_at) = (true, now);
        }
        self.uplink.handle_block(block.expect("the pool is large"));
    }

    pub fn handle_connected(&mut self, id: u64, now: u64) {
        self.connection = Some(id);
        self.acked.clear();
        self.uplink.handle_connected(now, now * TICK_MS);
    }

    pub fn handle_disconnected(&mut self, now: u64, rng: &mut Rng) {
        self.connection = None;
        self.connects_at = now + rng.range(1, 40);
        self.uplink.handle_disconnected(now * TICK_MS);
    }

    pub fn handle_control(&mut self, control: Control, now: u64) -> Result<(), String> {
        if let Control::Ack { streams } = &control {
            for ack in streams {
                let (key, now_received) = (ack.received.key, ack.received.next_sequence);
                let (received, settled) = self.acked.get(&key).copied().unwrap_or_default();
                if now_received < received || ack.settled < settled || ack.settled > now_received {
                    return Err(format!("{}: {ack:?} after {received} and {settled}", self.name));
                }
                let Some(truth) = self.truth_mut(key) else {
                    return Err(format!("{}: {ack:?} of a stream that it has not", self.name));
                };
                if now_received > truth.blocks {
                    let text = format!("{ack:?}, but there are {} blocks", truth.blocks);
                    return Err(format!("{}: {text}", self.name));
                }
                truth.is_done |= truth.ended && ack.settled == truth.blocks;
                self.acked.insert(key, (now_received, ack.settled));
            }
        }
        self.uplink.handle_control(control, now).map_err(|error| format!("{}: {error}", self.name))?;
        self.check_budget()
    }

    fn truth_mut(&mut self, key: StreamKey) -> Option<&mut Truth> {
        if key.epoch == self.config.epoch {
            return self.streams.get_mut(key.stream as usize).map(|stream| &mut stream.truth);
        }
        self.former.get_mut(&key)
    }

    /// Streams of which the relay has not received everything.
    pub fn behind(&self) -> Option<String> {
        if self.spool.is_some() {
            let what = || format!("{}: not settled: {:?}", self.name, self.uplink.totals());
            return (!self.uplink.is_settled()).then(what);
        }
        self.streams.iter().find_map(|stream| {
            let key = stream.packer.key();
            let (received, _) = self.acked.get(&key).copied().unwrap_or_default();
            (stream.truth.opened && !stream.truth.is_done && received < stream.truth.blocks)
                .then(|| format!("{key}: {received} of {} blocks are received", stream.truth.blocks))
        })
    }

    /// Nothing is asked of the spool.
    pub fn is_idle(&self) -> bool {
        self.spool.as_ref().is_none_or(Spool::is_idle)
    }
}
