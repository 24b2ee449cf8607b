//! Idmapped mounts: a mount that shows its files' owners by the maps of a user namespace.
//!
//! ```text
//! bind mounts      mount_setattr(MOUNT_ATTR_IDMAP) on the detached copy
//! overlay          cannot be idmapped itself: each lower layer is, and the overlay is made of those
//! ```
//! The maps are a user namespace's. Where they are the container's own that namespace is used; for others one is made,
//! held by its descriptor alone. All of this is the parent's part: it takes rights over the filesystem, which nobody in
//! the container's user namespace has.
//!
//! Overlay takes its layers by path. On kernels before 6.15 only mounts that are attached in the caller's mount namespace
//! will do, so they are attached in one that exists for that moment ([`in_private_mounts`]): the host never sees them.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, chroot, fchdir};

use crate::error::{Context, Error, Result};
use crate::rootless;
use crate::spec::{IdMapping, NamespaceKind, Spec};
use crate::sys::{self, MountAttr};

impl Spec {
    /// Those of the container's own user namespace.
    pub(crate) fn maps(&self) -> Maps {
        Maps { uids: self.linux.uid_mappings.clone(), gids: self.linux.gid_mappings.clone() }
    }
}

/// Maps of user ids and of group ids.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Maps {
    pub uids: Vec<IdMapping>,
    pub gids: Vec<IdMapping>,
}

/// The user namespaces of one creation, each made once.
pub(crate) struct Namespaces<'a> {
    spec: &'a Spec,
    known: Vec<(Maps, Rc<OwnedFd>)>,
}

impl<'a> Namespaces<'a> {
    pub fn new(spec: &'a Spec) -> Self {
        Namespaces { spec, known: Vec::new() }
    }

    /// The namespace with the container's own maps.
    pub fn container(&mut self) -> Result<Rc<OwnedFd>> {
        match self.spec.namespace(NamespaceKind::User).map(|namespace| namespace.joins()) {
            None => Err(Error::invalid(
                "config.json: the mount option idmap needs a user namespace, or uidMappings and gidMappings",
            )),
            Some(Some(path)) => {
                let file = File::open(path).op(|| format!("open user namespace {}", path.display()))?;
                Ok(Rc::new(file.into()))
            }
            Some(None) => self.with(&self.spec.maps()),
        }
    }

    /// A namespace with these maps.
    pub fn with(&mut self, maps: &Maps) -> Result<Rc<OwnedFd>> {
        if maps.uids.is_empty() || maps.gids.is_empty() {
            return Err(Error::invalid("config.json: an idmapped mount needs both, uidMappings and gidMappings"));
        }
        if let Some((_, fd)) = self.known.iter().find(|(known, _)| known == maps) {
            return Ok(fd.clone());
        }
        let linux = &self.spec.linux;
        let own = linux.uid_mappings == maps.uids && linux.gid_mappings == maps.gids;
        let joined = self.spec.namespace(NamespaceKind::User).and_then(|namespace| namespace.joins());
        let fd = match joined.filter(|_| own) {
            Some(_) => self.container()?,
            None => Rc::new(make(maps)?),
        };
        self.known.push((maps.clone(), fd.clone()));
        Ok(fd)
    }
}

/// A user namespace with these maps, and nobody in it.
fn make(maps: &Maps) -> Result<OwnedFd> {
    let holder = Holder::new(libc::CLONE_NEWUSER)
        .op(|| "make a user namespace for an idmapped mount (user.max_user_namespaces?)")?;
    let path = format!("/proc/{}/ns/user", holder.pid);
    let namespace =
        rootless::write_maps(holder.pid, maps).and_then(|()| File::open(&path).op(|| format!("open {path}")));
    namespace.map(OwnedFd::from)
}

/// Writes `uid_map` or `gid_map` of a process's new user namespace.
pub(crate) fn write_map(pid: i32, file: &str, maps: &[IdMapping]) -> Result<()> {
    let text: String = maps.iter().map(|m| format!("{} {} {}\n", m.container_id, m.host_id, m.size)).collect();
    let path = format!("/proc/{pid}/{file}");
    let written = OpenOptions::new().write(true).open(&path).and_then(|mut f| f.write_all(text.as_bytes()));
    written.op(|| format!("write {path}"))
}

/// What an id of the container is on the host.
pub(crate) fn host_id(maps: &[IdMapping], id: u32) -> Option<u32> {
    let found = maps.iter().find(|m| id.checked_sub(m.container_id).is_some_and(|offset| offset < m.size))?;
    found.host_id.checked_add(id - found.container_id)
}

/// containerd's words for the maps of a root filesystem: `0:65536:65536`, several with commas between.
pub(crate) fn parse(text: &str) -> Result<Vec<IdMapping>> {
    let bad = || Error::invalid(format!("id map {text:?} is not CONTAINER:HOST:SIZE[,...]"));
    let one = |part: &str| {
        let mut numbers = part.split(':').map(|n| n.parse::<u32>().ok());
        let (container_id, host_id, size) = (numbers.next()??, numbers.next()??, numbers.next()??);
        numbers.next().is_none().then_some(IdMapping { container_id, host_id, size })
    };
    text.split(',').map(|part| one(part).ok_or_else(bad)).collect()
}

/// Idmaps a detached mount, and with `recursive` all beneath it.
pub(crate) fn apply(tree: &OwnedFd, namespace: &OwnedFd, recursive: bool) -> std::io::Result<()> {
    let userns_fd = namespace.as_raw_fd() as u64;
    sys::mount_setattr(
        tree.as_fd(),
        recursive,
        &MountAttr { set: libc::MOUNT_ATTR_IDMAP, userns_fd, ..Default::default() },
    )
}

/// The likely cause of a refused idmap.
pub(crate) const HINT: &str =
    "idmap (does its filesystem support idmapped mounts, is it not one already, and is this the host's root?)";

/// Runs `work` in a mount namespace that ends with it; what `work` takes out of it are detached mounts.
pub(crate) fn in_private_mounts<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let enter = || {
        sys::unshare(libc::CLONE_NEWNS as u64).op(|| "make a mount namespace")?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).op(|| "make the mounts private")
    };
    away(enter, work)
}

/// Runs `work` in a copy of this mount namespace that belongs to a user namespace beneath: what `work` takes out of it
/// carries the kernel's locks. Nobody in a user namespace can then clear a flag that the host has set on a mount
/// (`ro`, `nosuid`), or uncover what the host has mounted over.
pub(crate) fn in_locked_mounts<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let holder = Holder::new(libc::CLONE_NEWUSER | libc::CLONE_NEWNS)
        .op(|| "make a user namespace for the container's mounts (user.max_user_namespaces?)")?;
    let path = format!("/proc/{}/ns/mnt", holder.pid);
    File::open(&path).op(|| format!("open {path}")).and_then(|namespace| {
        let root = || nix::sys::stat::stat("/").map(|stat| (stat.st_dev, stat.st_ino)).op(|| "stat /");
        let own = root()?;
        let enter = || {
            sys::setns(namespace.as_fd(), libc::CLONE_NEWNS).op(|| "join the copy of the mount namespace")?;
            // It has the root of the mount namespace, whatever ours is.
            match root()? == own {
                true => Ok(()),
                false => Err(Error::invalid("containers with a user namespace cannot be made from within a chroot")),
            }
        };
        away(enter, work)
    })
}

/// Goes to another mount namespace, works there, and comes back.
fn away<T>(enter: impl FnOnce() -> Result<()>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let handle = |path: &str| sys::retry(|| open(path, flags, Mode::empty())).op(|| format!("open {path}"));
    let own = File::open("/proc/self/ns/mnt").op(|| "open /proc/self/ns/mnt")?;
    let (root, cwd) = (handle("/")?, handle(".")?);
    let result = enter().and_then(|()| work());
    // Joining a mount namespace changes root and working directory, too.
    let back = || -> nix::Result<()> {
        nix::sched::setns(&own, nix::sched::CloneFlags::CLONE_NEWNS)?;
        fchdir(&root)?;
        chroot(".")?;
        fchdir(&cwd)
    };
    back().op(|| "return to the mount namespace")?;
    result
}

/// A process that is there to hold new namespaces: it ends with this value, or with its parent.
struct Holder {
    pid: i32,
    /// It waits for the end of this pipe.
    release: Option<OwnedFd>,
}

impl Holder {
    fn new(namespaces: libc::c_int) -> std::io::Result<Holder> {
        let (wait, release) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        match sys::clone3(namespaces as u64, None, libc::SIGCHLD)? {
            Some(pid) => Ok(Holder { pid, release: Some(release) }),
            None => {
                drop(release);
                let _ = sys::retry(|| nix::unistd::read(&wait, &mut [0]));
                sys::exit_now(0)
            }
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.release = None;
        let _ = sys::retry(|| waitpid(Pid::from_raw(self.pid), None));
    }
}

/// Attaches each layer, idmapped, beneath `top`, which becomes the working directory. Returns their names there.
pub(crate) fn attach_layers(top: &OwnedFd, layers: &[String], namespace: &OwnedFd) -> Result<Vec<String>> {
    fchdir(top).op(|| "enter the layers' directory")?;
    let mut names = Vec::with_capacity(layers.len());
    for (index, layer) in layers.iter().enumerate() {
        let path = Path::new(layer);
        let c_path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::invalid("lowerdir: a NUL byte"))?;
        let tree = sys::clone_tree(sys::CWD, &c_path, false).path("open layer", path)?;
        apply(&tree, namespace, false).op(|| format!("layer {layer}: {HINT}"))?;
        let name = index.to_string();
        nix::sys::stat::mkdirat(top, name.as_str(), Mode::S_IRWXU).op(|| "make a layer's directory")?;
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let point = sys::retry(|| nix::fcntl::openat(top, name.as_str(), flags, Mode::empty()));
        let point = point.op(|| "open a layer's directory")?;
        sys::move_mount(tree.as_fd(), point.as_fd()).path("attach layer", path)?;
        names.push(name);
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &[IdMapping] =
        &[IdMapping { container_id: 0, host_id: 1000, size: 10 }, IdMapping { container_id: 100, host_id: 7, size: 1 }];

    #[test]
    fn ids_are_looked_up_in_every_range() {
        assert_eq!((host_id(MAPS, 0), host_id(MAPS, 9), host_id(MAPS, 10)), (Some(1000), Some(1009), None));
        assert_eq!((host_id(MAPS, 100), host_id(MAPS, 101)), (Some(7), None));
    }

    #[test]
    fn containerds_words_are_read() {
        assert_eq!(parse("0:1000:10,100:7:1").unwrap(), MAPS);
        for bad in ["", "0:1", "0:1:2:3", "a:1:2", "0:1:2,", "0:-1:2"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_private_mount_namespace_ends_with_its_work() {
        let before = (std::env::current_dir().unwrap(), std::fs::read_link("/proc/thread-self/ns/mnt").unwrap());
        // A thread shares its root and working directory with the others, which setns refuses: as the runtime, a fork.
        let Some(pid) = sys::clone3(0, None, libc::SIGCHLD).unwrap() else {
            let inside = in_private_mounts(|| std::fs::read_link("/proc/self/ns/mnt").op(|| "read")).unwrap();
            let after = (std::env::current_dir().unwrap(), std::fs::read_link("/proc/self/ns/mnt").unwrap());
            sys::exit_now(i32::from(inside == before.1 || after != before));
        };
        let status = waitpid(Pid::from_raw(pid), None).unwrap();
        assert_eq!(status, nix::sys::wait::WaitStatus::Exited(Pid::from_raw(pid), 0));
    }
}
