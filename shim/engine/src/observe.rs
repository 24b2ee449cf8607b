//! What containers are now: their records, read together with what their supervisors wrote and with whether these live.
//!
//! Nobody is asked, so a supervisor that hangs delays no status and no list.

use std::path::PathBuf;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::lock::Holder;
use crate::record::{self, ContainerRecord, SandboxRecord, now};
use crate::status::{ContainerEvent, ContainerState};
use crate::types::{ContainerConfig, ContainerFilter, ContainerStatus, Exit};

/// The exit code of a container of which nobody knows how it ended, as containerd has it.
const UNKNOWN_EXIT: i32 = 255;
/// The reason of such an end.
const LOST: &str = "Unknown";

impl Engine {
    /// One container.
    pub fn container_status(&self, container: &str) -> Result<ContainerStatus> {
        let (sandbox, id) = self.find_container(container)?;
        self.observe(self.container_record(&sandbox, &id)?, None)
    }

    /// All containers that the filter lets through, the oldest first.
    pub fn list_containers(&self, filter: &ContainerFilter) -> Result<Vec<ContainerStatus>> {
        let mut list = Vec::new();
        for sandbox in self.sandbox_ids()?.into_iter().filter(|s| s.starts_with(&filter.sandbox_id)) {
            let holder = self.supervisor_of(&sandbox)?;
            let pod = match self.sandbox_record(&sandbox) {
                Ok(pod) if filter.local.is_none_or(|local| local == pod.config.exclusive_name) => pod,
                Ok(_) => continue,
                // Removed since, never finished, or damaged, of which doctor tells.
                Err(e) if e.is_not_found() || matches!(e, Error::Record { .. }) => continue,
                Err(e) => return Err(e),
            };
            for id in self.container_ids(&sandbox)?.into_iter().filter(|id| id.starts_with(&filter.id)) {
                match self.container_record(&sandbox, &id) {
                    Ok(record) => list.push(self.observe_in(Some(&pod), record, Some(holder))?),
                    Err(e) if e.is_not_found() || matches!(e, Error::Record { .. }) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        list.retain(|c| {
            filter.state.is_none_or(|state| state == c.state)
                && filter.labels.iter().all(|(k, v)| c.config.labels.get(k) == Some(v))
        });
        list.sort_by_key(|c| c.created_at);
        Ok(list)
    }

    /// Settles the records of a sandbox whose supervisor has ended: each container that ran has now an exit.
    pub(crate) fn settle_containers(&self, sandbox: &str) -> Result<()> {
        for id in self.container_ids(sandbox)? {
            let record = match self.container_record(sandbox, &id) {
                Ok(record) => record,
                Err(e) if e.is_not_found() => continue,
                Err(e) => return Err(e),
            };
            let seen = self.observe(record.clone(), Some(Holder::Nobody))?;
            if seen.state != record.state && seen.state != ContainerState::Unknown {
                self.write_container(&ContainerRecord { state: seen.state, exit: seen.exit, pid: None, ..record })?;
            }
        }
        Ok(())
    }

    /// What a record means now, by what the supervisor wrote and by whether it lives.
    pub(crate) fn observe(&self, record: ContainerRecord, holder: Option<Holder>) -> Result<ContainerStatus> {
        let pod: Option<SandboxRecord> = record::read(&self.paths.pod(&record.sandbox_id))?;
        self.observe_in(pod.as_ref(), record, holder)
    }

    fn observe_in(
        &self,
        pod: Option<&SandboxRecord>,
        record: ContainerRecord,
        holder: Option<Holder>,
    ) -> Result<ContainerStatus> {
        let may_run = matches!(record.state, ContainerState::Created | ContainerState::Running);
        let (mut state, mut exit) = (record.state, record.exit.clone());
        if may_run {
            // The supervisor's death first, its last word after: it may write until it dies.
            let dead = match holder {
                Some(holder) => !holder.lives(),
                None => !self.supervisor_of(&record.sandbox_id)?.lives(),
            };
            let file = self.exit_file(&record.sandbox_id, &record.id)?;
            (state, exit) = judge(state, file.map(|f| f.exit()), dead);
            if let (Some(exit), None) = (exit.as_ref().filter(|exit| exit.reason == LOST), &record.exit) {
                // Written down, so that whoever asks later is told the same time. What fails here is done by the next one.
                let settled = ContainerRecord { state, exit: Some(exit.clone()), pid: None, ..record.clone() };
                let _ = self.write_container(&settled);
            }
        }
        Ok(ContainerStatus {
            log_path: pod.and_then(|pod| log_path(pod, &record.config)),
            id: record.id,
            sandbox_id: record.sandbox_id,
            config: record.config,
            image_id: record.image_id,
            image_digest: record.image_digest,
            stop_signal: record.stop_signal,
            user: record.user,
            state,
            created_at: record.created_at,
            started_at: record.started_at,
            // In a virtual machine it is the guest's, and here it would be somebody else's.
            pid: record.pid.filter(|_| state == ContainerState::Running && pod.is_none_or(|pod| pod.vm.is_none())),
            exit,
        })
    }
}

/// The state of a container that may run, from the proofs.
fn judge(state: ContainerState, exit: Option<Exit>, dead: bool) -> (ContainerState, Option<Exit>) {
    let event = match (&exit, dead) {
        (Some(_), _) => ContainerEvent::Exited,
        (None, true) => ContainerEvent::Lost,
        (None, false) => return (state, None),
    };
    let lost = || Exit {
        code: UNKNOWN_EXIT,
        // When it was noticed; when it was nobody knows.
        finished_at: now(),
        oom_killed: false,
        reason: LOST.into(),
        message: "its supervisor died and left no exit code".into(),
    };
    (state.next(event).unwrap_or(state), exit.or_else(|| Some(lost())))
}

/// A container's log file; a relative path is below its pod's folder.
pub(crate) fn log_path(pod: &SandboxRecord, config: &ContainerConfig) -> Option<PathBuf> {
    let path = config.log_path.as_ref()?;
    match &pod.config.log_directory {
        Some(dir) => Some(dir.join(path)),
        None => path.is_absolute().then(|| path.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_record_counts_more_than_a_dead_supervisor() {
        let exit = Exit { code: 3, finished_at: 1, oom_killed: false, reason: "Error".into(), message: String::new() };
        let running = ContainerState::Running;
        assert_eq!(judge(running, Some(exit.clone()), true), (ContainerState::Exited, Some(exit)));
        let (state, exit) = judge(running, None, true);
        assert_eq!((state, exit.unwrap().code), (ContainerState::Exited, UNKNOWN_EXIT));
        assert_eq!(judge(running, None, false), (running, None));
    }
}
