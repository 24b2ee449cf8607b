//! Events: what happens to tasks, told to containerd over its ttrpc socket.
//!
//! One event is on its way at a time, so that they arrive in the order they happened (containerd serves the requests of
//! one connection side by side). What containerd has not acknowledged stays in the queue: a containerd that is down, or
//! starts again, gets it later. The queue is bounded; when it is full the oldest event is lost, and a message says so:
//! containerd asks every task for its state when it starts, so it then still learns how each stands.
//!
//! Nothing here waits: the socket is part of the loop, which calls [`Publisher::tick`] when [`Publisher::deadline`] has come.

use super::Containerd;
use crate::buffer::{OutBuffer, would_block};
use crate::reactor::{Interest, Reactor, Ready, Token};
use coracle_proto::event_service::ForwardRequest;
use coracle_proto::ttrpc::{FrameReader, encode_request, method, service};
use coracle_proto::types::Envelope;
use coracle_proto::{Message, Name, any};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// Events that wait at most, as many as with containerd's own shims.
const QUEUE: usize = 2048;
/// How long containerd may take to acknowledge one.
const PATIENCE: Duration = Duration::from_secs(5);
/// Before the second attempt to reach a containerd that is not there.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Between later ones at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Read at once; an acknowledgement has no content.
const CHUNK: usize = 512;
/// Streams of clients are odd.
const STREAM_STEP: u32 = 2;

/// The way to containerd.
struct Link {
    socket: UnixStream,
    reader: FrameReader,
    out: OutBuffer,
    interest: Interest,
    /// The stream of the event on its way, and when its patience ends.
    awaited: Option<(u32, Instant)>,
    next_stream: u32,
}

/// The events' queue and the way they go.
pub struct Publisher {
    address: PathBuf,
    namespace: String,
    /// The first is on its way if a link awaits something.
    queue: VecDeque<ForwardRequest>,
    link: Option<Link>,
    pause: Duration,
    retry_at: Option<Instant>,
}

impl Publisher {
    /// For the containerd that began this program; `None` if it has no socket for events.
    pub fn new(containerd: &Containerd) -> Option<Publisher> {
        let address = containerd.ttrpc_address.clone();
        let namespace = containerd.namespace.clone();
        (!address.as_os_str().is_empty()).then_some(Publisher {
            address,
            namespace,
            queue: VecDeque::new(),
            link: None,
            pause: FIRST_PAUSE,
            retry_at: None,
        })
    }

    /// Sends an event, now or as soon as those before it are acknowledged.
    pub fn publish<M: Message + Name>(&mut self, reactor: &Reactor, topic: &str, event: &M) {
        let envelope = Envelope {
            timestamp: Some(SystemTime::now().into()),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(any::pack(event)),
        };
        if self.queue.len() >= QUEUE {
            // Not the first if it is on its way: it would be acknowledged in another's place.
            let oldest = usize::from(self.link.as_ref().is_some_and(|link| link.awaited.is_some()));
            self.queue.remove(oldest);
            eprintln!("an event is lost: {QUEUE} wait for {} already", self.address.display());
        }
        self.queue.push_back(ForwardRequest { envelope: Some(envelope) });
        self.advance(reactor);
    }

    /// Whether events wait.
    pub fn pending(&self) -> bool {
        !self.queue.is_empty()
    }

    /// When the loop has to call [`Publisher::tick`].
    pub fn deadline(&self) -> Option<Instant> {
        let awaited = self.link.as_ref().and_then(|link| link.awaited);
        awaited.map(|(_, until)| until).or(self.retry_at.filter(|_| self.pending()))
    }

    /// A deadline may have come.
    pub fn tick(&mut self, reactor: &Reactor, now: Instant) {
        if self.link.as_ref().is_some_and(|link| link.awaited.is_some_and(|(_, until)| until <= now)) {
            self.broken(reactor);
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.advance(reactor);
        }
    }

    /// The socket is ready.
    pub fn ready(&mut self, reactor: &Reactor, ready: Ready) {
        let Some(link) = &mut self.link else { return };
        let flushed = !ready.write || link.out.flush(&mut link.socket).is_ok();
        let acknowledged = if ready.read { link.read() } else { Ok(false) };
        match acknowledged {
            Ok(acknowledged) if flushed => {
                if acknowledged {
                    self.queue.pop_front();
                    self.pause = FIRST_PAUSE;
                }
                self.advance(reactor);
            }
            _ => self.broken(reactor),
        }
    }

    /// Sends the next event if none is on its way, and hears what has to be heard.
    fn advance(&mut self, reactor: &Reactor) {
        if self.retry_at.is_some() {
            return;
        }
        if self.link.is_none() && !self.queue.is_empty() {
            match Link::open(&self.address) {
                Ok(link) => self.link = Some(link),
                Err(_) => return self.later(),
            }
        }
        let Some(link) = &mut self.link else { return };
        let sent = match (link.awaited, self.queue.front()) {
            (None, Some(request)) => link.send(request),
            _ => Ok(()),
        };
        if sent.is_err() || link.watch(reactor).is_err() {
            self.broken(reactor);
        }
    }

    /// Whatever was on its way is sent again, in its turn.
    fn broken(&mut self, reactor: &Reactor) {
        if let Some(mut link) = self.link.take() {
            // Only a descriptor that is not in the set could fail here.
            let _ = reactor.watch(&link.socket, Token::Events, &mut link.interest, Interest::NONE);
        }
        self.later();
    }

    fn later(&mut self) {
        self.retry_at = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

impl Link {
    /// Connects without waiting: a unix socket is connected at once or not at all.
    fn open(address: &Path) -> io::Result<Link> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(address)?)?;
        Ok(Link {
            socket: socket.into(),
            reader: FrameReader::new(),
            out: OutBuffer::default(),
            interest: Interest::NONE,
            awaited: None,
            next_stream: 1,
        })
    }

    fn send(&mut self, request: &ForwardRequest) -> io::Result<()> {
        let stream = self.next_stream;
        let patience = PATIENCE.as_nanos() as i64;
        let frame = encode_request(stream, service::EVENTS, method::FORWARD, request, patience);
        self.out.send(&mut self.socket, &[&frame.map_err(io::Error::other)?])?;
        self.next_stream = stream.wrapping_add(STREAM_STEP);
        self.awaited = Some((stream, Instant::now() + PATIENCE));
        Ok(())
    }

    /// Whether the awaited event was acknowledged. One that containerd refuses is done with as well: it would refuse it again.
    fn read(&mut self) -> io::Result<bool> {
        let mut chunk = [0u8; CHUNK];
        let count = match self.socket.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if would_block(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        let (mut bytes, mut acknowledged) = (&chunk[..count], false);
        while let Some(frame) = self.reader.take(&mut bytes).map_err(io::Error::other)? {
            if self.awaited.is_some_and(|(stream, _)| stream == frame.stream_id) {
                self.awaited = None;
                acknowledged = true;
            }
            if let Err(status) = frame.into_response().map_err(io::Error::other)? {
                eprintln!("containerd refuses an event: {}", status.message);
            }
        }
        Ok(acknowledged)
    }

    fn watch(&mut self, reactor: &Reactor) -> io::Result<()> {
        let wanted = Interest { read: true, write: self.out.pending() > 0, gone: false };
        reactor.watch(&self.socket, Token::Events, &mut self.interest, wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_proto::events::TaskExit;
    use coracle_proto::ttrpc::{Frame, encode_response};
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    struct Rig {
        _dir: tempfile::TempDir,
        path: PathBuf,
        reactor: Reactor,
        publisher: Publisher,
    }

    fn rig() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ttrpc");
        let containerd = Containerd { ttrpc_address: path.clone(), ..Containerd::for_tests("k8s.io", "/c") };
        let publisher = Publisher::new(&containerd).unwrap();
        Rig { _dir: dir, path, reactor: Reactor::new().unwrap(), publisher }
    }

    impl Rig {
        fn exit(&mut self, pid: u32) {
            self.publisher.publish(&self.reactor, "/tasks/exit", &TaskExit { pid, ..Default::default() });
        }

        /// One turn of the loop.
        fn turn(&mut self) {
            let mut ready = Vec::new();
            self.reactor.wait(Some(Duration::from_millis(200)), &mut ready).unwrap();
            ready.into_iter().for_each(|event| self.publisher.ready(&self.reactor, event));
            self.publisher.tick(&self.reactor, Instant::now());
        }
    }

    fn frame(peer: &mut UnixStream) -> Frame {
        let (mut reader, mut byte) = (FrameReader::new(), [0u8; 1]);
        loop {
            peer.read_exact(&mut byte).unwrap();
            if let Some(frame) = reader.take(&mut &byte[..]).unwrap() {
                return frame;
            }
        }
    }

    fn event(frame: Frame) -> (u32, String, u32) {
        let stream = frame.stream_id;
        let request = frame.into_request().unwrap();
        assert_eq!((request.service.as_str(), request.method.as_str()), (service::EVENTS, method::FORWARD));
        let envelope = ForwardRequest::decode(request.payload.as_slice()).unwrap().envelope.unwrap();
        assert_eq!(envelope.namespace, "k8s.io");
        let exit: TaskExit = any::unpack(&envelope.event.unwrap()).unwrap().unwrap();
        (stream, envelope.topic, exit.pid)
    }

    fn acknowledge(peer: &mut UnixStream, stream: u32) {
        peer.write_all(&encode_response(stream, Ok(Vec::new())).unwrap()).unwrap();
    }

    #[test]
    fn events_go_one_after_another_and_again_after_a_cut() {
        let mut rig = rig();
        let listener = UnixListener::bind(&rig.path).unwrap();
        (1..=3).for_each(|pid| rig.exit(pid));
        let mut peer = listener.accept().unwrap().0;
        let (stream, topic, pid) = event(frame(&mut peer));
        assert_eq!((topic.as_str(), pid), ("/tasks/exit", 1));
        peer.set_nonblocking(true).unwrap();
        assert!(peer.read(&mut [0]).is_err(), "the second waits for the first's acknowledgement");
        peer.set_nonblocking(false).unwrap();
        acknowledge(&mut peer, stream);
        rig.turn();
        assert_eq!(event(frame(&mut peer)).2, 2);
        drop(peer);
        rig.turn();
        while rig.publisher.link.is_none() {
            rig.turn();
        }
        let mut peer = listener.accept().unwrap().0;
        for pid in [2, 3] {
            let (stream, _, sent) = event(frame(&mut peer));
            assert_eq!(sent, pid);
            acknowledge(&mut peer, stream);
            rig.turn();
        }
        assert!(!rig.publisher.pending() && rig.publisher.deadline().is_none());
    }

    #[test]
    fn a_containerd_that_is_not_there_costs_a_bounded_queue_and_gets_what_is_in_it() {
        let mut rig = rig();
        (0..QUEUE as u32 + 5).for_each(|pid| rig.exit(pid));
        assert_eq!(rig.publisher.queue.len(), QUEUE);
        assert!(rig.publisher.deadline().is_some());
        let listener = UnixListener::bind(&rig.path).unwrap();
        while rig.publisher.link.is_none() {
            rig.turn();
        }
        assert_eq!(event(frame(&mut listener.accept().unwrap().0)).2, 5);
    }

    #[test]
    fn garbage_from_the_other_side_only_costs_the_connection() {
        let mut rig = rig();
        let listener = UnixListener::bind(&rig.path).unwrap();
        rig.exit(1);
        let mut peer = listener.accept().unwrap().0;
        peer.write_all(&[0xff; 64]).unwrap();
        rig.turn();
        assert!(rig.publisher.link.is_none() && rig.publisher.pending());
    }
}
