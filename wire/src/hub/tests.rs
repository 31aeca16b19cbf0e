//! Tests of the hub as a state machine. The simulation in `tests/sim.rs` drives it by seed.

use super::*;
use crate::pack::{Compression, Packer};
use crate::pool::Pool;

const SNIFFER: PeerId = PeerId(1);
const VIEWER: PeerId = PeerId(2);
const OTHER: PeerId = PeerId(3);
const EPOCH: Epoch = Epoch(77);
const VIEWER_RUN: Epoch = Epoch(2);

fn run(name: &str, epoch: Epoch) -> Run {
    Run { owner: "us".into(), name: name.into(), epoch, home: epoch, was_elsewhere: false }
}

fn all() -> Grant {
    Grant::anyone()
}

fn packer() -> Packer {
    Packer::new(StreamKey { epoch: EPOCH, stream: 0 }, Pool::new(1 << 30), 64 << 10, Compression::None)
}

fn block(packer: &mut Packer, bytes: usize) -> Bytes {
    packer.push(0, 1, bytes as u32, [&vec![1; bytes][..]], &[]).expect("room");
    packer.seal().expect("a packet").bytes().clone()
}

fn hub(viewer_queue_bytes: usize) -> Hub {
    let mut hub = Hub::new(HubConfig { viewer_queue_bytes, recent_bytes: 0 });
    hub.add_publisher(SNIFFER, run("host", EPOCH), "[::1]:1".into()).expect("its own");
    hub.handle_stream(SNIFFER, announcement(0, vec!["eth0".into()])).expect("a publisher");
    hub
}

fn announcement(stream: u32, interfaces: Vec<String>) -> Announcement {
    let key = StreamKey { epoch: EPOCH, stream };
    Announcement { key, interfaces, opened_ns: 5, ..Announcement::default() }
}

fn outputs(hub: &mut Hub) -> Vec<Output> {
    std::iter::from_fn(|| hub.poll_output()).collect()
}

fn sequences(hub: &mut Hub, peer: PeerId) -> Vec<u64> {
    std::iter::from_fn(|| hub.poll_data(peer))
        .map(|(_, bytes)| PackedBlock::new(bytes).expect("a block").header().sequence)
        .collect()
}

fn acked(hub: &mut Hub) -> (u64, u64) {
    match hub.poll_ack() {
        Some((SNIFFER, Control::Ack { streams })) => (streams[0].received.next_sequence, streams[0].settled),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_viewer_gets_what_comes_after_it_joined_by_reference() {
    let (mut hub, mut packer) = (hub(1 << 20), packer());
    hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 10)).expect("well formed");
    hub.add_viewer(VIEWER, VIEWER_RUN, &Selection::default(), &all(), &[]).expect("globs");
    let out = outputs(&mut hub);
    assert!(
        matches!(&out[0], Output::Control { to: VIEWER, control: Control::Join { next_sequence: 1, status } }
            if status.packets == 1 && status.name == "host"),
        "{out:?}"
    );
    assert!(
        out.contains(&Output::Control { to: SNIFFER, control: Control::Takers { viewers: 1, marks: false } })
    );
    let second = block(&mut packer, 20);
    hub.handle_block(SNIFFER, Envelope::default(), second.clone()).expect("well formed");
    let (_, bytes) = hub.poll_data(VIEWER).expect("one waits");
    assert_eq!(bytes.as_ptr(), second.as_ptr(), "the very same memory");
    assert!(hub.poll_data(VIEWER).is_none());
}

#[test]
fn settled_waits_for_every_viewer_and_for_nobody_else() {
    let (mut hub, mut packer) = (hub(1 << 20), packer());
    hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 10)).expect("well formed");
    assert_eq!(acked(&mut hub), (1, 1), "with no viewer at once");
    for viewer in [VIEWER, OTHER] {
        hub.add_viewer(viewer, VIEWER_RUN, &Selection::default(), &all(), &[]).expect("globs");
    }
    outputs(&mut hub);
    for _ in 0..3 {
        hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 10)).expect("well formed");
    }
    assert_eq!(acked(&mut hub), (4, 1));
    assert_eq!(sequences(&mut hub, VIEWER), [1, 2, 3]);
    hub.handle_progress(VIEWER, 3);
    assert!(hub.poll_ack().is_none(), "the other has nothing yet");
    hub.poll_data(OTHER).expect("waits");
    hub.handle_progress(OTHER, 1);
    assert_eq!(acked(&mut hub), (4, 2));
    hub.remove_peer(OTHER, false, 0);
    assert_eq!(acked(&mut hub), (4, 4), "who leaves waits for nothing");
}

#[test]
fn a_slow_viewer_skips_alone_and_is_told() {
    let (mut hub, mut packer) = (hub(3000), packer());
    hub.add_viewer(VIEWER, VIEWER_RUN, &Selection::default(), &all(), &[]).expect("globs");
    hub.add_viewer(OTHER, VIEWER_RUN, &Selection::default(), &all(), &[]).expect("globs");
    outputs(&mut hub);
    let mut other_has = Vec::new();
    for _ in 0..10 {
        hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 1000)).expect("well formed");
        other_has.extend(sequences(&mut hub, OTHER));
    }
    assert_eq!(other_has, (0..10).collect::<Vec<_>>());
    assert_eq!(sequences(&mut hub, VIEWER), [0, 1, 2]);
    outputs(&mut hub);
    hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 1000)).expect("well formed");
    let key = StreamKey { epoch: EPOCH, stream: 0 };
    let notice = Control::Skipped {
        key,
        first_sequence: 3,
        next_sequence: 10,
        packets: 7,
        bytes: 7000,
        stage: Stage::ViewerQueue,
    };
    assert!(outputs(&mut hub).contains(&Output::Control { to: VIEWER, control: notice }));
    assert_eq!(sequences(&mut hub, VIEWER), [10]);
    assert_eq!(sequences(&mut hub, OTHER), [10]);
    hub.handle_progress(VIEWER, 4);
    hub.handle_progress(OTHER, 11);
    assert_eq!(acked(&mut hub), (11, 11), "what is skipped is settled");
}

#[test]
fn memory_pressure_takes_the_longest_queue() {
    let (mut hub, mut packer) = (hub(1 << 20), packer());
    hub.add_viewer(VIEWER, VIEWER_RUN, &Selection::default(), &all(), &[]).expect("globs");
    for _ in 0..4 {
        hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 1000)).expect("well formed");
    }
    assert!(hub.shed());
    assert!(!hub.shed(), "nothing is left to shed");
    assert_eq!(acked(&mut hub), (4, 4));
    outputs(&mut hub);
    hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 1000)).expect("well formed");
    let told = outputs(&mut hub).into_iter().any(|output| {
        matches!(
            output,
            Output::Control {
                to: VIEWER,
                control: Control::Skipped {
                    first_sequence: 0,
                    next_sequence: 4,
                    packets: 4,
                    bytes: 4000,
                    stage: Stage::Budget,
                    ..
                }
            }
        )
    });
    assert!(told);
    assert_eq!(sequences(&mut hub, VIEWER), [4]);
}

#[test]
fn resent_blocks_are_taken_once_and_gaps_are_told() {
    let (mut hub, mut packer) = (hub(1 << 20), packer());
    hub.add_viewer(VIEWER, VIEWER_RUN, &Selection::default(), &all(), &[]).expect("globs");
    let blocks: Vec<Bytes> = (0..5).map(|_| block(&mut packer, 10)).collect();
    for index in [0, 1, 0, 1] {
        hub.handle_block(SNIFFER, Envelope::default(), blocks[index].clone()).expect("well formed");
    }
    let gap = Gap { first_sequence: 2, next_sequence: 4, packets: 2, bytes: 20 };
    hub.handle_skipped(SNIFFER, &gap.control(packer.key(), Stage::NoBuffer));
    hub.handle_skipped(OTHER, &gap.control(packer.key(), Stage::Corrupt)); // not its stream
    hub.handle_block(SNIFFER, Envelope::default(), blocks[4].clone()).expect("well formed");
    assert_eq!(hub.totals().duplicates, 2);
    let told = outputs(&mut hub).into_iter().any(|output| {
        matches!(
            output,
            Output::Control {
                to: VIEWER,
                control: Control::Skipped {
                    first_sequence: 2,
                    next_sequence: 4,
                    packets: 2,
                    stage: Stage::NoBuffer,
                    ..
                }
            }
        )
    });
    assert!(told);
    assert_eq!(sequences(&mut hub, VIEWER), [0, 1, 4]);
}

#[test]
fn a_newer_connection_of_an_epoch_replaces_the_older() {
    let (mut hub, mut packer) = (hub(1 << 20), packer());
    hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 10)).expect("well formed");
    hub.add_publisher(OTHER, run("host", EPOCH), "[::1]:2".into()).expect("its own");
    assert!(outputs(&mut hub).iter().any(|output| matches!(output, Output::Close { peer: SNIFFER, .. })));
    let late = block(&mut packer, 10);
    assert!(matches!(
        hub.handle_block(SNIFFER, Envelope::default(), late.clone()),
        Err(HubError::NotPublisher { .. })
    ));
    hub.handle_stream(OTHER, announcement(0, vec!["eth0".into()])).expect("a publisher");
    let Some((OTHER, Control::Ack { streams })) = hub.poll_ack() else { panic!("it is told how far we are") };
    assert_eq!((streams[0].received.next_sequence, streams[0].settled), (1, 1));
    hub.handle_block(OTHER, Envelope::default(), late).expect("goes on");
}

#[test]
fn lying_publishers_are_refused() {
    let mut hub = hub(1 << 20);
    let mut packer = packer();
    let good = block(&mut packer, 10);
    let mut damaged = good.to_vec();
    damaged[20] ^= 1;
    assert!(matches!(
        hub.handle_block(SNIFFER, Envelope::default(), damaged.into()),
        Err(HubError::Block(_))
    ));
    assert!(matches!(
        hub.handle_block(SNIFFER, Envelope::default(), good.slice(..good.len() - 1)),
        Err(HubError::Block(_))
    ));
    assert!(matches!(
        hub.handle_block(VIEWER, Envelope::default(), good.clone()),
        Err(HubError::NotPublisher { .. })
    ));
    let key = StreamKey { epoch: EPOCH, stream: 9 };
    let mut other = Packer::new(key, Pool::new(1 << 20), 1 << 10, Compression::None);
    assert_eq!(
        hub.handle_block(SNIFFER, Envelope::default(), block(&mut other, 10)),
        Err(HubError::UnknownStream { key })
    );
    let key = StreamKey { epoch: Epoch(1), stream: 0 };
    let mut other = Packer::new(key, Pool::new(1 << 20), 1 << 10, Compression::None);
    assert_eq!(
        hub.handle_block(SNIFFER, Envelope::default(), block(&mut other, 10)),
        Err(HubError::UnknownStream { key })
    );
    for number in 1..STREAMS_PER_PUBLISHER_MAX as u32 {
        hub.handle_stream(SNIFFER, announcement(number, Vec::new())).expect("within the limit");
    }
    let over = hub.handle_stream(SNIFFER, announcement(u32::MAX, Vec::new()));
    assert_eq!(over, Err(HubError::TooManyStreams));
}

#[test]
fn the_end_of_a_stream_is_delivered_and_ended_streams_are_forgotten_in_time() {
    let mut hub = hub(1 << 20);
    hub.add_viewer(VIEWER, VIEWER_RUN, &Selection::default(), &all(), &[]).expect("globs");
    for number in 1..ENDED_STREAMS_MAX as u32 + 50 {
        hub.handle_stream(SNIFFER, announcement(number, Vec::new())).expect("within the limit");
        let key = StreamKey { epoch: EPOCH, stream: number };
        let mut packer = Packer::new(key, Pool::new(1 << 20), 1 << 10, Compression::None);
        let end = packer.seal_json(Kind::Report, &"end", 0, true).expect("room");
        hub.handle_block(SNIFFER, Envelope::default(), end.bytes().clone()).expect("well formed");
        outputs(&mut hub);
        assert_eq!(sequences(&mut hub, VIEWER), [0]);
        hub.handle_progress(VIEWER, u64::from(number));
    }
    assert_eq!(hub.list(|_| true).0.len(), ENDED_STREAMS_MAX + 1);
}

#[test]
fn a_sniffer_that_stays_away_is_given_up() {
    let (mut hub, mut packer) = (hub(1 << 20), packer());
    hub.add_viewer(VIEWER, VIEWER_RUN, &Selection::default(), &all(), &[]).expect("globs");
    hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 10)).expect("well formed");
    outputs(&mut hub);
    hub.remove_peer(SNIFFER, false, 1000);
    assert_eq!(hub.list(|_| true).0[0].state, "away");
    hub.handle_timeout(30_000, 60_000);
    assert_eq!(hub.list(|_| true).0[0].state, "away");
    hub.handle_timeout(61_000, 60_000);
    assert_eq!(hub.list(|_| true).0[0].state, "ended");
    let tells_gone =
        |output: &Output| matches!(output, Output::Control { control: Control::Gone { .. }, .. });
    assert!(!outputs(&mut hub).iter().any(tells_gone), "it would overtake the block that waits");
    assert_eq!(sequences(&mut hub, VIEWER), [0]);
    hub.handle_data_sent(VIEWER, 1);
    assert!(outputs(&mut hub).iter().any(tells_gone));
    // It comes back after all: refused, its packets would never arrive.
    hub.add_publisher(OTHER, run("host", EPOCH), "[::1]:2".into()).expect("its own");
    hub.handle_stream(OTHER, announcement(0, vec!["eth0".into()])).expect("a publisher");
    hub.handle_block(OTHER, Envelope::default(), block(&mut packer, 10)).expect("goes on");
    let joins_again =
        |output: &Output| matches!(output, Output::Control { control: Control::Join { .. }, .. });
    assert!(outputs(&mut hub).iter().any(joins_again));
    assert_eq!(sequences(&mut hub, VIEWER), [1]);
}

#[test]
fn a_sniffer_that_reconnects_is_not_given_up_before_it_announces() {
    let mut hub = hub(1 << 20);
    hub.handle_timeout(1_000_000, 60_000);
    hub.add_publisher(OTHER, run("host", EPOCH), "[::1]:2".into()).expect("its own");
    hub.handle_timeout(1_000_100, 60_000);
    assert_eq!(hub.list(|_| true).0[0].state, "away");
}

fn notices(hub: &mut Hub) -> Vec<(u64, u64, u64, Stage)> {
    let of_notice = |output| match output {
        Output::Control {
            control: Control::Skipped { first_sequence, next_sequence, packets, stage, .. },
            ..
        } => Some((first_sequence, next_sequence, packets, stage)),
        _ => None,
    };
    outputs(hub).into_iter().filter_map(of_notice).collect()
}

#[test]
fn what_is_shed_while_skipping_is_told_too() {
    let (mut hub, mut packer) = (hub(3000), packer());
    hub.add_viewer(VIEWER, VIEWER_RUN, &Selection::default(), &all(), &[]).expect("globs");
    outputs(&mut hub);
    for _ in 0..6 {
        hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 1000)).expect("well formed");
    }
    assert!(hub.shed());
    assert!(notices(&mut hub).is_empty());
    hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 1000)).expect("well formed");
    assert_eq!(notices(&mut hub), [(3, 6, 3, Stage::ViewerQueue), (0, 3, 3, Stage::Budget)]);
}

#[test]
fn a_description_that_is_shed_comes_again() {
    let (mut hub, mut packer) = (hub(1 << 20), packer());
    let description = packer.seal_json(Kind::Description, &"table", 0, false).expect("room");
    hub.handle_block(SNIFFER, Envelope::default(), description.bytes().clone()).expect("well formed");
    hub.add_viewer(VIEWER, VIEWER_RUN, &Selection::default(), &all(), &[]).expect("globs");
    outputs(&mut hub);
    assert!(hub.shed(), "the replay waits");
    hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 10)).expect("well formed");
    let out = outputs(&mut hub);
    assert!(out.contains(&Output::Data { to: VIEWER }), "the connection is woken: {out:?}");
    assert_eq!(sequences(&mut hub, VIEWER), [0, 1]);
}

#[test]
fn an_end_that_is_shed_comes_when_there_is_room() {
    let (mut hub, mut packer) = (hub(1 << 20), packer());
    hub.add_viewer(VIEWER, VIEWER_RUN, &Selection::default(), &all(), &[]).expect("globs");
    hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 10)).expect("well formed");
    let end = packer.seal_json(Kind::Report, &"end", 0, true).expect("room");
    hub.handle_block(SNIFFER, Envelope::default(), end.bytes().clone()).expect("well formed");
    assert!(hub.shed());
    outputs(&mut hub);
    assert!(sequences(&mut hub, VIEWER).is_empty());
    assert_eq!(notices(&mut hub), [(0, 1, 1, Stage::Budget)]);
    assert_eq!(sequences(&mut hub, VIEWER), [1]);
}

#[test]
fn blocks_wait_for_the_notices_before_them() {
    let (mut hub, mut packer) = (hub(1 << 20), packer());
    hub.add_viewer(VIEWER, VIEWER_RUN, &Selection::default(), &all(), &[]).expect("globs");
    hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 10)).expect("well formed");
    assert!(hub.poll_data(VIEWER).is_none(), "the join is not out yet");
    outputs(&mut hub);
    assert!(hub.poll_data(VIEWER).is_some());
}

#[test]
fn a_stream_that_comes_in_the_middle_begins_there() {
    let (mut hub, mut packer) = (hub(1 << 20), packer());
    hub.add_viewer(VIEWER, VIEWER_RUN, &Selection::default(), &all(), &[]).expect("globs");
    outputs(&mut hub);
    let description = packer.seal_json(Kind::Description, &"table", 0, false).expect("room");
    for _ in 0..3 {
        block(&mut packer, 10); // settled with a relay that is no more
    }
    let replay = Envelope { replay: true, ..Envelope::default() };
    hub.handle_block(SNIFFER, replay, description.bytes().clone()).expect("well formed");
    hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 10)).expect("well formed");
    let begins = |output: &Output| {
        matches!(output, Output::Control { to: VIEWER, control: Control::Join { next_sequence: 4, status } }
            if status.packets == 3)
    };
    let out = outputs(&mut hub);
    assert!(out.iter().any(begins), "{out:?}");
}

#[test]
fn who_joins_behind_a_notice_of_another_worker_is_told_too() {
    let mut far = Hub::new(HubConfig { viewer_queue_bytes: 1 << 20, recent_bytes: 1 << 20 });
    let (owner, mut packer) = (PeerId(100), packer());
    far.add_worker(owner, 1 << 20);
    let key = packer.key();
    far.handle_join(owner, StreamStatus { key, ..StreamStatus::default() }, 0);
    far.handle_block(owner, Envelope::default(), block(&mut packer, 10)).expect("well formed");
    block(&mut packer, 10);
    let gap = Gap { first_sequence: 1, next_sequence: 2, packets: 1, bytes: 10 };
    far.handle_skipped(owner, &gap.control(key, Stage::WorkerQueue));
    far.add_viewer(VIEWER, VIEWER_RUN, &Selection::default(), &all(), &[]).expect("globs");
    assert_eq!(notices(&mut far), [(1, 2, 1, Stage::WorkerQueue)]);
}

#[test]
fn another_worker_learns_that_a_table_has_grown() {
    let mut owner = hub(1 << 20);
    owner.add_worker(OTHER, 1 << 20);
    for interfaces in [vec!["eth0".to_owned()], vec!["eth0".to_owned(), "eth1".to_owned()]] {
        owner.handle_stream(SNIFFER, announcement(0, interfaces)).expect("a publisher");
    }
    let joins = outputs(&mut owner);
    let grown = |output: &Output| {
        matches!(output, Output::Control { to: OTHER, control: Control::Join { status, .. } }
            if status.interfaces.len() == 2)
    };
    assert!(joins.iter().any(grown), "{joins:?}");
}

#[test]
fn a_worker_passes_blocks_on_and_settles_for_its_viewers() {
    let (mut owner, mut packer) = (hub(1 << 20), packer());
    let mut far = Hub::new(HubConfig { viewer_queue_bytes: 1 << 20, recent_bytes: 1 << 20 });
    let (to_far, to_owner) = (PeerId(100), PeerId(101));
    owner.add_worker(to_far, 1 << 20);
    far.add_worker(to_owner, 1 << 20);
    owner.handle_stream(SNIFFER, announcement(0, vec!["eth0".into()])).expect("a publisher");
    for output in outputs(&mut owner) {
        if let Output::Control { to, control: Control::Join { status, next_sequence } } = output {
            assert_eq!(to, to_far);
            far.handle_join(to_owner, status, next_sequence);
        }
    }
    far.add_viewer(VIEWER, VIEWER_RUN, &Selection::default(), &all(), &[]).expect("globs");
    let takers = outputs(&mut far).into_iter().find_map(|output| match output {
        Output::Control { to, control: Control::Takers { viewers, marks } } if to == to_owner => {
            Some((viewers, marks))
        }
        _ => None,
    });
    let (viewers, marks) = takers.expect("the owner is told");
    owner.handle_worker_takers(to_far, viewers, marks);
    assert!(
        outputs(&mut owner).contains(&Output::Control {
            to: SNIFFER,
            control: Control::Takers { viewers: 1, marks: false }
        })
    );
    acked(&mut owner);
    owner.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 10)).expect("well formed");
    let (_, bytes) = owner.poll_data(to_far).expect("for the worker");
    far.handle_block(to_owner, Envelope::default(), bytes).expect("well formed");
    assert_eq!(acked(&mut owner), (1, 0));
    assert_eq!(sequences(&mut far, VIEWER), [0]);
    far.handle_progress(VIEWER, 1);
    let settled: Vec<_> = std::iter::from_fn(|| far.poll_settled()).collect();
    for (to, key, through) in settled {
        assert_eq!(to, to_owner);
        owner.handle_worker_settled(to_far, key, through);
    }
    assert_eq!(acked(&mut owner), (1, 1));
}

#[test]
fn paced_publishers_share_half_a_viewers_queue() {
    let mut hub = hub(64 << 20);
    let windows = |hub: &mut Hub| -> Vec<(u64, u64)> {
        let mut windows: Vec<_> = outputs(hub)
            .into_iter()
            .filter_map(|output| match output {
                Output::Control { to, control: Control::Window { bytes } } => Some((to.0, bytes >> 20)),
                _ => None,
            })
            .collect();
        windows.sort_unstable();
        windows
    };
    hub.handle_paced(SNIFFER, true);
    assert_eq!(windows(&mut hub), [(1, 32)]);
    hub.add_publisher(OTHER, run("file", Epoch(9)), "[::1]:2".into()).expect("its own");
    assert_eq!(windows(&mut hub), []);
    hub.handle_paced(OTHER, true);
    assert_eq!(windows(&mut hub), [(1, 16), (3, 16)]);
    hub.handle_paced(OTHER, true);
    assert_eq!(windows(&mut hub), [], "who says it again tells nobody anything");
    hub.remove_peer(SNIFFER, false, 0);
    assert_eq!(windows(&mut hub), [(3, 32)]);
}

#[test]
fn a_stream_that_ended_without_its_last_block_does_not_come_back() {
    let (mut hub, mut packer) = (hub(1 << 20), packer());
    hub.add_viewer(VIEWER, VIEWER_RUN, &Selection::default(), &all(), &[]).expect("globs");
    hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 10)).expect("well formed");
    outputs(&mut hub);
    assert_eq!(sequences(&mut hub, VIEWER), [0]);
    hub.handle_data_sent(VIEWER, 1);
    let place = Cursor { key: packer.key(), next_sequence: 3, packets: 2, bytes: 20 };
    hub.handle_end(SNIFFER, place, "thrown away");
    let gone = Control::Gone { place, reason: "thrown away".into(), ended: true };
    assert!(outputs(&mut hub).contains(&Output::Control { to: VIEWER, control: gone }));
    // The sniffer has not heard that this arrived, and announces it again.
    hub.add_publisher(OTHER, run("host", EPOCH), "[::1]:2".into()).expect("its own");
    hub.handle_stream(OTHER, announcement(0, vec!["eth0".into()])).expect("a publisher");
    let joins = |output: &Output| matches!(output, Output::Control { control: Control::Join { .. }, .. });
    assert!(!outputs(&mut hub).iter().any(joins));
    assert_eq!(hub.list(|_| true).0[0].state, "ended");
}

#[test]
fn the_end_of_a_stream_does_not_overtake_what_comes_out_of_the_recent_log() {
    let (mut hub, mut packer) =
        (Hub::new(HubConfig { viewer_queue_bytes: 1 << 20, recent_bytes: 1 << 20 }), packer());
    let elsewhere = Run { was_elsewhere: true, ..run("host", EPOCH) };
    hub.add_publisher(SNIFFER, elsewhere, "[::1]:1".into()).expect("its own");
    hub.handle_stream(SNIFFER, announcement(0, vec!["eth0".into()])).expect("a publisher");
    hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 10)).expect("well formed");
    let cursor = Cursor { key: packer.key(), ..Cursor::default() };
    hub.add_viewer(VIEWER, VIEWER_RUN, &Selection::default(), &all(), &[cursor]).expect("globs");
    outputs(&mut hub);
    assert_eq!(sequences(&mut hub, VIEWER), [0]);
    let place = Cursor { key: packer.key(), next_sequence: 1, packets: 1, bytes: 10 };
    hub.handle_end(SNIFFER, place, "thrown away");
    let tells_gone =
        |output: &Output| matches!(output, Output::Control { control: Control::Gone { .. }, .. });
    assert!(!outputs(&mut hub).iter().any(tells_gone), "the block is in the connection");
    hub.handle_data_sent(VIEWER, 1);
    assert!(outputs(&mut hub).iter().any(tells_gone));
}

/// Nor when its sniffer says its description again, for which the viewer that is behind has no room.
#[test]
fn a_description_said_again_waits_for_who_is_behind() {
    let (mut hub, mut packer) =
        (Hub::new(HubConfig { viewer_queue_bytes: 0, recent_bytes: 1 << 20 }), packer());
    let elsewhere = Run { was_elsewhere: true, ..run("host", EPOCH) };
    hub.add_publisher(SNIFFER, elsewhere, "[::1]:1".into()).expect("its own");
    hub.handle_stream(SNIFFER, announcement(0, vec!["eth0".into()])).expect("a publisher");
    let description = packer.seal_json(Kind::Description, &vec![7; 300], 1, false).expect("a buffer");
    hub.handle_block(SNIFFER, Envelope::default(), description.bytes().clone()).expect("well formed");
    for sequence in 1..=3 {
        let block = block(&mut packer, 10);
        if sequence != 2 {
            hub.handle_block(SNIFFER, Envelope::default(), block).expect("well formed");
        }
    }
    let cursor = Cursor { key: packer.key(), ..Cursor::default() };
    hub.add_viewer(VIEWER, VIEWER_RUN, &Selection::default(), &all(), &[cursor]).expect("globs");
    for _ in 0..2 {
        let replay = Envelope { replay: true, ..Envelope::default() };
        hub.handle_block(SNIFFER, replay, description.bytes().clone()).expect("well formed");
    }
    let end = packer.seal_json(Kind::Report, &vec![7], 1, true).expect("a buffer");
    hub.handle_block(SNIFFER, Envelope::default(), end.bytes().clone()).expect("well formed");
    outputs(&mut hub);
    assert_eq!(sequences(&mut hub, VIEWER), [0, 0, 1]);
    assert_eq!(notices(&mut hub), [(2, 3, 1, Stage::ViewerAway)]);
    assert_eq!(sequences(&mut hub, VIEWER), [0, 3, 4]);
}

#[test]
fn a_viewer_that_never_says_what_arrived_is_closed() {
    let (mut hub, mut packer) = (hub(1 << 20), packer());
    hub.add_viewer(VIEWER, VIEWER_RUN, &Selection::default(), &all(), &[]).expect("globs");
    outputs(&mut hub);
    let (mut sent, mut closed) = (0, Vec::new());
    for _ in 0..=IN_FLIGHT_MAX {
        hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 10)).expect("well formed");
        sent += sequences(&mut hub, VIEWER).len();
        closed.extend(outputs(&mut hub).into_iter().filter(|one| matches!(one, Output::Close { .. })));
    }
    assert_eq!(sent, IN_FLIGHT_MAX);
    assert!(matches!(closed[..], [Output::Close { peer: VIEWER, .. }]), "{closed:?}");
    hub.remove_peer(VIEWER, false, 0);
    assert_eq!(acked(&mut hub), (1 + IN_FLIGHT_MAX as u64, 1 + IN_FLIGHT_MAX as u64));
}

#[test]
fn runs_and_streams_belong_to_who_announced_them() {
    let mut hub = hub(1 << 20);
    let theirs = |epoch| Run { owner: "them".into(), ..run("host", epoch) };
    let taken = Err(HubError::Taken { epoch: EPOCH });
    assert_eq!(hub.add_publisher(OTHER, theirs(EPOCH), "[::1]:2".into()), taken, "it is connected");
    let home = Run { home: EPOCH, ..theirs(Epoch(5)) };
    assert_eq!(
        hub.add_publisher(OTHER, home, "[::1]:2".into()),
        Err(HubError::Taken { epoch: Epoch(5) }),
        "nor its spool's other runs"
    );
    hub.remove_peer(SNIFFER, false, 0);
    assert_eq!(hub.add_publisher(OTHER, theirs(EPOCH), "[::1]:2".into()), taken, "it is away");
    hub.add_publisher(OTHER, theirs(Epoch(5)), "[::1]:2".into()).expect("a run of its own");
    let announced = hub.handle_stream(OTHER, announcement(0, vec!["eth0".into()]));
    assert_eq!(announced, Err(HubError::Foreign { key: StreamKey { epoch: EPOCH, stream: 0 } }));
    let announced = hub.handle_stream(OTHER, announcement(7, vec!["eth0".into()]));
    let key = StreamKey { epoch: EPOCH, stream: 7 };
    assert_eq!(announced, Err(HubError::Foreign { key }), "nor another stream of the same run");
    hub.add_publisher(SNIFFER, run("host", EPOCH), "[::1]:1".into()).expect("it comes back");
    hub.handle_stream(SNIFFER, announcement(0, vec!["eth0".into()])).expect("to its own");
}

#[test]
fn a_viewer_learns_nothing_of_what_it_may_not_see() {
    let mut hub = hub(1 << 20);
    hub.add_viewer(VIEWER, VIEWER_RUN, &Selection::default(), &Grant::to_see(&["web-*"]), &[])
        .expect("globs");
    let mut packer = packer();
    hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 10)).expect("in order");
    let mut told = Vec::new();
    while let Some(output) = hub.poll_output() {
        told.push(output);
    }
    let to_viewer = |output: &&Output| !matches!(output, Output::Control { to, .. } if *to == SNIFFER);
    let told: Vec<&Output> = told.iter().filter(to_viewer).collect();
    assert_eq!(told, [&Output::Control { to: VIEWER, control: Control::Subscribed { streams: 0 } }]);
    assert!(hub.poll_data(VIEWER).is_none());
}

/// A publisher may repeat its description for ever: what waits for a viewer that does not read stays
/// within the bound, and the viewer gets the description before the next block all the same.
#[test]
fn descriptions_again_and_again_do_not_pile_up() {
    let (mut hub, mut packer) = (hub(3000), packer());
    hub.add_viewer(VIEWER, VIEWER_RUN, &Selection::default(), &all(), &[]).expect("globs");
    let description = packer.seal_json(Kind::Description, &vec![7; 300], 1, false).expect("a buffer");
    let replay = Envelope { replay: true, ..Envelope::default() };
    for _ in 0..1000 {
        // As a replay, and as a block that has come before in a stream that has not begun.
        hub.handle_block(SNIFFER, replay, description.bytes().clone()).expect("well formed");
        hub.handle_block(SNIFFER, Envelope::default(), description.bytes().clone()).expect("well formed");
    }
    let queued = hub.queued_bytes(VIEWER).expect("it is there");
    assert!(queued <= 2 * 3000 + description.bytes().len(), "{queued} bytes");
    outputs(&mut hub);
    while hub.poll_data(VIEWER).is_some() {}
    hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 10)).expect("well formed");
    outputs(&mut hub);
    let (envelope, bytes) = hub.poll_data(VIEWER).expect("it waits");
    assert!(envelope.replay && bytes == *description.bytes(), "the description that was left out");
    assert_eq!(sequences(&mut hub, VIEWER), [1]);
}

/// What is skipped for a viewer that does not read is not kept account of, block by block.
#[test]
fn blocks_nobody_waits_for_cost_nothing() {
    let (mut hub, mut packer) = (hub(3000), packer());
    hub.add_viewer(VIEWER, VIEWER_RUN, &Selection::default(), &all(), &[]).expect("globs");
    outputs(&mut hub);
    for _ in 0..1000 {
        hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 1000)).expect("well formed");
    }
    let key = StreamKey { epoch: EPOCH, stream: 0 };
    assert_eq!(hub.streams[&key].pending.len(), 3);
    assert_eq!(sequences(&mut hub, VIEWER), [0, 1, 2]);
    hub.handle_progress(VIEWER, 3);
    assert_eq!(acked(&mut hub), (1000, 1000));
}

#[test]
fn what_one_owner_announces_is_bounded() {
    let mut hub = hub(1 << 20);
    let pool = Pool::new(1 << 20);
    hub.set_budget(pool.clone());
    let names = || (0..1000).map(|number| format!("eth{number}")).collect::<Vec<_>>();
    let refused = (1..100).find_map(|stream| hub.handle_stream(SNIFFER, announcement(stream, names())).err());
    let key = StreamKey { epoch: EPOCH, stream: 3 };
    assert_eq!(refused, Some(HubError::Memory { key }), "an eighth of the budget");
    assert!(pool.used_bytes() <= (1 << 20) / 8);
    // Another owner has its own.
    let theirs = Run { owner: "them".into(), ..run("other", Epoch(5)) };
    hub.add_publisher(OTHER, theirs, "[::1]:2".into()).expect("its own");
    let key = StreamKey { epoch: Epoch(5), stream: 0 };
    let announced = Announcement { key, interfaces: names(), ..Announcement::default() };
    hub.handle_stream(OTHER, announced).expect("room");
}

#[test]
fn a_list_fits_into_a_message_and_tells_what_it_leaves_out() {
    let mut hub = hub(1 << 20);
    // Each character becomes six bytes of JSON.
    let name = "\u{1}".repeat(8_000);
    for stream in 1..100 {
        hub.handle_stream(SNIFFER, announcement(stream, vec![name.clone()])).expect("a publisher");
    }
    let (streams, omitted) = hub.list(|_| true);
    assert_eq!(streams.len() + omitted as usize, 100);
    assert!(omitted > 0 && Control::Streams { streams, omitted }.to_json().len() <= CONTROL_BYTES_MAX);
    assert_eq!(hub.list(|name| name != "host"), (Vec::new(), 0));
}

#[test]
fn the_lag_of_a_viewer_is_the_age_of_what_it_has_not_said_to_have() {
    let (mut hub, mut packer) = (hub(1 << 20), packer());
    assert_eq!(hub.viewer_figures(VIEWER), None);
    hub.add_viewer(VIEWER, VIEWER_RUN, &Selection::default(), &all(), &[]).expect("globs");
    outputs(&mut hub);
    let figures = |hub: &Hub| hub.viewer_figures(VIEWER).expect("it is there");
    for now_ms in [1000, 3000] {
        hub.handle_timeout(now_ms, 100_000);
        hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 1000)).expect("well formed");
    }
    hub.handle_timeout(4000, 100_000);
    let waiting = figures(&hub);
    assert_eq!((waiting.queued_blocks, waiting.lag_ms, waiting.sent_packets), (2, 3000, 0));
    assert!(waiting.queued_bytes >= 2000);
    assert_eq!(sequences(&mut hub, VIEWER), [0, 1]);
    let sent = figures(&hub);
    assert_eq!((sent.queued_blocks, sent.queued_bytes, sent.sent_packets), (0, 0, 2));
    assert_eq!(sent.lag_ms, 3000, "it may be in a buffer on the way");
    hub.handle_progress(VIEWER, 1);
    assert_eq!(figures(&hub).lag_ms, 1000);
    hub.handle_progress(VIEWER, 2);
    assert_eq!(figures(&hub).lag_ms, 0);
}

#[test]
fn what_came_in_what_went_out_and_what_was_skipped_is_counted_once() {
    let mut packer = packer();
    let mut hub = Hub::new(HubConfig { viewer_queue_bytes: 3000, recent_bytes: 0 });
    hub.add_worker(OTHER, 1 << 20);
    hub.add_publisher(SNIFFER, run("host", EPOCH), "[::1]:1".into()).expect("its own");
    hub.handle_stream(SNIFFER, announcement(0, vec!["eth0".into()])).expect("a publisher");
    hub.add_viewer(VIEWER, VIEWER_RUN, &Selection::default(), &all(), &[]).expect("globs");
    outputs(&mut hub);
    for _ in 0..10 {
        hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 1000)).expect("well formed");
    }
    assert_eq!(sequences(&mut hub, OTHER).len(), 10, "another worker is no viewer");
    assert_eq!(sequences(&mut hub, VIEWER), [0, 1, 2]);
    let totals = hub.totals();
    assert_eq!((totals.received.blocks, totals.received.packets), (10, 10));
    assert_eq!((totals.sent.blocks, totals.sent.packets), (3, 3));
    assert_eq!((totals.skipped.packets(), totals.skipped.packets_at(Stage::ViewerQueue)), (7, 7));
    assert_eq!(hub.viewer_figures(VIEWER).map(|figures| figures.skipped_packets), Some(7));
    assert_eq!(hub.stream_counts(), StreamCounts { live: 1, ..StreamCounts::default() });
    hub.remove_peer(SNIFFER, false, 5);
    assert_eq!(hub.totals(), totals, "who leaves takes nothing along");
    assert_eq!(hub.stream_counts(), StreamCounts { away: 1, ..StreamCounts::default() });

    // Another worker's stream is counted where its sniffer is.
    let key = StreamKey { epoch: Epoch(5), stream: 0 };
    let status = StreamStatus { key, name: "far".into(), state: "live".into(), ..StreamStatus::default() };
    hub.handle_join(OTHER, status, 0);
    let mut far = Packer::new(key, Pool::new(1 << 30), 64 << 10, Compression::None);
    hub.handle_block(OTHER, Envelope::default(), block(&mut far, 1000)).expect("well formed");
    outputs(&mut hub);
    assert_eq!(sequences(&mut hub, VIEWER), [0], "it came");
    assert_eq!(hub.totals().received, totals.received);
    assert_eq!(hub.stream_counts().live, 0);
}

#[test]
fn counters_of_sniffers_outlive_connections_and_are_bounded() {
    let (mut hub, mut packer) = (hub(1 << 20), packer());
    hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 10)).expect("well formed");
    hub.remove_peer(SNIFFER, false, 0);
    let packets = |hub: &Hub, name: &str| hub.received_by_name().get(name).map(|flow| flow.packets);
    assert_eq!(packets(&hub, "host"), Some(1));
    // It comes back, and one more of its name: the sum does not go back when either leaves.
    for (peer, epoch) in [(10, EPOCH), (11, Epoch(78))] {
        hub.add_publisher(PeerId(peer), run("host", epoch), "x".into()).expect("its own");
        assert_eq!(packets(&hub, "host"), Some(1));
    }
    hub.remove_peer(PeerId(11), false, 0);
    assert_eq!(packets(&hub, "host"), Some(1));
    // A thousand others come and go: who is there keeps its counters.
    for number in 0..2000_u64 {
        let (peer, name) = (PeerId(100 + number), format!("other-{number}"));
        hub.add_publisher(peer, run(&name, Epoch(1000 + number)), "x".into()).expect("its own");
        hub.remove_peer(peer, false, 0);
    }
    let by_name = hub.received_by_name();
    assert_eq!(by_name.len(), 1000, "the bound");
    assert_eq!(packets(&hub, "host"), Some(1));
    assert!(by_name.contains_key("other-1999") && !by_name.contains_key("other-0"));
}

/// A hub that keeps what came, with a stream and a viewer of it that has the first block.
fn hub_with_a_log() -> (Hub, Packer) {
    let (mut hub, mut packer) =
        (Hub::new(HubConfig { viewer_queue_bytes: 64 << 10, recent_bytes: 1 << 20 }), packer());
    hub.add_publisher(SNIFFER, run("host", EPOCH), "[::1]:1".into()).expect("its own");
    hub.handle_stream(SNIFFER, announcement(0, vec!["eth0".into()])).expect("a publisher");
    hub.add_viewer(VIEWER, VIEWER_RUN, &Selection::default(), &all(), &[]).expect("globs");
    outputs(&mut hub);
    hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 10)).expect("well formed");
    assert_eq!(sequences(&mut hub, VIEWER), [0]);
    assert!(hub.recent_bytes() > 0, "it may be lost before it has it");
    hub.handle_progress(VIEWER, 1);
    assert_eq!(hub.recent_bytes(), 0, "it has arrived, and nobody is away");
    (hub, packer)
}

#[test]
fn what_came_is_kept_while_a_viewer_is_away_and_until_it_has_it() {
    let (mut hub, mut packer) = hub_with_a_log();
    hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 10)).expect("well formed");
    assert_eq!(sequences(&mut hub, VIEWER), [1]);
    hub.remove_peer(VIEWER, false, 0);
    hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 10)).expect("well formed");
    let cursor = Cursor { key: packer.key(), next_sequence: 1, packets: 1, bytes: 10 };
    hub.add_viewer(OTHER, VIEWER_RUN, &Selection::default(), &all(), &[cursor]).expect("globs");
    outputs(&mut hub);
    assert_eq!(sequences(&mut hub, OTHER), [1, 2], "what it had not said to have, and what came since");
    hub.handle_progress(OTHER, 1);
    assert!(hub.recent_bytes() > 0);
    hub.handle_progress(OTHER, 2);
    assert_eq!(hub.recent_bytes(), 0);
}

#[test]
fn nothing_is_kept_for_a_viewer_that_took_its_leave() {
    let (mut hub, mut packer) = hub_with_a_log();
    hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 10)).expect("well formed");
    hub.remove_peer(VIEWER, true, 0);
    hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 10)).expect("well formed");
    assert_eq!(hub.recent_bytes(), 0);
}

#[test]
fn what_a_slow_viewer_is_skipped_for_is_kept_in_case_its_line_is_cut() {
    let (mut hub, mut packer) = hub_with_a_log();
    for _ in 0..10 {
        hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer, 30_000)).expect("well formed");
    }
    let queued = sequences(&mut hub, VIEWER);
    assert!(queued.len() < 10, "some are skipped");
    hub.remove_peer(VIEWER, false, 0);
    let cursor = Cursor { key: packer.key(), next_sequence: 1, packets: 1, bytes: 10 };
    hub.add_viewer(OTHER, VIEWER_RUN, &Selection::default(), &all(), &[cursor]).expect("globs");
    outputs(&mut hub);
    assert_eq!(sequences(&mut hub, OTHER), (1..=10).collect::<Vec<_>>());
}

#[test]
fn what_is_of_another_relays_viewers_is_kept() {
    let mut hub = Hub::new(HubConfig { viewer_queue_bytes: 1 << 20, recent_bytes: 1 << 20 });
    let elsewhere = Run { was_elsewhere: true, ..run("host", EPOCH) };
    hub.add_publisher(SNIFFER, elsewhere, "[::1]:1".into()).expect("its own");
    hub.handle_stream(SNIFFER, announcement(0, vec!["eth0".into()])).expect("a publisher");
    hub.handle_block(SNIFFER, Envelope::default(), block(&mut packer(), 10)).expect("well formed");
    assert!(hub.recent_bytes() > 0);
}
