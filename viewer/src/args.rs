//! What was typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use settings::DoctorArgs;
use wire::log::{Format, Level};
use wire::units::parse_time;

/// Takes packets from a relay and writes them as pcapng: viewer | wireshark -k -i -
#[derive(Clone, Debug, Parser)]
#[command(version, about, max_term_width = 100)]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub struct Args {
    /// Something else than viewing.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The relay, as `wss://HOST[:PORT][/PATH]`, or `ws://...` without TLS.
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:9440")]
    pub relay: String,

    /// Certificate authorities to trust for wss://, a PEM file. Default: this system's.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,

    /// Client certificate to show to the relay (PEM, with those in between); needs --key.
    #[arg(long, value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,

    /// Its private key (PEM, not encrypted; mode 0600).
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,

    /// File whose first line is the token to show to the relay (mode 0600). The environment variable
    /// RINGCAST_TOKEN may hold it instead.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// Write into FILE rather than to standard output ('-').
    #[arg(short = 'w', long = "write", value_name = "FILE")]
    pub write: Option<PathBuf>,

    /// Only sniffers whose name matches. Repeatable; default all.
    #[arg(long, value_name = "GLOB")]
    pub sniffer: Vec<String>,

    /// Only interfaces whose name matches. Repeatable; default all.
    #[arg(long, value_name = "GLOB")]
    pub interface: Vec<String>,

    /// Also what was spooled before this viewer came.
    #[arg(long)]
    pub backlog: bool,

    /// Write only what this filter accepts (pcap-filter syntax).
    #[arg(short = 'f', long, value_name = "FILTER")]
    pub filter: Option<String>,

    /// Leave after this many packets were written; 0 is no limit.
    #[arg(short = 'c', long, value_name = "COUNT", default_value_t = 0)]
    pub count: u64,

    /// Leave after this time: 60s, 5m.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub duration: Option<Duration>,

    /// Leave when every stream that matches has ended.
    #[arg(long)]
    pub until_end: bool,

    /// Merge streams by time within this window, at most 60s; 0 writes packets as they come.
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = parse_time)]
    pub reorder: Duration,

    /// Show who is there, and leave.
    #[arg(long, conflicts_with_all = ["write", "filter", "duration", "until_end", "backlog"])]
    pub list: bool,

    /// The list as JSON.
    #[arg(long, requires = "list")]
    pub json: bool,

    /// No live line on a terminal, and no summary at the end.
    #[arg(short = 'q', long)]
    pub quiet: bool,

    /// How log lines look on standard error: text or json.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: Format,

    /// Least important log lines that are written: error, warn, info, debug or trace. RUST_LOG, where
    /// it is set, says it instead.
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    pub log_level: Level,
}

/// What the viewer does besides viewing.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Look at the way to the relay and at where the packets are to go, with the other options as they
    /// are; say what to do about what is found. Status 1 if something would keep it from working.
    Doctor(DoctorArgs),
}
