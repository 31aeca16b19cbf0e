//! A simulated sniffer: an uplink, a packer for each stream, packets that carry their number.

use std::collections::BTreeMap;

use wire::Interface;
use wire::block::{Epoch, Kind, StreamKey};
use wire::description::Description;
use wire::ledger::Report;
use wire::message::{Announcement, Control};
use wire::pack::{Compression, PackError, Packer};
use wire::pool::Pool;
use wire::uplink::Uplink;

use crate::plan::Plan;
use crate::rng::Rng;

/// Bytes of a block before compression: small, so that there are many.
const BODY_BYTES: usize = 3_000;

#[derive(Debug, Default, Clone)]
pub struct Truth {
    /// Packets made.
    pub packets: u64,
    /// Blocks made.
    pub blocks: u64,
    pub interfaces: Vec<String>,
    pub opened: bool,
    pub ended: bool,
    /// When its end was made.
    pub ended_at: u64,
    /// Some relay has settled its end.
    pub is_done: bool,
    /// Packets that the uplink says it lost.
    pub lost: u64,
}

struct Stream {
    packer: Packer,
    opens_at: u64,
    ends_at: u64,
    truth: Truth,
}

pub struct Sniffer {
    pub name: String,
    pub uplink: Uplink,
    pub connection: Option<u64>,
    pub connects_at: u64,
    streams: Vec<Stream>,
    /// Received and settled as last acknowledged on this connection, by stream.
    pub acked: BTreeMap<u32, (u64, u64)>,
    /// Bytes that may go over the budget: blocks that are never dropped.
    kept_bytes: BTreeMap<u32, usize>,
    memory_bytes: usize,
    busy: u64,
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
        let stream = |number: u64, rng: &mut Rng| {
            let key = StreamKey { epoch, stream: number as u32 };
            let opens_at = if number == 0 { 0 } else { rng.range(0, plan.ticks / 2) };
            let ends_at = if rng.one_in(3) { rng.range(opens_at + 1, plan.ticks) } else { plan.ticks };
            let packer = Packer::new(key, Pool::new(64 << 20), BODY_BYTES, compression);
            Stream { packer, opens_at, ends_at, truth: Truth::default() }
        };
        let count = rng.range(1, 3);
        let streams = (0..count).map(|number| stream(number, rng)).collect();
        Self {
            uplink: Uplink::new(name.clone(), "sim".into(), epoch, plan.memory_bytes),
            name,
            connection: None,
            connects_at: rng.range(0, 20),
            streams,
            acked: BTreeMap::new(),
            kept_bytes: BTreeMap::new(),
            memory_bytes: plan.memory_bytes,
            busy: rng.range(1, 4),
        }
    }

    pub fn truths(&self) -> impl Iterator<Item = (StreamKey, Truth)> + '_ {
        self.streams.iter().map(|stream| {
            let key = stream.packer.key();
            (key, Truth { lost: self.uplink.lost(key.stream).packets(), ..stream.truth.clone() })
        })
    }

    /// Ends every stream that has not ended.
    pub fn end(&mut self, now: u64, rng: &mut Rng) -> Result<(), String> {
        for stream in &mut self.streams {
            stream.ends_at = 0;
        }
        self.capture(now, rng)
    }

    /// Makes packets, descriptions, reports and ends.
    pub fn capture(&mut self, now: u64, rng: &mut Rng) -> Result<(), String> {
        for index in 0..self.streams.len() {
            let stream = &mut self.streams[index];
            if now < stream.opens_at || stream.truth.ended {
                continue;
            }
            if !stream.truth.opened {
                stream.truth.opened = true;
                self.describe(index, now);
            } else if rng.one_in(40) {
                self.describe(index, now);
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

    /// What is retained is within the budget, but for blocks that must not be dropped.
    fn check_budget(&self) -> Result<(), String> {
        let (found, over) = (self.uplink.totals().retained_bytes, self.kept_bytes.values().sum::<usize>());
        if found > self.memory_bytes + over {
            return Err(format!("{}: retains {found} bytes of {}", self.name, self.memory_bytes));
        }
        Ok(())
    }

    /// Bytes of its descriptions, or more.
    pub fn description_bytes(&self) -> usize {
        self.kept_bytes.values().sum()
    }

    fn describe(&mut self, index: usize, now: u64) {
        let stream = &mut self.streams[index];
        let truth = &mut stream.truth;
        truth.interfaces.push(format!("{}{}", ["eth", "wlan"][index % 2], truth.interfaces.len()));
        let interfaces = truth.interfaces.clone();
        let interface =
            |name: &String| Interface { name: name.clone(), link_type: 1, ..Interface::default() };
        let description = Description {
            name: self.name.clone(),
            interfaces: interfaces.iter().map(interface).collect(),
            ..Description::default()
        };
        let key = stream.packer.key();
        let number = key.stream;
        let opened_ns = stream.opens_at;
        let announcement = Announcement { key, interfaces, opened_ns, ..Announcement::default() };
        self.uplink.handle_announcement(announcement);
        let block = stream.packer.seal_json(Kind::Description, &description, now * 1_000_000, false);
        let block = block.expect("the pool is large");
        stream.truth.blocks += 1;
        *self.kept_bytes.entry(number).or_insert(1_000) += block.bytes().len();
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
                Ok(()) => stream.truth.packets += 1,
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
        let number = stream.packer.key().stream;
        let report = Report {
            time_ns: now * 1_000_000,
            packed_packets: stream.truth.packets,
            lost: self.uplink.lost(number),
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
        self.uplink.handle_connected(now);
    }

    pub fn handle_disconnected(&mut self, now: u64, rng: &mut Rng) {
        self.connection = None;
        self.connects_at = now + rng.range(1, 40);
        self.uplink.handle_disconnected();
    }

    pub fn handle_control(&mut self, control: Control, now: u64) -> Result<(), String> {
        if let Control::Ack { streams } = &control {
            for ack in streams {
                let (number, now_received) = (ack.received.key.stream, ack.received.next_sequence);
                let (received, settled) = self.acked.get(&number).copied().unwrap_or_default();
                let sent = self.blocks_of(number);
                if now_received < received || ack.settled < settled || ack.settled > now_received {
                    return Err(format!("{}: {ack:?} after {received} and {settled}", self.name));
                }
                if now_received > sent {
                    return Err(format!("{}: {ack:?}, but there are {sent} blocks", self.name));
                }
                if let Some(stream) = self.streams.get_mut(number as usize) {
                    stream.truth.is_done |= stream.truth.ended && ack.settled == stream.truth.blocks;
                }
                self.acked.insert(number, (now_received, ack.settled));
            }
        }
        self.uplink.handle_control(control, now).map_err(|error| format!("{}: {error}", self.name))?;
        self.check_budget()
    }

    fn blocks_of(&self, number: u32) -> u64 {
        self.streams.get(number as usize).map_or(0, |stream| stream.truth.blocks)
    }

    /// Streams of which the relay has not received everything.
    pub fn behind(&self) -> Option<String> {
        self.streams.iter().find_map(|stream| {
            let key = stream.packer.key();
            let (received, _) = self.acked.get(&key.stream).copied().unwrap_or_default();
            (stream.truth.opened && !stream.truth.is_done && received < stream.truth.blocks)
                .then(|| format!("{key}: {received} of {} blocks are received", stream.truth.blocks))
        })
    }
}
