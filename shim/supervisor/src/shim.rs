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

pub mod client;
mod fifos;
mod launch;
mod waits;

use crate::failure::Failure;
use crate::oci::{Act, not_needed};
use crate::ops::{self, Created};
use crate::remote::{Exec, LONG, Remote, wait_for_end};
use crate::stdio::{Names, ProcessEnds};
use client::Client;
use coracle_proto::coracle::ShimOptions;
use coracle_proto::ttrpc::{Code, method};
use coracle_proto::{Any, Message, any, runc, task};
use coracle_runtime::cgroup::Cgroup;
pub use fifos::open as open_fifos;
pub use launch::{LOG, end, prepare};
use std::fs;
use std::path::{Path, PathBuf};

/// The folder's name in the sandbox's bundle.
pub const FOLDER: &str = "shim";

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

impl Remote for Shim {
    fn client(&self) -> Result<Client, Failure> {
        Client::of(&self.folder)
    }
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
        match act {
            Act::Create { request, ends, .. } => self.create(*request, ends),
            Act::Undo { bundle, systemd } => {
                // Whether it knows of the container or not, nothing of it may run on.
                let _ = self.delete(id, "");
                ops::clear_cgroup(id, &bundle, systemd).map(|()| Vec::new())
            }
            Act::Exec { exec, spec, names, ends, .. } => self.exec(id, &exec, spec, names.terminal, &ends.fifos),
            Act::Delete { .. } => self.delete_container(id).map(|()| Vec::new()),
            Act::Checkpoint(_) => Err(not_needed(id)),
            Act::Wait { exec, oom_file, pid } => self.wait(id, exec, &oom_file, pid),
            act => self.plainly(id, act),
        }
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
        Ok(Created { pid, own_pid_namespace: true, oom_file, ..Created::default() }.encode())
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

    fn exec(&self, id: &str, exec: &str, spec: Vec<u8>, terminal: bool, fifos: &Names) -> Result<Vec<u8>, Failure> {
        let streams = [fifos.stdin.clone(), fifos.stdout.clone(), fifos.stderr.clone()];
        let started = self.start_exec(Exec { id, exec, spec, terminal, streams });
        fifos::forget(fifos);
        Ok(Created { pid: started? as i32, ..Created::default() }.encode())
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
        // This may take as long as the pod lives.
        crate::sys::forget_own_text();
        let ended = self.client().and_then(|mut client| wait_for_end(&mut client, id, &exec));
        let ended = ended.inspect_err(|_| waits::await_inheritance(pid))?;
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
