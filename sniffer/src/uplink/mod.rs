//! The sending thread: a mio loop around `wire::uplink`, which decides what goes when.
//!
//! It takes what the packing threads hand over, keeps the connection to the relay, and sees to it
//! that the packing threads never want for a buffer for long.

mod figures;
mod line;
mod pacing;
mod room;
mod spooling;

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use bpf::Exclusion;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tracing::{info, warn};
use wire::block::{Epoch, Header, Kind, StreamKey};
use wire::clock::wall_ns;
use wire::connection::{Connection, ConnectionError, ReadShare, Received, RelayUrl};
use wire::credentials::{CredentialFiles, Credentials};
use wire::limited;
use wire::log::FEW;
use wire::message::Control;
use wire::pool::Pool;
use wire::service::Heart;
use wire::tcp;
use wire::text::printable;
use wire::tls::ClientTls;
use wire::uplink::{Transmit, Uplink, UplinkConfig, UplinkError};

use self::figures::Line;
use self::room::Room;
use crate::config::Config;
use crate::feedback::{FeedbackDetector, Seen, Verdict};
use crate::fleet::Fleet;
use crate::handover::{Handed, Handover};
use crate::losses::SharedLosses;
use crate::read::ReadThread;
use crate::show::Show;
use crate::snapshot::PackedTotals;
use crate::spool::{Closed, Spool, SpoolReply};
use crate::summary::Summary;
use crate::tally::Tally;
use crate::watchdog::{Figures, Watchdog};

const HANDED: Token = Token(0);
const CONNECTION: Token = Token(1);
const LINKS: Token = Token(2);

/// First and longest pause before another attempt to connect.
const RETRY_TIME_MIN: Duration = Duration::from_millis(250);
const RETRY_TIME_MAX: Duration = Duration::from_secs(10);
/// A connection that held for this long was a good one: the next attempt comes soon.
const STABLE_TIME: Duration = Duration::from_secs(1);
/// Longest sleep of the loop.
const TICK: Duration = Duration::from_millis(500);
/// Time at the end for what is captured to be sent and settled; what is not by then is spooled.
const STOP_TIME: Duration = Duration::from_secs(5);
/// Time after that for the disk to take it.
const SPOOL_TIME: Duration = Duration::from_secs(10);
/// A relay that takes nothing for this long, though its TCP answers, hangs: another connection may not.
const STALL_TIME: Duration = Duration::from_secs(60);
/// How often the watchdog looks, and reports are told what was lost.
const WATCH_TIME: Duration = Duration::from_secs(1);

/// What packs: rings, or a file.
pub enum Packing {
    /// Rings.
    Live(Box<Fleet>),
    /// A file.
    File(ReadThread),
}

/// What SIGHUP asks of the sending thread.
#[derive(Debug)]
pub struct Reload {
    is_asked: AtomicBool,
    /// Zero: no cap.
    rate_bytes: AtomicU64,
}

impl Reload {
    /// Nothing is asked; the cap on the uplink is this, in bytes a second.
    pub fn new(rate_bytes: Option<u64>) -> Self {
        Self { is_asked: AtomicBool::new(false), rate_bytes: AtomicU64::new(rate_bytes.unwrap_or(0)) }
    }

    /// The cap is to be this, once asked.
    pub fn set_rate(&self, rate_bytes: Option<u64>) {
        self.rate_bytes.store(rate_bytes.unwrap_or(0), Ordering::Relaxed);
    }

    /// Asks; the thread has to be woken.
    pub fn ask(&self) {
        self.is_asked.store(true, Ordering::Release);
    }

    /// If it was asked, the cap.
    fn take(&self) -> Option<Option<u64>> {
        let is_asked = self.is_asked.swap(false, Ordering::AcqRel);
        is_asked.then(|| Some(self.rate_bytes.load(Ordering::Relaxed)).filter(|rate| *rate > 0))
    }
}

/// How a run ends.
#[derive(Debug)]
pub struct End {
    /// What was done; `None` when there was nobody to send to.
    pub summary: Option<Summary>,
    /// What went wrong, if anything.
    pub failure: Option<String>,
}

/// What the sending thread has in common with those that pack.
pub struct Shared {
    /// Buffers.
    pub pool: Pool,
    /// Somebody merges by time.
    pub marks_wanted: Arc<AtomicBool>,
    /// What was lost, for the reports.
    pub losses: SharedLosses,
}

/// The sending thread.
pub struct Sender {
    poll: Poll,
    handover: Handover,
    handed: Receiver<Handed>,
    url: RelayUrl,
    credential_files: CredentialFiles,
    tls: Option<ClientTls>,
    uplink: Uplink,
    epoch: Epoch,
    /// Zero of the uplink's clock.
    started: Instant,
    pool: Pool,
    losses: SharedLosses,
    spool: Option<Spool>,
    /// What is not settled is being spooled, until then.
    spool_until: Option<Instant>,
    rate_bytes: Option<u64>,
    room: Room,
    watchdog: Watchdog,
    heart: Heart,
    watch_at: Instant,
    handed_blocks: u64,
    packed: PackedTotals,
    packing: Packing,
    marks_wanted: Arc<AtomicBool>,
    connection: Option<Connection>,
    retry_at: Instant,
    retry_time: Duration,
    connected_at: Option<Instant>,
    /// The last failure to connect, so that each is said once.
    last_failure: Option<String>,
    has_been_connected: bool,
    first_connection_must_succeed: bool,
    /// There was nobody to send a file to.
    gave_up: bool,
    /// The relay's name is being looked up.
    lookup: Option<Receiver<io::Result<Vec<SocketAddr>>>>,
    /// Addresses of the relay not tried yet in this attempt.
    addresses: VecDeque<SocketAddr>,
    /// Flows of this and the previous connection.
    flows: Vec<Exclusion>,
    include_self: bool,
    block_timeout: Duration,
    /// Bytes of the pool in use when starved threads were last woken.
    used_when_woken: usize,
    detector: Option<FeedbackDetector>,
    handed_bytes: u64,
    sent_on_closed: u64,
    threads_running: usize,
    stop_at: Option<Instant>,
    failure: Option<String>,
    tally: Tally,
    line: Line,
    show: Show,
}

impl Sender {
    /// A poll and the packing end of its hand-over.
    pub fn channel() -> io::Result<(Poll, Handover, Receiver<Handed>)> {
        let poll = Poll::new()?;
        let (handover, handed) = Handover::new(poll.registry(), HANDED)?;
        Ok((poll, handover, handed))
    }

    /// The sending thread of one run.
    pub fn new(
        config: &Config,
        epoch: Epoch,
        shared: Shared,
        (poll, handover, handed): (Poll, Handover, Receiver<Handed>),
        packing: Packing,
        spool: Option<Spool>,
    ) -> io::Result<Self> {
        let Shared { pool, marks_wanted, losses } = shared;
        let started = Instant::now();
        let is_file = matches!(packing, Packing::File(_));
        let include_self = match &config.source {
            crate::config::Source::Live(live) => live.include_self,
            crate::config::Source::File { .. } => true,
        };
        let threads_running = match &packing {
            Packing::Live(fleet) => fleet.thread_count(),
            Packing::File(_) => 1,
        };
        if let Packing::Live(fleet) = &packing {
            let fd = fleet.monitor().as_fd().as_raw_fd();
            poll.registry().register(&mut SourceFd(&fd), LINKS, Interest::READABLE)?;
        }
        let uplink_config = UplinkConfig {
            name: config.name.clone(),
            agent: crate::AGENT.to_owned(),
            epoch,
            home: spool.as_ref().map_or(epoch, |spool| spool.home),
            memory_bytes: config.memory_bytes,
            has_spool: spool.is_some(),
            is_paced: is_file,
        };
        let mut uplink = Uplink::new(uplink_config, 0);
        uplink.set_token(config.credentials.token.clone());
        uplink.lend_from(pool.clone());
        if let Some(spool) = &spool {
            for (announcement, end) in spool.former.ends(&pool) {
                uplink.handle_former_end(announcement, end);
            }
            spool.evictions.iter().for_each(|evicted| uplink.handle_evicted(*evicted));
        }
        Ok(Self {
            epoch,
            started,
            losses,
            spool,
            spool_until: None,
            rate_bytes: config.rate_bytes,
            room: Room::new(),
            watchdog: Watchdog::new(started),
            heart: Heart::from_environment(started),
            watch_at: started + WATCH_TIME,
            handed_blocks: 0,
            packed: PackedTotals::default(),
            poll,
            handover,
            handed,
            url: config.relay.clone(),
            credential_files: config.credential_files.clone(),
            tls: config.credentials.tls.clone(),
            uplink,
            pool,
            packing,
            marks_wanted,
            connection: None,
            retry_at: Instant::now(),
            retry_time: RETRY_TIME_MIN,
            connected_at: None,
            last_failure: None,
            has_been_connected: false,
            first_connection_must_succeed: is_file,
            gave_up: false,
            lookup: None,
            addresses: VecDeque::new(),
            flows: Vec::new(),
            include_self,
            block_timeout: config.block_timeout,
            used_when_woken: 0,
            detector: if include_self { None } else { FeedbackDetector::new(config.block_timeout) },
            handed_bytes: 0,
            sent_on_closed: 0,
            threads_running,
            stop_at: None,
            failure: None,
            tally: Tally::default(),
            line: Line::new(started),
            show: Show::new(started, !config.quiet),
        })
    }

    /// Sends until the packing ends and all is settled, or `stop` is set and its time is over.
    /// `reload` asks for credentials to be read anew.
    pub fn run(mut self, stop: &AtomicBool, reload: &Reload) -> io::Result<End> {
        let mut events = Events::with_capacity(16);
        loop {
            let now = Instant::now();
            if stop.load(Ordering::Acquire) && self.stop_at.is_none() {
                self.begin_stop(now);
            }
            if let Some(rate_bytes) = reload.take() {
                self.reload_credentials();
                self.set_rate(rate_bytes);
            }
            self.take_handed();
            self.connect_if_due(now);
            self.serve_connection(now);
            self.serve_spool(now);
            self.watch_room(now);
            self.free_memory();
            self.watch_feedback(now);
            self.watch(now);
            self.look(now);
            if self.is_done(now) {
                break;
            }
            let timeout = self.timeout(Instant::now());
            match self.poll.poll(&mut events, Some(timeout)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other?,
            }
            for event in events.iter() {
                match (event.token(), &mut self.connection, &mut self.packing) {
                    (CONNECTION, Some(connection), _) => {
                        let closed = event.is_read_closed() || event.is_error();
                        connection.set_ready(event.is_readable() || closed, event.is_writable() || closed);
                    }
                    (LINKS, _, Packing::Live(fleet)) => fleet.handle_link_events(),
                    _ => {} // the hand-over is looked at in any case
                }
            }
        }
        Ok(self.finish())
    }

    /// Capture stops; what was captured has a bounded time to leave.
    fn begin_stop(&mut self, now: Instant) {
        wire::service::stopping();
        match &mut self.packing {
            Packing::Live(fleet) => fleet.stop(),
            Packing::File(file) => file.stop(),
        }
        self.stop_at.get_or_insert(now + STOP_TIME + self.block_timeout);
    }

    fn is_done(&self, now: Instant) -> bool {
        if self.threads_running == 0 && self.uplink.is_settled() {
            return true;
        }
        if let Some(until) = self.spool_until {
            return (self.threads_running == 0 && self.uplink.is_spooled()) || now >= until;
        }
        self.gave_up || (self.spool.is_none() && self.stop_at.is_some_and(|at| now >= at))
    }

    /// The uplink's clock.
    fn ms(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_millis() as u64
    }

    fn timeout(&self, now: Instant) -> Duration {
        if self.connection.as_ref().is_some_and(|connection| connection.is_ready() && !self.is_held()) {
            return Duration::ZERO;
        }
        let mut until = now + TICK;
        if self.connection.is_none() && self.lookup.is_none() {
            until = until.min(self.retry_at);
        }
        if let Some(at) = self.uplink.poll_timeout() {
            until = until.min(self.started + Duration::from_millis(at));
        }
        // What is not sent by `stop_at` is spooled until `spool_until`.
        for at in [self.spool_until.or(self.stop_at), Some(self.watch_at)].into_iter().flatten() {
            until = until.min(at.max(now));
        }
        if let Some(at) = self.show.poll_timeout() {
            until = until.min(at.max(now));
        }
        if let Some(detector) = &self.detector {
            until = until.min(detector.next_check(now).max(now + Duration::from_millis(1)));
        }
        until.saturating_duration_since(now)
    }

    /// Takes what the packing threads have handed over.
    fn take_handed(&mut self) {
        while let Ok(handed) = self.handed.try_recv() {
            match handed {
                Handed::Stream(key, description) => {
                    let announcement = description.announcement(key);
                    let names = || announcement.interfaces.join(",");
                    self.tally.handle_stream(key.stream, description.file.clone().unwrap_or_else(names));
                    self.uplink.handle_announcement(announcement);
                }
                Handed::Block(block) => {
                    self.handed_bytes += block.byte_len() as u64;
                    self.handed_blocks += 1;
                    self.packed.add(block.header());
                    if let Some(detector) = &mut self.detector {
                        let Header { time_min_ns, byte_count, .. } = *block.header();
                        detector.handle_captured(time_min_ns, byte_count.into());
                    }
                    if block.header().end {
                        self.tally.handle_end(block.header().key.stream);
                    }
                    // When blocks after it are spooled, it may be with the relay, and here no more.
                    if block.header().kind == Kind::Description
                        && let Some(spool) = &self.spool
                    {
                        spool.thread.describe(block.plain());
                    }
                    self.uplink.handle_block(block);
                }
                Handed::Mark(stream, through_ns) => {
                    // It must not overtake blocks that wait in the connection.
                    if self.connection.as_ref().is_some_and(Connection::is_flushed) {
                        self.uplink.handle_mark(stream, through_ns);
                    }
                }
                Handed::Report { stream, report, thread, ring } => {
                    self.tally.handle_report(stream, &report, thread, ring);
                }
                Handed::Spool(reply) => match reply {
                    SpoolReply::Appended(is_written) => self.uplink.handle_appended(is_written),
                    SpoolReply::Loaded(loaded) => self.uplink.handle_loaded(loaded),
                    SpoolReply::Evicted(evicted) => {
                        evicted.into_iter().for_each(|one| self.uplink.handle_evicted(one));
                    }
                },
                Handed::Look(reply) => {
                    // Who asked may have gone; he waits for one answer, and there is room for it.
                    let _ = reply.try_send(Box::new(self.snapshot(Instant::now())));
                }
                Handed::Ended(result) => {
                    self.threads_running = self.threads_running.saturating_sub(1);
                    if let Err(text) = result {
                        self.failure.get_or_insert(text);
                    }
                }
            }
        }
    }

    fn is_held(&self) -> bool {
        self.detector.as_ref().is_some_and(FeedbackDetector::is_holding)
    }

    fn update_takers(&mut self) {
        self.marks_wanted.store(self.uplink.marks_wanted(), Ordering::Release);
        if let Packing::File(file) = &self.packing {
            let retained = self.uplink.totals().retained_bytes as u64;
            file.update(self.handed_bytes - retained, self.uplink.viewers(), self.uplink.window_bytes());
        }
    }

    /// Lets go of what must be let go of, so that packing does not want for buffers.
    fn free_memory(&mut self) {
        let high = self.pool.budget_bytes() / 4 * 3;
        for _ in 0..8 {
            let (used, retained) = (self.pool.used_bytes(), self.uplink.totals().retained_bytes);
            if used <= high || retained == 0 {
                break;
            }
            // A buffer is larger than its block: some rounds may be needed.
            self.uplink.relieve(retained.saturating_sub((used - high).max(retained / 16)));
        }
        // Who starves is woken when something became free, or it would wake us in turn, for ever.
        let used = self.pool.used_bytes();
        if used <= high || used < self.used_when_woken {
            match &self.packing {
                Packing::Live(fleet) => fleet.buffer_is_free(),
                Packing::File(file) => file.buffer_is_free(),
            }
        }
        self.used_when_woken = used;
    }

    /// Tells the packing threads how the line stands: whether bytes are dear, how much waits, whether masked blocks are
    /// wanted.
    fn watch_room(&mut self, now: Instant) {
        let is_behind = self.room.look(now, self.uplink.waiting_bytes() > 0);
        let is_cut = !self.uplink.is_streaming() || self.uplink.has_spooled();
        self.handover.set_room_is_short(is_behind || is_cut || self.rate_bytes.is_some());
        // Without a line what comes is packed, for memory or the spool; and a hold wants to know what comes.
        let waits = !is_cut && !self.is_held();
        let waiting_bytes = if waits { self.uplink.live_waiting_bytes() as u64 } else { 0 };
        self.handover.set_gone(self.handed_bytes.saturating_sub(waiting_bytes));
        if self.handover.line_has_room()
            && let Packing::Live(fleet) = &self.packing
        {
            fleet.line_has_room();
        }
        // The disk is given plain bytes.
        let takes_pages = self.connection.as_ref().is_some_and(Connection::takes_pages);
        self.handover.set_masks_wanted(!is_cut && takes_pages);
    }

    fn watch_feedback(&mut self, now: Instant) {
        let Some(detector) = &mut self.detector else { return };
        let Packing::Live(fleet) = &self.packing else { return };
        if detector.is_holding() && self.pool.used_bytes() > self.pool.budget_bytes() / 2 {
            detector.give_up(now); // finding out must not cost packets
        }
        let sent = self.connection.as_ref().map_or(0, |one| one.bytes_sent_and_received().0);
        let seen = Seen {
            captured_packets: self.packed.packets,
            captured_bytes: self.packed.captured_bytes,
            sent_bytes: self.sent_on_closed + sent,
            under_way_bytes: self.uplink.totals().retained_bytes.saturating_sub(self.uplink.waiting_bytes())
                as u64,
            interfaces: fleet.interface_count() as u64,
        };
        match detector.check(now, wall_ns(), seen) {
            Verdict::Normal | Verdict::Hold => {}
            Verdict::Feedback { before, held } => {
                let text = format!(
                    "interface {}: captures the sniffer's own uplink ({before} bytes/s, {held} while it was held); \
                     the relay is reached through a proxy or tunnel whose packets the filter cannot know: \
                     exclude them with -f, or write --include-self",
                    fleet.interface_names().join(", ")
                );
                self.failure.get_or_insert(text);
                self.detector = None;
                self.begin_stop(now);
            }
        }
    }

    /// Shows where everything stands, when it is time.
    fn look(&mut self, now: Instant) {
        if self.show.is_due(now) {
            let snapshot = self.snapshot(now);
            let file = match &self.packing {
                Packing::File(file) => Some((file.progress(), self.uplink.viewers())),
                Packing::Live(_) => None,
            };
            self.show.look(now, &snapshot, file);
        }
    }

    /// Closes the connection in order, and sums up.
    fn finish(mut self) -> End {
        self.show.finish();
        self.take_handed();
        if let Some(connection) = &mut self.connection {
            let now = Instant::now();
            connection.close(now, 1000, "done");
            let _ = connection.drive(now); // everything that counts is settled or counted by now
        }
        let closed = self.close_spool();
        let summary = Summary {
            tally: std::mem::take(&mut self.tally),
            lost: self.uplink.lost_in_all(),
            totals: self.uplink.totals(),
            unsettled_packets: if closed.is_some() { 0 } else { self.uplink.retained_packets() },
            spooled_packets: closed.map(|closed| closed.packets),
            is_file: matches!(self.packing, Packing::File(_)),
        };
        End { summary: (!self.gave_up).then_some(summary), failure: self.failure.take() }
    }
}

/// The cause of an error, as a person reads it.
fn cause(error: io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((text, _)) => text.to_lowercase(),
        None => text,
    }
}

/// Why the line is given up.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("{}", connection_text(.0))]
    Connection(#[from] ConnectionError),
    #[error("{0}")]
    Uplink(#[from] UplinkError),
    #[error("the relay has not read for {} s", STALL_TIME.as_secs())]
    Stalled,
    #[error("the relay broke the protocol: {0}")]
    Relay(String),
}

fn connection_text(error: &ConnectionError) -> String {
    match error {
        ConnectionError::Io(error) => cause(io::Error::new(error.kind(), error.to_string())),
        other => {
            limited!(debug, FEW, "{other:?}");
            other.to_string()
        }
    }
}
