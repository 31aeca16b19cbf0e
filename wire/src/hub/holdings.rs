//! What the hub remembers of streams, blocks aside: counted against the budget of memory, and
//! bounded for each owner, so that one that announces without end is refused before others suffer.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::block::{Epoch, StreamKey};
use crate::message::StreamStatus;
use crate::pool::{Charge, Pool};

/// Streams of one owner, at most: those of all its sniffers, and also those that are away.
pub(super) const STREAMS_PER_OWNER_MAX: usize = 65_536;
/// One owner has at most one part of so many of the budget.
const OWNER_SHARE: usize = 8;
/// The same where no budget was set.
const OWNER_BYTES_MAX: usize = 128 << 20;
/// What a stream costs besides its texts, and each text besides its characters.
const STREAM_BYTES: usize = 1024;
const TEXT_BYTES: usize = 48;
/// The owner of what another worker has.
const ANOTHER_WORKER: &str = "";
/// What a notice costs.
pub(super) const NOTICE_BYTES: usize = 160;

/// Why more is not remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// The owner has too many streams.
    Streams,
    /// The owner's streams take too much memory, or there is none left.
    Memory,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    pool: Option<Pool>,
    streams: HashMap<StreamKey, Holding>,
    /// All streams of a run are its owner's.
    runs: HashMap<Epoch, OwnedRun>,
    owners: HashMap<String, Held>,
}

#[derive(Debug, Default)]
struct Holding {
    bytes: usize,
    charge: Option<Charge>,
}

#[derive(Debug)]
struct OwnedRun {
    owner: String,
    streams: usize,
}

#[derive(Debug, Default)]
struct Held {
    streams: usize,
    bytes: usize,
}

/// What is remembered of a stream when it is announced.
pub(super) fn bytes_of(status: &StreamStatus) -> usize {
    let texts = status.interfaces.iter().chain(&status.filter).chain([&status.name, &status.address]);
    STREAM_BYTES + texts.map(|text| text.len() + TEXT_BYTES).sum::<usize>()
}

impl Holdings {
    /// The budget.
    pub fn set_budget(&mut self, pool: Pool) {
        self.pool = Some(pool);
    }

    /// Streams of an owner, whatever their state.
    pub fn streams_of(&self, owner: &str) -> usize {
        self.owners.get(owner).map_or(0, |held| held.streams)
    }

    /// Whose a run is, as long as a stream of it is remembered; nobody's here if another worker has it.
    pub fn owner_of(&self, epoch: Epoch) -> Option<&str> {
        self.runs.get(&epoch).map(|run| run.owner.as_str())
    }

    /// The owner of a run announces a stream of it, which takes so many bytes. Where that is too much
    /// nothing changes.
    pub fn announce(&mut self, key: StreamKey, owner: &str, bytes: usize) -> Result<(), Full> {
        let is_new = !self.streams.contains_key(&key);
        if is_new && self.streams_of(owner) >= STREAMS_PER_OWNER_MAX {
            return Err(Full::Streams);
        }
        self.remember(key, owner);
        let resized = self.resize(key, bytes);
        if is_new && resized.is_err() {
            self.forget(key);
        }
        resized
    }

    /// Another worker, which has the bounds, tells of a stream; here it counts as far as there is room.
    pub fn mirror(&mut self, key: StreamKey, bytes: usize) {
        self.remember(key, ANOTHER_WORKER);
        let _ = self.resize(key, bytes);
    }

    fn remember(&mut self, key: StreamKey, owner: &str) {
        if let Entry::Vacant(vacant) = self.streams.entry(key) {
            vacant.insert(Holding::default());
            let run = self.runs.entry(key.epoch);
            let run = run.or_insert_with(|| OwnedRun { owner: owner.to_owned(), streams: 0 });
            run.streams += 1;
            self.owners.entry(run.owner.clone()).or_default().streams += 1;
        }
    }

    fn resize(&mut self, key: StreamKey, bytes: usize) -> Result<(), Full> {
        let (Some(holding), Some(run)) = (self.streams.get_mut(&key), self.runs.get(&key.epoch)) else {
            return Ok(());
        };
        let Some(held) = self.owners.get_mut(&run.owner) else { return Ok(()) };
        let most = match &self.pool {
            _ if run.owner == ANOTHER_WORKER => usize::MAX,
            Some(pool) => pool.budget_bytes() / OWNER_SHARE,
            None => OWNER_BYTES_MAX,
        };
        let all_bytes = held.bytes - holding.bytes + bytes;
        if bytes > holding.bytes && all_bytes > most {
            return Err(Full::Memory);
        }
        match (&mut holding.charge, &self.pool) {
            (Some(charge), _) => charge.set(bytes).then_some(()).ok_or(Full::Memory)?,
            (None, Some(pool)) => holding.charge = Some(pool.charge(bytes).ok_or(Full::Memory)?),
            (None, None) => {}
        }
        (held.bytes, holding.bytes) = (all_bytes, bytes);
        Ok(())
    }

    /// A stream takes `more` bytes; `false`, and it does not, where that is too much.
    pub fn grow(&mut self, key: StreamKey, more: usize) -> bool {
        let bytes = self.streams.get(&key).map_or(0, |holding| holding.bytes);
        self.resize(key, bytes + more).is_ok()
    }

    /// A stream takes `less` bytes.
    pub fn shrink(&mut self, key: StreamKey, less: usize) {
        let bytes = self.streams.get(&key).map_or(0, |holding| holding.bytes);
        let _ = self.resize(key, bytes.saturating_sub(less)); // less is always possible
    }

    /// A stream is forgotten.
    pub fn forget(&mut self, key: StreamKey) {
        let Some(holding) = self.streams.remove(&key) else { return };
        let Entry::Occupied(mut run) = self.runs.entry(key.epoch) else { return };
        run.get_mut().streams -= 1;
        if let Some(held) = self.owners.get_mut(&run.get().owner) {
            held.streams -= 1;
            held.bytes -= holding.bytes;
            if held.streams == 0 {
                self.owners.remove(&run.get().owner);
            }
        }
        if run.get().streams == 0 {
            run.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Epoch;

    /// A stream of a run of its own.
    fn key(number: u32) -> StreamKey {
        StreamKey { epoch: Epoch(number.into()), stream: 0 }
    }

    #[test]
    fn an_owner_has_its_share_and_others_theirs() {
        let pool = Pool::new(8000);
        let mut holdings = Holdings::default();
        holdings.set_budget(pool.clone());
        assert_eq!(holdings.announce(key(1), "a", 600), Ok(()));
        assert_eq!(holdings.announce(key(2), "a", 500), Err(Full::Memory));
        assert_eq!((holdings.owner_of(Epoch(1)), holdings.owner_of(Epoch(2))), (Some("a"), None));
        assert_eq!(holdings.announce(key(2), "b", 500), Ok(()));
        assert_eq!(holdings.announce(key(1), "a", 900), Ok(()), "it replaces what was");
        assert_eq!((pool.used_bytes(), holdings.streams_of("a")), (1400, 1));
        assert!(!holdings.grow(key(1), 200));
        holdings.shrink(key(1), 500);
        assert!(holdings.grow(key(1), 200));
        assert_eq!(pool.used_bytes(), 1100);
        holdings.forget(key(1));
        assert_eq!(
            (pool.used_bytes(), holdings.streams_of("a"), holdings.owner_of(Epoch(1))),
            (500, 0, None)
        );
        let _all = pool.charge(7500).expect("the rest");
        assert_eq!(holdings.announce(key(3), "c", 1), Err(Full::Memory), "the budget is used up");
        assert_eq!((holdings.streams_of("c"), holdings.owner_of(Epoch(3))), (0, None));
    }

    #[test]
    fn what_another_worker_has_is_nobodys_here() {
        let pool = Pool::new(8000);
        let mut holdings = Holdings::default();
        holdings.set_budget(pool.clone());
        holdings.mirror(key(1), 5000);
        assert_eq!((pool.used_bytes(), holdings.owner_of(Epoch(1))), (5000, Some("")), "beyond any share");
        holdings.mirror(key(2), 5000);
        assert_eq!((pool.used_bytes(), holdings.owner_of(Epoch(2))), (5000, Some("")), "there is no room");
        holdings.forget(key(1));
        holdings.forget(key(2));
        assert_eq!((pool.used_bytes(), holdings.streams_of("")), (0, 0));
    }
}
