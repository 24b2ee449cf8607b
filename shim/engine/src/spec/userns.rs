//! User namespaces of pods, and the maps of mounts: what is allowed, and in whose words they are said.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::types::{IdMapping, NamespaceMode, SandboxConfig, UserNamespace};

/// The kernel takes no more ranges.
const MAX_RANGES: usize = 340;

/// Whether a pod's user namespace can be made and used.
pub(crate) fn validate(config: &SandboxConfig) -> Result<()> {
    if config.own_users && config.user_namespace.is_some() {
        return Err(Error::invalid("own_users", "excludes user_namespace: the ids are the engine's choice"));
    }
    let maps = config.user_namespace.iter();
    for (field, maps) in maps.flat_map(|n| [("user_namespace.uids", &n.uids), ("user_namespace.gids", &n.gids)]) {
        check(field, maps)?;
        if host_id(maps, 0).is_none() {
            return Err(Error::invalid(field, "id 0 must be mapped: the pod's files are its root's"));
        }
    }
    let owned = config.own_users || config.user_namespace.is_some();
    for (field, mode) in [("pid", config.pid), ("ipc", config.ipc)].into_iter().filter(|_| owned) {
        if mode == NamespaceMode::Node {
            let why = format!("cannot be combined with the host's {field} namespace, which nobody inside may use");
            return Err(Error::invalid("user_namespace", why));
        }
    }
    Ok(())
}

/// Whether ranges are not empty, end where ids end, and do not overlap on either side.
pub(super) fn check(field: &str, maps: &[IdMapping]) -> Result<()> {
    if maps.is_empty() || maps.len() > MAX_RANGES {
        return Err(Error::invalid(field, format!("{} ranges: there must be 1 to {MAX_RANGES}", maps.len())));
    }
    for (index, map) in maps.iter().enumerate() {
        let range = |first: u32| u64::from(first)..u64::from(first) + u64::from(map.length);
        let whole = map.length > 0 && [map.container_id, map.host_id].iter().all(|id| range(*id).end <= 1 << 32);
        let meets = |a: u32, b: u32, other: &IdMapping| {
            let (a, b) = (range(a), u64::from(b)..u64::from(b) + u64::from(other.length));
            a.start < b.end && b.start < a.end
        };
        let overlaps = maps[..index].iter().any(|other| {
            meets(map.container_id, other.container_id, other) || meets(map.host_id, other.host_id, other)
        });
        if !whole || overlaps {
            let why = if whole { "overlaps another range" } else { "is empty or goes beyond the last id" };
            return Err(Error::invalid(field, format!("{} {why}", word(map))));
        }
    }
    Ok(())
}

/// What an id of the pod is on the host.
pub(super) fn host_id(maps: &[IdMapping], id: u32) -> Option<u32> {
    let found = maps.iter().find(|m| id.checked_sub(m.container_id).is_some_and(|offset| offset < m.length))?;
    found.host_id.checked_add(id - found.container_id)
}

/// Whether this process's own user namespace has a group.
pub(super) fn own_group(id: u32) -> bool {
    let map = std::fs::read_to_string("/proc/self/gid_map").unwrap_or_default();
    map.lines().any(|line| {
        let numbers: Vec<u32> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        matches!(numbers[..], [first, _, count] if id.checked_sub(first).is_some_and(|offset| offset < count))
    })
}

/// Whether this process may set groups: who maps but his own id may never.
pub(super) fn sets_groups() -> bool {
    std::fs::read_to_string("/proc/self/setgroups").map_or(true, |word| word.trim() != "deny")
}

/// In the OCI specification's words.
pub(super) fn oci(maps: &[IdMapping]) -> Value {
    let one = |m: &IdMapping| json!({ "containerID": m.container_id, "hostID": m.host_id, "size": m.length });
    maps.iter().map(one).collect()
}

fn word(m: &IdMapping) -> String {
    format!("{}:{}:{}", m.container_id, m.host_id, m.length)
}

/// As options of a root filesystem's mount, in containerd's words.
pub(crate) fn mount_options(namespace: &UserNamespace) -> [String; 2] {
    let list = |maps: &[IdMapping]| maps.iter().map(word).collect::<Vec<_>>().join(",");
    [format!("uidmap={}", list(&namespace.uids)), format!("gidmap={}", list(&namespace.gids))]
}

/// Gives a file of the pod's to the user and group in the pod that have its numbers now.
pub(crate) fn own(path: &Path, namespace: &UserNamespace) -> Result<()> {
    let meta = path.symlink_metadata().map_err(Error::io("stat", path))?;
    let missing = |kind: &str, id: u32| {
        let why = format!("{kind} {id}, whose {} is, is not mapped", path.display());
        Error::invalid("user_namespace", why)
    };
    let uid = host_id(&namespace.uids, meta.uid()).ok_or_else(|| missing("user", meta.uid()))?;
    let gid = host_id(&namespace.gids, meta.gid()).ok_or_else(|| missing("group", meta.gid()))?;
    chown(path, Some(uid), Some(gid)).map_err(Error::io("change the owner of", path))
}

/// Who owns what is the pod root's, as options of a tmpfs; empty without a user namespace.
pub(crate) fn tmpfs_owner(config: &SandboxConfig) -> String {
    let Some(namespace) = &config.user_namespace else { return String::new() };
    let id = |maps| host_id(maps, 0).unwrap_or(0);
    format!(",uid={},gid={}", id(&namespace.uids), id(&namespace.gids))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(container_id: u32, host_id: u32, length: u32) -> IdMapping {
        IdMapping { container_id, host_id, length }
    }

    #[test]
    fn maps_that_cannot_be_are_refused_with_their_range() {
        let error = |maps: &[IdMapping]| check("f", maps).unwrap_err().to_string();
        assert!(error(&[]).contains("0 ranges"));
        assert!(error(&[map(0, 0, 0)]).contains("0:0:0 is empty"));
        assert!(error(&[map(0, u32::MAX, 2)]).contains("beyond"));
        assert!(error(&[map(0, 100, 10), map(9, 200, 1)]).contains("overlaps"));
        assert!(error(&[map(0, 100, 10), map(10, 109, 1)]).contains("overlaps"));
        check("f", &[map(0, 100, 10), map(10, 110, u32::MAX - 110)]).unwrap();
    }

    #[test]
    fn a_pod_needs_its_root_mapped_and_no_namespace_of_the_hosts() {
        let maps = vec![map(0, 65_536, 65_536)];
        let pod = |uids: &[IdMapping]| SandboxConfig {
            user_namespace: Some(UserNamespace { uids: uids.to_vec(), gids: maps.clone() }),
            ..Default::default()
        };
        validate(&pod(&maps)).unwrap();
        assert!(validate(&pod(&[map(1, 65_536, 5)])).unwrap_err().to_string().contains("id 0"));
        let host = SandboxConfig { pid: NamespaceMode::Node, ..pod(&maps) };
        assert!(validate(&host).unwrap_err().to_string().contains("pid"));
        assert_eq!(tmpfs_owner(&pod(&maps)), ",uid=65536,gid=65536");
        assert_eq!(mount_options(pod(&maps).user_namespace.as_ref().unwrap())[0], "uidmap=0:65536:65536");
    }

    #[test]
    fn ids_are_looked_up_in_every_range() {
        let maps = [map(0, 1000, 10), map(100, 7, 1)];
        assert_eq!((host_id(&maps, 9), host_id(&maps, 10), host_id(&maps, 100)), (Some(1009), None, Some(7)));
    }
}
