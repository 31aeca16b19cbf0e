//! A simulated viewer: a downlink, a reader of some speed, and the books of what it saw.

use std::collections::BTreeMap;

use bytes::Bytes;
use wire::block::{Epoch, Kind, PackedBlock, StreamKey};
use wire::downlink::{Downlink, Event};
use wire::ledger::Stage;
use wire::message::{Control, Envelope, Selection};
use wire::pcapng::Epbs;

use crate::plan::Plan;
use crate::rng::Rng;
use crate::sniffer::{Truth, packet};

/// What a viewer saw of one stream, counted beside the downlink.
#[derive(Debug, Default)]
struct Seen {
    /// Packets before the join.
    joined_at: u64,
    begins: Option<u64>,
    /// First joined on the present connection.
    is_new: bool,
    /// Joined on the present connection.
    is_joined: bool,
    /// The relay was restarted since it was joined first.
    is_restarted: bool,
    /// A block that belongs to the viewer has come.
    is_started: bool,
    /// Packets up to the end of the last block, descriptions aside.
    through: u64,
    /// Number that the next packet has at least.
    next_number: u64,
    packets: u64,
    mark_ns: u64,
    ended: bool,
    gone: bool,
}

pub struct Viewer {
    pub index: usize,
    is_traced: bool,
    pub selection: Selection,
    pub downlink: Downlink,
    pub connection: Option<u64>,
    pub connects_at: u64,
    pub leaves_at: Option<u64>,
    /// Messages read in a tick.
    pub speed: u64,
    pub is_stalled: bool,
    pub has_left: bool,
    /// Its line was cut, or the relay restarted: blocks handed to TCP may be lost unexplained.
    pub was_cut: bool,
    /// It was cut while a relay ran on and settled without it, which then stopped itself.
    pub was_away: bool,
    instance: Option<Epoch>,
    /// The relay is another than that of the connection before.
    is_restarted: bool,
    subscribed_at: Option<u64>,
    /// The last time it subscribed: it has been there since.
    back_at: Option<u64>,
    /// Runs of sniffers of which it had a stream when it came back, and when it had the first.
    known: BTreeMap<Epoch, u64>,
    /// Data messages that came on this connection, and what the relay was told of that.
    pub arrived: u64,
    pub told: u64,
    seen: BTreeMap<StreamKey, Seen>,
}

fn globs(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

/// Globs as this simulation uses them: `*` or `?` at one end only.
fn matches(globs: &[String], name: &str) -> bool {
    let one = |glob: &String| match (glob.strip_prefix('*'), glob.trim_end_matches(['*', '?'])) {
        (Some(tail), _) => name.ends_with(tail),
        (None, head) => name.starts_with(head),
    };
    globs.is_empty() || globs.iter().any(one)
}

impl Viewer {
    pub fn new(index: usize, plan: &Plan, rng: &mut Rng) -> Self {
        let sniffers = rng.pick(&[&[][..], &[], &["web-*"], &["db-?"], &["*-0"], &["*-1", "web-*"]]);
        let interfaces = rng.pick(&[&[][..], &[], &["eth*"], &["wlan?"], &["eth1"]]);
        let selection = Selection {
            sniffers: globs(sniffers),
            interfaces: globs(interfaces),
            marks: rng.one_in(2),
            backlog: rng.one_in(2),
        };
        let connects_at = if rng.one_in(2) { 0 } else { rng.range(0, plan.ticks) };
        let leaves = plan.leaving && rng.one_in(2);
        Self {
            index,
            is_traced: std::env::var_os("RINGCAST_SIM_TRACE").is_some(),
            downlink: Downlink::new(Epoch(1 + index as u64), "sim".into(), Some(selection.clone())),
            selection,
            connection: None,
            connects_at,
            leaves_at: leaves.then(|| rng.range(connects_at, plan.ticks)),
            speed: rng.pick(&[1, 2, 5, 100]),
            is_stalled: plan.stalling && rng.one_in(2),
            has_left: false,
            was_cut: false,
            was_away: false,
            instance: None,
            is_restarted: false,
            subscribed_at: None,
            back_at: None,
            known: BTreeMap::new(),
            arrived: 0,
            told: 0,
            seen: BTreeMap::new(),
        }
    }

    pub fn handle_connected(&mut self, id: u64, now: u64) {
        self.connection = Some(id);
        (self.arrived, self.told) = (0, 0);
        self.downlink.handle_connected(now);
        for (key, seen) in &mut self.seen {
            (seen.is_new, seen.is_joined) = (false, false);
            self.known.entry(key.epoch).or_insert(now);
        }
    }

    /// Nothing comes any more.
    pub fn finish(&mut self) -> Result<(), String> {
        self.downlink.finish();
        self.handle_events()
    }

    pub fn handle_control(&mut self, control: Control, now: u64) -> Result<(), String> {
        match &control {
            Control::Join { status, next_sequence } => {
                let known = self.downlink.streams().get(&status.key);
                let is_missing = known.is_some_and(|one| one.missing.packets() > 0);
                let seen = self.seen.entry(status.key).or_default();
                seen.is_started |= is_missing;
                // A second join on a connection moves the beginning if nothing of the stream has come.
                let is_again = std::mem::replace(&mut seen.is_joined, true);
                let may_move = seen.is_new || (is_again && !seen.is_restarted);
                let moves = |begins| may_move && !seen.is_started && *next_sequence > begins;
                if seen.begins.is_none_or(moves) {
                    if seen.begins.is_none() {
                        (seen.is_new, seen.is_restarted) = (true, self.is_restarted);
                    }
                    seen.begins = Some(*next_sequence);
                    seen.joined_at = status.packets;
                    seen.through = status.packets;
                    seen.next_number = status.packets;
                }
            }
            Control::Welcome { instance, .. } => {
                self.is_restarted = self.instance.replace(*instance).is_some_and(|one| one != *instance);
                self.seen.values_mut().for_each(|seen| seen.is_restarted |= self.is_restarted);
            }
            Control::Subscribed { .. } => {
                self.subscribed_at = Some(self.subscribed_at.unwrap_or(now));
                self.back_at = Some(now);
            }
            _ => {}
        }
        if self.is_traced {
            println!("tick {now}: viewer {}: {control:?}", self.index);
        }
        self.downlink.handle_control(control, now).map_err(|error| self.fail(&error))?;
        self.handle_events()
    }

    pub fn handle_data(&mut self, envelope: Envelope, block: &Bytes) -> Result<(), String> {
        let header = *PackedBlock::new(block.clone()).map_err(|error| self.fail(&error))?.header();
        if header.kind != Kind::Description {
            let seen = self.seen.entry(header.key).or_default();
            seen.is_started = true;
            seen.through = seen.through.max(header.packets_before + u64::from(header.packet_count));
        }
        let message = [&envelope.emit()[..], block].concat();
        self.downlink.handle_data(message.into()).map_err(|error| self.fail(&error))?;
        self.handle_events()
    }

    fn fail(&self, what: &dyn std::fmt::Display) -> String {
        format!("viewer {}: {what}", self.index)
    }

    fn handle_events(&mut self) -> Result<(), String> {
        while let Some(event) = self.downlink.poll_event() {
            match event {
                Event::Packets(block) => self.handle_packets(&block)?,
                Event::Ended(key, reason) => {
                    let seen = self.seen.entry(key).or_default();
                    seen.ended |= reason.is_none();
                    seen.gone |= reason.is_some();
                }
                Event::Joined(key) => self.seen.entry(key).or_default().gone = false,
                Event::Mark(key, through_ns) => {
                    self.seen.entry(key).or_default().mark_ns = through_ns;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn handle_packets(&mut self, block: &PackedBlock) -> Result<(), String> {
        let header = *block.header();
        if self.is_traced {
            let (count, before) = (header.packet_count, header.packets_before);
            let (index, key, sequence) = (self.index, header.key, header.sequence);
            println!("viewer {index}: block {sequence} of {key}: {count} packets behind {before}");
        }
        let key = header.key;
        let description = self.downlink.streams().get(&key).and_then(|stream| stream.description.as_ref());
        let Some(interfaces) = description.map(|one| one.interfaces.len() as u32) else {
            return Err(self.fail(&format!("packets of {key} before its description")));
        };
        let mut body = Vec::new();
        block.unpack_into(&mut body).map_err(|error| self.fail(&error))?;
        let mut number = header.packets_before;
        let seen = self.seen.entry(key).or_default();
        let mut wrong: Option<String> = None;
        for epb in Epbs::new(&body, interfaces) {
            match epb {
                Err(error) => wrong = wrong.or(Some(format!("{key}, packet {number}: {error}"))),
                Ok(epb) if epb.data != packet(key, number) => {
                    wrong = Some(format!("{key}: packet {number} is another"));
                }
                Ok(epb) if epb.time_ns < seen.mark_ns => {
                    wrong = Some(format!("{key}: packet {number} is older than the mark before it"));
                }
                Ok(_) => {}
            }
            number += 1;
        }
        if header.packets_before < seen.next_number {
            wrong = Some(format!("{key}: packet {} after {}", header.packets_before, seen.next_number));
        }
        if wrong.is_none() && number != header.packets_before + u64::from(header.packet_count) {
            wrong = Some(format!("{key}: block {} lies about its packets", header.sequence));
        }
        if seen.ended || seen.gone {
            wrong = Some(format!("{key}: packet {number} after the end"));
        }
        seen.packets += u64::from(header.packet_count);
        seen.next_number = number;
        wrong.map_or(Ok(()), |wrong| Err(self.fail(&wrong)))
    }

    /// Whether nothing excuses this viewer from having seen everything it joined.
    pub fn must_be_complete(&self) -> bool {
        !self.has_left
    }

    /// Checks one stream at the end.
    pub fn check(
        &self,
        key: StreamKey,
        name: &str,
        truth: &Truth,
        plan: &Plan,
        sniffer_lost: u64,
    ) -> Result<(), String> {
        let wanted = matches(&self.selection.sniffers, name)
            && (self.selection.interfaces.is_empty()
                || truth.interfaces.iter().any(|interface| matches(&self.selection.interfaces, interface)));
        let (Some(seen), Some(stream)) = (self.seen.get(&key), self.downlink.streams().get(&key)) else {
            // One that was away when the stream ended, and had no stream of that run when it came
            // back, is a newcomer to it; so is everybody to what a relay had settled that is no more.
            let knew = !plan.restarts && self.known.get(&key.epoch).is_some_and(|at| *at < truth.ended_at);
            let since = if knew { self.subscribed_at } else { self.back_at };
            let was_there = since.is_some_and(|at| at < truth.ended_at);
            let is_owed = self.selection.backlog || !truth.is_backlog;
            if wanted && was_there && is_owed && truth.opened && self.must_be_complete() {
                return Err(self.fail(&format!("never joined {key}")));
            }
            return Ok(());
        };
        if !wanted {
            return Err(self.fail(&format!("joined {key}, which it did not ask for")));
        }
        let (received, missing) = (stream.received_packets, stream.missing.packets());
        let text = format!(
            "{key} of {} packets, joined at {}, through {}: received {received}, missing {}, counted here {}",
            truth.packets,
            seen.joined_at,
            seen.through,
            stream.missing.text(),
            seen.packets
        );
        let accounted = received + missing;
        let (low, high) = (seen.through - seen.joined_at, truth.packets - seen.joined_at);
        if received != seen.packets || accounted < low || accounted > high {
            return Err(self.fail(&format!("does not add up: {text}")));
        }
        let is_over = seen.ended || (seen.gone && plan.small_spool);
        // Where a stream ends whose last block was thrown away is settled once the relay knows it, and
        // so is what a viewer misses while it is away, which is in the recent log alone, and what is
        // skipped for it. A relay that stops before its viewers have it, or are told, takes it along,
        // and of a stream that is settled to its end nobody says anything again.
        let may_be_skipped = plan.shedding || plan.small_viewer_queue || plan.small_worker_queue;
        let may_be_settled = truth.is_end_evicted || self.was_away || may_be_skipped;
        let may_be_unsaid = may_be_settled && plan.restarts && !is_over;
        if self.must_be_complete() && !may_be_unsaid && (!is_over || accounted != high) {
            return Err(self.fail(&format!("not complete (ended: {}): {text}", seen.ended)));
        }
        for (stage, loss) in &stream.missing.0 {
            let is_possible = match stage {
                Stage::NoBuffer => plan.small_memory,
                Stage::SpoolEvicted => plan.small_spool,
                Stage::SpoolFailed => plan.spool_fails,
                Stage::SnifferRestarted => plan.sniffer_kills,
                Stage::ViewerAway => self.was_cut && plan.small_recent || plan.shedding || plan.restarts,
                Stage::ViewerQueue => plan.small_viewer_queue,
                Stage::WorkerQueue => plan.small_worker_queue && plan.workers > 1,
                Stage::Budget => plan.shedding,
                Stage::RelayRestarted => plan.restarts,
                _ => false,
            };
            if !is_possible && loss.packets > 0 {
                return Err(self.fail(&format!("missing {} without cause: {text}", stage.text())));
            }
        }
        let no_buffer = stream.missing.packets_at(Stage::NoBuffer);
        if no_buffer > sniffer_lost && !plan.restarts && !plan.sniffer_kills {
            return Err(self.fail(&format!("{sniffer_lost} lost at the sniffer: {text}")));
        }
        Ok(())
    }
}
