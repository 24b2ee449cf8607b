//! The streams of a shim's processes: fifos, whose other ends it opens by their names.
//!
//! The supervisor's ends are then those of any process, logs and attach clients included. Until the shim has opened its
//! own a keeper stands for it: a fifo that nobody writes to reads as its end. Of the input a reader is kept as long as the
//! process lives, since a shim may open its end some time after it has answered Start (runc's does): what was written until
//! then would be refused, or be dropped with the last descriptor.

use crate::failure::{Fail, Failure};
use crate::stdio::{self, Input, Names, OurEnds, Output, ProcessEnds};
use coracle_proto::ttrpc::Code;
use nix::sys::stat::Mode;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Makes the fifos of a process in a folder; `name` tells it from the container's others.
pub fn open(names: &Names, folder: &Path, name: &str) -> Result<(ProcessEnds, OurEnds), Failure> {
    let (mut theirs, mut ours) = (ProcessEnds::default(), OurEnds::default());
    let opened = open_all(names, folder, name, &mut theirs.fifos, &mut ours);
    opened.inspect_err(|_| forget(&theirs.fifos))?;
    theirs.fifos.terminal = names.terminal;
    Ok((theirs, ours))
}

fn open_all(names: &Names, folder: &Path, name: &str, fifos: &mut Names, ours: &mut OurEnds) -> Result<(), Failure> {
    let path = |which: &str| folder.join(format!("io-{name}{which}")).to_string_lossy().into_owned();
    match stdio::input(&names.stdin)? {
        Input::Null => {}
        Input::Attach { .. } => {
            fifos.stdin = path("stdin");
            let (keeper, end) = make(&fifos.stdin, true)?;
            (ours.kept.reader, ours.stdin) = (Some(keeper), Some(end));
        }
        Input::Fifo(path) => fifos.stdin = path.to_owned(),
    }
    for (which, word) in [("stdout", &names.stdout), ("stderr", &names.stderr)] {
        let (fifo, end) = match stdio::output(which, word)? {
            Output::Null => continue,
            Output::Attach | Output::Log(_) => {
                let fifo = path(which);
                let (keeper, end) = make(&fifo, false)?;
                ours.kept.outputs.push(keeper);
                (fifo, Some(end))
            }
            // A file's address is the shim's to open, a logger the shim's to start, and so is a fifo of somebody else's.
            Output::Fifo(_) | Output::File(_) | Output::Logger(_) => (word.clone(), None),
        };
        match which {
            "stdout" => (fifos.stdout, ours.stdout) = (fifo, end),
            _ => (fifos.stderr, ours.stderr) = (fifo, end),
        }
    }
    Ok(())
}

/// A new fifo: a keeper, and our end. The keeper of what we read holds both ends, that of what we write never the
/// writing one: the end of the input is then ours to make.
fn make(path: &str, write: bool) -> Result<(OwnedFd, OwnedFd), Failure> {
    let failed = |error: io::Error| Code::Unknown.failure(format!("make fifo {path}: {error}"));
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    nix::unistd::mkfifo(path, mode).map_err(|error| failed(error.into()))?;
    let open = |options: &mut OpenOptions| options.custom_flags(nix::libc::O_NONBLOCK).open(path).map(OwnedFd::from);
    let keeper = open(OpenOptions::new().read(true).write(!write)).map_err(failed)?;
    let end = open(OpenOptions::new().read(!write).write(write)).map_err(failed)?;
    Ok((keeper, end))
}

/// Takes the names away of those that were made here; whoever has opened them keeps them.
pub fn forget(fifos: &Names) {
    for path in [&fifos.stdin, &fifos.stdout, &fifos.stderr] {
        let ours = Path::new(path).file_name().is_some_and(|name| name.to_string_lossy().starts_with("io-"));
        if ours {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn input_that_is_written_and_ended_before_the_shim_opens_it_is_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let names = Names { stdin: "attach:".into(), ..Default::default() };
        let (theirs, mut ours) = open(&names, dir.path(), "x-").unwrap();
        let mut writer = fs::File::from(ours.stdin.take().unwrap());
        writer.write_all(b"early").unwrap();
        drop(writer);
        ours.kept.outputs.clear();
        let mut text = String::new();
        // As shims open it: without waiting for a writer.
        let shim = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&theirs.fifos.stdin);
        shim.unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "early");
    }

    #[test]
    fn what_the_shim_writes_is_read_and_ends_when_it_closes() {
        let dir = tempfile::tempdir().unwrap();
        let names = Names { stdin: "attach:".into(), stdout: "cri:/l".into(), ..Default::default() };
        let (theirs, mut ours) = open(&names, dir.path(), "x-").unwrap();
        assert!(theirs.fifos.stderr.is_empty() && theirs.fifos.stdout.ends_with("/io-x-stdout"));
        let mut reader = fs::File::from(ours.stdout.take().unwrap());
        let mut byte = [0; 1];
        assert_eq!(reader.read(&mut byte).unwrap_err().kind(), io::ErrorKind::WouldBlock, "nobody has opened it yet");
        let mut shim = OpenOptions::new().write(true).open(&theirs.fifos.stdout).unwrap();
        ours.kept.outputs.clear();
        forget(&theirs.fifos);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        shim.write_all(b"y").unwrap();
        assert_eq!(reader.read(&mut byte).unwrap(), 1);
        drop(shim);
        assert_eq!(reader.read(&mut byte).unwrap(), 0);
    }
}
