//! Descriptors: one for each connection, and a few more.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

/// Descriptors besides connections, at most, for a relay and for each of its workers.
const OTHERS: usize = 64;
const OTHERS_PER_WORKER: usize = 4;

/// Raises the soft limit of descriptors to what `connections` need, as far as the hard limit goes.
/// Returns how many connections there can be.
pub fn raise(connections: usize, workers: usize) -> usize {
    let wanted = wanted(connections, workers) as u64;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return connections };
    if soft >= wanted {
        return connections;
    }
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard) {
        Ok(()) => wanted.min(hard),
        Err(_) => soft,
    };
    let possible = possible(limit, workers).min(connections);
    if possible < connections {
        warn!("--connections {connections}: the limit of descriptors (ulimit -n) allows {possible}");
    }
    possible
}

/// Descriptors of a relay with so many connections and workers.
pub fn wanted(connections: usize, workers: usize) -> usize {
    connections + OTHERS + workers * OTHERS_PER_WORKER
}

/// Connections of a relay that may have so many descriptors.
pub fn possible(limit: u64, workers: usize) -> usize {
    (limit as usize).saturating_sub(OTHERS + workers * OTHERS_PER_WORKER)
}
