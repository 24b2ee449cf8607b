//! The server's socket: one server at a time, for root alone, gone when the server ends.
//!
//! systemd may have bound it already (`LISTEN_FDS`, see `sd_listen_fds(3)`): then it stays when the server ends, and clients
//! that come meanwhile wait for the next one.

use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl};
use tokio::net::UnixListener;

use crate::exit::Coded;
use crate::sys;

/// A bound socket, and the lock that makes it ours.
pub struct Socket {
    /// To accept from; taken once.
    listener: Option<UnixListener>,
    path: PathBuf,
    /// Whether the file is ours to remove.
    bound: bool,
    _lock: Flock<File>,
}

impl Socket {
    /// Takes the socket that systemd has passed, or else binds `path`. A socket that a dead server has left is replaced; a
    /// living server's is an error.
    pub fn open(path: &Path) -> Result<Socket> {
        match passed()? {
            Some(listener) => {
                let address = listener.local_addr().context("the passed socket's address")?;
                let path = address.as_pathname().context("the passed socket has no path")?.to_owned();
                Ok(Socket { listener: Some(listener), bound: false, _lock: lock(&path)?, path })
            }
            None => Socket::bind(path),
        }
    }

    fn bind(path: &Path) -> Result<Socket> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        }
        let lock = lock(path)?;
        match fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("remove the old socket {}", path.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
        Ok(Socket { listener: Some(listener), path: path.to_owned(), bound: true, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What to accept from.
    pub fn listener(&mut self) -> Result<UnixListener> {
        self.listener.take().context("the socket is served already")
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.bound {
            // The next server removes what could not be removed here.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn lock(path: &Path) -> Result<Flock<File>> {
    let name = path.file_name().context("the socket's path has no file name")?;
    let mut lock_name = name.to_owned();
    lock_name.push(".lock");
    let lock_path: PathBuf = path.with_file_name(lock_name);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
    let file = file.with_context(|| format!("open {}", lock_path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| Coded::usage(format!("{}: another server serves it already", path.display())))
}

/// The one socket that systemd passes to this process, if it does.
fn passed() -> Result<Option<UnixListener>> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(None);
    }
    let sockets = number("LISTEN_FDS").unwrap_or(0);
    ensure!(sockets == 1, "systemd passes {sockets} sockets, and one is served: keep one ListenStream in the unit");
    let socket: OwnedFd = sys::passed_socket()?;
    fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context("keep the passed socket to ourselves")?;
    let listener = std::os::unix::net::UnixListener::from(socket);
    listener.set_nonblocking(true).context("the passed socket")?;
    Ok(Some(UnixListener::from_std(listener).context("the passed socket")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_server_at_a_time_and_the_socket_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/c.sock");
        let first = Socket::open(&path).unwrap();
        assert!(path.exists());
        let error = Socket::open(&path).err().unwrap().to_string();
        assert!(error.contains("another server serves it already"), "{error}");
        drop(first);
        assert!(!path.exists());
        // What a killed server leaves is replaced.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        Socket::open(&path).unwrap();
    }
}
