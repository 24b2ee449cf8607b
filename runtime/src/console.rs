//! Terminals: the container's own pty, and handing its master to whoever asked for it.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::stat::fstat;
use nix::sys::statfs::fstatfs;

use crate::beneath::{self, Kind};
use crate::error::{Context, Error, Result};
use crate::spec::ConsoleSize;
use crate::sys;

/// The device number of /dev/ptmx.
const PTMX: (u64, u64) = (5, 2);
const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

/// Sends a descriptor over a unix socket with a message.
pub(crate) fn send_fd(socket: &impl AsFd, fd: &impl AsFd, message: &[u8]) -> io::Result<()> {
    let fds = [fd.as_fd().as_raw_fd()];
    let control = [ControlMessage::ScmRights(&fds)];
    let (socket, words) = (socket.as_fd().as_raw_fd(), [IoSlice::new(message)]);
    sys::retry(|| sendmsg::<()>(socket, &words, &control, MsgFlags::MSG_NOSIGNAL, None))?;
    Ok(())
}

/// Connects to the console socket.
pub(crate) fn connect(path: &Path) -> Result<OwnedFd> {
    sys::connect(path).map(OwnedFd::from).path("connect to console socket", path)
}

/// The socket that gets a pidfd, connected before anything exists.
pub(crate) fn pidfd_socket(path: Option<&Path>) -> Result<Option<OwnedFd>> {
    path.map(|path| sys::connect(path).map(OwnedFd::from).path("connect to pidfd socket", path)).transpose()
}

/// Sends a pidfd, with the kind of process as the message: `standard` for an init, `setns` for exec, as runc has it.
pub(crate) fn send_pidfd(socket: &OwnedFd, pid: i32, kind: &str) -> Result<()> {
    let pidfd = sys::pidfd_open(pid).op(|| "open a pidfd of the new process")?;
    send_fd(socket, &pidfd, kind.as_bytes()).op(|| "send the pidfd to the pidfd socket")
}

/// A pty of the devpts at `dir` (the container's /dev/pts): master, slave, name.
///
/// The image may have put anything at that path: it is used only when it is devpts, and the slave is opened through the
/// master, not by its path.
pub(crate) fn open_pty(root: &impl AsFd) -> Result<(OwnedFd, OwnedFd, String)> {
    let ptmx = Path::new("/dev/pts/ptmx");
    let master = beneath::open_no_links(root, ptmx, libc::O_RDWR | libc::O_NOCTTY)
        .op(|| "open /dev/pts/ptmx of the container (is devpts mounted?)")?;
    let metadata = fstat(&master).path("stat", ptmx)?;
    let real = (nix::sys::stat::major(metadata.st_rdev), nix::sys::stat::minor(metadata.st_rdev)) == PTMX
        && fstatfs(&master).path("statfs", ptmx)?.filesystem_type().0 as i64 == DEVPTS_SUPER_MAGIC;
    if !real {
        return Err(Error::invalid("/dev/pts/ptmx of the container is not a devpts terminal multiplexer"));
    }
    let slave = sys::pty_peer(&master).op(|| "open the terminal's other end")?;
    let number = sys::pty_number(&master).op(|| "ask for the terminal's number")?;
    Ok((master, slave, format!("/dev/pts/{number}")))
}

/// Binds the slave over /dev/console, from descriptor to descriptor.
pub(crate) fn bind_console(root: &OwnedFd, slave: &OwnedFd) -> Result<()> {
    let what = || "bind the terminal on /dev/console";
    let tree = sys::clone_tree(slave.as_raw_fd(), c"", false).op(what)?;
    let target = beneath::target(root, Path::new("/dev/console"), Kind::File).op(what)?;
    sys::move_mount(tree.as_fd(), target.as_fd()).op(what)
}

/// Makes the slave this session's terminal, with its size and owner, and the standard streams.
pub(crate) fn take(slave: &OwnedFd, size: Option<&ConsoleSize>, uid: u32) -> Result<()> {
    if let Some(size) = size.filter(|s| s.width > 0 && s.height > 0) {
        let (rows, columns) = (size.height.min(u16::MAX as u64) as u16, size.width.min(u16::MAX as u64) as u16);
        sys::set_window_size(slave.as_fd(), rows, columns).op(|| "set the terminal's size")?;
    }
    nix::unistd::fchown(slave, Some(nix::unistd::Uid::from_raw(uid)), None).op(|| "give the terminal to the user")?;
    for fd in 0..3 {
        sys::dup_to(slave.as_raw_fd(), fd, false).op(|| "make the terminal the standard streams")?;
    }
    sys::set_controlling_terminal(sys::borrow(0)).op(|| "take the terminal as controlling terminal")
}
