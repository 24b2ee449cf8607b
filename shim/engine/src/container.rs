//! A container from its making to its removal.
//!
//! Making one: folder, creator's lock and record (intent); lease on the image; writable layer; config.json; then the
//! supervisor mounts and creates it; then the record says created. Its end is read from `exit.json`, which the
//! supervisor writes before it tells anyone: so an exit is known with the supervisor gone and to every process alike.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_proto::ttrpc::{Code, method};
use coracle_proto::{Empty, task, task_types, types as wire};
use coracle_rootfs::{Image, MountSpec};
use nix::sys::signal::Signal;

use crate::engine::{Engine, blocking};
use crate::error::{Error, Result};
use crate::lock::{self, LifeLock};
use crate::observe::log_path;
use crate::record::{ContainerRecord, ExitFile, SandboxRecord, now, read_json};
use crate::status::{ContainerEvent, ContainerState, SandboxState};
use crate::types::{ContainerConfig, ContainerUser, Exit};
use crate::undo::remove_tree;
use crate::{cgroup, id, isolation, record, sandbox, signal, spec};

/// The exit code of a container whose command could not be started, as Docker and kubelet have it.
const START_FAILED: i32 = 128;
/// How often a wait that broke is tried again while the supervisor still lives: it may be on its way out.
const MAX_REFUSALS: u32 = 50;
/// The pause before that.
const REFUSAL_PAUSE: Duration = Duration::from_millis(20);
/// How often one who finds a stale owner of a name tries before it gives up.
const NAME_ATTEMPTS: usize = 3;
/// How the supervisor says that a container has ended.
const EXIT_FILE: &str = "exit.json";

/// What the store knows about a container's root filesystem.
struct RootFs {
    image: Image,
    mounts: Vec<MountSpec>,
}

impl Engine {
    /// Makes a container in a ready sandbox; it does not run yet. Dropped before its end it leaves an interrupted
    /// creation, which a repetition takes apart, as after a crash.
    pub async fn create_container(&self, sandbox: &str, mut config: ContainerConfig) -> Result<String> {
        let sandbox = self.find_sandbox(sandbox)?;
        let pod = self.sandbox_record(&sandbox)?;
        if pod.state != SandboxState::Ready || !self.supervisor_of(&sandbox)?.lives() {
            let state = if pod.state == SandboxState::Ready { "dead" } else { pod.state.as_str() };
            let object = format!("in sandbox {}", id::short(&sandbox));
            return Err(Error::State { operation: "make container", object, state: state.into() });
        }
        pod.handler.check_container(&config).await?;
        if pod.config.exclusive_name {
            pod.handler.check_volumes(&self.paths, &pod.id, &config)?;
        }
        self.check_limits(&config.resources)?;
        config.security.without_host_devices |= pod.handler.privileged_without_host_devices;
        let (mut record, creator) = self.begin_container(&sandbox, config).await?;
        match self.make_container(&pod, &mut record, creator.clone()).await {
            Ok(()) => Ok(record.id),
            Err(why) => {
                // Every part of it is removed if it is there; what cannot be removed now, gc finds by its record.
                let _ = self.forget_container(&sandbox, &record.id).await;
                Err(why)
            }
        }
    }

    async fn begin_container(
        &self,
        sandbox: &str,
        config: ContainerConfig,
    ) -> Result<(ContainerRecord, Arc<LifeLock>)> {
        if config.name.is_empty() || config.name.contains('/') {
            return Err(Error::invalid("name", format!("{:?} is no name for a container", config.name)));
        }
        let name = format!("{} (attempt {})", config.name, config.attempt);
        for _ in 0..NAME_ATTEMPTS {
            let stale = {
                let _section = lock::section(&self.paths.pod(sandbox).join("section"), true)?;
                match self.name_owner(sandbox, &config)? {
                    None => return self.begin_container_folder(sandbox, config),
                    Some(owner) => owner,
                }
            };
            // It loses the name only if its creation or removal can be shown to be over for good; if it is being removed just
            // now, by another task, that is waited for.
            let _turn = self.turn(&stale.id).await;
            if !self.paths.container(sandbox, &stale.id).exists() {
                continue;
            }
            if !self.container_interrupted(&stale)? {
                return Err(Error::Exists { kind: "container", name, id: stale.id });
            }
            self.forget_container(sandbox, &stale.id).await?;
        }
        Err(Error::State { operation: "make container", object: name, state: "contended by others".into() })
    }

    /// The container of the pod that has the name and attempt which another one is to have.
    fn name_owner(&self, sandbox: &str, config: &ContainerConfig) -> Result<Option<ContainerRecord>> {
        for other in self.container_ids(sandbox)? {
            match self.container_record(sandbox, &other) {
                Ok(r) if r.config.name == config.name && r.config.attempt == config.attempt => return Ok(Some(r)),
                Err(e) if !e.is_not_found() => return Err(e),
                _ => {}
            }
        }
        Ok(None)
    }

    fn begin_container_folder(
        &self,
        sandbox: &str,
        config: ContainerConfig,
    ) -> Result<(ContainerRecord, Arc<LifeLock>)> {
        let id = id::new()?;
        let dir = self.paths.container(sandbox, &id);
        fs::create_dir(&dir).map_err(Error::io("make folder", &dir))?;
        let creator = LifeLock::try_take(&dir.join("creator.lock"))?;
        let record = ContainerRecord {
            id,
            sandbox_id: sandbox.to_owned(),
            config,
            image_id: String::new(),
            image_digest: String::new(),
            stop_signal: Signal::SIGTERM as i32,
            user: None,
            state: ContainerState::Creating,
            created_at: now(),
            started_at: 0,
            pid: None,
            exit: None,
        };
        if let Err(e) = self.write_container(&record) {
            // Nothing but this folder was made.
            let _ = fs::remove_dir_all(&dir);
            return Err(e);
        }
        let creator = creator.ok_or_else(|| Error::invalid("id", "the kernel's randomness repeats itself"))?;
        Ok((record, Arc::new(creator)))
    }

    /// Whether a container is a creation or a removal that nobody will finish.
    fn container_interrupted(&self, record: &ContainerRecord) -> Result<bool> {
        let begun = |r: &ContainerRecord| matches!(r.state, ContainerState::Creating | ContainerState::Removing);
        let lock = self.paths.container(&record.sandbox_id, &record.id).join("creator.lock");
        if !begun(record) || lock::holder(&lock)?.lives() {
            return Ok(false);
        }
        match self.container_record(&record.sandbox_id, &record.id) {
            Ok(again) => Ok(begun(&again)),
            Err(e) if e.is_not_found() => Ok(true),
            Err(e) => Err(e),
        }
    }

    async fn make_container(
        &self,
        pod: &SandboxRecord,
        record: &mut ContainerRecord,
        creator: Arc<LifeLock>,
    ) -> Result<()> {
        let bundle = self.paths.container(&pod.id, &record.id);
        let data = self.paths.container_data(&pod.id, &record.id);
        let log = log_path(pod, &record.config);
        // A local pod's scores follow from its QoS class; nobody wrote them down. A guest has its own kernel to ask.
        let restrict = pod.vm.is_none() && (self.config.restrict_oom_score_adj || pod.config.exclusive_name);
        isolation::restrict_oom_score(restrict, &mut record.config)?;
        let (engine, this, pod_record, folder, log_file) =
            (self.clone(), record.clone(), pod.clone(), bundle.clone(), log.clone());
        let prepared = blocking(move || {
            // Held by this thread, too: see the sandbox's.
            let _held = creator;
            prepare(&engine, &pod_record, &this, &folder, &data, log_file.as_deref())
        });
        let (rootfs, stop_signal, user) = prepared.await?;
        record.image_id = rootfs.image.id.to_string();
        record.image_digest = rootfs.image.repo_digests.first().unwrap_or(&record.image_id).clone();
        record.stop_signal = stop_signal;
        record.user = Some(user);

        self.make_room(pod, &record.config.resources).await?;
        let mut request = create_request(record, &bundle, &rootfs.mounts, log.as_deref());
        pod.handler.choose(&mut request)?;
        let what = format!("create container {}", record.config.name);
        let deadline = Some(self.config.deadlines.create);
        let made: Result<task::CreateTaskResponse> =
            self.task(&pod.id, method::CREATE, &what, &request, deadline).await;
        let made = made.map_err(isolation::explain)?;
        record.pid = i32::try_from(made.pid).ok();
        record.state = advance("create", record, ContainerEvent::Created)?;
        self.write_container(record)
    }

    /// Starts a container that was made; one that was started already has nothing to be done, even if it has ended.
    pub async fn start_container(&self, container: &str) -> Result<()> {
        let (sandbox, id) = self.find_container(container)?;
        let _turn = self.turn(&id).await;
        let mut record = self.container_record(&sandbox, &id)?;
        match record.state {
            ContainerState::Created => {}
            ContainerState::Running => return Ok(()),
            state => return Err(wrong_state("start", &record, state)),
        }
        // The intent: whoever comes after our death knows that it may have run, and that its end is then a real one.
        let attempted = record.started_at != 0;
        if attempted && self.exit_file(&sandbox, &id)?.is_some() {
            return Ok(());
        }
        if !attempted {
            record.started_at = now();
            self.write_container(&record)?;
        }
        let request = task::StartRequest { id: id.clone(), exec_id: String::new() };
        let what = format!("start container {}", record.config.name);
        let deadline = Some(self.config.deadlines.create);
        let started: Result<task::StartResponse> = self.task(&sandbox, method::START, &what, &request, deadline).await;
        let pid = match started {
            Ok(started) => started.pid,
            // With no answer it may run or not, and its supervisor will know: a retry finds out.
            Err(why) if !definite(&why) => return Err(why),
            // An earlier start may have succeeded without its author living to record it.
            Err(why) => match self.running_pid(&sandbox, &id).await? {
                Some(pid) => pid,
                None => {
                    record.started_at = 0;
                    record.exit = Some(Exit {
                        code: START_FAILED,
                        finished_at: now(),
                        oom_killed: false,
                        reason: "StartError".into(),
                        message: why.to_string(),
                    });
                    record.state = advance("start", &record, ContainerEvent::Exited)?;
                    self.write_container(&record)?;
                    return Err(why);
                }
            },
        };
        record.pid = i32::try_from(pid).ok();
        record.state = advance("start", &record, ContainerEvent::Started)?;
        self.write_container(&record)
    }

    /// The pid of a container's init if its supervisor says that it runs.
    pub(crate) async fn running_pid(&self, sandbox: &str, id: &str) -> Result<Option<u32>> {
        let request = task::StateRequest { id: id.to_owned(), exec_id: String::new() };
        let what = format!("ask for container {}", id::short(id));
        let deadline = Some(self.config.deadlines.query);
        match self.task::<_, task::StateResponse>(sandbox, method::STATE, &what, &request, deadline).await {
            Ok(state) => Ok((state.status() == task_types::Status::Running).then_some(state.pid)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Asks a container to stop by its stop signal, and kills it when `grace` is over. Idempotent.
    pub async fn stop_container(&self, container: &str, grace: Duration) -> Result<()> {
        let (sandbox, id) = match self.find_container(container) {
            Ok(found) => found,
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) => return Err(e),
        };
        let record = self.container_record(&sandbox, &id)?;
        let status = self.observe(record.clone(), None)?;
        if !matches!(status.state, ContainerState::Created | ContainerState::Running) {
            return Ok(());
        }
        // One that was never started has nothing to tell it; it waits in the runtime and only a kill ends it. Of one that was
        // to be started it may only not have been noted that it runs.
        if (status.state == ContainerState::Running || record.started_at != 0) && !grace.is_zero() {
            self.signal_container(&sandbox, &id, record.stop_signal, false).await?;
            if tokio::time::timeout(grace, self.wait_container(&id)).await.is_ok_and(|r| r.is_ok()) {
                return Ok(());
            }
        }
        self.signal_container(&sandbox, &id, Signal::SIGKILL as i32, true).await?;
        let after = self.config.deadlines.kill;
        match tokio::time::timeout(after, self.wait_container(&id)).await {
            Ok(result) => result.map(|_| ()),
            Err(_) => Err(Error::Deadline { operation: format!("kill container {}", record.config.name), after }),
        }
    }

    /// Sends a signal; a process that is gone already is no error.
    async fn signal_container(&self, sandbox: &str, id: &str, signal: i32, all: bool) -> Result<()> {
        let request = task::KillRequest {
            id: id.to_owned(),
            exec_id: String::new(),
            signal: u32::try_from(signal).unwrap_or(0),
            all,
        };
        let what = format!("signal container {}", id::short(id));
        let deadline = Some(self.config.deadlines.kill);
        match self.task::<_, Empty>(sandbox, method::KILL, &what, &request, deadline).await {
            Ok(_) => Ok(()),
            Err(e) if e.is_not_found() => Ok(()),
            // With the supervisor dead there is nobody to ask: what it left running is ended by its cgroup.
            Err(_) if !self.supervisor_of(sandbox)?.lives() => self.end_cgroup(sandbox, id).await,
            // It may have ended while we asked.
            Err(_) if self.exit_file(sandbox, id)?.is_some() => Ok(()),
            Err(e) => Err(e),
        }
    }

    async fn end_cgroup(&self, sandbox: &str, id: &str) -> Result<()> {
        let group = self.sandbox_record(sandbox)?.cgroup_of(id);
        let deadline = self.config.deadlines.kill;
        blocking(move || cgroup::clear(&group, deadline)).await
    }

    pub(crate) fn exit_file(&self, sandbox: &str, id: &str) -> Result<Option<ExitFile>> {
        read_json(&self.paths.container(sandbox, id).join(EXIT_FILE))
    }

    /// Waits until a container has ended, however long that takes, and tells how.
    pub async fn wait_container(&self, container: &str) -> Result<Exit> {
        let (sandbox, id) = self.find_container(container)?;
        let mut refusals = 0;
        loop {
            let status = self.observe(self.container_record(&sandbox, &id)?, None)?;
            if let Some(exit) = status.exit {
                return Ok(exit);
            }
            let request = task::WaitRequest { id: id.clone(), exec_id: String::new() };
            let what = format!("wait for container {}", status.config.name);
            match self.task::<_, task::WaitResponse>(&sandbox, method::WAIT, &what, &request, None).await {
                Ok(_) if self.exit_file(&sandbox, &id)?.is_none() => {
                    return Err(Error::Supervisor {
                        sandbox: id::short(&sandbox).to_owned(),
                        reason: format!("container {} ended and no {EXIT_FILE} was written", id::short(&id)),
                    });
                }
                Ok(_) => {}
                // The connection broke: the supervisor ended, or is about to, or only the connection did. Look again; a
                // supervisor that goes on living and refusing is an error.
                Err(e) if self.exit_file(&sandbox, &id)?.is_none() && self.supervisor_of(&sandbox)?.lives() => {
                    if definite(&e) || refusals == MAX_REFUSALS {
                        return Err(e);
                    }
                    refusals += 1;
                    tokio::time::sleep(REFUSAL_PAUSE).await;
                }
                Err(_) => {}
            }
        }
    }

    /// Removes a container, killing it if it runs. Its log stays. Idempotent.
    pub async fn remove_container(&self, container: &str) -> Result<()> {
        let (sandbox, id) = match self.find_container(container) {
            Ok(found) => found,
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) => return Err(e),
        };
        // Killed before the turn: a start that hangs ends by it.
        if self.container_record(&sandbox, &id).is_ok_and(|r| r.state != ContainerState::Creating) {
            self.stop_container(&id, Duration::ZERO).await?;
        }
        let _turn = self.turn(&id).await;
        if !self.paths.container(&sandbox, &id).exists() {
            return Ok(());
        }
        // Held while it is removed, so that nobody takes the removal for an interrupted one.
        let _remover = LifeLock::try_take(&self.paths.container(&sandbox, &id).join("creator.lock"))?;
        match self.container_record(&sandbox, &id) {
            Ok(record) => {
                if record.state == ContainerState::Creating && _remover.is_none() {
                    return Err(wrong_state("remove", &record, record.state));
                }
                self.stop_container(&id, Duration::ZERO).await?;
                // How it ended is still to be told while it goes.
                let exit = self.observe(record.clone(), None)?.exit;
                self.write_container(&ContainerRecord { state: ContainerState::Removing, exit, ..record })?;
            }
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
        self.forget_container(&sandbox, &id).await
    }

    /// Removes every part of a container that does not run, or whose supervisor is gone; parts may be missing.
    pub(crate) async fn forget_container(&self, sandbox: &str, id: &str) -> Result<()> {
        if self.supervisor_of(sandbox)?.lives() {
            let request = task::DeleteRequest { id: id.to_owned(), exec_id: String::new() };
            let what = format!("delete container {}", id::short(id));
            let deadline = Some(self.config.deadlines.create);
            match self.task::<_, task::DeleteResponse>(sandbox, method::DELETE, &what, &request, deadline).await {
                Ok(_) => {}
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e),
            }
        } else {
            self.end_cgroup(sandbox, id).await.or_else(|e| if e.is_not_found() { Ok(()) } else { Err(e) })?;
        }
        let (store, lease) = (self.store.clone(), id.to_owned());
        let (data, dir) = (self.paths.container_data(sandbox, id), self.paths.container(sandbox, id));
        blocking(move || {
            if let Some(record) = record::read(&dir)? {
                isolation::drop_volume_leases(&store, &record)?;
            }
            store.drop_lease(&lease)?;
            remove_tree(&data)?;
            // The record last: until here, whoever looks knows that something may be left.
            remove_tree(&dir)
        })
        .await
    }
}

/// Whether the supervisor itself answered: then it is done with the call.
fn definite(error: &Error) -> bool {
    let lost = [Code::Unavailable as i32, Code::DeadlineExceeded as i32, Code::DataLoss as i32];
    matches!(error, Error::Rpc { code, .. } if !lost.contains(code))
}

fn advance(what: &'static str, record: &ContainerRecord, event: ContainerEvent) -> Result<ContainerState> {
    record.state.next(event).ok_or_else(|| wrong_state(what, record, record.state))
}

fn wrong_state(operation: &'static str, record: &ContainerRecord, state: ContainerState) -> Error {
    Error::State { operation, object: format!("container {}", record.config.name), state: state.as_str().into() }
}

/// Everything on disk that a container needs before its supervisor is asked.
fn prepare(
    engine: &Engine,
    pod: &SandboxRecord,
    record: &ContainerRecord,
    bundle: &Path,
    data: &Path,
    log: Option<&Path>,
) -> Result<(RootFs, i32, ContainerUser)> {
    let config = &record.config;
    let image = engine.store.image(&config.image)?.ok_or_else(|| Error::NotFound {
        kind: "image",
        name: config.image.clone(),
        hint: Some("coracle pull it, or coracle load an archive"),
    })?;
    engine.own_data(&pod.id)?;
    for dir in [data, &bundle.join("rootfs")] {
        fs::create_dir(dir).map_err(Error::io("make folder", dir))?;
    }
    // Before anything of the image is used: from here on no collection takes its layers. The folder that stands for the
    // lease is there already.
    engine.store.lease(&record.id, &image)?;
    let mut mounts = match pod.vm {
        // The writable layer is the guest's.
        Some(_) => vec![isolation::erofs(&engine.store, &image)?],
        None => engine.store.snapshot(&image, data)?,
    };
    if let Some(namespace) = &pod.config.user_namespace {
        isolation::map_rootfs(namespace, data, &mut mounts)?;
    }
    let view = spec::view::View::new(engine.store.lower_directories(&image)?.into_iter().map(PathBuf::from).collect());
    if let Some(dir) = log.and_then(Path::parent) {
        fs::create_dir_all(dir).map_err(Error::io("make log folder", dir))?;
    }
    let image_config = image.config.config().clone();
    let (mut spec, user) = spec::generate(&spec::Input {
        config,
        sandbox: &pod.config,
        image: image_config.as_ref(),
        view: &view,
        images: &isolation::image_volumes(&engine.store, record, pod.vm.is_some())?,
        pod_id: &pod.id,
        pod_dir: &engine.paths.pod(&pod.id),
        bundle,
        hostname: &sandbox::hostname(&pod.config),
        cgroup: &if pod.vm.is_some() { spec::guest::cgroup(&record.id) } else { pod.cgroup_of(&record.id) },
        supervisor: if pod.vm.is_some() { spec::guest::SUPERVISOR } else { pod.supervisor.unwrap_or(0) },
        pid_ns_pid: pod.pid_ns_pid,
        target: isolation::target(engine, record)?,
        user_ns: pod.user_ns.as_deref(),
        cdi_dirs: &engine.config.cdi_dirs,
        guest: pod.vm.is_some(),
    })?;
    pod.handler.adapt(&mut spec, pod, record);
    record::write_file(&bundle.join("config.json"), spec.to_string().as_bytes(), 0o600)?;
    let image_signal = image_config.as_ref().and_then(|c| c.stop_signal().clone());
    let stop_signal = match (&config.stop_signal, image_signal) {
        (Some(name), _) => {
            signal::parse(name).ok_or_else(|| Error::invalid("stopSignal", format!("{name:?} is no signal")))?
        }
        // An image's mistake does not make it unusable.
        (None, Some(name)) => signal::parse(&name).unwrap_or(Signal::SIGTERM as i32),
        (None, None) => Signal::SIGTERM as i32,
    };
    Ok((RootFs { image, mounts }, stop_signal, user))
}

fn create_request(
    record: &ContainerRecord,
    bundle: &Path,
    mounts: &[MountSpec],
    log: Option<&Path>,
) -> task::CreateTaskRequest {
    let config = &record.config;
    let stdin = match (config.stdin, config.stdin_once) {
        (false, _) => "",
        (true, false) => "attach:",
        (true, true) => "attach:once",
    };
    // Without a log the output still reaches who attaches.
    let output = log.map_or("attach:".to_owned(), |log| format!("cri:{}", log.display()));
    let rootfs = mounts.iter().map(|m| wire::Mount {
        r#type: m.fstype.clone(),
        source: m.source.clone(),
        target: String::new(),
        options: m.options.clone(),
    });
    task::CreateTaskRequest {
        id: record.id.clone(),
        bundle: bundle.to_string_lossy().into_owned(),
        rootfs: rootfs.collect(),
        terminal: config.tty,
        stdin: stdin.into(),
        stdout: output.clone(),
        stderr: if config.tty { String::new() } else { output },
        ..Default::default()
    }
}
