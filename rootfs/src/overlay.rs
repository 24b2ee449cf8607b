//! From an image to the description of a mount.
//!
//! ## The mount
//! [`Store::snapshot`] makes a container's writable directory and describes the overlay; it mounts nothing, since the mount
//! belongs into the container's own mount namespace, where the host does not see it. `lowerdir` lists all layers, the
//! uppermost first. With many layers that is longer than a page, which `mount(2)` cannot take; the runtime then gives
//! them one by one (`lowerdir+` of `fsconfig`, Linux 6.8). For older kernels the layers have short names under `links/`,
//! all in one directory.
//!
//! The options, and why:
//! - `index=off`: the index keeps hard links together over copy-up and lets overlays be exported by NFS, at the price of
//!   refusing a lower layer whose identity changed, and of more work in each copy-up. Containers do without, as everywhere.
//! - `metacopy=off`: else a `chmod` in a container would leave a file in the upper layer that only points to the lower
//!   one's content, which is meaningless to anyone who looks at the upper layer by itself.
//! - `redirect_dir=nofollow`: else a crafted `trusted.overlay.redirect` in a layer could name any directory; images with
//!   such attributes are refused at unpacking, and this is the second line. Renaming a lower directory then answers
//!   `EXDEV`, which `mv` and package managers know, as everywhere.
//! - no `userxattr`: the marks are in `trusted.*`, where nothing inside of a container can forge them. It is for mounts
//!   by the unprivileged: in an ordinary user's own user namespace the marks are `user.*`, since no others can be written.
//! - `volatile`: a container's writable layer never outlives the boot, so it need not reach the disk; a sync in a
//!   container, and each unmount, then costs nothing. Such an overlay cannot be mounted twice; a new snapshot is needed.
//!
//! ## The fix-up layer
//! Layers are unpacked apart. A directory that a layer needs without having an entry for it has no attributes of its own,
//! but overlay shows the attributes of the uppermost directory of a name: `usr` with mode 0755 of root where a lower layer
//! says otherwise. So when an image is put together, each such directory is looked for downwards, past layers where it is
//! without entry, until one has an entry for it. Found directories, with those above them, are made once more in a layer
//! of directories alone that lies above all: they merge with what is beneath and only lend their attributes. Most images
//! need none, since their tools write all entries.
//!
//! The attributes of `/` are those of the upper directory, so [`Store::snapshot`] sets them.

use std::collections::btree_map::{BTreeMap, Entry};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, futimens};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::store::layers::{escape, unescape};
use crate::store::scratch::Scratch;
use crate::store::{Image, Store};
use crate::sys;

/// How many digits of a diff id name its link: 80 bits, and a clash is noticed.
const LINK_DIGITS: usize = 20;

/// A mount, described as containerd's `Mount` is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// `overlay`
    pub fstype: String,
    /// `overlay`
    pub source: String,
    /// Options as for `mount -o`, one each.
    pub options: Vec<String>,
}

/// The attributes of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootAttributes {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds, nanoseconds.
    pub mtime: (i64, i64),
    /// Extended attributes, but overlay's own; escaped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub xattrs: Vec<(String, String)>,
}

impl Default for RootAttributes {
    fn default() -> RootAttributes {
        RootAttributes { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), xattrs: Vec::new() }
    }
}

/// What an image needs besides its layers.
pub(crate) struct Assembly {
    pub fixup: Option<String>,
    pub root: RootAttributes,
}

/// A layer, as the search sees it.
struct Layer {
    tree: OwnedFd,
    implicit: std::collections::BTreeSet<Vec<u8>>,
    opaque_root: bool,
}

/// Looks for directories without attributes of their own, and makes the fix-up layer if there are any.
pub(crate) fn assemble(store: &Store, scratch: &Scratch, layers: &[Digest]) -> Result<Assembly> {
    let mut stack = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for diff_id in layers.iter().rev().filter(|diff_id| seen.insert(*diff_id)) {
        let gone = || Error::new(ErrorKind::NotFound, format!("layer {diff_id} is gone")).hint("pull again");
        let meta = store.layer_meta(diff_id)?.ok_or_else(gone)?;
        let path = store.layer_path(diff_id).join("fs");
        let tree = File::open(&path).map_err(|err| Error::io(format!("open {}", path.display()), err))?;
        let implicit = meta.implicit.iter().map(|path| unescape(path)).collect();
        stack.push(Layer { tree: tree.into(), implicit, opaque_root: meta.opaque_root });
        if meta.opaque_root {
            break;
        }
    }
    let mut fixes: BTreeMap<Vec<u8>, RootAttributes> = BTreeMap::new();
    let candidates: std::collections::BTreeSet<&Vec<u8>> = stack.iter().flat_map(|layer| &layer.implicit).collect();
    for path in candidates.into_iter().filter(|path| !path.is_empty()) {
        if let Some(attributes) = lent_attributes(&stack, path)? {
            fixes.insert(path.clone(), attributes);
        }
    }
    let root = seen_attributes(&stack, b"")?;
    if fixes.is_empty() && !layers.is_empty() {
        return Ok(Assembly { fixup: None, root });
    }
    // What lies above a fix covers the same directories of the layers, so it needs its right attributes too.
    let above: Vec<Vec<u8>> = fixes
        .keys()
        .flat_map(|path| {
            path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| path[..end].to_vec())
        })
        .collect();
    for path in above {
        if let Entry::Vacant(place) = fixes.entry(path) {
            let attributes = seen_attributes(&stack, place.key())?;
            place.insert(attributes);
        }
    }
    fixes.insert(Vec::new(), root.clone());
    let fixup = make_fixup(store, scratch, &fixes)?;
    Ok(Assembly { fixup: Some(fixup), root })
}

/// What the uppermost layer that has the directory by an entry says of it, if a layer without entry covers that one.
fn lent_attributes(stack: &[Layer], path: &[u8]) -> Result<Option<RootAttributes>> {
    let mut covered = false;
    for layer in stack {
        let (found, more) = look(layer, path).map_err(|err| Error::io("look for a directory's attributes", err))?;
        if let Some(directory) = found {
            if !layer.implicit.contains(path) {
                return if covered { attributes_of(&directory).map(Some) } else { Ok(None) };
            }
            covered = true;
        }
        if !more {
            break;
        }
    }
    Ok(None)
}

/// What is to be seen of a directory: the uppermost entry's attributes, else the defaults.
fn seen_attributes(stack: &[Layer], path: &[u8]) -> Result<RootAttributes> {
    for layer in stack {
        let (found, more) = look(layer, path).map_err(|err| Error::io("look for a directory's attributes", err))?;
        match found {
            Some(directory) if !layer.implicit.contains(path) => return attributes_of(&directory),
            _ if !more => break,
            _ => {}
        }
    }
    Ok(RootAttributes::default())
}

/// Looks for a directory in one layer. Also tells whether lower layers are seen through this one at that path.
fn look(layer: &Layer, path: &[u8]) -> io::Result<(Option<OwnedFd>, bool)> {
    let mut directory = layer.tree.try_clone()?;
    let mut through = !layer.opaque_root;
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        directory = match openat(&directory, name, flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::ENOENT) => return Ok((None, through)),
            // A whiteout, a file or a link hides what is below it.
            Err(Errno::ENOTDIR | Errno::ELOOP | Errno::ENXIO) => return Ok((None, false)),
            Err(err) => return Err(err.into()),
        };
        through &= !is_opaque(&directory)?;
    }
    Ok((Some(directory), through))
}

fn is_opaque(directory: &OwnedFd) -> io::Result<bool> {
    let xattrs = sys::xattrs_at(directory, b"")?;
    Ok(xattrs.iter().any(|(name, _)| name == sys::opaque_mark().to_bytes()))
}

fn attributes_of(directory: &OwnedFd) -> Result<RootAttributes> {
    let read = || {
        let meta = File::from(directory.try_clone()?).metadata()?;
        let xattrs = sys::xattrs_at(directory, b"")?;
        let xattrs = xattrs.into_iter().filter(|(name, _)| !sys::is_overlays(name));
        Ok(RootAttributes {
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            xattrs: xattrs.map(|(name, value)| (escape(&name), escape(&value))).collect(),
        })
    };
    read().map_err(|err| Error::io("read a directory's attributes", err))
}

/// Makes the fix-up layer, named by what is in it.
fn make_fixup(store: &Store, scratch: &Scratch, fixes: &BTreeMap<Vec<u8>, RootAttributes>) -> Result<String> {
    let list: Vec<(String, &RootAttributes)> =
        fixes.iter().map(|(path, attributes)| (escape(path), attributes)).collect();
    let list = serde_json::to_vec(&list).expect("plain data is serializable");
    let name = Digest::of(&list).hex().to_owned();
    let place = fixup_path(store, &name);
    if place.join("meta.json").exists() {
        return Ok(name);
    }
    let path = scratch.path().join("fixup");
    let make = || {
        files_remove(&path)?;
        fs::create_dir_all(path.join("fs"))?;
        for directory in fixes.keys().filter(|path| !path.is_empty()) {
            fs::create_dir(tree_path(&path, directory))?;
        }
        // From the deepest up, so that no time changes again.
        for (directory, attributes) in fixes.iter().rev() {
            set_attributes(&tree_path(&path, directory), attributes)?;
        }
        fs::write(path.join("meta.json"), &list)?;
        nix::unistd::syncfs(File::open(&path)?)?;
        match fs::rename(&path, &place) {
            // Someone else was faster, with the same content.
            Err(_) if place.join("meta.json").exists() => files_remove(&path),
            renamed => renamed,
        }
    };
    make().map_err(|err| Error::io("make the fix-up layer", err))?;
    crate::store::files::sync_directory(place.parent().expect("fix-ups are in a directory"))?;
    Ok(name)
}

fn files_remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        _ => Ok(()),
    }
}

fn tree_path(layer: &Path, path: &[u8]) -> PathBuf {
    layer.join("fs").join(OsStr::from_bytes(path))
}

pub(crate) fn fixup_path(store: &Store, name: &str) -> PathBuf {
    store.root().join("layers/fixup").join(name)
}

pub(crate) fn set_attributes(path: &Path, attributes: &RootAttributes) -> io::Result<()> {
    let directory = File::open(path)?;
    std::os::unix::fs::fchown(&directory, Some(attributes.uid), Some(attributes.gid))?;
    directory.set_permissions(fs::Permissions::from_mode(attributes.mode))?;
    for (name, value) in &attributes.xattrs {
        let name = std::ffi::CString::new(unescape(name)).map_err(io::Error::other)?;
        sys::set_xattr(&directory, &name, &unescape(value))?;
    }
    let time = TimeSpec::new(attributes.mtime.0, attributes.mtime.1);
    Ok(futimens(directory.as_fd(), &time, &time)?)
}

impl Store {
    /// Makes `upper` and `work` in a container's directory, and describes the mount of its root filesystem. A `work`
    /// of an earlier mount is replaced; `upper` keeps what it has. The caller holds a [lease](Store::lease).
    pub fn snapshot(&self, image: &Image, directory: &Path) -> Result<Vec<MountSpec>> {
        let (upper, work) = (directory.join("upper"), directory.join("work"));
        let new = !upper.exists();
        let make = || {
            files_remove(&work)?;
            fs::create_dir_all(&work)?;
            if new {
                fs::create_dir(&upper)?;
                set_attributes(&upper, &image.record.root)?;
            }
            Ok(())
        };
        make().map_err(|err| Error::io(format!("make a writable layer in {}", directory.display()), err))?;
        let text = |path: &Path| match path.to_str() {
            Some(text) if !text.contains([',', '\\']) => Ok(text.to_owned()),
            _ => {
                let message = format!("{}: the path has a character that mount options cannot hold", path.display());
                Err(Error::new(ErrorKind::Invalid, message))
            }
        };
        let mut options = vec![format!("lowerdir={}", self.lower_directories(image)?.join(":"))];
        options.push(format!("upperdir={}", text(&upper)?));
        options.push(format!("workdir={}", text(&work)?));
        options.extend(["index=off", "metacopy=off", "redirect_dir=nofollow", "volatile"].map(String::from));
        options.extend(sys::overlay_marks().map(String::from));
        Ok(vec![MountSpec { fstype: "overlay".into(), source: "overlay".into(), options }])
    }

    /// The image's layers as overlay wants them: the uppermost first, none twice.
    pub fn lower_directories(&self, image: &Image) -> Result<Vec<String>> {
        let mut lower = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        if let Some(fixup) = &image.record.fixup {
            lower.push(fixup_path(self, fixup).join("fs"));
        }
        for diff_id in image.layers.iter().rev().filter(|diff_id| seen.insert(*diff_id)) {
            let meta = self.layer_meta(diff_id)?.ok_or_else(|| {
                let message = format!("image {}: layer {diff_id} is missing", image.id.short());
                Error::new(ErrorKind::NotFound, message).hint("pull the image again")
            })?;
            lower.push(self.short_name(diff_id));
            if meta.opaque_root {
                break;
            }
        }
        Ok(lower.into_iter().map(|path| path.to_string_lossy().into_owned()).collect())
    }

    /// The link to a layer; the layer itself if there can be none.
    fn short_name(&self, diff_id: &Digest) -> PathBuf {
        let link = self.root().join("links").join(&diff_id.hex()[..LINK_DIGITS]);
        let target = format!("../layers/{}/{}/fs", diff_id.algorithm().as_str(), diff_id.hex());
        // On a full disk, or in a clash, the long name serves as well.
        let right = |link: &Path| fs::read_link(link).is_ok_and(|found| found == Path::new(&target));
        if right(&link) || std::os::unix::fs::symlink(&target, &link).is_ok() || right(&link) {
            return link;
        }
        self.layer_path(diff_id).join("fs")
    }
}
