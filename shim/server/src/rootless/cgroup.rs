//! What systemd delegates of the cgroup tree to an ordinary user.
//!
//! On cgroup v2 a user may make cgroups, and move his processes, beneath one that is his (`Delegate=yes`, as
//! `user@UID.service` is). The kernel lets processes live in leaves alone, and lets them be moved where the nearest
//! common parent is his. So pods go beside the cgroup this process is in, if the one that holds both is his.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::geteuid;

/// Where cgroup v2 is mounted.
const TREE: &str = "/sys/fs/cgroup";
/// The cgroup that holds the pods.
const NAME: &str = "coracle";

/// The cgroup below which this process may make those of pods; `None` if there is none.
pub fn delegated() -> Option<String> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    delegated_in(Path::new(TREE), &own, geteuid().as_raw())
}

fn delegated_in(tree: &Path, own: &str, uid: u32) -> Option<String> {
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let parent = Path::new(own).parent()?;
    let folder = tree.join(parent);
    let is_his = |path: &Path| path.metadata().is_ok_and(|meta| meta.uid() == uid);
    let his = parent != Path::new("") && is_his(&folder) && is_his(&folder.join("cgroup.procs"));
    let controllers = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
    (his && !controllers.trim().is_empty()).then(|| format!("/{}/{NAME}", parent.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_go_beside_the_own_cgroup_where_that_is_the_users() {
        let tree = tempfile::tempdir().unwrap();
        let uid = tree.path().metadata().unwrap().uid();
        let slice = "user.slice/user-1000.slice/user@1000.service/app.slice";
        fs::create_dir_all(tree.path().join(slice)).unwrap();
        let own = format!("0::/{slice}/run-1.scope\n");
        let find = |own: &str, uid| delegated_in(tree.path(), own, uid);
        assert_eq!(find(&own, uid), None, "nothing is there to be written");
        fs::write(tree.path().join(slice).join("cgroup.procs"), "").unwrap();
        fs::write(tree.path().join(slice).join("cgroup.controllers"), "memory pids\n").unwrap();
        assert_eq!(find(&own, uid), Some(format!("/{slice}/coracle")));
        assert_eq!(find(&own, uid + 1), None, "another's");
        assert_eq!(find("0::/session.scope\n", uid), None, "the root of the tree is nobody's to give");
        assert_eq!(find("3:cpu:/x\n", uid), None, "cgroup v1 delegates nothing");
    }
}
