//! The sniffer's side of the protocol under a relay that says whatever it likes: what is captured is
//! kept within the memory it may take, and counted.
#![no_main]

use std::collections::BTreeMap;

use arbitrary::Arbitrary;
use fuzz::ops::{Announced, Number, Place};
use libfuzzer_sys::fuzz_target;
use wire::block::{Epoch, StreamKey};
use wire::message::{Announcement, Control, StreamAck};
use wire::pack::{Compression, Packer};
use wire::pool::Pool;
use wire::uplink::{Uplink, UplinkConfig};

const MEMORY_BYTES: usize = 8192;
const PACKET_BYTES: usize = 200;

#[derive(Arbitrary, Debug)]
enum Op {
    /// A stream of this run is opened, goes on from another, has packets.
    Stream {
        announced: Announced,
    },
    Packets {
        stream: u8,
        count: u8,
    },
    Connected,
    Disconnected,
    Welcome {
        protocol: u8,
    },
    Ack {
        acks: Vec<(Place, Number)>,
    },
    /// What a sound relay says, so that things move.
    AckAll {
        settled: bool,
    },
    Takers {
        viewers: u32,
        marks: bool,
    },
    Window {
        bytes: u64,
    },
    Other(Vec<u8>),
    Send {
        count: u8,
    },
    Mark {
        stream: u8,
        time: u64,
    },
    Relieve {
        target: u16,
    },
    Time {
        ms: u16,
    },
}

fuzz_target!(|input: (bool, Vec<Op>)| {
    let epoch = Epoch(1);
    let config = UplinkConfig {
        name: "host".into(),
        agent: "fuzz".into(),
        epoch,
        home: epoch,
        memory_bytes: MEMORY_BYTES,
        has_spool: false,
        is_paced: input.0,
    };
    let mut uplink = Uplink::new(config, 0);
    let mut packers: BTreeMap<u32, Packer> = BTreeMap::new();
    let mut sent = BTreeMap::new();
    let (pool, mut now_ms, mut is_connected) = (Pool::new(4 << 20), 0, false);
    for op in input.1.into_iter().take(300) {
        let mut told = Ok(());
        match op {
            Op::Stream { announced } => {
                let announcement = announced.value();
                let key = StreamKey { epoch, ..announcement.key };
                let predecessor = announcement.predecessor.map(|other| StreamKey { epoch, ..other });
                let predecessor = predecessor.filter(|other| *other != key);
                packers
                    .entry(key.stream)
                    .or_insert_with(|| Packer::new(key, pool.clone(), 4096, Compression::None));
                uplink.handle_announcement(Announcement { key, predecessor, ..announcement });
            }
            Op::Packets { stream, count } => {
                if let Some(packer) = packers.get_mut(&u32::from(stream % 4)) {
                    for _ in 0..count % 8 {
                        let data = [0; PACKET_BYTES];
                        packer.push(0, 1, data.len() as u32, [&data[..]], &[]).expect("room");
                    }
                    if let Some(block) = packer.seal() {
                        uplink.handle_block(block);
                    }
                }
            }
            Op::Connected => {
                if !std::mem::replace(&mut is_connected, true) {
                    uplink.handle_connected(0, now_ms);
                }
            }
            Op::Disconnected => {
                if std::mem::replace(&mut is_connected, false) {
                    uplink.handle_disconnected(now_ms);
                }
            }
            Op::Welcome { protocol } => {
                let protocol = u32::from(protocol % 8 != 0);
                let instance = Epoch(7);
                let welcome = Control::Welcome {
                    protocol,
                    instance,
                    agent: String::new(),
                    clock_ns: 0,
                    sees: Vec::new(),
                };
                told = uplink.handle_control(welcome, 0);
            }
            Op::Ack { acks } => {
                let ack = |(place, settled): (Place, Number)| {
                    let mut received = place.value();
                    received.key.epoch = epoch;
                    StreamAck { received, settled: settled.value() }
                };
                let streams = acks.into_iter().map(ack).collect();
                told = uplink.handle_control(Control::Ack { streams }, 0);
            }
            Op::AckAll { settled } => {
                let ack = |(_, received): (&StreamKey, &wire::message::Cursor)| StreamAck {
                    received: *received,
                    settled: if settled { received.next_sequence } else { 0 },
                };
                let streams = sent.iter().map(ack).collect();
                told = uplink.handle_control(Control::Ack { streams }, 0);
            }
            Op::Takers { viewers, marks } => {
                told = uplink.handle_control(Control::Takers { viewers, marks }, 0)
            }
            Op::Window { bytes } => told = uplink.handle_control(Control::Window { bytes }, 0),
            Op::Other(bytes) => {
                if let Ok(control) = Control::from_json(&bytes) {
                    told = uplink.handle_control(control, 0);
                }
            }
            Op::Send { count } => {
                for _ in 0..count % 16 {
                    let Some(transmit) = uplink.poll_data() else { break };
                    if let wire::uplink::Transmit::Data(_, payload) = transmit {
                        let block = wire::block::PackedBlock::new(payload.plain()).expect("our own block");
                        sent.insert(block.header().key, block.end());
                    }
                }
            }
            Op::Mark { stream, time } => uplink.handle_mark(u32::from(stream % 4), time),
            Op::Relieve { target } => uplink.relieve(target.into()),
            Op::Time { ms } => {
                now_ms += u64::from(ms);
                uplink.handle_timeout(now_ms);
            }
        }
        if told.is_err() {
            is_connected = false;
            uplink.handle_disconnected(now_ms);
        }
        while uplink.poll_control().is_some() {}
        while uplink.poll_succession().is_some() {}
        while uplink.poll_done().is_some() {}
        // A block over: it is there before it is known not to fit.
        let retained = uplink.totals().retained_bytes;
        assert!(input.0 || retained <= MEMORY_BYTES + 8 * (PACKET_BYTES + 64), "{retained} bytes");
        let _ = (uplink.lost_in_all().packets(), uplink.waiting_blocks(), uplink.poll_timeout());
    }
});
