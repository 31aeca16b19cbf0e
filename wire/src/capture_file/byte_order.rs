//! Integers in the byte order that a file's magic number told.

/// The byte order of a pcap file or of a section of a pcapng file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ByteOrder {
    Little,
    Big,
}

impl ByteOrder {
    /// The integer at `at`; the caller has checked that `bytes` reaches that far.
    pub(super) fn u16(self, bytes: &[u8], at: usize) -> u16 {
        let mut value = [0; 2];
        value.copy_from_slice(&bytes[at..at + 2]);
        match self {
            Self::Little => u16::from_le_bytes(value),
            Self::Big => u16::from_be_bytes(value),
        }
    }

    /// As [`ByteOrder::u16`].
    pub(super) fn u32(self, bytes: &[u8], at: usize) -> u32 {
        let mut value = [0; 4];
        value.copy_from_slice(&bytes[at..at + 4]);
        match self {
            Self::Little => u32::from_le_bytes(value),
            Self::Big => u32::from_be_bytes(value),
        }
    }

    /// As [`ByteOrder::u16`].
    pub(super) fn u64(self, bytes: &[u8], at: usize) -> u64 {
        let mut value = [0; 8];
        value.copy_from_slice(&bytes[at..at + 8]);
        match self {
            Self::Little => u64::from_le_bytes(value),
            Self::Big => u64::from_be_bytes(value),
        }
    }
}
