//! The link type of a file and what libpcap calls it.
//!
//! A file names its link layer by a LINKTYPE, which is the same everywhere; `pcap_open_dead` wants a DLT, and a few of
//! those differ between systems. The two agree but for the values below. (libpcap, pcap-common.c)

use std::ffi::c_int;

/// The DLT of this system for a LINKTYPE.
///
/// A number without an entry is handed on as it is: it agrees, or a newer libpcap knows it, or libpcap's own answer is
/// the best there is.
pub(crate) fn to_dlt(link_type: u16) -> c_int {
    // LINKTYPE_ATM_RFC1483 and the following, as assigned for files
    match link_type {
        100 => 11,
        101 if cfg!(target_os = "openbsd") => 14,
        101 => 12,
        102 => 15,
        103 => 16,
        106 => 19,
        // LINKTYPE_PFSYNC
        246 if cfg!(target_os = "freebsd") => 121,
        246 if cfg!(not(any(target_os = "linux", windows))) => 18,
        // LINKTYPE_PKTAP
        258 if cfg!(target_vendor = "apple") => 149,
        same => c_int::from(same),
    }
}

#[cfg(test)]
mod tests {
    use super::to_dlt;

    #[test]
    fn differing_values() {
        let pairs =
            [(0, 0), (1, 1), (50, 50), (100, 11), (102, 15), (103, 16), (106, 19), (113, 113), (276, 276)];
        for (link_type, dlt) in pairs {
            assert_eq!(to_dlt(link_type), dlt, "LINKTYPE {link_type}");
        }
        #[cfg(any(target_os = "linux", windows, target_vendor = "apple"))]
        assert_eq!(to_dlt(101), 12);
    }
}
