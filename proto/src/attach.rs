//! Frames of the attach socket, without I/O.
//!
//! A client opens the socket and sends one line of JSON,
//! `{"container":ID,"exec":EXEC_ID or "","stdin":bool,"wait":bool,"again":bool}`; what is not there is empty or false. The
//! supervisor answers one line, `{"ok":true,"passed":[IN,OUT,ERR]}` or `{"error":"..."}`. Then frames run both ways:
//! ```text
//!  0      1        5
//!  | type | length | payload, `length` bytes (big endian), at most 64 KiB
//! ```
//! | type | direction | payload |
//! |---|---|---|
//! | 0 stdin | from the client | bytes for the process; none = end of input (only that half closes) |
//! | 1 stdout | to the client | output; a terminal's output is all of this type |
//! | 2 stderr | to the client | output |
//! | 4 end | to the client | none: the process has ended and all its output was sent |
//! | 4 end | from a client that is waited for | none: it wants no more, and nobody will come in its place |
//!
//! Attach to an exec before `Task.Start` of it and nothing is lost; a container's client sees output from the moment
//! it attached, and is dropped when it lags behind. With `wait` it is not: the container waits for it, and when it is gone
//! without an end frame, for the next one that comes with `wait`. That one says `again`, and finds out by `passed` (all bytes
//! of the process' input and outputs that clients like it have sent, and were sent) what was lost between them. A client
//! of `wait` may come before the exec that it is for, but not `again`. [`FrameReader`] keeps the promises of the one in [`crate::ttrpc`].

use std::fmt;

/// Bytes of the header.
pub const HEADER_LEN: usize = 5;
/// The longest payload of one frame.
pub const MAX_PAYLOAD: usize = 64 << 10;
/// The longest first line either side may send.
pub const MAX_HELLO: usize = 4 << 10;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Input; an empty payload is its end.
    Stdin = 0,
    /// Output.
    Stdout = 1,
    /// Error output.
    Stderr = 2,
    /// All output was sent.
    End = 4,
}

/// One whole frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: Kind,
    /// The bytes.
    pub payload: Vec<u8>,
}

/// Why the bytes are no attach frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// The header announces more than [`MAX_PAYLOAD`].
    TooLarge(u32),
    /// The type byte is none of [`Kind`].
    BadKind(u8),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::TooLarge(length) => {
                write!(f, "attach frame of {length} bytes exceeds {MAX_PAYLOAD}")
            }
            FrameError::BadKind(kind) => write!(f, "attach frame of unknown type {kind}"),
        }
    }
}

impl std::error::Error for FrameError {}

/// The header before `length` bytes of payload. `length` must be at most [`MAX_PAYLOAD`]; see [`encode`].
pub fn header(kind: Kind, length: usize) -> [u8; HEADER_LEN] {
    debug_assert!(length <= MAX_PAYLOAD);
    let [a, b, c, d] = (length as u32).to_be_bytes();
    [kind as u8, a, b, c, d]
}

/// Appends `bytes` to `out` as frames, as many as needed. No bytes make one empty frame.
pub fn encode(kind: Kind, bytes: &[u8], out: &mut Vec<u8>) {
    if bytes.is_empty() {
        out.extend_from_slice(&header(kind, 0));
    }
    for piece in bytes.chunks(MAX_PAYLOAD) {
        out.extend_from_slice(&header(kind, piece.len()));
        out.extend_from_slice(piece);
    }
}

/// Assembles frames from the pieces a socket delivers; holds at most one unfinished frame.
#[derive(Debug, Default)]
pub struct FrameReader {
    partial: Vec<u8>,
}

impl FrameReader {
    /// A reader at the first frame, after the line of JSON.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes from the front of `input` up to the end of one frame, and returns the frame if it is complete. Call it
    /// until it returns `None`: then `input` is used up.
    pub fn take(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        self.fill(input, HEADER_LEN);
        let Some(&[kind, a, b, c, d]) = self.partial.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]);
        let kind = match kind {
            0 => Kind::Stdin,
            1 => Kind::Stdout,
            2 => Kind::Stderr,
            4 => Kind::End,
            other => return Err(FrameError::BadKind(other)),
        };
        if length as usize > MAX_PAYLOAD {
            return Err(FrameError::TooLarge(length));
        }
        let whole = HEADER_LEN + length as usize;
        self.fill(input, whole);
        if self.partial.len() < whole {
            return Ok(None);
        }
        let payload = self.partial[HEADER_LEN..].to_vec();
        self.partial = Vec::new();
        Ok(Some(Frame { kind, payload }))
    }

    fn fill(&mut self, input: &mut &[u8], upto: usize) {
        let missing = upto.saturating_sub(self.partial.len()).min(input.len());
        let (taken, rest) = input.split_at(missing);
        self.partial.extend_from_slice(taken);
        *input = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_lying_length_is_refused_from_the_header_alone() {
        let mut reader = FrameReader::new();
        let bytes = [1, 0xff, 0, 0, 0];
        assert_eq!(reader.take(&mut &bytes[..]), Err(FrameError::TooLarge(0xff00_0000)));
        assert_eq!(FrameReader::new().take(&mut &[3u8, 0, 0, 0, 0][..]), Err(FrameError::BadKind(3)));
    }

    #[test]
    fn end_of_input_is_an_empty_stdin_frame() {
        let mut out = Vec::new();
        encode(Kind::Stdin, &[], &mut out);
        assert_eq!(out, [0, 0, 0, 0, 0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn bytes_survive_any_cutting(bytes in prop::collection::vec(any::<u8>(), 1..140_000), cut in 500usize..70_000) {
            let mut wire = Vec::new();
            encode(Kind::Stdout, &bytes, &mut wire);
            let (mut reader, mut back) = (FrameReader::new(), Vec::new());
            for mut piece in wire.chunks(cut) {
                while let Some(frame) = reader.take(&mut piece).unwrap() {
                    prop_assert_eq!(frame.kind, Kind::Stdout);
                    back.extend(frame.payload);
                }
                prop_assert!(piece.is_empty());
            }
            prop_assert_eq!(back, bytes);
        }
    }
}
