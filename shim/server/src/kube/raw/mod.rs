//! What a file says, field by field: the Kubernetes v1 Pod types, each field known by name.
//!
//! A type is a list made by the [`raw!`] macro. Its fields are read; those after `idle` are checked and have no effect
//! on one machine; those after `refused` are errors that name them rather than settings that are silently not applied. Any
//! other name is unknown, and the nearest known one is suggested. `null` is the same as absent, and so is an empty list or
//! mapping in a refused field: `kubectl create --dry-run=client -o yaml` writes several.

mod config;
mod container;
mod lifecycle;
mod object;
mod security;
mod service;
mod spec;
mod storage;
mod table;
mod volume;
mod workload;

pub use config::{ConfigMap, LocalReference, Namespace, RuntimeClass, Secret, ServiceAccount};
pub use container::{
    Container, ContainerPort, EnvFromSource, EnvVar, EnvVarSource, FieldReference, KeyReference, ObjectReference,
    ResourceReference, ResourceRequirements, RestartRule, VolumeMount,
};
pub use lifecycle::{ExecAction, HttpGetAction, Lifecycle, LifecycleHandler, Probe, TcpSocketAction};
pub use object::{ObjectMeta, Pod};
pub use security::{AppArmorProfile, PodSecurityContext, SeLinuxOptions, SeccompProfile, SecurityContext};
pub use service::{Service, ServicePort};
pub use spec::{HostAlias, PodDnsConfig, PodDnsConfigOption, PodSpec};
pub use storage::{ClaimSpec, LabelSelector, PersistentVolume, PersistentVolumeClaim};
pub use table::{Anything, Fate, Field, Shape, Table};
pub use volume::{DownwardFile, EmptyDir, HostPath, KeyProjection, KeyToPath, Projection, Volume};
pub use workload::{DaemonSet, Deployment, Job, PodTemplateSpec, ReplicaSet, StatefulSet};

use super::Fault;
use super::fault::nearest;
use super::yaml::{Key, Kind, Node};

/// Where a value stands: its position in the file and its path from the document's root.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    line: usize,
    column: usize,
    path: String,
}

impl Place {
    /// The root of a document.
    pub fn root(node: &Node) -> Place {
        Place { line: node.line, column: node.column, path: String::new() }
    }

    /// A fault here: "PATH: TEXT".
    pub fn fault(&self, text: impl AsRef<str>) -> Fault {
        let text = text.as_ref();
        match self.path.as_str() {
            "" => Fault::new(self.line, self.column, text),
            path => Fault::new(self.line, self.column, format!("{path}: {text}")),
        }
    }

    fn join(&self, name: &str) -> String {
        match self.path.as_str() {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }

    fn field(&self, name: &str, node: &Node) -> Place {
        Place { line: node.line, column: node.column, path: self.join(name) }
    }

    /// The place of a field below this one.
    pub fn within(&self, name: &str, node: &Node) -> Place {
        self.field(name, node)
    }

    /// The place of an item of the list that is here.
    pub fn item(&self, index: usize, node: &Node) -> Place {
        Place { line: node.line, column: node.column, path: format!("{}[{index}]", self.path) }
    }
}

/// A value and its place.
#[derive(Debug, Clone)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Its place.
    pub place: Place,
}

impl<T> At<T> {
    /// A fault about this value: "PATH: TEXT".
    pub fn fault(&self, text: impl AsRef<str>) -> Fault {
        self.place.fault(text)
    }
}

/// A type that a node can be read as.
pub trait Raw: Sized {
    /// Reads the node, which is not null.
    fn read(node: &Node, place: &Place) -> Result<Self, Fault>;

    /// What it looks like, for `coracle explain`.
    fn shape() -> Shape;
}

/// A mapping of names chosen by the user to values of one type.
pub type Map<T> = Vec<(At<String>, At<T>)>;
/// A list.
pub type List<T> = Vec<At<T>>;

/// A quantity such as `500m`, `128Mi`, `0.5` or `1e3`: a string, or a number as it was written.
#[derive(Debug, Clone)]
pub struct Amount(pub String);

/// A number or a name: a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IntOrString {
    /// A number.
    Int(i64),
    /// A name.
    Text(String),
}

impl Raw for IntOrString {
    fn shape() -> Shape {
        Shape::Scalar("integer or string")
    }

    fn read(node: &Node, place: &Place) -> Result<Self, Fault> {
        match &node.kind {
            Kind::Int(value) => Ok(IntOrString::Int(*value)),
            Kind::Str(text) => Ok(IntOrString::Text(text.clone())),
            kind => Err(expected("a number or a name", kind, place)),
        }
    }
}

impl Raw for String {
    fn shape() -> Shape {
        Shape::Scalar("string")
    }

    fn read(node: &Node, place: &Place) -> Result<Self, Fault> {
        match &node.kind {
            Kind::Str(text) if text.contains('\0') => Err(place.fault("a string may not contain a NUL character")),
            Kind::Str(text) => Ok(text.clone()),
            Kind::Bool(_) | Kind::Int(_) | Kind::Float(_) => {
                Err(place.fault(format!("expected a string, found {}: put it in quotes", node.kind.describe())))
            }
            kind => Err(expected("a string", kind, place)),
        }
    }
}

impl Raw for bool {
    fn shape() -> Shape {
        Shape::Scalar("boolean")
    }

    fn read(node: &Node, place: &Place) -> Result<Self, Fault> {
        match &node.kind {
            Kind::Bool(value) => Ok(*value),
            kind => Err(expected("true or false", kind, place)),
        }
    }
}

impl Raw for i64 {
    fn shape() -> Shape {
        Shape::Scalar("integer")
    }

    fn read(node: &Node, place: &Place) -> Result<Self, Fault> {
        match &node.kind {
            Kind::Int(value) => Ok(*value),
            kind => Err(expected("a whole number", kind, place)),
        }
    }
}

impl Raw for Amount {
    fn shape() -> Shape {
        Shape::Scalar("quantity")
    }

    fn read(node: &Node, place: &Place) -> Result<Self, Fault> {
        match &node.kind {
            Kind::Str(text) | Kind::Float(text) => Ok(Amount(text.clone())),
            Kind::Int(value) => Ok(Amount(value.to_string())),
            kind => Err(expected("a quantity such as 500m or 128Mi", kind, place)),
        }
    }
}

impl<T: Raw> Raw for Vec<At<T>> {
    fn shape() -> Shape {
        Shape::List(T::shape)
    }

    fn read(node: &Node, place: &Place) -> Result<Self, Fault> {
        let Kind::List(items) = &node.kind else {
            return Err(expected("a list", &node.kind, place));
        };
        let read = |(index, item): (usize, &Node)| {
            let place = place.item(index, item);
            Ok(At { value: T::read(item, &place)?, place })
        };
        items.iter().enumerate().map(read).collect()
    }
}

impl<T: Raw> Raw for Map<T> {
    fn shape() -> Shape {
        Shape::Map(T::shape)
    }

    fn read(node: &Node, place: &Place) -> Result<Self, Fault> {
        let mut out = Vec::new();
        for (key, value) in entries(node, place)? {
            let key_place = Place { line: key.line, column: key.column, path: place.join(&key.name) };
            let value_place = place.field(&key.name, value);
            let value = At { value: T::read(value, &value_place)?, place: value_place };
            out.push((At { value: key.name.clone(), place: key_place }, value));
        }
        Ok(out)
    }
}

fn expected(what: &str, kind: &Kind, place: &Place) -> Fault {
    place.fault(format!("expected {what}, found {}", kind.describe()))
}

fn entries<'n>(node: &'n Node, place: &Place) -> Result<&'n [(Key, Node)], Fault> {
    match &node.kind {
        Kind::Map(entries) => Ok(entries),
        kind => Err(expected("a mapping", kind, place)),
    }
}

fn field<T: Raw>(key: &Key, node: &Node, parent: &Place) -> Result<Option<At<T>>, Fault> {
    if node.kind == Kind::Null {
        return Ok(None);
    }
    let place = parent.field(&key.name, node);
    Ok(Some(At { value: T::read(node, &place)?, place }))
}

/// Answers a field that is not read: refused if it is known, unknown otherwise.
fn unknown(key: &Key, parent: &Place, table: &Table) -> Fault {
    let known: Vec<&str> = table.fields.iter().map(|field| field.key).collect();
    let hint = match nearest(&key.name, known.iter().copied()) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("known are {}", known.join(", ")),
    };
    let short: String = key.name.chars().take(60).collect();
    let place = Place { line: key.line, column: key.column, path: parent.path.clone() };
    place.fault(format!("unknown field `{short}`: {hint}"))
}

/// Refuses a field that exists and is not done here; one that says nothing asks for nothing, and is passed over.
/// Answers whether it was.
fn passed_over(key: &Key, node: &Node, parent: &Place, table: &Table) -> Result<bool, Fault> {
    let Some(why) = table.refusal(&key.name) else { return Ok(false) };
    match node.kind.is_empty() {
        true => Ok(true),
        false => Err(Fault::new(key.line, key.column, format!("{} {why}", parent.join(&key.name)))),
    }
}

/// Declares a Kubernetes type: the fields that are read, each with what it does; those that are checked and have no
/// effect on one machine, with why; and those that are refused, with why.
macro_rules! raw {
    (
        $(#[doc = $doc:literal])*
        $name:ident { $($(#[doc = $note:literal])* $field:ident = $key:literal: $type:ty,)* }
        $(idle { $($idle:literal: $idle_type:ty = $why:expr,)* })?
        $(refused { $($no:literal: $reason:expr,)* })?
    ) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, Default)]
        pub struct $name {
            $(
                #[doc = concat!("`", $key, "`.")]
                pub $field: Option<At<$type>>,
            )*
        }

        impl $name {
            /// Its fields and what is done with each.
            pub const TABLE: Table = Table {
                name: stringify!($name),
                about: concat!($($doc),*),
                fields: &[
                    $(Field { key: $key, about: concat!($($note),*), shape: <$type as Raw>::shape, fate: Fate::Done },)*
                    $($(Field { key: $idle, about: "", shape: <$idle_type as Raw>::shape, fate: Fate::Idle($why) },)*)?
                    $($(Field { key: $no, about: "", shape: Anything::shape, fate: Fate::Refused($reason) },)*)?
                ],
            };
        }

        impl Raw for $name {
            fn read(node: &Node, place: &Place) -> Result<Self, Fault> {
                #[allow(unused_mut)]
                let mut out = Self::default();
                for (key, value) in entries(node, place)? {
                    if passed_over(key, value, place, &Self::TABLE)? {
                        continue;
                    }
                    match key.name.as_str() {
                        $($key => out.$field = field(key, value, place)?,)*
                        $($($idle => drop(field::<$idle_type>(key, value, place)?),)*)?
                        _ => return Err(unknown(key, place, &Self::TABLE)),
                    }
                }
                Ok(out)
            }

            fn shape() -> Shape {
                Shape::Object(&Self::TABLE)
            }
        }
    };
}
use raw;

#[cfg(test)]
mod tests {
    use super::super::yaml;
    use super::*;

    fn container(text: &str) -> Result<Container, String> {
        let node = yaml::documents(text).map_err(|fault| fault.in_file("f").to_string())?.remove(0);
        Container::read(&node, &Place::root(&node)).map_err(|fault| fault.in_file("f").to_string())
    }

    #[test]
    fn a_field_that_is_not_done_is_refused_by_name_and_place() {
        let fault = container("name: web\nvolumeDevices:\n- {name: d}\n").unwrap_err();
        assert_eq!(fault, "f:2:1: volumeDevices is block storage, which is not done here: mount a directory");
    }

    #[test]
    fn a_typo_is_an_unknown_field_with_a_suggestion() {
        let fault = container("name: web\nimagee: busybox\n").unwrap_err();
        assert_eq!(fault, "f:2:1: unknown field `imagee`: did you mean `image`?");
        let fault = container("ports:\n- containerport: 80\n").unwrap_err();
        assert_eq!(fault, "f:2:3: ports[0]: unknown field `containerport`: did you mean `containerPort`?");
    }

    #[test]
    fn a_value_of_the_wrong_type_says_what_was_expected() {
        assert_eq!(container("ports: 80").unwrap_err(), "f:1:8: ports: expected a list, found the number 80");
        let fault = container("env: [{name: A, value: 5}]").unwrap_err();
        assert!(fault.ends_with("env[0].value: expected a string, found the number 5: put it in quotes"), "{fault}");
    }

    #[test]
    fn null_and_what_kubectl_leaves_empty_are_absent() {
        let read = container("name: web\nimage: null\nvolumeDevices: []\nenvFrom: []\n").unwrap();
        assert!(read.image.is_none());
    }
}
