//! What a stream hands over, and what is recorded of it before.

use wire::block::StreamKey;
use wire::clock::wall_ns;
use wire::masked::SealedBlock;
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
    /// Blocks that were put and are kept back, where a taker that is awake for something else does not find them.
    kept: Vec<SealedBlock>,
    /// Blocks that nobody was told of, those that are kept among them, and bytes of their bodies.
    untold: (usize, usize),
}

impl Output {
    /// The output of `packer`'s stream, which has this slot in the totals file.
    pub fn new(packer: Packer, totals: Option<TotalsSlot>) -> Self {
        Self { packer, totals, kernel: (0, 0), kept: Vec::new(), untold: (0, 0) }
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

    /// Hands over what was gathered, if anything, and has it taken.
    pub fn seal(&mut self, handover: &Handover) {
        self.put(handover, false);
        self.tell(handover);
    }

    /// Hands over what was gathered, if anything, or keeps it back; [`Output::tell`] must follow.
    pub fn put(&mut self, handover: &Handover, keep: bool) {
        self.packer.set_room_is_short(handover.room_is_short());
        self.packer.set_masking(handover.masks_wanted());
        if let Some(block) = self.packer.seal_for_line() {
            self.put_block(block, handover, keep);
        }
    }

    /// Hands over the block that was sealed last, whichever way, behind what was put before.
    pub fn hand_over(&mut self, block: impl Into<SealedBlock>, handover: &Handover) {
        self.put_block(block.into(), handover, false);
        self.tell(handover);
    }

    /// Blocks that were put and not told.
    pub fn untold(&self) -> usize {
        self.untold.0
    }

    /// Bytes of bodies that were gathered or put, and that nobody was told of.
    pub fn waiting_bytes(&self) -> usize {
        self.untold.1 + self.packer.gathered_bytes()
    }

    /// Hands over what was kept back, and wakes who takes what was put.
    pub fn tell(&mut self, handover: &Handover) {
        if self.untold.0 > 0 {
            self.release(handover);
            self.untold = (0, 0);
            handover.wake();
        }
    }

    fn release(&mut self, handover: &Handover) {
        self.kept.drain(..).for_each(|block| handover.put(Handed::Block(block)));
    }

    fn put_block(&mut self, block: SealedBlock, handover: &Handover, keep: bool) {
        let end = block.header().end;
        if let Some(totals) = &mut self.totals {
            // INVARIANT: recorded before it is handed over, so that after a kill nobody has more than was recorded.
            let ((packets, bytes), (offered, drops)) = (self.packer.packed(), self.kernel);
            totals.record(self.packer.next_sequence(), packets, bytes, offered, drops, wall_ns());
        }
        if end && let Some(totals) = self.totals.take() {
            totals.end();
        }
        self.untold.0 += 1;
        self.untold.1 += block.header().raw_bytes as usize;
        self.kept.push(block);
        if !keep {
            self.release(handover);
        }
    }
}

#[cfg(test)]
mod tests {
    use mio::{Poll, Token};
    use wire::block::{Epoch, Kind};
    use wire::pack::Compression;
    use wire::pool::Pool;

    use super::*;

    #[test]
    fn what_is_put_waits_to_be_told_and_keeps_its_order() {
        let poll = Poll::new().expect("an epoll");
        let (handover, taken) = Handover::new(poll.registry(), Token(0)).expect("a waker");
        let key = StreamKey { epoch: Epoch(1), stream: 0 };
        let mut output = Output::new(Packer::new(key, Pool::new(1 << 22), 1 << 16, Compression::None), None);
        let gather = |output: &mut Output| {
            assert!(output.packer.prepare());
            output.packer.push(0, 1, 60, [&[7; 60][..]], &[]).expect("it fits");
        };
        gather(&mut output);
        output.put(&handover, true);
        gather(&mut output);
        assert_eq!((output.untold(), output.waiting_bytes()), (1, 2 * 92));
        assert!(taken.try_recv().is_err(), "it is kept back");
        output.put(&handover, true);
        output.put(&handover, true); // nothing more was gathered
        let report = output.packer.seal_json(Kind::Report, &"x", 2, false).expect("room");
        output.hand_over(report, &handover);
        assert_eq!((output.untold(), output.waiting_bytes()), (0, 0));
        let sequences: Vec<u64> = std::iter::from_fn(|| match taken.try_recv() {
            Ok(Handed::Block(block)) => Some(block.header().sequence),
            _ => None,
        })
        .collect();
        assert_eq!(sequences, [0, 1, 2]);
    }
}
