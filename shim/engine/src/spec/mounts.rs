//! The mounts of a container: what every container has, the pod's files, and its volumes.
//!
//! A volume is a bind mount of the host's, or an image: then it is an overlay of the image's layers without a writable
//! one, which the runtime makes detached and shows only to the container. The runtime also finds a sub path in either:
//! links in an image end in the image, and what would lead out of a folder of the host is an error.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Input, guest, lsm, userns};
use crate::error::{Error, Result};
use crate::types::{Mount, NamespaceMode, Propagation};

const MOUNTINFO: &str = "/proc/self/mountinfo";
/// The group of terminals, by everyone's convention.
const TTY_GROUP: u32 = 5;
/// The runtime's word for a part of an overlay or of a bind mount's source.
const SUB_PATH: &str = "x-coracle.subpath=";

fn mount(target: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": target, "type": kind, "source": source, "options": options })
}

/// The mounts, parents before children; a volume of the pod replaces ours at the same place.
pub(super) fn all(input: &Input<'_>, label: &str) -> Result<Vec<Value>> {
    let security = &input.config.security;
    let mut list = own(input);
    let shm = match input.sandbox.ipc {
        NamespaceMode::Node => PathBuf::from("/dev/shm"),
        _ => input.pod_dir.join("shm"),
    };
    let files = if security.readonly_rootfs { "ro" } else { "rw" };
    let mut binds: Vec<(String, Value)> =
        vec![bind("/dev/shm", &shm, &["rbind", "rprivate", "nosuid", "nodev", "noexec"])?];
    for (target, file) in [("/etc/hosts", "hosts"), ("/etc/hostname", "hostname"), ("/etc/resolv.conf", "resolv.conf")]
    {
        binds.push(bind(target, &input.pod_dir.join(file), &["rbind", "rprivate", files])?);
    }
    if !label.is_empty() {
        let host = lsm::Host::new(Path::new("/"));
        ["hosts", "hostname", "resolv.conf", "shm"].iter().map(|file| input.pod_dir.join(file)).try_for_each(
            |path| {
                if path.exists() { host.relabel(&path, label) } else { Ok(()) }
            },
        )?;
    }
    for volume in &input.config.mounts {
        binds.push(volume_mount(input, volume, label)?);
    }
    // The last of a place wins; the sort by path puts parents before their children.
    let last: BTreeMap<String, Value> = binds.into_iter().collect();
    list.retain(|m| m["destination"].as_str().is_none_or(|d| !last.contains_key(d)));
    let mut last: Vec<_> = last.into_iter().collect();
    last.sort_by_key(|(path, _)| path.matches('/').count());
    list.extend(last.into_iter().map(|(_, m)| m));
    Ok(list)
}

/// What every container has.
fn own(input: &Input<'_>) -> Vec<Value> {
    let (security, sandbox) = (&input.config.security, input.sandbox);
    let access = if security.privileged { "rw" } else { "ro" };
    let sys = ["nosuid", "noexec", "nodev", access];
    let cgroup = ["nosuid", "noexec", "nodev", "relatime", access];
    let gid = format!("gid={TTY_GROUP}");
    let mut devpts = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    let terminals = match &sandbox.user_namespace {
        Some(namespace) => userns::host_id(&namespace.gids, TTY_GROUP).is_some(),
        // An ordinary user without further ids has none but his own.
        None => !coracle_rootfs::in_user_namespace() || userns::own_group(TTY_GROUP),
    };
    if terminals {
        devpts.push(&gid);
    }
    // sysfs shows the network namespace, and only who owns that may mount it.
    let owned = sandbox.user_namespace.is_some() || coracle_rootfs::in_user_namespace();
    let foreign_network = owned && sandbox.network == NamespaceMode::Node;
    let sysfs = match foreign_network {
        true => mount("/sys", "bind", "/sys", &["rbind", "rslave", "nosuid", "noexec", "nodev", access]),
        false => mount("/sys", "sysfs", "sysfs", &sys),
    };
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", &devpts),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        sysfs,
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &cgroup),
    ]
}

fn bind(target: &str, source: &Path, options: &[&str]) -> Result<(String, Value)> {
    let source = source.to_str().ok_or_else(|| Error::invalid("mounts", format!("{source:?} is not UTF-8")))?;
    Ok((target.to_owned(), mount(target, "bind", source, options)))
}

fn volume_mount(input: &Input<'_>, volume: &Mount, label: &str) -> Result<(String, Value)> {
    let bad = |why: &str| Error::invalid("mounts", format!("{}: {why}", volume.container_path.display()));
    let target = volume.container_path.to_str().ok_or_else(|| bad("the path is not UTF-8"))?;
    if !target.starts_with('/') || target.split('/').any(|part| part == "..") {
        return Err(bad("the path must be absolute and have no `..`"));
    }
    let target = format!("/{}", target.split('/').filter(|p| !p.is_empty() && *p != ".").collect::<Vec<_>>().join("/"));
    if target == "/" {
        return Err(bad("the root itself cannot be a volume"));
    }
    if volume.recursive_read_only && (!volume.readonly || volume.propagation != Propagation::Private) {
        return Err(bad("recursive_read_only needs readonly, and private propagation"));
    }
    let mut mount = match &volume.image {
        Some(image) => image_mount(input, volume, image, &target)?,
        None => host_mount(input, volume, &target, label)?,
    };
    let maps = maps_of(input, volume)?;
    if let Some((uids, gids)) = maps {
        mount["uidMappings"] = uids;
        mount["gidMappings"] = gids;
    }
    Ok((target, mount))
}

/// The maps of a volume: what is asked for; an image's files have those of the pod, and so has everything in a pod whose
/// ids the engine chose.
fn maps_of(input: &Input<'_>, volume: &Mount) -> Result<Option<(Value, Value)>> {
    if volume.uid_mappings.is_empty() && volume.gid_mappings.is_empty() {
        let pods = input.sandbox.user_namespace.as_ref().filter(|_| input.sandbox.own_users || volume.image.is_some());
        return Ok(pods.map(|n| (userns::oci(&n.uids), userns::oci(&n.gids))));
    }
    let field = |kind: &str| format!("mounts: {}: {kind}_mappings", volume.container_path.display());
    userns::check(&field("uid"), &volume.uid_mappings)?;
    userns::check(&field("gid"), &volume.gid_mappings)?;
    Ok(Some((userns::oci(&volume.uid_mappings), userns::oci(&volume.gid_mappings))))
}

fn access(volume: &Mount) -> &'static str {
    match (volume.recursive_read_only, volume.readonly) {
        (true, _) => "rro",
        (false, true) => "ro",
        (false, false) => "rw",
    }
}

fn host_mount(input: &Input<'_>, volume: &Mount, target: &str, label: &str) -> Result<Value> {
    let bad = |why: &str| Error::invalid("mounts", format!("{}: {why}", volume.container_path.display()));
    if !volume.image_sub_path.is_empty() {
        return Err(bad("image_sub_path without an image"));
    }
    if let Err(e) = fs::metadata(&volume.host_path) {
        if !volume.create_source || e.kind() != std::io::ErrorKind::NotFound {
            return Err(Error::io("find the source of a volume", &volume.host_path)(e));
        }
        fs::create_dir_all(&volume.host_path).map_err(Error::io("make the source of a volume", &volume.host_path))?;
    }
    if volume.propagation == Propagation::Bidirectional && input.sandbox.user_namespace.is_some() {
        return Err(bad("Bidirectional propagation: mounts made in a user namespace are never seen outside of it"));
    }
    if let Some(why) = propagation_refused(volume)? {
        return Err(bad(&why));
    }
    let sub = volume.sub_path.to_str().ok_or_else(|| bad("sub_path is not UTF-8"))?;
    if volume.sub_path.is_absolute() || sub.split('/').any(|part| part == "..") {
        return Err(bad(&format!("sub_path {sub:?} must be relative and have no `..`")));
    }
    if volume.selinux_relabel && !sub.is_empty() {
        return Err(bad("selinux_relabel is for whole volumes: a path in one may lead elsewhere"));
    }
    if volume.selinux_relabel {
        lsm::Host::new(Path::new("/")).relabel(&volume.host_path, label)?;
    }
    let propagation = match volume.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let part = format!("{SUB_PATH}{sub}");
    let mut options = vec!["rbind", propagation, access(volume)];
    options.extend((!sub.is_empty()).then_some(part.as_str()));
    Ok(bind(target, &volume.host_path, &options)?.1)
}

fn image_mount(input: &Input<'_>, volume: &Mount, image: &str, target: &str) -> Result<Value> {
    let bad = |why: &str| Error::invalid("mounts", format!("{}: {why}", volume.container_path.display()));
    if !volume.host_path.as_os_str().is_empty() || !volume.sub_path.as_os_str().is_empty() {
        return Err(bad("host_path or sub_path, and image exclude each other"));
    }
    if volume.propagation != Propagation::Private {
        return Err(bad("an image has no mount propagation"));
    }
    let sub = Path::new(&volume.image_sub_path);
    if sub.is_absolute() || sub.components().any(|c| c.as_os_str() == "..") {
        return Err(bad(&format!("image_sub_path {:?} must be relative and have no `..`", volume.image_sub_path)));
    }
    let layers = input.images.get(image).ok_or_else(|| bad("its image was not looked up"))?;
    let part = format!("{SUB_PATH}{}", volume.image_sub_path);
    if input.guest {
        let mut options = ["ro", "nosuid", "nodev", "noexec"].to_vec();
        options.extend((!volume.image_sub_path.is_empty()).then_some(part.as_str()));
        return Ok(mount(target, guest::EROFS, layers.first().map_or("", String::as_str), &options));
    }
    // Overlay wants two layers where none is writable: an empty folder is the lowest.
    let empty = input.bundle.join("rootfs");
    let mut lower: Vec<&str> = layers.iter().map(String::as_str).collect();
    if lower.len() < 2 {
        lower.extend(empty.to_str());
    }
    let mut options =
        ["ro", "nosuid", "nodev", "noexec", "index=off", "metacopy=off", "redirect_dir=nofollow"].to_vec();
    options.extend(coracle_rootfs::overlay_marks());
    let lower = format!("lowerdir={}", lower.join(":"));
    options.push(&lower);
    if !volume.image_sub_path.is_empty() {
        options.push(&part);
    }
    Ok(mount(target, "overlay", "overlay", &options))
}

/// Why the propagation asked for could not work: the mount that holds the source must take part in it.
fn propagation_refused(volume: &Mount) -> Result<Option<String>> {
    let wanted: &[&str] = match volume.propagation {
        Propagation::Private => return Ok(None),
        Propagation::HostToContainer => &["shared:", "master:"],
        Propagation::Bidirectional => &["shared:"],
    };
    let source = volume.host_path.canonicalize().map_err(Error::io("resolve", &volume.host_path))?;
    let mounts = fs::read_to_string(MOUNTINFO).map_err(Error::io("read", MOUNTINFO))?;
    let (point, flags) = mount_of(&mounts, &source).unwrap_or_default();
    let takes_part = flags.split(' ').any(|flag| wanted.iter().any(|w| flag.starts_with(w)));
    Ok((!takes_part).then(|| {
        format!(
            "{:?} propagation needs a shared mount, and {point} is private (mount --make-rshared {point})",
            volume.propagation
        )
    }))
}

/// The mountpoint that holds `path`, and its optional fields, as mountinfo tells them.
fn mount_of(mountinfo: &str, path: &Path) -> Option<(String, String)> {
    let line = |line: &str| {
        let left = line.split_once(" - ")?.0;
        let mut fields = left.splitn(7, ' ');
        let point = fields.nth(4)?.replace("\\040", " ");
        Some((point, fields.nth(1).unwrap_or_default().to_owned()))
    };
    // The last of the deepest: mounts stack.
    mountinfo.lines().filter_map(line).filter(|(p, _)| path.starts_with(p)).max_by_key(|(p, _)| p.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn propagation_that_cannot_work_is_refused() {
        let mountinfo = "20 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda rw\n\
                         21 20 0:5 / /mnt rw - tmpfs tmpfs rw\n22 20 0:6 / /mnt/sl rw master:7 - tmpfs tmpfs rw";
        let of = |path: &str| mount_of(mountinfo, Path::new(path)).unwrap();
        assert_eq!(of("/etc/x"), ("/".into(), "shared:1".into()));
        assert_eq!(of("/mnt/a"), ("/mnt".into(), String::new()));
        assert_eq!(of("/mnt/sl/b"), ("/mnt/sl".into(), "master:7".into()));
    }
}
