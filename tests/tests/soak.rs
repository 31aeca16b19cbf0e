//! The whole chain with churn of every part, for as long as it is told: nothing grows, and the ledger
//! adds up. `bench/soak.sh` runs it for minutes; without being told anything it takes less than one.
//!
//! `RINGCAST_SOAK_SECONDS`, `RINGCAST_SOAK_SEED` and `RINGCAST_SOAK_REPORT` (a file for JSON) tell it.

use std::fmt::Debug;
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tests::soak::events::churn;
use tests::soak::gauge::{Life, cpu_s};
use tests::soak::ledger::{Facts, account, line_of};
use tests::soak::random::Random;
use tests::soak::report::Report;
use tests::soak::trend::{Bounds, judge};
use tests::soak::visits::come_and_go;
use tests::soak::world::{Chain, LONG, Place};

/// Without being told.
const SECONDS: u64 = 40;
/// Packets a second of each sender, on average.
const RATE: u64 = 3000;
/// How often each process is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Lines of log, at most, that one thing that was done may be the reason of, all processes together.
const LINES_EACH: usize = 60;
/// Bytes of such a line on average, at most.
const LINE_BYTES: usize = 400;

/// Of a life this long the quarter that is warm-up is enough to fill what has a bound of its own: pools,
/// recent blocks.
const LONG_LIFE_S: f64 = 240.0;

/// What each part may grow by, and take at most: its `--memory`, its ring, and what a program takes
/// beside them.
fn bounds(life: &Life) -> Bounds {
    let memory_max_mib = match life.part.as_str() {
        "relay" => 160 + 64,
        "prompt" | "tardy" => 160,
        _ => 32 + 64 + 32,
    };
    let (step_mib, growth_mib) = if life.lived_s() < LONG_LIFE_S { (32, 32) } else { (16, 8) };
    Bounds {
        memory_step_kib: step_mib * 1024,
        memory_growth_kib: growth_mib * 1024,
        count_growth: 2,
        memory_max_kib: memory_max_mib * 1024,
    }
}

#[test]
fn with_churn_of_every_part_nothing_grows_and_the_ledger_adds_up() {
    let Some(place) = Place::new() else { return };
    let time = Duration::from_secs(told("RINGCAST_SOAK_SECONDS").unwrap_or(SECONDS));
    let seed = told("RINGCAST_SOAK_SEED").unwrap_or(1);
    eprintln!("[soak] {time:?}, seed {seed}");
    let (cpu, mut random) = (cpu_s(), Random::new(seed));
    let mut chain = Chain::start(&place, RATE, LOOK_EVERY);
    let of_visits = Random::new(random.number());
    std::thread::scope(|scope| {
        let _over = Over(&place);
        let visits = scope.spawn(|| come_and_go(&place, of_visits));
        churn(&mut chain, &mut random, time, || !visits.is_finished());
    });
    chain.look_at_quiet();
    let sent = chain.finish();

    let (mut accounts, mut complaints) = (Vec::new(), Vec::new());
    for stayer in chain.stayers {
        chain.gauges.died(stayer.name);
        stayer.process.signal("TERM");
        let ended = place.ended(stayer.name, stayer.process.wait_within(LONG));
        assert_eq!(ended.code(), 0, "{}", ended.stderr);
        let seen = stayer.taker.finish();
        for part in &chain.parts {
            let line = line_of(&ended.stderr, part.name).unwrap_or_default();
            let account = account(&Facts::of(part, sent[part.name]), &seen[part.name], line);
            let told = account.complaints.iter();
            complaints.extend(told.map(|text| format!("{} at {}: {text}: {line}", part.name, stayer.name)));
            accounts.push((stayer.name.to_owned(), part.name.to_owned(), account));
        }
    }
    chain.gauges.died("relay");
    let relay = place.ended("relay", chain.relay.take().expect("it runs").terminate());
    assert_eq!(relay.code(), 0, "{}", relay.stderr);

    let time = chain.gauges.elapsed();
    let (lives, done, logs) = (chain.gauges.finish(), place.done(), place.logs());
    complaints.extend(lives.iter().flat_map(|life| judge(life, &bounds(life))));
    let lines: usize = logs.iter().map(|log| log.lines).sum();
    let bytes: usize = logs.iter().map(|log| log.bytes).sum();
    let lines_max = LINES_EACH * (done.values().sum::<u64>() as usize + logs.len());
    if lines > lines_max || bytes > LINE_BYTES * lines {
        complaints.push(format!("{lines} lines of log, {bytes} bytes, over {lines_max} lines"));
    }
    let cores = (cpu_s() - cpu) / time.as_secs_f64();
    let report = Report { seed, time, cores, done, lives, accounts, logs, complaints };
    if let Some(path) = told::<String>("RINGCAST_SOAK_REPORT") {
        let json = serde_json::to_string(&report.json()).expect("JSON");
        std::fs::write(&path, json).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    println!("{report}");
    assert!(report.complaints.is_empty(), "{}", report.complaints.join("\n"));
}

/// Tells the visits that it is over, also when the churn panics.
struct Over<'a>(&'a Place);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Release);
    }
}

/// A variable of the environment.
fn told<T: FromStr<Err: Debug>>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error:?}")))
}
