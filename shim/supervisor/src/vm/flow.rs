//! What the supervisor's loop has to do for the containers in its virtual machine: their output, their ends, their volumes.
//!
//! An exit is told when all output has passed: the guest's word comes by one connection and the output by another. A guest
//! that holds back either, or a reader that does not take it, delays the news by [`DRAIN`] and no longer.

use super::pump::{self, Standing};
use super::volume;
use crate::exits::Exit;
use crate::failure::{Fail, Failure};
use crate::oci::{Oci, not_needed};
use crate::reactor::Ready;
use crate::supervisor::{Job, Supervisor};
use coracle_proto::ttrpc::Code;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long an exit waits for output that the guest, or its reader here, holds back.
const DRAIN: Duration = Duration::from_secs(10);

impl Supervisor {
    /// Tells a container that is to be made in the machine what of it its configuration may name.
    pub(crate) fn introduce(&self, oci: &mut Oci) {
        let Oci::Vm(guest) = oci else { return };
        let inits = self.containers.iter().filter(|container| matches!(container.oci, Oci::Vm(_)));
        let of_pod = self.container_of_pod();
        guest.pids = inits.map(|container| container.init.guest_pid).filter(|pid| *pid > 0).collect();
        guest.init = of_pod.or_else(|| self.sandbox.vm.as_ref().and_then(|vm| vm.pid_ns_pid()));
        guest.supervisor = if self.sandbox.of_containerd() { std::process::id() as i32 } else { 0 };
    }

    /// The first process of the container that stands for the pod in containerd's CRI.
    fn container_of_pod(&self) -> Option<i32> {
        let of_pod = self.containers.iter().find(|container| container.id == self.sandbox.id);
        of_pod.map(|container| container.init.guest_pid).filter(|pid| *pid > 0 && self.sandbox.of_containerd())
    }

    /// A descriptor of a pump is ready.
    pub(crate) fn pump_ready(&mut self, key: u32, event: Ready) {
        self.pumps.ready(&self.reactor, key, event);
        match self.pumps.standing(key) {
            Standing::Open => {}
            Standing::Done => self.pump_done(key),
            Standing::Broken => self.pump_broken(key),
        }
    }

    fn pumped(&self, key: u32) -> Option<(String, String)> {
        self.containers.iter().find_map(|container| {
            let mut processes = std::iter::once(&container.init).chain(&container.execs);
            let process = processes.find(|process| process.pump == Some(key))?;
            Some((container.id.clone(), process.exec_id.clone()))
        })
    }

    /// All of a process' output has passed: if it has ended, that is told now.
    fn pump_done(&mut self, key: u32) {
        let Some((id, exec)) = self.pumped(key) else { return };
        let held = self.process(&id, &exec).ok().and_then(|process| process.held.take());
        if let Some((exit, _)) = held {
            self.end_in_guest(&id, &exec, exit);
        }
    }

    /// The link was started again, or the machine is gone: a worker sees.
    fn pump_broken(&mut self, key: u32) {
        let Some((id, exec)) = self.pumped(key) else { return };
        if let Err(failure) = self.attach_again(key, &id, &exec) {
            eprintln!("attach to {id} {exec} again: {}", failure.message);
            self.torn(key);
            self.pumps.end(&self.reactor, key);
            self.pump_done(key);
        }
    }

    fn attach_again(&mut self, key: u32, id: &str, exec: &str) -> Result<(), Failure> {
        let Oci::Vm(guest) = &self.container(id)?.oci else { return Err(not_needed(id)) };
        let failed = |error: io::Error| Code::Unavailable.failure(error.to_string());
        let stream = pump::connect_now(guest.folder()).map_err(failed)?;
        let (theirs, folder) = (stream.try_clone().map_err(failed)?, guest.folder().to_owned());
        let (keep, id, exec) = ([theirs.as_raw_fd()], id.to_owned(), exec.to_owned());
        let body = Box::new(move || {
            super::client(&folder)?;
            pump::greet(&theirs, &id, &exec, true).map(|passed| passed.map(u64::to_be_bytes).concat())
        });
        self.work(Job::Attach { pump: key, stream }, &keep, body)
    }

    /// The worker that attached again has reported.
    pub(crate) fn attached_again(&mut self, key: u32, stream: UnixStream, done: Result<Vec<u8>, Failure>) {
        let passed = done.map(|bytes| {
            let mut counts = bytes.as_chunks().0.iter().map(|count| u64::from_be_bytes(*count));
            [(); 3].map(|()| counts.next().unwrap_or(0))
        });
        match passed {
            Ok(passed) => match self.pumps.again(&self.reactor, key, stream, passed) {
                0 => {}
                lost => {
                    eprintln!("{:?}: {lost} bytes of its streams were lost with the link", self.pumped(key));
                    if self.torn(key) {
                        self.pumps.leave(&self.reactor, key);
                    }
                }
            },
            Err(failure) => {
                eprintln!("attach again: {}", failure.message);
                self.torn(key);
                self.pumps.end(&self.reactor, key);
            }
        }
        if self.pumps.standing(key) == Standing::Done {
            self.pump_done(key);
        }
    }

    /// Streams have a hole, or an end that is none. False where that is nobody's harm but a reader's: a container goes on,
    /// and so does what is typed and shown.
    fn torn(&mut self, key: u32) -> bool {
        let Some((id, exec)) = self.pumped(key) else { return false };
        let Ok(process) = self.process(&id, &exec) else { return false };
        process.torn = !exec.is_empty() && !process.names.terminal;
        process.torn
    }

    /// The end of a process in the machine is told.
    fn end_in_guest(&mut self, id: &str, exec: &str, exit: Exit) {
        let torn = self.process(id, exec).is_ok_and(|process| process.torn);
        self.end_process(id, exec, if torn && exit.status == 0 { Exit::unseen() } else { exit });
    }

    /// A process of the machine has ended: told now, or when its output has passed.
    pub(crate) fn hold_exit(&mut self, id: &str, exec: &str, exit: Exit) {
        let Ok(process) = self.process(id, exec) else { return };
        match process.pump.map(|key| self.pumps.standing(key)) {
            None | Some(Standing::Done) => self.end_in_guest(id, exec, exit),
            Some(_) => {
                if let Ok(process) = self.process(id, exec) {
                    process.held = Some((exit, Instant::now() + DRAIN));
                }
            }
        }
    }

    /// When something is to be done for the machine's containers.
    pub(crate) fn guest_due(&self) -> Option<Instant> {
        let held =
            self.containers.iter().flat_map(|container| std::iter::once(&container.init).chain(&container.execs));
        held.filter_map(|process| process.held.map(|(_, until)| until)).chain(self.volumes.deadline()).min()
    }

    /// Does what is due.
    pub(crate) fn tick_guest(&mut self) {
        let now = Instant::now();
        if self.guest_due().is_none_or(|due| due > now) {
            return;
        }
        let mut late: Vec<(String, String)> = Vec::new();
        for container in &self.containers {
            let processes = std::iter::once(&container.init).chain(&container.execs);
            let held = processes.filter(|process| process.held.is_some_and(|(_, until)| until <= now));
            late.extend(held.map(|process| (container.id.clone(), process.exec_id.clone())));
        }
        for (id, exec) in late {
            let held = self.process(&id, &exec).ok().and_then(|process| process.held.take());
            if let Some((exit, _)) = held {
                eprintln!("the output of {id} {exec} does not pass: its end is told before");
                self.end_in_guest(&id, &exec, exit);
            }
        }
        self.send_volumes(now);
    }

    /// Sends again what has changed.
    fn send_volumes(&mut self, now: Instant) {
        let due = self.volumes.take_due(now);
        let living = self.sandbox.vm.as_ref().filter(|vm| vm.lives());
        // To a machine that is no more nothing is sent.
        let Some(folder) = living.map(|vm| vm.folder().to_owned()).filter(|_| !due.is_empty()) else { return };
        let body = Box::new(move || {
            let mut client = super::client(&folder)?;
            for source in due {
                volume::send(&mut client, &source)?;
            }
            Ok(Vec::new())
        });
        match self.work(Job::SendVolumes, &[], body) {
            Ok(()) => self.volumes.sending = true,
            Err(failure) => {
                eprintln!("send what has changed: {}", failure.message);
                self.volumes.failed();
            }
        }
    }

    /// The worker that sent volumes has reported.
    pub(crate) fn volumes_sent(&mut self, result: Result<Vec<u8>, Failure>) {
        self.volumes.sending = false;
        if let Err(failure) = result {
            eprintln!("send what has changed to the virtual machine: {}", failure.message);
            self.volumes.failed();
        }
    }

    /// Has the volumes of a container that was made kept up to date.
    pub(crate) fn watch_volumes(&mut self, volumes: Vec<volume::Sent>) {
        for sent in volumes {
            let source = sent.source.clone();
            if let Err(error) = self.volumes.add(&self.reactor, sent) {
                eprintln!("{} will not be kept up to date: {error}", source.display());
            }
        }
    }
}
