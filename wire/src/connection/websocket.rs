//! RFC 6455 over the caller's bytes: a deframer that has long payloads read straight into pooled
//! buffers and unmasks them in place, and short ones as it copies them there; and the writing of frame
//! headers. No I/O.
//!
//! What a peer makes us hold is bounded by what it has sent: a text message grows with its bytes,
//! and the staging buffer is there only while bytes come. A binary message has its whole buffer from
//! the first byte on; only a peer that is known may send one.
//!
//! tungstenite reads and writes the frame header and makes the handshake; its own connection type
//! is not used, since it copies each payload into one growing buffer per connection.

use std::io::{self, Cursor};

use bytes::Bytes;
use thiserror::Error;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control as ControlCode, Data as DataCode, OpCode};

use super::text::Text;
use crate::pool::{Buffer, Pool};

/// Bytes of the staging buffer: headers, text, control messages, short payloads and the beginnings of others.
const STAGING_BYTES: usize = 16 << 10;
/// Bytes of it until they were once used up: enough for a hello.
const STAGING_FIRST_BYTES: usize = 1 << 10;
/// Behind a payload shorter than this, as many bytes are read as the staging buffer holds: more like it,
/// and a read is dearer than to copy them, the more as unmasking is a copy as well.
const LONG_BYTES: usize = 8 << 10;
/// Bytes that are read behind a longer one: the header of the next frame, or a control message. More
/// would be copied for nothing.
const BEHIND_LONG_BYTES: usize = 256;
const _: () = assert!(BEHIND_LONG_BYTES <= STAGING_FIRST_BYTES);
/// Most payload bytes of a control frame (RFC 6455, section 5.5).
const CONTROL_PAYLOAD_MAX: u64 = 125;

/// What a payload is XORed with, byte by byte and over and over (RFC 6455, section 5.3).
pub type Mask = [u8; 4];

/// A whole message, or a control frame.
#[derive(Debug)]
pub enum Incoming {
    /// A text message, which is UTF-8.
    Text(Vec<u8>),
    /// A binary message, in a buffer of the pool.
    Binary(Bytes),
    /// A ping, to be answered with its payload.
    Ping(Vec<u8>),
    /// An answer to a ping.
    Pong,
    /// The peer closes, with its reason.
    Close {
        /// Status code (section 7.4), one that may be sent; 1005 if there was none.
        code: u16,
        /// Reason for people.
        reason: String,
    },
}

/// What [`Deframer::poll`] found.
#[derive(Debug)]
pub enum Polled {
    /// A message is whole.
    Message(Incoming),
    /// More bytes are needed.
    NeedBytes,
    /// The pool has no buffer for the next message; try again when one is free.
    NeedBuffer,
}

/// How a peer broke the WebSocket protocol.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum FrameError {
    #[error("websocket: {0}")]
    Malformed(&'static str),
    #[error("websocket: text that is not UTF-8")]
    NotUtf8,
    #[error("websocket: message of {found} bytes, at most {limit} are taken here")]
    TooLong { found: u64, limit: usize },
    #[error("websocket: a binary message of {found} bytes; no binary message is taken here")]
    Unwanted { found: u64 },
}

impl FrameError {
    /// The status code of the close frame that tells the peer (RFC 6455, section 7.4.1).
    pub fn close_code(&self) -> u16 {
        match self {
            FrameError::Malformed(_) => 1002,
            FrameError::NotUtf8 => 1007,
            FrameError::TooLong { .. } => 1009,
            FrameError::Unwanted { .. } => 1003,
        }
    }
}

/// Longest messages taken, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Text messages.
    pub text_bytes: usize,
    /// Binary messages; 0: none, not even an empty one.
    pub binary_bytes: usize,
}

/// Takes a byte stream apart into messages.
#[derive(Debug)]
pub struct Deframer {
    /// Frames must be masked (we are the server) or must not be (we are the client).
    masked: bool,
    limits: Limits,
    /// Empty while no bytes come.
    staging: Vec<u8>,
    /// How large the staging buffer is to be.
    staging_bytes: usize,
    /// Unread bytes of the staging buffer are `start..end`.
    start: usize,
    end: usize,
    frame: Option<Frame>,
    /// Earlier frames of a fragmented message.
    fragments: Option<Fragments>,
}

/// What earlier frames of a message brought.
#[derive(Debug)]
enum Fragments {
    Text(Text),
    Binary(Buffer),
}

impl Fragments {
    fn len(&self) -> usize {
        match self {
            Fragments::Text(text) => text.len(),
            Fragments::Binary(buffer) => buffer.len(),
        }
    }
}

/// The data frame being read.
#[derive(Debug)]
struct Frame {
    is_final: bool,
    mask: Option<Mask>,
    target: Target,
    /// Bytes of the message that earlier frames brought.
    base: usize,
    /// Bytes of the message that are there.
    filled: usize,
    /// Bytes of the message once this frame is whole.
    end: usize,
}

#[derive(Debug)]
enum Target {
    Text(Text),
    Pooled(Buffer),
    /// A binary frame whose buffer could not be had yet.
    Wanted,
}

impl Deframer {
    /// `masked`: the peer is a client, so its frames must be masked; a server's must not.
    pub fn new(masked: bool, limits: Limits) -> Self {
        Self {
            masked,
            limits,
            staging: Vec::new(),
            staging_bytes: STAGING_FIRST_BYTES,
            start: 0,
            end: 0,
            frame: None,
            fragments: None,
        }
    }

    /// Changes the limits, for the messages that follow.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Where the next bytes of the peer go, in this order: into the payload itself where one is under way,
    /// and behind it into the staging buffer. Both are empty only while a buffer is wanted and the
    /// staging buffer is full.
    pub fn spaces(&mut self) -> [&mut [u8]; 2] {
        if self.start > 0 {
            self.staging.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.staging.len() < self.staging_bytes {
            self.staging.resize(self.staging_bytes, 0);
        }
        let staging = &mut self.staging[self.end..];
        match &mut self.frame {
            Some(Frame { target: Target::Pooled(buffer), base, filled, end, .. }) if self.end == 0 => {
                let behind = if *end - *base < LONG_BYTES { staging.len() } else { BEHIND_LONG_BYTES };
                [&mut buffer[*filled..*end], &mut staging[..behind]]
            }
            _ => [staging, &mut []],
        }
    }

    /// `count` bytes have been written to [`Deframer::spaces`].
    pub fn filled(&mut self, count: usize) {
        let mut staged = count;
        if let Some(frame) = &mut self.frame
            && self.start == self.end
            && matches!(frame.target, Target::Pooled(_))
        {
            let payload = count.min(frame.end - frame.filled);
            frame.advance(payload);
            staged -= payload;
        }
        self.end = (self.end + staged).min(self.staging.len());
        if self.end == self.staging.len() {
            self.staging_bytes = STAGING_BYTES;
        }
    }

    /// Takes of `bytes`, as a read would, what there is room for: so many.
    pub fn take(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        for space in self.spaces() {
            let count = space.len().min(bytes.len() - taken);
            space[..count].copy_from_slice(&bytes[taken..taken + count]);
            taken += count;
        }
        self.filled(taken);
        taken
    }

    /// Gives up the staging buffer while no bytes wait in it; it comes back with the next.
    pub fn release(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            self.staging = Vec::new();
            self.staging_bytes = STAGING_FIRST_BYTES;
        }
    }

    /// Puts bytes read before (behind a handshake) in front.
    pub fn preload(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        if bytes.is_empty() {
            return Ok(());
        }
        if bytes.len() > STAGING_FIRST_BYTES {
            self.staging_bytes = STAGING_BYTES;
        }
        if self.take(bytes) < bytes.len() {
            return Err(FrameError::Malformed("too many bytes behind the handshake"));
        }
        Ok(())
    }

    /// The next message, as far as the bytes handed in go.
    pub fn poll(&mut self, pool: &Pool) -> Result<Polled, FrameError> {
        loop {
            let Some(frame) = &mut self.frame else {
                match self.header()? {
                    Some(Begun::Control(message)) => return Ok(Polled::Message(message)),
                    Some(Begun::Data) => continue,
                    None => return Ok(Polled::NeedBytes),
                }
            };
            if let Target::Wanted = frame.target {
                let Some(buffer) = room_for(frame.end, &mut self.fragments, pool) else {
                    return Ok(Polled::NeedBuffer);
                };
                frame.target = Target::Pooled(buffer);
            }
            let wanted = frame.end - frame.filled;
            let here = wanted.min(self.end - self.start);
            if here > 0 {
                frame.copy(&self.staging[self.start..self.start + here])?;
                self.start += here;
            }
            if here < wanted {
                return Ok(Polled::NeedBytes);
            }
            if let Some(message) = self.finish_frame()? {
                return Ok(Polled::Message(message));
            }
        }
    }

    /// Reads a frame header; a control frame is taken whole.
    fn header(&mut self) -> Result<Option<Begun>, FrameError> {
        let unread = &self.staging[self.start..self.end];
        let mut cursor = Cursor::new(unread);
        let parsed = FrameHeader::parse(&mut cursor).map_err(|_| FrameError::Malformed("invalid opcode"))?;
        let Some((header, length)) = parsed else { return Ok(None) };
        let header_len = cursor.position() as usize;
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(FrameError::Malformed("reserved bits are set"));
        }
        if header.mask.is_some() != self.masked {
            let text =
                if self.masked { "a client's frame is not masked" } else { "a server's frame is masked" };
            return Err(FrameError::Malformed(text));
        }
        let code = match header.opcode {
            OpCode::Data(code) => code,
            OpCode::Control(code) => {
                if !header.is_final || length > CONTROL_PAYLOAD_MAX {
                    return Err(FrameError::Malformed("a control frame is fragmented or over 125 bytes"));
                }
                let end = header_len + length as usize;
                let Some(payload) = unread.get(header_len..end) else { return Ok(None) };
                let mut payload = payload.to_vec();
                if let Some(mask) = header.mask {
                    apply_mask(&mut payload, mask, 0);
                }
                self.start += end;
                return control(code, payload).map(|message| Some(Begun::Control(message)));
            }
        };
        let (is_text, before) = match (&self.fragments, code) {
            (Some(earlier), DataCode::Continue) => (matches!(earlier, Fragments::Text(_)), earlier.len()),
            (None, DataCode::Text) => (true, 0),
            (None, DataCode::Binary) => (false, 0),
            (Some(_), _) => return Err(FrameError::Malformed("a new message inside a fragmented one")),
            (None, _) => return Err(FrameError::Malformed("a continuation of nothing")),
        };
        let limit = if is_text { self.limits.text_bytes } else { self.limits.binary_bytes };
        let found = (before as u64).saturating_add(length);
        if !is_text && limit == 0 {
            return Err(FrameError::Unwanted { found });
        }
        if found > limit as u64 {
            return Err(FrameError::TooLong { found, limit });
        }
        self.start += header_len;
        let target = match is_text {
            true => Target::Text(match self.fragments.take() {
                Some(Fragments::Text(earlier)) => earlier,
                _ => Text::default(),
            }),
            false => Target::Wanted,
        };
        self.frame = Some(Frame {
            is_final: header.is_final,
            mask: header.mask,
            target,
            base: before,
            filled: before,
            end: found as usize, // at most `limit`
        });
        Ok(Some(Begun::Data))
    }

    /// The frame under way is whole; so is the message if it was the last.
    fn finish_frame(&mut self) -> Result<Option<Incoming>, FrameError> {
        let Some(frame) = self.frame.take() else { return Ok(None) };
        match (frame.target, frame.is_final) {
            (Target::Pooled(buffer), true) => return Ok(Some(Incoming::Binary(buffer.freeze()))),
            (Target::Pooled(buffer), false) => self.fragments = Some(Fragments::Binary(buffer)),
            (Target::Text(text), true) => return text.finish().map(|text| Some(Incoming::Text(text))),
            (Target::Text(text), false) => self.fragments = Some(Fragments::Text(text)),
            (Target::Wanted, _) => {}
        }
        Ok(None)
    }
}

/// A buffer for a binary message of `len` bytes so far, with what earlier fragments brought at its
/// beginning. It grows by doubling, so many fragments are not copied over and over.
fn room_for(len: usize, fragments: &mut Option<Fragments>, pool: &Pool) -> Option<Buffer> {
    let Some(Fragments::Binary(mut earlier)) = fragments.take() else { return pool.take(len) };
    if earlier.set_len(len) {
        return Some(earlier);
    }
    let brought = earlier.len();
    // Twice as much may be more than the pool's largest buffer.
    match pool.take(len.max(brought * 2)).or_else(|| pool.take(len)) {
        Some(mut larger) => {
            larger[..brought].copy_from_slice(&earlier);
            larger.truncate(len);
            Some(larger)
        }
        None => {
            *fragments = Some(Fragments::Binary(earlier));
            None
        }
    }
}

/// What a frame header began.
enum Begun {
    Control(Incoming),
    Data,
}

impl Frame {
    /// `count` more bytes are in the buffer: unmasks them while they are in the cache.
    fn advance(&mut self, count: usize) {
        let until = (self.filled + count).min(self.end);
        if let (Some(mask), Target::Pooled(buffer)) = (self.mask, &mut self.target) {
            apply_mask(&mut buffer[self.filled..until], mask, self.filled - self.base);
        }
        self.filled = until;
    }

    /// Takes bytes from the staging buffer, no more than are missing.
    fn copy(&mut self, from: &[u8]) -> Result<(), FrameError> {
        match &mut self.target {
            Target::Pooled(buffer) => {
                let to = &mut buffer[self.filled..self.filled + from.len()];
                match self.mask {
                    Some(mask) => copy_masked(from, to, mask, self.filled - self.base),
                    None => to.copy_from_slice(from),
                }
                self.filled += from.len();
            }
            Target::Text(text) => {
                text.push(from, self.mask, self.filled - self.base)?;
                self.filled += from.len();
            }
            Target::Wanted => {}
        }
        Ok(())
    }
}

fn control(code: ControlCode, payload: Vec<u8>) -> Result<Incoming, FrameError> {
    match code {
        ControlCode::Ping => Ok(Incoming::Ping(payload)),
        ControlCode::Pong => Ok(Incoming::Pong),
        ControlCode::Close => close(&payload),
        ControlCode::Reserved(_) => Err(FrameError::Malformed("a reserved opcode")),
    }
}

/// The body of a close frame (section 5.5.1).
fn close(payload: &[u8]) -> Result<Incoming, FrameError> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return match payload.is_empty() {
            true => Ok(Incoming::Close { code: 1005, reason: String::new() }),
            false => Err(FrameError::Malformed("a close frame of one byte")),
        };
    };
    let code = u16::from_be_bytes(*code);
    if !is_sendable(code) {
        return Err(FrameError::Malformed("a close frame with a code that nobody may send"));
    }
    let reason = str::from_utf8(reason).map_err(|_| FrameError::NotUtf8)?;
    Ok(Incoming::Close { code, reason: reason.to_owned() })
}

/// Whether a close frame may carry the code: those of section 7.4.1 and of its registry at IANA, of
/// libraries (3000 on) and of applications (4000 on).
fn is_sendable(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// What kind of frame to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// A text message.
    Text,
    /// A binary message.
    Binary,
    /// An answer to a ping.
    Pong,
    /// A close frame.
    Close,
}

/// Appends the header of a frame of `length` payload bytes.
pub fn write_header(out: &mut Vec<u8>, kind: Outgoing, length: usize, mask: Option<Mask>) {
    let opcode = match kind {
        Outgoing::Text => OpCode::Data(DataCode::Text),
        Outgoing::Binary => OpCode::Data(DataCode::Binary),
        Outgoing::Pong => OpCode::Control(ControlCode::Pong),
        Outgoing::Close => OpCode::Control(ControlCode::Close),
    };
    let header = FrameHeader { opcode, mask, ..FrameHeader::default() };
    // Writing into a Vec has no way to fail.
    let _ = header.format(length as u64, out);
}

/// The mask as eight bytes that begin at `phase` of the payload.
fn wide_mask(mask: Mask, phase: usize) -> u64 {
    let rotated: [u8; 8] = std::array::from_fn(|index| mask[(phase + index) % 4]);
    u64::from_ne_bytes(rotated)
}

/// XORs `data`, which begins `phase` bytes into the payload, with the mask (section 5.3).
pub fn apply_mask(data: &mut [u8], mask: Mask, phase: usize) {
    let wide = wide_mask(mask, phase);
    let mut chunks = data.chunks_exact_mut(8);
    for chunk in &mut chunks {
        if let Ok(bytes) = <[u8; 8]>::try_from(&*chunk) {
            chunk.copy_from_slice(&(u64::from_ne_bytes(bytes) ^ wide).to_ne_bytes());
        }
    }
    for (byte, key) in chunks.into_remainder().iter_mut().zip(wide.to_ne_bytes()) {
        *byte ^= key;
    }
}

/// A mask that a party which can choose what we capture cannot predict (RFC 6455, section 10.3).
pub fn random_mask() -> io::Result<Mask> {
    let mut mask = [0; 4];
    getrandom::fill(&mut mask).map_err(io::Error::other)?;
    Ok(mask)
}

/// Copies `from` to `to`, of the same length, XORed with the mask from `phase` on: the one copy
/// that masking allows the uplink, and that of short payloads out of the staging buffer.
pub fn copy_masked(from: &[u8], to: &mut [u8], mask: Mask, phase: usize) {
    let wide = wide_mask(mask, phase);
    let mut targets = to.chunks_exact_mut(8);
    let mut sources = from.chunks_exact(8);
    for (target, source) in (&mut targets).zip(&mut sources) {
        if let Ok(bytes) = <[u8; 8]>::try_from(source) {
            target.copy_from_slice(&(u64::from_ne_bytes(bytes) ^ wide).to_ne_bytes());
        }
    }
    let rest = targets.into_remainder().iter_mut().zip(sources.remainder());
    for ((target, source), key) in rest.zip(wide.to_ne_bytes()) {
        *target = source ^ key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { text_bytes: 1 << 20, binary_bytes: 1 << 20 };

    fn frame(head: u8, mask: Option<Mask>, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![head];
        let bit = if mask.is_some() { 0x80 } else { 0 };
        match payload.len() {
            length @ 0..=125 => out.push(bit | length as u8),
            length @ 126..=65535 => {
                out.push(bit | 126);
                out.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                out.push(bit | 127);
                out.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        let start = out.len() + mask.map_or(0, |mask| mask.len());
        out.extend(mask.iter().flatten());
        out.extend_from_slice(payload);
        if let Some(mask) = mask {
            for (index, byte) in out[start..].iter_mut().enumerate() {
                *byte ^= mask[index % 4];
            }
        }
        out
    }

    /// Feeds `bytes` in pieces of the given sizes, in turn.
    fn feed(bytes: &[u8], sizes: &[usize], masked: bool) -> Result<Vec<String>, FrameError> {
        let pool = Pool::new(8 << 20);
        let mut deframer = Deframer::new(masked, LIMITS);
        let mut seen = Vec::new();
        let mut rest = bytes;
        let mut turn = sizes.iter().cycle();
        loop {
            match deframer.poll(&pool)? {
                Polled::Message(message) => seen.push(match message {
                    Incoming::Text(text) => format!("text {}", text.escape_ascii()),
                    Incoming::Binary(bytes) => {
                        format!("binary {} {:08x}", bytes.len(), crc32fast::hash(&bytes))
                    }
                    Incoming::Ping(payload) => format!("ping {}", payload.len()),
                    Incoming::Pong => "pong".to_owned(),
                    Incoming::Close { code, reason } => format!("close {code} {reason}"),
                }),
                Polled::NeedBuffer => panic!("the pool is large enough"),
                Polled::NeedBytes if rest.is_empty() => return Ok(seen),
                Polled::NeedBytes => {
                    let size = *turn.next().expect("cycles").max(&1);
                    let taken = deframer.take(&rest[..rest.len().min(size)]);
                    rest = &rest[taken..];
                }
            }
        }
    }

    #[test]
    fn messages_come_out_whatever_the_pieces() {
        let big: Vec<u8> = (0..300_000u32).map(|value| (value % 251) as u8).collect();
        for mask in [None, Some([1, 2, 3, 4])] {
            let bytes = [
                frame(0x81, mask, b"hi"),
                frame(0x82, mask, &big),
                frame(0x01, mask, b"frag"),
                frame(0x89, mask, b"in between"),
                frame(0x80, mask, b"mented"),
                frame(0x02, mask, &big[..200]),
                frame(0x80, mask, &big[200..]),
                frame(0x82, mask, b""),
                frame(0x88, mask, &[&1000u16.to_be_bytes()[..], b"bye"].concat()),
            ]
            .concat();
            let binary = format!("binary 300000 {:08x}", crc32fast::hash(&big));
            let expected = [
                "text hi",
                &binary,
                "ping 10",
                "text fragmented",
                &binary,
                "binary 0 00000000",
                "close 1000 bye",
            ];
            for sizes in [&[1][..], &[7, 4096], &[65_536], &[3, 1, 100_000]] {
                assert_eq!(feed(&bytes, sizes, mask.is_some()).expect("well formed"), expected);
            }
        }
    }

    #[test]
    fn broken_frames_are_refused() {
        let mask = Some([9, 8, 7, 6]);
        let cases: [(Vec<u8>, &str); 9] = [
            (frame(0x82, None, b"x"), "not masked"),
            (frame(0xc2, mask, b"x"), "reserved bits"),
            (frame(0x83, mask, b"x"), "opcode"),
            (frame(0x80, mask, b"x"), "continuation of nothing"),
            ([frame(0x01, mask, b"x"), frame(0x82, mask, b"x")].concat(), "inside a fragmented"),
            (frame(0x09, mask, b"x"), "control frame"),
            (frame(0x89, mask, &[0; 126]), "control frame"),
            (frame(0x88, mask, b"x"), "of one byte"),
            (vec![0x82, 0xff, 0, 0, 0, 0, 0, 0x20, 0, 0, 1, 1, 1, 1], "2097152 bytes"),
        ];
        for (bytes, text) in cases {
            let error = feed(&bytes, &[1000], true).expect_err(text);
            let code = if matches!(error, FrameError::TooLong { .. }) { 1009 } else { 1002 };
            assert_eq!(error.close_code(), code);
            assert!(error.to_string().contains(text) || text == "opcode", "{error}");
        }
        assert!(feed(&frame(0x82, mask, b"x"), &[9], false).is_err());
        let huge = [&[0x82, 0xff][..], &[0xff; 8], &[0; 4]].concat();
        assert!(matches!(
            feed(&huge, &[9], true),
            Err(FrameError::TooLong { .. } | FrameError::Malformed(_))
        ));
    }

    #[test]
    fn text_must_be_text() {
        for mask in [None, Some([1, 2, 3, 4])] {
            let feed = |frames: &[Vec<u8>], size| feed(&frames.concat(), &[size], mask.is_some());
            for size in [1, 2, 1000] {
                let good = [frame(0x01, mask, b"\xce\xba\xe1"), frame(0x80, mask, b"\xbd\xb9")];
                assert_eq!(feed(&good, size), Ok(vec![r"text \xce\xba\xe1\xbd\xb9".to_owned()]));
                let close = [1003u16.to_be_bytes().as_slice(), b"\xff"].concat();
                for bad in [
                    vec![frame(0x81, mask, b"a\xff")],
                    vec![frame(0x81, mask, b"\xe1\xbd")],
                    vec![frame(0x01, mask, b"a"), frame(0x80, mask, b"\x80")],
                    vec![frame(0x01, mask, b"\xe1"), frame(0x89, mask, b"\xff"), frame(0x80, mask, b"")],
                    vec![frame(0x88, mask, &close)],
                ] {
                    let error = feed(&bad, size).expect_err("not UTF-8");
                    assert_eq!((&error, error.close_code()), (&FrameError::NotUtf8, 1007));
                }
                // What is wrong ends it before the rest is there.
                let half = &frame(0x81, mask, b"a\xffbcdefgh")[..if mask.is_some() { 9 } else { 5 }];
                assert_eq!(feed(&[half.to_vec()], size), Err(FrameError::NotUtf8));
                let binary = feed(&[frame(0x82, mask, b"a\xff")], size).expect("any bytes");
                assert!(binary[0].starts_with("binary 2 "));
            }
        }
    }

    #[test]
    fn close_codes() {
        let close = |code: u16| feed(&frame(0x88, None, &code.to_be_bytes()), &[100], false);
        for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4999]
        {
            assert_eq!(close(code), Ok(vec![format!("close {code} ")]));
        }
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535] {
            assert_eq!(close(code).map_err(|error| error.close_code()), Err(1002), "{code}");
        }
        assert_eq!(feed(&frame(0x88, None, b""), &[100], false), Ok(vec!["close 1005 ".to_owned()]));
    }

    /// Gives `bytes` to the deframer as a socket would, and says how much memory it holds then.
    fn held_after(deframer: &mut Deframer, pool: &Pool, mut bytes: &[u8]) -> usize {
        while !bytes.is_empty() {
            bytes = &bytes[deframer.take(bytes)..];
            let _ = deframer.poll(pool);
        }
        deframer.staging.capacity()
    }

    #[test]
    fn strangers_cost_what_they_send() {
        let pool = Pool::new(1 << 20);
        let limits = Limits { text_bytes: 64 << 10, binary_bytes: 0 };
        let mut deframer = Deframer::new(false, limits);
        assert_eq!(held_after(&mut deframer, &pool, b""), 0);
        // A text of 64 KiB is declared, and little of it comes.
        let declared = frame(0x81, None, &[b'a'; 65_000]);
        assert_eq!(held_after(&mut deframer, &pool, &declared[..500]), STAGING_FIRST_BYTES);
        let Some(Frame { target: Target::Text(text), .. }) = &deframer.frame else { panic!("a text") };
        assert!(text.len() <= 500);
        // What comes in bulk is read in bulk, until nothing comes.
        assert_eq!(held_after(&mut deframer, &pool, &declared[500..]), STAGING_BYTES);
        deframer.release();
        assert_eq!(held_after(&mut deframer, &pool, b""), 0);
        assert_eq!(held_after(&mut deframer, &pool, &declared[..3]), STAGING_FIRST_BYTES);
        deframer.release();
        assert_eq!(deframer.staging.len(), STAGING_FIRST_BYTES, "three bytes of a header wait");
        // A binary message takes no buffer.
        for found in [0u8, 100] {
            let mut deframer = Deframer::new(false, limits);
            deframer.preload(&frame(0x02, None, &vec![5; found.into()])).expect("fits");
            let error = deframer.poll(&pool).expect_err("unwanted");
            assert_eq!(error, FrameError::Unwanted { found: found.into() });
            assert_eq!((error.close_code(), pool.used_bytes()), (1003, 0));
        }
    }

    #[test]
    fn the_next_header_comes_with_the_payload_before() {
        let pool = Pool::new(1 << 20);
        for (length, behind) in [(LONG_BYTES, BEHIND_LONG_BYTES), (LONG_BYTES - 1, STAGING_FIRST_BYTES)] {
            let mut deframer = Deframer::new(true, LIMITS);
            let first = frame(0x82, Some([1, 2, 3, 4]), &vec![7; length]);
            let second = frame(0x82, Some([5, 6, 7, 8]), &[9; 5]);
            deframer.preload(&first[..103]).expect("fits");
            assert!(matches!(deframer.poll(&pool), Ok(Polled::NeedBytes)));
            assert_eq!(deframer.spaces().map(|space| space.len()), [first.len() - 103, behind]);
            assert_eq!(deframer.take(&[&first[103..], &second].concat()), first.len() - 103 + second.len());
            for payload in [vec![7; length], vec![9; 5]] {
                let Ok(Polled::Message(Incoming::Binary(bytes))) = deframer.poll(&pool) else {
                    panic!("whole")
                };
                assert_eq!(bytes, payload);
            }
        }
    }

    #[test]
    fn fragments_up_to_the_largest_buffer() {
        let limit = 24 << 20;
        let pool = Pool::new(64 << 20);
        let mut deframer = Deframer::new(false, Limits { text_bytes: 0, binary_bytes: limit });
        // Doubled, this would be more than the pool has buffers for.
        let parts = [frame(0x02, None, &vec![1; 13 << 20]), frame(0x80, None, &vec![2; 11 << 20])].concat();
        let mut rest = &parts[..];
        let bytes = loop {
            match deframer.poll(&pool).expect("sound frames") {
                Polled::Message(Incoming::Binary(bytes)) => break bytes,
                Polled::NeedBytes if !rest.is_empty() => {
                    rest = &rest[deframer.take(rest)..];
                }
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((bytes.len(), bytes[13 << 20]), (limit, 2));
    }

    #[test]
    fn a_missing_buffer_is_waited_for() {
        let pool = Pool::new(1024);
        let held = pool.take(1024).expect("all of it");
        let mut deframer = Deframer::new(false, LIMITS);
        deframer.preload(&frame(0x82, None, &[5; 100])).expect("fits");
        assert!(matches!(deframer.poll(&pool), Ok(Polled::NeedBuffer)));
        drop(held);
        assert!(matches!(deframer.poll(&pool), Ok(Polled::Message(Incoming::Binary(_)))));
    }

    proptest! {
        #[test]
        fn masking_agrees_with_the_definition(
            data in proptest::collection::vec(any::<u8>(), 0..100), mask: Mask, phase in 0usize..9,
        ) {
            let expected: Vec<u8> =
                data.iter().enumerate().map(|(index, byte)| byte ^ mask[(phase + index) % 4]).collect();
            let mut copied = vec![0; data.len()];
            copy_masked(&data, &mut copied, mask, phase);
            prop_assert_eq!(&copied, &expected);
            let mut in_place = data;
            apply_mask(&mut in_place, mask, phase);
            prop_assert_eq!(in_place, expected);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), masked: bool) {
            let _ = feed(&bytes, &[13], masked);
        }
    }
}
