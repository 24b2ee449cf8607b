//! Which program runs a container, and what it is asked: one [`Act`] for each job of a worker. The states, the streams
//! and the exits of containers are the same whoever runs them.
//!
//! The program is named by `CreateTaskRequest.options`: none of them, or runc's options without a binary, is our own
//! runtime as a library ([`ops`]); runc's options with one are a program with runc's command line ([`foreign`]); our own
//! [`ShimOptions`] are a containerd shim ([`shim`]).

use crate::failure::{Fail, Failure};
use crate::foreign::Foreign;
use crate::ops;
use crate::sandbox::Sandbox;
use crate::shim::Shim;
use crate::stdio::ProcessEnds;
use coracle_proto::coracle::ShimOptions;
use coracle_proto::ttrpc::Code;
use coracle_proto::{any, runc, task};
use nix::libc::SIGKILL;
use std::os::fd::RawFd;
use std::path::PathBuf;

/// What runs a container.
#[derive(Debug, Clone)]
pub enum Oci {
    /// Our runtime, with the root of its state.
    Own(PathBuf),
    /// A program.
    Foreign(Box<Foreign>),
    /// A shim.
    Shim(Box<Shim>),
}

/// What a worker does with a container.
pub enum Act {
    /// Task.Create.
    Create {
        /// The request.
        request: Box<task::CreateTaskRequest>,
        /// The ends of its streams.
        ends: ProcessEnds,
    },
    /// Clears up after a Create that was cut off.
    Undo {
        /// The container's directory.
        bundle: PathBuf,
    },
    /// Task.Start of the container.
    Start,
    /// Task.Start of an exec.
    Exec {
        /// Its id.
        exec: String,
        /// The OCI process.
        spec: Vec<u8>,
        /// It gets a terminal.
        terminal: bool,
        /// The ends of its streams.
        ends: ProcessEnds,
    },
    /// Task.Kill of a process, where a signal to its pid is not the way.
    Kill {
        /// Empty for the init.
        exec: String,
        /// Which signal.
        signal: i32,
    },
    /// Task.Kill of all processes.
    KillAll(i32),
    /// Task.Delete.
    Delete,
    /// Task.Pause and, false, Task.Resume.
    Freeze(bool),
    /// Task.Update, with OCI resources as JSON.
    Update(Vec<u8>),
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
    },
}

impl Act {
    /// The descriptors that its worker must keep.
    pub fn keep(&self) -> Vec<RawFd> {
        match self {
            Act::Create { ends, .. } | Act::Exec { ends, .. } => ends.raw(),
            _ => Vec::new(),
        }
    }
}

impl Oci {
    /// What the request asks for.
    pub fn of(request: &task::CreateTaskRequest, pod: &Sandbox) -> Result<Oci, Failure> {
        let invalid = |text: String| Code::InvalidArgument.failure(format!("container {}: {text}", request.id));
        if let Some(options) = request.options.as_ref().and_then(any::unpack::<ShimOptions>) {
            let options = options.map_err(|error| invalid(format!("its options do not decode: {error}")))?;
            if options.sandbox_container {
                let text = "shims that make a sandbox of their own (kata) are not supported yet";
                return Err(Code::Unimplemented.failure(text.to_owned()));
            }
            let shim = Shim::new(options, request, &pod.bundle, &pod.id, pod.cgroup());
            return Ok(Oci::Shim(Box::new(shim)));
        }
        match request.options.as_ref().and_then(any::unpack::<runc::Options>) {
            Some(Ok(options)) if !options.binary_name.is_empty() => {
                Foreign::new(&request.id, &options, &pod.foreign_folder())
                    .map(Box::new)
                    .map(Oci::Foreign)
                    .map_err(invalid)
            }
            Some(Err(error)) => Err(invalid(format!("its options do not decode: {error}"))),
            // What else the options say, and options of an unknown type, are looked at when it is created.
            _ => Ok(Oci::Own(pod.runtime_root_of(&request.bundle))),
        }
    }

    /// Whether this signal is sent by the program that made the process, and not to its pid.
    pub fn signals(&self, exec: &str, signal: i32) -> bool {
        match self {
            Oci::Own(_) => false,
            // The runtime may translate it for an init; nothing of it can be wanted when it is to be killed.
            Oci::Foreign(_) => exec.is_empty() && signal != SIGKILL,
            Oci::Shim(_) => true,
        }
    }

    /// Does it; only in a worker.
    pub fn perform(&self, id: &str, act: Act) -> Result<Vec<u8>, Failure> {
        let root = match self {
            Oci::Own(root) => root,
            Oci::Foreign(foreign) => return foreign.perform(id, act),
            Oci::Shim(shim) => return shim.perform(id, act),
        };
        match act {
            Act::Create { request, ends } => ops::create(root, *request, ends),
            Act::Undo { bundle } => ops::undo_create(root, id, &bundle),
            Act::Start => ops::start(root, id),
            Act::Exec { spec, terminal, ends, .. } => ops::exec(root, id, &spec, terminal, ends),
            Act::Kill { signal, .. } => ops::kill(root, id, signal),
            Act::KillAll(signal) => ops::kill_all(root, id, signal),
            Act::Delete => ops::delete(root, id),
            Act::Freeze(frozen) => ops::freeze(root, id, frozen),
            Act::Update(resources) => ops::update(root, id, &resources),
            Act::Pids(execs) => ops::pids(root, id, &execs),
            Act::Stats(oom_file) => ops::stats(root, id, &oom_file),
            Act::Resize { .. } | Act::CloseInput { .. } | Act::Wait { .. } => Err(not_needed(id)),
        }
    }
}

/// Of acts that are for shims alone: the terminals and the children of other runtimes are ours.
pub fn not_needed(id: &str) -> Failure {
    Code::Internal.failure(format!("container {id} has no shim"))
}
