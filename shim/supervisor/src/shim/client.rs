//! A client of a shim, or of the supervisor in a virtual machine, for workers: blocking, over a connection of its own. Calls
//! are made one after the other, or several at once for a peer that does them in their order.

use super::launch::{Address, read_address};
use crate::failure::{Fail, Failure};
use coracle_proto::Message;
use coracle_proto::ttrpc::{Code, FrameReader, StreamIds, encode_request, service};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// The version of a shim's API from which its task service is named v3. The messages are the same.
const TASK_V3: u32 = 3;
/// How long a request may take to be written whose answer nobody waits for.
const TELLING: Duration = Duration::from_secs(20);
/// Answers that nobody asked for before whoever sends them is not listened to any more.
const MAX_STRAYS: usize = 256;
/// Bytes asked of the socket at once.
const READ_SIZE: usize = 16 << 10;

/// A connection.
#[derive(Debug)]
pub struct Client {
    socket: UnixStream,
    service: &'static str,
    /// Who is at the other end, in words.
    peer: &'static str,
    ids: StreamIds,
    /// Requests that were not written yet.
    out: Vec<u8>,
    frames: FrameReader,
    /// Calls whose answer is wanted and has not come, and answers that nobody took yet.
    asked: Vec<u32>,
    answers: Vec<(u32, Answer)>,
    /// Answers that were nobody's.
    strays: usize,
}

/// What is left of the time, if it is bounded.
fn left(until: Option<Instant>) -> io::Result<Option<Duration>> {
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    if left == Some(Duration::ZERO) { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

type Answer = Result<Vec<u8>, coracle_proto::Status>;

impl Client {
    /// Connects to the shim that runs with this folder.
    pub fn of(folder: &Path) -> Result<Client, Failure> {
        let missing =
            |error: io::Error| Code::Unavailable.failure(format!("the shim in {}: {error}", folder.display()));
        Client::connect(&read_address(folder).map_err(missing)?)
    }

    /// Connects to an address.
    pub fn connect(address: &Address) -> Result<Client, Failure> {
        let path = address.path().map_err(|why| Code::Unimplemented.failure(why))?;
        let socket = UnixStream::connect(path);
        let socket = socket.map_err(|error| {
            Code::Unavailable.failure(format!("connect to the shim at {}: {error} (has it died?)", address.address))
        })?;
        let service = if address.version >= TASK_V3 { service::TASK_V3 } else { service::TASK_V2 };
        Ok(Client { service, ..Client::over(socket, "the shim") })
    }

    /// A connection that somebody made; its task service is version 3. `peer` says in errors who is at its other end.
    pub fn over(socket: UnixStream, peer: &'static str) -> Client {
        Client {
            socket,
            service: service::TASK_V3,
            peer,
            ids: StreamIds::default(),
            out: Vec::new(),
            frames: FrameReader::new(),
            asked: Vec::new(),
            answers: Vec::new(),
            strays: 0,
        }
    }

    /// One call of the task service. A shim that dies, or does not answer in time, is unavailable.
    pub fn call<A: Message + Default>(
        &mut self,
        method: &str,
        request: &impl Message,
        timeout: Option<Duration>,
    ) -> Result<A, Failure> {
        self.call_of(self.service, method, request, timeout)
    }

    /// One call of this service.
    pub fn call_of<A: Message + Default>(
        &mut self,
        service: &str,
        method: &str,
        request: &impl Message,
        timeout: Option<Duration>,
    ) -> Result<A, Failure> {
        let id = self.queue(service, method, request, timeout)?;
        self.answer(method, id, timeout)
    }

    /// Begins a call of the task service, to be sent together with those that follow; its number, for
    /// [`answer`](Self::answer).
    pub fn begin(&mut self, method: &str, request: &impl Message, timeout: Option<Duration>) -> Result<u32, Failure> {
        self.queue(self.service, method, request, timeout)
    }

    /// The answer to a call that was begun, once.
    pub fn answer<A: Message + Default>(
        &mut self,
        method: &str,
        id: u32,
        timeout: Option<Duration>,
    ) -> Result<A, Failure> {
        let peer = self.peer;
        let broken = |error: io::Error| {
            let late = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
            let code = if late { Code::DeadlineExceeded } else { Code::Unavailable };
            let words = if late { "no answer in time".to_owned() } else { error.to_string() };
            code.failure(format!("{method}: {peer}: {words}"))
        };
        let until = timeout.map(|timeout| Instant::now() + timeout);
        self.flush(until).map_err(broken)?;
        let answer = self.receive(id, until).map_err(broken)?.map_err(Failure::from)?;
        A::decode(answer.as_slice())
            .map_err(|error| Code::DataLoss.failure(format!("{method}: {peer}: the answer does not decode: {error}")))
    }

    /// One call of the task service whose answer nobody waits for: it is done, although this connection ends.
    pub fn tell(&mut self, method: &str, request: &impl Message) -> Result<(), Failure> {
        let peer = self.peer;
        let id = self.queue(self.service, method, request, None)?;
        self.asked.retain(|asked| *asked != id);
        let told = self.flush(Some(Instant::now() + TELLING));
        told.map_err(|error| Code::Unavailable.failure(format!("{method}: {peer}: {error}")))
    }

    fn queue(
        &mut self,
        service: &str,
        method: &str,
        request: &impl Message,
        timeout: Option<Duration>,
    ) -> Result<u32, Failure> {
        let peer = self.peer;
        let broken = |error: io::Error| Code::Unavailable.failure(format!("{method}: {peer}: {error}"));
        let id = self.ids.next_id().ok_or_else(|| broken(io::ErrorKind::ConnectionAborted.into()))?;
        let nanos = timeout.map_or(0, |timeout| timeout.as_nanos() as i64);
        let bytes = encode_request(id, service, method, request, nanos);
        let bytes = bytes.map_err(|error| Code::InvalidArgument.failure(format!("{method}: {error}")))?;
        self.out.extend(bytes);
        self.asked.push(id);
        Ok(id)
    }

    /// Writes what was begun. The time is for all of it: who takes it byte by byte is not given more for each.
    fn flush(&mut self, until: Option<Instant>) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.out);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            self.socket.set_write_timeout(left(until)?)?;
            match self.socket.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn receive(&mut self, id: u32, until: Option<Instant>) -> io::Result<Answer> {
        let mut buffer = vec![0; READ_SIZE];
        loop {
            if let Some(at) = self.answers.iter().position(|(of, _)| *of == id) {
                return Ok(self.answers.swap_remove(at).1);
            }
            self.socket.set_read_timeout(left(until)?)?;
            let count = match self.socket.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                count => count?,
            };
            if count == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"));
            }
            let mut bytes = &buffer[..count];
            while let Some(frame) = self.frames.take(&mut bytes).map_err(io::Error::other)? {
                let of = frame.stream_id;
                // One that nobody asked for, or did not want, is nobody's.
                self.strays += usize::from(!self.asked.contains(&of));
                if self.strays > MAX_STRAYS {
                    return Err(io::Error::other("it answers what nobody asked"));
                }
                if let Some(at) = self.asked.iter().position(|asked| *asked == of) {
                    self.asked.swap_remove(at);
                    self.answers.push((of, frame.into_response().map_err(io::Error::other)?));
                }
            }
        }
    }
}
