//! The packet socket of a ring, and the fence around `afpacket`.
//!
//! Invariants:
//! - The socket is opened with protocol 0: it hears nothing until it is bound.
//! - `RawPacketStream` does not leave this file. Its `Clone` and `IntoRawFd` close descriptors that others still use,
//!   and it trusts the length of names, so they are checked before.
//! - The descriptor is closed when [`Socket`] is dropped, however many [`RingControl`]s are left: they share the stream
//!   behind a lock, and `Drop` takes it out.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use afpacket::sync::RawPacketStream;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, setsockopt, socket, sockopt};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};

use super::{FanoutMode, Instruction, RingError};

sockopt_impl!(
    /// Version of the ring. (PACKET_VERSION)
    PacketVersion, SetOnly, libc::SOL_PACKET, libc::PACKET_VERSION, libc::c_int
);
sockopt_impl!(
    /// Makes the ring. (PACKET_RX_RING)
    PacketRxRing, SetOnly, libc::SOL_PACKET, libc::PACKET_RX_RING, libc::tpacket_req3
);
sockopt_impl!(
    /// Joins a fan-out group. (PACKET_FANOUT)
    PacketFanout, Both, libc::SOL_PACKET, libc::PACKET_FANOUT, libc::c_int
);
sockopt_impl!(
    /// Counts since the last read. (PACKET_STATISTICS)
    PacketStatistics, GetOnly, libc::SOL_PACKET, libc::PACKET_STATISTICS, libc::tpacket_stats_v3
);
sockopt_impl!(
    /// Leaves out what this host sends, outside of fan-out groups. (PACKET_IGNORE_OUTGOING)
    PacketIgnoreOutgoing, SetOnly, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, libc::c_int
);

/// Longest program the kernel takes. (BPF_MAXINSNS, linux/bpf_common.h)
const MAX_INSTRUCTIONS: usize = 4096;

type SharedStream = Arc<Mutex<Option<RawPacketStream>>>;

/// The socket, owned.
#[derive(Debug)]
pub(super) struct Socket {
    stream: SharedStream,
    fd: RawFd,
    interface: Arc<str>,
}

impl Socket {
    /// A packet socket that hears nothing yet: close-on-exec, non-blocking, TPACKET_V3.
    pub(super) fn open(interface: &str) -> Result<Socket, RingError> {
        let fd = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None, // protocol 0: with ETH_P_ALL it would hear every interface until bound
        )
        .map_err(|errno| RingError::system(interface, "opening a packet socket", errno))?;
        let raw = fd.as_raw_fd();
        // SAFETY: the descriptor is open, and given away by `into_raw_fd`: the stream is its one owner.
        let stream = unsafe { RawPacketStream::from_raw_fd(fd.into_raw_fd()) };
        let socket =
            Socket { stream: Arc::new(Mutex::new(Some(stream))), fd: raw, interface: Arc::from(interface) };
        let version = libc::tpacket_versions::TPACKET_V3 as libc::c_int;
        socket.set(PacketVersion, &version, "asking for TPACKET_V3")?;
        Ok(socket)
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: open as long as `self`: only our `Drop` takes the stream, which closes it, out of its place.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }

    pub(super) fn control(&self) -> RingControl {
        RingControl { stream: Arc::clone(&self.stream), interface: Arc::clone(&self.interface) }
    }

    /// Sets PACKET_RX_RING. The errno is left bare: ENOMEM is not yet a failure.
    pub(super) fn make_ring(&self, request: &libc::tpacket_req3) -> Result<(), Errno> {
        setsockopt(&self.as_fd(), PacketRxRing, request)
    }

    pub(super) fn ignore_outgoing(&self) -> Result<(), RingError> {
        self.set(PacketIgnoreOutgoing, &1, "leaving out sent packets")
    }

    pub(super) fn set_promiscuous(&self) -> Result<(), RingError> {
        self.on_stream("setting promiscuous mode", |stream| stream.set_promisc(&self.interface, true))
    }

    /// Starts delivery: ETH_P_ALL on the interface of that name. Returns the index it was bound to.
    pub(super) fn bind(&self) -> Result<i32, RingError> {
        self.on_stream("binding", |stream| stream.bind(&self.interface))?;
        // Bound to a link that is down, ENETDOWN is pending although capture starts by itself when it comes up.
        self.take_error();
        self.bound_index().ok_or_else(|| RingError::NoSuchDevice { interface: self.interface.to_string() })
    }

    /// Index of the interface it is bound to; none once that was deleted or moved to another namespace.
    pub(super) fn bound_index(&self) -> Option<i32> {
        // Not by nix: the kernel returns 18 of the 20 bytes for an Ethernet address, and nix refuses what is not whole.
        // SAFETY: integers only; all zeros is a valid value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: both are ours and live through the call, and `length` says how much room there is.
        let result = unsafe { libc::getsockname(self.fd, (&raw mut address).cast(), &raw mut length) };
        (result == 0 && address.sll_ifindex > 0).then_some(address.sll_ifindex)
    }

    pub(super) fn join_fanout(
        &self,
        group: Option<u16>,
        mode: FanoutMode,
        ignore_outgoing: bool,
    ) -> Result<u16, RingError> {
        let mut type_flags = mode.kernel_mode();
        if ignore_outgoing {
            type_flags |= libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING;
        }
        if group.is_none() {
            // The kernel insists on id 0 with this flag. Those who join the id later must not give it.
            type_flags |= libc::PACKET_FANOUT_FLAG_UNIQUEID;
        }
        let argument = (u32::from(group.unwrap_or(0)) | type_flags << 16) as libc::c_int;
        setsockopt(&self.as_fd(), PacketFanout, &argument).map_err(|errno| match (errno, group) {
            (Errno::EINVAL, Some(group)) => {
                RingError::FanoutMismatch { interface: self.interface.to_string(), group }
            }
            _ => RingError::system(&self.interface, "joining a fan-out group", errno),
        })?;
        match group {
            Some(group) => Ok(group),
            None => {
                let value = getsockopt(&self.as_fd(), PacketFanout)
                    .map_err(|errno| RingError::system(&self.interface, "reading the fan-out id", errno))?;
                Ok((value & 0xffff) as u16) // id | mode << 16 | flags << 24
            }
        }
    }

    /// What the kernel counted since the last call.
    pub(super) fn statistics(&self) -> Result<libc::tpacket_stats_v3, RingError> {
        getsockopt(&self.as_fd(), PacketStatistics)
            .map_err(|errno| RingError::system(&self.interface, "reading statistics", errno))
    }

    pub(super) fn take_error(&self) -> Option<Errno> {
        match getsockopt(&self.as_fd(), sockopt::SocketError) {
            Ok(0) => None,
            Ok(errno) => Some(Errno::from_raw(errno)),
            Err(errno) => Some(errno),
        }
    }

    fn set<O>(&self, option: O, value: &O::Val, step: &'static str) -> Result<(), RingError>
    where
        O: nix::sys::socket::SetSockOpt,
    {
        setsockopt(&self.as_fd(), option, value)
            .map_err(|errno| RingError::system(&self.interface, step, errno))
    }

    fn on_stream(
        &self,
        step: &'static str,
        call: impl FnOnce(&mut RawPacketStream) -> io::Result<()>,
    ) -> Result<(), RingError> {
        on_stream(&self.stream, &self.interface, step, call)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Taken out and dropped, which closes it, although controls may still hold the shell.
        drop(lock(&self.stream).take());
    }
}

/// Changes the filter of a ring from another thread. It does not keep the ring's socket open: once the [`Ring`] is
/// dropped, every call is [`RingError::Closed`].
///
/// [`Ring`]: super::Ring
#[derive(Debug, Clone)]
pub struct RingControl {
    stream: SharedStream,
    interface: Arc<str>,
}

impl RingControl {
    /// Puts `program` in the place of the present filter, in one step: each packet is judged by one or the other.
    /// Packets that are in the ring already stay. What the program returns is the number of bytes kept; 0 drops.
    pub fn set_filter(&self, program: &[Instruction]) -> Result<(), RingError> {
        // Checked here because afpacket cuts the length to 16 bits.
        if program.is_empty() || program.len() > MAX_INSTRUCTIONS {
            return Err(RingError::FilterLength {
                interface: self.interface.to_string(),
                instructions: program.len(),
            });
        }
        on_stream(&self.stream, &self.interface, "attaching the filter", |stream| {
            stream.set_bpf_filter(program.to_vec())
        })
    }

    /// Name of the interface, as it was given when the ring was opened.
    pub fn interface(&self) -> &str {
        &self.interface
    }
}

/// Runs one of afpacket's calls, if the socket is still open.
fn on_stream(
    stream: &SharedStream,
    interface: &str,
    step: &'static str,
    call: impl FnOnce(&mut RawPacketStream) -> io::Result<()>,
) -> Result<(), RingError> {
    let mut guard = lock(stream);
    let stream = guard.as_mut().ok_or_else(|| RingError::Closed { interface: interface.to_owned() })?;
    call(stream).map_err(|error| {
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EINVAL));
        RingError::system(interface, step, errno)
    })
}

/// A panic under the lock leaves a stream that is as good as before: each use is one system call.
fn lock(stream: &SharedStream) -> MutexGuard<'_, Option<RawPacketStream>> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}
