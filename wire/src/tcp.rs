//! What the programs ask of their TCP sockets. All of it is for speed or freshness: where the
//! kernel refuses, nothing is lost.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Unsent bytes that the kernel may hold for a connection (TCP_NOTSENT_LOWAT, tcp(7)): more would be old
/// data in front of live packets, of control messages, and of what a slow viewer should skip.
const NOTSENT_LOWAT_BYTES: u32 = 256 << 10;
/// Receive buffer within a host (SO_RCVBUF, socket(7)). The kernel allows itself twice as much, and cuts this to
/// `net.core.rmem_max`: 208 KiB or 4 MiB by default, by its version.
const RECEIVE_BYTES: usize = 1 << 20;
/// The congestion control that every kernel has, and that every process may choose unless
/// `net.ipv4.tcp_allowed_congestion_control` was changed.
const RENO: &[u8] = b"reno";

/// Tunes the socket of a connection whose other end `is_on_this_host`, or not; best before it connects, or by the
/// socket that it is accepted from, which hands this on: [`tune_unconnected`].
///
/// Within a host there is no bottleneck to be found, and BBR, looking for one, paces what it sends: it sets
/// a timer for nearly each segment, and where it was the system's choice a third of the relay's work went
/// into that. A connection that began with BBR is paced under reno as well, though at twice what it is
/// thought to be able to send. Between hosts the system's choice stands.
pub fn tune(socket: &impl AsFd, is_on_this_host: bool) {
    let socket = SockRef::from(socket);
    let _ = socket.set_tcp_notsent_lowat(NOTSENT_LOWAT_BYTES);
    if is_on_this_host {
        let _ = socket.set_tcp_congestion(RENO);
    }
}

/// Tunes a socket that will connect, or is listened on, and bounds its receive buffer within a host. (Where a connection
/// stands, kernels before 6.10 would leave its window as small as it began: tcp(7) says "before listen or connect".)
///
/// There is no distance within a host, which a large window is for: what waits in one is memory that leaves the caches
/// before it is read. The kernel lets it grow to what `net.ipv4.tcp_rmem` says, by default 6 or 32 MiB.
pub fn tune_unconnected(socket: &impl AsFd, is_on_this_host: bool) {
    tune(socket, is_on_this_host);
    if is_on_this_host {
        let _ = SockRef::from(socket).set_recv_buffer_size(RECEIVE_BYTES);
    }
}

/// Begins a connection to `address` by a tuned socket that does not block.
pub fn begin_connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    tune_unconnected(&socket, is_on_this_host(address.ip()));
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(nix::errno::Errno::EINPROGRESS as i32) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// Whether connections to this address stay within this host, as far as routes say.
fn is_on_this_host(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Nothing is sent; connecting only chooses the address to send from, which is its own for one of ours.
    let ours = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    ours.is_ok_and(|ours| is_within_host(ours.ip(), address))
}

/// Whether a connection between these addresses stays within this host.
pub fn is_within_host(ours: IpAddr, theirs: IpAddr) -> bool {
    let (ours, theirs) = (ours.to_canonical(), theirs.to_canonical());
    theirs.is_loopback() || ours == theirs
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::TcpListener;

    use super::*;

    fn congestion(stream: &TcpStream) -> String {
        let name = SockRef::from(stream).tcp_congestion().expect("an option");
        String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned()
    }

    fn room(stream: &TcpStream) -> usize {
        SockRef::from(stream).recv_buffer_size().expect("an option")
    }

    #[test]
    fn who_is_on_this_host() {
        let within = |ours: &str, theirs: &str| {
            is_within_host(ours.parse().expect("an address"), theirs.parse().expect("an address"))
        };
        assert!(within("127.0.0.1", "127.0.0.1") && within("127.0.0.1", "127.3.2.1") && within("::1", "::1"));
        assert!(within("::ffff:127.0.0.1", "::ffff:127.0.0.1") && within("192.0.2.1", "192.0.2.1"));
        assert!(within("192.0.2.1", "::ffff:192.0.2.1"));
        assert!(!within("192.0.2.1", "192.0.2.2") && !within("2001:db8::1", "2001:db8::2"));
        assert!(is_on_this_host(Ipv4Addr::LOCALHOST.into()));
        assert!(!is_on_this_host(Ipv4Addr::new(192, 0, 2, 1).into()));
    }

    #[test]
    fn only_connections_within_the_host_leave_what_the_system_chooses() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let stream = TcpStream::connect(address).expect("connects");
        let (system, room_before) = (congestion(&stream), room(&stream));
        tune(&stream, false);
        tune_unconnected(&stream, false);
        let lowat = SockRef::from(&stream).tcp_notsent_lowat().expect("an option");
        assert_eq!((congestion(&stream), room(&stream)), (system, room_before));
        assert_eq!(lowat, NOTSENT_LOWAT_BYTES);
        tune(&stream, true);
        assert_eq!((congestion(&stream).as_str(), room(&stream)), ("reno", room_before));
    }

    #[test]
    fn both_ends_are_tuned_before_they_are_connected() {
        let rmem_max = fs::read_to_string("/proc/sys/net/core/rmem_max").expect("a kernel's");
        let bounded = 2 * RECEIVE_BYTES.min(rmem_max.trim().parse().expect("a number"));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        tune_unconnected(&listener, true);
        let stream = begin_connect(listener.local_addr().expect("bound")).expect("begins");
        let (accepted, _) = listener.accept().expect("it comes");
        for end in [&stream, &accepted] {
            assert_eq!((congestion(end).as_str(), room(end)), ("reno", bounded));
        }
    }
}
