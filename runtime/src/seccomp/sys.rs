//! seccomp(2).
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
};

use super::assemble::Instruction;

/// The kernel's `sock_fprog`.
#[repr(C)]
struct Program {
    length: u16,
    filter: *const Instruction,
}

/// Loads a filter; the listener's descriptor where the flags ask for one.
pub(super) fn load(instructions: &[Instruction], flags: u64) -> io::Result<Option<OwnedFd>> {
    let length = u16::try_from(instructions.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let program = Program { length, filter: instructions.as_ptr() };
    // SAFETY: `program` and the instructions it points to live over the call, which only reads them.
    let answer =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &program as *const Program) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    // SAFETY: the kernel has just made this descriptor for the caller, and nobody else knows of it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(answer as i32) }))
}

/// Whether the kernel knows a flag. Without a program it loads nothing, and complains about the program last.
pub(super) fn knows_flag(flag: u64) -> bool {
    // The kernel wants to see this one together with a listener.
    let flags = match flag {
        libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV => flag | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
        flag => flag,
    };
    let program = std::ptr::null::<Program>();
    // SAFETY: the kernel reads no program at the null pointer, and answers EFAULT.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, program) };
    answer < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

#[cfg(test)]
pub(super) mod tests {
    //! What the tests need of fork and raw calls.

    use nix::sys::wait::{WaitStatus, waitpid};

    /// Runs `body` in a forked child and tells how that ended.
    pub fn forked(body: impl FnOnce() -> i32) -> WaitStatus {
        // SAFETY: the child runs a small body that takes no lock a thread of the test runner could hold across the fork
        // (it allocates at most, which the C library's fork keeps usable), and leaves by _exit.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Parent { child } => waitpid(child, None).unwrap(),
            nix::unistd::ForkResult::Child => {
                let code = body();
                // SAFETY: ends the child without running the test runner's exit handlers.
                unsafe { libc::_exit(code) }
            }
        }
    }

    /// A raw call with two arguments.
    pub fn call(number: libc::c_long, args: [u64; 2]) -> Result<i64, i32> {
        // SAFETY: the tests call getppid and kill with plain numbers only.
        match unsafe { libc::syscall(number, args[0], args[1]) } {
            -1 => Err(nix::errno::Errno::last_raw()),
            answer => Ok(answer),
        }
    }
}
