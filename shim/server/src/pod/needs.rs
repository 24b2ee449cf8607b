//! What of a pod somebody has to be there for.

use super::{probe, volume};
use crate::kube::pod::Pod;
use crate::objects::Objects;

/// Whether somebody has to be there for as long as the pod runs: to probe it, to end it in time, or to look after its
/// volumes.
pub fn resident(pod: &Pod, objects: &Objects) -> bool {
    pod.deadline.is_some() || pod.all_containers().any(probe::any) || volume::needs_tender(pod, objects)
}

/// Whether the supervisor has to see to it that somebody tends the pod at any time: also where somebody has to be there
/// for a while only, and may die meanwhile.
pub fn stays(pod: &Pod, objects: &Objects) -> bool {
    resident(pod, objects) || pod.all_containers().any(|container| container.lifecycle.post_start.is_some())
}
