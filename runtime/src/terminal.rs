//! What a foreground process does with terminals, for this crate's and the supervisor's command lines.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::sys;

/// Receives the terminal's master, as the container's process sends it over the console socket.
pub fn receive_master(socket: &impl AsFd) -> io::Result<OwnedFd> {
    let mut name = [0u8; 256];
    let mut slices = [io::IoSliceMut::new(&mut name)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(&fd) = fds.first()
        {
            return Ok(sys::adopt(fd));
        }
    }
    Err(io::Error::other("the console socket carried no terminal"))
}

/// A terminal's size: rows, columns.
pub fn size(terminal: &impl AsFd) -> io::Result<(u16, u16)> {
    sys::window_size(terminal.as_fd())
}

/// Sets a terminal's size.
pub fn resize(terminal: &impl AsFd, rows: u16, columns: u16) -> io::Result<()> {
    sys::set_window_size(terminal.as_fd(), rows, columns)
}
