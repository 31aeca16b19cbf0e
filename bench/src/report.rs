//! A report: where and how it was measured, every measurement, and what they come to; as JSON and
//! as a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use serde::{Deserialize, Serialize};

use crate::chain::{Kind, is_sink};
use crate::figures::{Latency, Spread};
use crate::measure::Measurement;

/// Everything of one run of the bench.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// How: the command.
    pub command: String,
    /// Seconds of each measurement.
    pub seconds: f64,
    /// What it comes to, by traffic and chain.
    pub rows: Vec<Row>,
    /// The highest rate without loss, where that was searched.
    pub searched: Vec<Searched>,
    /// Every measurement, in order.
    pub measurements: Vec<Measurement>,
}

/// The machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// Model of its processor.
    pub processor: String,
    /// Processors.
    pub cores: usize,
    /// Kernel.
    pub kernel: String,
    /// The congestion control of its TCP, where a program does not choose.
    #[serde(default)]
    pub congestion_control: String,
    /// Processes that wanted to run in the minute before, on average: more than one is noise.
    pub load_before: f64,
    /// What the packets went over.
    pub wire: String,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
        let load = read("/proc/loadavg").split(' ').next().and_then(|word| word.parse().ok());
        Self {
            processor: model.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown").to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            congestion_control: read("/proc/sys/net/ipv4/tcp_congestion_control").trim().to_owned(),
            load_before: load.unwrap_or(0.0),
            wire: "veth pair, and loopback between the programs of a chain".to_owned(),
        }
    }

    /// Processor, cores and kernel, in words.
    pub fn text(&self) -> String {
        let Self { processor, cores, kernel, congestion_control, .. } = self;
        format!("{processor}, {cores} cores, kernel {kernel}, TCP {congestion_control}")
    }
}

/// A chain under some traffic, over all rounds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Row {
    /// Name of the traffic.
    pub traffic: String,
    /// Name of the chain.
    pub chain: String,
    /// Measurements.
    pub rounds: usize,
    /// Packets offered a second.
    pub offered_pps: Spread,
    /// Packets lost, in percent of those sent.
    pub lost_percent: Spread,
    /// CPU of the chain without the sink, in ns a packet delivered.
    pub chain_ns: Spread,
    /// The same with the sink.
    pub with_sink_ns: Spread,
    /// `chain_ns` over that of A in the same round.
    pub over_a: Option<Spread>,
    /// `with_sink_ns` over that of A in the same round.
    pub with_sink_over_a: Option<Spread>,
    /// `chain_ns` over that of other chains in the same round, by their names: see [`Kind::beside`].
    #[serde(default)]
    pub over: BTreeMap<String, Spread>,
    /// Packets that were delivered a second of the generator's time.
    #[serde(default)]
    pub delivered_pps: Spread,
    /// CPU of each program, in ns a packet: medians.
    pub program_ns: BTreeMap<String, f64>,
    /// Bytes on the line over bytes of the file format: median.
    pub packed_share: Option<f64>,
    /// Peak of resident memory, all programs but the sink, in MiB.
    pub peak_mib: Spread,
    /// Of the round whose p99 is the median one.
    pub latency: Option<Latency>,
    /// Packets lost in all rounds, by stage.
    pub lost_at: BTreeMap<String, u64>,
}

/// What a search has found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Searched {
    /// Name of the traffic.
    pub traffic: String,
    /// Name of the chain.
    pub chain: String,
    /// Highest rate that was seen to lose nothing, packets a second offered.
    pub lossless_pps: f64,
    /// Whether that was all that the generator can do.
    pub is_flat_out: bool,
}

impl Report {
    /// Works out the rows from the measurements.
    pub fn sum_up(&mut self) {
        self.rows.clear();
        let mut traffics: Vec<&str> = Vec::new();
        for one in &self.measurements {
            if !traffics.contains(&one.traffic.as_str()) {
                traffics.push(&one.traffic);
            }
        }
        for traffic in traffics {
            for kind in Kind::ALL {
                let of = |chain: &str| -> Vec<&Measurement> {
                    let is_of = |one: &&Measurement| one.traffic == traffic && one.chain == chain;
                    self.measurements.iter().filter(is_of).collect()
                };
                let runs = of(kind.name());
                if !runs.is_empty() {
                    let mut row = row(traffic, kind, &runs, &of(Kind::Tcpdump.name()));
                    for other in kind.beside() {
                        let ratios = in_rounds(&runs, &of(other.name()), |one| one.chain_ns);
                        if !ratios.is_empty() {
                            row.over.insert(other.name().to_owned(), Spread::of(ratios));
                        }
                    }
                    self.rows.push(row);
                }
            }
        }
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let machine = &self.machine;
        let _ = writeln!(
            text,
            "{}, load {:.2}; {}; {} s each",
            machine.text(),
            machine.load_before,
            machine.wire,
            self.seconds
        );
        let _ = writeln!(text, "command: {}", self.command);
        let mut traffic = "";
        for row in &self.rows {
            if row.traffic != traffic {
                traffic = &row.traffic;
                let _ = writeln!(text, "\n{traffic}");
                let _ = writeln!(
                    text,
                    "  {:<26} {:>8} {:>8} {:>22} {:>9} {:>19} {:>19} {:>6} {:>7}  latency p50 / p99 / p99.9 / max, ms",
                    "chain, rounds",
                    "kpps",
                    "lost %",
                    "CPU ns/packet",
                    "with sink",
                    "CPU over A",
                    "with sink over A",
                    "packed",
                    "MiB"
                );
            }
            let ratio =
                |spread: Option<Spread>| spread.map_or("-".to_owned(), |spread| with_range(spread, 2));
            let latency = row.latency.map_or("-".to_owned(), |latency| {
                let ms = |us: u64| format!("{:.2}", us as f64 / 1000.0);
                let Latency { p50_us, p99_us, p999_us, max_us } = latency;
                [p50_us, p99_us, p999_us, max_us].map(ms).join(" / ")
            });
            let _ = writeln!(
                text,
                "  {:<26} {:>8.0} {:>8.3} {:>22} {:>9.0} {:>19} {:>19} {:>6} {:>7.0}  {latency}",
                format!("{}, {}", row.chain, row.rounds),
                row.offered_pps.median / 1000.0,
                row.lost_percent.max,
                with_range(row.chain_ns, 0),
                row.with_sink_ns.median,
                ratio(row.over_a),
                ratio(row.with_sink_over_a),
                row.packed_share.map_or("-".to_owned(), |share| format!("{share:.2}")),
                row.peak_mib.median,
            );
            let programs: Vec<String> =
                row.program_ns.iter().map(|(name, ns)| format!("{name} {ns:.0}")).collect();
            let _ = writeln!(text, "      {}", programs.join(", "));
            for (other, ratio) in &row.over {
                let _ = writeln!(text, "      CPU over {other}: {}", with_range(*ratio, 2));
            }
            if !row.lost_at.is_empty() {
                let stages: Vec<String> =
                    row.lost_at.iter().map(|(stage, count)| format!("{stage} {count}")).collect();
                let _ = writeln!(text, "      lost at: {}", stages.join(", "));
            }
        }
        for found in &self.searched {
            let which = if found.is_flat_out { ", all that the generator offers" } else { "" };
            let _ = writeln!(
                text,
                "\n{}: {}: no loss up to {:.0} kpps{which}",
                found.traffic,
                found.chain,
                found.lossless_pps / 1000.0
            );
        }
        text
    }
}

fn with_range(spread: Spread, digits: usize) -> String {
    format!("{:.digits$} ({:.digits$}-{:.digits$})", spread.median, spread.min, spread.max)
}

fn with_sink(one: &Measurement) -> f64 {
    one.cpu_ns.values().sum()
}

/// A value over that of another chain, in each round that has both.
fn in_rounds(runs: &[&Measurement], others: &[&Measurement], value: fn(&Measurement) -> f64) -> Vec<f64> {
    let other = |one: &Measurement| others.iter().find(|other| other.round == one.round);
    runs.iter().filter_map(|one| Some(value(one) / value(other(one)?).max(1.0))).collect()
}

fn row(traffic: &str, kind: Kind, runs: &[&Measurement], of_a: &[&Measurement]) -> Row {
    let spread = |value: fn(&Measurement) -> f64| Spread::of(runs.iter().map(|one| value(one)));
    // What only captures is not held against a chain that delivers.
    let over_a = |value: fn(&Measurement) -> f64| {
        let ratios = in_rounds(runs, of_a, value);
        (!ratios.is_empty() && kind != Kind::Tcpdump).then(|| Spread::of(ratios))
    };
    let mut names: Vec<&String> = runs.iter().flat_map(|one| one.cpu_ns.keys()).collect();
    names.dedup();
    let median =
        |name: &String| Spread::of(runs.iter().filter_map(|one| one.cpu_ns.get(name).copied())).median;
    let mut by_latency: Vec<Latency> =
        runs.iter().filter_map(|one| one.counted.as_ref().map(|counted| counted.latency)).collect();
    by_latency.sort_by_key(|latency| latency.p99_us);
    let mut lost_at = BTreeMap::new();
    for (stage, count) in runs.iter().flat_map(|one| &one.lost_at) {
        *lost_at.entry(stage.clone()).or_default() += count;
    }
    let packed: Vec<f64> = runs.iter().filter_map(|one| one.packed_share).collect();
    Row {
        traffic: traffic.to_owned(),
        chain: kind.name().to_owned(),
        rounds: runs.len(),
        offered_pps: spread(|one| one.generated.offered_pps),
        lost_percent: spread(|one| 100.0 * one.lost as f64 / one.generated.packets.max(1) as f64),
        chain_ns: spread(|one| one.chain_ns),
        with_sink_ns: spread(with_sink),
        over_a: over_a(|one| one.chain_ns),
        with_sink_over_a: over_a(with_sink),
        over: BTreeMap::new(),
        delivered_pps: spread(|one| one.delivered as f64 / one.generated.seconds.max(1e-9)),
        program_ns: names.iter().map(|name| ((*name).clone(), median(name))).collect(),
        packed_share: (!packed.is_empty()).then(|| Spread::of(packed).median),
        peak_mib: spread(|one| {
            let kib: u64 = one.peak_kib.iter().filter(|(name, _)| !is_sink(name)).map(|(_, kib)| kib).sum();
            kib as f64 / 1024.0
        }),
        latency: by_latency.get(by_latency.len() / 2).copied(),
        lost_at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_in_each_round() {
        let one = |kind: Kind, round, ns| Measurement {
            chain: kind.name().to_owned(),
            traffic: "mix".to_owned(),
            round,
            chain_ns: ns,
            ..Measurement::default()
        };
        let (ours, a) = (Kind::Ringcast, Kind::Tcpdump);
        let mut report = Report {
            measurements: vec![
                one(ours, 0, 300.0),
                one(a, 0, 600.0),
                one(a, 1, 1000.0),
                one(ours, 1, 900.0),
                one(a, 2, 500.0),
                one(ours, 2, 100.0),
            ],
            ..Report::default()
        };
        report.sum_up();
        assert_eq!(report.rows.len(), 2);
        assert_eq!(report.rows[0].over_a, Some(Spread { median: 0.5, min: 0.2, max: 0.9 }));
        assert_eq!(report.rows[1].over_a, None);
        assert!(report.table().contains("0.50 (0.20-0.90)"));
    }
}
