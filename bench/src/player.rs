//! The relay's side of a viewer's connection, with nothing behind it: whoever subscribes gets the same prepared blocks,
//! as fast as they are taken. So the viewer is all that is measured.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use wire::block::{Epoch, PackedBlock};
use wire::clock::wall_ns;
use wire::connection::{Connection, ConnectionError, ReadShare, Received};
use wire::message::{Control, Envelope, PROTOCOL};
use wire::pool::Pool;
use wire::tcp::tune_unconnected;

use crate::blocks::Blocks;

const LISTENER: Token = Token(0);
const VIEWER: Token = Token(1);
/// For what viewers say.
const POOL_BYTES: usize = 8 << 20;
/// How often the connection looks at the clock.
const TICK: Duration = Duration::from_millis(250);

/// Waits for viewers, one after the other.
#[derive(Debug)]
pub struct Player {
    poll: Poll,
    listener: TcpListener,
    address: SocketAddr,
}

impl Player {
    /// Listens on a port of loopback.
    pub fn listen() -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        tune_unconnected(&listener.as_fd(), true);
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let address = listener.local_addr()?;
        Ok(Self { poll, listener, address })
    }

    /// What a viewer gives to `--relay`.
    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Plays to one viewer after the other. Ends only by an error of the host.
    pub fn play(&mut self, blocks: &Blocks) -> io::Result<()> {
        let pool = Pool::new(POOL_BYTES);
        let mut events = Events::with_capacity(16);
        let mut playing: Option<Playing<'_>> = None;
        loop {
            match self.poll.poll(&mut events, Some(TICK)) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            match self.listener.accept() {
                Ok((mut stream, _)) => {
                    self.poll.registry().register(
                        &mut stream,
                        VIEWER,
                        Interest::READABLE | Interest::WRITABLE,
                    )?;
                    let connection = Connection::server(stream, None, Instant::now());
                    playing = Some(Playing::new(connection.map_err(io::Error::other)?, blocks));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let Some(viewer) = &mut playing else { continue };
            for event in events.iter().filter(|event| event.token() == VIEWER) {
                viewer.connection.set_ready(event.is_readable(), event.is_writable());
            }
            // A viewer that has what it wants leaves.
            if viewer.turn(&pool).is_err() {
                playing = None;
            }
        }
    }
}

struct Playing<'a> {
    connection: Connection,
    blocks: &'a Blocks,
    /// What is still to come, once it has subscribed.
    left: Option<std::slice::Iter<'a, PackedBlock>>,
}

impl<'a> Playing<'a> {
    fn new(connection: Connection, blocks: &'a Blocks) -> Self {
        Self { connection, blocks, left: None }
    }

    fn turn(&mut self, pool: &Pool) -> Result<(), ConnectionError> {
        let now = Instant::now();
        self.connection.handle_timeout(now, wall_ns())?;
        loop {
            let mut share = ReadShare::default();
            while let Some(received) = self.connection.receive(now, pool, &mut share)? {
                if let Received::Control(json) = received
                    && let Ok(control) = Control::from_json(&json)
                {
                    self.handle(&control);
                }
            }
            while self.connection.wants_data()
                && let Some(block) = self.left.as_mut().and_then(Iterator::next)
            {
                self.connection.queue_data(Envelope::default(), block.bytes().clone());
            }
            self.connection.drive(now)?;
            let is_ready = self.connection.is_ready();
            let has_more =
                self.left.as_ref().is_some_and(|left| left.len() > 0) && self.connection.wants_data();
            if !is_ready && !has_more {
                return Ok(());
            }
        }
    }

    fn handle(&mut self, control: &Control) {
        match control {
            Control::Hello { .. } => {
                self.connection.trust(false);
                self.connection.queue_control(&Control::Welcome {
                    protocol: PROTOCOL,
                    instance: Epoch(1),
                    agent: "bench".to_owned(),
                    clock_ns: wall_ns(),
                    sees: Vec::new(),
                });
            }
            Control::Subscribe { .. } => {
                let join = Control::Join { status: self.blocks.status(), next_sequence: 0 };
                self.connection.queue_control(&join);
                self.connection.queue_control(&Control::Subscribed { streams: 1 });
                self.connection.queue_data(Envelope::default(), self.blocks.description.bytes().clone());
                self.left = Some(self.blocks.packets.iter());
            }
            _ => {}
        }
    }
}
