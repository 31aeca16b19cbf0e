//! `--read`: a capture file goes through the very same path as live packets.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bpf::{FilterError, Program};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;
use wire::Interface;
use wire::block::{Kind, StreamKey};
use wire::capture_file::{CaptureFileError, CaptureReader, Item, Packet};
use wire::clock::wall_ns;
use wire::description::{Description, JSON_BYTES_MAX};
use wire::ledger::{InterfaceTotals, Report};
use wire::limited;
use wire::log::FEW;
use wire::pack::{PackError, Packer};

use crate::capture::{CaptureConfig, Output};
use crate::config::{Config, Source};
use crate::handover::{Handed, Handover, Pace, Wakeup};

/// Most bytes handed over and not settled: less than any viewer's queue at the relay, so that
/// nothing is skipped.
const UNDER_WAY_BYTES_MAX: u64 = 16 << 20;

/// Most bytes of a file's table of interfaces as JSON, which a description has to hold beside the
/// names of sniffer and file.
const TABLE_BYTES_MAX: usize = JSON_BYTES_MAX - (16 << 10);

const THREAD_NAME: &str = "read";

/// Why a file cannot be sent.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum ReadError {
    #[error("{path}")]
    Open { path: String, source: io::Error },
    #[error("{path}")]
    File { path: String, source: CaptureFileError },
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error("{path}: packet {number}")]
    Pack { path: String, number: u64, source: PackError },
    #[error(
        "{path}: the descriptions of its first {interfaces} interfaces take over {TABLE_BYTES_MAX} bytes"
    )]
    Table { path: String, interfaces: usize },
    #[error("reading thread")]
    Thread(#[source] io::Error),
}

impl ReadError {
    /// The filter itself is at fault: wrong usage.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Filter(FilterError::Expression { .. } | FilterError::ZeroSnaplen { .. }))
    }
}

/// A file that was opened and not read yet.
#[derive(Debug)]
pub struct OpenedFile {
    path: Option<PathBuf>,
    file: File,
}

impl OpenedFile {
    /// Opens the file at `path`; `None` is standard input.
    pub fn open(path: Option<&Path>) -> Result<Self, ReadError> {
        let fail = |source| ReadError::Open { path: shown(path), source };
        let fd: OwnedFd = match path {
            Some(path) => File::open(path).map_err(fail)?.into(),
            None => io::stdin().as_fd().try_clone_to_owned().map_err(fail)?,
        };
        Ok(Self { path: path.map(Path::to_owned), file: fd.into() })
    }
}

/// Opens libpcap and says what is wrong with the filter, before anything is read.
pub fn check_filter(config: &Config) -> Result<(), ReadError> {
    if let Some(expression) = &config.filter {
        bpf::compile(expression, 1, config.snaplen)?;
    }
    Ok(())
}

/// How messages name a file.
fn shown(path: Option<&Path>) -> String {
    path.map_or("standard input".to_owned(), |path| path.display().to_string())
}

/// How far a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileProgress {
    /// So many bytes are read...
    pub read_bytes: u64,
    /// ... of so many; `None` where nobody knows, as of a pipe.
    pub whole_bytes: Option<u64>,
}

/// A file that is being sent.
pub struct ReadThread {
    read_bytes: Arc<AtomicU64>,
    whole_bytes: Option<u64>,
    pace: Pace,
    wakeup: Wakeup,
    thread: Option<JoinHandle<()>>,
}

impl ReadThread {
    /// Reads the file's head, and begins to send it as stream `key`. libpcap compiles the filter for each interface as
    /// the file names them, with no more rights than the rest of the reading.
    pub fn start(
        opened: OpenedFile,
        config: &Config,
        key: StreamKey,
        capture: CaptureConfig,
        handover: Handover,
    ) -> Result<Self, ReadError> {
        let path = opened.path.as_deref();
        let shown = shown(path);
        let wait = matches!(config.source, Source::File { wait: true, .. });
        let is_begun = Arc::new(AtomicBool::new(false));
        let (timeout, begun) = (capture.block_timeout, Arc::clone(&is_begun));
        let metadata = opened.file.metadata().ok().filter(|one| one.is_file() && one.len() > 0);
        let whole_bytes = metadata.map(|metadata| metadata.len());
        let read_bytes = Arc::new(AtomicU64::new(0));
        let input =
            Input { file: opened.file, timeout, is_begun: begun, read_bytes: Arc::clone(&read_bytes) };
        let file = path.map_or("-".to_owned(), |path| {
            let name = path.file_name().unwrap_or(path.as_os_str());
            name.to_string_lossy().into_owned()
        });
        let reader =
            CaptureReader::new(input).map_err(|source| ReadError::File { path: shown.clone(), source })?;
        is_begun.store(true, Ordering::Release);
        let (pace, wakeup) = (Pace::default(), Wakeup::new().map_err(ReadError::Thread)?);
        let description = Description {
            name: config.name.clone(),
            agent: crate::AGENT.to_owned(),
            opened_ns: wall_ns(),
            predecessor: None,
            file: Some(file.clone()),
            interfaces: Vec::new(),
        };
        let totals =
            capture.totals.as_ref().and_then(|totals| totals.slot(key.stream, &file, description.opened_ns));
        let packer = Packer::new(key, capture.pool.clone(), config.body_bytes, config.compression);
        let mut sending = Sending {
            path: shown,
            filter: config.filter.clone(),
            snaplen: config.snaplen,
            body_bytes: config.body_bytes as u64,
            description,
            programs: Vec::new(),
            output: Output::new(packer, totals),
            handover: handover.clone(),
            wakeup: wakeup.clone(),
            pace: pace.clone(),
            wait,
            is_described: false,
            offered: Vec::new(),
            table_bytes: 0,
            cut_packets: 0,
            number: 0,
            last_time_ns: 0,
        };
        handover.send(Handed::Stream(key, sending.description.clone()));
        let thread = std::thread::Builder::new()
            .name(THREAD_NAME.to_owned())
            .spawn(move || {
                let run = std::panic::AssertUnwindSafe(|| sending.run(reader));
                let result = match std::panic::catch_unwind(run) {
                    Ok(result) => result.map_err(|error| crate::text(&error)),
                    Err(_) => Err("the reading thread panicked".to_owned()),
                };
                handover.send(Handed::Ended(result));
            })
            .map_err(ReadError::Thread)?;
        Ok(Self { read_bytes, whole_bytes, pace, wakeup, thread: Some(thread) })
    }

    /// What the uplink has let go of, and who takes it.
    pub fn update(&self, settled_bytes: u64, viewers: u32, window_bytes: Option<u64>) {
        self.pace.update(settled_bytes, viewers, window_bytes);
    }

    /// How far it is read.
    pub fn progress(&self) -> FileProgress {
        FileProgress { read_bytes: self.read_bytes.load(Ordering::Relaxed), whole_bytes: self.whole_bytes }
    }

    /// A buffer may be free again.
    pub fn buffer_is_free(&self) {
        self.wakeup.wake_if_starved();
    }

    /// Stops sending in the middle of the file.
    pub fn stop(&self) {
        self.pace.stop();
        self.wakeup.wake();
    }
}

impl Drop for ReadThread {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take()
            && thread.is_finished()
        {
            // One that still waits for standard input ends with the process.
            let _ = thread.join();
        }
    }
}

/// The file. Once its head is read, a pipe says `WouldBlock` after the block timeout, so that what
/// was gathered leaves as it would from a ring. A regular file is always ready.
struct Input {
    file: File,
    timeout: Duration,
    is_begun: Arc<AtomicBool>,
    read_bytes: Arc<AtomicU64>,
}

impl Read for Input {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let timeout = match self.is_begun.load(Ordering::Acquire) {
            true => PollTimeout::try_from(self.timeout).unwrap_or(PollTimeout::ZERO),
            false => PollTimeout::NONE,
        };
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout)? {
            0 => Err(ErrorKind::WouldBlock.into()),
            _ => {
                let count = self.file.read(out)?;
                self.read_bytes.fetch_add(count as u64, Ordering::Relaxed);
                Ok(count)
            }
        }
    }
}

struct Sending {
    path: String,
    filter: Option<String>,
    snaplen: u32,
    body_bytes: u64,
    description: Description,
    /// By interface: the filter for its link type.
    programs: Vec<Program>,
    output: Output,
    handover: Handover,
    wakeup: Wakeup,
    pace: Pace,
    wait: bool,
    /// The last description block holds the whole table.
    is_described: bool,
    /// Packets read, by interface.
    offered: Vec<u64>,
    table_bytes: usize,
    cut_packets: u64,
    number: u64,
    last_time_ns: u64,
}

impl Sending {
    fn run(&mut self, mut reader: CaptureReader<Input>) -> Result<(), ReadError> {
        let result = self.send(&mut reader);
        let note = result.as_ref().err().map(|error| crate::text(error));
        self.seal();
        self.describe();
        self.report(note);
        result
    }

    fn send(&mut self, reader: &mut CaptureReader<Input>) -> Result<(), ReadError> {
        loop {
            match reader.next() {
                Ok(None) => return Ok(()),
                Ok(Some(Item::Interface(interface))) => self.add_interface(interface)?,
                Ok(Some(Item::Packet(packet))) => {
                    self.number += 1;
                    if self.pace.is_stopped() || !self.push(&packet)? {
                        return Ok(());
                    }
                }
                Err(CaptureFileError::Io { source, .. })
                    if matches!(source.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
                {
                    self.seal();
                    if self.pace.is_stopped() {
                        return Ok(());
                    }
                }
                Err(source) => return Err(ReadError::File { path: self.path.clone(), source }),
            }
        }
    }

    fn add_interface(&mut self, interface: Interface) -> Result<(), ReadError> {
        let program = match &self.filter {
            Some(expression) => bpf::compile(expression, interface.link_type, self.snaplen)?,
            None => Program::accept_all(self.snaplen),
        };
        self.table_bytes += serde_json::to_vec(&interface).map_or(0, |json| json.len() + 1);
        if self.table_bytes > TABLE_BYTES_MAX {
            return Err(ReadError::Table { path: self.path.clone(), interfaces: self.programs.len() + 1 });
        }
        self.programs.push(program);
        self.offered.push(0);
        let snaplen = match interface.snaplen {
            0 => self.snaplen,
            length => length.min(self.snaplen),
        };
        let filter = interface.filter.clone().or_else(|| self.filter.clone());
        self.description.interfaces.push(Interface { snaplen, filter, ..interface });
        self.is_described = false;
        Ok(())
    }

    /// Sends one packet. `false`: stopped.
    fn push(&mut self, packet: &Packet<'_>) -> Result<bool, ReadError> {
        // The reader gives out packets of interfaces it has given out only.
        let Some(program) = self.programs.get(packet.interface as usize) else { return Ok(true) };
        let keep = program.run(packet.data, packet.original_len) as usize;
        if keep == 0 {
            return Ok(true);
        }
        let data = &packet.data[..packet.data.len().min(keep)];
        if !self.is_described {
            self.seal();
            self.describe();
        }
        while !self.output.packer.is_under_way() {
            // Each block begins with a look at how much is under way.
            if !self.pace.wait(self.body_bytes, UNDER_WAY_BYTES_MAX, self.wait) {
                return Ok(false);
            }
            if self.output.packer.prepare() {
                break;
            }
            self.wait_for_buffer();
        }
        loop {
            let pushed = self.output.packer.push(
                packet.interface,
                packet.time_ns,
                packet.original_len,
                [data],
                packet.options,
            );
            match pushed {
                Ok(()) => break,
                Err(PackError::Full) => {
                    self.seal();
                    if !self.pace.wait(self.body_bytes, UNDER_WAY_BYTES_MAX, self.wait) {
                        return Ok(false);
                    }
                }
                Err(PackError::NoBuffer) => self.wait_for_buffer(),
                Err(source) => {
                    return Err(ReadError::Pack { path: self.path.clone(), number: self.number, source });
                }
            }
        }
        if let Some(offered) = self.offered.get_mut(packet.interface as usize) {
            *offered += 1;
        }
        self.cut_packets += u64::from((data.len() as u64) < u64::from(packet.original_len));
        self.last_time_ns = packet.time_ns;
        Ok(true)
    }

    fn seal(&mut self) {
        self.output.packer.set_room_is_short(self.handover.room_is_short());
        if let Some(block) = self.output.packer.seal() {
            self.pace.add(block.bytes().len());
            self.output.set_kernel(self.output.packer.packed().0, 0); // nothing is dropped here
            self.output.hand_over(block, &self.handover);
        }
    }

    /// Sends the table as it is now.
    fn describe(&mut self) {
        if self.is_described {
            return;
        }
        let key = self.output.key();
        self.handover.send(Handed::Stream(key, self.description.clone()));
        loop {
            match self.output.packer.seal_json(Kind::Description, &self.description, wall_ns(), false) {
                Some(block) => {
                    self.pace.add(block.bytes().len());
                    self.output.hand_over(block, &self.handover);
                    self.is_described = true;
                    return;
                }
                None => self.wait_for_buffer(),
            }
        }
    }

    /// The stream's last block.
    fn report(&mut self, note: Option<String>) {
        let (packed_packets, packed_bytes) = self.output.packer.packed();
        let totals = |offered: &u64| InterfaceTotals { offered: *offered, ..InterfaceTotals::default() };
        let report = Report {
            time_ns: self.last_time_ns,
            complete_through_ns: u64::MAX,
            packed_packets,
            packed_bytes,
            cut_packets: self.cut_packets,
            interfaces: self.offered.iter().map(totals).collect(),
            note,
            ..Report::default()
        };
        let (stream, thread) = (self.output.key().stream, THREAD_NAME.into());
        self.handover.send(Handed::Report { stream, report: report.clone(), thread, ring: None });
        loop {
            match self.output.packer.seal_json(Kind::Report, &report, self.last_time_ns, true) {
                Some(block) => {
                    self.pace.add(block.bytes().len());
                    return self.output.hand_over(block, &self.handover);
                }
                None => self.wait_for_buffer(),
            }
        }
    }

    fn wait_for_buffer(&self) {
        self.wakeup.set_starved();
        self.handover.wake();
        let mut fds = [PollFd::new(self.wakeup.as_fd(), PollFlags::POLLIN)];
        if let Err(error) = poll(&mut fds, PollTimeout::from(50u8)) {
            limited!(warn, FEW, "poll: {error}");
        }
        self.wakeup.clear();
    }
}
