//! A ring and the stream that it feeds: blocks out of the ring, packed blocks to the hand-over.

use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::warn;
use wire::block::Kind;
use wire::clock::wall_ns;
use wire::description::Description;
use wire::ledger::{InterfaceTotals, Losses, Report, Stage};
use wire::pack::{PackError, Packer};

use super::gather::Gather;
use super::{BLOCKS_PER_TURN, CaptureConfig};
use crate::handover::{Handed, Handover, Wakeup};
use crate::interfaces::interface_drops;
use crate::ring::Ring;

/// A ring and the stream that it feeds.
pub(super) struct RingStream {
    pub(super) ring: Ring,
    pub(super) interface: String,
    pub(super) packer: Packer,
    /// Waits until a buffer is free.
    pub(super) description: Option<Description>,
    pub(super) cut_packets: u64,
    pub(super) lost: Losses,
    pub(super) last_time_ns: u64,
    pub(super) interface_drops_at_start: Option<u64>,
}

/// What a turn at a ring came to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// The ring is empty.
    Idle,
    /// There may be more.
    More,
    /// No buffer is free.
    Starved,
}
impl RingStream {
    /// Takes blocks out of the ring, a turn's worth. Small ones that are ready together share a
    /// packed block; none waits for another.
    pub(super) fn take_blocks(
        &mut self,
        config: &CaptureConfig,
        handover: &Handover,
        wakeup: &Wakeup,
    ) -> Turn {
        if !self.describe(handover) {
            wakeup.set_starved();
            if !self.describe(handover) {
                handover.wake();
                return Turn::Starved;
            }
        }
        for _ in 0..BLOCKS_PER_TURN {
            if !self.ring.ready() {
                self.seal(handover);
                // Many quiet rings must not hold the buffers that a busy one needs.
                self.packer.release_if_idle();
                return Turn::Idle;
            }
            if !self.packer.prepare() {
                wakeup.set_starved();
                if !self.packer.prepare() {
                    self.seal(handover);
                    handover.wake();
                    return Turn::Starved;
                }
            }
            let Some(block) = self.ring.next_block() else { return Turn::Idle };
            let mut gather = Gather {
                packer: &mut self.packer,
                snaplen: config.snaplen as usize,
                cut_packets: &mut self.cut_packets,
                last_time_ns: &mut self.last_time_ns,
            };
            let mut frames = block.frames();
            for frame in frames.by_ref() {
                while let Err(error) = gather.push(&frame) {
                    match error {
                        PackError::Full => hand_over_sealed(gather.packer, handover),
                        PackError::NoBuffer => wait_for_buffer(gather.packer, handover, wakeup),
                        // A frame is at most 256 KiB, so it always fits.
                        PackError::TooLarge { .. } => break,
                    }
                }
            }
            // A malformed block is the kernel's defect or ours; what it hides is counted.
            self.lost.add(Stage::Corrupt, frames.unread().into(), 0);
            drop(block);
            if self.packer.gathered_bytes() > config.body_bytes / 2 {
                self.seal(handover);
            }
        }
        Turn::More
    }

    /// The stream's description goes before anything else. `false`: no buffer is free.
    fn describe(&mut self, handover: &Handover) -> bool {
        let Some(description) = &self.description else { return true };
        match self.packer.seal_json(Kind::Description, description, wall_ns(), false) {
            Some(block) => {
                handover.send(Handed::Block(block));
                self.description = None;
                true
            }
            None => false,
        }
    }

    pub(super) fn seal(&mut self, handover: &Handover) {
        hand_over_sealed(&mut self.packer, handover);
    }

    /// Hands over a report. Without a free buffer the next one says it all. `false`: none was.
    pub(super) fn report(&mut self, handover: &Handover, end: bool, note: Option<String>) -> bool {
        if !self.describe(handover) {
            return false;
        }
        let statistics = match self.ring.statistics() {
            Ok(statistics) => statistics,
            Err(error) => {
                warn!("{error}");
                return false;
            }
        };
        let now_ns = wall_ns();
        let (packed_packets, packed_bytes) = self.packer.packed();
        let drops_now = interface_drops(&self.interface);
        let report = Report {
            time_ns: now_ns,
            complete_through_ns: self.last_time_ns,
            packed_packets,
            packed_bytes,
            cut_packets: self.cut_packets,
            interfaces: vec![InterfaceTotals {
                offered: statistics.packets,
                kernel_drops: statistics.drops,
                freezes: statistics.freezes,
                interface_drops: drops_now
                    .zip(self.interface_drops_at_start)
                    .map(|(now, start)| now.saturating_sub(start)),
            }],
            lost: self.lost.clone(),
            outages: Vec::new(),
            note,
        };
        let stream = self.packer.key().stream;
        handover.send(Handed::Report(stream, report.clone()));
        match self.packer.seal_json(Kind::Report, &report, now_ns, end) {
            Some(block) => {
                handover.send(Handed::Block(block));
                true
            }
            None => false,
        }
    }

    /// The last blocks of the stream.
    pub(super) fn end(
        &mut self,
        config: &CaptureConfig,
        handover: &Handover,
        wakeup: &Wakeup,
        note: Option<String>,
    ) {
        while self.take_blocks(config, handover, wakeup) == Turn::More {}
        while self.ring.ready() {
            wait_for_buffer(&mut self.packer, handover, wakeup);
            self.take_blocks(config, handover, wakeup);
        }
        self.seal(handover);
        // Without this block viewers would wait for more: it is worth waiting for a buffer.
        while !self.report(handover, true, note.clone()) && self.ring.statistics().is_ok() {
            wait_for_buffer(&mut self.packer, handover, wakeup);
        }
    }
}

fn hand_over_sealed(packer: &mut Packer, handover: &Handover) {
    if let Some(block) = packer.seal() {
        handover.send(Handed::Block(block));
    }
}

/// Sleeps until a buffer is free. The uplink always frees one in time: it drops the oldest blocks,
/// counted, when the relay does not take them.
fn wait_for_buffer(packer: &mut Packer, handover: &Handover, wakeup: &Wakeup) {
    while !packer.prepare() {
        wakeup.set_starved();
        if packer.prepare() {
            break;
        }
        handover.wake();
        let mut fds = [PollFd::new(wakeup.as_fd(), PollFlags::POLLIN)];
        // Woken for nothing it looks again; not woken, it looks again all the same.
        let _ = poll(&mut fds, PollTimeout::from(100u8));
        wakeup.clear();
    }
    wakeup.wake(); // what was cleared may have announced a command
}
