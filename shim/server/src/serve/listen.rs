//! The server's socket: one server at a time, readable by root alone, gone when the server ends.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use tokio::net::UnixListener;

use crate::exit::Coded;

/// A bound socket, and the lock that makes it ours.
pub struct Socket {
    /// To accept from.
    pub listener: UnixListener,
    _lock: Flock<File>,
}

impl Socket {
    /// Binds `path`. A socket that a dead server has left is replaced; a living server's is an error.
    pub fn bind(path: &Path) -> Result<Socket> {
        let name = path.file_name().context("the socket's path has no file name")?;
        let mut lock_name = name.to_owned();
        lock_name.push(".lock");
        let lock_path: PathBuf = path.with_file_name(lock_name);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        }
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let file = file.with_context(|| format!("open {}", lock_path.display()))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| Coded::usage(format!("{}: another server serves it already", path.display())))?;
        match fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("remove the old socket {}", path.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
        Ok(Socket { listener, _lock: lock })
    }
}
