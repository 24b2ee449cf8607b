//! The system calls that the crate needs and `nix` does not offer safely: extended attributes, inode flags. All `unsafe` is here.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

/// The kernel's limit for the value of an extended attribute.
const XATTR_SIZE_MAX: usize = 64 << 10;

/// Opens a path beneath a directory: no symbolic link is followed and nothing above is reached.
pub(crate) fn open_beneath(directory: impl AsFd, path: &[u8], flags: OFlag) -> io::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW).resolve(resolve);
    Ok(openat2(directory, path, how)?)
}

/// Sets an extended attribute of an open file.
pub(crate) fn set_xattr(file: impl AsFd, name: &CStr, value: &[u8]) -> io::Result<()> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open for the call, `name` is terminated, and `value` is valid for its length.
    let done = unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets an extended attribute of whatever bears that name in a directory, a symbolic link included.
pub(crate) fn set_xattr_at(directory: impl AsFd, entry: &[u8], name: &CStr, value: &[u8]) -> io::Result<()> {
    let path = entry_path(directory, entry)?;
    // SAFETY: `path` and `name` are terminated, and `value` is valid for its length.
    let done = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The extended attributes of whatever bears that name in a directory, sorted by name.
pub(crate) fn xattrs_at(directory: impl AsFd, entry: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = entry_path(directory, entry)?;
    let mut names = vec![0u8; XATTR_SIZE_MAX];
    // SAFETY: `path` is terminated and `names` is writable for its length.
    let length = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    if length < 0 {
        let err = io::Error::last_os_error();
        return if err.raw_os_error() == Some(libc::ENOTSUP) { Ok(Vec::new()) } else { Err(err) };
    }
    names.truncate(length as usize);
    let mut found = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let terminated = CString::new(name).map_err(io::Error::other)?;
        let mut value = vec![0u8; XATTR_SIZE_MAX];
        // SAFETY: `path` and `terminated` are terminated, and `value` is writable for its length.
        let length =
            unsafe { libc::lgetxattr(path.as_ptr(), terminated.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        if length < 0 {
            return Err(io::Error::last_os_error());
        }
        value.truncate(length as usize);
        found.push((name.to_vec(), value));
    }
    found.sort();
    Ok(found)
}

/// Whether this process is in another user namespace than the machine's own, which maps every id to itself.
pub fn in_user_namespace() -> bool {
    static INSIDE: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *INSIDE.get_or_init(|| {
        // A kernel without user namespaces has no such file.
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        !map.is_empty() && !map.split_whitespace().eq(["0", "0", "4294967295"])
    })
}

/// The attribute by which overlay marks an opaque directory. Only the machine's root may write trusted ones.
pub(crate) fn opaque_mark() -> &'static CStr {
    if in_user_namespace() { c"user.overlay.opaque" } else { c"trusted.overlay.opaque" }
}

/// Whether an attribute is overlay's own.
pub(crate) fn is_overlays(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// The option by which overlay takes the marks that this process can write.
pub fn overlay_marks() -> Option<&'static str> {
    in_user_namespace().then_some("userxattr")
}

/// Marks a directory as the top of a hierarchy: ext4 then spreads the directories in it over the disk.
pub(crate) fn set_top_directory(directory: impl AsFd) -> io::Result<()> {
    /// `EXT4_TOPDIR_FL`, the same in all of ext2, ext3 and ext4.
    const TOPDIR: libc::c_int = 0x0002_0000;
    let fd = directory.as_fd().as_raw_fd();
    let mut flags: libc::c_int = 0;
    // SAFETY: the descriptor is open for the call, which writes one int (whatever type its number pretends).
    if unsafe { libc::ioctl(fd, libc::FS_IOC_GETFLAGS, &raw mut flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    flags |= TOPDIR;
    // SAFETY: as above, and the call reads one int.
    if unsafe { libc::ioctl(fd, libc::FS_IOC_SETFLAGS, &raw const flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `/proc/self/fd/N/ENTRY`; the entry is one component, or empty for the directory itself.
fn entry_path(directory: impl AsFd, entry: &[u8]) -> io::Result<CString> {
    let mut path = format!("/proc/self/fd/{}/", directory.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(if entry.is_empty() { b"." } else { entry });
    CString::new(path).map_err(io::Error::other)
}

/// Gives the calling thread a umask of its own, and sets it to 0: modes then come out as they are asked for, in one
/// call. The thread must be one that this crate started.
pub(crate) fn private_umask() -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    Ok(())
}
