//! How long certificates are good for.

use std::path::Path;

use super::Finding;
use crate::tls::ends_s;

const DAY_S: u64 = 86_400;
/// A certificate that ends within this time is worth a warning.
const SOON_S: u64 = 21 * DAY_S;

/// Whose certificates they are.
#[derive(Clone, Copy, Debug)]
pub struct Whose<'a> {
    /// Subject of the findings.
    pub subject: &'a str,
    /// The option that names the file, or the owner of a certificate that was shown.
    pub what: &'a str,
    /// How to have a new one.
    pub renewal: &'a str,
}

/// What is to be said of a certificate that ends at `end_s`; both in seconds since 1970.
pub fn lifetime(whose: &Whose, end_s: u64, now_s: u64) -> Finding {
    let Whose { subject, what, renewal } = *whose;
    if end_s < now_s {
        let days = (now_s - end_s) / DAY_S;
        return Finding::problem(subject, format!("{what}: the certificate ended {days} days ago"), renewal);
    }
    let text = format!("{what}: the certificate is good for {} days more", (end_s - now_s) / DAY_S);
    if end_s - now_s < SOON_S { Finding::warning(subject, text, renewal) } else { Finding::ok(subject, text) }
}

impl Whose<'_> {
    /// What is to be said of the certificate in a file that ends first. Whether the file is of use at all, whoever loads it
    /// says: of one that cannot be read nothing is found here.
    pub fn file(&self, option: &'static str, path: &Path, now_s: u64) -> Option<Finding> {
        let end_s = ends_s(option, path).ok()?.into_iter().min()?;
        let what = format!("{option} {}", path.display());
        Some(lifetime(&Whose { what: &what, ..*self }, end_s, now_s))
    }
}

#[cfg(test)]
mod tests {
    use super::super::for_tests::text;
    use super::*;
    use crate::clock::wall_s;
    use crate::tls::test_pki::Authority;

    #[test]
    fn the_days_are_counted() {
        let whose = Whose { subject: "relay", what: "relay x", renewal: "renew it" };
        let now_s = 1_000 * DAY_S;
        for (end_s, expected) in [
            (now_s - 1, "problem relay: relay x: the certificate ended 0 days ago -> renew it\n"),
            (now_s, "warning relay: relay x: the certificate is good for 0 days more -> renew it\n"),
            (now_s + SOON_S, "ok relay: relay x: the certificate is good for 21 days more\n"),
        ] {
            assert_eq!(text(&[lifetime(&whose, end_s, now_s)]), expected);
        }
    }

    #[test]
    fn a_file_counts_as_its_first_end() {
        let authority = Authority::new();
        let whose = Whose { subject: "credentials", what: "", renewal: "renew it" };
        let issued = authority.issue(&["a"], -7200, 3600);
        let found = whose.file("--cert", &issued.cert, wall_s()).expect("a certificate");
        assert!(found.text.starts_with("--cert /") && found.text.ends_with("for 0 days more"), "{found:?}");
        assert_eq!(whose.file("--cert", &issued.key, wall_s()), None);
    }
}
