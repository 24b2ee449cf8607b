//! Workers: forks that do what takes time, memory or luck (create, exec, hooks, statistics), and report over a pipe.
//!
//! The supervisor forks, so a worker starts with everything that is known, and what it allocates goes with it. A hook
//! or a file system that hangs then blocks one request and not the pod. A report is one [`Response`] message,
//! the last of them complete when the pipe ends; a worker that dies without one has failed.
//!
//! A worker closes every descriptor that it was not given: it must not hold another container's pipe or a client's
//! socket open. One that has more to tell later (an exec that has started, and will end) sends a first report with
//! [`report`] and goes on; it is a worker for something else from then on. A worker returns to the namespaces the supervisor was started in, since hooks run in those. It dies with the
//! supervisor.

use crate::failure::{Fail, Failure};
use crate::reactor::{Interest, Reactor, Token};
use crate::sys::{self, Fork};
use coracle_proto::Message;
use coracle_proto::ttrpc::{Code, Response};
use nix::fcntl::OFlag;
use nix::libc::SIGKILL;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

/// The longest report: an answer and its frame.
const MAX_REPORT: u64 = 5 << 20;
/// Before a first report, and no start of a message: how long it is, four bytes, follows.
const FIRST: u8 = 0;

/// The code of a worker that died without a report: what it had begun, nobody has undone.
pub const DIED: Code = Code::Aborted;

/// Namespaces to return to, with their kind.
pub type Namespaces = [(OwnedFd, CloneFlags)];

/// A running worker.
#[derive(Debug)]
pub struct Worker<J> {
    /// Its pid.
    pub pid: i32,
    /// What for.
    pub job: J,
    pipe: File,
    report: Vec<u8>,
    interest: Interest,
}

/// What a worker does: makes the encoded answer, or says why not.
pub type Body<'a> = Box<dyn FnOnce() -> Result<Vec<u8>, Failure> + 'a>;

impl<J> Worker<J> {
    /// Forks. The worker keeps the descriptors in `keep` and those of `host`.
    pub fn spawn(job: J, host: &Namespaces, keep: &[RawFd], body: Body<'_>) -> Result<Self, Failure> {
        let failed = |error: io::Error| Code::ResourceExhausted.failure(format!("fork a worker: {error}"));
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| failed(error.into()))?;
        match sys::fork().map_err(failed)? {
            Fork::Child => run(writer.into(), host, keep, body),
            Fork::Parent(pid) => {
                drop(writer);
                crate::stdio::set_nonblocking(&reader, true).map_err(failed)?;
                Ok(Worker { pid, job, pipe: reader.into(), report: Vec::new(), interest: Interest::NONE })
            }
        }
    }

    /// Puts its pipe into the loop, or takes it out.
    pub fn watch(&mut self, reactor: &Reactor, key: u32, wanted: Interest) -> io::Result<()> {
        reactor.watch(&self.pipe, Token::Worker(key), &mut self.interest, wanted)
    }

    /// Reads what there is. True when the last report is complete.
    pub fn read(&mut self) -> bool {
        let room = MAX_REPORT.saturating_sub(self.report.len() as u64);
        match (&self.pipe).take(room).read_to_end(&mut self.report) {
            Ok(_) => true,
            Err(error) => !crate::buffer::would_block(&error),
        }
    }

    /// Takes a first report, if one has come whole.
    pub fn first_report(&mut self) -> Option<Result<Vec<u8>, Failure>> {
        let (head, rest) = self.report.split_first_chunk::<5>()?;
        let size = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let message = rest.get(..size).filter(|_| head[0] == FIRST)?;
        let result = decode(message);
        self.report.drain(..5 + size);
        Some(result)
    }

    /// Kills it, with the hooks it runs.
    pub fn kill(&self) {
        if sys::kill(-self.pid, SIGKILL).is_err() {
            // Its group is not made yet, or it is dead already.
            let _ = sys::kill(self.pid, SIGKILL);
        }
    }

    /// What it reported.
    pub fn finish(self) -> (J, Result<Vec<u8>, Failure>) {
        let result = decode(&self.report);
        (self.job, result)
    }
}

fn decode(report: &[u8]) -> Result<Vec<u8>, Failure> {
    match Response::decode(report) {
        // An empty report decodes too; every report has one byte at least.
        _ if report.is_empty() => {
            Err(DIED.failure("the worker died without a report (killed, or out of memory)".into()))
        }
        Ok(Response { status: Some(status), .. }) if status.code != 0 => Err(status.into()),
        Ok(response) => Ok(response.payload),
        Err(error) => Err(Code::Internal.failure(format!("the worker's report does not decode: {error}"))),
    }
}

/// Of a worker: where it reports.
static PIPE: OnceLock<File> = OnceLock::new();

/// Reports what has been done so far; the worker goes on.
pub fn report(payload: Vec<u8>) -> Result<(), Failure> {
    let failed = |error: io::Error| Code::Internal.failure(format!("report to the supervisor: {error}"));
    let mut pipe = PIPE.get().ok_or_else(|| failed(io::ErrorKind::NotConnected.into()))?;
    let message = Response { status: Some(Code::Ok.status("ok")), payload }.encode_to_vec();
    let mut bytes = vec![FIRST];
    bytes.extend((message.len() as u32).to_be_bytes());
    bytes.extend(message);
    pipe.write_all(&bytes).map_err(failed)
}

fn run(pipe: File, host: &Namespaces, keep: &[RawFd], body: Body<'_>) -> ! {
    let mut kept = keep.to_vec();
    kept.extend(host.iter().map(|(fd, _)| fd.as_raw_fd()));
    kept.push(pipe.as_raw_fd());
    sys::close_all_but(&mut kept);
    sys::reset_signals();
    let mut pipe = PIPE.get_or_init(|| pipe);
    let result = prepare(host).and_then(|()| body());
    let report = match result {
        Ok(payload) => Response { status: Some(Code::Ok.status("ok")), payload },
        Err(failure) => Response { status: Some(failure.into()), payload: Vec::new() },
    };
    let written = pipe.write_all(&report.encode_to_vec());
    sys::exit_now(i32::from(written.is_err()))
}

fn prepare(host: &Namespaces) -> Result<(), Failure> {
    let failed = |what: &str, error: nix::Error| Code::Internal.failure(format!("{what}: {error}"));
    // A group of its own: hooks are killed together with it.
    nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0)).map_err(|error| failed("make a worker's group", error))?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(|error| failed("tie a worker to the supervisor", error))?;
    return_to(host).map_err(|error| failed("return to the host's namespaces", error))
}

/// Goes back to the namespaces that the supervisor came from. In an ordinary user's own user namespace nobody may: they
/// are the machine's. A container is told all its namespaces by path, so there only hooks see where they are.
pub fn return_to(host: &Namespaces) -> nix::Result<()> {
    for (namespace, kind) in host {
        match setns(namespace, *kind) {
            Err(nix::Error::EPERM) => {}
            joined => joined?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn outcome(body: Body<'_>) -> Result<Vec<u8>, Failure> {
        let mut worker = Worker::spawn((), &[], &[], body).unwrap();
        while !worker.read() {
            std::thread::sleep(Duration::from_millis(2));
        }
        worker.finish().1
    }

    #[test]
    fn a_report_reaches_the_supervisor_whole() {
        assert_eq!(outcome(Box::new(|| Ok(vec![7; 300_000]))).unwrap().len(), 300_000);
        assert_eq!(outcome(Box::new(|| Ok(Vec::new()))), Ok(Vec::new()));
    }

    #[test]
    fn a_worker_that_goes_on_reports_twice() {
        let body = Box::new(|| report(vec![1; 70_000]).map(|()| vec![2]));
        let mut worker = Worker::spawn((), &[], &[], body).unwrap();
        let mut first = None;
        while !worker.read() {
            first = first.or_else(|| worker.first_report());
            std::thread::sleep(Duration::from_millis(2));
        }
        first = first.or_else(|| worker.first_report());
        assert_eq!(first.unwrap().unwrap(), vec![1; 70_000]);
        assert!(worker.first_report().is_none());
        assert_eq!(worker.finish().1, Ok(vec![2]));
    }

    #[test]
    fn a_failure_keeps_its_code_and_its_words() {
        let failure = outcome(Box::new(|| Err(Code::NotFound.failure("no such thing".into())))).unwrap_err();
        assert_eq!((failure.code, failure.message.as_str()), (Code::NotFound, "no such thing"));
    }

    #[test]
    fn a_worker_that_dies_is_a_failure() {
        let failure = outcome(Box::new(|| sys::exit_now(0))).unwrap_err();
        assert!(failure.message.contains("died without a report"), "{}", failure.message);
    }
}
