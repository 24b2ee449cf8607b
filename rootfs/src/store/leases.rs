//! Leases: what someone outside of the store uses. The engine holds one for each container.
//!
//! `leases/ID` has an image's id and layers, one digest a line. A lease is taken before a snapshot is made and dropped
//! after its last mount is gone; it survives the process that took it, and an orderly reboot. A power
//! cut may take it, as it takes its holder.

use std::path::PathBuf;

use super::{Image, Store, files};
use crate::digest::Digest;
use crate::erofs;
use crate::error::{Error, ErrorKind, Result};
use crate::overlay;

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its holder: a container's id.
    pub id: String,
    /// The image and the layers that it holds.
    pub digests: Vec<Digest>,
    /// The fix-up layer it holds.
    pub(crate) fixup: Option<String>,
    /// The key of the EROFS it holds, whether there is one or not.
    pub(crate) erofs: Option<String>,
}

impl Store {
    fn lease_path(&self, id: &str) -> Result<PathBuf> {
        let plain =
            !id.is_empty() && id.len() <= 128 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !plain || id.starts_with('.') {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("lease {id:?}: not a name of letters, digits, '-', '_', '.'"),
            ));
        }
        Ok(self.root().join("leases").join(id))
    }

    /// Keeps an image's layers until [`Store::drop_lease`], even if the image is removed.
    pub fn lease(&self, id: &str, image: &Image) -> Result<()> {
        let path = self.lease_path(id)?;
        let _lock = self.shared()?;
        // Between the caller's look and the lock a collection may have been.
        if let Some(missing) = image.layers.iter().find(|layer| !self.has_layer(layer)) {
            return Err(
                Error::new(ErrorKind::NotFound, format!("lease {id}: layer {missing} is gone")).hint("pull again")
            );
        }
        let fixup = image.record.fixup.as_ref().map(|fixup| overlay::fixup_path(self, fixup));
        if fixup.is_some_and(|fixup| !fixup.join("meta.json").exists()) {
            let message = format!("lease {id}: the fix-up layer of image {} is gone", image.id);
            return Err(Error::new(ErrorKind::NotFound, message).hint("pull again"));
        }
        let mut text = format!("{}\n", image.id);
        for layer in &image.layers {
            text += &format!("{layer}\n");
        }
        if let Some(fixup) = &image.record.fixup {
            text += &format!("fixup {fixup}\n");
        }
        text += &format!("erofs {}\n", erofs::key(&image.record).hex());
        // Who holds it does not outlive a power cut, so neither need the lease: a container's start waits for no disk.
        files::write_unsynced(&path, text.as_bytes())
    }

    /// All leases.
    pub fn leases(&self) -> Result<Vec<Lease>> {
        let mut leases = Vec::new();
        for path in files::children(&self.root().join("leases"))? {
            let Some(text) = files::read(&path)? else {
                continue;
            };
            let text = String::from_utf8_lossy(&text);
            let id = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let digests = text.lines().filter_map(|line| Digest::parse(line).ok()).collect();
            let word = |word: &str| text.lines().find_map(|line| line.strip_prefix(word).map(str::to_owned));
            let (fixup, erofs) = (word("fixup "), word("erofs "));
            leases.push(Lease { id, digests, fixup, erofs });
        }
        Ok(leases)
    }

    /// Ends a lease; one that does not exist is ended already.
    pub fn drop_lease(&self, id: &str) -> Result<()> {
        files::remove(&self.lease_path(id)?).map(drop)
    }

    /// A lease that holds this image.
    pub(crate) fn lease_on(&self, image: &Digest) -> Result<Option<String>> {
        Ok(self.leases()?.into_iter().find(|lease| lease.digests.contains(image)).map(|lease| lease.id))
    }
}
