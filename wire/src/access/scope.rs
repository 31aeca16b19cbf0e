//! Which sniffers an entry is about: globs over their names, as in a viewer's selection.

use globset::{Glob, GlobSet, GlobSetBuilder};

use super::entry::EntryError;

/// Most globs of one list.
pub(super) const GLOBS_MAX: usize = 256;
/// Most bytes of one glob.
pub(super) const GLOB_BYTES_MAX: usize = 1024;
/// Most bytes of a sniffer's name.
const SNIFFER_BYTES_MAX: usize = 255;

/// Compiles the globs of a list. An empty list matches nothing.
pub(super) fn compile(list: &'static str, globs: &[String]) -> Result<GlobSet, EntryError> {
    if globs.len() > GLOBS_MAX {
        return Err(EntryError::TooManyGlobs { list });
    }
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        if !(1..=GLOB_BYTES_MAX).contains(&glob.len()) {
            return Err(EntryError::GlobBytes { list, found: glob.len() });
        }
        let fail = |error: globset::Error| EntryError::Glob {
            list,
            glob: glob.chars().take(100).collect(),
            problem: error.kind().to_string(),
        };
        set.add(Glob::new(glob).map_err(fail)?);
    }
    set.build().map_err(|error| EntryError::Glob {
        list,
        glob: globs.join(" ").chars().take(100).collect(),
        problem: error.kind().to_string(),
    })
}

/// Whether a sniffer can have this name, any text a peer sent.
pub(super) fn is_possible(sniffer: &str) -> bool {
    sniffer.len() <= SNIFFER_BYTES_MAX
}

/// Whether a sniffer of this name is meant.
pub(super) fn covers(globs: &GlobSet, sniffer: &str) -> bool {
    is_possible(sniffer) && globs.is_match(sniffer)
}

/// The glob that matches this name and no other.
pub fn exactly(name: &str) -> String {
    globset::escape(name).replace('\\', "[\\]") // which globset leaves as it is
}
