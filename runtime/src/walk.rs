//! What openat2 does with RESOLVE_IN_ROOT, for kernels and sandboxes without it: a path is walked one component after the
//! other, each opened from the descriptor of the one before and never followed when it is a link.
//!
//! The directories gone through are kept as descriptors, so `..` goes back to where the walk came from, whatever was renamed
//! meanwhile, and above the root there is the root. The text of a link takes the place of its component; an absolute one
//! starts again at the root. Links of procfs that are no text but jump somewhere (`/proc/PID/root`, `fd/N`) are refused, as
//! openat2 does: only those directly in the root of a proc (`self`, `thread-self`, `mounts`, `net`) are text.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use crate::sys;

/// The kernel's own limit of links in one path.
const MAX_LINKS: usize = 40;
/// Components in one walk, those of links included: as many as the longest path of the kernel's can have.
const MAX_COMPONENTS: usize = 2048;
/// The inode of the root of every procfs.
const PROC_ROOT_INODE: u64 = 1;

const PEEK: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

fn error(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

fn open_at(dir: &OwnedFd, name: &OsStr, flags: OFlag) -> io::Result<OwnedFd> {
    Ok(sys::retry(|| openat(dir, name, flags, Mode::empty()))?)
}

/// The components of a path, `.` left out.
fn components(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

/// Opens `path` as seen from inside `root`; with `links` symlinks are followed inside it, else they are an error (ELOOP).
pub(crate) fn open(root: BorrowedFd<'_>, path: &Path, flags: i32, links: bool) -> io::Result<OwnedFd> {
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_CLOEXEC;
    let mut above = vec![root.try_clone_to_owned()?];
    let mut rest: VecDeque<OsString> = components(path).collect();
    let mut last_link = 0;
    let mut must_be_directory = path.as_os_str().as_bytes().ends_with(b"/");
    for _ in 0..MAX_COMPONENTS {
        let at = above.last().ok_or_else(|| error(libc::ENOENT))?;
        let Some(name) = rest.pop_front() else {
            return finish_directory(at, flags);
        };
        if name == ".." {
            if above.len() > 1 {
                above.pop();
            }
            continue;
        }
        let found = open_at(at, &name, PEEK)?;
        let kind = fstat(&found)?.st_mode & libc::S_IFMT;
        let keep_link = rest.is_empty() && flags.contains(OFlag::O_NOFOLLOW) && !must_be_directory;
        if kind == libc::S_IFLNK && !keep_link {
            last_link += 1;
            if !links || last_link > MAX_LINKS {
                return Err(error(libc::ELOOP));
            }
            let target = link_text(at, &found)?;
            let target = Path::new(&target);
            must_be_directory |= rest.is_empty() && target.as_os_str().as_bytes().ends_with(b"/");
            if target.is_absolute() {
                above.truncate(1);
            }
            components(target).rev().for_each(|part| rest.push_front(part));
            continue;
        }
        if kind == libc::S_IFDIR {
            above.push(found);
            continue;
        }
        if !rest.is_empty() || must_be_directory || flags.contains(OFlag::O_DIRECTORY) {
            return Err(error(libc::ENOTDIR));
        }
        // What was looked at is what an O_PATH open gives. For others its name is opened anew, still without following.
        return if flags.contains(OFlag::O_PATH) { Ok(found) } else { open_at(at, &name, flags | OFlag::O_NOFOLLOW) };
    }
    Err(error(libc::ENAMETOOLONG))
}

/// The walk ended in a directory, which is opened as asked for.
fn finish_directory(at: &OwnedFd, flags: OFlag) -> io::Result<OwnedFd> {
    if flags.contains(OFlag::O_PATH) { at.try_clone() } else { open_at(at, OsStr::new("."), flags) }
}

/// The text of a link found in `dir`.
fn link_text(dir: &OwnedFd, link: &OwnedFd) -> io::Result<OsString> {
    if fstatfs(link)?.filesystem_type() == PROC_SUPER_MAGIC && fstat(dir)?.st_ino != PROC_ROOT_INODE {
        return Err(error(libc::ELOOP));
    }
    Ok(readlinkat(link, "")?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::beneath;
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::fs::{MetadataExt, symlink};

    /// A tree with links of every kind, some of them hostile.
    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("a/b/c")).unwrap();
        fs::write(at("a/file"), "x").unwrap();
        fs::write(at("etc"), "not a directory").unwrap();
        for (text, name) in [
            ("a/b", "relative"),
            ("/a/b", "absolute"),
            ("../../../../..", "up"),
            ("/../../a/./b/..", "dots"),
            ("loop", "loop"),
            ("ping", "a/pong"),
            ("a/pong", "ping"),
            ("nowhere", "dangling"),
            ("a/file", "tofile"),
            ("a/file/", "tofile-as-directory"),
            ("/etc/passwd", "outside"),
            ("relative/../../absolute/c", "chain"),
        ] {
            symlink(text, at(name)).unwrap();
        }
        dir
    }

    #[test]
    fn the_walk_finds_what_openat2_finds() {
        let dir = tree();
        let root = File::open(dir.path()).unwrap();
        let names = [
            ".",
            "/",
            "",
            "a",
            "/a/",
            "a/file",
            "a/file/",
            "a/file/x",
            "relative",
            "relative/c",
            "absolute/c/..",
            "up",
            "up/a/file",
            "dots",
            "dots/b",
            "loop",
            "ping",
            "a/pong/x",
            "dangling",
            "dangling/x",
            "tofile",
            "tofile/",
            "tofile-as-directory",
            "outside",
            "chain",
            "chain/../..",
            "../../a/b",
            "a/../../..",
            "nowhere/..",
            "etc/../a",
        ];
        let flags = [libc::O_PATH, libc::O_PATH | libc::O_NOFOLLOW, libc::O_PATH | libc::O_DIRECTORY, libc::O_RDONLY];
        let told = |result: io::Result<OwnedFd>| match result {
            Ok(fd) => fstat(fd).map(|stat| (stat.st_ino, stat.st_mode)).map_err(|e| e as i32),
            Err(e) => Err(e.raw_os_error().unwrap_or_default()),
        };
        for name in names {
            for flags in flags.into_iter().chain([libc::O_RDONLY | libc::O_NOFOLLOW, libc::O_WRONLY]) {
                for links in [true, false] {
                    let kernel = match links {
                        true => beneath::open(&root, Path::new(name), flags),
                        false => beneath::open_no_links(&root, Path::new(name), flags),
                    };
                    let walked = open(root.as_fd(), Path::new(name), flags, links);
                    assert_eq!(told(walked), told(kernel), "{name:?} flags {flags:#x} links {links}");
                }
            }
        }
    }

    #[test]
    fn links_of_proc_that_jump_are_refused_and_those_of_text_are_followed() {
        let proc = File::open("/proc").unwrap();
        let flags = libc::O_PATH;
        for name in ["self/status", "thread-self/attr", "mounts", "net/dev"] {
            assert!(open(proc.as_fd(), Path::new(name), flags, true).is_ok(), "{name}");
        }
        for name in ["self/root", "self/root/etc", "self/cwd", "self/exe", "self/fd/0", "self/ns/mnt"] {
            let walked = open(proc.as_fd(), Path::new(name), flags, true).unwrap_err().raw_os_error();
            let kernel = beneath::open(&proc, Path::new(name), flags).unwrap_err().raw_os_error();
            assert_eq!((walked, kernel), (Some(libc::ELOOP), Some(libc::ELOOP)), "{name}");
        }
    }

    #[test]
    fn a_directory_that_is_moved_out_does_not_lead_out() {
        let dir = tree();
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("inner")).unwrap();
        let root: OwnedFd = File::open(dir.path()).unwrap().into();
        // The walk goes into a/b, which is moved away before it goes back up.
        let above = open(root.as_fd(), Path::new("a"), libc::O_PATH, true).unwrap();
        fs::rename(dir.path().join("a/b"), outside.path().join("inner/b")).unwrap();
        let moved = open(above.as_fd(), Path::new("../../../file"), libc::O_PATH, true).unwrap();
        assert_eq!(fstat(moved).unwrap().st_ino, fs::metadata(dir.path().join("a/file")).unwrap().ino());
    }
}
