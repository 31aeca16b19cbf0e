//! What the tests of checks share: a tree of facts, options, and findings as text.

use clap::Parser;
use wire::doctor::{Finding, Host};

use crate::args::Args;

/// A host that has these files alone.
pub struct Tree(tempfile::TempDir);

impl Tree {
    pub fn new(files: &[(&str, &str)]) -> Self {
        let tree = Self(tempfile::tempdir().expect("a directory"));
        for (path, content) in files {
            tree.write(path, content);
        }
        tree
    }

    pub fn write(&self, path: &str, content: &str) {
        let path = self.0.path().join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().expect("not the root")).expect("made");
        std::fs::write(path, content).expect("written");
    }

    pub fn host(&self) -> Host {
        Host::at(self.0.path())
    }
}

/// Options as they are typed.
pub fn args(line: &str) -> Args {
    let words = std::iter::once("sniffer").chain(line.split_whitespace());
    Args::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"))
}

/// `level subject: text -> advice`, a line each.
pub fn text(findings: &[Finding]) -> String {
    let line = |one: &Finding| {
        let advice = one.advice.as_ref().map(|advice| format!(" -> {advice}")).unwrap_or_default();
        format!("{:?} {}: {}{advice}\n", one.level, one.subject, one.text)
    };
    findings.iter().map(line).collect()
}
