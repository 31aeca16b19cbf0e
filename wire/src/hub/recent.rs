//! What came lately, of all streams, in order: blocks and the notices between them, for viewers that
//! come back after a cut. What has arrived everywhere is let go at once if nobody is away, so
//! that its memory is used again while it is in the cache.

use std::collections::VecDeque;

use crate::block::{PackedBlock, StreamKey};
use crate::message::Control;

/// What an entry costs beside its block's bytes: its own memory, and that of a small buffer.
const ENTRY_BYTES: usize = 256;

/// One thing that came.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// A block.
    Block(PackedBlock),
    /// Blocks that do not come, and why.
    Notice(Control),
}

#[derive(Debug)]
pub(super) struct Entry {
    pub key: StreamKey,
    pub what: What,
}

impl Entry {
    fn cost_bytes(&self) -> usize {
        ENTRY_BYTES
            + match &self.what {
                What::Block(block) => block.bytes().len(),
                What::Notice(_) => 0,
            }
    }
}

/// The log. Entries are numbered as they come; the oldest go when it is full.
#[derive(Debug)]
pub(super) struct Recent {
    entries: VecDeque<Entry>,
    first_number: u64,
    bytes: usize,
    bytes_max: usize,
}

impl Recent {
    pub fn new(bytes_max: usize) -> Self {
        Self { entries: VecDeque::new(), first_number: 0, bytes: 0, bytes_max }
    }

    pub fn push(&mut self, key: StreamKey, what: What) {
        let entry = Entry { key, what };
        self.bytes += entry.cost_bytes();
        self.entries.push_back(entry);
        self.shrink(self.bytes_max);
    }

    /// Lets the oldest entries go until at most `bytes_max` are kept; `false` if there was nothing
    /// to let go.
    pub fn shrink(&mut self, bytes_max: usize) -> bool {
        let first = self.first_number;
        while self.bytes > bytes_max && !self.entries.is_empty() {
            self.pop();
        }
        self.first_number > first
    }

    /// Lets the oldest entries go for as long as they `may_go`.
    pub fn let_go(&mut self, may_go: impl Fn(&Entry) -> bool) {
        while self.entries.front().is_some_and(&may_go) {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= entry.cost_bytes();
            self.first_number += 1;
        }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn first_number(&self) -> u64 {
        self.first_number
    }

    pub fn get(&self, number: u64) -> Option<&Entry> {
        let at = number.checked_sub(self.first_number)?;
        self.entries.get(usize::try_from(at).ok()?)
    }
}
