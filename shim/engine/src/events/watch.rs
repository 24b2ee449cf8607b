//! The thread that watches the state folder: one inotify instance and the pidfds of supervisors in one epoll set.
//!
//! Watched are `pods/` (folders come and go), each pod's folder (its record is replaced), its `containers/` (folders come
//! and go) and each container's folder (record and `exit.json` are replaced). Files are only ever replaced by renames, so
//! locks that are asked for and temporary files make no noise. Watches are set before the state is read, each time a pod
//! is looked at: setting one again costs a system call and changes nothing. When the kernel's queue overflows, everything
//! is looked at.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use super::journal::AllTold;
use super::{Event, Hub, PodView, track};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::lock::Holder;
use crate::record::now;
use crate::types::ContainerFilter;
use crate::{id, sys};

/// The thread's stack: it reads files and compares small lists.
pub(super) const STACK: usize = 512 << 10;
/// Events taken from the kernel at once.
const BATCH: usize = 32;
/// When a pod that could not be read (out of descriptors, a damaged record) is looked at again, in milliseconds.
const RETRY: u16 = 2000;

const INOTIFY: u64 = 0;
const WAKER: u64 = 1;
/// Keys of supervisors count up from here.
const FIRST_SUPERVISOR: u64 = 2;

/// Wakes the thread.
pub(super) struct Waker {
    fd: EventFd,
}

impl Waker {
    pub(super) fn wake(&self) {
        // Only a full counter could fail, and then it is awake.
        let _ = self.fd.write(1);
    }
}

/// A supervisor that is watched.
struct Supervisor {
    pid: i32,
    key: u64,
    fd: OwnedFd,
}

/// See the [module](self).
pub(super) struct Watch {
    engine: Engine,
    local: Option<bool>,
    epoll: Epoll,
    inotify: Inotify,
    waker: Arc<Waker>,
    /// Whose folder is watched; `None` is the folder of all pods.
    watched: HashMap<WatchDescriptor, Option<Arc<str>>>,
    supervisors: HashMap<Arc<str>, Supervisor>,
    keys: HashMap<u64, Arc<str>>,
    next_key: u64,
    told: AllTold,
    told_before: AllTold,
    /// Pods that could not be read when they changed.
    unread: BTreeSet<Arc<str>>,
    last: AtomicI64,
}

impl Watch {
    /// Begins to watch. `told` is what subscribers know already.
    pub(super) fn new(engine: Engine, local: Option<bool>, told: AllTold) -> Result<Watch> {
        let pods = engine.paths().pods();
        let failed = || Error::os("watch", &pods);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed())?;
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(failed())?;
        let fd = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(failed())?;
        let readable = |data| EpollEvent::new(EpollFlags::EPOLLIN, data);
        epoll.add(&inotify, readable(INOTIFY)).map_err(failed())?;
        epoll.add(&fd, readable(WAKER)).map_err(failed())?;
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE;
        let all = inotify.add_watch(&pods, flags | AddWatchFlags::IN_MOVED_FROM).map_err(failed())?;
        Ok(Watch {
            engine,
            local,
            epoll,
            inotify,
            waker: Arc::new(Waker { fd }),
            watched: HashMap::from([(all, None)]),
            supervisors: HashMap::new(),
            keys: HashMap::new(),
            next_key: FIRST_SUPERVISOR,
            told_before: told.clone(),
            told,
            unread: BTreeSet::new(),
            last: AtomicI64::new(0),
        })
    }

    pub(super) fn waker(&self) -> Arc<Waker> {
        self.waker.clone()
    }

    /// What subscribers knew when this began.
    pub(super) fn told_before(&mut self) -> AllTold {
        std::mem::take(&mut self.told_before)
    }

    /// What was found up to now.
    pub(super) fn told(&self) -> AllTold {
        self.told.clone()
    }

    /// Watches until nobody listens.
    pub(super) fn run(mut self, hub: &Hub) {
        while !hub.over() {
            let Some(dirty) = self.wait() else { return hub.broken() };
            for pod in dirty {
                for event in self.look_at(&pod) {
                    hub.send(event);
                }
            }
        }
    }

    /// Looks at every pod that is there or was.
    pub(super) fn look_at_all(&mut self) -> Vec<Event> {
        self.everything().iter().flat_map(|pod| self.look_at(pod)).collect()
    }

    fn everything(&self) -> BTreeSet<Arc<str>> {
        let there = self.engine.sandbox_ids().unwrap_or_default();
        let known = self.told.values().map(|told| told.pod.clone());
        there.into_iter().chain(known).map(Arc::from).collect()
    }

    /// Waits for something to happen, and tells which pods to look at.
    fn wait(&mut self) -> Option<BTreeSet<Arc<str>>> {
        let mut ready = [EpollEvent::empty(); BATCH];
        let timeout = if self.unread.is_empty() { EpollTimeout::NONE } else { EpollTimeout::from(RETRY) };
        let count = match self.epoll.wait(&mut ready, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(_) => return None,
        };
        let mut dirty = std::mem::take(&mut self.unread);
        for event in &ready[..count] {
            match event.data() {
                INOTIFY => self.notified(&mut dirty)?,
                WAKER => {
                    let _ = self.waker.fd.read();
                }
                key => {
                    if let Some(pod) = self.keys.remove(&key) {
                        // Leaves the set with its last descriptor.
                        self.supervisors.remove(&pod);
                        dirty.insert(pod);
                    }
                }
            }
        }
        Some(dirty)
    }

    fn notified(&mut self, dirty: &mut BTreeSet<Arc<str>>) -> Option<()> {
        loop {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => return Some(()),
                Err(Errno::EINTR) => continue,
                Err(_) => return None,
            };
            for event in events {
                self.notification(event, dirty);
            }
        }
    }

    fn notification(&mut self, event: InotifyEvent, dirty: &mut BTreeSet<Arc<str>>) {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            dirty.extend(self.everything());
        } else if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.watched.remove(&event.wd);
        } else {
            let pod = match self.watched.get(&event.wd) {
                Some(Some(pod)) => Some(pod.clone()),
                Some(None) => event.name.as_deref().and_then(OsStr::to_str).filter(|n| id::is_id(n)).map(Arc::from),
                None => None,
            };
            dirty.extend(pod);
        }
    }

    /// Whether the folder is there.
    fn watch(&mut self, dir: &Path, flags: AddWatchFlags, pod: &Arc<str>) -> bool {
        match self.inotify.add_watch(dir, flags | AddWatchFlags::IN_ONLYDIR) {
            Ok(descriptor) => {
                self.watched.entry(descriptor).or_insert_with(|| Some(pod.clone()));
                true
            }
            Err(Errno::ENOENT | Errno::ENOTDIR) => false,
            // No more watches: what others do to it is found when something else in the pod is.
            Err(_) => true,
        }
    }

    /// Reads a pod and tells what is new.
    fn look_at(&mut self, pod: &Arc<str>) -> Vec<Event> {
        let dir = self.engine.paths().pod(pod);
        let replaced = AddWatchFlags::IN_MOVED_TO;
        let folders = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_TO;
        if !self.watch(&dir, replaced, pod) {
            self.forget(pod);
            return track::farewell(&mut self.told, pod, || self.last.clock());
        }
        self.watch(&dir.join("containers"), folders, pod);
        let containers = self.engine.container_ids(pod);
        for container in containers.iter().flatten() {
            let dir = self.engine.paths().container(pod, container);
            self.watch(&dir, replaced, pod);
        }
        self.watch_supervisor(pod);
        match containers.and_then(|folders| Ok((folders, self.view(pod)?))) {
            Ok((folders, Some(view))) => track::news(&mut self.told, &Arc::new(view), &folders, || self.last.clock()),
            Ok((_, None)) => Vec::new(),
            // Just being made or removed: that changes it once more.
            Err(e) if e.is_not_found() => Vec::new(),
            Err(_) => {
                self.unread.insert(pod.clone());
                Vec::new()
            }
        }
    }

    fn view(&self, pod: &str) -> Result<Option<PodView>> {
        let filter = ContainerFilter { sandbox_id: pod.to_owned(), ..Default::default() };
        let sandbox = self.engine.sandbox_status(pod)?;
        if self.local.is_some_and(|local| local != sandbox.config.exclusive_name) {
            return Ok(None);
        }
        let containers = self.engine.list_containers(&filter)?;
        Ok(Some(PodView { sandbox, containers }))
    }

    /// The end of the supervisor is the end of what it ran, and it may be killed without a word.
    fn watch_supervisor(&mut self, pod: &Arc<str>) {
        let Ok(Holder::Pid(pid)) = self.engine.supervisor_of(pod) else { return };
        if self.supervisors.get(pod).is_some_and(|known| known.pid == pid) {
            return;
        }
        let Ok(fd) = sys::pidfd_open(pid) else { return };
        // Until here the pid may have become another's.
        if self.engine.supervisor_of(pod).ok() != Some(Holder::Pid(pid)) {
            return;
        }
        let key = self.next_key;
        self.next_key += 1;
        if self.epoll.add(fd.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, key)).is_ok() {
            self.keys.insert(key, pod.clone());
            if let Some(old) = self.supervisors.insert(pod.clone(), Supervisor { pid, key, fd }) {
                self.keys.remove(&old.key);
            }
        }
    }

    fn forget(&mut self, pod: &str) {
        if let Some(gone) = self.supervisors.remove(pod) {
            let _ = self.epoll.delete(gone.fd.as_fd());
            self.keys.remove(&gone.key);
        }
    }
}

/// The time, which never goes back: a client takes what is older than what it knows for stale.
trait Clock {
    fn clock(&self) -> i64;
}

impl Clock for AtomicI64 {
    fn clock(&self) -> i64 {
        let at = now().max(self.load(Ordering::Relaxed) + 1);
        self.store(at, Ordering::Relaxed);
        at
    }
}
