//! How far a long operation has come, told to whoever draws it.

use std::time::Duration;

use crate::digest::Digest;

/// Receives events, from several threads at once. Must return quickly: it is called on the data path.
pub trait Progress: Sync {
    /// Something happened.
    fn event(&self, event: ProgressEvent<'_>);
}

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProgressEvent<'a> {
    /// A layer is being fetched; `size` is that of the compressed blob.
    LayerStart {
        /// The blob's digest.
        digest: &'a Digest,
        /// Its size in bytes.
        size: u64,
    },
    /// So many more bytes of a blob have arrived.
    LayerBytes {
        /// The blob's digest.
        digest: &'a Digest,
        /// How many, since the last event.
        bytes: u64,
    },
    /// A layer is being unpacked by another pull, and is waited for.
    LayerWait {
        /// The blob's digest.
        digest: &'a Digest,
    },
    /// A layer is complete, checked and in the store.
    LayerDone {
        /// The blob's digest.
        digest: &'a Digest,
    },
    /// A layer was in the store already.
    LayerExists {
        /// The blob's digest.
        digest: &'a Digest,
    },
    /// A request failed and will be made again.
    Retry {
        /// What was asked for: a blob's digest, or a manifest's name.
        what: &'a str,
        /// Why it failed.
        why: &'a str,
        /// Which attempt comes next: 2, 3, ...
        attempt: u32,
        /// After how long.
        delay: Duration,
    },
}

/// Progress that nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: ProgressEvent<'_>) {}
}
