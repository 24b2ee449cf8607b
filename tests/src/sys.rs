//! The unsafe code of the tests.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd};

/// Takes over a descriptor that was just received, and that nobody else owns.
pub fn adopt(fd: i32) -> OwnedFd {
    // SAFETY: the caller got it from recvmsg a moment ago, so it is open and has no other owner.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
