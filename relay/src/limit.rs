//! Limits on what a peer can cause: log lines here, messages at others.

use std::time::{Duration, Instant};

const LINES_MAX: u32 = 10;
const WINDOW: Duration = Duration::from_secs(1);

/// Lets ten lines a second pass and counts the rest.
#[derive(Debug)]
pub struct LogLimit {
    window_began: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl LogLimit {
    /// A limit that has let nothing pass yet.
    pub fn new() -> Self {
        Self { window_began: None, lines: 0, suppressed: 0 }
    }

    /// Whether a line may be logged now; if so, what to say at its end of those held back since
    /// the last: nothing, or how many.
    pub fn pass(&mut self, now: Instant) -> Option<String> {
        if self.window_began.is_none_or(|began| now.saturating_duration_since(began) >= WINDOW) {
            self.window_began = Some(now);
            self.lines = 0;
        }
        if self.lines >= LINES_MAX {
            self.suppressed += 1;
            return None;
        }
        self.lines += 1;
        match std::mem::take(&mut self.suppressed) {
            0 => Some(String::new()),
            count => Some(format!(" ({count} lines held back before this one)")),
        }
    }
}

/// Messages of one publisher that viewers are told of, at once...
const NOTICES_MAX: u32 = 16_384;
/// ... and the time after which it has one more.
const NOTICE_TIME: Duration = Duration::from_millis(2);

/// What a publisher may have others told: streams that begin and end, and what does not come. A
/// sound one says a few such things a second, and some thousands after an outage.
#[derive(Debug, Default)]
pub struct Allowance {
    /// When all of it is there again.
    whole_at: Option<Instant>,
}

impl Allowance {
    /// Takes one; `false` when there is none left.
    pub fn take(&mut self, now: Instant) -> bool {
        let whole_at = self.whole_at.map_or(now, |at| at.max(now)) + NOTICE_TIME;
        let has_one = whole_at.saturating_duration_since(now) <= NOTICE_TIME * NOTICES_MAX;
        if has_one {
            self.whole_at = Some(whole_at);
        }
        has_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_limit_are_held_back_and_counted() {
        let mut limit = LogLimit::new();
        let start = Instant::now();
        let passed = (0..25).filter(|_| limit.pass(start).is_some()).count();
        assert_eq!(passed, 10);
        assert_eq!(limit.pass(start + WINDOW).as_deref(), Some(" (15 lines held back before this one)"));
        assert_eq!(limit.pass(start + WINDOW).as_deref(), Some(""));
    }

    #[test]
    fn an_allowance_is_used_up_and_comes_back() {
        let (start, mut allowance) = (Instant::now(), Allowance::default());
        assert_eq!((0..20_000).filter(|_| allowance.take(start)).count(), NOTICES_MAX as usize);
        assert!(allowance.take(start + NOTICE_TIME) && !allowance.take(start + NOTICE_TIME));
    }
}
