//! What was typed. Short flags follow tcpdump and dumpcap.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Parser, Subcommand, ValueEnum};
use settings::DoctorArgs;
use wire::admin::parse_address;
use wire::log::{Format, Level};
use wire::units::{parse_rate, parse_size, parse_time};

use crate::journal_command::JournalAction;

/// Captures packets and sends them to a relay, compressed, complete and counted.
#[derive(Clone, Debug, Parser)]
#[command(version, about, max_term_width = 100)]
#[command(group(ArgGroup::new("source").required(true).args(["interface", "read", "list_interfaces"])))]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub struct Args {
    /// Something else than capturing.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Capture on this interface; may be given several times. `any`: on all, each with its own
    /// name, as they come and go.
    #[arg(short, long, value_name = "IFACE")]
    pub interface: Vec<String>,

    /// Send a pcap or pcapng file (`-` is standard input) instead of capturing, then end.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["cores", "no_promiscuous", "include_self"])]
    pub read: Option<PathBuf>,

    /// List the interfaces and leave.
    #[arg(short = 'D', long)]
    pub list_interfaces: bool,

    /// Relay to send to, as `wss://HOST[:PORT][/PATH]`, or `ws://...` without TLS.
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

    /// Capture only what matches this pcap filter; it runs in the kernel (with --read, here).
    #[arg(short, long, value_name = "FILTER")]
    pub filter: Option<String>,

    /// Most bytes kept of a frame, 1 to 262144. Longer ones are cut, delivered and counted.
    #[arg(short, long, value_name = "BYTES", default_value_t = 262_144, value_parser = clap::value_parser!(u32).range(1..=262_144))]
    pub snaplen: u32,

    /// Do not put the interface into promiscuous mode.
    #[arg(short = 'p', long)]
    pub no_promiscuous: bool,

    /// Name under which viewers see this sniffer. Default: the host's name.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// One capture thread pinned to each of these CPUs; every interface gets a ring on each,
    /// joined by fan-out. Default: one thread, not pinned.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub cores: Vec<usize>,

    /// How the kernel deals packets out to the rings of an interface.
    #[arg(long, value_name = "MODE", default_value = "hash", requires = "cores", conflicts_with = "read")]
    pub fanout: Fanout,

    /// Memory of each ring, which the kernel cannot swap out.
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_size)]
    pub ring_size: usize,

    /// Size of a block of the ring: a power of two, 4KiB to 16MiB. Larger ones cost less CPU at load;
    /// below 1MiB large frames of offloads may be cut. Default 2MiB, or half of a smaller ring.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub block_size: Option<usize>,

    /// What a lone packet waits at most before it is sent, 1ms to 10s. Up to 20ms: where 256KiB come within it, packets
    /// may wait up to three and a half times as long, which costs less CPU; 100ms more where the line is behind,
    /// 2s where it is so for want of a core.
    #[arg(long, value_name = "TIME", default_value = "10ms", value_parser = parse_time)]
    pub block_timeout: Duration,

    /// Most bytes of packed blocks and their buffers; when the relay is away for longer than this
    /// lasts, the oldest blocks are dropped and counted.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_size)]
    pub memory: usize,

    /// Directory for what the relay does not take: during outages, and when the line is slow. It is
    /// made if it is not there, and must be this sniffer's own. Default: none, memory alone.
    #[arg(long, value_name = "DIR", conflicts_with = "read")]
    pub spool: Option<PathBuf>,

    /// Most bytes of the spool, at least 4MiB; beyond it the oldest makes room, counted.
    #[arg(long, value_name = "SIZE", default_value = "10GiB", value_parser = parse_size, requires = "spool")]
    pub spool_size: usize,

    /// Cap on the uplink in bits a second, so that it does not choke the line it shares: 100Mbit,
    /// at least 64kbit. What does not fit goes to the spool, or is dropped, counted. Default: none.
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub rate: Option<u64>,

    /// How packed blocks are compressed: auto, lz4 or none.
    #[arg(long, value_name = "METHOD", default_value = "auto")]
    pub compression: CompressionArg,

    /// Wait for an interface that is missing at start, instead of leaving with status 1.
    // Not `requires = "interface"`, as below.
    #[arg(long, conflicts_with_all = ["read", "list_interfaces"])]
    pub wait: bool,

    /// With --read: do not wait for a viewer.
    // Not `requires = "read"`: clap drops that where --interface, which excludes --read, is given.
    #[arg(long, conflicts_with_all = ["interface", "list_interfaces"])]
    pub no_wait: bool,

    /// Capture the sniffer's own connection to the relay too. It feeds on itself: for debugging.
    #[arg(long)]
    pub include_self: bool,

    /// Address and port of /metrics, /healthz and /readyz over HTTP; a port alone is one of 127.0.0.1.
    /// Nobody is asked who he is, so off loopback it takes --insecure-admin. Default: no such port.
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_address)]
    pub admin: Option<SocketAddr>,

    /// Have the admin port off loopback: anyone who reaches it can read names of interfaces, and how
    /// much is captured and sent.
    #[arg(long, requires = "admin")]
    pub insecure_admin: bool,

    /// No live line on a terminal, and no summary at the end.
    #[arg(short = 'q', long)]
    pub quiet: bool,

    /// How log lines look on standard error: text or json.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: Format,

    /// Least important log lines that are written: error, warn, info, debug or trace. RUST_LOG, where
    /// it is set, says it instead.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: Level,
}

/// What the sniffer does besides capturing.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Look at this host, and the way to the relay, for what would keep the capture that the other
    /// options describe from running well; say what to do about it. Status 1 if something would.
    Doctor(DoctorArgs),
    /// Look at a spool: list its segments, verify them, write its packets as pcapng.
    Journal {
        /// What to do.
        #[command(subcommand)]
        action: JournalAction,
    },
}

/// Fan-out modes (PACKET_FANOUT, packet(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fanout {
    /// Both directions of a flow to the same ring.
    Hash,
    /// To the ring of the CPU that received the packet.
    Cpu,
    /// To the ring of the NIC's receive queue.
    Qm,
    /// In turn.
    Lb,
    /// To one ring until it is full; reorders.
    Rollover,
}

/// How packed blocks are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CompressionArg {
    /// LZ4 where it leaves half or less, which costs less CPU in all than sending it as it is. While
    /// the line or the disk is short of room (--rate, an outage, a line that is behind), for all that it
    /// shrinks by a sixteenth.
    Auto,
    /// LZ4 wherever it helps at all: for lines that are slow or paid by the byte.
    Lz4,
    /// Not at all.
    None,
}
