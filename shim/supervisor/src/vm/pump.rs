//! What the processes in the virtual machine say and hear: frames of the guest's attach socket on one side, the ends that
//! the process would have on the other. Who is at their other ends (logs, attach clients, containerd's fifos, files,
//! loggers) is the same for every process, and stands in `stdio` and `streams`. A terminal is the guest's: its ends here are
//! pipes like all others.
//!
//! ```text
//!  guest's process == its supervisor ==attach.sock==link==vm/attach.sock== pump --> pipe, fifo, file: its outputs
//!                                                                              <-- pipe: its input
//! ```
//! - Whoever is slow makes the process wait: no more is read of the socket than the outputs take.
//! - The guest waits for us (`"wait":true`). A connection that breaks is made anew, with what was on its way lost; one that
//!   cannot be is the end of the process' output. Both ends count what has passed, so that a loss is known: a container
//!   goes on and so does a terminal, but of an exec that could hand on half a file the streams are closed, and its end is
//!   no success.
//! - An output whose reader has gone for good ends the connection by an end frame: the process is to see that, too. Until
//!   the guest has closed, what it still sends is read and thrown away: a socket that is closed with bytes unread takes
//!   along what was written to it.
//! - What comes from the guest is bounded by the frames' size and by [`OUTPUT_BUFFER`]. What is no frame, or none that
//!   a client is sent, is the end.

use crate::buffer::{OutBuffer, would_block};
use crate::failure::{Fail, Failure};
use crate::reactor::{Interest, Reactor, Ready, Table, Token};
use crate::stdio::{self, AWAITED, IoOwner, Names, OurEnds, ProcessEnds};
use coracle_proto::attach::{FrameReader, Kind, MAX_HELLO, header};
use coracle_proto::ttrpc::Code;
use serde::Deserialize;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// The socket's name in the folder of the virtual machine.
pub const SOCKET: &str = "attach.sock";
/// Moved at once.
const CHUNK: usize = 16 << 10;
/// Chunks read from the guest before others have their turn.
const TURN: usize = 4;
/// Output that waits for its reader before the guest has to.
const OUTPUT_BUFFER: usize = 64 << 10;
/// Input that waits for the guest before its writer has to.
const INPUT_BUFFER: usize = 64 << 10;
/// How long the guest may take to answer the first line.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a pump is made of.
#[derive(Debug)]
pub struct Ends {
    stream: UnixStream,
    stdin: Option<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
}

/// The words of a process' streams, as they are here: a terminal is the guest's.
pub fn names_here(names: &Names) -> Names {
    let stderr = if names.terminal { String::new() } else { names.stderr.clone() };
    Names { terminal: false, stderr, ..names.clone() }
}

/// The words for the guest.
pub fn names_there(names: &Names) -> [String; 3] {
    let word = |here: &String, there: &str| if here.is_empty() { String::new() } else { there.to_owned() };
    let stderr = if names.terminal { String::new() } else { word(&names.stderr, AWAITED) };
    // A terminal shows what is written whether or not anybody looks.
    let stdout = if names.terminal { AWAITED.to_owned() } else { word(&names.stdout, AWAITED) };
    [word(&names.stdin, "attach:once"), stdout, stderr]
}

/// Opens or makes the ends of a process in the machine of this folder.
pub fn open(names: &Names, owner: IoOwner, folder: &Path) -> Result<(ProcessEnds, OurEnds), Failure> {
    let (mut theirs, mut ours) = stdio::open(&names_here(names), owner)?;
    let failed = |error: io::Error| {
        Code::Unavailable
            .failure(format!("connect to {}: {error} (has the machine died?)", folder.join(SOCKET).display()))
    };
    let stream = connect_now(folder).map_err(failed)?;
    theirs.attach = Some(stream.try_clone().map_err(failed)?);
    let outputs = [theirs.stdout.take(), theirs.stderr.take()];
    ours.pump = Some(Ends { stream, stdin: theirs.stdin.take(), outputs });
    Ok((theirs, ours))
}

/// Connects without waiting.
pub fn connect_now(folder: &Path) -> io::Result<UnixStream> {
    super::connect(folder, SOCKET)
}

/// Bytes of a process' input, output and error output that have passed.
pub type Passed = [u64; 3];

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    ok: bool,
    #[serde(default)]
    passed: Passed,
    #[serde(default)]
    error: String,
}

/// Says the first line and hears the answer; only in a worker. Nothing more than the answer is read. Says what has passed
/// in the guest's eyes until an earlier connection broke, if this is `again` one.
pub fn greet(stream: &UnixStream, id: &str, exec: &str, again: bool) -> Result<Passed, Failure> {
    say_hello(stream, id, exec, again)?;
    hear_answer(stream, id, exec)
}

fn not_attached(id: &str, exec: &str) -> impl Fn(io::Error) -> Failure {
    move |error| Code::Unavailable.failure(format!("attach to {id} {exec} in its machine: {error}"))
}

/// The first half. An exec may be asked for after it.
pub fn say_hello(stream: &UnixStream, id: &str, exec: &str, again: bool) -> Result<(), Failure> {
    let failed = not_attached(id, exec);
    stream.set_nonblocking(false).map_err(&failed)?;
    let hello = serde_json::json!({ "container": id, "exec": exec, "stdin": true, "wait": true, "again": again });
    (&*stream).write_all(format!("{hello}\n").as_bytes()).map_err(failed)
}

/// The second.
pub fn hear_answer(stream: &UnixStream, id: &str, exec: &str) -> Result<Passed, Failure> {
    let failed = not_attached(id, exec);
    let until = Instant::now() + PATIENCE;
    let (mut line, mut byte) = (Vec::new(), [0u8; 1]);
    while byte[0] != b'\n' {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left)).map_err(&failed)?;
        (&*stream).read_exact(&mut byte).map_err(&failed)?;
        line.push(byte[0]);
        if line.len() > MAX_HELLO {
            return Err(failed(io::Error::other("its answer is too long")));
        }
    }
    let answer: Answer = serde_json::from_slice(&line).map_err(|error| failed(error.into()))?;
    stream.set_read_timeout(None).map_err(&failed)?;
    match answer.ok {
        true => Ok(answer.passed),
        false => Err(failed(io::Error::other(answer.error.replace(char::is_control, " ")))),
    }
}

/// A descriptor in the loop.
struct End {
    file: File,
    interest: Interest,
    buffer: OutBuffer,
}

impl End {
    fn new(fd: OwnedFd) -> io::Result<End> {
        stdio::set_nonblocking(&fd, true)?;
        Ok(End { file: fd.into(), interest: Interest::NONE, buffer: OutBuffer::default() })
    }
}

/// Where the connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// It broke, and may be made anew.
    Broken,
    /// Nobody is there to hear the process, and the guest is told.
    Leaving,
    /// The process has said everything, or nobody is there to hear it.
    Ended,
}

struct Pump {
    stream: Option<(UnixStream, Interest)>,
    state: State,
    frames: FrameReader,
    to_guest: OutBuffer,
    /// The guest takes no more; what it has said before is still to be read.
    deaf: bool,
    stdin: Option<End>,
    /// No more input comes; the guest was told.
    input_ended: bool,
    outputs: [Option<End>; 2],
    passed: Passed,
}

/// All of them.
#[derive(Default)]
pub struct Pumps {
    all: Table<Pump>,
}

/// What has become of a pump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It pumps.
    Open,
    /// Its connection has to be made anew.
    Broken,
    /// All is passed on, or it was never there.
    Done,
}

const OUTPUTS: [usize; 2] = [0, 1];

fn output_token(which: usize, key: u32) -> Token {
    if which == 0 { Token::PumpOut(key) } else { Token::PumpErr(key) }
}

impl Pumps {
    /// Begins; the answer to the first line has been read.
    pub fn start(&mut self, reactor: &Reactor, ends: Ends) -> io::Result<u32> {
        ends.stream.set_nonblocking(true)?;
        let [stdout, stderr] = ends.outputs;
        let key = self.all.insert(Pump {
            stream: Some((ends.stream, Interest::NONE)),
            state: State::Open,
            frames: FrameReader::new(),
            to_guest: OutBuffer::default(),
            deaf: false,
            stdin: ends.stdin.map(End::new).transpose()?,
            input_ended: false,
            outputs: [stdout.map(End::new).transpose()?, stderr.map(End::new).transpose()?],
            passed: [0; 3],
        });
        self.update(reactor, key);
        Ok(key)
    }

    /// One of its descriptors is ready.
    pub fn ready(&mut self, reactor: &Reactor, key: u32, event: Ready) {
        let Some(pump) = self.all.get_mut(key) else { return };
        match event.token {
            Token::Pump(_) => {
                if event.write {
                    pump.flush();
                }
                if event.read {
                    pump.hear();
                }
            }
            Token::PumpIn(_) => pump.feed(),
            Token::PumpOut(_) => pump.pass_on(0, &[]),
            Token::PumpErr(_) => pump.pass_on(1, &[]),
            _ => {}
        }
        self.update(reactor, key);
    }

    /// How it stands.
    pub fn standing(&self, key: u32) -> Standing {
        match self.all.get(key) {
            Some(Pump { state: State::Open, .. }) => Standing::Open,
            Some(Pump { state: State::Broken, .. }) => Standing::Broken,
            Some(pump) if pump.outputs.iter().any(Option::is_some) => Standing::Open,
            _ => Standing::Done,
        }
    }

    /// Its connection was made anew, and `there` has passed in the guest's eyes. Returns how many bytes were lost.
    pub fn again(&mut self, reactor: &Reactor, key: u32, stream: UnixStream, there: Passed) -> u64 {
        let Some(pump) = self.all.get_mut(key).filter(|pump| pump.state == State::Broken) else { return 0 };
        let lost =
            pump.passed.iter().zip(there).fold(0u64, |sum, (here, there)| sum.saturating_add(here.abs_diff(there)));
        pump.passed = there;
        if stream.set_nonblocking(true).is_ok() {
            (pump.stream, pump.state) = (Some((stream, Interest::NONE)), State::Open);
            (pump.frames, pump.to_guest, pump.deaf) = Default::default();
            if pump.input_ended {
                // The guest may not have heard of it.
                pump.say(&[]);
            }
        } else {
            pump.state = State::Ended;
        }
        self.update(reactor, key);
        lost
    }

    /// Closes a process' streams in the guest: nobody here is served by the rest of them.
    pub fn leave(&mut self, reactor: &Reactor, key: u32) {
        if let Some(pump) = self.all.get_mut(key).filter(|pump| pump.state == State::Open) {
            pump.leave();
            self.update(reactor, key);
        }
    }

    /// Nothing more comes; what waits for readers is still passed on.
    pub fn end(&mut self, reactor: &Reactor, key: u32) {
        if let Some(pump) = self.all.get_mut(key) {
            pump.state = State::Ended;
            self.update(reactor, key);
        }
    }

    /// The process is forgotten.
    pub fn release(&mut self, reactor: &Reactor, key: u32) {
        self.end(reactor, key);
        let Some(mut pump) = self.all.remove(key) else { return };
        for which in OUTPUTS {
            unwatch(reactor, &mut pump.outputs[which], output_token(which, key));
        }
    }

    fn update(&mut self, reactor: &Reactor, key: u32) {
        let Some(pump) = self.all.get_mut(key) else { return };
        let open = matches!(pump.state, State::Open | State::Leaving);
        let behind = pump.outputs.iter().flatten().any(|end| end.buffer.pending() > OUTPUT_BUFFER);
        if let Some((stream, interest)) = &mut pump.stream {
            let write = pump.to_guest.pending() > 0;
            let wanted = if open { Interest { read: !behind, write, gone: false } } else { Interest::NONE };
            let watched = reactor.watch(&*stream, Token::Pump(key), interest, wanted);
            if watched.is_err() && open {
                pump.state = State::Ended;
            }
        }
        if !matches!(pump.state, State::Open | State::Leaving) {
            pump.stream = None;
        }
        let ended = matches!(pump.state, State::Leaving | State::Ended);
        if ended || pump.input_ended {
            unwatch(reactor, &mut pump.stdin, Token::PumpIn(key));
        }
        let thirsty = pump.state == State::Open && pump.to_guest.pending() <= INPUT_BUFFER;
        if let Some(end) = &mut pump.stdin {
            let wanted = if thirsty { Interest::READ } else { Interest::NONE };
            // Of the kinds of input there are none cannot be heard.
            let _ = reactor.watch(&end.file, Token::PumpIn(key), &mut end.interest, wanted);
        }
        for which in OUTPUTS {
            let Some(end) = &mut pump.outputs[which] else { continue };
            let pending = end.buffer.pending() > 0;
            let wanted = if pending { Interest::WRITE } else { Interest::NONE };
            let watched = reactor.watch(&end.file, output_token(which, key), &mut end.interest, wanted);
            if watched.is_err() || (ended && !pending) {
                unwatch(reactor, &mut pump.outputs[which], output_token(which, key));
            }
        }
    }
}

fn unwatch(reactor: &Reactor, end: &mut Option<End>, token: Token) {
    if let Some(mut end) = end.take() {
        // Only a descriptor that is not in the set could fail here.
        let _ = reactor.watch(&end.file, token, &mut end.interest, Interest::NONE);
    }
}

impl Pump {
    fn flush(&mut self) {
        if let Some((stream, _)) = &mut self.stream
            && self.to_guest.flush(stream).is_err()
        {
            self.fall_deaf();
        }
    }

    /// Reading tells how it ends.
    fn fall_deaf(&mut self) {
        (self.to_guest, self.deaf) = (OutBuffer::default(), true);
    }

    fn break_off(&mut self) {
        self.state = match self.state {
            State::Open => State::Broken,
            State::Leaving => State::Ended,
            state => state,
        };
    }

    /// Reads what the guest sends.
    fn hear(&mut self) {
        let mut chunk = [0u8; CHUNK];
        for _ in 0..TURN {
            let Some((stream, _)) = &mut self.stream else { return };
            match stream.read(&mut chunk) {
                Ok(0) => return self.break_off(),
                Ok(_) if self.state != State::Open => {}
                Ok(count) => self.take(&chunk[..count]),
                Err(error) if would_block(&error) => return,
                Err(_) => return self.break_off(),
            }
            if self.outputs.iter().flatten().any(|end| end.buffer.pending() > OUTPUT_BUFFER) {
                return;
            }
        }
    }

    fn take(&mut self, mut bytes: &[u8]) {
        while self.state == State::Open {
            match self.frames.take(&mut bytes) {
                Ok(None) => return,
                Ok(Some(frame)) if frame.kind == Kind::Stdout => self.pass_on(0, &frame.payload),
                Ok(Some(frame)) if frame.kind == Kind::Stderr => self.pass_on(1, &frame.payload),
                Ok(Some(_)) | Err(_) => self.state = State::Ended,
            }
        }
    }

    /// Passes output on. A file that is full loses it, as it would lose the process' own words.
    fn pass_on(&mut self, which: usize, bytes: &[u8]) {
        self.passed[1 + which] = self.passed[1 + which].wrapping_add(bytes.len() as u64);
        let Some(end) = &mut self.outputs[which] else { return };
        let written = match bytes.is_empty() {
            true => end.buffer.flush(&mut end.file),
            false => end.buffer.send(&mut end.file, &[bytes]),
        };
        match written {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => self.leave(),
            Err(_) => end.buffer = OutBuffer::default(),
            Ok(()) => {}
        }
    }

    /// Nobody hears the process any more.
    fn leave(&mut self) {
        let end = header(Kind::End, 0);
        let told = self.stream.as_mut().is_some_and(|(stream, _)| self.to_guest.send(stream, &[&end]).is_ok());
        self.outputs.iter_mut().flatten().for_each(|end| end.buffer = OutBuffer::default());
        // Otherwise it is as if the connection broke.
        self.state = if told { State::Leaving } else { State::Ended };
    }

    /// Reads the input.
    fn feed(&mut self) {
        let mut chunk = [0u8; CHUNK];
        let Some(end) = &mut self.stdin else { return };
        match end.file.read(&mut chunk) {
            Ok(count @ 1..) => self.say(&chunk[..count]),
            Err(error) if would_block(&error) => {}
            Ok(_) | Err(_) => {
                self.input_ended = true;
                self.say(&[]);
            }
        }
    }

    /// Sends input; no bytes are its end.
    fn say(&mut self, bytes: &[u8]) {
        self.passed[0] += bytes.len() as u64;
        if let Some((stream, _)) = self.stream.as_mut().filter(|_| !self.deaf)
            && self.to_guest.send(stream, &[&header(Kind::Stdin, bytes.len()), bytes]).is_err()
        {
            self.fall_deaf();
        }
    }
}

#[cfg(test)]
#[path = "pump_tests.rs"]
mod tests;
