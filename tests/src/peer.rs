//! A peer made by hand: WebSocket frames written and read byte by byte, so that it can also do
//! what no sound peer does. As a client, or as a relay.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use tungstenite::handshake::derive_accept_key;
use wire::block::Epoch;
use wire::clock::wall_ns;
use wire::message::{Control, ENVELOPE_BYTES, Envelope, PROTOCOL, Role, SUBPROTOCOL};

use crate::process::DEADLINE;

/// Opcode of a text frame.
pub const TEXT: u8 = 1;
/// Opcode of a binary frame.
pub const BINARY: u8 = 2;
/// Opcode of a close frame.
pub const CLOSE: u8 = 8;

/// One end of a connection, with nothing automatic about it.
#[derive(Debug)]
pub struct RawPeer {
    stream: TcpStream,
    is_client: bool,
}

/// The part of `ws://ADDRESS` that can be connected to.
pub fn address_of(url: &str) -> SocketAddr {
    let address = url.trim_start_matches("ws://").trim_end_matches('/');
    address.parse().expect("the url of a relay of ours")
}

/// The request of a WebSocket client that offers `subprotocol`.
pub fn upgrade_request(subprotocol: &str) -> String {
    format!(
        "GET / HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
    )
}

impl RawPeer {
    /// Connects, and says nothing.
    pub fn connect(url: &str) -> Self {
        let stream = TcpStream::connect(address_of(url)).expect("the relay listens");
        Self::new(stream, true)
    }

    fn new(stream: TcpStream, is_client: bool) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        stream.set_write_timeout(Some(DEADLINE)).expect("a deadline");
        Self { stream, is_client }
    }

    /// Connects, and shakes hands as WebSocket.
    pub fn open(url: &str) -> Self {
        let mut peer = Self::connect(url);
        peer.send(upgrade_request(SUBPROTOCOL).as_bytes());
        let answer = peer.read_head();
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        peer
    }

    /// Connects and says hello.
    pub fn hello(url: &str, role: Role, name: &str, epoch: u64) -> Self {
        let mut peer = Self::open(url);
        peer.control(&hello(role, name, epoch));
        let welcome = peer.receive().expect("a welcome");
        assert!(welcome.1.starts_with(br#"{"type":"welcome""#), "{welcome:?}");
        peer
    }

    /// Sends bytes as they are. A peer that has closed already is no error: what it said is read
    /// afterwards.
    pub fn send(&mut self, bytes: &[u8]) {
        match self.stream.write_all(bytes) {
            Err(error) if !matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                panic!("sending {} bytes: {error}", bytes.len())
            }
            _ => {}
        }
    }

    /// Sends a frame, masked as a client must.
    pub fn frame(&mut self, opcode: u8, payload: &[u8]) {
        let is_masked = self.is_client;
        self.send(&frame(opcode, payload, is_masked));
    }

    /// Sends a control message.
    pub fn control(&mut self, control: &Control) {
        self.frame(TEXT, &control.to_json());
    }

    /// Sends a packed block.
    pub fn block(&mut self, block: &[u8]) {
        let mut message = Vec::with_capacity(ENVELOPE_BYTES + block.len());
        message.extend_from_slice(&Envelope::default().emit());
        message.extend_from_slice(block);
        self.frame(BINARY, &message);
    }

    /// The next frame: opcode and payload. `None`: the other end has closed.
    pub fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.read_exact(&mut head)?;
        let mut length = u64::from(head[1] & 0x7f);
        if length >= 126 {
            let mut long = [0; 8];
            let from = if length == 126 { 6 } else { 0 };
            self.read_exact(&mut long[from..])?;
            length = u64::from_be_bytes(long);
        }
        let mut mask = [0; 4];
        if head[1] & 0x80 != 0 {
            self.read_exact(&mut mask)?;
        }
        let mut payload = vec![0; length as usize];
        self.read_exact(&mut payload)?;
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        Some((head[0] & 15, payload))
    }

    /// Reads control messages until one is of `kind`, and returns it.
    pub fn await_control(&mut self, kind: &str) -> Control {
        let start = format!("{{\"type\":\"{kind}\"");
        loop {
            let (_, payload) = self.receive().unwrap_or_else(|| panic!("closed before {kind}"));
            if payload.starts_with(start.as_bytes()) {
                return Control::from_json(&payload).expect("a message we know");
            }
        }
    }

    /// Reads until the other end has closed: what its error message and its close frame say.
    pub fn reasons(&mut self) -> (Option<String>, Option<String>) {
        let (mut error, mut close) = (None, None);
        while let Some((opcode, payload)) = self.receive() {
            if let (TEXT, Ok(Control::Error { reason })) = (opcode, Control::from_json(&payload)) {
                error = Some(reason);
            }
            if opcode == CLOSE {
                assert!(payload.len() >= 2, "a close without its code");
                close = Some(String::from_utf8(payload[2..].to_vec()).expect("a close frame holds text"));
            }
        }
        (error, close)
    }

    /// Reads everything until the other end closes, as text.
    pub fn read_to_end(&mut self) -> String {
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => bytes.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => panic!("the other end does not close: {error}"),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The head of an HTTP request or answer.
    pub fn read_head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.read_exact(&mut byte).unwrap_or_else(|| panic!("{:?}", String::from_utf8_lossy(&head)));
            head.push(byte[0]);
        }
        String::from_utf8(head).expect("text")
    }

    fn read_exact(&mut self, out: &mut [u8]) -> Option<()> {
        match self.stream.read_exact(out) {
            Ok(()) => Some(()),
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                None
            }
            Err(error) => panic!("the other end says nothing: {error}"),
        }
    }
}

/// A frame, whole.
pub fn frame(opcode: u8, payload: &[u8], is_masked: bool) -> Vec<u8> {
    let mask_bit = if is_masked { 0x80 } else { 0 };
    let mut bytes = vec![0x80 | opcode];
    match payload.len() {
        length @ 0..126 => bytes.push(mask_bit | length as u8),
        length @ 126..0x1_0000 => {
            bytes.push(mask_bit | 126);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            bytes.push(mask_bit | 127);
            bytes.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    if !is_masked {
        bytes.extend_from_slice(payload);
        return bytes;
    }
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    bytes.extend_from_slice(&mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// A hello of this version.
pub fn hello(role: Role, name: &str, epoch: u64) -> Control {
    Control::Hello {
        protocol: PROTOCOL,
        role,
        name: name.to_owned(),
        epoch: Epoch(epoch),
        home: Epoch(epoch),
        former: Epoch::default(),
        agent: "a test".to_owned(),
        clock_ns: wall_ns(),
        token: None,
    }
}

/// A relay made by hand.
#[derive(Debug)]
pub struct FakeRelay {
    listener: TcpListener,
}

impl FakeRelay {
    /// Listens on loopback.
    pub fn new() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").expect("loopback is there") }
    }

    /// Its address for `--relay`.
    pub fn url(&self) -> String {
        format!("ws://{}", self.listener.local_addr().expect("it is bound"))
    }

    /// Takes a connection, and says nothing.
    pub fn accept(&self) -> RawPeer {
        RawPeer::new(self.listener.accept().expect("someone connects").0, false)
    }

    /// Takes a connection and answers its handshake with `subprotocol`.
    pub fn accept_as(&self, subprotocol: &str) -> RawPeer {
        let mut peer = self.accept();
        let request = peer.read_head();
        let key = request.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim().to_owned())
        });
        let accept = derive_accept_key(key.expect("a key").as_bytes());
        peer.send(
            format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
            )
            .as_bytes(),
        );
        peer
    }

    /// Takes a connection up to the welcome, which says `protocol`.
    pub fn welcome(&self, protocol: u32) -> RawPeer {
        let mut peer = self.accept_as(SUBPROTOCOL);
        peer.await_control("hello");
        let agent = "a test".to_owned();
        let welcome =
            Control::Welcome { protocol, instance: Epoch(1), agent, clock_ns: wall_ns(), sees: Vec::new() };
        peer.control(&welcome);
        peer
    }
}

impl Default for FakeRelay {
    fn default() -> Self {
        Self::new()
    }
}
