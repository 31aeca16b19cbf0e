//! sniffer of Ringcast.

fn main() {}
