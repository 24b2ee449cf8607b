//! Exec: another process in a running container. Both halves, each a flat list.
//!
//! The parent makes the child in the container's PID namespace with one clone3; the child joins the cgroup and all other
//! namespaces of the init by one setns on its pidfd, which cannot come to mean another process in between.

use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use nix::unistd::setsid;

use crate::cgroup::{Cgroup, CgroupState, Version};
use crate::channel::{Channel, Message};
use crate::error::{Context, Error, Result};
use crate::handle::Handle;
use crate::identity::{Identity, Program, set_rlimits};
use crate::init::keep_only;
use crate::schedule::Affinity;
use crate::spawn::{Side, Spawn};
use crate::spec::{ConsoleSize, NamespaceKind, Process, Spec};
use crate::state::{Record, Status};
use crate::undo::Undo;
use crate::{ExecOptions, Runtime, Stdio, agent, console, create, rdt, refuse, rootless, state, sys};

/// What the child needs.
struct Plan {
    identity: Identity,
    cgroup_files: Vec<OwnedFd>,
    /// Namespaces other than the PID namespace, by the init; 0 when an intermediate process joined all.
    init: Handle,
    namespaces: u64,
    /// The host's /proc, when there are labels to be written.
    proc: Option<OwnedFd>,
    console: Option<OwnedFd>,
    size: Option<ConsoleSize>,
    stdio: Stdio,
    preserve_fds: u32,
    keyring: Option<String>,
    affinity: Affinity,
    /// The program, when it is none of the container's.
    program: Option<OwnedFd>,
    /// Set by the child itself, while it has the host's /proc and rights.
    oom_score: Option<i32>,
    /// Whether the parent has something to do to the child before that goes on.
    waits: bool,
}

/// Runs a process in a container.
pub(crate) fn exec(runtime: &Runtime, id: &str, mut options: ExecOptions) -> Result<i32> {
    let mut undo = Undo::default();
    let record = Record::load(&runtime.root, id)?;
    refuse::check_process(&options.process)?;
    let init = Handle::open(record.pid);
    match record.status(&runtime.root)? {
        Status::Stopped => return Err(Error::State(format!("cannot exec in container {id:?}: it is stopped"))),
        Status::Paused if !options.ignore_paused => {
            return Err(Error::State(format!(
                "cannot exec in container {id:?}: it is paused (resume it, or --ignore-paused)"
            )));
        }
        _ => {}
    }
    // The pid was that of the init after the handle was opened, so the handle is the init's.
    let init = init.op(|| format!("open the init of container {id:?}"))?;
    let spec = record.spec(&runtime.root)?;
    let state = || state::hook_state(&spec, id, &record.bundle, "running", record.pid);
    let (filter, agent) = agent::plan_again(&spec, &runtime.root.join(id), state)?;
    inherit(&mut options.process, &spec);
    let affinity = Affinity::plan(&options.process)?;
    let mut identity = Identity::plan(&options.process, &spec.linux, filter, agent)?;
    identity.in_user_namespace = record.namespaces & NamespaceKind::User.flag() != 0;
    for variable in &options.extra_env {
        identity.add_env(variable.clone());
    }
    let cgroup = Cgroup::open(&beneath(&record.cgroup, &options.cgroup)?);
    create::own_streams(&options.stdio, &spec, &options.process)?;
    let console = create::console_socket(
        options.process.terminal,
        options.console_socket.as_deref(),
        options.console_fd.as_ref(),
    )?;
    create::check_preserved(options.preserve_fds)?;
    let pidfd_socket = console::pidfd_socket(options.pidfd_socket.as_deref())?;
    let cgroup_dir = match cgroup.dir_fd_for_clone() {
        Ok(dir) => dir,
        Err(error) => Some(inits_cgroup(&record, &options.cgroup).ok_or_else(|| create::cgroup_error(error))?),
    };
    let proc = if identity.needs_proc() { Some(create::open_proc()?) } else { None };
    // Who has no rights of his own gets some by way of the user namespace alone: see `rootless`.
    let ordinary = record.namespaces & NamespaceKind::User.flag() != 0 && !rootless::may_join();
    let in_user_namespace = identity.in_user_namespace;
    let mut plan = Plan {
        identity,
        proc,
        cgroup_files: cgroup.join_self_files().map_err(create::cgroup_error)?,
        namespaces: if ordinary { 0 } else { record.namespaces & !NamespaceKind::Pid.flag() },
        console,
        size: options.process.console_size.clone(),
        stdio: options.stdio,
        preserve_fds: options.preserve_fds,
        // The caller's own keys are not the container's.
        keyring: (!record.no_new_keyring).then(|| id.to_owned()),
        init,
        affinity,
        program: options.program,
        // Lowering it takes a right: an ordinary user's is inherited, see `rootless`.
        oom_score: options.process.oom_score_adj.filter(|_| !ordinary),
        waits: in_user_namespace || record.rdt.is_some() || pidfd_socket.is_some() || options.pid_file.is_some(),
    };
    let spawn = match record.namespaces & NamespaceKind::Pid.flag() {
        _ if ordinary => {
            let init = plan.init.copy().op(|| "copy a descriptor")?;
            Spawn::into_namespaces(init, record.namespaces, options.parent)
        }
        0 => Spawn::into_pid_namespace(None, options.parent),
        _ => {
            let namespace = plan.init.pid_namespace().op(|| "open the PID namespace")?;
            Spawn::into_pid_namespace(Some(namespace), options.parent)
        }
    };
    let rlimits = plan.identity.rlimits.clone();
    let (ours, theirs) = Channel::pair().op(|| "make a socket pair")?;
    let before = plan.affinity.begin()?;
    let former_score = if ordinary { rootless::take_oom_score(&options.process)? } else { None };
    let mut side = spawn.clone(cgroup_dir.as_ref());
    // v2 lets no process into a cgroup that hands controllers to those beneath it.
    if matches!(&side, Err(error) if error.errno() == Some(libc::EBUSY))
        && let Some(dir) = inits_cgroup(&record, &options.cgroup)
    {
        side = spawn.clone(Some(&dir));
    }
    let moved = options.cgroup.is_empty() && create::only_systemd_may_move(&side, &cgroup);
    if moved {
        plan.waits = true;
        side = spawn.clone(None);
    }
    if !matches!(side, Ok(Side::Child)) {
        Affinity::end(before)?;
        rootless::put_oom_score(former_score)?;
    }
    let pid = match side? {
        Side::Child => {
            drop(ours);
            run(plan, theirs)
        }
        Side::Parent(pid) => pid,
    };
    let waits = plan.waits;
    drop(theirs);
    let parent = options.parent;
    undo.push(move || create::kill_and_reap(pid, parent));

    if let Some(group) = &record.rdt {
        rdt::Tree::mounted()?.join(group, pid)?;
    }
    if moved {
        cgroup.attach(pid).map_err(create::cgroup_error)?;
    }
    if !waits {
        // Nothing is to be done meanwhile, so nobody is woken but by the end of it.
        ours.wait_closed().op(|| "wait for the new process")?;
    }
    if ours.expect()? != Message::Ready {
        return Err(Error::Init("unexpected message from the new process".into()));
    }
    if in_user_namespace {
        // Raising a hard limit takes rights over the host that nobody inside has.
        set_rlimits(pid, &rlimits)?;
    }
    if let Some(socket) = &pidfd_socket {
        console::send_pidfd(socket, pid, "setns")?;
    }
    if let Some(path) = &options.pid_file {
        create::write_pid_file(path, pid)?;
        undo.push(move || drop(std::fs::remove_file(path)));
    }
    if waits {
        ours.go()?;
    }
    // The exec closes the child's end; words before that are why it failed.
    match ours.receive() {
        Ok(Some(Message::Failed(words))) => return Err(Error::Init(words)),
        Ok(_) => {}
        Err(cause) => return Err(Error::Os { what: "hear from the new process".into(), cause }),
    }
    undo.disarm();
    Ok(pid)
}

/// What a process of the container gets unless it has its own, as in runc.
fn inherit(process: &mut Process, spec: &Spec) {
    let Some(init) = &spec.process else { return };
    process.scheduler = process.scheduler.take().or_else(|| init.scheduler.clone());
    process.io_priority = process.io_priority.take().or_else(|| init.io_priority.clone());
    process.exec_cpu_affinity = process.exec_cpu_affinity.take().or_else(|| init.exec_cpu_affinity.clone());
    process.oom_score_adj = process.oom_score_adj.or(init.oom_score_adj);
    process.selinux_label = process.selinux_label.take().or_else(|| init.selinux_label.clone());
    // runc's leaves the container's confinement with such a process; no caller means that.
    process.apparmor_profile = process.apparmor_profile.take().or_else(|| init.apparmor_profile.clone());
}

/// Where the init has gone with its processes, as systemd in a container does; for those who asked for no other place.
fn inits_cgroup(record: &Record, asked: &[String]) -> Option<OwnedFd> {
    if !asked.is_empty() || record.cgroup.version == Version::V1 {
        return None;
    }
    Cgroup::of_process(record.pid).ok().flatten()?.dir_fd_for_clone().ok().flatten()
}

/// The container's cgroup with `--cgroup` applied: `[CONTROLLER[,CONTROLLER]:]PATH` beneath it, once for all controllers
/// or once for each. The cgroups must exist, as with runc.
fn beneath(state: &CgroupState, wanted: &[String]) -> Result<CgroupState> {
    let mut state = state.clone();
    let mut moved = vec![None; state.groups.len()];
    for word in wanted {
        let wrong = |why: String| Error::invalid(format!("--cgroup {word:?}: {why}"));
        let (controllers, path) = match word.split_once(':') {
            Some((controllers, path)) => (Some(controllers), path),
            None if wanted.len() > 1 => {
                return Err(wrong("of several each needs its controllers (cpu,cpuacct:PATH)".into()));
            }
            None => (None, word.as_str()),
        };
        let relative = Path::new(path.trim_start_matches('/'));
        if relative.components().any(|c| !matches!(c, Component::Normal(_))) {
            return Err(wrong("bad sub cgroup path: it must lead to a cgroup beneath the container's".into()));
        }
        let Some(controllers) = controllers else {
            moved.fill(Some(relative));
            continue;
        };
        if state.version == Version::V2 {
            return Err(wrong("cgroup v2 has one tree for all controllers: give the path alone".into()));
        }
        for controller in controllers.split(',') {
            let found = state.groups.iter().position(|group| group.controllers.iter().any(|c| c == controller));
            let index = found.ok_or_else(|| wrong(format!("unknown controller {controller:?}")))?;
            match moved[index].replace(relative) {
                // Controllers of one hierarchy go together.
                Some(before) if before != relative => {
                    return Err(wrong(format!("controller {controller} has two places")));
                }
                _ => {}
            }
        }
    }
    for (group, relative) in state.groups.iter_mut().zip(moved) {
        if let Some(relative) = relative.filter(|path| *path != Path::new("")) {
            group.path.push(relative);
        }
    }
    Ok(state)
}

fn run(plan: Plan, channel: Channel) -> ! {
    match set_up(plan, &channel) {
        Ok(ready) => finish(ready, channel),
        Err(error) => drop(channel.send(&Message::Failed(error.to_string()))),
    }
    sys::exit_now(1)
}

/// What is left of the plan when all is set up.
struct Ready {
    identity: Identity,
    program: Program,
    preserve_fds: u32,
    waits: bool,
}

/// The child's list.
fn set_up(mut plan: Plan, _channel: &Channel) -> Result<Ready> {
    // Before all else, for it is by this process' files in /proc: not dumpable, they are those of the host's root, who the
    // caller may not be.
    if let Some(score) = plan.oom_score {
        create::set_oom_score(score, "self")?;
    }
    // Those inside can see this process, and it is still the runtime, with the host's rights.
    nix::sys::prctl::set_dumpable(false).op(|| "set not dumpable")?;
    sys::reset_signals();
    setsid().op(|| "start a session")?;
    crate::init::join_cgroup(std::mem::take(&mut plan.cgroup_files))?;
    plan.affinity.finish()?;
    plan.identity.name_process(plan.proc.as_ref())?;
    // With the host's rights, which a user namespace ends.
    std::mem::take(&mut plan.identity.schedule).apply(0)?;
    if let Some(proc) = plan.proc.take() {
        // Through the host's /proc: the container's may be anything.
        plan.identity.open_labels(&proc)?;
    }
    if plan.identity.in_user_namespace {
        crate::spawn::leave_groups()?;
    }
    if plan.namespaces != 0 {
        plan.init.join(plan.namespaces).op(|| "join the container's namespaces")?;
    }
    if plan.identity.in_user_namespace {
        crate::init::become_root_of_namespace()?;
    }
    if let Some(id) = &plan.keyring {
        crate::init::join_keyring(id)?;
    }
    match &plan.console {
        Some(socket) => {
            let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC;
            let root = sys::retry(|| nix::fcntl::open("/", flags, nix::sys::stat::Mode::empty()))
                .op(|| "open the container's root")?;
            let (master, slave, name) = console::open_pty(&root)?;
            console::send_fd(socket, &master, name.as_bytes()).op(|| "send the terminal to the console socket")?;
            console::take(&slave, plan.size.as_ref(), plan.identity.uid())?;
        }
        None => plan.stdio.take()?,
    }
    let program = plan.identity.assume(plan.program)?;
    Ok(Ready { identity: plan.identity, program, preserve_fds: plan.preserve_fds, waits: plan.waits })
}

fn finish(ready: Ready, channel: Channel) {
    let Ready { mut identity, mut program, preserve_fds, waits } = ready;
    let [first, second] = identity.take_labels();
    let file = program.file.take();
    let kept = keep_only(preserve_fds, [Some(channel.0), identity.take_listener(), first, second, file]);
    let Ok([Some(channel), notify, first, second, file]) = kept else { return };
    program.file = file;
    identity.put_listener(notify);
    identity.put_labels([first, second]);
    let channel = Channel(channel);
    if channel.send(&Message::Ready).is_err() {
        return;
    }
    let error = match if waits { channel.wait_go() } else { Ok(()) } {
        Ok(()) => identity.exec(&program),
        Err(error) => error,
    };
    channel.send_last(&error.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Group;

    fn placed(version: Version, wanted: &[&str]) -> Result<Vec<String>> {
        let group = |controllers: &[&str], path: &str| Group {
            controllers: controllers.iter().map(|c| (*c).to_owned()).collect(),
            path: path.into(),
        };
        let groups = match version {
            Version::V1 => vec![group(&["cpu", "cpuacct"], "/c"), group(&["memory"], "/m")],
            Version::V2 => vec![group(&[], "/u")],
        };
        let wanted: Vec<String> = wanted.iter().map(|w| (*w).to_owned()).collect();
        let state = beneath(&CgroupState { version, groups, systemd: None }, &wanted)?;
        Ok(state.groups.iter().map(|g| g.path.display().to_string()).collect())
    }

    #[test]
    fn a_cgroup_is_named_for_all_controllers_or_for_some() {
        let v1 = |wanted: &[&str]| placed(Version::V1, wanted).unwrap().join(" ");
        assert_eq!(v1(&[]), "/c /m");
        assert_eq!(v1(&["/"]), "/c /m");
        assert_eq!(v1(&["/a/b"]), "/c/a/b /m/a/b");
        assert_eq!(v1(&["cpu,cpuacct:a"]), "/c/a /m");
        assert_eq!(v1(&["cpu:a", "memory:b"]), "/c/a /m/b");
        assert_eq!(placed(Version::V2, &["a"]).unwrap(), ["/u/a"]);
    }

    #[test]
    fn a_place_outside_unknown_or_unclear_is_refused() {
        for wanted in
            [&[".."][..], &["a/../.."], &["cpu:.."], &["disk:a"], &[":a"], &["a", "b"], &["cpu:a", "cpuacct:b"]]
        {
            assert!(placed(Version::V1, wanted).is_err(), "{wanted:?}");
        }
        assert!(placed(Version::V2, &["cpu:a"]).is_err());
    }
}
