//! Frames of the link: how they are written, and read from bytes in any pieces.
//!
//! All numbers are big endian:
//! ```text
//!  0        4      5   6        8
//!  | stream | kind | 0 | length | payload, `length` bytes | seal |
//! ```
//! | kind | payload | said by |
//! |---|---|---|
//! | 1 open | service u8, port u16 | host |
//! | 2 opened | none | guest |
//! | 3 refused | words, at most 256 bytes | guest |
//! | 4 data | 1 byte to 16 KiB | both |
//! | 5 eof | none: no more data comes | both |
//! | 6 window | u32: the sender takes so many bytes more | both |
//! | 7 close | none: the sender has forgotten the stream | both |
//!
//! The seal is four bytes that differ from session to session and are never all zero. So a frame that another session
//! began and zeros have filled up is seen for what it is, and its payload is nobody's. A [`FrameReader`] hands out
//! frames only when their seal is there, holds no more than one, and grows only as bytes arrive.

use std::fmt;

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;
/// Bytes of the seal.
pub const SEAL_LEN: usize = 4;
/// The longest payload of one frame.
pub const MAX_PAYLOAD: usize = 16 << 10;
/// The longest frame.
pub const MAX_FRAME: usize = HEADER_LEN + MAX_PAYLOAD + SEAL_LEN;
/// The longest words of a refusal.
pub const MAX_WORDS: usize = 256;

/// What a stream leads to in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// The supervisor's task socket.
    Task,
    /// Its attach socket.
    Attach,
    /// A TCP port of the loopback.
    Dial(u16),
}

impl Service {
    fn pack(self) -> [u8; 3] {
        let (kind, port) = match self {
            Service::Task => (1, 0),
            Service::Attach => (2, 0),
            Service::Dial(port) => (3, port),
        };
        let [high, low] = u16::to_be_bytes(port);
        [kind, high, low]
    }

    fn unpack(bytes: [u8; 3]) -> Option<Service> {
        match (bytes[0], u16::from_be_bytes([bytes[1], bytes[2]])) {
            (1, 0) => Some(Service::Task),
            (2, 0) => Some(Service::Attach),
            (3, port @ 1..) => Some(Service::Dial(port)),
            _ => None,
        }
    }
}

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body<'a> {
    /// A new stream.
    Open(Service),
    /// The service takes it.
    Opened,
    /// It does not, for this reason: unchecked bytes.
    Refused(&'a [u8]),
    /// Bytes of the stream.
    Data(&'a [u8]),
    /// No more of them come.
    Eof,
    /// So many more are taken.
    Window(u32),
    /// The stream is forgotten.
    Close,
}

/// Why bytes are no frames of this session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadFrame {
    /// The header means nothing: what kind it names, and the length.
    Header(u8, u16),
    /// The payload means nothing for its kind.
    Payload(u8),
    /// The seal is not this session's.
    Seal,
}

impl fmt::Display for BadFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadFrame::Header(kind, length) => write!(f, "a frame of kind {kind} and {length} bytes"),
            BadFrame::Payload(kind) => write!(f, "a frame of kind {kind} whose payload means nothing"),
            BadFrame::Seal => f.write_str("a frame without the session's seal"),
        }
    }
}

impl Body<'_> {
    fn kind(&self) -> u8 {
        match self {
            Body::Open(_) => 1,
            Body::Opened => 2,
            Body::Refused(_) => 3,
            Body::Data(_) => 4,
            Body::Eof => 5,
            Body::Window(_) => 6,
            Body::Close => 7,
        }
    }

    /// Writes the frame behind what `out` holds. Longer payloads than a frame takes are cut: callers see to it.
    pub fn encode(&self, stream: u32, seal: u32, out: &mut Vec<u8>) {
        let numbers: [u8; 4];
        let packed: [u8; 3];
        let payload: &[u8] = match self {
            Body::Open(service) => {
                packed = service.pack();
                &packed
            }
            Body::Refused(words) => &words[..words.len().min(MAX_WORDS)],
            Body::Data(bytes) => &bytes[..bytes.len().min(MAX_PAYLOAD)],
            Body::Window(count) => {
                numbers = count.to_be_bytes();
                &numbers
            }
            Body::Opened | Body::Eof | Body::Close => &[],
        };
        out.extend_from_slice(&stream.to_be_bytes());
        out.extend_from_slice(&[self.kind(), 0]);
        out.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        out.extend_from_slice(payload);
        out.extend_from_slice(&seal.to_be_bytes());
    }
}

/// Assembles frames from the pieces that a port delivers.
#[derive(Debug, Default)]
pub struct FrameReader {
    /// The frame that was handed out last, or the beginning of the next.
    partial: Vec<u8>,
    taken: bool,
}

impl FrameReader {
    /// Takes from the front of `input` up to the end of one frame, and returns its stream and what it says if it is
    /// whole. Call it until it returns `None`: then `input` is used up. After an error no more frames are found.
    pub fn take<'a>(&'a mut self, input: &mut &[u8], seal: u32) -> Result<Option<(u32, Body<'a>)>, BadFrame> {
        if std::mem::take(&mut self.taken) {
            self.partial.clear();
        }
        self.fill(input, HEADER_LEN);
        let Some(header) = self.partial.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let [s0, s1, s2, s3, kind, zero, l0, l1] = *header;
        let (stream, length) = (u32::from_be_bytes([s0, s1, s2, s3]), u16::from_be_bytes([l0, l1]));
        let allowed = match kind {
            1 => 3..=3,
            2 | 5 | 7 => 0..=0,
            3 => 0..=MAX_WORDS,
            4 => 1..=MAX_PAYLOAD,
            6 => 4..=4,
            _ => return Err(BadFrame::Header(kind, length)),
        };
        if stream == 0 || zero != 0 || !allowed.contains(&usize::from(length)) {
            return Err(BadFrame::Header(kind, length));
        }
        let end = HEADER_LEN + usize::from(length);
        self.fill(input, end + SEAL_LEN);
        if self.partial.len() < end + SEAL_LEN {
            return Ok(None);
        }
        self.taken = true;
        if self.partial[end..] != seal.to_be_bytes() {
            return Err(BadFrame::Seal);
        }
        let payload = &self.partial[HEADER_LEN..end];
        let body = body(kind, payload).ok_or(BadFrame::Payload(kind))?;
        Ok(Some((stream, body)))
    }

    fn fill(&mut self, input: &mut &[u8], upto: usize) {
        let missing = upto.saturating_sub(self.partial.len()).min(input.len());
        let (taken, rest) = input.split_at(missing);
        self.partial.extend_from_slice(taken);
        *input = rest;
    }
}

/// The meaning of a payload whose length fits its kind.
fn body(kind: u8, payload: &[u8]) -> Option<Body<'_>> {
    Some(match kind {
        1 => Body::Open(Service::unpack(payload.try_into().ok()?)?),
        2 => Body::Opened,
        3 => Body::Refused(payload),
        4 => Body::Data(payload),
        5 => Body::Eof,
        6 => Body::Window(u32::from_be_bytes(payload.try_into().ok()?)),
        _ => Body::Close,
    })
}
