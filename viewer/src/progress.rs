//! What the relay is told of what has arrived: `progress`, which settles blocks. Prompt, and cheap.
//! No clock.
//!
//! A report is due when 1 MiB has come since the last one, or 50 ms after the first message that
//! none has told of. So a fast stream costs one short message per MiB, a slow one twenty a second at
//! most, and an idle one nothing.

use std::time::{Duration, Instant};

/// So many bytes since the last report make one due at once.
const REPORT_BYTES: usize = 1 << 20;
/// A message is reported after this time at the latest.
const REPORT_TIME: Duration = Duration::from_millis(50);

/// Data messages of one connection that have arrived, and when to say so.
#[derive(Debug, Default)]
pub struct Progress {
    messages: u64,
    reported: u64,
    unreported_bytes: usize,
    due: Option<Instant>,
}

impl Progress {
    /// A data message of `bytes` has arrived.
    pub fn handle_message(&mut self, now: Instant, bytes: usize) {
        self.messages += 1;
        self.unreported_bytes = self.unreported_bytes.saturating_add(bytes);
        let due = if self.unreported_bytes >= REPORT_BYTES { now } else { now + REPORT_TIME };
        self.due = Some(self.due.map_or(due, |known| known.min(due)));
    }

    /// Messages of the connection to report, if a report is due.
    pub fn poll_report(&mut self, now: Instant) -> Option<u64> {
        self.due.filter(|due| *due <= now)?;
        self.poll_last()
    }

    /// Messages of the connection to report before it closes, if not all are reported.
    pub fn poll_last(&mut self) -> Option<u64> {
        if self.reported == self.messages {
            return None;
        }
        (self.reported, self.unreported_bytes, self.due) = (self.messages, 0, None);
        Some(self.messages)
    }

    /// When a report is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_due_after_some_bytes_or_some_time() {
        let (mut progress, start) = (Progress::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!((progress.poll_report(at(0)), progress.poll_timeout()), (None, None));
        progress.handle_message(at(0), 10);
        progress.handle_message(at(30), 10);
        assert_eq!(progress.poll_timeout(), Some(at(50)), "counted from the first");
        assert_eq!(progress.poll_report(at(49)), None);
        assert_eq!(progress.poll_report(at(50)), Some(2));
        assert_eq!((progress.poll_report(at(500)), progress.poll_timeout()), (None, None), "told once");
        progress.handle_message(at(600), REPORT_BYTES - 1);
        assert_eq!(progress.poll_report(at(600)), None);
        progress.handle_message(at(610), 1);
        assert_eq!(progress.poll_report(at(610)), Some(4));
        progress.handle_message(at(620), 0);
        assert_eq!(progress.poll_report(at(669)), None, "the bytes count anew");
        assert_eq!(progress.poll_last(), Some(5));
        assert_eq!((progress.poll_last(), progress.poll_timeout()), (None, None));
    }
}
