//! Pods of an ordinary user: the namespaces that stand for the rights he has not.
//!
//! ```text
//! coracle run (uid 1000)
//!   places: $XDG_RUNTIME_DIR/coracle, ~/.local/share/coracle, ~/.config/coracle/config.toml
//!   a pod lives already?  join its supervisor's user and mount namespaces
//!   else                  make them: 0 is the user himself, 1.. are his lines of /etc/subuid and /etc/subgid
//!   then go on as if by root: the engine, the supervisor and the tender live in there, and stay in there
//! ```
//!
//! This happens in `main`, before the first thread: a user namespace is entered by a process of one thread alone. The
//! namespaces live as long as a supervisor does; nothing else holds them. Maps are the same each time, so that what was
//! stored keeps its owners: `ids.json` beside the images is the proof, and a change of /etc/subuid that would give a file
//! to somebody else is an error. `rootless.json` in the state folder tells every later process, a tender among them, which
//! is root of its namespace, that the pods there are an ordinary user's.
//!
//! | | as root | as an ordinary user |
//! |---|---|---|
//! | owners in images | as they are | mapped; without lines in /etc/subuid only root's can be |
//! | overlay | marks in `trusted.*` | marks in `user.*` (`userxattr`) |
//! | cgroups | the machine's | what systemd delegates on cgroup v2; else none, and a limit is refused by name |
//! | pod network | bridge | `slirp4netns`, one for each pod; or `hostNetwork: true` |
//! | OOM scores | as asked for | raised to the least that the kernel allows |
//! | device nodes, other users' files, `hostPID`, `hostIPC` | had | the kernel's refusal, with its reason |

mod cgroup;
mod ids;
mod namespace;
mod places;
mod sys;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};
use coracle_engine::config::{SUPERVISOR, find_supervisor};
use coracle_engine::record;
use nix::unistd::{getegid, geteuid};
use serde::{Deserialize, Serialize};

use crate::cli::{Cli, Command};
use ids::Ids;

/// Whose the state folder is.
const MARK: &str = "rootless.json";
/// The maps that the stored files were written with.
const IDS: &str = "ids.json";

/// Where this program is, as it was before its mount namespace changed: the kernel tells it by a mount that is gone then.
static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Where this program is.
pub fn program() -> std::io::Result<PathBuf> {
    PROGRAM.get().cloned().map_or_else(std::env::current_exe, Ok)
}

/// The supervisor beside this program, else where the engine finds it.
pub fn supervisor() -> PathBuf {
    let beside = program().ok().and_then(|path| Some(path.parent()?.join(SUPERVISOR)));
    beside.filter(|path| path.is_file()).unwrap_or_else(find_supervisor)
}

/// What is known of the user whose pods these are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rootless {
    /// His number on the machine.
    pub uid: u32,
}

impl Rootless {
    /// Whose the pods of a state folder are; `None`: the machine's root's.
    pub fn of(state: &Path) -> Result<Option<Rootless>> {
        Ok(record::read_json(&state.join(MARK))?)
    }

    /// The cgroup below which his pods' may be made, if he may make any.
    pub fn cgroup_parent(&self) -> Option<String> {
        cgroup::delegated()
    }
}

/// Becomes root of the user's own namespaces, where the machine's root is not asking; the places are his then.
pub fn enter(cli: &mut Cli) -> Result<()> {
    if geteuid().is_root() {
        return Ok(());
    }
    let _ = std::env::current_exe().map(|path| PROGRAM.set(path));
    let places = places::fill(&mut cli.places)?;
    if matches!(cli.command, Command::Version(_) | Command::Completion(_) | Command::Config(_)) {
        return Ok(());
    }
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    for folder in [&places.state, &places.root] {
        make_folder(folder)?;
    }
    // What cleaners of runtime folders leave alone (the XDG specification's sticky bit).
    let kept = fs::Permissions::from_mode(0o1700);
    fs::set_permissions(&places.state, kept).with_context(|| format!("chmod {}", places.state.display()))?;
    if !namespace::join(&places.state)? {
        let ids = Ids::of(uid, gid)?;
        keep(&places.root.join(IDS), &ids)?;
        namespace::make(&ids)?;
    }
    let mark = serde_json::to_vec(&Rootless { uid }).context("write the mark")?;
    Ok(record::write_file(&places.state.join(MARK), &mark, 0o600)?)
}

fn make_folder(path: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("make the folder {}", path.display()))
}

/// Keeps the maps that files are stored with, and refuses others that would change whose these are.
fn keep(path: &Path, ids: &Ids) -> Result<()> {
    let kept: Option<Ids> = match fs::read(path) {
        Ok(text) => Some(serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))?),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    if let Some(kept) = kept.as_ref().filter(|kept| !ids.extend(kept)) {
        return Err(ids.changed(kept, path.parent().unwrap_or(path)));
    }
    if kept.as_ref() != Some(ids) {
        record::write_file(path, &serde_json::to_vec(ids).context("write the ids")?, 0o600)?;
    }
    Ok(())
}

/// Where the user's things lie.
struct Places {
    state: PathBuf,
    root: PathBuf,
}
