//! Messages of a stream without end: real packed blocks, masked beforehand, so that a message costs
//! its source a new header of 88 bytes and the system call that sends it.

use std::io;

use bytes::Bytes;
use wire::Interface;
use wire::block::{Epoch, HEADER_BYTES, Header, Kind, StreamKey};
use wire::connection::apply_mask;
use wire::description::Description;
use wire::message::{Announcement, ENVELOPE_BYTES, Envelope};
use wire::pack::{Compression, Packer};
use wire::pool::Pool;

use super::line::{BINARY, client_head};
use crate::frames::Frames;

/// Different blocks that follow each other.
const BLOCK_COUNT: usize = 8;
/// Bytes of a body before it is packed; the sniffer's are a quarter of that.
const BODY_BYTES: usize = 1 << 20;
/// Bytes of a message before the body, WebSocket's header included, at most.
const HEAD_BYTES_MAX: usize = 14 + ENVELOPE_BYTES + HEADER_BYTES;

/// A stream of blocks, and how far it has come.
#[derive(Debug)]
pub struct Blocks {
    mask: [u8; 4],
    next: Header,
    description: Bytes,
    bodies: Vec<(Header, Bytes)>,
}

/// A message: its head, and the body that is shared with others.
#[derive(Debug)]
pub struct Message {
    /// Sequence of its block.
    pub sequence: u64,
    /// WebSocket's header, envelope and block header, the latter two masked.
    pub head: Vec<u8>,
    /// The body, masked.
    pub body: Bytes,
}

impl Blocks {
    /// Packs frames over and over into blocks of stream 0 of a run, for messages with this mask.
    pub fn pack(frames: &Frames, epoch: Epoch, mask: [u8; 4]) -> io::Result<Self> {
        let failed = |what: &str| io::Error::other(format!("blocks could not be made: {what}"));
        let key = StreamKey { epoch, stream: 0 };
        let pool = Pool::new(64 << 20);
        let mut packer = Packer::new(key, pool, BODY_BYTES, Compression::Lz4);
        let interface = Interface { name: "load".to_owned(), link_type: 1, ..Interface::default() };
        let description = Description { interfaces: vec![interface], ..Description::default() };
        let description = packer
            .seal_json(Kind::Description, &description, 1, false)
            .ok_or_else(|| failed("no description"))?;
        let (mut bodies, mut index) = (Vec::new(), 0);
        while bodies.len() < BLOCK_COUNT {
            if !packer.prepare() {
                return Err(failed("no buffer"));
            }
            let frame = frames.frame(index % frames.count());
            let options = [2, 0, 4, 0, 1, 0, 0, 0]; // epb_flags
            if packer.push(0, index as u64, frame.len() as u32, [frame], &options).is_ok() {
                index += 1;
                continue;
            }
            let block = packer.seal().ok_or_else(|| failed("a frame does not fit"))?;
            let mut body = block.body().to_vec();
            // Envelope and header are a multiple of four bytes, so the phase is the same.
            apply_mask(&mut body, mask, 0);
            bodies.push((*block.header(), Bytes::from(body)));
        }
        let next = Header { sequence: 1, packets_before: 0, bytes_before: 0, ..bodies[0].0 };
        Ok(Self { mask, next, description: description.bytes().clone(), bodies })
    }

    /// What a relay is told of the stream.
    pub fn announcement(&self) -> Announcement {
        let interfaces = vec!["load".to_owned()];
        Announcement { key: self.next.key, interfaces, opened_ns: 1, ..Announcement::default() }
    }

    /// The message that comes first.
    pub fn description(&self) -> Message {
        let mut payload = [&Envelope::default().emit()[..], &self.description].concat();
        apply_mask(&mut payload, self.mask, 0);
        let head = client_head(BINARY, payload.len(), self.mask);
        Message { sequence: 0, head, body: payload.into() }
    }

    /// The next message.
    pub fn next_message(&mut self) -> Message {
        let sequence = self.next.sequence;
        let (of, body) = &self.bodies[sequence as usize % self.bodies.len()];
        let Header { key, packets_before, bytes_before, .. } = self.next;
        let header = Header { key, sequence, packets_before, bytes_before, ..*of };
        self.next.sequence += 1;
        self.next.packets_before += u64::from(of.packet_count);
        self.next.bytes_before += u64::from(of.byte_count);
        let mut bytes = [0; ENVELOPE_BYTES + HEADER_BYTES];
        let (envelope, block) = bytes.split_at_mut(ENVELOPE_BYTES);
        envelope.copy_from_slice(&Envelope::default().emit());
        if let Some(block) = block.first_chunk_mut() {
            header.emit(block);
        }
        apply_mask(&mut bytes, self.mask, 0);
        let mut head = Vec::with_capacity(HEAD_BYTES_MAX);
        head.extend(client_head(BINARY, bytes.len() + body.len(), self.mask));
        head.extend_from_slice(&bytes);
        Message { sequence, head, body: body.clone() }
    }

    /// Bytes of a message, on average.
    pub fn message_bytes(&self) -> usize {
        let bodies: usize = self.bodies.iter().map(|(_, body)| body.len()).sum();
        HEAD_BYTES_MAX + bodies / self.bodies.len()
    }
}

impl Message {
    /// All of its bytes.
    pub fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// It has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use wire::block::PackedBlock;

    use super::*;
    use crate::frames::{Payload, Size};

    #[test]
    fn messages_are_whole_blocks_in_sequence() {
        let (mask, frames) = ([1, 2, 3, 4], Frames::make(Size::Mix, Payload::Text));
        let mut blocks = Blocks::pack(&frames, Epoch(7), mask).expect("blocks");
        let (mut place, mut unpacked) = (None, Vec::new());
        for message in [blocks.description()].into_iter().chain((0..20).map(|_| blocks.next_message())) {
            let bytes = [&message.head[..], &message.body].concat();
            let head = client_head(BINARY, bytes.len() - 14, mask);
            let head_bytes = if bytes.len() - 14 < 65_536 { 8 } else { 14 };
            let mut payload = bytes[head_bytes..].to_vec();
            assert!(head.len() <= 14 && bytes[0] == 0x82);
            apply_mask(&mut payload, mask, 0);
            Envelope::parse(&payload).expect("an envelope");
            let block = PackedBlock::new(payload.split_off(ENVELOPE_BYTES).into()).expect("a block");
            unpacked.clear();
            block.unpack_into(&mut unpacked).expect("a sound body");
            assert_eq!(place.unwrap_or(block.begin()), block.begin());
            assert_eq!(block.header().sequence, message.sequence);
            place = Some(block.end());
        }
    }
}
