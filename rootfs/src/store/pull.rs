//! From a source to an image in the store.
//!
//! ```text
//! manifest, configuration     read whole, checked
//! layers                      workers, each: lock the layer; is it there? else stream it through `unpack`; commit
//! fix-up, record, names       when all layers are there
//! ```
//!
//! The first error stops all workers. Layers that were committed by then stay until the next collection, so that another
//! attempt goes on where this one ended.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use super::images::{CONFIG_LIMIT, ImageRecord, parse_config, stored_name};
use super::lock::LayerLock;
use super::scratch::Scratch;
use super::{Image, Store, files};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::overlay;
use crate::platform::Platform;
use crate::progress::{Progress, ProgressEvent};
use crate::reference::Reference;
use crate::source::{Descriptor, Source, media_type};
use crate::unpack::Limits;

/// Overlay takes 500 lower layers; one is kept for the fix-up.
const MAX_LAYERS: usize = 499;
/// Indexes in indexes: nobody needs more.
const MAX_INDEX_DEPTH: usize = 3;
/// Enough to use two cores and to hide a slow connection, few enough to be kind to the registry.
const DEFAULT_PARALLEL: usize = 3;

/// How to pull.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// Which image of an index; an image for another platform is refused.
    pub platform: Platform,
    /// How many layers at a time.
    pub parallel: usize,
    /// What a layer may ask for.
    pub limits: Limits,
}

impl Default for PullOptions {
    fn default() -> PullOptions {
        PullOptions { platform: Platform::host(), parallel: DEFAULT_PARALLEL, limits: Limits::default() }
    }
}

/// An image manifest, OCI's or docker's.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

/// An image that was resolved down to its layers.
struct Resolved {
    top: Digest,
    manifest: Digest,
    manifest_bytes: Vec<u8>,
    config: Descriptor,
    config_bytes: Vec<u8>,
    /// Blob and diff id of each layer, the lowest first.
    layers: Vec<(Descriptor, Digest)>,
}

impl Store {
    /// Pulls an image and names it. The sources, one for each set of credentials, are tried in order; the next one is asked
    /// only if one does not give the image to us.
    pub fn pull(
        &self,
        reference: &Reference,
        sources: &[Box<dyn Source>],
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let mut failure = None;
        for source in sources {
            match self.import(source.as_ref(), std::slice::from_ref(reference), true, options, progress) {
                Ok(image) => return Ok(image),
                Err(err) if is_refusal(&err) => failure = Some(worse(failure, err)),
                Err(err) => return Err(err.context(format!("pull image {reference}"))),
            }
        }
        let failure = failure.unwrap_or_else(|| Error::new(ErrorKind::Invalid, "no source was given"));
        Err(failure.context(format!("pull image {reference}")))
    }

    /// Brings an image in from one source. With `digest_names` it also gets the names by digest.
    pub(crate) fn import(
        &self,
        source: &dyn Source,
        names: &[Reference],
        digest_names: bool,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let image = resolve(source, options, progress)?;
        let scratch = Scratch::new(self)?;
        let diff_ids: Vec<Digest> = image.layers.iter().map(|(_, diff_id)| diff_id.clone()).collect();
        {
            let _shared = self.shared()?;
            scratch.uses(&diff_ids)?;
        }
        self.import_layers(source, &scratch, &image.layers, options, progress)?;
        let mut stored = Vec::new();
        for name in names {
            stored.push(stored_name(name));
            if digest_names {
                stored.push(stored_name(&name.with_digest(image.top.clone())));
            }
        }
        stored.sort();
        stored.dedup();
        self.commit_image(&scratch, &image, diff_ids, &stored)
    }

    fn commit_image(
        &self,
        scratch: &Scratch,
        image: &Resolved,
        layers: Vec<Digest>,
        names: &[String],
    ) -> Result<Image> {
        // A collection knows of the fix-up layer by the image's record only, so it has to wait for that.
        let _shared = self.shared()?;
        let assembly = overlay::assemble(self, scratch, &layers)?;
        let mut size = 0;
        for layer in &layers {
            size += self.layer_meta(layer)?.map_or(0, |meta| meta.content_size);
        }
        for (digest, bytes) in [(&image.config.digest, &image.config_bytes), (&image.manifest, &image.manifest_bytes)] {
            if self.read_blob(digest).is_err() {
                files::write(&self.blob_path(digest), bytes)?;
            }
        }
        let record = ImageRecord {
            id: image.config.digest.clone(),
            manifest: image.manifest.clone(),
            layers,
            fixup: assembly.fixup,
            root: assembly.root,
            size,
            pinned: false,
        };
        self.write_image(record, names)
    }

    fn import_layers(
        &self,
        source: &dyn Source,
        scratch: &Scratch,
        layers: &[(Descriptor, Digest)],
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<()> {
        // Each layer once, the largest first, so that none of them is the last one at work for long.
        let mut seen = BTreeSet::new();
        let mut queue: Vec<&(Descriptor, Digest)> = layers.iter().filter(|(_, diff_id)| seen.insert(diff_id)).collect();
        queue.sort_by_key(|(blob, _)| std::cmp::Reverse(blob.size));
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let failure = Mutex::new(None);
        let work = || {
            while let Some((blob, diff_id)) = queue.get(next.fetch_add(1, Ordering::Relaxed)) {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                if let Err(err) = self.import_layer(source, scratch, blob, diff_id, options, progress, &stop) {
                    let mut first = failure.lock().expect("no holder panics");
                    if !stop.swap(true, Ordering::Relaxed) {
                        *first = Some(err);
                    }
                    return;
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..options.parallel.max(1).min(queue.len()) {
                scope.spawn(work);
            }
            work();
        });
        failure.into_inner().expect("no holder panics").map_or(Ok(()), Err)
    }

    #[expect(clippy::too_many_arguments, reason = "the loop's variables, split off for its length")]
    fn import_layer(
        &self,
        source: &dyn Source,
        scratch: &Scratch,
        blob: &Descriptor,
        diff_id: &Digest,
        options: &PullOptions,
        progress: &dyn Progress,
        stop: &AtomicBool,
    ) -> Result<()> {
        let digest = &blob.digest;
        let waiting = || progress.event(ProgressEvent::LayerWait { digest });
        let _lock = LayerLock::wait(&self.path("layers.lock"), diff_id, waiting)?;
        if self.has_layer(diff_id) {
            progress.event(ProgressEvent::LayerExists { digest });
            return Ok(());
        }
        progress.event(ProgressEvent::LayerStart { digest, size: blob.size });
        let stream = source.blob(blob, progress)?;
        let failed = AtomicBool::new(false);
        let input = Box::new(Watched { stream, stop, failed: &failed });
        let told = |bytes| progress.event(ProgressEvent::LayerBytes { digest, bytes });
        let made = self.make_layer(scratch, input, blob, diff_id, &options.limits, &told);
        made.map_err(|err| {
            // Where bad content came from is worth a word, unless the source's own error has said it.
            let content = matches!(err.kind(), ErrorKind::Corrupt | ErrorKind::Limit | ErrorKind::Unsupported);
            let said = failed.load(Ordering::Relaxed);
            if content && !said { err.context(source.describe()) } else { err }
        })?;
        progress.event(ProgressEvent::LayerDone { digest });
        Ok(())
    }
}

/// A stream that ends when another worker failed, and that tells whether it failed itself.
struct Watched<'a> {
    stream: Box<dyn Read + Send + 'a>,
    stop: &'a AtomicBool,
    failed: &'a AtomicBool,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Busy, "stopped, another layer failed").into());
        }
        self.stream.read(buffer).inspect_err(|_| self.failed.store(true, Ordering::Relaxed))
    }
}

/// Would other credentials help? A registry answers "not found" to those who may not know, too.
fn is_refusal(err: &Error) -> bool {
    matches!(err.kind(), ErrorKind::Unauthorized | ErrorKind::Denied | ErrorKind::NotFound)
}

/// Of two refusals, the one that tells more.
fn worse(first: Option<Error>, second: Error) -> Error {
    match first {
        Some(first) if first.kind() != ErrorKind::Unauthorized => first,
        _ => second,
    }
}

fn corrupt(what: &Digest, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("manifest {what}: {why}"))
}

fn resolve(source: &dyn Source, options: &PullOptions, progress: &dyn Progress) -> Result<Resolved> {
    let (mut descriptor, mut bytes) = source.resolve(progress)?;
    let top = descriptor.digest.clone();
    let mut depth = 0;
    while media_type::is_index(&descriptor.media_type) {
        depth += 1;
        if depth > MAX_INDEX_DEPTH {
            return Err(Error::new(ErrorKind::Limit, format!("{}: indexes in indexes, too deep", source.describe())));
        }
        let index: Index = serde_json::from_slice(&bytes).map_err(|err| corrupt(&descriptor.digest, err))?;
        descriptor = choose(index.manifests, options).map_err(|err| err.context(source.describe()))?;
        bytes = source.manifest(&descriptor, progress)?;
    }
    let digest = &descriptor.digest;
    if media_type::DOCKER_SCHEMA1.contains(&descriptor.media_type.as_str()) {
        let message = format!("manifest {digest}: is of docker's schema 1");
        return Err(Error::new(ErrorKind::Unsupported, message).hint("push the image again with a tool of this decade"));
    }
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|err| corrupt(digest, err))?;
    if manifest.schema_version != 2 {
        return Err(corrupt(digest, format!("has schema version {}", manifest.schema_version)));
    }
    if manifest.layers.len() > MAX_LAYERS {
        let message = format!("manifest {digest}: has {} layers (the limit is {MAX_LAYERS})", manifest.layers.len());
        return Err(Error::new(ErrorKind::Limit, message));
    }
    let (config_bytes, config) = read_config(source, &manifest, digest, progress)?;
    check_platform(&config, options)?;
    let layers = pair_layers(&manifest, &config, digest)?;
    let manifest_digest = digest.clone();
    Ok(Resolved {
        top,
        manifest: manifest_digest,
        manifest_bytes: bytes,
        config: manifest.config,
        config_bytes,
        layers,
    })
}

/// The best manifest of an index for the platform.
fn choose(manifests: Vec<Descriptor>, options: &PullOptions) -> Result<Descriptor> {
    let wanted = &options.platform;
    let image = |descriptor: &Descriptor| {
        media_type::is_manifest(&descriptor.media_type) || media_type::is_index(&descriptor.media_type)
    };
    let mut best: Option<(u32, Descriptor)> = None;
    let mut offered = BTreeSet::new();
    for descriptor in manifests.into_iter().filter(image) {
        let suits = match &descriptor.platform {
            Some(platform) => {
                if platform.os != "unknown" {
                    offered.insert(platform.to_string());
                }
                wanted.suits(platform)
            }
            // Without a word about the platform, it is looked at in the configuration.
            None => Some(0),
        };
        // Of equals the first wins, as with everyone.
        if let Some(rank) = suits
            && best.as_ref().is_none_or(|(known, _)| rank > *known)
        {
            best = Some((rank, descriptor));
        }
    }
    best.map(|(_, descriptor)| descriptor).ok_or_else(|| {
        let offered: Vec<String> = offered.into_iter().collect();
        let message = format!("no image for {wanted}; there are: {}", offered.join(", "));
        Error::new(ErrorKind::Unsupported, message)
    })
}

fn read_config(
    source: &dyn Source,
    manifest: &Manifest,
    digest: &Digest,
    progress: &dyn Progress,
) -> Result<(Vec<u8>, ImageConfiguration)> {
    let descriptor = &manifest.config;
    if ![media_type::OCI_CONFIG, media_type::DOCKER_CONFIG, ""].contains(&descriptor.media_type.as_str()) {
        let message = format!("manifest {digest}: is no container image but {}", descriptor.media_type);
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    if descriptor.size > CONFIG_LIMIT {
        let message = format!("configuration {}: has {} bytes", descriptor.digest, descriptor.size);
        return Err(Error::new(ErrorKind::Limit, message).hint("the limit is 4 MiB"));
    }
    let mut bytes = Vec::new();
    let stream = source.blob(descriptor, progress)?;
    let read = stream.take(descriptor.size + 1).read_to_end(&mut bytes);
    read.map_err(|err| Error::io(format!("read configuration {}", descriptor.digest), err))?;
    descriptor.check(&bytes)?;
    let config = parse_config(&descriptor.digest, &bytes)?;
    Ok((bytes, config))
}

fn check_platform(config: &ImageConfiguration, options: &PullOptions) -> Result<()> {
    let platform = Platform {
        os: config.os().to_string(),
        architecture: config.architecture().to_string(),
        variant: config.variant().clone().filter(|variant| !variant.is_empty()),
    };
    if options.platform.suits(&platform).is_none() {
        let message = format!("the image is for {platform}, wanted is one for {}", options.platform);
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    Ok(())
}

fn pair_layers(manifest: &Manifest, config: &ImageConfiguration, digest: &Digest) -> Result<Vec<(Descriptor, Digest)>> {
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() != manifest.layers.len() {
        let (layers, ids) = (manifest.layers.len(), diff_ids.len());
        return Err(corrupt(digest, format!("has {layers} layers where its configuration has {ids} diff ids")));
    }
    let pair = |(blob, diff_id): (&Descriptor, &String)| {
        let known = blob.media_type.contains("tar") || blob.media_type.is_empty();
        if !known {
            let message = format!("layer {}: unknown media type {:?}", blob.digest, blob.media_type);
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        Ok((blob.clone(), Digest::parse(diff_id)?))
    };
    manifest.layers.iter().zip(diff_ids).map(pair).collect()
}
