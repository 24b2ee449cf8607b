//! `tmpcopyup`: a tmpfs starts with a copy of the directory it covers.
//!
//! Both sides are descriptors and no symlink is followed, so a hostile tree can be copied but not escaped.
//! Extended attributes are not copied.

use std::io;
use std::os::fd::OwnedFd;

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, fchownat, symlinkat};

/// Deeper trees are an error: each level is a stack frame and two descriptors.
const MAX_DEPTH: usize = 256;

/// Copies what `from` (an O_PATH directory) holds, and its owner, into `to`; the mode of `to` is a mount option.
pub(crate) fn copy(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let metadata = nix::sys::stat::fstat(from)?;
    copy_level(from, to, 0)?;
    give(to, c"", metadata.st_uid, metadata.st_gid)?;
    Ok(())
}

fn open_at(dir: &OwnedFd, name: &std::ffi::CStr, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
    crate::sys::retry(|| openat(dir, name, flags, mode))
}

fn copy_level(from: &OwnedFd, to: &OwnedFd, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::from_raw_os_error(libc::ELOOP));
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut dir = Dir::from_fd(open_at(from, c".", flags, Mode::empty())?)?;
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let metadata = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let mode = Mode::from_bits_truncate(metadata.st_mode);
        let kind = SFlag::from_bits_truncate(metadata.st_mode & libc::S_IFMT);
        match kind {
            SFlag::S_IFDIR => {
                mkdirat(to, name, mode)?;
                let (inner_from, inner_to) = (
                    open_at(from, name, flags | OFlag::O_NOFOLLOW, Mode::empty())?,
                    open_at(to, name, flags, Mode::empty())?,
                );
                copy_level(&inner_from, &inner_to, depth + 1)?;
            }
            SFlag::S_IFLNK => symlinkat(readlinkat(from, name)?.as_os_str(), to, name)?,
            SFlag::S_IFREG => copy_file(from, to, name, mode)?,
            _ => mknodat(to, name, kind, mode, metadata.st_rdev)?,
        }
        give(to, name, metadata.st_uid, metadata.st_gid)?;
        if kind != SFlag::S_IFLNK {
            // After the owner: chown clears set-user-id bits.
            fchmodat(to, name, mode, FchmodatFlags::FollowSymlink)?;
        }
    }
    Ok(())
}

/// In a user namespace an owner may have no number: what is his becomes root's.
fn give(dir: &OwnedFd, name: &std::ffi::CStr, uid: u32, gid: u32) -> nix::Result<()> {
    let flags = AtFlags::AT_SYMLINK_NOFOLLOW | AtFlags::AT_EMPTY_PATH;
    match fchownat(dir, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), flags) {
        Err(nix::errno::Errno::EINVAL) => Ok(()),
        given => given,
    }
}

fn copy_file(from: &OwnedFd, to: &OwnedFd, name: &std::ffi::CStr, mode: Mode) -> io::Result<()> {
    let source =
        open_at(from, name, OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())?;
    let target = open_at(to, name, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC, mode)?;
    io::copy(&mut std::fs::File::from(source), &mut std::fs::File::from(target))?;
    Ok(())
}
