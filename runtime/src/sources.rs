//! What a creation takes from the host: the root filesystem, the sources of binds, device nodes, /dev/null for masks.
//!
//! All are detached copies of mounts, opened by whoever has the right over the mount namespace: the parent, or the init
//! of an ordinary user (see `rootless`). Either way they are opened before the process becomes who the container says.

use std::os::fd::OwnedFd;
use std::path::Path;

use crate::devices::{self, Node};
use crate::error::{Context, Result};
use crate::mounts::{Planned, Planner, Root};
use crate::spec::{NamespaceKind, Spec};
use crate::{RootfsMount, idmap, rootless, sys};

/// All of it, opened.
pub(crate) struct Sources {
    pub root: Root,
    pub mounts: Vec<Planned>,
    pub nodes: Vec<Node>,
    /// Whether the configuration binds a /dev of its own.
    pub bound_dev: bool,
    /// The host's /dev/null, to mask files with.
    pub null: Option<OwnedFd>,
}

impl Sources {
    /// The parent's part. `None` when it has no right over mounts: then the init opens them.
    pub fn by_parent(spec: &Spec, bundle: &Path, rootfs: &Path, extra: &[RootfsMount]) -> Result<Option<Sources>> {
        let work = || Sources::with_own_rights(spec, bundle, rootfs, extra);
        // What an ordinary user's init opens in its own namespaces is locked by that.
        match spec.namespace(NamespaceKind::User).is_some() && rootless::may_join() {
            true => idmap::in_locked_mounts(work),
            false => work(),
        }
    }

    fn with_own_rights(spec: &Spec, bundle: &Path, rootfs: &Path, extra: &[RootfsMount]) -> Result<Option<Sources>> {
        let mut planner = Planner::new(spec, bundle, rootfs)?;
        match planner.root(extra) {
            Ok(root) => Sources::open(planner, root).map(Some),
            Err(error) if extra.is_empty() && rootless::is_for_init(&error, spec) => Ok(None),
            Err(error) => Err(rootless::explain(error, spec)),
        }
    }

    /// The init's part, where the parent could not.
    pub fn by_init(spec: &Spec, bundle: &Path, rootfs: &Path) -> Result<Sources> {
        let mut planner = Planner::new(spec, bundle, rootfs)?.in_user_namespace();
        let root = planner.root(&[])?;
        Sources::open(planner, root)
    }

    fn open(mut planner: Planner<'_>, root: Root) -> Result<Sources> {
        let mounts = planner.mounts()?;
        let spec = planner.spec();
        let bound_dev = mounts.iter().any(|m| m.is_bind() && m.destination == Path::new("/dev"));
        let nodes = devices::plan(spec, bound_dev)?;
        let null = match spec.linux.masked_paths.is_empty() {
            true => None,
            false => Some(sys::clone_tree(sys::CWD, c"/dev/null", false).op(|| "open /dev/null of the host")?),
        };
        Ok(Sources { root, mounts, nodes, bound_dev, null })
    }
}
