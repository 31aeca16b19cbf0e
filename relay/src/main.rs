//! `relay`: takes packed blocks from sniffers and forwards them to viewers, by their headers alone.
//!
//! One mio reactor per worker; the first also accepts. A connection is handed to its worker after
//! its hello. See `worker` for the loop, and `wire::hub` for what is forwarded to whom.

mod args;
mod authority;
mod config;
mod descriptors;
mod doctor;
mod figures;
mod gate;
mod inbox;
mod init;
mod limit;
mod listener;
mod overseer;
mod peer;
mod private_file;
mod rights;
mod shell;
mod summary;
mod token_command;
mod worker;

use std::error::Error;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use settings::Settings;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{error, info, warn};
use wire::admin::{Admin, AdminError};
use wire::block::Epoch;
use wire::clock::wall_s;
use wire::hub::Awaited;
use wire::log;
use wire::pool::Pool;
use wire::service;

use args::{Args, Command};
use config::Config;
use gate::{Gate, Origins};
use inbox::Inboxes;
use overseer::Overseer;
use rights::Rights;
use summary::Board;
use worker::{Shared, Worker};

fn main() -> ExitCode {
    wire::process::protect();
    let settings = match settings::start(mistakes) {
        Ok(settings) => settings,
        Err(status) => return status,
    };
    let args: &Args = &settings.args;
    let is_doctor = matches!(args.command, Some(Command::Doctor(_)));
    log::start(args.log_format, if is_doctor { log::Level::Error } else { args.log_level });
    match &args.command {
        Some(Command::Doctor(asked)) => return doctor::run(&settings, asked.json),
        Some(Command::Init(args)) => return init::run(args),
        Some(Command::Token { action }) => return token_command::run(action),
        None => {}
    }
    let config = match Config::new(args) {
        Ok(config) => config,
        Err(error) => return fail(2, &settings.locate(&error.to_string())),
    };
    // What is wrong with a file is wrong usage too: nothing is open yet.
    let rights = match Rights::load(&config, wall_s()) {
        Ok(rights) => Arc::new(rights),
        Err(text) => return fail(2, &settings.locate(&text)),
    };
    let result = run(&config, settings, rights);
    log::finish();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => fail(1, &text),
    }
}

/// What is wrong with the options, or else with the files that they name.
fn mistakes(settings: &Settings<Args>) -> Vec<String> {
    let found = config::mistakes(&settings.args);
    if !found.is_empty() {
        return found.iter().map(ToString::to_string).collect();
    }
    let loaded = Config::new(&settings.args).map_err(|error| error.to_string());
    loaded.and_then(|config| Rights::load(&config, wall_s()).map(drop)).err().into_iter().collect()
}

/// Says why the program ends without success, and with which status.
fn fail(status: u8, text: &str) -> ExitCode {
    log::complain(&format!("relay: {text}"));
    ExitCode::from(status)
}

/// Shows what a command has found or done on standard output.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => fail(1, &format!("standard output: {error}")),
        _ => ExitCode::SUCCESS,
    }
}

fn run(config: &Config, settings: Settings<Args>, rights: Arc<Rights>) -> Result<(), String> {
    let connections = descriptors::raise(config.connections, config.workers);
    let (listener, address) = listener::open(config.listen)?;
    let (encrypted, asked) = (rights.tls().is_some(), rights.asks());
    let is_closed = address.ip().is_loopback() || (encrypted && asked);
    // The options were checked for --listen; a socket that was passed may be anywhere.
    if !(is_closed || config.insecure) {
        return Err(format!(
            "socket unit: {address} is not a loopback address, so anyone who reaches it could watch and publish: \
             give --cert, --key and --tokens (relay init makes them), or --insecure"
        ));
    }
    if config.insecure && !address.ip().is_loopback() {
        warn!(
            "--insecure: {address} is open: {}, {}",
            if encrypted { "TLS" } else { "nothing is encrypted" },
            if asked { "tokens are asked for" } else { "anyone who reaches it can watch and publish" }
        );
    }
    let admin = config.admin.map(Admin::bind).transpose().map_err(|error| caused(&error))?;
    let pool = Pool::new(config.memory_bytes);
    let (inboxes, receivers) = Inboxes::new(config.workers).map_err(|error| format!("poll: {error}"))?;
    let inboxes = Arc::new(inboxes);
    let instance = fresh_instance().map_err(|error| format!("random numbers: {error}"))?;
    let gate = Gate::new(connections, config.connections_per_address);
    let origins = Origins::new(Arc::clone(&config.allowed_origins));
    let changeable =
        Changeable { settings, workers: config.workers, gate, origins, rights: Arc::clone(&rights) };
    let shared = Shared {
        instance,
        pool,
        inboxes: Arc::clone(&inboxes),
        gate: changeable.gate.clone(),
        rights: Arc::clone(&rights),
        origins: changeable.origins.clone(),
        awaited: Awaited::default(),
        board: Arc::new(Board::new(config.workers)),
    };
    let mut workers = Vec::new();
    for (index, receiver) in receivers.into_iter().enumerate() {
        workers.push(Worker::new(index, config, shared.clone(), receiver));
    }
    let stop = Arc::new(AtomicBool::new(false));
    obey_signals(Arc::clone(&stop), Arc::clone(&inboxes), changeable)
        .map_err(|error| format!("signals: {error}"))?;
    let scheme = if rights.tls().is_some() { "wss" } else { "ws" };
    info!("listening on {address} ({scheme}) with {} worker(s)", config.workers);

    // The first worker runs here and accepts; the others have a thread each.
    let mut first = workers.remove(0);
    first.accept_from(listener).map_err(|error| format!("{address}: {error}"))?;
    if let Some(admin) = admin {
        let overseer = Overseer::new(shared, config.viewer_queue_bytes, Arc::clone(&stop));
        let started = admin.start("relay", env!("CARGO_PKG_VERSION"), overseer);
        started.map_err(|error| caused(&error))?;
    }
    service::ready();
    let end = || EndAll { stop: Arc::clone(&stop), inboxes: Arc::clone(&inboxes) };
    let mut threads = Vec::new();
    for (index, mut worker) in (1..).zip(workers) {
        let end = end();
        let thread = std::thread::Builder::new().name(format!("worker-{index}"));
        let thread = thread.spawn(move || {
            let end = end; // it goes when the worker has ended
            worker.run(&end.stop)
        });
        threads.push(thread.map_err(|error| format!("thread of worker {index}: {error}"))?);
    }
    let ends = end();
    let mut result = first.run(&stop);
    drop(ends);
    for thread in threads {
        let ended = thread.join().unwrap_or_else(|_| Err(std::io::Error::other("a worker panicked")));
        result = result.and(ended);
    }
    result.map_err(|error| format!("worker: {error}"))
}

/// When a worker ends, for whatever reason, the others do too: each does what no other can do in its place.
struct EndAll {
    stop: Arc<AtomicBool>,
    inboxes: Arc<Inboxes>,
}

impl Drop for EndAll {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.inboxes.wake_all();
    }
}

/// An error of the admin port with its cause.
fn caused(error: &AdminError) -> String {
    let cause = error.source().map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

/// Tells viewers that come back whether this is still the same relay.
fn fresh_instance() -> std::io::Result<Epoch> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    Ok(Epoch(u64::from_ne_bytes(bytes)))
}

/// What can change while the relay runs.
struct Changeable {
    settings: Settings<Args>,
    workers: usize,
    gate: Gate,
    origins: Origins,
    rights: Arc<Rights>,
}

impl Changeable {
    /// Reads certificates, tokens and the file of the options anew. Each of the two holds as it was if something is
    /// wrong with it.
    fn reload(&mut self) {
        match self.rights.reload(wall_s()) {
            Ok(()) => info!("certificates and tokens were read anew"),
            Err(text) => error!("{text}; what was read before stays in force"),
        }
        let (gate, origins, workers) = (&self.gate, &self.origins, self.workers);
        let check =
            |new: &Settings<Args>| config::mistakes(&new.args).iter().map(ToString::to_string).collect();
        self.settings.reload(check, |key, args| {
            let Ok(new) = Config::new(args) else { return false };
            match key {
                "connections" => gate.set_bounds(Some(descriptors::raise(new.connections, workers)), None),
                "connections-per-address" => gate.set_bounds(None, Some(new.connections_per_address)),
                "allow-origin" => origins.set(new.allowed_origins),
                _ => return false,
            }
            true
        });
    }
}

/// SIGHUP reads anew what can change; the others end the program.
fn obey_signals(
    stop: Arc<AtomicBool>,
    inboxes: Arc<Inboxes>,
    mut changeable: Changeable,
) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if signal == SIGHUP {
                changeable.reload();
                inboxes.wake_all();
                continue;
            }
            info!("signal {signal}: closing");
            service::stopping();
            stop.store(true, Ordering::Release);
            inboxes.wake_all();
        }
    });
    Ok(())
}
