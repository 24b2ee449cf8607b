//! A tar stream to files beneath a folder, whatever the stream says.
//!
//! A path is placed component by component: each folder on the way is opened by its parent's descriptor without
//! following links, or made. A file and a link are made under a name of ours and renamed into their place. What was to be
//! packed has the name that whoever copies expects, and nothing is made beside it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fchmod, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};
use tar::{Archive, Entry, EntryType};

use crate::left_out;

/// Parts of one path.
const MAX_PARTS: usize = 400;
/// A path that is longer than a header has room for comes before it; so long it may be.
const MAX_LONG: u64 = 128 << 10;
/// What may follow the end's mark: whoever writes it must not find the pipe closed.
const MAX_TRAILER: u64 = 16 << 20;
/// What files and folders may have: no set-user-id, no set-group-id, no sticky bit.
const MODE: u32 = 0o777;

/// Where the files are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// On the machine: links may not lead out of what is copied.
    Machine,
    /// In a container, whose links lead nowhere else.
    Container,
}

/// Whose the stream is, and so where its files go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream<'s> {
    /// [`pack`](crate::pack)'s, of what has this name: a destination that is a folder gets it in it, else it gets the
    /// destination's name, whose folder must be there.
    Named(&'s OsStr),
    /// The same, and what is in it goes to a destination that is a folder.
    Contents,
    /// Another's, by the will of who copies: it goes into a folder as it is.
    Foreign,
}

/// What becomes of the first part of the stream's paths, which is the name of what was packed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Top {
    Keep,
    Rename(OsString),
    Strip,
}

/// Makes files of a stream.
pub fn unpack(path: &Path, stream: Stream<'_>, side: Side, input: impl Read) -> Result<()> {
    let (root, top) = place(path, stream)?;
    let unpacker = Unpacker { root, top, side, folders: BTreeMap::new(), number: 0, long_path: None, long_link: None };
    let mut archive = Archive::new(input);
    let unpacker = match stream {
        Stream::Foreign => unpacker.foreign(&mut archive)?,
        _ => unpacker.ours(&mut archive)?,
    };
    io::copy(&mut archive.into_inner().take(MAX_TRAILER), &mut io::sink()).context("read the stream")?;
    unpacker.finish_folders()
}

fn place(path: &Path, stream: Stream<'_>) -> Result<(OwnedFd, Top)> {
    let folder =
        |path: &Path| openat(AT_FDCWD, path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    match folder(path) {
        Ok(fd) => {
            return Ok(match stream {
                Stream::Named(name) => (fd, Top::Rename(name.to_owned())),
                Stream::Contents => (fd, Top::Strip),
                Stream::Foreign => (fd, Top::Keep),
            });
        }
        Err(Errno::ENOENT | Errno::ENOTDIR)
            if stream != Stream::Foreign && !path.as_os_str().as_bytes().ends_with(b"/") => {}
        Err(error) => return Err(error).with_context(|| format!("open the folder {path:?}")),
    }
    let Some(name) = path.file_name() else { bail!("{path:?}: the last part of the path is a name, not ..") };
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let fd = folder(parent).with_context(|| format!("open the folder {parent:?}"))?;
    Ok((fd, Top::Rename(name.to_owned())))
}

struct Unpacker {
    root: OwnedFd,
    top: Top,
    side: Side,
    /// The modes and times of folders, which are set once all is in them.
    folders: BTreeMap<PathBuf, (u32, u64)>,
    number: u32,
    /// What the next entry's header has no room for.
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Unpacker {
    /// Whatever a tar can say is understood, and takes the memory it takes.
    fn foreign<R: Read>(mut self, archive: &mut Archive<R>) -> Result<Unpacker> {
        for entry in archive.entries().context("read the stream")? {
            let mut entry = entry.context("read the stream")?;
            let path = entry.path_bytes().into_owned();
            let link = entry.link_name_bytes().map(|name| name.into_owned());
            self.entry(&path, link.as_deref(), &mut entry)?;
        }
        Ok(self)
    }

    /// What our packer says is understood, and nothing else: its end may be a hostile machine's.
    fn ours<R: Read>(mut self, archive: &mut Archive<R>) -> Result<Unpacker> {
        for entry in archive.entries().context("read the stream")?.raw(true) {
            let mut entry = entry.context("read the stream")?;
            match entry.header().entry_type() {
                EntryType::GNULongName => self.long_path = Some(long(&mut entry)?),
                EntryType::GNULongLink => self.long_link = Some(long(&mut entry)?),
                EntryType::Regular | EntryType::Directory | EntryType::Symlink => {
                    let path = self.long_path.take().unwrap_or_else(|| entry.header().path_bytes().into_owned());
                    let short = || entry.header().link_name_bytes().map(|name| name.into_owned());
                    let link = self.long_link.take().or_else(short);
                    self.entry(&path, link.as_deref(), &mut entry)?;
                }
                other => bail!("the stream has an entry of type {other:?}, which is none that is packed here"),
            }
        }
        Ok(self)
    }

    fn entry<R: Read>(&mut self, path: &[u8], link: Option<&[u8]>, entry: &mut Entry<'_, R>) -> Result<()> {
        let written = PathBuf::from(OsStr::from_bytes(path));
        let link = || {
            let target = link.with_context(|| format!("{written:?}: a link to nothing"))?;
            anyhow::Ok(Path::new(OsStr::from_bytes(target)))
        };
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let path = self.target(&written)?;
        let mode = entry.header().mode().with_context(|| format!("{written:?}: its mode"))? & MODE;
        let time = entry.header().mtime().unwrap_or(0);
        let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
            // The folder at the top, where it is there already.
            return Ok(());
        };
        let dir = self.folder(parent)?;
        match kind {
            EntryType::Directory => {
                self.make_folder(dir.as_fd(), name).with_context(|| format!("make the folder {path:?}"))?;
                self.folders.insert(path, (mode, time));
                Ok(())
            }
            EntryType::Symlink => self.link(dir.as_fd(), &path, link()?),
            EntryType::Link => {
                let target = self.target(link()?)?;
                self.hard_link(dir.as_fd(), name, &target).with_context(|| format!("link {path:?} to {target:?}"))
            }
            kind if kind.is_file() || kind.is_gnu_sparse() || kind.is_contiguous() => {
                let made = self.file(dir.as_fd(), name, entry, mode, time);
                made.with_context(|| format!("write {path:?}"))
            }
            _ => left_out(&written, "it is neither a file nor a folder nor a link"),
        }
    }

    /// Where a path of the stream goes beneath the root.
    fn target(&self, written: &Path) -> Result<PathBuf> {
        let mut parts = Vec::new();
        for part in written.components() {
            match part {
                Component::Normal(_) if parts.len() == MAX_PARTS => {
                    bail!("{written:?}: a path of more than {MAX_PARTS} parts")
                }
                Component::Normal(name) => parts.push(name),
                Component::CurDir | Component::RootDir => {}
                _ => bail!("{written:?}: a path with .. in the stream"),
            }
        }
        match (&self.top, parts.first_mut()) {
            (Top::Rename(name), Some(first)) => *first = name,
            (Top::Strip, Some(_)) => drop(parts.remove(0)),
            _ => {}
        }
        Ok(parts.iter().collect())
    }

    /// Opens a folder beneath the root, and makes what is missing of it.
    fn folder(&self, path: &Path) -> Result<OwnedFd> {
        let mut fd = self.root.try_clone().context("copy a descriptor")?;
        for name in path {
            fd = self.make_folder(fd.as_fd(), name).with_context(|| format!("open the folder {path:?}"))?;
        }
        Ok(fd)
    }

    fn make_folder(&self, dir: BorrowedFd<'_>, name: &OsStr) -> nix::Result<OwnedFd> {
        match mkdirat(dir, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error),
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(dir, name, flags, Mode::empty())
    }

    fn file<R: Read>(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        entry: &mut Entry<'_, R>,
        mode: u32,
        time: u64,
    ) -> Result<()> {
        let new = self.new_name();
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(dir, new.as_str(), flags, Mode::from_bits_truncate(0o600))?);
        let written = (|| {
            let size = entry.size();
            let copied = io::copy(entry, &mut file)?;
            if copied != size {
                bail!("the stream ends after {copied} of {size} bytes");
            }
            fchmod(&file, Mode::from_bits_truncate(mode))?;
            let times = TimeSpec::new(i64::try_from(time)?, 0);
            futimens(&file, &times, &times)?;
            rename(dir, &new, name)
        })();
        self.or_remove(dir, &new, written)
    }

    fn link(&mut self, dir: BorrowedFd<'_>, path: &Path, target: &Path) -> Result<()> {
        let depth = path.components().count() - 1;
        // What stands at the top is what was copied; beside it lies what was there before.
        let own = if self.top == Top::Strip { depth } else { depth.saturating_sub(1) };
        if self.side == Side::Machine && (depth == 0 && self.top != Top::Strip || !stays_beneath(target, own)) {
            return left_out(path, &format!("it is a link to {target:?}, which is not part of the copy"));
        }
        let (new, name) = (self.new_name(), path.file_name().unwrap_or_default());
        let made =
            symlinkat(target, dir, new.as_str()).map_err(anyhow::Error::from).and_then(|()| rename(dir, &new, name));
        self.or_remove(dir, &new, made).with_context(|| format!("make the link {path:?}"))
    }

    fn hard_link(&mut self, dir: BorrowedFd<'_>, name: &OsStr, target: &Path) -> Result<()> {
        let (Some(other), Some(parent)) = (target.file_name(), target.parent()) else { bail!("a link to a folder") };
        let from = self.folder(parent)?;
        let new = self.new_name();
        linkat(&from, other, dir, new.as_str(), AtFlags::empty())?;
        let linked = rename(dir, &new, name);
        // Of two names of one file, rename leaves both.
        let _ = unlinkat(dir, new.as_str(), UnlinkatFlags::NoRemoveDir);
        linked
    }

    fn or_remove(&self, dir: BorrowedFd<'_>, new: &str, made: Result<()>) -> Result<()> {
        if made.is_err() {
            let _ = unlinkat(dir, new, UnlinkatFlags::NoRemoveDir);
        }
        made
    }

    fn new_name(&mut self) -> String {
        self.number += 1;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        format!(".coracle-cp-{}-{now}-{}", std::process::id(), self.number)
    }

    /// The deepest first: a folder that may not be written to any more still gets its last entries' attributes.
    fn finish_folders(mut self) -> Result<()> {
        for (path, (mode, time)) in std::mem::take(&mut self.folders).into_iter().rev() {
            let context = || format!("set the attributes of {path:?}");
            let (parent, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
            let dir = self.folder(parent)?;
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let folder = openat(&dir, name, flags, Mode::empty()).with_context(context)?;
            let times = TimeSpec::new(i64::try_from(time)?, 0);
            match fchmod(&folder, Mode::from_bits_truncate(mode)).and_then(|()| futimens(&folder, &times, &times)) {
                // One that was there before and is another's keeps what it has.
                Err(Errno::EPERM) => {}
                set => set.with_context(context)?,
            }
        }
        Ok(())
    }
}

/// A path that stands as the content of an entry, which ends with a zero byte.
fn long<R: Read>(entry: &mut Entry<'_, R>) -> Result<Vec<u8>> {
    let size = entry.size();
    if size > MAX_LONG {
        bail!("the stream has a path of {size} bytes");
    }
    let mut path = Vec::new();
    entry.read_to_end(&mut path).context("read the stream")?;
    path.truncate(path.iter().position(|byte| *byte == 0).unwrap_or(path.len()));
    Ok(path)
}

fn rename(dir: BorrowedFd<'_>, new: &str, name: &OsStr) -> Result<()> {
    match renameat(dir, new, dir, name) {
        Err(Errno::EBUSY) => bail!("something is mounted there (a file that is a volume cannot be replaced)"),
        Err(Errno::EISDIR) => bail!("a folder of that name is there"),
        renamed => Ok(renamed?),
    }
}

/// Whether a link `depth` folders below the top of the copy leads to something of the copy. Only at its beginning may it
/// go up: after a name, `..` goes up from wherever that name leads, which another link may decide.
fn stays_beneath(target: &Path, depth: usize) -> bool {
    let mut ups = 0;
    let mut named = false;
    for part in target.components() {
        match part {
            Component::Normal(_) => named = true,
            Component::CurDir => {}
            Component::ParentDir if !named => ups += 1,
            _ => return false,
        }
    }
    ups <= depth
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use tar::{Builder, Header};

    use super::*;
    use crate::{pack, packed_name};

    /// A stream of raw entries: path, kind, and content or the link's target. The crate's own writer refuses what is to be
    /// refused here.
    fn stream(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (path, kind, text) in entries {
            let mut header = Header::new_gnu();
            header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o6755);
            header.set_mtime(1_000_000_000);
            let content = if kind.is_file() { text.as_bytes() } else { b"" };
            if !kind.is_file() {
                header.as_gnu_mut().unwrap().linkname[..text.len()].copy_from_slice(text.as_bytes());
            }
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn foreign(dir: &Path, entries: &[(&str, EntryType, &str)]) -> Result<()> {
        unpack(dir, Stream::Foreign, Side::Machine, stream(entries).as_slice())
    }

    fn named(dir: &Path, name: &str, entries: &[(&str, EntryType, &str)]) -> Result<()> {
        unpack(dir, Stream::Named(name.as_ref()), Side::Machine, stream(entries).as_slice())
    }

    fn copy(from: &Path, to: &Path, contents: bool) -> Result<()> {
        let mut bytes = Vec::new();
        pack(from, &File::open("/proc/self/fd").unwrap(), &mut bytes)?;
        let stream = if contents { Stream::Contents } else { Stream::Named(packed_name(from)?) };
        unpack(to, stream, Side::Machine, bytes.as_slice())
    }

    #[test]
    fn names_are_placed_as_cp_places_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("src/sub")).unwrap();
        fs::write(path("src/sub/file"), "text").unwrap();
        fs::create_dir(path("there")).unwrap();
        copy(&path("src"), &path("there"), false).unwrap();
        copy(&path("src"), &path("new"), false).unwrap();
        copy(&path("src"), &path("there"), true).unwrap();
        copy(&path("src/sub/file"), &path("renamed"), false).unwrap();
        for copied in ["there/src/sub/file", "new/sub/file", "there/sub/file", "renamed"] {
            assert_eq!(fs::read_to_string(path(copied)).unwrap(), "text", "{copied}");
        }
        assert!(copy(&path("src"), &path("no/new"), false).is_err());
        assert!(copy(&path("src/sub/file"), &path("absent/"), false).is_err());
        assert!(copy(&path("src"), &path("renamed"), false).is_err(), "a folder over a file");
    }

    #[test]
    fn attributes_are_kept_but_for_the_bits_that_give_rights() {
        let dir = tempfile::tempdir().unwrap();
        foreign(dir.path(), &[("d", EntryType::Directory, ""), ("d/f", EntryType::Regular, "x")]).unwrap();
        let meta = fs::metadata(dir.path().join("d/f")).unwrap();
        assert_eq!((meta.permissions().mode() & 0o7777, meta.mtime()), (0o755, 1_000_000_000));
        assert_eq!(fs::metadata(dir.path().join("d")).unwrap().mtime(), 1_000_000_000);
    }

    #[test]
    fn no_path_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("in")).unwrap();
        let inside = dir.path().join("in");
        foreign(&inside, &[("a/../../evil", EntryType::Regular, "x")]).unwrap_err();
        foreign(&inside, &[("/evil", EntryType::Regular, "x")]).unwrap();
        assert!(inside.join("evil").exists(), "an absolute path counts from the folder");
        symlink(dir.path(), inside.join("link")).unwrap();
        foreign(&inside, &[("link/evil", EntryType::Regular, "x")]).unwrap_err();
        assert!(!dir.path().join("evil").exists());
        foreign(&inside, &[("link", EntryType::Regular, "x")]).unwrap();
        assert!(inside.join("link").metadata().unwrap().is_file(), "the link is replaced, not written through");
    }

    #[test]
    fn what_was_asked_for_has_its_name_whatever_the_stream_says() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(".ssh")).unwrap();
        fs::write(dir.path().join(".profile"), "mine").unwrap();
        let regular = EntryType::Regular;
        named(dir.path(), "conf", &[(".profile", regular, "theirs")]).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("conf")).unwrap(), "theirs");
        fs::remove_file(dir.path().join("conf")).unwrap();
        named(dir.path(), "conf", &[(".ssh", EntryType::Directory, ""), (".ssh/keys", regular, "x")]).unwrap();
        assert!(dir.path().join("conf/keys").is_file());
        for other in [EntryType::Link, EntryType::Symlink, EntryType::Block] {
            let _ = named(dir.path(), "conf", &[("conf/x", other, "../.profile"), ("conf/x", regular, "theirs")]);
        }
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".profile", ".ssh", "conf"]);
        assert_eq!(fs::read_to_string(dir.path().join(".profile")).unwrap(), "mine");
        assert_eq!(fs::read_dir(dir.path().join(".ssh")).unwrap().count(), 0);
    }

    /// One that ends nowhere.
    fn endless(kind: EntryType, size: u64) -> impl Read {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        io::Cursor::new(header.as_bytes().to_vec()).chain(io::repeat(b'x'))
    }

    #[test]
    fn a_stream_cannot_have_memory_taken_for_its_headers() {
        let dir = tempfile::tempdir().unwrap();
        let kinds =
            [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader, EntryType::GNUSparse, EntryType::Link];
        for kind in kinds {
            let stream = endless(kind, 1 << 40);
            let error = unpack(dir.path(), Stream::Named("x".as_ref()), Side::Machine, stream).unwrap_err();
            assert!(format!("{error:#}").contains("the stream has"), "{kind:?}: {error:#}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn long_names_and_links_are_copied() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let deep = vec!["n".repeat(60); 5].join("/");
        fs::create_dir_all(path("src").join(&deep)).unwrap();
        fs::write(path("src").join(&deep).join("file"), "text").unwrap();
        symlink(format!("{deep}/file"), path("src/link")).unwrap();
        copy(&path("src"), &path("out"), false).unwrap();
        assert_eq!(fs::read_to_string(path("out/link")).unwrap(), "text");
    }

    #[test]
    fn links_that_lead_out_of_the_copy_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let links = [
            ("d/up", EntryType::Symlink, "../secret"),
            ("d/abs", EntryType::Symlink, "/etc/passwd"),
            ("d/sub/sly", EntryType::Symlink, "x/../../../secret"),
            ("d/sub/good", EntryType::Symlink, "../file"),
            ("d/here", EntryType::Symlink, "sub/good"),
        ];
        foreign(dir.path(), &links).unwrap();
        let there = |name: &str| dir.path().join(name).symlink_metadata().is_ok();
        assert_eq!(["d/up", "d/abs", "d/sub/sly"].map(there), [false; 3]);
        assert_eq!(["d/sub/good", "d/here"].map(there), [true; 2]);
    }

    #[test]
    fn devices_are_left_out_and_a_stream_that_breaks_off_leaves_no_half_file() {
        let dir = tempfile::tempdir().unwrap();
        foreign(dir.path(), &[("dev", EntryType::Block, ""), ("fifo", EntryType::Fifo, "")]).unwrap();
        let whole = stream(&[("file", EntryType::Regular, &"x".repeat(4000))]);
        unpack(dir.path(), Stream::Foreign, Side::Machine, &whole[..1000]).unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_packed_is_looked_at_before_it_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("src")).unwrap();
        nix::unistd::mkfifo(&path("src/pipe"), Mode::from_bits_truncate(0o600)).unwrap();
        symlink("/etc", path("src/etc")).unwrap();
        fs::write(path("src/file"), "x").unwrap();
        copy(&path("src"), &path("out"), false).unwrap();
        let names: Vec<_> = fs::read_dir(path("out")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["file"]);
    }
}
