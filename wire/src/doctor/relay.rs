//! The way to the relay, step by step, as a client goes it: its own files, the name, TCP, TLS, hello, clock. It says hello,
//! is welcomed, and leaves; nothing is published, nothing subscribed.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::certificate::Whose;
use super::session::{SESSION_TIME, Session};
use super::{Finding, private};
use crate::block::Epoch;
use crate::clock::wall_s;
use crate::connection::{ConnectionError, RelayUrl};
use crate::credentials::{CredentialError, CredentialFiles};
use crate::message::{Role, StreamStatus};
use crate::text::{io_text, printable};
use crate::tls::TlsFault;

const LOOKUP_TIME: Duration = Duration::from_secs(10);
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// A name server that takes longer is worth a warning.
const LOOKUP_TIME_GOOD: Duration = Duration::from_secs(1);

/// Who goes there.
#[derive(Clone, Debug)]
pub struct Client<'a> {
    /// Where to.
    pub url: &'a RelayUrl,
    /// What it proves itself with.
    pub files: &'a CredentialFiles,
    /// Sniffer or viewer.
    pub role: Role,
    /// A sniffer's name.
    pub name: &'a str,
    /// The program and its version, `ringcast-sniffer/0.1.0`.
    pub agent: &'a str,
    /// A run of nobody else's: a sniffer that runs is left alone.
    pub epoch: Epoch,
}

/// How far it came.
#[derive(Debug, Default)]
pub struct Reached {
    /// What was found on the way.
    pub findings: Vec<Finding>,
    /// For a viewer that was welcomed: what it could see.
    pub streams: Option<Vec<StreamStatus>>,
}

/// Goes as far as it can.
pub fn reach(client: &Client) -> Reached {
    let mut reached = Reached { findings: own_files(client), streams: None };
    let findings = &mut reached.findings;
    let credentials = client.files.load(client.url);
    if let Err(error) = &credentials {
        findings.push(Finding::problem("credentials", error.to_string(), credential_advice(error)));
    }
    if !client.url.is_secure() && !client.url.is_loopback() {
        findings.push(Finding::warning(
            "relay",
            format!(
                "{}: without TLS, packets cross the network for everybody to read and to change",
                client.url
            ),
            "relay init makes all that TLS takes; then write wss://",
        ));
    }
    let stream = match look_up(client, findings).and_then(|addresses| connect(client, &addresses, findings)) {
        Some(stream) => stream,
        None => return reached,
    };
    let Ok(credentials) = credentials else { return reached };
    match Session::new(client, findings).run(stream, &credentials) {
        Ok(streams) => reached.streams = streams,
        Err(failure) => {
            let finding = failure.finding(client);
            findings.push(finding);
        }
    }
    reached
}

/// What its own files are like, as far as they can be read at all.
fn own_files(client: &Client) -> Vec<Finding> {
    let (tls, now_s) = (&client.files.tls, wall_s());
    let whose = |renewal| Whose { subject: "credentials", what: "", renewal };
    let of = |option, path: &Option<std::path::PathBuf>, renewal| {
        path.as_ref().and_then(|path| whose(renewal).file(option, path, now_s))
    };
    let ours =
        of("--cert", &tls.cert, "have the relay's authority sign a new one: relay init DIR --client NAME");
    let theirs =
        of("--ca", &tls.ca, "make a new authority with relay init, and give its ca.pem to everybody");
    let secrets = [("--key", &tls.key), ("--token-file", &client.files.token_file)];
    let open = secrets
        .into_iter()
        .filter_map(|(option, path)| path.as_ref().and_then(|path| private("credentials", option, path)));
    ours.into_iter().chain(theirs).chain(open).collect()
}

fn credential_advice(error: &CredentialError) -> &'static str {
    match error {
        CredentialError::NeedsTls { .. } | CredentialError::Unencrypted { .. } => "write wss:// in --relay",
        CredentialError::Read { .. } | CredentialError::Token { .. } => {
            "make a token with relay token add on the relay's host; its file must be readable to this user"
        }
        CredentialError::Tls(_) => {
            "relay init makes ca.pem, and with --client a certificate and its key; they must be readable to this user"
        }
    }
}

fn look_up(client: &Client, findings: &mut Vec<Finding>) -> Option<Vec<SocketAddr>> {
    let (host, port) = (client.url.host().to_owned(), client.url.port());
    let (sender, receiver) = channel();
    let (started, name) = (Instant::now(), host.clone());
    // A name server may take longer than anybody wants to wait.
    std::thread::spawn(move || {
        let found = (name.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        let _ = sender.send(found); // nobody waits any more
    });
    let found = receiver.recv_timeout(LOOKUP_TIME).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let took = started.elapsed();
    match found {
        Ok(addresses) if !addresses.is_empty() => {
            let text = addresses.iter().map(|one| one.ip().to_string()).collect::<Vec<_>>().join(", ");
            if host.parse::<std::net::IpAddr>().is_ok() {
                return Some(addresses);
            }
            let text = format!("{host} is {text} ({} ms)", took.as_millis());
            findings.push(if took > LOOKUP_TIME_GOOD {
                Finding::warning(
                    "relay",
                    text,
                    "look at the name servers in /etc/resolv.conf, or write an address",
                )
            } else {
                Finding::ok("relay", text)
            });
            Some(addresses)
        }
        failed => {
            let why = failed.map_or_else(|error| io_text(&error), |_| "it has no address".to_owned());
            findings.push(Finding::problem(
                "relay",
                format!("{host}: the name is not found: {why}"),
                "correct --relay, or the name servers in /etc/resolv.conf, or write an address",
            ));
            None
        }
    }
}

/// Connects to the first address that takes it, as the programs do.
fn connect(client: &Client, addresses: &[SocketAddr], findings: &mut Vec<Finding>) -> Option<TcpStream> {
    for (index, address) in addresses.iter().enumerate() {
        let started = Instant::now();
        let error = match TcpStream::connect_timeout(address, CONNECT_TIME) {
            Ok(stream) => {
                let ms = started.elapsed().as_secs_f64() * 1000.0;
                findings.push(Finding::ok("relay", format!("{address}: connected in {ms:.1} ms")));
                return Some(stream);
            }
            Err(error) => error,
        };
        let advice = match error.kind() {
            io::ErrorKind::ConnectionRefused => format!(
                "start a relay there that listens on this address (relay --listen), or correct --relay ({})",
                client.url
            ),
            io::ErrorKind::TimedOut => {
                format!(
                    "a firewall or a route is in the way: TCP port {} must be open to the relay",
                    address.port()
                )
            }
            _ => format!("look at the route there: ip route get {}", address.ip()),
        };
        let text = format!("{address}: {}", io_text(&error));
        let is_last = index + 1 == addresses.len();
        findings.push(match is_last {
            true => Finding::problem("relay", text, advice),
            false => {
                Finding::warning("relay", format!("{text}; the next address is tried each time"), advice)
            }
        });
    }
    None
}

/// Why it went no further.
pub(super) enum Failure {
    Connection(ConnectionError),
    /// The relay said so.
    Refused(String),
    Time,
}

impl From<ConnectionError> for Failure {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Connection(error.into())
    }
}

impl Failure {
    fn finding(&self, client: &Client) -> Finding {
        let subcommand = match client.role {
            Role::Publish => "relay token add NAME --role publish",
            Role::Subscribe => "relay token add NAME --role subscribe",
        };
        let (text, advice) = match self {
            Self::Connection(ConnectionError::Tls(fault)) => (fault.to_string(), tls_advice(fault).to_owned()),
            Self::Connection(ConnectionError::Closed { reason, .. }) if !reason.is_empty() => {
                return Self::Refused(reason.clone()).finding(client);
            }
            Self::Connection(error) => (
                error.to_string(),
                "is it a relay, and no proxy in between that does not pass WebSocket? The relay's log says more".to_owned(),
            ),
            Self::Refused(reason) => (
                format!("the relay refused: {reason}"),
                format!(
                    "its log says why; relay token list shows who may come in, {subcommand} lets in (--token-file), or \
                     --cert and --key show a certificate; a relay that runs reads its file again on SIGHUP"
                ),
            ),
            Self::Time => (
                format!("connected, and no answer within {} s", SESSION_TIME.as_secs()),
                "is it a relay, or another program on that port? Does a firewall pass the first packets alone?".to_owned(),
            ),
        };
        Finding::problem("relay", printable(&format!("{}: {text}", client.url.authority())), advice)
    }
}

fn tls_advice(fault: &TlsFault) -> &'static str {
    match fault {
        TlsFault::UnknownIssuer { .. } => {
            "give --ca FILE with the authority of this relay: the ca.pem that relay init made with its certificate"
        }
        TlsFault::WrongHost { .. } | TlsFault::HostName { .. } => {
            "write one of its names in --relay, or have it signed for this one: relay init DIR --renew --host NAME"
        }
        TlsFault::Expired { .. } => {
            "renew it on the relay's host, relay init DIR --renew, then SIGHUP; if it is new, correct the clocks"
        }
        TlsFault::NotYetValid { .. } => "correct the clock of this host or of the relay's",
        TlsFault::PlainServer { .. } => "write ws://, or start the relay with --cert and --key",
        TlsFault::HandshakeCut => "is it a relay? The relay's log says why it ended the connection",
        _ => "compare with relay doctor on the relay's host; the relay's log says more",
    }
}

#[cfg(test)]
mod tests {
    use super::super::for_tests::text;
    use super::*;

    fn found(url: &str) -> String {
        let url = RelayUrl::parse(url).expect("a url");
        let files = CredentialFiles::default();
        let (role, epoch) = (Role::Publish, Epoch(7));
        let client = Client { url: &url, files: &files, role, name: "a", agent: "test/1", epoch };
        text(&reach(&client).findings)
    }

    #[test]
    fn who_does_not_answer_is_told_from_who_refuses() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        // Someone who is no relay: says something else and leaves.
        let answer = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            io::Write::write_all(&mut stream, b"SSH-2.0-x\r\n\r\n").expect("writes");
        });
        let other = found(&format!("ws://127.0.0.1:{port}"));
        answer.join().expect("no panic");
        assert!(other.contains("connected in") && other.contains("problem relay: 127.0.0.1"), "{other}");
        let refused = found(&format!("ws://127.0.0.1:{port}"));
        assert!(refused.contains("connection refused -> start a relay there"), "{refused}");
        let unknown = found("ws://no-such-host.invalid");
        assert!(unknown.contains("without TLS") && unknown.contains("the name is not found"), "{unknown}");
    }
}
