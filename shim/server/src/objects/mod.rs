//! The object store: what pods refer to by name (ConfigMap, Secret, Service, ...), kept so that whoever tends a pod
//! later finds it.
//!
//! ```text
//! STATE/objects/NAMESPACE/KIND/NAME.json   0600; `_` stands for the namespace of kinds that have none
//! STATE/objects/NAMESPACE/version          a number that grows with each change in the namespace
//! STATE/objects/lock                       held while something is changed
//! ```
//!
//! A file is written whole by rename, so a reader sees an object as it was or as it is. The folder lies on a tmpfs: like
//! everything that runs, it goes with a reboot.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use coracle_engine::{Paths, lock, record};
use nix::fcntl::Flock;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::exit::{self, Coded};
use crate::kube::meta::Meta;
use crate::kube::names;

mod any;
mod puts;

pub use any::AnyObject;
pub use puts::Puts;

const MODE: u32 = 0o600;
/// Stands for the namespace of a kind that has none: no namespace can be called so.
const CLUSTER: &str = "_";

/// A kind of object that is kept.
pub trait Kind: Serialize + DeserializeOwned + PartialEq {
    /// Its name, as documents write it.
    const KIND: &'static str;
    /// Whether it belongs to a namespace.
    const NAMESPACED: bool;

    /// Its metadata.
    fn meta(&self) -> &Meta;

    /// Whether it may become this; why not, otherwise.
    fn check_change(&self, _new: &Self) -> Result<(), String> {
        Ok(())
    }
}

/// What putting an object did, in `kubectl apply`'s words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// There was none of its name.
    Created,
    /// It was another.
    Configured,
    /// It was the same.
    Unchanged,
}

impl Change {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Change::Created => "created",
            Change::Configured => "configured",
            Change::Unchanged => "unchanged",
        }
    }
}

/// The object store.
#[derive(Debug, Clone)]
pub struct Objects {
    root: PathBuf,
}

impl Objects {
    /// The store beside what runs; nothing is made until something is put.
    pub fn open(paths: &Paths) -> Objects {
        Objects { root: paths.state.join("objects") }
    }

    /// The object of this name; the namespace of a kind without is of no matter.
    pub fn get<K: Kind>(&self, namespace: &str, name: &str) -> Result<Option<K>> {
        // A name that is no name, from wherever it comes, must not become a path.
        if names::subdomain(name).is_err() || (K::NAMESPACED && names::label(namespace).is_err()) {
            return Ok(None);
        }
        Ok(record::read_json(&self.file::<K>(namespace, name))?)
    }

    /// All objects of a kind, of one namespace or of all, by name.
    pub fn list<K: Kind>(&self, namespace: Option<&str>) -> Result<Vec<K>> {
        let namespaces = match (K::NAMESPACED, namespace) {
            (true, Some(namespace)) => vec![namespace.to_owned()],
            (true, None) => entries(&self.root)?,
            (false, _) => vec![CLUSTER.to_owned()],
        };
        let mut out = Vec::new();
        for namespace in namespaces {
            let dir = self.root.join(namespace).join(K::KIND);
            for name in entries(&dir)?.iter().filter(|name| name.ends_with(".json")) {
                // One that was deleted meanwhile is none.
                out.extend(record::read_json::<K>(&dir.join(name))?);
            }
        }
        Ok(out)
    }

    /// Makes or replaces an object; what may not change is not changed.
    pub fn put<K: Kind>(&self, object: &K) -> Result<Change> {
        let Meta { name, namespace, .. } = object.meta();
        let context = || format!("keep {} {name}", K::KIND);
        let file = self.file::<K>(namespace, name);
        let dir = file.parent().context("an object has a folder")?;
        fs::create_dir_all(dir).with_context(context)?;
        let _lock = self.lock()?;
        let old: Option<K> = record::read_json(&file)?;
        let change = match &old {
            Some(old) if old == object => return Ok(Change::Unchanged),
            Some(old) => {
                old.check_change(object)
                    .map_err(|why| Coded::error(exit::CONFLICT, format!("{} {name}: {why}", K::KIND)))?;
                Change::Configured
            }
            None => Change::Created,
        };
        let bytes = serde_json::to_vec(object).with_context(context)?;
        record::write_file(&file, &bytes, MODE).with_context(context)?;
        self.grow(dir)?;
        Ok(change)
    }

    /// Deletes an object; whether there was one.
    pub fn delete<K: Kind>(&self, namespace: &str, name: &str) -> Result<bool> {
        let file = self.file::<K>(namespace, name);
        if names::subdomain(name).is_err() || !file.exists() {
            return Ok(false);
        }
        let _lock = self.lock()?;
        match fs::remove_file(&file) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            removed => removed.with_context(|| format!("delete {}", file.display()))?,
        }
        self.grow(file.parent().context("an object has a folder")?)?;
        Ok(true)
    }

    /// A number that differs once an object of the namespace, or of none, has changed.
    pub fn version(&self, namespace: &str) -> u64 {
        number(&self.root.join(namespace).join("version")) + number(&self.root.join(CLUSTER).join("version"))
    }

    fn lock(&self) -> Result<Flock<File>> {
        Ok(lock::section(&self.root.join("lock"), true)?)
    }

    /// Counts a change in the folder of a kind.
    fn grow(&self, dir: &Path) -> Result<()> {
        let file = dir.with_file_name("version");
        Ok(record::write_file(&file, (number(&file) + 1).to_string().as_bytes(), MODE)?)
    }

    fn file<K: Kind>(&self, namespace: &str, name: &str) -> PathBuf {
        let namespace = if K::NAMESPACED { namespace } else { CLUSTER };
        self.root.join(namespace).join(K::KIND).join(format!("{name}.json"))
    }
}

fn number(file: &Path) -> u64 {
    fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// The names in a folder, sorted; none if there is no such folder.
fn entries(dir: &Path) -> Result<Vec<String>> {
    let list = match fs::read_dir(dir) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        list => list.with_context(|| format!("read {}", dir.display()))?,
    };
    let mut names = Vec::new();
    for entry in list {
        names.extend(entry.with_context(|| format!("read {}", dir.display()))?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::config::{ConfigMap, RuntimeClass};

    fn store() -> (tempfile::TempDir, Objects) {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects { root: dir.path().join("objects") };
        (dir, objects)
    }

    fn map(namespace: &str, name: &str, value: &str) -> ConfigMap {
        ConfigMap {
            meta: Meta { name: name.into(), namespace: namespace.into(), ..Meta::default() },
            data: [("key".to_owned(), value.to_owned())].into(),
            binary: [("raw".to_owned(), vec![0, 255])].into(),
            immutable: false,
        }
    }

    #[test]
    fn an_object_is_created_configured_and_left_alone() {
        let (_dir, objects) = store();
        assert_eq!(objects.get::<ConfigMap>("default", "a").unwrap(), None);
        assert_eq!(objects.put(&map("default", "a", "1")).unwrap(), Change::Created);
        assert_eq!(objects.put(&map("default", "a", "1")).unwrap(), Change::Unchanged);
        assert_eq!(objects.put(&map("default", "a", "2")).unwrap(), Change::Configured);
        assert_eq!(objects.get("default", "a").unwrap(), Some(map("default", "a", "2")));
        assert_eq!(objects.get::<ConfigMap>("other", "a").unwrap(), None);
        assert!(objects.delete::<ConfigMap>("default", "a").unwrap());
        assert!(!objects.delete::<ConfigMap>("default", "a").unwrap());
    }

    #[test]
    fn lists_are_of_one_namespace_or_of_all_and_sorted() {
        let (_dir, objects) = store();
        for (namespace, name) in [("b", "x"), ("a", "z"), ("a", "y")] {
            objects.put(&map(namespace, name, "1")).unwrap();
        }
        let names = |namespace| {
            let list = objects.list::<ConfigMap>(namespace).unwrap();
            list.iter().map(|map| map.meta.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(None), ["y", "z", "x"]);
        assert_eq!(names(Some("a")), ["y", "z"]);
        assert_eq!(names(Some("c")), [""; 0]);
        assert!(objects.list::<RuntimeClass>(None).unwrap().is_empty());
    }

    #[test]
    fn the_version_changes_with_each_change_and_only_then() {
        let (_dir, objects) = store();
        let mut seen = vec![objects.version("default")];
        for value in ["1", "1", "2"] {
            objects.put(&map("default", "a", value)).unwrap();
            seen.push(objects.version("default"));
        }
        objects.delete::<ConfigMap>("default", "a").unwrap();
        seen.push(objects.version("default"));
        objects.put(&RuntimeClass { handler: "x".into(), ..named("x") }).unwrap();
        seen.push(objects.version("default"));
        assert_eq!(seen, [0, 1, 1, 2, 3, 4]);
        assert_eq!(objects.version("other"), 1, "kinds without a namespace count for all");
    }

    fn named(name: &str) -> RuntimeClass {
        RuntimeClass { meta: Meta { name: name.into(), ..Meta::default() }, ..RuntimeClass::default() }
    }

    #[test]
    fn what_is_immutable_is_not_changed() {
        let (_dir, objects) = store();
        let fixed = ConfigMap { immutable: true, ..map("default", "a", "1") };
        objects.put(&fixed).unwrap();
        let error = objects.put(&map("default", "a", "2")).unwrap_err();
        assert_eq!(error.to_string(), "ConfigMap a: it is immutable: delete it first");
        assert_eq!(exit::code(&error), exit::CONFLICT);
        let labelled = Meta { labels: [("a".to_owned(), "b".to_owned())].into(), ..fixed.meta.clone() };
        let relabelled = ConfigMap { meta: labelled, ..fixed };
        assert_eq!(objects.put(&relabelled).unwrap(), Change::Configured, "its labels may change");
    }

    #[test]
    fn a_name_that_is_a_path_finds_nothing() {
        let (_dir, objects) = store();
        objects.put(&map("default", "a", "1")).unwrap();
        for (namespace, name) in [("default", "../ConfigMap/a"), ("../objects/default", "a"), ("default", "")] {
            assert_eq!(objects.get::<ConfigMap>(namespace, name).unwrap(), None, "{namespace} {name}");
        }
    }
}
