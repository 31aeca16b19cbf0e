//! What the three programs of Ringcast share: the packed block, the messages, the protocol core
//! without I/O, the connection, and the capture file formats.

pub mod capture_file;
pub mod interface;

pub use interface::Interface;
