//! The user-space interpreter: any program over any packet ends without a panic, and the exclusion of
//! our own traffic before it only rejects.
#![no_main]

use arbitrary::Arbitrary;
use bpf::{Exclusion, Instruction, LinkLayer, Program, exclude};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    /// Code, jumps, constant.
    program: Vec<(u16, u8, u8, u32)>,
    packet: Vec<u8>,
    wire_len: u32,
    link_type: u16,
    relay: ([u8; 16], u16, bool),
    local_port: u16,
}

fuzz_target!(|input: Input| {
    let instruction = |&(code, jt, jf, k): &(u16, u8, u8, u32)| Instruction { code, jt, jf, k };
    let program = Program::new(input.program.iter().map(instruction).collect());
    let answer = program.run(&input.packet, input.wire_len);
    let _ = (program.loads_metadata(), program.to_string());
    let (address, port, is_v4) = input.relay;
    let relay = match (is_v4, address.first_chunk::<4>()) {
        (true, Some(v4)) => (*v4, port).into(),
        _ => (address, port).into(),
    };
    let exclusions = [Exclusion::Flow { relay, local_port: input.local_port }, Exclusion::Port(port)];
    let link = LinkLayer::of(input.link_type);
    // It uses the machine's memory, so it goes before a program that begins with nothing in it.
    let accept = exclude(&Program::accept_all(96), link, &exclusions);
    assert!([0, 96].contains(&accept.run(&input.packet, input.wire_len)));
    if link == LinkLayer::Other {
        assert_eq!(exclude(&program, link, &exclusions).run(&input.packet, input.wire_len), answer);
    }
});
