//! /dev of the container: the nodes everyone expects, those of the configuration, and the usual links.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstatat, makedev, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};

use crate::beneath::{self, Kind};
use crate::error::{Context, Error, Result};
use crate::spec::{Device, Spec};
use crate::sys;

const DEFAULT: &[(&str, u64, u64)] = &[
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// One node to make; in a user namespace, where mknod is not allowed, the host's node is bound instead.
pub(crate) struct Node {
    path: PathBuf,
    kind: SFlag,
    device: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    host: Option<OwnedFd>,
}

/// The parent's part: what nodes there will be. `None` of /dev is touched when the configuration binds its own.
pub(crate) fn plan(spec: &Spec, bound_dev: bool) -> Result<Vec<Node>> {
    let in_user_namespace = spec.namespace(crate::spec::NamespaceKind::User).is_some();
    let mut nodes = Vec::new();
    if !bound_dev {
        let asked = |path: &str| spec.linux.devices.iter().any(|d| d.path == Path::new(path));
        for &(path, major, minor) in DEFAULT.iter().filter(|(path, ..)| !asked(path)) {
            let (path, device) = (PathBuf::from(path), makedev(major, minor));
            nodes.push(Node { path, kind: SFlag::S_IFCHR, device, mode: 0o666, uid: 0, gid: 0, host: None });
        }
    }
    // /dev/ptmx is the container's own, a link made by [`links`]; `--privileged` names the host's like any other device.
    for device in spec.linux.devices.iter().filter(|d| bound_dev || d.path != Path::new("/dev/ptmx")) {
        nodes.push(node(device)?);
    }
    if in_user_namespace {
        for node in nodes.iter_mut().filter(|node| node.kind != SFlag::S_IFIFO) {
            node.host = Some(node.open_on_host()?);
        }
    }
    Ok(nodes)
}

/// How deep the host's /dev is searched for a device.
const MAX_DEPTH: usize = 6;

impl Node {
    /// The host's node as a detached mount.
    fn open_on_host(&self) -> Result<OwnedFd> {
        let path = self.on_host()?;
        let c_path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap_or_default();
        sys::clone_tree(sys::CWD, &c_path, false).path("open device of the host", &path)
    }

    /// Binds the host's node at its place.
    fn bind(&self, root: &OwnedFd, host: &OwnedFd) -> Result<()> {
        let what = || format!("bind device {}", self.path.display());
        let target = beneath::target(root, &self.path, Kind::File).op(what)?;
        sys::move_mount(host.as_fd(), target.as_fd()).op(what)
    }

    /// Where the host has this device: at the same path, where udev links it, or anywhere in /dev.
    fn on_host(&self) -> Result<PathBuf> {
        let (major, minor) = (nix::sys::stat::major(self.device), nix::sys::stat::minor(self.device));
        let kind = if self.kind == SFlag::S_IFBLK { "block" } else { "char" };
        let likely = [self.path.clone(), PathBuf::from(format!("/dev/{kind}/{major}:{minor}"))];
        let found = likely.into_iter().find(|path| self.is_at(path)).or_else(|| self.search());
        found.ok_or_else(|| {
            let path = self.path.display();
            Error::invalid(format!(
                "device {path}: the host's /dev has no {kind} device {major}:{minor}, and in a user namespace none can be made"
            ))
        })
    }

    fn is_at(&self, path: &Path) -> bool {
        let found = nix::sys::stat::stat(path);
        found.is_ok_and(|s| s.st_rdev == self.device && s.st_mode & libc::S_IFMT == self.kind.bits())
    }

    fn search(&self) -> Option<PathBuf> {
        let mut folders = vec![(PathBuf::from("/dev"), 0)];
        while let Some((folder, depth)) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() && depth < MAX_DEPTH => folders.push((entry.path(), depth + 1)),
                    Ok(kind) if !kind.is_symlink() && self.is_at(&entry.path()) => return Some(entry.path()),
                    _ => {}
                }
            }
        }
        None
    }
}

fn node(device: &Device) -> Result<Node> {
    let kind = match device.kind.as_str() {
        "c" | "u" => SFlag::S_IFCHR,
        "b" => SFlag::S_IFBLK,
        "p" => SFlag::S_IFIFO,
        other => {
            let message = format!("config.json: device {}: type {other:?} is not c, u, b or p", device.path.display());
            return Err(Error::invalid(message));
        }
    };
    if !device.path.is_absolute() {
        return Err(Error::invalid(format!("config.json: device path {} is not absolute", device.path.display())));
    }
    Ok(Node {
        path: device.path.clone(),
        kind,
        device: if kind == SFlag::S_IFIFO { 0 } else { makedev(device.major as u64, device.minor as u64) },
        // Set-id bits say nothing on a device, and a change of owner would take them away again.
        mode: device.file_mode.unwrap_or(0o666) & 0o777,
        uid: device.uid.unwrap_or(0),
        gid: device.gid.unwrap_or(0),
        host: None,
    })
}

/// The init's part. The parent directory is found without leaving the root; a node that is there and is the same device
/// is kept, anything else in its place is replaced.
pub(crate) fn make(root: &OwnedFd, nodes: Vec<Node>) -> Result<()> {
    // One lookup of /dev serves nearly all.
    let mut last: Option<(PathBuf, OwnedFd)> = None;
    for node in nodes {
        let what = || format!("make device {}", node.path.display());
        if let Some(host) = &node.host {
            node.bind(root, host)?;
            continue;
        }
        let (Some(parent), Some(name)) = (node.path.parent(), node.path.file_name()) else {
            return Err(Error::invalid(format!("config.json: device path {} has no name", node.path.display())));
        };
        if last.as_ref().is_none_or(|(path, _)| path != parent) {
            last = Some((parent.to_owned(), beneath::target(root, parent, Kind::Directory).op(what)?));
        }
        let Some((_, dir)) = &last else { continue };
        // The umask is 0 while the init sets up: mknod gives the mode, and no path is walked a second time for it.
        let mode = Mode::from_bits_truncate(node.mode);
        let mut made = mknodat(dir, name, node.kind, mode, node.device);
        if made == Err(Errno::EEXIST) {
            let found = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW).op(what)?;
            made = Ok(());
            if found.st_mode & libc::S_IFMT != node.kind.bits() || found.st_rdev != node.device {
                unlinkat(dir, name, UnlinkatFlags::NoRemoveDir).op(what)?;
                made = mknodat(dir, name, node.kind, mode, node.device);
            }
        }
        // The runtime itself is in a user namespace, whose root may make none. The host's /dev is still there.
        if made == Err(Errno::EPERM) {
            node.bind(root, &node.open_on_host()?)?;
            continue;
        }
        made.op(what)?;
        if (node.uid, node.gid) != (0, 0) {
            let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
            fchownat(dir, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW).op(what)?;
        }
    }
    Ok(())
}

/// The init's part: /dev/fd and its like, and /dev/ptmx as the container's own.
pub(crate) fn links(root: &OwnedFd) -> Result<()> {
    let dev = beneath::target(root, Path::new("/dev"), Kind::Directory).op(|| "open /dev of the container")?;
    for &(name, to) in LINKS {
        match symlinkat(to, &dev, name) {
            // What the image has there stays: a link made by hand, or a plain file, is the image's choice.
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => return Err(e).op(|| format!("link /dev/{name}")),
        }
    }
    if readlinkat(&dev, "ptmx").is_ok_and(|to| to == "pts/ptmx") {
        return Ok(());
    }
    match unlinkat(&dev, "ptmx", UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(e) => return Err(e).op(|| "replace /dev/ptmx"),
    }
    symlinkat("pts/ptmx", &dev, "ptmx").op(|| "link /dev/ptmx")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Spec {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_default_nodes_are_there_unless_dev_is_bound() {
        assert_eq!(plan(&spec("{}"), false).unwrap().len(), DEFAULT.len());
        assert!(plan(&spec("{}"), true).unwrap().is_empty());
    }

    #[test]
    fn a_configured_node_replaces_the_default_of_its_name() {
        let nodes = plan(
            &spec(r#"{"linux":{"devices":[{"path":"/dev/null","type":"c","major":1,"minor":3,"fileMode":384}]}}"#),
            false,
        )
        .unwrap();
        assert_eq!(nodes.len(), DEFAULT.len());
        assert_eq!(nodes.last().unwrap().mode, 0o600);
    }

    #[test]
    fn an_unknown_type_is_an_error() {
        assert!(plan(&spec(r#"{"linux":{"devices":[{"path":"/dev/x","type":"z"}]}}"#), false).is_err());
    }
}
