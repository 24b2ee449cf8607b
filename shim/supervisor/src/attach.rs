//! A client of the attach socket: its first line, its frames, its buffer. The wire format stands at the head of
//! [`coracle_proto::attach`]; whom it is connected to is decided in [`crate::streams`].

use crate::buffer::{OutBuffer, would_block};
use crate::reactor::{Interest, Reactor, Token};
use coracle_proto::attach::{Frame, FrameReader, Kind, MAX_HELLO, MAX_PAYLOAD, header};
use serde::Deserialize;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;

/// What waits for a container's client before it is dropped: it can attach again, the container must not wait.
const CONTAINER_BUFFER: usize = 1 << 20;
/// What waits for an exec's client before the exec is made to wait: the client is its only reader.
const EXEC_BUFFER: usize = 256 << 10;
/// Read from a client at once.
const CHUNK: usize = 16 << 10;

/// The first line.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// A container's id.
    pub container: String,
    /// An exec of it; empty for its init.
    #[serde(default)]
    pub exec: String,
    /// Whether this client feeds the input.
    #[serde(default)]
    pub stdin: bool,
    /// Whether the process is to wait for this client: the supervisor of the machine around this one.
    #[serde(default)]
    pub wait: bool,
    /// It comes in the place of one that was lost.
    #[serde(default)]
    pub again: bool,
}

#[derive(Debug)]
enum Phase {
    /// The line so far.
    Hello(Vec<u8>),
    /// The line was whole; what followed it waits for the answer.
    Asked(Vec<u8>),
    /// Connected to the streams of this key.
    Attached(u32),
    /// To be closed when all was sent.
    Ending,
}

/// One client.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    phase: Phase,
    /// It feeds the input.
    pub stdin: bool,
    /// It is waited for, and when it is lost, for the next one.
    pub wait: bool,
    reader: FrameReader,
    out: OutBuffer,
    interest: Interest,
}

/// What reading from a client brought.
#[derive(Debug, Default)]
pub struct Received {
    /// It asks to be connected.
    pub hello: Option<Result<Hello, String>>,
    /// Input; an empty piece is the end of it.
    pub stdin: Vec<Vec<u8>>,
    /// It has left, or is not to be understood.
    pub gone: bool,
}

impl Client {
    /// A client that has just connected.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Client {
            stream,
            phase: Phase::Hello(Vec::new()),
            stdin: false,
            wait: false,
            reader: FrameReader::new(),
            out: OutBuffer::default(),
            interest: Interest::NONE,
        })
    }

    /// The key of the streams it is connected to.
    pub fn attached_to(&self) -> Option<u32> {
        match self.phase {
            Phase::Attached(io) => Some(io),
            _ => None,
        }
    }

    /// Reads once.
    pub fn read(&mut self) -> Received {
        let mut chunk = [0u8; CHUNK];
        match self.stream.read(&mut chunk) {
            Ok(0) => Received { gone: true, ..Default::default() },
            Ok(count) => self.take(&chunk[..count]),
            Err(error) if would_block(&error) => Received::default(),
            Err(_) => Received { gone: true, ..Default::default() },
        }
    }

    fn take(&mut self, mut bytes: &[u8]) -> Received {
        let mut received = Received::default();
        match &mut self.phase {
            Phase::Hello(line) => {
                line.extend_from_slice(bytes);
                match line.iter().position(|byte| *byte == b'\n') {
                    Some(end) => {
                        let hello = serde_json::from_slice(&line[..end]);
                        received.hello =
                            Some(hello.map_err(|error| format!("the first line is not understood: {error}")));
                        self.phase = Phase::Asked(line[end + 1..].to_vec());
                    }
                    None if line.len() > MAX_HELLO => received.gone = true,
                    None => {}
                }
            }
            Phase::Asked(rest) => rest.extend_from_slice(bytes),
            Phase::Attached(_) => loop {
                match self.reader.take(&mut bytes) {
                    Ok(None) => break,
                    Ok(Some(Frame { kind: Kind::Stdin, payload })) if self.stdin => received.stdin.push(payload),
                    Ok(Some(Frame { kind: Kind::Stdin, .. })) => {}
                    Ok(Some(Frame { kind: Kind::End, .. })) if self.wait => {
                        self.wait = false;
                        received.gone = true;
                        break;
                    }
                    Ok(Some(_)) | Err(_) => {
                        received.gone = true;
                        break;
                    }
                }
            },
            Phase::Ending => {}
        }
        received
    }

    /// Answers the first line with yes, and with what has passed so far. Returns input that came right behind it.
    pub fn accept(&mut self, io: u32, hello: &Hello, passed: [u64; 3]) -> Received {
        let rest = match &mut self.phase {
            Phase::Asked(rest) => std::mem::take(rest),
            _ => Vec::new(),
        };
        self.phase = Phase::Attached(io);
        (self.stdin, self.wait) = (hello.stdin, hello.wait);
        let line = serde_json::json!({ "ok": true, "passed": passed }).to_string() + "\n";
        let answered = self.out.send(&mut self.stream, &[line.as_bytes()]);
        let mut received = self.take(&rest);
        received.gone |= answered.is_err();
        received
    }

    /// Answers the first line with no.
    pub fn refuse(&mut self, why: &str) {
        let line = serde_json::json!({ "error": why }).to_string() + "\n";
        // A client that cannot be told has left: the loop finds out by itself.
        let _ = self.out.send(&mut self.stream, &[line.as_bytes()]);
        self.phase = Phase::Ending;
    }

    /// Sends output. Returns false if the client must be dropped: it has left, or is too slow to be waited for.
    #[must_use]
    pub fn output(&mut self, kind: Kind, bytes: &[u8], exclusive: bool) -> bool {
        for piece in bytes.chunks(MAX_PAYLOAD) {
            if self.out.send(&mut self.stream, &[&header(kind, piece.len()), piece]).is_err() {
                return false;
            }
        }
        exclusive || self.out.pending() <= CONTAINER_BUFFER
    }

    /// All output was sent: say so, and close when that is sent.
    pub fn end(&mut self) {
        let _ = self.out.send(&mut self.stream, &[&header(Kind::End, 0)]);
        self.phase = Phase::Ending;
    }

    /// Sends what waits. Returns false if the client has left or is done.
    #[must_use]
    pub fn flush(&mut self) -> bool {
        self.out.flush(&mut self.stream).is_ok() && !self.done()
    }

    /// Whether it was told everything and can be closed.
    pub fn done(&self) -> bool {
        matches!(self.phase, Phase::Ending) && self.out.pending() == 0
    }

    /// Whether an exec has to wait for it.
    pub fn is_behind(&self) -> bool {
        self.out.pending() >= EXEC_BUFFER
    }

    /// Hears what is to be heard: not its input while the process takes none, but that it leaves. (What it has sent
    /// before is then read to its end, which is no more than the socket holds.)
    pub fn watch(&mut self, reactor: &Reactor, key: u32, input_full: bool) -> io::Result<()> {
        let (read, gone) = match self.phase {
            Phase::Hello(_) => (true, false),
            // One that waits for its exec may leave before.
            Phase::Asked(_) => (false, true),
            Phase::Attached(_) => (!(self.stdin && input_full), true),
            Phase::Ending => (false, false),
        };
        let wanted = Interest { read, write: self.out.pending() > 0, gone };
        reactor.watch(&self.stream, Token::Attach(key), &mut self.interest, wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn pair() -> (UnixStream, Client) {
        let (peer, stream) = UnixStream::pair().unwrap();
        (peer, Client::new(stream).unwrap())
    }

    #[test]
    fn input_right_behind_the_first_line_is_kept_until_the_client_is_accepted() {
        let (mut peer, mut client) = pair();
        peer.write_all(b"{\"container\":\"c\",\"stdin\":true}\n\0\0\0\0\x02hi\0\0\0\0\0").unwrap();
        let received = client.read();
        let hello = Hello { container: "c".into(), exec: String::new(), stdin: true, wait: false, again: false };
        assert_eq!(received.hello.as_ref(), Some(&Ok(hello)));
        let received = client.accept(1, &received.hello.unwrap().unwrap(), [0; 3]);
        assert_eq!(received.stdin, [b"hi".to_vec(), vec![]]);
        assert!(!received.gone);
    }

    #[test]
    fn a_first_line_without_end_is_cut_off() {
        let (mut peer, mut client) = pair();
        peer.write_all(&[b'x'; MAX_HELLO + 1]).unwrap();
        assert!(client.read().gone);
    }

    #[test]
    fn a_first_line_with_an_unknown_field_is_an_error_that_names_it() {
        let (mut peer, mut client) = pair();
        peer.write_all(b"{\"container\":\"c\",\"tty\":true}\n").unwrap();
        assert!(client.read().hello.unwrap().unwrap_err().contains("tty"));
    }

    #[test]
    fn a_client_that_is_waited_for_can_say_that_nobody_comes_after_it() {
        let (mut peer, mut client) = pair();
        peer.write_all(b"{\"container\":\"c\",\"wait\":true}\n\x04\0\0\0\0").unwrap();
        let hello = client.read().hello.unwrap().unwrap();
        let received = client.accept(1, &hello, [0; 3]);
        assert!(received.gone && !client.wait);
    }

    #[test]
    fn a_containers_client_that_does_not_read_is_dropped_and_an_execs_is_waited_for() {
        let piece = vec![0; 64 << 10];
        let (_peer, mut client) = pair();
        let sent = (0..64).take_while(|_| client.output(Kind::Stdout, &piece, false)).count();
        assert!((8..40).contains(&sent), "{sent}");
        let (_peer, mut client) = pair();
        assert!((0..64).all(|_| client.output(Kind::Stdout, &piece, true)));
        assert!(client.is_behind());
    }
}
