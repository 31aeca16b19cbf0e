//! What a confined process can do and what not. Each attempt is made in a process of its own, since it is for good.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::process::Command;

use ::landlock::ABI;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::kill;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockProtocol, SockType, listen, socket};
use nix::unistd::getppid;
use wire::admin::{Admin, Picture, Subject};

use super::*;
use crate::test_net::{output_of, skipped};

/// Where the process of its own finds the spool.
const SPOOL: &str = "RINGCAST_TEST_SPOOL";

/// Always well.
struct Well;

impl Subject for Well {
    fn look(&mut self) -> Result<Picture, String> {
        Ok(Picture::default())
    }
}

/// Runs a test of this file in a process of its own.
fn in_a_process(name: &str, spool: &Path) {
    let mut command = Command::new(std::env::current_exe().expect("a test knows where it is"));
    command.args([&format!("confine::tests::{name}"), "--exact", "--ignored", "--nocapture"]);
    let output = output_of(command.env(SPOOL, spool).env("RUST_BACKTRACE", "1"));
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    eprint!("{said}");
}

fn is_refused<T>(result: std::io::Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

#[test]
fn a_confined_process_has_what_it_needs_and_no_more() {
    let directory = tempfile::tempdir().expect("a directory");
    let spool = directory.path().join("spool");
    std::fs::create_dir(&spool).expect("made");
    std::fs::write(directory.path().join("beside"), "not for us").expect("written");
    in_a_process("confined", &spool);
}

/// A token that is reached by links, as volumes of secrets have it; a relay that is given by its address.
#[test]
fn what_a_link_leads_to_next_can_be_read_and_local_services_not_be_asked() {
    let directory = tempfile::tempdir().expect("a directory");
    for version in ["..1", "..2"] {
        std::fs::create_dir(directory.path().join(version)).expect("made");
        std::fs::write(directory.path().join(version).join("token"), version).expect("written");
    }
    symlink("..1", directory.path().join("..data")).expect("made");
    symlink("..data/token", directory.path().join("token")).expect("made");
    in_a_process("confined_to_an_address", directory.path());
}

#[test]
#[ignore = "confines its process; the test above runs it"]
fn confined_to_an_address() {
    let Some(secrets) = std::env::var_os(SPOOL).map(PathBuf::from) else { return };
    let token = secrets.join("token");
    let exe = std::env::current_exe().expect("a test knows where it is");
    let confinement = Confinement {
        has_rings: false,
        looks_up_names: false,
        sends_pages: true,
        has_admin: true,
        spool: None,
        relay_port: 9440,
        readable: &[exe, token.clone()],
    };
    let admin = Admin::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
    let address = admin.address();
    // A thread of before asks it: Landlock lets those that come later connect to the relay alone.
    let (told_of_admin, asked) = std::sync::mpsc::channel::<()>();
    let client = std::thread::spawn(move || {
        asked.recv().expect("it is told");
        let mut client = TcpStream::connect(address)?;
        client.write_all(b"GET /healthz HTTP/1.1\r\n\r\n")?;
        let mut answer = String::new();
        client.read_to_string(&mut answer).map(|_| answer)
    });
    // What a volume does later is made ready: we could not write it.
    symlink("..2", secrets.join("..new")).expect("made");
    let (renamed, go) = (secrets.join("..data"), secrets.join("..new"));
    let (told, wait) = std::sync::mpsc::channel::<()>();
    let (done, awaited) = std::sync::mpsc::channel();
    let updater = std::thread::spawn(move || {
        let _ = wait.recv();
        let _ = done.send(std::fs::rename(go, renamed));
    });
    nix::sys::prctl::set_no_new_privs().expect("our own right");
    let abi = landlock::restrict(&confinement).expect("rules are right");
    assert_eq!(std::fs::read_to_string(&token).expect("beside us"), "..1");
    told.send(()).expect("it waits");
    awaited.recv().expect("it tells").expect("threads of before are free");
    updater.join().expect("it ends");
    assert_eq!(std::fs::read_to_string(&token).expect("what came in its place"), "..2");
    if abi.is_some_and(|abi| abi >= ABI::V4) {
        let server = TcpListener::bind("127.0.0.1:0");
        assert!(
            server.is_ok_and(|server| is_refused(TcpStream::connect(server.local_addr().expect("bound"))))
        );
        let name_server = TcpStream::connect(("127.0.0.1", 53));
        assert!(is_refused(name_server), "nobody asks it");
    }
    if !seccomp::restrict(&confinement).expect("a filter") {
        return skipped("no seccomp filter for this architecture");
    }
    assert!(is_refused(UnixStream::connect("/nowhere")), "no service of root's");
    admin.start("sniffer", "0.0", Well).expect("served from behind the confinement");
    told_of_admin.send(()).expect("it waits");
    let answer = client.join().expect("it ends").expect("it is answered");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nok\n"), "{answer}");
    let other = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).expect("TCP");
    assert_eq!(listen(&other, Backlog::MAXCONN), Err(Errno::EPERM), "no other port");
    UnixStream::pair().expect("signals wake us by it");
    assert_eq!(pages_through_a_pipe(), Ok(5), "the relay is spoken to without TLS");
    nix::net::if_::if_nametoindex("lo").expect("by the C library's socket");
}

#[test]
#[ignore = "confines its process; the test above runs it"]
fn confined() {
    let Some(spool) = std::env::var_os(SPOOL).map(PathBuf::from) else { return };
    let [relay, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("loopback is there"));
    let port = |listener: &TcpListener| listener.local_addr().expect("bound").port();
    let confinement = Confinement {
        has_rings: false,
        looks_up_names: true,
        sends_pages: false,
        has_admin: false,
        spool: Some(&spool),
        relay_port: port(&relay),
        readable: &[std::env::current_exe().expect("a test knows where it is")],
    };

    nix::sys::prctl::set_no_new_privs().expect("our own right");
    let Some(abi) = landlock::restrict(&confinement).expect("rules are right") else {
        return skipped("this kernel has no Landlock");
    };
    let segment = spool.join("segment");
    File::create(&segment).and_then(|mut file| file.write_all(b"a block")).expect("the spool is ours");
    std::fs::rename(&segment, spool.join("renamed")).expect("and its names");
    std::fs::read_dir(&spool).expect("to be listed");
    OpenOptions::new().write(true).truncate(true).open(spool.join("renamed")).expect("and cut");
    std::fs::remove_file(spool.join("renamed")).expect("and deleted");
    assert!(is_refused(std::fs::create_dir(spool.join("directory"))));
    assert!(is_refused(std::os::unix::fs::symlink("/etc", spool.join("link"))));
    let beside = spool.with_file_name("beside");
    assert!(is_refused(File::open(&beside)) && is_refused(std::fs::remove_file(&beside)));
    assert!(
        is_refused(File::create("/etc/ringcast-test")) && is_refused(File::create("/dev/shm/ringcast-test"))
    );
    for readable in ["/etc/passwd", "/proc/meminfo", "/proc/thread-self/schedstat", "/dev/urandom"] {
        File::open(readable).unwrap_or_else(|error| panic!("{readable}: {error}"));
    }
    assert!(is_refused(OpenOptions::new().write(true).open("/proc/self/comm")));
    File::open(&confinement.readable[0]).expect("was asked for");

    // TCP by Landlock since its ABI 4.
    TcpStream::connect(relay.local_addr().expect("bound")).expect("the relay's port");
    if abi >= ABI::V4 {
        assert!(is_refused(TcpStream::connect(other.local_addr().expect("bound"))));
        let port = port(&other);
        drop(other);
        assert!(is_refused(TcpListener::bind(("127.0.0.1", port))));
    } else {
        skipped("this kernel's Landlock knows no ports");
    }
    UdpSocket::bind("127.0.0.1:0").expect("name servers are asked by UDP");

    // The rest by seccomp.
    if !seccomp::restrict(&confinement).expect("a filter") {
        return skipped("no seccomp filter for this architecture");
    }
    assert_eq!(std::thread::spawn(|| 7).join().expect("threads are ours"), 7);
    let panicked = std::thread::spawn(|| panic!("as the test wants it")).join();
    assert!(panicked.is_err(), "a panic ends its thread and nothing else");
    assert_eq!(vec![7_u8; 256 << 20].iter().filter(|one| **one == 7).count(), 256 << 20, "memory grows");
    assert!(("localhost", 9440).to_socket_addrs().is_ok_and(|mut found| found.next().is_some()));
    UnixStream::pair().expect("signals wake us by it");
    UdpSocket::bind("127.0.0.1:0").expect("still");
    TcpStream::connect(relay.local_addr().expect("bound")).expect("still");
    assert!(is_refused(relay.accept()), "no admin port was asked for");
    assert!(is_refused(Command::new("/bin/true").status()), "no programs");
    assert_eq!(kill(getppid(), None), Err(Errno::EPERM), "no signals");
    assert_eq!(unshare(CloneFlags::CLONE_NEWUSER), Err(Errno::EPERM), "no namespaces");
    let open = |family, kind, protocol: Option<SockProtocol>| {
        socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol).map(drop)
    };
    assert_eq!(open(AddressFamily::Inet, SockType::Raw, Some(SockProtocol::Icmp)), Err(Errno::EPERM));
    assert_eq!(
        open(AddressFamily::Packet, SockType::Raw, None),
        Err(Errno::EPERM),
        "no rings were asked for"
    );
    assert_eq!(
        open(AddressFamily::Inet, SockType::Stream, Some(SockProtocol::Sctp)),
        Err(Errno::EPERM),
        "Landlock knows its ports not"
    );
    assert_eq!(open(AddressFamily::Vsock, SockType::Stream, None), Err(Errno::EPERM));
    assert_eq!(
        open(AddressFamily::Netlink, SockType::Raw, Some(SockProtocol::NetlinkAudit)),
        Err(Errno::EPERM)
    );
    open(AddressFamily::Netlink, SockType::Raw, Some(SockProtocol::NetlinkRoute)).expect("interfaces");
    assert_eq!(pages_through_a_pipe(), Err(Errno::EPERM), "nobody sends pages over TLS");
}

/// As blocks go to TCP by reference, and what their memory asks of the system.
fn pages_through_a_pipe() -> nix::Result<usize> {
    nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_THREAD)?;
    let (out_of, into) = nix::unistd::pipe()?;
    let (here, _there) = UnixStream::pair().expect("a socket");
    let bytes = [std::io::IoSlice::new(b"bytes")];
    nix::fcntl::vmsplice(into, &bytes, nix::fcntl::SpliceFFlags::empty())?;
    nix::fcntl::splice(out_of, None, here, None, 5, nix::fcntl::SpliceFFlags::empty())
}
