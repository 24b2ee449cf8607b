//! sd_notify through the container's wall: runc's proxy for services of `Type=notify`, when NOTIFY_SOCKET is set.
//!
//! ```text
//! program --- /run/notify/notify.sock ---> run or start --- $NOTIFY_SOCKET ---> systemd
//! ```
//! The socket's directory is `<root>/:notify/<id>` (no id has a colon), made and mounted at create, removed with the
//! container. Of what the program says only `READY=...` is passed on, once, with MAINPID and followed by a barrier: the
//! manager of the host believes a container no more than that.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use coracle_runtime::CreateOptions;
use coracle_runtime::spec::Mount;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::Call;

/// Beneath the state root.
const DIRECTORY: &str = ":notify";
const SOCKET: &str = "notify.sock";
/// In the container.
const INSIDE: &str = "/run/notify";
/// A notification is no longer.
const MAX_BYTES: usize = 4096;
/// How long systemd may take to tell that it has read: as runc.
const BARRIER_MS: u16 = 30_000;
/// How often it is looked whether the container still lives.
const LOOK_MS: u8 = 100;

/// The proxy of one container.
pub struct Notify {
    host: OsString,
    dir: PathBuf,
    socket: Option<UnixDatagram>,
}

fn directory(call: &Call, id: &str) -> Option<PathBuf> {
    // An id that is no name is refused later, by who makes the container.
    let is_name = Path::new(id).components().eq([Component::Normal(OsStr::new(id))]);
    is_name.then(|| call.runtime.root.join(DIRECTORY).join(id))
}

/// Removes what [`Notify::prepare`] made; nothing is fine too.
pub fn remove(call: &Call, id: &str) -> Result<()> {
    let Some(dir) = directory(call, id) else { return Ok(()) };
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.with_context(|| format!("remove {}", dir.display())),
    }
}

impl Notify {
    /// The proxy, when the caller's environment asks for one.
    pub fn of(call: &Call, id: &str) -> Option<Notify> {
        let host = std::env::var_os("NOTIFY_SOCKET").filter(|host| !host.is_empty())?;
        Some(Notify { host, dir: directory(call, id)?, socket: None })
    }

    /// Makes the directory, and tells the container of it. Whoever fails later calls [`remove`].
    pub fn prepare(&self, options: &mut CreateOptions) -> Result<()> {
        let made = DirBuilder::new().recursive(true).mode(0o711).create(self.dir.parent().unwrap_or(Path::new("/")));
        // Whose name is taken has one already, and the create will say so.
        let made = made.and_then(|()| match fs::create_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        });
        made.and_then(|()| fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("make {}", self.dir.display()))?;
        options.extra_mounts.push(Mount {
            destination: INSIDE.into(),
            source: Some(self.dir.clone()),
            options: ["bind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned).to_vec(),
            ..Mount::default()
        });
        options.extra_env.push(format!("NOTIFY_SOCKET={INSIDE}/{SOCKET}"));
        Ok(())
    }

    /// Listens, before the program runs. False for a container that was made without.
    pub fn bind(&mut self) -> Result<bool> {
        let what = || format!("listen in {}", self.dir.display());
        let dir = match File::open(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            result => result.with_context(what)?,
        };
        // An address holds 108 bytes, the directory's path may be longer.
        let path = format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd());
        let socket = UnixDatagram::bind(&path).with_context(what)?;
        // The program may be any user.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).with_context(what)?;
        socket.set_nonblocking(true).with_context(what)?;
        self.socket = Some(socket);
        Ok(true)
    }

    /// What becomes readable when the program says something; nothing once it was ready.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Passes on that the program is ready, if it said so. Only `wait` waits for systemd to have read it.
    pub fn relay(&mut self, pid: u32, wait: bool) -> Result<()> {
        let Some(socket) = &self.socket else { return Ok(()) };
        let mut buffer = [0u8; MAX_BYTES];
        // Bounded by who calls again.
        let Ok(n) = socket.recv(&mut buffer) else { return Ok(()) };
        let Some(ready) = buffer[..n].split(|byte| *byte == b'\n').find(|line| line.starts_with(b"READY=")) else {
            return Ok(());
        };
        let what = || format!("notify {}", self.host.to_string_lossy());
        let host = UnixDatagram::unbound().and_then(|host| self.connect(&host).map(|()| host)).with_context(what)?;
        host.send(&[ready, b"\n"].concat()).with_context(what)?;
        host.send(format!("MAINPID={pid}\n").as_bytes()).with_context(what)?;
        if wait {
            barrier(&host).with_context(what)?;
        }
        self.socket = None;
        Ok(())
    }

    fn connect(&self, host: &UnixDatagram) -> io::Result<()> {
        match self.host.as_bytes().strip_prefix(b"@") {
            Some(name) => host.connect_addr(&SocketAddr::from_abstract_name(name)?),
            None => host.connect(&self.host),
        }
    }

    /// Waits until the program is ready, or the container's process has ended.
    pub fn wait(&mut self, pid: i32) -> Result<()> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        while let Some(socket) = self.fd() {
            let mut polled = [PollFd::new(socket, PollFlags::POLLIN)];
            let ready = poll(&mut polled, PollTimeout::from(LOOK_MS)).unwrap_or(0) > 0;
            if ready {
                self.relay(pid as u32, true)?;
            } else if !process.exists() {
                break;
            }
        }
        Ok(())
    }
}

/// Hands over the end of a pipe, which systemd closes once it has read all that came before.
fn barrier(host: &UnixDatagram) -> io::Result<()> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let fds = [write.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(host.as_raw_fd(), &[IoSlice::new(b"BARRIER=1")], &control, MsgFlags::MSG_NOSIGNAL, None)?;
    drop(write);
    if poll(&mut [PollFd::new(read.as_fd(), PollFlags::empty())], PollTimeout::from(BARRIER_MS))? == 0 {
        super::log::warning("systemd did not answer the barrier within 30 s; it is too old for it, perhaps");
    }
    Ok(())
}
