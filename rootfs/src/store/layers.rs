//! Layers: made in a scratch directory, committed by rename.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::scratch::Scratch;
use super::{Store, files};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::source::Descriptor;
use crate::unpack::{self, Limits, Unpacked};

/// A layer's `meta.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub diff_id: Digest,
    pub archive_size: u64,
    pub content_size: u64,
    pub entries: u64,
    /// Paths, with `%XX` for `%` and for bytes that are not ASCII.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub implicit: Vec<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub opaque_root: bool,
}

impl Meta {
    fn new(diff_id: &Digest, unpacked: &Unpacked) -> Meta {
        Meta {
            diff_id: diff_id.clone(),
            archive_size: unpacked.archive_size,
            content_size: unpacked.content_size,
            entries: unpacked.entries,
            implicit: unpacked.implicit.iter().map(|path| escape(path)).collect(),
            opaque_root: unpacked.opaque_root,
        }
    }
}

/// A path as ASCII text.
pub(crate) fn escape(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path {
        match byte {
            b'%' | 0..0x20 | 0x7f.. => text.push_str(&format!("%{byte:02X}")),
            plain => text.push(char::from(*plain)),
        }
    }
    text
}

/// The path that was escaped.
pub(crate) fn unescape(text: &str) -> Vec<u8> {
    let mut path = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let digits = || Some([bytes.clone().next()?, bytes.clone().nth(1)?]);
        let value = (byte == b'%').then(digits).flatten();
        let value = value.and_then(|digits| u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok());
        match value {
            Some(value) => {
                path.push(value);
                bytes.nth(1);
            }
            None => path.push(byte),
        }
    }
    path
}

impl Store {
    /// The directory of a layer.
    pub(crate) fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.root().join("layers").join(diff_id.algorithm().as_str()).join(diff_id.hex())
    }

    /// Is the layer in the store?
    pub fn has_layer(&self, diff_id: &Digest) -> bool {
        self.layer_path(diff_id).join("meta.json").exists()
    }

    pub(crate) fn layer_meta(&self, diff_id: &Digest) -> Result<Option<Meta>> {
        files::read_json(&self.layer_path(diff_id).join("meta.json"))
    }

    /// Unpacks a blob to a layer of the store, which must not be there yet or is replaced. The caller holds the layer's
    /// lock.
    pub(crate) fn make_layer(
        &self,
        scratch: &Scratch,
        input: Box<dyn Read + Send + '_>,
        blob: &Descriptor,
        diff_id: &Digest,
        limits: &Limits,
        on_bytes: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let path = scratch.layer_path(diff_id);
        let make = || {
            fs::create_dir(&path).map_err(|err| Error::io(format!("create {}", path.display()), err))?;
            let directory = File::open(&path).map_err(|err| Error::io(format!("open {}", path.display()), err))?;
            let unpacked = unpack::unpack(input, blob, diff_id, &directory, limits, on_bytes)?;
            let meta = serde_json::to_vec(&Meta::new(diff_id, &unpacked)).expect("plain data is serializable");
            let file = path.join("meta.json");
            fs::write(&file, meta).map_err(|err| Error::io(format!("write {}", file.display()), err))?;
            nix::unistd::syncfs(&directory).map_err(|err| Error::io("sync the layer to the disk", err.into()))?;
            self.commit_layer(scratch, &path, diff_id)
        };
        let made = make();
        if made.is_err() {
            // Half a layer is of no use to anyone; if even this fails, the scratch directory goes later as a whole.
            let _ = files::remove_tree(&path);
        }
        made.map_err(|err| {
            let err = match err.kind() {
                ErrorKind::NoSpace => err.hint("\"coracle gc\" frees unused layers"),
                _ => err,
            };
            err.context(format!("unpack layer {}", diff_id.short()))
        })
    }

    fn commit_layer(&self, scratch: &Scratch, from: &Path, diff_id: &Digest) -> Result<()> {
        let _shared = self.shared()?;
        let to = self.layer_path(diff_id);
        if to.exists() {
            let aside = scratch.path().join(format!("{}.old", diff_id.hex()));
            fs::rename(&to, aside).map_err(|err| Error::io(format!("move {} aside", to.display()), err))?;
        }
        fs::rename(from, &to).map_err(|err| Error::io(format!("create {}", to.display()), err))?;
        files::sync_directory(to.parent().expect("layers are in a directory"))
    }
}
