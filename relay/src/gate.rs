//! Who gets in at all: bounds on connections, in all and by address, on failed attempts, and on web pages.
//!
//! An address is that of IPv4, or the first 64 bits of IPv6: whoever has one of a network has all.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use thiserror::Error;
use wire::connection::Origin;

/// Failed attempts that an address has at once...
const ATTEMPTS_MAX: u32 = 20;
/// ... and the time after which it has one more.
const ATTEMPT_TIME: Duration = Duration::from_secs(3);
/// Addresses whose failures are remembered, at most.
const ADDRESSES_MAX: usize = 16_384;

/// Why a connection is not taken.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum Refusal {
    #[error("over --connections {most}")]
    Connections { most: usize },
    #[error("over --connections-per-address {most} from its address")]
    PerAddress { most: usize },
}

/// Counts connections of all workers. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Gate {
    counts: Arc<Mutex<Counts>>,
}

#[derive(Debug, Default)]
struct Counts {
    connections_max: usize,
    per_address_max: usize,
    connections: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Gate {
    /// A gate that lets so many in, in all and from one address.
    pub fn new(connections_max: usize, per_address_max: usize) -> Self {
        let gate = Self { counts: Arc::default() };
        gate.set_bounds(Some(connections_max), Some(per_address_max));
        gate
    }

    /// Lets so many in from now on; `None`: as many as before. Those that are in stay, and count.
    pub fn set_bounds(&self, connections_max: Option<usize>, per_address_max: Option<usize>) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.connections_max = connections_max.unwrap_or(counts.connections_max);
        counts.per_address_max = per_address_max.unwrap_or(counts.per_address_max);
    }

    /// Connections that are let in at most.
    pub fn connections_max(&self) -> usize {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).connections_max
    }

    /// Lets a connection in, as long as what is returned is kept.
    pub fn admit(&self, address: IpAddr) -> Result<Admission, Refusal> {
        let address = network(address);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.connections >= counts.connections_max {
            return Err(Refusal::Connections { most: counts.connections_max });
        }
        let of_address = counts.by_address.get(&address).copied().unwrap_or(0);
        if of_address >= counts.per_address_max {
            return Err(Refusal::PerAddress { most: counts.per_address_max });
        }
        counts.connections += 1;
        counts.by_address.insert(address, of_address + 1);
        Ok(Admission { address, counts: Arc::clone(&self.counts) })
    }
}

/// A connection that was let in; it counts until this is dropped.
#[derive(Debug)]
pub struct Admission {
    address: IpAddr,
    counts: Arc<Mutex<Counts>>,
}

impl Admission {
    /// Where it comes from, as the gate counts.
    pub fn address(&self) -> IpAddr {
        self.address
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.connections -= 1;
        if let Some(count) = counts.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.by_address.remove(&self.address);
            }
        }
    }
}

/// What counts as one address.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

/// Origins of web pages that may connect. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Origins(Arc<RwLock<Arc<[Origin]>>>);

impl Origins {
    /// These may connect.
    pub fn new(origins: Arc<[Origin]>) -> Self {
        Self(Arc::new(RwLock::new(origins)))
    }

    /// For a connection that comes now.
    pub fn now(&self) -> Arc<[Origin]> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// These may connect from now on.
    pub fn set(&self, origins: Arc<[Origin]>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = origins;
    }
}

/// Failed attempts to prove oneself, by address: an address that has used up its own must wait, and
/// nothing is checked for it meanwhile.
#[derive(Debug, Default)]
pub struct Attempts {
    /// When all its attempts are there again.
    whole_at: HashMap<IpAddr, Instant>,
    failed: u64,
}

impl Attempts {
    /// Whether this address has an attempt left.
    pub fn has_one(&self, address: IpAddr, now: Instant) -> bool {
        let Some(whole_at) = self.whole_at.get(&address) else { return true };
        whole_at.saturating_duration_since(now) <= ATTEMPT_TIME * (ATTEMPTS_MAX - 1)
    }

    /// An attempt has failed.
    pub fn fail(&mut self, address: IpAddr, now: Instant) {
        self.failed += 1;
        if self.whole_at.len() >= ADDRESSES_MAX && !self.whole_at.contains_key(&address) {
            self.whole_at.retain(|_, whole_at| *whole_at > now);
            // That many addresses fail at once: one more is not worth the memory.
            if self.whole_at.len() >= ADDRESSES_MAX {
                return;
            }
        }
        let whole_at = self.whole_at.entry(address).or_insert(now);
        *whole_at = (*whole_at).max(now) + ATTEMPT_TIME;
    }

    /// A failure that makes no wait longer: of an attempt that was not looked at, or of TLS, where
    /// there is no secret to guess.
    pub fn count(&mut self) {
        self.failed += 1;
    }

    /// Failed attempts since the start.
    pub fn failed(&self) -> u64 {
        self.failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn connections_are_bounded_in_all_and_by_address() {
        let gate = Gate::new(3, 2);
        let one = gate.admit(address("10.0.0.1")).expect("room");
        let two = gate.admit(address("::ffff:10.0.0.1")).expect("room");
        assert_eq!(gate.admit(address("10.0.0.1")).err(), Some(Refusal::PerAddress { most: 2 }));
        let three = gate.admit(address("2001:db8::1")).expect("room");
        assert_eq!(gate.admit(address("10.0.0.2")).err(), Some(Refusal::Connections { most: 3 }));
        drop((one, two, three));
        let _one = gate.admit(address("2001:db8::1")).expect("room again");
        let _two = gate.admit(address("2001:db8::2")).expect("room again");
        assert!(gate.admit(address("2001:db8::3")).is_err(), "one network");
        assert!(gate.admit(address("2001:db8:0:1::3")).is_ok(), "another");
    }

    #[test]
    fn bounds_that_change_count_those_that_are_in() {
        let gate = Gate::new(8, 8);
        let all: Vec<_> = (0..3).map(|_| gate.admit(address("10.0.0.1")).expect("room")).collect();
        gate.clone().set_bounds(Some(3), None);
        assert_eq!(gate.admit(address("10.0.0.2")).err(), Some(Refusal::Connections { most: 3 }));
        gate.set_bounds(Some(5), Some(2));
        assert_eq!(gate.admit(address("10.0.0.1")).err(), Some(Refusal::PerAddress { most: 2 }));
        assert!(gate.admit(address("10.0.0.2")).is_ok());
        drop(all);
        assert!(gate.admit(address("10.0.0.1")).is_ok());
    }

    #[test]
    fn failed_attempts_are_used_up_and_come_back() {
        let (start, from) = (Instant::now(), address("10.0.0.1"));
        let mut attempts = Attempts::default();
        for _ in 0..ATTEMPTS_MAX {
            assert!(attempts.has_one(from, start));
            attempts.fail(from, start);
        }
        assert!(!attempts.has_one(from, start));
        assert!(attempts.has_one(address("10.0.0.2"), start), "another address");
        assert!(!attempts.has_one(from, start + ATTEMPT_TIME / 2));
        assert!(attempts.has_one(from, start + ATTEMPT_TIME));
        attempts.fail(from, start + ATTEMPT_TIME);
        assert!(!attempts.has_one(from, start + ATTEMPT_TIME));
        attempts.count();
        assert!(attempts.has_one(from, start + ATTEMPT_TIME * 2));
        assert_eq!(attempts.failed(), u64::from(ATTEMPTS_MAX) + 2);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let start = Instant::now();
        let mut attempts = Attempts::default();
        for number in 0..ADDRESSES_MAX as u32 + 10 {
            attempts.fail(std::net::Ipv4Addr::from_bits(number).into(), start);
        }
        assert_eq!(attempts.whole_at.len(), ADDRESSES_MAX);
        attempts.fail(address("10.0.0.1"), start + ATTEMPT_TIME);
        assert_eq!(attempts.whole_at.len(), 1, "those that are whole again are forgotten");
    }
}
