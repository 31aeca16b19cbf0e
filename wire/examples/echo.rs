//! An echo over our own connection, for the public conformance cases of WebSocket; see
//! `bench/conformance.sh`. As a server: `echo serve 127.0.0.1:9001`, until it is killed. As a
//! client: `echo run ws://127.0.0.1:9002`, through all cases of the fuzzing server there.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use wire::clock::wall_ns;
use wire::connection::{Connection, ConnectionError, ReadShare, Received, RelayUrl, Times};
use wire::pool::Pool;

/// Longest message echoed: the longest that the cases have.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Memory of the messages that come.
const POOL_BYTES: usize = 1 << 30;
const TICK_TIME: Duration = Duration::from_millis(100);
const LISTENER: Token = Token(0);
const NAME: &str = "ringcast";

/// A connection that echoes, or, for the answers to a client's questions, notes what it is told.
struct Echo {
    connection: Connection,
    is_listening_only: bool,
    heard: Vec<u8>,
}

impl Echo {
    fn new(mut connection: Connection, is_listening_only: bool) -> Self {
        // Nothing is said that the cases do not ask for.
        connection.set_times(Times { ping: Duration::from_secs(3600), ..Times::default() });
        Self { connection, is_listening_only, heard: Vec::new() }
    }

    /// Does what can be done now. The error is the end.
    fn turn(&mut self, pool: &Pool, now: Instant) -> Result<(), ConnectionError> {
        let connection = &mut self.connection;
        connection.handle_timeout(now, wall_ns())?;
        loop {
            connection.drive(now)?;
            if connection.is_open() && !connection.is_flushed() {
                return Ok(()); // what comes next is read when the answers before it are out
            }
            let (is_text, payload) = match connection.receive(now, pool, &mut ReadShare::default()) {
                Ok(None) if connection.is_ready() => continue,
                Ok(None) => return connection.drive(now),
                Ok(Some(Received::Open)) => continue,
                Ok(Some(Received::Control(text))) => (true, text),
                Ok(Some(Received::Data(bytes))) => (false, bytes.to_vec()),
                Err(ConnectionError::Frame(error)) => {
                    connection.close_plainly(now, error.close_code(), &error.to_string());
                    continue;
                }
                Err(ConnectionError::Handshake(_)) if connection.is_closing() => continue,
                Err(error) => return Err(error),
            };
            if self.is_listening_only {
                self.heard = payload;
            } else {
                connection.queue_plain(is_text, payload);
            }
        }
    }
}

fn serve(address: SocketAddr) -> Result<(), Box<dyn Error>> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(256);
    let mut listener = TcpListener::bind(address)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    println!("listening on {}", listener.local_addr()?);
    let pool = Pool::new(POOL_BYTES);
    let mut echoes: HashMap<Token, Echo> = HashMap::new();
    let mut last = LISTENER;
    loop {
        wait(&mut poll, &mut events)?;
        for event in &events {
            if let Some(echo) = echoes.get_mut(&event.token()) {
                echo.connection.set_ready(event.is_readable(), event.is_writable());
            }
        }
        let now = Instant::now();
        loop {
            let mut stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            };
            last = Token(last.0 + 1);
            poll.registry().register(&mut stream, last, Interest::READABLE | Interest::WRITABLE)?;
            let mut connection = Connection::server(stream, None, now)?;
            connection.speak_plainly(None, MESSAGE_BYTES_MAX)?;
            echoes.insert(last, Echo::new(connection, false));
        }
        echoes.retain(|_, echo| {
            echo.connection.retry_buffer();
            echo.turn(&pool, now).is_ok()
        });
    }
}

/// Opens `path` at a server and echoes until the end; returns the last message if it only listens.
fn visit(server: &str, path: &str, is_listening_only: bool) -> Result<String, Box<dyn Error>> {
    let url = RelayUrl::parse(&format!("{server}{path}"))?;
    let address = (url.host(), url.port()).to_socket_addrs()?.next().ok_or("no address")?;
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(16);
    let mut stream = TcpStream::connect(address)?;
    poll.registry().register(&mut stream, Token(1), Interest::READABLE | Interest::WRITABLE)?;
    let mut connection = Connection::client(stream, &url, None, Instant::now())?;
    connection.speak_plainly(Some(&url), MESSAGE_BYTES_MAX)?;
    let mut echo = Echo::new(connection, is_listening_only);
    let pool = Pool::new(POOL_BYTES);
    loop {
        wait(&mut poll, &mut events)?;
        for event in &events {
            echo.connection.set_ready(event.is_readable(), event.is_writable());
        }
        match echo.turn(&pool, Instant::now()) {
            Ok(()) => {}
            Err(error @ ConnectionError::Handshake(_)) => return Err(error.into()),
            // How it ends is for the server to judge.
            Err(_) => return Ok(String::from_utf8(echo.heard)?),
        }
    }
}

fn run(server: &str) -> Result<(), Box<dyn Error>> {
    let count: usize = visit(server, "/getCaseCount", true)?.parse()?;
    for case in 1..=count {
        visit(server, &format!("/runCase?case={case}&agent={NAME}"), false)?;
    }
    visit(server, &format!("/updateReports?agent={NAME}"), true)?;
    println!("{count} cases");
    Ok(())
}

fn wait(poll: &mut Poll, events: &mut Events) -> io::Result<()> {
    match poll.poll(events, Some(TICK_TIME)) {
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
        other => other,
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", address] => serve(address.parse()?),
        ["run", server] => run(server.trim_end_matches('/')),
        _ => Err("write: echo serve ADDRESS:PORT, or: echo run ws://HOST:PORT".into()),
    }
}
