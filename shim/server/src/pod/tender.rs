//! Tending a pod: look, decide, act, until there is nothing left to do or only to wait.

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use coracle_engine::lock::LifeLock;
use coracle_engine::{Engine, SandboxState};
use tokio::sync::mpsc;

use super::events::{On, Recorder};
use super::keep::{Failure, Folder, Kept, Tended};
use super::making::Making;
use super::observe::{History, Observed, has_run, past};
use super::policy::{Past, Plan, restarts};
use super::volume::{self, Keeper};
use crate::app::App;
use crate::kube::container::Container;
use crate::objects::Objects;
use crate::time;

/// How often a tender that waits for a delay looks whether the pod is to stop.
const LOOK: Duration = Duration::from_millis(500);
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
    app: App,
    engine: Engine,
    sandbox: String,
    folder: Folder,
    kept: Kept,
    tended: Tended,
    lock: Option<LifeLock>,
    /// The containers whose end is being waited for, by id.
    awaited: HashSet<String>,
    /// Looks after its volumes.
    volumes: Keeper,
    /// They need somebody for as long as the pod runs.
    stays: bool,
    ends: (mpsc::UnboundedSender<String>, mpsc::UnboundedReceiver<String>),
}

impl Tender {
    /// Takes the pod's lock; None if somebody else has it.
    pub fn take(app: &App, engine: &Engine, sandbox: &str, kept: Kept) -> Result<Option<Tender>> {
        let folder = Folder::of(engine.paths(), sandbox);
        let Some(lock) = engine.tend(sandbox)? else { return Ok(None) };
        let tended = folder.read_tended()?;
        let stays = volume::needs_tender(&kept.pod, &Objects::open(engine.paths()));
        Ok(Some(Tender {
            app: app.clone(),
            engine: engine.clone(),
            sandbox: sandbox.to_owned(),
            folder,
            kept,
            tended,
            lock: Some(lock),
            awaited: HashSet::new(),
            volumes: Keeper::default(),
            stays,
            ends: mpsc::unbounded_channel(),
        }))
    }

    /// Starts what is due now, once; the first failure is the answer. For the first start of a pod, which either
    /// comes up or is undone.
    pub async fn first_start(&mut self, watch: &mut dyn Watch) -> Result<()> {
        let (plan, observed) = self.look().await?;
        for index in plan.start {
            self.start(index, &observed, watch).await?;
        }
        Ok(())
    }

    /// Tends the pod until it is finished; in the background, until nothing is left but to wait for a container.
    pub async fn tend(&mut self, foreground: bool, watch: &mut dyn Watch) -> Result<End> {
        let mut told = HashSet::new();
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
            if plan.finished() {
                return match self.finish().await {
                    Err(error) if !self.is_gone() => Err(error),
                    _ => Ok(End::Finished),
                };
            }
            if !plan.start.is_empty() {
                for index in &plan.start {
                    self.start_again(*index, &observed, watch).await?;
                }
                continue;
            }
            let _ = self.volumes.look(&self.engine, &self.sandbox, &self.kept);
            if !foreground && plan.wake_at.is_none() && !self.stays {
                if !self.let_go().await? {
                    return Ok(End::Waiting);
                }
                self.lock = self.engine.tend(&self.sandbox)?;
                if self.lock.is_none() {
                    return Ok(End::Busy);
                }
                continue;
            }
            self.wait(&observed, plan.wake_at).await;
        }
    }

    /// Lets go of the pod; whether something was left to do already, for which nobody would be called.
    pub async fn let_go(&mut self) -> Result<bool> {
        // Released before the last look, so that an exit either finds the lock free or is seen here.
        self.lock = None;
        let (plan, _) = self.look().await?;
        Ok(self.stays || !plan.start.is_empty() || plan.finished() || plan.wake_at.is_some())
    }

    /// Looks at the containers and decides what to do.
    async fn look(&self) -> Result<(Plan, Observed)> {
        let observed = Observed::look(&self.engine, &self.sandbox).await?;
        let plan = observed.decide(&self.kept, &self.tended, self.folder.is_stopping(), time::now());
        Ok((plan, observed))
    }

    /// Records which of the containers that have ended wait for their delay now.
    fn record_back_off(&self, ended: &[String], observed: &Observed) {
        let Kept { pod, uid, .. } = &self.kept;
        for name in ended {
            let seen = observed.seen(name, &self.tended);
            let Past::Ended { code, at } = seen.past else { continue };
            let init = pod.init.iter().any(|container| container.name == *name);
            if restarts(pod.restart, code, init) && seen.backoff.due(at) > time::now() && !self.folder.is_stopping() {
                let which = format!("{name} in pod {}_{}({uid})", pod.name, pod.namespace);
                let text = format!("Back-off restarting failed container {which}");
                Recorder::of(self.engine.paths(), &self.kept).warning(On::container(pod, name), "BackOff", text);
            }
        }
    }

    /// Starts a container that may have run before; a failure is remembered and counts as an end.
    async fn start_again(&mut self, index: usize, observed: &Observed, watch: &mut dyn Watch) -> Result<()> {
        let name = self.container(index).name.clone();
        if let Past::Ended { at, .. } = observed.seen(&name, &self.tended).past {
            let memory = self.tended.containers.entry(name.clone()).or_default();
            memory.backoff = memory.backoff.restarted(at, time::now());
        }
        let result = self.start(index, observed, watch).await;
        if let Err(error) = &result {
            let message = format!("{error:#}");
            watch.failed(&name, &message);
            let memory = self.tended.containers.entry(name).or_default();
            memory.failure = Some(Failure { at: time::now(), message });
        }
        match self.folder.write_tended(&self.tended) {
            Err(_) if self.is_gone() => Ok(()),
            written => written,
        }
    }

    async fn start(&mut self, index: usize, observed: &Observed, watch: &mut dyn Watch) -> Result<()> {
        let container = self.container(index).clone();
        let name = &container.name;
        let context = || format!("start container {name}");
        let nothing = History::default();
        let history = observed.history(name).unwrap_or(&nothing);
        self.clear_up(history).await?;
        let attempt = history.next_attempt();
        let (app, engine, sandbox, kept) = (&self.app, &self.engine, &self.sandbox, &self.kept);
        let making = Making { app, engine, sandbox, kept, container: &container, attempt };
        let mut pulls = self.tended.containers.get(name).map(|memory| memory.pulls.clone()).unwrap_or_default();
        let config = making.config(&mut pulls).await.with_context(context);
        self.tended.containers.entry(name.clone()).or_default().pulls = pulls;
        let config = config?;
        let (on, recorder) = (On::container(&self.kept.pod, name), Recorder::of(self.engine.paths(), &self.kept));
        let created = self.engine.create_container(&self.sandbox, config).await;
        let id = created.inspect_err(|error| recorder.warning(on, "Failed", format!("Error: {error}")));
        let id = id.with_context(context)?;
        recorder.normal(on, "Created", format!("Created container: {name}"));
        if let Err(error) = self.engine.start_container(&id).await {
            recorder.warning(on, "Failed", format!("Error: {error}"));
            // What was made is worth nothing now; why the start failed is what matters.
            let _ = self.engine.remove_container(&id).await;
            return Err(error).with_context(context);
        }
        recorder.normal(on, "Started", format!("Started container {name}"));
        if let Some(memory) = self.tended.containers.get_mut(name) {
            memory.failure = None;
        }
        watch.started(name, attempt);
        Ok(())
    }

    /// Removes what an earlier tender left half made, and all but the last incarnation that ran, with its logs.
    async fn clear_up(&self, history: &History) -> Result<()> {
        let half_made = history.latest.iter().filter(|status| !has_run(status));
        for status in half_made.chain(&history.earlier) {
            self.engine.remove_container(&status.id).await?;
            if let Some(path) = status.log_path.as_ref().filter(|_| has_run(status)) {
                let _ = fs::remove_file(path);
            }
        }
        Ok(())
    }

    /// Waits for the end of a running container, for a time, or for the wish to stop.
    async fn wait(&mut self, observed: &Observed, wake_at: Option<i64>) {
        for status in observed.all_latest() {
            if past(status) == Past::Running && self.awaited.insert(status.id.clone()) {
                let (engine, id, ends) = (self.engine.clone(), status.id.clone(), self.ends.0.clone());
                tokio::task::spawn_local(async move {
                    // However the wait ends, looking again tells what became of the container.
                    let _ = engine.wait_container(&id).await;
                    let _ = ends.send(id);
                });
            }
        }
        let delay = wake_at.map(|at| Duration::from_nanos((at - time::now()).max(0).unsigned_abs()));
        let look = delay.map_or(LOOK, |delay| delay.min(LOOK));
        tokio::select! {
            Some(id) = self.ends.1.recv() => { self.awaited.remove(&id); }
            () = tokio::time::sleep(look) => {}
        }
    }

    /// Nothing can be started again without a supervisor.
    fn check_sandbox(&self) -> Result<()> {
        match self.engine.sandbox_status(&self.sandbox)?.state {
            SandboxState::Ready => Ok(()),
            state => bail!(
                "pod {}: its sandbox is {}: the supervisor has died (`coracle doctor` tells what it left)",
                self.kept.pod.name,
                state.as_str()
            ),
        }
    }

    /// Releases what the pod held of the machine; its records and logs stay until it is removed.
    async fn finish(&self) -> Result<()> {
        self.engine.stop_sandbox(&self.sandbox).await.with_context(|| format!("stop sandbox {}", self.sandbox))
    }

    fn container(&self, index: usize) -> &Container {
        let pod = &self.kept.pod;
        pod.init.get(index).unwrap_or_else(|| &pod.containers[index - pod.init.len()])
    }

    fn is_gone(&self) -> bool {
        !matches!(self.folder.read_pod(), Ok(Some(_)))
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
