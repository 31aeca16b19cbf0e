//! Resident memory of the relay for each of many connections on which nothing happens but pings.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::ValueEnum;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use serde::{Deserialize, Serialize};
use wire::Interface;
use wire::block::{Epoch, Kind, StreamKey};
use wire::connection::{Connection, ReadShare, Received, RelayUrl};
use wire::description::Description;
use wire::message::{Control, Envelope, Role, Selection};
use wire::pack::{Compression, Packer};
use wire::pool::Pool;

use super::load::hello;
use super::middle::{Middle, Place, start};

/// Longest wait for an event.
const TICK: Duration = Duration::from_millis(100);
/// All are connected and joined within this time.
const JOIN_TIME: Duration = Duration::from_secs(120);

/// What the viewers watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Watch {
    /// Each one sniffer
    One,
    /// Each all sniffers
    All,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// Sniffers, and as many viewers.
    pub sniffers: usize,
    /// What each of these watches.
    pub watch: Watch,
    /// Round.
    pub round: usize,
    /// Resident memory of the relay before anybody connects, when all have been idle, and the most, in KiB.
    pub resident_kib: [u64; 3],
    /// CPU of the relay while all are idle, as a share of a core.
    pub cpu_share: f64,
}

impl Measured {
    /// KiB for each connection.
    pub fn kib_each(&self) -> f64 {
        let [before, after, _] = self.resident_kib;
        after.saturating_sub(before) as f64 / (2 * self.sniffers) as f64
    }
}

/// Connects `count` sniffers and as many viewers, lets them idle for `time`, and measures.
pub fn measure(place: &Place, count: usize, watch: Watch, time: Duration) -> io::Result<Measured> {
    let running = start(place, Middle::Relay)?;
    let before_kib = running.program.resident_kib();
    let mut crowd = Crowd::new(running.address)?;
    for number in 0..count {
        crowd.connect(Part::Sniffer(Epoch(number as u64 + 1)))?;
    }
    for number in 0..count {
        let globs = match watch {
            Watch::One => vec![format!("load-{}", Epoch(number as u64 + 1))],
            Watch::All => Vec::new(),
        };
        crowd.connect(Part::Viewer(Selection { sniffers: globs, ..Selection::default() }))?;
    }
    let descriptions = if watch == Watch::All { count * count } else { count };
    let deadline = Instant::now() + JOIN_TIME;
    while crowd.descriptions < descriptions {
        if Instant::now() > deadline {
            let text = format!("{} of {descriptions} descriptions came in 120 s", crowd.descriptions);
            return Err(io::Error::other(format!(
                "{text}; the relay said: {}",
                running.program.said().trim()
            )));
        }
        crowd.turn()?;
    }
    let (begin, cpu_ns) = (Instant::now(), running.program.cpu_ns()?);
    while begin.elapsed() < time {
        crowd.turn()?;
    }
    let cpu_share = (running.program.cpu_ns()? - cpu_ns) as f64 / begin.elapsed().as_nanos() as f64;
    let resident_kib = [before_kib, running.program.resident_kib(), running.program.peak_kib()];
    Ok(Measured { sniffers: count, watch, round: 0, resident_kib, cpu_share })
}

enum Part {
    Sniffer(Epoch),
    Viewer(Selection),
}

/// Many clients in one thread.
struct Crowd {
    address: SocketAddr,
    url: RelayUrl,
    poll: Poll,
    pool: Pool,
    clients: Vec<Client>,
    /// Descriptions that have come to viewers.
    descriptions: usize,
    ticked: Instant,
}

struct Client {
    connection: Connection,
    part: Part,
    messages: u64,
}

impl Crowd {
    fn new(address: SocketAddr) -> io::Result<Self> {
        let url = RelayUrl::parse(&format!("ws://{address}")).map_err(io::Error::other)?;
        let (clients, poll, pool) = (Vec::new(), Poll::new()?, Pool::new(256 << 20));
        Ok(Self { address, url, poll, pool, clients, descriptions: 0, ticked: Instant::now() })
    }

    /// Connects one, and goes on when it is welcomed and has said what it has or wants.
    fn connect(&mut self, part: Part) -> io::Result<()> {
        let stream = std::net::TcpStream::connect(self.address)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(self.clients.len()), both)?;
        let connection =
            Connection::client(stream, &self.url, None, Instant::now()).map_err(io::Error::other)?;
        self.clients.push(Client { connection, part, messages: 0 });
        self.serve(self.clients.len() - 1)?;
        // The relay lets in so many strangers and no more.
        while !self.clients.last().is_some_and(|client| client.connection.is_open()) {
            self.turn()?;
        }
        Ok(())
    }

    fn turn(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        match self.poll.poll(&mut events, Some(TICK)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in events.iter() {
            let Token(index) = event.token();
            self.clients[index].connection.set_ready(event.is_readable(), event.is_writable());
            self.serve(index)?;
        }
        if self.ticked.elapsed() >= TICK {
            self.ticked = Instant::now();
            for index in 0..self.clients.len() {
                let client = &mut self.clients[index];
                client.connection.handle_timeout(self.ticked, 1).map_err(io::Error::other)?;
                self.serve(index)?;
            }
        }
        Ok(())
    }

    fn serve(&mut self, index: usize) -> io::Result<()> {
        let (now, client) = (Instant::now(), &mut self.clients[index]);
        let before = client.messages;
        loop {
            let mut share = ReadShare::default();
            let received = client.connection.receive(now, &self.pool, &mut share);
            match received.map_err(io::Error::other)? {
                Some(Received::Open) => {
                    client.connection.trust(true);
                    let hello = match &client.part {
                        Part::Sniffer(epoch) => hello(Role::Publish, *epoch),
                        Part::Viewer(_) => hello(Role::Subscribe, Epoch::default()),
                    };
                    client.connection.queue_control(&hello);
                }
                Some(Received::Data(_)) => client.messages += 1,
                Some(Received::Control(json)) => {
                    client.handle(Control::from_json(&json).map_err(io::Error::other)?)?;
                }
                None if !client.connection.is_ready() => break,
                None => {}
            }
            client.connection.drive(now).map_err(io::Error::other)?;
        }
        if client.messages > before {
            self.descriptions += (client.messages - before) as usize;
            client.connection.queue_control(&Control::Progress { messages: client.messages });
        }
        client.connection.drive(now).map_err(io::Error::other)
    }
}

impl Client {
    fn handle(&mut self, control: Control) -> io::Result<()> {
        match (control, &self.part) {
            (Control::Welcome { .. }, Part::Sniffer(epoch)) => {
                let key = StreamKey { epoch: *epoch, stream: 0 };
                let (announcement, block) = described(key)?;
                self.connection.queue_control(&Control::Stream(announcement));
                self.connection.queue_data(Envelope::default(), block);
            }
            (Control::Welcome { .. }, Part::Viewer(selection)) => {
                let selection = selection.clone();
                self.connection.queue_control(&Control::Subscribe { selection, cursors: Vec::new() });
            }
            (Control::Ping { clock_ns }, _) => {
                self.connection.queue_control(&Control::Pong { ping_ns: clock_ns, clock_ns });
            }
            (Control::Error { reason }, _) => return Err(io::Error::other(reason)),
            _ => {}
        }
        Ok(())
    }
}

/// A stream, and the block that describes it.
fn described(key: StreamKey) -> io::Result<(wire::message::Announcement, Bytes)> {
    let interface = Interface { name: "eth0".to_owned(), link_type: 1, ..Interface::default() };
    let name = format!("load-{}", key.epoch);
    let description =
        Description { name, opened_ns: 1, interfaces: vec![interface], ..Description::default() };
    let mut packer = Packer::new(key, Pool::new(1 << 20), 0, Compression::None);
    let block = packer.seal_json(Kind::Description, &description, 1, false);
    let block = block.ok_or_else(|| io::Error::other("no description could be made"))?;
    Ok((description.announcement(key), block.bytes().clone()))
}
