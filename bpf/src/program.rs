//! A filter program as a value: made by the compiler, extended by the exclusion, attached by the sniffer.

use std::fmt;

use crate::instruction::{ABS, Instruction, K, LD, RET};

/// A classic BPF program.
///
/// Nothing is promised of its instructions: the kernel checks them when they are attached, and
/// [`run`](Program::run) treats a senseless one as a rejection.
///
/// `Display` writes it as `tcpdump -ddd` does: the number of instructions, then one `code jt jf k` a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    instructions: Vec<Instruction>,
}

impl Program {
    /// Instructions the kernel takes at most. (`BPF_MAXINSNS`, linux/bpf_common.h)
    pub const MAX_INSTRUCTIONS: usize = 4096;

    /// The program that keeps up to `snaplen` bytes of every frame.
    pub fn accept_all(snaplen: u32) -> Program {
        Program::new(vec![Instruction::statement(RET | K, snaplen)])
    }

    /// The program that rejects every frame: what a socket carries until it is set up.
    pub fn drop_all() -> Program {
        Program::accept_all(0)
    }

    /// A program of instructions from elsewhere.
    pub fn new(instructions: Vec<Instruction>) -> Program {
        Program { instructions }
    }

    /// The instructions in order, in the layout `SO_ATTACH_FILTER` takes.
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// Whether some instruction loads metadata of the kernel, which stands at negative offsets. (`SKF_AD_OFF`,
    /// linux/filter.h)
    ///
    /// Such a program is for a socket; [`run`](Program::run) rejects a packet at that instruction.
    pub fn loads_metadata(&self) -> bool {
        const SIZES: u16 = 0x18;
        self.instructions.iter().any(|instruction| {
            instruction.code & !SIZES == LD | ABS && instruction.k.cast_signed().is_negative()
        })
    }

    /// Makes every accepting `ret #k` keep `snaplen` bytes.
    ///
    /// libpcap returns the snapshot length of its handle, and caps that at 262144 on a live one.
    pub(crate) fn with_snaplen(mut self, snaplen: u32) -> Program {
        for instruction in &mut self.instructions {
            if instruction.code == RET | K && instruction.k != 0 {
                instruction.k = snaplen;
            }
        }
        self
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.instructions.len())?;
        for Instruction { code, jt, jf, k } in &self.instructions {
            writeln!(f, "{code} {jt} {jf} {k}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_what_tcpdump_prints() {
        assert_eq!(Program::accept_all(96).to_string(), "1\n6 0 0 96\n");
    }

    #[test]
    fn snaplen_changes_only_what_accepts() {
        let ret = |k| Instruction::statement(RET | K, k);
        let program = Program::new(vec![ret(64), ret(0)]).with_snaplen(300_000);
        assert_eq!(program.instructions(), [ret(300_000), ret(0)]);
    }
}
