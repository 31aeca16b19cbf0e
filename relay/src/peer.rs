//! One connection of a worker, and who is at its other end.

use std::time::Instant;

use wire::block::Epoch;
use wire::connection::Connection;
use wire::hub::Run;
use wire::message::Selection;

use crate::gate::Admission;
use crate::limit::Allowance;
use crate::rights::Who;

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Has not said hello yet.
    Stranger,
    /// A sniffer.
    Publisher(Run),
    /// A viewer.
    Subscriber(Epoch),
}

/// A connection on its way to its worker.
#[derive(Debug)]
pub struct Newcomer {
    /// The connection, not registered with any poll.
    pub connection: Connection,
    /// Who it is.
    pub role: Role,
    /// What it has proved; `None` for a stranger.
    pub who: Option<Who>,
    /// Its address, as it is shown.
    pub address: String,
    /// It counts as a connection as long as this lives.
    pub admission: Admission,
}

/// A connection of a worker.
#[derive(Debug)]
pub struct Peer {
    /// The connection.
    pub connection: Connection,
    /// Who it is.
    pub role: Role,
    /// What it has proved; `None` for a stranger.
    pub who: Option<Who>,
    /// Its address, as it is shown.
    pub address: String,
    /// It counts as a connection as long as this lives.
    pub admission: Admission,
    /// A viewer's, since when.
    pub subscription: Option<(Selection, Instant)>,
    /// What it may have others told.
    pub allowance: Allowance,
    /// When it was adopted.
    pub since: Instant,
    /// It stands in the worker's list of those that have something to do.
    pub is_listed: bool,
    /// It is counted among those that failed before their hello was taken.
    pub has_failed: bool,
}

impl Peer {
    /// A connection, not listed.
    pub fn new(newcomer: Newcomer, now: Instant) -> Self {
        let Newcomer { connection, role, who, address, admission } = newcomer;
        Self {
            connection,
            role,
            who,
            address,
            admission,
            subscription: None,
            allowance: Allowance::default(),
            since: now,
            is_listed: false,
            has_failed: false,
        }
    }

    /// Under which name it has proved itself.
    pub fn owner(&self) -> &str {
        self.who.as_ref().map_or("", |who| who.grant.name())
    }

    /// `sniffer web-3 (10.0.0.1:5555)`.
    pub fn title(&self) -> String {
        match &self.role {
            Role::Stranger => format!("connection from {}", self.address),
            Role::Publisher(run) => format!("sniffer {} ({})", run.name.escape_debug(), self.address),
            Role::Subscriber(_) => format!("viewer ({})", self.address),
        }
    }
}
