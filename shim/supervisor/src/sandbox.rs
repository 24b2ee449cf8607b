//! The sandbox service: the pod around the containers, which is this process itself.
//!
//! ```text
//! None -> Created -> Ready -> Stopping -> Stopped -> (the program ends)
//! ```
//! The supervisor unshares the pod's namespaces itself, so `/proc/<its pid>/ns/net` is the pod's network and goes when it
//! goes. It keeps the namespaces it came from open: workers and the tender return to them. A shared PID namespace needs
//! a first process: a fork that sleeps, dies with the supervisor, and never takes more than a few pages.
//!
//! With a virtual machine the pod's processes are in that; of the namespaces here only the network's is of use, where
//! the plugins find the pod. The machine lives from CreateSandbox until the sandbox is stopped.
//!
//! Without CreateSandbox (containerd starting single tasks) the pod is just the process.

mod namespaces;
mod options;

use crate::connection::Call;
use crate::containerd::events::Publisher;
use crate::failure::{Fail, Failure};
use crate::ops;
use crate::service::{Outcome, answered, decode, done};
use crate::supervisor::{Job, Supervisor};
use crate::task::State;
use crate::tender::Tender;
use crate::vm::{self, Vm};
use coracle_proto::coracle::{InfoResponse, NamespaceMode, ReopenLogRequest, SandboxOptions, UpdateSandboxRequest};
use coracle_proto::ttrpc::Code;
use coracle_proto::types::Platform;
use coracle_proto::{Timestamp, sandbox, task};
use nix::libc::{SIGKILL, SIGTERM};
use nix::sched::CloneFlags;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

/// How long killed processes may take to die before StopSandbox gives up: they sit in the kernel, waiting for a device.
const KILL_GRACE: Duration = Duration::from_secs(10);
/// How long the release may take: poststop hooks run in it.
const RELEASE_GRACE: Duration = Duration::from_secs(60);
/// How long clients may take to fetch the last answers before the program ends.
const FAREWELL: Duration = Duration::from_secs(1);
/// What the supervisor writes into its bundle and takes away again.
pub const SOCKET: &str = "supervisor.sock";
/// Attach clients connect here.
pub const ATTACH_SOCKET: &str = "attach.sock";
/// The pid, as text.
pub const PID_FILE: &str = "pid";
/// Where the pod's cgroup is.
pub const CGROUP_RECORD: &str = "cgroup.json";
/// State of the containers, by the runtime.
pub const RUNTIME_ROOT: &str = "oci";

/// Where the sandbox stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nobody asked for one.
    None,
    /// Its namespaces are there.
    Created,
    /// Containers may run in it.
    Ready,
    /// Everything in it is being killed.
    Stopping,
    /// Nothing runs in it, nor will.
    Stopped,
}

/// The sandbox.
pub struct Sandbox {
    /// Its id.
    pub id: String,
    /// Its directory, also the working directory.
    pub bundle: PathBuf,
    /// containerd's namespace; empty if it is not containerd that began us.
    pub namespace: String,
    /// The cgroup that containerd's options have for shims, in which this process is.
    pub shim_cgroup: String,
    /// The task socket, where containerd looks for it; else it is in the bundle.
    pub containerd_socket: Option<PathBuf>,
    /// Where it stands.
    pub phase: Phase,
    /// The namespaces the supervisor was started in, those of them that it left.
    pub host_namespaces: Vec<(OwnedFd, CloneFlags)>,
    /// When the loop has to look again: a stop that takes long, or the end of the program.
    pub deadline: Option<Instant>,
    /// The virtual machine that the pod is in.
    pub vm: Option<Box<Vm>>,
    options: SandboxOptions,
    /// The network namespace that is there already; empty to make one.
    netns_path: PathBuf,
    tender: Tender,
    /// The pod's own, that owns its other namespaces.
    user_namespace: Option<OwnedFd>,
    pod_init: i32,
    created_at: SystemTime,
    exited_at: Option<SystemTime>,
    killing: bool,
    /// Nobody asked for a sandbox, but its containers for what has to have one.
    implicit: bool,
    /// The program ends when the sandbox has stopped.
    ending: bool,
    releasing: bool,
    released: bool,
    pub(crate) waiters: Vec<Call>,
    stop_calls: Vec<Call>,
    end_calls: Vec<Call>,
}

impl Sandbox {
    /// Before anything was asked for.
    pub fn new(id: String, bundle: PathBuf) -> Self {
        Sandbox {
            id,
            bundle,
            namespace: String::new(),
            shim_cgroup: String::new(),
            containerd_socket: None,
            phase: Phase::None,
            host_namespaces: Vec::new(),
            deadline: None,
            vm: None,
            options: SandboxOptions::default(),
            netns_path: PathBuf::new(),
            tender: Tender::default(),
            user_namespace: None,
            pod_init: 0,
            created_at: SystemTime::now(),
            exited_at: None,
            killing: false,
            implicit: false,
            ending: false,
            releasing: false,
            released: false,
            waiters: Vec::new(),
            stop_calls: Vec::new(),
            end_calls: Vec::new(),
        }
    }

    /// Where the runtime keeps the containers' state.
    pub fn runtime_root(&self) -> PathBuf {
        self.bundle.join(RUNTIME_ROOT)
    }

    /// Where everything for one container is: containerd clears up after each by itself, from its own bundle.
    pub fn folder_of(&self, bundle: &str) -> PathBuf {
        match self.containerd_socket {
            Some(_) => PathBuf::from(bundle),
            None => self.bundle.clone(),
        }
    }

    /// Whether containerd began us.
    pub fn of_containerd(&self) -> bool {
        self.containerd_socket.is_some()
    }

    /// The pod's cgroup; empty for none.
    pub fn cgroup(&self) -> &str {
        &self.options.cgroup_parent
    }

    /// What was asked for.
    pub fn options(&self) -> &SandboxOptions {
        &self.options
    }

    /// The limit of each container's log.
    pub fn log_max_bytes(&self) -> u64 {
        self.options.log_max_bytes
    }

    /// Whether something new may run here.
    pub fn check_open(&self) -> Result<(), Failure> {
        match self.phase {
            Phase::None | Phase::Ready if !self.ending => Ok(()),
            Phase::Created => Err(Code::FailedPrecondition.failure(format!("sandbox {} is not started", self.id))),
            _ => Err(Code::FailedPrecondition.failure(format!("sandbox {} is stopped", self.id))),
        }
    }

    pub(crate) fn check_id(&self, id: &str) -> Result<(), Failure> {
        match id == self.id {
            true => Ok(()),
            false => Err(Code::NotFound.failure(format!("sandbox {id}: not found; this is {}", self.id))),
        }
    }

    /// The first process of the shared PID namespace was reaped. False if this is another.
    pub fn pod_init_died(&mut self, pid: i32) -> bool {
        if pid != self.pod_init {
            return false;
        }
        self.pod_init = 0;
        true
    }

    /// A container has exited: calls the tender, unless one holds the lock or the pod is being stopped.
    pub fn call_tender(&mut self) {
        if self.phase == Phase::Ready && !self.ending {
            self.tender.call(&self.options.on_exit, &self.bundle, &self.host_namespaces);
        }
    }

    /// The process by whose namespaces containerd finds the pod's: if they share processes, the first of those. Our engine
    /// asks for each namespace apart.
    fn pid(&self) -> u32 {
        match self.pod_init {
            init @ 1.. if self.of_containerd() => init as u32,
            _ => std::process::id(),
        }
    }

    /// The pod can be found now: a tender that is to stay comes soon.
    pub fn expect_tender(&mut self) {
        self.tender.stays(self.options.tender_stays);
    }

    /// When to see whether the tender that is to stay is there.
    pub fn tender_due(&self) -> Option<Instant> {
        self.tender.due().filter(|_| self.phase == Phase::Ready && !self.ending)
    }

    /// Has a tender that is to stay there, once it is due.
    pub fn tick_tender(&mut self) {
        if self.tender_due().is_some_and(|due| due <= Instant::now()) {
            self.call_tender();
        }
    }

    /// The tender that was called has died. False if this is another.
    pub fn tender_died(&mut self, pid: i32, status: u32) -> bool {
        self.tender.died(pid, status)
    }

    /// Is the pod of containers that were asked for without a sandbox.
    pub fn become_pod(&mut self, options: SandboxOptions, netns: PathBuf) -> Result<(), Failure> {
        vm::check_namespaces(&options)?;
        (self.options, self.netns_path) = (options, netns);
        self.implicit = true;
        self.enter_namespaces()
    }

    /// That came to nothing.
    pub fn be_no_pod(&mut self) {
        self.leave_namespaces();
    }

    fn mode(&self, mode: i32) -> NamespaceMode {
        NamespaceMode::try_from(mode).unwrap_or(NamespaceMode::Pod)
    }

    fn info(&self) -> Vec<(&'static str, String)> {
        let pid = std::process::id();
        let mut info = vec![("supervisor_pid", pid.to_string())];
        for (key, mode, name) in [
            ("netns", self.options.network, "net"),
            ("ipcns", self.options.ipc, "ipc"),
            ("utsns", self.options.uts, "uts"),
        ] {
            if self.mode(mode) == NamespaceMode::Pod {
                info.push((key, format!("/proc/{pid}/ns/{name}")));
            }
        }
        if let Some(namespace) = &self.user_namespace {
            info.push(("userns", format!("/proc/{pid}/fd/{}", namespace.as_raw_fd())));
        }
        if self.pod_init != 0 {
            info.push(("pid_ns_pid", self.pod_init.to_string()));
        }
        if let Some(vm) = &self.vm {
            info.extend(vm.info());
        }
        if let Ok(score) = fs::read_to_string(OOM_SCORE) {
            info.push(("oom_score_adj", score.trim().to_owned()));
        }
        info
    }
}

const OOM_SCORE: &str = "/proc/self/oom_score_adj";

impl Supervisor {
    /// Sandbox.CreateSandbox
    pub(crate) fn create_sandbox(&mut self, call: Call, payload: &[u8]) -> Outcome {
        let request: sandbox::CreateSandboxRequest = decode(payload)?;
        if self.guest.is_some() && self.sandbox.id.is_empty() {
            // A guest is named by the machine beneath, which may have begun it before it knew the name.
            self.sandbox.id.clone_from(&request.sandbox_id);
        }
        self.sandbox.check_id(&request.sandbox_id)?;
        if self.sandbox.phase != Phase::None || self.sandbox.ending {
            return Err(Code::AlreadyExists.failure(format!("sandbox {}: already exists", request.sandbox_id)));
        }
        let options = options::read(&request)?;
        vm::check_namespaces(&options)?;
        self.sandbox.options = options;
        self.sandbox.netns_path = request.netns_path.into();
        self.sandbox.enter_namespaces()?;
        self.sandbox.phase = Phase::Created;
        self.sandbox.created_at = SystemTime::now();
        let (path, vm) = (self.sandbox.options.cgroup_parent.clone(), self.sandbox.options.vm.clone());
        if path.is_empty() && vm.is_none() {
            return done();
        }
        let bundle = self.sandbox.bundle.clone();
        let resources = std::mem::take(&mut self.sandbox.options.resources);
        let body = Box::new(move || {
            if !path.is_empty() {
                ops::make_pod_cgroup(&bundle.join(CGROUP_RECORD), &path, &resources)?;
            }
            match vm {
                None => Ok(Vec::new()),
                Some(vm) => vm::prepare(&vm, &bundle, &path),
            }
        });
        let asked = self.work(Job::PodCgroup { call }, &[], body);
        asked.inspect_err(|_| self.sandbox_not_created())?;
        Ok(None)
    }

    pub(crate) fn pod_cgroup_done(&mut self, call: Call, result: Result<Vec<u8>, Failure>) {
        let result = result.and_then(|plan| {
            if self.sandbox.phase != Phase::Created {
                let text = format!("sandbox {} was stopped before it was made", self.sandbox.id);
                return Err(Code::FailedPrecondition.failure(text));
            }
            if self.sandbox.options.vm.is_some() {
                self.start_vm(&plan)?;
            }
            Ok(Vec::new())
        });
        if result.is_err() && self.sandbox.phase == Phase::Created {
            self.sandbox_not_created();
        }
        self.answer(call, result);
    }

    fn sandbox_not_created(&mut self) {
        self.sandbox.leave_namespaces();
        self.sandbox.phase = Phase::None;
    }

    /// Sandbox.StartSandbox
    pub(crate) fn start_sandbox(&mut self, _: Call, payload: &[u8]) -> Outcome {
        let request: sandbox::StartSandboxRequest = decode(payload)?;
        self.sandbox.check_id(&request.sandbox_id)?;
        match self.sandbox.phase {
            Phase::Created | Phase::Ready => {
                self.sandbox.phase = Phase::Ready;
                // A machine that is yet to boot is not looked after: its maker waits for it.
                if self.sandbox.vm.is_none() {
                    self.sandbox.expect_tender();
                }
            }
            Phase::None => {
                let text = format!("sandbox {} is not created", request.sandbox_id);
                return Err(Code::FailedPrecondition.failure(text));
            }
            Phase::Stopping | Phase::Stopped => {
                let text = format!("sandbox {} is stopped", request.sandbox_id);
                return Err(Code::FailedPrecondition.failure(text));
            }
        }
        answered(&sandbox::StartSandboxResponse {
            pid: self.sandbox.pid(),
            created_at: Some(self.sandbox.created_at.into()),
            spec: None,
        })
    }

    /// Sandbox.Platform
    pub(crate) fn platform(&mut self, _: Call, payload: &[u8]) -> Outcome {
        let _: sandbox::PlatformRequest = decode(payload)?;
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let platform = Platform { os: "linux".into(), architecture: architecture.into(), ..Default::default() };
        answered(&sandbox::PlatformResponse { platform: Some(platform) })
    }

    /// Sandbox.PingSandbox
    pub(crate) fn ping_sandbox(&mut self, _: Call, payload: &[u8]) -> Outcome {
        let _: sandbox::PingRequest = decode(payload)?;
        done()
    }

    /// Sandbox.SandboxStatus
    pub(crate) fn sandbox_status(&mut self, _: Call, payload: &[u8]) -> Outcome {
        let request: sandbox::SandboxStatusRequest = decode(payload)?;
        self.sandbox.check_id(&request.sandbox_id)?;
        let sandbox = &self.sandbox;
        let ready = sandbox.phase == Phase::Ready;
        answered(&sandbox::SandboxStatusResponse {
            sandbox_id: sandbox.id.clone(),
            pid: sandbox.pid(),
            state: if ready { "SANDBOX_READY" } else { "SANDBOX_NOTREADY" }.to_owned(),
            info: sandbox.info().into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
            created_at: Some(sandbox.created_at.into()),
            exited_at: sandbox.exited_at.map(Timestamp::from),
            extra: None,
        })
    }

    /// Sandbox.WaitSandbox
    pub(crate) fn wait_sandbox(&mut self, call: Call, payload: &[u8]) -> Outcome {
        let request: sandbox::WaitSandboxRequest = decode(payload)?;
        self.sandbox.check_id(&request.sandbox_id)?;
        match self.sandbox.exited_at {
            Some(at) => answered(&sandbox::WaitSandboxResponse { exit_status: 0, exited_at: Some(at.into()) }),
            None => {
                let mut waiters = std::mem::take(&mut self.sandbox.waiters);
                let waits = self.join_waiters(&mut waiters, call, &request.sandbox_id);
                self.sandbox.waiters = waiters;
                waits
            }
        }
    }

    /// Sandbox.StopSandbox
    pub(crate) fn stop_sandbox(&mut self, call: Call, payload: &[u8]) -> Outcome {
        let request: sandbox::StopSandboxRequest = decode(payload)?;
        self.sandbox.check_id(&request.sandbox_id)?;
        if self.sandbox.phase == Phase::Stopped {
            return done();
        }
        self.sandbox.stop_calls.push(call);
        self.begin_stop(Duration::from_secs(request.timeout_secs.into()));
        Ok(None)
    }

    /// Sandbox.ShutdownSandbox
    pub(crate) fn shutdown_sandbox(&mut self, call: Call, payload: &[u8]) -> Outcome {
        let request: sandbox::ShutdownSandboxRequest = decode(payload)?;
        self.sandbox.check_id(&request.sandbox_id)?;
        self.sandbox.end_calls.push(call);
        self.end();
        Ok(None)
    }

    /// Task.Shutdown: ends a supervisor of single tasks once it has none. A sandbox's end is asked of the sandbox.
    pub(crate) fn shutdown(&mut self, call: Call, payload: &[u8]) -> Outcome {
        let request: task::ShutdownRequest = decode(payload)?;
        if (self.sandbox.phase != Phase::None && !self.sandbox.implicit) || !(self.containers.is_empty() || request.now)
        {
            return done();
        }
        self.sandbox.end_calls.push(call);
        self.end();
        Ok(None)
    }

    /// SIGTERM: ignored, but by a supervisor that nobody would miss.
    pub(crate) fn terminate(&mut self) {
        if self.containers.is_empty() && matches!(self.sandbox.phase, Phase::None | Phase::Stopped) {
            self.end();
        }
    }

    fn end(&mut self) {
        self.sandbox.ending = true;
        self.begin_stop(Duration::ZERO);
    }

    fn begin_stop(&mut self, grace: Duration) {
        if self.sandbox.phase == Phase::Stopped {
            return;
        }
        self.sandbox.phase = Phase::Stopping;
        if grace.is_zero() || self.sandbox.killing {
            self.kill_everything();
        } else if self.sandbox.deadline.is_none() {
            self.sandbox.deadline = Some(Instant::now() + grace);
            self.signal_all(SIGTERM);
        }
    }

    fn kill_everything(&mut self) {
        self.sandbox.killing = true;
        self.sandbox.deadline = Some(Instant::now() + KILL_GRACE);
        // A worker that hangs in a hook would hold its container in the making for ever.
        for (_, worker) in self.workers.iter() {
            if matches!(
                worker.job,
                Job::Create { .. } | Job::Start { .. } | Job::Exec { .. } | Job::Machine | Job::ConnectNetwork
            ) {
                worker.kill();
            }
        }
        self.signal_all(SIGKILL);
        self.sandbox.kill_pod_init();
    }

    fn signal_all(&mut self, signal: i32) {
        let (mut processes, mut frozen) = (Vec::new(), Vec::new());
        for container in &self.containers {
            for process in std::iter::once(&container.init).chain(&container.execs) {
                processes.push((container.id.clone(), process.exec_id.clone()));
            }
            if matches!(container.init.state, State::Pausing | State::Paused) {
                frozen.push(container.id.clone());
            }
        }
        for (id, exec) in processes {
            self.signal(&id, &exec, signal);
        }
        for id in frozen {
            self.thaw_to_die(&id, signal);
        }
    }

    /// Draws the conclusions that hang on several events: a stop is complete, or takes too long; the program can end.
    pub(crate) fn settle(&mut self) {
        let late = self.sandbox.deadline.is_some_and(|at| Instant::now() >= at);
        if self.sandbox.released {
            let events_wait = self.publisher.as_ref().is_some_and(Publisher::pending);
            self.finished = late || !(self.answers_wait() || self.streams.busy() || events_wait);
            return;
        }
        if self.sandbox.phase == Phase::Stopping {
            let living = self.living();
            if living.is_empty() && self.sandbox.end_vm() {
                self.stopped();
            } else if late && !self.sandbox.killing {
                self.kill_everything();
            } else if late && self.sandbox.vm_hangs() {
                self.sandbox.deadline = Some(Instant::now() + KILL_GRACE);
            } else if late {
                self.stop_failed(&living);
            }
        }
        if self.sandbox.releasing && late {
            // Its report is its death; release_done hears of it.
            self.sandbox.deadline = None;
            let release = self.workers.iter().find(|(_, worker)| matches!(worker.job, Job::Release));
            release.into_iter().for_each(|(_, worker)| worker.kill());
        }
        if self.sandbox.phase == Phase::Stopped && self.sandbox.ending && !self.sandbox.releasing {
            self.begin_release();
        }
    }

    /// The virtual machine was lost. If the pod was ready the program has no further use: who looks sees it gone.
    pub(crate) fn lose(&mut self, was_ready: bool) {
        match was_ready {
            true => self.end(),
            false => self.begin_stop(Duration::ZERO),
        }
    }

    fn living(&self) -> Vec<String> {
        let living = self.containers.iter().filter(|container| {
            let init = &container.init;
            init.state == State::Creating || init.exit.is_none()
        });
        let living = living.map(|container| container.id.clone());
        // What CreateSandbox has begun is made, so that it can be removed.
        let making = self.workers.iter().filter(|(_, worker)| matches!(worker.job, Job::PodCgroup { .. }));
        living.chain(making.map(|_| "the sandbox that is being made".to_owned())).collect()
    }

    fn stopped(&mut self) {
        let now = SystemTime::now();
        self.sandbox.phase = Phase::Stopped;
        self.sandbox.deadline = None;
        self.sandbox.exited_at = Some(now);
        for call in std::mem::take(&mut self.sandbox.stop_calls) {
            self.answer(call, Ok(Vec::new()));
        }
        for call in std::mem::take(&mut self.sandbox.waiters) {
            let answer = sandbox::WaitSandboxResponse { exit_status: 0, exited_at: Some(now.into()) };
            self.answer(call, Ok(coracle_proto::Message::encode_to_vec(&answer)));
        }
    }

    /// Some process does not die. The stop can be asked for again.
    fn stop_failed(&mut self, living: &[String]) {
        self.sandbox.deadline = None;
        self.sandbox.ending = false;
        let text = format!("stop sandbox {}: still alive after SIGKILL: {}", self.sandbox.id, living.join(", "));
        let calls = std::mem::take(&mut self.sandbox.stop_calls);
        for call in calls.into_iter().chain(std::mem::take(&mut self.sandbox.end_calls)) {
            self.answer(call, Err(Code::DeadlineExceeded.failure(text.clone())));
        }
    }

    fn begin_release(&mut self) {
        self.sandbox.releasing = true;
        self.sandbox.deadline = Some(Instant::now() + RELEASE_GRACE);
        let containers: Vec<_> = self.containers.iter().map(|c| (c.id.clone(), c.oci.clone())).collect();
        let (bundle, id) = (self.sandbox.bundle.clone(), self.sandbox.id.clone());
        let body = Box::new(move || ops::release(&containers, &bundle, &id));
        if let Err(failure) = self.work(Job::Release, &[], body) {
            self.release_done(Err(failure));
        }
    }

    /// Everything is released, or something could not be: then the supervisor stays, and can be asked again.
    pub(crate) fn release_done(&mut self, result: Result<Vec<u8>, Failure>) {
        self.sandbox.releasing = false;
        self.sandbox.deadline = None;
        if result.is_err() {
            self.sandbox.ending = false;
        } else {
            self.sandbox.released = true;
            self.sandbox.deadline = Some(Instant::now() + FAREWELL);
            let ids: Vec<String> = self.containers.iter().map(|container| container.id.clone()).collect();
            ids.iter().for_each(|id| self.forget_container(id));
            self.remove_files();
        }
        for call in std::mem::take(&mut self.sandbox.end_calls) {
            self.answer(call, result.clone());
        }
    }

    /// The bundle belongs to whoever made it; the supervisor takes away what it brought. The lock goes last, with it.
    fn remove_files(&self) {
        for name in [SOCKET, ATTACH_SOCKET, PID_FILE] {
            let _ = fs::remove_file(self.sandbox.bundle.join(name));
        }
        if let Some(socket) = &self.sandbox.containerd_socket {
            let _ = fs::remove_file(socket);
        }
        let _ = fs::remove_dir(self.sandbox.runtime_root());
    }

    /// Control.ReopenLog
    pub(crate) fn reopen_log(&mut self, _: Call, payload: &[u8]) -> Outcome {
        let request: ReopenLogRequest = decode(payload)?;
        let io = self.process(&request.id, "")?.io;
        self.streams.reopen_log(io)?;
        done()
    }

    /// Control.UpdateSandbox
    pub(crate) fn update_sandbox(&mut self, call: Call, payload: &[u8]) -> Outcome {
        let request: UpdateSandboxRequest = decode(payload)?;
        self.sandbox.check_open()?;
        let record = self.sandbox.bundle.join(CGROUP_RECORD);
        let body = Box::new(move || ops::update_pod_cgroup(&record, &request.resources));
        self.work(Job::Answer { call }, &[], body)?;
        Ok(None)
    }

    /// Control.Info
    pub(crate) fn info(&mut self, _: Call, _: &[u8]) -> Outcome {
        answered(&InfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            sandbox_id: self.sandbox.id.clone(),
            containers: self.containers.iter().map(|container| container.id.clone()).collect(),
            dropped_log_lines: self.streams.dropped_lines,
        })
    }
}
