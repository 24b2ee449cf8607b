//! Is all in the store still as it was pulled?
//!
//! A layer is proven by its record: the archive is replayed from the files, must have the diff id, and its entries say
//! what type, mode, owner, time, attributes and links each path must have; nothing else may be there. Images must have
//! their blobs, layers and fix-up, names their image.
//!
//! [`Store::repair`] rebuilds what is damaged and nothing else: a damaged layer loses its `meta.json`, and a pull then
//! fetches just the layers that are not there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::archive::save::Checked;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::overlay;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::source::Source;
use crate::store::lock::LayerLock;
use crate::store::{Image, PullOptions, Store, files};
use crate::sys;
use crate::unpack::TREE;
use crate::unpack::model::{Model, Node, NodeKind};
use crate::unpack::record::Replay;
use crate::unpack::tar::{Kind, Parser};

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The damaged layer, if it is one.
    pub layer: Option<Digest>,
    /// The damaged thing: `layer 0123456789ab`, `image busybox:latest`.
    pub what: String,
    /// What is wrong with it.
    pub why: String,
    /// The names of the images that have it.
    pub images: Vec<String>,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)?;
        if !self.images.is_empty() {
            write!(f, " (in {})", self.images.join(", "))?;
        }
        Ok(())
    }
}

impl Store {
    /// Looks at everything: reads all files of all layers.
    pub fn verify(&self) -> Result<Vec<Damage>> {
        let names = self.name_records()?;
        let mut damages = Vec::new();
        let mut layers: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
        let mut known = BTreeSet::new();
        for record in self.image_records()? {
            let own = names.iter().filter(|name| name.image == record.id).map(|name| name.name.clone());
            let own: Vec<String> = own.filter(|name| !name.contains('@')).collect();
            let what = format!("image {}", own.first().map_or(record.id.short(), String::as_str));
            let mut damaged = |why: String| {
                damages.push(Damage { layer: None, what: what.clone(), why, images: Vec::new() });
            };
            for blob in [&record.id, &record.manifest] {
                if let Err(err) = self.read_blob(blob) {
                    damaged(err.to_string());
                }
            }
            let fixup = record.fixup.as_ref().map(|fixup| overlay::fixup_path(self, fixup));
            if fixup.is_some_and(|fixup| !fixup.join("meta.json").exists()) {
                damaged("its fix-up layer is missing".into());
            }
            if let Some(why) = self.verify_erofs(&record)? {
                damaged(format!("what virtual machines have of it {why}"));
            }
            for layer in &record.layers {
                layers.entry(layer.clone()).or_default().extend(own.iter().cloned());
            }
            known.insert(record.id);
        }
        for name in names.iter().filter(|name| !known.contains(&name.image)) {
            let why = format!("means the image {}, which is missing", name.image);
            damages.push(Damage { layer: None, what: format!("name {}", name.name), why, images: Vec::new() });
        }
        for (layer, images) in layers {
            if let Some(why) = self.verify_layer(&layer)? {
                let what = format!("layer {}", layer.short());
                damages.push(Damage { layer: Some(layer), what, why, images });
            }
        }
        Ok(damages)
    }

    /// Looks at one layer. What is wrong with it is the answer, not an error.
    pub fn verify_layer(&self, diff_id: &Digest) -> Result<Option<String>> {
        match self.layer_meta(diff_id) {
            Ok(Some(meta)) if meta.diff_id == *diff_id => {}
            Ok(Some(meta)) => return Ok(Some(format!("its meta.json is of {}", meta.diff_id))),
            Ok(None) => return Ok(Some("is missing".into())),
            Err(err) => return Ok(Some(err.to_string())),
        }
        let path = self.layer_path(diff_id);
        let checked = || {
            let replay = Replay::open(&path)?;
            let mut parser = Parser::new(BufReader::with_capacity(256 << 10, Checked::new(replay, diff_id)));
            let mut model = Model::new();
            while let Some(entry) = parser.next_entry()? {
                let unclear = || Error::new(ErrorKind::Corrupt, "its record makes no sense");
                model.apply(&entry).ok_or_else(unclear)?;
                while parser.remaining() > 0 {
                    let count = parser.chunk()?.len();
                    parser.consume(count);
                }
                parser.raw.clear();
            }
            parser.into_inner().into_inner().finish()?;
            compare(&model, &path.join(TREE))
        };
        match checked() {
            Ok(difference) => Ok(difference),
            // The machine's trouble is not the layer's.
            Err(err) if matches!(err.kind(), ErrorKind::Permission | ErrorKind::NoSpace) => Err(err),
            Err(err) => Ok(Some(err.to_string())),
        }
    }

    /// Pulls an image again, but only what is damaged or missing of it. Returns what was damaged. A container that runs on
    /// a damaged layer keeps what it has open, and should be started anew.
    pub fn repair(
        &self,
        reference: &Reference,
        sources: &[Box<dyn Source>],
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<(Image, Vec<Damage>)> {
        let damages = self.discard_damaged(reference)?;
        let image = self.pull(reference, sources, options, progress)?;
        Ok((image, damages))
    }

    /// Takes the damaged layers of an image out of use.
    pub(crate) fn discard_damaged(&self, reference: &Reference) -> Result<Vec<Damage>> {
        let mut damages = Vec::new();
        let image = self.image(&reference.to_string())?;
        for layer in image.iter().flat_map(|image| &image.layers) {
            let _lock = LayerLock::wait(&self.path("layers.lock"), layer, || {})?;
            if let Some(why) = self.verify_layer(layer)? {
                files::remove(&self.layer_path(layer).join("meta.json"))?;
                let what = format!("layer {}", layer.short());
                damages.push(Damage { layer: Some(layer.clone()), what, why, images: vec![reference.to_string()] });
            }
        }
        if let Some(image) = &image
            && let Some(why) = self.discard_erofs(&image.record)?
        {
            let (what, why) = (format!("image {reference}"), format!("what virtual machines have of it {why}"));
            damages.push(Damage { layer: None, what, why, images: vec![reference.to_string()] });
        }
        Ok(damages)
    }
}

const TIME: &str = "time";

/// The first difference between what must be and what is.
pub(crate) fn compare(model: &Model, tree: &Path) -> Result<Option<String>> {
    let mut inodes: BTreeMap<usize, u64> = BTreeMap::new();
    let mut times = None;
    for (path, node) in &model.nodes {
        let shown = || format!("/{}", String::from_utf8_lossy(path));
        let place = tree.join(std::ffi::OsStr::from_bytes(path));
        let differs = compare_node(node, &place, &mut inodes);
        match differs {
            Ok(None) => {}
            // Whatever else is wrong in a directory also changes its time, so that is told last.
            Ok(Some(why)) if why.starts_with(TIME) && node.kind == NodeKind::Entry(Kind::Directory) => {
                times.get_or_insert(format!("{}: {why}", shown()));
            }
            Ok(Some(why)) => return Ok(Some(format!("{}: {why}", shown()))),
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Some(format!("{}: is missing", shown()))),
            Err(err) => return Err(Error::io(format!("look at {}", place.display()), err)),
        }
    }
    let extra = find_extra(model, tree, &mut Vec::new());
    let extra = extra.map_err(|err| Error::io(format!("list {}", tree.display()), err))?;
    Ok(extra.map(|path| format!("/{}: does not belong here", String::from_utf8_lossy(&path))).or(times))
}

fn compare_node(node: &Node, place: &Path, inodes: &mut BTreeMap<usize, u64>) -> io::Result<Option<String>> {
    let meta = fs::symlink_metadata(place)?;
    let kind = meta.file_type();
    let device = (nix::sys::stat::major(meta.rdev()) as u32, nix::sys::stat::minor(meta.rdev()) as u32);
    let right = match node.kind {
        NodeKind::Whiteout => return Ok((!kind.is_char_device() || meta.rdev() != 0).then(|| "is no whiteout".into())),
        NodeKind::Entry(Kind::File | Kind::HardLink) => kind.is_file(),
        NodeKind::Entry(Kind::Directory) => kind.is_dir(),
        NodeKind::Entry(Kind::Symlink) => kind.is_symlink(),
        NodeKind::Entry(Kind::Char) => kind.is_char_device() && device == node.device,
        NodeKind::Entry(Kind::Block) => kind.is_block_device() && device == node.device,
        NodeKind::Entry(Kind::Fifo) => kind.is_fifo(),
    };
    if !right {
        return Ok(Some("is of another type".into()));
    }
    let difference = |what: &str, is: &dyn fmt::Display, must: &dyn fmt::Display| {
        Ok(Some(format!("{what} is {is} and must be {must}")))
    };
    if meta.mode() & 0o7777 != node.mode {
        return difference("mode", &format!("{:o}", meta.mode() & 0o7777), &format!("{:o}", node.mode));
    }
    if (meta.uid(), meta.gid()) != (node.uid, node.gid) {
        let (is, must) = (format!("{}:{}", meta.uid(), meta.gid()), format!("{}:{}", node.uid, node.gid));
        return difference("owner", &is, &must);
    }
    if (meta.mtime(), meta.mtime_nsec()) != (node.mtime.0, i64::from(node.mtime.1)) {
        return difference(TIME, &meta.mtime(), &node.mtime.0);
    }
    if kind.is_file() && meta.len() != node.size {
        return difference("size", &meta.len(), &node.size);
    }
    if kind.is_symlink() && fs::read_link(place)?.as_os_str().as_bytes() != node.link {
        return Ok(Some("points elsewhere".into()));
    }
    if *inodes.entry(node.inode).or_insert(meta.ino()) != meta.ino() {
        return Ok(Some("is no hard link any more".into()));
    }
    compare_xattrs(node, place)
}

fn compare_xattrs(node: &Node, place: &Path) -> io::Result<Option<String>> {
    let parent = File::open(place.parent().expect("beneath the tree"))?;
    let mut found: BTreeMap<Vec<u8>, Vec<u8>> =
        sys::xattrs_at(&parent, place.file_name().unwrap_or_default().as_bytes())?.into_iter().collect();
    if found.remove(sys::opaque_mark().to_bytes()).is_some() != node.opaque {
        return Ok(Some("hides lower layers, or should".into()));
    }
    // Labels are the host's business unless the image brought one.
    if !node.xattrs.contains_key(b"security.selinux".as_slice()) {
        found.remove(b"security.selinux".as_slice());
    }
    Ok((found != node.xattrs).then(|| "has other extended attributes".into()))
}

/// A path of the tree that the model does not know.
fn find_extra(model: &Model, directory: &Path, path: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let length = path.len();
        if length > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(entry.file_name().as_bytes());
        if !model.nodes.contains_key(path) {
            return Ok(Some(path.clone()));
        }
        if entry.file_type()?.is_dir()
            && let Some(found) = find_extra(model, &entry.path(), path)?
        {
            return Ok(Some(found));
        }
        path.truncate(length);
    }
    Ok(None)
}
