//! The viewer's side of the protocol under a relay that says whatever it likes, in any order.
#![no_main]

use arbitrary::Arbitrary;
use fuzz::ops::{Announced, Block, Notice, Number, Place};
use libfuzzer_sys::fuzz_target;
use wire::block::Epoch;
use wire::downlink::{Downlink, Event};
use wire::message::{Control, Envelope};

#[derive(Arbitrary, Debug)]
enum Op {
    Connected,
    Welcome { protocol: u8, instance: u8 },
    Subscribed { streams: u32 },
    Join { announced: Announced, packets: Number, bytes: Number, next_sequence: Number },
    Skipped(Notice),
    Gone { place: Place, ended: bool },
    Mark { epoch: u8, stream: u8, time: Number },
    Ping(u64),
    Error,
    Block { block: Block, times: u8, flags: u8, corrupt: bool },
    Bytes(Vec<u8>),
    Json(Vec<u8>),
    EndAbsent,
    Finish,
}

fuzz_target!(|ops: Vec<Op>| {
    let mut downlink = Downlink::new(Epoch(1), "fuzz".into(), Some(Default::default()));
    let control = |downlink: &mut Downlink, control| {
        let _ = downlink.handle_control(control, 1);
    };
    for op in ops.into_iter().take(300) {
        match op {
            Op::Connected => downlink.handle_connected(1),
            Op::Welcome { protocol, instance } => {
                let instance = Epoch(u64::from(instance % 3));
                let protocol = u32::from(protocol % 8 != 0);
                let welcome = Control::Welcome {
                    protocol,
                    instance,
                    agent: String::new(),
                    clock_ns: 0,
                    sees: Vec::new(),
                };
                control(&mut downlink, welcome);
            }
            Op::Subscribed { streams } => control(&mut downlink, Control::Subscribed { streams }),
            Op::Join { announced, packets, bytes, next_sequence } => {
                let (status, next_sequence) = (announced.status(packets, bytes), next_sequence.value());
                control(&mut downlink, Control::Join { status, next_sequence });
            }
            Op::Skipped(notice) => control(&mut downlink, notice.value()),
            Op::Gone { place, ended } => {
                let (place, reason) = (place.value(), "it says so".to_owned());
                control(&mut downlink, Control::Gone { place, reason, ended });
            }
            Op::Mark { epoch, stream, time } => {
                let (epoch, stream) = (Epoch(u64::from(epoch % 4)), u32::from(stream % 4));
                control(&mut downlink, Control::Mark { epoch, stream, complete_through_ns: time.value() });
            }
            Op::Ping(clock_ns) => control(&mut downlink, Control::Ping { clock_ns }),
            Op::Error => control(&mut downlink, Control::Error { reason: "go away".into() }),
            Op::Block { block, times, flags, corrupt } => {
                let envelope =
                    Envelope { resend: flags & 1 != 0, backlog: flags & 2 != 0, replay: flags & 4 != 0 };
                for ahead in 0..=u64::from(times % 8) {
                    let message = [&envelope.emit()[..], &block.bytes(ahead)].concat();
                    let _ = downlink.handle_data(message.into());
                    while let Some(event) = downlink.poll_event() {
                        if let (true, Event::Packets(block)) = (corrupt, event) {
                            downlink.handle_corrupt(block.header());
                        }
                    }
                }
            }
            Op::Bytes(bytes) => {
                let _ = downlink.handle_data(bytes.into());
            }
            Op::Json(bytes) => {
                if let Ok(message) = Control::from_json(&bytes) {
                    control(&mut downlink, message);
                }
            }
            Op::EndAbsent => downlink.end_absent("gone"),
            Op::Finish => downlink.finish(),
        }
        while downlink.poll_control().is_some() {}
        while downlink.poll_event().is_some() {}
        for stream in downlink.streams().values() {
            let _ = (stream.missing.packets(), stream.missing.text());
        }
    }
});
