//! What a service manager is told: ready, stopping, and that we are alive (sd_notify(3)). Nothing happens where none asks
//! for it (NOTIFY_SOCKET, WATCHDOG_USEC), nor on other systems than Linux. And what it does for us: it hands over files
//! with secrets.

use std::path::Path;
use std::time::{Duration, Instant};

/// The directory of the files that are handed over (LoadCredential=, systemd.exec(5)).
pub const CREDENTIALS_VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// Whether this file was handed over. Then it is its reader's alone, by an access list that looks like rights of a group.
pub fn is_credential(path: &Path) -> bool {
    let directory = std::env::var_os(CREDENTIALS_VARIABLE).filter(|directory| !directory.is_empty());
    directory.is_some_and(|directory| path.starts_with(directory))
}

/// Start is over: what was asked for is open.
pub fn ready() {
    notify(State::Ready);
}

/// The end has begun, in order.
pub fn stopping() {
    notify(State::Stopping);
}

#[derive(Clone, Copy, Debug)]
enum State {
    Ready,
    Stopping,
    Alive,
}

/// Tells the service manager that the program is alive, twice in the time that it allows between two signs of life.
#[derive(Debug)]
pub struct Heart {
    interval: Option<Duration>,
    due: Instant,
}

impl Heart {
    /// As the environment says: the first beat is due at once.
    pub fn from_environment(now: Instant) -> Self {
        Self { interval: watchdog_time().map(|time| time / 2), due: now }
    }

    /// To be called while everything is well, more often than beats are due.
    pub fn beat(&mut self, now: Instant) {
        if let Some(interval) = self.interval
            && now >= self.due
        {
            self.due = now + interval;
            notify(State::Alive);
        }
    }
}

#[cfg(target_os = "linux")]
fn watchdog_time() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

#[cfg(not(target_os = "linux"))]
fn watchdog_time() -> Option<Duration> {
    None
}

#[cfg(target_os = "linux")]
fn notify(state: State) {
    let state = match state {
        State::Ready => sd_notify::NotifyState::Ready,
        State::Stopping => sd_notify::NotifyState::Stopping,
        State::Alive => sd_notify::NotifyState::Watchdog,
    };
    // A manager that cannot be reached finds out by itself, from what it does not hear.
    if let Err(error) = sd_notify::notify(&[state]) {
        crate::limited!(debug, crate::log::FEW, "NOTIFY_SOCKET: {error}");
    }
}

#[cfg(not(target_os = "linux"))]
fn notify(_state: State) {}
