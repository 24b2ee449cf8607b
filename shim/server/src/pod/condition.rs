//! A pod's conditions, as `kubectl describe` lists them: what is the case, and since when.
//!
//! What is the case follows from what is seen at any time; since when is kept in `tend.json` by whoever tends the pod,
//! who is there at each change.

use super::keep::{Held, Kept, Tended};
use super::observe::{Observed, kind};
use super::policy::{Kind, Past};
use crate::kube::container::Container;

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// `Ready` and so on.
    pub kind: &'static str,
    /// Whether it is the case.
    pub status: bool,
    /// Why not: one word; empty if it is.
    pub reason: &'static str,
    /// Why not: a sentence.
    pub message: String,
    /// Since when; 0 if nobody has noted it yet.
    pub since: i64,
}

/// The sandbox and its network are there.
const STARTABLE: &str = "PodReadyToStartContainers";
/// The init containers are done.
const INITIALIZED: &str = "Initialized";
/// Traffic may come.
const READY: &str = "Ready";
/// All containers are ready.
const CONTAINERS_READY: &str = "ContainersReady";
/// The pod has its machine.
const SCHEDULED: &str = "PodScheduled";

/// The conditions in the order of kubectl. `alive` is whether the sandbox is, `finished` whether the pod has its last
/// phase: the reason then is `PodCompleted` if it `succeeded`.
pub fn of(
    kept: &Kept,
    tended: &Tended,
    observed: &Observed,
    alive: bool,
    finished: Option<bool>,
    stopping: bool,
) -> Vec<Condition> {
    let incomplete = incomplete(kept, tended, observed);
    let unready = unready(kept, tended, observed);
    let condition = |kind, reason: &'static str, message: String| Condition {
        kind,
        status: reason.is_empty(),
        reason,
        message,
        since: 0,
    };
    let init = match incomplete.is_empty() {
        true => condition(INITIALIZED, "", String::new()),
        false => condition(INITIALIZED, "ContainersNotInitialized", told("with incomplete status", &incomplete)),
    };
    let ready = |kind| match finished {
        Some(true) => condition(kind, "PodCompleted", String::new()),
        Some(false) => condition(kind, "PodFailed", String::new()),
        None if unready.is_empty() && !stopping => condition(kind, "", String::new()),
        None => condition(kind, "ContainersNotReady", told("with unready status", &unready)),
    };
    let sandbox = condition(STARTABLE, if alive { "" } else { "SandboxNotReady" }, String::new());
    let mut all = vec![sandbox, init, ready(READY), ready(CONTAINERS_READY), condition(SCHEDULED, "", String::new())];
    for condition in &mut all {
        let held = tended.conditions.get(condition.kind);
        condition.since = held.filter(|held| held.status == condition.status).map_or(0, |held| held.since);
    }
    all
}

fn told(how: &str, names: &[&str]) -> String {
    match names.is_empty() {
        true => String::new(),
        false => format!("containers {how}: [{}]", names.join(" ")),
    }
}

/// The init containers that still hold up the others.
fn incomplete<'k>(kept: &'k Kept, tended: &Tended, observed: &Observed) -> Vec<&'k str> {
    let begun = kept.pod.containers.iter().any(|container| observed.latest(&container.name).is_some());
    let holds_up = |container: &&Container| {
        let seen = observed.seen(kept, container, tended);
        match seen.kind {
            Kind::Sidecar => !(seen.past == Past::Running && seen.started),
            _ => !matches!(seen.past, Past::Ended { code: 0, .. }),
        }
    };
    let names = kept.pod.init.iter().filter(|_| !begun).filter(holds_up);
    names.map(|container| container.name.as_str()).collect()
}

/// The containers and sidecars that are not ready.
pub fn unready<'k>(kept: &'k Kept, tended: &Tended, observed: &Observed) -> Vec<&'k str> {
    let counts = |container: &&Container| kind(&kept.pod, container) != Kind::Init;
    let unready = |container: &&Container| !observed.ready(kept, container, tended);
    let names = kept.pod.all_containers().filter(counts).filter(unready);
    names.map(|container| container.name.as_str()).collect()
}

/// Notes what has changed; whether anything has.
pub fn note(tended: &mut Tended, conditions: &[Condition], now: i64) -> bool {
    let mut changed = false;
    for condition in conditions.iter().filter(|condition| condition.since == 0) {
        tended.conditions.insert(condition.kind.to_owned(), Held { status: condition.status, since: now });
        changed = true;
    }
    changed
}
