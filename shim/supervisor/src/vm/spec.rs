//! A container's configuration, made for the machine it was written for, as one for the virtual machine. Pure: what is read
//! or sent follows from the answer.
//!
//! | in config.json | in the guest |
//! |---|---|
//! | the pod's namespaces, by path | those of the guest's init, or of one of the pod's processes there |
//! | namespaces of the machine | refused: the guest has none of them |
//! | `cgroupsPath` | `/coracle/ID` |
//! | `cpu.cpus`, `cpu.mems`, `cpuset.*` | left out: numbers of the machine's processors and nodes, which the guest has not |
//! | `memory.swap`, `memory.swappiness`, `memory.swap.*`, `memory.zswap.*` | left out: the guest has no swap to limit |
//! | huge pages of none | left out |
//! | huge pages, limits of kernel memory, RDMA, Intel RDT, network classes, rates of devices | refused: not enforced there |
//! | devices of the machine, hooks | refused |
//! | AppArmor's RuntimeDefault, by its names in [`DEFAULT_PROFILES`] | left out: it guards a kernel that is shared |
//! | other AppArmor profiles (Localhost), SELinux labels | refused: the guest's kernel has neither |
//! | mounts of kernel filesystems | the same |
//! | bind mounts | the pod's own, by [`Kind`]; others are the machine's and refused, but in folders that are shared |

use super::share;
use serde_json::{Value, json};
use std::path::{Component, Path, PathBuf};

/// The root of all containers' cgroups in the guest.
const CGROUP: &str = "/coracle";
/// Profiles that are given to whoever asks for none, and to whoever asks for RuntimeDefault: by their names the two are the
/// same.
const DEFAULT_PROFILES: [&str; 6] = [
    "unconfined",
    "coracle-default",
    "cri-containerd.apparmor.d",
    "containerd-default",
    "docker-default",
    "nerdctl-default",
];
/// Filesystems that the guest's kernel makes.
const KERNEL: [&str; 8] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "ramfs"];
/// Device nodes that every container has: path, major, minor.
const DEVICES: [(&str, u64, u64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];
/// An annotation of containerd's CRI, and what it says of the container that stands for the pod.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX: &str = "sandbox";

/// What is known of the pod.
pub struct Pod<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its folder here.
    pub bundle: &'a Path,
    /// Pids of the guest that its own requests may name: the first processes of its containers.
    pub pids: &'a [i32],
    /// The first process of the pod's PID namespace there, if it has one. Requests call it 1.
    pub init: Option<i32>,
    /// containerd knows all of the pod's processes by this pid; 0 for others than containerd.
    pub supervisor: i32,
    /// Folders of the machine that volumes may lie in.
    pub folders: &'a [PathBuf],
}

/// What the source of a bind mount is to the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file or folder of its configuration: sent, and again when it changes.
    Sent,
    /// A file for the container's last words: sent once, and fetched back.
    Message,
    /// Scratch space: made in the guest, with this one's owner and mode.
    Local,
    /// A file with a read-only filesystem: plugged in.
    Disk,
    /// The machine's, in a folder that the handler shares.
    Shared {
        /// Nothing in the guest may write to it.
        read_only: bool,
    },
}

/// A mount whose source in the guest is still to be written in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its place among the mounts.
    pub at: usize,
    /// What it is.
    pub kind: Kind,
    /// Where it is here.
    pub source: PathBuf,
}

/// Refused, in words.
pub type Refused = String;

/// The guest's config.json, and the mounts that need a source.
pub fn adapt(mut spec: Value, container: &str, pod: &Pod<'_>) -> Result<(Value, Vec<Volume>), Refused> {
    if !spec.is_object() {
        return Err("config.json is no object".to_owned());
    }
    if spec["hooks"].as_object().is_some_and(|hooks| hooks.values().any(is_there)) {
        return Err(refused("OCI hooks: their programs are the machine's"));
    }
    let is_sandbox = spec["annotations"][CONTAINER_TYPE] == SANDBOX;
    if let Some(root) = spec["root"].as_object_mut() {
        root.insert("path".into(), json!("rootfs"));
    }
    adapt_process(&mut spec["process"])?;
    let linux = &mut spec["linux"];
    if !linux.is_object() {
        *linux = json!({});
    }
    for (key, what) in [
        ("mountLabel", "an SELinux label"),
        ("intelRdt", "Intel RDT"),
        ("netDevices", "network devices"),
        ("memoryPolicy", "a memory policy"),
        ("uidMappings", "a user namespace"),
        ("gidMappings", "a user namespace"),
    ] {
        refuse(linux, key, what)?;
    }
    linux["cgroupsPath"] = json!(format!("{CGROUP}/{container}"));
    adapt_namespaces(&mut linux["namespaces"], is_sandbox, pod)?;
    check_devices(&linux["devices"])?;
    adapt_resources(&mut linux["resources"])?;
    let volumes = adapt_mounts(&mut spec["mounts"], pod)?;
    Ok((spec, volumes))
}

fn refused(what: impl std::fmt::Display) -> Refused {
    format!("{what} (not in a virtual machine)")
}

/// Whether a value asks for something.
fn is_there(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::Bool(true) => true,
    }
}

/// What asks for nothing is taken out, what asks for something is refused.
fn refuse(parent: &mut Value, key: &str, what: &str) -> Result<(), Refused> {
    match parent.as_object_mut().and_then(|map| map.remove(key)) {
        Some(value) if is_there(&value) => Err(refused(what)),
        _ => Ok(()),
    }
}

/// A container's process, or an exec's.
pub fn adapt_process(process: &mut Value) -> Result<(), Refused> {
    let profile = process.as_object_mut().and_then(|map| map.remove("apparmorProfile"));
    if let Some(Value::String(profile)) = profile
        && !profile.is_empty()
        && !DEFAULT_PROFILES.contains(&profile.as_str())
    {
        return Err(refused(format!("AppArmor profile {profile:?}")));
    }
    refuse(process, "selinuxLabel", "an SELinux label")?;
    refuse(process, "execCPUAffinity", "an affinity to the machine's processors")
}

/// Files of cgroups that have no meaning in the guest.
const MACHINES_FILES: [&str; 3] = ["cpuset.", "memory.swap.", "memory.zswap."];

/// Limits, at the start and later.
pub fn adapt_resources(resources: &mut Value) -> Result<(), Refused> {
    let Some(map) = resources.as_object_mut() else { return Ok(()) };
    for (group, keys) in [("cpu", ["cpus", "mems"]), ("memory", ["swap", "swappiness"])] {
        if let Some(group) = map.get_mut(group).and_then(Value::as_object_mut) {
            keys.iter().for_each(|key| drop(group.remove(*key)));
        }
    }
    for key in ["kernel", "kernelTCP"] {
        let limit = map.get_mut("memory").and_then(Value::as_object_mut).and_then(|memory| memory.remove(key));
        // -1: no limit.
        if limit.is_some_and(|limit| is_there(&limit) && limit.as_i64() != Some(-1)) {
            return Err(refused(format!("memory.{key}, a limit of kernel memory")));
        }
    }
    let pages = map.remove("hugepageLimits").unwrap_or_default();
    if pages.as_array().into_iter().flatten().any(|size| is_there(&size["limit"])) {
        return Err(refused("huge pages"));
    }
    let network = map.remove("network").unwrap_or_default();
    if is_there(&network["classID"]) || is_there(&network["priorities"]) {
        return Err(refused("classes and priorities of network traffic"));
    }
    if let Some(unified) = map.get_mut("unified").and_then(Value::as_object_mut) {
        unified.retain(|key, _| !MACHINES_FILES.iter().any(|start| key.starts_with(start)));
        if let Some(key) = unified.keys().find(|key| key.starts_with("hugetlb.") || key.starts_with("rdma.")) {
            return Err(refused(key));
        }
    }
    if let Some(io) = map.get_mut("blockIO") {
        for key in ["weightDevice", "throttleReadBpsDevice", "throttleWriteBpsDevice"] {
            refuse(io, key, "rates of the machine's devices")?;
        }
        for key in ["throttleReadIOPSDevice", "throttleWriteIOPSDevice"] {
            refuse(io, key, "rates of the machine's devices")?;
        }
    }
    refuse(resources, "rdma", "RDMA")
}

/// The namespaces that a container must not have of the machine, their files in /proc, and what pods call it.
const NEEDED: [(&str, &str, &str); 4] = [
    ("network", "net", "the machine's network (hostNetwork)"),
    ("ipc", "ipc", "the machine's IPC (hostIPC)"),
    ("uts", "uts", "the machine's hostname"),
    ("pid", "pid", "the machine's processes (hostPID)"),
];

fn adapt_namespaces(namespaces: &mut Value, is_sandbox: bool, pod: &Pod<'_>) -> Result<(), Refused> {
    let list = namespaces.as_array_mut().ok_or_else(|| refused("the machine's namespaces"))?;
    for (kind, _, what) in NEEDED {
        if !list.iter().any(|namespace| namespace["type"] == kind) {
            return Err(refused(what));
        }
    }
    for namespace in list {
        let kind = namespace["type"].as_str().unwrap_or_default().to_owned();
        let path = namespace["path"].as_str().unwrap_or_default().to_owned();
        let file = NEEDED.iter().find(|(known, ..)| *known == kind).map(|(_, file, _)| *file);
        let path = match (file, path.as_str()) {
            (None, "") if kind == "user" => return Err(refused("a user namespace")),
            // What the container that stands for the pod would make is what the pod has.
            (Some(file), "") if is_sandbox && kind != "pid" => format!("/proc/1/ns/{file}"),
            (_, "") => continue,
            (None, path) => return Err(refused(format!("{kind} namespace {path}"))),
            (Some(file), path) => match pid_of(path) {
                Some(pid) if pod.pids.contains(&pid) && pid != pod.supervisor => format!("/proc/{pid}/ns/{file}"),
                Some(pid) if kind == "pid" && (pid == 1 || pid == pod.supervisor || Some(pid) == pod.init) => {
                    let init = pod.init.ok_or_else(|| refused("processes that the pod shares, which has none"))?;
                    format!("/proc/{init}/ns/pid")
                }
                _ if kind == "pid" => return Err(refused(format!("pid namespace {path}, which is not the pod's"))),
                _ => format!("/proc/1/ns/{file}"),
            },
        };
        namespace["path"] = json!(path);
    }
    Ok(())
}

/// Of `/proc/PID/ns/KIND`.
fn pid_of(path: &str) -> Option<i32> {
    path.strip_prefix("/proc/")?.split_once("/ns/")?.0.parse().ok()
}

fn check_devices(devices: &Value) -> Result<(), Refused> {
    for device in devices.as_array().into_iter().flatten() {
        let path = device["path"].as_str().unwrap_or_default();
        let number = |key: &str| device[key].as_u64().unwrap_or(u64::MAX);
        if !DEVICES.contains(&(path, number("major"), number("minor"))) {
            return Err(refused(format!("device {path:?}")));
        }
    }
    Ok(())
}

fn adapt_mounts(mounts: &mut Value, pod: &Pod<'_>) -> Result<Vec<Volume>, Refused> {
    let mut volumes = Vec::new();
    for (at, mount) in mounts.as_array_mut().into_iter().flatten().enumerate() {
        let target = mount["destination"].as_str().unwrap_or_default().to_owned();
        let kind = mount["type"].as_str().unwrap_or_default().to_owned();
        let mut options: Vec<String> =
            mount["options"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        let has = |words: &[&str]| options.iter().any(|option| words.contains(&option.as_str()));
        let mapped = ["uidMappings", "gidMappings"].into_iter().any(|key| is_there(&mount[key]));
        if mapped || has(&["idmap", "ridmap"]) {
            return Err(refused(format!("mount {target}: ids that are mapped")));
        }
        let binds = kind == "bind" || has(&["bind", "rbind"]);
        let source = PathBuf::from(mount["source"].as_str().unwrap_or_default());
        if !binds && KERNEL.contains(&kind.as_str()) {
            continue;
        }
        if has(&["shared", "rshared"]) {
            return Err(refused(format!("mount {target}: Bidirectional propagation")));
        }
        if has(&["slave", "rslave"]) {
            return Err(refused(format!("mount {target}: HostToContainer propagation")));
        }
        let volume = match kind.as_str() {
            "erofs" => Kind::Disk,
            _ if binds => match kind_of(&source, &target, pod)? {
                Kind::Shared { .. } => Kind::Shared { read_only: is_read_only(&options) },
                kind => kind,
            },
            other => return Err(refused(format!("mount {target}: filesystem {other:?}"))),
        };
        if volume == Kind::Disk {
            options.retain(|option| !matches!(option.as_str(), "rw" | "loop"));
            options.extend(["rbind".to_owned(), "ro".to_owned()]);
        }
        (mount["type"], mount["options"]) = (json!("bind"), json!(options));
        volumes.push(Volume { at, kind: volume, source });
    }
    Ok(volumes)
}

/// The last word counts.
fn is_read_only(options: &[String]) -> bool {
    options.iter().rev().find(|option| matches!(option.as_str(), "rw" | "ro" | "rro")).is_some_and(|word| word != "rw")
}

/// What the source of a bind mount is, by where it lies: our engine's folders, kubelet's, containerd's.
fn kind_of(source: &Path, target: &str, pod: &Pod<'_>) -> Result<Kind, Refused> {
    let no = |why: &str| Err(refused(format!("mount {target}: {}{why}", source.display())));
    let plain =
        source.is_absolute() && source.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    let Some(text) = source.to_str().filter(|_| plain) else { return no(" is no plain path") };
    if let Some(known) = source.strip_prefix(pod.bundle).ok().and_then(of_bundle) {
        return Ok(known);
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
    let of_pod = parts.iter().rposition(|part| *part == "pods").map(|at| &parts[at + 1..]);
    match of_pod {
        // The engine's data of this pod.
        Some([id, "volumes", _]) if *id == pod.id => return Ok(Kind::Local),
        Some([id, "messages", _]) if *id == pod.id => return Ok(Kind::Message),
        Some([uid, rest @ ..]) if is_uid(uid) => match rest {
            ["volumes", "kubernetes.io~empty-dir", _] => return Ok(Kind::Local),
            ["volumes", plugin, _] if SENT.contains(plugin) => return Ok(Kind::Sent),
            ["etc-hosts"] => return Ok(Kind::Sent),
            ["containers", _, _] => return Ok(Kind::Message),
            ["volume-subpaths", ..] => return no(", a subPath of kubelet's"),
            _ => {}
        },
        _ => {}
    }
    let shared = share::lets_in(pod.folders, source);
    match parts.as_slice() {
        // containerd's CRI.
        [.., "sandboxes", id, "hosts" | "hostname" | "resolv.conf"] if *id == pod.id => Ok(Kind::Sent),
        [.., "sandboxes", id, "shm"] if *id == pod.id => Ok(Kind::Local),
        _ if shared => Ok(Kind::Shared { read_only: false }),
        _ => no(" is a folder or file of the machine (hostPath), and not below options.host_paths of the handler"),
    }
}

/// Of a pod of kubelet's: a UUID, or of a static pod the 32 digits of a hash. An id of ours has 64.
fn is_uid(name: &str) -> bool {
    let digits = name.bytes().filter(u8::is_ascii_hexdigit).count();
    let dashes: Vec<usize> = name.match_indices('-').map(|(at, _)| at).collect();
    digits == 32 && digits + dashes.len() == name.len() && (dashes.is_empty() || dashes == [8, 13, 18, 23])
}

/// kubelet's volumes of configuration.
const SENT: [&str; 4] =
    ["kubernetes.io~configmap", "kubernetes.io~secret", "kubernetes.io~projected", "kubernetes.io~downward-api"];

fn of_bundle(below: &Path) -> Option<Kind> {
    let parts: Vec<&str> = below.to_str()?.split('/').collect();
    match parts.as_slice() {
        ["hosts" | "hostname" | "resolv.conf"] | ["volumes", _] => Some(Kind::Sent),
        ["shm"] | ["memory", _] => Some(Kind::Local),
        _ => None,
    }
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
