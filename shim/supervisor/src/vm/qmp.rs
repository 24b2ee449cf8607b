//! QMP, the monitor's control protocol, for workers: lines of JSON over `<bundle>/vm/qmp.sock`, one command after the
//! other, and blocking.
//!
//! ```text
//! <- {"QMP": {"version": ...}}            the greeting
//! -> {"execute":"qmp_capabilities"}       <- {"return": {}}
//! -> {"execute":C,"arguments":A}          <- {"return": ...} or {"error":{"class":...,"desc":...}}
//!                                         <- {"event":E,"data":...,"timestamp":...}     at any time
//! ```
//! The monitor takes one client at a time and lets others wait without a word, so clients take turns by a lock. What it
//! sends is limited: a line in length, an answer in the lines before it, and each wait in time.

use crate::failure::{Fail, Failure};
use coracle_proto::ttrpc::Code;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// The socket in the machine's folder.
pub const SOCKET: &str = "qmp.sock";
/// Whose lock is a client's turn.
pub const LOCK: &str = "qmp.lock";
/// The longest line of the monitor's.
const MAX_LINE: u64 = 1 << 20;
/// Events that may come before an answer.
const MAX_EVENTS: usize = 10_000;
/// How long the monitor may take for one answer: under emulation on a busy machine some take a while.
const PATIENCE: Duration = Duration::from_secs(20);

/// A client, whose turn it is.
pub struct Qmp {
    reader: BufReader<UnixStream>,
    events: Vec<Value>,
    _turn: Flock<File>,
}

fn failed(what: &str, error: impl std::fmt::Display) -> Failure {
    Code::Unavailable.failure(format!("{what}: {error}"))
}

impl Qmp {
    /// Waits for its turn, connects and greets.
    pub fn connect(folder: &Path) -> Result<Qmp, Failure> {
        let what = "connect to the machine's monitor";
        let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(folder.join(LOCK));
        let lock = lock.map_err(|error| failed(what, error))?;
        let turn = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| failed(what, error))?;
        let socket = super::connect(folder, SOCKET).map_err(|error| failed(what, error))?;
        let mut qmp = Qmp { reader: BufReader::new(socket), events: Vec::new(), _turn: turn };
        let deadline = Instant::now() + PATIENCE;
        let greeting = qmp.line(deadline).map_err(|error| failed(what, error))?;
        if greeting.get("QMP").is_none() {
            return Err(failed(what, "it does not greet"));
        }
        qmp.command("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command.
    pub fn command(&mut self, name: &str, arguments: Value) -> Result<Value, Failure> {
        self.send(name, arguments, None)
    }

    /// Runs a command that takes a descriptor.
    pub fn command_with(&mut self, name: &str, arguments: Value, fd: BorrowedFd<'_>) -> Result<Value, Failure> {
        self.send(name, arguments, Some(fd))
    }

    fn send(&mut self, name: &str, arguments: Value, fd: Option<BorrowedFd<'_>>) -> Result<Value, Failure> {
        let what = format!("the machine's monitor: {name}");
        let line = format!("{}\n", json!({ "execute": name, "arguments": arguments }));
        let sent = match fd {
            None => self.reader.get_mut().write_all(line.as_bytes()),
            Some(fd) => send_with(self.reader.get_ref(), line.as_bytes(), fd),
        };
        sent.map_err(|error| failed(&what, error))?;
        let deadline = Instant::now() + PATIENCE;
        for _ in 0..MAX_EVENTS {
            let mut message = self.line(deadline).map_err(|error| failed(&what, error))?;
            if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = message.get("error") {
                let words = error["desc"].as_str().unwrap_or("it refuses without a word");
                return Err(Code::Unknown.failure(format!("{what}: {words}")));
            }
            self.events.push(message);
        }
        Err(failed(&what, "it sends events without end"))
    }

    /// Waits for an event that fits; those that came earlier count.
    pub fn event(&mut self, fits: impl Fn(&Value) -> bool, patience: Duration) -> io::Result<Value> {
        let deadline = Instant::now() + patience;
        if let Some(at) = self.events.iter().position(&fits) {
            return Ok(self.events.swap_remove(at));
        }
        for _ in 0..MAX_EVENTS {
            let message = self.line(deadline)?;
            if fits(&message) {
                return Ok(message);
            }
        }
        Err(io::Error::other("events without end"))
    }

    fn line(&mut self, deadline: Instant) -> io::Result<Value> {
        let mut line = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
            }
            self.reader.get_ref().set_read_timeout(Some(left))?;
            let room = MAX_LINE - line.len() as u64;
            match (&mut self.reader).take(room).read_until(b'\n', &mut line) {
                Ok(_) if line.ends_with(b"\n") => return serde_json::from_slice(&line).map_err(io::Error::from),
                Ok(_) if line.len() as u64 >= MAX_LINE => return Err(io::Error::other("a line without end")),
                Ok(_) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has died")),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The descriptor goes with the first byte; a command is shorter than what a socket takes at once.
fn send_with(socket: &UnixStream, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
    let fds = [fd.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&fds)];
    let sent = sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], &control, MsgFlags::MSG_NOSIGNAL, None)?;
    let mut rest = socket;
    rest.write_all(&bytes[sent..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A monitor that says these lines, the first as its greeting and each next as the answer to a line.
    fn monitor(folder: &Path, lines: &'static [&'static str]) -> std::thread::JoinHandle<Vec<String>> {
        let listener = UnixListener::bind(folder.join(SOCKET)).unwrap();
        std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(socket.try_clone().unwrap());
            let mut heard = Vec::new();
            for (number, line) in lines.iter().enumerate() {
                if number > 0 {
                    let mut command = String::new();
                    reader.read_line(&mut command).unwrap();
                    heard.push(command);
                }
                socket.write_all(line.as_bytes()).unwrap();
            }
            heard
        })
    }

    #[test]
    fn a_command_gets_its_answer_whatever_comes_between() {
        let dir = tempfile::tempdir().unwrap();
        let lines = &[
            "{\"QMP\":{}}\n",
            "{\"return\":{}}\n",
            "{\"event\":\"DEVICE_DELETED\",\"data\":{\"device\":\"d1\"}}\n{\"return\":{\"status\":\"running\"}}\n",
            "{\"error\":{\"class\":\"GenericError\",\"desc\":\"no such disk\"}}\n",
        ];
        let monitor = monitor(dir.path(), lines);
        let mut qmp = Qmp::connect(dir.path()).unwrap();
        assert_eq!(qmp.command("query-status", json!({})).unwrap()["status"], "running");
        let deleted = qmp.event(|event| event["data"]["device"] == "d1", Duration::ZERO).unwrap();
        assert_eq!(deleted["event"], "DEVICE_DELETED");
        let failure = qmp.command("device_del", json!({"id": "d2"})).unwrap_err();
        assert_eq!(failure.message, "the machine's monitor: device_del: no such disk");
        let heard = monitor.join().unwrap();
        assert!(heard[0].contains("qmp_capabilities") && heard[2].contains("\"id\":\"d2\""), "{heard:?}");
        assert!(qmp.command("quit", json!({})).unwrap_err().message.contains("monitor: quit: "));
    }

    #[test]
    fn who_does_not_greet_is_no_monitor() {
        let dir = tempfile::tempdir().unwrap();
        let monitor = monitor(dir.path(), &["{\"hello\":1}\n"]);
        assert!(Qmp::connect(dir.path()).err().unwrap().message.contains("does not greet"));
        monitor.join().unwrap();
    }
}
