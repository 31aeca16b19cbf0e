//! `doctor` of each program on real things: what is well, and what is wrong with its advice.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;
use tests::live::Bench;
use tests::pki::{Leaf, Pki};
use tests::process::{Process, free_port, run};
use tests::program;

/// What was found, in order.
struct Found {
    code: i32,
    findings: Vec<Value>,
}

impl Found {
    /// Runs `... doctor --json`.
    fn by(command: &mut Command) -> Self {
        let (code, stdout, stderr) = run(command.args(["doctor", "--json"]));
        let findings = serde_json::from_slice(&stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{stderr}", String::from_utf8_lossy(&stdout)));
        let Value::Array(findings) = findings else { panic!("no array: {findings}") };
        Self { code, findings }
    }

    /// The finding about `subject` with this in its text: its level, and what it advises.
    fn find(&self, subject: &str, text: &str) -> (&str, &str) {
        let is_it = |one: &&Value| {
            one["subject"] == subject && one["text"].as_str().is_some_and(|found| found.contains(text))
        };
        let found = self.findings.iter().find(is_it);
        let found = found.unwrap_or_else(|| panic!("{subject}: {text}: not in {:#?}", self.findings));
        (found["level"].as_str().expect("a level"), found["advice"].as_str().unwrap_or_default())
    }

    fn problems(&self) -> Vec<&Value> {
        self.findings.iter().filter(|one| one["level"] == "problem").collect()
    }

    /// A problem with this advice, and status 1.
    fn assert_problem(&self, subject: &str, text: &str, advice: &str) {
        let (level, found) = self.find(subject, text);
        assert_eq!((level, self.code), ("problem", 1), "{subject}: {text}");
        assert!(found.contains(advice), "{subject}: {text}: {found}");
    }
}

fn sniffer(bench: &Bench, arguments: &[&str]) -> Command {
    let mut command = bench.here.command(program("sniffer"));
    command.args(arguments);
    command
}

#[test]
fn a_capture_that_would_run_has_no_problem() {
    let Some(bench) = Bench::new() else { return };
    let mut relay = bench.relay();
    let spool = bench.path("spool");
    fs::create_dir(&spool).expect("made");
    let file = bench.path("sniffer.toml");
    fs::write(&file, format!("interface = \"v1\"\nname = \"web-1\"\nspool = {spool:?}\n")).expect("written");
    let file = file.to_string_lossy();

    let found = Found::by(&mut sniffer(&bench, &["--config", &file, "--spool-size", "8MiB"]));
    assert_eq!((found.code, found.problems()), (0, vec![]));
    for (subject, text) in [
        ("kernel", "Linux "),
        ("permissions", "CAP_NET_RAW"),
        ("interface v1", "up, 10 Gbit/s, MTU 1500, veth"),
        ("memory", "one ring (64.0 MiB, --ring-size)"),
        ("spool", "MB/s written and synced"),
        ("spool", "free for up to 8.0 MiB more"),
        ("relay", "127.0.0.1:9440: connected in"),
        ("relay", "welcomed by "),
        ("clock", "the relay's clock is"),
    ] {
        found.find(subject, text);
    }
    // The kernel joins no segments here, and leaves them uncut.
    let (level, advice) = found.find("interface v1", "TSO and GSO are on");
    assert_eq!(level, "note");
    assert!(advice.contains("ethtool -K v1 tso off gso off"), "{advice}");

    assert_eq!(fs::read_dir(&spool).expect("reads").count(), 0, "it leaves nothing behind");
    relay.await_line("web-1");

    // The same for people, with options on the other side of the name.
    let (code, stdout, _) = run(&mut sniffer(&bench, &["doctor", "-i", "v1"]));
    let text = String::from_utf8(stdout).expect("text");
    assert_eq!(code, 0, "{text}");
    assert!(text.lines().last().is_some_and(|line| line.starts_with("0 problems, ")), "{text}");
    assert!(text.contains("-> for frames as they will be on the wire: ethtool -K v1"), "{text}");

    let found = Found::by(bench.here.command(program("viewer")).args(["--sniffer", "web-*"]));
    assert_eq!((found.code, found.problems()), (0, vec![]));
    assert!(found.find("sniffers", "0 of 0 live streams match").1.contains("sniffer doctor"));
}

#[test]
fn offloads_are_named_with_the_command_that_ends_them() {
    let Some(bench) = Bench::new() else { return };
    let _relay = bench.relay();
    let set = |arguments: &[&str]| {
        let (code, _, stderr) = run(bench.here.command("ethtool").args(["-K", "v1"]).args(arguments));
        assert_eq!(code, 0, "{stderr}");
    };
    set(&["gro", "on"]);
    let found = Found::by(&mut sniffer(&bench, &["-i", "v1"]));
    let (level, advice) = found.find("interface v1", "GRO is on");
    assert_eq!(level, "warning");
    // What it advises is done, word by word.
    let command = advice.split("ethtool -K v1 ").nth(1).and_then(|rest| rest.split(" (").next());
    set(&command.expect("a command").split(' ').collect::<Vec<_>>());
    set(&["tso", "off", "gso", "off"]);
    let found = Found::by(&mut sniffer(&bench, &["-i", "v1"]));
    assert_eq!(found.find("interface v1", "no offload joins or cuts frames").0, "ok");
}

#[test]
fn what_keeps_a_capture_from_running_is_named_with_what_to_do() {
    let Some(bench) = Bench::new() else { return };
    let found = Found::by(&mut sniffer(&bench, &["-i", "v7", "-i", "v1", "-f", "prot 53"]));
    found.assert_problem("interface v7", "no such device; there are lo, v1", "--wait");
    found.assert_problem("filter", "", "pcap-filter(7)");
    found.assert_problem("relay", "127.0.0.1:9440: connection refused", "start a relay there");
    assert_eq!(found.find("interface v1", "up").0, "ok", "one mistake hides no other");

    bench.here.ip(&["link", "set", "v1", "down"]);
    let mut bare = bench.here.command("setpriv");
    bare.args(["--bounding-set", "-net_raw"]).arg(program("sniffer"));
    let found = Found::by(bare.args(["-i", "v1", "--relay", "ws://no-such-host.invalid"]));
    found.assert_problem("permissions", "no CAP_NET_RAW", "setcap cap_net_raw+ep /");
    found.assert_problem("relay", "no-such-host.invalid: the name is not found", "/etc/resolv.conf");
    assert_eq!(found.find("interface v1", "is down"), ("warning", "ip link set v1 up"));

    let (code, _, stderr) = run(&mut sniffer(&bench, &["-i", "v1", "--block-size", "5000", "doctor"]));
    assert_eq!(code, 2);
    assert!(stderr.contains("--block-size 5000"), "{stderr}");
}

#[test]
fn a_spool_that_is_not_to_be_had_is_named() {
    let Some(bench) = Bench::new() else { return };
    let relay = bench.relay();
    let spool = bench.path("spool");
    let shown = spool.to_string_lossy().into_owned();
    let running = bench.sniffer("first", &["-i", "v1", "--spool", &shown]);
    bench.await_streams(1, 0);
    let found = Found::by(&mut sniffer(&bench, &["-i", "v1", "--spool", &shown]));
    found.assert_problem("spool", "in use by process ", "a directory of its own");
    assert_eq!(running.terminate().code(), 0);
    drop(relay);

    let found = Found::by(&mut sniffer(&bench, &["-i", "v1", "--spool", &shown]));
    assert!(
        !found.findings.iter().any(|one| one["text"].as_str().is_some_and(|text| text.contains("in use")))
    );
    let (code, _, stderr) = run(Command::new("chown").args(["-R", "65534", &shown]));
    assert_eq!(code, 0, "{stderr}");
    let found = Found::by(&mut sniffer(&bench, &["-i", "v1", "--spool", &shown]));
    found.assert_problem("spool", "not ours to write: it is owned by uid 65534", "install -d -m 700 -o 0");
    let below = format!("{shown}/new");
    let found = Found::by(&mut sniffer(&bench, &["-i", "v1", "--spool", &below]));
    found.assert_problem("spool", "cannot be made without capabilities", "install -d");
}

/// A relay over TLS, its address, and `--relay` for its clients.
fn relay(pki: &Pki) -> (Process, String) {
    let port = free_port();
    let mut command = Command::new(program("relay"));
    command.args(["--listen", &format!("127.0.0.1:{port}")]).args(pki.relay());
    let mut relay = Process::start(&mut command);
    relay.await_line("listening on");
    (relay, format!("wss://127.0.0.1:{port}"))
}

#[test]
fn the_way_to_a_relay_is_gone_step_by_step() {
    let (pki, other) = (Pki::new(&[]), Pki::new(&[]));
    let (_relay, url) = relay(&pki);
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out.pcapng");
    let viewer = |ca: &Pki, token: &Pki| {
        let mut command = Command::new(program("viewer"));
        command.args(["--relay", &url, "--ca", &ca.text("ca.pem")]);
        command.args(["--token-file", &token.text("viewer.token"), "-w"]).arg(&out);
        Found::by(&mut command)
    };
    let good = viewer(&pki, &pki);
    assert_eq!((good.code, good.problems()), (0, vec![]));
    assert_eq!(good.find("relay", "TLS with 127.0.0.1").0, "ok");
    assert!(!out.exists(), "the output is left alone");
    viewer(&other, &pki).assert_problem("relay", "not issued by an authority that is trusted", "--ca FILE");
    viewer(&pki, &other).assert_problem(
        "relay",
        "refused: access denied",
        "relay token add NAME --role subscribe",
    );

    // A viewer's token does not publish; and who may read it is told.
    let token = pki.path("viewer.token");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).expect("set");
    let mut command = Command::new(program("sniffer"));
    command.args(["--read", "-", "--relay", &url]).args(pki.client("viewer.token"));
    let found = Found::by(&mut command);
    found.assert_problem("relay", "may not publish", "--role publish");
    let (level, advice) = found.find("credentials", "mode 0644");
    assert_eq!((level, advice), ("warning", format!("chmod 600 {}", token.display()).as_str()));

    let mut command = Command::new(program("viewer"));
    let found = Found::by(command.args(["--relay", &url, "--ca", "/no/ca.pem"]));
    found.assert_problem("credentials", "--ca /no/ca.pem: no such file", "relay init");
    assert_eq!(found.find("relay", "connected in").0, "ok", "the rest is looked at all the same");
    let plain = url.replace("wss:", "ws:");
    let found = Found::by(Command::new(program("viewer")).args(["--relay", &plain]));
    assert_eq!(found.code, 1);
}

#[test]
fn a_certificate_that_has_ended_is_told_on_both_sides() {
    let pki = Pki::new(&[]);
    let leaf = Leaf { names: &["127.0.0.1"], is_client: false, days_left: -2 };
    leaf.write(&pki.issuer(), &pki.path("relay.pem"), &pki.path("relay-key.pem"));
    let (_relay, url) = relay(&pki);
    let mut command = Command::new(program("viewer"));
    let found = Found::by(command.args(["--relay", &url]).args(pki.client("viewer.token")));
    found.assert_problem("relay", "expired", "relay init DIR --renew");

    let mut command = Command::new(program("relay"));
    let found = Found::by(command.args(["--listen", "127.0.0.1:0"]).args(pki.relay()));
    found.assert_problem("certificate", "ended 2 days ago", "relay init DIR --renew");
}

#[test]
fn a_relay_looks_at_its_own_house() {
    let pki = Pki::new(&["relay.example.net"]);
    let doctor = |arguments: &[&str]| {
        let mut command = Command::new(program("relay"));
        Found::by(command.args(pki.relay()).args(arguments))
    };
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let good = doctor(&["--listen", &listen]);
    assert_eq!((good.code, good.problems()), (0, vec![]));
    for (subject, text) in [
        ("listen", "free"),
        ("certificate", "days more"),
        ("certificate", "relay.example.net"),
        ("tokens", "3 entries"),
        ("limits", "descriptors"),
        ("memory", "--memory"),
    ] {
        assert_eq!(good.find(subject, text).0, "ok", "{subject}");
    }
    let taken = std::net::TcpListener::bind(&listen).expect("free");
    let found = doctor(&["--listen", &listen]);
    let (level, advice) = found.find("listen", "address already in use");
    assert_eq!((level, found.code), ("warning", 0));
    assert!(advice.contains(&format!("ss -ltnp 'sport = :{port}'")), "{advice}");
    drop(taken);
    doctor(&["--listen", "203.0.113.77:9440"]).assert_problem("listen", "203.0.113.77:9440", "ip addr");

    pki.revoke("viewers");
    pki.revoke("admin");
    fs::set_permissions(pki.path("relay-key.pem"), fs::Permissions::from_mode(0o640)).expect("set");
    let found = doctor(&["--listen", &listen]);
    assert!(found.find("tokens", "lets no viewer in").1.contains("relay token add"));
    assert!(found.find("certificate", "mode 0640").1.starts_with("chmod 600"));
    fs::write(pki.path("tokens.toml"), "nonsense").expect("written");
    doctor(&["--listen", &listen]).assert_problem("tokens", "line 1", "relay token");

    let (code, _, stderr) = run(Command::new(program("relay")).args(["--listen", "0.0.0.0:9440", "doctor"]));
    assert_eq!(code, 2);
    assert!(stderr.contains("--cert, --key and --tokens are missing"), "{stderr}");
}
