//! One capture thread: takes blocks out of its rings, packs them, hands them over.
//!
//! Pinned before it makes a ring, so that the ring's memory and its retire timer are where it
//! runs. It never waits for the network: without a free buffer the blocks stay in the ring, whose
//! overflow the kernel counts.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{debug, warn};
use wire::block::{Kind, StreamKey};
use wire::clock::wall_ns;
use wire::description::Description;
use wire::ledger::{InterfaceTotals, Losses, Report, Stage};
use wire::pack::{Compression, PackError, Packer};
use wire::pcapng::{OPT_EPB_FLAGS, flags};
use wire::pool::Pool;

use crate::handover::{Handed, Handover, Wakeup};
use crate::interfaces::interface_drops;
use crate::ring::{DROP_ALL, Direction, FanoutMode, Frame, Ring, RingConfig, RingControl, RingError};

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

/// A ring and the stream that it feeds.
struct RingStream {
    ring: Ring,
    interface: String,
    packer: Packer,
    /// Waits until a buffer is free.
    description: Option<Description>,
    cut_packets: u64,
    lost: Losses,
    last_time_ns: u64,
    interface_drops_at_start: Option<u64>,
}

/// What a turn at a ring came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The ring is empty.
    Idle,
    /// There may be more.
    More,
    /// No buffer is free.
    Starved,
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

impl RingStream {
    /// Takes blocks out of the ring, a turn's worth. Small ones that are ready together share a
    /// packed block; none waits for another.
    fn take_blocks(&mut self, config: &CaptureConfig, handover: &Handover, wakeup: &Wakeup) -> Turn {
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

    fn seal(&mut self, handover: &Handover) {
        hand_over_sealed(&mut self.packer, handover);
    }

    /// Hands over a report. Without a free buffer the next one says it all. `false`: none was.
    fn report(&mut self, handover: &Handover, end: bool, note: Option<String>) -> bool {
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
    fn end(&mut self, config: &CaptureConfig, handover: &Handover, wakeup: &Wakeup, note: Option<String>) {
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

/// Gathers frames into a packer as Enhanced Packet Blocks.
struct Gather<'a> {
    packer: &'a mut Packer,
    snaplen: usize,
    cut_packets: &'a mut u64,
    last_time_ns: &'a mut u64,
}

impl Gather<'_> {
    #[inline]
    fn push(&mut self, frame: &Frame<'_>) -> Result<(), PackError> {
        let mut options = [0; 8];
        options[..2].copy_from_slice(&OPT_EPB_FLAGS.to_le_bytes());
        options[2] = 4;
        options[4..].copy_from_slice(&packet_flags(frame).to_le_bytes());
        let data = frame.data;
        let (captured_len, original_len) = match frame.vlan {
            // The kernel took the tag out of the frame: it goes back between the addresses and
            // the type. Where not even the addresses were captured there is no place for it.
            Some(tag) if data.len() >= 12 => {
                let mut bytes = [0; 4];
                bytes[..2].copy_from_slice(&tag.tpid.to_be_bytes());
                bytes[2..].copy_from_slice(&tag.tci.to_be_bytes());
                let (addresses, rest) = data.split_at(12);
                let addresses = &addresses[..addresses.len().min(self.snaplen)];
                let tag = &bytes[..self.snaplen.saturating_sub(12).min(4)];
                let rest = &rest[..self.snaplen.saturating_sub(16).min(rest.len())];
                let original_len = frame.original_len.saturating_add(4);
                self.packer.push(0, frame.time_ns, original_len, [addresses, tag, rest], &options)?;
                (addresses.len() + tag.len() + rest.len(), original_len)
            }
            _ => {
                let data = &data[..data.len().min(self.snaplen)];
                self.packer.push(0, frame.time_ns, frame.original_len, [data], &options)?;
                (data.len(), frame.original_len)
            }
        };
        *self.cut_packets += u64::from((captured_len as u64) < u64::from(original_len));
        *self.last_time_ns = frame.time_ns;
        Ok(())
    }
}

/// The flags word of a frame (pcapng draft, section 4.3.1).
#[inline]
fn packet_flags(frame: &Frame<'_>) -> u32 {
    let direction = match frame.direction {
        Direction::Host => flags::INBOUND | flags::UNICAST,
        Direction::Broadcast => flags::INBOUND | flags::BROADCAST,
        Direction::Multicast => flags::INBOUND | flags::MULTICAST,
        Direction::OtherHost => flags::INBOUND | flags::PROMISCUOUS,
        Direction::Outgoing => flags::OUTBOUND,
    };
    let mut word = direction;
    if frame.checksum_not_ready {
        word |= flags::CHECKSUM_NOT_READY;
    }
    if frame.checksum_valid {
        word |= flags::CHECKSUM_VALID;
    }
    if frame.gso {
        word |= flags::TCP_SEGMENTATION_OFFLOADED;
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::VlanTag;
    use wire::block::Epoch;
    use wire::pcapng::Epbs;

    fn frame(data: &[u8], vlan: Option<VlanTag>) -> Frame<'_> {
        Frame {
            time_ns: 7,
            original_len: data.len() as u32,
            data,
            vlan,
            direction: Direction::Outgoing,
            checksum_not_ready: true,
            checksum_valid: false,
            gso: false,
        }
    }

    fn gathered(frame: &Frame<'_>, snaplen: usize) -> (Vec<u8>, u32, u64) {
        let key = StreamKey { epoch: Epoch(1), stream: 0 };
        let mut packer = Packer::new(key, Pool::new(1 << 22), 1 << 16, Compression::None);
        let (mut cut_packets, mut last_time_ns) = (0, 0);
        let mut gather = Gather {
            packer: &mut packer,
            snaplen,
            cut_packets: &mut cut_packets,
            last_time_ns: &mut last_time_ns,
        };
        while let Err(error) = gather.push(frame) {
            assert_eq!(error, PackError::NoBuffer);
            assert!(gather.packer.prepare());
        }
        let block = packer.seal().expect("a frame");
        let mut body = Vec::new();
        block.unpack_into(&mut body).expect("ours");
        let epb = Epbs::new(&body, 1).next().expect("one").expect("whole");
        assert_eq!(epb.options[..8], [2, 0, 4, 0, 2, 2, 0, 0]);
        (epb.data.to_vec(), epb.original_len, cut_packets)
    }

    #[test]
    fn a_tag_goes_back_where_it_was() {
        let data: Vec<u8> = (0..20).collect();
        let tag = Some(VlanTag { tpid: 0x88a8, tci: 0xbabc });
        let tagged = [&data[..12], &[0x88, 0xa8, 0xba, 0xbc], &data[12..]].concat();
        assert_eq!(gathered(&frame(&data, tag), 262_144), (tagged.clone(), 24, 0));
        assert_eq!(gathered(&frame(&data, None), 262_144), (data.clone(), 20, 0));
        // The snapshot length bounds what comes out, tag included.
        for snaplen in [1, 11, 12, 13, 15, 16, 17, 23] {
            assert_eq!(gathered(&frame(&data, tag), snaplen), (tagged[..snaplen].to_vec(), 24, 1));
        }
        assert_eq!(gathered(&frame(&data, tag), 24), (tagged, 24, 0));
        // Without the addresses there is no place for it.
        assert_eq!(gathered(&frame(&data[..11], tag), 100), (data[..11].to_vec(), 11, 0));
    }

    #[test]
    fn a_frame_too_long_is_cut_and_counted() {
        let data = [1; 300];
        assert_eq!(gathered(&frame(&data, None), 64), (data[..64].to_vec(), 300, 1));
    }
}
