//! What containerd hears of tasks, and when.
//!
//! Memory that runs out is told while the container lives: one event each time the kernel looks for somebody to kill. At
//! the end of its init what the kernel has counted is told once more, if nothing was told before: a container can end with
//! its kill, before the news of it is read. The watch is a descriptor in the loop, which only containerd's containers have.

use crate::exits::{self, Exit};
use crate::reactor::{Interest, Reactor, Token};
use crate::supervisor::{Job, Supervisor};
use crate::tasks::exit_fields;
use coracle_proto::{Message, events, task};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Bytes of notifications read at once; what they say does not matter.
const NOTIFICATIONS: usize = 4096;

/// What containerd hears of a container that was made.
pub fn announcement(request: &task::CreateTaskRequest) -> events::TaskCreate {
    events::TaskCreate {
        container_id: request.id.clone(),
        bundle: request.bundle.clone(),
        rootfs: request.rootfs.clone(),
        io: Some(events::TaskIo {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        }),
        checkpoint: request.checkpoint.clone(),
        pid: 0,
    }
}

/// The watch over a container's memory.
#[derive(Default)]
pub struct OomWatch {
    file: Option<(File, Interest)>,
    /// Kills that were told of.
    told: u64,
}

impl OomWatch {
    /// Out of the loop, before the descriptor closes.
    pub fn forget(&mut self, reactor: &Reactor, key: u32) {
        if let Some((file, mut interest)) = self.file.take() {
            // Only a descriptor that is not in the set could fail here.
            let _ = reactor.watch(&file, Token::Memory(key), &mut interest, Interest::NONE);
        }
    }
}

impl Supervisor {
    /// Tells containerd, if it is containerd that began us.
    pub(crate) fn publish<M: Message + coracle_proto::Name>(&mut self, topic: &str, event: &M) {
        if let Some(publisher) = &mut self.publisher {
            publisher.publish(&self.reactor, topic, event);
        }
    }

    /// A short program ends before the worker that started it has said so: the exit is told after the start.
    pub(crate) fn announce_exit(&mut self, id: &str, exec: &str, exit: &Exit) {
        let starting = self.workers.iter().any(
            |(_, worker)| matches!(&worker.job, Job::Start { container, .. } if exec.is_empty() && container == id),
        );
        let Ok(process) = self.process(id, exec) else { return };
        if starting {
            process.unannounced = Some(*exit);
            return;
        }
        // What never ran has no end either.
        if process.pid == 0 {
            return;
        }
        let pid = process.pid as u32;
        let (exit_status, exited_at) = exit_fields(&Some(*exit));
        let (container_id, name) = (id.to_owned(), if exec.is_empty() { id } else { exec }.to_owned());
        if exec.is_empty() {
            self.announce_last_oom(id);
        }
        self.publish("/tasks/exit", &events::TaskExit { container_id, id: name, pid, exit_status, exited_at });
    }

    pub(crate) fn announce_held_exit(&mut self, id: &str) {
        if let Some(exit) = self.process(id, "").ok().and_then(|process| process.unannounced.take()) {
            self.announce_exit(id, "", &exit);
        }
    }

    /// Watches the memory of a container that was made.
    pub(crate) fn watch_oom(&mut self, id: &str) {
        let wanted = self.publisher.is_some();
        let Some(container) = self.containers.iter_mut().find(|container| container.id == id) else { return };
        if !wanted || container.oom_file.is_empty() || container.oci.is_remote() {
            return;
        }
        let watched = coracle_runtime::cgroup::watch_oom(Path::new(&container.oom_file));
        let watched = watched.map_err(|error| error.to_string()).and_then(|fd| {
            let (file, mut interest, token) = (File::from(fd), Interest::NONE, Token::Memory(container.init.io));
            let added = self.reactor.watch(&file, token, &mut interest, Interest::READ);
            added.map(|()| (file, interest)).map_err(|error| error.to_string())
        });
        match watched {
            Ok(file) => container.oom.file = Some(file),
            // The end of the container tells of its kills all the same.
            Err(error) => eprintln!("watch the memory of {id}: {error}"),
        }
    }

    /// Something has happened to a container's memory; or its cgroup goes, which is no news.
    pub(crate) fn memory_ready(&mut self, key: u32) {
        let Some(container) = self.containers.iter_mut().find(|container| container.init.io == key) else { return };
        let Some((file, _)) = &mut container.oom.file else { return };
        let _ = file.read(&mut [0; NOTIFICATIONS]);
        if !Path::new(&container.oom_file).exists() {
            return container.oom.forget(&self.reactor, key);
        }
        // v1 tells of memory that is out before it counts the kill, v2 of each change of any count.
        let counted = exits::oom_kills(&container.oom_file);
        let known = container.oom.told;
        let is_news = counted > known || !container.oom_file.ends_with(exits::V2_EVENTS);
        if is_news {
            container.oom.told = counted.max(known + 1);
            let container_id = container.id.clone();
            self.publish("/tasks/oom", &events::TaskOom { container_id });
        }
    }

    /// The container's init has ended.
    fn announce_last_oom(&mut self, id: &str) {
        let Some(container) = self.containers.iter_mut().find(|container| container.id == id) else { return };
        container.oom.forget(&self.reactor, container.init.io);
        if container.oom.told == 0 && exits::oom_kills(&container.oom_file) > 0 {
            let container_id = id.to_owned();
            self.publish("/tasks/oom", &events::TaskOom { container_id });
        }
    }
}
