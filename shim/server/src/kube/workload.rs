//! What makes pods, as it is meant: a template, how many pods of it, and how they follow each other.
//!
//! A workload's pods are called `NAME-NUMBER`. Each carries its owner as an annotation ([`OWNER`]), by which `apply`,
//! `down` and a Job's next pod find it.

use serde::{Deserialize, Serialize};

use super::meta::{Meta, Selector};
use super::pod::{self, Pod, RestartPolicy, choice, required, value};
use super::raw::{self, At, Place};
use super::storage::PersistentVolumeClaim;
use super::volume::{self, Volume};
use super::{Fault, names};
use crate::objects;

/// The annotation of a pod that names its owner: `KIND/NAME`.
pub const OWNER: &str = "coracle/owner";
/// The annotation and label of a pod that holds its number.
pub const INDEX: &str = "apps.kubernetes.io/pod-index";
/// The annotation and label of a pod of an indexed Job that holds its index.
pub const JOB_INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Most pods of one workload: far above what one machine can use, far below what hurts.
const MAX_PODS: i64 = 250;

/// What makes pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Under which the store keeps it: `kind.name`, since two kinds may have one name.
    pub key: Meta,
    /// Its name.
    pub name: String,
    /// Which kind it is.
    pub kind: Kind,
    /// How many pods.
    pub replicas: u32,
    /// The pods, but for their names.
    pub pod: Pod,
}

/// The kinds, and what each has of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Pods that are alike.
    Deployment,
    /// Pods that are alike.
    ReplicaSet,
    /// One pod.
    DaemonSet,
    /// Pods with names and directories of their own.
    StatefulSet {
        /// Whether each waits for the one before it to be ready.
        ordered: bool,
        /// The number of the first.
        first: u32,
        /// The claims of each, named as the templates are.
        claims: Vec<PersistentVolumeClaim>,
    },
    /// Pods that run to success.
    Job(Job),
}

/// What a Job has of its own; `replicas` is how many pods run at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// How many successes; None: any one, and then the others may end.
    pub completions: Option<u32>,
    /// Whether each success is of an index.
    pub indexed: bool,
    /// How many pods may fail.
    pub backoff_limit: u32,
    /// Seconds after which it has failed.
    pub deadline: Option<u64>,
    /// Seconds after its end when it is removed.
    pub ttl: Option<u64>,
    /// Whether no pods are made.
    pub suspend: bool,
}

impl objects::Kind for Workload {
    const KIND: &'static str = "Workload";
    const NAMESPACED: bool = true;

    fn meta(&self) -> &Meta {
        &self.key
    }

    fn check_change(&self, new: &Self) -> Result<(), String> {
        match (&self.kind, &new.kind) {
            (Kind::Job(_), Kind::Job(_)) if self.pod != new.pod => {
                Err("the template of a Job is immutable: `coracle down` it first".to_owned())
            }
            _ => Ok(()),
        }
    }
}

impl Kind {
    /// Its name.
    pub fn as_str(&self) -> &'static str {
        match self {
            Kind::Deployment => "Deployment",
            Kind::ReplicaSet => "ReplicaSet",
            Kind::DaemonSet => "DaemonSet",
            Kind::StatefulSet { .. } => "StatefulSet",
            Kind::Job(_) => "Job",
        }
    }
}

impl Workload {
    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.key.namespace
    }

    /// What its pods carry as their owner.
    pub fn owner(&self) -> String {
        format!("{}/{}", self.kind.as_str(), self.name)
    }

    /// The key of an owner as [`Workload::owner`] writes it.
    pub fn key_of(owner: &str) -> Option<String> {
        let (kind, name) = owner.split_once('/')?;
        Some(format!("{}.{name}", kind.to_lowercase()))
    }

    /// The pods that it has from the start; those of a Job are made as they are due.
    pub fn pods(&self) -> Vec<Pod> {
        let first = match self.kind {
            Kind::Job(_) => return Vec::new(),
            Kind::StatefulSet { first, .. } => first,
            _ => 0,
        };
        (first..first + self.replicas).map(|number| self.pod(number)).collect()
    }

    /// The pod of this number.
    pub fn pod(&self, number: u32) -> Pod {
        let mut pod = self.pod.clone();
        pod.rename(&format!("{}-{number}", self.name));
        pod.annotations.insert(OWNER.to_owned(), self.owner());
        if let Kind::StatefulSet { claims, .. } = &self.kind {
            pod.labels.insert(INDEX.to_owned(), number.to_string());
            pod.labels.insert("statefulset.kubernetes.io/pod-name".to_owned(), pod.name.clone());
            for claim in claims {
                let source = volume::Source::Claim { name: claim_name(claim, &pod.name), read_only: false };
                // As in Kubernetes, a template wins over a volume of its name.
                pod.volumes.retain(|volume| volume.name != claim.meta.name);
                pod.volumes.push(Volume { name: claim.meta.name.clone(), source });
            }
        }
        pod
    }

    /// The claims of its pods.
    pub fn claims(&self) -> Vec<PersistentVolumeClaim> {
        let Kind::StatefulSet { claims, .. } = &self.kind else { return Vec::new() };
        let of_pod = |pod: &Pod| {
            let name = pod.name.clone();
            let named = move |claim: &PersistentVolumeClaim| {
                let mut claim = claim.clone();
                claim.meta.name = claim_name(&claim, &name);
                claim
            };
            claims.iter().map(named).collect::<Vec<_>>()
        };
        self.pods().iter().flat_map(of_pod).collect()
    }
}

fn claim_name(claim: &PersistentVolumeClaim, pod: &str) -> String {
    format!("{}-{pod}", claim.meta.name)
}

/// A workload's parts that all kinds have.
struct Parts {
    meta: Meta,
    pod: Pod,
    template: Place,
}

impl Parts {
    fn workload(self, kind: Kind, replicas: u32) -> Workload {
        let Meta { name, namespace, labels, annotations, generated } = self.meta;
        let key = format!("{}.{name}", kind.as_str().to_lowercase());
        let key = Meta { name: key, namespace, labels, annotations, generated };
        Workload { key, name, kind, replicas, pod: self.pod }
    }
}

/// Reads the metadata and the template; `volumes` are those that the pods get besides.
fn parts(
    meta: Option<At<raw::ObjectMeta>>,
    root: &Place,
    template: Option<At<raw::PodTemplateSpec>>,
    selector: Option<Option<At<raw::LabelSelector>>>,
    spec: &Place,
    volumes: Vec<Volume>,
) -> Result<Parts, Fault> {
    // A label, since the pods' host names begin with it.
    let meta = Meta::namespaced(meta, root, names::label)?;
    let At { value: template, place } = required(template, spec, "template")?;
    let of_pods = Meta::of_template(template.metadata, &meta)?;
    if let Some(selector) = selector {
        let At { value: selector, place } = required(selector, spec, "selector")?;
        let selector = Selector::convert(selector)?;
        if selector.is_empty() || !selector.matches(&of_pods.labels) {
            return Err(place.fault("must match the labels of the template"));
        }
    }
    let pod = pod::of_template(of_pods, required(template.spec, &place, "spec")?, volumes)?;
    Ok(Parts { meta, pod, template: place })
}

/// What runs for ever is always started again.
fn always(parts: &Parts) -> Result<(), Fault> {
    if parts.pod.restart != RestartPolicy::Always {
        return Err(parts.template.fault("spec.restartPolicy of pods that run for ever is Always"));
    }
    match parts.pod.deadline {
        Some(_) => Err(parts.template.fault("spec.activeDeadlineSeconds is for pods that end")),
        None => Ok(()),
    }
}

fn count(at: Option<At<i64>>, default: u32, most: i64) -> Result<u32, Fault> {
    match at {
        None => Ok(default),
        Some(at) if (0..=most).contains(&at.value) => Ok(u32::try_from(at.value).unwrap_or(default)),
        Some(at) => Err(at.fault(format!("{} is not from 0 to {most}", at.value))),
    }
}

/// Gives a Deployment its meaning.
pub fn deployment(raw: raw::Deployment, root: &Place) -> Result<Workload, Fault> {
    let At { value: spec, place } = required(raw.spec, root, "spec")?;
    let parts = parts(raw.metadata, root, spec.template, Some(spec.selector), &place, Vec::new())?;
    always(&parts)?;
    Ok(parts.workload(Kind::Deployment, count(spec.replicas, 1, MAX_PODS)?))
}

/// Gives a ReplicaSet its meaning.
pub fn replica_set(raw: raw::ReplicaSet, root: &Place) -> Result<Workload, Fault> {
    let At { value: spec, place } = required(raw.spec, root, "spec")?;
    let parts = parts(raw.metadata, root, spec.template, Some(spec.selector), &place, Vec::new())?;
    always(&parts)?;
    Ok(parts.workload(Kind::ReplicaSet, count(spec.replicas, 1, MAX_PODS)?))
}

/// Gives a DaemonSet its meaning.
pub fn daemon_set(raw: raw::DaemonSet, root: &Place) -> Result<Workload, Fault> {
    let At { value: spec, place } = required(raw.spec, root, "spec")?;
    let parts = parts(raw.metadata, root, spec.template, Some(spec.selector), &place, Vec::new())?;
    always(&parts)?;
    Ok(parts.workload(Kind::DaemonSet, 1))
}

/// Gives a StatefulSet its meaning.
pub fn stateful_set(raw: raw::StatefulSet, root: &Place) -> Result<Workload, Fault> {
    let At { value: spec, place } = required(raw.spec, root, "spec")?;
    let mut claims = Vec::new();
    for at in value(spec.claims).unwrap_or_default() {
        claims.push(PersistentVolumeClaim::convert(at.value, &at.place)?);
    }
    let volume = |claim: &PersistentVolumeClaim| Volume {
        name: claim.meta.name.clone(),
        source: volume::Source::Claim { name: claim.meta.name.clone(), read_only: false },
    };
    let volumes = claims.iter().map(volume).collect();
    let mut parts = parts(raw.metadata, root, spec.template, Some(spec.selector), &place, volumes)?;
    always(&parts)?;
    for claim in &mut claims {
        claim.meta.namespace.clone_from(&parts.meta.namespace);
    }
    if let Some(at) = spec.service_name.filter(|at| !at.value.is_empty()) {
        let name = pod::checked(&at, names::label)?;
        parts.pod.subdomain.get_or_insert(name);
    }
    let policies = [("OrderedReady", true), ("Parallel", false)];
    let ordered = spec.management.as_ref().map(|at| choice(at, &policies)).transpose()?.unwrap_or(true);
    let first = count(value(spec.ordinals).and_then(|ordinals| ordinals.start), 0, MAX_PODS)?;
    let replicas = count(spec.replicas, 1, MAX_PODS)?;
    Ok(parts.workload(Kind::StatefulSet { ordered, first, claims }, replicas))
}

/// Failed pods after which a Job has failed, unless it says.
const BACKOFF_LIMIT: u32 = 6;

/// Gives a Job its meaning.
pub fn job(raw: raw::Job, root: &Place) -> Result<Workload, Fault> {
    let At { value: spec, place } = required(raw.spec, root, "spec")?;
    let parts = parts(raw.metadata, root, spec.template, None, &place, Vec::new())?;
    if parts.pod.restart == RestartPolicy::Always {
        return Err(parts.template.fault("spec.restartPolicy of a Job is OnFailure or Never"));
    }
    let modes = [("NonIndexed", false), ("Indexed", true)];
    let indexed = spec.mode.as_ref().map(|at| choice(at, &modes)).transpose()?.unwrap_or(false);
    let parallelism = count(spec.parallelism.clone(), 1, MAX_PODS)?;
    let completions = match (spec.completions, spec.parallelism) {
        (Some(at), _) => Some(count(Some(at), 1, i64::from(i32::MAX))?),
        (None, None) => Some(1),
        (None, Some(at)) if indexed => return Err(at.fault("completions is missing: an Indexed Job has it")),
        (None, Some(_)) => None,
    };
    let seconds = |at: Option<At<i64>>| -> Result<Option<u64>, Fault> {
        at.map(|at| count(Some(at), 0, i64::from(i32::MAX)).map(u64::from)).transpose()
    };
    let job = Job {
        completions,
        indexed,
        backoff_limit: count(spec.backoff_limit, BACKOFF_LIMIT, i64::from(i32::MAX))?,
        deadline: seconds(spec.deadline)?,
        ttl: seconds(spec.ttl)?,
        suspend: value(spec.suspend).unwrap_or(false),
    };
    Ok(parts.workload(Kind::Job(job), parallelism))
}
