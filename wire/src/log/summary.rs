//! When a line sums up what went on: once a minute at most, and seldom where nothing goes on.

use std::time::{Duration, Instant};

/// At most one line in this time.
const MINUTE: Duration = Duration::from_secs(60);
/// So long after the last one a line comes although nothing went on.
const HOUR: Duration = Duration::from_secs(3600);

/// Looks at figures and says when they are to be told. It knows no clock.
#[derive(Debug)]
pub struct Minutes<T> {
    /// The figures a minute ago.
    before: T,
    looked_at: Instant,
    told_at: Instant,
}

/// What went on, for a line about it.
#[derive(Debug, PartialEq)]
pub struct Interval<T> {
    /// The figures at its beginning.
    pub before: T,
    /// How long it is.
    pub time: Duration,
}

impl<T> Minutes<T> {
    /// The figures as they are at the start.
    pub fn new(now: Instant, figures: T) -> Self {
        Self { before: figures, looked_at: now, told_at: now }
    }

    /// Whether a minute is over, and a look at the figures is worth the trouble.
    pub fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.looked_at) >= MINUTE
    }

    /// Takes the figures of now. If a line is due, what they were a minute ago: when these figures have news after those
    /// (`has_news(now, before)`), or when nothing was said for an hour.
    pub fn look(
        &mut self,
        now: Instant,
        figures: T,
        has_news: impl FnOnce(&T, &T) -> bool,
    ) -> Option<Interval<T>> {
        if !self.is_due(now) {
            return None;
        }
        let time = now.saturating_duration_since(std::mem::replace(&mut self.looked_at, now));
        let has_news = has_news(&figures, &self.before);
        let before = std::mem::replace(&mut self.before, figures);
        if !has_news && now.saturating_duration_since(self.told_at) < HOUR {
            return None;
        }
        self.told_at = now;
        Some(Interval { before, time })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_a_minute_while_something_goes_on_and_one_an_hour_while_nothing_does() {
        let start = Instant::now();
        let mut minutes = Minutes::new(start, 0);
        let mut told = Vec::new();
        // Something goes on for two and a half minutes, and again after three hours.
        for second in 1..=4 * 3600 {
            let count = second.min(150) + (second / 10_800).min(1);
            let one = minutes.look(start + Duration::from_secs(second), count, u64::ne);
            told.extend(one.map(|one| (second, one)));
        }
        let seconds: Vec<_> = told.iter().map(|(second, _)| *second).collect();
        assert_eq!(seconds, [60, 120, 180, 3780, 7380, 10_800, 14_400]);
        assert_eq!(told[1].1, Interval { before: 60, time: MINUTE });
        assert_eq!(told[5].1, Interval { before: 150, time: MINUTE }, "rates are of the last minute");
    }

    #[test]
    fn a_late_look_has_a_longer_interval() {
        let start = Instant::now();
        let mut minutes = Minutes::new(start, 0);
        assert!(!minutes.is_due(start + Duration::from_secs(59)));
        let told = minutes.look(start + Duration::from_secs(90), 1, i32::ne);
        assert_eq!(told, Some(Interval { before: 0, time: Duration::from_secs(90) }));
        assert!(!minutes.is_due(start + Duration::from_secs(149)));
    }
}
