//! The foreground: this terminal joined with the container's, signals passed on, the exit code awaited.
//!
//! All signals are blocked and read from a signalfd, so that none is lost while the container is made, and there is one
//! poll for everything. With a terminal (`process.terminal`, `exec --tty`):
//!
//! ```text
//! our stdin (raw) ---> master of the container's pty ---> our stdout
//! ```
//! Without one the container's process has our own streams, but for those that are a terminal: it gets pipes instead,
//! and never the host's terminal, through which it could type for the user.
//!
//! Job control is that of any program which reads its terminal. In the background it stops (SIGTTIN); a SIGTSTP is passed
//! on, gives the terminal its mode back and stops us; when continued in the foreground the mode is made raw again and the
//! size is copied. The container goes on meanwhile. Without a terminal of its own a container runs in the background as
//! well, and its input waits until the job is in the foreground again.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use coracle_runtime::{Stdio, terminal as pty};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{isatty, pipe2};

use super::flow::{self, Flow};
use super::log;
use super::notify::Notify;

/// How often a background job looks whether it may read its terminal again: nothing tells it.
const BACKGROUND_LOOK_MS: u16 = 200;
/// What is passed on of the output after the process has ended: more than any pipe or terminal holds, so that somebody
/// it left behind cannot keep us.
const MAX_REST: usize = 4 << 20;
/// Signals that end a wait for a slow reader of the last output.
const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// A process to wait for, or not.
#[derive(Default)]
pub struct Session {
    signals: Option<SignalFd>,
    /// Gets the master.
    console: Option<OwnedFd>,
    master: Option<OwnedFd>,
    /// Held so that the container may close its terminal and open it again.
    _other_end: Option<OwnedFd>,
    input: Option<Flow>,
    outputs: Vec<Flow>,
    raw: Option<RawMode>,
    /// Told when the program is ready.
    pub notify: Option<Notify>,
}

/// What a process of a session is made with.
#[derive(Default)]
pub struct Given {
    /// Where it sends its terminal.
    pub console: Option<OwnedFd>,
    /// Its streams.
    pub stdio: Stdio,
}

/// A terminal in raw mode. Its mode comes back when the session ends, however it ends.
struct RawMode(Termios);

impl RawMode {
    fn enter() -> Option<RawMode> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mode = RawMode(before);
        mode.again();
        Some(mode)
    }

    fn again(&self) {
        let mut raw = self.0.clone();
        cfmakeraw(&mut raw);
        // A terminal that is gone needs no mode.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &raw);
    }

    fn leave(&self) {
        // In the background it is somebody else's, who has set it.
        if in_foreground() {
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
        }
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Whether this process may use its terminal. A terminal that is not its controlling one knows no job control.
fn in_foreground() -> bool {
    nix::unistd::tcgetpgrp(io::stdin()).map_or(true, |group| group == nix::unistd::getpgrp())
}

/// Stops until this process is in the foreground, as one that reads its terminal does.
fn await_foreground() -> Result<()> {
    while !in_foreground() {
        // Without a shell that could continue it nothing stops it, and there is nothing to wait for.
        if !pty::stop(Signal::SIGTTIN, true).context("stop in the background")? {
            break;
        }
    }
    Ok(())
}

fn is_terminal(stream: &impl AsFd) -> bool {
    isatty(stream).unwrap_or(false)
}

impl Session {
    /// Nothing to wait for.
    pub fn detached() -> Session {
        Session::default()
    }

    /// Waits in the foreground.
    pub fn foreground(terminal: bool) -> Result<(Session, Given)> {
        let mut all = SigSet::all();
        // What a fault of our own raises must not be swallowed.
        for fault in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGABRT, Signal::SIGTRAP]
        {
            all.remove(fault);
        }
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&all), None).context("block signals")?;
        let signals = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("signalfd")?;
        let mut session = Session { signals: Some(signals), ..Session::default() };
        let mut given = Given::default();
        if terminal {
            if is_terminal(&io::stdin()) {
                // Before anything exists.
                await_foreground()?;
            }
            let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
                .context("make a socket pair for the terminal")?;
            session.console = Some(ours);
            given.console = Some(theirs);
        } else {
            given.stdio = session.pipes().context("make pipes for the standard streams")?;
        }
        Ok((session, given))
    }

    /// Pipes in the place of terminals.
    fn pipes(&mut self) -> nix::Result<Stdio> {
        let mut stdio = Stdio::default();
        let pipe = || pipe2(OFlag::O_CLOEXEC);
        if is_terminal(&io::stdin()) {
            let (read, write) = pipe()?;
            flow::set_nonblocking(&write)?;
            self.input = Some(Flow::new(flow::own(io::stdin().as_fd(), OFlag::O_RDONLY)?, write));
            stdio.stdin = Some(read);
        }
        let (stdout, stderr) = (io::stdout(), io::stderr());
        for (stream, place) in [(stdout.as_fd(), &mut stdio.stdout), (stderr.as_fd(), &mut stdio.stderr)] {
            if is_terminal(&stream) {
                let (read, write) = pipe()?;
                flow::set_nonblocking(&read)?;
                self.outputs.push(Flow::new(read, flow::own(stream, OFlag::O_WRONLY)?));
                *place = Some(write);
            }
        }
        Ok(stdio)
    }

    /// Takes the terminal that the process has sent. Best before its program runs, which may ask for the size.
    pub fn attach(&mut self) -> Result<()> {
        let Some(console) = self.console.take() else { return Ok(()) };
        let master = pty::receive_master(&console).context("receive the container's terminal")?;
        let copy = || master.try_clone().context("copy a descriptor");
        flow::set_nonblocking(&master).context("prepare the container's terminal")?;
        self._other_end = pty::other_end(&master).ok();
        let input = flow::own(io::stdin().as_fd(), OFlag::O_RDONLY).context("open stdin again")?;
        let output = flow::own(io::stdout().as_fd(), OFlag::O_WRONLY).context("open stdout again")?;
        self.input = Some(Flow::into_terminal(input, copy()?, copy()?));
        self.outputs = vec![Flow::new(copy()?, output)];
        self.master = Some(master);
        self.copy_size();
        Ok(())
    }

    /// Waits for the process; its exit code, 128 + N when signal N ended it. 0 at once when detached.
    pub fn wait(mut self, pid: i32) -> Result<i32> {
        let Some(signals) = self.signals.take() else { return Ok(0) };
        self.attach()?;
        if self.master.is_some() && is_terminal(&io::stdin()) {
            await_foreground()?;
            self.raw = in_foreground().then(RawMode::enter).flatten();
        }
        loop {
            self.wait_and_move(&signals)?;
            if let Some(code) = self.handle_signals(&signals, pid)? {
                log::debug(|| format!("process {pid} exited with {code}"));
                self.rest(&signals)?;
                return Ok(code);
            }
        }
    }

    /// One poll, and what it allows.
    fn wait_and_move(&mut self, signals: &SignalFd) -> Result<()> {
        // With raw mode a background process stops; without, its input waits.
        let suspended = self.raw.is_none() && self.reads_terminal() && !in_foreground();
        let timeout = if suspended { PollTimeout::from(BACKGROUND_LOOK_MS) } else { PollTimeout::NONE };
        let flows = || self.input.iter().filter(|_| !suspended).chain(&self.outputs);
        let mut polled = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        polled.extend(flows().filter_map(Flow::wants));
        let flows = polled.len();
        polled.extend(self.notify.iter().filter_map(Notify::fd).map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        match poll(&mut polled, timeout) {
            Err(Errno::EINTR) => return Ok(()),
            result => result.context("poll")?,
        };
        let notified = polled[flows..].iter().any(|p| p.any().unwrap_or(false));
        let mut ready = polled[1..flows].iter().map(|p| p.any().unwrap_or(false)).collect::<Vec<_>>().into_iter();
        let mut is_ready = |flow: &Flow| flow.wants().is_some() && ready.next().unwrap_or(false);
        if let Some(input) = self.input.as_mut().filter(|_| !suspended)
            && is_ready(input)
        {
            match input.step() {
                Err(Errno::EIO) if self.raw.is_some() && !in_foreground() => self.regain()?,
                Err(Errno::EIO) if !in_foreground() => {}
                // A terminal that is gone.
                Err(Errno::EIO) => input.end(),
                result => drop(result.context("pass on the input")?),
            }
        }
        for output in &mut self.outputs {
            if is_ready(output) {
                match output.step() {
                    Err(Errno::EIO) => output.end(),
                    result => drop(result.context("pass on the output")?),
                }
            }
        }
        if let Some(notify) = self.notify.as_mut().filter(|_| notified)
            && let Err(error) = notify.relay(std::process::id(), false)
        {
            // The container is as well without.
            log::warning(&format!("{error:#}"));
            self.notify = None;
        }
        Ok(())
    }

    fn reads_terminal(&self) -> bool {
        self.input.as_ref().is_some_and(|input| input.wants().is_some()) && is_terminal(&io::stdin())
    }

    /// Passes signals on, resizes, reaps; the exit code once the process has ended.
    fn handle_signals(&mut self, signals: &SignalFd, pid: i32) -> Result<Option<i32>> {
        while let Some(number) = next_signal(signals)? {
            match Signal::try_from(number) {
                Ok(Signal::SIGCHLD) => {
                    // Orphans of the container too, as their subreaper.
                    while let Some((ended, code)) = pty::reap() {
                        if ended == pid {
                            return Ok(Some(code));
                        }
                    }
                }
                Ok(Signal::SIGWINCH) => self.copy_size(),
                // The kernel's words to this process about its own terminal and pipes.
                Ok(Signal::SIGURG | Signal::SIGPIPE | Signal::SIGTTIN | Signal::SIGTTOU) => {}
                Ok(Signal::SIGTSTP) => {
                    pass_on(pid, number);
                    self.raw.iter().for_each(RawMode::leave);
                    pty::stop(Signal::SIGTSTP, false).context("stop")?;
                    self.regain()?;
                }
                Ok(Signal::SIGCONT) => {
                    pass_on(pid, number);
                    self.regain()?;
                }
                _ => pass_on(pid, number),
            }
        }
        Ok(None)
    }

    /// After a stop: the shell has set its own mode, and the window may have another size.
    fn regain(&mut self) -> Result<()> {
        if let Some(raw) = &self.raw {
            await_foreground()?;
            if in_foreground() {
                raw.again();
            }
        }
        self.copy_size();
        Ok(())
    }

    fn copy_size(&self) {
        let Some(master) = &self.master else { return };
        if let Some((rows, columns)) = size() {
            // A container that closed its terminal has no size.
            let _ = pty::resize(master, rows, columns);
        }
    }

    /// What the process wrote just before its end.
    fn rest(&mut self, signals: &SignalFd) -> Result<()> {
        for output in &mut self.outputs {
            let start = output.total;
            while output.total - start < MAX_REST {
                if output.is_pending() {
                    let mut polled = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
                    polled.extend(output.wants());
                    match poll(&mut polled, PollTimeout::NONE) {
                        Ok(_) | Err(Errno::EINTR) => {}
                        Err(error) => return Err(error).context("poll"),
                    }
                    let number = next_signal(signals)?;
                    if ENDING.iter().any(|signal| Some(*signal as i32) == number) {
                        return Ok(());
                    }
                }
                match output.step() {
                    Ok(true) => {}
                    Ok(false) | Err(Errno::EIO) => break,
                    Err(error) => return Err(error).context("pass on the last output"),
                }
            }
        }
        Ok(())
    }
}

/// The size of our terminal, which any of the streams may be.
pub fn size() -> Option<(u16, u16)> {
    pty::size(&io::stdin()).or_else(|_| pty::size(&io::stdout())).or_else(|_| pty::size(&io::stderr())).ok()
}

/// The number of the next signal that is there; one whose reading was interrupted is found by the next poll.
fn next_signal(signals: &SignalFd) -> Result<Option<i32>> {
    match signals.read_signal() {
        Err(Errno::EINTR) => Ok(None),
        told => Ok(told.context("read signals")?.map(|info| info.ssi_signo as i32)),
    }
}

fn pass_on(pid: i32, number: i32) {
    log::debug(|| format!("forwarding signal {number} to {pid}"));
    // A process that has just ended needs no signal; its SIGCHLD follows.
    let _ = pty::signal(pid, number);
}
