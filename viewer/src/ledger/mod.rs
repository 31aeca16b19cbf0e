//! The viewer's ledger: for each stream, what was offered since this viewer joined it, and what came
//! of that. No I/O, no clock.
//!
//! What came or is missing is counted by the blocks' sequences and counters, and is exact. What was
//! offered is the kernel's count as the reports of the stream carry it: from its beginning if it was
//! joined there, else from the first report on, plus what came before that report. What was captured
//! before this viewer joined is in neither.
//!
//! INVARIANT: memory is bounded. A stream that has ended is folded into the line of its interfaces
//! when the writer is done with it, one that was given up when too many were.

mod account;
mod line;
mod outages;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use wire::block::{Header, StreamKey};
use wire::downlink::StreamState;
use wire::ledger::{Losses, Outage, Report};

use self::account::Account;
pub use self::line::Line;
use self::line::add_losses;
pub use self::outages::Lasting;
use self::outages::Outages;
use crate::tally::{StreamTally, Tally};

/// Most streams that were given up and may still come back.
const GIVEN_UP_MAX: usize = 1024;
/// Most lines of streams that have ended; what is beyond shares one.
const LINES_MAX: usize = 4096;

/// What a report brought that is to be told.
#[derive(Debug, Default)]
pub struct News {
    /// The stream was joined at its beginning, so all its totals are this viewer's.
    pub is_whole: bool,
    /// Packets lost before they were packed.
    pub lost: Losses,
    /// Times in which nothing could be captured, which are over.
    pub outages: Vec<Outage>,
}

/// The ledger. See the module's head.
#[derive(Debug, Default)]
pub struct Ledger {
    open: BTreeMap<StreamKey, Account>,
    /// Streams that were given up, and may come back, the oldest first.
    given_up: VecDeque<StreamKey>,
    ended: BTreeMap<String, Line>,
    outages: Outages,
}

impl Ledger {
    /// A stream was joined. One that was given up goes on.
    pub fn handle_joined(&mut self, key: StreamKey, state: &StreamState) {
        self.given_up.retain(|one| *one != key);
        let is_new = !self.open.contains_key(&key);
        let account = self.open.entry(key).or_default();
        (account.is_live, account.line.is_open) = (true, true);
        if is_new {
            account.name.clone_from(&state.name);
            account.is_resumed = state.received_packets > 0;
        }
    }

    /// Packets came.
    pub fn handle_packets(&mut self, header: &Header) {
        let line = &mut self.open.entry(header.key).or_default().line;
        line.received_packets += u64::from(header.packet_count);
        line.received_bytes += u64::from(header.byte_count);
    }

    /// Packets do not come.
    pub fn handle_missing(&mut self, key: StreamKey, losses: &Losses) {
        add_losses(&mut self.open.entry(key).or_default().line.missing, losses);
    }

    /// Packets that came were in a block that failed its checks.
    pub fn handle_corrupt(&mut self, header: &Header) {
        self.open.entry(header.key).or_default().handle_corrupt(header);
    }

    /// A stream, whose first block was `first_sequence`, says where it stands.
    pub fn handle_report(&mut self, key: StreamKey, report: &Report, first_sequence: u64) -> News {
        let account = self.open.entry(key).or_default();
        let is_first = !account.is_reported();
        account.has_note |= report.note.is_some();
        let mut news = News::default();
        if !report.interfaces.is_empty() {
            news.lost = account.handle_report(report, first_sequence);
        }
        news.is_whole = first_sequence == 0 && !account.is_resumed;
        let name = account.name.clone();
        for outage in &report.outages {
            let is_news = self.outages.handle(key, &name, outage);
            // Else it was over before this viewer came.
            let is_ours = news.is_whole || !is_first;
            if is_news && is_ours {
                self.count_outage(key, &name, outage);
                news.outages.push(outage.clone());
            }
        }
        if self.outages.is_over() {
            news.outages.extend(self.take_lasting().into_iter().map(|lasting| lasting.outage));
        }
        news
    }

    /// A stream has ended: in order, or it was given up and may come back. Streams that do not come
    /// back, the writer is to forget.
    pub fn handle_ended(&mut self, key: StreamKey, in_order: bool) -> Option<StreamKey> {
        if let Some(account) = self.open.get_mut(&key) {
            (account.is_live, account.line.is_open) = (false, !in_order || account.has_note);
        }
        if in_order {
            return Some(key);
        }
        self.given_up.push_back(key);
        if self.given_up.len() > GIVEN_UP_MAX { self.given_up.pop_front() } else { None }
    }

    /// The writer is done with a stream, and has told of all its corrupt blocks.
    pub fn fold(&mut self, key: StreamKey, written: StreamTally, duplicates: u64) {
        let Some(account) = self.open.remove(&key) else { return };
        if account.is_live {
            // It came back while the writer was being told to forget it.
            self.open.insert(key, Account::resumed(account.name.clone()));
        }
        let mut label = label(&account.name, &written);
        if self.ended.len() >= LINES_MAX && !self.ended.contains_key(&label) {
            label = "others".to_owned();
        }
        let line = Line { written, duplicates, ..account.line() };
        self.ended.entry(label).or_default().add(&line);
    }

    /// The end: outages that still last.
    pub fn take_lasting(&mut self) -> Vec<Lasting> {
        let all = self.outages.take_lasting();
        for lasting in &all {
            self.count_outage(lasting.key, &lasting.name, &lasting.outage);
        }
        all
    }

    /// A line for each set of interfaces, by its name.
    pub fn lines(&self, streams: &BTreeMap<StreamKey, StreamState>, tally: &Tally) -> BTreeMap<String, Line> {
        let none = StreamTally::default();
        let mut lines = self.ended.clone();
        for (key, account) in &self.open {
            let written = tally.streams.get(key).unwrap_or(&none);
            let duplicates = streams.get(key).map_or(0, |state| state.duplicates);
            let line = Line { written: written.clone(), duplicates, ..account.line() };
            lines.entry(label(&account.name, written)).or_default().add(&line);
        }
        lines
    }

    /// Packets of all streams so far: those that came, were written, and were lost on the way.
    pub fn totals(&self, tally: &Tally) -> (u64, u64, u64) {
        let (mut received, mut written, mut lost) = (0u64, 0u64, 0u64);
        let mut add = |line: &Line| {
            received = received.saturating_add(line.received_packets);
            written = written.saturating_add(line.written.written.packets);
            lost = lost.saturating_add(line.accounted().saturating_sub(line.received_packets));
        };
        self.ended.values().for_each(&mut add);
        self.open.values().for_each(|account| add(&account.line()));
        for one in tally.streams.values() {
            written = written.saturating_add(one.written.packets);
        }
        (received, written, lost)
    }

    fn count_outage(&mut self, key: StreamKey, name: &str, outage: &Outage) {
        let line = match self.open.get_mut(&key) {
            Some(account) => &mut account.line,
            None => {
                let label = format!("{name}:{}", outage.interface);
                self.ended.entry(label).or_default()
            }
        };
        line.add_outage(outage);
    }
}

/// The interfaces of a stream as the output names them.
fn label(name: &str, written: &StreamTally) -> String {
    match written.interfaces.as_slice() {
        [] => format!("{name}:?"),
        names => names.join(" "),
    }
}
