//! config.json as this runtime reads it: the OCI runtime-spec 1.3 for Linux.
//!
//! The types are plain structs with public fields, so that [`crate::refuse`] can take each apart field by field and
//! the compiler points out a field that nobody decided about (the `oci-spec` crate's types are private inside, and
//! reading a process with them links a regex engine, two thirds of this program's size). Resources and seccomp
//! profiles are `oci-spec`'s; a profile, which is most of a configuration, is read when it is asked for. Unknown properties are ignored, as the specification demands; `null` counts as absent,
//! because Go programs write it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxSeccomp;
use serde::de::{Deserializer, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::cgroup::Resources;
use crate::error::{Context, Error, Result};

/// Larger than any real config.json; a bound on what is read into memory.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> std::result::Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// Declares a struct of the specification: every field optional, `null` as absent.
macro_rules! oci {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {
            $(
                #[doc = concat!("`", stringify!($field), "` of the specification.")]
                #[serde(deserialize_with = "nullable")]
                $(#[$field_meta])*
                pub $field: $type,
            )*
        }
    };
}

oci! {
    /// The whole configuration.
    Spec {
        oci_version: String,
        root: Option<Root>,
        mounts: Vec<Mount>,
        process: Option<Process>,
        hostname: Option<String>,
        domainname: Option<String>,
        hooks: Hooks,
        annotations: BTreeMap<String, String>,
        linux: Linux,
        solaris: Option<IgnoredAny>,
        windows: Option<IgnoredAny>,
        freebsd: Option<IgnoredAny>,
        zos: Option<IgnoredAny>,
        vm: Option<IgnoredAny>,
    }
}

oci! {
    /// The root filesystem.
    Root {
        path: PathBuf,
        readonly: bool,
    }
}

oci! {
    /// One mount.
    Mount {
        destination: PathBuf,
        #[serde(rename = "type")] kind: Option<String>,
        source: Option<PathBuf>,
        options: Vec<String>,
        uid_mappings: Vec<IdMapping>,
        gid_mappings: Vec<IdMapping>,
    }
}

oci! {
    /// The process to run, at create or at exec.
    Process {
        terminal: bool,
        console_size: Option<ConsoleSize>,
        user: User,
        args: Vec<String>,
        command_line: Option<String>,
        env: Vec<String>,
        cwd: PathBuf,
        capabilities: Option<Capabilities>,
        rlimits: Vec<Rlimit>,
        no_new_privileges: bool,
        apparmor_profile: Option<String>,
        oom_score_adj: Option<i32>,
        selinux_label: Option<String>,
        io_priority: Option<IoPriority>,
        scheduler: Option<Scheduler>,
        #[serde(rename = "execCPUAffinity")] exec_cpu_affinity: Option<CpuAffinity>,
    }
}

oci! {
    /// How the CPU is given to the process: sched_setattr(2).
    Scheduler {
        policy: String,
        nice: i32,
        priority: i32,
        flags: Vec<String>,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
}

oci! {
    /// How its input and output are scheduled: ioprio_set(2).
    IoPriority {
        class: String,
        priority: i32,
    }
}

oci! {
    /// The CPUs of an exec, before and after it joined the cgroup.
    CpuAffinity {
        initial: String,
        #[serde(rename = "final")] last: String,
    }
}

oci! {
    /// A terminal's size.
    ConsoleSize {
        height: u64,
        width: u64,
    }
}

oci! {
    /// Who runs the process.
    User {
        uid: u32,
        gid: u32,
        umask: Option<u32>,
        additional_gids: Vec<u32>,
        username: Option<String>,
    }
}

oci! {
    /// The five capability sets, by name. Names the kernel does not know are an error.
    Capabilities {
        bounding: Vec<String>,
        effective: Vec<String>,
        inheritable: Vec<String>,
        permitted: Vec<String>,
        ambient: Vec<String>,
    }
}

oci! {
    /// A resource limit.
    Rlimit {
        #[serde(rename = "type")] kind: String,
        hard: u64,
        soft: u64,
    }
}

oci! {
    /// The hooks, six kinds.
    Hooks {
        prestart: Vec<Hook>,
        create_runtime: Vec<Hook>,
        create_container: Vec<Hook>,
        start_container: Vec<Hook>,
        poststart: Vec<Hook>,
        poststop: Vec<Hook>,
    }
}

oci! {
    /// One hook.
    Hook {
        path: PathBuf,
        args: Vec<String>,
        env: Vec<String>,
        timeout: Option<i64>,
    }
}

oci! {
    /// The Linux part.
    Linux {
        devices: Vec<Device>,
        uid_mappings: Vec<IdMapping>,
        gid_mappings: Vec<IdMapping>,
        sysctl: BTreeMap<String, String>,
        resources: Option<Resources>,
        cgroups_path: Option<String>,
        namespaces: Vec<Namespace>,
        net_devices: BTreeMap<String, NetDevice>,
        seccomp: Option<Box<RawValue>>,
        rootfs_propagation: Option<String>,
        masked_paths: Vec<PathBuf>,
        readonly_paths: Vec<PathBuf>,
        mount_label: Option<String>,
        intel_rdt: Option<IntelRdt>,
        memory_policy: Option<MemoryPolicy>,
        personality: Option<Personality>,
        time_offsets: BTreeMap<String, TimeOffset>,
    }
}

oci! {
    /// A network device that moves into the container.
    NetDevice {
        name: String,
    }
}

oci! {
    /// Cache and memory bandwidth of Intel's Resource Director Technology.
    IntelRdt {
        #[serde(rename = "closID")] clos_id: String,
        schemata: Vec<String>,
        l3_cache_schema: String,
        mem_bw_schema: String,
        enable_monitoring: bool,
    }
}

oci! {
    /// The execution domain: personality(2).
    Personality {
        domain: String,
        flags: Vec<String>,
    }
}

oci! {
    /// Which nodes memory comes from: set_mempolicy(2).
    MemoryPolicy {
        mode: String,
        nodes: String,
        flags: Vec<String>,
    }
}

oci! {
    /// A device node.
    Device {
        path: PathBuf,
        #[serde(rename = "type")] kind: String,
        major: i64,
        minor: i64,
        file_mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
    }
}

/// A range of user or group ids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IdMapping {
    /// First id inside.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// First id outside.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

oci! {
    /// An offset of a clock of a time namespace.
    TimeOffset {
        secs: i64,
        nanosecs: u32,
    }
}

/// A namespace to make, or to join by path.
#[derive(Debug, Clone, Deserialize)]
pub struct Namespace {
    /// Which.
    #[serde(rename = "type")]
    pub kind: NamespaceKind,
    /// The namespace file to join; a new one is made without.
    #[serde(default, deserialize_with = "nullable")]
    pub path: Option<PathBuf>,
}

/// The eight kinds of namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum NamespaceKind {
    Pid,
    Network,
    Mount,
    Ipc,
    Uts,
    User,
    Cgroup,
    Time,
}

impl NamespaceKind {
    /// The kernel's flag.
    pub fn flag(self) -> u64 {
        (match self {
            NamespaceKind::Pid => libc::CLONE_NEWPID,
            NamespaceKind::Network => libc::CLONE_NEWNET,
            NamespaceKind::Mount => libc::CLONE_NEWNS,
            NamespaceKind::Ipc => libc::CLONE_NEWIPC,
            NamespaceKind::Uts => libc::CLONE_NEWUTS,
            NamespaceKind::User => libc::CLONE_NEWUSER,
            NamespaceKind::Cgroup => libc::CLONE_NEWCGROUP,
            NamespaceKind::Time => crate::sys::CLONE_NEWTIME as i32,
        }) as u64
    }

    /// The name as config.json has it.
    pub fn name(self) -> &'static str {
        match self {
            NamespaceKind::Pid => "pid",
            NamespaceKind::Network => "network",
            NamespaceKind::Mount => "mount",
            NamespaceKind::Ipc => "ipc",
            NamespaceKind::Uts => "uts",
            NamespaceKind::User => "user",
            NamespaceKind::Cgroup => "cgroup",
            NamespaceKind::Time => "time",
        }
    }
}

fn load<T: serde::de::DeserializeOwned>(file: &Path) -> Result<(T, Vec<u8>)> {
    let length = std::fs::metadata(file).path("read", file)?.len();
    if length > MAX_CONFIG_BYTES {
        return Err(Error::invalid(format!("{} has {length} bytes; the limit is {MAX_CONFIG_BYTES}", file.display())));
    }
    let bytes = std::fs::read(file).path("read", file)?;
    let parsed =
        serde_json::from_slice(&bytes).map_err(|e| Error::invalid(format!("parse {}: {e}", file.display())))?;
    Ok((parsed, bytes))
}

impl Spec {
    /// Reads config.json once and returns it with its own bytes, which the state directory keeps.
    pub fn load(file: &Path) -> Result<(Spec, Vec<u8>)> {
        load(file)
    }

    /// The process alone, without the work for all the rest.
    pub fn load_process(file: &Path) -> Result<Option<Process>> {
        oci! {
            /// A configuration of which nothing else is looked at.
            Only {
                process: Option<Process>,
            }
        }
        Ok(load::<Only>(file)?.0.process)
    }

    /// The namespace of a kind, if the configuration has it.
    pub fn namespace(&self, kind: NamespaceKind) -> Option<&Namespace> {
        self.linux.namespaces.iter().find(|n| n.kind == kind)
    }

    /// Whether a namespace of this kind is to be made new.
    pub fn makes(&self, kind: NamespaceKind) -> bool {
        self.namespace(kind).is_some_and(|n| n.joins().is_none())
    }

    /// Whether the parent has something to do to the init before that goes on: its id maps, its network devices.
    pub fn init_waits_first(&self) -> bool {
        self.makes(NamespaceKind::User) || !self.linux.net_devices.is_empty()
    }

    /// The flags of all namespaces that differ from the host's.
    pub fn namespace_flags(&self) -> u64 {
        self.linux.namespaces.iter().fold(0, |flags, n| flags | n.kind.flag())
    }
}

impl Linux {
    /// The seccomp profile.
    pub fn profile(&self) -> Result<Option<LinuxSeccomp>> {
        let read = |text: &RawValue| serde_json::from_str(text.get());
        self.seccomp
            .as_deref()
            .map(read)
            .transpose()
            .map_err(|e| Error::invalid(format!("config.json: linux.seccomp: {e}")))
    }
}

impl Namespace {
    /// The path to join, when there is one. An empty path means a new namespace.
    pub fn joins(&self) -> Option<&Path> {
        self.path.as_deref().filter(|p| !p.as_os_str().is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_counts_as_absent_everywhere() {
        let spec: Spec = serde_json::from_str(
            r#"{"ociVersion":"1.0.2","process":{"args":null,"user":{"additionalGids":null},"capabilities":null},
                "mounts":null,"hooks":null,"linux":{"devices":null,"resources":null}}"#,
        )
        .unwrap();
        assert!(spec.mounts.is_empty());
        assert!(spec.process.unwrap().capabilities.is_none());
    }

    #[test]
    fn an_empty_namespace_path_means_a_new_one() {
        let spec: Spec = serde_json::from_str(
            r#"{"linux":{"namespaces":[{"type":"pid","path":""},{"type":"network","path":"/x"}]}}"#,
        )
        .unwrap();
        assert!(spec.makes(NamespaceKind::Pid));
        assert!(!spec.makes(NamespaceKind::Network));
        assert!(spec.namespace(NamespaceKind::Time).is_none());
    }

    #[test]
    fn unknown_properties_are_ignored_as_the_specification_demands() {
        assert!(serde_json::from_str::<Spec>(r#"{"ociVersion":"1.0.2","x-vendor":{"a":1}}"#).is_ok());
    }
}
