//! Streams that are copied to and from containerd's fifos: the input of each process, and the output of a terminal. (Other
//! outputs are fifos that the process itself has.)
//!
//! A reader that is slow makes the process wait, as a full terminal does; one that is not there as well, up to the fifo's
//! and this buffer's size. We hold both ends of each fifo, so a containerd that starts again costs no output, and no end of
//! input before CloseIO: what was written before that is still passed on.

use crate::buffer::{OutBuffer, would_block};
use crate::failure::Failure;
use crate::reactor::{Interest, Reactor, Token};
use crate::stdio;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Output that waits for the reader before the process does.
const OUTPUT_BUFFER: usize = 64 << 10;

/// What containerd's end is made of.
#[derive(Debug, Default)]
pub struct RelayEnds {
    /// The fifo of what the user types. It is opened when the process is started: clients of containerd begin to write then,
    /// and one that has little to say and ends its input at once knows its task by then. (Opened earlier, the end is lost:
    /// `echo x | ctr run ... cat` hangs every other time with containerd's own shim.)
    pub input: Option<PathBuf>,
    /// Written: what the terminal shows.
    pub output: Option<OwnedFd>,
}

/// One descriptor in the loop.
struct End {
    file: File,
    interest: Interest,
}

impl End {
    fn new(fd: OwnedFd) -> End {
        End { file: fd.into(), interest: Interest::NONE }
    }
}

/// The two ways.
#[derive(Default)]
pub struct Relay {
    input: Option<End>,
    /// The other end of the input, for as long as more may come.
    keeper: Option<OwnedFd>,
    output: Option<End>,
    buffer: OutBuffer,
    /// Nothing more is written: the output closes when its buffer is empty.
    ending: bool,
}

impl Relay {
    /// The output's way; the input's is opened later.
    pub fn new(output: Option<OwnedFd>) -> Relay {
        Relay { output: output.map(End::new), ..Relay::default() }
    }

    /// Opens the fifo of the input. `ended`: no more is to come than what its writer has on its way.
    pub fn open_input(&mut self, path: &Path, ended: bool) -> Result<(), Failure> {
        let (reader, keeper) = stdio::open_input(path)?;
        (self.input, self.keeper) = (Some(End::new(reader)), Some(keeper).filter(|_| !ended));
        Ok(())
    }

    /// Whether the process has to wait for its reader.
    pub fn is_full(&self) -> bool {
        self.buffer.pending() > OUTPUT_BUFFER
    }

    /// Passes output on.
    pub fn write(&mut self, bytes: &[u8]) {
        let Some(end) = &mut self.output else { return };
        if self.buffer.send(&mut end.file, &[bytes]).is_err() {
            self.ending = true;
            self.buffer = OutBuffer::default();
        }
    }

    /// The output takes more.
    pub fn flush(&mut self) {
        let Some(end) = &mut self.output else { return };
        if self.buffer.flush(&mut end.file).is_err() {
            self.ending = true;
            self.buffer = OutBuffer::default();
        }
    }

    /// What was typed; `None` at the end of it.
    pub fn read<'a>(&mut self, chunk: &'a mut [u8]) -> Option<&'a [u8]> {
        match self.input.as_mut()?.file.read(chunk) {
            Ok(0) => None,
            Ok(count) => Some(&chunk[..count]),
            Err(error) if would_block(&error) => Some(&[]),
            Err(_) => None,
        }
    }

    /// No more is written, but for what containerd's client has on its way.
    pub fn end_input(&mut self) {
        self.keeper = None;
    }

    /// All is read.
    pub fn close_input(&mut self, reactor: &Reactor, key: u32) {
        take(reactor, &mut self.input, Token::RelayIn(key));
    }

    /// No more output comes.
    pub fn end_output(&mut self) {
        self.ending = true;
    }

    /// Everything out of the loop, before the descriptors close.
    pub fn close(&mut self, reactor: &Reactor, key: u32) {
        take(reactor, &mut self.input, Token::RelayIn(key));
        take(reactor, &mut self.output, Token::RelayOut(key));
    }

    /// Hears what has to be heard. `thirsty`: the process takes input.
    pub fn watch(&mut self, reactor: &Reactor, key: u32, thirsty: bool) {
        if self.ending && self.buffer.pending() == 0 {
            take(reactor, &mut self.output, Token::RelayOut(key));
        }
        let pending = self.buffer.pending() > 0;
        for (end, token, wanted, interest) in [
            (&mut self.input, Token::RelayIn(key), thirsty, Interest::READ),
            (&mut self.output, Token::RelayOut(key), pending, Interest::WRITE),
        ] {
            let Some(one) = end else { continue };
            let wanted = if wanted { interest } else { Interest::NONE };
            if reactor.watch(&one.file, token, &mut one.interest, wanted).is_err() {
                *end = None;
            }
        }
    }
}

fn take(reactor: &Reactor, end: &mut Option<End>, token: Token) {
    if let Some(mut end) = end.take() {
        // Only a descriptor that is not in the set could fail here.
        let _ = reactor.watch(&end.file, token, &mut end.interest, Interest::NONE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn input_ends_when_it_is_said_to_and_all_is_read() {
        let reactor = Reactor::new().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stdin");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut relay = Relay::default();
        relay.open_input(&path, false).unwrap();
        let mut chunk = [0u8; 16];
        let mut client = File::options().write(true).open(&path).unwrap();
        client.write_all(b"one").unwrap();
        drop(client);
        assert_eq!(relay.read(&mut chunk), Some(&b"one"[..]));
        assert_eq!(relay.read(&mut chunk), Some(&b""[..]), "a client that leaves is not the end");
        File::options().write(true).open(&path).unwrap().write_all(b"two").unwrap();
        relay.end_input();
        assert_eq!(relay.read(&mut chunk), Some(&b"two"[..]));
        assert_eq!(relay.read(&mut chunk), None);
        relay.close_input(&reactor, 1);
        assert!(relay.input.is_none());
    }
    use crate::stdio::set_nonblocking;

    #[test]
    fn output_waits_for_its_reader_and_ends_when_all_is_read() {
        let reactor = Reactor::new().unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        set_nonblocking(&writer, true).unwrap();
        let mut relay = Relay::new(Some(writer));
        let piece = vec![b'x'; 16 << 10];
        let mut sent = 0;
        while !relay.is_full() {
            relay.write(&piece);
            sent += piece.len();
        }
        relay.end_output();
        relay.watch(&reactor, 1, true);
        let (mut reader, mut got, mut chunk) = (File::from(reader), 0, vec![0u8; 8 << 10]);
        loop {
            match reader.read(&mut chunk).unwrap() {
                0 => break,
                count => got += count,
            }
            relay.flush();
            relay.watch(&reactor, 1, true);
        }
        assert_eq!(got, sent);
    }
}
