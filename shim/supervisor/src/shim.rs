//! Containers of a containerd shim v2: any program that speaks the task API, one for the pod.
//!
//! The supervisor stays what it is, the pod's pause process that writes logs, serves attach clients and keeps exit codes;
//! only what a worker does is another program's. So a pod of a shim outlives the server like any other.
//!
//! ```text
//! <sandbox bundle>/shim/           the shim's working directory
//!   config.json                    its annotations make the shim group all containers of the pod
//!   listening.json                 {"address":"unix:///...","version":2,"cgroup":"..."}: the address when it listens
//!   lock                           flock: one worker at a time starts a shim
//!   log, shim.log                  the fifo it writes its messages to, and where the supervisor keeps them
//!   state/                         where runc's shim keeps runc's state
//! <container bundle>/io-*          fifos; they have names only until the shim has opened them
//! ```
//!
//! - It starts in a mount namespace of its own, in which it mounts root filesystems: the host never sees one, and none
//!   is left when it dies. It starts in a cgroup below the pod's, so it is counted and killed with the pod.
//! - It sends its events to the supervisor's own socket, where they end: exits are learned by a worker that waits for
//!   each process, and then has the shim forget it, which is when all its output has been passed on.
//! - When the shim dies, the supervisor is the reaper of orphans and so the parent of what it left.

mod client;
mod fifos;
mod launch;
mod waits;

use crate::failure::Failure;
use crate::oci::{Act, not_needed};
use crate::ops::{self, Created};
use crate::stdio::{Names, ProcessEnds};
use client::Client;
use coracle_proto::coracle::ShimOptions;
use coracle_proto::ttrpc::{Code, method};
use coracle_proto::{Any, Empty, Message, any, runc, task};
use coracle_runtime::cgroup::Cgroup;
pub use fifos::open as open_fifos;
pub use launch::{LOG, end, prepare};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The folder's name in the sandbox's bundle.
pub const FOLDER: &str = "shim";
/// Making and starting: hooks and virtual machines run in here. The engine has a deadline of its own before that.
const LONG: Duration = Duration::from_secs(180);
/// Everything else.
const SHORT: Duration = Duration::from_secs(20);

/// A container of a shim.
#[derive(Debug, Clone)]
pub struct Shim {
    binary: PathBuf,
    options: Option<Any>,
    /// The pod's id.
    sandbox: String,
    /// The shim's folder.
    folder: PathBuf,
    /// The container's folder.
    bundle: PathBuf,
    /// The pod's cgroup; may be empty.
    cgroup: String,
}

impl Shim {
    /// The shim that the options name.
    pub fn new(options: ShimOptions, request: &task::CreateTaskRequest, pod: &Path, id: &str, cgroup: &str) -> Self {
        Shim {
            binary: options.binary.into(),
            options: options.options,
            sandbox: id.to_owned(),
            folder: pod.join(FOLDER),
            bundle: PathBuf::from(&request.bundle),
            cgroup: cgroup.to_owned(),
        }
    }

    /// Where the fifos of its processes are made.
    pub fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// Does what a worker is for.
    pub fn perform(&self, id: &str, act: Act) -> Result<Vec<u8>, Failure> {
        let id_only = || id.to_owned();
        match act {
            Act::Create { request, ends, .. } => self.create(*request, ends),
            Act::Undo { bundle, systemd } => {
                // Whether it knows of the container or not, nothing of it may run on.
                let _ = self.delete(id, "");
                ops::clear_cgroup(id, &bundle, systemd).map(|()| Vec::new())
            }
            Act::Start => self.start(id, "").map(|_| Vec::new()),
            Act::Exec { exec, spec, terminal, ends } => self.exec(id, &exec, spec, terminal, &ends.fifos),
            Act::Kill { exec, signal } => self.kill(id, exec, signal, false),
            Act::KillAll(signal) => self.kill(id, String::new(), signal, true),
            Act::Delete { .. } => self.delete_container(id).map(|()| Vec::new()),
            Act::Freeze(true) => self.empty(method::PAUSE, &task::PauseRequest { id: id_only() }),
            Act::Freeze(false) => self.empty(method::RESUME, &task::ResumeRequest { id: id_only() }),
            Act::Update(resources) => {
                let resources = Some(any::pack_json(any::OCI_RESOURCES, resources));
                self.empty(method::UPDATE, &task::UpdateTaskRequest { id: id_only(), resources, ..Default::default() })
            }
            Act::Checkpoint(_) => Err(not_needed(id)),
            Act::Pids(_) => self.answer::<task::PidsResponse>(method::PIDS, &task::PidsRequest { id: id_only() }),
            Act::Stats(_) => self.answer::<task::StatsResponse>(method::STATS, &task::StatsRequest { id: id_only() }),
            Act::Resize { exec, width, height } => {
                self.empty(method::RESIZE_PTY, &task::ResizePtyRequest { id: id_only(), exec_id: exec, width, height })
            }
            Act::CloseInput { exec } => {
                self.empty(method::CLOSE_IO, &task::CloseIoRequest { id: id_only(), exec_id: exec, stdin: true })
            }
            Act::Wait { exec, oom_file, pid } => self.wait(id, exec, &oom_file, pid),
        }
    }

    fn client(&self) -> Result<Client, Failure> {
        Client::of(&self.folder)
    }

    fn answer<A: Message + Default>(&self, method: &str, request: &impl Message) -> Result<Vec<u8>, Failure> {
        Ok(self.client()?.call::<A>(method, request, Some(SHORT))?.encode_to_vec())
    }

    fn empty(&self, method: &str, request: &impl Message) -> Result<Vec<u8>, Failure> {
        self.answer::<Empty>(method, request)
    }

    fn create(&self, mut request: task::CreateTaskRequest, ends: ProcessEnds) -> Result<Vec<u8>, Failure> {
        let mut client = launch::started(self)?;
        request.options = self.task_options();
        (request.stdin, request.stdout, request.stderr) =
            (ends.fifos.stdin.clone(), ends.fifos.stdout.clone(), ends.fifos.stderr.clone());
        let created = client.call::<task::CreateTaskResponse>(method::CREATE, &request, Some(LONG));
        let pid = created.inspect_err(|_| fifos::forget(&ends.fifos))?.pid as i32;
        // A virtual machine's processes have none that is known here.
        let cgroup = Cgroup::of_process(pid).ok().flatten();
        let oom_file = cgroup.and_then(|cgroup| ops::oom_file(&cgroup.state())).unwrap_or_default();
        // What it leaves running is the shim's to kill.
        Ok(Created { pid, own_pid_namespace: true, oom_file, logger: 0 }.encode())
    }

    /// The options of its tasks. runc's state goes into the pod's folder if no other place is wanted.
    fn task_options(&self) -> Option<Any> {
        let given = self.options.as_ref()?;
        match any::unpack::<runc::Options>(given) {
            Some(Ok(options)) if options.root.is_empty() => {
                let root = self.folder.join("state").to_string_lossy().into_owned();
                Some(any::pack(&runc::Options { root, ..options }))
            }
            _ => Some(given.clone()),
        }
    }

    fn start(&self, id: &str, exec: &str) -> Result<u32, Failure> {
        let request = task::StartRequest { id: id.to_owned(), exec_id: exec.to_owned() };
        let started: task::StartResponse = self.client()?.call(method::START, &request, Some(LONG))?;
        Ok(started.pid)
    }

    fn exec(&self, id: &str, exec: &str, spec: Vec<u8>, terminal: bool, fifos: &Names) -> Result<Vec<u8>, Failure> {
        let request = task::ExecProcessRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            terminal,
            stdin: fifos.stdin.clone(),
            stdout: fifos.stdout.clone(),
            stderr: fifos.stderr.clone(),
            spec: Some(any::pack_json(any::OCI_PROCESS, spec)),
        };
        let started = self.empty(method::EXEC, &request).and_then(|_| {
            // One that did not start is of no use to the shim either.
            self.start(id, exec).inspect_err(|_| drop(self.delete(id, exec)))
        });
        fifos::forget(fifos);
        Ok(Created { pid: started? as i32, ..Created::default() }.encode())
    }

    fn kill(&self, id: &str, exec: String, signal: i32, all: bool) -> Result<Vec<u8>, Failure> {
        let request = task::KillRequest { id: id.to_owned(), exec_id: exec, signal: signal as u32, all };
        self.empty(method::KILL, &request)
    }

    fn delete(&self, id: &str, exec: &str) -> Result<(), Failure> {
        let request = task::DeleteRequest { id: id.to_owned(), exec_id: exec.to_owned() };
        match self.client()?.call::<task::DeleteResponse>(method::DELETE, &request, Some(SHORT)) {
            Err(failure) if failure.code != Code::NotFound => Err(failure),
            _ => Ok(()),
        }
    }

    /// Forgets a container that has ended. A shim that died has left at most its cgroup.
    fn delete_container(&self, id: &str) -> Result<(), Failure> {
        match self.delete(id, "") {
            Err(failure) if failure.code == Code::Unavailable => ops::clear_cgroup(id, &self.bundle, false),
            done => done,
        }
    }

    /// Waits for a process to end, keeps what tells of its OOM kills, and has the shim forget it: which it does when it
    /// has passed on all output.
    fn wait(&self, id: &str, exec: String, oom_file: &str, pid: i32) -> Result<Vec<u8>, Failure> {
        let request = task::WaitRequest { id: id.to_owned(), exec_id: exec.clone() };
        // This may take as long as the pod lives.
        crate::sys::forget_own_text();
        let ended = self.client().and_then(|mut client| client.call(method::WAIT, &request, None));
        let ended: task::WaitResponse = ended.inspect_err(|_| waits::await_inheritance(pid))?;
        if exec.is_empty() && !oom_file.is_empty() {
            // With the container goes its cgroup.
            let _ = fs::copy(oom_file, self.oom_note());
        }
        // One that cannot be forgotten now is when the container is deleted, and then its words are told.
        let _ = self.delete(id, &exec);
        Ok(ended.encode_to_vec())
    }

    /// Where the count of a container's OOM kills is kept when it has ended.
    fn oom_note(&self) -> PathBuf {
        self.bundle.join("oom-kills")
    }
}
