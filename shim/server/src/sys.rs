//! The few system and C library calls that no safe wrapper in use here has.

#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The first descriptor that systemd passes (`SD_LISTEN_FDS_START`).
const FIRST_PASSED: i32 = 3;
/// Heaps of glibc: each thread beyond that many shares one, instead of making its own that never shrinks.
#[cfg(target_env = "gnu")]
const ARENAS: i32 = 2;
/// Free bytes at the end of a heap before they are given back.
#[cfg(target_env = "gnu")]
const TRIM: i32 = 256 << 10;

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

/// Keeps the heap of a process with many threads small. To be called before the threads start.
pub fn small_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers and changes the allocator's own settings alone.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM);
    }
}

/// The one socket that systemd has passed; the caller has seen in the environment that there is one.
pub fn passed_socket() -> io::Result<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(io::Error::other("the passed socket was taken already"));
    }
    // SAFETY: fcntl with F_GETFD only asks whether the number is an open descriptor.
    if unsafe { libc::fcntl(FIRST_PASSED, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, systemd has passed it to this process for this use, and TAKEN lets only one caller have it.
    Ok(unsafe { OwnedFd::from_raw_fd(FIRST_PASSED) })
}

/// A descriptor whose readability the event loop tells.
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open and the same descriptor until it is dropped, and the AsyncFd, which owns it, leaves the
    // event loop before it drops it.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(Into::into)
}
