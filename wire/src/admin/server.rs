//! The thread that serves: accepts, reads a request, writes an answer, closes.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use tracing::{debug, warn};

use super::http::{Answer, REQUEST_BYTES_MAX, Request, Target};
use super::{Admin, Picture, Subject};
use crate::metrics::Exposition;
use crate::metrics::table::process::BUILD_INFO;

/// Connections at a time; one more has the oldest make room.
pub(super) const CLIENTS_MAX: usize = 16;
/// What is read of a client after its request, at most: to close with unread bytes would take the answer from it.
const DISCARDED_BYTES_MAX: usize = 64 << 10;
/// Connections that are accepted before those that are there get their turn.
const ACCEPTS_PER_TURN: usize = 64;
/// The pause after an accept that failed: there may be no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
const LISTENER: Token = Token(usize::MAX);

/// See the module's head.
pub(super) struct Server<S> {
    poll: Poll,
    listener: TcpListener,
    #[cfg(target_os = "linux")]
    process: crate::metrics::process::Process,
    build: (&'static str, &'static str),
    client_time: Duration,
    subject: S,
    /// By age.
    clients: BTreeMap<usize, Client>,
    next_id: usize,
    /// When the listener is looked at next, beside its events.
    accept_at: Option<Instant>,
}

impl<S: Subject> Server<S> {
    pub fn new(
        poll: Poll,
        admin: Admin,
        build: (&'static str, &'static str),
        subject: S,
    ) -> io::Result<Self> {
        let mut listener = admin.listener;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self {
            poll,
            listener,
            #[cfg(target_os = "linux")]
            process: admin.process,
            build,
            client_time: admin.client_time,
            subject,
            clients: BTreeMap::new(),
            next_id: 0,
            accept_at: Some(Instant::now()),
        })
    }

    /// Serves until the poll fails.
    pub fn run(&mut self) {
        let mut events = Events::with_capacity(2 * CLIENTS_MAX);
        loop {
            if let Err(error) = self.turn(&mut events) {
                warn!("admin port: closed: {error}");
                return;
            }
        }
    }

    fn turn(&mut self, events: &mut Events) -> io::Result<()> {
        let ends = self.clients.first_key_value().map(|(_, client)| client.ends_at);
        let timeout = ends.into_iter().chain(self.accept_at).min();
        let timeout = timeout.map(|at| at.saturating_duration_since(Instant::now()));
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let now = Instant::now();
        if self.accept_at.is_some_and(|at| now >= at) || events.iter().any(|event| event.token() == LISTENER)
        {
            self.accept(now);
        }
        self.clients.retain(|_, client| now < client.ends_at);
        let mut asked = Vec::new();
        // A new client is looked at without an event: its request may be there already.
        for (id, client) in &mut self.clients {
            if let Some(target) = client.serve() {
                asked.push((*id, target));
            }
        }
        if !asked.is_empty() {
            self.answer(asked);
        }
        self.clients.retain(|_, client| !matches!(client.state, State::Done));
        Ok(())
    }

    fn accept(&mut self, now: Instant) {
        self.accept_at = None;
        for _ in 0..ACCEPTS_PER_TURN {
            match self.listener.accept() {
                Ok((mut stream, _)) => {
                    let interest = Interest::READABLE | Interest::WRITABLE;
                    if let Err(error) =
                        self.poll.registry().register(&mut stream, Token(self.next_id), interest)
                    {
                        debug!("admin port: a connection cannot be polled: {error}");
                        continue;
                    }
                    if self.clients.len() >= CLIENTS_MAX {
                        self.clients.pop_first();
                    }
                    self.clients.insert(self.next_id, Client::new(stream, now + self.client_time));
                    self.next_id += 1;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    debug!("admin port: a connection could not be accepted: {error}");
                    self.accept_at = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
        self.accept_at = Some(now); // there may be more
    }

    /// One look at the program answers all who ask now.
    fn answer(&mut self, asked: Vec<(usize, Target)>) {
        let picture = self.subject.look();
        let mut answers: [Option<Bytes>; 3] = [None, None, None];
        for (id, target) in asked {
            let Some(client) = self.clients.get_mut(&id) else { continue };
            let answer = answers[target as usize].get_or_insert_with(|| {
                match (&picture, target) {
                    (Err(silent), _) => Answer::unwell(silent),
                    (Ok(Picture { unwell, .. }), Target::Health) if unwell.is_empty() => Answer::well("ok"),
                    (Ok(Picture { unwell, .. }), Target::Health) => Answer::unwell(&unwell.join("\n")),
                    (Ok(Picture { unready, .. }), Target::Readiness) if unready.is_empty() => {
                        Answer::well("ready")
                    }
                    (Ok(Picture { unready, .. }), Target::Readiness) => Answer::unwell(&unready.join("\n")),
                    (Ok(Picture { figures, .. }), Target::Metrics) => {
                        let mut figures = figures.clone();
                        let (program, version) = self.build;
                        figures.count(BUILD_INFO, [program, version], 1);
                        #[cfg(target_os = "linux")]
                        self.process.describe(&mut figures);
                        Answer::ok(Exposition::CONTENT_TYPE, figures.text())
                    }
                }
                .into_bytes()
                .into()
            });
            client.send(answer.clone());
        }
    }
}

/// A connection.
struct Client {
    stream: TcpStream,
    ends_at: Instant,
    state: State,
}

enum State {
    /// What has come of the request.
    Reading(Vec<u8>),
    /// The program is asked.
    Asking,
    /// What is left of the answer.
    Writing(Bytes),
    /// The answer is out; so many bytes have come since, or instead of a request.
    Closing(usize),
    Done,
}

impl Client {
    fn new(stream: TcpStream, ends_at: Instant) -> Self {
        Self { stream, ends_at, state: State::Reading(Vec::new()) }
    }

    /// Goes on as far as it can; what is asked for, once a request is whole.
    fn serve(&mut self) -> Option<Target> {
        loop {
            let next = match &mut self.state {
                State::Reading(received) => match read_some(&mut self.stream, received) {
                    Ok(0) => State::Done,
                    Ok(_) => match Request::read(received) {
                        Request::Partial => continue,
                        Request::Refused(answer) => State::Writing(answer.into_bytes().into()),
                        Request::Whole(target) => {
                            self.state = State::Asking;
                            return Some(target);
                        }
                    },
                    Err(error) => return self.wait_or_end(&error),
                },
                State::Writing(left) => match self.stream.write(left) {
                    Ok(0) => State::Done,
                    Ok(bytes) if bytes < left.len() => State::Writing(left.slice(bytes..)),
                    // The client learns of the end; what it still sends is taken until it ends, too.
                    Ok(_) => match self.stream.shutdown(Shutdown::Write) {
                        Ok(()) => State::Closing(0),
                        Err(_) => State::Done,
                    },
                    Err(error) => return self.wait_or_end(&error),
                },
                State::Closing(discarded) => match self.stream.read(&mut [0; 4096]) {
                    Ok(bytes) if bytes > 0 && *discarded + bytes <= DISCARDED_BYTES_MAX => {
                        State::Closing(*discarded + bytes)
                    }
                    Ok(_) => State::Done,
                    Err(error) => return self.wait_or_end(&error),
                },
                State::Asking | State::Done => return None,
            };
            self.state = next;
        }
    }

    /// Sends the answer, as far as it goes now.
    fn send(&mut self, answer: Bytes) {
        self.state = State::Writing(answer);
        self.serve();
    }

    fn wait_or_end(&mut self, error: &io::Error) -> Option<Target> {
        match error.kind() {
            ErrorKind::WouldBlock => {}
            ErrorKind::Interrupted => return self.serve(),
            _ => self.state = State::Done,
        }
        None
    }
}

/// Reads what there is room for in a request.
fn read_some(stream: &mut TcpStream, received: &mut Vec<u8>) -> io::Result<usize> {
    let mut bytes = [0; 2048];
    let room = bytes.len().min(REQUEST_BYTES_MAX - received.len());
    let read = stream.read(&mut bytes[..room])?;
    received.extend_from_slice(&bytes[..read]);
    Ok(read)
}
