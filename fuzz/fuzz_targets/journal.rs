//! A journal's directory that holds whatever it likes: two segments and a cursor. Looking at it,
//! verifying, reading, opening, appending and reading back end without a panic, and what is handed
//! out is whole.
//!
//! The first part of an input says what is made right, then come segment, segment, cursor.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Instant;

use fuzz::parts;
use fuzz::seeds::{fix_segment, one_block};
use libfuzzer_sys::fuzz_target;
use wire::journal::{Config, Journal, JournalError, RealFs, inspect};
use wire::pool::Pool;

const CAP_BYTES: u64 = 1 << 20;

/// A directory of this process, by preference in memory.
fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let base = std::env::temp_dir().join(format!("ringcast-fuzz-journal-{}", std::process::id()));
        std::fs::create_dir_all(&base).expect("a temporary directory");
        base
    })
}

fn look(directory: &Path, pool: &Pool) -> u64 {
    let listing = inspect::list(directory).expect("the directory is there");
    let mut damages = 0;
    let verified = inspect::verify(directory, |damage| {
        assert!(damage.from <= damage.to && !damage.to_string().is_empty());
        damages += 1;
    })
    .expect("the directory is there");
    assert_eq!(damages, verified.damaged);
    assert!(listing.segments.len() as u64 >= verified.segments);
    let (mut blocks, mut damaged) = (0, 0);
    let mut walk = inspect::Blocks::open(directory).expect("the directory is there");
    while let Some(item) = walk.read_next(pool).expect("the pool has room") {
        match item {
            inspect::Item::Entry(entry) => {
                entry.block.check_body().expect("only whole blocks");
                blocks += u64::from(!entry.is_copy);
            }
            inspect::Item::Damage(_) => damaged += 1,
        }
    }
    assert_eq!((blocks, damaged), (verified.blocks, verified.damaged));
    blocks
}

fuzz_target!(|input: &[u8]| {
    let parts = parts(input);
    let [[flags], first, second, cursor, ..] = parts[..] else { return };
    let directory = directory();
    for name in ["lock", "cursor", "cursor.new"] {
        let _ = std::fs::remove_file(directory.join(name));
    }
    for file in std::fs::read_dir(directory).expect("it is there") {
        let _ = std::fs::remove_file(file.expect("a name").path());
    }
    let pool = Pool::new(64 << 20);
    for (number, segment) in [(1, first), (2, second)] {
        if segment.is_empty() {
            continue;
        }
        let mut segment = segment.to_vec();
        if flags & number != 0 {
            fix_segment(&mut segment, u64::from(number));
        }
        std::fs::write(directory.join(format!("{number:010}.seg")), segment).expect("room");
    }
    if !cursor.is_empty() {
        let mut cursor = cursor.to_vec();
        if let (true, Some((body, crc))) = (flags & 4 != 0, cursor.split_last_chunk_mut::<4>()) {
            *crc = crc32fast::hash(body).to_le_bytes();
        }
        std::fs::write(directory.join("cursor"), cursor).expect("room");
    }
    look(directory, &pool);

    let config =
        Config { directory: directory.to_owned(), cap_bytes: CAP_BYTES, segment_bytes: Some(64 << 10) };
    let now = Instant::now();
    let (mut journal, recovered) = Journal::open(&config, RealFs, now).expect("it opens whatever is there");
    let _ = format!("{recovered:?}");
    let block = one_block(3);
    match journal.append(&block, now) {
        Ok(_) => {}
        // More streams, or segments, than there is room for.
        Err(JournalError::Full { .. }) => return,
        Err(error) => panic!("{error}"),
    }
    let mut last = None;
    loop {
        match journal.read_next(&pool) {
            Ok(Some(entry)) => {
                entry.block.check_body().expect("only whole blocks");
                assert!(last.is_none_or(|last| last <= entry.next));
                last = Some(entry.next);
                if flags & 8 != 0 {
                    journal.acknowledge(entry.next, now);
                }
            }
            Ok(None) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(last.is_some(), "what was appended is read");
    while journal.poll_event().is_some() {}
    journal.close().expect("room");
    look(directory, &pool);
});
