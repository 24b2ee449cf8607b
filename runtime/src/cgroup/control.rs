//! The life of a cgroup with processes: listing, freezing, killing, out-of-memory events, removal.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        inotify::{AddWatchFlags, InitFlags, Inotify},
        signal::kill,
    },
    unistd::Pid,
};

use super::{
    Cgroup, Version,
    error::{Error, Result},
    put, put_to,
};

/// Deeper trees of child cgroups than the kernel allows by default to exist.
const MAX_DEPTH: usize = 64;
/// How long a freeze may take before it is given up and undone.
const FREEZE_BOUND: Duration = Duration::from_secs(10);
/// v1: how long FREEZING may last before a thaw gives the kernel another try.
const FREEZE_ROUND: Duration = Duration::from_millis(100);
/// Rounds of signals until a cgroup without a freezer is empty: each can meet processes forked since the last.
const KILL_ROUNDS: u32 = 100;
/// How long the kernel may take to let an emptied cgroup go.
const REMOVE_BOUND: Duration = Duration::from_secs(2);
/// First pause of a wait; each is twice the one before, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Pauses that grow, until a bound.
struct Backoff {
    pause: Duration,
    end: Instant,
}

impl Backoff {
    fn within(bound: Duration) -> Self {
        Backoff { pause: FIRST_PAUSE, end: Instant::now() + bound }
    }

    /// Sleeps; false when the bound is reached.
    fn wait(&mut self) -> bool {
        if Instant::now() >= self.end {
            return false;
        }
        sleep(self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        true
    }
}

/// The processes directly in one cgroup; empty when it is gone.
fn processes_in(directory: &Path) -> Result<Vec<i32>> {
    let mut path = directory.join("cgroup.procs");
    let text = match fs::read_to_string(&path) {
        // A threaded cgroup does not list processes.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            path = directory.join("cgroup.threads");
            fs::read_to_string(&path)
        }
        other => other,
    };
    match text {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
        Err(e) if gone(&e) => Ok(Vec::new()),
        Err(e) => Err(Error::io("read", path, e)),
    }
}

/// A cgroup removed before or while its file was read.
fn gone(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV)
}

/// Child cgroups, if any.
fn children(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

/// The cgroup and all beneath it, parents first.
fn tree(directory: &Path) -> Vec<PathBuf> {
    let mut found = vec![directory.to_path_buf()];
    let mut level = 0..1;
    for _ in 0..MAX_DEPTH {
        let below: Vec<PathBuf> = found[level.clone()].iter().flat_map(|d| children(d)).collect();
        if below.is_empty() {
            break;
        }
        level = found.len()..found.len() + below.len();
        found.extend(below);
    }
    found
}

fn all_processes(directory: &Path) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    for directory in tree(directory) {
        pids.extend(processes_in(&directory)?);
    }
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

/// A cgroup found where a new one was to be made is taken over only if nobody lives in it, but for `holder`.
pub(super) fn require_empty(directory: &Path, holder: Option<i32>) -> Result<()> {
    let mut pids = all_processes(directory)?;
    pids.retain(|pid| Some(*pid) != holder);
    if pids.is_empty() { Ok(()) } else { Err(Error::NotEmpty { path: directory.to_path_buf(), pids }) }
}

/// Where the kernel counts what memory's end has cost.
const V1_OOM: &str = "memory.oom_control";
const V2_OOM: &str = "memory.events";

impl Cgroup {
    /// A hierarchy to list processes by. Any would do: a container with a writable cgroup mount can move its processes to
    /// child cgroups, which the walk meets, but not out of its own.
    fn member_dir(&self) -> Option<&Path> {
        ["freezer", "pids", "memory", "cpu"].into_iter().find_map(|controller| self.dir_of(controller)).or(self
            .state
            .groups
            .first()
            .map(|group| group.path.as_path()))
    }

    /// All processes, those in child cgroups as well.
    pub fn pids(&self) -> Result<Vec<i32>> {
        self.require_one("list the processes")?;
        self.member_dir().map_or(Ok(Vec::new()), all_processes)
    }

    /// Stops every process in the kernel's freezer; returns when all have stopped.
    pub fn freeze(&self) -> Result<()> {
        self.require_one("pause")?;
        match self.state.version {
            Version::V1 => self.freeze_v1(),
            Version::V2 => freeze_v2(&self.state.groups[0].path),
        }
    }

    /// Lets them run again.
    pub fn thaw(&self) -> Result<()> {
        let (path, value) = self.freezer()?;
        put(&path, value).map_err(|e| Error::io("thaw by", path, e))
    }

    /// Whether the cgroup is frozen (or on its way there). One that is gone is not.
    pub fn frozen(&self) -> Result<bool> {
        let Ok((path, thawed)) = self.freezer() else { return Ok(false) };
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim() != thawed),
            Err(e) if gone(&e) => Ok(false),
            Err(e) => Err(Error::io("read", path, e)),
        }
    }

    /// The freezer's file, and its word for "thawed".
    fn freezer(&self) -> Result<(PathBuf, &'static str)> {
        self.require_one("pause and resume")?;
        match self.state.version {
            Version::V2 => Ok((self.state.groups[0].path.join("cgroup.freeze"), "0")),
            Version::V1 => match self.dir_of("freezer") {
                Some(dir) => Ok((dir.join("freezer.state"), "THAWED")),
                None => Err(Error::MissingController {
                    field: "pause".to_owned(),
                    controller: "freezer".to_owned(),
                    why: "is not mounted on this host".to_owned(),
                }),
            },
        }
    }

    /// v1 stays in FREEZING when a process forks or is traced at the wrong moment; thawing and trying again helps.
    fn freeze_v1(&self) -> Result<()> {
        let (path, _) = self.freezer()?;
        let failed = |e| Error::io("freeze by", &path, e);
        let mut file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
        let mut total = Backoff::within(FREEZE_BOUND);
        loop {
            let mut round = Backoff::within(FREEZE_ROUND);
            put_to(&file, "FROZEN").map_err(failed)?;
            loop {
                let mut text = String::new();
                file.rewind().and_then(|()| file.read_to_string(&mut text)).map_err(failed)?;
                match text.trim() {
                    "FROZEN" => return Ok(()),
                    "FREEZING" if round.wait() => {}
                    "FREEZING" => break,
                    _ => return Err(Error::Malformed { path, text }),
                }
            }
            put_to(&file, "THAWED").map_err(failed)?;
            if !total.wait() {
                return Err(Error::Timeout { operation: "freeze", path, millis: FREEZE_BOUND.as_millis() });
            }
        }
    }

    /// Sends a signal to every process, so that none escapes by forking meanwhile.
    pub fn kill_all(&self, signal: i32) -> Result<()> {
        let Some(directory) = self.member_dir() else { return Ok(()) };
        if self.state.version == Version::V2 && signal == libc::SIGKILL {
            match put(&directory.join("cgroup.kill"), "1") {
                Ok(()) => return Ok(()),
                Err(e) if e.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
                // Linux before 5.14, or gone: the walk below settles it.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("kill all processes of cgroup", directory, e)),
            }
        }
        if all_processes(directory)?.is_empty() {
            return Ok(());
        }
        // One that was paused stays paused, but for a kill: frozen processes on v1 do not die.
        let was_frozen = self.frozen()?;
        let frozen = was_frozen || self.freeze().is_ok();
        let outcome = if frozen || signal != libc::SIGKILL {
            all_processes(directory).and_then(|pids| signal_each(&pids, signal))
        } else {
            kill_in_rounds(directory)
        };
        if frozen && (!was_frozen || signal == libc::SIGKILL) {
            self.thaw()?;
        }
        outcome
    }

    /// How many processes the kernel killed for lack of memory; 0 without a memory controller.
    pub fn oom_kill_count(&self) -> Result<u64> {
        let file = if self.state.version == Version::V1 { V1_OOM } else { V2_OOM };
        let Some(path) = self.dir_of("memory").map(|dir| dir.join(file)) else { return Ok(0) };
        match fs::read_to_string(&path) {
            Ok(text) => Ok(super::readings::value_of(&text, "oom_kill").unwrap_or(0)),
            Err(e) if gone(&e) => Ok(0),
            Err(e) => Err(Error::io("read", path, e)),
        }
    }

    /// A descriptor that polls readable when memory ran out: ask [`Cgroup::oom_kill_count`] what came of it.
    ///
    /// v1: an eventfd. v2: an inotify of `memory.events`, which other memory events make readable too. Both become readable
    /// when the cgroup goes away, and the reader must drain them.
    pub fn oom_event_fd(&self) -> Result<OwnedFd> {
        let directory = self.dir_of("memory").ok_or_else(|| Error::MissingController {
            field: "out-of-memory events".to_owned(),
            controller: "memory".to_owned(),
            why: "is not mounted on this host".to_owned(),
        })?;
        watch_oom(&directory.join(if self.state.version == Version::V1 { V1_OOM } else { V2_OOM }))
    }

    /// Removes the cgroup and the child cgroups that the container made. Idempotent. Its processes must be dead or dying: one
    /// that outlives the bound is an error that names it.
    pub fn remove(&self) -> Result<()> {
        let Some(unit) = &self.state.systemd else {
            return self.state.groups.iter().try_for_each(|group| remove_tree(&group.path));
        };
        // systemd would kill what lives; that is for the caller to decide.
        let mut backoff = Backoff::within(REMOVE_BOUND);
        while let pids = self.pids()?
            && !pids.is_empty()
        {
            if !backoff.wait() {
                return Err(Error::Busy { path: unit.name.clone().into(), pids });
            }
        }
        let stopped = super::systemd::remove(unit);
        // Some directories systemd did not know of, and an old one leaves those beneath.
        self.state.groups.iter().try_for_each(|group| remove_tree(&group.path))?;
        stopped
    }
}

/// The same for the file in which the kernel counts: `memory.oom_control` (v1) or `memory.events`.
pub fn watch_oom(file: &Path) -> Result<OwnedFd> {
    let failed = |e: Errno| Error::io("watch for out-of-memory events of", file, e.into());
    if file.ends_with(V2_OOM) {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(failed)?;
        inotify.add_watch(file, AddWatchFlags::IN_MODIFY).map_err(failed)?;
        return Ok(inotify.into());
    }
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(failed)?;
    let watched = File::open(file).map_err(|e| Error::io("open", file, e))?;
    let order = format!("{} {}", event.as_fd().as_raw_fd(), watched.as_raw_fd());
    let control = file.with_file_name("cgroup.event_control");
    put(&control, &order).map_err(|e| Error::io("register for events at", control, e))?;
    Ok(event.into())
}

fn remove_tree(directory: &Path) -> Result<()> {
    let mut backoff = Backoff::within(REMOVE_BOUND);
    loop {
        match fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if e.raw_os_error() != Some(libc::EBUSY) => return Err(Error::io("remove cgroup", directory, e)),
            Err(_) => {}
        }
        // Busy: child cgroups, which go the deepest first; or processes that have not quite left.
        for child in tree(directory).iter().skip(1).rev() {
            let _ = fs::remove_dir(child);
        }
        if !backoff.wait() {
            return Err(Error::Busy { path: directory.to_path_buf(), pids: all_processes(directory)? });
        }
    }
}

fn signal_each(pids: &[i32], signal: i32) -> Result<()> {
    for &pid in pids {
        // A pid of 0 is a process outside of our pid namespace; kill(0) would hit ourselves.
        if pid <= 0 {
            continue;
        }
        match kill_raw(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => {
                return Err(Error::io("signal a process of the cgroup by", format!("kill({pid}, {signal})"), e.into()));
            }
        }
    }
    Ok(())
}

/// Without a freezer: kill until none is left, since each round can meet newborn ones.
fn kill_in_rounds(directory: &Path) -> Result<()> {
    for _ in 0..KILL_ROUNDS {
        let pids = all_processes(directory)?;
        if pids.is_empty() {
            return Ok(());
        }
        signal_each(&pids, libc::SIGKILL)?;
        sleep(FIRST_PAUSE);
    }
    Ok(()) // Those left are dying or unkillable: remove() will tell.
}

fn freeze_v2(directory: &Path) -> Result<()> {
    let path = directory.join("cgroup.freeze");
    put(&path, "1").map_err(|e| Error::io("freeze by", &path, e))?;
    let path = directory.join("cgroup.events");
    let failed = |e| Error::io("wait for the freeze by", &path, e);
    let mut events = File::open(&path).map_err(failed)?;
    let end = Instant::now() + FREEZE_BOUND;
    loop {
        let mut text = String::new();
        events.rewind().and_then(|()| events.read_to_string(&mut text)).map_err(failed)?;
        if super::readings::value_of(&text, "frozen") == Some(1) {
            return Ok(());
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let _ = put(&directory.join("cgroup.freeze"), "0");
            return Err(Error::Timeout {
                operation: "freeze",
                path: directory.into(),
                millis: FREEZE_BOUND.as_millis(),
            });
        }
        let timeout = PollTimeout::try_from(left.as_millis().max(1) as i32).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(failed(e.into())),
        }
    }
}

/// kill(2) with any signal number: realtime signals have no name in nix.
fn kill_raw(pid: i32, signal: i32) -> nix::Result<()> {
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(signal) => kill(Pid::from_raw(pid), signal),
        Err(_) => super::sys::kill(pid, signal),
    }
}
