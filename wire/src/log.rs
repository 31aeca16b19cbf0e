//! Logs: `tracing` to standard error, for people or for machines.

use std::io::IsTerminal;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;

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
/// out, and nothing else fails.
pub fn start(format: Format, default_level: &str) {
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
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        Format::Text => log.init(),
        Format::Json => log.json().init(),
    }
}
