//! A root filesystem for a container that another program makes, mounted where the host does not see it.
//!
//! The caller is a process made for this: it leaves the host's mount namespace for a copy, mounts there, runs the other
//! program and ends. The container keeps its own copy; the caller's goes with it, so nothing can be left on the host.
//!
//! Only the one mount that holds the bundle is cut off from the host, for new mounts beneath it to stay here. All
//! others still take part in propagation, so that a volume may be shared both ways.

use std::path::Path;

use nix::libc;
use nix::mount::{MsFlags, mount};

use crate::create::rootfs_path;
use crate::error::{Context, Result};
use crate::mounts::Planner;
use crate::spec::Spec;
use crate::state::CONFIG;
use crate::{RootfsMount, init, sys};

/// Leaves the mount namespace for a copy in which mounts beneath `place` stay.
pub fn leave_mount_namespace(place: &Path) -> Result<()> {
    sys::unshare(libc::CLONE_NEWNS as u64).op(|| "make a mount namespace")?;
    for path in place.ancestors() {
        match mount(None::<&str>, path, None::<&str>, MsFlags::MS_SLAVE, None::<&str>) {
            // Not a mount point.
            Err(nix::errno::Errno::EINVAL) => continue,
            result => return result.path("cut off from the host the mount at", path),
        }
    }
    Ok(())
}

/// Mounts the root filesystem of the bundle where its config.json has it, in this mount namespace.
pub fn mount_rootfs(bundle: &Path, mounts: &[RootfsMount]) -> Result<()> {
    if mounts.is_empty() {
        return Ok(());
    }
    let (spec, _) = Spec::load(&bundle.join(CONFIG))?;
    let rootfs = rootfs_path(&spec, bundle)?;
    let root = Planner::new(&spec, bundle, &rootfs)?.root(mounts)?;
    init::attach_root(&rootfs, &init::open_directory(&rootfs)?, root).map(drop)
}
