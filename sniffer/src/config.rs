//! What was decided: the arguments, checked against each other before the first socket.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use wire::connection::{RelayUrl, UrlError};
use wire::credentials::{CredentialError, CredentialFiles, Credentials};
use wire::message::NAME_BYTES_MAX;
use wire::pack::Compression;
use wire::tls::ClientFiles;

use crate::args::{Args, CompressionArg, Fanout};
use crate::ring::FanoutMode;

/// Bytes that one ring's packing needs: a buffer to gather in, one for LZ4's output, and some under way.
const WORKING_BYTES: usize = 8 << 20;
/// Bytes of a block of a ring, and the least.
const BLOCK_BYTES: usize = 2 << 20;
const BLOCK_BYTES_MIN: usize = 4 << 10;
/// Most bytes of a packed block, but for a packet that is larger: it stays in a core's cache from packing to sending, and at the relay
/// and the viewer from the socket on.
const PACKED_BYTES: usize = 256 << 10;
const MEMORY_BYTES_MIN: usize = 32 << 20;
/// A few segments: of fewer the oldest, which makes room, would be most of what there is.
const SPOOL_BYTES_MIN: usize = 4 << 20;
/// A tenth of a block in a second: with less nothing would ever arrive.
const RATE_BYTES_MIN: u64 = 8_000;

/// The sniffer's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// What is sent.
    pub source: Source,
    /// Where to.
    pub relay: RelayUrl,
    /// Where what it proves itself with is, to be read anew.
    pub credential_files: CredentialFiles,
    /// What it proves itself with, and whom it trusts.
    pub credentials: Credentials,
    /// Under which name.
    pub name: String,
    /// Capture filter.
    pub filter: Option<String>,
    /// Most bytes kept of a frame.
    pub snaplen: u32,
    /// Most bytes of packed blocks and buffers.
    pub memory_bytes: usize,
    /// Bytes of a packed block's body before compression.
    pub body_bytes: usize,
    /// How bodies are compressed.
    pub compression: Compression,
    /// What a lone packet waits at most.
    pub block_timeout: Duration,
    /// Where what the relay does not take goes, and most bytes of it.
    pub spool: Option<(PathBuf, u64)>,
    /// Cap on the uplink, bytes a second.
    pub rate_bytes: Option<u64>,
    /// Where the admin port is.
    pub admin: Option<SocketAddr>,
    /// No live line, no summary.
    pub quiet: bool,
}

/// What is sent.
#[derive(Clone, Debug)]
pub enum Source {
    /// Interfaces, live.
    Live(Live),
    /// A capture file; `None` is standard input.
    File {
        /// Where it is.
        path: Option<PathBuf>,
        /// Wait for a first viewer.
        wait: bool,
    },
}

/// Live capture.
#[derive(Clone, Debug)]
pub struct Live {
    /// Interfaces by name; empty: all.
    pub interfaces: Vec<String>,
    /// CPUs to pin to; empty: one thread, not pinned.
    pub cores: Vec<usize>,
    /// How packets are dealt out among the rings of an interface.
    pub fanout: FanoutMode,
    /// Memory of a ring.
    pub ring_bytes: usize,
    /// Size of a block of a ring.
    pub block_bytes: usize,
    /// Frames addressed to others are taken too.
    pub promiscuous: bool,
    /// Our own uplink is captured too.
    pub include_self: bool,
    /// Interfaces that are missing at start are waited for.
    pub wait: bool,
}

/// Why the settings do not go together. Exit status 2.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum ConfigError {
    #[error("{0}")]
    Url(#[from] UrlError),
    #[error("{0}")]
    Credentials(#[from] CredentialError),
    #[error("--name: {found} bytes, 1 to {NAME_BYTES_MAX} are possible")]
    Name { found: usize },
    #[error("--interface any: already means all, so {other:?} cannot be added")]
    Any { other: String },
    #[error("--interface {name}: given twice")]
    Twice { name: String },
    #[error("--block-size {found}: not a power of two from 4KiB to 16MiB")]
    BlockSize { found: usize },
    #[error(
        "--ring-size {found}: at least two blocks of {block_bytes} bytes are needed, at most 65536 are possible"
    )]
    RingSize { found: usize, block_bytes: usize },
    #[error("--block-timeout {found:?}: 1ms to 10s are possible")]
    BlockTimeout { found: Duration },
    #[error("--memory {found}: {least} bytes are needed for these rings")]
    Memory { found: usize, least: usize },
    #[error("--spool-size {found}: at least {SPOOL_BYTES_MIN} bytes")]
    SpoolSize { found: usize },
    #[error("--rate: {found} bytes a second; at least {RATE_BYTES_MIN} (64kbit) are needed")]
    Rate { found: u64 },
    #[error("{0}")]
    Admin(String),
    #[error("--cores {core}: no such CPU, or not allowed for this process; allowed are {allowed}")]
    Core { core: usize, allowed: String },
    #[error("--cores {core}: given twice")]
    CoreTwice { core: usize },
}

impl Config {
    /// Takes what was said, or the first thing that is wrong with it. `host_name` is the default name.
    pub fn new(args: &Args, host_name: String) -> Result<Self, ConfigError> {
        if let Some(mistake) = range_mistakes(args, &host_name).into_iter().next() {
            return Err(mistake);
        }
        let name = args.name.clone().unwrap_or(host_name);
        let source = match &args.read {
            Some(path) => {
                let path = (path.as_os_str() != "-").then(|| path.clone());
                Source::File { path, wait: !args.no_wait }
            }
            None => Source::Live(live(args)?),
        };
        let relay = RelayUrl::parse(&args.relay)?;
        let credential_files = credential_files(args);
        Ok(Self {
            source,
            credentials: credential_files.load(&relay)?,
            credential_files,
            relay,
            name,
            filter: args.filter.clone().filter(|filter| !filter.trim().is_empty()),
            snaplen: args.snaplen,
            memory_bytes: args.memory,
            // The header goes in front, and both together into one size class of the pool.
            body_bytes: block_size(args).clamp(64 << 10, PACKED_BYTES) - wire::block::HEADER_BYTES,
            compression: match args.compression {
                CompressionArg::Auto => Compression::Auto,
                CompressionArg::Lz4 => Compression::Lz4,
                CompressionArg::None => Compression::None,
            },
            block_timeout: args.block_timeout,
            spool: args.spool.clone().map(|directory| (directory, args.spool_size as u64)),
            rate_bytes: args.rate,
            admin: args.admin,
            quiet: args.quiet,
        })
    }
}

/// Everything that is wrong, the files with credentials included.
pub fn mistakes(args: &Args, host_name: &str) -> Vec<ConfigError> {
    let mut found = option_mistakes(args, host_name);
    if let Ok(relay) = RelayUrl::parse(&args.relay) {
        found.extend(credential_files(args).load(&relay).err().map(ConfigError::from));
    }
    found
}

/// Everything that is wrong with the options by themselves; no file is read.
pub fn option_mistakes(args: &Args, host_name: &str) -> Vec<ConfigError> {
    let mut found = range_mistakes(args, host_name);
    if args.read.is_none() {
        found.extend(live(args).err());
    }
    found.extend(RelayUrl::parse(&args.relay).err().map(ConfigError::from));
    found
}

/// Size of a block as asked for, or the default: half of a ring that has no room for two.
fn block_size(args: &Args) -> usize {
    let half = args.ring_size / 2;
    let fits = if half == 0 { 1 } else { 1 << half.ilog2() };
    args.block_size.unwrap_or(BLOCK_BYTES.min(fits).max(BLOCK_BYTES_MIN))
}

/// What is out of its range, or does not go together.
fn range_mistakes(args: &Args, host_name: &str) -> Vec<ConfigError> {
    let mut found = Vec::new();
    let name_bytes = args.name.as_deref().unwrap_or(host_name).len();
    if !(1..=NAME_BYTES_MAX).contains(&name_bytes) {
        found.push(ConfigError::Name { found: name_bytes });
    }
    let block_size = block_size(args);
    let is_block = block_size.is_power_of_two() && (BLOCK_BYTES_MIN..=16 << 20).contains(&block_size);
    if !is_block {
        found.push(ConfigError::BlockSize { found: block_size });
    }
    if is_block && !(2..=65_536).contains(&(args.ring_size / block_size)) {
        found.push(ConfigError::RingSize { found: args.ring_size, block_bytes: block_size });
    }
    if !(Duration::from_millis(1)..=Duration::from_secs(10)).contains(&args.block_timeout) {
        found.push(ConfigError::BlockTimeout { found: args.block_timeout });
    }
    let rings = args.interface.len().max(1).saturating_mul(args.cores.len().max(1));
    let least = MEMORY_BYTES_MIN.max(rings.saturating_mul(WORKING_BYTES));
    if args.memory < least {
        found.push(ConfigError::Memory { found: args.memory, least });
    }
    if args.spool_size < SPOOL_BYTES_MIN {
        found.push(ConfigError::SpoolSize { found: args.spool_size });
    }
    if let Some(rate) = args.rate.filter(|rate| *rate < RATE_BYTES_MIN) {
        found.push(ConfigError::Rate { found: rate });
    }
    let refused = args.admin.and_then(|address| wire::admin::check(address, args.insecure_admin).err());
    found.extend(refused.map(ConfigError::Admin));
    found
}

/// The files with credentials that these options name.
pub fn credential_files(args: &Args) -> CredentialFiles {
    CredentialFiles {
        tls: ClientFiles { ca: args.ca.clone(), cert: args.cert.clone(), key: args.key.clone() },
        token_file: args.token_file.clone(),
    }
}

fn live(args: &Args) -> Result<Live, ConfigError> {
    let mut interfaces = args.interface.clone();
    if let Some(at) = interfaces.iter().position(|name| name == "any") {
        interfaces.remove(at);
        if let Some(other) = interfaces.first() {
            return Err(ConfigError::Any { other: other.clone() });
        }
    }
    for (index, name) in interfaces.iter().enumerate() {
        if interfaces[..index].contains(name) {
            return Err(ConfigError::Twice { name: name.clone() });
        }
    }
    // core_affinity indexes a fixed table with the id, so an id must be known before it sees it.
    let allowed: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
    for (index, core) in args.cores.iter().enumerate() {
        if !allowed.contains(core) {
            let allowed = allowed.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            return Err(ConfigError::Core { core: *core, allowed });
        }
        if args.cores[..index].contains(core) {
            return Err(ConfigError::CoreTwice { core: *core });
        }
    }
    Ok(Live {
        interfaces,
        cores: args.cores.clone(),
        fanout: match args.fanout {
            Fanout::Hash => FanoutMode::Hash,
            Fanout::Cpu => FanoutMode::Cpu,
            Fanout::Qm => FanoutMode::Qm,
            Fanout::Lb => FanoutMode::Lb,
            Fanout::Rollover => FanoutMode::Rollover,
        },
        ring_bytes: args.ring_size,
        block_bytes: block_size(args),
        promiscuous: !args.no_promiscuous,
        include_self: args.include_self,
        wait: args.wait,
    })
}
