//! The machine's end: clients of the three sockets in the pod's `vm` folder become streams to the guest.
//!
//! Clients are accepted only while there is a session, so who connects to a guest that still boots waits in the
//! socket's backlog, and what it writes waits with it. The listening sockets are the supervisor's, which starts
//! another of these processes if one dies.
//!
//! A client of `dial.sock` writes `PORT\n` and reads `ok\n` or `error: WORDS\n`; then it is connected.
//!
//! The guest is hostile, so this process is nobody: a user of its own, no capabilities, no new privileges, no
//! descriptor but its sockets, and a filter of system calls ([`super::filter`]). A guest that sends nonsense loses its session and waits for the next, each time longer.

use super::{End, GONE, Key, Local, Watched, become_link, wait};
use crate::sys::{self, Fork};
use coracle_proto::link::{Event, Link, Service};
use nix::fcntl::{OFlag, open};
use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, chdir, chown, setgroups, setresgid, setresuid};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// QEMU's socket in the folder.
pub const AGENT_SOCKET: &str = "agent.sock";
/// How long QEMU may be absent: then it is dead, and its supervisor knows.
const ABSENT: Duration = Duration::from_secs(10);
/// How often it is looked for.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);
/// How long a beginning may be without an answer before another is sent, at first and at last. A guest that has just
/// been started again may have lost one that lay in its port.
const ANSWER: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));
/// How long a guest waits for its next session after nonsense, at first and at last.
const PENANCE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// A session of this length makes up for earlier nonsense.
const ATONED: Duration = Duration::from_secs(10);
/// How long no clients are accepted after that has failed: there are no descriptors, or no memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Clients of the dial socket that have not written their line.
const MAX_CALLERS: usize = 64;
/// The longest line: a port of five digits.
const MAX_LINE: usize = 6;

/// The sockets that clients connect to.
pub struct Listeners {
    /// `task.sock`.
    pub task: UnixListener,
    /// `attach.sock`.
    pub attach: UnixListener,
    /// `dial.sock`.
    pub dial: UnixListener,
}

impl Listeners {
    fn each(&self) -> [&UnixListener; 3] {
        [&self.task, &self.attach, &self.dial]
    }

    fn again(&self) -> io::Result<Listeners> {
        let [task, attach, dial] = [self.task.try_clone()?, self.attach.try_clone()?, self.dial.try_clone()?];
        Ok(Listeners { task, attach, dial })
    }
}

/// Starts the process for the pod's `vm` folder, as this user if one is named. It dies with the supervisor.
pub fn start_host(folder: &Path, listeners: &Listeners, user: Option<u32>) -> io::Result<i32> {
    // By its descriptor, since the folder is closed to that user.
    let path = folder.join(AGENT_SOCKET);
    let agent = open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())?;
    if let Some(user) = user {
        chown(&path, Some(Uid::from_raw(user)), None)?;
    }
    let supervisor = std::process::id();
    match sys::fork()? {
        Fork::Parent(pid) => Ok(pid),
        Fork::Child => match become_nobody(&agent, listeners, user, supervisor) {
            Ok(listeners) => run(&PathBuf::from(format!("/proc/self/fd/{}", agent.as_raw_fd())), listeners),
            Err(error) => {
                eprintln!("begin the link of {}: {error}", folder.display());
                sys::exit_now(1)
            }
        },
    }
}

fn become_nobody(agent: &OwnedFd, of: &Listeners, user: Option<u32>, supervisor: u32) -> io::Result<Listeners> {
    let listeners = of.again()?;
    let mut keep: Vec<_> = listeners.each().map(AsRawFd::as_raw_fd).to_vec();
    keep.push(agent.as_raw_fd());
    sys::close_all_but(&mut keep);
    nix::unistd::setsid()?;
    chdir("/")?;
    become_link()?;
    if let Some(user) = user {
        let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
        setgroups(&[])?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
    }
    sys::drop_capabilities()?;
    nix::sys::prctl::set_no_new_privs()?;
    // After the change of user, which would clear it.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if nix::unistd::getppid().as_raw() as u32 != supervisor {
        return Err(io::Error::other("the supervisor has died"));
    }
    super::filter::restrict()?;
    sys::forget_own_text();
    Ok(listeners)
}

/// The process: never returns.
pub fn run(agent: &Path, listeners: Listeners) -> ! {
    let error = match Host::new(listeners) {
        Ok(mut host) => loop {
            let done = find(agent).and_then(|port| host.serve(port));
            if let Err(error) = done {
                break error;
            }
            std::thread::sleep(CONNECT_PAUSE);
        },
        Err(error) => error,
    };
    eprintln!("the link at {}: {error}", agent.display());
    sys::exit_now(1)
}

/// Connects to QEMU.
fn find(agent: &Path) -> io::Result<File> {
    let since = Instant::now();
    loop {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let made = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        match connect(made.as_raw_fd(), &UnixAddr::new(agent)?) {
            Ok(()) => return Ok(made.into()),
            Err(error) if since.elapsed() > ABSENT => return Err(error.into()),
            Err(_) => std::thread::sleep(CONNECT_PAUSE),
        }
    }
}

/// A client of the dial socket, with its line so far.
struct Caller {
    stream: UnixStream,
    line: Vec<u8>,
}

/// What the line brought.
enum Line {
    Unfinished,
    Port(u16),
    /// It has left, or wrote something else.
    Nothing,
}

pub(super) struct Host {
    end: End,
    listeners: Listeners,
    callers: Vec<Caller>,
    /// When to begin a session; `None` while there is one.
    begin: Option<Instant>,
    answer: Duration,
    penance: Duration,
    /// Since when there is a session.
    up: Instant,
    deaf_until: Option<Instant>,
}

impl Host {
    pub(super) fn new(listeners: Listeners) -> io::Result<Host> {
        for listener in listeners.each() {
            listener.set_nonblocking(true)?;
        }
        let now = Instant::now();
        Ok(Host {
            end: End::new(Link::host()),
            listeners,
            callers: Vec::new(),
            begin: Some(now),
            answer: ANSWER.0,
            penance: PENANCE.0,
            up: now,
            deaf_until: None,
        })
    }

    /// Serves until QEMU closes the port, which is not an error.
    pub(super) fn serve(&mut self, mut port: File) -> io::Result<()> {
        (self.begin, self.answer) = (Some(Instant::now()), ANSWER.0);
        while self.turn(&mut port)? {}
        self.end.link.lost();
        self.cut_off("the virtual machine has closed its port");
        Ok(())
    }

    /// Once around. False: QEMU has left.
    fn turn(&mut self, port: &mut File) -> io::Result<bool> {
        self.begin_when_due()?;
        if self.end.write_port(port).is_err() {
            return Ok(false);
        }
        let mut watched: Vec<Watched> = vec![(Key::Port, port.as_fd(), self.port_flags())];
        self.watch(&mut watched);
        self.end.watch(&mut watched);
        let until = [self.begin, self.deaf_until].into_iter().flatten().min();
        let ready = wait(&watched, until)?;
        drop(watched);
        self.deaf_until = self.deaf_until.filter(|until| *until > Instant::now());
        // Streams before callers and listeners: these may become new ones.
        self.end.serve(&ready);
        for (key, flags) in ready.iter().rev() {
            match key {
                Key::Port => {
                    let readable = flags.intersects(PollFlags::POLLIN);
                    let left = if readable { !self.read(port) } else { flags.intersects(GONE) };
                    if left {
                        return Ok(false);
                    }
                }
                Key::Listener(place) => self.accept(*place),
                Key::Caller(place) => self.hear(*place),
                _ => {}
            }
        }
        Ok(true)
    }

    /// A guest that did wrong is not read until its next session.
    fn port_flags(&self) -> PollFlags {
        let mut flags = self.end.port_flags();
        flags.set(PollFlags::POLLIN, !self.end.link.is_idle());
        flags
    }

    fn begin_when_due(&mut self) -> io::Result<()> {
        if self.begin.is_none_or(|at| at > Instant::now()) {
            return Ok(());
        }
        // While the last beginning still waits for the port, another would not come sooner.
        if self.end.link.output().is_empty() {
            self.end.link.restart(sys::random()?);
        }
        self.begin = Some(Instant::now() + self.answer);
        self.answer = (self.answer * 2).min(ANSWER.1);
        Ok(())
    }

    fn watch<'a>(&'a self, watched: &mut Vec<Watched<'a>>) {
        if !self.end.link.can_open() || self.deaf_until.is_some() {
            return;
        }
        for (place, listener) in self.listeners.each().into_iter().enumerate() {
            if place < 2 || self.callers.len() < MAX_CALLERS {
                watched.push((Key::Listener(place), listener.as_fd(), PollFlags::POLLIN));
            }
        }
        for (place, caller) in self.callers.iter().enumerate() {
            watched.push((Key::Caller(place), caller.stream.as_fd(), PollFlags::POLLIN));
        }
    }

    /// Takes what the guest sent. False: QEMU has left.
    fn read(&mut self, port: &mut File) -> bool {
        let mut breach = None;
        let mut up = false;
        let read = self.end.read_port(port, |end, event| match event {
            Event::Up => up = true,
            Event::Down(why) => breach = Some(why),
            Event::Opened(id) => answer(end, id),
            Event::Refused(id, words) => refuse(end.locals.remove(&id), &words),
            Event::Data(id) | Event::Eof(id) | Event::Closed(id) => end.pass_on(id),
            Event::Open(..) => {}
        });
        let now = Instant::now();
        if up {
            (self.begin, self.up) = (None, now);
        }
        if let Some(why) = breach {
            if now.duration_since(self.up) > ATONED {
                self.penance = PENANCE.0;
            }
            eprintln!("the link: {why}: another session in {:?}", self.penance);
            self.begin = Some(now + self.penance);
            (self.penance, self.answer) = ((self.penance * 2).min(PENANCE.1), ANSWER.0);
            self.cut_off("the link to the virtual machine broke");
        }
        matches!(read, Ok(true))
    }

    /// Closes every stream.
    fn cut_off(&mut self, why: &str) {
        for local in std::mem::take(&mut self.end.locals).into_values() {
            refuse(Some(local), why);
        }
    }

    fn accept(&mut self, place: usize) {
        if !self.end.link.can_open() {
            return;
        }
        let accepted = self.listeners.each()[place].accept().and_then(|(stream, _)| {
            stream.set_nonblocking(true)?;
            Ok(stream)
        });
        let service = [Some(Service::Task), Some(Service::Attach), None][place];
        match (accepted, service) {
            (Ok(stream), Some(service)) => {
                if let Some(id) = self.end.link.open(service) {
                    self.end.add(id, stream.into(), false);
                }
            }
            (Ok(stream), None) => self.callers.push(Caller { stream, line: Vec::new() }),
            // Another process took it, or it has left.
            (Err(error), _) if crate::buffer::would_block(&error) => {}
            (Err(error), _) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            (Err(_), _) => self.deaf_until = Some(Instant::now() + ACCEPT_PAUSE),
        }
    }

    /// A caller writes its line. (Callers are heard from the last to the first, so those that leave move nobody who is
    /// still to be heard.)
    fn hear(&mut self, place: usize) {
        let Some(caller) = self.callers.get_mut(place).filter(|_| self.end.link.can_open()) else { return };
        let line = caller.read();
        if matches!(line, Line::Unfinished) {
            return;
        }
        let Caller { mut stream, .. } = self.callers.swap_remove(place);
        match line {
            Line::Port(port) => {
                let Some(id) = self.end.link.open(Service::Dial(port)) else { return };
                self.end.add(id, stream.into(), false);
                if let Some(local) = self.end.locals.get_mut(&id) {
                    local.unanswered = true;
                }
            }
            _ => {
                // It may have left.
                let _ = stream.write_all(b"error: the first line is not a port\n");
            }
        }
    }
}

impl Caller {
    /// Byte by byte: what follows the line is the stream's.
    fn read(&mut self) -> Line {
        let mut byte = [0];
        while self.line.len() < MAX_LINE {
            match self.stream.read(&mut byte) {
                Ok(1) if byte == *b"\n" => return port_of(&self.line),
                Ok(1) => self.line.push(byte[0]),
                Err(error) if crate::buffer::would_block(&error) => return Line::Unfinished,
                _ => return Line::Nothing,
            }
        }
        Line::Nothing
    }
}

fn port_of(line: &[u8]) -> Line {
    let digits = std::str::from_utf8(line).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    match digits.and_then(|digits| digits.parse().ok()) {
        Some(port @ 1..) => Line::Port(port),
        _ => Line::Nothing,
    }
}

/// The guest has connected a stream. The answer fits any socket into which nothing was written yet.
fn answer(end: &mut End, id: u32) {
    let Some(local) = end.locals.get_mut(&id).filter(|local| local.unanswered) else { return };
    local.unanswered = false;
    // One that has left is seen by its hang-up.
    let _ = local.file.write_all(b"ok\n");
}

/// Closes a client's connection, and says why to one that expects an answer.
fn refuse(local: Option<Local>, why: &str) {
    if let Some(mut local) = local.filter(|local| local.unanswered) {
        // It may have left.
        let _ = local.file.write_all(format!("error: {why}\n").as_bytes());
    }
}
