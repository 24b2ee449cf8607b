//! The task service: containers and execs, from their creation to the moment they are forgotten.

use crate::connection::Call;
use crate::containerd::news;
use crate::exits::{self, Exit};
use crate::failure::{Fail, Failure};
use crate::logger;
use crate::oci::{Act, Oci};
use crate::ops::Created;
use crate::service::{Outcome, answered, decode, done};
use crate::shim;
use crate::stdio::{self, IoOwner, Names, OurEnds, ProcessEnds};
use crate::supervisor::{Container, Job, Process, Supervisor};
use crate::sys;
use crate::task::{Event, State};
use crate::vm::pump;
use crate::worker::DIED;
use coracle_proto::task_types::ProcessInfo;
use coracle_proto::ttrpc::Code;
use coracle_proto::{Message, Timestamp, events, runc, task};
use nix::libc::SIGKILL;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Containers of one pod.
const MAX_CONTAINERS: usize = 256;
/// Execs of one container, those not yet deleted.
const MAX_EXECS: usize = 1024;
/// The longest id.
const MAX_ID: usize = 128;

fn check_id(what: &str, id: &str) -> Result<(), Failure> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte);
    let valid = id.bytes().all(plain) && id.starts_with(|first: char| first.is_ascii_alphanumeric());
    match valid && id.len() <= MAX_ID {
        true => Ok(()),
        false => Err(Code::InvalidArgument
            .failure(format!("{what} {id:?} is not valid: up to {MAX_ID} letters, digits, - _ . and + are allowed"))),
    }
}

pub(crate) fn exit_fields(exit: &Option<Exit>) -> (u32, Option<Timestamp>) {
    (exit.map_or(0, |exit| exit.status), exit.map(|exit| exit.at.into()))
}

/// One that has ended already needs no descriptor.
fn pidfd_of_logger(pid: i32) -> Option<OwnedFd> {
    (pid > 0).then(|| sys::pidfd(pid).ok()).flatten()
}

impl Process {
    fn new(exec_id: &str, state: State, names: Names, io: u32, spec: Vec<u8>) -> Self {
        let exec_id = exec_id.to_owned();
        Process {
            exec_id,
            state,
            pid: 0,
            guest_pid: 0,
            names,
            io,
            exit: None,
            waiters: Vec::new(),
            spec,
            input_ended: false,
            logger: None,
            unannounced: None,
            pump: None,
            held: None,
            doomed: false,
            torn: false,
            size: None,
        }
    }

    fn advance(&mut self, event: Event) -> Result<(), Failure> {
        self.state = self.state.after(event).map_err(|error| Code::FailedPrecondition.failure(error.to_string()))?;
        Ok(())
    }

    /// After a worker's report: the machine allows it in whatever state the process is by now.
    pub(crate) fn report(&mut self, event: Event) {
        debug_assert!(self.state.after(event).is_ok(), "{event:?} in {:?}", self.state);
        self.state = self.state.after(event).unwrap_or(self.state);
    }
}

impl Supervisor {
    /// Task.State
    pub(crate) fn state(&mut self, _: Call, payload: &[u8]) -> Outcome {
        let request: task::StateRequest = decode(payload)?;
        let bundle = self.container(&request.id)?.bundle.display().to_string();
        let process = self.process(&request.id, &request.exec_id)?;
        let (exit_status, exited_at) = exit_fields(&process.exit);
        answered(&task::StateResponse {
            id: request.id,
            bundle,
            pid: process.pid as u32,
            status: process.state.wire().into(),
            stdin: process.names.stdin.clone(),
            stdout: process.names.stdout.clone(),
            stderr: process.names.stderr.clone(),
            terminal: process.names.terminal,
            exit_status,
            exited_at,
            exec_id: request.exec_id,
        })
    }

    /// Task.Create
    pub(crate) fn create(&mut self, call: Call, payload: &[u8]) -> Outcome {
        let request: task::CreateTaskRequest = decode(payload)?;
        let id = request.id.clone();
        check_id("container id", &id)?;
        self.sandbox.check_open()?;
        if self.await_machine(call, &request, payload)? {
            return Ok(None);
        }
        if self.containers.iter().any(|container| container.id == id) {
            return Err(Code::AlreadyExists.failure(format!("container {id}: already exists")));
        }
        if self.containers.len() >= MAX_CONTAINERS {
            return Err(Code::ResourceExhausted.failure(format!("the pod has {MAX_CONTAINERS} containers already")));
        }
        if !request.checkpoint.is_empty() {
            return Err(Code::Unimplemented
                .failure(format!("container {id}: to restore one from a checkpoint is not supported")));
        }
        if !Path::new(&request.bundle).is_absolute() {
            let text = format!("container {id}: bundle {:?} is not an absolute path", request.bundle);
            return Err(Code::InvalidArgument.failure(text));
        }
        let names = Names {
            terminal: request.terminal,
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
        };
        let bundle = PathBuf::from(&request.bundle);
        let (mut oci, options) = Oci::of(&request, &self.sandbox)?;
        self.introduce(&mut oci);
        let options = Box::new(options);
        if matches!(oci, Oci::Shim(_)) {
            self.read_shim_log()?;
        }
        let io = self.streams.create(&oci.names_here(&names), false, self.sandbox.log_max_bytes())?;
        let init = Process::new("", State::Creating, names, io, Vec::new());
        self.containers.push(Container {
            id: id.clone(),
            bundle,
            oci,
            systemd_cgroup: options.systemd_cgroup,
            criu: runc::Options {
                criu_image_path: options.criu_image_path.clone(),
                criu_work_path: options.criu_work_path.clone(),
                ..Default::default()
            },
            io_owner: IoOwner::new(options.io_uid, options.io_gid),
            init,
            execs: Vec::new(),
            own_pid_namespace: false,
            oom_file: String::new(),
            oom: Default::default(),
            deleting: None,
            announcement: self.publisher.is_some().then(|| Box::new(news::announcement(&request))),
        });
        self.create_by_worker(call, request, options).inspect_err(|_| self.forget_container(&id))?;
        Ok(None)
    }

    fn create_by_worker(
        &mut self,
        call: Call,
        request: task::CreateTaskRequest,
        options: Box<runc::Options>,
    ) -> Result<(), Failure> {
        let (theirs, ends) = self.open_stdio(&request.id, "")?;
        let id = request.id.clone();
        let job = Job::Create { call, container: id.clone(), ends };
        self.act(job, &id, Act::Create { request: Box::new(request), options, ends: theirs })
    }

    fn open_stdio(&mut self, id: &str, exec: &str) -> Result<(ProcessEnds, OurEnds), Failure> {
        let names = &self.process(id, exec)?.names.clone();
        let container = self.container(id)?;
        match &container.oci {
            Oci::Shim(shim) => shim::open_fifos(names, shim.bundle(), exec),
            oci => {
                let (mut theirs, ours) = match oci {
                    Oci::Vm(guest) => pump::open(names, container.io_owner, guest.folder())?,
                    _ => stdio::open(names, container.io_owner)?,
                };
                if let Some(logger) = &mut theirs.logger {
                    logger.namespace = self.sandbox.namespace.clone();
                }
                Ok((theirs, ours))
            }
        }
    }

    /// Task.Start
    pub(crate) fn start(&mut self, call: Call, payload: &[u8]) -> Outcome {
        let request: task::StartRequest = decode(payload)?;
        let (id, exec) = (request.id, request.exec_id);
        self.sandbox.check_open()?;
        self.process(&id, &exec)?.advance(Event::Start)?;
        let started = match exec.is_empty() {
            true => self.act(Job::Start { call, container: id.clone() }, &id, Act::Start),
            false => self.start_exec(call, &id, &exec),
        };
        if let Err(failure) = started {
            self.start_failed(&id, &exec);
            return Err(failure);
        }
        Ok(None)
    }

    fn start_exec(&mut self, call: Call, id: &str, exec: &str) -> Result<(), Failure> {
        let (theirs, ends) = self.open_stdio(id, exec)?;
        let process = self.process(id, exec)?;
        let (spec, names) = (std::mem::take(&mut process.spec), process.names.clone());
        let job = Job::Exec { call, container: id.to_owned(), exec: exec.to_owned(), ends };
        // A logger is part of the last report.
        let goes_on = theirs.logger.is_none();
        self.act(job, id, Act::Exec { exec: exec.to_owned(), spec, names, ends: theirs, goes_on })
    }

    /// A container can be started again; an exec that could not start has ended.
    fn start_failed(&mut self, id: &str, exec: &str) {
        if let Ok(process) = self.process(id, exec) {
            match exec.is_empty() {
                true => process.report(Event::StartFailed),
                false => self.process_ended(id, exec, Exit::never_ran()),
            }
        }
    }

    /// Task.Exec
    pub(crate) fn exec(&mut self, _: Call, payload: &[u8]) -> Outcome {
        let request: task::ExecProcessRequest = decode(payload)?;
        let (id, exec) = (&request.id, &request.exec_id);
        check_id("exec id", exec)?;
        let container = self.container(id)?;
        if container.init.state != State::Running {
            let text = format!("container {id} is {}: only in a running one can be executed", container.init.state);
            return Err(Code::FailedPrecondition.failure(text));
        }
        if container.execs.iter().any(|process| process.exec_id == *exec) {
            return Err(Code::AlreadyExists.failure(format!("exec {exec} of container {id}: already exists")));
        }
        if container.execs.len() >= MAX_EXECS {
            return Err(Code::ResourceExhausted.failure(format!("container {id} has {MAX_EXECS} execs already")));
        }
        let Some(spec) = request.spec.filter(|spec| !spec.value.is_empty()) else {
            return Err(Code::InvalidArgument.failure(format!("exec {exec} of container {id}: no process is given")));
        };
        let names =
            Names { terminal: request.terminal, stdin: request.stdin, stdout: request.stdout, stderr: request.stderr };
        let here = self.container(id)?.oci.names_here(&names);
        let io = self.streams.create(&here, true, 0)?;
        let process = Process::new(exec, State::Created, names, io, spec.value);
        self.container(id)?.execs.push(process);
        // Of several only the last one is still waited with: the others are told that they have come too late.
        while let Some((client, hello)) = self.streams.expected(id, Some(exec)) {
            self.streams.attach(&self.reactor, client, Ok((io, hello)));
        }
        let (container_id, exec_id) = (request.id, request.exec_id);
        self.publish("/tasks/exec-added", &events::TaskExecAdded { container_id, exec_id });
        done()
    }

    pub(crate) fn freeze(&mut self, call: Option<Call>, id: &str, frozen: bool) -> Result<(), Failure> {
        self.act(Job::Freeze { call, container: id.to_owned(), frozen }, id, Act::Freeze(frozen))
    }

    /// Task.Pause
    pub(crate) fn pause(&mut self, call: Call, payload: &[u8]) -> Outcome {
        let request: task::PauseRequest = decode(payload)?;
        self.process(&request.id, "")?.advance(Event::Pause)?;
        let asked = self.freeze(Some(call), &request.id, true);
        asked.inspect_err(|_| self.reported(&request.id, Event::PauseFailed))?;
        Ok(None)
    }

    /// Task.Resume
    pub(crate) fn resume(&mut self, call: Call, payload: &[u8]) -> Outcome {
        let request: task::ResumeRequest = decode(payload)?;
        self.process(&request.id, "")?.advance(Event::Resume)?;
        let asked = self.freeze(Some(call), &request.id, false);
        asked.inspect_err(|_| self.reported(&request.id, Event::ResumeFailed))?;
        Ok(None)
    }

    fn reported(&mut self, id: &str, event: Event) {
        if let Ok(container) = self.container(id) {
            container.init.report(event);
        }
    }

    /// Task.Pids
    pub(crate) fn pids(&mut self, call: Call, payload: &[u8]) -> Outcome {
        let request: task::PidsRequest = decode(payload)?;
        let container = self.container(&request.id)?;
        // A containerd that starts again takes a shim without processes for one that it never made a task with, and ends it,
        // with the exit that it has not heard of: who has ended counts until it is deleted.
        if container.init.state == State::Stopped {
            let ended = ProcessInfo { pid: container.init.pid as u32, info: None };
            return answered(&task::PidsResponse { processes: vec![ended] });
        }
        let execs: Vec<_> = container.execs.iter().map(|exec| (exec.pid, exec.exec_id.clone())).collect();
        self.act(Job::Answer { call }, &request.id, Act::Pids(execs))?;
        Ok(None)
    }

    /// Task.ResizePty
    pub(crate) fn resize_pty(&mut self, call: Call, payload: &[u8]) -> Outcome {
        let request: task::ResizePtyRequest = decode(payload)?;
        let process = self.process(&request.id, &request.exec_id)?;
        let (io, made, terminal) = (process.io, process.pid != 0, process.names.terminal);
        if self.container(&request.id)?.oci.is_remote() && terminal {
            let (exec, width, height) = (request.exec_id, request.width, request.height);
            if made {
                self.act(Job::Answer { call }, &request.id, Act::Resize { exec, width, height })?;
                return Ok(None);
            }
            self.process(&request.id, &exec)?.size = Some((width, height));
            return done();
        }
        let clamp = |size: u32| size.min(u32::from(u16::MAX)) as u16;
        self.streams.resize(io, clamp(request.width), clamp(request.height))?;
        done()
    }

    /// Task.CloseIO
    pub(crate) fn close_io(&mut self, _: Call, payload: &[u8]) -> Outcome {
        let request: task::CloseIoRequest = decode(payload)?;
        let io = self.process(&request.id, &request.exec_id)?.io;
        if request.stdin {
            self.streams.close_stdin(&self.reactor, io);
        }
        done()
    }

    /// Task.Update
    pub(crate) fn update(&mut self, call: Call, payload: &[u8]) -> Outcome {
        let request: task::UpdateTaskRequest = decode(payload)?;
        self.container(&request.id)?;
        let Some(resources) = request.resources else {
            return Err(Code::InvalidArgument.failure(format!("update {}: no resources are given", request.id)));
        };
        self.act(Job::Answer { call }, &request.id, Act::Update(resources.value))?;
        Ok(None)
    }

    /// Task.Wait
    pub(crate) fn wait(&mut self, call: Call, payload: &[u8]) -> Outcome {
        let request: task::WaitRequest = decode(payload)?;
        let process = self.process(&request.id, &request.exec_id)?;
        if process.exit.is_some() {
            let (exit_status, exited_at) = exit_fields(&process.exit);
            return answered(&task::WaitResponse { exit_status, exited_at });
        }
        let mut waiters = std::mem::take(&mut process.waiters);
        let waits = self.join_waiters(&mut waiters, call, &request.id);
        self.process(&request.id, &request.exec_id)?.waiters = waiters;
        waits
    }

    /// Task.Stats
    pub(crate) fn stats(&mut self, call: Call, payload: &[u8]) -> Outcome {
        let request: task::StatsRequest = decode(payload)?;
        let oom_file = self.container(&request.id)?.oom_file.clone();
        self.act(Job::Answer { call }, &request.id, Act::Stats(oom_file))?;
        Ok(None)
    }

    /// Task.Connect
    pub(crate) fn connect(&mut self, _: Call, payload: &[u8]) -> Outcome {
        let request: task::ConnectRequest = decode(payload)?;
        let task_pid = self.container(&request.id).map_or(0, |container| container.init.pid as u32);
        let version = env!("CARGO_PKG_VERSION").to_owned();
        answered(&task::ConnectResponse { shim_pid: std::process::id(), task_pid, version })
    }

    /// Task.Delete
    pub(crate) fn delete(&mut self, call: Call, payload: &[u8]) -> Outcome {
        let request: task::DeleteRequest = decode(payload)?;
        let (id, exec) = (request.id, request.exec_id);
        if !exec.is_empty() {
            return self.delete_exec(&id, &exec);
        }
        let container = self.container(&id)?;
        container.init.advance(Event::Delete)?;
        container.deleting = Some(call);
        if container.init.exit.is_none() {
            // Created and never started: cleared up when it is reaped. It cannot fail to be there.
            self.kill_created(&id);
            return Ok(None);
        }
        let asked = self.delete_by_worker(&id);
        asked.inspect_err(|_| {
            self.reported(&id, Event::DeleteFailed);
            // This is the answer.
            if let Ok(container) = self.container(&id) {
                container.deleting = None;
            }
        })?;
        Ok(None)
    }

    fn delete_by_worker(&mut self, id: &str) -> Result<(), Failure> {
        // Who asked stays in `deleting`, where the end of it finds him whatever becomes of the worker.
        let logger = self.container(id)?.init.logger.take();
        self.act(Job::Delete { call: None, container: id.to_owned() }, id, Act::Delete { logger })
    }

    fn delete_exec(&mut self, id: &str, exec: &str) -> Outcome {
        self.process(id, exec)?.advance(Event::Delete)?;
        let container = self.container(id)?;
        let Some(at) = container.execs.iter().position(|process| process.exec_id == exec) else { return done() };
        let mut process = container.execs.remove(at);
        if let Some(pump) = process.pump {
            self.pumps.release(&self.reactor, pump);
        }
        if let Some(logger) = process.logger.take() {
            self.end_logger(logger);
        }
        let (exit_status, exited_at) = exit_fields(&process.exit);
        self.streams.release(&self.reactor, process.io);
        self.turn_away(process.waiters, id);
        answered(&task::DeleteResponse { pid: process.pid as u32, exit_status, exited_at })
    }

    /// Nobody waits for the logger of an exec.
    fn end_logger(&mut self, logger: OwnedFd) {
        let keep = [logger.as_raw_fd()];
        let body = Box::new(move || {
            logger::end(&logger);
            Ok(Vec::new())
        });
        if let Err(failure) = self.work(Job::Quiet, &keep, body) {
            eprintln!("end a logger: {}", failure.message);
        }
    }

    fn turn_away(&mut self, waiters: Vec<Call>, id: &str) {
        for call in waiters {
            self.answer(call, Err(Code::NotFound.failure(format!("container {id}: deleted"))));
        }
    }

    /// Forgets a container with all that belongs to it.
    pub(crate) fn forget_container(&mut self, id: &str) {
        let Some(at) = self.containers.iter().position(|container| container.id == id) else { return };
        let mut container = self.containers.remove(at);
        container.oom.forget(&self.reactor, container.init.io);
        for process in container.execs.into_iter().chain([container.init]) {
            if let Some(pump) = process.pump {
                self.pumps.release(&self.reactor, pump);
            }
            self.streams.release(&self.reactor, process.io);
            self.turn_away(process.waiters, id);
        }
        self.refuse_early(id);
    }

    /// Clients of execs that do not come any more.
    fn refuse_early(&mut self, id: &str) {
        while let Some((client, _)) = self.streams.expected(id, None) {
            self.streams.attach(&self.reactor, client, Err(format!("container {id} does not run any more")));
        }
    }

    /// A child was reaped. False if it is no process of a container.
    pub(crate) fn process_died(&mut self, pid: i32, exit: Exit) -> bool {
        let is_it = |process: &Process| process.pid == pid && process.exit.is_none();
        let found = self.containers.iter().find_map(|container| {
            let processes = std::iter::once(&container.init).chain(&container.execs);
            let ours = !matches!(container.oci, Oci::Vm(_));
            let process = processes.into_iter().find(|process| ours && is_it(process))?;
            Some((container.id.clone(), process.exec_id.clone()))
        });
        let Some((id, exec)) = found else { return false };
        self.process_ended(&id, &exec, exit);
        true
    }

    /// A process has ended: everything it said is in its log and its exit is on disk before anyone is told.
    pub(crate) fn process_ended(&mut self, id: &str, exec: &str, exit: Exit) {
        let Ok(process) = self.process(id, exec) else { return };
        process.exit = Some(exit);
        process.report(Event::Exited);
        let (io, waiters) = (process.io, std::mem::take(&mut process.waiters));
        self.streams.exited(&self.reactor, io);
        if exec.is_empty() {
            self.record_exit(id, &exit);
        }
        self.announce_exit(id, exec, &exit);
        let (exit_status, exited_at) = exit_fields(&Some(exit));
        let answer = task::WaitResponse { exit_status, exited_at }.encode_to_vec();
        for call in waiters {
            self.answer(call, Ok(answer.clone()));
        }
        if exec.is_empty() {
            self.init_ended(id);
        }
    }

    fn record_exit(&mut self, id: &str, exit: &Exit) {
        let lost = self.sandbox.lost().map(str::to_owned);
        let Ok(container) = self.container(id) else { return };
        let oom_killed = exits::oom_kills(&container.oom_file) > 0;
        let recorded = exits::record(&container.bundle, container.init.pid, exit, oom_killed, lost.as_deref());
        if let Err(error) = recorded {
            // Whoever waits is told all the same: a full disk must not hang the pod.
            eprintln!("record the exit of {id} in {}: {error}", container.bundle.display());
        }
    }

    /// A container's first process has ended: what it leaves running is killed, and who cares is called.
    fn init_ended(&mut self, id: &str) {
        self.refuse_early(id);
        let Ok(container) = self.container(id) else { return };
        if container.init.state == State::Deleting {
            if let Err(failure) = self.delete_by_worker(id) {
                self.delete_done(None, id, Err(failure));
            }
            return;
        }
        if !container.own_pid_namespace
            && let Err(failure) = self.act(Job::Quiet, id, Act::KillAll(SIGKILL))
        {
            eprintln!("kill what {id} left running: {}", failure.message);
        }
        self.sandbox.call_tender();
    }

    /// A worker has reported.
    pub(crate) fn job_done(&mut self, job: Job, result: Result<Vec<u8>, Failure>) {
        match job {
            Job::Create { call, container, ends } => self.create_done(call, &container, ends, result),
            Job::Undo { call, container, failure } => {
                // What cannot be cleared up is named together with the reason for it.
                let message = result.err().map(|more| format!("{}; then: {}", failure.message, more.message));
                let message = message.unwrap_or(failure.message);
                self.forget_container(&container);
                self.answer(call, Err(failure.code.failure(message)));
            }
            Job::Start { call, container } => self.start_done(call, &container, result),
            Job::Exec { call, container, exec, ends } => self.exec_done(call, &container, &exec, ends, result),
            Job::Freeze { call, container, frozen } => {
                let event = match (frozen, result.is_ok()) {
                    (true, true) => Event::Paused,
                    (true, false) => Event::PauseFailed,
                    (false, true) => Event::Resumed,
                    (false, false) => Event::ResumeFailed,
                };
                self.reported(&container, event);
                match event {
                    Event::Paused => {
                        self.publish("/tasks/paused", &events::TaskPaused { container_id: container.clone() });
                    }
                    Event::Resumed => {
                        self.publish("/tasks/resumed", &events::TaskResumed { container_id: container.clone() });
                    }
                    _ => {}
                }
                if let Some(call) = call {
                    self.answer(call, result);
                }
                if event == Event::Paused && self.container(&container).is_ok_and(|container| container.init.doomed) {
                    self.thaw_to_die(&container, SIGKILL);
                }
            }
            Job::Delete { call, container } => self.delete_done(call, &container, result),
            Job::Answer { call } => self.answer(call, result),
            Job::Wait { container, exec } => self.wait_done(&container, &exec, result),
            Job::Attach { pump, stream } => self.attached_again(pump, stream, result),
            Job::SendVolumes => self.volumes_sent(result),
            Job::Quiet => {}
            Job::PodCgroup { call } => self.pod_cgroup_done(call, result),
            Job::Machine => self.machine_prepared(result),
            Job::ConnectNetwork => self.network_connected(result),
            Job::RestoreVm => self.vm_restored(result),
            Job::Release => self.release_done(result),
        }
    }

    fn decoded(result: Result<Vec<u8>, Failure>) -> Result<Created, Failure> {
        let malformed = || Code::Internal.failure("the worker's report is malformed".into());
        Created::decode(&result?).ok_or_else(malformed)
    }

    fn create_done(&mut self, call: Call, id: &str, ends: OurEnds, result: Result<Vec<u8>, Failure>) {
        let mut created = match Self::decoded(result) {
            Ok(created) => created,
            Err(failure) if failure.code == DIED => return self.undo_create(call, id, failure),
            Err(failure) => {
                self.forget_container(id);
                return self.answer(call, Err(failure));
            }
        };
        let guest_pid = created.pid;
        created.pid = self.pid_to_tell(id, guest_pid);
        let Ok(container) = self.container(id) else { return };
        container.init.guest_pid = guest_pid;
        container.own_pid_namespace = created.own_pid_namespace;
        container.oom_file = created.oom_file;
        container.init.pid = created.pid;
        container.init.logger = pidfd_of_logger(created.logger);
        container.init.report(Event::Created);
        if let Err(failure) = self.connect_streams(id, "", ends) {
            // Without its streams it is of no use to anyone; it is killed, and deleted like any other.
            self.kill_created(id);
            self.claim(id, created.pid);
            return self.answer(call, Err(failure));
        }
        self.watch_volumes(created.volumes);
        if let Some(mut event) = self.container(id).ok().and_then(|container| container.announcement.take()) {
            event.pid = created.pid as u32;
            self.publish("/tasks/create", &*event);
        }
        self.watch_oom(id);
        self.claim(id, created.pid);
        self.wait_remotely(id, "");
        self.answer(call, Ok(task::CreateTaskResponse { pid: created.pid as u32 }.encode_to_vec()));
    }

    /// The worker was killed, by a stop or by the kernel, and has undone nothing.
    fn undo_create(&mut self, call: Call, id: &str, failure: Failure) {
        let Ok(container) = self.container(id) else { return };
        let (bundle, systemd) = (container.bundle.clone(), container.systemd_cgroup);
        let job = Job::Undo { call, container: id.to_owned(), failure: failure.clone() };
        if self.act(job, id, Act::Undo { bundle, systemd }).is_err() {
            self.forget_container(id);
            self.answer(call, Err(failure));
        }
    }

    /// The ends of a process that was made are put to use.
    fn connect_streams(&mut self, id: &str, exec: &str, mut ends: OurEnds) -> Result<(), Failure> {
        let (io, pump) = (self.process(id, exec)?.io, ends.pump.take());
        self.streams.connect(&self.reactor, io, ends)?;
        if let Some(pump) = pump {
            let failed = |error| Code::Unknown.failure(format!("pass on the streams of {id} {exec}: {error}"));
            self.process(id, exec)?.pump = Some(self.pumps.start(&self.reactor, pump).map_err(failed)?);
        }
        Ok(())
    }

    /// The child may have died before its worker told us that it is ours.
    fn claim(&mut self, id: &str, pid: i32) {
        // A pid of another machine says nothing here.
        if self.container(id).is_ok_and(|container| matches!(container.oci, Oci::Vm(_))) {
            return;
        }
        if let Some(at) = self.unclaimed.iter().position(|(other, _)| *other == pid) {
            let (_, exit) = self.unclaimed.swap_remove(at);
            self.process_died(pid, exit);
        }
    }

    fn start_done(&mut self, call: Call, id: &str, result: Result<Vec<u8>, Failure>) {
        match result {
            Ok(_) if self.container(id).is_err() => {
                self.answer(call, Err(Code::NotFound.failure(format!("container {id} was deleted meanwhile"))));
            }
            Ok(_) => {
                self.reported(id, Event::Started);
                self.let_go_of_fifos(id, "");
                let io = self.container(id).map(|container| container.init.io);
                if let Err(failure) = io.and_then(|io| self.streams.started(&self.reactor, io)) {
                    eprintln!("container {id} runs without its input: {}", failure.message);
                }
                let pid = self.container(id).map_or(0, |container| container.init.pid as u32);
                self.publish("/tasks/start", &events::TaskStart { container_id: id.to_owned(), pid });
                self.announce_held_exit(id);
                self.answer(call, Ok(task::StartResponse { pid }.encode_to_vec()));
            }
            Err(failure) => {
                self.start_failed(id, "");
                self.announce_held_exit(id);
                self.answer(call, Err(failure));
            }
        }
    }

    fn exec_done(&mut self, call: Call, id: &str, exec: &str, ends: OurEnds, result: Result<Vec<u8>, Failure>) {
        let outcome = Self::decoded(result).and_then(|mut created| {
            created.pid = self.pid_to_tell(id, created.pid);
            let process = self.process(id, exec)?;
            process.pid = created.pid;
            process.logger = pidfd_of_logger(created.logger);
            process.report(Event::Started);
            let size = process.size.take();
            let made = self.connect_streams(id, exec, ends).and_then(|()| match size {
                Some((width, height)) => self.act(Job::Quiet, id, Act::Resize { exec: exec.to_owned(), width, height }),
                None => Ok(()),
            });
            if let Err(failure) = made {
                self.signal(id, exec, SIGKILL);
                self.claim(id, created.pid);
                return Err(failure);
            }
            let (container_id, exec_id, pid) = (id.to_owned(), exec.to_owned(), created.pid as u32);
            self.publish("/tasks/exec-started", &events::TaskExecStarted { container_id, exec_id, pid });
            self.claim(id, created.pid);
            Ok(created.pid as u32)
        });
        match outcome {
            Ok(pid) => {
                self.let_go_of_fifos(id, exec);
                self.wait_remotely(id, exec);
                self.answer(call, Ok(task::StartResponse { pid }.encode_to_vec()));
            }
            Err(failure) => {
                if self.process(id, exec).is_ok_and(|process| process.pid == 0) {
                    self.start_failed(id, exec);
                }
                self.answer(call, Err(failure));
            }
        }
    }

    fn delete_done(&mut self, call: Option<Call>, id: &str, result: Result<Vec<u8>, Failure>) {
        let Ok(container) = self.container(id) else { return };
        let call = call.or_else(|| container.deleting.take());
        let (exit_status, exited_at) = exit_fields(&container.init.exit);
        let answer = task::DeleteResponse { pid: container.init.pid as u32, exit_status, exited_at };
        let result = match result {
            Ok(_) => {
                if container.init.unannounced.is_some() {
                    // Its start is not answered yet: what has been is told in its order.
                    let pid = container.init.pid as u32;
                    self.publish("/tasks/start", &events::TaskStart { container_id: id.to_owned(), pid });
                    self.announce_held_exit(id);
                }
                self.forget_container(id);
                let (container_id, pid, exited_at) = (id.to_owned(), answer.pid, answer.exited_at);
                let event = events::TaskDelete { container_id, pid, exit_status, exited_at, ..Default::default() };
                self.publish("/tasks/delete", &event);
                Ok(answer.encode_to_vec())
            }
            Err(failure) => {
                container.init.report(Event::DeleteFailed);
                Err(failure)
            }
        };
        if let Some(call) = call {
            self.answer(call, result);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_be_paths_are_refused() {
        for id in ["web", "a.b-c_d+1", &"f".repeat(64)] {
            assert!(check_id("container id", id).is_ok(), "{id}");
        }
        for id in ["", ".", "..", "a/b", "-x", "a b", "a\n", &"f".repeat(MAX_ID + 1)] {
            assert_eq!(check_id("container id", id).unwrap_err().code, Code::InvalidArgument, "{id}");
        }
    }
}
