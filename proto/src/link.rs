//! The link between a machine and the virtual machine of a pod, without I/O: byte streams over the one byte stream that
//! a virtio-serial port is. Both ends use it: the supervisor's link processes read and write for it.
//!
//! Only the host opens streams. Each has a [`Service`] of the guest at its other end, ends each way by itself (so a
//! half-closed connection stays one), and is paid for in advance: a side sends no more than the other has granted, so
//! what waits for a slow reader is bounded and no stream holds up another. The frames are at the head of [`frame`].
//!
//! # Sessions
//!
//! A port outlives the processes at its ends, which may die in the middle of a frame, and a link that starts again must
//! find a beginning:
//! ```text
//!  host                                              guest
//!  FILL zeros, MAGIC, nonce  ----------------------->  looks for MAGIC whenever it has no session
//!  drops everything before   <--  MAGIC, nonce         has a session
//!  has a session             <-->  frames, sealed with the nonce's last bytes
//! ```
//! The zeros fill up any frame that an earlier host has left unfinished and then are a frame that means nothing, so a
//! guest that has not noticed the change drops its session and looks for the new one. A guest that has lost its session
//! (it started again, or saw nonsense) writes the zeros itself, by which the host sees that it has to begin anew.
//!
//! ```text
//!  host:   Idle --restart--> Waiting --answer--> Up --nonsense--> Idle
//!  guest:  Waiting --MAGIC--> Up --nonsense, or the host has left--> Waiting
//! ```
//! A new session knows no stream of the one before.
//!
//! # Limits
//!
//! The other side is not trusted: the guest is hostile. At most [`MAX_STREAMS`] streams, [`WINDOW`] bytes waiting for
//! each, [`MAX_OUTPUT`] for the port; whoever sends more than it was granted, frames about streams that were never
//! opened, or nothing that ends the search for an answer, has its session dropped ([`Breach`]).

pub mod frame;
#[cfg(test)]
mod tests;

pub use frame::{MAX_FRAME, MAX_PAYLOAD, MAX_WORDS, Service};

use frame::{BadFrame, Body, FrameReader, HEADER_LEN};
use std::collections::BTreeMap;
use std::fmt;

/// What a session begins with.
pub const MAGIC: u128 = u128::from_be_bytes(*b"coracle-link-v1\n");
/// Zeros before it: the rest of the longest frame, and a header.
pub const FILL: usize = MAX_FRAME + HEADER_LEN;
/// What may be on its way, each way of each stream, without being taken.
pub const WINDOW: u32 = 128 << 10;
/// What was taken is granted again in portions of this size.
const GRANT: u32 = WINDOW / 4;
/// Streams at once.
pub const MAX_STREAMS: usize = 1024;
/// Data is put behind no more than this, so that it is soon on its way.
const DATA_OUTPUT: usize = 32 << 10;
/// What an honest peer can make wait for the port: data, and a few short frames for each stream.
pub const MAX_OUTPUT: usize = 512 << 10;
/// What a host reads before the answer: more than what a guest's earlier session can have left on the way.
pub const MAX_SKIPPED: usize = 1 << 20;
/// Room that an empty buffer keeps. Of what streams have emptied the link keeps one for the next, since memory that is
/// mapped anew for every frame costs more than the frame; others are given back.
const IDLE_CAPACITY: usize = 64 << 10;

/// Which end this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Opens streams, begins sessions.
    Host,
    /// Answers.
    Guest,
}

/// Why a session was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breach {
    /// These are no frames.
    Frame(BadFrame),
    /// More data than was granted.
    Window(u32),
    /// More was granted than ever may be.
    Grant(u32),
    /// A frame that makes no sense for this stream, or from this side.
    Order(u32),
    /// More streams than there may be.
    Streams,
    /// It does not read what is sent to it.
    Output,
    /// It sends, and never an answer.
    NoAnswer,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Breach::Frame(why) => write!(f, "the link's peer sent {why} (did it start again?)"),
            Breach::Window(stream) => write!(f, "the link's peer sent more for stream {stream} than it may"),
            Breach::Grant(stream) => write!(f, "the link's peer granted stream {stream} more than a window"),
            Breach::Order(stream) => write!(f, "the link's peer sent a frame out of order for stream {stream}"),
            Breach::Streams => write!(f, "the link's peer opened more than {MAX_STREAMS} streams"),
            Breach::Output => write!(f, "the link's peer does not read: {MAX_OUTPUT} bytes wait for it"),
            Breach::NoAnswer => write!(f, "the link's peer sent {MAX_SKIPPED} bytes without beginning a session"),
        }
    }
}

impl std::error::Error for Breach {}

/// What the port's bytes meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A session has begun.
    Up,
    /// It was dropped, with every stream of it.
    Down(Breach),
    /// To the guest: connect a new stream, then say [`Link::opened`] or [`Link::refused`].
    Open(u32, Service),
    /// To the host: it is connected.
    Opened(u32),
    /// To the host: it is not, and the stream is forgotten. The words are the guest's, printable ASCII.
    Refused(u32, String),
    /// There is more in [`Link::waiting`].
    Data(u32),
    /// And no more will come.
    Eof(u32),
    /// The other side has forgotten the stream; what is in [`Link::waiting`] came before that. To be closed here too.
    Closed(u32),
}

/// Bytes whose front is taken away piece by piece.
#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    gone: usize,
}

impl Queue {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.gone..]
    }

    fn drop_front(&mut self, count: usize) {
        self.gone = (self.gone + count).min(self.bytes.len());
        if self.gone == self.bytes.len() {
            self.bytes.clear();
            self.gone = 0;
            if self.bytes.capacity() > IDLE_CAPACITY {
                self.bytes = Vec::new();
            }
        } else if self.gone >= self.bytes.len() / 2 {
            self.bytes.drain(..self.gone);
            self.gone = 0;
        }
    }
}

/// One stream.
#[derive(Debug)]
struct Stream {
    /// What the peer still takes.
    room: u32,
    /// What the peer may still send.
    credit: u32,
    /// What was passed on and not granted again.
    owed: u32,
    waiting: Queue,
    /// The guest has accepted it.
    open: bool,
    ended: bool,
    peer_ended: bool,
    peer_closed: bool,
}

impl Stream {
    fn new() -> Stream {
        Stream {
            room: WINDOW,
            credit: WINDOW,
            owed: 0,
            waiting: Queue::default(),
            open: false,
            ended: false,
            peer_ended: false,
            peer_closed: false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A host between sessions.
    Idle,
    /// Looking for a beginning; a host for this nonce.
    Waiting(Option<u128>),
    /// The session's seal.
    Up(u32),
}

/// One end of the link.
#[derive(Debug)]
pub struct Link {
    role: Role,
    phase: Phase,
    /// The last 32 bytes, while looking.
    recent: (u128, u128),
    skipped: usize,
    reader: FrameReader,
    output: Queue,
    /// For what comes for a stream that has nothing waiting.
    spare: Vec<u8>,
    streams: BTreeMap<u32, Stream>,
    /// The newest stream of the session.
    last: u32,
}

impl Link {
    fn new(role: Role, phase: Phase) -> Link {
        Link {
            role,
            phase,
            recent: (0, 0),
            skipped: 0,
            reader: FrameReader::default(),
            output: Queue::default(),
            spare: Vec::new(),
            streams: BTreeMap::new(),
            last: 0,
        }
    }

    /// The host's end, between sessions.
    pub fn host() -> Link {
        Link::new(Role::Host, Phase::Idle)
    }

    /// The guest's end. It may be another's successor, so it lets the host know.
    pub fn guest() -> Link {
        let mut link = Link::new(Role::Guest, Phase::Waiting(None));
        link.output.bytes.resize(FILL, 0);
        link
    }

    /// Forgets the session and what was not sent. A guest waits for the next.
    pub fn lost(&mut self) {
        let phase = if self.role == Role::Host { Phase::Idle } else { Phase::Waiting(None) };
        *self = Link::new(self.role, phase);
    }

    /// Whether nothing was opened yet that could be lost. A host that connects is announced beside its bytes: what a guest
    /// reads before the announcement, and begins to answer, is of the host that comes and not of the one that went.
    pub fn is_fresh(&self) -> bool {
        self.last == 0
    }

    /// Has the host begin a session. The nonce is a random number that no guest can know.
    pub fn restart(&mut self, nonce: u128) {
        self.lost();
        // The seal is its end, and zeros must not do for one.
        let nonce = nonce | 1;
        self.phase = Phase::Waiting(Some(nonce));
        self.output.bytes.resize(FILL, 0);
        self.greet(nonce);
    }

    fn greet(&mut self, nonce: u128) {
        self.output.bytes.extend_from_slice(&MAGIC.to_be_bytes());
        self.output.bytes.extend_from_slice(&nonce.to_be_bytes());
    }

    /// Whether there is a session.
    pub fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Up(_))
    }

    /// Whether a host has to begin the next session.
    pub fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// Bytes for the port.
    pub fn output(&self) -> &[u8] {
        self.output.rest()
    }

    /// The port has taken so many of them.
    pub fn sent(&mut self, count: usize) {
        self.output.drop_front(count);
    }

    /// Takes bytes from the port, up to the first that means something. Call it until it returns `None`: then `input`
    /// is used up.
    pub fn receive(&mut self, input: &mut &[u8]) -> Option<Event> {
        loop {
            match self.phase {
                Phase::Idle => {
                    *input = &[];
                    return None;
                }
                Phase::Waiting(nonce) => {
                    if let Some(event) = self.search(input, nonce) {
                        return Some(event);
                    }
                    return None;
                }
                Phase::Up(seal) => {
                    let mut reader = std::mem::take(&mut self.reader);
                    let meant = match reader.take(input, seal) {
                        Err(why) => Err(Breach::Frame(why)),
                        Ok(None) => {
                            self.reader = reader;
                            return None;
                        }
                        Ok(Some((stream, body))) => self.frame(stream, body),
                    };
                    self.reader = reader;
                    match meant {
                        Ok(None) => {}
                        Ok(Some(event)) => return Some(event),
                        Err(breach) => return Some(self.down(breach)),
                    }
                }
            }
        }
    }

    /// Looks for MAGIC and a nonce, byte by byte.
    fn search(&mut self, input: &mut &[u8], wanted: Option<u128>) -> Option<Event> {
        while let Some((&byte, rest)) = input.split_first() {
            *input = rest;
            self.skipped = self.skipped.saturating_add(1);
            let (older, newer) = self.recent;
            self.recent = (older << 8 | newer >> 120, newer << 8 | u128::from(byte));
            let (magic, nonce) = self.recent;
            if magic == MAGIC && wanted.is_none_or(|wanted| wanted == nonce) {
                if self.role == Role::Guest {
                    self.greet(nonce);
                }
                (self.recent, self.skipped) = ((0, 0), 0);
                self.phase = Phase::Up(nonce as u32);
                return Some(Event::Up);
            }
            if self.role == Role::Host && self.skipped > MAX_SKIPPED {
                return Some(self.down(Breach::NoAnswer));
            }
        }
        None
    }

    fn down(&mut self, breach: Breach) -> Event {
        self.lost();
        if self.role == Role::Guest {
            self.output.bytes.resize(FILL, 0);
        }
        Event::Down(breach)
    }

    fn frame(&mut self, id: u32, body: Body<'_>) -> Result<Option<Event>, Breach> {
        if self.output.rest().len() > MAX_OUTPUT {
            return Err(Breach::Output);
        }
        if let Body::Open(service) = body {
            return self.accept(id, service).map(Some);
        }
        if id > self.last {
            return Err(Breach::Order(id));
        }
        // Frames that were on their way when the stream was forgotten here.
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(None) };
        let from_guest = self.role == Role::Host;
        let answers = matches!(body, Body::Opened | Body::Refused(_));
        // The guest answers once, and first of all; a host waits for no answer before it sends.
        if stream.peer_closed || (answers && (!from_guest || stream.open)) || (!answers && from_guest && !stream.open) {
            return Err(Breach::Order(id));
        }
        Ok(match body {
            Body::Open(_) => return Err(Breach::Order(id)),
            Body::Opened => {
                stream.open = true;
                Some(Event::Opened(id))
            }
            Body::Refused(words) => {
                self.streams.remove(&id);
                Some(Event::Refused(id, printable(words)))
            }
            Body::Data(bytes) => {
                let count = bytes.len() as u32;
                if stream.peer_ended {
                    return Err(Breach::Order(id));
                }
                stream.credit = stream.credit.checked_sub(count).ok_or(Breach::Window(id))?;
                if stream.waiting.bytes.capacity() == 0 {
                    stream.waiting.bytes = std::mem::take(&mut self.spare);
                }
                stream.waiting.bytes.extend_from_slice(bytes);
                Some(Event::Data(id))
            }
            Body::Eof if stream.peer_ended => return Err(Breach::Order(id)),
            Body::Eof => {
                stream.peer_ended = true;
                Some(Event::Eof(id))
            }
            Body::Window(count) => {
                let room = stream.room.checked_add(count).filter(|room| count > 0 && *room <= WINDOW);
                stream.room = room.ok_or(Breach::Grant(id))?;
                None
            }
            Body::Close => {
                stream.peer_closed = true;
                Some(Event::Closed(id))
            }
        })
    }

    fn accept(&mut self, id: u32, service: Service) -> Result<Event, Breach> {
        if self.role == Role::Host || id <= self.last {
            return Err(Breach::Order(id));
        }
        if self.streams.len() >= MAX_STREAMS {
            return Err(Breach::Streams);
        }
        self.last = id;
        self.streams.insert(id, Stream::new());
        Ok(Event::Open(id, service))
    }

    fn say(&mut self, id: u32, body: Body<'_>) {
        if let Phase::Up(seal) = self.phase {
            body.encode(id, seal, &mut self.output.bytes);
        }
    }

    /// Whether the host can open a stream now.
    pub fn can_open(&self) -> bool {
        self.role == Role::Host
            && self.is_up()
            && self.streams.len() < MAX_STREAMS
            && self.last < u32::MAX
            && self.output.rest().len() < DATA_OUTPUT
    }

    /// Opens one. It can be sent to at once.
    pub fn open(&mut self, service: Service) -> Option<u32> {
        if !self.can_open() {
            return None;
        }
        self.last += 1;
        self.streams.insert(self.last, Stream::new());
        self.say(self.last, Body::Open(service));
        Some(self.last)
    }

    /// The guest has connected a stream.
    pub fn opened(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.open) {
            stream.open = true;
            self.say(id, Body::Opened);
        }
    }

    /// The guest could not, and forgets it.
    pub fn refused(&mut self, id: u32, words: &str) {
        if self.streams.remove(&id).is_some_and(|stream| !stream.peer_closed) {
            self.say(id, Body::Refused(words.as_bytes()));
        }
    }

    /// How many bytes can be sent on a stream now, in one frame.
    pub fn room(&self, id: u32) -> usize {
        let stream = self.streams.get(&id).filter(|stream| !stream.ended && !stream.peer_closed);
        // A guest answers before it sends.
        let stream = stream.filter(|stream| self.role == Role::Host || stream.open);
        match stream {
            Some(stream) if self.output.rest().len() < DATA_OUTPUT => (stream.room as usize).min(MAX_PAYLOAD),
            _ => 0,
        }
    }

    /// Sends bytes, no more than there is room for; says how many it took.
    pub fn send(&mut self, id: u32, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room(id));
        let Some(stream) = self.streams.get_mut(&id).filter(|_| count > 0) else { return 0 };
        stream.room -= count as u32;
        self.say(id, Body::Data(&bytes[..count]));
        count
    }

    /// No more will be sent on a stream.
    pub fn end(&mut self, id: u32) {
        let stream = self.streams.get_mut(&id).filter(|stream| !stream.ended && !stream.peer_closed);
        if let Some(stream) = stream {
            stream.ended = true;
            self.say(id, Body::Eof);
        }
    }

    /// Forgets a stream; the other side is told, unless it knows.
    pub fn close(&mut self, id: u32) {
        let Some(stream) = self.streams.remove(&id) else { return };
        let over = stream.ended && stream.peer_ended;
        if !stream.peer_closed && !over {
            self.say(id, Body::Close);
        }
    }

    /// What has come and was not passed on.
    pub fn waiting(&self, id: u32) -> &[u8] {
        self.streams.get(&id).map_or(&[], |stream| stream.waiting.rest())
    }

    /// So much of it was passed on, or is nobody's.
    pub fn passed_on(&mut self, id: u32, count: usize) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.owed += count.min(stream.waiting.rest().len()) as u32;
        stream.waiting.drop_front(count);
        if stream.waiting.bytes.is_empty() {
            self.spare = std::mem::take(&mut stream.waiting.bytes);
        }
        if stream.owed >= GRANT && !stream.peer_ended && !stream.peer_closed {
            let owed = std::mem::take(&mut stream.owed);
            stream.credit += owed;
            self.say(id, Body::Window(owed));
        }
    }

    /// Whether the other side has said that it sends no more on a stream.
    pub fn peer_ended(&self, id: u32) -> bool {
        self.streams.get(&id).is_none_or(|stream| stream.peer_ended)
    }

    /// Whether the other side has forgotten it.
    pub fn peer_closed(&self, id: u32) -> bool {
        self.streams.get(&id).is_none_or(|stream| stream.peer_closed)
    }

    /// How many streams there are.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }
}

/// A guest's words, fit for a log and an error's line.
fn printable(words: &[u8]) -> String {
    words.iter().map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '?' }).collect()
}
