//! What the programs may do while they run: the sniffer keeps the one right that rings need and is
//! confined; relay and viewer need none. And all of it works nevertheless.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::faults::{Wide, await_spooled};
use tests::live::{Bench, await_bytes, ipv4, start, tagged, udp};
use tests::netns::Netns;
use tests::process::{DEADLINE, Process, run};
use tests::samples::{Order, Sample};

/// CAP_NET_RAW alone, as /proc shows it. (linux/capability.h)
const NET_RAW: &str = "0000000000002000";
const NOTHING: &str = "0000000000000000";
const NOBODY: &str = "65534";

/// A name server: answers for the names in a file (`NAME ADDRESS` a line, read anew each time), to
/// UDP that the answer is too long, so that it is asked again by TCP.
const NAME_SERVER: &str = "
import socket, struct, sys, threading
address, records = sys.argv[1], sys.argv[2]
def answer(query, is_tcp):
    end, labels = 12, []
    while query[end]:
        labels.append(query[end + 1:end + 1 + query[end]].decode())
        end += 1 + query[end]
    question = query[12:end + 5]
    known = dict(line.split() for line in open(records))
    name = '.'.join(labels).lower()
    is_a = question[-4:-2] == b'\\x00\\x01'
    head = lambda flags, answers: query[:2] + struct.pack('>HHHHH', flags, 1, answers, 0, 0) + question
    if name not in known:
        return head(0x8183, 0)
    if not is_a:
        return head(0x8180, 0)
    if not is_tcp:
        return head(0x8380, 0)
    return head(0x8180, 1) + b'\\xc0\\x0c' + struct.pack('>HHIH', 1, 1, 0, 4) + socket.inet_aton(known[name])
def serve_tcp(listener):
    while True:
        peer, _ = listener.accept()
        with peer:
            while size := peer.recv(2):
                reply = answer(peer.recv(int.from_bytes(size, 'big')), True)
                peer.sendall(len(reply).to_bytes(2, 'big') + reply)
listener = socket.create_server((address, 53))
threading.Thread(target=serve_tcp, args=(listener,), daemon=True).start()
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind((address, 53))
print('serving', file=sys.stderr, flush=True)
while True:
    query, peer = udp.recvfrom(4096)
    udp.sendto(answer(query, False), peer)
";

/// Files of /etc that programs in one namespace see in place of the host's. (ip-netns(8))
struct Etc(PathBuf);

impl Etc {
    fn new(netns: &Netns, files: &[(&str, &str)]) -> Self {
        let directory = Path::new("/etc/netns").join(netns.name());
        std::fs::create_dir_all(&directory).expect("root may");
        for (name, text) in files {
            std::fs::write(directory.join(name), text).expect("root may");
        }
        Self(directory)
    }
}

impl Drop for Etc {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
        let _ = std::fs::remove_dir("/etc/netns"); // if it is empty
    }
}

/// What /proc says of each thread of a process.
fn threads(process: &Process) -> Vec<BTreeMap<String, String>> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", process.id())).expect("it runs");
    // A thread that has ended meanwhile was one of a lookup.
    let texts =
        tasks.filter_map(|task| std::fs::read_to_string(task.expect("listed").path().join("status")).ok());
    let field = |line: &str| line.split_once(":\t").map(|(name, value)| (name.to_owned(), value.to_owned()));
    texts.map(|text| text.lines().filter_map(field).collect()).collect()
}

/// Every thread has `kept` and nothing else, cannot get more, and is under seccomp; there is no core.
fn assert_confined(process: &Process, kept: &str, bounding: Option<&str>, at_least: usize) {
    let threads = threads(process);
    assert!(threads.len() >= at_least, "{threads:?}");
    for thread in threads {
        let name = &thread["Name"];
        for set in ["CapEff", "CapPrm"] {
            assert_eq!(thread[set], kept, "{name}: {set}");
        }
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(thread[set], NOTHING, "{name}: {set}");
        }
        if let Some(bounding) = bounding {
            assert_eq!(thread["CapBnd"], bounding, "{name}");
        }
        assert_eq!((thread["NoNewPrivs"].as_str(), thread["Seccomp"].as_str()), ("1", "2"), "{name}");
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.id())).expect("it runs");
    let cores = limits.lines().find(|line| line.starts_with("Max core file size")).expect("listed");
    assert_eq!(cores.split_whitespace().nth(4), Some("0"), "{cores}");
}

/// Runs a program under an open umask.
fn with_open_umask(netns: &Netns, program: &str, arguments: &[&str]) -> Process {
    let mut command = netns.command("sh");
    command.args(["-c", "umask 0; exec \"$@\"", "sh"]).arg(tests::program(program)).args(arguments);
    Process::start(&mut command)
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("it is there").permissions().mode() & 0o7777
}

/// Links that are made anew, a relay that moved, tagged frames, a spool: with one right, confined, and
/// without asking libpcap or a name server for the filter again.
#[test]
fn a_live_capture_goes_on_with_one_right() {
    let Some(wide) = Wide::new() else { return };
    wide.middle.ip(&["addr", "add", "10.8.0.53/32", "dev", "u2"]);
    let files = [("resolv.conf", "nameserver 10.8.0.53\n"), ("nsswitch.conf", "hosts: files dns\n")];
    let _etc = Etc::new(&wide.bench.here, &files);
    let names = wide.path("names");
    let say = |text: &str| {
        let new = wide.path("names.new");
        std::fs::write(&new, text).expect("written");
        std::fs::rename(&new, &names).expect("renamed");
    };
    say("relay.ringcast.test 10.8.0.2\ncaptured.ringcast.test 10.99.0.1\n");
    let mut server =
        start(&wide.middle, "python3", &["-c", NAME_SERVER, "10.8.0.53", names.to_str().expect("text")]);
    server.await_line("serving");

    let relay = wide.relay(&[]);
    let spool = wide.path("spool");
    let filter = "(udp port 5000 and dst host captured.ringcast.test) or (vlan 7 and udp port 5000)";
    let url = "ws://relay.ringcast.test:9440";
    let arguments = [
        "--name",
        "host",
        "-i",
        "any",
        "-f",
        filter,
        "--relay",
        url,
        "--spool",
        spool.to_str().expect("text"),
    ];
    let mut sniffer = with_open_umask(&wide.bench.here, "sniffer", &arguments);
    sniffer.await_line("confined: capabilities CAP_NET_RAW only; landlock ABI ");
    sniffer.await_line(": connected");
    Bench::await_streams_in(&wide.middle, &[], 3, 0);
    assert_confined(&sniffer, NET_RAW, Some(NET_RAW), 4);
    let file = wide.path("out");
    let viewer = Bench::viewer_in(&wide.middle, &file, &[]);
    Bench::await_streams_in(&wide.middle, &[], 3, 1);
    let send = |text: &str| {
        let plain = udp(1, 5000, format!("{text} plain").as_bytes());
        let other = udp(1, 5001, format!("{text} other").as_bytes());
        let in_vlan = tagged(&[(0x8100, 7)], &udp(1, 5000, format!("{text} in vlan").as_bytes())[14..]);
        wide.bench.send(&wide.bench.there, "v2", &[other, plain, in_vlan]);
    };
    send("first");
    await_bytes(&file, b"first in vlan");

    // The filter's names are gone, and so is the interface; another of its name comes.
    say("relay.ringcast.test 10.8.0.3\n");
    wide.bench.here.ip(&["link", "del", "v1"]);
    sniffer.await_line("interface v1: gone");
    wide.bench.wire("v1", tests::live::HERE, "v2", tests::live::THERE);
    sniffer.await_line("interface v1: there again");
    Bench::await_streams_in(&wide.middle, &[], 3, 1);
    send("second");
    await_bytes(&file, b"second in vlan");

    // The relay dies, and comes back under another address; the spool has what was sent meanwhile.
    relay.kill();
    sniffer.await_line("capture goes on");
    wide.middle.ip(&["addr", "del", "10.8.0.2/24", "dev", "u2"]);
    wide.middle.ip(&["addr", "add", "10.8.0.3/24", "dev", "u2"]);
    send("third");
    await_spooled(&spool, 2, DEADLINE);
    assert_eq!(mode(&spool), 0o700);
    let mut kinds = 0;
    for entry in std::fs::read_dir(&spool).expect("a directory") {
        let path = entry.expect("listed").path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        kinds += 1;
    }
    assert!(kinds >= 4, "segment, lock, home, totals");
    let _relay = wide.relay(&[]);
    sniffer.await_lines(": connected", 2, DEADLINE);
    await_bytes(&file, b"third in vlan");
    assert_confined(&sniffer, NET_RAW, Some(NET_RAW), 4);

    assert_eq!(sniffer.terminate().code(), 0);
    assert_eq!(viewer.terminate().code(), 0);
    let bytes = std::fs::read(&file).expect("a file");
    let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    for text in ["first", "second", "third"] {
        assert!(has(&format!("{text} plain")) && !has(&format!("{text} other")), "{text}");
    }
}

/// A file that only its owner can read is opened with root's rights, and read with none.
#[test]
fn a_file_is_read_without_any_right() {
    if !tests::netns::is_available() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("in");
    let mut sample = Sample::pcap(Order::Little, false, 1);
    let frame = udp(1, 5000, b"out of a file");
    sample.record(1, 0, &frame, frame.len() as u32);
    std::fs::write(&path, sample.bytes()).expect("written");
    let owner = format!("{NOBODY}:{NOBODY}");
    for (path, mode) in [(path.as_path(), "600"), (directory.path(), "700")] {
        for [program, argument] in [["chmod", mode], ["chown", &owner]] {
            assert!(Command::new(program).arg(argument).arg(path).status().expect("it runs").success());
        }
    }
    let (_relay, url) = tests::process::relay(&[]);
    let mut command = Command::new(tests::program("sniffer"));
    let arguments = ["--read", path.to_str().expect("text"), "--relay", &url, "-f", "udp"];
    let mut sniffer = Process::start(command.args(arguments));
    sniffer.await_line("confined: no capabilities; landlock ABI ");
    sniffer.await_line(": connected");
    assert_confined(&sniffer, NOTHING, Some(NOTHING), 3);
    let mut viewer = Command::new(tests::program("viewer"));
    let (status, output, _) = run(viewer.args(["--relay", &url, "-w", "-", "--until-end"]));
    assert_eq!((status, sniffer.wait().code()), (0, 0));
    assert!(output.windows(13).any(|window| window == b"out of a file"));
}

#[test]
fn a_spool_of_another_user_is_refused_with_what_to_do() {
    if !tests::netns::is_available() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let spool = directory.path().join("spool");
    let file = spool.join("lock");
    std::fs::create_dir(&spool).expect("made");
    std::fs::write(&file, "").expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("ours");
    let give = |path: &Path, user| std::os::unix::fs::chown(path, Some(user), Some(user)).expect("root may");
    for foreign in [&file, &spool] {
        give(foreign, 65534);
        let mut command = Command::new(tests::program("sniffer"));
        let (status, _, errors) = run(command.args(["-i", "lo", "--spool", spool.to_str().expect("text")]));
        assert_eq!(status, 1);
        let said = format!("{} is not ours to write", foreign.display());
        assert!(errors.contains(&said) && errors.contains("chown -R 0 "), "{errors}");
        assert_eq!(std::fs::read_dir(&spool).expect("it is there").count(), 1, "nothing was made in it");
        give(foreign, 0);
    }
}

/// A copy of a program where anybody can run it.
fn copy_for_all(directory: &Path, name: &str) -> String {
    let path = directory.join(name);
    std::fs::copy(tests::program(name), &path).expect("copied");
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&path, open.clone()).expect("ours");
    std::fs::set_permissions(directory, open).expect("ours");
    path.to_str().expect("text").to_owned()
}

/// setpriv(1): as nobody, with no more than `rights`.
fn as_nobody(netns: &Netns, rights: &[&str], program: &str, arguments: &[&str]) -> Process {
    let mut command = netns.command("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).args(rights);
    Process::start(command.arg(program).args(arguments))
}

/// As a service of systemd with AmbientCapabilities=CAP_NET_RAW has it; and without, in plain words.
#[test]
fn nobody_with_one_right_captures() {
    let Some(bench) = Bench::new() else { return };
    let programs = tempfile::tempdir().expect("a directory");
    let program = copy_for_all(programs.path(), "sniffer");
    let spool = programs.path().join("spool");
    std::fs::create_dir(&spool).expect("made");
    std::os::unix::fs::chown(&spool, Some(65534), Some(65534)).expect("root may");
    let arguments = ["-i", "v1", "-f", "udp port 5000", "--spool", spool.to_str().expect("text")];
    let without = as_nobody(&bench.here, &[], &program, &arguments).wait();
    assert_eq!(without.code(), 1);
    assert!(without.stderr.contains("packet sockets need CAP_NET_RAW"), "{}", without.stderr);

    let _relay = bench.relay();
    let rights = ["--inh-caps", "+net_raw", "--ambient-caps", "+net_raw"];
    let mut sniffer = as_nobody(&bench.here, &rights, &program, &arguments);
    sniffer.await_line("confined: capabilities CAP_NET_RAW only");
    bench.await_streams(1, 0);
    assert_confined(&sniffer, NET_RAW, None, 3);
    // Not dumpable: /proc/PID is root's and not nobody's.
    let environment = std::fs::metadata(format!("/proc/{}/environ", sniffer.id())).expect("it runs");
    assert_eq!(environment.uid(), 0);
    let file = bench.path("out");
    let viewer = bench.viewer(&file, &[]);
    bench.await_streams(1, 1);
    bench.send(&bench.there, "v2", &[udp(1, 5000, b"by nobody")]);
    await_bytes(&file, b"by nobody");
    sniffer.signal("ABRT");
    let ended = sniffer.wait();
    assert_eq!((ended.status.signal(), ended.status.core_dumped()), (Some(6), false));
    drop(viewer);
}

#[test]
fn relay_and_viewer_need_no_right() {
    let Some(bench) = Bench::new() else { return };
    let programs = tempfile::tempdir().expect("a directory");
    let [relay, viewer] = ["relay", "viewer"].map(|name| copy_for_all(programs.path(), name));
    let none = ["--no-new-privs", "--bounding-set", "-all", "--inh-caps", "-all"];
    let mut relay = as_nobody(&bench.here, &none, &relay, &[]);
    relay.await_line("listening on");
    let sniffer = bench.sniffer("host", &["-i", "v1"]);
    bench.await_streams(1, 0);
    let output = programs.path().join("output");
    std::fs::create_dir(&output).expect("made");
    std::os::unix::fs::chown(&output, Some(65534), Some(65534)).expect("root may");
    let file = output.join("out");
    let arguments = ["-w", file.to_str().expect("text"), "--until-end"];
    let viewer = as_nobody(&bench.here, &none, &viewer, &arguments);
    bench.await_streams(1, 1);
    for process in [&relay, &viewer] {
        for thread in threads(process) {
            for set in ["CapEff", "CapPrm", "CapBnd"] {
                assert_eq!(thread[set], NOTHING, "{}: {set}", thread["Name"]);
            }
        }
    }
    let frame = tagged(&[], &ipv4(17, &[7; 40]));
    bench.send(&bench.there, "v2", &[frame, udp(1, 5000, b"without any right")]);
    await_bytes(&file, b"without any right");
    assert_eq!((sniffer.terminate().code(), viewer.wait().code()), (0, 0));
    assert_eq!(relay.terminate().code(), 0);
}
