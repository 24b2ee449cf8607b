//! The parent's half of create, as one flat list. What it did is undone when a later step fails.

use std::cell::Cell;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::cgroup::{Cgroup, CgroupOptions};
use crate::channel::{Channel, Message};
use crate::error::{Context, Error, Result};
use crate::identity::{Identity, set_rlimits};
use crate::idmap;
use crate::schedule::Schedule;
use crate::sources::Sources;
use crate::spawn::{Side, Spawn};
use crate::spec::{Mount, NamespaceKind, Process, Spec};
use crate::state::{self, CONFIG, Record, SOCKET};
use crate::undo::Undo;
use crate::{
    CreateOptions, Parent, Runtime, Stdio, agent, console, hooks, init, lsm, netdev, rdt, refuse, rootless, sys,
};

/// Creates a container up to the point where its process waits for `start`.
pub(crate) fn create(runtime: &Runtime, id: &str, mut options: CreateOptions) -> Result<i32> {
    let mut undo = Undo::default();
    refuse::check_id(id)?;
    let bundle = fs::canonicalize(&options.bundle).path("open bundle", &options.bundle)?;
    let (mut spec, config) = Spec::load(&bundle.join(CONFIG))?;
    spec.mounts.append(&mut options.extra_mounts);
    refuse::check(&spec)?;
    let process = spec.process.as_ref().ok_or_else(|| Error::invalid("config.json: process is missing"))?;

    // Everything that can be parsed or opened beforehand is, so that most errors come before anything exists.
    let rootfs = rootfs_path(&spec, &bundle)?;
    let mut identity = plan_identity(&spec, id, &bundle, process, &options)?;
    let sources = Sources::by_parent(&spec, &bundle, &rootfs, &options.rootfs_mounts)?;
    // Who may not open mounts has rights in the container's user namespace alone: see `rootless`.
    let ordinary = sources.is_none();
    // Nobody in a user namespace has rights over the host's CPUs: there it is ours to apply.
    let schedule = match identity.in_user_namespace && !ordinary {
        true => std::mem::take(&mut identity.schedule),
        false => Schedule::default(),
    };
    let (spawn, joins) = Spawn::plan(&spec, options.parent, ordinary)?;
    let console = plan_console(process, &options)?;
    let pidfd_socket = console::pidfd_socket(options.pidfd_socket.as_deref())?;
    own_streams(&options.stdio, &spec, process)?;
    let proc = open_proc()?;

    // What failed after there was a process goes on where delete would: with the poststop hooks, last of all.
    let born = Rc::new(Cell::new(false));
    if !spec.hooks.poststop.is_empty() {
        let (born, bundle) = (born.clone(), bundle.clone());
        let state = state::hook_state(&spec, id, &bundle, "stopped", 0);
        let poststop = spec.hooks.poststop.clone();
        undo.push(move || {
            if born.get() {
                hooks::run_all("poststop", &poststop, &state, &bundle);
            }
        });
    }
    // The name is taken by mkdir: of two creates of one id, one fails here.
    let dir = make_state_dir(runtime, id)?;
    undo.push({
        let dir = dir.clone();
        move || drop(fs::remove_dir_all(dir))
    });
    fs::write(dir.join(CONFIG), &config).path("write", &dir.join(CONFIG))?;
    identity.filter().map_or(Ok(()), |filter| agent::keep(filter, &dir))?;
    let listener = listen(&dir)?;

    // Limits are there before anyone runs under them.
    let cgroup_options = CgroupOptions {
        systemd: options.systemd_cgroup,
        rootless: options.rootless,
        annotations: Some(&spec.annotations),
        owner: cgroup_owner(&spec, process),
        ..CgroupOptions::new(spec.linux.cgroups_path.as_deref().map(Path::new), id)
    };
    let cgroup = Cgroup::create(&cgroup_options, spec.linux.resources.as_deref()).map_err(cgroup_error)?;
    undo.push({
        let cgroup = Cgroup::open(&cgroup.state());
        move || drop(cgroup.remove())
    });
    let rdt = match &spec.linux.intel_rdt {
        Some(wanted) => {
            let tree = rdt::Tree::mounted()?;
            let group = tree.make(wanted, id)?;
            undo.push({
                let group = group.clone();
                move || group.remove()
            });
            Some((tree, group))
        }
        None => None,
    };
    let cgroup_dir = cgroup.dir_fd_for_clone().map_err(cgroup_error)?;
    let cgroup_files = cgroup.join_self_files().map_err(cgroup_error)?;

    let plan = init::Plan {
        spec: &spec,
        id,
        bundle: &bundle,
        rootfs: rootfs.clone(),
        sources,
        identity,
        joins,
        cgroup_files,
        proc,
        stdio: options.stdio,
        console,
        listener,
        preserve_fds: options.preserve_fds,
        no_pivot: options.no_pivot,
        keyring: !options.no_new_keyring,
    };
    let rlimits = plan.identity.rlimits.clone();
    let (ours, theirs) = Channel::pair().op(|| "make a socket pair")?;
    let former_score = if ordinary { rootless::take_oom_score(process)? } else { None };
    let mut side = spawn.clone(cgroup_dir.as_ref());
    // The init waits for its id maps; without, it might make its cgroup namespace before it is moved.
    let waits = spec.makes(NamespaceKind::User) || !spec.makes(NamespaceKind::Cgroup);
    let moved = waits && only_systemd_may_move(&side, &cgroup);
    if moved {
        side = spawn.clone(None);
    }
    if !matches!(side, Ok(Side::Child)) {
        rootless::put_oom_score(former_score)?;
    }
    let pid = match side? {
        Side::Child => {
            drop(ours);
            init::run(plan, theirs)
        }
        Side::Parent(pid) => pid,
    };
    drop((plan, theirs));
    let parent = options.parent;
    undo.push(move || kill_and_reap(pid, parent));
    born.set(true);

    if moved {
        cgroup.attach(pid).map_err(cgroup_error)?;
    }
    if let Some((tree, group)) = &rdt {
        tree.join(group, pid)?;
    }
    // Needs rights that the init may not have in its user namespace.
    if let Some(score) = process.oom_score_adj.filter(|_| !ordinary) {
        set_oom_score(score, &pid.to_string())?;
    }
    if spec.namespace(NamespaceKind::User).is_some() {
        // Raising a hard limit takes rights over the host that nobody inside has.
        set_rlimits(pid, &rlimits)?;
    }
    if let Some(moved) = netdev::give(&spec, pid)? {
        undo.push(move || moved.back());
    }
    if spec.makes(NamespaceKind::User) && !spawn.has_mapped() {
        rootless::write_maps(pid, &spec.maps()).map_err(|error| ours.rather_said(error))?;
    }
    if spec.init_waits_first() {
        ours.go()?;
    }
    let mut message = ours.expect()?;
    if message == Message::Hooks {
        let state = state::hook_state(&spec, id, &bundle, "creating", pid);
        hooks::run("prestart", &spec.hooks.prestart, &state, &bundle)?;
        hooks::run("createRuntime", &spec.hooks.create_runtime, &state, &bundle)?;
        ours.go()?;
        message = ours.expect()?;
    }
    if message != Message::Ready {
        return Err(Error::Init(format!("unexpected message {message:?} from the container's process")));
    }
    // When nothing is left to be done: a deadline process could not start hooks.
    schedule.apply(pid)?;
    let mut record = Record::of(&spec, id, pid, bundle, rootfs, &cgroup)
        .ok_or_else(|| Error::Init("the container's process died".into()))?;
    record.rdt = rdt.map(|(_, group)| group);
    record.no_new_keyring = options.no_new_keyring;
    if let Some(socket) = &pidfd_socket {
        console::send_pidfd(socket, pid, "standard")?;
    }
    record.save(&dir)?;
    if let Some(path) = &options.pid_file {
        write_pid_file(path, pid)?;
        undo.push(move || drop(fs::remove_file(path)));
    }
    // From here on the container exists without us.
    ours.go()?;
    undo.disarm();
    Ok(pid)
}

/// An ordinary user may move a process only between cgroups that have a parent of his: from a login's session to a unit
/// of his own manager he may not, but the manager can have it done.
pub(crate) fn only_systemd_may_move(side: &Result<Side>, cgroup: &Cgroup) -> bool {
    matches!(side, Err(error) if error.errno() == Some(libc::EACCES)) && cgroup.state().systemd.is_some()
}

pub(crate) fn cgroup_error(error: crate::cgroup::Error) -> Error {
    Error::Init(error.to_string())
}

/// The user of the host to whom the container's cgroup is given: who has a user namespace, a cgroup namespace and a
/// writable cgroup mount may make cgroups of its own. (Root needs nothing given.)
fn cgroup_owner(spec: &Spec, process: &Process) -> Option<u32> {
    let writable = |mount: &Mount| {
        matches!(mount.kind.as_deref(), Some("cgroup" | "cgroup2")) && !mount.options.iter().any(|word| word == "ro")
    };
    if !spec.makes(NamespaceKind::Cgroup) || !spec.mounts.iter().any(writable) {
        return None;
    }
    idmap::host_id(&spec.linux.uid_mappings, process.user.uid)
}

pub(crate) fn rootfs_path(spec: &Spec, bundle: &Path) -> Result<PathBuf> {
    let path = spec.root.as_ref().map(|r| r.path.as_path()).unwrap_or(Path::new("rootfs"));
    let path = bundle.join(path);
    fs::canonicalize(&path).path("open root filesystem", &path)
}

fn plan_identity(spec: &Spec, id: &str, bundle: &Path, process: &Process, options: &CreateOptions) -> Result<Identity> {
    let (filter, agent) = agent::plan(spec, || state::hook_state(spec, id, bundle, "creating", 0))?;
    let mut identity = Identity::plan(process, &spec.linux, filter, agent)?;
    identity.in_user_namespace = spec.namespace(NamespaceKind::User).is_some();
    check_preserved(options.preserve_fds)?;
    for variable in &options.extra_env {
        identity.add_env(variable.clone());
    }
    Ok(identity)
}

/// The socket that gets the terminal; asking for one without the other is an error, as in runc.
fn plan_console(process: &Process, options: &CreateOptions) -> Result<Option<OwnedFd>> {
    console_socket(process.terminal, options.console_socket.as_deref(), options.console_fd.as_ref())
}

pub(crate) fn console_socket(terminal: bool, path: Option<&Path>, fd: Option<&OwnedFd>) -> Result<Option<OwnedFd>> {
    match (terminal, path, fd) {
        (true, Some(path), _) => console::connect(path).map(Some),
        (true, None, Some(fd)) => fd.try_clone().map(Some).op(|| "copy the console descriptor"),
        (true, None, None) => {
            Err(Error::invalid("process.terminal is set: a console socket is needed (--console-socket)"))
        }
        (false, None, None) => Ok(None),
        (false, ..) => Err(Error::invalid("a console socket is given, but process.terminal is not set")),
    }
}

/// The host's /proc. What is written by it (sysctls, labels) takes effect on a real one alone.
/// What is to be the program's was given to this one.
pub(crate) fn check_preserved(count: u32) -> Result<()> {
    match (3..3 + count as i32).find(|fd| !sys::is_handed_over(*fd)) {
        None => Ok(()),
        Some(fd) => Err(Error::invalid(format!("descriptor {fd} is to be preserved, but was not handed over"))),
    }
}

pub(crate) fn open_proc() -> Result<OwnedFd> {
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC;
    let proc = sys::retry(|| nix::fcntl::open("/proc", flags, nix::sys::stat::Mode::empty()))
        .op(|| "open /proc of the host")?;
    lsm::check_procfs(&proc)?;
    Ok(proc)
}

pub(crate) fn make_state_dir(runtime: &Runtime, id: &str) -> Result<PathBuf> {
    let dir = runtime.root.join(id);
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    match builder.create(&dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let made = DirBuilder::new().recursive(true).mode(0o711).create(&runtime.root);
            made.op(|| {
                let root = runtime.root.display();
                format!("make the state root {root} (an ordinary user's is in $XDG_RUNTIME_DIR, or --root)")
            })?;
            builder.create(&dir).path("make", &dir)?;
        }
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Err(Error::Exists(id.to_owned())),
        result => result.path("make", &dir)?,
    }
    Ok(dir)
}

/// A socket's address holds 108 bytes, a state directory's path may be longer: it is reached by its descriptor.
pub(crate) fn socket_path(dir: &fs::File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))
}

fn listen(dir: &Path) -> Result<OwnedFd> {
    let handle = fs::File::open(dir).path("open", dir)?;
    let listener = UnixListener::bind(socket_path(&handle)).path("listen in", dir)?;
    Ok(listener.into())
}

/// Writes the score, or accepts the present one. Lowering it takes CAP_SYS_RESOURCE: without it the error stands,
/// because a process that the kernel kills earlier than asked is a setting not enforced.
/// Sets the OOM score of a process, by its folder in /proc.
pub(crate) fn set_oom_score(score: i32, process: &str) -> Result<()> {
    let path = format!("/proc/{process}/oom_score_adj");
    let written =
        OpenOptions::new().write(true).open(&path).and_then(|mut f| f.write_all(score.to_string().as_bytes()));
    match written {
        Err(e) if e.raw_os_error() == Some(libc::EACCES) => {
            let now = fs::read_to_string(&path).unwrap_or_default();
            if now.trim() == score.to_string() {
                return Ok(());
            }
            let what = format!(
                "set process.oomScoreAdj to {score}: it is {} and only CAP_SYS_RESOURCE may lower it",
                now.trim()
            );
            Err(Error::Os { what, cause: e })
        }
        result => result.op(|| format!("set process.oomScoreAdj to {score}")),
    }
}

/// In a user namespace nobody could open the streams that the caller made for it (/dev/stdout) unless they are its
/// user's. What is a device, such as /dev/null, stays whose it is.
pub(crate) fn own_streams(stdio: &Stdio, spec: &Spec, process: &Process) -> Result<()> {
    let Some(uid) = idmap::host_id(&spec.linux.uid_mappings, process.user.uid) else { return Ok(()) };
    for stream in [&stdio.stdin, &stdio.stdout, &stdio.stderr].into_iter().flatten() {
        let kind = nix::sys::stat::fstat(stream).op(|| "stat a standard stream")?.st_mode & libc::S_IFMT;
        if matches!(kind, libc::S_IFIFO | libc::S_IFSOCK) {
            let owned = nix::unistd::fchown(stream, Some(nix::unistd::Uid::from_raw(uid)), None);
            match owned {
                // Only root gives away; another user's container keeps the open descriptor.
                Err(nix::errno::Errno::EPERM) => {}
                result => result.op(|| format!("give a standard stream to user {uid} of the host"))?,
            }
        }
    }
    Ok(())
}

/// Written beside and renamed: who waits for the file to appear reads a whole pid.
pub(crate) fn write_pid_file(path: &Path, pid: i32) -> Result<()> {
    let name = path.file_name().ok_or_else(|| Error::invalid(format!("pid file {}: no name", path.display())))?;
    let temporary = path.with_file_name(format!(".{}", name.to_string_lossy()));
    let written = fs::write(&temporary, pid.to_string()).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // It may not be there, or not be ours to remove: the first error is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    written.path("write pid file", path)
}

pub(crate) fn kill_and_reap(pid: i32, parent: Parent) {
    // It may be dead already; with CLONE_PARENT its real parent reaps it.
    let _ = nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    match parent {
        Parent::Caller => drop(sys::retry(|| waitpid(Pid::from_raw(pid), None))),
        Parent::Grandparent => wait_for_death(pid),
    }
}

/// The cgroup can only be removed once it is empty.
fn wait_for_death(pid: i32) {
    for _ in 0..200 {
        match state::process_start(pid) {
            Some((_, true)) => std::thread::sleep(std::time::Duration::from_millis(5)),
            _ => return,
        }
    }
}
