//! Frames of SPDY/3.1, without I/O.
//!
//! ```text
//! control:  |1| version (15) = 3 | type (16) | flags (8) | length (24) | payload
//! data:     |0| stream (31)                  | flags (8) | length (24) | payload
//! ```
//! | type | payload |
//! |---|---|
//! | 1 SYN_STREAM | stream, associated stream, priority (3 bits) and slot (13 bits), header block |
//! | 2 SYN_REPLY | stream, header block |
//! | 3 RST_STREAM | stream, status |
//! | 4 SETTINGS | count, then flags (8) and id (24), value |
//! | 6 PING | id |
//! | 7 GOAWAY | last good stream, status |
//! | 8 HEADERS | stream, header block |
//! | 9 WINDOW_UPDATE | stream (0: the connection), delta |
//!
//! Control frames are read whole and are short; data is passed on in the pieces in which it comes, so a frame of
//! sixteen megabytes takes no memory. Control frames of unknown types are skipped, as the specification wants it.

use std::fmt;

use super::headers::{Deflater, Headers, Inflater};

/// Flag of a stream's last frame.
const FIN: u8 = 0x01;
/// Flag of a stream on which nothing comes back.
const UNIDIRECTIONAL: u8 = 0x02;
const HEADER: usize = 8;
const VERSION: u16 = 3;
/// The longest control frame: a header block of 16 KiB does not grow by its compression more than this.
const MAX_CONTROL: usize = 32 << 10;
/// What numbers of streams and windows have.
const BITS_31: u32 = 0x7fff_ffff;

/// RST_STREAM: the frame makes no sense for the stream.
pub(in crate::serve::streaming) const PROTOCOL_ERROR: u32 = 1;
/// RST_STREAM: no such stream.
pub(in crate::serve::streaming) const INVALID_STREAM: u32 = 2;
/// RST_STREAM: not taken, and nothing was done.
pub(in crate::serve::streaming) const REFUSED_STREAM: u32 = 3;
/// RST_STREAM: not needed any more.
pub(in crate::serve::streaming) const CANCEL: u32 = 5;
/// SETTINGS: the window of each new stream.
pub(in crate::serve::streaming) const INITIAL_WINDOW_SIZE: u32 = 7;

/// The peer does not speak SPDY, or ours cannot be understood any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::serve::streaming) struct Fault(String);

impl Fault {
    pub(super) fn new(why: impl Into<String>) -> Fault {
        Fault(why.into())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SPDY: {}", self.0)
    }
}

impl std::error::Error for Fault {}

/// A frame; data may be a piece of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::serve::streaming) enum Frame {
    SynStream { stream: u32, fin: bool, unidirectional: bool, headers: Headers },
    SynReply { stream: u32, fin: bool, headers: Headers },
    Reset { stream: u32, status: u32 },
    Settings(Vec<(u32, u32)>),
    Ping(u32),
    GoAway { last: u32, status: u32 },
    Headers { stream: u32, fin: bool, headers: Headers },
    WindowUpdate { stream: u32, delta: u32 },
    Data { stream: u32, fin: bool, bytes: Vec<u8> },
}

/// A data frame whose payload comes in.
struct Flowing {
    stream: u32,
    fin: bool,
    left: usize,
}

/// Assembles frames from the pieces that a connection delivers.
pub(in crate::serve::streaming) struct Decoder {
    partial: Vec<u8>,
    flowing: Option<Flowing>,
    inflater: Inflater,
}

impl Decoder {
    pub(in crate::serve::streaming) fn new() -> Decoder {
        Decoder { partial: Vec::new(), flowing: None, inflater: Inflater::new() }
    }

    /// Takes the next frame from the front of `input`. Call it until it returns `None`: then `input` is used up.
    pub(in crate::serve::streaming) fn take(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, Fault> {
        loop {
            if let Some(flowing) = &mut self.flowing {
                let piece = flowing.left.min(input.len());
                if piece == 0 && flowing.left > 0 {
                    return Ok(None);
                }
                let (bytes, rest) = input.split_at(piece);
                *input = rest;
                flowing.left -= piece;
                let frame = Frame::Data {
                    stream: flowing.stream,
                    fin: flowing.fin && flowing.left == 0,
                    bytes: bytes.to_vec(),
                };
                if flowing.left == 0 {
                    self.flowing = None;
                }
                return Ok(Some(frame));
            }
            self.fill(input, HEADER);
            let Some(&[a, b, c, d, flags, x, y, z]) = self.partial.first_chunk::<HEADER>() else { return Ok(None) };
            let (word, length) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([0, x, y, z]) as usize);
            if word & !BITS_31 == 0 {
                self.flowing = Some(Flowing { stream: word, fin: flags & FIN != 0, left: length });
                self.partial.clear();
                continue;
            }
            let (version, kind) = ((word >> 16) as u16 & 0x7fff, word as u16);
            if version != VERSION {
                return Err(Fault::new(format!("a frame of version {version}; only 3 is spoken here")));
            }
            if length > MAX_CONTROL {
                return Err(Fault::new(format!("a control frame of {length} bytes; {MAX_CONTROL} is the limit")));
            }
            self.fill(input, HEADER + length);
            if self.partial.len() < HEADER + length {
                return Ok(None);
            }
            let whole = std::mem::take(&mut self.partial);
            if let Some(frame) = self.control(kind, flags, &whole[HEADER..])? {
                return Ok(Some(frame));
            }
        }
    }

    fn fill(&mut self, input: &mut &[u8], upto: usize) {
        let missing = upto.saturating_sub(self.partial.len()).min(input.len());
        let (taken, rest) = input.split_at(missing);
        self.partial.extend_from_slice(taken);
        *input = rest;
    }

    fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) -> Result<Option<Frame>, Fault> {
        let word = |at: usize| -> Result<u32, Fault> {
            let bytes = payload.get(at..).and_then(|rest| rest.first_chunk::<4>());
            Ok(u32::from_be_bytes(*bytes.ok_or_else(|| Fault::new(format!("a frame of type {kind} is too short")))?))
        };
        let from = |at: usize| payload.get(at..).unwrap_or_default();
        let fin = flags & FIN != 0;
        Ok(Some(match kind {
            1 => {
                let stream = word(0)? & BITS_31;
                word(6)?;
                let headers = self.inflater.headers(from(10))?;
                Frame::SynStream { stream, fin, unidirectional: flags & UNIDIRECTIONAL != 0, headers }
            }
            2 => Frame::SynReply { stream: word(0)? & BITS_31, fin, headers: self.inflater.headers(from(4))? },
            3 => Frame::Reset { stream: word(0)? & BITS_31, status: word(4)? },
            4 => {
                let count = word(0)? as usize;
                if count > payload.len() / 8 {
                    return Err(Fault::new(format!("a SETTINGS frame that lies about its {count} settings")));
                }
                let settings = (0..count).map(|at| Ok((word(4 + at * 8)? & 0xff_ffff, word(8 + at * 8)?)));
                Frame::Settings(settings.collect::<Result<_, Fault>>()?)
            }
            6 => Frame::Ping(word(0)?),
            7 => Frame::GoAway { last: word(0)? & BITS_31, status: word(4)? },
            8 => Frame::Headers { stream: word(0)? & BITS_31, fin, headers: self.inflater.headers(from(4))? },
            9 => Frame::WindowUpdate { stream: word(0)? & BITS_31, delta: word(4)? & BITS_31 },
            _ => return Ok(None),
        }))
    }
}

/// Writes frames.
pub(in crate::serve::streaming) struct Encoder {
    deflater: Deflater,
}

impl Encoder {
    pub(in crate::serve::streaming) fn new() -> Encoder {
        Encoder { deflater: Deflater::new() }
    }

    /// The bytes of a frame with headers: to be sent in the order in which they are made.
    pub(in crate::serve::streaming) fn encode(&mut self, frame: &Frame) -> Vec<u8> {
        let mut deflate = |headers| self.deflater.block(headers);
        let fin_flag = |fin: bool| if fin { FIN } else { 0 };
        match frame {
            Frame::SynStream { stream, fin, unidirectional, headers } => {
                let flags = fin_flag(*fin) | if *unidirectional { UNIDIRECTIONAL } else { 0 };
                control(1, flags, &[&stream.to_be_bytes(), &[0; 6], &deflate(headers)])
            }
            Frame::SynReply { stream, fin, headers } => {
                control(2, fin_flag(*fin), &[&stream.to_be_bytes(), &deflate(headers)])
            }
            Frame::Headers { stream, fin, headers } => {
                control(8, fin_flag(*fin), &[&stream.to_be_bytes(), &deflate(headers)])
            }
            plain => plain.encode(),
        }
    }
}

impl Frame {
    /// The bytes of a frame without headers; one with headers needs the connection's [`Encoder`], and is empty here.
    pub(in crate::serve::streaming) fn encode(&self) -> Vec<u8> {
        match self {
            Frame::Reset { stream, status } => control(3, 0, &[&stream.to_be_bytes(), &status.to_be_bytes()]),
            Frame::Settings(settings) => {
                let entries: Vec<u8> =
                    settings.iter().flat_map(|(id, value)| [id.to_be_bytes(), value.to_be_bytes()].concat()).collect();
                control(4, 0, &[&(settings.len() as u32).to_be_bytes(), &entries])
            }
            Frame::Ping(id) => control(6, 0, &[&id.to_be_bytes()]),
            Frame::GoAway { last, status } => control(7, 0, &[&last.to_be_bytes(), &status.to_be_bytes()]),
            Frame::WindowUpdate { stream, delta } => control(9, 0, &[&stream.to_be_bytes(), &delta.to_be_bytes()]),
            Frame::Data { stream, fin, bytes } => data(*stream, *fin, bytes),
            Frame::SynStream { .. } | Frame::SynReply { .. } | Frame::Headers { .. } => Vec::new(),
        }
    }
}

fn control(kind: u16, flags: u8, payload: &[&[u8]]) -> Vec<u8> {
    let length: usize = payload.iter().map(|piece| piece.len()).sum();
    let mut bytes = Vec::with_capacity(HEADER + length);
    bytes.extend_from_slice(&(0x8000 | VERSION).to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&(u32::from(flags) << 24 | length as u32).to_be_bytes());
    payload.iter().for_each(|piece| bytes.extend_from_slice(piece));
    bytes
}

/// A data frame; `bytes` is at most 16 MiB.
pub(in crate::serve::streaming) fn data(stream: u32, fin: bool, bytes: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER + bytes.len());
    frame.extend_from_slice(&(stream & BITS_31).to_be_bytes());
    let flags = if fin { u32::from(FIN) } else { 0 };
    frame.extend_from_slice(&(flags << 24 | bytes.len() as u32).to_be_bytes());
    frame.extend_from_slice(bytes);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers() -> impl Strategy<Value = Headers> {
        prop::collection::vec(("[a-z:]{1,12}", "[ -~]{0,40}"), 0..6)
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let stream = 1u32..=BITS_31;
        prop_oneof![
            (stream.clone(), any::<bool>(), any::<bool>(), headers()).prop_map(
                |(stream, fin, unidirectional, headers)| { Frame::SynStream { stream, fin, unidirectional, headers } }
            ),
            (stream.clone(), any::<bool>(), headers()).prop_map(|(stream, fin, headers)| Frame::SynReply {
                stream,
                fin,
                headers
            }),
            (stream.clone(), any::<bool>(), headers()).prop_map(|(stream, fin, headers)| Frame::Headers {
                stream,
                fin,
                headers
            }),
            (stream.clone(), any::<u32>()).prop_map(|(stream, status)| Frame::Reset { stream, status }),
            prop::collection::vec((0u32..1 << 24, any::<u32>()), 0..5).prop_map(Frame::Settings),
            any::<u32>().prop_map(Frame::Ping),
            (stream.clone(), any::<u32>()).prop_map(|(last, status)| Frame::GoAway { last, status }),
            (0u32..=BITS_31, 0u32..=BITS_31).prop_map(|(stream, delta)| Frame::WindowUpdate { stream, delta }),
            (stream, any::<bool>(), prop::collection::vec(any::<u8>(), 0..3000))
                .prop_map(|(stream, fin, bytes)| Frame::Data { stream, fin, bytes }),
        ]
    }

    /// Puts the pieces of data together again, as far as they belong to one frame.
    fn joined(frames: Vec<Frame>, like: &[Frame]) -> Vec<Frame> {
        let mut pieces = frames.into_iter();
        like.iter()
            .map(|wanted| match (pieces.next().expect("a frame"), wanted) {
                (Frame::Data { stream, mut fin, mut bytes }, Frame::Data { bytes: whole, .. }) => {
                    while bytes.len() < whole.len() {
                        let Some(Frame::Data { fin: f, bytes: more, .. }) = pieces.next() else { panic!("cut off") };
                        assert!(!fin, "only the last piece ends the stream");
                        (fin, bytes) = (f, [bytes, more].concat());
                    }
                    Frame::Data { stream, fin, bytes }
                }
                (frame, _) => frame,
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn frames_survive_any_cutting(frames in prop::collection::vec(frame(), 1..8), cut in 1usize..700) {
            let mut encoder = Encoder::new();
            let wire: Vec<u8> = frames.iter().flat_map(|frame| encoder.encode(frame)).collect();
            let (mut decoder, mut back) = (Decoder::new(), Vec::new());
            for mut piece in wire.chunks(cut) {
                while let Some(frame) = decoder.take(&mut piece).unwrap() {
                    back.push(frame);
                }
                prop_assert!(piece.is_empty());
            }
            prop_assert_eq!(joined(back, &frames), frames);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let (mut decoder, mut rest) = (Decoder::new(), bytes.as_slice());
            while let Ok(Some(_)) = decoder.take(&mut rest) {}
        }
    }

    #[test]
    fn a_lying_length_is_refused_from_the_header_alone() {
        let fault = Decoder::new().take(&mut &[0x80, 3, 0, 1, 0, 0xff, 0, 0][..]).unwrap_err();
        assert!(fault.to_string().contains("control frame of 16711680 bytes"), "{fault}");
        let settings = [0x80, 3, 0, 4, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff];
        assert!(Decoder::new().take(&mut &settings[..]).is_err());
        let version = Decoder::new().take(&mut &[0x80, 2, 0, 6, 0, 0, 0, 4][..]).unwrap_err();
        assert!(version.to_string().contains("version 2"), "{version}");
    }

    #[test]
    fn an_unknown_control_frame_is_skipped() {
        let mut wire = control(11, 0, &[b"whatever"]);
        wire.extend(Frame::Ping(7).encode());
        assert_eq!(Decoder::new().take(&mut wire.as_slice()).unwrap(), Some(Frame::Ping(7)));
    }

    #[test]
    fn data_is_passed_on_before_its_frame_is_whole() {
        let wire = data(5, true, b"abcdef");
        let mut decoder = Decoder::new();
        let first = decoder.take(&mut &wire[..HEADER + 2]).unwrap();
        assert_eq!(first, Some(Frame::Data { stream: 5, fin: false, bytes: b"ab".to_vec() }));
        let second = decoder.take(&mut &wire[HEADER + 2..]).unwrap();
        assert_eq!(second, Some(Frame::Data { stream: 5, fin: true, bytes: b"cdef".to_vec() }));
    }
}
