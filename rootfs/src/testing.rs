//! Helpers of this crate's tests: archives and layouts made by hand.

use std::fs;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::progress::Silent;
use crate::source::media_type;
use crate::store::{Image, PullOptions, Store};

/// An archive under construction.
pub(crate) struct Tar(pub Vec<u8>);

impl Tar {
    pub(crate) fn new() -> Tar {
        Tar(Vec::new())
    }

    /// Any entry, by header fields; the header is filled in from a template first.
    pub(crate) fn entry(mut self, path: &str, kind: u8, content: &[u8], set: impl Fn(&mut tar::Header)) -> Tar {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkflag = [kind];
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(content.len() as u64);
        set(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, path: &str, content: &[u8]) -> Tar {
        self.entry(path, b'0', content, |_| {})
    }

    pub(crate) fn dir(self, path: &str, mode: u32) -> Tar {
        self.entry(path, b'5', b"", |header| header.set_mode(mode))
    }

    pub(crate) fn link(self, path: &str, kind: u8, target: &str) -> Tar {
        self.entry(path, kind, b"", |header| {
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        })
    }

    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let mut content = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let mut length = body + 1;
            while length.to_string().len() + body != length {
                length = length.to_string().len() + body;
            }
            content.extend_from_slice(format!("{length} {key}=").as_bytes());
            content.extend_from_slice(value);
            content.push(b'\n');
        }
        self.entry("pax", b'x', &content, |_| {})
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// Writes an OCI layout of one image with these plain layers. Returns the configuration's digest.
pub(crate) fn layout(directory: &Path, layers: &[Vec<u8>]) -> Digest {
    let blob = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
        fs::write(directory.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        digest
    };
    let digests: Vec<Digest> = layers.iter().map(|layer| blob(layer)).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": digests},
    });
    let config = serde_json::to_vec(&config).unwrap();
    let descriptor = |kind: &str, digest: &Digest, size: usize| serde_json::json!({"mediaType": kind, "digest": digest, "size": size});
    let layer = |(digest, bytes): (&Digest, &Vec<u8>)| {
        descriptor("application/vnd.oci.image.layer.v1.tar", digest, bytes.len())
    };
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": descriptor(media_type::OCI_CONFIG, &blob(&config), config.len()),
        "layers": digests.iter().zip(layers).map(layer).collect::<Vec<_>>(),
    });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let mut top = descriptor(media_type::OCI_MANIFEST, &blob(&manifest), manifest.len());
    top["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "example.com/test:1"});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [top]});
    fs::write(directory.join("index.json"), index.to_string()).unwrap();
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    Digest::of(&config)
}

/// A store in a temporary directory.
pub(crate) struct TestStore {
    pub store: Store,
    pub directory: tempfile::TempDir,
}

impl TestStore {
    pub(crate) fn new() -> TestStore {
        let directory = tempfile::tempdir().unwrap();
        TestStore { store: Store::open(&directory.path().join("store")).unwrap(), directory }
    }

    pub(crate) fn load(&self, layers: &[Vec<u8>]) -> crate::Result<Image> {
        let layout_dir = tempfile::tempdir_in(self.directory.path()).unwrap();
        layout(layout_dir.path(), layers);
        let mut images = self.store.load(layout_dir.path(), &PullOptions::default(), &Silent)?;
        Ok(images.remove(0))
    }

    /// The tree of one layer.
    pub(crate) fn tree(&self, layer: &[u8]) -> PathBuf {
        self.store.layer_path(&Digest::of(layer)).join("fs")
    }
}
