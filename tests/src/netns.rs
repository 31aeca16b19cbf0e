//! Network namespaces and veth pairs, made by a test and removed with it.

use std::ffi::OsStr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::process::DEADLINE;

/// A network namespace with its loopback up. Deleted when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

/// Whether namespaces can be made here; says so if not.
pub fn is_available() -> bool {
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    let available = is_root && Command::new("ip").arg("-V").output().is_ok();
    available || !crate::skip("network namespaces need root and ip(8)")
}

/// `ip ...`, which must succeed.
pub fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip runs");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Netns {
    /// A fresh namespace.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("rc-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        Self { name }
    }

    /// Its name, for ip(8).
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `ip -n NAMESPACE ...`.
    pub fn ip(&self, arguments: &[&str]) {
        ip(&[&["-n", &self.name], arguments].concat());
    }

    /// A command that runs inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Joins two namespaces by a veth pair: `v1` with 10.9.0.1/24 here, `v2` with 10.9.0.2/24
    /// there, both up. Offloads stay as they are by default.
    pub fn join(&self, other: &Netns) {
        ip(&[
            "link",
            "add",
            "v1",
            "netns",
            &self.name,
            "type",
            "veth",
            "peer",
            "name",
            "v2",
            "netns",
            &other.name,
        ]);
        self.ip(&["addr", "add", "10.9.0.1/24", "dev", "v1"]);
        other.ip(&["addr", "add", "10.9.0.2/24", "dev", "v2"]);
        self.ip(&["link", "set", "v1", "up"]);
        other.ip(&["link", "set", "v2", "up"]);
        self.await_up("v1");
        other.await_up("v2");
    }

    /// Waits until an interface that has been switched on really is up. The kernel finds out about
    /// a carrier some time later, and until then throws away what is sent, without an error.
    pub fn await_up(&self, interface: &str) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let show =
                Command::new("ip").args(["-n", &self.name, "-o", "link", "show", "dev", interface]).output();
            if show.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("state UP")) {
                return;
            }
            assert!(Instant::now() < deadline, "{interface} has no carrier");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let pids = Command::new("ip").args(["netns", "pids", &self.name]).output();
        for pid in pids.map(|output| output.stdout).unwrap_or_default().split(|byte| *byte == b'\n') {
            if !pid.is_empty() {
                let _ = Command::new("kill").arg("-KILL").arg(String::from_utf8_lossy(pid).as_ref()).status();
            }
        }
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}
