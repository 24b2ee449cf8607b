//! Termination messages: what a container says of its end.
//!
//! Each incarnation has an empty file of its own, mounted at its `terminationMessagePath`. It lies on the disk with the
//! pod's other data (`ROOT/pods/SANDBOX/messages/CONTAINER.ATTEMPT`): a container may write as much as it likes, and
//! of that the first bytes count. One that has written nothing and failed may have the end of its log stand for it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use coracle_engine::{ContainerStatus, Mount, Paths};

use crate::kube::container::Container;
use crate::kube::lifecycle::MessagePolicy;
use crate::kube::pod::Pod;
use crate::text::cut;

/// Bytes of a message, as with kubelet.
const MAX: usize = 4 << 10;
/// Bytes of all messages of a pod.
const MAX_POD: usize = 12 << 10;
/// Bytes and lines of a log that stand for a message.
const MAX_LOG: usize = 2 << 10;
const MAX_LOG_LINES: usize = 80;
/// Bytes that are read from the end of a log for them: lines have a head each.
const LOG_TAIL: u64 = 64 << 10;
/// Every user of the container may write, as with kubelet.
const MODE: u32 = 0o666;

fn folder(paths: &Paths, sandbox: &str) -> PathBuf {
    paths.pod_data(sandbox).join("messages")
}

fn file(paths: &Paths, sandbox: &str, name: &str, attempt: u32) -> PathBuf {
    folder(paths, sandbox).join(format!("{name}.{attempt}"))
}

/// Makes the file of an incarnation that is about to be made; the answer is how it is mounted. None if something of
/// the user's is mounted there.
pub fn mount(paths: &Paths, sandbox: &str, container: &Container, attempt: u32) -> Result<Option<Mount>> {
    if container.mounts.iter().any(|mount| mount.path == container.message_path) {
        return Ok(None);
    }
    let folder = folder(paths, sandbox);
    fs::create_dir_all(&folder).with_context(|| format!("make folder {}", folder.display()))?;
    let path = file(paths, sandbox, &container.name, attempt);
    let made = OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(&path);
    // Whatever the umask.
    let made = made.and_then(|file| file.set_permissions(fs::Permissions::from_mode(MODE)));
    made.with_context(|| format!("make {}", path.display()))?;
    Ok(Some(Mount { host_path: path, container_path: container.message_path.clone().into(), ..Mount::default() }))
}

/// Removes the file of an incarnation.
pub fn forget(paths: &Paths, sandbox: &str, name: &str, attempt: u32) {
    // One that stays costs its bytes until the pod is removed.
    let _ = fs::remove_file(file(paths, sandbox, name, attempt));
}

/// What an incarnation that has ended said of its end; empty if nothing.
pub fn of(paths: &Paths, pod: &Pod, container: &Container, status: &ContainerStatus) -> String {
    let Some(exit) = &status.exit else { return String::new() };
    let limit = MAX.min(MAX_POD / pod.all_containers().count().max(1));
    let path = file(paths, &status.sandbox_id, &container.name, status.config.attempt);
    let mut message = head(&path, MAX).unwrap_or_default();
    let from_log = container.message_policy == MessagePolicy::FallbackToLogsOnError && exit.code != 0;
    if message.is_empty() && from_log {
        message = status.log_path.as_ref().and_then(|log| tail(log).ok()).unwrap_or_default();
    }
    if message.is_empty() {
        message = exit.message.clone();
    }
    cut(&message, limit).to_owned()
}

fn head(path: &Path, limit: usize) -> Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit as u64).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The end of a log in CRI's format, without the heads of its lines.
fn tail(path: &Path) -> Result<String> {
    let mut file = File::open(path)?;
    let from = file.metadata()?.len().saturating_sub(LOG_TAIL);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // The first line may be cut.
    let lines = text.lines().skip(usize::from(from > 0));
    let mut pieces: Vec<String> = Vec::new();
    let mut partial = false;
    for line in lines {
        let mut words = line.splitn(4, ' ').skip(2);
        let (tag, said) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        match pieces.last_mut().filter(|_| partial) {
            Some(last) => last.push_str(said),
            None => pieces.push(said.to_owned()),
        }
        partial = tag == "P";
    }
    let last = pieces.split_off(pieces.len().saturating_sub(MAX_LOG_LINES));
    let text: String = last.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
    let mut start = text.len().saturating_sub(MAX_LOG);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    Ok(text[start..].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_its_last_lines_without_their_heads() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        let lines: String = (0..200).map(|n| format!("2026-01-01T00:00:00Z stdout F line {n}\n")).collect();
        fs::write(&log, format!("{lines}t stderr P one \nt stderr F piece\n")).unwrap();
        let told = tail(&log).unwrap();
        assert!(told.starts_with("line 121\n") && told.ends_with("line 199\none piece\n"), "{told}");
        fs::write(&log, format!("t stdout F {}\n", "é".repeat(5000))).unwrap();
        let told = tail(&log).unwrap();
        assert!(told.len() <= MAX_LOG && told.ends_with("é\n"), "{}", told.len());
    }
}
