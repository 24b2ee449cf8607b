//! What the runtime remembers of a container.
//!
//! `<root>/<id>/` (0700) holds
//!
//! | file | content |
//! |---|---|
//! | `state.json` | the [`Record`], written by rename when the container is created; nothing changes it afterwards |
//! | `config.json` | the configuration as it was at create, byte for byte: exec, delete and hooks go by it |
//! | `start.sock` | the created init listens here; removed once the program runs |
//!
//! The status is computed, never stored: a live process (pid *and* start time, since pids are used again) is `created`
//! while `start.sock` is there, `paused` when its cgroup is frozen, else `running`; a dead one is `stopped`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::cgroup::{Cgroup, CgroupState};
use crate::error::{Context, Error, Result};
use crate::rdt;
use crate::spec::{NamespaceKind, Spec};

/// The version of the specification this runtime speaks.
pub const OCI_VERSION: &str = "1.3.0";

pub(crate) const RECORD: &str = "state.json";
pub(crate) const CONFIG: &str = "config.json";
pub(crate) const SOCKET: &str = "start.sock";

/// state.json.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub oci_version: String,
    pub id: String,
    pub pid: i32,
    /// Field 22 of /proc/PID/stat: clock ticks since boot.
    pub start_time: u64,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    pub created: String,
    pub owner: String,
    pub annotations: BTreeMap<String, String>,
    pub cgroup: CgroupState,
    /// The namespaces exec has to join.
    pub namespaces: u64,
    /// Whether its PID namespace was made for it: then nothing outlives the init.
    pub own_pid_namespace: bool,
    /// Whether config.json must be read again at start or delete.
    pub has_poststart: bool,
    pub has_poststop: bool,
    /// Its group of Intel RDT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rdt: Option<rdt::Group>,
    /// Whether its processes keep the session keyring of who made them.
    #[serde(default)]
    pub no_new_keyring: bool,
}

/// A container's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Set up, waiting for `start`.
    Created,
    /// The program runs.
    Running,
    /// The cgroup is frozen.
    Paused,
    /// The process is gone.
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

/// The state of a container: the specification's JSON, with runc's additions.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Version of the specification.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// The init's pid; 0 when stopped.
    pub pid: i32,
    /// What it does.
    pub status: Status,
    /// The bundle's absolute path.
    pub bundle: PathBuf,
    /// The root filesystem's absolute path.
    pub rootfs: PathBuf,
    /// When it was created, RFC 3339.
    pub created: String,
    /// The configuration's annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Who created it.
    pub owner: String,
}

/// What a caller that keeps a container has to know beyond its [`State`].
#[derive(Debug, Clone)]
pub struct Detail {
    /// Where its cgroup is.
    pub cgroup: CgroupState,
    /// Its PID namespace was made for it: when its init dies all die.
    pub own_pid_namespace: bool,
}

/// The state as hooks and the seccomp agent get it.
pub(crate) fn hook_state(spec: &Spec, id: &str, bundle: &Path, status: &str, pid: i32) -> String {
    serde_json::json!({
        "ociVersion": OCI_VERSION,
        "id": id,
        "status": status,
        "pid": pid,
        "bundle": bundle,
        "annotations": spec.annotations,
    })
    .to_string()
}

/// A process's start time and whether it still runs (a zombie does not). `None` when there is no such process.
pub(crate) fn process_start(pid: i32) -> Option<(u64, bool)> {
    if pid <= 0 {
        return None;
    }
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name in parentheses may contain anything, parentheses too: fields are counted from the last one.
pub(crate) fn parse_stat(text: &str) -> Option<(u64, bool)> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((start, !matches!(state, "Z" | "X" | "x")))
}

/// The pid of the parent, of the same text.
pub(crate) fn parse_parent(text: &str) -> Option<i32> {
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

impl Record {
    /// Of a container made by its configuration; `None` when its process has died.
    pub fn of(spec: &Spec, id: &str, pid: i32, bundle: PathBuf, rootfs: PathBuf, cgroup: &Cgroup) -> Option<Record> {
        let (start_time, _) = process_start(pid)?;
        Some(Record {
            oci_version: spec.oci_version.clone(),
            id: id.to_owned(),
            pid,
            start_time,
            bundle,
            rootfs,
            created: now(),
            owner: owner(),
            annotations: spec.annotations.clone(),
            cgroup: cgroup.state(),
            namespaces: spec.namespace_flags(),
            own_pid_namespace: spec.makes(NamespaceKind::Pid),
            has_poststart: !spec.hooks.poststart.is_empty(),
            has_poststop: !spec.hooks.poststop.is_empty(),
            rdt: None,
            no_new_keyring: false,
        })
    }

    /// Reads a container's record.
    pub fn load(root: &Path, id: &str) -> Result<Record> {
        crate::refuse::check_id(id)?;
        let path = root.join(id).join(RECORD);
        let bytes = match fs::read(&path) {
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                return Err(Error::NotFound(id.to_owned()));
            }
            result => result.path("read", &path)?,
        };
        serde_json::from_slice(&bytes).map_err(|e| Error::invalid(format!("parse {}: {e}", path.display())))
    }

    /// Writes it so that a reader sees all of it or none.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let (temporary, path) = (dir.join("state.json.new"), dir.join(RECORD));
        let write = || {
            let mut file = fs::File::create(&temporary)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            fs::rename(&temporary, &path)
        };
        write().path("write", &path)
    }

    /// Whether the init lives.
    pub fn alive(&self) -> bool {
        process_start(self.pid) == Some((self.start_time, true))
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> Cgroup {
        Cgroup::open(&self.cgroup)
    }

    /// What it does now.
    pub fn status(&self, root: &Path) -> Result<Status> {
        if !self.alive() {
            return Ok(Status::Stopped);
        }
        if root.join(&self.id).join(SOCKET).exists() {
            return Ok(Status::Created);
        }
        // A cgroup that is gone while the process lives (moved by its owner) is not frozen.
        Ok(if self.cgroup().frozen().unwrap_or(false) { Status::Paused } else { Status::Running })
    }

    /// The public state.
    pub fn state(&self, root: &Path) -> Result<State> {
        let status = self.status(root)?;
        Ok(State {
            oci_version: self.oci_version.clone(),
            id: self.id.clone(),
            pid: if status == Status::Stopped { 0 } else { self.pid },
            status,
            bundle: self.bundle.clone(),
            rootfs: self.rootfs.clone(),
            created: self.created.clone(),
            annotations: self.annotations.clone(),
            owner: self.owner.clone(),
        })
    }

    /// The configuration at create.
    pub fn spec(&self, root: &Path) -> Result<Spec> {
        Ok(Spec::load(&root.join(&self.id).join(CONFIG))?.0)
    }
}

fn owner() -> String {
    // The caller's own accounts, not the image's; a number does as well when there is no name.
    match nix::unistd::getuid().as_raw() {
        0 => "root".to_owned(),
        uid => uid.to_string(),
    }
}

/// This moment as RFC 3339 with nanoseconds, UTC.
pub fn now() -> String {
    crate::time::rfc3339_string(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_read_past_a_hostile_name() {
        let line = "7 (a) S 1 (x)) R 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 987 20";
        assert_eq!((parse_stat(line), parse_parent(line)), (Some((987, true)), Some(1)));
        assert_eq!(parse_stat("7 (x) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 5 20"), Some((5, false)));
        assert_eq!(parse_stat("7 (x"), None);
    }

    #[test]
    fn this_process_lives() {
        assert!(process_start(std::process::id() as i32).unwrap().1);
        assert!(process_start(0).is_none());
    }
}
