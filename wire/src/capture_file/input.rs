//! A window over the input, in which a whole record lies in one piece.
//!
//! ```text
//!   0        start              end           len
//!   | consumed | not yet consumed | free        |
//! ```
//!
//! `BufReader` does not do here: its buffer does not grow, so a record that straddles two fills
//! would be copied together, packet by packet.

use std::io::{ErrorKind, Read};
use std::ops::Range;

use super::error::CaptureFileError;

/// First size of the window. Large enough for the largest ordinary record, so that it grows only
/// for the rare large block.
const WINDOW_BYTES: usize = 512 << 10;

/// The input and what has been read of it.
#[derive(Debug)]
pub(super) struct Input<R> {
    reader: R,
    window: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes of the input before `start`.
    offset: u64,
    ended: bool,
}

impl<R: Read> Input<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, window: vec![0; WINDOW_BYTES], start: 0, end: 0, offset: 0, ended: false }
    }

    /// Reads until `wanted` bytes lie in the window or the input ends; tells how many do. The
    /// caller has bounded `wanted`. Moves the window: ranges from before are void.
    pub(super) fn fill(&mut self, wanted: usize) -> Result<usize, CaptureFileError> {
        while self.end - self.start < wanted && !self.ended {
            self.make_room(wanted);
            match self.reader.read(&mut self.window[self.end..]) {
                Ok(0) => self.ended = true,
                // A reader that claims more than it was given room for is wrong, and must not
                // make the ranges so.
                Ok(count) => self.end = (self.end + count).min(self.window.len()),
                Err(source) if source.kind() == ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(CaptureFileError::Io {
                        offset: self.offset + (self.end - self.start) as u64,
                        source,
                    });
                }
            }
        }
        Ok(self.end - self.start)
    }

    /// Leaves at least one free byte behind `end`, and room for `wanted` in all once data has
    /// filled what is there: the window at most doubles, and only when it is full.
    fn make_room(&mut self, wanted: usize) {
        if self.start + wanted > self.window.len() {
            self.window.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.window.len() {
            let bytes = wanted.min(2 * self.window.len());
            self.window.reserve_exact(bytes - self.window.len());
            self.window.resize(bytes, 0);
        }
    }

    /// Memory that the window takes.
    #[cfg(test)]
    pub(super) fn window_bytes(&self) -> usize {
        self.window.capacity()
    }

    /// What is in the window and not consumed.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.window[self.start..self.end]
    }

    /// Bytes consumed so far: the offset of [`Input::bytes`] in the file.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Consumes `count` bytes, which are in the window, and gives the place where they stay until
    /// the next [`Input::fill`].
    pub(super) fn consume(&mut self, count: usize) -> usize {
        debug_assert!(count <= self.end - self.start);
        let place = self.start;
        self.start += count;
        self.offset += count as u64;
        place
    }

    /// Bytes consumed since the last [`Input::fill`].
    pub(super) fn window(&self, range: Range<usize>) -> &[u8] {
        &self.window[range]
    }

    /// As [`Input::window`], to be changed.
    pub(super) fn window_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        &mut self.window[range]
    }
}
