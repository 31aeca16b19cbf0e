//! One reactor: its poll, its connections, its hub.
//!
//! A turn: wait for events or notes; serve each connection that is ready, within its share; do
//! what the hub wants done; send acknowledgements. Connections that still have something to do
//! stay listed, and the next wait returns at once.

mod connections;
mod entrance;
mod others;
mod watched;

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use tracing::info;
use wire::block::{BLOCK_BYTES_MAX, Epoch};
use wire::clock::{wall_ns, wall_s};
use wire::connection::{Connection, ConnectionError, NORMAL_CLOSURE, ReadShare, Received};
use wire::hub::{Awaited, Hub, HubConfig, Output, PeerId, Run};
use wire::limited;
use wire::log::{self, FEW, SOME};
use wire::message::{Control, Cursor, ENVELOPE_BYTES, Envelope, PROTOCOL, Role as HelloRole, Selection};
use wire::pool::Pool;
use wire::secret::Secret;
use wire::service::Heart;
use wire::tcp;
use wire::text::printable;

use crate::config::Config;
use crate::figures::Entrance;
use crate::gate::{self, Admission, Attempts, Gate, Origins, Refusal};
use crate::inbox::{Inbox, Inboxes, Note, WAKE};
use crate::peer::{Newcomer, Peer, Role};
use crate::rights::{Rights, Who};
use crate::summary::{Board, Figures, Summary};

/// The close code of a peer that may not do what it does (RFC 6455, section 7.4.1).
const POLICY_VIOLATION: u16 = 1008;
/// With so many control messages waiting for a viewer, marks are left out.
const MARKS_MAX: usize = 256;
/// Messages of one connection handled before the others get their turn.
const MESSAGES_PER_TURN: u32 = 64;
/// Connections accepted before those that are there get their turn.
const ACCEPTS_PER_TURN: usize = 64;
/// How often a buffer is looked for while one is wanted: another worker may have freed it.
const STARVED_TICK: Duration = Duration::from_millis(10);
const LISTENER: Token = Token(usize::MAX - 1);
/// How often clocks are checked.
const TICK: Duration = Duration::from_millis(500);
/// A peer whose TCP answers but takes nothing for this long has stopped reading: it is closed. A slow
/// one takes a little all the time.
const STALL_TIME: Duration = Duration::from_secs(60);
/// Sniffers are told what has come when this much has, or after this time: each acknowledgement wakes them.
const ACK_BYTES: usize = 1 << 20;
const ACK_TIME: Duration = Duration::from_millis(10);
/// Time until the hello is there, from the accept on.
const HELLO_TIME: Duration = Duration::from_secs(10);
/// A sniffer that stays away for this long is given up, and its streams with it.
const AWAY_TIME: Duration = Duration::from_secs(300);
/// Time for the last bytes when the relay is stopped.
const STOP_TIME: Duration = Duration::from_secs(2);
/// Before it, how long those who are on their way in are waited for.
const SEE_IN_TIME: Duration = Duration::from_millis(500);
/// Most bytes of blocks in another worker's inbox before they wait here, where they are bounded
/// and what overflows is counted.
const INBOX_BYTES_MAX: usize = 8 << 20;
/// Hub peers that are workers have ids from here on; connections count from 1.
const WORKER_PEERS: u64 = 1 << 62;

fn worker_peer(index: usize) -> PeerId {
    PeerId(WORKER_PEERS + index as u64)
}

fn worker_of(peer: PeerId) -> Option<usize> {
    peer.0.checked_sub(WORKER_PEERS).map(|index| index as usize)
}

/// What all workers share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Which run of the relay this is.
    pub instance: Epoch,
    /// The budget of memory.
    pub pool: Pool,
    /// How they reach each other.
    pub inboxes: Arc<Inboxes>,
    /// How many get in.
    pub gate: Gate,
    /// Who may do what.
    pub rights: Arc<Rights>,
    /// Origins of web pages that may connect.
    pub origins: Origins,
    /// Viewers that may come back.
    pub awaited: Awaited,
    /// What all of them did.
    pub board: Arc<Board>,
}

/// One reactor.
pub struct Worker {
    index: usize,
    instance: Epoch,
    poll: Poll,
    inbox: std::sync::mpsc::Receiver<(usize, Note)>,
    inboxes: Arc<Inboxes>,
    hub: Hub,
    pool: Pool,
    listener: Option<TcpListener>,
    /// The listener may have more connections.
    accepting: bool,
    peers: HashMap<u64, Peer>,
    next_id: u64,
    next_viewer_worker: usize,
    gate: Gate,
    rights: Arc<Rights>,
    origins: Origins,
    /// Up to which change of the rights the rights of all peers were looked at.
    checked_generation: u64,
    attempts: Attempts,
    /// Connections that have not said hello, oldest first, and where they come from.
    strangers: VecDeque<(u64, IpAddr)>,
    /// What came of those that wanted in.
    entrance: Entrance,
    /// Connections that have something to do.
    ready: VecDeque<u64>,
    /// Connections whose reading waits for a buffer.
    starved: Vec<u64>,
    /// Bytes of data that have come since acknowledgements were sent.
    unacked_bytes: usize,
    /// When acknowledgements are sent, if any is owed.
    acks_at: Option<Instant>,
    /// Workers to wake at the end of the turn.
    wake: Vec<bool>,
    /// Workers for which blocks wait here.
    worker_data: Vec<bool>,
    started: Instant,
    board: Arc<Board>,
}

impl Worker {
    /// A worker that has no connections yet.
    pub fn new(index: usize, config: &Config, shared: Shared, inbox: Inbox) -> Self {
        let Shared { instance, pool, inboxes, gate, rights, origins, awaited, board } = shared;
        let mut hub = Hub::new(HubConfig {
            viewer_queue_bytes: config.viewer_queue_bytes,
            recent_bytes: config.recent_bytes,
        });
        hub.set_budget(pool.clone());
        hub.set_awaited(awaited);
        for other in (0..inboxes.len()).filter(|other| *other != index) {
            hub.add_worker(worker_peer(other), config.viewer_queue_bytes);
        }
        let workers = inboxes.len();
        Self {
            index,
            instance,
            poll: inbox.poll,
            inbox: inbox.notes,
            inboxes,
            hub,
            pool,
            listener: None,
            accepting: false,
            peers: HashMap::new(),
            next_id: 1,
            next_viewer_worker: 0,
            gate,
            checked_generation: rights.generation(),
            rights,
            origins,
            attempts: Attempts::default(),
            strangers: VecDeque::new(),
            entrance: Entrance::default(),
            ready: VecDeque::new(),
            starved: Vec::new(),
            unacked_bytes: 0,
            acks_at: None,
            wake: vec![false; workers],
            worker_data: vec![false; workers],
            started: Instant::now(),
            board,
        }
    }

    /// This worker accepts.
    pub fn accept_from(&mut self, mut listener: TcpListener) -> io::Result<()> {
        self.poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        self.listener = Some(listener);
        self.accepting = true;
        Ok(())
    }

    /// Turns until told to stop, then closes every connection in order.
    pub fn run(&mut self, stop: &AtomicBool) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut tick_due = Instant::now() + TICK;
        // The first worker speaks for all: that it accepts and the others turn is what the service manager asks.
        let mut heart = self.listener.is_some().then(|| Heart::from_environment(Instant::now()));
        let mut summary = Summary::new(Instant::now());
        while !stop.load(Ordering::Acquire) {
            self.turn(&mut events, tick_due)?;
            let now = Instant::now();
            if now >= tick_due {
                tick_due = now + TICK;
                self.handle_tick(now);
                self.inboxes.note_turn(self.index, now);
                let (totals, peers) = (self.hub.totals(), self.hub.peer_counts());
                let figures = Figures::new(&totals, peers, self.attempts.failed());
                let all = self.board.set(self.index, figures);
                if let Some(heart) = &mut heart {
                    if self.inboxes.all_turn(now) {
                        heart.beat(now);
                    }
                    log::turn(now);
                    summary.look(now, all);
                }
            }
        }
        self.see_in(&mut events)?;
        self.close_all(&mut events)
    }

    /// Those who are on their way in have a moment to say who they are, and to be told what they ask: a restart is to
    /// refuse nobody. No more are accepted: who waits at a socket that outlives us comes to the next relay.
    fn see_in(&mut self, events: &mut Events) -> io::Result<()> {
        let until = Instant::now() + SEE_IN_TIME;
        if let Some(mut listener) = self.listener.take() {
            // A socket of systemd's is not closed with our descriptor of it, and would go on telling.
            let _ = self.poll.registry().deregister(&mut listener);
        }
        self.accepting = false;
        let is_coming = |peer: &Peer| match peer.role {
            Role::Stranger => !peer.connection.is_closing(),
            Role::Subscriber(_) => peer.subscription.is_none() && !peer.connection.is_closing(),
            Role::Publisher(_) => false,
        };
        while Instant::now() < until && self.peers.values().any(is_coming) {
            self.turn(events, until)?;
        }
        Ok(())
    }

    fn turn(&mut self, events: &mut Events, tick_due: Instant) -> io::Result<()> {
        let now = Instant::now();
        let until = self.acks_at.map_or(tick_due, |at| at.min(tick_due)).saturating_duration_since(now);
        let timeout = match self.ready.is_empty() && !self.accepting {
            true if self.starved.is_empty() => until,
            true => until.min(STARVED_TICK),
            false => Duration::ZERO,
        };
        match self.poll.poll(events, Some(timeout)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        let now = Instant::now();
        for event in events.iter() {
            match event.token() {
                LISTENER => self.accepting = true,
                WAKE => {} // the inbox is read in any case
                Token(id) => {
                    if let Some(peer) = self.peers.get_mut(&(id as u64)) {
                        let (readable, writable) = (event.is_readable(), event.is_writable());
                        let closed = event.is_read_closed() || event.is_error();
                        peer.connection.set_ready(readable || closed, writable || closed);
                        self.list(id as u64);
                    }
                }
            }
        }
        self.accept(now);
        self.read_inbox(now);
        self.feed_starved();
        for id in std::mem::take(&mut self.ready) {
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.is_listed = false;
            }
            self.serve(id, now);
        }
        self.do_outputs(now);
        self.send_acks(now);
        self.tell_workers();
        Ok(())
    }

    /// Does what the hub wants done.
    fn do_outputs(&mut self, now: Instant) {
        while let Some(output) = self.hub.poll_output() {
            match output {
                // A mark is a hint for whoever keeps up: it is left out where much waits.
                Output::Control { to, control: Control::Mark { .. } } if self.is_busy(to) => {}
                Output::Control { to, control } => match worker_of(to) {
                    Some(worker) => {
                        self.inboxes.send(self.index, worker, Note::Control(control));
                        self.wake[worker] = true;
                    }
                    None => self.send_control(to.0, &control),
                },
                Output::Data { to } => match worker_of(to) {
                    Some(worker) => self.worker_data[worker] = true,
                    None => self.list(to.0),
                },
                Output::Close { peer, reason } => self.fail(peer.0, Fault::Peer(reason), now),
            }
        }
    }

    /// Much waits for a peer or another worker.
    fn is_busy(&self, to: PeerId) -> bool {
        match worker_of(to) {
            Some(worker) => self.inboxes.queued_bytes(worker) >= INBOX_BYTES_MAX / 2,
            None => self.peers.get(&to.0).is_some_and(|peer| peer.connection.control_waiting() >= MARKS_MAX),
        }
    }

    /// Acknowledges what has come, once it is much or has waited.
    fn send_acks(&mut self, now: Instant) {
        if !self.hub.owes_acks() {
            return;
        }
        let at = *self.acks_at.get_or_insert(now + ACK_TIME);
        if self.unacked_bytes < ACK_BYTES && now < at {
            return;
        }
        (self.unacked_bytes, self.acks_at) = (0, None);
        while let Some((PeerId(id), ack)) = self.hub.poll_ack() {
            self.send_control(id, &ack);
            self.feed(id, now);
        }
    }

    fn handle_tick(&mut self, now: Instant) {
        self.accepting = self.listener.is_some();
        self.check_rights(now);
        let clock_ns = wall_ns();
        for id in self.peers.keys().copied().collect::<Vec<_>>() {
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            let is_silent = peer.role == Role::Stranger && peer.connection.is_open();
            if is_silent && now.saturating_duration_since(peer.since) >= HELLO_TIME {
                self.fail(id, Fault::Peer(format!("no hello within {} s", HELLO_TIME.as_secs())), now);
                continue;
            }
            if peer.connection.wants_buffer() {
                peer.connection.set_paused(now); // it is us who do not read
            }
            let was_flushed = peer.connection.is_flushed();
            let checked = peer.connection.handle_timeout(now, clock_ns);
            if checked.is_ok() && peer.connection.stalled_for(now) >= STALL_TIME {
                self.fail(id, Fault::Peer(format!("has not read for {} s", STALL_TIME.as_secs())), now);
                continue;
            }
            match checked {
                Ok(()) if was_flushed && !peer.connection.is_flushed() => self.list(id),
                Ok(()) => {}
                Err(error) => self.fail(id, Fault::Connection(error), now),
            }
        }
        let now_ms = now.duration_since(self.started).as_millis() as u64;
        self.hub.handle_timeout(now_ms, AWAY_TIME.as_millis() as u64);
        self.do_outputs(now);
    }

    /// Tells everyone that the relay stops, within a bound.
    fn close_all(&mut self, events: &mut Events) -> io::Result<()> {
        let deadline = Instant::now() + STOP_TIME;
        self.acks_at = Some(Instant::now()); // what is not acknowledged comes again
        self.send_acks(Instant::now());
        for id in self.peers.keys().copied().collect::<Vec<_>>() {
            self.end_audit(id, "the relay is stopped", Instant::now());
        }
        let totals = self.hub.totals();
        let (publishers, viewers) = self.hub.peer_counts();
        for peer in self.peers.values_mut() {
            peer.connection.close(Instant::now(), 1001, "the relay is stopped");
        }
        while !self.peers.is_empty() && Instant::now() < deadline {
            let now = Instant::now();
            for id in self.peers.keys().copied().collect::<Vec<_>>() {
                let Some(peer) = self.peers.get_mut(&id) else { continue };
                peer.connection.set_ready(true, true);
                let mut share = ReadShare::default();
                let received = peer.connection.receive(now, &self.pool, &mut share);
                if received.is_err() || peer.connection.drive(now).is_err() {
                    self.remove(id);
                }
            }
            let wait = deadline.saturating_duration_since(Instant::now()).min(Duration::from_millis(50));
            match self.poll.poll(events, Some(wait)) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
        info!(
            "worker {}: {} packets in {} blocks from {publishers} sniffer(s), {} blocks to {viewers} viewer(s), \
             {} packets skipped for slow viewers, {} blocks came twice, {} failed attempts to prove oneself, \
             {} connections pushed out before their hello",
            self.index,
            totals.received.packets,
            totals.received.blocks,
            totals.sent.blocks,
            totals.skipped.packets(),
            totals.duplicates,
            self.attempts.failed(),
            self.entrance.pushed_out
        );
        Ok(())
    }
}

/// What is wrong with a connection.
#[derive(Debug)]
enum Fault {
    /// The connection itself.
    Connection(ConnectionError),
    /// It could not prove itself, and why. It is not told why.
    Denied(String),
    /// What the peer sent; it is told.
    Peer(String),
    /// Its right was withdrawn, or has run out; it is told.
    Withdrawn(String),
    /// The peer told us why it leaves.
    Left(String),
}
