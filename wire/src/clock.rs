//! Wall time: taken here, so that the core gets it as an argument, and written for people.

use std::time::{SystemTime, UNIX_EPOCH};

const DAY_S: u64 = 86_400;

/// Wall time, ns since 1970; 0 before that.
pub fn wall_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Wall time, whole seconds since 1970: what tokens and certificates are measured by.
pub fn wall_s() -> u64 {
    wall_ns() / 1_000_000_000
}

/// Reads a time as `2026-11-24T10:00:00Z`, with up to nine decimals of the second, or as ns since
/// 1970. Always UTC, 1970 to 2500.
pub fn parse_timestamp(text: &str) -> Result<u64, String> {
    if let Ok(time_ns) = text.parse() {
        return Ok(time_ns);
    }
    timestamp_ns(text).ok_or_else(|| format!("{text:?}: write 2026-11-24T10:00:00Z, or ns since 1970"))
}

fn timestamp_ns(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
    let in_range = (1970..2500).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    let digits = fraction.bytes().all(|byte| byte.is_ascii_digit()) && (1..=9).contains(&fraction.len());
    let days = days_before(year, month) + day.checked_sub(1)?;
    // A day that the month does not have would be one of the next month.
    let day_exists = civil(days) == (year, month, day);
    if !(in_range && digits && day_exists) {
        return None;
    }
    let nanos: u64 = format!("{fraction:0<9}").parse().ok()?;
    Some((days * DAY_S + hour * 3600 + minute * 60 + second) * 1_000_000_000 + nanos)
}

fn numbers(text: &str, separator: char, widths: [usize; 3]) -> Option<[u64; 3]> {
    let mut parts = text.split(separator);
    let mut numbers = [0; 3];
    for (number, width) in numbers.iter_mut().zip(widths) {
        let part = parts.next()?;
        if part.len() != width || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

/// Writes ns since 1970 as `2026-11-24T10:00:00.000000000Z`.
pub fn format_timestamp(time_ns: u64) -> String {
    let (seconds, nanos) = (time_ns / 1_000_000_000, time_ns % 1_000_000_000);
    let (year, month, day) = civil(seconds / DAY_S);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn month_days(year: u64, month: u64) -> u64 {
    match month {
        2 => 28 + u64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970 to the first of a month.
fn days_before(year: u64, month: u64) -> u64 {
    let years: u64 = (1970..year.min(2600)).map(|year| 365 + u64::from(is_leap(year))).sum();
    years + (1..month.min(13)).map(|month| month_days(year, month)).sum::<u64>()
}

/// Year, month and day of a day since 1970.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 1;
    while days >= month_days(year, month) {
        days -= month_days(year, month);
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written() {
        for (text, time_ns) in [
            ("1970-01-01T00:00:00.000000000Z", 0),
            ("2000-02-29T12:34:56.000000000Z", 951_827_696_000_000_000),
            ("2026-11-24T10:00:00.000000000Z", 1_795_514_400_000_000_000),
            ("2100-03-01T00:00:00.123456789Z", 4_107_542_400_123_456_789),
        ] {
            assert_eq!(parse_timestamp(text), Ok(time_ns));
            assert_eq!(format_timestamp(time_ns), text);
        }
        assert_eq!(parse_timestamp("2026-11-24T10:00:00Z"), Ok(1_795_514_400_000_000_000));
        assert_eq!(parse_timestamp("2026-11-24T10:00:00.5Z"), Ok(1_795_514_400_500_000_000));
        assert_eq!(parse_timestamp("17"), Ok(17));
        assert_eq!(format_timestamp(u64::MAX), "2554-07-21T23:34:33.709551615Z");
        for text in [
            "",
            "today",
            "2026-11-24",
            "2026-11-24T10:00:00",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-00-10T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-11-24T24:00:00Z",
            "2026-11-24T10:00:00.Z",
            "+026-11-24T10:00:00Z",
        ] {
            assert!(parse_timestamp(text).is_err(), "{text}");
        }
    }
}
