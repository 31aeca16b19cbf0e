//! The line to the relay: looked up, kept out of every ring, connected, served, lost and had again.

use super::*;

impl Sender {
    pub(super) fn connect_if_due(&mut self, now: Instant) {
        if self.connection.is_some() || now < self.retry_at {
            return;
        }
        if let Some(lookup) = &self.lookup {
            let found = match lookup.try_recv() {
                Ok(found) => found,
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => Err(io::Error::other("the lookup failed")),
            };
            self.lookup = None;
            match found {
                Ok(addresses) => self.addresses = addresses.into(),
                Err(error) => return self.lose(now, cause(error)),
            }
        } else if self.addresses.is_empty() {
            return self.look_up(now);
        }
        let Some(address) = self.addresses.pop_front() else {
            return self.lose(now, "the name has no address".to_owned());
        };
        match self.connect_to(address, now) {
            Ok(connection) => self.connection = Some(connection),
            Err(error) => self.lose(now, cause(error)),
        }
    }

    /// Certificates, key and token are read anew, for the next connection; the one there is goes on.
    /// What cannot be used changes nothing.
    pub(super) fn reload_credentials(&mut self) {
        match self.credential_files.load(&self.url) {
            Ok(Credentials { tls, token }) => {
                self.tls = tls;
                self.uplink.set_token(token);
                info!("certificates and token were read anew; they count from the next connection on");
            }
            Err(error) => warn!("{error}; nothing is read anew, what was read before stays in use"),
        }
    }

    /// The cap from now on, also of the connection that is there.
    pub(super) fn set_rate(&mut self, rate_bytes: Option<u64>) {
        if std::mem::replace(&mut self.rate_bytes, rate_bytes) == rate_bytes {
            return;
        }
        if let Some(connection) = &self.connection
            && let Err(error) = pacing::limit(connection.stream(), rate_bytes.unwrap_or(pacing::NO_LIMIT))
        {
            warn!("--rate: {}; the new rate counts from the next connection on", cause(error));
        }
    }

    /// Looks the relay's name up on a thread of its own: a name server may take its time, and
    /// what is captured meanwhile must be taken care of here.
    pub(super) fn look_up(&mut self, now: Instant) {
        if let Ok(address) = self.url.host().parse::<IpAddr>() {
            self.addresses.push_back(SocketAddr::new(address, self.url.port()));
            return self.connect_if_due(now);
        }
        self.begin_capture(now);
        let (sender, receiver) = channel();
        let (host, port, handover) = (self.url.host().to_owned(), self.url.port(), self.handover.clone());
        std::thread::spawn(move || {
            let found = (host.as_str(), port).to_socket_addrs().map(Iterator::collect);
            let _ = sender.send(found); // nobody waits any more when the program ends
            handover.wake();
        });
        self.lookup = Some(receiver);
    }

    /// Binds the local port, has it excluded on every ring, and only then connects.
    pub(super) fn connect_to(&mut self, address: SocketAddr, now: Instant) -> io::Result<Connection> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        let is_on_this_host = Fleet::is_own_address(address.ip());
        tcp::tune_unconnected(&socket, is_on_this_host);
        if let Some(rate_bytes) = self.rate_bytes {
            // The kernel paces the flow: smooth, and all of it counted. What does not fit waits with us.
            pacing::limit(&socket, rate_bytes)?;
        }
        let any: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        socket.bind(&SocketAddr::new(any, 0).into())?;
        let local_port = socket.local_addr()?.as_socket().map_or(0, |local| local.port());
        if let Err(text) = self.exclude(address, local_port, is_on_this_host) {
            // An interface that would capture nothing, or ourselves: nobody would notice.
            self.failure.get_or_insert(text.clone());
            self.begin_stop(now);
            return Err(io::Error::other(text));
        }
        match socket.connect(&address.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EINPROGRESS as i32) => {}
            Err(error) => return Err(error),
        }
        let mut stream = mio::net::TcpStream::from_std(socket.into());
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, CONNECTION, interest)?;
        Connection::client(stream, &self.url, self.tls.as_ref(), now).map_err(io::Error::other)
    }

    /// Keeps our connection out of every ring. The flow before it may still have packets under
    /// way. A relay on this very host also sends to its viewers, over any interface.
    fn exclude(&mut self, relay: SocketAddr, local_port: u16, is_on_this_host: bool) -> Result<(), String> {
        let Packing::Live(fleet) = &mut self.packing else { return Ok(()) };
        if self.include_self {
            return fleet.set_exclusions(&[]).map_err(|error| crate::text(&error));
        }
        self.flows.insert(0, Exclusion::Flow { relay, local_port });
        self.flows.truncate(2);
        let mut exclusions = self.flows.clone();
        if is_on_this_host {
            limited!(
                debug,
                FEW,
                "the relay is on this host: TCP port {} is not captured at all",
                relay.port()
            );
            exclusions.push(Exclusion::Port(relay.port()));
        }
        fleet.set_exclusions(&exclusions).map_err(|error| crate::text(&error))
    }

    /// The line is lost, or was never had: says so once, and tries again later.
    pub(super) fn lose(&mut self, now: Instant, why: String) {
        let why = printable(&why);
        self.line.handle_lost(now, self.uplink.is_streaming(), &why);
        if let Some(mut connection) = self.connection.take() {
            self.sent_on_closed += connection.bytes_sent_and_received().0;
            // The kernel would go on sending what the relay has not acknowledged, for minutes and
            // after the flow's exclusion has given way to later ones. It is kept here and sent anew.
            let _ = SockRef::from(&*connection.stream_mut()).set_linger(Some(Duration::ZERO));
            let _ = self.poll.registry().deregister(connection.stream_mut());
            let ms = self.ms(now);
            self.uplink.handle_disconnected(ms);
        }
        self.update_takers();
        if !self.addresses.is_empty() {
            limited!(debug, FEW, "relay {}: {why}; trying its next address", self.url);
            return;
        }
        if self.first_connection_must_succeed && !self.has_been_connected {
            self.failure.get_or_insert(format!("relay {}: {why}", self.url));
            self.gave_up = true;
            return;
        }
        if self.last_failure.as_ref() != Some(&why) {
            limited!(warn, FEW, "relay {}: {why}; capture goes on, trying again", self.url);
            self.last_failure = Some(why);
        }
        // A connection that is lost at once (to another run that took it over, say) is no reason to hurry.
        let has_stood = |at: Instant| now.saturating_duration_since(at) >= STABLE_TIME;
        if self.connected_at.take().is_some_and(has_stood) {
            self.retry_time = RETRY_TIME_MIN;
        }
        // Many sniffers that lost the same relay must not come back all at once.
        let jitter = f64::from(wall_ns() as u32 % 1000) / 1000.0;
        self.retry_at = now + self.retry_time.mul_f64(0.5 + jitter / 2.0);
        self.retry_time = (self.retry_time * 2).min(RETRY_TIME_MAX);
        self.begin_capture(now);
    }

    /// Capture begins although there is no connection yet to keep out of it.
    pub(super) fn begin_capture(&mut self, now: Instant) {
        if self.flows.is_empty()
            && let Packing::Live(fleet) = &mut self.packing
            && let Err(error) = fleet.set_exclusions(&[])
        {
            self.failure.get_or_insert(crate::text(&error));
            self.begin_stop(now);
        }
    }

    /// Reads what the relay says, and sends what is due.
    pub(super) fn serve_connection(&mut self, now: Instant) {
        if self.connection.is_some()
            && let Err(fault) = self.exchange(now)
        {
            self.lose(now, fault.to_string());
        }
    }

    pub(super) fn exchange(&mut self, now: Instant) -> Result<(), Fault> {
        let (clock_ns, ms) = (wall_ns(), self.ms(now));
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let mut share = ReadShare::default();
        while let Some(received) = connection.receive(now, &self.pool, &mut share)? {
            match received {
                Received::Open => {
                    connection.trust(false);
                    self.uplink.handle_connected(clock_ns, ms);
                }
                Received::Control(json) => {
                    let control =
                        Control::from_json(&json).map_err(|error| Fault::Relay(error.to_string()))?;
                    // Read anew: by it the relay's clock is measured, and this answer came after the turn began.
                    self.uplink.handle_control(control, wall_ns())?;
                }
                Received::Data(_) => return Err(Fault::Relay("it sent a block to a sniffer".to_owned())),
            }
        }
        connection.handle_timeout(now, clock_ns)?;
        if connection.stalled_for(now) >= STALL_TIME {
            return Err(Fault::Stalled);
        }
        if self.uplink.is_streaming() && (!self.has_been_connected || self.last_failure.is_some()) {
            limited!(info, FEW, "relay {}: connected", self.url);
            self.addresses.clear();
            self.has_been_connected = true;
            self.last_failure = None;
            self.connected_at = Some(now);
            self.line.handle_connected(now);
        }
        let is_held = self.detector.as_ref().is_some_and(FeedbackDetector::is_holding);
        loop {
            while let Some(control) = self.uplink.poll_control() {
                connection.queue_control(&control);
            }
            if is_held {
                break;
            }
            let had_room = connection.wants_data();
            let mut fed = false;
            while connection.wants_data()
                && let Some(transmit) = self.uplink.poll_data()
            {
                match transmit {
                    Transmit::Control(control) => connection.queue_control(&control),
                    Transmit::Data(envelope, block) => connection.queue_data(envelope, block),
                }
                fed = true;
            }
            connection.drive(now)?;
            // After a flush there may be room that was not there when feeding was tried.
            let more = connection.is_flushed() && connection.wants_data() && (fed || !had_room);
            if !more {
                break;
            }
        }
        self.update_takers();
        Ok(())
    }
}
