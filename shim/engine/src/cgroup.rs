//! Pods' cgroups as files, for what is left when their supervisor is dead: who is in them, ending those, removing them.
//!
//! Works on v1 (each controller a tree of its own), v2 and hybrids alike: a cgroup is its path in every mounted tree.
//! The runtime makes and limits cgroups; this only looks and clears, below paths that our records or our parent name.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{Error, Result};

/// Pause between looking whether the killed are gone.
const PAUSE: Duration = Duration::from_millis(5);
/// How deep a pod's cgroup may nest: a container may make cgroups of its own.
const MAX_DEPTH: usize = 32;

/// Where cgroup trees are mounted.
pub fn trees() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().filter_map(tree_of).map(|tree| tree.mount).collect()
}

/// A cgroup tree as a line of mountinfo tells of it.
pub(crate) struct Tree<'a> {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// v1: its controllers and options; None for v2.
    pub v1_options: Option<&'a str>,
}

/// The tree of a line, if the line is one of the root of a cgroup tree.
pub(crate) fn tree_of(line: &str) -> Option<Tree<'_>> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (Some("/"), target) = (left.next(), left.next()?) else { return None };
    let mut right = right.split(' ');
    let v1_options = match right.next()? {
        "cgroup" => Some(right.nth(1).unwrap_or_default()),
        "cgroup2" => None,
        _ => return None,
    };
    Some(Tree { mount: target.replace("\\040", " ").into(), v1_options })
}

fn folders(group: &str) -> Vec<PathBuf> {
    let relative = group.trim_matches('/');
    if relative.is_empty() || relative.split('/').any(|p| p == "..") {
        return Vec::new();
    }
    trees().into_iter().map(|tree| tree.join(relative)).filter(|p| p.is_dir()).collect()
}

/// A folder and all below it, the deepest first.
fn below(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut level) = (vec![folder.to_owned()], vec![folder.to_owned()]);
    for _ in 0..MAX_DEPTH {
        let children = level.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
        level = children.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect();
        if level.is_empty() {
            break;
        }
        found.extend(level.iter().cloned());
    }
    found.reverse();
    found
}

/// Everybody in a cgroup and below it.
pub fn members(group: &str) -> Vec<i32> {
    let all = folders(group);
    let dirs = all.iter().flat_map(|f| below(f));
    let pids = dirs.flat_map(|dir| {
        let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        // 0 is a process of another PID namespace than ours.
        text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 0).collect::<Vec<_>>()
    });
    pids.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The names of the cgroups directly below `parent`, in any tree.
pub fn children(parent: &str) -> BTreeSet<String> {
    let dirs = folders(parent);
    let entries = dirs.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    let dirs = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    dirs.filter_map(|e| e.file_name().into_string().ok()).collect()
}

/// Whether the cgroup is there in any tree.
pub fn exists(group: &str) -> bool {
    !folders(group).is_empty()
}

/// What weighs the branches of the tree, in the words of v1 and of v2.
const SHARES_FILE: &str = "cpu.shares";
const WEIGHT_FILE: &str = "cpu.weight";

/// Sets a cgroup's weight among its siblings, in the tree that counts CPU time; where none does, nothing is weighed.
pub fn set_shares(group: &str, shares: u64) -> Result<()> {
    for dir in folders(group) {
        for (file, value) in [(SHARES_FILE, shares), (WEIGHT_FILE, weight(shares))] {
            let path = dir.join(file);
            if path.exists() {
                fs::write(&path, value.to_string()).map_err(Error::io("write", path))?;
            }
        }
    }
    Ok(())
}

/// `cpu.shares` as `cpu.weight`, by the curve that runc, crun and kubelet agreed on: 2 is 1, 1024 is 100, the most is 10000.
fn weight(shares: u64) -> u64 {
    let l = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

/// Kills everybody in a cgroup and removes it. One that is not there is cleared already.
pub fn clear(group: &str, deadline: Duration) -> Result<()> {
    let until = Instant::now() + deadline;
    // Frozen processes do not die on v1.
    for dir in folders(group).iter().flat_map(|f| below(f)) {
        let _ = fs::write(dir.join("freezer.state"), "THAWED");
    }
    loop {
        let left = members(group);
        for pid in &left {
            // Gone since it was read: fine. Nobody else can have its pid while it is in this cgroup's list.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        let removed = folders(group).iter().flat_map(|f| below(f)).try_for_each(|dir| remove(&dir));
        match removed {
            Ok(()) => return Ok(()),
            Err((path, e)) if Instant::now() >= until => return Err(Error::io("remove cgroup", path)(e)),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

fn remove(dir: &Path) -> std::result::Result<(), (PathBuf, io::Error)> {
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err((dir.to_owned(), e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_trees_are_told_from_other_mounts() {
        let v1 = "33 25 0:28 / /sys/fs/cgroup/pids rw,nosuid shared:9 - cgroup cgroup rw,pids";
        let v2 = "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate";
        let part = "31 25 0:26 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        let mount = |line| tree_of(line).map(|tree| tree.mount);
        assert_eq!(mount(v1), Some("/sys/fs/cgroup/pids".into()));
        assert_eq!(mount(v2), Some("/sys/fs/cgroup".into()));
        assert_eq!(mount(part), None);
        assert_eq!(mount("22 1 8:1 / / rw - ext4 /dev/sda1 rw"), None);
    }

    #[test]
    fn a_cgroup_is_cleared_with_those_who_live_in_it() {
        let group = format!("/coracle-engine-test-{}/pod", std::process::id());
        let tree = trees().into_iter().find(|t| t.ends_with("pids")).or_else(|| trees().pop()).expect("a cgroup tree");
        let dir = tree.join(group.trim_start_matches('/'));
        fs::create_dir_all(dir.join("a/b")).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        fs::write(dir.join("a/b/cgroup.procs"), child.id().to_string()).unwrap();
        assert_eq!(members(&group), [child.id() as i32]);
        assert!(children(&group).contains("a"));
        // Reaped from another thread: a zombie stays a member.
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        clear(&group, Duration::from_secs(5)).unwrap();
        assert!(!reaper.join().unwrap().success());
        assert!(!exists(&group));
        clear(&group, Duration::from_secs(1)).unwrap();
        fs::remove_dir(dir.parent().unwrap()).unwrap();
    }

    #[test]
    fn weights_are_those_of_the_other_runtimes() {
        assert_eq!([2, 1024, 262_144].map(weight), [1, 100, 10_000]);
    }

    #[test]
    fn nothing_outside_of_a_named_cgroup_is_touched() {
        assert!(folders("").is_empty() && folders("/").is_empty() && folders("/a/../..").is_empty());
    }
}
