//! What was decided: the arguments, checked before the first socket.

use std::path::PathBuf;
use std::time::Duration;

use bpf::FilterError;
use thiserror::Error;
use wire::connection::{RelayUrl, UrlError};
use wire::credentials::{CredentialError, CredentialFiles, Credentials};
use wire::globs::GlobError;
use wire::hub::Matcher;
use wire::message::Selection;
use wire::pcapng::CAPTURED_BYTES_MAX;
use wire::tls::ClientFiles;

use crate::args::Args;

/// Most that packets may be held back to put them in order.
const REORDER_MAX: Duration = Duration::from_secs(60);
/// LINKTYPE_ETHERNET: what a filter must at least compile for.
const ETHERNET: u16 = 1;

/// Where the packets go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Standard output.
    Stdout,
    /// A file, overwritten.
    File(PathBuf),
}

/// The viewer's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// The relay.
    pub relay: RelayUrl,
    /// Where what it proves itself with is, to be read anew.
    pub credential_files: CredentialFiles,
    /// What it proves itself with, and whom it trusts.
    pub credentials: Credentials,
    /// What is asked of it.
    pub selection: Selection,
    /// The same, to be applied here to the interfaces of a stream and to the list.
    pub matcher: Matcher,
    /// Filter expression for what is written.
    pub filter: Option<String>,
    /// Leave after so many packets.
    pub count: Option<u64>,
    /// Leave after this time.
    pub duration: Option<Duration>,
    /// Leave when all streams have ended.
    pub until_end: bool,
    /// Window of the merge by time; zero is none.
    pub reorder: Duration,
    /// Show the list and leave.
    pub list: bool,
    /// The list as JSON.
    pub json: bool,
    /// No summary.
    pub quiet: bool,
    /// Where the packets go.
    pub target: Target,
}

/// Why the settings are refused. Exit status 2.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum ConfigError {
    #[error("{0}")]
    Url(#[from] UrlError),
    #[error("{0}")]
    Credentials(#[from] CredentialError),
    #[error("{option}: {error}")]
    Names { option: &'static str, error: GlobError },
    #[error("{0}")]
    Selection(#[from] GlobError),
    #[error("{}", filter_text(.0))]
    Filter(#[from] FilterError),
    #[error("--reorder {} s: at most {} s", .found.as_secs_f64(), REORDER_MAX.as_secs())]
    Reorder { found: Duration },
    #[error(
        "standard output is a terminal, and packets are not text: write viewer | wireshark -k -i -, \
         or viewer -w FILE"
    )]
    Terminal,
}

/// The words of libpcap, with the cause where they have one.
pub fn filter_text(error: &FilterError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// The filter's program for frames of `link_type`.
pub fn compile_filter(expression: &str, link_type: u16) -> Result<bpf::Program, FilterError> {
    bpf::compile(expression, link_type, CAPTURED_BYTES_MAX as u32)
}

impl Config {
    /// Checks what was typed. `stdout_is_terminal`: standard output shows text to a person.
    pub fn new(args: &Args, stdout_is_terminal: bool) -> Result<Self, ConfigError> {
        if let Some(mistake) = option_mistakes(args).into_iter().next() {
            return Err(mistake);
        }
        let selection = Selection {
            sniffers: args.sniffer.clone(),
            interfaces: args.interface.clone(),
            marks: !args.reorder.is_zero(),
            backlog: args.backlog,
        };
        let matcher = Matcher::new(&selection)?;
        let target = match &args.write {
            Some(path) if path.as_os_str() != "-" => Target::File(path.clone()),
            _ => Target::Stdout,
        };
        if target == Target::Stdout && stdout_is_terminal && !args.list {
            return Err(ConfigError::Terminal);
        }
        let relay = RelayUrl::parse(&args.relay)?;
        let credential_files = credential_files(args);
        Ok(Self {
            credentials: credential_files.load(&relay)?,
            credential_files,
            relay,
            selection,
            matcher,
            filter: args.filter.clone().filter(|text| !text.trim().is_empty()),
            count: (args.count > 0).then_some(args.count),
            duration: args.duration,
            until_end: args.until_end,
            reorder: args.reorder,
            list: args.list,
            json: args.json,
            quiet: args.quiet,
            target,
        })
    }

    /// The relay as messages name it.
    pub fn relay_text(&self) -> String {
        let text = self.relay.to_string();
        format!("relay {}", text.strip_suffix('/').unwrap_or(&text))
    }
}

/// Everything that is wrong, the files with credentials included; but not where the packets go, which whoever starts the
/// program decides.
pub fn mistakes(args: &Args) -> Vec<ConfigError> {
    let mut found = option_mistakes(args);
    if let Ok(relay) = RelayUrl::parse(&args.relay) {
        found.extend(credential_files(args).load(&relay).err().map(ConfigError::from));
    }
    found
}

/// Everything that is wrong with the options by themselves; no file is read.
pub fn option_mistakes(args: &Args) -> Vec<ConfigError> {
    let mut found = Vec::new();
    let no_names =
        || Selection { sniffers: Vec::new(), interfaces: Vec::new(), marks: false, backlog: false };
    let sniffers = Selection { sniffers: args.sniffer.clone(), ..no_names() };
    let interfaces = Selection { interfaces: args.interface.clone(), ..no_names() };
    for (option, selection) in [("--sniffer", sniffers), ("--interface", interfaces)] {
        found.extend(Matcher::new(&selection).err().map(|error| ConfigError::Names { option, error }));
    }
    if let Some(expression) = args.filter.as_ref().filter(|text| !text.trim().is_empty()) {
        found.extend(compile_filter(expression, ETHERNET).err().map(ConfigError::from));
    }
    if args.reorder > REORDER_MAX {
        found.push(ConfigError::Reorder { found: args.reorder });
    }
    found.extend(RelayUrl::parse(&args.relay).err().map(ConfigError::from));
    found
}

/// The files with credentials that these options name.
pub fn credential_files(args: &Args) -> CredentialFiles {
    CredentialFiles {
        tls: ClientFiles { ca: args.ca.clone(), cert: args.cert.clone(), key: args.key.clone() },
        token_file: args.token_file.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn config(args: &[&str], terminal: bool) -> Result<Config, ConfigError> {
        let args = Args::try_parse_from([&["viewer"], args].concat()).expect("parses");
        Config::new(&args, terminal)
    }

    #[test]
    fn defaults_and_refusals() {
        let plain = config(&[], false).expect("good");
        assert_eq!(plain.relay_text(), "relay ws://127.0.0.1:9440");
        assert_eq!((plain.count, plain.target), (None, Target::Stdout));
        assert!(!plain.selection.marks);
        assert!(config(&["--reorder", "200ms"], false).expect("good").selection.marks);
        assert!(!plain.selection.backlog);
        assert!(config(&["--backlog"], false).expect("good").selection.backlog);
        let text = |args: &[&str], terminal| config(args, terminal).expect_err("refused").to_string();
        assert!(text(&[], true).contains("wireshark -k -i -"));
        assert!(config(&["-w", "x.pcapng"], true).is_ok());
        assert!(config(&["--list"], true).is_ok());
        assert!(text(&["--relay", "http://x"], false).starts_with("relay url"));
        assert!(text(&["--ca", "x.pem"], false).starts_with("--ca needs a relay with TLS"));
        assert!(
            text(&["--relay", "wss://x", "--ca", "/no/x.pem"], false).starts_with("--ca /no/x.pem: no such")
        );
        assert!(text(&["--token-file", "/no/token"], false).starts_with("--token-file /no/token: no such"));
        assert!(Args::try_parse_from(["viewer", "--relay", "wss://x", "--cert", "x.pem"]).is_err());
        assert!(text(&["--sniffer", "a["], false).contains("a["));
        assert!(text(&["--reorder", "2m"], false).contains("at most 60 s"));
    }
}
