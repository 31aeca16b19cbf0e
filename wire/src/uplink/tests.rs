//! Tests of the uplink as a state machine. The simulation in `tests/sim.rs` drives it by seed.

use super::*;
use crate::block::StreamKey;
use crate::message::Cursor;
use crate::pack::{Compression, Packer};
use crate::pool::Pool;

fn packer() -> Packer {
    let key = StreamKey { epoch: Epoch(5), stream: 0 };
    Packer::new(key, Pool::new(1 << 30), 64 << 10, Compression::None)
}

fn block(packer: &mut Packer, bytes: usize) -> PackedBlock {
    packer.push(0, 1, bytes as u32, [&vec![1; bytes][..]], &[]).expect("room");
    packer.seal().expect("a packet")
}

const KEY: StreamKey = StreamKey { epoch: Epoch(5), stream: 0 };

fn config(memory_bytes: usize, has_spool: bool) -> UplinkConfig {
    UplinkConfig {
        name: "host".into(),
        agent: "test".into(),
        epoch: Epoch(5),
        home: Epoch(5),
        memory_bytes,
        has_spool,
        is_paced: false,
    }
}

fn streaming(memory_bytes: usize) -> Uplink {
    let mut uplink = Uplink::new(config(memory_bytes, false), 0);
    uplink.handle_announcement(Announcement { key: KEY, ..Announcement::default() });
    connect(&mut uplink);
    uplink
}

fn welcome(protocol: u32) -> Control {
    Control::Welcome { protocol, instance: Epoch(1), agent: String::new(), clock_ns: 0, sees: Vec::new() }
}

fn connect(uplink: &mut Uplink) {
    connect_without_streams(uplink);
    assert!(matches!(uplink.poll_control(), Some(Control::Stream(_))));
}

fn connect_without_streams(uplink: &mut Uplink) {
    uplink.handle_connected(0, 0);
    assert!(matches!(uplink.poll_control(), Some(Control::Hello { .. })));
    uplink.handle_control(welcome(PROTOCOL), 0).expect("in turn");
}

fn ack(uplink: &mut Uplink, received: u64, settled: u64) -> Result<(), UplinkError> {
    let received = Cursor { key: KEY, next_sequence: received, packets: received, bytes: received * 1000 };
    uplink.handle_control(Control::Ack { streams: vec![StreamAck { received, settled }] }, 0)
}

fn sent(uplink: &mut Uplink) -> Vec<(u64, bool)> {
    std::iter::from_fn(|| uplink.poll_data())
        .filter_map(|transmit| match transmit {
            Transmit::Data(envelope, payload) => {
                let block = PackedBlock::new(payload.plain()).expect("ours");
                Some((block.header().sequence, envelope.resend))
            }
            Transmit::Control(_) => None,
        })
        .collect()
}

#[test]
fn blocks_are_kept_until_settled_and_resent_after_a_cut() {
    let (mut packer, mut uplink) = (packer(), streaming(1 << 20));
    for _ in 0..4 {
        uplink.handle_block(block(&mut packer, 100));
    }
    assert_eq!(sent(&mut uplink), [(0, false), (1, false), (2, false), (3, false)]);
    ack(&mut uplink, 2, 1).expect("plausible");
    uplink.handle_disconnected(0);
    uplink.handle_block(block(&mut packer, 100));
    assert!(uplink.poll_data().is_none());
    connect(&mut uplink);
    assert!(uplink.poll_data().is_none(), "the relay says first how far it is");
    ack(&mut uplink, 3, 1).expect("plausible");
    assert_eq!(sent(&mut uplink), [(3, true), (4, false)]);
    ack(&mut uplink, 5, 5).expect("plausible");
    assert!(uplink.is_settled());
    assert_eq!(uplink.totals().settled_packets, 5);
    assert_eq!(uplink.totals().unsettled_sent_bytes, 0);
}

#[test]
fn what_is_held_is_told_by_how_far_it_has_come() {
    let (mut packer, mut uplink) = (packer(), streaming(1 << 20));
    for _ in 0..4 {
        uplink.handle_block(block(&mut packer, 100));
    }
    let bytes = uplink.totals().retained_bytes as u64 / 4;
    let amount = |blocks| Amount { blocks, packets: blocks, bytes: blocks * bytes };
    let held = |waiting, unacknowledged, unsettled| Held {
        waiting: amount(waiting),
        unacknowledged: amount(unacknowledged),
        unsettled: amount(unsettled),
        ..Held::default()
    };
    assert_eq!(uplink.held(), held(4, 0, 0));
    uplink.poll_data().expect("there is a line");
    assert_eq!(uplink.held(), held(3, 1, 0));
    sent(&mut uplink);
    ack(&mut uplink, 3, 1).expect("plausible");
    assert_eq!(uplink.held(), held(0, 1, 2));
    // Nobody knows any more what the relay has, until it says so.
    uplink.handle_disconnected(0);
    assert_eq!(uplink.held(), held(3, 0, 0));
    connect(&mut uplink);
    ack(&mut uplink, 3, 1).expect("plausible");
    assert_eq!(uplink.held(), held(1, 0, 2));
    assert_eq!(sent(&mut uplink), [(3, true)]);
    let totals = uplink.totals();
    assert_eq!((totals.resent_blocks, totals.resent_packets, totals.resent_bytes), (1, 1, bytes));
    ack(&mut uplink, 4, 4).expect("plausible");
    assert_eq!(uplink.held(), Held::default());
}

#[test]
fn the_relays_clock_is_measured_by_welcome_and_pong() {
    let mut uplink = Uplink::new(config(1 << 20, false), 0);
    assert_eq!(uplink.clock_offset(), None);
    uplink.handle_connected(1_000, 0);
    let mut welcome = welcome(PROTOCOL);
    if let Control::Welcome { clock_ns, .. } = &mut welcome {
        *clock_ns = 500;
    }
    uplink.handle_control(welcome, 1_200).expect("in turn");
    assert_eq!(uplink.clock_offset(), Some(ClockOffset { offset_ns: -600, error_ns: 100 }));
    // What a peer says is taken as it is, and does no harm.
    for (pong_ns, offset_ns) in [(2_060, 30), (0, -2_030), (u64::MAX, i64::MAX)] {
        let pong = Control::Pong { ping_ns: 2_000, clock_ns: pong_ns };
        uplink.handle_control(pong, 2_060).expect("harmless");
        assert_eq!(uplink.clock_offset(), Some(ClockOffset { offset_ns, error_ns: 30 }));
    }
    let pong = Control::Pong { ping_ns: u64::MAX, clock_ns: 7 };
    uplink.handle_control(pong, 2_060).expect("harmless");
    let offset = ClockOffset { offset_ns: i64::MIN, error_ns: 0 };
    assert_eq!(uplink.clock_offset(), Some(offset));
}

#[test]
fn beyond_memory_the_received_go_first_then_the_oldest_and_counted() {
    let (mut packer, mut uplink) = (packer(), streaming(3 * 1300));
    for _ in 0..3 {
        uplink.handle_block(block(&mut packer, 1000));
    }
    assert_eq!(sent(&mut uplink).len(), 3);
    ack(&mut uplink, 1, 0).expect("plausible");
    uplink.handle_block(block(&mut packer, 1000));
    assert_eq!(uplink.lost(KEY), Losses::default(), "the relay has what was let go");
    uplink.handle_disconnected(0);
    uplink.handle_block(block(&mut packer, 1000));
    uplink.handle_block(block(&mut packer, 1000));
    connect(&mut uplink);
    ack(&mut uplink, 1, 0).expect("plausible");
    assert_eq!(uplink.lost(KEY).packets_at(Stage::NoBuffer), 2);
    assert_eq!(sent(&mut uplink), [(3, false), (4, false), (5, false)]);
}

#[test]
fn what_the_relay_had_before_a_cut_is_not_counted_as_lost() {
    let (mut packer, mut uplink) = (packer(), streaming(3 * 1300));
    for _ in 0..3 {
        uplink.handle_block(block(&mut packer, 1000));
    }
    assert_eq!(sent(&mut uplink).len(), 3);
    uplink.handle_disconnected(0);
    for _ in 0..2 {
        uplink.handle_block(block(&mut packer, 1000));
    }
    assert_eq!(uplink.lost(KEY), Losses::default(), "nobody knows yet");
    connect(&mut uplink);
    ack(&mut uplink, 1, 1).expect("plausible");
    assert_eq!(uplink.lost(KEY).packets_at(Stage::NoBuffer), 1, "block 1; the relay had block 0");
}

#[test]
fn reports_of_a_long_outage_stay_within_memory() {
    let (mut packer, mut uplink) = (packer(), streaming(5_000));
    uplink.handle_disconnected(0);
    for _ in 0..500 {
        let report = crate::ledger::Report::default();
        uplink.handle_block(packer.seal_json(Kind::Report, &report, 0, false).expect("room"));
    }
    assert!(uplink.totals().retained_bytes <= 5_000);
    assert_eq!(uplink.lost(KEY), Losses::default());
}

#[test]
fn a_relay_that_starts_anew_is_given_the_last_description() {
    let (mut packer, mut uplink) = (packer(), streaming(1 << 20));
    let description = crate::description::Description::default();
    uplink.handle_block(packer.seal_json(Kind::Description, &description, 0, false).expect("room"));
    uplink.handle_block(block(&mut packer, 10));
    assert_eq!(sent(&mut uplink).len(), 2);
    ack(&mut uplink, 2, 2).expect("plausible");
    uplink.handle_disconnected(0);
    uplink.handle_block(block(&mut packer, 10));
    connect(&mut uplink);
    ack(&mut uplink, 0, 0).expect("plausible");
    assert_eq!(sent(&mut uplink), [(0, true), (2, false)]);
    ack(&mut uplink, 3, 3).expect("plausible");
    assert!(uplink.is_settled());
}

#[test]
fn a_mark_waits_until_the_relay_has_what_was_sent() {
    let (mut packer, mut uplink) = (packer(), streaming(1 << 20));
    uplink.handle_control(Control::Takers { viewers: 1, marks: true }, 0).expect("in turn");
    uplink.handle_block(block(&mut packer, 10));
    assert_eq!(sent(&mut uplink).len(), 1);
    uplink.handle_mark(0, 7);
    assert!(uplink.poll_control().is_none(), "it would overtake the block in the connection");
    ack(&mut uplink, 1, 0).expect("plausible");
    uplink.handle_mark(0, 7);
    assert!(matches!(uplink.poll_control(), Some(Control::Mark { .. })));
}

/// A relay that was started anew lacks what the former had: the next run of the sniffer counted all of
/// it as lost by its own restart.
#[test]
fn what_a_new_relay_lacks_of_a_former_run_is_not_counted_as_lost() {
    let key = StreamKey { epoch: Epoch(4), stream: 0 };
    let mut packer = Packer::new(key, Pool::new(1 << 30), 64 << 10, Compression::None);
    let description = crate::description::Description::default();
    let description = packer.seal_json(Kind::Description, &description, 0, false).expect("room");
    let settled = block(&mut packer, 10); // with the former relay
    let (spooled, lost, last) = (block(&mut packer, 10), block(&mut packer, 10), block(&mut packer, 10));
    drop((settled, lost));
    let mut uplink = Uplink::new(config(1 << 20, true), 0);
    connect_without_streams(&mut uplink);
    for block in [description, spooled, last] {
        uplink.handle_loaded(Loaded::Block { block, is_copy: false });
    }
    let received = Cursor { key, ..Cursor::default() };
    uplink
        .handle_control(Control::Ack { streams: vec![StreamAck { received, settled: 0 }] }, 0)
        .expect("new");
    uplink.handle_control(Control::Window { bytes: 1 << 20 }, 0).expect("in turn");
    uplink.handle_timeout(BACKLOG_GRACE_MS);
    assert_eq!(sent(&mut uplink), [(0, false), (2, false), (4, false)]);
    assert_eq!(uplink.lost(key).packets_at(Stage::SnifferRestarted), 1, "the one behind what it has");
}

#[test]
fn an_impossible_acknowledgement_is_the_peers_fault() {
    let (mut packer, mut uplink) = (packer(), streaming(1 << 20));
    uplink.handle_block(block(&mut packer, 10));
    assert_eq!(ack(&mut uplink, 1, 0), Err(UplinkError::Ack { key: KEY, found: 1, sent: 0 }));
    assert!(matches!(uplink.handle_control(welcome(9), 0), Err(UplinkError::OutOfTurn { .. })));
}

#[test]
fn what_the_relay_has_is_not_set_off_against_what_was_lost_before_it() {
    let (mut packer, mut uplink) = (packer(), streaming(4 * 1300));
    for _ in 0..3 {
        uplink.handle_block(block(&mut packer, 1000));
    }
    assert_eq!(sent(&mut uplink).len(), 3);
    for _ in 0..2 {
        uplink.handle_block(block(&mut packer, 1000)); // 3 is dropped, before it was sent
    }
    assert_eq!(uplink.lost(KEY).packets_at(Stage::NoBuffer), 1);
    assert_eq!(sent(&mut uplink), [(4, false)]);
    ack(&mut uplink, 3, 3).expect("plausible");
    uplink.handle_block(block(&mut packer, 1000));
    assert_eq!(sent(&mut uplink), [(5, false)]);
    uplink.handle_disconnected(0);
    for _ in 0..4 {
        uplink.handle_block(block(&mut packer, 1000)); // 4 and 5 are dropped, which the relay may have
    }
    assert_eq!(uplink.lost(KEY).packets_at(Stage::NoBuffer), 1);
    connect(&mut uplink);
    ack(&mut uplink, 5, 5).expect("plausible");
    assert_eq!(uplink.lost(KEY).packets_at(Stage::NoBuffer), 2, "3 and 5; it has 4");
}

#[test]
fn what_is_on_its_way_is_not_lost_when_the_spool_throws_it_away() {
    let mut packer = packer();
    let mut uplink = Uplink::new(config(1 << 20, true), 0);
    uplink.handle_announcement(Announcement { key: KEY, ..Announcement::default() });
    connect(&mut uplink);
    let first = block(&mut packer, 1000);
    uplink.handle_block(first.clone());
    assert_eq!(sent(&mut uplink), [(0, false)]);
    uplink.handle_evicted(Evicted { begin: first.begin(), end: first.end(), has_end: false });
    assert_eq!(uplink.lost(KEY), Losses::default());
    uplink.handle_disconnected(0);
    connect(&mut uplink);
    ack(&mut uplink, 0, 0).expect("plausible");
    assert_eq!(uplink.lost(KEY).packets_at(Stage::SpoolEvicted), 1, "it did not arrive");
}

#[test]
fn a_later_run_finds_a_description_before_the_blocks() {
    let mut packer = packer();
    let mut uplink = Uplink::new(config(1 << 20, true), 0);
    uplink.handle_announcement(Announcement { key: KEY, ..Announcement::default() });
    connect(&mut uplink);
    let description = crate::description::Description::default();
    uplink.handle_block(packer.seal_json(Kind::Description, &description, 0, false).expect("room"));
    assert_eq!(sent(&mut uplink).len(), 1);
    let received = Cursor { key: KEY, next_sequence: 1, ..Cursor::default() };
    let ack = Control::Ack { streams: vec![StreamAck { received, settled: 1 }] };
    uplink.handle_control(ack, 0).expect("plausible");
    uplink.handle_block(block(&mut packer, 1000));
    uplink.spool_now();
    let appended = std::iter::from_fn(|| uplink.poll_spool()).filter_map(|request| match request {
        SpoolRequest::Append(block) => Some(block.header().sequence),
        _ => None,
    });
    assert_eq!(appended.take(2).collect::<Vec<_>>(), [0, 1]);
}

/// The spool threw away more streams than a relay takes at a time: they are told of by and by.
#[test]
fn streams_that_were_thrown_away_are_told_by_and_by() {
    const COUNT: u32 = 10_000;
    let mut uplink = Uplink::new(config(1 << 20, true), 0);
    for stream in 0..COUNT {
        let begin = Cursor { key: StreamKey { epoch: Epoch(4), stream }, ..Cursor::default() };
        let end = Cursor { next_sequence: 2, packets: 1, bytes: 100, ..begin };
        uplink.handle_evicted(Evicted { begin, end, has_end: true });
    }
    connect_without_streams(&mut uplink);
    let (mut ended, mut lost) = (0, 0);
    loop {
        let controls: Vec<_> = std::iter::from_fn(|| uplink.poll_control()).collect();
        assert!(controls.len() < 1024, "{} at once", controls.len());
        if controls.is_empty() {
            break;
        }
        for control in controls {
            let (received, settled) = match control {
                Control::Stream(Announcement { key, .. }) => (Cursor { key, ..Cursor::default() }, 0),
                Control::End { place, .. } => {
                    ended += 1;
                    (place, place.next_sequence)
                }
                Control::Skipped { packets, .. } => {
                    lost += packets;
                    continue;
                }
                _ => continue,
            };
            let streams = vec![StreamAck { received, settled }];
            uplink.handle_control(Control::Ack { streams }, 0).expect("plausible");
        }
    }
    assert_eq!((ended, lost), (COUNT, u64::from(COUNT)));
    assert_eq!(std::iter::from_fn(|| uplink.poll_done()).count(), COUNT as usize);
}

/// With very many streams in the spool, as after days of a line that is too slow, they are not looked at in every turn.
#[test]
fn streams_that_only_the_spool_has_are_not_looked_at() {
    const COUNT: u32 = 50_000;
    let mut uplink = Uplink::new(config(1 << 20, true), 0);
    let pool = Pool::new(1 << 30);
    for stream in 0..COUNT {
        let key = StreamKey { epoch: Epoch(5), stream };
        let mut packer = Packer::new(key, pool.clone(), 1 << 10, Compression::None);
        uplink.handle_announcement(Announcement { key, ..Announcement::default() });
        let report = crate::ledger::Report::default();
        uplink.handle_block(packer.seal_json(Kind::Report, &report, 0, true).expect("room"));
        if stream % 64 == 63 {
            uplink.handle_timeout(SPOOL_DELAY_MS); // away for so long that it is spooled
            while let Some(request) = uplink.poll_spool() {
                if matches!(request, SpoolRequest::Append(_)) {
                    uplink.handle_appended(true);
                }
            }
        }
    }
    uplink.handle_timeout(SPOOL_DELAY_MS);
    assert!(uplink.busy.len() < 100, "{}", uplink.busy.len());
}

/// Streams take turns in a lane. What waited in it and went to the spool has its turn again when it has come
/// back, behind what came back before it; in its old one it would leave what is before it behind.
#[test]
fn what_comes_back_from_the_spool_is_sent_in_sequence() {
    let mut uplink = Uplink::new(config(1 << 20, true), 0);
    let other = StreamKey { stream: 1, ..KEY };
    for key in [KEY, other] {
        uplink.handle_announcement(Announcement { key, ..Announcement::default() });
    }
    connect(&mut uplink);
    let mut others = Packer::new(other, Pool::new(1 << 30), 64 << 10, Compression::None);
    let mut packer = packer();
    let (first, between, second) = (block(&mut packer, 10), block(&mut others, 10), block(&mut packer, 10));
    for block in [&first, &between, &second] {
        uplink.handle_block(block.clone());
    }
    uplink.spool_now();
    while let Some(request) = uplink.poll_spool() {
        if matches!(request, SpoolRequest::Append(_)) {
            uplink.handle_appended(true);
        } else if matches!(request, SpoolRequest::Read) {
            break;
        }
    }
    uplink.handle_loaded(Loaded::Block { block: between, is_copy: false });
    assert!(matches!(uplink.poll_data(), Some(Transmit::Data(..))), "the connection takes no more for now");
    for block in [first, second] {
        uplink.handle_loaded(Loaded::Block { block, is_copy: false });
    }
    assert_eq!(sent(&mut uplink), [(0, false), (1, false)]);
}

/// A block of which TCP may have the pages is lent once, and taken back when it is settled by the connection that had it.
#[test]
fn blocks_are_lent_to_the_connection_that_sends_them_first() {
    let pool = Pool::new(64 << 20);
    let key = KEY;
    let mut packer = Packer::new(key, pool.clone(), 200_000, Compression::None);
    packer.set_masking(true);
    let mut uplink = streaming(64 << 20);
    uplink.lend_from(pool.clone());
    let data = vec![1; 100_000];
    let mut hand_in = |uplink: &mut Uplink, count: usize| {
        for _ in 0..count {
            packer.push(0, 1, 100_000, [&data[..]], &[]).expect("room");
            uplink.handle_block(packer.seal_for_line().expect("a packet"));
        }
    };
    let send = |uplink: &mut Uplink| -> Vec<(bool, bool)> {
        std::iter::from_fn(|| uplink.poll_data())
            .filter_map(|transmit| match transmit {
                Transmit::Data(_, payload) => Some((payload.mask.is_some(), payload.is_lent)),
                Transmit::Control(_) => None,
            })
            .collect()
    };
    hand_in(&mut uplink, 3);
    let first = send(&mut uplink);
    if first[0] == (false, false) {
        assert!(
            std::env::var_os("RINGCAST_REQUIRE_ALL").is_none(),
            "no huge page, but nothing may be skipped here"
        );
        return eprintln!("skipped: no huge page (/sys/kernel/mm/transparent_hugepage/enabled)");
    }
    assert_eq!(first, [(true, true); 3]);
    assert_eq!(pool.lent_now(), 3);
    ack(&mut uplink, 2, 1).expect("plausible");
    assert_eq!(pool.lent_now(), 2, "what is settled is");
    uplink.handle_disconnected(0);
    connect(&mut uplink);
    ack(&mut uplink, 2, 1).expect("plausible");
    hand_in(&mut uplink, 1);
    assert_eq!(send(&mut uplink), [(true, false), (true, true)], "what was lent before is copied");
    assert_eq!(pool.lent_now(), 3);
    ack(&mut uplink, 4, 4).expect("plausible");
    assert!(uplink.is_settled());
    assert_eq!(pool.lent_now(), 2, "what the first connection may still have is never taken back");
}
