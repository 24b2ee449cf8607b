//! Containers of an ordinary user, and of root inside somebody's user namespace.
//!
//! Who holds which right decides which half does what:
//!
//! ```text
//!                         root of the host       an ordinary user               root of a user namespace
//! mounts of the caller    opened by the parent   opened by the init, which has  opened by the parent, whose mount
//!                                                the right over its new mount   namespace belongs to that
//!                                                namespace                      user namespace
//! maps of a new user      written by the parent  own id alone: by the parent;   written by the parent
//! namespace                                      ranges: newuidmap, newgidmap
//! device nodes            made; bound if there   bound                          bound: mknod is refused
//!                         is a user namespace
//! namespaces to join      by the init, the user  by an intermediate process,    by the init
//!                         namespace last         the user namespace first:
//!                                                it gives the right to others
//! exec                    the child joins all    an intermediate process joins  as root
//!                         by one setns, but the  all by one setns, and clones
//!                         parent its PID one
//! oom_score_adj           set by the parent,     inherited from the parent,     as root
//!                         at exec by the child   which has it for that moment
//! cgroups                 required               what is delegated; none where  as an ordinary user
//!                                                nothing is and nothing asked
//! state                   /run/coracle-oci       $XDG_RUNTIME_DIR/coracle-oci   as an ordinary user
//! ```
//!
//! Nobody asks who the caller is: the first call that needs the right over mounts (or, in exec, over the PID namespace)
//! is tried, and EPERM there leads to the other plan. So root's path has not one call more.
//!
//! *The order with an ordinary user.* The init is cloned with all its namespaces. It stays dumpable until its maps are
//! there, since /proc/PID/uid_map belongs to root from then on, and neither the parent nor newuidmap could open it; no
//! process of another container can trace it in this time, because each is in a user namespace beside or beneath. Then
//! it opens the host's files as the user it still is, with the groups it still has, and becomes root of its namespace
//! only afterwards: folders that are closed to that root are no hindrance.
//!
//! *What the kernel gives to nobody inside.* A mount of the host cannot be bound without what is mounted beneath it, nor
//! can a flag the host set on it be cleared; sysfs needs a network namespace of the container's own, mqueue an ipc and
//! proc a pid namespace; mounts cannot be idmapped. Each is an error that says so.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use nix::unistd::{getegid, geteuid, getuid};

use crate::create::set_oom_score;
use crate::error::{Context, Error, Result};
use crate::idmap::{self, Maps};
use crate::spec::{IdMapping, NamespaceKind, Process, Spec};

/// Whether this process may join namespaces by rights of its own.
pub(crate) fn may_join() -> bool {
    caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_ADMIN).unwrap_or(false)
}

/// Whether an error of the caller's own rights means that the init has to do it, in its user namespace.
pub(crate) fn is_for_init(error: &Error, spec: &Spec) -> bool {
    error.errno() == Some(libc::EPERM) && spec.namespace(NamespaceKind::User).is_some()
}

/// The likely cause when someone without rights makes a container without a user namespace.
pub(crate) fn explain(error: Error, spec: &Spec) -> Error {
    match error {
        Error::Os { what, cause }
            if cause.raw_os_error() == Some(libc::EPERM) && spec.namespace(NamespaceKind::User).is_none() =>
        {
            let hint = "(who is not root needs a user namespace in linux.namespaces: `spec --rootless` writes one)";
            Error::Os { what: format!("{what} {hint}"), cause }
        }
        other => other,
    }
}

/// What the kernel asks of whoever mounts such a filesystem.
pub(crate) fn mount_hint(fstype: &str) -> &'static str {
    match fstype {
        "sysfs" => {
            " (it needs a network namespace of the container's own; without, bind /sys: type none, options rbind, ro)"
        }
        "proc" => {
            " (in a user namespace it needs a pid namespace of the container's own, and a /proc of the caller with nothing mounted on it)"
        }
        "mqueue" => " (in a user namespace it needs an ipc namespace of the container's own)",
        "cgroup" | "cgroup2" => " (in a user namespace it needs a cgroup namespace of the container's own)",
        _ => " (root of a user namespace may not mount it)",
    }
}

/// Writes the maps of the user namespace that was made for `pid`, by who may.
pub(crate) fn write_maps(pid: i32, maps: &Maps) -> Result<()> {
    write_map(pid, "gid_map", &maps.gids, getegid().as_raw())?;
    write_map(pid, "uid_map", &maps.uids, geteuid().as_raw())
}

fn write_map(pid: i32, file: &str, maps: &[IdMapping], own: u32) -> Result<()> {
    match idmap::write_map(pid, file, maps) {
        Err(error) if error.errno() == Some(libc::EPERM) => {}
        result => return result,
    }
    let alone = matches!(maps, [map] if map.size == 1 && map.host_id == own);
    if file == "gid_map" && alone {
        // Without the right to set groups the kernel takes a gid map only when they are denied for good: a group may be
        // what keeps its members out of a file.
        fs::write(format!("/proc/{pid}/setgroups"), "deny").op(|| "deny setgroups in the user namespace")?;
        return idmap::write_map(pid, file, maps);
    }
    match file {
        "gid_map" => by_helper("newgidmap", "/etc/subgid", pid, maps),
        _ => by_helper("newuidmap", "/etc/subuid", pid, maps),
    }
}

/// The set-user-id programs of shadow-utils map the ranges that the administrator gave the user.
fn by_helper(program: &str, file: &str, pid: i32, maps: &[IdMapping]) -> Result<()> {
    let mut command = Command::new(program);
    command.arg(pid.to_string()).stdin(Stdio::null());
    for map in maps {
        command.args([map.container_id, map.host_id, map.size].map(|number| number.to_string()));
    }
    let output = match command.output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let what = format!("run {program} (to map more than one's own id takes it: Debian's package is uidmap)");
            return Err(Error::Os { what, cause: e });
        }
        result => result.op(|| format!("run {program}"))?,
    };
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words = words.trim().lines().next().unwrap_or_default().to_owned();
    let hint = match &words {
        words if words.contains("not allowed") => format!(" (does {file} give user {} these ids?)", getuid()),
        words if words.contains("not permitted") => {
            format!(" (is {program} set-user-id root, and may this process gain privileges?)")
        }
        _ => String::new(),
    };
    Err(Error::Init(format!("write the maps of the user namespace: {words}{hint}")))
}

/// Takes the score that a process asks for upon this one, whose children inherit it. Returns the former.
pub(crate) fn take_oom_score(process: &Process) -> Result<Option<String>> {
    let Some(score) = process.oom_score_adj else { return Ok(None) };
    let former = fs::read_to_string(OOM_SCORE).path("read", OOM_SCORE.as_ref())?;
    set_oom_score(score, "self")?;
    Ok(Some(former))
}

const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// Gives it back.
pub(crate) fn put_oom_score(former: Option<String>) -> Result<()> {
    let Some(former) = former else { return Ok(()) };
    let written = fs::OpenOptions::new().write(true).open(OOM_SCORE).and_then(|mut f| f.write_all(former.as_bytes()));
    written.path("write", OOM_SCORE.as_ref())
}
