//! What the workers tell of themselves, and the metrics that it makes.

use std::collections::BTreeMap;

use wire::hub::{Flow, HubTotals, StreamCounts, ViewerFigures};
use wire::ledger::Stage;
use wire::metrics::Exposition;
use wire::metrics::table::relay::*;

/// Sniffers, and viewers, that have series of their own, at most: whoever comes and goes must not fill a time series
/// database.
pub const SERIES_MAX: usize = 1000;

/// A worker as it is now.
#[derive(Debug, Default)]
pub struct Figures {
    /// Connections that have not said hello.
    pub strangers: usize,
    /// Connections of sniffers.
    pub sniffers: usize,
    /// Connections of viewers.
    pub viewers: usize,
    /// What came of those that wanted in.
    pub entrance: Entrance,
    /// Failed attempts to prove oneself.
    pub authentication_failures: u64,
    /// Counters of the hub.
    pub totals: HubTotals,
    /// What was taken, by name of the sniffer.
    pub received: Vec<(String, Flow)>,
    /// Viewers by what waits for them, most first, and at most [`SERIES_MAX`].
    pub lines: Vec<Line>,
    /// Streams of this worker's sniffers.
    pub streams: StreamCounts,
    /// Bytes kept for viewers that come back.
    pub recent_bytes: usize,
}

/// One viewer.
#[derive(Debug)]
pub struct Line {
    /// Under which name it has proved itself.
    pub viewer: String,
    /// Where it is.
    pub address: String,
    /// What waits for it, and what it had.
    pub figures: ViewerFigures,
}

/// What came of connections on their way in; of all counters since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entrance {
    /// Let in.
    pub accepted: u64,
    /// Over `--connections`.
    pub refused_connections: u64,
    /// Over `--connections-per-address`.
    pub refused_address: u64,
    /// Over `--memory`.
    pub refused_memory: u64,
    /// For want of something of the system.
    pub refused_other: u64,
    /// Made room before they had said hello.
    pub pushed_out: u64,
    /// Failed in TLS.
    pub failed_tls: u64,
    /// Failed in the handshake of WebSocket.
    pub failed_http: u64,
    /// Failed otherwise before their hello was taken.
    pub failed_hello: u64,
}

/// Adds what all workers tell.
pub fn describe(workers: &[Figures], exposition: &mut Exposition) {
    for figures in workers {
        figures.describe(exposition);
    }
    exposition.count(WORKERS, [], workers.len() as u64);

    let mut received: BTreeMap<&str, Flow> = BTreeMap::new();
    for (name, flow) in workers.iter().flat_map(|figures| &figures.received) {
        let sum = received.entry(name).or_default();
        *sum = sum.and(*flow);
    }
    for (name, flow) in received.iter().take(SERIES_MAX) {
        exposition.count(RECEIVED_BYTES, [name], flow.bytes);
        exposition.count(RECEIVED_BLOCKS, [name], flow.blocks);
        exposition.count(RECEIVED_PACKETS, [name], flow.packets);
    }
    exposition.count(UNLISTED_PEERS, ["sniffer"], received.len().saturating_sub(SERIES_MAX) as u64);

    let mut lines: Vec<&Line> = workers.iter().flat_map(|figures| &figures.lines).collect();
    lines.sort_by_key(|line| std::cmp::Reverse(line.figures.queued_bytes));
    for Line { viewer, address, figures } in lines.iter().take(SERIES_MAX) {
        let labels = [viewer.as_str(), address.as_str()];
        exposition.count(VIEWER_QUEUE_BYTES, labels, figures.queued_bytes as u64);
        exposition.count(VIEWER_QUEUE_BLOCKS, labels, figures.queued_blocks as u64);
        exposition.add(VIEWER_LAG_SECONDS, labels, figures.lag_ms as f64 / 1000.0);
        exposition.count(VIEWER_SENT_PACKETS, labels, figures.sent_packets);
        exposition.count(VIEWER_SKIPPED_PACKETS, labels, figures.skipped_packets);
    }
    let viewers: usize = workers.iter().map(|figures| figures.viewers).sum();
    exposition.count(UNLISTED_PEERS, ["viewer"], viewers.saturating_sub(SERIES_MAX) as u64);
}

impl Figures {
    /// Adds what is summed over the workers.
    fn describe(&self, exposition: &mut Exposition) {
        for (role, count) in
            [("stranger", self.strangers), ("sniffer", self.sniffers), ("viewer", self.viewers)]
        {
            exposition.count(CONNECTIONS, [role], count as u64);
        }
        let entrance = &self.entrance;
        exposition.count(CONNECTIONS_ACCEPTED, [], entrance.accepted);
        for (reason, count) in [
            ("connections", entrance.refused_connections),
            ("address", entrance.refused_address),
            ("memory", entrance.refused_memory),
            ("other", entrance.refused_other),
        ] {
            exposition.count(CONNECTIONS_REFUSED, [reason], count);
        }
        exposition.count(CONNECTIONS_PUSHED_OUT, [], entrance.pushed_out);
        exposition.count(AUTHENTICATION_FAILURES, [], self.authentication_failures);
        for (stage, count) in
            [("tls", entrance.failed_tls), ("http", entrance.failed_http), ("hello", entrance.failed_hello)]
        {
            exposition.count(HANDSHAKE_FAILURES, [stage], count);
        }
        let totals = &self.totals;
        exposition.count(DUPLICATE_BLOCKS, [], totals.duplicates);
        exposition.count(SENT_BYTES, [], totals.sent.bytes);
        exposition.count(SENT_BLOCKS, [], totals.sent.blocks);
        exposition.count(SENT_PACKETS, [], totals.sent.packets);
        for stage in [Stage::ViewerQueue, Stage::WorkerQueue, Stage::Budget, Stage::ViewerAway] {
            exposition.count(SKIPPED_PACKETS, [stage.text()], totals.skipped.packets_at(stage));
        }
        let streams = &self.streams;
        for (state, count) in [
            ("live", streams.live),
            ("backlog", streams.backlog),
            ("away", streams.away),
            ("ended", streams.ended),
        ] {
            exposition.count(STREAMS, [state], count);
        }
        exposition.count(RECENT_BYTES, [], self.recent_bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(viewer: &str, queued_bytes: usize) -> Line {
        let figures = ViewerFigures { queued_bytes, ..ViewerFigures::default() };
        Line { viewer: viewer.to_owned(), address: format!("10.0.0.1:{queued_bytes}"), figures }
    }

    #[test]
    fn workers_are_summed_and_series_are_bounded() {
        let flow = |packets| Flow { packets, ..Flow::default() };
        let many = (0..SERIES_MAX).map(|number| (format!("web-{number:04}"), flow(1)));
        let one = Figures {
            viewers: SERIES_MAX + 1,
            received: many.collect(),
            lines: (1..=SERIES_MAX).map(|number| line("soc", number)).collect(),
            ..Figures::default()
        };
        let mut two = Figures { viewers: 1, lines: vec![line("late", 9999)], ..Figures::default() };
        two.received = vec![("web-0000".to_owned(), flow(5)), ("web-x".to_owned(), flow(7))];
        let mut exposition = Exposition::default();
        describe(&[one, two], &mut exposition);
        let text = exposition.text();
        let of = |name: &str| text.lines().filter(|line| line.starts_with(&format!("{name}{{"))).count();
        assert_eq!(of("ringcast_relay_received_packets_total"), SERIES_MAX);
        assert_eq!(of("ringcast_relay_viewer_queue_bytes"), SERIES_MAX);
        for line in [
            "ringcast_relay_received_packets_total{sniffer=\"web-0000\"} 6",
            "ringcast_relay_viewer_queue_bytes{viewer=\"late\",address=\"10.0.0.1:9999\"} 9999",
            "ringcast_relay_unlisted_peers{role=\"sniffer\"} 1",
            "ringcast_relay_unlisted_peers{role=\"viewer\"} 2",
            "ringcast_relay_connections{role=\"viewer\"} 1002",
            "ringcast_relay_workers 2",
            "ringcast_relay_skipped_packets_total{stage=\"viewer queue\"} 0",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line}");
        }
        assert!(!text.contains("10.0.0.1:1\""), "the one for which least waits is left out");
    }
}
