//! What nobody needs any more goes.
//!
//! Needed are: the layers (and what was made of them for virtual machines, see [`erofs`](crate::erofs)) of images, of leases, and those that a living scratch directory uses. An image goes only if asked
//! for. All is chosen under the store's exclusive lock, in milliseconds; what goes is renamed into a scratch
//! directory, and deleted when the lock is free again. A rename may need a block for its directory: on a file system so
//! full that it fails, the layer is deleted in place, its `meta.json` first, so that it is gone before it is incomplete.
//!
//! A lease or record that cannot be read stops the collection: what is unknown is not deleted.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::erofs;
use crate::error::Result;
use crate::store::scratch::{self, Scratch};
use crate::store::{Image, Store, files, layers};

/// What to collect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GcOptions {
    /// Only tell what would go.
    pub dry_run: bool,
    /// Remove images that have no name with a tag, no lease and no pin.
    pub dangling_images: bool,
    /// Remove all images that have no lease and no pin.
    pub unused_images: bool,
}

/// What went, or would go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Images, by id.
    pub images: Vec<Digest>,
    /// Layers, by diff id; fix-up layers are not counted.
    pub layers: Vec<Digest>,
    /// Images as one file, for virtual machines.
    pub erofs: Vec<PathBuf>,
    /// Half-done work of dead processes.
    pub scratch: Vec<PathBuf>,
    /// Small files: blobs, names, links, unfinished files.
    pub files: Vec<PathBuf>,
    /// The bytes of the layers' contents and of those files.
    pub bytes: u64,
}

/// What must stay.
#[derive(Default)]
struct Needed {
    images: BTreeSet<Digest>,
    layers: BTreeSet<Digest>,
    fixups: BTreeSet<String>,
    erofs: BTreeSet<String>,
    blobs: BTreeSet<Digest>,
}

impl Store {
    /// Collects garbage.
    pub fn gc(&self, options: &GcOptions) -> Result<GcReport> {
        let mut report = GcReport::default();
        let lock = self.exclusive()?;
        let census = scratch::census(self)?;
        let needed = self.needed(options, &census, &mut report)?;
        let mut layers = self.unneeded_layers(&needed, &mut report)?;
        layers.extend(self.unneeded_erofs(&needed, &mut report)?);
        self.unneeded_files(&needed, &mut report)?;
        report.scratch = census.dead.iter().map(|(path, _)| path.clone()).collect();
        if options.dry_run {
            return Ok(report);
        }
        // First what refers, then what is referred to.
        for path in &report.files {
            files::remove(path)?;
        }
        let trash = Scratch::new_locked(self);
        for (index, path) in layers.iter().enumerate() {
            let moved =
                trash.as_ref().is_ok_and(|trash| fs::rename(path, trash.path().join(index.to_string())).is_ok());
            if !moved {
                files::remove(&path.join("meta.json"))?;
                files::remove_tree(path)?;
            }
        }
        drop(lock);
        for (path, guard) in census.dead {
            files::remove_tree(&path)?;
            drop(guard);
        }
        Ok(report)
    }

    fn needed(&self, options: &GcOptions, census: &scratch::Census, report: &mut GcReport) -> Result<Needed> {
        let mut needed = Needed::default();
        let leases = self.leases()?;
        for lease in &leases {
            needed.layers.extend(lease.digests.iter().cloned());
            needed.fixups.extend(lease.fixup.clone());
            needed.erofs.extend(lease.erofs.clone());
        }
        for path in &census.alive {
            needed.layers.extend(scratch::used_by(path));
        }
        let names = self.name_records()?;
        for record in self.image_records()? {
            let leased = leases.iter().any(|lease| lease.digests.contains(&record.id));
            let named = names.iter().any(|name| name.image == record.id && !name.name.contains('@'));
            let asked = options.unused_images || (options.dangling_images && !named);
            if asked && !leased && !record.pinned {
                report.images.push(record.id.clone());
                report.files.extend(self.image_files(&record.id, &names));
                continue;
            }
            needed.erofs.insert(erofs::key(&record).hex().to_owned());
            needed.layers.extend(record.layers);
            needed.fixups.extend(record.fixup);
            needed.blobs.extend([record.id.clone(), record.manifest]);
            needed.images.insert(record.id);
        }
        Ok(needed)
    }

    /// The directories of layers that nobody needs.
    fn unneeded_layers(&self, needed: &Needed, report: &mut GcReport) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for algorithm in ["sha256", "sha512"] {
            for path in files::children(&self.path("layers").join(algorithm))? {
                let diff_id = Digest::parse(&format!("{algorithm}:{}", file_name(&path)));
                if diff_id.as_ref().is_ok_and(|diff_id| needed.layers.contains(diff_id)) {
                    continue;
                }
                let meta = files::read_json::<layers::Meta>(&path.join("meta.json")).unwrap_or_default();
                report.bytes += meta.map_or(0, |meta| meta.content_size);
                report.layers.extend(diff_id);
                found.push(path);
            }
        }
        for path in files::children(&self.path("layers/fixup"))? {
            if !needed.fixups.contains(&file_name(&path)) {
                found.push(path);
            }
        }
        Ok(found)
    }

    fn unneeded_erofs(&self, needed: &Needed, report: &mut GcReport) -> Result<Vec<PathBuf>> {
        let mut found = files::children(&self.path(erofs::DIRECTORY))?;
        found.retain(|path| !needed.erofs.contains(&file_name(path)));
        for path in &found {
            report.bytes += fs::metadata(erofs::file_in(path)).map_or(0, |meta| meta.len());
        }
        report.erofs = found.clone();
        Ok(found)
    }

    fn unneeded_files(&self, needed: &Needed, report: &mut GcReport) -> Result<()> {
        for name in self.name_records()?.iter() {
            if !needed.images.contains(&name.image) {
                report.files.push(self.name_path(&name.name));
            }
        }
        let blobs: BTreeSet<PathBuf> = needed.blobs.iter().map(|digest| self.blob_path(digest)).collect();
        report.files.extend(files::children(&self.path("blobs"))?.into_iter().filter(|path| !blobs.contains(path)));
        for link in files::children(&self.path("links"))? {
            let target = fs::read_link(&link).unwrap_or_default();
            let hex = target.parent().map(file_name).unwrap_or_default();
            if !needed.layers.iter().any(|layer| layer.hex() == hex) {
                report.files.push(link);
            }
        }
        for directory in ["blobs", "images", "names", "leases"] {
            report.files.extend(files::unfinished(&self.path(directory))?);
        }
        report.files.sort();
        report.files.dedup();
        Ok(())
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Image {
    /// Has it no name with a tag? Only a lease or a pin then holds it.
    pub fn is_dangling(&self) -> bool {
        self.names.is_empty()
    }
}
