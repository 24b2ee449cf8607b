//! The foreground: this terminal joined with the container's, signals passed on, the exit code awaited.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use coracle_runtime::terminal as pty;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What is copied at once between the two terminals.
const BUFFER: usize = 16 << 10;

/// A process to wait for, or not.
pub struct Session {
    signals: Option<SignalFd>,
    console: Option<OwnedFd>,
}

/// Restores the terminal's mode when the session ends, however it ends.
struct RawMode(Termios);

impl RawMode {
    fn enter() -> Option<RawMode> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).ok()?;
        Some(RawMode(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no mode.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

impl Session {
    /// Nobody waits.
    pub fn detached() -> Session {
        Session { signals: None, console: None }
    }

    /// Waits in the foreground. Signals are blocked from here on, so that none is lost while the container is made.
    /// The second value is the socket that the container's process sends its terminal to.
    pub fn foreground(terminal: bool) -> Result<(Session, Option<OwnedFd>)> {
        let mut all = SigSet::all();
        // What a fault of our own raises must not be swallowed.
        for fault in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGABRT, Signal::SIGTRAP]
        {
            all.remove(fault);
        }
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&all), None).context("block signals")?;
        let signals = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("signalfd")?;
        if !terminal {
            return Ok((Session { signals: Some(signals), console: None }, None));
        }
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
            .context("make a socket pair for the terminal")?;
        Ok((Session { signals: Some(signals), console: Some(ours) }, Some(theirs)))
    }

    /// Waits for the process; its exit code, 128 + N when signal N ended it. 0 at once when detached.
    pub fn wait(self, pid: i32) -> Result<i32> {
        let Some(signals) = self.signals else { return Ok(0) };
        let Some(console) = self.console else { return wait_without_terminal(&signals, pid) };
        let master = pty::receive_master(&console).context("receive the container's terminal")?;
        copy_size(&master);
        // Without a terminal of our own (a pipe as stdin) there is no mode to change.
        let _raw = RawMode::enter();
        wait_with_terminal(&signals, &master, pid)
    }
}

fn copy_size(master: &OwnedFd) {
    if let Ok((rows, columns)) = pty::size(&io::stdin()) {
        // A container that closed its terminal has no size.
        let _ = pty::resize(master, rows, columns);
    }
}

fn wait_without_terminal(signals: &SignalFd, pid: i32) -> Result<i32> {
    loop {
        wait_readable(&[signals.as_fd()])?;
        if let Some(code) = handle_signals(signals, pid, None)? {
            return Ok(code);
        }
    }
}

fn wait_readable(fds: &[BorrowedFd<'_>]) -> Result<Vec<bool>> {
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    match poll(&mut polled, PollTimeout::NONE) {
        Ok(_) => Ok(polled.iter().map(|p| p.any().unwrap_or(false)).collect()),
        Err(Errno::EINTR) => Ok(vec![false; fds.len()]),
        Err(e) => Err(e).context("poll"),
    }
}

/// Passes signals on, resizes, reaps; the exit code once the process has ended.
fn handle_signals(signals: &SignalFd, pid: i32, master: Option<&OwnedFd>) -> Result<Option<i32>> {
    while let Some(info) = signals.read_signal().context("read signals")? {
        let number = info.ssi_signo as i32;
        match Signal::try_from(number) {
            Ok(Signal::SIGCHLD) => {
                if let Some(code) = reap(pid) {
                    return Ok(Some(code));
                }
            }
            Ok(Signal::SIGWINCH) => master.into_iter().for_each(copy_size),
            // The runtime of the language and the kernel use these among threads and timers, not for the container.
            Ok(Signal::SIGURG) => {}
            Ok(signal) => {
                // A process that has just ended needs no signal; its SIGCHLD follows.
                let _ = kill(Pid::from_raw(pid), signal);
            }
            Err(_) => {}
        }
    }
    Ok(None)
}

/// Reaps all that ended (orphans of the container too, as their subreaper).
fn reap(pid: i32) -> Option<i32> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(who, code)) if who.as_raw() == pid => return Some(code),
            Ok(WaitStatus::Signaled(who, signal, _)) if who.as_raw() == pid => return Some(128 + signal as i32),
            Ok(WaitStatus::StillAlive) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

fn wait_with_terminal(signals: &SignalFd, master: &OwnedFd, pid: i32) -> Result<i32> {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let mut input_open = true;
    loop {
        let mut fds = vec![signals.as_fd(), master.as_fd()];
        if input_open {
            fds.push(stdin.as_fd());
        }
        let ready = wait_readable(&fds)?;
        // Output before the news of the end, so that none is lost.
        if ready[1] && !copy(master.as_fd(), stdout.as_fd())? {
            // All slaves are closed; the process may live on without its terminal.
            return wait_without_terminal(signals, pid);
        }
        if ready.get(2) == Some(&true) && !copy(stdin.as_fd(), master.as_fd())? {
            input_open = false;
            // End of input is a character to a terminal.
            let _ = nix::unistd::write(master, b"\x04");
        }
        if let Some(code) = handle_signals(signals, pid, Some(master))? {
            drain(master, stdout.as_fd())?;
            return Ok(code);
        }
    }
}

/// Copies what there is; false at the end.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<bool> {
    let mut buffer = [0u8; BUFFER];
    let n = match nix::unistd::read(from, &mut buffer) {
        Ok(n) => n,
        // How a pty master says that its other end is closed.
        Err(Errno::EIO) => 0,
        Err(Errno::EINTR | Errno::EAGAIN) => return Ok(true),
        Err(e) => return Err(e).context("read from the terminal"),
    };
    let mut rest = &buffer[..n];
    while !rest.is_empty() {
        match nix::unistd::write(to, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::EINTR) => {}
            // A reader that went away (`run ... | head`) must not end the container.
            Err(Errno::EPIPE | Errno::EIO) => break,
            Err(e) => return Err(e).context("write to the terminal"),
        }
    }
    Ok(n > 0)
}

/// What the process wrote just before its end.
fn drain(master: &OwnedFd, stdout: BorrowedFd<'_>) -> Result<()> {
    loop {
        let mut polled = [PollFd::new(master.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, PollTimeout::ZERO) {
            Ok(0) => return Ok(()),
            Ok(_) => {
                if !copy(master.as_fd(), stdout)? {
                    return Ok(());
                }
            }
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e).context("poll"),
        }
    }
}
