//! The compiler against a naive reading of the profile, and against the kernel.

use std::str::FromStr;

use oci_spec::runtime::{LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator as Op, LinuxSyscall};
use proptest::prelude::*;

use super::{
    assemble::{AND, JUMP, JUMP_EQUAL, JUMP_GREATER, JUMP_GREATER_OR_EQUAL, LOAD, RETURN},
    resolve::{AUDIT_I386, AUDIT_X86_64},
    *,
};

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_THREAD;
const X32: u32 = 0x4000_0000;

fn errno(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number as u32
}

/// One call, as the kernel shows it to a filter.
#[derive(Clone, Copy, Debug)]
struct Call {
    arch: u32,
    number: u32,
    args: [u64; 6],
}

/// Runs a program as the kernel would.
fn run(program: &[Instruction], call: &Call) -> u32 {
    let mut words = [0u32; 16];
    words[0] = call.number;
    words[1] = call.arch;
    for (at, arg) in call.args.iter().enumerate() {
        words[4 + 2 * at] = *arg as u32;
        words[5 + 2 * at] = (*arg >> 32) as u32;
    }
    let (mut a, mut at) = (0u32, 0);
    loop {
        let i = program[at];
        at += 1;
        let holds = match i.code {
            LOAD => {
                a = words[i.operand as usize / 4];
                continue;
            }
            AND => {
                a &= i.operand;
                continue;
            }
            JUMP => {
                at += i.operand as usize;
                continue;
            }
            RETURN => return i.operand,
            JUMP_EQUAL => a == i.operand,
            JUMP_GREATER => a > i.operand,
            JUMP_GREATER_OR_EQUAL => a >= i.operand,
            other => panic!("unknown code {other:#x}"),
        };
        at += usize::from(if holds { i.jump_true } else { i.jump_false });
    }
}

/// The number of a name on an architecture, from the crate's own list.
fn number_of(name: &str, arch: Arch) -> Option<u32> {
    match arch {
        Arch::X86_64 => syscalls::x86_64::Sysno::from_str(name).ok().map(|n| n.id() as u32),
        Arch::I386 => syscalls::x86::Sysno::from_str(name).ok().map(|n| n.id() as u32),
        Arch::X32 => table::lookup(name).and_then(|n| n.x32()),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Arch {
    X86_64,
    X32,
    I386,
}

fn action(action: LinuxSeccompAction, number: Option<u32>) -> u32 {
    let data = number.unwrap_or(1);
    match action {
        LinuxSeccompAction::ScmpActErrno => errno(data as i32),
        LinuxSeccompAction::ScmpActTrace => libc::SECCOMP_RET_TRACE | data,
        other => other.as_u32(None),
    }
}

fn holds(arg: &LinuxSeccompArg, args: &[u64; 6], arch: Arch) -> bool {
    let cut = |v: u64| if arch == Arch::X86_64 { v } else { v & 0xffff_ffff };
    let (value, two, actual) = (cut(arg.value()), cut(arg.value_two().unwrap_or(0)), cut(args[arg.index()]));
    match arg.op() {
        Op::ScmpCmpNe => actual != value,
        Op::ScmpCmpLt => actual < value,
        Op::ScmpCmpLe => actual <= value,
        Op::ScmpCmpEq => actual == value,
        Op::ScmpCmpGe => actual >= value,
        Op::ScmpCmpGt => actual > value,
        Op::ScmpCmpMaskedEq => actual & value == two & value,
    }
}

/// What the profile means, read naively: rule by rule for one call.
fn meaning(profile: &LinuxSeccomp, call: &Call) -> u32 {
    let default = action(profile.default_action(), profile.default_errno_ret());
    let lists = |a| profile.architectures().iter().flatten().any(|l| *l == a);
    let arch = match (call.arch, call.number & X32 != 0) {
        (AUDIT_X86_64, false) => Arch::X86_64,
        (AUDIT_X86_64, true) if lists(oci_spec::runtime::Arch::ScmpArchX32) => Arch::X32,
        (AUDIT_X86_64, true) if call.number == u32::MAX => return default,
        (AUDIT_I386, _) if lists(oci_spec::runtime::Arch::ScmpArchX86) => Arch::I386,
        _ => return KILL,
    };
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    let names = rules.iter().flat_map(|r| r.names());
    let carrier = |name: &str| Some(table::lookup(name)?.i386_through()?.0).filter(|_| arch == Arch::I386);
    let last = names.flat_map(|n| [number_of(n, arch), carrier(n)]).flatten().max().unwrap_or(0);
    let permissive = [ALLOW, libc::SECCOMP_RET_LOG, libc::SECCOMP_RET_TRACE].contains(&(default & 0xffff_0000));
    if last != 0 && call.number > last && !permissive {
        return errno(libc::ENOSYS);
    }
    let mut conditional = None;
    for (rule, name) in rules.iter().flat_map(|r| r.names().iter().map(move |n| (r, n))) {
        let verdict = action(rule.action(), rule.errno_ret());
        if verdict == default {
            continue;
        }
        let args = rule.args().as_deref().unwrap_or_default();
        let mut indexes: Vec<_> = args.iter().map(LinuxSeccompArg::index).collect();
        indexes.sort_unstable();
        let alternatives = indexes.windows(2).any(|w| w[0] == w[1]);
        let all = |skip: Option<usize>| {
            let mut kept = args.iter().filter(|a| Some(a.index()) != skip);
            if alternatives {
                args.iter().any(|a| Some(a.index()) == skip || holds(a, &call.args, arch))
            } else {
                kept.all(|a| holds(a, &call.args, arch))
            }
        };
        if number_of(name, arch) == Some(call.number) {
            if args.is_empty() {
                return verdict;
            }
            if all(None) {
                conditional.get_or_insert(verdict);
            }
        }
        let carried = table::lookup(name).and_then(|n| n.i386_through()).filter(|_| arch == Arch::I386);
        if let Some((carrier, selector)) = carried
            && carrier == call.number
            && call.args[0] as u32 == selector
            && all(Some(0))
        {
            conditional.get_or_insert(verdict);
        }
    }
    conditional.unwrap_or(default)
}

fn names() -> impl Strategy<Value = String> {
    const SOME: &[&str] = &[
        "read",
        "write",
        "ioctl",
        "socket",
        "sendmsg",
        "recv",
        "semop",
        "shmctl",
        "clone",
        "personality",
        "socketcall",
        "ipc",
        "chown32",
        "openat2",
        "epoll_ctl_old",
        "no_such_call",
        "preadv2",
        "mount_setattr",
        "time",
    ];
    prop_oneof![
        3 => prop::sample::select(SOME).prop_map(str::to_owned),
        1 => (0usize..470).prop_map(|n| syscalls::x86_64::Sysno::new(n).map_or("brk", |s| s.name()).to_owned()),
    ]
}

fn values() -> impl Strategy<Value = u64> {
    prop::sample::select(&[0u64, 1, 2, 9, 38, 39, 40, 41, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0001, u64::MAX][..])
}

fn args() -> impl Strategy<Value = LinuxSeccompArg> {
    let ops =
        [Op::ScmpCmpNe, Op::ScmpCmpLt, Op::ScmpCmpLe, Op::ScmpCmpEq, Op::ScmpCmpGe, Op::ScmpCmpGt, Op::ScmpCmpMaskedEq];
    (0usize..6, values(), prop::option::of(values()), prop::sample::select(ops.to_vec())).prop_map(
        |(index, value, two, op)| {
            let arg = LinuxSeccompArgBuilder::default().index(index).value(value).op(op);
            match two {
                Some(two) => arg.value_two(two),
                None => arg,
            }
            .build()
            .unwrap()
        },
    )
}

fn actions() -> impl Strategy<Value = LinuxSeccompAction> {
    use LinuxSeccompAction::*;
    prop::sample::select(
        &[ScmpActKill, ScmpActKillProcess, ScmpActTrap, ScmpActErrno, ScmpActTrace, ScmpActLog, ScmpActAllow][..],
    )
}

/// Whether an action has a number of its own.
fn numbered(action: LinuxSeccompAction) -> bool {
    matches!(action, LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace)
}

fn rules() -> impl Strategy<Value = LinuxSyscall> {
    let errno = prop::option::of(0u32..4096);
    let args = prop::option::of(prop::collection::vec(args(), 0..4));
    (prop::collection::vec(names(), 1..6), actions(), errno, args).prop_map(|(names, action, errno, args)| {
        let mut rule = LinuxSyscall::default();
        rule.set_names(names).set_action(action).set_errno_ret(errno.filter(|_| numbered(action))).set_args(args);
        rule
    })
}

fn profiles() -> impl Strategy<Value = LinuxSeccomp> {
    use oci_spec::runtime::Arch::*;
    let archs = prop::option::of(prop::sample::subsequence(
        vec![ScmpArchX86_64, ScmpArchX86, ScmpArchX32, ScmpArchAarch64],
        0..4,
    ));
    (actions(), prop::option::of(0u32..200), archs, prop::collection::vec(rules(), 0..12)).prop_map(
        |(action, errno, archs, rules)| {
            let mut profile = LinuxSeccomp::default();
            profile.set_default_action(action).set_default_errno_ret(errno.filter(|_| numbered(action)));
            profile.set_architectures(archs).set_syscalls(Some(rules));
            profile
        },
    )
}

/// Calls that the profile speaks of, their neighbours, and any others.
fn calls(profile: &LinuxSeccomp, seeds: &[(u32, [u64; 6])]) -> Vec<Call> {
    let named = profile.syscalls().iter().flatten().flat_map(|r| r.names().clone());
    let mut numbers: Vec<u32> = vec![0, 1, 102, 117, 335, 469, 470, X32 - 1, X32, X32 + 547, u32::MAX];
    for name in named {
        for arch in [Arch::X86_64, Arch::X32, Arch::I386] {
            numbers.extend(number_of(&name, arch).into_iter().flat_map(|n| [n.saturating_sub(1), n, n + 1]));
        }
    }
    let mut calls = Vec::new();
    for (at, number) in numbers.iter().enumerate() {
        for (seed, args) in seeds {
            let arch = [AUDIT_X86_64, AUDIT_I386, 0xc000_00b7][(at as u32 + seed) as usize % 3];
            calls.push(Call { arch, number: *number, args: *args });
            calls.push(Call { arch: AUDIT_X86_64, number: *number, args: *args });
        }
    }
    calls
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_program_says_what_the_profile_means(
        profile in profiles(),
        seeds in prop::collection::vec((0u32..3, prop::array::uniform6(values())), 1..6)
    ) {
        let program = compile(&profile).unwrap();
        prop_assert_eq!(Program::from_bytes(&program.to_bytes()), Some(program.clone()));
        for call in calls(&profile, &seeds) {
            prop_assert_eq!(run(program.instructions(), &call), meaning(&profile, &call), "{:x?}", call);
        }
    }
}

#[test]
fn a_call_that_carries_a_named_one_is_not_newer_than_the_profile() {
    let profile = profile(
        r#"{"defaultAction":"SCMP_ACT_TRAP","architectures":["SCMP_ARCH_X86"],
            "syscalls":[{"names":["read","recv"],"action":"SCMP_ACT_ALLOW"}]}"#,
    );
    let program = compile(&profile).unwrap();
    let (socketcall, recv) = (102, 10);
    let said =
        |number, first| run(program.instructions(), &Call { arch: AUDIT_I386, number, args: [first, 0, 0, 0, 0, 0] });
    assert_eq!(said(socketcall, recv), ALLOW);
    assert_eq!(said(socketcall, recv + 1), libc::SECCOMP_RET_TRAP);
    assert_eq!(said(socketcall - 1, recv), libc::SECCOMP_RET_TRAP);
    assert_eq!(said(socketcall + 1, recv), errno(libc::ENOSYS));
}

#[test]
fn bytes_that_are_no_whole_program_are_none() {
    let bytes = compile(&profile(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#)).unwrap().to_bytes();
    assert!(Program::from_bytes(&bytes).is_some());
    for length in [0, 7, 8, 16, bytes.len() - 1] {
        assert_eq!(Program::from_bytes(&bytes[..length]), None, "{length}");
    }
    assert_eq!(Program::from_bytes(&bytes[8..]), None, "no compiler's");
    assert_eq!(Program::from_bytes(&[b"seccomp\x01", &bytes[8..]].concat()), None, "another compiler's");
}

fn profile(json: &str) -> LinuxSeccomp {
    serde_json::from_str(json).unwrap()
}

/// A profile that allows every call with a condition of its own, so that the program is long.
fn long_profile(conditions: usize) -> LinuxSeccomp {
    let args: Vec<String> =
        (0..conditions).map(|n| format!(r#"{{"index":{n},"value":{},"op":"SCMP_CMP_GT"}}"#, 1u64 << 40)).collect();
    let rule = |n: syscalls::x86_64::Sysno| {
        format!(
            r#"{{"names":["{n}"],"action":"SCMP_ACT_ERRNO","errnoRet":{},"args":[{}]}}"#,
            n.id() + 1,
            args.join(",")
        )
    };
    let rules: Vec<String> = syscalls::x86_64::Sysno::iter().map(rule).collect();
    profile(&format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{}]}}"#, rules.join(",")))
}

#[test]
fn jumps_reach_far_in_long_programs() {
    let profile = long_profile(1);
    let program = compile(&profile).unwrap();
    assert!(program.instructions().len() > 2000);
    for number in 0..500 {
        for arg in [0, 1 << 40, (1 << 40) + 1] {
            let call = Call { arch: AUDIT_X86_64, number, args: [arg; 6] };
            assert_eq!(run(program.instructions(), &call), meaning(&profile, &call), "{call:?}");
        }
    }
}

#[test]
fn a_program_longer_than_the_kernel_takes_is_an_error() {
    assert!(matches!(compile(&long_profile(6)), Err(Error::TooLong(_))));
}

#[test]
fn what_cannot_be_is_refused_with_its_place() {
    let refusals = [
        (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "defaultAction"),
        (r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":5000}"#, "defaultErrnoRet"),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["write"],"action":"SCMP_ACT_NOTIFY"}]}"#,
            "syscalls[0]",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_KILL","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
            "syscalls[0].args",
        ),
    ];
    for (json, place) in refusals {
        let error = compile(&profile(json)).unwrap_err().to_string();
        assert!(error.starts_with(&format!("linux.seccomp.{place}:")), "{error}");
    }
}

#[test]
fn flags_are_those_the_kernel_takes_together() {
    let flags = r#""flags":["SECCOMP_FILTER_FLAG_TSYNC","SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_SPEC_ALLOW","SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]"#;
    let plain = compile(&profile(&format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW",{flags}}}"#))).unwrap();
    assert_eq!(plain.flags, 0b0111);
    assert!(!plain.has_listener());
    let rule = r#""syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"}]"#;
    let notify = compile(&profile(&format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW",{flags},{rule}}}"#))).unwrap();
    assert_eq!(notify.flags, 0b11_1111);
    assert!(notify.has_listener());
}

/// Runs `body` under a filter in a forked child; what it returns becomes the exit code.
fn under(json: &str, body: fn() -> i32) -> nix::sys::wait::WaitStatus {
    let program = compile(&profile(json)).unwrap();
    super::sys::tests::forked(move || match load(&program) {
        Ok(_) => body(),
        Err(_) => 99,
    })
}

#[test]
fn the_kernel_enforces_errno_and_conditions() {
    use nix::sys::wait::WaitStatus::Exited;
    let json = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"],
        "flags":["SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_SPEC_ALLOW","SECCOMP_FILTER_FLAG_TSYNC"],
        "syscalls":[{"names":["getppid"],"action":"SCMP_ACT_ERRNO","errnoRet":42},
                    {"names":["kill"],"action":"SCMP_ACT_ERRNO","args":[{"index":1,"value":4294967296,"op":"SCMP_CMP_GE"}]}]}"#;
    let status = under(json, || {
        let answers = [
            super::sys::tests::call(libc::SYS_getppid, [0, 0]),
            super::sys::tests::call(libc::SYS_kill, [std::process::id() as u64, 1 << 32]),
            super::sys::tests::call(libc::SYS_kill, [std::process::id() as u64, 0]),
        ];
        i32::from(answers != [Err(42), Err(libc::EPERM), Ok(0)])
    });
    assert!(matches!(status, Exited(_, 0)), "{status:?}");
}

#[test]
fn the_kernel_kills_and_traps() {
    use nix::sys::{signal::Signal, wait::WaitStatus::Signaled};
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        let json =
            format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["getppid"],"action":"{action}"}}]}}"#);
        let status = under(&json, || super::sys::tests::call(libc::SYS_getppid, [0, 0]).is_ok().into());
        assert!(matches!(status, Signaled(_, Signal::SIGSYS, _)), "{action}: {status:?}");
    }
}

#[test]
fn a_notifying_filter_gives_a_listener() {
    let json = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"}],
        "flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}"#;
    let program = compile(&profile(json)).unwrap();
    let status = super::sys::tests::forked(move || load(&program).is_ok_and(|fd| fd.is_some()).into());
    assert!(matches!(status, nix::sys::wait::WaitStatus::Exited(_, 1)), "{status:?}");
}

#[test]
fn loading_without_the_right_says_what_is_missing() {
    let error = Error::Load { instructions: 3, hint: " (x)", cause: io::Error::from_raw_os_error(libc::EACCES) };
    assert_eq!(error.to_string(), "load seccomp filter of 3 instructions: Permission denied (os error 13) (x)");
}
