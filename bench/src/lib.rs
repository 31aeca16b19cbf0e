//! Load tests of the whole chain, on one machine.
//!
//! ```text
//!  core 0                          core 1
//!  generate --veth--> ring of the chain under test --pipe--> count
//!                     (sniffer, relay, viewer, or another)
//! ```
//!
//! `replay` makes the namespaces, starts a chain, then the generator, and reports; each packet has a
//! number, so what is lost is known to the packet. `relay_load` measures the relay alone, beside
//! HAProxy: [`forward`]. See README.md beside this crate.

pub mod blocks;
pub mod chain;
pub mod figures;
pub mod forward;
pub mod frames;
pub mod group;
pub mod measure;
pub mod numbers;
pub mod pace;
pub mod player;
pub mod report;
#[allow(unsafe_code)] // a ring of packet(7), mapped: see the head of the module
pub mod ring;
#[allow(unsafe_code)] // sendmmsg(2) over frames in memory: see the head of the module
pub mod sender;
pub mod stream;
pub mod svg;
pub mod tcp;
pub mod testbed;

use std::io;
use std::process::ExitCode;

/// Ends `program`: prints the table it made, or says why there is none.
pub fn end(program: &str, table: io::Result<String>) -> ExitCode {
    match table {
        Ok(table) => {
            print!("{table}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{program}: {error}");
            ExitCode::FAILURE
        }
    }
}
