//! Viewers that may come back, whichever worker had them: as long as there is one, what comes is
//! kept for it in the recent log of every worker; else what is settled is let go at once.
//!
//! A run of a viewer is awaited from the loss of its last connection until it has said that it has all
//! that it missed. One that took its leave is not. For ever awaited are those nobody here knows of:
//! viewers of another relay whose sniffers came here, and such as do not name their run.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::block::Epoch;

/// Runs that are known, at most: were there more, they are awaited for ever.
const RUNS_MAX: usize = 65_536;
/// A viewer that does not name its run.
const NAMELESS: Epoch = Epoch(0);

/// See the module's head. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Awaited {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Whether anybody is. It changes before other workers are told that anything is settled.
    is_any: AtomicBool,
    /// Counts what happens in all workers, in order.
    moment: AtomicU64,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Runs that are connected, or awaited.
    runs: HashMap<Epoch, Run>,
    awaited: usize,
    others: bool,
}

/// One run of a viewer.
#[derive(Debug, Default)]
struct Run {
    /// The moment whose streams it is sure to know: of its last arrival that it has answered.
    since: u64,
    connections: u32,
    /// Connections that miss something which is kept.
    missing: u32,
    is_lost: bool,
    has_taken_leave: bool,
}

impl Run {
    fn is_awaited(&self) -> bool {
        self.is_lost || self.missing > 0
    }
}

impl Awaited {
    /// Whether anybody is awaited.
    pub fn is_any(&self) -> bool {
        self.shared.is_any.load(Ordering::Acquire)
    }

    /// The next moment.
    pub(super) fn moment(&self) -> u64 {
        self.shared.moment.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The moment whose streams a run is sure to know; 0 if nothing is known of it here.
    pub(super) fn since(&self, run: Epoch) -> u64 {
        self.lock().runs.get(&run).map_or(0, |run| run.since)
    }

    /// A viewer has subscribed, and [`Awaited::miss`] was told if it misses something; `is_new`: it knows no
    /// stream yet. Returns the moment.
    pub(super) fn arrive(&self, run: Epoch, is_new: bool) -> u64 {
        let moment = self.moment();
        self.change(run, |run| {
            if is_new || run.since == 0 {
                run.since = moment;
            }
            run.connections += 1;
            run.is_lost = false;
        });
        moment
    }

    /// A run knows the streams of that moment.
    pub(super) fn knows(&self, run: Epoch, moment: u64) {
        self.change(run, |run| run.since = run.since.max(moment));
    }

    /// A connection of a viewer misses something.
    pub(super) fn miss(&self, run: Epoch) {
        self.change(run, |run| run.missing += 1);
    }

    /// Such a connection has all that it missed.
    pub(super) fn catch_up(&self, run: Epoch) {
        self.change(run, |run| run.missing = run.missing.saturating_sub(1));
    }

    /// A connection of a viewer is gone, `for_good` if it took its leave.
    pub(super) fn leave(&self, run: Epoch, for_good: bool) {
        if run == NAMELESS && !for_good {
            self.await_others();
        }
        self.change(run, |run| {
            run.connections = run.connections.saturating_sub(1);
            run.has_taken_leave |= for_good;
            run.is_lost = run.connections == 0 && !run.has_taken_leave;
        });
    }

    /// Viewers may come that nobody here knows of.
    pub(super) fn await_others(&self) {
        self.lock().others = true;
        self.shared.is_any.store(true, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.shared.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, epoch: Epoch, change: impl FnOnce(&mut Run)) {
        let mut known = self.lock();
        if known.runs.len() >= RUNS_MAX && !known.runs.contains_key(&epoch) {
            known.others = true;
        } else {
            let run = known.runs.entry(epoch).or_default();
            let was_awaited = run.is_awaited();
            change(run);
            let (is_awaited, is_over) = (run.is_awaited(), run.connections == 0 && !run.is_awaited());
            known.awaited = known.awaited + usize::from(is_awaited) - usize::from(was_awaited);
            if is_over {
                known.runs.remove(&epoch);
            }
        }
        self.shared.is_any.store(known.others || known.awaited > 0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: Epoch = Epoch(1);

    #[test]
    fn who_is_lost_is_awaited_until_it_has_all() {
        let awaited = Awaited::default();
        awaited.arrive(RUN, true);
        assert!(!awaited.is_any());
        awaited.leave(RUN, false);
        assert!(awaited.is_any());
        awaited.miss(RUN);
        awaited.arrive(RUN, true);
        assert!(awaited.is_any(), "it is back, and has not had what it missed");
        awaited.catch_up(RUN);
        assert!(!awaited.is_any());
        awaited.leave(RUN, true);
        assert!(!awaited.is_any(), "it took its leave");
    }

    #[test]
    fn an_older_connection_that_is_found_dead_later_changes_nothing() {
        let awaited = Awaited::default();
        awaited.arrive(RUN, true);
        awaited.arrive(RUN, true);
        awaited.leave(RUN, false);
        assert!(!awaited.is_any(), "the newer one is there");
        awaited.miss(RUN);
        awaited.catch_up(RUN);
        awaited.leave(RUN, false);
        assert!(awaited.is_any());
        awaited.arrive(RUN, true);
        awaited.arrive(RUN, true);
        awaited.leave(RUN, true);
        awaited.leave(RUN, false);
        assert!(!awaited.is_any(), "it had taken its leave");
    }

    #[test]
    fn who_is_not_known_is_awaited_for_ever() {
        let nameless = Awaited::default();
        nameless.arrive(NAMELESS, true);
        nameless.leave(NAMELESS, true);
        assert!(!nameless.is_any());
        nameless.arrive(NAMELESS, true);
        nameless.leave(NAMELESS, false);
        nameless.arrive(NAMELESS, true);
        assert!(nameless.is_any());
        let many = Awaited::default();
        for run in 1..=RUNS_MAX as u64 {
            many.arrive(Epoch(run), true);
        }
        assert!(!many.is_any());
        many.arrive(Epoch(RUNS_MAX as u64 + 1), true);
        assert!(many.is_any());
    }
}
