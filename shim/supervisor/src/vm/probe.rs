//! Whether KVM can run this kernel: known only by having run it once. `/dev/kvm` alone says little; there are kinds of
//! KVM that take a machine and then fail at its first register.
//!
//! ```text
//! containerd-shim-coracle-v1 -vm-probe '{"vmm":"/usr/bin/qemu-system-x86_64","kernel":"/usr/lib/coracle/vm/vmlinux"}'
//! {"kvm":false,"reason":"/dev/kvm: No such file or directory"}
//! ```
//! The words are those of `coracle.v1.VmOptions`: `modules`, `manifest`, `kernel_arguments` too. The machine is started as a
//! pod's would be, in the same jail, and has booted when a program in it opens its port. The answer is kept for all who
//! ask again: until the host boots anew, or a file changes that it depends on.

use super::boot::{self, Launch, Plan, Users};
use super::check;
use super::console;
use super::jail::KVM;
use super::vmm::{Accelerator, Descriptors, Spec, vmm};
use super::{CONSOLE_LOG, QMP_SOCKET, ROOT};
use crate::failure::{Fail, Failure};
use crate::sys;
use anyhow::{Context, Result, anyhow};
use coracle_proto::coracle::VmOptions;
use coracle_proto::ttrpc::Code;
use nix::fcntl::{Flock, FlockArg};
use nix::libc::SIGKILL;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Enough for a kernel and its modules.
const MEMORY: u64 = 256 << 20;

/// What is asked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    vmm: String,
    kernel: String,
    #[serde(default)]
    modules: String,
    #[serde(default)]
    manifest: String,
    #[serde(default)]
    kernel_arguments: String,
}

/// What is answered, and kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    kvm: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    reason: String,
}

/// Runs `-vm-probe`.
pub fn tell(question: &str) -> Result<()> {
    let question: Question = serde_json::from_str(question).context("-vm-probe: read the question")?;
    let Question { vmm, kernel, modules, manifest, kernel_arguments } = question;
    let options = VmOptions { vmm, kernel, modules, manifest, kernel_arguments, ..VmOptions::default() };
    let asked = || -> Result<Option<String>, Failure> {
        for path in [&options.vmm, &options.kernel] {
            fs::metadata(path).map_err(|error| Code::NotFound.failure(format!("{path}: {error}")))?;
        }
        check::check(&options)?;
        let initrd = boot::initrd(&options)?;
        kvm(&options, &initrd)
    };
    let why = asked().map_err(|failure| anyhow!("-vm-probe: {}", failure.message))?;
    let answer = Answer { kvm: why.is_none(), reason: why.unwrap_or_default() };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    io::stdout().write_all(&text).context("-vm-probe: write the answer")
}

/// Why KVM cannot run this machine; `None` if it can. Asked of the machine itself once.
pub fn kvm(options: &VmOptions, initrd: &Path) -> Result<Option<String>, Failure> {
    if let Err(error) = fs::metadata(KVM) {
        return Ok(Some(format!("{KVM}: {error}")));
    }
    let common = check::common()?;
    let known = common.join(format!("kvm-{}.json", name(options, initrd)?));
    let failed = |error: io::Error| Code::Unknown.failure(format!("ask KVM: {}: {error}", known.display()));
    // One at a time: the others find the answer.
    let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(common.join("kvm.lock"));
    let _lock = Flock::lock(lock.map_err(failed)?, FlockArg::LockExclusive).map_err(|(_, e)| failed(e.into()))?;
    if let Some(answer) = fs::read(&known).ok().and_then(|text| serde_json::from_slice::<Answer>(&text).ok()) {
        return Ok((!answer.kvm).then_some(answer.reason));
    }
    let why = boots(options, initrd, &common).map_err(failed)?;
    let answer = Answer { kvm: why.is_none(), reason: why.clone().unwrap_or_default() };
    fs::write(&known, serde_json::to_vec(&answer).map_err(io::Error::from).map_err(failed)?).map_err(failed)?;
    Ok(why)
}

/// What an answer depends on, in a name.
fn name(options: &VmOptions, initrd: &Path) -> Result<String, Failure> {
    let boot = fs::read_to_string(BOOT_ID).unwrap_or_default();
    let files = [Path::new(&options.vmm), Path::new(&options.kernel), initrd, Path::new(KVM)];
    let files: Vec<String> = files.into_iter().map(check::identity).collect::<Result<_, _>>()?;
    let words = format!("{boot}\n{}\n{}", files.join("\n"), options.kernel_arguments);
    Ok(check::hex(&Sha256::digest(words.as_bytes())[..16]))
}

/// Boots the machine once, in a folder of its own. Why it did not.
fn boots(options: &VmOptions, initrd: &Path, common: &Path) -> io::Result<Option<String>> {
    let folder = common.join(format!("probe-{}", std::process::id()));
    DirBuilder::new().mode(0o700).recursive(true).create(folder.join(ROOT))?;
    let booted = boot_in(options, initrd, &folder);
    let removed = fs::remove_dir_all(&folder);
    booted.and_then(|why| removed.map(|()| why))
}

fn boot_in(options: &VmOptions, initrd: &Path, folder: &Path) -> io::Result<Option<String>> {
    let users = Users::of(&folder.to_string_lossy());
    let agent = super::listen(folder, super::AGENT_SOCKET)?;
    let control = super::listen(folder, QMP_SOCKET)?;
    let spec = Spec {
        accelerator: Accelerator::Kvm,
        memory_bytes: MEMORY,
        cpus: 1,
        kernel_arguments: options.kernel_arguments.clone(),
        memory_file: false,
        incoming: false,
    };
    let plan = Plan { spec, initrd: initrd.into(), cgroup: None, template: None };
    let console: OwnedFd = File::create(folder.join(CONSOLE_LOG))?.into();
    let descriptors = Descriptors { agent: agent.as_raw_fd(), control: control.as_raw_fd(), tap: None, share: None };
    let (program, kernel) = (options.vmm.as_str(), options.kernel.as_str());
    let pid = boot::launch(&Launch {
        program,
        kernel,
        plan: &plan,
        folder,
        user: users.monitor,
        descriptors,
        console: &console,
    })?;
    // Theirs alone now: when the monitor dies the connection ends.
    drop((agent, control));
    let waited = vmm().wait_for_port(folder, plan.spec.accelerator.boot_patience());
    let _ = sys::kill(pid, SIGKILL);
    waitpid(Pid::from_raw(pid), None)?;
    let said = fs::read(folder.join(CONSOLE_LOG)).unwrap_or_default();
    Ok(waited.err().map(|failure| reason(&failure.message, &String::from_utf8_lossy(&said))))
}

/// What the monitor says of KVM, else what was said last: a monitor that fails shows all the registers after its words.
fn reason(failure: &str, said: &str) -> String {
    let of_kvm = said.lines().filter(|line| line.to_ascii_lowercase().contains("kvm"));
    let words = [console::last_of(of_kvm), console::last_of(said.lines())];
    words.into_iter().find(|words| !words.is_empty()).unwrap_or_else(|| failure.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_what_is_said_of_kvm() {
        let said = "Loading\nKVM internal error. Suberror: 1\nemulation failure\nRAX=0000\nCode=8b 4c\n";
        assert_eq!(reason("late", said), "KVM internal error. Suberror: 1");
        assert_eq!(reason("late", "Kernel panic - not syncing\n"), "Kernel panic - not syncing");
        assert_eq!(reason("late", ""), "late");
    }
}
