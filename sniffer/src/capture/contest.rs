//! Whether other threads keep the calling one from its core, by what the scheduler says of it.
//!
//! A line that is behind looks the same whether the network is slow or this machine: only here they can be told apart.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Over so long a while it is judged: longer than the turns of a handful of threads.
const LOOK_TIME: Duration = Duration::from_millis(50);
/// A core that was contested counts as such for so long.
const CONTESTED_TIME: Duration = Duration::from_secs(1);

/// Of a thread since its start, in ns. (Documentation/scheduler/sched-stats.rst, `/proc/PID/schedstat`)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Times {
    /// It ran.
    ran: u64,
    /// It was ready to run, and did not.
    waited: u64,
}

/// Looks after the calling thread.
#[derive(Debug)]
pub(super) struct Contest {
    /// `None`: the kernel does not say.
    file: Option<File>,
    last: Option<(Instant, Times)>,
    contested_until: Option<Instant>,
}

impl Contest {
    /// For the calling thread.
    pub(super) fn of_this_thread() -> Self {
        let file = File::open("/proc/thread-self/schedstat").ok();
        Self { file, last: None, contested_until: None }
    }

    /// Whether the core is contested, as far as is known. Called by the thread itself, often.
    pub(super) fn look(&mut self, now: Instant) -> bool {
        if self.last.is_none_or(|(looked, _)| now >= looked + LOOK_TIME)
            && let Some(times) = self.file.as_ref().and_then(read)
        {
            // A while that is long past says nothing of now.
            if let Some((looked, before)) = self.last.filter(|(looked, _)| now < *looked + 4 * LOOK_TIME)
                && is_contested(before, times, now - looked)
            {
                self.contested_until = Some(now + CONTESTED_TIME);
            }
            self.last = Some((now, times));
        }
        self.contested_until.is_some_and(|until| now < until)
    }
}

/// Whether a thread had less than two thirds of the core when it could have used it, for a tenth of the time `passed` at
/// least: who has little to do waits for some of that on an idle core, too, whenever it is woken.
fn is_contested(before: Times, now: Times, passed: Duration) -> bool {
    let (ran, waited) = (now.ran.saturating_sub(before.ran), now.waited.saturating_sub(before.waited));
    waited > ran / 2 && Duration::from_nanos(waited) > passed / 10
}

fn read(file: &File) -> Option<Times> {
    let mut text = [0; 64]; // three numbers of 64 bits
    let count = file.read_at(&mut text, 0).ok()?;
    parse(std::str::from_utf8(&text[..count]).ok()?)
}

fn parse(text: &str) -> Option<Times> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    let (Some(Ok(ran)), Some(Ok(waited))) = (numbers.next(), numbers.next()) else { return None };
    Some(Times { ran, waited })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn what_the_kernel_says_is_read() {
        assert_eq!(parse("839374 17 1\n"), Some(Times { ran: 839_374, waited: 17 }));
        assert_eq!(parse("839374"), None);
        assert_eq!(parse("1 x 1"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_third_of_the_core_is_to_be_missed() {
        let before = Times { ran: 1000, waited: 5000 };
        let is_contested = |now| is_contested(before, now, Duration::from_nanos(1000));
        assert!(!is_contested(before), "it had nothing to do");
        assert!(!is_contested(Times { ran: 1400, waited: 5200 }));
        assert!(is_contested(Times { ran: 1400, waited: 5201 }));
        assert!(is_contested(Times { waited: 6000, ..before }));
        assert!(!is_contested(Times { waited: 5100, ..before }), "too little to tell");
    }

    #[test]
    fn who_shares_its_core_finds_it_contested() {
        const PATIENCE: Duration = Duration::from_secs(60);
        let (done, core) =
            (AtomicBool::new(false), core_affinity::get_core_ids().expect("they are known")[0]);
        let since = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    core_affinity::set_for_current(core);
                    while !done.load(Ordering::Relaxed) && since.elapsed() < 2 * PATIENCE {
                        std::hint::spin_loop();
                    }
                });
            }
            scope.spawn(|| {
                core_affinity::set_for_current(core);
                let mut contest = Contest::of_this_thread();
                let is_said = contest.file.as_ref().and_then(read).is_some();
                let mut is_found = false;
                while is_said && !is_found && since.elapsed() < PATIENCE {
                    is_found = contest.look(Instant::now());
                }
                done.store(true, Ordering::Relaxed);
                assert_eq!(is_found, is_said);
                contest.file = None;
                assert!(!contest.look(Instant::now() + CONTESTED_TIME), "not for ever");
            });
        });
    }
}
