//! Task calls to whoever has the processes, when they are no children of ours: a containerd shim, or the supervisor in a
//! virtual machine. Both speak the same API; what differs is how they are reached, how a container is made there, and what
//! is done here when a process of theirs has ended.

use crate::failure::{Fail, Failure};
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

    /// Starts an exec; its pid.
    fn start_exec(&self, exec: Exec<'_>) -> Result<u32, Failure> {
        let (id, name) = (exec.id, exec.exec);
        let mut client = self.client()?;
        let _: Empty = client.call(method::EXEC, &exec.request(), Some(SHORT))?;
        // One that did not start is of no use to anybody.
        start_over(&mut client, id, name).inspect_err(|_| drop(self.delete(id, name)))
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

impl Exec<'_> {
    /// The request that tells of it.
    fn request(self) -> task::ExecProcessRequest {
        let [stdin, stdout, stderr] = self.streams;
        task::ExecProcessRequest {
            id: self.id.to_owned(),
            exec_id: self.exec.to_owned(),
            terminal: self.terminal,
            stdin,
            stdout,
            stderr,
            spec: Some(any::pack_json(any::OCI_PROCESS, self.spec)),
        }
    }
}

/// An exec that is asked for, started and waited for by one message, to somebody who does what he is asked in its order:
/// each answer that is waited for first costs a machine a turn of all that is between.
pub struct Begun {
    client: Client,
    told: u32,
    started: Option<u32>,
    ended: u32,
}

impl Begun {
    /// Asks for all of it, at the first answer that is waited for.
    pub fn new(mut client: Client, exec: Exec<'_>) -> Result<Begun, Failure> {
        let (id, name) = (exec.id, exec.exec);
        let told = client.begin(method::EXEC, &exec.request(), Some(LONG))?;
        let started = Some(client.begin(method::START, &start_request(id, name), Some(LONG))?);
        let ended = client.begin(method::WAIT, &wait_request(id, name), None)?;
        Ok(Begun { client, told, started, ended })
    }

    /// Returns when somebody there knows of the exec, or is known not to.
    pub fn known(&mut self) -> Result<(), Failure> {
        let _: Empty = self.client.answer(method::EXEC, self.told, Some(LONG))?;
        Ok(())
    }

    /// Its pid, when it has started.
    pub fn pid(&mut self) -> Result<u32, Failure> {
        let answered = || Code::FailedPrecondition.failure("its start was answered before".to_owned());
        let started = self.started.take().ok_or_else(answered)?;
        Ok(self.client.answer::<task::StartResponse>(method::START, started, Some(LONG))?.pid)
    }

    /// How it has ended, however long that takes; and the connection.
    pub fn end(mut self) -> Result<(task::WaitResponse, Client), Failure> {
        let ended = self.client.answer(method::WAIT, self.ended, None)?;
        Ok((ended, self.client))
    }
}

fn start_request(id: &str, exec: &str) -> task::StartRequest {
    task::StartRequest { id: id.to_owned(), exec_id: exec.to_owned() }
}

fn wait_request(id: &str, exec: &str) -> task::WaitRequest {
    task::WaitRequest { id: id.to_owned(), exec_id: exec.to_owned() }
}

fn start_over(client: &mut Client, id: &str, exec: &str) -> Result<u32, Failure> {
    Ok(client.call::<task::StartResponse>(method::START, &start_request(id, exec), Some(LONG))?.pid)
}

/// Waits for a process to end, however long that takes.
pub fn wait_for_end(client: &mut Client, id: &str, exec: &str) -> Result<task::WaitResponse, Failure> {
    client.call(method::WAIT, &wait_request(id, exec), None)
}
