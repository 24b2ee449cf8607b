//! Loggers: programs that take what a process says, named by its standard output's word.
//!
//! ```text
//! binary:///usr/bin/logger?key=value&other=2     logger key value other 2
//! ```
//! The contract is containerd's. The program has the process' output as descriptor 3 and its error output as 4 (nothing comes
//! there from a terminal), and writes a byte to 5, or closes it, when it is ready: before that no process is made. Its
//! environment is `CONTAINER_ID` and `CONTAINER_NAMESPACE` alone. `binary-v2` insists on the byte: whoever closes without
//! one has failed. It ends when its input does; when the process is deleted it is waited for, asked by SIGTERM and in the
//! end killed.
//!
//! The pipes are the program's and the process' alone, so output costs the supervisor nothing; a terminal's is copied.

use crate::failure::{Fail, Failure};
use crate::sys::{self, Fork};
use coracle_proto::ttrpc::Code;
use nix::fcntl::OFlag;
use nix::libc::{SIGKILL, SIGTERM};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// The schemes, and whether they insist on the byte.
const SCHEMES: [(&str, bool); 2] = [("binary://", false), ("binary-v2://", true)];
/// The program's descriptors: output, error output, ready.
const FIRST: RawFd = 3;
/// Beyond them, where descriptors are out of the way.
const BEYOND: RawFd = 16;
/// How long it may take to be ready.
const READY_WAIT: Duration = Duration::from_secs(30);
/// How long it may take to end by itself once its process is gone, and then once it was asked. containerd asks at once and
/// waits 12 s.
const LAST_WORDS: Duration = Duration::from_secs(1);
const TERM_WAIT: Duration = Duration::from_secs(11);

/// What an output's word says of a logger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    path: String,
    args: Vec<String>,
    strict: bool,
}

impl Program {
    /// The program of a word; `None` if it is the word of something else.
    pub fn of(word: &str) -> Option<Result<Program, String>> {
        let (rest, strict) = SCHEMES.iter().find_map(|(scheme, strict)| Some((word.strip_prefix(scheme)?, *strict)))?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        Some(Self::parse(path, query, strict))
    }

    fn parse(path: &str, query: &str, strict: bool) -> Result<Program, String> {
        let path = unescape(path, false)?;
        if !path.starts_with('/') {
            return Err("the logger's path is not absolute".to_owned());
        }
        let mut args = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            args.extend([unescape(key, true)?, unescape(value, true)?]);
        }
        Ok(Program { path, args, strict })
    }
}

/// Takes the escapes out of a part of a URL.
pub fn unescape(text: &str, plus_is_space: bool) -> Result<String, String> {
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next(), rest.next()].map(|digit| char::from(digit.unwrap_or(0)).to_digit(16));
                let [Some(high), Some(low)] = digits else { return Err(format!("{text:?} has a broken escape")) };
                (high << 4 | low) as u8
            }
            b'+' if plus_is_space => b' ',
            other => other,
        });
    }
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(format!("{text:?} is no text")),
    }
}

/// A logger that is to be started.
#[derive(Debug)]
pub struct Logger {
    program: Program,
    stdout: OwnedFd,
    stderr: OwnedFd,
    /// containerd's namespace.
    pub namespace: String,
}

impl Logger {
    /// With what it reads.
    pub fn new(program: Program, stdout: OwnedFd, stderr: OwnedFd) -> Logger {
        Logger { program, stdout, stderr, namespace: String::new() }
    }

    /// The descriptors its worker must keep.
    pub fn raw(&self) -> [RawFd; 2] {
        [self.stdout.as_raw_fd(), self.stderr.as_raw_fd()]
    }

    /// Starts it for a process and waits until it is ready; only in a worker. Returns its pid.
    pub fn start(self, id: &str) -> Result<i32, Failure> {
        let path = &self.program.path;
        let failed = |error: io::Error| Code::Unknown.failure(format!("start logger {path}: {error}"));
        let (mut status, status_end) = pipe().map_err(failed)?;
        let (ready, ready_end) = pipe().map_err(failed)?;
        let pid = match sys::fork().map_err(failed)? {
            Fork::Child => {
                let ends = [self.stdout.as_raw_fd(), self.stderr.as_raw_fd(), ready_end.as_raw_fd()];
                if let Ok(status) = sys::dup_beyond(status_end.as_raw_fd(), BEYOND) {
                    let error = self.become_program(id, ends, &status);
                    // Nobody else would hear of it.
                    let _ = File::from(status).write_all(error.to_string().as_bytes());
                }
                sys::exit_now(127);
            }
            Fork::Parent(pid) => pid,
        };
        drop((status_end, ready_end, self.stdout, self.stderr));
        let mut error = String::new();
        status.read_to_string(&mut error).map_err(failed)?;
        if !error.is_empty() {
            return Err(Code::Unknown.failure(format!("start logger {path}: {error}")));
        }
        let waited = wait_ready(ready, self.program.strict);
        waited.map(|()| pid).map_err(|why| {
            kill(pid);
            why.code.failure(format!("logger {path}: {}", why.message))
        })
    }

    fn become_program(&self, id: &str, ends: [RawFd; 3], status: &OwnedFd) -> io::Error {
        let run = || -> io::Result<Infallible> {
            let text = |text: &str| CString::new(text).map_err(io::Error::other);
            let path = text(&self.program.path)?;
            let mut words = vec![path.clone()];
            for word in &self.program.args {
                words.push(text(word)?);
            }
            let environment =
                [text(&format!("CONTAINER_ID={id}"))?, text(&format!("CONTAINER_NAMESPACE={}", self.namespace))?];
            // What is closed below is nobody's to close again.
            let null = ManuallyDrop::new(File::options().read(true).write(true).open("/dev/null")?);
            for number in 0..FIRST {
                sys::dup_to(null.as_raw_fd(), number)?;
            }
            // First all out of the way: one of them may have another's number.
            let away = ends.map(|end| sys::dup_beyond(end, BEYOND));
            for (number, end) in (FIRST..).zip(away) {
                sys::dup_to(ManuallyDrop::new(end?).as_raw_fd(), number)?;
            }
            sys::close_all_but(&mut [FIRST, FIRST + 1, FIRST + 2, status.as_raw_fd()]);
            sys::reset_signals();
            Ok(nix::unistd::execve(&path, &words, &environment)?)
        };
        match run() {
            Err(error) => error,
            Ok(never) => match never {},
        }
    }
}

fn pipe() -> io::Result<(File, OwnedFd)> {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    Ok((reader.into(), writer))
}

fn wait_ready(mut ready: File, strict: bool) -> Result<(), Failure> {
    let failed = |error: io::Error| Code::Unknown.failure(format!("wait until it is ready: {error}"));
    if !readable(&ready, READY_WAIT).map_err(failed)? {
        let seconds = READY_WAIT.as_secs();
        return Err(Code::DeadlineExceeded.failure(format!("it was not ready after {seconds} s")));
    }
    let mut byte = [0];
    match ready.read(&mut byte).map_err(failed)? {
        0 if strict => {
            Err(Code::Unknown.failure("it closed descriptor 5 without the byte that says it is ready".into()))
        }
        _ => Ok(()),
    }
}

fn readable(fd: &impl AsFd, patience: Duration) -> io::Result<bool> {
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
            Ok(count) => return Ok(count > 0),
        }
    }
}

/// Ends a logger whose process could not be made.
pub fn kill(pid: i32) {
    // A child, or a grandchild, that nobody has reaped: its pid is its own.
    let _ = sys::kill(pid, SIGKILL);
}

/// Waits for the end of a logger, by its pidfd, whose process is gone; only in a worker.
pub fn end(logger: &OwnedFd) {
    for (patience, signal) in [(LAST_WORDS, SIGTERM), (TERM_WAIT, SIGKILL)] {
        if readable(logger, patience).unwrap_or(true) || sys::signal_by_pidfd(logger, signal).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(word: &str) -> Program {
        Program::of(word).unwrap().unwrap()
    }

    #[test]
    fn the_words_of_a_program_are_those_of_its_query_in_order() {
        let found = program("binary:///usr/bin/log%20er?dir=%2Fvar&plain&a=b+c%2B");
        assert_eq!((found.path.as_str(), found.strict), ("/usr/bin/log er", false));
        assert_eq!(found.args, ["dir", "/var", "plain", "", "a", "b c+"]);
        assert!(program("binary-v2:///x").strict);
        assert_eq!(Program::of("/run/fifo"), None);
        for bad in ["binary://relative", "binary:///x%2", "binary:///x%zz", "binary:///x?a=%00", "binary:///%ff"] {
            assert!(Program::of(bad).unwrap().is_err(), "{bad}");
        }
    }

    /// Runs a script as a logger of what is written.
    fn run(scheme: &str, script: &str, written: &[u8]) -> Result<i32, Failure> {
        let program = program(&format!("{scheme}:///bin/sh?-c={}", script.replace(' ', "+")));
        let ((out, mut out_end), (err, _)) = (pipe().map(|(r, w)| (r, File::from(w))).unwrap(), pipe().unwrap());
        let logger = Logger { namespace: "k8s.io".into(), ..Logger::new(program, out.into(), err.into()) };
        let started = logger.start("web");
        out_end.write_all(written).unwrap();
        started
    }

    #[test]
    fn it_gets_the_output_its_two_variables_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let script = format!(
            "echo >%265; exec 5>%26-; cat <%263 >{0}; env >>{0}; ls /proc/$$/fd >>{0}; mv {0} {0}.done",
            path.display()
        );
        let pid = run("binary-v2", &script, b"said\n").unwrap();
        let pidfd = sys::pidfd(pid).unwrap();
        assert!(readable(&pidfd, Duration::from_secs(20)).unwrap());
        let log = std::fs::read_to_string(dir.path().join("log.done")).unwrap();
        assert!(log.starts_with("said\n") && log.contains("CONTAINER_ID=web\n"), "{log}");
        assert!(log.contains("CONTAINER_NAMESPACE=k8s.io\n") && !log.contains("CARGO"), "{log}");
        // The shell has one of its own.
        let open: Vec<&str> = log.lines().filter(|line| line.parse::<u32>().is_ok_and(|fd| fd != 10)).collect();
        assert_eq!(open, ["0", "1", "2", "3", "4"], "{log}");
    }

    #[test]
    fn one_that_does_not_begin_is_told_of() {
        let missing = Program { path: "/no/such".into(), args: Vec::new(), strict: false };
        let logger = Logger::new(missing, pipe().unwrap().0.into(), pipe().unwrap().0.into());
        let failure = logger.start("web").unwrap_err();
        assert!(failure.message.contains("start logger /no/such: No such file"), "{}", failure.message);
        assert!(run("binary", "exit 1", b"").is_ok(), "an end without a word is taken for ready");
        assert!(run("binary-v2", "exit 1", b"").unwrap_err().message.contains("without the byte"));
    }

    #[test]
    fn one_that_does_not_end_is_asked_to() {
        let pid = run("binary", "trap 'exit 0' TERM; exec 5>%26-; while :; do sleep 0.1; done", b"").unwrap();
        let pidfd = sys::pidfd(pid).unwrap();
        end(&pidfd);
        assert!(readable(&pidfd, Duration::ZERO).unwrap());
    }
}
