//! Packing: frames are gathered as Enhanced Packet Blocks into one pooled buffer, which is then
//! compressed into another, or becomes the packed block itself when compression does not pay.
//!
//! The gather buffer keeps room for the header in front of the body, so a stored block is that
//! very buffer: an incompressible frame is copied once, out of the ring.

use crc32fast::Hasher;
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use serde::Serialize;
use thiserror::Error;

use crate::block::{BODY_BYTES_MAX, BlockError, HEADER_BYTES, Header, Kind, PackedBlock, StreamKey};
use crate::connection::{Mask, apply_mask, copy_masked, random_mask};
use crate::masked::SealedBlock;
use crate::message::Cursor;
use crate::pcapng::{EPB_BYTES_MIN, EPB_HEAD_BYTES, EPB_TYPE};
use crate::pool::{Buffer, GIVEN_BYTES_MIN, Pool};

/// A body is stored when LZ4 leaves more than this share of it, in 1/128: reading it back would
/// cost more than the line saves.
const STORED_SHARE: usize = 124;
/// The same where room is short and so may be CPU: a line is not behind for want of a sixteenth, and who sends
/// what does not shrink, at the limit of its core, would only send less of it.
const SHORT_SHARE: usize = 120;
/// The same where CPU is worth more than the line: what shrinks less costs more to compress and to
/// unpack than the bytes that it saves cost to copy, all the way from here to the reader.
const ROOMY_SHARE: usize = 64;
/// The same for each piece of a body that is looked at: LZ4 has less to refer to there.
const ROOMY_PROBE_SHARE: usize = 74;
/// What of a body is tried first when the one before did not compress: so many pieces, evenly spread, each of so many
/// bytes. Traffic changes within a body, and a wrong guess costs as much as sixty pieces.
const PROBES: usize = 4;
const PROBE_BYTES: usize = 4 << 10;
/// While the line has room, one body in so many is tried after one that did not pay.
const PROBE_INTERVAL: u32 = 4;
/// Bytes of a body that are hashed together: they are still in the first cache.
const HASH_STEP_BYTES: usize = 16 << 10;

/// How bodies are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// LZ4 for what it shrinks to half or less; while room is short, on the line or on the disk
    /// ([`Packer::set_room_is_short`]), for what it shrinks by a sixteenth.
    #[default]
    Auto,
    /// LZ4 block format, or stored where that leaves more than 97 %.
    Lz4,
    /// Always stored.
    None,
}

/// Why a frame was not gathered.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PackError {
    /// The block under way is full: seal it and try again.
    #[error("the packed block is full")]
    Full,
    /// No buffer is free: wait for one.
    #[error("no buffer is free")]
    NoBuffer,
    /// The frame and its options are more than any block can hold.
    #[error("packet of {bytes} bytes with its options: a packed block holds {BODY_BYTES_MAX}")]
    TooLarge {
        /// What the Enhanced Packet Block would take.
        bytes: usize,
    },
}

/// Packs one stream: gathers frames, numbers blocks, keeps the stream's totals.
pub struct Packer {
    key: StreamKey,
    compression: Compression,
    pool: Pool,
    table: CompressTable,
    body_bytes: usize,
    gather: Option<Gather>,
    /// The LZ4 output buffer of the last block that was stored, for the next one.
    spare: Option<Buffer>,
    /// The last body that was tried did not pay.
    does_not_pay: bool,
    /// Bodies that were stored untried since.
    untried: u32,
    room_is_short: bool,
    /// Long blocks are to be masked, in memory that can be lent.
    masks: bool,
    /// What the packet that last found no room takes, if that is more than a usual body.
    wanted_bytes: usize,
    sequence: u64,
    packets_before: u64,
    bytes_before: u64,
}

/// The block under way.
struct Gather {
    buffer: Buffer,
    /// Bytes of the body gathered so far.
    len: usize,
    packet_count: u32,
    byte_count: u32,
    time_min_ns: u64,
    time_max_ns: u64,
    /// Checksum of the first `hashed` bytes of the body; of all of them it goes into the header of a stored one.
    crc: Hasher,
    hashed: usize,
    /// Length at which more is hashed. A body that is likely to be stored is hashed step by step, while it is in the cache.
    hash_at: usize,
    /// It is going to be stored, and what is hashed is masked with this as well.
    mask: Option<Mask>,
}

impl Gather {
    /// Hashes what was gathered since.
    #[cold]
    fn hash(&mut self) {
        let part = &mut self.buffer[HEADER_BYTES + self.hashed..HEADER_BYTES + self.len];
        self.crc.update(part);
        if let Some(mask) = self.mask {
            apply_mask(part, mask, HEADER_BYTES + self.hashed);
        }
        self.hashed = self.len;
        self.hash_at = self.len + HASH_STEP_BYTES;
    }
}

impl Packer {
    /// Packs stream `key` into blocks whose bodies hold `body_bytes` (at most 16 MiB) before
    /// compression, in buffers of `pool`. A larger packet gets a block of its own.
    pub fn new(key: StreamKey, pool: Pool, body_bytes: usize, compression: Compression) -> Self {
        Self {
            key,
            compression,
            pool,
            table: CompressTable::large(),
            body_bytes: body_bytes.min(BODY_BYTES_MAX),
            gather: None,
            spare: None,
            does_not_pay: false,
            untried: 0,
            room_is_short: false,
            masks: false,
            wanted_bytes: 0,
            sequence: 0,
            packets_before: 0,
            bytes_before: 0,
        }
    }

    /// A packer that goes on at a place of a stream: to end one whose run is over.
    pub fn at(place: Cursor, pool: Pool) -> Self {
        let mut packer = Self::new(place.key, pool, 0, Compression::None);
        packer.sequence = place.next_sequence;
        (packer.packets_before, packer.bytes_before) = (place.packets, place.bytes);
        packer
    }

    /// Goes on as stream `key`, from its first block and from zero, with the buffers it has.
    ///
    /// What was gathered must be sealed first: it belongs to the stream before.
    pub fn succeed(&mut self, key: StreamKey) {
        debug_assert!(!self.is_under_way(), "gathered packets belong to the stream before");
        self.key = key;
        self.sequence = 0;
        self.packets_before = 0;
        self.bytes_before = 0;
    }

    /// Whether bytes are dear now, on the line or on the disk, for [`Compression::Auto`]; at first
    /// they are not.
    pub fn set_room_is_short(&mut self, is_short: bool) {
        self.room_is_short = is_short;
    }

    /// Whether long blocks are to be masked from now on, so that they can be sent from where they lie; at first
    /// they are not. For who takes them by [`Packer::seal_for_line`].
    pub fn set_masking(&mut self, masks: bool) {
        self.masks = masks;
    }

    /// The stream being packed.
    pub fn key(&self) -> StreamKey {
        self.key
    }

    /// Sequence number of the next block.
    pub fn next_sequence(&self) -> u64 {
        self.sequence
    }

    /// Packets and captured bytes packed so far, the block under way included.
    pub fn packed(&self) -> (u64, u64) {
        let (packets, bytes) = match &self.gather {
            Some(gather) => (gather.packet_count.into(), gather.byte_count.into()),
            None => (0, 0),
        };
        (self.packets_before + packets, self.bytes_before + bytes)
    }

    /// Whether frames have been gathered that no block holds yet.
    pub fn is_under_way(&self) -> bool {
        self.gather.as_ref().is_some_and(|gather| gather.packet_count > 0)
    }

    /// Bytes of the body under way.
    pub fn gathered_bytes(&self) -> usize {
        self.gather.as_ref().map_or(0, |gather| gather.len)
    }

    /// Gets the buffers for the next block, if it has none yet; large enough for the packet that
    /// last found no room. `false`: none is free.
    pub fn prepare(&mut self) -> bool {
        self.prepare_for(self.body_bytes.max(self.wanted_bytes))
    }

    /// Gives back the buffers of a block that nothing was gathered into, so that an idle stream
    /// holds none.
    pub fn release_if_idle(&mut self) {
        if !self.is_under_way() {
            self.gather = None;
            self.spare = None;
        }
    }

    fn prepare_for(&mut self, body_bytes: usize) -> bool {
        // The buffer for the output is had first, so that sealing cannot fail for want of one.
        if self.compression != Compression::None {
            let bytes = HEADER_BYTES + get_maximum_output_size(body_bytes);
            if self.spare.as_ref().is_none_or(|spare| spare.len() < bytes) {
                self.spare = None;
                let Some(buffer) = self.pool.take(bytes) else { return false };
                self.spare = Some(buffer);
            }
        }
        if self
            .gather
            .as_ref()
            .is_some_and(|gather| gather.packet_count == 0 && gather.buffer.len() < HEADER_BYTES + body_bytes)
        {
            self.gather = None; // too small for the packet that waits
        }
        if self.gather.is_none() {
            let is_likely_stored = self.does_not_pay || self.compression == Compression::None;
            let bytes = HEADER_BYTES + body_bytes;
            // A body that is compressed is gathered where the last one was: in the cache.
            let buffer = match is_likely_stored && self.masks {
                true => self.pool.take_to_lend(bytes),
                false => self.pool.take(bytes),
            };
            let Some(buffer) = buffer else { return false };
            let is_masked = self.masks && buffer.can_be_lent() && !self.is_tried_next();
            self.gather = Some(Gather {
                buffer,
                len: 0,
                packet_count: 0,
                byte_count: 0,
                time_min_ns: u64::MAX,
                time_max_ns: 0,
                crc: Hasher::new(),
                hashed: 0,
                hash_at: if is_likely_stored { HASH_STEP_BYTES } else { usize::MAX },
                mask: if is_masked { random_mask().ok() } else { None },
            });
        }
        true
    }

    /// Gathers one packet: `parts` are its captured bytes in order (a frame, or the pieces around
    /// a VLAN tag), `options` its pcapng options without `opt_endofopt`, padded to four bytes.
    #[inline]
    pub fn push<const N: usize>(
        &mut self,
        interface: u32,
        time_ns: u64,
        original_len: u32,
        parts: [&[u8]; N],
        options: &[u8],
    ) -> Result<(), PackError> {
        let captured_len: usize = parts.iter().map(|part| part.len()).sum();
        let padded = captured_len.next_multiple_of(4);
        let end_of_options = if options.is_empty() { 0 } else { 4 };
        let total = EPB_BYTES_MIN + padded + options.len() + end_of_options;
        let fits = self
            .gather
            .as_ref()
            .is_some_and(|gather| HEADER_BYTES + gather.len + total <= gather.buffer.len());
        if !fits {
            self.make_room(total)?;
        }
        let Some(gather) = &mut self.gather else { return Err(PackError::NoBuffer) };
        let start = HEADER_BYTES + gather.len;
        let out = &mut gather.buffer[start..start + total];
        let head = [
            EPB_TYPE,
            total as u32,
            interface,
            (time_ns >> 32) as u32,
            time_ns as u32,
            captured_len as u32,
            original_len,
        ];
        // What is less than a word is zeroed as a word: data or options then overwrite what they need of it.
        let data_end = EPB_HEAD_BYTES + padded;
        out[data_end - 4..data_end].copy_from_slice(&[0; 4]);
        out[total - 8..total - 4].copy_from_slice(&[0; 4]);
        for (slot, word) in out[..EPB_HEAD_BYTES].chunks_exact_mut(4).zip(head) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        let mut at = EPB_HEAD_BYTES;
        for part in parts {
            out[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        out[data_end..data_end + options.len()].copy_from_slice(options);
        out[total - 4..].copy_from_slice(&(total as u32).to_le_bytes());
        gather.len += total;
        gather.packet_count += 1;
        gather.byte_count += captured_len as u32;
        gather.time_min_ns = gather.time_min_ns.min(time_ns);
        gather.time_max_ns = gather.time_max_ns.max(time_ns);
        if gather.len >= gather.hash_at {
            gather.hash();
        }
        Ok(())
    }

    /// Called when the packet does not fit: gets a buffer, or says why there is none.
    #[cold]
    fn make_room(&mut self, total: usize) -> Result<(), PackError> {
        if total > BODY_BYTES_MAX {
            return Err(PackError::TooLarge { bytes: total });
        }
        if self.is_under_way() {
            return Err(PackError::Full);
        }
        let body_bytes = self.body_bytes.max(total);
        self.wanted_bytes = body_bytes;
        if self.prepare_for(body_bytes) { Ok(()) } else { Err(PackError::NoBuffer) }
    }

    /// Makes a packed block of what was gathered; `None` when that is nothing.
    pub fn seal(&mut self) -> Option<PackedBlock> {
        self.seal_for_line().map(|block| block.plain())
    }

    /// The same, masked if it is long and that is wanted.
    pub fn seal_for_line(&mut self) -> Option<SealedBlock> {
        if !self.is_under_way() {
            return None;
        }
        let mut gather = self.gather.take()?;
        self.wanted_bytes = 0;
        let body_len = gather.len;
        let compressed = match gather.mask {
            Some(_) => {
                self.untried = self.untried.saturating_add(1);
                None
            }
            None => self.compress(&gather.buffer[HEADER_BYTES..HEADER_BYTES + body_len]),
        };
        let is_compressed = compressed.is_some();
        let mut mask = gather.mask;
        let (mut buffer, packed_len, body_crc) = match compressed {
            Some((output, packed_len)) => {
                let body_crc = crc32fast::hash(&output[HEADER_BYTES..HEADER_BYTES + packed_len]);
                (output, packed_len, body_crc)
            }
            None => {
                gather.hash();
                gather.buffer.truncate(HEADER_BYTES + body_len);
                (gather.buffer, body_len, gather.crc.finalize())
            }
        };
        let header = Header {
            kind: Kind::Packets,
            lz4: is_compressed,
            end: false,
            key: self.key,
            sequence: self.sequence,
            time_min_ns: gather.time_min_ns,
            time_max_ns: gather.time_max_ns,
            packets_before: self.packets_before,
            bytes_before: self.bytes_before,
            packet_count: gather.packet_count,
            byte_count: gather.byte_count,
            raw_bytes: body_len as u32,
            packed_bytes: packed_len as u32,
            body_crc,
        };
        self.sequence += 1;
        self.packets_before += u64::from(header.packet_count);
        self.bytes_before += u64::from(header.byte_count);
        buffer.truncate(HEADER_BYTES + packed_len);
        if self.masks && mask.is_none() && buffer.len() >= GIVEN_BYTES_MIN {
            (buffer, mask) = self.mask_to_lend(buffer);
        }
        let mut buffer = self.right_size(buffer);
        let Some(mask) = mask else { return Some(finish(&header, buffer).into()) };
        emit(&header, &mut buffer);
        apply_mask(&mut buffer[..HEADER_BYTES], mask, 0);
        Some(SealedBlock::masked(header, buffer.freeze(), mask))
    }

    /// Masks a body, in memory that can be lent. What LZ4 wrote is copied there: so what it writes to next is in the cache.
    fn mask_to_lend(&mut self, mut buffer: Buffer) -> (Buffer, Option<Mask>) {
        let Ok(mask) = random_mask() else { return (buffer, None) };
        if buffer.can_be_lent() {
            apply_mask(&mut buffer[HEADER_BYTES..], mask, HEADER_BYTES);
            return (buffer, Some(mask));
        }
        let lendable = self.pool.take_to_lend(buffer.len()).filter(Buffer::can_be_lent);
        let Some(mut lendable) = lendable else { return (buffer, None) };
        copy_masked(&buffer[HEADER_BYTES..], &mut lendable[HEADER_BYTES..], mask, HEADER_BYTES);
        let is_output = self.compression != Compression::None;
        if is_output && self.spare.is_none() && buffer.set_len(buffer.capacity()) {
            self.spare = Some(buffer);
        }
        (lendable, Some(mask))
    }

    /// The share of a body, in 1/128, that LZ4 may leave where it pays, and the number of bodies of which one is tried
    /// after one for which it did not.
    fn terms(&self) -> (usize, u32) {
        match self.compression {
            Compression::None => (0, u32::MAX),
            Compression::Auto if !self.room_is_short => (ROOMY_SHARE, PROBE_INTERVAL),
            Compression::Auto => (SHORT_SHARE, 1),
            Compression::Lz4 => (STORED_SHARE, 1),
        }
    }

    /// Whether it is tried to compress the next body.
    fn is_tried_next(&self) -> bool {
        let (_, interval) = self.terms();
        self.compression != Compression::None && (!self.does_not_pay || self.untried + 1 >= interval)
    }

    /// LZ4 of `body` behind room for a header, and its length; `None` when it does not pay.
    fn compress(&mut self, body: &[u8]) -> Option<(Buffer, usize)> {
        let is_tried = self.is_tried_next();
        let (paying_share, _) = self.terms();
        self.untried = if is_tried { 0 } else { self.untried.saturating_add(1) };
        if !is_tried {
            return None;
        }
        let mut output = self.spare.take()?;
        let is_worth_it = !self.does_not_pay || self.promises(body, &mut output, paying_share);
        let packed = if is_worth_it { self.compress_into(body, &mut output) } else { None };
        self.does_not_pay = packed.is_none_or(|packed| !pays(packed, body.len(), paying_share));
        // Once the work is done its fruit is taken.
        match packed.filter(|packed| pays(*packed, body.len(), STORED_SHARE)) {
            Some(packed) => Some((output, packed)),
            None => {
                self.spare = Some(output);
                None
            }
        }
    }

    /// Whether a few pieces of a body tell that it pays to compress it. Where room is short it is their sum that counts;
    /// where CPU is dearer each of them has to pay, for what is half of one kind and half of another does not.
    fn promises(&mut self, body: &[u8], output: &mut Buffer, paying_share: usize) -> bool {
        if body.len() < 4 * PROBES * PROBE_BYTES {
            return true;
        }
        let is_roomy = self.compression == Compression::Auto && !self.room_is_short;
        let mut packed_sum = 0;
        for part in body.chunks(body.len() / PROBES).take(PROBES) {
            let packed = self.compress_into(&part[..PROBE_BYTES], output).unwrap_or(PROBE_BYTES);
            if is_roomy && !pays(packed, PROBE_BYTES, ROOMY_PROBE_SHARE) {
                return false;
            }
            packed_sum += packed;
        }
        let share = paying_share + (128 - paying_share) / 2; // for pieces have less to refer to
        is_roomy || pays(packed_sum, PROBES * PROBE_BYTES, share)
    }

    /// Length of LZ4's output, which is behind the room for a header.
    fn compress_into(&mut self, input: &[u8], output: &mut Buffer) -> Option<usize> {
        compress_into_with_table(input, &mut output[HEADER_BYTES..], &mut self.table).ok()
    }

    /// Moves a block that fills less than a quarter of its buffer into one of its size, so that a
    /// quiet link does not hold a megabyte for each packet. Costs nothing at load, where blocks
    /// are full.
    fn right_size(&mut self, buffer: Buffer) -> Buffer {
        if buffer.len() * 4 > buffer.capacity() {
            return buffer;
        }
        let Some(mut small) = self.pool.take(buffer.len()) else { return buffer };
        small.copy_from_slice(&buffer);
        small
    }

    /// Makes a description or report of this stream, next in its sequence. `end`: the last block.
    ///
    /// What was gathered must be sealed first, so that order holds.
    pub fn seal_json<T: Serialize>(
        &mut self,
        kind: Kind,
        value: &T,
        time_ns: u64,
        end: bool,
    ) -> Option<PackedBlock> {
        debug_assert!(!self.is_under_way(), "gathered packets come first");
        let body = serde_json::to_vec(value).ok().filter(|body| body.len() <= BODY_BYTES_MAX)?;
        let mut buffer = self.pool.take(HEADER_BYTES + body.len())?;
        buffer[HEADER_BYTES..].copy_from_slice(&body);
        let header = Header {
            kind,
            lz4: false,
            end,
            key: self.key,
            sequence: self.sequence,
            time_min_ns: time_ns,
            time_max_ns: time_ns,
            packets_before: self.packets_before,
            bytes_before: self.bytes_before,
            packet_count: 0,
            byte_count: 0,
            raw_bytes: body.len() as u32,
            packed_bytes: body.len() as u32,
            body_crc: crc32fast::hash(&body),
        };
        self.sequence += 1;
        Some(finish(&header, buffer))
    }
}

/// Whether so many bytes are at most `share` in 128 of what they were.
fn pays(packed: usize, of: usize, share: usize) -> bool {
    packed * 128 <= of * share
}

/// Writes the header into its room.
fn emit(header: &Header, buffer: &mut Buffer) {
    if let Some(room) = buffer.first_chunk_mut::<HEADER_BYTES>() {
        header.emit(room);
    }
}

/// Writes the header and checks the result as a reader would.
fn finish(header: &Header, mut buffer: Buffer) -> PackedBlock {
    emit(header, &mut buffer);
    let checked: Result<PackedBlock, BlockError> = PackedBlock::new(buffer.freeze());
    // The header was made from the buffer a line above: lengths and ranges agree by construction.
    checked.unwrap_or_else(|error| unreachable!("a packed block we made ourselves: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Epoch;
    use crate::pcapng::Epbs;
    use proptest::prelude::*;

    fn packer(pool: &Pool, compression: Compression) -> Packer {
        let key = StreamKey { epoch: Epoch(1), stream: 2 };
        Packer::new(key, pool.clone(), 64 << 10, compression)
    }

    fn noise(len: usize, seed: u32) -> Vec<u8> {
        let mut state = seed | 1;
        let next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        };
        std::iter::repeat_with(next).take(len).collect()
    }

    #[test]
    fn what_was_gathered_comes_out() {
        let pool = Pool::new(8 << 20);
        let mut packer = packer(&pool, Compression::Lz4);
        let tag: &[u8] = &[0x81, 0, 0, 5];
        packer.push(0, 10, 70, [b"abcdef", tag, b"ghi"], &[2, 0, 4, 0, 1, 0, 0, 0]).expect("fits");
        packer.push(0, 5, 60, [&[0; 60][..]], &[]).expect("fits");
        assert_eq!(packer.packed(), (2, 73));
        let block = packer.seal().expect("two packets");
        let header = block.header();
        assert_eq!((header.sequence, header.packet_count, header.byte_count), (0, 2, 73));
        assert_eq!((header.time_min_ns, header.time_max_ns), (5, 10));
        let mut body = Vec::new();
        block.unpack_into(&mut body).expect("unpacks");
        let epbs: Vec<_> = Epbs::new(&body, 1).collect::<Result<_, _>>().expect("whole");
        assert_eq!(epbs[0].data, b"abcdef\x81\0\0\x05ghi");
        assert_eq!(epbs[0].options, &[2, 0, 4, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(epbs[1].data, &[0; 60]);
        assert!(packer.seal().is_none());
        let report = packer.seal_json(Kind::Report, &"x", 99, true).expect("room");
        let header = report.header();
        assert_eq!((header.sequence, header.packets_before, header.bytes_before), (1, 2, 73));
        assert!(header.end);
    }

    #[test]
    fn masked_blocks_are_what_plain_ones_would_be() {
        for compression in [Compression::None, Compression::Auto, Compression::Lz4] {
            let pool = Pool::new(64 << 20);
            let key = StreamKey { epoch: Epoch(1), stream: 2 };
            let mut packer = Packer::new(key, pool.clone(), 1 << 20, compression);
            let has_pages = pool.take_to_lend(GIVEN_BYTES_MIN).expect("free").can_be_lent();
            let mut masks = Vec::new();
            for round in 0..40 {
                packer.set_masking(round % 13 != 12);
                let len = if round % 7 == 5 { 1000 } else { 199_999 + round };
                // Much of it is compressed to more than the shortest that is masked.
                let data = match round % 4 {
                    3 => noise_with(24, len, round as u32),
                    _ => noise(len, round as u32 + 1),
                };
                packer.push(0, 1, len as u32, [&data[..]], &[]).expect("fits");
                // Who wants a plain one gets it.
                let block = match round % 11 {
                    10 => packer.seal().expect("a packet").into(),
                    _ => packer.seal_for_line().expect("a packet"),
                };
                masks.extend(block.payload().mask);
                let (header, plain) = (*block.header(), block.plain());
                assert_eq!(
                    (header, block.begin(), block.end()),
                    (*plain.header(), plain.begin(), plain.end())
                );
                assert_eq!(block.byte_len(), plain.bytes().len());
                let mut body = Vec::new();
                plain.unpack_into(&mut body).expect("unpacks");
                assert_eq!(Epbs::new(&body, 1).next().expect("one").expect("whole").data, data, "{round}");
            }
            assert_eq!(masks.len() > 20, has_pages, "{compression:?}: {}", masks.len());
            masks.sort_unstable();
            masks.dedup();
            assert!(!has_pages || masks.len() > 10, "each has its own");
        }
    }

    #[test]
    fn noise_is_stored_in_the_buffer_it_was_gathered_in() {
        let pool = Pool::new(8 << 20);
        let mut packer = packer(&pool, Compression::Lz4);
        for round in 0..4 {
            let data = noise(60_000, round);
            packer.push(0, 1, 60_000, [&data[..]], &[]).expect("fits");
            let block = packer.seal().expect("a packet");
            assert!(!block.header().lz4);
        }
        packer.push(0, 1, 50_000, [&[7; 50_000][..]], &[]).expect("fits");
        let block = packer.seal().expect("a packet");
        assert!(block.header().lz4, "it finds out when compression pays again");
        assert!(block.bytes().len() < 1000);
    }

    /// The output of a probe that did not pay was once taken for that of the whole body, so every
    /// second incompressible block arrived cut.
    #[test]
    fn after_a_stored_block_a_probe_decides_and_is_not_taken_for_the_body() {
        let pool = Pool::new(32 << 20);
        let key = StreamKey { epoch: Epoch(1), stream: 2 };
        let mut packer = Packer::new(key, pool, 1 << 20, Compression::Lz4);
        for round in 0..6 {
            let compressible = round == 3;
            let data = if compressible { vec![7; 200_000] } else { noise(200_000, round + 1) };
            packer.push(0, 1, 200_000, [&data[..]], &[]).expect("fits");
            let block = packer.seal().expect("a packet");
            assert_eq!(block.header().lz4, compressible, "round {round}");
            let mut body = Vec::new();
            block.unpack_into(&mut body).expect("unpacks");
            assert_eq!(Epbs::new(&body, 1).next().expect("one").expect("whole").data, data);
        }
    }

    /// Noise with pieces of eight bytes that came before, every `step` bytes: of 24, LZ4 leaves about two thirds; of 200,
    /// nearly all.
    fn noise_with(step: usize, len: usize, seed: u32) -> Vec<u8> {
        let mut bytes = noise(len, seed);
        bytes.chunks_exact_mut(step).for_each(|chunk| chunk[step - 8..].copy_from_slice(b"GET /abc"));
        bytes
    }

    #[test]
    fn what_shrinks_little_is_compressed_where_room_is_short_only() {
        let pool = Pool::new(32 << 20);
        let key = StreamKey { epoch: Epoch(1), stream: 2 };
        let mut packer = Packer::new(key, pool, 1 << 20, Compression::Auto);
        let seal = |packer: &mut Packer, data: &[u8]| {
            packer.push(0, 1, data.len() as u32, [data], &[]).expect("fits");
            let block = packer.seal().expect("a packet");
            let mut body = Vec::new();
            block.unpack_into(&mut body).expect("unpacks");
            assert_eq!(Epbs::new(&body, 1).next().expect("one").expect("whole").data, data);
            block.header().lz4
        };
        let middling = noise_with(24, 200_000, 7);
        // The first is tried, and what came of it is taken; then one in four is looked at.
        let seen: Vec<bool> = (0..10).map(|_| seal(&mut packer, &middling)).collect();
        assert_eq!(seen, [true, false, false, false, false, false, false, false, false, false]);
        packer.set_room_is_short(true);
        assert!((0..5).all(|_| seal(&mut packer, &middling)), "with little room each is compressed");
        let hardly = noise_with(200, 200_000, 7);
        seal(&mut packer, &hardly); // once the work is done its fruit is taken
        assert!(!(0..5).any(|_| seal(&mut packer, &hardly)), "a few percent are not worth it");
        assert!(seal(&mut packer, &middling));
        packer.set_room_is_short(false);
        let seen: Vec<bool> = (0..5).map(|_| seal(&mut packer, &middling)).collect();
        assert_eq!(seen, [true, false, false, false, false]);
        // What shrinks well is found out within four blocks, and is compressed from there on.
        let text = vec![7; 200_000];
        let seen: Vec<bool> = (0..8).map(|_| seal(&mut packer, &text)).collect();
        assert!(seen[..3].iter().any(|lz4| !lz4) && seen[4..].iter().all(|lz4| *lz4), "{seen:?}");
    }

    /// Of 200,000 bytes three quarters text and a quarter noise LZ4 leaves a quarter, but where CPU is dearer than the
    /// line one piece of four that does not shrink is enough not to try.
    #[test]
    fn a_piece_that_does_not_pay_is_reason_enough_only_where_there_is_room() {
        let pool = Pool::new(32 << 20);
        let key = StreamKey { epoch: Epoch(1), stream: 2 };
        let mut packer = Packer::new(key, pool, 1 << 20, Compression::Auto);
        let seal = |packer: &mut Packer, data: &[u8]| {
            packer.push(0, 1, data.len() as u32, [data], &[]).expect("fits");
            packer.seal().expect("a packet").header().lz4
        };
        let noise = noise(200_000, 9);
        let mixed = [&noise[..50_000], &vec![7; 150_000][..]].concat();
        assert!(!seal(&mut packer, &noise));
        assert!((0..8).all(|_| !seal(&mut packer, &mixed)), "one in four is looked at, and refused");
        packer.set_room_is_short(true);
        assert!(seal(&mut packer, &mixed), "the sum tells that it shrinks");
    }

    #[test]
    fn a_full_block_says_so_and_a_huge_packet_gets_its_own() {
        let pool = Pool::new(64 << 20);
        let mut packer = packer(&pool, Compression::Lz4);
        let data = noise(40_000, 3);
        packer.push(0, 1, 40_000, [&data[..]], &[]).expect("fits");
        assert_eq!(packer.push(0, 2, 40_000, [&data[..]], &[]), Err(PackError::Full));
        packer.seal().expect("one packet");
        let huge = noise(262_144, 5);
        packer.push(0, 3, 262_144, [&huge[..]], &[]).expect("gets a larger buffer");
        assert_eq!(packer.seal().expect("one packet").header().packet_count, 1);
        let over = vec![0; BODY_BYTES_MAX];
        assert!(matches!(packer.push(0, 3, 1, [&over[..]], &[]), Err(PackError::TooLarge { .. })));
    }

    #[test]
    fn without_a_free_buffer_nothing_is_taken() {
        let pool = Pool::new(200 << 10);
        let mut packer = packer(&pool, Compression::Lz4);
        assert!(packer.prepare());
        let held = pool.take(1 << 10).expect("a little is left");
        packer.push(0, 1, 4, [b"abcd"], &[]).expect("fits");
        let block = packer.seal().expect("one packet");
        assert!(block.bytes().len() < 1000);
        let rest: Vec<_> = std::iter::from_fn(|| pool.take(16 << 10)).collect();
        assert!(!packer.prepare());
        assert_eq!(packer.push(0, 1, 4, [b"abcd"], &[]), Err(PackError::NoBuffer));
        drop((rest, held));
        assert!(packer.prepare());
    }

    proptest! {
        #[test]
        fn any_packets_come_out_as_they_went_in(
            packets in proptest::collection::vec((any::<u64>(), proptest::collection::vec(any::<u8>(), 0..300)), 1..200),
            lz4: bool,
        ) {
            let pool = Pool::new(16 << 20);
            let mut packer = packer(&pool, if lz4 { Compression::Lz4 } else { Compression::None });
            let mut blocks = Vec::new();
            for (time, data) in &packets {
                let push = |packer: &mut Packer| packer.push(0, *time, data.len() as u32, [&data[..]], &[]);
                if push(&mut packer) == Err(PackError::Full) {
                    blocks.extend(packer.seal());
                    push(&mut packer).expect("an empty block has room");
                }
            }
            blocks.extend(packer.seal());
            let mut seen = Vec::new();
            let mut before = (0, 0);
            for (index, block) in blocks.iter().enumerate() {
                let header = block.header();
                prop_assert_eq!(header.sequence, index as u64);
                prop_assert_eq!((header.packets_before, header.bytes_before), before);
                before.0 += u64::from(header.packet_count);
                before.1 += u64::from(header.byte_count);
                let mut body = Vec::new();
                block.unpack_into(&mut body).expect("unpacks");
                for epb in Epbs::new(&body, 1) {
                    let epb = epb.expect("whole");
                    seen.push((epb.time_ns, epb.data.to_vec()));
                }
            }
            prop_assert_eq!(seen, packets);
        }
    }
}
