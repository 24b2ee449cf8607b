//! An OCI bundle as a pod's container has it: its own namespaces, the usual mounts, limits, capabilities and masked paths,
//! and Debian's static busybox as the whole root filesystem.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// The static program that is the root filesystem.
const BUSYBOX: &str = "/bin/busybox";

/// Capabilities that containers usually get.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Makes a bundle whose process runs `args`, in the cgroup `cgroup`.
pub fn make(dir: &Path, args: &[&str], cgroup: &str, seccomp: bool) -> Result<PathBuf> {
    let root = dir.join("rootfs");
    for sub in ["bin", "proc", "sys", "dev", "etc", "tmp"] {
        fs::create_dir_all(root.join(sub))?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).context("copy /bin/busybox (Debian package busybox-static)")?;
    for name in ["sh", "true", "sleep", "cat"] {
        symlink("busybox", root.join("bin").join(name))?;
    }
    let mut config = config(args, cgroup);
    if seccomp {
        config["linux"]["seccomp"] = serde_json::to_value(coracle_engine::seccomp_default::profile(&[]))?;
    }
    fs::write(dir.join("config.json"), serde_json::to_vec(&config)?)?;
    Ok(dir.to_path_buf())
}

fn config(args: &[&str], cgroup: &str) -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let device = |major, minor| json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm"});
    let namespaces: Vec<Value> =
        ["pid", "network", "ipc", "uts", "mount", "cgroup"].iter().map(|kind| json!({"type": kind})).collect();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin", "HOME=/root"],
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
        },
        "root": {"path": "rootfs"},
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": namespaces,
            "resources": {
                "memory": {"limit": 134_217_728},
                "cpu": {"shares": 512, "quota": 50_000, "period": 100_000},
                "pids": {"limit": 100},
                "devices": [{"allow": false, "access": "rwm"}, device(1, 3), device(1, 8), device(1, 9), device(5, 0)],
            },
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
