//! Evaluation in user space.
//!
//! It ends for every program and every packet, without a panic. Whatever has no meaning, an unknown instruction, a
//! jump out of the program, a load past the captured bytes, a division by zero, rejects the packet, as `bpf_filter` of
//! libpcap does.

use crate::instruction::{
    A, ABS, ADD, ALU, AND, B, DIV, H, IMM, IND, Instruction, JA, JEQ, JGE, JGT, JMP, JSET, K, LD, LDX, LEN,
    LSH, MEM, MEMORY_WORDS, MISC, MOD, MSH, MUL, NEG, OR, RET, RSH, ST, STX, SUB, TAX, TXA, W, X, XOR,
};
use crate::program::Program;

impl Program {
    /// Bytes of `packet` to keep, 0 to reject it.
    ///
    /// `packet` is what was captured, from the link layer on, and `wire_len` what `len` means in an expression: the
    /// length the frame had on the wire. The result is the program's own number, usually the snaplen it was compiled
    /// with; it can exceed `packet.len()`.
    ///
    /// Loads of kernel metadata (`SKF_AD_*`, as in programs of `compile_live`) have no source here and reject.
    pub fn run(&self, packet: &[u8], wire_len: u32) -> u32 {
        Machine { packet, wire_len, a: 0, x: 0, memory: [0; MEMORY_WORDS] }
            .run(self.instructions())
            .unwrap_or(0)
    }
}

/// Registers and memory of one evaluation.
struct Machine<'a> {
    packet: &'a [u8],
    wire_len: u32,
    a: u32,
    x: u32,
    memory: [u32; MEMORY_WORDS],
}

/// What follows an instruction.
enum Step {
    /// Skip this many instructions; negative goes back.
    Skip(i64),
    Return(u32),
}

impl Machine<'_> {
    /// The program's answer; `None` for whatever has no meaning.
    fn run(mut self, instructions: &[Instruction]) -> Option<u32> {
        // Only `protochain` jumps back, once for each header of a chain, and the smallest such header has 8 bytes.
        // Between two jumps back the program only moves forward, so this bounds the steps too.
        let mut jumps_back_left = self.packet.len() / 8 + 1;
        let mut next = 0_usize;
        loop {
            match self.step(instructions.get(next)?)? {
                Step::Return(keep) => return Some(keep),
                Step::Skip(skip) => {
                    if skip < 0 {
                        jumps_back_left = jumps_back_left.checked_sub(1)?;
                    }
                    next = usize::try_from(i64::try_from(next).ok()? + 1 + skip).ok()?;
                }
            }
        }
    }

    fn step(&mut self, instruction: &Instruction) -> Option<Step> {
        let &Instruction { code, jt, jf, k } = instruction;
        match code & 0x07 {
            LD => self.a = self.load(code, k)?,
            LDX => {
                self.x = match code {
                    c if c == LDX | W | IMM => k,
                    c if c == LDX | W | MEM => *self.word(k)?,
                    c if c == LDX | W | LEN => self.wire_len,
                    c if c == LDX | B | MSH => (self.fetch(u64::from(k), 1)? & 0x0f) * 4,
                    _ => return None,
                }
            }
            ST if code == ST => *self.word(k)? = self.a,
            STX if code == STX => *self.word(k)? = self.x,
            ALU => self.a = self.calculate(code, k)?,
            JMP => return self.jump(code, jt, jf, k),
            RET => {
                return match code {
                    c if c == RET | K => Some(Step::Return(k)),
                    c if c == RET | A => Some(Step::Return(self.a)),
                    c if c == RET | X => Some(Step::Return(self.x)),
                    _ => None,
                };
            }
            MISC => match code {
                c if c == MISC | TAX => self.x = self.a,
                c if c == MISC | TXA => self.a = self.x,
                _ => return None,
            },
            _ => return None,
        }
        Some(Step::Skip(0))
    }

    fn load(&mut self, code: u16, k: u32) -> Option<u32> {
        let size = match code & 0x18 {
            W => 4,
            H => 2,
            B => 1,
            _ => return None,
        };
        match code & !0x18 {
            // As a signed number an offset into metadata is negative; as this one it is past every packet.
            c if c == LD | ABS => self.fetch(u64::from(k), size),
            c if c == LD | IND => self.fetch(u64::from(self.x) + u64::from(k), size),
            _ => match code {
                c if c == LD | W | IMM => Some(k),
                c if c == LD | W | MEM => self.word(k).copied(),
                c if c == LD | W | LEN => Some(self.wire_len),
                _ => None,
            },
        }
    }

    /// Reads `size` bytes of the packet as a number in network byte order.
    fn fetch(&self, offset: u64, size: usize) -> Option<u32> {
        let offset = usize::try_from(offset).ok()?;
        let bytes = self.packet.get(offset..offset.checked_add(size)?)?;
        Some(bytes.iter().fold(0, |number, &byte| number << 8 | u32::from(byte)))
    }

    fn word(&mut self, index: u32) -> Option<&mut u32> {
        self.memory.get_mut(usize::try_from(index).ok()?)
    }

    fn calculate(&self, code: u16, k: u32) -> Option<u32> {
        let operand = if code & X != 0 { self.x } else { k };
        Some(match code & !(ALU | X) {
            ADD => self.a.wrapping_add(operand),
            SUB => self.a.wrapping_sub(operand),
            MUL => self.a.wrapping_mul(operand),
            DIV => self.a.checked_div(operand)?,
            MOD => self.a.checked_rem(operand)?,
            OR => self.a | operand,
            AND => self.a & operand,
            XOR => self.a ^ operand,
            // A shift by 32 or more leaves nothing, as in libpcap; the kernel would shift by the low 5 bits.
            LSH => self.a.checked_shl(operand).unwrap_or(0),
            RSH => self.a.checked_shr(operand).unwrap_or(0),
            NEG => self.a.wrapping_neg(),
            _ => return None,
        })
    }

    fn jump(&self, code: u16, jt: u8, jf: u8, k: u32) -> Option<Step> {
        if code == JMP | JA {
            return Some(Step::Skip(i64::from(k.cast_signed())));
        }
        let operand = if code & X != 0 { self.x } else { k };
        let holds = match code & !(JMP | X) {
            JEQ => self.a == operand,
            JGT => self.a > operand,
            JGE => self.a >= operand,
            JSET => self.a & operand != 0,
            _ => return None,
        };
        Some(Step::Skip(i64::from(if holds { jt } else { jf })))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(instructions: &[Instruction], packet: &[u8]) -> u32 {
        Program::new(instructions.to_vec()).run(packet, packet.len() as u32)
    }

    fn op(code: u16, k: u32) -> Instruction {
        Instruction::statement(code, k)
    }

    const RETURN_A: Instruction = Instruction::statement(RET | A, 0);

    #[test]
    fn loads_are_big_endian_and_checked() {
        let packet = [0x12, 0x34, 0x56, 0x78, 0x9a];
        assert_eq!(run(&[op(LD | W | ABS, 1), RETURN_A], &packet), 0x3456_789a);
        assert_eq!(run(&[op(LD | W | ABS, 2), RETURN_A], &packet), 0);
        assert_eq!(run(&[op(LD | H | ABS, 3), RETURN_A], &packet), 0x789a);
        assert_eq!(run(&[op(LD | B | ABS, 4), RETURN_A], &packet), 0x9a);
        assert_eq!(run(&[op(LDX | W | IMM, 3), op(LD | B | IND, 1), RETURN_A], &packet), 0x9a);
        assert_eq!(run(&[op(LDX | W | IMM, u32::MAX), op(LD | B | IND, 1), RETURN_A], &packet), 0);
        assert_eq!(run(&[op(LDX | B | MSH, 1), op(MISC | TXA, 0), RETURN_A], &packet), 16);
    }

    #[test]
    fn len_is_the_length_on_the_wire() {
        let program = Program::new(vec![op(LD | W | LEN, 0), RETURN_A]);
        assert_eq!(program.run(&[0; 64], 1514), 1514);
    }

    #[test]
    fn metadata_rejects() {
        const SKF_AD_VLAN_TAG_PRESENT: u32 = (-0x1000_i32 + 48).cast_unsigned();
        let program = [op(LD | B | ABS, SKF_AD_VLAN_TAG_PRESENT), op(RET | K, 7)];
        assert_eq!(run(&program, &[0; 64]), 0);
    }

    #[test]
    fn division_by_zero_rejects() {
        for operator in [DIV, MOD] {
            assert_eq!(run(&[op(LD | W | IMM, 9), op(ALU | operator | X, 0), op(RET | K, 7)], &[]), 0);
        }
    }

    #[test]
    fn shifts_of_a_whole_word_leave_nothing() {
        for operator in [LSH, RSH] {
            let program = [
                op(LD | W | IMM, 9),
                op(LDX | W | IMM, 32),
                op(ALU | operator | X, 0),
                op(ALU | ADD, 5),
                RETURN_A,
            ];
            assert_eq!(run(&program, &[]), 5);
        }
    }

    #[test]
    fn endless_loop_ends() {
        assert_eq!(run(&[op(JMP | JA, (-1_i32).cast_unsigned())], &[0; 1500]), 0);
    }

    #[test]
    fn end_without_ret_rejects() {
        assert_eq!(run(&[], &[0; 8]), 0);
        assert_eq!(run(&[op(LD | W | IMM, 9)], &[0; 8]), 0);
        assert_eq!(run(&[op(JMP | JA, u32::MAX - 1)], &[0; 8]), 0);
    }

    fn instruction() -> impl Strategy<Value = Instruction> {
        (
            0_u16..0x100,
            0_u8..8,
            0_u8..8,
            prop_oneof![0_u32..40, any::<u32>(), (-9_i32..0).prop_map(i32::cast_unsigned)],
        )
            .prop_map(|(code, jt, jf, k)| Instruction { code, jt, jf, k })
    }

    proptest! {
        #[test]
        fn any_program_ends(
            program in proptest::collection::vec(instruction(), 0..40),
            packet in proptest::collection::vec(any::<u8>(), 0..64),
            wire_len: u32,
        ) {
            Program::new(program).run(&packet, wire_len);
        }
    }
}
