//! What can go wrong with cgroups: each message is one line with the operation, the object and
//! the kernel's words.

use std::{io, path::PathBuf};

/// A cgroup operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of cgroupfs (or of /proc) refused an operation.
    #[error("{operation} {}: {cause}", path.display())]
    Io {
        /// What was done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The kernel refused the value of one field.
    #[error("set {field}: write {value:?} to {}: {cause}{hint}", path.display())]
    Set {
        /// The field of the OCI configuration.
        field: String,
        /// What was written.
        value: String,
        /// The file of cgroupfs.
        path: PathBuf,
        /// The likely cause, when it is known; empty otherwise.
        hint: &'static str,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// A limit is asked for and nothing on this host can enforce it.
    #[error("{field} cannot be enforced: cgroup controller {controller} {why}")]
    MissingController {
        /// The field of the OCI configuration.
        field: String,
        /// The controller that would be needed.
        controller: String,
        /// Where it was looked for.
        why: String,
    },
    /// A field has no counterpart in this cgroup version, or its value makes no sense.
    #[error("{field}: {why}")]
    Refused {
        /// The field of the OCI configuration.
        field: String,
        /// The reason, and what to do instead.
        why: String,
    },
    /// The path asked for cannot be a cgroup's.
    #[error("cgroup path {path:?}: {why}")]
    BadPath {
        /// The path as given.
        path: String,
        /// What is wrong.
        why: &'static str,
    },
    /// No cgroup file system is mounted where this process could see it.
    #[error("find the cgroup hierarchies: no cgroup file system is mounted (mount cgroup2 at /sys/fs/cgroup)")]
    NotMounted,
    /// A rootless container without a cgroup is asked for what only a cgroup can do.
    #[error("{what}: the container has no cgroup (its rootless creator had no right to make one)")]
    NoCgroup {
        /// What needs one.
        what: &'static str,
    },
    /// systemd refused, or could not be reached.
    #[error("{what} by systemd: {why}")]
    Systemd {
        /// What was asked of it.
        what: String,
        /// Its words.
        why: String,
    },
    /// A new container's cgroup holds processes of someone else.
    #[error("cgroup {} already holds processes ({}); choose another cgroupsPath", path.display(), list(pids))]
    NotEmpty {
        /// The cgroup.
        path: PathBuf,
        /// Some of its processes.
        pids: Vec<i32>,
    },
    /// A cgroup could not be removed: its processes outlived the bounded wait.
    #[error("remove cgroup {}: processes are still in it ({})", path.display(), list(pids))]
    Busy {
        /// The cgroup.
        path: PathBuf,
        /// Some of its processes.
        pids: Vec<i32>,
    },
    /// An operation did not reach its end within its bound.
    #[error("{operation} cgroup {}: not done after {millis} ms", path.display())]
    Timeout {
        /// What was done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// The bound.
        millis: u128,
    },
    /// A file of cgroupfs holds what this program does not understand.
    #[error("read {}: unexpected {text:?}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The text that was not understood.
        text: String,
    },
}

/// A result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// How many process ids a message shows.
const SHOWN_PIDS: usize = 5;

fn list(pids: &[i32]) -> String {
    let shown: Vec<String> = pids.iter().take(SHOWN_PIDS).map(|pid| format!("pid {pid}")).collect();
    let more = if pids.len() > SHOWN_PIDS { ", ..." } else { "" };
    format!("{}{more}", shown.join(", "))
}

impl Error {
    /// Whether the kernel denied a right.
    pub(super) fn denied(&self) -> bool {
        matches!(self.raw_os_error(), Some(libc::EROFS | libc::EACCES | libc::EPERM))
    }

    pub(super) fn io(operation: &'static str, path: impl Into<PathBuf>, cause: io::Error) -> Self {
        Error::Io { operation, path: path.into(), cause }
    }

    pub(super) fn refused(field: impl Into<String>, why: impl Into<String>) -> Self {
        Error::Refused { field: field.into(), why: why.into() }
    }

    /// The errno underneath, when the kernel gave one.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Error::Io { cause, .. } | Error::Set { cause, .. } => cause.raw_os_error(),
            _ => None,
        }
    }
}
