//! The line that the relay writes once a minute: what all workers forwarded.

use std::ops::AddAssign;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::info;
use wire::hub::HubTotals;
use wire::log::{Interval, Minutes};
use wire::units::{format_bytes, format_count, format_rate, format_time};

/// What one worker did since the start, or all of them; who is there now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Packets taken from sniffers.
    pub packets_in: u64,
    /// Bytes of their blocks.
    pub bytes_in: u64,
    /// Bytes of blocks given to viewers.
    pub bytes_out: u64,
    /// Packets skipped for some viewer.
    pub packets_skipped: u64,
    /// Sniffers connected.
    pub sniffers: usize,
    /// Viewers connected.
    pub viewers: usize,
    /// Failed attempts to prove oneself.
    pub attempts_failed: u64,
}

impl Figures {
    /// A worker's: its hub counts nothing that workers pass to each other.
    pub fn new(totals: &HubTotals, peers: (usize, usize), attempts_failed: u64) -> Self {
        Self {
            packets_in: totals.received.packets,
            bytes_in: totals.received.bytes,
            bytes_out: totals.sent.bytes,
            packets_skipped: totals.skipped.packets(),
            sniffers: peers.0,
            viewers: peers.1,
            attempts_failed,
        }
    }

    /// Whether anything went on since `before`. Reports of idle sniffers are nothing.
    fn has_news(&self, before: &Self) -> bool {
        Self { bytes_in: 0, bytes_out: 0, ..*self } != Self { bytes_in: 0, bytes_out: 0, ..*before }
    }

    fn text(&self, since: &Interval<Self>, up: Duration) -> String {
        let came = self.packets_in.saturating_sub(since.before.packets_in);
        format!(
            "forwarded {} packets ({}), {} from {} sniffer(s), {} to {} viewer(s), skipped {}, failed attempts {}; \
             up {}",
            format_count(self.packets_in),
            format_rate(came, since.time),
            format_bytes(self.bytes_in),
            self.sniffers,
            format_bytes(self.bytes_out),
            self.viewers,
            format_count(self.packets_skipped),
            format_count(self.attempts_failed),
            format_time(up),
        )
    }
}

impl AddAssign for Figures {
    fn add_assign(&mut self, other: Self) {
        self.packets_in += other.packets_in;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.packets_skipped += other.packets_skipped;
        self.sniffers += other.sniffers;
        self.viewers += other.viewers;
        self.attempts_failed += other.attempts_failed;
    }
}

/// Where workers leave their figures, each of them twice a second.
#[derive(Debug)]
pub struct Board(Mutex<Vec<Figures>>);

impl Board {
    /// For so many workers.
    pub fn new(workers: usize) -> Self {
        Self(Mutex::new(vec![Figures::default(); workers]))
    }

    /// Leaves a worker's figures; the sum of all.
    pub fn set(&self, worker: usize, figures: Figures) -> Figures {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = all.get_mut(worker) {
            *place = figures;
        }
        let mut sum = Figures::default();
        all.iter().for_each(|one| sum += *one);
        sum
    }
}

/// Writes the line.
#[derive(Debug)]
pub struct Summary {
    started: Instant,
    minutes: Minutes<Figures>,
}

impl Summary {
    /// The relay starts now.
    pub fn new(now: Instant) -> Self {
        Self { started: now, minutes: Minutes::new(now, Figures::default()) }
    }

    /// Writes a line if one is due.
    pub fn look(&mut self, now: Instant, figures: Figures) {
        if let Some(since) = self.minutes.look(now, figures, Figures::has_news) {
            info!("{}", figures.text(&since, now.saturating_duration_since(self.started)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::hub::Flow;

    #[test]
    fn the_line_has_totals_and_the_rate_of_the_last_minute() {
        let before = Figures { packets_in: 1_234_567 - 5_892_000 / 60, ..Figures::default() };
        let figures = Figures {
            packets_in: 1_234_567,
            bytes_in: 5 << 30,
            bytes_out: 10 << 30,
            packets_skipped: 0,
            sniffers: 3,
            viewers: 2,
            attempts_failed: 1000,
        };
        let since = Interval { before, time: Duration::from_secs(1) };
        assert_eq!(
            figures.text(&since, Duration::from_secs(3 * 3600)),
            "forwarded 1,234,567 packets (98.2 kpps), 5.0 GiB from 3 sniffer(s), 10.0 GiB to 2 viewer(s), skipped 0, \
             failed attempts 1,000; up 3 h"
        );
    }

    #[test]
    fn reports_of_idle_sniffers_are_no_news() {
        let before = Figures { packets_in: 7, sniffers: 1, ..Figures::default() };
        assert!(!Figures { bytes_in: 900, bytes_out: 900, ..before }.has_news(&before));
        assert!(Figures { packets_in: 8, ..before }.has_news(&before));
        assert!(Figures { sniffers: 0, ..before }.has_news(&before));
    }

    #[test]
    fn workers_are_summed_up() {
        let received = Flow { blocks: 1, bytes: 600, packets: 6 };
        let sent = Flow { blocks: 2, bytes: 2500, packets: 12 };
        let totals = HubTotals { received, sent, ..HubTotals::default() };
        let one = Figures::new(&totals, (1, 0), 2);
        let board = Board::new(2);
        board.set(1, one);
        let sum = board.set(0, Figures { viewers: 1, ..one });
        let expected = Figures {
            packets_in: 12,
            bytes_in: 1200,
            bytes_out: 5000,
            packets_skipped: 0,
            sniffers: 2,
            viewers: 1,
            attempts_failed: 4,
        };
        assert_eq!(sum, expected);
    }
}
