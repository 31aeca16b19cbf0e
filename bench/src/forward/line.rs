//! A client's end of a connection to the relay, as cheap as can be: it writes messages that are made,
//! and of those that come it reads heads and control messages alone. The rest is discarded in the kernel
//! (MSG_TRUNC, tcp(7)), without a copy.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use mio::net::TcpStream;
use nix::sys::socket::{MsgFlags, recv};
use wire::block::{HEADER_BYTES, Header};
use wire::connection::apply_mask;
use wire::message::{Control, ENVELOPE_BYTES, SUBPROTOCOL};

use super::blocks::Message;
use crate::tcp;

/// First bytes of whole frames (RFC 6455, section 5.2).
pub const BINARY: u8 = 0x82;
const TEXT: u8 = 0x81;
const CLOSE: u8 = 0x88;
/// Bytes read together where they are looked at.
const BUFFER_BYTES: usize = 4096;
/// Longest control message that is read.
const CONTROL_BYTES_MAX: usize = 64 << 10;
/// The relay answers a handshake within this time.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// The header of a client's frame.
pub fn client_head(first: u8, length: usize, mask: [u8; 4]) -> Vec<u8> {
    let mut head = vec![first];
    match length {
        0..=125 => head.push(0x80 | length as u8),
        126..=0xffff => {
            head.push(0x80 | 126);
            head.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            head.push(0x80 | 127);
            head.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    head.extend_from_slice(&mask);
    head
}

/// What came.
#[derive(Debug)]
pub enum Came {
    /// A control message.
    Control(Control),
    /// A data message, whole; its block's header.
    Block(Box<Header>),
    /// A part of one.
    Part,
}

/// A connection.
#[derive(Debug)]
pub struct Line {
    stream: TcpStream,
    mask: [u8; 4],
    /// What was read and not looked at is `from..to`.
    buffer: Vec<u8>,
    from: usize,
    to: usize,
    /// The block that is being discarded, and how much of it is still to come.
    under_way: Option<(Header, usize)>,
    received_bytes: u64,
    /// Control messages that wait, masked.
    out: Vec<u8>,
}

impl Line {
    /// Connects to a relay without TLS, and is welcomed.
    pub fn open(address: SocketAddr, hello: &Control, mask: [u8; 4]) -> io::Result<Self> {
        let stream = tcp::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIME))?;
        let request = format!(
            "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
        );
        (&stream).write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            (&stream).read_exact(&mut byte)?; // what follows it is not ours yet
            answer.extend_from_slice(&byte);
        }
        if !answer.starts_with(b"HTTP/1.1 101 ") {
            let answer = String::from_utf8_lossy(&answer).into_owned();
            return Err(io::Error::other(format!(
                "{address}: {}",
                answer.lines().next().unwrap_or_default()
            )));
        }
        let mode = stream.try_clone()?;
        let mut line = Self::new(stream, mask);
        line.queue(hello);
        (&line.stream).write_all(&std::mem::take(&mut line.out))?;
        match line.read(&mut [])? {
            Some(Came::Control(Control::Welcome { .. })) => {}
            other => return Err(io::Error::other(format!("{address}: {other:?}, expected a welcome"))),
        }
        mode.set_nonblocking(true)?;
        Ok(line)
    }

    fn new(stream: std::net::TcpStream, mask: [u8; 4]) -> Self {
        Self {
            stream: TcpStream::from_std(stream),
            mask,
            buffer: vec![0; BUFFER_BYTES],
            from: 0,
            to: 0,
            under_way: None,
            received_bytes: 0,
            out: Vec::new(),
        }
    }

    /// The stream, for a poll.
    pub fn stream_mut(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Bytes that TCP has brought since the welcome.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// Queues a control message.
    pub fn queue(&mut self, control: &Control) {
        let mut json = control.to_json();
        apply_mask(&mut json, self.mask, 0);
        self.out.extend(client_head(TEXT, json.len(), self.mask));
        self.out.extend(json);
    }

    /// Sends what is queued; `false` if not all of it could be sent.
    pub fn flush(&mut self) -> io::Result<bool> {
        while !self.out.is_empty() {
            match self.stream.write(&self.out) {
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// What comes next; `None` if nothing does for now. Of a block no more is discarded together than
    /// `room` would hold.
    pub fn read(&mut self, room: &mut [u8]) -> io::Result<Option<Came>> {
        let most = room.len();
        loop {
            if let Some((header, left)) = self.under_way.take() {
                let left = left - self.take_buffered(left);
                let count = match left {
                    0 => 0,
                    _ => match discard(&self.stream, &mut room[..left.min(most)]) {
                        Ok(count) => count,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {
                            self.under_way = Some((header, left));
                            return Ok(None);
                        }
                        Err(error) => return Err(error),
                    },
                };
                self.received_bytes += count as u64;
                if count == left {
                    return Ok(Some(Came::Block(Box::new(header))));
                }
                self.under_way = Some((header, left - count));
                return Ok(Some(Came::Part));
            }
            match self.parse()? {
                Parsed::Control(control) => return Ok(Some(Came::Control(control))),
                Parsed::Block => continue,
                Parsed::Short => {}
            }
            self.buffer.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
            if self.to == self.buffer.len() {
                self.buffer.resize(self.to * 2, 0);
            }
            match self.stream.read(&mut self.buffer[self.to..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.to += count;
                    self.received_bytes += count as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    fn take_buffered(&mut self, most: usize) -> usize {
        let count = most.min(self.to - self.from);
        self.from += count;
        count
    }

    fn parse(&mut self) -> io::Result<Parsed> {
        let bytes = &self.buffer[self.from..self.to];
        let (Some(&first), Some(&second)) = (bytes.first(), bytes.get(1)) else { return Ok(Parsed::Short) };
        let (head, length) = match (second, bytes.get(2..4), bytes.get(2..10)) {
            (126, Some(two), _) => (4, two.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte))),
            (127, _, Some(eight)) => (10, eight.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte))),
            (0..=125, ..) => (2, usize::from(second)),
            (128.., ..) => return Err(io::Error::other("a server's frame is masked")),
            _ => return Ok(Parsed::Short),
        };
        match first {
            BINARY => {
                let body = head + ENVELOPE_BYTES;
                let Some(block) = bytes.get(body..body + HEADER_BYTES) else { return Ok(Parsed::Short) };
                let (header, _) = Header::parse(block).map_err(io::Error::other)?;
                self.from += body + HEADER_BYTES;
                self.under_way = Some((header, length - ENVELOPE_BYTES - HEADER_BYTES));
                Ok(Parsed::Block)
            }
            TEXT if length <= CONTROL_BYTES_MAX => {
                let Some(json) = bytes.get(head..head + length) else { return Ok(Parsed::Short) };
                let control = Control::from_json(json).map_err(io::Error::other)?;
                self.from += head + length;
                Ok(Parsed::Control(control))
            }
            CLOSE => Err(io::Error::other("the relay closed the connection")),
            other => Err(io::Error::other(format!("a frame that begins with {other:02x}"))),
        }
    }
}

enum Parsed {
    Control(Control),
    Block,
    Short,
}

/// Sends what a message has behind its first `done` bytes: how many bytes more are sent.
pub fn write_message(stream: &mut TcpStream, message: &Message, done: usize) -> io::Result<usize> {
    let head = message.head.get(done..).unwrap_or_default();
    let body = &message.body[done.saturating_sub(message.head.len())..];
    stream.write_vectored(&[IoSlice::new(head), IoSlice::new(body)])
}

/// Throws away what has come, without a copy: how many bytes that was.
pub fn discard(stream: &TcpStream, room: &mut [u8]) -> io::Result<usize> {
    match recv(stream.as_raw_fd(), room, MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT)? {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        count => Ok(count),
    }
}
