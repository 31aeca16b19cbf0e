//! Globs over names, as viewers select by them and access is given by them.

use globset::{Glob, GlobSet, GlobSetBuilder};
use thiserror::Error;

/// Most globs of one list.
const GLOBS_MAX: usize = 256;
/// Most bytes of one glob.
const GLOB_BYTES_MAX: usize = 1024;
/// Most characters of a glob that an error shows.
const SHOWN_CHARS_MAX: usize = 100;

/// Why a list of globs is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum GlobError {
    #[error("glob {glob:?}: {problem}")]
    Glob { glob: String, problem: String },
    #[error("glob of {found} bytes, 1 to {GLOB_BYTES_MAX} are possible")]
    Bytes { found: usize },
    #[error("over {GLOBS_MAX} globs")]
    TooMany,
}

/// Compiles a list of globs. An empty one matches nothing.
pub fn compile(globs: &[String]) -> Result<GlobSet, GlobError> {
    if globs.len() > GLOBS_MAX {
        return Err(GlobError::TooMany);
    }
    let fail = |glob: &str, error: globset::Error| GlobError::Glob {
        glob: glob.chars().take(SHOWN_CHARS_MAX).collect(),
        problem: error.kind().to_string(),
    };
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        if !(1..=GLOB_BYTES_MAX).contains(&glob.len()) {
            return Err(GlobError::Bytes { found: glob.len() });
        }
        set.add(Glob::new(glob).map_err(|error| fail(glob, error))?);
    }
    set.build().map_err(|error| fail(&globs.join(" "), error))
}

/// The glob that matches this name and no other.
pub fn exactly(name: &str) -> String {
    globset::escape(name).replace('\\', "[\\]") // which globset leaves as it is
}
