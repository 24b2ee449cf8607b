//! How a cgroup is asked for: where, by which driver, and how lenient about the rights of its maker.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What to do about cgroups that this user may not make (`--rootless`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rootless {
    /// As [`Rootless::Yes`] for an ordinary user and inside of a user namespace, else as [`Rootless::No`].
    #[default]
    Auto,
    /// A container that names no cgroup and asks for no limit goes without one. What is asked for is still enforced or
    /// refused; only device rules are passed over, since the kernel keeps such a user from devices anyway.
    Yes,
    /// A cgroup that cannot be made is an error.
    No,
}

impl Rootless {
    /// The answer for this process. Asked only when a permission is missing: it may read a file.
    pub fn applies(self) -> bool {
        match self {
            Rootless::Yes => true,
            Rootless::No => false,
            Rootless::Auto => !nix::unistd::geteuid().is_root() || in_user_namespace(),
        }
    }
}

/// Whether this process is in a user namespace other than the first: the first maps every id to itself.
pub(super) fn in_user_namespace() -> bool {
    let text = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !maps_everything(&text)
}

/// The user of the host whom this process acts for: the one that is root in its user namespace, or itself.
pub(super) fn owner_of_user_namespace() -> u32 {
    let uid = nix::unistd::geteuid().as_raw();
    let text = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    host_id(&text, uid).unwrap_or(uid)
}

fn host_id(uid_map: &str, uid: u32) -> Option<u32> {
    uid_map.lines().find_map(|line| {
        let numbers: Vec<u32> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let &[inside, outside, count] = &numbers[..] else { return None };
        let beyond = uid.checked_sub(inside).filter(|beyond| *beyond < count)?;
        outside.checked_add(beyond)
    })
}

/// A kernel without user namespaces has no such file, and no other namespace to be in.
fn maps_everything(uid_map: &str) -> bool {
    uid_map.is_empty() || uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// A cgroup to be made.
#[derive(Clone, Copy, Debug)]
pub struct CgroupOptions<'a> {
    /// `linux.cgroupsPath`: a path, or `slice:prefix:name` for the systemd driver.
    pub path: Option<&'a Path>,
    /// The container's id, for what the path leaves open.
    pub id: &'a str,
    /// By a systemd unit instead of by directories.
    pub systemd: bool,
    /// What to do when the rights are missing.
    pub rootless: Rootless,
    /// The configuration's annotations: `org.systemd.property.*` are properties of the unit.
    pub annotations: Option<&'a BTreeMap<String, String>>,
    /// v2: the user of the host who may make cgroups beneath it.
    pub owner: Option<u32>,
}

impl<'a> CgroupOptions<'a> {
    /// A plain cgroup by directories.
    pub fn new(path: Option<&'a Path>, id: &'a str) -> Self {
        let path = path.filter(|path| !path.as_os_str().is_empty());
        CgroupOptions { path, id, systemd: false, rootless: Rootless::Auto, annotations: None, owner: None }
    }

    /// Whether a missing right means to do without: asked when one is missing.
    pub(super) fn may_go_without(&self) -> bool {
        self.path.is_none() && self.rootless.applies()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_user_namespace_maps_every_id_to_itself() {
        assert!(maps_everything("         0          0 4294967295\n"));
        assert!(!maps_everything("         0       1000          1\n"));
        assert!(!maps_everything("0 0 65536\n"));
    }

    #[test]
    fn the_owner_of_a_user_namespace_is_looked_up_in_its_map() {
        assert_eq!(host_id("0 1000 1\n1 100000 65536\n", 0), Some(1000));
        assert_eq!(host_id("0 1000 1\n1 100000 65536\n", 5), Some(100_004));
        assert_eq!(host_id("0 1000 1\n", 1), None);
    }

    #[test]
    fn only_who_names_no_cgroup_may_go_without() {
        let lenient = CgroupOptions { rootless: Rootless::Yes, ..CgroupOptions::new(None, "x") };
        assert!(lenient.may_go_without());
        assert!(!CgroupOptions { path: Some(Path::new("/a")), ..lenient }.may_go_without());
        assert!(!CgroupOptions { rootless: Rootless::No, ..lenient }.may_go_without());
    }
}
