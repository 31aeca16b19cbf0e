//! Who may come in, and as what: the access file of the relay.
//!
//! ```text
//! [[access]]                          a sniffer, by token
//! name = "web-1"                      for people and for the log; unique
//! role = "publish"                    publish, subscribe, or admin: both
//! publish = ["web-1"]                 globs of the sniffer names it may publish as
//! expires = 2027-03-01T00:00:00Z      optional; RFC 3339
//! token_id = "k3v7q2m5x4ab"           the token is rct_k3v7q2m5x4ab_...
//! salt = "..."                        16 random bytes, hexadecimal
//! hash = "..."                        HMAC-SHA256 of the whole token under the salt, hexadecimal
//!
//! [[access]]                          a viewer, by client certificate
//! name = "desk"
//! role = "subscribe"
//! see = ["web-*", "db-*"]             globs of the sniffer names it may see
//! certificate = "desk.example.net"    a subject alternative name: DNS name, URI, e-mail or IP address
//! ```
//!
//! Who has no entry has no access. An empty list gives nothing, so `publish` needs at least one glob
//! in its list and `subscribe` in its own; lists that the role cannot use are refused. An admin
//! without a list may publish as, or see, every sniffer.
//!
//! The file is read strictly: what is unknown, given twice or impossible refuses the whole file.
//! There is no I/O here, and the clock is an argument: seconds since 1970.
//!
//! A token has 256 random bits, so that neither guessing nor a slow hash matters: whoever reads the
//! file cannot find the token from it. Tokens are compared in constant time, and an unknown one costs
//! as much as a known one.

mod edit;
mod entry;
mod file;
mod grant;
#[cfg(test)]
mod tests;
mod token;

use std::collections::HashMap;

use thiserror::Error;

pub use edit::{with_entry, without_entry};
pub use entry::{Credential, Entry, EntryError, Role};
pub use file::{format_time, parse_time};
pub use grant::Grant;
pub use token::{TokenError, new_token};

use crate::secret::Secret;

/// Most entries of a file.
pub const ENTRIES_MAX: usize = 10_000;
/// Most bytes of a file.
pub const FILE_BYTES_MAX: usize = 16 << 20;

/// Why an access file, or one entry more, is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum AccessError {
    #[error("over {FILE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("over {ENTRIES_MAX} entries")]
    TooMany,
    #[error("line {line}: {problem}")]
    Text { line: usize, problem: String },
    #[error("line {line}: entry {name:?}: {error}")]
    Line { line: usize, name: String, error: EntryError },
    #[error("entry {name:?}: {error}")]
    Entry { name: String, error: EntryError },
}

/// Why someone is not let in, for the log; the peer hears "access denied" and no more.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Denied {
    /// No entry has this token, or one of these certificate names.
    #[error("no entry of the access file has this token or certificate")]
    Unknown,
    /// The entry is there, and its time is over.
    #[error("expired")]
    Expired,
    /// The entry that let it in is gone, or is not the same any more.
    #[error("revoked: its entry was removed or changed")]
    Revoked,
}

/// The entries of an access file, checked and compiled.
#[derive(Clone, Debug, Default)]
pub struct Access {
    entries: Vec<Entry>,
    /// What each entry grants, in the same order.
    grants: Vec<Grant>,
    by_name: HashMap<String, usize>,
    by_token_id: HashMap<String, usize>,
    by_certificate: HashMap<String, usize>,
}

impl Access {
    /// Reads an access file.
    pub fn parse(text: &str) -> Result<Self, AccessError> {
        let mut access = Self::default();
        for found in file::read(text)? {
            let name = found.entry.name.clone();
            access.push(found.entry).map_err(|error| match error {
                AccessError::Entry { error, .. } => AccessError::Line { line: found.line, name, error },
                other => other,
            })?;
        }
        Ok(access)
    }

    /// The entries as a file that [`Access::parse`] reads, below some lines that say what it is.
    pub fn to_text(&self) -> String {
        let entries = self.entries.iter().map(file::entry_text);
        std::iter::once(file::HEAD.to_owned()).chain(entries).collect::<Vec<_>>().join("\n")
    }

    /// The entries, in the order of the file.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Adds an entry at the end; it has to keep the same rules as in a file.
    pub fn add(&mut self, entry: Entry) -> Result<(), AccessError> {
        self.push(entry)
    }

    /// Removes the entry of this name; `None` if there is none.
    pub fn remove(&mut self, name: &str) -> Option<Entry> {
        let index = *self.by_name.get(name)?;
        let removed = self.entries.remove(index);
        self.grants.remove(index);
        for map in [&mut self.by_name, &mut self.by_token_id, &mut self.by_certificate] {
            map.retain(|_, at| *at != index);
            map.values_mut().filter(|at| **at > index).for_each(|at| *at -= 1);
        }
        Some(removed)
    }

    /// What the holder of this token may do.
    pub fn check_token(&self, token: &Secret, now_s: u64) -> Result<Grant, Denied> {
        let index = token::id(token).and_then(|id| self.by_token_id.get(id)).copied();
        let known = index.and_then(|index| Some((self.entries.get(index)?, self.grants.get(index)?)));
        // Without an entry, the same work is done for nothing.
        let matches = token::matches(token, known.map(|(entry, _)| &entry.credential));
        match known {
            Some((_, grant)) if matches => grant.at(now_s),
            _ => Err(Denied::Unknown),
        }
    }

    /// What the holder of a client certificate with these subject alternative names may do: the
    /// chain has been verified by the caller. If several names have entries, the first entry in the
    /// file counts.
    pub fn check_certificate(&self, names: &[String], now_s: u64) -> Result<Grant, Denied> {
        let found = names.iter().filter_map(|name| self.by_certificate.get(&entry::certificate_key(name)));
        let grant = found.min().and_then(|index| self.grants.get(*index)).ok_or(Denied::Unknown)?;
        grant.at(now_s)
    }

    /// Whether a grant of a former version of this file would be given now: its entry is there,
    /// unchanged in everything, and its time is not over.
    pub fn still_grants(&self, grant: &Grant, now_s: u64) -> Result<(), Denied> {
        let index = self.by_name.get(grant.name()).ok_or(Denied::Revoked)?;
        let now = self.grants.get(*index).filter(|now| *now == grant).ok_or(Denied::Revoked)?;
        now.at(now_s).map(|_| ())
    }

    fn push(&mut self, entry: Entry) -> Result<(), AccessError> {
        let name = entry.name.clone();
        let fail = |error| AccessError::Entry { name: name.clone(), error };
        let entry = entry.checked().map_err(fail)?;
        if self.by_name.contains_key(&entry.name) {
            return Err(fail(EntryError::DuplicateName));
        }
        let (map, key) = match &entry.credential {
            Credential::Token { id, .. } => (&mut self.by_token_id, id.clone()),
            Credential::Certificate { name } => (&mut self.by_certificate, entry::certificate_key(name)),
        };
        if let Some(other) = map.get(&key).and_then(|index| self.entries.get(*index)) {
            return Err(fail(EntryError::DuplicateCredential { other: other.name.clone() }));
        }
        if self.entries.len() >= ENTRIES_MAX {
            return Err(AccessError::TooMany);
        }
        let grant = Grant::new(&entry).map_err(fail)?;
        map.insert(key, self.entries.len());
        self.by_name.insert(entry.name.clone(), self.entries.len());
        self.entries.push(entry);
        self.grants.push(grant);
        Ok(())
    }
}
