//! Blocks that are masked before they are sent. A client masks what it sends (RFC 6455, section 5.3). A sniffer
//! keeps each block until it is settled, so it can mask it once, while it is packed and in the processor's cache, keep it
//! so, and have TCP take its pages rather than a copy ([`Payload::is_lent`]).

use bytes::Bytes;

use crate::block::{Header, PackedBlock};
use crate::connection::{Mask, apply_mask};
use crate::message::Cursor;

/// What a data message carries behind its envelope: a packed block, plain or masked.
#[derive(Clone, Debug)]
pub struct Payload {
    /// As they lie in memory.
    pub bytes: Bytes,
    /// They are masked with this, from its first byte on.
    pub mask: Option<Mask>,
    /// Their memory is not written to until the peer has said that it has them, nor ever again if the
    /// connection ends before: TCP may have their pages. For masked ones alone.
    pub is_lent: bool,
}

impl Payload {
    /// The plain bytes: these, or a copy.
    pub fn plain(&self) -> Bytes {
        let Some(mask) = self.mask else { return self.bytes.clone() };
        let mut plain = self.bytes.to_vec();
        apply_mask(&mut plain, mask, 0);
        plain.into()
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, mask: None, is_lent: false }
    }
}

/// A packed block as a sniffer keeps it: plain, or masked. Cloning shares the bytes.
#[derive(Clone, Debug)]
pub struct SealedBlock {
    header: Header,
    bytes: Bytes,
    mask: Option<Mask>,
}

impl SealedBlock {
    /// A block of `header`, all of which is masked.
    pub(crate) fn masked(header: Header, bytes: Bytes, mask: Mask) -> Self {
        Self { header, bytes, mask: Some(mask) }
    }

    /// What its header says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes of the whole block, header and body.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// The place in its stream at which this block begins.
    pub fn begin(&self) -> Cursor {
        self.header.begin()
    }

    /// The place behind it.
    pub fn end(&self) -> Cursor {
        self.header.end_place()
    }

    /// The bytes, to be sent.
    pub fn payload(&self) -> Payload {
        Payload { bytes: self.bytes.clone(), mask: self.mask, is_lent: false }
    }

    /// The packed block; a masked one is copied.
    pub fn plain(&self) -> PackedBlock {
        let plain = PackedBlock::new(self.payload().plain());
        // It was made of one, or by the packer, which made header and bytes agree.
        plain.unwrap_or_else(|error| unreachable!("a packed block that was one before: {error}"))
    }
}

impl From<PackedBlock> for SealedBlock {
    fn from(block: PackedBlock) -> Self {
        Self { header: *block.header(), bytes: block.bytes().clone(), mask: None }
    }
}
