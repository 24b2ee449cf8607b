//! The OCI spec of a container: everything a container is, in the one document the runtime reads.
//!
//! Written as JSON, since that is what it is; a test reads it back through the types of the specification. The defaults
//! are containerd's, so that an image sees here what it sees there: its capabilities, masked and read-only paths,
//! devices, mounts. RuntimeDefault seccomp is on unless the pod says otherwise.

pub mod caps;
pub mod process;
mod resources;

pub mod user;
pub mod view;

pub use resources::limits;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Capability;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::seccomp_default;
use crate::types::{ContainerConfig, ContainerUser, Mount, NamespaceMode, Propagation, SandboxConfig, Seccomp};

/// The specification's version we write.
const OCI_VERSION: &str = "1.2.0";
/// A seccomp profile of a user is at most this long.
const MAX_PROFILE: u64 = 4 << 20;
/// Entries of the host's /dev that a privileged container gets are looked for this deep.
const MAX_DEV_DEPTH: usize = 6;

const MOUNTINFO: &str = "/proc/self/mountinfo";

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
    /// The pod's state folder: hosts, hostname, resolv.conf, shm.
    pub pod_dir: &'a Path,
    /// The pod's hostname.
    pub hostname: &'a str,
    /// The container's cgroup.
    pub cgroup: &'a str,
    /// The supervisor, whose namespaces the pod's are.
    pub supervisor: i32,
    /// The init of the pod's shared PID namespace.
    pub pid_ns_pid: Option<i32>,
}

/// Writes the spec, and tells who the process will be.
pub fn generate(input: &Input<'_>) -> Result<(Value, ContainerUser)> {
    let (config, security) = (input.config, &input.config.security);
    let image_user = input.image.and_then(|i| i.user().as_deref()).unwrap_or("");
    let user = user::resolve(input.view, image_user, security)?;
    let caps = caps::resolve(security, caps::available())?;
    let mut process = json!({
        "terminal": config.tty,
        "user": { "uid": user.uid, "gid": user.gid, "additionalGids": user.groups },
        "args": process::args(config, input.image)?,
        "env": process::env(config, input.image, input.hostname, &user.home)?,
        "cwd": process::cwd(config, input.image)?,
        "capabilities": { "bounding": caps, "effective": caps, "permitted": caps },
        "noNewPrivileges": security.no_new_privs,
    });
    if let Some(adj) = config.resources.oom_score_adj {
        process["oomScoreAdj"] = json!(adj);
    }
    let mut spec = json!({
        "ociVersion": OCI_VERSION,
        "process": process,
        "root": { "path": "rootfs", "readonly": security.readonly_rootfs },
        "mounts": mounts(input)?,
        "linux": linux(input)?,
    });
    if !config.annotations.is_empty() {
        spec["annotations"] = json!(config.annotations);
    }
    let user = ContainerUser { uid: user.uid, gid: user.gid, supplemental_groups: user.groups };
    Ok((spec, user))
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
    let mut linux = json!({
        "cgroupsPath": input.cgroup,
        "namespaces": namespaces(input),
        "resources": resources::linux(&config.resources, security.privileged, Vec::new())?,
    });
    if security.privileged {
        linux["devices"] = json!(host_devices(Path::new("/dev"))?);
    } else if !security.unmasked_proc {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READONLY);
    }
    if let Some(profile) = seccomp(config)? {
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
    match (sandbox.pid, input.pid_ns_pid) {
        (NamespaceMode::Node, _) => {}
        (NamespaceMode::Pod, Some(pid)) => share("pid", "pid", pid),
        _ => list.push(json!({ "type": "pid" })),
    }
    // A privileged container manages the host's cgroups.
    if !input.config.security.privileged {
        list.push(json!({ "type": "cgroup" }));
    }
    list
}

fn seccomp(config: &ContainerConfig) -> Result<Option<Value>> {
    match &config.security.seccomp {
        _ if config.security.privileged => Ok(None),
        Seccomp::Unconfined => Ok(None),
        Seccomp::RuntimeDefault => {
            let caps = caps::resolve(&config.security, caps::available())?;
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

fn mount(target: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": target, "type": kind, "source": source, "options": options })
}

/// The mounts, parents before children; a volume of the pod replaces ours at the same place.
fn mounts(input: &Input<'_>) -> Result<Vec<Value>> {
    let security = &input.config.security;
    let access = if security.privileged { "rw" } else { "ro" };
    let sys = ["nosuid", "noexec", "nodev", access];
    let cgroup = ["nosuid", "noexec", "nodev", "relatime", access];
    let mut list = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &sys),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &cgroup),
    ];
    let shm = match input.sandbox.ipc {
        NamespaceMode::Node => PathBuf::from("/dev/shm"),
        _ => input.pod_dir.join("shm"),
    };
    let files = if security.readonly_rootfs { "ro" } else { "rw" };
    let mut binds: Vec<(String, Value)> =
        vec![bind("/dev/shm", &shm, &["rbind", "rprivate", "nosuid", "nodev", "noexec"])?];
    for (target, file) in [("/etc/hosts", "hosts"), ("/etc/hostname", "hostname"), ("/etc/resolv.conf", "resolv.conf")]
    {
        binds.push(bind(target, &input.pod_dir.join(file), &["rbind", "rprivate", files])?);
    }
    for volume in &input.config.mounts {
        binds.push(volume_mount(volume)?);
    }
    // The last of a place wins; the sort by path puts parents before their children.
    let last: BTreeMap<String, Value> = binds.into_iter().collect();
    list.retain(|m| m["destination"].as_str().is_none_or(|d| !last.contains_key(d)));
    let mut last: Vec<_> = last.into_iter().collect();
    last.sort_by_key(|(path, _)| path.matches('/').count());
    list.extend(last.into_iter().map(|(_, m)| m));
    Ok(list)
}

fn bind(target: &str, source: &Path, options: &[&str]) -> Result<(String, Value)> {
    let source = source.to_str().ok_or_else(|| Error::invalid("mounts", format!("{source:?} is not UTF-8")))?;
    Ok((target.to_owned(), mount(target, "bind", source, options)))
}

fn volume_mount(volume: &Mount) -> Result<(String, Value)> {
    let bad = |why: &str| Error::invalid("mounts", format!("{}: {why}", volume.container_path.display()));
    let target = volume.container_path.to_str().ok_or_else(|| bad("the path is not UTF-8"))?;
    if !target.starts_with('/') || target.split('/').any(|part| part == "..") {
        return Err(bad("the path must be absolute and have no `..`"));
    }
    let target = format!("/{}", target.split('/').filter(|p| !p.is_empty() && *p != ".").collect::<Vec<_>>().join("/"));
    if target == "/" {
        return Err(bad("the root itself cannot be a volume"));
    }
    if let Err(e) = fs::metadata(&volume.host_path) {
        return Err(Error::io("find the source of a volume", &volume.host_path)(e));
    }
    if let Some(why) = propagation_refused(volume)? {
        return Err(bad(&why));
    }
    let propagation = match volume.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let access = if volume.readonly { "ro" } else { "rw" };
    bind(&target, &volume.host_path, &["rbind", propagation, access])
}

/// Why the propagation asked for could not work: the mount that holds the source must take part in it.
fn propagation_refused(volume: &Mount) -> Result<Option<String>> {
    let wanted: &[&str] = match volume.propagation {
        Propagation::Private => return Ok(None),
        Propagation::HostToContainer => &["shared:", "master:"],
        Propagation::Bidirectional => &["shared:"],
    };
    let source = volume.host_path.canonicalize().map_err(Error::io("resolve", &volume.host_path))?;
    let mounts = fs::read_to_string(MOUNTINFO).map_err(Error::io("read", MOUNTINFO))?;
    let (point, flags) = mount_of(&mounts, &source).unwrap_or_default();
    let takes_part = flags.split(' ').any(|flag| wanted.iter().any(|w| flag.starts_with(w)));
    Ok((!takes_part).then(|| {
        format!(
            "{:?} propagation needs a shared mount, and {point} is private (mount --make-rshared {point})",
            volume.propagation
        )
    }))
}

/// The mountpoint that holds `path`, and its optional fields, as mountinfo tells them.
fn mount_of(mountinfo: &str, path: &Path) -> Option<(String, String)> {
    let line = |line: &str| {
        let left = line.split_once(" - ")?.0;
        let mut fields = left.splitn(7, ' ');
        let point = fields.nth(4)?.replace("\\040", " ");
        Some((point, fields.nth(1).unwrap_or_default().to_owned()))
    };
    // The last of the deepest: mounts stack.
    mountinfo.lines().filter_map(line).filter(|(p, _)| path.starts_with(p)).max_by_key(|(p, _)| p.len())
}

/// The devices of the host, for a privileged container; what the runtime makes itself is left out.
fn host_devices(dev: &Path) -> Result<Vec<Value>> {
    const OWN: [&str; 5] = ["pts", "shm", "fd", "mqueue", "console"];
    let mut found = Vec::new();
    let mut folders = vec![(dev.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        // A folder may vanish while it is looked at: devices come and go.
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let own = depth == 0 && entry.file_name().to_str().is_some_and(|n| OWN.contains(&n) || n == ".lxc");
            let Ok(meta) = fs::symlink_metadata(entry.path()) else { continue };
            let kind = meta.file_type();
            if own {
                continue;
            } else if kind.is_dir() && depth < MAX_DEV_DEPTH {
                folders.push((entry.path(), depth + 1));
            } else if (kind.is_char_device() || kind.is_block_device()) && meta.rdev() != 0 {
                found.push(json!({
                    "path": entry.path(), "type": if kind.is_block_device() { "b" } else { "c" },
                    "major": nix::sys::stat::major(meta.rdev()), "minor": nix::sys::stat::minor(meta.rdev()),
                    "fileMode": meta.mode() & 0o7777, "uid": meta.uid(), "gid": meta.gid(),
                }));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ExecConfig, Security};

    fn spec(config: &ContainerConfig, sandbox: &SandboxConfig) -> Result<Value> {
        generate(&Input {
            config,
            sandbox,
            image: None,
            view: &view::View::new(Vec::new()),
            pod_dir: Path::new("/run/coracle/pods/p"),
            hostname: "web",
            cgroup: "/coracle/podp/c",
            supervisor: 7,
            pid_ns_pid: Some(8),
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
    fn propagation_that_cannot_work_is_refused() {
        let mountinfo = "20 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda rw\n\
                         21 20 0:5 / /mnt rw - tmpfs tmpfs rw\n22 20 0:6 / /mnt/sl rw master:7 - tmpfs tmpfs rw";
        let of = |path: &str| mount_of(mountinfo, Path::new(path)).unwrap();
        assert_eq!(of("/etc/x"), ("/".into(), "shared:1".into()));
        assert_eq!(of("/mnt/a"), ("/mnt".into(), String::new()));
        assert_eq!(of("/mnt/sl/b"), ("/mnt/sl".into(), "master:7".into()));
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
