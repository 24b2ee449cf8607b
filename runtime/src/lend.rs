//! Files and folders lent to another mount namespace: as detached copies, which are attached there.
//!
//! A copy belongs to no namespace and hears of no mount that is made in either. What it does not allow is set before
//! anyone can see it.

use crate::sys::{self, MountAttr};
use nix::libc::{self, AT_FDCWD};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// A detached copy of the very file or folder that `file` is, with all mounts below it: nothing in it is a device or
/// changes who a program runs as.
pub fn copy(file: BorrowedFd<'_>, read_only: bool) -> io::Result<OwnedFd> {
    let tree = sys::clone_tree(file.as_raw_fd(), c"", true)?;
    let read_only = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let set = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID | read_only;
    sys::mount_setattr(tree.as_fd(), true, &MountAttr { set, propagation: libc::MS_PRIVATE, ..Default::default() })?;
    Ok(tree)
}

/// A detached copy of the root's mount, without what is mounted below it, that can be written through though the root
/// cannot.
pub fn writable_root() -> io::Result<OwnedFd> {
    let root = sys::clone_tree(AT_FDCWD, c"/", false)?;
    let attributes = MountAttr { clear: libc::MOUNT_ATTR_RDONLY, propagation: libc::MS_PRIVATE, ..Default::default() };
    sys::mount_setattr(root.as_fd(), false, &attributes)?;
    Ok(root)
}

/// Attaches a copy on the very file or folder that `at` is.
pub fn attach(copy: BorrowedFd<'_>, at: BorrowedFd<'_>) -> io::Result<()> {
    sys::move_mount(copy, at)
}
