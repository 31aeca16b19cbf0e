//! viewer of Ringcast.

fn main() {}
