//! Gathering: frames of a ring become Enhanced Packet Blocks in a packer.

use wire::pack::PackError;
use wire::pcapng::{OPT_EPB_FLAGS, flags};

use super::Output;
use crate::ring::{Direction, Frame};

/// Gathers frames into an output's packer as Enhanced Packet Blocks.
pub(super) struct Gather<'a> {
    pub(super) output: &'a mut Output,
    pub(super) snaplen: usize,
    pub(super) cut_packets: &'a mut u64,
    pub(super) last_time_ns: &'a mut u64,
}

impl Gather<'_> {
    #[inline]
    pub(super) fn push(&mut self, frame: &Frame<'_>) -> Result<(), PackError> {
        let mut options = [0; 8];
        options[..2].copy_from_slice(&OPT_EPB_FLAGS.to_le_bytes());
        options[2] = 4;
        options[4..].copy_from_slice(&packet_flags(frame).to_le_bytes());
        let data = frame.data;
        let (captured_len, original_len) = match frame.vlan {
            // The kernel took the tag out of the frame: it goes back between the addresses and
            // the type. Where not even the addresses were captured there is no place for it.
            Some(tag) if data.len() >= 12 => {
                let mut bytes = [0; 4];
                bytes[..2].copy_from_slice(&tag.tpid.to_be_bytes());
                bytes[2..].copy_from_slice(&tag.tci.to_be_bytes());
                let (addresses, rest) = data.split_at(12);
                let addresses = &addresses[..addresses.len().min(self.snaplen)];
                let tag = &bytes[..self.snaplen.saturating_sub(12).min(4)];
                let rest = &rest[..self.snaplen.saturating_sub(16).min(rest.len())];
                let original_len = frame.original_len.saturating_add(4);
                self.output.packer.push(0, frame.time_ns, original_len, [addresses, tag, rest], &options)?;
                (addresses.len() + tag.len() + rest.len(), original_len)
            }
            _ => {
                let data = &data[..data.len().min(self.snaplen)];
                self.output.packer.push(0, frame.time_ns, frame.original_len, [data], &options)?;
                (data.len(), frame.original_len)
            }
        };
        *self.cut_packets += u64::from((captured_len as u64) < u64::from(original_len));
        *self.last_time_ns = frame.time_ns;
        Ok(())
    }
}

/// The flags word of a frame (pcapng draft, section 4.3.1).
#[inline]
fn packet_flags(frame: &Frame<'_>) -> u32 {
    let direction = match frame.direction {
        Direction::Host => flags::INBOUND | flags::UNICAST,
        Direction::Broadcast => flags::INBOUND | flags::BROADCAST,
        Direction::Multicast => flags::INBOUND | flags::MULTICAST,
        Direction::OtherHost => flags::INBOUND | flags::PROMISCUOUS,
        Direction::Outgoing => flags::OUTBOUND,
    };
    let mut word = direction;
    if frame.checksum_not_ready {
        word |= flags::CHECKSUM_NOT_READY;
    }
    if frame.checksum_valid {
        word |= flags::CHECKSUM_VALID;
    }
    if frame.gso {
        word |= flags::TCP_SEGMENTATION_OFFLOADED;
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::VlanTag;
    use wire::block::{Epoch, StreamKey};
    use wire::pack::{Compression, Packer};
    use wire::pcapng::Epbs;
    use wire::pool::Pool;

    fn frame(data: &[u8], vlan: Option<VlanTag>) -> Frame<'_> {
        Frame {
            time_ns: 7,
            original_len: data.len() as u32,
            data,
            vlan,
            direction: Direction::Outgoing,
            checksum_not_ready: true,
            checksum_valid: false,
            gso: false,
        }
    }

    fn gathered(frame: &Frame<'_>, snaplen: usize) -> (Vec<u8>, u32, u64) {
        let key = StreamKey { epoch: Epoch(1), stream: 0 };
        let packer = Packer::new(key, Pool::new(1 << 22), 1 << 16, Compression::None);
        let mut output = Output::new(packer, None);
        let (mut cut_packets, mut last_time_ns) = (0, 0);
        let mut gather = Gather {
            output: &mut output,
            snaplen,
            cut_packets: &mut cut_packets,
            last_time_ns: &mut last_time_ns,
        };
        while let Err(error) = gather.push(frame) {
            assert_eq!(error, PackError::NoBuffer);
            assert!(gather.output.packer.prepare());
        }
        let block = output.packer.seal().expect("a frame");
        let mut body = Vec::new();
        block.unpack_into(&mut body).expect("ours");
        let epb = Epbs::new(&body, 1).next().expect("one").expect("whole");
        assert_eq!(epb.options[..8], [2, 0, 4, 0, 2, 2, 0, 0]);
        (epb.data.to_vec(), epb.original_len, cut_packets)
    }

    #[test]
    fn a_tag_goes_back_where_it_was() {
        let data: Vec<u8> = (0..20).collect();
        let tag = Some(VlanTag { tpid: 0x88a8, tci: 0xbabc });
        let tagged = [&data[..12], &[0x88, 0xa8, 0xba, 0xbc], &data[12..]].concat();
        assert_eq!(gathered(&frame(&data, tag), 262_144), (tagged.clone(), 24, 0));
        assert_eq!(gathered(&frame(&data, None), 262_144), (data.clone(), 20, 0));
        // The snapshot length bounds what comes out, tag included.
        for snaplen in [1, 11, 12, 13, 15, 16, 17, 23] {
            assert_eq!(gathered(&frame(&data, tag), snaplen), (tagged[..snaplen].to_vec(), 24, 1));
        }
        assert_eq!(gathered(&frame(&data, tag), 24), (tagged, 24, 0));
        // Without the addresses there is no place for it.
        assert_eq!(gathered(&frame(&data[..11], tag), 100), (data[..11].to_vec(), 11, 0));
    }

    #[test]
    fn a_frame_too_long_is_cut_and_counted() {
        let data = [1; 300];
        assert_eq!(gathered(&frame(&data, None), 64), (data[..64].to_vec(), 300, 1));
    }
}
