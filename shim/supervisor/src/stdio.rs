//! Where a process' input comes from and its outputs go: the words of the requests, and the descriptors made of them.
//!
//! | word | as input | as output |
//! |---|---|---|
//! | empty | /dev/null | /dev/null |
//! | `attach:` | fed by attach clients, stays open when they leave | read by attach clients alone |
//! | `attach:once` | the same, closed when the first client ends it or leaves | |
//! | `cri:/PATH` | | a CRI log file, and attach clients |
//! | `/PATH`, `fifo:///PATH` | a fifo of containerd's | the same |
//! | `file:///PATH` | | appended to by the process itself |
//! | `binary:///PATH?k=v` | | read by that program (see `logger`), which takes both outputs |
//!
//! Fifos and files of outputs are handed to the process as they are: nothing is copied, but for a terminal's and for input
//! (see `relay`): the supervisor keeps the other end of
//! each fifo open, so that a containerd that restarts costs the process neither a signal nor its output.

use crate::failure::{Fail, Failure};
use crate::logger::{self, Logger, Program};
use crate::relay::RelayEnds;
use crate::vm::pump;
use coracle_proto::ttrpc::Code;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// The three words of a request.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Names {
    /// The process gets a terminal; its output is all standard output.
    pub terminal: bool,
    /// Input.
    pub stdin: String,
    /// Output.
    pub stdout: String,
    /// Error output.
    pub stderr: String,
}

/// Where input comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input<'a> {
    /// Nowhere.
    Null,
    /// Attach clients; `once`: the first to leave closes it.
    Attach {
        /// Closed with its first client.
        once: bool,
    },
    /// A fifo.
    Fifo(&'a str),
}

/// Where output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output<'a> {
    /// Nowhere.
    Null,
    /// Attach clients alone.
    Attach,
    /// A CRI log, and attach clients.
    Log(&'a str),
    /// A fifo.
    Fifo(&'a str),
    /// A file.
    File(String),
    /// A program.
    Logger(Program),
}

/// The word for an output of which nothing is taken before the supervisor of the machine around this one asks for it.
pub const AWAITED: &str = "attach:wait";

fn unknown(which: &str, word: &str, known: &str) -> Failure {
    Code::InvalidArgument.failure(format!("{which} {word:?} is not known; use {known}"))
}

/// The meaning of an input's word.
pub fn input(word: &str) -> Result<Input<'_>, Failure> {
    match word {
        "" => Ok(Input::Null),
        "attach:" => Ok(Input::Attach { once: false }),
        "attach:once" => Ok(Input::Attach { once: true }),
        _ => match path_of(word, "fifo://") {
            Some(path) => Ok(Input::Fifo(path)),
            None => Err(unknown("stdin", word, "attach:, attach:once or the absolute path of a fifo")),
        },
    }
}

/// The meaning of an output's word.
pub fn output<'a>(which: &str, word: &'a str) -> Result<Output<'a>, Failure> {
    if word.is_empty() {
        return Ok(Output::Null);
    }
    if word == "attach:" || word == AWAITED {
        return Ok(Output::Attach);
    }
    if let Some(path) = word.strip_prefix("cri:").filter(|path| path.starts_with('/')) {
        return Ok(Output::Log(path));
    }
    let broken = |why| Code::InvalidArgument.failure(format!("{which} {word:?}: {why}"));
    if let Some(url) = word.strip_prefix("file://").filter(|url| url.starts_with('/')) {
        let path = url.split('?').next().unwrap_or(url);
        return logger::unescape(path, false).map(Output::File).map_err(broken);
    }
    if let Some(program) = Program::of(word) {
        return program.map(Output::Logger).map_err(broken);
    }
    match path_of(word, "fifo://") {
        Some(path) => Ok(Output::Fifo(path)),
        None => {
            Err(unknown(which, word, "attach:, cri:/PATH, file:///PATH, binary:///PATH or the absolute path of a fifo"))
        }
    }
}

fn path_of<'a>(word: &'a str, scheme: &str) -> Option<&'a str> {
    Some(word.strip_prefix(scheme).unwrap_or(word)).filter(|path| path.starts_with('/'))
}

impl Names {
    /// Refuses what cannot be done, before anything is opened.
    pub fn check(&self) -> Result<(), Failure> {
        input(&self.stdin)?;
        let (stdout, stderr) = (output("stdout", &self.stdout)?, output("stderr", &self.stderr)?);
        if let (Output::Log(one), Output::Log(other)) = (&stdout, &stderr)
            && one != other
        {
            let text = format!("stdout and stderr name different CRI logs, {one} and {other}");
            return Err(Code::InvalidArgument.failure(text));
        }
        let logger = |output: &Output| matches!(output, Output::Logger(_));
        let both = self.stdout == self.stderr || stderr == Output::Null && logger(&stdout);
        if (logger(&stdout) || logger(&stderr)) && !both {
            let text = format!("stdout {:?} and stderr {:?}: a logger takes both", self.stdout, self.stderr);
            return Err(Code::InvalidArgument.failure(text));
        }
        Ok(())
    }

    /// The CRI log, if either output names one.
    pub fn log_path(&self) -> Option<&str> {
        [&self.stdout, &self.stderr].into_iter().find_map(|word| match output("", word) {
            Ok(Output::Log(path)) => Some(path),
            _ => None,
        })
    }

    /// Whether the input comes out of a fifo.
    pub fn stdin_is_fifo(&self) -> bool {
        matches!(input(&self.stdin), Ok(Input::Fifo(_)))
    }

    /// Whether an output waits for its first client.
    pub fn wait(&self) -> bool {
        self.stdout == AWAITED || self.stderr == AWAITED
    }

    /// Whether the input, if fed by attach clients, ends with the first of them.
    pub fn stdin_once(&self) -> bool {
        self.stdin == "attach:once"
    }
}

impl Kept {
    /// The process has ended: whoever reads shall see the end, and one that comes later still what was written before it.
    pub fn stop_writing(&mut self) {
        for end in &mut self.outputs {
            let path = format!("/proc/self/fd/{}", end.as_raw_fd());
            if let Ok(reader) = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path) {
                *end = reader.into();
            }
        }
    }
}

/// The process' ends: what a worker hands to the runtime. `None` is /dev/null.
#[derive(Debug, Default)]
pub struct ProcessEnds {
    /// Input.
    pub stdin: Option<OwnedFd>,
    /// Output.
    pub stdout: Option<OwnedFd>,
    /// Error output.
    pub stderr: Option<OwnedFd>,
    /// The socket over which the runtime sends the terminal.
    pub console: Option<UnixStream>,
    /// Who takes its outputs, to be started before it.
    pub logger: Option<Logger>,
    /// For a shim, instead of all these: the fifos it is to open by their names.
    pub fifos: Names,
    /// For a process in a virtual machine, instead of its own ends: the way to it.
    pub attach: Option<UnixStream>,
}

/// The supervisor's ends.
#[derive(Debug, Default)]
pub struct OurEnds {
    /// The write end of the input.
    pub stdin: Option<OwnedFd>,
    /// The read end of the output.
    pub stdout: Option<OwnedFd>,
    /// The read end of the error output.
    pub stderr: Option<OwnedFd>,
    /// The other end of the terminal's socket.
    pub console: Option<UnixStream>,
    /// Other ends of containerd's fifos, never read or written.
    pub kept: Kept,
    /// A terminal's fifos.
    pub relay: RelayEnds,
    /// The ends of a process that is in a virtual machine, and the way to it.
    pub pump: Option<pump::Ends>,
}

/// Other ends of fifos.
#[derive(Debug, Default)]
pub struct Kept {
    /// Both ends for the life of the process, then the reading one.
    pub outputs: Vec<OwnedFd>,
    /// A second reader of a shim's input, for the life of the process; never read.
    pub reader: Option<OwnedFd>,
}

/// Who is to own what a process has for its streams, so that it can open them again by /proc/self/fd; 0 is as it is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct IoOwner {
    uid: u32,
    gid: u32,
}

impl IoOwner {
    /// Of the runtime options IoUid and IoGid.
    pub fn new(uid: u32, gid: u32) -> IoOwner {
        IoOwner { uid, gid }
    }

    /// Gives it all pipes and fifos. Files of the host keep their owner.
    fn take(self, ends: &ProcessEnds) -> Result<(), Failure> {
        if self == IoOwner::default() {
            return Ok(());
        }
        for end in [&ends.stdin, &ends.stdout, &ends.stderr].into_iter().flatten() {
            let change = || -> io::Result<()> {
                if File::from(end.try_clone()?).metadata()?.file_type().is_fifo() {
                    std::os::unix::fs::fchown(end, Some(self.uid), Some(self.gid))?;
                }
                Ok(())
            };
            change().map_err(|error| failed(&format!("give the streams to {}:{}", self.uid, self.gid), "", error))?;
        }
        Ok(())
    }
}

/// Opens or makes all ends.
pub fn open(names: &Names, owner: IoOwner) -> Result<(ProcessEnds, OurEnds), Failure> {
    let (theirs, ours) = open_all(names)?;
    owner.take(&theirs)?;
    Ok((theirs, ours))
}

fn open_all(names: &Names) -> Result<(ProcessEnds, OurEnds), Failure> {
    let (mut theirs, mut ours) = (ProcessEnds::default(), OurEnds::default());
    if names.terminal {
        let (one, other) = UnixStream::pair().map_err(|error| failed("make the terminal's socket", "", error))?;
        (theirs.console, ours.console) = (Some(one), Some(other));
        if let Input::Fifo(path) = input(&names.stdin)? {
            ours.relay.input = Some(path.into());
        }
        ours.relay.output = match output("stdout", &names.stdout)? {
            Output::Fifo(path) => Some(open_both_ends(path)?),
            Output::File(path) => Some(open_file(&path)?),
            Output::Logger(program) => {
                let ((out, writer), (err, _)) = (pipe(false)?, pipe(false)?);
                theirs.logger = Some(Logger::new(program, out, err));
                Some(writer)
            }
            _ => None,
        };
        return Ok((theirs, ours));
    }
    match input(&names.stdin)? {
        Input::Null => {}
        Input::Attach { .. } => {
            let (reader, writer) = pipe(false)?;
            (theirs.stdin, ours.stdin) = (Some(reader), Some(writer));
        }
        Input::Fifo(path) => {
            let (reader, writer) = pipe(false)?;
            (theirs.stdin, ours.stdin) = (Some(reader), Some(writer));
            ours.relay.input = Some(path.into());
        }
    }
    if let Output::Logger(program) = output("stdout", &names.stdout)? {
        let ((out, stdout), (err, stderr)) = (blocking_pipe()?, blocking_pipe()?);
        theirs.logger = Some(Logger::new(program, out, err));
        (theirs.stdout, theirs.stderr) = (Some(stdout), Some(stderr));
        return Ok((theirs, ours));
    }
    let mut open_output = |which, word| -> Result<(Option<OwnedFd>, Option<OwnedFd>), Failure> {
        Ok(match output(which, word)? {
            Output::Null => (None, None),
            Output::Attach | Output::Log(_) => {
                let (reader, writer) = pipe(true)?;
                (Some(writer), Some(reader))
            }
            Output::Fifo(path) => {
                let (end, keeper) = open_output_fifo(path)?;
                ours.kept.outputs.push(keeper);
                (Some(end), None)
            }
            Output::File(path) => (Some(open_file(&path)?), None),
            // Of both outputs or of none: see above.
            Output::Logger(_) => (None, None),
        })
    };
    (theirs.stdout, ours.stdout) = open_output("stdout", &names.stdout)?;
    (theirs.stderr, ours.stderr) = open_output("stderr", &names.stderr)?;
    Ok((theirs, ours))
}

fn failed(what: &str, path: &str, error: io::Error) -> Failure {
    let code = match error.kind() {
        io::ErrorKind::NotFound => Code::NotFound,
        io::ErrorKind::PermissionDenied => Code::PermissionDenied,
        _ => Code::Unknown,
    };
    let space = if path.is_empty() { "" } else { " " };
    code.failure(format!("{what}{space}{path}: {error}"))
}

/// A pipe whose end on our side does not block: the reader's when `read_here`, else the writer's.
fn pipe(read_here: bool) -> Result<(OwnedFd, OwnedFd), Failure> {
    let (reader, writer) = blocking_pipe()?;
    let ours = if read_here { &reader } else { &writer };
    set_nonblocking(ours, true).map_err(|error| failed("make a pipe", "", error))?;
    Ok((reader, writer))
}

fn blocking_pipe() -> Result<(OwnedFd, OwnedFd), Failure> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| failed("make a pipe", "", error.into()))
}

/// Sets or clears O_NONBLOCK of an open file.
pub fn set_nonblocking(fd: &OwnedFd, on: bool) -> io::Result<()> {
    let mut flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    flags.set(OFlag::O_NONBLOCK, on);
    fcntl(fd, FcntlArg::F_SETFL(flags))?;
    Ok(())
}

fn open_end(path: &str, options: &mut OpenOptions) -> Result<OwnedFd, Failure> {
    let mut open = || -> io::Result<File> {
        let file = options.custom_flags(nix::libc::O_NONBLOCK).open(path)?;
        match file.metadata()?.file_type().is_fifo() {
            true => Ok(file),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a fifo")),
        }
    };
    open().map(OwnedFd::from).map_err(|error| failed("open fifo", path, error))
}

/// Both ends of a fifo at once, which neither waits nor ever sees its end; it does not block.
fn open_both_ends(path: &str) -> Result<OwnedFd, Failure> {
    open_end(path, OpenOptions::new().read(true).write(true))
}

/// The process' end of a fifo, and a keeper that holds both ends open. The keeper comes first: with it neither open waits.
fn open_output_fifo(path: &str) -> Result<(OwnedFd, OwnedFd), Failure> {
    let both = open_both_ends(path)?;
    let end = open_end(path, OpenOptions::new().write(true))?;
    set_nonblocking(&end, false).map_err(|error| failed("open fifo", path, error))?;
    Ok((end, both))
}

/// The reading end of an input's fifo, which does not block, and a keeper of its other end.
pub fn open_input(path: &Path) -> Result<(OwnedFd, OwnedFd), Failure> {
    let path = &path.to_string_lossy();
    let both = open_both_ends(path)?;
    Ok((open_end(path, OpenOptions::new().read(true))?, both))
}

fn open_file(path: &str) -> Result<OwnedFd, Failure> {
    // As containerd's own shims have it: whoever collects logs need not be root.
    if let Some(folder) = Path::new(path).parent() {
        std::fs::create_dir_all(folder).map_err(|error| failed("make", &folder.to_string_lossy(), error))?;
    }
    let file = OpenOptions::new().append(true).create(true).mode(0o644).open(path);
    Ok(file.map_err(|error| failed("open", path, error))?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_has_one_meaning() {
        assert_eq!(input("").unwrap(), Input::Null);
        assert_eq!(input("attach:once").unwrap(), Input::Attach { once: true });
        assert_eq!(input("/run/fifo").unwrap(), Input::Fifo("/run/fifo"));
        assert_eq!(output("stdout", "cri:/var/log/x").unwrap(), Output::Log("/var/log/x"));
        assert_eq!(output("stdout", "fifo:///run/x").unwrap(), Output::Fifo("/run/x"));
        assert_eq!(output("stdout", "file:///x%20y?z").unwrap(), Output::File("/x y".into()));
        assert!(matches!(output("stdout", "binary:///x").unwrap(), Output::Logger(_)));
    }

    #[test]
    fn an_unknown_word_is_refused_by_name() {
        for word in ["binary://logger", "file:///%", "cri:relative", "relative", "attach:twice"] {
            let failure = output("stderr", word).unwrap_err();
            assert!(failure.message.starts_with(&format!("stderr {word:?}")), "{}", failure.message);
        }
    }

    #[test]
    fn two_logs_for_one_process_are_refused() {
        let names = Names { stdout: "cri:/a".into(), stderr: "cri:/b".into(), ..Default::default() };
        assert!(names.check().is_err());
        let logger = |stdout: &str, stderr: &str| {
            Names { stdout: stdout.into(), stderr: stderr.into(), ..Default::default() }.check()
        };
        assert!(logger("binary:///a", "").is_ok() && logger("binary:///a", "binary:///a").is_ok());
        for (stdout, stderr) in [("binary:///a", "binary:///b"), ("", "binary:///a"), ("binary:///a", "/fifo")] {
            assert!(logger(stdout, stderr).unwrap_err().message.contains("a logger takes both"));
        }
    }

    #[test]
    fn a_fifo_without_a_reader_can_be_written_and_is_kept_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let names = Names { stdout: path.to_str().unwrap().into(), ..Default::default() };
        let (theirs, ours) = open(&names, IoOwner::new(0, 0)).unwrap();
        nix::unistd::write(theirs.stdout.as_ref().unwrap(), b"x").unwrap();
        assert_eq!(ours.kept.outputs.len(), 1);
        // The end of the process: a reader that comes later sees what was written, and the end.
        drop(theirs);
        let mut ours = ours;
        ours.kept.stop_writing();
        let mut reader = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&path).unwrap();
        let mut text = String::new();
        io::Read::read_to_string(&mut reader, &mut text).unwrap();
        assert_eq!(text, "x");
    }
}
