//! Small files that are whole or absent, whatever happens while they are written.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};

/// Names of files in the making; a reader of a directory passes over them.
const UNFINISHED: &str = ".new-";

/// Writes a file by a synced temporary one and a rename.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let replaced = replace(path, bytes, |file| file.sync_all()).and_then(|directory| directory.sync_all());
    replaced.map_err(|err| Error::io(format!("write {}", path.display()), err))
}

/// As [`write`], for what need not survive a power cut: readers still see all of it or nothing.
pub(crate) fn write_unsynced(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, bytes, |_| Ok(())).map(drop).map_err(|err| Error::io(format!("write {}", path.display()), err))
}

/// Puts a file in place by a rename, and gives its directory.
fn replace(path: &Path, bytes: &[u8], settle: impl FnOnce(&File) -> io::Result<()>) -> io::Result<File> {
    let directory = path.parent().expect("files are in directories");
    let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(directory)?;
    file.write_all(bytes)?;
    settle(file.as_file())?;
    file.persist(path)?;
    File::open(directory)
}

/// Writes a value as JSON.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let bytes = serde_json::to_vec_pretty(value).expect("plain data is serializable");
    write(path, &bytes)
}

/// Reads a file; `None` if there is none.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(Error::io(format!("read {}", path.display()), err)),
    }
}

/// Reads a value from JSON; `None` if there is no file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(bytes) = read(path)? else {
        return Ok(None);
    };
    let value = serde_json::from_slice(&bytes);
    value.map(Some).map_err(|err| Error::new(ErrorKind::Corrupt, format!("read {}: {err}", path.display())))
}

/// The finished files of a directory, sorted; none if there is no directory.
pub(crate) fn children(path: &Path) -> Result<Vec<PathBuf>> {
    list(path, false)
}

/// Files that someone began and did not finish. The caller holds the store's lock exclusively, so nobody is at it.
pub(crate) fn unfinished(path: &Path) -> Result<Vec<PathBuf>> {
    list(path, true)
}

fn list(path: &Path, unfinished: bool) -> Result<Vec<PathBuf>> {
    let read = || {
        let mut found = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) == unfinished {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    };
    match read() {
        Err(err) if io::Error::kind(&err) == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(|err| Error::io(format!("list {}", path.display()), err)),
    }
}

/// Removes a file; `false` if there was none.
pub(crate) fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(err) => Err(Error::io(format!("remove {}", path.display()), err)),
    }
}

/// Removes a directory and all in it; nothing is an error but a failure.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(Error::io(format!("remove {}", path.display()), err)),
        _ => Ok(()),
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    let sync = File::open(path).and_then(|directory| directory.sync_all());
    sync.map_err(|err| Error::io(format!("sync {}", path.display()), err))
}
