//! Which streams a viewer wants: globs over the names of sniffers and interfaces.

use globset::GlobSet;

use crate::access::Grant;
use crate::globs::{self, GlobError};
use crate::message::{Selection, StreamStatus};

/// A selection, compiled.
#[derive(Clone, Debug)]
pub struct Matcher {
    /// Who says what may be seen at all; `None`: everything.
    grant: Option<Grant>,
    sniffers: Option<GlobSet>,
    interfaces: Option<GlobSet>,
}

impl Matcher {
    /// Compiles the globs of `selection`.
    pub fn new(selection: &Selection) -> Result<Self, GlobError> {
        let (sniffers, interfaces) = (compile(&selection.sniffers)?, compile(&selection.interfaces)?);
        Ok(Self { grant: None, sniffers, interfaces })
    }

    /// The same, but only what the grant lets its holder see.
    pub fn within(selection: &Selection, grant: &Grant) -> Result<Self, GlobError> {
        Ok(Self { grant: Some(grant.clone()), ..Self::new(selection)? })
    }

    /// Whether a stream has a matching sniffer and at least one matching interface.
    pub fn matches(&self, status: &StreamStatus) -> bool {
        let may_see = self.grant.as_ref().is_none_or(|grant| grant.may_see(&status.name));
        let sniffer = may_see && self.sniffers.as_ref().is_none_or(|globs| globs.is_match(&status.name));
        let of_interest = |name: &String| self.matches_interface(name);
        sniffer && (self.interfaces.is_none() || status.interfaces.iter().any(of_interest))
    }

    /// Whether an interface matches.
    pub fn matches_interface(&self, name: &str) -> bool {
        self.interfaces.as_ref().is_none_or(|globs| globs.is_match(name))
    }
}

/// `None` for an empty list, which matches everything.
fn compile(list: &[String]) -> Result<Option<GlobSet>, GlobError> {
    if list.is_empty() { Ok(None) } else { globs::compile(list).map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(sniffers: &[&str], interfaces: &[&str], name: &str, of: &[&str]) -> bool {
        let strings = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        let selection = Selection {
            sniffers: strings(sniffers),
            interfaces: strings(interfaces),
            ..Selection::default()
        };
        let status =
            StreamStatus { name: name.to_owned(), interfaces: strings(of), ..StreamStatus::default() };
        Matcher::new(&selection).expect("globs").matches(&status)
    }

    #[test]
    fn globs_choose_streams() {
        assert!(matches(&[], &[], "any", &[]));
        assert!(matches(&["web-*"], &[], "web-3", &["eth0"]));
        assert!(!matches(&["web-*"], &[], "db-3", &["eth0"]));
        assert!(matches(&[], &["eth?", "lo"], "x", &["wlan0", "lo"]));
        assert!(!matches(&[], &["eth?"], "x", &["wlan0"]));
        assert!(!matches(&[], &["eth?"], "x", &[]));
    }

    #[test]
    fn a_selection_reaches_no_further_than_what_may_be_seen() {
        let status = StreamStatus { name: "web-1".into(), ..StreamStatus::default() };
        for (asked, sees, expected) in [
            (None, &["*"][..], true),
            (None, &["db-*", "web-1"], true),
            (Some("web-*"), &["web-?"], true),
            (Some("web-*"), &["db-*"], false),
            (Some("db-*"), &["*"], false),
        ] {
            let selection = Selection {
                sniffers: asked.map(str::to_owned).into_iter().collect(),
                ..Selection::default()
            };
            let matcher = Matcher::within(&selection, &Grant::to_see(sees)).expect("globs");
            assert_eq!(matcher.matches(&status), expected, "{asked:?} within {sees:?}");
        }
    }

    #[test]
    fn a_bad_glob_is_named() {
        let selection = Selection { sniffers: vec!["a[".into()], ..Selection::default() };
        let error = Matcher::new(&selection).expect_err("unclosed").to_string();
        assert!(error.contains("\"a[\""), "{error}");
    }
}
