//! The supervisor's part for a shim's containers: a worker that waits for each process, and what follows from its
//! report; signals, which go through the shim; the shim's own messages.

use super::FOLDER;
use crate::exits::Exit;
use crate::failure::{Fail, Failure};
use crate::oci::{Act, Oci};
use crate::service::{Outcome, done};
use crate::stdio::{Kept, Names, OurEnds};
use crate::supervisor::{Job, Supervisor};
use crate::sys;
use crate::task::State;
use coracle_proto::ttrpc::Code;
use coracle_proto::{Message, task};
use nix::libc::{O_NONBLOCK, SIGKILL};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant, SystemTime};

/// The shim's messages are turned over at this size.
const MAX_LOG: u64 = 1 << 20;
/// How long a shim whose connection has closed may take to be dead.
const INHERITANCE: Duration = Duration::from_secs(1);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

impl Supervisor {
    /// Reads the messages of the shim that is about to be started, into a log of their own.
    pub(crate) fn read_shim_log(&mut self) -> Result<(), Failure> {
        let folder = self.sandbox.bundle.join(FOLDER);
        if folder.join(super::LOG).exists() {
            return Ok(());
        }
        let failed = |error: io::Error| Code::Unknown.failure(format!("make {}: {error}", folder.display()));
        let fifo = super::prepare(&folder).map_err(failed)?;
        let open = |write| OpenOptions::new().read(true).write(write).custom_flags(O_NONBLOCK).open(&fifo);
        let (keeper, end) = (open(true).map_err(failed)?, open(false).map_err(failed)?);
        let log = format!("cri:{}", folder.join("shim.log").display());
        let io = self.streams.create(&Names { stdout: log, ..Names::default() }, false, MAX_LOG)?;
        let kept = Kept { outputs: vec![keeper.into()], ..Kept::default() };
        self.streams.connect(&self.reactor, io, OurEnds { stdout: Some(end.into()), kept, ..OurEnds::default() })
    }

    /// A process of a shim or of a virtual machine exists: somebody has to wait for it.
    pub(crate) fn wait_remotely(&mut self, id: &str, exec: &str) {
        let Ok(container) = self.container(id) else { return };
        if !container.oci.is_remote() {
            return;
        }
        let oom_file = container.oom_file.clone();
        let waits = |job: &Job| matches!(job, Job::Wait { container, exec: of } if container == id && of == exec);
        if self.workers.iter().any(|(_, worker)| waits(&worker.job)) {
            return;
        }
        let pid = self.process(id, exec).map_or(0, |process| process.pid);
        let job = Job::Wait { container: id.to_owned(), exec: exec.to_owned() };
        if let Err(failure) = self.act(job, id, Act::Wait { exec: exec.to_owned(), oom_file, pid }) {
            self.lost_sight(id, exec, &failure);
        }
    }

    /// The shim has opened its ends of a process' streams: when it closes them, they end.
    pub(crate) fn let_go_of_fifos(&mut self, id: &str, exec: &str) {
        let shim = self.container(id).is_ok_and(|container| matches!(container.oci, Oci::Shim(_)));
        if shim && let Ok(io) = self.process(id, exec).map(|process| process.io) {
            self.streams.let_go(io);
        }
    }

    /// Tells shims which inputs have ended: they hold the fifos open until they are told, for clients that come back.
    pub(crate) fn end_shim_inputs(&mut self) {
        let mut ended = Vec::new();
        let shims = self.containers.iter_mut().filter(|container| matches!(container.oci, Oci::Shim(_)));
        for container in shims {
            for process in std::iter::once(&mut container.init).chain(&mut container.execs) {
                let has_input = !process.names.stdin.is_empty() && process.state == State::Running;
                if has_input && !process.input_ended && self.streams.input_closed(process.io) {
                    process.input_ended = true;
                    ended.push((container.id.clone(), process.exec_id.clone()));
                }
            }
        }
        for (id, exec) in ended {
            if let Err(failure) = self.act(Job::Quiet, &id, Act::CloseInput { exec }) {
                eprintln!("close the input of {id}: {}", failure.message);
            }
        }
    }

    /// Whoever waited for a process has reported.
    pub(crate) fn wait_done(&mut self, id: &str, exec: &str, result: Result<Vec<u8>, Failure>) {
        let malformed = |error| Code::Internal.failure(format!("the waiter's report does not decode: {error}"));
        let ended = result.and_then(|bytes| task::WaitResponse::decode(bytes.as_slice()).map_err(malformed));
        let ended = match ended {
            Ok(ended) => ended,
            Err(failure) => return self.lost_sight(id, exec, &failure),
        };
        let at = ended.exited_at.as_ref().map_or_else(SystemTime::now, SystemTime::from);
        let Ok(container) = self.container(id) else { return };
        if exec.is_empty()
            && let Oci::Shim(shim) = &container.oci
        {
            container.oom_file = shim.oom_note().to_string_lossy().into_owned();
        }
        self.hold_exit(id, exec, Exit { status: ended.exit_status, signal: None, at });
    }

    /// The shim cannot tell how a process ends, most likely because it has died. What it left is ours by now and is
    /// killed, and its exit is seen like any child's; of what is not here nobody will ever know more.
    fn lost_sight(&mut self, id: &str, exec: &str, failure: &Failure) {
        eprintln!("wait for {id} {exec}: {}", failure.message);
        let of_guest = self.container(id).is_ok_and(|container| matches!(container.oci, Oci::Vm(_)));
        let Ok(pid) = self.process(id, exec).map(|process| process.pid) else { return };
        if !of_guest && pid > 0 && is_child(pid, std::process::id()) && sys::kill(pid, SIGKILL).is_ok() {
            return;
        }
        self.end_process(id, exec, Exit::unseen());
    }

    /// Unless its end is known already.
    pub(crate) fn end_process(&mut self, id: &str, exec: &str, exit: Exit) {
        if self.process(id, exec).is_ok_and(|process| process.exit.is_none()) {
            self.process_ended(id, exec, exit);
        }
    }

    /// Events.Forward: a shim's events. What they tell is known by other ways.
    pub(crate) fn forward_event(&mut self, _: crate::connection::Call, _: &[u8]) -> Outcome {
        done()
    }
}

/// For the worker whose call of a shim has failed: a dying shim's connections close before its children become the
/// supervisor's.
pub(super) fn await_inheritance(pid: i32) {
    let there = || pid > 0 && fs::exists(format!("/proc/{pid}")).unwrap_or(false);
    let deadline = Instant::now() + INHERITANCE;
    while there() && !is_child(pid, std::os::unix::process::parent_id()) && Instant::now() < deadline {
        std::thread::sleep(PAUSE);
    }
}

/// Whether a process is a child of that one, by /proc.
fn is_child(pid: i32, supervisor: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // After the name, which may hold anything: the state, then the parent.
    let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
    parent == Some(supervisor)
}
