//! Everything after create: start, state, signals, freezing, limits, delete.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use oci_spec::runtime::LinuxResources;

use crate::cgroup::{Cgroup, CgroupOptions, Stats};
use crate::create::{cgroup_error, socket_path};
use crate::error::{Context, Error, Result};
use crate::handle::Handle;
use crate::spec::{NamespaceKind, Process, Spec};
use crate::state::{self, Detail, Record, SOCKET, State, Status};
use crate::{Runtime, hooks, members, rdt, refuse, sys};

/// How long delete waits for a killed process, as long as runc.
const KILL_WAIT: Duration = Duration::from_secs(10);

impl Runtime {
    /// Lets a created container run its program.
    pub fn start(&self, id: &str) -> Result<()> {
        let record = Record::load(&self.root, id)?;
        let status = record.status(&self.root)?;
        if status != Status::Created {
            return Err(Error::State(format!("cannot start container {id:?}: it is {status}")));
        }
        let dir = self.root.join(id);
        let handle = fs::File::open(&dir).path("open", &dir)?;
        let mut stream =
            sys::connect(&socket_path(&handle)).op(|| format!("start container {id:?}: reach its process"))?;
        let mut words = String::new();
        stream.read_to_string(&mut words).op(|| format!("start container {id:?}: hear from its process"))?;
        if !words.is_empty() {
            return Err(Error::Init(words));
        }
        fs::remove_file(dir.join(SOCKET)).path("remove", &dir.join(SOCKET))?;
        // Most containers have no such hooks: the configuration is not parsed for nothing.
        if record.has_poststart {
            let spec = record.spec(&self.root)?;
            let state = state::hook_state(&spec, id, &record.bundle, "running", record.pid);
            // The container that a hook could not follow up does not go on.
            hooks::run("poststart", &spec.hooks.poststart, &state, &record.bundle)
                .inspect_err(|_| drop(record.kill_and_wait()))?;
        }
        Ok(())
    }

    /// The state of a container.
    pub fn state(&self, id: &str) -> Result<State> {
        Record::load(&self.root, id)?.state(&self.root)
    }

    /// What whoever keeps a container has to know of it.
    pub fn detail(&self, id: &str) -> Result<Detail> {
        let Record { cgroup, own_pid_namespace, .. } = Record::load(&self.root, id)?;
        Ok(Detail { cgroup, own_pid_namespace })
    }

    /// The process of a container's configuration: what exec starts from.
    pub fn process(&self, id: &str) -> Result<Process> {
        Record::load(&self.root, id)?;
        let process = Spec::load_process(&self.root.join(id).join(state::CONFIG))?;
        process.ok_or_else(|| Error::invalid("config.json: process is missing"))
    }

    /// The ids of all containers, sorted; among them may be some that are just being made or removed.
    pub fn ids(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(&self.root) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            result => result.path("list", &self.root)?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.path("list", &self.root)?.file_name();
            ids.extend(name.into_string().ok().filter(|id| refuse::check_id(id).is_ok()));
        }
        ids.sort();
        Ok(ids)
    }

    /// Sends a signal to the init, or to every process of the container.
    pub fn kill(&self, id: &str, signal: i32, all: bool) -> Result<()> {
        let record = Record::load(&self.root, id)?;
        if all {
            // Also after the init's death: processes may be left in a shared PID namespace.
            let cgroup = record.cgroup();
            if cgroup.exists() {
                return cgroup.kill_all(signal).map_err(cgroup_error);
            }
            if record.cgroup.groups.is_empty() && record.alive() {
                return members::signal(&record, signal);
            }
        }
        if !record.signal(signal)? {
            return Err(Error::State(format!("cannot kill container {id:?}: container not running")));
        }
        Ok(())
    }

    /// Removes a stopped (or created) container; with `force` a running one, and one that does not exist.
    pub fn delete(&self, id: &str, force: bool) -> Result<()> {
        let record = match Record::load(&self.root, id) {
            Err(Error::NotFound(_)) if force => return self.remove_remains(id),
            result => result?,
        };
        let status = record.status(&self.root)?;
        match status {
            Status::Stopped => {}
            Status::Created => record.kill_and_wait()?,
            _ if force => record.kill_and_wait()?,
            _ => {
                let message = format!("cannot delete container {id:?} that is not stopped: it is {status}");
                return Err(Error::State(message));
            }
        }
        // Processes outlive the init only where the PID namespace is not the container's own; they hold the cgroup.
        let cgroup = record.cgroup();
        if record.namespaces & NamespaceKind::Pid.flag() == 0 || !record.own_pid_namespace {
            cgroup.kill_all(libc::SIGKILL).map_err(cgroup_error)?;
        }
        cgroup.remove().map_err(cgroup_error)?;
        if let Some(group) = &record.rdt {
            group.remove();
        }
        let spec = if record.has_poststop { Some(record.spec(&self.root)?) } else { None };
        let dir = self.root.join(id);
        fs::remove_dir_all(&dir).path("remove", &dir)?;
        if let Some(spec) = spec {
            let state = state::hook_state(&spec, id, &record.bundle, "stopped", 0);
            hooks::run_all("poststop", &spec.hooks.poststop, &state, &record.bundle);
        }
        Ok(())
    }

    /// What a killed create left: a directory without a record, and perhaps a cgroup. Its process has ended, for its
    /// channel closed.
    fn remove_remains(&self, id: &str) -> Result<()> {
        refuse::check_id(id)?;
        let dir = self.root.join(id);
        if let Ok((spec, _)) = Spec::load(&dir.join(state::CONFIG)) {
            let path = spec.linux.cgroups_path.as_deref().map(Path::new);
            Cgroup::remove_remains(&CgroupOptions::new(path, id)).map_err(cgroup_error)?;
        }
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            result => result.path("remove", &dir),
        }
    }

    /// Freezes all processes.
    pub fn pause(&self, id: &str) -> Result<()> {
        let record = self.expect_status(id, "pause", &[Status::Running, Status::Created])?;
        record.cgroup().freeze().map_err(cgroup_error)
    }

    /// Thaws them.
    pub fn resume(&self, id: &str) -> Result<()> {
        let record = self.expect_status(id, "resume", &[Status::Paused])?;
        record.cgroup().thaw().map_err(cgroup_error)
    }

    /// Changes limits; fields that are absent keep their value.
    pub fn update(&self, id: &str, resources: &LinuxResources) -> Result<()> {
        let record = self.expect_status(id, "update", &[Status::Created, Status::Running, Status::Paused])?;
        if *resources == LinuxResources::default() {
            return Ok(());
        }
        record.cgroup().apply(resources).map_err(cgroup_error)
    }

    /// Changes the schemata of a container with `linux.intelRdt`.
    pub fn update_rdt(&self, id: &str, l3_cache: Option<&str>, mem_bw: Option<&str>) -> Result<()> {
        let record = self.expect_status(id, "update", &[Status::Created, Status::Running, Status::Paused])?;
        let group = record.rdt.as_ref().ok_or_else(|| {
            Error::State(format!("cannot update container {id:?}: it was created without linux.intelRdt"))
        })?;
        rdt::Tree::mounted()?.update(group, l3_cache, mem_bw)
    }

    /// The pids of all processes.
    pub fn pids(&self, id: &str) -> Result<Vec<i32>> {
        let record = Record::load(&self.root, id)?;
        match record.cgroup.groups.is_empty() {
            true => members::pids(&record),
            false => record.cgroup().pids().map_err(cgroup_error),
        }
    }

    /// What the cgroup accounts.
    pub fn stats(&self, id: &str) -> Result<Stats> {
        let record =
            self.expect_status(id, "read the stats of", &[Status::Created, Status::Running, Status::Paused])?;
        record.cgroup().stats().map_err(cgroup_error)
    }

    /// A descriptor that becomes readable at an OOM event of the container.
    pub fn oom_events(&self, id: &str) -> Result<OwnedFd> {
        Record::load(&self.root, id)?.cgroup().oom_event_fd().map_err(cgroup_error)
    }

    /// How often the OOM killer struck in the container.
    pub fn oom_kills(&self, id: &str) -> Result<u64> {
        Record::load(&self.root, id)?.cgroup().oom_kill_count().map_err(cgroup_error)
    }

    fn expect_status(&self, id: &str, verb: &str, allowed: &[Status]) -> Result<Record> {
        let record = Record::load(&self.root, id)?;
        let status = record.status(&self.root)?;
        if !allowed.contains(&status) {
            return Err(Error::State(format!("cannot {verb} container {id:?}: it is {status}")));
        }
        Ok(record)
    }
}

impl Record {
    /// A handle of whoever has the init's pid now, if anyone has.
    fn init(&self) -> Result<Option<Handle>> {
        match Handle::open(self.pid) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            result => result.map(Some).op(|| format!("open the init of container {:?}", self.id)),
        }
    }

    /// Signals the init; false when it is dead.
    pub(crate) fn signal(&self, signal: i32) -> Result<bool> {
        let Some(init) = self.init()? else { return Ok(false) };
        // Compared after the handle was opened: it can no longer come to mean another process.
        if !self.alive() {
            return Ok(false);
        }
        match init.signal(signal) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            result => result.op(|| format!("send signal {signal} to container {:?}", self.id)).map(|()| true),
        }
    }

    fn kill_and_wait(&self) -> Result<()> {
        let Some(init) = self.init()? else { return Ok(()) };
        if !self.signal(libc::SIGKILL)? {
            return Ok(());
        }
        // A frozen process of cgroup v1 dies only when thawed.
        if self.cgroup().frozen().unwrap_or(false) {
            self.cgroup().thaw().map_err(cgroup_error)?;
        }
        match init.ends_within(KILL_WAIT).op(|| "wait for the killed process")? {
            true => Ok(()),
            false => Err(Error::State(format!("container {:?} is still running after SIGKILL", self.id))),
        }
    }
}
