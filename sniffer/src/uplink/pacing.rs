//! The cap on the uplink, kept by the kernel (SO_MAX_PACING_RATE, socket(7)).
#![allow(unsafe_code)] // nix's macro makes the system call; it passes a u64 and its size

use std::io;
use std::os::fd::AsFd;

use nix::{setsockopt_impl, sockopt_impl};

sockopt_impl!(
    /// Most bytes a second that TCP sends, headers included. (SO_MAX_PACING_RATE, asm-generic/socket.h)
    MaxPacingRate, SetOnly, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, u64
);

/// What a socket has at first. (net/core/sock.c)
pub const NO_LIMIT: u64 = u64::MAX;

/// Caps what a TCP socket sends. TCP paces the segments itself, whatever the queueing discipline of
/// the interface is; what does not fit waits in its buffer, and behind that with us.
pub fn limit(socket: &impl AsFd, bytes_per_second: u64) -> io::Result<()> {
    nix::sys::socket::setsockopt(socket, MaxPacingRate, &bytes_per_second).map_err(io::Error::from)
}
