//! Keeps our own traffic out of the capture: a prefix before the filter of the user.
//!
//! A sniffer that captured the connection it sends on would send what it captured, and so on without end. The prefix
//! is `not (own) and (filter)` written down so that
//!
//! * the filter is not touched: jumps are relative, and the prefix ends with A and X at 0, as the filter finds them
//!   without it. Scratch memory is overwritten, which no program the kernel takes can see: it must write a word before
//!   it reads it;
//! * no load reaches past the frame. Such a load ends the whole program with a rejection, and a short frame of
//!   somebody else would be lost. Every load comes after a test of the length, and a frame too short goes on to the
//!   filter;
//! * each exclusion ends in a rejection of its own, so that no conditional jump is far, however many there are.
//!
//! What is recognised: TCP directly over IPv4 with any options, and over IPv6 directly or behind one hop-by-hop header
//! (BIG TCP has one). On Ethernet up to two VLAN tags in the data may come first; a tag in metadata is not in the data.
//! Fragments of IPv4 but the first, and of IPv6 all, have no ports to go by and pass. So does what is tunnelled.
//!
//! ```text
//!   find the IP header ──> X = its offset, 14, 18 or 22
//!      │ IPv4: checks, ports ──> flow? port? ... each: ret #0 │
//!      │ IPv6: checks, ports ──> flow? port? ... each: ret #0 │
//!      └─ anything else ──────────────────────────────────────┴─> A = X = 0 ──> the filter
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::assembler::{Assembler, Condition, Label, To};
use crate::instruction::{
    ABS, ADD, ALU, AND, B, H, IMM, IND, K, LD, LDX, LEN, LSH, MEM, MISC, RET, RSH, ST, STX, SUB, TAX, W, X,
};
use crate::program::Program;

/// What of our own traffic must never be captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exclusion {
    /// One connection over TCP, both directions.
    Flow {
        /// Address and port of the other end, as they are on the interface, after any translation on this host. An
        /// IPv4-mapped IPv6 address is the IPv4 address it maps.
        relay: SocketAddr,
        /// Our port. Our address is not compared: it may be translated on the way.
        local_port: u16,
    },
    /// Every TCP segment from or to a port, whatever its addresses: for a relay on this host, over `lo`.
    Port(u16),
}

/// Where a frame has its IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLayer {
    /// Ethernet, with up to two VLAN tags in the data.
    Ethernet,
    /// The frame is an IP packet; its first four bits tell the version.
    RawIp,
    /// Anything else. Nothing can be excluded, and no frame is.
    Other,
}

impl LinkLayer {
    /// The link layer of a LINKTYPE: ETHERNET, or RAW, IPV4 and IPV6.
    pub fn of(link_type: u16) -> LinkLayer {
        match link_type {
            1 => LinkLayer::Ethernet,
            101 | 228 | 229 => LinkLayer::RawIp,
            _ => LinkLayer::Other,
        }
    }
}

/// Puts `exclusions` before `program`: our own frames are rejected, everything else goes on to `program` unchanged.
///
/// The result can be longer than [`Program::MAX_INSTRUCTIONS`] if `program` nearly is, or with more than a hundred
/// exclusions; the kernel refuses it then.
pub fn exclude(program: &Program, link: LinkLayer, exclusions: &[Exclusion]) -> Program {
    if exclusions.is_empty() || link == LinkLayer::Other {
        return program.clone();
    }
    let (v4, v6) = tests_by_version(exclusions);
    let mut asm = Assembler::default();
    let [to_v4, to_v6, go_on] = [asm.label(), asm.label(), asm.label()];
    match link {
        LinkLayer::Ethernet => find_ip_in_ethernet(&mut asm, to_v4, to_v6, go_on),
        LinkLayer::RawIp | LinkLayer::Other => find_raw_ip(&mut asm, to_v4, to_v6, go_on),
    }
    asm.place(to_v4);
    if !v4.is_empty() {
        find_ports_in_v4(&mut asm, go_on);
        for test in &v4 {
            test.emit(&mut asm);
        }
    }
    asm.goto(go_on);
    asm.place(to_v6);
    if !v6.is_empty() {
        find_ports_in_v6(&mut asm, go_on);
        for test in &v6 {
            test.emit(&mut asm);
        }
    }
    asm.place(go_on);
    asm.emit(LDX | W | IMM, 0);
    asm.emit(LD | W | IMM, 0);
    let mut instructions = asm.finish();
    instructions.extend_from_slice(program.instructions());
    Program::new(instructions)
}

/// Scratch memory: offset of the IP header, and the word of both ports, source in the upper half.
const IP_OFFSET: u32 = 0;
const PORTS: u32 = 1;

const TCP: u32 = 6;
const HOP_BY_HOP: u32 = 0;
const V4_HEADER_BYTES: u32 = 20;
const V6_HEADER_BYTES: u32 = 40;
/// Of the TCP header only the ports are needed.
const PORT_BYTES: u32 = 4;

const ETHERTYPE_V4: u32 = 0x0800;
const ETHERTYPE_V6: u32 = 0x86dd;
/// 802.1Q, 802.1ad, and the number QinQ had before it.
const ETHERTYPES_TAG: [u32; 3] = [0x8100, 0x88a8, 0x9100];
const TAG_BYTES: u32 = 4;
const MOST_TAGS: u32 = 2;

/// Leaves the offset of the IP header in X.
fn find_ip_in_ethernet(asm: &mut Assembler, to_v4: Label, to_v6: Label, go_on: Label) {
    let [near_go_on, near_v6, dispatch] = [asm.label(), asm.label(), asm.label()];
    for tags in 0..=MOST_TAGS {
        let header_bytes = 14 + tags * TAG_BYTES;
        asm.emit(LD | W | LEN, 0);
        asm.require(Condition::AtLeast(header_bytes), near_go_on);
        asm.emit(LDX | W | IMM, header_bytes);
        asm.emit(LD | H | ABS, header_bytes - 2);
        if tags < MOST_TAGS {
            let tag = asm.label();
            for ethertype in ETHERTYPES_TAG {
                asm.branch(Condition::Equals(ethertype), tag, To::Next);
            }
            // Equals itself: a jump to the dispatch, within reach of a conditional one.
            asm.goto(dispatch);
            asm.place(tag);
        }
    }
    asm.place(dispatch);
    asm.branch(Condition::Equals(ETHERTYPE_V6), near_v6, To::Next);
    let near_v4 = asm.label();
    asm.branch(Condition::Equals(ETHERTYPE_V4), near_v4, near_go_on);
    asm.place(near_v6);
    asm.goto(to_v6);
    asm.place(near_go_on);
    asm.goto(go_on);
    asm.place(near_v4);
    asm.goto(to_v4);
}

/// Leaves the offset of the IP header, 0, in X.
fn find_raw_ip(asm: &mut Assembler, to_v4: Label, to_v6: Label, go_on: Label) {
    let [near_go_on, near_v6, near_v4] = [asm.label(), asm.label(), asm.label()];
    asm.emit(LDX | W | IMM, 0);
    asm.emit(LD | W | LEN, 0);
    asm.require(Condition::AtLeast(1), near_go_on);
    asm.emit(LD | B | ABS, 0);
    asm.emit(ALU | AND | K, 0xf0);
    asm.branch(Condition::Equals(0x60), near_v6, To::Next);
    asm.branch(Condition::Equals(0x40), near_v4, near_go_on);
    asm.place(near_v6);
    asm.goto(to_v6);
    asm.place(near_go_on);
    asm.goto(go_on);
    asm.place(near_v4);
    asm.goto(to_v4);
}

/// With the IP header at X, goes to `otherwise` unless `bytes` follow from there. X is at most the length.
fn require_bytes(asm: &mut Assembler, bytes: u32, otherwise: Label) {
    asm.emit(LD | W | LEN, 0);
    asm.emit(ALU | SUB | X, 0);
    asm.require(Condition::AtLeast(bytes), otherwise);
}

fn require_version(asm: &mut Assembler, version: u32, otherwise: Label) {
    asm.emit(LD | B | IND, 0);
    asm.emit(ALU | AND | K, 0xf0);
    asm.require(Condition::Equals(version << 4), otherwise);
}

/// Leaves ports and the offset of the IP header in memory, the latter in X too; goes on if it is no TCP.
fn find_ports_in_v4(asm: &mut Assembler, go_on: Label) {
    let [not_ours, ours] = [asm.label(), asm.label()];
    require_bytes(asm, V4_HEADER_BYTES, not_ours);
    require_version(asm, 4, not_ours);
    asm.emit(LD | B | IND, 9);
    asm.require(Condition::Equals(TCP), not_ours);
    asm.emit(LD | H | IND, 6);
    asm.branch(Condition::AnyBit(0x1fff), not_ours, To::Next);
    asm.emit(LD | B | IND, 0);
    asm.emit(ALU | AND | K, 0x0f);
    asm.require(Condition::AtLeast(5), not_ours);
    asm.emit(ALU | LSH | K, 2);
    load_ports(asm, not_ours);
    asm.goto(ours);
    asm.place(not_ours);
    asm.goto(go_on);
    asm.place(ours);
}

/// As [`find_ports_in_v4`].
fn find_ports_in_v6(asm: &mut Assembler, go_on: Label) {
    let [not_ours, ours, plain, have_header_bytes] = [asm.label(), asm.label(), asm.label(), asm.label()];
    require_bytes(asm, V6_HEADER_BYTES, not_ours);
    require_version(asm, 6, not_ours);
    asm.emit(LD | B | IND, 6);
    asm.branch(Condition::Equals(TCP), plain, To::Next);
    asm.require(Condition::Equals(HOP_BY_HOP), not_ours);
    require_bytes(asm, V6_HEADER_BYTES + 2, not_ours);
    asm.emit(LD | B | IND, V6_HEADER_BYTES);
    asm.require(Condition::Equals(TCP), not_ours);
    asm.emit(LD | B | IND, V6_HEADER_BYTES + 1);
    asm.emit(ALU | ADD | K, 1);
    asm.emit(ALU | LSH | K, 3);
    asm.emit(ALU | ADD | K, V6_HEADER_BYTES);
    asm.goto(have_header_bytes);
    asm.place(plain);
    asm.emit(LD | W | IMM, V6_HEADER_BYTES);
    asm.place(have_header_bytes);
    load_ports(asm, not_ours);
    asm.goto(ours);
    asm.place(not_ours);
    asm.goto(go_on);
    asm.place(ours);
}

/// With the bytes of the IP headers in A and their offset in X, stores the ports that follow.
fn load_ports(asm: &mut Assembler, not_ours: Label) {
    asm.emit(STX, IP_OFFSET);
    asm.emit(ALU | ADD | X, 0);
    asm.emit(MISC | TAX, 0);
    asm.emit(LD | W | LEN, 0);
    asm.require(Condition::AtLeastX, not_ours);
    asm.emit(ALU | SUB | X, 0);
    asm.require(Condition::AtLeast(PORT_BYTES), not_ours);
    asm.emit(LD | W | IND, 0);
    asm.emit(ST, PORTS);
    asm.emit(LDX | W | MEM, IP_OFFSET);
}

/// An exclusion for one version of IP. `N` words make an address.
enum Test<const N: usize> {
    Flow { address: [u32; N], relay_port: u16, local_port: u16 },
    Port(u16),
}

fn tests_by_version(exclusions: &[Exclusion]) -> (Vec<Test<1>>, Vec<Test<4>>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for &exclusion in exclusions {
        match exclusion {
            Exclusion::Port(port) => {
                v4.push(Test::Port(port));
                v6.push(Test::Port(port));
            }
            Exclusion::Flow { relay, local_port } => match relay.ip().to_canonical() {
                IpAddr::V4(ip) => {
                    v4.push(Test::Flow { address: words_of_v4(ip), relay_port: relay.port(), local_port })
                }
                IpAddr::V6(ip) => {
                    v6.push(Test::Flow { address: words_of_v6(ip), relay_port: relay.port(), local_port })
                }
            },
        }
    }
    (v4, v6)
}

fn words_of_v4(address: Ipv4Addr) -> [u32; 1] {
    [address.to_bits()]
}

fn words_of_v6(address: Ipv6Addr) -> [u32; 4] {
    // The low 32 bits of each shift.
    [96, 64, 32, 0].map(|shift| (address.to_bits() >> shift) as u32)
}

impl<const N: usize> Test<N> {
    /// Offset of the source address in the header. The destination follows it.
    const SOURCE: u32 = if N == 1 { 12 } else { 8 };
    const DESTINATION: u32 = Self::SOURCE + 4 * N as u32;

    /// Rejects what the exclusion means and goes on to the next test with everything else. X stays.
    fn emit(&self, asm: &mut Assembler) {
        let [reject, next] = [asm.label(), asm.label()];
        match self {
            Test::Flow { address, relay_port, local_port } => {
                let pair = |source: u16, destination: u16| u32::from(source) << 16 | u32::from(destination);
                let sent = asm.label();
                require_ports(asm, pair(*relay_port, *local_port), sent);
                require_address(asm, address, Self::SOURCE, sent);
                asm.goto(reject);
                // Loaded again rather than kept: with equal ports both directions have the same word.
                asm.place(sent);
                require_ports(asm, pair(*local_port, *relay_port), next);
                require_address(asm, address, Self::DESTINATION, next);
            }
            Test::Port(port) => {
                asm.emit(LD | W | MEM, PORTS);
                asm.emit(ALU | RSH | K, 16);
                asm.branch(Condition::Equals(u32::from(*port)), reject, To::Next);
                asm.emit(LD | W | MEM, PORTS);
                asm.emit(ALU | AND | K, 0xffff);
                asm.require(Condition::Equals(u32::from(*port)), next);
            }
        }
        asm.place(reject);
        asm.emit(RET | K, 0);
        asm.place(next);
    }
}

fn require_ports(asm: &mut Assembler, ports: u32, otherwise: Label) {
    asm.emit(LD | W | MEM, PORTS);
    asm.require(Condition::Equals(ports), otherwise);
}

fn require_address(asm: &mut Assembler, address: &[u32], offset: u32, otherwise: Label) {
    for (&word, at) in address.iter().zip((offset..).step_by(4)) {
        asm.emit(LD | W | IND, at);
        asm.require(Condition::Equals(word), otherwise);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_to_exclude_is_no_prefix() {
        let program = Program::accept_all(96);
        assert_eq!(exclude(&program, LinkLayer::Ethernet, &[]), program);
        assert_eq!(exclude(&program, LinkLayer::Other, &[Exclusion::Port(443)]), program);
    }

    #[test]
    fn registers_are_zero_before_the_filter() {
        let returns_a_plus_x = Program::new(vec![
            crate::Instruction::statement(ALU | ADD | X, 0),
            crate::Instruction::statement(ALU | ADD | K, 5),
            crate::Instruction::statement(RET | crate::instruction::A, 0),
        ]);
        let excluding = exclude(&returns_a_plus_x, LinkLayer::RawIp, &[Exclusion::Port(443)]);
        let mut packet = [0_u8; 40];
        (packet[0], packet[9]) = (0x45, 6);
        for length in 0..packet.len() {
            assert_eq!(excluding.run(&packet[..length], length as u32), 5, "{length} bytes");
        }
    }

    #[test]
    fn many_exclusions_assemble() {
        let exclusions: Vec<_> = (0..60)
            .flat_map(|n| {
                let flow = |ip: &str| Exclusion::Flow {
                    relay: SocketAddr::new(ip.parse().expect("an address"), 443),
                    local_port: 40_000 + n,
                };
                [flow("192.0.2.7"), flow("2001:db8::7"), Exclusion::Port(n)]
            })
            .collect();
        let program = exclude(&Program::accept_all(96), LinkLayer::Ethernet, &exclusions);
        assert!(program.instructions().len() < Program::MAX_INSTRUCTIONS, "{}", program.instructions().len());
        assert_eq!(program.run(&[0; 60], 60), 96);
    }
}
