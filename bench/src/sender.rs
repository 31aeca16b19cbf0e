//! A packet socket that frames are sent out of, many with one system call (sendmmsg(2)).
//!
//! `unsafe` is confined to this module: nix has sendmmsg, but builds its headers anew for each call
//! through an iterator of vectors; and it does not have PACKET_QDISC_BYPASS. INVARIANT: pointers are
//! made from slices that live until the system call has returned, and are not kept.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::frames::Frames;

/// Most frames handed over together.
pub const BATCH: usize = 64;

/// A packet socket bound to an interface. It receives nothing.
#[derive(Debug)]
pub struct Sender {
    socket: OwnedFd,
}

impl Sender {
    /// Opens a socket on an interface. `bypass`: past the queueing discipline (packet(7)).
    pub fn open(interface: &str, bypass: bool) -> io::Result<Self> {
        let index = nix::net::if_::if_nametoindex(interface)?;
        // SAFETY: no pointer is passed. Protocol 0: nothing is received.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just opened, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        if bypass {
            let on: libc::c_int = 1;
            // SAFETY: the pointer is to an integer of the length given, which outlives the call.
            let result = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_PACKET,
                    libc::PACKET_QDISC_BYPASS,
                    (&raw const on).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                )
            };
            if result < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: zero is a valid value of every field of this plain structure.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = index as i32;
        // SAFETY: the pointer is to a sockaddr_ll of the length given, which outlives the call.
        let result = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(Self { socket }) }
    }

    /// Sends up to `count` frames (at most [`BATCH`]) from `first` on, without going round. Returns
    /// how many the kernel took.
    pub fn send(&self, frames: &Frames, first: usize, count: usize) -> io::Result<usize> {
        let count = count.min(BATCH).min(frames.count() - first);
        let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
        for (index, vector) in vectors[..count].iter_mut().enumerate() {
            let frame = frames.frame(first + index);
            // sendmmsg only reads through this pointer.
            vector.iov_base = frame.as_ptr().cast_mut().cast();
            vector.iov_len = frame.len();
        }
        // SAFETY: zero is a valid value of every field: no name, no control data, no flags.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        for (message, vector) in messages[..count].iter_mut().zip(&mut vectors) {
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: the first `count` headers are filled in; they point to `vectors`, and those to
        // frames. Both are borrowed or owned here until the call has returned.
        let sent = unsafe {
            libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), count as libc::c_uint, 0)
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
    }
}
