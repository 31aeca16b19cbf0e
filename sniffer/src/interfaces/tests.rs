//! Interfaces of a network namespace of the test's own.

use std::os::fd::AsFd;

use super::*;
use crate::test_net::{FAR, NEAR, eventually, in_namespace, ip};

#[test]
fn the_interfaces_of_this_namespace_are_listed() {
    in_namespace(|| {
        ip("addr add 192.0.2.7/24 dev far");
        ip("addr add 2001:db8::7/64 dev far nodad");
        ip("link set far mtu 9000");
        let interfaces = list().expect("listed");
        let by_name =
            |name: &str| interfaces.iter().find(|interface| interface.name == name).expect("listed");
        assert!(interfaces.is_sorted_by_key(|interface| interface.index));

        let lo = by_name("lo");
        assert!(lo.loopback && lo.up && lo.running);
        assert_eq!((lo.index, lo.link_type, lo.mac), (1, Some(1), None));
        assert!(lo.addresses.contains(&"127.0.0.1".parse().expect("an address")));

        let far = by_name("far");
        assert!(!far.loopback && far.up && far.running);
        assert_eq!((far.link_type, far.mac, far.mtu), (Some(1), Some(FAR), 9000));
        let expected: [IpAddr; 2] =
            ["192.0.2.7".parse().expect("an address"), "2001:db8::7".parse().expect("an address")];
        assert_eq!(far.addresses, expected);
        assert_eq!((far.driver.as_deref(), far.hardware.as_deref()), (Some("veth"), Some("veth")));
        assert_eq!(far.speed_bits, Some(10_000_000_000));
        assert_eq!(far.offloads.tso, Some(true));
        assert_eq!(far.offloads.gro, Some(false));

        assert_eq!(by_name("near").mac, Some(NEAR));
        assert_eq!(find("far").expect("found"), *far);
        let error = find("eth7").expect_err("there is none");
        assert_eq!(error.to_string(), "interface eth7: no such device");
    });
}

#[test]
fn what_happens_to_links_is_told() {
    in_namespace(|| {
        let mut monitor = Monitor::open().expect("subscribed");
        let index = find("far").expect("found").index;
        assert_eq!(monitor.events().expect("read"), []);
        let mut until = |what: &str, wanted: &dyn Fn(&LinkEvent) -> bool| {
            let fd = monitor.socket.try_clone().expect("a descriptor");
            eventually(what, fd.as_fd(), || {
                monitor.events().expect("read").into_iter().find(|event| wanted(event))
            })
        };
        ip("link set near down");
        until("no carrier", &|event| event.index == index && event.up && !event.running);
        ip("link set far down");
        until("down", &|event| event.index == index && !event.up);
        ip("link set far name away");
        until("renamed", &|event| event.index == index && event.name == "away");
        ip("link set near up");
        ip("link set away up");
        until("up", &|event| event.index == index && event.up && event.running);
        ip("link add new type veth peer name other");
        let new = until("new", &|event| event.name == "new" && !event.removed);
        assert_eq!(new.link_type, Some(1));
        ip("link del away");
        let gone = until("gone", &|event| event.removed && event.index == index);
        assert!(!gone.up && !gone.running);
    });
}

#[test]
fn events_that_were_missed_are_made_good() {
    in_namespace(|| {
        let mut monitor = Monitor::open().expect("subscribed");
        nix::sys::socket::setsockopt(&monitor.socket, nix::sys::socket::sockopt::RcvBuf, &2048).expect("set");
        let index = find("far").expect("found").index;
        for _ in 0..20 {
            ip("link set far down");
            ip("link set far up");
        }
        ip("link add new type veth peer name other");
        ip("link del far");
        let fd = monitor.socket.try_clone().expect("a descriptor");
        let mut seen = Vec::new();
        eventually("both", fd.as_fd(), || {
            seen.extend(monitor.events().expect("read"));
            let gone = seen.iter().any(|event| event.index == index && event.removed);
            let new = seen.iter().any(|event| event.name == "new" && !event.removed);
            (gone && new).then_some(())
        });
    });
}

#[test]
fn link_types_are_those_of_libpcap() {
    let expected = [
        (1, Some(1)),
        (772, Some(1)),
        (0xfffe, Some(101)),
        (768, Some(101)),
        (801, Some(105)),
        (803, Some(127)),
    ];
    for (arphrd, linktype) in expected {
        assert_eq!(link_type(arphrd), linktype);
    }
    assert_eq!(link_type(280), None, "CAN has to be rewritten first");
    let mut all: Vec<u16> = (0..=u16::MAX).filter_map(link_type).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all, LINK_TYPES, "filters are compiled for these");
}

#[test]
fn the_system_has_a_name() {
    let description = os_description();
    assert!(description.starts_with("Linux ") && description.len() > 8, "{description}");
}
