//! Every rule of the access file, and that no text of one panics.

use proptest::prelude::*;

use super::*;
use crate::message;

const NOW_S: u64 = 1_800_000_000;

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn by_certificate(name: &str, role: Role, publish: &[&str], see: &[&str], certificate: &str) -> Entry {
    Entry {
        name: name.to_owned(),
        role,
        publish: strings(publish),
        see: strings(see),
        expires_s: None,
        credential: Credential::Certificate { name: certificate.to_owned() },
    }
}

fn viewer(name: &str) -> Entry {
    by_certificate(name, Role::Subscribe, &[], &["*"], &format!("{name}.example.net"))
}

fn with_token(name: &str, role: Role, publish: &[&str], see: &[&str]) -> (Entry, Secret) {
    let (token, credential) = new_token().expect("random numbers");
    (Entry { credential, ..by_certificate(name, role, publish, see, "") }, token)
}

fn access(entries: impl IntoIterator<Item = Entry>) -> Access {
    let mut access = Access::default();
    entries.into_iter().for_each(|entry| access.add(entry).expect("entry"));
    access
}

fn read(text: &str) -> Vec<Entry> {
    Access::parse(text).expect(text).entries().to_vec()
}

fn refusal(text: &str) -> String {
    Access::parse(text).expect_err(text).to_string()
}

#[test]
fn a_token_opens_its_own_entry_and_no_other() {
    let (publisher, token) = with_token("web", Role::Publish, &["web-*"], &[]);
    let (other, _) = with_token("db", Role::Publish, &["db-*"], &[]);
    let access = access([other, publisher]);
    let grant = access.check_token(&token, NOW_S).expect("granted");
    assert_eq!(grant.name(), "web");
    assert!(grant.may_be(message::Role::Publish) && !grant.may_be(message::Role::Subscribe));
    assert!(grant.may_publish("web-3") && !grant.may_publish("db-3") && !grant.may_publish(""));
    assert!(!grant.may_see("web-3") && grant.sees().is_empty());
    assert!(!grant.is_by_certificate());
}

#[test]
fn what_is_not_exactly_a_token_is_unknown() {
    let (entry, token) = with_token("web", Role::Publish, &["*"], &[]);
    let access = access([entry]);
    let text = token.expose();
    assert_eq!(text.len(), 60);
    let (_, stranger) = with_token("x", Role::Admin, &[], &[]);
    let last = text.char_indices().last().expect("character").0;
    let changed = |to| format!("{}{to}", &text[..last]);
    let with_other_secret = format!("{}{}", &text[..16], &stranger.expose()[16..]);
    let wrong = [
        String::new(),
        "rct_".into(),
        text[..16].to_owned(),
        text[..59].to_owned(),
        format!("{text}x"),
        text.to_ascii_uppercase(),
        text[4..].to_owned(),
        "rct_äöüäöüäöü_".into(),
        changed(if text.ends_with('A') { 'B' } else { 'A' }),
        with_other_secret,
        stranger.expose().to_owned(),
    ];
    for wrong in wrong {
        assert_eq!(access.check_token(&Secret::new(&wrong), NOW_S), Err(Denied::Unknown), "{wrong}");
    }
    assert!(access.check_token(&token, NOW_S).is_ok());
}

#[test]
fn a_hash_and_a_token_are_what_hmac_says() {
    // Python: hmac.new(bytes(range(16)), token, hashlib.sha256).hexdigest()
    let token = "rct_abcdefghijkl_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let text = "[[access]]\nname = \"a\"\nrole = \"admin\"\ntoken_id = \"abcdefghijkl\"\n\
        salt = \"000102030405060708090a0b0c0d0e0f\"\nhash = \"7cd99e62cf22d0afc678c0a15d01d44fc4027dbdd285f149ceeaf91d161fc4eb\"\n";
    let grant = Access::parse(text).expect("file").check_token(&Secret::new(token), NOW_S);
    assert_eq!(grant.expect("granted").name(), "a");
}

#[test]
fn a_certificate_is_found_by_any_of_its_names() {
    let entries = [
        by_certificate("second", Role::Subscribe, &[], &["*"], "b.example.net"),
        by_certificate("first", Role::Subscribe, &[], &["*"], "A.Example.net"),
        by_certificate("uri", Role::Publish, &["x"], &[], "spiffe://example.net/Web"),
        by_certificate("mail", Role::Admin, &[], &[], "Anna@Example.net"),
        by_certificate("address", Role::Admin, &[], &[], "2001:DB8:0:0::1"),
    ];
    let access = access(entries);
    let check = |names: &[&str]| {
        access.check_certificate(&strings(names), NOW_S).map(|grant| grant.name().to_owned())
    };
    assert_eq!(check(&["a.EXAMPLE.net"]), Ok("first".into()));
    assert_eq!(check(&["a.example.net", "b.example.net"]), Ok("second".into()));
    assert_eq!(check(&["elsewhere", "spiffe://example.net/Web"]), Ok("uri".into()));
    assert_eq!(check(&["spiffe://example.net/web"]), Err(Denied::Unknown));
    assert_eq!(check(&["Anna@EXAMPLE.net"]), Ok("mail".into()));
    assert_eq!(check(&["anna@example.net"]), Err(Denied::Unknown));
    assert_eq!(check(&["2001:db8::1"]), Ok("address".into()));
    assert_eq!(check(&["*.example.net"]), Err(Denied::Unknown));
    assert_eq!(check(&["a.example.net."]), Err(Denied::Unknown));
    assert_eq!(check(&[]), Err(Denied::Unknown));
    assert!(
        access.check_certificate(&strings(&["b.example.net"]), NOW_S).expect("grant").is_by_certificate()
    );
}

#[test]
fn a_token_entry_is_not_found_by_a_certificate() {
    let (entry, _) = with_token("web", Role::Admin, &[], &[]);
    let Credential::Token { id, .. } = &entry.credential else { panic!("no token") };
    let names = [id.clone(), "web".into(), String::new()];
    assert_eq!(access([entry]).check_certificate(&names, NOW_S), Err(Denied::Unknown));
}

#[test]
fn time_ends_an_entry() {
    let (entry, token) = with_token("web", Role::Publish, &["*"], &[]);
    let access = access([Entry { expires_s: Some(NOW_S), ..entry }]);
    let grant = access.check_token(&token, NOW_S - 1).expect("in time");
    assert_eq!(grant.expires_s(), Some(NOW_S));
    assert_eq!(access.still_grants(&grant, NOW_S - 1), Ok(()));
    assert_eq!(access.check_token(&token, NOW_S), Err(Denied::Expired));
    assert_eq!(access.still_grants(&grant, NOW_S), Err(Denied::Expired));
    // Who does not know the secret does not hear that its time is over.
    let wrong = Secret::new(&format!("{}x", token.expose()));
    assert_eq!(access.check_token(&wrong, NOW_S), Err(Denied::Unknown));
}

#[test]
fn a_grant_lasts_while_its_entry_is_unchanged() {
    let (entry, token) = with_token("web", Role::Publish, &["web-*"], &[]);
    let (again, _) = with_token("web", Role::Publish, &["web-*"], &[]);
    let before = access([entry.clone()]);
    let grant = before.check_token(&token, NOW_S).expect("granted");
    let elsewhere = access([viewer("a"), entry.clone(), viewer("b")]);
    assert_eq!(elsewhere.still_grants(&grant, NOW_S), Ok(()));
    let changes = [
        Entry { name: "web2".into(), ..entry.clone() },
        Entry { role: Role::Admin, ..entry.clone() },
        Entry { publish: strings(&["web-*", "db"]), ..entry.clone() },
        Entry { expires_s: Some(u64::from(u32::MAX)), ..entry.clone() },
        Entry { credential: again.credential, ..entry },
    ];
    for changed in changes {
        assert_eq!(
            access([changed.clone()]).still_grants(&grant, NOW_S),
            Err(Denied::Revoked),
            "{changed:?}"
        );
    }
    assert_eq!(Access::default().still_grants(&grant, NOW_S), Err(Denied::Revoked));
    assert_eq!(before.still_grants(&Grant::anyone(), NOW_S), Err(Denied::Revoked));
}

#[test]
fn roles_and_lists_bound_what_may_be_done() {
    let grant = |role, publish: &[&str], see: &[&str]| {
        let access = access([by_certificate("x", role, publish, see, "x")]);
        access.check_certificate(&strings(&["x"]), NOW_S).expect("granted")
    };
    let desk = grant(Role::Subscribe, &[], &["web-*", "db"]);
    assert!(desk.may_see("web-1") && desk.may_see("db") && !desk.may_see("db2"));
    assert!(!desk.may_publish("web-1") && !desk.may_be(message::Role::Publish));
    assert_eq!(desk.sees(), ["web-*", "db"]);
    let admin = grant(Role::Admin, &[], &[]);
    assert!(admin.may_see("any/thing\n*") && admin.may_publish("any"));
    assert!(admin.may_be(message::Role::Publish) && admin.may_be(message::Role::Subscribe));
    assert_eq!(admin.sees(), ["*"]);
    let half = grant(Role::Admin, &["web"], &[]);
    assert!(half.may_see("db") && half.may_publish("web") && !half.may_publish("db"));
    assert!(admin.may_see(&"x".repeat(255)) && !admin.may_see(&"x".repeat(256)));
    assert!(!admin.may_publish(&"x".repeat(256)));
    let anyone = Grant::anyone();
    assert!(anyone.may_see("x") && anyone.may_publish("x") && anyone.may_be(message::Role::Publish));
    assert!(!anyone.may_see(&"x".repeat(256)) && !anyone.may_publish(&"x".repeat(256)));
    assert_eq!((anyone.name(), anyone.expires_s(), anyone.sees()), ("anyone", None, &["*".to_owned()][..]));
    assert_ne!(anyone, admin);
}

#[test]
fn a_name_written_as_a_glob_matches_itself_alone() {
    for name in ["web-1", "a*b", "a?b", "[x]", "{a,b}", "a\\b", "!a", "ä/b", "**"] {
        let entry = by_certificate("x", Role::Publish, &[crate::globs::exactly(name).as_str()], &[], "x");
        let grant = access([entry]).check_certificate(&strings(&["x"]), NOW_S).expect("granted");
        assert!(grant.may_publish(name), "{name}");
        for other in ["web-12", "axb", "x", "a", "ab", "b", ""] {
            assert!(!grant.may_publish(other), "{name} {other}");
        }
    }
}

#[test]
fn a_file_says_where_it_is_wrong() {
    let entry = |lines: &str| format!("# head\n\n[[access]]\nname = \"a\"\n{lines}\n");
    let admin = |lines: &str| entry(&format!("role = \"admin\"\n{lines}"));
    for (text, expected) in [
        ("x = 1".to_owned(), "line 1: unknown field `x`"),
        ("\n[access]\nname = \"a\"".to_owned(), "line 2: "),
        ("\n\n[[access]".to_owned(), "line 3: "),
        (entry("role = \"root\"\ncertificate = \"x\""), "line 5: unknown variant `root`"),
        (admin("certificate = \"x\"\ncolour = 1"), "line 7: unknown field `colour`"),
        (admin("certificate = \"x\"\ncertificate = \"y\""), "line 7: duplicate key"),
        (admin("see = \"*\"\ncertificate = \"x\""), "line 6: invalid type"),
        (entry("certificate = \"x\""), "line 3: missing field `role`"),
        (admin(""), "line 3: entry \"a\": token_id, salt and hash, or certificate: exactly one"),
        (admin("token_id = \"abcdefghijkl\"\nsalt = \"00\""), "exactly one of the two"),
        (admin("token_id = \"abcdefghijkl\"\nsalt=\"00\"\nhash=\"00\""), "\"a\": salt: 16 bytes"),
        (admin("certificate = \"\""), "line 3: entry \"a\": certificate: 1 to 1024"),
        (admin("certificate = \"a b\""), "certificate: 1 to 1024"),
        (admin("see = [\"a[\"]\ncertificate = \"x\""), "see: glob \"a[\": unclosed character class"),
        (admin("see = [\"\"]\ncertificate = \"x\""), "see: glob of 0 bytes"),
        (entry("role = \"publish\"\ncertificate = \"x\""), "publish: empty, so it could do nothing"),
        (entry("role = \"subscribe\"\ncertificate = \"x\""), "write see = [\"*\"] for all"),
        (
            entry("role = \"publish\"\npublish = [\"a\"]\nsee = [\"a\"]\ncertificate = \"x\""),
            "see: role \"publish\" has no use for it",
        ),
        (
            entry("role = \"subscribe\"\npublish = [\"a\"]\nsee = [\"a\"]\ncertificate = \"x\""),
            "publish: role \"subscribe\" has no use for it",
        ),
        (admin("certificate = \"x\"\nexpires = 7"), "entry \"a\": expires: \"7\": write a time"),
        (admin("certificate = \"x\"\nexpires = 2027-01-01"), "expires: \"2027-01-01\""),
        (admin("certificate = \"x\"\nexpires = 2027-01-01T00:00:00"), "write a time as"),
        (admin("certificate = \"x\"\nexpires = \"tomorrow\""), "\"tomorrow\""),
        (admin("certificate = \"x\"\nexpires = 1969-01-01T00:00:00Z"), "from 1970"),
    ] {
        let found = refusal(&text);
        assert!(found.contains(expected), "{text}\n{found}\n{expected}");
    }
}

#[test]
fn an_error_does_not_show_the_line() {
    let found = refusal("[[access]]\ntoken = \"rct_abcdefghijkl_topsecret\"\n");
    assert!(!found.contains("topsecret") && found.contains("line 2"), "{found}");
}

#[test]
fn names_and_credentials_are_given_once() {
    let (token, _) = with_token("a", Role::Admin, &[], &[]);
    let mut access = access([token.clone(), viewer("b")]);
    let mut fails = |entry: Entry| access.add(entry).expect_err("refused").to_string();
    assert!(fails(viewer("a")).contains("\"a\": name: there is an entry of this name already"));
    assert!(fails(Entry { name: "c".into(), ..token }).contains("entry \"a\" has the same"));
    let certificate = Credential::Certificate { name: "B.Example.NET".into() };
    assert!(
        fails(Entry { credential: certificate, ..viewer("c") })
            .contains("\"c\": token_id or certificate: entry \"b\"")
    );
    for name in ["", " a", "a ", "a\nb", "anyone", &"x".repeat(256)] {
        assert!(
            fails(Entry { name: name.into(), ..viewer("c") }).contains("name: 1 to 255 bytes"),
            "{name:?}"
        );
    }
    assert!(fails(Entry { expires_s: Some(u64::MAX), ..viewer("c") }).contains("expires"));
    assert_eq!(access.entries().len(), 2);
}

#[test]
fn limits_hold() {
    let many: Vec<String> = (0..257).map(|number| format!("g{number}")).collect();
    let mut access = Access::default();
    let error = access.add(Entry { see: many, ..viewer("a") }).expect_err("too many").to_string();
    assert!(error.contains("over 256 globs"), "{error}");
    let error =
        access.add(Entry { see: vec!["x".repeat(1025)], ..viewer("a") }).expect_err("long").to_string();
    assert!(error.contains("1025 bytes"), "{error}");
    assert_eq!(Access::parse(&" ".repeat(FILE_BYTES_MAX + 1)).expect_err("large"), AccessError::TooLarge);
    (0..ENTRIES_MAX).for_each(|number| access.add(viewer(&number.to_string())).expect("room"));
    assert_eq!(access.add(viewer("more")), Err(AccessError::TooMany));
    assert_eq!(Access::parse(&access.to_text()).expect("file").entries().len(), ENTRIES_MAX);
}

#[test]
fn what_is_removed_is_not_found_and_the_others_are() {
    let (a, token_a) = with_token("a", Role::Admin, &[], &[]);
    let (c, token_c) = with_token("c", Role::Admin, &[], &[]);
    let mut access = access([a.clone(), viewer("b"), c]);
    assert_eq!(access.remove("x"), None);
    assert_eq!(access.remove("a").map(|entry| entry.credential), Some(a.credential.clone()));
    assert_eq!(access.check_token(&token_a, NOW_S), Err(Denied::Unknown));
    assert_eq!(access.check_token(&token_c, NOW_S).expect("granted").name(), "c");
    let names = strings(&["b.example.net"]);
    assert_eq!(access.check_certificate(&names, NOW_S).expect("granted").name(), "b");
    access.add(a).expect("free again");
    assert_eq!(access.check_token(&token_a, NOW_S).expect("granted").name(), "a");
}

#[test]
fn edits_leave_comments_and_other_entries_as_they_are() {
    let text = "# mine\n[[access]] # one\nname = \"a\" # two\nrole = \"admin\"\ncertificate = \"a\" # three\n\n\
        # of b\n[[access]]\nname = \"b\"\nrole = \"admin\"\ncertificate = \"b\"";
    let added = with_entry(text, viewer("c")).expect("added");
    assert!(added.starts_with(text), "{added}");
    assert_eq!(Access::parse(&added).expect("file").entries().len(), 3);
    let (rest, removed) = without_entry(&added, "a").expect("file").expect("entry");
    assert_eq!(removed.name, "a");
    assert!(rest.starts_with("# mine\n# of b\n[[access]]\nname = \"b\""), "{rest}");
    let (rest, _) = without_entry(&rest, "c").expect("file").expect("entry");
    assert_eq!(rest, "# mine\n# of b\n[[access]]\nname = \"b\"\nrole = \"admin\"\ncertificate = \"b\"\n");
    let (rest, _) = without_entry(&rest, "b").expect("file").expect("entry");
    assert_eq!(rest, "# mine\n# of b\n");
    assert_eq!(without_entry(&rest, "b"), Ok(None));
}

#[test]
fn a_file_of_inline_tables_is_written_anew() {
    let text = "access = [{ name = \"a\", role = \"admin\", certificate = \"a\" },\n\
        { name = \"b\", role = \"admin\", certificate = \"b\" }]\n";
    let added = with_entry(text, viewer("c")).expect("added");
    assert_eq!(Access::parse(&added).expect("file").entries().len(), 3);
    let (rest, _) = without_entry(text, "a").expect("file").expect("entry");
    let rest = Access::parse(&rest).expect("file");
    assert_eq!(rest.entries().iter().map(|entry| &entry.name).collect::<Vec<_>>(), ["b"]);
}

#[test]
fn a_new_file_says_what_it_is() {
    let text = with_entry("", viewer("a")).expect("added");
    assert!(text.starts_with("# Who may connect"), "{text}");
    assert_eq!(Access::parse(&text).expect("file").to_text(), text);
}

#[test]
fn debug_output_has_no_hash_and_no_secret() {
    let (entry, token) = with_token("web", Role::Publish, &["*"], &[]);
    let text = access([entry.clone()]).to_text();
    let access = access([entry]);
    let grant = access.check_token(&token, NOW_S).expect("granted");
    let hash = text.lines().find_map(|line| line.strip_prefix("hash = ")).expect("hash").trim_matches('"');
    let shown = format!("{access:?} {grant:?} {token:?}");
    assert!(!shown.contains(&token.expose()[16..]) && !shown.contains(hash), "{shown}");
    assert!(!text.contains(&token.expose()[17..]));
}

#[test]
fn times_are_read_with_any_offset_and_written_in_utc() {
    assert_eq!(parse_time("2027-03-01T00:00:00Z"), Ok(1_803_859_200));
    assert_eq!(parse_time("2027-03-01T02:00:00.5+02:00"), Ok(1_803_859_200));
    assert_eq!(format_time(1_803_859_200), "2027-03-01T00:00:00Z");
    assert_eq!(format_time(253_402_300_799), "9999-12-31T23:59:59Z");
    let text = |expires: &str| {
        format!("[[access]]\nname = \"a\"\nrole = \"admin\"\ncertificate = \"a\"\nexpires = {expires}\n")
    };
    for expires in ["2027-03-01T00:00:00Z", "\"2027-03-01T00:00:00Z\"", "2027-03-01 01:00:00+01:00"] {
        let access = Access::parse(&text(expires)).expect(expires);
        assert_eq!(access.entries()[0].expires_s, Some(1_803_859_200), "{expires}");
    }
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let globs = || prop::collection::vec("[a-z\"'#\\\\\u{e4}\n -]{0,6}\\*", 1..4);
    let token = (any::<[u8; 16]>(), any::<[u8; 32]>(), "[a-z2-7]{12}")
        .prop_map(|(salt, hash, id)| Credential::Token { id, salt, hash });
    let certificate = "[a-zA-Z:@./\"\\\\]{1,20}".prop_map(|name| Credential::Certificate { name });
    let role = prop::sample::select(vec![Role::Publish, Role::Subscribe, Role::Admin]);
    let expires_s = prop::option::of(0..=253_402_300_799u64);
    let name = "[!-~\u{e4}\u{202e}]([ -~]{0,10}[!-~])?";
    (name, role, globs(), globs(), expires_s, prop_oneof![token, certificate]).prop_map(
        |(name, role, publish, see, expires_s, credential)| Entry {
            name,
            role,
            publish: if role == Role::Subscribe { Vec::new() } else { publish },
            see: if role == Role::Publish { Vec::new() } else { see },
            expires_s,
            credential,
        },
    )
}

proptest! {
    #[test]
    fn a_file_that_was_written_is_read_again(entries in prop::collection::vec(any_entry(), 0..8)) {
        let mut access = Access::default();
        let mut text = String::new();
        for entry in entries {
            if access.add(entry.clone()).is_ok() {
                text = with_entry(&text, entry).expect("same rules");
            }
        }
        prop_assert_eq!(read(&access.to_text()), access.entries());
        prop_assert_eq!(read(&text), access.entries());
        let names: Vec<_> = access.entries().iter().map(|entry| entry.name.clone()).collect();
        for name in names {
            let (rest, removed) = without_entry(&text, &name).expect("file").expect("entry");
            prop_assert_eq!(Some(removed), access.remove(&name));
            prop_assert_eq!(read(&rest), access.entries());
            text = rest;
        }
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,200}", token in "(rct_)?[a-z2-7]{0,14}_?\\PC{0,60}") {
        let _ = Access::parse(&text);
        let _ = parse_time(&text);
        let (entry, _) = with_token("x", Role::Admin, &[], &[]);
        let access = access([entry]);
        prop_assert_eq!(access.check_token(&Secret::new(&token), 0), Err(Denied::Unknown));
        prop_assert_eq!(access.check_certificate(&[text], 0), Err(Denied::Unknown));
    }

    #[test]
    fn no_damaged_file_panics(entry in any_entry(), at in any::<prop::sample::Index>(), with in "\\PC{0,3}") {
        let mut access = Access::default();
        let _ = access.add(entry);
        let text: Vec<char> = access.to_text().chars().collect();
        let at = at.index(text.len());
        let damaged: String = text[..at].iter().copied().chain(with.chars()).chain(text[at + 1..].iter().copied()).collect();
        if let Ok(found) = Access::parse(&damaged) {
            prop_assert_eq!(read(&found.to_text()), found.entries());
        }
        let _ = without_entry(&damaged, "x");
    }
}
