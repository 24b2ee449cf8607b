//! The address: which socket a container's supervisor has, and how containerd is told.
//!
//! ```text
//! <folder of containerd's socket>/s/<hash>    the task socket of one group; short, because a socket's name may be but 107 bytes
//! <bundle>/address                            the same as text, which containerd 1.6 reads when it starts again
//! ```
//! The hash is of containerd's address, its namespace and the group, so that every start of the group finds it. A start
//! holds the folder's lock from the look at the socket until somebody listens on it: of two, one begins the supervisor.

use super::Containerd;
use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Annotations that name a group, the first that is there counts.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];
/// The folder of sockets beside containerd's own.
const FOLDER: &str = "s";
/// Of the hash in a socket's name.
const HASH_BYTES: usize = 16;
/// The file containerd 1.6 reads.
const ADDRESS: &str = "address";
/// The only version with an address and nothing else.
const PLAIN_VERSION: u32 = 2;
/// The newest version we speak.
const VERSION: u32 = 3;

#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// Whose supervisor runs the container: the group its configuration names, or itself.
pub fn group(bundle: &Path, id: &str) -> Result<String> {
    let path = bundle.join("config.json");
    let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let spec: Spec = serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))?;
    let annotations = spec.annotations.unwrap_or_default();
    Ok(GROUPS.iter().find_map(|key| annotations.get(*key)).map_or(id, String::as_str).to_owned())
}

/// The socket of a group's supervisor.
pub fn socket(containerd: &Containerd, group: &str) -> PathBuf {
    let mut hash = Sha256::new();
    for part in [containerd.address.as_os_str().as_bytes(), containerd.namespace.as_bytes(), group.as_bytes()] {
        hash.update(part);
        hash.update([0]);
    }
    let name: String = hash.finalize().iter().take(HASH_BYTES).map(|byte| format!("{byte:02x}")).collect();
    containerd.address.parent().unwrap_or(Path::new("/run/containerd")).join(FOLDER).join(name)
}

/// Taken until somebody listens on the socket.
pub fn lock(socket: &Path) -> Result<Flock<File>> {
    let folder = socket.parent().unwrap_or(Path::new("/"));
    match DirBuilder::new().recursive(true).mode(0o711).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("make {}", folder.display()));
        }
        _ => {}
    }
    let file = File::open(folder).with_context(|| format!("open {}", folder.display()))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).context("lock the folder of sockets")
}

/// Whether a supervisor listens there.
pub fn listens(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}

/// What `start` prints: the address alone, or with the version of the API, which containerd since 1.7 understands.
pub fn answer(containerd: &Containerd, socket: &Path) -> String {
    let address = format!("unix://{}", socket.display());
    match containerd.max_version {
        Some(known @ PLAIN_VERSION..) => {
            serde_json::json!({ "version": known.min(VERSION), "address": address, "protocol": "ttrpc" }).to_string()
        }
        _ => address,
    }
}

/// Leaves the address for a containerd that starts again.
pub fn leave_address(bundle: &Path, socket: &Path) -> Result<()> {
    let (temporary, path) = (bundle.join(".address"), bundle.join(ADDRESS));
    let written = fs::write(&temporary, format!("unix://{}", socket.display()));
    written.and_then(|()| fs::rename(&temporary, &path)).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn containerd(max_version: Option<u32>) -> Containerd {
        Containerd {
            namespace: "k8s.io".into(),
            address: "/run/containerd/containerd.sock".into(),
            ttrpc_address: PathBuf::new(),
            max_version,
        }
    }

    #[test]
    fn the_group_is_that_of_the_first_annotation_or_the_container_itself() {
        let dir = tempfile::tempdir().unwrap();
        let write = |text: &str| fs::write(dir.path().join("config.json"), text).unwrap();
        write(r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#);
        assert_eq!(group(dir.path(), "web").unwrap(), "pod");
        write(r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"all"}}"#);
        assert_eq!(group(dir.path(), "web").unwrap(), "all");
        for without in ["{}", r#"{"annotations":null}"#] {
            write(without);
            assert_eq!(group(dir.path(), "web").unwrap(), "web");
        }
        write("{");
        assert!(group(dir.path(), "web").unwrap_err().to_string().contains("config.json"));
    }

    #[test]
    fn sockets_differ_by_all_that_makes_a_group_and_are_short() {
        let one = socket(&containerd(None), "pod");
        assert!(one.starts_with("/run/containerd/s") && one.as_os_str().len() < 60, "{}", one.display());
        assert_ne!(one, socket(&containerd(None), "other"));
        assert_ne!(one, socket(&Containerd { namespace: "default".into(), ..containerd(None) }, "pod"));
        let elsewhere = Containerd { address: "/run/containerd/two.sock".into(), ..containerd(None) };
        assert_ne!(one, socket(&elsewhere, "pod"));
    }

    #[test]
    fn the_answer_is_in_the_form_containerd_knows() {
        let path = Path::new("/s/x");
        assert_eq!(answer(&containerd(None), path), "unix:///s/x");
        let json = |max| serde_json::from_str::<serde_json::Value>(&answer(&containerd(Some(max)), path)).unwrap();
        assert_eq!(json(2)["version"], 2);
        assert_eq!(json(9), serde_json::json!({ "version": 3, "address": "unix:///s/x", "protocol": "ttrpc" }));
    }
}
