//! Who may do what at the same time, over processes and threads alike.
//!
//! - `lock`, a flock: shared while the store is changed in small steps that must see a stable whole (a pull notes what it
//!   uses, commits a layer, writes a record), exclusive while garbage is chosen. Nobody holds it for long: neither a
//!   download nor a big deletion happens under it.
//! - one lock for each layer, a byte of `layers.lock` at an offset made of its digest (an open-file-description lock, so no
//!   files pile up): held by whoever unpacks the layer; others who want it wait, and then find it.
//!   A worker holds one of these at a time and waits for no other lock meanwhile but `lock`: no cycle is possible.
//! - `tmp/ID/lock`, a flock: held for as long as the owner of that scratch directory lives. A scratch directory whose lock
//!   is free belongs to a dead process: the proof that lets others delete it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};

/// How long anyone waits for `lock`; what happens under it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// A held flock; dropping releases it.
pub(crate) type Guard = Flock<File>;

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// Takes a flock, waiting a while for it.
pub(crate) fn flock(path: &Path, exclusive: bool) -> Result<Guard> {
    let how = if exclusive { FlockArg::LockExclusiveNonblock } else { FlockArg::LockSharedNonblock };
    let what = || format!("lock {}", path.display());
    let deadline = Instant::now() + PATIENCE;
    let mut file = open(path).map_err(|err| Error::io(what(), err))?;
    loop {
        match Flock::lock(file, how) {
            Ok(guard) => return Ok(guard),
            Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) if Instant::now() < deadline => {
                file = back;
                std::thread::sleep(POLL);
            }
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(Error::new(ErrorKind::Busy, format!("{}: another process holds it", what())));
            }
            Err((_, err)) => return Err(Error::io(what(), err.into())),
        }
    }
}

/// What a look at a lock shows.
pub(crate) enum Try {
    /// Someone holds it.
    Busy,
    /// Nobody did. It is held now, unless there is no file.
    Free(Option<Guard>),
}

/// Takes an exclusive flock if it is free now. A missing file counts as free, and stays missing.
pub(crate) fn try_exclusive(path: &Path) -> Result<Try> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Try::Free(None)),
        Err(err) => return Err(Error::io(format!("open {}", path.display()), err)),
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(guard) => Ok(Try::Free(Some(guard))),
        Err((_, Errno::EWOULDBLOCK)) => Ok(Try::Busy),
        Err((_, err)) => Err(Error::io(format!("lock {}", path.display()), err.into())),
    }
}

/// The lock of one layer; dropping releases it.
pub(crate) struct LayerLock(#[allow(dead_code, reason = "held for its drop")] File);

impl LayerLock {
    /// Waits for the layer's lock, however long its holder unpacks. `on_wait` is called first if there is one.
    pub(crate) fn wait(file: &Path, diff_id: &Digest, on_wait: impl FnOnce()) -> Result<LayerLock> {
        let what = || format!("lock layer {diff_id}");
        let file = open(file).map_err(|err| Error::io(what(), err))?;
        let start = i64::from_str_radix(&diff_id.hex()[..15], 16).expect("a digest is hex");
        let range = libc::flock {
            l_type: libc::F_WRLCK as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: start,
            l_len: 1,
            l_pid: 0,
        };
        let mut on_wait = Some(on_wait);
        loop {
            let how = if on_wait.is_some() { FcntlArg::F_OFD_SETLK(&range) } else { FcntlArg::F_OFD_SETLKW(&range) };
            match fcntl(&file, how) {
                Ok(_) => return Ok(LayerLock(file)),
                Err(Errno::EAGAIN | Errno::EACCES) => {
                    if let Some(tell) = on_wait.take() {
                        tell();
                    }
                }
                Err(Errno::EINTR) => {}
                Err(err) => return Err(Error::io(format!("{} (fd {})", what(), file.as_raw_fd()), err.into())),
            }
        }
    }
}
