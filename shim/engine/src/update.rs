//! Live updates: limits of a container or a pod that runs, changed in its cgroup and in its record.
//!
//! The supervisor changes the cgroup first; a limit that the kernel refuses (memory below what is used) changes nothing.
//! The record follows, so that status and a later update start from what is in force. A process that dies between the
//! two leaves a cgroup that is newer than the record: the caller got no answer and asks again.

use std::collections::BTreeMap;

use coracle_proto::coracle::{UpdateSandboxRequest, UpdateSandboxResponse};
use coracle_proto::ttrpc::{method, service};
use coracle_proto::{Any, Empty, task};
use serde_json::{Value, json};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::handler::HandlerKind;
use crate::record::SandboxRecord;
use crate::status::{ContainerState, SandboxState};
use crate::types::{HugepageLimit, Resources};
use crate::{id, spec};

/// What the resources of an update are, to other shims than ours.
const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

impl Engine {
    /// Changes the limits of a container that was made and has not ended. What is `None` or empty keeps its value.
    pub async fn update_container(&self, container: &str, resources: &Resources) -> Result<()> {
        let (sandbox, id) = self.find_container(container)?;
        let _turn = self.turn(&id).await;
        let status = self.container_status(&id)?;
        if !matches!(status.state, ContainerState::Created | ContainerState::Running) {
            let object = format!("container {}", status.config.name);
            return Err(Error::State { operation: "update", object, state: status.state.as_str().into() });
        }
        let mut wanted = resources.clone();
        // A process has it from its start; the cgroup knows nothing of it.
        wanted.oom_score_adj = None;
        self.grow_pod(&sandbox, &id, &merged(&status.config.resources, &wanted)).await?;
        let request = task::UpdateTaskRequest {
            id: id.clone(),
            resources: Some(Any { type_url: RESOURCES_TYPE.into(), value: checked(&wanted)?.to_string().into_bytes() }),
            ..Default::default()
        };
        let what = format!("update container {}", status.config.name);
        let deadline = Some(self.config.deadlines.query);
        let _: Empty = self.task(&sandbox, method::UPDATE, &what, &request, deadline).await?;
        // Read again: it may have been started, or have ended, while the supervisor was asked.
        let mut record = self.container_record(&sandbox, &id)?;
        record.config.resources = merged(&record.config.resources, &wanted);
        self.write_container(&record)
    }

    /// Changes what a ready pod may use: its cgroup gets `resources` and `overhead` together. What is `None` stays.
    pub async fn update_sandbox(
        &self,
        sandbox: &str,
        overhead: Option<Resources>,
        resources: Option<Resources>,
    ) -> Result<()> {
        let id = self.find_sandbox(sandbox)?;
        let _turn = self.turn(&id).await;
        let record = self.sandbox_record(&id)?;
        if record.state != SandboxState::Ready {
            let object = format!("sandbox {}", id::short(&id));
            return Err(Error::State { operation: "update", object, state: record.state.as_str().into() });
        }
        let new = |old: &Resources, new: &Option<Resources>| new.as_ref().map_or(old.clone(), |new| merged(old, new));
        let overhead = new(&record.config.overhead, &overhead);
        let resources = new(&record.config.resources, &resources);
        let mut limits = match record.vm {
            Some(size) => size.check(&resources).map(|()| sum(&size.limits(&resources), &overhead))?,
            None => sum(&resources, &overhead),
        };
        if record.vm.is_none() && !record.config.cgroup_parent.is_empty() {
            for container in self.container_ids(&id)? {
                match self.container_record(&id, &container) {
                    Ok(container) => limits = lifted(limits, &container.config.resources),
                    Err(e) if e.is_not_found() => {}
                    Err(e) => return Err(e),
                }
            }
        }
        self.limit_pod(&id, &limits).await?;
        let mut record = self.sandbox_record(&id)?;
        (record.config.overhead, record.config.resources) = (overhead, resources);
        self.write_sandbox(&record)
    }

    /// Lifts the limits of a pod that a container is about to be made in and that has no such limit itself.
    ///
    /// Who makes the cgroup above a pod's (kubelet) sets there what the pod may use, and states for the pod's own the sum
    /// of its containers' limits. Such a sum counts a container without a limit as nothing: it would be killed for using
    /// anything. The cgroup above still holds.
    pub(crate) async fn make_room(&self, pod: &SandboxRecord, container: &Resources) -> Result<()> {
        if pod.config.cgroup_parent.is_empty()
            || matches!(pod.handler.kind, HandlerKind::Shim { .. })
            || pod.vm.is_some()
        {
            return Ok(());
        }
        let limits = sum(&pod.config.resources, &pod.config.overhead);
        let more = lifted(limits.clone(), container);
        if more == limits { Ok(()) } else { self.limit_pod(&pod.id, &more).await }
    }

    /// Raises the limits of a pod in which a container is about to get more than the pod's sum has room for: a kubelet
    /// that resizes containers states the new sum afterwards, if at all, and cgroup v1 refuses the container meanwhile.
    async fn grow_pod(&self, sandbox: &str, container: &str, wanted: &Resources) -> Result<()> {
        let pod = self.sandbox_record(sandbox)?;
        if let Some(size) = pod.vm {
            // Its containers' cgroups are the guest's, and the host's holds the machine, whatever they may use of it.
            return size.check(wanted);
        }
        let stated = sum(&pod.config.resources, &pod.config.overhead);
        let limited = stated.memory.is_some() || stated.cpu_quota.is_some();
        if !limited || pod.config.cgroup_parent.is_empty() || matches!(pod.handler.kind, HandlerKind::Shim { .. }) {
            return Ok(());
        }
        let mut all = vec![wanted.clone()];
        for other in self.container_ids(sandbox)?.into_iter().filter(|other| other != container) {
            match self.container_record(sandbox, &other) {
                Ok(other) if matches!(other.state, ContainerState::Created | ContainerState::Running) => {
                    all.push(other.config.resources)
                }
                Err(e) if !e.is_not_found() => return Err(e),
                _ => {}
            }
        }
        let grown = grown(stated.clone(), &all, &pod.config.overhead);
        if grown == stated { Ok(()) } else { self.limit_pod(sandbox, &grown).await }
    }

    async fn limit_pod(&self, id: &str, limits: &Resources) -> Result<()> {
        let request = UpdateSandboxRequest { resources: checked(limits)?.to_string().into_bytes() };
        let what = format!("update sandbox {}", id::short(id));
        let deadline = Some(self.config.deadlines.query);
        let client = self.connect(id).await?;
        let done = client.call(&what, service::CONTROL, method::UPDATE_SANDBOX, &request, deadline).await;
        done.map(|_: UpdateSandboxResponse| ())
    }
}

/// A pod's limits with room for those of all its containers together.
fn grown(mut pod: Resources, containers: &[Resources], overhead: &Resources) -> Resources {
    for container in containers {
        pod = lifted(pod, container);
    }
    let total = |limit: fn(&Resources, Option<u64>) -> Option<i64>| {
        let all = containers.iter().chain([overhead]);
        all.filter_map(|c| limit(c, pod.cpu_period)).filter(|limit| *limit > 0).fold(0, i64::saturating_add)
    };
    let (memory, quota) = (total(|c, _| c.memory), total(quota_in));
    // What was lifted is negative and stays so.
    let grow = |limit: Option<i64>, least: i64| limit.map(|limit| if limit > 0 { limit.max(least) } else { limit });
    (pod.memory, pod.cpu_quota) = (grow(pod.memory, memory), grow(pod.cpu_quota, quota));
    pod
}

/// A pod's limits without those that one of its containers does not have.
fn lifted(mut pod: Resources, container: &Resources) -> Resources {
    let none = |limit: Option<i64>| limit.is_none_or(|limit| limit <= 0);
    let lift = |limit: &mut Option<i64>| {
        if limit.is_some() {
            *limit = Some(-1);
        }
    };
    if none(container.memory) {
        lift(&mut pod.memory);
        lift(&mut pod.memory_swap);
    }
    if none(container.cpu_quota) {
        lift(&mut pod.cpu_quota);
    }
    pod
}

/// The limits as an update: memory below what is used is refused, where the kernel itself would kill instead.
fn checked(resources: &Resources) -> Result<Value> {
    let mut limits = spec::limits(resources)?;
    if let Some(memory) = limits.get_mut("memory") {
        memory["checkBeforeUpdate"] = json!(true);
    }
    Ok(limits)
}

/// The old limits with the new ones in their places.
fn merged(old: &Resources, new: &Resources) -> Resources {
    let mut hugepages: BTreeMap<&str, u64> =
        old.hugepage_limits.iter().map(|l| (l.page_size.as_str(), l.limit)).collect();
    hugepages.extend(new.hugepage_limits.iter().map(|l| (l.page_size.as_str(), l.limit)));
    let mut unified = old.unified.clone();
    unified.extend(new.unified.clone());
    Resources {
        cpu_shares: new.cpu_shares.or(old.cpu_shares),
        cpu_quota: new.cpu_quota.or(old.cpu_quota),
        cpu_period: new.cpu_period.or(old.cpu_period),
        cpuset_cpus: new.cpuset_cpus.clone().or_else(|| old.cpuset_cpus.clone()),
        cpuset_mems: new.cpuset_mems.clone().or_else(|| old.cpuset_mems.clone()),
        memory: new.memory.or(old.memory),
        memory_swap: new.memory_swap.or(old.memory_swap),
        pids: new.pids.or(old.pids),
        oom_score_adj: new.oom_score_adj.or(old.oom_score_adj),
        hugepage_limits: limits_of(hugepages),
        unified,
    }
}

fn limits_of(by_size: BTreeMap<&str, u64>) -> Vec<HugepageLimit> {
    by_size.into_iter().map(|(size, limit)| HugepageLimit { page_size: size.to_owned(), limit }).collect()
}

/// What a pod's cgroup gets: its containers' limits and its overhead. What is a limit of the containers alone stays one
/// (no limit and an overhead is no limit); weights add; sets and scores are the containers'.
pub(crate) fn sum(resources: &Resources, overhead: &Resources) -> Resources {
    let over = |value: Option<i64>| value.filter(|v| *v > 0).unwrap_or(0);
    // -1 is no limit, with an overhead too.
    let add = |limit: Option<i64>, more: Option<i64>| {
        limit.map(|limit| if limit > 0 { limit.saturating_add(over(more)) } else { limit })
    };
    let mut hugepages: BTreeMap<&str, u64> =
        resources.hugepage_limits.iter().map(|l| (l.page_size.as_str(), l.limit)).collect();
    for more in &overhead.hugepage_limits {
        hugepages.entry(&more.page_size).and_modify(|limit| *limit = limit.saturating_add(more.limit));
    }
    Resources {
        cpu_shares: match (resources.cpu_shares, overhead.cpu_shares) {
            (Some(a), Some(b)) => Some(a.saturating_add(b)),
            (a, b) => a.or(b),
        },
        cpu_quota: add(resources.cpu_quota, quota_in(overhead, resources.cpu_period)),
        memory: add(resources.memory, overhead.memory),
        memory_swap: add(resources.memory_swap, overhead.memory_swap.or(overhead.memory)),
        pids: add(resources.pids, overhead.pids),
        cpuset_cpus: resources.cpuset_cpus.clone().or_else(|| overhead.cpuset_cpus.clone()),
        cpuset_mems: resources.cpuset_mems.clone().or_else(|| overhead.cpuset_mems.clone()),
        cpu_period: resources.cpu_period,
        oom_score_adj: resources.oom_score_adj,
        hugepage_limits: limits_of(hugepages),
        unified: resources.unified.clone(),
    }
}

/// The kernel's period where none is stated.
const DEFAULT_PERIOD: u64 = 100_000;

/// CPU time, counted in another period.
fn quota_in(resources: &Resources, period: Option<u64>) -> Option<i64> {
    let quota = resources.cpu_quota.filter(|quota| *quota > 0)?;
    let [from, to] = [resources.cpu_period, period].map(|p| i128::from(p.filter(|p| *p > 0).unwrap_or(DEFAULT_PERIOD)));
    i64::try_from(i128::from(quota) * to / from).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn huge(limits: &[(&str, u64)]) -> Vec<HugepageLimit> {
        limits.iter().map(|(size, limit)| HugepageLimit { page_size: (*size).into(), limit: *limit }).collect()
    }

    #[test]
    fn what_an_update_leaves_out_keeps_its_value() {
        let old = Resources {
            memory: Some(1),
            pids: Some(2),
            hugepage_limits: huge(&[("2MB", 1)]),
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        };
        let new = Resources { memory: Some(5), hugepage_limits: huge(&[("1GB", 7)]), ..Default::default() };
        let both = merged(&old, &new);
        assert_eq!((both.memory, both.pids), (Some(5), Some(2)));
        assert_eq!(both.hugepage_limits, huge(&[("1GB", 7), ("2MB", 1)]));
        assert_eq!(both.unified, old.unified);
        assert_eq!(merged(&old, &Resources::default()), old);
    }

    #[test]
    fn a_pod_gets_its_containers_limits_and_its_overhead() {
        let resources = Resources {
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            cpu_period: Some(50_000),
            memory: Some(100),
            hugepage_limits: huge(&[("2MB", 10)]),
            ..Default::default()
        };
        let overhead = Resources {
            cpu_shares: Some(100),
            cpu_quota: Some(10_000),
            memory: Some(7),
            pids: Some(5),
            hugepage_limits: huge(&[("2MB", 1), ("1GB", 1)]),
            ..Default::default()
        };
        let both = sum(&resources, &overhead);
        assert_eq!((both.cpu_shares, both.memory, both.pids), (Some(1124), Some(107), None));
        assert_eq!(both.cpu_quota, Some(55_000), "a tenth of a CPU more");
        assert_eq!(both.hugepage_limits, huge(&[("2MB", 11)]));
    }

    #[test]
    fn a_container_without_a_limit_lifts_the_pods_sum() {
        let pod = Resources { memory: Some(100), cpu_quota: Some(5), cpu_shares: Some(7), ..Default::default() };
        let limited = Resources { memory: Some(1), cpu_quota: Some(1), ..Default::default() };
        assert_eq!(lifted(pod.clone(), &limited), pod);
        let half = Resources { cpu_quota: Some(-1), ..limited };
        let lifted = lifted(pod, &half);
        assert_eq!((lifted.memory, lifted.cpu_quota, lifted.cpu_shares), (Some(100), Some(-1), Some(7)));
    }

    #[test]
    fn a_container_that_gets_more_makes_its_pod_grow() {
        let limits = |memory, quota| Resources { memory: Some(memory), cpu_quota: Some(quota), ..Default::default() };
        let pod = limits(100, 50_000);
        let overhead = Resources { memory: Some(5), ..Default::default() };
        let after = grown(pod.clone(), &[limits(90, 40_000), limits(60, 5_000)], &overhead);
        assert_eq!((after.memory, after.cpu_quota), (Some(155), Some(50_000)));
        let free = Resources { memory: Some(1), ..Default::default() };
        assert_eq!(grown(pod.clone(), &[free], &overhead).cpu_quota, Some(-1), "one of them has no limit");
        assert_eq!(grown(pod.clone(), &[limits(10, 1000)], &overhead), pod);
    }

    #[test]
    fn no_limit_with_an_overhead_is_no_limit() {
        let overhead = Resources { memory: Some(7), cpu_quota: Some(7), ..Default::default() };
        let both = sum(&Resources { memory: Some(-1), ..Default::default() }, &overhead);
        assert_eq!((both.memory, both.cpu_quota), (Some(-1), None));
        assert_eq!(sum(&Resources::default(), &Resources::default()), Resources::default());
    }
}
