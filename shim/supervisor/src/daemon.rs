//! `start`: from the command line to a process of its own that listens.
//!
//! The child binds its sockets and takes its lock before the parent, who waits for its word, prints the address and
//! exits: whoever reads the address can connect. What goes wrong is told by the parent, on stderr.
//!
//! The lock is a POSIX record lock on `<bundle>/lock`: the kernel ties it to this one process (forks do not inherit it)
//! and drops it when the process dies, however it dies. Who holds it is alive; if nobody does, the supervisor is dead.

use crate::arguments::Arguments;
use crate::containerd::events::Publisher;
use crate::containerd::{bootstrap, start};
use crate::sandbox::{ATTACH_SOCKET, PID_FILE, SOCKET, Sandbox};
use crate::supervisor::Supervisor;
use crate::sys::{self, Fork};
use crate::tender::lock_holder;
use anyhow::{Context, Result, anyhow, bail, ensure};
use coracle_proto::runc;
use coracle_runtime::cgroup::{Cgroup, CgroupPath};
use nix::fcntl::{FcntlArg, Flock, OFlag, fcntl};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask};
use nix::unistd::Pid;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// The lock's name in the bundle.
pub const LOCK: &str = "lock";
/// What `ps` shows: the program's name as far as the kernel keeps it.
const COMM: &std::ffi::CStr = c"containerd-shim";
/// With -debug, and where containerd put a fifo of this name, messages go here.
const LOG: &str = "log";
/// Inherited from containerd, which has itself protected by it.
const OOM_SCORE: &str = "/proc/self/oom_score_adj";
const MAX_OOM_SCORE: i32 = 1000;
/// What the child says when it listens; anything else is an error.
const READY: &[u8] = b"ready";

/// Where the supervisor of a start listens, and what `start` prints.
struct Place {
    /// Relative to the bundle, or containerd's choice.
    socket: PathBuf,
    answer: Vec<u8>,
    /// The id of what is supervised: a sandbox, or a group of containerd's.
    sandbox: String,
    /// Held until somebody listens.
    _lock: Option<Flock<File>>,
}

impl Place {
    fn of(arguments: &Arguments, bundle: &Path) -> Result<Place> {
        let Some(containerd) = &arguments.containerd else {
            let answer = format!("unix://{}", bundle.join(SOCKET).display()).into_bytes();
            return Ok(Place { socket: SOCKET.into(), answer, sandbox: arguments.id.clone(), _lock: None });
        };
        let sandbox = start::group(bundle, &arguments.id)?;
        let socket = start::socket(containerd, &sandbox);
        let _lock = Some(start::lock(&socket)?);
        start::leave_address(bundle, &socket)?;
        Ok(Place { answer: start::answer(containerd, &socket), socket, sandbox, _lock })
    }

    /// Whether a supervisor is there already, which is as good.
    fn is_taken(&self, arguments: &Arguments) -> Result<bool> {
        if arguments.containerd.is_some() {
            return Ok(start::listens(&self.socket));
        }
        let Some(pid) = lock_holder(Path::new(LOCK)).context("start: ask for the lock")? else { return Ok(false) };
        UnixStream::connect(SOCKET).with_context(|| format!("start: supervisor {pid} runs but does not listen"))?;
        Ok(true)
    }
}

/// Runs `start`.
pub fn start(mut arguments: Arguments) -> Result<()> {
    ensure!(!arguments.id.is_empty(), "start: -id is required");
    let options = match &mut arguments.containerd {
        Some(containerd) => {
            let input = bootstrap::read(io::stdin(), &arguments.id, containerd).context("start")?;
            arguments.debug |= input.debug;
            input.options
        }
        None => runc::Options::default(),
    };
    let arguments = &arguments;
    let bundle = arguments.bundle()?;
    std::env::set_current_dir(&bundle).with_context(|| format!("start: enter bundle {}", bundle.display()))?;
    let place = Place::of(arguments, &bundle).context("start")?;
    if place.is_taken(arguments)? {
        return io::stdout().write_all(&place.answer).context("start: tell the address");
    }
    let (mut reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map(|(r, w)| (File::from(r), File::from(w)))?;
    match sys::fork().context("start: fork")? {
        Fork::Child => child(arguments, &place, bundle, options.shim_cgroup, writer),
        Fork::Parent(supervisor) => {
            drop(writer);
            let mut word = Vec::new();
            reader.read_to_end(&mut word).context("start: wait for the supervisor")?;
            match word.as_slice() {
                READY => {}
                b"" => bail!("start: the supervisor died at once"),
                error => bail!("start: {}", String::from_utf8_lossy(error)),
            }
            let mut out = io::stdout();
            out.write_all(&place.answer).and_then(|()| out.flush()).map_err(|error| {
                // Who asked for it is dead and may have been cleared away after, its bundle with it: it must not stay.
                let _ = kill(Pid::from_raw(supervisor), Signal::SIGKILL);
                anyhow!(error).context("start: tell the address")
            })
        }
    }
}

fn child(arguments: &Arguments, place: &Place, bundle: PathBuf, cgroup: String, mut parent: File) -> ! {
    let prepared = prepare(arguments, place, bundle, cgroup, &parent);
    let told = match &prepared {
        Ok(_) => parent.write_all(READY),
        Err(error) => parent.write_all(format!("{error:#}").as_bytes()),
    };
    drop(parent);
    let code = match prepared {
        // Nobody knows of a supervisor whose parent died before it could tell: it must not stay.
        Ok((mut supervisor, _lock)) if told.is_ok() => match supervisor.run() {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("containerd-shim-coracle-v1: {error:#}");
                1
            }
        },
        _ => 1,
    };
    sys::exit_now(code)
}

/// Everything up to listening. The lock lives as long as the returned file.
fn prepare(
    arguments: &Arguments,
    place: &Place,
    bundle: PathBuf,
    cgroup: String,
    parent: &File,
) -> Result<(Supervisor, File)> {
    nix::unistd::setsid().context("begin a session")?;
    // A program run by its descriptor is named after the descriptor; `ps` should say what this is.
    nix::sys::prctl::set_name(COMM).context("set the process's name")?;
    sys::close_all_but(&mut [parent.as_raw_fd()]);
    redirect(arguments.debug)?;
    nix::sys::prctl::set_child_subreaper(true).context("become the reaper of orphans")?;
    let signals = take_signals()?;
    join_cgroup(&cgroup)?;
    umask(Mode::from_bits_truncate(0o022));
    let lock = lock()?;
    fs::write(PID_FILE, std::process::id().to_string()).context("write the pid file")?;
    let (listener, attach_listener) = (listen(&place.socket)?, listen(Path::new(ATTACH_SOCKET))?);
    let mut sandbox = Sandbox::new(place.sandbox.clone(), bundle);
    if let Some(containerd) = &arguments.containerd {
        sandbox.containerd_socket = Some(place.socket.clone());
        sandbox.namespace = containerd.namespace.clone();
        sandbox.shim_cgroup = cgroup;
        prefer_as_victim().context("adjust the supervisor's oom_score_adj")?;
    }
    let mut supervisor = Supervisor::new(sandbox, listener, attach_listener, signals)?;
    supervisor.publisher = arguments.containerd.as_ref().and_then(Publisher::new);
    Ok((supervisor, lock))
}

/// Enters the cgroup that the runtime options have for shims, where there is one by this name.
fn join_cgroup(path: &str) -> Result<()> {
    if path.is_empty() {
        return Ok(());
    }
    let what = || format!("enter the shim's cgroup {path}");
    let known = CgroupPath::new(Some(Path::new(path)), path).with_context(what)?;
    let found = Cgroup::find(&known).with_context(what)?;
    let cgroup = found.with_context(|| format!("{}: there is no such cgroup", what()))?;
    cgroup.join(std::process::id() as i32).with_context(what)
}

/// When memory runs out the kernel shall take a supervisor before containerd, as with containerd's own shims.
fn prefer_as_victim() -> io::Result<()> {
    let score: i32 = fs::read_to_string(OOM_SCORE)?.trim().parse().map_err(io::Error::other)?;
    fs::write(OOM_SCORE, (score + 1).min(MAX_OOM_SCORE).to_string())
}

/// Standard input and output are nobody's. Messages go to the bundle's log if one is wanted.
fn redirect(debug: bool) -> Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").context("open /dev/null")?;
    let wanted = debug || Path::new(LOG).exists();
    // Both ways: a fifo whose reader has left must neither block nor kill.
    let log = wanted.then(|| OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(LOG)).transpose();
    let log = log.context("open the log")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(log.as_ref().unwrap_or(&null))?;
    Ok(())
}

/// The loop hears of SIGCHLD and SIGTERM through a descriptor; SIGINT and SIGHUP are not for a pod.
pub(crate) fn take_signals() -> Result<SignalFd> {
    use nix::sys::signal::Signal::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
    let mut mask = SigSet::empty();
    [SIGCHLD, SIGTERM, SIGINT, SIGHUP].into_iter().for_each(|signal| mask.add(signal));
    mask.thread_block().context("block signals")?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("make a signalfd")
}

fn lock() -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(LOCK);
    let file = file.context("open the lock")?;
    match fcntl(&file, FcntlArg::F_SETLK(&sys::write_lock())) {
        Ok(_) => Ok(file),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => bail!("another supervisor took the lock at the same time"),
        Err(error) => Err(error).context("take the lock"),
    }
}

/// Binds by the short relative name, so that no bundle's path is too long. A socket that is there already belonged to a
/// dead supervisor: we hold the lock.
pub(crate) fn listen(name: &Path) -> Result<UnixListener> {
    match fs::remove_file(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(anyhow!(error).context(format!("remove the old {}", name.display())));
        }
        _ => {}
    }
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(name).with_context(|| format!("bind {}", name.display()));
    umask(before);
    listener
}
