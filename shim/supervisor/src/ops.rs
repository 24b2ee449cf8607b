//! What workers do: requests turned into calls of the runtime library. Nothing here runs in the long-lived process.

use crate::failure::{Fail, Failure};
use crate::logger::Logger;
use crate::oci::{Act, Oci};
use crate::stdio::ProcessEnds;
use crate::sys;
use crate::vm::volume::Sent;
use coracle_copy::inside;
use coracle_proto::family;
use coracle_proto::runc;
use coracle_proto::task_types::ProcessInfo;
use coracle_proto::ttrpc::Code;
use coracle_proto::types::Mount;
use coracle_proto::{Message, any, task};
use coracle_runtime::cgroup::{Cgroup, CgroupOptions, CgroupPath, CgroupState, Stats, Version};
use coracle_runtime::{CreateOptions, ExecOptions, Parent, Process, RootfsMount, Runtime, Stdio};
use nix::libc::SIGKILL;
use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// In the bundle of a container whose state is elsewhere: where.
const ROOT_RECORD: &str = "oci-root";

/// What the supervisor has to know of a container it did not make itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Created {
    /// The init's pid.
    pub pid: i32,
    /// It is the first of its own PID namespace: when it dies all die.
    pub own_pid_namespace: bool,
    /// Where the kernel counts its OOM kills; may be empty.
    pub oom_file: String,
    /// The pid of its logger, or 0.
    pub logger: i32,
    /// The volumes that a virtual machine was sent, and that it is to be sent again when they change.
    pub volumes: Vec<Sent>,
}

impl Created {
    /// For the worker's report.
    pub fn encode(&self) -> Vec<u8> {
        // Numbers and strings are always JSON.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// From the worker's report.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

impl ProcessEnds {
    /// The descriptors a worker must keep.
    pub fn raw(&self) -> Vec<RawFd> {
        let ends = [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten().map(AsRawFd::as_raw_fd);
        let ends = ends.chain([&self.console, &self.attach].into_iter().flatten().map(AsRawFd::as_raw_fd));
        ends.chain(self.logger.iter().flat_map(Logger::raw)).collect()
    }

    fn into_runtime(self) -> Result<(Stdio, Option<OwnedFd>), Failure> {
        let null = || -> Result<OwnedFd, Failure> {
            let file = File::options().read(true).write(true).open("/dev/null");
            Ok(file.map_err(|error| Code::Unknown.failure(format!("open /dev/null: {error}")))?.into())
        };
        let or_null = |end: Option<OwnedFd>| end.map_or_else(null, Ok).map(Some);
        let console = self.console.map(OwnedFd::from);
        if console.is_some() {
            return Ok((Stdio::default(), console));
        }
        let stdio = Stdio { stdin: or_null(self.stdin)?, stdout: or_null(self.stdout)?, stderr: or_null(self.stderr)? };
        Ok((stdio, None))
    }
}

fn invalid(message: String) -> Failure {
    Code::InvalidArgument.failure(message)
}

/// Where the state of a bundle's container is, if it is not in the bundle: for whoever clears up after us.
pub fn other_root(bundle: &Path) -> io::Result<Option<PathBuf>> {
    match fs::read(bundle.join(ROOT_RECORD)) {
        Ok(path) => Ok(Some(OsString::from_vec(path).into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Task.Create.
pub fn create(
    root: &Path,
    request: task::CreateTaskRequest,
    options: &runc::Options,
    ends: ProcessEnds,
) -> Result<Vec<u8>, Failure> {
    if !options.root.is_empty() {
        let record = Path::new(&request.bundle).join(ROOT_RECORD);
        let written = fs::write(&record, root.as_os_str().as_bytes());
        written.map_err(|error| Code::Unknown.failure(format!("write {}: {error}", record.display())))?;
    }
    let (stdio, console_fd) = ends.into_runtime()?;
    let create = CreateOptions {
        bundle: PathBuf::from(&request.bundle),
        stdio,
        console_fd,
        no_pivot: options.no_pivot_root,
        no_new_keyring: options.no_new_keyring,
        systemd_cgroup: options.systemd_cgroup,
        rootfs_mounts: request.rootfs.into_iter().map(rootfs_mount).collect(),
        parent: Parent::Grandparent,
        ..CreateOptions::default()
    };
    let runtime = Runtime::new(root);
    let pid = runtime.create(&request.id, create)?;
    let detail = runtime.detail(&request.id)?;
    let oom_file = oom_file(&detail.cgroup).unwrap_or_default();
    Ok(Created { pid, own_pid_namespace: detail.own_pid_namespace, oom_file, ..Created::default() }.encode())
}

/// containerd's mount in the runtime's terms.
pub fn rootfs_mount(mount: Mount) -> RootfsMount {
    RootfsMount { fstype: mount.r#type, source: mount.source, target: mount.target, options: mount.options }
}

/// Clears up after a create that was cut off at any point: there may be a record or none, a cgroup or none.
pub fn undo_create(root: &Path, id: &str, bundle: &Path, systemd: bool) -> Result<Vec<u8>, Failure> {
    delete(root, id)?;
    clear_cgroup(id, bundle, systemd)?;
    Ok(Vec::new())
}

/// Kills what is in the cgroup that a container's config.json names, and removes it.
pub fn clear_cgroup(id: &str, bundle: &Path, systemd: bool) -> Result<(), Failure> {
    let config = bundle.join("config.json");
    let failed = |error: String| Code::Unknown.failure(format!("clear up after {}: {error}", config.display()));
    let text = fs::read(&config).map_err(|error| failed(error.to_string()))?;
    let config: serde_json::Value = serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
    let path = config["linux"]["cgroupsPath"].as_str().map(Path::new);
    if systemd {
        let unit = CgroupOptions { systemd, ..CgroupOptions::new(path, id) };
        return Cgroup::remove_remains(&unit).map_err(|error| failed(error.to_string()));
    }
    let path = CgroupPath::new(path, id).map_err(|error| failed(error.to_string()))?;
    let Some(cgroup) = Cgroup::find(&path).map_err(|error| failed(error.to_string()))? else { return Ok(()) };
    cgroup.kill_all(SIGKILL).map_err(|error| failed(error.to_string()))?;
    cgroup.remove().map_err(|error| failed(error.to_string()))
}

/// Where the kernel counts a cgroup's OOM kills.
pub fn oom_file(cgroup: &CgroupState) -> Option<String> {
    let file = match cgroup.version {
        Version::V1 => {
            let memory = |name: &String| name == "memory";
            cgroup.groups.iter().find(|group| group.controllers.iter().any(memory))?.path.join("memory.oom_control")
        }
        Version::V2 => cgroup.groups.first()?.path.join("memory.events"),
    };
    file.into_os_string().into_string().ok()
}

/// Task.Start of a container.
pub fn start(root: &Path, id: &str) -> Result<Vec<u8>, Failure> {
    Runtime::new(root).start(id)?;
    Ok(Vec::new())
}

/// Task.Start of an exec: answers its pid. A command of the copier's name is this program, with the container's rights.
pub fn exec(root: &Path, id: &str, spec: &[u8], terminal: bool, ends: ProcessEnds) -> Result<Vec<u8>, Failure> {
    let mut process: Process =
        serde_json::from_slice(spec).map_err(|error| invalid(format!("process to exec in {id}: {error}")))?;
    process.terminal = terminal;
    let (stdio, console_fd) = ends.into_runtime()?;
    let own = process.args.first().is_some_and(|name| name == inside::NAME);
    let program = own.then(|| File::open("/proc/self/exe").map(OwnedFd::from)).transpose();
    let program = program.map_err(|error| invalid(format!("open this program for {}: {error}", inside::NAME)))?;
    let parent = Parent::Grandparent;
    let options = ExecOptions { process, program, stdio, console_fd, parent, ..ExecOptions::default() };
    let pid = Runtime::new(root).exec(id, options)?;
    Ok(Created { pid, ..Created::default() }.encode())
}

/// Task.Kill of the init.
pub fn kill(root: &Path, id: &str, signal: i32) -> Result<Vec<u8>, Failure> {
    Runtime::new(root).kill(id, signal, false)?;
    Ok(Vec::new())
}

/// Task.Kill with `all`, and the end of what a dead container leaves running.
pub fn kill_all(root: &Path, id: &str, signal: i32) -> Result<Vec<u8>, Failure> {
    Runtime::new(root).kill(id, signal, true)?;
    Ok(Vec::new())
}

/// Task.Kill with `all` of an exec: it and what it has started, as far as that is in the container.
pub fn kill_tree(id: &str, leader: i32) -> Result<Vec<u8>, Failure> {
    let processes = || -> Vec<family::Process> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let stats = entries.filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit));
        stats.filter_map(|entry| family::Process::parse(&fs::read_to_string(entry.path().join("stat")).ok()?)).collect()
    };
    // Through a handle, so that the one that was looked at is the one that is killed.
    let kill = |pid: i32| {
        let Ok(handle) = sys::pidfd(pid) else { return false };
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        is_in_container(&cgroups, id) && sys::signal_by_pidfd(&handle, SIGKILL).is_ok()
    };
    family::kill_all(leader, processes, kill);
    Ok(Vec::new())
}

/// Whether a process' cgroups are a container's: a part of their paths is its id, or systemd's unit for it.
fn is_in_container(cgroups: &str, id: &str) -> bool {
    let of_unit = |part: &str| part.strip_suffix(".scope").is_some_and(|unit| unit.ends_with(id));
    cgroups.split(['/', '\n']).any(|part| part == id || of_unit(part))
}

/// Task.Delete of a container.
pub fn delete(root: &Path, id: &str) -> Result<Vec<u8>, Failure> {
    match Runtime::new(root).delete(id, true) {
        // Gone already: that is what was asked for.
        Ok(()) | Err(coracle_runtime::Error::NotFound(_)) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// Task.Pause and Task.Resume.
pub fn freeze(root: &Path, id: &str, frozen: bool) -> Result<Vec<u8>, Failure> {
    let runtime = Runtime::new(root);
    if frozen {
        runtime.pause(id)?
    } else {
        runtime.resume(id)?
    }
    Ok(Vec::new())
}

/// Task.Update.
pub fn update(root: &Path, id: &str, resources: &[u8]) -> Result<Vec<u8>, Failure> {
    let resources: LinuxResources =
        serde_json::from_slice(resources).map_err(|error| invalid(format!("resources for {id}: {error}")))?;
    Runtime::new(root).update(id, &resources)?;
    Ok(Vec::new())
}

/// Task.Pids; `execs` are the pids of processes started by Exec.
pub fn pids(root: &Path, id: &str, execs: &[(i32, String)]) -> Result<Vec<u8>, Failure> {
    Ok(process_list(Runtime::new(root).pids(id)?, execs))
}

/// The answer to Task.Pids.
pub fn process_list(pids: Vec<i32>, execs: &[(i32, String)]) -> Vec<u8> {
    let info = |pid: i32| {
        let exec = execs.iter().find(|(other, _)| *other == pid);
        let info = exec.map(|(_, id)| any::pack(&runc::ProcessDetails { exec_id: id.clone() }));
        ProcessInfo { pid: pid as u32, info }
    };
    let processes = pids.into_iter().map(info).collect();
    task::PidsResponse { processes }.encode_to_vec()
}

/// Task.Stats.
pub fn stats(root: &Path, id: &str, oom_file: &str) -> Result<Vec<u8>, Failure> {
    let stats = Runtime::new(root).stats(id)?;
    let version = if oom_file.ends_with(crate::exits::V2_EVENTS) { Version::V2 } else { Version::V1 };
    Ok(stats_answer(&stats, version, oom_file))
}

/// The answer to Task.Stats.
pub fn stats_answer(stats: &Stats, version: Version, oom_file: &str) -> Vec<u8> {
    let stats = crate::stats::message(stats, version, &crate::exits::MemoryCounts::read(oom_file));
    task::StatsResponse { stats: Some(stats) }.encode_to_vec()
}

/// Makes the pod's cgroup and notes in `record` where it is, for its removal by whoever comes to it.
pub fn make_pod_cgroup(record: &Path, path: &str, resources: &[u8]) -> Result<Vec<u8>, Failure> {
    let unknown = |text: String| Code::Unknown.failure(text);
    let resources = if resources.is_empty() { None } else { Some(pod_resources(resources)?) };
    CgroupPath::new(Some(Path::new(path)), path).map_err(|error| invalid(error.to_string()))?;
    let options = CgroupOptions::new(Some(Path::new(path)), path);
    let cgroup = Cgroup::create(&options, resources.as_ref()).map_err(|error| unknown(error.to_string()))?;
    let saved = serde_json::to_vec(&cgroup.state()).map_err(|error| unknown(error.to_string()));
    let saved = saved.and_then(|text| {
        fs::write(record, text).map_err(|error| unknown(format!("write {}: {error}", record.display())))
    });
    if let Err(failure) = saved {
        // Nobody could find it again: it goes, or its removal fails for the same reason as the note.
        let _ = cgroup.remove();
        return Err(failure);
    }
    Ok(Vec::new())
}

fn pod_resources(resources: &[u8]) -> Result<LinuxResources, Failure> {
    serde_json::from_slice(resources).map_err(|error| invalid(format!("resources of the sandbox: {error}")))
}

/// Control.UpdateSandbox: the limits of the pod's cgroup.
pub fn update_pod_cgroup(record: &Path, resources: &[u8]) -> Result<Vec<u8>, Failure> {
    let resources = pod_resources(resources)?;
    let Some(saved) = pod_cgroup(record)? else {
        return Err(Code::FailedPrecondition.failure("update the sandbox: it was made without a cgroup".into()));
    };
    let updated = Cgroup::open(&saved).apply(&resources);
    updated.map_err(|error| Code::Unknown.failure(format!("update the sandbox: {error}")))?;
    Ok(Vec::new())
}

/// Where the pod's cgroup is, if it has one.
pub fn pod_cgroup(record: &Path) -> Result<Option<CgroupState>, Failure> {
    let Ok(text) = fs::read(record) else { return Ok(None) };
    let failed = |error| Code::Unknown.failure(format!("read {}: {error}", record.display()));
    serde_json::from_slice(&text).map(Some).map_err(failed)
}

/// Clears up after all containers and removes the pod's cgroup: the last thing done for a sandbox.
pub fn release(containers: &[(String, Oci)], bundle: &Path, sandbox: &str) -> Result<Vec<u8>, Failure> {
    for (id, oci) in containers {
        oci.perform(id, Act::Delete { logger: None })?;
    }
    crate::shim::end(&bundle.join(crate::shim::FOLDER), sandbox)?;
    crate::vm::release(&bundle.join(crate::vm::FOLDER))?;
    remove_pod_cgroup(&bundle.join(crate::sandbox::CGROUP_RECORD))?;
    Ok(Vec::new())
}

/// Removes the pod's cgroup, if one was recorded.
pub fn remove_pod_cgroup(record: &Path) -> Result<(), Failure> {
    let Some(saved) = pod_cgroup(record)? else { return Ok(()) };
    let unknown = |text: String| Code::Unknown.failure(text);
    Cgroup::open(&saved).remove().map_err(|error| unknown(error.to_string()))?;
    fs::remove_file(record).map_err(|error| unknown(format!("remove {}: {error}", record.display())))
}
