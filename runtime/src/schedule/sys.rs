//! The system calls of scheduling, of the execution domain and of memory placement, which nix does not wrap.

#![allow(unsafe_code)]

use std::io;

/// `struct sched_attr` of sched_setattr(2), as of Linux 5.3.
#[repr(C)]
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct SchedAttr {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
    pub util_min: u32,
    pub util_max: u32,
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Sets the scheduling of a process (0: this one).
pub(super) fn sched_setattr(pid: i32, attr: &SchedAttr) -> io::Result<()> {
    // SAFETY: attr lives through the call, and says its own size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, pid, attr as *const SchedAttr, 0) })?;
    Ok(())
}

/// Sets the I/O priority of a process (0: this one).
pub(super) fn ioprio_set(pid: i32, value: i32) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, pid, value) })?;
    Ok(())
}

/// Sets the execution domain of this process.
pub(super) fn personality(domain: u64) -> io::Result<()> {
    // SAFETY: a plain integer.
    check(unsafe { libc::personality(domain) } as libc::c_long)?;
    Ok(())
}

/// Sets the memory policy of this thread and of what it starts.
pub(super) fn set_mempolicy(mode: i32, nodes: &[u64]) -> io::Result<()> {
    let (pointer, bits) = match nodes {
        [] => (std::ptr::null(), 0),
        // The kernel leaves out the last bit of what it is told.
        words => (words.as_ptr(), words.len() * u64::BITS as usize + 1),
    };
    // SAFETY: the mask lives through the call and has as many bits as it is said to have.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, pointer, bits) })?;
    Ok(())
}

/// Sets the CPUs this process may run on.
pub(super) fn set_affinity(cpus: &[u64]) -> io::Result<()> {
    // SAFETY: the mask lives through the call, and its length is passed.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(cpus), cpus.as_ptr()) })?;
    Ok(())
}

/// The CPUs this process may run on, into a mask that must be as long as the kernel's.
pub(super) fn affinity(cpus: &mut [u64]) -> io::Result<()> {
    // SAFETY: the mask lives through the call, and its length is passed: the kernel writes no more.
    check(unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, size_of_val(cpus), cpus.as_mut_ptr()) })?;
    Ok(())
}
