//! The way in: a connection is let in as a stranger, says hello and proves who it is, and goes to its
//! worker. What it has proved is looked at again whenever it may have changed.
//!
//! Strangers cost little, and not for long. When there are too many, the oldest makes room, first
//! one of the same address: whoever has something to say says it at once, so a flood of connections
//! that say nothing pushes out itself.

use super::*;

/// Most connections that have not said hello, and of these from one address.
const STRANGERS_MAX: usize = 512;
const STRANGERS_PER_ADDRESS_MAX: usize = 128;
/// Most of the budget of memory that strangers hold: one part of so many.
const STRANGERS_SHARE: usize = 8;
/// What a connection holds of the budget, blocks aside: buffers of the socket, of TLS, of messages.
const CONNECTION_BYTES: usize = 64 << 10;

impl Entrance {
    /// A connection has failed before its hello was taken. Whoever could not prove himself is counted elsewhere.
    pub(super) fn count_failure(&mut self, fault: &Fault) {
        match fault {
            Fault::Connection(ConnectionError::Tls(_)) => self.failed_tls += 1,
            Fault::Connection(ConnectionError::Handshake(_) | ConnectionError::HandshakeTime { .. }) => {
                self.failed_http += 1;
            }
            Fault::Denied(_) => {}
            Fault::Connection(_) | Fault::Peer(_) | Fault::Withdrawn(_) | Fault::Left(_) => {
                self.failed_hello += 1
            }
        }
    }
}

impl Worker {
    pub(super) fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(listener) = self.listener.as_ref().filter(|_| self.accepting) else { return };
            match listener.accept() {
                Ok((stream, address)) => {
                    if let Err(text) = self.let_in(stream, address, now) {
                        limited!(warn, FEW, "connection from {address} refused: {text}");
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.accepting = false,
                Err(error) => {
                    // Out of descriptors, or a connection that ended before it was accepted: the
                    // next tick tries again.
                    self.accepting = false;
                    limited!(warn, FEW, "a connection could not be accepted: {error}");
                }
            }
        }
    }

    fn let_in(&mut self, stream: TcpStream, address: SocketAddr, now: Instant) -> Result<(), String> {
        let admission = self.admit(address.ip()).map_err(|refusal| {
            match refusal {
                Refusal::Connections { .. } => self.entrance.refused_connections += 1,
                Refusal::PerAddress { .. } => self.entrance.refused_address += 1,
            }
            refusal.to_string()
        })?;
        self.make_room_for_stranger(admission.address());
        let charge = self.pool.charge(CONNECTION_BYTES).or_else(|| {
            self.shed();
            self.pool.charge(CONNECTION_BYTES)
        });
        let Some(charge) = charge else {
            self.entrance.refused_memory += 1;
            return Err("the memory of --memory is used up".to_owned());
        };
        let connection = Connection::server(stream, self.rights.tls().as_ref(), now);
        let mut connection = connection.map_err(|error| {
            self.entrance.refused_other += 1;
            error.to_string()
        })?;
        connection.set_charge(charge);
        connection.allow_origins(self.origins.now());
        self.entrance.accepted += 1;
        let (role, who, address) = (Role::Stranger, None, address.to_string());
        self.adopt(Newcomer { connection, role, who, address, admission }, now);
        Ok(())
    }

    /// Where the bounds on connections are reached, the oldest stranger that counts makes room.
    fn admit(&mut self, address: IpAddr) -> Result<Admission, Refusal> {
        self.gate.admit(address).or_else(|refusal| {
            let oldest = match refusal {
                Refusal::Connections { .. } => self.strangers.front(),
                Refusal::PerAddress { .. } => {
                    let address = gate::network(address);
                    self.strangers.iter().find(|(_, from)| *from == address)
                }
            };
            let Some((id, _)) = oldest.copied() else { return Err(refusal) };
            self.push_out(id);
            self.gate.admit(address)
        })
    }

    fn make_room_for_stranger(&mut self, address: IpAddr) {
        let most = STRANGERS_MAX.min(self.pool.budget_bytes() / STRANGERS_SHARE / CONNECTION_BYTES);
        let of_address = |(_, from): &&(u64, IpAddr)| *from == address;
        let oldest =
            if self.strangers.iter().filter(of_address).count() >= most.min(STRANGERS_PER_ADDRESS_MAX) {
                self.strangers.iter().find(of_address)
            } else if self.strangers.len() >= most {
                self.strangers.front()
            } else {
                None
            };
        if let Some((id, _)) = oldest.copied() {
            self.push_out(id);
        }
    }

    fn push_out(&mut self, stranger: u64) {
        self.entrance.pushed_out += 1;
        self.remove(stranger);
    }

    /// It has said hello, or is gone.
    pub(super) fn forget_stranger(&mut self, id: u64) {
        self.strangers.retain(|(stranger, _)| *stranger != id);
    }

    /// A stranger says who it is, proves it, and goes to the worker that serves it: the runs of one
    /// spool always to the same, so that a newer connection of it meets the older; viewers in turn.
    pub(super) fn handle_hello(&mut self, id: u64, hello: Control, now: Instant) -> Result<(), Fault> {
        let Control::Hello { protocol, role, name, epoch, home, former, token, .. } = hello else {
            return Ok(());
        };
        if protocol != PROTOCOL {
            let text =
                format!("protocol {protocol}: this relay speaks {PROTOCOL}; upgrade the older of the two");
            return Err(Fault::Peer(text));
        }
        let who = self.identify(id, token.as_ref(), now)?;
        if !who.grant.may_be(role) {
            let what = if role == HelloRole::Publish { "publish" } else { "subscribe" };
            return Err(Fault::Peer(format!("{} may not {what}", who.grant.name().escape_debug())));
        }
        if role == HelloRole::Publish && !who.grant.may_publish(&name) {
            let (who, name) = (who.grant.name().escape_debug(), name.escape_debug());
            return Err(Fault::Peer(format!("{who} may not publish as {name}")));
        }
        let workers = self.inboxes.len();
        let (role, to) = match role {
            HelloRole::Publish => {
                let home = if home == Epoch::default() { epoch } else { home };
                let owner = who.grant.name().to_owned();
                let to = (home.0 % workers as u64) as usize;
                let was_elsewhere = former != Epoch::default() && former != self.instance;
                (Role::Publisher(Run { owner, name, epoch, home, was_elsewhere }), to)
            }
            HelloRole::Subscribe => {
                self.next_viewer_worker += 1;
                (Role::Subscriber(epoch), self.next_viewer_worker % workers)
            }
        };
        let Some(peer) = self.peers.get_mut(&id) else { return Ok(()) };
        peer.connection.trust(matches!(role, Role::Publisher(..)));
        peer.role = role;
        peer.who = Some(who);
        self.forget_stranger(id);
        if to == self.index {
            self.welcome_known(id, now);
            self.do_outputs(now);
            return Ok(());
        }
        let Some(mut peer) = self.peers.remove(&id) else { return Ok(()) };
        let Ok(()) = self.poll.registry().deregister(peer.connection.stream_mut()) else { return Ok(()) };
        peer.connection.set_ready(true, true); // no event will tell the new poll what came before
        let Peer { connection, role, who, address, admission, .. } = peer;
        let newcomer = Newcomer { connection, role, who, address, admission };
        self.inboxes.send(self.index, to, Note::Adopt(Box::new(newcomer)));
        self.wake[to] = true;
        Ok(())
    }

    /// What a stranger proves by its token, or else by its certificate.
    fn identify(&mut self, id: u64, token: Option<&Secret>, now: Instant) -> Result<Who, Fault> {
        let gone = || Fault::Left("gone".to_owned());
        let peer = self.peers.get(&id).ok_or_else(gone)?;
        let address = peer.admission.address();
        if self.rights.asks() && !self.attempts.has_one(address, now) {
            self.attempts.count();
            return Err(Fault::Peer("too many failed attempts from this address: wait a minute".to_owned()));
        }
        let certificate = peer.connection.peer_certificate();
        let what = match (token, &certificate) {
            (Some(_), _) => "token",
            (None, Some(_)) => "certificate",
            (None, None) => "neither token nor certificate",
        };
        self.rights.identify(token, certificate, wall_s()).map_err(|denied| {
            self.attempts.fail(address, now);
            Fault::Denied(format!("{what}: {denied}"))
        })
    }

    /// Greets one that has said who it is, if that still holds: it may have come from another worker.
    pub(super) fn welcome_known(&mut self, id: u64, now: Instant) {
        let Some(peer) = self.peers.get(&id) else { return };
        let checked = peer.who.as_ref().map_or(Ok(()), |who| self.rights.check(who, wall_s()));
        if let Err(why) = checked {
            return self.fail(id, Fault::Denied(why), now);
        }
        match peer.role.clone() {
            Role::Stranger => {}
            Role::Publisher(run) => self.welcome_publisher(id, run, now),
            Role::Subscriber(_) => {
                let sees = peer.who.as_ref().map(|who| who.grant.sees().to_vec()).unwrap_or_default();
                self.send_control(id, &self.welcome(&sees));
            }
        }
    }

    /// Closes those whose right has run out or was withdrawn.
    pub(super) fn check_rights(&mut self, now: Instant) {
        let (generation, now_s) = (self.rights.generation(), wall_s());
        let has_changed = std::mem::replace(&mut self.checked_generation, generation) != generation;
        let mut gone = Vec::new();
        for (id, peer) in &self.peers {
            let Some(who) = peer.who.as_ref().filter(|_| !peer.connection.is_closing()) else { continue };
            let checked = match has_changed {
                true => self.rights.check(who, now_s),
                false if Rights::has_expired(who, now_s) => Err("expired".to_owned()),
                false => Ok(()),
            };
            if let Err(why) = checked {
                gone.push((*id, format!("access of {} ended: {why}", who.grant.name().escape_debug())));
            }
        }
        for (id, why) in gone {
            self.fail(id, Fault::Withdrawn(why), now);
        }
    }

    pub(super) fn handle_subscribe(
        &mut self,
        id: u64,
        run: Epoch,
        selection: Selection,
        cursors: &[Cursor],
        now: Instant,
    ) -> Result<(), Fault> {
        let Some(peer) = self.peers.get_mut(&id) else { return Ok(()) };
        if peer.subscription.is_some() {
            return Err(Fault::Peer("a second subscription".to_owned()));
        }
        let Some(who) = &peer.who else { return Ok(()) };
        let added = self.hub.add_viewer(PeerId(id), run, &selection, &who.grant, cursors);
        added.map_err(|error| Fault::Peer(error.to_string()))?;
        let what = selection_text(&selection);
        let (who, from) = (peer.owner(), &peer.address);
        // An audit is whole: whoever is in it was let in by name. Where nobody is asked, anybody could fill the disk.
        match self.rights.asks() {
            true => info!(target: "audit", ?who, %from, %what, "audit: subscription begins"),
            false => limited!(info, SOME, "{from}: subscription begins: {what}"),
        }
        peer.subscription = Some((selection, now));
        Ok(())
    }

    /// A subscription is over: who, what, from where, how long, how much.
    pub(super) fn end_audit(&mut self, id: u64, why: &str, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some((selection, since)) = peer.subscription.take() else { return };
        let what = selection_text(&selection);
        let (who, from) = (peer.owner(), &peer.address);
        let seconds = now.saturating_duration_since(since).as_secs();
        let delivered = self.hub.delivered(PeerId(id));
        let (packets, captured_bytes) = (delivered.packets, delivered.captured_bytes);
        let (sent_bytes, _) = peer.connection.bytes_sent_and_received();
        if !self.rights.asks() {
            return limited!(
                info,
                SOME,
                "{from}: subscription ends after {seconds} s, {packets} packets: {why}"
            );
        }
        info!(
            target: "audit",
            ?who, %from, %what, seconds, packets, captured_bytes, sent_bytes, %why, "audit: subscription ends"
        );
    }
}

/// `sniffers ["web-*"] interfaces all`, bounded.
fn selection_text(selection: &Selection) -> String {
    let globs = |globs: &[String]| if globs.is_empty() { "all".to_owned() } else { format!("{globs:?}") };
    printable(&format!("sniffers {} interfaces {}", globs(&selection.sniffers), globs(&selection.interfaces)))
}
