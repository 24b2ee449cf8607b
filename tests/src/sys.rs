//! The unsafe code of the tests.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd};

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
