//! A ring and the stream that it feeds: blocks out of the ring, packed blocks to the hand-over.
//!
//! A ring outlives its streams: asked for a succession, the stream ends and the ring goes on under the next number. What
//! takes a buffer and finds none (a description, a last report) is tried again when one is free, and the packets stay in
//! the ring so long: nothing here waits, except at the very end.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use wire::block::{Kind, StreamKey};
use wire::clock::wall_ns;
use wire::description::Description;
use wire::ledger::{InterfaceTotals, Losses, Outage, Report, Stage};
use wire::limited;
use wire::log::{FEW, SOME};
use wire::pack::{PackError, Packer};

use super::gather::Gather;
use super::hold::Hold;
use super::outages::Outages;
use super::reserve::{Levels, Reserve};
use super::{Output, RingOrder, Shared};
use crate::handover::Handed;
use crate::interfaces::interface_drops;
use crate::ring::{Ring, Statistics};
use crate::snapshot::RingFigures;

/// Ring blocks taken from one ring before the others get their turn.
const BLOCKS_PER_TURN: usize = 8;
/// Packed blocks that are handed over with one wake-up, at most. A thread that is woken for each on the same core sends
/// it at once, and so on down to the viewer: turns that are all short, each with cold caches.
const PUT_MAX: usize = 8;
/// Time beyond a block timeout for the kernel to hand over the last block.
const END_MARGIN: Duration = Duration::from_millis(50);

/// What other threads can see of a ring.
#[derive(Debug, Default)]
pub struct RingState {
    stream: AtomicU32,
    is_over: AtomicBool,
}

impl RingState {
    /// Number of the stream that the ring feeds, or fed last.
    pub fn stream(&self) -> u32 {
        self.stream.load(Ordering::Acquire)
    }

    /// The ring found out by itself that its interface is gone, and ends.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }
}

/// Where a stream is going.
enum Course {
    /// On and on.
    On,
    /// It ends as soon as it can, and the ring goes on under the next number.
    Succession,
    /// It ends when the ring is empty, and the ring with it; the kernel has until then to hand over
    /// what it counted.
    End { note: Option<String>, until: Instant },
}

/// A ring and the stream that it feeds.
pub(super) struct RingStream {
    pub(super) ring: Ring,
    pub(super) interface: String,
    id: u32,
    state: Arc<RingState>,
    output: Output,
    description: Description,
    /// The description was handed over.
    is_described: bool,
    course: Course,
    /// What the kernel has counted of the ring, when it was asked last.
    counted: Statistics,
    /// What it had counted when this stream began.
    counted_before: Statistics,
    /// Packets that were taken out of the ring for the streams before.
    taken_before: u64,
    cut_packets: u64,
    lost: Losses,
    last_time_ns: u64,
    /// What the interface had dropped when it was asked last, and when this stream began.
    interface_drops: Option<u64>,
    interface_drops_before: Option<u64>,
    outages: Outages,
    /// Most blocks of the ring that were ready at the begin of a turn, since the last report.
    ready_blocks_max: usize,
    /// There is something to say before the next second.
    report_is_due: bool,
    /// Whether what was taken waits for more.
    hold: Hold,
    /// Whether what is ready is taken.
    reserve: Reserve,
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
    /// What is ready in the ring is left there for now.
    Left,
    /// The stream has ended, and the ring is done with.
    Ended,
}

impl RingStream {
    /// The first stream of a ring that was opened. What was `counted` so far is nobody's.
    pub(super) fn new(ring: Ring, order: RingOrder, counted: Statistics, shared: &Shared) -> Self {
        let RingOrder { id, config, epoch, state, predecessor, mut description, outages: noted, .. } = order;
        let key = StreamKey { epoch, stream: shared.next_stream() };
        // That ring was closed before this one was opened, so its last stream is the last.
        let ring_before = predecessor.map(|ring| StreamKey { epoch, stream: ring.stream() });
        description.predecessor = ring_before.or(description.predecessor);
        let (body_bytes, compression) = (shared.config.body_bytes, shared.config.compression);
        let packer = Packer::new(key, shared.config.pool.clone(), body_bytes, compression);
        let totals = shared.totals(key.stream, &config.interface, description.opened_ns);
        state.stream.store(key.stream, Ordering::Release);
        shared.handover.send(Handed::Stream(key, description.clone()));
        let drops = interface_drops(&config.interface);
        let report_is_due = !noted.is_empty();
        let mut outages = Outages::default();
        noted.into_iter().for_each(|outage| outages.note(outage));
        Self {
            ring,
            interface: config.interface,
            id,
            state,
            output: Output::new(packer, totals),
            description,
            is_described: false,
            course: Course::On,
            counted,
            counted_before: counted,
            taken_before: counted.packets - counted.drops,
            cut_packets: 0,
            lost: Losses::default(),
            last_time_ns: 0,
            interface_drops: drops,
            interface_drops_before: drops,
            outages,
            ready_blocks_max: 0,
            report_is_due,
            hold: Hold::new(shared.config.block_timeout, shared.config.body_bytes),
            reserve: Reserve::default(),
        }
    }

    /// The ring's name among those who give commands.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Number of the present stream.
    pub(super) fn stream(&self) -> u32 {
        self.output.key().stream
    }

    /// The stream is to be succeeded by another of the same ring, unless it is about to end.
    pub(super) fn request_succession(&mut self) {
        if matches!(self.course, Course::On) {
            self.course = Course::Succession;
        }
    }

    /// The stream is to end when the ring is empty, and the ring with it.
    pub(super) fn request_end(&mut self, note: Option<String>, shared: &Shared) {
        if !matches!(self.course, Course::End { .. }) {
            // The kernel hands over a part-filled block within one block timeout.
            let until = Instant::now() + shared.config.block_timeout + END_MARGIN;
            self.course = Course::End { note, until };
        }
    }

    /// Whether packets were taken that nobody was told of.
    pub(super) fn holds(&self) -> bool {
        self.hold.until().is_some()
    }

    /// When the ring wants its turn, whatever happens to it until then.
    pub(super) fn turn_due(&self) -> Option<Instant> {
        [self.end_due(), self.hold.until()].into_iter().flatten().min()
    }

    /// When the stream ends at the latest, if it is about to.
    fn end_due(&self) -> Option<Instant> {
        match self.course {
            Course::End { until, .. } => Some(until),
            Course::On | Course::Succession => None,
        }
    }

    /// An outage of the ring's interface has begun, or ended: the next report, which is made at once, says so.
    pub(super) fn note_outage(&mut self, outage: Outage) {
        self.outages.note(outage);
        self.report_is_due = true;
    }

    /// Takes blocks out of the ring, a turn's worth. Small ones that are ready together share a
    /// packed block; none waits for another, but where traffic is dense ([`Hold`]).
    pub(super) fn take_blocks(&mut self, shared: &Shared) -> Turn {
        // A few looks for a turn's worth of blocks, none by packet.
        self.ready_blocks_max = self.ready_blocks_max.max(self.ring.ready_blocks());
        if !self.with_buffer(shared, Self::describe) {
            return Turn::Starved;
        }
        if matches!(self.course, Course::Succession)
            && !(self.with_buffer(shared, Self::succeed) && self.with_buffer(shared, Self::describe))
        {
            return Turn::Starved;
        }
        for _ in 0..BLOCKS_PER_TURN {
            if !self.ring.ready() {
                self.reserve.clear();
                if matches!(self.course, Course::On)
                    && self.hold.holds(self.output.waiting_bytes(), Instant::now())
                {
                    return Turn::Idle;
                }
                self.seal(shared);
                // Many quiet rings must not hold the buffers that a busy one needs.
                self.output.packer.release_if_idle();
                let Some(until) = self.end_due() else { return Turn::Idle };
                if !self.is_drained() && Instant::now() < until {
                    return Turn::Idle;
                }
                return if self.with_buffer(shared, Self::end) { Turn::Ended } else { Turn::Starved };
            }
            if self.is_left(shared) {
                return Turn::Left;
            }
            if !self.output.packer.prepare() {
                shared.wakeup.set_starved();
                if !self.output.packer.prepare() {
                    self.seal(shared);
                    shared.handover.wake();
                    return Turn::Starved;
                }
            }
            let Some(block) = self.ring.next_block() else { return Turn::Idle };
            let mut gather = Gather {
                output: &mut self.output,
                snaplen: shared.config.snaplen as usize,
                cut_packets: &mut self.cut_packets,
                last_time_ns: &mut self.last_time_ns,
            };
            let mut frames = block.frames();
            for frame in frames.by_ref() {
                while let Err(error) = gather.push(&frame) {
                    match error {
                        PackError::Full => {
                            gather.output.put(&shared.handover, self.hold.is_likely());
                            if gather.output.untold() >= PUT_MAX {
                                gather.output.tell(&shared.handover);
                                self.hold.told();
                            }
                        }
                        PackError::NoBuffer => {
                            self.hold.told();
                            wait_for_buffer(gather.output, shared);
                        }
                        // A frame is at most 256 KiB, so it always fits.
                        PackError::TooLarge { .. } => break,
                    }
                }
            }
            // A malformed block is the kernel's defect or ours; what it hides is counted.
            self.lost.add(Stage::Corrupt, frames.unread().into(), 0);
            drop(block);
        }
        Turn::More
    }

    /// Whether what is ready is left in the ring, as long as the line has no room for it.
    fn is_left(&mut self, shared: &Shared) -> bool {
        if !matches!(self.course, Course::On) {
            return false;
        }
        let handover = &shared.handover;
        let levels = Levels {
            line_is_full: handover.line_is_full(),
            line_has_room: handover.line_has_room(),
            ready_blocks: self.ring.ready_blocks(),
            blocks: self.ring.block_count(),
            core_is_contested: shared.core_is_contested,
        };
        if !self.reserve.leaves(levels, Instant::now()) {
            return false;
        }
        shared.wakeup.set_waits_for_line();
        if handover.line_has_room() {
            self.reserve.clear();
            return false; // there was none a moment ago
        }
        self.output.tell(handover);
        self.hold.told();
        true
    }

    /// Whether all that the kernel counted as put into the ring was taken out of it. A block that is
    /// still being filled is not ready, but what is in it is counted.
    fn is_drained(&mut self) -> bool {
        match self.ring.statistics() {
            Ok(counted) => self.counted = counted,
            Err(_) => return true, // said with the last report
        }
        self.left_behind() == 0
    }

    /// Packets that the kernel had put into the ring, when it was asked last, and that were not taken
    /// out of it.
    fn left_behind(&self) -> u64 {
        // Drops are among the packets, always.
        let put = self.counted.packets - self.counted.drops;
        put.saturating_sub(self.taken_before + self.taken())
    }

    /// Packets that this stream has taken out of the ring.
    fn taken(&self) -> u64 {
        self.output.packer.packed().0 + self.lost.packets_at(Stage::Corrupt)
    }

    /// Does what takes a buffer. `false`: none is free, and the thread is woken when one is.
    fn with_buffer(&mut self, shared: &Shared, step: impl Fn(&mut Self, &Shared) -> bool) -> bool {
        if step(self, shared) {
            return true;
        }
        // What the next block would be gathered in is many times what is wanted.
        self.output.packer.release_if_idle();
        shared.wakeup.set_starved();
        if step(self, shared) {
            return true; // it became free in between
        }
        shared.handover.wake();
        false
    }

    /// The stream's description goes before anything else. `false`: no buffer is free.
    fn describe(&mut self, shared: &Shared) -> bool {
        if !self.is_described {
            let (packer, description) = (&mut self.output.packer, &self.description);
            match packer.seal_json(Kind::Description, description, wall_ns(), false) {
                Some(block) => self.output.hand_over(block, &shared.handover),
                None => return false,
            }
            self.is_described = true;
        }
        true
    }

    /// Hands over all that was taken; nothing waits any more.
    pub(super) fn seal(&mut self, shared: &Shared) {
        self.hold.release();
        self.output.seal(&shared.handover);
    }

    /// Where the stream stands. Asks the kernel.
    fn make_report(&mut self, shared: &Shared, note: Option<String>) -> Report {
        match self.ring.statistics() {
            Ok(statistics) => self.counted = statistics,
            Err(error) => limited!(warn, FEW, "{error}"), // what was known before is still true
        }
        self.interface_drops = interface_drops(&self.interface).or(self.interface_drops);
        let (packed_packets, packed_bytes) = self.output.packer.packed();
        let (now, before) = (self.counted, self.counted_before);
        let offered = now.packets - before.packets;
        let kernel_drops = now.drops - before.drops;
        self.output.set_kernel(offered, kernel_drops);
        let interface_drops = self
            .interface_drops
            .zip(self.interface_drops_before)
            .map(|(now, before)| now.saturating_sub(before));
        Report {
            time_ns: wall_ns(),
            complete_through_ns: self.last_time_ns,
            packed_packets,
            packed_bytes,
            cut_packets: self.cut_packets,
            interfaces: vec![InterfaceTotals {
                offered,
                kernel_drops,
                freezes: now.freezes - before.freezes,
                interface_drops,
            }],
            lost: shared.losses(self.stream(), &self.lost),
            outages: self.outages.list(),
            note,
        }
    }

    /// Reports if there is something that is not to wait for the next second.
    pub(super) fn report_if_due(&mut self, shared: &Shared) {
        if self.report_is_due {
            self.report(shared);
        }
    }

    /// Hands over a report. Without a free buffer the next one says it all.
    pub(super) fn report(&mut self, shared: &Shared) {
        if !self.describe(shared) {
            return;
        }
        self.seal(shared);
        let report = self.make_report(shared, None);
        let block = self.output.packer.seal_json(Kind::Report, &report, report.time_ns, false);
        self.hand_over_report(report, shared);
        if let Some(block) = block {
            self.output.hand_over(block, &shared.handover);
            self.report_is_due = false;
        }
    }

    /// The last block of the stream. `false`: no buffer is free; without this block viewers would
    /// wait for more, so it is tried again.
    fn end(&mut self, shared: &Shared) -> bool {
        self.seal(shared);
        let note = match &self.course {
            Course::End { note, .. } => {
                // The kernel had its time. What it still has nobody will see: it is counted.
                let left_behind = self.left_behind();
                if left_behind > self.lost.packets_at(Stage::Unexplained) {
                    limited!(
                        warn,
                        SOME,
                        "interface {}: {left_behind} packets were left in the ring",
                        self.interface
                    );
                    self.lost.raise(Stage::Unexplained, left_behind, 0);
                }
                note.clone()
            }
            Course::On | Course::Succession => None,
        };
        let report = self.make_report(shared, note);
        let Some(block) = self.output.packer.seal_json(Kind::Report, &report, report.time_ns, true) else {
            return false;
        };
        self.hand_over_report(report, shared);
        self.output.hand_over(block, &shared.handover);
        true
    }

    /// A report for this host's own people, with the ring if it goes on.
    fn hand_over_report(&mut self, report: Report, shared: &Shared) {
        let ring = RingFigures {
            ring_bytes: self.ring.ring_bytes(),
            blocks: self.ring.block_count(),
            ready_blocks_max: std::mem::take(&mut self.ready_blocks_max),
        };
        let ring = (!matches!(self.course, Course::End { .. })).then_some(ring);
        let (stream, thread) = (self.stream(), Arc::clone(&shared.thread));
        shared.handover.send(Handed::Report { stream, report, thread, ring });
    }

    /// Ends the stream and begins the next one of this ring. `false`: no buffer is free.
    ///
    /// The kernel is asked once, for the last report, and what it has counted by then is the old
    /// stream's. That includes packets which are still in the ring and which the new stream will
    /// deliver; so for one of them offered = delivered + lost need not hold, but for the sum over
    /// the streams of a ring it does, exactly. (Charging the old stream only with what it packed
    /// would have its counter go back, for an earlier report may have said more.)
    fn succeed(&mut self, shared: &Shared) -> bool {
        if !self.end(shared) {
            return false;
        }
        let old = self.output.key();
        let key = StreamKey { stream: shared.next_stream(), ..old };
        self.course = Course::On;
        self.taken_before += self.taken();
        self.counted_before = self.counted;
        self.interface_drops_before = self.interface_drops;
        self.cut_packets = 0;
        self.lost = Losses::default();
        self.outages.pass_on();
        self.description.predecessor = Some(old);
        self.description.opened_ns = wall_ns();
        self.is_described = false;
        let totals = shared.totals(key.stream, &self.interface, self.description.opened_ns);
        self.output.succeed(key, totals);
        self.state.stream.store(key.stream, Ordering::Release);
        shared.handover.send(Handed::Stream(key, self.description.clone()));
        limited!(debug, SOME, "interface {}: stream {old} goes on as {key}", self.interface);
        true
    }

    /// Ends when the interface was deleted, or moved away, and nobody else has said so.
    pub(super) fn check_attached(&mut self, shared: &Shared) {
        if !self.ring.attached() && !matches!(self.course, Course::End { .. }) {
            let note = format!("interface {}: gone", self.interface);
            limited!(debug, SOME, "{note}");
            self.request_end(Some(note), shared);
            self.state.is_over.store(true, Ordering::Release);
            shared.handover.wake();
        }
    }

    /// Hands over what the ring still holds and the stream's last block, and waits where it must: at
    /// the end of the thread there is nothing else to do.
    pub(super) fn finish(&mut self, shared: &Shared) {
        self.request_end(None, shared);
        loop {
            match self.take_blocks(shared) {
                Turn::Ended => break,
                Turn::Starved => wait_for_buffer(&mut self.output, shared),
                Turn::Left => {} // not in the end
                Turn::Idle => std::thread::sleep(Duration::from_millis(1)),
                Turn::More => {}
            }
        }
    }
}

/// Sleeps until a buffer is free. The uplink always frees one in time: it drops the oldest blocks,
/// counted, when the relay does not take them.
fn wait_for_buffer(output: &mut Output, shared: &Shared) {
    output.tell(&shared.handover);
    let wakeup = &shared.wakeup;
    while !output.packer.prepare() {
        wakeup.set_starved();
        if output.packer.prepare() {
            break;
        }
        shared.handover.wake();
        let mut fds = [PollFd::new(wakeup.as_fd(), PollFlags::POLLIN)];
        // Woken for nothing it looks again; not woken, it looks again all the same.
        let _ = poll(&mut fds, PollTimeout::from(100u8));
        wakeup.clear();
    }
    wakeup.wake(); // what was cleared may have announced a command
}
