//! The connections of a worker: adopted, served in turn, failed alone.

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

    /// Takes a connection as one of our own.
    pub(super) fn adopt(&mut self, mut newcomer: Newcomer, now: Instant) {
        let id = self.next_id;
        self.next_id += 1;
        let stream = newcomer.connection.stream_mut();
        let ends = stream.local_addr().and_then(|ours| Ok((ours.ip(), stream.peer_addr()?.ip())));
        let is_on_this_host = ends.is_ok_and(|(ours, theirs)| tcp::is_within_host(ours, theirs));
        tcp::tune(&stream.as_fd(), is_on_this_host);
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(stream, Token(id as usize), interest) {
            limited!(warn, FEW, "{}: cannot be polled: {error}", newcomer.address);
            return;
        }
        let (role, from) = (newcomer.role.clone(), newcomer.admission.address());
        self.peers.insert(id, Peer::new(newcomer, now));
        match role {
            Role::Stranger => self.strangers.push_back((id, from)),
            Role::Publisher(_) | Role::Subscriber(_) => self.welcome_known(id, now),
        }
        self.list(id);
        self.serve(id, now);
    }

    /// What a peer is greeted with that may see sniffers by these globs.
    pub(super) fn welcome(&self, sees: &[String]) -> Control {
        Control::Welcome {
            protocol: PROTOCOL,
            instance: self.instance,
            agent: concat!("ringcast-relay/", env!("CARGO_PKG_VERSION")).to_owned(),
            clock_ns: wall_ns(),
            sees: if sees.iter().any(|glob| glob == "*") { Vec::new() } else { sees.to_vec() },
        }
    }

    pub(super) fn welcome_publisher(&mut self, id: u64, run: Run, now: Instant) {
        let Some(peer) = self.peers.get(&id) else { return };
        let (title, address) = (peer.title(), peer.address.clone());
        if let Err(error) = self.hub.add_publisher(PeerId(id), run, address) {
            return self.fail(id, Fault::Peer(error.to_string()), now);
        }
        let owner = self.peers.get(&id).map(Peer::owner).filter(|_| self.rights.asks());
        let owner = owner.map(|owner| format!(" as {}", owner.escape_debug())).unwrap_or_default();
        limited!(info, SOME, "{title} connected{owner}");
        self.send_control(id, &self.welcome(&[]));
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
            let is_viewer = matches!(peer.role, Role::Subscriber(_));
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
                self.unacked_bytes += block.len();
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
        let is_told_to_others =
            matches!(control, Control::Stream(_) | Control::Skipped { .. } | Control::End { .. });
        if is_told_to_others && !peer.allowance.take(now) {
            return Err(Fault::Peer("it announces, skips or ends over 500 streams a second".to_owned()));
        }
        match (&peer.role, control) {
            (Role::Stranger, hello @ Control::Hello { .. }) => self.handle_hello(id, hello, now),
            (_, Control::Hello { .. }) => Err(Fault::Peer("a second hello".to_owned())),
            (_, Control::Ping { clock_ns: ping_ns }) => {
                peer.connection.queue_control(&Control::Pong { ping_ns, clock_ns: wall_ns() });
                Ok(())
            }
            (_, Control::Pong { .. } | Control::Unknown) => Ok(()),
            (Role::Subscriber(_), Control::Progress { messages }) => {
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
            (Role::Subscriber(run), Control::Subscribe { selection, cursors }) => {
                let run = *run;
                self.handle_subscribe(id, run, selection, &cursors, now)
            }
            (Role::Subscriber(_), Control::List) => {
                let Some(who) = &peer.who else { return Ok(()) };
                let (streams, omitted) = self.hub.list(|name| who.grant.may_see(name));
                peer.connection.queue_control(&Control::Streams { streams, omitted });
                Ok(())
            }
            (Role::Publisher(..) | Role::Subscriber(_), _) => {
                Err(Fault::Peer("a message that is not for it to send".to_owned()))
            }
        }
    }

    /// Something is wrong with a connection: the peer is told where it can be, and only it.
    pub(super) fn fail(&mut self, id: u64, fault: Fault, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let was_closing = peer.connection.is_closing();
        if peer.role == Role::Stranger && !std::mem::replace(&mut peer.has_failed, true) {
            self.entrance.count_failure(&fault);
        }
        let (mut code, mut denied) = (POLICY_VIOLATION, None);
        // It is told once, and closes the connection before it is.
        let is_tls = matches!(fault, Fault::Connection(ConnectionError::Tls(_)));
        // A viewer that closes in order is done; one that was cut, or that we close, comes back.
        let for_good =
            matches!(&fault, Fault::Connection(ConnectionError::Closed { code: NORMAL_CLOSURE, .. }));
        let is_withdrawn = matches!(fault, Fault::Withdrawn(_));
        let (reason, can_be_told) = match fault {
            Fault::Peer(reason) | Fault::Withdrawn(reason) => (reason, true),
            Fault::Denied(why) => {
                denied = Some(why);
                ("access denied".to_owned(), true)
            }
            Fault::Left(reason) => (format!("it said: {}", reason.escape_debug()), false),
            Fault::Connection(ConnectionError::Frame(error)) => {
                code = error.close_code();
                (error.to_string(), true)
            }
            // An HTTP answer is on its way.
            Fault::Connection(ConnectionError::Handshake(error)) if was_closing => (error.to_string(), true),
            // So is an alert of TLS.
            Fault::Connection(ConnectionError::Tls(fault)) if was_closing => (fault.to_string(), true),
            Fault::Connection(error) => (error.to_string(), false),
        };
        // It may repeat what the peer sent, up to a whole message: neither the log nor the peer gets that.
        let reason = printable(&reason);
        let is_news = !was_closing || is_tls || matches!(peer.role, Role::Stranger) && can_be_told;
        if is_news {
            // What one kind is held back for does not hide another: strangers those who are known, noise those who try.
            match (&denied, &peer.role) {
                (Some(why), _) => {
                    limited!(info, FEW, "{}: {reason}: {}", peer.title(), printable(why));
                }
                // Peers do not cause it: it is the operator's will, or the end of a term.
                (None, _) if is_withdrawn => info!("{}: {reason}", peer.title()),
                (None, Role::Stranger) => limited!(info, FEW, "{}: {reason}", peer.title()),
                (None, _) => limited!(info, SOME, "{}: {reason}", peer.title()),
            }
        }
        if is_tls && peer.role == Role::Stranger {
            self.attempts.count();
        }
        let now_ms = now.duration_since(self.started).as_millis() as u64;
        self.end_audit(id, &reason, now);
        self.hub.remove_peer(PeerId(id), for_good, now_ms);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if can_be_told {
            peer.connection.close(now, code, &reason);
            if peer.connection.drive(now).is_ok() {
                self.list(id);
                return;
            }
        }
        self.remove(id);
    }

    pub(super) fn remove(&mut self, id: u64) {
        if let Some(mut peer) = self.peers.remove(&id) {
            self.forget_stranger(id);
            // Closing the descriptor ends it in any case.
            let _ = self.poll.registry().deregister(peer.connection.stream_mut());
        }
    }
}
