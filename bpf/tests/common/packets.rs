//! Frames as a network carries them and as it should not, near the traffic the exclusions are about.

use std::net::{IpAddr, SocketAddr};

use bpf::{Exclusion, LinkLayer};
use proptest::prelude::*;
use proptest::sample::select;

pub const PORTS: [u16; 4] = [443, 40_000, 53, 0];
const V4: [&str; 3] = ["192.0.2.7", "192.0.2.8", "10.0.0.1"];
const V6: [&str; 3] = ["2001:db8::7", "2001:db8::8", "2001:db8:0:1::7"];

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address of the lists above")
}

/// Ethernet with tags, or raw IP, whole, cut off, or noise.
pub fn frame(link: LinkLayer) -> BoxedStrategy<Vec<u8>> {
    let near =
        (network(), tags(), any::<[u8; 12]>()).prop_map(move |((ethertype, packet), tags, addresses)| {
            let mut frame = Vec::new();
            if link == LinkLayer::Ethernet {
                frame.extend(addresses);
                for tag in tags {
                    frame.extend(tag.to_be_bytes());
                    frame.extend([0x20, 5]);
                }
                frame.extend(ethertype.to_be_bytes());
            }
            frame.extend(packet);
            frame
        });
    let near = near.boxed();
    let cut = (near.clone(), any::<prop::sample::Index>()).prop_map(|(mut frame, length)| {
        frame.truncate(length.index(frame.len() + 1));
        frame
    });
    let padded = near.clone().prop_map(|mut frame| {
        frame.resize(frame.len().max(60), 0);
        frame
    });
    let noise = prop::collection::vec(any::<u8>(), 0..100);
    prop_oneof![4 => near, 3 => cut, 1 => padded, 1 => noise].boxed()
}

fn tags() -> impl Strategy<Value = Vec<u16>> {
    prop::collection::vec(select(vec![0x8100_u16, 0x88a8, 0x9100]), 0..4)
}

/// Ethertype and packet.
fn network() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let wrong_ethertype = (prop_oneof![v4(), v6()], select(vec![0x0800_u16, 0x86dd, 0x0806]))
        .prop_map(|((_, packet), ethertype)| (ethertype, packet));
    let arp = any::<[u8; 28]>().prop_map(|packet| (0x0806, packet.to_vec()));
    prop_oneof![6 => v4(), 6 => v6(), 1 => wrong_ethertype, 1 => arp]
}

fn ports_and_more() -> impl Strategy<Value = Vec<u8>> {
    (select(&PORTS[..]), select(&PORTS[..]), any::<[u8; 16]>()).prop_map(|(source, destination, more)| {
        [&source.to_be_bytes()[..], &destination.to_be_bytes(), &more].concat()
    })
}

fn v4() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let ihl = prop_oneof![4 => Just(5_u8), 3 => 6_u8..16, 1 => 0_u8..5];
    let protocol = prop_oneof![6 => Just(6_u8), 1 => Just(17), 1 => any::<u8>()];
    let fragment = prop_oneof![6 => select(vec![0_u16, 0x4000, 0x2000, 0x8000]), 1 => any::<u16>()];
    let addresses = (select(&V4[..]), select(&V4[..]));
    (ihl, protocol, fragment, addresses, any::<[u8; 40]>(), ports_and_more()).prop_map(
        |(ihl, protocol, fragment, (source, destination), options, transport)| {
            let mut packet = vec![0x40 | ihl, 0, 0, 60, 1, 2];
            packet.extend(fragment.to_be_bytes());
            packet.extend([64, protocol, 0, 0]);
            for text in [source, destination] {
                let IpAddr::V4(ip) = address(text) else { unreachable!("V4 has only such") };
                packet.extend(ip.octets());
            }
            packet.extend(&options[..usize::from(ihl.saturating_sub(5)) * 4]);
            packet.extend(transport);
            (0x0800, packet)
        },
    )
}

fn v6() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let next = prop_oneof![4 => Just(6_u8), 4 => Just(0), 1 => select(vec![17_u8, 43, 44, 60])];
    let after = prop_oneof![4 => Just(6_u8), 1 => select(vec![0_u8, 17, 44])];
    let units = prop_oneof![4 => 0_u8..4, 1 => any::<u8>()];
    let addresses = (select(&V6[..]), select(&V6[..]));
    (next, after, units, addresses, ports_and_more()).prop_map(
        |(next, after, units, (source, destination), transport)| {
            let mut packet = vec![0x60, 0, 0, 0, 0, 20, next, 64];
            for text in [source, destination] {
                let IpAddr::V6(ip) = address(text) else { unreachable!("V6 has only such") };
                packet.extend(ip.octets());
            }
            if next == 0 {
                packet.extend([after, units, 1, 4, 0, 0, 0, 0]);
                // A length beyond 3 is one the frame does not have.
                packet.extend(vec![0; usize::from(units % 4) * 8]);
            }
            packet.extend(transport);
            (0x86dd, packet)
        },
    )
}

pub fn exclusion() -> impl Strategy<Value = Exclusion> {
    let ip = prop_oneof![
        select(&V4[..2]).prop_map(address),
        select(&V6[..2]).prop_map(address),
        Just(address("::ffff:192.0.2.7")),
    ];
    let flow = (ip, select(&PORTS[..]), select(&PORTS[..]))
        .prop_map(|(ip, port, local_port)| Exclusion::Flow { relay: SocketAddr::new(ip, port), local_port });
    prop_oneof![4 => flow, 1 => select(&PORTS[..]).prop_map(Exclusion::Port)]
}

/// One TCP segment in an Ethernet frame, between two sockets of one IP version.
pub fn segment(source: &str, destination: &str) -> Vec<u8> {
    let parse = |text: &str| text.parse::<SocketAddr>().expect("address and port");
    let (source, destination) = (parse(source), parse(destination));
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
            frame.extend(from.octets());
            frame.extend(to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
            frame.extend(from.octets());
            frame.extend(to.octets());
        }
        _ => panic!("two versions of IP"),
    }
    frame.extend(source.port().to_be_bytes());
    frame.extend(destination.port().to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}
