//! Two network namespaces joined by a veth pair, and programs that run there: pinned to cores, in
//! a control group each, with what they say kept in files.
//!
//! `gen` in one namespace is what is sent out of, `cap` in the other what is captured on. Without
//! IPv6 and addresses the wire is silent but for the generator.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::group::Group;

/// The interface that is captured on.
pub const INTERFACE: &str = "cap";
/// No wait for a program is longer.
const DEADLINE: Duration = Duration::from_secs(30);
/// How often a wait looks.
const LOOK: Duration = Duration::from_millis(10);

/// The namespaces, and the directory of logs. Removed when dropped.
#[derive(Debug)]
pub struct Testbed {
    far: String,
    near: String,
    /// What programs say.
    pub logs: PathBuf,
}

impl Testbed {
    /// Makes the namespaces; frames are at most `longest` bytes.
    pub fn new(longest: usize) -> io::Result<Self> {
        let id = std::process::id();
        let logs = std::env::temp_dir().join(format!("ringcast-bench-{id}"));
        fs::create_dir_all(&logs)?;
        let testbed = Self { far: format!("rcb-gen-{id}"), near: format!("rcb-cap-{id}"), logs };
        let mtu = longest.saturating_sub(14).max(1500).to_string();
        for namespace in [&testbed.far, &testbed.near] {
            run("ip", &["netns", "add", namespace])?;
            run("ip", &["-n", namespace, "link", "set", "lo", "up"])?;
            let quiet = "net.ipv6.conf.all.disable_ipv6=1";
            // A kernel without IPv6 is as silent.
            let _ = run("ip", &["netns", "exec", namespace, "sysctl", "-qw", quiet]);
        }
        let (far, near) = (testbed.far.as_str(), testbed.near.as_str());
        run("ip", &["link", "add", "gen", "netns", far, "type", "veth", "peer", INTERFACE, "netns", near])?;
        for (namespace, interface) in [(far, "gen"), (near, INTERFACE)] {
            run("ip", &["-n", namespace, "link", "set", interface, "mtu", &mtu, "up"])?;
        }
        for (namespace, interface) in [(far, "gen"), (near, INTERFACE)] {
            await_that(&format!("{interface} to be up"), || {
                let show = ["-n", namespace, "-o", "link", "show", "dev", interface];
                let shown = Command::new("ip").args(show).output()?;
                Ok(String::from_utf8_lossy(&shown.stdout).contains("state UP"))
            })?;
        }
        Ok(testbed)
    }

    /// A command in the namespace of the capture, by name.
    pub fn near(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.near]).arg(program);
        command
    }

    /// A command in the namespace of the generator.
    pub fn far(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.far]).arg(program);
        command
    }

    /// Starts a program in the namespace of the capture, on some cores, in a control group of its own.
    /// What it says goes to its log, and its standard output too if that has no place to go.
    pub fn start(&self, what: &Start<'_>, input: Stdio, output: Option<Stdio>) -> io::Result<Program> {
        Program::start(what, &["ip", "netns", "exec", &self.near], &self.logs, input, output)
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        for namespace in [&self.far, &self.near] {
            let _ = run("ip", &["netns", "del", namespace]);
        }
        let _ = fs::remove_dir_all(&self.logs);
    }
}

/// What is to be started.
#[derive(Debug)]
pub struct Start<'a> {
    /// Name in reports.
    pub name: &'a str,
    /// Program and arguments.
    pub command: &'a [String],
    /// Cores it runs on, as taskset(1) takes them.
    pub cores: &'a str,
}

/// A program that was started. Killed when dropped.
#[derive(Debug)]
pub struct Program {
    /// Name in reports.
    pub name: String,
    child: Child,
    group: Group,
    log: PathBuf,
}

impl Program {
    /// Starts a program by another, `through` (none if that is empty), as [`Testbed::start`] does; its
    /// log is a file in `logs`.
    pub fn start(
        what: &Start<'_>,
        through: &[&str],
        logs: &Path,
        input: Stdio,
        output: Option<Stdio>,
    ) -> io::Result<Self> {
        let group = Group::new(what.name)?;
        let log = logs.join(format!("{}.log", what.name));
        // ip(8) hides /sys/fs/cgroup, so the shell goes into the group before; each then becomes the
        // next, so the process id stays the same.
        let mut command = Command::new("sh");
        command.args(["-c", r#"echo $$ >"$0" && exec "$@""#]).arg(group.procs());
        command.args(through).args(["taskset", "-c", what.cores]);
        let file = File::create(&log)?;
        let output = match output {
            Some(output) => output,
            None => file.try_clone()?.into(),
        };
        command.args(what.command).stdin(input).stdout(output).stderr(file);
        let child = command.spawn().map_err(|error| io::Error::new(error.kind(), format!("sh: {error}")))?;
        Ok(Self { name: what.name.to_owned(), child, group, log })
    }

    /// Its standard output, if that is a pipe and was not taken.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// CPU so far, in ns.
    pub fn cpu_ns(&self) -> io::Result<u64> {
        self.group.cpu_ns()
    }

    /// What it has said.
    pub fn said(&self) -> String {
        fs::read(&self.log).map_or(String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Waits until it has said `text`.
    pub fn await_said(&mut self, text: &str) -> io::Result<()> {
        let what = format!("{} to say {text:?}", self.name);
        await_that(&what, || {
            if self.said().contains(text) {
                return Ok(true);
            }
            match self.child.try_wait()? {
                Some(status) => {
                    Err(io::Error::other(format!("{}: {status}: {}", self.name, self.said().trim())))
                }
                None => Ok(false),
            }
        })
    }

    /// Peak of its resident memory, in KiB (VmHWM, proc(5)); 0 once it has ended.
    pub fn peak_kib(&self) -> u64 {
        self.status_kib("VmHWM:")
    }

    /// Its resident memory now, in KiB (VmRSS); 0 once it has ended.
    pub fn resident_kib(&self) -> u64 {
        self.status_kib("VmRSS:")
    }

    fn status_kib(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
    }

    /// Whether somebody in its namespace has a packet socket.
    pub fn captures(&self) -> io::Result<bool> {
        let table = fs::read_to_string(format!("/proc/{}/net/packet", self.child.id()))?;
        Ok(table.lines().count() > 1)
    }

    /// Whether somebody in its namespace listens on a TCP port of IPv4.
    pub fn listens_on(&self, port: u16) -> io::Result<bool> {
        let table = fs::read_to_string(format!("/proc/{}/net/tcp", self.child.id()))?;
        let local = format!(":{port:04X} 00000000:0000 0A ");
        Ok(table.contains(&local))
    }

    /// Waits until somebody in its namespace listens on a TCP port of IPv4.
    pub fn await_listening(&mut self, port: u16) -> io::Result<()> {
        let what = format!("{} to listen on port {port}", self.name);
        await_that(&what, || match self.child.try_wait()? {
            Some(status) => Err(io::Error::other(format!("{}: {status}: {}", self.name, self.said().trim()))),
            None => self.listens_on(port),
        })
    }

    /// Sends SIGTERM, if it still runs.
    pub fn terminate(&mut self) -> io::Result<()> {
        if self.child.try_wait()?.is_none() {
            let id = nix::unistd::Pid::from_raw(self.child.id() as i32);
            nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM)?;
        }
        Ok(())
    }

    /// Waits for its end.
    pub fn await_end(&mut self) -> io::Result<()> {
        let what = format!("{} to end", self.name);
        await_that(&what, || Ok(self.child.try_wait()?.is_some()))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until something is so.
pub fn await_that(what: &str, mut is_so: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let deadline = Instant::now() + DEADLINE;
    while !is_so()? {
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("gave up waiting for {what}")));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Runs a command, which must succeed.
fn run(program: &str, arguments: &[&str]) -> io::Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program} {}: {}", arguments.join(" "), text.trim())))
}
