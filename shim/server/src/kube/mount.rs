//! Where containers mount the volumes of their pod.

use std::collections::HashSet;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use super::Fault;
use super::pod::{choice, required, value};
use super::raw::{self, At, List};
use super::volume::{Volume, relative};

/// A volume in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The volume's name.
    pub volume: String,
    /// Where it is seen.
    pub path: String,
    /// Whether it can only be read.
    pub read_only: bool,
    /// Whether that goes for what is mounted below it, too.
    #[serde(default)]
    pub recursive_read_only: RecursiveReadOnly,
    /// Only this path of the volume.
    #[serde(default)]
    pub sub_path: Option<String>,
    /// Only this path of the volume, once its references are expanded.
    #[serde(default)]
    pub sub_path_expr: Option<String>,
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

/// `recursiveReadOnly`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecursiveReadOnly {
    /// Only the mount itself.
    #[default]
    Disabled,
    /// What is below it too, if the kernel can.
    IfPossible,
    /// What is below it too, or it is an error.
    Enabled,
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
        let recursive = raw.recursive.as_ref().map(|at| choice(at, &RECURSIVE)).transpose()?.unwrap_or_default();
        if let (Some(at), true) = (&raw.recursive, recursive != RecursiveReadOnly::Disabled)
            && (!read_only || propagation != Propagation::None)
        {
            return Err(at.fault("needs readOnly: true and no mountPropagation"));
        }
        let (sub_path, sub_path_expr) = (path_within(raw.sub_path)?, path_within(raw.sub_path_expr)?);
        if sub_path.is_some() && sub_path_expr.is_some() {
            return Err(place.fault("subPath and subPathExpr: choose one"));
        }
        out.push(Mount {
            volume: name.value,
            path: absolute,
            read_only,
            recursive_read_only: recursive,
            sub_path,
            sub_path_expr,
            propagation,
        });
    }
    Ok(out)
}

const RECURSIVE: [(&str, RecursiveReadOnly); 3] = [
    ("Disabled", RecursiveReadOnly::Disabled),
    ("IfPossible", RecursiveReadOnly::IfPossible),
    ("Enabled", RecursiveReadOnly::Enabled),
];

/// A path within a volume: relative, and never up.
fn path_within(at: Option<At<String>>) -> Result<Option<String>, Fault> {
    let Some(at) = at.filter(|at| !at.value.is_empty()) else { return Ok(None) };
    relative(&at)?;
    Ok(Some(at.value))
}
