//! checkpoint and restore.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use coracle_runtime::{CheckpointOptions, CreateOptions, CriuOptions, RestoreOptions};

use super::args::{Checkpoint, Restore, directory};
use super::terminal::Session;
use super::{Call, launch};

/// Where images are unless told otherwise, as runc's.
const IMAGES: &str = "checkpoint";

fn program(call: &Call) -> PathBuf {
    call.globals.criu.as_deref().unwrap_or_default().into()
}

fn images(path: Option<PathBuf>) -> PathBuf {
    path.filter(|path| !path.as_os_str().is_empty()).unwrap_or_else(|| IMAGES.into())
}

/// What the flags that both verbs have say.
macro_rules! criu_options {
    ($call:expr, $args:expr) => {
        CriuOptions {
            program: program($call),
            images: images($args.image_path),
            work: $args.work_path,
            tcp_established: $args.tcp_established,
            ext_unix_sk: $args.ext_unix_sk,
            shell_job: $args.shell_job,
            file_locks: $args.file_locks,
            manage_cgroups: $args.manage_cgroups_mode,
            empty_ns: $args.empty_ns,
            auto_dedup: $args.auto_dedup,
        }
    };
}

/// checkpoint
pub fn checkpoint(call: &Call, args: Checkpoint) -> Result<i32> {
    if args.lazy_pages || args.status_fd.is_some_and(|fd| fd >= 0) {
        bail!("--lazy-pages (and its --status-fd) is not supported: a restore waits for all pages");
    }
    let options = CheckpointOptions {
        criu: criu_options!(call, args),
        parent: args.parent_path,
        leave_running: args.leave_running,
        pre_dump: args.pre_dump,
        tcp_skip_in_flight: args.tcp_skip_in_flight,
        link_remap: args.link_remap,
        page_server: args.page_server.as_deref().map(address).transpose()?,
    };
    let id = &args.words[0];
    call.runtime.checkpoint(id, &options)?;
    if !options.leave_running && !options.pre_dump {
        call.runtime.delete(id, true).context("the checkpoint is made; remove the container")?;
    }
    Ok(0)
}

fn address(text: &str) -> Result<(String, u16)> {
    let parts = text.rsplit_once(':').filter(|(address, _)| !address.is_empty());
    let parts = parts.and_then(|(address, port)| Some((address.to_owned(), port.parse().ok()?)));
    parts.with_context(|| format!("--page-server {text:?}: not ADDRESS:PORT"))
}

/// restore
pub fn restore(call: &Call, args: Restore) -> Result<i32> {
    if args.lazy_pages {
        bail!("--lazy-pages is not supported: a restore waits for all pages");
    }
    let options = RestoreOptions {
        criu: criu_options!(call, args),
        lsm_profile: args.lsm_profile,
        lsm_mount_context: args.lsm_mount_context,
    };
    let (session, given) = match args.detach {
        true => Default::default(),
        false => Session::foreground(false)?,
    };
    if !args.detach && !args.no_subreaper {
        nix::sys::prctl::set_child_subreaper(true).context("become a subreaper")?;
    }
    let create = CreateOptions {
        bundle: directory(&args.bundle).to_owned(),
        console_socket: args.console_socket,
        stdio: given.stdio,
        pid_file: args.pid_file,
        ..launch::options(call)?
    };
    let id = &args.words[0];
    let pid = call.runtime.restore(id, create, &options)?;
    let outcome = session.wait(pid);
    if outcome.is_err() || !args.detach {
        let removed = call.runtime.delete(id, true);
        let code = outcome?;
        removed?;
        return Ok(code);
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_server_has_an_address_and_a_port() {
        assert_eq!(address("1.2.3.4:5").unwrap(), ("1.2.3.4".to_owned(), 5));
        assert!(address(":5").is_err());
        assert!(address("host").is_err());
    }
}
