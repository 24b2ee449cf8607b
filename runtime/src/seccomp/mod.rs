//! seccomp: from the OCI profile to a filter in the kernel, without libseccomp.
//!
//! libseccomp takes 8 to 22 ms for a default profile; this compiler takes a small part of one, so nothing is cached.
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

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag};

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

/// The flags for seccomp(2).
fn flags(profile: &LinuxSeccomp) -> Result<u64, Error> {
    let mut flags = 0;
    let notifies = |action| action == LinuxSeccompAction::ScmpActNotify;
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    if notifies(profile.default_action()) {
        let why = "SCMP_ACT_NOTIFY cannot be the default: the runtime itself would wait for its own agent";
        return Err(Error::Profile { field: "defaultAction".to_owned(), why: why.to_owned() });
    }
    if let Some(at) = rules.iter().position(|r| notifies(r.action()) && r.names().iter().any(|n| n == "write")) {
        let why = "SCMP_ACT_NOTIFY cannot be used for write, by which the runtime hands over the listener";
        return Err(Error::Profile { field: format!("syscalls[{at}]"), why: why.to_owned() });
    }
    let listener = rules.iter().any(|r| notifies(r.action()));
    if listener {
        flags |= libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
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
