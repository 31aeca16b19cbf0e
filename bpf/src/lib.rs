//! Everything that becomes BPF: filter expressions, the exclusion of our own uplink, user-space evaluation.
//!
//! ```text
//!   expression ──compile()─────────────> Program ──run()──> bytes of a frame to keep (files, viewers)
//!              ──compile_for_socket()──> Program ──exclude()──> Program ──SO_ATTACH_FILTER──> kernel
//!              ──compile_live()────────>   (the same, where VLAN tags are asked for)
//!                   │
//!                libpcap, opened when the first filter is asked for
//! ```
//!
//! What holds for the whole crate:
//!
//! * Expressions are compiled by libpcap and by nothing else. Every other compiler tried gave wrong answers for
//!   some expression, and a wrong filter loses evidence without a trace.
//! * libpcap is no dependency of the binary: it is opened by name when a filter is first asked for, and only then
//!   can its absence be an error.
//! * [`Program::run`] ends, and does not panic, for every program and every packet.
//! * [`exclude()`] rejects our own traffic and hands every other frame to the program as if it were not there; a frame
//!   is never lost for being short.
//! * `unsafe` occurs in the module `libpcap` only.

mod assembler;
mod compile;
mod exclude;
mod instruction;
mod libpcap;
mod link_type;
mod program;
mod run;

pub use compile::{FilterError, compile, library_version};
#[cfg(target_os = "linux")]
pub use compile::{compile_for_socket, compile_live};
pub use exclude::{Exclusion, LinkLayer, exclude};
pub use instruction::Instruction;
pub use libpcap::LoadError;
pub use program::Program;
