//! Notices that something has stopped which ought to move, and says so once.
//!
//! It knows no clock: each look at the figures comes with the time. Nothing here acts; a person reads the lines. A quiet
//! link is normal and is never an alarm: only what has been handed on and is not taken is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Time without an acknowledgement while something waits for one.
const ACKNOWLEDGEMENT_TIME: Duration = Duration::from_secs(10);
/// Time without anything settled while something received waits for it. Viewers may be slow: it is longer.
const SETTLEMENT_TIME: Duration = Duration::from_secs(60);
/// Time without a sign of life of a thread that gives one each second.
const THREAD_TIME: Duration = Duration::from_secs(10);
/// Time after which it is said that there was not one packet.
const SILENCE_TIME: Duration = Duration::from_secs(60);
/// Looks further apart than this: it is we who did not run (a stopped process, a suspended machine), and nothing can be
/// said of the time between.
const LOOK_TIME_MAX: Duration = Duration::from_secs(5);

/// The figures at one moment. All but the last two are cumulative, of this run.
#[derive(Clone, Debug, Default)]
pub struct Figures<'a> {
    /// Packets captured, in blocks that were handed over.
    pub captured_packets: u64,
    /// Blocks handed over: descriptions and reports are among them, so this moves on a quiet link too.
    pub handed_blocks: u64,
    /// Blocks that need no acknowledgement any more: the relay has received them, or they were dropped and counted.
    pub received_blocks: u64,
    /// Blocks that are settled, or were dropped and counted.
    pub settled_blocks: u64,
    /// There is a connection to the relay, and hellos were exchanged.
    pub is_connected: bool,
    /// Capture threads that run: name, and a number that moves each second.
    pub threads: &'a [(&'a str, u64)],
}

/// Something to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Something is wrong; else it is for information.
    pub is_alarm: bool,
    /// One line, object first.
    pub text: String,
}

/// Watches one run.
#[derive(Debug)]
pub struct Watchdog {
    started: Instant,
    looked: Instant,
    has_spoken_of_silence: bool,
    received: Progress,
    settled: Progress,
    threads: BTreeMap<String, Progress>,
}

impl Watchdog {
    /// Capture begins now.
    pub fn new(now: Instant) -> Self {
        Self {
            started: now,
            looked: now,
            has_spoken_of_silence: false,
            received: Progress::new(now),
            settled: Progress::new(now),
            threads: BTreeMap::new(),
        }
    }

    /// Looks at the figures, about each second, and returns what is to be said.
    pub fn check(&mut self, now: Instant, figures: &Figures<'_>) -> Vec<Notice> {
        let since_looked = now.saturating_duration_since(self.looked);
        if since_looked > LOOK_TIME_MAX {
            self.started += since_looked;
            self.progress().for_each(|progress| progress.since += since_looked);
        }
        self.looked = now;
        let mut notices = Vec::new();
        let alarm = |text| Notice { is_alarm: true, text };
        let news = |text| Notice { is_alarm: false, text };

        // Blocks waiting, and what has become of them.
        let waits = figures.is_connected && figures.received_blocks < figures.handed_blocks;
        match self.received.look(now, figures.received_blocks, waits, ACKNOWLEDGEMENT_TIME) {
            Some(Change::Stopped(time)) => notices.push(alarm(format!(
                "relay: connected, but {} blocks wait and none was acknowledged for {} s",
                figures.handed_blocks.saturating_sub(figures.received_blocks),
                time.as_secs()
            ))),
            Some(Change::Moves(time)) => {
                notices.push(news(format!("relay: acknowledgement moves again after {} s", time.as_secs())))
            }
            None => {}
        }
        let waits = figures.is_connected && figures.settled_blocks < figures.received_blocks;
        match self.settled.look(now, figures.settled_blocks, waits, SETTLEMENT_TIME) {
            Some(Change::Stopped(time)) => notices.push(alarm(format!(
                "relay: has {} blocks of which none was settled for {} s; viewers or the archive hold them back",
                figures.received_blocks.saturating_sub(figures.settled_blocks),
                time.as_secs()
            ))),
            Some(Change::Moves(time)) => {
                notices.push(news(format!("relay: settlement moves again after {} s", time.as_secs())));
            }
            None => {}
        }

        let is_listed = |name: &String| figures.threads.iter().any(|(listed, _)| listed == name);
        self.threads.retain(|name, _| is_listed(name)); // it has ended, which is told elsewhere
        for (name, beats) in figures.threads {
            if !self.threads.contains_key(*name) {
                self.threads.insert((*name).to_owned(), Progress::new(now));
            }
            let Some(progress) = self.threads.get_mut(*name) else { continue };
            match progress.look(now, *beats, true, THREAD_TIME) {
                Some(Change::Stopped(time)) => {
                    notices.push(alarm(format!("thread {name}: no sign of life for {} s", time.as_secs())));
                }
                Some(Change::Moves(time)) => {
                    notices.push(news(format!("thread {name}: moves again after {} s", time.as_secs())));
                }
                None => {}
            }
        }

        if figures.captured_packets > 0 {
            self.has_spoken_of_silence = true; // there is nothing to say any more
        } else if !self.has_spoken_of_silence && now.saturating_duration_since(self.started) >= SILENCE_TIME {
            self.has_spoken_of_silence = true;
            notices
                .push(news(format!("capture: 0 packets since the start, {} s ago", SILENCE_TIME.as_secs())));
        }
        notices
    }

    /// Time since a thread gave a sign of life, as of the last look, and whether that is too long. `None`: it does not
    /// run, or was not looked at yet.
    pub fn thread(&self, now: Instant, name: &str) -> Option<(Duration, bool)> {
        let progress = self.threads.get(name)?;
        Some((now.saturating_duration_since(progress.since), progress.is_told))
    }

    /// No thread has been without a sign of life for too long.
    pub fn threads_live(&self) -> bool {
        self.threads.values().all(|progress| !progress.is_told)
    }

    fn progress(&mut self) -> impl Iterator<Item = &mut Progress> {
        [&mut self.received, &mut self.settled].into_iter().chain(self.threads.values_mut())
    }
}

/// Whether a number moves.
#[derive(Debug)]
struct Progress {
    value: u64,
    /// When it moved last, or had no reason to.
    since: Instant,
    is_told: bool,
}

enum Change {
    /// It has not moved for so long.
    Stopped(Duration),
    /// It did not move for so long, as was said, and now does.
    Moves(Duration),
}

impl Progress {
    fn new(now: Instant) -> Self {
        Self { value: 0, since: now, is_told: false }
    }

    /// `ought`: there is a reason for it to move.
    fn look(&mut self, now: Instant, value: u64, ought: bool, patience: Duration) -> Option<Change> {
        let time = now.saturating_duration_since(self.since);
        let moves = value != self.value;
        if moves || !ought {
            (self.value, self.since) = (value, now);
            // What stopped mattering did not move: a line that was lost says so itself.
            return (std::mem::take(&mut self.is_told) && moves).then_some(Change::Moves(time));
        }
        if time < patience || self.is_told {
            return None;
        }
        self.is_told = true;
        Some(Change::Stopped(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run with a clock of its own: each step is a second.
    struct Run {
        watchdog: Watchdog,
        now: Instant,
    }

    impl Run {
        fn new() -> Self {
            let now = Instant::now();
            Self { watchdog: Watchdog::new(now), now }
        }

        fn after(&mut self, seconds: u64, figures: &Figures<'_>) -> Vec<String> {
            self.now += Duration::from_secs(seconds);
            self.watchdog.check(self.now, figures).into_iter().map(|notice| notice.text).collect()
        }

        /// So many seconds, with figures that depend on them; what was said, with the second.
        fn run<'a>(&mut self, seconds: u64, figures: impl Fn(u64) -> Figures<'a>) -> Vec<(u64, String)> {
            let said = (1..=seconds).map(|second| (second, self.after(1, &figures(second))));
            said.flat_map(|(second, texts)| texts.into_iter().map(move |text| (second, text))).collect()
        }
    }

    fn healthy(blocks: u64) -> Figures<'static> {
        Figures {
            captured_packets: 1 + blocks,
            handed_blocks: blocks,
            received_blocks: blocks,
            settled_blocks: blocks,
            is_connected: true,
            threads: &[],
        }
    }

    #[test]
    fn a_healthy_chain_is_not_spoken_of_busy_or_idle() {
        let mut run = Run::new();
        assert_eq!(run.run(300, healthy), []);
        // Nothing at all any more, for hours.
        assert_eq!(run.run(10_000, |_| healthy(300)), []);
        // Always a little under way, as on any line.
        let behind = |second| Figures {
            received_blocks: 299 + second,
            settled_blocks: 290 + second,
            ..healthy(305 + second)
        };
        assert_eq!(run.run(300, behind), []);
        // Cut for an hour: that is told elsewhere, and blocks may wait.
        let cut = |second| Figures {
            received_blocks: 599,
            settled_blocks: 590,
            is_connected: false,
            ..healthy(605 + second)
        };
        assert_eq!(run.run(3600, cut), []);
        // Back: it has its full time.
        let back = |second| Figures { is_connected: true, ..cut(3600 + second) };
        assert_eq!(run.run(9, back), []);
        assert_eq!(run.run(100, |second| healthy(5000 + second)), []);
    }

    #[test]
    fn a_relay_that_does_not_acknowledge_is_told_once_until_it_moves() {
        let mut run = Run::new();
        assert_eq!(run.run(20, healthy), []);
        let stalled = |second| Figures { received_blocks: 20, settled_blocks: 20, ..healthy(20 + second) };
        let said = run.run(100, stalled);
        let expected = "relay: connected, but 10 blocks wait and none was acknowledged for 10 s".to_owned();
        assert_eq!(said, [(10, expected)]);
        let said = run.run(100, |second| healthy(120 + second));
        assert_eq!(said, [(1, "relay: acknowledgement moves again after 101 s".to_owned())]);
        // A line that crawls, one block in eight seconds, moves.
        let crawls =
            |second| Figures { received_blocks: 220 + second / 8, settled_blocks: 220, ..healthy(400) };
        assert!(run.run(50, crawls).is_empty());
        // Stalled, told, and then cut: it does not move, so nothing of the kind is said.
        let stalled = Figures { received_blocks: 226, settled_blocks: 226, ..healthy(400) };
        assert_eq!(run.run(30, |_| stalled.clone()).len(), 1);
        assert_eq!(run.run(30, |_| Figures { is_connected: false, ..stalled.clone() }), []);
    }

    #[test]
    fn what_viewers_hold_back_is_told_after_a_minute() {
        let mut run = Run::new();
        let held = |second| Figures { settled_blocks: 7, ..healthy(20 + second) };
        let said = run.run(200, held);
        assert_eq!(said.len(), 1);
        assert_eq!(said[0].0, 61, "it moved to 7 in the first second");
        assert!(
            said[0].1.starts_with("relay: has 74 blocks of which none was settled for 60 s"),
            "{}",
            said[0].1
        );
        let said = run.run(10, |second| healthy(220 + second));
        assert_eq!(said, [(1, "relay: settlement moves again after 200 s".to_owned())]);
    }

    #[test]
    fn a_thread_without_a_sign_of_life_is_told_once_until_it_moves() {
        let mut run = Run::new();
        let mut said = Vec::new();
        for second in 1..=60u64 {
            let stuck = if (20..50).contains(&second) { 20 } else { second };
            let threads = [("capture-2", stuck), ("capture-3", second)];
            let texts = run.after(1, &Figures { threads: &threads, ..healthy(second) });
            let silent = Duration::from_secs(if (20..50).contains(&second) { second - 20 } else { 0 });
            let told = Some((silent, (30..50).contains(&second)));
            assert_eq!(run.watchdog.thread(run.now, "capture-2"), told, "in second {second}");
            assert_eq!(run.watchdog.thread(run.now, "capture-3"), Some((Duration::ZERO, false)));
            said.extend(texts.into_iter().map(|text| (second, text)));
        }
        let expected = [
            (30, "thread capture-2: no sign of life for 10 s".to_owned()),
            (50, "thread capture-2: moves again after 30 s".to_owned()),
        ];
        assert_eq!(said, expected);
        // One that has ended is not missed.
        assert_eq!(run.run(60, |second| healthy(60 + second)), []);
    }

    #[test]
    fn no_packet_at_all_is_told_once_and_is_no_alarm() {
        let mut run = Run::new();
        let silent = |second| Figures { captured_packets: 0, ..healthy(second) };
        let said = run.run(600, silent);
        assert_eq!(said, [(60, "capture: 0 packets since the start, 60 s ago".to_owned())]);
        let mut watchdog = Watchdog::new(run.now);
        for second in 1..=60 {
            for notice in watchdog.check(run.now + Duration::from_secs(second), &silent(second)) {
                assert!(!notice.is_alarm);
            }
        }
    }

    /// A machine that was suspended wakes up an hour later, with nothing acknowledged meanwhile: nobody could.
    #[test]
    fn the_time_in_which_we_did_not_run_does_not_count() {
        let mut run = Run::new();
        let threads = [("capture", 5)];
        let waiting = Figures { received_blocks: 20, settled_blocks: 10, threads: &threads, ..healthy(30) };
        assert_eq!(run.after(1, &waiting), [""; 0]);
        assert_eq!(run.after(3600, &waiting), [""; 0]);
        let said = run.run(20, |_| waiting.clone());
        assert_eq!(said.iter().map(|(second, _)| *second).collect::<Vec<_>>(), [10, 10], "{said:?}");
        assert_eq!(run.after(3600, &healthy(30)).len(), 1, "and what was said is taken back");
    }
}
