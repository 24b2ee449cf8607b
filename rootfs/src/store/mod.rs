//! The image store: files and directories are the database.
//!
//! ```text
//! ROOT/
//!   lock, layers.lock             who may do what, see lock.rs
//!   layers/sha256/DIFFID/         one unpacked layer; it appears by rename, when all of it is on the disk
//!     fs/                         its tree in overlay's form
//!     record.zst                  what its archive was beside the contents, see unpack/record.rs
//!     shadowed/                   contents that later entries of the same archive replaced (seldom there)
//!     meta.json                   sizes, and the directories that had no entry
//!   layers/fixup/HASH/fs/         directories alone, see overlay.rs
//!   links/SHORT                   -> ../layers/sha256/DIFFID/fs, short names for mount options
//!   blobs/sha256/DIGEST           manifests and configurations as they came
//!   images/DIGEST.json            one image by the digest of its configuration: manifest, layers, sizes, pin
//!   names/HASH.json               one name (NAME:TAG or NAME@DIGEST) and the image it means
//!   leases/ID                     layers that someone uses, one digest a line
//!   erofs/KEY/                    an image as one file, see erofs.rs
//!   tmp/work-X/                   half-done work, with its owner's lock, see scratch.rs
//! ```
//!
//! ## Invariants
//! - What is in `layers` is whole: it was written in `tmp`, synced (`syncfs`), then renamed. What is in `images` has its
//!   layers, its blobs and its fix-up; a name in `names` has its image. Things are made in that order and deleted in the
//!   opposite one, so a power cut leaves garbage at worst, never a reference to nothing.
//! - Nothing is ever changed in place. Small files are replaced by synced rename.
//! - A layer is deleted only by a collection, only if no image, no lease and no living scratch directory names it.
//! - Deleting needs no space: a layer loses its `meta.json` first, and without that it is not there.
//!
//! ## Durability
//! One `syncfs` for each layer instead of one `fsync` for each file: some milliseconds instead of a minute.

pub(crate) mod files;
pub(crate) mod images;
pub(crate) mod layers;
mod leases;
pub(crate) mod lock;
mod pull;
pub(crate) mod scratch;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
pub(crate) use images::stored_name;
pub use images::{Image, Removed};
pub use leases::Lease;
pub(crate) use pull::Manifest;
pub use pull::PullOptions;

const DIRECTORIES: [&str; 10] = [
    "layers",
    "layers/sha256",
    "layers/sha512",
    "layers/fixup",
    "links",
    "blobs",
    "images",
    "names",
    "leases",
    crate::erofs::DIRECTORY,
];

/// See the [module](self). Cheap to open, to clone and to share; every operation takes the locks that it needs.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    /// The names as they were read last.
    names: Arc<images::NameCache>,
}

impl Store {
    /// Opens the store in that directory, and makes it there if there is none.
    pub fn open(root: &Path) -> Result<Store> {
        let what = || format!("open the image store {}", root.display());
        let plain = root.to_str().is_some_and(|text| !text.contains([':', ',', '\\', '\n']));
        if !plain {
            let message = format!("{}: the path has a character that mount options cannot hold", what());
            return Err(
                Error::new(ErrorKind::Invalid, message).hint("no ':', ',', '\\' or line break, and valid UTF-8")
            );
        }
        let make = |name: &str| make_directory(&root.join(name), 0o700);
        let made = make_directory(root, 0o711).and_then(|()| DIRECTORIES.into_iter().chain(["tmp"]).try_for_each(make));
        made.map_err(|err| Error::io(what(), err))?;
        let root = root.canonicalize().map_err(|err| Error::io(what(), err))?;
        Ok(Store { root, names: Arc::default() })
    }

    /// Where the store is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn shared(&self) -> Result<lock::Guard> {
        lock::flock(&self.path("lock"), false)
    }

    pub(crate) fn exclusive(&self) -> Result<lock::Guard> {
        lock::flock(&self.path("lock"), true)
    }
}

/// Others have no business in here: images hold set-uid programs, device nodes and secrets, under names that everybody
/// knows. One that was left open is closed. (The root itself may be an administrator's, with other things in it.)
fn make_directory(path: &Path, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            let open = found.permissions().mode() & 0o777 & !mode != 0;
            if !open || mode != 0o700 {
                return Ok(());
            }
            match fs::set_permissions(path, fs::Permissions::from_mode(mode)) {
                Err(err) if err.kind() == std::io::ErrorKind::ReadOnlyFilesystem => Ok(()),
                set => set,
            }
        }
        _ => fs::DirBuilder::new().recursive(true).mode(mode).create(path),
    }
}
