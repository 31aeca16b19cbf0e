//! What people type wrongly, or point at the wrong thing: the exit status says whose fault it is,
//! and one line names the thing and the value.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use tests::peer::FakeRelay;
use tests::process::{free_port, relay, run};
use tests::samples::{Order, Sample, udp_frame};
use tests::{program, skip};
use wire::message::SUBPROTOCOL;

/// Runs a program to its end: the status must be `status`, and the one line of its own must hold
/// all of `texts`.
fn refused(command: &mut Command, status: i32, texts: &[&str]) {
    let (code, stdout, stderr) = run(command);
    assert_eq!(code, status, "{command:?}: {stderr}");
    assert!(stdout.is_empty(), "{command:?}: {}", String::from_utf8_lossy(&stdout));
    assert!(!stderr.contains("panicked"), "{stderr}");
    let is_own = |line: &&str| ["sniffer: ", "relay: ", "viewer: "].iter().any(|own| line.starts_with(own));
    let lines: Vec<&str> = stderr.lines().filter(is_own).collect();
    assert_eq!(lines.len(), 1, "{command:?}: not one line: {stderr}");
    for text in texts {
        assert!(lines[0].contains(text), "{command:?}: no {text:?} in {}", lines[0]);
    }
}

/// The same for what the reader of the command line refuses: its first line tells.
fn misused(program_name: &str, arguments: &[&str], texts: &[&str]) {
    let mut command = Command::new(program(program_name));
    let (code, stdout, stderr) = run(command.args(arguments));
    assert_eq!(code, 2, "{command:?}: {stderr}");
    assert!(stdout.is_empty() && !stderr.contains("panicked"), "{command:?}: {stderr}");
    let first = stderr.lines().next().expect("a line");
    for text in texts {
        assert!(first.contains(text), "{command:?}: no {text:?} in {first}");
    }
}

fn sniffer(arguments: &[&str]) -> Command {
    let mut command = Command::new(program("sniffer"));
    command.args(arguments);
    command
}

fn viewer(arguments: &[&str]) -> Command {
    let mut command = Command::new(program("viewer"));
    command.args(arguments);
    command
}

fn relay_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(program("relay"));
    command.args(arguments);
    command
}

/// A good file of one packet.
fn sample() -> Vec<u8> {
    let mut sample = Sample::pcap(Order::Little, false, 1);
    let frame = udp_frame(1, 2, b"one");
    sample.record(1_700_000_000, 5, &frame, frame.len() as u32);
    sample.bytes().to_vec()
}

fn write(path: &Path, bytes: &[u8]) -> String {
    fs::write(path, bytes).expect("room for a file");
    path.to_str().expect("plain text").to_owned()
}

#[test]
fn interfaces_that_are_not_there() {
    refused(&mut sniffer(&["-i", "nosuch0"]), 1, &["interface nosuch0", "no such device"]);
    refused(&mut sniffer(&["-i", "lo", "-i", "lo"]), 2, &["lo", "twice"]);
    refused(&mut sniffer(&["-i", "any", "-i", "lo"]), 2, &["any", "lo"]);
}

#[test]
fn capture_without_permission() {
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    if !is_root || Command::new("setpriv").arg("--version").output().is_err() {
        skip("to give up rights takes root and setpriv(1)");
        return;
    }
    // Nobody may not look into the folder of the build.
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let copy = folder.path().join("sniffer");
    fs::copy(program("sniffer"), &copy).expect("room for a copy");
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&copy).args(["-i", "lo"]);
    refused(&mut command, 1, &["interface lo", "CAP_NET_RAW"]);
}

#[test]
fn wrong_filters() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = write(&folder.path().join("a.pcap"), &sample());
    for arguments in [&["-i", "lo"][..], &["--read", &file]] {
        refused(sniffer(arguments).args(["-f", "tcp prot 80"]), 2, &["tcp prot 80", "syntax error"]);
        refused(sniffer(arguments).args(["-f", "host nosuchhost.invalid"]), 2, &["nosuchhost.invalid"]);
    }
    refused(&mut viewer(&["-f", "tcp prot 80"]), 2, &["tcp prot 80", "syntax error"]);
    refused(&mut viewer(&["--sniffer", "a["]), 2, &["a["]);
}

#[test]
fn relays_that_cannot_be_reached() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = write(&folder.path().join("a.pcap"), &sample());
    let address = format!("127.0.0.1:{}", free_port());
    let url = format!("ws://{address}");
    for command in [&mut viewer(&["--relay", &url]), &mut viewer(&["--list", "--relay", &url])] {
        refused(command, 1, &[&address, "refused"]);
    }
    // Lower case, and no number of the system's: the words are for people.
    let mut command = sniffer(&["--read", &file, "--relay", &url]);
    refused(&mut command, 1, &[&address, ": connection refused"]);
    let nowhere = "ws://nosuchhost.invalid:9440";
    refused(&mut viewer(&["--relay", nowhere]), 1, &["nosuchhost.invalid"]);
    refused(&mut sniffer(&["--read", &file, "--relay", nowhere]), 1, &["nosuchhost.invalid"]);
    let out = folder.path().join("out.pcapng");
    fs::write(&out, b"an older capture").expect("room");
    refused(viewer(&["--relay", &url, "-w"]).arg(&out), 1, &[&address]);
    assert_eq!(fs::read(&out).expect("still there"), b"an older capture");
}

#[test]
fn wrong_urls() {
    let cases = [
        ("127.0.0.1:9440", "no scheme"),
        ("http://127.0.0.1:9440", "ws"),
        ("ws://", "no host"),
        ("wss://user:secret@host", "user"),
        ("ws://host:0", "port"),
        ("ws://host:65536", "port"),
        ("ws://::1:9440", "brackets"),
        ("ws://user:secret@host", "user"),
    ];
    for (url, problem) in cases {
        for mut command in [viewer(&["--relay", url]), sniffer(&["-i", "lo", "--relay", url])] {
            let (code, _, stderr) = run(&mut command);
            assert_eq!(code, 2, "{url}: {stderr}");
            assert!(stderr.contains(problem) && stderr.lines().count() == 1, "{url}: {stderr}");
            assert!(!stderr.contains("secret"), "{stderr}");
        }
    }
}

/// What answers at the relay's address is no relay, or none of this version.
#[test]
fn servers_that_are_no_relay() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = write(&folder.path().join("a.pcap"), &sample());
    type Answer = fn(&FakeRelay);
    let http: Answer = |relay| {
        let mut peer = relay.accept();
        peer.read_head();
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nIt works");
        peer.read_to_end();
    };
    let ssh: Answer = |relay| {
        let mut peer = relay.accept();
        peer.send(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n");
        peer.read_to_end();
    };
    let hangs_up: Answer = |relay| {
        relay.accept().read_head();
    };
    let subprotocol: Answer = |relay| {
        relay.accept_as("chat.7").read_to_end();
    };
    let newer: Answer = |relay| {
        relay.welcome(2).read_to_end();
    };
    let refuses: Answer = |relay| {
        let mut peer = relay.accept_as(SUBPROTOCOL);
        peer.await_control("hello");
        let reason = "not on\u{1b}[2J Sundays".to_owned();
        peer.control(&wire::message::Control::Error { reason });
        peer.read_to_end();
    };
    let silent: Answer = |relay| {
        relay.accept().read_to_end();
    };
    let cases: [(Answer, &str); 7] = [
        (http, "answered 200"),
        (ssh, "SSH-2.0"),
        (hangs_up, "closed the connection"),
        (subprotocol, "ringcast.1"),
        (newer, "protocol 2"),
        (refuses, "not on\\u{1b}[2J Sundays"),
        (silent, "no answer to the handshake within 10 s"),
    ];
    // All at once: the silent ones take their time.
    std::thread::scope(|scope| {
        for (answer, text) in cases {
            for command in [viewer(&[]), sniffer(&["--read", &file])] {
                scope.spawn(move || {
                    let (relay, mut command) = (FakeRelay::new(), command);
                    let url = relay.url();
                    let server = std::thread::spawn(move || answer(&relay));
                    refused(command.args(["--relay", &url]), 1, &[url.trim_start_matches("ws://"), text]);
                    server.join().expect("the server does as it was told");
                });
            }
        }
    });
}

#[test]
fn files_that_are_no_capture() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (relay, url) = relay(&[]);
    let good = sample();
    let cases: [(&str, &[u8], &str); 8] = [
        ("empty", b"", "file header"),
        ("three", &good[..3], "file header"),
        ("text", b"this is no capture at all\n", "not a pcap or pcapng file"),
        ("gzip", &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3], "gzip"),
        ("zstd", &[0x28, 0xb5, 0x2f, 0xfd, 0, 0, 0, 0], "zstd"),
        ("head", &good[..20], "file header"),
        ("half", &good[..good.len() - 1], "record 1"),
        ("record", &good[..30], "record 1"),
    ];
    for (name, bytes, text) in cases {
        let file = write(&folder.path().join(name), bytes);
        refused(&mut sniffer(&["--read", &file, "--no-wait", "--relay", &url]), 1, &[&file, text]);
    }
    let missing = folder.path().join("missing.pcap");
    let missing = missing.to_str().expect("plain");
    refused(&mut sniffer(&["--read", missing, "--relay", &url]), 1, &[missing, "No such file"]);
    let itself = folder.path().to_str().expect("plain");
    refused(&mut sniffer(&["--read", itself, "--relay", &url]), 1, &[itself, "directory"]);
    // The way the message shows for what is compressed does work.
    let file = write(&folder.path().join("a.pcap"), &good);
    assert!(Command::new("gzip").arg(&file).status().expect("gzip runs").success());
    let sniffer = program("sniffer");
    let line = format!("gzip -dc {file}.gz | {} --read - --no-wait --relay {url}", sniffer.display());
    let (code, _, stderr) = run(Command::new("sh").args(["-c", &line]));
    assert!(code == 0 && stderr.contains("1 packets read"), "{stderr}");
    assert_eq!(relay.terminate().code(), 0);
}

#[test]
fn addresses_the_relay_does_not_take() {
    let (_relay, url) = relay(&[]);
    let taken = url.trim_start_matches("ws://");
    refused(&mut relay_command(&["--listen", taken]), 1, &[taken, "in use"]);
    for open in ["0.0.0.0:9440", "[::]:9440", "192.0.2.1:9440"] {
        refused(&mut relay_command(&["--listen", open]), 2, &[open, "--insecure"]);
    }
    // Allowed by the operator, but not an address of this host.
    refused(&mut relay_command(&["--listen", "192.0.2.1:9440", "--insecure"]), 1, &["192.0.2.1:9440"]);
    misused("relay", &["--listen", "localhost"], &["--listen", "localhost"]);
}

#[test]
fn a_viewer_does_not_write_to_a_terminal() {
    if Command::new("script").arg("--version").output().is_err() {
        skip("script(1) is not installed");
        return;
    }
    let (_relay, url) = relay(&[]);
    let line = format!("{} --relay {url}", program("viewer").display());
    let mut command = Command::new("script");
    let (code, screen, _) = run(command.args(["-q", "-e", "-c", &line, "/dev/null"]));
    let screen = String::from_utf8_lossy(&screen).into_owned();
    assert_eq!(code, 2, "{screen}");
    assert!(
        screen.starts_with("viewer: standard output is a terminal") && screen.contains("-w FILE"),
        "{screen}"
    );
    assert_eq!(screen.lines().count(), 1, "{screen}");
}

#[test]
fn outputs_the_viewer_cannot_write() {
    let (_relay, url) = relay(&[]);
    let path = "/nosuchfolder/out.pcapng";
    refused(&mut viewer(&["--relay", &url, "-w", path]), 1, &[path, "no such file or directory"]);
    let command = &mut viewer(&["--relay", &url, "-q", "-w", "/dev/full"]);
    refused(command, 1, &["/dev/full", "no space left on device"]);
}

#[test]
fn sizes_times_and_counts_out_of_range() {
    let own: [(&str, &[&str], &[&str]); 11] = [
        ("sniffer", &["-i", "lo", "--block-timeout", "0"], &["--block-timeout", "10s"]),
        ("sniffer", &["-i", "lo", "--block-timeout", "1h"], &["--block-timeout", "10s"]),
        ("sniffer", &["-i", "lo", "--block-size", "3MiB"], &["--block-size", "power of two"]),
        ("sniffer", &["-i", "lo", "--ring-size", "4KiB"], &["--ring-size", "two blocks"]),
        (
            "sniffer",
            &["-i", "lo", "--ring-size", "1MiB", "--block-size", "1MiB"],
            &["--ring-size", "two blocks"],
        ),
        ("sniffer", &["-i", "lo", "--memory", "1MiB"], &["--memory"]),
        ("sniffer", &["-i", "lo", "--cores", "4000"], &["--cores 4000", "no such CPU"]),
        ("sniffer", &["-i", "lo", "--name", ""], &["--name"]),
        ("relay", &["--viewer-queue", "10"], &["--viewer-queue", "10"]),
        ("relay", &["--memory", "1MiB"], &["--memory"]),
        ("viewer", &["--reorder", "2m"], &["--reorder 120", "60 s"]),
    ];
    for (name, arguments, texts) in own {
        refused(Command::new(program(name)).args(arguments), 2, texts);
    }
    let typed: [(&str, &[&str], &[&str]); 13] = [
        ("sniffer", &[], &["required"]),
        ("sniffer", &["-i", "lo", "--read", "x"], &["--read"]),
        ("sniffer", &["-i", "lo", "--no-wait"], &["--no-wait"]),
        ("sniffer", &["--read", "x", "--cores", "1"], &["--cores"]),
        ("sniffer", &["-i", "lo", "-s", "0"], &["0", "--snaplen"]),
        ("sniffer", &["-i", "lo", "-s", "262145"], &["262145", "--snaplen"]),
        ("sniffer", &["-i", "lo", "--memory", "lots"], &["lots", "--memory"]),
        ("sniffer", &["-i", "lo", "--ring-size", "99999999999TiB"], &["too large"]),
        ("sniffer", &["-i", "lo", "--block-timeout", "5 parsecs"], &["5 parsecs"]),
        ("relay", &["--workers", "0"], &["0", "--workers"]),
        ("relay", &["--viewer-queue", "1.5.5MiB"], &["1.5.5MiB"]),
        ("viewer", &["--duration", "soon"], &["soon", "--duration"]),
        ("viewer", &["-c", "-1"], &["-1"]),
    ];
    for (name, arguments, texts) in typed {
        misused(name, arguments, texts);
    }
}

/// A log that nobody reads any more fails nothing: the status is that of the fault itself.
#[test]
fn a_closed_standard_error_changes_nothing() {
    for (name, arguments) in [
        ("sniffer", ["-i", "nowhere-0"]), // logs how it is confined, then fails
        ("relay", ["--listen", "192.0.2.1:9"]),
        ("viewer", ["--relay", "ws://127.0.0.1:1"]),
    ] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = Command::new(program(name));
        command.args(arguments).stdout(std::process::Stdio::null()).stderr(writer);
        let code = command.status().expect("it runs").code();
        let expected = if name == "relay" { 2 } else { 1 };
        assert_eq!(code, Some(expected), "{name}");
    }
}
