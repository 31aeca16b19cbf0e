//! The last description of each stream, for the segments to come.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::block::{PackedBlock, StreamKey};

/// Most bytes of last descriptions kept in memory, and their number.
const DESCRIPTIONS_BYTES_MAX: usize = 16 << 20;
const DESCRIPTIONS_MAX: usize = 4096;

/// Last descriptions of the streams that are appended to, within bounds.
#[derive(Debug, Default)]
pub struct Descriptions {
    /// With the turn in which each was used last.
    blocks: BTreeMap<StreamKey, (u64, Bytes)>,
    bytes: usize,
    turn: u64,
}

impl Descriptions {
    /// Keeps a copy, so that no buffer of a pool is held.
    pub fn keep(&mut self, block: &PackedBlock) {
        let key = block.header().key;
        self.forget(key);
        let bytes = Bytes::copy_from_slice(block.bytes());
        self.turn += 1;
        self.bytes += bytes.len();
        self.blocks.insert(key, (self.turn, bytes));
        while self.bytes > DESCRIPTIONS_BYTES_MAX || self.blocks.len() > DESCRIPTIONS_MAX {
            let oldest = self.blocks.iter().min_by_key(|(_, (turn, _))| *turn).map(|(key, _)| *key);
            let Some(oldest) = oldest else { break };
            self.forget(oldest);
        }
    }

    pub fn last(&mut self, key: StreamKey) -> Option<Bytes> {
        self.turn += 1;
        let (turn, bytes) = self.blocks.get_mut(&key)?;
        *turn = self.turn;
        Some(bytes.clone())
    }

    pub fn forget(&mut self, key: StreamKey) {
        if let Some((_, bytes)) = self.blocks.remove(&key) {
            self.bytes -= bytes.len();
        }
    }
}
