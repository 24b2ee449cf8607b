//! Creation goes forward or is undone: the steps that a sandbox's creation has begun, taken back in reverse.
//!
//! The same steps, all of them, are what stopping and removing consist of, and what `gc` does to an interrupted
//! creation. Each is idempotent and works whether its act was done, half done or never done, because after a crash
//! nobody knows which.

use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use crate::engine::{Engine, blocking};
use crate::error::{Error, Result};
use crate::{cgroup, handler, names};

/// A part of a sandbox that was made, or may have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The folders, the record and the name.
    Folder,
    /// The tmpfs of /dev/shm, and those of volumes in memory.
    Shm,
    /// The supervisor, its namespaces, its cgroup.
    Supervisor,
    /// The pod's link, address and ports.
    Network,
}

/// What was begun of one sandbox.
pub(crate) struct Undo<'a> {
    engine: &'a Engine,
    sandbox: String,
    begun: Vec<Step>,
}

impl<'a> Undo<'a> {
    pub(crate) fn new(engine: &'a Engine, sandbox: &str) -> Self {
        Undo { engine, sandbox: sandbox.to_owned(), begun: Vec::new() }
    }

    /// Notes that a step is about to be taken.
    pub(crate) fn begin(&mut self, step: Step) {
        self.begun.push(step);
    }

    /// Takes everything back and hands on why. What cannot be taken back now stays recorded, and gc finds it.
    pub(crate) async fn fail(self, why: Error) -> Error {
        for step in self.begun.into_iter().rev() {
            if self.engine.undo(&self.sandbox, step).await.is_err() {
                break;
            }
        }
        why
    }
}

impl Engine {
    /// Takes back one step of a sandbox.
    pub(crate) async fn undo(&self, sandbox: &str, step: Step) -> Result<()> {
        match step {
            Step::Supervisor => {
                self.end_supervisor(sandbox).await?;
                // A supervisor that ended by itself has removed its cgroup; what a killed one left is ended here.
                let group = self.cgroup_of(sandbox)?;
                let deadline = self.config.deadlines.kill;
                let pod = self.paths.pod(sandbox);
                blocking(move || {
                    group.map_or(Ok(()), |group| cgroup::clear(&group, deadline))?;
                    handler::forget_shim(&pod)
                })
                .await
            }
            Step::Network => {
                let (network, sandbox) = (self.network.clone(), sandbox.to_owned());
                blocking(move || network.detach(&sandbox).map_err(Error::from)).await
            }
            Step::Shm => {
                self.forget_memory_volumes(sandbox)?;
                unmount(&self.paths.pod(sandbox).join("shm"))
            }
            Step::Folder => self.remove_folders(sandbox),
        }
    }

    /// The pod's cgroup as its record names it.
    fn cgroup_of(&self, sandbox: &str) -> Result<Option<String>> {
        match self.sandbox_record(sandbox) {
            Ok(record) => Ok(Some(record.cgroup)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The folders go last and the name first, so that a name never leads nowhere.
    fn remove_folders(&self, sandbox: &str) -> Result<()> {
        if let Ok(record) = self.sandbox_record(sandbox) {
            let _section = self.section()?;
            names::release(&self.names(), &names::key(&record.config), sandbox)?;
        }
        remove_tree(&self.paths.pod_data(sandbox))?;
        remove_tree(&self.paths.pod(sandbox))
    }
}

/// Unmounts what is mounted at `path`, if anything.
pub(crate) fn unmount(path: &Path) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(e) => Err(Error::os("unmount", path)(e)),
    }
}

/// Removes a folder with all that is in it; a folder that is not there is removed already.
///
/// A process that is just ending may still write a file while the folder is emptied; then it is emptied again. A mount
/// inside of it would let this delete what it must not; the caller has unmounted, and a tmpfs or volume that is still
/// busy makes the removal fail with EBUSY.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    const ATTEMPTS: u32 = 10;
    for attempt in 1.. {
        match fs::remove_dir_all(path) {
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty && attempt < ATTEMPTS => {}
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", path)(e)),
            _ => break,
        }
    }
    Ok(())
}
