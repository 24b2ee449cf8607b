//! Reads files of an image without mounting it: the layers are looked at as overlayfs would show them.
//!
//! Whatever a layer holds is hostile. A path is walked one component at a time beneath the layers' own folders, with
//! every symlink resolved by us against the image's root, so nothing of the host is ever reached: `..` stops at the
//! root, an absolute link starts there again, and a device or a fifo is not opened.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};

/// Symlinks on one path, as the kernel's limit.
const MAX_LINKS: usize = 40;
/// Components of one path, links expanded.
const MAX_COMPONENTS: usize = 4096;
/// Marks a directory that hides what lies below, as overlayfs writes it.
const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];

/// The merged view of an image's layers.
#[derive(Debug)]
pub struct View {
    /// The topmost first.
    layers: Vec<PathBuf>,
}

/// One directory as it is merged: the same directory in several layers, topmost first.
type Merged = Vec<OwnedFd>;

/// What a name in a merged directory is.
enum Entry {
    Missing,
    Directory(Merged),
    Link(OsString),
    File(File),
    /// Neither of them.
    Special,
}

impl View {
    /// A view of these folders, the topmost first.
    pub fn new(layers: Vec<PathBuf>) -> View {
        View { layers }
    }

    /// The first `limit` bytes of the regular file at `path`; `None` if there is no such file.
    pub fn read(&self, path: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = self.open(Path::new(path))? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn roots(&self) -> io::Result<Merged> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        self.layers.iter().map(|l| Ok(open(l, flags, Mode::empty())?)).collect()
    }

    fn open(&self, path: &Path) -> io::Result<Option<File>> {
        let mut todo: Vec<OsString> = components(path);
        let mut above: Vec<Merged> = vec![self.roots()?];
        let (mut links, mut steps) = (0, 0);
        while let Some(name) = todo.pop() {
            steps += 1;
            if steps > MAX_COMPONENTS {
                return Err(Errno::ENAMETOOLONG.into());
            }
            if name == ".." {
                above.truncate(above.len().saturating_sub(1).max(1));
                continue;
            }
            let Some(dir) = above.last() else { return Ok(None) };
            match look_up(dir, &name)? {
                Entry::Directory(merged) => above.push(merged),
                Entry::File(file) if todo.is_empty() => return Ok(Some(file)),
                Entry::Link(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::ELOOP.into());
                    }
                    if target.as_bytes().first() == Some(&b'/') {
                        above.truncate(1);
                    }
                    todo.extend(components(Path::new(&target)));
                }
                Entry::Missing | Entry::File(_) | Entry::Special => return Ok(None),
            }
        }
        Ok(None)
    }
}

/// The components of a path in reverse, without root and `.`.
fn components(path: &Path) -> Vec<OsString> {
    let parts = path.as_os_str().as_bytes().split(|&b| b == b'/').filter(|p| !p.is_empty() && *p != b".");
    parts.rev().map(|p| OsString::from_vec(p.to_vec())).collect()
}

fn look_up(dirs: &[OwnedFd], name: &OsString) -> io::Result<Entry> {
    let mut merged = Merged::new();
    for dir in dirs {
        let stat = match fstatat(dir, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => continue,
            Err(e) => return Err(e.into()),
        };
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        if kind == SFlag::S_IFDIR {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let fd = openat(dir, name.as_os_str(), flags, Mode::empty())?;
            let opaque = is_opaque(&fd);
            merged.push(fd);
            if opaque {
                break;
            }
            continue;
        }
        // Anything else ends the merge: below a directory it is hidden, at the top it is what is seen.
        if merged.is_empty() {
            return other(dir, name, kind, &stat);
        }
        break;
    }
    Ok(if merged.is_empty() { Entry::Missing } else { Entry::Directory(merged) })
}

fn other(dir: &OwnedFd, name: &OsString, kind: SFlag, stat: &FileStat) -> io::Result<Entry> {
    Ok(match kind {
        SFlag::S_IFLNK => Entry::Link(readlinkat(dir, name.as_os_str())?),
        SFlag::S_IFREG => {
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            Entry::File(openat(dir, name.as_os_str(), flags, Mode::empty())?.into())
        }
        // A whiteout is a character device 0:0.
        SFlag::S_IFCHR if stat.st_rdev == 0 => Entry::Missing,
        _ => Entry::Special,
    })
}

fn is_opaque(dir: &OwnedFd) -> bool {
    OPAQUE.iter().any(|name| crate::sys::fgetxattr_byte(dir.as_raw_fd(), name) == Some(b'y'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::{makedev, mknod};
    use std::fs;
    use std::os::unix::fs::symlink;

    struct Layers(tempfile::TempDir);

    impl Layers {
        fn new() -> Layers {
            let dir = tempfile::tempdir().unwrap();
            for layer in ["top", "base"] {
                fs::create_dir_all(dir.path().join(layer).join("etc")).unwrap();
            }
            Layers(dir)
        }

        fn path(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn read(&self, path: &str) -> Option<String> {
            let view = View::new(vec![self.path("top"), self.path("base")]);
            view.read(path, 100).unwrap().map(|b| String::from_utf8(b).unwrap())
        }
    }

    #[test]
    fn the_topmost_layer_wins_and_folders_merge() {
        let layers = Layers::new();
        fs::write(layers.path("base/etc/passwd"), "base").unwrap();
        fs::write(layers.path("base/etc/group"), "group").unwrap();
        fs::write(layers.path("top/etc/passwd"), "top").unwrap();
        assert_eq!(layers.read("/etc/passwd").as_deref(), Some("top"));
        assert_eq!(layers.read("etc/group").as_deref(), Some("group"));
        assert_eq!(layers.read("etc/shadow"), None);
        assert_eq!(layers.read("etc"), None, "a folder is no file");
    }

    #[test]
    fn a_whiteout_hides_the_file_below() {
        let layers = Layers::new();
        fs::write(layers.path("base/etc/passwd"), "base").unwrap();
        mknod(&layers.path("top/etc/passwd"), SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)).unwrap();
        assert_eq!(layers.read("etc/passwd"), None);
    }

    #[test]
    fn links_never_leave_the_image() {
        let layers = Layers::new();
        fs::write(layers.path("base/etc/real"), "inside").unwrap();
        symlink("/etc/real", layers.path("top/etc/passwd")).unwrap();
        symlink("../../../../etc/real", layers.path("top/etc/group")).unwrap();
        symlink("/proc/self/environ", layers.path("top/etc/shadow")).unwrap();
        symlink("loop", layers.path("top/etc/loop")).unwrap();
        assert_eq!(layers.read("etc/passwd").as_deref(), Some("inside"));
        assert_eq!(layers.read("etc/group").as_deref(), Some("inside"));
        assert_eq!(layers.read("etc/shadow"), None);
        let view = View::new(vec![layers.path("top")]);
        assert_eq!(view.read("etc/loop", 10).unwrap_err().raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn a_fifo_is_not_waited_for() {
        let layers = Layers::new();
        mknod(&layers.path("top/etc/passwd"), SFlag::S_IFIFO, Mode::S_IRUSR, 0).unwrap();
        assert_eq!(layers.read("etc/passwd"), None);
    }
}
