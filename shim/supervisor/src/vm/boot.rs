//! From a pod's options to a running monitor: what a worker prepares, and what the supervisor's main process then does.
//!
//! A worker does what takes time: it reads kernels, makes the initial root filesystem and cgroups, and finds out how the
//! machine can be run. Its report is a [`Plan`]. The main process forks, since the monitor dies with its parent.
//!
//! Each pod has two users of its own, for the monitor and for the link: a number from the sandbox's id in a range that
//! the users of systems (systemd's table of them) leave alone. Neither can signal or trace another pod's, nor each other.

use super::check;
use super::jail::{Jail, Memory};
use super::vmm::{Accelerator, Descriptors, INITRD, KERNEL, MEMORY, Spec, vmm};
use super::{CGROUP, ROOT};
use super::{probe, share, template};
use crate::failure::{Fail, Failure};
use crate::sys;
use coracle_proto::coracle::VmOptions;
use coracle_proto::ttrpc::Code;
use coracle_runtime::cgroup::{Cgroup, CgroupOptions, CgroupState};
use oci_spec::runtime::{LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The first of the users for machines, 0x7000_0000: after those of containers, before 2^31.
const FIRST_USER: u32 = 1_879_048_192;
/// Pairs of users: the range ends at 0x7800_0000.
const USER_PAIRS: u32 = 1 << 26;
/// The least memory that a kernel starts with.
const MIN_MEMORY: u64 = 64 << 20;
/// Processors of one guest: QEMU's microvm has no more.
const MAX_CPUS: u32 = 255;
/// Threads of the monitor: one each processor, and its own for input and output.
const MAX_THREADS: i64 = 1024;
/// This program, which is the guest's init.
const PROGRAM: &str = "/proc/self/exe";
/// How long the time-stamp counter is watched, and where its frequency is kept.
const TSC_WATCH: Duration = Duration::from_millis(50);
const TSC: &str = "tsc-khz";

/// The users of one pod's machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Users {
    /// The monitor's.
    pub monitor: u32,
    /// The link's.
    pub link: u32,
}

impl Users {
    /// The sandbox's.
    pub fn of(sandbox: &str) -> Users {
        let digest = Sha256::digest(sandbox.as_bytes());
        let number = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) % USER_PAIRS;
        let monitor = FIRST_USER + number * 2;
        Users { monitor, link: monitor + 1 }
    }
}

/// What a worker has prepared.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// The machine.
    pub spec: Spec,
    /// Its initial root filesystem.
    pub initrd: PathBuf,
    /// The monitor's cgroup.
    pub cgroup: Option<CgroupState>,
    /// What it is a copy of.
    pub template: Option<PathBuf>,
}

fn invalid(text: String) -> Failure {
    Code::InvalidArgument.failure(text)
}

/// Prepares everything for a machine in its folder, which it makes. `cgroup` is the pod's; empty for none.
pub fn prepare(options: &VmOptions, folder: &Path, cgroup: &str) -> Result<Plan, Failure> {
    check_options(options)?;
    check::check(options)?;
    let initrd = initrd(options)?;
    let mut spec = spec(options, accelerator(options, &initrd)?);
    let mut template = None;
    if !options.template_folder.is_empty() {
        template = Some(template::get(options, &spec, &initrd)?);
        (spec.memory_file, spec.incoming) = (true, true);
    }
    let failed = |error: io::Error| Code::Unknown.failure(format!("make {}: {error}", folder.display()));
    make_folder(folder).map_err(failed)?;
    let cgroup = if cgroup.is_empty() { None } else { Some(make_cgroup(options, folder, cgroup)?) };
    Ok(Plan { spec, initrd, cgroup, template })
}

/// The initial root filesystem of guests with these modules. It is looked for by the files that it is made of.
pub fn initrd(options: &VmOptions) -> Result<PathBuf, Failure> {
    let common = check::common()?;
    let modules = Path::new(&options.modules);
    let mut name = check::identity(Path::new(PROGRAM))?;
    if !options.modules.is_empty() {
        name += &format!("-{}", check::identity(modules)?);
    }
    let known = common.join(format!("initrd-of-{name}"));
    if let Ok(path) = fs::read_link(&known)
        && path.exists()
    {
        return Ok(path);
    }
    let made = super::initrd::make(modules, &common)?;
    super::initrd::prune(&common, &made);
    // A program in memory alone is never met again.
    if fs::metadata(PROGRAM).is_ok_and(|meta| meta.nlink() > 0) {
        let _ = fs::remove_file(&known);
        let _ = symlink(&made, &known);
    }
    Ok(made)
}

fn check_options(options: &VmOptions) -> Result<(), Failure> {
    for (name, path) in [("vmm", &options.vmm), ("kernel", &options.kernel)] {
        if !Path::new(path).is_absolute() {
            return Err(invalid(format!("vm: {name} {path:?} is not an absolute path")));
        }
        fs::metadata(path).map_err(|error| Code::NotFound.failure(format!("vm: {name} {path}: {error}")))?;
    }
    if options.memory_bytes < MIN_MEMORY {
        let text =
            format!("vm: {} bytes of memory are too few for a kernel: {MIN_MEMORY} at least", options.memory_bytes);
        return Err(invalid(text));
    }
    if !options.template_folder.is_empty() && !options.host_paths.is_empty() {
        return Err(invalid(
            "vm: template_folder and host_paths exclude each other: a copy cannot share folders".into(),
        ));
    }
    share::check(options)?;
    if options.cpus > MAX_CPUS {
        return Err(invalid(format!("vm: {} processors: at most {MAX_CPUS}", options.cpus)));
    }
    Ok(())
}

fn spec(options: &VmOptions, accelerator: Accelerator) -> Spec {
    Spec {
        accelerator,
        memory_bytes: options.memory_bytes,
        cpus: options.cpus.max(1),
        kernel_arguments: options.kernel_arguments.clone(),
        memory_file: false,
        incoming: false,
    }
}

/// KVM if it runs this very kernel; emulation only where it is allowed. Never anything without a machine around it.
fn accelerator(options: &VmOptions, initrd: &Path) -> Result<Accelerator, Failure> {
    match probe::kvm(options, initrd)? {
        None => Ok(Accelerator::Kvm),
        Some(_) if options.allow_emulation => Ok(Accelerator::Emulation { tsc_khz: tsc_khz()? }),
        Some(why) => Err(Code::FailedPrecondition
            .failure(format!("KVM cannot be used: {why}; without it a machine is slow, and only by allow_emulation"))),
    }
}

/// How fast the time-stamp counter counts. Found out once a boot.
fn tsc_khz() -> Result<u64, Failure> {
    let known = check::common()?.join(TSC);
    if let Some(khz) = fs::read_to_string(&known).ok().and_then(|text| text.parse().ok()) {
        return Ok(khz);
    }
    let Some(khz) = measure_tsc() else { return Ok(0) };
    let _ = fs::write(&known, khz.to_string());
    Ok(khz)
}

fn measure_tsc() -> Option<u64> {
    /// Both clocks at once: of some tries the one with the least in between.
    fn reading() -> Option<(u64, Instant)> {
        let tries = (0..20).map(|_| Some((sys::timestamp_counter()?, Instant::now(), sys::timestamp_counter()?)));
        let tries: Option<Vec<_>> = tries.collect();
        let (before, now, after) = tries?.into_iter().min_by_key(|(before, _, after)| after.wrapping_sub(*before))?;
        Some((before + after.wrapping_sub(before) / 2, now))
    }
    let (first, began) = reading()?;
    std::thread::sleep(TSC_WATCH);
    let (last, ended) = reading()?;
    let nanos = ended.duration_since(began).as_nanos();
    u64::try_from(u128::from(last.wrapping_sub(first)) * 1_000_000 / nanos.max(1)).ok()
}

fn make_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    DirBuilder::new().mode(0o700).recursive(true).create(folder.join(ROOT))?;
    DirBuilder::new().mode(0o700).create(folder.join(share::PLACE))
}

/// The monitor's cgroup below the pod's: it holds the guest's memory and what the monitor takes itself.
fn make_cgroup(options: &VmOptions, folder: &Path, pod: &str) -> Result<CgroupState, Failure> {
    let path = format!("{pod}/vm");
    let failed =
        |error: &dyn std::fmt::Display| Code::Unknown.failure(format!("make the machine's cgroup {path}: {error}"));
    let resources = resources(options).map_err(|error| failed(&error))?;
    let cgroup = Cgroup::create(&CgroupOptions::new(Some(Path::new(&path)), "vm"), Some(&resources));
    let cgroup = cgroup.map_err(|error| failed(&error))?;
    let state = cgroup.state();
    let saved = serde_json::to_vec(&state).map_err(io::Error::from);
    saved.and_then(|text| fs::write(folder.join(CGROUP), text)).map_err(|error| {
        let _ = cgroup.remove();
        failed(&error)
    })?;
    Ok(state)
}

fn resources(options: &VmOptions) -> Result<LinuxResources, oci_spec::OciSpecError> {
    let limit = options.memory_bytes.saturating_add(options.overhead_bytes);
    let mut resources = LinuxResourcesBuilder::default().pids(LinuxPidsBuilder::default().limit(MAX_THREADS).build()?);
    if options.overhead_bytes > 0 {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        resources = resources.memory(LinuxMemoryBuilder::default().limit(limit).build()?);
    }
    resources.build()
}

/// What the monitor is started with.
pub struct Launch<'a> {
    /// The program.
    pub program: &'a str,
    /// The kernel's file.
    pub kernel: &'a str,
    /// What was prepared.
    pub plan: &'a Plan,
    /// The machine's folder.
    pub folder: &'a Path,
    /// Its user.
    pub user: u32,
    /// What it inherits.
    pub descriptors: Descriptors,
    /// Where it speaks to.
    pub console: &'a OwnedFd,
}

/// Starts the monitor. The process calling is its parent, with which it dies.
pub fn launch(launch: &Launch<'_>) -> io::Result<i32> {
    let Launch { plan, folder, descriptors, .. } = launch;
    let files = [(launch.kernel.into(), KERNEL.to_owned()), (plan.initrd.clone(), INITRD.to_owned())];
    let content = plan.template.as_deref().map(template::memory).transpose()?;
    let bytes = plan.spec.memory_bytes >> 20 << 20;
    let memory = Memory { name: Path::new(MEMORY), bytes, content: content.as_ref() };
    let jail = Jail {
        program: Path::new(launch.program),
        arguments: &vmm().arguments(&plan.spec, descriptors),
        user: launch.user,
        kvm: plan.spec.accelerator.is_kvm(),
        files: &files,
        keep: &descriptors.all(),
        console: launch.console,
        memory: plan.spec.memory_file.then_some(memory),
        place: &folder.join(ROOT),
        cgroup: plan.cgroup.as_ref(),
    };
    jail.spawn()
}

/// Takes away what a machine leaves: what is in its cgroup is killed. No machine is no error.
pub fn release(folder: &Path) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Code::Unknown.failure(format!("clear up after the machine in {}: {error}", folder.display()))
    };
    if !folder.exists() {
        return Ok(());
    }
    if let Ok(text) = fs::read(folder.join(CGROUP)) {
        let state: CgroupState = serde_json::from_slice(&text).map_err(|error| failed(&error))?;
        let cgroup = Cgroup::open(&state);
        cgroup.kill_all(nix::libc::SIGKILL).and_then(|()| cgroup.remove()).map_err(|error| failed(&error))?;
    }
    fs::remove_dir_all(folder).map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pod_has_two_users_of_its_own_in_the_range() {
        let (one, other) = (Users::of("a"), Users::of("b"));
        assert_ne!(one, other);
        for users in [one, other] {
            assert_eq!(users.link, users.monitor + 1);
            assert!((0x7000_0000..0x7800_0000).contains(&users.link), "{users:?}");
        }
        assert_eq!(one, Users::of("a"));
    }

    #[test]
    fn a_machine_that_cannot_be_is_refused_by_name() {
        let good = VmOptions {
            vmm: "/bin/sh".into(),
            kernel: "/bin/sh".into(),
            memory_bytes: 256 << 20,
            ..Default::default()
        };
        assert!(check_options(&good).is_ok());
        for (options, part) in [
            (VmOptions { vmm: "qemu".into(), ..good.clone() }, "vmm \"qemu\" is not an absolute path"),
            (VmOptions { kernel: "/no/kernel".into(), ..good.clone() }, "kernel /no/kernel: No such file"),
            (VmOptions { memory_bytes: 1 << 20, ..good.clone() }, "too few"),
            (
                VmOptions { template_folder: "/t".into(), host_paths: vec!["/h".into()], ..good.clone() },
                "exclude each other",
            ),
            (VmOptions { cpus: 1000, ..good.clone() }, "1000 processors"),
        ] {
            let message = check_options(&options).unwrap_err().message;
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn the_cgroup_holds_the_guests_memory_and_the_overhead() {
        let options = VmOptions { memory_bytes: 256 << 20, overhead_bytes: 100 << 20, ..Default::default() };
        let limits = resources(&options).unwrap();
        assert_eq!(limits.memory().as_ref().unwrap().limit(), Some(356 << 20));
    }
}
