//! What the peer's TCP has acknowledged: the only sign of life that a slow line and a reader that
//! does not read both give, and a line that was cut does not.
//!
//! Bytes that the local kernel accepts say nothing: it takes none for minutes on a slow line, and
//! some on a dead one. TCP_INFO tells what the peer's kernel did. Seen on Linux 6.18 over a veth
//! pair, TCP_NOTSENT_LOWAT 256 KiB, `last_ack` being `tcpi_last_ack_recv`:
//!
//! | line | `unacked` | `notsent` | `probes` | `last_ack` | `bytes_acked` |
//! |---|---|---|---|---|---|
//! | idle, pings each 5 s | 0 | 0 | 0 | up to 5.0 s, 0 after each ping | grows by each ping |
//! | busy, 65 MB/s | 350-540 | 326 kB | 0 | 0 | grows |
//! | reader that takes 20 KB/s | 0, window 0 most of the time | 270-300 kB | 0-1 | up to 2.4 s | grows in steps of 60-130 kB, up to 7 s apart |
//! | reader stopped (SIGSTOP) | 0 | 326 kB | 0 between probes, 1 for a moment | up to 28 s: probes are answered, but each comes after twice the time, 25 s after half a minute | stands still |
//! | the same, TCP_RTO_MAX_MS 5 s | 0 | 326 kB | 0 | up to 5.0 s | stands still |
//! | link down, busy | 537 | 324 kB | 0 | grows | stands still |
//! | link down, idle | 1 from the next ping on | grows by later pings | 0 | grows | stands still |
//! | reader stopped, then link down, TCP_RTO_MAX_MS 5 s | 0 | 326 kB | one more each 6 s | grows | stands still |
//!
//! `bytes_acked` was, at every look, the bytes that had been written less SIOCOUTQ, plus one for
//! the SYN. So this one call says all, and it stays right when a layer of encryption counts other
//! bytes than we do.
//!
//! The time since the last acknowledgement alone is therefore no measure: when the peer's window is
//! closed it grows to two minutes although all is well. What is wrong is a segment or a probe that
//! stays *unanswered*.

use std::time::Duration;

use mio::net::TcpStream;

/// What TCP knows of what we have handed to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendState {
    /// Bytes that the peer's TCP has acknowledged since the connection began.
    pub acknowledged_bytes: u64,
    /// Bytes that wait in the kernel and were never sent.
    pub unsent_bytes: u32,
    /// Segments that were sent and are not acknowledged.
    pub unacknowledged_segments: u32,
    /// Probes of the peer's closed window since it last answered anything.
    pub unanswered_probes: u8,
    /// Time since the peer last sent anything, be it an acknowledgement.
    pub silent: Duration,
    /// TCP's smoothed round trip; zero before it has measured one.
    pub round_trip: Duration,
}

/// How things stand; `None` where the system does not say.
#[cfg(target_os = "linux")]
pub fn send_state(stream: &TcpStream) -> Option<SendState> {
    linux::tcp_info(stream).map(|info| SendState {
        acknowledged_bytes: info.bytes_acked,
        unsent_bytes: info.notsent_bytes,
        unacknowledged_segments: info.unacked,
        unanswered_probes: info.probes,
        silent: Duration::from_millis(info.last_ack_recv.min(info.last_data_recv).into()),
        round_trip: Duration::from_micros(info.rtt_us.into()),
    })
}

/// How things stand: this system does not say.
#[cfg(not(target_os = "linux"))]
pub fn send_state(_stream: &TcpStream) -> Option<SendState> {
    None
}

/// Lets the kernel send again, and probe a closed window, at least this often, so that it finds out
/// in time whether a peer that does not read is still there. Linux 6.15 and later; elsewhere a line
/// that is cut while the window is closed is found to be dead only some minutes later.
pub fn limit_probe_interval(stream: &TcpStream, interval: Duration) {
    #[cfg(target_os = "linux")]
    linux::set_rto_max(stream, interval);
    #[cfg(not(target_os = "linux"))]
    let _ = (stream, interval);
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
mod linux {
    use std::mem::{offset_of, size_of};
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    use mio::net::TcpStream;

    /// The head of `struct tcp_info` (linux/tcp.h). It only ever grows at its end, and the kernel
    /// copies as much as there is room for. `libc::tcp_info` is not the same on every C library.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default)]
    pub struct TcpInfo {
        _state: [u8; 3],
        pub probes: u8,
        _options: [u8; 4],
        _times: [u32; 4],
        pub unacked: u32,
        _segments: [u32; 4],
        _last_data_sent: u32,
        _last_ack_sent: u32,
        pub last_data_recv: u32,
        pub last_ack_recv: u32,
        _sizes: [u32; 2],
        pub rtt_us: u32,
        _metrics: [u32; 8],
        _rates: [u64; 2],
        pub bytes_acked: u64,
        _bytes_received: u64,
        _segs: [u32; 2],
        pub notsent_bytes: u32,
        _min_rtt: u32,
    }

    const _: () = assert!(offset_of!(TcpInfo, probes) == 3);
    const _: () = assert!(offset_of!(TcpInfo, unacked) == 24);
    const _: () = assert!(offset_of!(TcpInfo, last_ack_recv) == 56);
    const _: () = assert!(offset_of!(TcpInfo, rtt_us) == 68);
    const _: () = assert!(offset_of!(TcpInfo, bytes_acked) == 120);
    const _: () = assert!(offset_of!(TcpInfo, notsent_bytes) == 144);
    const _: () = assert!(size_of::<TcpInfo>() == 152);

    /// `TCP_RTO_MAX_MS` (linux/tcp.h, 6.15); 1,000 to 120,000.
    const TCP_RTO_MAX_MS: libc::c_int = 44;

    /// `None` if the kernel does not tell everything (before 4.6).
    pub fn tcp_info(stream: &TcpStream) -> Option<TcpInfo> {
        let mut info = TcpInfo::default();
        let mut length = size_of::<TcpInfo>() as libc::socklen_t;
        // SAFETY: the descriptor is open as long as `stream` is borrowed. The kernel writes at most
        // `length` bytes to `info`, which is that long, ours alone, and valid whatever bits it holds.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                (&raw mut info).cast(),
                &raw mut length,
            )
        };
        (result == 0 && length as usize >= size_of::<TcpInfo>()).then_some(info)
    }

    pub fn set_rto_max(stream: &TcpStream, interval: Duration) {
        let interval_ms = interval.as_millis().clamp(1_000, 120_000) as libc::c_int;
        // SAFETY: the descriptor is open as long as `stream` is borrowed; the kernel reads an int
        // from where one is. That an older kernel refuses is no fault.
        let _ = unsafe {
            libc::setsockopt(
                stream.as_raw_fd(),
                libc::IPPROTO_TCP,
                TCP_RTO_MAX_MS,
                (&raw const interval_ms).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Write};
    use std::net::TcpListener;

    #[test]
    fn a_peer_that_does_not_read_acknowledges_until_its_window_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let ours =
            std::net::TcpStream::connect(listener.local_addr().expect("an address")).expect("connects");
        let (_theirs, _) = listener.accept().expect("accepts");
        ours.set_nonblocking(true).expect("sets");
        let mut stream = TcpStream::from_std(ours);
        limit_probe_interval(&stream, Duration::from_secs(5));
        let before = send_state(&stream).expect("Linux says");
        assert_eq!(
            (before.unsent_bytes, before.unacknowledged_segments, before.unanswered_probes),
            (0, 0, 0)
        );
        let mut written = 0;
        let state = loop {
            match stream.write(&[7; 1 << 16]) {
                Ok(count) => written += count as u64,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            let state = send_state(&stream).expect("Linux says");
            if state.unsent_bytes > 0 && state.unacknowledged_segments == 0 {
                break state;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let acknowledged = state.acknowledged_bytes - before.acknowledged_bytes;
        assert!(acknowledged > 0 && acknowledged + u64::from(state.unsent_bytes) <= written, "{state:?}");
        assert!(state.round_trip > Duration::ZERO, "{state:?}");
    }
}
