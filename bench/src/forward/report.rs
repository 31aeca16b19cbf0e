//! What the measurements of the relay come to, as JSON and as a table.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::middle::Middle;
use super::{idle, load};
use crate::figures::Spread;
use crate::report::Machine;

/// Everything of one run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// How: the command.
    pub command: String,
    /// One source, one or more sinks.
    pub forwarded: Vec<load::Measured>,
    /// Connections on which nothing happens.
    pub idle: Vec<idle::Measured>,
}

impl Report {
    /// A table for people.
    pub fn table(&self) -> String {
        let (mut text, machine) = (String::new(), &self.machine);
        let _ = writeln!(text, "{}, load {:.2}; {}", machine.text(), machine.load_before, machine.wire);
        let _ = writeln!(text, "command: {}", self.command);
        let mut traffics: Vec<&str> = Vec::new();
        for one in &self.forwarded {
            if !traffics.contains(&one.traffic.as_str()) {
                traffics.push(&one.traffic);
            }
        }
        for traffic in traffics {
            self.forwarded_table(&mut text, traffic);
        }
        if !self.idle.is_empty() {
            let _ = writeln!(
                text,
                "\n{:<40} {:>8} {:>10} {:>9} {:>8} {:>22}",
                "idle, rounds", "before", "after MiB", "most MiB", "core %", "KiB a connection"
            );
        }
        for watch in [idle::Watch::One, idle::Watch::All] {
            let runs: Vec<_> = self.idle.iter().filter(|one| one.watch == watch).collect();
            let Some(first) = runs.first() else { continue };
            let spread =
                |value: &dyn Fn(&idle::Measured) -> f64| Spread::of(runs.iter().map(|one| value(one)));
            let mib = |at: usize| spread(&|one| one.resident_kib[at] as f64 / 1024.0).median;
            let what = if watch == idle::Watch::One { "of one" } else { "of all" };
            let _ = writeln!(
                text,
                "{:<40} {:>8.1} {:>10.1} {:>9.1} {:>8.1} {:>22}",
                format!("{0} sniffers, {0} viewers {what}, {1}", first.sniffers, runs.len()),
                mib(0),
                mib(1),
                mib(2),
                spread(&|one| one.cpu_share * 100.0).median,
                with_range(spread(&idle::Measured::kib_each), 1)
            );
        }
        text
    }

    fn forwarded_table(&self, text: &mut String, traffic: &str) {
        let of = |middle: Middle, viewers: usize| -> Vec<&load::Measured> {
            let is_it = |one: &&load::Measured| {
                one.traffic == traffic && one.middle == middle.name() && one.viewers == viewers
            };
            self.forwarded.iter().filter(is_it).collect()
        };
        let mut viewers: Vec<usize> = self.forwarded.iter().map(|one| one.viewers).collect();
        viewers.sort_unstable();
        viewers.dedup();
        let (haproxy, one_to_one) = (of(Middle::Haproxy, 1), of(Middle::Relay, 1));
        let bytes = one_to_one.first().map_or(0, |one| one.message_bytes);
        let _ = writeln!(text, "\n{traffic}, messages of {bytes} bytes");
        let _ = writeln!(
            text,
            "  {:<30} {:>18} {:>18} {:>18} {:>18} {:>18} {:>7} {:>7} {:>12}",
            "middle, sinks, rounds",
            "GB/s out",
            "GB/CPU s",
            "GB/s / haproxy",
            "GB/CPU s / haproxy",
            "GB/CPU s / 1 to 1",
            "core %",
            "load %",
            "MiB, most"
        );
        for (middle, viewers) in
            Middle::ALL.iter().flat_map(|middle| viewers.iter().map(|count| (*middle, *count)))
        {
            let runs = of(middle, viewers);
            if runs.is_empty() {
                continue;
            }
            let spread =
                |value: &dyn Fn(&load::Measured) -> f64| Spread::of(runs.iter().map(|one| value(one)));
            let mib = |at: usize| spread(&|one| one.resident_kib[at] as f64 / 1024.0).median;
            let ratio = |to: &[&load::Measured], value: fn(&load::Measured) -> f64| {
                let ratios = ratios(&runs, to, value);
                if ratios.is_empty() { "-".to_owned() } else { with_range(Spread::of(ratios), 2) }
            };
            // HAProxy has one sink, and one to several is the relay's alone.
            let beside_haproxy = if viewers == 1 { &haproxy[..] } else { &[] };
            let beside_one = if middle == Middle::Relay { &one_to_one[..] } else { &[] };
            let _ = writeln!(
                text,
                "  {:<30} {:>18} {:>18} {:>18} {:>18} {:>18} {:>7.0} {:>7.0} {:>12}",
                format!("{}, {viewers}, {}", middle.name(), runs.len()),
                with_range(spread(&|one| one.rate() / 1e9), 2),
                with_range(spread(&|one| one.bytes_per_cpu() / 1e9), 2),
                ratio(beside_haproxy, load::Measured::rate),
                ratio(beside_haproxy, load::Measured::bytes_per_cpu),
                ratio(beside_one, load::Measured::bytes_per_cpu),
                spread(&|one| 100.0 * one.cpu_s / one.seconds).median,
                spread(&|one| 100.0 * one.load_cpu_s / one.seconds).median,
                format!("{:.0}, {:.0}", mib(1), mib(2)),
            );
        }
    }
}

/// A value over that of another in the same round.
fn ratios(runs: &[&load::Measured], to: &[&load::Measured], value: fn(&load::Measured) -> f64) -> Vec<f64> {
    let pairs = runs.iter().filter_map(|one| Some((one, to.iter().find(|to| to.round == one.round)?)));
    pairs.map(|(one, to)| value(one) / value(to)).collect()
}

fn with_range(spread: Spread, digits: usize) -> String {
    format!("{:.digits$} ({:.digits$}-{:.digits$})", spread.median, spread.min, spread.max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_in_each_round() {
        let one = |middle: Middle, viewers, round, bytes_out, cpu_s| load::Measured {
            middle: middle.name().to_owned(),
            traffic: "mix text".to_owned(),
            viewers,
            round,
            seconds: 1.0,
            bytes_out,
            cpu_s,
            ..load::Measured::default()
        };
        let report = Report {
            forwarded: vec![
                one(Middle::Relay, 1, 0, 3 << 30, 1.0),
                one(Middle::Haproxy, 1, 0, 2 << 30, 1.0),
                one(Middle::Haproxy, 1, 1, 4 << 30, 1.0),
                one(Middle::Relay, 1, 1, 2 << 30, 0.5),
                one(Middle::Relay, 10, 0, 9 << 30, 1.0),
            ],
            idle: vec![idle::Measured {
                sniffers: 100,
                watch: idle::Watch::All,
                round: 0,
                resident_kib: [1000, 3000, 4000],
                cpu_share: 0.01,
            }],
            ..Report::default()
        };
        let table = report.table();
        assert!(table.contains("1.00 (0.50-1.50)"), "of the bytes\n{table}");
        assert!(table.contains("1.25 (1.00-1.50)"), "of the bytes for CPU\n{table}");
        assert!(table.contains("3.00 (3.00-3.00)"), "of the bytes to one viewer\n{table}");
        assert!(table.contains("10.0 (10.0-10.0)"), "KiB of an idle connection\n{table}");
    }
}
