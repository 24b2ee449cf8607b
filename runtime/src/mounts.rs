//! Mounts of the configuration: planned by the parent, attached by the init.
//!
//! The parent opens everything that comes from the host: a bind mount's source, and the root filesystem, as *detached*
//! copies (open_tree), and overlay roots as detached new mounts (fsmount). It has the rights to (a user namespace's
//! root may not), an error is known before any process exists, and the host's own mount table never shows them.
//! Overlays, which take rights over the host's files, are made there as well, idmapped if asked for (see `idmap`).
//! Where the parent has no such rights, the init opens all that itself (see `sources`), and makes overlays, too.
//! The init makes what belongs to its namespaces (proc, sysfs, mqueue, devpts, tmpfs) and attaches all, each to a
//! descriptor found by [`crate::beneath`]. Attributes are set while a mount is still detached: nobody ever sees a
//! read-only mount writable.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::sys::stat::fstat;

use crate::beneath::{self, Kind};
use crate::error::{Context, Error, Result};
use crate::idmap::{self, Maps, Namespaces};
use crate::options::{self, Options};
use crate::spec::{Mount, Spec};
use crate::sys::{self, MountAttr};
use crate::{RootfsMount, copyup, lsm, rootless};

/// fsconfig takes no longer strings.
const MAX_FSCONFIG_VALUE: usize = 255;

/// Why an ordinary user gets no such mount.
const NOT_ROOT: &str = "idmapped mounts and parts of overlays take rights over the host's filesystems";

/// The likely cause of a bind that fails inside a user namespace.
fn bind_hint(error: &std::io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EINVAL) => {
            " (in a user namespace a directory is bound with all that is mounted beneath it: option rbind)"
        }
        _ => "",
    }
}

/// The likely cause of a part that cannot be opened.
fn part_hint(error: &std::io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EXDEV) => " (it, or a symlink on the way to it, leads out of the volume)",
        Some(libc::ELOOP) => " (a symlink is on the way to it)",
        _ => bind_hint(error),
    }
}

/// Filesystems without a device beneath: their superblock is shared or theirs alone, and `ro` is the mount's matter.
const PSEUDO: &[&str] =
    &["proc", "sysfs", "tmpfs", "ramfs", "devpts", "mqueue", "cgroup", "cgroup2", "overlay", "bpf", "debugfs"];

/// One mount, ready for the init.
pub(crate) struct Planned {
    pub destination: PathBuf,
    options: Options,
    source: Source,
}

enum Source {
    /// A detached copy of what is bound, or a detached overlay.
    Tree(OwnedFd, Kind),
    /// A filesystem to be made in the container's namespaces.
    Filesystem { fstype: String, source: String },
    /// The cgroup filesystem, in the shape the host has.
    Cgroup,
    /// What is mounted there already.
    Mounted,
}

/// How the init gets its root filesystem.
pub(crate) enum Root {
    /// Detached mounts: the root, then what goes beneath it.
    Detached(Vec<(PathBuf, OwnedFd)>),
    /// A kernel that cannot take these options through fsconfig: mount(2), by the init.
    Legacy { fstype: String, source: String, flags: u64, data: String },
}

/// What the container's mounts inherit: `linux.rootfsPropagation`, by default slave. Nothing that is mounted inside
/// may reach the host unless the configuration says shared.
pub(crate) fn base_propagation(spec: &Spec) -> u64 {
    let word = spec.linux.rootfs_propagation.as_deref().unwrap_or_default();
    match options::propagation(word) {
        None => libc::MS_SLAVE,
        // What nobody may copy the runtime could not either, who makes parts of it read-only by copies. In the end the
        // root becomes what it shall be.
        Some((libc::MS_UNBINDABLE, _)) => libc::MS_PRIVATE,
        Some((flag, _)) => flag,
    }
}

fn set_propagation(fd: &OwnedFd, flag: u64, recursive: bool) -> std::io::Result<()> {
    sys::mount_setattr(fd.as_fd(), recursive, &MountAttr { propagation: flag, ..Default::default() })
}

/// What every mount of a creation is planned with.
pub(crate) struct Planner<'a> {
    spec: &'a Spec,
    bundle: &'a Path,
    /// The root filesystem's directory: in a mount namespace of the moment, other things may be attached there.
    point: &'a Path,
    namespaces: Namespaces<'a>,
    label: Option<&'a str>,
    /// Whether this is the init, in its user namespace.
    in_init: bool,
}

impl<'a> Planner<'a> {
    pub fn new(spec: &'a Spec, bundle: &'a Path, point: &'a Path) -> Result<Self> {
        let namespaces = Namespaces::new(spec);
        Ok(Planner { spec, bundle, point, namespaces, label: lsm::mount_label(spec)?, in_init: false })
    }

    /// The same for the init, which has rights over its own namespaces alone.
    pub fn in_user_namespace(self) -> Self {
        Planner { in_init: true, ..self }
    }

    /// The configuration.
    pub fn spec(&self) -> &'a Spec {
        self.spec
    }

    /// The parent's part: parses every mount and opens what comes from the host.
    pub fn mounts(&mut self) -> Result<Vec<Planned>> {
        let spec = self.spec;
        spec.mounts.iter().map(|mount| self.mount(mount)).collect()
    }

    fn mount(&mut self, mount: &Mount) -> Result<Planned> {
        let what = mount.destination.display().to_string();
        let kind = mount.kind.as_deref().unwrap_or_default();
        let mut options = options::parse(&mount.options, &what)?;
        let idmapped = options.id_map.is_some() || !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty();
        let bad = |why: &str| Error::invalid(format!("config.json: mount {what}: {why}"));
        options.bind |= kind == "bind";
        if !options.bind && kind != "overlay" && (idmapped || options.sub_path.is_some()) {
            return Err(bad(&format!("a mount of type {kind:?} cannot be idmapped; bind mounts and overlays can")));
        }
        if self.in_init && (idmapped || (options.sub_path.is_some() && !options.bind)) {
            return Err(Error::Refused { field: format!("mount {what}"), reason: NOT_ROOT.into() });
        }
        let source = if options.remount {
            if options.bind && !options.data.is_empty() {
                return Err(bad(&format!("{:?} is no option of a bind mount", options.data[0])));
            }
            Source::Mounted
        } else if options.bind {
            if let Some(word) = options.data.first() {
                return Err(bad(&format!("{word:?} is no option of a bind mount")));
            }
            self.bind(mount, &options, idmapped, &what)?
        } else if kind == "cgroup" || kind == "cgroup2" {
            Source::Cgroup
        } else if kind.is_empty() {
            return Err(bad("it has neither a type nor the option bind"));
        } else {
            lsm::label_mount(&mut options, kind, self.label);
            let source = mount.source.as_ref().map_or(kind.to_owned(), |s| s.display().to_string());
            if kind == "overlay" && !self.in_init {
                let namespace = if idmapped { Some(self.namespace_of(mount)?) } else { None };
                let (tree, kind) = overlay(&source, &options, namespace.as_deref(), self.point)
                    .map_err(|e| with_object(e, &mount.destination))?;
                Source::Tree(tree, kind)
            } else {
                Source::Filesystem { fstype: kind.to_owned(), source }
            }
        };
        Ok(Planned { destination: mount.destination.clone(), options, source })
    }

    fn bind(&mut self, mount: &Mount, options: &Options, idmapped: bool, what: &str) -> Result<Source> {
        let path = mount.source.as_deref().unwrap_or(Path::new(""));
        let (whole, base) = (self.bundle.join(path), base_propagation(self.spec));
        let (tree, kind) = match &options.sub_path {
            Some(sub) => clone_part(&whole, sub, options.recursive, base).map_err(|e| {
                let hint = part_hint(&e);
                let what = format!("bind mount {} of {} on {what}: open it{hint}", sub.display(), path.display());
                Error::Os { what, cause: e }
            })?,
            None => clone_host_tree(&whole, options.recursive, base).map_err(|e| {
                let hint = bind_hint(&e);
                Error::Os { what: format!("bind mount {} on {what}: open the source{hint}", path.display()), cause: e }
            })?,
        };
        if idmapped {
            let namespace = self.namespace_of(mount)?;
            let deep = options.id_map == Some(options::Depth::Tree);
            idmap::apply(&tree, &namespace, deep)
                .op(|| format!("bind mount {} on {what}: {}", path.display(), idmap::HINT))?;
        }
        Ok(Source::Tree(tree, kind))
    }

    /// The user namespace of an idmapped mount: by its maps, or else the container's.
    fn namespace_of(&mut self, mount: &Mount) -> Result<Rc<OwnedFd>> {
        if mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty() {
            return self.namespaces.container();
        }
        self.namespaces.with(&Maps { uids: mount.uid_mappings.clone(), gids: mount.gid_mappings.clone() })
    }

    /// The namespace of a root filesystem with containerd's words `uidmap=` and `gidmap=`, which are taken away.
    fn take_maps(&mut self, options: &mut Options) -> Result<Option<Rc<OwnedFd>>> {
        let mut take = |key: &str| {
            let at = options.data.iter().position(|option| option.starts_with(key))?;
            Some(options.data.remove(at)[key.len()..].to_owned())
        };
        match (take("uidmap="), take("gidmap=")) {
            (None, None) => Ok(None),
            (uids, gids) => {
                let parse = |maps: Option<String>| maps.map_or(Ok(Vec::new()), |maps| idmap::parse(&maps));
                self.namespaces.with(&Maps { uids: parse(uids)?, gids: parse(gids)? }).map(Some)
            }
        }
    }
}

/// A detached overlay, or a part of one, with its lower layers idmapped if there is a namespace.
fn overlay(source: &str, options: &Options, namespace: Option<&OwnedFd>, point: &Path) -> Result<(OwnedFd, Kind)> {
    if namespace.is_none() && options.sub_path.is_none() {
        return Ok((new_filesystem("overlay", source, options)?, Kind::Directory));
    }
    idmap::in_private_mounts(|| {
        let mut options = options.clone();
        let attach = |tree: &OwnedFd| {
            let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC;
            let target =
                sys::retry(|| nix::fcntl::open(point, flags, nix::sys::stat::Mode::empty())).path("open", point)?;
            sys::move_mount(tree.as_fd(), target.as_fd()).path("mount on", point)
        };
        if let Some(namespace) = namespace {
            let top = detached("tmpfs", "tmpfs", &["mode=700", "size=1m"])?;
            attach(&top)?;
            let lower = options.data.iter_mut().find_map(|option| option.strip_prefix("lowerdir=").map(split_layers));
            let layers = lower.ok_or_else(|| Error::invalid("an overlay without lowerdir cannot be idmapped"))?;
            let names = idmap::attach_layers(&top, &layers, namespace)?;
            options.data.retain(|option| !option.starts_with("lowerdir="));
            options.data.push(format!("lowerdir={}", names.join(":")));
        }
        let tree = new_filesystem("overlay", source, &options)?;
        let Some(sub) = &options.sub_path else { return Ok((tree, Kind::Directory)) };
        // A part can only be copied of what is attached. Links in the path end at the overlay's own root.
        attach(&tree)?;
        let part = beneath::open(&tree, sub, libc::O_PATH).op(|| format!("open {} in the image", sub.display()))?;
        let copy = sys::clone_tree(part.as_raw_fd(), c"", false).path("copy the mount of", sub)?;
        let directory = fstat(&part).path("stat", sub)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
        Ok((copy, if directory { Kind::Directory } else { Kind::File }))
    })
}

/// A detached copy of a tree of the host, cut off from the host's propagation.
fn clone_host_tree(path: &Path, recursive: bool, base: u64) -> std::io::Result<(OwnedFd, Kind)> {
    let c_path = CString::new(path.as_os_str().as_bytes()).map_err(std::io::Error::other)?;
    cut_off(sys::clone_tree(sys::CWD, &c_path, recursive)?, base)
}

/// The same of what is at `sub` beneath `whole`, which somebody may be changing at this moment: it is found by one
/// look-up that cannot leave `whole`, and what was found is what is copied.
fn clone_part(whole: &Path, sub: &Path, recursive: bool, base: u64) -> std::io::Result<(OwnedFd, Kind)> {
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC;
    let whole = sys::retry(|| nix::fcntl::open(whole, flags, nix::sys::stat::Mode::empty()))?;
    let part = beneath::open_strictly(&whole, sub, libc::O_PATH)?;
    cut_off(sys::clone_tree(part.as_raw_fd(), c"", recursive)?, base)
}

/// A part of the host's tree that becomes the root: a peer of nobody, or what is mounted in it would be mounted in the host's
/// folder as well, and pivot_root takes none that is shared. It becomes what it shall be in the end.
fn clone_root(path: &Path, recursive: bool, base: u64) -> std::io::Result<(OwnedFd, Kind)> {
    let (tree, kind) = clone_host_tree(path, recursive, base)?;
    if base == libc::MS_SHARED {
        set_propagation(&tree, libc::MS_PRIVATE, false)?;
    }
    Ok((tree, kind))
}

fn cut_off(tree: OwnedFd, base: u64) -> std::io::Result<(OwnedFd, Kind)> {
    if base != libc::MS_SHARED {
        set_propagation(&tree, base, true)?;
    }
    let directory = fstat(&tree)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
    Ok((tree, if directory { Kind::Directory } else { Kind::File }))
}

impl Planner<'_> {
    /// The parent's part for the root filesystem.
    pub fn root(&mut self, mounts: &[RootfsMount]) -> Result<Root> {
        let (base, rootfs) = (base_propagation(self.spec), self.point);
        if mounts.is_empty() {
            let (tree, kind) = clone_root(rootfs, true, base).path("open root filesystem", rootfs)?;
            if kind == Kind::File {
                return Err(Error::invalid(format!("root filesystem {} is not a directory", rootfs.display())));
            }
            return Ok(Root::Detached(vec![(PathBuf::from("/"), tree)]));
        }
        let mut trees = Vec::new();
        for mount in mounts {
            let what = || format!("mount {} {} as the root filesystem", mount.fstype, mount.source);
            let mut options = options::parse(&mount.options, &mount.target)?;
            let target = Path::new("/").join(mount.target.trim_start_matches('/'));
            if options.bind || mount.fstype == "bind" {
                let (tree, _) = clone_root(Path::new(&mount.source), options.recursive, base).op(what)?;
                set_attributes(&tree, &options).op(what)?;
                trees.push((target, tree));
                continue;
            }
            lsm::label_mount(&mut options, &mount.fstype, self.label);
            if mount.fstype == "overlay"
                && let Some(namespace) = self.take_maps(&mut options)?
            {
                trees.push((target, overlay(&mount.source, &options, Some(&namespace), rootfs)?.0));
                continue;
            }
            match new_filesystem(&mount.fstype, &mount.source, &options) {
                Ok(tree) => trees.push((target, tree)),
                // Before Linux 6.8 overlay has no `lowerdir+`, and a long lowerdir fits through mount(2) alone.
                Err(Error::Os { cause, .. })
                    if mounts.len() == 1 && cause.raw_os_error() == Some(libc::EINVAL) && has_long_value(&options) =>
                {
                    return Ok(Root::Legacy {
                        fstype: mount.fstype.clone(),
                        source: mount.source.clone(),
                        flags: legacy_flags(&options),
                        data: options.data.join(","),
                    });
                }
                Err(e) => return Err(e),
            }
        }
        Ok(Root::Detached(trees))
    }
}

fn has_long_value(options: &Options) -> bool {
    options.data.iter().any(|d| d.len() > MAX_FSCONFIG_VALUE)
}

fn legacy_flags(options: &Options) -> u64 {
    let pairs = [
        (libc::MOUNT_ATTR_RDONLY, libc::MS_RDONLY),
        (libc::MOUNT_ATTR_NOSUID, libc::MS_NOSUID),
        (libc::MOUNT_ATTR_NODEV, libc::MS_NODEV),
        (libc::MOUNT_ATTR_NOEXEC, libc::MS_NOEXEC),
        (libc::MOUNT_ATTR_NOATIME, libc::MS_NOATIME),
    ];
    pairs.iter().filter(|(attr, _)| options.attr.set & attr != 0).fold(0, |flags, (_, flag)| flags | flag)
}

/// Makes a filesystem and a detached mount of it.
fn new_filesystem(fstype: &str, source: &str, options: &Options) -> Result<OwnedFd> {
    let what = || format!("mount {fstype}");
    let fs = sys::fsopen(fstype).map_err(|cause| {
        let why = match cause.raw_os_error() {
            Some(libc::EPERM) => rootless::mount_hint(fstype),
            _ => ": the kernel knows no such filesystem",
        };
        Error::Os { what: format!("mount {fstype}{why}"), cause }
    })?;
    let explain = |error: std::io::Error, step: &str| {
        let words = sys::fs_message(&fs).map(|m| format!(" (kernel: {m})")).unwrap_or_default();
        let hint = if error.raw_os_error() == Some(libc::EPERM) { rootless::mount_hint(fstype) } else { "" };
        Error::Os { what: format!("{}: {step}{words}{hint}", what()), cause: error }
    };
    sys::fsconfig_string(&fs, "source", source).map_err(|e| explain(e, "source"))?;
    for option in &options.data {
        let result = match option.split_once('=') {
            Some(("lowerdir", layers)) if layers.len() > MAX_FSCONFIG_VALUE => {
                split_layers(layers).iter().try_for_each(|layer| sys::fsconfig_string(&fs, "lowerdir+", layer))
            }
            Some((key, value)) => sys::fsconfig_string(&fs, key, value),
            None => sys::fsconfig_flag(&fs, option),
        };
        result.map_err(|e| explain(e, &format!("option {option:?}")))?;
    }
    if options.attr.set & libc::MOUNT_ATTR_RDONLY != 0 && !PSEUDO.contains(&fstype) {
        sys::fsconfig_flag(&fs, "ro").map_err(|e| explain(e, "option \"ro\""))?;
    }
    sys::fsconfig_create(&fs).map_err(|e| explain(e, source))?;
    sys::fsmount(&fs, options.attr.set | options.deep.set).map_err(|e| explain(e, source))
}

/// Overlay's `a:b:c` as single paths; `\:` is a colon of a path.
fn split_layers(layers: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    let mut chars = layers.chars();
    while let Some(c) = chars.next() {
        match c {
            ':' => out.push(String::new()),
            '\\' => out.last_mut().expect("never empty").extend(chars.next()),
            c => out.last_mut().expect("never empty").push(c),
        }
    }
    out
}

fn set_attributes(tree: &OwnedFd, options: &Options) -> std::io::Result<()> {
    if options.deep != MountAttr::default() {
        sys::mount_setattr(tree.as_fd(), true, &options.deep)?;
    }
    if options.attr != MountAttr::default() {
        sys::mount_setattr(tree.as_fd(), false, &options.attr)?;
    }
    Ok(())
}

impl Planned {
    /// Whether the host's cgroup layout is needed to attach this.
    pub fn is_cgroup(&self) -> bool {
        matches!(self.source, Source::Cgroup)
    }

    /// Whether the host's own files are bound here.
    pub fn is_bind(&self) -> bool {
        self.options.bind && !self.options.remount
    }

    /// The init's part: makes the filesystem if need be and attaches it beneath `root`.
    pub fn attach(self, root: &OwnedFd, cgroups: &str, cgroup_namespace: bool) -> Result<()> {
        let Planned { destination, options, source } = self;
        match source {
            Source::Cgroup => crate::cgroupfs::attach(root, &destination, &options, cgroups, cgroup_namespace),
            Source::Mounted => remount(root, &options, &destination),
            Source::Tree(tree, kind) => {
                set_attributes(&tree, &options).map_err(|cause| {
                    let locked = " (in a user namespace no flag that the host set can be cleared or changed)";
                    let hint = if cause.raw_os_error() == Some(libc::EPERM) { locked } else { "" };
                    Error::Os { what: format!("set the attributes of mount {}{hint}", destination.display()), cause }
                })?;
                let target = find_target(root, &destination, kind)?;
                finish(&tree, &target, &options, &destination)
            }
            Source::Filesystem { fstype, source } => {
                // proc and sysfs anywhere else than at their real path would leave the masks pointing at nothing.
                let mut first = options.clone();
                let target = if fstype == "proc" || fstype == "sysfs" {
                    ordinary_directory(root, &destination, &fstype)?
                } else {
                    if fstype == "tmpfs" && !options.data.iter().any(|word| word.starts_with("mode=")) {
                        first.data.extend(mode_of_covered(root, &destination)?);
                    }
                    find_target(root, &destination, Kind::Directory)?
                };
                if options.copy_up {
                    first.attr.set &= !libc::MOUNT_ATTR_RDONLY;
                }
                let words = |e| with_object(e, &destination);
                let tree = new_filesystem(&fstype, &source, &first).map_err(words)?;
                if options.copy_up {
                    copyup::copy(&target, &tree).path("copy up the contents of", &destination)?;
                    set_attributes(&tree, &options).path("set the attributes of mount", &destination)?;
                }
                finish(&tree, &target, &options, &destination)?;
                match options.iversion {
                    Some(on) if !PSEUDO.contains(&fstype.as_str()) => set_iversion(&tree, &options, on)
                        .and_then(|()| set_attributes(&tree, &options))
                        .path("set iversion of mount", &destination),
                    // Those count changes by themselves, or not at all.
                    _ => Ok(()),
                }
            }
        }
    }
}

/// Changes an earlier mount, or the root. A symlink could make it another one.
fn remount(root: &OwnedFd, options: &Options, destination: &Path) -> Result<()> {
    let what = |step: &str| format!("remount {}: {step}", destination.display());
    let target = beneath::open_no_links(root, destination, libc::O_PATH).op(|| what("open"))?;
    if !options.data.is_empty() {
        let fs = sys::fspick(&target).op(|| what("it is not a mount point"))?;
        let explain = |cause: std::io::Error, step: &str| {
            let words = sys::fs_message(&fs).map(|m| format!(" (kernel: {m})")).unwrap_or_default();
            Error::Os { what: what(step) + &words, cause }
        };
        for option in &options.data {
            let result = match option.split_once('=') {
                Some((key, value)) => sys::fsconfig_string(&fs, key, value),
                None => sys::fsconfig_flag(&fs, option),
            };
            result.map_err(|e| explain(e, &format!("option {option:?}")))?;
        }
        sys::fsconfig_reconfigure(&fs).map_err(|e| explain(e, "change the filesystem"))?;
    }
    if let Some(on) = options.iversion {
        set_iversion(&target, options, on).op(|| what("set iversion (is it a mount point?)"))?;
    }
    set_attributes(&target, options).op(|| what("set its attributes (is it a mount point?)"))?;
    change_propagation(&target, options, destination)
}

/// The kernel takes this word through mount(2) alone, which replaces all other flags: they are said again.
fn set_iversion(mounted: &OwnedFd, options: &Options, on: bool) -> std::io::Result<()> {
    /// Of statfs(2): the same bits as for mount(2), but for these.
    const SAME: u64 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x40 | 0x400 | 0x800;
    const RELATIME: u64 = 0x1000;
    let present = nix::sys::statvfs::fstatvfs(mounted)?.flags().bits();
    let mut flags = libc::MS_REMOUNT | present & SAME;
    flags |= match (present & libc::MS_NOATIME != 0, present & RELATIME != 0) {
        (true, _) => 0,
        (_, true) => libc::MS_RELATIME,
        _ => libc::MS_STRICTATIME,
    };
    if options.data.iter().any(|word| word == "lazytime") {
        flags |= libc::MS_LAZYTIME;
    }
    if on {
        flags |= libc::MS_I_VERSION;
    }
    let path = format!("/proc/self/fd/{}", mounted.as_raw_fd());
    let flags = nix::mount::MsFlags::from_bits_retain(flags);
    Ok(nix::mount::mount(None::<&str>, path.as_str(), None::<&str>, flags, None::<&str>)?)
}

/// A tmpfs without a mode takes that of the directory it covers, as with runc and crun; over a new one, the kernel's 1777.
fn mode_of_covered(root: &OwnedFd, destination: &Path) -> Result<Option<String>> {
    match beneath::open(root, destination, libc::O_PATH | libc::O_DIRECTORY) {
        Ok(covered) => Ok(Some(format!("mode={:o}", fstat(&covered).path("stat", destination)?.st_mode & 0o7777))),
        // What is no directory is told when the mount point is looked up.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(e) => Err(e).path("open", destination),
    }
}

fn with_object(error: Error, destination: &Path) -> Error {
    match error {
        Error::Os { what, cause } => Error::Os { what: format!("{what} on {}", destination.display()), cause },
        other => other,
    }
}

fn finish(tree: &OwnedFd, target: &OwnedFd, options: &Options, destination: &Path) -> Result<()> {
    sys::move_mount(tree.as_fd(), target.as_fd()).path("mount on", destination)?;
    change_propagation(tree, options, destination)
}

fn change_propagation(tree: &OwnedFd, options: &Options, destination: &Path) -> Result<()> {
    for &(flag, recursive) in &options.propagation {
        set_propagation(tree, flag, recursive).path("set the propagation of mount", destination)?;
    }
    Ok(())
}

/// The mount point, made if missing. Never the root itself, whatever symlink says so.
pub(crate) fn find_target(root: &OwnedFd, destination: &Path, kind: Kind) -> Result<OwnedFd> {
    not_the_root(root, beneath::target(root, destination, kind).path("mount on", destination)?, destination)
}

fn not_the_root(root: &OwnedFd, target: OwnedFd, destination: &Path) -> Result<OwnedFd> {
    if beneath::is_root(root, &target).path("mount on", destination)? {
        let message =
            format!("mount on {}: it leads to the container's root, which the mount would hide", destination.display());
        return Err(Error::invalid(message));
    }
    Ok(target)
}

/// The mount point, made if missing, and no symlink on the way to it. What was looked at is what is mounted on.
fn ordinary_directory(root: &OwnedFd, destination: &Path, fstype: &str) -> Result<OwnedFd> {
    let open = || beneath::open_no_links(root, destination, libc::O_PATH | libc::O_DIRECTORY);
    let found = match open() {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
            find_target(root, destination, Kind::Directory)?;
            open()
        }
        found => found,
    };
    match found {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ELOOP | libc::ENOTDIR)) => {
            let message = format!(
                "mount {fstype} on {}: it must be an ordinary directory, without symlinks",
                destination.display()
            );
            Err(Error::invalid(message))
        }
        found => not_the_root(root, found.path("mount on", destination)?, destination),
    }
}

/// A detached mount of a filesystem of the container's, for others of this crate.
pub(crate) fn detached(fstype: &str, source: &str, words: &[&str]) -> Result<OwnedFd> {
    let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
    new_filesystem(fstype, source, &options::parse(&words, fstype)?)
}

/// Sets a mount and all beneath it read-only.
pub(crate) fn read_only(tree: &OwnedFd, recursive: bool) -> std::io::Result<()> {
    sys::mount_setattr(tree.as_fd(), recursive, &MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_split_at_plain_colons_only() {
        assert_eq!(split_layers(r"/a:/b\:c:/d\\e"), ["/a", "/b:c", r"/d\e"]);
    }

    #[test]
    fn the_host_never_hears_of_the_containers_mounts_by_default() {
        let spec = |text: &str| serde_json::from_str::<Spec>(text).unwrap();
        assert_eq!(base_propagation(&spec("{}")), libc::MS_SLAVE);
        assert_eq!(base_propagation(&spec(r#"{"linux":{"rootfsPropagation":"rshared"}}"#)), libc::MS_SHARED);
    }
}
