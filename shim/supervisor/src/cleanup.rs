//! `delete`: clears up after a supervisor that died, and answers on stdout what containerd expects, a DeleteResponse.
//! It refuses while the supervisor lives.

use crate::arguments::Arguments;
use crate::daemon::LOCK;
use crate::foreign;
use crate::ops;
use crate::sandbox::{ATTACH_SOCKET, CGROUP_RECORD, PID_FILE, RUNTIME_ROOT, SOCKET};
use crate::shim;
use crate::tender::lock_holder;
use anyhow::{Context, Result, anyhow, bail};
use coracle_proto::{Message, task};
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::SystemTime;

/// What containerd's own shims say of a task whose exit nobody saw: killed.
const STATUS_UNSEEN: u32 = 128 + 9;

/// Runs `delete`.
pub fn delete(arguments: &Arguments) -> Result<()> {
    let bundle = arguments.bundle()?;
    // Asking makes the file; a bundle that never had a supervisor has nothing to clear up.
    if bundle.join(LOCK).exists()
        && let Some(pid) = lock_holder(&bundle.join(LOCK)).context("delete: ask for the lock")?
    {
        bail!("delete: supervisor {pid} of {} is alive", bundle.display());
    }
    for id in containers(&bundle)? {
        ops::delete(&bundle.join(RUNTIME_ROOT), &id)
            .map_err(|failure| anyhow!("delete: container {id}: {}", failure.message))?;
    }
    let left = foreign::recorded(&bundle.join(foreign::FOLDER)).context("delete: read what other runtimes left")?;
    for (id, foreign) in left {
        foreign.delete(&id).map_err(|failure| anyhow!("delete: container {id}: {}", failure.message))?;
    }
    shim::end(&bundle.join(shim::FOLDER), &arguments.id).map_err(|failure| anyhow!("delete: {}", failure.message))?;
    ops::remove_pod_cgroup(&bundle.join(CGROUP_RECORD)).map_err(|failure| anyhow!("delete: {}", failure.message))?;
    for name in [SOCKET, ATTACH_SOCKET, PID_FILE, LOCK] {
        let _ = fs::remove_file(bundle.join(name));
    }
    let _ = fs::remove_dir(bundle.join(RUNTIME_ROOT));
    let response =
        task::DeleteResponse { pid: 0, exit_status: STATUS_UNSEEN, exited_at: Some(SystemTime::now().into()) };
    io::stdout().write_all(&response.encode_to_vec()).context("delete: write the answer")
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
