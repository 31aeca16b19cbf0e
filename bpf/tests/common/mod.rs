//! What the tests of this crate share: the folder of captures, a reader of savefiles, the link types by name.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod packets;

use std::fs;
use std::path::{Path, PathBuf};

/// The folder with the vectors, or `None` with a line that says so.
///
/// `RINGCAST_CAPTURES` names the folder of all captures; the default is beside the checkout.
pub fn vectors() -> Option<PathBuf> {
    let captures = std::env::var_os("RINGCAST_CAPTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures"),
        |folder| PathBuf::from(&folder),
    );
    let folder = captures.join("filters");
    if folder.is_dir() {
        return Some(folder);
    }
    println!("skipped: there is no {}; RINGCAST_CAPTURES names the folder of captures", folder.display());
    None
}

/// Whether filters can be compiled here; a line says so when not.
pub fn has_libpcap() -> bool {
    let found = bpf::library_version().is_some();
    if !found {
        println!("skipped: there is no libpcap here");
    }
    found
}

/// Rows of a table after its heading, as fields.
pub fn rows(path: &Path) -> Vec<Vec<String>> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().skip(1).map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

/// A savefile in the old format, little-endian, times in microseconds: all that the vectors need.
pub struct Savefile {
    pub link_type: u16,
    pub snaplen: u32,
    pub packets: Vec<Packet>,
}

pub struct Packet {
    pub wire_len: u32,
    pub data: Vec<u8>,
}

pub fn read_savefile(path: &Path) -> Savefile {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let word = |at: usize| {
        let word = bytes[at..at + 4].try_into().expect("four bytes");
        u32::from_le_bytes(word)
    };
    assert_eq!(word(0), 0xa1b2_c3d4, "{}", path.display());
    let mut packets = Vec::new();
    let mut at = 24;
    while at < bytes.len() {
        let end = at + 16 + word(at + 8) as usize;
        packets.push(Packet { wire_len: word(at + 12), data: bytes[at + 16..end].to_vec() });
        at = end;
    }
    Savefile { link_type: (word(20) & 0xffff) as u16, snaplen: word(16), packets }
}

/// LINKTYPE of a name of libpcap, for those the vectors use. (libpcap, pcap-common.c)
pub fn link_type(name: &str) -> u16 {
    match name {
        "NULL" => 0,
        "EN10MB" => 1,
        "IEEE802" => 6,
        "ARCNET" => 7,
        "SLIP" => 8,
        "PPP" => 9,
        "FDDI" => 10,
        "PPP_SERIAL" => 50,
        "SYMANTEC_FIREWALL" => 99,
        "ATM_RFC1483" => 100,
        "RAW" => 101,
        "SLIP_BSDOS" => 102,
        "PPP_BSDOS" => 103,
        "C_HDLC" => 104,
        "IEEE802_11" => 105,
        "ATM_CLIP" => 106,
        "FRELAY" => 107,
        "LOOP" => 108,
        "ENC" => 109,
        "LINUX_SLL" => 113,
        "LTALK" => 114,
        "PFLOG" => 117,
        "PRISM_HEADER" => 119,
        "IP_OVER_FC" => 122,
        "SUNATM" => 123,
        "IEEE802_11_RADIO" => 127,
        "ARCNET_LINUX" => 129,
        "JUNIPER_MFR" => 134,
        "APPLE_IP_OVER_IEEE1394" => 138,
        "MTP2" => 140,
        "IEEE802_11_RADIO_AVS" => 163,
        "BACNET_MS_TP" => 165,
        "PPP_PPPD" => 166,
        "PPI" => 192,
        "IPNET" => 226,
        "IPV4" => 228,
        "IPV6" => 229,
        "NETANALYZER" => 240,
        "NETANALYZER_TRANSPARENT" => 241,
        "LINUX_SLL2" => 276,
        "DSA_TAG_BRCM" => 281,
        "DSA_TAG_DSA" => 284,
        _ => panic!("no LINKTYPE is known for {name}"),
    }
}

/// SHA-256 in hexadecimal. (FIPS 180-4)
pub fn sha256(message: &[u8]) -> String {
    // First 32 bits of the fractional parts of the cube roots and square roots of the first primes, found with
    // integers: floor(root(p) * 2^32) modulo 2^32.
    fn root(prime: u128, power: u32, scale_bits: u32) -> u32 {
        let (mut low, mut high) = (0_u128, 1 << 37);
        while high - low > 1 {
            let middle = u128::midpoint(low, high);
            if middle.pow(power) <= prime << scale_bits { low = middle } else { high = middle }
        }
        low as u32
    }
    let primes: Vec<u128> = (2_u128..).filter(|n| (2..*n).all(|d| n % d != 0)).take(64).collect();
    let constants: Vec<u32> = primes.iter().map(|&prime| root(prime, 3, 96)).collect();
    let mut state: Vec<u32> = primes[..8].iter().map(|&prime| root(prime, 2, 64)).collect();

    let mut padded = message.to_vec();
    padded.push(0x80);
    padded.resize((padded.len() + 8).next_multiple_of(64) - 8, 0);
    padded.extend((message.len() as u64 * 8).to_be_bytes());

    for block in padded.chunks_exact(64) {
        let mut w: Vec<u32> = block
            .chunks_exact(4)
            .map(|word| u32::from_be_bytes(word.try_into().expect("four bytes")))
            .collect();
        for t in 16..64 {
            let s0 = w[t - 15].rotate_right(7) ^ w[t - 15].rotate_right(18) ^ w[t - 15] >> 3;
            let s1 = w[t - 2].rotate_right(17) ^ w[t - 2].rotate_right(19) ^ w[t - 2] >> 10;
            w.push(w[t - 16].wrapping_add(s0).wrapping_add(w[t - 7]).wrapping_add(s1));
        }
        let mut v = state.clone();
        for t in 0..64 {
            let s1 = v[4].rotate_right(6) ^ v[4].rotate_right(11) ^ v[4].rotate_right(25);
            let choice = v[4] & v[5] ^ !v[4] & v[6];
            let t1 = v[7].wrapping_add(s1).wrapping_add(choice).wrapping_add(constants[t]).wrapping_add(w[t]);
            let s0 = v[0].rotate_right(2) ^ v[0].rotate_right(13) ^ v[0].rotate_right(22);
            let majority = v[0] & v[1] ^ v[0] & v[2] ^ v[1] & v[2];
            v.rotate_right(1);
            v[4] = v[4].wrapping_add(t1);
            v[0] = t1.wrapping_add(s0).wrapping_add(majority);
        }
        for (sum, word) in state.iter_mut().zip(v) {
            *sum = sum.wrapping_add(word);
        }
    }
    state.iter().map(|word| format!("{word:08x}")).collect()
}
