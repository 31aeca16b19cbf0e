//! Options from files, the environment and the command line; what is made of them; and SIGHUP.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use std::io::{Read, Write};

use tempfile::TempDir;
use tests::pki::Pki;
use tests::process::{Process, free_port, relay, run};
use tests::samples::{Order, Sample};

const PROGRAMS: [&str; 3] = ["sniffer", "relay", "viewer"];

/// A directory with a configuration file in it.
struct Written(TempDir);

impl Written {
    fn new(text: &str) -> Self {
        let written = Self(tempfile::tempdir().expect("a directory"));
        written.write(text);
        written
    }

    /// Puts another file into its place, as editors do.
    fn write(&self, text: &str) {
        let new = self.0.path().join("new");
        std::fs::write(&new, text).expect("written");
        std::fs::rename(new, self.path()).expect("renamed");
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("the.toml")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(tests::program(program));
        command.arg("--config").arg(self.path());
        command
    }

    /// Exit status, and what was said on both outputs, without the path of the directory.
    fn run(&self, program: &str, arguments: &[&str]) -> (i32, String) {
        let (code, stdout, stderr) = run(self.command(program).args(arguments));
        let text = format!("{}{stderr}", String::from_utf8(stdout).expect("text"));
        let directory = self.0.path().to_str().expect("text");
        (code, text.replace(&format!("{directory}/"), ""))
    }

    fn check(&self, program: &str) -> (i32, Vec<String>) {
        let (code, text) = self.run(program, &["--check-config"]);
        (code, text.lines().map(str::to_owned).collect())
    }
}

/// The lines of a report that set something, without where that comes from.
fn set_by(report: &str) -> Vec<String> {
    let lines = report.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split("  # ").next().expect("a first part").trim_end().to_owned()).collect()
}

#[test]
fn the_environment_wins_over_the_file_and_the_command_line_over_both() {
    let ports = [free_port(), free_port(), free_port()];
    let listen = ports.map(|port| format!("127.0.0.1:{port}"));
    let file = Written::new(&format!("listen = '{}'\nmemory = '128MiB'\n", listen[0]));
    let start = |environment: Option<&str>, typed: Option<&str>| {
        let mut command = file.command("relay");
        command.envs(environment.map(|value| ("RINGCAST_RELAY_LISTEN", value)));
        command.args(typed.map(|value| format!("--listen={value}")));
        let mut relay = Process::start(&mut command);
        relay.await_line("listening on")
    };
    assert!(start(None, None).contains(&listen[0]));
    assert!(start(Some(&listen[1]), None).contains(&listen[1]));
    assert!(start(Some(&listen[1]), Some(&listen[2])).contains(&listen[2]));

    let mut command = file.command("relay");
    command.args(["--print-config", "--workers", "2"]).env("RINGCAST_RELAY_LISTEN", &listen[1]);
    let (code, report, stderr) = run(&mut command);
    assert_eq!(code, 0, "{stderr}");
    let report = String::from_utf8(report).expect("text");
    let from = |key: &str| {
        let line = report.lines().find(|line| line.trim_start_matches("# ").starts_with(&format!("{key} ")));
        line.and_then(|line| line.split_once("  # ")).expect(key).1
    };
    assert_eq!(from("listen"), "environment RINGCAST_RELAY_LISTEN");
    assert_eq!(from("memory"), format!("{}:2", file.path().display()));
    assert_eq!(from("workers"), "command line");
    assert_eq!(from("viewer-queue"), "default");
    assert_eq!(from("tokens"), "unset");
}

#[test]
fn each_mistake_is_named_with_file_line_and_key() {
    let file = Written::new(
        "viewer_queue = '1MiB'\nworkers = 0\nmemory = '12 parsecs'\ninsecure = 1\nallow-origin = ['*']\n",
    );
    let expected = [
        "the.toml:1: viewer_queue: no such option; is viewer-queue meant?",
        "the.toml:2: workers: \"0\": 0 is not in 1..=64",
        "the.toml:3: memory: \"12 parsecs\": write a number and one of KiB, MiB, GiB, TiB, kB, MB, GB",
        "the.toml:4: insecure: true or false is needed, not a number",
    ];
    let (code, lines) = file.check("relay");
    assert_eq!((code, &lines[..4]), (2, &expected.map(str::to_owned)[..]));
    assert!(lines[4].starts_with("the.toml:5: allow-origin: \"*\": "), "{lines:?}");
    assert_eq!(lines.len(), 5, "{lines:?}");
    // Without the question it does not start, for the same reasons.
    let (code, text) = file.run("relay", &[]);
    assert_eq!(code, 2);
    assert!(text.starts_with(&format!("relay: {}\n", expected[0])), "{text}");

    // What clap cannot know: relations, least values, files.
    let file =
        Written::new("listen = '0.0.0.0:1'\n\ntokens = '/nowhere/t.toml'\nviewer-queue = 1\nmemory = 2\n");
    let (code, lines) = file.check("relay");
    let begins = [
        "the.toml:1: listen: 0.0.0.0:1: not a loopback",
        "the.toml:4: viewer-queue: 1: ",
        "the.toml:5: memory: 2: ",
    ];
    assert_eq!(code, 2);
    for begin in begins {
        assert!(lines.iter().any(|line| line.starts_with(begin)), "{begin}: {lines:?}");
    }
    let file = Written::new("\n\ntokens = '/nowhere/t.toml'\n");
    assert_eq!(
        file.check("relay"),
        (2, vec!["the.toml:3: tokens: /nowhere/t.toml: no such file or directory".into()])
    );

    let file = Written::new(
        "interface = 'any'\nblock-size = '3KiB'\nrelay = 'ftp://x'\nfilter = 'porridge 53'\nspool-size = '10GiB'\nfanout = 'any'\n",
    );
    let (code, lines) = file.check("sniffer");
    assert_eq!((code, lines.len()), (2, 2), "{lines:?}");
    assert_eq!(lines[0], "the.toml:5: spool-size: needs spool beside it");
    assert_eq!(lines[1], "the.toml:6: fanout: \"any\": write hash, cpu, qm, lb, rollover");
    file.write("interface = 'any'\nblock-size = '3KiB'\nrelay = 'ftp://x'\nfilter = 'porridge 53'\n");
    let (code, lines) = file.check("sniffer");
    assert_eq!((code, lines.len()), (2, 3), "{lines:?}");
    assert!(lines[0].starts_with("the.toml:2: block-size: 3072: not a power"), "{lines:?}");
    assert!(lines[1].starts_with("the.toml:3: relay: relay url "), "{lines:?}");
    assert!(lines[2].starts_with("the.toml:4: filter: filter \"porridge 53\": "), "{lines:?}");

    let file = Written::new(
        "relay = 'ws://127.0.0.1'\nca = 'x'\nsniffer = ['a', 'b[']\ninterface = '['\nreorder = '2m'\n",
    );
    let (code, lines) = file.check("viewer");
    assert_eq!((code, lines.len()), (2, 4), "{lines:?}");
    for (line, begin) in lines.iter().zip([
        "the.toml:3: sniffer: ",
        "the.toml:4: interface: ",
        "the.toml:5: reorder: ",
        "the.toml:2: ca: needs a relay with TLS",
    ]) {
        assert!(line.starts_with(begin), "{lines:?}");
    }
    let file = Written::new("list = true\nwrite = 'x'\n");
    assert_eq!(
        file.check("viewer"),
        (2, vec!["the.toml:2: write: does not go together with list (the.toml:1)".into()])
    );
}

#[test]
fn a_file_without_mistakes_is_said_to_have_none() {
    let pki = Pki::new(&["localhost"]);
    let path = |name: &str| pki.text(name);
    let relay = format!(
        "listen = '0.0.0.0:9440'\ncert = '{}'\nkey = '{}'\ntokens = '{}'\n",
        path("relay.pem"),
        path("relay-key.pem"),
        path("tokens.toml")
    );
    let client = format!(
        "relay = 'wss://localhost'\nca = '{}'\ntoken-file = '{}'\n",
        path("ca.pem"),
        path("sniffer.token")
    );
    for (program, text) in [
        ("relay", relay),
        ("sniffer", format!("interface = ['any']\nfilter = 'vlan and port 53'\nsnaplen = 1_500\n{client}")),
        (
            "viewer",
            format!(
                "sniffer = ['web-*', 'db']\nfilter = 'port 53'\nreorder = '200ms'\nquiet = true\n{client}"
            ),
        ),
    ] {
        let file = Written::new(&text);
        assert_eq!(file.check(program), (0, vec!["the.toml: no mistakes".to_owned()]), "{program}");
    }
}

#[test]
fn a_file_that_is_named_and_not_there_is_wrong_usage() {
    for program in PROGRAMS {
        for asked in ["--check-config", "--print-config", "--log-format=text"] {
            let mut command = Command::new(tests::program(program));
            let (code, _, stderr) = run(command.args(["--config", "/nowhere/x.toml", asked]));
            assert_eq!(code, 2, "{program} {asked}");
            assert!(stderr.contains("--config /nowhere/x.toml: no such file or directory"), "{stderr}");
        }
    }
}

#[test]
fn what_is_printed_is_a_file_that_says_the_same() {
    for (program, text, arguments) in [
        (
            "relay",
            "allow-origin = ['https://a.example', 'https://b.example']\nconnections = 64\n",
            "--insecure --recent 1MiB",
        ),
        (
            "sniffer",
            "interface = ['eth0', 'eth1']\nspool = '/var/spool/x'\nspool-size = '20MiB'\n",
            "--cores 0,1 --fanout lb -p --rate 8Mbit",
        ),
        (
            "viewer",
            "sniffer = ['we\"b', 'd\\b']\ncount = 5\nduration = 2.5\nbacklog = true\n",
            "-w x.pcapng -q --backlog=false",
        ),
    ] {
        let first = Written::new(text);
        let arguments: Vec<&str> = arguments.split(' ').chain(["--print-config"]).collect();
        let (code, printed) = first.run(program, &arguments);
        assert_eq!(code, 0, "{printed}");
        let second = Written::new(&printed);
        let (code, again) = second.run(program, &["--print-config"]);
        assert_eq!(code, 0, "{again}{printed}");
        assert_eq!(set_by(&again), set_by(&printed));
        assert!(set_by(&printed).len() >= 4, "{printed}");
    }
}

#[test]
fn no_secret_is_shown() {
    let file = Written::new("token = 'hunter2'\n");
    let mut command = file.command("viewer");
    let (code, stdout, stderr) = run(command.arg("--check-config").env("RINGCAST_TOKEN", "hunter3"));
    assert_eq!(code, 2);
    assert!(stderr.contains("token: no such option; is token-file meant?"), "{stderr}");
    let file = Written::new("");
    let (_, printed, more) =
        run(file.command("viewer").arg("--print-config").env("RINGCAST_TOKEN", "hunter3"));
    for text in [&stdout[..], &printed, stderr.as_bytes(), more.as_bytes()] {
        assert!(!String::from_utf8_lossy(text).contains("hunter"), "{}", String::from_utf8_lossy(text));
    }
}

#[test]
fn what_is_typed_sets_aside_what_the_file_has_beside_it() {
    let file = Written::new(
        "interface = 'eth0'\nwait = true\nspool = 'x'\nspool-size = '5MiB'\ncores = 0\nfanout = 'cpu'\n",
    );
    let (code, text) = file.run("sniffer", &["--list-interfaces"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.starts_with("interface ") && text.contains("\nlo "), "{text}");
    let (code, text) = file.run("sniffer", &["--read", "/nowhere/a.pcap"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("/nowhere/a.pcap"), "{text}");
}

#[test]
fn a_relay_takes_over_what_it_can_on_sighup() {
    let listen = format!("127.0.0.1:{}", free_port());
    let file = Written::new(&format!("listen = '{listen}'\nworkers = 1\nconnections-per-address = 64\n"));
    let mut relay = Process::start(&mut file.command("relay"));
    relay.await_line("listening on");
    let mut first = TcpStream::connect(&listen).expect("let in");

    file.write(&format!(
        "listen = '{listen}'\nworkers = 2\nconnections-per-address = 1\nlog-format = 'json'\n"
    ));
    relay.signal("HUP");
    relay.await_line("the.toml was read anew");
    let said = relay.said();
    assert!(said.contains("connections-per-address changed from 64 to 1\n"), "{said}");
    assert!(said.contains("workers changed from 1 to 2: needs a restart"), "{said}");
    assert!(said.contains("log-format changed from text to json: needs a restart"), "{said}");
    assert!(!said.contains("listen changed"), "{said}");
    // The first is a stranger, which makes room: so it is the first that is closed.
    let _second = TcpStream::connect(&listen).expect("let in");
    first.set_read_timeout(Some(tests::process::DEADLINE)).expect("set");
    assert!(matches!(first.read(&mut [0; 64]), Ok(0) | Err(_)), "closed");

    // What is wrong changes nothing, and what waits for a restart is said again.
    file.write(&format!("listen = '{listen}'\nworkers = 2\nconnections-per-address = 0\nconnections = 1\n"));
    relay.signal("HUP");
    relay.await_line("nothing of it is taken over");
    let said = relay.said();
    assert!(said.contains("the.toml:3: connections-per-address: \"0\": 0 is not in 1..=1000000"), "{said}");
    assert!(said.contains("the.toml:4: connections: \"1\": "), "{said}");
    file.write(&format!("listen = '{listen}'\nworkers = 2\n"));
    relay.signal("HUP");
    relay.await_line("connections-per-address changed from 1 to 1024");
    relay.await_lines("workers changed from 1 to 2: needs a restart", 2, tests::process::DEADLINE);
    assert_eq!(relay.terminate().code(), 0);
}

#[test]
fn a_sniffer_takes_over_its_rate_on_sighup_and_goes_on() {
    let (_relay, url) = relay(&[]);
    let file = Written::new(&format!("relay = '{url}'\nrate = '8Mbit'\nno-wait = true\nname = 'one'\n"));
    let (mut sniffer, mut stdin) = Process::start_piped(file.command("sniffer").args(["--read", "-"]));
    stdin.write_all(Sample::pcap(Order::Little, false, 1).bytes()).expect("written");
    sniffer.await_line(": connected");
    file.write(&format!("relay = '{url}'\nrate = '80Mbit'\nno-wait = true\nname = 'two'\n"));
    sniffer.signal("HUP");
    sniffer.await_line("the.toml was read anew");
    sniffer.await_line("certificates and token were read anew");
    let said = sniffer.said();
    assert!(said.contains("rate changed from 8Mbit to 80Mbit\n"), "{said}");
    assert!(said.contains("name changed from one to two: needs a restart"), "{said}");
    drop(stdin);
    assert_eq!(sniffer.wait().code(), 0);
}

#[test]
fn a_viewer_lives_through_sighup() {
    let (_relay, url) = relay(&[]);
    let file = Written::new(&format!("relay = '{url}'\nquiet = false\nreorder = '1s'\n"));
    let out = file.path().with_file_name("out.pcapng");
    let mut command = file.command("viewer");
    let mut viewer = Process::start(command.arg("--write").arg(&out).env("RUST_LOG", "info"));
    await_file(&mut viewer, &out);
    file.write(&format!("relay = '{url}'\nquiet = true\n"));
    viewer.signal("HUP");
    viewer.await_line("reorder changed from 1s to 0: needs a restart");
    viewer.await_line("quiet changed from false to true: needs a restart");
    viewer.await_line("certificates and token were read anew");
    assert_eq!(viewer.terminate().code(), 0);
}

fn await_file(process: &mut Process, path: &Path) {
    let deadline = std::time::Instant::now() + tests::process::DEADLINE;
    while !path.exists() {
        assert!(process.is_running() && std::time::Instant::now() < deadline, "{}", process.said());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Everything that packages take along, of all programs.
fn generated() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    for program in PROGRAMS {
        let mut command = Command::new(tests::program(program));
        let (code, _, stderr) = run(command.arg("--generate").arg(directory.path()).stdout(Stdio::piped()));
        assert_eq!(code, 0, "{stderr}");
    }
    directory
}

#[test]
fn the_reference_is_what_the_programs_have() {
    let directory = generated();
    let systemd = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd");
    for program in PROGRAMS {
        let name = format!("{program}.toml");
        let made = std::fs::read_to_string(directory.path().join(&name)).expect("made");
        if std::env::var_os("RINGCAST_UPDATE").is_some() {
            std::fs::create_dir_all(&systemd).expect("made");
            std::fs::write(systemd.join(&name), &made).expect("written");
        }
        let kept = std::fs::read_to_string(systemd.join(&name)).unwrap_or_default();
        assert!(
            made == kept,
            "systemd/{name} is not what {program} has: RINGCAST_UPDATE=1 cargo test -p tests --test settings reference"
        );
    }
}

#[test]
fn man_pages_and_completions_know_the_options() {
    let directory = generated();
    let read = |name: &str| {
        std::fs::read_to_string(directory.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    for (name, text) in [
        ("man/sniffer.1", "\\-\\-ring\\-size"),
        ("man/relay.1", "\\-\\-viewer\\-queue"),
        ("man/viewer.1", "\\-\\-until\\-end"),
        ("man/relay-token-add.1", "\\-\\-expires"),
        ("man/sniffer-doctor.1", "\\-\\-json"),
        ("man/viewer-doctor.1", "\\-\\-relay"),
        ("completions/sniffer.bash", "--ring-size"),
        ("completions/_relay", "--viewer-queue"),
        ("completions/viewer.fish", "until-end"),
    ] {
        let found = read(name);
        assert!(found.contains(text), "{name}");
        assert!(!found.contains("generate"), "{name} shows what is for packages alone");
    }
}
