//! How workers hand things to each other: an inbox each, and a waker behind it.

use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mio::{Poll, Token, Waker};
use wire::block::StreamKey;
use wire::message::{Control, Envelope};

use crate::figures::Figures;
use crate::peer::Newcomer;

/// Token of the waker in each worker's poll.
pub const WAKE: Token = Token(usize::MAX);
/// A worker that has not told of a turn for this long hangs. They tell every half second.
const HANG_TIME: Duration = Duration::from_secs(2);

/// What one worker tells another.
#[derive(Debug)]
pub enum Note {
    /// A connection that has said hello is yours.
    Adopt(Box<Newcomer>),
    /// A block of a stream of mine.
    Block(Envelope, Bytes),
    /// About a stream of mine, or about who takes yours.
    Control(Control),
    /// Memory is short: viewers behind you that are far behind must make room.
    Shed,
    /// Say how you are, and who you are.
    Look(Sender<(usize, Box<Figures>)>),
    /// The blocks of a stream below this sequence are settled: of a stream of yours with my viewers, of one of
    /// mine with all.
    Settled(StreamKey, u64),
}

/// What a worker is made with: its poll, and the end of its inbox.
#[derive(Debug)]
pub struct Inbox {
    /// The worker's poll; the waker is registered with it.
    pub poll: Poll,
    /// Notes, with the worker that sent them.
    pub notes: Receiver<(usize, Note)>,
}

/// The other ends: how to reach each worker.
#[derive(Debug)]
pub struct Inboxes {
    ends: Vec<End>,
    started: Instant,
}

#[derive(Debug)]
struct End {
    sender: Sender<(usize, Note)>,
    waker: Waker,
    /// Bytes of blocks that wait in the inbox.
    queued_bytes: AtomicUsize,
    /// When the worker last told of a turn, in ms since all was made.
    turned_ms: AtomicU64,
}

impl Inboxes {
    /// Inboxes for `count` workers.
    pub fn new(count: usize) -> io::Result<(Self, Vec<Inbox>)> {
        let mut ends = Vec::new();
        let mut inboxes = Vec::new();
        for _ in 0..count {
            let (sender, notes) = channel();
            let poll = Poll::new()?;
            let waker = Waker::new(poll.registry(), WAKE)?;
            let (queued_bytes, turned_ms) = (AtomicUsize::new(0), AtomicU64::new(0));
            ends.push(End { sender, waker, queued_bytes, turned_ms });
            inboxes.push(Inbox { poll, notes });
        }
        Ok((Self { ends, started: Instant::now() }, inboxes))
    }

    /// Number of workers.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Numbers of all workers.
    pub fn all(&self) -> std::ops::Range<usize> {
        0..self.len()
    }

    /// A worker tells that it has turned.
    pub fn note_turn(&self, worker: usize, now: Instant) {
        if let Some(end) = self.ends.get(worker) {
            end.turned_ms.store(self.ms(now), Ordering::Release);
        }
    }

    /// Whether all workers have turned lately.
    pub fn all_turn(&self, now: Instant) -> bool {
        let turns = |end: &End| {
            let since_ms = self.ms(now).saturating_sub(end.turned_ms.load(Ordering::Acquire));
            since_ms < HANG_TIME.as_millis() as u64
        };
        self.ends.iter().all(turns)
    }

    fn ms(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_millis() as u64
    }

    /// Leaves a note. The worker is woken by [`Inboxes::wake`], once for many notes.
    pub fn send(&self, from: usize, to: usize, note: Note) {
        let Some(end) = self.ends.get(to) else { return };
        if let Note::Block(_, bytes) = &note {
            end.queued_bytes.fetch_add(bytes.len(), Ordering::AcqRel);
        }
        // A worker that has ended needs no notes.
        let _ = end.sender.send((from, note));
    }

    /// Bytes of blocks that wait for a worker.
    pub fn queued_bytes(&self, to: usize) -> usize {
        self.ends.get(to).map_or(0, |end| end.queued_bytes.load(Ordering::Acquire))
    }

    /// A block was taken out of a worker's inbox.
    pub fn taken(&self, by: usize, bytes: usize) {
        if let Some(end) = self.ends.get(by) {
            end.queued_bytes.fetch_sub(bytes, Ordering::AcqRel);
        }
    }

    /// Wakes a worker.
    pub fn wake(&self, to: usize) {
        if let Some(end) = self.ends.get(to) {
            // Fails only when the poll is gone, with its worker.
            let _ = end.waker.wake();
        }
    }

    /// Wakes all workers.
    pub fn wake_all(&self) {
        (0..self.len()).for_each(|to| self.wake(to));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_worker_that_hangs_is_enough() {
        let (inboxes, _receivers) = Inboxes::new(3).expect("polls");
        let start = Instant::now();
        assert!(inboxes.all_turn(start));
        let late = start + HANG_TIME * 2;
        assert!(!inboxes.all_turn(late));
        for worker in [0, 2] {
            inboxes.note_turn(worker, late);
        }
        assert!(!inboxes.all_turn(late), "one is missing");
        inboxes.note_turn(1, late - HANG_TIME / 2);
        assert!(inboxes.all_turn(late));
        assert!(!inboxes.all_turn(late + HANG_TIME / 2));
    }
}
