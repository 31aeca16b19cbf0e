//! What a service manager sees: readiness and signs of life, and sockets that it passes.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tests::process::{DEADLINE, Process, free_port, relay, run};
use tests::program;
use tests::samples::{Order, Sample, udp_frame};

/// A socket that service managers have, and where it is.
fn notify_socket(folder: &Path) -> (UnixDatagram, PathBuf) {
    let path = folder.join("notify");
    let socket = UnixDatagram::bind(&path).expect("binds");
    socket.set_read_timeout(Some(DEADLINE)).expect("sets");
    (socket, path)
}

/// The next thing that is told.
fn told(socket: &UnixDatagram) -> String {
    let mut bytes = [0; 256];
    let length = socket.recv(&mut bytes).expect("it is told in time");
    String::from_utf8_lossy(&bytes[..length]).trim().to_owned()
}

/// Starts a program with a watchdog of a second; sees it ready, then alive, then ended in order.
fn see_it_through(mut command: Command) {
    let folder = tempfile::tempdir().expect("a folder");
    let (socket, path) = notify_socket(folder.path());
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000000");
    let process = Process::start(&mut command);
    assert_eq!(told(&socket), "READY=1");
    for _ in 0..3 {
        assert_eq!(told(&socket), "WATCHDOG=1");
    }
    process.signal("TERM");
    let last = std::iter::repeat_with(|| told(&socket)).find(|text| text != "WATCHDOG=1");
    assert_eq!(last.as_deref(), Some("STOPPING=1"));
    assert_eq!(process.wait().code(), 0);
}

#[test]
fn the_relay_tells_its_service_manager() {
    let mut command = Command::new(program("relay"));
    command.args(["--listen", &format!("127.0.0.1:{}", free_port()), "--workers", "2"]);
    see_it_through(command);
}

/// It does so from behind its confinement.
#[test]
fn the_sniffer_tells_its_service_manager() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut sample = Sample::pcap(Order::Little, false, 1);
    let frame = udp_frame(1000, 53, b"some text");
    sample.record(1_700_000_000, 0, &frame, frame.len() as u32);
    let path = folder.path().join("in.pcap");
    std::fs::write(&path, sample.bytes()).expect("written");
    let (_relay, url) = relay(&[]);
    let mut command = Command::new(program("sniffer"));
    command.args(["--relay", &url, "--name", "web-1", "--read"]).arg(&path); // waits for a viewer
    see_it_through(command);
}

/// The journal knows the time, and reads the level of a line at its begin (JOURNAL_STREAM, systemd.exec(5)).
#[test]
fn lines_for_the_journal_begin_with_their_level() {
    let mut command = Command::new("sh");
    command.args(["-c", "JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec \"$@\"", "sh"]);
    command.arg(program("relay")).args(["--listen", &format!("127.0.0.1:{}", free_port())]);
    let mut process = Process::start(&mut command);
    process.await_line("<6>listening on 127.0.0.1");
    assert_eq!(process.terminate().code(), 0);

    // A variable that somebody inherited is not the journal.
    let mut command = Command::new(program("relay"));
    command.args(["--listen", &format!("127.0.0.1:{}", free_port())]).env("JOURNAL_STREAM", "1:1");
    let mut process = Process::start(&mut command);
    process.await_line(" INFO listening on 127.0.0.1");
    assert_eq!(process.terminate().code(), 0);
}

/// Opens a socket, says its port, and starts a relay with it for each line that it is given.
const MANAGER: &str = r"
import os, socket, sys
listener = socket.create_server((sys.argv[1], 0))
print(listener.getsockname()[1], flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(listener.fileno(), 3)
        os.set_inheritable(3, True) # it may have been 3 before
        os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))
        os.execv(sys.argv[2], sys.argv[2:])
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(f'ended with {status}', file=sys.stderr, flush=True)
";

fn manager(address: &str) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", MANAGER, address]).arg(program("relay"));
    command.stdout(Stdio::piped());
    command
}

#[test]
fn a_socket_that_is_passed_outlives_the_relay() {
    let (mut manager, mut orders) = Process::start_piped(&mut manager("127.0.0.1"));
    let mut port = String::new();
    BufReader::new(manager.stdout()).read_line(&mut port).expect("it says its port");
    let url = format!("ws://127.0.0.1:{}", port.trim());
    let list = || {
        let mut command = Command::new(program("viewer"));
        command.args(["--list", "--relay", &url]);
        command
    };

    // Whoever comes before there is a relay waits, and is served.
    let early = Process::start(&mut list());
    orders.write_all(b"\n").expect("it reads");
    assert_eq!(early.wait().code(), 0);
    manager.await_line(&format!("listening on 127.0.0.1:{}", port.trim()));

    // So does who comes while it is restarted.
    let relay = String::from_utf8(run(Command::new("pgrep").args(["-P", &manager.id().to_string()])).1);
    let (code, _, _) = run(Command::new("kill").arg(relay.expect("a number").trim()));
    assert_eq!(code, 0);
    manager.await_line("ended with 0");
    let between = Process::start(&mut list());
    orders.write_all(b"\n").expect("it reads");
    assert_eq!(between.wait().code(), 0);
    manager.await_lines("listening on", 2, DEADLINE);
}

#[test]
fn a_socket_that_is_passed_is_as_closed_as_any() {
    let (mut manager, mut orders) = Process::start_piped(&mut manager("0.0.0.0"));
    orders.write_all(b"\n").expect("it reads");
    manager.await_line("is not a loopback address");
    manager.await_line("ended with 1");
}
