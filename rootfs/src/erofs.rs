//! An image as one file: a read-only EROFS, for a virtual machine, to which it is given as a disk.
//!
//! The image's overlay is mounted, read-only, in a mount namespace of one thread alone, and `mkfs.erofs` (Debian's package
//! erofs-utils) copies what is to be seen there: so whiteouts, opaque directories and the fix-up layer have had their
//! effect, and owners, modes, times, hard links and extended attributes are those that a container on the host sees.
//! The root directory's own come from a directory that lies above all layers, as a container's writable layer does.
//!
//! ```text
//! ROOT/erofs/KEY/                  appears by rename, when all of it is on the disk
//!   image.erofs                    the file system
//!   meta.json                      its length and digest
//! ```
//!
//! KEY is a digest of everything that the content follows from: this code's version, the layers, the fix-up layer and the
//! root's attributes. So images with the same layers share it, nobody makes it twice, and nothing is looked up. It is made
//! at its first use; one at a time, by the lock of its key. It stays as long as an image or a lease has that content.
//!
//! A file that has not the length or the head that it must have is made anew when it is asked for; [`Store::verify`]
//! compares the digest too, and a repair takes a damaged one away.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, ErrorKind, Result};
use crate::overlay;
use crate::store::images::ImageRecord;
use crate::store::lock::LayerLock;
use crate::store::scratch::Scratch;
use crate::store::{Image, Store, files};
use crate::sys;

/// The program that makes it.
const MKFS: &str = "mkfs.erofs";
/// Part of the key: another number when the same image would come out differently.
const VERSION: u32 = 1;
/// Every file system has the same, since it is known by its content.
const UUID: &str = "c0aac1e0-0000-4000-8000-000000000001";
/// Where an EROFS says what it is, and how.
const MAGIC_OFFSET: u64 = 1024;
const MAGIC: [u8; 4] = 0xE0F5_E1E2_u32.to_le_bytes();
/// What the program says of its failure is shown up to here.
const MAX_WORDS: usize = 600;

/// Bytes that are read at once.
const BUFFER: usize = 256 << 10;

/// The directory of the store.
pub(crate) const DIRECTORY: &str = "erofs";
const FILE: &str = "image.erofs";
const META: &str = "meta.json";

/// `meta.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    length: u64,
    digest: Digest,
}

/// What the content of an image's file system follows from.
pub(crate) fn key(record: &ImageRecord) -> Digest {
    let parts = (VERSION, &record.layers, &record.fixup, &record.root);
    Digest::of(&serde_json::to_vec(&parts).expect("plain data is serializable"))
}

/// The file, in its directory.
pub(crate) fn file_in(directory: &Path) -> PathBuf {
    directory.join(FILE)
}

impl Store {
    fn erofs_path(&self, key: &Digest) -> PathBuf {
        self.path(DIRECTORY).join(key.hex())
    }

    /// The image as an EROFS, which is made if there is none or a damaged one. The caller holds a [lease](Store::lease).
    pub fn erofs(&self, image: &Image) -> Result<PathBuf> {
        let key = key(&image.record);
        let what = || format!("make an EROFS of image {}", image.id.short());
        let file = self.erofs_path(&key).join(FILE);
        if self.looked_at(&key).is_ok() {
            return Ok(file);
        }
        let _lock = LayerLock::wait(&self.path("layers.lock"), &key, || {})?;
        if self.looked_at(&key).is_err() {
            self.make_erofs(image, &key).map_err(|err| err.context(what()))?;
        }
        Ok(file)
    }

    /// A look that costs nothing: its length, and how it begins.
    fn looked_at(&self, key: &Digest) -> Result<Meta, String> {
        let path = self.erofs_path(key);
        let meta: Option<Meta> = files::read_json(&path.join(META)).map_err(|err| err.to_string())?;
        let meta = meta.ok_or("is missing")?;
        let read = || {
            let file = File::open(path.join(FILE))?;
            let mut magic = [0; MAGIC.len()];
            file.read_exact_at(&mut magic, MAGIC_OFFSET)?;
            Ok::<_, io::Error>((file.metadata()?.len(), magic))
        };
        match read() {
            Err(err) => Err(format!("{FILE}: {err}")),
            Ok((length, _)) if length != meta.length => {
                Err(format!("is {length} bytes long and must be {}", meta.length))
            }
            Ok((_, magic)) if magic != MAGIC => Err("does not begin as an EROFS does".into()),
            Ok(_) => Ok(meta),
        }
    }

    fn make_erofs(&self, image: &Image, key: &Digest) -> Result<()> {
        let scratch = Scratch::new(self)?;
        scratch.uses(&image.layers)?;
        let made = scratch.path().join("made");
        let [top, tree, lower] = ["top", "tree", "lower"].map(|name| scratch.path().join(name));
        for directory in [&made, &top, &tree, &lower] {
            fs::create_dir(directory).map_err(|err| Error::io(format!("create {}", directory.display()), err))?;
        }
        let file = made.join(FILE);
        overlay::set_attributes(&top, &image.record.root)
            .map_err(|err| Error::io(format!("set the attributes of {}", top.display()), err))?;
        let layers = self.link_lower(image, &top, &lower)?;
        // A thread of its own, since the namespace is a thread's.
        let copied = std::thread::scope(|scope| {
            let copy = || copy(&lower, layers, &tree, &file);
            std::thread::Builder::new().name("erofs".into()).spawn_scoped(scope, copy).map(|thread| thread.join())
        });
        match copied.map_err(|err| Error::io("start a thread", err))? {
            Ok(copied) => copied?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        let meta = seal(&file)?;
        files::write_json(&made.join(META), &meta)?;
        let _shared = self.shared()?;
        let place = self.erofs_path(key);
        if place.exists() {
            // It goes with the scratch directory.
            let aside = scratch.path().join("damaged");
            fs::rename(&place, aside).map_err(|err| Error::io(format!("move {} aside", place.display()), err))?;
        }
        fs::rename(&made, &place).map_err(|err| Error::io(format!("create {}", place.display()), err))?;
        files::sync_directory(&self.path(DIRECTORY))
    }

    /// Links to the layers under names so short that `lowerdir` holds them all, the uppermost first; below `top`, which
    /// lends the root its attributes.
    fn link_lower(&self, image: &Image, top: &Path, folder: &Path) -> Result<usize> {
        let layers = self.lower_directories(image)?;
        let all = std::iter::once(top.to_owned()).chain(layers.iter().map(PathBuf::from));
        for (number, layer) in all.enumerate() {
            let link = folder.join(number.to_string());
            std::os::unix::fs::symlink(layer, &link)
                .map_err(|err| Error::io(format!("create {}", link.display()), err))?;
        }
        Ok(layers.len() + 1)
    }

    /// What is wrong with an image's EROFS; nothing, if it has none.
    pub(crate) fn verify_erofs(&self, record: &ImageRecord) -> Result<Option<String>> {
        let key = key(record);
        if !self.erofs_path(&key).exists() {
            return Ok(None);
        }
        let meta = match self.looked_at(&key) {
            Ok(meta) => meta,
            Err(why) => return Ok(Some(why)),
        };
        let file = self.erofs_path(&key).join(FILE);
        let found = File::open(&file).and_then(|mut file| digest_of(&mut file));
        let found = found.map_err(|err| Error::io(format!("read {}", file.display()), err))?;
        Ok((found != meta.digest).then(|| format!("its content is {found} and must be {}", meta.digest)))
    }

    /// Takes an image's EROFS out of use if it is damaged; the next use makes it anew.
    pub(crate) fn discard_erofs(&self, record: &ImageRecord) -> Result<Option<String>> {
        let key = key(record);
        let _lock = LayerLock::wait(&self.path("layers.lock"), &key, || {})?;
        let why = self.verify_erofs(record)?;
        if why.is_some() {
            files::remove(&self.erofs_path(&key).join(META))?;
            files::remove_tree(&self.erofs_path(&key))?;
        }
        Ok(why)
    }
}

/// Copies the merged layers to an EROFS. To be called by a thread that ends with it.
fn copy(lower: &Path, layers: usize, tree: &Path, file: &Path) -> Result<()> {
    let failed = |what: &str| {
        let what = format!("{what} {}", tree.display());
        move |errno: nix::Error| Error::io(what, errno.into())
    };
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).map_err(failed("make a mount namespace for"))?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(failed("make mounts private for"))?;
    nix::unistd::chdir(lower).map_err(failed("change to the layers of"))?;
    let marks = sys::overlay_marks().map(|mark| format!(",{mark}")).unwrap_or_default();
    let names = (0..layers).map(|number| number.to_string()).collect::<Vec<_>>().join(":");
    let options = format!("lowerdir={names},index=off,metacopy=off,redirect_dir=nofollow{marks}");
    mount(Some("overlay"), tree, Some("overlay"), MsFlags::MS_RDONLY, Some(options.as_str()))
        .map_err(failed("mount overlay on"))?;
    let said = Command::new(MKFS)
        .args(["--quiet", "--preserve-mtime", "-U", UUID])
        // Else every file would be of that time.
        .env_remove("SOURCE_DATE_EPOCH")
        .args([file, tree])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output();
    let said = said.map_err(|err| {
        let missing = err.kind() == io::ErrorKind::NotFound;
        let err = Error::io(format!("start {MKFS}"), err);
        if missing { err.hint("install erofs-utils, which virtual machines' images are made with") } else { err }
    })?;
    if said.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&[said.stderr, said.stdout].concat()).into_owned();
    let words = words.trim().chars().take(MAX_WORDS).collect::<String>().replace('\n', "; ");
    let kind = if words.contains("No space left") { ErrorKind::NoSpace } else { ErrorKind::Io };
    Err(Error::new(kind, format!("{MKFS} {}: {}: {words}", file.display(), said.status)))
}

/// Brings the file to the disk and says what it is.
fn seal(path: &Path) -> Result<Meta> {
    let sealed = || {
        let mut file = File::open(path)?;
        file.sync_all()?;
        Ok(Meta { length: file.metadata()?.len(), digest: digest_of(&mut file)? })
    };
    sealed().map_err(|err: io::Error| Error::io(format!("sync {}", path.display()), err))
}

fn digest_of(file: &mut impl Read) -> io::Result<Digest> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests;
