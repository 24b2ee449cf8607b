//! What the host's end may still ask of the kernel once the guest is heard: to move bytes between the descriptors that it
//! has, to take clients, to connect to a local socket (QEMU's, when the port was closed), and memory that is no code.
//!
//! It is the last of several walls: the process is nobody, and the code that reads what the guest sends has no `unsafe`.
//! Any other call fails with EPERM rather than kills, so that a C library with other habits costs one call and not the pod.

use coracle_runtime::seccomp;
use nix::libc;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator, LinuxSyscall,
};
use std::io;

/// Calls that are allowed whatever is asked of them.
const CALLS: &[&str] = &[
    "accept4",
    "brk",
    "clock_gettime",
    "clock_nanosleep",
    "close",
    "connect",
    "exit",
    "exit_group",
    "fcntl",
    "futex",
    "getpid",
    "getppid",
    "getrandom",
    "gettid",
    "ioctl",
    "madvise",
    "mremap",
    "munmap",
    "nanosleep",
    "poll",
    "ppoll",
    "read",
    "readv",
    "recvfrom",
    "restart_syscall",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sendto",
    "setsockopt",
    "shutdown",
    "sigaltstack",
    "tgkill",
    "tkill",
    "write",
    "writev",
];

/// Restricts the calling thread to these calls, for good. It needs `no_new_privs`.
pub(super) fn restrict() -> io::Result<()> {
    let profile = profile().map_err(io::Error::other)?;
    let program = seccomp::compile(&profile).map_err(io::Error::other)?;
    seccomp::load(&program).map(drop).map_err(io::Error::other)
}

fn profile() -> Result<LinuxSeccomp, OciSpecError> {
    let local = argument(0, LinuxSeccompOperator::ScmpCmpEq, libc::AF_UNIX as u64).build()?;
    let no_code = argument(2, LinuxSeccompOperator::ScmpCmpMaskedEq, libc::PROT_EXEC as u64).value_two(0u64).build()?;
    let rules = vec![rule(CALLS, None), rule(&["socket"], Some(local)), rule(&["mmap", "mprotect"], Some(no_code))];
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(LinuxSeccompAction::ScmpActErrno).set_default_errno_ret(Some(libc::EPERM as u32));
    profile.set_syscalls(Some(rules));
    Ok(profile)
}

fn argument(index: usize, op: LinuxSeccompOperator, value: u64) -> LinuxSeccompArgBuilder {
    LinuxSeccompArgBuilder::default().index(index).op(op).value(value)
}

fn rule(names: &[&str], condition: Option<LinuxSeccompArg>) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.iter().map(|name| (*name).to_owned()).collect());
    rule.set_action(LinuxSeccompAction::ScmpActAllow).set_args(condition.map(|condition| vec![condition]));
    rule
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{self, Fork};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::Pid;

    /// So much that the allocator maps it.
    const LARGE: usize = 8 << 20;

    /// In a process of its own: the number of the first expectation that does not hold, or 0.
    fn unmet() -> u8 {
        let sockets = |family| socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
        if nix::sys::prctl::set_no_new_privs().is_err() || restrict().is_err() {
            return 1;
        }
        let refused = Some(nix::errno::Errno::EPERM);
        let expectations = [
            std::fs::read("/etc/hostname").err().and_then(|error| error.raw_os_error()) == Some(libc::EPERM),
            sockets(AddressFamily::Unix).is_ok(),
            sockets(AddressFamily::Inet).err() == refused,
            vec![1u8; LARGE].iter().all(|byte| *byte == 1),
            nix::unistd::setsid().err() == refused,
            nix::unistd::execv(c"/bin/true", &[c"true"]).err() == refused,
            sys::fork().is_err(),
            nix::sys::signal::kill(Pid::from_raw(1), None).err() == refused,
        ];
        expectations.iter().position(|holds| !holds).map_or(0, |place| place as u8 + 2)
    }

    #[test]
    fn bytes_may_be_moved_and_nothing_else_be_done() {
        let child = match sys::fork().unwrap() {
            Fork::Parent(pid) => Pid::from_raw(pid),
            Fork::Child => sys::exit_now(unmet().into()),
        };
        assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
    }
}
