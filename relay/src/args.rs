//! What was typed.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use settings::DoctorArgs;
use wire::admin::parse_address;
use wire::connection::Origin;
use wire::log::{Format, Level};
use wire::units::parse_size;

use crate::init::InitArgs;
use crate::token_command::TokenAction;

/// Forwards packets from sniffers to viewers, without decoding them.
#[derive(Clone, Debug, Parser)]
#[command(version, about, max_term_width = 100)]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub struct Args {
    /// Something else than forwarding.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Address and port to listen on. Off loopback it takes --cert, --key and --tokens, which
    /// relay init makes.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9440")]
    pub listen: SocketAddr,

    /// Threads that forward, 1 to 64. One is enough for tens of Gbit/s.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: u16,

    /// Most bytes of packed blocks that wait for one viewer; beyond it blocks are skipped for that
    /// viewer alone, counted, and it is told. At least 4MiB.
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_size)]
    pub viewer_queue: usize,

    /// Most bytes of what came lately, kept while a viewer may come back for it. Default: 256MiB, or
    /// a quarter of --memory if that is less; at most half of it.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub recent: Option<usize>,

    /// Most bytes of packed blocks in all; beyond it the viewer that is furthest behind loses its
    /// queue. At least 64MiB.
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_size)]
    pub memory: usize,

    /// Speak TLS alone, with this certificate and those above it, in PEM.
    #[arg(long, value_name = "FILE")]
    pub cert: Option<PathBuf>,

    /// Key of the certificate, in PEM.
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,

    /// Take certificates of clients that these authorities signed, in PEM; each needs an entry in
    /// the access file. Clients without one need a token.
    #[arg(long, value_name = "FILE")]
    pub client_ca: Option<PathBuf>,

    /// Who may come in, and as what; relay token writes it. Default: everybody, on loopback.
    #[arg(long, value_name = "FILE")]
    pub tokens: Option<PathBuf>,

    /// Listen off loopback without TLS, or without asking who connects: anyone who reaches the
    /// port can watch and publish. What is given of --cert and --tokens is used all the same.
    #[arg(long)]
    pub insecure: bool,

    /// Origin of web pages that may connect from a browser, as `https://HOST[:PORT]`; may be given
    /// several times. Default: none.
    #[arg(long, value_name = "ORIGIN")]
    pub allow_origin: Vec<Origin>,

    /// Most connections, 16 to 1000000; more are refused.
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(16..=1_000_000))]
    pub connections: u32,

    /// Most connections from one address, at least 1, loopback too; more are refused.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connections_per_address: u32,

    /// Address and port of /metrics, /healthz and /readyz over HTTP; a port alone is one of 127.0.0.1.
    /// Nobody is asked who he is, so off loopback it takes consent. Default: no such port.
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_address)]
    pub admin: Option<SocketAddr>,

    /// Have the admin port off loopback: anyone who reaches it can read names of sniffers and viewers,
    /// and how much they send.
    #[arg(long, requires = "admin")]
    pub insecure_admin: bool,

    /// How log lines look on standard error: text or json.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: Format,

    /// Least important log lines that are written: error, warn, info, debug or trace. RUST_LOG, where
    /// it is set, says it instead.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: Level,
}

/// What the relay does besides forwarding.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Look at this host, the certificates and the access file for what would keep a relay with the
    /// other options from running well; say what to do about it. Status 1 if something would.
    Doctor(DoctorArgs),
    /// Make all that a relay needs to be reached safely: a private authority, its certificate, the
    /// first tokens. Prints the lines to paste. Nothing that is there is overwritten.
    Init(InitArgs),
    /// Let somebody in, show who may come in, or revoke it.
    Token {
        /// What to do.
        #[command(subcommand)]
        action: TokenAction,
    },
}
