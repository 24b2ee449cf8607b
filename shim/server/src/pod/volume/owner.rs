//! Whose a volume's files are: `fsGroup`, as kubelet applies it.
//!
//! With an fsGroup every file of the volume gets that group and lets it read (and write, unless the volume is one that
//! containers cannot write); folders let it pass and hand the group on to what is made in them. Links are given the
//! group themselves; what they lead to is not touched.

use std::fs::{self, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown, lchown};
use std::path::Path;

use super::atomic::chmod;

/// What the group may do to files, and to those of a read-only volume.
const READ_WRITE: u32 = 0o660;
const READ: u32 = 0o440;
/// What it may do to folders besides, and that what is made in them is the group's.
const PASS: u32 = 0o110;
const HAND_ON: u32 = 0o2000;
const MODES: u32 = 0o7777;
/// Folders of a volume's own layout.
const FOLDER: u32 = 0o755;
/// Folders in folders; the kernel's own limit of a path is lower.
const MAX_DEPTH: usize = 2048;

/// Who owns the files of a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owner {
    /// The pod's `fsGroup`.
    pub group: Option<u32>,
}

impl Owner {
    /// The permissions of a file that is to have `mode`, in a volume that containers only read.
    pub fn file_mode(&self, mode: u32) -> u32 {
        match self.group {
            Some(_) => mode | READ,
            None => mode,
        }
    }

    /// Whether a file is theirs already.
    pub fn is_of(&self, meta: &Metadata) -> bool {
        self.group.is_none_or(|group| meta.gid() == group)
    }

    /// Gives a new file to them, with its permissions.
    pub fn file(&self, file: &fs::File, mode: u32) -> io::Result<()> {
        if self.group.is_some() {
            fchown(file.as_fd(), None, self.group)?;
        }
        file.set_permissions(fs::Permissions::from_mode(self.file_mode(mode)))
    }

    /// Gives a new folder to them.
    pub fn folder(&self, path: &Path) -> io::Result<()> {
        if self.group.is_some() {
            lchown(path, None, self.group)?;
        }
        let group = self.group.map_or(0, |_| READ | PASS | HAND_ON);
        chmod(path, FOLDER | group)
    }
}

/// When a volume that lives on is given to the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// At each start of the pod.
    Always,
    /// Only if its root folder is not the group's already.
    OnRootMismatch,
}

/// Gives a whole writable volume to a group.
pub fn give(root: &Path, group: u32, when: When) -> io::Result<()> {
    let meta = fs::symlink_metadata(root)?;
    let wanted = READ_WRITE | PASS | HAND_ON;
    if when == When::OnRootMismatch && meta.gid() == group && meta.mode() & wanted == wanted {
        return Ok(());
    }
    give_tree(root, &meta, group, 0)
}

/// The root of a tree comes last: while it is not done, it shows that the tree is not.
fn give_tree(path: &Path, meta: &Metadata, group: u32, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other("folders are nested too deep"));
    }
    let is_dir = meta.is_dir();
    if is_dir {
        for entry in fs::read_dir(path)? {
            let path = entry?.path();
            match fs::symlink_metadata(&path) {
                // Removed by somebody meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                meta => give_tree(&path, &meta?, group, depth + 1)?,
            }
        }
    }
    if meta.gid() != group {
        lchown(path, None, Some(group))?;
    }
    if meta.is_symlink() {
        return Ok(());
    }
    let mode = meta.mode() & MODES;
    let wanted = mode | READ_WRITE | if is_dir { PASS | HAND_ON } else { 0 };
    // After chown, which takes set-id bits away.
    if wanted != mode || meta.gid() != group {
        chmod(path, wanted)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_volume_is_given_to_its_group_whole_and_links_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::write(&outside, "").unwrap();
        chmod(&outside, 0o600).unwrap();
        let volume = dir.path().join("v");
        fs::create_dir_all(volume.join("d")).unwrap();
        fs::write(volume.join("d/f"), "").unwrap();
        chmod(&volume.join("d/f"), 0o600).unwrap();
        symlink(&outside, volume.join("l")).unwrap();
        give(&volume, 4242, When::Always).unwrap();
        let look = |name: &str| {
            let meta = fs::symlink_metadata(volume.join(name)).unwrap();
            (meta.gid(), meta.mode() & MODES)
        };
        assert_eq!(look("d/f"), (4242, 0o660));
        assert_eq!((look("d").0, look("d").1 & 0o2070), (4242, 0o2070));
        assert_eq!(look("l").0, 4242);
        let meta = fs::metadata(&outside).unwrap();
        assert_ne!(meta.gid(), 4242);
        assert_eq!(meta.mode() & MODES, 0o600);

        chmod(&volume.join("d/f"), 0o600).unwrap();
        give(&volume, 4242, When::OnRootMismatch).unwrap();
        assert_eq!(look("d/f").1, 0o600, "the root shows that all was done");
        give(&volume, 4243, When::OnRootMismatch).unwrap();
        assert_eq!(look("d/f"), (4243, 0o660));
    }
}
