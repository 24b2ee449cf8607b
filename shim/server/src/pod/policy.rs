//! When which container starts, when the pod is over, and what it is meanwhile: one pure function of what is seen.
//!
//! ```text
//!  init containers, one after another          containers, in the order of the file
//!  never run -> start                          never run -> start, unless an earlier one's postStart still runs
//!  running   -> wait                           running   -> leave it
//!  exited 0  -> the next one                   exited    -> restartPolicy: start again when the delay is over,
//!  exited !0 -> restartPolicy: start again,                 else it is done
//!               or the pod has Failed          all done  -> Succeeded, or Failed if one exited with another code than 0
//!
//!  sidecars (init containers with restartPolicy Always) stand among the init containers
//!  never run -> start       started (hook and startup probe done) -> the next one
//!  exited    -> start again, whatever the pod's policy, for as long as the pod is not over
//! ```
//!
//! A pod that is over (stopped, past its deadline, its containers done, an init container failed) is ended first: what
//! still runs of it is killed, and then it has its last phase. Sidecars do not count for that phase.
//!
//! The delay is kubelet's: none before the first restart, then 10 s, doubling up to 5 minutes, and none again for a
//! container that ran for 10 minutes.

use serde::{Deserialize, Serialize};

use crate::kube::pod::RestartPolicy;
use crate::time::SECOND;

#[cfg(test)]
mod tests;

/// The delay before the second restart.
const FIRST_DELAY: i64 = 10 * SECOND;
/// The longest delay.
const MAX_DELAY: i64 = 300 * SECOND;
/// Delays begin anew after this long without a restart.
const FORGET_AFTER: i64 = 2 * MAX_DELAY;

/// The phases of a pod, as in Kubernetes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Not all containers have been started once.
    Pending,
    /// At least one runs, or will again.
    Running,
    /// All ended with exit code 0 and none starts again.
    Succeeded,
    /// All ended, one of them with another code, and none starts again.
    Failed,
}

/// What a container has been through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Past {
    /// It was never started.
    NeverRun,
    /// It runs, or nobody can tell that it does not.
    Running,
    /// It ended, or could not be started.
    Ended {
        /// Its exit code.
        code: i32,
        /// When.
        at: i64,
    },
}

/// What a container is in its pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// Runs to its end before the others.
    Init,
    /// An init container that stays.
    Sidecar,
    /// One of `containers`.
    #[default]
    Main,
}

/// The restart delay of one container; it is kept beside the pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// Nanoseconds; 0 before the first restart.
    delay: i64,
    /// When it was last restarted.
    restarted_at: i64,
}

impl Backoff {
    fn forgotten(&self, ended_at: i64) -> bool {
        self.delay == 0 || ended_at - self.restarted_at > FORGET_AFTER
    }

    /// When a container that ended then may start again.
    pub fn due(&self, ended_at: i64) -> i64 {
        match self.forgotten(ended_at) {
            true => ended_at,
            false => ended_at.saturating_add(self.delay),
        }
    }

    /// The delay after a restart now.
    pub fn restarted(&self, ended_at: i64, now: i64) -> Backoff {
        let delay = match self.forgotten(ended_at) {
            true => FIRST_DELAY,
            false => (self.delay * 2).min(MAX_DELAY),
        };
        Backoff { delay, restarted_at: now }
    }
}

/// One container as it is seen now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// What it has been through.
    pub past: Past,
    /// Its restart delay.
    pub backoff: Backoff,
    /// What it is.
    pub kind: Kind,
    /// It ended, and its restart policy has it start again.
    pub again: bool,
    /// It has a postStart hook.
    pub hook: bool,
    /// Its postStart hook is done, or it has none: it counts as running.
    pub hooked: bool,
    /// Its startup probe has succeeded too, or it has none: what comes after it may start.
    pub started: bool,
    /// It was not even made, and is tried again then, whatever its restart policy.
    pub blocked: Option<i64>,
}

/// A pod as it is seen now.
#[derive(Debug, Clone, Copy)]
pub struct View<'v> {
    /// Its init containers and sidecars.
    pub init: &'v [Seen],
    /// Its containers.
    pub containers: &'v [Seen],
    /// The user's wish that nothing runs any more.
    pub stopping: bool,
    /// It has failed as a whole: nothing starts any more.
    pub doomed: bool,
    /// When it will have.
    pub deadline: Option<i64>,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The containers to start, by their index: init containers first, then the others.
    pub start: Vec<usize>,
    /// What runs is to be ended: the pod is over.
    pub end: bool,
    /// The deadline has passed: the pod is to be called doomed.
    pub exceeded: bool,
    /// When to look again even if nothing happens.
    pub wake_at: Option<i64>,
    /// The pod's phase.
    pub phase: Phase,
}

impl Plan {
    /// Whether nothing of the pod will ever run again.
    pub fn finished(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    fn phase(phase: Phase) -> Plan {
        Plan { start: Vec::new(), end: false, exceeded: false, wake_at: None, phase }
    }

    fn wake(&mut self, at: i64) {
        self.wake_at = Some(self.wake_at.map_or(at, |other| other.min(at)));
    }

    /// Starts a container again: now if its delay is over, else there is a time to wake. Whether it starts now.
    fn again(&mut self, index: usize, seen: &Seen, ended_at: i64, now: i64) -> bool {
        let due = seen.blocked.unwrap_or_else(|| seen.backoff.due(ended_at));
        match due <= now {
            true => self.start.push(index),
            false => self.wake(due),
        }
        due <= now
    }
}

/// Whether an ended container starts again. An init container has done its part once it succeeded.
pub fn restarts(policy: RestartPolicy, code: i32, kind: Kind) -> bool {
    match (kind, policy) {
        (Kind::Sidecar, _) => true,
        (_, RestartPolicy::Never) => false,
        (_, RestartPolicy::OnFailure) => code != 0,
        (kind, RestartPolicy::Always) => code != 0 || kind == Kind::Main,
    }
}

/// Decides what to do.
pub fn decide(view: &View<'_>, now: i64) -> Plan {
    let mut plan = decide_alive(view, now);
    if let Some(deadline) = view.deadline.filter(|_| !view.stopping && !view.doomed && !plan.finished()) {
        if deadline <= now {
            return Plan { exceeded: true, ..Plan::phase(plan.phase) };
        }
        plan.wake(deadline);
    }
    plan
}

fn decide_alive(view: &View<'_>, now: i64) -> Plan {
    if view.doomed {
        return over(view, Phase::Failed);
    }
    let done = |seen: &Seen| matches!(seen.past, Past::Ended { .. }) && !seen.again && seen.blocked.is_none();
    let all_done = !view.containers.is_empty() && view.containers.iter().all(done);
    if view.stopping || all_done {
        let well = view.containers.iter().all(|seen| matches!(seen.past, Past::Ended { code: 0, .. }));
        return over(view, if well { Phase::Succeeded } else { Phase::Failed });
    }
    // Once the containers were started, the init containers are history; their sidecars are not.
    if view.containers.iter().all(|seen| seen.past == Past::NeverRun) {
        match walk_init(view.init, now) {
            Walk::Failed => return over(view, Phase::Failed),
            Walk::Wait(plan) => return plan,
            Walk::Done(plan) => return decide_containers(plan, view, now),
        }
    }
    let mut plan = Plan::phase(Phase::Running);
    for (index, seen) in view.init.iter().enumerate().filter(|(_, seen)| seen.kind == Kind::Sidecar) {
        if let Past::Ended { at, .. } = seen.past {
            plan.again(index, seen, at, now);
        }
    }
    decide_containers(plan, view, now)
}

/// The end of a pod: what runs is ended, and then it has this phase.
fn over(view: &View<'_>, last: Phase) -> Plan {
    let runs = view.init.iter().chain(view.containers).any(|seen| seen.past == Past::Running);
    match runs {
        false => Plan::phase(last),
        true => Plan { end: true, ..Plan::phase(phase_of(view.containers)) },
    }
}

/// Where the init containers stand.
enum Walk {
    /// One of them has failed for good.
    Failed,
    /// The containers' turn has not come.
    Wait(Plan),
    /// It has; the plan may start sidecars again.
    Done(Plan),
}

fn walk_init(init: &[Seen], now: i64) -> Walk {
    let mut plan = Plan::phase(Phase::Pending);
    let last_begun = init.iter().rposition(|seen| seen.past != Past::NeverRun);
    for (index, seen) in init.iter().enumerate() {
        // A sidecar that ended after others had begun does not hold them up again.
        let passed = last_begun.is_some_and(|last| index < last);
        match (seen.kind, seen.past) {
            (_, Past::NeverRun) => {
                plan.start.push(index);
                return Walk::Wait(plan);
            }
            (_, Past::Ended { at, .. }) if seen.blocked.is_some() => {
                plan.again(index, seen, at, now);
                return Walk::Wait(plan);
            }
            (Kind::Sidecar, Past::Running) if seen.started || passed => {}
            (Kind::Sidecar, Past::Ended { at, .. }) => {
                plan.again(index, seen, at, now);
                if !passed {
                    return Walk::Wait(plan);
                }
            }
            (_, Past::Running) => return Walk::Wait(plan),
            (_, Past::Ended { code: 0, .. }) => {}
            (_, Past::Ended { at, .. }) if seen.again => {
                plan.again(index, seen, at, now);
                return Walk::Wait(plan);
            }
            (_, Past::Ended { .. }) => return Walk::Failed,
        }
    }
    Walk::Done(plan)
}

fn decide_containers(mut plan: Plan, view: &View<'_>, now: i64) -> Plan {
    plan.phase = phase_of(view.containers);
    // kubelet starts a container only after the postStart of the one before it.
    let mut held = false;
    for (index, seen) in view.containers.iter().enumerate() {
        let index = view.init.len() + index;
        let starts = match seen.past {
            Past::Running => {
                held |= !seen.hooked;
                false
            }
            _ if held => false,
            Past::NeverRun => {
                plan.start.push(index);
                true
            }
            Past::Ended { at, .. } if seen.again || seen.blocked.is_some() => plan.again(index, seen, at, now),
            Past::Ended { .. } => false,
        };
        held |= starts && seen.hook;
    }
    plan
}

/// The phase of a pod that is not over.
fn phase_of(containers: &[Seen]) -> Phase {
    let waits = |seen: &Seen| match seen.past {
        Past::NeverRun => true,
        Past::Running => !seen.hooked,
        Past::Ended { .. } => seen.blocked.is_some(),
    };
    match containers.iter().any(waits) {
        true => Phase::Pending,
        false => Phase::Running,
    }
}
