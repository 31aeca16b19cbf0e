//! `relay`: takes packed blocks from sniffers and forwards them to viewers, by their headers alone.
//!
//! One mio reactor per worker; the first also accepts. A connection is handed to its worker after
//! its hello. See `worker` for the loop, and `wire::hub` for what is forwarded to whom.

mod args;
mod authority;
mod config;
mod descriptors;
mod gate;
mod inbox;
mod init;
mod limit;
mod peer;
mod private_file;
mod rights;
mod shell;
mod token_command;
mod worker;

use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use mio::net::TcpListener;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{error, info, warn};
use wire::block::Epoch;
use wire::clock::wall_s;
use wire::pool::Pool;

use args::{Args, Command};
use config::Config;
use gate::Gate;
use inbox::Inboxes;
use rights::Rights;
use worker::{Shared, Worker};

/// Connections that the kernel keeps until they are accepted; net.core.somaxconn bounds it, too.
const WAITING_MAX: i32 = 4096;

fn main() -> ExitCode {
    wire::process::protect();
    let args = Args::parse();
    wire::log::start(args.log_format, "info");
    match &args.command {
        Some(Command::Init(args)) => return init::run(args),
        Some(Command::Token { action }) => return token_command::run(action),
        None => {}
    }
    let config = match Config::new(&args) {
        Ok(config) => config,
        Err(error) => return fail(2, &error.to_string()),
    };
    // What is wrong with a file is wrong usage too: nothing is open yet.
    let rights = match Rights::load(&config, wall_s()) {
        Ok(rights) => Arc::new(rights),
        Err(text) => return fail(2, &text),
    };
    match run(&config, rights) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => fail(1, &text),
    }
}

/// Says why the program ends without success, and with which status.
fn fail(status: u8, text: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr().lock(), "relay: {text}"); // nobody may be there to read it
    ExitCode::from(status)
}

/// Shows what a command has found or done on standard output.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => fail(1, &format!("standard output: {error}")),
        _ => ExitCode::SUCCESS,
    }
}

fn run(config: &Config, rights: Arc<Rights>) -> Result<(), String> {
    let connections = descriptors::raise(config.connections, config.workers);
    let listen = config.listen;
    let listener = TcpListener::bind(listen).map_err(|error| format!("--listen {listen}: {error}"))?;
    // mio asks for 128: a thousand that come at once would have the kernel drop some, with a second's wait.
    socket2::SockRef::from(&listener.as_fd())
        .listen(WAITING_MAX)
        .map_err(|error| format!("--listen {listen}: {error}"))?;
    let address = listener.local_addr().map_err(|error| format!("--listen {listen}: {error}"))?;
    if config.insecure && !address.ip().is_loopback() {
        let (encrypted, asked) = (rights.tls().is_some(), rights.asks());
        warn!(
            "--insecure: {address} is open: {}, {}",
            if encrypted { "TLS" } else { "nothing is encrypted" },
            if asked { "tokens are asked for" } else { "anyone who reaches it can watch and publish" }
        );
    }
    let pool = Pool::new(config.memory_bytes);
    let (inboxes, receivers) = Inboxes::new(config.workers).map_err(|error| format!("poll: {error}"))?;
    let inboxes = Arc::new(inboxes);
    let instance = fresh_instance().map_err(|error| format!("random numbers: {error}"))?;
    let gate = Gate::new(connections, config.connections_per_address);
    let origins = Arc::clone(&config.allowed_origins);
    let shared =
        Shared { instance, pool, inboxes: Arc::clone(&inboxes), gate, rights: Arc::clone(&rights), origins };
    let mut workers = Vec::new();
    for (index, receiver) in receivers.into_iter().enumerate() {
        workers.push(Worker::new(index, config, shared.clone(), receiver));
    }
    let stop = Arc::new(AtomicBool::new(false));
    obey_signals(Arc::clone(&stop), Arc::clone(&inboxes), Arc::clone(&rights))
        .map_err(|error| format!("signals: {error}"))?;
    let scheme = if rights.tls().is_some() { "wss" } else { "ws" };
    info!("listening on {address} ({scheme}) with {} worker(s)", config.workers);

    // The first worker runs here and accepts; the others have a thread each.
    let mut first = workers.remove(0);
    first.accept_from(listener).map_err(|error| format!("--listen {listen}: {error}"))?;
    let threads: Vec<_> = workers
        .into_iter()
        .map(|mut worker| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || worker.run(&stop))
        })
        .collect();
    let mut result = first.run(&stop);
    stop.store(true, Ordering::Release); // an error of the first ends the others too
    inboxes.wake_all();
    for thread in threads {
        let ended = thread.join().unwrap_or_else(|_| Err(std::io::Error::other("a worker panicked")));
        result = result.and(ended);
    }
    result.map_err(|error| format!("worker: {error}"))
}

/// Tells viewers that come back whether this is still the same relay.
fn fresh_instance() -> std::io::Result<Epoch> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    Ok(Epoch(u64::from_ne_bytes(bytes)))
}

/// SIGHUP reads certificates and tokens anew; the others end the program.
fn obey_signals(stop: Arc<AtomicBool>, inboxes: Arc<Inboxes>, rights: Arc<Rights>) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if signal == SIGHUP {
                match rights.reload(wall_s()) {
                    Ok(()) => info!("certificates and tokens were read anew"),
                    Err(text) => error!("{text}; what was read before stays in force"),
                }
                inboxes.wake_all();
                continue;
            }
            info!("signal {signal}: closing");
            stop.store(true, Ordering::Release);
            inboxes.wake_all();
        }
    });
    Ok(())
}
