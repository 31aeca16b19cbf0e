//! What the viewer knows of its streams, from one connection to the next, and how what comes is handed to
//! the writer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::debug;
use wire::block::StreamKey;
use wire::downlink::{Downlink, Event};
use wire::ledger::Report;
use wire::limited;
use wire::log::{FEW, SOME};
use wire::message::StreamStatus;
use wire::text::printable;

use crate::ledger::Ledger;
use crate::output::say;
use crate::queue::{Item, Queue};

/// A restarted relay has this long to bring a stream back before it counts as ended.
const ABSENT_TIME: Duration = Duration::from_secs(30);

/// What goes on from one connection to the next.
pub(super) struct Session {
    pub(super) relay_text: String,
    pub(super) downlink: Downlink,
    pub(super) ledger: Ledger,
    pub(super) queue: Arc<Queue>,
    /// Subscribed once: from here on a cut is no end.
    pub(super) is_subscribed: bool,
    pub(super) cut_since: Option<Instant>,
    /// What was last said of a cut.
    pub(super) cut_text: String,
    /// The writer's queue has been full, so nothing was read, since then.
    pub(super) full_since: Option<Instant>,
    /// Streams that were not joined again by then count as ended.
    pub(super) absent_until: Option<Instant>,
    pub(super) live: BTreeSet<StreamKey>,
    /// Streams were joined, and all have ended, since then.
    pub(super) none_live_since: Option<Instant>,
    pub(super) list: Option<Vec<StreamStatus>>,
}

impl Session {
    /// Hands what came to the writer.
    pub(super) fn pass_on(&mut self) {
        while let Some(event) = self.downlink.poll_event() {
            let item = match event {
                Event::Subscribed(streams) => {
                    self.handle_subscribed(streams);
                    continue;
                }
                Event::List(list, omitted) => {
                    self.say_what_may_be_seen();
                    if omitted > 0 {
                        say(&format!("{}: {omitted} more streams are not listed", self.relay_text));
                    }
                    self.list = Some(list);
                    continue;
                }
                Event::Joined(key) => {
                    self.live.insert(key);
                    self.none_live_since = None;
                    let Some(stream) = self.downlink.streams().get(&key) else { continue };
                    self.ledger.handle_joined(key, stream);
                    Item::Joined(key, stream.name.clone())
                }
                Event::Description(key, description) => Item::Description(key, description),
                Event::Packets(block) => {
                    self.ledger.handle_packets(block.header());
                    Item::Packets(block)
                }
                Event::Report(key, report) => {
                    self.handle_report(key, report);
                    continue;
                }
                Event::Mark(key, through_ns) => Item::Mark(key, through_ns),
                Event::Missing(key, losses) => {
                    limited!(debug, SOME, "stream {key}: missing {}", losses.text());
                    self.ledger.handle_missing(key, &losses);
                    Item::Missing(key, losses)
                }
                Event::Ended(key, reason) => {
                    if let Some(reason) = &reason {
                        limited!(info, SOME, "stream {key}: ended: {}", printable(reason));
                    }
                    self.live.remove(&key);
                    if self.live.is_empty() {
                        self.none_live_since = Some(Instant::now());
                    }
                    self.queue.push(Item::Ended(key));
                    match self.ledger.handle_ended(key, reason.is_none()) {
                        Some(key) => Item::Forget(key),
                        None => continue,
                    }
                }
            };
            self.queue.push(item);
        }
    }

    fn handle_report(&mut self, key: StreamKey, report: Report) {
        let Some(stream) = self.downlink.streams().get(&key) else { return };
        let news = self.ledger.handle_report(key, &report, stream.first_sequence);
        if news.lost.packets() > 0 {
            self.queue.push(Item::Missing(key, news.lost));
        }
        for outage in news.outages {
            self.queue.push(Item::Outage(key, stream.name.clone(), outage));
        }
        self.queue.push(Item::Report(key, report, news.is_whole));
    }

    /// Who finds less than expected should know that there may be more.
    fn say_what_may_be_seen(&self) {
        let sees = self.downlink.sees();
        if !sees.is_empty() {
            let globs = printable(&sees.join(" "));
            say(&format!(
                "{}: the token lets you see sniffers named {globs}, and no others",
                self.relay_text
            ));
        }
    }

    fn handle_subscribed(&mut self, streams: u32) {
        let now = Instant::now();
        debug!("{}: subscribed, {streams} streams", self.relay_text);
        if !self.is_subscribed && streams == 0 {
            self.say_what_may_be_seen();
        }
        self.is_subscribed = true;
        if let Some(since) = self.cut_since.take() {
            let away = now.duration_since(since).as_secs_f64();
            limited!(by say, FEW, "{}: connected again after {away:.1} s", self.relay_text);
            self.absent_until = Some(now + ABSENT_TIME);
        }
    }

    /// Gives up streams that did not come back in time.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.absent_until.is_some_and(|until| now >= until) {
            self.absent_until = None;
            self.downlink.end_absent("not seen again since the relay was restarted");
            self.pass_on();
        }
    }
}
