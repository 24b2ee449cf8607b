//! What is seen of a pod's containers: the engine's records, and what the tender remembers.

use std::collections::BTreeMap;

use anyhow::Result;
use coracle_engine::{ContainerFilter, ContainerState, ContainerStatus, Engine};

use super::keep::{Kept, Tended};
use super::policy::{self, Past, Plan, Seen};
use crate::kube::container::Container;

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

    /// What a container has been through.
    pub fn seen(&self, name: &str, tended: &Tended) -> Seen {
        let memory = tended.containers.get(name);
        let mut past = self.latest(name).map_or(Past::NeverRun, past);
        if let Some(failure) = memory.and_then(|memory| memory.failure.as_ref()) {
            past = Past::Ended { code: CANNOT_START, at: failure.at };
        }
        Seen { past, backoff: memory.map(|memory| memory.backoff).unwrap_or_default() }
    }

    /// What to do now.
    pub fn decide(&self, kept: &Kept, tended: &Tended, stopping: bool, now: i64) -> Plan {
        let seen = |container: &Container| self.seen(&container.name, tended);
        let init: Vec<Seen> = kept.pod.init.iter().map(seen).collect();
        let containers: Vec<Seen> = kept.pod.containers.iter().map(seen).collect();
        policy::decide(kept.pod.restart, &init, &containers, stopping, now)
    }

    /// The exit code of the first container, in the order of the file, that failed; 0 if none did.
    pub fn outcome(&self, kept: &Kept, tended: &Tended) -> i32 {
        let code = |container: &Container| match self.seen(&container.name, tended).past {
            Past::Ended { code, .. } => code,
            _ => 0,
        };
        kept.pod.all_containers().map(code).find(|code| *code != 0).unwrap_or(0)
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
