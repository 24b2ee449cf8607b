//! The low-level OCI runtime: containers by the runtime-spec, as a library.
//!
//! [`Runtime`] is everything its command line `coracle-oci` does, and what the supervisor calls. Each half of a creation
//! is one flat list: [`create`] the parent's, `init` the container's own; `exec` has both. The rest of the modules are
//! what these lists use:
//!
//! ```text
//! spec      config.json            refuse    what of it is done, refused, wrong
//! spawn     clone3                 channel   words between the halves
//! mounts    options, idmap, beneath (walk), copyup, cgroupfs, devices, console; sources: what comes from the host
//! rootless  who is not root of the host: which half does what, and the maps of user namespaces
//! identity  user, capabilities, limits, program; lsm; schedule
//! agent     who answers the filter's notifications
//! netdev    network devices that move into the container                 rdt    Intel RDT
//! hooks     state (on disk), time  undo      what a failed create takes back
//! seal      the program itself     apart     for containers of other programs     lend  to other mount namespaces
//! cgroup    seccomp                handle    another process               members  without a cgroup
//! checkpoint  dump and restore by CRIU         features  what of all this is told to managers
//! sys       all of the crate's unsafe code
//! ```
//!
//! Callers must be single-threaded: a clone without exec follows.

mod agent;
mod apart;
mod beneath;
pub mod cgroup;
mod cgroupfs;
mod channel;
mod checkpoint;
mod console;
mod copyup;
mod create;
mod devices;
mod error;
mod exec;
mod features;
#[cfg(fuzzing)]
pub mod fuzz;
mod handle;
mod hooks;
mod identity;
mod idmap;
mod init;
pub mod lend;
mod lifecycle;
mod lsm;
mod members;
mod mounts;
mod netdev;
mod options;
mod rdt;
mod refuse;
mod rootless;
mod schedule;
mod seal;
pub mod seccomp;
mod sources;
mod spawn;
pub mod spec;
mod state;
mod sys;
pub mod terminal;
pub mod time;
mod undo;
mod walk;

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;

pub use apart::{leave_mount_namespace, mount_rootfs};
pub use cgroup::Stats;
pub use checkpoint::{CheckpointOptions, CriuOptions, RestoreOptions};
use error::Context;
pub use error::{Error, Result};
pub use features::features;
pub use seal::seal_self;
pub use spec::Process;
pub use state::{Detail, OCI_VERSION, State, Status, now};
pub use sys::hear_children;

/// Containers whose state lives beneath one directory.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// The state root: `<root>/<id>/`.
    pub root: PathBuf,
}

/// The standard streams of a new process; `None` is the caller's own.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Descriptor 0.
    pub stdin: Option<OwnedFd>,
    /// Descriptor 1.
    pub stdout: Option<OwnedFd>,
    /// Descriptor 2.
    pub stderr: Option<OwnedFd>,
}

impl Stdio {
    /// Makes them 0, 1 and 2 of this process.
    fn take(&self) -> Result<()> {
        for (fd, number) in [(&self.stdin, 0), (&self.stdout, 1), (&self.stderr, 2)] {
            if let Some(fd) = fd {
                sys::dup_to(fd.as_raw_fd(), number, false).op(|| format!("set standard stream {number}"))?;
            }
        }
        Ok(())
    }
}

/// A mount that makes the root filesystem, as containerd describes it.
#[derive(Debug, Clone, Default)]
pub struct RootfsMount {
    /// Filesystem, or `bind`.
    pub fstype: String,
    /// Device, directory, or a name.
    pub source: String,
    /// Beneath the root; empty for the root itself.
    pub target: String,
    /// Options, as of fstab.
    pub options: Vec<String>,
}

/// Whose child the new process is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Parent {
    /// The caller's.
    #[default]
    Caller,
    /// The caller's parent's: for a forked worker of the supervisor.
    Grandparent,
}

/// How to create.
#[derive(Debug, Default)]
pub struct CreateOptions {
    /// The directory of config.json.
    pub bundle: PathBuf,
    /// Standard streams, when there is no terminal.
    pub stdio: Stdio,
    /// A unix socket to connect to, that gets the terminal's master.
    pub console_socket: Option<PathBuf>,
    /// The same, already connected.
    pub console_fd: Option<OwnedFd>,
    /// A unix socket to connect to, that gets a pidfd of the init.
    pub pidfd_socket: Option<PathBuf>,
    /// Gets the pid.
    pub pid_file: Option<PathBuf>,
    /// Descriptors from 3 on that the container gets.
    pub preserve_fds: u32,
    /// Move the root instead of pivot_root, for an initramfs.
    pub no_pivot: bool,
    /// Keep the caller's session keyring.
    pub no_new_keyring: bool,
    /// The cgroup is a unit of systemd's.
    pub systemd_cgroup: bool,
    /// What to do about cgroups that this user may not make.
    pub rootless: cgroup::Rootless,
    /// Mounted inside the container's mount namespace at root.path; the host never sees them.
    pub rootfs_mounts: Vec<RootfsMount>,
    /// More mounts, after those of config.json.
    pub extra_mounts: Vec<spec::Mount>,
    /// More variables for the program (LISTEN_FDS).
    pub extra_env: Vec<String>,
    /// Whose child the init is.
    pub parent: Parent,
}

/// How to exec.
#[derive(Debug, Default)]
pub struct ExecOptions {
    /// What to run, as whom.
    pub process: Process,
    /// The program, when it is none of the container's: `process.args[0]` is its name alone.
    pub program: Option<OwnedFd>,
    /// Standard streams, when there is no terminal.
    pub stdio: Stdio,
    /// A unix socket to connect to, that gets the terminal's master.
    pub console_socket: Option<PathBuf>,
    /// The same, already connected.
    pub console_fd: Option<OwnedFd>,
    /// Gets the pid.
    pub pid_file: Option<PathBuf>,
    /// Descriptors from 3 on that the process gets.
    pub preserve_fds: u32,
    /// A unix socket to connect to, that gets a pidfd of the process.
    pub pidfd_socket: Option<PathBuf>,
    /// Cgroups beneath the container's: `[CONTROLLER[,CONTROLLER]:]PATH`, one for all or one for each.
    pub cgroup: Vec<String>,
    /// Exec in a paused container: it waits for the resume.
    pub ignore_paused: bool,
    /// More variables for the program.
    pub extra_env: Vec<String>,
    /// Whose child the process is.
    pub parent: Parent,
}

impl Runtime {
    /// A runtime with its state beneath `root`, which is made when first needed.
    pub fn new(root: impl Into<PathBuf>) -> Runtime {
        Runtime { root: root.into() }
    }

    /// Creates a container; its process waits for [`Runtime::start`]. Returns the process's pid.
    pub fn create(&self, id: &str, options: CreateOptions) -> Result<i32> {
        create::create(self, id, options)
    }

    /// Runs a process in a container. Returns its pid.
    pub fn exec(&self, id: &str, options: ExecOptions) -> Result<i32> {
        exec::exec(self, id, options)
    }
}

/// Who hears of failures that end nothing.
static WARN: OnceLock<fn(&str)> = OnceLock::new();

/// Says who hears of failures that end nothing, such as that of a poststop hook; without anyone, standard error does.
pub fn on_warning(hear: fn(&str)) {
    // Set once, by whoever has a log.
    let _ = WARN.set(hear);
}

pub(crate) fn warn(words: &str) {
    match WARN.get() {
        Some(hear) => hear(words),
        None => eprintln!("warning: {words}"),
    }
}

/// Every mount option known, for `features`.
pub fn known_mount_options() -> Vec<String> {
    options::known_words()
}

/// Every mode and every flag of a memory policy, for `features`.
pub fn known_memory_policies() -> (Vec<&'static str>, Vec<&'static str>) {
    schedule::known_memory_policies()
}

/// Every capability the kernel and this runtime know, for `features`.
pub fn known_capabilities() -> Vec<String> {
    let mut names: Vec<String> = caps::runtime::thread_all_supported().iter().map(|c| c.to_string()).collect();
    names.sort();
    names
}
