//! When the next packets are due: a rate held without long sleeps.

use std::time::{Duration, Instant};

/// A wait that is longer than this sleeps for most of it; the rest is spent looking at the clock,
/// for a timer may be late by that much.
const SPIN: Duration = Duration::from_micros(200);

/// A steady rate from a start on.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    started: Instant,
    /// Packets a second; `None`: as fast as it goes.
    rate: Option<f64>,
}

impl Pace {
    /// Begins now.
    pub fn new(rate: Option<f64>) -> Self {
        Self { started: Instant::now(), rate }
    }

    /// Waits until a packet is due after `sent` were sent, and says how many may go together, at
    /// least 1 and at most `most`.
    pub fn wait(&self, sent: u64, most: usize) -> usize {
        let Some(rate) = self.rate else { return most };
        loop {
            let due = due_count(self.started.elapsed(), rate);
            if due > sent {
                return (due - sent).min(most as u64) as usize;
            }
            let next = Duration::from_secs_f64(sent as f64 / rate);
            let left = next.saturating_sub(self.started.elapsed());
            if left > SPIN {
                std::thread::sleep(left - SPIN);
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// Since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Packets due after a time: the first at once.
fn due_count(elapsed: Duration, rate: f64) -> u64 {
    (elapsed.as_secs_f64() * rate) as u64 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_from_the_first_packet_on() {
        assert_eq!(due_count(Duration::ZERO, 10.0), 1);
        assert_eq!(due_count(Duration::from_millis(99), 10.0), 1);
        assert_eq!(due_count(Duration::from_millis(1001), 10.0), 11);
        let pace = Pace::new(Some(1e9));
        std::thread::yield_now();
        assert_eq!(pace.wait(0, 1), 1);
        assert_eq!(Pace::new(None).wait(7, 32), 32);
    }
}
