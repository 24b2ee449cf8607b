//! What of the specification is done, refused, or wrong.
//!
//! [`check`] takes every struct of the configuration apart without `..`: a field added to [`crate::spec`] does not
//! compile until someone decides here whether it is done or refused. A security setting that cannot be enforced is
//! never a warning.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::{Error, Result};
use crate::schedule::Affinity;
use crate::spec::{Linux, Mount, NamespaceKind, Process, Spec};

/// Longest container id: it becomes a directory and a cgroup name.
const MAX_ID_BYTES: usize = 255;

/// -1 to the calls that set ids (the class of CVE-2024-40635).
const NO_ID: u32 = u32::MAX;

/// The clocks of a time namespace.
const CLOCKS: &[&str] = &["boottime", "monotonic"];
/// The nanoseconds of an offset make less than a second.
const MAX_NANOSECONDS: u32 = 999_999_999;

fn refused(field: &str, reason: &str) -> Error {
    Error::Refused { field: field.to_owned(), reason: reason.to_owned() }
}

/// The first row that is asked for becomes the error.
fn table(rows: &[(&str, bool, &str)]) -> Result<()> {
    match rows.iter().find(|(_, asked, _)| *asked) {
        Some((field, _, reason)) => Err(refused(field, reason)),
        None => Ok(()),
    }
}

fn set(text: &Option<String>) -> bool {
    text.as_deref().is_some_and(|t| !t.is_empty())
}

/// Refuses what is not done, and what contradicts itself.
pub(crate) fn check(spec: &Spec) -> Result<()> {
    let Spec {
        oci_version,
        root,
        mounts,
        process,
        hostname: _,
        domainname: _,
        hooks,
        annotations,
        linux,
        solaris,
        windows,
        freebsd,
        zos,
        vm,
    } = spec;
    table(&[
        ("solaris", solaris.is_some(), "this is Linux"),
        ("windows", windows.is_some(), "this is Linux"),
        ("freebsd", freebsd.is_some(), "this is Linux"),
        ("zos", zos.is_some(), "this is Linux"),
        ("vm", vm.is_some(), "virtual machines are a handler of the pod engine, not of this runtime"),
    ])?;
    if !oci_version.starts_with("1.") {
        return Err(Error::invalid(format!("config.json: ociVersion {oci_version:?} is not 1.x")));
    }
    if root.as_ref().is_none_or(|r| r.path.as_os_str().is_empty()) {
        return Err(Error::invalid("config.json: root.path is missing"));
    }
    if annotations.contains_key("") {
        return Err(Error::invalid("config.json: annotations: a key is empty"));
    }
    crate::hooks::check(hooks)?;
    for mount in mounts {
        check_mount(mount)?;
    }
    match process {
        Some(process) => check_process(process)?,
        None => return Err(Error::invalid("config.json: process is missing: there is nothing to run")),
    }
    check_linux(linux)?;
    crate::netdev::check(spec)?;
    check_coherence(spec)
}

/// The process of a container or of an exec.
pub(crate) fn check_process(process: &Process) -> Result<()> {
    let Process {
        terminal: _,
        console_size: _,
        user,
        args,
        command_line,
        env: _,
        cwd,
        capabilities: _,
        rlimits: _,
        no_new_privileges: _,
        apparmor_profile: _,
        oom_score_adj: _,
        selinux_label: _,
        io_priority: _,
        scheduler: _,
        exec_cpu_affinity: _,
    } = process;
    table(&[
        ("process.commandLine", set(command_line), "it is for Windows"),
        ("process.user.username", set(&user.username), "it is for Windows; give uid and gid"),
    ])?;
    // Applied at exec alone, but a wrong one is told at create.
    Affinity::plan(process)?;
    let ids = [("uid", user.uid), ("gid", user.gid)].into_iter();
    for (field, id) in ids.chain(user.additional_gids.iter().map(|gid| ("additionalGids", *gid))) {
        if id == NO_ID {
            let why = "the kernel takes it for \"leave as it is\", which is the runtime's own: root";
            return Err(Error::invalid(format!("process.user.{field}: {id} is no id: {why}")));
        }
    }
    if args.is_empty() {
        return Err(Error::invalid("process.args must not be empty"));
    }
    if !cwd.is_absolute() {
        return Err(Error::invalid(format!("process.cwd must be an absolute path, not {:?}", cwd.display())));
    }
    Ok(())
}

fn check_mount(mount: &Mount) -> Result<()> {
    let Mount { destination, kind: _, source: _, options: _, uid_mappings, gid_mappings } = mount;
    if uid_mappings.is_empty() != gid_mappings.is_empty() {
        return Err(Error::invalid(format!(
            "config.json: mount {}: an idmapped mount needs both, uidMappings and gidMappings",
            destination.display()
        )));
    }
    if destination.as_os_str().is_empty() {
        return Err(Error::invalid("config.json: a mount has no destination"));
    }
    Ok(())
}

fn check_linux(linux: &Linux) -> Result<()> {
    let Linux {
        devices: _,
        uid_mappings: _,
        gid_mappings: _,
        sysctl: _,
        resources: _,
        cgroups_path: _,
        namespaces,
        net_devices: _,
        seccomp: _,
        rootfs_propagation,
        masked_paths: _,
        readonly_paths: _,
        mount_label: _,
        intel_rdt,
        memory_policy: _,
        personality: _,
        time_offsets,
    } = linux;
    for (clock, offset) in time_offsets {
        if !CLOCKS.contains(&clock.as_str()) {
            let names = CLOCKS.join(", ");
            return Err(Error::invalid(format!("config.json: linux.timeOffsets: {clock:?} is none of {names}")));
        }
        if offset.nanosecs > MAX_NANOSECONDS {
            let why = format!("{clock}.nanosecs: {} is a second or more", offset.nanosecs);
            return Err(Error::invalid(format!("config.json: linux.timeOffsets.{why}")));
        }
    }
    if let Some(rdt) = intel_rdt {
        crate::rdt::check(rdt)?;
    }
    for (index, namespace) in namespaces.iter().enumerate() {
        if namespaces[..index].iter().any(|n| n.kind == namespace.kind) {
            return Err(Error::invalid(format!("config.json: two {} namespaces", namespace.kind.name())));
        }
    }
    if let Some(word) = rootfs_propagation.as_deref().filter(|w| !w.is_empty())
        && crate::options::propagation(word).is_none()
    {
        return Err(Error::invalid(format!("config.json: unknown linux.rootfsPropagation {word:?}")));
    }
    Ok(())
}

/// Settings that need a namespace of the container's own.
fn check_coherence(spec: &Spec) -> Result<()> {
    let has = |kind| spec.namespace(kind).is_some();
    let linux = &spec.linux;
    if !has(NamespaceKind::Mount) {
        return Err(refused(
            "linux.namespaces",
            "without a mount namespace the container's mounts would be the host's",
        ));
    }
    if (set(&spec.hostname) || set(&spec.domainname)) && (!has(NamespaceKind::Uts) || is_own(spec, NamespaceKind::Uts))
    {
        return Err(Error::invalid(
            "config.json: hostname and domainname need a uts namespace, or they would be the host's",
        ));
    }
    let mapped = !linux.uid_mappings.is_empty() || !linux.gid_mappings.is_empty();
    if spec.makes(NamespaceKind::User) && (linux.uid_mappings.is_empty() || linux.gid_mappings.is_empty()) {
        return Err(Error::invalid("config.json: a new user namespace needs linux.uidMappings and linux.gidMappings"));
    }
    if mapped && !has(NamespaceKind::User) {
        return Err(Error::invalid("config.json: linux.uidMappings and gidMappings need a user namespace"));
    }
    if !linux.time_offsets.is_empty() && !spec.makes(NamespaceKind::Time) {
        return Err(Error::invalid("config.json: linux.timeOffsets need a new time namespace"));
    }
    for name in linux.sysctl.keys() {
        check_sysctl(spec, name)?;
    }
    Ok(())
}

/// A sysctl's path under /proc/sys. Dots separate, unless the first separator is a slash (then dots belong to names).
pub(crate) fn sysctl_path(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'.' => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

const IPC_SYSCTLS: &[&str] = &[
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

fn check_sysctl(spec: &Spec, name: &str) -> Result<()> {
    let path = sysctl_path(name);
    if path.split('/').any(|part| part == ".." || part.is_empty()) {
        return Err(Error::invalid(format!("config.json: linux.sysctl: {name:?} is not the name of a sysctl")));
    }
    let needs = if IPC_SYSCTLS.contains(&path.as_str()) || path.starts_with("fs/mqueue/") {
        NamespaceKind::Ipc
    } else if path.starts_with("net/") {
        NamespaceKind::Network
    } else if path == "kernel/domainname" {
        NamespaceKind::Uts
    } else if path == "kernel/hostname" {
        return Err(Error::invalid("config.json: linux.sysctl: set the hostname by the field `hostname`"));
    } else {
        return Err(refused("linux.sysctl", &format!("{name} is not namespaced: it would change the host")));
    };
    if spec.namespace(needs).is_none() || is_own(spec, needs) {
        let reason = format!("{name} without a {} namespace of the container's would change the host", needs.name());
        return Err(refused("linux.sysctl", &reason));
    }
    Ok(())
}

/// Whether a namespace to join by its path is the runtime's own: then it is the host's, by another name.
fn is_own(spec: &Spec, kind: NamespaceKind) -> bool {
    let own = match kind {
        NamespaceKind::Ipc => "/proc/self/ns/ipc",
        NamespaceKind::Network => "/proc/self/ns/net",
        NamespaceKind::Uts => "/proc/self/ns/uts",
        _ => return false,
    };
    let identity = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    let joined = spec.namespace(kind).and_then(|namespace| namespace.joins());
    joined.and_then(identity).is_some_and(|found| Some(found) == identity(Path::new(own)))
}

/// A container's id: it names a directory and a cgroup.
pub(crate) fn check_id(id: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if id.is_empty() || id.len() > MAX_ID_BYTES || id == "." || id == ".." || !id.chars().all(good) {
        return Err(Error::invalid(format!(
            "invalid container id {id:?}: letters, digits and _ + - . are allowed, at most {MAX_ID_BYTES}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(extra: &str) -> Spec {
        let text = format!(
            r#"{{"ociVersion":"1.0.2","root":{{"path":"rootfs"}},"process":{{"args":["sh"],"cwd":"/"}},
                "linux":{{"namespaces":[{{"type":"mount"}}]}}{extra}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_minimal_config_passes() {
        check(&spec("")).unwrap();
    }

    #[test]
    fn minus_one_is_nobody() {
        for user in [r#""uid":4294967295"#, r#""gid":4294967295"#, r#""additionalGids":[4294967295]"#] {
            let text = format!(r#"{{"args":["sh"],"cwd":"/","user":{{{user}}}}}"#);
            let error = check_process(&serde_json::from_str(&text).unwrap()).unwrap_err().to_string();
            assert!(error.contains("process.user."), "{error}");
        }
    }

    #[test]
    fn refusals_name_the_field() {
        let error = check(&spec(r#","vm":{}"#)).unwrap_err().to_string();
        assert!(error.contains(": vm is not supported"), "{error}");
    }

    #[test]
    fn ids_that_are_paths_are_refused() {
        for id in ["", ".", "..", "a/b", "a\0", "ä", &"x".repeat(256)] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
        check_id("web_1.a-b+c").unwrap();
    }

    #[test]
    fn sysctl_names_have_two_spellings() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(sysctl_path("net.ipv4.conf.eth0/1.forwarding"), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(sysctl_path("net/ipv4/conf/eth0.1/forwarding"), "net/ipv4/conf/eth0.1/forwarding");
    }

    #[test]
    fn host_wide_sysctls_are_refused() {
        let mut config = spec("");
        config.linux.sysctl.insert("vm.swappiness".into(), "1".into());
        assert!(check(&config).is_err());
        config.linux.sysctl = [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into();
        assert!(check(&config).is_err(), "no network namespace");
        let host = serde_json::from_str(r#"{"type":"network","path":"/proc/self/ns/net"}"#).unwrap();
        config.linux.namespaces.push(host);
        assert!(check(&config).is_err(), "the host's network namespace by its path");
        config.linux.namespaces.last_mut().unwrap().path = None;
        check(&config).unwrap();
        config.linux.sysctl = [("kernel.msgmax/../x".to_owned(), "1".to_owned())].into();
        assert!(check(&config).is_err());
    }
}
