//! Images out of a layout or an archive: each becomes a [`Source`], and the rest is a pull.
//!
//! A place with `oci-layout` is an OCI layout (newer docker archives are both; the layout says more), one with `manifest.json` a
//! docker archive. An image's names come from the annotations `io.containerd.image.name` and
//! `org.opencontainers.image.ref.name`, or from docker's RepoTags. If all there is is a tag, as with umoci, the image is
//! called `localhost/FILE:TAG`, as podman does.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::place::Place;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::reference::Reference;
use crate::source::{Descriptor, MANIFEST_LIMIT, Source, media_type};
use crate::store::scratch::Scratch;
use crate::store::{Image, PullOptions, Store};

/// The annotation of a whole name, containerd's.
pub(crate) const NAME_ANNOTATION: &str = "io.containerd.image.name";
/// The annotation of a tag, or of a whole name.
pub(crate) const REF_ANNOTATION: &str = "org.opencontainers.image.ref.name";
/// The most images of one archive.
const MAX_IMAGES: usize = 1000;

/// An entry of docker's `manifest.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DockerImage {
    pub config: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub repo_tags: Vec<String>,
    pub layers: Vec<String>,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

impl Store {
    /// Loads all images of an OCI layout (a directory or an archive) or a docker archive.
    pub fn load(&self, path: &Path, options: &PullOptions, progress: &dyn Progress) -> Result<Vec<Image>> {
        let load = || {
            let what = || format!("open {}", path.display());
            let meta = path.metadata().map_err(|err| Error::io(what(), err))?;
            let stem = path.file_name().unwrap_or_default().to_string_lossy();
            let stem = stem.split(".tar").next().unwrap_or_default().to_owned();
            if meta.is_dir() {
                return self.load_place(&Place::directory(path)?, &stem, options, progress);
            }
            let file = File::open(path).map_err(|err| Error::io(what(), err))?;
            if meta.is_file() && !is_compressed(&file).map_err(|err| Error::io(what(), err))? {
                return self.load_place(&Place::tar(file, &path.display().to_string())?, &stem, options, progress);
            }
            self.load_stream(file, &stem, options, progress)
        };
        load().map_err(|err| err.context(format!("load {}", path.display())))
    }

    /// Loads all images of an archive that comes from a pipe.
    pub fn load_reader(&self, input: impl Read, options: &PullOptions, progress: &dyn Progress) -> Result<Vec<Image>> {
        self.load_stream(input, "stdin", options, progress).map_err(|err| err.context("load from standard input"))
    }

    /// Spools, inflating on the way.
    fn load_stream(
        &self,
        input: impl Read,
        stem: &str,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Vec<Image>> {
        let scratch = Scratch::new(self)?;
        let spool = || {
            let mut file = tempfile::tempfile_in(scratch.path())?;
            let mut input = io::BufReader::with_capacity(256 << 10, input);
            let magic = io::BufRead::fill_buf(&mut input)?.get(..4).unwrap_or_default().to_vec();
            let mut input: Box<dyn Read + '_> = match magic[..] {
                [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
                [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
                _ => Box::new(input),
            };
            let limit = options.limits.layer_bytes;
            let copied = io::copy(&mut (&mut input).take(limit), &mut file)?;
            if copied == limit {
                return Err(Error::new(ErrorKind::Limit, format!("the archive has more than {limit} bytes")).into());
            }
            Ok(file)
        };
        let file = spool().map_err(|err| Error::io("spool the archive", err))?;
        self.load_place(&Place::tar(file, stem)?, stem, options, progress)
    }

    fn load_place(
        &self,
        place: &Place,
        stem: &str,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Vec<Image>> {
        let sources = if place.read("oci-layout", MANIFEST_LIMIT)?.is_some() {
            layout_sources(place, stem, options)?
        } else if let Some(manifest) = place.read("manifest.json", MANIFEST_LIMIT)? {
            docker_sources(place, &manifest)?
        } else {
            let message = "neither an OCI layout (no oci-layout) nor a docker archive (no manifest.json)";
            return Err(Error::new(ErrorKind::Invalid, message));
        };
        let mut images: Vec<Image> = Vec::new();
        for (source, names) in sources {
            let image = self.import(&source, &names, false, options, progress)?;
            images.retain(|known| known.id != image.id);
            images.push(image);
        }
        Ok(images)
    }
}

fn is_compressed(mut file: &File) -> io::Result<bool> {
    let mut magic = [0; 4];
    let count = file.read(&mut magic)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(magic.starts_with(&[0x1f, 0x8b]) && count == 4 || magic == [0x28, 0xb5, 0x2f, 0xfd])
}

/// One image of a place.
struct Local<'a> {
    place: &'a Place,
    top: Descriptor,
    /// Docker archives have no manifest; this one was made up.
    manifest: Option<Vec<u8>>,
    /// Files by the digest of their content, where they are not under `blobs`.
    paths: BTreeMap<Digest, String>,
}

impl Local<'_> {
    fn path(&self, digest: &Digest) -> String {
        let path = self.paths.get(digest).cloned();
        path.unwrap_or_else(|| format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex()))
    }
}

impl Source for Local<'_> {
    fn describe(&self) -> String {
        "archive".into()
    }

    fn resolve(&self, progress: &dyn Progress) -> Result<(Descriptor, Vec<u8>)> {
        let bytes = self.manifest(&self.top, progress)?;
        Ok((self.top.clone(), bytes))
    }

    fn manifest(&self, descriptor: &Descriptor, _: &dyn Progress) -> Result<Vec<u8>> {
        let bytes = match &self.manifest {
            Some(bytes) if *descriptor == self.top => bytes.clone(),
            _ => {
                let bytes = self.place.read(&self.path(&descriptor.digest), MANIFEST_LIMIT)?;
                bytes.ok_or_else(|| missing(&descriptor.digest))?
            }
        };
        descriptor.check(&bytes)?;
        Ok(bytes)
    }

    fn blob<'a>(&'a self, descriptor: &Descriptor, _: &'a dyn Progress) -> Result<Box<dyn Read + Send + 'a>> {
        let opened = self.place.open(&self.path(&descriptor.digest))?;
        Ok(opened.ok_or_else(|| missing(&descriptor.digest))?.0)
    }
}

fn missing(digest: &Digest) -> Error {
    Error::new(ErrorKind::NotFound, format!("blob {digest}: not in the archive"))
}

type Sources<'a> = Vec<(Local<'a>, Vec<Reference>)>;

/// The images of an OCI layout. Entries that share a name are the same image for several platforms.
fn layout_sources<'a>(place: &'a Place, stem: &str, options: &PullOptions) -> Result<Sources<'a>> {
    let bytes = place.read("index.json", MANIFEST_LIMIT)?;
    let bytes = bytes.ok_or_else(|| Error::new(ErrorKind::Corrupt, "the layout has no index.json"))?;
    let index: Index =
        serde_json::from_slice(&bytes).map_err(|err| Error::new(ErrorKind::Corrupt, format!("index.json: {err}")))?;
    if index.manifests.len() > MAX_IMAGES {
        return Err(Error::new(ErrorKind::Limit, format!("index.json: names more than {MAX_IMAGES} images")));
    }
    let mut groups: BTreeMap<String, Vec<Descriptor>> = BTreeMap::new();
    for descriptor in index.manifests {
        if media_type::is_index(&descriptor.media_type) || media_type::is_manifest(&descriptor.media_type) {
            groups.entry(layout_name(&descriptor, stem)).or_default().push(descriptor);
        }
    }
    let mut sources = Sources::new();
    let rank = |descriptor: &Descriptor| match &descriptor.platform {
        Some(platform) => options.platform.suits(platform).map(|rank| rank + 1),
        None => Some(0),
    };
    for (name, descriptors) in groups {
        let suitable = descriptors.iter().filter(|descriptor| rank(descriptor).is_some()).max_by_key(|d| rank(d));
        let top = suitable.unwrap_or(&descriptors[0]).clone();
        let names = if name.is_empty() { Vec::new() } else { vec![Reference::parse(&name)?] };
        sources.push((Local { place, top, manifest: None, paths: BTreeMap::new() }, names));
    }
    if sources.is_empty() {
        return Err(Error::new(ErrorKind::NotFound, "index.json: names no image"));
    }
    Ok(sources)
}

fn layout_name(descriptor: &Descriptor, stem: &str) -> String {
    let annotation = |key| descriptor.annotations.get(key).map(String::as_str).unwrap_or_default();
    let (name, tag) = (annotation(NAME_ANNOTATION), annotation(REF_ANNOTATION));
    if !name.is_empty() {
        return name.to_owned();
    }
    if tag.is_empty() || tag.contains(['/', ':']) {
        return tag.to_owned();
    }
    let stem = stem.to_lowercase();
    let name = format!("localhost/{}:{tag}", stem.trim_matches(|c: char| !c.is_ascii_alphanumeric()));
    if Reference::parse(&name).is_ok() { name } else { String::new() }
}

/// The images of a docker archive, with manifests made up for them.
fn docker_sources<'a>(place: &'a Place, manifest: &[u8]) -> Result<Sources<'a>> {
    let wrong = |err| Error::new(ErrorKind::Corrupt, format!("manifest.json: {err}"));
    let images: Vec<DockerImage> = serde_json::from_slice(manifest).map_err(wrong)?;
    if images.is_empty() || images.len() > MAX_IMAGES {
        return Err(Error::new(ErrorKind::Corrupt, format!("manifest.json: names {} images", images.len())));
    }
    images.iter().map(|image| docker_source(place, image)).collect()
}

fn docker_source<'a>(place: &'a Place, image: &DockerImage) -> Result<(Local<'a>, Vec<Reference>)> {
    let absent = |name: &str| Error::new(ErrorKind::NotFound, format!("{name}: not in the archive"));
    let config = place.read(&image.config, MANIFEST_LIMIT)?.ok_or_else(|| absent(&image.config))?;
    let mut paths = BTreeMap::from([(Digest::of(&config), image.config.clone())]);
    let mut layers = Vec::new();
    for layer in &image.layers {
        let (reader, size) = place.open(layer)?.ok_or_else(|| absent(layer))?;
        let digest = hash(reader).map_err(|err| Error::io(format!("read {layer}"), err))?;
        paths.insert(digest.clone(), layer.clone());
        layers.push(Descriptor::new("application/vnd.docker.image.rootfs.diff.tar", digest, size));
    }
    let manifest = crate::store::Manifest {
        schema_version: 2,
        media_type: media_type::DOCKER_MANIFEST.into(),
        config: Descriptor::new(media_type::DOCKER_CONFIG, Digest::of(&config), config.len() as u64),
        layers,
    };
    let manifest = serde_json::to_vec(&manifest).expect("plain data is serializable");
    let top = Descriptor::new(media_type::DOCKER_MANIFEST, Digest::of(&manifest), manifest.len() as u64);
    let names = image.repo_tags.iter().map(|tag| Reference::parse(tag)).collect::<Result<_>>()?;
    Ok((Local { place, top, manifest: Some(manifest), paths }, names))
}

fn hash(mut reader: impl Read) -> io::Result<Digest> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = reader.read(&mut buffer)?;
        if count == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(&buffer[..count]);
    }
}
