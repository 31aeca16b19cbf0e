//! TLS over real sockets, on a real poll: an end is served when an event says so, or when it says
//! itself that it is ready, and never otherwise.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream as StdStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mio::{Events, Interest, Poll, Token};
use rustls::version::{TLS12, TLS13};
use rustls::{HandshakeKind, ProtocolVersion};
use socket2::SockRef;

use super::super::{Connection, ReadShare, Received, RelayUrl, copy_masked};
use super::*;
use crate::clock::wall_ns;
use crate::masked::Payload;
use crate::message::{Control, ENVELOPE_BYTES, Envelope};
use crate::pool::Pool;
use crate::tls::test_pki::Authority;

/// Far longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(20);
const URL: &str = "wss://relay.test:1";

/// One end, and what it has seen.
struct End {
    connection: Option<Connection>,
    to_send: Vec<Payload>,
    received: Vec<Bytes>,
    control: Vec<String>,
    is_open: bool,
    errors: Vec<String>,
}

impl End {
    fn new(connection: Connection) -> Self {
        let connection = Some(connection);
        Self {
            connection,
            to_send: Vec::new(),
            received: Vec::new(),
            control: Vec::new(),
            is_open: false,
            errors: Vec::new(),
        }
    }

    /// Like the programs do it: reads, feeds, sends; after an error an end that closes goes on until
    /// that is done.
    fn serve(&mut self, now: Instant, pool: &Pool) {
        let Some(connection) = &mut self.connection else { return };
        let mut share = ReadShare::default();
        let result = (|| -> Result<(), ConnectionError> {
            while let Some(received) = connection.receive(now, pool, &mut share)? {
                match received {
                    Received::Open => {
                        connection.trust(true);
                        self.is_open = true;
                    }
                    Received::Control(json) => self.control.push(String::from_utf8_lossy(&json).into_owned()),
                    Received::Data(data) => self.received.push(data.slice(ENVELOPE_BYTES..)),
                }
            }
            loop {
                while connection.wants_data() && !self.to_send.is_empty() {
                    connection.queue_data(Envelope::default(), self.to_send.remove(0));
                }
                connection.drive(now)?;
                if self.to_send.is_empty() || !connection.wants_data() {
                    return Ok(());
                }
            }
        })();
        if let Err(error) = result {
            self.errors.push(error.to_string());
            if !connection.is_closing() || self.errors.len() > 1 || connection.drive(now).is_err() {
                self.connection = None;
            }
        }
    }
}

/// A client's end and a server's, on one poll.
struct Pair {
    poll: Poll,
    pool: Pool,
    ends: [End; 2],
}

impl Pair {
    fn new(url: &str, client: Option<&ClientTls>, server: Option<&ServerTls>) -> Self {
        let (theirs, ours) = sockets();
        let now = Instant::now();
        let url = RelayUrl::parse(url).expect("a url");
        let client = Connection::client(TcpStream::from_std(theirs), &url, client, now).expect("a client");
        let server = Connection::server(TcpStream::from_std(ours), server, now).expect("a server");
        let poll = Poll::new().expect("a poll");
        let mut ends = [End::new(client), End::new(server)];
        for (index, end) in ends.iter_mut().enumerate() {
            let both = Interest::READABLE | Interest::WRITABLE;
            let stream = end.connection.as_mut().expect("there").stream_mut();
            poll.registry().register(stream, Token(index), both).expect("registers");
        }
        Self { poll, pool: Pool::new(64 << 20), ends }
    }

    fn server(&self) -> &Connection {
        self.ends[1].connection.as_ref().expect("there")
    }

    fn client(&mut self) -> &mut Connection {
        self.ends[0].connection.as_mut().expect("there")
    }

    fn run(&mut self, is_done: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        let mut events = Events::with_capacity(8);
        let mut due = [true, true];
        loop {
            for (end, due) in self.ends.iter_mut().zip(due) {
                if due {
                    end.serve(Instant::now(), &self.pool);
                }
            }
            if is_done(self) {
                return;
            }
            due = [0, 1].map(|index| self.ends[index].connection.as_ref().is_some_and(Connection::is_ready));
            let is_ready = due.contains(&true);
            let timeout = if is_ready { Duration::ZERO } else { PATIENCE };
            self.poll.poll(&mut events, Some(timeout)).expect("polls");
            assert!(is_ready || !events.is_empty(), "nothing happens: {:?}", self.seen());
            for event in &events {
                let index = event.token().0;
                due[index] = true;
                if let Some(connection) = &mut self.ends[index].connection {
                    let closed = event.is_read_closed() || event.is_error();
                    connection.set_ready(event.is_readable() || closed, event.is_writable() || closed);
                }
            }
            assert!(begin.elapsed() < PATIENCE, "takes too long: {:?}", self.seen());
        }
    }

    fn seen(&self) -> [(bool, usize, &Vec<String>); 2] {
        [0, 1].map(|index| {
            let end = &self.ends[index];
            (end.is_open, end.received.len(), &end.errors)
        })
    }

    fn open(mut self) -> Self {
        self.run(|pair| pair.ends.iter().all(|end| end.is_open));
        self
    }

    /// Until both have failed; what they say, the client first.
    fn fail(mut self) -> [String; 2] {
        self.run(|pair| pair.ends.iter().all(|end| !end.errors.is_empty()));
        assert!(self.ends.iter().all(|end| !end.is_open));
        self.ends.map(|end| end.errors[0].clone())
    }
}

/// Two ends of a TCP connection, of small buffers.
fn sockets() -> (StdStream, StdStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let theirs = StdStream::connect(listener.local_addr().expect("an address")).expect("connects");
    let (ours, _) = listener.accept().expect("accepts");
    for stream in [&theirs, &ours] {
        stream.set_nonblocking(true).expect("sets");
        SockRef::from(stream).set_recv_buffer_size(16 << 10).expect("sets");
        SockRef::from(stream).set_send_buffer_size(16 << 10).expect("sets");
    }
    (theirs, ours)
}

fn server_of(authority: &Authority, names: &[&str]) -> ServerTls {
    ServerTls::load(&authority.issue_good(names).for_server(Some(authority))).expect("a server")
}

#[test]
fn much_goes_both_ways_at_once() {
    let authority = Authority::new();
    let server = server_of(&authority, &["relay.test"]);
    for (version, name) in [(&TLS13, ProtocolVersion::TLSv1_3), (&TLS12, ProtocolVersion::TLSv1_2)] {
        let client = ClientTls::load_versions(&authority.client_files(), &[version]);
        let mut pair = Pair::new(URL, Some(&client), Some(&server)).open();
        let session = pair.server().transport.tls.as_ref().expect("TLS");
        assert_eq!(session.tls.protocol_version(), Some(name));
        assert_eq!(session.tls.alpn_protocol(), Some(&b"http/1.1"[..]));
        let TlsConnection::Server(of_server) = &session.tls else { panic!("the server's end") };
        assert_eq!(of_server.server_name(), Some("relay.test"), "the name of the URL (SNI)");
        let messages = |seed: usize| -> Vec<Bytes> {
            let lengths = [1, 300_000, 17, 0, 16_384, 16_385, 1 << 20, 65_000, 5];
            let all = (0..45).map(|index| {
                let length = lengths[index % lengths.len()];
                Bytes::from((0..length).map(|at| (at * 31 + index * 7 + seed) as u8).collect::<Vec<_>>())
            });
            all.collect()
        };
        for (index, end) in pair.ends.iter_mut().enumerate() {
            end.to_send = messages(index).into_iter().map(Payload::from).collect();
        }
        let flushed = |end: &End| end.connection.as_ref().is_some_and(Connection::is_flushed);
        pair.run(|pair| pair.ends.iter().all(|end| end.received.len() == 45 && flushed(end)));
        assert!(pair.ends[0].received == messages(1) && pair.ends[1].received == messages(0));
        let bytes = messages(0).iter().map(Bytes::len).sum::<usize>() as u64;
        for end in &pair.ends {
            let connection = end.connection.as_ref().expect("there");
            let (sent, received) = connection.bytes_sent_and_received();
            assert_eq!(connection.data_sent(), 45);
            assert!(sent > bytes && sent < bytes * 11 / 10, "{sent} for {bytes}");
            assert!(received > bytes && received < bytes * 11 / 10, "{received} for {bytes}");
            assert!(end.errors.is_empty());
            let session = connection.transport.tls.as_ref().expect("TLS");
            assert!(session.buffer.is_none(), "idle, so it holds no buffer");
        }
    }
}

#[test]
fn data_counts_as_sent_when_the_kernel_has_it() {
    let authority = Authority::new();
    let server = server_of(&authority, &["relay.test"]);
    let client = ClientTls::load(&authority.client_files()).expect("a client");
    let mut pair = Pair::new(URL, Some(&client), Some(&server)).open();
    let now = Instant::now();
    let [_peer, mut end] = pair.ends;
    end.to_send = vec![Bytes::from(vec![7; 4 << 20]).into(); 2];
    end.serve(now, &pair.pool);
    pair.poll.poll(&mut Events::with_capacity(1), Some(Duration::ZERO)).expect("polls");
    let connection = end.connection.expect("there");
    assert_eq!(connection.data_sent(), 0);
    assert!(!connection.is_flushed() && connection.transport.wants_write());
    let (sent, _) = connection.bytes_sent_and_received();
    assert!(sent < 4 << 20, "{sent}");
}

#[test]
fn a_client_certificate_is_seen_with_its_names_and_verified_again() {
    let (authority, other) = (Authority::new(), Authority::named("other"));
    let server = server_of(&authority, &["relay.test"]);
    let names = ["Web-1.test", "10.1.2.3", "2001:db8::1", "spiffe://ringcast/web-1", "ops@example.net"];
    for version in [&TLS13, &TLS12] {
        let files = authority.issue_good(&names).for_client(&authority);
        let client = ClientTls::load_versions(&files, &[version]);
        let pair = Pair::new(URL, Some(&client), Some(&server)).open();
        let peer = pair.server().peer_certificate().expect("shown");
        let mut expected = names.map(str::to_ascii_lowercase);
        let mut found = peer.names.clone();
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
        let now_s = wall_ns() / 1_000_000_000;
        assert!((now_s + 3500..=now_s + 3600).contains(&peer.not_after_s));
        assert!(!format!("{peer:?}").contains("chain"));
        assert_eq!(server.verify_again(&peer, now_s), Ok(()));
        let expired = server.verify_again(&peer, now_s + 3601).expect_err("expired");
        assert!(expired.contains("the client's certificate expired at 20"), "{expired}");
        let files = authority.issue_good(&["relay.test"]);
        let elsewhere = ServerTls::load(&files.for_server(Some(&other))).expect("a server");
        let unknown = elsewhere.verify_again(&peer, now_s).expect_err("another authority");
        assert!(unknown.contains("not issued by an authority that is trusted here"), "{unknown}");
        let without = ServerTls::load(&files.for_server(None)).expect("a server");
        assert!(without.verify_again(&peer, now_s).is_err());
    }
    // None is shown, or none is asked for.
    let client = ClientTls::load(&authority.client_files()).expect("a client");
    assert_eq!(Pair::new(URL, Some(&client), Some(&server)).open().server().peer_certificate(), None);
}

#[test]
fn who_cannot_be_trusted_is_named_with_what_to_do() {
    let (authority, other) = (Authority::new(), Authority::named("other"));
    let good = server_of(&authority, &["relay.test", "10.0.0.1", "*.wild.test"]);
    let client = ClientTls::load(&authority.client_files()).expect("a client");
    let load = |files: &crate::tls::ServerFiles| ServerTls::load(files).expect("a server");
    let expired = load(&authority.issue(&["relay.test"], -7200, -3600).for_server(None));
    let early = load(&authority.issue(&["relay.test"], 3600, 7200).for_server(None));
    let stranger = ClientTls::load(&other.client_files()).expect("a client");
    // Another authority of the same name, as one that was made anew.
    let namesake = ClientTls::load(&Authority::new().client_files()).expect("a client");
    assert!(expired.expires_s().is_some_and(|at| at < wall_ns() / 1_000_000_000));
    for (url, client, server, ours, theirs) in [
        (
            URL,
            &stranger,
            &good,
            "was not issued by an authority that is trusted here; name its authority with --ca FILE",
            "does not trust the authority that issued our certificate",
        ),
        (
            URL,
            &namesake,
            &good,
            "was not issued by an authority that is trusted here; name its authority with --ca FILE",
            "",
        ),
        (
            "wss://elsewhere.test",
            &client,
            &good,
            "the certificate of elsewhere.test is not for that name, but for relay.test",
            "refuses our certificate",
        ),
        (
            "wss://10.0.0.2",
            &client,
            &good,
            "the certificate of 10.0.0.2 is not for that name, but for",
            "refuses our certificate",
        ),
        (
            URL,
            &client,
            &expired,
            "the certificate of relay.test expired at 20",
            "our certificate has expired",
        ),
        (URL, &client, &early, "the certificate of relay.test is not yet valid (from 20", ""),
    ] {
        let [at_client, at_server] = Pair::new(url, Some(client), Some(server)).fail();
        assert!(at_client.contains(ours), "{at_client}");
        assert!(at_server.contains(theirs), "{at_server}");
        assert!(!at_client.contains("DnsName"), "{at_client}");
    }
    for url in ["wss://10.0.0.1", "wss://a.wild.test"] {
        Pair::new(url, Some(&client), Some(&good)).open();
    }
}

/// In TLS 1.3 a client learns only after its handshake that its certificate is refused.
#[test]
fn a_bad_client_certificate_ends_the_handshake() {
    let (authority, other) = (Authority::new(), Authority::named("other"));
    let server = server_of(&authority, &["relay.test"]);
    for (issued, at_server, at_client) in [
        (
            other.issue_good(&["a"]),
            "the client's certificate was not issued by an authority",
            "does not trust the authority that issued our client certificate (--cert)",
        ),
        (
            authority.issue(&["a"], -7200, -3600),
            "the client's certificate expired at 20",
            "our client certificate (--cert) has expired",
        ),
    ] {
        for version in [&TLS13, &TLS12] {
            let client = ClientTls::load_versions(&issued.for_client(&authority), &[version]);
            // A client leaves out a certificate that none of the server's authorities issued.
            let client = client.changed(|config| config.client_auth_cert_resolver = always(config));
            let [ours, theirs] = Pair::new(URL, Some(&client), Some(&server)).fail();
            assert!(ours.contains(at_client), "{ours}");
            assert!(theirs.contains(at_server), "{theirs}");
        }
    }
}

/// Shows its certificate whatever authorities the server names.
#[derive(Debug)]
struct Always(std::sync::Arc<dyn rustls::client::ResolvesClientCert>);

impl rustls::client::ResolvesClientCert for Always {
    fn resolve(
        &self,
        _: &[&[u8]],
        schemes: &[rustls::SignatureScheme],
    ) -> Option<std::sync::Arc<rustls::sign::CertifiedKey>> {
        self.0.resolve(&[], schemes)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn always(config: &rustls::ClientConfig) -> std::sync::Arc<dyn rustls::client::ResolvesClientCert> {
    std::sync::Arc::new(Always(std::sync::Arc::clone(&config.client_auth_cert_resolver)))
}

/// A resumed session would bring the client's certificate back without verifying it.
#[test]
fn no_session_is_resumed() {
    let authority = Authority::new();
    for client_ca in [None, Some(&authority)] {
        let files = authority.issue_good(&["relay.test"]).for_server(client_ca);
        let server = ServerTls::load(&files).expect("a server");
        for version in [&TLS13, &TLS12] {
            let files = authority.issue_good(&["a"]).for_client(&authority);
            let client = ClientTls::load_versions(&files, &[version])
                .changed(|config| config.resumption = rustls::client::Resumption::default());
            for _ in 0..3 {
                let pair = Pair::new(URL, Some(&client), Some(&server)).open();
                let session = pair.server().transport.tls.as_ref().expect("TLS");
                assert_eq!(session.tls.handshake_kind(), Some(HandshakeKind::Full));
            }
        }
    }
}

#[test]
fn another_application_protocol_is_refused() {
    let authority = Authority::new();
    let server = server_of(&authority, &["relay.test"]);
    let client = ClientTls::load(&authority.client_files()).expect("a client");
    let other = client.changed(|config| config.alpn_protocols = vec![b"h2".to_vec()]);
    let [at_client, _] = Pair::new(URL, Some(&other), Some(&server)).fail();
    assert_eq!(at_client, "the peer ended TLS: it does not speak http/1.1 (ALPN)");
    let silent = client.changed(|config| config.alpn_protocols.clear());
    Pair::new(URL, Some(&silent), Some(&server)).open();
}

#[test]
fn plain_and_tls_tell_each_other_apart() {
    let authority = Authority::new();
    let server = server_of(&authority, &["relay.test"]);
    let client = ClientTls::load(&authority.client_files()).expect("a client");
    let [at_client, at_server] = Pair::new("ws://relay.test", None, Some(&server)).fail();
    assert!(at_client.contains("400") && at_client.contains("use wss://"), "{at_client}");
    assert!(at_server.starts_with("not TLS: plain HTTP"), "{at_server}");
    let [at_client, at_server] = Pair::new(URL, Some(&client), None).fail();
    assert!(at_client.starts_with("relay.test does not speak TLS on this port"), "{at_client}");
    assert!(at_server.contains("not HTTP"), "{at_server}");
    // Neither the one nor the other.
    let mut pair = Pair::new(URL, Some(&client), Some(&server));
    let (mut raw, ours) = sockets();
    let end = &mut pair.ends[1];
    let connection = Connection::server(TcpStream::from_std(ours), Some(&server), Instant::now());
    end.connection = Some(connection.expect("a server"));
    raw.write_all(b"\x00\x01nonsense").expect("sends");
    while end.errors.is_empty() {
        end.connection.as_mut().expect("there").set_ready(true, true);
        end.serve(Instant::now(), &pair.pool);
    }
    assert!(
        end.errors[0]
            .starts_with(r#"not TLS: the peer sent "\x00\x01nonsense"#.replace("\\x", "\\\\x").as_str()),
        "{}",
        end.errors[0]
    );
    raw.set_nonblocking(false).expect("sets");
    let mut alert = [0; 7];
    raw.read_exact(&mut alert).expect("an alert");
    assert_eq!((alert[0], alert[5]), (21, 2), "fatal: {alert:?}");
}

#[test]
fn an_end_is_told_from_a_cut() {
    let authority = Authority::new();
    let server = server_of(&authority, &["relay.test"]);
    let client = ClientTls::load(&authority.client_files()).expect("a client");
    let new = || Pair::new(URL, Some(&client), Some(&server)).open();
    let heard = |pair: &Pair| !pair.ends[1].errors.is_empty();
    // A reason, in a close frame.
    let mut pair = new();
    pair.client().close(Instant::now(), 1008, "because");
    pair.run(heard);
    assert_eq!(pair.ends[1].errors[0], "the peer closed the connection: because");
    assert!(pair.ends[1].control[0].contains("because"));
    // TLS's own goodbye.
    let mut pair = new();
    pair.client().transport.say_goodbye();
    pair.run(heard);
    assert_eq!(pair.ends[1].errors[0], "the peer closed the connection");
    // The end of TCP.
    let mut pair = new();
    pair.client().stream().shutdown(Shutdown::Write).expect("shuts");
    pair.run(heard);
    assert!(pair.ends[1].errors[0].contains("ended without a goodbye"), "{}", pair.ends[1].errors[0]);
    // ... which may be before there was anything.
    let mut pair = Pair::new(URL, Some(&client), Some(&server));
    pair.client().stream().shutdown(Shutdown::Write).expect("shuts");
    pair.ends[0].connection = None;
    pair.run(heard);
    assert!(
        pair.ends[1].errors[0].contains("in the middle of the TLS handshake"),
        "{}",
        pair.ends[1].errors[0]
    );
}

#[test]
fn an_idle_line_is_pinged_and_keys_can_change() {
    let authority = Authority::new();
    let server = server_of(&authority, &["relay.test"]);
    let client = ClientTls::load(&authority.client_files()).expect("a client");
    let mut pair = Pair::new(URL, Some(&client), Some(&server)).open();
    for turn in 1..4 {
        let later = Instant::now() + Duration::from_secs(6);
        pair.client().handle_timeout(later, turn).expect("lives");
        let session = pair.client().transport.tls.as_mut().expect("TLS");
        session.tls.refresh_traffic_keys().expect("TLS 1.3");
        pair.run(|pair| pair.ends[1].control.len() == turn as usize);
        assert!(pair.ends[1].control[turn as usize - 1].contains("ping"));
    }
}

#[test]
fn a_handshake_that_does_not_come_ends_in_its_time() {
    let authority = Authority::new();
    let server = server_of(&authority, &["relay.test"]);
    let (mut raw, ours) = sockets();
    let mut connection =
        Connection::server(TcpStream::from_std(ours), Some(&server), Instant::now()).expect("a server");
    raw.write_all(&[22, 3, 1, 1]).expect("sends");
    connection.set_ready(true, true);
    let received = connection.receive(Instant::now(), &Pool::new(1 << 20), &mut ReadShare::default());
    assert!(matches!(received, Ok(None)));
    assert!(!connection.is_ready() && connection.peer_certificate().is_none());
    let error = connection.handle_timeout(Instant::now() + Duration::from_secs(10), 0).expect_err("too late");
    assert!(error.to_string().contains("no answer to the handshake"));
}

#[test]
fn a_tls_url_without_tls_is_refused() {
    let (theirs, _ours) = sockets();
    let url = RelayUrl::parse(URL).expect("a url");
    assert!(Connection::client(TcpStream::from_std(theirs), &url, None, Instant::now()).is_err());
}

/// Masked payloads, of which TCP has the pages as long as the peer has not read them; then their memory is used again.
#[test]
fn what_is_lent_arrives_and_its_memory_is_used_again() {
    let lender = Pool::new(8 << 20);
    let mut pair = Pair::new("ws://relay.test:1", None, None).open();
    let lengths = [300_000, 70_000, 1 << 20, 5, 64 << 10, 100_001];
    let plain = |index: usize| -> Vec<u8> {
        (0..lengths[index % lengths.len()]).map(|at| (at * 31 + index * 7) as u8).collect()
    };
    let mut lent_bytes = 0;
    for round in 0..12 {
        let indices = round * 6..round * 6 + 6;
        let payloads: Vec<Payload> = indices
            .clone()
            .map(|index| {
                let mask = [index as u8, 0xa5, 7, 0x80];
                let mut buffer =
                    lender.take_to_lend(lengths[index % 6]).expect("what was sent before is free");
                copy_masked(&plain(index), &mut buffer, mask, 0);
                let bytes = buffer.freeze();
                // One that is not lent is copied, and masked anew.
                let is_lent = index % 5 != 0 && lender.lend(&bytes);
                lent_bytes += if is_lent { bytes.len() } else { 0 };
                Payload { bytes, mask: Some(mask), is_lent }
            })
            .collect();
        pair.ends[0].to_send = payloads.clone();
        pair.run(|pair| pair.ends[1].received.len() == 6);
        for (index, received) in indices.zip(pair.ends[1].received.drain(..)) {
            assert!(received == plain(index), "message {index}");
        }
        for payload in payloads.iter().filter(|payload| payload.is_lent) {
            lender.take_back(&payload.bytes);
        }
    }
    if lent_bytes == 0 {
        assert!(
            std::env::var_os("RINGCAST_REQUIRE_ALL").is_none(),
            "no huge page, but nothing may be skipped here"
        );
        eprintln!("skipped in part: no huge page (/sys/kernel/mm/transparent_hugepage/enabled)");
    }
    assert_eq!(lender.lent_now(), 0);
    let client = pair.client();
    assert_eq!(client.data_sent(), 72);
    assert_eq!(client.transport.page_pipe.is_used(), lent_bytes > 0);
    assert!(!client.transport.page_pipe.is_refused(), "all went by reference");
    let (sent, _) = client.bytes_sent_and_received();
    assert!(sent > lent_bytes as u64 && client.is_flushed());
}

/// Where the system refuses, what is left is copied; a server's end sends plain bytes.
#[test]
fn what_cannot_be_sent_by_reference_is_copied() {
    let mut pair = Pair::new("ws://relay.test:1", None, None).open();
    let plain: Vec<u8> = (0..300_000u32).map(|at| (at * 7) as u8).collect();
    let mut masked = vec![0; plain.len()];
    copy_masked(&plain, &mut masked, [1, 2, 3, 4], 0);
    let payload = Payload { bytes: masked.into(), mask: Some([1, 2, 3, 4]), is_lent: true };
    for end in &mut pair.ends {
        end.to_send = vec![payload.clone(); 3];
    }
    // In the midst of the first, of which some is in the pipe.
    let is_begun = |pair: &Pair| {
        let sent = pair.ends[0].connection.as_ref().expect("there").bytes_sent_and_received().0;
        sent > 20_000
    };
    pair.run(is_begun);
    let client = pair.client();
    assert!(client.transport.page_pipe.is_used() && client.data_sent() == 0);
    client.queue_control(&Control::Ping { clock_ns: 7 });
    client.transport.page_pipe.refuse_when_used();
    pair.run(|pair| pair.ends.iter().all(|end| end.received.len() == 3));
    for end in &pair.ends {
        assert!(end.received.iter().all(|received| *received == plain));
    }
    assert_eq!(pair.ends[1].control.len(), 1, "between two of them");
    assert!(pair.client().transport.page_pipe.is_refused());
}
