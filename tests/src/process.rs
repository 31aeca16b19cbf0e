//! A program under test: its standard error is read as it comes, its end is awaited.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// No wait is longer: only a hang reaches it.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A running program. Killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    lines: Arc<(Mutex<Vec<String>>, Condvar)>,
    reader: Option<JoinHandle<()>>,
}

/// What a program left behind.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard error, whole.
    pub stderr: String,
}

impl Ended {
    /// The exit status; panics if a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by a signal: {self:?}"))
    }
}

impl Process {
    /// Starts `command`; standard error is kept and echoed, standard input is empty, the rest is as
    /// the command says.
    pub fn start(command: &mut Command) -> Self {
        Self::spawn(command.stdin(Stdio::null()), true)
    }

    /// The same under a name of its own, where several of one program run.
    pub fn start_as(name: &str, command: &mut Command) -> Self {
        Self::spawn_as(name, command.stdin(Stdio::null()), true)
    }

    /// [`Process::start`] without the echo: for programs by the hundred.
    pub fn start_quietly(command: &mut Command) -> Self {
        Self::spawn(command.stdin(Stdio::null()), false)
    }

    /// Starts `command` with a pipe as its standard input.
    pub fn start_piped(command: &mut Command) -> (Self, ChildStdin) {
        let mut process = Self::spawn(command.stdin(Stdio::piped()), true);
        let stdin = process.child.stdin.take().expect("piped");
        (process, stdin)
    }

    fn spawn(command: &mut Command, echo: bool) -> Self {
        let name = command.get_program().to_string_lossy().rsplit('/').next().unwrap_or_default().to_owned();
        Self::spawn_as(&name, command, echo)
    }

    fn spawn_as(name: &str, command: &mut Command, echo: bool) -> Self {
        let name = name.to_owned();
        let mut child =
            command.stderr(Stdio::piped()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stderr = child.stderr.take().expect("piped");
        let lines = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let shared = Arc::clone(&lines);
        let title = name.clone();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if echo {
                    eprintln!("[{title}] {line}");
                }
                shared.0.lock().expect("no reader panics").push(line);
                shared.1.notify_all();
            }
        });
        Self { name, child, lines, reader: Some(reader) }
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Standard output, if it was piped and not taken yet.
    pub fn stdout(&mut self) -> ChildStdout {
        self.child.stdout.take().expect("standard output was piped")
    }

    /// Waits until a line of standard error contains `text`, and returns it.
    pub fn await_line(&mut self, text: &str) -> String {
        self.await_lines(text, 1, DEADLINE)
    }

    /// Waits until `count` lines contain `text`, at most for `time`, and returns the last of them.
    pub fn await_lines(&mut self, text: &str, count: usize, time: Duration) -> String {
        let deadline = Instant::now() + time;
        let shared = Arc::clone(&self.lines);
        let mut lines = shared.0.lock().expect("no reader panics");
        loop {
            if let Some(line) = lines.iter().filter(|line| line.contains(text)).nth(count - 1) {
                return line.clone();
            }
            let ended = self.child.try_wait().expect("our child").is_some();
            assert!(
                !ended || self.reader.as_ref().is_some_and(|reader| !reader.is_finished()),
                "{} ended without saying {text:?}: {lines:?}",
                self.name
            );
            assert!(Instant::now() < deadline, "{} did not say {text:?}: {lines:?}", self.name);
            lines = shared.1.wait_timeout(lines, Duration::from_millis(50)).expect("no reader panics").0;
        }
    }

    /// Standard error so far.
    pub fn said(&self) -> String {
        self.lines.0.lock().expect("no reader panics").join("\n")
    }

    /// Sends a signal by name, `TERM` or `KILL`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    /// Waits for the end.
    pub fn wait(self) -> Ended {
        self.wait_within(DEADLINE)
    }

    /// Waits for the end, at most for `time`.
    pub fn wait_within(mut self, time: Duration) -> Ended {
        let deadline = Instant::now() + time;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                break status;
            }
            assert!(Instant::now() < deadline, "{} does not end", self.name);
            std::thread::sleep(Duration::from_millis(5));
        };
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader does not panic");
        }
        let stderr = self.lines.0.lock().expect("no reader panics").join("\n");
        Ended { status, stderr }
    }

    /// Asks it to end in order, and waits.
    pub fn terminate(self) -> Ended {
        self.signal("TERM");
        self.wait()
    }

    /// Ends it at once, as `kill -9` does.
    pub fn kill(self) -> Ended {
        self.signal("KILL");
        self.wait()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("our child").is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command to its end: exit status, standard output, standard error.
pub fn run(command: &mut Command) -> (i32, Vec<u8>, String) {
    let mut process = Process::start(command.stdout(Stdio::piped()));
    let mut stdout = process.stdout();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).expect("a pipe can be read");
        bytes
    });
    let ended = process.wait();
    (ended.code(), reader.join().expect("the reader does not panic"), ended.stderr)
}

/// A port of loopback that nobody has now, nor gets unasked: it is below those that the kernel gives
/// to outgoing connections and to port 0, and none is handed out twice in a process.
pub fn free_port() -> u16 {
    const PORTS: Range<u32> = 15_000..32_000;
    static HANDED_OUT: AtomicU32 = AtomicU32::new(0);
    // Test programs that run at the same time begin at different places.
    let first = std::process::id().wrapping_mul(127);
    PORTS
        .map(|_| {
            let place = first.wrapping_add(HANDED_OUT.fetch_add(1, Ordering::Relaxed));
            (PORTS.start + place % (PORTS.end - PORTS.start)) as u16
        })
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a port is free")
}

/// A relay on a free port of loopback, and its URL.
pub fn relay(arguments: &[&str]) -> (Process, String) {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut command = Command::new(crate::program("relay"));
    command.args(["--listen", &address.to_string()]).args(arguments);
    let mut relay = Process::start(&mut command);
    relay.await_line("listening on");
    assert!(TcpStream::connect(address).is_ok());
    (relay, format!("ws://{address}"))
}
