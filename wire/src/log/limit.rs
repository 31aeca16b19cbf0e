//! Limits on lines that can be caused again and again.
//!
//! Each place in the code that says such a thing is a kind of its own. The first few lines of a kind are written at once,
//! then one a minute, with the count of those held back: every line is written or counted, and what was counted is
//! told within a minute or, if the program ends, before. Memory is bounded by the kinds there are in the code. A kind
//! that was quiet for a while has its first few again.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::units::format_count;

/// Lines at once of what strangers cause, or what fails in the same way each time.
pub const FEW: u32 = 5;
/// Lines at once of what those cause who are known: sniffers and viewers with a right, interfaces of this host.
pub const SOME: u32 = 30;

/// A kind gets another line after this time.
const MINUTE: Duration = Duration::from_secs(60);
/// Most characters that are kept of a line as an example.
const EXAMPLE_CHARS_MAX: usize = 200;

/// Says a line of a kind that can be caused again and again: `limited!(warn, FEW, "connection from {address} refused")`.
/// The second argument is how many are written at once, [`FEW`] or [`SOME`].
/// `limited!(by write, ...)` has lines written by a function, and not as log lines.
#[macro_export]
macro_rules! limited {
    (by $write:expr, $first:expr, $($text:tt)+) => {{
        static KIND: $crate::log::Kind = $crate::log::Kind::new($first, $write);
        KIND.tell(::std::time::Instant::now(), || ::std::format!($($text)+));
    }};
    (error, $($rest:tt)+) => { $crate::limited!(@ ERROR, $($rest)+) };
    (warn, $($rest:tt)+) => { $crate::limited!(@ WARN, $($rest)+) };
    (info, $($rest:tt)+) => { $crate::limited!(@ INFO, $($rest)+) };
    (debug, $($rest:tt)+) => { $crate::limited!(@ DEBUG, $($rest)+) };
    (@ $level:ident, $first:expr, $($text:tt)+) => {{
        static KIND: $crate::log::Kind =
            $crate::log::Kind::new($first, |line| ::tracing::event!(::tracing::Level::$level, "{line}"));
        if ::tracing::enabled!(::tracing::Level::$level) {
            KIND.tell(::std::time::Instant::now(), || ::std::format!($($text)+));
        }
    }};
}

/// One place in the code that says such lines; made by [`limited!`](crate::limited).
pub struct Kind {
    first: u32,
    write: fn(&str),
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    limit: Limit,
    /// A line of this kind that was written, cut.
    example: String,
    is_known: bool,
}

/// Kinds that have said something.
static KINDS: Mutex<Vec<&'static Kind>> = Mutex::new(Vec::new());

impl Kind {
    /// A kind that has said nothing yet, with so many lines at once, and how they are written.
    pub const fn new(first: u32, write: fn(&str)) -> Self {
        let limit = Limit { whole_at: None, held_back: 0, since: None };
        Self { first, write, state: Mutex::new(State { limit, example: String::new(), is_known: false }) }
    }

    /// Writes the line, if it may be written now, else counts it.
    pub fn tell(&'static self, now: Instant, line: impl FnOnce() -> String) {
        let mut state = self.lock();
        let Some(held_back) = state.limit.pass(now, self.first) else { return };
        let line = line();
        state.example = line.chars().take(EXAMPLE_CHARS_MAX).collect();
        let is_new = !std::mem::replace(&mut state.is_known, true);
        drop(state); // writing may take long
        if is_new {
            KINDS.lock().unwrap_or_else(PoisonError::into_inner).push(self);
        }
        (self.write)(&format!("{line}{held_back}"));
    }

    /// Tells what was held back, if it is time, or `at_end`.
    fn tell_held_back(&self, now: Instant, at_end: bool) {
        let mut state = self.lock();
        let Some(held_back) = state.limit.take_held_back(now, self.first, at_end) else { return };
        let example = state.example.clone();
        drop(state);
        (self.write)(&format!(
            "held back {} lines {} such as: {example}",
            format_count(held_back.count),
            held_back.time_text()
        ));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells what was held back and is not told by a later line. To be called about each second.
pub fn turn(now: Instant) {
    tell_held_back(now, false);
}

/// Tells all that was held back: the program ends.
pub fn finish() {
    tell_held_back(Instant::now(), true);
}

fn tell_held_back(now: Instant, at_end: bool) {
    let kinds = KINDS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    kinds.iter().for_each(|kind| kind.tell_held_back(now, at_end));
}

/// So many lines at once, then one a minute. It knows no clock.
#[derive(Debug, Default)]
struct Limit {
    /// When all that may come at once may come again.
    whole_at: Option<Instant>,
    held_back: u64,
    /// The first that is held back came then.
    since: Option<Instant>,
}

impl Limit {
    /// Whether a line may be written now, and what was held back before it. If not, it is counted.
    fn pass(&mut self, now: Instant, first: u32) -> Option<HeldBack> {
        if self.take(now, first) {
            return Some(self.reset(now));
        }
        self.held_back += 1;
        self.since.get_or_insert(now);
        None
    }

    /// What is held back, if there is something and a line may be written.
    fn take_held_back(&mut self, now: Instant, first: u32, at_end: bool) -> Option<HeldBack> {
        (self.held_back > 0 && (self.take(now, first) || at_end)).then(|| self.reset(now))
    }

    fn take(&mut self, now: Instant, first: u32) -> bool {
        let whole_at = self.whole_at.map_or(now, |at| at.max(now)) + MINUTE;
        let has_one = whole_at.saturating_duration_since(now) <= MINUTE * first;
        if has_one {
            self.whole_at = Some(whole_at);
        }
        has_one
    }

    fn reset(&mut self, now: Instant) -> HeldBack {
        let since = self.since.take().unwrap_or(now);
        HeldBack { count: std::mem::take(&mut self.held_back), time: now.saturating_duration_since(since) }
    }
}

/// How many lines were held back, in what time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct HeldBack {
    count: u64,
    time: Duration,
}

impl HeldBack {
    fn time_text(self) -> String {
        match self.time.as_secs().div_ceil(60) {
            0 | 1 => "in the last minute".to_owned(),
            minutes => format!("in the last {minutes} minutes"),
        }
    }
}

impl fmt::Display for HeldBack {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            0 => Ok(()),
            count => write!(out, " (and {} more like it {})", format_count(count), self.time_text()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_makes_few_lines_and_each_is_written_or_counted() {
        let (mut limit, start) = (Limit::default(), Instant::now());
        let mut written = Vec::new();
        // Ten minutes of a thousand lines a second, and a timer that looks each second.
        for ms in 0..600_000 {
            let now = start + Duration::from_millis(ms);
            written.extend(limit.pass(now, FEW).map(|held_back| (1, held_back)));
            if ms % 1000 == 0 {
                written.extend(limit.take_held_back(now, FEW, false).map(|held_back| (0, held_back)));
            }
        }
        assert_eq!(written.len(), FEW as usize + 9);
        let texts: Vec<_> = written.iter().map(|(_, held_back)| held_back.to_string()).collect();
        assert!(texts[..FEW as usize].iter().all(String::is_empty));
        assert_eq!(texts[FEW as usize], " (and 59,995 more like it in the last minute)");
        let end = limit.take_held_back(start + Duration::from_secs(600), FEW, true);
        written.extend(end.map(|held_back| (0, held_back)));
        let counted: u64 = written.iter().map(|(line, held_back)| line + held_back.count).sum();
        assert_eq!(counted, 600_000);
        assert_eq!(limit.take_held_back(start + Duration::from_secs(9999), FEW, true), None, "told once");
    }

    #[test]
    fn what_is_held_back_is_told_within_a_minute_though_nothing_follows() {
        let (mut limit, start) = (Limit::default(), Instant::now());
        let passed = (0..100).filter(|_| limit.pass(start, FEW).is_some()).count();
        assert_eq!(passed, FEW as usize);
        assert_eq!(limit.take_held_back(start + MINUTE - Duration::from_millis(1), FEW, false), None);
        let told = limit.take_held_back(start + MINUTE, FEW, false).expect("it is time");
        assert_eq!((told.count, told.time_text()), (95, "in the last minute".to_owned()));
        assert_eq!(limit.take_held_back(start + 9 * MINUTE, FEW, false), None);
    }

    #[test]
    fn a_kind_that_was_quiet_has_its_first_few_again() {
        let (mut limit, start) = (Limit::default(), Instant::now());
        let mut passed = |now| (0..100).filter(|_| limit.pass(now, SOME).is_some()).count();
        assert_eq!(passed(start), SOME as usize);
        assert_eq!(passed(start + 3 * MINUTE), 3);
        assert_eq!(passed(start + 100 * MINUTE), SOME as usize);
    }

    #[test]
    fn a_time_of_several_minutes_is_named() {
        let held_back = HeldBack { count: 2, time: Duration::from_secs(121) };
        assert_eq!(held_back.to_string(), " (and 2 more like it in the last 3 minutes)");
    }

    #[test]
    fn lines_of_a_kind_are_written_with_what_was_held_back() {
        static WRITTEN: Mutex<Vec<String>> = Mutex::new(Vec::new());
        static KIND: Kind = Kind::new(1, |line| WRITTEN.lock().expect("ours").push(line.to_owned()));
        let start = Instant::now();
        for number in 0..3 {
            KIND.tell(start, || format!("line {number}"));
        }
        KIND.tell(start + MINUTE, || "x".repeat(1000));
        KIND.tell(start + MINUTE, || panic!("what is not written is not made"));
        KIND.tell_held_back(start + MINUTE, false);
        KIND.tell_held_back(start + MINUTE, true);
        let written = WRITTEN.lock().expect("ours");
        assert_eq!(written[0], "line 0");
        assert_eq!(written[1], "x".repeat(1000) + " (and 2 more like it in the last minute)");
        assert_eq!(written[2], format!("held back 1 lines in the last minute such as: {}", "x".repeat(200)));
        assert_eq!(written.len(), 3);
    }
}
