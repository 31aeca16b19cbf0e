//! `--list`: who is there, as a table or as JSON.

use wire::hub::Matcher;
use wire::message::StreamStatus;
use wire::text::printable;
use wire::units::format_bytes;

const HEAD: [&str; 8] = ["SNIFFER", "INTERFACE", "STATE", "PACKETS", "BYTES", "FILTER", "SINCE", "ADDRESS"];

/// The list of the streams that match, ready to print.
pub fn list_text(streams: &[StreamStatus], matcher: &Matcher, json: bool) -> String {
    let streams: Vec<&StreamStatus> = streams.iter().filter(|status| matcher.matches(status)).collect();
    if json {
        // Serialising strings and numbers has no way to fail.
        let mut text = serde_json::to_string_pretty(&streams).unwrap_or_default();
        text.push('\n');
        return text;
    }
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(streams.into_iter().map(row));
    let widths: [usize; HEAD.len()] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn row(status: &StreamStatus) -> [String; HEAD.len()] {
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { printable(text) };
    [
        or_dash(&status.name),
        or_dash(&status.interfaces.join(",")),
        or_dash(&status.state),
        status.packets.to_string(),
        format_bytes(status.bytes),
        or_dash(status.filter.as_deref().unwrap_or_default()),
        if status.opened_ns == 0 { "-".to_owned() } else { utc_text(status.opened_ns) },
        or_dash(&status.address),
    ]
}

/// A time as `2026-11-24T10:00:00Z`.
fn utc_text(time_ns: u64) -> String {
    let seconds = time_ns / 1_000_000_000;
    let (days, of_day) = ((seconds / 86_400) as i64, seconds % 86_400);
    // Days since 1970 to a date of the Gregorian calendar, in 400-year eras that begin in March.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::message::Selection;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc_text(seconds * 1_000_000_000), text);
        }
    }

    #[test]
    fn a_table_and_json() {
        let streams = [
            StreamStatus { name: "web\u{1b}".into(), interfaces: vec!["eth0".into()], ..Default::default() },
            StreamStatus { name: "db".into(), state: "live".into(), packets: 12_345, ..Default::default() },
        ];
        let matcher = |sniffer: &str| {
            let sniffers = vec![sniffer.to_owned()];
            Matcher::new(&Selection { sniffers, ..Selection::default() }).expect("a glob")
        };
        let table = list_text(&streams, &matcher("*"), false);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].starts_with("web\\u{1b}  eth0"), "{table}");
        assert!(lines[2].contains("live   12345"), "{table}");
        let json = list_text(&streams, &matcher("d*"), true);
        let read: Vec<StreamStatus> = serde_json::from_str(&json).expect("JSON");
        assert_eq!(read, streams[1..]);
    }
}
