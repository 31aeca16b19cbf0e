//! What the relay forwards, beside HAProxy, on one machine.
//!
//! ```text
//!  core 0                       core 1
//!  source --loopback--> relay, or HAProxy in TCP mode --+
//!  sinks  <-------------loopback------------------------+
//! ```
//!
//! The source sends real packed blocks as fast as they are taken, the sinks read as viewers do, without
//! unpacking. What passes through HAProxy are the same bytes from the same code. All of it is one thread,
//! and as cheap as can be: what is in the middle is to be what there is too little of.

pub mod blocks;
pub mod idle;
pub mod line;
pub mod load;
pub mod middle;
pub mod report;
