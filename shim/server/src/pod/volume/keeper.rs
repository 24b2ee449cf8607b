//! What a running pod's volumes need now and then: their files follow the objects that they show, and an emptyDir
//! that has outgrown its limit is noticed.

use anyhow::Result;
use coracle_engine::Engine;

use super::{Volumes, is_limited, over_limit, payload};
use crate::kube::config::{ConfigMap, Secret};
use crate::kube::mount::Mount;
use crate::kube::pod::Pod;
use crate::kube::volume::Volume;
use crate::objects::Objects;
use crate::pod::events::{On, Recorder};
use crate::pod::facts::Facts;
use crate::pod::keep::Kept;
use crate::pod::making::Blocked;
use crate::time::{self, SECOND};

/// How often emptyDirs are measured: as kubelet's eviction manager does.
const MEASURE: i64 = 10 * SECOND;

/// Whether a pod's volumes need somebody who looks after them while it runs: files that may change, or a size to watch.
pub fn needs_tender(pod: &Pod, objects: &Objects) -> bool {
    is_limited(pod) || pod.volumes.iter().any(|volume| may_change(pod, volume, objects))
}

/// Whether a volume's files may change: an object that it shows may, and somebody sees it whole.
fn may_change(pod: &Pod, volume: &Volume, objects: &Objects) -> bool {
    let whole =
        |mount: &Mount| mount.volume == volume.name && mount.sub_path.is_none() && mount.sub_path_expr.is_none();
    let fixed = |(kind, name): &(&str, &str)| match *kind {
        "ConfigMap" => objects.get::<ConfigMap>(&pod.namespace, name).ok().flatten().is_some_and(|map| map.immutable),
        _ => objects.get::<Secret>(&pod.namespace, name).ok().flatten().is_some_and(|secret| secret.immutable),
    };
    pod.all_containers().any(|container| container.mounts.iter().any(whole))
        && !payload::objects(&volume.source).iter().all(fixed)
}

/// Looks after the volumes of one running pod.
#[derive(Debug, Default)]
pub struct Keeper {
    /// The version of the object store that the files show.
    version: Option<u64>,
    /// When the emptyDirs were measured last.
    measured_at: i64,
}

impl Keeper {
    /// Does what is due. The answer is why the pod is to be evicted, if it is.
    pub fn look(&mut self, engine: &Engine, sandbox: &str, kept: &Kept) -> Option<String> {
        let objects = Objects::open(engine.paths());
        let version = objects.version(&kept.pod.namespace);
        if self.version.replace(version) != Some(version) {
            refresh(engine, sandbox, kept, &objects);
        }
        let now = time::now();
        if !is_limited(&kept.pod) || now - self.measured_at < MEASURE {
            return None;
        }
        self.measured_at = now;
        over_limit(&kept.pod, &engine.paths().volumes(sandbox))
    }
}

/// Writes what has changed. What is wrong with one volume is an event; its old files stay.
fn refresh(engine: &Engine, sandbox: &str, kept: &Kept, objects: &Objects) {
    // Neither addresses nor variables are in files.
    let facts = Facts { pod: &kept.pod, uid: &kept.uid, objects, ips: &[], services: Vec::new() };
    let volumes = Volumes { engine, sandbox, facts: &facts, namespace: None };
    for volume in &kept.pod.volumes {
        if let Err(error) = one(&volumes, volume) {
            let why = error.downcast_ref::<Blocked>().map_or_else(|| format!("{error:#}"), |b| b.message.clone());
            let text = format!("MountVolume.SetUp failed for volume {:?} : {why}", volume.name);
            Recorder::of(engine.paths(), kept).warning(On::Pod, "FailedMount", text);
        }
    }
}

fn one(volumes: &Volumes<'_>, volume: &Volume) -> Result<()> {
    volumes.write(volume).map(drop)
}
