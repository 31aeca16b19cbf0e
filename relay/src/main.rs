//! relay of Ringcast.

fn main() {}
