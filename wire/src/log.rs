//! Logs: `tracing` to standard error, for people or for machines.

use std::fmt;
use std::io::IsTerminal;
use std::str::FromStr;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, format};
use tracing_subscriber::registry::LookupSpan;

use crate::service;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people; in colour on a terminal.
    #[default]
    Text,
    /// For machines, an object a line.
    Json,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("write text or json".to_owned()),
        }
    }
}

/// Starts logging for the whole process. `RUST_LOG` sets the level, `default_level` is it
/// otherwise. Who reads the log may go away, and its disk may fill up: what cannot be written is left
/// out, and nothing else fails. The journal of systemd knows the time, and is told the level.
pub fn start(lines: Format, default_level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default_level));
    // tungstenite would log payloads at its lowest level: captured traffic does not belong there. What
    // rustls finds wrong with a connection is said by us, with its name.
    let quiet =
        ["tungstenite=warn", "rustls=warn"].into_iter().filter_map(|directive| directive.parse().ok());
    let filter = quiet.fold(filter, EnvFilter::add_directive);
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false) // it would be said on standard error, by a macro that panics
        .with_ansi(std::io::stderr().is_terminal());
    let line = format().with_target(false);
    match (lines, service::logs_to_journal()) {
        (Format::Text, false) => log.event_format(line).init(),
        (Format::Text, true) => log.event_format(Prioritised(line.with_level(false).without_time())).init(),
        (Format::Json, false) => log.event_format(line.json()).fmt_fields(JsonFields::new()).init(),
        (Format::Json, true) => {
            log.event_format(Prioritised(line.json())).fmt_fields(JsonFields::new()).init()
        }
    }
}

/// Lines that begin with their level as systemd reads it (sd-daemon(3)): `<4>` is a warning.
struct Prioritised<F>(F);

impl<S, N, F> FormatEvent<S, N> for Prioritised<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// Of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}
