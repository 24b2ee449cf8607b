//! `delete`: clears up after a supervisor that died, and answers on stdout what containerd expects, a DeleteResponse.
//! It refuses
//! while the supervisor lives; but for containerd, which asks only when it has lost it, and has it ended.

use crate::arguments::Arguments;
use crate::containerd::{Containerd, start};
use crate::daemon::LOCK;
use crate::foreign;
use crate::ops;
use crate::sandbox::{ATTACH_SOCKET, CGROUP_RECORD, PID_FILE, RUNTIME_ROOT, SOCKET};
use crate::shim;
use crate::tender::lock_holder;
use crate::vm;
use anyhow::{Context, Result, anyhow, ensure};
use coracle_proto::{Message, task};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// What containerd's own shims say of a task whose exit nobody saw: killed.
const STATUS_UNSEEN: u32 = 128 + 9;

/// How long a supervisor that containerd has let go of may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks at it.
const PAUSE: Duration = Duration::from_millis(5);

/// Runs `delete`.
pub fn delete(arguments: &Arguments) -> Result<()> {
    let bundle = arguments.bundle()?;
    // Asking makes the file; a bundle that never had a supervisor has nothing to clear up.
    let patience = if arguments.containerd.is_some() { PATIENCE } else { Duration::ZERO };
    if let Some(pid) = survivor(&bundle, patience)? {
        ensure!(arguments.containerd.is_some(), "delete: supervisor {pid} of {} is alive", bundle.display());
        // containerd has lost it and goes on as if it were dead: it must be.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        ensure!(survivor(&bundle, PATIENCE)?.is_none(), "delete: supervisor {pid} does not die");
    }
    for id in containers(&bundle)? {
        ops::delete(&bundle.join(RUNTIME_ROOT), &id)
            .map_err(|failure| anyhow!("delete: container {id}: {}", failure.message))?;
    }
    if let Some(root) = ops::other_root(&bundle).context("delete")? {
        let deleted = ops::delete(&root, &arguments.id);
        deleted.map_err(|failure| anyhow!("delete: container {}: {}", arguments.id, failure.message))?;
    }
    let left = foreign::recorded(&bundle.join(foreign::FOLDER)).context("delete: read what other runtimes left")?;
    for (id, foreign) in left {
        foreign.delete(&id).map_err(|failure| anyhow!("delete: container {id}: {}", failure.message))?;
    }
    shim::end(&bundle.join(shim::FOLDER), &arguments.id).map_err(|failure| anyhow!("delete: {}", failure.message))?;
    vm::release(&bundle.join(vm::FOLDER)).map_err(|failure| anyhow!("delete: {}", failure.message))?;
    ops::remove_pod_cgroup(&bundle.join(CGROUP_RECORD)).map_err(|failure| anyhow!("delete: {}", failure.message))?;
    if let Some(containerd) = &arguments.containerd {
        forget_socket(containerd, &bundle, &arguments.id);
    }
    for name in [SOCKET, ATTACH_SOCKET, PID_FILE, LOCK] {
        let _ = fs::remove_file(bundle.join(name));
    }
    let _ = fs::remove_dir(bundle.join(RUNTIME_ROOT));
    let response =
        task::DeleteResponse { pid: 0, exit_status: STATUS_UNSEEN, exited_at: Some(SystemTime::now().into()) };
    io::stdout().write_all(&response.encode_to_vec()).context("delete: write the answer")
}

/// The supervisor that still lives after so long, for one that is ending to end.
fn survivor(bundle: &Path, patience: Duration) -> Result<Option<i32>> {
    let lock = bundle.join(LOCK);
    let until = Instant::now() + patience;
    loop {
        let holder = match lock.exists() {
            true => lock_holder(&lock).context("delete: ask for the lock")?,
            false => None,
        };
        if holder.is_none() || Instant::now() >= until {
            return Ok(holder);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Removes the socket that the dead supervisor listened on. A new one of the same group may have it by now.
fn forget_socket(containerd: &Containerd, bundle: &Path, id: &str) {
    // A bundle without a configuration never had a supervisor.
    let by_group = || start::group(bundle, id).ok().map(|group| start::socket(containerd, &group));
    let Some(socket) = start::told_address(bundle).or_else(by_group) else { return };
    if let Ok(_lock) = start::lock(&socket)
        && !start::listens(&socket)
    {
        let _ = fs::remove_file(socket);
    }
}

/// The containers the runtime knows of.
fn containers(bundle: &Path) -> Result<Vec<String>> {
    let root = bundle.join(RUNTIME_ROOT);
    let entries = match fs::read_dir(&root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("delete: read {}", root.display()))?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect::<io::Result<_>>().with_context(|| format!("delete: read {}", root.display()))
}
