//! Locks that prove life.
//!
//! Three kinds of file, each locked by its owner for as long as the owner lives, and asked about without being taken:
//! - `creator.lock` in a pod's folder: the process that is making or removing the pod (open file description lock:
//!   it is lost with the last fd, whatever else the process opens and closes);
//! - `tender.lock`: the process that applies the pod's restart policy;
//! - `lock`: the supervisor, a POSIX record lock, so that the kernel tells its pid.
//!
//! The kernel drops a lock when its owner dies, however it dies. So a free lock proves death; there is no timeout.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};

use crate::error::{Error, Result};

/// Who holds a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// Nobody: the owner is dead, or there never was one.
    Nobody,
    /// This process.
    Pid(i32),
    /// A living process that the kernel does not name (an open file description lock).
    Somebody,
}

impl Holder {
    /// Whether somebody lives who holds it.
    pub fn lives(self) -> bool {
        self != Holder::Nobody
    }
}

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub struct LifeLock {
    _file: File,
}

fn whole_file(kind: i32) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 }
}

fn open(path: &Path, create: bool) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(create).truncate(false).mode(0o600).open(path)
}

impl LifeLock {
    /// Takes the lock if it is free; `None` if somebody living holds it.
    pub fn try_take(path: &Path) -> Result<Option<LifeLock>> {
        let file = open(path, true).map_err(Error::io("open lock", path))?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
            Ok(_) => Ok(Some(LifeLock { _file: file })),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(e) => Err(Error::os("lock", path)(e)),
        }
    }
}

/// Who holds the lock at `path`; a file that is not there is held by nobody.
pub fn holder(path: &Path) -> Result<Holder> {
    let file = match open(path, false) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Holder::Nobody),
        Err(e) => return Err(Error::io("open lock", path)(e)),
    };
    let mut lock = whole_file(libc::F_WRLCK);
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)).map_err(Error::os("query lock", path))?;
    Ok(match (i32::from(lock.l_type), lock.l_pid) {
        (libc::F_UNLCK, _) => Holder::Nobody,
        (_, pid) if pid > 0 => Holder::Pid(pid),
        _ => Holder::Somebody,
    })
}

/// A short critical section between processes; the wait is bounded by the others' sections, which never wait for
/// anything but the disk.
pub fn section(path: &Path, exclusive: bool) -> Result<Flock<File>> {
    let file = open(path, true).map_err(Error::io("open lock", path))?;
    let how = if exclusive { FlockArg::LockExclusive } else { FlockArg::LockShared };
    Flock::lock(file, how).map_err(|(_, e)| Error::os("lock", path)(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_until_dropped_and_asking_does_not_disturb_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert_eq!(holder(&path).unwrap(), Holder::Nobody);
        let lock = LifeLock::try_take(&path).unwrap().expect("free");
        assert!(holder(&path).unwrap().lives());
        assert!(holder(&path).unwrap().lives(), "closing the asking fd does not release it");
        assert!(LifeLock::try_take(&path).unwrap().is_none());
        drop(lock);
        assert_eq!(holder(&path).unwrap(), Holder::Nobody);
    }

    #[test]
    fn a_posix_lock_names_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let file = open(&path, true).unwrap();
        fcntl(&file, FcntlArg::F_SETLK(&whole_file(libc::F_WRLCK))).unwrap();
        assert_eq!(holder(&path).unwrap(), Holder::Pid(std::process::id() as i32));
    }
}
