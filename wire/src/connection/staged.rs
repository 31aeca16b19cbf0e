//! A client's send buffer: bytes that are ready for the socket. Its memory is kept and never zeroed
//! anew: what fills it is copied and masked in one pass.

/// Bytes on their way out. Those of `from..end` are unsent.
#[derive(Debug, Default)]
pub(super) struct Staged {
    memory: Vec<u8>,
    from: usize,
    end: usize,
}

impl Staged {
    /// What is unsent.
    pub(super) fn unsent(&self) -> &[u8] {
        &self.memory[self.from..self.end]
    }

    /// Whether all was sent.
    pub(super) fn is_empty(&self) -> bool {
        self.from == self.end
    }

    /// Begins anew, with room for `bytes`. What was unsent is gone.
    pub(super) fn begin(&mut self, bytes: usize) {
        (self.from, self.end) = (0, 0);
        if self.memory.len() < bytes {
            self.memory.resize(bytes, 0);
        }
    }

    /// What is behind the bytes that are there.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.memory[self.end..]
    }

    /// `count` bytes of the room, or all of it, are filled.
    pub(super) fn fill(&mut self, count: usize) {
        self.end = (self.end + count).min(self.memory.len());
    }

    /// Adds bytes behind, whatever room there is.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.memory.truncate(self.end);
        self.memory.extend_from_slice(bytes);
        self.end = self.memory.len();
    }

    /// `count` more bytes are sent.
    pub(super) fn sent(&mut self, count: usize) {
        self.from = (self.from + count).min(self.end);
    }

    /// Gives up what is unsent, and the memory.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_order_and_memory_stays() {
        let mut staged = Staged::default();
        staged.push(b"GET /");
        staged.sent(4);
        staged.push(b"abc");
        assert_eq!(staged.unsent(), b"/abc");
        staged.sent(100);
        assert!(staged.is_empty());
        staged.begin(16);
        assert_eq!(staged.room().len(), 16);
        staged.room()[..3].copy_from_slice(b"xyz");
        staged.fill(3);
        assert_eq!(staged.unsent(), b"xyz");
        assert_eq!(staged.room().len(), 13);
        staged.fill(100);
        assert_eq!(staged.unsent().len(), 16);
        staged.clear();
        assert!(staged.is_empty() && staged.room().is_empty());
    }
}
