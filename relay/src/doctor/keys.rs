//! Certificate, key and access file: whether they can be used, for whom they are, and how long.

use std::path::Path;

use wire::access::{Access, Role};
use wire::doctor::{Finding, Whose, private};
use wire::text::io_text;
use wire::tls::{ServerFiles, ServerTls};

use crate::authority::hosts_of;
use crate::config::Config;

const DAY_S: u64 = 86_400;
/// An entry that ends within this time is worth a word.
const SOON_S: u64 = 14 * DAY_S;
const RENEWAL: &str = "relay init DIR --renew makes a new one; a relay that runs takes it on SIGHUP";

/// What is to be said of the files at `now_s`, seconds since 1970.
pub fn check(config: &Config, now_s: u64) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let (Some(cert), Some(key)) = (&config.cert, &config.key) {
        findings.extend(certificate(cert, key, config.client_ca.as_deref(), now_s));
    }
    if let Some(tokens) = &config.tokens {
        findings.extend(access(tokens, now_s));
    }
    findings
}

fn certificate(cert: &Path, key: &Path, client_ca: Option<&Path>, now_s: u64) -> Vec<Finding> {
    const SUBJECT: &str = "certificate";
    let files =
        ServerFiles { cert: cert.to_owned(), key: key.to_owned(), client_ca: client_ca.map(Path::to_owned) };
    let mut findings = Vec::new();
    if let Err(error) = ServerTls::load(&files) {
        let advice = "relay init makes certificate and key that go together; they must be readable to the relay's user";
        findings.push(Finding::problem(SUBJECT, error.to_string(), advice));
    }
    let whose = |renewal| Whose { subject: SUBJECT, what: "", renewal };
    findings.extend(whose(RENEWAL).file("--cert", cert, now_s));
    let pem = std::fs::read_to_string(cert).unwrap_or_default();
    if let Ok(names) = hosts_of(&pem, "") {
        findings.push(match names.is_empty() {
            true => Finding::problem(
                SUBJECT,
                format!("--cert {}: for no name, so every client refuses it", cert.display()),
                "have it made with subject alternative names: relay init DIR --host NAME",
            ),
            false => {
                Finding::ok(SUBJECT, format!("for {}: what clients may write in --relay", names.join(", ")))
            }
        });
    }
    let authority = "make a new authority, and client certificates of it";
    findings.extend(client_ca.and_then(|path| whose(authority).file("--client-ca", path, now_s)));
    findings.extend(private(SUBJECT, "--key", key));
    findings
}

fn access(path: &Path, now_s: u64) -> Vec<Finding> {
    const SUBJECT: &str = "tokens";
    let shown = path.display();
    let read = std::fs::read_to_string(path).map_err(|error| io_text(&error));
    let parsed = read.and_then(|text| Access::parse(&text).map_err(|error| error.to_string()));
    let access = match parsed {
        Ok(access) => access,
        Err(why) => {
            let advice =
                format!("relay token list --tokens {shown} shows the same; relay token add makes a file");
            return vec![Finding::problem(SUBJECT, format!("--tokens {shown}: {why}"), advice)];
        }
    };
    let entries = access.entries();
    let has_ended = |end_s: Option<u64>, at_s: u64| end_s.is_some_and(|end_s| end_s <= at_s);
    let names = |at_s: u64, unless_s: u64| -> Vec<String> {
        let entries = entries
            .iter()
            .filter(|one| has_ended(one.expires_s, at_s) && !has_ended(one.expires_s, unless_s));
        entries.map(|one| one.name.escape_debug().to_string()).collect()
    };
    let (over, soon) = (names(now_s, 0), names(now_s.saturating_add(SOON_S), now_s));
    let holds = |role| {
        entries.iter().any(|one| [role, Role::Admin].contains(&one.role) && !has_ended(one.expires_s, now_s))
    };
    let mut findings = vec![Finding::ok(SUBJECT, format!("--tokens {shown}: {} entries", entries.len()))];
    let lacking: Vec<&str> = [(Role::Publish, "sniffer"), (Role::Subscribe, "viewer")]
        .into_iter()
        .filter_map(|(role, who)| (!holds(role)).then_some(who))
        .collect();
    if !lacking.is_empty() {
        findings.push(Finding::warning(
            SUBJECT,
            format!("--tokens {shown}: lets no {} in", lacking.join(" and no ")),
            format!("relay token add NAME --role publish (or subscribe) --tokens {shown}"),
        ));
    }
    if !over.is_empty() {
        let text = format!("--tokens {shown}: over: {}", over.join(", "));
        findings.push(Finding::note(SUBJECT, text).advise("relay token revoke NAME removes one"));
    }
    if !soon.is_empty() {
        let text = format!("--tokens {shown}: over within {} days: {}", SOON_S / DAY_S, soon.join(", "));
        findings.push(Finding::warning(SUBJECT, text, "relay token add NAME --expires TIME makes another"));
    }
    findings.extend(private(SUBJECT, "--tokens", path));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::access::parse_time;
    use wire::doctor::Level;

    fn text(findings: &[Finding]) -> String {
        findings.iter().map(|one| format!("{:?} {}\n", one.level, one.text)).collect()
    }

    #[test]
    fn entries_that_end_are_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("tokens.toml");
        let entry = |name: &str, role: &str, list: &str, expires: &str| {
            format!(
                "[[access]]\nname = \"{name}\"\nrole = \"{role}\"\n{list} = [\"*\"]\n{expires}\ncertificate = \"{name}.example\"\n"
            )
        };
        let write = |entries: &[String]| std::fs::write(&path, entries.concat()).expect("written");
        write(&[
            entry("web-1", "publish", "publish", "expires = 2027-01-01T00:00:00Z"),
            entry("web-2", "publish", "publish", "expires = 2027-01-14T00:00:00Z"),
            entry("web-3", "publish", "publish", ""),
        ]);
        let now_s = parse_time("2027-01-01T00:00:00Z").expect("a time");
        let found = text(&access(&path, now_s));
        assert!(found.contains(": 3 entries\n") && found.contains(": lets no viewer in\n"), "{found}");
        assert!(
            found.contains(": over: web-1\n") && found.contains(": over within 14 days: web-2\n"),
            "{found}"
        );
        assert!(!access(&path, now_s).iter().any(|one| one.level == Level::Problem));
        write(&["nonsense".to_owned()]);
        assert!(text(&access(&path, now_s)).starts_with("Problem --tokens /"));
        assert!(text(&access(&directory.path().join("none"), now_s)).contains("no such file"));
    }
}
