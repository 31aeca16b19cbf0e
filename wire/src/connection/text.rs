//! A text message on its way in. It grows with the bytes that come, whatever length its frame
//! declares, and is checked to be UTF-8 as they come, so that what is not ends at its first wrong
//! byte (RFC 6455, section 8.1).

use super::websocket::{FrameError, apply_mask};

/// The bytes of a text message so far.
#[derive(Debug, Default)]
pub struct Text {
    bytes: Vec<u8>,
    /// So many bytes are whole characters; at most three that begin another may follow.
    checked: usize,
}

impl Text {
    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Takes more bytes, which begin `phase` bytes into the payload of a frame with this mask.
    pub fn push(&mut self, from: &[u8], mask: Option<[u8; 4]>, phase: usize) -> Result<(), FrameError> {
        let before = self.bytes.len();
        self.bytes.extend_from_slice(from);
        if let Some(mask) = mask {
            apply_mask(&mut self.bytes[before..], mask, phase);
        }
        match str::from_utf8(&self.bytes[self.checked..]) {
            Ok(_) => self.checked = self.bytes.len(),
            Err(error) if error.error_len().is_none() => self.checked += error.valid_up_to(),
            Err(_) => return Err(FrameError::NotUtf8),
        }
        Ok(())
    }

    /// The whole message.
    pub fn finish(self) -> Result<Vec<u8>, FrameError> {
        if self.checked < self.bytes.len() { Err(FrameError::NotUtf8) } else { Ok(self.bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(pieces: &[&[u8]]) -> Result<Vec<u8>, FrameError> {
        let mut text = Text::default();
        for piece in pieces {
            text.push(piece, None, 0)?;
        }
        text.finish()
    }

    #[test]
    fn what_is_wrong_ends_at_its_first_byte() {
        let mut text = Text::default();
        text.push(b"\xce\xba\xf4", None, 0).expect("may become a character");
        assert_eq!(text.push(b"\x90", None, 0), Err(FrameError::NotUtf8), "over U+10FFFF");
        for wrong in [&b"\xc0"[..], b"\xed\xa0", b"\xff", b"a\x80", b"\xe2\x82\x28"] {
            assert_eq!(whole(&[wrong]), Err(FrameError::NotUtf8), "{}", wrong.escape_ascii());
        }
        assert_eq!(whole(&[b"\xe2\x82"]), Err(FrameError::NotUtf8), "the end is missing");
        assert_eq!(whole(&[b"\xe2", b"\x82", b"\xac"]), Ok("\u{20ac}".into()));
    }

    #[test]
    fn it_costs_what_has_come() {
        let mut text = Text::default();
        assert_eq!(text.bytes.capacity(), 0);
        text.push(&[b'a'; 100], None, 0).expect("text");
        assert!(text.bytes.capacity() <= 200);
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            bytes in proptest::collection::vec(prop_oneof![any::<u8>(), 0x80u8..0xc0, 0xe0u8..0xf5], 0..12),
            character: char, at in 0usize..12, size in 1usize..5,
        ) {
            let mut bytes = bytes;
            let at = at.min(bytes.len());
            bytes.splice(at..at, character.to_string().bytes());
            let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
            prop_assert_eq!(whole(&pieces).is_ok(), str::from_utf8(&bytes).is_ok());
        }
    }
}
