//! One entry of the access file, and the rules it has to keep.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::token;
use crate::globs::GlobError;

/// Most bytes of an entry's name.
const NAME_BYTES_MAX: usize = 255;
/// Most bytes of a certificate's name.
const CERTIFICATE_BYTES_MAX: usize = 1024;
/// 9999-12-31T23:59:59Z, the last time that RFC 3339 can write.
const EXPIRES_S_MAX: u64 = 253_402_300_799;
/// How the log calls those who need no entry.
pub(super) const ANYONE: &str = "anyone";

/// What the holder of an entry may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A sniffer.
    Publish,
    /// A viewer.
    Subscribe,
    /// Both.
    Admin,
}

impl Role {
    /// As the file has it.
    pub fn text(self) -> &'static str {
        match self {
            Role::Publish => "publish",
            Role::Subscribe => "subscribe",
            Role::Admin => "admin",
        }
    }
}

/// One entry of the access file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// For people and for the log: 1 to 255 bytes without control characters; unique in the file.
    pub name: String,
    /// What its holder may be.
    pub role: Role,
    /// Globs of the sniffer names it may publish as. An admin's empty list means all.
    pub publish: Vec<String>,
    /// Globs of the sniffer names it may see. An admin's empty list means all.
    pub see: Vec<String>,
    /// From when on it grants nothing, in seconds since 1970; `None`: never.
    pub expires_s: Option<u64>,
    /// How its holder proves that it is meant.
    pub credential: Credential,
}

/// How the holder of an entry proves that it is meant.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// By a token, `rct_<id>_<secret>`.
    Token {
        /// 12 characters of `a-z2-7`; unique in the file, and no secret.
        id: String,
        /// Key of the hash.
        salt: [u8; 16],
        /// HMAC-SHA256 of the whole text of the token.
        hash: [u8; 32],
    },
    /// By a client certificate that has this subject alternative name. DNS names and the domains of
    /// e-mail addresses are compared without regard to ASCII case, IP addresses as numbers, URIs
    /// exactly. A wildcard stands for itself alone.
    Certificate {
        /// The name.
        name: String,
    },
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Credential::Token { id, .. } => write!(formatter, "Token({id})"),
            Credential::Certificate { name } => write!(formatter, "Certificate({name:?})"),
        }
    }
}

/// What is wrong with an entry.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum EntryError {
    #[error(
        "name: 1 to {NAME_BYTES_MAX} bytes, without control characters or space at its ends; \
         not {ANYONE:?}"
    )]
    Name,
    #[error("name: there is an entry of this name already")]
    DuplicateName,
    #[error("token_id or certificate: entry {other:?} has the same")]
    DuplicateCredential { other: String },
    #[error("token_id: 12 characters of a-z and 2-7, as relay token writes it")]
    TokenId,
    #[error("{field}: {bytes} bytes in hexadecimal, as relay token writes it")]
    Hex { field: &'static str, bytes: usize },
    #[error("token_id, salt and hash, or certificate: exactly one of the two is needed")]
    Credential,
    #[error("certificate: 1 to {CERTIFICATE_BYTES_MAX} bytes without white space or control characters")]
    Certificate,
    #[error(
        "{list}: empty, so it could do nothing; name the sniffers, or write {list} = [\"*\"] for all of them"
    )]
    EmptyList { list: &'static str },
    #[error("{list}: role {role:?} has no use for it; leave it out, or choose role \"admin\", which is both")]
    UselessList { list: &'static str, role: &'static str },
    #[error("{list}: {error}")]
    Globs { list: &'static str, error: GlobError },
    #[error("expires: {found:?}: write a time as 2027-03-01T00:00:00Z, from 1970 to 9999")]
    Expires { found: String },
}

impl Entry {
    /// The entry with an admin's empty lists written out, if it keeps the rules. Globs are checked
    /// where they are compiled.
    pub(super) fn checked(mut self) -> Result<Self, EntryError> {
        let name = &self.name;
        let fits = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.trim() == name && name != ANYONE;
        if !fits || name.contains(char::is_control) {
            return Err(EntryError::Name);
        }
        match &self.credential {
            Credential::Token { id, .. } if !token::is_id(id) => return Err(EntryError::TokenId),
            Credential::Certificate { name } => {
                let refused = |one: char| one.is_control() || one.is_whitespace();
                if !(1..=CERTIFICATE_BYTES_MAX).contains(&name.len()) || name.contains(refused) {
                    return Err(EntryError::Certificate);
                }
            }
            Credential::Token { .. } => {}
        }
        if let Some(expires_s) = self.expires_s.filter(|expires_s| *expires_s > EXPIRES_S_MAX) {
            return Err(EntryError::Expires { found: expires_s.to_string() });
        }
        let role = self.role;
        for (list, globs, other) in
            [("publish", &mut self.publish, Role::Subscribe), ("see", &mut self.see, Role::Publish)]
        {
            if role == other && !globs.is_empty() {
                return Err(EntryError::UselessList { list, role: role.text() });
            }
            if role != other && globs.is_empty() {
                match role {
                    Role::Admin => globs.push("*".to_owned()),
                    _ => return Err(EntryError::EmptyList { list }),
                }
            }
        }
        Ok(self)
    }
}

/// A certificate's name in the form in which two equal ones are the same text.
pub(super) fn certificate_key(name: &str) -> String {
    if let Ok(address) = name.parse::<IpAddr>() {
        return address.to_string();
    }
    if name.contains(':') {
        return name.to_owned(); // a URI
    }
    match name.rsplit_once('@') {
        Some((local, domain)) => format!("{local}@{}", domain.to_ascii_lowercase()),
        None => name.to_ascii_lowercase(),
    }
}
