//! A limit on log lines that a peer can cause.

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
}
