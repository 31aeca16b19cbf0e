//! One reactor: its poll, its connections, its hub.
//!
//! A turn: wait for events or notes; serve each connection that is ready, within its share; do
//! what the hub wants done; send acknowledgements. Connections that still have something to do
//! stay listed, and the next wait returns at once.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use tracing::{debug, info, warn};
use wire::block::{BLOCK_BYTES_MAX, Epoch, StreamKey};
use wire::clock::wall_ns;
use wire::connection::{Connection, ConnectionError, ReadShare, Received};
use wire::hub::{Hub, HubConfig, Output, PeerId};
use wire::message::{Control, ENVELOPE_BYTES, Envelope, PROTOCOL, Role as HelloRole};
use wire::pool::Pool;

use crate::config::Config;
use crate::inbox::{Inbox, Inboxes, Note, WAKE};
use crate::limit::LogLimit;
use crate::peer::{Newcomer, Peer, Role};

/// Messages of one connection handled before the others get their turn.
const MESSAGES_PER_TURN: u32 = 64;
/// Connections accepted before those that are there get their turn.
const ACCEPTS_PER_TURN: usize = 64;
/// Most connections that have not said hello; beyond it new ones wait in the kernel.
const STRANGERS_MAX: usize = 512;
/// How often a buffer is looked for while one is wanted: another worker may have freed it.
const STARVED_TICK: Duration = Duration::from_millis(10);
const LISTENER: Token = Token(usize::MAX - 1);
/// How often clocks are checked.
const TICK: Duration = Duration::from_millis(500);
/// Time for the hello.
const HELLO_TIME: Duration = Duration::from_secs(10);
/// A sniffer that stays away for this long is given up, and its streams with it.
const AWAY_TIME: Duration = Duration::from_secs(300);
/// Time for the last bytes when the relay is stopped.
const STOP_TIME: Duration = Duration::from_secs(2);
/// Unsent bytes that the kernel may hold for a connection: more would be old data in front of
/// control messages and of what a slow viewer should skip.
const NOTSENT_LOWAT_BYTES: u32 = 256 << 10;
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
    /// Connections that have not said hello.
    strangers: usize,
    /// Connections that have something to do.
    ready: VecDeque<u64>,
    /// Connections whose reading waits for a buffer.
    starved: Vec<u64>,
    /// What upstream workers were told is settled.
    told_settled: HashMap<StreamKey, u64>,
    /// Workers to wake at the end of the turn.
    wake: Vec<bool>,
    /// Workers for which blocks wait here.
    worker_data: Vec<bool>,
    started: Instant,
    limit: LogLimit,
}

impl Worker {
    /// A worker that has no connections yet.
    pub fn new(
        index: usize,
        instance: Epoch,
        config: &Config,
        pool: Pool,
        inboxes: Arc<Inboxes>,
        inbox: Inbox,
    ) -> Self {
        let mut hub = Hub::new(HubConfig { viewer_queue_bytes: config.viewer_queue_bytes });
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
            strangers: 0,
            ready: VecDeque::new(),
            starved: Vec::new(),
            told_settled: HashMap::new(),
            wake: vec![false; workers],
            worker_data: vec![false; workers],
            started: Instant::now(),
            limit: LogLimit::new(),
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
        while !stop.load(Ordering::Acquire) {
            self.turn(&mut events, tick_due)?;
            let now = Instant::now();
            if now >= tick_due {
                tick_due = now + TICK;
                self.handle_tick(now);
            }
        }
        self.close_all(&mut events)
    }

    fn turn(&mut self, events: &mut Events, tick_due: Instant) -> io::Result<()> {
        let now = Instant::now();
        let can_accept = self.accepting && self.strangers < STRANGERS_MAX;
        let timeout = match self.ready.is_empty() && !can_accept {
            true if self.starved.is_empty() => tick_due.saturating_duration_since(now),
            true => tick_due.saturating_duration_since(now).min(STARVED_TICK),
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

    /// Puts a connection on the list of those that have something to do, once.
    fn list(&mut self, id: u64) {
        if let Some(peer) = self.peers.get_mut(&id)
            && !peer.is_listed
        {
            peer.is_listed = true;
            self.ready.push_back(id);
        }
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(listener) = self.listener.as_ref().filter(|_| self.accepting) else { return };
            if self.strangers >= STRANGERS_MAX {
                return; // looked at again when one has left
            }
            match listener.accept() {
                Ok((stream, address)) => {
                    let connection = Connection::server(stream, now);
                    let address = address.to_string();
                    self.adopt(Newcomer { connection, role: Role::Stranger, address }, now);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.accepting = false,
                Err(error) => {
                    // Out of descriptors, or a connection that ended before it was accepted: the
                    // next tick tries again.
                    self.accepting = false;
                    if let Some(held_back) = self.limit.pass(now) {
                        warn!("a connection could not be accepted: {error}{held_back}");
                    }
                }
            }
        }
    }

    /// Takes a connection as one of our own.
    fn adopt(&mut self, mut newcomer: Newcomer, now: Instant) {
        let id = self.next_id;
        self.next_id += 1;
        let stream = newcomer.connection.stream_mut();
        let _ = socket2::SockRef::from(&stream.as_fd()).set_tcp_notsent_lowat(NOTSENT_LOWAT_BYTES);
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(stream, Token(id as usize), interest) {
            warn!("{}: cannot be polled: {error}", newcomer.address);
            return;
        }
        let role = newcomer.role.clone();
        self.strangers += usize::from(role == Role::Stranger);
        self.peers.insert(id, Peer::new(newcomer, now));
        match role {
            Role::Stranger => {}
            Role::Publisher(name, epoch) => self.welcome_publisher(id, name, epoch),
            Role::Subscriber => self.send_control(id, &self.welcome()),
        }
        self.list(id);
        self.serve(id, now);
    }

    fn welcome(&self) -> Control {
        let agent = concat!("ringcast-relay/", env!("CARGO_PKG_VERSION")).to_owned();
        Control::Welcome { protocol: PROTOCOL, instance: self.instance, agent, clock_ns: wall_ns() }
    }

    fn welcome_publisher(&mut self, id: u64, name: String, epoch: Epoch) {
        self.send_control(id, &self.welcome());
        let address = self.peers.get(&id).map(|peer| peer.address.clone()).unwrap_or_default();
        info!("sniffer {} ({address}) connected", name.escape_debug());
        self.hub.add_publisher(PeerId(id), name, epoch, address);
    }

    fn send_control(&mut self, id: u64, control: &Control) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.connection.queue_control(control);
            self.list(id);
        }
    }

    /// One connection's turn: reads its messages, feeds it blocks, sends.
    fn serve(&mut self, id: u64, now: Instant) {
        let mut share = ReadShare::default();
        for message in 0.. {
            let Some(peer) = self.peers.get_mut(&id) else { return };
            if message == MESSAGES_PER_TURN {
                self.list(id); // whole messages may wait in the connection: no event tells of them
                break;
            }
            let handled = match peer.connection.receive(now, &self.pool, &mut share) {
                Ok(Some(received)) => {
                    let handled = self.handle_received(id, received, now);
                    self.do_outputs(now);
                    handled
                }
                Ok(None) => break,
                Err(error) => Err(Fault::Connection(error)),
            };
            if let Err(fault) = handled {
                self.fail(id, fault, now);
                break;
            }
        }
        self.feed(id, now);
        let Some(peer) = self.peers.get(&id) else { return };
        if peer.connection.wants_buffer() && !self.starved.contains(&id) {
            self.starved.push(id);
        }
        if peer.connection.is_ready() {
            self.list(id);
        }
    }

    /// Gives a connection what the hub has for it, as long as it takes it, and sends.
    fn feed(&mut self, id: u64, now: Instant) {
        // What the hub has to say of a stream, that it is joined above all, goes before its blocks.
        self.do_outputs(now);
        loop {
            let Some(peer) = self.peers.get_mut(&id) else { return };
            let is_viewer = peer.role == Role::Subscriber;
            let had_room = is_viewer && peer.connection.wants_data();
            let mut fed = false;
            while is_viewer
                && peer.connection.wants_data()
                && let Some((envelope, block)) = self.hub.poll_data(PeerId(id))
            {
                peer.connection.queue_data(envelope, block);
                fed = true;
            }
            if let Err(error) = peer.connection.drive(now) {
                return self.fail(id, Fault::Connection(error), now);
            }
            if !is_viewer {
                return;
            }
            self.hub.handle_data_sent(PeerId(id), peer.connection.data_sent());
            // After a flush there may be room that was not there when feeding was tried, and no
            // event would tell.
            let more = peer.connection.is_flushed() && peer.connection.wants_data() && (fed || !had_room);
            if !more {
                return;
            }
        }
    }

    fn handle_received(&mut self, id: u64, received: Received, now: Instant) -> Result<(), Fault> {
        match received {
            Received::Open => Ok(()),
            Received::Data(message) => {
                Envelope::parse(&message).map_err(|error| Fault::Peer(error.to_string()))?;
                let block = message.slice(ENVELOPE_BYTES..);
                self.hub.handle_block(PeerId(id), block).map_err(|error| Fault::Peer(error.to_string()))
            }
            Received::Control(json) => {
                let control = Control::from_json(&json).map_err(|error| Fault::Peer(error.to_string()))?;
                self.handle_control(id, control, now)
            }
        }
    }

    fn handle_control(&mut self, id: u64, control: Control, now: Instant) -> Result<(), Fault> {
        let Some(peer) = self.peers.get_mut(&id) else { return Ok(()) };
        let refuse = |error: wire::hub::HubError| Fault::Peer(error.to_string());
        match (&peer.role, control) {
            (Role::Stranger, Control::Hello { protocol, role, name, epoch, .. }) => {
                if protocol != PROTOCOL {
                    let text = format!(
                        "protocol {protocol}: this relay speaks {PROTOCOL}; upgrade the older of the two"
                    );
                    return Err(Fault::Peer(text));
                }
                self.handle_hello(id, role, name, epoch, now);
                Ok(())
            }
            (_, Control::Hello { .. }) => Err(Fault::Peer("a second hello".to_owned())),
            (_, Control::Ping { clock_ns: ping_ns }) => {
                peer.connection.queue_control(&Control::Pong { ping_ns, clock_ns: wall_ns() });
                Ok(())
            }
            (_, Control::Pong { .. } | Control::Unknown) => Ok(()),
            (_, Control::Error { reason }) => Err(Fault::Left(reason)),
            (Role::Stranger, _) => Err(Fault::Peer("the first message is not a hello".to_owned())),
            (Role::Publisher(..), Control::Stream { stream, interfaces, filter, opened_ns }) => {
                self.hub.handle_stream(PeerId(id), stream, interfaces, filter, opened_ns).map_err(refuse)
            }
            (Role::Publisher(..), Control::Paced) => {
                self.hub.handle_paced(PeerId(id));
                Ok(())
            }
            (Role::Publisher(_, epoch), Control::Mark { stream, complete_through_ns, .. }) => {
                self.hub.handle_mark(PeerId(id), *epoch, stream, complete_through_ns);
                Ok(())
            }
            (Role::Subscriber, Control::Subscribe { .. }) if peer.has_subscribed => {
                Err(Fault::Peer("a second subscription".to_owned()))
            }
            (Role::Subscriber, Control::Subscribe { selection }) => {
                peer.has_subscribed = true;
                self.hub.add_viewer(PeerId(id), &selection).map_err(refuse)
            }
            (Role::Subscriber, Control::List) => {
                peer.connection.queue_control(&Control::Streams { streams: self.hub.list() });
                Ok(())
            }
            (Role::Publisher(..) | Role::Subscriber, _) => {
                Err(Fault::Peer("a message that is not for it to send".to_owned()))
            }
        }
    }

    /// A stranger says who it is, and goes to the worker that serves it: an epoch always to the
    /// same, so that a newer connection of it meets the older; viewers in turn.
    fn handle_hello(&mut self, id: u64, role: HelloRole, name: String, epoch: Epoch, now: Instant) {
        let workers = self.inboxes.len();
        let (role, to) = match role {
            HelloRole::Publish => (Role::Publisher(name, epoch), (epoch.0 % workers as u64) as usize),
            HelloRole::Subscribe => {
                self.next_viewer_worker += 1;
                (Role::Subscriber, self.next_viewer_worker % workers)
            }
        };
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.connection.trust(matches!(role, Role::Publisher(..)));
        peer.role = role.clone();
        self.strangers -= 1;
        if to != self.index {
            let Some(mut peer) = self.peers.remove(&id) else { return };
            let Ok(()) = self.poll.registry().deregister(peer.connection.stream_mut()) else { return };
            let Peer { mut connection, role, address, .. } = peer;
            connection.set_ready(true, true); // no event will tell the new poll what came before
            self.inboxes.send(self.index, to, Note::Adopt(Box::new(Newcomer { connection, role, address })));
            self.wake[to] = true;
            return;
        }
        match role {
            Role::Publisher(name, epoch) => self.welcome_publisher(id, name, epoch),
            _ => self.send_control(id, &self.welcome()),
        }
        self.do_outputs(now);
    }

    fn read_inbox(&mut self, now: Instant) {
        while let Ok((from, note)) = self.inbox.try_recv() {
            let peer = worker_peer(from);
            match note {
                Note::Adopt(newcomer) => self.adopt(*newcomer, now),
                Note::Block(bytes) => {
                    // Blocks may wait at the other worker for room here.
                    self.wake[from] |= self.inboxes.queued_bytes(self.index) >= INBOX_BYTES_MAX / 2;
                    self.inboxes.taken(self.index, bytes.len());
                    // The other worker has checked it; a stream it gave up meanwhile is unknown.
                    if let Err(error) = self.hub.handle_block(peer, bytes) {
                        debug!("worker {from}: {error}");
                    }
                }
                Note::Control(Control::Join { status, next_sequence }) => {
                    self.hub.handle_join(peer, status, next_sequence);
                }
                Note::Control(Control::Gone { key, reason }) => self.hub.give_up(key, &reason),
                Note::Control(Control::Mark { epoch, stream, complete_through_ns }) => {
                    self.hub.handle_mark(peer, epoch, stream, complete_through_ns);
                }
                Note::Control(Control::Takers { viewers, marks }) => {
                    self.hub.handle_worker_takers(peer, viewers, marks);
                }
                Note::Control(control) => self.hub.handle_skipped(&control),
                Note::Shed => self.shed(),
                Note::Settled(key, through) => {
                    self.hub.handle_worker_settled(peer, key, through);
                }
            }
        }
    }

    /// Does what the hub wants done.
    fn do_outputs(&mut self, now: Instant) {
        while let Some(output) = self.hub.poll_output() {
            match output {
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

    /// Passes blocks to other workers, as far as their inboxes have room, and tells them what is
    /// settled here.
    fn tell_workers(&mut self) {
        for other in (0..self.inboxes.len()).filter(|other| *other != self.index) {
            while self.worker_data[other] && self.inboxes.queued_bytes(other) < INBOX_BYTES_MAX {
                match self.hub.poll_data(worker_peer(other)) {
                    Some((_, block)) => {
                        self.inboxes.send(self.index, other, Note::Block(block));
                        self.wake[other] = true;
                    }
                    None => self.worker_data[other] = false,
                }
            }
            let told = &mut self.told_settled;
            for (key, settled) in self.hub.settled_of(worker_peer(other)) {
                if told.insert(key, settled) != Some(settled) {
                    self.inboxes.send(self.index, other, Note::Settled(key, settled));
                    self.wake[other] = true;
                }
            }
            if std::mem::take(&mut self.wake[other]) {
                self.inboxes.wake(other);
            }
        }
        if self.told_settled.len() > 100_000 {
            self.told_settled.clear(); // streams that ended long ago; the rest is told again
        }
    }

    fn send_acks(&mut self, now: Instant) {
        while let Some((PeerId(id), ack)) = self.hub.poll_ack() {
            self.send_control(id, &ack);
            self.feed(id, now);
        }
    }

    /// Connections whose reading waits for a buffer: the viewers that are furthest behind make
    /// room, here and behind the other workers.
    fn feed_starved(&mut self) {
        if self.starved.is_empty() {
            return;
        }
        if self.is_short_of_memory() {
            self.shed();
            for other in (0..self.inboxes.len()).filter(|other| *other != self.index) {
                self.inboxes.send(self.index, other, Note::Shed);
                self.wake[other] = true;
            }
        }
        for id in std::mem::take(&mut self.starved) {
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.connection.retry_buffer();
                self.list(id);
            }
        }
    }

    /// Too little is left for the largest block.
    fn is_short_of_memory(&self) -> bool {
        let budget = self.pool.budget_bytes();
        self.pool.used_bytes() + (BLOCK_BYTES_MAX * 3 / 2).max(budget / 8) > budget
    }

    /// Viewers share blocks, so several may have to lose their queues before memory is free.
    fn shed(&mut self) {
        while self.is_short_of_memory() && self.hub.shed() {}
    }

    fn handle_tick(&mut self, now: Instant) {
        self.accepting = self.listener.is_some();
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
            match peer.connection.handle_timeout(now, clock_ns) {
                Ok(()) if was_flushed && !peer.connection.is_flushed() => self.list(id),
                Ok(()) => {}
                Err(error) => self.fail(id, Fault::Connection(error), now),
            }
        }
        let now_ms = now.duration_since(self.started).as_millis() as u64;
        self.hub.handle_timeout(now_ms, AWAY_TIME.as_millis() as u64);
        self.do_outputs(now);
    }

    /// Something is wrong with a connection: the peer is told where it can be, and only it.
    fn fail(&mut self, id: u64, fault: Fault, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let was_closing = peer.connection.is_closing();
        let (reason, can_be_told) = match fault {
            Fault::Peer(reason) => (reason, true),
            Fault::Left(reason) => (format!("it said: {}", reason.escape_debug()), false),
            Fault::Connection(ConnectionError::Frame(error)) => (error.to_string(), true),
            // An HTTP answer is on its way.
            Fault::Connection(ConnectionError::Handshake(error)) if was_closing => (error.to_string(), true),
            Fault::Connection(error) => (error.to_string(), false),
        };
        let is_news = !was_closing || matches!(peer.role, Role::Stranger) && can_be_told;
        if is_news && let Some(held_back) = self.limit.pass(now) {
            info!("{}: {}{held_back}", peer.title(), printable(&reason));
        }
        let now_ms = now.duration_since(self.started).as_millis() as u64;
        self.hub.remove_peer(PeerId(id), now_ms);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if can_be_told {
            peer.connection.close(now, 1008, &reason);
            if peer.connection.drive(now).is_ok() {
                self.list(id);
                return;
            }
        }
        self.remove(id);
    }

    fn remove(&mut self, id: u64) {
        if let Some(mut peer) = self.peers.remove(&id) {
            self.strangers -= usize::from(peer.role == Role::Stranger);
            // Closing the descriptor ends it in any case.
            let _ = self.poll.registry().deregister(peer.connection.stream_mut());
        }
    }

    /// Tells everyone that the relay stops, within a bound.
    fn close_all(&mut self, events: &mut Events) -> io::Result<()> {
        let deadline = Instant::now() + STOP_TIME;
        self.listener = None;
        self.accepting = false;
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
             {} packets skipped for slow viewers, {} blocks came twice",
            self.index,
            totals.packets_in,
            totals.blocks_in,
            totals.blocks_out,
            totals.packets_skipped,
            totals.duplicates
        );
        Ok(())
    }
}

/// Text of a peer, fit for a log: no line of its own, nothing that a terminal obeys.
fn printable(text: &str) -> String {
    text.chars().map(|one| if one.is_control() { '\u{fffd}' } else { one }).collect()
}

/// What is wrong with a connection.
#[derive(Debug)]
enum Fault {
    /// The connection itself.
    Connection(ConnectionError),
    /// What the peer sent; it is told.
    Peer(String),
    /// The peer told us why it leaves.
    Left(String),
}
