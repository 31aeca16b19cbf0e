//! The user's filter for every kind of interface that may come, compiled before the sniffer gives up its rights.
//!
//! Invariant: libpcap is used in [`Filters::compile`] alone. What comes later, an interface of another kind too, finds
//! its program here, or why there is none.

use std::collections::BTreeMap;
use std::sync::Arc;

use bpf::{FilterError, Program};

use crate::interfaces::{self, LINK_TYPES};

const ETHERNET: u16 = 1;
const RAW_IP: u16 = 101;
const RADIOTAP: u16 = 127;

type Compiled = Result<Program, Arc<FilterError>>;

/// Programs by link type.
#[derive(Clone, Debug)]
pub struct Filters {
    programs: BTreeMap<u16, Compiled>,
    /// For `lo`, whose frames are Ethernet's but keep their VLAN tags in the data.
    loopback: Compiled,
}

impl Filters {
    /// Compiles `expression` (none: everything) for each link type that rings may have. What is wrong with it is told
    /// when an interface of that type is opened. A test for VLAN tags needs the kernel's metadata, to which only a live
    /// handle compiles: an Ethernet interface that is up, `lo` for one, and CAP_NET_RAW.
    pub fn compile(expression: Option<&str>, snaplen: u32) -> Self {
        let expression = expression.unwrap_or_default();
        let compile = |link_type| bpf::compile_for_socket(expression, link_type, snaplen).map_err(Arc::new);
        let loopback = compile(ETHERNET);
        let unknown_host = loopback.as_ref().err().filter(|error| names_unknown_host(error)).cloned();
        let mut programs: BTreeMap<u16, Compiled> = LINK_TYPES
            .into_iter()
            .map(|link_type| match &unknown_host {
                Some(error) => (link_type, Err(Arc::clone(error))),
                None if link_type == ETHERNET => (link_type, loopback.clone()),
                None => (link_type, compile(link_type)),
            })
            .collect();
        if expression.contains("vlan") && loopback.is_ok() {
            let live = bpf::compile_live(expression, &live_interface(), snaplen).map_err(Arc::new);
            programs.insert(ETHERNET, live);
        }
        Self { programs, loopback }
    }

    /// What is wrong with it for every link type, so that no interface could be captured.
    pub fn fault(&self) -> Option<Arc<FilterError>> {
        let fault = self.loopback.as_ref().err()?;
        self.programs.values().all(Result::is_err).then(|| Arc::clone(fault))
    }

    /// The program for an interface of that link type.
    pub fn program(&self, link_type: u16, is_loopback: bool) -> Result<Program, Arc<FilterError>> {
        if is_loopback && link_type == ETHERNET {
            return self.loopback.clone();
        }
        self.programs.get(&link_type).cloned().unwrap_or_else(|| {
            Err(Arc::new(FilterError::Expression {
                expression: String::new(),
                message: format!("link type {link_type} is none that rings have"),
            }))
        })
    }

    /// Whether it is one for any kind of interface that may come; if not, what is wrong with it.
    pub fn check(&self) -> Result<(), Arc<FilterError>> {
        let wrong = |link_type| self.program(link_type, false).err().filter(|error| is_wrong(error));
        match wrong(ETHERNET) {
            Some(error) if [RAW_IP, RADIOTAP].into_iter().all(|one| wrong(one).is_some()) => Err(error),
            _ => Ok(()), // what else may be wrong is so for now
        }
    }
}

/// The expression itself is at fault.
pub fn is_wrong(error: &FilterError) -> bool {
    matches!(error, FilterError::Expression { .. } | FilterError::ZeroSnaplen { .. })
}

/// No name server knows a name in the expression, or none answers, for which they are waited for long. The other link
/// types need not ask again.
fn names_unknown_host(error: &FilterError) -> bool {
    matches!(error, FilterError::Expression { message, .. } if message.starts_with("unknown host"))
}

/// An interface with Ethernet frames that libpcap can open: one that is up, `lo` before others.
fn live_interface() -> String {
    let mut list = interfaces::list().unwrap_or_default();
    list.retain(|one| one.up && one.link_type == Some(ETHERNET));
    list.sort_by_key(|one| !one.loopback);
    list.into_iter().next().map_or("lo".to_owned(), |one| one.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_net::{in_namespace, ip};

    /// Where a program loads whether there was a tag. (SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT, linux/filter.h)
    const TAG_PRESENT: u32 = (-0x1000_i32 + 48) as u32;

    #[test]
    fn every_link_type_has_a_program_or_an_error() {
        let filters = Filters::compile(Some("udp port 53"), 96);
        for link_type in LINK_TYPES {
            match (filters.program(link_type, false), bpf::compile("udp port 53", link_type, 96)) {
                (Ok(one), Ok(other)) => assert_eq!(one, other, "{link_type}"),
                (Err(one), Err(other)) => assert_eq!(one.to_string(), other.to_string(), "{link_type}"),
                (one, other) => panic!("{link_type}: {one:?}, but now {other:?}"),
            }
        }
        assert!(filters.program(ETHERNET, false).is_ok() && filters.program(RAW_IP, false).is_ok());
        assert!(filters.program(9999, false).is_err());
        assert!(filters.check().is_ok());
    }

    #[test]
    fn without_a_filter_everything_is_kept() {
        let filters = Filters::compile(None, 96);
        for link_type in LINK_TYPES {
            assert_eq!(
                filters.program(link_type, false).expect("no libpcap is needed"),
                Program::accept_all(96)
            );
        }
    }

    #[test]
    fn a_wrong_expression_is_one_for_all() {
        let filters = Filters::compile(Some("porrt 80"), 96);
        let error = filters.check().expect_err("wrong");
        assert!(is_wrong(&error) && error.to_string().contains("porrt"), "{error}");
        // Right on some link types only.
        let filters = Filters::compile(Some("ether host 2:0:0:0:0:1"), 96);
        assert!(filters.check().is_ok());
        assert!(is_wrong(&filters.program(RAW_IP, false).expect_err("has no addresses")));
    }

    /// Asked for once: name servers that do not answer take seconds each time.
    #[test]
    fn a_host_that_is_unknown_is_so_for_every_link_type() {
        let filters = Filters::compile(Some("host unknown.invalid"), 96);
        let first = filters.program(ETHERNET, true).expect_err("unknown");
        assert!(names_unknown_host(&first), "{first}");
        for link_type in LINK_TYPES {
            let other = filters.program(link_type, false).expect_err("unknown");
            assert!(Arc::ptr_eq(&first, &other), "{link_type}: {other}");
        }
        assert!(filters.check().is_err());
    }

    /// Compiled on whatever is there, used on what comes later.
    #[test]
    fn vlan_is_a_test_of_metadata_on_all_but_loopback() {
        in_namespace(|| {
            for prepare in ["link set lo up", "link set lo down"] {
                ip(prepare);
                let filters = Filters::compile(Some("vlan 5 and inbound"), 96);
                let program = filters.program(ETHERNET, false).expect("near is up");
                assert!(program.instructions().iter().any(|one| one.k == TAG_PRESENT), "{program}");
                let loopback = filters.program(ETHERNET, true).expect("compiles");
                assert_ne!(program, loopback);
            }
            // Nothing is up: it is said, and not replaced by a program that finds no tags.
            ip("link set near down");
            ip("link set far down");
            let error =
                Filters::compile(Some("vlan 5"), 96).program(ETHERNET, false).expect_err("none is up");
            assert!(matches!(*error, FilterError::Interface { .. }), "{error}");
        });
    }
}
