//! The tree of a layer: puts entries beneath a directory descriptor. See the [module above](super) for the rules.
//!
//! The calls are counted: most entries are small files of root's in the directory of the entry before. The directories
//! from the root to the present one are kept open as a stack, each opened by one component from the one before; a
//! file is then `openat`, `write`, `futimens`, `close`. The mode is right at creation, since the thread's umask is 0;
//! owners are set only when they are not root's; a directory's time is set when it leaves the stack, and only if
//! something was made in it since.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{BufRead, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{
    FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstatat, futimens, makedev, mkdirat, mknodat, utimensat,
};
use nix::sys::statvfs::fstatvfs;
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat};

use super::record::{SHADOWED, Writer};
use super::tar::{Entry, Kind, Parser};
use super::{Limits, TREE, Unpacked};
use crate::error::{Error, ErrorKind, Result};
use crate::sys;

/// The longest path of an entry: the kernel's.
const MAX_PATH: usize = 4096;
/// The longest name: that of every file system in use.
const MAX_NAME: usize = 255;
/// The deepest path: each level is an open descriptor here, and in those who delete or verify the tree.
const MAX_DEPTH: usize = 128;
/// How many symbolic links are followed on the way to one entry: the kernel's limit.
const MAX_LINKS: usize = 40;
/// Free space is looked at whenever this much was written.
const SPACE_CHECK: u64 = 64 << 20;
/// What is done when an owner is set.
const SET_OWNER: &str = "set the owner";
const WHITEOUT: &[u8] = b".wh.";
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What is known of a directory.
struct Directory {
    explicit: bool,
    mtime: (i64, u32),
    /// Mode bits that `mkdir` does not set and that must not be there while files are made in it (set-group-id).
    late_mode: Option<u32>,
}

impl Directory {
    fn implicit() -> Directory {
        Directory { explicit: false, mtime: (0, 0), late_mode: None }
    }
}

/// A directory on the stack.
struct Open {
    name: Vec<u8>,
    fd: OwnedFd,
    changed: bool,
}

/// See the [module](self).
pub struct Tree<'a> {
    layer: BorrowedFd<'a>,
    /// The root first, then one directory for each component of where we are.
    stack: Vec<Open>,
    /// All directories of this layer by path. Sorted, so that what lies beneath one is found at once.
    directories: BTreeMap<Vec<u8>, Directory>,
    limits: Limits,
    shadowed: u64,
    entries: u64,
    content: u64,
    checked: u64,
    opaque_root: bool,
}

impl<'a> Tree<'a> {
    /// A tree in that layer directory's (empty) `fs`.
    pub fn new(layer: &'a impl AsFd, limits: Limits) -> Result<Tree<'a>> {
        let layer = layer.as_fd();
        let fd = open_directory(layer, TREE.as_bytes()).map_err(|err| Error::io("open fs", err.into()))?;
        let directories = BTreeMap::from([(Vec::new(), Directory::implicit())]);
        let stack = vec![Open { name: Vec::new(), fd, changed: true }];
        let (shadowed, entries, content, checked, opaque_root) = (0, 0, 0, 0, false);
        Ok(Tree { layer, stack, directories, limits, shadowed, entries, content, checked, opaque_root })
    }

    /// Puts one entry in its place; takes its payload and its raw bytes.
    pub fn apply<R: BufRead>(&mut self, entry: Entry, parser: &mut Parser<R>, record: &mut Writer) -> Result<()> {
        record.raw(&mut parser.raw)?;
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(Error::new(ErrorKind::Limit, format!("has more than {} entries", self.limits.entries)));
        }
        let place = self.place(&entry, parser, record);
        place.map_err(|err| err.context(format!("entry {:?}", String::from_utf8_lossy(&entry.path))))
    }

    fn place<R: BufRead>(&mut self, entry: &Entry, parser: &mut Parser<R>, record: &mut Writer) -> Result<()> {
        let components = components(&entry.path)?;
        let Some((name, parents)) = components.split_last() else {
            return self.root(entry);
        };
        check_xattrs(entry)?;
        if components[0].starts_with(AUFS) && *name != OPAQUE {
            return Ok(()); // aufs' own bookkeeping, which old images carry
        }
        self.enter(parents)?;
        if *name == OPAQUE {
            return self.opaque();
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return if name.starts_with(AUFS) { Ok(()) } else { self.whiteout(hidden) };
        }
        match entry.kind {
            Kind::File => self.file(name, entry, parser, record),
            Kind::Directory => self.directory(name, entry, record),
            Kind::Symlink => self.symlink(name, entry, record),
            Kind::HardLink => self.hard_link(name, entry, record),
            Kind::Char if entry.device == (0, 0) => self.whiteout(name),
            Kind::Char => self.node(name, entry, SFlag::S_IFCHR, record),
            Kind::Block => self.node(name, entry, SFlag::S_IFBLK, record),
            Kind::Fifo => self.node(name, entry, SFlag::S_IFIFO, record),
        }
    }

    /// Ends the work: times and late modes of directories.
    pub fn finish(mut self) -> Result<Unpacked> {
        let late: Vec<(Vec<u8>, u32)> =
            self.directories.iter().filter_map(|(path, dir)| Some((path.clone(), dir.late_mode?))).collect();
        for (path, mode) in late {
            self.enter(&components(&path)?)?;
            fchmod(self.here(), Mode::from_bits_retain(mode)).map_err(system("set the mode of a directory"))?;
        }
        while let Some(open) = self.stack.last() {
            if open.changed {
                self.set_time_here()?;
            }
            self.stack.pop();
        }
        let implicit = self.directories.into_iter().filter(|(_, dir)| !dir.explicit).map(|(path, _)| path).collect();
        Ok(Unpacked {
            archive_size: 0,
            content_size: self.content,
            entries: self.entries,
            implicit,
            opaque_root: self.opaque_root,
        })
    }

    // Where we are.

    fn here(&self) -> BorrowedFd<'_> {
        self.stack.last().expect("the root stays on the stack").fd.as_fd()
    }

    fn changed(&mut self) {
        self.stack.last_mut().expect("the root stays on the stack").changed = true;
    }

    /// The path of the present directory, and of a name in it.
    fn path_of(&self, name: &[u8]) -> Vec<u8> {
        let mut path = Vec::with_capacity(MAX_NAME);
        for open in &self.stack[1..] {
            path.extend_from_slice(&open.name);
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    fn path_here(&self) -> Vec<u8> {
        let mut path = self.path_of(b"");
        path.pop();
        path
    }

    /// Goes to a directory, making those that are missing.
    fn enter(&mut self, parents: &[&[u8]]) -> Result<()> {
        let common = self.stack[1..].iter().zip(parents).take_while(|(open, name)| open.name == **name).count();
        self.leave_to(common)?;
        for (index, name) in parents.iter().enumerate().skip(common) {
            if !self.descend(name)? {
                let (real, _) = self.resolve(parents, index)?;
                let real: Vec<&[u8]> = real.iter().map(Vec::as_slice).collect();
                return self.enter_real(&real);
            }
        }
        Ok(())
    }

    /// Goes to a directory whose path was resolved, so that no link can be on the way any more.
    fn enter_real(&mut self, parents: &[&[u8]]) -> Result<()> {
        let common = self.stack[1..].iter().zip(parents).take_while(|(open, name)| open.name == **name).count();
        self.leave_to(common)?;
        for name in &parents[common..] {
            if !self.descend(name)? {
                return Err(refused("a parent is not a directory"));
            }
        }
        Ok(())
    }

    /// Drops directories off the stack until that many are left beneath the root.
    fn leave_to(&mut self, depth: usize) -> Result<()> {
        while self.stack.len() > depth + 1 {
            if self.stack.last().is_some_and(|open| open.changed) {
                self.set_time_here()?;
            }
            self.stack.pop();
        }
        Ok(())
    }

    fn set_time_here(&self) -> Result<()> {
        let mtime = self.directories.get(&self.path_here()).map_or((0, 0), |dir| dir.mtime);
        let time = time_spec(mtime);
        futimens(self.here(), &time, &time).map_err(system("set the time of a directory"))
    }

    /// Goes one directory down, making it if it is missing. `false`: a symbolic link is in the way.
    fn descend(&mut self, name: &[u8]) -> Result<bool> {
        let path = self.path_of(name);
        let new = !self.directories.contains_key(&path);
        if new {
            match mkdirat(self.here(), name, Mode::from_bits_retain(0o755)) {
                Ok(()) => {}
                Err(Errno::EEXIST) => {
                    let stat = self.stat(name)?;
                    if kind_of(&stat) == SFlag::S_IFLNK {
                        return Ok(false);
                    }
                    if !is_whiteout(&stat) {
                        return Err(refused("a parent is not a directory"));
                    }
                    // What the whiteout hides stays hidden; what comes into the new directory is seen.
                    unlinkat(self.here(), name, UnlinkatFlags::NoRemoveDir).map_err(system("remove"))?;
                    mkdirat(self.here(), name, Mode::from_bits_retain(0o755)).map_err(system("create a directory"))?;
                    self.mark_opaque(name)?;
                }
                Err(err) => return Err(system("create a parent directory")(err)),
            }
            self.changed();
            self.directories.insert(path, Directory::implicit());
        }
        let fd = open_directory(self.here(), name).map_err(system("open a directory"))?;
        self.stack.push(Open { name: name.to_vec(), fd, changed: new });
        Ok(true)
    }

    /// Resolves the links on a path of directories within the layer's root; what does not exist is taken as it is.
    /// The stack stands at `parents[..from]`, which is real. Returns the real path, and the directory if it exists.
    fn resolve(&self, parents: &[&[u8]], from: usize) -> Result<(Vec<Vec<u8>>, Option<OwnedFd>)> {
        let mut real: Vec<Vec<u8>> = parents[..from].iter().map(|name| name.to_vec()).collect();
        let mut todo: Vec<Vec<u8>> = parents[from..].iter().rev().map(|name| name.to_vec()).collect();
        let mut links = 0;
        let mut exists = true;
        while let Some(name) = todo.pop() {
            if name == b".." {
                real.pop(); // the root's parent is the root
                continue;
            }
            let directory = self.open_real(&real).map_err(system("open a directory"))?;
            let link = match &directory {
                Some(directory) => readlinkat(directory, name.as_slice()).ok(),
                None => None,
            };
            let Some(target) = link else {
                real.push(name);
                exists = directory.is_some();
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(refused("too many symbolic links on its path"));
            }
            let target = std::os::unix::ffi::OsStringExt::into_vec(target);
            if target.starts_with(b"/") {
                real.clear();
            }
            let names = target.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
            todo.extend(names.rev().map(<[u8]>::to_vec));
            if todo.len() + real.len() > MAX_DEPTH {
                return Err(refused("its path is too long"));
            }
        }
        let fd = if exists { self.open_real(&real).map_err(system("open a directory"))? } else { None };
        Ok((real, fd))
    }

    /// Opens a directory by its real path, if it exists and is one.
    fn open_real(&self, path: &[Vec<u8>]) -> nix::Result<Option<OwnedFd>> {
        let mut fd = open_directory(self.stack[0].fd.as_fd(), b".")?;
        for name in path {
            fd = match open_directory(&fd, name) {
                Ok(fd) => fd,
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(None),
                Err(err) => return Err(err),
            };
        }
        Ok(Some(fd))
    }

    fn stat(&self, name: &[u8]) -> Result<FileStat> {
        fstatat(self.here(), name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(system("look at an earlier entry"))
    }

    // What stands there already.

    /// Makes room for an entry that replaces an earlier one. Contents that the record refers to are moved aside.
    /// `true`: it was a whiteout.
    fn displace(&mut self, name: &[u8], record: &mut Writer) -> Result<bool> {
        let stat = self.stat(name)?;
        let kind = kind_of(&stat);
        let has_content = kind == SFlag::S_IFDIR || (kind == SFlag::S_IFREG && stat.st_size > 0);
        if !has_content {
            unlinkat(self.here(), name, UnlinkatFlags::NoRemoveDir).map_err(system("remove"))?;
            return Ok(is_whiteout(&stat));
        }
        if self.shadowed == 0 {
            mkdirat(self.layer, SHADOWED, Mode::from_bits_retain(0o700)).map_err(system("create shadowed"))?;
        }
        self.shadowed += 1;
        let path = self.path_of(name);
        let aside = format!("{SHADOWED}/{}", self.shadowed);
        renameat(self.here(), name, self.layer, aside.as_str()).map_err(system("move an earlier entry aside"))?;
        record.displaced(&path, self.shadowed)?;
        if kind == SFlag::S_IFDIR {
            let beneath = [path.as_slice(), b"/"].concat();
            let inner = self.directories.range(beneath.clone()..).map(|(path, _)| path);
            let gone: Vec<Vec<u8>> = inner.take_while(|path| path.starts_with(&beneath)).cloned().collect();
            for path in gone {
                self.directories.remove(&path);
            }
            self.directories.remove(&path);
        }
        Ok(false)
    }

    /// Does what makes a new name; if an earlier entry has it, displaces that one and does it again.
    fn create<T>(
        &mut self,
        name: &[u8],
        record: &mut Writer,
        what: &'static str,
        make: impl Fn(BorrowedFd<'_>) -> nix::Result<T>,
    ) -> Result<T> {
        let made = match make(self.here()) {
            Err(Errno::EEXIST) => {
                self.displace(name, record)?;
                make(self.here())
            }
            made => made,
        };
        self.changed();
        made.map_err(system(what))
    }

    // The kinds of entries.

    fn root(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != Kind::Directory {
            return Err(refused("the root is not a directory"));
        }
        check_xattrs(entry)?;
        self.leave_to(0)?;
        self.changed();
        let directory = Directory { explicit: true, mtime: entry.mtime, late_mode: late_mode(entry) };
        self.directories.insert(Vec::new(), directory);
        set_directory(self.here(), entry)
    }

    fn directory(&mut self, name: &[u8], entry: &Entry, record: &mut Writer) -> Result<()> {
        let path = self.path_of(name);
        let new = !self.directories.contains_key(&path);
        if new {
            // With the owner's bits only, until the rest is known to fit the owner.
            let mode = Mode::from_bits_retain(entry.mode & 0o777);
            if mkdirat(self.here(), name, mode) == Err(Errno::EEXIST) {
                let hidden = self.displace(name, record)?;
                mkdirat(self.here(), name, mode).map_err(system("create a directory"))?;
                if hidden {
                    self.mark_opaque(name)?;
                }
            }
            self.changed();
        }
        if !new || entry.uid != 0 || entry.gid != 0 || entry.mode & 0o7000 != 0 || !entry.xattrs.is_empty() {
            let fd = open_directory(self.here(), name).map_err(system("open a directory"))?;
            set_directory(fd.as_fd(), entry)?;
        }
        let time = time_spec(entry.mtime);
        utimensat(self.here(), name, &time, &time, UtimensatFlags::NoFollowSymlink).map_err(system("set the time"))?;
        let directory = Directory { explicit: true, mtime: entry.mtime, late_mode: late_mode(entry) };
        self.directories.insert(path, directory);
        Ok(())
    }

    fn file<R: BufRead>(
        &mut self,
        name: &[u8],
        entry: &Entry,
        parser: &mut Parser<R>,
        record: &mut Writer,
    ) -> Result<()> {
        self.check_space(entry)?;
        let owned = entry.uid != 0 || entry.gid != 0;
        // A change of owner clears the set-id bits, and so does a write by root of a user namespace: they come after both.
        let late = entry.mode & 0o7000 != 0 && (owned || entry.mode & 0o6000 != 0);
        let mode = Mode::from_bits_retain(if owned || late { entry.mode & 0o777 } else { entry.mode });
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let fd = self.create(name, record, "create", |dir| openat(dir, name, flags, mode))?;
        let mut file = File::from(fd);
        if owned {
            fchown(&file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid))).map_err(system(SET_OWNER))?;
        }
        if parser.remaining() > 0 {
            record.file(&self.path_of(name), parser.remaining(), entry.pieces.as_deref())?;
        }
        let wrote = |err| Error::io("write", err);
        match &entry.pieces {
            None => {
                while parser.remaining() > 0 {
                    let chunk = parser.chunk()?;
                    file.write_all(chunk).map_err(wrote)?;
                    let length = chunk.len();
                    parser.consume(length);
                    self.content += length as u64;
                }
            }
            Some(pieces) => {
                self.content += write_pieces(&file, pieces, parser)?;
                file.set_len(entry.size).map_err(wrote)?;
            }
        }
        if late {
            fchmod(&file, Mode::from_bits_retain(entry.mode)).map_err(system("set the mode"))?;
        }
        set_xattrs(file.as_fd(), entry)?;
        let time = time_spec(entry.mtime);
        futimens(&file, &time, &time).map_err(system("set the time"))
    }

    fn symlink(&mut self, name: &[u8], entry: &Entry, record: &mut Writer) -> Result<()> {
        let target = entry.link.as_slice();
        self.create(name, record, "create a symbolic link", |dir| symlinkat(target, dir, name))?;
        self.set_unopened(name, entry)
    }

    fn node(&mut self, name: &[u8], entry: &Entry, kind: SFlag, record: &mut Writer) -> Result<()> {
        let mode = Mode::from_bits_retain(entry.mode & 0o777);
        let device = makedev(u64::from(entry.device.0), u64::from(entry.device.1));
        self.create(name, record, "create a device or pipe", |dir| mknodat(dir, name, kind, mode, device))?;
        self.set_unopened(name, entry)
    }

    /// The attributes of what cannot be opened.
    fn set_unopened(&mut self, name: &[u8], entry: &Entry) -> Result<()> {
        if entry.uid != 0 || entry.gid != 0 {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            fchownat(self.here(), name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(system(SET_OWNER))?;
        }
        if entry.mode & 0o7000 != 0 && entry.kind != Kind::Symlink {
            // Just made by this thread in a directory that only it knows: the name is no link.
            let mode = Mode::from_bits_retain(entry.mode);
            nix::sys::stat::fchmodat(self.here(), name, mode, nix::sys::stat::FchmodatFlags::FollowSymlink)
                .map_err(system("set the mode"))?;
        }
        for (key, value) in &entry.xattrs {
            let set = sys::set_xattr_at(self.here(), name, &xattr_name(key)?, value);
            set.map_err(|err| xattr_failed(key, err))?;
        }
        let time = time_spec(entry.mtime);
        utimensat(self.here(), name, &time, &time, UtimensatFlags::NoFollowSymlink).map_err(system("set the time"))
    }

    fn hard_link(&mut self, name: &[u8], entry: &Entry, record: &mut Writer) -> Result<()> {
        let target = String::from_utf8_lossy(&entry.link).into_owned();
        let missing = || {
            let message = format!("hard link to {target:?}, which is not an earlier entry of this layer");
            Error::new(ErrorKind::Corrupt, message).hint("layers are unpacked apart: a link cannot reach a lower one")
        };
        let components = components(&entry.link).map_err(|err| err.context(format!("hard link to {target:?}")))?;
        let (source, parents) = components.split_last().ok_or_else(|| refused("hard link to the root"))?;
        // Most often no symbolic link is on the way.
        let straight: Vec<Vec<u8>> = parents.iter().map(|name| name.to_vec()).collect();
        let directory = match self.open_real(&straight).map_err(system("open a directory"))? {
            Some(directory) => directory,
            None => self.resolve(parents, 0)?.1.ok_or_else(missing)?,
        };
        let stat = match fstatat(&directory, *source, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) if !is_whiteout(&stat) => stat,
            Ok(_) | Err(Errno::ENOENT) => return Err(missing()),
            Err(err) => return Err(system("look at the target of a hard link")(err)),
        };
        if kind_of(&stat) == SFlag::S_IFDIR {
            return Err(refused("hard link to a directory"));
        }
        if let Ok(present) = fstatat(self.here(), name, AtFlags::AT_SYMLINK_NOFOLLOW)
            && (present.st_ino, present.st_dev) == (stat.st_ino, stat.st_dev)
        {
            return Ok(()); // linked already, or a link to itself
        }
        let source = *source;
        self.create(name, record, "create a hard link", |dir| linkat(&directory, source, dir, name, AtFlags::empty()))
    }

    fn whiteout(&mut self, name: &[u8]) -> Result<()> {
        if name.is_empty() || name == b"." || name == b".." {
            return Err(refused("a whiteout without a name"));
        }
        match mknodat(self.here(), name, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)) {
            Ok(()) => {
                self.changed();
                Ok(())
            }
            // A whiteout hides lower layers only: a directory of this layer loses what lies beneath, all else does anyway.
            Err(Errno::EEXIST) if self.directories.contains_key(&self.path_of(name)) => self.mark_opaque(name),
            Err(Errno::EEXIST) => Ok(()),
            Err(err) => Err(system("create a whiteout")(err)),
        }
    }

    fn opaque(&mut self) -> Result<()> {
        if self.stack.len() == 1 {
            self.opaque_root = true; // overlay does not look at the root's attribute: such an image has no layers below
        }
        set_opaque(self.here())
    }

    fn mark_opaque(&mut self, name: &[u8]) -> Result<()> {
        let fd = open_directory(self.here(), name).map_err(system("open a directory"))?;
        set_opaque(fd.as_fd())
    }

    /// Stops in time, before the file system is full.
    fn check_space(&mut self, entry: &Entry) -> Result<()> {
        let payload = match &entry.pieces {
            None => entry.size,
            Some(pieces) => pieces.iter().map(|(_, length)| length).sum(),
        };
        if payload < SPACE_CHECK && self.content - self.checked < SPACE_CHECK {
            return Ok(());
        }
        self.checked = self.content;
        let stat = fstatvfs(self.layer).map_err(system("look at the free space"))?;
        let unit = stat.fragment_size();
        let free = stat.blocks_available() * unit;
        // Small file systems keep a smaller reserve.
        let reserve = self.limits.reserve.min(stat.blocks() * unit / 50);
        if payload.saturating_add(reserve) > free {
            let message = format!("needs {payload} bytes, and {free} are free");
            return Err(Error::new(ErrorKind::NoSpace, message).hint("\"coracle gc\" frees unused layers"));
        }
        Ok(())
    }
}

fn write_pieces<R: BufRead>(file: &File, pieces: &[(u64, u64)], parser: &mut Parser<R>) -> Result<u64> {
    let mut written = 0;
    for (offset, length) in pieces {
        let mut done = 0;
        while done < *length {
            let chunk = parser.chunk()?;
            let chunk = &chunk[..usize::try_from(length - done).unwrap_or(usize::MAX).min(chunk.len())];
            file.write_all_at(chunk, offset + done).map_err(|err| Error::io("write", err))?;
            let count = chunk.len();
            parser.consume(count);
            done += count as u64;
        }
        written += done;
    }
    Ok(written)
}

/// Splits a path; nothing but plain names is left.
fn components(path: &[u8]) -> Result<Vec<&[u8]>> {
    if path.len() > MAX_PATH {
        return Err(refused("its path is too long"));
    }
    let mut names = Vec::with_capacity(8);
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(refused("its path has a \"..\"")),
            name if name.len() > MAX_NAME => return Err(refused("a name on its path is too long")),
            name => names.push(name),
        }
    }
    if names.len() > MAX_DEPTH {
        return Err(refused("its path is too deep"));
    }
    Ok(names)
}

fn refused(why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("refused: {why}"))
}

fn system(what: &'static str) -> impl Fn(Errno) -> Error {
    move |err| {
        let made = Error::io(what, err.into());
        match err {
            Errno::EINVAL if what == SET_OWNER && sys::in_user_namespace() => made
                .hint("this user has no such id: /etc/subuid and /etc/subgid give more, as lines `USER:100000:65536`"),
            Errno::EPERM if sys::in_user_namespace() => made.hint("device nodes are made by the machine's root alone"),
            Errno::EPERM | Errno::EACCES => made.hint("unpacking layers needs root"),
            Errno::ENOSPC | Errno::EDQUOT => made.hint("\"coracle gc\" frees unused layers"),
            _ => made,
        }
    }
}

fn open_directory(at: impl AsFd, name: &[u8]) -> nix::Result<OwnedFd> {
    openat(at, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}

fn kind_of(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT)
}

fn is_whiteout(stat: &FileStat) -> bool {
    kind_of(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}

fn time_spec((seconds, nanoseconds): (i64, u32)) -> TimeSpec {
    TimeSpec::new(seconds, i64::from(nanoseconds))
}

/// `set-group-id` would be inherited by what is made within, so it waits for the end.
fn late_mode(entry: &Entry) -> Option<u32> {
    (entry.mode & 0o6000 != 0).then_some(entry.mode)
}

fn set_directory(fd: BorrowedFd<'_>, entry: &Entry) -> Result<()> {
    fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid))).map_err(system(SET_OWNER))?;
    fchmod(fd, Mode::from_bits_retain(entry.mode & 0o1777)).map_err(system("set the mode"))?;
    set_xattrs(fd, entry)
}

fn set_opaque(fd: BorrowedFd<'_>) -> Result<()> {
    let mark = sys::opaque_mark();
    sys::set_xattr(fd, mark, b"y").map_err(|err| {
        Error::io(format!("set {}", mark.to_string_lossy()), err)
            .hint("needs a file system with such attributes (tmpfs has user.* since Linux 6.6)")
    })
}

fn check_xattrs(entry: &Entry) -> Result<()> {
    for (key, _) in &entry.xattrs {
        if sys::is_overlays(key) {
            let message = format!("has the attribute {:?}, which is overlay's own", String::from_utf8_lossy(key));
            return Err(refused(&message));
        }
    }
    Ok(())
}

fn set_xattrs(fd: BorrowedFd<'_>, entry: &Entry) -> Result<()> {
    for (key, value) in &entry.xattrs {
        sys::set_xattr(fd, &xattr_name(key)?, value).map_err(|err| xattr_failed(key, err))?;
    }
    Ok(())
}

fn xattr_name(key: &[u8]) -> Result<CString> {
    CString::new(key).map_err(|_| refused("an attribute's name contains a zero byte"))
}

fn xattr_failed(key: &[u8], err: std::io::Error) -> Error {
    Error::io(format!("set the attribute {:?}", String::from_utf8_lossy(key)), err)
}
