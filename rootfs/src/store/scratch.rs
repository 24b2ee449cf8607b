//! Scratch directories: where a pull works until what it makes is whole.
//!
//! `tmp/ID/` has the owner's `lock` (see [`lock`](super::lock)) and `uses`, the layers that the owner relies on without
//! there being an image or a lease yet: a collection keeps those as long as the owner lives.

use std::fs;
use std::path::{Path, PathBuf};

use super::Store;
use super::lock::{self, Guard};
use crate::digest::Digest;
use crate::error::{Error, Result};

/// A scratch directory of this process; goes when dropped.
pub(crate) struct Scratch {
    path: PathBuf,
    _lock: Guard,
}

impl Scratch {
    /// Makes one.
    pub(crate) fn new(store: &Store) -> Result<Scratch> {
        let _shared = store.shared()?;
        Scratch::new_locked(store)
    }

    /// Makes one; the caller holds the store's lock. Without it a collection could take the directory for a dead one
    /// before its own lock is held.
    pub(crate) fn new_locked(store: &Store) -> Result<Scratch> {
        let parent = store.path("tmp");
        let made = tempfile::Builder::new().prefix("work-").tempdir_in(&parent);
        let path = made.map_err(|err| Error::io(format!("create a directory in {}", parent.display()), err))?.keep();
        let _lock = lock::flock(&path.join("lock"), true)?;
        Ok(Scratch { path, _lock })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Notes the layers that must stay while this scratch directory lives.
    pub(crate) fn uses(&self, layers: &[Digest]) -> Result<()> {
        let lines: String = layers.iter().map(|digest| format!("{digest}\n")).collect();
        let file = self.path.join("uses");
        fs::write(&file, lines).map_err(|err| Error::io(format!("write {}", file.display()), err))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be deleted now is found by the next collection, since the lock is then free.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The layers that a living scratch directory uses.
pub(crate) fn used_by(path: &Path) -> Vec<Digest> {
    let lines = fs::read_to_string(path.join("uses")).unwrap_or_default();
    lines.lines().filter_map(|line| Digest::parse(line).ok()).collect()
}

/// Scratch directories by whether their owners live.
#[derive(Default)]
pub(crate) struct Census {
    /// Proven dead: the lock was free, and is now held here.
    pub dead: Vec<(PathBuf, Option<Guard>)>,
    /// Alive.
    pub alive: Vec<PathBuf>,
}

/// Looks at all scratch directories. The caller holds the store's lock exclusively.
pub(crate) fn census(store: &Store) -> Result<Census> {
    let mut census = Census::default();
    for path in super::files::children(&store.path("tmp"))? {
        match lock::try_exclusive(&path.join("lock"))? {
            lock::Try::Busy => census.alive.push(path),
            lock::Try::Free(guard) => census.dead.push((path, guard)),
        }
    }
    Ok(census)
}
