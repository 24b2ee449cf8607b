//! The user and mount namespaces of an ordinary user's pods: made, or joined where a supervisor lives in them.
//!
//! *Making them.* The maps of more than one id are written by `newuidmap` and `newgidmap`, which must run outside. So a
//! child is forked that waits until this process is in its new user namespace, and then has them write its maps:
//!
//! ```text
//! this process                    child
//!   fork ------------------------ waits
//!   unshare(user)
//!   "go" ------------------------ newuidmap, newgidmap for its parent
//!   reads the errors, if any ---- ends
//!   unshare(mount), all slaves: mounts of the machine are seen, and ours are not
//! ```

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use coracle_engine::lock::{self, Holder};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::ForkResult;

use super::ids::{Ids, Range};
use super::sys;
use crate::exit::{self, Coded};

/// What keeps user namespaces from ordinary users, for the error.
const SWITCHES: &str = "user.max_user_namespaces, kernel.unprivileged_userns_clone and \
                        kernel.apparmor_restrict_unprivileged_userns (`sysctl`) can forbid it";

/// Joins the namespaces of the pods that live; `false` if none does.
pub fn join(state: &Path) -> Result<bool> {
    let Some(pid) = supervisor(state) else { return Ok(false) };
    let open = |kind: &str| {
        let path = format!("/proc/{pid}/ns/{kind}");
        File::open(&path).with_context(|| format!("open {path}"))
    };
    let (user, mounts) = (open("user")?, open("mnt")?);
    let folder = std::env::current_dir().context("find the working directory")?;
    setns(user, CloneFlags::CLONE_NEWUSER).with_context(|| format!("join the user namespace of process {pid}"))?;
    setns(mounts, CloneFlags::CLONE_NEWNS).with_context(|| format!("join the mount namespace of process {pid}"))?;
    // It is the root of the namespace now; relative paths are meant from where the user stands.
    std::env::set_current_dir(&folder).with_context(|| format!("return to {}", folder.display()))?;
    Ok(true)
}

/// A living supervisor of the state folder. Its lock proves its life and its pid.
fn supervisor(state: &Path) -> Option<i32> {
    let pods = fs::read_dir(state.join("pods")).ok()?;
    pods.flatten().find_map(|pod| match lock::holder(&pod.path().join("lock")) {
        Ok(Holder::Pid(pid)) => Some(pid),
        _ => None,
    })
}

/// Makes new ones, with these maps.
pub fn make(ids: &Ids) -> Result<()> {
    if ids.single() {
        unshare_user()?;
        write_own(ids)?;
    } else {
        make_mapped(ids)?;
    }
    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| refused("make a mount namespace", e))?;
    let all = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, all, None::<&str>)
        .map_err(|e| refused("make all mounts slaves of the machine's", e))
}

fn refused(what: &str, errno: Errno) -> anyhow::Error {
    Coded::error(exit::PERMISSION, format!("{what}: {errno} ({SWITCHES})"))
}

fn unshare_user() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|e| refused("make a user namespace, as who is not root needs one", e))
}

/// The user's own ids alone: he may write these maps himself, if groups can never be set again.
fn write_own(ids: &Ids) -> Result<()> {
    let line = |map: &[Range]| map.iter().map(|r| format!("{} {} {}\n", r.inside, r.outside, r.count)).collect();
    let files: [(&str, String); 3] =
        [("setgroups", "deny".to_owned()), ("uid_map", line(&ids.uids)), ("gid_map", line(&ids.gids))];
    for (name, text) in files {
        let path = format!("/proc/self/{name}");
        fs::write(&path, text).with_context(|| format!("write {path}"))?;
    }
    Ok(())
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).context("make a pipe")
}

fn make_mapped(ids: &Ids) -> Result<()> {
    let (wait, go) = pipe()?;
    let (errors, tell) = pipe()?;
    let parent = std::process::id();
    match sys::fork().context("fork")? {
        ForkResult::Child => {
            drop(go);
            let told = match wait_for(wait) {
                true => map_process(parent, ids).err().map(|error| format!("{error:#}")),
                false => None,
            };
            let _ = File::from(tell).write_all(told.unwrap_or_default().as_bytes());
            sys::exit_now()
        }
        ForkResult::Parent { child } => {
            drop((wait, tell));
            let unshared = unshare_user();
            if unshared.is_ok() {
                File::from(go).write_all(b"g").context("tell the process that writes the maps")?;
            } else {
                drop(go);
            }
            let mut words = String::new();
            File::from(errors).read_to_string(&mut words).context("hear of the maps")?;
            let _ = waitpid(child, None);
            unshared?;
            match words.as_str() {
                "" => Ok(()),
                words => Err(Coded::error(exit::PERMISSION, words)),
            }
        }
    }
}

/// Whether the other end said so, and did not just die.
fn wait_for(pipe: OwnedFd) -> bool {
    File::from(pipe).read(&mut [0]).is_ok_and(|n| n == 1)
}

fn map_process(pid: u32, ids: &Ids) -> Result<()> {
    for (program, file, map) in [("newuidmap", "/etc/subuid", &ids.uids), ("newgidmap", "/etc/subgid", &ids.gids)] {
        let mut command = Command::new(program);
        command.arg(pid.to_string()).stdin(Stdio::null());
        for range in map {
            command.args([range.inside, range.outside, range.count].map(|number| number.to_string()));
        }
        let output = match command.output() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
                "{file} gives this user ids, and {program}, which maps them, is not in PATH (Debian's package is uidmap)"
            ),
            output => output.with_context(|| format!("run {program}"))?,
        };
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            bail!("map the user's ids: {words} (is {program} set-user-id root, and does {file} give him these?)");
        }
    }
    Ok(())
}
