//! A pod as `coracle ps` shows it, in kubectl's words.

use std::collections::BTreeMap;

use coracle_engine::{ContainerState, ContainerStatus, Engine, Paths, SandboxState, SandboxStatus};
use serde::Serialize;

use anyhow::Result;

use super::keep::{Folder, Kept, Tended};
use super::observe::Observed;
use super::policy::{Kind, Past, Phase};
use super::{condition, message};
use crate::kube::container::Container;
use crate::time;

/// A pod.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodView {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The id of its sandbox.
    pub id: String,
    /// Its uid.
    pub uid: String,
    /// Its phase.
    pub phase: Phase,
    /// The phase, or what is more telling: kubectl's STATUS.
    pub status: String,
    /// More about that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// How many of its containers run.
    pub ready: usize,
    /// How often its containers were started again.
    pub restarts: u32,
    /// When one last was: RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_restart_at: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What is true of it.
    pub conditions: Vec<Condition>,
    /// Its addresses.
    pub ips: Vec<String>,
    /// When it was made: RFC 3339.
    pub created_at: String,
    /// Its containers, the init containers first.
    pub containers: Vec<ContainerView>,
    #[serde(skip)]
    /// When it was made, in nanoseconds.
    pub created: i64,
}

/// Something that is true of a pod, or not.
#[derive(Debug, Clone, Serialize)]
pub struct Condition {
    /// `Ready` ...
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Whether it is.
    pub status: bool,
    /// Why not, in a word.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reason: &'static str,
    /// Why not, in a sentence.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Since when: RFC 3339.
    #[serde(rename = "lastTransitionTime", skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

impl From<condition::Condition> for Condition {
    fn from(condition: condition::Condition) -> Condition {
        let condition::Condition { kind, status, reason, message, since } = condition;
        Condition { kind, status, reason, message, since: Some(since).filter(|at| *at > 0).map(time::rfc3339) }
    }
}

/// A container of a pod.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerView {
    /// Its name.
    pub name: String,
    /// Whether it is an init container.
    pub init: bool,
    /// Its id, once it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The image as the user wrote it.
    pub image: String,
    /// The image's id, once the container was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_id: Option<String>,
    /// `waiting`, `running` or `terminated`.
    pub state: &'static str,
    /// Whether it serves; for an init container, whether it has done its part.
    pub ready: bool,
    /// How the incarnation before this one ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<Last>,
    /// Why it waits or ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// More about that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Its exit code, once it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// How often it was started again.
    pub restarts: u32,
    /// When it was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
}

/// How an incarnation of a container ended.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Last {
    /// Why, in a word.
    pub reason: String,
    /// More about that.
    pub message: String,
    /// Its exit code.
    pub exit_code: i32,
    /// When it was started.
    pub started_at: Option<String>,
    /// When it ended.
    pub finished_at: Option<String>,
}

/// All that is known of a pod.
struct Facts<'f> {
    kept: &'f Kept,
    tended: &'f Tended,
    observed: &'f Observed,
    paths: &'f Paths,
    stopping: bool,
}

impl PodView {
    /// Looks at one pod.
    pub async fn of(engine: &Engine, sandbox: &SandboxStatus) -> Result<PodView> {
        let folder = Folder::of(engine.paths(), &sandbox.id);
        let observed = Observed::look(engine, &sandbox.id).await?;
        let Some(kept) = folder.read_pod()? else { return Ok(PodView::foreign(sandbox, &observed)) };
        let tended = folder.read_tended()?;
        let stopping = folder.is_stopping();
        let mut plan = observed.decide(&kept, &tended, stopping, time::now());
        if sandbox.state != SandboxState::Ready && !plan.finished() {
            // Nothing can run or start again without a sandbox: what was not done is lost.
            plan.phase = Phase::Failed;
        }
        let facts = Facts { kept: &kept, tended: &tended, observed: &observed, paths: engine.paths(), stopping };
        let init = kept.pod.init.iter().map(|container| facts.container(container, true));
        let containers: Vec<ContainerView> =
            init.chain(kept.pod.containers.iter().map(|container| facts.container(container, false))).collect();
        let status = facts.status(plan.phase, &containers);
        let mut view =
            PodView { phase: plan.phase, status, containers, ..PodView::foreign(sandbox, &observed) }.counted();
        let finished = plan.finished().then_some(plan.phase == Phase::Succeeded);
        let alive = sandbox.state == SandboxState::Ready;
        let conditions = condition::of(&kept, &tended, &observed, alive, finished, stopping || !alive);
        view.conditions = conditions.into_iter().map(Condition::from).collect();
        Ok(view)
    }

    /// A sandbox that another client made: its phase is all that can be told.
    fn foreign(sandbox: &SandboxStatus, observed: &Observed) -> PodView {
        let phase = match sandbox.state {
            SandboxState::Creating => Phase::Pending,
            SandboxState::Ready => Phase::Running,
            _ => Phase::Failed,
        };
        let view = PodView {
            name: sandbox.config.name.clone(),
            namespace: sandbox.config.namespace.clone(),
            id: sandbox.id.clone(),
            uid: sandbox.config.uid.clone(),
            phase,
            status: format!("Sandbox:{}", sandbox.state.as_str()),
            message: None,
            ready: 0,
            restarts: 0,
            last_restart_at: None,
            labels: sandbox.config.labels.clone(),
            conditions: Vec::new(),
            ips: sandbox.ips.iter().map(ToString::to_string).collect(),
            created_at: time::rfc3339(sandbox.created_at),
            containers: observed.all_latest().map(ContainerView::recorded).collect(),
            created: sandbox.created_at,
        };
        view.counted()
    }

    fn counted(self) -> PodView {
        let ready = self.containers.iter().filter(|container| !container.init && container.ready).count();
        let restarts = self.containers.iter().map(|container| container.restarts).sum();
        let restarted = self.containers.iter().filter(|container| container.restarts > 0);
        let last_restart_at = restarted.filter_map(|container| container.last.as_ref()?.finished_at.clone()).max();
        let conditions = self.conditions();
        PodView { ready, restarts, last_restart_at, conditions, ..self }
    }

    /// kubelet's, in the order in which they come true.
    fn conditions(&self) -> Vec<Condition> {
        let of = |init: bool| self.containers.iter().filter(move |container| container.init == init);
        let began = of(false).any(|container| container.id.is_some());
        let initialized = began || of(true).all(|container| container.ready);
        let ready = self.phase == Phase::Running && initialized && of(false).all(|container| container.ready);
        let condition = |kind, status| Condition { kind, status, reason: "", message: String::new(), since: None };
        vec![
            condition("PodScheduled", true),
            condition("Initialized", initialized),
            condition("ContainersReady", ready),
            condition("Ready", ready),
        ]
    }

    /// How many containers there are beside the init containers.
    pub fn total(&self) -> usize {
        self.containers.iter().filter(|container| !container.init).count()
    }
}

impl ContainerView {
    fn recorded(status: &ContainerStatus) -> ContainerView {
        let stamp = |at: i64| Some(at).filter(|at| *at > 0).map(time::rfc3339);
        let exit = status.exit.as_ref();
        let state = match status.state {
            ContainerState::Running | ContainerState::Unknown => "running",
            ContainerState::Exited => "terminated",
            _ => "waiting",
        };
        ContainerView {
            name: status.config.name.clone(),
            init: false,
            id: Some(status.id.clone()),
            image: status.config.image_ref.clone(),
            image_id: Some(status.image_id.clone()).filter(|id| !id.is_empty()),
            state,
            ready: state == "running",
            last: None,
            reason: exit.map(|exit| exit.reason.clone()).filter(|reason| !reason.is_empty()),
            message: exit.map(|exit| exit.message.clone()).filter(|message| !message.is_empty()),
            exit_code: exit.map(|exit| exit.code),
            restarts: status.config.attempt,
            started_at: stamp(status.started_at),
            finished_at: exit.and_then(|exit| stamp(exit.finished_at)),
        }
    }
}

impl Facts<'_> {
    fn container(&self, container: &Container, init: bool) -> ContainerView {
        let name = &container.name;
        let mut view = match self.observed.latest(name) {
            Some(status) => ContainerView { init, ..ContainerView::recorded(status) },
            None => ContainerView::waiting(container, init),
        };
        let memory = self.tended.containers.get(name);
        if let Some(failure) = memory.and_then(|memory| memory.failure.as_ref()) {
            view.state = "waiting";
            let reason = failure.reason.as_str();
            view.reason = Some(if reason.is_empty() { "StartError" } else { reason }.into());
            view.message = Some(failure.message.clone());
        } else if !self.stopping && self.backs_off(container) {
            view.state = "waiting";
            view.reason = Some("CrashLoopBackOff".into());
        }
        let seen = self.observed.seen(self.kept, container, self.tended);
        if view.state == "running" && !seen.hooked {
            // Its postStart hook holds it back.
            view.state = "waiting";
            view.reason = Some(if init { "PodInitializing" } else { "ContainerCreating" }.into());
        }
        if let Some(status) = self.observed.latest(name).filter(|status| status.exit.is_some()) {
            let message = message::of(self.paths, &self.kept.pod, container, status);
            view.message =
                Some(message).filter(|message| !message.is_empty() && view.state == "terminated").or(view.message);
        }
        view.ready = match seen.kind {
            Kind::Init => view.state == "terminated" && view.exit_code == Some(0),
            _ => self.observed.ready(self.kept, container, self.tended),
        };
        // What waits to be started again tells how it ended as its last state, as the one before a running one does.
        let earlier = self.observed.history(name);
        view.last = match view.state {
            "waiting" => self.observed.latest(name).and_then(Last::of),
            _ => earlier.and_then(|history| history.earlier.iter().max_by_key(|s| s.config.attempt).and_then(Last::of)),
        };
        view
    }

    /// Whether a container ended and waits for its delay.
    fn backs_off(&self, container: &Container) -> bool {
        let seen = self.observed.seen(self.kept, container, self.tended);
        let Past::Ended { at, .. } = seen.past else { return false };
        seen.again && seen.backoff.due(at) > time::now()
    }

    /// kubectl's STATUS column.
    fn status(&self, phase: Phase, containers: &[ContainerView]) -> String {
        let finished = matches!(phase, Phase::Succeeded | Phase::Failed);
        match (self.stopping, finished) {
            (true, true) => return "Stopped".into(),
            (true, false) => return "Terminating".into(),
            _ => {}
        }
        if let Some(status) = self.init_status(containers) {
            return status;
        }
        let plain: Vec<&ContainerView> = containers.iter().filter(|container| !container.init).collect();
        let telling = plain
            .iter()
            .filter(|container| container.state != "running")
            .find_map(|container| container.reason.as_deref().filter(|reason| *reason != "Completed"));
        match (telling, phase) {
            (Some(reason), _) => reason.to_owned(),
            (None, Phase::Succeeded) => "Completed".into(),
            (None, Phase::Failed) if self.tended.over.is_some() => {
                self.tended.over.as_ref().map(|over| over.reason.clone()).unwrap_or_default()
            }
            (None, phase) => format!("{phase:?}"),
        }
    }

    /// `Init:1/2`, `Init:Error` ... until the init containers are done.
    fn init_status(&self, containers: &[ContainerView]) -> Option<String> {
        let init: Vec<&ContainerView> = containers.iter().filter(|container| container.init).collect();
        let others_began = containers.iter().any(|container| !container.init && container.id.is_some());
        let pending = init.iter().find(|container| !container.ready)?;
        if others_began {
            return None;
        }
        let done = init.iter().filter(|container| container.ready).count();
        match (pending.state, pending.reason.as_deref()) {
            ("waiting" | "terminated", Some(reason)) => Some(format!("Init:{reason}")),
            _ => Some(format!("Init:{done}/{}", init.len())),
        }
    }
}

impl Last {
    fn of(status: &ContainerStatus) -> Option<Last> {
        let exit = status.exit.as_ref()?;
        let stamp = |at: i64| Some(at).filter(|at| *at > 0).map(time::rfc3339);
        Some(Last {
            reason: exit.reason.clone(),
            message: exit.message.clone(),
            exit_code: exit.code,
            started_at: stamp(status.started_at),
            finished_at: stamp(exit.finished_at),
        })
    }
}

impl ContainerView {
    fn waiting(container: &Container, init: bool) -> ContainerView {
        ContainerView {
            name: container.name.clone(),
            init,
            id: None,
            image: container.image.clone(),
            image_id: None,
            state: "waiting",
            ready: false,
            last: None,
            reason: None,
            message: None,
            exit_code: None,
            restarts: 0,
            started_at: None,
            finished_at: None,
        }
    }
}
