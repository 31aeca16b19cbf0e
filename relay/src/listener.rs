//! The socket that is listened on: one that the service manager has opened and passed on (sd_listen_fds(3)), which stays
//! open while the relay is restarted, or else our own.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use listenfd::ListenFd;
use mio::net::TcpListener;
use wire::tcp;

/// Connections that the kernel keeps until they are accepted; net.core.somaxconn bounds it, too.
pub const WAITING_MAX: i32 = 4096;

/// The socket that was passed, or one on `listen`; and its address. What is wrong begins with the name of what is to be
/// changed.
pub fn open(listen: SocketAddr) -> Result<(TcpListener, SocketAddr), String> {
    let mut passed = ListenFd::from_env();
    if passed.len() > 1 {
        return Err(format!(
            "socket unit: {} sockets were passed, and one is listened on: leave one ListenStream=",
            passed.len()
        ));
    }
    let named = |error| format!("--listen {listen}: {error}");
    let listener = match passed.take_tcp_listener(0) {
        Ok(Some(listener)) => {
            listener.set_nonblocking(true).map_err(|error| format!("socket unit: {error}"))?;
            TcpListener::from_std(listener)
        }
        Ok(None) => TcpListener::bind(listen).map_err(named)?,
        Err(error) => {
            return Err(format!("socket unit: what was passed is no TCP socket that listens: {error}"));
        }
    };
    // mio asks for 128: a thousand that come at once would have the kernel drop some, with a second's wait.
    socket2::SockRef::from(&listener.as_fd()).listen(WAITING_MAX).map_err(named)?;
    let address = listener.local_addr().map_err(named)?;
    if address.ip().to_canonical().is_loopback() {
        tcp::tune_unconnected(&listener.as_fd(), true); // so that nobody's connection begins with anything else
    }
    Ok((listener, address))
}
