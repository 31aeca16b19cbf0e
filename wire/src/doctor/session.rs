//! A session with a relay, from TLS to the goodbye: who it is, how long its certificate is good for, what its clock says.

use std::io;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use super::Finding;
use super::certificate::{Whose, lifetime};
use super::relay::{Client, Failure};
use crate::clock::{wall_ns, wall_s};
use crate::connection::{Connection, ReadShare, Received};
use crate::credentials::Credentials;
use crate::message::{Control, PROTOCOL, Role, StreamStatus};
use crate::pool::Pool;
use crate::text::printable;

/// For TLS, WebSocket, hello and the answers to it.
pub(super) const SESSION_TIME: Duration = Duration::from_secs(15);
/// Of so many pings the fastest tells the difference of the clocks.
const PINGS: usize = 5;
/// Clocks that differ by more are worth a warning, beyond what the round trip leaves open.
const CLOCKS_NS: i128 = 50_000_000;
const POOL_BYTES: usize = 8 << 20;
const LINK: Token = Token(0);

/// A connection, from TLS to the goodbye.
pub(super) struct Session<'a, 'b> {
    client: &'a Client<'a>,
    findings: &'b mut Vec<Finding>,
    streams: Option<Vec<StreamStatus>>,
    /// Pings sent.
    asked: usize,
    /// Round trip, and by how much the relay's clock is ahead; ns.
    offsets: Vec<(u64, i128)>,
    is_done: bool,
}

impl<'a, 'b> Session<'a, 'b> {
    /// What is found goes to `findings`.
    pub(super) fn new(client: &'a Client<'a>, findings: &'b mut Vec<Finding>) -> Self {
        Self { client, findings, streams: None, asked: 0, offsets: Vec::new(), is_done: false }
    }

    /// Goes from the TCP connection to the goodbye; a viewer brings back what it could see.
    pub(super) fn run(
        mut self,
        stream: TcpStream,
        credentials: &Credentials,
    ) -> Result<Option<Vec<StreamStatus>>, Failure> {
        let started = Instant::now();
        stream.set_nonblocking(true)?;
        let mut poll = Poll::new()?;
        let (pool, mut events) = (Pool::new(POOL_BYTES), Events::with_capacity(16));
        let stream = mio::net::TcpStream::from_std(stream);
        let mut connection = Connection::client(stream, self.client.url, credentials.tls.as_ref(), started)?;
        let both = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(connection.stream_mut(), LINK, both)?;
        while !self.is_done {
            let left = SESSION_TIME.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Err(Failure::Time);
            }
            let timeout =
                if connection.is_ready() { Duration::ZERO } else { left.min(Duration::from_millis(200)) };
            match poll.poll(&mut events, Some(timeout)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
                _ => {}
            }
            for event in &events {
                let readable = event.is_readable() || event.is_read_closed() || event.is_error();
                connection.set_ready(readable, event.is_writable() || event.is_error());
            }
            let now = Instant::now();
            connection.drive(now)?;
            let mut share = ReadShare::default();
            while let Some(received) = connection.receive(now, &pool, &mut share)? {
                self.handle(received, &mut connection, credentials)?;
            }
            connection.handle_timeout(now, wall_ns())?;
            connection.drive(now)?;
        }
        let now = Instant::now();
        connection.close(now, 1000, "");
        let _ = connection.drive(now); // it finds out one way or the other
        Ok(self.streams)
    }

    fn handle(
        &mut self,
        received: Received,
        connection: &mut Connection,
        credentials: &Credentials,
    ) -> Result<(), Failure> {
        let control = match received {
            Received::Open => {
                connection.trust(false);
                self.say_open(connection);
                connection.queue_control(&Control::Hello {
                    protocol: PROTOCOL,
                    role: self.client.role,
                    name: self.client.name.to_owned(),
                    epoch: self.client.epoch,
                    home: self.client.epoch,
                    former: Default::default(),
                    agent: self.client.agent.to_owned(),
                    clock_ns: wall_ns(),
                    token: credentials.token.clone(),
                });
                return Ok(());
            }
            Received::Control(json) => Control::from_json(&json).unwrap_or(Control::Unknown),
            Received::Data(_) => return Ok(()),
        };
        match control {
            Control::Welcome { agent, sees, .. } => {
                self.say_welcome(&agent, &sees);
                self.ping(connection);
            }
            Control::Pong { ping_ns, clock_ns } => {
                let now_ns = wall_ns();
                let round_ns = now_ns.saturating_sub(ping_ns);
                let middle_ns = i128::from(ping_ns) + i128::from(round_ns / 2);
                self.offsets.push((round_ns, i128::from(clock_ns) - middle_ns));
                if self.offsets.len() < PINGS {
                    self.ping(connection);
                } else {
                    self.say_clock();
                    match self.client.role {
                        Role::Subscribe => connection.queue_control(&Control::List),
                        Role::Publish => self.is_done = true,
                    }
                }
            }
            Control::Streams { streams, .. } => {
                self.streams = Some(streams);
                self.is_done = true;
            }
            Control::Error { reason } => return Err(Failure::Refused(reason)),
            _ => {}
        }
        Ok(())
    }

    fn ping(&mut self, connection: &mut Connection) {
        if self.asked < PINGS {
            self.asked += 1;
            connection.queue_control(&Control::Ping { clock_ns: wall_ns() });
        }
    }

    fn say_open(&mut self, connection: &Connection) {
        if let Some(certificate) = connection.peer_certificate() {
            let what = format!("TLS with {}", self.client.url.authority());
            let whose = Whose {
                subject: "relay",
                what: &what,
                renewal: "renew it on the relay's host: relay init DIR --renew, then SIGHUP",
            };
            self.findings.push(lifetime(&whose, certificate.not_after_s, wall_s()));
        }
    }

    fn say_welcome(&mut self, agent: &str, sees: &[String]) {
        let (agent, ours) = (printable(agent), self.client.agent);
        let version = |agent: &str| agent.rsplit('/').next().unwrap_or_default().to_owned();
        let text = format!("welcomed by {agent}");
        self.findings.push(if version(&agent) == version(ours) {
            Finding::ok("relay", text)
        } else {
            Finding::note("relay", format!("{text}, and this is {ours}"))
                .advise("let both have the same version")
        });
        if !sees.is_empty() && self.client.role == Role::Subscribe && !sees.iter().any(|glob| glob == "*") {
            let globs = printable(&sees.join(" "));
            self.findings
                .push(Finding::note("relay", format!("you may see sniffers named {globs}, and no others")));
        }
    }

    fn say_clock(&mut self) {
        let Some((round_ns, offset_ns)) = self.offsets.iter().min().copied() else { return };
        self.findings.push(clocks(round_ns, offset_ns));
    }
}

/// What is to be said of a clock that is ahead of ours by `offset_ns`, told within a round trip of `round_ns`.
fn clocks(round_ns: u64, offset_ns: i128) -> Finding {
    let ms = |ns: i128| ns as f64 / 1e6;
    let open_ns = i128::from(round_ns / 2);
    let side = if offset_ns < 0 { "behind" } else { "ahead of" };
    let text = format!(
        "the relay's clock is {:.1} ms {side} this one, give or take {:.1} ms (round trip {:.1} ms)",
        ms(offset_ns.abs()),
        ms(open_ns),
        ms(i128::from(round_ns))
    );
    if offset_ns.abs() > CLOCKS_NS + open_ns {
        Finding::warning(
            "clock",
            format!("{text}: packets of this host and of others will not be in order"),
            "keep both clocks right, with chrony say; certificates and tokens are measured by them too",
        )
    } else {
        Finding::ok("clock", text)
    }
}

#[cfg(test)]
mod tests {
    use super::super::for_tests::text;
    use super::*;

    #[test]
    fn clocks_are_compared_beyond_what_the_round_trip_leaves_open() {
        let ms = 1_000_000;
        assert!(
            text(&[clocks(2 * 1_000_000, 3 * ms)])
                .starts_with("ok clock: the relay's clock is 3.0 ms ahead of")
        );
        assert!(
            text(&[clocks(400_000_000, -240 * ms)])
                .starts_with("ok clock: the relay's clock is 240.0 ms behind")
        );
        assert!(text(&[clocks(400_000_000, -251 * ms)]).starts_with("warning clock: "));
    }
}
