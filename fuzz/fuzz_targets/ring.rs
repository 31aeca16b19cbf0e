//! The walk over a block of the kernel's ring: it ends, and goes over no byte twice.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|block: &[u8]| {
    let (frames, _, unread) = fuzz::walk_ring_block(block);
    // A frame has a header of 68 bytes at least, and steps are no shorter than 48.
    assert!(frames as usize <= block.len() / 48 + 1);
    if let Some(promised) = block.get(12..16).filter(|_| block.len() >= 48) {
        let promised = u32::from_ne_bytes([promised[0], promised[1], promised[2], promised[3]]);
        assert_eq!(frames + unread, promised);
    }
});
