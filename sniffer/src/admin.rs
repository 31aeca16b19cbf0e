//! The sniffer behind its admin port: asks the sending thread where everything stands, and tells of it in figures.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use wire::admin::{PATIENCE, Picture, Subject};
use wire::clock::wall_ns;
use wire::ledger::Stage;
use wire::metrics::Exposition;
use wire::metrics::table::sniffer::*;

use crate::handover::{Handed, Handover};
use crate::snapshot::{LineState, Snapshot};
use crate::spool::SpoolFigures;

/// Stages that are told of before there is anything: what appears only when it happens is never seen to grow.
const STAGES: [Stage; 5] =
    [Stage::KernelRing, Stage::NoBuffer, Stage::SpoolEvicted, Stage::SpoolFailed, Stage::SnifferRestarted];

/// Asks the sending thread.
pub struct Asker(Handover);

impl Asker {
    /// Asks the receiver of this hand-over.
    pub fn new(handover: Handover) -> Self {
        Self(handover)
    }
}

impl Subject for Asker {
    fn look(&mut self) -> Result<Picture, String> {
        let (reply, answer) = sync_channel(1);
        self.0.send(Handed::Look(reply));
        let silent = |error| match error {
            RecvTimeoutError::Timeout => format!("sending thread: no answer within {}", seconds(PATIENCE)),
            RecvTimeoutError::Disconnected => "sending thread: has ended".to_owned(),
        };
        answer.recv_timeout(PATIENCE).map(|snapshot| picture(&snapshot, wall_ns())).map_err(silent)
    }
}

fn picture(snapshot: &Snapshot, now_ns: u64) -> Picture {
    let mut figures = Exposition::default();
    describe_capture(snapshot, &mut figures);
    describe_uplink(snapshot, &mut figures);
    if let Some(spool) = &snapshot.spool {
        describe_spool(snapshot, spool, now_ns, &mut figures);
    }
    Picture { figures, unready: unready(snapshot), unwell: unwell(snapshot) }
}

/// Why packets are not captured, or do not go anywhere.
fn unready(snapshot: &Snapshot) -> Vec<String> {
    if snapshot.is_stopping {
        return vec!["stopping: nothing is captured any more".to_owned()];
    }
    let missing = snapshot.interfaces.iter().filter(|one| !one.is_open);
    let mut reasons: Vec<String> =
        missing.map(|one| format!("interface {}: not there, or cannot be opened", one.name)).collect();
    if !snapshot.is_file && snapshot.interfaces.is_empty() {
        reasons.push("no interface is captured".to_owned());
    }
    let line = &snapshot.line;
    let is_spooling = snapshot.spool.as_ref().is_some_and(|spool| !spool.has_failed);
    if line.state != LineState::Connected && !is_spooling {
        let what = if snapshot.spool.is_some() { "the spool has failed" } else { "there is no spool" };
        reasons.push(match &line.why_away {
            None => format!("relay {}: not connected yet, and {what}", line.relay),
            Some(why) => format!("relay {}: away for {}: {why}; and {what}", line.relay, seconds(line.since)),
        });
    }
    reasons
}

/// Capture threads that do not turn. That the sending thread turns, this answer shows.
fn unwell(snapshot: &Snapshot) -> Vec<String> {
    let threads = snapshot.threads.iter();
    let reason = |thread: &crate::snapshot::ThreadSnapshot| match (thread.is_running, thread.is_stuck) {
        (false, _) if !snapshot.is_stopping => Some(format!("thread {}: has ended", thread.name)),
        (true, true) => {
            Some(format!("thread {}: no sign of life for {}", thread.name, seconds(thread.silent)))
        }
        _ => None,
    };
    threads.filter_map(reason).collect()
}

fn seconds(time: Duration) -> String {
    format!("{} s", time.as_secs())
}

fn describe_capture(snapshot: &Snapshot, figures: &mut Exposition) {
    for one in &snapshot.interfaces {
        figures.count(INTERFACE_UP, [&one.name], u64::from(one.is_open && one.is_up));
        figures.count(RINGS, [&one.name], 0);
    }
    let mut interface_drops = std::collections::BTreeMap::<&str, u64>::new();
    for one in &snapshot.captured {
        let (labels, totals) = ([one.source.as_str(), &one.thread], &one.totals);
        figures.count(CAPTURED_PACKETS, labels, totals.packets);
        figures.count(CAPTURED_BYTES, labels, totals.bytes);
        figures.count(CUT_PACKETS, labels, totals.cut_packets);
        if snapshot.is_file {
            continue;
        }
        figures.count(RING_PACKETS, labels, totals.offered);
        figures.count(RING_DROPS, labels, totals.kernel_drops);
        figures.count(RING_FREEZES, labels, totals.freezes);
        if let Some(ring) = &one.ring {
            figures.count(RINGS, [&one.source], 1);
            figures.count(RING_BYTES, labels, ring.ring_bytes as u64);
            figures.add(RING_FILL_RATIO, labels, ring.fill());
        }
        if let Some(drops) = totals.interface_drops {
            // Each ring of an interface tells the same.
            let most = interface_drops.entry(&one.source).or_default();
            *most = drops.max(*most);
        }
    }
    interface_drops.iter().for_each(|(name, drops)| figures.count(INTERFACE_DROPS, [name], *drops));
    for thread in snapshot.threads.iter().filter(|thread| thread.is_running) {
        figures.add(THREAD_SILENT_SECONDS, [&thread.name], thread.silent.as_secs_f64());
    }
    let packed = &snapshot.packed;
    figures.count(BLOCKS, ["lz4"], packed.lz4_blocks);
    figures.count(BLOCKS, ["stored"], packed.blocks - packed.lz4_blocks);
    figures.count(BLOCK_PACKETS, [], snapshot.packets());
    figures.count(BLOCK_RAW_BYTES, [], packed.raw_bytes);
    figures.count(BLOCK_PACKED_BYTES, [], packed.packed_bytes);
    STAGES.iter().for_each(|stage| figures.count(LOST_PACKETS, [stage.text()], 0));
    for (stage, loss) in &snapshot.lost.0 {
        figures.count(LOST_PACKETS, [stage.text()], loss.packets);
    }
    figures.count(STREAMS, [], snapshot.streams);
    figures.count(MEMORY_USED_BYTES, [], snapshot.pool_used_bytes);
    figures.count(MEMORY_LIMIT_BYTES, [], snapshot.pool_bound_bytes);
    let backlog = snapshot.backlog();
    figures.count(BACKLOG_PACKETS, [], backlog.packets);
    figures.count(BACKLOG_BYTES, [], backlog.bytes);
}

fn describe_uplink(snapshot: &Snapshot, figures: &mut Exposition) {
    let Snapshot { line, totals, held, .. } = snapshot;
    figures.count(UPLINK_CONNECTED, [], u64::from(line.state == LineState::Connected));
    figures.add(UPLINK_STATE_SECONDS, [], line.since.as_secs_f64());
    figures.count(UPLINK_CONNECTS, [], line.connects);
    figures.count(UPLINK_CONNECT_FAILURES, [], line.failed_connects);
    if let Some(round_trip) = line.round_trip {
        figures.add(UPLINK_ROUND_TRIP_SECONDS, [], round_trip.as_secs_f64());
    }
    figures.count(UPLINK_SENT_BYTES, [], totals.sent_bytes);
    figures.count(UPLINK_SENT_BLOCKS, [], totals.sent_blocks);
    figures.count(UPLINK_SENT_PACKETS, [], totals.sent_packets);
    figures.count(UPLINK_RESENT_BYTES, [], totals.resent_bytes);
    figures.count(UPLINK_RESENT_BLOCKS, [], totals.resent_blocks);
    figures.count(UPLINK_RESENT_PACKETS, [], totals.resent_packets);
    figures.count(UPLINK_SETTLED_PACKETS, [], totals.settled_packets);
    figures.count(UPLINK_WAITING_BYTES, [], held.waiting.bytes);
    figures.count(UPLINK_UNACKNOWLEDGED_BYTES, [], held.unacknowledged.bytes);
    figures.count(UPLINK_UNACKNOWLEDGED_BLOCKS, [], held.unacknowledged.blocks);
    figures.count(UPLINK_UNACKNOWLEDGED_PACKETS, [], held.unacknowledged.packets);
    figures.count(UPLINK_UNSETTLED_BYTES, [], held.unsettled.bytes);
    figures.count(UPLINK_VIEWERS, [], snapshot.viewers.into());
    if let Some(offset) = snapshot.clock_offset {
        figures.add(CLOCK_OFFSET_SECONDS, [], offset.offset_ns as f64 / 1e9);
        figures.add(CLOCK_OFFSET_ERROR_SECONDS, [], offset.error_ns as f64 / 1e9);
    }
}

fn describe_spool(snapshot: &Snapshot, spool: &SpoolFigures, now_ns: u64, figures: &mut Exposition) {
    figures.count(SPOOL_BYTES, [], spool.file_bytes);
    figures.count(SPOOL_LIMIT_BYTES, [], spool.bound_bytes);
    figures.count(SPOOL_UNSETTLED_BYTES, [], spool.unsettled_bytes);
    figures.count(SPOOL_UNSETTLED_PACKETS, [], spool.packets);
    let age = spool.oldest_age(now_ns).unwrap_or_default();
    figures.add(SPOOL_OLDEST_AGE_SECONDS, [], age.as_secs_f64());
    figures.count(SPOOL_WRITTEN_BYTES, [], snapshot.totals.spooled_bytes);
    figures.count(SPOOL_WRITTEN_PACKETS, [], snapshot.totals.spooled_packets);
    figures.count(SPOOL_EVICTED_PACKETS, [], spool.evicted_packets);
    figures.count(SPOOL_EVICTED_BYTES, [], spool.evicted_bytes);
    figures.count(SPOOL_WRITE_FAILURES, [], spool.write_failures);
    figures.count(SPOOL_DAMAGES, [], spool.damages);
    figures.count(SPOOL_FAILED, [], u64::from(spool.has_failed));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{
        CapturedSnapshot, InterfaceSnapshot, LineSnapshot, PackedTotals, RingFigures, ThreadSnapshot,
    };
    use crate::tally::Captured;
    use wire::ledger::Losses;
    use wire::metrics::table::{self, PARTS};
    use wire::uplink::{Amount, ClockOffset, Held, UplinkTotals};

    /// All is well, and every figure is another one.
    fn healthy() -> Snapshot {
        let ring = Some(RingFigures { ring_bytes: 1 << 20, blocks: 8, ready_blocks_max: 2 });
        let totals = |first: u64| Captured {
            offered: first,
            kernel_drops: first + 1,
            freezes: first + 2,
            interface_drops: Some(7),
            packets: first + 3,
            bytes: first + 4,
            cut_packets: first + 5,
            ..Captured::default()
        };
        let captured = ["capture-0", "capture-1"].into_iter().zip([100, 200]);
        let thread = |name: &str| ThreadSnapshot {
            name: name.to_owned(),
            is_running: true,
            silent: Duration::from_millis(500),
            is_stuck: false,
        };
        let amount = |first| Amount { blocks: first, packets: first + 1, bytes: first + 2 };
        let mut lost = Losses::default();
        lost.add(Stage::KernelRing, 302, 0);
        Snapshot {
            interfaces: vec![InterfaceSnapshot { name: "eth0".into(), is_open: true, is_up: true }],
            captured: captured
                .map(|(thread, first)| CapturedSnapshot {
                    source: "eth0".into(),
                    thread: thread.into(),
                    totals: totals(first),
                    ring,
                })
                .collect(),
            threads: vec![thread("capture-0"), thread("capture-1")],
            packed: PackedTotals { blocks: 9, lz4_blocks: 4, ..PackedTotals::default() },
            line: LineSnapshot {
                state: LineState::Connected,
                relay: "ws://relay:9440".into(),
                round_trip: Some(Duration::from_millis(2)),
                ..LineSnapshot::default()
            },
            totals: UplinkTotals { sent_packets: 55, resent_packets: 5, ..UplinkTotals::default() },
            held: Held { waiting: amount(10), unacknowledged: amount(20), ..Held::default() },
            lost,
            clock_offset: Some(ClockOffset { offset_ns: -1_500_000_000, error_ns: 250_000_000 }),
            ..Snapshot::default()
        }
    }

    fn spool() -> SpoolFigures {
        SpoolFigures {
            bound_bytes: 1_000,
            unsettled_bytes: 100,
            packets: 3,
            oldest_ns: Some(2_000_000_000),
            ..SpoolFigures::default()
        }
    }

    fn lines(snapshot: &Snapshot) -> Vec<String> {
        let text = picture(snapshot, 5_000_000_000).figures.text();
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }

    #[test]
    fn a_healthy_sniffer_tells_every_figure_of_the_table() {
        let mut snapshot = Snapshot { spool: Some(spool()), ..healthy() };
        let seen = picture(&snapshot, 0).figures.text();
        for about in table::sniffer::ALL {
            assert!(
                seen.contains(&format!("\n# TYPE {} ", about.name))
                    || seen.starts_with(&format!("# HELP {} ", about.name)),
                "{}",
                about.name
            );
        }
        let lines = lines(&snapshot);
        for expected in [
            "ringcast_sniffer_interface_up{interface=\"eth0\"} 1",
            "ringcast_sniffer_interface_drops_total{interface=\"eth0\"} 7",
            "ringcast_sniffer_rings{interface=\"eth0\"} 2",
            "ringcast_sniffer_ring_packets_total{interface=\"eth0\",thread=\"capture-0\"} 100",
            "ringcast_sniffer_ring_drops_total{interface=\"eth0\",thread=\"capture-1\"} 201",
            "ringcast_sniffer_ring_freezes_total{interface=\"eth0\",thread=\"capture-1\"} 202",
            "ringcast_sniffer_ring_fill_ratio{interface=\"eth0\",thread=\"capture-0\"} 0.25",
            "ringcast_sniffer_captured_packets_total{interface=\"eth0\",thread=\"capture-0\"} 103",
            "ringcast_sniffer_captured_bytes_total{interface=\"eth0\",thread=\"capture-0\"} 104",
            "ringcast_sniffer_cut_packets_total{interface=\"eth0\",thread=\"capture-0\"} 105",
            "ringcast_sniffer_thread_silent_seconds{thread=\"capture-1\"} 0.5",
            "ringcast_sniffer_blocks_total{body=\"lz4\"} 4",
            "ringcast_sniffer_blocks_total{body=\"stored\"} 5",
            "ringcast_sniffer_lost_packets_total{stage=\"kernel ring\"} 302",
            "ringcast_sniffer_lost_packets_total{stage=\"sniffer memory\"} 0",
            "ringcast_sniffer_backlog_packets 14",
            "ringcast_sniffer_backlog_bytes 112",
            "ringcast_sniffer_uplink_connected 1",
            "ringcast_sniffer_uplink_round_trip_seconds 0.002",
            "ringcast_sniffer_uplink_sent_packets_total 55",
            "ringcast_sniffer_uplink_resent_packets_total 5",
            "ringcast_sniffer_uplink_waiting_bytes 12",
            "ringcast_sniffer_uplink_unacknowledged_packets 21",
            "ringcast_sniffer_clock_offset_seconds -1.5",
            "ringcast_sniffer_clock_offset_error_seconds 0.25",
            "ringcast_sniffer_spool_unsettled_packets 3",
            "ringcast_sniffer_spool_oldest_age_seconds 3",
        ] {
            assert!(lines.iter().any(|line| line == expected), "{expected}: {lines:#?}");
        }
        // What is not there is not told of, rather than told to be 0.
        (snapshot.spool, snapshot.clock_offset, snapshot.line.round_trip) = (None, None, None);
        let text = self::lines(&snapshot).join("\n");
        assert!(!text.contains("_spool_") && !text.contains("_clock_") && !text.contains("_round_trip_"));
        assert!(PARTS.iter().any(|(title, _)| *title == "Sniffer"));
    }

    #[test]
    fn a_file_has_no_rings() {
        let mut snapshot = Snapshot { is_file: true, ..healthy() };
        (snapshot.interfaces, snapshot.threads) = (Vec::new(), Vec::new());
        snapshot.captured.truncate(1);
        (snapshot.captured[0].source, snapshot.captured[0].ring) = ("in.pcap".into(), None);
        let text = lines(&snapshot).join("\n");
        assert!(
            text.contains("captured_packets_total{interface=\"in.pcap\",thread=\"capture-0\"} 103"),
            "{text}"
        );
        assert!(!text.contains("_ring_") && !text.contains("_rings") && !text.contains("_thread_"), "{text}");
        assert_eq!(unready(&snapshot), [""; 0]);
    }

    #[test]
    fn it_is_ready_when_it_captures_and_what_it_captures_goes_somewhere() {
        let mut snapshot = healthy();
        assert_eq!(unready(&snapshot), [""; 0]);
        snapshot.line.state = LineState::Connecting;
        assert_eq!(unready(&snapshot), ["relay ws://relay:9440: not connected yet, and there is no spool"]);
        (snapshot.line.state, snapshot.line.since) = (LineState::Away, Duration::from_secs(5));
        snapshot.line.why_away = Some("connection refused".into());
        let away = "relay ws://relay:9440: away for 5 s: connection refused; and there is no spool";
        assert_eq!(unready(&snapshot), [away]);
        snapshot.spool = Some(spool());
        assert_eq!(unready(&snapshot), [""; 0], "it is spooled");
        snapshot.spool = Some(SpoolFigures { has_failed: true, ..spool() });
        assert!(unready(&snapshot)[0].ends_with("and the spool has failed"));
        snapshot.line.state = LineState::Connected;
        assert_eq!(unready(&snapshot), [""; 0], "the spool is not needed");

        snapshot.interfaces[0].is_up = false;
        assert_eq!(unready(&snapshot), [""; 0], "it captures when it is up");
        snapshot.interfaces[0].is_open = false;
        assert_eq!(unready(&snapshot), ["interface eth0: not there, or cannot be opened"]);
        snapshot.interfaces.clear();
        assert_eq!(unready(&snapshot), ["no interface is captured"]);
        snapshot.is_stopping = true;
        assert_eq!(unready(&snapshot), ["stopping: nothing is captured any more"]);
    }

    #[test]
    fn it_is_well_when_all_capture_threads_turn() {
        let mut snapshot = healthy();
        assert_eq!(unwell(&snapshot), [""; 0]);
        let thread = &mut snapshot.threads[1];
        (thread.is_stuck, thread.silent) = (true, Duration::from_secs(12));
        assert_eq!(unwell(&snapshot), ["thread capture-1: no sign of life for 12 s"]);
        snapshot.threads[1].is_running = false;
        assert_eq!(unwell(&snapshot), ["thread capture-1: has ended"]);
        snapshot.is_stopping = true;
        assert_eq!(unwell(&snapshot), [""; 0], "as it was asked to");
    }

    #[test]
    fn a_sending_thread_that_does_not_answer_is_named() {
        let (_poll, handover, handed) = crate::uplink::Sender::channel().expect("a poll");
        let answered = std::thread::spawn(move || {
            let Ok(Handed::Look(reply)) = handed.recv() else { panic!("it is asked") };
            reply.try_send(Box::new(healthy())).expect("it waits");
            let Ok(Handed::Look(reply)) = handed.recv() else { panic!("it is asked") };
            (handed, reply)
        });
        let mut asker = Asker::new(handover);
        assert!(asker.look().expect("answered").unready.is_empty());
        assert_eq!(asker.look().expect_err("it hangs"), "sending thread: no answer within 2 s");
        drop(answered.join().expect("as it should"));
        assert_eq!(asker.look().expect_err("it is gone"), "sending thread: has ended");
    }
}
