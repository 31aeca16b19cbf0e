//! The admin port over real connections, with a program that says what a test has it say.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, Sender, channel};

use proptest::prelude::*;

use super::http::{REQUEST_BYTES_MAX, Request};
use super::server::CLIENTS_MAX;
use super::*;
use crate::metrics::table::relay;

/// Limit of all waits; only a hang reaches it.
const LIMIT: Duration = Duration::from_secs(60);

/// Says the same each time it is asked.
struct Fixed(Result<Picture, String>);

impl Subject for Fixed {
    fn look(&mut self) -> Result<Picture, String> {
        self.0.clone()
    }
}

/// Says when it is asked, and answers when it is told to.
struct Held(Sender<()>, Receiver<()>);

impl Subject for Held {
    fn look(&mut self) -> Result<Picture, String> {
        self.0.send(()).expect("the test waits");
        self.1.recv_timeout(LIMIT).map_err(|error| error.to_string())?;
        Ok(Picture::default())
    }
}

fn start(subject: impl Subject) -> SocketAddr {
    let admin = Admin::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("binds");
    let address = admin.address();
    admin.start("relay", "0.0", subject).expect("starts");
    address
}

fn connect(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).expect("connects");
    client.set_read_timeout(Some(LIMIT)).expect("sets");
    client
}

/// The whole answer to what was sent.
fn answer_of(mut client: TcpStream) -> String {
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer to the end");
    answer
}

fn ask(address: SocketAddr, request: &[u8]) -> String {
    let mut client = connect(address);
    client.write_all(request).expect("sends");
    answer_of(client)
}

fn get(address: SocketAddr, path: &str) -> (String, String) {
    let answer = ask(address, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    (head.lines().next().expect("a first line").to_owned(), body.to_owned())
}

#[test]
fn a_program_that_is_well_says_so_and_shows_its_figures() {
    let mut picture = Picture::default();
    picture.figures.count(relay::RECEIVED_PACKETS, ["web-1"], 7);
    let address = start(Fixed(Ok(picture)));
    for path in ["/metrics", "/metrics?x=y"] {
        let (status, body) = get(address, path);
        assert_eq!(status, "HTTP/1.1 200 OK");
        assert!(body.contains("\nringcast_relay_received_packets_total{sniffer=\"web-1\"} 7\n"), "{body}");
        assert!(body.contains("\nringcast_build_info{program=\"relay\",version=\"0.0\"} 1\n"), "{body}");
        #[cfg(target_os = "linux")]
        assert!(body.contains("\nprocess_resident_memory_bytes "), "{body}");
    }
    assert_eq!(get(address, "/healthz"), ("HTTP/1.1 200 OK".into(), "ok\n".into()));
    assert_eq!(get(address, "/readyz"), ("HTTP/1.1 200 OK".into(), "ready\n".into()));
}

#[test]
fn a_program_that_does_not_answer_is_not_well() {
    let address = start(Fixed(Err("worker 1: no answer within 2 s".to_owned())));
    for path in ["/metrics", "/healthz", "/readyz"] {
        let expected = ("HTTP/1.1 503 Service Unavailable".into(), "worker 1: no answer within 2 s\n".into());
        assert_eq!(get(address, path), expected, "{path}");
    }
}

#[test]
fn a_program_that_is_not_ready_says_why() {
    let unready = vec!["eth0: no such interface".to_owned(), "no relay".to_owned()];
    let address = start(Fixed(Ok(Picture { unready, ..Picture::default() })));
    let expected = "eth0: no such interface\nno relay\n";
    assert_eq!(get(address, "/readyz"), ("HTTP/1.1 503 Service Unavailable".into(), expected.into()));
    assert_eq!(get(address, "/healthz").1, "ok\n");
}

#[test]
fn a_program_of_which_a_thread_does_not_turn_is_not_well_and_shows_its_figures() {
    let unwell = vec!["thread capture-2: no sign of life for 12 s".to_owned()];
    let address = start(Fixed(Ok(Picture { unwell, ..Picture::default() })));
    let expected = "thread capture-2: no sign of life for 12 s\n";
    assert_eq!(get(address, "/healthz"), ("HTTP/1.1 503 Service Unavailable".into(), expected.into()));
    assert_eq!(get(address, "/metrics").0, "HTTP/1.1 200 OK");
    assert_eq!(get(address, "/readyz").1, "ready\n");
}

#[test]
fn bad_requests_are_refused_with_a_reason() {
    let address = start(Fixed(Ok(Picture::default())));
    for (request, status, text) in [
        ("GET / HTTP/1.1\r\n\r\n", "404 ", "ask for /metrics"),
        ("GET /metrics/ HTTP/1.1\r\n\r\n", "404 ", "ask for /metrics"),
        ("GET http://x/metrics HTTP/1.1\r\n\r\n", "404 ", "ask for /metrics"),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nabcde", "405 ", "only GET"),
        ("HEAD /healthz HTTP/1.1\r\n\r\n", "405 ", "only GET"),
        ("porridge\r\n\r\n", "400 ", "not HTTP/1.1"),
        ("GET /metrics HTTP/2.0\r\n\r\n", "400 ", "not HTTP/1.1"),
        ("\u{16}\u{3}\u{1}\u{2}", "400 ", "not HTTP/1.1"),
    ] {
        let answer = ask(address, request.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
        assert!(answer.contains(text) && answer.contains("\r\nConnection: close\r\n"), "{request}: {answer}");
        assert_eq!(answer.contains("\r\nAllow: GET\r\n"), status == "405 ");
    }
    let many: String = (0..100).map(|number| format!("A{number}: b\r\n")).collect();
    let answer = ask(address, format!("GET /metrics HTTP/1.1\r\n{many}\r\n").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let long = format!("GET /metrics HTTP/1.1\r\nA: {}", "b".repeat(REQUEST_BYTES_MAX));
    let answer = ask(address, long.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 431 ") && answer.contains("at most 8192 bytes"), "{answer}");
}

/// What comes after a request takes the answer from nobody, nor does the end of what a client has to say.
#[test]
fn a_client_that_sends_more_or_no_more_is_answered() {
    let address = start(Fixed(Ok(Picture::default())));
    let more = format!("GET /healthz HTTP/1.1\r\n\r\n{}", "x".repeat(20_000));
    assert!(ask(address, more.as_bytes()).ends_with("\r\n\r\nok\n"));
    let mut client = connect(address);
    client.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").expect("sends");
    client.shutdown(std::net::Shutdown::Write).expect("ends");
    assert!(answer_of(client).ends_with("\r\n\r\nok\n"));
}

#[test]
fn a_client_that_sends_a_byte_at_a_time_is_answered() {
    let address = start(Fixed(Ok(Picture::default())));
    let mut client = connect(address);
    client.set_nodelay(true).expect("sets");
    for byte in b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" {
        client.write_all(&[*byte]).expect("sends");
    }
    assert!(answer_of(client).ends_with("\r\n\r\nok\n"));
}

#[test]
fn silent_clients_lock_nobody_out() {
    let address = start(Fixed(Ok(Picture::default())));
    let mut silent: Vec<TcpStream> = (0..CLIENTS_MAX * 3).map(|_| connect(address)).collect();
    for client in &mut silent {
        let _ = client.write_all(b"GET /met"); // some are closed by now
    }
    assert_eq!(get(address, "/healthz").1, "ok\n");
    // The oldest have made room.
    for mut client in silent.drain(..CLIENTS_MAX * 2) {
        let ended = client.read(&mut [0; 1]);
        let is_end = |error: &io::Error| error.kind() == ErrorKind::ConnectionReset;
        assert!(matches!(ended, Ok(0)) || ended.as_ref().is_err_and(is_end), "{ended:?}");
    }
    assert_eq!(get(address, "/healthz").1, "ok\n");
}

#[test]
fn a_client_has_its_time_and_no_more() {
    let mut admin = Admin::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("binds");
    admin.client_time = Duration::from_millis(50);
    let address = admin.address();
    admin.start("relay", "0.0", Fixed(Ok(Picture::default()))).expect("starts");
    let mut slow = connect(address);
    slow.write_all(b"GET /metrics HTTP/1.1\r\n").expect("sends");
    assert!(matches!(slow.read(&mut [0; 1]), Ok(0)), "closed without an answer");
}

#[test]
fn one_look_answers_all_who_wait() {
    let (looks, looked) = channel();
    let (go_on, goes_on) = channel();
    let address = start(Held(looks, goes_on));
    let request = |path: &str| {
        let mut client = connect(address);
        write!(client, "GET {path} HTTP/1.1\r\n\r\n").expect("sends");
        client
    };
    let first = request("/healthz");
    looked.recv_timeout(LIMIT).expect("the program is asked");
    let others = ["/healthz", "/readyz", "/metrics"].map(request);
    go_on.send(()).expect("it waits");
    assert!(answer_of(first).ends_with("ok\n"));
    go_on.send(()).expect("it waits");
    for other in others {
        assert!(answer_of(other).starts_with("HTTP/1.1 200 OK\r\n"));
    }
    looked.recv_timeout(LIMIT).expect("it is asked once more");
    assert!(looked.try_recv().is_err(), "and not again");
}

#[test]
fn addresses_off_loopback_take_consent() {
    assert_eq!(parse_address("9441"), Ok(SocketAddr::from(([127, 0, 0, 1], 9441))));
    for (text, is_closed) in [
        ("127.0.0.1:1", true),
        ("127.9.9.9:1", true),
        ("[::1]:1", true),
        ("[::ffff:127.0.0.1]:1", true),
        ("0.0.0.0:1", false),
        ("[::]:1", false),
        ("192.0.2.1:1", false),
    ] {
        let address = parse_address(text).expect(text);
        assert!(check(address, true).is_ok());
        let checked = check(address, false);
        assert_eq!(checked.is_ok(), is_closed, "{text}");
        let Err(refusal) = checked else { continue };
        assert!(refusal.starts_with(&format!("--admin {text}: not a loopback address")), "{refusal}");
        assert!(refusal.ends_with("or write --insecure-admin"), "{refusal}");
    }
    for wrong in ["", "x", "localhost:1", "127.0.0.1", "65536", ":1", "127.0.0.1:65536"] {
        assert!(parse_address(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let first = Admin::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("binds");
    let error = Admin::bind(first.address()).expect_err("taken");
    assert_eq!(error.to_string(), format!("--admin {}", first.address()));
}

proptest! {
    #[test]
    fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..REQUEST_BYTES_MAX)) {
        let read = Request::read(&bytes);
        prop_assert!(!matches!(read, Request::Whole(_)), "{read:?}");
    }

    /// Requests that are nearly right: cut, and with a byte changed.
    #[test]
    fn near_requests_are_read(cut in 0_usize..80, at in 0_usize..80, byte in any::<u8>()) {
        let whole = b"GET /metrics HTTP/1.1\r\nHost: localhost:9441\r\nAccept: */*\r\n\r\n";
        let prefix = &whole[..cut.min(whole.len())];
        prop_assert_eq!(Request::read(prefix) == Request::Partial, prefix.len() < whole.len());
        let mut changed = prefix.to_vec();
        if let Some(one) = changed.get_mut(at) {
            *one = byte;
        }
        let _ = Request::read(&changed); // whatever it is, it is read
    }
}
