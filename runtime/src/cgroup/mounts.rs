//! Which cgroup hierarchies this process sees: one reading of `/proc/self/mountinfo`, and of `/proc/self/cgroup` for
//! relative paths only.
//!
//! Three layouts exist in the field. *v1*: a mount for each controller (or for a few together, as `cpu,cpuacct`).
//! *v2*: one cgroup2 mount. *Hybrid*: v1 controllers and a cgroup2 mount without the controllers we need; that counts as v1.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use super::Version;
use super::error::{Error, Result};

/// Controllers of cgroup v1; other words among a mount's options are flags (`xattr`, `noprefix`, `clone_children`...).
const V1_CONTROLLERS: &[&str] = &[
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "net_cls",
    "net_prio",
    "blkio",
    "perf_event",
    "hugetlb",
    "pids",
    "rdma",
    "misc",
];

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// v1: the controllers bound to it, or `name=systemd` for a named one. v2: empty.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Which cgroup of the hierarchy is seen at the mount point: `/`, or more where only a part is mounted.
    pub root: PathBuf,
}

/// The cgroup file systems of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    V1(Vec<Hierarchy>),
    V2(Hierarchy),
}

impl Layout {
    /// Reads the layout of the running system.
    pub fn detect() -> Result<Layout> {
        let path = "/proc/self/mountinfo";
        let text = fs::read(path).map_err(|e| Error::io("read", path, e))?;
        Layout::parse(&String::from_utf8_lossy(&text)).ok_or(Error::NotMounted)
    }

    /// Its generation.
    pub fn version(&self) -> Version {
        match self {
            Layout::V1(_) => Version::V1,
            Layout::V2(_) => Version::V2,
        }
    }

    /// The layout that a mountinfo text describes.
    pub fn parse(mountinfo: &str) -> Option<Layout> {
        let mut v1: Vec<Hierarchy> = Vec::new();
        let mut v2 = None;
        for line in mountinfo.lines() {
            // Most lines of a busy host are overlays: skip them before splitting.
            let Some((left, right)) = line.split_once(" - ") else { continue };
            if !right.starts_with("cgroup") {
                continue;
            }
            let mut fields = left.split(' ').skip(3);
            let (Some(root), Some(mount)) = (fields.next(), fields.next()) else { continue };
            let (root, mount) = (unescape(root), unescape(mount));
            let mut right = right.split(' ');
            let (fstype, options) = (right.next(), right.nth(1).unwrap_or(""));
            if fstype == Some("cgroup2") {
                v2.get_or_insert(Hierarchy { controllers: Vec::new(), mount, root });
            } else if fstype == Some("cgroup") {
                let controllers: Vec<String> = options
                    .split(',')
                    .filter(|o| V1_CONTROLLERS.contains(o) || o.starts_with("name="))
                    .map(str::to_owned)
                    .collect();
                // A hierarchy mounted twice is still one hierarchy.
                if !controllers.is_empty() && !v1.iter().any(|h| h.controllers == controllers) {
                    v1.push(Hierarchy { controllers, mount, root });
                }
            }
        }
        let has_controllers = v1.iter().any(|h| h.controllers.iter().any(|c| !c.starts_with("name=")));
        match v2 {
            _ if has_controllers => Some(Layout::V1(v1)),
            Some(v2) => Some(Layout::V2(v2)),
            None if !v1.is_empty() => Some(Layout::V1(v1)),
            None => None,
        }
    }
}

/// The v2 tree of a host whose controllers are v1's.
pub(super) fn unified() -> Result<Option<Hierarchy>> {
    let path = "/proc/self/mountinfo";
    let text = fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let text = String::from_utf8_lossy(&text);
    let v2: String = text.lines().filter(|line| line.contains(" - cgroup2 ")).map(|line| format!("{line}\n")).collect();
    Ok(match Layout::parse(&v2) {
        Some(Layout::V2(hierarchy)) => Some(hierarchy),
        _ => None,
    })
}

/// Undoes the octal escapes of mountinfo (`\040` is a space).
fn unescape(field: &str) -> PathBuf {
    if !field.contains('\\') {
        return PathBuf::from(field);
    }
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = field.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (bytes[at], code) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                at += 4;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    PathBuf::from(String::from_utf8_lossy(&out).into_owned())
}

/// The cgroup that a container asks for, as `linux.cgroupsPath` says it.
///
/// Absolute: beneath each hierarchy's mount. Relative (or absent, which stands for the container's id): beneath the
/// cgroup of this process; on v2 beside it, since a v2 cgroup that holds processes cannot hand controllers down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupPath(PathBuf);

impl CgroupPath {
    /// Checks `linux.cgroupsPath`; `id` stands in when it is absent.
    pub fn new(spec: Option<&Path>, id: &str) -> Result<Self> {
        let path = match spec {
            Some(path) if !path.as_os_str().is_empty() => path,
            _ => Path::new(id),
        };
        let bad = |why| Error::BadPath { path: path.display().to_string(), why };
        let mut clean = PathBuf::new();
        for part in path.components() {
            match part {
                Component::RootDir | Component::Normal(_) => clean.push(part),
                Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => return Err(bad("`..` is not allowed")),
            }
        }
        if clean.as_os_str().as_encoded_bytes().iter().any(|b| *b == b'\n' || *b == 0) {
            return Err(bad("holds a line break or a NUL"));
        }
        if clean.file_name().is_none() {
            return Err(bad("names no cgroup of its own"));
        }
        Ok(CgroupPath(clean))
    }

    /// The directory in one v1 hierarchy; `own` is the text of `/proc/self/cgroup`, read only when it is needed.
    pub(super) fn in_v1(&self, hierarchy: &Hierarchy, own: &mut OwnCgroups) -> Result<PathBuf> {
        if let Ok(beneath) = self.0.strip_prefix("/") {
            return Ok(hierarchy.mount.join(beneath));
        }
        let own = own.path_of(&hierarchy.controllers)?;
        Ok(beneath_mount(hierarchy, &own).join(&self.0))
    }

    /// The directory in the v2 hierarchy.
    pub(super) fn in_v2(&self, hierarchy: &Hierarchy, own: &mut OwnCgroups) -> Result<PathBuf> {
        if let Ok(beneath) = self.0.strip_prefix("/") {
            return Ok(hierarchy.mount.join(beneath));
        }
        let own = own.path_of(&[])?;
        let beside = own.parent().unwrap_or(Path::new("/"));
        Ok(beneath_mount(hierarchy, beside).join(&self.0))
    }
}

/// The visible directory of a cgroup path out of `/proc/self/cgroup`.
pub(super) fn beneath_mount(hierarchy: &Hierarchy, cgroup: &Path) -> PathBuf {
    // Where only a part of the hierarchy is mounted, the path starts with that part's own; in a cgroup namespace it
    // may lie outside of what is seen ("/../x"), then the mount itself is all there is.
    match cgroup.strip_prefix(&hierarchy.root) {
        Ok(rest) if !rest.components().any(|c| c == Component::ParentDir) => hierarchy.mount.join(rest),
        _ => hierarchy.mount.clone(),
    }
}

/// The cgroups of this process, read at most once.
#[derive(Default)]
pub(super) struct OwnCgroups(Option<String>);

impl OwnCgroups {
    /// Those of a text that was read already.
    pub fn fixed(text: &str) -> Self {
        OwnCgroups(Some(text.to_owned()))
    }

    /// The path in the hierarchy with these controllers; none means v2.
    pub(super) fn path_of(&mut self, controllers: &[String]) -> Result<PathBuf> {
        let file = "/proc/self/cgroup";
        if self.0.is_none() {
            self.0 = Some(fs::read_to_string(file).map_err(|e| Error::io("read", file, e))?);
        }
        let wanted = controllers.first().map(String::as_str).unwrap_or("");
        for line in self.0.iter().flat_map(|text| text.lines()) {
            let mut fields = line.splitn(3, ':').skip(1);
            if let (Some(names), Some(path)) = (fields.next(), fields.next())
                && names.split(',').any(|name| name == wanted)
            {
                return Ok(PathBuf::from(path));
            }
        }
        let missing = io::Error::new(io::ErrorKind::NotFound, format!("no line for {wanted:?}"));
        Err(Error::io("find this process's own cgroup in", file, missing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
22 1 0:5 / /proc rw - proc proc rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory,clone_children
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
50 31 0:30 / /run/other\\040place rw,relatime - cgroup cgroup rw,memory
";

    #[test]
    fn v1_controllers_beside_an_empty_v2_tree_count_as_v1() {
        let Some(Layout::V1(found)) = Layout::parse(HYBRID) else { panic!("not v1") };
        let names: Vec<_> = found.iter().map(|h| h.controllers.join(",")).collect();
        assert_eq!(names, ["cpu,cpuacct", "memory", "name=systemd"]);
        assert_eq!(found[1].mount, Path::new("/sys/fs/cgroup/memory"));
    }

    #[test]
    fn a_single_cgroup2_mount_is_v2_and_none_is_none() {
        let text = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let Some(Layout::V2(found)) = Layout::parse(text) else { panic!("not v2") };
        assert_eq!(found.mount, Path::new("/sys/fs/cgroup"));
        assert_eq!(Layout::parse("22 1 0:5 / /proc rw - proc proc rw\n"), None);
    }

    #[test]
    fn escaped_mount_points_are_read() {
        assert_eq!(unescape("/a\\040b\\134c\\"), Path::new("/a b\\c\\"));
    }

    #[test]
    fn absolute_paths_lie_beneath_the_mount_and_relative_ones_beneath_or_beside_our_own() {
        let mut own = OwnCgroups::fixed("4:memory:/user/me\n1:cpu,cpuacct:/\n0::/user/me\n");
        let memory = Hierarchy { controllers: vec!["memory".into()], mount: "/m".into(), root: "/".into() };
        let unified = Hierarchy { controllers: vec![], mount: "/u".into(), root: "/".into() };
        let absolute = CgroupPath::new(Some(Path::new("/pods/./a")), "x").unwrap();
        let relative = CgroupPath::new(None, "x").unwrap();
        assert_eq!(absolute.in_v1(&memory, &mut own).unwrap(), Path::new("/m/pods/a"));
        assert_eq!(relative.in_v1(&memory, &mut own).unwrap(), Path::new("/m/user/me/x"));
        assert_eq!(absolute.in_v2(&unified, &mut own).unwrap(), Path::new("/u/pods/a"));
        assert_eq!(relative.in_v2(&unified, &mut own).unwrap(), Path::new("/u/user/x"));
        let part = Hierarchy { root: "/user".into(), ..memory.clone() };
        assert_eq!(relative.in_v1(&part, &mut own).unwrap(), Path::new("/m/me/x"));
    }

    #[test]
    fn paths_that_could_leave_the_hierarchy_are_refused() {
        for bad in ["/a/../../b", "..", "/", "a\nb"] {
            assert!(CgroupPath::new(Some(Path::new(bad)), "x").is_err(), "{bad}");
        }
    }
}
