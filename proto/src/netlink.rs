//! Netlink's messages, as much of them as pods' networks need: requests out, answers in. The sockets are their users'.
//!
//! Why not the `rtnetlink` crate: it needs tokio and a connection task per socket, it knows neither nf_tables nor
//! conntrack, and its typed messages change with each of its frequent releases. The message families used here are a
//! header, a fixed struct and attributes; writing them takes less code than driving the crate did, and a request is one
//! `send` and one `recv` in the thread that asked, which is what entering another network namespace needs.
//!
//! ```text
//! nlmsghdr { len u32, type u16, flags u16, seq u32, port u32 }   family's fixed struct   attributes...
//! attribute { len u16, type u16 } payload, padded to 4           a nest is an attribute whose payload is attributes
//! ```
//!
//! An [`Exchange`] is some requests in one datagram, and what the kernel answers to them until each has its end.

use std::fmt;

const NLM_F_REQUEST: u16 = 0x1;
/// Want an acknowledgement: every request here does, so that each has exactly one end.
const NLM_F_ACK: u16 = 0x4;
/// Dump: answer with all objects of the kind.
pub const NLM_F_DUMP: u16 = 0x300;
/// Take the place of what is named.
pub const NLM_F_REPLACE: u16 = 0x100;
/// Create what is named.
pub const NLM_F_CREATE: u16 = 0x400;
/// Fail when it exists.
pub const NLM_F_EXCL: u16 = 0x200;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 16;
/// `nlmsghdr.flags` of an error message that carries the kernel's own words after a cut-off copy of the request.
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// A request under construction.
#[derive(Debug)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A request of `kind` with extra `flags`, followed by the family's fixed struct `head`.
    pub fn new(kind: u16, flags: u16, head: &[u8]) -> Message {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(head);
        let mut message = Message { bytes };
        message.pad();
        message
    }

    /// As [`Message::new`], but without an acknowledgement: the two ends of an nf_tables batch.
    pub fn unanswered(kind: u16, head: &[u8]) -> Message {
        let mut message = Message::new(kind, 0, head);
        message.bytes[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
        message
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Adds an attribute.
    pub fn attr(mut self, kind: u16, payload: &[u8]) -> Message {
        let len = u16::try_from(payload.len() + 4).expect("attributes here are short");
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(payload);
        self.pad();
        self
    }

    /// Adds a text attribute, ended by a zero byte as the kernel wants it.
    pub fn text(self, kind: u16, value: &str) -> Message {
        self.attr(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Adds an attribute that holds attributes, and before them the fixed struct `head` where the kind has one.
    pub fn nest(mut self, kind: u16, head: &[u8], fill: impl FnOnce(Message) -> Message) -> Message {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(head);
        self.pad();
        let mut filled = fill(self);
        let len = u16::try_from(filled.bytes.len() - start).expect("attributes here are short");
        filled.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        filled.bytes[start + 2..start + 4].copy_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        filled
    }

    fn finish(mut self, seq: u32) -> (Vec<u8>, bool) {
        let len = u32::try_from(self.bytes.len()).expect("messages here are short");
        self.bytes[0..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&seq.to_ne_bytes());
        let answered = u16_at(&self.bytes, 6) & NLM_F_ACK != 0;
        (self.bytes, answered)
    }
}

/// One object of an answer: the bytes after the header.
#[derive(Debug)]
pub struct Reply {
    body: Vec<u8>,
}

impl Reply {
    /// The first `N` bytes: the family's fixed struct. Zeroes where the kernel sent less.
    pub fn head<const N: usize>(&self) -> [u8; N] {
        let mut head = [0; N];
        let have = self.body.len().min(N);
        head[..have].copy_from_slice(&self.body[..have]);
        head
    }

    /// The attributes that follow a fixed struct of `head` bytes.
    pub fn attrs(&self, head: usize) -> Attrs<'_> {
        Attrs { rest: self.body.get(head..).unwrap_or_default() }
    }
}

/// An iterator over attributes: (type without flags, payload). Ends at the first malformed one.
#[derive(Clone, Copy, Debug)]
pub struct Attrs<'a> {
    rest: &'a [u8],
}

impl<'a> Attrs<'a> {
    /// The attributes inside the payload of a nest.
    pub fn of(payload: &'a [u8]) -> Attrs<'a> {
        Attrs { rest: payload }
    }

    /// The payload of the first attribute of `kind`.
    pub fn get(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find(|(k, _)| *k == kind).map(|(_, payload)| payload)
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.len() < 4 {
            return None;
        }
        let len = usize::from(u16_at(self.rest, 0));
        let kind = u16_at(self.rest, 2) & NLA_TYPE_MASK;
        let payload = self.rest.get(4..len)?;
        self.rest = self.rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// A number from an attribute in the machine's byte order.
pub fn number(payload: &[u8]) -> u32 {
    if payload.len() < 4 { 0 } else { u32_at(payload, 0) }
}

/// A text attribute, without its ending zero.
pub fn string(payload: &[u8]) -> String {
    let end = payload.iter().position(|b| *b == 0).unwrap_or(payload.len());
    String::from_utf8_lossy(&payload[..end]).into_owned()
}

/// Why a request failed: the errno, and the kernel's own words when it gave some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// As the kernel counts errors.
    pub errno: i32,
    /// What the kernel says about it.
    pub words: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = std::io::Error::from_raw_os_error(self.errno);
        match &self.words {
            Some(words) => write!(f, "{error}: {words}"),
            None => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for Refusal {}

/// Requests on their way, and how many of them have not had their end.
#[derive(Debug)]
pub struct Exchange {
    datagram: Vec<u8>,
    first: u32,
    open: Vec<u32>,
    failure: Option<Refusal>,
}

impl Exchange {
    /// Requests that belong together. `seq` is the socket's count of messages.
    pub fn new(seq: &mut u32, messages: Vec<Message>) -> Exchange {
        let mut exchange = Exchange { datagram: Vec::new(), first: *seq + 1, open: Vec::new(), failure: None };
        for message in messages {
            *seq += 1;
            let (bytes, answered) = message.finish(*seq);
            exchange.datagram.extend_from_slice(&bytes);
            if answered {
                exchange.open.push(*seq);
            }
        }
        exchange
    }

    /// What is to be sent.
    pub fn datagram(&self) -> &[u8] {
        &self.datagram
    }

    /// Whether the kernel is yet to answer.
    pub fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Takes in a datagram of the kernel's, and hands on the objects in it.
    pub fn receive(&mut self, datagram: &[u8], mut take: impl FnMut(Reply)) {
        for part in split(datagram) {
            let seq = u32_at(part, 8);
            if seq < self.first {
                continue; // a late answer to a request that was given up
            }
            match u16_at(part, 4) {
                NLMSG_ERROR | NLMSG_DONE => {
                    let awaited = self.open.contains(&seq);
                    self.open.retain(|s| *s != seq);
                    if let Some(error) = error_of(part) {
                        // A batch that is refused as a whole is answered under its unanswered first message's number.
                        if seq == self.first && !awaited {
                            self.open.clear();
                        }
                        self.failure.get_or_insert(error);
                    }
                }
                _ => take(Reply { body: part[HEADER..].to_vec() }),
            }
        }
    }

    /// The first error, if there was one.
    pub fn finish(self) -> Result<(), Refusal> {
        self.failure.map_or(Ok(()), Err)
    }
}

/// The messages of a datagram; stops at a malformed one.
fn split(mut datagram: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while datagram.len() >= HEADER {
        let len = u32_at(datagram, 0) as usize;
        let Some(part) = datagram.get(..len).filter(|p| p.len() >= HEADER) else { break };
        parts.push(part);
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    parts
}

/// The error in an NLMSG_ERROR or NLMSG_DONE message, if it is one.
fn error_of(part: &[u8]) -> Option<Refusal> {
    let code = i32::from_ne_bytes(part.get(HEADER..HEADER + 4)?.try_into().ok()?);
    if code >= 0 {
        return None;
    }
    let errno = code.saturating_neg();
    let flags = u16_at(part, 6);
    if u16_at(part, 4) != NLMSG_ERROR || flags & NLM_F_ACK_TLVS == 0 || part.len() < 2 * HEADER + 4 {
        return Some(Refusal { errno, words: None });
    }
    let echoed = if flags & NLM_F_CAPPED != 0 { HEADER } else { u32_at(part, HEADER + 4) as usize };
    let words = part.get(HEADER + 4 + echoed..).and_then(|tlvs| Attrs::of(tlvs).get(NLMSGERR_ATTR_MSG)).map(string);
    Some(Refusal { errno, words })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_nests_and_pads_its_attributes() {
        let message =
            Message::new(16, NLM_F_CREATE, &[9; 5]).text(3, "eth0").nest(18, &[7; 4], |m| m.attr(1, &[1, 2, 3]));
        let (bytes, answered) = message.finish(42);
        assert!(answered);
        assert_eq!(u32_at(&bytes, 0) as usize, bytes.len());
        assert_eq!(u32_at(&bytes, 8), 42);
        let reply = Reply { body: bytes[HEADER..].to_vec() };
        assert_eq!(reply.head::<5>(), [9; 5]);
        let attrs: Vec<_> = reply.attrs(8).collect();
        assert_eq!(attrs[0], (3, b"eth0\0".as_slice()));
        assert_eq!(string(attrs[0].1), "eth0");
        assert_eq!(attrs[1].0, 18);
        assert_eq!(&attrs[1].1[..4], [7; 4]);
        assert_eq!(Attrs::of(&attrs[1].1[4..]).get(1), Some([1, 2, 3].as_slice()));
    }

    #[test]
    fn malformed_answers_end_the_iteration() {
        assert_eq!(Attrs::of(&[200, 0, 1, 0, 5]).count(), 0);
        assert_eq!(Attrs::of(&[1, 0, 1, 0]).count(), 0);
        assert_eq!(Attrs::of(&[0; 3]).count(), 0);
        assert!(split(&[3; 20]).is_empty());
        assert!(split(&[0; 16]).is_empty());
    }

    #[test]
    fn an_exchange_ends_when_each_request_has_its_answer() {
        let answer = |seq: u32, code: i32| {
            let mut bytes = [36u32.to_ne_bytes(), [2, 0, 0, 0], seq.to_ne_bytes(), [0; 4], code.to_ne_bytes()].concat();
            bytes.resize(36, 0);
            bytes
        };
        let mut seq = 6;
        let mut exchange = Exchange::new(&mut seq, vec![Message::new(16, 0, &[]), Message::new(17, 0, &[])]);
        assert_eq!((seq, exchange.datagram().len()), (8, 32));
        exchange.receive(&answer(6, -5), |_| panic!("no object"));
        exchange.receive(&answer(7, 0), |_| panic!("no object"));
        assert!(exchange.is_open());
        exchange.receive(&answer(8, -19), |_| panic!("no object"));
        assert!(!exchange.is_open());
        assert_eq!(exchange.finish().unwrap_err().errno, 19);
    }
}
