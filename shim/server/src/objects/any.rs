//! An object of any kind, as documents bring them.

use std::fmt;

use anyhow::Result;
use serde::Serialize;

use super::{Change, Kind, Objects};
use crate::kube::config::{ConfigMap, RuntimeClass, Secret, ServiceAccount};
use crate::kube::meta::Meta;
use crate::kube::service::Service;
use crate::kube::storage::{PersistentVolume, PersistentVolumeClaim};
use crate::kube::workload::Workload;

/// An object that is kept in the store.
#[allow(clippy::large_enum_variant, reason = "there are a few of them, and none for long")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum AnyObject {
    /// Settings.
    ConfigMap(ConfigMap),
    /// Secrets.
    Secret(Secret),
    /// An address for pods.
    Service(Service),
    /// A carrier of imagePullSecrets.
    ServiceAccount(ServiceAccount),
    /// A name for a handler.
    RuntimeClass(RuntimeClass),
    /// A wish for a directory.
    PersistentVolumeClaim(PersistentVolumeClaim),
    /// A directory.
    PersistentVolume(PersistentVolume),
    /// What makes pods.
    Workload(Workload),
}

/// Does the same to whichever kind it is.
macro_rules! each {
    ($any:expr, $object:ident => $body:expr) => {
        match $any {
            AnyObject::ConfigMap($object) => $body,
            AnyObject::Secret($object) => $body,
            AnyObject::Service($object) => $body,
            AnyObject::ServiceAccount($object) => $body,
            AnyObject::RuntimeClass($object) => $body,
            AnyObject::PersistentVolumeClaim($object) => $body,
            AnyObject::PersistentVolume($object) => $body,
            AnyObject::Workload($object) => $body,
        }
    };
}

fn kind<K: Kind>(_: &K) -> &'static str {
    K::KIND
}

fn before<K: Kind>(objects: &Objects, object: &K) -> Result<Option<K>> {
    let Meta { name, namespace, .. } = object.meta();
    objects.get(namespace, name)
}

fn remove<K: Kind>(objects: &Objects, object: &K) -> Result<bool> {
    let Meta { name, namespace, .. } = object.meta();
    objects.delete::<K>(namespace, name)
}

impl fmt::Display for AnyObject {
    /// As kubectl writes it: `configmap/a`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind().to_lowercase(), self.name())
    }
}

impl AnyObject {
    /// The name of its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            AnyObject::Workload(workload) => workload.kind.as_str(),
            other => each!(other, object => kind(object)),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            AnyObject::Workload(workload) => &workload.name,
            other => &other.meta().name,
        }
    }

    /// Its metadata.
    pub fn meta(&self) -> &Meta {
        each!(self, object => object.meta())
    }

    /// Puts it into the store.
    pub fn put(&self, objects: &Objects) -> Result<Change> {
        each!(self, object => objects.put(object))
    }

    /// Deletes what has its name from the store; whether there was such.
    pub fn delete(&self, objects: &Objects) -> Result<bool> {
        each!(self, object => remove(objects, object))
    }

    /// What the store has of its name.
    pub fn stored(&self, objects: &Objects) -> Result<Option<AnyObject>> {
        Ok(match self {
            AnyObject::ConfigMap(object) => before(objects, object)?.map(AnyObject::ConfigMap),
            AnyObject::Secret(object) => before(objects, object)?.map(AnyObject::Secret),
            AnyObject::Service(object) => before(objects, object)?.map(AnyObject::Service),
            AnyObject::ServiceAccount(object) => before(objects, object)?.map(AnyObject::ServiceAccount),
            AnyObject::RuntimeClass(object) => before(objects, object)?.map(AnyObject::RuntimeClass),
            AnyObject::PersistentVolumeClaim(object) => before(objects, object)?.map(AnyObject::PersistentVolumeClaim),
            AnyObject::PersistentVolume(object) => before(objects, object)?.map(AnyObject::PersistentVolume),
            AnyObject::Workload(object) => before(objects, object)?.map(AnyObject::Workload),
        })
    }
}
