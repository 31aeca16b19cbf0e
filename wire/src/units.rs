//! Sizes, times and rates as they are written on a command line.

use std::time::Duration;

use thiserror::Error;

/// Why text is not a quantity.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum UnitError {
    /// Not a number followed by one of the units.
    #[error("{text:?}: write a number and one of {units}")]
    Form {
        /// What was written.
        text: String,
        /// What may follow the number.
        units: &'static str,
    },
    /// More than fits.
    #[error("{text:?} is too large")]
    TooLarge {
        /// What was written.
        text: String,
    },
}

/// Reads a size in bytes: `4096`, `64KiB`, `64MiB`, `10GiB`, `1TiB`, or decimal `64kB`, `64MB`, `10GB`.
pub fn parse_size(text: &str) -> Result<usize, UnitError> {
    let units = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
        ("", 1),
    ];
    let bytes = scaled(text, &units, "KiB, MiB, GiB, TiB, kB, MB, GB")?;
    usize::try_from(bytes).map_err(|_| UnitError::TooLarge { text: text.to_owned() })
}

/// Reads a time: `10ms`, `1.5s`, `60s`, `5m`, `2h`, `1d`; a bare number is seconds.
pub fn parse_time(text: &str) -> Result<Duration, UnitError> {
    let units = [
        ("ns", 1),
        ("us", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
        ("d", 86_400_000_000_000),
        ("", 1_000_000_000),
    ];
    scaled(text, &units, "ms, s, m, h, d").map(Duration::from_nanos)
}

/// Reads a rate in bits a second: `100Mbit`, `2.5Gbit`, `500kbit`; returns bytes a second.
pub fn parse_rate(text: &str) -> Result<u64, UnitError> {
    let units = [("kbit", 1_000), ("Mbit", 1_000_000), ("Gbit", 1_000_000_000), ("bit", 1)];
    scaled(text, &units, "bit, kbit, Mbit, Gbit").map(|bits| bits / 8)
}

/// Splits `text` into a decimal number and a unit, and multiplies them out.
fn scaled(text: &str, units: &[(&str, u64)], names: &'static str) -> Result<u64, UnitError> {
    let form = || UnitError::Form { text: text.to_owned(), units: names };
    let at = text.find(|one: char| !one.is_ascii_digit() && one != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let scale = units.iter().find(|(name, _)| *name == unit.trim_start()).ok_or_else(form)?.1;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || number.ends_with('.') || fraction.len() > 9 {
        return Err(form());
    }
    let too_large = |_| UnitError::TooLarge { text: text.to_owned() };
    let whole: u128 = whole.parse::<u64>().map_err(too_large)?.into();
    let digits = fraction.len() as u32;
    let fraction: u128 = if digits == 0 { 0 } else { fraction.parse::<u64>().map_err(|_| form())?.into() };
    let total = whole * u128::from(scale) + fraction * u128::from(scale) / 10u128.pow(digits);
    u64::try_from(total).map_err(|_| UnitError::TooLarge { text: text.to_owned() })
}

/// A number of bytes for people: `999 B`, `64.0 KiB`, `1.2 GiB`.
pub fn format_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB", "PiB"] {
        if value < 1024.0 || unit == "PiB" {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{bytes} B")
}

/// A count for people: `1,234,567`.
pub fn format_count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Packets in a time, as a rate for people: `950 pps`, `98.2 kpps`, `1.2 Mpps`.
pub fn format_rate(packets: u64, time: Duration) -> String {
    let rate = packets as f64 / time.as_secs_f64().max(0.001);
    match rate {
        rate if rate < 10.0 && packets > 0 => format!("{rate:.1} pps"),
        rate if rate < 999.5 => format!("{rate:.0} pps"),
        rate if rate < 999_950.0 => format!("{:.1} kpps", rate / 1e3),
        rate => format!("{:.1} Mpps", rate / 1e6),
    }
}

/// A time for people, of its largest unit or two: `45 s`, `12 min`, `3 h 5 min`, `2 d 7 h`.
pub fn format_time(time: Duration) -> String {
    let pair = |large: u64, unit: &str, small: u64, part: &str| match small {
        0 => format!("{large} {unit}"),
        small => format!("{large} {unit} {small} {part}"),
    };
    match time.as_secs() {
        seconds if seconds < 60 => format!("{seconds} s"),
        seconds if seconds < 3600 => format!("{} min", seconds / 60),
        seconds if seconds < 86_400 => pair(seconds / 3600, "h", seconds / 60 % 60, "min"),
        seconds => pair(seconds / 86_400, "d", seconds / 3600 % 24, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_read() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        assert_eq!(parse_size("1.5 GiB"), Ok(3 << 29));
        assert_eq!(parse_size("10kB"), Ok(10_000));
        assert_eq!(parse_time("10ms"), Ok(Duration::from_millis(10)));
        assert_eq!(parse_time("0.25s"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_time("60"), Ok(Duration::from_secs(60)));
        assert_eq!(parse_time("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_time("90d"), Ok(Duration::from_secs(90 * 86_400)));
    }

    #[test]
    fn what_is_no_quantity_is_named() {
        for text in ["", "x", "-1", "1.", ".5s", "1..2s", "10 parsecs", "1e3", "64mib"] {
            assert!(parse_size(text).is_err(), "{text}");
            assert!(parse_time(text).is_err(), "{text}");
        }
        assert!(matches!(parse_size("99999999999TiB"), Err(UnitError::TooLarge { .. })));
        assert!(matches!(parse_time("999999999d"), Err(UnitError::TooLarge { .. })));
    }

    #[test]
    fn bytes_are_written_for_people() {
        assert_eq!(format_bytes(999), "999 B");
        assert_eq!(format_bytes(65_536), "64.0 KiB");
        assert_eq!(format_bytes(5 << 30), "5.0 GiB");
    }

    #[test]
    fn counts_rates_and_times_are_written_for_people() {
        for (count, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(format_count(count), text);
        }
        let minute = Duration::from_secs(60);
        let rates = [
            (0, "0 pps"),
            (90, "1.5 pps"),
            (57_000, "950 pps"),
            (59_999, "1.0 kpps"),
            (5_892_000, "98.2 kpps"),
        ];
        for (packets, text) in rates.into_iter().chain([(59_999_999, "1.0 Mpps"), (72_000_000, "1.2 Mpps")]) {
            assert_eq!(format_rate(packets, minute), text);
        }
        assert_eq!(format_rate(1, Duration::ZERO), "1.0 kpps", "no division by zero");
        let times = [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (3600, "1 h"),
            (11_100, "3 h 5 min"),
            (198_000, "2 d 7 h"),
        ];
        for (seconds, text) in times {
            assert_eq!(format_time(Duration::from_secs(seconds)), text);
        }
    }
}
