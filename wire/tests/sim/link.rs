//! A line between two ends: latency, bounded data under way, order, cuts.
//!
//! It queues as the real connection does: control messages before data messages, as long as
//! neither is committed to the line; what is committed arrives in order.

use std::collections::VecDeque;

use bytes::Bytes;
use wire::message::{Control, Envelope};

use crate::rng::Rng;

/// Data messages that a connection takes before they are committed to its line.
const DATA_QUEUED_MAX: usize = 3;

#[derive(Clone, Debug)]
pub enum Message {
    Control(Control),
    Data(Envelope, Bytes),
    /// The sender has closed: nothing follows.
    Close,
}

/// One direction.
#[derive(Debug, Default)]
pub struct Line {
    control: VecDeque<Message>,
    data: VecDeque<Message>,
    flight: VecDeque<(u64, Message)>,
    flight_max: usize,
    /// Something could not be committed.
    is_full: bool,
    latency: (u64, u64),
    data_sent: u64,
}

impl Line {
    pub fn new(rng: &mut Rng) -> Self {
        let low = rng.range(0, 5);
        let latency = (low, low + rng.range(0, 5));
        Self { flight_max: rng.range(1, 40) as usize, latency, ..Self::default() }
    }

    pub fn queue_control(&mut self, control: Control) {
        self.control.push_back(Message::Control(control));
    }

    pub fn queue_data(&mut self, envelope: Envelope, block: Bytes) {
        self.data.push_back(Message::Data(envelope, block));
    }

    pub fn queue_close(&mut self) {
        self.control.push_back(Message::Close);
    }

    /// As the real connection says it: little is queued.
    pub fn wants_data(&self) -> bool {
        self.data.len() < DATA_QUEUED_MAX
    }

    /// Whether everything queued has been handed to TCP.
    pub fn is_flushed(&self) -> bool {
        self.control.is_empty() && self.data.is_empty()
    }

    /// Whether the line has room again after it had none: told once, as by an edge-triggered poll.
    pub fn take_writable(&mut self) -> bool {
        let is_writable = self.is_full && self.flight.len() < self.flight_max;
        self.is_full &= !is_writable;
        is_writable
    }

    /// Data messages handed to TCP.
    pub fn data_sent(&self) -> u64 {
        self.data_sent
    }

    /// Commits what there is room for.
    pub fn drive(&mut self, now: u64, rng: &mut Rng) {
        while !self.is_flushed() {
            if self.flight.len() >= self.flight_max {
                self.is_full = true;
                return;
            }
            let Some(message) = self.control.pop_front().or_else(|| self.data.pop_front()) else { return };
            self.data_sent += u64::from(matches!(message, Message::Data(..)));
            let last = self.flight.back().map_or(0, |(at, _)| *at);
            let at = last.max(now + rng.range(self.latency.0, self.latency.1));
            self.flight.push_back((at, message));
        }
    }

    /// The next message, if it has arrived.
    pub fn receive(&mut self, now: u64) -> Option<Message> {
        if self.flight.front()?.0 > now {
            return None;
        }
        self.flight.pop_front().map(|(_, message)| message)
    }

    pub fn is_idle(&self) -> bool {
        self.control.is_empty() && self.data.is_empty() && self.flight.is_empty()
    }

    /// What is under way is lost.
    pub fn cut(&mut self) {
        self.flight.clear();
        self.control.clear();
        self.data.clear();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Open,
    /// The line is cut; this end notices at that tick.
    NoticesAt(u64),
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    Sniffer(usize),
    Viewer(usize),
}

/// A connection of a sniffer or a viewer to the relay.
#[derive(Debug)]
pub struct Connection {
    pub id: u64,
    pub of: Client,
    pub up: Line,
    pub down: Line,
    pub client: End,
    pub relay: End,
    /// The relay's worker that serves it, once it has said hello.
    pub worker: Option<usize>,
}

impl Connection {
    pub fn new(id: u64, of: Client, rng: &mut Rng) -> Self {
        let (up, down) = (Line::new(rng), Line::new(rng));
        Self { id, of, up, down, client: End::Open, relay: End::Open, worker: None }
    }

    /// Cuts the line; the ends notice at different times.
    pub fn cut(&mut self, now: u64, rng: &mut Rng) {
        self.up.cut();
        self.down.cut();
        for end in [&mut self.client, &mut self.relay] {
            if *end == End::Open {
                *end = End::NoticesAt(now + rng.range(0, 20));
            }
        }
    }

    pub fn is_cut(&self) -> bool {
        self.client != End::Open || self.relay != End::Open
    }
}
