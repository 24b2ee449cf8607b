//! PersistentVolumeClaims: which directory of the machine a claim has.
//!
//! ```text
//! ROOT/claims/NAMESPACE/NAME/          the directory of a claim that no PersistentVolume fits: on disk, so that it
//!                                      outlives pods and reboots; removed by [`discard`] alone
//! STATE/claims/VOLUME.json             who has a PersistentVolume: one claim, for as long as both exist
//! STATE/claims/lock                    held while a claim looks for its volume
//! ```
//!
//! A claim takes the volume that it names; else the smallest that fits in class, modes, size and labels and that nobody
//! else has; else, as a provisioner would, a directory is made for it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use coracle_engine::{Paths, lock, record};
use serde::{Deserialize, Serialize};

use super::host;
use super::payload::WAITING;
use crate::kube::storage::{AccessMode, PersistentVolume, PersistentVolumeClaim};
use crate::objects::Objects;
use crate::pod::making::Blocked;

const MODE: u32 = 0o600;

/// Who has a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Bound {
    namespace: String,
    name: String,
}

/// A claim's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Where it is.
    pub path: PathBuf,
    /// Whether it is one whose files may be given to the pod's fsGroup: not a hostPath, as with kubelet.
    pub owned: bool,
    /// Whether pods may only read it.
    pub read_only: bool,
}

/// The directory of a claim.
pub fn directory(paths: &Paths, objects: &Objects, namespace: &str, name: &str) -> Result<Directory> {
    let missing = || Blocked::new(WAITING, format!("persistentvolumeclaim {name:?} not found"));
    let claim: PersistentVolumeClaim = objects.get(namespace, name)?.ok_or_else(missing)?;
    let read_only = claim.modes.iter().all(|mode| *mode == AccessMode::ReadOnlyMany);
    match bind(paths, objects, &claim)? {
        Some(volume) => {
            let path = PathBuf::from(&volume.path);
            host::prepare(&path, volume.kind)?;
            let read_only = read_only || volume.modes.iter().all(|mode| *mode == AccessMode::ReadOnlyMany);
            Ok(Directory { path, owned: volume.local, read_only })
        }
        None => Ok(Directory { path: provision(paths, namespace, name)?, owned: true, read_only }),
    }
}

/// Removes the directory that was made for a claim, with its data, once the claim is deleted. PersistentVolumes keep
/// theirs: it was there before them.
pub fn discard(paths: &Paths, namespace: &str, name: &str) -> Result<()> {
    let path = paths.root.join("claims").join(namespace).join(name);
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.with_context(|| format!("remove the directory {}", path.display())),
    }
}

/// The volume that a claim has, or takes now.
fn bind(paths: &Paths, objects: &Objects, claim: &PersistentVolumeClaim) -> Result<Option<PersistentVolume>> {
    let dir = paths.state.join("claims");
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .with_context(|| format!("make {}", dir.display()))?;
    let _section = lock::section(&dir.join("lock"), true)?;
    let meta = &claim.meta;
    let me = Bound { namespace: meta.namespace.clone(), name: meta.name.clone() };
    let file = |volume: &PersistentVolume| dir.join(format!("{}.json", volume.meta.name));
    let mut free = Vec::new();
    for volume in objects.list::<PersistentVolume>(None)? {
        match record::read_json::<Bound>(&file(&volume))? {
            Some(owner) if owner == me => return Ok(Some(volume)),
            // One whose claim is gone is released.
            Some(owner) if objects.get::<PersistentVolumeClaim>(&owner.namespace, &owner.name)?.is_some() => {}
            _ => free.push(volume),
        }
    }
    let chosen = match &claim.volume_name {
        Some(wanted) => {
            let found = free.into_iter().find(|volume| volume.meta.name == *wanted);
            let text =
                format!("persistentvolume {wanted:?} of claim {:?} not found, or another claim has it", meta.name);
            Some(found.ok_or_else(|| Blocked::new(WAITING, text))?)
        }
        None => {
            free.retain(|volume| fits(volume, claim));
            // The one that was meant for it, else the smallest.
            free.into_iter().min_by_key(|volume| (volume.claim.is_none(), volume.capacity))
        }
    };
    if let Some(volume) = &chosen {
        record::write_file(&file(volume), &serde_json::to_vec(&me)?, MODE)?;
    }
    Ok(chosen)
}

fn fits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let mine = (claim.meta.namespace.as_str(), claim.meta.name.as_str());
    let reserved = volume.claim.as_ref().map(|(namespace, name)| (namespace.as_str(), name.as_str()));
    reserved.is_none_or(|other| other == mine)
        && volume.storage_class == claim.storage_class.as_deref().unwrap_or_default()
        && volume.capacity >= claim.storage
        && claim.modes.iter().all(|mode| volume.modes.contains(mode))
        && claim.selector.matches(&volume.meta.labels)
}

/// A directory for a claim, with kubelet's permissions for what pods share.
fn provision(paths: &Paths, namespace: &str, name: &str) -> Result<PathBuf> {
    let above = paths.root.join("claims").join(namespace);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&above)
        .with_context(|| format!("make the directory {}", above.display()))?;
    let path = above.join(name);
    match fs::create_dir(&path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(path),
        made => made.and_then(|()| open(&path)).with_context(|| format!("make the directory {}", path.display())),
    }
}

fn open(path: &Path) -> std::io::Result<PathBuf> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
    Ok(path.to_owned())
}
