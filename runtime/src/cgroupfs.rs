//! The container's view of the cgroup filesystem.
//!
//! v2: one cgroup2 mount. v1: a tmpfs with one directory per hierarchy, each the container's own cgroup: a fresh cgroup
//! mount inside a cgroup namespace, else a bind of the host's directory. Symlinks give co-mounted controllers
//! (`cpu,cpuacct`) their single names. A user namespace without a cgroup namespace sees the host's v2, read-only.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::beneath::Kind;
use crate::error::{Context, Result};
use crate::options::Options;
use crate::sys::{self, MountAttr};
use crate::{beneath, mounts};

/// Where the host has its hierarchies.
const HOST: &str = "/sys/fs/cgroup";

/// One hierarchy of /proc/self/cgroup.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy<'a> {
    /// `cpu,cpuacct` or `name=systemd`.
    controllers: &'a str,
    /// The process's cgroup in it.
    path: &'a str,
}

impl Hierarchy<'_> {
    /// The name of its directory.
    fn directory(&self) -> &str {
        self.controllers.strip_prefix("name=").unwrap_or(self.controllers)
    }
}

fn hierarchies(proc_self_cgroup: &str) -> Vec<Hierarchy<'_>> {
    proc_self_cgroup
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            (!controllers.is_empty()).then_some(Hierarchy { controllers, path })
        })
        .collect()
}

/// Attaches the cgroup filesystem at `destination`; `own` is /proc/self/cgroup of the init, read after it joined.
pub(crate) fn attach(root: &OwnedFd, destination: &Path, options: &Options, own: &str, namespaced: bool) -> Result<()> {
    let what = || format!("mount cgroup on {}", destination.display());
    let target = mounts::find_target(root, destination, Kind::Directory)?;
    let attr = MountAttr { set: options.attr.set | options.deep.set, ..Default::default() };
    if statfs(HOST).op(|| format!("statfs {HOST}"))?.filesystem_type() == CGROUP2_SUPER_MAGIC {
        let tree = match mounts::detached("cgroup2", "cgroup", &[]) {
            // In a user namespace without a cgroup namespace of its own. What the host shows is shown then, and never
            // writable: the user's other cgroups are in it.
            Err(e) if !namespaced && e.errno() == Some(libc::EPERM) => host_read_only().op(what)?,
            made => made?,
        };
        sys::mount_setattr(tree.as_fd(), false, &attr).op(what)?;
        return sys::move_mount(tree.as_fd(), target.as_fd()).op(what);
    }
    let top = mounts::detached("tmpfs", "tmpfs", &["nosuid", "nodev", "noexec", "mode=755", "size=64k"])?;
    sys::move_mount(top.as_fd(), target.as_fd()).op(what)?;
    for hierarchy in hierarchies(own) {
        let directory = Path::new(hierarchy.directory());
        let tree = if namespaced { fresh(&hierarchy)? } else { bind(&hierarchy)? };
        // Co-mounted controllers may have a directory under either order of names; the host's is not ours to follow.
        sys::mount_setattr(tree.as_fd(), false, &attr).op(what)?;
        let point = beneath::target(&top, directory, Kind::Directory).path("make cgroup directory", directory)?;
        sys::move_mount(tree.as_fd(), point.as_fd()).path("mount cgroup hierarchy", directory)?;
        for single in hierarchy.directory().split(',').filter(|c| *c != hierarchy.directory()) {
            nix::unistd::symlinkat(directory, &top, single).path("link cgroup controller", Path::new(single))?;
        }
    }
    if attr.set & libc::MOUNT_ATTR_RDONLY != 0 {
        mounts::read_only(&top, false).op(what)?;
    }
    Ok(())
}

fn host_read_only() -> std::io::Result<OwnedFd> {
    let path = CString::new(HOST)?;
    let tree = sys::clone_tree(sys::CWD, &path, true)?;
    mounts::read_only(&tree, true)?;
    Ok(tree)
}

fn fresh(hierarchy: &Hierarchy<'_>) -> Result<OwnedFd> {
    let words: Vec<&str> = match hierarchy.controllers.strip_prefix("name=") {
        Some(_) => vec!["none", hierarchy.controllers],
        None => hierarchy.controllers.split(',').collect(),
    };
    mounts::detached("cgroup", "cgroup", &words)
}

fn bind(hierarchy: &Hierarchy<'_>) -> Result<OwnedFd> {
    let path = Path::new(HOST).join(hierarchy.directory()).join(hierarchy.path.trim_start_matches('/'));
    let c_path = CString::new(path.as_os_str().as_encoded_bytes()).unwrap_or_default();
    sys::clone_tree(sys::CWD, &c_path, false).path("open cgroup", &path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_read_and_the_unified_one_is_left_out() {
        let text = "12:cpu,cpuacct:/a/b\n3:name=systemd:/x:y\n0::/\n";
        let found = hierarchies(text);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], Hierarchy { controllers: "cpu,cpuacct", path: "/a/b" });
        assert_eq!(found[1].directory(), "systemd");
        assert_eq!(found[1].path, "/x:y");
    }
}
