//! Paths inside a root filesystem that nobody trusts.
//!
//! Every path of the configuration that lies in the container is resolved by openat2 with RESOLVE_IN_ROOT from a
//! descriptor of the root: symlinks in it can lead anywhere *inside*, and magic links are refused (by name: that
//! RESOLVE_IN_ROOT alone refuses them is documented as what may change). What is found is
//! held as a descriptor and used as one (move_mount, mknodat, fchownat), so no path is walked twice and nothing can be
//! swapped in between. Without openat2 (before Linux 5.6, and in sandboxes) [`walk`] does the same with one openat for each
//! component.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};

use crate::{sys, walk};

/// How many dangling symlinks are followed to make a missing target, the kernel's own limit.
const MAX_LINKS: usize = 40;

/// Links stay inside the root, and nothing jumps out of it through a descriptor in /proc.
const IN_ROOT: u64 = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;

/// What a target has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

fn c_path(path: &Path) -> io::Result<CString> {
    let bytes = path.as_os_str().as_bytes();
    let start = bytes.iter().position(|&b| b != b'/').unwrap_or(bytes.len());
    let rest = if start == bytes.len() { b"." } else { &bytes[start..] };
    CString::new(rest).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the path contains a NUL byte"))
}

/// Opens `path` as seen from inside `root`, following symlinks inside it.
pub(crate) fn open(root: &impl AsFd, path: &Path, flags: i32) -> io::Result<OwnedFd> {
    resolve(root, path, flags, IN_ROOT)
}

/// The same, and a symlink anywhere in the path is an error (ELOOP).
pub(crate) fn open_no_links(root: &impl AsFd, path: &Path, flags: i32) -> io::Result<OwnedFd> {
    resolve(root, path, flags, IN_ROOT | libc::RESOLVE_NO_SYMLINKS)
}

/// Opens `path` beneath `root`; whatever leads out of it, `..` or a symlink, is an error (EXDEV). Symlinks that stay
/// inside are followed; without openat2, where that cannot be told apart safely, none is (ELOOP).
pub(crate) fn open_strictly(root: &impl AsFd, path: &Path, flags: i32) -> io::Result<OwnedFd> {
    resolve(root, path, flags, libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS)
}

/// openat2 answers EAGAIN when something was renamed or mounted while it checked `..`; it asks to be called again.
fn resolve(root: &impl AsFd, path: &Path, flags: i32, how: u64) -> io::Result<OwnedFd> {
    const TRIES: usize = 64;
    let c_path = c_path(path)?;
    let root = root.as_fd();
    for _ in 0..TRIES {
        match sys::openat2(root.as_raw_fd(), &c_path, flags, 0, how) {
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => {
                let links = how & (libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_BENEATH) == 0;
                return walk::open(root, path, flags, links);
            }
            result => return result,
        }
    }
    Err(io::Error::from_raw_os_error(libc::EAGAIN))
}

/// The target of a mount: opened when it exists, else made, with its parents.
/// An existing target of the wrong type is an error.
pub(crate) fn target(root: &OwnedFd, path: &Path, kind: Kind) -> io::Result<OwnedFd> {
    let mut path = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        match open(root, &path, libc::O_PATH) {
            Ok(fd) => return expect(fd, kind),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            Err(e) => return Err(e),
        }
        match make(root, &path, kind)? {
            Made::Target(fd) => return Ok(fd),
            Made::Link(elsewhere) => path = elsewhere,
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

fn expect(fd: OwnedFd, kind: Kind) -> io::Result<OwnedFd> {
    let is_directory = fstat(&fd)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
    match kind {
        Kind::Directory if !is_directory => Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
        Kind::File if is_directory => Err(io::Error::from_raw_os_error(libc::EISDIR)),
        _ => Ok(fd),
    }
}

enum Made {
    Target(OwnedFd),
    /// A dangling symlink is in the way; this is the path it turns the whole into.
    Link(PathBuf),
}

/// Makes the missing tail of `path`, one component after the other, each relative to the descriptor of the last.
fn make(root: &OwnedFd, path: &Path, kind: Kind) -> io::Result<Made> {
    let parts: Vec<&OsStr> = path
        .components()
        .filter_map(|c| match c {
            Component::Normal(name) => Some(name),
            Component::ParentDir => Some(OsStr::new("..")),
            _ => None,
        })
        .collect();
    let mut at = root.try_clone()?;
    let mut done = 0;
    for length in (1..parts.len()).rev() {
        let prefix: PathBuf = parts[..length].iter().collect();
        match open(root, &prefix, libc::O_PATH | libc::O_DIRECTORY) {
            Ok(fd) => (at, done) = (fd, length),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => continue,
            Err(e) => return Err(e),
        }
        break;
    }
    for index in done..parts.len() {
        let name = Path::new(parts[index]);
        if parts[index] == ".." {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "`..` after a missing directory"));
        }
        let last = index + 1 == parts.len();
        let made = if last && kind == Kind::File {
            nix::sys::stat::mknodat(&at, name, SFlag::S_IFREG, Mode::from_bits_truncate(0o755), 0)
        } else {
            nix::sys::stat::mkdirat(&at, name, Mode::from_bits_truncate(0o755))
        };
        if let Err(e) = made {
            let Ok(link) = nix::fcntl::readlinkat(&at, name) else { return Err(e.into()) };
            let tail: PathBuf = parts[index + 1..].iter().collect();
            let before: PathBuf = parts[..index].iter().collect();
            // An absolute link replaces everything before it: that is what joining an absolute path does.
            return Ok(Made::Link(before.join(link).join(tail)));
        }
        // One component that is not `..`: it leads nowhere else, and a link put in its place is not followed.
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        at = sys::retry(|| openat(&at, name, flags, Mode::empty()))?;
    }
    Ok(Made::Target(at))
}

/// Whether a descriptor is the root itself (a mount there would hide the container's own root).
pub(crate) fn is_root(root: &OwnedFd, fd: &OwnedFd) -> io::Result<bool> {
    let (a, b) = (fstat(root)?, fstat(fd)?);
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap().into();
        (dir, fd)
    }

    #[test]
    fn a_missing_target_is_made_with_its_parents() {
        let (dir, fd) = root();
        target(&fd, Path::new("/a/b/c"), Kind::Directory).unwrap();
        target(&fd, Path::new("/a/b/f"), Kind::File).unwrap();
        assert!(dir.path().join("a/b/c").is_dir());
        assert!(dir.path().join("a/b/f").is_file());
    }

    #[test]
    fn absolute_links_stay_inside() {
        let (dir, fd) = root();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("out")).unwrap();
        target(&fd, Path::new("/out/x"), Kind::Directory).unwrap();
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(dir.path().join(outside.path().strip_prefix("/").unwrap()).join("x").is_dir());
    }

    #[test]
    fn dotdot_links_stay_inside() {
        let (dir, fd) = root();
        symlink("../../../../../../made-by-dotdot", dir.path().join("up")).unwrap();
        // As in a chroot: the parent of the root is the root.
        target(&fd, Path::new("/up/x"), Kind::Directory).unwrap();
        assert!(dir.path().join("made-by-dotdot/x").is_dir());
        assert!(!Path::new("/made-by-dotdot").exists());
    }

    #[test]
    fn a_relative_dangling_link_is_followed_to_where_it_points() {
        let (dir, fd) = root();
        std::fs::create_dir(dir.path().join("var")).unwrap();
        symlink("../run", dir.path().join("var/run")).unwrap();
        std::fs::create_dir(dir.path().join("run")).unwrap();
        target(&fd, Path::new("/var/run/secrets"), Kind::Directory).unwrap();
        assert!(dir.path().join("run/secrets").is_dir());
    }

    #[test]
    fn what_leads_out_of_a_part_is_refused_and_what_stays_is_followed() {
        let (dir, fd) = root();
        std::fs::create_dir(dir.path().join("in")).unwrap();
        symlink("in", dir.path().join("near")).unwrap();
        symlink("/etc", dir.path().join("far")).unwrap();
        symlink("../x", dir.path().join("in/up")).unwrap();
        symlink("../..", dir.path().join("in/over")).unwrap();
        let strictly = |path: &str| open_strictly(&fd, Path::new(path), libc::O_PATH).map_err(|e| e.raw_os_error());
        assert!(strictly("in").is_ok() && strictly("near").is_ok());
        for out in ["far", "far/passwd", "in/over", "../x", "in/../../x"] {
            assert_eq!(strictly(out).unwrap_err(), Some(libc::EXDEV), "{out}");
        }
        assert_eq!(strictly("in/up").unwrap_err(), Some(libc::ENOENT), "inside, and not there");
    }

    #[test]
    fn a_link_to_itself_ends() {
        let (dir, fd) = root();
        symlink("loop", dir.path().join("loop")).unwrap();
        assert!(target(&fd, Path::new("/loop"), Kind::Directory).is_err());
    }

    #[test]
    fn the_wrong_type_is_an_error() {
        let (dir, fd) = root();
        std::fs::write(dir.path().join("f"), "").unwrap();
        assert!(target(&fd, Path::new("/f"), Kind::Directory).is_err());
        assert!(target(&fd, Path::new("/"), Kind::File).is_err());
    }

    #[test]
    fn the_root_knows_itself() {
        let (dir, fd) = root();
        symlink("/", dir.path().join("self")).unwrap();
        let found = open(&fd, Path::new("self"), libc::O_PATH).unwrap();
        assert!(is_root(&fd, &found).unwrap());
    }
}
