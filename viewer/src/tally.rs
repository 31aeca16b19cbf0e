//! What the writer has done so far; shared, so that it can be told even if the writer hangs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wire::block::{Header, StreamKey};

use crate::unpack::Count;

/// Most interfaces of one stream that are named.
const NAMES_MAX: usize = 8;

/// What was done with the packets of one stream.
#[derive(Clone, Debug, Default)]
pub struct StreamTally {
    /// Its interfaces as the output names them.
    pub interfaces: Vec<String>,
    /// Written.
    pub written: Count,
    /// Rejected by the filter, or of an interface that was not asked for.
    pub filtered: u64,
    /// Of an interface for which the filter does not compile.
    pub unfilterable: u64,
}

impl StreamTally {
    /// Adds another of the same interfaces.
    pub fn add(&mut self, other: &StreamTally) {
        for name in &other.interfaces {
            self.add_interface(name);
        }
        self.written += other.written;
        self.filtered += other.filtered;
        self.unfilterable += other.unfilterable;
    }

    /// Names an interface, unless it is named or there are many.
    pub fn add_interface(&mut self, name: &str) {
        if !self.interfaces.iter().any(|known| known == name) && self.interfaces.len() < NAMES_MAX {
            self.interfaces.push(name.to_owned());
        }
    }
}

/// What the writer has done so far. See the module's head.
#[derive(Debug, Default)]
pub struct Tally {
    /// By stream.
    pub streams: BTreeMap<StreamKey, StreamTally>,
    /// Headers of corrupt blocks that the network thread has not taken yet.
    pub corrupt: Vec<Header>,
    /// Name of each interface of the output that drops packets itself, and how many it dropped.
    pub interface_drops: BTreeMap<u32, (String, u64)>,
    /// Streams that have ended and are done with, which the network thread has not taken yet.
    pub left: Vec<StreamKey>,
}

/// Shared access to the tally.
#[derive(Clone, Debug, Default)]
pub struct SharedTally(Arc<Mutex<Tally>>);

impl SharedTally {
    /// The tally, locked.
    pub fn lock(&self) -> MutexGuard<'_, Tally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
