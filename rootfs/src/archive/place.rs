//! A directory or a tar archive as a set of named files.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path};
use std::sync::Arc;

use nix::fcntl::OFlag;

use crate::error::{Error, ErrorKind, Result};
use crate::sys;

/// The most files of an archive: two for each layer of many images.
const MAX_FILES: usize = 100_000;
/// Links in docker archives point from one layer to its twin.
const MAX_LINKS: usize = 8;

/// See the [module](self).
pub(crate) enum Place {
    /// A directory.
    Directory(File),
    /// A plain tar archive, and where in it its files are.
    Tar { file: Arc<File>, files: HashMap<String, Found> },
}

/// A file of a tar archive.
pub(crate) enum Found {
    At { offset: u64, size: u64 },
    Link(String),
}

impl Place {
    /// A directory.
    pub(crate) fn directory(path: &Path) -> Result<Place> {
        let opened = File::open(path).map_err(|err| Error::io(format!("open {}", path.display()), err))?;
        Ok(Place::Directory(opened))
    }

    /// A plain tar archive. Its table of contents is read now.
    pub(crate) fn tar(mut file: File, name: &str) -> Result<Place> {
        let mut files = HashMap::new();
        let mut list = |files: &mut HashMap<String, Found>| {
            file.seek(SeekFrom::Start(0))?;
            for entry in tar::Archive::new(&file).entries_with_seek()? {
                let entry = entry?;
                let Some(path) = normal(&entry.path_bytes()) else {
                    continue;
                };
                let kind = entry.header().entry_type();
                let found = if kind.is_file() {
                    Found::At { offset: entry.raw_file_position(), size: entry.size() }
                } else if kind.is_symlink() || kind.is_hard_link() {
                    let target = entry.link_name_bytes().unwrap_or_default();
                    let target = String::from_utf8_lossy(&target).into_owned();
                    let from =
                        if kind.is_symlink() { path.rsplit_once('/').map_or("", |(parent, _)| parent) } else { "" };
                    Found::Link(if target.starts_with('/') { target } else { format!("{from}/{target}") })
                } else {
                    continue;
                };
                files.insert(path, found);
                if files.len() > MAX_FILES {
                    return Err(Error::new(ErrorKind::Limit, format!("has more than {MAX_FILES} files")).into());
                }
            }
            Ok(())
        };
        list(&mut files).map_err(|err| Error::io(format!("read archive {name}"), err))?;
        Ok(Place::Tar { file: Arc::new(file), files })
    }

    /// Opens a file: its content and its size. `None` if there is none of that name.
    pub(crate) fn open(&self, name: &str) -> Result<Option<(Box<dyn Read + Send>, u64)>> {
        match self {
            Place::Directory(directory) => {
                let opened = sys::open_beneath(directory, name.as_bytes(), OFlag::O_RDONLY | OFlag::O_NONBLOCK);
                let file = match opened {
                    Ok(fd) => File::from(fd),
                    Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(err) => return Err(Error::io(format!("open {name}"), err)),
                };
                let meta = file.metadata().map_err(|err| Error::io(format!("open {name}"), err))?;
                if !meta.is_file() {
                    return Err(Error::new(ErrorKind::Corrupt, format!("open {name}: not a regular file")));
                }
                Ok(Some((Box::new(file), meta.len())))
            }
            Place::Tar { file, files } => {
                let mut name = normal(name.as_bytes());
                for _ in 0..MAX_LINKS {
                    match name.as_deref().and_then(|name| files.get(name)) {
                        None => return Ok(None),
                        Some(Found::Link(target)) => name = resolve(target),
                        Some(Found::At { offset, size }) => {
                            let part = Part { file: file.clone(), offset: *offset, end: offset + size };
                            return Ok(Some((Box::new(part), *size)));
                        }
                    }
                }
                Ok(None)
            }
        }
    }

    /// Reads a small file whole.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some((reader, size)) = self.open(name)? else {
            return Ok(None);
        };
        if size > limit {
            return Err(Error::new(ErrorKind::Limit, format!("{name}: has {size} bytes (the limit is {limit})")));
        }
        let mut bytes = Vec::new();
        let read = reader.take(limit).read_to_end(&mut bytes);
        read.map_err(|err| Error::io(format!("read {name}"), err))?;
        Ok(Some(bytes))
    }
}

/// A path without `.` and doubled slashes; `None` if it leaves the archive.
fn normal(path: &[u8]) -> Option<String> {
    let mut names = Vec::new();
    for component in Path::new(std::ffi::OsStr::from_bytes(path)).components() {
        match component {
            Component::Normal(name) => names.push(name.to_str()?),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(names.join("/"))
}

/// The path a link means, `..` taken off.
fn resolve(path: &str) -> Option<String> {
    let mut names = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()?),
            name => names.push(name),
        }
    }
    Some(names.join("/"))
}

/// A part of a file that several threads read.
struct Part {
    file: Arc<File>,
    offset: u64,
    end: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.end - self.offset).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}
