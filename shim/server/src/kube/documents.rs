//! From the texts of files to what they ask for: every document by its kind, each kind done or refused by name.

use super::config::{ConfigMap, RuntimeClass, Secret, ServiceAccount};
use super::fault::nearest;
use super::meta::Meta;
use super::pod::{self, Pod};
use super::raw::{self, Fate, Place, Raw, Shape, Table};
use super::service::Service;
use super::storage::{PersistentVolume, PersistentVolumeClaim};
use super::workload::{self, Workload};
use super::yaml::{self, Kind, Node};
use super::{Fault, names};
use crate::objects::AnyObject;

/// A text with its name for messages.
#[derive(Debug, Clone)]
pub struct Source {
    /// The file's name.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// What documents ask for, in their order.
#[derive(Debug, Clone, Default)]
pub struct Documents {
    /// Pods that stand there themselves.
    pub pods: Vec<Pod>,
    /// What pods refer to.
    pub objects: Vec<AnyObject>,
    /// What makes pods.
    pub workloads: Vec<Workload>,
    /// What was said without effect on one machine.
    pub notes: Vec<Note>,
}

/// A field that has no effect.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Note {
    /// Of what: `Pod web`.
    pub of: String,
    /// Its path.
    pub field: String,
    /// Why.
    pub why: &'static str,
}

/// How a document of a kind is read into what it asks for.
type Reader = fn(&Node, &Place, &mut Documents) -> Result<(), Fault>;

/// A kind of document.
pub struct Known {
    /// Its name.
    pub kind: &'static str,
    /// Its apiVersion.
    pub version: &'static str,
    /// Its fields.
    pub table: &'static Table,
    read: Reader,
}

macro_rules! known {
    ($kind:literal, $version:literal, $raw:ident, |$read:ident, $place:ident, $out:ident| $body:expr) => {
        Known {
            kind: $kind,
            version: $version,
            table: &raw::$raw::TABLE,
            read: |node, $place, $out| {
                let $read = raw::$raw::read(node, $place)?;
                $body;
                Ok(())
            },
        }
    };
}

/// The kinds that are done, in the order in which they are told.
pub const KINDS: &[Known] = &[
    known!("Pod", "v1", Pod, |raw, at, out| out.pods.push(pod::convert(raw, at)?)),
    known!("ConfigMap", "v1", ConfigMap, |raw, at, out| {
        out.objects.push(AnyObject::ConfigMap(ConfigMap::convert(raw, at)?));
    }),
    known!("Secret", "v1", Secret, |raw, at, out| out.objects.push(AnyObject::Secret(Secret::convert(raw, at)?))),
    known!("Service", "v1", Service, |raw, at, out| out.objects.push(AnyObject::Service(Service::convert(raw, at)?))),
    known!("ServiceAccount", "v1", ServiceAccount, |raw, at, out| {
        out.objects.push(AnyObject::ServiceAccount(ServiceAccount::convert(raw, at)?));
    }),
    known!("PersistentVolumeClaim", "v1", PersistentVolumeClaim, |raw, at, out| {
        out.objects.push(AnyObject::PersistentVolumeClaim(PersistentVolumeClaim::convert(raw, at)?));
    }),
    known!("PersistentVolume", "v1", PersistentVolume, |raw, at, out| {
        out.objects.push(AnyObject::PersistentVolume(PersistentVolume::convert(raw, at)?));
    }),
    known!("RuntimeClass", "node.k8s.io/v1", RuntimeClass, |raw, at, out| {
        out.objects.push(AnyObject::RuntimeClass(RuntimeClass::convert(raw, at)?));
    }),
    known!("Namespace", "v1", Namespace, |raw, at, _out| Meta::of_cluster(raw.metadata, at, names::label)?),
    known!("Deployment", "apps/v1", Deployment, |raw, at, out| out.workloads.push(workload::deployment(raw, at)?)),
    known!("ReplicaSet", "apps/v1", ReplicaSet, |raw, at, out| out.workloads.push(workload::replica_set(raw, at)?)),
    known!("StatefulSet", "apps/v1", StatefulSet, |raw, at, out| {
        out.workloads.push(workload::stateful_set(raw, at)?);
    }),
    known!("DaemonSet", "apps/v1", DaemonSet, |raw, at, out| out.workloads.push(workload::daemon_set(raw, at)?)),
    known!("Job", "batch/v1", Job, |raw, at, out| out.workloads.push(workload::job(raw, at)?)),
];

/// Kinds that exist and are not done, with what to do instead.
const REFUSED: &[(&str, &str)] = &[
    ("CronJob", "start its Job by a timer: `coracle run` of a `kind: Job` from cron or a systemd timer"),
    ("ReplicationController", "write it as a Deployment"),
    ("PodTemplate", "write it as a Pod"),
    ("Ingress", "there is no ingress controller: use a Service of the type NodePort, or hostPort"),
    ("IngressClass", "there is no ingress controller: remove it"),
    ("Gateway", "there is no gateway controller: use a Service of the type NodePort, or hostPort"),
    ("NetworkPolicy", "it would have to be enforced, and is not: remove it, knowing that"),
    ("HorizontalPodAutoscaler", "there is no autoscaler: set replicas"),
    ("PodDisruptionBudget", "it is about draining nodes: remove it"),
    ("StorageClass", "there is no provisioner: claims get directories of the machine; remove it"),
    ("PriorityClass", "it orders pods that wait for a node: remove it"),
    ("Role", "there is no API server: remove it"),
    ("RoleBinding", "there is no API server: remove it"),
    ("ClusterRole", "there is no API server: remove it"),
    ("ClusterRoleBinding", "there is no API server: remove it"),
    ("CustomResourceDefinition", "there is no API server: remove it"),
    ("ValidatingWebhookConfiguration", "there is no API server: remove it"),
    ("MutatingWebhookConfiguration", "there is no API server: remove it"),
    ("Endpoints", "they are made of the pods that a Service selects: remove it"),
    ("EndpointSlice", "they are made of the pods that a Service selects: remove it"),
    ("LimitRange", "write the limits into the containers"),
    ("ResourceQuota", "write the limits into the containers"),
    ("Node", "there is one, and it needs no document: remove it"),
    ("Event", "events are recorded, not made: remove it"),
];

/// Reads documents of several texts.
pub fn read(sources: &[Source]) -> Result<Documents, Fault> {
    let mut out = Documents::default();
    for source in sources {
        read_text(&source.text, &mut out).map_err(|fault| fault.in_file(&source.name))?;
    }
    match out.pods.is_empty() && out.objects.is_empty() && out.workloads.is_empty() && out.notes.is_empty() {
        true => {
            let name = sources.first().map_or("", |source| source.name.as_str());
            let text = "the file holds no document: expected one such as a Pod (apiVersion: v1, kind: Pod)";
            Err(Fault::new(1, 1, text).in_file(name))
        }
        false => Ok(out),
    }
}

fn read_text(text: &str, out: &mut Documents) -> Result<(), Fault> {
    for node in yaml::documents(text)? {
        read_document(&node, &Place::root(&node), out, true)?;
    }
    Ok(())
}

/// The text of a field of a document, and its key's place.
fn word<'n>(entries: &'n [(yaml::Key, Node)], name: &str) -> Option<(&'n yaml::Key, &'n str)> {
    entries.iter().find(|(key, _)| key.name == name).map(|(key, value)| match &value.kind {
        Kind::Str(text) => (key, text.as_str()),
        _ => (key, ""),
    })
}

fn read_document(node: &Node, place: &Place, out: &mut Documents, lists: bool) -> Result<(), Fault> {
    let Kind::Map(entries) = &node.kind else {
        return Err(place.fault(format!("expected a document such as a Pod, found {}", node.kind.describe())));
    };
    let (key, kind) = match word(entries, "kind") {
        Some((key, "")) => return Err(Fault::new(key.line, key.column, "kind: expected a name such as `kind: Pod`")),
        Some(found) => found,
        None => return Err(place.fault("kind is missing: expected one such as `apiVersion: v1` and `kind: Pod`")),
    };
    if kind == "List" && lists {
        return read_list(entries, place, out);
    }
    let Some(known) = KINDS.iter().find(|known| known.kind == kind) else {
        return Err(Fault::new(key.line, key.column, unknown(kind)));
    };
    match word(entries, "apiVersion") {
        Some((_, version)) if version == known.version => {}
        Some((key, other)) => {
            let text = format!("apiVersion of a {kind} is {}, not {other:?}", known.version);
            return Err(Fault::new(key.line, key.column, text));
        }
        None => return Err(place.fault(format!("apiVersion is missing: a {kind} has `apiVersion: {}`", known.version))),
    }
    (known.read)(node, place, out)?;
    check_twice(out, kind, place)?;
    let name = entries.iter().find(|(key, _)| key.name == "metadata").and_then(|(_, meta)| match &meta.kind {
        Kind::Map(entries) => word(entries, "name").or_else(|| word(entries, "generateName")).map(|(_, name)| name),
        _ => None,
    });
    let of = format!("{kind} {}", name.unwrap_or_default());
    notes(node, Shape::Object(known.table), "", &of, &mut out.notes);
    if kind == "Namespace" {
        let why = "is a first part of names and needs no making";
        out.notes.push(Note { of, field: String::new(), why });
    }
    Ok(())
}

fn unknown(kind: &str) -> String {
    let short: String = kind.chars().take(60).collect();
    if let Some((_, hint)) = REFUSED.iter().find(|(name, _)| *name == kind) {
        return format!("kind {short} is not done here: {hint}");
    }
    let known = KINDS.iter().map(|known| known.kind);
    match nearest(kind, known.clone()) {
        Some(near) => format!("unknown kind {short}: did you mean {near}?"),
        None => format!("unknown kind {short}: known are {}", known.collect::<Vec<_>>().join(", ")),
    }
}

/// The items of a `kind: List`.
fn read_list(entries: &[(yaml::Key, Node)], place: &Place, out: &mut Documents) -> Result<(), Fault> {
    for (key, value) in entries {
        match (key.name.as_str(), &value.kind) {
            ("items", Kind::List(items)) => {
                for (index, item) in items.iter().enumerate() {
                    read_document(item, &place.within("items", value).item(index, item), out, false)?;
                }
            }
            ("items", Kind::Null) | ("apiVersion" | "kind" | "metadata", _) => {}
            ("items", kind) => return Err(place.fault(format!("items: expected a list, found {}", kind.describe()))),
            (other, _) => {
                let text = format!("unknown field `{other}`: a List has items");
                return Err(Fault::new(key.line, key.column, text));
            }
        }
    }
    Ok(())
}

/// Refuses a second document of one kind and name: which of them was meant?
fn check_twice(out: &Documents, kind: &str, place: &Place) -> Result<(), Fault> {
    fn twice<T, K: PartialEq>(list: &[T], key: impl Fn(&T) -> K) -> bool {
        let Some((last, others)) = list.split_last() else { return false };
        others.iter().any(|other| key(other) == key(last))
    }
    let again = match kind {
        "Pod" => twice(&out.pods, |pod| (pod.namespace.clone(), pod.name.clone())),
        _ if KINDS.iter().skip_while(|known| known.kind != "Deployment").any(|known| known.kind == kind) => {
            twice(&out.workloads, |workload| (workload.namespace().to_owned(), workload.key.name.clone()))
        }
        "Namespace" => false,
        _ => twice(&out.objects, |any| (any.kind(), any.meta().namespace.clone(), any.meta().name.clone())),
    };
    match again {
        true => Err(place.fault(format!("a second {kind} of this name"))),
        false => Ok(()),
    }
}

/// Lists the fields of a document that have no effect here.
fn notes(node: &Node, shape: Shape, path: &str, of: &str, out: &mut Vec<Note>) {
    match (&node.kind, shape) {
        (Kind::Map(entries), Shape::Object(table)) => {
            for (key, value) in entries.iter().filter(|(_, value)| !value.kind.is_empty()) {
                let Some(field) = table.field(&key.name) else { continue };
                let path = if path.is_empty() { key.name.clone() } else { format!("{path}.{}", key.name) };
                match field.fate {
                    Fate::Idle(why) => out.push(Note { of: of.to_owned(), field: path, why }),
                    Fate::Done => notes(value, (field.shape)(), &path, of, out),
                    Fate::Refused(_) => {}
                }
            }
        }
        (Kind::Map(entries), Shape::Map(item)) => {
            for (key, value) in entries {
                notes(value, item(), &format!("{path}.{}", key.name), of, out);
            }
        }
        (Kind::List(items), Shape::List(item)) => {
            for (index, value) in items.iter().enumerate() {
                notes(value, item(), &format!("{path}[{index}]"), of, out);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
