//! What a soak saw: a table for people, JSON for programs.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::gauge::{Life, Sample};
use super::ledger::Account;
use super::trend::is_judged;
use super::world::Log;

/// Everything worth telling.
pub struct Report {
    /// Of the schedule.
    pub seed: u64,
    /// How long it took.
    pub time: Duration,
    /// Cores that everything took on average, generator and judges included.
    pub cores: f64,
    /// How often each thing was done.
    pub done: BTreeMap<String, u64>,
    /// Every process of the chain that lived.
    pub lives: Vec<Life>,
    /// By viewer and sniffer.
    pub accounts: Vec<(String, String, Account)>,
    /// What each process said.
    pub logs: Vec<Log>,
    /// What is wrong; nothing, where all is well.
    pub complaints: Vec<String>,
}

impl Report {
    /// As JSON.
    pub fn json(&self) -> Value {
        let lives = self.lives.iter().map(|life| {
            let samples = life.samples.iter().map(|one| {
                json!({
                    "at_s": one.at_s, "is_quiet": one.is_quiet, "rss_kib": one.rss_kib, "pss_kib": one.pss_kib,
                    "private_dirty_kib": one.private_dirty_kib, "descriptors": one.descriptors,
                    "sockets": one.sockets, "threads": one.threads,
                })
            });
            json!({ "part": life.part, "number": life.number, "samples": samples.collect::<Vec<_>>() })
        });
        let accounts = self.accounts.iter().map(|(viewer, sniffer, one)| {
            json!({
                "viewer": viewer, "sniffer": sniffer, "sent": one.sent, "delivered": one.delivered,
                "lost": one.lost, "kernel_drops": one.kernel_drops, "not_captured": one.absent,
            })
        });
        json!({
            "seed": self.seed, "seconds": self.time.as_secs_f64(), "cores": self.cores, "done": self.done,
            "lives": lives.collect::<Vec<_>>(), "accounts": accounts.collect::<Vec<_>>(),
            "log_lines": self.logs.iter().map(|log| log.lines).sum::<usize>(),
            "log_bytes": self.logs.iter().map(|log| log.bytes).sum::<usize>(),
            "complaints": self.complaints,
        })
    }
}

/// A figure at the beginning, after each quarter, and the greatest.
fn over_time(samples: &[Sample], figure: impl Fn(&Sample) -> f64) -> String {
    let quiet: Vec<&Sample> = samples.iter().filter(|one| one.is_quiet).collect();
    let at = |part: usize| quiet.get(part * quiet.len().saturating_sub(1) / 4).map(|one| figure(one));
    let texts = (0..=4).map(|part| at(part).map_or("-".to_owned(), |value| format!("{value:.0}")));
    let most = samples.iter().map(&figure).fold(0.0, f64::max);
    format!("{} ({most:.0})", texts.collect::<Vec<_>>().join(" "))
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "Soak of {:.0} s, seed {}, {:.2} cores on average.\n",
            self.time.as_secs_f64(),
            self.seed,
            self.cores
        )?;
        writeln!(
            out,
            "At quiet moments, from the first over the quarters to the last (at most, at any time):\n\n\
             | process | lived s | resident MiB | its own MiB | descriptors | sockets | threads |\n\
             |---|---|---|---|---|---|---|"
        )?;
        for life in self.lives.iter().filter(|life| is_judged(life)) {
            let samples = &life.samples;
            writeln!(
                out,
                "| {} {} | {:.0} | {} | {} | {} | {} | {} |",
                life.part,
                life.number,
                life.lived_s(),
                over_time(samples, |one| one.rss_kib as f64 / 1024.0),
                over_time(samples, |one| one.private_dirty_kib as f64 / 1024.0),
                over_time(samples, |one| one.descriptors as f64),
                over_time(samples, |one| one.sockets as f64),
                over_time(samples, |one| one.threads as f64),
            )?;
        }
        let mut lives: BTreeMap<&str, usize> = BTreeMap::new();
        self.lives.iter().for_each(|life| *lives.entry(&life.part).or_default() += 1);
        let lives: Vec<String> = lives.iter().map(|(part, count)| format!("{part} {count}")).collect();
        let done: Vec<String> = self.done.iter().map(|(what, count)| format!("{what} {count}")).collect();
        writeln!(out, "\nProcesses: {}.\nDone: {}.\n", lives.join(", "), done.join(", "))?;
        writeln!(
            out,
            "| viewer | sniffer | sent | delivered | lost, by stage | kernel ring | while nobody captured |\n\
             |---|---|---|---|---|---|---|"
        )?;
        for (viewer, sniffer, one) in &self.accounts {
            let lost: Vec<String> =
                one.lost.iter().map(|(stage, count)| format!("{count} {stage}")).collect();
            let lost = if lost.is_empty() { "none".to_owned() } else { lost.join(", ") };
            writeln!(
                out,
                "| {viewer} | {sniffer} | {} | {} | {lost} | {} | {} |",
                one.sent, one.delivered, one.kernel_drops, one.absent
            )?;
        }
        let (lines, bytes) = self.logs.iter().fold((0, 0), |sum, log| (sum.0 + log.lines, sum.1 + log.bytes));
        writeln!(out, "\nLogs: {lines} lines, {bytes} bytes, of {} processes.", self.logs.len())?;
        match self.complaints.as_slice() {
            [] => writeln!(out, "All is well."),
            some => writeln!(out, "WRONG:\n- {}", some.join("\n- ")),
        }
    }
}
