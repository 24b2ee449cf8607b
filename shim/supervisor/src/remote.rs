//! Task calls to whoever has the processes, when they are no children of ours: a containerd shim, or the supervisor in a
//! virtual machine. Both speak the same API; what differs is how they are reached, how a container is made there, and what
//! is done here when a process of theirs has ended.

use crate::failure::Failure;
use crate::oci::{Act, not_needed};
use crate::shim::client::Client;
use coracle_proto::ttrpc::{Code, method};
use coracle_proto::{Empty, Message, any, task};
use nix::libc::SIGKILL;
use std::time::Duration;

/// Making and starting: hooks and virtual machines run in here. The engine has a deadline of its own before that.
pub const LONG: Duration = Duration::from_secs(180);
/// Everything else.
pub const SHORT: Duration = Duration::from_secs(20);

/// A process that is asked for there and was not started yet.
pub struct Exec<'a> {
    /// The container.
    pub id: &'a str,
    /// The exec's id.
    pub exec: &'a str,
    /// The OCI process.
    pub spec: Vec<u8>,
    /// It gets a terminal.
    pub terminal: bool,
    /// The words for its streams.
    pub streams: [String; 3],
}

/// Somebody with a task service.
pub trait Remote {
    /// A connection to it.
    fn client(&self) -> Result<Client, Failure>;

    /// One call that takes no time, with its answer as it came.
    fn answer<A: Message + Default>(&self, method: &str, request: &impl Message) -> Result<Vec<u8>, Failure> {
        Ok(self.client()?.call::<A>(method, request, Some(SHORT))?.encode_to_vec())
    }

    /// One call without an answer.
    fn empty(&self, method: &str, request: &impl Message) -> Result<Vec<u8>, Failure> {
        self.answer::<Empty>(method, request)
    }

    /// Does what is the same whoever it is asked of.
    fn plainly(&self, id: &str, act: Act) -> Result<Vec<u8>, Failure> {
        let id = || id.to_owned();
        match act {
            Act::Start => self.start(&id(), "").map(|_| Vec::new()),
            Act::Kill { exec, signal } => self.kill(id(), exec, signal, false),
            // Of whom the guest's processes are nobody here knows: the one that was asked for is killed.
            Act::KillTree { exec, .. } => self.kill(id(), exec, SIGKILL, false),
            Act::KillAll(signal) => self.kill(id(), String::new(), signal, true),
            Act::Freeze(true) => self.empty(method::PAUSE, &task::PauseRequest { id: id() }),
            Act::Freeze(false) => self.empty(method::RESUME, &task::ResumeRequest { id: id() }),
            Act::Update(resources) => {
                let resources = Some(any::pack_json(any::OCI_RESOURCES, resources));
                self.empty(method::UPDATE, &task::UpdateTaskRequest { id: id(), resources, ..Default::default() })
            }
            Act::Pids(_) => self.answer::<task::PidsResponse>(method::PIDS, &task::PidsRequest { id: id() }),
            Act::Stats(_) => self.answer::<task::StatsResponse>(method::STATS, &task::StatsRequest { id: id() }),
            Act::Resize { exec, width, height } => {
                self.empty(method::RESIZE_PTY, &task::ResizePtyRequest { id: id(), exec_id: exec, width, height })
            }
            Act::CloseInput { exec } => {
                self.empty(method::CLOSE_IO, &task::CloseIoRequest { id: id(), exec_id: exec, stdin: true })
            }
            _ => Err(not_needed(&id())),
        }
    }

    /// Starts what was made; its pid.
    fn start(&self, id: &str, exec: &str) -> Result<u32, Failure> {
        start_over(&mut self.client()?, id, exec)
    }

    /// Tells of an exec. `ready` is done before it starts; its pid is returned, and the connection for what follows.
    fn start_exec(
        &self,
        exec: Exec<'_>,
        ready: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<(u32, Client), Failure> {
        let (id, name) = (exec.id, exec.exec);
        let [stdin, stdout, stderr] = exec.streams;
        let request = task::ExecProcessRequest {
            id: id.to_owned(),
            exec_id: name.to_owned(),
            terminal: exec.terminal,
            stdin,
            stdout,
            stderr,
            spec: Some(any::pack_json(any::OCI_PROCESS, exec.spec)),
        };
        let mut client = self.client()?;
        let _: Empty = client.call(method::EXEC, &request, Some(SHORT))?;
        // One that did not start is of no use to anybody.
        let started = ready().and_then(|()| start_over(&mut client, id, name));
        started.map(|pid| (pid, client)).inspect_err(|_| drop(self.delete(id, name)))
    }

    /// Signals a process, or all of a container.
    fn kill(&self, id: String, exec: String, signal: i32, all: bool) -> Result<Vec<u8>, Failure> {
        self.empty(method::KILL, &task::KillRequest { id, exec_id: exec, signal: signal as u32, all })
    }

    /// Has it forget a process that has ended. One that it does not know is forgotten.
    fn delete(&self, id: &str, exec: &str) -> Result<(), Failure> {
        let request = task::DeleteRequest { id: id.to_owned(), exec_id: exec.to_owned() };
        match self.client()?.call::<task::DeleteResponse>(method::DELETE, &request, Some(SHORT)) {
            Err(failure) if failure.code != Code::NotFound => Err(failure),
            _ => Ok(()),
        }
    }
}

fn start_over(client: &mut Client, id: &str, exec: &str) -> Result<u32, Failure> {
    let request = task::StartRequest { id: id.to_owned(), exec_id: exec.to_owned() };
    Ok(client.call::<task::StartResponse>(method::START, &request, Some(LONG))?.pid)
}

/// Waits for a process to end, however long that takes.
pub fn wait_for_end(client: &mut Client, id: &str, exec: &str) -> Result<task::WaitResponse, Failure> {
    client.call(method::WAIT, &task::WaitRequest { id: id.to_owned(), exec_id: exec.to_owned() }, None)
}
