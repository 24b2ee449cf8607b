//! What goes on beside the tender's own steps: hooks, probes, kills, and the waits for what happens. Each is a task of
//! its own that tells its end; dropped with the tender, none outlives it.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use coracle_engine::ContainerStatus;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::AbortHandle;

use super::keep::{Folder, Memory, STOP};
use super::kill::{self, Victim};
use super::probe::machine::Which;
use super::probe::{self, Probed};
use super::reach::Reach;
use super::{hook, observe};
use crate::kube::container::Container;
use crate::sys;

/// What a task tells.
#[derive(Debug)]
pub enum Told {
    /// A container has ended, or nobody can wait for it.
    Ended(String),
    /// A postStart hook has ended.
    Hooked(Of, Result<(), String>),
    /// A probe has changed its verdict.
    Probed(Of, Which, bool),
    /// A preStop hook is done.
    PreStopped(String),
    /// A single container was killed, or could not be.
    Killed(Of, Result<()>),
    /// All that ran of the pod was ended, or something could not be.
    PodEnded(Result<()>),
    /// The pod's folder has changed: it is to stop, or is gone.
    Changed,
}

/// An incarnation of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Of {
    /// The container.
    pub name: String,
    /// Its id in the engine.
    pub id: String,
}

/// The tasks of one tender.
pub struct Tasks {
    sender: UnboundedSender<Told>,
    receiver: UnboundedReceiver<Told>,
    awaited: HashSet<String>,
    hooks: HashMap<String, AbortHandle>,
    probes: HashMap<String, AbortHandle>,
    kills: HashMap<String, AbortHandle>,
    /// With the time at which what still runs is killed.
    end: Option<(i64, AbortHandle)>,
    others: Vec<AbortHandle>,
    /// Changes of the pod's folder are told.
    pub watches: bool,
}

impl Default for Tasks {
    fn default() -> Tasks {
        let (sender, receiver) = unbounded_channel();
        Tasks {
            sender,
            receiver,
            awaited: HashSet::new(),
            hooks: HashMap::new(),
            probes: HashMap::new(),
            kills: HashMap::new(),
            end: None,
            others: Vec::new(),
            watches: false,
        }
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        let (hooks, probes, kills) = (self.hooks.values(), self.probes.values(), self.kills.values());
        let end = self.end.iter().map(|(_, handle)| handle);
        hooks.chain(probes).chain(kills).chain(end).chain(&self.others).for_each(AbortHandle::abort);
    }
}

impl Tasks {
    /// The next thing told. There is always a sender.
    pub async fn next(&mut self) -> Option<Told> {
        self.receiver.recv().await
    }

    /// Whether something is under way that somebody has to be there for.
    pub fn busy(&self) -> bool {
        !self.hooks.is_empty() || !self.kills.is_empty() || self.end.is_some()
    }

    fn spawn(&self, work: impl Future<Output = Told> + 'static) -> AbortHandle {
        let sender = self.sender.clone();
        tokio::task::spawn_local(async move {
            // The tender may be leaving.
            let _ = sender.send(work.await);
        })
        .abort_handle()
    }

    /// Tells when the pod is to stop or is gone.
    pub fn watch(&mut self, folder: &Folder) {
        if self.watches {
            return;
        }
        let Ok(inotify) = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK) else { return };
        let flags = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE_SELF;
        if inotify.add_watch(folder.path(), flags).is_err() {
            return;
        }
        let Ok(readable) = inotify.as_fd().try_clone_to_owned().and_then(sys::readable) else { return };
        let sender = self.sender.clone();
        let handle = tokio::task::spawn_local(async move {
            while let Ok(mut ready) = readable.readable().await {
                ready.clear_ready();
                let Ok(events) = inotify.read_events() else { continue };
                let matters = |name: &Option<std::ffi::OsString>| name.as_ref().is_none_or(|name| name == STOP);
                if events.iter().any(|event| matters(&event.name)) && sender.send(Told::Changed).is_err() {
                    return;
                }
            }
        });
        self.others.push(handle.abort_handle());
        self.watches = true;
    }

    /// Waits for the end of what runs.
    pub fn await_ends(&mut self, reach: &Reach, statuses: &[&ContainerStatus]) {
        for status in statuses {
            if self.awaited.insert(status.id.clone()) {
                let (engine, id) = (reach.engine.clone(), status.id.clone());
                let handle = self.spawn(async move {
                    // However the wait ends, looking again tells what became of the container.
                    let _ = engine.wait_container(&id).await;
                    Told::Ended(id)
                });
                self.others.push(handle);
            }
        }
    }

    /// An end was heard of: what was done with the container is over.
    pub fn ended(&mut self, id: &str) {
        self.awaited.remove(id);
        self.probes.remove(id).iter().for_each(AbortHandle::abort);
        self.others.retain(|handle| !handle.is_finished());
    }

    /// Calls a running container's postStart hook, unless it is being called.
    pub fn hook(&mut self, reach: &Reach, container: &Container, id: &str) {
        let Some(action) = container.lifecycle.post_start.clone().filter(|_| !self.hooks.contains_key(id)) else {
            return;
        };
        let (reach, container, of) = (reach.clone(), container.clone(), of(container, id));
        let handle = self.spawn(async move {
            let result = hook::run(&reach, &container, &of.id, &action).await;
            Told::Hooked(of, result)
        });
        self.hooks.insert(id.to_owned(), handle);
    }

    /// A hook has ended.
    pub fn hooked(&mut self, id: &str) {
        self.hooks.remove(id);
    }

    /// Probes a running container, unless it is being probed.
    pub fn probe(&mut self, reach: &Reach, container: &Container, status: &ContainerStatus, started: bool) {
        if self.probes.contains_key(&status.id) || !probe::any(container) {
            return;
        }
        let of = of(container, &status.id);
        let (id, started_at) = (status.id.clone(), status.started_at);
        let probed = Probed { container: container.clone(), id, started_at, started };
        let (reach, sender) = (reach.clone(), self.sender.clone());
        let handle = tokio::task::spawn_local(async move {
            let tell = |which, verdict| {
                // The tender may be leaving.
                let _ = sender.send(Told::Probed(of.clone(), which, verdict));
            };
            probe::watch(&reach, &probed, tell).await;
        });
        self.probes.insert(status.id.clone(), handle.abort_handle());
    }

    /// Kills a single container for a reason of its own, unless it is being killed.
    pub fn kill(&mut self, reach: &Reach, victim: Victim) {
        if self.kills.contains_key(&victim.id) {
            return;
        }
        let of = of(&victim.container, &victim.id);
        self.probes.remove(&of.id).iter().for_each(AbortHandle::abort);
        let (reach, sender, id) = (reach.clone(), self.sender.clone(), of.id.clone());
        let handle = self.spawn(async move {
            let told = |name: &str| drop(sender.send(Told::PreStopped(name.to_owned())));
            let result = kill::container(&reach, &victim, async {}, told).await;
            Told::Killed(of, result)
        });
        self.kills.insert(id, handle);
    }

    /// A single container was killed.
    pub fn killed(&mut self, id: &str) {
        self.kills.remove(id);
    }

    /// Ends all that runs of the pod by that time; an end that is under way is only hurried. What else was done with
    /// its containers is over.
    pub fn end(&mut self, reach: &Reach, deadline: i64, mut victims: Vec<Victim>) {
        if self.end.as_ref().is_some_and(|(at, _)| *at <= deadline) {
            return;
        }
        self.hooks.drain().chain(self.probes.drain()).for_each(|(_, handle)| handle.abort());
        for victim in &mut victims {
            // It was told of already.
            if self.end.is_some() || self.kills.remove(&victim.id).is_some_and(|handle| abort(&handle)) {
                victim.message.clear();
            }
        }
        if let Some((_, handle)) = self.end.take() {
            handle.abort();
        }
        let (reach, sender) = (reach.clone(), self.sender.clone());
        let handle = self.spawn(async move {
            let told = move |name: &str| drop(sender.send(Told::PreStopped(name.to_owned())));
            Told::PodEnded(kill::pod(&reach, victims, told).await.context("stop the pod"))
        });
        self.end = Some((deadline, handle));
    }
}

fn abort(handle: &AbortHandle) -> bool {
    handle.abort();
    true
}

fn of(container: &Container, id: &str) -> Of {
    Of { name: container.name.clone(), id: id.to_owned() }
}

/// What is to be ended of a pod by that time.
pub fn victims(
    reach: &Reach,
    observed: &observe::Observed,
    deadline: i64,
    memory: impl Fn(&str) -> Option<Memory>,
) -> Vec<Victim> {
    let victim = |(container, status): (Container, &ContainerStatus)| {
        let pre_stopped = memory(&container.name).is_some_and(|memory| memory.pre_stopped);
        let message = format!("Stopping container {}", container.name);
        Victim { id: status.id.clone(), message, deadline, pre_stopped, container }
    };
    kill::running(reach, observed).into_iter().map(victim).collect()
}
