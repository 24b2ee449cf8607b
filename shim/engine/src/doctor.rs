//! What a crash leaves, found for `doctor` and cleared for `gc`.
//!
//! The rule: only what is proven dead is touched. Proof is a free lock (the supervisor's, the creator's), or a thing of
//! ours that no record stands for although the record is always written first and removed last. A supervisor that
//! lives and does not answer is told of, and left alone.
//!
//! | what | proof | cleared by |
//! |---|---|---|
//! | dead pod | recorded ready, supervisor's lock free | ending what it left running, by its cgroup; releasing its network and /dev/shm; it is then a stopped pod with its logs |
//! | interrupted making or removal | recorded as begun, creator's lock free | taking it apart |
//! | cgroup below our parent | no folder of that pod | killing who is in it, removing it |
//! | writable layers and volumes | no folder of that pod in the state they name as theirs | removing them |
//! | lease on image layers | no writable layer of that container | dropping it |
//! | name | no folder of its owner | removing it |
//! | address, interface, ports | no living sandbox | the network's own clearing |

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use coracle_proto::sandbox as api;
use coracle_proto::ttrpc::method;
use serde::Serialize;

use crate::engine::{Engine, blocking};
use crate::error::{Error, Result};
use crate::net::Orphan;
use crate::record;
use crate::status::{ContainerState, SandboxState};
use crate::types::{NamespaceMode, Qos};
use crate::undo::remove_tree;
use crate::{cgroup, id, lock, names};

/// The file in a pod's part of the disk that names the state folder it belongs to.
pub(crate) const OWNER: &str = "owner";
/// How long a supervisor may take to answer before doctor says that it hangs.
const PATIENCE: Duration = Duration::from_secs(2);

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Finding {
    /// A pod whose supervisor died.
    DeadPod {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
        /// What it left running.
        pids: Vec<i32>,
    },
    /// A making or removal of a pod that nobody will finish.
    InterruptedPod {
        /// Its id.
        id: String,
        /// Its name, if that was recorded.
        name: String,
    },
    /// A making or removal of a container that nobody will finish.
    InterruptedContainer {
        /// Its sandbox.
        sandbox: String,
        /// Its id.
        id: String,
    },
    /// A supervisor that lives and does not answer.
    SilentSupervisor {
        /// Its sandbox.
        id: String,
        /// Its pid.
        pid: i32,
    },
    /// A cgroup of a pod that is no more.
    Cgroup {
        /// Its path in the cgroup trees.
        path: String,
        /// Who is in it.
        pids: Vec<i32>,
    },
    /// Writable layers and volumes of a pod that is no more.
    Data {
        /// The folder.
        path: PathBuf,
    },
    /// A hold on image layers by a container that is no more.
    Lease {
        /// The container.
        id: String,
    },
    /// A name whose owner is no more.
    Name {
        /// The name.
        name: String,
        /// The reservation.
        path: PathBuf,
    },
    /// A part of the network that no pod stands for.
    Network {
        /// What, in words.
        what: String,
        #[serde(skip)]
        #[doc(hidden)]
        orphan: Orphan,
    },
    /// Something wrong that is nobody's leftover.
    Trouble {
        /// What, in words.
        what: String,
    },
}

impl Finding {
    /// Whether [`Engine::gc`] clears it.
    pub fn clearable(&self) -> bool {
        !matches!(self, Finding::SilentSupervisor { .. } | Finding::Trouble { .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let running = |pids: &[i32]| match pids {
            [] => String::new(),
            pids => format!(", still running: pid {}", pids.iter().map(i32::to_string).collect::<Vec<_>>().join(" ")),
        };
        match self {
            Finding::DeadPod { id, name, pids } => {
                write!(f, "pod {name} ({}): its supervisor is dead{}", id::short(id), running(pids))
            }
            Finding::InterruptedPod { id, name } => {
                write!(f, "pod {name} ({}): its making or removal was interrupted", id::short(id))
            }
            Finding::InterruptedContainer { sandbox, id } => write!(
                f,
                "container {} of pod {}: its making or removal was interrupted",
                id::short(id),
                id::short(sandbox)
            ),
            Finding::SilentSupervisor { id, pid } => write!(
                f,
                "pod {}: its supervisor (pid {pid}) lives and does not answer; if it never does, end it by kill -9 {pid}",
                id::short(id)
            ),
            Finding::Cgroup { path, pids } => write!(f, "cgroup {path} belongs to no pod{}", running(pids)),
            Finding::Data { path } => write!(f, "{}: writable layers and volumes of no pod", path.display()),
            Finding::Lease { id } => {
                write!(f, "image layers are held for container {}, which is no more", id::short(id))
            }
            Finding::Name { name, .. } => write!(f, "the name {name} is held by a pod that is no more"),
            Finding::Network { what, .. } | Finding::Trouble { what } => f.write_str(what),
        }
    }
}

/// What gc did about a finding.
#[derive(Debug, Clone, Serialize)]
pub struct Action {
    /// What was found.
    pub finding: Finding,
    /// Why it could not be cleared; `None` if it was.
    pub error: Option<String>,
}

impl Engine {
    /// Names everything that is left of what is no more, and what is wrong with what is. Changes nothing.
    pub async fn doctor(&self) -> Result<Vec<Finding>> {
        let engine = self.clone();
        let mut found = blocking(move || engine.look()).await?;
        found.extend(self.silent_supervisors().await?);
        found.extend(self.broken_attachments().await?);
        Ok(found)
    }

    /// Clears what [`Engine::doctor`] finds and can be cleared. One failure does not stop the rest.
    pub async fn gc(&self) -> Result<Vec<Action>> {
        let mut actions = self.clear_where(Finding::clearable).await?;
        actions.extend(self.collect_network().await);
        Ok(actions)
    }

    /// Lets the network's plugins clear what belongs to no pod; what they say if they fail.
    pub(crate) async fn collect_network(&self) -> Option<Action> {
        let network = self.network.clone();
        let failed = blocking(move || Ok(network.collect()?)).await.err()?;
        let finding = Finding::Trouble { what: "garbage collection by the network's plugins".into() };
        Some(Action { finding, error: Some(chain(&failed)) })
    }

    /// Asks the network of each pod whether the pod still has its place there.
    async fn broken_attachments(&self) -> Result<Vec<Finding>> {
        let mut asked = tokio::task::JoinSet::new();
        for id in self.sandbox_ids()? {
            let lock::Holder::Pid(pid) = self.supervisor_of(&id)? else { continue };
            let Ok(record) = self.sandbox_record(&id) else { continue };
            if record.state != SandboxState::Ready || record.config.network == NamespaceMode::Node {
                continue;
            }
            let network = self.network.clone();
            asked.spawn_blocking(move || {
                let why = network.check(&id, format!("/proc/{pid}/ns/net").as_ref()).err()?;
                Some(Finding::Trouble { what: format!("pod {} ({}): {why}", record.config.name, id::short(&id)) })
            });
        }
        Ok(asked.join_all().await.into_iter().flatten().collect())
    }

    /// Clears those of the findings that are meant.
    pub(crate) async fn clear_where(&self, meant: impl Fn(&Finding) -> bool) -> Result<Vec<Action>> {
        let mut actions: Vec<Action> = Vec::new();
        // Clearing a pod makes some of the rest void and uncovers other: look again until nothing new is found. Each
        // clearing is idempotent and meets what it was found to be, or nothing: ids are never used again.
        loop {
            let engine = self.clone();
            let mut found = blocking(move || engine.look()).await?;
            found.retain(|f| meant(f) && !actions.iter().any(|a| a.finding == *f));
            if found.is_empty() {
                return Ok(actions);
            }
            for finding in found {
                let error = self.clear(&finding).await.err().map(|e| chain(&e));
                actions.push(Action { finding, error });
            }
        }
    }

    fn look(&self) -> Result<Vec<Finding>> {
        let mut found = Vec::new();
        for id in self.sandbox_ids()? {
            match self.look_at_pod(&id, &mut found) {
                Err(e @ Error::Record { .. }) => found.push(Finding::Trouble { what: chain(&e) }),
                looked => looked?,
            }
        }
        self.look_at_cgroups(&mut found)?;
        self.look_at_disk(&mut found)?;
        self.look_at_names(&mut found)?;
        self.look_at_network(&mut found)?;
        Ok(found)
    }

    fn look_at_pod(&self, id: &str, found: &mut Vec<Finding>) -> Result<()> {
        if self.interrupted(id)? {
            let name = self.sandbox_record(id).map(|r| r.config.name).unwrap_or_default();
            found.push(Finding::InterruptedPod { id: id.to_owned(), name });
            return Ok(());
        }
        let Ok(record) = self.sandbox_record(id) else { return Ok(()) };
        let lives = self.supervisor_of(id)?.lives();
        match record.state {
            SandboxState::Removing if !self.maker_lives(&self.paths.pod(id))? => {
                found.push(Finding::InterruptedPod { id: id.to_owned(), name: record.config.name });
                return Ok(());
            }
            SandboxState::Ready | SandboxState::Stopping if !lives => {
                // Someone may be stopping it right now: the record says so when the supervisor is already gone.
                let again = self.sandbox_record(id).map(|r| r.state);
                if !self.maker_lives(&self.paths.pod(id))? && again.is_ok_and(|s| s == record.state) {
                    let pids = cgroup::members(&record.cgroup);
                    found.push(Finding::DeadPod { id: id.to_owned(), name: record.config.name, pids });
                }
                return Ok(());
            }
            _ => {}
        }
        for container in self.container_ids(id)? {
            let folder = self.paths.container(id, &container);
            let begun = match self.container_record(id, &container) {
                Ok(r) => matches!(r.state, ContainerState::Creating | ContainerState::Removing),
                Err(e) if e.is_not_found() => true,
                Err(e) => return Err(e),
            };
            if begun && !self.maker_lives(&folder)? && self.still_begun(id, &container)? {
                found.push(Finding::InterruptedContainer { sandbox: id.to_owned(), id: container });
            }
        }
        Ok(())
    }

    /// Asked after its maker was found dead. A folder without a record yet may be in the hands of a living maker that has
    /// not got to its lock; it makes folder, lock and record in one section, so the section tells.
    fn still_begun(&self, sandbox: &str, id: &str) -> Result<bool> {
        let folder = self.paths.container(sandbox, id);
        match self.container_record(sandbox, id) {
            Ok(r) => Ok(matches!(r.state, ContainerState::Creating | ContainerState::Removing)),
            Err(_) if !folder.is_dir() => Ok(false),
            Err(_) => {
                let Ok(_section) = lock::section(&self.paths.pod(sandbox).join("section"), true) else {
                    return Ok(false); // the pod is gone meanwhile
                };
                let recorded = self.container_record(sandbox, id).is_ok();
                Ok(!recorded && folder.is_dir() && !self.maker_lives(&folder)?)
            }
        }
    }

    /// Whether somebody lives who makes, stops or removes what is in this folder.
    fn maker_lives(&self, folder: &std::path::Path) -> Result<bool> {
        Ok(lock::holder(&folder.join("creator.lock"))?.lives())
    }

    fn look_at_cgroups(&self, found: &mut Vec<Finding>) -> Result<()> {
        for branch in
            [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort].map(|qos| qos.branch(&self.config.cgroup_parent))
        {
            for name in cgroup::children(&branch) {
                let Some(id) = name.strip_prefix("pod").filter(|id| id::is_id(id)) else { continue };
                let path = format!("{branch}/{name}");
                // The folder is made before the cgroup and removed after it.
                if !self.paths.pod(id).exists() && cgroup::exists(&path) {
                    found.push(Finding::Cgroup { pids: cgroup::members(&path), path });
                }
            }
        }
        Ok(())
    }

    fn look_at_disk(&self, found: &mut Vec<Finding>) -> Result<()> {
        let data = self.paths.root.join("pods");
        for id in record::ids_in(&data)? {
            let path = data.join(&id);
            // Another state folder's pods may share this disk.
            let owner = fs::read_to_string(path.join(OWNER)).unwrap_or_default();
            if owner.trim() == self.paths.state.to_string_lossy() && !self.paths.pod(&id).exists() {
                found.push(Finding::Data { path });
            }
        }
        for lease in self.store.leases()?.into_iter().filter(|l| id::is_id(holder(&l.id))) {
            let held = record::ids_in(&data)?.iter().any(|pod| data.join(pod).join(holder(&lease.id)).exists());
            if !held && self.store.leases()?.iter().any(|l| l.id == lease.id) {
                found.push(Finding::Lease { id: lease.id });
            }
        }
        Ok(())
    }

    fn look_at_names(&self, found: &mut Vec<Finding>) -> Result<()> {
        let _section = self.section()?;
        for (path, name, owner) in names::all(&self.names())? {
            if !id::is_id(&owner) || !self.paths.pod(&owner).exists() {
                found.push(Finding::Name { name, path });
            }
        }
        Ok(())
    }

    fn look_at_network(&self, found: &mut Vec<Finding>) -> Result<()> {
        let live = |id: &str| {
            let held = |name: &str| lock::holder(&self.paths.pod(id).join(name)).map_or(true, |h| h.lives());
            held("lock") || held("creator.lock")
        };
        for orphan in self.network.orphans(live)? {
            found.push(Finding::Network { what: orphan.to_string(), orphan });
        }
        found.extend(self.network.troubles()?.into_iter().map(|what| Finding::Trouble { what }));
        Ok(())
    }

    /// Asks all supervisors at once, so that those who hang cost one patience together.
    async fn silent_supervisors(&self) -> Result<Vec<Finding>> {
        let mut asked = tokio::task::JoinSet::new();
        for id in self.sandbox_ids()? {
            let lock::Holder::Pid(pid) = self.supervisor_of(&id)? else { continue };
            if !matches!(self.sandbox_record(&id).map(|r| r.state), Ok(SandboxState::Ready)) {
                continue;
            }
            let engine = self.clone();
            asked.spawn(async move {
                let ping = api::PingRequest { sandbox_id: id.clone() };
                let call = engine.sandbox_call::<_, api::PingResponse>(&id, method::PING_SANDBOX, &ping, PATIENCE);
                let silent = matches!(call.await, Err(Error::Deadline { .. }));
                silent.then_some(Finding::SilentSupervisor { id, pid })
            });
        }
        Ok(asked.join_all().await.into_iter().flatten().collect())
    }

    async fn clear(&self, finding: &Finding) -> Result<()> {
        match finding.clone() {
            Finding::DeadPod { id, .. } => self.stop_sandbox(&id).await,
            Finding::InterruptedPod { id, .. } => {
                // A call that was repeated may have taken it apart already, or be at it.
                let _turn = self.turn(&id).await;
                if self.interrupted(&id)? || self.abandoned(&id)? { self.destroy(&id).await } else { Ok(()) }
            }
            Finding::InterruptedContainer { sandbox, id } => {
                let _turn = self.turn(&id).await;
                let left =
                    !self.maker_lives(&self.paths.container(&sandbox, &id))? && self.still_begun(&sandbox, &id)?;
                if left { self.forget_container(&sandbox, &id).await } else { Ok(()) }
            }
            Finding::Cgroup { path, .. } => {
                let deadline = self.config.deadlines.kill;
                blocking(move || cgroup::clear(&path, deadline)).await
            }
            Finding::Data { path } => blocking(move || remove_tree(&path)).await,
            Finding::Lease { id } => {
                let store = self.store.clone();
                blocking(move || Ok(store.drop_lease(&id)?)).await
            }
            Finding::Name { path, .. } => {
                let engine = self.clone();
                blocking(move || engine.drop_name(&path)).await
            }
            Finding::Network { orphan, .. } => {
                let network = self.network.clone();
                blocking(move || Ok(network.clear(&[orphan])?)).await
            }
            Finding::SilentSupervisor { .. } | Finding::Trouble { .. } => Ok(()),
        }
    }

    fn drop_name(&self, path: &std::path::Path) -> Result<()> {
        let _section = self.section()?;
        // Somebody may have taken the name since.
        let mut left = names::all(&self.names())?.into_iter();
        let stale = left.any(|(p, _, owner)| p == path && (!id::is_id(&owner) || !self.paths.pod(&owner).exists()));
        match stale {
            true => fs::remove_file(path).map_err(Error::io("remove", path)),
            false => Ok(()),
        }
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The container of a lease; those on the images of its volumes have a number behind its id.
fn holder(lease: &str) -> &str {
    lease.split('.').next().unwrap_or(lease)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_says_what_and_whom_and_is_json() {
        let dead = Finding::DeadPod { id: "a".repeat(64), name: "web".into(), pids: vec![7, 8] };
        assert_eq!(dead.to_string(), "pod web (aaaaaaaaaaaa): its supervisor is dead, still running: pid 7 8");
        assert_eq!(serde_json::to_value(&dead).unwrap()["kind"], "dead-pod");
        assert!(dead.clearable());
        assert!(!Finding::SilentSupervisor { id: String::new(), pid: 1 }.clearable());
    }
}
