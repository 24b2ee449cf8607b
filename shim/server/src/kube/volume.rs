//! The volumes of a pod as they are meant.

use std::collections::HashSet;
use std::path::{Component, Path};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::container::PullPolicy;
use super::env::{self, FieldPath, ResourceField};
use super::pod::{checked, choice, required, value};
use super::quantity::Quantity;
use super::raw::{self, At, List, Place};
use super::{Fault, config, container, names};

/// A volume of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// What it is.
    #[serde(deserialize_with = "source_of_record")]
    pub source: Source,
}

impl Volume {
    /// The resources that its files tell.
    pub fn resources(&self) -> impl Iterator<Item = &ResourceField> {
        let lists: Vec<&[DownwardItem]> = match &self.source {
            Source::DownwardApi { items, .. } => vec![items],
            Source::Projected { sources, .. } => {
                let mut lists = Vec::new();
                for source in sources {
                    if let Projected::DownwardApi(items) = source {
                        lists.push(items.as_slice());
                    }
                }
                lists
            }
            _ => Vec::new(),
        };
        lists.into_iter().flatten().filter_map(|item| match &item.value {
            DownwardValue::Resource(field) => Some(field),
            DownwardValue::Field(_) => None,
        })
    }
}

/// What a volume is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// A directory that is empty at the pod's start and goes with it.
    EmptyDir {
        /// Whether it is a tmpfs.
        memory: bool,
        /// At most this many bytes.
        size_limit: Option<Quantity>,
    },
    /// A file or directory of the machine.
    HostPath {
        /// Its path.
        path: String,
        /// What is expected there.
        kind: HostPathKind,
    },
    /// The keys of a ConfigMap as files.
    ConfigMap(Keys),
    /// The keys of a Secret as files.
    Secret(Keys),
    /// Fields of the pod as files.
    DownwardApi {
        /// The files.
        items: Vec<DownwardItem>,
        /// Permissions of those that say none.
        default_mode: u32,
    },
    /// Several of these in one directory.
    Projected {
        /// The sources; of two files of one path the later counts.
        sources: Vec<Projected>,
        /// Permissions of the files that say none.
        default_mode: u32,
    },
    /// The files of an image.
    Image {
        /// The image.
        reference: String,
        /// When to pull it.
        pull: PullPolicy,
    },
    /// A directory that outlives pods.
    Claim {
        /// The PersistentVolumeClaim.
        name: String,
        /// Whether it can only be read.
        read_only: bool,
    },
}

/// Keys of an object as files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// The object.
    pub name: String,
    /// Only these keys; all where there are none.
    pub items: Vec<KeyItem>,
    /// Permissions of the files that say none.
    pub default_mode: u32,
    /// Whether the object and the keys may be missing.
    pub optional: bool,
}

/// A key and the file that it becomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyItem {
    /// The key.
    pub key: String,
    /// The file, within the volume.
    pub path: String,
    /// Its permissions.
    pub mode: Option<u32>,
}

/// A fact about the pod and the file that it becomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownwardItem {
    /// The file, within the volume.
    pub path: String,
    /// The fact.
    pub value: DownwardValue,
    /// Its permissions.
    pub mode: Option<u32>,
}

/// A fact about the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownwardValue {
    /// A field.
    Field(FieldPath),
    /// A resource; its container is always named.
    Resource(ResourceField),
}

/// A source of a projected volume; its `default_mode` is the volume's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Projected {
    /// Keys of a ConfigMap.
    ConfigMap(Keys),
    /// Keys of a Secret.
    Secret(Keys),
    /// Fields of the pod.
    DownwardApi(Vec<DownwardItem>),
}

/// A source in a record: earlier versions knew an emptyDir without fields.
fn source_of_record<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Source, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    match value.as_str() {
        Some("EmptyDir") => Ok(Source::EmptyDir { memory: false, size_limit: None }),
        _ => serde_json::from_value(value).map_err(D::Error::custom),
    }
}

/// `hostPath.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostPathKind {
    /// Anything that exists.
    Any,
    /// A directory, made (0755) when nothing is there.
    DirectoryOrCreate,
    /// A directory.
    Directory,
    /// A file, made (0644) when nothing is there.
    FileOrCreate,
    /// A file.
    File,
    /// A Unix socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// Permissions of files that say none.
const DEFAULT_MODE: u32 = 0o644;

/// Gives the volumes of a pod their meaning.
pub fn convert_all(list: Option<At<List<raw::Volume>>>) -> Result<Vec<Volume>, Fault> {
    let mut seen = HashSet::new();
    let mut out = Vec::new();
    for item in value(list).unwrap_or_default() {
        let At { value: raw, place } = item;
        let name = checked(&required(raw.name.clone(), &place, "name")?, names::label)?;
        if !seen.insert(name.clone()) {
            return Err(place.fault(format!("name: a second volume is named {name:?}")));
        }
        out.push(Volume { name, source: source(raw, &place)? });
    }
    Ok(out)
}

fn source(raw: raw::Volume, place: &Place) -> Result<Source, Fault> {
    let sources = [
        raw.empty_dir.map(|at| empty_dir(at.value)),
        raw.host_path.map(|at| host_path(at).map(|(path, kind)| Source::HostPath { path, kind })),
        raw.config_map.map(|At { value: raw, place }| {
            keys(required(raw.name, &place, "name")?, raw.items, raw.default_mode, raw.optional).map(Source::ConfigMap)
        }),
        raw.secret.map(|At { value: raw, place }| {
            let name = required(raw.name, &place, "secretName")?;
            keys(name, raw.items, raw.default_mode, raw.optional).map(Source::Secret)
        }),
        raw.downward.map(|at| {
            let default_mode = mode(at.value.default_mode.as_ref())?.unwrap_or(DEFAULT_MODE);
            Ok(Source::DownwardApi { items: downward(at.value.items)?, default_mode })
        }),
        raw.projected.map(|at| {
            let default_mode = mode(at.value.default_mode.as_ref())?.unwrap_or(DEFAULT_MODE);
            let sources = value(at.value.sources).unwrap_or_default();
            let sources = sources.into_iter().map(|at| projection(at, default_mode));
            Ok(Source::Projected { sources: sources.collect::<Result<_, _>>()?, default_mode })
        }),
        raw.image.map(|At { value: raw, place }| {
            let reference = required(raw.reference, &place, "reference")?;
            container::check_image(&reference)?;
            let pull = container::pull_policy(raw.pull.as_ref(), &reference.value)?;
            Ok(Source::Image { reference: reference.value, pull })
        }),
        raw.claim.map(|At { value: raw, place }| {
            let name = checked(&required(raw.name, &place, "claimName")?, names::subdomain)?;
            Ok(Source::Claim { name, read_only: value(raw.read_only).unwrap_or(false) })
        }),
    ];
    let mut given = sources.into_iter().flatten();
    match (given.next(), given.next()) {
        (Some(one), None) => one,
        (Some(_), Some(_)) => Err(place.fault("a volume has one source, and here are several")),
        // As in Kubernetes: a volume that names no source is an emptyDir.
        (None, _) => Ok(Source::EmptyDir { memory: false, size_limit: None }),
    }
}

fn empty_dir(raw: raw::EmptyDir) -> Result<Source, Fault> {
    let memory = match raw.medium {
        Some(at) if at.value == "Memory" => true,
        Some(at) if at.value.starts_with("HugePages") => {
            return Err(at.fault("huge pages are not mounted here: use Memory, or none for the disk"));
        }
        Some(at) if !at.value.is_empty() => return Err(at.fault(format!("{:?} is not Memory", at.value))),
        _ => false,
    };
    let limit = raw.size_limit.as_ref().map(config::quantity).transpose()?;
    Ok(Source::EmptyDir { memory, size_limit: limit.filter(|limit| limit.value() > 0) })
}

fn keys(
    name: At<String>,
    items: Option<At<List<raw::KeyToPath>>>,
    default_mode: Option<At<i64>>,
    optional: Option<At<bool>>,
) -> Result<Keys, Fault> {
    let mut out = Vec::new();
    for At { value: raw, place } in value(items).unwrap_or_default() {
        let path = required(raw.path, &place, "path")?;
        relative(&path)?;
        let key = checked(&required(raw.key, &place, "key")?, names::config_key)?;
        out.push(KeyItem { key, path: path.value, mode: mode(raw.mode.as_ref())? });
    }
    Ok(Keys {
        name: checked(&name, names::subdomain)?,
        items: out,
        default_mode: mode(default_mode.as_ref())?.unwrap_or(DEFAULT_MODE),
        optional: value(optional).unwrap_or(false),
    })
}

fn downward(list: Option<At<List<raw::DownwardFile>>>) -> Result<Vec<DownwardItem>, Fault> {
    let mut out = Vec::new();
    for At { value: raw, place } in value(list).unwrap_or_default() {
        let path = required(raw.path, &place, "path")?;
        relative(&path)?;
        let fact = match (raw.field, raw.resource) {
            (Some(at), None) => match env::field(at)? {
                (
                    field @ (FieldPath::Name
                    | FieldPath::Namespace
                    | FieldPath::Uid
                    | FieldPath::Labels
                    | FieldPath::Annotations
                    | FieldPath::Label(_)
                    | FieldPath::Annotation(_)),
                    _,
                ) => DownwardValue::Field(field),
                (_, path) => return Err(path.fault("only fields of metadata can be files: use a variable")),
            },
            (None, Some(at)) => {
                let place = at.place.clone();
                match env::resource(at)? {
                    field if field.container.is_some() => DownwardValue::Resource(field),
                    _ => return Err(place.fault("containerName is missing")),
                }
            }
            (Some(_), Some(at)) => return Err(at.fault("cannot stand beside fieldRef: choose one")),
            (None, None) => return Err(place.fault("one of fieldRef, resourceFieldRef is missing")),
        };
        out.push(DownwardItem { path: path.value, value: fact, mode: mode(raw.mode.as_ref())? });
    }
    Ok(out)
}

fn projection(at: At<raw::Projection>, default_mode: u32) -> Result<Projected, Fault> {
    let At { value: raw, place } = at;
    let of_keys = |At { value: raw, place }: At<raw::KeyProjection>| {
        let keys = keys(required(raw.name, &place, "name")?, raw.items, None, raw.optional)?;
        Ok(Keys { default_mode, ..keys })
    };
    let sources = [
        raw.config_map.map(|at| of_keys(at).map(Projected::ConfigMap)),
        raw.secret.map(|at| of_keys(at).map(Projected::Secret)),
        raw.downward.map(|at| downward(at.value.items).map(Projected::DownwardApi)),
    ];
    let mut given = sources.into_iter().flatten();
    match (given.next(), given.next()) {
        (Some(one), None) => one,
        (Some(_), Some(_)) => Err(place.fault("an item has one source: make a second item")),
        (None, _) => Err(place.fault("one of configMap, secret, downwardAPI is missing")),
    }
}

/// Permissions of a file.
fn mode(at: Option<&At<i64>>) -> Result<Option<u32>, Fault> {
    let Some(at) = at else { return Ok(None) };
    match u32::try_from(at.value) {
        Ok(mode) if mode <= 0o777 => Ok(Some(mode)),
        _ => {
            Err(at.fault(format!("{} is not from 0 to 0777 (YAML writes octal as 0644, JSON has decimals)", at.value)))
        }
    }
}

/// Checks a path within a volume: relative, and never up.
pub(super) fn relative(at: &At<String>) -> Result<(), Fault> {
    let path = Path::new(&at.value);
    if at.value.is_empty() || path.is_absolute() {
        return Err(at.fault("must be a relative path"));
    }
    match path.components().any(|part| part == Component::ParentDir) {
        true => Err(at.fault("must not contain '..'")),
        false => Ok(()),
    }
}

/// A path of the machine: absolute, without `..`.
pub(super) fn machine_path(path: &At<String>) -> Result<String, Fault> {
    if !path.value.starts_with('/') {
        return Err(path.fault("must be an absolute path"));
    }
    if Path::new(&path.value).components().any(|part| part == Component::ParentDir) {
        return Err(path.fault("must not contain '..'"));
    }
    Ok(path.value.clone())
}

/// `hostPath`: the path, and what is expected there.
pub(super) fn host_path(at: At<raw::HostPath>) -> Result<(String, HostPathKind), Fault> {
    let path = required(at.value.path, &at.place, "path")?;
    let kinds = [
        ("", HostPathKind::Any),
        ("DirectoryOrCreate", HostPathKind::DirectoryOrCreate),
        ("Directory", HostPathKind::Directory),
        ("FileOrCreate", HostPathKind::FileOrCreate),
        ("File", HostPathKind::File),
        ("Socket", HostPathKind::Socket),
        ("CharDevice", HostPathKind::CharDevice),
        ("BlockDevice", HostPathKind::BlockDevice),
    ];
    let kind = at.value.kind.as_ref().map(|at| choice(at, &kinds)).transpose()?;
    Ok((machine_path(&path)?, kind.unwrap_or(HostPathKind::Any)))
}
