//! Memory, descriptors and threads of processes, looked at from outside, by their lives.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Looks at a quiet moment: what is there only for an instant is not in the least of them.
const QUIET_LOOKS: u32 = 8;
/// Between them.
const QUIET_TICK: Duration = Duration::from_millis(100);

/// What one look found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Since the soak began, s.
    pub at_s: f64,
    /// Nothing was going on but traffic: no visitors, no fault, no backlog.
    pub is_quiet: bool,
    /// Resident memory, KiB.
    pub rss_kib: u64,
    /// The same with what is shared divided among those that share it, KiB.
    pub pss_kib: u64,
    /// Written to, and its own, KiB.
    pub private_dirty_kib: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Those that are sockets.
    pub sockets: u64,
    /// Threads.
    pub threads: u64,
}

impl Sample {
    /// Looks at a process; `None` if it has ended.
    fn take(pid: u32, at_s: f64, is_quiet: bool) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let number = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.split_ascii_whitespace().nth(1)?.parse().ok()
        };
        let (mut descriptors, mut sockets) = (0, 0);
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).ok()?.filter_map(Result::ok) {
            descriptors += 1;
            let link = fs::read_link(entry.path());
            sockets += u64::from(link.is_ok_and(|to| to.to_string_lossy().starts_with("socket:")));
        }
        Some(Self {
            at_s,
            is_quiet,
            rss_kib: number(&status, "VmRSS:")?,
            pss_kib: number(&rollup, "Pss:")?,
            private_dirty_kib: number(&rollup, "Private_Dirty:")?,
            descriptors,
            sockets,
            threads: number(&status, "Threads:")?,
        })
    }

    /// What is less of each.
    fn least(self, other: Self) -> Self {
        Self {
            rss_kib: self.rss_kib.min(other.rss_kib),
            pss_kib: self.pss_kib.min(other.pss_kib),
            private_dirty_kib: self.private_dirty_kib.min(other.private_dirty_kib),
            descriptors: self.descriptors.min(other.descriptors),
            sockets: self.sockets.min(other.sockets),
            threads: self.threads.min(other.threads),
            ..self
        }
    }
}

/// A process from its start to its end.
#[derive(Clone, Debug)]
pub struct Life {
    /// Of which part.
    pub part: String,
    /// How many of that part have lived before.
    pub number: usize,
    pid: u32,
    is_over: bool,
    /// What was seen of it, in order of time.
    pub samples: Vec<Sample>,
}

impl Life {
    /// From the first look to the last, s.
    pub fn lived_s(&self) -> f64 {
        let at = |sample: Option<&Sample>| sample.map_or(0.0, |one| one.at_s);
        at(self.samples.last()) - at(self.samples.first())
    }
}

#[cfg(test)]
impl Life {
    /// One that never was.
    pub fn made_up(part: &str, samples: Vec<Sample>) -> Self {
        Self { part: part.to_owned(), number: 0, pid: 0, is_over: true, samples }
    }
}

/// Looks at all that live.
pub struct Gauges {
    begin: Instant,
    lives: Arc<Mutex<Vec<Life>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Gauges {
    /// Looks every so often, from now on.
    pub fn start(every: Duration) -> Self {
        let (lives, stop, begin) =
            (Arc::<Mutex<Vec<Life>>>::default(), Arc::new(AtomicBool::new(false)), Instant::now());
        let (shared, ends) = (Arc::clone(&lives), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::Acquire) {
                let at_s = begin.elapsed().as_secs_f64();
                let mut lives = shared.lock().expect("nobody panics");
                for life in lives.iter_mut().filter(|life| !life.is_over) {
                    life.samples.extend(Sample::take(life.pid, at_s, false));
                }
                drop(lives);
                std::thread::park_timeout(every);
            }
        });
        Self { begin, lives, stop, thread: Some(thread) }
    }

    /// Since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    /// A process of this part lives.
    pub fn born(&self, part: &str, pid: u32) {
        let mut lives = self.lives();
        let number = lives.iter().filter(|life| life.part == part).count();
        lives.push(Life { part: part.to_owned(), number, pid, is_over: false, samples: Vec::new() });
    }

    /// The one that lived is to end.
    pub fn died(&self, part: &str) {
        self.lives().iter_mut().filter(|life| life.part == part).for_each(|life| life.is_over = true);
    }

    /// Takes a quiet sample of all that live: of each figure the least of several looks.
    pub fn look_at_quiet(&self) {
        let mut least: Vec<Option<Sample>> = Vec::new();
        for _ in 0..QUIET_LOOKS {
            let lives = self.lives();
            least.resize(lives.len(), None);
            for (life, least) in lives.iter().zip(&mut least).filter(|(life, _)| !life.is_over) {
                let sample = Sample::take(life.pid, self.begin.elapsed().as_secs_f64(), true);
                *least = sample.map(|new| least.map_or(new, |old| new.least(old)));
            }
            drop(lives);
            std::thread::sleep(QUIET_TICK);
        }
        for (life, least) in self.lives().iter_mut().zip(least) {
            life.samples.extend(least);
        }
    }

    /// All lives; looks no more.
    pub fn finish(mut self) -> Vec<Life> {
        self.end();
        std::mem::take(&mut self.lives())
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }

    fn lives(&self) -> MutexGuard<'_, Vec<Life>> {
        self.lives.lock().expect("nobody panics")
    }
}

impl Drop for Gauges {
    fn drop(&mut self) {
        self.end();
    }
}

/// Seconds of CPU that this process and those that it waited for have taken so far.
pub fn cpu_s() -> f64 {
    /// Of a second, on every Linux (USER_HZ).
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let (_, fields) = stat.rsplit_once(") ").unwrap_or_default();
    let ticks = fields.split(' ').skip(11).take(4).filter_map(|field| field.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_seen_with_what_it_has_open() {
        let of_us = |quiet| Sample::take(std::process::id(), 1.0, quiet).expect("it lives");
        let before = of_us(true);
        assert!(before.rss_kib > 1000 && before.threads > 0 && before.private_dirty_kib <= before.rss_kib);
        let sockets: Vec<_> = (0..200).map(|_| std::net::UdpSocket::bind("127.0.0.1:0")).collect();
        let after = of_us(true);
        assert!(sockets.iter().all(Result::is_ok) && after.sockets >= before.sockets + 150, "{after:?}");
        assert!(after.descriptors >= after.sockets);
        assert!(cpu_s() >= 0.0);
        assert_eq!(Sample::take(u32::MAX, 1.0, true), None);
    }

    #[test]
    fn a_quiet_look_is_one_sample() {
        let gauges = Gauges::start(Duration::from_millis(30));
        gauges.born("this", std::process::id());
        gauges.look_at_quiet();
        gauges.look_at_quiet();
        gauges.died("this");
        gauges.look_at_quiet();
        let lives = gauges.finish();
        let quiet = lives[0].samples.iter().filter(|sample| sample.is_quiet).count();
        assert_eq!((lives.len(), quiet), (1, 2));
    }
}
