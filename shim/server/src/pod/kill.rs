//! How containers are ended, whoever wants it: a stop, a failed hook or probe, a deadline, the end of the others.
//!
//! ```text
//!  event Killing - preStop, within the grace - the turn, within the grace - stop signal - SIGKILL when the grace is over
//! ```
//! The turn is that of sidecars: they are stopped after all containers, the last one first; their preStop hooks run at
//! once, as with kubelet. A hook or a turn that has used up the whole grace leaves the container two more seconds
//! between the stop signal and SIGKILL, as the Kubernetes documentation has it. (kubelet gives those two seconds also to
//! a container with less than that left; here the grace period is kept.)

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use coracle_engine::ContainerStatus;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::hook::{self, runs};
use super::observe::{Observed, kind, past};
use super::policy::{Kind, Past};
use super::reach::Reach;
use crate::kube::container::Container;
use crate::time;

/// What a container has left when the grace is used up.
const LAST: Duration = Duration::from_secs(2);

/// A container to be ended.
#[derive(Debug, Clone)]
pub struct Victim {
    /// The container.
    pub container: Container,
    /// Its incarnation.
    pub id: String,
    /// The event's message; empty for none.
    pub message: String,
    /// When its grace is over.
    pub deadline: i64,
    /// Its preStop hook is done.
    pub pre_stopped: bool,
}

impl Victim {
    fn left(&self) -> Duration {
        time::until(self.deadline)
    }
}

/// Ends one container. `turn` is when it may be asked to stop; `told` hears that its preStop hook is done.
pub async fn container(
    reach: &Reach,
    victim: &Victim,
    turn: impl Future<Output = ()>,
    told: impl Fn(&str),
) -> Result<()> {
    let Victim { container, id, .. } = victim;
    if !runs(reach, id) {
        return Ok(());
    }
    if !victim.message.is_empty() {
        reach.recorder.normal(reach.on(&container.name), "Killing", &victim.message);
    }
    if victim.left().is_zero() {
        return stop(reach, victim, Duration::ZERO).await;
    }
    let mut hooked = std::pin::pin!(pre_stop(reach, victim));
    let done = tokio::time::timeout(victim.left(), &mut hooked).await.is_ok();
    told(&container.name);
    // Whether it came or not: what is left of the grace tells.
    let _ = tokio::time::timeout(victim.left(), turn).await;
    let grace = if victim.left().is_zero() { LAST } else { victim.left() };
    if done {
        return stop(reach, victim, grace).await;
    }
    // The hook goes on for as long as its container does.
    tokio::select! {
        stopped = stop(reach, victim, grace) => stopped,
        () = async { hooked.await; std::future::pending().await } => Ok(()),
    }
}

async fn stop(reach: &Reach, victim: &Victim, grace: Duration) -> Result<()> {
    let stopped = reach.engine.stop_container(&victim.id, grace).await;
    stopped.with_context(|| format!("container {}", victim.container.name))
}

async fn pre_stop(reach: &Reach, victim: &Victim) {
    let Victim { container, id, .. } = victim;
    let Some(action) = container.lifecycle.pre_stop.as_ref().filter(|_| !victim.pre_stopped) else { return };
    if let Err(why) = hook::run(reach, container, id, action).await {
        reach.recorder.warning(reach.on(&container.name), "FailedPreStopHook", why);
    }
}

/// Ends all that runs of a pod: the containers side by side, then the sidecars in reverse order.
pub async fn pod(reach: &Reach, victims: Vec<Victim>, told: impl Fn(&str) + Clone + 'static) -> Result<()> {
    let ranks: Vec<usize> = victims.iter().map(|victim| rank(reach, &victim.container)).collect();
    let (living, _) = watch::channel((0..victims.len()).collect::<BTreeSet<usize>>());
    let mut kills = JoinSet::new();
    for (index, victim) in victims.into_iter().enumerate() {
        let (reach, ranks, living, told) = (reach.clone(), ranks.clone(), living.clone(), told.clone());
        kills.spawn_local(async move {
            let mut seen = living.subscribe();
            let turn = async {
                let clear = |living: &BTreeSet<usize>| living.iter().all(|other| ranks[*other] >= ranks[index]);
                // The other half is in this very task.
                let _ = seen.wait_for(clear).await;
            };
            let result = container(&reach, &victim, turn, told).await;
            living.send_modify(|living| {
                living.remove(&index);
            });
            result
        });
    }
    let mut first = Ok(());
    while let Some(joined) = kills.join_next().await {
        let result = joined.context("stop a container")?;
        first = first.and(result);
    }
    first
}

/// Who is stopped first: 0, then 1 ...
fn rank(reach: &Reach, container: &Container) -> usize {
    let pod = &reach.kept.pod;
    match (kind(pod, container), pod.init.iter().position(|init| init.name == container.name)) {
        (Kind::Sidecar, Some(index)) => pod.init.len() - index,
        _ => 0,
    }
}

/// What runs of a pod, by the pod's order.
pub fn running<'o>(reach: &Reach, observed: &'o Observed) -> Vec<(Container, &'o ContainerStatus)> {
    let alive = |container: &Container| {
        let status = observed.latest(&container.name)?;
        (past(status) == Past::Running).then(|| (container.clone(), status))
    };
    reach.kept.pod.all_containers().filter_map(alive).collect()
}
