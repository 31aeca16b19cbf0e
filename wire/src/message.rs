//! What travels between the programs, one WebSocket message each.
//!
//! * **Text messages are control**, JSON objects with a `type` ([`Control`]). Unknown fields are
//!   skipped, so either end may be newer.
//! * **Binary messages are data**: an [`Envelope`] of eight bytes that concerns this hop only, then
//!   the packed block, which begins aligned to eight and is the same bytes on every hop.
//!
//! ```text
//!  client                       relay
//!    | hello (role, name, epoch)  |      first message, within the handshake time
//!    |--------------------------->|
//!    | welcome (instance)         |
//!    |<---------------------------|
//!    | stream, data, data ...     |      publisher
//!    |--------------------------->|
//!    | ack, takers                |
//!    |<---------------------------|
//!    | subscribe                  |      subscriber
//!    |--------------------------->|
//!    | subscribed, join, data ... |
//!    |<---------------------------|
//!    | ping both ways when idle, error before a close                |
//! ```

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::block::{Epoch, StreamKey};
use crate::ledger::Stage;
use crate::secret::Secret;

/// Version of the messages; both ends must speak the same.
pub const PROTOCOL: u32 = 1;
/// The WebSocket subprotocol of that version (RFC 6455, section 1.9).
pub const SUBPROTOCOL: &str = "ringcast.1";
/// Most bytes of a relay's control message: its list may be long.
pub const CONTROL_BYTES_MAX: usize = 4 << 20;
/// Most bytes of a client's control message, and of any message before it has said who it is.
pub const HELLO_BYTES_MAX: usize = 64 << 10;
/// Most bytes of a sniffer's name.
pub const NAME_BYTES_MAX: usize = 255;
/// Port of a relay when an address names none.
pub const DEFAULT_PORT: u16 = 9440;

/// What a client wants to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// A sniffer.
    Publish,
    /// A viewer.
    Subscribe,
}

/// How far somebody has come in a stream: what it has ends before `next_sequence`, and holds so
/// many packets and captured bytes of the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The stream.
    pub key: StreamKey,
    /// Sequence of the next block.
    pub next_sequence: u64,
    /// Packets of the stream before it.
    pub packets: u64,
    /// Captured bytes of the stream before it.
    pub bytes: u64,
}

/// What a viewer asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Selection {
    /// Globs over sniffer names; empty is all.
    pub sniffers: Vec<String>,
    /// Globs over interface names; empty is all.
    pub interfaces: Vec<String>,
    /// Time marks of idle streams are wanted (for a merge by time).
    pub marks: bool,
    /// Also streams that ended at an outage before this viewer had joined them or a predecessor.
    pub backlog: bool,
}

/// Where a stream stands, as the relay lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamStatus {
    /// Which stream.
    pub key: StreamKey,
    /// Name of its sniffer.
    pub name: String,
    /// Names of its interfaces.
    pub interfaces: Vec<String>,
    /// Capture filter, if any.
    pub filter: Option<String>,
    /// Packets so far.
    pub packets: u64,
    /// Captured bytes so far.
    pub bytes: u64,
    /// `live`, `backlog`, `away` (the sniffer's connection is lost) or `ended`.
    pub state: String,
    /// When it was opened, ns since 1970.
    pub opened_ns: u64,
    /// The stream that it goes on from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predecessor: Option<StreamKey>,
    /// It is drained beside the live ones.
    pub backlog: bool,
    /// Address of the sniffer.
    pub address: String,
    /// Viewers that take it.
    pub viewers: u32,
}

/// What a publisher says of a stream that it has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Which stream; it may be of an earlier run whose spool is drained.
    pub key: StreamKey,
    /// Names of its interfaces.
    pub interfaces: Vec<String>,
    /// Capture filter.
    #[serde(default)]
    pub filter: Option<String>,
    /// When it was opened, ns since 1970.
    pub opened_ns: u64,
    /// The stream that it goes on from.
    #[serde(default)]
    pub predecessor: Option<StreamKey>,
    /// It ended at an outage, or will soon, and is drained beside the live ones.
    #[serde(default)]
    pub backlog: bool,
}

/// A control message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
#[allow(missing_docs)] // fields are documented with the variants
pub enum Control {
    /// Client: who it is. `epoch` is its run, a fresh random number of each process; `token` proves it,
    /// where the relay asks for one.
    Hello {
        protocol: u32,
        role: Role,
        #[serde(default)]
        name: String,
        #[serde(default)]
        epoch: Epoch,
        /// Of a publisher: the same for all runs of one spool, so that they meet at the same worker;
        /// its epoch where there is no spool.
        #[serde(default)]
        home: Epoch,
        /// Of a publisher: the `instance` of the relay that its run was with last; 0: with none yet.
        #[serde(default)]
        former: Epoch,
        agent: String,
        clock_ns: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<Secret>,
    },
    /// Relay: accepted. `instance` is a fresh random number at each start of the relay. `sees`: globs
    /// over the sniffer names that the client may see, if not all.
    Welcome {
        protocol: u32,
        instance: Epoch,
        agent: String,
        clock_ns: u64,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        sees: Vec<String>,
    },
    /// Publisher: a stream it has, before the stream's first block, and whenever what it says of it
    /// has changed.
    Stream(Announcement),
    /// Relay: how far it has come in the streams of this publisher.
    Ack { streams: Vec<StreamAck> },
    /// Relay: how many viewers take a publisher's streams now. `marks`: time marks are wanted.
    Takers { viewers: u32, marks: bool },
    /// Publisher: I have, or have no longer, blocks that wait to be settled rather than be skipped for
    /// somebody (of a file, of the backlog); how much of these may be under way?
    Paced { wants: bool },
    /// Relay: so much, to a paced publisher. Changes as others come and go.
    Window { bytes: u64 },
    /// Publisher: nothing older than `complete_through_ns` is to come in an idle stream. The relay
    /// adds the epoch when it passes it on.
    Mark {
        #[serde(default)]
        epoch: Epoch,
        stream: u32,
        complete_through_ns: u64,
    },
    /// Viewer: what it wants, and how far it is in the streams that it had joined before a cut.
    Subscribe {
        selection: Selection,
        #[serde(default)]
        cursors: Vec<Cursor>,
    },
    /// Viewer: so many data messages of this connection have arrived.
    Progress { messages: u64 },
    /// Relay: the subscription stands; these streams match now, the first blocks follow.
    Subscribed { streams: u32 },
    /// Relay: a stream is joined. Its packets before `next_sequence`, as `status` counts them, are
    /// not for this viewer.
    Join { status: StreamStatus, next_sequence: u64 },
    /// Publisher, relay: blocks from `first_sequence` up to but without `next_sequence` do not come,
    /// and why.
    Skipped {
        key: StreamKey,
        first_sequence: u64,
        next_sequence: u64,
        packets: u64,
        bytes: u64,
        stage: Stage,
    },
    /// Publisher: the stream ends at this place, although the block that ends it does not come. The
    /// relay acknowledges the place as received.
    End { place: Cursor, reason: String },
    /// Relay: nothing more of this stream comes behind this place, although it has not ended in order.
    /// `ended`: nor will it later, for its publisher has said that it ends there.
    Gone {
        place: Cursor,
        reason: String,
        #[serde(default)]
        ended: bool,
    },
    /// Viewer: send the list.
    List,
    /// Relay: the list; `omitted` more would have made it too long.
    Streams {
        streams: Vec<StreamStatus>,
        #[serde(default)]
        omitted: u32,
    },
    /// Both: are you there? With the sender's clock.
    Ping { clock_ns: u64 },
    /// Both: yes, with the clock of the ping and mine.
    Pong { ping_ns: u64, clock_ns: u64 },
    /// Both: why the connection is about to be closed.
    Error { reason: String },
    /// Something a newer peer says; ignored.
    #[serde(other)]
    Unknown,
}

/// How far the relay is in one stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamAck {
    /// What the relay has: every block before this place.
    pub received: Cursor,
    /// Every block with a lower sequence has arrived at each viewer that was subscribed when it came,
    /// or that viewer was told that it does not get it, or has left.
    pub settled: u64,
}

impl Control {
    /// The message as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        // Serialising enums of strings and numbers into memory has no way to fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads a message.
    pub fn from_json(bytes: &[u8]) -> Result<Self, MessageError> {
        serde_json::from_slice(bytes).map_err(|source| MessageError::Control { source })
    }
}

/// Why a message is refused.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum MessageError {
    #[error("control message: {source}")]
    Control { source: serde_json::Error },
    #[error("data message of {found} bytes: its envelope alone has {ENVELOPE_BYTES}")]
    TooShort { found: usize },
    #[error("data message: envelope type {found}, expected {ENVELOPE_TYPE}")]
    Envelope { found: u8 },
}

/// Bytes of an envelope.
pub const ENVELOPE_BYTES: usize = 8;
/// First byte of an envelope.
const ENVELOPE_TYPE: u8 = 1;

/// What concerns this hop only of a data message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// The block may have been sent before a cut.
    pub resend: bool,
    /// The block belongs to a stream that ended at an outage and is drained beside the live ones.
    pub backlog: bool,
    /// A description repeated for who needs it here; it is not in its place in the stream.
    pub replay: bool,
}

impl Envelope {
    /// The bytes before the block.
    pub fn emit(self) -> [u8; ENVELOPE_BYTES] {
        let flags = u8::from(self.resend) | u8::from(self.backlog) << 1 | u8::from(self.replay) << 2;
        [ENVELOPE_TYPE, flags, 0, 0, 0, 0, 0, 0]
    }

    /// Reads the envelope of a data message; the block follows it.
    pub fn parse(message: &[u8]) -> Result<Self, MessageError> {
        let Some(head) = message.first_chunk::<ENVELOPE_BYTES>() else {
            return Err(MessageError::TooShort { found: message.len() });
        };
        if head[0] != ENVELOPE_TYPE {
            return Err(MessageError::Envelope { found: head[0] });
        }
        Ok(Self { resend: head[1] & 1 != 0, backlog: head[1] & 2 != 0, replay: head[1] & 4 != 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_and_unknown_ones_are_skipped() {
        let hello = Control::Hello {
            protocol: PROTOCOL,
            role: Role::Publish,
            name: "host".into(),
            epoch: Epoch(7),
            home: Epoch(7),
            former: Epoch(8),
            agent: "sniffer".into(),
            clock_ns: 5,
            token: Some(Secret::new("t")),
        };
        assert_eq!(Control::from_json(&hello.to_json()).expect("parses"), hello);
        let newer = br#"{"type":"hello","protocol":1,"role":"subscribe","agent":"x","clock_ns":1,"new":[]}"#;
        assert!(matches!(Control::from_json(newer), Ok(Control::Hello { .. })));
        assert_eq!(Control::from_json(br#"{"type":"frobnicate"}"#).expect("parses"), Control::Unknown);
        assert!(Control::from_json(b"{").is_err());
        assert!(Control::from_json(br#"{"type":"ack","streams":[{"stream":-1}]}"#).is_err());
    }

    #[test]
    fn envelopes_survive() {
        for bits in 0..8 {
            let [resend, backlog, replay] = [1, 2, 4].map(|bit| bits & bit != 0);
            let envelope = Envelope { resend, backlog, replay };
            assert_eq!(Envelope::parse(&envelope.emit()).expect("parses"), envelope);
        }
        assert!(Envelope::parse(&[1; 7]).is_err());
        assert!(Envelope::parse(&[9; 8]).is_err());
    }
}
