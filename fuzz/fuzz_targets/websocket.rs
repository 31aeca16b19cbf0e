//! A byte stream through the deframer, as client and as server: the same messages come out however
//! the bytes are cut, nothing larger than the limits, and no more memory than the pool has.
#![no_main]

use fuzz::parts;
use libfuzzer_sys::fuzz_target;
use wire::connection::fuzzing::{Deframer, Polled};
use wire::connection::{FrameError, Incoming, Limits};
use wire::pool::Pool;

const LIMITS: Limits = Limits { text_bytes: 4 << 10, binary_bytes: 64 << 10 };

/// What comes out of `bytes`, handed in in pieces of `sizes` in turn.
fn run(bytes: &[u8], sizes: &[u8], masked: bool) -> (Vec<String>, Option<FrameError>) {
    let pool = Pool::new(1 << 20);
    let mut deframer = Deframer::new(masked, LIMITS);
    let (mut seen, mut rest) = (Vec::new(), bytes);
    let mut turn = sizes.iter().cycle();
    loop {
        match deframer.poll(&pool) {
            Err(error) => return (seen, Some(error)),
            Ok(Polled::NeedBuffer) => unreachable!("the pool has room for two messages"),
            Ok(Polled::Message(message)) => {
                match &message {
                    Incoming::Text(text) => assert!(text.len() <= LIMITS.text_bytes),
                    Incoming::Binary(bytes) => assert!(bytes.len() <= LIMITS.binary_bytes),
                    Incoming::Ping(payload) => assert!(payload.len() <= 125),
                    Incoming::Pong | Incoming::Close { .. } => {}
                }
                seen.push(format!("{message:?}"));
            }
            Ok(Polled::NeedBytes) if rest.is_empty() => return (seen, None),
            Ok(Polled::NeedBytes) => {
                // A size of 0 is all that there is room for.
                let size = turn.next().map_or(0, |size| usize::from(*size));
                let wanted = if size == 0 { usize::MAX } else { size };
                let taken = deframer.take(&rest[..rest.len().min(wanted)]);
                assert!(taken > 0, "it needs bytes and takes none");
                rest = &rest[taken..];
            }
        }
        assert!(pool.used_bytes() <= 1 << 20);
    }
}

fuzz_target!(|input: &[u8]| {
    let [bytes, sizes, ..] = parts(input)[..] else { return };
    for masked in [true, false] {
        assert_eq!(run(bytes, sizes, masked), run(bytes, &[], masked));
    }
});
