//! What happens to pods and containers, told as it happens: made, started, stopped, removed.
//!
//! Nobody who makes things happen says so. The truth lies in the state folder (records, and the `exit.json` that a
//! supervisor writes when a container ends), so that folder is watched with inotify, and each supervisor by its pidfd:
//! one thread, one epoll set, no connection to any supervisor. What another process does to the same pods is told like
//! the server's own deeds, and a supervisor that is stopped or killed neither delays nor hides anything.
//!
//! A notification only says where to look. The thread reads the pod as any caller of the engine would and compares it with
//! what was told before; the difference is the events:
//!
//! ```text
//!   inotify, pidfds -> pods to look at -> their state - what was told of them = events -> subscribers
//!                                                          ^                                  |
//!                                                          +---------- the journal <----------+
//! ```
//!
//! ## None lost, none doubled
//! - An event counts as told when a subscriber has taken it out of its queue; then, before the bytes leave for the client,
//!   the [journal](journal) says so. After a restart the first subscriber is told the difference between the journal and
//!   what there is: what happened while nobody watched. A kill between the journal and the client's socket loses an event;
//!   no order of the two could do better without the client's help, and a client whose stream breaks lists anew.
//! - What came and went altogether while nobody watched was never seen and is not told.
//! - Nothing is watched without a subscriber. When the last one leaves, the journal is valid for [`ABSENCE`] more, so that
//!   a client that comes back misses nothing and one that comes next week is not told history.
//! - Each subscriber has a queue of [`QUEUE`] events. One that is so slow that it fills is cut off with
//!   [`Ended::TooSlow`]: it must list anew. Nobody else waits for it.
//! - Further subscribers hear what happens from then on.

mod journal;
mod track;
mod watch;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use self::journal::Journal;
use self::watch::Watch;
use crate::engine::{Engine, blocking};
use crate::error::{Error, Result};
use crate::lock::LifeLock;
use crate::types::{ContainerStatus, SandboxStatus};

/// Events that wait for one subscriber.
pub const QUEUE: usize = 1024;
/// How long the journal outlives its last subscriber.
pub const ABSENCE: Duration = Duration::from_secs(300);
/// Subscribers at once.
const MAX_SUBSCRIBERS: usize = 64;

/// What happened. The order is that of a life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// It was made.
    Created,
    /// It runs.
    Started,
    /// It runs no more.
    Stopped,
    /// It is gone.
    Deleted,
}

/// A pod as it was when an event was found.
#[derive(Debug, Clone, PartialEq)]
pub struct PodView {
    /// The sandbox. Of one that is gone: what names it.
    pub sandbox: SandboxStatus,
    /// Its containers.
    pub containers: Vec<ContainerStatus>,
}

/// Something happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// To this container; to the sandbox itself if both ids are the same.
    pub id: String,
    /// In this sandbox.
    pub sandbox_id: String,
    /// What.
    pub kind: EventKind,
    /// When it was found, in nanoseconds since the epoch; never less than the event's before it.
    pub at: i64,
    /// The pod.
    pub pod: Arc<PodView>,
}

/// Why a subscription is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Its queue was full: events were not told.
    TooSlow,
    /// The state folder cannot be watched any more.
    Broken,
}

/// The events of one engine's state folder. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Feed {
    engine: Engine,
    local: Option<bool>,
    hub: Arc<Hub>,
}

/// What the thread and the subscriptions share.
struct Hub {
    state: Mutex<State>,
    next: AtomicU64,
}

#[derive(Default)]
struct State {
    subscribers: HashMap<u64, Subscriber>,
    /// While there are subscribers.
    running: Option<Running>,
}

struct Running {
    waker: Arc<watch::Waker>,
    journal: Arc<Mutex<Journal>>,
    /// Two servers on one state folder would spoil each other's journal.
    _lock: LifeLock,
}

struct Subscriber {
    queue: mpsc::Sender<Arc<Event>>,
    too_slow: Arc<AtomicBool>,
}

/// The state is whole at every moment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Feed {
    /// A feed without subscribers, which costs nothing. `local` is as in [`ContainerFilter`](crate::ContainerFilter).
    pub fn new(engine: Engine, local: Option<bool>) -> Feed {
        Feed { engine, local, hub: Arc::new(Hub { state: Mutex::default(), next: AtomicU64::new(0) }) }
    }

    /// Everything that happens from now on; to the only subscriber also what happened since the last one was there.
    pub async fn subscribe(&self) -> Result<Subscription> {
        let feed = self.clone();
        blocking(move || feed.begin()).await
    }

    fn begin(&self) -> Result<Subscription> {
        let mut state = lock(&self.hub.state);
        if state.subscribers.len() >= MAX_SUBSCRIBERS {
            let reason = format!("{MAX_SUBSCRIBERS} others are told already");
            return Err(Error::invalid("subscribe to events", reason));
        }
        let (journal, backlog) = match &state.running {
            Some(running) => (running.journal.clone(), Vec::new()),
            None => {
                let (running, watch, backlog) = self.start()?;
                let journal = running.journal.clone();
                let hub = self.hub.clone();
                let name = "events".to_owned();
                // What is already found is sent below, before the thread can send more: it waits for this lock.
                let run = move || watch.run(&hub);
                std::thread::Builder::new()
                    .name(name)
                    .stack_size(watch::STACK)
                    .spawn(run)
                    .map_err(Error::io("start the thread that watches", self.engine.paths().pods()))?;
                state.running = Some(running);
                (journal, backlog)
            }
        };
        let (queue, events) = mpsc::channel(QUEUE + backlog.len());
        for event in backlog {
            // It has room for all of them.
            let _ = queue.try_send(event);
        }
        let key = self.hub.next.fetch_add(1, Ordering::Relaxed);
        let too_slow = Arc::new(AtomicBool::new(false));
        state.subscribers.insert(key, Subscriber { queue, too_slow: too_slow.clone() });
        Ok(Subscription { hub: self.hub.clone(), key, events, journal, told: None, too_slow, over: false })
    }

    /// Begins to watch, and finds what has happened since the journal was written.
    fn start(&self) -> Result<(Running, Watch, Vec<Arc<Event>>)> {
        let dir = &self.engine.paths().state;
        let lock = LifeLock::try_take(&dir.join("events.lock"))?;
        let lock = lock.ok_or_else(|| Error::State {
            operation: "watch",
            object: dir.display().to_string(),
            state: "watched by another server".into(),
        })?;
        let path = dir.join("events.log");
        let told = journal::read(&path, ABSENCE)?;
        let known = told.is_some();
        let mut watch = Watch::new(self.engine.clone(), self.local, told.unwrap_or_default())?;
        let found = watch.look_at_all();
        // Without a journal, what is there is where the story begins.
        let (journal, backlog) = match known {
            true => (Journal::begin(&path, watch.told_before())?, found),
            false => (Journal::begin(&path, watch.told())?, Vec::new()),
        };
        let running = Running { waker: watch.waker(), journal: Arc::new(Mutex::new(journal)), _lock: lock };
        Ok((running, watch, backlog.into_iter().map(Arc::new).collect()))
    }
}

impl Hub {
    /// Sends to everyone; who cannot take it is cut off.
    fn send(&self, event: Event) {
        let event = Arc::new(event);
        let mut state = lock(&self.state);
        state.subscribers.retain(|_, subscriber| match subscriber.queue.try_send(event.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                subscriber.too_slow.store(true, Ordering::Relaxed);
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
    }

    /// The watching thread asks whether it is still needed; if not, it ends here.
    fn over(&self) -> bool {
        let mut state = lock(&self.state);
        if !state.subscribers.is_empty() {
            return false;
        }
        if let Some(running) = state.running.take() {
            lock(&running.journal).idle();
        }
        true
    }

    /// The watching thread cannot go on: every subscription ends.
    fn broken(&self) {
        let mut state = lock(&self.state);
        state.subscribers.clear();
        state.running = None;
    }
}

/// One subscriber's events.
pub struct Subscription {
    hub: Arc<Hub>,
    key: u64,
    events: mpsc::Receiver<Arc<Event>>,
    journal: Arc<Mutex<Journal>>,
    told: Option<Arc<Event>>,
    too_slow: Arc<AtomicBool>,
    over: bool,
}

impl Subscription {
    /// The next event; an error is the last thing it says. Taking one says that the one before it was passed on.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Arc<Event>, Ended>>> {
        if let Some(event) = self.told.take() {
            lock(&self.journal).told(&event);
        }
        if self.over {
            return Poll::Ready(None);
        }
        match self.events.poll_recv(context) {
            Poll::Ready(Some(event)) => {
                self.told = Some(event.clone());
                Poll::Ready(Some(Ok(event)))
            }
            Poll::Ready(None) => {
                self.over = true;
                let slow = self.too_slow.load(Ordering::Relaxed);
                Poll::Ready(Some(Err(if slow { Ended::TooSlow } else { Ended::Broken })))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// As [`Subscription::poll_next`].
    pub async fn next(&mut self) -> Option<Result<Arc<Event>, Ended>> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut state = lock(&self.hub.state);
        state.subscribers.remove(&self.key);
        if let Some(running) = state.running.as_ref().filter(|_| state.subscribers.is_empty()) {
            running.waker.wake();
        }
    }
}

#[cfg(test)]
mod tests;
