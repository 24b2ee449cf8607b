//! The tender: a command of the engine's (`coracle tend ID`) that looks after a pod when a container has exited, and
//! leaves. It holds a POSIX lock on `tender.lock` while it works; releases it and *then* looks for exits once more.
//!
//! So an exit is never missed: either the lock was free when the supervisor asked, and a tender is spawned; or it was
//! held, and its holder has yet to look.

use crate::sys::{self, Fork};
use crate::worker::{self, Namespaces};
use nix::fcntl::{FcntlArg, fcntl};
use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The lock's name in the sandbox's bundle.
pub const LOCK: &str = "tender.lock";

/// The process that holds a POSIX lock on a file, if any.
pub fn lock_holder(path: &Path) -> io::Result<Option<i32>> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let mut lock = sys::write_lock();
    fcntl(&file, FcntlArg::F_GETLK(&mut lock))?;
    Ok((i32::from(lock.l_type) != nix::libc::F_UNLCK).then_some(lock.l_pid))
}

/// Spawns the command, in the host's namespaces and on its own, unless a tender is at work. No command, no tender.
pub fn call(command: &[String], bundle: &Path, host: &Namespaces) -> io::Result<()> {
    if command.is_empty() || lock_holder(&bundle.join(LOCK))?.is_some() {
        return Ok(());
    }
    let words: Vec<CString> = command.iter().map(|word| CString::new(word.as_str())).collect::<Result<_, _>>()?;
    match sys::fork()? {
        // Its exit is reaped like any other's, and means nothing.
        Fork::Parent(_) => Ok(()),
        Fork::Child => {
            let error = become_tender(&words, host);
            eprintln!("run the tender {}: {error}", command[0]);
            sys::exit_now(127);
        }
    }
}

fn become_tender(words: &[CString], host: &Namespaces) -> nix::Error {
    let run = || -> nix::Result<std::convert::Infallible> {
        worker::return_to(host)?;
        sys::close_all_but(&mut []);
        sys::reset_signals();
        nix::unistd::setsid()?;
        nix::unistd::chdir("/")?;
        nix::unistd::execvp(&words[0], words)
    };
    match run() {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_nobody_holds_has_no_holder() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(lock_holder(&dir.path().join(LOCK)).unwrap(), None);
    }

    #[test]
    fn without_a_command_there_is_no_tender() {
        call(&[], Path::new("/no/such/place"), &[]).unwrap();
    }
}
