//! What is said at the end: a line for each interface, and a total when there are several. Each line
//! has the equation: what the kernel offered since this viewer joined, and what became of it.

use std::collections::BTreeMap;

use wire::ledger::{Losses, Stage};
use wire::text::printable;
use wire::units::format_bytes;

use crate::ledger::Line;

/// The lines of the summary. `interface_drops`: what interfaces of the output, by name, dropped
/// themselves.
pub fn summary(
    lines: &BTreeMap<String, Line>,
    interface_drops: &BTreeMap<u32, (String, u64)>,
) -> Vec<String> {
    if lines.is_empty() {
        return vec!["no stream matched".to_owned()];
    }
    let mut total = Line::default();
    let mut texts = Vec::new();
    for (label, line) in lines {
        let own = |(name, _): &&(String, u64)| line.written.interfaces.contains(name);
        let drops = interface_drops.values().filter(own).map(|(_, drops)| drops).sum();
        texts.push(format!("{}: {}", title(&printable(label), line), text(line, drops)));
        total.add(line);
    }
    if lines.len() > 1 {
        let drops = interface_drops.values().map(|(_, drops)| drops).sum();
        texts.push(format!("{}: {}", title("total", &total), text(&total, drops)));
    }
    texts
}

fn title(label: &str, line: &Line) -> String {
    match line.streams {
        0 | 1 => label.to_owned(),
        count => format!("{label} ({count} streams)"),
    }
}

fn text(line: &Line, interface_drops: u64) -> String {
    let written = &line.written;
    let mut text = format!(
        "received {} packets ({}), written {}",
        line.received_packets,
        format_bytes(line.received_bytes),
        written.written.packets
    );
    let done = written.written.packets + written.filtered + written.unfilterable;
    let left = line.received_packets.saturating_sub(done);
    let kept_back = [
        (written.filtered, "filtered"),
        (written.unfilterable, "of interfaces the filter does not fit"),
        (left, "left unwritten at the end"),
    ];
    for (count, what) in kept_back.iter().filter(|(count, _)| *count > 0) {
        text.push_str(&format!(", {count} {what}"));
    }
    text.push_str(&format!("; missing {}", line.missing.text()));
    text.push_str(&equation(line, left));
    if line.cut_packets > 0 {
        text.push_str(&format!("; {} delivered shortened", line.cut_packets));
    }
    if line.duplicates > 0 {
        text.push_str(&format!("; {} blocks came twice", line.duplicates));
    }
    let mut outside = Vec::new();
    if interface_drops > 0 {
        outside.push(format!("{interface_drops} dropped by the interface"));
    }
    for outage in &line.outages {
        let lasts = if outage.until_ns.is_none() { ", to the end" } else { "" };
        outside.push(printable(&format!("{}{lasts}", outage.text())));
    }
    let more = line.outage_count.saturating_sub(line.outages.len() as u64);
    if more > 0 {
        outside.push(format!("{more} more such times"));
    }
    if !outside.is_empty() {
        text.push_str(&format!("; outside of this: {}", outside.join(", ")));
    }
    let unexplained = line.missing.packets_at(Stage::Unexplained).saturating_add(residual(line).1);
    if unexplained > 0 {
        text.push_str(&format!("; {unexplained} UNEXPLAINED, a defect of Ringcast: please report it"));
    }
    text
}

/// Packets that the kernel says it offered and that nothing is known of: those under way, and those
/// for which there is no excuse.
fn residual(line: &Line) -> (u64, u64) {
    let rest = line.offered_by_kernel.saturating_sub(line.accounted());
    if line.is_open { (rest, 0) } else { (0, rest) }
}

/// `; offered 20 = written 10 + filtered 4 + missing 4 (viewer queue) + kernel ring 2`.
fn equation(line: &Line, left: u64) -> String {
    let accounted = line.accounted();
    let (under_way, unexplained) = residual(line);
    let offered = accounted.saturating_add(under_way).saturating_add(unexplained);
    // Joined in the middle, the first report does not say what of it was in the ring; and a report
    // is up to a second older than the last packets.
    let is_about = line.is_about || line.offered_by_kernel < accounted;
    let about = if is_about { "about " } else { "" };
    let mut terms = vec![format!("written {}", line.written.written.packets)];
    let mut term = |what: &str, count: u64, more: String| {
        if count > 0 {
            terms.push(format!("{what} {count}{more}"));
        }
    };
    term("filtered", line.written.filtered, String::new());
    term("of interfaces the filter does not fit", line.written.unfilterable, String::new());
    term("left unwritten", left, String::new());
    term("missing", line.missing.packets(), format!(" ({})", stages(&line.missing)));
    term("lost before packing", line.unpacked.packets(), format!(" ({})", stages(&line.unpacked)));
    term("kernel ring", line.kernel_drops, String::new());
    term("in the ring or under way", under_way, String::new());
    term("unexplained", unexplained, String::new());
    format!("; offered {about}{offered} = {}", terms.join(" + "))
}

/// `viewer queue`, or `3 viewer queue, 1 corrupt`.
fn stages(losses: &Losses) -> String {
    let mut present = losses.0.iter().filter(|(_, loss)| loss.packets > 0);
    match (present.next(), present.next()) {
        (Some((stage, _)), None) => stage.text().to_owned(),
        _ => losses.text(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::StreamTally;
    use crate::unpack::Count;

    #[test]
    fn lines_add_up_and_name_what_is_kept_back() {
        let line = |filtered| {
            let written = Count { packets: 6, bytes: 60 };
            let written = StreamTally { written, filtered, unfilterable: 1, ..StreamTally::default() };
            let mut line = Line { streams: 2, received_packets: 12, written, ..Line::default() };
            line.missing.add(Stage::ViewerQueue, 2, 0);
            line.offered_by_kernel = 14;
            line
        };
        let lines = BTreeMap::from([("web:eth0".to_owned(), line(3)), ("web:\u{1b}".to_owned(), line(5))]);
        let texts = summary(&lines, &BTreeMap::new());
        assert_eq!(texts.len(), 3);
        let escaped = "web:\\u{1b} (2 streams): received 12 packets (0 B), written 6, 5 filtered, \
                       1 of interfaces the filter does not fit; missing 2 viewer queue; offered 14 = written 6 + \
                       filtered 5 + of interfaces the filter does not fit 1 + missing 2 (viewer queue)";
        assert_eq!(texts[0], escaped);
        assert!(texts[1].contains("3 filtered, 1 of interfaces the filter does not fit, 2 left unwritten"));
        assert!(texts[2].starts_with("total (4 streams): received 24 packets"), "{}", texts[2]);
        assert!(texts[2].contains("offered 28 = written 12 + filtered 8 +"), "{}", texts[2]);
        assert_eq!(summary(&BTreeMap::new(), &BTreeMap::new()), ["no stream matched"]);
        let mut line = line(3);
        line.missing.add(Stage::Unexplained, 1, 0);
        let text = text(&line, 0);
        assert!(text.ends_with("1 UNEXPLAINED, a defect of Ringcast: please report it"), "{text}");
    }
}
