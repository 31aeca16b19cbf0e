//! The description of a stream: who captured it, and its table of interfaces.
//!
//! It travels in the stream as a block of its own kind, whole each time the table grows, so the
//! last one of a stream is enough to read any of its blocks.

use serde::{Deserialize, Serialize};

use crate::Interface;
use crate::block::StreamKey;

/// Most interfaces of one stream's table.
pub const INTERFACES_MAX: usize = 65_536;

/// Most bytes of the body of a description or report: relays keep the last of each stream.
pub const JSON_BYTES_MAX: usize = 1 << 20;

/// The body of a description block (JSON).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Description {
    /// Name of the sniffer (`--name`), the host's by default.
    pub name: String,
    /// Program and version that captured.
    pub agent: String,
    /// When the stream was opened, ns since 1970.
    pub opened_ns: u64,
    /// The stream that this one goes on from, if any: of this run, or of the one before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predecessor: Option<StreamKey>,
    /// The capture file that is sent, for `--read`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The table that the interface ids of the stream's packets index.
    pub interfaces: Vec<Interface>,
}
