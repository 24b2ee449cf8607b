//! The unsafe code of the tests.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Takes over a descriptor that was just received, and that nobody else owns.
pub fn adopt(fd: i32) -> OwnedFd {
    // SAFETY: the caller got it from recvmsg a moment ago, so it is open and has no other owner.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Sets a terminal's size, as a window that is resized does.
pub fn resize(terminal: &impl std::os::fd::AsFd, rows: u16, columns: u16) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize.
    match unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ as _, &size) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Lets the thread that spawns this command trace it: it stops at its exec.
pub fn trace_me(command: &mut Command) {
    // SAFETY: between fork and exec only one system call is made, which touches no memory.
    unsafe { command.pre_exec(|| nix::sys::ptrace::traceme().map_err(io::Error::from)) };
}

/// Installs a filter for this process and all it starts: it answers the system calls of these numbers with `action`
/// (`SECCOMP_RET_...`), and lets all others pass.
pub fn filter(calls: &[u32], action: u32) -> io::Result<()> {
    const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const ANSWER: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut program = vec![libc::sock_filter { code: LOAD_NUMBER, jt: 0, jf: 0, k: 0 }];
    for &call in calls {
        program.push(libc::sock_filter { code: EQUAL, jt: 0, jf: 1, k: call });
        program.push(libc::sock_filter { code: ANSWER, jt: 0, jf: 0, k: action });
    }
    program.push(libc::sock_filter { code: ANSWER, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW });
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program and its instructions live over the call, which only reads them.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
