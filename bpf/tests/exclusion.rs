//! The exclusion against a reading of the same rules that shares nothing with it, on random frames, and on a few
//! frames anybody can check by hand.

mod common;

use std::net::{IpAddr, SocketAddr};

use bpf::{Exclusion, LinkLayer, Program, compile, exclude};
use common::has_libpcap;
use common::packets::{exclusion, frame, segment};
use proptest::prelude::*;

/// Addresses and ports of a TCP segment, if `frame` holds one the exclusions can know.
fn tcp_of(frame: &[u8], link: LinkLayer) -> Option<(SocketAddr, SocketAddr)> {
    let packet = match link {
        LinkLayer::Other => return None,
        LinkLayer::RawIp => frame,
        LinkLayer::Ethernet => {
            let mut rest = frame.get(12..)?;
            for _ in 0..2 {
                if let [0x81, 0x00, ..] | [0x88, 0xa8, ..] | [0x91, 0x00, ..] = rest {
                    rest = rest.get(4..)?;
                }
            }
            let (ethertype, packet) = rest.split_at_checked(2)?;
            let version = packet.first()? >> 4;
            if !matches!((ethertype, version), ([0x08, 0x00], 4) | ([0x86, 0xdd], 6)) {
                return None;
            }
            packet
        }
    };
    let (source, destination, segment): (IpAddr, IpAddr, &[u8]) = match packet.first()? >> 4 {
        4 => {
            let header = packet.first_chunk::<20>()?;
            let words = usize::from(header[0] & 15);
            let is_later_fragment = u16::from_be_bytes([header[6], header[7]]) << 3 != 0;
            if words < 5 || header[9] != 6 || is_later_fragment {
                return None;
            }
            let ip = |at: usize| IpAddr::from(*header[at..].first_chunk::<4>().expect("20 bytes hold both"));
            (ip(12), ip(16), packet.get(words * 4..)?)
        }
        6 => {
            let header = packet.first_chunk::<40>()?;
            let ip = |at: usize| IpAddr::from(*header[at..].first_chunk::<16>().expect("40 bytes hold both"));
            let rest = &packet[40..];
            let segment = match (header[6], rest) {
                (6, _) => rest,
                (0, [6, units, ..]) => rest.get(8 + 8 * usize::from(*units)..)?,
                _ => return None,
            };
            (ip(8), ip(24), segment)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes(*segment.get(at..)?.first_chunk()?));
    Some((SocketAddr::new(source, port(0)?), SocketAddr::new(destination, port(2)?)))
}

fn is_own(frame: &[u8], link: LinkLayer, exclusions: &[Exclusion]) -> bool {
    let Some((source, destination)) = tcp_of(frame, link) else { return false };
    exclusions.iter().any(|&exclusion| match exclusion {
        Exclusion::Port(port) => source.port() == port || destination.port() == port,
        Exclusion::Flow { relay, local_port } => {
            let relay = SocketAddr::new(relay.ip().to_canonical(), relay.port());
            source == relay && destination.port() == local_port
                || destination == relay && source.port() == local_port
        }
    })
}

/// Programs of users; without libpcap the two that need none.
fn programs() -> Vec<Program> {
    let mut programs = vec![Program::accept_all(262_144), Program::drop_all()];
    if bpf::library_version().is_some() {
        let expressions = [
            "tcp port 443",
            "not tcp",
            "len < 50",
            "ip[0] & 0xf != 5",
            "vlan and ip6",
            "ether[20] > 9",
            "udp or icmp",
        ];
        programs.extend(expressions.map(|text| compile(text, 1, 96).expect("these compile")));
    }
    programs
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn own_frames_are_rejected_and_others_untouched(
        (link, frame) in prop_oneof![Just(LinkLayer::Ethernet), Just(LinkLayer::RawIp)]
            .prop_flat_map(|link| (Just(link), frame(link))),
        exclusions in prop::collection::vec(exclusion(), 1..6),
    ) {
        thread_local!(static PROGRAMS: Vec<Program> = programs());
        let wire_len = frame.len() as u32;
        let own = is_own(&frame, link, &exclusions);
        PROGRAMS.with(|programs| {
            for program in programs {
                let expected = if own { 0 } else { program.run(&frame, wire_len) };
                prop_assert_eq!(exclude(program, link, &exclusions).run(&frame, wire_len), expected, "own: {}", own);
            }
            Ok(())
        })?;
    }
}

/// Random frames prove little if hardly any is our own.
#[test]
fn random_frames_are_often_our_own() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    for link in [LinkLayer::Ethernet, LinkLayer::RawIp] {
        let strategy = (frame(link), prop::collection::vec(exclusion(), 1..6));
        let own = (0..2000)
            .filter(|_| {
                let (frame, exclusions) = strategy.new_tree(&mut runner).expect("no filters in it").current();
                is_own(&frame, link, &exclusions)
            })
            .count();
        assert!((100..1000).contains(&own), "{own} of 2000 on {link:?}");
    }
}

fn kept(program: &Program, frame: &[u8]) -> bool {
    program.run(frame, frame.len() as u32) != 0
}

#[test]
fn flow_is_excluded_in_both_directions_and_nothing_beside_it() {
    for (relay, relay_as_given, other, me) in [
        ("192.0.2.7", "192.0.2.7", "192.0.2.8", "10.0.0.1"),
        ("192.0.2.7", "::ffff:192.0.2.7", "192.0.2.8", "10.0.0.1"),
        ("[2001:db8::7]", "2001:db8::7", "[2001:db8:1::7]", "[2001:db8::1]"),
    ] {
        let relay_address = SocketAddr::new(relay_as_given.parse().expect("an address"), 443);
        let exclusions = [Exclusion::Flow { relay: relay_address, local_port: 40_000 }];
        let program = exclude(&Program::accept_all(96), LinkLayer::Ethernet, &exclusions);
        let keeps = |from: &str, from_port: u16, to: &str, to_port: u16| {
            kept(&program, &segment(&format!("{from}:{from_port}"), &format!("{to}:{to_port}")))
        };
        assert!(!keeps(me, 40_000, relay, 443), "sent to {relay}");
        assert!(!keeps(relay, 443, me, 40_000), "received from {relay}");
        assert!(keeps(me, 40_001, relay, 443), "another connection of ours");
        assert!(keeps(relay, 443, me, 40_001), "another connection of ours, received");
        assert!(keeps(me, 40_000, relay, 80), "another port of the relay");
        assert!(keeps(me, 40_000, other, 443), "another host");
        assert!(keeps(relay, 40_000, me, 443), "the ports the other way round");
    }
}

#[test]
fn flow_is_excluded_behind_tags_in_the_data() {
    let exclusions =
        [Exclusion::Flow { relay: "192.0.2.7:443".parse().expect("a socket"), local_port: 40_000 }];
    let program = exclude(&Program::accept_all(96), LinkLayer::Ethernet, &exclusions);
    let mut frame = segment("10.0.0.1:40000", "192.0.2.7:443");
    for tags in 0..4 {
        assert_eq!(kept(&program, &frame), tags > 2, "{tags} tags");
        frame.splice(12..12, [0x88, 0xa8, 0x20, 5]);
    }
}

#[test]
fn port_is_excluded_on_either_side() {
    let program = exclude(&Program::accept_all(96), LinkLayer::of(1), &[Exclusion::Port(9000)]);
    for (host, loopback) in [("127.0.0.1", "127.0.0.1"), ("[::1]", "[::1]")] {
        let from_to = |from: u16, to: u16| segment(&format!("{host}:{from}"), &format!("{loopback}:{to}"));
        assert!(!kept(&program, &from_to(9000, 5)));
        assert!(!kept(&program, &from_to(5, 9000)));
        assert!(kept(&program, &from_to(5, 9001)));
        let mut udp = from_to(5, 9000);
        udp[if host == "[::1]" { 20 } else { 23 }] = 17;
        assert!(kept(&program, &udp));
    }
}

/// A header that claims less than its 20 bytes has no ports, however its own fields would read as some.
#[test]
fn header_too_short_for_its_version_is_not_ours() {
    let program = exclude(&Program::accept_all(96), LinkLayer::Ethernet, &[Exclusion::Port(443)]);
    let mut frame = segment("10.0.0.1:5", "192.0.2.7:6");
    // The identification, where one word of header would put the source port.
    (frame[14], frame[18], frame[19]) = (0x41, 1, 187);
    assert!(kept(&program, &frame));
}

/// The reason for every test of a length: without one, a frame cut within the headers of TCP would be lost.
#[test]
fn no_frame_is_lost_for_being_short() {
    let exclusions = [
        Exclusion::Flow { relay: "192.0.2.7:443".parse().expect("a socket"), local_port: 40_000 },
        Exclusion::Flow { relay: "[2001:db8::7]:443".parse().expect("a socket"), local_port: 40_000 },
        Exclusion::Port(9000),
    ];
    for (link, skip) in [(LinkLayer::Ethernet, 0), (LinkLayer::RawIp, 14)] {
        let program = exclude(&Program::accept_all(96), link, &exclusions);
        for frame in [segment("10.0.0.1:5", "192.0.2.7:6"), segment("[2001:db8::1]:5", "[2001:db8::7]:6")] {
            for length in skip..=frame.len() {
                assert!(kept(&program, &frame[skip..length]), "{length} bytes on {link:?}");
            }
        }
    }
}

#[test]
fn filters_of_everyday_use() {
    if !has_libpcap() {
        return;
    }
    let keeps = |expression: &str, frame: &[u8]| {
        kept(&compile(expression, 1, 262_144).unwrap_or_else(|error| panic!("{error}")), frame)
    };
    let web = segment("10.0.0.1:40000", "192.0.2.7:80");
    let mut tagged = web.clone();
    tagged.splice(12..12, [0x81, 0x00, 0x20, 5]);

    assert!(keeps("tcp port 80", &web));
    assert!(!keeps("udp port 80", &web));
    assert!(keeps("tcp[tcpflags] & tcp-ack != 0", &web));
    assert!(keeps("host 192.0.2.7 and not port 22", &web));
    assert!(!keeps("tcp port 80", &tagged), "libpcap wants `vlan` said first");
    assert!(keeps("vlan 5 and tcp port 80", &tagged));
    assert!(!keeps("vlan 6", &tagged));
    assert!(!keeps("vlan", &web));
    assert!(keeps("vlan 5 or tcp", &tagged));
    assert!(keeps("ip6 protochain 6", &segment("[2001:db8::1]:5", "[2001:db8::7]:6")), "a loop");
}

#[test]
fn errors_name_the_filter_and_speak_with_libpcap() {
    if !has_libpcap() {
        return;
    }
    let text = |expression: &str, link_type| {
        compile(expression, link_type, 96).expect_err("this is refused").to_string()
    };
    let syntax = text("tcp prot 80", 1);
    assert!(syntax.starts_with(r#"filter "tcp prot 80": "#) && syntax.ends_with("syntax error"), "{syntax}");
    assert_eq!(text("vlan 4096", 1), r#"filter "vlan 4096": VLAN tag 4096 greater than maximum 4095"#);
    #[cfg(target_os = "linux")]
    assert_eq!(
        text("inbound", 1),
        r#"filter "inbound": needs metadata of the kernel, which only a live capture has"#
    );
}
