//! From the profile to what each architecture does with each range of system call numbers.

use std::ops::Range;

use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall};

use super::{
    Error,
    table::{self, Numbers, X32_BIT},
};

pub(super) const AUDIT_X86_64: u32 = 0xc000_003e;
pub(super) const AUDIT_I386: u32 = 0x4000_0003;

/// What libseccomp does with an architecture that the profile does not list: kill the thread.
pub(super) const BAD_ARCHITECTURE: u32 = libc::SECCOMP_RET_KILL_THREAD;
const RET_ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
/// The kernel cuts larger error numbers off.
const MAX_ERRNO: u32 = 4095;
/// What a tracer can be told.
const MAX_TRACE: u32 = 0xffff;
/// A system call has six arguments.
const ARGUMENTS: usize = 6;

/// A comparison of one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub index: u8,
    pub test: Test,
    /// True where the upper half counts.
    pub wide: bool,
}

/// How an argument is compared: a few primitives, each with its negation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Test {
    Equal { mask: u64, value: u64, negated: bool },
    Greater { value: u64, negated: bool },
    GreaterOrEqual { value: u64, negated: bool },
}

/// Conditions that must all hold, and what is returned then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub conditions: Vec<Condition>,
    pub verdict: u32,
}

/// What becomes of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Return(u32),
    /// The first rule that holds, else `otherwise`.
    Check {
        rules: Vec<Rule>,
        otherwise: u32,
    },
}

/// One audit architecture: outcomes by ascending first number; the first starts at 0.
pub(super) struct Architecture {
    pub audit: u32,
    pub ranges: Vec<(u32, Outcome)>,
}

/// The rules of a profile; entries name them by their place here, since most calls share a few.
type Rules = Vec<Rule>;

/// One ABI while its rules are gathered.
struct Abi {
    /// System call numbers, each with a rule; in the profile's order.
    entries: Vec<(u32, u32)>,
    /// The highest number that the profile names, whatever it says of it.
    last: u32,
    /// True where the upper half of arguments counts.
    wide: bool,
}

/// Room for the calls that a usual profile names.
const USUAL_CALLS: usize = 512;

/// Resolves a profile for this machine's architectures.
pub(super) fn architectures(profile: &LinuxSeccomp) -> Result<Vec<Architecture>, Error> {
    let default = verdict(profile.default_action(), profile.default_errno_ret(), "defaultErrnoRet")?;
    let listed = |arch| profile.architectures().iter().flatten().any(|a| *a == arch);
    let (with_x32, with_i386) = (listed(Arch::ScmpArchX32), listed(Arch::ScmpArchX86));
    let (mut x86_64, mut x32, mut i386) = (Abi::new(true), Abi::new(false), Abi::new(false));
    let mut rules = Rules::new();
    for (at, syscall) in profile.syscalls().iter().flatten().enumerate() {
        let (action, new) = rules_of(syscall, at)?;
        let first = rules.len() as u32;
        if action != default {
            rules.extend(new);
        }
        let new = first..rules.len() as u32;
        for numbers in syscall.names().iter().filter_map(|name| table::lookup(name)) {
            x86_64.add(numbers.x86_64(), new.clone());
            if with_x32 {
                x32.add(numbers.x32(), new.clone());
            }
            if with_i386 {
                i386.add(numbers.i386(), new.clone());
                i386.add_carried(numbers, new.clone(), &mut rules);
            }
        }
    }
    // What runc's ENOSYS stub looks at.
    let permissive = matches!(
        profile.default_action(),
        LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog | LinuxSeccompAction::ScmpActTrace
    );
    let newer = if permissive { default } else { RET_ENOSYS };
    let mut ranges = Vec::new();
    x86_64.ranges(&rules, 0, default, newer, &mut ranges);
    if with_x32 {
        x32.ranges(&rules, X32_BIT, default, newer, &mut ranges);
    } else {
        push(&mut ranges, X32_BIT, Outcome::Return(BAD_ARCHITECTURE));
        // -1 is no x32 call: a tracer sets it to have a call skipped.
        push(&mut ranges, u32::MAX, Outcome::Return(default));
    }
    let mut all = vec![Architecture { audit: AUDIT_X86_64, ranges }];
    if with_i386 {
        let mut ranges = Vec::new();
        i386.ranges(&rules, 0, default, newer, &mut ranges);
        all.push(Architecture { audit: AUDIT_I386, ranges });
    }
    Ok(all)
}

impl Abi {
    fn new(wide: bool) -> Abi {
        Abi { entries: Vec::with_capacity(USUAL_CALLS), last: 0, wide }
    }

    fn add(&mut self, number: Option<u32>, rules: Range<u32>) {
        let Some(number) = number else { return };
        self.last = self.last.max(number);
        self.entries.extend(rules.map(|rule| (number, rule)));
    }

    /// i386: the same rules for the call that carries this one, the first argument selecting it.
    fn add_carried(&mut self, numbers: &Numbers, new: Range<u32>, rules: &mut Rules) {
        let Some((carrier, selector)) = numbers.i386_through() else { return };
        // Who names the call knows the one that carries it.
        self.last = self.last.max(carrier);
        let test = Test::Equal { mask: u64::MAX, value: selector.into(), negated: false };
        for rule in new {
            let Rule { conditions, verdict } = &rules[rule as usize];
            let others = conditions.iter().filter(|condition| condition.index != 0);
            let conditions = [Condition { index: 0, test, wide: false }].iter().chain(others).copied().collect();
            let verdict = *verdict;
            self.entries.push((carrier, rules.len() as u32));
            rules.push(Rule { conditions, verdict });
        }
    }

    /// The ranges from `first` on: named calls, the default between them, and ENOSYS (or the default) beyond the last.
    fn ranges(mut self, rules: &Rules, first: u32, default: u32, newer: u32, ranges: &mut Vec<(u32, Outcome)>) {
        // By number, then in the profile's order.
        self.entries.sort_unstable();
        push(ranges, first, Outcome::Return(default));
        for same in self.entries.chunk_by(|a, b| a.0 == b.0) {
            push(ranges, same[0].0, self.outcome(same, rules, default));
            push(ranges, same[0].0 + 1, Outcome::Return(default));
        }
        // A profile that names no call of this ABI says nothing about which calls it knows.
        if self.last != 0 {
            push(ranges, self.last + 1, Outcome::Return(newer));
        }
    }

    /// What the rules of one call come to.
    fn outcome(&self, entries: &[(u32, u32)], rules: &Rules, otherwise: u32) -> Outcome {
        let own = || entries.iter().map(|(_, rule)| &rules[*rule as usize]);
        match own().find(|rule| rule.conditions.is_empty()) {
            Some(unconditional) => Outcome::Return(unconditional.verdict),
            None => Outcome::Check { rules: own().map(|rule| rule.with_width(self.wide)).collect(), otherwise },
        }
    }
}

/// Starts a range; equal neighbours become one, and a later start at the same number replaces the earlier.
fn push(ranges: &mut Vec<(u32, Outcome)>, start: u32, outcome: Outcome) {
    if ranges.last().is_some_and(|(last, _)| *last == start) {
        ranges.pop();
    }
    if ranges.last().is_none_or(|(_, last)| *last != outcome) {
        ranges.push((start, outcome));
    }
}

/// The verdict of one entry of the profile, and its rules: one, or one for each condition.
fn rules_of(syscall: &LinuxSyscall, at: usize) -> Result<(u32, Vec<Rule>), Error> {
    let verdict = verdict(syscall.action(), syscall.errno_ret(), &format!("syscalls[{at}].errnoRet"))?;
    let args = syscall.args().as_deref().unwrap_or_default();
    let conditions = args.iter().map(|arg| condition(arg, at)).collect::<Result<Vec<_>, _>>()?;
    let repeats = |(n, c): (usize, &Condition)| conditions[..n].iter().any(|earlier| earlier.index == c.index);
    let rules = if conditions.iter().enumerate().any(repeats) {
        conditions.iter().map(|condition| Rule { conditions: vec![*condition], verdict }).collect()
    } else {
        vec![Rule { conditions, verdict }]
    };
    Ok((verdict, rules))
}

impl Rule {
    fn with_width(&self, wide: bool) -> Rule {
        let conditions = self.conditions.iter().map(|condition| Condition { wide, ..*condition }).collect();
        Rule { conditions, verdict: self.verdict }
    }
}

fn condition(arg: &LinuxSeccompArg, at: usize) -> Result<Condition, Error> {
    if arg.index() >= ARGUMENTS {
        let why = format!("index {} is not an argument: a system call has {ARGUMENTS}", arg.index());
        return Err(Error::Profile { field: format!("syscalls[{at}].args"), why });
    }
    let value = arg.value();
    let equal = |negated| Test::Equal { mask: u64::MAX, value, negated };
    let test = match arg.op() {
        LinuxSeccompOperator::ScmpCmpEq => equal(false),
        LinuxSeccompOperator::ScmpCmpNe => equal(true),
        LinuxSeccompOperator::ScmpCmpGt => Test::Greater { value, negated: false },
        LinuxSeccompOperator::ScmpCmpLe => Test::Greater { value, negated: true },
        LinuxSeccompOperator::ScmpCmpGe => Test::GreaterOrEqual { value, negated: false },
        LinuxSeccompOperator::ScmpCmpLt => Test::GreaterOrEqual { value, negated: true },
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            Test::Equal { mask: value, value: arg.value_two().unwrap_or(0) & value, negated: false }
        }
    };
    Ok(Condition { index: arg.index() as u8, test, wide: true })
}

/// The filter's return value for an action.
fn verdict(action: LinuxSeccompAction, number: Option<u32>, field: &str) -> Result<u32, Error> {
    let within = |limit: u32| match number.unwrap_or(libc::EPERM as u32) {
        number if number <= limit => Ok(number),
        number => Err(Error::Profile { field: field.to_owned(), why: format!("{number} is above {limit}") }),
    };
    if number.is_some() && !matches!(action, LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace) {
        let why = format!("{action} has no number; SCMP_ACT_ERRNO and SCMP_ACT_TRACE have");
        return Err(Error::Profile { field: field.to_owned(), why });
    }
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => libc::SECCOMP_RET_KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        LinuxSeccompAction::ScmpActErrno => libc::SECCOMP_RET_ERRNO | within(MAX_ERRNO)?,
        LinuxSeccompAction::ScmpActTrace => libc::SECCOMP_RET_TRACE | within(MAX_TRACE)?,
        LinuxSeccompAction::ScmpActNotify => libc::SECCOMP_RET_USER_NOTIF,
        LinuxSeccompAction::ScmpActLog => libc::SECCOMP_RET_LOG,
        LinuxSeccompAction::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
    })
}
