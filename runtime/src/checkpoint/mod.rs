//! Checkpoint and restore, by CRIU's program.
//!
//! `criu dump` writes the processes of a container into a directory; `criu restore` makes them again, with their
//! namespaces and mounts. What is the container's own (proc, tmpfs, devpts, its network) CRIU knows by itself. What comes
//! from the host does not belong into the images: it is `external`, named at the dump and given again at the restore.
//! Beside CRIU's files a directory holds
//!
//! | file | content |
//! |---|---|
//! | `descriptors.json` | the standard streams of the init: pipes, and files of the host; as runc's, with `file[..]` besides |
//! | `mounts.json` | the mount points that the host's files are mounted on |
//! | `dump.log`, `restore.log` | what CRIU said; its errors are in ours, too |
//!
//! The cgroup is made by us, with the limits of the configuration; CRIU starts inside and makes those beneath it. It has
//! a mount namespace of its own, in which the root filesystem is mounted for it: nothing of that is on the host.
//!
//! What CRIU's command line cannot do is refused by name: terminals (their masters go over its RPC alone), lazy pages,
//! hooks that must run in the middle of a restore.

mod criu;
mod dump;
mod external;
mod restore;

use std::path::PathBuf;

use crate::error::Result;
use crate::{CreateOptions, Runtime};

/// The streams of the init, in the images' directory.
const DESCRIPTORS: &str = "descriptors.json";
/// The mount points of the host's files there.
const MOUNTS: &str = "mounts.json";

/// What a checkpoint and its restore have in common.
#[derive(Debug, Clone, Default)]
pub struct CriuOptions {
    /// CRIU's program; `criu` when empty.
    pub program: PathBuf,
    /// The directory of the images.
    pub images: PathBuf,
    /// Where the log goes; the images' directory if not told.
    pub work: Option<PathBuf>,
    /// Established TCP connections are kept.
    pub tcp_established: bool,
    /// Unix sockets may be connected to the outside.
    pub ext_unix_sk: bool,
    /// Processes may belong to a session whose leader is outside.
    pub shell_job: bool,
    /// Locks of files are kept.
    pub file_locks: bool,
    /// `soft`, `full`, `strict` or `ignore`; CRIU's own choice (soft) when empty.
    pub manage_cgroups: String,
    /// Namespaces made anew but not filled: `network`.
    pub empty_ns: Vec<String>,
    /// Pages that a later image has are removed from the earlier.
    pub auto_dedup: bool,
}

/// How to checkpoint.
#[derive(Debug, Clone, Default)]
pub struct CheckpointOptions {
    /// What the restore has, too.
    pub criu: CriuOptions,
    /// The images of an earlier pre-dump, relative to these.
    pub parent: Option<PathBuf>,
    /// The container goes on afterwards.
    pub leave_running: bool,
    /// Memory only, ahead of a dump; the container goes on.
    pub pre_dump: bool,
    /// TCP connections that are being made are left out.
    pub tcp_skip_in_flight: bool,
    /// Files without a name are linked for the time being.
    pub link_remap: bool,
    /// `ADDRESS:PORT` of who takes the pages.
    pub page_server: Option<(String, u16)>,
}

/// How to restore, beyond what a create needs.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// What the checkpoint has, too.
    pub criu: CriuOptions,
    /// `TYPE:NAME` of an LSM's profile instead of the saved one.
    pub lsm_profile: Option<String>,
    /// An SELinux context for mounts instead of the saved one.
    pub lsm_mount_context: Option<String>,
}

impl Runtime {
    /// Saves the state of a running container. It has ended afterwards, unless it is left running.
    pub fn checkpoint(&self, id: &str, options: &CheckpointOptions) -> Result<()> {
        dump::checkpoint(self, id, options)
    }

    /// Makes a container out of a saved state; it runs at once. Returns the pid of its init.
    pub fn restore(&self, id: &str, create: CreateOptions, options: &RestoreOptions) -> Result<i32> {
        restore::restore(self, id, create, options)
    }
}
