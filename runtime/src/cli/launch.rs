//! create, run and exec.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use coracle_runtime::cgroup::Rootless;
use coracle_runtime::{CreateOptions, ExecOptions, Process, Runtime, spec};

use super::args::{Cli, Create, Exec, Run};
use super::terminal::Session;

/// Descriptors handed over by socket activation come after the preserved ones' count, as in runc.
fn listen_fds(options: u32) -> (u32, Vec<String>) {
    let count: u32 = std::env::var("LISTEN_FDS").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    if count == 0 {
        return (options, Vec::new());
    }
    (options + count, vec![format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()])
}

/// What the global flags say of a new container's cgroup.
#[derive(Debug, Clone, Copy)]
pub struct CgroupDriver {
    systemd: bool,
    rootless: Rootless,
}

impl CgroupDriver {
    /// Reads the flags; the words for true and false are those of Go's strconv.ParseBool.
    pub fn of(cli: &Cli) -> Result<CgroupDriver> {
        let rootless = match cli.rootless.as_str() {
            "" | "auto" => Rootless::Auto,
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Rootless::Yes,
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Rootless::No,
            other => bail!("--rootless {other:?}: it must be auto, true or false"),
        };
        Ok(CgroupDriver { systemd: cli.systemd_cgroup, rootless })
    }
}

fn options(args: &Create, driver: CgroupDriver) -> Result<CreateOptions> {
    if args.pidfd_socket.is_some() {
        bail!("--pidfd-socket is not supported yet");
    }
    let (preserve_fds, extra_env) = listen_fds(args.preserve_fds);
    Ok(CreateOptions {
        bundle: args.bundle.clone(),
        console_socket: args.console_socket.clone(),
        pid_file: args.pid_file.clone(),
        preserve_fds,
        no_pivot: args.no_pivot,
        no_new_keyring: args.no_new_keyring,
        systemd_cgroup: driver.systemd,
        rootless: driver.rootless,
        extra_env,
        ..Default::default()
    })
}

/// create
pub fn create(runtime: &Runtime, args: Create, driver: CgroupDriver) -> Result<()> {
    runtime.create(&args.id, options(&args, driver)?)?;
    Ok(())
}

/// Whether the configuration of a bundle asks for a terminal.
fn wants_terminal(bundle: &Path) -> Result<bool> {
    let (spec, _) = spec::Spec::load(&bundle.join("config.json"))?;
    Ok(spec.process.is_some_and(|p| p.terminal))
}

/// A terminal of ours, when the process shall have one and nobody else takes its master.
fn session(terminal: bool, detach: bool, socket: Option<&PathBuf>) -> Result<(Session, Option<OwnedFd>)> {
    if detach || socket.is_some() {
        if terminal && socket.is_none() {
            bail!("a detached process with a terminal needs --console-socket");
        }
        if !detach && socket.is_some() {
            bail!("--console-socket is for --detach: a process in the foreground uses this terminal");
        }
        return Ok((Session::detached(), None));
    }
    Session::foreground(terminal)
}

/// run
pub fn run(runtime: &Runtime, args: Run, driver: CgroupDriver) -> Result<i32> {
    let id = &args.create.id;
    let terminal = wants_terminal(&args.create.bundle)?;
    let (session, console_fd) = session(terminal, args.detach, args.create.console_socket.as_ref())?;
    if !args.detach && !args.no_subreaper {
        nix::sys::prctl::set_child_subreaper(true).context("become a subreaper")?;
    }
    let pid = runtime.create(id, CreateOptions { console_fd, ..options(&args.create, driver)? })?;
    let outcome = runtime.start(id).map_err(anyhow::Error::from).and_then(|()| session.wait(pid));
    if outcome.is_err() || (!args.detach && !args.keep) {
        let removed = runtime.delete(id, true);
        // The first error is the one to tell.
        let code = outcome?;
        removed?;
        return Ok(code);
    }
    outcome
}

/// exec
pub fn exec(runtime: &Runtime, args: Exec) -> Result<i32> {
    for (flag, given) in [
        ("--pidfd-socket", args.pidfd_socket.is_some()),
        ("--process-label", args.process_label.is_some()),
        ("--apparmor", args.apparmor.is_some()),
    ] {
        if given {
            bail!("{flag} is not supported yet");
        }
    }
    let process = process(runtime, &args).context("exec failed")?;
    let (session, console_fd) = session(process.terminal, args.detach, args.console_socket.as_ref())?;
    let (preserve_fds, extra_env) = listen_fds(args.preserve_fds);
    let options = ExecOptions {
        process,
        console_socket: args.console_socket,
        console_fd,
        pid_file: args.pid_file,
        preserve_fds,
        cgroup: args.cgroup,
        ignore_paused: args.ignore_paused,
        extra_env,
        ..Default::default()
    };
    let pid = runtime.exec(&args.id, options).context("exec failed")?;
    session.wait(pid)
}

/// What to run: from a file, or the container's own process changed by the flags.
fn process(runtime: &Runtime, args: &Exec) -> Result<Process> {
    if let Some(file) = &args.process {
        let text = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
        return serde_json::from_slice(&text).with_context(|| format!("parse {}", file.display()));
    }
    if args.command.is_empty() {
        bail!("a command (or --process) is needed");
    }
    let mut process = runtime.process(&args.id)?;
    process.args = args.command.clone();
    process.terminal = args.tty;
    process.console_size = None;
    process.env.extend(args.env.iter().cloned());
    if let Some(cwd) = &args.cwd {
        process.cwd = cwd.clone();
    }
    if let Some(user) = &args.user {
        (process.user.uid, process.user.gid) = parse_user(user, process.user.gid)?;
    }
    process.user.additional_gids.extend(&args.additional_gids);
    process.no_new_privileges |= args.no_new_privs;
    if !args.cap.is_empty() {
        let sets = process.capabilities.get_or_insert_default();
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            // Not the inheritable set: every program would then carry it on (CVE-2022-29162).
            set.extend(args.cap.iter().filter(|c| !set.contains(c)).cloned().collect::<Vec<_>>());
        }
    }
    Ok(process)
}

fn parse_user(user: &str, gid: u32) -> Result<(u32, u32)> {
    let number = |s: &str| s.parse::<u32>().with_context(|| format!("--user {user:?}: not UID or UID:GID"));
    match user.split_once(':') {
        Some((uid, gid)) => Ok((number(uid)?, number(gid)?)),
        None => Ok((number(user)?, gid)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers() {
        assert_eq!(parse_user("5", 7).unwrap(), (5, 7));
        assert_eq!(parse_user("5:6", 7).unwrap(), (5, 6));
        assert!(parse_user("root", 0).is_err());
    }
}
