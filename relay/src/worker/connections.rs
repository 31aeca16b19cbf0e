//! The connections of a worker: accepted, asked who is there, served in turn, failed alone.

use super::*;

impl Worker {
    /// Puts a connection on the list of those that have something to do, once.
    pub(super) fn list(&mut self, id: u64) {
        if let Some(peer) = self.peers.get_mut(&id)
            && !peer.is_listed
        {
            peer.is_listed = true;
            self.ready.push_back(id);
        }
    }

    pub(super) fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(listener) = self.listener.as_ref().filter(|_| self.accepting) else { return };
            if self.strangers >= STRANGERS_MAX {
                return; // looked at again when one has left
            }
            match listener.accept() {
                Ok((stream, address)) => {
                    let address = address.to_string();
                    let connection = match Connection::server(stream, None, now) {
                        Ok(connection) => connection,
                        Err(error) => {
                            warn!("{address}: {error}");
                            continue;
                        }
                    };
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
    pub(super) fn adopt(&mut self, mut newcomer: Newcomer, now: Instant) {
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
            Role::Publisher(run) => self.welcome_publisher(id, run),
            Role::Subscriber => self.send_control(id, &self.welcome()),
        }
        self.list(id);
        self.serve(id, now);
    }

    pub(super) fn welcome(&self) -> Control {
        let agent = concat!("ringcast-relay/", env!("CARGO_PKG_VERSION")).to_owned();
        Control::Welcome { protocol: PROTOCOL, instance: self.instance, agent, clock_ns: wall_ns() }
    }

    pub(super) fn welcome_publisher(&mut self, id: u64, run: Run) {
        let Run { name, epoch, home } = run;
        self.send_control(id, &self.welcome());
        let address = self.peers.get(&id).map(|peer| peer.address.clone()).unwrap_or_default();
        info!("sniffer {} ({address}) connected", name.escape_debug());
        self.hub.add_publisher(PeerId(id), name, epoch, home, address);
    }

    pub(super) fn send_control(&mut self, id: u64, control: &Control) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.connection.queue_control(control);
            self.list(id);
        }
    }

    /// One connection's turn: reads its messages, feeds it blocks, sends.
    pub(super) fn serve(&mut self, id: u64, now: Instant) {
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
    pub(super) fn feed(&mut self, id: u64, now: Instant) {
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

    pub(super) fn handle_received(&mut self, id: u64, received: Received, now: Instant) -> Result<(), Fault> {
        match received {
            Received::Open => Ok(()),
            Received::Data(message) => {
                let envelope = Envelope::parse(&message).map_err(|error| Fault::Peer(error.to_string()))?;
                let block = message.slice(ENVELOPE_BYTES..);
                self.hub
                    .handle_block(PeerId(id), envelope, block)
                    .map_err(|error| Fault::Peer(error.to_string()))
            }
            Received::Control(json) => {
                let control = Control::from_json(&json).map_err(|error| Fault::Peer(error.to_string()))?;
                self.handle_control(id, control, now)
            }
        }
    }

    pub(super) fn handle_control(&mut self, id: u64, control: Control, now: Instant) -> Result<(), Fault> {
        let Some(peer) = self.peers.get_mut(&id) else { return Ok(()) };
        let refuse = |error: wire::hub::HubError| Fault::Peer(error.to_string());
        match (&peer.role, control) {
            (Role::Stranger, Control::Hello { protocol, role, name, epoch, home, .. }) => {
                if protocol != PROTOCOL {
                    let text = format!(
                        "protocol {protocol}: this relay speaks {PROTOCOL}; upgrade the older of the two"
                    );
                    return Err(Fault::Peer(text));
                }
                let home = if home == Epoch::default() { epoch } else { home };
                self.handle_hello(id, role, Run { name, epoch, home }, now);
                Ok(())
            }
            (_, Control::Hello { .. }) => Err(Fault::Peer("a second hello".to_owned())),
            (_, Control::Ping { clock_ns: ping_ns }) => {
                peer.connection.queue_control(&Control::Pong { ping_ns, clock_ns: wall_ns() });
                Ok(())
            }
            (_, Control::Pong { .. } | Control::Unknown) => Ok(()),
            (Role::Subscriber, Control::Progress { messages }) => {
                self.hub.handle_progress(PeerId(id), messages);
                Ok(())
            }
            (Role::Publisher(..), control @ Control::Skipped { .. }) => {
                self.hub.handle_skipped(PeerId(id), &control);
                Ok(())
            }
            (Role::Publisher(..), Control::End { place, reason }) => {
                self.hub.handle_end(PeerId(id), place, &reason);
                Ok(())
            }
            (_, Control::Error { reason }) => Err(Fault::Left(reason)),
            (Role::Stranger, _) => Err(Fault::Peer("the first message is not a hello".to_owned())),
            (Role::Publisher(..), Control::Stream(announcement)) => {
                self.hub.handle_stream(PeerId(id), announcement).map_err(refuse)
            }
            (Role::Publisher(..), Control::Paced { wants }) => {
                self.hub.handle_paced(PeerId(id), wants);
                Ok(())
            }
            (Role::Publisher(run), Control::Mark { stream, complete_through_ns, .. }) => {
                self.hub.handle_mark(PeerId(id), run.epoch, stream, complete_through_ns);
                Ok(())
            }
            (Role::Subscriber, Control::Subscribe { .. }) if peer.has_subscribed => {
                Err(Fault::Peer("a second subscription".to_owned()))
            }
            (Role::Subscriber, Control::Subscribe { selection, cursors }) => {
                peer.has_subscribed = true;
                self.hub.add_viewer(PeerId(id), &selection, &cursors).map_err(refuse)
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

    /// A stranger says who it is, and goes to the worker that serves it: the runs of one spool always
    /// to the same, so that a newer connection of it meets the older; viewers in turn.
    pub(super) fn handle_hello(&mut self, id: u64, role: HelloRole, run: Run, now: Instant) {
        let workers = self.inboxes.len();
        let (role, to) = match role {
            HelloRole::Publish => {
                let to = (run.home.0 % workers as u64) as usize;
                (Role::Publisher(run), to)
            }
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
            Role::Publisher(run) => self.welcome_publisher(id, run),
            _ => self.send_control(id, &self.welcome()),
        }
        self.do_outputs(now);
    }

    /// Something is wrong with a connection: the peer is told where it can be, and only it.
    pub(super) fn fail(&mut self, id: u64, fault: Fault, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let was_closing = peer.connection.is_closing();
        // It is told once, and closes the connection before it is.
        let is_tls = matches!(fault, Fault::Connection(ConnectionError::Tls(_)));
        let (reason, can_be_told) = match fault {
            Fault::Peer(reason) => (reason, true),
            Fault::Left(reason) => (format!("it said: {}", reason.escape_debug()), false),
            Fault::Connection(ConnectionError::Frame(error)) => (error.to_string(), true),
            // An HTTP answer is on its way.
            Fault::Connection(ConnectionError::Handshake(error)) if was_closing => (error.to_string(), true),
            // So is an alert of TLS.
            Fault::Connection(ConnectionError::Tls(fault)) if was_closing => (fault.to_string(), true),
            Fault::Connection(error) => (error.to_string(), false),
        };
        let is_news = !was_closing || is_tls || matches!(peer.role, Role::Stranger) && can_be_told;
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

    pub(super) fn remove(&mut self, id: u64) {
        if let Some(mut peer) = self.peers.remove(&id) {
            self.strangers -= usize::from(peer.role == Role::Stranger);
            // Closing the descriptor ends it in any case.
            let _ = self.poll.registry().deregister(peer.connection.stream_mut());
        }
    }
}
