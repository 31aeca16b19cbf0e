//! Lines for the journal of systemd: their level in front, as sd-daemon(3) has it, and neither time nor colour, which
//! the journal has of its own.

use std::fmt;
use std::sync::OnceLock;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Whether standard error goes to the journal: JOURNAL_STREAM names its device and inode (systemd.exec(5)). A program
/// that was started by a service, with its standard error elsewhere, has inherited the variable alone.
pub fn is_standard_error() -> bool {
    static IS_JOURNAL: OnceLock<bool> = OnceLock::new();
    *IS_JOURNAL.get_or_init(|| {
        let named = std::env::var("JOURNAL_STREAM").ok().and_then(|text| parse(&text));
        named.is_some() && named == standard_error()
    })
}

/// Device and inode of `8:1234`.
fn parse(text: &str) -> Option<(u64, u64)> {
    let (device, inode) = text.split_once(':')?;
    Some((device.parse().ok()?, inode.parse().ok()?))
}

#[cfg(unix)]
fn standard_error() -> Option<(u64, u64)> {
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    let file = std::fs::File::from(std::io::stderr().as_fd().try_clone_to_owned().ok()?);
    let metadata = file.metadata().ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn standard_error() -> Option<(u64, u64)> {
    None
}

/// What an audit is to syslog(3): normal, but of note.
const NOTICE: u8 = 5;

/// The number of a level (syslog(3)).
fn number(level: Level, is_audit: bool) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO if is_audit => NOTICE,
        Level::INFO => 6,
        _ => 7,
    }
}

/// Text of one or several lines, each with its level in front, for the journal takes each as an entry.
pub fn prefixed(level: Level, text: &str) -> String {
    with_number(number(level, false), text)
}

fn with_number(number: u8, text: &str) -> String {
    text.lines().map(|line| format!("<{number}>{line}\n")).collect()
}

/// The format of log lines for the journal.
pub struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = String::new();
        context.field_format().format_fields(Writer::new(&mut text), event)?;
        let metadata = event.metadata();
        out.write_str(&with_number(number(*metadata.level(), metadata.target() == "audit"), &text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_its_level() {
        assert_eq!(prefixed(Level::ERROR, "relay: no"), "<3>relay: no\n");
        assert_eq!(prefixed(Level::WARN, "one\ntwo\n"), "<4>one\n<4>two\n");
        assert_eq!(prefixed(Level::INFO, "x"), "<6>x\n");
        assert_eq!(prefixed(Level::DEBUG, "x"), prefixed(Level::TRACE, "x"));
        assert_eq!(
            (number(Level::INFO, true), number(Level::WARN, true), number(Level::TRACE, false)),
            (5, 4, 7)
        );
    }

    #[test]
    fn a_stream_is_device_and_inode() {
        assert_eq!(parse("8:1234"), Some((8, 1234)));
        for text in ["", "8", "8:", ":8", "8:x", "-8:1", "8:1:2"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
