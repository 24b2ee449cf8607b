//! Whether a handler's program is there and runs, and what it can do: asked of the program itself, with a deadline, and
//! remembered until its file changes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;
use tokio::time::timeout;

use crate::program::find_program;

/// How long a program may take to say its version.
const PATIENCE: Duration = Duration::from_secs(5);
/// What it says of its failure is shown up to here.
const MAX_WORDS: usize = 300;
/// Since this kernel a mount can be made read-only with all below it (mount_setattr).
const RECURSIVE_READ_ONLY: (u32, u32) = (5, 12);
/// Since this kernel tmpfs can be idmapped, the last of what a pod's volumes lie on.
const IDMAPPED: (u32, u32) = (6, 3);

/// What pods of a handler can have, in CRI's terms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// Mounts that are read-only with all that is mounted below them.
    pub recursive_read_only_mounts: bool,
    /// User namespaces with idmapped mounts.
    pub user_namespaces: bool,
}

/// A file as it was when it was asked: device, inode, size, time of change.
pub(super) type Identity = (u64, u64, u64, i64, i64);

/// What was found out about one file.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    identity: Identity,
    healthy: bool,
    features: Option<Features>,
}

static KNOWN: Mutex<BTreeMap<PathBuf, Known>> = Mutex::new(BTreeMap::new());

pub(super) fn identity(path: &Path) -> Identity {
    fs::metadata(path).map(|m| (m.dev(), m.ino(), m.size(), m.ctime(), m.ctime_nsec())).unwrap_or_default()
}

fn known(path: &Path) -> Known {
    let identity = identity(path);
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner).get(path).copied();
    known.filter(|known| known.identity == identity).unwrap_or(Known { identity, ..Known::default() })
}

fn learn(path: &Path, known: Known) {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), known);
}

async fn run(program: &Path, argument: &str) -> Result<Output, String> {
    let said = Command::new(program)
        .arg(argument)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    let what = format!("its program {} {argument}", program.display());
    match timeout(PATIENCE, said).await {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(error)) => Err(format!("{what}: {error}")),
        Err(_) => Err(format!("{what}: no answer within {}s", PATIENCE.as_secs())),
    }
}

/// Whether it runs at all: it is asked for its version.
pub async fn check(program: &Path, flag: &str) -> Result<(), String> {
    let before = known(program);
    if before.healthy {
        return Ok(());
    }
    let output = run(program, flag).await?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let words = words.trim().chars().take(MAX_WORDS).collect::<String>().replace('\n', "; ");
        let colon = if words.is_empty() { "" } else { ": " };
        return Err(format!("its program {} {flag}: {}{colon}{words}", program.display(), output.status));
    }
    learn(program, Known { healthy: true, ..before });
    Ok(())
}

/// The parts of a runtime's `features` that are looked at.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Told {
    mount_options: Vec<String>,
    linux: ToldLinux,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct ToldLinux {
    namespaces: Vec<String>,
    mount_extensions: ToldExtensions,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ToldExtensions {
    idmap: ToldIdmap,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ToldIdmap {
    enabled: bool,
}

fn told(text: &[u8]) -> Features {
    // A runtime too old for the question can neither.
    let told: Told = serde_json::from_slice(text).unwrap_or_default();
    let has = |list: &[String], word: &str| list.iter().any(|other| other == word);
    Features {
        recursive_read_only_mounts: has(&told.mount_options, "rro"),
        user_namespaces: has(&told.linux.namespaces, "user") && told.linux.mount_extensions.idmap.enabled,
    }
}

/// What an OCI runtime says it can do; one that is not there can nothing.
pub async fn features_of(name: &Path) -> Features {
    match find_program(name) {
        Ok(program) => features(&program).await,
        Err(_) => Features::default(),
    }
}

async fn features(program: &Path) -> Features {
    let before = known(program);
    if let Some(features) = before.features {
        return features;
    }
    let Ok(output) = run(program, "features").await else { return Features::default() };
    let features = if output.status.success() { told(&output.stdout) } else { Features::default() };
    learn(program, Known { features: Some(features), ..before });
    features
}

/// What our own runtime can do on this kernel.
pub fn own_features() -> Features {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = kernel(&release);
    Features {
        recursive_read_only_mounts: kernel >= RECURSIVE_READ_ONLY,
        user_namespaces: kernel >= IDMAPPED && Path::new("/proc/self/ns/user").exists(),
    }
}

fn kernel(release: &str) -> (u32, u32) {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn features_are_what_the_runtime_says_of_itself() {
        let all = br#"{"mountOptions":["ro","rro"],"linux":{"namespaces":["user"],"mountExtensions":{"idmap":{"enabled":true}}}}"#;
        assert_eq!(told(all), Features { recursive_read_only_mounts: true, user_namespaces: true });
        let old = br#"{"mountOptions":["ro"],"linux":{"namespaces":["user"]}}"#;
        assert_eq!(told(old), Features::default());
        assert_eq!(told(b"unknown command features"), Features::default());
    }

    #[test]
    fn a_kernels_release_is_compared_by_numbers() {
        assert_eq!(kernel("6.18.1-arch"), (6, 18));
        assert!(kernel("5.4.0") < RECURSIVE_READ_ONLY && kernel("10.1") > IDMAPPED);
    }

    #[tokio::test]
    async fn a_program_is_asked_again_only_when_its_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runtime");
        let write = |text: &str| {
            fs::write(dir.path().join("new"), text).unwrap();
            fs::set_permissions(dir.path().join("new"), fs::Permissions::from_mode(0o755)).unwrap();
            fs::rename(dir.path().join("new"), &path).unwrap();
        };
        assert!(find_program(&path).unwrap_err().contains("is it installed"));
        write("#!/bin/sh\necho broken >&2\nexit 3\n");
        let why = check(&path, "--version").await.unwrap_err();
        assert!(why.contains("exit status: 3: broken"), "{why}");
        write("#!/bin/sh\necho >> \"$0.asked\"\n");
        check(&path, "--version").await.unwrap();
        check(&path, "--version").await.unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("runtime.asked")).unwrap(), "\n");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(find_program(&path).unwrap_err().contains("cannot be executed"));
    }
}
