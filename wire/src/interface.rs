//! The description of an interface that packets were seen on, as pcapng's Interface Description
//! Block carries it (draft-ietf-opsawg-pcapng, section 4.2) and as a stream's table holds it.

use serde::{Deserialize, Serialize};

/// One entry of a stream's table of interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Name as the capture host knows it (`eth0`), or as the capture file gives it. May be empty.
    pub name: String,
    /// Free description (`if_description`), if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// LINKTYPE value of the frames (1 Ethernet, 101 raw IP, ...), as in pcapng; not an ARPHRD.
    pub link_type: u16,
    /// Most bytes kept of a frame; 0 is no limit.
    pub snaplen: u32,
    /// Capture filter in pcap-filter syntax (`if_filter`), if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Operating system of the capture host (`if_os`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// Hardware of the interface (`if_hardware`): driver, bus address, model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware: Option<String>,
    /// Link speed in bits a second (`if_speed`), if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed_bits: Option<u64>,
    /// Link-layer address (`if_MACaddr`), if it has six bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<[u8; 6]>,
    /// Length of the frame check sequence at the end of each frame, in bits (`if_fcslen`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fcs_bits: Option<u8>,
    /// Seconds to add to every time stamp (`if_tsoffset`); 0 for live capture.
    #[serde(skip_serializing_if = "is_zero")]
    pub ts_offset_s: i64,
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}
