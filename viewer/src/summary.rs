//! What is said at the end: a line for each interface, and a total when there are several.

use std::collections::BTreeMap;

use wire::block::StreamKey;
use wire::downlink::StreamState;
use wire::ledger::Losses;
use wire::units::format_bytes;

use crate::output::printable;
use crate::tally::{StreamTally, Tally};

/// What is known of one or several streams.
#[derive(Debug, Default)]
struct Line {
    streams: usize,
    received_packets: u64,
    received_bytes: u64,
    written_packets: u64,
    filtered: u64,
    unfilterable: u64,
    missing: Losses,
    kernel_drops: u64,
    duplicates: u64,
    lost_before: Losses,
}

impl Line {
    fn add(&mut self, state: &StreamState, tally: &StreamTally) {
        self.streams += 1;
        self.received_packets += state.received_packets;
        self.received_bytes += state.received_bytes;
        self.written_packets += tally.written.packets;
        self.filtered += tally.filtered;
        self.unfilterable += tally.unfilterable;
        self.duplicates += state.duplicates;
        add(&mut self.missing, &state.missing);
        if let Some(report) = &state.report {
            let drops = report.interfaces.iter().map(|totals| totals.kernel_drops);
            self.kernel_drops = drops.fold(self.kernel_drops, u64::saturating_add);
            add(&mut self.lost_before, &report.lost);
        }
    }

    fn text(&self) -> String {
        let mut text = format!(
            "received {} packets ({}), written {}",
            self.received_packets,
            format_bytes(self.received_bytes),
            self.written_packets
        );
        let accounted = self.written_packets + self.filtered + self.unfilterable;
        let left = self.received_packets.saturating_sub(accounted);
        for (count, what) in [
            (self.filtered, "filtered"),
            (self.unfilterable, "of interfaces the filter does not fit"),
            (left, "left unwritten at the end"),
        ] {
            if count > 0 {
                text.push_str(&format!(", {count} {what}"));
            }
        }
        text.push_str(&format!("; missing {}; kernel drops {}", self.missing.text(), self.kernel_drops));
        if self.lost_before.packets() > 0 {
            text.push_str(&format!("; sniffer's losses {}", self.lost_before.text()));
        }
        if self.duplicates > 0 {
            text.push_str(&format!("; {} blocks came twice", self.duplicates));
        }
        text
    }
}

fn add(to: &mut Losses, losses: &Losses) {
    for (stage, loss) in &losses.0 {
        to.add(*stage, loss.packets, loss.bytes);
    }
}

/// The lines of the summary.
pub fn summary(states: &BTreeMap<StreamKey, StreamState>, tally: &Tally) -> Vec<String> {
    let none = StreamTally::default();
    let mut lines: BTreeMap<String, Line> = BTreeMap::new();
    let mut total = Line::default();
    for (key, state) in states {
        let tallied = tally.streams.get(key).unwrap_or(&none);
        let label = match tallied.interfaces.as_slice() {
            [] => format!("{}:?", state.name),
            names => names.join(" "),
        };
        lines.entry(label).or_default().add(state, tallied);
        total.add(state, tallied);
    }
    if lines.is_empty() {
        return vec!["no stream matched".to_owned()];
    }
    let several = lines.len() > 1;
    let with_count = |label: &str, line: &Line| match line.streams {
        1 => format!("{}: {}", printable(label), line.text()),
        count => format!("{} ({count} streams): {}", printable(label), line.text()),
    };
    let mut texts: Vec<String> = lines.iter().map(|(label, line)| with_count(label, line)).collect();
    if several {
        texts.push(with_count("total", &total));
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unpack::Count;
    use wire::ledger::Stage;

    #[test]
    fn rings_of_an_interface_share_a_line_and_everything_adds_up() {
        let (mut states, mut tally) = (BTreeMap::new(), Tally::default());
        for stream in 0..3 {
            let key = StreamKey { stream, ..StreamKey::default() };
            let mut state = StreamState::default();
            state.received_packets = 10;
            state.missing.add(Stage::ViewerQueue, 2, 0);
            states.insert(key, state);
            let interfaces = vec![if stream < 2 { "web:eth0".into() } else { "web:eth1".into() }];
            let written = Count { packets: 6, bytes: 60 };
            let one = StreamTally { interfaces, written, filtered: 3, ..StreamTally::default() };
            tally.streams.insert(key, one);
        }
        let lines = summary(&states, &tally);
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("web:eth0 (2 streams): received 20 packets"), "{}", lines[0]);
        assert!(lines[0].contains("written 12, 6 filtered, 2 left unwritten"), "{}", lines[0]);
        assert!(lines[1].contains("missing 2 viewer queue"), "{}", lines[1]);
        assert!(lines[2].starts_with("total (3 streams)"), "{}", lines[2]);
        assert_eq!(summary(&BTreeMap::new(), &tally), ["no stream matched"]);
    }
}
