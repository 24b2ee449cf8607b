//! Templates: machines that have booted once and are then copied, for pods that cannot wait for a kernel.
//!
//! ```text
//! <template_folder>/<boot id>-<key>/memory    the guest's memory, a sparse file
//!                                   state     everything else of the machine
//! ```
//! The key is made of all that a machine depends on: the monitor and its arguments (so the size, and whether it is
//! emulated), kernel, initial root filesystem. A template is made by the first pod that wants it, as root alone and with
//! nothing of that pod in it: the guest has booted, its init waits for a first word. It appears whole, and is of no use
//! after the host has booted anew, when another removes it.
//!
//! A copy has the template's memory in a file of its own: nothing is shared with other machines, neither for writing nor
//! for the eye of a cache's observer, and its pages count for its own cgroup. What copies would have in common is made
//! anew when they are set up: the seed of random numbers, the clock, the name, the network. The addresses of the kernel
//! stay those of the template, which is why a handler has to ask for templates.

use super::boot::{self, Launch, Plan, Users};
use super::check;
use super::vmm::{Descriptors, MEMORY, Spec, vmm};
use super::{AGENT_SOCKET, CONSOLE_LOG, QMP_SOCKET, ROOT, net, sparse};
use crate::failure::{Fail, Failure};
use crate::sys;
use coracle_proto::coracle::VmOptions;
use coracle_proto::ttrpc::Code;
use nix::fcntl::{Flock, FlockArg};
use nix::libc::SIGKILL;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use sha2::{Digest, Sha256};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

const MEMORY_FILE: &str = "memory";
const STATE_FILE: &str = "state";
const LOCK: &str = "lock";
/// Begins the name of one that is being made.
const MAKING: &str = "making-";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The guest's init opens its port and then goes to sleep: a moment later nothing moves.
const SETTLE: Duration = Duration::from_millis(300);

fn failed(what: &str, error: io::Error) -> Failure {
    Code::Unknown.failure(format!("make a template: {what}: {error}"))
}

/// The template for such a machine, which is made if there is none. In a worker.
pub fn get(options: &VmOptions, spec: &Spec, initrd: &Path) -> Result<PathBuf, Failure> {
    let all = Path::new(&options.template_folder);
    DirBuilder::new().recursive(true).mode(0o700).create(all).map_err(|e| failed(&options.template_folder, e))?;
    let boot = fs::read_to_string(BOOT_ID).map_err(|error| failed(BOOT_ID, error))?;
    let spec = Spec { memory_file: true, incoming: false, ..spec.clone() };
    let folder = all.join(format!("{}-{}", boot.trim(), key(options, &spec, initrd)?));
    let there = || folder.join(STATE_FILE).exists();
    if there() {
        return Ok(folder);
    }
    let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(all.join(LOCK));
    let lock = lock.map_err(|error| failed(LOCK, error))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| failed(LOCK, error.into()))?;
    if there() {
        return Ok(folder);
    }
    remove_old(all, boot.trim());
    let making = all.join(format!("{MAKING}{}", std::process::id()));
    let made = make(options, spec, initrd, &making);
    let made = made.and_then(|()| fs::rename(&making, &folder).map_err(|error| failed("rename it", error)));
    if made.is_err() {
        let _ = fs::remove_dir_all(&making);
    }
    made.map(|()| folder)
}

/// What a machine depends on, in a name.
fn key(options: &VmOptions, spec: &Spec, initrd: &Path) -> Result<String, Failure> {
    let nothing = Descriptors { agent: 0, control: 0, tap: Some(0), share: None };
    let mut words = vmm().arguments(spec, &nothing);
    for file in [Path::new(&options.vmm), Path::new(&options.kernel), initrd] {
        words.push(check::identity(file)?);
    }
    Ok(check::hex(&Sha256::digest(words.join("\n").as_bytes())[..16]))
}

/// Under the lock nobody makes another; those of an earlier boot nobody uses.
fn remove_old(all: &Path, boot: &str) {
    for entry in fs::read_dir(all).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name != LOCK && !name.to_string_lossy().starts_with(boot) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn make(options: &VmOptions, spec: Spec, initrd: &Path, folder: &Path) -> Result<(), Failure> {
    let folder_failed = |error| failed(&folder.display().to_string(), error);
    DirBuilder::new().recursive(true).mode(0o700).create(folder.join(ROOT)).map_err(folder_failed)?;
    let tap = tap_of_its_own().map_err(|error| failed("a network for it", error))?;
    let listening = |name| super::listen(folder, name).map_err(|error| failed(name, error));
    let (agent, control) = (listening(AGENT_SOCKET)?, listening(QMP_SOCKET)?);
    let console: OwnedFd = File::create(folder.join(CONSOLE_LOG)).map_err(folder_failed)?.into();
    let descriptors =
        Descriptors { agent: agent.as_raw_fd(), control: control.as_raw_fd(), tap: Some(tap.as_raw_fd()), share: None };
    let plan = Plan { spec, initrd: initrd.into(), cgroup: None, template: None };
    let user = Users::of(&folder.to_string_lossy()).monitor;
    let (program, kernel) = (options.vmm.as_str(), options.kernel.as_str());
    let launch = Launch { program, kernel, plan: &plan, folder, user, descriptors, console: &console };
    let pid = boot::launch(&launch).map_err(|error| failed("fork", error))?;
    drop((agent, control, tap));
    let saved = save(pid, folder, plan.spec.accelerator.boot_patience());
    let _ = sys::kill(pid, SIGKILL);
    let _ = waitpid(Pid::from_raw(pid), None);
    saved.map_err(|failure| {
        let said = super::console::last_of(fs::read_to_string(folder.join(CONSOLE_LOG)).unwrap_or_default().lines());
        failure.code.failure(format!("make a template: {}; its console: {said}", failure.message))
    })?;
    for name in [AGENT_SOCKET, QMP_SOCKET, super::qmp::LOCK, CONSOLE_LOG] {
        fs::remove_file(folder.join(name)).map_err(folder_failed)?;
    }
    fs::remove_dir(folder.join(ROOT)).map_err(folder_failed)
}

/// A network device as a pod's machine has it, in a namespace that goes with it.
fn tap_of_its_own() -> io::Result<OwnedFd> {
    let own = File::open("/proc/thread-self/ns/net")?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    let tap = net::open_tap(None);
    setns(own, CloneFlags::CLONE_NEWNET)?;
    tap
}

fn save(pid: i32, folder: &Path, patience: Duration) -> Result<(), Failure> {
    vmm().wait_for_port(folder, patience)?;
    std::thread::sleep(SETTLE);
    let create = |name: &str| File::options().write(true).create_new(true).mode(0o600).open(folder.join(name));
    let state = create(STATE_FILE).map_err(|error| failed(STATE_FILE, error))?;
    vmm().save(folder, &state)?;
    // In the monitor's own mount namespace, while there is a monitor.
    let copied = File::open(format!("/proc/{pid}/root{MEMORY}")).and_then(|memory| {
        let copy = create(MEMORY_FILE)?;
        copy.set_len(memory.metadata()?.len())?;
        sparse::copy(&memory, &copy)
    });
    copied.map_err(|error| failed(MEMORY_FILE, error))
}

/// The memory that a copy begins with.
pub fn memory(template: &Path) -> io::Result<File> {
    File::open(template.join(MEMORY_FILE))
}

/// Makes a machine that waits for it a copy of the template, which then runs. In a worker.
pub fn restore(folder: &Path, template: &Path) -> Result<(), Failure> {
    let state = File::open(template.join(STATE_FILE));
    let state = state.map_err(|error| Code::Unknown.failure(format!("open {}: {error}", template.display())))?;
    vmm().restore(folder, &state)
}
