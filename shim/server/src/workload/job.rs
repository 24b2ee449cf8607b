//! Jobs: which pods are due, and what has become of the whole.
//!
//! What a Job has come to is kept beside it in the store ([`Progress`]), by the uids of its ended pods, so that telling of
//! an end twice counts once. [`decide`] is the one function of it: from the Job and its progress to what to do. Whoever
//! tends a pod of a Job calls [`tended`] when it has ended, which makes the next one; between a failure and the next
//! pods lies the Job controller's delay: 10 s, doubled with each failure, at most 6 minutes. What is due is decided after
//! it: meanwhile the Job may have ended, have been deleted, or be another of that name, which [`JobRef`] tells.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result};
use coracle_engine::{Engine, SandboxFilter, SandboxState, lock};
use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};

use super::launch;
use crate::app::App;
use crate::cmd::rm;
use crate::kube::env::{EnvValue, EnvVar};
use crate::kube::meta::Meta;
use crate::kube::pod::Pod;
use crate::kube::workload::{JOB_INDEX, Job, Kind, OWNER, Workload};
use crate::objects::{self, Objects};
use crate::pod::events::{On, Recorder};
use crate::pod::keep::{Folder, Kept};
use crate::pod::observe::Observed;
use crate::time;

/// The first delay after a failure.
const FIRST_DELAY: Duration = Duration::from_secs(10);
/// The longest.
const MAX_DELAY: Duration = Duration::from_secs(360);

/// What a Job has come to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Under the Job's key.
    pub meta: Meta,
    /// When its first pod was made.
    pub started: i64,
    /// Pods made: their numbers, and the index of each in an indexed Job.
    pub made: BTreeMap<u32, Option<u32>>,
    /// The numbers of those that have succeeded.
    pub succeeded: BTreeSet<u32>,
    /// The numbers of those that have failed.
    pub failed: BTreeSet<u32>,
    /// The delay after the last failure: no pod is made before.
    #[serde(default)]
    pub not_before: i64,
    /// How it ended, once it has.
    pub end: Option<JobEnd>,
}

/// How a Job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobEnd {
    /// It has all its successes.
    Complete,
    /// It has failed, for this reason (Kubernetes' word).
    Failed(String),
}

impl objects::Kind for Progress {
    const KIND: &'static str = "JobProgress";
    const NAMESPACED: bool = true;

    fn meta(&self) -> &Meta {
        &self.meta
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Make these pods: the index of each.
    Make(Vec<Option<u32>>),
    /// Wait for those that run.
    Wait,
    /// It has ended.
    End(JobEnd),
}

/// What to do about a Job; `parallelism` pods at most run at a time.
pub fn decide(job: &Job, parallelism: u32, progress: &Progress, now: i64) -> Next {
    if let Some(end) = &progress.end {
        return Next::End(end.clone());
    }
    let failed = |reason: &str| Next::End(JobEnd::Failed(reason.to_owned()));
    let limit = usize::try_from(job.backoff_limit).unwrap_or(usize::MAX);
    if progress.failed.len() > limit {
        return failed("BackoffLimitExceeded");
    }
    let ended = |number: &u32| progress.succeeded.contains(number) || progress.failed.contains(number);
    let running: Vec<(&u32, &Option<u32>)> = progress.made.iter().filter(|(number, _)| !ended(number)).collect();
    let deadline =
        job.deadline.map(|seconds| progress.started.saturating_add(time::nanos(Duration::from_secs(seconds))));
    if progress.started != 0 && deadline.is_some_and(|deadline| now >= deadline) {
        return failed("DeadlineExceeded");
    }
    let successes = progress.succeeded.len();
    let (wanted, complete) = match job.completions {
        Some(count) => (usize::try_from(count).unwrap_or(usize::MAX).saturating_sub(successes), None),
        // A work queue: the first success says that it is empty, and nothing more is made.
        None if successes > 0 => (running.len(), Some(running.is_empty())),
        None => (usize::MAX, None),
    };
    if complete.unwrap_or(wanted == 0) {
        return Next::End(JobEnd::Complete);
    }
    let room = wanted.min(usize::try_from(parallelism).unwrap_or(usize::MAX)).saturating_sub(running.len());
    if room == 0 || job.suspend {
        return Next::Wait;
    }
    if !job.indexed {
        return Next::Make(vec![None; room]);
    }
    let done = |index: &u32| {
        let number = |number: &u32| progress.made.get(number) == Some(&Some(*index));
        progress.succeeded.iter().any(number) || running.iter().any(|(_, other)| **other == Some(*index))
    };
    let indexes = (0..job.completions.unwrap_or(0)).filter(|index| !done(index));
    Next::Make(indexes.take(room).map(Some).collect())
}

/// The delay before a pod that follows this many failures.
fn delay(failures: usize) -> Duration {
    let doublings = u32::try_from(failures).unwrap_or(u32::MAX).saturating_sub(1).min(16);
    if failures == 0 { Duration::ZERO } else { (FIRST_DELAY * 2_u32.pow(doublings)).min(MAX_DELAY) }
}

/// The annotation of a Job's pod that holds its number.
const NUMBER: &str = "coracle/job-pod";

/// A pod of a Job: the `number`th made, of this index.
fn pod(workload: &Workload, number: u32, index: Option<u32>, job: &Job, progress: &Progress) -> Pod {
    let mut pod = workload.pod(number);
    pod.annotations.insert(NUMBER.to_owned(), number.to_string());
    for label in ["job-name", "batch.kubernetes.io/job-name"] {
        pod.labels.insert(label.to_owned(), workload.name.clone());
    }
    if let Some(index) = index {
        // A first pod is called by its index, a later one for the same index by its number too.
        let again = progress.made.values().filter(|other| **other == Some(index)).count();
        let name = if again == 0 {
            format!("{}-{index}", workload.name)
        } else {
            format!("{}-{index}-{again}", workload.name)
        };
        pod.rename(&name);
        pod.hostname = pod.name.clone();
        pod.annotations.insert(JOB_INDEX.to_owned(), index.to_string());
        pod.labels.insert(JOB_INDEX.to_owned(), index.to_string());
        let variable = EnvVar { name: "JOB_COMPLETION_INDEX".to_owned(), value: EnvValue::Literal(index.to_string()) };
        for container in pod.init.iter_mut().chain(&mut pod.containers) {
            container.env.insert(0, variable.clone());
        }
    }
    if let Some(seconds) = job.deadline {
        let started = if progress.started == 0 { time::now() } else { progress.started };
        let gone = u64::try_from((time::now() - started).max(0) / 1_000_000_000).unwrap_or(0);
        let left = seconds.saturating_sub(gone).max(1);
        pod.deadline = Some(pod.deadline.map_or(left, |own| own.min(left)));
    }
    pod
}

/// A Job and what it has come to; nobody else changes that meanwhile.
struct Turn {
    objects: Objects,
    workload: Workload,
    progress: Progress,
    _lock: Flock<File>,
}

impl Turn {
    fn take(engine: &Engine, namespace: &str, key: &str) -> Result<Option<Turn>> {
        let objects = Objects::open(engine.paths());
        let file = engine.paths().state.join("objects").join("jobs.lock");
        let lock = lock::section(&file, true)?;
        let Some(workload) = objects.get::<Workload>(namespace, key)? else { return Ok(None) };
        let progress = objects.get(namespace, key)?.unwrap_or_else(|| Progress {
            meta: Meta { name: key.to_owned(), namespace: namespace.to_owned(), ..Meta::default() },
            ..Progress::default()
        });
        Ok(Some(Turn { objects, workload, progress, _lock: lock }))
    }

    /// The pods to make now, noted as made.
    fn pods(&mut self) -> Result<Vec<Pod>> {
        let Kind::Job(job) = self.workload.kind.clone() else { return Ok(Vec::new()) };
        let next = decide(&job, self.workload.replicas, &self.progress, time::now());
        let mut pods = Vec::new();
        match next {
            Next::Wait => {}
            Next::End(end) => self.progress.end = Some(end),
            Next::Make(indexes) => {
                for index in indexes {
                    let number = self.progress.made.last_key_value().map_or(0, |(last, _)| last + 1);
                    pods.push(pod(&self.workload, number, index, &job, &self.progress));
                    self.progress.made.insert(number, index);
                }
                if self.progress.started == 0 {
                    self.progress.started = time::now();
                }
            }
        }
        self.objects.put(&self.progress)?;
        Ok(pods)
    }
}

/// The pods that a Job has from the start, or that are due when it is applied again.
pub fn first(engine: &Engine, workload: &Workload) -> Result<Vec<Pod>> {
    match Turn::take(engine, workload.namespace(), &workload.key.name)? {
        Some(mut turn) => turn.pods(),
        None => Ok(Vec::new()),
    }
}

/// Notes that pods were not made after all.
pub fn not_made(engine: &Engine, pods: &[Pod]) -> Result<()> {
    for pod in pods {
        let (Some((key, _)), Some(number)) = (owner(pod), number(pod)) else { continue };
        let Some(mut turn) = Turn::take(engine, &pod.namespace, &key)? else { continue };
        turn.progress.made.remove(&number);
        turn.objects.put(&turn.progress)?;
    }
    Ok(())
}

/// The key of the Job that a pod belongs to, and the owner as it is written.
fn owner(pod: &Pod) -> Option<(String, &String)> {
    let owner = pod.annotations.get(OWNER).filter(|owner| owner.starts_with("Job/"))?;
    Some((Workload::key_of(owner)?, owner))
}

fn number(pod: &Pod) -> Option<u32> {
    pod.annotations.get(NUMBER)?.parse().ok()
}

/// A Job, and no later one of its name.
#[derive(Debug, Clone)]
pub struct JobRef {
    namespace: String,
    key: String,
    /// When its first pod was made: the progress of another Job says another time.
    started: i64,
}

impl JobRef {
    /// It and nobody else; None if it is not there any more.
    fn take(&self, engine: &Engine) -> Result<Option<Turn>> {
        let turn = Turn::take(engine, &self.namespace, &self.key)?;
        Ok(turn.filter(|turn| turn.progress.started == self.started))
    }
}

/// What follows the end of a pod of a Job.
#[derive(Debug)]
pub struct Following {
    /// The Job.
    pub job: JobRef,
    /// It has ended.
    pub over: bool,
}

/// What is to be done about a Job once its delay is over.
#[derive(Debug)]
pub enum Due {
    /// These pods are to be made, and are noted as made. There may be none: others run, or make them.
    Pods(Vec<Pod>),
    /// It has ended.
    Over,
    /// It is there no more.
    Gone,
}

/// Counts the end of a pod; None for one that is not of a Job, or was stopped by somebody.
pub async fn count(engine: &Engine, kept: &Kept) -> Result<Option<Following>> {
    let (Some((key, _)), Some(number)) = (owner(&kept.pod), number(&kept.pod)) else { return Ok(None) };
    let Some(found) = launch::existing(engine, &kept.pod.namespace, &kept.pod.name)? else { return Ok(None) };
    if found.kept.as_ref().map(|kept| &kept.uid) != Some(&kept.uid) || found.folder.is_stopping() {
        return Ok(None);
    }
    let observed = Observed::look(engine, &found.sandbox).await?;
    let success = observed.outcome(kept, &found.folder.read_tended()?) == 0;
    let Some(mut turn) = Turn::take(engine, &kept.pod.namespace, &key)? else { return Ok(None) };
    let progress = &mut turn.progress;
    if !progress.made.contains_key(&number) {
        // A pod of an earlier Job of this name.
        return Ok(None);
    }
    if success {
        progress.succeeded.insert(number);
    } else if progress.failed.insert(number) {
        let until = time::now().saturating_add(time::nanos(delay(progress.failed.len())));
        progress.not_before = progress.not_before.max(until);
    }
    let job = JobRef { namespace: kept.pod.namespace.clone(), key, started: progress.started };
    if let Kind::Job(kind) = &turn.workload.kind
        && let Next::End(end) = decide(kind, turn.workload.replicas, &turn.progress, time::now())
    {
        turn.progress.end = Some(end);
    }
    turn.objects.put(&turn.progress)?;
    Ok(Some(Following { job, over: turn.progress.end.is_some() }))
}

/// Waits for the delay after a failure, no longer than the Job may last, and says what is due then.
pub async fn due(engine: &Engine, job: &JobRef) -> Result<Due> {
    loop {
        let left = {
            let Some(mut turn) = job.take(engine)? else { return Ok(Due::Gone) };
            let Kind::Job(kind) = &turn.workload.kind else { return Ok(Due::Gone) };
            let now = time::now();
            let deadline = kind.deadline.map(|seconds| time::nanos(Duration::from_secs(seconds)));
            let deadline = deadline.map_or(i64::MAX, |nanos| turn.progress.started.saturating_add(nanos));
            let until = turn.progress.not_before.min(deadline);
            if turn.progress.end.is_some() || until <= now {
                let pods = turn.pods()?;
                return Ok(if turn.progress.end.is_some() { Due::Over } else { Due::Pods(pods) });
            }
            Duration::from_nanos(until.abs_diff(now))
        };
        tokio::time::sleep(left).await;
    }
}

/// Does what follows the end of the pod of this uid, in the background: for whoever tended it, once that is over. A pod
/// that runs, or is not of a Job, is left alone. May take as long as a Job's delay, and longer while its next pod cannot
/// be made.
pub async fn tended(app: &App, uid: &str) -> Result<()> {
    let engine = &app.engine()?;
    let sandboxes = engine.list_sandboxes(&SandboxFilter::default())?;
    let Some(sandbox) = sandboxes.into_iter().find(|sandbox| sandbox.config.uid == uid) else { return Ok(()) };
    let Some(kept) = &Folder::of(engine.paths(), &sandbox.id).read_pod()? else { return Ok(()) };
    if owner(&kept.pod).is_none() || sandbox.state == SandboxState::Ready {
        return Ok(());
    }
    let Some(Following { job, over }) = count(engine, kept).await? else { return Ok(()) };
    let mut failures = 0;
    loop {
        match if over { Due::Over } else { due(engine, &job).await? } {
            Due::Gone => return Ok(()),
            Due::Over => return end(engine, kept, &job).await,
            Due::Pods(pods) => {
                let Err(error) = make(app, engine, pods).await else { return Ok(()) };
                Recorder::of(engine.paths(), kept).warning(
                    On::Pod,
                    "FailedCreate",
                    format!("Error creating: {error:#}"),
                );
                failures += 1;
                tokio::time::sleep(delay(failures)).await;
            }
        }
    }
}

/// Makes pods, each as far as it goes; one that could not be made is noted as such.
async fn make(app: &App, engine: &Engine, pods: Vec<Pod>) -> Result<()> {
    let mut first_error = None;
    for pod in pods {
        if let Err(error) = make_one(app, engine, pod.clone()).await {
            not_made(engine, &[pod])?;
            first_error = first_error.or(Some(error));
        }
    }
    first_error.map_or(Ok(()), Err)
}

async fn make_one(app: &App, engine: &Engine, pod: Pod) -> Result<()> {
    let kept = launch::prepare(app, engine, pod, false).await?;
    let never = async || std::future::pending::<anyhow::Error>().await;
    for started in launch::start_all(app, engine, vec![kept], "run", never).await? {
        launch::leave(app, started).await?;
    }
    Ok(())
}

/// What the end of a Job brings: that of its other pods, and in its time its removal.
async fn end(engine: &Engine, kept: &Kept, job: &JobRef) -> Result<()> {
    end_others(engine, kept).await?;
    let ttl = job.take(engine)?.and_then(|turn| match turn.workload.kind {
        Kind::Job(kind) => kind.ttl,
        _ => None,
    });
    match ttl {
        Some(seconds) => remove_later(engine, kept, job, Duration::from_secs(seconds)).await,
        None => Ok(()),
    }
}

/// A Job that has ended stops its pods that still run.
pub async fn end_others(engine: &Engine, kept: &Kept) -> Result<()> {
    let Some((key, _)) = owner(&kept.pod) else { return Ok(()) };
    let Some(workload) = Objects::open(engine.paths()).get::<Workload>(&kept.pod.namespace, &key)? else {
        return Ok(());
    };
    for found in launch::owned(engine, &workload)? {
        let runs = engine.sandbox_status(&found.sandbox)?.state == SandboxState::Ready;
        if runs && found.kept.as_ref().is_some_and(|other| other.uid != kept.uid) && !found.folder.is_stopping() {
            crate::cmd::stop::stop(engine, &found, None).await?;
        }
    }
    Ok(())
}

/// Removes a Job and its pods when its time has come.
async fn remove_later(engine: &Engine, kept: &Kept, job: &JobRef, delay: Duration) -> Result<()> {
    tokio::time::sleep(delay).await;
    let Some((_, owner)) = owner(&kept.pod) else { return Ok(()) };
    // It may have been deleted since, and made once more.
    let Some(Turn { objects, workload, .. }) = job.take(engine)?.filter(|turn| turn.progress.end.is_some()) else {
        return Ok(());
    };
    for found in launch::owned(engine, &workload)? {
        rm::remove(engine, &found).await.with_context(|| format!("remove a pod of {owner}"))?;
    }
    forget(&objects, &workload)
}

/// Deletes a workload, and what a Job has come to.
pub fn forget(objects: &Objects, workload: &Workload) -> Result<()> {
    objects.delete::<Progress>(workload.namespace(), &workload.key.name)?;
    objects.delete::<Workload>(workload.namespace(), &workload.key.name)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn job(completions: Option<u32>, indexed: bool, backoff_limit: u32) -> Job {
        Job { completions, indexed, backoff_limit, deadline: None, ttl: None, suspend: false }
    }

    fn progress(made: &[(u32, Option<u32>)], succeeded: &[u32], failed: &[u32]) -> Progress {
        Progress {
            started: 1,
            made: made.iter().copied().collect(),
            succeeded: succeeded.iter().copied().collect(),
            failed: failed.iter().copied().collect(),
            ..Progress::default()
        }
    }

    #[test]
    fn pods_are_made_until_there_are_enough_successes() {
        let two = job(Some(2), false, 6);
        assert_eq!(decide(&two, 1, &Progress::default(), 0), Next::Make(vec![None]));
        assert_eq!(decide(&two, 5, &Progress::default(), 0), Next::Make(vec![None, None]), "no more than are missing");
        assert_eq!(decide(&two, 1, &progress(&[(0, None)], &[], &[]), 0), Next::Wait);
        assert_eq!(decide(&two, 1, &progress(&[(0, None)], &[0], &[]), 0), Next::Make(vec![None]));
        let done = progress(&[(0, None), (1, None)], &[0, 1], &[]);
        assert_eq!(decide(&two, 1, &done, 0), Next::End(JobEnd::Complete));
    }

    #[test]
    fn more_failures_than_the_limit_end_it() {
        let one = job(Some(1), false, 1);
        assert_eq!(decide(&one, 1, &progress(&[(0, None)], &[], &[0]), 0), Next::Make(vec![None]));
        let failed = progress(&[(0, None), (1, None)], &[], &[0, 1]);
        assert_eq!(decide(&one, 1, &failed, 0), Next::End(JobEnd::Failed("BackoffLimitExceeded".into())));
        let late = Job { deadline: Some(1), ..one };
        let now = progress(&[(0, None)], &[], &[]);
        assert_eq!(decide(&late, 1, &now, 2_000_000_000), Next::End(JobEnd::Failed("DeadlineExceeded".into())));
    }

    #[test]
    fn an_indexed_job_makes_each_index_until_it_succeeds() {
        let three = job(Some(3), true, 6);
        assert_eq!(decide(&three, 2, &Progress::default(), 0), Next::Make(vec![Some(0), Some(1)]));
        let some = progress(&[(0, Some(0)), (1, Some(1))], &[1], &[0]);
        assert_eq!(decide(&three, 2, &some, 0), Next::Make(vec![Some(0), Some(2)]));
    }

    #[test]
    fn the_first_success_of_a_work_queue_ends_the_making() {
        let queue = job(None, false, 6);
        assert_eq!(decide(&queue, 2, &Progress::default(), 0), Next::Make(vec![None, None]));
        let one = progress(&[(0, None), (1, None)], &[0], &[]);
        assert_eq!(decide(&queue, 2, &one, 0), Next::Wait);
        let both = progress(&[(0, None), (1, None)], &[0, 1], &[]);
        assert_eq!(decide(&queue, 2, &both, 0), Next::End(JobEnd::Complete));
    }

    #[test]
    fn delays_double_up_to_six_minutes() {
        let delays: Vec<u64> = [0, 1, 2, 3, 6, 7, 100].map(|failures| delay(failures).as_secs()).to_vec();
        assert_eq!(delays, [0, 10, 20, 40, 320, 360, 360]);
    }

    proptest! {
        /// However its pods end, a Job ends, never runs more pods than it may, and never makes more than it can need.
        #[test]
        fn every_job_ends(
            completions in 0_u32..6, parallelism in 1_u32..4, limit in 0_u32..4, indexed: bool, ends: Vec<bool>,
        ) {
            let job = job(Some(completions), indexed, limit);
            let mut progress = Progress::default();
            let mut ends = ends.into_iter().chain(std::iter::repeat(true));
            for _ in 0..100 {
                match decide(&job, parallelism, &progress, 0) {
                    Next::End(end) => {
                        let enough = progress.succeeded.len() == completions as usize;
                        prop_assert_eq!(end == JobEnd::Complete, enough && progress.failed.len() <= limit as usize);
                        return Ok(());
                    }
                    Next::Make(indexes) => {
                        prop_assert!(!indexes.is_empty());
                        for index in indexes {
                            let number = progress.made.len() as u32;
                            progress.made.insert(number, index);
                        }
                    }
                    Next::Wait => {}
                }
                let ended = |n: &u32| progress.succeeded.contains(n) || progress.failed.contains(n);
                let running: Vec<u32> = progress.made.keys().copied().filter(|n| !ended(n)).collect();
                prop_assert!(running.len() <= parallelism as usize);
                if let Some(first) = running.first() {
                    let side = if ends.next() == Some(true) { &mut progress.succeeded } else { &mut progress.failed };
                    side.insert(*first);
                }
            }
            prop_assert!(false, "it never ended");
        }
    }
}
