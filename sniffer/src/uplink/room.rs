//! Whether room is short, on the line or on the disk: bytes are dearer than CPU then, and packing
//! compresses all that shrinks by more than a little.
//!
//! Blocks that wait without a pause for a second are taken for a line that does not keep up. So it
//! stays for ten seconds, and for twice as long each time that it is found again soon: a line that
//! is just enough for compressed packets does not fall behind every few seconds.

use std::time::{Duration, Instant};

/// Blocks that have waited without a pause for so long are a line that is behind.
const BEHIND_TIME: Duration = Duration::from_secs(1);
/// Room stays short for so long after that: the first time, and at most.
const SHORT_TIME_MIN: Duration = Duration::from_secs(10);
const SHORT_TIME_MAX: Duration = Duration::from_secs(640);
/// A line that keeps up for so long without compression begins anew.
const GOOD_TIME: Duration = Duration::from_secs(60);

/// Finds out whether the line keeps up. The clock is the caller's.
#[derive(Debug)]
pub struct Room {
    /// Blocks have been waiting since.
    waiting_since: Option<Instant>,
    short_until: Option<Instant>,
    /// For how long it was taken for short the last time.
    short_time: Duration,
}

impl Room {
    /// A line that keeps up, as far as is known.
    pub fn new() -> Self {
        Self { waiting_since: None, short_until: None, short_time: Duration::ZERO }
    }

    /// Whether room is short, now that blocks wait to be sent or do not.
    pub fn look(&mut self, now: Instant, blocks_wait: bool) -> bool {
        self.waiting_since = blocks_wait.then(|| self.waiting_since.unwrap_or(now));
        let since = self.waiting_since.unwrap_or(now);
        let is_over = self.short_until.is_none_or(|until| now >= until);
        if now.saturating_duration_since(since) >= BEHIND_TIME && is_over {
            let is_again = self.short_until.is_some_and(|until| now < until + GOOD_TIME);
            self.short_time = match is_again {
                true => (2 * self.short_time).min(SHORT_TIME_MAX),
                false => SHORT_TIME_MIN,
            };
            self.short_until = Some(now + self.short_time);
            return true;
        }
        !is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every 100 ms for `seconds`; whether room was short in each second's last look.
    fn look(room: &mut Room, now: &mut Instant, seconds: usize, blocks_wait: bool) -> Vec<bool> {
        let mut second = || {
            let looks = (0..10).map(|_| {
                *now += Duration::from_millis(100);
                room.look(*now, blocks_wait)
            });
            looks.last().expect("ten looks")
        };
        (0..seconds).map(|_| second()).collect()
    }

    #[test]
    fn a_pause_means_that_the_line_keeps_up() {
        let (mut room, mut now) = (Room::new(), Instant::now());
        for _ in 0..50 {
            now += Duration::from_millis(900);
            assert!(!room.look(now, true));
            now += Duration::from_millis(1);
            assert!(!room.look(now, false));
        }
    }

    #[test]
    fn a_line_that_is_behind_is_short_of_room_for_longer_each_time() {
        let (mut room, mut now) = (Room::new(), Instant::now());
        let mut times = Vec::new();
        for _ in 0..9 {
            assert_eq!(look(&mut room, &mut now, 2, true).last(), Some(&true));
            let short = look(&mut room, &mut now, 700, false);
            times.push(short.iter().position(|short| !short).expect("it ends") + 2);
            // It is found again within a minute, but for the last time.
            now -= Duration::from_secs(700);
            now += Duration::from_secs(*times.last().expect("one") as u64);
        }
        assert_eq!(times[..4], [11, 21, 41, 81]);
        assert_eq!(times[7..], [641, 641]);
        look(&mut room, &mut now, 62, false);
        look(&mut room, &mut now, 2, true);
        let short = look(&mut room, &mut now, 20, false);
        assert_eq!(short.iter().position(|short| !short), Some(9), "after a good minute it begins anew");
    }
}
