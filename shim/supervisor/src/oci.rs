//! Which program runs a container, and what it is asked: one [`Act`] for each job of a worker. The states, the streams
//! and the exits of containers are the same whoever runs them.
//!
//! The program is named by `CreateTaskRequest.options`: runtime options without a binary, or none at all, are our own
//! runtime as a library ([`ops`]); those with one are a program with runc's command line ([`foreign`]); our own
//! [`ShimOptions`] are a containerd shim ([`shim`]). In a pod that is in a virtual machine all of them are that machine's
//! ([`vm::task`](crate::vm::task)), and there our own runtime's.
//!
//! What the other runtime options say is done here, or refused by name:
//!
//! | option | |
//! |---|---|
//! | `Root` | as containerd's own shim has it: state is in `<Root>/<namespace>`; else in the bundle |
//! | `ShimCgroup` | entered at `start`; of a container that joins a running supervisor it must be the same |
//! | `IoUid`, `IoGid` | own the pipes and fifos of each process |
//! | `NoPivotRoot`, `NoNewKeyring`, `SystemdCgroup` | passed on to the runtime |
//! | `CriuImagePath`, `CriuWorkPath` | where a checkpoint goes |
//! | `TaskApiAddress`, `TaskApiVersion` | containerd's words to itself, when it looks for a sandbox's shim |

use crate::checkpoint::Checkpoint;
use crate::containerd::options;
use crate::failure::{Fail, Failure};
use crate::foreign::{self, Foreign};
use crate::logger;
use crate::ops::{self, Created};
use crate::sandbox::{RUNTIME_ROOT, Sandbox};
use crate::shim::Shim;
use crate::stdio::{Names, ProcessEnds};
use crate::vm::pump;
use crate::vm::task::Guest;
use coracle_proto::coracle::ShimOptions;
use coracle_proto::ttrpc::Code;
use coracle_proto::{any, runc, task};
use nix::libc::SIGKILL;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

/// What runs a container.
#[derive(Debug, Clone)]
pub enum Oci {
    /// Our runtime, with the root of its state.
    Own(PathBuf),
    /// A program.
    Foreign(Box<Foreign>),
    /// A shim.
    Shim(Box<Shim>),
    /// The supervisor of the pod's virtual machine.
    Vm(Box<Guest>),
}

/// What a worker does with a container.
pub enum Act {
    /// Task.Create.
    Create {
        /// The request.
        request: Box<task::CreateTaskRequest>,
        /// What its options say.
        options: Box<runc::Options>,
        /// The ends of its streams.
        ends: ProcessEnds,
    },
    /// Clears up after a Create that was cut off.
    Undo {
        /// The container's directory.
        bundle: PathBuf,
        /// Its cgroup is a unit of systemd's.
        systemd: bool,
    },
    /// Task.Start of the container.
    Start,
    /// Task.Start of an exec.
    Exec {
        /// Its id.
        exec: String,
        /// The OCI process.
        spec: Vec<u8>,
        /// The words for its streams.
        names: Names,
        /// The ends of them.
        ends: ProcessEnds,
        /// A worker that then has to be asked for its end may go on with that, and saves another.
        goes_on: bool,
    },
    /// Task.Kill of a process, where a signal to its pid is not the way.
    Kill {
        /// Empty for the init.
        exec: String,
        /// Which signal.
        signal: i32,
    },
    /// Task.Kill with `all` of an exec: SIGKILL to it and to what it has started.
    KillTree {
        /// Its id.
        exec: String,
        /// Its pid.
        pid: i32,
    },
    /// Task.Kill of all processes.
    KillAll(i32),
    /// Task.Delete.
    Delete {
        /// Its logger, which is waited for.
        logger: Option<OwnedFd>,
    },
    /// Task.Pause and, false, Task.Resume.
    Freeze(bool),
    /// Task.Update, with OCI resources as JSON.
    Update(Vec<u8>),
    /// Task.Checkpoint.
    Checkpoint(Box<Checkpoint>),
    /// Task.Pids, with the pids of execs.
    Pids(Vec<(i32, String)>),
    /// Task.Stats, with the file that counts OOM kills.
    Stats(String),
    /// Task.ResizePty, where the terminal is not ours.
    Resize {
        /// Empty for the init.
        exec: String,
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// Task.CloseIO, where the input has a holder in between.
    CloseInput {
        /// Empty for the init.
        exec: String,
    },
    /// Waits for the end of a process that is not our child.
    Wait {
        /// Empty for the init.
        exec: String,
        /// The file that counts OOM kills.
        oom_file: String,
        /// The process, which becomes our child when its shim dies.
        pid: i32,
    },
}

impl Act {
    /// The descriptors that its worker must keep.
    pub fn keep(&self) -> Vec<RawFd> {
        match self {
            Act::Create { ends, .. } | Act::Exec { ends, .. } => ends.raw(),
            Act::Delete { logger } => logger.iter().map(AsRawFd::as_raw_fd).collect(),
            _ => Vec::new(),
        }
    }

    /// Starts the logger of a process that is to be made, and returns its pid.
    fn start_logger(&mut self, id: &str) -> Result<Option<i32>, Failure> {
        let (id, ends) = match self {
            Act::Create { ends, .. } => (id, ends),
            // As containerd's own shims call it.
            Act::Exec { exec, ends, .. } => (exec.as_str(), ends),
            _ => return Ok(None),
        };
        ends.logger.take().map(|logger| logger.start(id)).transpose()
    }
}

impl Oci {
    /// What the request asks for.
    pub fn of(request: &task::CreateTaskRequest, pod: &Sandbox) -> Result<(Oci, runc::Options), Failure> {
        let invalid = |text: String| Code::InvalidArgument.failure(format!("container {}: {text}", request.id));
        if let Some(vm) = &pod.vm {
            let guest = Guest::new(vm.folder(), &request.bundle, (&pod.bundle, &pod.id));
            return Ok((Oci::Vm(Box::new(guest)), guest_options(request).map_err(invalid)?));
        }
        if let Some(options) = request.options.as_ref().and_then(any::unpack::<ShimOptions>) {
            let options = options.map_err(|error| invalid(format!("its options do not decode: {error}")))?;
            if options.sandbox_container {
                let text = "shims that make a sandbox of their own (kata) are not supported yet";
                return Err(Code::Unimplemented.failure(text.to_owned()));
            }
            let shim = Shim::new(options, request, &pod.bundle, &pod.id, pod.cgroup());
            return Ok((Oci::Shim(Box::new(shim)), runc::Options::default()));
        }
        let options = options::read(request.options.as_ref()).map_err(invalid)?;
        if options.shim_cgroup != pod.shim_cgroup && !options.shim_cgroup.is_empty() {
            return Err(invalid(format!(
                "runtime option ShimCgroup is {:?}, and its pod's supervisor was started with {:?}",
                options.shim_cgroup, pod.shim_cgroup
            )));
        }
        let folder = pod.folder_of(&request.bundle);
        let root = Path::new(&options.root);
        let oci = match (options.binary_name.as_str(), options.root.as_str()) {
            ("", "") => Oci::Own(folder.join(RUNTIME_ROOT)),
            ("", _) if !pod.of_containerd() => {
                return Err(invalid(
                    "runtime option Root is for another runtime, or for containerd's containers".into(),
                ));
            }
            ("", _) => Oci::Own(root.join(&pod.namespace)),
            (_, given) => {
                let root = (!given.is_empty()).then(|| root.join(&pod.namespace));
                let foreign = Foreign::new(&request.id, &options, &folder.join(foreign::FOLDER), root);
                Oci::Foreign(Box::new(foreign.map_err(invalid)?))
            }
        };
        Ok((oci, options))
    }

    /// Whether this signal is sent by the program that made the process, and not to its pid.
    pub fn signals(&self, exec: &str, signal: i32) -> bool {
        match self {
            Oci::Own(_) => false,
            // The runtime may translate it for an init; nothing of it can be wanted when it is to be killed.
            Oci::Foreign(_) => exec.is_empty() && signal != SIGKILL,
            Oci::Shim(_) | Oci::Vm(_) => true,
        }
    }

    /// Whether its processes are no children of ours and have to be asked about.
    pub fn is_remote(&self) -> bool {
        matches!(self, Oci::Shim(_) | Oci::Vm(_))
    }

    /// The words of a process' streams as far as they are of this machine.
    pub fn names_here(&self, names: &Names) -> Names {
        match self {
            Oci::Vm(_) => pump::names_here(names),
            _ => names.clone(),
        }
    }

    /// Does it; only in a worker.
    pub fn perform(&self, id: &str, mut act: Act) -> Result<Vec<u8>, Failure> {
        let Some(logger) = act.start_logger(id)? else { return self.perform_plainly(id, act) };
        let made = self.perform_plainly(id, act).inspect_err(|_| logger::kill(logger))?;
        let created = Created::decode(&made).map(|created| Created { logger, ..created });
        Ok(created.map_or(made, |created| created.encode()))
    }

    fn perform_plainly(&self, id: &str, mut act: Act) -> Result<Vec<u8>, Failure> {
        if let Act::Delete { logger } = &mut act
            && let Some(logger) = logger.take()
        {
            let deleted = self.perform_plainly(id, act)?;
            logger::end(&logger);
            return Ok(deleted);
        }
        let root = match self {
            Oci::Own(root) => root,
            Oci::Foreign(foreign) => return foreign.perform(id, act),
            Oci::Shim(shim) => return shim.perform(id, act),
            Oci::Vm(guest) => return guest.perform(id, act),
        };
        match act {
            Act::Create { request, options, ends } => ops::create(root, *request, &options, ends),
            Act::Undo { bundle, systemd } => ops::undo_create(root, id, &bundle, systemd),
            Act::Start => ops::start(root, id),
            Act::Exec { spec, names, ends, .. } => ops::exec(root, id, &spec, names.terminal, ends),
            Act::Kill { signal, .. } => ops::kill(root, id, signal),
            Act::KillTree { pid, .. } => ops::kill_tree(id, pid),
            Act::KillAll(signal) => ops::kill_all(root, id, signal),
            Act::Delete { .. } => ops::delete(root, id),
            Act::Freeze(frozen) => ops::freeze(root, id, frozen),
            Act::Update(resources) => ops::update(root, id, &resources),
            Act::Checkpoint(checkpoint) => checkpoint.perform(root, id),
            Act::Pids(execs) => ops::pids(root, id, &execs),
            Act::Stats(oom_file) => ops::stats(root, id, &oom_file),
            Act::Resize { .. } | Act::CloseInput { .. } | Act::Wait { .. } => Err(not_needed(id)),
        }
    }
}

/// Of a container in a virtual machine: what its runtime there is told.
fn guest_options(request: &task::CreateTaskRequest) -> Result<runc::Options, String> {
    let options = options::read(request.options.as_ref())?;
    for (what, is_there) in [("BinaryName", !options.binary_name.is_empty()), ("Root", !options.root.is_empty())] {
        if is_there {
            return Err(format!("runtime option {what} cannot be used in a virtual machine"));
        }
    }
    Ok(runc::Options { systemd_cgroup: false, ..options })
}

/// Of acts that are for shims alone: the terminals and the children of other runtimes are ours.
pub fn not_needed(id: &str) -> Failure {
    Code::Internal.failure(format!("container {id} has no shim"))
}
