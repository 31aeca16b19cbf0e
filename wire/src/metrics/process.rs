//! Figures of our own process, from `/proc/self` (proc(5)).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::Mode;
use nix::unistd::{SysconfVar, sysconf};

use super::Exposition;
use super::table::process::*;

/// What the figures are read from. It is opened once: a program that confines itself cannot open it later. What cannot be
/// had is left out.
#[derive(Debug)]
pub struct Process {
    stat: Option<File>,
    descriptors: Option<Dir>,
    descriptors_max: Option<u64>,
    started: Duration,
    ticks_per_second: f64,
    page_bytes: u64,
}

impl Process {
    /// Opens what is needed. The program counts as begun now, and the limit on descriptors is read now.
    pub fn open() -> Self {
        let system = |variable| sysconf(variable).ok().flatten().and_then(|value| u64::try_from(value).ok());
        Self {
            stat: File::open("/proc/self/stat").ok(),
            descriptors: Dir::open(
                "/proc/self/fd",
                OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
                Mode::empty(),
            )
            .ok(),
            descriptors_max: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft),
            started: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            ticks_per_second: system(SysconfVar::CLK_TCK).unwrap_or(100) as f64,
            page_bytes: system(SysconfVar::PAGE_SIZE).unwrap_or(4096),
        }
    }

    /// Adds the figures as they are now.
    pub fn describe(&mut self, exposition: &mut Exposition) {
        if let Some(stat) = self.stat() {
            exposition.add(CPU_SECONDS, [], stat.cpu_ticks as f64 / self.ticks_per_second);
            exposition.count(RESIDENT_MEMORY_BYTES, [], stat.resident_pages.saturating_mul(self.page_bytes));
            exposition.count(THREADS, [], stat.threads);
        }
        if let Some(descriptors) = &mut self.descriptors {
            // Beside the directory itself and the one above it. The iterator rewinds when it goes.
            let open = descriptors.iter().filter_map(Result::ok).count().saturating_sub(2);
            exposition.count(OPEN_FDS, [], open as u64);
        }
        if let Some(most) = self.descriptors_max {
            exposition.count(MAX_FDS, [], most);
        }
        exposition.add(START_TIME_SECONDS, [], self.started.as_secs_f64());
    }

    fn stat(&self) -> Option<Stat> {
        let mut bytes = [0; 1024];
        let length = self.stat.as_ref()?.read_at(&mut bytes, 0).ok()?;
        Stat::parse(&String::from_utf8_lossy(&bytes[..length]))
    }
}

/// What is used of `/proc/self/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    resident_pages: u64,
}

impl Stat {
    /// The second field, the program's name in brackets, may hold anything, brackets and spaces too.
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)?.saturating_add(field(15)?),
            threads: field(20)?,
            resident_pages: field(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_behind_a_name_of_any_form() {
        let text = "7 (a) b (c) S 1 7 7 0 -1 4194304 1 0 0 0 250 50 0 0 20 0 9 0 1234 999 321 18446744073709551615 1\n";
        assert_eq!(Stat::parse(text), Some(Stat { cpu_ticks: 300, threads: 9, resident_pages: 321 }));
        for text in ["", "7 (a", "7 (a) S 1 2", "7 (a) S x x x x x x x x x x x x x x x x x x x x x x"] {
            assert_eq!(Stat::parse(text), None, "{text}");
        }
    }

    #[test]
    fn figures_are_of_this_process() {
        let mut process = Process::open();
        let value = |process: &mut Process, name: &str| -> f64 {
            let mut exposition = Exposition::default();
            process.describe(&mut exposition);
            let text = exposition.text();
            let line = text.lines().find(|line| line.split(' ').next() == Some(name)).expect(name);
            line.split(' ').nth(1).and_then(|value| value.parse().ok()).expect("a number")
        };
        let before = value(&mut process, "process_open_fds");
        let files: Vec<File> = (0..50).map(|_| File::open("/dev/null").expect("opens")).collect();
        // Other tests open and close files meanwhile.
        assert!(value(&mut process, "process_open_fds") >= before + 25.0);
        drop(files);
        assert!(value(&mut process, "process_max_fds") >= before);
        assert!(value(&mut process, "process_resident_memory_bytes") > 100_000.0);
        assert!(value(&mut process, "process_threads") >= 2.0);
        assert!(value(&mut process, "process_start_time_seconds") > 1_700_000_000.0);
    }
}
