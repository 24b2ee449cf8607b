//! The eBPF program that is cgroup v2's form of device rules.
//!
//! The kernel calls it for each open and mknod with the device and the access bits wanted. The rules are tried from the
//! last to the first; each takes the bits it decides: a deny that meets a wanted bit ends in 0, an allow strikes its bits off
//! and ends in 1 when none is left. Whatever no rule allowed is denied. So, unlike v1, every ordered list can be said.
//!
//! Registers: r1 context, r2 device type, r3 access bits still undecided, r4 major, r5 minor, r0 the answer.

use std::{fs::File, os::fd::AsFd, path::Path};

use super::{
    devices::{Kind, MKNOD, READ, Rule, WRITE},
    error::{Error, Result},
    sys,
};

/// One instruction, in the kernel's layout.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub code: u8,
    /// Destination in the low four bits, source in the high four.
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOVE_REGISTER: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
const MOVE: u8 = 0xb4; // BPF_ALU | BPF_MOV | BPF_K
const AND: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const JUMP_IF_NOT: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K
const JUMP_IF_SET: u8 = 0x46; // BPF_JMP32 | BPF_JSET | BPF_K
const JUMP: u8 = 0x05; // BPF_JMP | BPF_JA
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

/// The context's fields: `access << 16 | type`, major, minor.
const ACCESS_TYPE: i16 = 0;
const MAJOR: i16 = 4;
const MINOR: i16 = 8;
const TYPE_BLOCK: i32 = 1;
const TYPE_CHAR: i32 = 2;

/// More programs than anyone stacks on one cgroup.
const MAX_ATTACHED: usize = 64;

const fn op(code: u8, registers: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers, offset, immediate }
}

/// The kernel's bits of an access mask.
fn kernel_bits(access: u8) -> i32 {
    [(MKNOD, 1), (READ, 2), (WRITE, 4)]
        .into_iter()
        .map(|(bit, kernel)| if access & bit != 0 { kernel } else { 0 })
        .sum()
}

/// The program for an ordered list.
pub(super) fn assemble(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        op(LOAD_WORD, 0x12, ACCESS_TYPE, 0),
        op(MOVE_REGISTER, 0x23, 0, 0),
        op(AND, 0x02, 0, 0xffff),
        op(SHIFT_RIGHT, 0x03, 0, 16),
        op(LOAD_WORD, 0x14, MAJOR, 0),
        op(LOAD_WORD, 0x15, MINOR, 0),
    ];
    let answer = |allow: bool| [op(MOVE, 0x00, 0, i32::from(allow)), op(EXIT, 0, 0, 0)];
    for rule in rules.iter().rev() {
        if rule.covers_everything() {
            program.extend(answer(rule.allow));
            return program; // Nothing before it can matter, and the verifier refuses code that cannot be reached.
        }
        let bits = kernel_bits(rule.access);
        let body = if rule.allow {
            let [yes, exit] = answer(true);
            vec![op(AND, 0x03, 0, !bits), op(JUMP_IF_NOT, 0x03, 2, 0), yes, exit]
        } else {
            let [no, exit] = answer(false);
            vec![op(JUMP_IF_SET, 0x03, 1, bits), op(JUMP, 0, 2, 0), no, exit]
        };
        let kind = match rule.kind {
            Kind::All => None,
            Kind::Char => Some(TYPE_CHAR),
            Kind::Block => Some(TYPE_BLOCK),
        };
        let number = |n: Option<u32>| n.map(|n| n as i32);
        let tests: Vec<(u8, i32)> = [(0x02, kind), (0x04, number(rule.major)), (0x05, number(rule.minor))]
            .into_iter()
            .filter_map(|(register, value)| Some((register, value?)))
            .collect();
        for (done, &(register, value)) in tests.iter().enumerate() {
            let to_next = tests.len() - done - 1 + body.len();
            program.push(op(JUMP_IF_NOT, register, to_next as i16, value));
        }
        program.extend(body);
    }
    program.extend(answer(false));
    program
}

/// Makes `rules` the device rules of a cgroup: the new program is attached before the old ones go.
pub(super) fn install(directory: &Path, rules: &[Rule]) -> Result<()> {
    let failed = |operation| move |e| Error::io(operation, directory, e);
    let cgroup = File::open(directory).map_err(failed("open cgroup"))?;
    let before =
        sys::attached_device_programs(cgroup.as_fd(), MAX_ATTACHED).map_err(failed("list device programs of"))?;
    let unrestricted = matches!(rules, [only] if only.allow && only.covers_everything());
    if !unrestricted {
        let program = sys::load_device_program(&assemble(rules))
            .map_err(failed("load the eBPF program with linux.resources.devices for"))?;
        sys::attach_device_program(cgroup.as_fd(), program.as_fd()).map_err(failed("attach the device program to"))?;
    }
    for id in before {
        sys::detach_device_program(cgroup.as_fd(), id).map_err(failed("detach the former device program of"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::devices::{permits, tests::any_rule};
    use super::*;
    use proptest::prelude::*;

    /// Runs a program as the kernel would; jumps go forward only, so it ends.
    fn run(program: &[Instruction], kind: i32, major: u32, minor: u32, access: i32) -> u32 {
        let context = [(access << 16 | kind) as u32, major, minor];
        let mut r = [0u32; 16];
        let mut at = 0;
        loop {
            let i = program[at];
            let (dst, src) = ((i.registers & 15) as usize, (i.registers >> 4) as usize);
            at += 1;
            match i.code {
                LOAD_WORD => r[dst] = context[i.offset as usize / 4],
                MOVE_REGISTER => r[dst] = r[src],
                MOVE => r[dst] = i.immediate as u32,
                AND => r[dst] &= i.immediate as u32,
                SHIFT_RIGHT => r[dst] >>= i.immediate,
                JUMP_IF_NOT if r[dst] != i.immediate as u32 => at += i.offset as usize,
                JUMP_IF_SET if r[dst] & i.immediate as u32 != 0 => at += i.offset as usize,
                JUMP_IF_NOT | JUMP_IF_SET => {}
                JUMP => at += i.offset as usize,
                EXIT => return r[0],
                other => panic!("unknown code {other:#x}"),
            }
        }
    }

    proptest! {
        #[test]
        fn the_program_says_what_the_list_says(
            rules in prop::collection::vec(any_rule(), 0..8), major in 0u32..3, minor in 0u32..3, access in 1u8..8
        ) {
            let program = assemble(&rules);
            for (kind, number) in [(Kind::Char, TYPE_CHAR), (Kind::Block, TYPE_BLOCK)] {
                let said = run(&program, number, major, minor, kernel_bits(access));
                prop_assert_eq!(said == 1, permits(&rules, kind, major, minor, access));
            }
        }
    }

    #[test]
    fn numbers_beyond_31_bits_compare_as_unsigned() {
        let rule = Rule { allow: true, kind: Kind::Char, major: Some(u32::MAX), minor: None, access: READ };
        assert_eq!(run(&assemble(&[rule]), TYPE_CHAR, u32::MAX, 0, kernel_bits(READ)), 1);
    }
}
