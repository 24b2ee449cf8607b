//! create, run and exec.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use coracle_runtime::cgroup::Rootless;
use coracle_runtime::{CreateOptions, ExecOptions, Process, Runtime, spec};

use super::Call;
use super::args::{Create, Delete, Exec, Run, bool_or_auto, directory};
use super::notify::{self, Notify};
use super::terminal::{self, Given, Session};

/// Descriptors handed over by socket activation come before the preserved ones. They are meant for us only when the
/// pid says so: a variable that was inherited from somewhere above is not.
fn listen_fds(preserved: u32) -> (u32, Vec<String>) {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    match number("LISTEN_FDS") {
        Some(count) if count > 0 && number("LISTEN_PID") == Some(std::process::id()) => {
            (preserved.saturating_add(count), vec![format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()])
        }
        _ => (preserved, Vec::new()),
    }
}

/// What the global flags say of a new container.
pub fn options(call: &Call) -> Result<CreateOptions> {
    let rootless = match bool_or_auto(call.globals.rootless.as_deref())? {
        None => Rootless::Auto,
        Some(true) => Rootless::Yes,
        Some(false) => Rootless::No,
    };
    Ok(CreateOptions { systemd_cgroup: call.globals.systemd_cgroup, rootless, ..Default::default() })
}

/// create
pub fn create(call: &Call, args: Create) -> Result<i32> {
    let (preserve_fds, extra_env) = listen_fds(args.preserve_fds);
    let id = &args.words[0];
    let options = CreateOptions {
        bundle: directory(&args.bundle).to_owned(),
        console_socket: args.console_socket,
        pidfd_socket: args.pidfd_socket,
        pid_file: args.pid_file,
        preserve_fds,
        no_pivot: args.no_pivot,
        no_new_keyring: args.no_new_keyring,
        extra_env,
        ..options(call)?
    };
    let notify = Notify::of(call, id);
    make(call, id, options, notify.as_ref())?;
    Ok(0)
}

/// Creates; of a failure nothing is left, the directory for notifications included.
fn make(call: &Call, id: &str, mut options: CreateOptions, notify: Option<&Notify>) -> Result<i32> {
    notify.map_or(Ok(()), |notify| notify.prepare(&mut options))?;
    let made = call.runtime.create(id, options);
    let taken = matches!(made, Err(coracle_runtime::Error::Exists(_)));
    if made.is_err() && notify.is_some() && !taken {
        notify::remove(call, id)?;
    }
    Ok(made?)
}

/// start
pub fn start(call: &Call, id: &str) -> Result<i32> {
    let mut notify = Notify::of(call, id);
    let bound = notify.as_mut().map_or(Ok(false), Notify::bind)?;
    call.runtime.start(id)?;
    if let Some(notify) = notify.as_mut().filter(|_| bound) {
        notify.wait(call.runtime.state(id)?.pid)?;
    }
    Ok(0)
}

/// delete
pub fn delete(call: &Call, args: &Delete) -> Result<i32> {
    let id = &args.words[0];
    call.runtime.delete(id, args.force)?;
    notify::remove(call, id)?;
    Ok(0)
}

/// Whether the configuration of a bundle asks for a terminal.
fn wants_terminal(bundle: &Path) -> Result<bool> {
    let process = spec::Spec::load_process(&bundle.join("config.json"))?;
    Ok(process.is_some_and(|process| process.terminal))
}

/// A terminal of ours, when the process shall have one and nobody else takes its master.
fn session(terminal: bool, detach: bool, socket: Option<&PathBuf>) -> Result<(Session, Given)> {
    if detach || socket.is_some() {
        if terminal && socket.is_none() {
            bail!("a detached process with a terminal needs --console-socket");
        }
        if !detach && socket.is_some() {
            bail!("--console-socket is for --detach: a process in the foreground uses this terminal");
        }
        return Ok((Session::detached(), Given::default()));
    }
    Session::foreground(terminal)
}

/// run
pub fn run(call: &Call, args: Run) -> Result<i32> {
    let (runtime, id) = (&call.runtime, &args.words[0]);
    let bundle = directory(&args.bundle).to_owned();
    let terminal = wants_terminal(&bundle)?;
    let (mut session, given) = session(terminal, args.detach, args.console_socket.as_ref())?;
    if !args.detach && !args.no_subreaper {
        nix::sys::prctl::set_child_subreaper(true).context("become a subreaper")?;
    }
    let (preserve_fds, extra_env) = listen_fds(args.preserve_fds);
    let options = CreateOptions {
        bundle,
        console_socket: args.console_socket,
        pidfd_socket: args.pidfd_socket,
        console_fd: given.console,
        stdio: given.stdio,
        pid_file: args.pid_file,
        preserve_fds,
        no_pivot: args.no_pivot,
        no_new_keyring: args.no_new_keyring,
        extra_env,
        ..options(call)?
    };
    let notify = Notify::of(call, id);
    let pid = make(call, id, options, notify.as_ref())?;
    let outcome = session.attach().and_then(|()| go(call, id, pid, notify, args.detach, session));
    if outcome.is_err() || (!args.detach && !args.keep) {
        let removed = runtime.delete(id, true).map_err(anyhow::Error::from).and_then(|()| notify::remove(call, id));
        // The first error is the one to tell.
        let code = outcome?;
        removed?;
        return Ok(code);
    }
    outcome
}

/// Starts what run has made, and waits for it.
fn go(call: &Call, id: &str, pid: i32, mut notify: Option<Notify>, detach: bool, mut session: Session) -> Result<i32> {
    if let Some(notify) = &mut notify {
        notify.bind()?;
    }
    call.runtime.start(id)?;
    match notify {
        Some(mut notify) if detach => notify.wait(pid)?,
        notify => session.notify = notify,
    }
    session.wait(pid)
}

/// exec
pub fn exec(call: &Call, args: Exec) -> Result<i32> {
    let (id, command) = args.words.split_first().context("a container is needed")?;
    let mut process = process(&call.runtime, id, command, &args)?;
    let (session, given) = session(process.terminal, args.detach, args.console_socket.as_ref())?;
    if process.terminal && !args.detach {
        // Its program may ask for the size before we have the terminal.
        process.console_size =
            terminal::size().map(|(rows, columns)| spec::ConsoleSize { height: rows.into(), width: columns.into() });
    }
    let options = ExecOptions {
        process,
        console_socket: args.console_socket,
        pidfd_socket: args.pidfd_socket,
        console_fd: given.console,
        stdio: given.stdio,
        pid_file: args.pid_file,
        preserve_fds: args.preserve_fds,
        cgroup: args.cgroup,
        ignore_paused: args.ignore_paused,
        ..Default::default()
    };
    let pid = call.runtime.exec(id, options)?;
    session.wait(pid)
}

/// What to run: from a file, or the container's own process changed by the flags.
fn process(runtime: &Runtime, id: &str, command: &[String], args: &Exec) -> Result<Process> {
    if let Some(file) = &args.process {
        let text = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
        return serde_json::from_slice(&text).with_context(|| format!("parse {}", file.display()));
    }
    // No program is called so: who writes it means the end of the flags.
    let command = command.strip_prefix(&["--".to_owned()]).unwrap_or(command);
    let mut process = runtime.process(id)?;
    if command.is_empty() {
        bail!("exec args cannot be empty: a command (or --process) is needed");
    }
    process.args = command.to_vec();
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
    if let Some(set) = args.no_new_privs {
        process.no_new_privileges = set;
    }
    if args.apparmor.is_some() {
        process.apparmor_profile = args.apparmor.clone();
    }
    if args.process_label.is_some() {
        process.selinux_label = args.process_label.clone();
    }
    if !args.cap.is_empty() {
        let sets = process.capabilities.get_or_insert_default();
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            // Not the inheritable set: every program would then carry it on (CVE-2022-29162).
            set.extend(args.cap.iter().filter(|c| !set.contains(c)).cloned().collect::<Vec<_>>());
        }
        // Only what can be inherited can be ambient.
        let ambient = args.cap.iter().filter(|c| sets.inheritable.contains(c) && !sets.ambient.contains(c));
        sets.ambient.extend(ambient.cloned().collect::<Vec<_>>());
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
