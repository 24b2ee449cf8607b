//! The handler type `vm`: a pod's containers run in a virtual machine of their own, booted by its supervisor.
//!
//! | | |
//! |---|---|
//! | kernel | `options.kernel` (and `options.modules`), or `vmlinux`, `modules.cpio` and `manifest.sha256` in `options.kernel_dir` |
//! | memory | the pod's limit, else `options.memory`; and [`RESERVE`] for the guest's kernel, which is part of the overhead |
//! | processors | the pod's CPU limit, rounded up, and no more than the machine has; else `options.cpus` |
//! | the host's cgroup | the pod's limit (or `options.memory`) and the overhead: the guest's memory and what QEMU itself takes |
//!
//! The size is fixed when the pod is made, and kept in its record: no update goes beyond it.
//!
//! What a machine of its own cannot have is refused by name: the host's network, processes, IPC, users, devices, security
//! labels and mount propagation. AppArmor's RuntimeDefault is not applied: it guards the kernel that the host's containers
//! share, and the boundary to that is the machine here. Limits of swap and sets of processors are left out by the
//! supervisor: the guest has no swap, and processors of its own.
//!
//! Folders of the host are let in by `options.host_paths` alone; the engine knows which of a local pod's mounts are the
//! pod's own, and for pods of a kubelet the supervisor tells volumes by their paths.

use std::path::{Path, PathBuf};

use coracle_proto::coracle::VmOptions;
use serde::{Deserialize, Serialize};

use super::{Handler, HandlerKind, HandlerOptions, Overhead};
use crate::config::Paths;
use crate::error::{Error, Result};
use crate::types::{
    AppArmor, ContainerConfig, Mount, NamespaceMode, PidNamespace, Propagation, Resources, SandboxConfig,
    SelinuxOptions,
};

/// The machine monitor where none is named.
pub(super) const QEMU: &str = "qemu-system-x86_64";
/// Where the kernel is looked for.
const KERNEL_DIR: &str = "/usr/lib/coracle/vm";
/// The files of that folder.
const KERNEL: &str = "vmlinux";
const MODULES: &str = "modules.cpio";
const MANIFEST: &str = "manifest.sha256";
/// The guest's kernel and its supervisor take this much of the guest's memory.
pub(crate) const RESERVE: u64 = 64 << 20;
/// Less than this is no limit that a pod can live with.
const MIN_MEMORY: u64 = 64 << 20;
/// What a pod without a limit gets.
const MEMORY: u64 = 512 << 20;
/// The most processors of QEMU's machine type microvm.
const MAX_CPUS: u32 = 288;
/// What a machine needs beyond its pod where nobody says: [`RESERVE`], and what QEMU takes.
const OVERHEAD: Overhead = Overhead { memory: Some(160 << 20), cpu_millis: Some(100) };
/// The same of an emulated one: QEMU also keeps the code that it has translated.
const EMULATION_OVERHEAD: Overhead = Overhead { memory: Some(384 << 20), cpu_millis: Some(250) };
/// The guest counts memory in pages, and QEMU takes whole mebibytes.
const MEBIBYTE: u64 = 1 << 20;
/// Templates, below the state folder.
const TEMPLATES: &str = "vm/templates";

/// What a handler of this type was told, with all that it was not told filled in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// The kernel.
    pub kernel: PathBuf,
    /// Its modules; empty for none.
    pub modules: PathBuf,
    /// Their checksums; empty where they are not checked.
    pub manifest: PathBuf,
    /// Added to the kernel's command line.
    pub kernel_arguments: String,
    /// The memory of a pod without a limit.
    pub memory: u64,
    /// The processors of a pod without a limit.
    pub cpus: u32,
    /// Without KVM the machine is emulated.
    pub allow_emulation: bool,
    /// Machines are copies of one that has booted.
    pub template: bool,
    /// Folders of the host that volumes may lie in.
    pub host_paths: Vec<PathBuf>,
}

/// A machine's size, as the pod's record keeps it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// What the pod's containers may use together.
    pub memory: u64,
    /// Processors.
    pub cpus: u32,
}

impl Machine {
    /// From what is written; an error is the key and the reason.
    pub(super) fn new(options: HandlerOptions) -> std::result::Result<Machine, (&'static str, String)> {
        let folder = options.kernel_dir.clone().unwrap_or_else(|| KERNEL_DIR.into());
        let (kernel, modules, manifest) = match (options.kernel, options.modules) {
            (Some(_), _) if options.kernel_dir.is_some() => {
                return Err(("options.kernel", "it and options.kernel_dir exclude each other".into()));
            }
            (None, Some(_)) => {
                return Err(("options.modules", "they are those of options.kernel, which is missing".into()));
            }
            (Some(kernel), modules) => (kernel, modules.unwrap_or_default(), PathBuf::new()),
            (None, None) => (folder.join(KERNEL), folder.join(MODULES), folder.join(MANIFEST)),
        };
        let host_paths = options.host_paths.iter().map(|path| ("options.host_paths", path));
        let files = [("options.kernel", &kernel), ("options.modules", &modules)];
        for (key, path) in host_paths.chain(files).filter(|(_, path)| !path.as_os_str().is_empty()) {
            if !path.is_absolute() || path.components().any(|part| part.as_os_str() == "..") {
                return Err((key, format!("{} is no absolute path", path.display())));
            }
        }
        let memory = options.memory.unwrap_or(MEMORY);
        if memory < MIN_MEMORY {
            return Err(("options.memory", format!("{memory} bytes are less than {MIN_MEMORY}")));
        }
        let cpus = options.cpus.unwrap_or(1);
        if !(1..=MAX_CPUS).contains(&cpus) {
            return Err(("options.cpus", format!("{cpus} is not between 1 and {MAX_CPUS}")));
        }
        let kernel_arguments = options.kernel_arguments.unwrap_or_default();
        if kernel_arguments.contains(char::is_control) {
            return Err(("options.kernel_arguments", "they are one line".into()));
        }
        let (allow_emulation, template) = (options.allow_emulation, options.template);
        let host_paths = options.host_paths;
        Ok(Machine { kernel, modules, manifest, kernel_arguments, memory, cpus, allow_emulation, template, host_paths })
    }

    /// The overhead where none is configured.
    pub(super) fn overhead(&self) -> Resources {
        if self.allow_emulation { EMULATION_OVERHEAD } else { OVERHEAD }.resources()
    }

    /// Whether the kernel's files are there; an error names the one that is not.
    pub fn check_files(&self) -> std::result::Result<(), String> {
        let missing = |path: &Path, why: std::io::Error| {
            format!("its kernel {}: {why} (scripts/guest-kernel puts one there)", path.display())
        };
        self.kernel.metadata().map_err(|why| missing(&self.kernel, why))?;
        match self.manifest.as_os_str().is_empty() {
            // One that was named without its folder is the administrator's own.
            true if self.modules.as_os_str().is_empty() => Ok(()),
            true => self.modules.metadata().map(drop).map_err(|why| missing(&self.modules, why)),
            false => self.manifest.metadata().map(drop).map_err(|why| missing(&self.manifest, why)),
        }
    }

    /// A folder's kernel may need no modules.
    pub(super) fn modules(&self) -> PathBuf {
        if self.modules.exists() || self.manifest.as_os_str().is_empty() {
            self.modules.clone()
        } else {
            PathBuf::new()
        }
    }

    /// The size of a pod's machine.
    pub(crate) fn size(&self, resources: &Resources) -> Result<Size> {
        let memory = match resources.memory.filter(|memory| *memory > 0) {
            None => self.memory,
            Some(memory) => memory.unsigned_abs(),
        };
        if memory < MIN_MEMORY {
            let why = format!(
                "{memory} bytes for all containers are too little for a virtual machine, which takes {}Mi at least",
                MIN_MEMORY / MEBIBYTE
            );
            return Err(Error::invalid("resources.limits.memory", why));
        }
        let quota = resources.cpu_quota.filter(|quota| *quota > 0).map(i64::unsigned_abs);
        let period = resources.cpu_period.filter(|period| *period > 0).unwrap_or(super::CPU_PERIOD);
        let present = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(MAX_CPUS));
        let cpus = match quota {
            None => self.cpus,
            Some(quota) => u32::try_from(quota.div_ceil(period)).unwrap_or(MAX_CPUS).clamp(1, present),
        };
        Ok(Size { memory: memory.div_ceil(MEBIBYTE) * MEBIBYTE, cpus })
    }

    /// What the supervisor is told.
    pub(crate) fn options(&self, binary: &Path, size: Size, overhead: &Resources, paths: &Paths) -> VmOptions {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let overhead = overhead.memory.filter(|memory| *memory > 0).map_or(0, i64::unsigned_abs);
        VmOptions {
            vmm: text(binary),
            kernel: text(&self.kernel),
            modules: text(&self.modules()),
            manifest: text(&self.manifest),
            kernel_arguments: self.kernel_arguments.clone(),
            allow_emulation: self.allow_emulation,
            memory_bytes: size.memory + RESERVE,
            cpus: size.cpus,
            overhead_bytes: overhead.saturating_sub(RESERVE),
            template_folder: if self.template { text(&paths.state.join(TEMPLATES)) } else { String::new() },
            host_paths: self.host_paths.iter().map(|path| text(path)).collect(),
        }
    }
}

impl Size {
    /// The limits of the pod's cgroup on the host, before its overhead: there always is one of memory, the machine's.
    pub(crate) fn limits(self, resources: &Resources) -> Resources {
        Resources { memory: i64::try_from(self.memory).ok(), memory_swap: None, ..resources.clone() }
    }

    /// Refuses what the machine is too small for.
    pub(crate) fn check(self, resources: &Resources) -> Result<()> {
        let fixed = "the size of a pod's virtual machine is fixed when it is made";
        if let Some(memory) = resources.memory.filter(|memory| memory.unsigned_abs() > self.memory && *memory > 0) {
            return Err(Error::invalid(
                "resources.memory",
                format!("{memory} bytes, and it has {}: {fixed}", self.memory),
            ));
        }
        let period = resources.cpu_period.filter(|period| *period > 0).unwrap_or(super::CPU_PERIOD);
        let most = u64::from(self.cpus) * period;
        if let Some(quota) = resources.cpu_quota.filter(|quota| *quota > 0 && quota.unsigned_abs() > most) {
            let why = format!("{quota} of each {period} microseconds, and it has {} processors: {fixed}", self.cpus);
            return Err(Error::invalid("resources.cpu_quota", why));
        }
        Ok(())
    }
}

fn no(field: &str, why: &str) -> Result<()> {
    Err(Error::invalid(field, format!("{why}, and the pod runs in a virtual machine of its own")))
}

fn labelled(options: Option<&SelinuxOptions>) -> bool {
    options.is_some_and(|options| *options != SelinuxOptions::default())
}

/// Refuses what a sandbox cannot have in a machine of its own.
pub(super) fn check_sandbox(config: &SandboxConfig) -> Result<()> {
    let node = NamespaceMode::Node;
    if config.network == node {
        return no("hostNetwork", "the host's network cannot be had");
    }
    if config.pid == node {
        return no("hostPID", "the host's processes cannot be seen");
    }
    if config.ipc == node {
        return no("hostIPC", "the host's IPC cannot be had");
    }
    if config.own_users || config.user_namespace.is_some() {
        return no("hostUsers", "users of the host are not there to be kept apart from");
    }
    if labelled(config.selinux.as_ref()) {
        return no("seLinuxOptions", "the host's SELinux does not reach its processes");
    }
    Ok(())
}

/// Refuses what a container cannot have in a machine of its own.
pub(super) fn check_container(handler: &Handler, config: &ContainerConfig) -> Result<()> {
    let security = &config.security;
    if config.pid == PidNamespace::Node {
        return no("hostPID", "the host's processes cannot be seen");
    }
    if let Some(device) = config.devices.first() {
        return no("devices", &format!("{} is a device of the host", device.host_path.display()));
    }
    if let Some(device) = config.cdi_devices.first() {
        return no("cdi_devices", &format!("{device} is a device of the host"));
    }
    if let AppArmor::Localhost(profile) = &security.apparmor {
        return no("appArmorProfile", &format!("profile {profile:?} is the host's"));
    }
    if labelled(security.selinux.as_ref()) {
        return no("seLinuxOptions", "the host's SELinux does not reach its processes");
    }
    if security.privileged && !handler.privileged_without_host_devices {
        let why = "the host's devices cannot be had (privileged_without_host_devices = true of its handler allows \
                   privileged containers without them)";
        return no("securityContext.privileged", why);
    }
    config.mounts.iter().try_for_each(check_mount)
}

fn check_mount(mount: &Mount) -> Result<()> {
    let field = format!("mounts: {}", mount.container_path.display());
    if mount.propagation != Propagation::Private {
        return no(&field, "no mount is propagated between the host and a guest");
    }
    if mount.selinux_relabel {
        return no(&field, "a volume's SELinux label is the host's");
    }
    if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
        return no(&field, "its owners cannot be mapped");
    }
    Ok(())
}

impl Handler {
    /// Refuses a local pod's volume that is a folder of the host, unless the handler lets it in.
    pub(crate) fn check_volumes(&self, paths: &Paths, sandbox: &str, config: &ContainerConfig) -> Result<()> {
        let HandlerKind::Vm { options, .. } = &self.kind else { return Ok(()) };
        let own = [paths.pod(sandbox), paths.pod_data(sandbox)];
        let allowed = |path: &Path| own.iter().chain(&options.host_paths).any(|folder| path.starts_with(folder));
        let plain = |path: &Path| !path.components().any(|part| part.as_os_str() == "..");
        let foreign = |mount: &&Mount| mount.image.is_none() && !(plain(&mount.host_path) && allowed(&mount.host_path));
        let Some(mount) = config.mounts.iter().find(foreign) else { return Ok(()) };
        let why = format!(
            "{} is a folder of the host (options.host_paths of handler {} can let it in)",
            mount.host_path.display(),
            self.name
        );
        no(&format!("hostPath: {}", mount.container_path.display()), &why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine::new(HandlerOptions::default()).unwrap()
    }

    #[test]
    fn the_kernel_is_a_folders_or_one_of_its_own() {
        assert_eq!(machine().manifest, Path::new("/usr/lib/coracle/vm/manifest.sha256"));
        let own = HandlerOptions { kernel: Some("/k".into()), ..Default::default() };
        let own = Machine::new(own).unwrap();
        assert_eq!((own.kernel.as_path(), own.manifest.as_path()), (Path::new("/k"), Path::new("")));
        for (options, key) in [
            (HandlerOptions { kernel: Some("k".into()), ..Default::default() }, "options.kernel"),
            (HandlerOptions { modules: Some("/m".into()), ..Default::default() }, "options.modules"),
            (HandlerOptions { memory: Some(1 << 20), ..Default::default() }, "options.memory"),
            (HandlerOptions { cpus: Some(0), ..Default::default() }, "options.cpus"),
            (HandlerOptions { host_paths: vec!["/a/../b".into()], ..Default::default() }, "options.host_paths"),
            (
                HandlerOptions { kernel_arguments: Some("a\nb".into()), ..Default::default() },
                "options.kernel_arguments",
            ),
        ] {
            assert_eq!(Machine::new(options).unwrap_err().0, key);
        }
    }

    #[test]
    fn a_machine_is_as_large_as_its_pods_limits() {
        let of = |memory, quota| {
            machine().size(&Resources { memory, cpu_quota: quota, cpu_period: Some(100_000), ..Default::default() })
        };
        assert_eq!(of(None, None).unwrap(), Size { memory: MEMORY, cpus: 1 });
        assert_eq!(of(Some(-1), Some(-1)).unwrap(), Size { memory: MEMORY, cpus: 1 });
        assert_eq!(of(Some((100 << 20) + 1), Some(10_000)).unwrap(), Size { memory: 101 << 20, cpus: 1 });
        let error = of(Some(32 << 20), None).unwrap_err().to_string();
        assert!(error.starts_with("resources.limits.memory: 33554432 bytes"), "{error}");
        let size = Size { memory: 100, cpus: 2 };
        let (fits, large) =
            (Resources { memory: Some(100), ..Default::default() }, |r: Resources| size.check(&r).is_err());
        assert!(size.check(&fits).is_ok() && size.check(&Resources { memory: Some(-1), ..Default::default() }).is_ok());
        assert!(large(Resources { memory: Some(101), ..Default::default() }));
        assert!(large(Resources { cpu_quota: Some(200_001), ..Default::default() }));
    }

    #[test]
    fn the_hosts_cgroup_holds_the_guests_memory_and_what_the_monitor_takes() {
        let (paths, machine) = (Paths::default(), machine());
        let size = machine.size(&Resources::default()).unwrap();
        let overhead = machine.overhead();
        let told = machine.options(Path::new("/q"), size, &overhead, &paths);
        assert_eq!((told.memory_bytes, told.overhead_bytes), ((512 + 64) << 20, 96 << 20));
        let limits = crate::update::sum(&size.limits(&Resources::default()), &overhead);
        assert_eq!(limits.memory.unwrap().unsigned_abs(), told.memory_bytes + told.overhead_bytes);
        assert!(told.template_folder.is_empty());
    }

    #[test]
    fn what_only_the_host_has_is_refused_by_name() {
        let node = NamespaceMode::Node;
        for (config, name) in [
            (SandboxConfig { network: node, ..Default::default() }, "hostNetwork: "),
            (SandboxConfig { pid: node, ..Default::default() }, "hostPID: "),
            (SandboxConfig { ipc: node, ..Default::default() }, "hostIPC: "),
            (SandboxConfig { own_users: true, ..Default::default() }, "hostUsers: "),
        ] {
            let error = check_sandbox(&config).unwrap_err().to_string();
            assert!(error.starts_with(name) && error.ends_with("in a virtual machine of its own"), "{error}");
        }
        check_sandbox(&SandboxConfig::default()).unwrap();
        let mut handler = Handler::default();
        let privileged = || {
            let mut config = ContainerConfig::default();
            config.security.privileged = true;
            config
        };
        assert!(check_container(&handler, &privileged()).unwrap_err().to_string().contains("privileged_without"));
        handler.privileged_without_host_devices = true;
        check_container(&handler, &privileged()).unwrap();
        let shared =
            Mount { propagation: Propagation::Bidirectional, container_path: "/m".into(), ..Default::default() };
        let config = ContainerConfig { mounts: vec![shared], ..Default::default() };
        assert!(check_container(&handler, &config).unwrap_err().to_string().starts_with("mounts: /m: no mount is"));
    }

    #[test]
    fn folders_of_the_host_are_let_in_by_name_alone() {
        let options = Machine { host_paths: vec!["/srv/data".into()], ..Default::default() };
        let kind = HandlerKind::Vm { binary: QEMU.into(), options };
        let handler = Handler { name: "vm".into(), kind, ..Default::default() };
        let paths = Paths { state: "/run/c".into(), root: "/var/c".into(), ..Default::default() };
        let check = |path: &str| {
            let mount = Mount { host_path: path.into(), container_path: "/m".into(), ..Default::default() };
            handler.check_volumes(&paths, "p", &ContainerConfig { mounts: vec![mount], ..Default::default() })
        };
        for good in ["/run/c/pods/p/volumes/x", "/var/c/pods/p/messages/c.0", "/srv/data/x"] {
            check(good).unwrap();
        }
        for bad in ["/srv/data2", "/run/c/pods/q/volumes/x", "/srv/data/../x", "/"] {
            let error = check(bad).unwrap_err().to_string();
            assert!(
                error.starts_with("hostPath: /m: ") && error.contains("options.host_paths of handler vm"),
                "{error}"
            );
        }
    }
}
