//! Folders that come over the link and are kept up to date: `volumes/NAME` below the bundle.
//!
//! Containers may have such a folder mounted for writing, so nothing in it is trusted: every path is opened by openat2
//! beneath the folder and through no link, and what is not of the expected kind is replaced. A file that is there is
//! written in place, since a container can have it mounted by itself; a link is replaced by renaming, so that a volume
//! that hangs on one (kubelet's `..data`) changes at once and as a whole.
//!
//! A folder that is in memory with a limit is a tmpfs of that size, mounted by the first request for it.

use super::mounts;
use crate::failure::{Fail, Failure};
use coracle_proto::coracle::guest_entry::Kind;
use coracle_proto::coracle::{GuestEntry, GuestFetchRequest, GuestMemory, GuestPutRequest};
use coracle_proto::ttrpc::Code;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat, renameat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, symlinkat, unlinkat};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Below the bundle.
const FOLDER: &str = "volumes";
/// Folders within folders: containers can make them, and they are walked.
const MAX_DEPTH: usize = 64;
/// Entries of one message.
const MAX_ENTRIES: usize = 16_384;
/// A volume's name, which is a file's.
const MAX_NAME: usize = 255;
/// What a fetch brings at most: less than a message of ttrpc.
const MAX_FETCH: u64 = 2 << 20;
/// A link before it has its name.
const NEW_LINK: &str = ".coracle-new-link";
/// Permissions and the bits above them.
const MODE_BITS: u32 = 0o7777;

/// Guest.Put; the folder.
pub fn put(bundle: &Path, request: &GuestPutRequest) -> Result<PathBuf, Failure> {
    if request.entries.len() > MAX_ENTRIES {
        return Err(invalid(format!("volume {}: more than {MAX_ENTRIES} entries in a message", request.volume)));
    }
    let path = place(bundle, &request.volume)?;
    let failed = |what: &str, error: io::Error| {
        let code = if error.kind() == io::ErrorKind::StorageFull { Code::ResourceExhausted } else { Code::Unknown };
        code.failure(format!("volume {}: {what}: {error}", request.volume))
    };
    fs::create_dir_all(&path).map_err(|error| failed("make the folder", error))?;
    // Two requests for one volume take turns.
    let lock = || {
        let root = File::open(&path).map_err(|error| failed("open the folder", error))?;
        Flock::lock(root, FlockArg::LockExclusive).map_err(|(_, error)| failed("lock the folder", error.into()))
    };
    if let Some(memory) = &request.memory {
        let _lock = lock()?;
        mount_once(&path, memory).map_err(|error| failed("mount a tmpfs", error))?;
    }
    let root = lock()?;
    let (links, others): (Vec<_>, Vec<_>) = request.entries.iter().partition(|entry| entry.kind() == Kind::Link);
    for entry in others.into_iter().chain(links) {
        let parts = parts(&entry.path)?;
        make(&*root, &parts, entry).map_err(|error| failed(&format!("make {:?}", entry.path), error.into()))?;
    }
    if request.whole {
        let named = request.entries.iter().map(|entry| entry.path.as_str());
        let kept: Vec<Vec<&str>> =
            named.chain(request.kept.iter().map(String::as_str)).map(parts).collect::<Result<_, _>>()?;
        let kept = kept.iter().flat_map(|parts| (1..=parts.len()).map(|count| parts[..count].join("/"))).collect();
        prune(&*root, "", &kept, 0).map_err(|error| failed("remove what is no more", error.into()))?;
    }
    Ok(path)
}

/// Mounts a tmpfs on a folder that is not one yet; its owner and mode come with its entry.
fn mount_once(path: &Path, memory: &GuestMemory) -> io::Result<()> {
    if mounts::is_mounted(path)? {
        return Ok(());
    }
    let flags = [
        (memory.no_suid, MsFlags::MS_NOSUID),
        (memory.no_dev, MsFlags::MS_NODEV),
        (memory.no_exec, MsFlags::MS_NOEXEC),
    ];
    let flags = flags.into_iter().filter(|(wanted, _)| *wanted).map(|(_, flag)| flag).collect();
    let options = format!("mode=0700,size={}", memory.size_bytes);
    Ok(mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str()))?)
}

/// Guest.Fetch: the end of a file.
pub fn fetch(bundle: &Path, request: &GuestFetchRequest) -> Result<Vec<u8>, Failure> {
    let parts = parts(&request.path)?;
    let failed = |error: io::Error| {
        let code = if error.kind() == io::ErrorKind::NotFound { Code::NotFound } else { Code::Unknown };
        code.failure(format!("volume {}: read {:?}: {error}", request.volume, request.path))
    };
    let read = || -> io::Result<Vec<u8>> {
        let root = File::open(place(bundle, &request.volume).map_err(|failure| io::Error::other(failure.message))?)?;
        let how = beneath(OFlag::O_RDONLY | OFlag::O_NONBLOCK);
        let mut file = File::from(openat2(&root, parts.join("/").as_str(), how)?);
        let known = file.metadata()?;
        if !known.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file"));
        }
        let wanted = request.max_bytes.min(MAX_FETCH);
        file.seek(SeekFrom::Start(known.len().saturating_sub(wanted)))?;
        let mut content = Vec::new();
        file.take(wanted).read_to_end(&mut content)?;
        Ok(content)
    };
    place(bundle, &request.volume)?;
    read().map_err(failed)
}

fn invalid(message: String) -> Failure {
    Code::InvalidArgument.failure(message)
}

fn place(bundle: &Path, name: &str) -> Result<PathBuf, Failure> {
    let known = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.' | b'~');
    match (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(known) && !name.starts_with('.') {
        true => Ok(bundle.join(FOLDER).join(name)),
        false => Err(invalid(format!("volume {name:?}: not a name"))),
    }
}

/// The parts of a relative path; none for the folder itself.
fn parts(path: &str) -> Result<Vec<&str>, Failure> {
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let parts: Vec<&str> = path.split('/').collect();
    let wrong = |part: &&str| matches!(*part, "" | "." | "..") || part.len() > MAX_NAME || part.contains('\0');
    match parts.len() <= MAX_DEPTH && !parts.iter().any(wrong) {
        true => Ok(parts),
        false => Err(invalid(format!("path {path:?}: not a path below a volume"))),
    }
}

fn beneath(flags: OFlag) -> OpenHow {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    OpenHow::new().flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).resolve(resolve)
}

fn make(root: &impl AsFd, parts: &[&str], entry: &GuestEntry) -> nix::Result<()> {
    let Some((name, parents)) = parts.split_last() else {
        return own(root, entry);
    };
    let mut parent: OwnedFd = openat2(root, ".", beneath(OFlag::O_DIRECTORY))?;
    for folder in parents {
        parent = open_folder(&parent, folder)?;
    }
    match entry.kind() {
        Kind::Folder => own(&open_folder(&parent, name)?, entry),
        Kind::File => write(&parent, name, entry),
        Kind::Link => link(&parent, name, entry),
    }
}

/// The owner first: a change of it takes bits of the mode away.
fn own(file: &impl AsFd, entry: &GuestEntry) -> nix::Result<()> {
    fchown(file.as_fd(), Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    fchmod(file.as_fd(), Mode::from_bits_truncate(entry.mode & MODE_BITS))
}

/// Opens a folder, which is made if it is not there, and takes the place of anything else.
fn open_folder(parent: &impl AsFd, name: &str) -> nix::Result<OwnedFd> {
    match openat2(parent, name, beneath(OFlag::O_DIRECTORY)) {
        Err(Errno::ENOENT) => {}
        Err(Errno::ENOTDIR | Errno::ELOOP) => remove(parent, name, 0)?,
        opened => return opened,
    }
    mkdirat(parent, name, Mode::from_bits_truncate(0o755))?;
    openat2(parent, name, beneath(OFlag::O_DIRECTORY))
}

fn write(parent: &impl AsFd, name: &str, entry: &GuestEntry) -> nix::Result<()> {
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK;
    let there = openat2(parent, name, beneath(flags)).ok();
    let there = there.filter(|file| fstat(file).is_ok_and(|known| kind(&known) == SFlag::S_IFREG));
    let mut file = File::from(match there {
        Some(file) => file,
        None => {
            remove(parent, name, 0)?;
            let new = flags | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            openat(parent, name, new, Mode::from_bits_truncate(0o600))?
        }
    });
    if !holds(&mut file, &entry.content)? {
        let replaced = file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&entry.content));
        replaced.and_then(|()| file.set_len(entry.content.len() as u64)).map_err(errno)?;
    }
    own(&file, entry)
}

/// Whether a file has this content already: then whoever watches it hears nothing.
fn holds(file: &mut File, content: &[u8]) -> nix::Result<bool> {
    let length = file.metadata().map_err(errno)?.len();
    if length != content.len() as u64 {
        return Ok(false);
    }
    let mut old = Vec::new();
    file.take(length).read_to_end(&mut old).map_err(errno)?;
    Ok(old == content)
}

fn link(parent: &impl AsFd, name: &str, entry: &GuestEntry) -> nix::Result<()> {
    let target = std::str::from_utf8(&entry.content).map_err(|_| Errno::EILSEQ)?;
    if readlinkat(parent, name).is_ok_and(|there| there == *target) {
        return Ok(());
    }
    remove(parent, NEW_LINK, 0)?;
    symlinkat(target, parent, NEW_LINK)?;
    fchownat(
        parent,
        NEW_LINK,
        Some(Uid::from_raw(entry.uid)),
        Some(Gid::from_raw(entry.gid)),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )?;
    match renameat(parent, NEW_LINK, parent, name) {
        Err(Errno::EISDIR | Errno::ENOTEMPTY | Errno::EEXIST) => {
            remove(parent, name, 0)?;
            renameat(parent, NEW_LINK, parent, name)
        }
        renamed => renamed,
    }
}

/// Removes whatever is not named, nor leads to what is.
fn prune(folder: &impl AsFd, path: &str, kept: &BTreeSet<String>, depth: usize) -> nix::Result<()> {
    for name in names(folder)? {
        let below = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
        if !kept.contains(&below) {
            remove(folder, name.as_str(), depth)?;
        } else if let Ok(folder) = openat2(folder, name.as_str(), beneath(OFlag::O_DIRECTORY)) {
            prune(&folder, &below, kept, depth + 1)?;
        }
    }
    Ok(())
}

/// Removes a file, or a folder with all that is in it; what is not there is removed.
fn remove(parent: &impl AsFd, name: &str, depth: usize) -> nix::Result<()> {
    let known = match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => return Ok(()),
        known => known?,
    };
    if kind(&known) != SFlag::S_IFDIR {
        return unlinkat(parent, name, UnlinkatFlags::NoRemoveDir);
    }
    if depth >= MAX_DEPTH {
        return Err(Errno::ENAMETOOLONG);
    }
    let folder = openat2(parent, name, beneath(OFlag::O_DIRECTORY))?;
    for name in names(&folder)? {
        remove(&folder, name.as_str(), depth + 1)?;
    }
    unlinkat(parent, name, UnlinkatFlags::RemoveDir)
}

fn kind(known: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(known.st_mode & SFlag::S_IFMT.bits())
}

/// What is in a folder. A name that is not UTF-8 came from a container; it is an error that nobody but it suffers from.
fn names(folder: &impl AsFd) -> nix::Result<Vec<String>> {
    let mut folder = Dir::from_fd(openat2(folder, ".", beneath(OFlag::O_DIRECTORY))?)?;
    let mut names = Vec::new();
    for entry in folder.iter() {
        let name = entry?.file_name().to_str().map_err(|_| Errno::EILSEQ)?.to_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    Ok(names)
}

fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
#[path = "volumes_tests.rs"]
mod tests;
