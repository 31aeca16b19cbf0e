//! The access file as text: TOML.

use data_encoding::HEXLOWER_PERMISSIVE;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use toml::{Spanned, Value};

use super::entry::{Credential, Entry, EntryError, Role};
use super::{AccessError, ENTRIES_MAX, FILE_BYTES_MAX};

/// What a file begins with that [`super::Access::to_text`] wrote.
pub(super) const HEAD: &str = "\
# Who may connect to this relay. `relay token` adds, lists and revokes entries; they can be edited too.
# No token can be found from this file. The relay reads it again on SIGHUP.
";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    access: Vec<Spanned<RawEntry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    name: String,
    role: Role,
    #[serde(default)]
    publish: Vec<String>,
    #[serde(default)]
    see: Vec<String>,
    expires: Option<Value>,
    token_id: Option<String>,
    salt: Option<String>,
    hash: Option<String>,
    certificate: Option<String>,
}

/// An entry as it stands in a file.
pub(super) struct Found {
    pub entry: Entry,
    /// Line of its beginning, from 1.
    pub line: usize,
    /// The byte of the file at which it begins.
    pub start: usize,
}

/// Reads the entries of a file; their rules are checked where they are added.
pub(super) fn read(text: &str) -> Result<Vec<Found>, AccessError> {
    if text.len() > FILE_BYTES_MAX {
        return Err(AccessError::TooLarge);
    }
    // The text of the error itself would show the line, and with it a secret put there by mistake.
    let file: File = toml::from_str(text).map_err(|error| AccessError::Text {
        line: line(text, error.span().unwrap_or_default().start),
        problem: error.message().to_owned(),
    })?;
    if file.access.len() > ENTRIES_MAX {
        return Err(AccessError::TooMany);
    }
    let mut lines = Lines { text, at: 0, line: 1 };
    let mut found = Vec::with_capacity(file.access.len());
    for spanned in file.access {
        let start = spanned.span().start;
        let line = lines.of(start);
        let raw = spanned.into_inner();
        let name = raw.name.clone();
        let entry = raw.entry().map_err(|error| AccessError::Line { line, name, error })?;
        found.push(Found { entry, line, start });
    }
    Ok(found)
}

impl RawEntry {
    fn entry(self) -> Result<Entry, EntryError> {
        let credential = match (self.token_id, self.salt, self.hash, self.certificate) {
            (Some(id), Some(salt), Some(hash), None) => {
                Credential::Token { id, salt: hex("salt", &salt)?, hash: hex("hash", &hash)? }
            }
            (None, None, None, Some(name)) => Credential::Certificate { name },
            _ => return Err(EntryError::Credential),
        };
        let expires_s = self.expires.as_ref().map(expires_s).transpose()?;
        Ok(Entry {
            name: self.name,
            role: self.role,
            publish: self.publish,
            see: self.see,
            expires_s,
            credential,
        })
    }
}

/// One entry, as [`read`] reads it.
pub(super) fn entry_text(entry: &Entry) -> String {
    let string = |text: &str| Value::String(text.to_owned()).to_string();
    let strings = |list: &[String]| list.iter().map(|text| string(text)).collect::<Vec<_>>().join(", ");
    let mut text =
        format!("[[access]]\nname = {}\nrole = {}\n", string(&entry.name), string(entry.role.text()));
    for (key, list) in [("publish", &entry.publish), ("see", &entry.see)] {
        if !list.is_empty() {
            text += &format!("{key} = [{}]\n", strings(list));
        }
    }
    if let Some(expires_s) = entry.expires_s {
        text += &format!("expires = {}\n", format_time(expires_s));
    }
    match &entry.credential {
        Credential::Token { id, salt, hash } => {
            let (salt, hash) = (HEXLOWER_PERMISSIVE.encode(salt), HEXLOWER_PERMISSIVE.encode(hash));
            text +=
                &format!("token_id = {}\nsalt = {}\nhash = {}\n", string(id), string(&salt), string(&hash));
        }
        Credential::Certificate { name } => text += &format!("certificate = {}\n", string(name)),
    }
    text
}

/// Seconds since 1970 of an RFC 3339 time, rounded down.
pub fn parse_time(text: &str) -> Result<u64, EntryError> {
    let fail = || EntryError::Expires { found: text.chars().take(100).collect() };
    let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| fail())?;
    u64::try_from(time.unix_timestamp()).map_err(|_| fail())
}

/// `2027-03-01T00:00:00Z`; what is beyond the year 9999 is written as 1970, but no entry has it.
pub fn format_time(time_s: u64) -> String {
    let time = i64::try_from(time_s).ok().and_then(|time_s| OffsetDateTime::from_unix_timestamp(time_s).ok());
    // The form of a time of these years has no way to fail.
    time.unwrap_or(OffsetDateTime::UNIX_EPOCH).format(&Rfc3339).unwrap_or_default()
}

/// The time may be TOML's own or a string.
fn expires_s(value: &Value) -> Result<u64, EntryError> {
    match value {
        Value::String(text) => parse_time(text),
        Value::Datetime(time) => parse_time(&time.to_string()),
        other => Err(EntryError::Expires { found: other.to_string().chars().take(100).collect() }),
    }
}

fn hex<const N: usize>(field: &'static str, text: &str) -> Result<[u8; N], EntryError> {
    let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or(EntryError::Hex { field, bytes: N })
}

/// The line, from 1, that holds a byte of the text.
fn line(text: &str, at: usize) -> usize {
    Lines { text, at: 0, line: 1 }.of(at)
}

/// Lines of bytes that come in order, in one pass over the text.
struct Lines<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

impl Lines<'_> {
    fn of(&mut self, at: usize) -> usize {
        let between = self.text.as_bytes().get(self.at..at).unwrap_or_default();
        self.line += between.iter().filter(|byte| **byte == b'\n').count();
        self.at = self.at.max(at);
        self.line
    }
}
