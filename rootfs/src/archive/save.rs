//! Images out of the store.
//!
//! Layers are written as plain archives, replayed from their records: a layer's digest is then its diff id, and the
//! configuration, and with it the image's id, is the one that was pulled. The manifest says so; it is the pulled one only
//! if that had plain layers too (a compressed blob could not be made again byte for byte). What is replayed is
//! hashed on the way: a damaged layer is an error, never a damaged archive.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::load::{DockerImage, NAME_ANNOTATION, REF_ANNOTATION};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, ErrorKind, Result};
use crate::reference::Reference;
use crate::source::{Descriptor, media_type};
use crate::store::scratch::Scratch;
use crate::store::{Image, Manifest, Store, stored_name};
use crate::unpack::record::Replay;

const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// The unit of copying.
const BUFFER: usize = 1 << 20;

/// What to save images as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// An OCI layout as one tar archive: what most tools of today read.
    OciArchive,
    /// An OCI layout as a directory.
    OciDir,
    /// What `docker save` writes and `docker load` reads.
    DockerArchive,
}

impl Store {
    /// Saves images to a file, or to a directory for [`Format::OciDir`]. It appears when it is whole.
    pub fn save(&self, names: &[&str], format: Format, out: &Path) -> Result<()> {
        let what = || format!("save to {}", out.display());
        let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if format == Format::OciDir {
            if out.exists() {
                return Err(Error::new(ErrorKind::Invalid, format!("{}: exists already", what())));
            }
            let made = tempfile::Builder::new().prefix(".saving-").tempdir_in(parent);
            let directory = made.map_err(|err| Error::io(what(), err))?;
            self.save_into(names, format, &mut Sink::Directory(directory.path())).map_err(|err| err.context(what()))?;
            let finish = || {
                use std::os::unix::fs::PermissionsExt;
                fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
                fs::rename(directory.path(), out)
            };
            return finish().map_err(|err| Error::io(what(), err));
        }
        if fs::metadata(out).is_ok_and(|meta| !meta.is_file()) {
            // A device or a pipe: nothing could take its place.
            let mut file = File::options().write(true).open(out).map_err(|err| Error::io(what(), err))?;
            return self.save_to(names, format, &mut file);
        }
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        let made = tempfile::Builder::new().prefix(".saving-").permissions(mode).tempfile_in(parent);
        let mut file = made.map_err(|err| Error::io(what(), err))?;
        self.save_to(names, format, file.as_file_mut()).map_err(|err| err.context(what()))?;
        file.persist(out).map_err(|err| Error::io(what(), err.error))?;
        Ok(())
    }

    /// Saves images as an archive to a stream.
    pub fn save_to(&self, names: &[&str], format: Format, out: &mut dyn Write) -> Result<()> {
        if format == Format::OciDir {
            return Err(Error::new(ErrorKind::Invalid, "a directory cannot be written to a stream"));
        }
        self.save_into(names, format, &mut Sink::Archive(out))?;
        // Two zero blocks end an archive.
        let finish = out.write_all(&[0; 1024]).and_then(|()| out.flush());
        finish.map_err(|err| Error::io("write the archive", err))
    }

    fn save_into(&self, names: &[&str], format: Format, sink: &mut Sink<'_>) -> Result<()> {
        let scratch = Scratch::new(self)?;
        let mut images: Vec<(Image, Vec<String>)> = Vec::new();
        {
            let _shared = self.shared()?;
            for name in names {
                let absent = || Error::new(ErrorKind::NotFound, format!("image {name}: not in the store"));
                let image = self.image(name)?.ok_or_else(absent)?;
                let asked = Reference::parse(name).map(|reference| vec![stored_name(&reference)]).unwrap_or_default();
                let asked: Vec<String> = asked.into_iter().filter(|name| image.names.contains(name)).collect();
                match images.iter_mut().find(|(known, _)| known.id == image.id) {
                    Some((_, known)) => known.extend(asked),
                    None => images.push((image, asked)),
                }
            }
            let used: BTreeSet<Digest> = images.iter().flat_map(|(image, _)| image.layers.clone()).collect();
            scratch.uses(&used.into_iter().collect::<Vec<_>>())?;
        }
        match format {
            Format::DockerArchive => self.save_docker(&images, sink),
            Format::OciArchive | Format::OciDir => self.save_layout(&images, sink),
        }
    }

    fn save_layout(&self, images: &[(Image, Vec<String>)], sink: &mut Sink<'_>) -> Result<()> {
        let place = |digest: &Digest| format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex());
        sink.bytes("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let mut small: BTreeMap<Digest, Vec<u8>> = BTreeMap::new();
        let mut index = Vec::new();
        for (image, names) in images {
            let config = self.read_blob(&image.id)?;
            let manifest = self.plain_manifest(image, config.len() as u64)?;
            let top = Descriptor::new(media_type::OCI_MANIFEST, Digest::of(&manifest), manifest.len() as u64);
            small.insert(image.id.clone(), config);
            small.insert(top.digest.clone(), manifest);
            for name in names {
                let annotations = [(REF_ANNOTATION.into(), name.clone()), (NAME_ANNOTATION.into(), name.clone())];
                index.push(Descriptor { annotations: annotations.into(), ..top.clone() });
            }
            if names.is_empty() {
                index.push(top);
            }
        }
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": index});
        sink.bytes("index.json", index.to_string().as_bytes())?;
        for (digest, bytes) in &small {
            sink.bytes(&place(digest), bytes)?;
        }
        self.save_layers(images, sink, place)
    }

    /// The manifest of an image with plain layers.
    fn plain_manifest(&self, image: &Image, config_size: u64) -> Result<Vec<u8>> {
        let pulled = self.read_blob(image.manifest())?;
        let known = serde_json::from_slice::<Manifest>(&pulled);
        if let Ok(manifest) = known
            && manifest.media_type == media_type::OCI_MANIFEST
            && manifest.layers.iter().map(|layer| &layer.digest).eq(&image.layers)
        {
            return Ok(pulled);
        }
        let mut layers = Vec::new();
        for diff_id in &image.layers {
            layers.push(Descriptor::new(OCI_LAYER, diff_id.clone(), self.archive_size(diff_id)?));
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: media_type::OCI_MANIFEST.into(),
            config: Descriptor::new(media_type::OCI_CONFIG, image.id.clone(), config_size),
            layers,
        };
        Ok(serde_json::to_vec(&manifest).expect("plain data is serializable"))
    }

    fn archive_size(&self, diff_id: &Digest) -> Result<u64> {
        let gone =
            || Error::new(ErrorKind::NotFound, format!("layer {diff_id} is missing")).hint("pull the image again");
        Ok(self.layer_meta(diff_id)?.ok_or_else(gone)?.archive_size)
    }

    fn save_docker(&self, images: &[(Image, Vec<String>)], sink: &mut Sink<'_>) -> Result<()> {
        let place = |digest: &Digest| format!("{}.tar", digest.hex());
        let mut list = Vec::new();
        for (image, names) in images {
            let config = format!("{}.json", image.id.hex());
            sink.bytes(&config, &self.read_blob(&image.id)?)?;
            let layers = image.layers.iter().map(place).collect();
            list.push(DockerImage { config, repo_tags: names.clone(), layers });
        }
        let list = serde_json::to_vec(&list).expect("plain data is serializable");
        sink.bytes("manifest.json", &list)?;
        self.save_layers(images, sink, place)
    }

    /// Replays each layer once.
    fn save_layers(
        &self,
        images: &[(Image, Vec<String>)],
        sink: &mut Sink<'_>,
        place: impl Fn(&Digest) -> String,
    ) -> Result<()> {
        let mut done = BTreeSet::new();
        for diff_id in images.iter().flat_map(|(image, _)| &image.layers) {
            if done.insert(diff_id) {
                let size = self.archive_size(diff_id)?;
                let mut replay = Checked::new(Replay::open(&self.layer_path(diff_id))?, diff_id);
                sink.stream(&place(diff_id), size, &mut replay)?;
                replay.finish().map_err(|err| err.hint("the layer is damaged: pull the image again to repair it"))?;
            }
        }
        Ok(())
    }
}

/// A replayed archive, hashed as it goes by.
pub(crate) struct Checked<'a> {
    replay: Replay,
    hasher: Hasher,
    expected: &'a Digest,
}

impl<'a> Checked<'a> {
    pub(crate) fn new(replay: Replay, expected: &'a Digest) -> Checked<'a> {
        Checked { replay, hasher: expected.hasher(), expected }
    }

    /// Was all of it right?
    pub(crate) fn finish(mut self) -> Result<()> {
        io::copy(&mut self, &mut io::sink())
            .map_err(|err| Error::io(format!("replay layer {}", self.expected), err))?;
        let actual = self.hasher.finish();
        if actual != *self.expected {
            let message = format!("layer {}: its files now make {actual}", self.expected);
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        Ok(())
    }
}

impl Read for Checked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.replay.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

/// Where files of an image go.
enum Sink<'a> {
    Directory(&'a Path),
    Archive(&'a mut dyn Write),
}

impl Sink<'_> {
    fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.stream(name, bytes.len() as u64, &mut &bytes[..])
    }

    fn stream(&mut self, name: &str, size: u64, content: &mut dyn Read) -> Result<()> {
        let mut write = || match self {
            Sink::Directory(directory) => {
                let path: PathBuf = directory.join(name);
                fs::create_dir_all(path.parent().expect("files are in directories"))?;
                copy(content, size, &mut File::create_new(path)?)
            }
            Sink::Archive(out) => {
                let mut header = tar::Header::new_ustar();
                header.set_path(name)?;
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(size);
                header.set_mode(0o644);
                header.set_uid(0);
                header.set_gid(0);
                header.set_mtime(0);
                header.set_cksum();
                out.write_all(header.as_bytes())?;
                copy(content, size, *out)?;
                let padding = size.next_multiple_of(512) - size;
                out.write_all(&[0; 512][..padding as usize])
            }
        };
        write().map_err(|err| Error::io(format!("write {name}"), err))
    }
}

/// Copies exactly so much.
fn copy(content: &mut dyn Read, size: u64, out: &mut dyn Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER.min(size as usize)];
    let mut left = size;
    while left > 0 {
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = content.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err(Error::new(ErrorKind::Corrupt, "the content is shorter than it should be").into());
        }
        out.write_all(&buffer[..count])?;
        left -= count as u64;
    }
    Ok(())
}
