//! One connection of a worker, and who is at its other end.

use std::time::Instant;

use wire::block::Epoch;
use wire::connection::Connection;

/// A run of a sniffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its name.
    pub name: String,
    /// The run.
    pub epoch: Epoch,
    /// The same for all runs of one spool.
    pub home: Epoch,
}

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Has not said hello yet.
    Stranger,
    /// A sniffer.
    Publisher(Run),
    /// A viewer.
    Subscriber,
}

/// A connection that has said hello, on its way to its worker.
#[derive(Debug)]
pub struct Newcomer {
    /// The connection, not registered with any poll.
    pub connection: Connection,
    /// Who it is.
    pub role: Role,
    /// Its address, as it is shown.
    pub address: String,
}

/// A connection of a worker.
#[derive(Debug)]
pub struct Peer {
    /// The connection.
    pub connection: Connection,
    /// Who it is.
    pub role: Role,
    /// Its address, as it is shown.
    pub address: String,
    /// A viewer has said what it wants.
    pub has_subscribed: bool,
    /// When it was adopted.
    pub since: Instant,
    /// It stands in the worker's list of those that have something to do.
    pub is_listed: bool,
}

impl Peer {
    /// A connection, not listed.
    pub fn new(newcomer: Newcomer, now: Instant) -> Self {
        let Newcomer { connection, role, address } = newcomer;
        Self { connection, role, address, has_subscribed: false, since: now, is_listed: false }
    }

    /// `sniffer web-3 (10.0.0.1:5555)`.
    pub fn title(&self) -> String {
        match &self.role {
            Role::Stranger => format!("connection from {}", self.address),
            Role::Publisher(run) => format!("sniffer {} ({})", run.name.escape_debug(), self.address),
            Role::Subscriber => format!("viewer ({})", self.address),
        }
    }
}
