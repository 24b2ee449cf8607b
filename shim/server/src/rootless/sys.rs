//! The calls of this module that are not safe by themselves.
#![allow(unsafe_code)]

use nix::unistd::ForkResult;

/// Forks. To be called before the first thread starts.
pub fn fork() -> nix::Result<ForkResult> {
    // SAFETY: `main` calls this before it makes a thread, so that no lock can be held by one that the child lacks.
    unsafe { nix::unistd::fork() }
}

/// Ends a forked child without what its parent has registered for its own end.
pub fn exit_now() -> ! {
    // SAFETY: _exit takes a number and does not return.
    unsafe { libc::_exit(0) }
}
