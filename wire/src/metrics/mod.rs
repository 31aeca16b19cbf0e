//! What a program tells of itself in figures: Prometheus's text format, version 0.0.4.
//!
//! Each metric stands once, in [`table`]: name, kind, labels and what it means. The exposition, the documentation
//! (`monitoring/METRICS.md`), and the check of dashboard and alerts are made from there.
//!
//! There is no registry, and nothing is counted for it: whoever is asked fills an [`Exposition`] out of the counters that
//! it has anyway. The crate `prometheus-client` was not used: it writes OpenMetrics alone, whose counters `promtool check
//! metrics` takes for untyped and undocumented.

#[cfg(target_os = "linux")]
pub mod process;
pub mod table;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::text::printable;

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, until the program starts anew; its name ends in `_total`.
    Counter,
    /// It is what it is.
    Gauge,
}

impl Kind {
    /// As Prometheus writes it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        }
    }
}

/// What is known of a metric before it has a value.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// Its name, with its unit: bytes, seconds or a ratio of 0 to 1.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it means, in a sentence.
    pub help: &'static str,
}

/// A metric with so many labels.
#[derive(Clone, Copy, Debug)]
pub struct Metric<const LABELS: usize>(About);

impl<const LABELS: usize> Metric<LABELS> {
    /// A metric of the table.
    const fn new(
        name: &'static str,
        kind: Kind,
        labels: &'static [&'static str; LABELS],
        help: &'static str,
    ) -> Self {
        Self(About { name, kind, labels, help })
    }

    /// What is known of it.
    pub const fn about(&self) -> About {
        self.0
    }
}

/// Values of metrics at one time.
#[derive(Clone, Debug, Default)]
pub struct Exposition {
    families: BTreeMap<&'static str, Family>,
}

#[derive(Clone, Debug)]
struct Family {
    about: About,
    series: BTreeMap<Vec<String>, f64>,
}

impl Exposition {
    /// The type of what [`Exposition::text`] returns.
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// Adds a value. What has the same labels is one series, and summed: figures of several threads need only be added.
    /// Values of labels may be a peer's: they are made printable, and cut where they are long.
    pub fn add<const LABELS: usize>(&mut self, metric: Metric<LABELS>, labels: [&str; LABELS], value: f64) {
        let about = metric.about();
        let family = self.families.entry(about.name);
        let family = family.or_insert_with(|| Family { about, series: BTreeMap::new() });
        *family.series.entry(labels.map(printable).to_vec()).or_default() += value;
    }

    /// Adds a whole number. Beyond 2^53 it is rounded, as Prometheus would.
    pub fn count<const LABELS: usize>(&mut self, metric: Metric<LABELS>, labels: [&str; LABELS], value: u64) {
        self.add(metric, labels, value as f64);
    }

    /// The text that Prometheus reads: metrics by name, series by labels.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, Family { about, series }) in &self.families {
            // Writing into a string does not fail.
            let _ = writeln!(text, "# HELP {name} {}", about.help.replace('\\', "\\\\"));
            let _ = writeln!(text, "# TYPE {name} {}", about.kind.name());
            for (values, value) in series {
                text.push_str(name);
                let mut separator = '{';
                for (label, value) in about.labels.iter().zip(values) {
                    let _ = write!(text, "{separator}{label}=\"{}\"", escaped(value));
                    separator = ',';
                }
                if separator == ',' {
                    text.push('}');
                }
                let _ = writeln!(text, " {value}");
            }
        }
        text
    }
}

/// The value of a label as it stands between quotation marks.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The document about the table, in Markdown: a section for each of its parts.
pub fn markdown() -> String {
    let mut text = String::from(
        "# Metrics\n\nWhat `/metrics` of the admin port shows (`--admin`). Made from `wire/src/metrics/table.rs`:\n\
         `RINGCAST_UPDATE=1 cargo test -p tests --test monitoring`. Counters begin at 0 when the program does.\n\n",
    );
    for (title, part) in table::PARTS {
        let _ = writeln!(text, "## {title}\n\n| name | kind | labels | meaning |\n|---|---|---|---|");
        for About { name, kind, labels, help } in *part {
            let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
            let _ = writeln!(text, "| `{name}` | {} | {} | {help} |", kind.name(), labels.join(", "));
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len() + 1);
    text
}

#[cfg(test)]
mod tests {
    use super::table::{process, relay};
    use super::*;

    #[test]
    fn what_has_the_same_labels_is_summed_and_text_is_escaped() {
        let mut exposition = Exposition::default();
        exposition.count(relay::RECEIVED_PACKETS, ["web-1"], 2);
        exposition.count(relay::RECEIVED_PACKETS, ["web-1"], 1 << 40);
        exposition.count(relay::RECEIVED_PACKETS, ["a\"b\\c\nd\u{7f}"], 1);
        exposition.add(process::CPU_SECONDS, [], 0.25);
        let text = exposition.text();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                "process_cpu_seconds_total 0.25",
                "ringcast_relay_received_packets_total{sniffer=\"a\\\"b\\\\c\\\\nd\\\\u{7f}\"} 1",
                "ringcast_relay_received_packets_total{sniffer=\"web-1\"} 1099511627778",
            ]
        );
        assert_eq!(text.lines().filter(|line| line.starts_with("# TYPE")).count(), 2);
        assert!(text.contains("# TYPE ringcast_relay_received_packets_total counter\n"), "{text}");
    }

    #[test]
    fn names_keep_the_conventions() {
        let mut seen = std::collections::BTreeSet::new();
        for About { name, kind, labels, help } in table::PARTS.iter().flat_map(|(_, part)| *part) {
            assert!(seen.insert(name), "{name} stands twice");
            let is_name = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            assert!(is_name(name) && labels.iter().all(|label| is_name(label)), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert!(help.ends_with('.') && !help.contains(['\n', '|']), "{name}: {help}");
            let is_ours = name.starts_with("ringcast_") || name.starts_with("process_");
            assert!(is_ours && !["_ms", "_ns", "_mib", "_percent"].iter().any(|unit| name.contains(unit)));
        }
        assert!(markdown().contains("| `process_open_fds` | gauge |  | "));
    }
}
