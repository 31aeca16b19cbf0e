//! The network thread: the connection to the relay, again and again, and what it brings handed to
//! the writer.
//!
//! INVARIANT: nothing is read while the writer's queue is full. Pings still go out, so the relay
//! knows that we live. A viewer that lost its connection does not come back before there is room: it
//! would be stalled at once.

mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use thiserror::Error;
use tracing::{info, warn};
use wire::block::Epoch;
use wire::clock::wall_ns;
use wire::connection::{Connection, ConnectionError, NORMAL_CLOSURE, ReadShare, Received, RelayUrl};
use wire::credentials::{CredentialFiles, Credentials};
use wire::downlink::{Downlink, DownlinkError};
use wire::limited;
use wire::log::FEW;
use wire::message::{Control, MessageError, StreamStatus};
use wire::pool::Pool;
use wire::text::{io_text, printable};
use wire::tls::ClientTls;

use self::session::Session;
use crate::config::Config;
use crate::ledger::{Lasting, Ledger, Line};
use crate::output::say;
use crate::progress::Progress;
use crate::queue::{Item, Queue};
use crate::show::{Figures, Show};
use crate::tally::SharedTally;

/// Most bytes of packed blocks that wait for the writer.
const QUEUE_BYTES: usize = 64 << 20;
/// Memory of the blocks that wait, that are read and that are unpacked, as the pool rounds it up.
const POOL_BYTES: usize = 192 << 20;
/// Longest sleep without an event.
const TICK_TIME: Duration = Duration::from_millis(500);
/// First and longest time until the next attempt to connect.
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A connection that held for this long was a good one: the next attempt comes soon.
const STABLE_TIME: Duration = Duration::from_secs(5);
/// A reader of the output that has not read for this long may be why a connection was lost.
const STALL_TIME: Duration = Duration::from_secs(1);
/// Every stream has ended: this long for one that follows.
const END_GRACE: Duration = Duration::from_millis(250);

const WAKE: Token = Token(0);
const LINK: Token = Token(1);

/// Why the line is down.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum LinkError {
    #[error("{}", io_text(.0))]
    Resolve(io::Error),
    #[error("no address")]
    NoAddress,
    #[error("{}", connection_text(.0))]
    Connection(#[from] ConnectionError),
    #[error("{}", printable(&.0.to_string()))]
    Protocol(#[from] DownlinkError),
    #[error("{}", printable(&.0.to_string()))]
    Message(#[from] MessageError),
    #[error("poll: {}", io_text(.0))]
    Poll(io::Error),
}

fn connection_text(error: &ConnectionError) -> String {
    match error {
        ConnectionError::Io(error) => io_text(error),
        other => printable(&other.to_string()),
    }
}

/// Why the network thread is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A signal.
    Interrupted,
    /// The time is over, or every stream has ended: what waits is still written.
    Done,
    /// The writer has ended.
    WriterEnded,
}

/// Where the line is.
enum Link {
    /// Nothing until then.
    Waiting { until: Instant },
    /// The name is being looked up.
    Resolving { addresses: Receiver<io::Result<Vec<SocketAddr>>> },
    /// Connecting or open.
    Up { connection: Box<Connection>, since: Instant, progress: Progress },
}

/// The network thread's state. See the module's head.
pub struct Network {
    relay: RelayUrl,
    credential_files: CredentialFiles,
    tls: Option<ClientTls>,
    poll: Poll,
    waker: Arc<Waker>,
    tally: SharedTally,
    pool: Pool,
    link: Link,
    session: Session,
    /// Addresses that have not been tried yet in this attempt.
    addresses: Vec<SocketAddr>,
    failures: u32,
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
    show: Show,
    is_closed: bool,
}

impl Network {
    /// Nothing is connected yet. `stop` and `reload` are set, and the waker woken, by signals.
    pub fn new(
        config: &Config,
        tally: SharedTally,
        stop: Arc<AtomicBool>,
        reload: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let agent = format!("ringcast viewer {}", env!("CARGO_PKG_VERSION"));
        let mut downlink = Downlink::new(
            Epoch(getrandom::u64().map_err(io::Error::other)?),
            agent,
            (!config.list).then(|| config.selection.clone()),
        );
        downlink.set_token(config.credentials.token.clone());
        Ok(Self {
            session: Session {
                relay_text: config.relay_text(),
                downlink,
                ledger: Ledger::default(),
                queue: Arc::new(Queue::new(QUEUE_BYTES, Arc::clone(&waker))),
                is_subscribed: false,
                cut_since: None,
                cut_text: String::new(),
                full_since: None,
                absent_until: None,
                live: BTreeSet::new(),
                none_live_since: None,
                list: None,
            },
            relay: config.relay.clone(),
            credential_files: config.credential_files.clone(),
            tls: config.credentials.tls.clone(),
            waker,
            poll,
            tally,
            pool: Pool::new(POOL_BYTES),
            link: Link::Waiting { until: Instant::now() },
            addresses: Vec::new(),
            failures: 0,
            stop,
            reload,
            show: Show::nothing(),
            is_closed: false,
        })
    }

    /// Wakes this thread.
    pub fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    /// What waits for the writer.
    pub fn queue(&self) -> Arc<Queue> {
        Arc::clone(&self.session.queue)
    }

    /// What the blocks come in.
    pub fn pool(&self) -> Pool {
        self.pool.clone()
    }

    /// A line for each set of interfaces, by its name: what became of their packets.
    pub fn lines(&self) -> BTreeMap<String, Line> {
        self.session.ledger.lines(self.session.downlink.streams(), &self.tally.lock())
    }

    /// Connects for the first time, until the subscription stands; `false` if a signal came first.
    pub fn subscribe(&mut self) -> Result<bool, LinkError> {
        self.first(|network| network.session.is_subscribed)
    }

    /// Connects and asks for the list; `None` if a signal came first.
    pub fn fetch_list(&mut self) -> Result<Option<Vec<StreamStatus>>, LinkError> {
        self.first(|network| network.session.list.is_some())?;
        Ok(self.session.list.take())
    }

    fn first(&mut self, is_done: fn(&Self) -> bool) -> Result<bool, LinkError> {
        self.link = self.attempt();
        while !is_done(self) {
            if self.is_stopped() {
                return Ok(false);
            }
            self.turn(None)?;
        }
        Ok(true)
    }

    /// Receives until there is a reason to end.
    pub fn run(&mut self, config: &Config) -> End {
        let leave_at = config.duration.and_then(|time| Instant::now().checked_add(time));
        loop {
            let now = Instant::now();
            if self.session.queue.writer_ended() {
                return End::WriterEnded;
            }
            if self.is_stopped() {
                return End::Interrupted;
            }
            if leave_at.is_some_and(|at| now >= at) {
                return End::Done;
            }
            let ended_at =
                self.session.none_live_since.map(|since| since + END_GRACE).filter(|_| config.until_end);
            if ended_at.is_some_and(|at| now >= at) {
                return End::Done;
            }
            self.take_told();
            self.session.handle_timeout(now);
            wire::log::turn(now);
            self.look(now);
            let deadline = [leave_at, ended_at, self.show.poll_timeout()].into_iter().flatten().min();
            if let Err(error) = self.turn(deadline) {
                self.handle_cut(&error);
            }
        }
    }

    /// A live line from now on, if standard error is a terminal.
    pub fn show_line(&mut self) {
        self.show.start();
    }

    /// The live line goes.
    pub fn hide_line(&mut self) {
        self.show.finish();
    }

    /// Shows where everything stands, when it is time.
    pub fn look(&mut self, now: Instant) {
        if !self.show.is_due(now) {
            return;
        }
        let (received_packets, written_packets, lost_packets) =
            self.session.ledger.totals(&self.tally.lock());
        let figures = Figures {
            received_packets,
            written_packets,
            lost_packets,
            waiting_bytes: self.session.queue.waiting_bytes(),
            streams: self.session.live.len(),
            cut: self.session.cut_since.map(|since| now.saturating_duration_since(since)),
            is_ending: self.is_closed,
        };
        self.show.look(now, &figures);
    }

    /// Nothing is received any more: says goodbye, and settles what is still to be told.
    pub fn close(&mut self) {
        self.is_closed = true;
        if let Link::Up { connection, progress, .. } = &mut self.link {
            let now = Instant::now();
            if let Some(messages) = progress.poll_last() {
                connection.queue_control(&Control::Progress { messages });
            }
            connection.close(now, NORMAL_CLOSURE, "");
            let _ = connection.drive(now); // the relay finds out one way or the other
        }
        self.session.downlink.finish();
        self.session.pass_on();
        for Lasting { key, name, outage } in self.session.ledger.take_lasting() {
            self.session.queue.push(Item::Outage(key, name, outage));
        }
    }

    /// The writer has told which blocks were corrupt: they were not received after all; and which
    /// streams it is done with.
    pub fn take_told(&mut self) {
        let mut tally = self.tally.lock();
        let (corrupt, left) = (std::mem::take(&mut tally.corrupt), std::mem::take(&mut tally.left));
        let left: Vec<_> =
            left.into_iter().map(|key| (key, tally.streams.remove(&key).unwrap_or_default())).collect();
        drop(tally);
        for header in &corrupt {
            self.session.downlink.handle_corrupt(header);
            self.session.ledger.handle_corrupt(header);
        }
        for (key, written) in left {
            let duplicates = self.session.downlink.streams().get(&key).map_or(0, |state| state.duplicates);
            self.session.ledger.fold(key, written, duplicates);
        }
    }

    /// Certificates, key and token are read anew, for the next connection; the one there is goes on. What cannot be used
    /// changes nothing.
    fn reload_credentials(&mut self) {
        match self.credential_files.load(&self.relay) {
            Ok(Credentials { tls, token }) => {
                self.tls = tls;
                self.session.downlink.set_token(token);
                info!("certificates and token were read anew; they count from the next connection on");
            }
            Err(error) => warn!("{error}; nothing is read anew, what was read before stays in use"),
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// The line is down: says so once, and again if it is refused for another reason, and waits before the next attempt.
    fn handle_cut(&mut self, error: &LinkError) {
        let now = Instant::now();
        let was_up = match &mut self.link {
            Link::Up { connection, since, .. } => {
                let is_its_fault = match error {
                    LinkError::Protocol(error) => !matches!(error, DownlinkError::Refused { .. }),
                    other => matches!(other, LinkError::Message(_)),
                };
                if is_its_fault {
                    connection.close(now, 1002, &error.to_string());
                    let _ = connection.drive(now); // to tell it why is a courtesy
                }
                self.session.cut_since.is_none() && now.duration_since(*since) >= STABLE_TIME
            }
            _ => false,
        };
        if was_up {
            self.failures = 0;
        }
        let relay = &self.session.relay_text;
        let refusal = match error {
            LinkError::Protocol(DownlinkError::Refused { reason }) => Some(printable(reason)),
            _ => None,
        };
        if self.session.cut_since.is_none() {
            let text = match &refusal {
                Some(reason) => format!("the relay closed the connection: {reason}"),
                None => error.to_string(),
            };
            let full_time = self.session.full_since.take().map(|since| now.duration_since(since));
            match full_time.filter(|time| *time >= STALL_TIME) {
                Some(time) => limited!(
                    by say,
                    FEW,
                    "{relay}: connection lost: {text}; nothing was read for {} s, since the reader of the output does \
                     not read; connecting again when it does",
                    time.as_secs()
                ),
                None => limited!(by say, FEW, "{relay}: connection lost: {text}; connecting again"),
            }
            self.session.cut_since = Some(now);
            self.session.cut_text = refusal.unwrap_or(text);
        } else if let Some(reason) = refusal.filter(|reason| *reason != self.session.cut_text) {
            limited!(by say, FEW, "{relay}: the relay refused: {reason}; trying again");
            self.session.cut_text = reason;
        } else {
            limited!(debug, FEW, "{relay}: {error}");
        }
        let time = backoff(self.failures, RandomState::new().build_hasher().finish());
        self.failures = self.failures.saturating_add(1);
        self.session.absent_until = None;
        self.addresses.clear();
        self.link = Link::Waiting { until: now + time };
    }

    /// Begins an attempt to connect.
    fn attempt(&self) -> Link {
        let (sender, addresses) = channel();
        let (host, port) = (self.relay.host().to_owned(), self.relay.port());
        let waker = Arc::clone(&self.waker);
        // Looking up a name can take long, and nothing but a thread of its own can be left waiting.
        std::thread::spawn(move || {
            let found = (host.as_str(), port).to_socket_addrs().map(Iterator::collect);
            let _ = sender.send(found); // nobody waits any more
            let _ = waker.wake();
        });
        Link::Resolving { addresses }
    }

    /// Connects to the next address.
    fn connect(&mut self) -> Result<(), LinkError> {
        let address = self.addresses.pop().ok_or(LinkError::NoAddress)?;
        let now = Instant::now();
        #[cfg(target_os = "linux")]
        let stream = wire::tcp::begin_connect(address).map(TcpStream::from_std);
        #[cfg(not(target_os = "linux"))]
        let stream = TcpStream::connect(address);
        let stream = stream.map_err(ConnectionError::Io)?;
        let mut connection = Box::new(Connection::client(stream, &self.relay, self.tls.as_ref(), now)?);
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(connection.stream_mut(), LINK, both).map_err(LinkError::Poll)?;
        self.link = Link::Up { connection, since: now, progress: Progress::default() };
        Ok(())
    }

    /// One turn: waits for something to happen, until `deadline` at most, and deals with it.
    fn turn(&mut self, deadline: Option<Instant>) -> Result<(), LinkError> {
        self.wait(deadline)?;
        if self.reload.swap(false, Ordering::AcqRel) {
            self.reload_credentials();
        }
        let now = Instant::now();
        match &mut self.link {
            Link::Waiting { until } => {
                if now >= *until && self.session.queue.has_room() {
                    self.link = self.attempt();
                }
                return Ok(());
            }
            Link::Resolving { addresses } => match addresses.try_recv() {
                Ok(Ok(mut found)) => {
                    found.reverse();
                    self.addresses = found;
                    return self.connect_any(LinkError::NoAddress);
                }
                Ok(Err(error)) => return Err(LinkError::Resolve(error)),
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(LinkError::NoAddress),
            },
            Link::Up { .. } => {}
        }
        let result = self.exchange(now);
        self.session.pass_on();
        let is_open = matches!(&self.link, Link::Up { connection, .. } if connection.is_open());
        match result {
            Err(error) if !is_open && !self.addresses.is_empty() => self.connect_any(error),
            other => other,
        }
    }

    /// Connects to the first address that does not fail at once.
    fn connect_any(&mut self, mut error: LinkError) -> Result<(), LinkError> {
        while !self.addresses.is_empty() {
            match self.connect() {
                Ok(()) => return Ok(()),
                Err(other) => error = other,
            }
        }
        Err(error)
    }

    fn wait(&mut self, deadline: Option<Instant>) -> Result<(), LinkError> {
        let now = Instant::now();
        let mut timeout = TICK_TIME;
        let report_due = match &self.link {
            Link::Up { progress, .. } => progress.poll_timeout(),
            _ => None,
        };
        for until in [deadline, self.session.absent_until, report_due].into_iter().flatten() {
            timeout = timeout.min(until.saturating_duration_since(now));
        }
        match &self.link {
            // Past that time, the writer's queue is waited for, which wakes us.
            Link::Waiting { until } if *until > now || self.session.queue.has_room() => {
                timeout = timeout.min(until.saturating_duration_since(now));
            }
            Link::Up { connection, .. } if connection.is_ready() && !self.session.queue.is_full() => {
                timeout = Duration::ZERO;
            }
            _ => {}
        }
        let mut events = Events::with_capacity(16);
        match self.poll.poll(&mut events, Some(timeout)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(LinkError::Poll(error)),
        }
        if let Link::Up { connection, .. } = &mut self.link {
            for event in events.iter().filter(|event| event.token() == LINK) {
                let readable = event.is_readable() || event.is_read_closed() || event.is_error();
                connection.set_ready(readable, event.is_writable() || event.is_error());
            }
        }
        Ok(())
    }

    /// Sends and receives.
    fn exchange(&mut self, now: Instant) -> Result<(), LinkError> {
        let Link::Up { connection, progress, .. } = &mut self.link else { return Ok(()) };
        let session = &mut self.session;
        connection.retry_buffer();
        connection.drive(now)?;
        let mut share = ReadShare::default();
        loop {
            if session.queue.is_full() {
                connection.set_paused(now);
                session.full_since.get_or_insert(now);
                // Whoever does not read would not notice that the relay has given up.
                if let Ok(Some(error)) = connection.stream().take_error() {
                    return Err(ConnectionError::Io(error).into());
                }
                break;
            }
            session.full_since = None;
            match connection.receive(now, &self.pool, &mut share)? {
                None => break,
                Some(Received::Open) => {
                    connection.trust(true);
                    session.downlink.handle_connected(wall_ns());
                }
                Some(Received::Control(json)) => {
                    session.downlink.handle_control(Control::from_json(&json)?, wall_ns())?;
                }
                Some(Received::Data(message)) => {
                    progress.handle_message(now, message.len());
                    session.downlink.handle_data(message)?;
                    if let Some(messages) = progress.poll_report(now) {
                        connection.queue_control(&Control::Progress { messages });
                    }
                }
            }
            while let Some(control) = session.downlink.poll_control() {
                connection.queue_control(&control);
            }
            session.pass_on();
        }
        if connection.wants_buffer() {
            connection.set_paused(now);
        }
        if let Some(messages) = progress.poll_report(now) {
            connection.queue_control(&Control::Progress { messages });
        }
        connection.handle_timeout(now, wall_ns())?;
        connection.drive(now)?;
        Ok(())
    }
}

/// Time until the next attempt after so many failures: it doubles up to a bound, and up to half of
/// it is left to chance, so that viewers do not all come at once.
fn backoff(failures: u32, chance: u64) -> Duration {
    let whole = BACKOFF_MIN.saturating_mul(1 << failures.min(10)).min(BACKOFF_MAX);
    let half_ms = (whole.as_millis() / 2) as u64;
    whole / 2 + Duration::from_millis(chance % (half_ms + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_become_rarer_but_never_rare() {
        assert_eq!(backoff(0, 0), Duration::from_millis(250));
        assert_eq!(backoff(1, 0), Duration::from_millis(500));
        for failures in 0..100 {
            for chance in [0, 1, 12_345, u64::MAX] {
                let time = backoff(failures, chance);
                assert!((BACKOFF_MIN / 2..=BACKOFF_MAX).contains(&time));
            }
        }
        assert!(backoff(u32::MAX, 0) >= BACKOFF_MAX / 2);
    }
}
