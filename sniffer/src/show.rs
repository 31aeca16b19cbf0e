//! What goes on, for people who look: a live line on a terminal, else a line in the log once a minute.

use std::time::Instant;

use tracing::info;
use wire::log::{Interval, Minutes};
use wire::progress::{Drain, Frame, Progress, Rate};
use wire::units::{format_bytes, format_count, format_rate, format_time};

use crate::read::FileProgress;
use crate::snapshot::{LineState, Snapshot};

/// A backlog that was never larger is no drain worth a bar.
const DRAIN_BYTES_MIN: u64 = 16 << 20;

/// Shows snapshots when it is time.
#[derive(Debug)]
pub struct Show {
    progress: Progress,
    rate: Rate,
    drain: Drain,
    minutes: Minutes<Seen>,
}

/// What makes a minute one in which something went on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    packets: u64,
    lost: u64,
    sent_bytes: u64,
    is_connected: bool,
}

impl Seen {
    fn of(snapshot: &Snapshot) -> Self {
        Self {
            packets: snapshot.packets(),
            lost: snapshot.lost.packets(),
            sent_bytes: snapshot.totals.sent_bytes,
            is_connected: snapshot.line.state == LineState::Connected,
        }
    }

    /// Reports of idle interfaces are sent each second: they are nothing, unless a backlog goes with them.
    fn has_news(&self, before: &Self) -> bool {
        Self { sent_bytes: 0, ..*self } != Self { sent_bytes: 0, ..*before }
    }
}

impl Show {
    /// Nothing was shown yet. `is_wanted`: a live line, if there is a terminal.
    pub fn new(now: Instant, is_wanted: bool) -> Self {
        Self {
            progress: Progress::start(is_wanted),
            rate: Rate::default(),
            drain: Drain::default(),
            minutes: Minutes::new(now, Seen::default()),
        }
    }

    /// Whether it wants a snapshot.
    pub fn is_due(&self, now: Instant) -> bool {
        self.progress.is_due(now) || self.minutes.is_due(now)
    }

    /// When it wants a snapshot for the live line.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.progress.poll_timeout()
    }

    /// Shows where everything stands. Of a file: how far it is read, and how many viewers take it.
    pub fn look(&mut self, now: Instant, snapshot: &Snapshot, file: Option<(FileProgress, u32)>) {
        if let Some(since) = self.minutes.look(now, Seen::of(snapshot), Seen::has_news)
            && !self.progress.is_shown()
        {
            info!("{}", summary(snapshot, &since));
        }
        if self.progress.is_due(now) {
            let frame = self.frame(now, snapshot, file);
            self.progress.show(now, frame);
        }
    }

    /// The live line goes.
    pub fn finish(&mut self) {
        self.progress.finish();
    }

    fn frame(&mut self, now: Instant, snapshot: &Snapshot, file: Option<(FileProgress, u32)>) -> Frame {
        let (came, time) = self.rate.look(now, snapshot.packets());
        let backlog_bytes = snapshot.backlog().bytes;
        let drained = self.drain.look(backlog_bytes);
        let text = format!(
            "{} packets, {}, dropped {}, backlog {}, relay {}",
            format_count(snapshot.packets()),
            format_rate(came, time),
            format_count(snapshot.lost.packets()),
            format_bytes(backlog_bytes),
            line_text(snapshot)
        );
        if snapshot.is_stopping {
            let text = format!("sending what is left: {text}");
            return match drained {
                Some((done, whole)) => Frame::Bar { done, whole, text },
                None => Frame::Line(text),
            };
        }
        match (file, drained) {
            (Some((_, 0)), _) if snapshot.line.state == LineState::Connected && snapshot.packets() == 0 => {
                Frame::Line(format!("waiting for a viewer: {text}"))
            }
            (Some((FileProgress { read_bytes, whole_bytes: Some(whole) }, _)), _)
                if snapshot.packets() > 0 =>
            {
                Frame::Bar { done: sent_bytes(read_bytes, snapshot), whole, text }
            }
            // While it grows, nobody can tell how long it will take.
            (None, Some((done, whole))) if done > 0 && whole >= DRAIN_BYTES_MIN => {
                Frame::Bar { done, whole, text }
            }
            _ => Frame::Line(text),
        }
    }
}

/// The part of what was read of a file that does not wait here any more.
fn sent_bytes(read_bytes: u64, snapshot: &Snapshot) -> u64 {
    let packets = u128::from(snapshot.packets().max(1));
    let sent = packets.saturating_sub(snapshot.backlog().packets.into());
    (u128::from(read_bytes) * sent / packets) as u64
}

/// `up 3 h`, or why it is away.
fn line_text(snapshot: &Snapshot) -> String {
    let line = &snapshot.line;
    let since = format_time(line.since);
    match (line.state, &line.why_away) {
        (LineState::Connecting, _) => "connecting".to_owned(),
        (LineState::Connected, _) => format!("up {since}"),
        (LineState::Away, Some(why)) => format!("away {since}: {why}"),
        (LineState::Away, None) => format!("away {since}"),
    }
}

/// `captured 1,234,567 packets (98.2 kpps), dropped 0, sent 1.2 GiB (0.45 of raw), relay up 3 h, backlog 0 B`.
fn summary(snapshot: &Snapshot, since: &Interval<Seen>) -> String {
    let packed = &snapshot.packed;
    let ratio = match packed.raw_bytes {
        0 => String::new(),
        raw => format!(" ({:.2} of raw)", packed.packed_bytes as f64 / raw as f64),
    };
    format!(
        "{} {} packets ({}), dropped {}, sent {}{ratio}, relay {}, backlog {}",
        if snapshot.is_file { "read" } else { "captured" },
        format_count(snapshot.packets()),
        format_rate(snapshot.packets().saturating_sub(since.before.packets), since.time),
        format_count(snapshot.lost.packets()),
        format_bytes(snapshot.totals.sent_bytes),
        line_text(snapshot),
        format_bytes(snapshot.backlog().bytes),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use wire::ledger::Stage;
    use wire::uplink::Amount;

    fn snapshot() -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.packed.packets = 1_234_567;
        (snapshot.packed.raw_bytes, snapshot.packed.packed_bytes) = (100, 45);
        snapshot.totals.sent_bytes = 5 << 30;
        snapshot.line.state = LineState::Connected;
        snapshot.line.since = Duration::from_secs(3 * 3600);
        snapshot
    }

    fn away() -> Snapshot {
        let mut snapshot = snapshot();
        snapshot.lost.add(Stage::KernelRing, 7, 0);
        snapshot.line.state = LineState::Away;
        snapshot.line.since = Duration::from_secs(12);
        snapshot.line.why_away = Some("connection refused".to_owned());
        snapshot.held.waiting = Amount { blocks: 40, packets: 4000, bytes: 40 << 20 };
        snapshot
    }

    fn show() -> Show {
        Show::new(Instant::now(), false)
    }

    #[test]
    fn a_summary_has_totals_and_the_rate_of_its_minute() {
        let before = Seen { packets: 1_234_567 - 98_200, ..Seen::default() };
        let since = Interval { before, time: Duration::from_secs(1) };
        assert_eq!(
            summary(&snapshot(), &since),
            "captured 1,234,567 packets (98.2 kpps), dropped 0, sent 5.0 GiB (0.45 of raw), relay up 3 h, backlog 0 B"
        );
        assert_eq!(
            summary(&away(), &since),
            "captured 1,234,567 packets (98.2 kpps), dropped 7, sent 5.0 GiB (0.45 of raw), \
             relay away 12 s: connection refused, backlog 40.0 MiB"
        );
        let idle = Snapshot { is_file: true, ..Snapshot::default() };
        let since = Interval { before: Seen::default(), time: Duration::from_secs(60) };
        assert_eq!(
            summary(&idle, &since),
            "read 0 packets (0 pps), dropped 0, sent 0 B, relay connecting, backlog 0 B"
        );
    }

    #[test]
    fn reports_alone_are_no_news_but_a_packet_a_loss_or_a_cut_is() {
        let before = Seen::of(&snapshot());
        assert!(!Seen { sent_bytes: 6 << 30, ..before }.has_news(&before));
        assert!(Seen { packets: 0, ..before }.has_news(&before));
        assert!(Seen { lost: 1, ..before }.has_news(&before));
        assert!(Seen { is_connected: false, ..before }.has_news(&before));
    }

    #[test]
    fn a_backlog_has_a_bar_while_it_drains_and_none_while_it_grows() {
        let (mut show, now) = (show(), Instant::now());
        let text =
            "1,234,567 packets, 0 pps, dropped 7, backlog 40.0 MiB, relay away 12 s: connection refused";
        assert_eq!(show.frame(now, &away(), None), Frame::Line(text.to_owned()));
        let mut back = snapshot();
        back.held.waiting.bytes = 30 << 20;
        let Frame::Bar { done, whole, text } = show.frame(now, &back, None) else { panic!("no bar") };
        assert_eq!((done, whole), (10 << 20, 40 << 20));
        assert_eq!(text, "1,234,567 packets, 0 pps, dropped 0, backlog 30.0 MiB, relay up 3 h");
        assert!(matches!(show.frame(now, &snapshot(), None), Frame::Line(_)));
        // What waits for a moment on a line that keeps up is no drain.
        back.held.waiting.bytes = 2 << 20;
        show.frame(now, &back, None);
        back.held.waiting.bytes = 1 << 20;
        assert!(matches!(show.frame(now, &back, None), Frame::Line(_)));
        back.is_stopping = true;
        let Frame::Bar { done, whole, text } = show.frame(now, &back, None) else { panic!("no bar") };
        assert!((done, whole) == (1 << 20, 2 << 20) && text.starts_with("sending what is left: "), "{text}");
    }

    #[test]
    fn a_file_has_a_bar_and_standard_input_none() {
        let (mut show, now) = (show(), Instant::now());
        let file =
            |read_bytes, whole_bytes, viewers| Some((FileProgress { read_bytes, whole_bytes }, viewers));
        let mut waiting = snapshot();
        waiting.packed.packets = 0;
        let Frame::Line(text) = show.frame(now, &waiting, file(24, Some(100), 0)) else { panic!("a bar") };
        assert!(text.starts_with("waiting for a viewer: 0 packets"), "{text}");
        let frame = show.frame(now, &snapshot(), file(24, Some(100), 1));
        assert!(matches!(frame, Frame::Bar { done: 24, whole: 100, .. }), "{frame:?}");
        let mut behind = snapshot();
        behind.held.waiting = Amount { blocks: 1, packets: behind.packets() / 2, bytes: 9 };
        let frame = show.frame(now, &behind, file(24, Some(100), 1));
        assert!(
            matches!(frame, Frame::Bar { done: 12, whole: 100, .. }),
            "what waits is not done: {frame:?}"
        );
        assert!(matches!(show.frame(now, &snapshot(), file(24, None, 1)), Frame::Line(_)));
    }
}
