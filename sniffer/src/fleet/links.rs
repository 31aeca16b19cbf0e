//! Interfaces that go down, go away, and come back.
//!
//! The kernel takes up capture by itself when an interface is up again, on the same ring; nothing but rtnetlink says that
//! it is (packet(7)). One that was deleted leaves its ring dead: the stream ends, and when an interface of the same name
//! comes, new rings of a new group are made, whose streams name those as predecessors.

use super::*;

/// Interfaces that are gone and remembered at most; names of containers' interfaces may be new each time.
const GONE_MAX: usize = 1024;
/// Time before another attempt to open what could not be opened.
const RETRY_TIME: Duration = Duration::from_secs(5);

/// An interface that is down, or without a carrier.
pub(super) struct Down {
    since: Instant,
    since_ns: u64,
}

/// An interface that was captured and is no more.
pub(super) struct Gone {
    since: Instant,
    since_ns: u64,
    /// By thread: the rings it had.
    pub(super) rings: Vec<Arc<RingState>>,
}

impl Down {
    pub(super) fn now() -> Self {
        Self { since: Instant::now(), since_ns: wall_ns() }
    }

    pub(super) fn outage(&self, name: &str, until_ns: Option<u64>) -> Outage {
        let interface = name.to_owned();
        Outage { kind: OutageKind::InterfaceDown, interface, from_ns: self.since_ns, until_ns }
    }
}

impl Gone {
    /// How long it has been gone.
    pub(super) fn time(&self) -> Duration {
        self.since.elapsed()
    }

    /// The outage that ends now.
    pub(super) fn outage(&self, name: &str) -> Outage {
        let (interface, until_ns) = (name.to_owned(), Some(wall_ns()));
        Outage { kind: OutageKind::InterfaceGone, interface, from_ns: self.since_ns, until_ns }
    }
}

impl Fleet {
    /// Interfaces may have come, changed or gone.
    pub fn handle_link_events(&mut self) {
        if self.is_stopped {
            return;
        }
        loop {
            match self.monitor.events() {
                Ok(events) if events.is_empty() => break,
                Ok(events) => {
                    for (at, event) in events.iter().enumerate() {
                        // An interface that is deleted goes down first: one line says enough.
                        let is_overtaken = |later: &LinkEvent| later.index == event.index && later.removed;
                        if !events[at + 1..].iter().any(is_overtaken) {
                            self.handle_link_event(event);
                        }
                    }
                }
                Err(error) => {
                    limited!(warn, FEW, "interfaces: {error}");
                    break;
                }
            }
        }
        self.open_what_is_missing();
    }

    /// Looks after what no event told of: call it about every second.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.is_stopped {
            return;
        }
        // Events can be lost, in a storm of them. The rings find out by themselves within a second.
        let over = |captured: &Captured| captured.rings.iter().any(|ring| ring.state.is_over());
        let dead = self.captured.iter().filter(|(_, captured)| over(captured)).map(|(index, _)| *index);
        let dead: Vec<u32> = dead.collect();
        dead.iter().for_each(|index| self.lose(*index));
        if !dead.is_empty() || self.retry_at.is_some_and(|at| now >= at) {
            self.open_what_is_missing();
        }
    }

    fn handle_link_event(&mut self, event: &LinkEvent) {
        if event.removed {
            self.failures.remove(&event.name);
            return self.lose(event.index);
        }
        let Some(captured) = self.captured.get_mut(&event.index) else { return };
        let name = &captured.name;
        let outage = match (&captured.down, event.up && event.running) {
            (None, false) => {
                let down = Down::now();
                match event.up {
                    true => limited!(
                        warn,
                        SOME,
                        "interface {name}: no carrier; packets come when it has one again"
                    ),
                    false => limited!(warn, SOME, "interface {name}: down; packets come when it is up again"),
                }
                let outage = down.outage(name, None);
                captured.down = Some(down);
                outage
            }
            (Some(down), true) => {
                limited!(
                    info,
                    SOME,
                    "interface {name}: up again after {:.1} s",
                    down.since.elapsed().as_secs_f64()
                );
                let outage = down.outage(name, Some(wall_ns()));
                captured.down = None;
                outage
            }
            _ => return,
        };
        for ring in &captured.rings {
            self.threads[ring.thread].note_outage(ring.id, outage.clone());
        }
    }

    /// An interface was deleted, or moved to another network namespace: its streams end.
    fn lose(&mut self, index: u32) {
        let Some(captured) = self.captured.remove(&index) else { return };
        let Captured { name, rings, down, .. } = captured;
        limited!(
            warn,
            SOME,
            "interface {name}: gone; its stream ends, and another begins when one of this name is there"
        );
        let gone = Gone {
            since: Instant::now(),
            since_ns: wall_ns(),
            rings: rings.iter().map(|ring| Arc::clone(&ring.state)).collect(),
        };
        for ring in &rings {
            if let Some(down) = &down {
                // It is not down any more; from here on it is gone.
                self.threads[ring.thread].note_outage(ring.id, down.outage(&name, Some(gone.since_ns)));
            }
            self.threads[ring.thread].close(ring.id, format!("interface {name}: gone"));
        }
        self.gone.insert(name, gone);
        if self.gone.len() > GONE_MAX
            && let Some(oldest) = self.gone.iter().min_by_key(|(_, gone)| gone.since)
        {
            let name = oldest.0.clone();
            self.gone.remove(&name);
        }
    }

    /// Opens what is wanted, there, and not captured, and captures it.
    fn open_what_is_missing(&mut self) {
        self.retry_at = None;
        let known: Vec<u32> = self.captured.keys().copied().collect();
        if let Err(error) = self.open_all() {
            limited!(warn, FEW, "{}", crate::text(&error));
        }
        for (index, captured) in &self.captured {
            if known.contains(index) {
                continue;
            }
            match &captured.was_gone_for {
                Some(time) => {
                    let seconds = time.as_secs_f64();
                    limited!(
                        info,
                        SOME,
                        "interface {}: there again after {seconds:.1} s; capturing",
                        captured.name
                    );
                }
                None => limited!(info, SOME, "interface {}: capturing", captured.name),
            }
            if self.has_begun
                && let Err(error) = captured.set_filter(&self.exclusions)
            {
                limited!(warn, FEW, "{}", crate::text(&error));
            }
        }
    }

    /// All wanted interfaces that are there and not captured yet. One that cannot be captured is
    /// left out, which is said once, and tried again.
    pub(super) fn open_all(&mut self) -> Result<(), FleetError> {
        for info in interfaces::list().map_err(FleetError::List)? {
            let wanted = &self.live.interfaces;
            let is_wanted = wanted.is_empty() || wanted.contains(&info.name);
            if !is_wanted || self.captured.contains_key(&info.index) {
                continue;
            }
            match self.open_interface(&info) {
                Ok(()) => {
                    self.failures.remove(&info.name);
                }
                // What is wrong with the filter or with our rights is wrong for every interface.
                Err(error @ FleetError::Ring(RingError::NotPermitted { .. })) => return Err(error),
                Err(error) if error.is_usage() && info.link_type == Some(1) => return Err(error),
                // It went away meanwhile; the event is on its way.
                Err(FleetError::Ring(RingError::NoSuchDevice { .. })) => {}
                Err(error) => {
                    if matches!(error, FleetError::Ring(_)) {
                        self.retry_at = Some(Instant::now() + RETRY_TIME);
                    }
                    let text = crate::text(&error);
                    if self.failures.get(&info.name) != Some(&text) {
                        limited!(warn, SOME, "{text}; left out");
                        self.failures.insert(info.name.clone(), text);
                    }
                }
            }
        }
        Ok(())
    }
}
