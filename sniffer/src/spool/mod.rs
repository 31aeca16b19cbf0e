//! The spool: what the relay does not have yet, on disk, in one directory for all runs of a sniffer.
//!
//! ```text
//! DIR/0000000042.seg ...   the journal: packed blocks (wire::journal)
//! DIR/cursor, DIR/lock     how far it is settled; who writes to it
//! DIR/home                 16 hexadecimal digits: the same for all runs, so that they meet at the relay
//! DIR/totals-EPOCH         what each run has packed, kept through kill -9 (crate::totals)
//! ```
//!
//! The journal has a thread of its own: neither capture nor the sending thread ever waits for the
//! disk. What goes there and when is decided by `wire::uplink`.

mod figures;
mod former;
mod thread;

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use nix::unistd::{AccessFlags, eaccess, geteuid};
use thiserror::Error;
use tracing::{info, warn};
use wire::block::Epoch;
use wire::journal::{Config as JournalConfig, Eviction, Fs, Journal, JournalError, RealFs};
use wire::message::Cursor;
use wire::pool::Pool;
use wire::units::format_bytes;
use wire::uplink::Evicted;

use crate::handover::Handover;
use crate::totals::{self, TotalsFile};

pub use figures::SpoolFigures;
pub use former::Former;
pub use thread::{Closed, SpoolReply, SpoolThread};

/// Why there is no spool.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum SpoolError {
    #[error("--spool")]
    Journal(#[from] JournalError),
    #[error("--spool {}: {what}", directory.display())]
    Directory { directory: PathBuf, what: &'static str, source: io::Error },
    #[error(
        "--spool {}: {} is not ours to write: it is owned by uid {owner}, the sniffer runs as uid {uid} and \
         uses no capability to get around that; `chown -R {uid} {}`, or run it as that user",
        directory.display(), path.display(), directory.display()
    )]
    Foreign { directory: PathBuf, path: PathBuf, owner: u32, uid: u32 },
}

/// Makes the directory, for its owner alone, if it is not there, and checks that it is ours to write. What root could
/// write as root, it cannot without capabilities.
pub fn prepare(directory: &Path) -> Result<(), SpoolError> {
    let failed = |what| move |source| SpoolError::Directory { directory: directory.to_owned(), what, source };
    RealFs.create_directory(directory).map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => {
            failed("cannot be made without capabilities; make it and `chown` it to this user")(error)
        }
        _ => failed("cannot be made")(error),
    })?;
    check_ours(directory)
}

/// Whether a directory that is there, and what is in it, is ours to write.
pub fn check_ours(directory: &Path) -> Result<(), SpoolError> {
    let failed = |what| move |source| SpoolError::Directory { directory: directory.to_owned(), what, source };
    let check = |path: PathBuf, flags| match eaccess(&path, flags) {
        Ok(()) => Ok(()),
        Err(Errno::ENOENT) => Ok(()), // it is new
        Err(Errno::EACCES) => {
            let owner = fs::metadata(&path).map_err(failed("cannot be looked at"))?.uid();
            let uid = geteuid().as_raw();
            Err(SpoolError::Foreign { directory: directory.to_owned(), path, owner, uid })
        }
        Err(errno) => Err(failed("cannot be written")(errno.into())),
    };
    let (files, enter) = (AccessFlags::R_OK | AccessFlags::W_OK, AccessFlags::X_OK);
    check(directory.to_owned(), files | enter)?;
    // Who made this file made the others.
    check(directory.join("lock"), files)
}

/// A spool that was opened.
pub struct Spool {
    /// The same for all runs of this spool.
    pub home: Epoch,
    /// What this run has packed; `None` where it cannot be kept.
    pub totals: Option<Arc<TotalsFile>>,
    /// What earlier runs left behind.
    pub former: Former,
    /// What was thrown away and never told.
    pub evictions: Vec<Evicted>,
    /// Serves the journal.
    pub thread: SpoolThread,
}

impl Spool {
    /// Opens the spool in `directory` for the run `epoch`, of at most `cap_bytes`. Blocks are read
    /// into buffers of `pool`.
    pub fn open(
        directory: &Path,
        cap_bytes: u64,
        epoch: Epoch,
        pool: Pool,
        handover: Handover,
    ) -> Result<Self, SpoolError> {
        let config = JournalConfig { directory: directory.to_owned(), cap_bytes, segment_bytes: None };
        let (journal, recovered) = Journal::open(&config, RealFs, Instant::now())?;
        let shown = directory.display();
        for warning in &recovered.warnings {
            warn!("spool {shown}: {warning}");
        }
        if recovered.cut_bytes > 0 {
            warn!("spool {shown}: {} bytes of a block that was not whole were cut", recovered.cut_bytes);
        }
        if recovered.blocks > 0 {
            let bytes = format_bytes(recovered.bytes);
            info!("spool {shown}: {} packets of earlier runs, {bytes}", recovered.packets);
        }
        let failed =
            |what| move |source| SpoolError::Directory { directory: directory.to_owned(), what, source };
        let home = home(directory, epoch);
        let runs = totals::former_runs(directory, epoch).map_err(failed("cannot be listed"))?;
        let totals = TotalsFile::create(directory, epoch)
            .inspect_err(|error| {
                warn!("spool {shown}: {error}: what a kill of this process would lose will not be counted");
            })
            .ok();
        let thread =
            SpoolThread::start(directory, journal, cap_bytes, pool, handover).map_err(failed("thread"))?;
        Ok(Self {
            home,
            totals: totals.map(Arc::new),
            former: Former::new(runs),
            evictions: recovered.evictions.iter().map(evicted).collect(),
            thread,
        })
    }
}

/// The number that all runs of a spool share. Where it cannot be kept this run is on its own.
fn home(directory: &Path, epoch: Epoch) -> Epoch {
    let path = directory.join("home");
    let read =
        || fs::read_to_string(&path).ok().and_then(|text| Epoch::try_from(text.trim().to_owned()).ok());
    if let Some(home) = read() {
        return home;
    }
    let write = || -> io::Result<()> {
        let new = directory.join("home.new");
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(format!("{epoch}\n").as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)
    };
    if let Err(error) = write()
        && error.kind() != ErrorKind::AlreadyExists
    {
        warn!("{}: {error}", path.display());
    }
    epoch
}

/// What the journal threw away, as the uplink takes it.
fn evicted(one: &Eviction) -> Evicted {
    let key = one.key;
    Evicted {
        begin: Cursor {
            key,
            next_sequence: one.first_sequence,
            packets: one.packets_through.saturating_sub(one.packets),
            bytes: one.bytes_through.saturating_sub(one.bytes),
        },
        end: Cursor {
            key,
            next_sequence: one.next_sequence,
            packets: one.packets_through,
            bytes: one.bytes_through,
        },
        has_end: one.has_end,
    }
}
