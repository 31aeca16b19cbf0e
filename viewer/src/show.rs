//! The live line on a terminal: what comes, what is lost, what waits.

use std::time::{Duration, Instant};

use wire::progress::{Drain, Frame, Progress, Rate};
use wire::units::{format_bytes, format_count, format_rate, format_time};

/// Where a viewer stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Packets that came.
    pub received_packets: u64,
    /// Packets that were written.
    pub written_packets: u64,
    /// Packets that were lost anywhere on the way.
    pub lost_packets: u64,
    /// Bytes that wait for the writer.
    pub waiting_bytes: u64,
    /// Streams that go on.
    pub streams: usize,
    /// The line has been down for so long.
    pub cut: Option<Duration>,
    /// Nothing is received any more; what waits is still written.
    pub is_ending: bool,
}

/// Shows figures when it is time.
#[derive(Debug)]
pub struct Show {
    progress: Progress,
    rate: Rate,
    drain: Drain,
}

impl Show {
    /// Nothing is shown.
    pub fn nothing() -> Self {
        Self { progress: Progress::nothing(), rate: Rate::default(), drain: Drain::default() }
    }

    /// A live line from now on, if there is a terminal for it.
    pub fn start(&mut self) {
        self.progress = Progress::start(true);
    }

    /// Whether it wants figures.
    pub fn is_due(&self, now: Instant) -> bool {
        self.progress.is_due(now)
    }

    /// When it wants figures.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.progress.poll_timeout()
    }

    /// Shows where the viewer stands.
    pub fn look(&mut self, now: Instant, figures: &Figures) {
        let frame = self.frame(now, figures);
        self.progress.show(now, frame);
    }

    /// The live line goes.
    pub fn finish(&mut self) {
        self.progress.finish();
    }

    fn frame(&mut self, now: Instant, figures: &Figures) -> Frame {
        let (came, time) = self.rate.look(now, figures.received_packets);
        let drained = self.drain.look(figures.waiting_bytes);
        let written = match figures.received_packets == figures.written_packets {
            true => String::new(),
            false => format!(" ({} written)", format_count(figures.written_packets)),
        };
        let line = match figures.cut {
            Some(time) => format!("connecting again for {}", format_time(time)),
            None => format!("{} streams", figures.streams),
        };
        let text = format!(
            "{} packets{written}, {}, lost {}, behind {}, {line}",
            format_count(figures.received_packets),
            format_rate(came, time),
            format_count(figures.lost_packets),
            format_bytes(figures.waiting_bytes),
        );
        match drained {
            Some((done, whole)) if figures.is_ending => {
                Frame::Bar { done, whole, text: format!("writing what is left: {text}") }
            }
            _ => Frame::Line(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_comes_what_is_lost_and_what_waits() {
        let (mut show, now) = (Show::nothing(), Instant::now());
        let figures = Figures {
            received_packets: 1_234_567,
            written_packets: 1_234_567,
            streams: 3,
            ..Figures::default()
        };
        let line = "1,234,567 packets, 0 pps, lost 0, behind 0 B, 3 streams";
        assert_eq!(show.frame(now, &figures), Frame::Line(line.to_owned()));
        let figures = Figures {
            received_packets: 1_333_067,
            lost_packets: 12,
            waiting_bytes: 3 << 20,
            cut: Some(Duration::from_secs(75)),
            ..figures
        };
        let line = "1,333,067 packets (1,234,567 written), 98.5 kpps, lost 12, behind 3.0 MiB, connecting again for 1 min";
        assert_eq!(show.frame(now + Duration::from_secs(1), &figures), Frame::Line(line.to_owned()));
    }

    #[test]
    fn what_is_written_at_the_end_has_a_bar() {
        let (mut show, now) = (Show::nothing(), Instant::now());
        let mut figures = Figures { waiting_bytes: 40, is_ending: true, ..Figures::default() };
        assert!(matches!(show.frame(now, &figures), Frame::Bar { done: 0, whole: 40, .. }));
        figures.waiting_bytes = 10;
        let Frame::Bar { done, whole, text } = show.frame(now, &figures) else { panic!("no bar") };
        assert!((done, whole) == (30, 40) && text.starts_with("writing what is left: "), "{text}");
        figures.waiting_bytes = 0;
        assert!(matches!(show.frame(now, &figures), Frame::Line(_)));
    }
}
