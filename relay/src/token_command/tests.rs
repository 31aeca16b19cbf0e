//! The commands on files of a directory of their own.

use std::os::unix::fs::{PermissionsExt, symlink};

use clap::Parser;
use tempfile::TempDir;

use super::*;
use crate::args::{Args, Command};

const NOW_S: u64 = 1_800_000_000;

/// Runs `relay token add` with `--tokens DIR/tokens.toml`.
fn add_in(directory: &TempDir, line: &str) -> Result<Added, String> {
    let tokens = directory.path().join("tokens.toml").display().to_string();
    let words = ["relay", "token", "add", "--tokens", &tokens].map(str::to_owned).into_iter();
    let args = Args::try_parse_from(words.chain(line.split_whitespace().map(str::to_owned)));
    match args.map_err(|error| error.to_string())?.command {
        Some(Command::Token { action: TokenAction::Add(args) }) => {
            add(&args, NOW_S).map_err(|error| error.to_string())
        }
        _ => panic!("another command"),
    }
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("directory")
}

fn access_of(directory: &TempDir) -> Access {
    Access::parse(&text_of(directory)).expect("access file")
}

fn text_of(directory: &TempDir) -> String {
    read(&directory.path().join("tokens.toml")).expect("file")
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("file").permissions().mode() & 0o7777
}

#[test]
fn a_token_that_was_added_opens_and_is_written_nowhere() {
    let directory = directory();
    let added = add_in(&directory, "web-1 --role publish").expect("added");
    let secret = added.secret.expect("token");
    let grant = access_of(&directory).check_token(&secret, NOW_S).expect("granted");
    assert!(grant.may_publish("web-1") && !grant.may_publish("web-12"));
    let random = &secret.expose()[17..];
    assert!(!text_of(&directory).contains(random) && !added.advice.contains(random));
    assert!(added.advice.contains("--name web-1 --relay wss://HOST:9440"), "{}", added.advice);
    assert!(added.advice.contains("pkill -HUP -x relay"), "{}", added.advice);
    assert_eq!(mode(&directory.path().join("tokens.toml")), 0o600);
    let names: Vec<_> = std::fs::read_dir(directory.path()).expect("directory").collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

#[test]
fn defaults_follow_the_role() {
    let directory = directory();
    let secret = |line| add_in(&directory, line).expect(line).secret.expect("token");
    let [star, desk, admin, some] = [
        secret("we*b --role publish"),
        secret("desk --role subscribe"),
        secret("admin --role admin"),
        secret("some --role admin --publish a --see b-* --see c"),
    ];
    let access = access_of(&directory);
    let grant = |secret: &Secret| access.check_token(secret, NOW_S).expect("granted");
    assert!(grant(&star).may_publish("we*b") && !grant(&star).may_publish("web"));
    assert!(grant(&desk).may_see("x") && !grant(&desk).may_publish("x"));
    assert!(grant(&admin).may_see("x") && grant(&admin).may_publish("x"));
    assert!(grant(&some).may_publish("a") && grant(&some).may_see("c") && !grant(&some).may_see("a"));
}

#[test]
fn an_out_file_is_new_and_private() {
    let directory = directory();
    let out = directory.path().join("t");
    let line = format!("web-1 --role publish --out {}", out.display());
    let added = add_in(&directory, &line).expect("added");
    assert_eq!(added.secret, None);
    assert_eq!(mode(&out), 0o600);
    let secret = Secret::new(&read(&out).expect("token"));
    assert!(access_of(&directory).check_token(&secret, NOW_S).is_ok());
    let before = text_of(&directory);
    let error = add_in(&directory, &line.replace("web-1", "web-2")).expect_err("there");
    assert!(error.contains(&format!("{}: File exists", out.display())), "{error}");
    assert_eq!(text_of(&directory), before);
    assert!(!format!("{error}{}", added.advice).contains(&secret.expose()[17..]));
}

#[test]
fn expiry_is_a_time_from_now_or_a_date() {
    let directory = directory();
    add_in(&directory, "a --role admin --expires 90d").expect("90 days");
    add_in(&directory, "b --role admin --expires 2027-03-01T00:00:00Z").expect("date");
    let ends: Vec<_> = access_of(&directory).entries().iter().map(|entry| entry.expires_s).collect();
    assert_eq!(ends, [Some(NOW_S + 90 * 86_400), Some(1_803_859_200)]);
    for (line, expected) in [
        ("c --role admin --expires 2026-01-01T00:00:00Z", "over already"),
        ("c --role admin --expires 0", "over already"),
        ("c --role admin --expires tomorrow", "90d or 12h"),
    ] {
        let error = add_in(&directory, line).expect_err(line);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_certificate_needs_no_token() {
    let directory = directory();
    let added = add_in(&directory, "web-1 --role publish --certificate web-1.example.net").expect("added");
    assert_eq!(added.secret, None);
    assert!(added.advice.contains("--cert CERT.pem --key KEY.pem"), "{}", added.advice);
    let names = ["web-1.example.net".to_owned()];
    assert_eq!(access_of(&directory).check_certificate(&names, NOW_S).expect("granted").name(), "web-1");
}

#[test]
fn what_is_refused_changes_nothing() {
    let directory = directory();
    add_in(&directory, "a --role admin").expect("added");
    let before = text_of(&directory);
    for (line, expected) in [
        ("a --role admin", "tokens.toml: entry \"a\": name: there is an entry of this name already"),
        ("b --role publish --publish [", "publish: glob \"[\""),
        ("b --role publish --see x", "see: role \"publish\" has no use for it"),
        ("b --role root", "possible values: publish, subscribe, admin"),
        ("b", "--role <ROLE>"),
    ] {
        let error = add_in(&directory, line).expect_err(line);
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(text_of(&directory), before);
}

#[test]
fn a_revoked_token_is_unknown_and_the_rest_stays() {
    let directory = directory();
    let path = directory.path().join("tokens.toml");
    let [a, b] = ["a", "b"].map(|name| {
        add_in(&directory, &format!("{name} --role admin")).expect("added").secret.expect("token")
    });
    std::fs::write(&path, format!("# mine\n{}", text_of(&directory))).expect("file");
    let grant = access_of(&directory).check_token(&a, NOW_S).expect("granted");
    let text = revoke("a", &path).expect("revoked");
    assert!(text.contains("entry \"a\" removed") && text.contains("pkill -HUP -x relay"), "{text}");
    let access = access_of(&directory);
    assert_eq!(access.check_token(&a, NOW_S), Err(access::Denied::Unknown));
    assert_eq!(access.still_grants(&grant, NOW_S), Err(access::Denied::Revoked));
    assert!(access.check_token(&b, NOW_S).is_ok());
    assert!(text_of(&directory).starts_with("# mine\n"));
    let error = revoke("a", &path).expect_err("gone").to_string();
    assert!(error.contains("no entry \"a\""), "{error}");
}

#[test]
fn the_list_marks_what_is_over_and_has_no_hash() {
    let directory = directory();
    let path = directory.path().join("tokens.toml");
    add_in(&directory, "web-1 --role publish --expires 1h").expect("added");
    add_in(&directory, "desk --role subscribe --see web-* --see db --certificate desk.example.net")
        .expect("added");
    let text = list(&path, false, NOW_S + 3600).expect("list");
    let lines: Vec<_> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(lines[1][..6], ["web-1", "publish", "web-1", "-", "2027-01-15T09:00:00Z", "EXPIRED"]);
    assert!(lines[1][6].starts_with("rct_") && lines[1][6].ends_with("_..."), "{text}");
    assert_eq!(lines[2], ["desk", "subscribe", "-", "web-*", "db", "never", "desk.example.net"]);
    assert!(!list(&path, false, NOW_S).expect("list").contains("EXPIRED"));
    let json = list(&path, true, NOW_S).expect("list");
    let parsed: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(parsed[1]["see"], serde_json::json!(["web-*", "db"]));
    assert_eq!(parsed[0]["expires"], "2027-01-15T09:00:00Z");
    assert_eq!(parsed[0]["expired"], false);
    assert!(parsed[0]["certificate"].is_null() && parsed[1]["token_id"].is_null());
    assert!(!json.contains("hash") && !json.contains("salt"));
    let missing = list(&directory.path().join("x"), false, NOW_S).expect_err("missing").to_string();
    assert!(missing.contains("/x: No such file"), "{missing}");
}

#[test]
fn a_damaged_file_is_named_and_left() {
    let directory = directory();
    let path = directory.path().join("tokens.toml");
    std::fs::write(&path, "[[access]]\nname = 1\n").expect("file");
    let error = add_in(&directory, "a --role admin").expect_err("damaged");
    assert!(error.contains("tokens.toml: line 2: "), "{error}");
    assert_eq!(text_of(&directory), "[[access]]\nname = 1\n");
}

#[test]
fn a_link_and_the_group_stay_and_others_lose_theirs() {
    let (directory, elsewhere) = (directory(), directory());
    let target = elsewhere.path().join("real.toml");
    std::fs::write(&target, "").expect("file");
    std::fs::set_permissions(&target, PermissionsExt::from_mode(0o666)).expect("mode");
    symlink(&target, directory.path().join("tokens.toml")).expect("link");
    add_in(&directory, "a --role admin").expect("added");
    assert!(std::fs::symlink_metadata(directory.path().join("tokens.toml")).expect("link").is_symlink());
    assert!(read(&target).expect("file").contains("name = \"a\""));
    assert_eq!(mode(&target), 0o640);
}

#[test]
fn two_at_once_lose_nothing() {
    let directory = directory();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let directory = &directory;
            scope.spawn(move || add_in(directory, &format!("n{number} --role admin")).expect("added"));
        }
    });
    assert_eq!(access_of(&directory).entries().len(), 8);
}
