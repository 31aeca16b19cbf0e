//! What the programs ask of their TCP sockets. All of it is for speed or freshness: where the
//! kernel refuses, nothing is lost.

use std::net::IpAddr;
use std::os::fd::AsFd;

use socket2::SockRef;

/// Unsent bytes that the kernel may hold for a connection (TCP_NOTSENT_LOWAT, tcp(7)): more would be old
/// data in front of live packets, of control messages, and of what a slow viewer should skip.
const NOTSENT_LOWAT_BYTES: u32 = 256 << 10;
/// Receive buffer within a host (SO_RCVBUF, socket(7); half of what the kernel then allows itself, and at most
/// `net.core.rmem_max`, by default 208 KiB).
const RECEIVE_BYTES: usize = 1 << 20;
/// The congestion control that every kernel has, and that every process may choose unless
/// `net.ipv4.tcp_allowed_congestion_control` was changed.
const RENO: &[u8] = b"reno";

/// Tunes the socket of a connection whose other end `is_on_this_host`, or not; best before it connects, or by the
/// socket that it is accepted from, which hands this on.
///
/// Within a host there is no bottleneck to be found, and BBR, looking for one, paces what it sends: it sets
/// a timer for nearly each segment, and where it was the system's choice a third of the relay's work went
/// into that. A connection that began with BBR is paced under reno as well, though at twice what it is
/// thought to be able to send. Between hosts the system's choice stands.
///
/// Nor is there a distance within a host, which a large receive window is for: what waits in one is memory that leaves
/// the caches before it is read. The kernel lets it grow to 6 MiB, or what `net.ipv4.tcp_rmem` says.
pub fn tune(socket: &impl AsFd, is_on_this_host: bool) {
    let socket = SockRef::from(socket);
    let _ = socket.set_tcp_notsent_lowat(NOTSENT_LOWAT_BYTES);
    if is_on_this_host {
        let _ = socket.set_tcp_congestion(RENO);
        let _ = socket.set_recv_buffer_size(RECEIVE_BYTES);
    }
}

/// Whether a connection between these addresses stays within this host.
pub fn is_within_host(ours: IpAddr, theirs: IpAddr) -> bool {
    let (ours, theirs) = (ours.to_canonical(), theirs.to_canonical());
    theirs.is_loopback() || ours == theirs
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn only_connections_within_the_host_leave_the_congestion_control_of_the_system() {
        let within = |ours: &str, theirs: &str| {
            is_within_host(ours.parse().expect("an address"), theirs.parse().expect("an address"))
        };
        assert!(within("127.0.0.1", "127.0.0.1") && within("127.0.0.1", "127.3.2.1") && within("::1", "::1"));
        assert!(within("::ffff:127.0.0.1", "::ffff:127.0.0.1") && within("192.0.2.1", "192.0.2.1"));
        assert!(within("192.0.2.1", "::ffff:192.0.2.1"));
        assert!(!within("192.0.2.1", "192.0.2.2") && !within("2001:db8::1", "2001:db8::2"));

        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let stream = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
        let socket = SockRef::from(&stream);
        let chosen = || {
            let name = socket.tcp_congestion().expect("an option");
            String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned()
        };
        let system = chosen();
        let room = |socket: SockRef<'_>| socket.recv_buffer_size().expect("an option");
        let room_before = room(SockRef::from(&stream));
        tune(&stream, false);
        assert_eq!((chosen(), socket.tcp_notsent_lowat().expect("an option")), (system, NOTSENT_LOWAT_BYTES));
        assert_eq!(room(SockRef::from(&stream)), room_before);
        tune(&stream, true);
        assert_eq!(chosen(), "reno");
        let bounded = room(SockRef::from(&stream));
        assert!(bounded != room_before && bounded <= 2 * RECEIVE_BYTES, "{room_before} and {bounded} bytes");
        tune(&listener, true);
        let _second = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
        listener.accept().expect("the first");
        let (accepted, _) = listener.accept().expect("the second");
        let handed_on = SockRef::from(&accepted).tcp_congestion().expect("an option");
        assert!(handed_on.starts_with(RENO), "{handed_on:?}");
        assert_eq!(room(SockRef::from(&accepted)), bounded);
    }
}
