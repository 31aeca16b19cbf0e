//! One stream of the uplink: what is retained of it, where the relay is, what does not come.

use std::collections::VecDeque;

use crate::block::Kind;
use crate::lanes::Lane;
use crate::ledger::{Losses, Stage};
use crate::masked::{Payload, SealedBlock};
use crate::message::{Announcement, Control, Cursor};
use crate::pool::Pool;

/// Ranges of one stream that do not come, at most; beyond it neighbours are told as one.
const DROPS_MAX: usize = 1024;

/// Where a retained block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In memory only; it is sent from there.
    Memory,
    /// In memory, and to be written to the spool; it comes back from there.
    ToSpool,
    /// The same, and the spool was asked to write it.
    Appending,
    /// In the spool too, from where it was loaded as the one with this ticket.
    Loaded(u64),
}

#[derive(Debug)]
pub(super) struct Retained {
    pub block: SealedBlock,
    /// Order of arrival over all streams.
    pub arrival: u64,
    pub place: Place,
    pub was_sent: bool,
    /// Given to the present connection and not settled, from this lane.
    pub in_flight: Option<Lane>,
    /// The present connection may have its pages.
    pub is_lent: bool,
}

impl Retained {
    pub fn bytes(&self) -> usize {
        self.block.byte_len()
    }

    pub fn sequence(&self) -> u64 {
        self.block.header().sequence
    }

    /// The relay has it, and says so on the connection that it was lent to, if it was.
    pub fn take_back(&self, lender: Option<&Pool>) {
        if let Some(pool) = lender.filter(|_| self.is_lent) {
            pool.take_back(&self.block.payload().bytes);
        }
    }
}

/// Blocks that do not come.
#[derive(Clone, Copy, Debug)]
struct Dropped {
    begin: Cursor,
    end: Cursor,
    packets: u64,
    bytes: u64,
    stage: Stage,
    /// Packets and bytes of it that are counted as lost: what the relay did not have.
    counted: (u64, u64),
}

impl Dropped {
    /// Counts what the relay has not received of it; more than before if the relay started anew.
    fn count(&mut self, received: Cursor, lost: &mut Losses) {
        let now = (self.packets_after(received), self.bytes_after(received));
        let more = (now.0.saturating_sub(self.counted.0), now.1.saturating_sub(self.counted.1));
        self.counted = (self.counted.0 + more.0, self.counted.1 + more.1);
        if self.stage == Stage::RelayRestarted {
            return; // it was sent, and may have arrived: only viewers know
        }
        lost.add(self.stage, more.0, more.1);
    }

    /// Packets of it behind a place.
    fn packets_after(&self, place: Cursor) -> u64 {
        self.packets - place.packets.saturating_sub(self.begin.packets).min(self.packets)
    }

    /// Bytes of it behind a place.
    fn bytes_after(&self, place: Cursor) -> u64 {
        self.bytes - place.bytes.saturating_sub(self.begin.bytes).min(self.bytes)
    }
}

#[derive(Debug)]
pub(super) struct Stream {
    pub announcement: Announcement,
    pub announced: bool,
    /// When it came here, on the caller's clock.
    pub opened_ms: u64,
    pub lane: Lane,
    /// It is of an earlier run: only what the spool has of it comes.
    pub is_former: bool,
    /// Every block of it goes through the spool from now on.
    pub is_spooled: bool,
    /// Nothing is sent until the relay has said how far it is.
    pub awaits_ack: bool,
    /// A successor was asked for.
    pub is_succeeded: bool,
    /// In sequence; may have gaps.
    pub retained: VecDeque<Retained>,
    /// Where the relay is once everything given to the connection has arrived.
    pub told: Cursor,
    /// One past the highest sequence ever sent.
    pub sent: u64,
    pub received: Cursor,
    pub settled: u64,
    /// Where the last block ends that was settled, with whatever relay.
    pub settled_place: Cursor,
    pub lost: Losses,
    drops: VecDeque<Dropped>,
    /// The relay has packets of it, or was sent some: what is missing from here on is lost. A relay that
    /// is new to a stream of an earlier run lacks what its own predecessor had, too.
    pub is_placed: bool,
    /// Losses that only a gap tells of are counted up to this sequence.
    counted_through: u64,
    /// The last description that is not retained any more: a relay that starts anew needs it.
    pub description: Option<SealedBlock>,
    /// The present connection was given it.
    pub is_description_given: bool,
    /// One past the sequence of the last description that was to be appended to the spool.
    spooled_description: u64,
    /// Sequence of the last block, once it is packed.
    pub end_sequence: Option<u64>,
    /// Its last block was lost: where it ends.
    pub cut_at: Option<Cursor>,
    /// The present connection was told where it ends.
    pub is_cut_told: bool,
}

impl Stream {
    pub fn new(announcement: Announcement, lane: Lane, is_former: bool, opened_ms: u64) -> Self {
        let told = Cursor { key: announcement.key, ..Cursor::default() };
        Self {
            announcement,
            announced: false,
            opened_ms,
            lane,
            is_former,
            is_spooled: is_former,
            awaits_ack: is_former,
            is_succeeded: false,
            retained: VecDeque::new(),
            told,
            sent: 0,
            received: told,
            settled: 0,
            settled_place: told,
            lost: Losses::default(),
            drops: VecDeque::new(),
            is_placed: !is_former,
            counted_through: 0,
            description: None,
            is_description_given: false,
            spooled_description: 0,
            end_sequence: None,
            cut_at: None,
            is_cut_told: false,
        }
    }

    /// All of it has arrived wherever it must, or the relay knows that the rest does not come.
    pub fn is_done(&self) -> bool {
        let end = self.cut_at.map(|end| end.next_sequence).or(self.end_sequence.map(|end| end + 1));
        end.is_some_and(|end| self.settled >= end)
    }

    pub fn find(&self, sequence: u64) -> Option<usize> {
        self.retained.binary_search_by_key(&sequence, Retained::sequence).ok()
    }

    /// Retains a block, in sequence; `false` if it is retained already.
    pub fn retain(&mut self, one: Retained) -> bool {
        match self.retained.binary_search_by_key(&one.sequence(), Retained::sequence) {
            Ok(_) => false,
            Err(at) => {
                self.retained.insert(at, one);
                true
            }
        }
    }

    pub fn keep_description(&mut self, block: SealedBlock) {
        let sequence = block.header().sequence;
        let is_newer = self.description.as_ref().is_none_or(|known| known.header().sequence < sequence);
        if block.header().kind == Kind::Description && is_newer {
            self.description = Some(block);
            self.is_description_given = false;
        }
    }

    /// The description that goes, out of its place, before whatever is sent next: the relay cannot
    /// have it, for it has nothing that came behind it, and it is not among what is retained. The
    /// relay started anew, or the spool threw it away, or an earlier run sent it.
    pub fn take_description_due(&mut self) -> Option<Payload> {
        let is_unknown = |one: &&SealedBlock| one.header().sequence >= self.told.next_sequence;
        let description = self.description.as_ref().filter(is_unknown)?;
        let is_given = std::mem::replace(&mut self.is_description_given, true);
        (!is_given).then(|| description.payload())
    }

    /// The description that goes to the spool before a block, if it is not there: a later run that
    /// finds the block must be able to read it.
    pub fn description_to_spool(&mut self, block: &SealedBlock) -> Option<SealedBlock> {
        let spooled = self.spooled_description;
        if block.header().kind == Kind::Description {
            self.spooled_description = spooled.max(block.header().sequence + 1);
            return None;
        }
        let description = self.description.as_ref().filter(|one| one.header().sequence >= spooled)?;
        self.spooled_description = description.header().sequence + 1;
        Some(description.clone())
    }

    /// The spool could not append a block: nothing is certain of what else it was given.
    pub fn handle_spool_failed(&mut self) {
        self.spooled_description = 0;
    }

    /// Whether some of it can be sent from memory.
    pub fn has_sendable(&self) -> bool {
        self.retained.iter().any(|one| matches!(one.place, Place::Memory | Place::Loaded(_)))
    }

    /// Bytes retained that only memory has and that were not sent.
    pub fn unsent_bytes(&self) -> usize {
        let is_unsent = |one: &&Retained| one.sequence() >= self.told.next_sequence;
        self.retained.iter().filter(is_unsent).map(Retained::bytes).sum()
    }

    /// Blocks of it are lost before they were sent, or perhaps after.
    pub fn add_dropped(&mut self, begin: Cursor, end: Cursor, stage: Stage) {
        let (packets, bytes) = (end.packets - begin.packets, end.bytes - begin.bytes);
        if packets == 0 {
            return; // reports: the next says it all
        }
        let mut one = Dropped { begin, end, packets, bytes, stage, counted: (0, 0) };
        // What was sent before a cut the relay may have: its acknowledgement tells. What is on its way
        // now will arrive, unless the line is cut.
        let is_doubtful = self.awaits_ack && begin.next_sequence < self.sent.max(u64::from(self.is_former));
        if !is_doubtful {
            one.count(self.told, &mut self.lost);
        }
        // Behind what is counted nothing is joined that may turn out to have arrived: what the relay
        // has of a range is told by one place.
        let is_decided = one.counted.0 == packets;
        let fits = |last: &&mut Dropped| {
            let adjoins = last.end.next_sequence == begin.next_sequence && last.stage == stage;
            adjoins && (is_decided || last.counted.0 == 0)
        };
        if let Some(last) = self.drops.back_mut().filter(fits) {
            last.end = end;
            last.packets += packets;
            last.bytes += bytes;
            last.counted = (last.counted.0 + one.counted.0, last.counted.1 + one.counted.1);
            return;
        }
        self.drops.push_back(one);
        if self.drops.len() > DROPS_MAX
            && let (Some(first), Some(second)) = (self.drops.pop_front(), self.drops.front_mut())
        {
            // The stage of the larger part stands for both.
            second.stage = if first.packets > second.packets { first.stage } else { second.stage };
            second.begin = first.begin;
            second.packets += first.packets;
            second.bytes += first.bytes;
            second.counted = (second.counted.0 + first.counted.0, second.counted.1 + first.counted.1);
        }
    }

    /// The relay has everything before `received`: what was doubtful is decided.
    pub fn handle_received(&mut self, received: Cursor, settled: u64) {
        self.received = received;
        self.is_placed |= received.packets > 0;
        if received.next_sequence > self.told.next_sequence || self.awaits_ack {
            self.told = received;
        }
        let (lost, awaited, settled_place) = (&mut self.lost, self.awaits_ack, &mut self.settled_place);
        self.drops.retain_mut(|one| {
            if one.end.next_sequence <= settled {
                advance(settled_place, one.end);
                return false; // whatever relay comes, nobody asks for it again
            }
            if awaited {
                one.count(received, lost);
            }
            true
        });
    }

    /// A block that ends there is settled, with whatever relay.
    pub fn settle_through(&mut self, end: Cursor) {
        advance(&mut self.settled_place, end);
    }

    /// What to say before something that begins at `next` is sent, when there is a gap before it.
    pub fn notices_before(&mut self, next: Cursor) -> Vec<Control> {
        let told = self.told;
        if next.next_sequence <= told.next_sequence {
            return Vec::new();
        }
        let key = self.announcement.key;
        // A relay that starts anew has nothing, and lacks what was settled with the former, too.
        let known =
            if told.next_sequence > self.settled_place.next_sequence { told } else { self.settled_place };
        let mut packets = next.packets.saturating_sub(known.packets);
        let mut bytes = next.bytes.saturating_sub(known.bytes);
        let mut notices = Vec::new();
        for one in &self.drops {
            if one.end.next_sequence <= told.next_sequence || one.begin.next_sequence >= next.next_sequence {
                continue;
            }
            notices.push(Control::Skipped {
                key,
                first_sequence: one.begin.next_sequence.max(told.next_sequence),
                next_sequence: one.end.next_sequence.min(next.next_sequence),
                packets: one.packets_after(told),
                bytes: one.bytes_after(told),
                stage: one.stage,
            });
            packets = packets.saturating_sub(one.packets_after(known));
            bytes = bytes.saturating_sub(one.bytes_after(known));
        }
        if packets > 0 && (self.is_former || self.is_spooled) {
            // Packed by a run that ended before it could send or spool them; or the spool has lost them.
            let stage = if self.is_former { Stage::SnifferRestarted } else { Stage::SpoolFailed };
            if self.is_placed && known.next_sequence > 0 && next.next_sequence > self.counted_through {
                self.counted_through = next.next_sequence;
                self.lost.add(stage, packets, bytes);
            }
            let (first_sequence, next_sequence) = (told.next_sequence, next.next_sequence);
            notices.push(Control::Skipped { key, first_sequence, next_sequence, packets, bytes, stage });
        }
        if known.packets > told.packets {
            // Settled with a relay that is no more. Last, for a viewer that was there has it.
            notices.push(Control::Skipped {
                key,
                first_sequence: told.next_sequence,
                next_sequence: known.next_sequence.min(next.next_sequence),
                packets: known.packets - told.packets,
                bytes: known.bytes.saturating_sub(told.bytes),
                stage: Stage::RelayRestarted,
            });
        }
        self.told = next;
        notices
    }
}

fn advance(place: &mut Cursor, to: Cursor) {
    if to.next_sequence > place.next_sequence {
        *place = to;
    }
}

/// Whether a block may go when memory is short. Descriptions and the end are small and few, and
/// without them the rest cannot be read; reports go like packets, for the next says it all.
pub(super) fn is_droppable(one: &Retained) -> bool {
    let header = one.block.header();
    let is_replaceable = !header.end && header.kind != Kind::Description;
    is_replaceable && one.in_flight.is_none() && matches!(one.place, Place::Memory | Place::ToSpool)
}
