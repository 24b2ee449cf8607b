//! The init's half of create: what the container's first process does to itself, as one flat list.
//!
//! It runs in a single-threaded child of clone3, already inside the new namespaces, and never returns: it becomes the
//! container's program, or it says what failed and exits.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::socket::accept4;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, chdir, chroot, fchdir, pivot_root, setgroups, setresgid, setresuid, setsid};

use crate::beneath::{self, Kind};
use crate::channel::{Channel, Message};
use crate::error::{Context, Error, Result};
use crate::identity::{Identity, Program};
use crate::mounts::{Planned, Root};
use crate::sources::Sources;
use crate::spec::{NamespaceKind, Spec};
use crate::{Stdio, console, devices, hooks, mounts, refuse, schedule, sys};

/// Everything the init needs, opened and parsed by the parent.
pub(crate) struct Plan<'a> {
    pub spec: &'a Spec,
    pub id: &'a str,
    pub bundle: &'a Path,
    pub rootfs: PathBuf,
    /// What comes from the host. `None`: the parent has no right to it (see `rootless`), it is opened here.
    pub sources: Option<Sources>,
    pub identity: Identity,
    /// Namespaces to join here (not those an intermediate process joined already).
    pub joins: Vec<(NamespaceKind, OwnedFd)>,
    /// v1: `tasks` files of the container's cgroup.
    pub cgroup_files: Vec<OwnedFd>,
    /// The host's /proc, which no image can fake.
    pub proc: OwnedFd,
    pub stdio: Stdio,
    /// Where the terminal's master goes.
    pub console: Option<OwnedFd>,
    /// Where `start` will connect.
    pub listener: OwnedFd,
    pub preserve_fds: u32,
    pub no_pivot: bool,
    pub keyring: bool,
}

/// Runs the list. Never returns.
pub(crate) fn run(plan: Plan<'_>, channel: Channel) -> ! {
    match set_up(plan, &channel) {
        Ok(ready) => wait_and_exec(ready, channel),
        Err(error) => tell(&channel, &error),
    }
    sys::exit_now(1)
}

fn tell(channel: &Channel, error: &Error) {
    // If this fails the parent is gone, and nobody is left to tell.
    let _ = channel.send(&Message::Failed(error.to_string()));
}

/// What is left when all is set up.
struct Ready<'a> {
    spec: &'a Spec,
    id: &'a str,
    bundle: &'a Path,
    identity: Identity,
    program: Program,
    listener: OwnedFd,
    preserve_fds: u32,
}

/// The list. Each step says why it stands where it does, unless it could stand anywhere.
fn set_up<'a>(mut plan: Plan<'a>, channel: &Channel) -> Result<Ready<'a>> {
    let spec = plan.spec;
    // First of all: a shared PID namespace may hold hostile processes, who must not trace this one while it is
    // privileged.
    if plan.sources.is_some() || !spec.makes(NamespaceKind::User) {
        nix::sys::prctl::set_dumpable(false).op(|| "set not dumpable")?;
    }
    // The parent's dispositions and masks are no business of the container's.
    sys::reset_signals();
    // Modes of what is made below are meant as they are.
    umask(Mode::empty());
    setsid().op(|| "start a session")?;
    // Before the cgroup namespace is made, whose root is the cgroup of this moment; and before anything is allocated
    // that should be charged to the container.
    join_cgroup(std::mem::take(&mut plan.cgroup_files))?;
    // After it: the cpuset limits what this comes to.
    schedule::reset_affinity();
    plan.identity.name_process(None)?;
    // In a user namespace the folders above may be closed to who this process becomes; the host's root may pass still.
    let point = open_directory(&plan.rootfs);
    // Nothing can be made as root of the new user namespace before the parent wrote its maps.
    if spec.init_waits_first() {
        channel.wait_go()?;
    }
    let sources = match plan.sources.take() {
        Some(sources) => sources,
        None => {
            // An ordinary user could not have written the maps of a process that is not dumpable.
            nix::sys::prctl::set_dumpable(false).op(|| "set not dumpable")?;
            // Before it becomes someone else, whom the user's folders may be closed to.
            Sources::by_init(spec, plan.bundle, &plan.rootfs)?
        }
    };
    if spec.namespace(NamespaceKind::User).is_some() {
        become_root_of_namespace()?;
    }
    // Or they are the namespace's own (podman's, owned by the mapped root), which only now is known to the kernel.
    let point = point.or_else(|_| open_directory(&plan.rootfs))?;
    for (kind, file) in std::mem::take(&mut plan.joins) {
        sys::setns(file.as_fd(), kind.flag() as i32).op(|| format!("join the {} namespace", kind.name()))?;
    }
    let cgroups = own_cgroups(&plan.proc, &sources.mounts)?;
    if spec.makes(NamespaceKind::Cgroup) {
        sys::unshare(NamespaceKind::Cgroup.flag()).op(|| "make a cgroup namespace")?;
    }
    if plan.keyring {
        join_keyring(plan.id)?;
    }
    if spec.makes(NamespaceKind::Network) {
        sys::loopback_up().op(|| "bring the loopback interface up")?;
    }
    set_names(spec)?;
    // Through the host's /proc: the container's may be missing, or be something else.
    write_sysctls(&plan)?;

    // Mounts. First cut this namespace off from the host's, then build the tree beneath the new root.
    let base = mounts::base_propagation(spec);
    change_propagation(Path::new("/"), MsFlags::from_bits_truncate(base) | MsFlags::MS_REC)?;
    if base == libc::MS_SHARED {
        make_parent_private(&plan.rootfs)?;
    }
    let root = attach_root(&plan.rootfs, &point, sources.root)?;
    let namespaced = spec.namespace(NamespaceKind::Cgroup).is_some();
    for mount in sources.mounts {
        mount.attach(&root, &cgroups, namespaced)?;
    }
    // After the mounts: /dev is usually one of them.
    devices::make(&root, sources.nodes)?;
    if !sources.bound_dev {
        devices::links(&root)?;
    }
    let terminal = match plan.console {
        Some(socket) => Some(open_terminal(&root, &socket)?),
        None => None,
    };
    make_cwd(&root, spec)?;
    // Hooks may still look at, and add to, the tree that is to become the root; the host's paths are still there.
    run_hooks(spec, plan.id, plan.bundle, channel)?;
    // Covering comes after everything that is mounted, or a mount could uncover it.
    mask(&root, spec, sources.null)?;
    make_read_only(&root, spec)?;
    if plan.no_pivot {
        move_root(&root)?
    } else {
        switch_root(&root, base)?
    }
    if let Some((flag, recursive)) = spec.linux.rootfs_propagation.as_deref().and_then(crate::options::propagation) {
        let recursive = if recursive { MsFlags::MS_REC } else { MsFlags::empty() };
        change_propagation(Path::new("/"), MsFlags::from_bits_truncate(flag) | recursive)?;
    }

    plan.identity.open_labels(&plan.proc)?;
    // The container's own paths come next: none of them shall find the host's /proc among this process's descriptors.
    drop(plan.proc);
    // From here on only this process's own attributes change.
    match &terminal {
        Some(slave) => {
            let process = spec.process.as_ref().and_then(|p| p.console_size.as_ref());
            console::take(slave, process, plan.identity.uid())?;
        }
        None => plan.stdio.take()?,
    }
    let program = plan.identity.assume(None)?;
    Ok(Ready {
        spec,
        id: plan.id,
        bundle: plan.bundle,
        identity: plan.identity,
        program,
        listener: plan.listener,
        preserve_fds: plan.preserve_fds,
    })
}

/// Waits for `start`, then becomes the program. Returns when that failed.
fn wait_and_exec(ready: Ready<'_>, channel: Channel) {
    let Ready { spec, id, bundle, mut identity, program, listener, preserve_fds } = ready;
    // No descriptor of the runtime's outlives this point but the few it still needs; those go with the exec.
    let [first, second] = identity.take_labels();
    let kept = match keep_only(preserve_fds, [Some(listener), Some(channel.0), identity.take_listener(), first, second])
    {
        Ok(kept) => kept,
        // The channel is lost with the failure: the parent sees it closed.
        Err(_) => return,
    };
    let [Some(listener), Some(channel), notify, first, second] = kept else { return };
    identity.put_listener(notify);
    identity.put_labels([first, second]);
    let channel = Channel(channel);
    // Once the parent has written the record it answers; without an answer this container does not exist.
    if channel.send(&Message::Ready).is_err() || channel.wait_go().is_err() {
        return;
    }
    drop(channel);
    let Some(starter) = accept(&listener) else { return };
    drop(listener);
    let error = match start_hooks(spec, id, bundle) {
        Ok(()) => match keep_across_exec(preserve_fds) {
            Ok(()) => identity.exec(&program),
            Err(error) => error,
        },
        Err(error) => error,
    };
    // `start` takes a closed connection without words for success.
    let _ = sys::retry(|| nix::unistd::write(&starter, error.to_string().as_bytes()));
}

fn accept(listener: &OwnedFd) -> Option<OwnedFd> {
    loop {
        match accept4(listener.as_raw_fd(), nix::sys::socket::SockFlag::SOCK_CLOEXEC) {
            Ok(fd) => return Some(sys::adopt(fd)),
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::ECONNABORTED) => {}
            Err(_) => return None,
        }
    }
}

fn start_hooks(spec: &Spec, id: &str, bundle: &Path) -> Result<()> {
    if spec.hooks.start_container.is_empty() {
        return Ok(());
    }
    let state = crate::state::hook_state(spec, id, bundle, "created", std::process::id() as i32);
    let mut hooks = spec.hooks.start_container.clone();
    let env = spec.process.as_ref().map(|process| &process.env[..]).unwrap_or_default();
    hooks.iter_mut().filter(|hook| hook.env.is_empty()).for_each(|hook| hook.env = env.to_vec());
    hooks::run("startContainer", &hooks, &state, Path::new("/"))
}

/// Moves the given descriptors to the lowest numbers above what the container gets, and closes all others.
pub(crate) fn keep_only<const N: usize>(preserve: u32, fds: [Option<OwnedFd>; N]) -> Result<[Option<OwnedFd>; N]> {
    let first = 3 + preserve as i32;
    // Out of the way first: a target number may be another one's present number.
    let mut high = Vec::with_capacity(N);
    for fd in fds {
        let moved = fd.map(|fd| nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(first + N as i32)));
        high.push(moved.transpose().op(|| "move descriptors")?);
    }
    let mut next = first;
    let mut kept = [const { None }; N];
    for (slot, fd) in kept.iter_mut().zip(high) {
        if let Some(fd) = fd {
            sys::dup_to(fd.as_raw_fd(), next, true).op(|| "move descriptors")?;
            *slot = Some(sys::adopt(next));
            next += 1;
        }
    }
    sys::close_from(next as u32).op(|| "close the runtime's descriptors")?;
    Ok(kept)
}

/// What the caller handed over for the program is the program's, however it was opened.
pub(crate) fn keep_across_exec(preserve: u32) -> Result<()> {
    (3..3 + preserve as i32).try_for_each(|fd| sys::dup_to(fd, fd, false).op(|| "pass on preserved descriptors"))
}

pub(crate) fn join_cgroup(files: Vec<OwnedFd>) -> Result<()> {
    let join = |file: &OwnedFd| sys::retry(|| nix::unistd::write(file, b"0")).map(drop);
    files.iter().try_for_each(|file| join(file).op(|| "join the container's cgroup"))
}

/// User and group 0 of the user namespace this process is in.
pub(crate) fn become_root_of_namespace() -> Result<()> {
    match setgroups(&[]) {
        // Denied in this namespace: the groups of the caller stay, and are unmapped.
        Ok(()) | Err(nix::errno::Errno::EPERM) => {}
        Err(e) => return Err(e).op(|| "drop groups in the user namespace"),
    }
    let zero = (Gid::from_raw(0), Uid::from_raw(0));
    setresgid(zero.0, zero.0, zero.0).op(|| "become group 0 of the user namespace (is it mapped?)")?;
    setresuid(zero.1, zero.1, zero.1).op(|| "become user 0 of the user namespace (is it mapped?)")
}

fn own_cgroups(proc: &OwnedFd, mounts: &[Planned]) -> Result<String> {
    if !mounts.iter().any(Planned::is_cgroup) {
        return Ok(String::new());
    }
    let file = beneath::open(proc, Path::new("self/cgroup"), libc::O_RDONLY).op(|| "open /proc/self/cgroup")?;
    std::io::read_to_string(std::fs::File::from(file)).op(|| "read /proc/self/cgroup")
}

/// A new session keyring for this process. It is not made searchable, so nobody joins it by its name: neither an exec nor a
/// container of the same user.
pub(crate) fn join_keyring(id: &str) -> Result<()> {
    match sys::join_session_keyring(&format!("_ses.{id}")) {
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        result => result.map(drop).op(|| {
            "join a new session keyring (EDQUOT: the user has too many keys, see /proc/sys/kernel/keys; or --no-new-keyring)"
        }),
    }
}

fn set_names(spec: &Spec) -> Result<()> {
    if let Some(name) = spec.hostname.as_deref().filter(|n| !n.is_empty()) {
        nix::unistd::sethostname(name).op(|| format!("set the hostname {name:?}"))?;
    }
    if let Some(name) = spec.domainname.as_deref().filter(|n| !n.is_empty()) {
        sys::setdomainname(name).op(|| format!("set the domain name {name:?}"))?;
    }
    Ok(())
}

fn write_sysctls(plan: &Plan<'_>) -> Result<()> {
    for (name, value) in &plan.spec.linux.sysctl {
        let path = Path::new("sys").join(refuse::sysctl_path(name));
        let what = || format!("set sysctl {name} = {value:?}");
        let file = beneath::open_no_links(&plan.proc, &path, libc::O_WRONLY).op(what)?;
        sys::retry(|| nix::unistd::write(&file, value.as_bytes())).op(what)?;
    }
    Ok(())
}

fn change_propagation(path: &Path, flags: MsFlags) -> Result<()> {
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>).path("change the mount propagation of", path)
}

/// pivot_root wants the new root's parent mount not shared. The parent mount is the nearest path that is one.
fn make_parent_private(rootfs: &Path) -> Result<()> {
    for path in rootfs.ancestors() {
        match mount(None::<&str>, path, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>) {
            Err(nix::errno::Errno::EINVAL) => continue,
            result => return result.path("make private the mount at", path),
        }
    }
    Ok(())
}

pub(crate) fn open_directory(rootfs: &Path) -> Result<OwnedFd> {
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC;
    sys::retry(|| nix::fcntl::open(rootfs, flags, Mode::empty())).path("open root filesystem", rootfs)
}

pub(crate) fn attach_root(rootfs: &Path, point: &OwnedFd, root: Root) -> Result<OwnedFd> {
    match root {
        Root::Legacy { fstype, source, flags, data } => {
            let flags = MsFlags::from_bits_truncate(flags);
            mount(Some(source.as_str()), rootfs, Some(fstype.as_str()), flags, Some(data.as_str()))
                .op(|| format!("mount {fstype} on {}", rootfs.display()))?;
            open_directory(rootfs)
        }
        Root::Detached(trees) => {
            let mut root: Option<OwnedFd> = None;
            for (path, tree) in trees {
                match &root {
                    None => {
                        sys::move_mount(tree.as_fd(), point.as_fd()).path("mount the root filesystem on", rootfs)?;
                        root = Some(tree);
                    }
                    Some(root) => {
                        let target = mounts::find_target(root, &path, Kind::Directory)?;
                        sys::move_mount(tree.as_fd(), target.as_fd()).path("mount on", &path)?;
                    }
                }
            }
            root.ok_or_else(|| Error::invalid("no root filesystem"))
        }
    }
}

fn open_terminal(root: &OwnedFd, socket: &OwnedFd) -> Result<OwnedFd> {
    let (master, slave, name) = console::open_pty(root)?;
    console::bind_console(root, &slave)?;
    console::send_fd(socket, &master, name.as_bytes()).op(|| "send the terminal to the console socket")?;
    Ok(slave)
}

fn make_cwd(root: &OwnedFd, spec: &Spec) -> Result<()> {
    let Some(process) = &spec.process else { return Ok(()) };
    if process.cwd == Path::new("/") {
        return Ok(());
    }
    match beneath::target(root, &process.cwd, Kind::Directory) {
        // A read-only root without it: chdir will say so in its own words.
        Err(e) if e.raw_os_error() == Some(libc::EROFS) => Ok(()),
        result => result.map(drop).path("make working directory", &process.cwd),
    }
}

fn run_hooks(spec: &Spec, id: &str, bundle: &Path, channel: &Channel) -> Result<()> {
    let hooks = &spec.hooks;
    if !hooks.prestart.is_empty() || !hooks.create_runtime.is_empty() {
        channel.send(&Message::Hooks).op(|| "ask for the runtime's hooks")?;
        channel.wait_go()?;
    }
    if hooks.create_container.is_empty() {
        return Ok(());
    }
    let state = crate::state::hook_state(spec, id, bundle, "creating", std::process::id() as i32);
    hooks::run("createContainer", &hooks.create_container, &state, bundle)
}

/// Covers what the container shall not see: files by /dev/null, directories by one empty read-only tmpfs.
fn mask(root: &OwnedFd, spec: &Spec, null: Option<OwnedFd>) -> Result<()> {
    let mut covers: [Option<OwnedFd>; 2] = [null, None];
    let mut used = [false; 2];
    for path in &spec.linux.masked_paths {
        let what = || format!("mask {}", path.display());
        let Some(target) = open_existing(root, path)? else { continue };
        let directory = nix::sys::stat::fstat(&target).op(what)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
        let index = directory as usize;
        if directory && covers[1].is_none() {
            covers[1] = Some(mounts::detached("tmpfs", "tmpfs", &["ro", "nosuid", "nodev", "noexec", "size=4k"])?);
        }
        let Some(cover) = &covers[index] else { continue };
        // The first use attaches the mount itself: older kernels copy none that is attached nowhere.
        if used[index] {
            let copy = sys::clone_tree(cover.as_raw_fd(), c"", false).op(what)?;
            sys::move_mount(copy.as_fd(), target.as_fd()).op(what)?;
        } else {
            sys::move_mount(cover.as_fd(), target.as_fd()).op(what)?;
            used[index] = true;
        }
    }
    Ok(())
}

/// A path to cover; what is not there needs no cover.
fn open_existing(root: &OwnedFd, path: &Path) -> Result<Option<OwnedFd>> {
    match beneath::open(root, path, libc::O_PATH) {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(e) => Err(e).path("open", path),
    }
}

fn make_read_only(root: &OwnedFd, spec: &Spec) -> Result<()> {
    for path in &spec.linux.readonly_paths {
        let what = || format!("make {} read-only", path.display());
        let Some(target) = open_existing(root, path)? else { continue };
        let copy = sys::clone_tree(target.as_raw_fd(), c"", true).op(what)?;
        mounts::read_only(&copy, true).op(what)?;
        sys::move_mount(copy.as_fd(), target.as_fd()).op(what)?;
    }
    if spec.root.as_ref().is_some_and(|r| r.readonly) {
        mounts::read_only(root, false).op(|| "make the root filesystem read-only")?;
    }
    Ok(())
}

/// pivot_root onto itself: the old root lands on top of the new one and is detached from there.
fn switch_root(root: &OwnedFd, base: u64) -> Result<()> {
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC;
    let old = sys::retry(|| nix::fcntl::open("/", flags, Mode::empty())).op(|| "open the host's root")?;
    fchdir(root).op(|| "enter the root filesystem")?;
    pivot_root(".", ".").op(|| "pivot_root (is the host's root an initramfs? then use --no-pivot)")?;
    fchdir(&old).op(|| "enter the old root")?;
    if base == libc::MS_SHARED {
        // The unmount below must not reach the host.
        change_propagation(Path::new("."), MsFlags::MS_SLAVE | MsFlags::MS_REC)?;
    }
    umount2(".", MntFlags::MNT_DETACH).op(|| "detach the old root")?;
    chdir("/").op(|| "enter the new root")
}

/// Without pivot_root (an initramfs): the new root is moved over the old one.
fn move_root(root: &OwnedFd) -> Result<()> {
    fchdir(root).op(|| "enter the root filesystem")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).op(|| "move the root filesystem over /")?;
    chroot(".").op(|| "chroot")?;
    chdir("/").op(|| "enter the new root")
}
