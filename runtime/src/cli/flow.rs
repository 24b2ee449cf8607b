//! Bytes from one descriptor to another, never waiting for either: what the other side does not take yet is kept, and
//! nothing more is read meanwhile. So two flows that feed each other (a paste and its echo) cannot block each other.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags};
use nix::sys::stat::{Mode, fstat};

/// What is read at once.
const BUFFER: usize = 16 << 10;

/// One direction.
pub struct Flow {
    from: Option<OwnedFd>,
    /// `None` once nobody reads there: the rest is read and dropped, for the writer must not block.
    to: Option<OwnedFd>,
    pending: Vec<u8>,
    /// How much of `pending` is written.
    written: usize,
    /// The last byte that was read.
    last: u8,
    /// For the input of a terminal: the master, whose line discipline knows the end of input as a character.
    master: Option<OwnedFd>,
    /// What passed.
    pub total: usize,
}

impl Flow {
    /// A flow. Both ends should be non-blocking, see [`own`].
    pub fn new(from: OwnedFd, to: OwnedFd) -> Flow {
        Flow { from: Some(from), to: Some(to), pending: Vec::new(), written: 0, last: b'\n', master: None, total: 0 }
    }

    /// A flow into a terminal, which is told the end of input.
    pub fn into_terminal(from: OwnedFd, to: OwnedFd, master: OwnedFd) -> Flow {
        Flow { master: Some(master), ..Flow::new(from, to) }
    }

    /// What to wait for; nothing once it is over.
    pub fn wants(&self) -> Option<PollFd<'_>> {
        match (&self.from, &self.to) {
            (_, Some(to)) if !self.pending.is_empty() => Some(PollFd::new(to.as_fd(), PollFlags::POLLOUT)),
            (Some(from), _) => Some(PollFd::new(from.as_fd(), PollFlags::POLLIN)),
            (None, _) => None,
        }
    }

    /// Whether bytes wait for a slow reader.
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Moves what can be moved. True when it was the source that had something to say, be it its end.
    pub fn step(&mut self) -> nix::Result<bool> {
        if !self.pending.is_empty() {
            self.write()?;
            return Ok(true);
        }
        let Some(from) = &self.from else { return Ok(false) };
        self.pending.resize(BUFFER, 0);
        let result = nix::unistd::read(from, &mut self.pending);
        self.pending.truncate(result.unwrap_or(0));
        match result {
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(false),
            // A terminal whose other end is closed, or that this process may not read now: the caller knows.
            Err(Errno::EIO) => return Err(Errno::EIO),
            Err(error) => return Err(error),
            Ok(0) => self.end(),
            Ok(n) => {
                self.last = self.pending[n - 1];
                self.total += n;
            }
        }
        self.write()?;
        Ok(true)
    }

    /// No more is read. What is pending is written still.
    pub fn end(&mut self) {
        self.from = None;
        if let Some(master) = self.master.take() {
            // In the middle of a line the character only sends what there is of it.
            let times = if self.last == b'\n' { 1 } else { 2 };
            let end = nix::sys::termios::tcgetattr(&master).map_or(4, |modes| modes.control_chars[libc::VEOF]);
            self.pending.extend(std::iter::repeat_n(end, times));
        } else if self.pending.is_empty() {
            // A pipe says it by being closed.
            self.to = None;
        }
    }

    fn write(&mut self) -> nix::Result<()> {
        while self.written < self.pending.len() {
            let Some(to) = &self.to else { break };
            match nix::unistd::write(to, &self.pending[self.written..]) {
                Ok(n) => self.written += n,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                // A reader that went away (`run ... | head`) must not end the container.
                Err(Errno::EPIPE | Errno::EIO) => self.to = None,
                Err(error) => return Err(error),
            }
        }
        self.pending.clear();
        self.written = 0;
        if self.from.is_none() && self.master.is_none() {
            self.to = None;
        }
        Ok(())
    }
}

/// A descriptor of this process's own for one that it shares with others: non-blocking, without making theirs so. What
/// cannot be opened again (a socket) or has a position of its own (a file) is used as it is; and so is a fifo to read
/// from, which tells no end of file to who opens it after its writer has gone.
pub fn own(fd: BorrowedFd<'_>, flags: OFlag) -> nix::Result<OwnedFd> {
    let kind = fstat(fd)?.st_mode & libc::S_IFMT;
    let fifo = kind == libc::S_IFIFO && flags == OFlag::O_WRONLY;
    if fifo || nix::unistd::isatty(fd).unwrap_or(false) {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        if let Ok(own) = open(path.as_str(), flags, Mode::empty()) {
            return Ok(own);
        }
    }
    fd.try_clone_to_owned().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
}

/// Makes a descriptor that nobody else uses non-blocking.
pub fn set_nonblocking(fd: &OwnedFd) -> nix::Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK)).map(drop)
}
