//! Rings on real (virtual) links. What the block walk does with bad blocks is tested in `frame` and `block`.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::poll::PollFlags;

use super::*;
use crate::test_net::{
    FAR, PATIENCE, Sender, TEST_TYPE, eventually, frame, frame_to, in_namespace, ip, let_go, promiscuity,
    skipped, wait,
};

/// A frame, taken out of the ring.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Taken {
    time_ns: u64,
    original_len: u32,
    data: Vec<u8>,
    vlan: Option<VlanTag>,
    direction: Direction,
}

fn small(interface: &str) -> RingConfig {
    RingConfig { ring_bytes: 4 << 20, block_bytes: 1 << 20, ..RingConfig::new(interface) }
}

fn open(config: &RingConfig) -> Ring {
    Ring::open(config).expect("the ring opens")
}

fn open_all(interface: &str) -> Ring {
    let ring = open(&small(interface));
    ring.control().set_filter(&accept(262_144)).expect("the filter is taken");
    ring
}

/// Keeps frames whose EtherType, in the data, is `ether_type`; 262144 bytes of them.
fn only(ether_type: u16) -> [Instruction; 4] {
    let load = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    [(load, 0, 0, 12), (equal, 0, 1, u32::from(ether_type)), accept(262_144)[0], DROP_ALL[0]]
}

/// Everything that is in the ring now.
fn drain(ring: &mut Ring) -> Vec<Taken> {
    let mut taken = Vec::new();
    let mut sequence: Option<u64> = None;
    while let Some(block) = ring.next_block() {
        assert!(sequence.is_none_or(|last| block.sequence() == last + 1), "blocks come in order");
        sequence = Some(block.sequence());
        let mut frames = block.frames();
        taken.extend(frames.by_ref().map(|frame| Taken {
            time_ns: frame.time_ns,
            original_len: frame.original_len,
            data: frame.data.to_vec(),
            vlan: frame.vlan,
            direction: frame.direction,
        }));
        assert_eq!(frames.unread(), 0);
    }
    taken
}

/// Reads until `count` frames have come, and then for some block timeouts more, in case there are more.
fn take(ring: &mut Ring, count: usize) -> Vec<Taken> {
    let mut taken = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while taken.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} frames within {PATIENCE:?}", taken.len());
        wait(ring.as_fd(), 20);
        taken.extend(drain(ring));
    }
    taken.extend(settle(ring));
    taken
}

/// What comes within five block timeouts. What was sent before is in the ring by then, handed over or not; a frame too
/// many shows here, and one that is late cannot make a good test fail.
fn settle(ring: &mut Ring) -> Vec<Taken> {
    let mut taken = Vec::new();
    let end = Instant::now() + Duration::from_millis(50);
    while Instant::now() < end {
        wait(ring.as_fd(), 10);
        taken.extend(drain(ring));
    }
    taken
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as u64
}

#[test]
fn frames_arrive_as_they_were_sent() {
    in_namespace(|| {
        let mut ring = open_all("far");
        assert_eq!(ring.ring_bytes(), 4 << 20);
        assert!(ring.attached());
        let sender = Sender::new("near");
        let head = TEST_TYPE.to_be_bytes();
        let sent = [
            (frame_to(FAR, &head, b""), Direction::Host),
            (frame_to([0xff; 6], &head, &[1; 46]), Direction::Broadcast),
            (frame_to([1, 0, 0x5e, 0, 0, 1], &head, &[2; 1500]), Direction::Multicast),
            (frame_to([2, 0, 0, 0, 0, 9], &head, &[3; 100]), Direction::OtherHost),
        ];
        let before = now_ns();
        for (frame, _) in &sent {
            sender.send(frame);
        }
        let taken = take(&mut ring, sent.len());
        let after = now_ns();
        assert_eq!(taken.len(), sent.len());
        for (taken, (frame, direction)) in taken.iter().zip(&sent) {
            assert_eq!(&taken.data, frame);
            assert_eq!(taken.original_len as usize, frame.len());
            assert_eq!((taken.direction, taken.vlan), (*direction, None));
            assert!((before..=after).contains(&taken.time_ns));
        }
        assert!(taken.is_sorted_by_key(|taken| taken.time_ns));
        // In ns, not in µs made longer.
        assert!(taken.iter().any(|taken| taken.time_ns % 1000 != 0));
        let statistics = ring.statistics().expect("statistics");
        assert_eq!(statistics, Statistics { packets: sent.len() as u64, drops: 0, freezes: 0 });
    });
}

#[test]
fn the_sending_end_sees_them_as_outgoing() {
    in_namespace(|| {
        let mut ring = open_all("near");
        Sender::new("near").send(&frame(b"out"));
        let taken = take(&mut ring, 1);
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].direction, Direction::Outgoing);
    });
}

#[test]
fn a_ring_drops_everything_until_it_has_a_filter() {
    in_namespace(|| {
        let mut ring = open(&small("far"));
        let sender = Sender::new("near");
        sender.send(&frame(b"too early"));
        assert_eq!(settle(&mut ring), []);
        let control = ring.control();
        control.set_filter(&accept(262_144)).expect("set");
        sender.send(&frame(b"in time"));
        assert_eq!(take(&mut ring, 1)[0].data, frame(b"in time"));
        assert_eq!(ring.statistics().expect("statistics").packets, 1);
    });
}

#[test]
fn the_filter_can_be_changed_from_another_thread() {
    in_namespace(|| {
        let mut ring = open_all("far");
        let sender = Sender::new("near");
        let other = frame_to(FAR, &[0x88, 0xb6], b"other");
        let change = |program: &'static [Instruction]| {
            let control = ring.control();
            std::thread::spawn(move || control.set_filter(program)).join().expect("no panic").expect("set");
        };
        static CUT: [Instruction; 1] = accept(20);
        sender.send(&other);
        change(only(TEST_TYPE).to_vec().leak());
        sender.send(&other);
        sender.send(&frame(b"wanted"));
        change(&CUT);
        sender.send(&frame(&[9; 100]));
        change(&DROP_ALL);
        sender.send(&frame(b"unwanted"));
        let taken = take(&mut ring, 3);
        let data: Vec<&[u8]> = taken.iter().map(|taken| &taken.data[..]).collect();
        assert_eq!(data, [&other[..], &frame(b"wanted"), &frame(&[9; 100])[..20]]);
        assert_eq!(taken[2].original_len, 114);
    });
}

#[test]
fn impossible_filters_are_refused_and_the_old_one_stays() {
    in_namespace(|| {
        let mut ring = open_all("far");
        let control = ring.control();
        let length = |instructions| RingError::FilterLength { interface: "far".into(), instructions };
        assert_eq!(control.set_filter(&[]), Err(length(0)));
        // 65537 would be 1 in the 16 bits that are handed to the kernel.
        assert_eq!(control.set_filter(&vec![DROP_ALL[0]; 65_537]), Err(length(65_537)));
        let no_return = [((libc::BPF_LD | libc::BPF_IMM) as u16, 0, 0, 0)];
        assert!(matches!(
            control.set_filter(&no_return),
            Err(RingError::System { source: Errno::EINVAL, .. })
        ));
        Sender::new("near").send(&frame(b"still"));
        assert_eq!(take(&mut ring, 1).len(), 1);
    });
}

/// Ends a thread that loops until it is told, also when a test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Rings are opened and joined under traffic, then their filters are set: nothing comes twice, nothing is missing after.
#[test]
fn rings_join_a_group_under_traffic_without_copies() {
    for (members, mode) in
        [(2, FanoutMode::Lb), (4, FanoutMode::Lb), (3, FanoutMode::Hash), (2, FanoutMode::Cpu)]
    {
        in_namespace(move || {
            let next = AtomicU64::new(0);
            let stop = AtomicBool::new(false);
            let send_one = |sender: &Sender| {
                let number = next.fetch_add(1, Ordering::Relaxed);
                sender.send(&frame(&[&number.to_be_bytes()[..], &[0; 40]].concat()));
                number
            };
            std::thread::scope(|scope| {
                let _stop = StopOnDrop(&stop); // else a failed assertion would wait for the sender for ever
                scope.spawn(|| {
                    let sender = Sender::new("near");
                    while !stop.load(Ordering::Relaxed) {
                        send_one(&sender);
                        std::thread::yield_now();
                    }
                });
                let mut rings = Vec::new();
                let mut group = None;
                for _ in 0..members {
                    let ring = open(&RingConfig { ring_bytes: 16 << 20, ..small("far") });
                    group = Some(ring.join_fanout(group, mode, false).expect("joined"));
                    rings.push(ring);
                }
                for ring in &rings {
                    ring.control().set_filter(&only(TEST_TYPE)).expect("set");
                }
                let first = next.load(Ordering::Relaxed) + 1; // one may be on its way with the number before
                let mut seen: BTreeMap<u64, u32> = BTreeMap::new();
                let mut collect = |rings: &mut [Ring]| {
                    for taken in rings.iter_mut().flat_map(drain) {
                        let number = taken.data[14..22].try_into().map(u64::from_be_bytes).expect("8 bytes");
                        *seen.entry(number).or_default() += 1;
                    }
                };
                let deadline = Instant::now() + PATIENCE;
                while next.load(Ordering::Relaxed) < first + 2000 {
                    assert!(Instant::now() < deadline);
                    collect(&mut rings);
                    wait(rings[0].as_fd(), 1);
                }
                stop.store(true, Ordering::Relaxed);
                let last = send_one(&Sender::new("near"));
                let deadline = Instant::now() + Duration::from_millis(200);
                while Instant::now() < deadline {
                    collect(&mut rings);
                    wait(rings[0].as_fd(), 10);
                }
                let mut delivered = 0;
                for ring in &mut rings {
                    let statistics = ring.statistics().expect("statistics");
                    assert_eq!(statistics.drops, 0);
                    delivered += statistics.packets;
                }
                assert!(
                    seen.values().all(|&times| times == 1),
                    "{members} rings, {mode:?}: a packet came twice"
                );
                assert_eq!(seen.len() as u64, delivered);
                let missing: Vec<u64> = (first..=last).filter(|number| !seen.contains_key(number)).collect();
                assert!(missing.is_empty(), "{members} rings, {mode:?}: {missing:?}");
            });
        });
    }
}

#[test]
fn a_group_of_another_kind_is_refused() {
    in_namespace(|| {
        let (one, two) = (open(&small("far")), open(&small("far")));
        let group = one.join_fanout(None, FanoutMode::Hash, false).expect("joined");
        let mismatch = Err(RingError::FanoutMismatch { interface: "far".into(), group });
        assert_eq!(two.join_fanout(Some(group), FanoutMode::Lb, false), mismatch);
        assert_eq!(two.join_fanout(Some(group), FanoutMode::Hash, true), mismatch);
        assert!(open(&small("near")).join_fanout(Some(group), FanoutMode::Hash, false).is_err());
        assert_eq!(two.join_fanout(Some(group), FanoutMode::Hash, false), Ok(group));
        let other = open(&small("far")).join_fanout(None, FanoutMode::Hash, false).expect("joined");
        assert_ne!(other, group, "the kernel chooses a number that is free");
        for mode in [FanoutMode::Qm, FanoutMode::Rollover, FanoutMode::Cpu, FanoutMode::Lb] {
            open(&small("far")).join_fanout(None, mode, true).expect("every mode is known");
        }
    });
}

#[test]
fn vlan_tags_come_as_the_kernel_took_them() {
    in_namespace(|| {
        let mut ring = open_all("far");
        let sender = Sender::new("near");
        let payload = [7; 60];
        /// Name, what is sent between addresses and payload, the tag taken out, what is left there.
        type Case = (&'static str, &'static [u8], Option<VlanTag>, &'static [u8]);
        let cases: [Case; 5] = [
            ("untagged", &[0x88, 0xb5], None, &[0x88, 0xb5]),
            (
                "802.1Q",
                &[0x81, 0, 0xba, 0xbc, 0x88, 0xb5],
                Some(VlanTag { tpid: 0x8100, tci: 0xbabc }),
                &[0x88, 0xb5],
            ),
            ("priority", &[0x81, 0, 0, 0, 0x88, 0xb5], Some(VlanTag { tpid: 0x8100, tci: 0 }), &[0x88, 0xb5]),
            (
                "802.1ad",
                &[0x88, 0xa8, 0, 5, 0x88, 0xb5],
                Some(VlanTag { tpid: 0x88a8, tci: 5 }),
                &[0x88, 0xb5],
            ),
            (
                "QinQ",
                &[0x88, 0xa8, 0, 0xc8, 0x81, 0, 0, 0x64, 0x88, 0xb5],
                Some(VlanTag { tpid: 0x88a8, tci: 200 }),
                &[0x81, 0, 0, 0x64, 0x88, 0xb5],
            ),
        ];
        for (_, head, ..) in cases {
            sender.send(&frame_to(FAR, head, &payload));
        }
        let taken = take(&mut ring, cases.len());
        for (taken, (name, _, tag, rest)) in taken.iter().zip(cases) {
            assert_eq!(taken.vlan, tag, "{name}");
            assert_eq!(taken.data, frame_to(FAR, rest, &payload), "{name}");
            assert_eq!(taken.original_len as usize, taken.data.len(), "{name}");
        }
    });
}

/// Ten datagrams through `lo`, captured by `rings`.
fn loopback_directions(rings: &mut [Ring], expected: usize) -> Vec<Direction> {
    let to = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let from = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    for _ in 0..10 {
        from.send_to(b"hello", to.local_addr().expect("bound")).expect("sent");
    }
    let mut directions = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while directions.len() < expected {
        assert!(Instant::now() < deadline, "{} of {expected}", directions.len());
        for ring in rings.iter_mut() {
            directions.extend(drain(ring).iter().map(|taken| taken.direction));
        }
        wait(rings[0].as_fd(), 5);
    }
    for ring in rings.iter_mut() {
        directions.extend(settle(ring).iter().map(|taken| taken.direction));
    }
    directions
}

#[test]
fn loopback_shows_each_packet_once() {
    in_namespace(|| {
        let config = RingConfig { ignore_outgoing: true, ..small("lo") };
        let alone = open(&config);
        alone.control().set_filter(&accept(262_144)).expect("set");
        assert_eq!(loopback_directions(&mut [alone], 10), [Direction::Host; 10]);

        let mut group = None;
        let mut rings = Vec::new();
        for _ in 0..2 {
            let ring = open(&config);
            group = Some(ring.join_fanout(group, FanoutMode::Lb, true).expect("joined"));
            rings.push(ring);
        }
        for ring in &rings {
            ring.control().set_filter(&accept(262_144)).expect("set");
        }
        assert_eq!(loopback_directions(&mut rings, 10), [Direction::Host; 10]);
    });
}

#[test]
fn loopback_shows_each_packet_twice_when_not_told() {
    in_namespace(|| {
        let directions = loopback_directions(&mut [open_all("lo")], 20);
        let outgoing = directions.iter().filter(|&&direction| direction == Direction::Outgoing).count();
        assert_eq!((directions.len(), outgoing), (20, 10));
    });
}

#[test]
fn large_frames_are_kept_whole() {
    in_namespace(|| {
        ip("link set near mtu 65535");
        ip("link set far mtu 65535");
        let mut ring = open_all("far");
        let sender = Sender::new("near");
        let payload: Vec<u8> = (0..60_000_u32).map(|index| (index * 7) as u8).collect();
        for _ in 0..40 {
            sender.send(&frame(&payload));
        }
        let taken = take(&mut ring, 40);
        assert_eq!(taken.len(), 40);
        for taken in taken {
            assert_eq!(taken.original_len, 60_014);
            assert_eq!(taken.data, frame(&payload));
        }
    });
}

/// Not even the smallest ring loses count: offered = delivered + drops.
#[test]
fn an_overfull_ring_counts_exactly() {
    in_namespace(|| {
        let config = RingConfig { ring_bytes: 16_384, block_bytes: 4096, ..RingConfig::new("far") };
        let mut ring = open(&config);
        ring.control().set_filter(&only(TEST_TYPE)).expect("set");
        let sender = Sender::new("near");
        // Nobody reads.
        for _ in 0..100 {
            sender.send(&frame(&[1; 1200]));
        }
        let delivered = take(&mut ring, 1).len() as u64;
        let statistics = ring.statistics().expect("statistics");
        assert_eq!(statistics.packets, 100);
        assert_eq!(delivered + statistics.drops, 100);
        assert!(statistics.drops > 0 && statistics.freezes > 0);
        // Someone reads, too slowly, and looks at the counts meanwhile.
        let done = AtomicBool::new(false);
        let mut delivered = delivered;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    sender.send(&frame(&[2; 1200]));
                }
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                delivered += drain(&mut ring).len() as u64;
                ring.statistics().expect("statistics");
                std::thread::yield_now();
            }
        });
        delivered += settle(&mut ring).len() as u64;
        let statistics = ring.statistics().expect("statistics");
        assert_eq!(statistics.packets, 20_100);
        assert_eq!(delivered + statistics.drops, 20_100);
        assert_eq!(ring.resynchronised(), 0);
    });
}

#[test]
fn a_lone_packet_comes_out_by_the_block_timeout() {
    in_namespace(|| {
        let mut ring = open_all("far");
        let sender = Sender::new("near");
        for _ in 0..5 {
            let start = Instant::now();
            sender.send(&frame(b"alone"));
            let fd = ring.as_fd().try_clone_to_owned().expect("a descriptor");
            let timed_out = eventually("the packet", std::os::fd::AsFd::as_fd(&fd), || {
                ring.next_block().map(|block| block.timed_out())
            });
            assert!(timed_out);
            assert!(start.elapsed() < Duration::from_secs(2), "after {:?}", start.elapsed());
        }
    });
}

#[test]
fn a_ring_that_is_dropped_is_really_closed() {
    in_namespace(|| {
        let (one, mut two) = (open(&small("far")), open(&small("far")));
        let group = one.join_fanout(None, FanoutMode::Lb, false).expect("joined");
        two.join_fanout(Some(group), FanoutMode::Lb, false).expect("joined");
        for ring in [&one, &two] {
            ring.control().set_filter(&only(TEST_TYPE)).expect("set");
        }
        let control = one.control();
        let_go(one);
        let closed = RingError::Closed { interface: "far".into() };
        assert_eq!(control.set_filter(&accept(100)), Err(closed));
        let sender = Sender::new("near");
        for _ in 0..100 {
            sender.send(&frame(b"for the one that is left"));
        }
        assert_eq!(take(&mut two, 100).len(), 100);
    });
}

#[test]
fn a_ring_that_fails_to_open_is_really_closed() {
    in_namespace(|| {
        let sockets =
            || std::fs::read_to_string("/proc/thread-self/net/packet").expect("readable").lines().count();
        let before = sockets();
        assert!(Ring::open(&small("nowhere")).is_err());
        assert!(Ring::open(&RingConfig { retire_ms: 0, ..small("far") }).is_err());
        assert_eq!(sockets(), before);
        let ring = open(&small("far"));
        assert_eq!(sockets(), before + 1);
        let_go(ring);
        assert_eq!(sockets(), before);
    });
}

/// Sends until something comes out of the ring: a link that has just come up may still throw away what is sent on it.
fn send_until_taken(ring: &mut Ring) {
    let sender = Sender::new("near");
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "nothing came within {PATIENCE:?}");
        sender.send(&frame(b"after"));
        wait(ring.as_fd(), 50);
        let taken = drain(ring);
        assert!(taken.iter().all(|taken| taken.data == frame(b"after")));
        if !taken.is_empty() {
            settle(ring);
            return;
        }
    }
}

#[test]
fn a_link_that_goes_down_is_told_and_comes_back_by_itself() {
    in_namespace(|| {
        let mut ring = open_all("far");
        let sender = Sender::new("near");
        sender.send(&frame(b"before"));
        assert_eq!(take(&mut ring, 1).len(), 1);
        ip("link set far down");
        assert!(wait(ring.as_fd(), 2000).contains(PollFlags::POLLERR));
        assert_eq!(ring.take_error(), Some(Errno::ENETDOWN));
        assert_eq!(ring.take_error(), None);
        assert!(ring.attached());
        assert!(wait(ring.as_fd(), 0).is_empty());
        ip("link set far up");
        send_until_taken(&mut ring);
        ip("link del far");
        assert_eq!(ring.take_error(), Some(Errno::ENETDOWN));
        assert!(!ring.attached());
        assert_eq!(drain(&mut ring), []);
    });
}

#[test]
fn a_link_that_is_down_can_be_waited_on() {
    in_namespace(|| {
        ip("link set far down");
        let mut ring = open_all("far");
        assert_eq!(ring.take_error(), None);
        ip("link set far up");
        send_until_taken(&mut ring);
    });
}

#[test]
fn promiscuous_mode_ends_with_the_ring() {
    in_namespace(|| {
        let ring = open(&small("far"));
        assert_eq!(promiscuity("far"), 1);
        let_go(ring);
        assert_eq!(promiscuity("far"), 0);
        let _modest = open(&RingConfig { promiscuous: false, ..small("far") });
        assert_eq!(promiscuity("far"), 0);
    });
}

#[test]
fn a_tunnel_gives_raw_ip() {
    in_namespace(|| {
        if !std::path::Path::new("/dev/net/tun").exists() {
            skipped("no /dev/net/tun here");
            return;
        }
        let mut tunnel = open_tunnel("tun0");
        ip("link set tun0 addrgenmode none");
        ip("link set tun0 up");
        assert_eq!(crate::interfaces::find("tun0").expect("found").link_type, Some(101));
        let mut ring = open_all("tun0");
        // An IPv4 header alone: 20 bytes, protocol 253 (for experiments), from 192.0.2.1 to 192.0.2.2.
        let packet = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 253, 0xf5, 0xe9, 192, 0, 2, 1, 192, 0, 2, 2];
        assert_eq!(std::io::Write::write(&mut tunnel, &packet).expect("written"), packet.len());
        let taken = take(&mut ring, 1);
        assert_eq!(taken[0].data, packet);
        assert_eq!(taken[0].original_len, 20);
    });
}

/// A tunnel in the namespace of the calling thread; it lives as long as the file.
#[allow(unsafe_code)]
fn open_tunnel(name: &str) -> std::fs::File {
    use std::os::fd::AsRawFd;
    let file = std::fs::File::options().read(true).write(true).open("/dev/net/tun").expect("opened");
    // SAFETY: integers and pointers only; all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: a whole ifreq with a terminated name, ours during the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    assert_eq!(result, 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
    file
}

#[test]
fn a_name_that_is_not_there_is_told() {
    in_namespace(|| {
        let error = Ring::open(&small("eth7")).expect_err("there is none");
        assert_eq!(error, RingError::NoSuchDevice { interface: "eth7".into() });
        assert_eq!(error.to_string(), "interface eth7: no such device");
    });
}

#[test]
fn who_may_not_is_told_how() {
    in_namespace(|| {
        give_up_capabilities();
        let error = Ring::open(&small("far")).expect_err("not permitted");
        assert_eq!(
            error.to_string(),
            "interface far: permission denied: packet sockets need CAP_NET_RAW (run as root or setcap cap_net_raw+ep)"
        );
        let error = Ring::open(&small("eth7")).expect_err("not there");
        assert_eq!(error.to_string(), "interface eth7: no such device");
    });
}

/// Takes all capabilities from the calling thread, and from no other.
#[allow(unsafe_code)]
fn give_up_capabilities() {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    const VERSION_3: u32 = 0x2008_0522; // _LINUX_CAPABILITY_VERSION_3, linux/capability.h
    let header = Header { version: VERSION_3, pid: 0 };
    let none = [0_u32; 6]; // two of struct __user_cap_data_struct
    // SAFETY: both point at what capset(2) reads for this version, and outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    assert_eq!(result, 0, "capset: {}", std::io::Error::last_os_error());
}

#[test]
fn names_that_cannot_be_are_refused() {
    for name in ["", "sixteen-letters-", "much-longer-than-any-name", "a/b", "a b", "a:b", "nul\0", ".", ".."]
    {
        let error = Ring::open(&RingConfig::new(name)).expect_err("no interface has such a name");
        assert_eq!(error, RingError::InvalidName { interface: name.into() });
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    let good = RingConfig::new("lo");
    assert_eq!(good.block_count(), Ok(32));
    let bad = [
        RingConfig { retire_ms: 0, ..good.clone() },
        RingConfig { block_bytes: 0, ..good.clone() },
        RingConfig { block_bytes: 3 << 20, ..good.clone() },
        RingConfig { block_bytes: 2048, ..good.clone() },
        RingConfig { block_bytes: 2 << 30, ring_bytes: 8 << 30, ..good.clone() },
        RingConfig { ring_bytes: good.block_bytes, ..good.clone() },
        RingConfig { ring_bytes: 65_537 * good.block_bytes, ..good.clone() },
        RingConfig { ring_bytes: usize::MAX, ..good.clone() },
    ];
    for config in bad {
        assert!(matches!(config.block_count(), Err(RingError::Config { .. })), "{config:?}");
    }
    assert_eq!(RingConfig { ring_bytes: 5 * good.block_bytes + 1, ..good }.block_count(), Ok(5));
}

#[test]
fn a_ring_takes_half_of_the_free_memory_at_most() {
    const MIB: usize = 1 << 20;
    assert_eq!(within_memory(64, MIB, Some(128 << 20)), 64);
    assert_eq!(within_memory(65, MIB, Some(128 << 20)), 32);
    assert_eq!(within_memory(65_536, MIB, Some(1 << 30)), 512);
    assert_eq!(within_memory(5, MIB, Some(0)), MIN_BLOCKS);
    assert_eq!(within_memory(3, MIB, Some(4 << 20)), MIN_BLOCKS);
    assert_eq!(within_memory(65_536, MIB, None), 65_536);
    assert!(available_memory().is_some_and(|available| available > 1 << 20), "/proc/meminfo is understood");
}

#[test]
fn a_reader_out_of_step_finds_its_place() {
    in_namespace(|| {
        let config = RingConfig { ring_bytes: 8 * 4096, block_bytes: 4096, ..RingConfig::new("far") };
        let mut ring = open(&config);
        ring.control().set_filter(&only(TEST_TYPE)).expect("set");
        let sender = Sender::new("near");
        assert!(!ring.resynchronise());
        ring.cursor.set_index(5);
        sender.send(&frame(b"one"));
        assert!(wait(ring.as_fd(), 2000).contains(PollFlags::POLLIN));
        assert!(ring.next_block().is_none());
        assert!(ring.resynchronise());
        assert_eq!(ring.resynchronised(), 1);
        assert_eq!(take(&mut ring, 1)[0].data, frame(b"one"));
    });
}

/// Prints what the walk costs a packet; asserts nothing about it.
#[test]
fn walk_cost() {
    in_namespace(|| {
        let mut ring = open(&RingConfig { ring_bytes: 64 << 20, ..RingConfig::new("far") });
        ring.control().set_filter(&only(TEST_TYPE)).expect("set");
        let sender = Sender::new("near");
        let (mut packets, mut bytes, mut sum) = (0_u64, 0_u64, 0_u64);
        let mut spent = Duration::ZERO;
        for _ in 0..4 {
            for _ in 0..50_000 {
                sender.send(&frame(&[0; 50]));
            }
            settle_time(&ring);
            let start = Instant::now();
            while let Some(block) = ring.next_block() {
                for frame in block.frames() {
                    packets += 1;
                    bytes += frame.data.len() as u64;
                    // Touched as the gather would.
                    let last = u64::from(frame.data.last().copied().unwrap_or(0));
                    sum = sum.wrapping_add(frame.time_ns ^ last);
                }
            }
            spent += start.elapsed();
        }
        let drops = ring.statistics().expect("statistics").drops;
        std::hint::black_box(sum);
        assert_eq!(packets + drops, 200_000);
        println!(
            "walk: {packets} packets of {bytes} bytes, {:.1} ns each",
            spent.as_nanos() as f64 / packets as f64
        );
    });
}

/// Sleeps until the last block was handed over.
fn settle_time(ring: &Ring) {
    eventually("a block", ring.as_fd(), || ring.ready().then_some(()));
    std::thread::sleep(Duration::from_millis(30));
}
