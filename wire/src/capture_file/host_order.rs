//! Link-layer headers that the kernel writes in the byte order of the capturing host.
//!
//! A reader of the file takes them to be in the file's byte order (tcpdump.org/linktypes.html). As
//! everything is little-endian from here on, those of big-endian files are turned around, as
//! libpcap and Wireshark do when they read such a file.

/// Cooked capture of Linux, which may hold CAN frames.
const LINUX_SLL: u16 = 113;
/// Linux USB with the header of 48 bytes.
const USB_LINUX: u16 = 189;
/// Linux USB with the header of 64 bytes.
const USB_LINUX_MMAPPED: u16 = 220;
/// The netfilter log.
const NFLOG: u16 = 239;
/// Cooked capture of Linux, second version.
const LINUX_SLL2: u16 = 276;

/// Turns the headers of a big-endian frame around, as far as they were captured.
pub(super) fn to_little_endian(link_type: u16, frame: &mut [u8]) {
    match link_type {
        LINUX_SLL => turn_can_id(frame, 14, 16),
        LINUX_SLL2 => turn_can_id(frame, 0, 20),
        USB_LINUX => turn_usb(frame, false),
        USB_LINUX_MMAPPED => turn_usb(frame, true),
        NFLOG => turn_nflog(frame),
        _ => {}
    }
}

/// Turns the field round; false, when it was not captured in full.
fn turn(frame: &mut [u8], at: usize, bytes: usize) -> bool {
    match frame.get_mut(at..at.saturating_add(bytes)) {
        Some(field) => {
            field.reverse();
            true
        }
        None => false,
    }
}

/// The CAN id behind a cooked header whose protocol is CAN or CAN FD (linux/if_ether.h).
fn turn_can_id(frame: &mut [u8], protocol_at: usize, header_bytes: usize) {
    let protocol = frame.get(protocol_at..protocol_at + 2);
    if matches!(protocol, Some([0x00, 0x0c | 0x0d])) {
        turn(frame, header_bytes, 4);
    }
}

/// `struct mon_bin_hdr` of Documentation/usb/usbmon.rst.
fn turn_usb(frame: &mut [u8], long: bool) {
    const HEADER: [(usize, usize); 7] = [(0, 8), (12, 2), (16, 8), (24, 4), (28, 4), (32, 4), (36, 4)];
    const TRANSFER_TYPE_AT: usize = 9;
    const ISOCHRONOUS: u8 = 0;
    const LONG_BYTES: usize = 64;
    const DESCRIPTOR_BYTES: usize = 16;

    for (at, bytes) in HEADER {
        if !turn(frame, at, bytes) {
            return;
        }
    }
    let isochronous = frame[TRANSFER_TYPE_AT] == ISOCHRONOUS; // the header's first 40 bytes are there
    // Error count and number of descriptors; for other transfers the setup packet lies here.
    if isochronous && !(turn(frame, 40, 4) && turn(frame, 44, 4)) {
        return;
    }
    if !long {
        return;
    }
    for at in [48, 52, 56, 60] {
        if !turn(frame, at, 4) {
            return;
        }
    }
    if isochronous {
        let count = u32::from_le_bytes([frame[44], frame[45], frame[46], frame[47]]);
        // The frame's end bounds the loop, whatever the count.
        for index in 0..count as usize {
            let at = LONG_BYTES.saturating_add(index.saturating_mul(DESCRIPTOR_BYTES));
            if !(turn(frame, at, 4) && turn(frame, at + 4, 4) && turn(frame, at + 8, 4)) {
                return;
            }
        }
    }
}

/// Length and type of each TLV behind the header of 4 bytes, of which only version 0 is known.
fn turn_nflog(frame: &mut [u8]) {
    const HEADER_BYTES: usize = 4;
    const VERSION_AT: usize = 1;
    const TLV_HEADER_BYTES: usize = 4;

    if frame.get(VERSION_AT) != Some(&0) {
        return;
    }
    let mut at = HEADER_BYTES;
    while turn(frame, at, 2) && turn(frame, at + 2, 2) {
        let length = usize::from(u16::from_le_bytes([frame[at], frame[at + 1]]));
        if length < TLV_HEADER_BYTES {
            return;
        }
        at += length.next_multiple_of(4);
    }
}
