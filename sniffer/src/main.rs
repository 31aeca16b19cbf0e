//! `sniffer`: captures packets from TPACKET_V3 rings and sends them to a relay.
//!
//! The path of a packet: `ring` lends a block, `capture` packs it, `handover` passes it on,
//! `uplink` sends it and keeps it until the relay has settled it.

mod admin;
mod args;
mod capture;
mod config;
mod confine;
mod doctor;
mod feedback;
mod fleet;
mod handover;
mod interfaces;
mod journal_command;
mod losses;
mod read;
#[allow(dead_code)] // the ring's whole interface: capture uses most of it, the tests the rest
mod ring;
mod show;
mod snapshot;
mod spool;
mod summary;
mod tally;
#[cfg(test)]
mod test_net;
mod totals;
mod uplink;
mod watchdog;

use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use settings::Settings;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use wire::admin::Admin;
use wire::block::{Epoch, StreamKey};
use wire::pool::Pool;

use admin::Asker;
use args::{Args, Command};
use capture::CaptureConfig;
use config::{Config, Live, Source};
use confine::Confinement;
use fleet::{Filters, Fleet};
use losses::SharedLosses;
use read::{OpenedFile, ReadThread};
use spool::Spool;
use uplink::{Packing, Reload, Sender, Shared};

/// This program and its version, as peers see it.
pub const AGENT: &str = concat!("ringcast-sniffer/", env!("CARGO_PKG_VERSION"));

fn main() -> ExitCode {
    // INVARIANT: before anything secret is read.
    wire::process::protect();
    let settings = match settings::start(mistakes) {
        Ok(settings) => settings,
        Err(status) => return status,
    };
    let args: &Args = &settings.args;
    let is_doctor = matches!(args.command, Some(Command::Doctor(_)));
    wire::log::start(args.log_format, if is_doctor { wire::log::Level::Error } else { args.log_level });
    match &args.command {
        Some(Command::Doctor(asked)) => return doctor::run(&settings, asked.json),
        Some(Command::Journal { action }) => return journal_command::run(action),
        None => {}
    }
    if args.list_interfaces {
        return list_interfaces();
    }
    let config = match Config::new(args, host_name()) {
        Ok(config) => config,
        Err(error) => return fail(2, &settings.locate(&text(&error))),
    };
    let result = run(&config, settings);
    wire::log::finish();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { status, text }) => fail(status, &text),
    }
}

/// What is wrong with the options and the files that they name.
fn mistakes(settings: &Settings<Args>) -> Vec<String> {
    let args = &settings.args;
    let mut found: Vec<String> =
        config::mistakes(args, &host_name()).iter().map(|mistake| text(mistake)).collect();
    if args.filter.as_ref().is_some_and(|filter| !filter.trim().is_empty()) {
        found.extend(
            Filters::compile(args.filter.as_deref(), args.snaplen).fault().map(|error| text(&*error)),
        );
    }
    found
}

/// Why the program ends without success, and with which status.
struct Failure {
    status: u8,
    text: String,
}

fn failed(text: String) -> Failure {
    Failure { status: 1, text }
}

fn failed_by(is_usage: bool, error: &dyn std::error::Error) -> Failure {
    Failure { status: if is_usage { 2 } else { 1 }, text: text(error) }
}

/// What is had with the rights the program was started with, and used with fewer.
enum Prepared<'a> {
    /// The filter is compiled. Interfaces come and go, so their rings are opened when they are there.
    Live(&'a Live, Box<Filters>),
    /// The file is open.
    File(OpenedFile),
}

fn run(config: &Config, settings: Settings<Args>) -> Result<(), Failure> {
    // INVARIANT: what needs the rights of whoever started us comes first; what reads a byte of
    // anybody else's, last. Between them all rights go but those to open rings, before the first
    // thread is made, since rights are a thread's own and inherited.
    let prepared = prepare(config)?;
    let has_rings = matches!(prepared, Prepared::Live(..));
    let admin = config.admin.map(Admin::bind).transpose().map_err(|error| failed(text(&error)))?;
    confine::give_up_capabilities(has_rings);
    if let Some((directory, _)) = &config.spool {
        spool::prepare(directory).map_err(|error| failed(text(&error)))?;
    }
    // libpcap compiles the filter of a file for its interfaces as they come, names of hosts too.
    let is_address = config.relay.host().parse::<IpAddr>().is_ok();
    confine::confine(&Confinement {
        has_rings,
        looks_up_names: !is_address || (!has_rings && config.filter.is_some()),
        sends_pages: !config.relay.is_secure(),
        has_admin: admin.is_some(),
        spool: config.spool.as_ref().map(|(directory, _)| directory.as_path()),
        relay_port: config.relay.port(),
        readable: &config
            .credential_files
            .paths()
            .chain(settings.file())
            .map(Path::to_owned)
            .collect::<Vec<_>>(),
    });

    let epoch = fresh_epoch().map_err(|error| failed(format!("random numbers: {error}")))?;
    let pool = Pool::new(config.memory_bytes);
    let (marks_wanted, losses) = (Arc::new(AtomicBool::new(false)), SharedLosses::default());
    let (poll, handover, handed) = Sender::channel().map_err(|error| failed(format!("poll: {error}")))?;
    let spool = match &config.spool {
        Some((directory, cap_bytes)) => {
            let opened = Spool::open(directory, *cap_bytes, epoch, pool.clone(), handover.clone());
            Some(opened.map_err(|error| failed(text(&error)))?)
        }
        None => None,
    };
    let former = spool.as_ref().map(|spool| spool.former.last_by_interface()).unwrap_or_default();
    let capture = CaptureConfig {
        snaplen: config.snaplen,
        body_bytes: config.body_bytes,
        compression: config.compression,
        block_timeout: config.block_timeout,
        pool: pool.clone(),
        marks_wanted: Arc::clone(&marks_wanted),
        next_stream: Arc::default(),
        losses: losses.clone(),
        totals: spool.as_ref().and_then(|spool| spool.totals.clone()),
    };

    // Rings are bound, and have joined their groups, behind filters that drop everything; capture
    // begins when the sender has excluded its own connection. A file is opened, and read when a
    // viewer is there.
    let packing = match prepared {
        Prepared::Live(live, filters) => {
            let opened = Fleet::open(config, live, *filters, epoch, capture, &handover, former);
            Packing::Live(Box::new(opened.map_err(|error| failed_by(error.is_usage(), &error))?))
        }
        Prepared::File(opened) => {
            let key = StreamKey { epoch, stream: 0 };
            let started = ReadThread::start(opened, config, key, capture, handover.clone());
            Packing::File(started.map_err(|error| failed_by(error.is_usage(), &error))?)
        }
    };
    let (stop, reload) = (Arc::new(AtomicBool::new(false)), Arc::new(Reload::new(config.rate_bytes)));
    listen_to_signals(Arc::clone(&stop), Arc::clone(&reload), settings, handover.clone())
        .map_err(|error| failed(format!("signals: {error}")))?;

    let shared = Shared { pool, marks_wanted, losses };
    let asker = Asker::new(handover.clone());
    let sender = Sender::new(config, epoch, shared, (poll, handover, handed), packing, spool)
        .map_err(|error| failed(format!("poll: {error}")))?;
    if let Some(admin) = admin {
        let started = admin.start("sniffer", env!("CARGO_PKG_VERSION"), asker);
        started.map_err(|error| failed(text(&error)))?;
    }
    wire::service::ready();
    let end = sender.run(&stop, &reload).map_err(|error| failed(format!("poll: {error}")))?;
    wire::log::finish(); // the summary is the last that is said
    if let Some(summary) = end.summary.filter(|_| !config.quiet) {
        wire::log::say(&summary.to_string());
    }
    match end.failure {
        None => Ok(()),
        Some(text) => Err(failed(text)),
    }
}

fn prepare(config: &Config) -> Result<Prepared<'_>, Failure> {
    match &config.source {
        Source::Live(live) => {
            // What is wrong with the filter is told when an interface is there that it is wrong for.
            let filters = Filters::compile(config.filter.as_deref(), config.snaplen);
            Ok(Prepared::Live(live, Box::new(filters)))
        }
        Source::File { path, .. } => OpenedFile::open(path.as_deref())
            .and_then(|opened| read::check_filter(config).map(|()| Prepared::File(opened)))
            .map_err(|error| failed_by(error.is_usage(), &error)),
    }
}

/// SIGINT and SIGTERM end in order, SIGHUP has credentials and the file of the options read anew.
fn listen_to_signals(
    stop: Arc<AtomicBool>,
    reload: Arc<Reload>,
    mut settings: Settings<Args>,
    handover: handover::Handover,
) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let had_terminals = wire::process::terminals();
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if signal == SIGHUP && wire::process::terminals() == had_terminals {
                // Credentials are read by the thread that uses them, and nothing but what they are.
                let check = |new: &Settings<Args>| {
                    config::option_mistakes(&new.args, &host_name()).iter().map(|error| text(error)).collect()
                };
                settings.reload(check, |key, args| {
                    let is_rate = key == "rate";
                    if is_rate {
                        reload.set_rate(args.rate);
                    }
                    is_rate
                });
                reload.ask();
            } else if signal == SIGHUP {
                // The terminal was closed, which may be told more than once: nobody is there to stop us.
                stop.store(true, Ordering::Release);
            } else if stop.swap(true, Ordering::AcqRel) {
                // Asked a second time: whoever asks knows that what is under way is lost.
                wire::progress::abandon();
                std::process::exit(1);
            }
            handover.wake();
        }
    });
    Ok(())
}

fn fresh_epoch() -> std::io::Result<Epoch> {
    use std::io::Read;
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(Epoch(u64::from_ne_bytes(bytes)))
}

fn host_name() -> String {
    match nix::unistd::gethostname() {
        Ok(name) if !name.is_empty() => name.to_string_lossy().into_owned(),
        _ => "sniffer".to_owned(),
    }
}

fn list_interfaces() -> ExitCode {
    let interfaces = match interfaces::list() {
        Ok(interfaces) => interfaces,
        Err(error) => return fail(1, &format!("interfaces: {error}")),
    };
    println!(
        "{:<16} {:<5} {:<10} {:<20} {:<24} addresses",
        "interface", "state", "link type", "mac", "hardware"
    );
    for one in interfaces {
        let link_type = one.link_type.map_or("unknown".to_owned(), |link_type| link_type.to_string());
        let mac = one.mac.map_or(String::new(), |mac| {
            mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
        });
        let addresses: Vec<String> = one.addresses.iter().map(ToString::to_string).collect();
        println!(
            "{:<16} {:<5} {:<10} {:<20} {:<24} {}",
            one.name,
            if one.up { "up" } else { "down" },
            link_type,
            mac,
            one.hardware.unwrap_or_default(),
            addresses.join(" ")
        );
    }
    ExitCode::SUCCESS
}

/// An error with its causes, on one line.
pub fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

fn fail(status: u8, text: &str) -> ExitCode {
    wire::log::complain(&format!("sniffer: {text}"));
    ExitCode::from(status)
}
