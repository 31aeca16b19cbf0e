//! Limits on what a peer can cause: messages at others. Log lines have theirs in `wire::log`.

use std::time::{Duration, Instant};

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
    fn an_allowance_is_used_up_and_comes_back() {
        let (start, mut allowance) = (Instant::now(), Allowance::default());
        assert_eq!((0..20_000).filter(|_| allowance.take(start)).count(), NOTICES_MAX as usize);
        assert!(allowance.take(start + NOTICE_TIME) && !allowance.take(start + NOTICE_TIME));
    }
}
