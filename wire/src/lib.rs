//! What the three programs of Ringcast share.
//!
//! The journey of a packet, and where it is written:
//!
//! ```text
//!  sniffer                               relay                      viewer
//!  ring block                              |                          |
//!    | pack: gather, LZ4                   |                          |
//!    v                                     |                          |
//!  block  --> uplink --> connection ==> connection --> hub ==> connection --> downlink
//!                            (websocket, message)                             | block: unpack
//!                                                                             v
//!                                                                           pcapng
//! ```
//!
//! `pack`, `uplink`, `hub` and `downlink` know no sockets and no clocks: what happens is handed in,
//! what to do is polled out.

pub mod access;
pub mod admin;
pub mod block;
pub mod capture_file;
pub mod clock;
pub mod connection;
pub mod credentials;
pub mod description;
pub mod doctor;
pub mod downlink;
pub mod globs;
pub mod hub;
pub mod interface;
pub mod journal;
pub mod lanes;
pub mod ledger;
pub mod log;
pub mod masked;
pub mod message;
pub mod metrics;
pub mod pack;
pub mod pcapng;
pub mod pool;
pub mod process;
pub mod progress;
pub mod secret;
pub mod service;
#[cfg(target_os = "linux")]
pub mod tcp;
pub mod text;
pub mod tls;
pub mod units;
pub mod uplink;

pub use interface::Interface;
