//! Control groups, by cgroupfs or by systemd ([`systemd`]), for v1, v2 and hybrid hosts (v1 controllers beside a v2 tree:
//! counts as v1).
//!
//! A [`Cgroup`] is a directory in each mounted v1 hierarchy, or the one directory of v2. Making one is: find the
//! hierarchies ([`mounts`]), make the directories, turn the OCI resources into writes ([`plan`]) and write just those,
//! then the device rules ([`devices`], [`device_program`]). What fails half way is undone.
//!
//! Joining is made not to wait. Writing a pid to `cgroup.procs` takes a lock of all processes, whose writer side waits
//! for an RCU grace period: 5 to 16 ms. Neither way here does: on v2 the container's first process is born in its cgroup
//! ([`Cgroup::dir_fd_for_clone`]); on v1 the single-threaded child writes `0` to each `tasks` file that the parent opened
//! for it ([`Cgroup::join_self_files`]).
//!
//! Whatever is asked for is enforced or refused by name; a controller that is not there is an error only when a field
//! needs it. Every wait, retry and walk is bounded by a named constant.

mod control;
mod convert;
mod device_program;
mod devices;
mod error;
#[cfg(fuzzing)]
pub(crate) mod fuzz;
mod mounts;
mod options;
mod plan;
mod process;
mod readings;
mod resources;
mod stats;
mod sys;
mod systemd;
#[cfg(test)]
mod tests;
mod update;
mod v1;
mod v2;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

pub use control::watch_oom;
pub use error::{Error, Result};
pub use mounts::CgroupPath;
use mounts::{Hierarchy, Layout, OwnCgroups, beneath_mount};
pub use options::{CgroupOptions, Rootless};
pub use resources::Resources;
pub use stats::{
    Blkio, BlkioEntry, Cpu, CpuUsage, Cpuset, Hugetlb, Memory, MemoryEntry, Misc, Pids, Psi, PsiData, Rdma, RdmaEntry,
    Stats, Throttling,
};
pub use systemd::Unit;

/// Which generation of the kernel's interface a cgroup lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// A directory for each hierarchy.
    V1,
    /// One directory.
    V2,
}

/// One directory of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// v1: the controllers bound to the hierarchy (or `name=systemd`). v2: empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controllers: Vec<String>,
    /// The directory.
    pub path: PathBuf,
}

/// The [`Group::controllers`] of the v2 tree of a hybrid host, where systemd follows a scope's processes.
const UNIFIED: &str = "unified";

/// Where a cgroup is: what a container's state file keeps of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupState {
    /// Generation.
    pub version: Version,
    /// Its directories; exactly one on v2. None when a rootless container has no cgroup.
    pub groups: Vec<Group>,
    /// systemd's unit, when the systemd driver made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub systemd: Option<Unit>,
}

impl CgroupState {
    fn new(version: Version, groups: Vec<Group>) -> CgroupState {
        CgroupState { version, groups, systemd: None }
    }
}

/// A container's or pod's cgroup.
#[derive(Debug)]
pub struct Cgroup {
    state: CgroupState,
    /// Keeps a new scope alive until its first process is there.
    holder: Option<systemd::Holder>,
}

/// Where the directories of a new cgroup are.
enum Place {
    /// Where the configuration says.
    Asked(CgroupPath),
    /// Where systemd made them, with one process of ours in them.
    Unit { path: PathBuf, holder: i32 },
}

impl Place {
    fn in_v1(&self, hierarchy: &Hierarchy, own: &mut OwnCgroups) -> Result<PathBuf> {
        match self {
            Place::Asked(path) => path.in_v1(hierarchy, own),
            Place::Unit { path, .. } => Ok(beneath_mount(hierarchy, path)),
        }
    }

    fn in_v2(&self, hierarchy: &Hierarchy, own: &mut OwnCgroups) -> Result<PathBuf> {
        match self {
            Place::Asked(path) => path.in_v2(hierarchy, own),
            Place::Unit { path, .. } => Ok(beneath_mount(hierarchy, path)),
        }
    }

    /// A cgroup that is there already is taken over only if nobody else lives in it.
    fn require_empty(&self, directory: &Path) -> Result<()> {
        let holder = match self {
            Place::Asked(_) => None,
            Place::Unit { holder, .. } => Some(*holder),
        };
        control::require_empty(directory, holder)
    }
}

impl Cgroup {
    /// Makes the cgroup and enforces `resources` before anything runs in it.
    ///
    /// Device rules are set when `resources.devices` is there, even as an empty list (then only the default devices
    /// are allowed); without it they are inherited, as a pod's cgroup needs it.
    pub fn create(options: &CgroupOptions, resources: Option<&LinuxResources>) -> Result<Cgroup> {
        if options.systemd {
            return systemd::create(options, resources);
        }
        Self::create_in(&Layout::detect()?, options, resources)
    }

    fn create_in(layout: &Layout, options: &CgroupOptions, resources: Option<&LinuxResources>) -> Result<Cgroup> {
        let mut made = Made::default();
        let place = Place::Asked(CgroupPath::new(options.path, options.id)?);
        let cgroup = match layout {
            Layout::V1(hierarchies) => v1::create(hierarchies, &place, options, resources, &mut made)?,
            Layout::V2(hierarchy) => v2::create(hierarchy, &place, options, resources, &mut made)?,
        };
        made.keep();
        Ok(cgroup)
    }

    /// The cgroup that a state file speaks of.
    pub fn open(saved: &CgroupState) -> Cgroup {
        Cgroup::of(saved.clone())
    }

    fn of(state: CgroupState) -> Cgroup {
        Cgroup { state, holder: None }
    }

    /// What to keep, to [`Cgroup::open`] it later.
    pub fn state(&self) -> CgroupState {
        self.state.clone()
    }

    /// v2: the directory, for `clone3(CLONE_INTO_CGROUP)`. `None` on v1.
    pub fn dir_fd_for_clone(&self) -> Result<Option<OwnedFd>> {
        if self.state.version == Version::V1 {
            return Ok(None);
        }
        let Some(Group { path, .. }) = self.state.groups.first() else { return Ok(None) };
        let open = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_PATH).open(path);
        Ok(Some(open.map_err(|e| Error::io("open cgroup", path, e))?.into()))
    }

    /// v1: the `tasks` files to which the single-threaded child writes `0`. Empty on v2.
    pub fn join_self_files(&self) -> Result<Vec<OwnedFd>> {
        if self.state.version == Version::V2 {
            return Ok(Vec::new());
        }
        let open = |group: &Group| {
            let tasks = if group.controllers.iter().any(|c| c == UNIFIED) { "cgroup.procs" } else { "tasks" };
            let path = group.path.join(tasks);
            OpenOptions::new().write(true).open(&path).map(OwnedFd::from).map_err(|e| Error::io("open", path, e))
        };
        self.state.groups.iter().map(open).collect()
    }

    /// Moves a running process here: the slow way, see the module's head.
    pub fn join(&self, pid: i32) -> Result<()> {
        for group in &self.state.groups {
            let path = group.path.join("cgroup.procs");
            put(&path, &pid.to_string()).map_err(|e| Error::io("move a process into cgroup", &group.path, e))?;
        }
        Ok(())
    }

    /// Has systemd move a running process into its scope, which its owner may not where the two cgroups have no parent
    /// that is theirs; without systemd the same as [`Cgroup::join`].
    pub fn attach(&self, pid: i32) -> Result<()> {
        match &self.state.systemd {
            Some(unit) => systemd::attach(unit, pid),
            None => self.join(pid),
        }
    }

    /// Whether there is one: a rootless container may have none.
    pub fn exists(&self) -> bool {
        !self.state.groups.is_empty()
    }

    /// A rootless container may have none; what needs one says so.
    fn require_one(&self, what: &'static str) -> Result<()> {
        if self.state.groups.is_empty() { Err(Error::NoCgroup { what }) } else { Ok(()) }
    }

    /// The directory where a controller's files are.
    fn dir_of(&self, controller: &str) -> Option<&Path> {
        let bound =
            |group: &&Group| self.state.version == Version::V2 || group.controllers.iter().any(|c| c == controller);
        self.state.groups.iter().find(bound).map(|group| group.path.as_path())
    }

    /// Performs the writes of all steps.
    fn execute(&self, steps: &[plan::Step]) -> Result<()> {
        steps.iter().try_for_each(|step| self.execute_step(step))
    }

    /// Performs the writes of one step in rounds, until all are taken or a round takes none: which order the kernel accepts
    /// (raise memory before swap, or swap before memory) depends on the values in force.
    fn execute_step(&self, step: &[plan::Write]) -> Result<()> {
        let mut pending: Vec<&plan::Write> = step.iter().collect();
        while !pending.is_empty() {
            let mut refused = Vec::new();
            let mut first_error = None;
            let before = pending.len();
            for write in pending {
                match self.execute_write(write) {
                    Ok(()) => {}
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                        refused.push(write);
                        first_error.get_or_insert(error);
                    }
                    Err(error) => return Err(error),
                }
            }
            if let Some(error) = first_error
                && refused.len() == before
            {
                return Err(error);
            }
            pending = refused;
        }
        Ok(())
    }

    fn execute_write(&self, write: &plan::Write) -> Result<()> {
        let Some(dir) = self.dir_of(write.controller) else {
            return if write.optional || no_huge_pages(write) { Ok(()) } else { Err(self.missing(write)) };
        };
        let path = dir.join(&write.file);
        let (path, value, outcome) = match (put(&path, &write.value), &write.or_file) {
            (Err(e), Some(other)) if e.kind() == io::ErrorKind::NotFound => {
                // "FILE" takes the same value, "FILE=VALUE" one of its own.
                let (file, value) = other.split_once('=').unwrap_or((other, &write.value));
                let path = dir.join(file);
                let outcome = put(&path, value);
                (path, value.to_owned(), outcome)
            }
            (outcome, _) => (path, write.value.clone(), outcome),
        };
        match outcome {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound && write.optional => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound && no_huge_pages(write) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(self.missing(write)),
            Err(cause) => {
                let hint = hint(write, &cause);
                Err(Error::Set { field: write.field.clone(), value, path, hint, cause })
            }
        }
    }

    /// Why the file of a write is not there.
    fn missing(&self, write: &plan::Write) -> Error {
        let why = match (self.state.version, self.dir_of(write.controller)) {
            (Version::V1, None) => "is not mounted on this host, or this user has no cgroup in it".to_owned(),
            (Version::V2, None) => "is not in reach: this user has no cgroup to limit (delegate one)".to_owned(),
            (_, Some(dir)) if self.state.version == Version::V1 || v2::enabled(dir, write.controller) => {
                format!("has no file {} in this kernel", write.file)
            }
            (_, Some(dir)) => format!(
                "is not enabled in {} (is it in cgroup.controllers at the root, and no process in a parent?)",
                dir.display()
            ),
        };
        Error::MissingController { field: write.field.clone(), controller: write.controller.to_owned(), why }
    }
}

/// Whether a write limits huge pages of which the host has none to give: then the limit holds without the controller.
/// (kubelet states a limit for every size, on hosts without huge pages as well.)
fn no_huge_pages(write: &plan::Write) -> bool {
    let size = write.file.strip_prefix("hugetlb.").and_then(|rest| rest.split('.').next());
    size.and_then(huge_page_kilobytes).is_some_and(|size| {
        let count = |file: &str| {
            let path = format!("/sys/kernel/mm/hugepages/hugepages-{size}kB/{file}");
            fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok())
        };
        count("nr_hugepages") == Some(0) && count("nr_overcommit_hugepages") == Some(0)
    })
}

/// `2MB` and `1GB` as the kernel's other files spell them.
fn huge_page_kilobytes(size: &str) -> Option<u64> {
    let units = [("KB", 1), ("MB", 1 << 10), ("GB", 1 << 20)];
    units.iter().find_map(|(unit, factor)| size.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(*factor))
}

/// The likely cause of a refused value.
fn hint(write: &plan::Write, source: &io::Error) -> &'static str {
    match (source.raw_os_error(), write.controller) {
        (Some(libc::EBUSY), "memory") => " (its processes use more than that)",
        (Some(libc::EINVAL), "memory") => " (swap counts memory and swap together and must not be the lower)",
        (Some(libc::EINVAL), "cpu") => " (outside of the kernel's range, or more than the parent cgroup has)",
        (Some(libc::EINVAL | libc::EACCES | libc::ENOSPC), "cpuset") => " (not all of them are in the parent's set)",
        (Some(libc::ENODEV), "blkio" | "io") => " (no such block device)",
        _ => "",
    }
}

/// Writes a value to an existing file of cgroupfs by one write(2).
fn put(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path).and_then(|file| put_to(&file, value))
}

fn put_to(mut file: &File, value: &str) -> io::Result<()> {
    // cgroupfs takes a value whole or fails; an empty value needs the line end to be a write at all.
    file.write_all(if value.is_empty() { b"\n" } else { value.as_bytes() })
}

/// The directories made so far; removed again, the last first, unless kept.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Made {
    /// More levels than any path that PATH_MAX allows and a person would make.
    const MAX_DEPTH: usize = 64;

    /// Makes `path` and what is missing above it, up to the mount point. False when it was there already.
    fn directory(&mut self, path: &Path) -> io::Result<bool> {
        let mut missing = vec![path];
        while let Some(current) = missing.last() {
            match fs::create_dir(current) {
                Ok(()) => self.0.push(current.to_path_buf()),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    if missing.len() == 1 {
                        return Ok(false);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound && missing.len() < Self::MAX_DEPTH => {
                    let parent = current.parent().ok_or(e)?;
                    missing.push(parent);
                    continue;
                }
                Err(e) => return Err(e),
            }
            missing.pop();
        }
        Ok(true)
    }

    fn keep(&mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            // Undoing has no one to tell: the error that led here is the one the caller gets.
            let _ = fs::remove_dir(path);
        }
    }
}
