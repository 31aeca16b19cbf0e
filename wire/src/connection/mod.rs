//! The connection: a mio TCP stream, with TLS or without, that carries WebSocket messages. It only
//! moves bytes; what they mean is the caller's.
//!
//! mio is edge-triggered, so a connection remembers that it is readable or writable until a call
//! says `WouldBlock`. A caller that stops earlier must come back without an event:
//! [`Connection::is_ready`] tells.
//!
//! Outgoing control messages have a queue of their own and go between data messages. A server's
//! payloads are written, or encrypted, from where they lie, by vectored writes; a client's must be
//! masked, which is fused with the one copy into the send buffer.

mod acknowledged;
mod by_reference;
mod handshake;
mod life;
mod origin;
#[cfg(feature = "conformance")]
mod plain;
mod sending;
mod staged;
mod text;
mod transport;
mod url;
mod websocket;

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mio::net::TcpStream;
use thiserror::Error;

pub use handshake::{HANDSHAKE_BYTES_MAX, HandshakeError};
use life::Life;
pub use life::Times;
pub use origin::{Origin, OriginError};
use staged::Staged;
use transport::{Came, Transport};
pub use url::{RelayUrl, UrlError};
use websocket::{Deframer, Outgoing, Polled, write_header};
pub use websocket::{FrameError, Incoming, Limits, Mask, apply_mask, copy_masked, random_mask};

/// Decoders that fuzz targets reach alone.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    pub use super::handshake::{Policy, ServerReply, client_request, client_response, server_request};
    pub use super::websocket::{Deframer, Polled};
}

use crate::block::BLOCK_BYTES_MAX;
use crate::masked::Payload;
use crate::message::{CONTROL_BYTES_MAX, Control, ENVELOPE_BYTES, Envelope, HELLO_BYTES_MAX};
use crate::pool::{Charge, Pool};
use crate::tls::{ClientTls, PeerCertificate, ServerTls, TlsFault};

/// Time for the TCP connection and the handshakes, that of TLS and that of WebSocket.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// After this time without sending, a ping is due.
pub const PING_TIME: Duration = Duration::from_secs(5);
/// After this time without a byte received or acknowledged by the peer's TCP, the line is dead.
pub const DEAD_TIME: Duration = Duration::from_secs(20);
/// The close code of a peer that is done (RFC 6455, section 7.4.1).
pub const NORMAL_CLOSURE: u16 = 1000;
/// Stands for a connection that ended without a close frame (the same).
pub const ABNORMAL_CLOSURE: u16 = 1006;
/// Time for the last bytes and the peer's close once we close.
const CLOSE_TIME: Duration = Duration::from_secs(2);
/// Bytes of a client's send buffer: pieces of this size are masked while they are in the cache.
const SEND_BUFFER_BYTES: usize = 128 << 10;
/// Bytes and messages committed to the line at a time; what comes later can still be overtaken by
/// a control message.
const COMMITTED_BYTES: usize = 1 << 20;
const COMMITTED_MESSAGES: usize = 32;
/// Bytes read in one turn before others get theirs.
const READ_SHARE_BYTES: usize = 1 << 20;
/// Most control messages that wait, and their bytes; a peer that lets more pile up does not read.
const CONTROL_QUEUE_MAX: usize = 65_536;
const CONTROL_QUEUE_BYTES_MAX: usize = 64 << 20;
/// With so many waiting, a peer that asks whether we live is not answered: it would not read that.
const UNANSWERED_QUEUE: usize = 4096;
/// Most answers to pings that wait.
const PONGS_MAX: usize = 16;
/// Entries that an empty queue keeps room for while nothing happens. Who joins a thousand streams has
/// thousands of messages waiting, once.
const QUEUE_KEPT: usize = 16;
/// How control messages begin as JSON of which a later one says all that an earlier one does.
const SUPERSEDING_JSON: [&[u8]; 3] = [PONG_JSON, br#"{"type":"progress""#, br#"{"type":"window""#];

const PONG_JSON: &[u8] = br#"{"type":"pong""#;

/// Why a connection ended.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum ConnectionError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Tls(#[from] TlsFault),
    #[error("{0}")]
    Handshake(#[from] HandshakeError),
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("no answer to the handshake within {:.0} s", .time.as_secs_f64())]
    HandshakeTime { time: Duration },
    #[error("nothing heard for {:.0} s", .silent.as_secs_f64())]
    Dead { silent: Duration },
    #[error("the peer closed the connection{}", reason_text(reason))]
    Closed { code: u16, reason: String },
    #[error("the peer does not read: over {CONTROL_QUEUE_MAX} control messages or 64 MiB of them wait")]
    NotReading,
    #[error("the budget of memory is used up: no room for what waits for this peer")]
    Budget,
}

fn reason_text(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

/// What came.
#[derive(Debug)]
pub enum Received {
    /// The handshake is done; messages can be sent.
    Open,
    /// A control message, as JSON.
    Control(Vec<u8>),
    /// A data message: envelope and packed block.
    Data(Bytes),
}

/// One frame on its way out.
#[derive(Debug)]
struct Piece {
    head: Vec<u8>,
    payload: Bytes,
    /// A copy of the payload is to be masked with it. It is not what the frame is masked with where the payload is
    /// masked already.
    mask: Option<Mask>,
    /// TCP is to have the payload's pages.
    is_lent: bool,
    is_data: bool,
    /// Bytes of head and payload that are staged (client) or written (server).
    done: usize,
}

impl Piece {
    fn len(&self) -> usize {
        self.head.len() + self.payload.len()
    }
}

/// What a connection holds of a budget of memory.
#[derive(Debug)]
struct Budget {
    base_bytes: usize,
    charge: Charge,
    is_used_up: bool,
}

#[derive(Debug)]
enum Phase {
    /// TCP is connecting, then the request is sent, then the answer awaited.
    ClientHandshake { connected: bool, key: String, answer: Vec<u8> },
    /// The request is awaited.
    ServerHandshake { request: Vec<u8> },
    /// Messages flow.
    Open,
    /// A close frame or an HTTP refusal is going out; then the peer's end is awaited.
    Closing { deadline: Instant, shut: bool },
}

/// One end of a connection.
#[derive(Debug)]
pub struct Connection {
    transport: Transport,
    is_client: bool,
    phase: Phase,
    policy: handshake::Policy,
    started: Instant,
    deframer: Deframer,
    readable: bool,
    writable: bool,
    /// The pool had no buffer for what comes next.
    wants_buffer: bool,
    control: VecDeque<(Outgoing, Vec<u8>)>,
    control_bytes: usize,
    budget: Option<Budget>,
    data: VecDeque<(Envelope, Payload)>,
    data_bytes: usize,
    committed: VecDeque<Piece>,
    committed_bytes: usize,
    /// Masked bytes of a client (and any handshake bytes).
    staged: Staged,
    /// Where in the stream of all staged bytes each data message ends.
    staged_ends: VecDeque<u64>,
    staged_total: u64,
    data_sent: u64,
    life: Life,
}

impl Connection {
    /// The client's end of `stream`, which may still be connecting. `tls` is for a `wss://` url, and
    /// needed there; with `ws://` it is not used.
    pub fn client(
        stream: TcpStream,
        url: &RelayUrl,
        tls: Option<&ClientTls>,
        now: Instant,
    ) -> Result<Self, ConnectionError> {
        if url.is_secure() && tls.is_none() {
            return Err(TlsFault::Other { text: format!("{url} needs it, and it was not set up") }.into());
        }
        let (request, key) = handshake::client_request(url, &handshake::Policy::default())?;
        let transport = Transport::client(stream, url.host(), tls.filter(|_| url.is_secure()))?;
        let phase = Phase::ClientHandshake { connected: false, key, answer: Vec::new() };
        let mut connection = Self::new(transport, true, phase, now);
        connection.stage(&request);
        Ok(connection)
    }

    /// The server's end of a stream just accepted; over TLS if `tls` is given, and then over nothing
    /// else.
    pub fn server(stream: TcpStream, tls: Option<&ServerTls>, now: Instant) -> Result<Self, ConnectionError> {
        let transport = Transport::server(stream, tls)?;
        Ok(Self::new(transport, false, Phase::ServerHandshake { request: Vec::new() }, now))
    }

    fn new(transport: Transport, is_client: bool, phase: Phase, now: Instant) -> Self {
        let stream = transport.stream();
        // Waiting to fill segments would delay lone packets; an error here changes nothing else.
        let _ = stream.set_nodelay(true);
        let limits = Limits { text_bytes: HELLO_BYTES_MAX, binary_bytes: 0 };
        let times = Times::default();
        acknowledged::limit_probe_interval(stream, times.dead / 4);
        Self {
            transport,
            is_client,
            phase,
            policy: handshake::Policy::default(),
            started: now,
            deframer: Deframer::new(!is_client, limits),
            readable: true,
            writable: !is_client,
            wants_buffer: false,
            control: VecDeque::new(),
            control_bytes: 0,
            budget: None,
            data: VecDeque::new(),
            data_bytes: 0,
            committed: VecDeque::new(),
            committed_bytes: 0,
            staged: Staged::default(),
            staged_ends: VecDeque::new(),
            staged_total: 0,
            data_sent: 0,
            life: Life::new(times, now),
        }
    }

    /// The stream, for registration with a poll and for socket options.
    pub fn stream_mut(&mut self) -> &mut TcpStream {
        self.transport.stream_mut()
    }

    /// The stream, for socket options.
    pub fn stream(&self) -> &TcpStream {
        self.transport.stream()
    }

    /// The certificate that the peer has shown and that was verified; `None` without one. A server
    /// knows it as soon as [`Received::Open`] has come.
    pub fn peer_certificate(&self) -> Option<PeerCertificate> {
        self.transport.peer_certificate()
    }

    /// Takes requests of web pages of these origins too; none by default. For a server whose
    /// handshake is still to come.
    pub fn allow_origins(&mut self, origins: Arc<[Origin]>) {
        self.policy.origins = origins;
    }

    /// Counts what this connection holds against a budget: `charge`, and on top of it the control
    /// messages that wait, but for the first 16 KiB. Where there is no room for them, the connection
    /// ends.
    pub fn set_charge(&mut self, charge: Charge) {
        self.budget = Some(Budget { base_bytes: charge.bytes(), charge, is_used_up: false });
    }

    /// Takes messages as long as a known peer may send, rather than a stranger's.
    pub fn trust(&mut self, data_too: bool) {
        let binary_bytes = if data_too { BLOCK_BYTES_MAX + ENVELOPE_BYTES } else { HELLO_BYTES_MAX };
        // A relay's list may be long; what clients say is short.
        let text_bytes = if self.is_client { CONTROL_BYTES_MAX } else { HELLO_BYTES_MAX };
        self.deframer.set_limits(Limits { text_bytes, binary_bytes });
    }

    /// The poll says that the stream is readable, writable or both.
    pub fn set_ready(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    /// Whether there is something to do without a further event.
    pub fn is_ready(&self) -> bool {
        // While TCP is connecting there is nothing to read, and an event will tell.
        let connecting = matches!(self.phase, Phase::ClientHandshake { connected: false, .. });
        (self.readable && !self.wants_buffer && !connecting) || (self.writable && self.wants_to_send())
    }

    /// Whether messages flow.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    /// Whether we are closing.
    pub fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing { .. })
    }

    /// We do not read for now, by our own choice: hearing nothing is then no sign of a dead line.
    pub fn set_paused(&mut self, now: Instant) {
        self.life.handle_paused(now);
    }

    /// The pool may have a buffer again.
    pub fn retry_buffer(&mut self) {
        self.wants_buffer = false;
    }

    /// Whether reading waits for a buffer of the pool.
    pub fn wants_buffer(&self) -> bool {
        self.wants_buffer
    }

    /// Whether more data messages are welcome: little is queued here, so that the order of what
    /// comes later can still change.
    pub fn wants_data(&self) -> bool {
        self.is_open()
            && self.data.len() < COMMITTED_MESSAGES
            && self.data_bytes + self.committed_bytes < COMMITTED_BYTES
    }

    /// Whether everything queued has been handed to the kernel.
    pub fn is_flushed(&self) -> bool {
        !self.wants_to_send()
    }

    /// Data messages that our TCP has been handed, since the connection began: the whole of each, and
    /// with TLS also of what was encrypted together with it.
    pub fn data_sent(&self) -> u64 {
        self.data_sent
    }

    /// Bytes handed to TCP and read from it.
    pub fn bytes_sent_and_received(&self) -> (u64, u64) {
        (self.transport.sent_bytes(), self.transport.received_bytes())
    }

    /// Control messages that wait to be sent.
    pub fn control_waiting(&self) -> usize {
        self.control.len()
    }

    /// Whether TCP may have the pages of what is lent rather than a copy.
    pub fn takes_pages(&self) -> bool {
        self.transport.takes_pages()
    }

    /// Queues a control message.
    pub fn queue_control(&mut self, control: &Control) {
        self.push_control(Outgoing::Text, control.to_json());
    }

    /// Queues a data message.
    pub fn queue_data(&mut self, envelope: Envelope, payload: impl Into<Payload>) {
        let mut payload = payload.into();
        if !self.is_client && payload.mask.is_some() {
            payload = payload.plain().into(); // a server masks nothing
        }
        self.data_bytes += payload.bytes.len();
        self.data.push_back((envelope, payload));
    }

    /// Tells the peer why, and closes: what is committed still goes out, what is queued does not.
    /// Keep calling [`Connection::drive`] until it ends with an error.
    pub fn close(&mut self, now: Instant, code: u16, reason: &str) {
        if self.is_closing() {
            return;
        }
        let deadline = now + CLOSE_TIME;
        if !self.is_open() {
            if !self.transport.is_established() {
                self.abandon();
            }
            self.phase = Phase::Closing { deadline, shut: false };
            return;
        }
        self.data.clear();
        self.data_bytes = 0;
        if code != NORMAL_CLOSURE {
            self.queue_control(&Control::Error { reason: reason.to_owned() });
        }
        self.push_close(code, reason);
        self.phase = Phase::Closing { deadline, shut: false };
    }

    /// Checks the clock: a handshake or a close that takes too long, a dead line; queues a ping
    /// when nothing was sent for a while.
    pub fn handle_timeout(&mut self, now: Instant, clock_ns: u64) -> Result<(), ConnectionError> {
        match self.phase {
            Phase::ClientHandshake { .. } | Phase::ServerHandshake { .. } => {
                let time = self.life.times().handshake;
                if now.duration_since(self.started) >= time {
                    return Err(ConnectionError::HandshakeTime { time });
                }
            }
            Phase::Closing { deadline, .. } => {
                if now >= deadline {
                    return Err(ConnectionError::Closed { code: ABNORMAL_CLOSURE, reason: String::new() });
                }
            }
            Phase::Open => {
                if self.life.is_look_due(now) {
                    self.deframer.release();
                    self.release_queues();
                    let state = acknowledged::send_state(self.transport.stream());
                    if let Some(silent) = self.life.look(now, !self.is_flushed(), state) {
                        return Err(ConnectionError::Dead { silent });
                    }
                }
                if self.life.is_ping_due(now) && self.is_flushed() {
                    self.queue_control(&Control::Ping { clock_ns });
                    self.life.handle_sent(now);
                }
            }
        }
        Ok(())
    }

    fn release_queues(&mut self) {
        if self.control.is_empty() {
            self.control.shrink_to(QUEUE_KEPT);
        }
        if self.data.is_empty() {
            self.data.shrink_to(QUEUE_KEPT);
        }
        if self.committed.is_empty() {
            self.committed.shrink_to(QUEUE_KEPT);
        }
        if self.staged_ends.is_empty() {
            self.staged_ends.shrink_to(QUEUE_KEPT);
        }
    }

    /// Time since the peer last took a byte while some wait for it; zero while none waits. A peer
    /// that does not read is not dead: how long it may do so is for the caller to say. As of the
    /// last [`Connection::handle_timeout`], to a twentieth of the dead time.
    pub fn stalled_for(&self, now: Instant) -> Duration {
        if self.is_open() { self.life.stalled_for(now) } else { Duration::ZERO }
    }

    /// TCP's smoothed round trip to the peer, asked of the system now; `None` where it does not say, or has
    /// not measured one yet.
    pub fn round_trip(&self) -> Option<Duration> {
        let state = acknowledged::send_state(self.transport.stream())?;
        (state.round_trip > Duration::ZERO).then_some(state.round_trip)
    }

    /// Other times than the defaults.
    pub fn set_times(&mut self, times: Times) {
        acknowledged::limit_probe_interval(self.transport.stream(), times.dead / 4);
        self.life.set_times(times);
    }

    /// Reads until a message is whole, the socket would block, or this turn's share is used up.
    /// `None`: nothing more for now.
    pub fn receive(
        &mut self,
        now: Instant,
        pool: &Pool,
        share: &mut ReadShare,
    ) -> Result<Option<Received>, ConnectionError> {
        loop {
            if !self.is_open() {
                return self.receive_handshake(now, share);
            }
            self.check_control_queue()?;
            match self.deframer.poll(pool)? {
                Polled::Message(Incoming::Text(text)) => return Ok(Some(Received::Control(text))),
                Polled::Message(Incoming::Binary(bytes)) => return Ok(Some(Received::Data(bytes))),
                Polled::Message(Incoming::Pong) => continue,
                Polled::Message(Incoming::Ping(payload)) => {
                    self.push_control(Outgoing::Pong, payload);
                    continue;
                }
                Polled::Message(Incoming::Close { code, reason }) => {
                    // The other half of the closing handshake; the peer may be gone already.
                    self.push_close(code, "");
                    let _ = self.drive(now);
                    return Err(ConnectionError::Closed { code, reason });
                }
                Polled::NeedBuffer => {
                    self.wants_buffer = true;
                    return Ok(None);
                }
                Polled::NeedBytes => {}
            }
            if !self.readable || share.0 == 0 {
                return Ok(None);
            }
            let before = self.transport.received_bytes();
            let came = self.transport.read(&mut self.deframer.spaces().map(IoSliceMut::new));
            match self.note_read(came, before, now, share)? {
                Came::Bytes(count) => self.deframer.filled(count),
                Came::End => {
                    return Err(ConnectionError::Closed { code: ABNORMAL_CLOSURE, reason: String::new() });
                }
                Came::Again | Came::Blocked => {}
            }
        }
    }

    /// What every read has to be followed by. `before`: what had been received before it.
    fn note_read(
        &mut self,
        came: Result<Came, ConnectionError>,
        before: u64,
        now: Instant,
        share: &mut ReadShare,
    ) -> Result<Came, ConnectionError> {
        let count = self.transport.received_bytes() - before;
        if count > 0 {
            self.life.handle_heard(now);
            share.0 = share.0.saturating_sub(count as usize);
        }
        match came {
            Ok(Came::Blocked) => {
                self.readable = false;
                Ok(Came::Blocked)
            }
            // The alert still goes out, and nothing else can.
            Err(ConnectionError::Tls(_)) if self.is_closing() => {
                Err(ConnectionError::Closed { code: ABNORMAL_CLOSURE, reason: String::new() })
            }
            Err(ConnectionError::Tls(fault)) => {
                self.abandon();
                self.phase = Phase::Closing { deadline: now + CLOSE_TIME, shut: false };
                Err(fault.into())
            }
            other => other,
        }
    }

    fn receive_handshake(
        &mut self,
        now: Instant,
        share: &mut ReadShare,
    ) -> Result<Option<Received>, ConnectionError> {
        let mut bytes = [0; 4096];
        while self.readable && share.0 > 0 {
            if let Phase::ClientHandshake { connected: false, .. } = self.phase {
                return Ok(None); // drive() finds out whether TCP is connected
            }
            let before = self.transport.received_bytes();
            let came = self.transport.read(&mut [IoSliceMut::new(&mut bytes)]);
            let count = match self.note_read(came, before, now, share)? {
                Came::Bytes(count) => count,
                Came::End => {
                    return Err(ConnectionError::Closed { code: ABNORMAL_CLOSURE, reason: String::new() });
                }
                Came::Again | Came::Blocked => continue,
            };
            let rest = match &mut self.phase {
                Phase::ClientHandshake { answer, key, .. } => {
                    answer.extend_from_slice(&bytes[..count]);
                    match handshake::client_response(answer, key, &self.policy)? {
                        Some(consumed) => answer.split_off(consumed),
                        None => continue,
                    }
                }
                Phase::ServerHandshake { request } => {
                    request.extend_from_slice(&bytes[..count]);
                    match handshake::server_request(request, &self.policy) {
                        None => continue,
                        Some(handshake::ServerReply::Upgrade { response, consumed }) => {
                            let rest = request.split_off(consumed);
                            self.stage(&response);
                            rest
                        }
                        Some(handshake::ServerReply::Refuse { response, reason }) => {
                            self.stage(&response);
                            self.phase = Phase::Closing { deadline: now + CLOSE_TIME, shut: false };
                            return Err(HandshakeError::Rejected { reason }.into());
                        }
                    }
                }
                Phase::Open => return Ok(None),
                Phase::Closing { .. } => continue, // whatever still comes is thrown away
            };
            self.phase = Phase::Open;
            self.deframer.preload(&rest)?;
            return Ok(Some(Received::Open));
        }
        Ok(None)
    }
}

/// How much may still be read in this turn; fair to the other connections.
#[derive(Debug)]
pub struct ReadShare(usize);

impl Default for ReadShare {
    fn default() -> Self {
        Self(READ_SHARE_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn idle_connections_keep_no_room_for_what_once_waited() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let _client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
        let (stream, _) = listener.accept().expect("accepts");
        stream.set_nonblocking(true).expect("an option");
        let now = Instant::now();
        let stream = mio::net::TcpStream::from_std(stream);
        let mut connection = Connection::server(stream, None, now).expect("no TLS");
        connection.phase = Phase::Open;
        for clock_ns in 0..1000 {
            connection.queue_control(&Control::Ping { clock_ns });
        }
        let rooms =
            |connection: &Connection| (connection.control.capacity(), connection.committed.capacity());
        connection.drive(now).expect("sends");
        assert!(connection.is_flushed() && rooms(&connection).0 >= 1000 && rooms(&connection).1 > QUEUE_KEPT);
        connection.handle_timeout(now + Duration::from_secs(1), 0).expect("alive");
        assert_eq!(rooms(&connection), (QUEUE_KEPT, QUEUE_KEPT));
    }
}
