//! Writes programs with labels in place of distances.
//!
//! A conditional jump reaches 255 instructions, `ja` any; distances are checked when the labels are resolved. All
//! jumps go forward, as the kernel demands.

use crate::instruction::{Instruction, JA, JEQ, JGE, JMP, JSET, K, X};

/// A place in the program that a jump goes to. Placed once, before or after it is used in a jump.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label(usize);

/// Where a conditional jump goes: on, or to a label.
#[derive(Clone, Copy)]
pub(crate) enum To {
    Next,
    Label(Label),
}

impl From<Label> for To {
    fn from(label: Label) -> To {
        To::Label(label)
    }
}

/// A program being written.
#[derive(Default)]
pub(crate) struct Assembler {
    instructions: Vec<Instruction>,
    /// Index of the instruction a label stands before.
    places: Vec<Option<usize>>,
    jumps: Vec<Jump>,
}

struct Jump {
    at: usize,
    when_true: To,
    when_false: To,
}

/// A condition on the accumulator.
#[derive(Clone, Copy)]
pub(crate) enum Condition {
    Equals(u32),
    AtLeast(u32),
    AtLeastX,
    AnyBit(u32),
}

impl Assembler {
    pub(crate) fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// Puts `label` before the next instruction.
    pub(crate) fn place(&mut self, label: Label) {
        debug_assert!(self.places[label.0].is_none(), "a label has one place");
        self.places[label.0] = Some(self.instructions.len());
    }

    pub(crate) fn emit(&mut self, code: u16, k: u32) {
        self.instructions.push(Instruction::statement(code, k));
    }

    /// Jumps to a label however far away.
    pub(crate) fn goto(&mut self, label: Label) {
        self.jumps.push(Jump { at: self.instructions.len(), when_true: label.into(), when_false: To::Next });
        self.emit(JMP | JA, 0);
    }

    /// Jumps on a condition; both places are less than 256 instructions away.
    pub(crate) fn branch(
        &mut self,
        condition: Condition,
        when_true: impl Into<To>,
        when_false: impl Into<To>,
    ) {
        let (code, k) = match condition {
            Condition::Equals(k) => (JEQ | K, k),
            Condition::AtLeast(k) => (JGE | K, k),
            Condition::AtLeastX => (JGE | X, 0),
            Condition::AnyBit(k) => (JSET | K, k),
        };
        let (when_true, when_false) = (when_true.into(), when_false.into());
        self.jumps.push(Jump { at: self.instructions.len(), when_true, when_false });
        self.emit(JMP | code, k);
    }

    /// Goes on when the condition holds, to `label` when it does not.
    pub(crate) fn require(&mut self, condition: Condition, otherwise: Label) {
        self.branch(condition, To::Next, otherwise);
    }

    /// The program, its labels resolved.
    pub(crate) fn finish(mut self) -> Vec<Instruction> {
        for Jump { at, when_true, when_false } in std::mem::take(&mut self.jumps) {
            let (when_true, when_false) = (self.distance(at, when_true), self.distance(at, when_false));
            let instruction = &mut self.instructions[at];
            if instruction.code == JMP | JA {
                instruction.k = u32::try_from(when_true).expect("a program is shorter than 2^32");
            } else {
                // The callers keep their conditional jumps inside pieces of bounded size.
                instruction.jt = u8::try_from(when_true).expect("pieces are shorter than 256");
                instruction.jf = u8::try_from(when_false).expect("pieces are shorter than 256");
            }
        }
        self.instructions
    }

    fn distance(&self, at: usize, to: To) -> usize {
        match to {
            To::Next => 0,
            To::Label(label) => self.places[label.0]
                .and_then(|place| place.checked_sub(at + 1))
                .expect("every label is placed, after the jumps to it"),
        }
    }
}
