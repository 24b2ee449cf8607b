//! From ranges and outcomes to classic BPF.
//!
//! The program: load the architecture, go to its section or kill; in a section, load the number and search the ranges by
//! halves; at a leaf return, or compare arguments (32 bits at a time, the upper half first) and return.
//!
//! It is put together from its end to its beginning, since jumps go forward only: when a jump is written, its target is
//! there already, and a place is named by its distance from the end. Conditional jumps reach 255 instructions; farther ones
//! go through an unconditional one.

use super::{
    Error,
    resolve::{Architecture, BAD_ARCHITECTURE, Condition, Outcome, Rule, Test},
};

/// The kernel's BPF_MAXINSNS.
pub(super) const MAX_INSTRUCTIONS: usize = 4096;

/// One instruction, in the layout of the kernel's `sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if true.
    pub jump_true: u8,
    /// Instructions to skip if false.
    pub jump_false: u8,
    /// Operand.
    pub operand: u32,
}

impl Instruction {
    /// As it is in memory.
    pub fn to_bytes(self) -> [u8; 8] {
        let ([a, b], [c, d, e, f]) = (self.code.to_ne_bytes(), self.operand.to_ne_bytes());
        [a, b, self.jump_true, self.jump_false, c, d, e, f]
    }

    /// What [`to_bytes`](Self::to_bytes) gave.
    pub fn from_bytes([a, b, jump_true, jump_false, c, d, e, f]: [u8; 8]) -> Instruction {
        let (code, operand) = (u16::from_ne_bytes([a, b]), u32::from_ne_bytes([c, d, e, f]));
        Instruction { code, jump_true, jump_false, operand }
    }
}

pub(super) const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
pub(super) const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
pub(super) const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
pub(super) const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
pub(super) const JUMP_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
pub(super) const JUMP_GREATER_OR_EQUAL: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
pub(super) const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// As far as a conditional jump is let go: below 255, as room for the long jumps that may come between.
const REACH: usize = 250;

/// A place in the program: the number of instructions from there to the end.
type Place = usize;

/// The program for all architectures.
pub(super) fn program(architectures: &[Architecture]) -> Result<Vec<Instruction>, Error> {
    let mut code = Code::default();
    let sections: Vec<(u32, Place)> = architectures.iter().rev().map(|a| (a.audit, code.section(&a.ranges))).collect();
    let mut otherwise = code.ret(BAD_ARCHITECTURE);
    for (audit, section) in sections {
        otherwise = code.branch(JUMP_EQUAL, audit, section, otherwise);
    }
    code.push(LOAD, ARCHITECTURE);
    if code.reversed.len() > MAX_INSTRUCTIONS {
        return Err(Error::TooLong(code.reversed.len()));
    }
    code.reversed.reverse();
    Ok(code.reversed)
}

/// The program so far, the last instruction first.
#[derive(Default)]
struct Code {
    reversed: Vec<Instruction>,
    /// Return instructions by value, to be shared by those within reach.
    returns: Vec<(u32, Place)>,
}

impl Code {
    fn push(&mut self, code: u16, operand: u32) -> Place {
        self.reversed.push(Instruction { code, jump_true: 0, jump_false: 0, operand });
        self.reversed.len()
    }

    /// A conditional jump to two places.
    fn branch(&mut self, code: u16, operand: u32, if_true: Place, if_false: Place) -> Place {
        if if_true == if_false {
            return if_true;
        }
        let if_true = self.within_reach(if_true);
        let if_false = self.within_reach(if_false);
        let here = self.reversed.len();
        self.reversed.push(Instruction {
            code,
            jump_true: (here - if_true) as u8,
            jump_false: (here - if_false) as u8,
            operand,
        });
        here + 1
    }

    fn within_reach(&mut self, place: Place) -> Place {
        let distance = self.reversed.len() - place;
        if distance <= REACH { place } else { self.push(JUMP, distance as u32) }
    }

    /// A return with this value: one that is near, or a new one.
    fn ret(&mut self, value: u32) -> Place {
        let end = self.reversed.len();
        match self.returns.iter_mut().find(|(known, _)| *known == value) {
            Some((_, place)) if end - *place <= REACH / 2 => *place,
            Some((_, place)) => {
                *place = end + 1;
                self.push(RETURN, value)
            }
            None => {
                self.returns.push((value, end + 1));
                self.push(RETURN, value)
            }
        }
    }

    /// A whole architecture.
    fn section(&mut self, ranges: &[(u32, Outcome)]) -> Place {
        // Argument checks first (so, behind the search): a search is compact then, and its jumps are short.
        let mut places = Vec::with_capacity(ranges.len());
        for (_, outcome) in ranges {
            places.push(match outcome {
                Outcome::Return(_) => None,
                Outcome::Check { rules, otherwise } => Some(self.checks(rules, *otherwise)),
            });
        }
        let search = self.search(ranges, &places);
        // Fall into the search; it may be a lone return elsewhere.
        let search =
            if search == self.reversed.len() { search } else { self.push(JUMP, (self.reversed.len() - search) as u32) };
        debug_assert_eq!(search, self.reversed.len());
        self.push(LOAD, NUMBER)
    }

    /// A binary search; its depth is the logarithm of the number of ranges.
    fn search(&mut self, ranges: &[(u32, Outcome)], places: &[Option<Place>]) -> Place {
        if let [(_, outcome)] = ranges {
            return match (outcome, places[0]) {
                (Outcome::Return(value), _) => self.ret(*value),
                (_, Some(place)) => place,
                (Outcome::Check { otherwise, .. }, None) => self.ret(*otherwise),
            };
        }
        let middle = ranges.len() / 2;
        let upper = self.search(&ranges[middle..], &places[middle..]);
        let lower = self.search(&ranges[..middle], &places[..middle]);
        self.branch(JUMP_GREATER_OR_EQUAL, ranges[middle].0, upper, lower)
    }

    /// Rules in their order, each falling to the next.
    fn checks(&mut self, rules: &[Rule], otherwise: u32) -> Place {
        let mut next = self.ret(otherwise);
        for rule in rules.iter().rev() {
            let mut then = self.ret(rule.verdict);
            for condition in rule.conditions.iter().rev() {
                then = self.condition(condition, then, next);
            }
            next = then;
        }
        next
    }

    /// One comparison of an argument.
    fn condition(&mut self, condition: &Condition, then: Place, otherwise: Place) -> Place {
        let argument = ARGUMENTS + 8 * u32::from(condition.index);
        let halves = |value: u64| ((value >> 32) as u32, value as u32);
        let (negated, value) = match condition.test {
            Test::Equal { value, negated, .. }
            | Test::Greater { value, negated }
            | Test::GreaterOrEqual { value, negated } => (negated, value),
        };
        let (yes, no) = if negated { (otherwise, then) } else { (then, otherwise) };
        if yes == no {
            return yes; // Nothing depends on it.
        }
        let (high, low) = halves(value);
        match condition.test {
            Test::Equal { mask, .. } => {
                let (high_mask, low_mask) = halves(mask);
                let place = self.equal(argument, low_mask, low, yes, no);
                if condition.wide { self.equal(argument + 4, high_mask, high, place, no) } else { place }
            }
            Test::Greater { .. } | Test::GreaterOrEqual { .. } => {
                let strict = matches!(condition.test, Test::Greater { .. });
                self.branch(if strict { JUMP_GREATER } else { JUMP_GREATER_OR_EQUAL }, low, yes, no);
                let place = self.push(LOAD, argument);
                if !condition.wide {
                    return place;
                }
                let same = self.branch(JUMP_EQUAL, high, place, no);
                self.branch(JUMP_GREATER, high, yes, same);
                self.push(LOAD, argument + 4)
            }
        }
    }

    /// Half of a masked equality: nothing where the mask is empty.
    fn equal(&mut self, word: u32, mask: u32, value: u32, yes: Place, no: Place) -> Place {
        if mask == 0 {
            return yes;
        }
        self.branch(JUMP_EQUAL, value, yes, no);
        if mask != u32::MAX {
            self.push(AND, mask);
        }
        self.push(LOAD, word)
    }
}
