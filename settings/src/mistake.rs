//! What is wrong, and where.

use std::fmt;
use std::path::PathBuf;

use crate::layers::Resolved;
use crate::program::Program;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A line of the file, counted from 1.
    File {
        /// As `--config` names it.
        path: PathBuf,
        /// Where the key stands.
        line: usize,
    },
    /// A variable of the environment.
    Environment {
        /// Its name.
        name: String,
    },
    /// A file that the service manager hands over.
    Credential {
        /// Its name, as in LoadCredential=.
        name: String,
    },
    /// What was typed.
    CommandLine,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(formatter, "{}:{line}", path.display()),
            Self::Environment { name } => write!(formatter, "environment {name}"),
            Self::Credential { name } => write!(formatter, "credential {name}"),
            Self::CommandLine => formatter.write_str("command line"),
        }
    }
}

/// Something that is wrong with the options: `FILE:LINE: KEY: what`, or `VARIABLE: what`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    place: Option<String>,
    line: usize,
    key: Option<String>,
    text: String,
}

impl Mistake {
    /// Of one key.
    pub(crate) fn of(key: &str, origin: &Origin, text: String) -> Self {
        let (place, line, key) = match origin {
            Origin::File { line, .. } => (origin.to_string(), *line, Some(key.to_owned())),
            Origin::Environment { name } => (name.clone(), 0, None),
            Origin::Credential { .. } => (origin.to_string(), 0, Some(key.to_owned())),
            Origin::CommandLine => (format!("--{key}"), 0, None),
        };
        Self { place: Some(place), line, key, text }
    }

    /// Of the form of the file.
    pub(crate) fn form(origin: &Origin, text: String) -> Self {
        Self { key: None, ..Self::of("", origin, text) }
    }

    /// Of the options as a whole.
    pub(crate) fn whole(place: Option<String>, text: String) -> Self {
        Self { place, line: usize::MAX, key: None, text }
    }

    /// Mistakes are told in this order: by line, what concerns the whole at the end.
    pub(crate) fn order(&self) -> usize {
        self.line
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.place, &self.key].into_iter().flatten() {
            write!(formatter, "{part}: ")?;
        }
        formatter.write_str(&self.text)
    }
}

/// See [`crate::Settings::locate`].
pub fn locate(program: &Program, resolved: &Resolved, error: &str) -> String {
    let name = error.strip_prefix("--").unwrap_or(error);
    let end = name.find([' ', ':', ',']).unwrap_or(name.len());
    let (key, rest) = name.split_at(end);
    match (program.option(key), resolved.in_force.get(key)) {
        (Some(_), Some(given)) if given.origin != Origin::CommandLine => {
            // Where the option led, the key does now; otherwise its name belongs to the sentence.
            let text = match error.starts_with("--") {
                true => rest.trim_start_matches(':').trim_start(),
                false => error,
            };
            Mistake::of(key, &given.origin, text.to_owned()).to_string()
        }
        _ => error.to_owned(),
    }
}
