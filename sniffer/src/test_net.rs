//! Network namespaces for tests: each test has its own, with a pair of virtual Ethernet links in it.
//!
//! A namespace belongs to a thread, and to the threads and processes it starts; it goes when the last of them, and the
//! last socket made in it, has gone. So tests neither see each other nor leave anything behind.
//!
//! They share one table of descriptors, though, and each process that one of them starts holds a copy of it until it runs
//! its own program. What must be really gone when a test goes on (a socket, a lock) is let go of by [`let_go`], and
//! processes are started by [`output_of`] or [`start`], which wait for each other.

use std::io::Write;
use std::os::fd::BorrowedFd;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use afpacket::sync::RawPacketStream;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};

/// Far longer than anything takes; a test that reaches it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// EtherType for experiments (IEEE 802): nothing but tests sends it.
pub(crate) const TEST_TYPE: u16 = 0x88b5;

/// Address of the end that tests send from.
pub(crate) const NEAR: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Address of the end that tests capture on.
pub(crate) const FAR: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Runs `test` in a network namespace of its own with `lo`, `near` and `far` up, the latter two joined by a wire. Says so
/// and does nothing where that is not permitted.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => {}
            Err(Errno::EPERM) => {
                skipped("a network namespace needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_RAW)");
                return;
            }
            Err(errno) => panic!("a network namespace of our own: {errno}"),
        }
        ip("link set lo up");
        ip(
            "link add near address 02:00:00:00:00:01 numtxqueues 1 type veth peer name far address 02:00:00:00:00:02",
        );
        for end in ["near", "far"] {
            // No link-local addresses: a test is to see its own packets only.
            ip(&format!("link set {end} addrgenmode none"));
            ip(&format!("link set {end} up"));
        }
        await_carrier();
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Waits until both ends are running. The kernel finds out about a carrier some time after the link is up, and until then
/// throws away what is sent, without an error.
fn await_carrier() {
    let deadline = Instant::now() + PATIENCE;
    let is_running = |name: &str| crate::interfaces::find(name).is_ok_and(|link| link.running);
    while !["near", "far"].into_iter().all(is_running) {
        assert!(Instant::now() < deadline, "no carrier within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Says that the calling test is skipped. Straight to standard error: what `eprintln` prints in a test that passes, the
/// test harness keeps to itself. In CI, where RINGCAST_REQUIRE_ALL is set, nothing may be.
pub(crate) fn skipped(why: &str) {
    assert!(std::env::var_os("RINGCAST_REQUIRE_ALL").is_none(), "{why}, but nothing may be skipped here");
    // Nothing to be done about it if nobody listens.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// Held while a process is on its way from this program to its own.
fn starting() -> MutexGuard<'static, ()> {
    static STARTING: Mutex<()> = Mutex::new(());
    STARTING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a process; it runs its own program when this returns.
pub(crate) fn start(command: &mut Command) -> Child {
    let _alone = starting();
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Runs a program to its end.
pub(crate) fn output_of(command: &mut Command) -> Output {
    let child = start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    child.wait_with_output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Drops `held` and closes what it has open for good: no process has a copy.
pub(crate) fn let_go<T>(held: T) {
    let _alone = starting();
    drop(held);
}

/// Runs `ip` of iproute2, which has to succeed, and returns what it prints.
pub(crate) fn ip(arguments: &str) -> String {
    let output = output_of(Command::new("ip").args(arguments.split_whitespace()));
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// How many want all frames that come by `interface`, as `ip` tells.
pub(crate) fn promiscuity(interface: &str) -> u32 {
    let text = ip(&format!("-d link show {interface}"));
    let word = text.split("promiscuity ").nth(1).and_then(|rest| rest.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no promiscuity: {text}"))
}

/// Sends whole frames out of an interface.
pub(crate) struct Sender(RawPacketStream);

impl Sender {
    pub(crate) fn new(interface: &str) -> Sender {
        let mut stream = RawPacketStream::new().expect("a packet socket");
        stream.bind(interface).expect("the interface is there");
        Sender(stream)
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        let sent = (&self.0).write(frame).expect("the frame is sent");
        assert_eq!(sent, frame.len());
    }
}

/// A frame from near to far of the test type, with `payload`.
pub(crate) fn frame(payload: &[u8]) -> Vec<u8> {
    frame_to(FAR, &TEST_TYPE.to_be_bytes(), payload)
}

/// A frame to `destination`; `head` is what is between the addresses and the payload: tags and EtherType.
pub(crate) fn frame_to(destination: [u8; 6], head: &[u8], payload: &[u8]) -> Vec<u8> {
    [&destination[..], &NEAR, head, payload].concat()
}

/// Calls `step` until it returns something, and in between sleeps until `fd` is ready, a little at most.
pub(crate) fn eventually<T>(what: &str, fd: BorrowedFd<'_>, mut step: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = step() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        wait(fd, 20);
    }
}

/// Sleeps until `fd` is ready, `timeout_ms` at most; returns what it is ready for.
pub(crate) fn wait(fd: BorrowedFd<'_>, timeout_ms: u16) -> PollFlags {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::from(timeout_ms)) {
        Ok(_) | Err(Errno::EINTR) => fds[0].revents().unwrap_or(PollFlags::empty()),
        Err(errno) => panic!("poll: {errno}"),
    }
}
