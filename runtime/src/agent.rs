//! `linux.seccomp` as far as it reaches beyond the filter: the agent that answers calls with SCMP_ACT_NOTIFY.
//!
//! The parent connects to `listenerPath`, a socket of the host. The process that loads the filter, at start or exec,
//! gets the listener's descriptor from the kernel and sends it there with the specification's container process state:
//! by one sendmsg, which the filter therefore must allow. The connection closes with the exec.
//!
//! The filter itself is kept in the state directory, for each later exec: reading it is a tenth of compiling it.

use std::os::fd::OwnedFd;
use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Context, Error, Result};
use crate::seccomp::{self, Program};
use crate::spec::Spec;
use crate::{console, state};

/// The kept filter, in the state directory.
const FILTER: &str = "seccomp.bpf";

/// A connected agent.
pub(crate) struct Agent {
    socket: Option<OwnedFd>,
    message: Value,
}

/// The filter of a configuration, and its agent where it notifies. `state` is the container's, as JSON; in it, a pid of
/// 0 stands for the process itself.
pub(crate) fn plan(spec: &Spec, state: impl FnOnce() -> String) -> Result<(Option<Program>, Option<Agent>)> {
    let Some(profile) = spec.linux.profile()? else { return Ok((None, None)) };
    let invalid = |why: &str| Err(Error::invalid(format!("config.json: linux.seccomp.{why}")));
    let program = seccomp::compile(&profile).map_err(|e| Error::invalid(format!("config.json: {e}")))?;
    let path = profile.listener_path().as_ref().filter(|path| !path.as_os_str().is_empty());
    let metadata = profile.listener_metadata().as_deref().unwrap_or_default();
    let Some(path) = path else {
        if !metadata.is_empty() {
            return invalid("listenerMetadata: there is no listenerPath to send it to");
        }
        if program.has_listener() {
            return invalid("listenerPath is missing: SCMP_ACT_NOTIFY needs an agent");
        }
        return Ok((Some(program), None));
    };
    if !program.has_listener() {
        return Ok((Some(program), None));
    }
    let socket = console::connect(path).map_err(|e| Error::Init(format!("linux.seccomp.listenerPath: {e}")))?;
    let state: Value = serde_json::from_str(&state()).unwrap_or_default();
    let message = json!({
        "ociVersion": state::OCI_VERSION, "fds": ["seccompFd"], "pid": 0, "metadata": metadata, "state": state,
    });
    Ok((Some(program), Some(Agent { socket: Some(socket), message })))
}

/// As [`plan`] for a container that is there already: by the filter that its creation kept, if it did.
pub(crate) fn plan_again(
    spec: &Spec,
    dir: &Path,
    state: impl FnOnce() -> String,
) -> Result<(Option<Program>, Option<Agent>)> {
    match kept(dir) {
        Some(program) if spec.linux.seccomp.is_some() => Ok((Some(program), None)),
        _ => plan(spec, state),
    }
}

/// Keeps a filter in the container's state directory. Not one that notifies: its agent is in the profile.
pub(crate) fn keep(program: &Program, dir: &Path) -> Result<()> {
    let path = dir.join(FILTER);
    if program.has_listener() {
        return Ok(());
    }
    std::fs::write(&path, program.to_bytes()).path("write", &path)
}

/// A filter that was kept. Without one (an agent, a restored container) the profile is compiled again.
fn kept(dir: &Path) -> Option<Program> {
    Program::from_bytes(&std::fs::read(dir.join(FILTER)).ok()?)
}

impl Agent {
    /// Fills in the pid of this process, as the host's /proc shows it: the caller's view of `/proc`, or by `proc` where that
    /// is the container's already, which may name anybody.
    pub fn name_process(&mut self, proc: Option<&OwnedFd>) -> Result<()> {
        let own = match proc {
            Some(proc) => nix::fcntl::readlinkat(proc, "self").op(|| "read /proc/self")?,
            None => nix::fcntl::readlink("/proc/self").op(|| "read /proc/self")?,
        };
        let pid: i32 = own.to_str().and_then(|pid| pid.parse().ok()).unwrap_or_default();
        self.message["pid"] = json!(pid);
        if self.message["state"]["pid"] == 0 {
            self.message["state"]["pid"] = json!(pid);
        }
        Ok(())
    }

    /// Sends the listener.
    pub fn send(&self, notify: &OwnedFd) -> Result<()> {
        let socket =
            self.socket.as_ref().ok_or_else(|| Error::invalid("linux.seccomp.listenerPath is not connected"))?;
        console::send_fd(socket, notify, self.message.to_string().as_bytes())
            .op(|| "send the seccomp listener to linux.seccomp.listenerPath")
    }

    /// The socket, taken out while descriptors are renumbered.
    pub fn take_socket(&mut self) -> Option<OwnedFd> {
        self.socket.take()
    }

    /// And put back.
    pub fn put_socket(&mut self, socket: Option<OwnedFd>) {
        self.socket = socket;
    }
}
