//! What waits in a connection for a peer that does not read: its bounds, over a real socket.

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use wire::connection::{Connection, ConnectionError, ReadShare, RelayUrl};
use wire::message::Control;
use wire::pool::Pool;

/// Far longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// The server's end of an open connection, and the client's, which is served no more.
fn pair(pool: &Pool) -> (Connection, Connection) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is there");
    let there = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
    let (here, _) = listener.accept().expect("it connects");
    let stream = |stream: TcpStream| {
        stream.set_nonblocking(true).expect("sets");
        mio::net::TcpStream::from_std(stream)
    };
    let url = RelayUrl::parse("ws://127.0.0.1").expect("a url");
    let mut server = Connection::server(stream(here), None, Instant::now()).expect("without TLS");
    let mut client = Connection::client(stream(there), &url, None, Instant::now()).expect("without TLS");
    let deadline = Instant::now() + PATIENCE;
    while !(server.is_open() && client.is_open()) {
        assert!(Instant::now() < deadline, "the handshake does not end");
        for end in [&mut client, &mut server] {
            end.set_ready(true, true);
            end.drive(Instant::now()).expect("a sound line");
            end.receive(Instant::now(), pool, &mut ReadShare::default()).expect("a sound peer");
        }
    }
    (server, client)
}

/// Queues until the connection ends, or `most` messages of `bytes` wait.
fn queue(server: &mut Connection, most: usize, bytes: usize) -> Result<(), ConnectionError> {
    for _ in 0..most {
        server.queue_control(&Control::Error { reason: "x".repeat(bytes) });
        server.set_ready(false, true);
        server.drive(Instant::now())?;
    }
    Ok(())
}

/// Blocks may take all the memory there is. What a connection has to say all the time, answers and
/// acknowledgements, must not end it then; a queue that grows does.
#[test]
fn a_budget_used_up_ends_those_alone_that_pile_up() {
    let pool = Pool::new(1 << 20);
    let (mut server, _client) = pair(&pool);
    server.set_charge(pool.charge(64 << 10).expect("room"));
    let _blocks = pool.charge(pool.budget_bytes() - pool.used_bytes()).expect("all that is left");
    queue(&mut server, 20, 500).expect("little waits");
    // A message that is longer than what the kernel and the line take at once.
    let error = queue(&mut server, 64, 1 << 20).expect_err("much waits");
    assert!(matches!(error, ConnectionError::Budget), "{error}");
}

/// Of the window only the last word counts: others may cause many.
#[test]
fn windows_do_not_pile_up() {
    let pool = Pool::new(1 << 20);
    let (mut server, _client) = pair(&pool);
    for bytes in 0..10_000 {
        server.queue_control(&Control::Window { bytes });
    }
    server.drive(Instant::now()).expect("one waits");
}
