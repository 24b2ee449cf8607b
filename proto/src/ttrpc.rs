//! ttrpc without I/O: frames in, frames out.
//!
//! A frame on the socket, all numbers big endian:
//! ```text
//!  0        4          8     9      10
//!  | length | stream id | type | flags | payload, `length` bytes, at most 4 MiB
//! ```
//! A unary call is one [`Kind::Request`] frame holding a [`Request`] message and, any time later, one
//! [`Kind::Response`] frame with the same stream id holding a [`Response`]; responses come in any order. Clients use
//! odd stream ids, each once. Kind [`Kind::Data`] belongs to streaming calls, of which the shim API has none.
//!
//! [`FrameReader`] is fed whatever the socket gave and yields whole frames. It never holds more than one frame, grows
//! only as bytes arrive (an announced length allocates nothing), and refuses an oversized or meaningless header as
//! soon as its ten bytes are there; after a refusal the connection has lost its framing and must be closed.

pub use crate::generated::ttrpc::{KeyValue, Request, Response};

use crate::{Message, Status};
use std::fmt;

/// Bytes of the header.
pub const HEADER_LEN: usize = 10;
/// The longest payload either side may send; both Go's and Rust's ttrpc have the same limit.
pub const MAX_PAYLOAD: usize = 4 << 20;
/// Room a reader keeps between frames; beyond it the buffer of a large frame is given back.
const IDLE_CAPACITY: usize = 1024;

/// Names of the services.
pub mod service {
    /// containerd's task service up to containerd 1.x.
    pub const TASK_V2: &str = "containerd.task.v2.Task";
    /// The same service since containerd 2.0; the messages are equal.
    pub const TASK_V3: &str = "containerd.task.v3.Task";
    /// The sandbox service.
    pub const SANDBOX: &str = "containerd.runtime.sandbox.v1.Sandbox";
    /// Our own: log reopening, versions, the pod's limits.
    pub const CONTROL: &str = "coracle.v1.Control";
    /// Our own: what only the supervisor in a virtual machine does.
    pub const GUEST: &str = "coracle.v1.Guest";
    /// containerd's end of the event stream.
    pub const EVENTS: &str = "containerd.services.events.ttrpc.v1.Events";
}

/// Names of the methods.
#[allow(missing_docs)]
pub mod method {
    pub const STATE: &str = "State";
    pub const CREATE: &str = "Create";
    pub const START: &str = "Start";
    pub const DELETE: &str = "Delete";
    pub const PIDS: &str = "Pids";
    pub const PAUSE: &str = "Pause";
    pub const RESUME: &str = "Resume";
    pub const CHECKPOINT: &str = "Checkpoint";
    pub const KILL: &str = "Kill";
    pub const EXEC: &str = "Exec";
    pub const RESIZE_PTY: &str = "ResizePty";
    pub const CLOSE_IO: &str = "CloseIO";
    pub const UPDATE: &str = "Update";
    pub const WAIT: &str = "Wait";
    pub const STATS: &str = "Stats";
    pub const CONNECT: &str = "Connect";
    pub const SHUTDOWN: &str = "Shutdown";

    pub const CREATE_SANDBOX: &str = "CreateSandbox";
    pub const START_SANDBOX: &str = "StartSandbox";
    pub const PLATFORM: &str = "Platform";
    pub const STOP_SANDBOX: &str = "StopSandbox";
    pub const WAIT_SANDBOX: &str = "WaitSandbox";
    pub const SANDBOX_STATUS: &str = "SandboxStatus";
    pub const PING_SANDBOX: &str = "PingSandbox";
    pub const SHUTDOWN_SANDBOX: &str = "ShutdownSandbox";
    pub const SANDBOX_METRICS: &str = "SandboxMetrics";

    pub const REOPEN_LOG: &str = "ReopenLog";
    pub const INFO: &str = "Info";
    pub const UPDATE_SANDBOX: &str = "UpdateSandbox";
    pub const CONNECT_NETWORK: &str = "ConnectNetwork";

    pub const SET_UP: &str = "SetUp";
    pub const MOUNT: &str = "Mount";
    pub const UNMOUNT: &str = "Unmount";
    pub const PUT: &str = "Put";
    pub const FETCH: &str = "Fetch";

    pub const FORWARD: &str = "Forward";
}

/// Status codes: gRPC's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
#[allow(missing_docs)]
pub enum Code {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl Code {
    /// The code of a number from the wire; unknown numbers are [`Code::Unknown`].
    pub fn from_i32(number: i32) -> Self {
        use Code::*;
        const ALL: [Code; 17] = [
            Ok,
            Cancelled,
            Unknown,
            InvalidArgument,
            DeadlineExceeded,
            NotFound,
            AlreadyExists,
            PermissionDenied,
            ResourceExhausted,
            FailedPrecondition,
            Aborted,
            OutOfRange,
            Unimplemented,
            Internal,
            Unavailable,
            DataLoss,
            Unauthenticated,
        ];
        usize::try_from(number).ok().and_then(|at| ALL.get(at).copied()).unwrap_or(Unknown)
    }

    /// A status of this code.
    pub fn status(self, message: impl Into<String>) -> Status {
        Status { code: self as i32, message: message.into(), details: Vec::new() }
    }
}

impl Status {
    /// The meaning of the status' number.
    pub fn meaning(&self) -> Code {
        Code::from_i32(self.code)
    }
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Client to server: a [`Request`].
    Request = 1,
    /// Server to client: a [`Response`].
    Response = 2,
    /// Part of a streaming call.
    Data = 3,
}

/// One whole frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Pairs a response with its request.
    pub stream_id: u32,
    /// What the payload is.
    pub kind: Kind,
    /// Meaningful for streaming calls only.
    pub flags: u8,
    /// The encoded message.
    pub payload: Vec<u8>,
}

/// Why the bytes are no ttrpc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrameError {
    /// The header announces more than [`MAX_PAYLOAD`].
    TooLarge(u32),
    /// The type byte is none of [`Kind`].
    BadKind(u8),
    /// The payload to send is longer than [`MAX_PAYLOAD`].
    PayloadTooLarge(usize),
    /// The payload does not decode as the message its kind demands.
    BadMessage(String),
    /// The frame is of another kind than this side expects.
    Unexpected(Kind),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::TooLarge(length) => {
                write!(f, "ttrpc frame of {length} bytes exceeds {MAX_PAYLOAD}")
            }
            FrameError::BadKind(kind) => write!(f, "ttrpc frame of unknown type {kind}: is the peer speaking ttrpc?"),
            FrameError::PayloadTooLarge(length) => {
                write!(f, "ttrpc message of {length} bytes to send exceeds {MAX_PAYLOAD}")
            }
            FrameError::BadMessage(error) => write!(f, "ttrpc message does not decode: {error}"),
            FrameError::Unexpected(kind) => write!(f, "unexpected ttrpc frame of type {kind:?}"),
        }
    }
}

impl std::error::Error for FrameError {}

struct Header {
    length: usize,
    stream_id: u32,
    kind: Kind,
    flags: u8,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, flags] = *bytes;
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        let kind = match kind {
            1 => Kind::Request,
            2 => Kind::Response,
            3 => Kind::Data,
            other => return Err(FrameError::BadKind(other)),
        };
        if length as usize > MAX_PAYLOAD {
            return Err(FrameError::TooLarge(length));
        }
        let stream_id = u32::from_be_bytes([s0, s1, s2, s3]);
        Ok(Header { length: length as usize, stream_id, kind, flags })
    }
}

/// Assembles frames from the pieces a socket delivers.
#[derive(Debug, Default)]
pub struct FrameReader {
    /// The bytes of the one unfinished frame, header included.
    partial: Vec<u8>,
}

impl FrameReader {
    /// A reader at the start of a connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes from the front of `input` up to the end of one frame, and returns the frame if it is complete. Call it
    /// until it returns `None`: then `input` is used up.
    pub fn take(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        self.fill(input, HEADER_LEN);
        let Some(header) = self.partial.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let header = Header::parse(header)?;
        let whole = HEADER_LEN + header.length;
        self.fill(input, whole);
        if self.partial.len() < whole {
            return Ok(None);
        }
        let payload = self.partial[HEADER_LEN..].to_vec();
        self.partial.clear();
        if self.partial.capacity() > IDLE_CAPACITY {
            self.partial = Vec::new();
        }
        Ok(Some(Frame { stream_id: header.stream_id, kind: header.kind, flags: header.flags, payload }))
    }

    /// Whether a frame has begun and is not complete: a disconnect now cuts a message.
    pub fn mid_frame(&self) -> bool {
        !self.partial.is_empty()
    }

    fn fill(&mut self, input: &mut &[u8], upto: usize) {
        let missing = upto.saturating_sub(self.partial.len()).min(input.len());
        let (taken, rest) = input.split_at(missing);
        self.partial.extend_from_slice(taken);
        *input = rest;
    }
}

/// The bytes of one frame.
pub fn encode_frame(kind: Kind, stream_id: u32, flags: u8, message: &impl Message) -> Result<Vec<u8>, FrameError> {
    let length = message.encoded_len();
    if length > MAX_PAYLOAD {
        return Err(FrameError::PayloadTooLarge(length));
    }
    let mut bytes = Vec::with_capacity(HEADER_LEN + length);
    bytes.extend_from_slice(&(length as u32).to_be_bytes());
    bytes.extend_from_slice(&stream_id.to_be_bytes());
    bytes.extend_from_slice(&[kind as u8, flags]);
    message.encode_raw(&mut bytes);
    Ok(bytes)
}

/// The bytes of a unary call. `timeout_nano` of 0 means no deadline.
pub fn encode_request(
    stream_id: u32,
    service: &str,
    method: &str,
    message: &impl Message,
    timeout_nano: i64,
) -> Result<Vec<u8>, FrameError> {
    let request = Request {
        service: service.to_owned(),
        method: method.to_owned(),
        payload: message.encode_to_vec(),
        timeout_nano,
        metadata: Vec::new(),
    };
    encode_frame(Kind::Request, stream_id, 0, &request)
}

/// The bytes of an answer: an encoded message, or the status of a failure.
pub fn encode_response(stream_id: u32, result: Result<Vec<u8>, Status>) -> Result<Vec<u8>, FrameError> {
    let response = match result {
        Ok(payload) => Response { status: None, payload },
        Err(status) => Response { status: Some(status), payload: Vec::new() },
    };
    encode_frame(Kind::Response, stream_id, 0, &response)
}

impl Frame {
    /// What a server reads from a frame.
    pub fn into_request(self) -> Result<Request, FrameError> {
        match self.kind {
            Kind::Request => decode(&self.payload),
            other => Err(FrameError::Unexpected(other)),
        }
    }

    /// What a client reads from a frame: the encoded answer, or the status of the failure.
    pub fn into_response(self) -> Result<Result<Vec<u8>, Status>, FrameError> {
        if self.kind != Kind::Response {
            return Err(FrameError::Unexpected(self.kind));
        }
        let response: Response = decode(&self.payload)?;
        Ok(match response.status {
            Some(status) if status.code != 0 => Err(status),
            _ => Ok(response.payload),
        })
    }
}

fn decode<M: Message + Default>(payload: &[u8]) -> Result<M, FrameError> {
    M::decode(payload).map_err(|error| FrameError::BadMessage(error.to_string()))
}

/// Hands out a client's stream ids: odd, each once, until the connection has used up 2^31 of them.
#[derive(Debug)]
pub struct StreamIds {
    next: Option<u32>,
}

impl Default for StreamIds {
    fn default() -> Self {
        StreamIds { next: Some(1) }
    }
}

impl StreamIds {
    /// The next id; `None` when the connection must be replaced.
    pub fn next_id(&mut self) -> Option<u32> {
        let id = self.next?;
        self.next = id.checked_add(2);
        Some(id)
    }
}

#[cfg(test)]
mod tests;
