//! `spec`: a config.json to begin with. `features`: what this runtime can do.

use std::fs::OpenOptions;
use std::io::Write;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::args::Spec;
use super::inspect::print;

/// spec
pub fn write(args: &Spec) -> Result<()> {
    let path = super::args::directory(&args.bundle).join("config.json");
    let what = || format!("write {}", path.display());
    // An existing configuration is somebody's work.
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path).with_context(what)?;
    writeln!(file, "{}", serde_json::to_string_pretty(&config(args.rootless))?).with_context(what)
}

fn config(rootless: bool) -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
    let devpts: &[&str] = match rootless {
        // Group 5 is not mapped there.
        true => &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
        false => &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &[]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", devpts),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ];
    mounts.push(match rootless {
        true => mount("/sys", "none", "/sys", &["rbind", "nosuid", "noexec", "nodev", "ro"]),
        false => mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    });
    mounts.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]));
    let mut kinds = vec!["pid", "network", "ipc", "uts", "mount", "cgroup"];
    if rootless {
        kinds.retain(|k| *k != "network");
        kinds.push("user");
    }
    let namespaces: Vec<Value> = kinds.iter().map(|kind| json!({ "type": kind })).collect();
    let mut linux = json!({
        "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
        "namespaces": namespaces,
        "maskedPaths": [
            "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
            "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
        ],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    });
    if rootless {
        let map = |id: u32| json!([{ "containerID": 0, "hostID": id, "size": 1 }]);
        linux["uidMappings"] = map(nix::unistd::geteuid().as_raw());
        linux["gidMappings"] = map(nix::unistd::getegid().as_raw());
        linux["resources"] = Value::Null;
    }
    json!({
        "ociVersion": coracle_runtime::OCI_VERSION,
        "process": {
            "terminal": true,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "coracle",
        "mounts": mounts,
        "linux": linux,
    })
}

/// features
pub fn features() -> Result<()> {
    print(&serde_json::to_string_pretty(&coracle_runtime::features())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_configurations_this_runtime_reads() {
        for rootless in [false, true] {
            let text = serde_json::to_string(&config(rootless)).unwrap();
            let spec: coracle_runtime::spec::Spec = serde_json::from_str(&text).unwrap();
            assert_eq!(spec.process.unwrap().args, ["sh"]);
            assert_eq!(spec.linux.uid_mappings.is_empty(), !rootless);
        }
    }
}
