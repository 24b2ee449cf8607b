//! Devices of the host in a container: all of them for a privileged one, and those that are asked for by path.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::types::Device;

/// Folders of devices are looked through this deep.
const MAX_DEPTH: usize = 6;
/// What a device may be used for when nobody says.
const ALL: &str = "rwm";

/// Nodes to make, and the rules that let them be used.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Devices {
    /// For `linux.devices`.
    pub nodes: Vec<Value>,
    /// For `linux.resources.devices`.
    pub rules: Vec<Value>,
}

/// The devices of the host, for a privileged container; what the runtime makes itself is left out.
pub(super) fn of_host(dev: &Path) -> Vec<Value> {
    const OWN: [&str; 7] = ["pts", "ptmx", "shm", "fd", "mqueue", "console", ".lxc"];
    let own = |path: &Path| path.parent() == Some(dev) && path.file_name().is_some_and(|n| OWN.iter().any(|o| n == *o));
    found_in(dev, &own).iter().map(|(path, meta)| node(path, meta)).collect()
}

/// The devices that are asked for.
pub(super) fn asked(devices: &[Device]) -> Result<Devices> {
    let mut out = Devices::default();
    for device in devices {
        let host = device.host_path.canonicalize().map_err(Error::io("find the device", &device.host_path))?;
        let target =
            if device.container_path.as_os_str().is_empty() { &device.host_path } else { &device.container_path };
        let bad = |why: &str| Error::invalid("devices", format!("{}: {why}", device.host_path.display()));
        if !target.is_absolute() || target.components().any(|c| c.as_os_str() == "..") {
            return Err(bad(&format!("container_path {} must be absolute and without `..`", target.display())));
        }
        let access = permissions(&device.permissions).map_err(|why| bad(&why))?;
        let meta = fs::metadata(&host).map_err(Error::io("look at the device", &host))?;
        let found = match meta.is_dir() {
            true => found_in(&host, &|_| false),
            false if is_device(&meta) => vec![(host.clone(), meta)],
            false => return Err(bad("it is neither a device nor a folder of devices")),
        };
        if found.is_empty() {
            return Err(bad("there are no devices in this folder"));
        }
        for (path, meta) in found {
            let inside = match path.strip_prefix(&host) {
                Ok(rest) if !rest.as_os_str().is_empty() => target.join(rest),
                _ => target.clone(),
            };
            out.nodes.push(node(&inside, &meta));
            out.rules.push(rule(&meta, &access));
        }
    }
    Ok(out)
}

/// Checked permissions; empty means all.
pub(super) fn permissions(text: &str) -> Result<String, String> {
    match text {
        "" => Ok(ALL.into()),
        text if text.chars().all(|c| ALL.contains(c)) => Ok(text.into()),
        text => Err(format!("permissions {text:?} may only have r, w and m")),
    }
}

/// All devices below a folder but those that are skipped, by path. A device that vanishes while they are looked at is none.
fn found_in(folder: &Path, skip: &dyn Fn(&Path) -> bool) -> Vec<(PathBuf, Metadata)> {
    let mut found = Vec::new();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if skip(&path) {
                continue;
            } else if meta.is_dir() && depth < MAX_DEPTH {
                folders.push((path, depth + 1));
            } else if is_device(&meta) && meta.rdev() != 0 {
                found.push((path, meta));
            }
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn is_device(meta: &Metadata) -> bool {
    meta.file_type().is_char_device() || meta.file_type().is_block_device()
}

fn kind(meta: &Metadata) -> &'static str {
    if meta.file_type().is_block_device() { "b" } else { "c" }
}

fn node(path: &Path, meta: &Metadata) -> Value {
    json!({
        "path": path, "type": kind(meta), "major": major(meta.rdev()), "minor": minor(meta.rdev()),
        "fileMode": meta.mode() & 0o7777, "uid": meta.uid(), "gid": meta.gid(),
    })
}

fn rule(meta: &Metadata, access: &str) -> Value {
    let (major, minor) = (major(meta.rdev()), minor(meta.rdev()));
    json!({ "allow": true, "type": kind(meta), "major": major, "minor": minor, "access": access })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(host: &str, to: &str, permissions: &str) -> Device {
        Device { host_path: host.into(), container_path: to.into(), permissions: permissions.into() }
    }

    #[test]
    fn a_device_is_a_node_and_a_rule_with_its_permissions() {
        let out = asked(&[device("/dev/zero", "/dev/nothing", "rw")]).unwrap();
        assert_eq!(out.nodes[0]["path"], "/dev/nothing");
        assert_eq!((&out.nodes[0]["major"], &out.nodes[0]["minor"]), (&json!(1), &json!(5)));
        assert_eq!(out.rules[0]["access"], "rw");
        assert_eq!(asked(&[device("/dev/zero", "", "")]).unwrap().rules[0]["access"], "rwm");
    }

    #[test]
    fn a_folder_is_all_devices_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_str().unwrap();
        assert!(asked(&[device(folder, "/dev/x", "r")]).unwrap_err().to_string().contains("no devices"));
        fs::create_dir(dir.path().join("sub")).unwrap();
        for name in ["a", "sub/b"] {
            let (kind, mode) = (nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::Mode::S_IRUSR);
            nix::sys::stat::mknod(&dir.path().join(name), kind, mode, nix::sys::stat::makedev(1, 3)).unwrap();
        }
        fs::write(dir.path().join("file"), "").unwrap();
        let out = asked(&[device(folder, "/dev/x", "r")]).unwrap();
        let paths: Vec<_> = out.nodes.iter().map(|n| n["path"].as_str().unwrap()).collect();
        assert_eq!(paths, ["/dev/x/a", "/dev/x/sub/b"]);
    }

    #[test]
    fn what_is_no_device_or_no_permission_is_refused_by_name() {
        let error = |d: Device| asked(&[d]).unwrap_err().to_string();
        assert!(error(device("/dev/no-such", "", "")).contains("/dev/no-such"));
        assert!(error(device("/etc/passwd", "", "")).contains("/etc/passwd"));
        assert!(error(device("/dev/zero", "", "rx")).contains("\"rx\""));
        assert!(error(device("/dev/zero", "x", "r")).contains("absolute"));
        assert!(error(device("/dev/zero", "/dev/../etc/x", "r")).contains(".."));
    }

    #[test]
    fn the_hosts_devices_leave_out_what_the_runtime_makes() {
        let all = of_host(Path::new("/dev"));
        assert!(all.iter().any(|d| d["path"] == "/dev/null"));
        assert!(!all.iter().any(|d| d["path"].as_str().unwrap().starts_with("/dev/pts")));
    }
}
