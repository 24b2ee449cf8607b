//! Signals to processes, by whichever way reaches them: their pid, if they are children of ours, or whoever made them.

use crate::connection::Call;
use crate::failure::Fail;
use crate::oci::Act;
use crate::service::{Outcome, decode, done};
use crate::supervisor::{Job, Supervisor};
use crate::sys;
use crate::task::{Event, State};
use coracle_proto::task;
use coracle_proto::ttrpc::Code;
use nix::libc::{SIGKILL, SIGRTMAX};

impl Supervisor {
    /// Task.Kill
    pub(crate) fn kill(&mut self, call: Call, payload: &[u8]) -> Outcome {
        let request: task::KillRequest = decode(payload)?;
        let id = request.id.clone();
        let signal = i32::try_from(request.signal).ok().filter(|signal| (0..=SIGRTMAX()).contains(signal));
        let Some(signal) = signal else {
            return Err(Code::InvalidArgument.failure(format!("kill {id}: {} is no signal", request.signal)));
        };
        if request.all && request.exec_id.is_empty() {
            self.container(&id)?;
            self.act(Job::Answer { call }, &id, Act::KillAll(signal))?;
            self.thaw_to_die(&id, signal);
            return Ok(None);
        }
        let tree = request.all && signal == SIGKILL;
        // The death of an exec is no reason for a frozen container to run on: it has to wait for that.
        let of_init = request.exec_id.is_empty();
        let by_runtime = self.container(&id)?.oci.signals(&request.exec_id, signal);
        let process = self.process(&id, &request.exec_id)?;
        if !process.state.alive() || process.pid == 0 {
            return Err(Code::NotFound.failure(format!("kill {id}: the process is {}", process.state)));
        }
        let pid = process.pid;
        if tree {
            // A request of ours: to containerd's shims `all` says nothing of an exec.
            self.act(Job::Answer { call }, &id, Act::KillTree { exec: request.exec_id, pid })?;
            if of_init {
                self.thaw_to_die(&id, signal);
            }
            return Ok(None);
        }
        if by_runtime {
            self.act(Job::Answer { call }, &id, Act::Kill { exec: request.exec_id, signal })?;
            if of_init {
                self.thaw_to_die(&id, signal);
            }
            return Ok(None);
        }
        // The pid is ours until we reap it, so no other process can be hit.
        sys::kill(pid, signal).map_err(|error| Code::Unknown.failure(format!("kill {id}: {error}")))?;
        if of_init {
            self.thaw_to_die(&id, signal);
        }
        done()
    }

    /// A frozen process dies of SIGKILL only once it is thawed; one that is being frozen is thawed when it is.
    pub(crate) fn thaw_to_die(&mut self, id: &str, signal: i32) {
        let Ok(container) = self.container(id) else { return };
        container.init.doomed |= signal == SIGKILL && container.init.state == State::Pausing;
        if signal == SIGKILL && container.init.state == State::Paused {
            container.init.report(Event::Resume);
            if self.freeze(None, id, false).is_err()
                && let Ok(container) = self.container(id)
            {
                container.init.report(Event::ResumeFailed);
            }
        }
    }

    /// Signals a process on behalf of nobody who waits for an answer.
    pub(crate) fn signal(&mut self, id: &str, exec: &str, signal: i32) {
        let Ok(container) = self.container(id) else { return };
        let remote = container.oci.is_remote();
        let Ok(process) = self.process(id, exec) else { return };
        if !process.state.alive() || process.pid == 0 {
            return;
        }
        if remote {
            // What cannot be signalled will be found alive by whoever wants it dead.
            let _ = self.act(Job::Quiet, id, Act::Kill { exec: exec.to_owned(), signal });
        } else {
            // It may have died this very moment; its exit is on the way.
            let _ = sys::kill(process.pid, signal);
        }
    }

    /// Kills the init of a container that was never started.
    pub(crate) fn kill_created(&mut self, id: &str) {
        let Ok(container) = self.container(id) else { return };
        let pid = container.init.pid;
        match container.oci.is_remote() {
            true => {
                let kill = Act::Kill { exec: String::new(), signal: SIGKILL };
                if let Err(failure) = self.act(Job::Quiet, id, kill) {
                    eprintln!("kill {id}: {}", failure.message);
                }
            }
            false => drop(sys::kill(pid, SIGKILL)),
        }
    }
}
