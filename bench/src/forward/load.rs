//! One measurement: a source, what is in the middle, and one or more sinks, for some seconds.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};
use wire::block::{Epoch, Header, Kind};
use wire::message::{Control, PROTOCOL, Role, Selection};

use super::blocks::{Blocks, Message};
use super::line::{Came, Line, discard, write_message};
use super::middle::{Middle, Place, Running, start};
use crate::frames::Frames;
use crate::tcp;

/// Masks what the source sends; who captures what it sends chose it.
const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];
/// Bytes that are sent or read in one turn before others get theirs.
const SHARE_BYTES: usize = 1 << 20;
/// A viewer says how far it is after so many bytes, or so much time.
const PROGRESS_BYTES: usize = 1 << 20;
const PROGRESS_TIME: Duration = Duration::from_millis(50);
/// Longest wait for an event.
const TICK: Duration = Duration::from_millis(10);
/// Viewers are joined, and bytes flow, within this time.
const START_TIME: Duration = Duration::from_secs(30);

/// What is measured.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Where.
    pub place: &'a Place,
    /// What is in the middle.
    pub middle: Middle,
    /// Sinks; one unless the relay is in the middle.
    pub viewers: usize,
    /// What is in the blocks.
    pub frames: &'a Frames,
    /// Most bytes that are sent and not settled.
    pub window_bytes: usize,
    /// Before it is measured, so that all buffers there will be are.
    pub warm_up: Duration,
    /// How long it is measured.
    pub time: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    /// What was in the middle.
    pub middle: String,
    /// What was in the blocks.
    pub traffic: String,
    /// Sinks.
    pub viewers: usize,
    /// Round.
    pub round: usize,
    /// Time in which the rest was counted.
    pub seconds: f64,
    /// Bytes of a message, on average.
    pub message_bytes: usize,
    /// Bytes that came to all sinks together.
    pub bytes_out: u64,
    /// CPU of what is in the middle, by its control group, in seconds.
    pub cpu_s: f64,
    /// CPU of source and sinks, in seconds.
    pub load_cpu_s: f64,
    /// Resident memory of what is in the middle, in KiB: before anybody connects, at the end, and the most.
    pub resident_kib: [u64; 3],
}

impl Measured {
    /// Bytes a second.
    pub fn rate(&self) -> f64 {
        self.bytes_out as f64 / self.seconds
    }

    /// Bytes for a second of CPU of what is in the middle.
    pub fn bytes_per_cpu(&self) -> f64 {
        self.bytes_out as f64 / self.cpu_s
    }
}

/// Measures once. Fails if a viewer misses a block.
pub fn measure(plan: &Plan<'_>) -> io::Result<Measured> {
    let running = start(plan.place, plan.middle)?;
    let before_kib = running.program.resident_kib();
    let measured = play(plan, &running).map_err(|error| {
        let said = running.program.said();
        io::Error::new(error.kind(), format!("{}: {error}; it said: {}", plan.middle.name(), said.trim()))
    })?;
    let resident_kib = [before_kib, running.program.resident_kib(), running.program.peak_kib()];
    Ok(Measured { resident_kib, ..measured })
}

fn play(plan: &Plan<'_>, running: &Running) -> io::Result<Measured> {
    let blocks =
        Blocks::pack(plan.frames, Epoch(std::process::id().into()), MASK).map_err(io::Error::other)?;
    let message_bytes = blocks.message_bytes();
    let mut load = Load::new(plan, running, blocks)?;
    let deadline = Instant::now() + START_TIME;
    while load.bytes_out() == 0 {
        if Instant::now() > deadline {
            return Err(io::Error::other("no bytes came within 30 s"));
        }
        load.turn()?;
    }
    load.run(plan.warm_up)?;
    let (begin, bytes, cpu_ns, own) =
        (Instant::now(), load.bytes_out(), running.program.cpu_ns()?, own_cpu()?);
    load.run(plan.time)?;
    let cpu_s = (running.program.cpu_ns()? - cpu_ns) as f64 / 1e9;
    Ok(Measured {
        middle: plan.middle.name().to_owned(),
        viewers: plan.viewers,
        seconds: begin.elapsed().as_secs_f64(),
        message_bytes,
        bytes_out: load.bytes_out() - bytes,
        cpu_s,
        load_cpu_s: (own_cpu()? - own).as_secs_f64(),
        ..Measured::default()
    })
}

fn own_cpu() -> io::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let us = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(us.unsigned_abs()))
}

/// Source and sinks, in turns.
struct Load {
    poll: Poll,
    events: Events,
    source: Source,
    sinks: Vec<Sink>,
    room: Vec<u8>,
}

impl Load {
    fn new(plan: &Plan<'_>, running: &Running, blocks: Blocks) -> io::Result<Self> {
        let (mut source, mut sinks) = match &running.sink {
            None => {
                let sinks: io::Result<Vec<Sink>> = (0..plan.viewers).map(|_| Sink::viewer(running)).collect();
                (Source::publisher(running, blocks, plan)?, sinks?)
            }
            Some(listener) => {
                let stream = tcp::connect(running.address)?;
                let (sink, _) = listener.accept()?;
                for stream in [&stream, &sink] {
                    stream.set_nodelay(true)?;
                    stream.set_nonblocking(true)?;
                }
                let sink = Sink::new(End::Raw(TcpStream::from_std(sink), 0));
                (Source::raw(TcpStream::from_std(stream), blocks), vec![sink])
            }
        };
        let poll = Poll::new()?;
        let both = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(source.end.stream_mut(), Token(0), both)?;
        for (index, sink) in sinks.iter_mut().enumerate() {
            poll.registry().register(sink.end.stream_mut(), Token(index + 1), both)?;
        }
        Ok(Self { poll, events: Events::with_capacity(256), source, sinks, room: vec![0; SHARE_BYTES] })
    }

    fn bytes_out(&self) -> u64 {
        self.sinks.iter().map(|sink| sink.end.received_bytes()).sum()
    }

    fn run(&mut self, time: Duration) -> io::Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.turn()?;
        }
        Ok(())
    }

    fn turn(&mut self) -> io::Result<()> {
        let is_ready = self.source.is_ready() || self.sinks.iter().any(|sink| sink.readable);
        let timeout = if is_ready { Duration::ZERO } else { TICK };
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in self.events.iter() {
            let (readable, writable) = (event.is_readable(), event.is_writable());
            match event.token().0.checked_sub(1) {
                None => {
                    self.source.readable |= readable;
                    self.source.writable |= writable;
                }
                Some(index) => self.sinks[index].readable |= readable,
            }
        }
        let now = Instant::now();
        self.source.turn(&mut self.room)?;
        for sink in &mut self.sinks {
            sink.turn(now, &mut self.room)?;
        }
        Ok(())
    }
}

/// An end of a connection: to the relay, or one on which bytes mean nothing.
enum End {
    Line(Box<Line>),
    /// With the bytes that have come.
    Raw(TcpStream, u64),
}

impl End {
    fn stream_mut(&mut self) -> &mut TcpStream {
        match self {
            End::Line(line) => line.stream_mut(),
            End::Raw(stream, _) => stream,
        }
    }

    fn received_bytes(&self) -> u64 {
        match self {
            End::Line(line) => line.received_bytes(),
            End::Raw(_, bytes) => *bytes,
        }
    }
}

struct Source {
    end: End,
    blocks: Blocks,
    readable: bool,
    writable: bool,
    /// The message that is being sent, and how much of it is.
    under_way: Option<(Message, usize)>,
    /// Sequences and bytes of what is sent and not settled.
    unsettled: VecDeque<(u64, usize)>,
    unsettled_bytes: usize,
    window_bytes: usize,
    viewers: u32,
    viewers_awaited: u32,
}

impl Source {
    fn publisher(running: &Running, blocks: Blocks, plan: &Plan<'_>) -> io::Result<Self> {
        let announcement = blocks.announcement();
        let hello = hello(Role::Publish, announcement.key.epoch);
        let mut line = Line::open(running.address, &hello, MASK)?;
        line.queue(&Control::Stream(announcement));
        // It waits rather than have blocks skipped, and so asks how much may be under way.
        line.queue(&Control::Paced { wants: true });
        let mut source = Self::raw_end(End::Line(Box::new(line)), blocks);
        source.under_way = Some((source.blocks.description(), 0));
        (source.window_bytes, source.viewers_awaited) = (plan.window_bytes, plan.viewers as u32);
        Ok(source)
    }

    fn raw(stream: TcpStream, blocks: Blocks) -> Self {
        Self::raw_end(End::Raw(stream, 0), blocks)
    }

    fn raw_end(end: End, blocks: Blocks) -> Self {
        Self {
            end,
            blocks,
            readable: true,
            writable: true,
            under_way: None,
            unsettled: VecDeque::new(),
            unsettled_bytes: 0,
            window_bytes: usize::MAX,
            viewers: 0,
            viewers_awaited: 0,
        }
    }

    fn is_ready(&self) -> bool {
        self.readable || self.writable && (self.under_way.is_some() || self.may_send())
    }

    fn may_send(&self) -> bool {
        self.viewers >= self.viewers_awaited && self.unsettled_bytes < self.window_bytes
    }

    fn turn(&mut self, room: &mut [u8]) -> io::Result<()> {
        self.read(room)?;
        let mut share = SHARE_BYTES;
        while self.writable && share > 0 {
            if let End::Line(line) = &mut self.end
                && self.under_way.as_ref().is_none_or(|(_, done)| *done == 0)
                && !line.flush()?
            {
                self.writable = false;
                return Ok(());
            }
            let Some((message, done)) = self.under_way.take().or_else(|| self.next()) else { return Ok(()) };
            match write_message(self.end.stream_mut(), &message, done) {
                Ok(count) => {
                    share = share.saturating_sub(count);
                    if done + count < message.len() {
                        self.under_way = Some((message, done + count));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    (self.under_way, self.writable) = (Some((message, done)), false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn next(&mut self) -> Option<(Message, usize)> {
        if !self.may_send() {
            return None;
        }
        let message = self.blocks.next_message();
        if let End::Line(_) = self.end {
            self.unsettled.push_back((message.sequence, message.len()));
            self.unsettled_bytes += message.len();
        }
        Some((message, 0))
    }

    fn read(&mut self, room: &mut [u8]) -> io::Result<()> {
        let End::Line(line) = &mut self.end else { return Ok(()) };
        while self.readable {
            match line.read(room)? {
                None => self.readable = false,
                Some(Came::Control(Control::Ack { streams })) => {
                    let settled = streams.first().map_or(0, |ack| ack.settled);
                    while let Some((sequence, bytes)) = self.unsettled.front()
                        && *sequence < settled
                    {
                        self.unsettled_bytes -= bytes;
                        self.unsettled.pop_front();
                    }
                }
                Some(Came::Control(Control::Takers { viewers, .. })) => self.viewers = viewers,
                Some(Came::Control(Control::Window { bytes })) => {
                    self.window_bytes = self.window_bytes.min(bytes as usize);
                }
                Some(Came::Control(control)) => answer(line, control)?,
                Some(Came::Block(_) | Came::Part) => {
                    return Err(io::Error::other("a block came to its source"));
                }
            }
        }
        Ok(())
    }
}

struct Sink {
    end: End,
    readable: bool,
    /// Data messages, also as of the last word of progress; and bytes since then.
    messages: u64,
    told_messages: u64,
    untold_bytes: u64,
    told_at: Instant,
    next_sequence: Option<u64>,
}

impl Sink {
    fn viewer(running: &Running) -> io::Result<Self> {
        let mut line = Line::open(running.address, &hello(Role::Subscribe, Epoch::default()), MASK)?;
        line.queue(&Control::Subscribe { selection: Selection::default(), cursors: Vec::new() });
        line.flush()?;
        Ok(Self::new(End::Line(Box::new(line))))
    }

    fn new(end: End) -> Self {
        let told_at = Instant::now();
        Self {
            end,
            readable: true,
            messages: 0,
            told_messages: 0,
            untold_bytes: 0,
            told_at,
            next_sequence: None,
        }
    }

    fn turn(&mut self, now: Instant, room: &mut [u8]) -> io::Result<()> {
        let before = self.end.received_bytes();
        while self.readable && self.end.received_bytes() - before < SHARE_BYTES as u64 {
            let line = match &mut self.end {
                End::Line(line) => line,
                End::Raw(stream, bytes) => {
                    match discard(stream, room) {
                        Ok(count) => *bytes += count as u64,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                        Err(error) => return Err(error),
                    }
                    continue;
                }
            };
            match line.read(room)? {
                None => self.readable = false,
                Some(Came::Control(control)) => answer(line, control)?,
                Some(Came::Part) => {}
                Some(Came::Block(header)) => self.take(&header)?,
            }
        }
        self.untold_bytes += self.end.received_bytes() - before;
        self.tell(now)
    }

    /// A block is whole: none may be missing before it.
    fn take(&mut self, header: &Header) -> io::Result<()> {
        self.messages += 1;
        if header.kind != Kind::Packets {
            return Ok(());
        }
        let (expected, found) = (self.next_sequence, header.sequence);
        if expected.is_some_and(|expected| expected != found) {
            return Err(io::Error::other(format!("block {found} came, expected {}", expected.unwrap_or(0))));
        }
        self.next_sequence = Some(found + 1);
        Ok(())
    }

    fn tell(&mut self, now: Instant) -> io::Result<()> {
        let End::Line(line) = &mut self.end else { return Ok(()) };
        let is_due = self.untold_bytes >= PROGRESS_BYTES as u64 || now - self.told_at >= PROGRESS_TIME;
        if self.messages > self.told_messages && is_due {
            line.queue(&Control::Progress { messages: self.messages });
            (self.told_messages, self.untold_bytes, self.told_at) = (self.messages, 0, now);
        }
        line.flush().map(drop) // the rest goes with the next
    }
}

/// What every client does with what the relay says.
fn answer(line: &mut Line, control: Control) -> io::Result<()> {
    match control {
        Control::Ping { clock_ns } => line.queue(&Control::Pong { ping_ns: clock_ns, clock_ns }),
        Control::Error { reason } => return Err(io::Error::other(format!("the relay says: {reason}"))),
        Control::Skipped { packets, .. } => {
            return Err(io::Error::other(format!("{packets} packets were skipped")));
        }
        _ => {}
    }
    Ok(())
}

/// What a client says first.
pub fn hello(role: Role, epoch: Epoch) -> Control {
    Control::Hello {
        protocol: PROTOCOL,
        role,
        name: format!("load-{epoch}"),
        epoch,
        home: epoch,
        former: Epoch::default(),
        agent: "relay_load".to_owned(),
        clock_ns: 1,
        token: None,
    }
}
