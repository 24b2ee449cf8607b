//! The one place where the supervisor sleeps: an epoll set whose entries are named by [`Token`]s.
//!
//! Level triggered. A descriptor that must not be heard (its consumer is slow) is taken out of the set rather than
//! given an empty mask, because epoll reports a hang-up whatever the mask says and the loop would spin.

use crate::sys;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

/// Events taken from the kernel at once.
const BATCH: usize = 16;

/// Who is ready. The number is a key of the [`Table`] that belongs to the kind; keys are never used twice, so an event
/// of a closed descriptor finds nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// The task socket has a client.
    Listener,
    /// The attach socket has a client.
    AttachListener,
    /// A signal arrived.
    Signal,
    /// A task client.
    Connection(u32),
    /// An attach client.
    Attach(u32),
    /// A process' standard output, or its terminal.
    Stdout(u32),
    /// A process' error output.
    Stderr(u32),
    /// A process' input takes more.
    Stdin(u32),
    /// A worker reports.
    Worker(u32),
    /// containerd's socket for events.
    Events,
    /// A terminal's user has typed.
    RelayIn(u32),
    /// Who shows a terminal takes more.
    RelayOut(u32),
    /// A container's memory ran out.
    Memory(u32),
    /// The way to a process in a virtual machine.
    Pump(u32),
    /// Somebody has input for it.
    PumpIn(u32),
    /// Who reads its output takes more.
    PumpOut(u32),
    /// Who reads its error output takes more.
    PumpErr(u32),
    /// A volume that was sent to the virtual machine has changed.
    Volumes,
}

impl Token {
    fn pack(self) -> u64 {
        let (kind, key) = match self {
            Token::Listener => (0u64, 0),
            Token::AttachListener => (1, 0),
            Token::Signal => (2, 0),
            Token::Connection(key) => (3, key),
            Token::Attach(key) => (4, key),
            Token::Stdout(key) => (5, key),
            Token::Stderr(key) => (6, key),
            Token::Stdin(key) => (7, key),
            Token::Worker(key) => (8, key),
            Token::Events => (9, 0),
            Token::RelayIn(key) => (10, key),
            Token::RelayOut(key) => (11, key),
            Token::Memory(key) => (12, key),
            Token::Pump(key) => (13, key),
            Token::PumpIn(key) => (14, key),
            Token::PumpOut(key) => (15, key),
            Token::PumpErr(key) => (16, key),
            Token::Volumes => (17, 0),
        };
        kind << 32 | u64::from(key)
    }

    fn unpack(data: u64) -> Self {
        let key = data as u32;
        match data >> 32 {
            0 => Token::Listener,
            1 => Token::AttachListener,
            2 => Token::Signal,
            3 => Token::Connection(key),
            4 => Token::Attach(key),
            5 => Token::Stdout(key),
            6 => Token::Stderr(key),
            7 => Token::Stdin(key),
            8 => Token::Worker(key),
            9 => Token::Events,
            10 => Token::RelayIn(key),
            11 => Token::RelayOut(key),
            12 => Token::Memory(key),
            13 => Token::Pump(key),
            14 => Token::PumpIn(key),
            15 => Token::PumpOut(key),
            16 => Token::PumpErr(key),
            _ => Token::Volumes,
        }
    }
}

/// What is to be heard of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Interest {
    /// Wake when it can be read.
    pub read: bool,
    /// Wake when it can be written.
    pub write: bool,
    /// Wake when the other end has gone, although nothing is read.
    pub gone: bool,
}

impl Interest {
    /// Nothing at all.
    pub const NONE: Interest = Interest { read: false, write: false, gone: false };
    /// Reading alone.
    pub const READ: Interest = Interest { read: true, write: false, gone: false };
    /// Writing alone.
    pub const WRITE: Interest = Interest { read: false, write: true, gone: false };

    fn flags(self) -> EpollFlags {
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, self.read);
        flags.set(EpollFlags::EPOLLOUT, self.write);
        flags.set(EpollFlags::EPOLLRDHUP, self.gone);
        flags
    }
}

/// What the kernel said of one descriptor. A hang-up or an error counts as both: the next read or write tells.
#[derive(Debug, Clone, Copy)]
pub struct Ready {
    /// Who.
    pub token: Token,
    /// It can be read, or has hung up.
    pub read: bool,
    /// It can be written, or has hung up.
    pub write: bool,
}

/// The epoll set.
pub struct Reactor {
    epoll: Epoll,
}

impl Reactor {
    /// An empty set.
    pub fn new() -> io::Result<Self> {
        Ok(Reactor { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)? })
    }

    /// Hears for ever when `fd` can be read.
    pub fn watch_for_ever(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        let mut interest = Interest::NONE;
        self.watch(fd, token, &mut interest, Interest::READ)
    }

    /// Changes what is heard of `fd` from `current` to `wanted`, and notes it.
    pub fn watch(&self, fd: impl AsFd, token: Token, current: &mut Interest, wanted: Interest) -> io::Result<()> {
        if *current == wanted {
            return Ok(());
        }
        let mut event = EpollEvent::new(wanted.flags(), token.pack());
        if wanted == Interest::NONE {
            self.epoll.delete(fd)?;
        } else if *current == Interest::NONE {
            self.epoll.add(fd, event)?;
        } else {
            self.epoll.modify(fd, &mut event)?;
        }
        *current = wanted;
        Ok(())
    }

    /// Sleeps until something is ready or the time is up, and appends what is ready to `ready`.
    pub fn wait(&self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); BATCH];
        let count = self.epoll.wait(&mut events, time_limit(timeout)).map_err(io::Error::from);
        take(&events, count, ready)
    }

    /// As [`wait`](Self::wait), and meanwhile the program's code does not count as this process' memory.
    pub fn rest(&self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); BATCH];
        let count = sys::rest(&self.epoll.0, &mut events, time_limit(timeout).into());
        take(&events, count, ready)
    }
}

/// Rounded up: a timer must have expired when its wait returns.
fn time_limit(timeout: Option<Duration>) -> EpollTimeout {
    match timeout {
        None => EpollTimeout::NONE,
        Some(time) => EpollTimeout::try_from(time + Duration::from_micros(999)).unwrap_or(EpollTimeout::MAX),
    }
}

/// Appends what a wait has brought. A signal has brought nothing.
fn take(events: &[EpollEvent], count: io::Result<usize>, ready: &mut Vec<Ready>) -> io::Result<()> {
    let count = match count {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
        count => count?,
    };
    ready.extend(events[..count].iter().map(|event| {
        let flags = event.events();
        let gone = flags.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLERR);
        Ready {
            token: Token::unpack(event.data()),
            read: gone || flags.contains(EpollFlags::EPOLLIN),
            write: gone || flags.contains(EpollFlags::EPOLLOUT),
        }
    }));
    Ok(())
}

/// Things by key. Keys count up and never come again, so a stale key finds nothing; the few entries are in order.
#[derive(Debug)]
pub struct Table<T> {
    next: u32,
    items: Vec<(u32, T)>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table { next: 0, items: Vec::new() }
    }
}

impl<T> Table<T> {
    /// Adds an entry under a new key.
    pub fn insert(&mut self, item: T) -> u32 {
        self.next += 1;
        self.items.push((self.next, item));
        self.next
    }

    /// The key that the next insert will give.
    pub fn next_key(&self) -> u32 {
        self.next + 1
    }

    fn position(&self, key: u32) -> Option<usize> {
        self.items.binary_search_by_key(&key, |(key, _)| *key).ok()
    }

    /// The entry of a key.
    pub fn get(&self, key: u32) -> Option<&T> {
        self.position(key).map(|at| &self.items[at].1)
    }

    /// The entry of a key.
    pub fn get_mut(&mut self, key: u32) -> Option<&mut T> {
        self.position(key).map(|at| &mut self.items[at].1)
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: u32) -> Option<T> {
        let item = self.position(key).map(|at| self.items.remove(at).1);
        if self.items.is_empty() {
            self.items = Vec::new();
        }
        item
    }

    /// All entries with their keys.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.items.iter().map(|(key, item)| (*key, item))
    }

    /// All keys.
    pub fn keys(&self) -> Vec<u32> {
        self.items.iter().map(|(key, _)| *key).collect()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_kernel() {
        for token in [
            Token::Listener,
            Token::Connection(7),
            Token::Stdin(u32::MAX),
            Token::Worker(1),
            Token::Events,
            Token::RelayOut(2),
            Token::PumpErr(3),
            Token::Volumes,
        ] {
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }

    #[test]
    fn a_key_is_never_used_twice() {
        let mut table = Table::default();
        let first = table.insert('a');
        assert_eq!(table.remove(first), Some('a'));
        let second = table.insert('b');
        assert_eq!((table.get(first), table.get(second)), (None, Some(&'b')));
    }

    #[test]
    fn a_hung_up_descriptor_taken_out_of_the_set_does_not_wake_the_loop() {
        let reactor = Reactor::new().unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut interest = Interest::NONE;
        reactor.watch(&reader, Token::Stdout(1), &mut interest, Interest::READ).unwrap();
        drop(writer);
        let mut ready = Vec::new();
        reactor.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert!(ready[0].read && ready[0].token == Token::Stdout(1));
        reactor.watch(&reader, Token::Stdout(1), &mut interest, Interest::NONE).unwrap();
        ready.clear();
        reactor.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert!(ready.is_empty());
    }
}
