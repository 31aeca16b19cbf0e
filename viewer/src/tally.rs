//! What the writer has done so far; shared, so that it can be told even if the writer hangs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wire::block::{Header, StreamKey};

use crate::unpack::Count;

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

/// What the writer has done so far. See the module's head.
#[derive(Debug, Default)]
pub struct Tally {
    /// By stream.
    pub streams: BTreeMap<StreamKey, StreamTally>,
    /// Headers of corrupt blocks that the network thread has not taken yet.
    pub corrupt: Vec<Header>,
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
