//! The engine itself: opening it, finding things, and what all its parts share.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coracle_proto::Message;
use coracle_proto::ttrpc::service;
use coracle_rootfs::Store;
use sha2::{Digest, Sha256};

use crate::client::Client;
use crate::config::{EngineConfig, Paths};
use crate::error::{Error, Result};
use crate::handler::Handlers;
use crate::lock::{self, Holder, LifeLock};
use crate::net::Network;
use crate::record::{self, ContainerRecord, SandboxRecord};
use crate::turns::Turns;
use crate::types::SandboxConfig;
use crate::{id, names};

/// The parent cgroup of the system's own state folder.
const CGROUP_PARENT: &str = "/coracle";

/// The pod engine. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Engine {
    pub(crate) paths: Arc<Paths>,
    pub(crate) config: Arc<EngineConfig>,
    pub(crate) store: Store,
    pub(crate) network: Arc<Network>,
    pub(crate) stats: Arc<crate::stats::Cache>,
    handlers: Arc<Mutex<Arc<Handlers>>>,
    clients: Arc<Mutex<HashMap<String, Arc<Client>>>>,
    turns: Arc<Turns>,
}

/// Runs what blocks on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => std::panic::resume_unwind(e.into_panic()),
    }
}

fn make_dir(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(Error::io("make folder", path))
}

impl Engine {
    /// Opens the engine. There is nothing to load: the records, locks and supervisors are asked when they are needed,
    /// so that a process that comes after a crash sees the same as one that was there before it.
    pub fn open(paths: Paths, config: EngineConfig) -> Result<Engine> {
        for dir in [paths.pods(), paths.state.join("names"), paths.root.join("pods")] {
            make_dir(&dir)?;
        }
        // Absolute from here on: the supervisor runs in a folder of its own.
        let whole = |p: &Path| p.canonicalize().map_err(Error::io("resolve", p));
        let paths = Paths { state: whole(&paths.state)?, root: whole(&paths.root)?, ..paths };
        let cgroup_parent = match config.cgroup_parent.as_str() {
            "" => default_cgroup_parent(&paths.state),
            _ => config.cgroup_parent.clone(),
        };
        let config = EngineConfig { cgroup_parent, ..config };
        Ok(Engine {
            store: Store::open(&paths.root)?,
            network: Arc::new(Network::open(&paths.state, config.network.clone())?),
            paths: Arc::new(paths),
            handlers: Arc::new(Mutex::new(Arc::new(config.handlers.clone()))),
            config: Arc::new(config),
            stats: Arc::default(),
            clients: Arc::default(),
            turns: Arc::default(),
        })
    }

    /// The image store. It blocks: call it from a thread that may.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Where things lie.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// The settings it was opened with.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// The handlers that pods are made with from now on.
    pub fn handlers(&self) -> Arc<Handlers> {
        self.handlers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Replaces the handlers. Pods that there are keep theirs, which their records hold.
    pub fn set_handlers(&self, handlers: Handlers) {
        *self.handlers.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(handlers);
    }

    /// The pod network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    pub(crate) fn names(&self) -> PathBuf {
        self.paths.state.join("names")
    }

    /// The section in which pods' folders and names are made and judged.
    pub(crate) fn section(&self) -> Result<impl Drop + use<>> {
        lock::section(&self.paths.state.join("lock"), true)
    }

    /// All sandbox ids.
    pub(crate) fn sandbox_ids(&self) -> Result<Vec<String>> {
        record::ids_in(&self.paths.pods())
    }

    /// All container ids of a sandbox.
    pub(crate) fn container_ids(&self, sandbox: &str) -> Result<Vec<String>> {
        record::ids_in(&self.paths.pod(sandbox).join("containers"))
    }

    /// The sandbox with this id, prefix of an id, or name (`name` or `namespace/name`) of a local pod.
    pub fn find_sandbox(&self, wanted: &str) -> Result<String> {
        if id::is_id(wanted) && self.paths.pod(wanted).is_dir() {
            return Ok(wanted.to_owned());
        }
        let name = if wanted.contains('/') { wanted.to_owned() } else { format!("default/{wanted}") };
        if let Some(id) = names::owner(&self.names(), &name)?.filter(|id| self.paths.pod(id).is_dir()) {
            return Ok(id);
        }
        id::resolve("sandbox", wanted, self.sandbox_ids()?)
    }

    /// The sandbox with this id or prefix of an id.
    pub fn find_sandbox_by_id(&self, wanted: &str) -> Result<String> {
        match id::is_id(wanted) && self.paths.pod(wanted).is_dir() {
            true => Ok(wanted.to_owned()),
            false => id::resolve("sandbox", wanted, self.sandbox_ids()?),
        }
    }

    /// What a sandbox was asked to be, by its whole id.
    pub fn sandbox_config(&self, id: &str) -> Result<SandboxConfig> {
        Ok(self.sandbox_record(id)?.config)
    }

    /// Whether a sandbox, by its whole id, is in a virtual machine.
    pub fn in_machine(&self, id: &str) -> Result<bool> {
        Ok(self.sandbox_record(id)?.vm.is_some())
    }

    /// A sandbox's cgroup, by its whole id.
    pub fn sandbox_cgroup(&self, id: &str) -> Result<String> {
        Ok(self.sandbox_record(id)?.cgroup)
    }

    /// The container with this id or prefix of an id, and its sandbox.
    pub fn find_container(&self, wanted: &str) -> Result<(String, String)> {
        if id::is_id(wanted) {
            // A whole id needs no list of the others.
            let holds = |sandbox: &String| self.paths.container(sandbox, wanted).is_dir();
            if let Some(sandbox) = self.sandbox_ids()?.into_iter().find(holds) {
                return Ok((sandbox, wanted.to_owned()));
            }
            return Err(not_found("container", wanted));
        }
        let mut all = HashMap::new();
        for sandbox in self.sandbox_ids()? {
            for container in self.container_ids(&sandbox)? {
                all.insert(container, sandbox.clone());
            }
        }
        let id = id::resolve("container", wanted, all.keys().cloned())?;
        let sandbox = all.remove(&id).unwrap_or_default();
        Ok((sandbox, id))
    }

    pub(crate) fn sandbox_record(&self, id: &str) -> Result<SandboxRecord> {
        record::read(&self.paths.pod(id))?.ok_or_else(|| not_found("sandbox", id))
    }

    pub(crate) fn write_sandbox(&self, record: &SandboxRecord) -> Result<()> {
        record::write(&self.paths.pod(&record.id), record)
    }

    pub(crate) fn container_record(&self, sandbox: &str, id: &str) -> Result<ContainerRecord> {
        record::read(&self.paths.container(sandbox, id))?.ok_or_else(|| not_found("container", id))
    }

    pub(crate) fn write_container(&self, record: &ContainerRecord) -> Result<()> {
        record::write(&self.paths.container(&record.sandbox_id, &record.id), record)
    }

    /// Who holds the supervisor's lock: proof of its life or death.
    pub(crate) fn supervisor_of(&self, sandbox: &str) -> Result<Holder> {
        lock::holder(&self.paths.pod(sandbox).join("lock"))
    }

    /// The right to apply a pod's restart policy, if nobody living has it. While it is held, the supervisor starts no
    /// `on_exit` command; whoever lets it go looks once more for exits that came meanwhile.
    pub fn tend(&self, sandbox: &str) -> Result<Option<LifeLock>> {
        LifeLock::try_take(&self.paths.pod(sandbox).join("tender.lock"))
    }

    /// The right to change a sandbox or a container, among this process's tasks.
    pub(crate) async fn turn(&self, id: &str) -> impl Drop + Send + use<> {
        self.turns.take(id).await
    }

    /// The connection to a sandbox's supervisor, made if there is none. Its death is told from its silence.
    pub(crate) async fn connect(&self, sandbox: &str) -> Result<Arc<Client>> {
        let clients = || self.clients.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(client) = clients().get(sandbox).filter(|c| c.is_open()) {
            return Ok(client.clone());
        }
        if !self.supervisor_of(sandbox)?.lives() {
            return Err(Error::Supervisor {
                sandbox: id::short(sandbox).to_owned(),
                reason: "it is dead (coracle doctor tells what it left, coracle gc clears it)".into(),
            });
        }
        let socket = self.paths.pod(sandbox).join("supervisor.sock");
        let client = Arc::new(Client::connect(&socket, self.config.deadlines.connect).await?);
        clients().insert(sandbox.to_owned(), client.clone());
        Ok(client)
    }

    pub(crate) fn disconnect(&self, sandbox: &str) {
        self.clients.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(sandbox);
    }

    /// One call of the task service.
    pub(crate) async fn task<Req: Message, Res: Message + Default>(
        &self,
        sandbox: &str,
        method: &str,
        what: &str,
        request: &Req,
        deadline: Option<Duration>,
    ) -> Result<Res> {
        self.connect(sandbox).await?.call(what, service::TASK_V2, method, request, deadline).await
    }

    /// One call of the sandbox service.
    pub(crate) async fn sandbox_call<Req: Message, Res: Message + Default>(
        &self,
        sandbox: &str,
        method: &str,
        request: &Req,
        deadline: Duration,
    ) -> Result<Res> {
        let what = format!("{method} {}", id::short(sandbox));
        self.connect(sandbox).await?.call(&what, service::SANDBOX, method, request, Some(deadline)).await
    }
}

/// Each state folder has a parent cgroup of its own, so that no engine takes another's pods for leftovers.
fn default_cgroup_parent(state: &Path) -> String {
    if state == Path::new(crate::config::STATE) {
        return CGROUP_PARENT.to_owned();
    }
    let digest = Sha256::digest(state.as_os_str().as_encoded_bytes());
    format!("{CGROUP_PARENT}-{:08x}", u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]))
}

pub(crate) fn not_found(kind: &'static str, name: &str) -> Error {
    Error::NotFound { kind, name: id::short(name).to_owned(), hint: None }
}
