//! When which container starts, and what the pod is meanwhile: one pure function of what is seen.
//!
//! ```text
//!  init containers, one after another          containers, all at once
//!  never run -> start                          never run -> start
//!  running   -> wait                           running   -> leave it
//!  exited 0  -> the next one                   exited    -> restartPolicy: start again when the delay is over,
//!  exited !0 -> restartPolicy: start again,                 else it is done
//!               or the pod has Failed          all done  -> Succeeded, or Failed if one exited with another code than 0
//! ```
//!
//! The delay is kubelet's: none before the first restart, then 10 s, doubling up to 5 minutes, and none again for a
//! container that ran for 10 minutes.

use serde::{Deserialize, Serialize};

use crate::kube::pod::RestartPolicy;
use crate::time::SECOND;

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
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The containers to start, by their index: init containers first, then the others.
    pub start: Vec<usize>,
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
        Plan { start: Vec::new(), wake_at: None, phase }
    }
}

/// Whether an ended container starts again. An init container has done its part once it succeeded.
pub fn restarts(policy: RestartPolicy, code: i32, init: bool) -> bool {
    match policy {
        RestartPolicy::Never => false,
        RestartPolicy::OnFailure => code != 0,
        RestartPolicy::Always => code != 0 || !init,
    }
}

/// Decides what to do; `stopping` is the user's wish that nothing starts any more.
pub fn decide(policy: RestartPolicy, init: &[Seen], containers: &[Seen], stopping: bool, now: i64) -> Plan {
    if stopping {
        return decide_stopping(init, containers);
    }
    // Once the containers were started, the init containers are history.
    if containers.iter().all(|seen| seen.past == Past::NeverRun)
        && let Some(plan) = decide_init(policy, init, now)
    {
        return plan;
    }
    decide_containers(policy, init.len(), containers, now)
}

/// The plan while init containers are not done; None once they are.
fn decide_init(policy: RestartPolicy, init: &[Seen], now: i64) -> Option<Plan> {
    for (index, seen) in init.iter().enumerate() {
        let mut plan = Plan::phase(Phase::Pending);
        match seen.past {
            Past::Ended { code: 0, .. } => continue,
            Past::Running => {}
            Past::NeverRun => plan.start.push(index),
            Past::Ended { code, at } if restarts(policy, code, true) => plan.again(index, seen, at, now),
            Past::Ended { .. } => plan.phase = Phase::Failed,
        }
        return Some(plan);
    }
    None
}

fn decide_containers(policy: RestartPolicy, first: usize, containers: &[Seen], now: i64) -> Plan {
    let mut plan = Plan::phase(Phase::Pending);
    let (mut done, mut failed) = (true, false);
    for (index, seen) in (first..).zip(containers) {
        match seen.past {
            Past::NeverRun => {
                plan.start.push(index);
                done = false;
            }
            Past::Running => done = false,
            Past::Ended { code, at } if restarts(policy, code, false) => {
                plan.again(index, seen, at, now);
                done = false;
            }
            Past::Ended { code, .. } => failed |= code != 0,
        }
    }
    plan.phase = match (done, failed) {
        (true, true) => Phase::Failed,
        (true, false) => Phase::Succeeded,
        (false, _) if containers.iter().any(|seen| seen.past == Past::NeverRun) => Phase::Pending,
        (false, _) => Phase::Running,
    };
    plan
}

fn decide_stopping(init: &[Seen], containers: &[Seen]) -> Plan {
    let all = || init.iter().chain(containers);
    if all().any(|seen| seen.past == Past::Running) {
        return Plan::phase(Phase::Running);
    }
    let well = containers.iter().all(|seen| matches!(seen.past, Past::Ended { code: 0, .. }));
    Plan::phase(if well { Phase::Succeeded } else { Phase::Failed })
}

impl Plan {
    /// Starts a container again: now if its delay is over, else there is a time to wake.
    fn again(&mut self, index: usize, seen: &Seen, ended_at: i64, now: i64) {
        let due = seen.backoff.due(ended_at);
        match due <= now {
            true => self.start.push(index),
            false => self.wake_at = Some(self.wake_at.map_or(due, |at| at.min(due))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seen(past: Past) -> Seen {
        Seen { past, backoff: Backoff::default() }
    }

    fn ended(code: i32) -> Seen {
        seen(Past::Ended { code, at: 0 })
    }

    const NEW: Past = Past::NeverRun;
    const RUNS: Past = Past::Running;

    #[test]
    fn init_containers_run_one_after_another_before_the_others() {
        let policy = RestartPolicy::Always;
        let plan = |init: &[Seen]| decide(policy, init, &[seen(NEW), seen(NEW)], false, 0);
        assert_eq!(plan(&[seen(NEW), seen(NEW)]).start, [0]);
        assert_eq!(plan(&[seen(RUNS), seen(NEW)]).start, [0usize; 0]);
        assert_eq!(plan(&[ended(0), seen(NEW)]).start, [1]);
        assert_eq!(plan(&[ended(0), ended(0)]).start, [2, 3]);
        assert_eq!(plan(&[ended(0), ended(1)]).start, [1], "it starts again");
        assert_eq!(plan(&[ended(0), seen(RUNS)]).phase, Phase::Pending);
    }

    #[test]
    fn a_failed_init_container_fails_a_pod_that_never_restarts() {
        let plan = decide(RestartPolicy::Never, &[ended(3)], &[seen(NEW)], false, 0);
        assert_eq!((plan.phase, plan.start.len()), (Phase::Failed, 0));
    }

    #[test]
    fn the_policy_says_which_exit_codes_start_again() {
        let starts = |policy, code| decide(policy, &[], &[ended(code)], false, 0).start.len();
        assert_eq!((starts(RestartPolicy::Always, 0), starts(RestartPolicy::Always, 1)), (1, 1));
        assert_eq!((starts(RestartPolicy::OnFailure, 0), starts(RestartPolicy::OnFailure, 1)), (0, 1));
        assert_eq!((starts(RestartPolicy::Never, 0), starts(RestartPolicy::Never, 1)), (0, 0));
    }

    #[test]
    fn phases_are_those_of_kubernetes() {
        let phase = |containers: &[Seen]| decide(RestartPolicy::Never, &[], containers, false, 0).phase;
        assert_eq!(phase(&[ended(0), ended(0)]), Phase::Succeeded);
        assert_eq!(phase(&[ended(0), ended(1)]), Phase::Failed);
        assert_eq!(phase(&[ended(1), seen(RUNS)]), Phase::Running);
        assert_eq!(phase(&[seen(RUNS), seen(NEW)]), Phase::Pending);
    }

    #[test]
    fn delays_double_up_to_five_minutes_and_are_forgotten_after_ten() {
        let mut backoff = Backoff::default();
        let (mut now, mut delays) = (0, Vec::new());
        for _ in 0..8 {
            let due = backoff.due(now);
            delays.push((due - now) / SECOND);
            backoff = backoff.restarted(now, due);
            now = due + SECOND;
        }
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
        let later = now + FORGET_AFTER + 1;
        assert_eq!(backoff.due(later), later);
        assert_eq!(backoff.restarted(later, later).due(later + 1), later + 1 + FIRST_DELAY);
    }

    #[test]
    fn a_container_waits_for_its_delay() {
        let backoff = Backoff::default().restarted(0, 0);
        let waiting = Seen { past: Past::Ended { code: 1, at: 5 }, backoff };
        let plan = decide(RestartPolicy::Always, &[], &[waiting], false, 6);
        assert_eq!((plan.start.len(), plan.wake_at, plan.phase), (0, Some(5 + FIRST_DELAY), Phase::Running));
        assert_eq!(decide(RestartPolicy::Always, &[], &[waiting], false, 5 + FIRST_DELAY).start, [0]);
    }

    fn any_seen() -> impl Strategy<Value = Seen> {
        let past = prop_oneof![
            Just(NEW),
            Just(RUNS),
            (0i32..3, 0i64..1_000_000_000_000).prop_map(|(code, at)| Past::Ended { code, at })
        ];
        (past, 0i64..600, 0i64..1_000_000_000_000)
            .prop_map(|(past, delay, at)| Seen { past, backoff: Backoff { delay: delay * SECOND, restarted_at: at } })
    }

    proptest! {
        #[test]
        fn what_runs_is_never_started_and_what_is_stopping_never_starts(
            init in prop::collection::vec(any_seen(), 0..4),
            containers in prop::collection::vec(any_seen(), 1..4),
            stopping: bool,
            policy in prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)],
            now in 0i64..2_000_000_000_000,
        ) {
            let plan = decide(policy, &init, &containers, stopping, now);
            let all: Vec<Seen> = init.iter().chain(&containers).copied().collect();
            prop_assert!(plan.start.iter().all(|index| all[*index].past != Past::Running));
            prop_assert!(!stopping || plan.start.is_empty());
            prop_assert!(!plan.finished() || (plan.start.is_empty() && plan.wake_at.is_none()));
            prop_assert!(plan.wake_at.is_none_or(|at| at > now));
            // Nothing is forgotten: an unfinished pod runs, starts something, or knows when to look again.
            let alive = all.iter().any(|seen| seen.past == Past::Running) || !plan.start.is_empty() || plan.wake_at.is_some();
            prop_assert!(plan.finished() || alive);
            // At most one init container at a time, and never beside the others.
            let starts_init = plan.start.iter().filter(|index| **index < init.len()).count();
            prop_assert!(starts_init <= 1 && (starts_init == 0 || plan.start.len() == 1));
        }
    }
}
