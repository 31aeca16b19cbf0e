//! `viewer`: takes packed blocks from a relay and writes them as pcapng.
//!
//! ```text
//!  relay ==ws==> network thread: connection, downlink --queue--> writer thread: unpack, [merge] --> pcapng
//!                     ^  corrupt blocks                              |
//!                     +----------------------------------------------+
//! ```
//!
//! The network thread is the main one. The writer may block on its reader as long as it likes: the
//! queue fills, the network thread stops reading, and the relay skips blocks for this viewer alone.

mod args;
mod config;
mod doctor;
mod interfaces;
mod ledger;
mod list;
mod merge;
mod network;
mod output;
mod progress;
mod queue;
mod show;
mod summary;
mod tally;
mod unpack;
mod writer;

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use mio::Waker;
use settings::Settings;
use wire::text::io_text;

use args::{Args, Command};
use config::{Config, Target};
use network::{End, Network};
use output::{Output, Stop, complain, say};
use tally::SharedTally;
use writer::Writer;

/// Once interrupted, what waits is still written for this long...
const DRAIN_TIME: Duration = Duration::from_millis(1500);
/// ... and a reader that does not read is given up after this time.
const GIVE_UP_TIME: Duration = Duration::from_secs(2);
/// How often a writer that still drains is asked whether it has ended.
const JOIN_TICK: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    wire::process::protect();
    let settings = match settings::start(mistakes) {
        Ok(settings) => settings,
        Err(status) => return status,
    };
    let doctor = settings.args.command.as_ref().map(|Command::Doctor(asked)| asked.json);
    let level = if doctor.is_some() { wire::log::Level::Error } else { settings.args.log_level };
    wire::log::start(settings.args.log_format, level);
    if let Some(json) = doctor {
        return doctor::run(&settings, json);
    }
    let config = match Config::new(&settings.args, io::stdout().is_terminal()) {
        Ok(config) => config,
        Err(error) => {
            complain(&settings.locate(&error.to_string()));
            return ExitCode::from(2);
        }
    };
    let result = if config.list { show_list(&config, settings) } else { view(&config, settings) };
    wire::log::finish();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            complain(&text);
            ExitCode::FAILURE
        }
    }
}

/// What is wrong with the options and the files that they name.
fn mistakes(settings: &Settings<Args>) -> Vec<String> {
    config::mistakes(&settings.args).iter().map(ToString::to_string).collect()
}

/// Connects, starts the writer, receives until there is a reason to end, and ends in order.
fn view(config: &Config, settings: Settings<Args>) -> Result<(), String> {
    let (tally, stop) = (SharedTally::default(), Arc::new(AtomicBool::new(false)));
    let mut network = start_network(config, settings, &tally, &stop)?;
    let failed = |error: network::LinkError| format!("{}: {error}", config.relay_text());
    if !network.subscribe().map_err(failed)? {
        return Ok(()); // interrupted before anything came
    }
    // INVARIANT: the file is not touched before the relay has answered, so that a typing mistake
    // in its address costs nobody a capture.
    let output = Output::open(&config.target).map_err(|error| output_error(config, &error))?;
    // Where packets go to a terminal, a line would go between them.
    if !config.quiet && !output.is_terminal() {
        network.show_line();
    }
    let writer = Writer::new(config, output, network.queue(), network.pool(), tally.clone());
    let (sender, written) = channel();
    std::thread::spawn(move || {
        let _ = sender.send(writer.run()); // nobody waits any more
    });

    let end = network.run(config);

    network.close();
    let interrupted_at = |now: Instant| (now + DRAIN_TIME, now + GIVE_UP_TIME);
    let mut give_up_at = None;
    if end == End::Interrupted {
        let (drain_until, give_up) = interrupted_at(Instant::now());
        network.queue().close(Some(drain_until));
        give_up_at = Some(give_up);
    } else {
        network.queue().close(None);
    }
    let ended = loop {
        match written.recv_timeout(JOIN_TICK) {
            Ok(ended) => break Some(ended),
            Err(RecvTimeoutError::Disconnected) => return Err("the writer panicked".to_owned()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        network.look(Instant::now());
        if give_up_at.is_none() && stop.load(Ordering::Acquire) {
            let (drain_until, give_up) = interrupted_at(Instant::now());
            network.queue().close(Some(drain_until));
            give_up_at = Some(give_up);
        }
        if give_up_at.is_some_and(|at| Instant::now() >= at) {
            say("the reader of the output does not read: its last block is left unfinished");
            break None;
        }
    };
    network.take_told();
    network.hide_line();
    wire::log::finish(); // the summary is the last that is said
    if !config.quiet {
        for line in summary::summary(&network.lines(), &tally.lock().interface_drops) {
            say(&line);
        }
    }
    match ended {
        Some(Err(Stop::Failed(error))) => Err(output_error(config, &error)),
        _ => Ok(()),
    }
}

/// Asks for the list and prints it.
fn show_list(config: &Config, settings: Settings<Args>) -> Result<(), String> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut network = start_network(config, settings, &SharedTally::default(), &stop)?;
    let fetched = network.fetch_list().map_err(|error| format!("{}: {error}", config.relay_text()))?;
    network.close();
    let text = fetched.map(|list| list::list_text(&list, &config.matcher, config.json)).unwrap_or_default();
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(output_error(config, &error)),
        _ => Ok(()),
    }
}

fn start_network(
    config: &Config,
    settings: Settings<Args>,
    tally: &SharedTally,
    stop: &Arc<AtomicBool>,
) -> Result<Network, String> {
    let reload = Arc::new(AtomicBool::new(false));
    let network = Network::new(config, tally.clone(), Arc::clone(stop), Arc::clone(&reload));
    let network = network.map_err(|error| format!("poll: {}", io_text(&error)))?;
    obey_signals(stop, reload, settings, network.waker())
        .map_err(|error| format!("signals: {}", io_text(&error)))?;
    Ok(network)
}

fn output_error(config: &Config, error: &io::Error) -> String {
    match &config.target {
        Target::File(path) => format!("{}: {}", path.display(), io_text(error)),
        Target::Stdout => format!("standard output: {}", io_text(error)),
    }
}

/// The first SIGINT or SIGTERM ends in order, a second one at once. SIGHUP has credentials and the file of the options read
/// anew, or, where it tells that the terminal is gone, ends in order too.
#[cfg(unix)]
fn obey_signals(
    stop: &Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
    mut settings: Settings<Args>,
    waker: Arc<Waker>,
) -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let had_terminals = wire::process::terminals();
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if signal == SIGHUP && wire::process::terminals() == had_terminals {
                let check = |new: &Settings<Args>| {
                    config::option_mistakes(&new.args).iter().map(ToString::to_string).collect()
                };
                settings.reload(check, |_, _| false);
                reload.store(true, Ordering::Release);
            } else if signal == SIGHUP {
                stop.store(true, Ordering::Release); // it may be told more than once
            } else if stop.swap(true, Ordering::AcqRel) {
                wire::progress::abandon();
                std::process::exit(128 + signal);
            }
            let _ = waker.wake(); // the next tick makes up for it
        }
    });
    Ok(())
}

/// Ctrl-C ends in order; the network thread notices at its next tick.
#[cfg(not(unix))]
fn obey_signals(
    stop: &Arc<AtomicBool>,
    _reload: Arc<AtomicBool>,
    _settings: Settings<Args>,
    _waker: Arc<Waker>,
) -> io::Result<()> {
    signal_hook::flag::register(signal_hook::consts::SIGINT, Arc::clone(stop)).map(drop)
}
