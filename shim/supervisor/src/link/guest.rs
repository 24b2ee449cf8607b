//! The guest's end: connects each stream that the host opens to the supervisor's sockets, or to a port of the loopback
//! (127.0.0.1, then ::1), and tells the host how that went.
//!
//! While nobody is at the other end of the port, reading it gives 0 and polling it POLLHUP at once: so then the port is
//! looked at a few times a second and no stream is left.

use super::{End, GONE, Key, Local, Watched, become_link, wait};
use crate::stdio::set_nonblocking;
use crate::sys;
use coracle_proto::link::{Event, Link, Service};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, UnixAddr, connect, getsockopt,
    setsockopt, socket, sockopt,
};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a port may take to accept.
const CONNECT: Duration = Duration::from_secs(10);
/// How often an absent host is looked for.
const HOST_PAUSE: Duration = Duration::from_millis(50);
/// How long the supervisor may take to listen, and how often that is tried.
const SUPERVISOR: (Duration, Duration) = (Duration::from_secs(60), Duration::from_millis(5));

/// The process: serves the port for the supervisor whose sockets are in `folder`, and never returns. It can be started
/// again when it dies.
pub fn run(port: OwnedFd, folder: &Path) -> ! {
    let error = match begin(&port, folder) {
        Ok(()) => Guest::new(folder).serve(port.into()),
        Err(error) => error,
    };
    eprintln!("the link in {}: {error}", folder.display());
    sys::exit_now(1)
}

/// A host's first call comes as soon as there is a session, so the supervisor has to be there before.
fn begin(port: &OwnedFd, folder: &Path) -> io::Result<()> {
    sys::close_all_but(&mut [port.as_raw_fd()]);
    become_link()?;
    set_nonblocking(port, true)?;
    let since = Instant::now();
    while let Err(error) = UnixStream::connect(folder.join(crate::sandbox::SOCKET)) {
        if since.elapsed() > SUPERVISOR.0 {
            return Err(error);
        }
        std::thread::sleep(SUPERVISOR.1);
    }
    Ok(())
}

/// A connection that is being made to a port.
struct Dialing {
    socket: OwnedFd,
    port: u16,
    /// Why the first address did not answer, once the second is tried.
    first: Option<Errno>,
    until: Instant,
}

/// How far a connection is.
enum Attempt {
    Connected(OwnedFd),
    Begun(OwnedFd),
}

pub(super) struct Guest {
    pub(super) end: End,
    folder: PathBuf,
    dialing: BTreeMap<u32, Dialing>,
}

impl Guest {
    pub(super) fn new(folder: &Path) -> Guest {
        Guest { end: End::new(Link::guest()), folder: folder.to_owned(), dialing: BTreeMap::new() }
    }

    fn serve(&mut self, mut port: File) -> io::Error {
        loop {
            match self.turn(&mut port) {
                Ok(true) => {}
                Ok(false) => {
                    self.host_left();
                    if let Err(error) = wait_for_host(&port) {
                        return error;
                    }
                }
                Err(error) => return error,
            }
        }
    }

    pub(super) fn host_left(&mut self) {
        if !self.end.link.is_fresh() {
            self.end.link.lost();
        }
        cut_off(&mut self.end, &mut self.dialing);
    }

    /// Once around. False: the host has left.
    pub(super) fn turn(&mut self, port: &mut File) -> io::Result<bool> {
        self.end.write_port(port)?;
        let mut watched: Vec<Watched> = vec![(Key::Port, port.as_fd(), self.end.port_flags())];
        let dialing = self.dialing.iter();
        watched.extend(dialing.map(|(id, one)| (Key::Dialing(*id), one.socket.as_fd(), PollFlags::POLLOUT)));
        self.end.watch(&mut watched);
        let until = self.dialing.values().map(|one| one.until).min();
        let ready = wait(&watched, until)?;
        drop(watched);
        for (key, _) in &ready {
            if let Key::Dialing(id) = key {
                self.go_on(*id);
            }
        }
        self.give_up();
        self.end.serve(&ready);
        match ready.first() {
            Some((Key::Port, flags)) if flags.intersects(PollFlags::POLLIN | GONE) => self.read(port),
            _ => Ok(true),
        }
    }

    fn read(&mut self, port: &mut File) -> io::Result<bool> {
        let Guest { end, folder, dialing } = self;
        end.read_port(port, |end, event| match event {
            Event::Open(id, Service::Dial(port)) => dial(end, dialing, id, port, None),
            Event::Open(id, service) => connect_to(end, id, &folder.join(socket_of(service))),
            Event::Data(id) | Event::Eof(id) => end.pass_on(id),
            Event::Closed(id) if dialing.remove(&id).is_some() => end.link.close(id),
            Event::Closed(id) => end.pass_on(id),
            Event::Down(why) => {
                if !(end.locals.is_empty() && dialing.is_empty()) {
                    eprintln!("the link: {why}");
                }
                cut_off(end, dialing);
            }
            Event::Up | Event::Opened(_) | Event::Refused(..) => {}
        })
    }

    /// A connection was made, or was not.
    fn go_on(&mut self, id: u32) {
        let Some(Dialing { socket, port, first, .. }) = self.dialing.remove(&id) else { return };
        match getsockopt(&socket, sockopt::SocketError).map_or_else(Err, |code| Ok(Errno::from_raw(code))) {
            Ok(Errno::UnknownErrno) => connected(&mut self.end, id, socket),
            Ok(error) | Err(error) => refused(&mut self.end, &mut self.dialing, id, port, first, error),
        }
    }

    /// Refuses what has taken too long.
    fn give_up(&mut self) {
        let now = Instant::now();
        let Guest { end, dialing, .. } = self;
        dialing.retain(|id, one| {
            let late = one.until <= now;
            if late {
                end.link.refused(*id, &format!("port {}: no answer after {CONNECT:?}", one.port));
            }
            !late
        });
    }
}

/// Closes every stream's connection.
fn cut_off(end: &mut End, dialing: &mut BTreeMap<u32, Dialing>) {
    dialing.clear();
    std::mem::take(&mut end.locals).into_values().for_each(Local::close);
}

/// Looks until somebody is at the other end.
fn wait_for_host(port: &File) -> io::Result<()> {
    loop {
        std::thread::sleep(HOST_PAUSE);
        let ready = wait(&[(Key::Port, port.as_fd(), PollFlags::POLLIN)], Some(Instant::now()))?;
        if !ready.iter().any(|(_, flags)| flags.intersects(GONE)) {
            return Ok(());
        }
    }
}

fn socket_of(service: Service) -> &'static str {
    match service {
        Service::Attach => crate::sandbox::ATTACH_SOCKET,
        Service::Task | Service::Dial(_) => crate::sandbox::SOCKET,
    }
}

/// Connects a stream to one of the supervisor's sockets, at once or not at all.
fn connect_to(end: &mut End, id: u32, path: &Path) {
    let made = UnixAddr::new(path).and_then(|address| begin_connect(AddressFamily::Unix, &address));
    match made {
        Ok(Attempt::Connected(socket)) => {
            end.link.opened(id);
            end.add(id, socket, false);
        }
        // A Unix socket's is never merely begun.
        Ok(Attempt::Begun(_)) => end.link.refused(id, &format!("{}: it is busy", path.display())),
        Err(error) => end.link.refused(id, &format!("{}: {}", path.display(), error.desc())),
    }
}

/// Begins to connect a stream to a port: to the second address if the first has failed.
fn dial(end: &mut End, dialing: &mut BTreeMap<u32, Dialing>, id: u32, port: u16, first: Option<Errno>) {
    let made = match first {
        None => {
            let address = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
            begin_connect(AddressFamily::Inet, &address)
        }
        Some(_) => {
            let address = SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::LOCALHOST, port, 0, 0));
            begin_connect(AddressFamily::Inet6, &address)
        }
    };
    match made {
        Ok(Attempt::Connected(socket)) => connected(end, id, socket),
        Ok(Attempt::Begun(socket)) => {
            dialing.insert(id, Dialing { socket, port, first, until: Instant::now() + CONNECT });
        }
        Err(error) => refused(end, dialing, id, port, first, error),
    }
}

fn connected(end: &mut End, id: u32, socket: OwnedFd) {
    // What comes in small pieces is meant so; without it, it is only slower.
    let _ = setsockopt(&socket, sockopt::TcpNoDelay, &true);
    end.link.opened(id);
    end.add(id, socket, true);
    end.pass_on(id);
}

fn refused(
    end: &mut End,
    dialing: &mut BTreeMap<u32, Dialing>,
    id: u32,
    port: u16,
    first: Option<Errno>,
    error: Errno,
) {
    match first {
        None => dial(end, dialing, id, port, Some(error)),
        // The first address is the one that people mean.
        Some(first) => end.link.refused(id, &format!("127.0.0.1:{port}: {}", first.desc())),
    }
}

fn begin_connect(family: AddressFamily, address: &dyn SockaddrLike) -> nix::Result<Attempt> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let made = socket(family, SockType::Stream, flags, None)?;
    match connect(made.as_raw_fd(), address) {
        Ok(()) => Ok(Attempt::Connected(made)),
        Err(Errno::EINPROGRESS) => Ok(Attempt::Begun(made)),
        Err(error) => Err(error),
    }
}
