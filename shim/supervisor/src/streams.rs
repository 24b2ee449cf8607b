//! The streams of all processes and the clients attached to them: what a process says goes to its CRI log and to its
//! clients, what a client says goes to the process.
//!
//! - A container never waits: its log drops lines when the disk is full, a client that lags is dropped.
//! - A client that is to be waited for is: it stands for all of the process' readers, on the machine around this virtual
//!   one. Lost without a word it is waited for, until it comes again; no output is read meanwhile, and the input stays.
//! - An exec has one reader, and waits for it. When the reader has left, the exec's streams are closed: it sees the end
//!   of its input, a broken pipe when it writes on, and the hang-up of its terminal, as when a terminal's window closes.
//! - When a process has died, everything it wrote is still read (its pipes hold it) before its clients are told the end.
//!   What its surviving children write later is read on, into the log if there is one, so that they are not killed by it.

use crate::attach::{Client, Hello, Received};
use crate::buffer::{OutBuffer, would_block};
use crate::failure::{Fail, Failure};
use crate::log::{CriLog, Stream};
use crate::reactor::{Interest, Reactor, Table, Token};
use crate::relay::Relay;
use crate::stdio::{self, Kept, Names, OurEnds};
use crate::sys;
use coracle_proto::attach::Kind;
use coracle_proto::ttrpc::Code;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// Read from a process at once.
const CHUNK: usize = 16 << 10;
/// Chunks read from one process before the others have their turn.
const TURN: usize = 4;
/// Read at most after a death: a pipe holds 64 KiB, a grown one 1 MiB. What comes later is not the process' own.
const LAST_WORDS: usize = 1 << 20;
/// Input that waits for a process before its clients are not read any more.
const INPUT_BUFFER: usize = 64 << 10;
/// Clients at once, all processes together.
const MAX_CLIENTS: usize = 256;

/// One output of a process.
struct Source {
    file: File,
    interest: Interest,
    /// Nothing more comes.
    ended: bool,
    /// Everything the dead process wrote has been read.
    drained: bool,
    /// Bytes read since the death.
    late: usize,
}

impl Source {
    fn new(fd: OwnedFd) -> Self {
        Source { file: fd.into(), interest: Interest::NONE, ended: false, drained: false, late: 0 }
    }
}

/// The input of a process.
#[derive(Default)]
struct Input {
    /// Not there before the start, nor after the end.
    file: Option<File>,
    buffer: OutBuffer,
    interest: Interest,
    /// Close it when the buffer is empty.
    closing: bool,
    /// Takes no more.
    closed: bool,
}

/// The streams of one process.
struct Io {
    exec: bool,
    terminal: bool,
    /// The input ends when its first client leaves.
    once: bool,
    sources: [Option<Source>; 2],
    input: Input,
    log: Option<CriLog>,
    clients: Vec<u32>,
    kept: Kept,
    /// Its input comes out of a fifo.
    relayed: bool,
    /// This one, not opened yet.
    input_fifo: Option<PathBuf>,
    relay: Relay,
    /// No more input is to come.
    end_asked: bool,
    size: Option<(u16, u16)>,
    exited: bool,
    /// The exec's reader has left.
    abandoned: bool,
    /// The client that is waited for is not there.
    awaits: bool,
    /// Bytes that clients who are waited for have sent, and that went to them: input, output, error output.
    passed: [u64; 3],
    /// Its clients were told the end.
    told: bool,
    /// The process is forgotten; this lives on only for clients that have not got everything.
    released: bool,
}

/// All of them.
#[derive(Default)]
pub struct Streams {
    ios: Table<Io>,
    clients: Table<Client>,
    /// Clients whose exec is still to come.
    early: Vec<(u32, Hello)>,
    /// Log lines lost since the start.
    pub dropped_lines: u64,
}

fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

fn token(stream: Stream, key: u32) -> Token {
    match stream {
        Stream::Stdout => Token::Stdout(key),
        Stream::Stderr => Token::Stderr(key),
    }
}

const BOTH: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

impl Streams {
    /// The streams of a process that is to be made; opens its log.
    pub fn create(&mut self, names: &Names, exec: bool, log_max_bytes: u64) -> Result<u32, Failure> {
        names.check()?;
        let open_log = |path: &str| {
            CriLog::open(path, log_max_bytes)
                .map_err(|error| Code::Unknown.failure(format!("open log {path}: {error}")))
        };
        let log = names.log_path().map(open_log).transpose()?;
        Ok(self.ios.insert(Io {
            exec,
            terminal: names.terminal,
            once: exec || names.stdin_once(),
            sources: [None, None],
            input: Input {
                closed: !names.stdin.starts_with("attach:") && !names.stdin_is_fifo(),
                ..Default::default()
            },
            log,
            clients: Vec::new(),
            kept: Kept::default(),
            relayed: names.stdin_is_fifo(),
            input_fifo: None,
            relay: Relay::default(),
            end_asked: false,
            size: None,
            exited: false,
            abandoned: false,
            awaits: names.wait(),
            passed: [0; 3],
            told: false,
            released: false,
        }))
    }

    /// The process exists: its streams begin to flow.
    pub fn connect(&mut self, reactor: &Reactor, key: u32, mut ours: OurEnds) -> Result<(), Failure> {
        let Some(io) = self.ios.get_mut(key) else { return Ok(()) };
        if let Some(console) = ours.console.take() {
            let terminal = || -> io::Result<(OwnedFd, OwnedFd)> {
                let terminal = sys::receive_fd(&console)?;
                stdio::set_nonblocking(&terminal, true)?;
                if let Some((columns, rows)) = io.size {
                    sys::set_window_size(&terminal, columns, rows)?;
                }
                Ok((terminal.try_clone()?, terminal))
            };
            let (input, output) =
                terminal().map_err(|error| Code::Unknown.failure(format!("take over the terminal: {error}")))?;
            (ours.stdin, ours.stdout) = (Some(input), Some(output));
        }
        io.sources = [ours.stdout.map(Source::new), ours.stderr.map(Source::new)];
        io.input.file = ours.stdin.map(File::from).filter(|_| !io.input.closed);
        io.kept = ours.kept;
        io.relay = Relay::new(ours.relay.output);
        io.input_fifo = ours.relay.input;
        if io.exec {
            self.started(reactor, key)?;
        }
        self.feed(reactor, key, &[]);
        self.update(reactor, key);
        Ok(())
    }

    /// The process runs: its input begins to flow.
    pub fn started(&mut self, reactor: &Reactor, key: u32) -> Result<(), Failure> {
        let Some(io) = self.ios.get_mut(key) else { return Ok(()) };
        if let Some(path) = io.input_fifo.take() {
            io.relay.open_input(&path, io.end_asked)?;
            self.update(reactor, key);
        }
        Ok(())
    }

    /// An output can be read.
    pub fn readable(&mut self, reactor: &Reactor, key: u32, stream: Stream) {
        self.pump(key, stream, TURN);
        self.update(reactor, key);
    }

    /// Reads an output and passes it on, at most `chunks` times.
    fn pump(&mut self, key: u32, stream: Stream, chunks: usize) {
        let mut chunk = [0u8; CHUNK];
        for _ in 0..chunks {
            let Some(io) = self.ios.get_mut(key) else { return };
            if io.must_wait(&self.clients) {
                return;
            }
            let Some(source) = io.sources[index(stream)].as_mut().filter(|source| !source.ended) else { return };
            match source.file.read(&mut chunk) {
                Ok(count @ 1..) => {
                    if io.exited {
                        source.late += count;
                        source.drained |= source.late >= LAST_WORDS;
                    }
                    self.deliver(key, stream, &chunk[..count]);
                }
                Err(error) if would_block(&error) => {
                    source.drained |= io.exited;
                    return;
                }
                // A terminal nobody holds open any more reads as EIO.
                Ok(_) | Err(_) => {
                    source.ended = true;
                    if let Some(log) = &mut io.log {
                        self.dropped_lines += log.finish(stream);
                    }
                    return;
                }
            }
        }
    }

    fn deliver(&mut self, key: u32, stream: Stream, bytes: &[u8]) {
        let Some(io) = self.ios.get_mut(key) else { return };
        if let Some(log) = &mut io.log {
            self.dropped_lines += log.write(stream, bytes);
        }
        io.relay.write(bytes);
        // Without one of them nothing is read of a process that waits.
        io.passed[1 + index(stream)] += bytes.len() as u64;
        let kind = if stream == Stream::Stdout { Kind::Stdout } else { Kind::Stderr };
        let mut lost = Vec::new();
        for &client in &io.clients {
            if !self.clients.get_mut(client).is_some_and(|client| client.output(kind, bytes, io.exec || client.wait)) {
                lost.push(client);
            }
        }
        for client in lost {
            self.disconnect(client);
        }
    }

    /// Brings everything that follows from the state of a process' streams up to date: who is listened to, who is told
    /// the end, what is closed.
    fn update(&mut self, reactor: &Reactor, key: u32) {
        if self.ios.get(key).is_some_and(|io| io.exited && !io.told) {
            // A reader that was waited for has caught up: nothing else would tell that there is no more.
            BOTH.into_iter().for_each(|stream| self.pump(key, stream, TURN));
        }
        let Some(io) = self.ios.get_mut(key) else { return };
        if io.abandoned {
            io.hang_up(reactor, key);
        }
        let waits = io.must_wait(&self.clients);
        for stream in BOTH {
            let Some(source) = &mut io.sources[index(stream)] else { continue };
            let wanted = if waits || source.ended { Interest::NONE } else { Interest::READ };
            if reactor.watch(&source.file, token(stream, key), &mut source.interest, wanted).is_err() {
                source.ended = true;
            }
            // A terminal stays open: closing it hangs up on whoever still has it.
            if source.ended && !io.terminal {
                io.sources[index(stream)] = None;
            }
        }
        if io.exited
            && !io.told
            && !io.awaits
            && io.sources.iter().flatten().all(|source| source.ended || source.drained)
        {
            io.told = true;
            io.relay.end_output();
            for client in std::mem::take(&mut io.clients) {
                if let Some(client) = self.clients.get_mut(client) {
                    client.end();
                }
            }
        }
        let done = io.released && (io.told || io.clients.is_empty());
        let thirsty = !io.exited && io.input.buffer.pending() <= INPUT_BUFFER;
        io.relay.watch(reactor, key, thirsty);
        io.watch_input(reactor, key);
        if done && let Some(mut io) = self.ios.remove(key) {
            self.dropped_lines += io.close(reactor, key);
        }
        self.update_clients(reactor);
    }

    fn update_clients(&mut self, reactor: &Reactor) {
        for key in self.clients.keys() {
            let Some(client) = self.clients.get_mut(key) else { continue };
            let io = client.attached_to().and_then(|io| self.ios.get(io));
            let full = io.is_some_and(|io| io.input.buffer.pending() > INPUT_BUFFER);
            if client.done() || client.watch(reactor, key, full).is_err() {
                self.disconnect(key);
            }
        }
    }

    /// The process has died: reads what it left, then tells its clients the end.
    pub fn exited(&mut self, reactor: &Reactor, key: u32) {
        let Some(io) = self.ios.get_mut(key) else { return };
        io.exited = true;
        io.kept.stop_writing();
        io.input.close();
        for stream in BOTH {
            self.pump(key, stream, LAST_WORDS / CHUNK);
        }
        self.update(reactor, key);
    }

    /// The process is forgotten: its streams go, as soon as its clients have everything.
    pub fn release(&mut self, reactor: &Reactor, key: u32) {
        if let Some(io) = self.ios.get_mut(key) {
            io.released = true;
            // Whoever never ran says nothing any more.
            if !io.exited {
                self.exited(reactor, key);
            } else {
                self.update(reactor, key);
            }
        }
    }

    /// Sets the size of a terminal, now or when it appears.
    pub fn resize(&mut self, key: u32, columns: u16, rows: u16) -> Result<(), Failure> {
        let Some(io) = self.ios.get_mut(key) else { return Ok(()) };
        if !io.terminal {
            return Err(Code::FailedPrecondition.failure("resize: the process has no terminal".into()));
        }
        io.size = Some((columns, rows));
        let Some(source) = &io.sources[0] else { return Ok(()) };
        let terminal: OwnedFd = source.file.as_fd().try_clone_to_owned().map_err(resize_failed)?;
        sys::set_window_size(&terminal, columns, rows).map_err(resize_failed)
    }

    /// Ends the input once what waits is written.
    pub fn close_stdin(&mut self, reactor: &Reactor, key: u32) {
        let Some(io) = self.ios.get_mut(key) else { return };
        io.end_asked = true;
        io.relay.end_input();
        // What containerd's client wrote before is still to be read.
        io.input.closing |= !io.relayed;
        self.feed(reactor, key, &[]);
        self.update(reactor, key);
    }

    /// Who uses a terminal over fifos has typed.
    pub fn typed(&mut self, reactor: &Reactor, key: u32) {
        let mut chunk = [0u8; CHUNK];
        let Some(io) = self.ios.get_mut(key) else { return };
        match io.relay.read(&mut chunk) {
            Some(bytes) => self.feed(reactor, key, bytes),
            None => {
                io.relay.close_input(reactor, key);
                io.input.closing = true;
                self.feed(reactor, key, &[]);
            }
        }
        self.update(reactor, key);
    }

    /// Who shows a terminal over fifos takes more.
    pub fn shown(&mut self, reactor: &Reactor, key: u32) {
        let Some(io) = self.ios.get_mut(key) else { return };
        io.relay.flush();
        self.update(reactor, key);
    }

    /// The input takes more.
    pub fn stdin_writable(&mut self, reactor: &Reactor, key: u32) {
        self.feed(reactor, key, &[]);
        self.update(reactor, key);
    }

    fn feed(&mut self, reactor: &Reactor, key: u32, bytes: &[u8]) {
        let Some(io) = self.ios.get_mut(key) else { return };
        io.input.feed(bytes, io.terminal);
        io.watch_input(reactor, key);
    }

    /// Whether all input has been passed on and no more comes.
    pub fn input_closed(&self, key: u32) -> bool {
        self.ios.get(key).is_some_and(|io| io.input.closed)
    }

    /// Closes what held the outputs' fifos open.
    pub fn let_go(&mut self, key: u32) {
        if let Some(io) = self.ios.get_mut(key) {
            io.kept.outputs.clear();
        }
    }

    /// Opens the log's name again.
    pub fn reopen_log(&mut self, key: u32) -> Result<(), Failure> {
        let log = self.ios.get_mut(key).and_then(|io| io.log.as_mut());
        let Some(log) = log else {
            return Err(Code::FailedPrecondition.failure("reopen log: the container has no log".into()));
        };
        let reopened = log.reopen();
        reopened.map_err(|error| Code::Unknown.failure(format!("reopen log {}: {error}", log.path())))
    }

    /// A new attach client. One too many is turned away.
    pub fn accept(&mut self, reactor: &Reactor, stream: UnixStream) {
        let Ok(client) = Client::new(stream) else { return };
        let key = self.clients.insert(client);
        if self.clients.len() > MAX_CLIENTS
            && let Some(client) = self.clients.get_mut(key)
        {
            client.refuse("too many attach clients");
        }
        self.update_clients(reactor);
    }

    /// An attach client can be read or written. Returns its wish to be connected, for [`Streams::attach`].
    pub fn client_ready(
        &mut self,
        reactor: &Reactor,
        key: u32,
        read: bool,
        write: bool,
    ) -> Option<Result<Hello, String>> {
        let client = self.clients.get_mut(key)?;
        let alive = !write || client.flush();
        let received = if alive && read { client.read() } else { Received { gone: !alive, ..Default::default() } };
        self.received(reactor, key, received)
    }

    fn received(&mut self, reactor: &Reactor, key: u32, received: Received) -> Option<Result<Hello, String>> {
        let client = self.clients.get(key)?;
        let (io, wait) = (client.attached_to(), client.wait);
        if let Some(io) = io {
            if let Some(streams) = self.ios.get_mut(io).filter(|_| wait) {
                streams.passed[0] += received.stdin.iter().map(|piece| piece.len() as u64).sum::<u64>();
            }
            for piece in &received.stdin {
                match piece.is_empty() {
                    false => self.feed(reactor, io, piece),
                    true => self.input_ended(io),
                }
            }
        }
        if received.gone {
            self.disconnect(key);
        }
        match io {
            Some(io) => self.update(reactor, io),
            None => self.update_clients(reactor),
        }
        received.hello
    }

    /// Remembers a client whose exec is still to come.
    pub fn expect(&mut self, client_key: u32, hello: Hello) {
        self.early.push((client_key, hello));
    }

    /// Takes a client that came before its exec, or before any exec of the container: the last of them first.
    pub fn expected(&mut self, container: &str, exec: Option<&str>) -> Option<(u32, Hello)> {
        let meant = |hello: &Hello| hello.container == container && exec.is_none_or(|exec| hello.exec == exec);
        let at = self.early.iter().rposition(|(_, hello)| meant(hello))?;
        Some(self.early.remove(at))
    }

    /// Connects a client to a process' streams, or tells it why not.
    pub fn attach(&mut self, reactor: &Reactor, client_key: u32, target: Result<(u32, Hello), String>) {
        let target = target.and_then(|(io, hello)| match self.ios.get(io) {
            None => Err("the process has ended".to_owned()),
            Some(streams) if streams.exited && !streams.awaits && !hello.wait => {
                Err("the process has ended".to_owned())
            }
            Some(streams) if streams.exec && !streams.clients.is_empty() => Err("attached already".to_owned()),
            Some(_) => Ok((io, hello)),
        });
        let Some(client) = self.clients.get_mut(client_key) else { return };
        match target {
            Err(why) => {
                client.refuse(&why);
                self.update_clients(reactor);
            }
            Ok((io, hello)) => {
                let passed = self.ios.get(io).map_or([0; 3], |streams| streams.passed);
                let received = client.accept(io, &hello, passed);
                match self.ios.get_mut(io) {
                    // It had nothing to say, or has said it: then that is the answer.
                    Some(streams) if streams.told => client.end(),
                    Some(streams) => {
                        streams.clients.push(client_key);
                        streams.awaits &= !hello.wait;
                    }
                    None => {}
                }
                self.received(reactor, client_key, received);
            }
        }
    }

    /// Forgets a client.
    fn disconnect(&mut self, key: u32) {
        let Some(client) = self.clients.remove(key) else { return };
        self.early.retain(|(early, _)| *early != key);
        let Some(io) = client.attached_to() else { return };
        if let Some(streams) = self.ios.get_mut(io) {
            streams.clients.retain(|other| *other != key);
            streams.awaits |= client.wait && !streams.told;
            streams.abandoned |= streams.exec && !streams.exited && !client.wait;
        }
        if client.stdin && !client.wait {
            self.input_ended(io);
        }
    }

    fn input_ended(&mut self, io: u32) {
        if let Some(io) = self.ios.get_mut(io)
            && io.once
        {
            io.input.closing = true;
            io.input.feed(&[], io.terminal);
        }
    }

    /// Whether attach clients still have something coming.
    pub fn busy(&self) -> bool {
        self.clients.iter().any(|(_, client)| !client.done())
    }
}

fn resize_failed(error: io::Error) -> Failure {
    Code::Unknown.failure(format!("resize the terminal: {error}"))
}

impl Io {
    /// An exec waits for its client, and each process for one that asks for it.
    fn must_wait(&self, clients: &Table<Client>) -> bool {
        let behind = |client: &Client| (self.exec || client.wait) && client.is_behind();
        self.relay.is_full() || self.awaits || self.clients.iter().any(|key| clients.get(*key).is_some_and(behind))
    }

    fn watch_input(&mut self, reactor: &Reactor, key: u32) {
        let wanted = if self.input.buffer.pending() > 0 { Interest::WRITE } else { Interest::NONE };
        if let Some(file) = &self.input.file
            && reactor.watch(file, Token::Stdin(key), &mut self.input.interest, wanted).is_err()
        {
            self.input.close();
        }
    }

    /// Closes everything of an exec whose reader has left.
    fn hang_up(&mut self, reactor: &Reactor, key: u32) {
        for stream in BOTH {
            if let Some(mut source) = self.sources[index(stream)].take() {
                let _ = reactor.watch(&source.file, token(stream, key), &mut source.interest, Interest::NONE);
            }
        }
        // Of a terminal this is the other half, which keeps it open; a pipe still takes what was sent into it.
        if self.terminal {
            if let Some(file) = &self.input.file {
                let _ = reactor.watch(file, Token::Stdin(key), &mut self.input.interest, Interest::NONE);
            }
            self.input.close();
        }
    }

    /// Takes everything out of the loop, before the descriptors close. Returns the log lines that got lost doing so.
    fn close(&mut self, reactor: &Reactor, key: u32) -> u64 {
        for stream in BOTH {
            if let Some(source) = &mut self.sources[index(stream)] {
                let _ = reactor.watch(&source.file, token(stream, key), &mut source.interest, Interest::NONE);
            }
        }
        self.relay.close(reactor, key);
        self.log.as_mut().map_or(0, |log| BOTH.into_iter().map(|stream| log.finish(stream)).sum())
    }
}

impl Input {
    fn feed(&mut self, bytes: &[u8], terminal: bool) {
        if self.closed {
            return;
        }
        let Some(file) = &mut self.file else {
            self.buffer.hold(bytes);
            return;
        };
        // Whoever reads no more has closed its end: what is left is for nobody.
        let written = match bytes.is_empty() {
            true => self.buffer.flush(file),
            false => self.buffer.send(file, &[bytes]),
        };
        // A terminal cannot be half closed.
        if written.is_err() || (self.closing && !terminal && self.buffer.pending() == 0) {
            self.close();
        }
    }

    fn close(&mut self) {
        *self = Input { closed: true, ..Default::default() };
    }
}
