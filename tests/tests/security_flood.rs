//! Strangers by the thousand, garbage within TLS, and rights that change, all while a real capture
//! goes from a sniffer through a relay over TLS to a viewer: undisturbed and complete.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::live::{Bench, Pcapng, captured, eventually, eventually_within, number_before};
use tests::peer::{BINARY, TEXT, frame, hello, upgrade_request};
use tests::pki::{Leaf, Pki};
use tests::process::{Ended, Process, run};
use tests::samples::noise;
use tests::strangers::{flood, say};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use wire::log::FEW;
use wire::message::{Control, Role, SUBPROTOCOL};

const ADDRESS: (&str, u16) = ("10.9.0.1", 9440);
const URL: &str = "wss://10.9.0.1:9440";
/// Within this a right that has ended must have been enforced.
const CLOSED_WITHIN: Duration = Duration::from_secs(10);
/// What the relay's process may take beyond `--memory`: the programs itself, and allocators.
const MEMORY_MARGIN_KIB: u64 = 48 << 10;

/// A bench with a relay that listens off loopback, with TLS and tokens; its viewers are there.
struct Site {
    relay: Process,
    pki: Pki,
    bench: Bench,
    /// How many streams there are to be.
    streams: usize,
}

impl Site {
    fn new(arguments: &[&str]) -> Option<Self> {
        Self::with(|_| Vec::new(), arguments)
    }

    /// `prepare` adds to the credentials before the relay reads them, and says with which further
    /// arguments it does.
    fn with(prepare: impl FnOnce(&Pki) -> Vec<String>, arguments: &[&str]) -> Option<Self> {
        let bench = Bench::new()?;
        let pki = Pki::new(&[ADDRESS.0]);
        let mut all = vec!["--listen".to_owned(), format!("{}:{}", ADDRESS.0, ADDRESS.1)];
        all.extend(prepare(&pki));
        all.extend(pki.relay());
        all.extend(arguments.iter().map(|one| (*one).to_owned()));
        let relay = Bench::relay_in(&bench.here, &texts(&all));
        Some(Self { relay, pki, bench, streams: 1 })
    }

    fn sniffer(&self, token: &str, arguments: &[&str]) -> Process {
        let client = self.pki.client(token);
        let of_all = ["-i", "v1", "--relay", URL, "--filter", "udp dst port 5000"];
        self.bench.sniffer("web-1", &[&of_all[..], &texts(&client), arguments].concat())
    }

    fn viewer(&self, file: &Path, credentials: &[String], arguments: &[&str]) -> Process {
        let of_all = ["--until-end", "--relay", URL];
        Bench::viewer_in(&self.bench.there, file, &[&of_all[..], &texts(credentials), arguments].concat())
    }

    fn list(&self, token: &str) -> Vec<Value> {
        let client = self.pki.client(token);
        Bench::list(&self.bench.there, &[&["--relay", URL], &texts(&client)[..]].concat())
    }

    /// Waits until all streams are live, with so many viewers.
    fn await_viewers(&self, viewers: u64) {
        let client = self.pki.client("viewer.token");
        let arguments = [&["--relay", URL], &texts(&client)[..]].concat();
        Bench::await_streams_in(&self.bench.there, &arguments, self.streams, viewers);
    }

    /// Further addresses of who is there; the first number is the last byte.
    fn add_addresses(&self, numbers: std::ops::Range<u8>) -> Vec<String> {
        let addresses: Vec<String> = numbers.map(|number| format!("10.9.0.{number}")).collect();
        for address in &addresses {
            self.bench.there.ip(&["addr", "add", &format!("{address}/24"), "dev", "v2"]);
        }
        addresses
    }

    fn reload(&mut self, count: usize) {
        self.relay.signal("HUP");
        self.relay.await_lines("were read anew", count, tests::process::DEADLINE);
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.relay.id())).expect("it runs").count()
    }

    /// The most memory that the relay ever had, in KiB.
    fn peak_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.relay.id())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
        number_before(line, " kB")
    }
}

fn texts(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

/// Every packet is there once, and nothing was lost anywhere.
fn is_whole(sniffer: &Ended, viewer: &Ended, file: &Path, count: u64) {
    assert_eq!((sniffer.code(), viewer.code()), (0, 0), "{}\n{}", sniffer.stderr, viewer.stderr);
    assert!(viewer.stderr.contains(&format!("written {count}; missing none")), "{}", viewer.stderr);
    assert_eq!(captured(sniffer), (count, 0, count));
    let mut numbers = Pcapng::read(file).numbers();
    numbers.sort_unstable(); // there may be several rings
    assert_eq!(numbers, (0..count).collect::<Vec<_>>());
}

/// Nobody had to come back.
fn is_undisturbed(sniffer: &Ended, viewer: &Ended) {
    assert!(!viewer.stderr.contains("connection lost"), "{}", viewer.stderr);
    assert!(!sniffer.stderr.contains("trying again"), "{}", sniffer.stderr);
}

/// A capture goes on, complete, while strangers from these addresses (their last byte) use up all
/// that strangers can.
fn strangers_do_not_disturb(from: std::ops::Range<u8>, workers: usize) {
    const COUNT: u64 = 60_000;
    // An eighth of it is for strangers: for 128 or for 512.
    let memory_mib = if workers == 1 { 64 } else { 256 };
    let memory = format!("{memory_mib}MiB");
    let arguments = ["--workers", &workers.to_string(), "--memory", &memory, "--viewer-queue", "8MiB"];
    let Some(mut site) = Site::new(&arguments) else { return };
    site.streams = workers;
    let sources = site.add_addresses(from);
    let cores = if workers == 1 { &[][..] } else { &["--cores", "0,1", "--fanout", "hash"] };
    let sniffer = site.sniffer("sniffer.token", cores);
    let file = site.bench.path("out.pcapng");
    let viewer = site.viewer(&file, &site.pki.client("viewer.token"), &[]);
    site.await_viewers(1);
    let before = site.descriptors();

    let mut strangers = flood(&site.bench.there, ADDRESS, 1000, 500, &sources);
    strangers.await_line("under way");
    let sender = site.bench.send_numbered(0, COUNT, 30);
    // Somebody else comes while it is at its worst, several times.
    let mut slowest = Duration::ZERO;
    for _ in 0..10 {
        let began = Instant::now();
        assert_eq!(site.list("viewer.token").len(), workers, "not let in");
        slowest = slowest.max(began.elapsed());
    }
    assert!(slowest < Duration::from_secs(5), "let in after {slowest:?}");
    assert_eq!(sender.wait().code(), 0);
    let held = site.descriptors();
    assert!(held > before + 30, "no strangers: {held} descriptors, {before} before");
    let dropped = site.bench.here.command("nstat").args(["-asz", "TcpExtListenOverflows"]).output();
    let dropped = String::from_utf8(dropped.expect("nstat runs").stdout).expect("text");
    let dropped = dropped.split_whitespace().skip_while(|word| *word != "TcpExtListenOverflows").nth(1);
    assert_eq!(dropped, Some("0"), "the kernel had no room for some who came");
    // Nobody refills any more, nobody closes either: the relay lets go of them all.
    strangers.signal("USR1");
    eventually_within(Duration::from_secs(30), "strangers gone", || match site.descriptors() {
        now if now <= before => Ok(()),
        now => Err(format!("{now} descriptors, {before} before")),
    });
    let strangers = strangers.terminate();
    let opened = number_before(&strangers.stderr, " opened");
    let shaken = number_before(&strangers.stderr, " shook hands");
    assert!(opened > 2000 && shaken > 100, "{}", strangers.stderr);

    let sniffer = sniffer.terminate();
    let viewer = viewer.wait();
    is_whole(&sniffer, &viewer, &file, COUNT);
    is_undisturbed(&sniffer, &viewer);
    let peak = site.peak_kib();
    eprintln!("{opened} strangers: peak {peak} KiB, {held} descriptors, slowest newcomer {slowest:?}");
    assert!(peak < (memory_mib << 10) + MEMORY_MARGIN_KIB, "{peak} KiB");
    let relay = site.relay.terminate();
    assert!(!relay.stderr.contains(" panicked"), "{}", relay.stderr);
    let evicted = relay.stderr.lines().filter(|line| line.contains("pushed out before"));
    let evicted: u64 = evicted.map(|line| number_before(line, " connections pushed out")).sum();
    assert!(evicted > 500, "{}", relay.stderr);
}

#[test]
fn a_thousand_strangers_of_one_address_do_not_disturb() {
    strangers_do_not_disturb(10..11, 1);
}

#[test]
fn a_thousand_strangers_of_many_addresses_do_not_disturb() {
    strangers_do_not_disturb(10..30, 2);
}

#[test]
fn connections_of_an_address_are_bounded_and_those_inside_go_on() {
    let arguments = ["--connections-per-address", "6"];
    is_bounded(&arguments, 5, "over --connections-per-address 6 from its address");
}

#[test]
fn connections_in_all_are_bounded_and_those_inside_go_on() {
    is_bounded(&["--connections", "16"], 14, "over --connections 16");
}

/// Beside a sniffer and a viewer there is room for so many viewers, and the next one is refused.
fn is_bounded(arguments: &[&str], room: usize, text: &str) {
    const COUNT: u64 = 20_000;
    let Some(mut site) = Site::new(arguments) else {
        return;
    };
    let sources = site.add_addresses(10..20);
    let sniffer = site.sniffer("sniffer.token", &[]);
    let file = site.bench.path("out.pcapng");
    let viewer = site.viewer(&file, &site.pki.client("viewer.token"), &[]);
    site.await_viewers(1);
    let sender = site.bench.send_numbered(0, COUNT, 30);

    // Strangers are in nobody's way: the oldest makes room.
    let mut strangers = flood(&site.bench.there, ADDRESS, 100, 100, &sources);
    strangers.await_line("under way");
    assert_eq!(site.list("viewer.token").len(), 1, "not let in");
    strangers.terminate();

    // Those that belong are counted, and stay.
    let token = site.pki.client("viewer.token");
    let further = |site: &Site, number: usize| {
        let path = site.bench.path(&format!("further-{number}.pcapng"));
        site.viewer(&path, &token, &["--interface", "none"])
    };
    let inside: Vec<Process> = (0..room).map(|number| further(&site, number)).collect();
    site.relay.await_lines("subscription begins", 1 + room, tests::process::DEADLINE);
    eventually("a refusal", || {
        assert_eq!(site.list("viewer.token").len(), 0, "let in");
        if site.relay.said().contains(text) { Ok(()) } else { Err(site.relay.said()) }
    });
    assert_eq!(sender.wait().code(), 0);
    drop(inside);
    let sniffer = sniffer.terminate();
    let viewer = viewer.wait();
    is_whole(&sniffer, &viewer, &file, COUNT);
    is_undisturbed(&sniffer, &viewer);
}

#[test]
fn a_reload_during_a_capture_drops_the_revoked_alone() {
    const COUNT: u64 = 60_000;
    let prepare = |pki: &Pki| {
        pki.add("goes", &["--role", "subscribe"]);
        Vec::new()
    };
    let Some(mut site) = Site::with(prepare, &["--workers", "2"]) else { return };
    let sniffer = site.sniffer("sniffer.token", &[]);
    let file = site.bench.path("out.pcapng");
    let stays = site.viewer(&file, &site.pki.client("viewer.token"), &[]);
    let mut goes = site.viewer(&site.bench.path("goes.pcapng"), &site.pki.client("goes.token"), &[]);
    site.await_viewers(2);
    let mut sender = site.bench.send_numbered(0, COUNT, 30);
    sender.await_line("under way");
    let mut renew = Command::new(tests::program("relay"));
    let (code, _, stderr) = run(renew.arg("init").arg(site.pki.path("")).arg("--renew"));
    assert_eq!(code, 0, "{stderr}");
    site.pki.revoke("goes");
    site.reload(1);
    goes.await_lines("access of goes ended: revoked", 1, CLOSED_WITHIN);
    // And some more times, for nothing.
    for count in 2..6 {
        site.reload(count);
    }
    assert!(sender.is_running(), "the capture was over before the reload was");
    assert_eq!(sender.wait().code(), 0);
    site.await_viewers(1);
    let sniffer = sniffer.terminate();
    let stays = stays.wait();
    is_whole(&sniffer, &stays, &file, COUNT);
    is_undisturbed(&sniffer, &stays);
}

#[test]
fn what_expires_under_way_is_closed() {
    const COUNT: u64 = 60_000;
    let mut end = OffsetDateTime::UNIX_EPOCH;
    let prepare = |pki: &Pki| {
        let now = OffsetDateTime::now_utc().replace_nanosecond(0).expect("a time");
        end = now + time::Duration::seconds(8);
        let text = end.format(&Rfc3339).expect("a time");
        pki.add("short", &["--role", "subscribe", "--expires", &text]);
        let mut add = pki.token_command("add");
        add.args(["desk", "--role", "subscribe", "--certificate", "desk.example"]);
        assert_eq!(run(&mut add).0, 0);
        let leaf = Leaf { names: &["desk.example"], is_client: true, days_left: 0 };
        leaf.write_until(end, &pki.issuer(), &pki.path("desk.pem"), &pki.path("desk-key.pem"));
        vec!["--client-ca".to_owned(), pki.text("ca.pem")]
    };
    let Some(mut site) = Site::with(prepare, &[]) else { return };

    let sniffer = site.sniffer("sniffer.token", &[]);
    let file = site.bench.path("out.pcapng");
    let stays = site.viewer(&file, &site.pki.client("viewer.token"), &[]);
    let mut short = site.viewer(&site.bench.path("short.pcapng"), &site.pki.client("short.token"), &[]);
    let certificate = ["--ca", "ca.pem", "--cert", "desk.pem", "--key", "desk-key.pem"]
        .map(|one| if one.starts_with("--") { one.to_owned() } else { site.pki.text(one) });
    let mut desk = site.viewer(&site.bench.path("desk.pcapng"), &certificate, &[]);
    site.await_viewers(3);
    let sender = site.bench.send_numbered(0, COUNT, 30);
    let left = end - OffsetDateTime::now_utc();
    assert!(left.is_positive(), "they were let in only when it was over");
    let left = Duration::try_from(left).expect("positive");
    short.await_lines("access of short ended: expired", 1, left + CLOSED_WITHIN);
    desk.await_lines("access of desk ended: expired", 1, left + CLOSED_WITHIN);
    assert!(OffsetDateTime::now_utc() >= end, "closed before the end");
    assert!(OffsetDateTime::now_utc() <= end + CLOSED_WITHIN, "closed too late");
    // They try again, and do not come in.
    site.relay.await_line("access denied: token: expired");
    site.relay.await_line("the client's certificate expired");
    site.await_viewers(1);
    drop((short, desk));
    assert_eq!(sender.wait().code(), 0);
    let sniffer = sniffer.terminate();
    let stays = stays.wait();
    is_whole(&sniffer, &stays, &file, COUNT);
    is_undisturbed(&sniffer, &stays);
    site.relay.await_lines("access of desk ended", 1, CLOSED_WITHIN);
}

#[test]
fn a_sniffers_token_is_replaced_and_nothing_is_lost() {
    const COUNT: u64 = 60_000;
    let prepare = |pki: &Pki| {
        pki.add("web-1", &["--role", "publish"]);
        Vec::new()
    };
    let Some(mut site) = Site::with(prepare, &[]) else { return };
    let mut sniffer = site.sniffer("web-1.token", &[]);
    let file = site.bench.path("out.pcapng");
    let viewer = site.viewer(&file, &site.pki.client("viewer.token"), &[]);
    site.await_viewers(1);
    let mut sender = site.bench.send_numbered(0, COUNT, 30);
    sender.await_line("under way");
    // Its entry gets another token; the sniffer learns it first, then the relay.
    site.pki.revoke("web-1");
    fs::remove_file(site.pki.path("web-1.token")).expect("the old token");
    site.pki.add("web-1", &["--role", "publish"]);
    sniffer.signal("HUP");
    sniffer.await_line("were read anew");
    site.reload(1);
    sniffer.await_lines("access of web-1 ended", 1, CLOSED_WITHIN);
    sniffer.await_lines(": connected", 2, CLOSED_WITHIN);
    assert!(sender.is_running(), "all was sent before the token was replaced");
    assert_eq!(sender.wait().code(), 0);
    let sniffer = sniffer.terminate();
    is_whole(&sniffer, &viewer.wait(), &file, COUNT);
}

/// Within good TLS: garbage, mutated and oversized messages, before and after the WebSocket.
#[test]
fn garbage_within_tls_closes_itself_alone() {
    const COUNT: u64 = 20_000;
    let Some(mut site) = Site::new(&["--workers", "2"]) else { return };
    let sources = site.add_addresses(10..12);
    let sniffer = site.sniffer("sniffer.token", &[]);
    let file = site.bench.path("out.pcapng");
    let viewer = site.viewer(&file, &site.pki.client("viewer.token"), &[]);
    site.await_viewers(1);
    let sender = site.bench.send_numbered(0, COUNT, 30);

    let upgrade = upgrade_request(SUBPROTOCOL).into_bytes();
    let behind = |bytes: &[u8]| [&upgrade[..], bytes].concat();
    let hello = hello(Role::Subscribe, "", 0).to_json();
    let pings: Vec<u8> = (0..2000u16).flat_map(|n| frame(9, &n.to_be_bytes(), true)).collect();
    let beyond = [&br#"{"type":"hello","name":""#[..], &vec![b'a'; 70_000], b"\"}"].concat();
    let long_header = format!("GET / HTTP/1.1\r\nHost: relay\r\nX-Long: {}\r\n\r\n", "a".repeat(20_000));
    let cases: Vec<(&str, Vec<u8>, &str, &str)> = vec![
        ("noise for HTTP", [&noise(1, 600)[..], b"\r\n\r\n"].concat(), "HTTP/1.1 400", "not HTTP"),
        ("another method", b"POST / HTTP/1.1\r\nHost: relay\r\n\r\n".to_vec(), "HTTP/1.1 405", "not a GET"),
        ("a long header", long_header.into_bytes(), "over 8192 bytes", "over 8192 bytes"),
        (
            "another subprotocol",
            upgrade_request("other.1").into_bytes(),
            "HTTP/1.1 400",
            "subprotocol other.1",
        ),
        ("noise for frames", behind(&noise(2, 600)), "websocket: ", "websocket: "),
        ("a frame without mask", behind(&frame(TEXT, &hello, false)), "not masked", "not masked"),
        ("a reserved opcode", behind(&frame(5, b"x", true)), "invalid opcode", "invalid opcode"),
        (
            "a huge length",
            behind(&[0x81, 0xff, 0x7f, 255, 255, 255, 255, 255, 255, 255, 1, 2, 3, 4]),
            "at most 65536",
            "at most 65536",
        ),
        (
            "a block before the hello",
            behind(&frame(BINARY, &[0; 200], true)),
            "no binary message",
            "no binary message",
        ),
        (
            "an oversized hello",
            behind(&frame(TEXT, &beyond, true)),
            "message of 70026 bytes",
            "message of 70026 bytes",
        ),
        ("no JSON", behind(&frame(TEXT, b"{\"type\":", true)), "control message", "control message"),
        ("no UTF-8", behind(&frame(TEXT, &[0xff; 20], true)), "not UTF-8", "not UTF-8"),
        (
            "a list before the hello",
            behind(&frame(TEXT, &Control::List.to_json(), true)),
            "not a hello",
            "not a hello",
        ),
        ("no token", behind(&frame(TEXT, &hello, true)), "access denied", "neither token nor certificate"),
        ("pings before the hello", behind(&pings), "no hello within 10 s", "no hello within 10 s"),
    ];
    for (number, (what, bytes, told, logged)) in cases.iter().enumerate() {
        let answer = say(&site.bench.there, ADDRESS, &sources[0], bytes);
        let answer = String::from_utf8_lossy(&answer);
        eprintln!("{what}: {}", answer.escape_debug());
        assert!(answer.contains(told), "{what}: no {told:?} in {answer}");
        // Of the lines of strangers the first few are written; of those who cannot prove themselves, too.
        if number + 1 < FEW as usize || *told == "access denied" {
            site.relay.await_line(logged);
        }
    }
    // Good messages with a bit turned, one in each of a hundred.
    let good = behind(&frame(TEXT, &hello, true));
    for number in 0..100 {
        let mut bytes = good.clone();
        let at = (number * 7919) % (bytes.len() * 8);
        bytes[at / 8] ^= 1 << (at % 8);
        bytes.extend(frame(8, &[3, 232], true));
        say(&site.bench.there, ADDRESS, &sources[1], &bytes);
    }
    assert_eq!(sender.wait().code(), 0);
    let sniffer = sniffer.terminate();
    let viewer = viewer.wait();
    is_whole(&sniffer, &viewer, &file, COUNT);
    is_undisturbed(&sniffer, &viewer);
    assert_eq!(site.relay.terminate().code(), 0);
}
