//! One client of the task socket: frames in, answers out. A client that sends what is no ttrpc, or does not take its
//! answers, is closed; what it asked for goes on all the same.

use crate::buffer::{OutBuffer, would_block};
use crate::reactor::{Interest, Reactor, Token};
use coracle_proto::ttrpc::{FrameReader, Request};
use std::io::{self, Read};
use std::os::unix::net::UnixStream;

/// Read at once.
const CHUNK: usize = 16 << 10;
/// Answers that wait for a client: two of the largest.
const OUT_BUFFER: usize = 8 << 20;

/// A request, to be answered on the same connection, at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Key of the connection.
    pub connection: u32,
    /// The request's stream.
    pub stream: u32,
}

/// One client.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    reader: FrameReader,
    out: OutBuffer,
    interest: Interest,
}

/// The client has left, or is to be left.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed;

impl Connection {
    /// A client that has just connected.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let (reader, out) = Default::default();
        Ok(Connection { stream, reader, out, interest: Interest::NONE })
    }

    /// Reads once and appends the requests that are whole.
    pub fn read(&mut self, requests: &mut Vec<(u32, Request)>) -> Result<(), Closed> {
        let mut chunk = [0u8; CHUNK];
        let count = match self.stream.read(&mut chunk) {
            Ok(0) => return Err(Closed),
            Ok(count) => count,
            Err(error) if would_block(&error) => return Ok(()),
            Err(_) => return Err(Closed),
        };
        let mut bytes = &chunk[..count];
        while let Some(frame) = self.reader.take(&mut bytes).map_err(|_| Closed)? {
            let stream = frame.stream_id;
            requests.push((stream, frame.into_request().map_err(|_| Closed)?));
        }
        Ok(())
    }

    /// Sends an encoded answer, now or when the client takes it.
    pub fn send(&mut self, answer: &[u8]) -> Result<(), Closed> {
        self.out.send(&mut self.stream, &[answer]).map_err(|_| Closed)?;
        if self.out.pending() > OUT_BUFFER { Err(Closed) } else { Ok(()) }
    }

    /// Sends what waits.
    pub fn flush(&mut self) -> Result<(), Closed> {
        self.out.flush(&mut self.stream).map_err(|_| Closed)
    }

    /// Whether answers wait.
    pub fn pending(&self) -> bool {
        self.out.pending() > 0
    }

    /// Hears what is to be heard. A client that does not take its answers is not asked for more.
    pub fn watch(&mut self, reactor: &Reactor, key: u32) -> Result<(), Closed> {
        let wanted = Interest { read: !self.pending(), write: self.pending(), gone: false };
        reactor.watch(&self.stream, Token::Connection(key), &mut self.interest, wanted).map_err(|_| Closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_proto::task::WaitRequest;
    use coracle_proto::ttrpc::{encode_request, method, service};
    use std::io::Write;

    #[test]
    fn a_request_may_come_in_pieces_and_garbage_closes() {
        let (mut peer, stream) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(stream).unwrap();
        let bytes = encode_request(1, service::TASK_V2, method::WAIT, &WaitRequest::default(), 0).unwrap();
        let mut requests = Vec::new();
        for piece in bytes.chunks(7) {
            peer.write_all(piece).unwrap();
            connection.read(&mut requests).unwrap();
        }
        assert_eq!((requests.len(), requests[0].0), (1, 1));
        peer.write_all(b"GET / HTTP/1.1\r\n").unwrap();
        assert_eq!(connection.read(&mut requests), Err(Closed));
    }

    #[test]
    fn a_client_that_takes_no_answers_is_closed_in_the_end() {
        let (_peer, stream) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(stream).unwrap();
        let answer = vec![0; 1 << 20];
        let sent = (0..20).take_while(|_| connection.send(&answer).is_ok()).count();
        assert!((7..12).contains(&sent), "{sent}");
    }
}
