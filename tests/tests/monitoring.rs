//! The admin port of the relay, and what is made of metrics: documentation, alerts, dashboard.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tests::admin::{get, has_promtool, promtool, scrape, sum, value};
use tests::live::eventually;
use tests::peer::RawPeer;
use tests::pki::Pki;
use tests::process::{DEADLINE, Process, free_port, relay, run};
use tests::program;
use tests::samples::noise;
use tests::transfer::Transfer;
use wire::message::Role;
use wire::metrics::{self, table};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../monitoring").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap_or_else(|error| panic!("monitoring/{name}: {error}"))
}

/// A relay with an admin port: the process, its URL, that port.
fn watched_relay(arguments: &[&str]) -> (Process, String, u16) {
    let port = free_port();
    let (relay, url) = relay(&[&["--admin", &port.to_string()], arguments].concat());
    (relay, url, port)
}

/// Words of a text that look like metrics of ours.
fn names_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|one: char| !(one.is_ascii_alphanumeric() || one == '_'));
    words.filter(|word| word.starts_with("ringcast_") || word.starts_with("process_")).collect()
}

fn names_in_table() -> BTreeSet<&'static str> {
    table::PARTS.iter().flat_map(|(_, part)| *part).map(|about| about.name).collect()
}

#[test]
fn the_documentation_is_what_the_table_has() {
    let made = metrics::markdown();
    if std::env::var_os("RINGCAST_UPDATE").is_some() {
        std::fs::write(file("METRICS.md"), &made).expect("written");
    }
    let kept = std::fs::read_to_string(file("METRICS.md")).unwrap_or_default();
    assert!(
        made == kept,
        "monitoring/METRICS.md is not what wire::metrics has: RINGCAST_UPDATE=1 cargo test -p tests --test monitoring"
    );
}

#[test]
fn alerts_and_dashboard_name_what_there_is() {
    let there = names_in_table();
    for name in ["alerts.yml", "alerts_test.yml", "grafana.json"] {
        let text = read(name);
        let named = names_in(&text);
        assert!(named.len() > 10, "{name}: {named:?}");
        assert!(named.is_subset(&there), "{name}: {:?}", named.difference(&there).collect::<Vec<_>>());
    }
    let (alerts, cases) = (read("alerts.yml"), read("alerts_test.yml"));
    for alert in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        let silent = format!("alertname: {alert}, eval_time: 25m, exp_alerts: []");
        let fires = format!("- alertname: {alert}\n");
        assert!(cases.contains(&silent) && cases.contains(&fires), "{alert} is not tested both ways");
    }
}

/// As far as it can be told without a Grafana: panels have numbers, places and queries of their own.
#[test]
fn the_dashboard_is_whole() {
    let dashboard: serde_json::Value = serde_json::from_str(&read("grafana.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().expect("a number")), "{panel}");
        let place = ["x", "y", "w", "h"].map(|of| panel["gridPos"][of].as_u64().expect("a place"));
        assert!(place[0] + place[2] <= 24, "{panel}");
        let cells = (place[0]..place[0] + place[2])
            .flat_map(|x| (place[1]..place[1] + place[3]).map(move |y| (x, y)));
        cells.for_each(|cell| assert!(places.insert(cell), "one lies over another: {panel}"));
        if panel["type"] == "row" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}");
        for target in panel["targets"].as_array().expect("queries") {
            let query = target["expr"].as_str().expect("a query");
            assert!(query.contains("instance=~\"$instance\""), "{query}");
        }
    }
}

#[test]
fn promtool_takes_the_rules_and_sees_them_fire() {
    if !has_promtool() {
        return;
    }
    let path = |name: &str| file(name).to_str().expect("text").to_owned();
    promtool(&["check", "rules", &path("alerts.yml")], "").unwrap_or_else(|said| panic!("{said}"));
    promtool(&["test", "rules", &path("alerts_test.yml")], "").unwrap_or_else(|said| panic!("{said}"));
}

/// A transfer to one viewer through the relay: what came in is what went out.
fn figures_add_up(workers: &str) {
    let (relay, url, port) = watched_relay(&["--workers", workers]);
    assert_eq!(get(port, "/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(get(port, "/readyz"), (200, "ready\n".to_owned()));
    let folder = tempfile::tempdir().expect("a folder");
    let mut transfer = Transfer::start(&url, folder.path());
    let packets: Vec<Vec<u8>> = (0..500).map(|number| noise(number, 100)).collect();
    transfer.goes_on(&packets);

    // All of it is in the viewer's file; the relay may hear of that a moment later.
    let text = eventually("the viewer has all", || {
        let text = scrape(port);
        match sum(&text, "ringcast_relay_viewer_lag_seconds") {
            0.0 if text.contains("ringcast_relay_viewer_lag_seconds{viewer=\"anyone\"") => Ok(text),
            _ => Err(text),
        }
    });
    let of = |series: &str| value(&text, series).unwrap_or_else(|| panic!("{series}: {text}"));
    let fed = packets.len() as f64 + 1.0; // and the one that it waited for
    assert_eq!(of("ringcast_relay_received_packets_total{sniffer=\"good\"}"), fed, "{text}");
    assert_eq!(of("ringcast_relay_sent_packets_total"), fed);
    assert_eq!(sum(&text, "ringcast_relay_viewer_sent_packets_total"), fed);
    assert_eq!(sum(&text, "ringcast_relay_viewer_queue_bytes"), 0.0);
    assert_eq!(sum(&text, "ringcast_relay_skipped_packets_total"), 0.0);
    eventually("nothing is kept, for nobody is away", || match scrape(port) {
        text if sum(&text, "ringcast_relay_recent_bytes") > 0.0 => Err(text),
        _ => Ok(()),
    });
    assert_eq!(of("ringcast_relay_connections{role=\"sniffer\"}"), 1.0);
    assert_eq!(of("ringcast_relay_connections{role=\"viewer\"}"), 1.0);
    assert_eq!(of("ringcast_relay_streams{state=\"live\"}"), 1.0);
    assert_eq!(of("ringcast_relay_workers").to_string(), workers);
    assert!(of("ringcast_relay_memory_used_bytes") > 0.0);
    let build = format!("ringcast_build_info{{program=\"relay\",version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    assert_eq!(of(&build), 1.0);

    // Names, kinds and texts are those of the table, and as Prometheus wants them.
    let described = text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next());
    assert!(described.collect::<BTreeSet<_>>().is_subset(&names_in_table()));
    if has_promtool() {
        promtool(&["check", "metrics"], &text).unwrap_or_else(|said| panic!("{said}"));
    }

    transfer.finish();
    // What has left still counts.
    let text = eventually("both have left", || {
        let text = scrape(port);
        match sum(&text, "ringcast_relay_connections") {
            0.0 => Ok(text),
            _ => Err(text),
        }
    });
    assert_eq!(value(&text, "ringcast_relay_received_packets_total{sniffer=\"good\"}"), Some(fed));
    assert_eq!(sum(&text, "ringcast_relay_viewer_sent_packets_total"), 0.0, "no series of who is gone");
    assert_eq!(relay.terminate().code(), 0);
}

#[test]
fn figures_of_one_worker_add_up() {
    figures_add_up("1");
}

#[test]
fn figures_of_several_workers_add_up() {
    figures_add_up("3");
}

#[test]
fn what_comes_is_kept_for_a_viewer_that_was_killed_and_not_for_one_that_is_done() {
    let (_relay, url, port) = watched_relay(&[]);
    let folder = tempfile::tempdir().expect("a folder");
    let mut transfer = Transfer::start(&url, folder.path());
    let packets: Vec<Vec<u8>> = (0..20).map(|number| noise(number, 100)).collect();
    transfer.goes_on(&packets);
    let kept = |text: &str| sum(text, "ringcast_relay_recent_bytes");
    let await_viewers = |count: u64| {
        eventually("a viewer has come or gone", || {
            let (_, list, _) =
                run(Command::new(program("viewer")).args(["--relay", &url, "--list", "--json"]));
            let list: serde_json::Value = serde_json::from_slice(&list).map_err(|error| error.to_string())?;
            if list[0]["viewers"] == count { Ok(()) } else { Err(list.to_string()) }
        });
    };
    let other = || {
        let mut viewer = Command::new(program("viewer"));
        viewer.args(["--relay", &url, "-w"]).arg(folder.path().join("other"));
        Process::start(&mut viewer)
    };
    let done = other();
    await_viewers(2);
    transfer.goes_on(&packets);
    assert_eq!(done.terminate().code(), 0);
    await_viewers(1);
    transfer.goes_on(&packets);
    eventually("nothing is kept for it", || match scrape(port) {
        text if kept(&text) > 0.0 => Err(text),
        _ => Ok(()),
    });
    let killed = other();
    await_viewers(2);
    killed.kill();
    await_viewers(1);
    transfer.goes_on(&packets);
    assert!(kept(&scrape(port)) > 0.0, "it may come back");
    transfer.finish();
}

#[test]
fn those_who_do_not_get_in_are_counted() {
    let pki = Pki::new(&["localhost"]);
    let (_relay, url, port) = watched_relay(&["--tokens", &pki.text("tokens.toml")]);
    let refused = |role| {
        let mut peer = RawPeer::open(&url);
        peer.control(&tests::peer::hello(role, "x", 1));
        peer.read_to_end()
    };
    refused(Role::Publish);
    refused(Role::Subscribe);
    let mut garbage = RawPeer::connect(&url);
    garbage.send(b"porridge\r\n\r\n");
    garbage.read_to_end();
    let expected = [
        ("ringcast_relay_authentication_failures_total", 2.0),
        ("ringcast_relay_handshake_failures_total{stage=\"http\"}", 1.0),
        // The harness has looked whether the port is there, and said nothing.
        ("ringcast_relay_handshake_failures_total{stage=\"hello\"}", 1.0),
        ("ringcast_relay_handshake_failures_total{stage=\"tls\"}", 0.0),
        ("ringcast_relay_connections{role=\"stranger\"}", 0.0),
    ];
    eventually("the failures are counted", || {
        let text = scrape(port);
        let found = expected.map(|(series, _)| (series, value(&text, series).unwrap_or(f64::NAN)));
        if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

/// Sends something to a port of loopback, and takes whatever comes until the other end closes.
fn say(port: u16, bytes: &[u8]) {
    let mut client = TcpStream::connect(("127.0.0.1", port)).expect("the port is there");
    client.set_read_timeout(Some(DEADLINE)).expect("sets");
    let _ = client.write_all(bytes);
    let _ = client.read_to_end(&mut Vec::new());
}

/// Those who ask much of the admin port, or nonsense, do not disturb those who capture.
#[test]
fn what_hammers_the_admin_port_disturbs_nobody() {
    let (relay, url, port) = watched_relay(&["--workers", "2"]);
    let folder = tempfile::tempdir().expect("a folder");
    let mut transfer = Transfer::start(&url, folder.path());
    transfer.goes_on(&[noise(1, 100)]);
    let hammers: Vec<_> = (0..4_u64)
        .map(|number| {
            std::thread::spawn(move || {
                for round in 0..50 {
                    let path = ["/metrics", "/healthz", "/readyz"][(number + round) as usize % 3];
                    let request = format!("GET {path} HTTP/1.1\r\n\r\n");
                    // More at a time than there is room for: whoever is pushed out has no answer.
                    say(port, request.as_bytes());
                    say(port, &noise(number * 1000 + round, 9000));
                }
            })
        })
        .collect();
    for round in 0..20 {
        transfer.goes_on(&[noise(5000 + round, 1000)]);
    }
    for hammer in hammers {
        hammer.join().expect("no panic");
    }
    transfer.goes_on(&[noise(2, 100)]);
    transfer.finish();
    assert_eq!(get(port, "/healthz").0, 200);
    assert_eq!(relay.terminate().code(), 0);
}

/// Holds one thread of a process as a debugger does, until its input ends.
const HOLD: &str = r"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
ATTACH, DETACH, WALL = 16, 17, 0x40000000
process, name = sys.argv[1:]
tasks = f'/proc/{process}/task'
thread = next(int(one) for one in os.listdir(tasks) if open(f'{tasks}/{one}/comm').read().strip() == name)
if libc.ptrace(ATTACH, thread, None, None) != 0:
    sys.exit(f'ptrace: {os.strerror(ctypes.get_errno())}')
os.waitpid(thread, WALL)
print('held', flush=True)
sys.stdin.read()
libc.ptrace(DETACH, thread, None, None)
";

#[test]
fn a_worker_that_hangs_is_told() {
    // Nothing but root may hold a thread of a process that protects itself.
    let is_root =
        std::fs::metadata("/proc/self").is_ok_and(|of| std::os::unix::fs::MetadataExt::uid(&of) == 0);
    if !is_root && tests::skip("holding a thread of the relay needs root") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("binds");
    socket.set_read_timeout(Some(DEADLINE)).expect("sets");
    let told = || {
        let mut bytes = [0; 256];
        socket.recv(&mut bytes).map(|length| String::from_utf8_lossy(&bytes[..length]).into_owned())
    };
    let (listen, port) = (free_port(), free_port());
    let mut command = Command::new(program("relay"));
    command.args([
        "--workers",
        "2",
        "--listen",
        &format!("127.0.0.1:{listen}"),
        "--admin",
        &port.to_string(),
    ]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000000");
    let relay = Process::start(&mut command);
    assert_eq!(told().expect("it is told").trim(), "READY=1");
    assert_eq!(told().expect("it is told").trim(), "WATCHDOG=1");
    assert_eq!(get(port, "/healthz"), (200, "ok\n".to_owned()));

    let mut holding = Command::new("python3");
    holding.args(["-c", HOLD, &relay.id().to_string(), "worker-1"]).stdout(Stdio::piped());
    let (mut holder, stdin) = Process::start_piped(&mut holding);
    let mut line = String::new();
    BufReader::new(holder.stdout()).read_line(&mut line).expect("it says something");
    assert_eq!(line, "held\n");
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(get(port, path), (503, "worker 1: no answer within 2 s\n".to_owned()), "{path}");
        // By the end of the first wait the heart has noticed, too. While we wait again it would beat.
        if path == "/healthz" {
            socket.set_nonblocking(true).expect("sets");
            while told().is_ok() {}
        }
    }
    assert!(told().is_err(), "the heart beats although a worker hangs");
    socket.set_nonblocking(false).expect("sets");

    drop(stdin);
    assert_eq!(holder.wait().code(), 0);
    assert_eq!(told().expect("it is told again").trim(), "WATCHDOG=1");
    eventually("all is well again", || match get(port, "/healthz") {
        (200, _) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(relay.terminate().code(), 0);
}

#[test]
fn a_port_that_cannot_be_had_is_named() {
    let (_relay, _, port) = watched_relay(&[]);
    let listen = format!("127.0.0.1:{}", free_port());
    let start = |arguments: &[&str]| {
        let mut command = Command::new(program("relay"));
        run(command.args(["--listen", &listen]).args(arguments))
    };
    let (code, _, stderr) = start(&["--admin", &port.to_string()]);
    assert_eq!(code, 1);
    assert!(stderr.contains(&format!("relay: --admin 127.0.0.1:{port}: Address already in use")), "{stderr}");
    let (code, _, stderr) = start(&["--admin", "0.0.0.0:1", "--insecure"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("relay: --admin 0.0.0.0:1: not a loopback address"), "{stderr}");
}
