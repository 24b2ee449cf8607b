//! A small blocking client of the supervisor: ttrpc calls on one socket, attach streams on the other. Nothing waits
//! longer than [`PATIENCE`]: a test fails, it does not hang.

use coracle_proto::ttrpc::{FrameReader, StreamIds, encode_request};
use coracle_proto::{Message, Status, attach};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to a ttrpc server.
#[derive(Debug)]
pub struct Client {
    /// The socket, for tests that send what no client should.
    pub stream: UnixStream,
    reader: FrameReader,
    ids: StreamIds,
    answers: BTreeMap<u32, Result<Vec<u8>, Status>>,
}

impl Client {
    /// Connects.
    ///
    /// # Panics
    /// When nobody listens; as all of this module, it is for tests.
    pub fn connect(socket: &Path) -> Client {
        let stream = UnixStream::connect(socket).unwrap_or_else(|e| panic!("connect {}: {e}", socket.display()));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { stream, reader: FrameReader::new(), ids: StreamIds::default(), answers: BTreeMap::new() }
    }

    /// Sends a request and returns its stream id.
    pub fn send(&mut self, service: &str, method: &str, request: &impl Message) -> u32 {
        let id = self.ids.next_id().expect("stream ids used up");
        self.stream.write_all(&encode_request(id, service, method, request, 0).unwrap()).unwrap();
        id
    }

    /// Waits for the answer to a request; others that come meanwhile are kept.
    pub fn receive<A: Message + Default>(&mut self, id: u32) -> Result<A, Status> {
        loop {
            if let Some(answer) = self.answers.remove(&id) {
                return answer.map(|payload| A::decode(payload.as_slice()).expect("the answer decodes"));
            }
            assert!(self.read_once(), "the server closed the connection");
        }
    }

    /// Whether the answer to a request has come with one that was received.
    pub fn is_answered(&self, id: u32) -> bool {
        self.answers.contains_key(&id)
    }

    /// Calls.
    pub fn call<A: Message + Default>(
        &mut self,
        service: &str,
        method: &str,
        request: &impl Message,
    ) -> Result<A, Status> {
        let id = self.send(service, method, request);
        self.receive(id)
    }

    /// Whether the server closes the connection.
    pub fn is_closed_by_server(&mut self) -> bool {
        while self.read_once() {}
        true
    }

    /// False at the end of the stream.
    fn read_once(&mut self) -> bool {
        let mut chunk = [0; 64 << 10];
        let count = match self.stream.read(&mut chunk) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => 0,
            Err(error) => panic!("no answer: {error}"),
        };
        let mut bytes = &chunk[..count];
        while let Some(frame) = self.reader.take(&mut bytes).expect("the server speaks ttrpc") {
            self.answers.insert(frame.stream_id, frame.into_response().expect("a response"));
        }
        count > 0
    }
}

/// A connection to the attach socket.
#[derive(Debug)]
pub struct Attach {
    /// The socket.
    pub stream: UnixStream,
    /// What had passed to others when it came: input, output, error output.
    pub passed: [u64; 3],
    reader: attach::FrameReader,
}

/// What an attach client heard.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Error output.
    pub stderr: Vec<u8>,
    /// The end was announced (rather than the connection closed).
    pub ended: bool,
}

impl Attach {
    /// Connects to a process and waits for the answer.
    pub fn open(socket: &Path, container: &str, exec: &str, stdin: bool) -> Result<Attach, String> {
        Attach::hear(Attach::ask(socket, container, exec, stdin, false))
    }

    /// Connects to a process that there need not be yet. With `wait` it is waited for, as a machine's supervisor is.
    pub fn ask(socket: &Path, container: &str, exec: &str, stdin: bool, wait: bool) -> UnixStream {
        let hello = serde_json::json!({ "container": container, "exec": exec, "stdin": stdin, "wait": wait });
        Attach::say(socket, &hello)
    }

    /// Connects in the place of one that was waited for and was lost.
    pub fn ask_again(socket: &Path, container: &str, exec: &str) -> UnixStream {
        let hello =
            serde_json::json!({ "container": container, "exec": exec, "stdin": true, "wait": true, "again": true });
        Attach::say(socket, &hello)
    }

    fn say(socket: &Path, hello: &serde_json::Value) -> UnixStream {
        let mut stream = UnixStream::connect(socket).unwrap_or_else(|e| panic!("connect {}: {e}", socket.display()));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        writeln!(stream, "{hello}").unwrap();
        stream
    }

    /// Waits for the answer to that.
    pub fn hear(mut stream: UnixStream) -> Result<Attach, String> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a line of answer");
            line.push(byte[0]);
        }
        let answer: serde_json::Value = serde_json::from_slice(&line).expect("an answer in JSON");
        match answer["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => {
                let passed = [0, 1, 2].map(|which| answer["passed"][which].as_u64().expect("a count"));
                Ok(Attach { stream, passed, reader: attach::FrameReader::new() })
            }
        }
    }

    /// The same connection once more, to write from another thread.
    pub fn another_end(&self) -> Attach {
        Attach { stream: self.stream.try_clone().unwrap(), passed: self.passed, reader: attach::FrameReader::new() }
    }

    /// Sends input.
    pub fn input(&mut self, bytes: &[u8]) {
        let mut frames = Vec::new();
        attach::encode(attach::Kind::Stdin, bytes, &mut frames);
        self.stream.write_all(&frames).unwrap();
    }

    /// Ends the input.
    pub fn end_input(&mut self) {
        self.input(&[]);
    }

    /// Listens until the end, or until `enough` of what was heard.
    pub fn listen(&mut self, enough: impl Fn(&Heard) -> bool) -> Heard {
        let mut heard = Heard::default();
        let mut chunk = [0; 64 << 10];
        while !heard.ended && !enough(&heard) {
            let count = self.stream.read(&mut chunk).expect("output");
            if count == 0 {
                return heard;
            }
            let mut bytes = &chunk[..count];
            while let Some(frame) = self.reader.take(&mut bytes).expect("attach frames") {
                match frame.kind {
                    attach::Kind::Stdout => heard.stdout.extend(frame.payload),
                    attach::Kind::Stderr => heard.stderr.extend(frame.payload),
                    attach::Kind::End => heard.ended = true,
                    attach::Kind::Stdin => panic!("input from the server"),
                }
            }
        }
        heard
    }

    /// Listens until the end.
    pub fn listen_to_the_end(&mut self) -> Heard {
        self.listen(|_| false)
    }
}
