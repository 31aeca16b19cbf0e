//! One capture thread: takes blocks out of its rings, packs them, hands them over.
//!
//! Pinned before it makes a ring, so that the ring's memory and its retire timer are where it
//! runs. It never waits for the network: without a free buffer the blocks stay in the ring, whose
//! overflow the kernel counts.

mod contest;
mod gather;
mod hold;
mod outages;
mod output;
mod reserve;
mod stream;
#[cfg(test)]
pub(crate) mod tests;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::warn;
use wire::block::Epoch;
use wire::clock::wall_ns;
use wire::description::Description;
use wire::ledger::{Losses, Outage};
use wire::limited;
use wire::log::FEW;
use wire::pack::Compression;
use wire::pool::Pool;

use self::contest::Contest;
pub use self::output::Output;
pub use self::stream::RingState;
use self::stream::{RingStream, Turn};
use crate::handover::{Handed, Handover, Wakeup};
use crate::losses::SharedLosses;
use crate::ring::{DROP_ALL, FanoutMode, Ring, RingConfig, RingControl, RingError};
use crate::totals::{TotalsFile, TotalsSlot};

/// How often streams report.
const REPORT_TIME: Duration = Duration::from_secs(1);

/// While blocks are left in the rings for want of room on the line, it is looked so often whether a ring fills up.
const LEFT_TIME: Duration = Duration::from_millis(1);

/// What all rings of a sniffer have in common.
#[derive(Clone)]
pub struct CaptureConfig {
    /// Most bytes kept of a frame.
    pub snaplen: u32,
    /// Bytes of a packed block's body before compression.
    pub body_bytes: usize,
    /// How bodies are compressed.
    pub compression: Compression,
    /// The kernel hands over a block after this time at the latest.
    pub block_timeout: Duration,
    /// Buffers.
    pub pool: Pool,
    /// Somebody merges by time and wants to know when a stream is idle.
    pub marks_wanted: Arc<AtomicBool>,
    /// Number of the next stream of this run: capture threads give them out.
    pub next_stream: Arc<AtomicU32>,
    /// What the sending thread lost of each stream, for the reports.
    pub losses: SharedLosses,
    /// Keeps the streams' totals beyond the end of the process.
    pub totals: Option<Arc<TotalsFile>>,
}

/// A ring to open.
pub struct RingOrder {
    /// Its name in commands, which no other ring of this run has.
    pub id: u32,
    /// The ring.
    pub config: RingConfig,
    /// Its place among the rings of its interface.
    pub fanout: Option<FanoutOrder>,
    /// The run.
    pub epoch: Epoch,
    /// Where the ring's streams can be followed.
    pub state: Arc<RingState>,
    /// A ring of the same thread that this one takes the place of. It was closed before.
    pub predecessor: Option<Arc<RingState>>,
    /// What the stream's description says, but for the predecessor.
    pub description: Description,
    /// Outages that belong to the stream from the start.
    pub outages: Vec<Outage>,
}

/// How a ring joins those of its interface.
pub struct FanoutOrder {
    /// The group; `None`: a new one.
    pub group: Option<u16>,
    /// How packets are dealt out.
    pub mode: FanoutMode,
}

/// A ring that was opened. Nothing is captured until its filter is set.
pub struct Opened {
    /// Sets the filter.
    pub control: RingControl,
    /// The fan-out group, if it joined one.
    pub group: Option<u16>,
    /// Memory that it really has.
    pub ring_bytes: usize,
}

enum Command {
    Open(Box<RingOrder>, SyncSender<Result<Opened, RingError>>),
    Close { id: u32, note: String },
    Succeed(Vec<u32>),
    Outage { id: u32, outage: Outage },
    Stop,
}

/// What all rings of a thread have in common.
struct Shared {
    /// Name of the thread.
    thread: Arc<str>,
    config: CaptureConfig,
    handover: Handover,
    wakeup: Wakeup,
    /// Other threads keep this one from its core, as far as is known; looked at while the line is full.
    core_is_contested: bool,
}

impl Shared {
    fn next_stream(&self) -> u32 {
        self.config.next_stream.fetch_add(1, Ordering::Relaxed)
    }

    fn totals(&self, stream: u32, interface: &str, opened_ns: u64) -> Option<TotalsSlot> {
        self.config.totals.as_ref().and_then(|totals| totals.slot(stream, interface, opened_ns))
    }

    /// What was lost of a stream: here, and by the sending thread.
    fn losses(&self, stream: u32, lost_here: &Losses) -> Losses {
        let mut losses = lost_here.clone();
        self.config.losses.raise(stream, &mut losses);
        losses
    }
}

/// A running capture thread.
pub struct CaptureThread {
    commands: Sender<Command>,
    wakeup: Wakeup,
    name: String,
    beats: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl CaptureThread {
    /// Starts a thread without rings, pinned to `core` if one is given.
    pub fn start(core: Option<usize>, config: CaptureConfig, handover: Handover) -> std::io::Result<Self> {
        let wakeup = Wakeup::new()?;
        let (commands, receiver) = channel();
        let beats = Arc::<AtomicU64>::default();
        let name = core.map_or("capture".to_owned(), |core| format!("capture-{core}"));
        let capture = Capture {
            shared: Shared {
                thread: name.as_str().into(),
                config,
                handover,
                wakeup: wakeup.clone(),
                core_is_contested: false,
            },
            commands: receiver,
            rings: Vec::new(),
            report_due: Instant::now() + REPORT_TIME,
            beats: Arc::clone(&beats),
        };
        let thread = std::thread::Builder::new().name(name.clone()).spawn(move || {
            if let Some(id) = core
                && !core_affinity::set_for_current(core_affinity::CoreId { id })
            {
                warn!("--cores {id}: the thread could not be pinned");
            }
            let guard = EndGuard(capture.shared.handover.clone());
            capture.run();
            drop(guard);
        })?;
        Ok(Self { commands, wakeup, name, beats, thread: Some(thread) })
    }

    /// Opens a ring on this thread. Gives up after `patience`: the thread may wait for a buffer that
    /// only the caller can free. A ring that is opened later all the same is closed at once.
    pub fn open(&self, order: RingOrder, patience: Duration) -> Result<Opened, RingError> {
        let interface = order.config.interface.clone();
        let (reply, answer) = std::sync::mpsc::sync_channel(0);
        self.command(Command::Open(Box::new(order), reply));
        answer.recv_timeout(patience).unwrap_or(Err(RingError::Closed { interface }))
    }

    /// Closes a ring whose interface is gone, and ends its stream; does nothing if that was done.
    pub fn close(&self, id: u32, note: String) {
        self.command(Command::Close { id, note });
    }

    /// Streams are to end, and their rings to go on under new numbers. Those that are not of this
    /// thread, or have ended, are passed over.
    pub fn succeed(&self, streams: &[u32]) {
        self.command(Command::Succeed(streams.to_vec()));
    }

    /// Says that the interface of a ring gives nothing, or gives something again.
    pub fn note_outage(&self, id: u32, outage: Outage) {
        self.command(Command::Outage { id, outage });
    }

    /// A number that moves at least once a second while the thread is alive. `None`: it has ended, in
    /// order or not.
    pub fn beats(&self) -> Option<u64> {
        let running = self.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        running.then(|| self.beats.load(Ordering::Relaxed))
    }

    /// Its name, as the system shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Stops capturing: what is in the rings is handed over, then the thread ends.
    pub fn stop(&self) {
        self.command(Command::Stop);
    }

    /// The line has room again.
    pub fn line_has_room(&self) {
        self.wakeup.wake_if_it_waits_for_line();
    }

    /// A buffer may be free again.
    pub fn buffer_is_free(&self) {
        self.wakeup.wake_if_starved();
    }

    fn command(&self, command: Command) {
        // A thread that has ended needs no commands.
        let _ = self.commands.send(command);
        self.wakeup.wake();
    }
}

/// Says that a thread has ended, whichever way.
struct EndGuard(Handover);

impl Drop for EndGuard {
    fn drop(&mut self) {
        let panicked = std::thread::panicking();
        self.0.send(Handed::Ended(if panicked {
            Err("a capture thread panicked".to_owned())
        } else {
            Ok(())
        }));
    }
}

impl Drop for CaptureThread {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Capture {
    shared: Shared,
    commands: Receiver<Command>,
    rings: Vec<RingStream>,
    report_due: Instant,
    /// Counts the turns, for who watches whether there are any.
    beats: Arc<AtomicU64>,
}

impl Capture {
    fn run(mut self) {
        let mut contest = Contest::of_this_thread();
        loop {
            self.beats.fetch_add(1, Ordering::Relaxed);
            match self.handle_commands() {
                Some(()) => {}
                None => break self.stop(),
            }
            self.rings.iter_mut().for_each(|stream| stream.report_if_due(&self.shared));
            if self.shared.handover.line_is_full() {
                self.shared.core_is_contested = contest.look(Instant::now());
            }
            let mut turn = Turn::Idle;
            self.rings.retain_mut(|stream| {
                match stream.take_blocks(&self.shared) {
                    Turn::Idle => {}
                    Turn::Ended => return false,
                    other => turn = if turn == Turn::More { turn } else { other },
                }
                true
            });
            if Instant::now() >= self.report_due {
                self.report_due += REPORT_TIME;
                self.report();
            }
            if turn != Turn::More {
                self.wait(turn);
            }
        }
    }

    /// `None`: stop.
    fn handle_commands(&mut self) -> Option<()> {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Open(order, reply) => {
                    let opened = self.open(*order);
                    let is_opened = opened.is_ok();
                    if reply.send(opened).is_err()
                        && is_opened
                        && let Some(ring) = self.rings.last_mut()
                    {
                        // Nobody waits any more, so nobody would set its filter.
                        ring.request_end(Some("the ring was opened too late".to_owned()), &self.shared);
                    }
                }
                Command::Close { id, note } => {
                    if let Some(ring) = self.rings.iter_mut().find(|ring| ring.id() == id) {
                        ring.request_end(Some(note), &self.shared);
                    }
                }
                Command::Succeed(streams) => {
                    let named = self.rings.iter_mut().filter(|ring| streams.contains(&ring.stream()));
                    named.for_each(RingStream::request_succession);
                }
                Command::Outage { id, outage } => {
                    if let Some(ring) = self.rings.iter_mut().find(|ring| ring.id() == id) {
                        ring.note_outage(outage);
                    }
                }
                Command::Stop => return None,
            }
        }
        Some(())
    }

    fn open(&mut self, order: RingOrder) -> Result<Opened, RingError> {
        let mut ring = Ring::open(&order.config)?;
        let group = match &order.fanout {
            Some(fanout) => {
                Some(ring.join_fanout(fanout.group, fanout.mode, order.config.ignore_outgoing)?)
            }
            None => None,
        };
        let counted = ring.statistics()?; // before the filter is set nothing is offered to anybody
        let opened = Opened { control: ring.control(), group, ring_bytes: ring.ring_bytes() };
        self.rings.push(RingStream::new(ring, order, counted, &self.shared));
        Ok(opened)
    }

    /// Each second: where every stream stands; a ring whose interface is gone ends.
    fn report(&mut self) {
        for stream in &mut self.rings {
            stream.check_attached(&self.shared);
            stream.report(&self.shared);
        }
    }

    /// Sleeps until a ring has a block, a command comes, a buffer is free, or a report is due.
    fn wait(&mut self, turn: Turn) {
        let due = self.rings.iter().filter_map(RingStream::turn_due).fold(self.report_due, Instant::min);
        let mut timeout = due.saturating_duration_since(Instant::now());
        if turn == Turn::Left {
            timeout = timeout.min(LEFT_TIME);
        }
        if turn == Turn::Idle && self.shared.config.marks_wanted.load(Ordering::Acquire) {
            timeout = timeout.min(self.shared.config.block_timeout);
            self.send_marks();
        }
        // Rounded up to whole ms, or the last one would be spent in turns without a pause.
        let timeout = timeout + Duration::from_micros(999);
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::ZERO);
        let mut fds = vec![PollFd::new(self.shared.wakeup.as_fd(), PollFlags::POLLIN)];
        if !matches!(turn, Turn::Starved | Turn::Left) {
            // A ring with blocks that cannot be taken would be reported at once, for ever.
            fds.extend(self.rings.iter().map(|stream| PollFd::new(stream.ring.as_fd(), PollFlags::POLLIN)));
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => limited!(warn, FEW, "poll: {error}"),
        }
        let ready: Vec<PollFlags> =
            fds.iter().skip(1).map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
        self.shared.wakeup.clear();
        for (stream, events) in self.rings.iter_mut().zip(ready) {
            if events.contains(PollFlags::POLLERR)
                && let Some(error) = stream.ring.take_error()
            {
                // Who watches the interfaces says what it means; what is in the ring is still taken.
                limited!(debug, FEW, "interface {}: {}", stream.interface, error.desc());
            }
            if events.contains(PollFlags::POLLIN) && !stream.ring.ready() {
                stream.ring.resynchronise();
            }
        }
    }

    /// Says of idle streams that nothing old is to come.
    fn send_marks(&self) {
        let now_ns = wall_ns();
        for stream in &self.rings {
            // A packet stamped before this is in a block that the kernel has handed over.
            let margin = 2 * self.shared.config.block_timeout.as_nanos() as u64;
            let through = now_ns.saturating_sub(margin);
            if !stream.ring.ready() && !stream.holds() {
                self.shared.handover.send(Handed::Mark(stream.stream(), through));
            }
        }
    }

    /// Stops capturing, and hands over what the rings still hold.
    fn stop(&mut self) {
        for stream in &self.rings {
            if let Err(error) = stream.ring.control().set_filter(&DROP_ALL) {
                limited!(debug, FEW, "{error}");
            }
        }
        // All at once, so that what the kernel takes to hand over its last blocks, they take together.
        self.rings.iter_mut().for_each(|stream| stream.request_end(None, &self.shared));
        for mut stream in std::mem::take(&mut self.rings) {
            stream.finish(&self.shared);
        }
    }
}
