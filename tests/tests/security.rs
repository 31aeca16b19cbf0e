//! Who gets in and who does not, with real processes: credentials, scopes, certificates, TLS.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use tests::pki::{Leaf, Pki, other_authority};
use tests::process::{Process, free_port, run};
use tests::program;
use tests::samples::{Order, Sample, udp_frame};

/// A relay over TLS, on loopback.
struct Relay {
    process: Process,
    port: u16,
}

impl Relay {
    fn start(arguments: &[String]) -> Self {
        let port = free_port();
        let mut command = Command::new(program("relay"));
        command.args(["--listen", &format!("127.0.0.1:{port}")]).args(arguments);
        let mut process = Process::start(&mut command);
        process.await_line("listening on");
        Self { process, port }
    }

    fn url(&self) -> String {
        format!("wss://127.0.0.1:{}", self.port)
    }

    fn reload(&mut self, count: usize) {
        self.process.signal("HUP");
        self.process.await_lines("were read anew", count, tests::process::DEADLINE);
    }
}

/// `viewer --list`: exit status, standard output, standard error.
fn list(url: &str, arguments: &[String]) -> (i32, String, String) {
    let mut command = Command::new(program("viewer"));
    let (code, stdout, stderr) = run(command.args(["--list", "--json", "--relay", url]).args(arguments));
    (code, String::from_utf8(stdout).expect("text"), stderr)
}

/// A file with that many packets.
fn sample(folder: &Path, count: u16) -> std::path::PathBuf {
    let mut sample = Sample::pcap(Order::Little, false, 1);
    for number in 0..count {
        let frame = udp_frame(1000 + number, 53, b"some text");
        sample.record(1_700_000_000, 0, &frame, frame.len() as u32);
    }
    let path = folder.join("in.pcap");
    fs::write(&path, sample.bytes()).expect("written");
    path
}

fn sniffer(url: &str, name: &str, file: &Path, arguments: &[String]) -> Process {
    let mut command = Command::new(program("sniffer"));
    command.arg("--read").arg(file).args(["--relay", url, "--name", name]).args(arguments);
    Process::start(&mut command)
}

/// A sniffer that stays: it reads a pipe that nobody closes.
fn staying(url: &str, name: &str, arguments: &[String]) -> (Process, std::process::ChildStdin) {
    let mut command = Command::new(program("sniffer"));
    command.args(["--read", "-", "--no-wait", "--relay", url, "--name", name]).args(arguments);
    let (process, mut stdin) = Process::start_piped(&mut command);
    stdin.write_all(Sample::pcap(Order::Little, false, 1).bytes()).expect("it reads");
    (process, stdin)
}

fn viewer(url: &str, out: &Path, arguments: &[String]) -> Process {
    let mut command = Command::new(program("viewer"));
    command.args(["--relay", url, "--until-end", "-w"]).arg(out).args(arguments);
    Process::start(&mut command)
}

/// Waits until the list, as this token has it, has a stream of that sniffer with so many viewers.
fn await_stream(url: &str, arguments: &[String], name: &str, viewers: u64) {
    tests::live::eventually(&format!("a stream of {name}"), || {
        let (_, stdout, stderr) = list(url, arguments);
        let streams: serde_json::Value = serde_json::from_str(&stdout).unwrap_or_default();
        let is_it = |one: &serde_json::Value| one["name"] == name && one["viewers"] == viewers;
        match streams.as_array().is_some_and(|all| all.iter().any(is_it)) {
            true => Ok(()),
            false => Err(format!("{stdout}{stderr}")),
        }
    });
}

#[test]
fn the_first_steps_lead_to_packets() {
    let (pki, folder) = (Pki::new(&[]), tempfile::tempdir().expect("a folder"));
    let relay = Relay::start(&pki.relay());
    let file = sample(folder.path(), 30);
    let out = folder.path().join("out.pcapng");
    let viewer = viewer(&relay.url(), &out, &pki.client("viewer.token"));
    let sniffer = sniffer(&relay.url(), "web-1", &file, &pki.client("sniffer.token"));
    assert_eq!(sniffer.wait().code(), 0);
    let viewer = viewer.wait();
    assert_eq!(viewer.code(), 0);
    assert!(viewer.stderr.contains("written 30; missing none"), "{}", viewer.stderr);
    let ended = relay.process.terminate();
    // The audit: who, what, from where, how long, how much.
    let audit: Vec<&str> = ended.stderr.lines().filter(|line| line.contains("audit")).collect();
    let has = |line: &str, parts: &[&str]| parts.iter().all(|part| line.contains(part));
    assert!(
        audit.iter().any(|line| has(line, &["subscription begins", "who=\"viewers\"", "from=127.0.0.1:"]))
    );
    assert!(
        audit
            .iter()
            .any(|line| has(line, &["subscription ends", "who=\"viewers\"", "seconds=", "packets=30"])),
        "{audit:?}"
    );
}

#[test]
fn who_does_not_belong_learns_nothing() {
    let pki = Pki::new(&[]);
    let other = Pki::new(&[]);
    pki.add("gone", &["--role", "subscribe"]);
    pki.revoke("gone");
    pki.add("late", &["--role", "subscribe", "--expires", "2031-01-01T00:00:00Z"]);
    let tokens = fs::read_to_string(pki.path("tokens.toml")).expect("there");
    let ended = tokens.replace("2031-01-01", "2021-01-01");
    assert_ne!(tokens, ended);
    fs::write(pki.path("tokens.toml"), ended).expect("written");
    pki.add("half", &["--role", "subscribe"]);
    let half = fs::read_to_string(pki.path("half.token")).expect("made");
    let mut wrong = half.trim().to_owned();
    let last = wrong.pop().expect("not empty");
    wrong.push(if last == 'A' { 'E' } else { 'A' });
    fs::write(pki.path("wrong.token"), &wrong).expect("written");
    let mut relay = Relay::start(&pki.relay());
    let ca = vec!["--ca".to_owned(), pki.text("ca.pem")];
    let foreign = [&ca[..], &["--token-file".into(), other.text("viewer.token")]].concat();
    for (arguments, why) in [
        (ca.clone(), "neither token nor certificate"),
        (foreign, "token"),
        (pki.client("wrong.token"), "token"),
        (pki.client("gone.token"), "token"),
        (pki.client("late.token"), "expired"),
    ] {
        let (code, stdout, stderr) = list(&relay.url(), &arguments);
        assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
        assert!(stderr.contains("access denied"), "{stderr}");
        assert!(
            !stderr.contains("expired") && !stderr.contains("revoked"),
            "more than it must say: {stderr}"
        );
        let line = relay.process.await_line(why);
        assert!(line.contains("access denied"), "{line}");
    }
    let (code, stdout, _) = list(&relay.url(), &pki.client("viewer.token"));
    assert_eq!((code, stdout.trim()), (0, "[]"));
    // No token in any line, whole or in part.
    let said = relay.process.said();
    for token in ["wrong.token", "gone.token", "late.token", "viewer.token"] {
        let token = fs::read_to_string(pki.path(token)).expect("there");
        let secret = token.trim().splitn(3, '_').nth(2).expect("its secret");
        assert!(!said.contains(&secret[..8]), "{said}");
    }
    let ended = relay.process.terminate();
    assert!(ended.stderr.contains("5 failed attempts"), "{}", ended.stderr);
}

#[test]
fn an_address_that_fails_too_often_must_wait() {
    let pki = Pki::new(&[]);
    let relay = Relay::start(&pki.relay());
    let ca = vec!["--ca".to_owned(), pki.text("ca.pem")];
    let told = (0..40).any(|_| list(&relay.url(), &ca).2.contains("too many failed attempts"));
    assert!(told, "40 attempts were all looked at");
    // The right token has to wait, too: nothing is checked meanwhile. Then it is let in.
    tests::live::eventually("an attempt that is looked at", || {
        let (code, _, stderr) = list(&relay.url(), &pki.client("viewer.token"));
        if code == 0 { Ok(()) } else { Err(stderr) }
    });
}

#[test]
fn names_and_scopes_bind() {
    ["1", "2"].into_iter().for_each(bind_names_and_scopes);
}

fn bind_names_and_scopes(workers: &str) {
    let (pki, folder) = (Pki::new(&[]), tempfile::tempdir().expect("a folder"));
    pki.add("web-1", &["--role", "publish"]);
    pki.add("dbs", &["--role", "publish", "--publish", "db-*"]);
    pki.add("web-desk", &["--role", "subscribe", "--see", "web-*"]);
    let mut relay = Relay::start(&[&pki.relay()[..], &["--workers".into(), workers.into()]].concat());
    let (url, file) = (relay.url(), sample(folder.path(), 5));

    // A name that is not its own, and a role that is not its own.
    for (name, token, text) in [
        ("db-1", "web-1.token", "web-1 may not publish as db-1"),
        ("web-1", "dbs.token", "dbs may not publish as web-1"),
        ("web-1", "viewer.token", "viewers may not publish"),
    ] {
        let ended = sniffer(&url, name, &file, &pki.client(token)).wait();
        assert_eq!(ended.code(), 1);
        assert!(ended.stderr.contains(text), "{}", ended.stderr);
    }
    let (code, _, stderr) = list(&url, &pki.client("web-1.token"));
    assert!(code == 1 && stderr.contains("may not subscribe"), "{stderr}");

    // Whom it may see, a viewer sees; of the others it learns nothing, not even that they are there.
    let (web, _web_in) = staying(&url, "web-1", &pki.client("web-1.token"));
    let (db, _db_in) = staying(&url, "db-1", &pki.client("dbs.token"));
    for name in ["web-1", "db-1"] {
        await_stream(&url, &pki.client("viewer.token"), name, 0);
    }
    let (_, stdout, stderr) = list(&url, &pki.client("web-desk.token"));
    assert!(stdout.contains("web-1") && !stdout.contains("db-1"), "{stdout}");
    assert!(stderr.contains("sniffers named web-*"), "{stderr}");
    let out = folder.path().join("out.pcapng");
    let beyond = [&pki.client("web-desk.token")[..], &["--sniffer".into(), "db-1".into()]].concat();
    let mut beyond = viewer(&url, &out, &beyond);
    beyond.await_line("sniffers named web-*");
    let everything = viewer(&url, &folder.path().join("all.pcapng"), &pki.client("web-desk.token"));
    await_stream(&url, &pki.client("viewer.token"), "web-1", 1);
    await_stream(&url, &pki.client("viewer.token"), "db-1", 0);
    drop((web, db, beyond, everything));
    relay.process.await_line("viewers may not publish");
}

#[test]
fn a_client_certificate_opens_what_its_entry_says() {
    let (pki, folder) = (Pki::new(&[]), tempfile::tempdir().expect("a folder"));
    let file = sample(folder.path(), 5);
    let issuer = pki.issuer();
    let leaf = |names, days_left| Leaf { names, is_client: true, days_left };
    let paths = |name: &str| (pki.path(&format!("{name}.pem")), pki.path(&format!("{name}-key.pem")));
    let write = |name: &str, leaf: Leaf<'_>| {
        let (cert, key) = paths(name);
        leaf.write(&issuer, &cert, &key);
    };
    write("host", leaf(&["web-1.example"], 30));
    write("nobody", leaf(&["nobody.example"], 30));
    write("ended", leaf(&["web-1.example"], -1));
    let (cert, key) = paths("strange");
    leaf(&["web-1.example"], 30).write(&other_authority(), &cert, &key);
    let mut add = pki.token_command("add");
    add.args(["web-1", "--role", "publish", "--certificate", "web-1.example"]);
    assert_eq!(run(&mut add).0, 0);
    let client_ca = ["--client-ca".to_owned(), pki.text("ca.pem")];
    let mut relay = Relay::start(&[&pki.relay()[..], &client_ca].concat());
    let with = |name: &str| {
        let (cert, key) = paths(name);
        let text = |path: &Path| path.to_string_lossy().into_owned();
        vec!["--ca".into(), pki.text("ca.pem"), "--cert".into(), text(&cert), "--key".into(), text(&key)]
    };
    let out = folder.path().join("out.pcapng");
    let viewer = viewer(&relay.url(), &out, &pki.client("viewer.token"));
    assert_eq!(sniffer(&relay.url(), "web-1", &file, &with("host")).wait().code(), 0);
    assert!(viewer.wait().stderr.contains("written 5; missing none"));
    for (name, certificate, text) in [
        ("web-2", "host", "web-1 may not publish as web-2"),
        ("web-1", "nobody", "access denied"),
        ("web-1", "ended", "expired"),
        ("web-1", "strange", "certificate"),
    ] {
        let ended = sniffer(&relay.url(), name, &file, &with(certificate)).wait();
        assert_eq!(ended.code(), 1, "{certificate}");
        assert!(ended.stderr.contains(text), "{certificate}: {}", ended.stderr);
    }
    // Its entry is removed: it is out, within seconds.
    let (mut connected, _stdin) = staying(&relay.url(), "web-1", &with("host"));
    await_stream(&relay.url(), &pki.client("viewer.token"), "web-1", 0);
    pki.revoke("web-1");
    relay.reload(1);
    connected.await_lines("access of web-1 ended", 1, std::time::Duration::from_secs(10));
}

#[test]
fn the_relays_certificate_is_verified() {
    let pki = Pki::new(&[]);
    let issuer = pki.issuer();
    let stranger = other_authority();
    let (cert, key) = (pki.path("other.pem"), pki.path("other-key.pem"));
    let serving = |cert: &Path, key: &Path| {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        vec![
            "--cert".into(),
            text(cert),
            "--key".into(),
            text(key),
            "--tokens".into(),
            pki.text("tokens.toml"),
        ]
    };
    let token = pki.client("viewer.token");
    let expired = Leaf { names: &["127.0.0.1", "localhost"], is_client: false, days_left: -1 };
    let elsewhere = Leaf { names: &["relay.example"], is_client: false, days_left: 9 };
    let unknown = Leaf { names: &["127.0.0.1"], is_client: false, days_left: 9 };
    expired.write(&issuer, &cert, &key);
    let relay = Relay::start(&serving(&cert, &key));
    let (code, _, stderr) = list(&relay.url(), &token);
    assert!(code == 1 && stderr.contains("expired"), "{stderr}");
    let said = relay.process.terminate().stderr;
    assert_eq!(
        said.lines().filter(|line| line.contains("WARN") && line.contains("expired")).count(),
        1,
        "it says it once: {said}"
    );
    elsewhere.write(&issuer, &cert, &key);
    let relay = Relay::start(&serving(&cert, &key));
    let (code, _, stderr) = list(&relay.url(), &token);
    assert!(code == 1 && stderr.contains("127.0.0.1") && stderr.contains("relay.example"), "{stderr}");
    drop(relay);
    unknown.write(&stranger, &cert, &key);
    let relay = Relay::start(&serving(&cert, &key));
    let (code, _, stderr) = list(&relay.url(), &token);
    assert!(code == 1 && stderr.contains("--ca"), "{stderr}");
    // Without --ca it is the platform's roots, which do not have it either.
    let (code, _, stderr) = list(&relay.url(), &token[2..]);
    assert!(code == 1 && stderr.contains("--ca"), "{stderr}");
}

#[test]
fn plain_bytes_and_old_tls_are_refused_on_the_tls_port() {
    let pki = Pki::new(&[]);
    let mut relay = Relay::start(&pki.relay());
    // A WebSocket client without TLS is told what to do.
    let (code, _, stderr) = list(&relay.url().replace("wss", "ws"), &[]);
    assert!(code == 1 && stderr.contains("wss://"), "{stderr}");
    let mut stream = TcpStream::connect(("127.0.0.1", relay.port)).expect("it listens");
    stream.write_all(&[0x55; 600]).expect("sent");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer); // reset or closed
    assert!(!answer.starts_with(b"HTTP/1.1 101"));
    relay.process.await_line("TLS");
    // TLS 1.0 and 1.1, as their client hellos are.
    for version in [0x01, 0x02] {
        let mut body = vec![0x03, version];
        body.extend([7; 32]); // random
        body.push(0); // no session
        let suites = [0xc0u8, 0x13, 0xc0, 0x14, 0x00, 0x2f, 0x00, 0x35];
        body.extend([0, suites.len() as u8]);
        body.extend(suites);
        body.extend([1, 0]); // no compression
        body.extend([0, 0]); // no extensions
        let mut record = vec![0x16, 0x03, 0x01];
        record.extend((body.len() as u16 + 4).to_be_bytes());
        record.extend([1, 0]);
        record.extend((body.len() as u16).to_be_bytes());
        record.extend(body);
        let mut stream = TcpStream::connect(("127.0.0.1", relay.port)).expect("it listens");
        stream.write_all(&record).expect("sent");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer.first(), Some(&0x15), "an alert, no server hello: {answer:?}");
    }
    // TLS against a port that has none.
    let port = free_port();
    let mut plain = Command::new(program("relay"));
    let mut plain = Process::start(plain.args(["--listen", &format!("127.0.0.1:{port}")]));
    plain.await_line("listening on");
    let (code, _, stderr) = list(&format!("wss://127.0.0.1:{port}"), &pki.client("viewer.token"));
    assert!(code == 1 && stderr.contains("does not speak TLS"), "{stderr}");
}

#[test]
fn certificates_and_tokens_change_under_way() {
    ["1", "2"].into_iter().for_each(change_under_way);
}

fn change_under_way(workers: &str) {
    let (pki, folder) = (Pki::new(&[]), tempfile::tempdir().expect("a folder"));
    pki.add("stays", &["--role", "subscribe"]);
    pki.add("goes", &["--role", "subscribe"]);
    let mut relay = Relay::start(&[&pki.relay()[..], &["--workers".into(), workers.into()]].concat());
    let url = relay.url();
    let (sniffer, mut stdin) = staying(&url, "web-1", &pki.client("sniffer.token"));
    let out = folder.path().join("out.pcapng");
    let stays = viewer(&url, &out, &pki.client("stays.token"));
    let mut goes = viewer(&url, &folder.path().join("goes.pcapng"), &pki.client("goes.token"));
    await_stream(&url, &pki.client("viewer.token"), "web-1", 2);
    let mut feed = |numbers: std::ops::Range<u16>| {
        let mut piece = Sample::pcap(Order::Little, false, 1);
        let from = piece.bytes().len();
        for number in numbers {
            let frame = udp_frame(number, 53, b"of a capture");
            piece.record(1_700_000_000, 0, &frame, frame.len() as u32);
        }
        stdin.write_all(&piece.bytes()[from..]).expect("the sniffer reads");
    };
    feed(0..100);
    // A broken file changes nothing.
    let tokens = fs::read_to_string(pki.path("tokens.toml")).expect("there");
    fs::write(pki.path("tokens.toml"), "[[access]]\nname = 5\n").expect("written");
    relay.process.signal("HUP");
    relay.process.await_line("stays in force");
    fs::write(pki.path("tokens.toml"), tokens).expect("written");
    // A new certificate, and one token less.
    let mut renew = Command::new(program("relay"));
    let (code, _, stderr) = run(renew.arg("init").arg(pki.path("")).arg("--renew"));
    assert_eq!(code, 0, "{stderr}");
    pki.revoke("goes");
    relay.reload(1);
    goes.await_lines("access of goes ended: revoked", 1, std::time::Duration::from_secs(10));
    feed(100..200);
    drop(stdin);
    let (sniffer, stays) = (sniffer.wait(), stays.wait());
    assert_eq!((sniffer.code(), stays.code()), (0, 0));
    assert!(stays.stderr.contains("written 200; missing none"), "{}", stays.stderr);
    assert!(!stays.stderr.contains("connection lost"), "{}", stays.stderr);
    assert_eq!(list(&url, &pki.client("stays.token")).0, 0);
    let (code, _, stderr) = list(&url, &pki.client("goes.token"));
    assert!(code == 1 && stderr.contains("access denied"), "{stderr}");
    // The certificate that was read last is the one that newcomers are shown: they refuse this one.
    let ended = Leaf { names: &["127.0.0.1"], is_client: false, days_left: -1 };
    ended.write(&pki.issuer(), &pki.path("relay.pem"), &pki.path("relay-key.pem"));
    relay.reload(2);
    let (code, _, stderr) = list(&url, &pki.client("stays.token"));
    assert!(code == 1 && stderr.contains("expired"), "{stderr}");
}

#[test]
fn no_secret_is_in_an_argument_a_log_or_a_core() {
    let pki = Pki::new(&[]);
    let relay = Relay::start(&pki.relay());
    let (mut sniffer, _stdin) = staying(&relay.url(), "web-1", &pki.client("sniffer.token"));
    await_stream(&relay.url(), &pki.client("viewer.token"), "web-1", 0);
    let token = fs::read_to_string(pki.path("sniffer.token")).expect("there");
    for id in [relay.process.id(), sniffer.id()] {
        let arguments = fs::read(format!("/proc/{id}/cmdline")).expect("it runs");
        assert!(!String::from_utf8_lossy(&arguments).contains(token.trim()));
        let limits = fs::read_to_string(format!("/proc/{id}/limits")).expect("it runs");
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    }
    assert!(!fs::read_to_string(pki.path("tokens.toml")).expect("there").contains(token.trim()));
    assert!(sniffer.is_running());
}

#[test]
fn a_token_does_not_go_over_a_plain_line() {
    let pki = Pki::new(&[]);
    let token = ["--token-file".to_owned(), pki.text("viewer.token")];
    let (code, _, stderr) = list("ws://192.0.2.1:9440", &token);
    assert!(code == 2 && stderr.contains("wss://"), "{stderr}");
}
