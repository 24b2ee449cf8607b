//! Variables as they are meant. Their values are composed when a container starts: what they refer to may come later.

use serde::{Deserialize, Serialize};

use super::pod::{checked, required, value};
use super::quantity::Quantity;
use super::raw::{self, At, List, Place};
use super::{Fault, names};

/// A variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Record")]
pub struct EnvVar {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: EnvValue,
}

/// A variable's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnvValue {
    /// This; `$(VAR)` is not yet replaced.
    Literal(String),
    /// A key of a ConfigMap.
    ConfigMap {
        /// The ConfigMap.
        name: String,
        /// The key.
        key: String,
        /// Whether it may be missing; the variable is then not set.
        optional: bool,
    },
    /// A key of a Secret.
    Secret {
        /// The Secret.
        name: String,
        /// The key.
        key: String,
        /// Whether it may be missing; the variable is then not set.
        optional: bool,
    },
    /// A field of the pod.
    Field {
        /// One that [`FieldPath`] knows.
        path: FieldPath,
    },
    /// A resource of a container.
    Resource(ResourceField),
}

/// A resource of a container, in a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceField {
    /// The container; None for the one whose variable it is.
    pub container: Option<String>,
    /// `limits.cpu`, `requests.memory` ...
    pub resource: String,
    /// The unit.
    pub divisor: Quantity,
}

/// A field of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FieldPath {
    /// `metadata.name`.
    Name,
    /// `metadata.namespace`.
    Namespace,
    /// `metadata.uid`.
    Uid,
    /// `metadata.labels`: all, for files.
    Labels,
    /// `metadata.annotations`: all, for files.
    Annotations,
    /// `metadata.labels['KEY']`.
    Label(String),
    /// `metadata.annotations['KEY']`.
    Annotation(String),
    /// `spec.nodeName`.
    NodeName,
    /// `spec.serviceAccountName`.
    ServiceAccountName,
    /// `status.hostIP`.
    HostIp,
    /// `status.hostIPs`.
    HostIps,
    /// `status.podIP`.
    PodIp,
    /// `status.podIPs`.
    PodIps,
}

/// All keys of an object as variables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvFrom {
    /// Put before each name.
    pub prefix: String,
    /// The object.
    pub source: EnvSource,
    /// Whether it may be missing.
    pub optional: bool,
}

/// Where variables come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnvSource {
    /// The ConfigMap of this name.
    ConfigMap(String),
    /// The Secret of this name.
    Secret(String),
}

/// A variable in a record: earlier versions kept a name and a value without references.
#[derive(Deserialize)]
#[serde(untagged)]
enum Record {
    Pair(String, String),
    Full { name: String, value: EnvValue },
}

impl From<Record> for EnvVar {
    fn from(record: Record) -> Self {
        match record {
            Record::Pair(name, value) => EnvVar { name, value: EnvValue::Literal(value.replace('$', "$$")) },
            Record::Full { name, value } => EnvVar { name, value },
        }
    }
}

/// Gives variables their meaning.
pub fn variables(list: Option<At<List<raw::EnvVar>>>) -> Result<Vec<EnvVar>, Fault> {
    let mut out = Vec::new();
    for At { value: raw, place } in value(list).unwrap_or_default() {
        let name = checked(&required(raw.name, &place, "name")?, names::env_var)?;
        let value = match (raw.value, raw.from) {
            (Some(at), Some(_)) if !at.value.is_empty() => {
                return Err(at.fault("cannot stand beside valueFrom: choose one"));
            }
            (_, Some(from)) => source(from)?,
            (literal, None) => EnvValue::Literal(value(literal).unwrap_or_default()),
        };
        out.push(EnvVar { name, value });
    }
    Ok(out)
}

fn source(at: At<raw::EnvVarSource>) -> Result<EnvValue, Fault> {
    let At { value: raw, place } = at;
    let sources = [
        raw.config_map.map(|at| key(at).map(|(name, key, optional)| EnvValue::ConfigMap { name, key, optional })),
        raw.secret.map(|at| key(at).map(|(name, key, optional)| EnvValue::Secret { name, key, optional })),
        raw.field.map(|at| match field(at)? {
            (FieldPath::Labels | FieldPath::Annotations, path) => {
                Err(path.fault(format!("a variable is one of them: {}['KEY']", path.value)))
            }
            (path, _) => Ok(EnvValue::Field { path }),
        }),
        raw.resource.map(|at| resource(at).map(EnvValue::Resource)),
    ];
    let mut given = sources.into_iter().flatten();
    match (given.next(), given.next()) {
        (Some(one), None) => one,
        (Some(_), Some(_)) => Err(place.fault("more than one source: choose one")),
        (None, _) => Err(place.fault("one of configMapKeyRef, secretKeyRef, fieldRef, resourceFieldRef is missing")),
    }
}

fn key(at: At<raw::KeyReference>) -> Result<(String, String, bool), Fault> {
    let name = checked(&required(at.value.name, &at.place, "name")?, names::subdomain)?;
    let key = checked(&required(at.value.key, &at.place, "key")?, names::config_key)?;
    Ok((name, key, value(at.value.optional).unwrap_or(false)))
}

/// The fields without a key.
const FIELDS: [(&str, FieldPath); 11] = [
    ("metadata.name", FieldPath::Name),
    ("metadata.namespace", FieldPath::Namespace),
    ("metadata.uid", FieldPath::Uid),
    ("metadata.labels", FieldPath::Labels),
    ("metadata.annotations", FieldPath::Annotations),
    ("spec.nodeName", FieldPath::NodeName),
    ("spec.serviceAccountName", FieldPath::ServiceAccountName),
    ("status.hostIP", FieldPath::HostIp),
    ("status.hostIPs", FieldPath::HostIps),
    ("status.podIP", FieldPath::PodIp),
    ("status.podIPs", FieldPath::PodIps),
];

/// Reads a reference to a field of the pod.
pub fn field(at: At<raw::FieldReference>) -> Result<(FieldPath, At<String>), Fault> {
    if let Some(version) = at.value.api_version.filter(|at| !matches!(at.value.as_str(), "" | "v1")) {
        return Err(version.fault(format!("{:?} is not v1", version.value)));
    }
    let path = required(at.value.path, &at.place, "fieldPath")?;
    if let Some((_, field)) = FIELDS.iter().find(|(name, _)| *name == path.value) {
        return Ok((field.clone(), path));
    }
    let subscript = |prefix: &str| path.value.strip_prefix(prefix)?.strip_suffix("']").map(str::to_owned);
    let found = match (subscript("metadata.labels['"), subscript("metadata.annotations['")) {
        (Some(key), _) => (key.clone(), FieldPath::Label(key)),
        (_, Some(key)) => (key.clone(), FieldPath::Annotation(key)),
        (None, None) => {
            let known: Vec<&str> = FIELDS.iter().map(|(name, _)| *name).collect();
            let text = format!("{:?} is not a field for this: those are {}", path.value, known.join(", "));
            return Err(path.fault(text));
        }
    };
    names::qualified(&found.0).map_err(|why| path.fault(why))?;
    Ok((found.1, path))
}

/// The resources that may be told.
const RESOURCES: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// Reads a reference to a resource of a container.
pub fn resource(at: At<raw::ResourceReference>) -> Result<ResourceField, Fault> {
    let At { value: raw, place } = at;
    let container = raw.container.filter(|at| !at.value.is_empty());
    let resource = required(raw.resource, &place, "resource")?;
    let name = resource.value.strip_prefix("limits.").or_else(|| resource.value.strip_prefix("requests."));
    let Some(name) = name.filter(|name| RESOURCES.contains(name) || name.starts_with("hugepages-")) else {
        let text = format!("{:?} is not limits. or requests. and one of {}", resource.value, RESOURCES.join(", "));
        return Err(resource.fault(text));
    };
    let units: &[&str] = match name {
        "cpu" => &["1m", "1"],
        _ => &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"],
    };
    let divisor = match raw.divisor.filter(|at| at.value.0 != "0") {
        None => Quantity::ONE,
        Some(at) => {
            let quantity = super::config::quantity(&at)?;
            let known = units.iter().any(|unit| Quantity::parse(unit) == Ok(quantity));
            match known {
                true => quantity,
                false => return Err(at.fault(format!("{:?} is not one of {}", at.value.0, units.join(", ")))),
            }
        }
    };
    let container = container.map(|at| checked(&at, names::label)).transpose()?;
    Ok(ResourceField { container, resource: resource.value, divisor })
}

/// Gives `envFrom` its meaning.
pub fn all_keys(list: Option<At<List<raw::EnvFromSource>>>) -> Result<Vec<EnvFrom>, Fault> {
    let mut out = Vec::new();
    for At { value: raw, place } in value(list).unwrap_or_default() {
        let prefix = raw.prefix.filter(|at| !at.value.is_empty());
        let prefix = prefix.map(|at| checked(&at, names::env_var)).transpose()?.unwrap_or_default();
        let (source, optional) = match (raw.config_map, raw.secret) {
            (Some(at), None) => object(at, EnvSource::ConfigMap)?,
            (None, Some(at)) => object(at, EnvSource::Secret)?,
            (Some(_), Some(at)) => return Err(at.fault("cannot stand beside configMapRef: choose one")),
            (None, None) => return Err(place.fault("one of configMapRef, secretRef is missing")),
        };
        out.push(EnvFrom { prefix, source, optional });
    }
    Ok(out)
}

fn object(at: At<raw::ObjectReference>, source: fn(String) -> EnvSource) -> Result<(EnvSource, bool), Fault> {
    let name = checked(&required(at.value.name, &at.place, "name")?, names::subdomain)?;
    Ok((source(name), value(at.value.optional).unwrap_or(false)))
}

/// Checks that the containers which references name exist.
pub fn check_container(field: &ResourceField, names: &[&str], place: &Place) -> Result<(), Fault> {
    match &field.container {
        Some(name) if !names.contains(&name.as_str()) => {
            Err(place.fault(format!("resourceFieldRef.containerName: the pod has no container {name:?}")))
        }
        _ => Ok(()),
    }
}
