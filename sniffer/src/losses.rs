//! What the sending thread has lost of each stream, for the reports that the capture threads make.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wire::ledger::Losses;

/// Losses by stream, cumulative. Cloning shares it. Reports read it once a second and stream.
#[derive(Clone, Debug, Default)]
pub struct SharedLosses(Arc<Mutex<BTreeMap<u32, Losses>>>);

impl SharedLosses {
    /// All that was lost of a stream so far.
    pub fn set(&self, stream: u32, losses: Losses) {
        self.lock().insert(stream, losses);
    }

    /// Forgets a stream that has ended.
    pub fn remove(&self, stream: u32) {
        self.lock().remove(&stream);
    }

    /// Raises `losses` to what was lost of the stream.
    pub fn raise(&self, stream: u32, losses: &mut Losses) {
        if let Some(lost) = self.lock().get(&stream) {
            lost.0.iter().for_each(|(stage, loss)| losses.raise(*stage, loss.packets, loss.bytes));
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Losses>> {
        // A panic under the lock leaves a map that is as good as before.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
