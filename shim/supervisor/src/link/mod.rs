//! The link's two processes: they make the sockets of the guest's supervisor appear on the machine, as streams over the
//! one virtio-serial port ([`coracle_proto::link`] is the protocol).
//!
//! ```text
//!  machine                                                      guest
//!  vm/task.sock    --\                                          /--> supervisor.sock
//!  vm/attach.sock  ---+-- host -- agent.sock -- QEMU -- port -- guest --> attach.sock
//!  vm/dial.sock    --/                                          \--> 127.0.0.1, ::1
//! ```
//! - [`host`]: accepts clients, opens a stream for each, begins sessions;
//! - [`guest`]: connects each stream to what it asks for;
//! - [`filter`]: the system calls that are left to `host`;
//! - this file: what both do with a stream's socket.
//!
//! Each is one thread around poll(2). A socket is read only when its stream may send, and what comes for it waits in the
//! link's window: so a slow end slows its own stream and nothing else. A socket of which nothing is wanted is left out
//! of the poll, which would report its hang-up for ever; once its input has ended, only its hang-up is waited for.
//!
//! | the socket | the stream |
//! |---|---|
//! | ends its input | `eof`; the other way goes on |
//! | takes no more | is read on, what comes for it is dropped; closed at the end of its input |
//! | is closed, or fails | `close` |
//!
//! What a session's end cuts off is closed; a TCP connection is reset, so that nobody takes the cut for an end.

mod filter;
pub mod guest;
pub mod host;
#[cfg(test)]
mod tests;

pub use host::{Listeners, start_host};

use crate::buffer::would_block;
use coracle_proto::link::{Event, Link};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::SigSet;
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Read at once.
const CHUNK: usize = 16 << 10;
/// Reads of the port before the sockets have their turn; a guest's gives a page at most.
const PORT_READS: usize = 16;
/// What `ps` shows.
const COMM: &std::ffi::CStr = c"coracle-link";
/// A hang-up, in its forms.
const GONE: PollFlags = PollFlags::POLLHUP.union(PollFlags::POLLERR).union(PollFlags::POLLNVAL);

/// Who is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Port,
    /// By its place in the list of them.
    Listener(usize),
    /// A client that has not said what it wants, by its place.
    Caller(usize),
    /// A stream whose socket is being connected.
    Dialing(u32),
    Stream(u32),
}

/// One descriptor to wait for.
type Watched<'a> = (Key, BorrowedFd<'a>, PollFlags);

/// Sleeps until one of them is ready, or it is time.
fn wait(watched: &[Watched<'_>], until: Option<Instant>) -> io::Result<Vec<(Key, PollFlags)>> {
    let mut fds: Vec<PollFd> = watched.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
    // A millisecond more, so that it is time when it wakes.
    let left = until.map(|until| until.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
    let timeout = left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
    match poll(&mut fds, timeout) {
        Err(Errno::EINTR) => return Ok(Vec::new()),
        other => other?,
    };
    let flags = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::POLLERR));
    Ok(watched.iter().zip(flags).filter(|(_, flags)| !flags.is_empty()).map(|(one, flags)| (one.0, flags)).collect())
}

/// The socket of a stream.
struct Local {
    file: File,
    tcp: bool,
    /// A client of the dial socket that was not told yet whether its port answers.
    unanswered: bool,
    read_ended: bool,
    /// It takes no more: what comes for it is nobody's.
    deaf: bool,
    /// It was told that no more comes.
    shut: bool,
}

/// One end: the link, the port and the sockets of the streams.
struct End {
    link: Link,
    locals: BTreeMap<u32, Local>,
    chunk: Vec<u8>,
    /// The stream that was read last: the others come first now.
    turn: u32,
}

impl End {
    fn new(link: Link) -> End {
        End { link, locals: BTreeMap::new(), chunk: vec![0; CHUNK], turn: 0 }
    }

    /// Reads what the port has, a bounded part at a time, and hands each event to `each`. Returns false if the other side
    /// has left.
    fn read_port(&mut self, port: &mut File, mut each: impl FnMut(&mut End, Event)) -> io::Result<bool> {
        let mut chunk = std::mem::take(&mut self.chunk);
        let mut done = Ok(true);
        for _ in 0..PORT_READS {
            match port.read(&mut chunk) {
                Ok(0) => done = Ok(false),
                Ok(count) => {
                    let mut bytes = &chunk[..count];
                    while let Some(event) = self.link.receive(&mut bytes) {
                        each(self, event);
                    }
                    continue;
                }
                Err(error) if would_block(&error) => {}
                Err(error) => done = Err(error),
            }
            break;
        }
        self.chunk = chunk;
        done
    }

    /// Writes to the port what it takes.
    fn write_port(&mut self, port: &mut File) -> io::Result<()> {
        while !self.link.output().is_empty() {
            match port.write(self.link.output()) {
                // A virtio port whose queue was full after all.
                Ok(0) => break,
                Ok(count) => self.link.sent(count),
                Err(error) if would_block(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What to wait for at the port.
    fn port_flags(&self) -> PollFlags {
        let mut flags = PollFlags::POLLIN;
        flags.set(PollFlags::POLLOUT, !self.link.output().is_empty());
        flags
    }

    /// Adds the sockets that something is wanted of.
    fn watch<'a>(&'a self, watched: &mut Vec<Watched<'a>>) {
        for (id, local) in &self.locals {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, !local.read_ended && self.link.room(*id) > 0);
            flags.set(PollFlags::POLLOUT, !self.link.waiting(*id).is_empty());
            if local.read_ended || !flags.is_empty() {
                watched.push((Key::Stream(*id), local.file.as_fd(), flags));
            }
        }
    }

    /// Serves the sockets that are ready, each once.
    fn serve(&mut self, ready: &[(Key, PollFlags)]) {
        let mut streams: Vec<(u32, PollFlags)> = ready.iter().filter_map(|(key, flags)| key.stream(*flags)).collect();
        let next = streams.partition_point(|(id, _)| *id <= self.turn);
        streams.rotate_left(next);
        for (id, flags) in streams {
            if flags.intersects(PollFlags::POLLIN | GONE) {
                self.fetch(id);
            }
            if flags.intersects(PollFlags::POLLOUT | GONE) {
                self.pass_on(id);
            }
            // Nobody is there: what is still to come has no reader.
            let gone = self.locals.get(&id).is_some_and(|local| local.read_ended && flags.intersects(GONE));
            if gone && self.link.waiting(id).is_empty() {
                self.drop_stream(id);
            }
        }
    }

    /// A stream has its socket.
    fn add(&mut self, id: u32, socket: OwnedFd, tcp: bool) {
        let file = File::from(socket);
        self.locals.insert(id, Local { file, tcp, unanswered: false, read_ended: false, deaf: false, shut: false });
    }

    /// From the socket to the link.
    fn fetch(&mut self, id: u32) {
        let room = self.link.room(id).min(self.chunk.len());
        let Some(local) = self.locals.get_mut(&id).filter(|local| !local.read_ended && room > 0) else { return };
        match local.file.read(&mut self.chunk[..room]) {
            Ok(0) => {
                local.read_ended = true;
                self.link.end(id);
                self.settle(id);
            }
            Ok(count) => {
                self.link.send(id, &self.chunk[..count]);
                self.turn = id;
            }
            Err(error) if would_block(&error) => {}
            Err(_) => self.drop_stream(id),
        }
    }

    /// From the link to the socket.
    fn pass_on(&mut self, id: u32) {
        let Some(local) = self.locals.get_mut(&id) else { return };
        while let bytes @ [_, ..] = self.link.waiting(id) {
            let count = match local.deaf {
                true => Ok(bytes.len()),
                false => local.file.write(bytes),
            };
            match count {
                Ok(count) => self.link.passed_on(id, count),
                Err(error) if would_block(&error) => return,
                Err(_) => local.deaf = true,
            }
        }
        if self.link.peer_ended(id) && !local.shut {
            local.shut = true;
            // One that has left is seen by its hang-up.
            let _ = shutdown(local.file.as_raw_fd(), Shutdown::Write);
        }
        self.settle(id);
    }

    /// Lets go of a stream of which nothing more is to come or to go.
    fn settle(&mut self, id: u32) {
        let Some(local) = self.locals.get(&id) else { return };
        let over =
            self.link.peer_closed(id) || (local.read_ended && (local.deaf || (local.shut && self.link.peer_ended(id))));
        if over && self.link.waiting(id).is_empty() {
            self.drop_stream(id);
        }
    }

    fn drop_stream(&mut self, id: u32) {
        if let Some(local) = self.locals.remove(&id) {
            local.close();
        }
        self.link.close(id);
    }
}

impl Local {
    /// A connection that was not ended in order is reset.
    fn close(self) {
        if self.tcp && !self.shut {
            let now = libc::linger { l_onoff: 1, l_linger: 0 };
            // It is closed anyway.
            let _ = setsockopt(&self.file, sockopt::Linger, &now);
        }
    }
}

impl Key {
    fn stream(self, flags: PollFlags) -> Option<(u32, PollFlags)> {
        match self {
            Key::Stream(id) => Some((id, flags)),
            _ => None,
        }
    }
}

/// What both processes begin with: a name, signals as any program has them, and room for every stream's socket.
fn become_link() -> io::Result<()> {
    nix::sys::prctl::set_name(COMM)?;
    crate::sys::ignore_broken_pipes();
    SigSet::all().thread_unblock()?;
    raise_limit()
}

fn raise_limit() -> io::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}
