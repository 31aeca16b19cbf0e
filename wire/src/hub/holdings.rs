//! What the hub remembers of streams, blocks aside: counted against the budget of memory, and
//! bounded for each owner, so that one that announces without end is refused before others suffer.

use std::collections::HashMap;

use crate::block::StreamKey;
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
    owners: HashMap<String, Held>,
}

#[derive(Debug)]
struct Holding {
    owner: String,
    bytes: usize,
    charge: Option<Charge>,
}

#[derive(Clone, Copy, Debug, Default)]
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

    /// A stream takes so many bytes now. Where that is too much nothing changes.
    pub fn set(&mut self, key: StreamKey, owner: &str, bytes: usize) -> Result<(), Full> {
        let former = self.streams.get(&key).map(|holding| (holding.owner.clone(), holding.bytes));
        let is_new = former.is_none();
        let former_bytes = former.as_ref().map_or(0, |(_, bytes)| *bytes);
        let held = self.owners.get(owner).copied().unwrap_or_default();
        if is_new && held.streams >= STREAMS_PER_OWNER_MAX {
            return Err(Full::Streams);
        }
        let most = self.pool.as_ref().map_or(OWNER_BYTES_MAX, |pool| pool.budget_bytes() / OWNER_SHARE);
        if bytes > former_bytes && held.bytes - former_bytes.min(held.bytes) + bytes > most {
            return Err(Full::Memory);
        }
        if let Some(holding) = self.streams.get_mut(&key) {
            let is_counted = holding.charge.as_mut().is_none_or(|charge| charge.set(bytes));
            if !is_counted {
                return Err(Full::Memory);
            }
            holding.bytes = bytes;
        } else {
            let charge = match &self.pool {
                Some(pool) => Some(pool.charge(bytes).ok_or(Full::Memory)?),
                None => None,
            };
            self.streams.insert(key, Holding { owner: owner.to_owned(), bytes, charge });
        }
        let of = former.map_or(owner.to_owned(), |(of, _)| of);
        let held = self.owners.entry(of).or_default();
        held.streams += usize::from(is_new);
        held.bytes = held.bytes + bytes - former_bytes.min(held.bytes);
        Ok(())
    }

    /// A stream takes `more` bytes; `false`, and it does not, where that is too much.
    pub fn grow(&mut self, key: StreamKey, more: usize) -> bool {
        let Some((owner, bytes)) = self.streams.get(&key).map(|one| (one.owner.clone(), one.bytes)) else {
            return true;
        };
        self.set(key, &owner, bytes + more).is_ok()
    }

    /// A stream takes `less` bytes.
    pub fn shrink(&mut self, key: StreamKey, less: usize) {
        if let Some((owner, bytes)) = self.streams.get(&key).map(|one| (one.owner.clone(), one.bytes)) {
            // Less is always possible.
            let _ = self.set(key, &owner, bytes.saturating_sub(less).max(1));
        }
    }

    /// A stream is forgotten.
    pub fn forget(&mut self, key: StreamKey) {
        let Some(holding) = self.streams.remove(&key) else { return };
        if let Some(held) = self.owners.get_mut(&holding.owner) {
            held.streams = held.streams.saturating_sub(1);
            held.bytes = held.bytes.saturating_sub(holding.bytes);
            if held.streams == 0 {
                self.owners.remove(&holding.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Epoch;

    fn key(stream: u32) -> StreamKey {
        StreamKey { epoch: Epoch(1), stream }
    }

    #[test]
    fn an_owner_has_its_share_and_others_theirs() {
        let pool = Pool::new(8000);
        let mut holdings = Holdings::default();
        holdings.set_budget(pool.clone());
        assert_eq!(holdings.set(key(1), "a", 600), Ok(()));
        assert_eq!(holdings.set(key(2), "a", 500), Err(Full::Memory));
        assert_eq!(holdings.set(key(2), "b", 500), Ok(()));
        assert_eq!(holdings.set(key(1), "a", 900), Ok(()), "it replaces what was");
        assert_eq!((pool.used_bytes(), holdings.streams_of("a")), (1400, 1));
        assert!(!holdings.grow(key(1), 200));
        holdings.shrink(key(1), 500);
        assert!(holdings.grow(key(1), 200));
        assert_eq!(pool.used_bytes(), 1100);
        holdings.forget(key(1));
        assert_eq!((pool.used_bytes(), holdings.streams_of("a")), (500, 0));
        let _all = pool.charge(7500).expect("the rest");
        assert_eq!(holdings.set(key(3), "c", 1), Err(Full::Memory), "the budget is used up");
        assert_eq!(holdings.streams_of("c"), 0);
    }
}
