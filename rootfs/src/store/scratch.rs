//! Scratch directories: where a pull works until what it makes is whole.
//!
//! `tmp/ID/` has the owner's `lock` (see [`lock`](super::lock)) and `uses`, the layers that the owner relies on without
//! there being an image or a lease yet: a collection keeps those as long as the owner lives.
//!
//! ## Where ext4 puts a layer
//! ext4 makes a directory's files near the directory, and gives no inode out again for a minute after its file was
//! deleted: making thousands of files where thousands were just deleted walks over all of those for each new one, and
//! can take longer than unpacking. So the scratch directory is marked as the top of a hierarchy (`chattr +T`): each
//! layer in it then gets a region of its own, chosen by a hash of the directory's name, which differs every time.
//! Layers that are unpacked in parallel also come not into each other's way.

use std::fs::{self, File};
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
        // Other file systems refuse, and do not need it.
        let _ = File::open(&path).and_then(crate::sys::set_top_directory);
        Ok(Scratch { path, _lock })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where a layer is made: a name that no other scratch directory has, see above.
    pub(crate) fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        let own = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.join(format!("{}-{own}", diff_id.hex()))
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
