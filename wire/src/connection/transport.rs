//! What carries the bytes: TCP alone, or TLS on it. Not blocking; mio's edge-triggered rules hold: a
//! side that says `Blocked` or `WouldBlock` has nothing left inside, so an event will tell.
//!
//! TLS reads ciphertext by pieces of 64 KiB into a buffer that a connection holds only while it has
//! unread ciphertext: idle ones share one per thread. (rustls itself would read 4 KiB at a time.) It
//! encrypts 256 KiB at a time and only when the kernel has taken all that was encrypted before, so a
//! connection whose peer does not read holds that much and no more, and what the kernel has is known
//! message by message. An idle connection costs about 40 KB more than one without TLS (39 KB measured,
//! most of it in rustls).

use std::cell::Cell;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};

use mio::net::TcpStream;
use rustls::Connection as TlsConnection;

use super::ConnectionError;
use super::by_reference::{PagePipe, send_before_more};
use crate::tls::{ClientTls, PeerCertificate, ServerTls, Side, TlsFault, explain};

/// Ciphertext that is read at a time.
const CIPHERTEXT_BYTES: usize = 64 << 10;
/// Plaintext that is encrypted at a time.
const ENCRYPTED_BYTES: usize = 256 << 10;
/// First bytes of a TLS record: the content types of RFC 8446, section 5.1.
const RECORD_TYPES: std::ops::RangeInclusive<u8> = 20..=23;
/// The answer to plain HTTP where TLS is spoken.
const SPEAK_TLS: &str = "this port speaks TLS: use wss:// (or https://)\n";

thread_local! {
    /// The buffer of the connection that last ran out of ciphertext.
    static SPARE: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// What a read brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Came {
    /// So many bytes for the connection.
    Bytes(usize),
    /// Nothing for the connection yet; there may be more.
    Again,
    /// Nothing more until an event.
    Blocked,
    /// The peer has ended its side, in order.
    End,
}

/// A TCP stream, with TLS or without.
#[derive(Debug)]
pub struct Transport {
    stream: TcpStream,
    tls: Option<Box<Session>>,
    /// What TCP has pages of rather than copies goes through there.
    page_pipe: PagePipe,
    received_bytes: u64,
    sent_bytes: u64,
}

impl Transport {
    /// The client's end, of a relay at `host`.
    pub fn client(stream: TcpStream, host: &str, tls: Option<&ClientTls>) -> Result<Self, TlsFault> {
        let side = Side::Client { host: host.to_owned() };
        let session = tls.map(|tls| tls.connect(host)).transpose()?;
        Ok(Self::new(stream, session.map(|session| Session::new(session.into(), side))))
    }

    /// The server's end.
    pub fn server(stream: TcpStream, tls: Option<&ServerTls>) -> Result<Self, TlsFault> {
        let session = tls.map(ServerTls::accept).transpose()?;
        Ok(Self::new(stream, session.map(|session| Session::new(session.into(), Side::Server))))
    }

    fn new(stream: TcpStream, tls: Option<Session>) -> Self {
        Self {
            stream,
            tls: tls.map(Box::new),
            page_pipe: PagePipe::default(),
            received_bytes: 0,
            sent_bytes: 0,
        }
    }

    /// The stream itself.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The stream itself.
    pub fn stream_mut(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Bytes that the kernel gave.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// Bytes that the kernel took.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Bytes of the connection can be sent: there is no TLS, or its handshake is done.
    pub fn is_established(&self) -> bool {
        self.tls.as_ref().is_none_or(|session| !session.tls.is_handshaking() && !session.failed)
    }

    /// TLS itself has something to send, or what was encrypted waits.
    pub fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|session| session.wants_write())
    }

    /// The certificate of the peer, if it has shown one.
    pub fn peer_certificate(&self) -> Option<PeerCertificate> {
        PeerCertificate::new(self.tls.as_ref()?.tls.peer_certificates()?)
    }

    /// Reads into `spaces`, of which one is not empty, in their order. After an error there may be an
    /// alert to be sent.
    pub fn read(&mut self, spaces: &mut [IoSliceMut<'_>]) -> Result<Came, ConnectionError> {
        let Some(session) = &mut self.tls else {
            return take(&mut self.stream, spaces, &mut self.received_bytes).map_err(Into::into);
        };
        let mut spaces = spaces.iter_mut().filter(|space| !space.is_empty());
        let Some(first) = spaces.next() else { return Ok(Came::Again) };
        let mut came = session.read(&mut self.stream, first, &mut self.received_bytes);
        if let Ok(Came::Bytes(count)) = &mut came
            && *count == first.len()
            && let Some(second) = spaces.next()
        {
            // What else has been decrypted. That there is none, or an end, the next read tells as well.
            *count += session.tls.reader().read(second).unwrap_or(0);
        }
        if came.is_err() {
            // Who drops the connection now still has told why.
            let _ = session.flush(&mut self.stream, &mut self.sent_bytes);
        }
        came
    }

    /// Sends from `slices`. The number of bytes that the kernel now has, be it of this call or of an
    /// earlier one: those are next to be left out. Bytes that TLS holds count when it holds none any
    /// more, by [`Transport::flush`]; until then [`Transport::wants_write`] is true, and this must
    /// not be called.
    pub fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match &mut self.tls {
            None => {
                let count = some(self.stream.write_vectored(slices)?)?;
                self.sent_bytes += count as u64;
                Ok(count)
            }
            Some(session) => {
                session.under_way += session.tls.writer().write_vectored(slices)?;
                session.flush(&mut self.stream, &mut self.sent_bytes)
            }
        }
    }

    /// Sends `bytes`, behind which [`Transport::write_pages`] follows at once: TCP waits for it.
    pub fn write_before_pages(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.takes_pages() {
            return self.write(&[IoSlice::new(bytes)]);
        }
        let count = some(send_before_more(&self.stream, bytes)?)?;
        self.sent_bytes += count as u64;
        Ok(count)
    }

    /// Whether [`Transport::write_pages`] may work: not with TLS, which encrypts a copy.
    pub fn takes_pages(&self) -> bool {
        self.tls.is_none() && !self.page_pipe.is_refused()
    }

    /// Has TCP take the pages of `bytes` rather than a copy: nobody may write to them before the peer has said that
    /// it has read them. The number of bytes that it has taken; what is called next begins behind them. An error of
    /// kind `Unsupported`: it takes none, now and later.
    pub fn write_pages(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.takes_pages() {
            return Err(ErrorKind::Unsupported.into());
        }
        let count = some(self.page_pipe.send(&self.stream, bytes)?)?;
        self.sent_bytes += count as u64;
        Ok(count)
    }

    /// Sends what TLS has to send. The number of bytes given to [`Transport::write`] that the kernel
    /// now has.
    pub fn flush(&mut self) -> io::Result<usize> {
        match &mut self.tls {
            None => Ok(0),
            Some(session) => session.flush(&mut self.stream, &mut self.sent_bytes),
        }
    }

    /// Nothing more will be sent: TLS says so to the peer.
    pub fn say_goodbye(&mut self) {
        if let Some(session) = &mut self.tls
            && !session.failed
            && !session.tls.is_handshaking()
        {
            session.tls.send_close_notify(); // once
        }
    }
}

/// One read of the socket.
fn take(stream: &mut TcpStream, spaces: &mut [IoSliceMut<'_>], received_bytes: &mut u64) -> io::Result<Came> {
    match stream.read_vectored(spaces) {
        Ok(0) => Ok(Came::End),
        Ok(count) => {
            *received_bytes += count as u64;
            Ok(Came::Bytes(count))
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Came::Blocked),
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(Came::Again),
        Err(error) => Err(error),
    }
}

fn some(count: usize) -> io::Result<usize> {
    if count == 0 { Err(ErrorKind::WriteZero.into()) } else { Ok(count) }
}

/// One TLS session.
struct Session {
    tls: TlsConnection,
    side: Side,
    /// Ciphertext that was read: `from..to` is for rustls yet.
    buffer: Option<Box<[u8]>>,
    from: usize,
    to: usize,
    /// Plaintext of which the kernel does not have all the ciphertext.
    under_way: usize,
    /// A record of TLS has come.
    is_tls: bool,
    /// It is over: what still comes is thrown away.
    failed: bool,
    /// Plain bytes for a peer that does not speak TLS.
    plain: Vec<u8>,
}

impl Session {
    fn new(mut tls: TlsConnection, side: Side) -> Self {
        tls.set_buffer_limit(Some(ENCRYPTED_BYTES));
        Self {
            tls,
            side,
            buffer: None,
            from: 0,
            to: 0,
            under_way: 0,
            is_tls: false,
            failed: false,
            plain: Vec::new(),
        }
    }

    fn wants_write(&self) -> bool {
        !self.plain.is_empty() || self.tls.wants_write()
    }

    fn flush(&mut self, stream: &mut TcpStream, sent_bytes: &mut u64) -> io::Result<usize> {
        if !self.plain.is_empty() {
            let count = some(stream.write(&self.plain)?)?;
            *sent_bytes += count as u64;
            self.plain.drain(..count);
            return Ok(0);
        }
        if !self.tls.wants_write() {
            return Ok(std::mem::take(&mut self.under_way));
        }
        *sent_bytes += some(self.tls.write_tls(stream)?)? as u64;
        if self.tls.wants_write() { Ok(0) } else { Ok(std::mem::take(&mut self.under_way)) }
    }

    fn read(
        &mut self,
        stream: &mut TcpStream,
        space: &mut [u8],
        received_bytes: &mut u64,
    ) -> Result<Came, ConnectionError> {
        let mut has_read = false;
        loop {
            if self.failed {
                return Ok(match take(stream, &mut [IoSliceMut::new(space)], received_bytes)? {
                    Came::Bytes(_) => Came::Again,
                    other => other,
                });
            }
            match self.tls.reader().read(space) {
                Ok(0) => return Ok(Came::End),
                Ok(count) => return Ok(Came::Bytes(count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            if self.from < self.to {
                self.decrypt()?;
                continue;
            }
            if has_read {
                return Ok(Came::Again); // others get their turn
            }
            has_read = true;
            let buffer = self.buffer.get_or_insert_with(|| {
                SPARE.take().unwrap_or_else(|| vec![0; CIPHERTEXT_BYTES].into_boxed_slice())
            });
            match take(stream, &mut [IoSliceMut::new(buffer)], received_bytes)? {
                Came::Bytes(count) => (self.from, self.to) = (0, count),
                Came::End => {
                    let handshaking = self.tls.is_handshaking();
                    let fault = if handshaking { TlsFault::HandshakeCut } else { TlsFault::NoGoodbye };
                    return Err(self.fail(fault));
                }
                Came::Blocked => {
                    SPARE.set(self.buffer.take());
                    return Ok(Came::Blocked);
                }
                Came::Again => return Ok(Came::Again),
            }
            self.look_at_first_byte()?;
        }
    }

    /// Gives rustls what it takes of the ciphertext.
    fn decrypt(&mut self) -> Result<(), ConnectionError> {
        let Some(buffer) = &self.buffer else { return Ok(()) };
        let mut ciphertext = &buffer[self.from..self.to];
        match self.tls.read_tls(&mut ciphertext)? {
            0 => self.from = self.to, // what comes after the peer's goodbye is nothing
            count => self.from += count,
        }
        match self.tls.process_new_packets() {
            Ok(_) => Ok(()),
            Err(error) => Err(self.fail(explain(&error, &self.side))),
        }
    }

    /// Tells a peer that does not speak TLS from one that does: rustls would say that a message is
    /// corrupt.
    fn look_at_first_byte(&mut self) -> Result<(), ConnectionError> {
        let Some(buffer) = self.buffer.as_ref().filter(|_| !self.is_tls) else { return Ok(()) };
        let came = &buffer[self.from..self.to];
        let first = came.first().copied().unwrap_or_default();
        if RECORD_TYPES.contains(&first) {
            self.is_tls = true;
            return Ok(());
        }
        let found = came[..came.len().min(20)].escape_ascii().to_string();
        let fault = match &self.side {
            Side::Client { host } => TlsFault::PlainServer { host: host.clone() },
            Side::Server if first.is_ascii_uppercase() => TlsFault::PlainHttp,
            Side::Server => TlsFault::NotTls { found },
        };
        if fault == TlsFault::PlainHttp {
            let length = SPEAK_TLS.len();
            self.plain = format!(
                "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n\
                 Content-Length: {length}\r\n\r\n{SPEAK_TLS}"
            )
            .into_bytes();
        } else {
            // It is bound to fail, and to leave the alert that says so.
            let _ = self.tls.read_tls(&mut &[0xff, 3, 3, 0, 0][..]);
            let _ = self.tls.process_new_packets();
        }
        Err(self.fail(fault))
    }

    fn fail(&mut self, fault: TlsFault) -> ConnectionError {
        self.failed = true;
        (self.from, self.to) = (0, 0);
        self.buffer = None;
        fault.into()
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Session")
            .field("side", &self.side)
            .field("unread_bytes", &(self.to - self.from))
            .field("under_way", &self.under_way)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

/// The spare buffer goes on to others.
impl Drop for Session {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            SPARE.set(Some(buffer));
        }
    }
}

#[cfg(test)]
mod tests;
