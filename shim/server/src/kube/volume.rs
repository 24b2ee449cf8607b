//! Volumes and where containers mount them.

use std::collections::HashSet;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use super::pod::{checked, choice, required, value};
use super::raw::{self, At, List};
use super::{Fault, names};

/// A volume of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// What it is.
    pub source: Source,
}

/// What a volume is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// A directory that is empty at the pod's start and goes with it.
    EmptyDir,
    /// A file or directory of the machine.
    HostPath {
        /// Its path.
        path: String,
        /// What is expected there.
        kind: HostPathKind,
    },
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

/// A volume in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The volume's name.
    pub volume: String,
    /// Where it is seen.
    pub path: String,
    /// Whether it can only be read.
    pub read_only: bool,
    /// Whether later mounts pass between the container and the machine.
    pub propagation: Propagation,
}

/// `mountPropagation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Neither way.
    None,
    /// From the machine into the container.
    HostToContainer,
    /// Both ways: for privileged containers.
    Bidirectional,
}

/// Gives the volumes of a pod their meaning.
pub fn convert_all(list: Option<At<List<raw::Volume>>>) -> Result<Vec<Volume>, Fault> {
    let mut seen = HashSet::new();
    let mut out = Vec::new();
    for item in value(list).unwrap_or_default() {
        let At { value: raw, place } = item;
        let name = required(raw.name, &place, "name")?;
        checked(&name, names::label)?;
        if !seen.insert(name.value.clone()) {
            return Err(name.fault(format!("a second volume is named {:?}", name.value)));
        }
        let source = match (raw.empty_dir, raw.host_path) {
            (Some(_), Some(at)) => return Err(at.fault("a volume has one source: emptyDir is given already")),
            (Some(at), None) => empty_dir(at.value)?,
            (None, Some(at)) => {
                let (path, kind) = host_path(at)?;
                Source::HostPath { path, kind }
            }
            // As in Kubernetes: a volume that names no source is an emptyDir.
            (None, None) => Source::EmptyDir,
        };
        out.push(Volume { name: name.value, source });
    }
    Ok(out)
}

fn empty_dir(raw: raw::EmptyDir) -> Result<Source, Fault> {
    match raw.medium {
        Some(at) if at.value == "Memory" => {
            Err(at.fault("Memory is not honoured yet: remove it, the directory is then on disk"))
        }
        Some(at) if !at.value.is_empty() => Err(at.fault(format!("{:?} is not honoured: remove it", at.value))),
        _ => Ok(Source::EmptyDir),
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

/// Gives a container's mounts their meaning.
pub fn convert_mounts(
    list: Option<At<List<raw::VolumeMount>>>,
    volumes: &[Volume],
    security: &Option<At<raw::SecurityContext>>,
) -> Result<Vec<Mount>, Fault> {
    let privileged = security.as_ref().and_then(|at| at.value.privileged.as_ref()).is_some_and(|at| at.value);
    let mut seen = HashSet::new();
    let mut out = Vec::new();
    for item in value(list).unwrap_or_default() {
        let At { value: raw, place } = item;
        let name = required(raw.name, &place, "name")?;
        if !volumes.iter().any(|volume| volume.name == name.value) {
            return Err(name.fault(format!("the pod has no volume {:?}: add it to spec.volumes", name.value)));
        }
        let path = required(raw.mount_path, &place, "mountPath")?;
        if path.value.is_empty() || path.value.contains(':') {
            return Err(path.fault("must be a path without ':'"));
        }
        // Kubernetes lets runtimes take a relative path as one from the root.
        let absolute = format!("/{}", path.value.trim_matches('/'));
        if Path::new(&absolute).components().any(|part| part == Component::ParentDir) {
            return Err(path.fault("must not contain '..'"));
        }
        if absolute == "/" {
            return Err(path.fault("a volume cannot replace the container's whole filesystem"));
        }
        if !seen.insert(absolute.clone()) {
            return Err(path.fault(format!("a second volume is mounted at {absolute}")));
        }
        let choices = [
            ("None", Propagation::None),
            ("HostToContainer", Propagation::HostToContainer),
            ("Bidirectional", Propagation::Bidirectional),
        ];
        let propagation = raw.mount_propagation.as_ref().map(|at| choice(at, &choices)).transpose()?;
        let propagation = propagation.unwrap_or(Propagation::None);
        if let (Propagation::Bidirectional, false, Some(at)) = (propagation, privileged, &raw.mount_propagation) {
            return Err(at.fault("Bidirectional is for privileged containers only"));
        }
        let read_only = value(raw.read_only).unwrap_or(false);
        out.push(Mount { volume: name.value, path: absolute, read_only, propagation });
    }
    Ok(out)
}
