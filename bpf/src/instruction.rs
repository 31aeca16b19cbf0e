//! The instruction of classic BPF and the numbers its `code` is made of.
//!
//! The numbers are those of linux/bpf_common.h and linux/filter.h. They are written down here because `libc` has them
//! for Linux only, while a viewer evaluates programs on every system.

/// One classic BPF instruction, with the layout of `struct sock_filter` (linux/filter.h).
///
/// ```text
///   0        2    3    4        8
///   | code   | jt | jf | k      |     native byte order; struct bpf_insn of libpcap is the same
/// ```
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation: class, then size and mode, or operator and operand.
    pub code: u16,
    /// Instructions to skip when the condition of a jump is true.
    pub jt: u8,
    /// Instructions to skip when the condition of a jump is false.
    pub jf: u8,
    /// Constant, offset or length, as the operation has it.
    pub k: u32,
}

// sizeof(struct sock_filter) and its offsets, linux/filter.h: what SO_ATTACH_FILTER reads.
const _: () = assert!(size_of::<Instruction>() == 8 && align_of::<Instruction>() == 4);
const _: () =
    assert!(std::mem::offset_of!(Instruction, jt) == 2 && std::mem::offset_of!(Instruction, k) == 4);

impl Instruction {
    /// An instruction that is no conditional jump.
    pub(crate) const fn statement(code: u16, k: u32) -> Instruction {
        Instruction { code, jt: 0, jf: 0, k }
    }
}

/// Words of scratch memory, `BPF_MEMWORDS`.
pub(crate) const MEMORY_WORDS: usize = 16;

// Classes.
pub(crate) const LD: u16 = 0x00;
pub(crate) const LDX: u16 = 0x01;
pub(crate) const ST: u16 = 0x02;
pub(crate) const STX: u16 = 0x03;
pub(crate) const ALU: u16 = 0x04;
pub(crate) const JMP: u16 = 0x05;
pub(crate) const RET: u16 = 0x06;
pub(crate) const MISC: u16 = 0x07;

// Sizes of a load.
pub(crate) const W: u16 = 0x00;
pub(crate) const H: u16 = 0x08;
pub(crate) const B: u16 = 0x10;

// Modes of a load.
pub(crate) const IMM: u16 = 0x00;
pub(crate) const ABS: u16 = 0x20;
pub(crate) const IND: u16 = 0x40;
pub(crate) const MEM: u16 = 0x60;
pub(crate) const LEN: u16 = 0x80;
pub(crate) const MSH: u16 = 0xa0;

// Operators.
pub(crate) const ADD: u16 = 0x00;
pub(crate) const SUB: u16 = 0x10;
pub(crate) const MUL: u16 = 0x20;
pub(crate) const DIV: u16 = 0x30;
pub(crate) const OR: u16 = 0x40;
pub(crate) const AND: u16 = 0x50;
pub(crate) const LSH: u16 = 0x60;
pub(crate) const RSH: u16 = 0x70;
pub(crate) const NEG: u16 = 0x80;
pub(crate) const MOD: u16 = 0x90;
pub(crate) const XOR: u16 = 0xa0;

// Jumps.
pub(crate) const JA: u16 = 0x00;
pub(crate) const JEQ: u16 = 0x10;
pub(crate) const JGT: u16 = 0x20;
pub(crate) const JGE: u16 = 0x30;
pub(crate) const JSET: u16 = 0x40;

// Operands: the constant, the index register, and for RET the accumulator.
pub(crate) const K: u16 = 0x00;
pub(crate) const X: u16 = 0x08;
pub(crate) const A: u16 = 0x10;

// Register moves.
pub(crate) const TAX: u16 = 0x00;
pub(crate) const TXA: u16 = 0x80;
