//! What waits between the network thread and the writer, bounded in bytes.
//!
//! INVARIANT: the network thread reads nothing while the queue is full, so what waits exceeds the
//! bound by what one message holds at most. TCP then holds the relay back, which skips blocks for
//! this viewer alone, and says so.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mio::Waker;
use wire::block::{PackedBlock, StreamKey};
use wire::description::Description;
use wire::ledger::{Losses, Outage, Report};

/// What an item costs beside its bytes: its own memory, and what the allocator adds.
const ITEM_BYTES: usize = 512;

/// What the writer is told, in the order in which it came.
#[derive(Debug)]
pub enum Item {
    /// A stream was joined: its sniffer's name.
    Joined(StreamKey, String),
    /// Its table of interfaces.
    Description(StreamKey, Description),
    /// Packets.
    Packets(PackedBlock),
    /// Its totals, and whether all of them are this viewer's: it was joined at its beginning.
    Report(StreamKey, Report, bool),
    /// Nothing older is to come.
    Mark(StreamKey, u64),
    /// Packets are missing before what comes next.
    Missing(StreamKey, Losses),
    /// Nothing could be captured for a while, by the sniffer of that name.
    Outage(StreamKey, String, Outage),
    /// Nothing more is expected of it.
    Ended(StreamKey),
    /// It does not come back either.
    Forget(StreamKey),
}

impl Item {
    fn cost_bytes(&self) -> usize {
        ITEM_BYTES
            + match self {
                Item::Packets(block) => block.bytes().len(),
                Item::Description(_, description) => description.interfaces.len() * ITEM_BYTES,
                Item::Report(_, report, _) => report.interfaces.len() * ITEM_BYTES,
                _ => 0,
            }
    }
}

/// What the writer gets when it asks.
#[derive(Debug)]
pub enum Next {
    /// An item.
    Item(Item),
    /// Nothing came in the time given.
    Idle,
    /// Nothing comes any more.
    Closed,
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    bytes: usize,
    /// The network thread waits for room.
    is_starved: bool,
    closed: bool,
    /// After this time what still waits is left.
    drain_until: Option<Instant>,
    /// The writer has ended.
    writer_ended: bool,
}

/// The queue. Shared by both threads.
#[derive(Debug)]
pub struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    waker: Arc<Waker>,
    limit_bytes: usize,
}

impl Queue {
    /// A queue of at most `limit_bytes`; `waker` wakes the network thread when there is room again
    /// and when the writer ends.
    pub fn new(limit_bytes: usize, waker: Arc<Waker>) -> Self {
        Self { state: Mutex::new(State::default()), filled: Condvar::new(), waker, limit_bytes }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under the lock panics half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the network thread must not read; it is woken when that is over.
    pub fn is_full(&self) -> bool {
        let mut state = self.lock();
        state.is_starved = state.bytes >= self.limit_bytes;
        state.is_starved
    }

    /// Whether at least half of it is free; the network thread is woken when that is so.
    pub fn has_room(&self) -> bool {
        let mut state = self.lock();
        state.is_starved = state.bytes > self.limit_bytes / 2;
        !state.is_starved
    }

    /// Bytes that wait for the writer.
    pub fn waiting_bytes(&self) -> u64 {
        self.lock().bytes as u64
    }

    /// Adds an item.
    pub fn push(&self, item: Item) {
        let mut state = self.lock();
        if state.closed || state.writer_ended {
            return;
        }
        state.bytes += item.cost_bytes();
        state.items.push_back(item);
        drop(state);
        self.filled.notify_one();
    }

    /// No more comes. The writer still takes what waits, until `drain_until` if given.
    pub fn close(&self, drain_until: Option<Instant>) {
        let mut state = self.lock();
        state.closed = true;
        state.drain_until = drain_until;
        drop(state);
        self.filled.notify_one();
    }

    /// The writer's side: the next item, waiting for it until `until`.
    pub fn pop(&self, until: Instant) -> Next {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            if state.closed && state.drain_until.is_some_and(|until| now >= until) {
                return Next::Closed;
            }
            if let Some(item) = state.items.pop_front() {
                state.bytes -= item.cost_bytes().min(state.bytes);
                let wake = state.is_starved && state.bytes <= self.limit_bytes / 2;
                state.is_starved &= !wake;
                drop(state);
                if wake {
                    let _ = self.waker.wake(); // a lost wake-up is made up for by the next tick
                }
                return Next::Item(item);
            }
            if state.closed {
                return Next::Closed;
            }
            let Some(left) = until.checked_duration_since(now).filter(|left| !left.is_zero()) else {
                return Next::Idle;
            };
            state = self.filled.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The writer's side: what still waits is to be left.
    pub fn is_expired(&self) -> bool {
        let state = self.lock();
        state.closed && state.drain_until.is_some_and(|until| Instant::now() >= until)
    }

    /// The writer's side: it has ended, and takes nothing any more.
    pub fn set_writer_ended(&self) {
        let mut state = self.lock();
        state.writer_ended = true;
        state.items.clear();
        state.bytes = 0;
        drop(state);
        let _ = self.waker.wake();
    }

    /// Whether the writer has ended.
    pub fn writer_ended(&self) -> bool {
        self.lock().writer_ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Poll, Token};
    use std::time::Duration;

    fn queue(limit_bytes: usize) -> (Queue, Poll) {
        let poll = Poll::new().expect("a poll");
        let waker = Waker::new(poll.registry(), Token(0)).expect("a waker");
        (Queue::new(limit_bytes, Arc::new(waker)), poll)
    }

    #[test]
    fn it_is_bounded_and_wakes_when_there_is_room() {
        let (queue, mut poll) = queue(4 * ITEM_BYTES);
        let key = StreamKey::default();
        for _ in 0..4 {
            assert!(!queue.is_full());
            queue.push(Item::Ended(key));
        }
        assert!(queue.is_full());
        let now = Instant::now();
        for _ in 0..2 {
            assert!(matches!(queue.pop(now), Next::Item(Item::Ended(_))));
        }
        let mut events = mio::Events::with_capacity(4);
        poll.poll(&mut events, Some(Duration::from_secs(5))).expect("polls");
        assert!(!events.is_empty());
        assert!(!queue.is_full() && queue.has_room());
        queue.push(Item::Ended(key));
        assert!(!queue.is_full() && !queue.has_room());
    }

    #[test]
    fn what_waits_at_the_close_still_comes_but_not_after_the_deadline() {
        let (queue, _poll) = queue(1 << 20);
        let now = Instant::now();
        assert!(matches!(queue.pop(now), Next::Idle));
        queue.push(Item::Mark(StreamKey::default(), 1));
        queue.push(Item::Mark(StreamKey::default(), 2));
        queue.close(Some(now + Duration::from_secs(60)));
        assert!(matches!(queue.pop(now), Next::Item(Item::Mark(_, 1))));
        queue.close(Some(now));
        assert!(matches!(queue.pop(now), Next::Closed));
    }
}
