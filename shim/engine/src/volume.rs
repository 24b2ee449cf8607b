//! The folders of a pod's volumes: they go with the pod.
//!
//! | what | where | until |
//! |---|---|---|
//! | an emptyDir on disk | `<root>/pods/<id>/volumes/<name>` | the pod is removed |
//! | configuration and secrets | `<state>/pods/<id>/volumes/<name>`: the state folder is a tmpfs | the pod is removed |
//! | an emptyDir in memory | `<state>/pods/<id>/memory/<name>`: a tmpfs of its own, for its size | the pod is stopped |
//!
//! The folders above them are root's alone, so that nobody on the host reaches what lies in them.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::undo::unmount;

/// As kubelet does: every user of the pod may write.
const OPEN: u32 = 0o777;
const CLOSED: u32 = 0o700;

impl Engine {
    /// The folder for one of a pod's emptyDirs.
    pub fn make_volume(&self, sandbox: &str, name: &str) -> Result<PathBuf> {
        let id = self.find_sandbox(sandbox)?;
        self.own_data(&id)?;
        make(&self.paths().volumes(&id), name)
    }

    /// The folder for one of a pod's volumes with configuration or secrets.
    pub fn make_state_volume(&self, sandbox: &str, name: &str) -> Result<PathBuf> {
        let id = self.find_sandbox(sandbox)?;
        make(&self.paths().state_volumes(&id), name)
    }

    /// The mount for one of a pod's volumes in memory, of at most so many bytes.
    pub fn make_memory_volume(&self, sandbox: &str, name: &str, bytes: u64) -> Result<PathBuf> {
        let id = self.find_sandbox(sandbox)?;
        let parent = self.paths().memory_volumes(&id);
        check_name(name)?;
        let dir = parent.join(name);
        if is_mount(&parent, &dir)? {
            return Ok(dir);
        }
        let dir = make(&parent, name)?;
        let options = format!("mode={OPEN:o},size={bytes}");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), &dir, Some("tmpfs"), flags, Some(options.as_str()))
            .map_err(Error::os("mount tmpfs on", &dir))?;
        Ok(dir)
    }

    /// Unmounts a pod's volumes in memory.
    pub(crate) fn forget_memory_volumes(&self, sandbox: &str) -> Result<()> {
        let parent = self.paths().memory_volumes(sandbox);
        let entries = match fs::read_dir(&parent) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(Error::io("list", &parent))?,
        };
        entries.flatten().try_for_each(|entry| unmount(&entry.path()))
    }
}

fn check_name(name: &str) -> Result<()> {
    match name.is_empty() || name.starts_with('.') || name.contains('/') {
        true => Err(Error::invalid("volumes", format!("{name:?} is no name for a volume"))),
        false => Ok(()),
    }
}

fn make(parent: &Path, name: &str) -> Result<PathBuf> {
    check_name(name)?;
    let made = fs::DirBuilder::new().recursive(true).mode(CLOSED).create(parent);
    made.map_err(Error::io("make folder", parent))?;
    let dir = parent.join(name);
    // What the pod has made of it since stays.
    if dir.symlink_metadata().is_ok() {
        return Ok(dir);
    }
    // Made whole or not at all: a volume's name never begins with a dot.
    let draft = parent.join(format!(".{name}"));
    match fs::create_dir(&draft) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        made => made.map_err(Error::io("make folder", &draft))?,
    }
    fs::set_permissions(&draft, fs::Permissions::from_mode(OPEN)).map_err(Error::io("chmod", &draft))?;
    fs::rename(&draft, &dir).map_err(Error::io("make folder", &dir))?;
    Ok(dir)
}

/// Whether something is mounted there: a folder of another filesystem than its parent's.
fn is_mount(parent: &Path, dir: &Path) -> Result<bool> {
    match (fs::symlink_metadata(parent), fs::symlink_metadata(dir)) {
        (Ok(parent), Ok(dir)) => Ok(parent.dev() != dir.dev()),
        (Err(e), _) | (_, Err(e)) if e.kind() == ErrorKind::NotFound => Ok(false),
        (Err(e), _) | (_, Err(e)) => Err(Error::io("look at", dir)(e)),
    }
}
