//! The one system call that no safe wrapper in use here has: the size of a terminal.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

/// The columns and rows of the terminal behind a descriptor; None if it is not one.
pub fn terminal_size(terminal: impl AsFd) -> Option<(u16, u16)> {
    let mut size = MaybeUninit::<libc::winsize>::zeroed();
    // SAFETY: TIOCGWINSZ writes at most one `winsize` to the pointer, which points to one that lives for the call; all
    // zeroes are a valid value of it.
    let size = unsafe {
        match libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, size.as_mut_ptr()) {
            0 => size.assume_init(),
            _ => return None,
        }
    };
    (size.ws_col > 0).then_some((size.ws_col, size.ws_row))
}
