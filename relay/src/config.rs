//! What was decided: the arguments, checked against each other before the first socket.

use std::net::SocketAddr;

use thiserror::Error;

use crate::args::Args;

/// Room for a few of the largest usual blocks, so that a source that can wait need not lose one.
const VIEWER_QUEUE_BYTES_MIN: usize = 4 << 20;
const RECENT_BYTES_DEFAULT: usize = 256 << 20;
const MEMORY_BYTES_MIN: usize = 64 << 20;

/// The relay's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Threads that forward.
    pub workers: usize,
    /// Most bytes that wait for one viewer.
    pub viewer_queue_bytes: usize,
    /// Most bytes kept for viewers that come back.
    pub recent_bytes: usize,
    /// Most bytes of packed blocks in all.
    pub memory_bytes: usize,
    /// Anyone may connect, from anywhere.
    pub insecure: bool,
}

/// Why the settings do not go together. Exit status 2.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum ConfigError {
    #[error(
        "--listen {listen}: not a loopback address, so anyone who reaches the port could watch; \
         this version has no TLS yet: listen on 127.0.0.1, or write --insecure"
    )]
    Insecure { listen: SocketAddr },
    #[error("--viewer-queue {found}: at least {VIEWER_QUEUE_BYTES_MIN} bytes")]
    ViewerQueue { found: usize },
    #[error("--recent {found}: at most half of --memory, {most} bytes")]
    Recent { found: usize, most: usize },
    #[error("--memory {found}: at least {MEMORY_BYTES_MIN} bytes")]
    Memory { found: usize },
}

impl Config {
    /// Checks what was typed.
    pub fn new(args: &Args) -> Result<Self, ConfigError> {
        if !args.listen.ip().is_loopback() && !args.insecure {
            return Err(ConfigError::Insecure { listen: args.listen });
        }
        if args.viewer_queue < VIEWER_QUEUE_BYTES_MIN {
            return Err(ConfigError::ViewerQueue { found: args.viewer_queue });
        }
        if args.memory < MEMORY_BYTES_MIN {
            return Err(ConfigError::Memory { found: args.memory });
        }
        let recent_bytes = args.recent.unwrap_or(RECENT_BYTES_DEFAULT.min(args.memory / 4));
        if recent_bytes > args.memory / 2 {
            return Err(ConfigError::Recent { found: recent_bytes, most: args.memory / 2 });
        }
        Ok(Self {
            listen: args.listen,
            workers: args.workers.into(),
            viewer_queue_bytes: args.viewer_queue,
            recent_bytes,
            memory_bytes: args.memory,
            insecure: args.insecure,
        })
    }
}
