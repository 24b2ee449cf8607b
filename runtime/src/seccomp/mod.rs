//! seccomp: from the OCI profile to a filter in the kernel, without libseccomp.
//!
//! libseccomp takes 8 to 22 ms for a default profile; this compiler takes a small part of one.
//!
//! The stages: [`table`] knows the numbers of names; [`resolve`] turns the profile into what each ABI does with each range
//! of numbers; [`assemble`] turns that into classic BPF, a binary search over the ranges for each ABI.
//!
//! What a profile means is what it means to runc with libseccomp, which is where profiles are written for:
//! - a name that no ABI of this machine knows is skipped (profiles are written for newer kernels too);
//! - a rule with the default action is skipped;
//! - for one call, the first rule without conditions wins over all others; else the first whose conditions all hold;
//! - conditions that speak of one argument twice are alternatives: each is a rule of its own (as runc has always read them);
//! - on i386, a rule for a socket or System V IPC call also covers the way through `socketcall` and `ipc`; there the first
//!   argument selects the call, so a condition on the first argument cannot be tested and is dropped;
//! - i386 and x32 compare the lower half of arguments only;
//! - an architecture that the profile does not list is killed; the native one is always in;
//! - a call with a number above every call that the profile names gets ENOSYS, unless the default action allows (or traces) or
//!   is ENOSYS already. Such a call is newer than the profile, and C libraries try the older call on ENOSYS but give
//!   up on EPERM. It is runc's rule, and it takes nothing away: the call is not made in either case.

mod assemble;
mod resolve;
mod sys;
mod table;
#[cfg(test)]
mod tests;

use std::{io, os::fd::OwnedFd};

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag, LinuxSyscall};

pub use assemble::Instruction;

/// What can be wrong with a profile, or go wrong with loading it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The profile asks for what cannot be.
    #[error("linux.seccomp.{field}: {why}")]
    Profile {
        /// Where in the profile.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// The kernel takes no program as long as this.
    #[error("linux.seccomp: the profile compiles to {0} instructions, and the kernel takes {limit}", limit = assemble::MAX_INSTRUCTIONS)]
    TooLong(usize),
    /// The kernel refused the filter.
    #[error("load seccomp filter of {instructions} instructions: {cause}{hint}")]
    Load {
        /// Length of the program.
        instructions: usize,
        /// The likely cause, when it is known; empty otherwise.
        hint: &'static str,
        /// The kernel's answer.
        cause: io::Error,
    },
}

/// Every action, for `features`.
pub const ACTIONS: &[&str] = &[
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];

/// Every comparison, for `features`.
pub const OPERATORS: &[&str] =
    &["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"];

/// Every architecture, for `features`. Those that are not of this machine are read and come to nothing: no call is ever
/// made by them.
pub const ARCHITECTURES: &[&str] = &[
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_SH",
    "SCMP_ARCH_SHEB",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
];

/// Every flag, with the kernel's bit.
const FLAGS: &[(&str, u64)] = &[
    ("SECCOMP_FILTER_FLAG_TSYNC", libc::SECCOMP_FILTER_FLAG_TSYNC),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW),
    ("SECCOMP_FILTER_FLAG_LOG", libc::SECCOMP_FILTER_FLAG_LOG),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV),
];

/// Every flag, for `features`.
pub fn known_flags() -> Vec<&'static str> {
    FLAGS.iter().map(|(name, _)| *name).collect()
}

/// The flags that this kernel has as well.
pub fn supported_flags() -> Vec<&'static str> {
    FLAGS.iter().filter(|(_, bit)| sys::knows_flag(*bit)).map(|(name, _)| *name).collect()
}

/// What a file with a program begins with. The last byte is another one whenever a profile comes to mean another program, or
/// the file changes: a container that was made before gets the new meaning for its next exec.
const COMPILER: [u8; 8] = *b"seccomp\x02";

/// A compiled profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    instructions: Vec<Instruction>,
    flags: u64,
}

impl Program {
    /// The program.
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// Whether loading it gives a descriptor to answer notifications by.
    pub fn has_listener(&self) -> bool {
        self.flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0
    }

    /// For a file of this machine: [`COMPILER`], the flags, then the instructions as the kernel has them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let code = self.instructions.iter().flat_map(|i| i.to_bytes());
        COMPILER.into_iter().chain(self.flags.to_ne_bytes()).chain(code).collect()
    }

    /// What [`to_bytes`](Self::to_bytes) gave; `None` when it is cut off, empty, or another compiler's.
    pub fn from_bytes(bytes: &[u8]) -> Option<Program> {
        let (flags, code) = bytes.strip_prefix(&COMPILER)?.split_first_chunk()?;
        let (code, []) = code.as_chunks() else { return None };
        let instructions: Vec<_> = code.iter().map(|bytes| Instruction::from_bytes(*bytes)).collect();
        (!instructions.is_empty()).then(|| Program { instructions, flags: u64::from_ne_bytes(*flags) })
    }
}

/// Compiles a profile.
pub fn compile(profile: &LinuxSeccomp) -> Result<Program, Error> {
    if !cfg!(target_arch = "x86_64") {
        let why = "this build knows the system calls of x86_64 only".to_owned();
        return Err(Error::Profile { field: "architectures".to_owned(), why });
    }
    let flags = flags(profile)?;
    let instructions = assemble::program(&resolve::architectures(profile)?)?;
    Ok(Program { instructions, flags })
}

/// Loads the filter for the calling thread, for good. The listener's descriptor, where an action notifies.
///
/// Without CAP_SYS_ADMIN in the caller's user namespace, `no_new_privs` must be set before.
pub fn load(program: &Program) -> Result<Option<OwnedFd>, Error> {
    sys::load(&program.instructions, program.flags).map_err(|cause| Error::Load {
        instructions: program.instructions.len(),
        hint: match cause.raw_os_error() {
            Some(libc::EACCES) => " (without CAP_SYS_ADMIN it needs noNewPrivileges)",
            Some(libc::EINVAL) => " (a flag or an action that this kernel does not know)",
            Some(libc::EBUSY) => " (another filter with a listener is in force)",
            _ => "",
        },
        cause,
    })
}

/// Whether a call is made, whatever its arguments.
fn passes(profile: &LinuxSeccomp, name: &str) -> bool {
    let makes = |action| matches!(action, LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog);
    let rules = profile.syscalls().iter().flatten().filter(|rule| rule.names().iter().any(|n| n == name));
    let conditional = |rule: &&LinuxSyscall| rule.args().as_ref().is_some_and(|args| !args.is_empty());
    match rules.clone().find(|rule| !conditional(rule)) {
        Some(rule) => makes(rule.action()),
        None => makes(profile.default_action()) && rules.into_iter().all(|rule| makes(rule.action())),
    }
}

/// The flags for seccomp(2).
fn flags(profile: &LinuxSeccomp) -> Result<u64, Error> {
    let mut flags = 0;
    let notifies = |action| action == LinuxSeccompAction::ScmpActNotify;
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    if notifies(profile.default_action()) {
        let why = "SCMP_ACT_NOTIFY cannot be the default: the runtime itself would wait for its own agent";
        return Err(Error::Profile { field: "defaultAction".to_owned(), why: why.to_owned() });
    }
    if let Some(at) = rules.iter().position(|r| r.names().is_empty()) {
        let why = "there must be at least one".to_owned();
        return Err(Error::Profile { field: format!("syscalls[{at}].names"), why });
    }
    if let Some(at) = rules.iter().position(|r| notifies(r.action()) && r.names().iter().any(|n| n == "write")) {
        let why = "SCMP_ACT_NOTIFY cannot be used for write, by which the runtime hands over the listener";
        return Err(Error::Profile { field: format!("syscalls[{at}]"), why: why.to_owned() });
    }
    let listener = rules.iter().any(|r| notifies(r.action()));
    if listener {
        flags |= libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        if !passes(profile, "sendmsg") {
            let why = "a profile that notifies must allow sendmsg, by which the runtime hands over the listener";
            return Err(Error::Profile { field: "syscalls".to_owned(), why: why.to_owned() });
        }
    }
    if profile.flags().is_none() {
        // As runc: without it, every program under a filter pays for a mitigation that the kernel's own default
        // leaves to those who ask for it.
        flags |= libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    }
    for flag in profile.flags().iter().flatten() {
        flags |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            // The container's init has one thread. With a listener the kernel wants the two told apart by an error.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync if listener => {
                libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH
            }
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
            // It is about waiting for an agent; the kernel refuses it where no action notifies.
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if listener => {
                libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
            }
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
        };
    }
    Ok(flags)
}
