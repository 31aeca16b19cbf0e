//! Pieces of operation sequences: small numbers that meet, and now and then a very large one.

use arbitrary::Arbitrary;
use bytes::Bytes;
use wire::Interface;
use wire::block::{Epoch, HEADER_BYTES, Header, Kind, StreamKey};
use wire::description::Description;
use wire::ledger::{Report, Stage};
use wire::message::{Announcement, Control, Cursor, Selection, StreamStatus};

/// Most bytes of a block that is made here.
pub const BLOCK_BYTES_MAX: usize = 600;

/// A number: seldom a large one.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Number {
    Small(u8),
    Medium(u16),
    Large(u64),
    FromTheTop(u8),
}

impl Number {
    pub fn value(self) -> u64 {
        match self {
            Number::Small(value) => value.into(),
            Number::Medium(value) => value.into(),
            Number::Large(value) => value,
            Number::FromTheTop(value) => u64::MAX - u64::from(value),
        }
    }
}

/// One of a few streams of a few runs.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Key(u8);

impl Key {
    /// Streams that there are.
    pub const COUNT: usize = 16;

    pub fn value(self) -> StreamKey {
        StreamKey { epoch: Epoch(u64::from(self.0 >> 2) % 4), stream: u32::from(self.0 % 4) }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Place {
    key: Key,
    next_sequence: Number,
    packets: Number,
    bytes: Number,
}

impl Place {
    pub fn value(self) -> Cursor {
        let [next_sequence, packets, bytes] =
            [self.next_sequence, self.packets, self.bytes].map(Number::value);
        Cursor { key: self.key.value(), next_sequence, packets, bytes }
    }
}

/// Says that blocks do not come.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Notice {
    key: Key,
    first_sequence: Number,
    next_sequence: Number,
    packets: Number,
    bytes: Number,
    is_own: bool,
}

impl Notice {
    pub fn value(self) -> Control {
        Control::Skipped {
            key: self.key.value(),
            first_sequence: self.first_sequence.value(),
            next_sequence: self.next_sequence.value(),
            packets: self.packets.value(),
            bytes: self.bytes.value(),
            stage: if self.is_own { Stage::ViewerQueue } else { Stage::Unexplained },
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Announced {
    key: Key,
    interfaces: u8,
    predecessor: Option<Key>,
    backlog: bool,
}

impl Announced {
    pub fn value(self) -> Announcement {
        Announcement {
            key: self.key.value(),
            interfaces: (0..self.interfaces % 3).map(|number| format!("eth{number}")).collect(),
            filter: None,
            opened_ns: u64::from(self.interfaces),
            predecessor: self.predecessor.map(Key::value),
            backlog: self.backlog,
        }
    }

    /// As a relay lists it.
    pub fn status(self, packets: Number, bytes: Number) -> StreamStatus {
        let Announcement { key, interfaces, filter, opened_ns, predecessor, backlog } = self.value();
        let (packets, bytes) = (packets.value(), bytes.value());
        let name = "host".to_owned();
        StreamStatus {
            key,
            name,
            interfaces,
            filter,
            opened_ns,
            predecessor,
            backlog,
            packets,
            bytes,
            ..StreamStatus::default()
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Wanted {
    globs: u8,
    marks: bool,
    backlog: bool,
}

impl Wanted {
    pub fn value(self) -> Selection {
        let globs = ["*", "host", "eth[0-1]", "a[", "{a,b}*", "no"];
        let glob = |index: u8| vec![globs[usize::from(index) % globs.len()].to_owned()];
        let mut selection = Selection { marks: self.marks, backlog: self.backlog, ..Selection::default() };
        if self.globs & 1 != 0 {
            selection.sniffers = glob(self.globs >> 1 & 7);
        }
        if self.globs & 0x80 != 0 {
            selection.interfaces = glob(self.globs >> 4 & 7);
        }
        selection
    }
}

/// A packed block with whatever header, whose checksums are right.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Block {
    key: Key,
    kind: u8,
    end: bool,
    sequence: Number,
    packets_before: Number,
    bytes_before: Number,
    packets: u8,
    bytes: u8,
    body: u8,
}

impl Block {
    /// Its bytes, `ahead` places further on in its stream.
    pub fn bytes(&self, ahead: u64) -> Bytes {
        let kind = match self.kind % 4 {
            0 => Kind::Description,
            1 => Kind::Report,
            _ => Kind::Packets,
        };
        let interface = Interface { name: "eth0".into(), link_type: 1, ..Interface::default() };
        let description = Description {
            name: "host".into(),
            agent: "fuzz".into(),
            opened_ns: 0,
            predecessor: None,
            file: None,
            interfaces: vec![interface; usize::from(self.body % 3)],
        };
        let body = match (kind, self.body) {
            (Kind::Packets, length) => vec![0; length.into()],
            (Kind::Description, 0..200) => serde_json::to_vec(&description).unwrap_or_default(),
            (Kind::Report, 0..200) => serde_json::to_vec(&Report::default()).unwrap_or_default(),
            _ => b"{no json".to_vec(),
        };
        let (packet_count, byte_count) = (u32::from(self.packets), u32::from(self.bytes));
        let header = Header {
            kind,
            lz4: false,
            end: self.end,
            key: self.key.value(),
            sequence: self.sequence.value().saturating_add(ahead),
            time_min_ns: 0,
            time_max_ns: 0,
            packets_before: self.packets_before.value().saturating_add(ahead * u64::from(packet_count)),
            bytes_before: self.bytes_before.value().saturating_add(ahead * u64::from(byte_count)),
            packet_count,
            byte_count,
            raw_bytes: body.len() as u32,
            packed_bytes: body.len() as u32,
            body_crc: crc32fast::hash(&body),
        };
        let mut head = [0; HEADER_BYTES];
        header.emit(&mut head);
        let bytes: Bytes = [&head[..], &body].concat().into();
        debug_assert!(bytes.len() <= BLOCK_BYTES_MAX);
        bytes
    }
}
