//! The same programs in the kernel: it takes them, and answers as [`bpf::Program::run`] does.
//!
//! A filter works on a datagram socket of a pair as on a packet socket, with the payload for a frame. That needs no
//! privilege and lets any bytes be a frame.
#![cfg(target_os = "linux")]

mod common;

use std::io::{ErrorKind, Read, Write};

use bpf::{Exclusion, FilterError, LinkLayer, Program, compile, exclude};
use common::packets::{exclusion, frame, segment};
use common::{has_libpcap, read_savefile, rows, vectors};
use proptest::prelude::*;
use socket2::{Domain, SockFilter, Socket, Type};

struct Kernel {
    from: Socket,
    to: Socket,
}

impl Kernel {
    fn new() -> Kernel {
        let (from, to) =
            Socket::pair(Domain::UNIX, Type::DGRAM, None).expect("a socket pair needs no privilege");
        to.set_nonblocking(true).expect("any socket can be");
        Kernel { from, to }
    }

    fn attach(&self, program: &Program) -> std::io::Result<()> {
        let instructions: Vec<_> =
            program.instructions().iter().map(|i| SockFilter::new(i.code, i.jt, i.jf, i.k)).collect();
        self.to.attach_filter(&instructions)
    }

    /// Bytes of `frame` the attached filter keeps; `None` if it rejects.
    fn keep(&mut self, frame: &[u8]) -> Option<usize> {
        self.from.write_all(frame).expect("the queue is empty");
        let mut buffer = vec![0; frame.len() + 1];
        match self.to.read(&mut buffer) {
            Ok(length) => Some(length),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }
}

/// What `keep` is expected to give for the answer of `run`.
fn expected(program: &Program, frame: &[u8]) -> Option<usize> {
    let keep = program.run(frame, frame.len() as u32) as usize;
    (keep != 0).then_some(keep.min(frame.len()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn exclusions_do_in_the_kernel_what_run_does(
        link in prop_oneof![Just(LinkLayer::Ethernet), Just(LinkLayer::RawIp)],
        ethernet in prop::collection::vec(frame(LinkLayer::Ethernet), 16),
        raw in prop::collection::vec(frame(LinkLayer::RawIp), 16),
        exclusions in prop::collection::vec(exclusion(), 1..6),
    ) {
        let program = exclude(&Program::accept_all(40), link, &exclusions);
        let mut kernel = Kernel::new();
        kernel.attach(&program).expect("the kernel takes it");
        // An empty datagram cannot be told from the end of a stream, and no frame is empty.
        for frame in if link == LinkLayer::Ethernet { ethernet } else { raw }.iter().filter(|f| !f.is_empty()) {
            prop_assert_eq!(kernel.keep(frame), expected(&program, frame));
        }
    }
}

/// Filters of users over real frames, bare and behind an exclusion.
#[test]
fn compiled_filters_do_in_the_kernel_what_run_does() {
    let Some(folder) = vectors() else { return };
    if !has_libpcap() {
        return;
    }
    let exclusions = [Exclusion::Port(80), Exclusion::Port(443)];
    let (mut evaluations, mut refused) = (0, Vec::new());
    for row in rows(&folder.join("apply.tsv")) {
        let (file, expression) = (&row[1], &row[2]);
        let savefile = read_savefile(&folder.join(file));
        let Ok(program) = compile(expression, savefile.link_type, savefile.snaplen) else { continue };
        let excluding = exclude(&program, LinkLayer::of(savefile.link_type), &exclusions);
        for program in [program, excluding] {
            let mut kernel = Kernel::new();
            if kernel.attach(&program).is_err() {
                refused.push(expression.clone());
                continue;
            }
            for packet in &savefile.packets {
                evaluations += 1;
                assert_eq!(
                    kernel.keep(&packet.data),
                    expected(&program, &packet.data),
                    "{file} {expression:?}"
                );
            }
        }
    }
    // A jump back is what the kernel does not take.
    assert!(refused.iter().all(|expression| expression.contains("protochain")), "{refused:?}");
    println!("{evaluations} evaluations; refused: {refused:?}");
}

#[test]
fn the_longest_program_is_the_kernels() {
    let kernel = Kernel::new();
    let of_length = |length| {
        let ret = Program::accept_all(96).instructions()[0];
        Program::new(vec![ret; length])
    };
    kernel.attach(&of_length(Program::MAX_INSTRUCTIONS)).expect("4096 are taken");
    assert!(kernel.attach(&of_length(Program::MAX_INSTRUCTIONS + 1)).is_err());
}

/// `vlan` on an interface is a test of metadata, and the kernel takes it behind an exclusion.
#[test]
fn live_filter_tests_the_metadata_of_vlans() {
    if !has_libpcap() {
        return;
    }
    match bpf::compile_live("vlan 5 and tcp", "lo", 300_000) {
        Err(error) => {
            assert!(
                std::env::var_os("RINGCAST_REQUIRE_ALL").is_none(),
                "{error}, but nothing may be skipped here"
            );
            println!("skipped: {error}");
        }
        Ok(live) => {
            assert!(live.loads_metadata(), "{live}");
            assert!(live.instructions().iter().any(|i| i.code == 6 && i.k == 300_000), "{live}");
            let exclusions =
                [Exclusion::Flow { relay: "127.0.0.1:443".parse().expect("a socket"), local_port: 40_000 }];
            Kernel::new()
                .attach(&exclude(&live, LinkLayer::Ethernet, &exclusions))
                .expect("the kernel takes it");
            assert_eq!(live.run(&segment("10.0.0.1:5", "192.0.2.7:6"), 54), 0, "there is no metadata here");
        }
    }
}

/// What is compiled on `lo` is attached elsewhere: neither its netmask nor its name may be in the program.
#[test]
fn live_filter_is_that_of_every_interface_of_its_link_type() {
    if !has_libpcap() {
        return;
    }
    for expression in ["ip broadcast", "tcp port 80 or arp", "inbound and udp"] {
        match bpf::compile_live(expression, "lo", 96) {
            Err(error) => {
                assert!(
                    std::env::var_os("RINGCAST_REQUIRE_ALL").is_none(),
                    "{error}, but nothing may be skipped here"
                );
                println!("skipped: {error}");
            }
            Ok(live) => assert_eq!(
                live,
                bpf::compile_for_socket(expression, 1, 96).expect("compiles without an interface"),
                "{expression}"
            ),
        }
    }
}

/// `inbound` needs no interface to be compiled on, but a file's frames cannot answer it.
#[test]
fn metadata_is_for_sockets_only() {
    if !has_libpcap() {
        return;
    }
    for link_type in [1, 101] {
        let program = bpf::compile_for_socket("inbound", link_type, 96).expect("a socket has it");
        assert!(program.loads_metadata(), "{program}");
        Kernel::new().attach(&program).expect("the kernel takes it");
        assert!(matches!(bpf::compile("inbound", link_type, 96), Err(FilterError::Metadata { .. })));
    }
}

#[test]
fn live_filter_on_no_interface_is_an_error() {
    if !has_libpcap() {
        return;
    }
    let error = bpf::compile_live("tcp", "no-such-if0", 96).expect_err("there is no such interface");
    let text = error.to_string();
    assert!(text.starts_with(r#"filter "tcp": interface no-such-if0: "#), "{text}");
}
