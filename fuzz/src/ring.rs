//! The walk over a block of the kernel's ring, without the ring.

#[path = "../../sniffer/src/ring/frame.rs"]
pub mod frame;
#[path = "../../sniffer/src/ring/uapi.rs"]
pub mod uapi;

/// Walks a block: frames seen, their bytes, frames promised and not seen.
pub fn walk(block: &[u8]) -> (u32, usize, u32) {
    let mut frames = frame::Frames::of_block(block);
    let (mut count, mut bytes) = (0, 0);
    for frame in &mut frames {
        count += 1;
        bytes += frame.data.len();
    }
    (count, bytes, frames.unread())
}
