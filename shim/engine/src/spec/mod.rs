//! The OCI spec of a container: everything a container is, in the one document the runtime reads.
//!
//! Written as JSON, since that is what it is; a test reads it back through the types of the specification. The defaults
//! are containerd's, so that an image sees here what it sees there: its capabilities, masked and read-only paths,
//! devices, mounts. RuntimeDefault seccomp is on unless the pod says otherwise.

pub mod caps;
mod cdi;
mod devices;
pub(crate) mod guest;
pub(crate) mod lsm;
mod mounts;
pub mod process;
mod resources;
pub mod user;
pub(crate) mod userns;
pub mod view;

pub use resources::limits;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Capability;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::seccomp_default;
use crate::types::{ContainerConfig, ContainerUser, NamespaceMode, PidNamespace, Propagation, SandboxConfig, Seccomp};

/// The specification's version we write.
const OCI_VERSION: &str = "1.2.0";
/// A seccomp profile of a user is at most this long.
const MAX_PROFILE: u64 = 4 << 20;
/// What the kernel takes as oom_score_adj.
const OOM_SCORES: std::ops::RangeInclusive<i32> = -1000..=1000;

/// Paths that are hidden (containerd's list).
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths that cannot be written (containerd's list).
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What a spec is made from.
pub struct Input<'a> {
    /// The container.
    pub config: &'a ContainerConfig,
    /// Its pod.
    pub sandbox: &'a SandboxConfig,
    /// The image's part.
    pub image: Option<&'a oci_spec::image::Config>,
    /// The image's files.
    pub view: &'a view::View,
    /// The layers of the images that are its volumes, the topmost first, by the names the volumes have.
    pub images: &'a BTreeMap<String, Vec<String>>,
    /// The pod's id.
    pub pod_id: &'a str,
    /// The pod's state folder: hosts, hostname, resolv.conf, shm.
    pub pod_dir: &'a Path,
    /// The container's own folder.
    pub bundle: &'a Path,
    /// The pod's hostname.
    pub hostname: &'a str,
    /// The container's cgroup.
    pub cgroup: &'a str,
    /// The supervisor, whose namespaces the pod's are.
    pub supervisor: i32,
    /// The init of the pod's shared PID namespace.
    pub pid_ns_pid: Option<i32>,
    /// The init of the container whose PID namespace this one joins.
    pub target: Option<i32>,
    /// The pod's user namespace.
    pub user_ns: Option<&'a str>,
    /// Where CDI devices are described.
    pub cdi_dirs: &'a [PathBuf],
    /// The container runs in its pod's virtual machine.
    pub guest: bool,
}

/// Writes the spec, and tells who the process will be.
pub fn generate(input: &Input<'_>) -> Result<(Value, ContainerUser)> {
    let (config, security) = (input.config, &input.config.security);
    let image_user = input.image.and_then(|i| i.user().as_deref()).unwrap_or("");
    let user = user::resolve(input.view, image_user, security)?;
    let caps = caps::resolve(security, caps::available(input.guest))?;
    let labels = match input.guest {
        // The guest's kernel has neither, and what is asked for by name was refused.
        true => lsm::Labels::default(),
        false => lsm::Host::new(Path::new("/")).labels(security, input.sandbox.selinux.as_ref(), input.pod_id)?,
    };
    // The primary group alone is there without being set.
    let unset = user.groups == [user.gid] && !userns::sets_groups();
    let groups: &[u32] = if unset { &[] } else { &user.groups };
    let mut process = json!({
        "terminal": config.tty,
        "user": { "uid": user.uid, "gid": user.gid, "additionalGids": groups },
        "args": process::args(config, input.image)?,
        "env": process::env(config, input.image, input.hostname, &user.home)?,
        "cwd": process::cwd(config, input.image)?,
        "capabilities": capabilities(&caps, caps::ambient(security)?),
        "noNewPrivileges": security.no_new_privs,
    });
    if let Some(adj) = oom_score(config, None)? {
        process["oomScoreAdj"] = json!(adj);
    }
    for (key, label) in [("apparmorProfile", &labels.apparmor), ("selinuxLabel", &labels.process)] {
        if !label.is_empty() {
            process[key] = json!(label);
        }
    }
    let mut spec = json!({
        "ociVersion": OCI_VERSION,
        "process": process,
        "root": { "path": "rootfs", "readonly": security.readonly_rootfs },
        "mounts": mounts::all(input, &labels.mount)?,
        "linux": linux(input)?,
    });
    if !labels.mount.is_empty() {
        spec["linux"]["mountLabel"] = json!(labels.mount);
    }
    if !config.annotations.is_empty() {
        spec["annotations"] = json!(config.annotations);
    }
    cdi::apply(&mut spec, &config.cdi_devices, input.cdi_dirs)?;
    let user = ContainerUser { uid: user.uid, gid: user.gid, supplemental_groups: user.groups };
    Ok((spec, user))
}

fn capabilities(caps: &[String], ambient: Vec<String>) -> Value {
    let mut sets = json!({ "bounding": caps, "effective": caps, "permitted": caps });
    if !ambient.is_empty() {
        // The kernel keeps in the ambient set only what is inheritable, too.
        sets["inheritable"] = json!(ambient);
        sets["ambient"] = json!(ambient);
    }
    sets
}

/// The bias of the OOM killer: what is asked for, or the least that may be set where that is restricted.
pub(crate) fn oom_score(config: &ContainerConfig, least: Option<i32>) -> Result<Option<i32>> {
    let Some(score) = config.resources.oom_score_adj else { return Ok(None) };
    if !OOM_SCORES.contains(&score) {
        return Err(Error::invalid("oom_score_adj", format!("{score} is not between -1000 and 1000")));
    }
    Ok(Some(least.map_or(score, |least| score.max(least))))
}

/// The process of an exec: the container's own, with another command.
pub fn exec_process(spec: &Value, exec: &crate::types::ExecConfig) -> Result<Value> {
    if exec.cmd.is_empty() {
        return Err(Error::invalid("command", "an exec needs a command"));
    }
    let mut process = spec["process"].clone();
    process["args"] = json!(exec.cmd);
    process["terminal"] = json!(exec.tty);
    if let Some(dir) = &exec.working_dir {
        process["cwd"] = json!(dir);
    }
    if let Some(env) = process["env"].as_array_mut() {
        if exec.tty && !env.iter().any(|l| l.as_str().is_some_and(|l| l.starts_with("TERM="))) {
            env.push(json!("TERM=xterm"));
        }
        env.extend(exec.env.iter().map(|(name, value)| json!(format!("{name}={value}"))));
    }
    if let Some((columns, rows)) = exec.size {
        process["consoleSize"] = json!({ "width": columns, "height": rows });
    }
    Ok(process)
}

fn linux(input: &Input<'_>) -> Result<Value> {
    let (config, security) = (input.config, &input.config.security);
    let host_devices = security.privileged && !security.without_host_devices;
    let asked = devices::asked(&config.devices)?;
    let mut linux = json!({
        "namespaces": namespaces(input),
        "resources": resources::linux(&config.resources, host_devices, asked.rules)?,
    });
    match input.cgroup {
        // Nobody can be weighed without one, and the runtime would ask for it.
        "" => linux["resources"]["cpu"] = json!({}),
        cgroup => linux["cgroupsPath"] = json!(cgroup),
    }
    let mut nodes = if host_devices { devices::of_host(Path::new("/dev")) } else { Vec::new() };
    nodes.retain(|node| !asked.nodes.iter().any(|other| other["path"] == node["path"]));
    nodes.extend(asked.nodes);
    if !nodes.is_empty() {
        linux["devices"] = json!(nodes);
    }
    if !security.privileged {
        let usual = |list: &[&str]| if security.unmasked_proc { json!([]) } else { json!(list) };
        linux["maskedPaths"] = security.masked_paths.as_ref().map_or_else(|| usual(&MASKED), |own| json!(own));
        linux["readonlyPaths"] = security.readonly_paths.as_ref().map_or_else(|| usual(&READONLY), |own| json!(own));
    }
    if let Some(namespace) = &input.sandbox.user_namespace {
        linux["uidMappings"] = userns::oci(&namespace.uids);
        linux["gidMappings"] = userns::oci(&namespace.gids);
    }
    if let Some(profile) = seccomp(config, input.guest)? {
        linux["seccomp"] = profile;
    }
    let wants = |p| config.mounts.iter().any(|m| m.propagation == p);
    if wants(Propagation::Bidirectional) {
        linux["rootfsPropagation"] = json!("rshared");
    } else if wants(Propagation::HostToContainer) {
        linux["rootfsPropagation"] = json!("rslave");
    }
    Ok(linux)
}

fn namespaces(input: &Input<'_>) -> Vec<Value> {
    let mut list = vec![json!({ "type": "mount" })];
    let mut share = |kind: &str, file: &str, pid: i32| {
        list.push(json!({ "type": kind, "path": format!("/proc/{pid}/ns/{file}") }));
    };
    let sandbox = input.sandbox;
    if sandbox.network != NamespaceMode::Node {
        share("network", "net", input.supervisor);
        share("uts", "uts", input.supervisor);
    }
    if sandbox.ipc != NamespaceMode::Node {
        share("ipc", "ipc", input.supervisor);
    }
    let own_pid = match (&input.config.pid, input.target) {
        (PidNamespace::Target(_), Some(pid)) => {
            share("pid", "pid", pid);
            false
        }
        (PidNamespace::Node, _) => false,
        (PidNamespace::Sandbox, _) if sandbox.pid == NamespaceMode::Node => false,
        (PidNamespace::Sandbox, _) if sandbox.pid == NamespaceMode::Pod && input.pid_ns_pid.is_some() => {
            share("pid", "pid", input.pid_ns_pid.unwrap_or(0));
            false
        }
        _ => true,
    };
    if own_pid {
        list.push(json!({ "type": "pid" }));
    }
    if let Some(path) = input.user_ns {
        list.push(json!({ "type": "user", "path": path }));
    }
    // A privileged container manages the host's cgroups; one of a user namespace has no rights to.
    if !input.config.security.privileged || input.user_ns.is_some() {
        list.push(json!({ "type": "cgroup" }));
    }
    list
}

fn seccomp(config: &ContainerConfig, guest: bool) -> Result<Option<Value>> {
    match &config.security.seccomp {
        _ if config.security.privileged => Ok(None),
        Seccomp::Unconfined => Ok(None),
        Seccomp::RuntimeDefault => {
            let caps = caps::resolve(&config.security, caps::available(guest))?;
            let bad = |e: serde_json::Error| Error::invalid("seccompProfile", e.to_string());
            let caps: Vec<Capability> = serde_json::from_value(json!(caps)).map_err(bad)?;
            serde_json::to_value(seccomp_default::profile(&caps)).map(Some).map_err(bad)
        }
        Seccomp::Localhost(path) => {
            let field = "seccompProfile.localhostProfile";
            let size = fs::metadata(path).map_err(Error::io("read seccomp profile", path))?.len();
            if size > MAX_PROFILE {
                return Err(Error::invalid(field, format!("{} is larger than {MAX_PROFILE} bytes", path.display())));
            }
            let text = fs::read(path).map_err(Error::io("read seccomp profile", path))?;
            let profile: oci_spec::runtime::LinuxSeccomp =
                serde_json::from_slice(&text).map_err(|e| Error::invalid(field, format!("{}: {e}", path.display())))?;
            serde_json::to_value(profile).map(Some).map_err(|e| Error::invalid(field, e.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Device, ExecConfig, IdMapping, Mount, Resources, Security, UserNamespace};

    fn spec(config: &ContainerConfig, sandbox: &SandboxConfig) -> Result<Value> {
        generate(&Input {
            config,
            sandbox,
            image: None,
            view: &view::View::new(Vec::new()),
            images: &[("vol".to_owned(), vec!["/layers/a".to_owned()])].into(),
            pod_id: "p",
            pod_dir: Path::new("/run/coracle/pods/p"),
            bundle: Path::new("/run/coracle/pods/p/containers/c"),
            hostname: "web",
            cgroup: "/coracle/podp/c",
            supervisor: 7,
            pid_ns_pid: Some(8),
            target: Some(9),
            user_ns: sandbox.user_namespace.as_ref().map(|_| "/proc/7/fd/5"),
            cdi_dirs: &[],
            guest: false,
        })
        .map(|(spec, _)| spec)
    }

    fn config() -> ContainerConfig {
        ContainerConfig { command: Some(vec!["/bin/sh".into()]), ..Default::default() }
    }

    fn targets(spec: &Value) -> Vec<String> {
        spec["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap().to_owned()).collect()
    }

    fn namespace(spec: &Value, kind: &str) -> Option<Value> {
        spec["linux"]["namespaces"].as_array().unwrap().iter().find(|n| n["type"] == kind).cloned()
    }

    #[test]
    fn the_document_is_a_valid_spec_with_safe_defaults() {
        let value = spec(&config(), &SandboxConfig::default()).unwrap();
        let spec: oci_spec::runtime::Spec = serde_json::from_value(value.clone()).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.seccomp().is_some());
        assert_eq!(linux.masked_paths().as_ref().unwrap().len(), MASKED.len());
        assert_eq!(value["process"]["capabilities"]["bounding"].as_array().unwrap().len(), 14);
        assert_eq!(value["process"]["capabilities"].get("inheritable"), None);
        assert_eq!(namespace(&value, "network").unwrap()["path"], "/proc/7/ns/net");
        assert_eq!(namespace(&value, "pid").unwrap()["path"], "/proc/8/ns/pid");
    }

    #[test]
    fn the_hosts_namespaces_are_used_where_the_pod_asks_for_them() {
        let node = NamespaceMode::Node;
        let sandbox = SandboxConfig { network: node, pid: node, ipc: node, ..Default::default() };
        let spec = spec(&config(), &sandbox).unwrap();
        for kind in ["network", "uts", "pid", "ipc"] {
            assert_eq!(namespace(&spec, kind), None);
        }
        let shm = spec["mounts"].as_array().unwrap().iter().find(|m| m["destination"] == "/dev/shm").unwrap();
        assert_eq!(shm["source"], "/dev/shm");
    }

    #[test]
    fn a_volume_replaces_ours_and_parents_come_first() {
        let volume = |to: &str| Mount { host_path: "/tmp".into(), container_path: to.into(), ..Default::default() };
        let config =
            ContainerConfig { mounts: vec![volume("/a/b/c/"), volume("/etc/hosts"), volume("/a")], ..config() };
        let spec = spec(&config, &SandboxConfig::default()).unwrap();
        let targets = targets(&spec);
        let at = |t: &str| targets.iter().position(|x| x == t).unwrap();
        assert!(at("/a") < at("/a/b/c"));
        assert_eq!(targets.iter().filter(|t| *t == "/etc/hosts").count(), 1);
        assert_eq!(spec["mounts"][at("/etc/hosts")]["source"], "/tmp");
        for bad in ["relative", "/a/../b", "/"] {
            let config = ContainerConfig { mounts: vec![volume(bad)], ..super::tests::config() };
            assert!(super::tests::spec(&config, &SandboxConfig::default()).is_err(), "{bad}");
        }
    }

    #[test]
    fn privileged_is_unmasked_unfiltered_and_has_the_hosts_devices() {
        let security = Security { privileged: true, ..Default::default() };
        let spec = spec(&ContainerConfig { security, ..config() }, &SandboxConfig::default()).unwrap();
        assert!(spec["linux"].get("seccomp").is_none() && spec["linux"].get("maskedPaths").is_none());
        let devices = spec["linux"]["devices"].as_array().unwrap();
        assert!(devices.iter().any(|d| d["path"] == "/dev/null"));
        assert!(serde_json::from_value::<oci_spec::runtime::Spec>(spec.clone()).is_ok());
    }

    #[test]
    fn privileged_without_the_hosts_devices_has_the_usual_ones() {
        let security = Security { privileged: true, without_host_devices: true, ..Default::default() };
        let spec = spec(&ContainerConfig { security, ..config() }, &SandboxConfig::default()).unwrap();
        assert!(spec["linux"].get("devices").is_none());
        assert_eq!(spec["linux"]["resources"]["devices"][0]["allow"], json!(false));
    }

    #[test]
    fn the_pid_namespace_is_the_one_that_is_asked_for() {
        let of = |pid: PidNamespace, pod: NamespaceMode| {
            let sandbox = SandboxConfig { pid: pod, ..Default::default() };
            namespace(&spec(&ContainerConfig { pid, ..config() }, &sandbox).unwrap(), "pid")
        };
        let (pod, own, node) = (NamespaceMode::Pod, NamespaceMode::Container, NamespaceMode::Node);
        let path = |pid: i32| Some(json!({ "type": "pid", "path": format!("/proc/{pid}/ns/pid") }));
        assert_eq!(of(PidNamespace::Sandbox, pod), path(8));
        assert_eq!(of(PidNamespace::Target("x".into()), own), path(9));
        assert_eq!(of(PidNamespace::Container, pod), Some(json!({ "type": "pid" })));
        assert_eq!(of(PidNamespace::Sandbox, own), Some(json!({ "type": "pid" })));
        assert_eq!((of(PidNamespace::Node, pod), of(PidNamespace::Sandbox, node)), (None, None));
    }

    #[test]
    fn paths_to_hide_and_ambient_capabilities_are_the_containers_own() {
        let security = Security {
            masked_paths: Some(vec!["/proc/keys".into()]),
            readonly_paths: Some(Vec::new()),
            add_ambient_capabilities: vec!["net_bind_service".into()],
            drop_capabilities: vec!["ALL".into()],
            ..Default::default()
        };
        let spec = spec(&ContainerConfig { security, ..config() }, &SandboxConfig::default()).unwrap();
        assert_eq!(spec["linux"]["maskedPaths"], json!(["/proc/keys"]));
        assert_eq!(spec["linux"]["readonlyPaths"], json!([]));
        for set in ["ambient", "inheritable", "bounding", "effective", "permitted"] {
            assert_eq!(spec["process"]["capabilities"][set], json!(["CAP_NET_BIND_SERVICE"]), "{set}");
        }
    }

    #[test]
    fn a_pod_with_a_user_namespace_is_mapped_in_every_part() {
        let maps = vec![IdMapping { container_id: 0, host_id: 100_000, length: 4 }];
        let user_namespace = Some(UserNamespace { uids: maps.clone(), gids: maps });
        let image = Mount { image: Some("vol".into()), container_path: "/v".into(), ..Default::default() };
        let security = Security { privileged: true, ..Default::default() };
        let config = ContainerConfig { mounts: vec![image], security, ..config() };
        let spec = spec(&config, &SandboxConfig { user_namespace, ..Default::default() }).unwrap();
        assert_eq!(namespace(&spec, "user").unwrap()["path"], "/proc/7/fd/5");
        assert!(namespace(&spec, "cgroup").is_some());
        let of = |target: &str| {
            spec["mounts"].as_array().unwrap().iter().find(|m| m["destination"] == target).cloned().unwrap()
        };
        assert_eq!(of("/v")["uidMappings"], spec["linux"]["uidMappings"]);
        assert!(!of("/dev/pts")["options"].as_array().unwrap().contains(&json!("gid=5")), "5 is not mapped");
    }

    #[test]
    fn mounts_that_contradict_themselves_are_refused() {
        let base = || Mount { host_path: "/tmp".into(), container_path: "/m".into(), ..Default::default() };
        let image = || Mount { host_path: "".into(), image: Some("vol".into()), ..base() };
        let map = || vec![IdMapping { container_id: 0, host_id: 1, length: 1 }];
        for (mount, words) in [
            (Mount { recursive_read_only: true, ..base() }, "needs readonly"),
            (Mount { host_path: "/tmp".into(), ..image() }, "exclude each other"),
            (Mount { image_sub_path: "../x".into(), ..image() }, "`..`"),
            (Mount { image_sub_path: "x".into(), ..base() }, "without an image"),
            (Mount { propagation: Propagation::HostToContainer, ..image() }, "propagation"),
            (Mount { uid_mappings: map(), ..base() }, "gid_mappings"),
        ] {
            let error = spec(&ContainerConfig { mounts: vec![mount], ..config() }, &SandboxConfig::default());
            let error = error.unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("/m"), "{error}");
        }
        let rro = Mount { recursive_read_only: true, readonly: true, ..base() };
        let spec = spec(&ContainerConfig { mounts: vec![rro], ..config() }, &SandboxConfig::default()).unwrap();
        let mounts = spec["mounts"].as_array().unwrap();
        let mount = mounts.iter().find(|m| m["destination"] == "/m").unwrap();
        assert_eq!(mount["options"], json!(["rbind", "rprivate", "rro"]));
    }

    #[test]
    fn an_image_volume_is_a_read_only_overlay_of_at_least_two_layers() {
        let image = Mount {
            image: Some("vol".into()),
            image_sub_path: "a/b".into(),
            container_path: "/v".into(),
            ..Default::default()
        };
        let spec = spec(&ContainerConfig { mounts: vec![image], ..config() }, &SandboxConfig::default()).unwrap();
        let mounts = spec["mounts"].as_array().unwrap();
        let mount = mounts.iter().find(|m| m["destination"] == "/v").unwrap();
        let options = mount["options"].as_array().unwrap();
        assert!(options.contains(&json!("lowerdir=/layers/a:/run/coracle/pods/p/containers/c/rootfs")), "{options:?}");
        assert!(options.contains(&json!("ro")) && options.contains(&json!("x-coracle.subpath=a/b")), "{options:?}");
    }

    #[test]
    fn devices_that_are_asked_for_get_nodes_and_rules() {
        let device =
            Device { host_path: "/dev/zero".into(), container_path: "/dev/nought".into(), permissions: "r".into() };
        let spec = spec(&ContainerConfig { devices: vec![device], ..config() }, &SandboxConfig::default()).unwrap();
        assert_eq!(spec["linux"]["devices"][0]["path"], "/dev/nought");
        let rules = spec["linux"]["resources"]["devices"].as_array().unwrap();
        assert_eq!(rules.last().unwrap()["access"], "r");
    }

    #[test]
    fn an_oom_score_is_raised_only_where_that_is_allowed() {
        let with = |score| ContainerConfig {
            resources: Resources { oom_score_adj: Some(score), ..Default::default() },
            ..Default::default()
        };
        assert_eq!(oom_score(&with(-998), None).unwrap(), Some(-998));
        assert_eq!(oom_score(&with(-998), Some(0)).unwrap(), Some(0));
        assert_eq!(oom_score(&with(5), Some(0)).unwrap(), Some(5));
        assert!(oom_score(&with(1001), None).unwrap_err().to_string().contains("1001"));
    }

    #[test]
    fn a_seccomp_profile_that_cannot_be_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.json");
        let with = |path: &Path| {
            let security = Security { seccomp: Seccomp::Localhost(path.into()), ..Default::default() };
            spec(&ContainerConfig { security, ..config() }, &SandboxConfig::default())
        };
        assert!(with(&path).unwrap_err().to_string().contains("p.json"));
        fs::write(&path, "{}").unwrap();
        assert!(with(&path).unwrap_err().to_string().contains("localhostProfile"));
        fs::write(&path, r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).unwrap();
        assert_eq!(with(&path).unwrap()["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ALLOW");
    }

    #[test]
    fn an_exec_is_the_containers_process_with_another_command() {
        let spec = spec(&config(), &SandboxConfig::default()).unwrap();
        let exec =
            ExecConfig { cmd: vec!["id".into()], tty: true, env: vec![("A".into(), "1".into())], ..Default::default() };
        let process = exec_process(&spec, &exec).unwrap();
        assert_eq!(process["args"], json!(["id"]));
        assert_eq!(process["capabilities"], spec["process"]["capabilities"]);
        assert!(process["env"].as_array().unwrap().contains(&json!("TERM=xterm")));
        assert!(serde_json::from_value::<oci_spec::runtime::Process>(process).is_ok());
        assert!(exec_process(&spec, &ExecConfig::default()).is_err());
    }
}
