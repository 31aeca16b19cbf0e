//! A simulated relay: workers with a hub each, their inboxes, and turns like the real worker's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use wire::access::Grant;
use wire::block::{Epoch, StreamKey};
use wire::hub::{Awaited, Hub, HubConfig, Output, PeerId, Run};
use wire::message::{Control, Envelope, PROTOCOL, Role};

use crate::link::{Connection, End, Message};
use crate::plan::Plan;
use crate::rng::Rng;

/// Peer ids of other workers begin here.
const WORKER_PEERS: u64 = 1 << 40;
/// Blocks that wait in an inbox, at most.
const INBOX_BLOCKS_MAX: usize = 4;

/// The relay's clock does not begin at zero.
const CLOCK_START: u64 = 1_000;

type Connections = BTreeMap<u64, Connection>;

enum Note {
    Block(Envelope, Bytes),
    Control(Control),
    Settled(StreamKey, u64),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Served {
    /// Has said hello as this run.
    Newcomer(Epoch),
    Publisher(Epoch),
    Viewer,
}

struct Worker {
    hub: Hub,
    peers: BTreeMap<u64, Served>,
    ready: BTreeSet<u64>,
    inbox: VecDeque<(usize, Note)>,
    /// Data waits for that worker.
    worker_data: Vec<bool>,
}

pub struct Relay {
    workers: Vec<Worker>,
    instance: Epoch,
    next_viewer_worker: usize,
    viewer_queue_bytes: usize,
}

fn worker_peer(index: usize) -> PeerId {
    PeerId(WORKER_PEERS + index as u64)
}

impl Relay {
    pub fn new(plan: &Plan, rng: &mut Rng) -> Self {
        let awaited = Awaited::default();
        let worker = |index: usize| {
            let mut hub = Hub::new(HubConfig {
                viewer_queue_bytes: plan.viewer_queue_bytes,
                recent_bytes: plan.recent_bytes,
            });
            hub.set_awaited(awaited.clone());
            for other in (0..plan.workers).filter(|other| *other != index) {
                hub.add_worker(worker_peer(other), plan.worker_queue_bytes);
            }
            Worker {
                hub,
                peers: BTreeMap::new(),
                ready: BTreeSet::new(),
                inbox: VecDeque::new(),
                worker_data: vec![false; plan.workers],
            }
        };
        Self {
            workers: (0..plan.workers).map(worker).collect(),
            instance: Epoch(rng.next()),
            next_viewer_worker: 0,
            viewer_queue_bytes: plan.viewer_queue_bytes,
        }
    }

    /// A connection has been closed or found dead by the relay.
    pub fn forget(&mut self, connection: &mut Connection, for_good: bool, now: u64) {
        connection.relay = End::Closed;
        let Some(index) = connection.worker else { return };
        self.workers[index].peers.remove(&connection.id);
        self.workers[index].ready.remove(&connection.id);
        self.workers[index].hub.remove_peer(PeerId(connection.id), for_good, CLOCK_START + now);
    }

    pub fn shed(&mut self, rng: &mut Rng) -> bool {
        let index = rng.next() as usize % self.workers.len();
        self.workers[index].hub.shed()
    }

    pub fn handle_timeout(&mut self, now: u64, limit: u64) {
        for worker in &mut self.workers {
            worker.hub.handle_timeout(CLOCK_START + now, limit);
        }
    }

    /// A message of a connection that has said who it is, or says it now.
    fn handle_message(
        &mut self,
        connection: &mut Connection,
        message: Message,
        now: u64,
    ) -> Result<(), String> {
        let peer = PeerId(connection.id);
        let Some(index) = connection.worker else {
            if matches!(message, Message::Close) {
                connection.relay = End::Closed;
                return Ok(());
            }
            let Message::Control(Control::Hello { role, name, epoch, home, former, .. }) = message else {
                return Err(format!("the first message is {message:?}"));
            };
            let workers = self.workers.len() as u64;
            self.next_viewer_worker += 1;
            let index = match role {
                Role::Publish => (home.0 % workers) as usize,
                Role::Subscribe => self.next_viewer_worker % workers as usize,
            };
            connection.worker = Some(index);
            let agent = "sim".to_owned();
            let welcome = Control::Welcome {
                protocol: PROTOCOL,
                instance: self.instance,
                agent,
                clock_ns: now,
                sees: Vec::new(),
            };
            connection.down.queue_control(welcome);
            let worker = &mut self.workers[index];
            worker.peers.insert(connection.id, Served::Newcomer(epoch));
            worker.ready.insert(connection.id);
            if role == Role::Publish {
                let was_elsewhere = former != Epoch::default() && former != self.instance;
                worker.peers.insert(connection.id, Served::Publisher(epoch));
                let run = Run { owner: "sim".to_owned(), name, epoch, home, was_elsewhere };
                let added = worker.hub.add_publisher(peer, run, "sim".to_owned());
                added.map_err(|error| error.to_string())?;
            }
            return Ok(());
        };
        let worker = &mut self.workers[index];
        let role = worker.peers.get(&connection.id).copied();
        match (role, message) {
            (_, Message::Close) => self.forget(connection, true, now),
            (Some(Served::Publisher(_)), Message::Data(envelope, block)) => {
                worker.hub.handle_block(peer, envelope, block).map_err(|error| error.to_string())?;
            }
            (Some(Served::Publisher(_)), Message::Control(Control::Stream(announcement))) => {
                let handled = worker.hub.handle_stream(peer, announcement);
                handled.map_err(|error| error.to_string())?;
            }
            (
                Some(Served::Publisher(epoch)),
                Message::Control(Control::Mark { stream, complete_through_ns, .. }),
            ) => worker.hub.handle_mark(peer, epoch, stream, complete_through_ns),
            (Some(Served::Newcomer(run)), Message::Control(Control::Subscribe { selection, cursors })) => {
                worker.peers.insert(connection.id, Served::Viewer);
                worker
                    .hub
                    .add_viewer(peer, run, &selection, &Grant::anyone(), &cursors)
                    .map_err(|error| error.to_string())?;
            }
            (Some(Served::Viewer), Message::Control(Control::Progress { messages })) => {
                worker.hub.handle_progress(peer, messages);
            }
            (Some(Served::Publisher(_)), Message::Control(control @ Control::Skipped { .. })) => {
                worker.hub.handle_skipped(peer, &control);
            }
            (Some(Served::Publisher(_)), Message::Control(Control::End { place, reason })) => {
                worker.hub.handle_end(peer, place, &reason);
            }
            (Some(Served::Publisher(_)), Message::Control(Control::Paced { wants })) => {
                worker.hub.handle_paced(peer, wants);
            }
            (_, Message::Control(Control::Pong { .. })) => {}
            (_, other) => return Err(format!("the relay did not expect {other:?}")),
        }
        Ok(())
    }

    /// A turn of one worker, in the order of the real one.
    pub fn turn(
        &mut self,
        index: usize,
        connections: &mut Connections,
        now: u64,
        rng: &mut Rng,
    ) -> Result<(), String> {
        self.read_inbox(index, rng)?;
        // Newcomers, and those with something to read or room to write.
        let arrived: Vec<u64> = connections
            .values()
            .filter(|one| one.relay == End::Open && one.worker.is_none_or(|worker| worker == index))
            .map(|one| one.id)
            .collect();
        for id in arrived {
            for _ in 0..rng.range(1, 8) {
                let Some(connection) = connections.get_mut(&id) else { break };
                if connection.relay != End::Open || connection.worker.is_some_and(|worker| worker != index) {
                    break;
                }
                let Some(message) = connection.up.receive(now) else { break };
                let is_data = matches!(message, Message::Data(..));
                self.handle_message(connection, message, now)
                    .map_err(|error| format!("relay, connection {id}: {error}"))?;
                if is_data {
                    self.do_outputs(index, connections, now)?;
                }
            }
            let is_ready = self.workers[index].ready.remove(&id);
            if let Some(connection) = connections.get_mut(&id)
                && connection.worker == Some(index)
                && connection.relay == End::Open
                && (is_ready || connection.down.take_writable())
            {
                self.feed(index, connection, now, rng);
            }
        }
        self.do_outputs(index, connections, now)?;
        while let Some((PeerId(id), ack)) = self.workers[index].hub.poll_ack() {
            if let Some(connection) = connections.get_mut(&id)
                && self.workers[index].peers.contains_key(&id)
            {
                connection.down.queue_control(ack);
                self.workers[index].ready.insert(id);
            }
        }
        self.tell_workers(index);
        self.check_queues(index)
    }

    fn check_queues(&self, index: usize) -> Result<(), String> {
        let worker = &self.workers[index];
        for id in worker.peers.keys() {
            // As much again for descriptions and reports, a block, and replayed descriptions.
            let limit = self.viewer_queue_bytes * 2 + 4_000 + 9 * 4_000;
            let queued = worker.hub.queued_bytes(PeerId(*id)).unwrap_or(0);
            if queued > limit {
                return Err(format!("{queued} bytes wait for viewer {id}, at most {limit}"));
            }
        }
        Ok(())
    }

    /// Gives a viewer's connection what the hub has for it, as far as it goes.
    fn feed(&mut self, index: usize, connection: &mut Connection, now: u64, rng: &mut Rng) {
        let worker = &mut self.workers[index];
        let peer = PeerId(connection.id);
        let is_viewer = worker.peers.get(&connection.id) == Some(&Served::Viewer);
        loop {
            // Without this a line that was full and is now flushed would wait for an event that
            // nobody sends.
            let mut fed = !connection.down.wants_data();
            while is_viewer
                && connection.down.wants_data()
                && let Some((envelope, block)) = worker.hub.poll_data(peer)
            {
                connection.down.queue_data(envelope, block);
                fed = true;
            }
            connection.down.drive(now, rng);
            if is_viewer {
                worker.hub.handle_data_sent(peer, connection.down.data_sent());
            }
            if !fed || !connection.down.is_flushed() {
                return;
            }
        }
    }

    fn do_outputs(&mut self, index: usize, connections: &mut Connections, now: u64) -> Result<(), String> {
        while let Some(output) = self.workers[index].hub.poll_output() {
            match output {
                Output::Control { to, control } => match to.0.checked_sub(WORKER_PEERS) {
                    Some(other) => {
                        self.workers[other as usize].inbox.push_back((index, Note::Control(control)));
                    }
                    None => {
                        if let Some(connection) = connections.get_mut(&to.0)
                            && self.workers[index].peers.contains_key(&to.0)
                        {
                            connection.down.queue_control(control);
                            self.workers[index].ready.insert(to.0);
                        }
                    }
                },
                Output::Data { to } => match to.0.checked_sub(WORKER_PEERS) {
                    Some(other) => self.workers[index].worker_data[other as usize] = true,
                    None => {
                        if self.workers[index].peers.contains_key(&to.0) {
                            self.workers[index].ready.insert(to.0);
                        }
                    }
                },
                Output::Close { peer, .. } => {
                    if let Some(connection) = connections.get_mut(&peer.0) {
                        connection.down.queue_close();
                        connection.down.drive(now, &mut Rng::new(now));
                        self.forget(connection, false, now);
                    }
                }
            }
        }
        Ok(())
    }

    fn read_inbox(&mut self, index: usize, rng: &mut Rng) -> Result<(), String> {
        for _ in 0..rng.range(1, 12) {
            let worker = &mut self.workers[index];
            let Some((from, note)) = worker.inbox.pop_front() else { break };
            let peer = worker_peer(from);
            match note {
                Note::Block(envelope, bytes) => worker
                    .hub
                    .handle_block(peer, envelope, bytes)
                    .map_err(|error| format!("worker {index}, a block of worker {from}: {error}"))?,
                Note::Control(Control::Join { status, next_sequence }) => {
                    worker.hub.handle_join(peer, status, next_sequence);
                }
                Note::Control(Control::Gone { place, reason, ended }) => {
                    worker.hub.handle_worker_gone(peer, place, &reason, ended);
                }
                Note::Control(Control::Mark { epoch, stream, complete_through_ns }) => {
                    worker.hub.handle_mark(peer, epoch, stream, complete_through_ns);
                }
                Note::Control(Control::Takers { viewers, marks }) => {
                    worker.hub.handle_worker_takers(peer, viewers, marks);
                }
                Note::Control(control) => worker.hub.handle_skipped(peer, &control),
                Note::Settled(key, through) => worker.hub.handle_worker_settled(peer, key, through),
            }
        }
        Ok(())
    }

    fn tell_workers(&mut self, index: usize) {
        for other in (0..self.workers.len()).filter(|other| *other != index) {
            while self.workers[index].worker_data[other] {
                let waiting = self.workers[other].inbox.iter();
                if waiting.filter(|(_, note)| matches!(note, Note::Block(..))).count() >= INBOX_BLOCKS_MAX {
                    break;
                }
                match self.workers[index].hub.poll_data(worker_peer(other)) {
                    Some((envelope, block)) => {
                        self.workers[other].inbox.push_back((index, Note::Block(envelope, block)));
                    }
                    None => self.workers[index].worker_data[other] = false,
                }
            }
        }
        while let Some((to, key, settled)) = self.workers[index].hub.poll_settled() {
            let other = (to.0 - WORKER_PEERS) as usize;
            self.workers[other].inbox.push_back((index, Note::Settled(key, settled)));
        }
    }

    /// Bytes of the longest queue of a viewer.
    pub fn longest_queue(&self) -> usize {
        let of_worker = |worker: &Worker| {
            let queued = worker.peers.keys().filter_map(|id| worker.hub.queued_bytes(PeerId(*id)));
            queued.max().unwrap_or(0)
        };
        self.workers.iter().map(of_worker).max().unwrap_or(0)
    }

    /// Packets that came in, of all workers.
    pub fn packets_in(&self) -> u64 {
        self.workers.iter().map(|worker| worker.hub.totals().received.packets).sum()
    }

    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    pub fn is_idle(&self) -> bool {
        self.workers.iter().all(|worker| worker.inbox.is_empty() && worker.ready.is_empty())
    }
}
