//! What a stream hands over, and what is recorded of it before.

use wire::block::{PackedBlock, StreamKey};
use wire::clock::wall_ns;
use wire::pack::Packer;

use crate::handover::{Handed, Handover};
use crate::totals::TotalsSlot;

/// The packer of a stream, and the stream's place in the totals file.
pub struct Output {
    /// Gathers and numbers.
    pub packer: Packer,
    totals: Option<TotalsSlot>,
    /// Packets offered and dropped by the kernel, when it was asked last.
    kernel: (u64, u64),
}

impl Output {
    /// The output of `packer`'s stream, which has this slot in the totals file.
    pub fn new(packer: Packer, totals: Option<TotalsSlot>) -> Self {
        Self { packer, totals, kernel: (0, 0) }
    }

    /// The stream being packed.
    pub fn key(&self) -> StreamKey {
        self.packer.key()
    }

    /// Goes on as another stream. What was gathered must be sealed first.
    pub fn succeed(&mut self, key: StreamKey, totals: Option<TotalsSlot>) {
        self.packer.succeed(key);
        self.totals = totals;
        self.kernel = (0, 0);
    }

    /// What the kernel said it offered and dropped. It is recorded with the next block.
    pub fn set_kernel(&mut self, offered: u64, drops: u64) {
        self.kernel = (offered, drops);
    }

    /// Hands over what was gathered, if anything.
    pub fn seal(&mut self, handover: &Handover) {
        if self.put(handover) {
            handover.wake();
        }
    }

    /// The same, but who takes it must be woken soon; `false` if nothing was gathered.
    pub fn put(&mut self, handover: &Handover) -> bool {
        self.packer.set_room_is_short(handover.room_is_short());
        let Some(block) = self.packer.seal() else { return false };
        self.put_block(block, handover);
        true
    }

    /// Hands over the block that was sealed last, whichever way.
    pub fn hand_over(&mut self, block: PackedBlock, handover: &Handover) {
        self.put_block(block, handover);
        handover.wake();
    }

    fn put_block(&mut self, block: PackedBlock, handover: &Handover) {
        let end = block.header().end;
        if let Some(totals) = &mut self.totals {
            // INVARIANT: recorded before it is handed over, so that after a kill nobody has more than was recorded.
            let ((packets, bytes), (offered, drops)) = (self.packer.packed(), self.kernel);
            totals.record(self.packer.next_sequence(), packets, bytes, offered, drops, wall_ns());
        }
        if end && let Some(totals) = self.totals.take() {
            totals.end();
        }
        handover.put(Handed::Block(block));
    }
}
