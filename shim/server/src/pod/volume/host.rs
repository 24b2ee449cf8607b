//! hostPath: what its type promises is checked, or made.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::kube::volume::HostPathKind;

fn make_dir(path: &Path, mode: u32) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    made.with_context(|| format!("make the directory {}", path.display()))
}

/// Checks that a hostPath is what its type says, or makes it.
pub fn prepare(path: &Path, kind: HostPathKind) -> Result<()> {
    match kind {
        // Nothing is checked of a path without a type, and CRI runtimes make what is not there.
        HostPathKind::DirectoryOrCreate | HostPathKind::Any if !path.exists() => make_dir(path, 0o755)?,
        HostPathKind::FileOrCreate if !path.exists() => {
            let made = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(path);
            made.with_context(|| format!("make the file {}", path.display()))?;
        }
        _ => {}
    }
    let meta = fs::metadata(path).with_context(|| format!("hostPath {}", path.display()))?;
    let found = meta.file_type();
    let (right, expected) = match kind {
        HostPathKind::Any => (true, ""),
        HostPathKind::DirectoryOrCreate | HostPathKind::Directory => (found.is_dir(), "directory"),
        HostPathKind::FileOrCreate | HostPathKind::File => (found.is_file(), "file"),
        HostPathKind::Socket => (found.is_socket(), "socket"),
        HostPathKind::CharDevice => (found.is_char_device(), "character device"),
        HostPathKind::BlockDevice => (found.is_block_device(), "block device"),
    };
    match right {
        true => Ok(()),
        false => bail!("hostPath {} is not a {expected}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_paths_are_made_or_checked_by_their_type() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        prepare(&path("d/e"), HostPathKind::DirectoryOrCreate).unwrap();
        prepare(&path("f"), HostPathKind::FileOrCreate).unwrap();
        assert!(path("d/e").is_dir() && path("f").is_file());
        let told = |name, kind| format!("{:#}", prepare(&path(name), kind).unwrap_err());
        assert!(told("f", HostPathKind::Directory).ends_with("is not a directory"));
        assert!(told("d", HostPathKind::Socket).ends_with("is not a socket"));
        assert!(told("none", HostPathKind::Directory).contains("No such file"));
        prepare(&path("any/folder"), HostPathKind::Any).unwrap();
        assert!(path("any/folder").is_dir());
        prepare(Path::new("/dev/null"), HostPathKind::CharDevice).unwrap();
    }
}
