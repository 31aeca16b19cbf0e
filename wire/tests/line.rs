//! Dead, slow and stalled lines, over real sockets: on the loopback interface, and between two
//! network namespaces where a cut is a link that is switched off.
#![cfg(target_os = "linux")]

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use wire::connection::{Connection, ConnectionError, ReadShare, Received, Times};
use wire::message::Envelope;
use wire::pool::Pool;

const TIMES: Times = Times {
    handshake: Duration::from_secs(10),
    ping: Duration::from_millis(250),
    dead: Duration::from_millis(1000),
};
/// Far longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a peer made by hand behaves: bytes a second that it reads, and whether it answers pings.
#[derive(Debug, Default)]
struct Manners {
    read_rate: AtomicU64,
    is_polite: AtomicU64,
}

/// Connects to `address`, says what a client says, and reads as its manners tell until the end.
fn peer(stream: TcpStream, manners: &Manners) {
    let mut stream = stream;
    let request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                   Sec-WebSocket-Protocol: ringcast.1\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("sends");
    let mut buffer = vec![0; 1 << 16];
    loop {
        let rate = manners.read_rate.load(Ordering::Relaxed) as usize;
        std::thread::sleep(Duration::from_millis(20));
        if rate == 0 {
            continue;
        }
        match stream.read(&mut buffer[..(rate / 50).clamp(1, 1 << 16)]) {
            Ok(0) | Err(_) => return,
            Ok(_) if manners.is_polite.load(Ordering::Relaxed) == 1 => {
                // A WebSocket pong without payload, as a client masks it.
                let _ = stream.write_all(&[0x8a, 0x80, 0, 0, 0, 0]);
            }
            Ok(_) => {}
        }
    }
}

/// Our end, once it is open.
struct Line {
    connection: Connection,
    pool: Pool,
    manners: Arc<Manners>,
}

impl Line {
    fn new(stream: TcpStream, manners: Arc<Manners>) -> Self {
        stream.set_nonblocking(true).expect("sets");
        let stream = mio::net::TcpStream::from_std(stream);
        let mut connection = Connection::server(stream, None, Instant::now()).expect("a server");
        connection.set_times(TIMES);
        let mut line = Self { connection, pool: Pool::new(1 << 24), manners };
        let deadline = Instant::now() + PATIENCE;
        while !line.connection.is_open() {
            assert!(Instant::now() < deadline);
            line.turn(false).expect("opens");
        }
        line
    }

    fn turn(&mut self, busy: bool) -> Result<(), ConnectionError> {
        let now = Instant::now();
        let open = &mut self.connection;
        open.set_ready(true, true);
        let mut share = ReadShare::default();
        while let Some(received) = open.receive(now, &self.pool, &mut share)? {
            assert!(matches!(received, Received::Open), "{received:?}");
        }
        while busy && open.wants_data() {
            open.queue_data(Envelope::default(), Bytes::from(vec![7; 1 << 18]));
        }
        open.drive(now)?;
        open.handle_timeout(now, 0)?;
        std::thread::sleep(Duration::from_millis(5));
        Ok(())
    }

    /// For so long; the longest stall seen, or how the line ended and when.
    fn run(&mut self, time: Duration, busy: bool) -> Result<Duration, (ConnectionError, Duration)> {
        let begin = Instant::now();
        let mut stalled = Duration::ZERO;
        while begin.elapsed() < time {
            self.turn(busy).map_err(|error| (error, begin.elapsed()))?;
            stalled = stalled.max(self.connection.stalled_for(Instant::now()));
        }
        Ok(stalled)
    }

    fn set_read_rate(&self, bytes_a_second: u64) {
        self.manners.read_rate.store(bytes_a_second, Ordering::Relaxed);
    }

    /// The line must be found dead within `bound`; when it was.
    fn dies(&mut self, bound: Duration, busy: bool) -> Duration {
        match self.run(bound, busy) {
            Err((ConnectionError::Dead { .. }, after)) => after,
            other => panic!("not dead within {bound:?}: {other:?}"),
        }
    }
}

/// A line over the loopback interface to a peer of small buffers.
fn loopback(read_rate: u64) -> Line {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let theirs = TcpStream::connect(listener.local_addr().expect("an address")).expect("connects");
    socket2::SockRef::from(&theirs).set_recv_buffer_size(32 << 10).expect("sets");
    let (ours, _) = listener.accept().expect("accepts");
    start(ours, theirs, read_rate)
}

fn start(ours: TcpStream, theirs: TcpStream, read_rate: u64) -> Line {
    let manners = Arc::new(Manners::default());
    manners.read_rate.store(1 << 20, Ordering::Relaxed);
    manners.is_polite.store(1, Ordering::Relaxed);
    let shared = Arc::clone(&manners);
    std::thread::spawn(move || peer(theirs, &shared));
    let line = Line::new(ours, manners);
    line.set_read_rate(read_rate);
    line
}

/// A reader of 20 KB/s never says a word and lets the local kernel take nothing for seconds. Before
/// acknowledgements were asked for, such a line was closed as dead.
#[test]
fn a_slow_reader_lives_on() {
    let mut line = loopback(20_000);
    line.manners.is_polite.store(0, Ordering::Relaxed);
    let stalled = line.run(TIMES.dead * 8, true).expect("lives");
    assert!(stalled < TIMES.dead * 8, "{stalled:?}: it takes what it can");
}

#[test]
fn a_reader_that_stops_is_stalled_and_not_dead() {
    let mut line = loopback(1 << 20);
    line.run(TIMES.dead, true).expect("lives");
    line.set_read_rate(0);
    let stalled = line.run(TIMES.dead * 4, true).expect("lives");
    assert!(stalled >= TIMES.dead * 2, "{stalled:?}");
    line.set_read_rate(50 << 20);
    line.run(TIMES.dead, true).expect("lives");
    assert!(line.connection.stalled_for(Instant::now()) < TIMES.dead, "it reads on");
    // All that waits is taken, and then there is nothing to be stalled by.
    let deadline = Instant::now() + PATIENCE;
    while !line.connection.is_flushed() {
        assert!(Instant::now() < deadline);
        line.turn(false).expect("lives");
    }
    line.run(TIMES.dead * 2, false).expect("lives, and answers pings");
    assert_eq!(line.connection.stalled_for(Instant::now()), Duration::ZERO);
}

/// An idle peer whose program hangs: its kernel acknowledges our pings, it does not answer them.
#[test]
fn an_idle_peer_that_answers_no_ping_is_dead() {
    let mut line = loopback(1 << 20);
    line.run(TIMES.dead * 2, false).expect("lives, and answers pings");
    line.set_read_rate(0);
    let after = line.dies(TIMES.dead * 3, false);
    assert!(after >= TIMES.dead / 2, "{after:?}");
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The other namespace: a thread in it that runs `ip` and listens.
struct Far {
    orders: Sender<&'static str>,
    done: Receiver<()>,
    streams: Receiver<TcpStream>,
}

impl Far {
    fn ip(&self, arguments: &'static str) {
        self.orders.send(arguments).expect("runs");
        self.done.recv_timeout(PATIENCE).expect("done");
    }
}

/// Runs `test` in a namespace joined to another by a veth pair: `near`, 10.9.7.1, and `far`,
/// 10.9.7.2. Says so and does nothing where that is not permitted.
fn between_namespaces(test: impl FnOnce(&Far) + Send + 'static) {
    let thread = std::thread::spawn(|| {
        match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => {}
            Err(Errno::EPERM) => {
                let needed = std::env::var_os("RINGCAST_REQUIRE_ALL").is_some();
                assert!(!needed, "a network namespace needs root, but nothing may be skipped here");
                let _ = writeln!(std::io::stderr(), "SKIPPED: a network namespace needs root");
                return;
            }
            Err(errno) => panic!("a network namespace of our own: {errno}"),
        }
        let (orders, to_do) = channel::<&'static str>();
        let (ready, done) = channel();
        let (accepted, streams) = channel();
        let (say_id, id) = channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("permitted a moment ago");
            say_id.send(nix::unistd::gettid()).expect("awaited");
            for order in to_do {
                if order == "listen" {
                    let listener = TcpListener::bind("10.9.7.2:900").expect("binds");
                    let sender = accepted.clone();
                    std::thread::spawn(move || {
                        for stream in listener.incoming().flatten() {
                            let _ = sender.send(stream); // the test is over
                        }
                    });
                } else {
                    ip(order);
                }
                ready.send(()).expect("awaited");
            }
        });
        let far_id = id.recv_timeout(PATIENCE).expect("started");
        ip(&format!("link add near type veth peer name far netns {far_id}"));
        let far = Far { orders, done, streams };
        far.ip("addr add 10.9.7.2/24 dev far");
        far.ip("link set far up");
        ip("addr add 10.9.7.1/24 dev near");
        ip("link set near up");
        far.ip("listen");
        test(&far);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A line to the other namespace. Connecting waits for the carrier.
fn across(far: &Far, read_rate: u64) -> Line {
    let deadline = Instant::now() + PATIENCE;
    let ours = loop {
        let address = "10.9.7.2:900".parse().expect("an address");
        match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
            Ok(stream) => break stream,
            Err(error) => {
                assert_ne!(error.kind(), ErrorKind::ConnectionRefused);
                assert!(Instant::now() < deadline, "{error}");
            }
        }
    };
    let theirs = far.streams.recv_timeout(PATIENCE).expect("accepted");
    start(ours, theirs, read_rate)
}

/// Each kind of line is cut by switching the far end off.
#[test]
fn a_cut_line_is_found_dead() {
    between_namespaces(|far| {
        let slack = Duration::from_millis(1500);
        for busy in [true, false] {
            let mut line = across(far, 50 << 20);
            line.run(TIMES.dead * 2, busy).expect("lives");
            far.ip("link set far down");
            let after = line.dies(TIMES.dead + slack, busy);
            eprintln!("busy {busy}: dead after {after:?}");
            assert!(after >= TIMES.dead / 2, "{after:?}");
            far.ip("link set far up");
        }
        // A closed window is probed at least each second here (the least that Linux offers, and
        // without the option each 3 s or so by then), and three probes must go unanswered.
        let mut line = across(far, 50 << 20);
        line.run(TIMES.dead, true).expect("lives");
        line.set_read_rate(0);
        line.run(TIMES.dead * 3, true).expect("is stalled");
        assert!(line.connection.stalled_for(Instant::now()) >= TIMES.dead);
        far.ip("link set far down");
        let after = line.dies(Duration::from_secs(20), true);
        eprintln!("stalled: dead after {after:?}");
    });
}
