//! sniffer of Ringcast.
#![allow(dead_code)] // the ring and the interfaces have no caller yet

mod ring;

fn main() {}
