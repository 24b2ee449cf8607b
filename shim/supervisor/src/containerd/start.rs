//! The address: which socket a container's supervisor has, and how containerd is told.
//!
//! ```text
//! <folder of containerd's socket>/s/<hash>    the task socket of one group; short, because a socket's name may be but 107 bytes
//! <folder that containerd wants>/<hash>       the same, where it wants one
//! <bundle>/address                            the same as text, which containerd 1.6 reads when it starts again, and our `delete`
//! ```
//! The hash is of containerd's address, its namespace and the group, so that every start of the group finds it. A start
//! holds the folder's lock from the look at the socket until somebody listens on it: of two, one begins the supervisor.

use super::Containerd;
use anyhow::{Context, Result};
use coracle_proto::Message;
use coracle_proto::bootstrap::BootstrapResult;
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
const PROTOCOL: &str = "ttrpc";

#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// Whose supervisor runs the container: the group its configuration names, or itself. A sandbox that is made by the sandbox
/// API has no configuration.
pub fn group(bundle: &Path, id: &str) -> Result<String> {
    let path = bundle.join("config.json");
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(id.to_owned()),
        text => text.with_context(|| format!("read {}", path.display()))?,
    };
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
    let beside = || containerd.address.parent().unwrap_or(Path::new("/run/containerd")).join(FOLDER);
    containerd.socket_folder.clone().unwrap_or_else(beside).join(name)
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

/// What `start` prints: the address alone; or with the version of the API, as JSON or as the answer to parameters.
pub fn answer(containerd: &Containerd, socket: &Path) -> Vec<u8> {
    let address = format!("unix://{}", socket.display());
    if containerd.bootstrap {
        // Who writes parameters knows this version, whatever the variable says that is left for older shims.
        let result =
            BootstrapResult { version: VERSION as i32, address, protocol: PROTOCOL.into(), ..Default::default() };
        return result.encode_to_vec();
    }
    match containerd.max_version {
        Some(known @ PLAIN_VERSION..) => {
            let answer = serde_json::json!({ "version": known.min(VERSION), "address": address, "protocol": PROTOCOL });
            answer.to_string().into_bytes()
        }
        _ => address.into_bytes(),
    }
}

/// The socket that was told for this bundle.
pub fn told_address(bundle: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(bundle.join(ADDRESS)).ok()?;
    text.trim().strip_prefix("unix://").map(PathBuf::from)
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
        Containerd { max_version, ..Containerd::for_tests("k8s.io", "/run/containerd/containerd.sock") }
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
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(group(empty.path(), "pod").unwrap(), "pod");
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
        assert_eq!(answer(&containerd(None), path), b"unix:///s/x");
        let json = |max| serde_json::from_slice::<serde_json::Value>(&answer(&containerd(Some(max)), path)).unwrap();
        assert_eq!(json(2)["version"], 2);
        assert_eq!(json(9), serde_json::json!({ "version": 3, "address": "unix:///s/x", "protocol": "ttrpc" }));
        let newest = Containerd { bootstrap: true, ..containerd(Some(2)) };
        let result = BootstrapResult::decode(answer(&newest, path).as_slice()).unwrap();
        assert_eq!((result.version, result.address.as_str(), result.protocol.as_str()), (3, "unix:///s/x", "ttrpc"));
    }

    #[test]
    fn the_socket_is_where_containerd_wants_it() {
        let wanted = Containerd { socket_folder: Some("/short".into()), ..containerd(None) };
        assert!(socket(&wanted, "pod").starts_with("/short"));
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(told_address(dir.path()), None);
        leave_address(dir.path(), Path::new("/short/x")).unwrap();
        assert_eq!(told_address(dir.path()).unwrap(), Path::new("/short/x"));
    }
}
