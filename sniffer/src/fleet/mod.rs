//! All rings of a live capture: which interface is on which threads, and what their filters are.
//!
//! Order of life (PACKET_FANOUT, packet(7)): every ring of an interface is bound and has joined its
//! group while its filter drops everything; then, when the port of our own uplink is known, each
//! gets its real filter. So no packet is seen twice, nor our own connection even once.

mod filters;
mod links;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bpf::{Exclusion, FilterError, LinkLayer, Program, exclude};
use thiserror::Error;
use wire::Interface;
use wire::block::{Epoch, StreamKey};
use wire::clock::wall_ns;
use wire::description::Description;
use wire::ledger::{Outage, OutageKind};
use wire::limited;
use wire::log::{FEW, SOME};

pub use self::filters::Filters;

use self::links::{Down, Gone};
use crate::capture::{CaptureConfig, CaptureThread, FanoutOrder, RingOrder, RingState};
use crate::config::{Config, Live};
use crate::handover::Handover;
use crate::interfaces::{self, InterfaceInfo, LinkEvent, Monitor, os_description};
use crate::ring::{Instruction, RingConfig, RingControl, RingError, check_name};
use crate::snapshot::InterfaceSnapshot;

/// Time for a thread to open a ring, before anything is sent, and while the caller has to send.
const PATIENCE_AT_START: Duration = Duration::from_secs(60);
const PATIENCE_WHILE_SENDING: Duration = Duration::from_secs(1);

/// Why capture cannot begin.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum FleetError {
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error(transparent)]
    Filter(#[from] Arc<FilterError>),
    #[error(transparent)]
    Interface(#[from] interfaces::InterfaceError),
    #[error("interface {name}: frames of a link type that pcapng has no number for")]
    LinkType { name: String },
    #[error("capture thread: {0}")]
    Thread(std::io::Error),
    #[error("interfaces: {0}")]
    List(std::io::Error),
}

impl FleetError {
    /// There is no such interface.
    fn is_missing(&self) -> bool {
        matches!(
            self,
            Self::Interface(interfaces::InterfaceError::NoSuchDevice { .. })
                | Self::Ring(RingError::NoSuchDevice { .. })
        )
    }

    /// The filter itself is at fault: wrong usage.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Filter(error) if filters::is_wrong(error))
    }
}

/// All rings of a live capture.
pub struct Fleet {
    epoch: Epoch,
    name: String,
    filter: Option<String>,
    filters: Filters,
    snaplen: u32,
    live: Live,
    threads: Vec<CaptureThread>,
    next_ring: u32,
    /// By interface index.
    captured: BTreeMap<u32, Captured>,
    /// By name: interfaces that were captured and may come back.
    gone: BTreeMap<String, Gone>,
    /// The last streams of an earlier run, by interface.
    former: BTreeMap<String, VecDeque<StreamKey>>,
    /// By name: why an interface could not be opened, so that it is said once.
    failures: BTreeMap<String, String>,
    /// When what could not be opened is tried again.
    retry_at: Option<Instant>,
    exclusions: Vec<Exclusion>,
    /// Interfaces as they come and go.
    monitor: Monitor,
    block_timeout_ms: u32,
    /// How long a thread may take to open a ring.
    patience: Duration,
    /// Filters were set: what is opened from now on captures at once.
    has_begun: bool,
    /// Capture is over: no filter is set and nothing is opened any more.
    is_stopped: bool,
}

/// An interface that is captured.
struct Captured {
    name: String,
    program: Program,
    link: LinkLayer,
    rings: Vec<CapturedRing>,
    /// It is down, or has no carrier.
    down: Option<Down>,
    /// How long there was none of this name, if it was captured before.
    was_gone_for: Option<Duration>,
}

struct CapturedRing {
    /// Its name among the rings: streams are succeeded, the ring stays.
    id: u32,
    control: RingControl,
    thread: usize,
    state: Arc<RingState>,
}

impl Fleet {
    /// Opens every ring. Nothing is captured until [`Fleet::set_exclusions`]. `filters`: the user's filter,
    /// compiled. `former`: the streams of an earlier run that those of each interface go on from.
    pub fn open(
        config: &Config,
        live: &Live,
        filters: Filters,
        epoch: Epoch,
        capture: CaptureConfig,
        handover: &Handover,
        former: BTreeMap<String, VecDeque<StreamKey>>,
    ) -> Result<Self, FleetError> {
        let start = |core| CaptureThread::start(core, capture.clone(), handover.clone());
        let threads = if live.cores.is_empty() {
            vec![start(None).map_err(FleetError::Thread)?]
        } else {
            let started: Result<_, _> = live.cores.iter().map(|core| start(Some(*core))).collect();
            started.map_err(FleetError::Thread)?
        };
        let mut fleet = Self {
            epoch,
            name: config.name.clone(),
            filter: config.filter.clone(),
            filters,
            snaplen: config.snaplen,
            live: live.clone(),
            threads,
            next_ring: 0,
            captured: BTreeMap::new(),
            gone: BTreeMap::new(),
            former,
            failures: BTreeMap::new(),
            retry_at: None,
            exclusions: Vec::new(),
            monitor: Monitor::open().map_err(FleetError::List)?,
            block_timeout_ms: config.block_timeout.as_millis().max(1) as u32,
            patience: PATIENCE_AT_START,
            has_begun: false,
            is_stopped: false,
        };
        if live.interfaces.is_empty() {
            fleet.open_all()?;
        }
        for name in &live.interfaces {
            match fleet.open_named(name) {
                Err(error) if live.wait && error.is_missing() => {
                    // What can be said to be wrong is said now, and not when it is there.
                    check_name(name)?;
                    fleet.filters.check()?;
                    limited!(info, SOME, "interface {name}: not there yet; capture begins when it is");
                }
                other => other?,
            }
        }
        fleet.patience = PATIENCE_WHILE_SENDING;
        Ok(fleet)
    }

    fn open_named(&mut self, name: &str) -> Result<(), FleetError> {
        let info = interfaces::find(name)?;
        if !info.up {
            limited!(warn, SOME, "interface {name}: is down; packets come when it is up");
        } else if !info.running {
            limited!(warn, SOME, "interface {name}: no carrier; packets come when it has one");
        }
        self.open_interface(&info)
    }

    fn open_interface(&mut self, info: &InterfaceInfo) -> Result<(), FleetError> {
        let Some(link_type) = info.link_type else {
            return Err(FleetError::LinkType { name: info.name.clone() });
        };
        let program = self.filters.program(link_type, info.loopback)?;
        let config = RingConfig {
            interface: info.name.clone(),
            ring_bytes: self.live.ring_bytes,
            block_bytes: self.live.block_bytes,
            retire_ms: self.block_timeout_ms,
            promiscuous: self.live.promiscuous,
            ignore_outgoing: info.loopback,
        };
        let gone = self.gone.get(&info.name);
        let mut captured = Captured {
            name: info.name.clone(),
            program,
            link: LinkLayer::of(link_type),
            rings: Vec::new(),
            down: (!(info.up && info.running)).then(Down::now),
            was_gone_for: gone.map(Gone::time),
        };
        let outages: Vec<Outage> = gone
            .map(|gone| gone.outage(&info.name))
            .into_iter()
            .chain(captured.down.as_ref().map(|down| down.outage(&info.name, None)))
            .collect();
        let mut former = self.former.remove(&info.name).unwrap_or_default();
        let mut group = None;
        for (index, thread) in self.threads.iter().enumerate() {
            let id = self.next_ring;
            self.next_ring += 1;
            let state = Arc::new(RingState::default());
            let fanout = (self.threads.len() > 1).then_some(FanoutOrder { group, mode: self.live.fanout });
            let order = RingOrder {
                id,
                config: config.clone(),
                fanout,
                epoch: self.epoch,
                state: Arc::clone(&state),
                predecessor: gone.and_then(|gone| gone.rings.get(index)).map(Arc::clone),
                description: Description {
                    predecessor: former.pop_front(),
                    ..self.describe(info, link_type)
                },
                outages: outages.clone(),
            };
            let opened = match thread.open(order, self.patience) {
                Ok(opened) => opened,
                Err(error) => {
                    for ring in &captured.rings {
                        self.threads[ring.thread].close(ring.id, error.to_string());
                    }
                    return Err(error.into());
                }
            };
            group = opened.group;
            if opened.ring_bytes < config.ring_bytes {
                limited!(
                    warn,
                    SOME,
                    "interface {}: ring of {} bytes, for want of memory",
                    info.name,
                    opened.ring_bytes
                );
            }
            captured.rings.push(CapturedRing { id, control: opened.control, thread: index, state });
        }
        let offloads = &info.offloads;
        let named =
            [("GRO", offloads.gro), ("LRO", offloads.lro), ("TSO", offloads.tso), ("GSO", offloads.gso)];
        let on: Vec<&str> =
            named.into_iter().filter(|(_, on)| *on == Some(true)).map(|(name, _)| name).collect();
        if !on.is_empty() {
            let on = on.join(", ");
            limited!(debug, SOME, "interface {}: {on} on: frames may be larger than on the wire", info.name);
        }
        self.gone.remove(&info.name);
        self.captured.insert(info.index, captured);
        Ok(())
    }

    fn describe(&self, info: &InterfaceInfo, link_type: u16) -> Description {
        let interface = Interface {
            name: info.name.clone(),
            description: None,
            link_type,
            snaplen: self.snaplen,
            filter: self.filter.clone(),
            os: Some(os_description()),
            hardware: info.hardware.clone(),
            speed_bits: info.speed_bits,
            mac: info.mac,
            fcs_bits: None,
            ts_offset_s: 0,
        };
        Description {
            name: self.name.clone(),
            agent: crate::AGENT.to_owned(),
            opened_ns: wall_ns(),
            predecessor: None,
            file: None,
            interfaces: vec![interface],
        }
    }

    /// Sets every ring's filter: not our own connections, and what the user wants of the rest.
    /// With the first call capture begins.
    /// An interface that does not take its filter captures nothing; the others do all the same,
    /// and the first error is returned.
    pub fn set_exclusions(&mut self, exclusions: &[Exclusion]) -> Result<(), FleetError> {
        if self.is_stopped {
            return Ok(());
        }
        self.exclusions = exclusions.to_vec();
        self.has_begun = true;
        let failed = self.captured.values().filter_map(|captured| captured.set_filter(exclusions).err());
        match failed.reduce(|first, _| first) {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    /// What tells that interfaces come and go.
    pub fn monitor(&self) -> &Monitor {
        &self.monitor
    }

    /// Whether an address is one of this host's own.
    pub fn is_own_address(address: IpAddr) -> bool {
        let address = address.to_canonical();
        let has = |info: &InterfaceInfo| info.addresses.iter().any(|own| own.to_canonical() == address);
        let special = address.is_loopback() || address.is_unspecified();
        special || interfaces::list().is_ok_and(|list| list.iter().any(has))
    }

    /// How many interfaces are captured.
    pub fn interface_count(&self) -> usize {
        self.captured.len()
    }

    /// Names of the interfaces that are captured.
    pub fn interface_names(&self) -> Vec<String> {
        self.captured.values().map(|captured| captured.name.clone()).collect()
    }

    /// Interfaces that were asked for by name, and those that are captured, sorted by name.
    pub fn interfaces(&self) -> Vec<InterfaceSnapshot> {
        let missing = |name: &String| (name.clone(), (false, false));
        let mut states: BTreeMap<String, (bool, bool)> = self.live.interfaces.iter().map(missing).collect();
        let open = |captured: &Captured| (captured.name.clone(), (true, captured.down.is_none()));
        states.extend(self.captured.values().map(open));
        let of = |(name, (is_open, is_up))| InterfaceSnapshot { name, is_open, is_up };
        states.into_iter().map(of).collect()
    }

    /// All capture threads: their names, and whether they run.
    pub fn threads(&self) -> impl Iterator<Item = (&str, bool)> {
        self.threads.iter().map(|thread| (thread.name(), thread.beats().is_some()))
    }

    /// The capture threads that run: their names, and a number of each that moves at least once a second.
    pub fn beats(&self) -> Vec<(&str, u64)> {
        self.threads.iter().filter_map(|thread| Some((thread.name(), thread.beats()?))).collect()
    }

    /// How many threads hand over, each until it says that it has ended.
    pub fn thread_count(&self) -> usize {
        self.threads.len()
    }

    /// Ends these streams and has their rings go on under new numbers, whose descriptions name them
    /// as predecessors. Nothing happens to the packets on their way, nor to streams that have ended.
    pub fn succeed(&self, streams: &[u32]) {
        if !streams.is_empty() {
            self.threads.iter().for_each(|thread| thread.succeed(streams));
        }
    }

    /// The line to the relay has room again.
    pub fn line_has_room(&self) {
        self.threads.iter().for_each(CaptureThread::line_has_room);
    }

    /// A buffer may be free again.
    pub fn buffer_is_free(&self) {
        self.threads.iter().for_each(CaptureThread::buffer_is_free);
    }

    /// Stops capturing: what is in the rings is handed over, then the threads end.
    pub fn stop(&mut self) {
        self.is_stopped = true;
        self.threads.iter().for_each(CaptureThread::stop);
    }
}

impl Captured {
    fn set_filter(&self, exclusions: &[Exclusion]) -> Result<(), RingError> {
        let program = exclude(&self.program, self.link, exclusions);
        let instructions: Vec<Instruction> =
            program.instructions().iter().map(|one| (one.code, one.jt, one.jf, one.k)).collect();
        for ring in &self.rings {
            match ring.control.set_filter(&instructions) {
                // Its interface is gone and its stream ended meanwhile.
                Ok(()) | Err(RingError::Closed { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
