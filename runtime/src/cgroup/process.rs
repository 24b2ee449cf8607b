//! Cgroups that somebody else made: found by a process in them, or by their path.

use std::fs;

use super::error::{Error, Result};
use super::mounts::{Hierarchy, Layout, OwnCgroups, beneath_mount};
use super::{Cgroup, CgroupOptions, CgroupPath, CgroupState, Group, Version};

impl Cgroup {
    /// The cgroup of a process; `None` if it has none of its own.
    ///
    /// A hierarchy in which it is where this process is, or at the top, is left out: what is there is not the
    /// process's alone, and whoever holds a [`Cgroup`] may kill everything in it.
    pub fn of_process(pid: i32) -> Result<Option<Cgroup>> {
        let read = |file: String| fs::read_to_string(&file).map_err(|e| Error::io("read", file, e));
        let (theirs, ours) = (read(format!("/proc/{pid}/cgroup"))?, read("/proc/self/cgroup".to_owned())?);
        Ok(find(&Layout::detect()?, &theirs, &ours))
    }

    /// Removes what a killed create may have left of a cgroup, by either driver.
    pub fn remove_remains(options: &CgroupOptions) -> Result<()> {
        super::systemd::remove_remains(options)?;
        // slice:prefix:name is no path, though it could be read as one.
        let path = CgroupPath::new(options.path, options.id)?;
        Cgroup::find(&path)?.map_or(Ok(()), |cgroup| cgroup.remove())
    }

    /// What there is of a cgroup that may have been made, in part or with processes in it; `None` if nothing.
    pub fn find(path: &CgroupPath) -> Result<Option<Cgroup>> {
        let own = &mut OwnCgroups::default();
        let (version, hierarchies) = match Layout::detect()? {
            Layout::V1(hierarchies) => (Version::V1, hierarchies),
            Layout::V2(hierarchy) => (Version::V2, vec![hierarchy]),
        };
        let mut groups = Vec::new();
        for hierarchy in hierarchies {
            let path = match version {
                Version::V1 => path.in_v1(&hierarchy, own)?,
                Version::V2 => path.in_v2(&hierarchy, own)?,
            };
            if path.is_dir() {
                groups.push(Group { controllers: hierarchy.controllers, path });
            }
        }
        Ok((!groups.is_empty()).then(|| Cgroup::of(CgroupState::new(version, groups))))
    }
}

fn find(layout: &Layout, theirs: &str, ours: &str) -> Option<Cgroup> {
    let (mut theirs, mut ours) = (OwnCgroups::fixed(theirs), OwnCgroups::fixed(ours));
    let mut group = |hierarchy: &Hierarchy| {
        let path = theirs.path_of(&hierarchy.controllers).ok()?;
        let shared = ours.path_of(&hierarchy.controllers).is_ok_and(|ours| ours == path);
        let path = beneath_mount(hierarchy, &path);
        let own = !shared && path != hierarchy.mount;
        own.then(|| Group { controllers: hierarchy.controllers.clone(), path })
    };
    let (version, groups): (_, Vec<Group>) = match layout {
        Layout::V1(hierarchies) => (Version::V1, hierarchies.iter().filter_map(group).collect()),
        Layout::V2(hierarchy) => (Version::V2, group(hierarchy).into_iter().collect()),
    };
    (!groups.is_empty()).then(|| Cgroup::of(CgroupState::new(version, groups)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn hierarchy(controllers: &[&str], mount: &str) -> Hierarchy {
        let controllers = controllers.iter().map(|c| (*c).to_owned()).collect();
        Hierarchy { controllers, mount: mount.into(), root: "/".into() }
    }

    fn paths(cgroup: Option<Cgroup>) -> Vec<PathBuf> {
        cgroup.into_iter().flat_map(|c| c.state.groups).map(|g| g.path).collect()
    }

    #[test]
    fn only_what_is_the_processs_own_is_found() {
        let layout = Layout::V1(vec![
            hierarchy(&["memory"], "/m"),
            hierarchy(&["cpu", "cpuacct"], "/c"),
            hierarchy(&["pids"], "/p"),
        ]);
        let theirs = "3:memory:/pod/one\n2:cpu,cpuacct:/ours\n1:pids:/\n";
        let found = find(&layout, theirs, "3:memory:/ours\n2:cpu,cpuacct:/ours\n1:pids:/ours\n");
        assert_eq!(paths(found), [PathBuf::from("/m/pod/one")]);
        let v2 = Layout::V2(hierarchy(&[], "/u"));
        assert_eq!(paths(find(&v2, "0::/pod/one\n", "0::/\n")), [PathBuf::from("/u/pod/one")]);
        assert!(find(&v2, "0::/\n", "0::/\n").is_none());
        assert!(find(&v2, "0::/x\n", "0::/x\n").is_none());
    }
}
