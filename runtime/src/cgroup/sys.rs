//! The bpf(2) calls of this module: load, attach, list and detach a cgroup's device program.
#![allow(unsafe_code)]

use std::{
    io,
    mem::size_of_val,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use super::device_program::Instruction;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The attributes of `BPF_PROG_LOAD`, as far as they are used: the kernel takes the rest as zero.
#[repr(C)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
}

/// The attributes of `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

/// The attributes of `BPF_PROG_QUERY`.
#[repr(C)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attributes` is a live, exclusive repr(C) value whose size is passed along, so the kernel reads and writes
    // nothing outside of it; the addresses inside it point to values that the callers below keep alive over the call.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, attributes as *mut T, size_of_val(attributes)) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn owned(answer: libc::c_long) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for the caller, and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(answer as i32) }
}

/// Loads a device program.
pub(super) fn load_device_program(program: &[Instruction]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let mut attributes = Load {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
    };
    bpf(BPF_PROG_LOAD, &mut attributes).map(owned)
}

/// Attaches a program beside those that are there already.
pub(super) fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = Attach {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &mut attributes).map(drop)
}

/// The ids of the programs attached to this very cgroup, up to `limit`.
pub(super) fn attached_device_programs(cgroup: BorrowedFd<'_>, limit: usize) -> io::Result<Vec<u32>> {
    let mut ids = vec![0u32; limit];
    let mut attributes = Query {
        target: cgroup.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        padding: 0,
    };
    bpf(BPF_PROG_QUERY, &mut attributes)?;
    ids.truncate(attributes.count as usize);
    Ok(ids)
}

/// Detaches the program with this id.
pub(super) fn detach_device_program(cgroup: BorrowedFd<'_>, id: u32) -> io::Result<()> {
    // A union: the id is the first word, then a start id and flags that stay zero.
    let program = bpf(BPF_PROG_GET_FD_BY_ID, &mut [id, 0, 0]).map(owned)?;
    let mut attributes = Attach {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        flags: 0,
    };
    bpf(BPF_PROG_DETACH, &mut attributes).map(drop)
}

/// Forks a child that does nothing until it is killed, or until this thread ends. The caller is single-threaded, or the
/// child at least does nothing that depends on other threads.
pub(super) fn fork_waiting() -> nix::Result<i32> {
    let parent = nix::unistd::getpid();
    // SAFETY: the child makes only system calls: no memory is allocated, no lock taken, nothing of the parent's run.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(child.as_raw()),
        nix::unistd::ForkResult::Child => {
            let told = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
            while told.is_ok() && nix::unistd::getppid() == parent {
                nix::unistd::pause();
            }
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(1) }
        }
    }
}

/// Kills a child and waits for its end.
pub(super) fn kill_and_reap(pid: i32) {
    let pid = nix::unistd::Pid::from_raw(pid);
    // It may be dead already, by the kill of all that is in its cgroup; then it is still to be reaped.
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    while nix::sys::wait::waitpid(pid, None) == Err(nix::errno::Errno::EINTR) {}
}

/// kill(2) with a signal that nix has no name for.
pub(super) fn kill(pid: i32, signal: i32) -> nix::Result<()> {
    // SAFETY: kill takes two numbers and touches no memory of ours.
    nix::errno::Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}
