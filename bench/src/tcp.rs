//! TCP of the stand-ins for the sniffer and the relay: as theirs is on one host.

use std::io;
use std::net::{SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};
use wire::tcp::tune_unconnected;

/// Connects to `address`, of this host, as the sniffer does.
pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    tune_unconnected(&socket, true);
    socket.connect(&address.into())?;
    Ok(socket.into())
}
