//! A handle of another process that never comes to mean a third one, though its pid may be used again.
//!
//! A pidfd, or where the kernel gives none (before Linux 5.3, and in sandboxes) the descriptor of /proc/PID: once that
//! process is gone nothing can be opened through it. The one thing lost is that a signal then goes by number, a moment
//! after the process was seen to live.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use crate::spec::NamespaceKind;
use crate::{state, sys};

/// How often a process without a pidfd is looked at while its end is awaited.
const GLANCE: Duration = Duration::from_millis(2);

/// All namespaces a process can be joined in, the mount namespace last: /proc goes out of sight with it.
const KINDS: [NamespaceKind; 8] = [
    NamespaceKind::User,
    NamespaceKind::Cgroup,
    NamespaceKind::Ipc,
    NamespaceKind::Uts,
    NamespaceKind::Network,
    NamespaceKind::Pid,
    NamespaceKind::Time,
    NamespaceKind::Mount,
];

/// See the module's head.
pub(crate) enum Handle {
    Pidfd(OwnedFd),
    /// /proc/PID.
    Directory(OwnedFd),
}

/// The file of one namespace of /proc/PID.
fn namespace(directory: &OwnedFd, kind: NamespaceKind) -> io::Result<OwnedFd> {
    let name = match kind {
        NamespaceKind::User => "ns/user",
        NamespaceKind::Cgroup => "ns/cgroup",
        NamespaceKind::Ipc => "ns/ipc",
        NamespaceKind::Uts => "ns/uts",
        NamespaceKind::Network => "ns/net",
        NamespaceKind::Pid => "ns/pid",
        NamespaceKind::Time => "ns/time",
        NamespaceKind::Mount => "ns/mnt",
    };
    Ok(sys::retry(|| openat(directory, name, OFlag::O_CLOEXEC, Mode::empty()))?)
}

impl Handle {
    /// Opens a process; ESRCH when there is none. Whose pid it is now is for the caller to check, *afterwards*.
    pub fn open(pid: i32) -> io::Result<Handle> {
        match sys::pidfd_open(pid) {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => Handle::open_directory(pid),
            result => result.map(Handle::Pidfd),
        }
    }

    fn open_directory(pid: i32) -> io::Result<Handle> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let path = format!("/proc/{pid}");
        let directory = match sys::retry(|| open(path.as_str(), flags, Mode::empty())) {
            Err(nix::errno::Errno::ENOENT) => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
            result => result?,
        };
        if fstatfs(&directory)?.filesystem_type() != PROC_SUPER_MAGIC {
            return Err(io::Error::new(io::ErrorKind::Unsupported, format!("{path} is not of a mounted proc")));
        }
        Ok(Handle::Directory(directory))
    }

    /// Another of the same process.
    pub fn copy(&self) -> io::Result<Handle> {
        match self {
            Handle::Pidfd(fd) => fd.try_clone().map(Handle::Pidfd),
            Handle::Directory(fd) => fd.try_clone().map(Handle::Directory),
        }
    }

    /// What setns takes for its PID namespace.
    pub fn pid_namespace(&self) -> io::Result<OwnedFd> {
        match self {
            Handle::Pidfd(fd) => fd.try_clone(),
            Handle::Directory(directory) => namespace(directory, NamespaceKind::Pid),
        }
    }

    /// Sends a signal; ESRCH when it is gone.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        if let Handle::Pidfd(fd) = self {
            match sys::pidfd_send_signal(fd, signal) {
                Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => {}
                result => return result,
            }
        }
        let (pid, alive) = self.look()?;
        if !alive {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        sys::kill(pid, signal)
    }

    /// Waits for its end (a zombie has ended); false when the time is over before.
    pub fn ends_within(&self, limit: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self {
                Handle::Pidfd(fd) => {
                    let millis = left.as_millis().min(i32::MAX as u128) as i32;
                    let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
                    if sys::retry(|| poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout))? > 0 {
                        return Ok(true);
                    }
                }
                Handle::Directory(_) => match self.look() {
                    Ok((_, true)) => std::thread::sleep(left.min(GLANCE)),
                    Ok((_, false)) => return Ok(true),
                    Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(true),
                    Err(e) => return Err(e),
                },
            }
            if left.is_zero() {
                return Ok(false);
            }
        }
    }

    /// Joins the namespaces that `flags` names: all at once by a pidfd.
    pub fn join(&self, flags: u64) -> io::Result<()> {
        let directory = match self {
            Handle::Pidfd(fd) => return sys::setns(fd.as_fd(), flags as i32),
            Handle::Directory(directory) => directory,
        };
        let mut files = Vec::new();
        for kind in KINDS.into_iter().filter(|kind| flags & kind.flag() != 0) {
            files.push((kind, namespace(directory, kind)?));
        }
        // Rights over the host's namespaces go with the user namespace, rights over the container's may come with it:
        // what is refused before is tried again after.
        let mut later = Vec::new();
        let (user, others): (Vec<_>, Vec<_>) = files.into_iter().partition(|(kind, _)| *kind == NamespaceKind::User);
        for (kind, file) in others {
            match sys::setns(file.as_fd(), kind.flag() as i32) {
                Err(e) if e.raw_os_error() == Some(libc::EPERM) && !user.is_empty() => later.push((kind, file)),
                result => result?,
            }
        }
        user.into_iter().chain(later).try_for_each(|(kind, file)| sys::setns(file.as_fd(), kind.flag() as i32))
    }

    /// The pid and whether it still runs; ESRCH when it is gone.
    fn look(&self) -> io::Result<(i32, bool)> {
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        match self {
            Handle::Pidfd(fd) => {
                let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
                let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
                let pid: i32 = pid.filter(|pid| *pid > 0).ok_or_else(gone)?;
                Ok((pid, state::process_start(pid).is_some_and(|(_, alive)| alive)))
            }
            Handle::Directory(directory) => {
                let file = match sys::retry(|| openat(directory, "stat", OFlag::O_CLOEXEC, Mode::empty())) {
                    Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ESRCH) => return Err(gone()),
                    result => result?,
                };
                let text = io::read_to_string(std::fs::File::from(file))?;
                let pid = text.split(' ').next().and_then(|pid| pid.parse().ok()).ok_or_else(gone)?;
                Ok((pid, state::parse_stat(&text).is_some_and(|(_, alive)| alive)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    fn sleeper() -> Child {
        Command::new("/bin/sleep").arg("1000").spawn().unwrap()
    }

    fn handles(child: &Child) -> [Handle; 2] {
        let pid = child.id() as i32;
        [Handle::open(pid).unwrap(), Handle::open_directory(pid).unwrap()]
    }

    #[test]
    fn both_kinds_of_handles_signal_and_see_the_end() {
        for index in 0..2 {
            let mut child = sleeper();
            let handle = &handles(&child)[index];
            assert!(!handle.ends_within(Duration::from_millis(5)).unwrap());
            assert_eq!(handle.look().unwrap(), (child.id() as i32, true));
            handle.signal(libc::SIGKILL).unwrap();
            assert!(handle.ends_within(Duration::from_secs(100)).unwrap());
            child.wait().unwrap();
            assert!(handle.ends_within(Duration::ZERO).unwrap());
            assert_eq!(handle.signal(libc::SIGKILL).unwrap_err().raw_os_error(), Some(libc::ESRCH));
            assert!(handle.look().is_err());
        }
    }

    #[test]
    fn a_process_that_is_not_there_is_not_found() {
        let mut child = sleeper();
        child.kill().unwrap();
        child.wait().unwrap();
        let pid = child.id() as i32;
        for error in [Handle::open(pid).err(), Handle::open_directory(pid).err()] {
            assert_eq!(error.unwrap().raw_os_error(), Some(libc::ESRCH));
        }
    }
}
