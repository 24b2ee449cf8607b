//! What a container has of the host: mounts and standard streams.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};
use crate::spec::Spec;

/// Filesystems that CRIU makes again by itself, even where the container has the host's.
const MADE_AGAIN: &[&str] =
    &["proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2", "securityfs", "debugfs", "tracefs"];
/// Where a masked file comes from.
const NULL: &str = "/dev/null";

/// A line of mountinfo, of which only this is wanted.
#[derive(Debug, PartialEq, Eq)]
struct MountLine {
    device: String,
    point: PathBuf,
    fstype: String,
}

fn mount_lines(text: &str) -> Vec<MountLine> {
    let line = |line: &str| {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(2);
        let device = front.next()?.to_owned();
        let point = PathBuf::from(unescape(front.nth(1)?));
        Some(MountLine { device, point, fstype: back.split(' ').next()?.to_owned() })
    };
    text.lines().filter_map(line).collect()
}

/// The kernel writes blanks and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => out.push(char::from(byte)),
            None => out.push('\\'),
        }
        out.push_str(part.get(3..).unwrap_or(part));
    }
    out
}

fn read_mounts(pid: &str) -> Result<Vec<MountLine>> {
    let path = PathBuf::from(format!("/proc/{pid}/mountinfo"));
    Ok(mount_lines(&fs::read_to_string(&path).path("read", &path)?))
}

/// The mount points at which a container has filesystems that the host has, too.
pub(super) fn mounts_of(pid: i32, spec: &Spec) -> Result<Vec<PathBuf>> {
    let host: BTreeSet<String> = read_mounts("self")?.into_iter().map(|m| m.device).collect();
    let mut found = Vec::new();
    for mount in read_mounts(&pid.to_string())? {
        let known = mount.point == Path::new("/") || MADE_AGAIN.contains(&mount.fstype.as_str());
        if known || !host.contains(&mount.device) {
            continue;
        }
        // Now rather than at the restore.
        source_of(&mount.point, spec, Path::new("/"))?;
        found.push(mount.point);
    }
    Ok(found)
}

/// Where on the host the files of a mount point come from.
pub(super) fn source_of(point: &Path, spec: &Spec, bundle: &Path) -> Result<PathBuf> {
    // A later mount covers an earlier one.
    let bind = spec.mounts.iter().rev().find_map(|mount| {
        let options = &mount.options;
        let is_bind = mount.kind.as_deref() == Some("bind") || options.iter().any(|o| o == "bind" || o == "rbind");
        let source = mount.source.as_ref().filter(|_| is_bind)?;
        let rest = point.strip_prefix(Path::new("/").join(&mount.destination)).ok()?;
        let source = bundle.join(source);
        Some(if rest.as_os_str().is_empty() { source } else { source.join(rest) })
    });
    if let Some(source) = bind {
        return Ok(source);
    }
    if spec.linux.masked_paths.iter().any(|path| path == point) {
        return Ok(NULL.into());
    }
    // In a user namespace devices are the host's, at their own paths.
    if point.starts_with("/dev") || spec.linux.devices.iter().any(|d| d.path == point) {
        return Ok(point.to_owned());
    }
    let point = point.display();
    Err(Error::State(format!(
        "{point} is a mount of the host's files, and config.json does not say of which (made since, or a destination that \
         is a symlink?): it could not be restored"
    )))
}

/// How CRIU names what a descriptor leads to, and what it needs to be told at the dump.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stream {
    pub name: String,
    pub external: bool,
}

/// The standard streams of a frozen process. A pipe's other end, and a file of the host, are outside.
///
/// A shell that was just redirecting keeps its stream on another descriptor meanwhile: what of the host's is found there
/// counts as the stream that is not the host's now.
pub(super) fn streams_of(pid: i32) -> Result<Vec<Stream>> {
    let inside: BTreeSet<String> = read_mount_ids(pid)?;
    let mut streams = (0..3).map(|fd| stream_of(pid, fd, &inside)).collect::<Result<Vec<_>>>()?;
    for fd in descriptors(pid)?.into_iter().filter(|fd| *fd > 2) {
        let kept = stream_of(pid, fd, &inside)?;
        if kept.external && !streams.contains(&kept) {
            match streams.iter_mut().find(|stream| !is_inherited(&stream.name)) {
                Some(redirected) => *redirected = kept,
                None => streams.push(kept),
            }
        }
    }
    Ok(streams)
}

fn descriptors(pid: i32) -> Result<Vec<i32>> {
    let path = PathBuf::from(format!("/proc/{pid}/fd"));
    let entries = fs::read_dir(&path).path("list", &path)?;
    let mut found: Vec<i32> = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    found.sort_unstable();
    Ok(found)
}

fn read_mount_ids(pid: i32) -> Result<BTreeSet<String>> {
    let path = PathBuf::from(format!("/proc/{pid}/mountinfo"));
    let text = fs::read_to_string(&path).path("read", &path)?;
    Ok(text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

fn stream_of(pid: i32, fd: i32, inside: &BTreeSet<String>) -> Result<Stream> {
    let path = PathBuf::from(format!("/proc/{pid}/fd/{fd}"));
    let link = match fs::read_link(&path) {
        // The program may have closed it.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Stream { name: String::new(), external: false });
        }
        result => result.path("read", &path)?.to_string_lossy().into_owned(),
    };
    if !link.starts_with('/') {
        return Ok(Stream { name: link, external: false });
    }
    let info = PathBuf::from(format!("/proc/{pid}/fdinfo/{fd}"));
    let text = fs::read_to_string(&info).path("read", &info)?;
    let mount = text.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim).unwrap_or_default();
    if inside.contains(mount) {
        return Ok(Stream { name: link, external: false });
    }
    let inode = fs::metadata(&path).path("stat", &path)?.ino();
    let mount: u32 = mount.parse().map_err(|_| Error::State(format!("{}: no mnt_id", info.display())))?;
    Ok(Stream { name: format!("file[{mount:x}:{inode:x}]"), external: true })
}

/// Whether a stream of `descriptors.json` has to be given at the restore.
pub(super) fn is_inherited(name: &str) -> bool {
    name.starts_with("pipe:") || name.starts_with("file[")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_lines_are_read_with_their_escapes() {
        let text = "36 35 98:0 /a /mnt\\040x rw,noatime master:1 - ext3 /dev/root rw\n";
        let wanted = MountLine { device: "98:0".into(), point: "/mnt x".into(), fstype: "ext3".into() };
        assert_eq!(mount_lines(text), [wanted]);
    }

    #[test]
    fn the_source_of_a_mount_is_found_beneath_its_bind() {
        let spec: Spec = serde_json::from_value(serde_json::json!({
            "ociVersion": "1.0.2",
            "mounts": [{ "destination": "/data", "type": "bind", "source": "vol", "options": ["rbind"] }],
            "linux": { "maskedPaths": ["/proc/kcore"] },
        }))
        .unwrap();
        let source = |point: &str| source_of(Path::new(point), &spec, Path::new("/b"));
        assert_eq!(source("/data").unwrap(), Path::new("/b/vol"));
        assert_eq!(source("/data/sub").unwrap(), Path::new("/b/vol/sub"));
        assert_eq!(source("/proc/kcore").unwrap(), Path::new("/dev/null"));
        assert!(source("/other").unwrap_err().to_string().contains("/other"));
    }
}
