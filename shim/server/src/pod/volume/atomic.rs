//! Files that change together: kubelet's layout of a volume with configuration.
//!
//! ```text
//! VOLUME/..2026_11_22_15_59_01.123456789/     a version, whole: never changed once it is seen
//! VOLUME/..data -> ..2026_11_22_...           the version that counts
//! VOLUME/KEY -> ..data/KEY                    what programs open; for `a/b` the link is `a -> ..data/a`
//! ```
//!
//! A new version is written beside the old one, then `..data` is replaced by one rename: who reads sees the old files
//! or the new ones, never some of each. Links of names that are new come before the rename, those of names that are
//! gone are removed after it. A crash leaves at most a version that nothing points to, which the next writing removes.
//!
//! Nobody but us writes here: containers mount such volumes read-only.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::owner::Owner;
use crate::time;

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";
/// What begins so is ours, and no key may.
const OURS: &str = "..";
/// As in Linux.
const MAX_NAME: usize = 255;
const MAX_PATH: usize = 4096;
/// Versions of one nanosecond: a clock that stands still.
const MAX_SAME_TIME: u32 = 100;

/// A file to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// What is in it.
    pub bytes: Vec<u8>,
    /// Its permissions.
    pub mode: u32,
}

/// The files of a volume by their paths in it.
pub type Payload = BTreeMap<String, File>;

/// Makes a volume's files these; whether something changed.
pub fn write(dir: &Path, payload: &Payload, owner: &Owner) -> Result<bool> {
    payload.keys().try_for_each(|path| check(path))?;
    let context = || format!("write the volume {}", dir.display());
    let current = match fs::read_link(dir.join(DATA)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        link => Some(link.with_context(context)?),
    };
    if let Some(current) = &current
        && is_same(&dir.join(current), payload, owner).with_context(context)?
    {
        return Ok(false);
    }
    let version = new_version(dir, payload, owner).with_context(context)?;
    publish(dir, payload, &version).with_context(context)?;
    remove_old(dir, payload, &version).with_context(context)?;
    Ok(true)
}

/// What kubelet asks of a path in a volume.
fn check(path: &str) -> Result<()> {
    if path.is_empty() || path.len() > MAX_PATH {
        bail!("the path {path:?} must have 1 to {MAX_PATH} characters");
    }
    let parts = Path::new(path).components();
    for part in parts {
        match part {
            Component::Normal(name) if name.len() <= MAX_NAME => {}
            Component::Normal(_) => bail!("a name in the path {path:?} has more than {MAX_NAME} characters"),
            _ => bail!("the path {path:?} must be relative and without `.` and `..`"),
        }
    }
    match path.starts_with(OURS) {
        true => bail!("the path {path:?} must not begin with `..`"),
        false => Ok(()),
    }
}

/// The name at the volume's root that leads to a path.
fn top(path: &str) -> &str {
    path.split('/').next().unwrap_or(path)
}

/// Whether a version holds just these files.
fn is_same(version: &Path, payload: &Payload, owner: &Owner) -> io::Result<bool> {
    let mut found = BTreeSet::new();
    list(version, "", &mut found)?;
    if !found.iter().eq(payload.keys()) {
        return Ok(false);
    }
    for (path, file) in payload {
        let path = version.join(path);
        let meta = fs::symlink_metadata(&path)?;
        let same = meta.mode() & 0o7777 == owner.file_mode(file.mode)
            && owner.is_of(&meta)
            && meta.len() == file.bytes.len() as u64
            && fs::read(&path)? == file.bytes;
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The paths of all files beneath a folder.
fn list(dir: &Path, prefix: &str, found: &mut BTreeSet<String>) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        match entry.file_type()?.is_dir() {
            true => list(&entry.path(), &format!("{path}/"), found)?,
            false => drop(found.insert(path)),
        }
    }
    Ok(())
}

/// Writes a version that nothing points to yet; its name.
fn new_version(dir: &Path, payload: &Payload, owner: &Owner) -> io::Result<PathBuf> {
    let (name, path) = make_version(dir)?;
    owner.folder(&path)?;
    for (to, file) in payload {
        let mut at = path.clone();
        let (folders, name) = to.rsplit_once('/').unwrap_or(("", to));
        for folder in folders.split('/').filter(|folder| !folder.is_empty()) {
            at.push(folder);
            match fs::DirBuilder::new().mode(0o755).create(&at) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => {
                    made?;
                    owner.folder(&at)?;
                }
            }
        }
        let at = at.join(name);
        let mut made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&at)?;
        made.write_all(&file.bytes)?;
        owner.file(&made, file.mode)?;
    }
    Ok(name.into())
}

fn make_version(dir: &Path) -> io::Result<(String, PathBuf)> {
    let now = time::now();
    let stamp = time::rfc3339(now).replace(['-', ':', 'T'], "_");
    let stamp = format!("{OURS}{}.{:09}", stamp.trim_end_matches('Z'), now.rem_euclid(time::SECOND));
    for attempt in 0..MAX_SAME_TIME {
        let name = if attempt == 0 { stamp.clone() } else { format!("{stamp}-{attempt}") };
        let path = dir.join(&name);
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| (name, path)),
        }
    }
    Err(io::Error::other("the clock stands still"))
}

/// Makes a version the one that counts.
fn publish(dir: &Path, payload: &Payload, version: &Path) -> io::Result<()> {
    for name in payload.keys().map(|path| top(path)).collect::<BTreeSet<_>>() {
        match symlink(format!("{DATA}/{name}"), dir.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
    }
    let draft = dir.join(NEW_DATA);
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(version, &draft)?;
    fs::rename(&draft, dir.join(DATA))
}

/// Removes the links of names that are gone and every other version.
fn remove_old(dir: &Path, payload: &Payload, version: &Path) -> io::Result<()> {
    let tops: BTreeSet<&str> = payload.keys().map(|path| top(path)).collect();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (name, path) = (entry.file_name(), entry.path());
        let is_dir = entry.file_type()?.is_dir();
        let name = name.to_string_lossy();
        if name.starts_with(OURS) {
            if is_dir && Path::new(&*name) != version {
                fs::remove_dir_all(path)?;
            }
        } else if !tops.contains(&*name) {
            // A path in the volume for a subPath that named nothing was made as a folder, and is not ours.
            match is_dir {
                true => {}
                false => fs::remove_file(path)?,
            }
        }
    }
    Ok(())
}

/// Sets permissions whatever the umask.
pub(super) fn chmod(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str, u32)]) -> Payload {
        files
            .iter()
            .map(|(path, text, mode)| ((*path).to_owned(), File { bytes: text.as_bytes().to_vec(), mode: *mode }))
            .collect()
    }

    fn read(dir: &Path, path: &str) -> String {
        fs::read_to_string(dir.join(path)).unwrap()
    }

    fn names(dir: &Path) -> BTreeSet<String> {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with("..2")).collect()
    }

    #[test]
    fn the_layout_is_kubelets() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let files = payload(&[("a", "1", 0o644), ("sub/b", "2", 0o400), ("sub/deep/c", "3", 0o644)]);
        assert!(write(dir, &files, &Owner::default()).unwrap());
        assert_eq!(names(dir), ["..data", "a", "sub"].map(String::from).into());
        assert_eq!(fs::read_link(dir.join("a")).unwrap(), Path::new("..data/a"));
        assert_eq!(fs::read_link(dir.join("sub")).unwrap(), Path::new("..data/sub"));
        let version = fs::read_link(dir.join("..data")).unwrap();
        assert!(version.to_str().unwrap().starts_with("..20"), "{version:?}");
        assert_eq!((read(dir, "a"), read(dir, "sub/b"), read(dir, "sub/deep/c")), ("1".into(), "2".into(), "3".into()));
        assert_eq!(fs::metadata(dir.join("sub/b")).unwrap().mode() & 0o7777, 0o400);
    }

    #[test]
    fn nothing_is_written_when_nothing_changed_and_all_at_once_when_something_did() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let none = Owner::default();
        write(dir, &payload(&[("a", "1", 0o644), ("gone", "x", 0o644), ("dir/gone", "x", 0o644)]), &none).unwrap();
        let first = fs::read_link(dir.join("..data")).unwrap();
        let same = payload(&[("a", "1", 0o644), ("gone", "x", 0o644), ("dir/gone", "x", 0o644)]);
        assert!(!write(dir, &same, &none).unwrap());
        assert_eq!(fs::read_link(dir.join("..data")).unwrap(), first);

        let open = fs::File::open(dir.join("a")).unwrap();
        assert!(write(dir, &payload(&[("a", "2", 0o644), ("new", "y", 0o644)]), &none).unwrap());
        assert_eq!(names(dir), ["..data", "a", "new"].map(String::from).into());
        assert_eq!((read(dir, "a"), read(dir, "new")), ("2".into(), "y".into()));
        assert!(!dir.join(first).exists(), "the old version is gone");
        assert_eq!(io::read_to_string(open).unwrap(), "1", "who has the old file open reads the old one");
        assert!(write(dir, &payload(&[("a", "2", 0o600), ("new", "y", 0o644)]), &none).unwrap(), "a mode counts");
        assert!(write(dir, &Payload::new(), &none).unwrap());
        assert_eq!(names(dir), ["..data"].map(String::from).into());
    }

    #[test]
    fn what_a_crash_left_is_cleared_up() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        fs::create_dir_all(dir.join("..2020_01_01_00_00_00.1/half")).unwrap();
        symlink("..2020_01_01_00_00_00.1", dir.join("..data_tmp")).unwrap();
        write(dir, &payload(&[("a", "1", 0o644)]), &Owner::default()).unwrap();
        assert!(!dir.join("..2020_01_01_00_00_00.1").exists());
        assert_eq!(names(dir), ["..data", "a"].map(String::from).into());
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let long = "x".repeat(256);
        for bad in ["", "/etc/passwd", "a/../../b", "..data", "..x", "../x", long.as_str()] {
            let files = payload(&[("good", "1", 0o644), (bad, "2", 0o644)]);
            assert!(write(dir.path(), &files, &Owner::default()).is_err(), "{bad:?}");
            assert_eq!(names(dir.path()), BTreeSet::new());
        }
    }

    #[test]
    fn readers_never_see_some_of_each() {
        let dir = tempfile::tempdir().unwrap();
        let both = |text: &str| payload(&[("a", text, 0o644), ("b", text, 0o644)]);
        write(dir.path(), &both("0"), &Owner::default()).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..200 {
                    write(dir.path(), &both(&round.to_string()), &Owner::default()).unwrap();
                }
                done.store(true, std::sync::atomic::Ordering::Release);
            });
            while !done.load(std::sync::atomic::Ordering::Acquire) {
                // As a careful reader does: through the folder that `..data` names at one moment.
                let version = dir.path().join(fs::read_link(dir.path().join("..data")).unwrap());
                let pair = (fs::read_to_string(version.join("a")), fs::read_to_string(version.join("b")));
                if let (Ok(a), Ok(b)) = pair {
                    assert_eq!(a, b);
                }
            }
        });
    }
}
