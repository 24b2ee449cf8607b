//! What is seen of a pod's containers: the engine's records, and what the tender remembers.

use std::collections::BTreeMap;

use anyhow::Result;
use coracle_engine::{ContainerFilter, ContainerState, ContainerStatus, Engine};

use super::keep::{Kept, Memory, Tended};
use super::policy::{self, Kind, Past, Plan, Seen, View};
use crate::kube::container::Container;
use crate::kube::pod::Pod;
use crate::time::SECOND;

/// The exit code of a container that could not be started, as containerd and kubelet have it.
const CANNOT_START: i32 = 128;

/// The containers of a pod, by name.
#[derive(Debug, Default)]
pub struct Observed {
    containers: BTreeMap<String, History>,
}

/// One container: its latest incarnation, and the earlier ones that are still recorded.
#[derive(Debug, Default)]
pub struct History {
    /// The one with the highest attempt.
    pub latest: Option<ContainerStatus>,
    /// The others.
    pub earlier: Vec<ContainerStatus>,
}

impl Observed {
    /// Looks at a sandbox's containers.
    pub async fn look(engine: &Engine, sandbox: &str) -> Result<Observed> {
        let filter = ContainerFilter { sandbox_id: sandbox.to_owned(), ..ContainerFilter::default() };
        Ok(Observed::new(engine.list_containers(&filter)?))
    }

    /// Sorts out statuses of one sandbox.
    pub fn new(statuses: Vec<ContainerStatus>) -> Observed {
        let mut observed = Observed::default();
        for status in statuses {
            observed.containers.entry(status.config.name.clone()).or_default().add(status);
        }
        observed
    }

    /// The history of a container, if it has one.
    pub fn history(&self, name: &str) -> Option<&History> {
        self.containers.get(name)
    }

    /// The latest incarnation of a container.
    pub fn latest(&self, name: &str) -> Option<&ContainerStatus> {
        self.history(name)?.latest.as_ref()
    }

    /// The latest incarnation of each container.
    pub fn all_latest(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.containers.values().filter_map(|history| history.latest.as_ref())
    }

    /// What is remembered of the latest incarnation of a container: nothing of one that nobody has looked at yet.
    pub fn memory<'t>(&self, name: &str, tended: &'t Tended) -> Option<&'t Memory> {
        let latest = self.latest(name)?;
        tended.containers.get(name).filter(|memory| memory.id == latest.id)
    }

    /// What a container has been through.
    pub fn seen(&self, kept: &Kept, container: &Container, tended: &Tended) -> Seen {
        let name = &container.name;
        let kept_memory = tended.containers.get(name);
        let failure = kept_memory.and_then(|memory| memory.failure.as_ref());
        let mut past = self.latest(name).map_or(Past::NeverRun, past);
        if let Some(failure) = failure {
            past = Past::Ended { code: CANNOT_START, at: failure.at };
        }
        let kind = kind(&kept.pod, container);
        let memory = self.memory(name, tended);
        let hook = container.lifecycle.post_start.is_some();
        let hooked = !hook || memory.is_some_and(|memory| memory.hooked);
        Seen {
            past,
            backoff: kept_memory.map(|memory| memory.backoff).unwrap_or_default(),
            kind,
            again: matches!(past, Past::Ended { code, .. } if starts_again(&kept.pod, container, code)),
            hook,
            hooked,
            started: hooked && (container.startup.is_none() || memory.is_some_and(|memory| memory.started)),
            blocked: failure.and_then(|failure| failure.retry_at),
        }
    }

    /// Whether traffic may come to a container.
    pub fn ready(&self, kept: &Kept, container: &Container, tended: &Tended) -> bool {
        let seen = self.seen(kept, container, tended);
        let told = || self.memory(&container.name, tended).is_some_and(|memory| memory.ready);
        seen.past == Past::Running && seen.started && (container.readiness.is_none() || told())
    }

    /// What to do now.
    pub fn decide(&self, kept: &Kept, tended: &Tended, stopping: bool, now: i64) -> Plan {
        let seen = |container: &Container| self.seen(kept, container, tended);
        let init: Vec<Seen> = kept.pod.init.iter().map(seen).collect();
        let containers: Vec<Seen> = kept.pod.containers.iter().map(seen).collect();
        let seconds = kept.pod.deadline.filter(|_| tended.begun > 0);
        let deadline = seconds.map(|seconds| {
            let nanos = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(SECOND);
            tended.begun.saturating_add(nanos)
        });
        let doomed = tended.over.is_some();
        policy::decide(&View { init: &init, containers: &containers, stopping, doomed, deadline }, now)
    }

    /// The exit code of the first container, in the order of the file, that failed; 1 where none did but the pod, past its
    /// deadline or evicted; 0 if all is well.
    pub fn outcome(&self, kept: &Kept, tended: &Tended) -> i32 {
        let code = |container: &Container| match self.seen(kept, container, tended).past {
            Past::Ended { code, .. } => code,
            _ => 0,
        };
        // A sidecar is killed when the others are done: how it ends says nothing of the pod.
        let count = kept.pod.all_containers().filter(|container| kind(&kept.pod, container) != Kind::Sidecar);
        count.map(code).find(|code| *code != 0).unwrap_or(i32::from(tended.over.is_some()))
    }
}

impl History {
    fn add(&mut self, status: ContainerStatus) {
        let newer = self.latest.as_ref().is_none_or(|latest| status.config.attempt > latest.config.attempt);
        let older = if newer { self.latest.replace(status) } else { Some(status) };
        self.earlier.extend(older);
    }

    /// The number of the next incarnation; one that was never started is made again.
    pub fn next_attempt(&self) -> u32 {
        match &self.latest {
            None => 0,
            Some(status) if has_run(status) => status.config.attempt + 1,
            Some(status) => status.config.attempt,
        }
    }
}

/// What a container is in its pod.
pub fn kind(pod: &Pod, container: &Container) -> Kind {
    match pod.init.iter().any(|init| init.name == container.name) {
        false => Kind::Main,
        true if container.is_sidecar(true) => Kind::Sidecar,
        true => Kind::Init,
    }
}

/// Whether a container that ended with this code starts again.
pub fn starts_again(pod: &Pod, container: &Container, code: i32) -> bool {
    let by_rule = container.restart_rules.iter().any(|rule| rule.codes.contains(&code) != rule.not);
    by_rule || policy::restarts(container.restart.unwrap_or(pod.restart), code, kind(pod, container))
}

/// Whether a container was started. One that is half made was left by a tender that died: only the holder of the
/// pod's lock makes any.
pub fn has_run(status: &ContainerStatus) -> bool {
    !matches!(status.state, ContainerState::Creating | ContainerState::Created | ContainerState::Removing)
}

/// What a container has been through, by the engine's record.
pub fn past(status: &ContainerStatus) -> Past {
    match status.state {
        ContainerState::Creating | ContainerState::Created | ContainerState::Removing => Past::NeverRun,
        ContainerState::Running | ContainerState::Unknown => Past::Running,
        ContainerState::Exited => match &status.exit {
            Some(exit) => Past::Ended { code: exit.code, at: exit.finished_at },
            None => Past::Ended { code: CANNOT_START, at: 0 },
        },
    }
}
