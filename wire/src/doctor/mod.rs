//! What `doctor` finds, in all three programs: whether what is about to run can run, and what would keep it from doing so
//! well.
//!
//! ```text
//!  facts: /proc, /sys, files, the relay's answers --> a check for each subject --> findings --> text or JSON
//! ```
//!
//! * A check is a function from facts to [`Finding`]s. Facts of the system are read below a [`Host`]'s root, so that a test
//!   gives a tree of its own; what cannot be read is not known, and no finding.
//! * Nothing on the machine is changed. What is written for a measurement has no name any more when it is written to.
//! * A [`Level::Problem`] is what would keep the program from running, or would lose packets for certain. Everything else
//!   that is worth doing is a [`Level::Warning`], and what is only good to know a [`Level::Note`].

mod certificate;
mod clock;
#[cfg(target_os = "linux")]
mod disk;
mod files;
mod host;
mod memory;
mod relay;
mod session;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use serde::Serialize;

pub use certificate::{Whose, lifetime};
pub use clock::clock;
#[cfg(target_os = "linux")]
pub use disk::{Disk, DiskUse, disk, measure_writing, room};
pub use files::private;
pub use host::Host;
pub use memory::{MemoryUse, memory};
pub use relay::{Client, Reached, reach};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Good to know.
    Note,
    /// Better changed.
    Warning,
    /// It will not run like that, or it will lose packets.
    Problem,
}

impl Level {
    fn text(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about: `kernel`, `interface eth0`, `relay`.
    pub subject: String,
    /// How bad it is.
    pub level: Level,
    /// What was found, with its values.
    pub text: String,
    /// What to do about it: a command where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self { subject: subject.into(), level: Level::Ok, text: text.into(), advice: None }
    }

    /// Good to know.
    pub fn note(subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self { level: Level::Note, ..Self::ok(subject, text) }
    }

    /// Better changed, and how.
    pub fn warning(subject: impl Into<String>, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Warning, ..Self::ok(subject, text) }.advise(advice)
    }

    /// It will not run like that, and what helps.
    pub fn problem(subject: impl Into<String>, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Problem, ..Self::ok(subject, text) }.advise(advice)
    }

    /// The same with what to do about it.
    pub fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }
}

/// Shows what was found on standard output. The exit status is 1 if one finding is a problem, else 0.
pub fn show(findings: &[Finding], json: bool) -> ExitCode {
    let text = if json { as_json(findings) } else { as_text(findings) };
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::from(status(findings)),
    }
}

fn status(findings: &[Finding]) -> u8 {
    u8::from(findings.iter().any(|one| one.level == Level::Problem))
}

fn as_json(findings: &[Finding]) -> String {
    // Serialising text has no way to fail.
    serde_json::to_string_pretty(findings).unwrap_or_default() + "\n"
}

/// A line for each finding, one below it for what to do, and one with the sum.
fn as_text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|one| one.subject.chars().count()).max().unwrap_or(0).min(24);
    let mut lines = String::new();
    for Finding { subject, level, text, advice } in findings {
        lines += &format!("{:<8} {subject:<width$}  {text}\n", level.text());
        if let Some(advice) = advice {
            lines += &format!("{:8} {:width$}  -> {advice}\n", "", "");
        }
    }
    let count = |level| findings.iter().filter(|one| one.level == level).count();
    let plural = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let [problems, warnings, notes] =
        [(Level::Problem, "problem"), (Level::Warning, "warning"), (Level::Note, "note")]
            .map(|(level, what)| plural(count(level), what));
    lines + &format!("{problems}, {warnings}, {notes}, {} ok\n", count(Level::Ok))
}

/// What tests say of findings.
#[cfg(test)]
pub(crate) mod for_tests {
    use super::Finding;

    /// `level subject: text -> advice`, a line each.
    pub fn text(findings: &[Finding]) -> String {
        let line = |one: &Finding| {
            let advice = one.advice.as_ref().map(|advice| format!(" -> {advice}")).unwrap_or_default();
            format!("{} {}: {}{advice}\n", one.level.text(), one.subject, one.text)
        };
        findings.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        vec![
            Finding::ok("kernel", "Linux 6.18"),
            Finding::warning("interface eth0", "GRO is on", "ethtool -K eth0 gro off"),
        ]
    }

    #[test]
    fn lines_are_aligned_and_summed_up() {
        let expected = "\
ok       kernel          Linux 6.18
warning  interface eth0  GRO is on
                         -> ethtool -K eth0 gro off
0 problems, 1 warning, 0 notes, 1 ok
";
        assert_eq!(as_text(&findings()), expected);
    }

    #[test]
    fn json_has_the_same() {
        let read: serde_json::Value = serde_json::from_str(&as_json(&findings())).expect("JSON");
        assert_eq!(read[0]["level"], "ok");
        assert!(read[0].get("advice").is_none());
        assert_eq!(read[1]["advice"], "ethtool -K eth0 gro off");
    }

    #[test]
    fn only_a_problem_is_a_failure() {
        assert_eq!((status(&[]), status(&findings())), (0, 0));
        assert_eq!(status(&[Finding::problem("a", "b", "c")]), 1);
    }
}
