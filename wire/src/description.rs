//! The description of a stream: who captured it, and its table of interfaces.
//!
//! It travels in the stream as a block of its own kind, whole each time the table grows, so the
//! last one of a stream is enough to read any of its blocks.

use serde::{Deserialize, Serialize};

use crate::Interface;
use crate::block::StreamKey;
use crate::message::Announcement;

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

/// Most bytes of the interface names in an announcement.
const ANNOUNCED_BYTES_MAX: usize = 32 << 10;

impl Description {
    /// What a relay is told of the stream `key` that this describes.
    pub fn announcement(&self, key: StreamKey) -> Announcement {
        // An interface of a file that has no name goes by the file's, as viewers show it.
        let file = self.file.as_deref().unwrap_or_default();
        let name = |one: &str| if one.is_empty() { file } else { one }.to_owned();
        Announcement {
            key,
            interfaces: bounded(self.interfaces.iter().map(|one| name(&one.name))),
            filter: self.interfaces.iter().find_map(|one| one.filter.clone()),
            opened_ns: self.opened_ns,
            predecessor: self.predecessor,
            backlog: false,
        }
    }
}

/// The names that a relay is told, for its list and for choosing streams: as many as fit a short
/// message. The description holds them all.
fn bounded(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut room = ANNOUNCED_BYTES_MAX;
    let mut fits = |name: &String| {
        let takes = 8 + 6 * name.len(); // escaped at worst
        room = room.saturating_sub(takes);
        room > 0
    };
    names.take_while(|name| fits(name)).collect()
}
