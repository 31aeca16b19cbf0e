//! sniffer of Ringcast.
#![allow(dead_code, unused_imports)] // the ring and the interfaces have no caller yet

mod interfaces;
mod ring;
#[cfg(test)]
mod test_net;

fn main() {}
