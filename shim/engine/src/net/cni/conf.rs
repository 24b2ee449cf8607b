//! Network configurations on disk: which of them is the pods' network, and why others are not.
//!
//! The files of the folder that end in `.conflist`, `.conf` or `.json` are taken in the order of their names, and the
//! first one that makes sense is the network. A `.conflist` (or any file with a `plugins` key) is a list of plugins;
//! another is one plugin, a list of one. A list's further plugins may be in `<network name>/*.conf` beside it, unless it
//! says `loadOnlyInlinedPlugins`. What makes no sense is passed over, and why is told.
//!
//! The folder is read anew for every pod and every question: one small file and some 50 us, never out of date, and
//! nothing to watch.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The versions of the specification that are known here, the newest last.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// What of a folder can be a network.
const EXTENSIONS: [&str; 3] = ["conflist", "conf", "json"];
/// Larger than any sensible file.
const MAX_BYTES: u64 = 1 << 20;
/// More files than any sensible folder has.
const MAX_FILES: usize = 1000;

/// A version of the specification that is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Version(usize);

impl Version {
    /// The first in which plugins are given the previous result when they undo, and can be asked to check.
    pub(super) const V0_4: Version = Version(2);
    /// The first whose addresses carry no version of IP.
    pub(super) const V1_0: Version = Version(3);
    /// The first with STATUS and GC.
    pub(super) const V1_1: Version = Version(4);

    pub(super) fn parse(text: &str) -> Option<Version> {
        VERSIONS.iter().position(|v| *v == text).map(Version)
    }

    pub(super) fn as_str(self) -> &'static str {
        VERSIONS[self.0]
    }
}

impl TryFrom<String> for Version {
    type Error = String;

    fn try_from(text: String) -> Result<Version, String> {
        Version::parse(&text).ok_or_else(|| unknown_version(&text))
    }
}

impl From<Version> for String {
    fn from(version: Version) -> String {
        version.as_str().to_owned()
    }
}

fn unknown_version(text: &str) -> String {
    format!("cniVersion {text:?} is not known (known are {})", VERSIONS.join(", "))
}

/// One plugin of a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Plugin {
    /// Its program's name.
    pub(super) kind: String,
    /// Which of the runtime's arguments it takes.
    pub(super) capabilities: BTreeMap<String, bool>,
    /// All of its configuration as it was written.
    pub(super) body: Map<String, Value>,
}

/// A network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::net) struct Conf {
    /// The file.
    pub(super) path: PathBuf,
    /// The network's name.
    pub(super) name: String,
    /// The versions it can be spoken to in, the newest first; never empty.
    pub(super) versions: Vec<Version>,
    /// Never ask its plugins to check.
    pub(super) disable_check: bool,
    /// Never let its plugins collect garbage.
    pub(super) disable_gc: bool,
    /// Its plugins, in order; never empty.
    pub(super) plugins: Vec<Plugin>,
}

/// What a folder says.
#[derive(Debug, Default)]
pub(in crate::net) struct Found {
    /// The network.
    pub(in crate::net) conf: Option<Conf>,
    /// The files before it that make no sense, each with the reason.
    pub(in crate::net) skipped: Vec<String>,
}

/// Reads a folder up to its first usable configuration. A folder that is not there is an empty one.
pub(super) fn read(dir: &Path) -> Found {
    let mut found = Found::default();
    let files = match list(dir, &EXTENSIONS) {
        Ok(files) => files,
        Err(e) => return Found { conf: None, skipped: vec![format!("read {}: {e}", dir.display())] },
    };
    for path in files {
        match load(&path) {
            Ok(conf) => return Found { conf: Some(conf), ..found },
            Err(why) => found.skipped.push(format!("{}: {why}", path.display())),
        }
    }
    found
}

/// The files of a folder with one of the endings, in the order of their names.
fn list(dir: &Path, endings: &[&str]) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut files = Vec::new();
    for entry in entries.take(MAX_FILES) {
        let path = entry?.path();
        if path.extension().is_some_and(|e| endings.iter().any(|known| e == *known)) && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn load(path: &Path) -> Result<Conf, String> {
    let mut conf = parse(path, object(path)?)?;
    if !conf.1 {
        let folder = path.with_file_name(&conf.0.name);
        let more = list(&folder, &["conf"]).map_err(|e| format!("read {}: {e}", folder.display()))?;
        for file in more {
            let plugin = object(&file).and_then(plugin).map_err(|why| format!("{}: {why}", file.display()))?;
            conf.0.plugins.push(plugin);
        }
    }
    if conf.0.plugins.is_empty() {
        return Err("it has no plugins".into());
    }
    Ok(conf.0)
}

/// A file's JSON object.
fn object(path: &Path) -> Result<Map<String, Value>, String> {
    let mut text = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut text));
    read.map_err(|e| format!("it cannot be read: {e}"))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(format!("it is larger than {MAX_BYTES} bytes"));
    }
    match serde_json::from_slice(&text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("it is no JSON object".into()),
        Err(e) => Err(format!("it is no JSON: {e}")),
    }
}

/// The network of a file's object, and whether it has no plugins elsewhere.
fn parse(path: &Path, list: Map<String, Value>) -> Result<(Conf, bool), String> {
    let name = match list.get("name") {
        Some(Value::String(name)) => name.clone(),
        Some(_) => return Err("`name` is no text".into()),
        None => return Err("`name` is missing".into()),
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.bytes().all(plain) || name.len() > 255 {
        return Err(format!("`name` {name:?} is not letters and digits, and after the first `_`, `.` and `-`"));
    }
    let mut conf = Conf {
        path: path.to_owned(),
        name,
        versions: versions(&list)?,
        disable_check: switch(&list, "disableCheck")?,
        disable_gc: switch(&list, "disableGC")?,
        plugins: Vec::new(),
    };
    let inlined_only = switch(&list, "loadOnlyInlinedPlugins")?;
    let is_list = list.contains_key("plugins") || path.extension().is_some_and(|e| e == "conflist");
    if !is_list {
        conf.plugins.push(plugin(list)?);
        return Ok((conf, true));
    }
    match list.get("plugins") {
        None if inlined_only => return Err("`loadOnlyInlinedPlugins` is true and `plugins` is missing".into()),
        None => {}
        Some(Value::Array(plugins)) if !plugins.is_empty() => {
            for (at, value) in plugins.iter().enumerate() {
                let Value::Object(body) = value else { return Err(format!("plugins[{at}] is no object")) };
                conf.plugins.push(plugin(body.clone()).map_err(|why| format!("plugins[{at}]: {why}"))?);
            }
        }
        Some(_) => return Err("`plugins` is no list, or an empty one".into()),
    }
    Ok((conf, inlined_only))
}

/// The known versions among `cniVersion` and `cniVersions`, the newest first.
fn versions(list: &Map<String, Value>) -> Result<Vec<Version>, String> {
    let mut said: Vec<&str> = Vec::new();
    match list.get("cniVersion") {
        Some(Value::String(version)) => said.push(version),
        Some(_) => return Err("`cniVersion` is no text".into()),
        None => {}
    }
    match list.get("cniVersions") {
        Some(Value::Array(versions)) => {
            for version in versions {
                said.push(version.as_str().ok_or("`cniVersions` is no list of texts")?);
            }
        }
        Some(_) => return Err("`cniVersions` is no list of texts".into()),
        None => {}
    }
    let mut known: Vec<Version> = said.iter().filter_map(|text| Version::parse(text)).collect();
    known.sort_unstable_by(|a, b| b.cmp(a));
    known.dedup();
    match (known.is_empty(), said.first()) {
        (false, _) => Ok(known),
        (true, Some(text)) => Err(unknown_version(text)),
        (true, None) => Err(format!("`cniVersion` is missing (known are {})", VERSIONS.join(", "))),
    }
}

/// A switch is true or false; the texts are allowed, too, as libcni does.
fn switch(list: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match list.get(key) {
        None => Ok(false),
        Some(Value::Bool(on)) => Ok(*on),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(format!("`{key}` is {other} and not true or false")),
    }
}

fn plugin(body: Map<String, Value>) -> Result<Plugin, String> {
    let kind = match body.get("type") {
        Some(Value::String(kind)) if !kind.is_empty() => kind.clone(),
        Some(_) => return Err("`type` is no text, or an empty one".into()),
        None => return Err("`type` is missing".into()),
    };
    if kind.contains('/') || kind.starts_with('.') {
        return Err(format!("`type` {kind:?} is no name of a program"));
    }
    let capabilities = match body.get("capabilities") {
        None | Some(Value::Null) => BTreeMap::new(),
        Some(value) => serde_json::from_value(value.clone())
            .map_err(|_| format!("`capabilities` of {kind} are not names with true or false"))?,
    };
    Ok(Plugin { kind, capabilities, body })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The network of a text, as a file of the name would be read.
    pub(in crate::net::cni) fn conf(text: &str) -> Conf {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("10-test.conflist"), text).unwrap();
        let found = read(dir.path());
        found.conf.unwrap_or_else(|| panic!("{:?}", found.skipped))
    }

    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, Found) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let found = read(dir.path());
        (dir, found)
    }

    const GOOD: &str =
        r#"{"cniVersion": "1.0.0", "name": "good", "plugins": [{"type": "bridge", "capabilities": {"ips": true}}]}"#;

    #[test]
    fn the_first_usable_file_by_name_is_the_network_and_the_others_are_told_why() {
        let (_dir, found) = folder(&[
            ("00-readme.txt", "no network"),
            ("05-broken.conflist", "{"),
            ("06-nameless.conf", r#"{"cniVersion": "1.0.0", "type": "bridge"}"#),
            ("07-old.conf", r#"{"cniVersion": "0.2.0", "name": "old", "type": "bridge"}"#),
            ("08-empty.conflist", r#"{"cniVersion": "1.0.0", "name": "empty", "plugins": []}"#),
            ("09-escape.conf", r#"{"cniVersion": "1.0.0", "name": "e", "type": "../sh"}"#),
            ("10-good.conflist", GOOD),
            ("11-later.conf", r#"{"cniVersion": "1.0.0", "name": "later", "type": "ptp"}"#),
        ]);
        let conf = found.conf.unwrap();
        assert_eq!((conf.name.as_str(), conf.plugins[0].kind.as_str()), ("good", "bridge"));
        assert!(conf.plugins[0].capabilities["ips"]);
        let skipped = found.skipped.join("\n");
        for reason in [
            "05-broken.conflist: it is no JSON",
            "`name` is missing",
            "\"0.2.0\" is not known",
            "an empty one",
            "../sh",
        ] {
            assert!(skipped.contains(reason), "{reason}: {skipped}");
        }
        assert_eq!(found.skipped.len(), 5);
    }

    #[test]
    fn a_folder_without_configurations_or_none_at_all_is_no_network_and_no_fault() {
        let (dir, found) = folder(&[("cni.lock", ""), ("sub.conf/x", "")]);
        assert!(found.conf.is_none() && found.skipped.is_empty(), "{found:?}");
        let found = read(&dir.path().join("absent"));
        assert!(found.conf.is_none() && found.skipped.is_empty());
        let file = read(&dir.path().join("cni.lock"));
        assert!(file.skipped[0].contains("cni.lock"), "{file:?}");
    }

    #[test]
    fn one_plugin_alone_is_a_list_of_one() {
        let (_dir, found) =
            folder(&[("10-x.json", r#"{"cniVersion": "0.3.1", "name": "x", "type": "ptp", "mtu": 9000}"#)]);
        let conf = found.conf.unwrap();
        assert_eq!((conf.versions[0].as_str(), conf.plugins.len()), ("0.3.1", 1));
        assert_eq!(conf.plugins[0].body["mtu"], 9000);
    }

    #[test]
    fn the_versions_are_those_known_of_both_keys_the_newest_first() {
        let said = |text: &str| versions(serde_json::from_str::<Value>(text).unwrap().as_object().unwrap());
        let names = |text: &str| said(text).unwrap().iter().map(|v| v.as_str()).collect::<Vec<_>>();
        assert_eq!(names(r#"{"cniVersion": "0.3.0"}"#), ["0.3.0"]);
        assert_eq!(names(r#"{"cniVersion": "0.4.0", "cniVersions": ["0.4.0", "9.0.0", "1.1.0"]}"#), ["1.1.0", "0.4.0"]);
        assert!(said(r#"{"cniVersion": "2.0.0"}"#).unwrap_err().contains("0.3.0, 0.3.1"));
        assert!(said("{}").unwrap_err().contains("missing"));
        assert!(said(r#"{"cniVersions": [1]}"#).is_err());
        assert!(Version::V0_4 < Version::V1_0 && Version::V1_1.as_str() == "1.1.0");
    }

    #[test]
    fn plugins_of_the_folder_beside_a_list_are_added_unless_it_says_no() {
        let list = |more: &str| format!(r#"{{"cniVersion": "1.1.0", "name": "net", {more}}}"#);
        let beside = ("net/20-b.conf", r#"{"type": "tuning"}"#);
        let first = ("net/10-a.conf", r#"{"type": "bridge"}"#);
        let kinds = |text: &str| {
            let (_dir, found) = folder(&[("10-net.conflist", text), beside, first]);
            found.conf.map(|c| c.plugins.into_iter().map(|p| p.kind).collect::<Vec<_>>()).ok_or(found.skipped)
        };
        assert_eq!(kinds(&list(r#""disableGC": true"#)).unwrap(), ["bridge", "tuning"]);
        assert_eq!(kinds(&list(r#""plugins": [{"type": "ptp"}]"#)).unwrap(), ["ptp", "bridge", "tuning"]);
        let only = r#""loadOnlyInlinedPlugins": true, "plugins": [{"type": "ptp"}]"#;
        assert_eq!(kinds(&list(only)).unwrap(), ["ptp"]);
        assert!(kinds(&list(r#""loadOnlyInlinedPlugins": true"#)).is_err());
        let (_dir, broken) = folder(&[("10-net.conflist", &list(r#""disableCheck": "TRUE""#)), ("net/a.conf", "{}")]);
        assert!(broken.skipped[0].contains("net/a.conf: `type` is missing"), "{:?}", broken.skipped);
    }
}
