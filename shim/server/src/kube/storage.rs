//! PersistentVolumeClaim and PersistentVolume as they are meant: directories of the machine that outlive pods.

use serde::{Deserialize, Serialize};

use super::config::quantity;
use super::meta::{Meta, Selector};
use super::pod::{checked, choice, required, value};
use super::quantity::Quantity;
use super::raw::{self, Amount, At, List, Map, Place};
use super::volume::{self, HostPathKind};
use super::{Fault, names};
use crate::objects::Kind;

/// A wish for a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersistentVolumeClaim {
    /// Name and labels.
    pub meta: Meta,
    /// What is asked for.
    pub modes: Vec<AccessMode>,
    /// How much.
    pub storage: Quantity,
    /// The volume to take, by name.
    pub volume_name: Option<String>,
    /// The class; None where none is named, empty where none is wanted.
    pub storage_class: Option<String>,
    /// Labels of the volume to take.
    pub selector: Selector,
}

/// A directory that claims may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersistentVolume {
    /// Name and labels; no namespace.
    pub meta: Meta,
    /// How much it holds.
    pub capacity: Quantity,
    /// What claims of it may ask for.
    pub modes: Vec<AccessMode>,
    /// Where it is.
    pub path: String,
    /// What is expected there.
    pub kind: HostPathKind,
    /// Whether it is a `local` volume, which may be given to a pod's fsGroup, and not a hostPath.
    #[serde(default)]
    pub local: bool,
    /// What becomes of the data when the claim goes.
    pub reclaim: Reclaim,
    /// The class; empty for none.
    pub storage_class: String,
    /// The one claim that may have it: namespace and name.
    pub claim: Option<(String, String)>,
}

/// `accessModes`.
#[allow(clippy::enum_variant_names, reason = "they are Kubernetes' own names")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccessMode {
    /// Pods of one node write.
    ReadWriteOnce,
    /// Pods read.
    ReadOnlyMany,
    /// Pods write.
    ReadWriteMany,
    /// One pod writes.
    ReadWriteOncePod,
}

/// `persistentVolumeReclaimPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reclaim {
    /// It stays.
    Retain,
    /// It goes.
    Delete,
}

impl Kind for PersistentVolumeClaim {
    const KIND: &'static str = "PersistentVolumeClaim";
    const NAMESPACED: bool = true;

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn check_change(&self, new: &Self) -> Result<(), String> {
        let fixed = |claim: &Self| {
            let PersistentVolumeClaim { modes, volume_name, storage_class, selector, .. } = claim;
            (modes.clone(), volume_name.clone(), storage_class.clone(), selector.clone())
        };
        match fixed(self) == fixed(new) {
            true => Ok(()),
            false => Err("spec is immutable but for resources.requests: delete it first".to_owned()),
        }
    }
}

impl Kind for PersistentVolume {
    const KIND: &'static str = "PersistentVolume";
    const NAMESPACED: bool = false;

    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn check_change(&self, new: &Self) -> Result<(), String> {
        match (&self.path, self.kind) == (&new.path, new.kind) {
            true => Ok(()),
            false => Err("its source is immutable: delete it first".to_owned()),
        }
    }
}

impl PersistentVolumeClaim {
    /// Gives a claim its meaning.
    pub fn convert(raw: raw::PersistentVolumeClaim, root: &Place) -> Result<PersistentVolumeClaim, Fault> {
        let meta = Meta::namespaced(raw.metadata, root, names::subdomain)?;
        PersistentVolumeClaim::of_spec(meta, required(raw.spec, root, "spec")?)
    }

    /// Gives a claim's spec its meaning.
    pub fn of_spec(meta: Meta, spec: At<raw::ClaimSpec>) -> Result<PersistentVolumeClaim, Fault> {
        let At { value: spec, place } = spec;
        filesystem(spec.volume_mode)?;
        let resources = required(spec.resources, &place, "resources")?;
        let requests = required(resources.value.requests, &resources.place, "requests")?;
        let storage = storage(requests)?;
        if let Some(limits) = resources.value.limits {
            let place = limits.place.clone();
            if self::storage(limits)? < storage {
                return Err(place.fault("storage is less than what requests asks for"));
            }
        }
        let class = spec.storage_class.filter(|at| !at.value.is_empty());
        Ok(PersistentVolumeClaim {
            meta,
            modes: access_modes(spec.access_modes, &place)?,
            storage,
            volume_name: spec
                .volume_name
                .filter(|at| !at.value.is_empty())
                .map(|at| checked(&at, names::subdomain))
                .transpose()?,
            storage_class: class.map(|at| checked(&at, names::subdomain)).transpose()?,
            selector: value(spec.selector).map(Selector::convert).transpose()?.unwrap_or_default(),
        })
    }
}

impl PersistentVolume {
    /// Gives a volume its meaning.
    pub fn convert(raw: raw::PersistentVolume, root: &Place) -> Result<PersistentVolume, Fault> {
        let meta = Meta::of_cluster(raw.metadata, root, names::subdomain)?;
        let At { value: spec, place } = required(raw.spec, root, "spec")?;
        filesystem(spec.volume_mode)?;
        let capacity = storage(required(spec.capacity, &place, "capacity")?)?;
        let local = spec.local.is_some();
        let (path, kind) = match (spec.host_path, spec.local) {
            (Some(at), None) => volume::host_path(at)?,
            (None, Some(at)) => {
                let path = required(at.value.path, &at.place, "path")?;
                (volume::machine_path(&path)?, HostPathKind::Directory)
            }
            (Some(_), Some(at)) => return Err(at.fault("a volume has one source: hostPath is given already")),
            (None, None) => return Err(place.fault("hostPath or local is missing")),
        };
        let choices = [("Retain", Reclaim::Retain), ("Delete", Reclaim::Delete)];
        let reclaim = match &spec.reclaim {
            Some(at) if at.value == "Recycle" => return Err(at.fault("Recycle is obsolete: use Retain or Delete")),
            Some(at) => choice(at, &choices)?,
            None => Reclaim::Retain,
        };
        let claim = spec.claim.map(|at| -> Result<_, Fault> {
            let name = required(at.value.name, &at.place, "name")?;
            let namespace = value(at.value.namespace).unwrap_or_else(|| super::meta::DEFAULT_NAMESPACE.to_owned());
            Ok((namespace, checked(&name, names::subdomain)?))
        });
        Ok(PersistentVolume {
            meta,
            capacity,
            modes: access_modes(spec.access_modes, &place)?,
            path,
            kind,
            local,
            reclaim,
            storage_class: value(spec.storage_class).unwrap_or_default(),
            claim: claim.transpose()?,
        })
    }
}

fn filesystem(mode: Option<At<String>>) -> Result<(), Fault> {
    match mode {
        Some(at) if at.value == "Block" => Err(at.fault("Block is not done here: directories are bound, not devices")),
        Some(at) if at.value != "Filesystem" => Err(at.fault(format!("{:?} is not Filesystem", at.value))),
        _ => Ok(()),
    }
}

fn storage(map: At<Map<Amount>>) -> Result<Quantity, Fault> {
    let place = map.place.clone();
    let mut found = None;
    for (name, at) in map.value {
        match name.value.as_str() {
            "storage" => found = Some(quantity(&at)?),
            _ => return Err(name.fault("only storage is known here")),
        }
    }
    found.ok_or_else(|| place.fault("storage is missing"))
}

fn access_modes(list: Option<At<List<String>>>, place: &Place) -> Result<Vec<AccessMode>, Fault> {
    let list = required(list, place, "accessModes")?;
    if list.value.is_empty() {
        return Err(list.fault("names at least one mode"));
    }
    let choices = [
        ("ReadWriteOnce", AccessMode::ReadWriteOnce),
        ("ReadOnlyMany", AccessMode::ReadOnlyMany),
        ("ReadWriteMany", AccessMode::ReadWriteMany),
        ("ReadWriteOncePod", AccessMode::ReadWriteOncePod),
    ];
    list.value.iter().map(|at| choice(at, &choices)).collect()
}
