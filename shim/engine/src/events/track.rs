//! From states to events: what is new in a pod, given what was told of it. Pure.

use std::sync::Arc;

use super::journal::{AllTold, Names, Told};
use super::{Event, EventKind, PodView};
use crate::status::{ContainerState, SandboxState};
use crate::types::{ContainerStatus, SandboxStatus};

/// How far a life has come, and whether it ever ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stage {
    kind: EventKind,
    ran: bool,
}

fn container_stage(status: &ContainerStatus, told: Option<EventKind>) -> Option<Stage> {
    let ran = status.started_at > 0;
    match status.state {
        ContainerState::Creating => None,
        ContainerState::Created => Some(Stage { kind: EventKind::Created, ran: false }),
        ContainerState::Running => Some(Stage { kind: EventKind::Started, ran: true }),
        ContainerState::Exited => Some(Stage { kind: EventKind::Stopped, ran }),
        // It was stopped before that was written; of one that never ran only its end will be told.
        ContainerState::Removing if ran => Some(Stage { kind: EventKind::Stopped, ran }),
        ContainerState::Removing | ContainerState::Unknown => told.map(|kind| Stage { kind, ran }),
    }
}

fn sandbox_stage(status: &SandboxStatus, told: Option<EventKind>) -> Option<Stage> {
    match status.state {
        SandboxState::Creating => None,
        // A sandbox that is made runs.
        SandboxState::Ready | SandboxState::Stopping => Some(Stage { kind: EventKind::Started, ran: true }),
        SandboxState::NotReady => Some(Stage { kind: EventKind::Stopped, ran: true }),
        // A creation that failed goes the same way and was never told.
        SandboxState::Removing => told.map(|_| Stage { kind: EventKind::Stopped, ran: true }),
    }
}

/// The steps from what was told to where it is.
fn steps(told: Option<EventKind>, stage: Stage) -> Vec<EventKind> {
    let all = [EventKind::Created, EventKind::Started, EventKind::Stopped, EventKind::Deleted];
    let new = all.into_iter().filter(|kind| told.is_none_or(|told| *kind > told) && *kind <= stage.kind);
    new.filter(|kind| match kind {
        EventKind::Started => stage.ran,
        // What never ran and is removed did not stop.
        EventKind::Stopped => stage.ran || stage.kind == EventKind::Stopped,
        _ => true,
    })
    .collect()
}

/// What is new in a pod that is there, its sandbox first while it comes and last when it goes. `folders` are those of its
/// containers: one without its record is not gone, but just being removed, or damaged.
pub(super) fn news(all: &mut AllTold, pod: &Arc<PodView>, folders: &[String], at: impl Fn() -> i64) -> Vec<Event> {
    let sandbox = &pod.sandbox;
    let mut events = Vec::new();
    let names = || Some(Names::of(&sandbox.config));
    let stage = sandbox_stage(sandbox, all.get(&sandbox.id).map(|told| told.kind));
    let begun = stage.map(|stage| Stage { kind: stage.kind.min(EventKind::Started), ..stage });
    advance(all, &mut events, &sandbox.id, pod, begun, &names, &at);
    for container in &pod.containers {
        let stage = container_stage(container, all.get(&container.id).map(|told| told.kind));
        advance(all, &mut events, &container.id, pod, stage, &|| None, &at);
    }
    let mut gone: Vec<String> =
        all.iter().filter(|(_, told)| told.pod == sandbox.id).map(|(id, _)| id.clone()).collect();
    gone.retain(|id| *id != sandbox.id && !pod.containers.iter().any(|c| c.id == *id) && !folders.contains(id));
    gone.sort_unstable();
    for id in gone {
        end(all, &mut events, &id, pod, &at);
    }
    advance(all, &mut events, &sandbox.id, pod, stage, &names, &at);
    events
}

/// What is new of a pod that is gone.
pub(super) fn farewell(all: &mut AllTold, pod: &str, at: impl Fn() -> i64) -> Vec<Event> {
    let mut ids: Vec<String> = all.iter().filter(|(_, told)| told.pod == pod).map(|(id, _)| id.clone()).collect();
    // The sandbox last.
    ids.sort_unstable_by_key(|id| (id == pod, id.clone()));
    let config = all.get(pod).and_then(|told| told.names.as_ref()).map(Names::config).unwrap_or_default();
    let sandbox = SandboxStatus {
        id: pod.to_owned(),
        config,
        state: SandboxState::NotReady,
        created_at: 0,
        ips: Vec::new(),
        notes: Vec::new(),
        supervisor: None,
    };
    let view = Arc::new(PodView { sandbox, containers: Vec::new() });
    let mut events = Vec::new();
    for id in ids {
        end(all, &mut events, &id, &view, &at);
    }
    events
}

fn advance(
    all: &mut AllTold,
    events: &mut Vec<Event>,
    id: &str,
    pod: &Arc<PodView>,
    stage: Option<Stage>,
    names: &dyn Fn() -> Option<Names>,
    at: &impl Fn() -> i64,
) {
    let Some(stage) = stage else { return };
    for kind in steps(all.get(id).map(|told| told.kind), stage) {
        let sandbox_id = pod.sandbox.id.clone();
        events.push(Event { id: id.into(), sandbox_id: sandbox_id.clone(), kind, at: at(), pod: pod.clone() });
        all.insert(id.into(), Told { pod: sandbox_id, kind, names: names() });
    }
}

fn end(all: &mut AllTold, events: &mut Vec<Event>, id: &str, pod: &Arc<PodView>, at: &impl Fn() -> i64) {
    let Some(told) = all.remove(id) else { return };
    let ran = told.kind >= EventKind::Started;
    for kind in steps(Some(told.kind), Stage { kind: EventKind::Deleted, ran }) {
        let sandbox_id = pod.sandbox.id.clone();
        events.push(Event { id: id.into(), sandbox_id, kind, at: at(), pod: pod.clone() });
    }
}
