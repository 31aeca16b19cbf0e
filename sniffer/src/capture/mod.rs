//! One capture thread: takes blocks out of its rings, packs them, hands them over.
//!
//! Pinned before it makes a ring, so that the ring's memory and its retire timer are where it
//! runs. It never waits for the network: without a free buffer the blocks stay in the ring, whose
//! overflow the kernel counts.

mod gather;
mod stream;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{debug, warn};
use wire::block::StreamKey;
use wire::clock::wall_ns;
use wire::description::Description;
use wire::ledger::Losses;
use wire::pack::{Compression, Packer};
use wire::pool::Pool;

use self::stream::{RingStream, Turn};
use crate::handover::{Handed, Handover, Wakeup};
use crate::interfaces::interface_drops;
use crate::ring::{DROP_ALL, FanoutMode, Ring, RingConfig, RingControl, RingError};

/// Ring blocks taken from one ring before the others get their turn.
const BLOCKS_PER_TURN: usize = 16;
/// How often streams report.
const REPORT_TIME: Duration = Duration::from_secs(1);
/// Time beyond a block timeout for the kernel to hand over the last block.
const STOP_MARGIN: Duration = Duration::from_millis(50);

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
}

/// A ring to open.
pub struct RingOrder {
    /// The ring.
    pub config: RingConfig,
    /// Its place among the rings of its interface.
    pub fanout: Option<FanoutOrder>,
    /// Its stream.
    pub key: StreamKey,
    /// What the stream's description says.
    pub description: Description,
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
    Close { stream: u32, note: String },
    Stop,
}

/// A running capture thread.
pub struct CaptureThread {
    commands: Sender<Command>,
    wakeup: Wakeup,
    thread: Option<JoinHandle<()>>,
}

impl CaptureThread {
    /// Starts a thread without rings, pinned to `core` if one is given.
    pub fn start(core: Option<usize>, config: CaptureConfig, handover: Handover) -> std::io::Result<Self> {
        let wakeup = Wakeup::new()?;
        let (commands, receiver) = channel();
        let capture = Capture {
            config,
            handover,
            wakeup: wakeup.clone(),
            commands: receiver,
            rings: Vec::new(),
            report_due: Instant::now() + REPORT_TIME,
        };
        let name = core.map_or("capture".to_owned(), |core| format!("capture-{core}"));
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            if let Some(id) = core
                && !core_affinity::set_for_current(core_affinity::CoreId { id })
            {
                warn!("--cores {id}: the thread could not be pinned");
            }
            let guard = EndGuard(capture.handover.clone());
            capture.run();
            drop(guard);
        })?;
        Ok(Self { commands, wakeup, thread: Some(thread) })
    }

    /// Opens a ring on this thread. Gives up after `patience`: the thread may wait for a buffer that
    /// only the caller can free. A ring that is opened later all the same is closed at once.
    pub fn open(&self, order: RingOrder, patience: Duration) -> Result<Opened, RingError> {
        let interface = order.config.interface.clone();
        let (reply, answer) = std::sync::mpsc::sync_channel(0);
        self.command(Command::Open(Box::new(order), reply));
        answer.recv_timeout(patience).unwrap_or(Err(RingError::Closed { interface }))
    }

    /// Ends a stream whose interface is gone; does nothing if it has ended.
    pub fn close(&self, stream: u32, note: String) {
        self.command(Command::Close { stream, note });
    }

    /// Stops capturing: what is in the rings is handed over, then the thread ends.
    pub fn stop(&self) {
        self.command(Command::Stop);
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
    config: CaptureConfig,
    handover: Handover,
    wakeup: Wakeup,
    commands: Receiver<Command>,
    rings: Vec<RingStream>,
    report_due: Instant,
}

impl Capture {
    fn run(mut self) {
        loop {
            match self.handle_commands() {
                Some(()) => {}
                None => break self.stop(),
            }
            let mut turn = Turn::Idle;
            for stream in &mut self.rings {
                match stream.take_blocks(&self.config, &self.handover, &self.wakeup) {
                    Turn::Idle => {}
                    other => turn = if turn == Turn::More { turn } else { other },
                }
            }
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
                    if reply.send(opened).is_err() && is_opened {
                        // Nobody waits any more, so nobody would set its filter.
                        self.rings.pop();
                    }
                }
                Command::Close { stream, note } => {
                    let found = self.rings.iter().position(|one| one.packer.key().stream == stream);
                    if let Some(at) = found {
                        let mut stream = self.rings.remove(at);
                        stream.end(&self.config, &self.handover, &self.wakeup, Some(note));
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
        ring.statistics()?; // what was counted before the filter is set was offered to nobody
        let opened = Opened { control: ring.control(), group, ring_bytes: ring.ring_bytes() };
        let (pool, key) = (self.config.pool.clone(), order.key);
        let packer = Packer::new(key, pool, self.config.body_bytes, self.config.compression);
        self.handover.send(Handed::Stream(key, order.description.clone()));
        let interface_drops_at_start = interface_drops(&order.config.interface);
        self.rings.push(RingStream {
            ring,
            interface: order.config.interface,
            packer,
            description: Some(order.description),
            cut_packets: 0,
            lost: Losses::default(),
            last_time_ns: 0,
            interface_drops_at_start,
        });
        Ok(opened)
    }

    /// Each second: where every stream stands; a ring whose interface is gone ends.
    fn report(&mut self) {
        let (config, handover, wakeup) = (&self.config, &self.handover, &self.wakeup);
        self.rings.retain_mut(|stream| {
            if !stream.ring.attached() {
                let note = format!("interface {}: gone", stream.interface);
                warn!("{note}; its stream ends");
                stream.end(config, handover, wakeup, Some(note));
                return false;
            }
            stream.seal(handover);
            stream.report(handover, false, None);
            true
        });
    }

    /// Sleeps until a ring has a block, a command comes, a buffer is free, or a report is due.
    fn wait(&mut self, turn: Turn) {
        let mut timeout = self.report_due.saturating_duration_since(Instant::now());
        if turn == Turn::Idle && self.config.marks_wanted.load(Ordering::Acquire) {
            timeout = timeout.min(self.config.block_timeout);
            self.send_marks();
        }
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::ZERO);
        let mut fds = vec![PollFd::new(self.wakeup.as_fd(), PollFlags::POLLIN)];
        if turn != Turn::Starved {
            // A ring with blocks that cannot be taken would be reported at once, for ever.
            fds.extend(self.rings.iter().map(|stream| PollFd::new(stream.ring.as_fd(), PollFlags::POLLIN)));
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => warn!("poll: {error}"),
        }
        let ready: Vec<PollFlags> =
            fds.iter().skip(1).map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
        self.wakeup.clear();
        for (stream, events) in self.rings.iter_mut().zip(ready) {
            if events.contains(PollFlags::POLLERR)
                && let Some(error) = stream.ring.take_error()
            {
                warn!("interface {}: {}", stream.interface, error.desc());
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
            let margin = 2 * self.config.block_timeout.as_nanos() as u64;
            let through = now_ns.saturating_sub(margin);
            if !stream.ring.ready() {
                self.handover.send(Handed::Mark(stream.packer.key().stream, through));
            }
        }
    }

    /// Stops capturing, and hands over what the rings still hold.
    fn stop(&mut self) {
        for stream in &self.rings {
            if let Err(error) = stream.ring.control().set_filter(&DROP_ALL) {
                debug!("{error}");
            }
        }
        if !self.rings.is_empty() {
            // The kernel hands over a part-filled block within one block timeout.
            let until = Instant::now() + self.config.block_timeout + STOP_MARGIN;
            while Instant::now() < until {
                for stream in &mut self.rings {
                    stream.take_blocks(&self.config, &self.handover, &self.wakeup);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        for mut stream in std::mem::take(&mut self.rings) {
            stream.end(&self.config, &self.handover, &self.wakeup, None);
        }
    }
}
