//! A supervisor's life as the engine sees it: started, asked, ended. Its lock proves that it lives; nothing else does.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use coracle_proto::sandbox as api;
use coracle_proto::ttrpc::{method, service};
use coracle_proto::{any, coracle};
use nix::sys::signal::Signal;
use tokio::io::unix::AsyncFd;
use tokio::process::Command;
use tokio::time::timeout;

use crate::config::Paths;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::lock::Holder;
use crate::record::SandboxRecord;
use crate::spec;
use crate::types::{IdMapping, NamespaceMode, UserNamespace};
use crate::{id, sys, update};

/// The namespace by which we tell our sandboxes from containerd's.
const NAMESPACE: &str = "coracle";
/// What a failed start says of itself is shown up to here.
const MAX_WORDS: usize = 2000;

/// Starts the program in the pod's folder and returns when its socket listens.
pub(crate) async fn spawn(program: &Path, pod: &Path, sandbox: &str, deadline: Duration) -> Result<()> {
    let child = Command::new(program)
        .args(["-namespace", NAMESPACE, "-id", sandbox, "-address", "", "start"])
        .current_dir(pod)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(Error::io("start supervisor", program))?;
    let output = timeout(deadline, child.wait_with_output())
        .await
        .map_err(|_| Error::Deadline { operation: format!("start supervisor {}", program.display()), after: deadline })?
        .map_err(Error::io("start supervisor", program))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words = words.trim().chars().take(MAX_WORDS).collect::<String>().replace('\n', "; ");
    Err(Error::Supervisor { sandbox: id::short(sandbox).to_owned(), reason: format!("{}: {words}", output.status) })
}

fn mode(mode: NamespaceMode) -> i32 {
    match mode {
        NamespaceMode::Pod => coracle::NamespaceMode::Pod as i32,
        NamespaceMode::Container => coracle::NamespaceMode::Container as i32,
        NamespaceMode::Node => coracle::NamespaceMode::Node as i32,
    }
}

fn options(record: &SandboxRecord, hostname: &str, paths: &Paths) -> Result<coracle::SandboxOptions> {
    let config = &record.config;
    let own_uts = config.network != NamespaceMode::Node;
    let limits = record.vm.map_or_else(|| config.resources.clone(), |size| size.limits(&config.resources));
    let resources = spec::limits(&update::sum(&limits, &config.overhead))?;
    Ok(coracle::SandboxOptions {
        hostname: if own_uts { hostname.to_owned() } else { String::new() },
        domainname: if own_uts { config.domainname.clone() } else { String::new() },
        network: mode(config.network),
        ipc: mode(config.ipc),
        // As with kubelet, the host's name goes with the host's network.
        uts: mode(config.network),
        pid: mode(config.pid),
        sysctls: config.sysctls.clone().into_iter().collect(),
        oom_score_adj: config.resources.oom_score_adj,
        cgroup_parent: record.cgroup.clone(),
        resources: if resources.as_object().is_none_or(|o| o.is_empty()) {
            Vec::new()
        } else {
            resources.to_string().into_bytes()
        },
        on_exit: config.on_exit.clone(),
        log_max_bytes: config.log_max_bytes,
        user_namespace: config.user_namespace.as_ref().map(user_namespace),
        tender_stays: config.tender_stays,
        vm: record.handler.vm_options(record, paths)?,
    })
}

fn user_namespace(namespace: &UserNamespace) -> coracle::UserNamespace {
    let mapping =
        |m: &IdMapping| coracle::IdMapping { container_id: m.container_id, host_id: m.host_id, length: m.length };
    let list = |maps: &[IdMapping]| maps.iter().map(mapping).collect();
    coracle::UserNamespace { uids: list(&namespace.uids), gids: list(&namespace.gids) }
}

/// The end of a process that is not ours, by its pidfd.
struct Process {
    fd: AsyncFd<OwnedFd>,
}

impl Process {
    fn open(pid: i32) -> std::io::Result<Process> {
        Ok(Process { fd: sys::readable(sys::pidfd_open(pid)?)? })
    }

    /// Whether it ended in time.
    async fn ended(&self, deadline: Duration) -> bool {
        timeout(deadline, self.fd.readable()).await.is_ok()
    }
}

impl Engine {
    /// Makes the sandbox's namespaces and cgroup in its supervisor. Notes in the record where they are.
    pub(crate) async fn set_up_supervisor(&self, record: &mut SandboxRecord, hostname: &str) -> Result<i32> {
        let id = &record.id;
        let create = api::CreateSandboxRequest {
            sandbox_id: id.clone(),
            bundle_path: self.paths.pod(id).to_string_lossy().into_owned(),
            options: Some(any::pack(&options(record, hostname, &self.paths)?)),
            ..Default::default()
        };
        let deadline = self.config.deadlines.create;
        let _: api::CreateSandboxResponse = self.sandbox_call(id, method::CREATE_SANDBOX, &create, deadline).await?;
        let start = api::StartSandboxRequest { sandbox_id: id.clone() };
        let started: api::StartSandboxResponse = self.sandbox_call(id, method::START_SANDBOX, &start, deadline).await?;
        let pid = i32::try_from(started.pid).unwrap_or(0);
        record.supervisor = Some(pid);
        if record.vm.is_none() {
            self.note_namespaces(record).await?;
        }
        Ok(pid)
    }

    /// Notes where the pod's own PID and user namespaces are.
    async fn note_namespaces(&self, record: &mut SandboxRecord) -> Result<()> {
        let id = &record.id;
        let (pids, users) = (record.config.pid == NamespaceMode::Pod, record.config.user_namespace.is_some());
        if !pids && !users {
            return Ok(());
        }
        let ask = api::SandboxStatusRequest { sandbox_id: id.clone(), verbose: true };
        let status: api::SandboxStatusResponse =
            self.sandbox_call(id, method::SANDBOX_STATUS, &ask, self.config.deadlines.query).await?;
        record.pid_ns_pid = status.info.get("pid_ns_pid").and_then(|p| p.parse().ok()).filter(|_| pids);
        record.user_ns = status.info.get("userns").cloned();
        for (asked, made, what) in
            [(pids, record.pid_ns_pid.is_some(), "shared PID"), (users, record.user_ns.is_some(), "user")]
        {
            if asked && !made {
                let reason = format!("it made no {what} namespace although it was asked to");
                return Err(Error::Supervisor { sandbox: id::short(id).to_owned(), reason });
            }
        }
        Ok(())
    }

    /// Waits until the pod's virtual machine has booted and has the network that was made for it.
    pub(crate) async fn connect_guest(&self, record: &mut SandboxRecord) -> Result<()> {
        let what = format!("boot the virtual machine of sandbox {}", id::short(&record.id));
        let (request, deadline) = (coracle::ConnectNetworkRequest {}, Some(self.config.deadlines.create));
        let client = self.connect(&record.id).await?;
        let _: coracle::ConnectNetworkResponse =
            client.call(&what, service::CONTROL, method::CONNECT_NETWORK, &request, deadline).await?;
        // Now there is a guest that can have made them.
        self.note_namespaces(record).await
    }

    /// Ends a sandbox's supervisor and everything that runs in the pod. Idempotent. It is asked first; one that does not
    /// answer is killed, by the pid that holds its lock, because the user wants the pod gone.
    pub(crate) async fn end_supervisor(&self, sandbox: &str) -> Result<()> {
        let Holder::Pid(pid) = self.supervisor_of(sandbox)? else { return Ok(()) };
        let process = match Process::open(pid) {
            Ok(process) => process,
            // Gone since we asked.
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
            Err(e) => return Err(Error::io("watch supervisor", format!("/proc/{pid}"))(e)),
        };
        // The pid may have been another's if the supervisor died in between: the lock names the living one.
        if self.supervisor_of(sandbox)? != Holder::Pid(pid) {
            return Ok(());
        }
        let deadline = self.config.deadlines.kill;
        let stop = api::StopSandboxRequest { sandbox_id: sandbox.to_owned(), timeout_secs: 0 };
        let asked = async {
            let _: api::StopSandboxResponse = self.sandbox_call(sandbox, method::STOP_SANDBOX, &stop, deadline).await?;
            let end = api::ShutdownSandboxRequest { sandbox_id: sandbox.to_owned() };
            self.sandbox_call::<_, api::ShutdownSandboxResponse>(sandbox, method::SHUTDOWN_SANDBOX, &end, deadline)
                .await
        };
        // Whatever it answers, what counts is that it ends.
        let answered = timeout(deadline, asked).await.is_ok_and(|r| r.is_ok());
        self.disconnect(sandbox);
        if answered && process.ended(deadline).await {
            return Ok(());
        }
        sys::pidfd_send_signal(process.fd.get_ref(), Signal::SIGKILL as i32)
            .map_err(Error::io("kill supervisor", format!("/proc/{pid}")))?;
        match process.ended(deadline).await {
            true => Ok(()),
            false => Err(Error::Deadline { operation: format!("kill supervisor with pid {pid}"), after: deadline }),
        }
    }
}
