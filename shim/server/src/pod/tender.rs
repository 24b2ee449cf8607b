//! Tending a pod: look, decide, act, until there is nothing left to do or only to wait.
//!
//! What takes long (hooks, probes, kills) goes on in [`tasks`](super::tasks); what they tell is noted in `tend.json`
//! before anything follows from it, so that whoever comes after a tender that was killed goes on where it stopped.

mod start;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use coracle_engine::lock::LifeLock;
use coracle_engine::{Engine, SandboxState};

use super::events::{On, Recorder};
use super::keep::{Folder, Kept, Kill, Memory, Over, Tended};
use super::kill::{self, Victim};
use super::observe::{Observed, past, starts_again};
use super::policy::{Past, Phase, Plan};
use super::probe::machine::Which;
use super::reach::Reach;
use super::tasks::{self, Of, Tasks, Told};
use super::volume::{self, Keeper};
use super::{condition, needs};
use crate::app::App;
use crate::kube::container::Container;
use crate::objects::Objects;
use crate::service;
use crate::time::{self, SECOND};

/// How often a pod is looked at of which nothing was told.
const LOOK: Duration = Duration::from_secs(5);
/// The same where the kernel does not tell of the wish to stop, or volumes show objects that may change.
const BLIND_LOOK: Duration = Duration::from_millis(500);

/// Why a tender came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Nothing of the pod runs or will run again.
    Finished,
    /// Containers run; their supervisor calls when one ends.
    Waiting,
    /// Somebody else tends it.
    Busy,
    /// The pod has been removed.
    Gone,
}

/// Told what happens, for whoever watches.
pub trait Watch {
    /// A container was started.
    fn started(&mut self, _container: &str, _attempt: u32) {}
    /// A container ended, and will start again at that time or not at all.
    fn ended(&mut self, _container: &str, _code: i32) {}
    /// A container could not be started.
    fn failed(&mut self, _container: &str, _message: &str) {}
}

/// A watcher of nothing.
pub struct Unwatched;

impl Watch for Unwatched {}

/// A pod being tended: holds its lock.
pub struct Tender {
    /// Registries and settings; none if nothing will start.
    app: Option<App>,
    reach: Reach,
    objects: Objects,
    folder: Folder,
    tended: Tended,
    lock: Option<LifeLock>,
    tasks: Tasks,
    /// Looks after its volumes.
    volumes: Keeper,
}

impl Tender {
    /// Takes the pod's lock; None if somebody else has it.
    pub fn take(app: &App, engine: &Engine, sandbox: &str, kept: Kept) -> Result<Option<Tender>> {
        Tender::take_with(Some(app), engine, sandbox, kept)
    }

    /// The same for a pod that is to stop, of which nothing starts any more.
    pub fn take_to_stop(engine: &Engine, sandbox: &str, kept: Kept) -> Result<Option<Tender>> {
        Tender::take_with(None, engine, sandbox, kept)
    }

    fn take_with(app: Option<&App>, engine: &Engine, sandbox: &str, kept: Kept) -> Result<Option<Tender>> {
        let folder = Folder::of(engine.paths(), sandbox);
        let Some(lock) = engine.tend(sandbox)? else { return Ok(None) };
        let tended = folder.read_tended()?;
        let recorder = Recorder::of(engine.paths(), &kept);
        let (engine, sandbox, kept) = (engine.clone(), sandbox.to_owned(), Arc::new(kept));
        Ok(Some(Tender {
            app: app.cloned(),
            objects: Objects::open(engine.paths()),
            reach: Reach { engine, sandbox, kept, recorder },
            folder,
            tended,
            lock: Some(lock),
            tasks: Tasks::default(),
            volumes: Keeper::default(),
        }))
    }

    /// Starts what is due now, once; the first failure is the answer, unless it may pass. For the first start of a
    /// pod, which either comes up or is undone.
    pub async fn first_start(&mut self, watch: &mut dyn Watch) -> Result<()> {
        let (plan, observed) = self.look().await?;
        self.begin();
        for index in plan.start {
            self.start_first(index, &observed, watch).await?;
        }
        let (plan, observed) = self.look().await?;
        self.note(&plan, &observed).await
    }

    /// Tends the pod until it is finished; in the background, until nothing is left but to wait for a container.
    pub async fn tend(&mut self, foreground: bool, watch: &mut dyn Watch) -> Result<End> {
        let mut told = HashSet::new();
        self.tasks.watch(&self.folder);
        self.tell_waiting(watch);
        loop {
            let seen = self.look().await;
            // Asked after the look: the containers of a pod that was removed look as if they had never run.
            if self.is_gone() {
                return Ok(End::Gone);
            }
            let (plan, observed) = seen?;
            let ended = tell_ends(&observed, &mut told, watch);
            self.record_back_off(&ended, &observed);
            if !plan.finished() && !self.folder.is_stopping() {
                self.check_sandbox()?;
            }
            self.note(&plan, &observed).await?;
            if plan.exceeded {
                self.fail("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")?;
                continue;
            }
            if plan.finished() {
                return match self.finish().await {
                    Err(error) if !self.is_gone() => Err(error),
                    _ => Ok(End::Finished),
                };
            }
            if plan.end {
                self.end(&observed)?;
            } else {
                self.see_to(&observed);
            }
            if !plan.start.is_empty() {
                for index in &plan.start {
                    self.start_again(*index, &observed, watch).await?;
                }
                continue;
            }
            if self.look_after_volumes()? {
                continue;
            }
            if !foreground && plan.wake_at.is_none() && !self.tasks.busy() && !self.resident() {
                if !self.let_go().await? {
                    return Ok(End::Waiting);
                }
                self.lock = self.reach.engine.tend(&self.reach.sandbox)?;
                if self.lock.is_none() {
                    return Ok(End::Busy);
                }
                continue;
            }
            self.wait(&observed, plan.wake_at).await?;
        }
    }

    /// Lets go of the pod; whether something was left to do already, for which nobody would be called.
    pub async fn let_go(&mut self) -> Result<bool> {
        // Released before the last look, so that an exit either finds the lock free or is seen here.
        self.lock = None;
        if needs::stays(self.pod(), &self.objects) && !self.is_gone() {
            // Its supervisor looks for whoever tends it until somebody has found nothing left to do.
            return Ok(false);
        }
        let (plan, _) = self.look().await?;
        Ok(!plan.start.is_empty() || plan.finished() || plan.end || plan.wake_at.is_some())
    }

    /// Tells what containers wait for that could not be made before somebody watched, as their next try tells it.
    fn tell_waiting(&self, watch: &mut dyn Watch) {
        for (name, memory) in &self.tended.containers {
            if let Some(failure) = memory.failure.as_ref().filter(|failure| failure.retry_at.is_some()) {
                watch.failed(name, &format!("start container {name}: {}: {}", failure.reason, failure.message));
            }
        }
    }

    fn pod(&self) -> &crate::kube::pod::Pod {
        &self.reach.kept.pod
    }

    fn resident(&self) -> bool {
        needs::resident(self.pod(), &self.objects)
    }

    /// Looks at the containers and decides what to do.
    async fn look(&self) -> Result<(Plan, Observed)> {
        let observed = Observed::look(&self.reach.engine, &self.reach.sandbox).await?;
        let plan = observed.decide(&self.reach.kept, &self.tended, self.folder.is_stopping(), time::now());
        Ok((plan, observed))
    }

    /// The pod's time counts from when it is first tended.
    fn begin(&mut self) {
        if self.tended.begun == 0 {
            self.tended.begun = time::now();
        }
    }

    /// Brings what is remembered up to what is seen: new incarnations, readiness (which Services are told of), conditions.
    async fn note(&mut self, plan: &Plan, observed: &Observed) -> Result<()> {
        let before = self.tended.clone();
        self.begin();
        for status in observed.all_latest().filter(|status| past(status) == Past::Running) {
            let memory = self.tended.containers.entry(status.config.name.clone()).or_default();
            if memory.id != status.id {
                memory.begin(&status.id, status.config.attempt);
            }
        }
        let kept = self.reach.kept.clone();
        let stopping = self.folder.is_stopping() || plan.end || plan.finished();
        self.tended.ready = !stopping && condition::unready(&kept, &self.tended, observed).is_empty();
        let finished = plan.finished().then_some(plan.phase == Phase::Succeeded);
        let conditions = condition::of(&kept, &self.tended, observed, true, finished, stopping);
        condition::note(&mut self.tended, &conditions, time::now());
        if self.tended == before {
            return Ok(());
        }
        self.save()?;
        if self.tended.ready != before.ready {
            // What cannot be told now is told with the next change; the pod itself goes on.
            let _ = service::refresh(&self.reach.engine).await;
        }
        Ok(())
    }

    fn save(&self) -> Result<()> {
        match self.folder.write_tended(&self.tended) {
            Err(_) if self.is_gone() => Ok(()),
            written => written,
        }
    }

    /// The pod as a whole has failed: nothing starts any more.
    fn fail(&mut self, reason: &'static str, message: &str) -> Result<()> {
        match reason {
            "DeadlineExceeded" => self.reach.recorder.normal(On::Pod, reason, message),
            _ => self.reach.recorder.warning(On::Pod, reason, message),
        }
        self.tended.over = Some(Over { at: time::now(), reason: reason.to_owned(), message: message.to_owned() });
        self.save()
    }

    /// Has all that runs ended, within what is left of the grace period.
    fn end(&mut self, observed: &Observed) -> Result<()> {
        let own = Duration::from_secs(self.pod().grace);
        if self.tended.ending == 0 {
            self.tended.ending = time::now();
            self.save()?;
        }
        let ours = self.tended.ending.saturating_add(time::nanos(own));
        let deadline = self.folder.stop().map_or(ours, |stop| stop.deadline(own));
        let memory = |name: &str| observed.memory(name, &self.tended).cloned();
        let victims = tasks::victims(&self.reach, observed, deadline, memory);
        self.tasks.end(&self.reach, deadline, victims);
        Ok(())
    }

    /// Has hooks called, probes made and containers killed that are to be.
    fn see_to(&mut self, observed: &Observed) {
        for (container, status) in kill::running(&self.reach, observed) {
            let seen = observed.seen(&self.reach.kept, &container, &self.tended);
            let memory = observed.memory(&container.name, &self.tended).cloned().unwrap_or_default();
            if let Some(kill) = &memory.kill {
                let nanos = i64::try_from(kill.grace).unwrap_or(i64::MAX).saturating_mul(SECOND);
                let deadline = kill.since.saturating_add(nanos);
                let (id, message, pre_stopped) = (status.id.clone(), kill.message.clone(), memory.pre_stopped);
                self.tasks.kill(&self.reach, Victim { container, id, message, deadline, pre_stopped });
            } else if !seen.hooked {
                self.tasks.hook(&self.reach, &container, &status.id);
            } else {
                self.tasks.probe(&self.reach, &container, status, seen.started);
            }
        }
    }

    /// Waits for something to be told, for a time, or for the wish to stop.
    async fn wait(&mut self, observed: &Observed, wake_at: Option<i64>) -> Result<()> {
        let running: Vec<_> = observed.all_latest().filter(|status| past(status) == Past::Running).collect();
        self.tasks.await_ends(&self.reach, &running);
        let delay = wake_at.map(time::until);
        let blind = !self.tasks.watches || volume::needs_tender(self.pod(), &self.objects);
        let look = if blind { BLIND_LOOK } else { LOOK };
        let look = delay.map_or(look, |delay| delay.min(look));
        tokio::select! {
            Some(told) = self.tasks.next() => self.take_note(told),
            () = tokio::time::sleep(look) => Ok(()),
        }
    }

    fn take_note(&mut self, told: Told) -> Result<()> {
        match told {
            Told::Changed => return Ok(()),
            Told::Ended(id) => {
                self.tasks.ended(&id);
                return Ok(());
            }
            Told::PodEnded(result) => return result,
            Told::Hooked(of, Ok(())) => {
                self.tasks.hooked(&of.id);
                self.with(&of, |memory| memory.hooked = true);
            }
            Told::Hooked(of, Err(why)) => {
                self.tasks.hooked(&of.id);
                self.reach.recorder.warning(self.reach.on(&of.name), "FailedPostStartHook", why);
                self.kill(&of, "FailedPostStartHook".to_owned(), None);
            }
            Told::Probed(of, Which::Readiness, ready) => self.with(&of, |memory| memory.ready = ready),
            Told::Probed(of, Which::Startup, true) => self.with(&of, |memory| memory.started = true),
            Told::Probed(_, Which::Liveness, true) => return Ok(()),
            Told::Probed(of, which, false) => self.kill_unhealthy(&of, which),
            Told::PreStopped(name) => {
                if let Some(memory) = self.tended.containers.get_mut(&name) {
                    memory.pre_stopped = true;
                }
            }
            Told::Killed(of, result) => {
                result?;
                self.tasks.killed(&of.id);
                return Ok(());
            }
        }
        self.save()
    }

    /// What is remembered of an incarnation, if it is still the last.
    fn with(&mut self, of: &Of, change: impl FnOnce(&mut Memory)) {
        if let Some(memory) = self.tended.containers.get_mut(&of.name).filter(|memory| memory.id == of.id) {
            change(memory);
        }
    }

    /// Notes that a container is to be killed; the next look does it.
    fn kill(&mut self, of: &Of, message: String, grace: Option<u64>) {
        let grace = grace.unwrap_or(self.pod().grace);
        let kill = Kill { message, since: time::now(), grace };
        self.with(of, |memory| {
            memory.ready = false;
            memory.kill.get_or_insert(kill);
        });
    }

    fn kill_unhealthy(&mut self, of: &Of, which: Which) {
        const KILLED: i32 = 137;
        let pod = self.pod();
        let Some(container) = pod.all_containers().find(|container| container.name == of.name) else { return };
        let probe = if which == Which::Startup { &container.startup } else { &container.liveness };
        let again = if starts_again(pod, container, KILLED) { ", will be restarted" } else { "" };
        let message = format!("Container {} failed {} probe{again}", of.name, which.word());
        let grace = probe.as_ref().and_then(|probe| probe.grace);
        self.kill(of, message, grace);
    }

    /// Keeps the files of volumes up to date, and the pod within their limits. Whether it has failed for them.
    fn look_after_volumes(&mut self) -> Result<bool> {
        if self.tended.over.is_some() || self.folder.is_stopping() {
            return Ok(false);
        }
        match self.volumes.look(&self.reach.engine, &self.reach.sandbox, &self.reach.kept) {
            Some(message) => self.fail("Evicted", &message).map(|()| true),
            None => Ok(false),
        }
    }

    /// Nothing can be started again without a supervisor.
    fn check_sandbox(&self) -> Result<()> {
        match self.reach.engine.sandbox_status(&self.reach.sandbox)?.state {
            SandboxState::Ready => Ok(()),
            state => bail!(
                "pod {}: its sandbox is {}: the supervisor has died (`coracle doctor` tells what it left)",
                self.pod().name,
                state.as_str()
            ),
        }
    }

    /// Releases what the pod held of the machine; its records and logs stay until it is removed.
    async fn finish(&self) -> Result<()> {
        let sandbox = &self.reach.sandbox;
        self.reach.engine.stop_sandbox(sandbox).await.with_context(|| format!("stop sandbox {sandbox}"))
    }

    fn container(&self, index: usize) -> &Container {
        let pod = self.pod();
        pod.init.get(index).unwrap_or_else(|| &pod.containers[index - pod.init.len()])
    }

    fn is_gone(&self) -> bool {
        !matches!(self.folder.read_pod(), Ok(Some(_)))
    }

    /// Records which of the containers that have ended wait for their delay now.
    fn record_back_off(&self, ended: &[String], observed: &Observed) {
        let Kept { pod, uid, .. } = &*self.reach.kept;
        if self.folder.is_stopping() || self.tended.over.is_some() {
            return;
        }
        for container in pod.all_containers().filter(|container| ended.contains(&container.name)) {
            let (name, seen) = (&container.name, observed.seen(&self.reach.kept, container, &self.tended));
            let Past::Ended { at, .. } = seen.past else { continue };
            if seen.again && seen.backoff.due(at) > time::now() {
                let which = format!("{name} in pod {}_{}({uid})", pod.name, pod.namespace);
                let text = format!("Back-off restarting failed container {which}");
                self.reach.recorder.warning(self.reach.on(name), "BackOff", text);
            }
        }
    }
}

/// Tells of each end once; the answer is the names of the containers told of now.
fn tell_ends(observed: &Observed, told: &mut HashSet<String>, watch: &mut dyn Watch) -> Vec<String> {
    let mut ended = Vec::new();
    for status in observed.all_latest() {
        if let Past::Ended { code, .. } = past(status)
            && told.insert(status.id.clone())
        {
            watch.ended(&status.config.name, code);
            ended.push(status.config.name.clone());
        }
    }
    ended
}
