//! What others want to know of the sending thread: a snapshot.

use super::*;
use crate::snapshot::{LineSnapshot, LineState, Snapshot, ThreadSnapshot};

/// Where the line to the relay is, for whoever looks.
#[derive(Debug)]
pub(super) struct Line {
    state: LineState,
    since: Instant,
    why_away: Option<String>,
    connects: u64,
    failed_connects: u64,
}

impl Line {
    pub(super) fn new(now: Instant) -> Self {
        Self { state: LineState::Connecting, since: now, why_away: None, connects: 0, failed_connects: 0 }
    }

    /// Hellos were exchanged.
    pub(super) fn handle_connected(&mut self, now: Instant) {
        self.connects += 1;
        self.why_away = None;
        self.enter(now, LineState::Connected);
    }

    /// The line is lost; or, if it was not `connected`, an attempt has failed.
    pub(super) fn handle_lost(&mut self, now: Instant, connected: bool, why: &str) {
        self.failed_connects += u64::from(!connected);
        self.why_away = Some(why.to_owned());
        self.enter(now, LineState::Away);
    }

    fn enter(&mut self, now: Instant, state: LineState) {
        if std::mem::replace(&mut self.state, state) != state {
            self.since = now;
        }
    }
}

impl Sender {
    /// Where everything stands. Takes no lock that capture ever waits for, and makes one system call. Looks at each block in
    /// memory: for once or a few times a second.
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        let fleet = match &self.packing {
            Packing::Live(fleet) => Some(fleet),
            Packing::File(_) => None,
        };
        let mut lost = self.tally.lost();
        for (stage, loss) in &self.uplink.lost_in_all().0 {
            lost.add(*stage, loss.packets, loss.bytes);
        }
        Snapshot {
            running: now.saturating_duration_since(self.started),
            is_file: fleet.is_none(),
            is_stopping: self.stop_at.is_some(),
            interfaces: fleet.map_or(Vec::new(), |fleet| fleet.interfaces()),
            captured: self.tally.by_thread(),
            threads: fleet.map_or(Vec::new(), |fleet| self.threads(fleet, now)),
            packed: self.packed,
            pool_used_bytes: self.pool.used_bytes() as u64,
            pool_bound_bytes: self.pool.budget_bytes() as u64,
            line: LineSnapshot {
                state: self.line.state,
                since: now.saturating_duration_since(self.line.since),
                relay: self.url.to_string(),
                why_away: self.line.why_away.clone(),
                connects: self.line.connects,
                failed_connects: self.line.failed_connects,
                round_trip: self.connection.as_ref().and_then(Connection::round_trip),
            },
            totals: self.uplink.totals(),
            held: self.uplink.held(),
            lost,
            spool: self.spool.as_ref().map(|spool| spool.thread.figures()),
            clock_offset: self.uplink.clock_offset(),
        }
    }

    fn threads(&self, fleet: &Fleet, now: Instant) -> Vec<ThreadSnapshot> {
        let of = |(name, is_running): (&str, bool)| {
            let (silent, is_stuck) = self.watchdog.thread(now, name).unwrap_or_default();
            ThreadSnapshot { name: name.to_owned(), is_running, silent, is_stuck }
        };
        fleet.threads().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_away_since_it_was_lost_however_often_it_is_tried() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut line = Line::new(start);
        assert_eq!((line.state, line.since), (LineState::Connecting, start));
        line.handle_lost(at(1), false, "connection refused");
        line.handle_lost(at(2), false, "no route to host");
        assert_eq!((line.state, line.since), (LineState::Away, at(1)));
        assert_eq!(line.why_away.as_deref(), Some("no route to host"));
        line.handle_connected(at(5));
        assert_eq!((line.state, line.since, line.why_away.as_deref()), (LineState::Connected, at(5), None));
        line.handle_lost(at(8), true, "nothing heard for 20 s");
        assert_eq!((line.state, line.since), (LineState::Away, at(8)));
        assert_eq!((line.connects, line.failed_connects), (1, 2));
    }
}
