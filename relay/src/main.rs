//! `relay`: takes packed blocks from sniffers and forwards them to viewers, by their headers alone.
//!
//! One mio reactor per worker; the first also accepts. A connection is handed to its worker after
//! its hello. See `worker` for the loop, and `wire::hub` for what is forwarded to whom.

mod args;
mod authority;
mod config;
mod inbox;
mod init;
mod limit;
mod peer;
mod private_file;
mod shell;
mod token_command;
mod worker;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use mio::net::TcpListener;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{info, warn};
use wire::block::Epoch;
use wire::pool::Pool;

use args::{Args, Command};
use config::Config;
use inbox::Inboxes;
use worker::Worker;

fn main() -> ExitCode {
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
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => fail(1, &text),
    }
}

/// Says why the program ends without success, and with which status.
fn fail(status: u8, text: &str) -> ExitCode {
    eprintln!("relay: {text}");
    ExitCode::from(status)
}

/// Shows what a command has found or done on standard output.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => fail(1, &format!("standard output: {error}")),
        _ => ExitCode::SUCCESS,
    }
}

fn run(config: &Config) -> Result<(), String> {
    if config.cert.is_some() || config.tokens.is_some() {
        return Err("--cert, --tokens: this version makes these files and cannot use them yet".to_owned());
    }
    let listen = config.listen;
    let listener = TcpListener::bind(listen).map_err(|error| format!("--listen {listen}: {error}"))?;
    let address = listener.local_addr().map_err(|error| format!("--listen {listen}: {error}"))?;
    if config.insecure && !address.ip().is_loopback() {
        warn!("--insecure: anyone who reaches {address} can watch and publish, and nothing is encrypted");
    }
    let pool = Pool::new(config.memory_bytes);
    let (inboxes, receivers) = Inboxes::new(config.workers).map_err(|error| format!("poll: {error}"))?;
    let inboxes = Arc::new(inboxes);
    let instance = fresh_instance().map_err(|error| format!("random numbers: {error}"))?;
    let mut workers = Vec::new();
    for (index, receiver) in receivers.into_iter().enumerate() {
        workers.push(Worker::new(index, instance, config, pool.clone(), Arc::clone(&inboxes), receiver));
    }
    let stop = Arc::new(AtomicBool::new(false));
    stop_on_signal(Arc::clone(&stop), Arc::clone(&inboxes)).map_err(|error| format!("signals: {error}"))?;
    info!("listening on {address} with {} worker(s)", config.workers);

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

fn stop_on_signal(stop: Arc<AtomicBool>, inboxes: Arc<Inboxes>) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            info!("signal {signal}: closing");
            stop.store(true, Ordering::Release);
            inboxes.wake_all();
        }
    });
    Ok(())
}
