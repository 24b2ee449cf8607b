//! What is decided of pods, case by case, and for any pod that there may be.

use proptest::prelude::*;

use super::*;

const NEW: Past = Past::NeverRun;
const RUNS: Past = Past::Running;

fn main(past: Past) -> Seen {
    let again = matches!(past, Past::Ended { .. });
    Seen {
        past,
        backoff: Backoff::default(),
        kind: Kind::Main,
        again,
        hook: false,
        hooked: true,
        started: true,
        blocked: None,
    }
}

fn init(past: Past) -> Seen {
    let again = matches!(past, Past::Ended { code, .. } if code != 0);
    Seen { kind: Kind::Init, again, ..main(past) }
}

fn sidecar(past: Past) -> Seen {
    Seen { kind: Kind::Sidecar, ..main(past) }
}

fn ended(code: i32) -> Past {
    Past::Ended { code, at: 0 }
}

fn for_good(seen: Seen) -> Seen {
    Seen { again: false, ..seen }
}

fn view<'v>(init: &'v [Seen], containers: &'v [Seen]) -> View<'v> {
    View { init, containers, stopping: false, doomed: false, deadline: None }
}

fn plan(init: &[Seen], containers: &[Seen]) -> Plan {
    decide(&view(init, containers), 0)
}

#[test]
fn init_containers_run_one_after_another_before_the_others() {
    let plan = |init: &[Seen]| plan(init, &[main(NEW), main(NEW)]);
    assert_eq!(plan(&[init(NEW), init(NEW)]).start, [0]);
    assert_eq!(plan(&[init(RUNS), init(NEW)]).start, [0usize; 0]);
    assert_eq!(plan(&[init(ended(0)), init(NEW)]).start, [1]);
    assert_eq!(plan(&[init(ended(0)), init(ended(0))]).start, [2, 3]);
    assert_eq!(plan(&[init(ended(0)), init(ended(1))]).start, [1], "it starts again");
    assert_eq!(plan(&[init(ended(0)), init(RUNS)]).phase, Phase::Pending);
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts_and_ends_its_sidecars() {
    let failed = plan(&[for_good(init(ended(3)))], &[main(NEW)]);
    assert_eq!((failed.phase, failed.start.len(), failed.end), (Phase::Failed, 0, false));
    let failed = plan(&[sidecar(RUNS), for_good(init(ended(3)))], &[main(NEW)]);
    assert_eq!((failed.phase, failed.start.len(), failed.end), (Phase::Pending, 0, true));
}

#[test]
fn the_policy_says_which_exit_codes_start_again() {
    let starts = |policy, kind| [restarts(policy, 0, kind), restarts(policy, 1, kind)];
    assert_eq!(starts(RestartPolicy::Always, Kind::Main), [true, true]);
    assert_eq!(starts(RestartPolicy::OnFailure, Kind::Main), [false, true]);
    assert_eq!(starts(RestartPolicy::Never, Kind::Main), [false, false]);
    assert_eq!(starts(RestartPolicy::Always, Kind::Init), [false, true]);
    assert_eq!(starts(RestartPolicy::Never, Kind::Sidecar), [true, true]);
}

#[test]
fn phases_are_those_of_kubernetes() {
    let phase = |containers: &[Seen]| plan(&[], containers).phase;
    assert_eq!(phase(&[for_good(main(ended(0))), for_good(main(ended(0)))]), Phase::Succeeded);
    assert_eq!(phase(&[for_good(main(ended(0))), for_good(main(ended(1)))]), Phase::Failed);
    assert_eq!(phase(&[for_good(main(ended(1))), main(RUNS)]), Phase::Running);
    assert_eq!(phase(&[main(RUNS), main(NEW)]), Phase::Pending);
    assert_eq!(phase(&[Seen { hooked: false, started: false, ..main(RUNS) }]), Phase::Pending, "held by its postStart");
}

#[test]
fn a_sidecar_lets_the_next_one_start_once_it_has_started() {
    let waiting = Seen { started: false, ..sidecar(RUNS) };
    assert_eq!(plan(&[sidecar(NEW), init(NEW)], &[main(NEW)]).start, [0]);
    assert_eq!(plan(&[waiting, init(NEW)], &[main(NEW)]).start, [0usize; 0]);
    assert_eq!(plan(&[sidecar(RUNS), init(NEW)], &[main(NEW)]).start, [1]);
    assert_eq!(plan(&[sidecar(RUNS), init(ended(0))], &[main(NEW)]).start, [2]);
    assert_eq!(plan(&[sidecar(ended(1)), init(RUNS)], &[main(NEW)]).start, [0], "it starts again beside the next");
    assert_eq!(plan(&[sidecar(ended(1)), init(NEW)], &[main(NEW)]).start, [0], "and before it");
}

#[test]
fn sidecars_start_again_while_the_pod_runs_and_never_keep_it_from_ending() {
    assert_eq!(plan(&[sidecar(ended(0))], &[main(RUNS)]).start, [0]);
    let done = for_good(main(ended(0)));
    let over = plan(&[sidecar(RUNS)], &[done]);
    assert_eq!((over.phase, over.end, over.start.len()), (Phase::Running, true, 0));
    assert_eq!(plan(&[sidecar(ended(137))], &[done]).phase, Phase::Succeeded);
}

#[test]
fn a_post_start_hook_holds_up_the_containers_after_it() {
    let hook = |seen| Seen { hook: true, ..seen };
    assert_eq!(plan(&[], &[hook(main(NEW)), main(NEW)]).start, [0]);
    let running = Seen { hooked: false, started: false, ..hook(main(RUNS)) };
    assert_eq!(plan(&[], &[running, main(NEW)]).start, [0usize; 0]);
    assert_eq!(plan(&[], &[hook(main(RUNS)), main(NEW)]).start, [1]);
}

#[test]
fn a_pod_past_its_deadline_is_doomed_and_then_failed() {
    let containers = [main(RUNS)];
    let pod = View { deadline: Some(10), ..view(&[], &containers) };
    assert_eq!(decide(&pod, 9).wake_at, Some(10));
    assert!(decide(&pod, 10).exceeded);
    let doomed = View { doomed: true, ..pod };
    assert!(decide(&doomed, 10).end);
    let containers = [main(ended(0))];
    let gone = View { containers: &containers, ..doomed };
    assert_eq!(decide(&gone, 10).phase, Phase::Failed);
    let done = [for_good(main(ended(0)))];
    let in_time = View { containers: &done, doomed: false, ..pod };
    assert_eq!(decide(&in_time, 11).phase, Phase::Succeeded, "what is done cannot be late");
}

#[test]
fn what_could_not_be_made_is_tried_again_whatever_the_policy() {
    let blocked = Seen { blocked: Some(0), again: false, ..main(ended(128)) };
    let first = plan(&[], &[blocked]);
    assert_eq!((first.start.as_slice(), first.phase), (&[0usize][..], Phase::Pending));
    let later = Seen { blocked: Some(FIRST_DELAY), ..blocked };
    assert_eq!(plan(&[], &[later]).wake_at, Some(FIRST_DELAY));
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
    let waiting = [Seen { backoff, ..main(Past::Ended { code: 1, at: 5 }) }];
    let plan = decide(&view(&[], &waiting), 6);
    assert_eq!((plan.start.len(), plan.wake_at, plan.phase), (0, Some(5 + FIRST_DELAY), Phase::Running));
    assert_eq!(decide(&view(&[], &waiting), 5 + FIRST_DELAY).start, [0]);
}

fn any_seen(kinds: impl Strategy<Value = Kind>) -> impl Strategy<Value = Seen> {
    let past = prop_oneof![
        Just(NEW),
        Just(RUNS),
        (0i32..3, 0i64..1_000_000_000_000).prop_map(|(code, at)| Past::Ended { code, at })
    ];
    let policy = prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)];
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (past, 0i64..600, 0i64..1_000_000_000_000, kinds, policy, flags).prop_map(
        |(past, delay, at, kind, policy, (hook, hooked, started, blocked))| {
            let code = if let Past::Ended { code, .. } = past { Some(code) } else { None };
            let hooked = hooked || !hook;
            Seen {
                past,
                backoff: Backoff { delay: delay * SECOND, restarted_at: at },
                kind,
                again: code.is_some_and(|code| restarts(policy, code, kind)),
                hook,
                hooked,
                started: hooked && started,
                blocked: Some(at).filter(|_| blocked && code.is_some_and(|code| code != 0)),
            }
        },
    )
}

proptest! {
    #[test]
    fn what_runs_is_never_started_and_a_pod_that_is_over_starts_nothing(
        init in prop::collection::vec(any_seen(prop_oneof![Just(Kind::Init), Just(Kind::Sidecar)]), 0..4),
        containers in prop::collection::vec(any_seen(Just(Kind::Main)), 1..4),
        stopping: bool,
        doomed: bool,
        deadline in prop::option::of(0i64..2_000_000_000_000),
        now in 0i64..2_000_000_000_000,
    ) {
        let view = View { init: &init, containers: &containers, stopping, doomed, deadline };
        let plan = decide(&view, now);
        let all: Vec<Seen> = init.iter().chain(&containers).copied().collect();
        let runs = all.iter().any(|seen| seen.past == RUNS);
        prop_assert!(plan.start.iter().all(|index| all[*index].past != RUNS));
        prop_assert!(!(stopping || doomed || plan.end || plan.exceeded) || plan.start.is_empty());
        prop_assert!(!plan.finished() || (plan.start.is_empty() && plan.wake_at.is_none() && !runs));
        prop_assert!(!plan.end || runs);
        prop_assert!(plan.wake_at.is_none_or(|at| at > now));
        // Nothing is forgotten: an unfinished pod runs, starts something, or knows when to look again.
        let alive = runs || !plan.start.is_empty() || plan.wake_at.is_some() || plan.exceeded;
        prop_assert!(plan.finished() || alive);
        // At most one init container that has its turn, and only ended sidecars beside it or beside the others.
        let turns = plan.start.iter().filter(|index| {
            **index < init.len() && (init[**index].kind == Kind::Init || all[**index].past == NEW)
        });
        let turns = turns.count();
        prop_assert!(turns <= 1 && (turns == 0 || plan.start.iter().all(|index| *index < init.len())));
    }
}
