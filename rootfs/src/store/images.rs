//! Images and their names.
//!
//! An image is known by the digest of its configuration, as docker and podman know it: what runs is the same whatever
//! the compression of its layers was. A name is a file of its own, so that moving a tag is one rename.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use super::{Store, files};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::overlay::RootAttributes;
use crate::reference::Reference;

/// The largest configuration that is read, as large as the largest manifest.
pub(crate) const CONFIG_LIMIT: u64 = crate::source::MANIFEST_LIMIT;

/// The clock by which file systems date changes moves on in steps; none of them is longer.
const TICK: Duration = Duration::from_millis(100);

/// An image in the store.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// The digest of its configuration.
    pub id: Digest,
    /// Its names with tags, whole: `docker.io/library/busybox:latest`.
    pub names: Vec<String>,
    /// Its names with digests: `docker.io/library/busybox@sha256:...`.
    pub repo_digests: Vec<String>,
    /// Its configuration.
    pub config: ImageConfiguration,
    /// Its layers' diff ids, the lowest first.
    pub layers: Vec<Digest>,
    /// The bytes of its files, all layers together.
    pub size: u64,
    /// When it was made, as its configuration says.
    pub created: Option<String>,
    /// Is kept although unused.
    pub pinned: bool,
    pub(crate) record: ImageRecord,
}

impl Image {
    /// The manifest it was pulled by.
    pub fn manifest(&self) -> &Digest {
        &self.record.manifest
    }
}

/// What `images/DIGEST.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub id: Digest,
    pub manifest: Digest,
    pub layers: Vec<Digest>,
    pub fixup: Option<String>,
    /// The attributes of `/` in a container, which its writable layer must have.
    pub root: RootAttributes,
    pub size: u64,
    pub pinned: bool,
}

/// What `names/HASH.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct NameRecord {
    pub name: String,
    pub image: Digest,
}

/// The names as they were when their directory was changed last, so that a node with hundreds of them does not read them
/// all for each container.
#[derive(Debug, Default)]
pub(crate) struct NameCache(Mutex<Option<(SystemTime, Arc<Vec<NameRecord>>)>>);

/// What a removal did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that went.
    pub untagged: Vec<String>,
    /// Images that went; a collection frees their layers.
    pub deleted: Vec<Digest>,
}

impl Store {
    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.to_string().replace(':', "-"))
    }

    fn record_path(&self, id: &Digest) -> PathBuf {
        self.root.join("images").join(format!("{}.json", id.to_string().replace(':', "-")))
    }

    /// The files that make an image: its record and its names.
    pub(crate) fn image_files(&self, id: &Digest, names: &[NameRecord]) -> Vec<PathBuf> {
        let own = names.iter().filter(|name| name.image == *id);
        own.map(|name| self.name_path(&name.name)).chain([self.record_path(id)]).collect()
    }

    pub(crate) fn name_path(&self, name: &str) -> PathBuf {
        self.root.join("names").join(format!("{}.json", Digest::of(name.as_bytes()).hex()))
    }

    /// All images, by name.
    pub fn images(&self) -> Result<Vec<Image>> {
        let names = self.name_records()?;
        let mut images = Vec::new();
        for record in self.image_records()? {
            images.push(self.assemble(record, &names)?);
        }
        images.sort_by(|a, b| (a.names.is_empty(), &a.names, &a.id).cmp(&(b.names.is_empty(), &b.names, &b.id)));
        Ok(images)
    }

    /// Finds an image: by a reference, by its id (`sha256:` and all digits), or by at least 6 first digits of its id.
    pub fn image(&self, name_or_id: &str) -> Result<Option<Image>> {
        let names = self.name_records()?;
        let Some(id) = self.find(name_or_id, &names)? else {
            return Ok(None);
        };
        let record: Option<ImageRecord> = files::read_json(&self.record_path(&id))?;
        record.map(|record| self.assemble(record, &names)).transpose()
    }

    fn find(&self, text: &str, names: &[NameRecord]) -> Result<Option<Digest>> {
        if let Ok(id) = Digest::parse(text) {
            return Ok(Some(id));
        }
        let reference = Reference::parse(text);
        if let Ok(reference) = &reference {
            let wanted = stored_name(reference);
            if let Some(name) = names.iter().find(|name| name.name == wanted) {
                return Ok(Some(name.image.clone()));
            }
        }
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let hex = digits.len() >= 6 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !hex {
            return reference.map(|_| None);
        }
        let mut found: Vec<Digest> = self.image_records()?.into_iter().map(|record| record.id).collect();
        found.retain(|id| id.hex().starts_with(digits));
        if found.len() > 1 {
            let message = format!("image {text}: {} images have ids that begin so", found.len());
            return Err(Error::new(ErrorKind::Invalid, message).hint("give more digits"));
        }
        Ok(found.pop())
    }

    pub(crate) fn assemble(&self, record: ImageRecord, names: &[NameRecord]) -> Result<Image> {
        let config = self.read_blob(&record.id)?;
        let config = parse_config(&record.id, &config)?;
        let own = names.iter().filter(|name| name.image == record.id).map(|name| name.name.clone());
        let (repo_digests, names) = own.partition(|name| name.contains('@'));
        Ok(Image {
            id: record.id.clone(),
            names,
            repo_digests,
            layers: record.layers.clone(),
            size: record.size,
            created: config.created().clone(),
            pinned: record.pinned,
            config,
            record,
        })
    }

    pub(crate) fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = self.blob_path(digest);
        let bytes = files::read(&path)?;
        let bytes = bytes.ok_or_else(|| Error::new(ErrorKind::Corrupt, format!("blob {digest} is missing")))?;
        if !digest.matches(&bytes) {
            return Err(Error::new(ErrorKind::Corrupt, format!("blob {digest}: {} is damaged", path.display())));
        }
        Ok(bytes)
    }

    /// All names, sorted.
    pub(crate) fn name_records(&self) -> Result<Arc<Vec<NameRecord>>> {
        let directory = self.path("names");
        // Each change of a name is a rename or a removal, and so a change of the directory.
        let changed = std::fs::metadata(&directory).and_then(|meta| meta.modified());
        let changed = changed.map_err(|err| Error::io(format!("look at {}", directory.display()), err))?;
        let mut cache = self.names.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((then, names)) = &*cache
            && *then == changed
        {
            return Ok(names.clone());
        }
        let mut names = read_all::<NameRecord>(&directory)?;
        names.sort_by(|a, b| a.name.cmp(&b.name));
        let names = Arc::new(names);
        // A change so short ago may be followed by one in the same tick of the clock that dates it.
        let settled = changed.elapsed().is_ok_and(|since| since > TICK);
        *cache = settled.then(|| (changed, names.clone()));
        Ok(names)
    }

    pub(crate) fn image_records(&self) -> Result<Vec<ImageRecord>> {
        read_all(&self.path("images"))
    }

    /// Writes an image's record and names; its layers and blobs are there already. The caller holds the store's lock.
    pub(crate) fn write_image(&self, mut record: ImageRecord, names: &[String]) -> Result<Image> {
        let path = self.record_path(&record.id);
        let earlier: Option<ImageRecord> = files::read_json(&path).unwrap_or_default();
        record.pinned |= earlier.as_ref().is_some_and(|earlier| earlier.pinned);
        if earlier.as_ref() != Some(&record) {
            files::write_json(&path, &record)?;
        }
        for name in names {
            let known = NameRecord { name: name.clone(), image: record.id.clone() };
            let path = self.name_path(name);
            if files::read_json::<NameRecord>(&path).unwrap_or_default().as_ref() != Some(&known) {
                files::write_json(&path, &known)?;
            }
        }
        self.assemble(record, &self.name_records()?)
    }

    /// Gives an image one more name.
    pub fn tag(&self, name_or_id: &str, name: &Reference) -> Result<Image> {
        let _lock = self.shared()?;
        let image = self.image(name_or_id)?.ok_or_else(|| not_found(name_or_id))?;
        if name.digest().is_some() {
            let message = format!("tag image {name_or_id}: {name} names an image by its content");
            return Err(Error::new(ErrorKind::Invalid, message).hint("give it a name with a tag"));
        }
        self.write_image(image.record, &[stored_name(name)])
    }

    /// Marks an image to be kept although unused, or not any more.
    pub fn pin(&self, name_or_id: &str, pinned: bool) -> Result<()> {
        let _lock = self.shared()?;
        let image = self.image(name_or_id)?.ok_or_else(|| not_found(name_or_id))?;
        files::write_json(&self.record_path(&image.id), &ImageRecord { pinned, ..image.record })
    }

    /// Takes one name from its image, which stays.
    pub fn untag(&self, name: &Reference) -> Result<bool> {
        let _lock = self.exclusive()?;
        files::remove(&self.name_path(&stored_name(name)))
    }

    /// Removes a name, and the image with its last name; by id, the image with all its names (if there are several,
    /// `force` is needed). An image that a lease uses is removed by force only: what runs keeps its layers anyway.
    pub fn remove(&self, name_or_id: &str, force: bool) -> Result<Removed> {
        let _lock = self.exclusive()?;
        let image = self.image(name_or_id)?.ok_or_else(|| not_found(name_or_id))?;
        let reference = Reference::parse(name_or_id).ok();
        let wanted = reference.map(|reference| vec![stored_name(&reference)]).unwrap_or_default();
        let all = || image.names.iter().chain(&image.repo_digests);
        let by_name = Digest::parse(name_or_id).is_err() && all().any(|name| wanted.contains(name));
        let mut removed = Removed::default();
        if by_name && image.names.iter().any(|name| !wanted.contains(name)) {
            for name in all().filter(|name| wanted.contains(name)) {
                files::remove(&self.name_path(name))?;
                removed.untagged.push(name.clone());
            }
            return Ok(removed);
        }
        if !by_name && image.names.len() > 1 && !force {
            let message = format!("remove image {name_or_id}: it has {} names", image.names.len());
            return Err(Error::new(ErrorKind::Busy, message).hint("remove them one by one, or use force"));
        }
        if !force && let Some(lease) = self.lease_on(&image.id)? {
            let message = format!("remove image {name_or_id}: in use by {lease}");
            return Err(Error::new(ErrorKind::Busy, message).hint("remove its containers first, or use force"));
        }
        for name in all() {
            files::remove(&self.name_path(name))?;
            removed.untagged.push(name.clone());
        }
        files::remove(&self.record_path(&image.id))?;
        removed.deleted.push(image.id);
        Ok(removed)
    }
}

/// The name under which a reference is kept: a digest says all, and a tag beside it nothing. (Nobody has asked the registry
/// what the tag is; and an image that only has the tag is not the one that was pinned.)
pub(crate) fn stored_name(reference: &Reference) -> String {
    let name = reference.name();
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => format!("{name}@{digest}"),
        (None, Some(tag)) => format!("{name}:{tag}"),
        (None, None) => name,
    }
}

pub(crate) fn parse_config(id: &Digest, bytes: &[u8]) -> Result<ImageConfiguration> {
    ImageConfiguration::from_reader(bytes)
        .map_err(|err| Error::new(ErrorKind::Corrupt, format!("image configuration {id}: {err}")))
}

fn not_found(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("image {name}: not in the store")).hint("\"coracle images\" lists them")
}

fn read_all<T: serde::de::DeserializeOwned>(directory: &std::path::Path) -> Result<Vec<T>> {
    let mut found = Vec::new();
    for path in files::children(directory)? {
        // A file that went while the directory was read is no loss.
        found.extend(files::read_json(&path)?);
    }
    Ok(found)
}
