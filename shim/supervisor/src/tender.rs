//! The tender: a command of the engine's (`coracle tend ID`) that looks after a pod when a container has exited, and
//! leaves. It holds a POSIX lock on `tender.lock` while it works; releases it and *then* looks for exits once more.
//!
//! So an exit is never missed: either the lock was free when the supervisor asked, and a tender is spawned; or it was
//! held, and its holder has yet to look.
//!
//! A tender that stays (it probes, say) is called as soon as the sandbox is ready, and again when it dies:
//!
//! ```text
//!  nobody known to tend --TICK--> lock held: look again after TICK
//!                                 lock free: spawn it -----> it lives: its death is told, nothing to look for
//!  it died of a signal, or ends with another code than 0 --> as at first, each time a little later
//!  it ended with 0: nothing of the pod is left to tend, until a container exits
//! ```

use crate::sys::{self, Fork};
use crate::worker::{self, Namespaces};
use nix::fcntl::{FcntlArg, fcntl};
use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// The lock's name in the sandbox's bundle.
pub const LOCK: &str = "tender.lock";
/// How often the lock of a tender that is not our child is looked at.
const TICK: Duration = Duration::from_millis(500);
/// One that dies again and again is called no more often than this.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// One that lived for this long died of something new.
const LIVED: Duration = Duration::from_secs(60);

/// What is known of the pod's tender.
#[derive(Default)]
pub struct Tender {
    /// The one we spawned last, while it lives.
    child: Option<i32>,
    stays: bool,
    /// When to look whether somebody tends.
    due: Option<Instant>,
    /// How long after a death.
    pause: Duration,
    spawned: Option<Instant>,
    /// It may have left without seeing the last exit.
    missed: bool,
}

impl Tender {
    /// Whether it is to be there at any time.
    pub fn stays(&mut self, stays: bool) {
        self.stays = stays;
        self.due = stays.then(|| Instant::now() + TICK);
        self.pause = TICK;
    }

    /// When to call it, if nobody else asks before.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Has it at work, unless somebody is already.
    pub fn call(&mut self, command: &[String], bundle: &Path, host: &Namespaces) {
        self.due = None;
        if self.child.is_some() && self.stays {
            // With the lock free it has just come, or is just leaving and has looked for the last time.
            self.missed = !lock_holder(&bundle.join(LOCK)).is_ok_and(|holder| holder.is_some());
            return;
        }
        match call(command, bundle, host) {
            Ok(Some(pid)) => {
                self.child = Some(pid);
                self.spawned = Some(Instant::now());
            }
            Ok(None) => self.due = self.stays.then(|| Instant::now() + TICK),
            Err(error) => {
                eprintln!("call the tender {command:?}: {error}");
                self.due = self.stays.then(|| Instant::now() + MAX_PAUSE);
            }
        }
    }

    /// A child has died. False if it was not the tender.
    pub fn died(&mut self, pid: i32, status: u32) -> bool {
        if self.child != Some(pid) {
            return false;
        }
        self.child = None;
        if self.stays && status == 0 && std::mem::take(&mut self.missed) {
            self.due = Some(Instant::now());
        } else if self.stays && status != 0 {
            let lived = self.spawned.is_some_and(|at| at.elapsed() >= LIVED);
            self.pause = if lived { TICK } else { self.pause };
            self.due = Some(Instant::now() + self.pause);
            self.pause = (self.pause * 2).min(MAX_PAUSE);
        }
        true
    }
}

/// The process that holds a POSIX lock on a file, if any.
pub fn lock_holder(path: &Path) -> io::Result<Option<i32>> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let mut lock = sys::write_lock();
    fcntl(&file, FcntlArg::F_GETLK(&mut lock))?;
    Ok((i32::from(lock.l_type) != nix::libc::F_UNLCK).then_some(lock.l_pid))
}

/// Spawns the command, in the host's namespaces and on its own, unless a tender is at work. No command, no tender.
fn call(command: &[String], bundle: &Path, host: &Namespaces) -> io::Result<Option<i32>> {
    if command.is_empty() || lock_holder(&bundle.join(LOCK))?.is_some() {
        return Ok(None);
    }
    let words: Vec<CString> = command.iter().map(|word| CString::new(word.as_str())).collect::<Result<_, _>>()?;
    match sys::fork()? {
        Fork::Parent(pid) => Ok(Some(pid)),
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
        assert_eq!(call(&[], Path::new("/no/such/place"), &[]).unwrap(), None);
    }

    #[test]
    fn one_that_stays_is_due_again_when_it_died_and_not_when_it_left() {
        let mut tender = Tender::default();
        tender.stays(true);
        assert!(tender.due().is_some());
        tender = Tender { child: Some(7), stays: true, pause: TICK, ..Tender::default() };
        assert!(!tender.died(8, 0) && tender.due().is_none(), "somebody else");
        assert!(tender.died(7, 0) && tender.due().is_none(), "it left");
        tender = Tender { child: Some(7), missed: true, ..tender };
        assert!(tender.died(7, 0) && tender.due().is_some(), "it left, maybe too soon");
        tender.child = Some(9);
        assert!(tender.died(9, 137) && tender.due().is_some());
        assert_eq!(tender.pause, TICK * 2, "the next time a little later");
    }

    #[test]
    fn one_that_comes_and_goes_is_never_due() {
        let mut tender = Tender { child: Some(7), ..Tender::default() };
        assert!(tender.died(7, 137) && tender.due().is_none());
    }
}
