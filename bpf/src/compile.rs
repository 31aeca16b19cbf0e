//! Expressions of pcap-filter(7) to programs, by libpcap.
//!
//! An empty expression means every frame and needs no libpcap. Names in an expression are looked up by libpcap, ports
//! and protocols in files of the system, hosts by its resolver, so compiling can block on the network.

use std::ffi::CString;

use crate::libpcap::{LoadError, with_libpcap};
use crate::link_type::to_dlt;
use crate::program::Program;

/// Why an expression did not become a program.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// libpcap is missing or too old, and only libpcap compiles expressions.
    #[error("filter {expression:?}: libpcap cannot be used")]
    Unavailable {
        /// The expression as given.
        expression: String,
        /// What was tried, and what to install.
        #[source]
        source: LoadError,
    },
    /// libpcap refuses the expression.
    #[error("filter {expression:?}: {message}")]
    Expression {
        /// The expression as given.
        expression: String,
        /// libpcap's own words.
        message: String,
    },
    /// The interface whose frames the program is for cannot be opened.
    #[error("filter {expression:?}: interface {interface}: {message}")]
    Interface {
        /// The expression as given.
        expression: String,
        /// The interface as given.
        interface: String,
        /// libpcap's own words.
        message: String,
    },
    /// libpcap reads the interface in cooked mode: offsets in its program would be those of a header the kernel's
    /// filter never sees.
    #[error("filter {expression:?}: interface {interface}: libpcap knows its frames only in cooked mode")]
    Cooked {
        /// The expression as given.
        expression: String,
        /// The interface as given.
        interface: String,
    },
    /// The expression asks for what only the kernel knows of a frame, `inbound` for one; frames of a file or of a
    /// stream come without it.
    #[error("filter {expression:?}: needs metadata of the kernel, which only a live capture has")]
    Metadata {
        /// The expression as given.
        expression: String,
    },
    /// A snaplen of 0 would reject every frame.
    #[error("filter {expression:?}: snaplen 0 rejects all packets")]
    ZeroSnaplen {
        /// The expression as given.
        expression: String,
    },
}

/// Compiles `expression` for frames of a file or of a stream, which have the LINKTYPE `link_type`.
///
/// The program keeps `snaplen` bytes, in bytes from 1 up, of what it accepts. It finds VLAN tags in the data, where a
/// file has them; the frames a Linux socket receives have theirs in metadata, for which see `compile_live`. The
/// netmask `ip broadcast` would need is unknown: it matches 0.0.0.0 and 255.255.255.255, as `tcpdump -r` has it.
///
/// libpcap takes a handle without an interface for a live one in `inbound`, `outbound` and `ifindex`, and on Linux
/// writes loads of metadata. No frame would ever match, so that is an error here ([`FilterError::Metadata`]).
pub fn compile(expression: &str, link_type: u16, snaplen: u32) -> Result<Program, FilterError> {
    let program = compile_dead(expression, link_type, snaplen)?;
    if program.loads_metadata() {
        return Err(FilterError::Metadata { expression: expression.to_owned() });
    }
    Ok(program)
}

/// Compiles `expression` for a filter on packet sockets (`SOCK_RAW`) whose frames have the LINKTYPE `link_type`.
///
/// As [`compile`], but metadata may be asked for: the kernel has it. No interface is needed, so the program serves all
/// of that link type. It still finds VLAN tags in the data only; see [`compile_live`].
///
/// A program with `protochain` compiles, but jumps back, and the kernel refuses it when it is attached (`EINVAL`).
#[cfg(target_os = "linux")]
pub fn compile_for_socket(expression: &str, link_type: u16, snaplen: u32) -> Result<Program, FilterError> {
    compile_dead(expression, link_type, snaplen)
}

fn compile_dead(expression: &str, link_type: u16, snaplen: u32) -> Result<Program, FilterError> {
    let Some(text) = prepare(expression, snaplen)? else { return Ok(Program::accept_all(snaplen)) };
    with_libpcap(|libpcap| {
        let handle =
            libpcap.open_dead(to_dlt(link_type), snaplen).ok_or_else(|| "out of memory".to_owned())?;
        handle.compile(&text)
    })
    .map_err(|source| FilterError::Unavailable { expression: expression.to_owned(), source })?
    .map(|instructions| Program::new(instructions).with_snaplen(snaplen))
    .map_err(|message| FilterError::Expression { expression: expression.to_owned(), message })
}

/// Compiles `expression` for a filter on packet sockets (`SOCK_RAW`), by a handle on `interface`.
///
/// The kernel takes the VLAN tag out of a received frame before the filter runs, so `vlan` has to be a test of
/// metadata, and only a live handle makes libpcap write one. For the moment of the compilation libpcap opens the
/// interface, which must be up and needs `CAP_NET_RAW`; an interface that cannot be opened is an error, for a program
/// of [`compile`] in its place would lose tagged frames without a word. The program depends on the interface by its
/// link type alone, so that of `lo` serves all with Ethernet frames: the netmask is unknown, as in [`compile`].
#[cfg(target_os = "linux")]
pub fn compile_live(expression: &str, interface: &str, snaplen: u32) -> Result<Program, FilterError> {
    // LINUX_SLL and LINUX_SLL2
    const COOKED: [std::ffi::c_int; 2] = [113, 276];

    let Some(text) = prepare(expression, snaplen)? else { return Ok(Program::accept_all(snaplen)) };
    let expression = || expression.to_owned();
    let interface_error = |message| FilterError::Interface {
        expression: expression(),
        interface: interface.to_owned(),
        message,
    };
    let name = CString::new(interface).map_err(|_| interface_error("the name contains a NUL".to_owned()))?;
    with_libpcap(|libpcap| {
        let handle = libpcap.open_live(&name, snaplen).map_err(interface_error)?;
        if COOKED.contains(&handle.dlt()) {
            return Err(FilterError::Cooked { expression: expression(), interface: interface.to_owned() });
        }
        match handle.compile(&text) {
            Ok(instructions) => Ok(Program::new(instructions).with_snaplen(snaplen)),
            Err(message) => Err(FilterError::Expression { expression: expression(), message }),
        }
    })
    .map_err(|source| FilterError::Unavailable { expression: expression(), source })?
}

/// The version text of the libpcap that compiles, `libpcap version 1.10.3 (with TPACKET_V3)` for one; `None` without
/// a libpcap.
pub fn library_version() -> Option<String> {
    with_libpcap(|libpcap| libpcap.version()).ok()
}

/// The expression as libpcap takes it, or `None` if it is empty and so means every frame.
fn prepare(expression: &str, snaplen: u32) -> Result<Option<CString>, FilterError> {
    if snaplen == 0 {
        return Err(FilterError::ZeroSnaplen { expression: expression.to_owned() });
    }
    if expression.trim().is_empty() {
        return Ok(None);
    }
    CString::new(expression).map(Some).map_err(|_| FilterError::Expression {
        expression: expression.to_owned(),
        message: "the expression contains a NUL".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_expression_is_every_frame() {
        for expression in ["", " \t\n"] {
            assert_eq!(compile(expression, 1, 96).expect("needs no libpcap"), Program::accept_all(96));
        }
    }

    #[test]
    fn mistakes_that_need_no_libpcap() {
        let zero = compile("tcp", 1, 0).expect_err("keeps nothing");
        assert_eq!(zero.to_string(), r#"filter "tcp": snaplen 0 rejects all packets"#);
        let nul = compile("tcp\0udp", 1, 96).expect_err("has a NUL");
        assert_eq!(nul.to_string(), r#"filter "tcp\0udp": the expression contains a NUL"#);
    }
}
