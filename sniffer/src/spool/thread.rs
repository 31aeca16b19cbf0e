//! The thread that serves the journal: appends, reads and acknowledges as it is asked, in order.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::{error, info};
use wire::block::{PackedBlock, StreamKey};
use wire::journal::{Journal, JournalError, JournalEvent, Position};
use wire::limited;
use wire::log::FEW;
use wire::pool::Pool;
use wire::uplink::{Evicted, Loaded, SpoolRequest};

use super::evicted;
use super::figures::{Meter, SharedFigures, SpoolFigures};
use crate::handover::{Handed, Handover};

/// Longest sleep.
const TICK: Duration = Duration::from_secs(1);
/// The same trouble is said again after this time.
const REPEAT_TIME: Duration = Duration::from_secs(60);
/// Time for the journal to be made durable at the end.
const CLOSE_TIME: Duration = Duration::from_secs(10);

/// What the journal answers.
#[derive(Debug)]
pub enum SpoolReply {
    /// The oldest append that was not answered is done, or failed.
    Appended(bool),
    /// What the oldest read brought.
    Loaded(Loaded),
    /// Blocks were thrown away that nobody had read.
    Evicted(Vec<Evicted>),
}

/// What it is asked.
enum Ask {
    Request(SpoolRequest),
    Describe(PackedBlock),
    Done(StreamKey),
    Close(SyncSender<Closed>),
    #[cfg(test)]
    Fail,
}

/// How a spool was left.
#[derive(Clone, Copy, Debug, Default)]
pub struct Closed {
    /// Packets in it that are not settled.
    pub packets: u64,
    /// All of it is durable.
    pub is_durable: bool,
}

/// A running spool thread.
pub struct SpoolThread {
    asks: Sender<Ask>,
    figures: SharedFigures,
    _thread: JoinHandle<()>,
}

impl SpoolThread {
    pub(super) fn start(
        directory: &Path,
        mut journal: Journal,
        bound_bytes: u64,
        pool: Pool,
        handover: Handover,
    ) -> io::Result<Self> {
        let (asks, receiver) = channel();
        let meter = Meter::new(&mut journal, bound_bytes);
        let figures = meter.shared();
        let server = Server {
            directory: directory.to_owned(),
            journal,
            pool,
            handover,
            handed: VecDeque::new(),
            handed_before: 0,
            has_failed: false,
            has_failed_to_read: false,
            meter,
            trouble: None,
            unanswered: None,
        };
        let run = move || server.run_guarded(&receiver);
        let thread = std::thread::Builder::new().name("spool".to_owned()).spawn(run)?;
        Ok(Self { asks, figures, _thread: thread })
    }

    /// Asks for something; the answer is handed over.
    pub fn ask(&self, request: SpoolRequest) {
        // A thread that has ended has said why, and answers nothing any more.
        let _ = self.asks.send(Ask::Request(request));
    }

    /// Where the spool stands, up to a second ago; longer while the disk does not answer.
    pub fn figures(&self) -> SpoolFigures {
        self.figures.read()
    }

    /// What the blocks of a stream are of, in case that some of them are spooled later.
    pub fn describe(&self, description: PackedBlock) {
        let _ = self.asks.send(Ask::Describe(description));
    }

    /// Nothing is left of a stream: what was thrown away of it was told, for good.
    pub fn done(&self, key: StreamKey) {
        let _ = self.asks.send(Ask::Done(key));
    }

    #[cfg(test)]
    fn fail(&self) {
        let _ = self.asks.send(Ask::Fail);
    }

    /// Makes everything durable and ends, within a bound.
    pub fn close(self) -> Closed {
        let (reply, answer) = sync_channel(1);
        let _ = self.asks.send(Ask::Close(reply));
        answer.recv_timeout(CLOSE_TIME).unwrap_or_default()
    }
}

struct Server {
    directory: PathBuf,
    journal: Journal,
    pool: Pool,
    handover: Handover,
    /// Where reading went on behind each block that was read and is not acknowledged, and packets in it.
    handed: VecDeque<(Position, u32)>,
    handed_before: u64,
    /// Appending has failed; nothing more is appended until that is asked for.
    has_failed: bool,
    has_failed_to_read: bool,
    /// Counts, for whoever looks.
    meter: Meter,
    /// What was said last of something that is tried again, and when.
    trouble: Option<(String, Instant)>,
    /// What is answered when that fails which is being served.
    unanswered: Option<SpoolReply>,
}

/// What is answered to a request that is not served.
fn refusal(request: &SpoolRequest) -> Option<SpoolReply> {
    match request {
        SpoolRequest::Append(_) => Some(SpoolReply::Appended(false)),
        SpoolRequest::Read => Some(SpoolReply::Loaded(Loaded::End)),
        SpoolRequest::Resume | SpoolRequest::Acknowledge(_) => None,
    }
}

impl Server {
    /// A defect in here must not hold up what is meant for the spool: the uplink is told that it
    /// takes and has nothing any more, and goes on from memory.
    fn run_guarded(mut self, asks: &Receiver<Ask>) {
        match catch_unwind(AssertUnwindSafe(|| self.run(asks))) {
            Ok(Some(reply)) => return self.close(&reply),
            Ok(None) => return,
            Err(_) => {} // the panic has been told
        }
        error!("spool {}: its thread has failed; from now on there is no spool", self.directory.display());
        self.meter.handle_gone();
        if let Some(reply) = self.unanswered.take() {
            self.reply(reply);
        }
        while let Ok(ask) = asks.recv() {
            match ask {
                Ask::Request(request) => refusal(&request).into_iter().for_each(|reply| self.reply(reply)),
                Ask::Describe(_) | Ask::Done(_) => {}
                #[cfg(test)]
                Ask::Fail => {}
                Ask::Close(reply) => {
                    let _ = reply.send(Closed::default());
                    return;
                }
            }
        }
    }

    /// Serves until it is to close, or nobody asks any more.
    fn run(&mut self, asks: &Receiver<Ask>) -> Option<SyncSender<Closed>> {
        loop {
            let until = self.journal.poll_timeout().map_or(TICK, |at| {
                at.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(1), TICK)
            });
            match asks.recv_timeout(until) {
                Ok(Ask::Request(request)) => {
                    self.unanswered = refusal(&request);
                    self.serve(request);
                    self.unanswered = None;
                }
                Ok(Ask::Describe(description)) => self.journal.describe(&description),
                Ok(Ask::Done(key)) => {
                    self.journal.forget(key);
                    self.journal.evictions_told(key, u64::MAX, Instant::now());
                }
                Ok(Ask::Close(reply)) => return Some(reply),
                #[cfg(test)]
                Ok(Ask::Fail) => panic!("as the test wants it"),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
            self.journal.handle_timeout(Instant::now());
            self.tell_events();
            self.meter.publish_if_due(&self.journal, Instant::now());
        }
    }

    fn close(mut self, reply: &SyncSender<Closed>) {
        let evicted_packets = self.meter.figures.evicted_packets;
        if evicted_packets > 0 {
            let shown = self.directory.display();
            info!("spool {shown}: {evicted_packets} packets were evicted in all");
        }
        let packets = self.journal.unacknowledged_packets();
        let closed = self.journal.close();
        if let Err(problem) = &closed {
            error!("spool {}: {}", self.directory.display(), crate::text(problem));
        }
        let _ = reply.send(Closed { packets, is_durable: closed.is_ok() });
    }

    fn serve(&mut self, request: SpoolRequest) {
        let now = Instant::now();
        match request {
            SpoolRequest::Append(block) => {
                let block = block.plain();
                let is_appended = !self.has_failed
                    && match self.journal.append(&block, now) {
                        Ok(_) => {
                            self.meter.handle_appended(&block);
                            true
                        }
                        Err(error) => {
                            self.has_failed = true;
                            self.meter.handle_failed();
                            let text = crate::text(&error);
                            limited!(
                                warn,
                                FEW,
                                "spool {}: {text}; memory holds what it can",
                                self.directory.display()
                            );
                            false
                        }
                    };
                // What made room for the block was thrown away before it came.
                self.tell_events();
                self.reply(SpoolReply::Appended(is_appended));
            }
            SpoolRequest::Resume => self.has_failed = false,
            SpoolRequest::Acknowledge(count) => {
                let mut through = None;
                while self.handed_before < count
                    && let Some((next, packets)) = self.handed.pop_front()
                {
                    self.handed_before += 1;
                    self.meter.handle_settled(packets);
                    through = Some(next);
                }
                if let Some(through) = through {
                    self.journal.acknowledge(through, now);
                }
            }
            SpoolRequest::Read => {
                let loaded = self.read();
                self.tell_events();
                self.reply(SpoolReply::Loaded(loaded));
            }
        }
    }

    fn read(&mut self) -> Loaded {
        match self.journal.read_next(&self.pool) {
            Ok(Some(entry)) => {
                self.has_failed_to_read = false;
                if !entry.is_copy {
                    self.handed.push_back((entry.next, entry.block.header().packet_count));
                }
                Loaded::Block { block: entry.block, is_copy: entry.is_copy }
            }
            Ok(None) => {
                self.meter.handle_read_out(&self.handed);
                Loaded::End
            }
            Err(JournalError::NoBuffer { .. }) => Loaded::Failed,
            Err(error) => {
                if !std::mem::replace(&mut self.has_failed_to_read, true) {
                    limited!(warn, FEW, "spool {}: {}", self.directory.display(), crate::text(&error));
                }
                Loaded::Failed
            }
        }
    }

    /// Passes on what the journal has to say.
    fn tell_events(&mut self) {
        let shown = self.directory.display();
        let mut gone = Vec::new();
        while let Some(event) = self.journal.poll_event() {
            match event {
                JournalEvent::Evicted { segment, unread, .. } => {
                    let packets: u64 = unread.iter().map(|one| one.packets).sum();
                    if packets > 0 {
                        limited!(
                            warn,
                            1,
                            "spool {shown}: full; segment {segment:010} made room: {packets} packets are lost"
                        );
                    }
                    self.meter.handle_evicted(&unread);
                    gone.extend(unread.iter().map(evicted));
                }
                JournalEvent::Damaged { segment, from, to, reason, .. } => {
                    self.meter.figures.damages += 1;
                    limited!(warn, FEW, "spool {shown}: segment {segment:010}, bytes {from}..{to}: {reason}");
                }
                JournalEvent::SyncFailed { from, to, reason } => {
                    self.meter.figures.write_failures += 1;
                    limited!(warn, FEW, "spool {shown}: sync failed from {from} to {to}: {reason}");
                }
                JournalEvent::Trouble { text } => {
                    // What is tried again each second fails the same way each time.
                    let is_new =
                        |(said, at): &(String, Instant)| *said != text || at.elapsed() >= REPEAT_TIME;
                    if self.trouble.as_ref().is_none_or(is_new) {
                        limited!(warn, FEW, "spool {shown}: {text}");
                        self.trouble = Some((text, Instant::now()));
                    }
                }
            }
        }
        if !gone.is_empty() {
            self.reply(SpoolReply::Evicted(gone));
        }
    }

    fn reply(&self, reply: SpoolReply) {
        self.handover.send(Handed::Spool(reply));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block() -> PackedBlock {
        let pool = Pool::new(1 << 20);
        let mut packer =
            wire::pack::Packer::new(StreamKey::default(), pool, 64 << 10, wire::pack::Compression::None);
        packer.push(0, 1, 10, [&[0; 10][..]], &[]).expect("room");
        packer.seal().expect("a packet")
    }

    /// Whatever was asked before and after the failure is answered, so that nothing waits for it.
    #[test]
    fn a_spool_thread_that_fails_answers_all_the_same() {
        let directory = tempfile::tempdir().expect("a directory");
        let config = wire::journal::Config {
            directory: directory.path().to_owned(),
            cap_bytes: 64 << 20,
            segment_bytes: None,
        };
        let (journal, _) = Journal::open(&config, wire::journal::RealFs, Instant::now()).expect("opens");
        let (_poll, handover, handed) = crate::uplink::Sender::channel().expect("a poll");
        let thread = SpoolThread::start(directory.path(), journal, 64 << 20, Pool::new(1 << 20), handover)
            .expect("starts");
        let ask = |request| thread.ask(request);
        ask(SpoolRequest::Append(block().into()));
        thread.fail();
        ask(SpoolRequest::Append(block().into()));
        ask(SpoolRequest::Read);
        let replies: Vec<_> = (0..3).map(|_| handed.recv_timeout(Duration::from_secs(10))).collect();
        assert!(
            matches!(
                replies[..],
                [
                    Ok(Handed::Spool(SpoolReply::Appended(true))),
                    Ok(Handed::Spool(SpoolReply::Appended(false))),
                    Ok(Handed::Spool(SpoolReply::Loaded(Loaded::End)))
                ]
            ),
            "{replies:?}"
        );
        assert!(thread.figures().has_failed);
        assert!(!thread.close().is_durable);
    }
}
