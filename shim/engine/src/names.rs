//! Who has a name. `names/<sha-256 of the key>` holds the key and its owner's id, for as long as the owner exists.
//!
//! A reservation proves nothing by itself: its owner is asked for (`Owner`). An owner whose folder is gone, or whose
//! creation was interrupted for good, has lost the name, and the next one who wants it takes it over. So nothing dead
//! can keep a name, and nothing alive can lose it. All of this runs in one exclusive section of the state folder.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::types::SandboxConfig;

/// The name of a sandbox as it is reserved.
pub fn key(config: &SandboxConfig) -> String {
    match config.exclusive_name {
        true => format!("{}/{}", config.namespace, config.name),
        false => format!("{}/{}/{}/{}", config.namespace, config.name, config.uid, config.attempt),
    }
}

/// The reservation's file.
fn path(names: &Path, key: &str) -> PathBuf {
    let hex = Sha256::digest(key.as_bytes()).iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    });
    names.join(hex)
}

/// Who has the name, if anybody.
pub fn owner(names: &Path, key: &str) -> Result<Option<String>> {
    let path = path(names, key);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.split_once('\n').filter(|(k, _)| *k == key).map(|(_, id)| id.trim().to_owned())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read name", &path)(e)),
    }
}

/// Gives the name to `id`, from whomever.
pub fn give(names: &Path, key: &str, id: &str) -> Result<()> {
    crate::record::write_file(&path(names, key), format!("{key}\n{id}\n").as_bytes(), 0o600)
}

/// Takes the name from `id`; nothing happens if it has it no more.
pub fn release(names: &Path, key: &str, id: &str) -> Result<()> {
    if owner(names, key)?.as_deref() != Some(id) {
        return Ok(());
    }
    let path = path(names, key);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("release name", &path)(e)),
        _ => Ok(()),
    }
}

/// All reservations: the file, its key and its owner. What does not parse has an empty key.
pub fn all(names: &Path) -> Result<Vec<(PathBuf, String, String)>> {
    let entries = match fs::read_dir(names) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("list", names)(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io("list", names))?.path();
        let text = fs::read_to_string(&path).unwrap_or_default();
        let (key, id) = text.split_once('\n').unwrap_or_default();
        found.push((path, key.to_owned(), id.trim().to_owned()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_owner_and_only_the_owner_releases_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(owner(dir.path(), "default/web").unwrap(), None);
        give(dir.path(), "default/web", "a").unwrap();
        assert_eq!(owner(dir.path(), "default/web").unwrap().as_deref(), Some("a"));
        release(dir.path(), "default/web", "b").unwrap();
        assert_eq!(all(dir.path()).unwrap().len(), 1);
        release(dir.path(), "default/web", "a").unwrap();
        assert_eq!(owner(dir.path(), "default/web").unwrap(), None);
    }

    #[test]
    fn an_exclusive_name_is_the_pods_alone() {
        let pod = |uid: &str, exclusive_name| SandboxConfig {
            name: "web".into(),
            namespace: "default".into(),
            uid: uid.into(),
            exclusive_name,
            ..Default::default()
        };
        assert_eq!(key(&pod("a", true)), key(&pod("b", true)));
        assert_ne!(key(&pod("a", false)), key(&pod("b", false)));
    }
}
