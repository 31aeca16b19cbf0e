//! The bytes of a totals file, and in which order they are stored.
//!
//! ```text
//!    0 header: magic | version, slots | epoch | created_ns               words of 8 bytes, little-endian
//! 4096 slot 0     0 stream << 32 | state        8 opened_ns       16 interface, 16 bytes, padded with NUL
//!                64 copy A: next_sequence | packets | bytes | offered | kernel_drops | updated_ns | generation
//!               128 copy B: the same
//! 4352 slot 1 ...                                                     (no slot straddles a sector of the disk)
//! ```
//!
//! Invariant: whoever reads after a stop between any two stores finds every slot whole, as it was before or as it was to
//! be. Each change is a run of stores of which the last makes the others count: the state for a slot, the generation for
//! a copy. A record goes into the copy with the older generation, so the newer one is whole all the while.

use thiserror::Error;
use wire::block::Epoch;

/// First eight bytes.
const MAGIC: u64 = u64::from_le_bytes(*b"RCTOTALS");
const VERSION: u32 = 1;

pub(super) const WORD_BYTES: usize = size_of::<u64>();
pub(super) const HEADER_BYTES: usize = 4096;
pub(super) const SLOT_BYTES: usize = 256;
/// Streams that one file can hold at a time.
pub(super) const SLOT_COUNT: usize = 4096;
/// Bytes of a file with `slots` slots.
pub(super) const fn file_bytes(slots: usize) -> usize {
    HEADER_BYTES + slots * SLOT_BYTES
}
/// Bytes of an interface's name. (IFNAMSIZ, which includes the NUL)
const NAME_BYTES: usize = 16;

// Words of a slot.
const STATE: usize = 0;
const OPENED: usize = 1;
const NAME: usize = 2;
const COPIES: [usize; 2] = [8, 16];
/// Words of a copy; the generation is the last.
const COPY_WORDS: usize = 7;
const GENERATION: usize = COPY_WORDS - 1;
const _: () =
    assert!(COPIES[1] - COPIES[0] >= COPY_WORDS && COPIES[1] + COPY_WORDS <= SLOT_BYTES / WORD_BYTES);
const _: () = assert!(NAME + NAME_BYTES / WORD_BYTES <= COPIES[0]);

/// What a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nobody's. A file that was never written to is full of these.
    Free = 0,
    /// Of a stream that goes on.
    Used = 1,
    /// Of a stream whose last block was packed.
    Ended = 2,
}

/// Where a stream stands: what counts of it, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) next_sequence: u64,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) offered: u64,
    pub(super) kernel_drops: u64,
    pub(super) updated_ns: u64,
}

/// A store: word within its slot (or header), and value.
pub(super) type Store = (usize, u64);

/// The header. Until its magic is there the file holds nothing.
pub(super) fn header(epoch: Epoch, created_ns: u64) -> [Store; 4] {
    let version = u64::from(VERSION) | (SLOT_COUNT as u64) << 32;
    [(1, version), (2, epoch.0), (3, created_ns), (0, MAGIC)]
}

/// A free slot becomes that of a stream. Of a name that is too long the beginning is kept.
pub(super) fn open(stream: u32, interface: &str, opened_ns: u64) -> [Store; 6] {
    let mut name = [0; NAME_BYTES];
    let mut len = interface.len().min(NAME_BYTES - 1);
    while !interface.is_char_boundary(len) {
        len -= 1;
    }
    name[..len].copy_from_slice(&interface.as_bytes()[..len]);
    let word = |at: usize| {
        let mut bytes = [0; WORD_BYTES];
        bytes.copy_from_slice(&name[at..at + WORD_BYTES]);
        u64::from_le_bytes(bytes)
    };
    // The copies are those of the slot's last stream: generation 0 says that there is nothing in them.
    [
        (COPIES[0] + GENERATION, 0),
        (COPIES[1] + GENERATION, 0),
        (OPENED, opened_ns),
        (NAME, word(0)),
        (NAME + 1, word(WORD_BYTES)),
        state(stream, State::Used),
    ]
}

/// The totals of the slot's stream. `generation` is one more than that of the record before; the first is 1.
pub(super) fn record(generation: u64, totals: &Totals) -> [Store; COPY_WORDS] {
    let at = COPIES[(generation % 2) as usize];
    [
        (at, totals.next_sequence),
        (at + 1, totals.packets),
        (at + 2, totals.bytes),
        (at + 3, totals.offered),
        (at + 4, totals.kernel_drops),
        (at + 5, totals.updated_ns),
        (at + GENERATION, generation),
    ]
}

/// What a slot is, and whose.
pub(super) fn state(stream: u32, state: State) -> Store {
    (STATE, u64::from(stream) << 32 | state as u64)
}

/// Why a file is not a totals file, or not a whole one.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // the texts say what the fields are
pub enum Damage {
    #[error("{found} bytes, expected {expected}")]
    Length { found: u64, expected: u64 },
    #[error("does not begin as a totals file does")]
    Magic,
    #[error("version {found}, this program reads {VERSION}")]
    Version { found: u32 },
    #[error("{found} slots, at most {SLOT_COUNT} are possible")]
    SlotCount { found: u64 },
    #[error("epoch {found}, its name says {expected}")]
    Epoch { found: Epoch, expected: Epoch },
    #[error("slot {slot}: state {found}")]
    State { slot: usize, found: u32 },
    #[error("slot {slot}: the interface's name is not text")]
    Name { slot: usize },
}

/// A slot that is not free, as it was left.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) stream: u32,
    pub(super) interface: String,
    pub(super) opened_ns: u64,
    pub(super) has_ended: bool,
    pub(super) totals: Totals,
}

/// Reads the file of `epoch`: when it was made, and its slots. One that was stopped before it had a header has none.
pub(super) fn parse(bytes: &[u8], epoch: Epoch) -> Result<(u64, Vec<Slot>), Damage> {
    let length = |expected: usize| Damage::Length { found: bytes.len() as u64, expected: expected as u64 };
    if bytes.is_empty() {
        return Ok((0, Vec::new()));
    }
    let head: Words<'_> = Words(bytes.get(..HEADER_BYTES).ok_or_else(|| length(file_bytes(SLOT_COUNT)))?);
    if head.word(0) == 0 && bytes[HEADER_BYTES..].iter().all(|byte| *byte == 0) {
        return Ok((0, Vec::new()));
    }
    if head.word(0) != MAGIC {
        return Err(Damage::Magic);
    }
    let version = head.word(1) as u32;
    if version != VERSION {
        return Err(Damage::Version { found: version });
    }
    let slot_count = head.word(1) >> 32;
    if slot_count > SLOT_COUNT as u64 {
        return Err(Damage::SlotCount { found: slot_count });
    }
    let expected = file_bytes(slot_count as usize);
    if bytes.len() != expected {
        return Err(length(expected));
    }
    let found = Epoch(head.word(2));
    if found != epoch {
        return Err(Damage::Epoch { found, expected: epoch });
    }
    let slots = bytes[HEADER_BYTES..].chunks_exact(SLOT_BYTES).enumerate();
    let slots = slots.filter_map(|(index, slot)| parse_slot(index, Words(slot)).transpose());
    Ok((head.word(3), slots.collect::<Result<_, _>>()?))
}

/// `None`: free.
fn parse_slot(index: usize, words: Words<'_>) -> Result<Option<Slot>, Damage> {
    let (stream, state) = ((words.word(STATE) >> 32) as u32, words.word(STATE) as u32);
    let has_ended = match state {
        0 => return Ok(None),
        1 => false,
        2 => true,
        found => return Err(Damage::State { slot: index, found }),
    };
    let name = &words.0[NAME * WORD_BYTES..][..NAME_BYTES];
    let len = name.iter().position(|byte| *byte == 0).unwrap_or(NAME_BYTES);
    let interface = std::str::from_utf8(&name[..len]).map_err(|_| Damage::Name { slot: index })?;
    let copy = |at: usize| {
        let totals = Totals {
            next_sequence: words.word(at),
            packets: words.word(at + 1),
            bytes: words.word(at + 2),
            offered: words.word(at + 3),
            kernel_drops: words.word(at + 4),
            updated_ns: words.word(at + 5),
        };
        (words.word(at + GENERATION), totals)
    };
    let (generation, totals) = COPIES.map(copy).into_iter().max_by_key(|one| one.0).unwrap_or_default();
    Ok(Some(Slot {
        stream,
        interface: interface.to_owned(),
        opened_ns: words.word(OPENED),
        has_ended,
        totals: if generation == 0 { Totals::default() } else { totals },
    }))
}

/// Bytes, read as words.
#[derive(Clone, Copy)]
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    /// A word that is there: its place is a constant below the length that was checked.
    fn word(self, index: usize) -> u64 {
        let mut bytes = [0; WORD_BYTES];
        bytes.copy_from_slice(&self.0[index * WORD_BYTES..][..WORD_BYTES]);
        u64::from_le_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EPOCH: Epoch = Epoch(0x1234);

    /// A file in memory.
    struct Image(Vec<u8>);

    impl Image {
        fn new() -> Self {
            let mut image = Image(vec![0; file_bytes(SLOT_COUNT)]);
            image.store(None, &header(EPOCH, 77));
            image
        }

        fn store(&mut self, slot: Option<usize>, stores: &[Store]) {
            let base = slot.map_or(0, |index| HEADER_BYTES + index * SLOT_BYTES);
            for (word, value) in stores {
                self.0[base + word * WORD_BYTES..][..WORD_BYTES].copy_from_slice(&value.to_le_bytes());
            }
        }

        fn slots(&self) -> Vec<Slot> {
            parse(&self.0, EPOCH).expect("whole").1
        }
    }

    fn totals(step: u64) -> Totals {
        Totals {
            next_sequence: step,
            packets: 10 * step,
            bytes: 1000 * step,
            offered: 11 * step,
            kernel_drops: step,
            updated_ns: 1 << 60 | step,
        }
    }

    /// The process is killed before each store in turn: a reader finds what was true before that change or after it.
    #[test]
    fn a_stop_between_any_two_stores_leaves_every_slot_whole() {
        // What is done to one slot, and how a reader is to find it afterwards.
        let mut changes: Vec<(Vec<Store>, Option<Slot>)> = Vec::new();
        for (stream, interface) in [(7, "eth0"), (9, "a-name-of-15-by")] {
            let slot = |has_ended, totals| Slot {
                stream,
                interface: interface.to_owned(),
                opened_ns: 5 + u64::from(stream),
                has_ended,
                totals,
            };
            let opened = open(stream, interface, 5 + u64::from(stream));
            changes.push((opened.to_vec(), Some(slot(false, Totals::default()))));
            for step in 1..6 {
                let now = totals(100 * u64::from(stream) + step);
                changes.push((record(step, &now).to_vec(), Some(slot(false, now))));
            }
            let last = totals(100 * u64::from(stream) + 5);
            changes.push((vec![state(stream, State::Ended)], Some(slot(true, last))));
            changes.push((vec![state(0, State::Free)], None));
        }
        let mut image = Image::new();
        let mut before = None;
        for (number, (stores, after)) in changes.into_iter().enumerate() {
            for (done, store) in stores.iter().enumerate() {
                assert_eq!(image.slots().pop(), before, "change {number}, {done} stores done");
                image.store(Some(3), &[*store]);
            }
            assert_eq!(image.slots().pop(), after, "change {number}");
            before = after;
        }
    }

    #[test]
    fn a_file_without_a_header_holds_nothing_and_any_other_is_refused() {
        let whole = Image::new().0;
        let with = |at: usize, value: u64| {
            let mut bytes = whole.clone();
            bytes[at * WORD_BYTES..][..WORD_BYTES].copy_from_slice(&value.to_le_bytes());
            parse(&bytes, EPOCH).expect_err("damaged")
        };
        assert_eq!(parse(&whole, EPOCH), Ok((77, vec![])));
        assert_eq!(parse(&[], EPOCH), Ok((0, vec![])));
        let mut image = Image(vec![0; file_bytes(SLOT_COUNT)]);
        for store in header(EPOCH, 77) {
            assert_eq!(parse(&image.0, EPOCH), Ok((0, vec![])));
            image.store(None, &[store]);
        }
        assert_eq!(image.0, whole);
        assert_eq!(with(0, 1), Damage::Magic);
        assert_eq!(with(1, 2 | 4096 << 32), Damage::Version { found: 2 });
        assert_eq!(with(1, 1 | 4097 << 32), Damage::SlotCount { found: 4097 });
        assert!(matches!(with(1, 1 | 3 << 32), Damage::Length { .. }));
        assert!(matches!(with(2, 9), Damage::Epoch { .. }));
        assert_eq!(with(HEADER_BYTES / WORD_BYTES, 3), Damage::State { slot: 0, found: 3 });
        let mut bytes = whole.clone();
        bytes[HEADER_BYTES] = 1;
        bytes[HEADER_BYTES + NAME * WORD_BYTES] = 0xff;
        assert_eq!(parse(&bytes, EPOCH), Err(Damage::Name { slot: 0 }));
        for len in [1, 8, HEADER_BYTES - 1, HEADER_BYTES, whole.len() - 1] {
            assert!(matches!(parse(&whole[..len], EPOCH), Err(Damage::Length { .. })), "{len} bytes");
        }
    }

    #[test]
    fn a_name_too_long_is_cut_between_characters() {
        let mut image = Image::new();
        image.store(Some(0), &open(1, "wlan0-f\u{fc}nfzehn-\u{fc}\u{fc}", 0));
        assert_eq!(image.slots()[0].interface, "wlan0-f\u{fc}nfzehn");
    }

    proptest! {
        #[test]
        fn whatever_is_in_the_file_it_is_read_or_refused(
            at in 0..HEADER_BYTES + 4 * SLOT_BYTES,
            noise in proptest::collection::vec(any::<u8>(), 1..600),
        ) {
            let mut image = Image::new();
            image.store(Some(1), &open(1, "eth0", 2));
            let len = noise.len().min(image.0.len() - at);
            image.0[at..at + len].copy_from_slice(&noise[..len]);
            let _ = parse(&image.0, EPOCH);
        }
    }
}
