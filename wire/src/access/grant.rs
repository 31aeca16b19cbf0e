//! What somebody who has been let in may do.

use std::sync::{Arc, LazyLock};

use globset::GlobSet;

use super::Denied;
use super::entry::{ANYONE, Entry, EntryError, Role};
use crate::globs;
use crate::message;

/// The glob of everything.
static EVERYTHING: LazyLock<[String; 1]> = LazyLock::new(|| ["*".to_owned()]);

/// What somebody may do, and the entry that says so. Cheap to clone. Two grants are equal if their
/// entries are, in everything.
#[derive(Clone)]
pub struct Grant(Option<Arc<Granted>>);

struct Granted {
    entry: Entry,
    publish: GlobSet,
    see: GlobSet,
}

impl Grant {
    /// What a checked entry grants; globs that do not compile are named.
    pub(super) fn new(entry: &Entry) -> Result<Self, EntryError> {
        let compiled =
            |list, globs: &[String]| globs::compile(globs).map_err(|error| EntryError::Globs { list, error });
        let (publish, see) = (compiled("publish", &entry.publish)?, compiled("see", &entry.see)?);
        Ok(Self(Some(Arc::new(Granted { entry: entry.clone(), publish, see }))))
    }

    /// What everybody may do at a relay that asks nobody: everything.
    pub fn anyone() -> Self {
        Self(None)
    }

    /// The name of the entry, for the log; `anyone` without one.
    pub fn name(&self) -> &str {
        self.0.as_ref().map_or(ANYONE, |granted| &granted.entry.name)
    }

    /// From when on it is worth nothing, in seconds since 1970; `None`: never.
    pub fn expires_s(&self) -> Option<u64> {
        self.0.as_ref().and_then(|granted| granted.entry.expires_s)
    }

    /// Whether its holder may have this role in the protocol.
    pub fn may_be(&self, role: message::Role) -> bool {
        self.0.as_ref().is_none_or(|granted| {
            matches!(
                (granted.entry.role, role),
                (Role::Admin, _)
                    | (Role::Publish, message::Role::Publish)
                    | (Role::Subscribe, message::Role::Subscribe)
            )
        })
    }

    /// Whether its holder may publish under this sniffer's name, any text a peer sent.
    pub fn may_publish(&self, sniffer: &str) -> bool {
        self.may_be(message::Role::Publish) && self.covers(sniffer, |granted| &granted.publish)
    }

    /// Whether its holder may see the sniffer of this name.
    pub fn may_see(&self, sniffer: &str) -> bool {
        self.may_be(message::Role::Subscribe) && self.covers(sniffer, |granted| &granted.see)
    }

    /// Whether these globs are about a sniffer. A name that is too long is nobody's.
    fn covers(&self, sniffer: &str, globs: fn(&Granted) -> &GlobSet) -> bool {
        let is_meant = |granted: &Arc<Granted>| globs(granted).is_match(sniffer);
        sniffer.len() <= message::NAME_BYTES_MAX && self.0.as_ref().is_none_or(is_meant)
    }

    /// The globs of what its holder may see; empty for who may see nothing.
    pub fn sees(&self) -> &[String] {
        self.0.as_ref().map_or(&*EVERYTHING, |granted| &granted.entry.see)
    }

    /// The grant, while its time is not over.
    pub(super) fn at(&self, now_s: u64) -> Result<Self, Denied> {
        match self.expires_s() {
            Some(expires_s) if now_s >= expires_s => Err(Denied::Expired),
            _ => Ok(self.clone()),
        }
    }
}

impl PartialEq for Grant {
    fn eq(&self, other: &Self) -> bool {
        let entry = |grant: &Self| grant.0.as_ref().map(|granted| granted.entry.clone());
        entry(self) == entry(other)
    }
}

impl Eq for Grant {}

impl std::fmt::Debug for Grant {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let entry = self.0.as_ref().map(|granted| &granted.entry);
        formatter.debug_tuple("Grant").field(&entry).finish()
    }
}

/// What only tests ask.
#[cfg(test)]
mod for_tests {
    use super::super::entry::Credential;
    use super::*;

    impl Grant {
        /// What an entry grants that lets its holder see these.
        pub(crate) fn to_see(globs: &[&str]) -> Self {
            Self::new(&Entry {
                name: "a test".to_owned(),
                role: Role::Subscribe,
                publish: Vec::new(),
                see: globs.iter().map(|glob| (*glob).to_owned()).collect(),
                expires_s: None,
                credential: Credential::Certificate { name: "a test".to_owned() },
            })
            .expect("globs")
        }

        /// Whether it was given for a client certificate.
        pub(crate) fn is_by_certificate(&self) -> bool {
            let credential = self.0.as_ref().map(|granted| &granted.entry.credential);
            matches!(credential, Some(Credential::Certificate { .. }))
        }
    }
}
