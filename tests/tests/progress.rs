//! What people and the journal see on standard error: a live line on a terminal and nowhere else, levels for the
//! journal, and few lines however many strangers come.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tests::process::{DEADLINE, Ended, Process, relay};
use tests::program;

/// What the live line has and no log line.
const LIVE: &str = "pps, ";

/// A capture file of small packets of one second each.
fn capture(directory: &Path, packets: u32) -> String {
    let mut bytes = Vec::new();
    for word in [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65_535, 1] {
        bytes.extend(word.to_le_bytes());
    }
    for number in 0..packets {
        for word in [number, 0, 60, 60] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend([0x55; 60]);
    }
    let path = directory.join("file.pcap");
    std::fs::write(&path, bytes).expect("written");
    path.to_string_lossy().into_owned()
}

/// A command on a terminal of 100 columns, by script(1), and what it wrote there.
struct Terminal {
    process: Process,
    output: Arc<Mutex<Vec<u8>>>,
    reader: std::thread::JoinHandle<()>,
}

impl Terminal {
    fn start(command: &str) -> Self {
        // The shell says the process id of what takes its place.
        let line = format!("sh -c 'stty cols 100 rows 24; echo pid $$; exec {command}'");
        let mut script = Command::new("script");
        script.args(["-qefc", &line, "/dev/null"]).env("TERM", "xterm").env_remove("RUST_LOG");
        let mut process = Process::start(script.stdout(Stdio::piped()));
        let mut stdout = process.stdout();
        let output = Arc::new(Mutex::new(Vec::new()));
        let written = Arc::clone(&output);
        let reader = std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut piece) {
                written.lock().expect("ours").extend_from_slice(&piece[..count]);
            }
        });
        Self { process, output, reader }
    }

    /// Waits until a screen shows all of `texts` at once; all it shows.
    fn await_screen(&self, texts: &[&str]) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            // What stood there for a moment counts: each frame begins anew at the left.
            let output = self.output.lock().expect("ours").clone();
            let found = screens(&output).into_iter().find(|one| texts.iter().all(|text| one.contains(text)));
            if let Some(screen) = found {
                return screen;
            }
            let shown = screens(&output).pop().unwrap_or_default();
            assert!(Instant::now() < deadline, "{texts:?} never stood on the screen:\n{shown}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    fn interrupt(&self) {
        let screen = self.await_screen(&["pid "]);
        let pid =
            screen.lines().find_map(|line| line.strip_prefix("pid ")).expect("it says so").trim().to_owned();
        assert!(Command::new("kill").args(["-INT", &pid]).status().expect("kill runs").success());
    }

    /// How it ended, and the screen it left.
    fn wait(self) -> (Ended, String) {
        let ended = self.process.wait();
        self.reader.join().expect("it does not panic");
        let output = self.output.lock().expect("ours");
        (ended, screens(&output).pop().unwrap_or_default())
    }
}

/// The screen each time that something begins at the left, and at the end.
fn screens(output: &[u8]) -> Vec<String> {
    let mut parser = vt100::Parser::new(24, 100, 0);
    let mut screens = Vec::new();
    for piece in output.split_inclusive(|byte| *byte == b'\r') {
        parser.process(piece);
        screens.push(parser.screen().contents());
    }
    screens
}

/// A path in `directory`, as text.
fn path(directory: &Path, name: &str) -> String {
    directory.join(name).to_string_lossy().into_owned()
}

#[test]
fn a_file_has_a_bar_on_a_terminal_which_is_gone_at_the_end() {
    let (_relay, url) = relay(&[]);
    let directory = tempfile::tempdir().expect("a directory");
    let file = capture(directory.path(), 60_000);
    let sniffer = program("sniffer");
    // So slow that nobody waits for its end.
    let options = "--no-wait --compression none --rate 4Mbit";
    let terminal = Terminal::start(&format!("{} --read {file} --relay {url} {options}", sniffer.display()));
    let screen = terminal.await_screen(&["] ", "%, ", " left: ", " packets, ", LIVE, "backlog "]);
    eprintln!("{screen}");
    assert!(screen.contains("connected"), "log lines stand above it: {screen}");
    terminal.interrupt();
    let (ended, screen) = terminal.wait();
    eprintln!("{screen}");
    assert_eq!(ended.code(), 0);
    assert!(!screen.contains(LIVE) && !screen.contains(" left: "), "{screen}");
    let begins = |text: &str| screen.lines().any(|line| line.starts_with(text));
    assert!(begins("file.pcap: ") && begins("sent: "), "{screen}");
}

#[test]
fn a_viewer_has_a_live_line_on_a_terminal_and_says_whole_lines_above_it() {
    let (relay, url) = relay(&[]);
    let directory = tempfile::tempdir().expect("a directory");
    let file = capture(directory.path(), 20);
    let out = path(directory.path(), "out.pcapng");
    let terminal = Terminal::start(&format!("{} --relay {url} -w {out}", program("viewer").display()));
    terminal.await_screen(&["0 packets", LIVE, "lost 0, behind 0 B, 0 streams"]);
    let mut sniffer = Command::new(program("sniffer"));
    let sniffer = Process::start(sniffer.args(["--read", &file, "--relay", &url])).wait();
    assert_eq!(sniffer.code(), 0);
    terminal.await_screen(&["20 packets, ", "lost 0, behind 0 B"]);
    relay.terminate();
    let lost = format!("viewer: relay {url}: connection lost: ");
    let screen = terminal.await_screen(&[&lost, "connecting again for "]);
    eprintln!("{screen}");
    terminal.interrupt();
    let (ended, screen) = terminal.wait();
    eprintln!("{screen}");
    assert_eq!(ended.code(), 0);
    let begins = |text: &str| screen.lines().any(|line| line.starts_with(text));
    assert!(begins(&lost) && screen.contains("received 20 packets"), "{screen}");
    assert!(!screen.contains(LIVE), "{screen}");
    // Nothing else of it is left either: what stands in no line that is said.
    assert!(screen.lines().all(|line| !line.contains("behind")), "{screen}");
}

#[test]
fn no_byte_of_it_goes_elsewhere_nor_to_a_terminal_that_was_not_to_have_it() {
    let (_relay, url) = relay(&[]);
    let directory = tempfile::tempdir().expect("a directory");
    let file = capture(directory.path(), 20_000);
    let out = path(directory.path(), "out.pcapng");
    let mut viewer = Command::new(program("viewer"));
    let viewer = Process::start(viewer.args(["--relay", &url, "--until-end", "-w", &out]));
    // A second and more, in which some frames would be drawn.
    let options = ["--compression", "none", "--rate", "8Mbit"];
    let mut sniffer = Command::new(program("sniffer"));
    let sniffer = Process::start(sniffer.args(["--read", &file, "--relay", &url]).args(options)).wait();
    let viewer = viewer.wait();
    assert_eq!((sniffer.code(), viewer.code()), (0, 0));
    for said in [&sniffer.stderr, &viewer.stderr] {
        assert!(!said.contains(LIVE) && !said.contains(['\u{1b}', '\r']), "{said:?}");
    }
    // The same on a terminal, quietly.
    let sniffer = program("sniffer");
    let options = "--no-wait --compression none --rate 8Mbit --log-level error --quiet";
    let terminal = Terminal::start(&format!("{} --read {file} --relay {url} {options}", sniffer.display()));
    let (ended, screen) = terminal.wait();
    assert_eq!(ended.code(), 0);
    assert!(screen.trim_end().lines().all(|line| line.starts_with("pid ")), "{screen}");
}

/// What a relay says into a file that it is told to be the journal, or not; it is ended when it has said `until`.
fn said_to_a_file(directory: &Path, is_journal: bool, until: &str, arguments: &[&str]) -> String {
    let file = File::create(directory.join("journal")).expect("made");
    let metadata = file.metadata().expect("it is there");
    let inode = if is_journal { metadata.ino() } else { metadata.ino() + 1 };
    let mut command = Command::new(program("relay"));
    command.args(arguments).env("JOURNAL_STREAM", format!("{}:{inode}", metadata.dev()));
    let mut child = command.env_remove("RUST_LOG").stderr(file).spawn().expect("it runs");
    let said = || std::fs::read_to_string(directory.join("journal")).expect("text");
    let deadline = Instant::now() + DEADLINE;
    while !said().contains(until) && child.try_wait().expect("ours").is_none() {
        assert!(Instant::now() < deadline, "{}", said());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let _ = Command::new("kill").arg(child.id().to_string()).stderr(Stdio::null()).status();
    child.wait().expect("ours");
    said()
}

#[test]
fn lines_to_the_journal_begin_with_their_level_and_have_no_time() {
    let directory = tempfile::tempdir().expect("a directory");
    let said = |is_journal, arguments: &[&str]| {
        said_to_a_file(directory.path(), is_journal, "listening on", arguments)
    };
    let listen = ["--listen", "127.0.0.1:0"];
    let text = said(true, &listen);
    assert!(text.starts_with("<6>listening on 127.0.0.1:"), "{text}");
    assert!(text.lines().count() >= 2 && text.lines().all(|line| line.starts_with("<6>")), "{text}");
    // Of warnings and worse, this one alone.
    let open = ["--listen", "0.0.0.0:0", "--insecure", "--log-level", "warn"];
    let text = said_to_a_file(directory.path(), true, "is open", &open);
    assert!(text.starts_with("<4>--insecure: 0.0.0.0:") && text.lines().count() == 1, "{text}");
    let text = said(true, &["--listen", "0.0.0.0:0"]);
    assert!(text.starts_with("<3>relay: "), "{text}");
    // Standard error is another file than the variable names: it was inherited.
    let text = said(false, &listen);
    assert!(!text.starts_with('<') && text.contains(" INFO listening on"), "{text}");
    // JSON stays JSON.
    let text = said(true, &["--listen", "127.0.0.1:0", "--log-format", "json"]);
    for line in text.lines() {
        let value: serde_json::Value = serde_json::from_str(line).expect(line);
        assert_eq!(value["level"], "INFO", "{line}");
    }
    assert!(text.lines().count() >= 2, "{text}");
}

#[test]
fn thousands_of_bad_hellos_make_few_lines_and_each_is_written_or_counted() {
    const COUNT: u64 = 3000;
    let (relay, url) = relay(&[]);
    let address = url.strip_prefix("ws://").expect("no TLS");
    for number in 0..COUNT {
        let mut peer = TcpStream::connect(address).expect("it listens");
        peer.set_read_timeout(Some(DEADLINE)).expect("settable");
        let garbage: &[u8] =
            if number % 2 == 0 { b"GET / HTTP/1.0\r\n\r\n" } else { b"\x16\x03\x01 garbage\r\n\r\n" };
        peer.write_all(garbage).expect("taken");
        let _ = peer.read_to_end(&mut Vec::new()); // until it is closed, one way or another
    }
    let said = relay.terminate().stderr;
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("127.0.0.1:")).collect();
    assert!(said.lines().count() < 30, "{} lines", said.lines().count());
    // `(and 1,234 more like it ...)` beside a line, `held back 1,234 lines ... such as:` instead of one.
    let count = |line: &str, before: &str| -> Option<u64> {
        let (_, rest) = line.split_once(before)?;
        rest.split(' ').next()?.replace(',', "").parse().ok()
    };
    let of_strangers = |line: &&&str| !line.contains("listening on");
    let total: u64 = lines
        .iter()
        .filter(of_strangers)
        .map(|line| count(line, "held back ").unwrap_or_else(|| 1 + count(line, "(and ").unwrap_or(0)))
        .sum();
    assert_eq!(total, COUNT + 1, "and one who looked whether it listens: {said}");
}
