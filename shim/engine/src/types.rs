//! What callers say and are told: the configurations of sandboxes and containers, and their statuses.
//!
//! The vocabulary is CRI's, so that the CRI server only converts. A configuration is the *meaning* type: whoever
//! builds one has already validated and defaulted it (images are resolved, variables expanded). It is written into
//! the record as it stands, so that any later process can restart a container without its author.
//!
//! Times are nanoseconds since the Unix epoch; 0 means "not yet", as in CRI.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::status::{ContainerState, SandboxState};

/// Where a namespace comes from, with CRI's names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceMode {
    /// One for the pod, shared by its containers.
    #[default]
    Pod,
    /// One for each container.
    Container,
    /// The host's own.
    Node,
}

/// Where one container's PID namespace comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PidNamespace {
    /// As its sandbox says.
    #[default]
    Sandbox,
    /// One of its own, whatever the sandbox says.
    Container,
    /// The host's.
    Node,
    /// That of another container of the pod, by its id (an ephemeral container's `targetContainerName`).
    Target(String),
}

/// A range of ids of a user namespace, as a line of `/proc/PID/uid_map` has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IdMapping {
    /// The first id inside.
    pub container_id: u32,
    /// The first id on the host.
    pub host_id: u32,
    /// How many.
    pub length: u32,
}

/// A pod's user namespace (KEP-127): every container of the pod runs in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UserNamespace {
    /// User ids.
    pub uids: Vec<IdMapping>,
    /// Group ids.
    pub gids: Vec<IdMapping>,
}

/// Kubernetes' class of a pod by what it asks for, which decides where its cgroup is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Qos {
    /// All its containers have limits of CPU and memory, and ask for just these. Its cgroup is the parent's child.
    #[default]
    Guaranteed,
    /// It asks for something. Its cgroup is in the branch `burstable`, whose weight is that of its pods together.
    Burstable,
    /// It asks for nothing. Its cgroup is in the branch `besteffort`, which weighs as little as can be.
    BestEffort,
}

/// The resolver settings of a pod; what is empty is left out of its resolv.conf.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsConfig {
    /// Name servers, in order.
    pub servers: Vec<String>,
    /// Search domains, in order.
    pub searches: Vec<String>,
    /// Options such as `ndots:5`.
    pub options: Vec<String>,
}

/// One more line of the pod's hosts file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostAlias {
    /// The address.
    pub ip: IpAddr,
    /// Its names.
    pub hostnames: Vec<String>,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port of the host that leads to a port of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Only at this address of the host; `None` for all.
    pub host_ip: Option<IpAddr>,
    /// The host's port.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
    /// Which protocol.
    pub protocol: Protocol,
}

/// What a sandbox is to be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxConfig {
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's uid.
    pub uid: String,
    /// How often this pod's sandbox was made before.
    pub attempt: u32,
    /// No other sandbox of the namespace may have this name, whatever its uid and attempt (local pods).
    pub exclusive_name: bool,
    /// The hostname; empty means the host's for [`NamespaceMode::Node`] networks, else the pod's name.
    pub hostname: String,
    /// The domain of the pod's name in its hosts file, if any. A host name that ends with it is already the whole name.
    pub host_domain: String,
    /// The NIS domain name, if any.
    pub domainname: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Network namespace: `Pod` or `Node`.
    pub network: NamespaceMode,
    /// PID namespace.
    pub pid: NamespaceMode,
    /// IPC namespace: `Pod` or `Node`.
    pub ipc: NamespaceMode,
    /// The pod's user namespace; `None` is the host's.
    pub user_namespace: Option<UserNamespace>,
    /// Gives the pod a user namespace of 65536 ids that no other pod has (`hostUsers: false`), and maps its volumes.
    pub own_users: bool,
    /// The handler that runs the pod, by its name in the configuration; empty for the default one.
    pub handler: String,
    /// Privileged containers may be made in it, as CRI has a sandbox say; a front end's check, the engine's none.
    pub privileged: bool,
    /// The SELinux label of the pod's processes; a container may have its own.
    pub selinux: Option<SelinuxOptions>,
    /// Ports of the host that lead into the pod.
    pub port_mappings: Vec<PortMapping>,
    /// Resolver settings; `None` copies the host's.
    pub dns: Option<DnsConfig>,
    /// More lines for the hosts file.
    pub host_aliases: Vec<HostAlias>,
    /// Namespaced kernel parameters.
    pub sysctls: BTreeMap<String, String>,
    /// The cgroup below which the pod's own is made; empty means the engine's.
    pub cgroup_parent: String,
    /// The branch of the parent that the pod's cgroup is made in.
    pub qos: Qos,
    /// Limits of the pod's containers together.
    pub resources: Resources,
    /// What the sandbox itself needs beyond its containers (RuntimeClass `overhead`); added to `resources`.
    pub overhead: Resources,
    /// Where container logs go; a container's `log_path` is relative to it.
    pub log_directory: Option<PathBuf>,
    /// Started by the supervisor after an exit that nobody tends; empty for none.
    pub on_exit: Vec<String>,
    /// That command stays, and the supervisor sees to it that somebody tends the pod at any time.
    pub tender_stays: bool,
    /// Bytes after which a container's log file is cut over to a new one; 0 for never.
    pub log_max_bytes: u64,
}

/// How mounts made on either side of a volume are seen on the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Neither sees the other's.
    #[default]
    Private,
    /// The container sees the host's.
    HostToContainer,
    /// Both see each other's.
    Bidirectional,
}

/// A host path inside a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// The source; it must exist, unless `create_source`. Empty with `image`.
    pub host_path: PathBuf,
    /// Only what is at this path beneath the source; empty for all of it. The runtime finds it with one look-up that
    /// cannot leave the source, whoever moves links and folders about in it meanwhile.
    pub sub_path: PathBuf,
    /// The absolute target.
    pub container_path: PathBuf,
    /// Read-only.
    pub readonly: bool,
    /// Read-only with every mount below it (KEP-3857); an error where the kernel can't.
    pub recursive_read_only: bool,
    /// Mount propagation.
    pub propagation: Propagation,
    /// A missing source is made as a folder, as CRI runtimes do for kubelet.
    pub create_source: bool,
    /// Give the source the container's SELinux label.
    pub selinux_relabel: bool,
    /// Show the source's owners mapped so (an idmapped mount); empty for as they are.
    pub uid_mappings: Vec<IdMapping>,
    /// The same of groups.
    pub gid_mappings: Vec<IdMapping>,
    /// The source is this local image's file tree, read-only (KEP-4639); an id of the store.
    pub image: Option<String>,
    /// That image as the client named it; only shown.
    pub image_ref: String,
    /// A path within that image; empty for its root.
    pub image_sub_path: String,
}

/// A device of the host inside a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// The device on the host, or a folder of devices.
    pub host_path: PathBuf,
    /// The absolute place inside.
    pub container_path: PathBuf,
    /// Any of `r`, `w` and `m`.
    pub permissions: String,
}

/// A limit of huge pages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugepageLimit {
    /// `2MB`, `1GB`, as cgroup files have it.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// Limits of a container or a pod; a `None` is no limit of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Relative weight of CPU time (1024 is one CPU's worth).
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU time per period.
    pub cpu_quota: Option<i64>,
    /// The period in microseconds.
    pub cpu_period: Option<u64>,
    /// CPUs that may be used, as `0-3,5`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes that may be used.
    pub cpuset_mems: Option<String>,
    /// Bytes of memory.
    pub memory: Option<i64>,
    /// Bytes of memory and swap together.
    pub memory_swap: Option<i64>,
    /// Number of tasks.
    pub pids: Option<i64>,
    /// The OOM killer's bias, -1000..=1000.
    pub oom_score_adj: Option<i32>,
    /// Limits of huge pages.
    pub hugepage_limits: Vec<HugepageLimit>,
    /// Files of cgroup v2, as they are.
    pub unified: BTreeMap<String, String>,
}

/// Which system calls a container may make.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// The engine's default profile.
    #[default]
    RuntimeDefault,
    /// All of them.
    Unconfined,
    /// Those of a profile in this file (OCI JSON).
    Localhost(PathBuf),
}

/// The AppArmor profile of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppArmor {
    /// The host's default for containers where it has AppArmor; nothing where it has none.
    #[default]
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A profile loaded on the host; its absence is an error.
    Localhost(String),
}

/// An SELinux label; what is empty is the host's default for containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SelinuxOptions {
    /// The user.
    pub user: String,
    /// The role.
    pub role: String,
    /// The type.
    pub kind: String,
    /// The level, with its categories.
    pub level: String,
}

/// Who a container's process is and what it may do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Security {
    /// All capabilities, all devices, nothing masked, no seccomp.
    pub privileged: bool,
    /// The user id; `None` takes the image's user.
    pub run_as_user: Option<u32>,
    /// A user by name (CRI's run_as_username), looked up in the image.
    pub run_as_username: Option<String>,
    /// The group id; `None` takes the user's primary group.
    pub run_as_group: Option<u32>,
    /// More groups.
    pub supplemental_groups: Vec<u32>,
    /// Only the groups named here, none from the image's /etc/group (supplementalGroupsPolicy: Strict).
    pub strict_groups: bool,
    /// Refuse to run as uid 0 (runAsNonRoot).
    pub require_non_root: bool,
    /// Capabilities beyond the default set; `ALL` for all. With or without `CAP_`.
    pub add_capabilities: Vec<String>,
    /// Capabilities taken away; `ALL` for all. Additions win over `ALL` here.
    pub drop_capabilities: Vec<String>,
    /// Capabilities that a user other than root keeps through execve, too.
    pub add_ambient_capabilities: Vec<String>,
    /// A privileged container without the host's devices (a setting of the handler).
    pub without_host_devices: bool,
    /// Never gain privileges through setuid or file capabilities.
    pub no_new_privs: bool,
    /// The root filesystem is read-only.
    pub readonly_rootfs: bool,
    /// The system call filter.
    pub seccomp: Seccomp,
    /// The AppArmor profile.
    pub apparmor: AppArmor,
    /// The SELinux label; `None` is the sandbox's.
    pub selinux: Option<SelinuxOptions>,
    /// Leave /proc and /sys unmasked (procMount: Unmasked).
    pub unmasked_proc: bool,
    /// The paths to hide instead of the usual ones.
    pub masked_paths: Option<Vec<String>>,
    /// The paths that cannot be written instead of the usual ones.
    pub readonly_paths: Option<Vec<String>>,
}

/// What a container is to be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerConfig {
    /// The name within the pod.
    pub name: String,
    /// How often this container was made before.
    pub attempt: u32,
    /// A local image: an id or a name of the store.
    pub image: String,
    /// The image as the client named it; only shown.
    pub image_ref: String,
    /// The image as the user wrote it, where the client tells it apart from its own name for it; only shown.
    pub user_specified_image: String,
    /// Replaces the image's entrypoint. As in Kubernetes, the image's cmd is then ignored too.
    pub command: Option<Vec<String>>,
    /// Replaces the image's cmd.
    pub args: Option<Vec<String>>,
    /// The working directory; `None` takes the image's, or `/`.
    pub working_dir: Option<String>,
    /// Variables; they win over the image's.
    pub env: Vec<(String, String)>,
    /// Volumes.
    pub mounts: Vec<Mount>,
    /// Devices of the host.
    pub devices: Vec<Device>,
    /// Devices by their qualified CDI names, `vendor.com/class=name`.
    pub cdi_devices: Vec<String>,
    /// Its PID namespace.
    pub pid: PidNamespace,
    /// Limits.
    pub resources: Resources,
    /// Identity and privileges.
    pub security: Security,
    /// Keep standard input open for attach.
    pub stdin: bool,
    /// Close standard input after the first client that attached leaves.
    pub stdin_once: bool,
    /// Give it a terminal.
    pub tty: bool,
    /// The log file, relative to the sandbox's `log_directory`; `None` keeps no log.
    pub log_path: Option<PathBuf>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// The signal that asks it to stop, by name or number; `None` takes the image's, or SIGTERM.
    pub stop_signal: Option<String>,
}

/// What is known of a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxStatus {
    /// Its id.
    pub id: String,
    /// What it was asked to be.
    pub config: SandboxConfig,
    /// What it is.
    pub state: SandboxState,
    /// When it was made.
    pub created_at: i64,
    /// The pod's addresses; empty in the host's network.
    pub ips: Vec<IpAddr>,
    /// What was changed on the host for its network, for the user to read; usually nothing.
    pub notes: Vec<String>,
    /// The pid of its living supervisor.
    pub supervisor: Option<i32>,
}

/// What is known of a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Its id.
    pub id: String,
    /// Its sandbox's id.
    pub sandbox_id: String,
    /// What it was asked to be.
    pub config: ContainerConfig,
    /// The image's id (its config digest).
    pub image_id: String,
    /// A name by digest that the image had when the container was made; its id if it had none.
    pub image_digest: String,
    /// The number of the signal that asks it to stop.
    pub stop_signal: i32,
    /// Who its first process is.
    pub user: Option<ContainerUser>,
    /// What it is.
    pub state: ContainerState,
    /// When it was made.
    pub created_at: i64,
    /// When it was started, 0 before.
    pub started_at: i64,
    /// The pid of its init while it lives; none in a virtual machine, whose pids mean nothing here.
    pub pid: Option<i32>,
    /// How it ended, once it has.
    pub exit: Option<Exit>,
    /// Its log file.
    pub log_path: Option<PathBuf>,
}

/// Who a container's first process was started as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// All further groups.
    pub supplemental_groups: Vec<u32>,
}

/// How a container or an exec ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code; 128 + n after signal n.
    pub code: i32,
    /// When.
    pub finished_at: i64,
    /// The kernel's OOM killer was at work in its cgroup.
    pub oom_killed: bool,
    /// CRI's reason: `Completed`, `Error`, `OOMKilled`, `StartError`, `Unknown`.
    pub reason: String,
    /// More in words, where there is something to say.
    pub message: String,
}

/// Which sandboxes to list; what is empty matches all.
#[derive(Debug, Clone, Default)]
pub struct SandboxFilter {
    /// A prefix of the id.
    pub id: String,
    /// In this state.
    pub state: Option<SandboxState>,
    /// With this name (local pods).
    pub name: String,
    /// In this namespace.
    pub namespace: String,
    /// With all of these labels.
    pub labels: BTreeMap<String, String>,
    /// Only local pods (`exclusive_name`), or only others.
    pub local: Option<bool>,
}

/// Which containers to list; what is empty matches all.
#[derive(Debug, Clone, Default)]
pub struct ContainerFilter {
    /// A prefix of the id.
    pub id: String,
    /// A prefix of the sandbox's id.
    pub sandbox_id: String,
    /// In this state.
    pub state: Option<ContainerState>,
    /// With all of these labels.
    pub labels: BTreeMap<String, String>,
    /// Only those of local pods, or only others.
    pub local: Option<bool>,
}

/// What to run in a running container.
#[derive(Debug, Clone, Default)]
pub struct ExecConfig {
    /// The command; it is looked up in the container's PATH.
    pub cmd: Vec<String>,
    /// Give it a terminal.
    pub tty: bool,
    /// Connect standard input.
    pub stdin: bool,
    /// More variables.
    pub env: Vec<(String, String)>,
    /// The working directory; `None` takes the container's.
    pub working_dir: Option<String>,
    /// The size of the terminal, columns and rows.
    pub size: Option<(u16, u16)>,
}
