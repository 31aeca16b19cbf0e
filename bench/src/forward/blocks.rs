//! Messages of a stream without end: real packed blocks, masked beforehand, so that a message costs
//! its source a new header of 88 bytes and the system call that sends it.

use bytes::Bytes;
use wire::block::{Epoch, HEADER_BYTES, Header, StreamKey};
use wire::connection::apply_mask;
use wire::message::{Announcement, ENVELOPE_BYTES, Envelope};
use wire::pack::Compression;

use super::line::{BINARY, client_head};
use crate::blocks::{Blocks as Made, BlocksError};
use crate::frames::Frames;

/// Bytes of the bodies that follow each other over and over, before they are packed.
const RAW_BYTES: u64 = 8 << 20;
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
    pub fn pack(frames: &Frames, epoch: Epoch, mask: [u8; 4]) -> Result<Self, BlocksError> {
        let key = StreamKey { epoch, stream: 0 };
        let made = Made::of_frames(frames, key, Compression::Lz4, RAW_BYTES)?;
        let mut bodies = Vec::new();
        for block in &made.packets {
            let mut body = block.body().to_vec();
            // Envelope and header are a multiple of four bytes, so the phase is the same.
            apply_mask(&mut body, mask, 0);
            bodies.push((*block.header(), Bytes::from(body)));
        }
        let next = *made.packets.first().ok_or(BlocksError::Empty)?.header();
        Ok(Self { mask, next, description: made.description.bytes().clone(), bodies })
    }

    /// What a relay is told of the stream.
    pub fn announcement(&self) -> Announcement {
        let interfaces = vec!["cap".to_owned()];
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
