//! The relay's core under publishers and viewers that do whatever they like, in any order. No
//! operation makes it panic, no queue grows beyond its bound, and a viewer that keeps to the protocol
//! is never told anything that breaks it.
#![no_main]

use std::collections::BTreeMap;

use arbitrary::Arbitrary;
use fuzz::ops::{Announced, BLOCK_BYTES_MAX, Block, Key, Notice, Number, Place, Wanted};
use libfuzzer_sys::fuzz_target;
use wire::access::Grant;
use wire::block::Epoch;
use wire::downlink::Downlink;
use wire::hub::{Hub, HubConfig, Output, PeerId, Run};
use wire::message::{Control, Cursor, Envelope};

const CONFIG: HubConfig = HubConfig { viewer_queue_bytes: 4096, recent_bytes: 8192 };
const WORKER: PeerId = PeerId(99);
const ROUNDS_MAX: usize = 200;

#[derive(Arbitrary, Debug)]
enum Op {
    Publisher {
        peer: u8,
        epoch: u8,
        home: u8,
    },
    /// One that says what it likes.
    Viewer {
        peer: u8,
        wanted: Wanted,
        cursors: Vec<Place>,
    },
    /// One that keeps to the protocol; it may have been here before.
    SoundViewer {
        peer: u8,
    },
    Leave {
        peer: u8,
    },
    Stream {
        peer: u8,
        announced: Announced,
    },
    Blocks {
        peer: u8,
        block: Block,
        times: u8,
        flags: u8,
    },
    Skipped {
        peer: u8,
        notice: Notice,
    },
    End {
        peer: u8,
        place: Place,
    },
    Mark {
        peer: u8,
        epoch: u8,
        stream: u8,
        time: Number,
    },
    Paced {
        peer: u8,
        wants: bool,
    },
    Progress {
        peer: u8,
        messages: Number,
    },
    DataSent {
        peer: u8,
        messages: Number,
    },
    Read {
        peer: u8,
        count: u8,
    },
    WorkerSettled {
        key: Key,
        settled: Number,
    },
    Timeout {
        ms: u16,
        limit_ms: u16,
    },
    Shed,
    List,
}

struct World {
    hub: Hub,
    now_ms: u64,
    /// Viewers that keep to the protocol, whether here or not, and data messages they got.
    sound: BTreeMap<PeerId, (Downlink, u64)>,
}

/// Publishers, viewers and sound viewers have ids of their own.
fn publisher(peer: u8) -> PeerId {
    PeerId(u64::from(peer % 4))
}
fn viewer(peer: u8) -> PeerId {
    PeerId(10 + u64::from(peer % 4))
}
fn sound_viewer(peer: u8) -> PeerId {
    PeerId(20 + u64::from(peer % 3))
}
fn anyone(peer: u8) -> PeerId {
    match peer % 3 {
        0 => publisher(peer / 3),
        1 => viewer(peer / 3),
        _ => sound_viewer(peer / 3),
    }
}

impl World {
    fn leave(&mut self, peer: PeerId, for_good: bool) {
        self.hub.remove_peer(peer, for_good, self.now_ms);
    }

    /// What the relay does of a publisher that broke the protocol.
    fn checked<E: std::fmt::Display>(&mut self, peer: PeerId, done: Result<(), E>) {
        if let Err(error) = done {
            assert!(!error.to_string().is_empty());
            self.leave(peer, false);
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Publisher { peer, epoch, home } => {
                let was_elsewhere = home > 250;
                let [epoch, home] = [epoch, home].map(|value| Epoch(u64::from(value % 4)));
                self.leave(publisher(peer), false);
                let run = Run { owner: "one".into(), name: "host".into(), epoch, home, was_elsewhere };
                self.hub.add_publisher(publisher(peer), run, "address".into()).expect("one owner");
            }
            Op::Viewer { peer, wanted, cursors } => {
                let cursors: Vec<Cursor> = cursors.into_iter().map(Place::value).collect();
                let peer = viewer(peer);
                let run = Epoch(peer.0);
                let done = self.hub.add_viewer(peer, run, &wanted.value(), &Grant::anyone(), &cursors);
                self.checked(peer, done);
            }
            Op::SoundViewer { peer } => self.connect(sound_viewer(peer)),
            Op::Leave { peer } => self.leave(anyone(peer), peer > 127),
            Op::Stream { peer, announced } => {
                let done = self.hub.handle_stream(publisher(peer), announced.value());
                self.checked(publisher(peer), done);
            }
            Op::Blocks { peer, block, times, flags } => {
                let envelope =
                    Envelope { resend: flags & 1 != 0, backlog: flags & 2 != 0, replay: flags & 4 != 0 };
                for ahead in 0..=u64::from(times) {
                    let ahead = if flags & 8 != 0 { 0 } else { ahead };
                    let done = self.hub.handle_block(publisher(peer), envelope, block.bytes(ahead));
                    let is_done = done.is_ok();
                    self.checked(publisher(peer), done);
                    self.do_outputs();
                    if !is_done {
                        break;
                    }
                }
            }
            Op::Skipped { peer, notice } => self.hub.handle_skipped(publisher(peer), &notice.value()),
            Op::End { peer, place } => self.hub.handle_end(publisher(peer), place.value(), "it says so"),
            Op::Mark { peer, epoch, stream, time } => {
                let epoch = Epoch(u64::from(epoch % 4));
                self.hub.handle_mark(publisher(peer), epoch, u32::from(stream % 4), time.value());
            }
            Op::Paced { peer, wants } => self.hub.handle_paced(publisher(peer), wants),
            Op::Progress { peer, messages } => self.hub.handle_progress(viewer(peer), messages.value()),
            Op::DataSent { peer, messages } => self.hub.handle_data_sent(viewer(peer), messages.value()),
            Op::Read { peer, count } => self.read(anyone(peer), count),
            Op::WorkerSettled { key, settled } => {
                self.hub.handle_worker_settled(WORKER, key.value(), settled.value());
            }
            Op::Timeout { ms, limit_ms } => {
                self.now_ms += u64::from(ms);
                self.hub.handle_timeout(self.now_ms, limit_ms.into());
            }
            Op::Shed => {
                self.hub.shed();
            }
            Op::List => assert!(self.hub.list(|_| true).0.len() <= Key::COUNT),
        }
        self.do_outputs();
        while let Some((_, ack)) = self.hub.poll_ack() {
            assert!(matches!(ack, Control::Ack { .. }));
        }
        self.check();
    }

    fn connect(&mut self, peer: PeerId) {
        self.leave(peer, false);
        let fresh = || (Downlink::new(Epoch(peer.0), "fuzz".into(), Some(Default::default())), 0);
        let (downlink, messages) = self.sound.entry(peer).or_insert_with(fresh);
        *messages = 0;
        downlink.handle_connected(0);
        let welcome = Control::Welcome {
            protocol: 1,
            instance: Epoch(1),
            agent: "fuzz".into(),
            clock_ns: 0,
            sees: Vec::new(),
        };
        downlink.handle_control(welcome, 0).expect("a welcome of ours");
        while let Some(control) = downlink.poll_control() {
            if let Control::Subscribe { selection, cursors } = control {
                self.hub
                    .add_viewer(peer, Epoch(peer.0), &selection, &Grant::anyone(), &cursors)
                    .expect("no globs");
            }
        }
    }

    /// Somebody reads some data messages; who is sound says so.
    fn read(&mut self, peer: PeerId, count: u8) {
        for _ in 0..count {
            let Some((envelope, block)) = self.hub.poll_data(peer) else { break };
            if let Some((downlink, messages)) = self.sound.get_mut(&peer) {
                let message = [&envelope.emit()[..], &block].concat();
                downlink.handle_data(message.into()).expect("the hub sends what is joined");
                while downlink.poll_event().is_some() {}
                *messages += 1;
                let messages = *messages;
                self.hub.handle_data_sent(peer, messages);
                self.hub.handle_progress(peer, messages);
            }
            self.do_outputs();
        }
    }

    fn do_outputs(&mut self) {
        while let Some(output) = self.hub.poll_output() {
            match output {
                Output::Control { to, control } => {
                    if let Some((downlink, _)) = self.sound.get_mut(&to) {
                        downlink.handle_control(control, 0).expect("the hub keeps to the protocol");
                        while downlink.poll_event().is_some() {}
                    }
                }
                Output::Data { .. } => {}
                Output::Close { peer, .. } => self.leave(peer, false),
            }
        }
    }

    fn check(&self) {
        // As much again for descriptions and reports, one over, and what each stream replays at a join
        // or after a gap: its description and its end.
        let limit = 2 * CONFIG.viewer_queue_bytes + (1 + 2 * Key::COUNT) * BLOCK_BYTES_MAX;
        for peer in (0..99).map(PeerId) {
            let queued = self.hub.queued_bytes(peer).unwrap_or(0);
            assert!(queued <= limit, "{queued} bytes wait for {peer:?}, at most {limit}");
        }
    }
}

fuzz_target!(|input: (bool, Vec<Op>)| {
    let mut world = World { hub: Hub::new(CONFIG), now_ms: 0, sound: BTreeMap::new() };
    if input.0 {
        world.hub.add_worker(WORKER, CONFIG.viewer_queue_bytes);
    }
    for op in input.1.into_iter().take(ROUNDS_MAX) {
        world.run(op);
    }
    // Whoever leaves takes what waited for it along.
    for peer in (0..99).map(PeerId) {
        world.leave(peer, true);
    }
    world.do_outputs();
    assert_eq!(world.hub.peer_counts(), (0, 0));
});
