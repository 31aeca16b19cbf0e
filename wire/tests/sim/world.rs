//! Everything together: time in ticks, faults, the end and its checks.

use std::collections::BTreeMap;

use wire::message::Control;
use wire::uplink::Transmit;

use crate::link::{Client, Connection, End, Message};
use crate::plan::Plan;
use crate::relay::Relay;
use crate::rng::Rng;
use crate::sniffer::Sniffer;
use crate::viewer::Viewer;

/// Ticks in which everything must be drained.
const DRAIN_TICKS: u64 = 20_000;
/// A sniffer that is away for so long is given up, where a seed gives up at all.
const AWAY_TICKS: u64 = 25;

pub struct World {
    plan: Plan,
    rng: Rng,
    now: u64,
    sniffers: Vec<Sniffer>,
    viewers: Vec<Viewer>,
    relay: Relay,
    relay_up_at: u64,
    connections: BTreeMap<u64, Connection>,
    next_id: u64,
    is_draining: bool,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let plan = Plan::new(seed);
        let mut rng = Rng::new(seed);
        Self {
            sniffers: (0..plan.sniffers).map(|index| Sniffer::new(index, &plan, &mut rng)).collect(),
            viewers: (0..plan.viewers).map(|index| Viewer::new(index, &plan, &mut rng)).collect(),
            relay: Relay::new(&plan, &mut rng),
            relay_up_at: 0,
            connections: BTreeMap::new(),
            next_id: 1,
            now: 0,
            is_draining: false,
            plan,
            rng,
        }
    }

    /// Runs to the end; a fingerprint of how it went.
    pub fn run(mut self) -> Result<u64, String> {
        while self.now < self.plan.ticks {
            for index in 0..self.sniffers.len() {
                self.sniffers[index].capture(self.now, &mut self.rng)?;
            }
            self.go_wrong();
            self.tick()?;
        }
        for sniffer in &mut self.sniffers {
            sniffer.end(self.now, &mut self.rng)?;
        }
        self.is_draining = true;
        // A viewer that does not read holds up neither the sniffers nor the others.
        self.drain()?;
        // What waits in a spool is sent as far as viewers take it.
        let has_backlog = |one: &Sniffer| one.uplink.totals().successions > 0;
        let is_held = (self.plan.spool || self.sniffers.iter().any(has_backlog))
            && self.viewers.iter().any(|viewer| viewer.is_stalled);
        for sniffer in self.sniffers.iter().filter(|_| !is_held) {
            if let Some(what) = sniffer.behind() {
                return Err(format!("at rest, but {what}"));
            }
        }
        self.check(|viewer| !viewer.is_stalled && !is_held)?;
        for viewer in &mut self.viewers {
            viewer.is_stalled = false;
        }
        self.drain()?;
        for viewer in &mut self.viewers {
            viewer.finish()?;
        }
        self.check(|_| true)?;
        for sniffer in &self.sniffers {
            let totals = sniffer.uplink.totals();
            if !sniffer.uplink.is_settled() || totals.unsettled_sent_bytes != 0 {
                return Err(format!("{}: at rest, but not settled: {totals:?}", sniffer.name));
            }
        }
        self.check_relay()?;
        Ok(self.rng.next() ^ self.now)
    }

    /// Ticks until nothing moves any more.
    fn drain(&mut self) -> Result<(), String> {
        let limit = self.now + DRAIN_TICKS;
        let mut quiet = 0;
        while quiet < 60 {
            self.tick()?;
            quiet = if self.is_idle() { quiet + 1 } else { 0 };
            if self.now > limit {
                return Err(format!("it does not come to rest: {}", self.restless()));
            }
        }
        Ok(())
    }

    fn is_idle(&self) -> bool {
        let stalled = |one: &Connection| match one.of {
            Client::Viewer(index) => self.viewers[index].is_stalled,
            Client::Sniffer(_) => false,
        };
        let rests = self.sniffers.iter().all(|one| one.uplink.poll_timeout().is_none());
        let at_rest =
            |one: &Connection| !one.is_cut() && one.up.is_idle() && (one.down.is_idle() || stalled(one));
        rests
            && self.connections.values().all(at_rest)
            && self.relay.is_idle()
            && self.sniffers.iter().all(|one| one.uplink.is_streaming() && one.is_idle())
            && self.viewers.iter().all(|one| one.has_left || one.connection.is_some())
    }

    /// What still moves.
    fn restless(&self) -> String {
        let lines: Vec<_> = self
            .connections
            .values()
            .map(|one| (one.id, one.of, one.client, one.relay, one.up.is_idle(), one.down.is_idle()))
            .collect();
        let streaming: Vec<_> = self.sniffers.iter().map(|one| one.uplink.is_streaming()).collect();
        format!("relay idle {}, streaming {streaming:?}, lines {lines:?}", self.relay.is_idle())
    }

    /// What goes wrong in this tick.
    fn go_wrong(&mut self) {
        let (plan, rng, now) = (&self.plan, &mut self.rng, self.now);
        for connection in self.connections.values_mut() {
            let may_cut = match connection.of {
                Client::Sniffer(_) => plan.sniffer_cuts && rng.one_in(50),
                Client::Viewer(_) => plan.viewer_cuts && rng.one_in(80),
            };
            if may_cut && !connection.is_cut() {
                connection.cut(now, rng);
                if let Client::Viewer(index) = connection.of {
                    (self.viewers[index].was_cut, self.viewers[index].was_away) = (true, true);
                }
            }
        }
        if plan.shedding && rng.one_in(12) {
            self.relay.shed(rng);
        }
        for index in 0..self.sniffers.len() {
            if plan.sniffer_kills && rng.one_in(120) {
                for connection in self.connections.values_mut().filter(|one| one.of == Client::Sniffer(index))
                {
                    connection.client = End::Closed;
                    connection.cut(now, rng);
                }
                self.sniffers[index].kill(now, plan, rng);
            }
        }
        if plan.restarts && rng.one_in(100) {
            for connection in self.connections.values_mut() {
                connection.cut(now, rng);
                connection.relay = End::Closed;
            }
            for viewer in &mut self.viewers {
                // One that came back may still read what it missed out of the recent log.
                viewer.was_away |= viewer.was_cut;
                viewer.was_cut |= viewer.connection.is_some();
            }
            self.relay = Relay::new(plan, rng);
            self.relay_up_at = now + rng.range(1, 40);
        }
    }

    fn tick(&mut self) -> Result<(), String> {
        self.now += 1;
        let now = self.now;
        self.connect();
        for index in 0..self.sniffers.len() {
            self.sniffers[index].turn(now, &self.plan, &mut self.rng)?;
            self.serve_sniffer(index)?;
        }
        for index in 0..self.relay.workers() {
            if self.is_draining || self.rng.range(0, 3) > 0 {
                self.relay.turn(index, &mut self.connections, now, &mut self.rng)?;
            }
        }
        for index in 0..self.viewers.len() {
            self.serve_viewer(index)?;
        }
        self.notice_cuts();
        self.check_retained()?;
        if now.is_multiple_of(5) {
            let limit = if self.plan.giving_up { AWAY_TICKS } else { u64::MAX };
            self.relay.handle_timeout(now, limit);
        }
        Ok(())
    }

    fn connect(&mut self) {
        let now = self.now;
        if now < self.relay_up_at {
            return;
        }
        let mut open = |of: Client, rng: &mut Rng| {
            let id = self.next_id;
            self.next_id += 1;
            self.connections.insert(id, Connection::new(id, of, rng));
            id
        };
        for (index, sniffer) in self.sniffers.iter_mut().enumerate() {
            if sniffer.connection.is_none() && now >= sniffer.connects_at {
                let id = open(Client::Sniffer(index), &mut self.rng);
                sniffer.handle_connected(id, now);
            }
        }
        for (index, viewer) in self.viewers.iter_mut().enumerate() {
            if viewer.connection.is_none() && !viewer.has_left && now >= viewer.connects_at {
                let id = open(Client::Viewer(index), &mut self.rng);
                viewer.handle_connected(id, now);
            }
        }
    }

    fn serve_sniffer(&mut self, index: usize) -> Result<(), String> {
        let sniffer = &mut self.sniffers[index];
        let Some(connection) = sniffer.connection.and_then(|id| self.connections.get_mut(&id)) else {
            return Ok(());
        };
        if connection.client != End::Open {
            return Ok(());
        }
        while let Some(message) = connection.down.receive(self.now) {
            match message {
                Message::Control(control) => {
                    sniffer.handle_control(same(&self.plan, control)?, self.now)?;
                }
                Message::Data(..) => return Err(format!("{}: it was sent a block", sniffer.name)),
                Message::Close => {
                    connection.client = End::NoticesAt(self.now);
                    return Ok(());
                }
            }
        }
        loop {
            while let Some(control) = sniffer.uplink.poll_control() {
                connection.up.queue_control(control);
            }
            let mut fed = !connection.up.wants_data();
            while connection.up.wants_data()
                && let Some(transmit) = sniffer.uplink.poll_data()
            {
                match transmit {
                    Transmit::Control(control) => connection.up.queue_control(control),
                    Transmit::Data(envelope, payload) => {
                        connection.up.queue_data(envelope, payload.plain());
                    }
                }
                fed = true;
            }
            connection.up.drive(self.now, &mut self.rng);
            if !fed || !connection.up.is_flushed() {
                return Ok(());
            }
        }
    }

    fn serve_viewer(&mut self, index: usize) -> Result<(), String> {
        let viewer = &mut self.viewers[index];
        let Some(connection) = viewer.connection.and_then(|id| self.connections.get_mut(&id)) else {
            return Ok(());
        };
        if connection.client != End::Open {
            return Ok(());
        }
        if viewer.leaves_at.is_some_and(|at| self.now >= at) {
            viewer.has_left = true;
            connection.client = End::Closed;
            connection.down.cut();
            connection.up.queue_close();
            connection.up.drive(self.now, &mut self.rng);
            if self.rng.one_in(2) {
                connection.cut(self.now, &mut self.rng);
            }
            return Ok(());
        }
        let speed = if viewer.is_stalled { 0 } else { viewer.speed };
        for _ in 0..speed {
            match connection.down.receive(self.now) {
                Some(Message::Control(control)) => {
                    viewer.handle_control(same(&self.plan, control)?, self.now)?;
                }
                Some(Message::Data(envelope, block)) => {
                    viewer.handle_data(envelope, &block)?;
                    viewer.arrived += 1;
                }
                Some(Message::Close) => return Err(format!("viewer {index}: the relay closed")),
                None => break,
            }
        }
        // Even one that does not read says hello and subscribes.
        if viewer.is_stalled
            && !viewer.downlink.is_welcomed()
            && let Some(Message::Control(control)) = connection.down.receive(self.now)
        {
            viewer.handle_control(control, self.now)?;
        }
        while let Some(control) = viewer.downlink.poll_control() {
            connection.up.queue_control(control);
        }
        if viewer.arrived > viewer.told && (self.is_draining || self.rng.one_in(3)) {
            viewer.told = viewer.arrived;
            connection.up.queue_control(Control::Progress { messages: viewer.arrived });
        }
        connection.up.drive(self.now, &mut self.rng);
        Ok(())
    }

    fn notice_cuts(&mut self) {
        let now = self.now;
        for connection in self.connections.values_mut() {
            if connection.client == End::Closed {
                connection.up.drive(now, &mut self.rng);
            }
            if matches!(connection.relay, End::NoticesAt(at) if now >= at) {
                self.relay.forget(connection, false, now);
            }
            if connection.relay == End::Closed && connection.client == End::Open && connection.down.is_idle()
            {
                connection.client = End::NoticesAt(now + 3);
            }
            if !matches!(connection.client, End::NoticesAt(at) if now >= at) {
                continue;
            }
            connection.client = End::Closed;
            connection.up.cut();
            if connection.relay == End::Open {
                connection.relay = End::NoticesAt(now + self.rng.range(0, 60));
            }
            match connection.of {
                Client::Sniffer(index) => self.sniffers[index].handle_disconnected(now, &mut self.rng),
                Client::Viewer(index) => {
                    self.viewers[index].connection = None;
                    self.viewers[index].connects_at = now + self.rng.range(1, 20);
                }
            }
        }
        self.connections.retain(|_, one| one.client != End::Closed || one.relay != End::Closed);
    }

    fn check(&self, of: impl Fn(&Viewer) -> bool) -> Result<(), String> {
        for viewer in self.viewers.iter().filter(|viewer| of(viewer)) {
            for sniffer in &self.sniffers {
                for (key, truth) in sniffer.truths() {
                    viewer.check(key, &sniffer.name, &truth, &self.plan, sniffer.lost())?;
                }
            }
        }
        Ok(())
    }

    /// What waits for a viewer is not settled, and so the sniffers still have it; descriptions
    /// replayed at a join aside.
    fn check_retained(&self) -> Result<(), String> {
        let plan = &self.plan;
        let may_be_gone = plan.small_memory || plan.restarts || plan.shedding || plan.spool;
        if may_be_gone || plan.small_viewer_queue || plan.small_worker_queue {
            return Ok(());
        }
        let retained: usize = self.sniffers.iter().map(|one| one.uplink.totals().retained_bytes).sum();
        let replayed: usize = self.sniffers.iter().map(Sniffer::description_bytes).sum();
        let waiting = self.relay.longest_queue();
        if waiting > retained + replayed {
            return Err(format!("{waiting} bytes wait for a viewer, but the sniffers retain {retained}"));
        }
        Ok(())
    }

    /// What the sniffers made is what the relay took and what they say was lost.
    fn check_relay(&self) -> Result<(), String> {
        if self.plan.restarts || self.plan.sniffer_kills {
            return Ok(());
        }
        let made: u64 = self.sniffers.iter().flat_map(Sniffer::truths).map(|(_, truth)| truth.packets).sum();
        let lost: u64 = self.sniffers.iter().map(Sniffer::lost).sum();
        let taken = self.relay.packets_in();
        if made != taken + lost {
            return Err(format!("made {made} packets, the relay took {taken}, the sniffers lost {lost}"));
        }
        Ok(())
    }
}

/// The same message, through JSON where the plan says so.
fn same(plan: &Plan, control: Control) -> Result<Control, String> {
    if !plan.json {
        return Ok(control);
    }
    let parsed = Control::from_json(&control.to_json()).map_err(|error| error.to_string())?;
    if parsed == control { Ok(parsed) } else { Err(format!("{control:?} became {parsed:?}")) }
}
