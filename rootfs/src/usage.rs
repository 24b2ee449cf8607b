//! How much of the disk a tree takes, and how much the store does.
//!
//! A tree is counted as `du` does: blocks that are allocated, an inode with several names once, other file systems not at
//! all. It may belong to a running container that changes it meanwhile and wishes us ill: so nothing is reached but
//! beneath the directory it began with, no symbolic link is followed, and what vanishes is left out.
//!
//! The store is counted layer by layer. A layer is never changed in place, so each is walked once and remembered by its
//! directory's inode ([`Census`]); the rest of the store is a few small files.

use std::collections::{BTreeMap, HashSet};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::{fs, mem};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, SFlag, fstat, fstatat};

use crate::error::{Error, Result};
use crate::store::Store;
use crate::sys::open_beneath;

/// `st_blocks` counts these, whatever the file system's own block is.
const BLOCK: u64 = 512;
/// A path beneath an open directory is this long at most; then a directory further down is opened. Far below PATH_MAX.
const MAX_PATH: usize = 2048;
/// So many directories are open at most: trees of a depth that no honest program makes are an error.
const MAX_BASES: usize = 256;

/// Disk space.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Allocated bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

impl Usage {
    fn add(&mut self, stat: &FileStat) {
        self.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK;
        self.inodes += 1;
    }
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Usage) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
    }
}

impl std::iter::Sum for Usage {
    fn sum<I: Iterator<Item = Usage>>(all: I) -> Usage {
        all.fold(Usage::default(), |mut sum, one| {
            sum += one;
            sum
        })
    }
}

/// A directory that is still to be read.
struct Pending {
    base: Rc<OwnedFd>,
    /// How many bases lie above it.
    depth: usize,
    /// Beneath the base; empty for the base itself.
    path: Vec<u8>,
}

struct Walk {
    usage: Usage,
    device: u64,
    /// Inodes with several names that were counted.
    linked: HashSet<u64>,
    pending: Vec<Pending>,
}

/// What a tree takes, its root included.
pub fn tree(root: &Path) -> io::Result<Usage> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let base = nix::fcntl::open(root, flags, nix::sys::stat::Mode::empty())?;
    let stat = fstat(&base)?;
    let mut walk = Walk { usage: Usage::default(), device: stat.st_dev, linked: HashSet::new(), pending: Vec::new() };
    walk.usage.add(&stat);
    walk.pending.push(Pending { base: Rc::new(base), depth: 0, path: Vec::new() });
    while let Some(next) = walk.pending.pop() {
        walk.directory(next)?;
    }
    Ok(walk.usage)
}

/// Gone, or something else than it was a moment ago.
fn vanished(error: &io::Error) -> bool {
    [libc::ENOENT, libc::ENOTDIR, libc::ELOOP, libc::ESTALE].into_iter().any(|e| error.raw_os_error() == Some(e))
}

impl Walk {
    fn directory(&mut self, mut at: Pending) -> io::Result<()> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY;
        let opened = match at.path.is_empty() {
            true => open_beneath(at.base.as_fd(), b".", flags),
            false => open_beneath(at.base.as_fd(), &at.path, flags),
        };
        let opened = match opened {
            Ok(opened) => opened,
            Err(e) if vanished(&e) => return Ok(()),
            Err(e) => return Err(e),
        };
        if at.path.len() > MAX_PATH {
            if at.depth == MAX_BASES {
                return Err(io::Error::other("its directories are nested too deep to be counted"));
            }
            at = Pending { base: Rc::new(opened.try_clone()?), depth: at.depth + 1, path: Vec::new() };
        }
        let mut directory = Dir::from_fd(opened)?;
        // The stream and its descriptor are one; entries are looked at through a copy.
        let handle = directory.as_fd().try_clone_to_owned()?;
        for entry in directory.iter() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(Errno::ENOENT) => break,
                Err(e) => return Err(e.into()),
            };
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            self.entry(&handle, name, &at)?;
        }
        Ok(())
    }

    fn entry(&mut self, directory: &OwnedFd, name: &CStr, at: &Pending) -> io::Result<()> {
        let stat = match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let is_directory = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
        if stat.st_dev != self.device || (!is_directory && stat.st_nlink > 1 && !self.linked.insert(stat.st_ino)) {
            return Ok(());
        }
        self.usage.add(&stat);
        if is_directory {
            let mut path = at.path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.to_bytes());
            self.pending.push(Pending { base: at.base.clone(), depth: at.depth, path });
        }
        Ok(())
    }
}

/// What the store's layers were found to take. Keep it: a layer is walked once.
#[derive(Debug, Default)]
pub struct Census {
    /// By the layer's directory, with its inode: a layer that was replaced is another one.
    layers: BTreeMap<PathBuf, (u64, Usage)>,
}

impl Store {
    /// What the store takes: layers, blobs and its small files. Half-done work is not counted.
    pub fn usage(&self, census: &mut Census) -> Result<Usage> {
        let failed = |path: &Path, e: io::Error| Error::io(format!("count what {} takes", path.display()), e);
        let mut known = mem::take(&mut census.layers);
        let mut sum = Usage::default();
        for family in ["layers/sha256", "layers/sha512", "layers/fixup", crate::erofs::DIRECTORY] {
            let family = self.path(family);
            for entry in fs::read_dir(&family).map_err(|e| failed(&family, e))? {
                let path = entry.map_err(|e| failed(&family, e))?.path();
                let counted = layer(&path, known.remove(&path));
                let Some(counted) = counted.map_err(|e| failed(&path, e))? else { continue };
                sum += counted.1;
                census.layers.insert(path, counted);
            }
        }
        for small in ["blobs", "images", "names", "links", "leases"] {
            let path = self.path(small);
            sum += tree(&path).map_err(|e| failed(&path, e))?;
        }
        Ok(sum)
    }
}

/// One layer, walked if it is not the one that is known; `None` if it was collected meanwhile.
fn layer(path: &Path, known: Option<(u64, Usage)>) -> io::Result<Option<(u64, Usage)>> {
    let counted = fs::symlink_metadata(path).and_then(|found| match known {
        Some(known) if known.0 == found.ino() => Ok(known),
        _ => tree(path).map(|usage| (found.ino(), usage)),
    });
    match counted {
        Ok(counted) => Ok(Some(counted)),
        Err(e) if vanished(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Size and inodes of a file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Bytes.
    pub bytes: u64,
    /// Bytes that users may still take.
    pub available: u64,
    /// Inodes; 0 where the file system has no fixed number.
    pub inodes: u64,
    /// Inodes that are free.
    pub inodes_free: u64,
}

/// The file system that a path lies on.
pub fn capacity(path: &Path) -> io::Result<Capacity> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    let unit = stat.fragment_size();
    Ok(Capacity {
        bytes: stat.blocks().saturating_mul(unit),
        available: stat.blocks_available().saturating_mul(unit),
        inodes: stat.files(),
        inodes_free: stat.files_free(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    fn du(path: &Path) -> u64 {
        let output = Command::new("du").args(["-s", "-B1"]).arg(path).output().unwrap();
        String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    #[test]
    fn a_tree_is_counted_as_du_counts_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/one"), vec![1; 100_000]).unwrap();
        fs::hard_link(root.join("a/one"), root.join("a/b/same")).unwrap();
        symlink("/usr", root.join("a/out")).unwrap();
        let sparse = fs::File::create(root.join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        let usage = tree(root).unwrap();
        assert_eq!(usage.inodes, 6, "root, a, b, one, out, sparse");
        assert_eq!(usage.bytes, du(root));
        assert!(usage.bytes < 1 << 20);
        assert_eq!(tree(&root.join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_symbolic_link_in_the_place_of_the_tree_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/usr", dir.path().join("upper")).unwrap();
        assert!(tree(&dir.path().join("upper")).is_err());
    }

    #[test]
    fn depths_beyond_the_longest_path_are_reached() {
        let dir = tempfile::tempdir().unwrap();
        let name = "d".repeat(200);
        let mut at = fs::File::open(dir.path()).unwrap();
        for _ in 0..60 {
            let next = format!("/proc/self/fd/{}/{name}", at.as_raw_fd());
            fs::create_dir(&next).unwrap();
            at = fs::File::open(&next).unwrap();
        }
        assert_eq!(tree(dir.path()).unwrap().inodes, 61);
    }

    #[test]
    fn a_layer_is_walked_once_and_a_new_one_in_its_place_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut census = Census::default();
        let empty = store.usage(&mut census).unwrap();
        let layer = dir.path().join("layers/sha256/abc");
        fs::create_dir_all(layer.join("fs")).unwrap();
        fs::write(layer.join("fs/file"), vec![0; 10_000]).unwrap();
        let one = store.usage(&mut census).unwrap();
        assert_eq!(one.inodes, empty.inodes + 3);
        assert!(one.bytes >= empty.bytes + 10_000);
        // Nobody changes a layer in place; that it is not seen shows that nobody looked.
        fs::write(layer.join("fs/other"), "x").unwrap();
        assert_eq!(store.usage(&mut census).unwrap(), one);
        fs::rename(&layer, dir.path().join("old")).unwrap();
        fs::create_dir_all(&layer).unwrap();
        assert_eq!(store.usage(&mut census).unwrap().inodes, empty.inodes + 1);
        fs::remove_dir(&layer).unwrap();
        assert_eq!(store.usage(&mut census).unwrap().inodes, empty.inodes);
        assert!(census.layers.is_empty());
    }
}
