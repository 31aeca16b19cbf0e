//! The admin port: `/metrics`, `/healthz` and `/readyz` over HTTP, for those who watch over a program.
//!
//! It has a thread of its own, and the program does nothing for it until somebody asks: then the thread asks the
//! [`Subject`], which wakes the threads that do the work and waits for their answers. So `/healthz` means that those
//! threads turn, and not that this one does. All requests that are there at the same time are answered by one look.
//!
//! ```text
//!  GET /metrics --> admin thread --look--> Subject --wakes--> reactor
//!      200 or 503 <-- text <-- Picture <-- waits 2 s at most <-- its figures
//! ```
//!
//! | path | 200 | 503 |
//! |---|---|---|
//! | `/metrics` | the figures | something did not answer: half of the figures would look like counters that went back |
//! | `/healthz` | all threads that matter answered, or gave a sign of life | which did not |
//! | `/readyz` | the program does what it was started for | what is not so |
//!
//! Nothing that is sent here changes anything. Connections, the size of a request and time are bounded; where there are
//! too many connections the oldest makes room, so that silent ones do not lock others out. There is no TLS and nobody
//! proves who he is, so the port is on loopback unless the operator says otherwise ([`check`]).

mod http;
mod server;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use mio::Poll;
use mio::net::TcpListener;
use thiserror::Error;

use crate::metrics::Exposition;
#[cfg(target_os = "linux")]
use crate::metrics::process::Process;
use server::Server;

/// What a [`Subject`] waits for an answer at most.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// What a connection lasts at most.
const CLIENT_TIME: Duration = Duration::from_secs(10);

/// The program that is asked.
pub trait Subject: Send + 'static {
    /// How the program is now, or who has not answered within [`PATIENCE`]: `worker 1: no answer within 2 s`.
    fn look(&mut self) -> Result<Picture, String>;
}

/// How a program is.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    /// Its figures, without those of the process, which are added here.
    pub figures: Exposition,
    /// Why it does not do what it was started for, a line each; empty: it is ready.
    pub unready: Vec<String>,
    /// What of it does not turn although it ought to, a line each; empty: it is well.
    pub unwell: Vec<String>,
}

/// Why there is no admin port.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum AdminError {
    #[error("--admin {address}")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("admin thread")]
    Thread(#[source] io::Error),
}

/// Reads `ADDR:PORT`, or a port of loopback alone.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let of_port = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let parsed = text.parse::<u16>().map(of_port).or_else(|_| text.parse());
    parsed.map_err(|_| "write ADDR:PORT, or a port of 127.0.0.1 alone".to_owned())
}

/// Whether the port may be there: off loopback only with consent, for nobody is asked who he is.
pub fn check(address: SocketAddr, is_consented: bool) -> Result<(), String> {
    let is_loopback = match address.ip() {
        IpAddr::V6(ip) => ip.to_canonical().is_loopback(),
        ip => ip.is_loopback(),
    };
    if is_loopback || is_consented {
        return Ok(());
    }
    Err(format!(
        "--admin {address}: not a loopback address, so anyone who reaches the port could read names of sniffers, viewers \
         and interfaces, and how much they send: listen on 127.0.0.1, or write --insecure-admin"
    ))
}

/// The admin port, open and not served yet: a program that confines itself opens it before, and makes threads after.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
    /// What a connection lasts at most.
    client_time: Duration,
    #[cfg(target_os = "linux")]
    process: Process,
}

impl Admin {
    /// Opens the port, and what the figures of the process are read from. Port 0 is any that is free.
    pub fn bind(address: SocketAddr) -> Result<Self, AdminError> {
        let bound = TcpListener::bind(address).and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) = bound.map_err(|source| AdminError::Bind { address, source })?;
        Ok(Self {
            listener,
            address,
            client_time: CLIENT_TIME,
            #[cfg(target_os = "linux")]
            process: Process::open(),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves it from now on, until the program ends, by a thread of its own. `program` and `version` are for
    /// `ringcast_build_info`.
    pub fn start(
        self,
        program: &'static str,
        version: &'static str,
        subject: impl Subject,
    ) -> Result<(), AdminError> {
        let poll = Poll::new().map_err(AdminError::Thread)?;
        let address = self.address;
        let mut server = Server::new(poll, self, (program, version), subject).map_err(AdminError::Thread)?;
        let thread = std::thread::Builder::new().name("admin".to_owned());
        thread.spawn(move || server.run()).map_err(AdminError::Thread)?;
        tracing::info!("admin port: http://{address}/ with /metrics, /healthz and /readyz");
        Ok(())
    }
}
