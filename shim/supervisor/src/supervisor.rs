//! Everything the supervisor knows, and the loop that drives it.
//!
//! One thread. An event changes what is known and may answer requests; afterwards [`Supervisor::settle`] draws the
//! conclusions that depend on several things at once (the sandbox has stopped, the program may end). Nothing in the loop
//! waits: what could is given to a [worker](crate::worker).

use crate::connection::{Call, Connection};
use crate::containerd::events::Publisher;
use crate::containerd::machine::Early;
use crate::containerd::news::OomWatch;
use crate::exits::Exit;
use crate::failure::{Fail, Failure};
use crate::guest::Guest;
use crate::oci::{Act, Oci};
use crate::reactor::{Interest, Reactor, Ready, Table, Token};
use crate::sandbox::Sandbox;
use crate::stdio::{IoOwner, Names, OurEnds};
use crate::streams::Streams;
use crate::sys;
use crate::task::State;
use crate::vm::pump::Pumps;
use crate::vm::volume::Watches;
use crate::waits::Deadlines;
use crate::worker::{Body, Worker};
use anyhow::{Context, Result};
use coracle_proto::events::TaskCreate;
use coracle_proto::runc;
use coracle_proto::ttrpc::{Code, encode_response};
use nix::sys::signalfd::SignalFd;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Task clients at once.
const MAX_CONNECTIONS: usize = 512;
/// Clients accepted before others have their turn.
const ACCEPT_TURN: usize = 16;
/// Exits kept of children nobody has claimed yet: workers report the pids of theirs a moment later.
const MAX_UNCLAIMED: usize = 256;
/// With nothing to do for this long, the pages of code that ran once are given back.
const IDLE_AFTER: Duration = Duration::from_millis(100);

/// One process: a container's init or an exec.
pub struct Process {
    /// Empty for the init.
    pub exec_id: String,
    /// Where it stands.
    pub state: State,
    /// 0 before it exists.
    pub pid: i32,
    /// In a virtual machine: as that counts.
    pub guest_pid: i32,
    /// The words it was asked for with.
    pub names: Names,
    /// Key of its streams.
    pub io: u32,
    /// How it ended.
    pub exit: Option<Exit>,
    /// Who waits for that.
    pub waiters: Vec<Call>,
    /// An exec's OCI process as JSON, until it is started.
    pub spec: Vec<u8>,
    /// Its shim was told that no more input comes.
    pub input_ended: bool,
    /// Who takes its outputs, if a program does: its pidfd.
    pub logger: Option<OwnedFd>,
    /// An exit of which containerd hears once it has heard of the start.
    pub unannounced: Option<Exit>,
    /// The way to it, in a virtual machine.
    pub pump: Option<u32>,
    /// It has ended in there; told when all its output has passed, or then.
    pub held: Option<(Exit, Instant)>,
    /// It was killed while it was being frozen.
    pub doomed: bool,
    /// Something of its streams was lost on the way out of there: its end is no success.
    pub torn: bool,
    /// The size of its terminal, asked for before it ran.
    pub size: Option<(u32, u32)>,
}

/// One container.
pub struct Container {
    /// Its id.
    pub id: String,
    /// The directory of config.json.
    pub bundle: PathBuf,
    /// What runs it.
    pub oci: Oci,
    /// Its cgroup is a unit of systemd's.
    pub systemd_cgroup: bool,
    /// Where its checkpoints go, unless a request says so.
    pub criu: runc::Options,
    /// Who owns the pipes and fifos of its processes.
    pub io_owner: IoOwner,
    /// Its first process.
    pub init: Process,
    /// Processes started by Exec.
    pub execs: Vec<Process>,
    /// Its init's death takes all others along.
    pub own_pid_namespace: bool,
    /// Where the kernel counts its OOM kills.
    pub oom_file: String,
    /// Who watches that.
    pub oom: OomWatch,
    /// Who asked for its deletion.
    pub deleting: Option<Call>,
    /// What containerd hears of once it is made.
    pub announcement: Option<Box<TaskCreate>>,
}

/// What a worker was started for. `container` and `exec` are ids, looked up again when it reports.
pub enum Job {
    /// Task.Create.
    Create { call: Call, container: String, ends: OurEnds },
    /// Clearing up after a Create whose worker died; then its failure is told.
    Undo { call: Call, container: String, failure: Failure },
    /// Task.Start of a container.
    Start { call: Call, container: String },
    /// Task.Start of an exec.
    Exec { call: Call, container: String, exec: String, ends: OurEnds },
    /// Task.Pause (`frozen`) and Task.Resume.
    Freeze { call: Option<Call>, container: String, frozen: bool },
    /// Task.Delete of a container.
    Delete { call: Option<Call>, container: String },
    /// Whatever only has to be answered.
    Answer { call: Call },
    /// The leftovers of a dead container are being killed: nobody is told.
    Quiet,
    /// The pod's cgroup is being made, for CreateSandbox.
    PodCgroup { call: Call },
    /// The pod's virtual machine is being prepared, for the first container.
    Machine,
    /// The pod's virtual machine is being told its network, for those who have asked.
    ConnectNetwork,
    /// The pod's virtual machine is being made from its template.
    RestoreVm,
    /// A process of a shim runs: waits for its end.
    Wait { container: String, exec: String },
    /// The way to a process in the virtual machine is being made again.
    Attach { pump: u32, stream: UnixStream },
    /// Volumes that have changed are being sent to the virtual machine.
    SendVolumes,
    /// Everything is being released, before the program ends.
    Release,
}

impl Job {
    /// Its worker has done that, and goes on with what follows it: whoever has started an exec waits for its end.
    fn goes_on(&mut self) -> Job {
        let next = match self {
            Job::Exec { container, exec, .. } => Job::Wait { container: container.clone(), exec: exec.clone() },
            _ => Job::Quiet,
        };
        std::mem::replace(self, next)
    }
}

/// The supervisor.
pub struct Supervisor {
    pub(crate) reactor: Reactor,
    listener: UnixListener,
    attach_listener: UnixListener,
    signals: SignalFd,
    connections: Table<Connection>,
    pub(crate) streams: Streams,
    pub(crate) pumps: Pumps,
    /// Requests to create that wait for the pod's machine.
    pub(crate) early: Option<Early>,
    pub(crate) volumes: Watches,
    pub(crate) workers: Table<Worker<Job>>,
    pub(crate) containers: Vec<Container>,
    pub(crate) sandbox: Sandbox,
    /// Exits of children that no container owns yet.
    pub(crate) unclaimed: Vec<(i32, Exit)>,
    /// Set when the loop is to end.
    pub(crate) finished: bool,
    /// Where containerd wants to hear of its tasks.
    pub(crate) publisher: Option<Publisher>,
    /// It is the init of a virtual machine.
    pub(crate) guest: Option<Guest>,
    /// Until when calls wait.
    pub(crate) deadlines: Deadlines,
    idle: bool,
}

impl Supervisor {
    /// Puts listeners and signals into the loop.
    pub fn new(
        sandbox: Sandbox,
        listener: UnixListener,
        attach_listener: UnixListener,
        signals: SignalFd,
    ) -> Result<Self> {
        let reactor = Reactor::new().context("make an epoll set")?;
        listener.set_nonblocking(true)?;
        attach_listener.set_nonblocking(true)?;
        reactor.watch_for_ever(&listener, Token::Listener)?;
        reactor.watch_for_ever(&attach_listener, Token::AttachListener)?;
        reactor.watch_for_ever(&signals, Token::Signal)?;
        Ok(Supervisor {
            reactor,
            listener,
            attach_listener,
            signals,
            connections: Table::default(),
            streams: Streams::default(),
            pumps: Pumps::default(),
            early: None,
            volumes: Watches::default(),
            workers: Table::default(),
            containers: Vec::new(),
            sandbox,
            unclaimed: Vec::new(),
            finished: false,
            publisher: None,
            guest: None,
            deadlines: Deadlines::default(),
            idle: false,
        })
    }

    /// Runs until the sandbox is shut down.
    pub fn run(&mut self) -> Result<()> {
        let mut ready = Vec::new();
        let mut rest = false;
        while !self.finished {
            let wait = if rest { Reactor::rest } else { Reactor::wait };
            wait(&self.reactor, self.patience(), &mut ready).context("wait for events")?;
            // Nothing has happened for a while: the next wait may be a long one.
            rest = ready.is_empty() && !self.idle && !self.working();
            self.idle = ready.is_empty() && (self.idle || rest);
            for event in ready.drain(..) {
                self.handle(event);
            }
            self.end_shim_inputs();
            self.tick_guest();
            if let Some(publisher) = &mut self.publisher {
                publisher.tick(&self.reactor, Instant::now());
            }
            self.sandbox.tick_tender();
            self.tick_link();
            self.end_waits();
            self.settle();
        }
        Ok(())
    }

    /// Whether a worker has something to do. One that only waits can do so for as long as the pod lives.
    fn working(&self) -> bool {
        self.workers.iter().any(|(_, worker)| !matches!(worker.job, Job::Wait { .. }))
    }

    /// How long the loop may sleep.
    fn patience(&self) -> Option<Duration> {
        let deadline = self.sandbox.deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let publisher = self.publisher.as_ref().and_then(Publisher::deadline);
        let publisher = publisher.map(|at| at.saturating_duration_since(Instant::now()));
        let tender = self.sandbox.tender_due().map(|at| at.saturating_duration_since(Instant::now()));
        let link = self.link_due().map(|at| at.saturating_duration_since(Instant::now()));
        let guest = self.guest_due().map(|at| at.saturating_duration_since(Instant::now()));
        let waits = self.deadlines.next().map(|at| at.saturating_duration_since(Instant::now()));
        let idle = (!self.idle).then_some(IDLE_AFTER);
        let due = deadline.into_iter().chain(publisher).chain(tender).chain(link).chain(guest).chain(waits);
        due.chain(idle).min()
    }

    fn handle(&mut self, event: Ready) {
        match event.token {
            Token::Listener => self.accept(),
            Token::AttachListener => self.accept_attach(),
            Token::Signal => self.signalled(),
            Token::Connection(key) => self.connection_ready(key, event),
            Token::Attach(key) => self.attach_ready(key, event),
            Token::Stdout(key) => self.streams.readable(&self.reactor, key, crate::log::Stream::Stdout),
            Token::Stderr(key) => self.streams.readable(&self.reactor, key, crate::log::Stream::Stderr),
            Token::Stdin(key) => self.streams.stdin_writable(&self.reactor, key),
            Token::Worker(key) => self.worker_ready(key),
            Token::Memory(key) => self.memory_ready(key),
            Token::RelayIn(key) => self.streams.typed(&self.reactor, key),
            Token::RelayOut(key) => self.streams.shown(&self.reactor, key),
            Token::Pump(key) | Token::PumpIn(key) | Token::PumpOut(key) | Token::PumpErr(key) => {
                self.pump_ready(key, event);
            }
            Token::Volumes => self.volumes.ready(),
            Token::Events => {
                if let Some(publisher) = &mut self.publisher {
                    publisher.ready(&self.reactor, event);
                }
            }
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPT_TURN {
            let Ok((stream, _)) = self.listener.accept() else { return };
            // One too many is closed at once: whoever hangs on to 512 connections has lost count.
            if self.connections.len() >= MAX_CONNECTIONS {
                continue;
            }
            if let Ok(connection) = Connection::new(stream) {
                let key = self.connections.insert(connection);
                self.watch_connection(key);
            }
        }
    }

    fn accept_attach(&mut self) {
        for _ in 0..ACCEPT_TURN {
            let Ok((stream, _)) = self.attach_listener.accept() else { return };
            self.streams.accept(&self.reactor, stream);
        }
    }

    fn watch_connection(&mut self, key: u32) {
        if self.connections.get_mut(key).is_some_and(|connection| connection.watch(&self.reactor, key).is_err()) {
            self.connections.remove(key);
        }
    }

    fn connection_ready(&mut self, key: u32, event: Ready) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let mut requests = Vec::new();
        let flushed = if event.write { connection.flush() } else { Ok(()) };
        let read = if event.read { connection.read(&mut requests) } else { Ok(()) };
        // Requests that came whole before the client left are served: their effects are wanted, only the answers are not.
        for (stream, request) in requests {
            self.serve(Call { connection: key, stream }, request);
        }
        if flushed.is_err() || read.is_err() {
            self.connections.remove(key);
        }
        self.watch_connection(key);
    }

    /// Sends an answer, if the client is still there.
    pub(crate) fn answer(&mut self, call: Call, result: Result<Vec<u8>, Failure>) {
        self.deadlines.forget(call);
        let Some(connection) = self.connections.get_mut(call.connection) else { return };
        let answer = encode_response(call.stream, result.map_err(Into::into)).or_else(|error| {
            let failure = Code::ResourceExhausted.failure(error.to_string());
            encode_response(call.stream, Err(failure.into()))
        });
        if answer.map_or(true, |answer| connection.send(&answer).is_err()) {
            self.connections.remove(call.connection);
        }
        self.watch_connection(call.connection);
    }

    /// Whether somebody is still there to be answered.
    pub(crate) fn is_connected(&self, call: Call) -> bool {
        self.connections.get(call.connection).is_some()
    }

    /// Whether answers still have to be sent.
    pub(crate) fn answers_wait(&self) -> bool {
        self.connections.iter().any(|(_, connection)| connection.pending())
    }

    fn attach_ready(&mut self, key: u32, event: Ready) {
        let Some(hello) = self.streams.client_ready(&self.reactor, key, event.read, event.write) else { return };
        let target = match hello {
            // Its exec is asked for on another connection, and either may be the faster one.
            Ok(hello) if hello.wait && !hello.again && self.is_to_come(&hello.container, &hello.exec) => {
                self.streams.expect(key, hello);
                return;
            }
            Ok(hello) => {
                let process = self.process(&hello.container, &hello.exec);
                process.map(|process| (process.io, hello)).map_err(|failure| failure.message)
            }
            Err(why) => Err(why),
        };
        self.streams.attach(&self.reactor, key, target);
    }

    /// Whether this is an exec that the container may still get.
    fn is_to_come(&mut self, id: &str, exec: &str) -> bool {
        let running = self.container(id).is_ok_and(|container| container.init.state == State::Running);
        running && !exec.is_empty() && self.process(id, exec).is_err()
    }

    /// Starts a worker. `keep` are the descriptors it needs.
    pub(crate) fn work(&mut self, job: Job, keep: &[RawFd], body: Body<'_>) -> Result<(), Failure> {
        let mut worker = Worker::spawn(job, &self.sandbox.host_namespaces, keep, body)?;
        let key = self.workers.next_key();
        let watched = worker.watch(&self.reactor, key, Interest::READ);
        watched.map_err(|error| Code::ResourceExhausted.failure(format!("watch a worker: {error}")))?;
        self.workers.insert(worker);
        Ok(())
    }

    /// Starts a worker that does something with a container.
    pub(crate) fn act(&mut self, job: Job, id: &str, act: Act) -> Result<(), Failure> {
        let (oci, id, keep) = (self.container(id)?.oci.clone(), id.to_owned(), act.keep());
        self.work(job, &keep, Box::new(move || oci.perform(&id, act)))
    }

    fn worker_ready(&mut self, key: u32) {
        let Some(worker) = self.workers.get_mut(key) else { return };
        let ended = worker.read();
        if let Some(result) = worker.first_report() {
            let job = worker.job.goes_on();
            self.job_done(job, result);
        }
        if !ended {
            return;
        }
        let Some(mut worker) = self.workers.remove(key) else { return };
        // Only a descriptor that is not in the set could fail here.
        let _ = worker.watch(&self.reactor, key, Interest::NONE);
        let (job, result) = worker.finish();
        self.job_done(job, result);
        if !self.working() {
            // Every pid that a worker could have reported is known by now; the rest were orphans.
            self.unclaimed = Vec::new();
        }
    }

    fn signalled(&mut self) {
        use nix::libc::{SIGCHLD, SIGTERM};
        while let Ok(Some(info)) = self.signals.read_signal() {
            match info.ssi_signo as i32 {
                SIGCHLD => self.reap(),
                SIGTERM => self.terminate(),
                _ => {}
            }
        }
    }

    fn reap(&mut self) {
        while let Some((pid, death)) = sys::reap() {
            let exit = Exit::new(death);
            let of_sandbox = self.sandbox.pod_init_died(pid) || self.sandbox.tender_died(pid, exit.status);
            let is_link = self.guest.as_mut().is_some_and(|guest| guest.died(pid));
            if of_sandbox || is_link || self.vm_died(pid, &exit) || self.process_died(pid, exit) {
                continue;
            }
            let is_worker = self.workers.iter().any(|(_, worker)| worker.pid == pid);
            if !is_worker && self.workers.len() > 0 {
                // What a worker reports was born just now: of too many the oldest are nobody's.
                if self.unclaimed.len() == MAX_UNCLAIMED {
                    self.unclaimed.remove(0);
                }
                self.unclaimed.push((pid, exit));
            }
        }
    }

    /// The container of an id.
    pub(crate) fn container(&mut self, id: &str) -> Result<&mut Container, Failure> {
        let found = self.containers.iter_mut().find(|container| container.id == id);
        found.ok_or_else(|| Code::NotFound.failure(format!("container {id}: not found")))
    }

    /// The init of a container, or an exec of it.
    pub(crate) fn process(&mut self, id: &str, exec: &str) -> Result<&mut Process, Failure> {
        let container = self.container(id)?;
        if exec.is_empty() {
            return Ok(&mut container.init);
        }
        let found = container.execs.iter_mut().find(|process| process.exec_id == exec);
        found.ok_or_else(|| Code::NotFound.failure(format!("exec {exec} of container {id}: not found")))
    }
}
