//! Whether what a ring brought is handed over at once, or together with what the ring brings next.
//!
//! Each hand-over is a turn of the sending thread, of the relay and of the viewer, and each turn begins with cold caches:
//! some 300 us in all, whatever it moves. On a quiet link that is nothing, and a packet is not to wait. With small packets
//! at a high rate it was a fifth of all CPU, for the timer of the ring cuts the traffic into pieces of a few hundred KiB.

use std::time::{Duration, Instant};

/// With a longer block timeout turns are long by themselves, and who waits for packets has waited enough.
const BLOCK_TIMEOUT_MAX: Duration = Duration::from_millis(20);
/// Turns that what was taken may wait for, beyond the one that brought it.
const TURNS_MAX: u32 = 2;
/// What waits for more is less than so many full packed blocks: from there on a turn is long enough, and what it moves
/// would leave the caches before the next step.
const BODIES_MAX: usize = 4;

/// The state of one stream.
#[derive(Debug)]
pub(super) struct Hold {
    block_timeout: Duration,
    body_bytes: usize,
    until: Option<Instant>,
    turns: u32,
    waiting_bytes: usize,
    /// What came with the last turn was too much to wait.
    was_long: bool,
    /// Some of this turn was handed over before the ring was empty.
    was_told: bool,
}

impl Hold {
    /// For a ring that hands over a block after `block_timeout` at the latest, and packed blocks with bodies of
    /// `body_bytes`.
    pub(super) fn new(block_timeout: Duration, body_bytes: usize) -> Self {
        Self {
            block_timeout,
            body_bytes,
            until: None,
            turns: 0,
            waiting_bytes: 0,
            was_long: false,
            was_told: false,
        }
    }

    /// When what waits is to be handed over, even if nothing more comes.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Whether what comes may wait, as far as the last turn tells. Of a long turn the sending thread may take pieces
    /// before its end, as soon as it is awake for something else.
    pub(super) fn is_likely(&self) -> bool {
        !self.was_long
    }

    /// The ring is empty, and `waiting_bytes` of bodies are ready: whether they are to wait. They do if there is a full
    /// packed block of them, so that the traffic is dense, and less than a long turn's worth.
    pub(super) fn holds(&mut self, waiting_bytes: usize, now: Instant) -> bool {
        let come_bytes = waiting_bytes.saturating_sub(self.waiting_bytes);
        self.waiting_bytes = waiting_bytes;
        let long_bytes = BODIES_MAX * self.body_bytes;
        if std::mem::take(&mut self.was_told) {
            self.was_long = true;
            self.release();
            return false;
        }
        if come_bytes > 0 {
            self.was_long = come_bytes >= long_bytes;
        }
        let is_worth_it =
            self.block_timeout <= BLOCK_TIMEOUT_MAX && (self.body_bytes..long_bytes).contains(&waiting_bytes);
        match self.until {
            None if is_worth_it => {
                // Half a timeout more than the turns take, for a timer that is late.
                self.until = Some(now + self.block_timeout * (2 * TURNS_MAX + 1) / 2);
                self.turns = 0;
            }
            Some(until) if is_worth_it && now < until => {
                self.turns += u32::from(come_bytes > 0);
                if self.turns == TURNS_MAX {
                    self.release();
                }
            }
            _ => self.release(),
        }
        self.until.is_some()
    }

    /// So much came that what waited was handed over before the ring was empty: the rest does not wait.
    pub(super) fn told(&mut self) {
        self.release();
        self.was_told = true;
    }

    /// What waited was handed over.
    pub(super) fn release(&mut self) {
        self.until = None;
        self.waiting_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: usize = 256 << 10;
    const TIMEOUT: Duration = Duration::from_millis(10);

    #[test]
    fn what_is_little_or_much_does_not_wait() {
        let (mut hold, now) = (Hold::new(TIMEOUT, BODY), Instant::now());
        for waiting_bytes in [0, 100, BODY - 1, 4 * BODY, 9 * BODY] {
            assert!(!hold.holds(waiting_bytes, now), "{waiting_bytes} bytes");
            assert_eq!(hold.until(), None);
        }
    }

    #[test]
    fn who_asked_for_long_turns_has_them() {
        assert!(Hold::new(Duration::from_millis(20), BODY).holds(BODY, Instant::now()));
        assert!(!Hold::new(Duration::from_millis(21), BODY).holds(BODY, Instant::now()));
    }

    #[test]
    fn what_is_dense_waits_for_two_more_turns() {
        let (mut hold, mut now) = (Hold::new(TIMEOUT, BODY), Instant::now());
        for _ in 0..3 {
            assert!(hold.holds(BODY, now));
            // Woken for something else: nothing has come, and it waits on.
            assert!(hold.holds(BODY, now));
            now += TIMEOUT;
            assert!(hold.holds(2 * BODY, now));
            now += TIMEOUT;
            assert!(!hold.holds(3 * BODY, now));
            assert_eq!(hold.until(), None);
        }
    }

    #[test]
    fn a_long_turn_ends_the_wait() {
        let (mut hold, now) = (Hold::new(TIMEOUT, BODY), Instant::now());
        assert!(hold.holds(3 * BODY, now));
        assert!(!hold.holds(5 * BODY, now + TIMEOUT));
        assert!(hold.is_likely(), "long only with what was there before");
        assert!(!hold.holds(4 * BODY, now + TIMEOUT));
        assert!(!hold.is_likely());
        assert!(hold.holds(BODY, now + 2 * TIMEOUT) && hold.is_likely());
    }

    #[test]
    fn the_rest_of_a_long_turn_does_not_wait() {
        let (mut hold, now) = (Hold::new(TIMEOUT, BODY), Instant::now());
        assert!(hold.holds(2 * BODY, now));
        hold.told();
        assert!(!hold.holds(3 * BODY, now + TIMEOUT));
        assert!(!hold.is_likely());
        assert!(!hold.holds(0, now + TIMEOUT));
        assert!(!hold.is_likely(), "a look at which nothing came tells nothing");
        assert!(hold.holds(2 * BODY, now + 2 * TIMEOUT));
        assert!(hold.is_likely());
    }

    #[test]
    fn where_nothing_more_comes_it_waits_for_so_long_and_no_longer() {
        let (mut hold, now) = (Hold::new(TIMEOUT, BODY), Instant::now());
        assert!(hold.holds(BODY, now));
        let until = hold.until().expect("it waits");
        assert_eq!(until - now, Duration::from_millis(25));
        assert!(hold.holds(BODY, until - Duration::from_nanos(1)));
        assert!(!hold.holds(BODY, until));
    }

    #[test]
    fn what_was_handed_over_otherwise_is_not_waited_for() {
        let (mut hold, now) = (Hold::new(TIMEOUT, BODY), Instant::now());
        assert!(hold.holds(BODY, now));
        hold.release();
        assert_eq!(hold.until(), None, "a report went, and took everything along");
        assert!(hold.holds(BODY, now + 3 * TIMEOUT), "what comes then waits anew");
        assert!(!hold.holds(0, now + 3 * TIMEOUT));
    }
}
