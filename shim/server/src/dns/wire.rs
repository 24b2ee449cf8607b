//! DNS messages (RFC 1035, EDNS0 of RFC 6891), as much of them as a small server needs. All input is taken as hostile:
//! every length is checked, a name's pointers may only lead backwards, and nothing here allocates more than a message
//! can hold.
//!
//! ```text
//! header { id, flags, questions, answers, authority, additional: u16 each }   question   records...
//! name   { length, bytes }...  0      or a pointer 11xxxxxx xxxxxxxx to an earlier name
//! record { name, type u16, class u16, ttl u32, length u16, data }
//! ```
//!
//! Names keep the case they came in, and are compared without it. In what is written only an owner that is the question's
//! name is compressed: enough for answers of many addresses.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The head of a message.
pub const HEADER: usize = 12;
/// The longest name, its ending zero included.
pub const MAX_NAME: usize = 255;
const MAX_LABEL: usize = 63;
/// What every resolver takes over UDP.
pub const CLASSIC_UDP: usize = 512;
/// What we send over UDP at most: fits every path's packet (dnsflagday.net/2020).
pub const MAX_UDP: usize = 1232;
/// A message over TCP has its length before it in two bytes.
pub const MAX_MESSAGE: usize = u16::MAX as usize;
/// Most records of an answer that are looked at.
const MAX_RECORDS: usize = 256;

/// Types of records.
pub mod kind {
    /// An IPv4 address.
    pub const A: u16 = 1;
    /// Another name for it.
    pub const CNAME: u16 = 5;
    /// Where a zone begins.
    pub const SOA: u16 = 6;
    /// The name of an address.
    pub const PTR: u16 = 12;
    /// Text.
    pub const TXT: u16 = 16;
    /// An IPv6 address.
    pub const AAAA: u16 = 28;
    /// Host and port of a service.
    pub const SRV: u16 = 33;
    /// EDNS's own.
    pub const OPT: u16 = 41;
    /// Any of them.
    pub const ANY: u16 = 255;
}

const CLASS_IN: u16 = 1;

const RESPONSE: u16 = 1 << 15;
const OPCODE: u16 = 0xf << 11;
const AUTHORITATIVE: u16 = 1 << 10;
const TRUNCATED: u16 = 1 << 9;
const RECURSION_DESIRED: u16 = 1 << 8;
const RECURSION_AVAILABLE: u16 = 1 << 7;

/// How a query went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Well, or there is nothing of the type.
    Ok = 0,
    /// The query makes no sense.
    FormErr = 1,
    /// Nobody could tell.
    ServFail = 2,
    /// There is no such name.
    NxDomain = 3,
    /// Not done here.
    NotImp = 4,
    /// Not for you.
    Refused = 5,
}

/// A name: its labels, each after its length, and the ending zero.
#[derive(Clone, PartialEq, Eq)]
pub struct Name(Vec<u8>);

impl Name {
    /// Reads `a.b.c`, with or without the ending dot; none if it is no name.
    pub fn parse(text: &str) -> Option<Name> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let mut wire = Vec::with_capacity(text.len() + 2);
        for label in text.split('.').filter(|_| !text.is_empty()) {
            if label.is_empty() || label.len() > MAX_LABEL {
                return None;
            }
            wire.push(label.len() as u8);
            wire.extend_from_slice(label.as_bytes());
        }
        wire.push(0);
        (wire.len() <= MAX_NAME).then_some(Name(wire))
    }

    /// Its labels, the leftmost first.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.0.as_slice();
        std::iter::from_fn(move || {
            let (len, after) = rest.split_first()?;
            let (label, next) = after.split_at_checked(usize::from(*len)).filter(|_| *len > 0)?;
            rest = next;
            Some(label)
        })
    }

    /// Its labels in lower case, if they are plain: letters, digits, `-` and `_`. Names of other kinds exist, but none of
    /// ours is one.
    pub fn plain(&self) -> Option<Vec<String>> {
        let label = |bytes: &[u8]| {
            let plain = bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(b));
            plain.then(|| String::from_utf8_lossy(bytes).to_ascii_lowercase())
        };
        self.labels().map(label).collect()
    }

    fn same(&self, other: &Name) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for label in self.labels() {
            write!(f, "{}.", label.escape_ascii())?;
        }
        Ok(())
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Of which name.
    pub name: Name,
    /// For which type.
    pub kind: u16,
    /// Of which class.
    pub class: u16,
}

impl Question {
    /// Whether two ask the same.
    pub fn same(&self, other: &Question) -> bool {
        self.name.same(&other.name) && (self.kind, self.class) == (other.kind, other.class)
    }
}

/// A query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Its number.
    pub id: u16,
    /// The one question.
    pub question: Question,
    /// Whether others shall be asked for it.
    pub recursion: bool,
    /// The size of an answer that the asker takes over UDP, if it speaks EDNS.
    pub edns: Option<u16>,
}

/// What is wrong with a message: what can be answered is, the rest is passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// Not even a head, or an answer: no answer is due.
    Silent,
    /// A query that is answered with a code.
    Refuse(u16, Code),
}

/// A resource record as it lies in a message; its data begins at `start`.
struct RawRecord<'m> {
    name: Name,
    kind: u16,
    class: u16,
    ttl: u32,
    data: &'m [u8],
    start: usize,
}

/// A reader of a message.
struct Reader<'m> {
    message: &'m [u8],
    at: usize,
}

impl<'m> Reader<'m> {
    fn take(&mut self, len: usize) -> Option<&'m [u8]> {
        let bytes = self.message.get(self.at..self.at.checked_add(len)?)?;
        self.at += len;
        Some(bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }

    /// A name. A pointer leads to before where it was read from, each further back than the last, so there is an end.
    fn name(&mut self) -> Option<Name> {
        let mut wire = Vec::with_capacity(32);
        let mut at = self.at;
        let mut earliest = at;
        let mut after = None;
        loop {
            let len = *self.message.get(at)?;
            match len >> 6 {
                0 => {
                    let label = self.message.get(at..=at + usize::from(len))?;
                    if wire.len() + label.len() > MAX_NAME {
                        return None;
                    }
                    wire.extend_from_slice(label);
                    at += label.len();
                    if len == 0 {
                        self.at = after.unwrap_or(at);
                        return Some(Name(wire));
                    }
                }
                3 => {
                    let low = *self.message.get(at + 1)?;
                    after = after.or(Some(at + 2));
                    at = usize::from(u16::from_be_bytes([len & 0x3f, low]));
                    if at >= earliest {
                        return None;
                    }
                    earliest = at;
                }
                _ => return None,
            }
        }
    }

    fn question(&mut self) -> Option<Question> {
        Some(Question { name: self.name()?, kind: self.u16()?, class: self.u16()? })
    }

    fn record(&mut self) -> Option<RawRecord<'m>> {
        let (name, kind, class, ttl) = (self.name()?, self.u16()?, self.u16()?, self.u32()?);
        let len = usize::from(self.u16()?);
        let start = self.at;
        Some(RawRecord { name, kind, class, ttl, data: self.take(len)?, start })
    }
}

/// Reads a query.
pub fn query(message: &[u8]) -> Result<Query, Wrong> {
    let mut reader = Reader { message, at: 0 };
    let mut head = || reader.u16().ok_or(Wrong::Silent);
    let (id, flags, questions, answers, authority, additional) = (head()?, head()?, head()?, head()?, head()?, head()?);
    if flags & RESPONSE != 0 {
        return Err(Wrong::Silent);
    }
    if flags & OPCODE != 0 {
        return Err(Wrong::Refuse(id, Code::NotImp));
    }
    let malformed = Wrong::Refuse(id, Code::FormErr);
    if questions != 1 || answers != 0 || authority != 0 {
        return Err(malformed);
    }
    let question = reader.question().ok_or(malformed)?;
    let mut edns = None;
    for _ in 0..usize::from(additional).min(MAX_RECORDS) {
        let RawRecord { kind, class, .. } = reader.record().ok_or(malformed)?;
        if kind == kind::OPT && edns.replace(class).is_some() {
            return Err(malformed);
        }
    }
    Ok(Query { id, question, recursion: flags & RECURSION_DESIRED != 0, edns })
}

/// What is told of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// Another name for it.
    Cname(Name),
    /// The name of an address.
    Ptr(Name),
    /// Host and port of a service: of one priority, by weight.
    Srv {
        /// Among those of the service.
        weight: u16,
        /// The port.
        port: u16,
        /// The host.
        target: Name,
    },
    /// Text.
    Txt(String),
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Of which name.
    pub name: Name,
    /// For how many seconds it may be kept.
    pub ttl: u32,
    /// What.
    pub data: Data,
}

/// A zone's beginning, for answers that there is nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Soa {
    /// The zone.
    pub zone: Name,
    /// Its server.
    pub server: Name,
    /// Its mailbox.
    pub mailbox: Name,
    /// Its serial number.
    pub serial: u32,
    /// For how many seconds nothing may be kept as nothing.
    pub ttl: u32,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// How it went.
    pub code: Code,
    /// Whether it is our own zone's.
    pub authoritative: bool,
    /// What was asked for.
    pub answers: Vec<Record>,
    /// Where nothing comes from.
    pub soa: Option<Soa>,
    /// What helps: addresses of the targets of SRV.
    pub additional: Vec<Record>,
}

impl Answer {
    /// Nothing but a code.
    pub fn code(code: Code) -> Answer {
        Answer { code, authoritative: false, answers: Vec::new(), soa: None, additional: Vec::new() }
    }
}

/// Writes the answer to a query in `limit` bytes at most; what does not fit makes it a truncated one.
pub fn encode(query: &Query, answer: &Answer, limit: usize) -> Vec<u8> {
    let mut writer = Writer { bytes: Vec::with_capacity(CLASSIC_UDP), question: &query.question.name };
    writer.head(query, answer);
    let edns = if query.edns.is_some() { OPT_LEN } else { 0 };
    let room = limit.saturating_sub(edns);
    let mut counts = [0u16; 3];
    let mut whole = true;
    for record in &answer.answers {
        whole &= writer.fitting(room, |w| w.record(record));
        if !whole {
            break;
        }
        counts[0] += 1;
    }
    if let Some(soa) = answer.soa.as_ref().filter(|_| whole) {
        whole &= writer.fitting(room, |w| w.soa(soa));
        counts[1] += u16::from(whole);
    }
    // What merely helps may be missing.
    for record in answer.additional.iter().filter(|_| whole) {
        if !writer.fitting(room, |w| w.record(record)) {
            break;
        }
        counts[2] += 1;
    }
    if edns > 0 {
        writer.opt();
        counts[2] += 1;
    }
    for (index, count) in counts.into_iter().enumerate() {
        let at = 6 + 2 * index;
        writer.bytes[at..at + 2].copy_from_slice(&count.to_be_bytes());
    }
    if !whole {
        let flags = u16::from_be_bytes([writer.bytes[2], writer.bytes[3]]) | TRUNCATED;
        writer.bytes[2..4].copy_from_slice(&flags.to_be_bytes());
    }
    writer.bytes
}

/// Writes the answer to a message that is no query one can name.
pub fn encode_refusal(id: u16, code: Code) -> Vec<u8> {
    let flags = RESPONSE | code as u16;
    let mut bytes = Vec::with_capacity(HEADER);
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.resize(HEADER, 0);
    bytes
}

/// Writes a query, asking for others to be asked.
pub fn encode_query(id: u16, question: &Question, udp: bool) -> Vec<u8> {
    let mut writer = Writer { bytes: Vec::with_capacity(HEADER + MAX_NAME + 4 + OPT_LEN), question: &question.name };
    for number in [id, RECURSION_DESIRED, 1, 0, 0, u16::from(udp)] {
        writer.u16(number);
    }
    writer.question(question);
    if udp {
        writer.opt();
    }
    writer.bytes
}

/// `OPT` without options.
const OPT_LEN: usize = 11;

struct Writer<'q> {
    bytes: Vec<u8>,
    question: &'q Name,
}

impl Writer<'_> {
    fn u16(&mut self, number: u16) {
        self.bytes.extend_from_slice(&number.to_be_bytes());
    }

    fn head(&mut self, query: &Query, answer: &Answer) {
        let mut flags = RESPONSE | RECURSION_AVAILABLE | answer.code as u16;
        flags |= if answer.authoritative { AUTHORITATIVE } else { 0 };
        flags |= if query.recursion { RECURSION_DESIRED } else { 0 };
        for number in [query.id, flags, 1, 0, 0, 0] {
            self.u16(number);
        }
        self.question(&query.question);
    }

    fn question(&mut self, question: &Question) {
        self.bytes.extend_from_slice(&question.name.0);
        self.u16(question.kind);
        self.u16(question.class);
    }

    /// Writes something, or nothing of it if it would pass the limit; whether it did.
    fn fitting(&mut self, limit: usize, write: impl FnOnce(&mut Self)) -> bool {
        let before = self.bytes.len();
        write(self);
        let fits = self.bytes.len() <= limit;
        if !fits {
            self.bytes.truncate(before);
        }
        fits
    }

    fn owner(&mut self, name: &Name) {
        const TO_QUESTION: u16 = 0xc000 | HEADER as u16;
        if name.same(self.question) {
            self.u16(TO_QUESTION);
        } else {
            self.bytes.extend_from_slice(&name.0);
        }
    }

    fn data(&mut self, name: &Name, kind: u16, ttl: u32, write: impl FnOnce(&mut Self)) {
        self.owner(name);
        self.u16(kind);
        self.u16(CLASS_IN);
        self.bytes.extend_from_slice(&ttl.to_be_bytes());
        let at = self.bytes.len();
        self.u16(0);
        write(self);
        let len = (self.bytes.len() - at - 2) as u16;
        self.bytes[at..at + 2].copy_from_slice(&len.to_be_bytes());
    }

    fn record(&mut self, record: &Record) {
        let Record { name, ttl, data } = record;
        match data {
            Data::A(ip) => self.data(name, kind::A, *ttl, |w| w.bytes.extend_from_slice(&ip.octets())),
            Data::Aaaa(ip) => self.data(name, kind::AAAA, *ttl, |w| w.bytes.extend_from_slice(&ip.octets())),
            Data::Cname(other) => self.data(name, kind::CNAME, *ttl, |w| w.bytes.extend_from_slice(&other.0)),
            Data::Ptr(other) => self.data(name, kind::PTR, *ttl, |w| w.bytes.extend_from_slice(&other.0)),
            Data::Srv { weight, port, target } => self.data(name, kind::SRV, *ttl, |w| {
                [0, *weight, *port].into_iter().for_each(|number| w.u16(number));
                // Never compressed (RFC 2782).
                w.bytes.extend_from_slice(&target.0);
            }),
            Data::Txt(text) => self.data(name, kind::TXT, *ttl, |w| {
                let text = &text.as_bytes()[..text.len().min(255)];
                w.bytes.push(text.len() as u8);
                w.bytes.extend_from_slice(text);
            }),
        }
    }

    fn soa(&mut self, soa: &Soa) {
        const REFRESH: u32 = 7200;
        const RETRY: u32 = 1800;
        const EXPIRE: u32 = 86_400;
        self.data(&soa.zone, kind::SOA, soa.ttl, |w| {
            w.bytes.extend_from_slice(&soa.server.0);
            w.bytes.extend_from_slice(&soa.mailbox.0);
            for number in [soa.serial, REFRESH, RETRY, EXPIRE, soa.ttl] {
                w.bytes.extend_from_slice(&number.to_be_bytes());
            }
        });
    }

    fn opt(&mut self) {
        self.bytes.push(0);
        self.u16(kind::OPT);
        self.u16(MAX_UDP as u16);
        self.bytes.extend_from_slice(&[0; 6]);
    }
}

/// What is asked of a message that claims to be the answer to a query: whether it is.
pub fn answers(message: &[u8], id: u16, question: &Question) -> bool {
    let mut reader = Reader { message, at: 0 };
    let Some((found, flags, questions)) = reader.u16().zip(reader.u16()).zip(reader.u16()).map(|((a, b), c)| (a, b, c))
    else {
        return false;
    };
    let asked = |reader: &mut Reader| {
        reader.at = HEADER;
        reader.question().is_some_and(|other| other.same(question))
    };
    found == id && flags & RESPONSE != 0 && questions == 1 && asked(&mut reader)
}

/// Whether an answer was cut.
pub fn is_truncated(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & (TRUNCATED >> 8) as u8 != 0)
}

/// The addresses and other names of an answer; none of it if it makes no sense.
pub fn addresses(message: &[u8]) -> Option<(u8, Vec<Record>)> {
    let mut reader = Reader { message, at: 2 };
    let flags = reader.u16()?;
    let (questions, count) = (reader.u16()?, reader.u16()?);
    reader.at = HEADER;
    for _ in 0..usize::from(questions).min(MAX_RECORDS) {
        reader.question()?;
    }
    let mut records = Vec::new();
    for _ in 0..usize::from(count).min(MAX_RECORDS) {
        let RawRecord { name, kind, class, ttl, data, start } = reader.record()?;
        let data = match kind {
            kind::A => Data::A(<[u8; 4]>::try_from(data).ok()?.into()),
            kind::AAAA => Data::Aaaa(<[u8; 16]>::try_from(data).ok()?.into()),
            kind::CNAME => Data::Cname(Reader { message, at: start }.name()?),
            _ => continue,
        };
        if class == CLASS_IN {
            records.push(Record { name, ttl, data });
        }
    }
    Some(((flags & 0xf) as u8, records))
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
