//! A file or a folder to a tar stream, without following a link below the path that was named.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use anyhow::{Context, Result, bail};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, SYSFS_MAGIC, fstatfs};
use tar::{Builder, EntryType, Header};

use crate::left_out;

/// Folders in folders: each level holds a descriptor.
const MAX_DEPTH: usize = 400;
/// Names in one folder: they are held in memory.
const MAX_NAMES: usize = 1_000_000;
/// The name of a path that has none: `/`.
const ROOT_NAME: &str = "root";

/// The name under which what lies at `path` is packed: the last of the path.
pub fn packed_name(path: &Path) -> Result<&OsStr> {
    match path.components().next_back() {
        Some(Component::Normal(name)) => Ok(name),
        Some(Component::ParentDir) => bail!("{}: the last part of the path is a name, not ..", path.display()),
        _ => Ok(OsStr::new(ROOT_NAME)),
    }
}

/// Writes what lies at `path`, under the last name of the path. `descriptors` is this process's `/proc/self/fd`.
pub fn pack(path: &Path, descriptors: &File, out: impl Write) -> Result<()> {
    let name = packed_name(path)?;
    let top = openat(AT_FDCWD, path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    let top = top.with_context(|| format!("open {path:?}"))?;
    let mut packer = Packer { tar: Builder::new(out), descriptors };
    packer.entry(&top, Path::new(name), 0)?;
    packer.tar.into_inner().and_then(|mut out| out.flush()).context("write the stream")
}

struct Packer<'p, W: Write> {
    tar: Builder<W>,
    descriptors: &'p File,
}

impl<W: Write> Packer<'_, W> {
    /// One thing, opened without access.
    fn entry(&mut self, fd: &OwnedFd, path: &Path, depth: usize) -> Result<()> {
        let stat = fstat(fd).with_context(|| format!("look at {path:?}"))?;
        match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFREG => self.file(fd, path, &stat),
            SFlag::S_IFDIR => self.folder(fd, path, &stat, depth),
            SFlag::S_IFLNK => self.link(fd, path, &stat),
            SFlag::S_IFIFO => left_out(path, "it is a pipe"),
            SFlag::S_IFSOCK => left_out(path, "it is a socket"),
            _ => left_out(path, "it is a device"),
        }
    }

    /// Opens for reading what was looked at, and nothing else.
    fn open(&self, fd: &OwnedFd, path: &Path, flags: OFlag) -> Result<OwnedFd> {
        let number = fd.as_raw_fd().to_string();
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | flags;
        openat(self.descriptors, number.as_str(), flags, Mode::empty()).with_context(|| format!("open {path:?}"))
    }

    fn file(&mut self, fd: &OwnedFd, path: &Path, stat: &FileStat) -> Result<()> {
        let file = File::from(self.open(fd, path, OFlag::O_NOCTTY)?);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut header = header(EntryType::Regular, stat);
        header.set_size(size);
        // The header has told the size: what is written meanwhile is not part of the copy, what is cut off reads as zeroes.
        let content = file.take(size).chain(io::repeat(0)).take(size);
        self.tar.append_data(&mut header, path, content).with_context(|| format!("copy {path:?}"))
    }

    fn link(&mut self, fd: &OwnedFd, path: &Path, stat: &FileStat) -> Result<()> {
        let target = readlinkat(fd, "").with_context(|| format!("read the link {path:?}"))?;
        let mut header = header(EntryType::Symlink, stat);
        self.tar.append_link(&mut header, path, Path::new(&target)).with_context(|| format!("copy the link {path:?}"))
    }

    fn folder(&mut self, fd: &OwnedFd, path: &Path, stat: &FileStat, depth: usize) -> Result<()> {
        if depth >= MAX_DEPTH {
            bail!("{path:?}: more than {MAX_DEPTH} folders lie in each other");
        }
        let opened = self.open(fd, path, OFlag::O_DIRECTORY)?;
        if depth > 0 && is_of_the_kernel(opened.as_fd()) {
            return left_out(path, "it is the kernel's own (name it to copy it)");
        }
        let mut header = header(EntryType::Directory, stat);
        self.tar.append_data(&mut header, path, io::empty()).with_context(|| format!("copy {path:?}"))?;
        let mut dir = Dir::from_fd(opened).with_context(|| format!("list {path:?}"))?;
        for name in names(&mut dir, path)? {
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            match openat(&dir, name.as_os_str(), flags, Mode::empty()) {
                // Removed since the folder was listed.
                Err(Errno::ENOENT) => {}
                opened => {
                    let path = path.join(&name);
                    let fd = opened.with_context(|| format!("open {path:?}"))?;
                    self.entry(&fd, &path, depth + 1)?;
                }
            }
        }
        Ok(())
    }
}

fn is_of_the_kernel(dir: BorrowedFd<'_>) -> bool {
    fstatfs(dir).is_ok_and(|fs| [PROC_SUPER_MAGIC, SYSFS_MAGIC].contains(&fs.filesystem_type()))
}

fn names(dir: &mut Dir, path: &Path) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in dir.iter() {
        let entry = entry.with_context(|| format!("list {path:?}"))?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
        if names.len() > MAX_NAMES {
            bail!("{path:?}: more than {MAX_NAMES} names in one folder");
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn header(kind: EntryType, stat: &FileStat) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header
}
