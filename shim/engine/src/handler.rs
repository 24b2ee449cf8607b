//! Handlers: what runs a pod's containers, chosen by the name in its `runtime_handler`.
//!
//! | type | what runs the containers |
//! |---|---|
//! | `coracle` | our supervisor and our runtime |
//! | `oci` | our supervisor and a binary with runc's command line |
//! | `shim` | a containerd shim v2, driven by our supervisor, which makes the pod's namespaces and writes the logs |
//! | `vm` | our supervisor, a virtual machine, and in it our supervisor again and our runtime |
//!
//! A handler is resolved once, when its pod is made, and written into the pod's record as it was then: a later change of
//! the configuration is for later pods. Nothing ever falls back to another handler: an unknown name is an error that
//! lists the known ones, and one whose program is missing or does not run is an error that says so.
//!
//! Of a pod's and a container's annotations only those reach the OCI specification that the handler allows, because a
//! runtime may give an annotation a meaning (`io.katacontainers.*`, `run.oci.*`) that the pod's author must not have.
//! Those in containerd's `io.kubernetes.cri.` that tell which pod this is are always there.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use coracle_proto::task::CreateTaskRequest;
use coracle_proto::{any, coracle, runc, runtime_options};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::Paths;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::program::find_program;
use crate::record::{ContainerRecord, SandboxRecord};
use crate::types::{ContainerConfig, Mount, Resources, SandboxConfig};

mod glob;
mod kvm;
mod probe;
pub(crate) mod vm;

pub use probe::Features;
pub use vm::{Machine, Size};

/// The handler that is always there.
pub const CORACLE: &str = "coracle";
/// The longest DNS label.
const MAX_NAME: usize = 63;
/// The version of the OCI specification that every runtime knows, and all of ours that has no idmapped mounts is of.
const OLDEST_VERSION: &str = "1.0.2";
/// The CFS period that an overhead's CPU time is counted in, in microseconds.
const CPU_PERIOD: u64 = 100_000;
/// The shares of one CPU.
const CPU_SHARES: u64 = 1024;

/// The types a configuration may name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HandlerType {
    /// Our runtime.
    #[default]
    Coracle,
    /// A runc-compatible binary.
    Oci,
    /// A containerd shim.
    Shim,
    /// A virtual machine for each pod.
    Vm,
}

/// `[handlers.NAME]` as it is written.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct HandlerSettings {
    /// What kind of program it is.
    #[serde(rename = "type")]
    pub kind: HandlerType,
    /// The program: a path, a name to look up in PATH, or for a shim its runtime type, such as `io.containerd.runc.v2`.
    pub binary: Option<PathBuf>,
    /// Patterns of the annotations that reach the OCI specification.
    pub allowed_annotations: Vec<String>,
    /// Privileged containers get none of the host's devices but the usual ones.
    pub privileged_without_host_devices: bool,
    /// What a pod of this handler needs beyond its containers, when its RuntimeClass does not say.
    pub overhead: Overhead,
    /// What the program is told.
    pub options: HandlerOptions,
}

/// `[handlers.NAME.overhead]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Overhead {
    /// Bytes.
    pub memory: Option<i64>,
    /// Thousandths of a CPU.
    pub cpu_millis: Option<u32>,
}

/// `[handlers.NAME.options]`: each type takes some of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HandlerOptions {
    /// oci, shim: the runtime keeps its state here instead of in the pod's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,
    /// oci, shim: the cgroups are systemd's.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub systemd_cgroup: bool,
    /// oci, shim: move the root instead of pivot_root, for an initramfs.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_pivot_root: bool,
    /// oci, shim: keep the caller's session keyring.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_new_keyring: bool,
    /// shim: the runtime that a runc shim calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<PathBuf>,
    /// shim: its configuration file (kata, runsc).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_path: Option<PathBuf>,
    /// shim: it makes a sandbox of its own of the pod's first container (kata).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub sandbox_container: bool,
    /// vm: the folder with `vmlinux`, `modules.cpio` and `manifest.sha256`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_dir: Option<PathBuf>,
    /// vm: a kernel with a PVH entry, instead of a folder's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// vm: a cpio archive of that kernel's modules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modules: Option<PathBuf>,
    /// vm: added to the kernel's command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_arguments: Option<String>,
    /// vm: the memory of a pod without a limit, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// vm: the processors of a pod without a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// vm: where KVM cannot be used, machines are emulated.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_emulation: bool,
    /// vm: machines are copies of one that has booted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub template: bool,
    /// vm: folders of the host that volumes may lie in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub host_paths: Vec<PathBuf>,
}

/// What runs the containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum HandlerKind {
    /// Our supervisor and our runtime.
    #[default]
    Coracle,
    /// Our supervisor and a runc-compatible binary.
    Oci {
        /// Its path, or a name in PATH.
        binary: PathBuf,
        /// What it is told.
        options: HandlerOptions,
    },
    /// A containerd shim v2.
    Shim {
        /// Its path, or a name in PATH.
        binary: PathBuf,
        /// What it is told.
        options: HandlerOptions,
    },
    /// A virtual machine.
    Vm {
        /// The machine monitor, QEMU: its path, or a name in PATH.
        binary: PathBuf,
        /// What the machine is made of.
        options: Machine,
    },
}

/// A handler, validated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Handler {
    /// Its name.
    pub name: String,
    /// What runs the containers.
    pub kind: HandlerKind,
    /// Patterns of the annotations that reach the OCI specification, as of containerd's `pod_annotations`: `*` and `?`
    /// stand for anything but a slash.
    pub allowed_annotations: Vec<String>,
    /// Privileged containers get none of the host's devices but the usual ones.
    pub privileged_without_host_devices: bool,
    /// What a pod needs beyond its containers, for sandboxes that do not say.
    pub overhead: Resources,
}

impl Default for Handler {
    fn default() -> Self {
        Handler {
            name: CORACLE.to_owned(),
            kind: HandlerKind::Coracle,
            allowed_annotations: Vec::new(),
            privileged_without_host_devices: false,
            overhead: Resources::default(),
        }
    }
}

/// All handlers of a configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Handlers {
    /// The one that the empty name means.
    pub default: String,
    /// All of them by name.
    pub named: BTreeMap<String, Handler>,
}

impl Default for Handlers {
    fn default() -> Self {
        let handler = Handler::default();
        Handlers { default: CORACLE.to_owned(), named: BTreeMap::from([(handler.name.clone(), handler)]) }
    }
}

impl Handlers {
    /// From what is written. `coracle` is there whether it is written or not; the empty default means it.
    pub fn new(default: &str, settings: BTreeMap<String, HandlerSettings>) -> Result<Handlers> {
        let mut handlers = Handlers::default();
        for (name, settings) in settings {
            handlers.named.insert(name.clone(), Handler::new(&name, settings)?);
        }
        if !default.is_empty() {
            handlers.default = default.to_owned();
        }
        handlers.find("").map_err(|_| {
            Error::invalid("default_handler", format!("{default:?} is not configured; known are {}", handlers.names()))
        })?;
        Ok(handlers)
    }

    /// The handler of this name; the empty one is the default.
    pub fn find(&self, name: &str) -> Result<&Handler> {
        let wanted = if name.is_empty() { &self.default } else { name };
        self.named.get(wanted).ok_or_else(|| {
            Error::invalid(
                "runtime_handler",
                format!("no handler {wanted:?} is configured; known are {}", self.names()),
            )
        })
    }

    /// What pods of this handler can have.
    pub async fn features(&self, name: &str) -> Result<Features> {
        Ok(self.find(name)?.features().await)
    }

    fn names(&self) -> String {
        self.named.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
    }
}

impl Handler {
    fn new(name: &str, settings: HandlerSettings) -> Result<Handler> {
        let field = |key: &str| format!("handlers.{name}{}{key}", if key.is_empty() { "" } else { "." });
        if !is_label(name) {
            let text = format!("{name:?} is no DNS-1123 label: up to {MAX_NAME} of a-z, 0-9 and -, no - at its ends");
            return Err(Error::invalid("handlers", text));
        }
        for pattern in &settings.allowed_annotations {
            glob::check(pattern).map_err(|why| Error::invalid(field("allowed_annotations"), why))?;
        }
        if settings.options.sandbox_container {
            let text = "shims that make a sandbox of their own (kata) are not supported yet";
            return Err(Error::invalid(field("options.sandbox_container"), text));
        }
        check_options(&settings).map_err(|(key, why)| Error::invalid(field(key), why))?;
        let binary = settings.binary.filter(|binary| !binary.as_os_str().is_empty());
        let mut overhead = settings.overhead.resources();
        let kind = match (settings.kind, binary) {
            (HandlerType::Vm, binary) => {
                let options = Machine::new(settings.options).map_err(|(key, why)| Error::invalid(field(key), why))?;
                if overhead == Resources::default() {
                    overhead = options.overhead();
                }
                HandlerKind::Vm { binary: binary.unwrap_or_else(|| vm::QEMU.into()), options }
            }
            (HandlerType::Coracle, None) => HandlerKind::Coracle,
            (HandlerType::Coracle, Some(_)) => {
                return Err(Error::invalid(field("binary"), "a handler of type coracle is built in (type = \"oci\"?)"));
            }
            (_, None) => return Err(Error::invalid(field("binary"), "the program's path is missing")),
            (HandlerType::Oci, Some(binary)) => HandlerKind::Oci { binary, options: settings.options },
            (HandlerType::Shim, Some(binary)) => {
                HandlerKind::Shim { binary: shim_program(&binary), options: settings.options }
            }
        };
        Ok(Handler {
            name: name.to_owned(),
            kind,
            allowed_annotations: settings.allowed_annotations,
            privileged_without_host_devices: settings.privileged_without_host_devices,
            overhead,
        })
    }

    /// The program, found; `None` for our own.
    fn program(&self) -> Result<Option<PathBuf>> {
        match &self.kind {
            HandlerKind::Coracle => Ok(None),
            HandlerKind::Oci { binary, .. } | HandlerKind::Shim { binary, .. } | HandlerKind::Vm { binary, .. } => {
                find_program(binary).map(Some).map_err(|why| self.error(format!("its {why}")))
            }
        }
    }

    /// Whether it can run a pod: its program is there and answers. What was found right is not asked again until the
    /// file changes.
    pub async fn check(&self) -> Result<()> {
        let Some(program) = self.program()? else { return Ok(()) };
        if let HandlerKind::Vm { options, .. } = &self.kind {
            if coracle_rootfs::in_user_namespace() {
                return Err(self.error("virtual machines are for the machine's root alone".into()));
            }
            options.check_files().map_err(|why| self.error(why))?;
        }
        let flag = if matches!(self.kind, HandlerKind::Shim { .. }) { "-v" } else { "--version" };
        probe::check(&program, flag).await.map_err(|why| self.error(why))
    }

    /// Whether its pods' machines can run: no KVM is an error, unless they may be emulated.
    pub async fn check_machine(&self, paths: &Paths) -> Result<()> {
        let HandlerKind::Vm { options, .. } = &self.kind else { return Ok(()) };
        let program = self.program()?.unwrap_or_default();
        options.check_kvm(&program, paths).await.map_err(|why| self.error(why))
    }

    /// What its pods can have. An unhealthy one can nothing.
    pub async fn features(&self) -> Features {
        match &self.kind {
            HandlerKind::Coracle => probe::own_features(),
            // Its kernel is ours to choose, and newer than all that this takes.
            HandlerKind::Vm { .. } => Features { recursive_read_only_mounts: true, user_namespaces: false },
            HandlerKind::Oci { binary, .. } => probe::features_of(binary).await,
            HandlerKind::Shim { binary, options } if shim_is_runc(binary) => {
                probe::features_of(options.runtime.as_deref().unwrap_or(Path::new("runc"))).await
            }
            // The protocol has no question for it.
            HandlerKind::Shim { .. } => Features::default(),
        }
    }

    /// Refuses what a sandbox asks for and the program would pass over in silence.
    async fn check_sandbox(&self, config: &SandboxConfig) -> Result<()> {
        if let HandlerKind::Vm { options, .. } = &self.kind {
            return vm::check_sandbox(config).and_then(|()| options.size(&config.resources)).map(drop);
        }
        if (config.own_users || config.user_namespace.is_some()) && !self.features().await.user_namespaces {
            let text = "it does not say that it has user namespaces with idmapped mounts, which this pod asks for";
            return Err(self.error(text.to_owned()));
        }
        Ok(())
    }

    /// The same for a container.
    pub(crate) async fn check_container(&self, config: &ContainerConfig) -> Result<()> {
        if self.is_vm() {
            return vm::check_container(self, config);
        }
        let asks = |mount: &Mount| mount.recursive_read_only;
        if config.mounts.iter().any(asks) && !self.features().await.recursive_read_only_mounts {
            let text = "it does not say that it has recursive read-only mounts, which a volume asks for";
            return Err(self.error(text.to_owned()));
        }
        let part = |mount: &&Mount| !mount.sub_path.as_os_str().is_empty();
        if self.kind != HandlerKind::Coracle
            && let Some(mount) = config.mounts.iter().find(part)
        {
            let path = mount.container_path.display();
            let text =
                format!("only coracle's own runtime opens a subPath safely, which the volume at {path} asks for");
            return Err(self.error(text));
        }
        Ok(())
    }

    /// Whether its pods run in machines of their own.
    pub fn is_vm(&self) -> bool {
        matches!(self.kind, HandlerKind::Vm { .. })
    }

    /// Whether folders of the host can be shared with its pods' machines.
    pub fn shares_folders(&self) -> bool {
        matches!(&self.kind, HandlerKind::Vm { options, .. } if !options.host_paths.is_empty())
    }

    /// The size of a pod's machine, for pods that have one.
    pub(crate) fn machine_size(&self, config: &SandboxConfig) -> Result<Option<Size>> {
        match &self.kind {
            HandlerKind::Vm { options, .. } => options.size(&config.resources).map(Some),
            _ => Ok(None),
        }
    }

    /// What the supervisor of a pod is told of its machine, if it has one.
    pub(crate) fn vm_options(&self, record: &SandboxRecord, paths: &Paths) -> Result<Option<coracle::VmOptions>> {
        let (HandlerKind::Vm { options, .. }, Some(size)) = (&self.kind, record.vm) else { return Ok(None) };
        let vmm = self.program()?.unwrap_or_default();
        Ok(Some(options.options(&vmm, size, &record.config.overhead, paths)))
    }

    fn error(&self, reason: String) -> Error {
        Error::Handler { name: self.name.clone(), reason }
    }

    /// The annotations of a container's OCI specification.
    pub(crate) fn annotations(&self, pod: &SandboxRecord, container: &ContainerRecord) -> BTreeMap<String, String> {
        let allowed = |key: &str| self.allowed_annotations.iter().any(|pattern| glob::matches(pattern, key));
        let given = pod.config.annotations.iter().chain(&container.config.annotations);
        let given = given.filter(|(key, _)| allowed(key)).map(|(key, value)| (key.clone(), value.clone()));
        let mut all: BTreeMap<String, String> = given.collect();
        for (key, value) in [
            ("container-type", "container"),
            ("sandbox-id", &pod.id),
            ("sandbox-name", &pod.config.name),
            ("sandbox-namespace", &pod.config.namespace),
            ("sandbox-uid", &pod.config.uid),
            ("container-name", &container.config.name),
            ("image-name", &container.config.image_ref),
        ] {
            if !value.is_empty() {
                all.insert(format!("io.kubernetes.cri.{key}"), value.to_owned());
            }
        }
        all
    }

    /// Makes a container's OCI specification this handler's.
    pub(crate) fn adapt(&self, spec: &mut Value, pod: &SandboxRecord, container: &ContainerRecord) {
        spec["annotations"] = json!(self.annotations(pod, container));
        let mapped = |mount: &Value| mount.get("uidMappings").is_some() || mount.get("gidMappings").is_some();
        let newer = spec["mounts"].as_array().is_some_and(|mounts| mounts.iter().any(mapped));
        // A runtime refuses a version newer than its own, whatever of it is used.
        let ours = matches!(self.kind, HandlerKind::Coracle | HandlerKind::Vm { .. });
        if !ours && !newer {
            spec["ociVersion"] = json!(OLDEST_VERSION);
        }
    }

    /// Says in the request which program is to run the container.
    pub(crate) fn choose(&self, request: &mut CreateTaskRequest) -> Result<()> {
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let runc = |binary: &Path, options: &HandlerOptions| runc::Options {
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            systemd_cgroup: options.systemd_cgroup,
            root: options.root.as_deref().map(path).unwrap_or_default(),
            binary_name: path(binary),
            ..Default::default()
        };
        let program = self.program()?.unwrap_or_default();
        request.options = match &self.kind {
            HandlerKind::Coracle | HandlerKind::Vm { .. } => None,
            HandlerKind::Oci { options, .. } => Some(any::pack(&runc(&program, options))),
            HandlerKind::Shim { options, .. } => {
                let inner = match (&options.config_path, shim_is_runc(&program)) {
                    (Some(file), _) => {
                        Some(any::pack(&runtime_options::Options { config_path: path(file), ..Default::default() }))
                    }
                    (None, true) => {
                        Some(any::pack(&runc(options.runtime.as_deref().unwrap_or(Path::new("")), options)))
                    }
                    (None, false) => None,
                };
                Some(any::pack(&coracle::ShimOptions {
                    binary: path(&program),
                    options: inner,
                    sandbox_container: options.sandbox_container,
                }))
            }
        };
        Ok(())
    }
}

impl Overhead {
    fn resources(&self) -> Resources {
        let millis = self.cpu_millis.map(u64::from);
        Resources {
            memory: self.memory,
            cpu_shares: millis.map(|millis| (millis * CPU_SHARES / 1000).max(2)),
            cpu_quota: millis.and_then(|millis| i64::try_from(millis * CPU_PERIOD / 1000).ok()),
            cpu_period: millis.map(|_| CPU_PERIOD),
            ..Resources::default()
        }
    }
}

impl Engine {
    /// The handler for a sandbox that is to be made, ready to be used; what it has for the sandbox is filled in.
    pub(crate) async fn handler_for(&self, config: &mut SandboxConfig) -> Result<Handler> {
        let handler = self.handlers().find(&config.handler)?.clone();
        handler.check().await?;
        handler.check_sandbox(config).await?;
        handler.check_machine(&self.paths).await?;
        if config.overhead == Resources::default() {
            config.overhead = handler.overhead.clone();
        }
        Ok(handler)
    }
}

/// Takes away the socket of a pod's shim that was killed with its pod; it lies where the shim wanted it.
pub(crate) fn forget_shim(pod: &Path) -> Result<()> {
    #[derive(Deserialize)]
    struct Listening {
        address: String,
    }
    let folder = pod.join("shim");
    let listening: Option<Listening> = crate::record::read_json(&folder.join("listening.json"))?;
    let Some(Listening { address }) = listening else { return Ok(()) };
    // One whose starter was killed may have noted its address itself, as text.
    let address =
        if address.is_empty() { fs::read_to_string(folder.join("address")).unwrap_or_default() } else { address };
    let socket = Path::new(address.trim().trim_start_matches("unix://"));
    // Only what is a socket can have been its.
    if !fs::symlink_metadata(socket).is_ok_and(|meta| meta.file_type().is_socket()) {
        return Ok(());
    }
    fs::remove_file(socket).map_err(Error::io("remove the socket of a shim", socket))
}

fn is_label(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    (1..=MAX_NAME).contains(&bytes.len())
        && bytes.iter().all(|byte| plain(*byte) || *byte == b'-')
        && bytes.first().is_some_and(|byte| plain(*byte))
        && bytes.last().is_some_and(|byte| plain(*byte))
}

/// The options that a type does not take, by key and reason.
fn check_options(settings: &HandlerSettings) -> std::result::Result<(), (&'static str, String)> {
    use HandlerType::{Oci, Shim, Vm};
    let options = &settings.options;
    let program: &[HandlerType] = &[Oci, Shim];
    for (key, set, taken) in [
        ("options.root", options.root.is_some(), program),
        ("options.systemd_cgroup", options.systemd_cgroup, program),
        ("options.no_pivot_root", options.no_pivot_root, program),
        ("options.no_new_keyring", options.no_new_keyring, program),
        ("options.runtime", options.runtime.is_some(), &[Shim]),
        ("options.config_path", options.config_path.is_some(), &[Shim]),
        ("options.sandbox_container", options.sandbox_container, &[Shim]),
        ("options.kernel_dir", options.kernel_dir.is_some(), &[Vm]),
        ("options.kernel", options.kernel.is_some(), &[Vm]),
        ("options.modules", options.modules.is_some(), &[Vm]),
        ("options.kernel_arguments", options.kernel_arguments.is_some(), &[Vm]),
        ("options.memory", options.memory.is_some(), &[Vm]),
        ("options.cpus", options.cpus.is_some(), &[Vm]),
        ("options.allow_emulation", options.allow_emulation, &[Vm]),
        ("options.template", options.template, &[Vm]),
        ("options.host_paths", !options.host_paths.is_empty(), &[Vm]),
    ] {
        if set && !taken.contains(&settings.kind) {
            return Err((key, format!("a handler of type {:?} has no such option", settings.kind).to_lowercase()));
        }
    }
    Ok(())
}

/// `io.containerd.runc.v2` is `containerd-shim-runc-v2`, as containerd has it.
fn shim_program(name: &Path) -> PathBuf {
    let Some(text) = name.to_str().filter(|text| !text.contains('/')) else { return name.to_owned() };
    let mut parts = text.rsplit('.');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(version), Some(kind), Some(_)) => format!("containerd-shim-{kind}-{version}").into(),
        _ => name.to_owned(),
    }
}

/// Whether a shim takes runc's options.
fn shim_is_runc(program: &Path) -> bool {
    program.file_name().is_some_and(|name| name.to_string_lossy().starts_with("containerd-shim-runc-"))
}

#[cfg(test)]
mod tests;
