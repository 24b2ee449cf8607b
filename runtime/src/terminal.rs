//! What a foreground process does with terminals, for this crate's and the supervisor's command lines.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::sys;

/// More descriptors than a message has room for, the kernel closes itself.
const MAX_DESCRIPTORS: usize = 4;

/// Receives the terminal's master, as the container's process sends it over the console socket: one descriptor, and a
/// terminal. Whatever else comes is closed.
pub fn receive_master(socket: &impl AsFd) -> io::Result<OwnedFd> {
    let mut name = [0u8; 256];
    let mut slices = [io::IoSliceMut::new(&mut name)];
    let mut space = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    // Adopted first of all, so that each is closed whatever comes next.
    let mut received = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            received.extend(fds.into_iter().map(sys::adopt));
        }
    }
    match received.pop() {
        Some(master) if received.is_empty() && sys::pty_number(&master).is_ok() => Ok(master),
        Some(_) => Err(io::Error::other("the console socket carried something else than one terminal")),
        None => Err(io::Error::other("the console socket carried no terminal")),
    }
}

/// The other end of a terminal. While somebody holds it the master gives no end of file, so that a program may close its
/// terminal and open it again.
pub fn other_end(master: &OwnedFd) -> io::Result<OwnedFd> {
    sys::pty_peer(master)
}

/// A terminal's size: rows, columns.
pub fn size(terminal: &impl AsFd) -> io::Result<(u16, u16)> {
    sys::window_size(terminal.as_fd())
}

/// Sets a terminal's size.
pub fn resize(terminal: &impl AsFd, rows: u16, columns: u16) -> io::Result<()> {
    sys::set_window_size(terminal.as_fd(), rows, columns)
}

/// Sends any signal, real-time ones included, to a child that was not reaped yet.
pub fn signal(child: i32, number: i32) -> io::Result<()> {
    sys::kill(child, number)
}

/// Reaps a child that has ended, of any kind: its pid, and its exit code or 128 + N when signal N ended it. `None` when
/// none has ended.
pub fn reap() -> Option<(i32, i32)> {
    // No children are no ended child.
    let (pid, status) = sys::reap().ok().flatten()?;
    let code = if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
    Some((pid, code))
}

/// Stops this process (with `group`, its process group) by a signal of job control, which the caller keeps blocked, as
/// well as SIGCONT. Returns when it is continued; false if it was not stopped, for no shell is there to continue it.
pub fn stop(signal: Signal, group: bool) -> io::Result<bool> {
    let target = if group { 0 } else { std::process::id() as i32 };
    let one = SigSet::from(signal);
    sys::kill(target, signal as i32)?;
    // Stops here.
    sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&one), None)?;
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&one), None)?;
    Ok(sys::is_pending(libc::SIGCONT))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixStream;

    use nix::sys::socket::{ControlMessage, sendmsg};

    use super::*;

    /// What is received of these descriptors.
    fn receive(files: &[&File]) -> io::Result<OwnedFd> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let fds: Vec<RawFd> = files.iter().map(|file| file.as_raw_fd()).collect();
        let control = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &control };
        let flags = MsgFlags::empty();
        sendmsg::<()>(theirs.as_raw_fd(), &[io::IoSlice::new(b"x")], control, flags, None).unwrap();
        receive_master(&ours)
    }

    #[test]
    fn one_terminal_is_taken_and_nothing_else() {
        let terminal = || File::options().read(true).write(true).open("/dev/ptmx").unwrap();
        receive(&[&terminal()]).unwrap();
        let null = File::open("/dev/null").unwrap();
        for wrong in [&[][..], &[&null], &[&null, &terminal()], &[&terminal(), &terminal()], &[&null; 9]] {
            assert!(receive(wrong).is_err(), "{} descriptors", wrong.len());
        }
    }
}
