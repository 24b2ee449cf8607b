//! What the fuzzer feeds: paths, the kernel's tables and statistics.

use std::path::Path;

use super::mounts::{CgroupPath, Layout, OwnCgroups};

/// Whatever the path, a cgroup lies beneath a mounted hierarchy. The first line of the text is the path, the second part of
/// /proc/self/cgroup, the rest mountinfo.
pub fn paths(text: &str) {
    let mut parts = text.splitn(3, '\u{c}');
    let (path, own, mountinfo) = (parts.next(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let (Ok(path), Some(layout)) = (CgroupPath::new(path.map(Path::new), "id"), Layout::parse(mountinfo)) else {
        return;
    };
    let own = &mut OwnCgroups::fixed(own);
    match layout {
        Layout::V1(hierarchies) => {
            // The kernel's own paths are absolute.
            for hierarchy in hierarchies.iter().filter(|hierarchy| hierarchy.root.is_absolute()) {
                if let Ok(found) = path.in_v1(hierarchy, own) {
                    assert!(found.starts_with(&hierarchy.mount), "{} is not beneath the mount", found.display());
                }
            }
        }
        Layout::V2(hierarchy) if !hierarchy.root.is_absolute() => {}
        Layout::V2(hierarchy) => {
            if let Ok(found) = path.in_v2(&hierarchy, own) {
                assert!(found.starts_with(&hierarchy.mount), "{} is not beneath the mount", found.display());
            }
        }
    }
}

pub use super::systemd::fuzz::parsers as systemd;
