//! Logs: `tracing` to standard error, for people, for machines, or for the journal of systemd.
//!
//! Whatever a peer, the network or a disk can cause again and again is said through [`limited!`](crate::limited), which
//! counts what it holds back. All that goes to standard error goes through here, log or not, so that nothing is
//! written across the live line of [`progress`].

mod journal;
mod limit;
mod summary;

use std::fmt;
use std::io::{IsTerminal, Write};
use std::str::FromStr;

use tracing_subscriber::EnvFilter;

use crate::progress;

pub use limit::{FEW, Kind, SOME, finish, turn};
pub use summary::{Interval, Minutes};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people; in colour on a terminal. To the journal: each line after its level, without time.
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

/// The least important lines that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// What went wrong.
    Error,
    /// And what may go wrong, or was lost.
    Warn,
    /// And what happens in normal running.
    Info,
    /// And what helps to find out why.
    Debug,
    /// And everything.
    Trace,
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "error" => Ok(Self::Error),
            "warn" => Ok(Self::Warn),
            "info" => Ok(Self::Info),
            "debug" => Ok(Self::Debug),
            "trace" => Ok(Self::Trace),
            _ => Err("write error, warn, info, debug or trace".to_owned()),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        })
    }
}

/// Starts logging for the whole process, of `level` and what is more important. `RUST_LOG`, where it is set, says it
/// instead, by module if need be. Who reads the log may go away, and its disk may fill up: what cannot be
/// written is left out, and nothing else fails.
pub fn start(format: Format, level: Level) {
    let asked = std::env::var("RUST_LOG").ok().filter(|asked| !asked.is_empty());
    let parsed = asked.as_ref().map(EnvFilter::try_new);
    let is_wrong = matches!(parsed, Some(Err(_)));
    let filter = parsed.and_then(Result::ok).unwrap_or_else(|| EnvFilter::new(level.to_string()));
    // tungstenite would log payloads at its lowest level: captured traffic does not belong there. What
    // rustls finds wrong with a connection is said by us, with its name.
    let quiet =
        ["tungstenite=warn", "rustls=warn"].into_iter().filter_map(|directive| directive.parse().ok());
    let filter = quiet.fold(filter, EnvFilter::add_directive);
    let has_colours =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|asked| asked.is_empty());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| StandardError)
        .log_internal_errors(false) // it would be said on standard error, by a macro that panics
        .with_target(false)
        .with_ansi(has_colours);
    match format {
        Format::Text if journal::is_standard_error() => log.event_format(journal::Lines).init(),
        Format::Text => log.init(),
        Format::Json => log.json().init(),
    }
    if is_wrong {
        tracing::warn!("RUST_LOG: {:?} is no filter; logging at {level}", asked.unwrap_or_default());
    }
}

/// Writes a line for people to standard error: what they asked for, or are told at the end.
pub fn say(line: &str) {
    write_lines(tracing::Level::INFO, line);
}

/// Writes to standard error why the program ends without success.
pub fn complain(line: &str) {
    write_lines(tracing::Level::ERROR, line);
}

/// Nobody may be there to read it: that is no reason to fail.
fn write_lines(level: tracing::Level, lines: &str) {
    let text = match journal::is_standard_error() {
        true => journal::prefixed(level, lines),
        false => format!("{lines}\n"),
    };
    let _ = StandardError.write_all(text.as_bytes());
}

/// Standard error, around the live line.
struct StandardError;

impl Write for StandardError {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        progress::around(|| std::io::stderr().lock().write(bytes))
    }

    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        progress::around(|| std::io::stderr().lock().write_all(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
