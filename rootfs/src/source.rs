//! Where images come from: the words shared by registries, archives and the store.
//!
//! A [`Source`] hands out one image: its top manifest (or index), the manifests beneath it, and blobs as streams. All
//! that comes out of a source is untrusted; manifests are checked against size and digest here, because they are small
//! and read whole, while a blob's digest is checked by its consumer as it streams by.

use std::collections::BTreeMap;
use std::io::Read;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::platform::Platform;
use crate::progress::Progress;

/// The largest manifest or index that is read. Registries accept at most 4 MiB, by OCI's recommendation.
pub const MANIFEST_LIMIT: u64 = 4 << 20;

/// Media types of manifests and indexes.
pub mod media_type {
    /// OCI's index of images by platform.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI's image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI's image configuration.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// Docker's manifest list, the same as OCI's index.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker's image manifest, schema 2, the same as OCI's.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker's image configuration, the same as OCI's.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// Docker's older manifests, which are refused: their layers are named without diff ids.
    pub const DOCKER_SCHEMA1: [&str; 2] = [
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    ];

    /// Does this media type name an index of manifests?
    pub fn is_index(media_type: &str) -> bool {
        media_type == OCI_INDEX || media_type == DOCKER_LIST
    }

    /// Does this media type name one image's manifest?
    pub fn is_manifest(media_type: &str) -> bool {
        media_type == OCI_MANIFEST || media_type == DOCKER_MANIFEST
    }
}

/// Names content: what it is, its digest, its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// The platform of the image, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Where else the content may be had, for layers that registries must not hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Free-form notes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// A descriptor of nothing but the content.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Descriptor {
        let media_type = media_type.to_owned();
        Descriptor { media_type, digest, size, platform: None, urls: Vec::new(), annotations: BTreeMap::new() }
    }

    /// Checks that these bytes are what the descriptor names.
    pub fn check(&self, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 != self.size {
            let message = format!("{}: has {} bytes where {} were promised", self.digest, bytes.len(), self.size);
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        let mut hasher = self.digest.hasher();
        hasher.update(bytes);
        let actual = hasher.finish();
        if actual != self.digest {
            return Err(Error::new(ErrorKind::Corrupt, format!("{}: the content is {actual}", self.digest)));
        }
        Ok(())
    }
}

/// Where one image comes from. Retries and resumption happen inside, and are told to `progress` as they happen; byte
/// counts are told by the consumer of a blob, not by its source.
pub trait Source: Send + Sync {
    /// Names the source, for errors: `registry 127.0.0.1:5000`.
    fn describe(&self) -> String;

    /// The top manifest or index: its descriptor and its bytes, checked.
    fn resolve(&self, progress: &dyn Progress) -> Result<(Descriptor, Vec<u8>)>;

    /// A manifest by its descriptor, checked; at most [`MANIFEST_LIMIT`] bytes.
    fn manifest(&self, descriptor: &Descriptor, progress: &dyn Progress) -> Result<Vec<u8>>;

    /// A blob (a layer or a configuration) as a stream of exactly `descriptor.size` bytes. The digest is *not* checked.
    /// Errors of the stream carry an [`Error`], see [`Error::io`].
    fn blob<'a>(&'a self, descriptor: &Descriptor, progress: &'a dyn Progress) -> Result<Box<dyn Read + Send + 'a>>;
}
