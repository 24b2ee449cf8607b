//! Paths in a volume that its containers may be changing at this moment: the folders of a subPath are made here.
//!
//! Every step goes from a descriptor to the next name in it, by a look-up that cannot leave the volume (openat2 with
//! RESOLVE_BENEATH: a symlink that stays inside is followed, one that leads out is an error). The mount itself is
//! opened by the runtime, once more and in the same way, so nothing that happens in between can matter.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, mkdirat};

/// The kernel asks to be called again when something was renamed while it looked.
const TRIES: usize = 64;

/// Makes the folders of a path in a volume that are not there, with the permissions of the volume's root.
pub fn make(volume: &Path, sub: &Path) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(volume, flags, Mode::empty())?;
    if find(&root, sub).is_ok() {
        return Ok(());
    }
    let meta = fs::metadata(volume)?;
    let mut done = PathBuf::new();
    for part in sub.components() {
        let Component::Normal(name) = part else { continue };
        let above = if done.as_os_str().is_empty() { root.try_clone()? } else { find(&root, &done)? };
        done.push(name);
        match mkdirat(&above, name, Mode::from_bits_truncate(0o700)) {
            Err(Errno::EEXIST) => continue,
            made => made?,
        }
        // One name, not followed: if something else has taken its place since, it lies in the same folder.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = fs::File::from(openat(&above, name, flags, Mode::empty())?);
        std::os::unix::fs::fchown(&made, Some(meta.uid()), Some(meta.gid()))?;
        made.set_permissions(fs::Permissions::from_mode(meta.mode() & 0o7777))?;
    }
    find(&root, sub).map(drop)
}

fn find(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    for _ in 0..TRIES {
        match openat2(root, path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            found => return Ok(found?),
        }
    }
    Err(Errno::EAGAIN.into())
}

/// What an error of [`make`] means.
pub fn explain(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EXDEV) => " (it, or a symlink on the way to it, leads out of the volume)",
        Some(libc::ENOSYS) => " (the kernel has no openat2, which is needed to stay in the volume)",
        Some(libc::EROFS | libc::EACCES | libc::EPERM) => " (it is not there, and cannot be made)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn missing_folders_are_made_like_the_volumes_root() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o2775)).unwrap();
        make(dir.path(), Path::new("a/b")).unwrap();
        assert_eq!((mode(&dir.path().join("a")), mode(&dir.path().join("a/b"))), (0o2775, 0o2775));
        fs::write(dir.path().join("a/file"), "").unwrap();
        make(dir.path(), Path::new("a/file")).unwrap();
        symlink("a", dir.path().join("near")).unwrap();
        make(dir.path(), Path::new("near/c")).unwrap();
        assert!(dir.path().join("a/c").is_dir());
    }

    #[test]
    fn nothing_is_made_outside() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(outside.path(), dir.path().join("far")).unwrap();
        symlink("../../../../../..", dir.path().join("up")).unwrap();
        for sub in ["far/x", "up/x", "far"] {
            let error = make(dir.path(), Path::new(sub)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EXDEV), "{sub}");
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
