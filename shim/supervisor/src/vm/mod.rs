//! A pod in a virtual machine, on the host's side.
//!
//! ```text
//! CreateSandbox    a worker prepares (boot: cgroups, digests, KVM or not), then the main process starts
//!                    the monitor, QEMU (vmm, qemu; in its jail), which boots while the network's plugins run
//!                    the link, which shows the guest's sockets here
//!                    or, with a template, it is restored (template)
//! ConnectNetwork   a worker waits for the guest (client), tells it time, randomness, network, and makes it the pod
//! Task.*           workers speak with the guest as with a shim; disks are plugged in (disk, qmp)
//! StopSandbox      containers end in the guest, then the monitor is killed
//! the monitor dies the machine is lost: everything in it has exited with 137, for a reason that is told; the pod ends
//! the link dies    it is started again
//! the server dies  of folders that are shared (share): the machine is ended
//! ```
//! `<bundle>/vm/`, for root alone:
//!
//! ```text
//! agent.sock qmp.sock             the monitor's: listening descriptors that it inherits
//! task.sock attach.sock dial.sock the guest's, by the link, which inherits them: they survive it
//! machine.json                    pid and start of the monitor; how it ended
//! console.log                     what the guest's console and the monitor say
//! disks.json cgroup.json          what is plugged in; where the monitor's cgroup is
//! root/                           where the monitor's root is mounted, in its own namespace
//! share/                          where the shared folder is mounted, in its server's namespace
//! up                              the guest has answered
//! ```
//! Nothing that the guest says is trusted: its answers are decoded with limits, and no path in them is used here.

mod boot;
mod check;
pub mod client;
mod console;
pub mod disk;
mod flow;
mod initrd;
mod jail;
pub mod net;
pub mod probe;
pub mod pump;
mod qemu;
mod qmp;
mod share;
mod sparse;
pub mod spec;
pub mod task;
mod template;
mod vmm;
pub mod volume;

use crate::connection::Call;
use crate::exits::Exit;
use crate::failure::{Fail, Failure};
use crate::link::{Listeners, start_host};
use crate::ops;
use crate::sandbox::{CGROUP_RECORD, Sandbox};
use crate::service::{Outcome, done};
use crate::supervisor::{Job, Supervisor};
use crate::sys;
use crate::worker::DIED;
pub use boot::release;
use boot::{Launch, Plan, Users};
pub use client::client;
use coracle_proto::coracle::{NamespaceMode, SandboxOptions, VmOptions};
use coracle_proto::ttrpc::Code;
use nix::libc::SIGKILL;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, socket};
use serde::{Deserialize, Serialize};
use share::Share;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};
use vmm::{Accelerator, Descriptors};

/// The folder's name in the sandbox's bundle.
pub const FOLDER: &str = "vm";
const AGENT_SOCKET: &str = "agent.sock";
const QMP_SOCKET: &str = qmp::SOCKET;
const TASK_SOCKET: &str = "task.sock";
/// Attach clients of the guest's processes connect here.
pub const ATTACH_SOCKET: &str = "attach.sock";
const DIAL_SOCKET: &str = "dial.sock";
const MACHINE: &str = "machine.json";
const CONSOLE_LOG: &str = "console.log";
const CGROUP: &str = "cgroup.json";
const ROOT: &str = "root";
/// Between two tries to reach the guest.
const DIAL_PAUSE: Duration = Duration::from_millis(20);
/// Before a link that has died is started again.
const LINK_PAUSE: Duration = Duration::from_millis(200);
/// What `reason` in exit.json says of a container whose machine is lost.
pub const LOST: &str = "VirtualMachineLost";
/// As of a process that was killed, which it was.
const LOST_STATUS: u32 = 128 + SIGKILL as u32;

/// What is known of a machine, by who only knows its folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Machine {
    pid: i32,
    accelerator: Accelerator,
    began: SystemTime,
    /// The shared folder's server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    share: Option<Share>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ended: Option<String>,
}

impl Machine {
    fn save(&self, folder: &Path) -> io::Result<()> {
        let new = folder.join(".machine.json.new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(&new, folder.join(MACHINE))
    }

    /// The machine of a folder, if it lives.
    fn living(folder: &Path) -> Result<Machine, Failure> {
        let read = fs::read(folder.join(MACHINE)).and_then(|text| Ok(serde_json::from_slice::<Machine>(&text)?));
        let gone = |error: io::Error| Code::Unavailable.failure(format!("there is no virtual machine: {error}"));
        let machine = read.map_err(gone)?;
        match machine.ended {
            None => Ok(machine),
            Some(why) => Err(Code::Unavailable.failure(why)),
        }
    }

    fn boot_time_left(&self) -> Duration {
        let patience = self.accelerator.boot_patience();
        patience.saturating_sub(self.began.elapsed().unwrap_or_default())
    }
}

/// How far the guest knows of the pod's network, and so of the pod.
enum Stage {
    Booting,
    /// A worker is at it, for these calls.
    Connecting(Vec<Call>),
    Connected,
}

/// The pod's machine.
pub struct Vm {
    folder: PathBuf,
    machine: Machine,
    /// What the guest's sandbox is to be.
    guest: SandboxOptions,
    users: Users,
    /// 0 when it is dead.
    monitor: i32,
    /// 0 when it is dead.
    link: i32,
    /// When to start it again.
    link_due: Option<Instant>,
    /// The shared folder's server; 0 when there is none, or it is dead.
    server: i32,
    listeners: Listeners,
    netns: OwnedFd,
    console: u32,
    stage: Stage,
    /// By the guest's count.
    pid_ns_pid: i32,
    /// It is being ended: its death is no loss.
    ending: bool,
    /// Why it had to be killed.
    failure: Option<String>,
}

impl Vm {
    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The first process of the pod's PID namespace, as the guest counts.
    pub fn pid_ns_pid(&self) -> Option<i32> {
        (self.pid_ns_pid != 0).then_some(self.pid_ns_pid)
    }

    /// What SandboxStatus tells of it. The first process of the pod's PID namespace is as the guest counts.
    pub fn info(&self) -> Vec<(&'static str, String)> {
        let how = if self.machine.accelerator.is_kvm() { "kvm" } else { "emulation" };
        let mut info = vec![("vm_pid", self.monitor.to_string()), ("vm_accelerator", how.to_owned())];
        info.extend(self.pid_ns_pid().map(|pid| ("pid_ns_pid", pid.to_string())));
        info
    }

    /// The guest knows its network.
    pub fn is_connected(&self) -> bool {
        matches!(self.stage, Stage::Connected)
    }

    /// The monitor runs.
    pub fn lives(&self) -> bool {
        self.monitor != 0
    }

    /// How the machine was lost, if it was.
    pub fn lost(&self) -> Option<&str> {
        self.machine.ended.as_deref().filter(|_| !self.ending)
    }

    /// Kills monitor and link: nothing in the guest is of use any more.
    pub fn kill(&mut self) {
        self.ending = true;
        for pid in [self.monitor, self.link, self.server].into_iter().filter(|pid| *pid != 0) {
            let _ = sys::kill(pid, SIGKILL);
        }
    }

    /// The guest would wait for its shared folder for ever. A server ends, too, when the monitor does: that has given up
    /// its program's memory before its connections.
    fn server_died(&mut self, exit: &Exit) {
        if !self.lives() || self.ending {
            return;
        }
        if fs::read_link(format!("/proc/{}/exe", self.monitor)).is_ok() {
            let why = format!("the server of its shared folder has ended, {}", how_ended(exit));
            self.failure.get_or_insert(why);
        }
        let _ = sys::kill(self.monitor, SIGKILL);
    }

    fn start_link(&mut self) -> io::Result<()> {
        self.link = start_host(&self.folder, &self.listeners, Some(self.users.link))?;
        Ok(())
    }
}

fn how_ended(exit: &Exit) -> String {
    match exit.signal {
        Some(signal) => format!("killed by signal {signal}"),
        None => format!("exit code {}", exit.status),
    }
}

/// Whether a pod with these options can be in a virtual machine: its kernel knows nothing of the node's namespaces.
pub fn check_namespaces(options: &SandboxOptions) -> Result<(), Failure> {
    if options.vm.is_none() {
        return Ok(());
    }
    let node = i32::from(NamespaceMode::Node);
    for (name, mode) in [("network", options.network), ("IPC", options.ipc), ("PID", options.pid), ("UTS", options.uts)]
    {
        if mode == node {
            let text = format!("a pod in a virtual machine cannot use the node's {name} namespace");
            return Err(Code::InvalidArgument.failure(text));
        }
    }
    if options.user_namespace.is_some() {
        let text = "a pod in a virtual machine has another kernel's users: user_namespace cannot be used";
        return Err(Code::InvalidArgument.failure(text.into()));
    }
    Ok(())
}

/// Prepares the machine of a sandbox, in a worker: what it reports is for [`Supervisor::start_vm`]. What was made before
/// for the sandbox is taken back on failure.
pub fn prepare(options: &VmOptions, bundle: &Path, cgroup: &str) -> Result<Vec<u8>, Failure> {
    let folder = bundle.join(FOLDER);
    let plan = boot::prepare(options, &folder, cgroup);
    let plan = plan.and_then(|plan| {
        serde_json::to_vec(&plan).map_err(|error| Code::Internal.failure(format!("the plan of the machine: {error}")))
    });
    plan.inspect_err(|_| take_back(bundle))
}

fn take_back(bundle: &Path) {
    let taken = release(&bundle.join(FOLDER)).and_then(|()| ops::remove_pod_cgroup(&bundle.join(CGROUP_RECORD)));
    if let Err(failure) = taken {
        eprintln!("{}", failure.message);
    }
}

/// The guest's sandbox.
fn guest_options(options: &SandboxOptions) -> SandboxOptions {
    SandboxOptions {
        hostname: options.hostname.clone(),
        domainname: options.domainname.clone(),
        network: NamespaceMode::Node.into(),
        pid: options.pid,
        sysctls: options.sysctls.clone(),
        ..SandboxOptions::default()
    }
}

/// Binds a socket in a folder, however long its path is.
fn listen(folder: &Path, name: &str) -> io::Result<UnixListener> {
    let folder = File::open(folder)?;
    let path = by_descriptor(&folder, name);
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Connects to a socket in a folder, however long its path is, at once or not at all: nobody waits for a queue that the
/// guest keeps full.
fn connect(folder: &Path, name: &str) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let made = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let folder = File::open(folder)?;
    socket::connect(made.as_raw_fd(), &UnixAddr::new(&by_descriptor(&folder, name))?)?;
    Ok(made.into())
}

fn by_descriptor(folder: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))
}

impl Sandbox {
    /// Ends the machine. True if none runs any more.
    pub fn end_vm(&mut self) -> bool {
        let Some(vm) = self.vm.as_mut().filter(|vm| vm.lives()) else { return true };
        vm.kill();
        false
    }

    /// The containers of a machine do not end: it is ended itself. False if that was done before.
    pub fn vm_hangs(&mut self) -> bool {
        let hangs = self.vm.as_ref().is_some_and(|vm| vm.lives() && !vm.ending);
        hangs && !self.end_vm()
    }

    /// Why the pod's containers have ended, if that is because its machine was lost.
    pub fn lost(&self) -> Option<&str> {
        self.vm.as_ref().and_then(|vm| vm.lost())
    }
}

impl Supervisor {
    /// Starts the machine that a worker has prepared.
    pub(crate) fn start_vm(&mut self, plan: &[u8]) -> Result<(), Failure> {
        let malformed = |error| Code::Internal.failure(format!("the worker's plan of the machine: {error}"));
        let plan: Plan = serde_json::from_slice(plan).map_err(malformed)?;
        let failed =
            |what: &str, error: io::Error| Code::Unknown.failure(format!("start the virtual machine: {what}: {error}"));
        let folder = self.sandbox.bundle.join(FOLDER);
        let options = self.sandbox.options().vm.clone().unwrap_or_default();
        let users = Users::of(&self.sandbox.id);
        let listening = |name| listen(&folder, name).map_err(|error| failed(name, error));
        let (agent, control) = (listening(AGENT_SOCKET)?, listening(QMP_SOCKET)?);
        let listeners = Listeners {
            task: listening(TASK_SOCKET)?,
            attach: listening(ATTACH_SOCKET)?,
            dial: listening(DIAL_SOCKET)?,
        };
        let netns = File::open("/proc/self/ns/net").map_err(|error| failed("its network namespace", error))?;
        let tap = net::open_tap(None).map_err(|error| failed("its network", error))?;
        let (console, theirs) = self.open_console(&folder)?;
        let (share, served) = match options.host_paths.is_empty() {
            true => (None, None),
            false => {
                let launched = share::launch(&folder, plan.cgroup.as_ref(), &theirs);
                let (pid, stream) = launched.map_err(|error| failed("the server of its shared folder", error))?;
                (Some(Share { pid, folders: options.host_paths.iter().map(PathBuf::from).collect() }), Some(stream))
            }
        };
        let descriptors = Descriptors {
            agent: agent.as_raw_fd(),
            control: control.as_raw_fd(),
            tap: Some(tap.as_raw_fd()),
            share: served.as_ref().map(AsRawFd::as_raw_fd),
        };
        let (program, kernel) = (options.vmm.as_str(), options.kernel.as_str());
        let launch = Launch {
            program,
            kernel,
            plan: &plan,
            folder: &folder,
            user: users.monitor,
            descriptors,
            console: &theirs,
        };
        let monitor = boot::launch(&launch).map_err(|error| failed("fork", error))?;
        let (accelerator, began) = (plan.spec.accelerator, SystemTime::now());
        let mut vm = Vm {
            server: share.as_ref().map_or(0, |share| share.pid),
            machine: Machine { pid: monitor, accelerator, began, share, ended: None },
            guest: guest_options(self.sandbox.options()),
            folder,
            users,
            monitor,
            link: 0,
            link_due: None,
            listeners,
            netns: netns.into(),
            console,
            stage: Stage::Booting,
            pid_ns_pid: 0,
            ending: false,
            failure: None,
        };
        let started = vm.machine.save(&vm.folder).and_then(|()| vm.start_link());
        if started.is_err() {
            vm.kill();
        }
        let folder = vm.folder.clone();
        self.sandbox.vm = Some(Box::new(vm));
        started.map_err(|error| failed("its link", error))?;
        let Some(template) = plan.template else { return Ok(()) };
        self.work(Job::RestoreVm, &[], Box::new(move || template::restore(&folder, &template).map(|()| Vec::new())))
    }

    /// The worker that makes the machine from its template has reported.
    pub(crate) fn vm_restored(&mut self, result: Result<Vec<u8>, Failure>) {
        let (Err(failure), Some(vm)) = (result, &mut self.sandbox.vm) else { return };
        if vm.lives() && !vm.ending {
            vm.failure = Some(failure.message);
            // Its death tells everyone.
            let _ = sys::kill(vm.monitor, SIGKILL);
        }
    }

    /// Control.ConnectNetwork
    pub(crate) fn connect_network(&mut self, call: Call, _: &[u8]) -> Outcome {
        match &self.sandbox.vm {
            Some(vm) if !vm.is_connected() => self.connect_machine(vec![call]).map(|()| None),
            _ => done(),
        }
    }

    /// Has the guest told its network, for these calls.
    pub(crate) fn connect_machine(&mut self, asked: Vec<Call>) -> Result<(), Failure> {
        let Some(vm) = &mut self.sandbox.vm else { return Ok(()) };
        Machine::living(&vm.folder)?;
        match &mut vm.stage {
            Stage::Connected => {}
            Stage::Connecting(calls) => calls.extend(asked),
            Stage::Booting => {
                vm.stage = Stage::Connecting(asked);
                let (folder, id, guest) = (vm.folder.clone(), self.sandbox.id.clone(), vm.guest.clone());
                let netns = vm.netns.try_clone().map(File::from);
                let netns =
                    netns.map_err(|error| Code::Unknown.failure(format!("the pod's network namespace: {error}")))?;
                let keep = [netns.as_raw_fd()];
                let body = Box::new(move || {
                    let network = net::connect(Some(&netns))?;
                    let pid = client::set_up(&folder, &id, network, &guest)?;
                    Ok(pid.to_le_bytes().to_vec())
                });
                if let Err(failure) = self.work(Job::ConnectNetwork, &keep, body) {
                    self.network_connected(Err(failure));
                }
            }
        }
        Ok(())
    }

    /// The worker of ConnectNetwork has reported.
    pub(crate) fn network_connected(&mut self, result: Result<Vec<u8>, Failure>) {
        let Some(vm) = &mut self.sandbox.vm else { return };
        let Stage::Connecting(calls) = std::mem::replace(&mut vm.stage, Stage::Booting) else { return };
        let result = result.map_err(|failure| match failure.code {
            DIED => Code::Unavailable.failure("the sandbox was stopped before its virtual machine was ready".into()),
            _ => failure,
        });
        let result = result.and_then(|pid| {
            let malformed = || Code::Internal.failure("the worker's report is malformed".into());
            let pid: [u8; 4] = pid.try_into().map_err(|_| malformed())?;
            vm.pid_ns_pid = i32::from_le_bytes(pid);
            vm.stage = Stage::Connected;
            Ok(Vec::new())
        });
        if result.is_ok() {
            self.sandbox.expect_tender();
        }
        for call in calls {
            self.answer(call, result.clone());
        }
        self.machine_ready(result.map(drop));
    }

    /// A child was reaped. False if it is neither the monitor nor the link.
    pub(crate) fn vm_died(&mut self, pid: i32, exit: &Exit) -> bool {
        let Some(vm) = &mut self.sandbox.vm else { return false };
        if pid == vm.link {
            vm.link = 0;
            vm.link_due = vm.lives().then(|| Instant::now() + LINK_PAUSE);
            return true;
        }
        if pid == vm.server {
            vm.server = 0;
            vm.server_died(exit);
            return true;
        }
        if pid != vm.monitor {
            return false;
        }
        vm.monitor = 0;
        let (console, lost) = (vm.console, !vm.ending);
        self.streams.exited(&self.reactor, console);
        self.streams.release(&self.reactor, console);
        self.vm_ended(exit);
        let connected = self.vm_containers_end();
        if lost {
            // A pod that was still being made is waited for by who makes it; containerd deletes its containers first.
            self.lose(connected && !self.sandbox.of_containerd());
        }
        true
    }

    /// Says for everyone how the machine ended, and takes the link's reason to be.
    fn vm_ended(&mut self, exit: &Exit) {
        let Some(vm) = &mut self.sandbox.vm else { return };
        let how = vm.failure.take().unwrap_or_else(|| how_ended(exit));
        let words = match vm.ending {
            true => String::new(),
            false => console::last_words(&vm.folder),
        };
        let mut why = format!("the virtual machine has ended ({how})");
        if !words.is_empty() {
            why += &format!("; its console: {words}");
        }
        vm.machine.ended = Some(why);
        if let Err(error) = vm.machine.save(&vm.folder) {
            eprintln!("record the end of the virtual machine: {error}");
        }
        for pid in [vm.link, vm.server].into_iter().filter(|pid| *pid != 0) {
            let _ = sys::kill(pid, SIGKILL);
        }
    }

    /// The machine is gone: who waits for it waits no more, and what ran in it has ended. Whether the pod was ready.
    fn vm_containers_end(&mut self) -> bool {
        let Some(vm) = &mut self.sandbox.vm else { return false };
        let why = vm.machine.ended.clone().unwrap_or_default();
        let connected = matches!(vm.stage, Stage::Connected);
        if !vm.ending {
            eprintln!("{why}");
        }
        for (_, worker) in self.workers.iter() {
            if matches!(worker.job, Job::ConnectNetwork) {
                worker.kill();
            }
        }
        self.network_connected(Err(Code::Unavailable.failure(why)));
        let exit = Exit { status: LOST_STATUS, signal: Some(SIGKILL), at: SystemTime::now() };
        let mut processes = Vec::new();
        for container in &self.containers {
            let living = container.execs.iter().chain([&container.init]).filter(|p| p.pid != 0 && p.exit.is_none());
            processes.extend(living.map(|process| (container.id.clone(), process.exec_id.clone())));
        }
        for (id, exec) in processes {
            self.process_ended(&id, &exec, exit);
        }
        connected
    }

    /// When to start a link that has died.
    pub(crate) fn link_due(&self) -> Option<Instant> {
        self.sandbox.vm.as_ref().and_then(|vm| vm.link_due)
    }

    /// Starts the link again, once it is due.
    pub(crate) fn tick_link(&mut self) {
        let Some(vm) = &mut self.sandbox.vm else { return };
        if vm.link_due.is_some_and(|due| due <= Instant::now()) {
            vm.link_due = None;
            if vm.lives()
                && !vm.ending
                && let Err(error) = vm.start_link()
            {
                eprintln!("start the virtual machine's link again: {error}");
                vm.link_due = Some(Instant::now() + LINK_PAUSE);
            }
        }
    }
}
