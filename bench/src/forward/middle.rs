//! What bytes are forwarded by, on a core of its own: the relay, or HAProxy as it comes with Debian.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use wire::tcp::tune_unconnected;

use crate::testbed::{Program, Start};

/// What is in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Middle {
    /// Our relay, with one worker.
    Relay,
    /// HAProxy in TCP mode, which copies as the relay must.
    Haproxy,
    /// The same with splice(2), which moves pages within the kernel and sees no byte.
    HaproxySplice,
}

impl Middle {
    /// All of them, ours first.
    pub const ALL: [Middle; 3] = [Middle::Relay, Middle::Haproxy, Middle::HaproxySplice];

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Middle::Relay => "relay",
            Middle::Haproxy => "haproxy",
            Middle::HaproxySplice => "haproxy with splice",
        }
    }
}

/// Where things run, and what with.
#[derive(Clone, Debug)]
pub struct Place {
    /// Directory of our programs.
    pub programs: PathBuf,
    /// Directory of logs and of HAProxy's configuration.
    pub logs: PathBuf,
    /// Core of what is in the middle.
    pub core: usize,
    /// More arguments of the relay.
    pub relay: Vec<String>,
}

/// A middle that runs. It is killed when dropped.
#[derive(Debug)]
pub struct Running {
    /// The program.
    pub program: Program,
    /// Where it listens.
    pub address: SocketAddr,
    /// Where HAProxy sends what it gets.
    pub sink: Option<TcpListener>,
}

/// Starts what is in the middle, and waits until it listens.
pub fn start(place: &Place, middle: Middle) -> io::Result<Running> {
    let address = free_address()?;
    let sink = match middle {
        Middle::Relay => None,
        _ => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            tune_unconnected(&listener, true);
            Some(listener)
        }
    };
    let command = match &sink {
        None => relay(place, address),
        Some(sink) => haproxy(&place.logs, address, sink.local_addr()?, middle == Middle::HaproxySplice)?,
    };
    let what = Start { name: "middle", command: &command, cores: &place.core.to_string() };
    let mut program = Program::start(&what, &[], &place.logs, Stdio::null(), None)?;
    match middle {
        Middle::Relay => program.await_said("listening on")?,
        _ => program.await_listening(address.port())?,
    }
    Ok(Running { program, address, sink })
}

fn relay(place: &Place, address: SocketAddr) -> Vec<String> {
    let mut command = vec![place.programs.join("relay").to_string_lossy().into_owned()];
    command.extend(["--workers=1".to_owned(), format!("--listen={address}")]);
    // Everybody here comes from one address.
    command.extend(["--connections=8192", "--connections-per-address=8192"].map(str::to_owned));
    command.extend(place.relay.clone());
    command
}

fn haproxy(logs: &Path, from: SocketAddr, to: SocketAddr, splices: bool) -> io::Result<Vec<String>> {
    let splice = if splices { "option splice-request\n  option splice-response" } else { "" };
    let text = format!(
        "global\n  nbthread 1\n\
         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  {splice}\n\
         listen middle\n  bind {from}\n  server sink {to}\n"
    );
    let path = logs.join("haproxy.cfg");
    fs::write(&path, text)?;
    Ok(vec!["haproxy".to_owned(), "-db".to_owned(), "-f".to_owned(), path.to_string_lossy().into_owned()])
}

/// An address of loopback on which nobody listens.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}
