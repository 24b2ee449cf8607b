//! Two system calls that nix does not have.
#![allow(unsafe_code)]

use std::{
    io,
    mem::zeroed,
    os::fd::{FromRawFd, OwnedFd},
};

/// Waits for a child: its raw status, and what it used.
pub fn wait4(pid: i32) -> io::Result<(i32, libc::rusage)> {
    let mut status = 0;
    // SAFETY: rusage is plain numbers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { zeroed() };
    // SAFETY: both pointers are to live, exclusive values of the types that wait4 fills.
    if unsafe { libc::wait4(pid, &mut status, 0, &mut usage) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((status, usage))
}

/// A descriptor that polls readable when the process has ended.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes two numbers, and answers with a descriptor that nobody else knows of.
    match unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } {
        fd if fd < 0 => Err(io::Error::last_os_error()),
        // SAFETY: as above.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }),
    }
}
