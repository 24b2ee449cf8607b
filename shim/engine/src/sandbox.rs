//! A sandbox from its making to its removal.
//!
//! Making one: folder, record (intent) and name in one section; the supervisor is started while the pod's files and
//! /dev/shm are made; then its namespaces; then the network; then the record says ready. Everything slow is the kernel's.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};

use crate::doctor::OWNER;
use crate::engine::{Engine, blocking};
use crate::error::{Error, Result};
use crate::handler::Handler;
use crate::lock::{Holder, LifeLock};
use crate::net::{Attach, Attachment, files};
use crate::record::{SandboxRecord, boot_id, now};
use crate::spec::userns;
use crate::status::{SandboxEvent, SandboxState};
use crate::types::{DnsConfig, NamespaceMode, SandboxConfig, SandboxFilter, SandboxStatus};
use crate::undo::{Step, Undo};
use crate::{id, names, record, supervisor};

/// The kernel's limit of a hostname.
const MAX_HOSTNAME: usize = 64;
/// The length to which a pod's name is cut for one: that of a DNS label.
const MAX_LABEL: usize = 63;
/// What an engine that finds a stale owner of a name tries before it gives up.
const NAME_ATTEMPTS: usize = 3;
/// Where systemd-resolved keeps the real servers when /etc/resolv.conf names its stub.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// How often a creation under way is looked at by who waits for its end.
const SETTLE_PAUSE: Duration = Duration::from_millis(10);

/// A sandbox's folder, held by its creator.
struct Begun {
    record: SandboxRecord,
    /// Shared with what the creator has running on other threads: a creation whose future was dropped is over, and may be
    /// taken apart, only when these have ended, too.
    creator: Arc<LifeLock>,
}

impl Engine {
    /// Makes a sandbox and returns when containers can be made in it. Dropped before its end it leaves an interrupted
    /// creation, which a repetition or a removal takes apart, as after a crash.
    pub async fn run_sandbox(&self, mut config: SandboxConfig) -> Result<SandboxStatus> {
        validate(&config)?;
        self.check_limits(&config.resources)?;
        let handler = self.handler_for(&mut config).await?;
        let hostname = hostname(&config);
        let Begun { mut record, creator } = self.begin_sandbox(config, handler).await?;
        let mut undo = Undo::new(self, &record.id);
        undo.begin(Step::Folder);
        match self.make_sandbox(&mut record, &hostname, &creator, &mut undo).await {
            Ok(()) => Ok(self.status_of(record, None)),
            Err(why) => Err(undo.fail(why).await),
        }
    }

    /// Records a sandbox that cannot be made, for a reason that its author tells otherwise: it has its name and its folder,
    /// and nothing runs in it or ever will.
    pub async fn refuse_sandbox(&self, config: SandboxConfig) -> Result<String> {
        validate(&config)?;
        let handler = Handler::default();
        let Begun { mut record, creator } = self.begin_sandbox(config, handler).await?;
        record.state = SandboxState::NotReady;
        self.write_sandbox(&record)?;
        drop(creator);
        Ok(record.id)
    }

    async fn make_sandbox(
        &self,
        record: &mut SandboxRecord,
        hostname: &str,
        creator: &Arc<LifeLock>,
        undo: &mut Undo<'_>,
    ) -> Result<()> {
        let pod = self.paths.pod(&record.id);
        undo.begin(Step::Supervisor);
        let spawned = supervisor::spawn(&self.paths.supervisor, &pod, &record.id, self.config.deadlines.spawn);
        undo.begin(Step::Shm);
        let (config, size, dir, name) = (record.config.clone(), self.config.shm_size, pod.clone(), hostname.to_owned());
        let (engine, id) = (self.clone(), record.id.clone());
        let held = creator.clone();
        let files = blocking(move || {
            let _held = held;
            engine.own_data(&id)?;
            write_files(&dir, &config, &name, size)
        });
        let (spawned, written) = tokio::join!(spawned, files);
        spawned.and(written)?;

        let pid = self.set_up_supervisor(record, hostname).await?;
        self.weigh(record.config.qos)?;
        if record.config.network != NamespaceMode::Node {
            undo.begin(Step::Network);
            let attached = self.attach_network(record, format!("/proc/{pid}/ns/net").into(), creator.clone()).await?;
            record.ips = attached.ips.iter().map(|net| net.ip).collect();
            record.notes = attached.notes;
            if let (None, Some(dns)) = (&record.config.dns, attached.dns) {
                record::write_file(&pod.join("resolv.conf"), dns.text().as_bytes(), 0o644)?;
            }
        }
        write_hosts(&pod, record, hostname)?;
        if record.vm.is_some() {
            self.connect_guest(record).await?;
        }
        if let Some(namespace) = &record.config.user_namespace {
            ["hosts", "hostname", "resolv.conf"].iter().try_for_each(|file| userns::own(&pod.join(file), namespace))?;
        }
        record.state = advance("make", record, SandboxEvent::Ready)?;
        self.write_sandbox(record)
    }

    async fn attach_network(
        &self,
        record: &SandboxRecord,
        netns: PathBuf,
        creator: Arc<LifeLock>,
    ) -> Result<Attachment> {
        let (network, id, config) = (self.network.clone(), record.id.clone(), record.config.clone());
        // What a kubelet names as the parent is the pod's cgroup to everyone else.
        let cgroup = if config.cgroup_parent.is_empty() { record.cgroup.clone() } else { config.cgroup_parent.clone() };
        blocking(move || {
            let _held = creator;
            let attach = Attach {
                sandbox: &id,
                name: &config.name,
                namespace: &config.namespace,
                uid: &config.uid,
                netns: &netns,
                ports: &config.port_mappings,
                annotations: &config.annotations,
                dns: config.dns.as_ref(),
                cgroup: &cgroup,
                local: config.exclusive_name,
            };
            Ok(network.attach(&attach)?)
        })
        .await
    }

    /// Folder, creator's lock, record and name, all in one section, so that nobody sees some of them.
    async fn begin_sandbox(&self, config: SandboxConfig, handler: Handler) -> Result<Begun> {
        let key = names::key(&config);
        for _ in 0..NAME_ATTEMPTS {
            let stale = {
                let _section = self.section()?;
                match names::owner(&self.names(), &key)? {
                    Some(owner) if self.paths.pod(&owner).is_dir() => owner,
                    _ => return self.begin_folder(config, handler, &key),
                }
            };
            // The owner exists. It loses the name only if its creation or removal can be shown to be over for good; if it
            // is being removed just now, by another task, that is waited for.
            let _turn = self.turn(&stale).await;
            if !self.paths.pod(&stale).exists() {
                continue;
            }
            if !self.interrupted(&stale)? && !self.abandoned(&stale)? {
                return Err(Error::Exists { kind: "sandbox", name: config.name, id: stale });
            }
            self.destroy(&stale).await?;
        }
        Err(Error::State { operation: "make sandbox", object: config.name, state: "contended by others".into() })
    }

    fn begin_folder(&self, mut config: SandboxConfig, handler: Handler, key: &str) -> Result<Begun> {
        let id = id::new()?;
        if config.own_users {
            // In the section, in which no other pod can choose: and the record that comes next keeps the choice.
            config.user_namespace = Some(self.free_range()?);
        }
        let pod = self.paths.pod(&id);
        let parent = match config.cgroup_parent.as_str() {
            "" => &self.config.cgroup_parent,
            parent => parent,
        };
        let cgroup = match self.config.cgroups {
            true => format!("{}/pod{id}", config.qos.branch(parent)),
            false => String::new(),
        };
        let record = SandboxRecord {
            boot_id: boot_id().to_owned(),
            id: id.clone(),
            state: SandboxState::Creating,
            created_at: now(),
            supervisor: None,
            pid_ns_pid: None,
            user_ns: None,
            ips: Vec::new(),
            notes: Vec::new(),
            cgroup,
            vm: handler.machine_size(&config)?,
            config,
            handler,
        };
        fs::create_dir(&pod).map_err(Error::io("make folder", &pod))?;
        let made = || {
            fs::create_dir(pod.join("containers")).map_err(Error::io("make folder", &pod))?;
            let creator = LifeLock::try_take(&pod.join("creator.lock"))?;
            self.write_sandbox(&record)?;
            names::give(&self.names(), key, &id)?;
            creator.ok_or_else(|| Error::invalid("id", "the kernel's randomness repeats itself"))
        };
        match made() {
            Ok(creator) => Ok(Begun { record, creator: Arc::new(creator) }),
            Err(e) => {
                // Nothing but this folder was made.
                let _ = fs::remove_dir_all(&pod);
                Err(e)
            }
        }
    }

    /// Whether a sandbox is a creation that nobody will finish: its creator is dead. What runs of it is a supervisor at
    /// most, since containers come only after a creation is over.
    pub(crate) fn interrupted(&self, sandbox: &str) -> Result<bool> {
        let creator = || crate::lock::holder(&self.paths.pod(sandbox).join("creator.lock"));
        match self.sandbox_record(sandbox) {
            Ok(record) if record.state == SandboxState::Creating => {
                // The lock first, then the record again: a creator may have finished in between.
                Ok(!creator()?.lives() && self.sandbox_record(sandbox).is_ok_and(|r| r.state == SandboxState::Creating))
            }
            Ok(_) => Ok(false),
            // A folder without a record: its creator died between the two. The section keeps a living one out.
            Err(e) if e.is_not_found() => {
                let _section = self.section()?;
                Ok(!creator()?.lives() && self.sandbox_record(sandbox).is_err_and(|e| e.is_not_found()))
            }
            Err(e) => Err(e),
        }
    }

    /// Whether a sandbox is a removal that nobody will finish: its remover is dead.
    pub(crate) fn abandoned(&self, sandbox: &str) -> Result<bool> {
        let removing = self.sandbox_record(sandbox).is_ok_and(|record| record.state == SandboxState::Removing);
        Ok(removing && !crate::lock::holder(&self.paths.pod(sandbox).join("creator.lock"))?.lives())
    }

    /// Waits a while for a creation under way to come to its end, and tells whether it was cut off.
    async fn settled(&self, operation: &'static str, id: &str) -> Result<bool> {
        let until = Instant::now() + self.config.deadlines.query;
        loop {
            match self.sandbox_record(id) {
                Ok(record) if record.state != SandboxState::Creating => return Ok(false),
                Err(e) if !e.is_not_found() => return Err(e),
                // A folder that is no more was removed by another.
                Err(_) if !self.paths.pod(id).exists() => return Ok(true),
                _ if self.interrupted(id)? => return Ok(true),
                _ if Instant::now() >= until => {
                    let object = format!("sandbox {}", id::short(id));
                    return Err(Error::State { operation, object, state: "being made".into() });
                }
                _ => tokio::time::sleep(SETTLE_PAUSE).await,
            }
        }
    }

    /// Stops everything in a sandbox and releases what it holds but its records, logs and writable layers. Idempotent.
    pub async fn stop_sandbox(&self, sandbox: &str) -> Result<()> {
        let id = match self.find_sandbox(sandbox) {
            Ok(id) => id,
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) => return Err(e),
        };
        let _turn = self.turn(&id).await;
        self.stop_now(&id).await
    }

    /// Stops a sandbox in the caller's turn.
    async fn stop_now(&self, id: &str) -> Result<()> {
        if self.settled("stop", id).await? {
            return self.destroy(id).await;
        }
        let mut record = match self.sandbox_record(id) {
            Ok(record) => record,
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) => return Err(e),
        };
        if matches!(record.state, SandboxState::NotReady | SandboxState::Removing) {
            return Ok(());
        }
        // Held while it is stopped, so that nobody takes it for a dead one when its supervisor is gone.
        let _stopper = self.hold(id)?;
        // The intent first: whoever tends the pod sees it and restarts nothing.
        record.state = advance("stop", &record, SandboxEvent::Stopping)?;
        self.write_sandbox(&record)?;
        self.release(id).await?;
        self.settle_containers(id)?;
        record.state = advance("stop", &record, SandboxEvent::Stopped)?;
        record.supervisor = None;
        self.write_sandbox(&record)?;
        self.weigh(record.config.qos)
    }

    /// Ends and releases all that runs or is held; the link goes down while the supervisor ends.
    async fn release(&self, id: &str) -> Result<()> {
        let (network, supervisor) = tokio::join!(self.undo(id, Step::Network), self.undo(id, Step::Supervisor));
        supervisor.and(network)?;
        self.undo(id, Step::Shm).await
    }

    /// Removes a sandbox with all its containers and their writable layers; it is stopped first. Idempotent.
    pub async fn remove_sandbox(&self, sandbox: &str) -> Result<()> {
        let id = match self.find_sandbox(sandbox) {
            Ok(id) => id,
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) => return Err(e),
        };
        let _turn = self.turn(&id).await;
        if !self.settled("remove", &id).await?
            && let Ok(SandboxState::Ready | SandboxState::Stopping) =
                self.sandbox_record(&id).map(|record| record.state)
        {
            self.stop_now(&id).await?;
        }
        self.destroy(&id).await
    }

    /// Shows that somebody living works on a sandbox as a whole; `None` if another does already.
    fn hold(&self, id: &str) -> Result<Option<LifeLock>> {
        LifeLock::try_take(&self.paths.pod(id).join("creator.lock"))
    }

    /// A pod's part of the disk, marked as this state folder's.
    pub(crate) fn own_data(&self, id: &str) -> Result<()> {
        let dir = self.paths.pod_data(id);
        if dir.join(OWNER).exists() {
            return Ok(());
        }
        fs::create_dir_all(&dir).map_err(Error::io("make folder", &dir))?;
        record::write_file(&dir.join(OWNER), self.paths.state.as_os_str().as_encoded_bytes(), 0o600)
    }

    /// Takes a sandbox apart, whatever state it is in.
    pub(crate) async fn destroy(&self, id: &str) -> Result<()> {
        if !self.paths.pod(id).exists() {
            return Ok(());
        }
        let _remover = self.hold(id)?;
        if let Ok(mut record) = self.sandbox_record(id) {
            record.state = SandboxState::Removing;
            self.write_sandbox(&record)?;
        }
        self.release(id).await?;
        for container in self.container_ids(id)? {
            self.forget_container(id, &container).await?;
        }
        self.undo(id, Step::Folder).await?;
        self.disconnect(id);
        Ok(())
    }

    /// One sandbox.
    pub fn sandbox_status(&self, sandbox: &str) -> Result<SandboxStatus> {
        let id = self.find_sandbox(sandbox)?;
        let holder = self.supervisor_of(&id)?;
        Ok(self.status_of(self.sandbox_record(&id)?, Some(holder)))
    }

    /// All sandboxes that the filter lets through, the oldest first.
    pub fn list_sandboxes(&self, filter: &SandboxFilter) -> Result<Vec<SandboxStatus>> {
        let mut list = Vec::new();
        for id in self.sandbox_ids()?.into_iter().filter(|id| id.starts_with(&filter.id)) {
            let holder = self.supervisor_of(&id)?;
            match self.sandbox_record(&id) {
                Ok(record) => list.push(self.status_of(record, Some(holder))),
                // Removed since, or never finished: not a sandbox. One damaged record does not hide all others; doctor
                // tells of it.
                Err(e) if e.is_not_found() || matches!(e, Error::Record { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        list.retain(|s| matches(filter, s));
        list.sort_by_key(|s| s.created_at);
        Ok(list)
    }

    /// What a record means now: a sandbox whose supervisor is proven dead is not ready, whatever was written.
    fn status_of(&self, record: SandboxRecord, holder: Option<Holder>) -> SandboxStatus {
        let dead = holder == Some(Holder::Nobody);
        let state = match record.state {
            SandboxState::Ready | SandboxState::Stopping if dead => {
                record.state.next(SandboxEvent::Lost).unwrap_or(record.state)
            }
            state => state,
        };
        SandboxStatus {
            id: record.id,
            config: record.config,
            state,
            created_at: record.created_at,
            ips: record.ips,
            notes: record.notes,
            supervisor: record.supervisor.filter(|_| !dead),
        }
    }
}

fn advance(what: &'static str, record: &SandboxRecord, event: SandboxEvent) -> Result<SandboxState> {
    record.state.next(event).ok_or_else(|| Error::State {
        operation: what,
        object: format!("sandbox {}", id::short(&record.id)),
        state: record.state.as_str().into(),
    })
}

fn matches(filter: &SandboxFilter, s: &SandboxStatus) -> bool {
    let same = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
    filter.state.is_none_or(|state| state == s.state)
        && filter.local.is_none_or(|local| local == s.config.exclusive_name)
        && same(&filter.name, &s.config.name)
        && same(&filter.namespace, &s.config.namespace)
        && filter.labels.iter().all(|(k, v)| s.config.labels.get(k) == Some(v))
}

fn validate(config: &SandboxConfig) -> Result<()> {
    if config.name.is_empty() {
        return Err(Error::invalid("name", "a sandbox needs a name"));
    }
    for (field, text) in [("name", &config.name), ("namespace", &config.namespace), ("uid", &config.uid)] {
        if text.chars().any(|c| c == '/' || c.is_control()) {
            return Err(Error::invalid(field, format!("{text:?} must have no '/' and no control characters")));
        }
    }
    if config.hostname.len() > MAX_HOSTNAME {
        return Err(Error::invalid("hostname", format!("{:?} is longer than {MAX_HOSTNAME} bytes", config.hostname)));
    }
    let node = NamespaceMode::Node;
    if config.network == node
        && config.port_mappings.iter().any(|p| p.host_port != 0 && p.host_port != p.container_port)
    {
        return Err(Error::invalid("port_mappings", "in the host's network a hostPort must be the containerPort"));
    }
    if config.network == NamespaceMode::Container || config.ipc == NamespaceMode::Container {
        return Err(Error::invalid("namespaces", "the network and IPC namespaces are the pod's or the node's"));
    }
    userns::validate(config)
}

/// The pod's hostname.
pub(crate) fn hostname(config: &SandboxConfig) -> String {
    if config.network == NamespaceMode::Node {
        return nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()).unwrap_or_default();
    }
    // One that was asked for has the kernel's length at most: a fully qualified name may have (setHostnameAsFQDN).
    if !config.hostname.is_empty() {
        return config.hostname.clone();
    }
    // As kubelet does with a pod's name: cut, and then without a trailing dash or dot.
    let cut: String = config
        .name
        .chars()
        .scan(0, |n, c| {
            *n += c.len_utf8();
            (*n <= MAX_LABEL).then_some(c)
        })
        .collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// Everything in the pod's folder that needs no address yet.
fn write_files(pod: &Path, config: &SandboxConfig, hostname: &str, shm_size: u64) -> Result<()> {
    let write = |name: &str, text: &str| record::write_file(&pod.join(name), text.as_bytes(), 0o644);
    write("hostname", &files::hostname(hostname))?;
    write("resolv.conf", &resolv_conf(config))?;
    if config.ipc == NamespaceMode::Node {
        return Ok(());
    }
    let shm = pod.join("shm");
    fs::create_dir(&shm).map_err(Error::io("make folder", &shm))?;
    let options = format!("mode=1777,size={shm_size}{}", userns::tmpfs_owner(config));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("shm"), &shm, Some("tmpfs"), flags, Some(options.as_str())).map_err(Error::os("mount tmpfs on", &shm))
}

fn resolv_conf(config: &SandboxConfig) -> String {
    match &config.dns {
        Some(dns) => dns.text(),
        None => {
            let etc = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
            if config.network == NamespaceMode::Node {
                return etc;
            }
            let resolved = fs::read_to_string(RESOLVED).ok();
            let mut dns = DnsConfig::parse(files::host_source(&etc, resolved.as_deref()));
            // What is dropped or cut here could not have worked; doctor has nothing to add.
            dns.drop_loopback();
            dns.cut();
            dns.text()
        }
    }
}

fn write_hosts(pod: &Path, record: &SandboxRecord, hostname: &str) -> Result<()> {
    let config = &record.config;
    let text = match config.network {
        NamespaceMode::Node => {
            let host = fs::read_to_string("/etc/hosts").unwrap_or_default();
            files::hosts_on_host_network(&host, &config.host_aliases)
        }
        _ => {
            let domain = if config.host_domain.is_empty() { &config.domainname } else { &config.host_domain };
            let short = hostname.strip_suffix(domain.as_str()).and_then(|name| name.strip_suffix('.'));
            files::hosts(short.unwrap_or(hostname), domain, &record.ips, &config.host_aliases)
        }
    };
    record::write_file(&pod.join("hosts"), text.as_bytes(), 0o644)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostname_is_the_pods_name_cut_as_kubelet_cuts_it() {
        let pod = |name: &str| SandboxConfig { name: name.into(), ..Default::default() };
        assert_eq!(hostname(&pod("web")), "web");
        assert_eq!(hostname(&pod(&format!("{}-tail", "a".repeat(62)))), "a".repeat(62));
        assert_eq!(hostname(&SandboxConfig { hostname: "h".into(), ..pod("web") }), "h");
        assert_eq!(hostname(&SandboxConfig { hostname: "h".repeat(64), ..pod("web") }), "h".repeat(64));
    }

    #[test]
    fn a_config_that_cannot_be_is_refused_by_field() {
        let bad = |config: SandboxConfig| validate(&config).unwrap_err().to_string();
        let pod = || SandboxConfig { name: "web".into(), ..Default::default() };
        assert!(bad(SandboxConfig::default()).contains("name"));
        assert!(bad(SandboxConfig { name: "a/b".into(), ..Default::default() }).contains("a/b"));
        assert!(bad(SandboxConfig { hostname: "h".repeat(65), ..pod() }).contains("hostname"));
        assert!(bad(SandboxConfig { ipc: NamespaceMode::Container, ..pod() }).contains("IPC"));
    }
}
