//! A /proc that is not one: neither the container's view nor what the runtime writes goes anywhere else.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use serde_json::json;

use crate::oci_support::{Bundle, ours, peer};
use crate::tools::{Outside, Setting, start};

#[test]
fn cve_2019_19921_a_proc_that_leads_into_a_volume_is_refused() {
    for (name, kind) in [("proc", "proc"), ("sys", "sysfs")] {
        let volume = tempfile::tempdir().unwrap();
        fs::create_dir_all(volume.path().join("level1/level2")).unwrap();
        let mut bundle = Bundle::sh("echo ran; readlink /proc; cat /proc/keys");
        fs::remove_dir(bundle.rootfs().join(name)).unwrap();
        symlink("/evil/level1/level2", bundle.rootfs().join(name)).unwrap();
        let at = bundle.config["mounts"].as_array().unwrap().iter().position(|m| m["type"] == kind).unwrap();
        let mount = bundle.config["mounts"].as_array_mut().unwrap().remove(at);
        bundle.mount("/evil", "bind", volume.path().to_str().unwrap(), &["rbind"]);
        bundle.config["mounts"].as_array_mut().unwrap().push(mount);
        let answer = bundle.run();
        assert!(answer.code != 0 || peer("crun"), "{name}: {answer:?}");
        assert!(!answer.out.contains("ran") || peer("crun"), "{name}: {answer:?}");
        bundle.assert_gone();
    }
}

#[test]
fn cve_2023_28642_a_proc_beneath_a_link_is_refused() {
    // The last component is a directory, one before it is not.
    let mut bundle = Bundle::sh("echo ran");
    fs::create_dir_all(bundle.rootfs().join("real/proc")).unwrap();
    symlink("real", bundle.rootfs().join("alias")).unwrap();
    bundle.mount("/alias/proc", "proc", "proc", &[]);
    let answer = bundle.run();
    assert!(answer.code != 0 || !ours(), "{answer:?}");
    bundle.assert_gone();
}

/// A volume that looks like /proc, to be mounted over it.
fn false_proc(bundle: &mut Bundle) -> tempfile::TempDir {
    let volume = tempfile::tempdir().unwrap();
    for dir in ["sys/net/ipv4", "sys/kernel", "self/attr/apparmor", "thread-self/attr/apparmor", "1/attr"] {
        fs::create_dir_all(volume.path().join(dir)).unwrap();
    }
    for file in FALSE_FILES {
        fs::write(volume.path().join(file), "false").unwrap();
    }
    bundle.mount("/proc", "bind", volume.path().to_str().unwrap(), &["rbind"]);
    volume
}

const FALSE_FILES: [&str; 6] = [
    "sys/net/ipv4/ip_forward",
    "sys/kernel/msgmax",
    "self/attr/exec",
    "self/attr/apparmor/exec",
    "thread-self/attr/exec",
    "thread-self/attr/apparmor/exec",
];

#[test]
fn cve_2025_52881_sysctls_are_written_to_the_kernel_and_not_to_a_volume() {
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    bundle.set("/linux/sysctl", json!({ "net.ipv4.ip_forward": "1", "kernel.msgmax": "4242" }));
    let volume = false_proc(&mut bundle);
    let answer = bundle.create();
    if !ours() && answer.code != 0 {
        return; // Refused altogether.
    }
    answer.ok();
    for file in FALSE_FILES {
        assert_eq!(fs::read_to_string(volume.path().join(file)).unwrap(), "false", "{file}");
    }
    let pid = bundle.state()["pid"].to_string();
    let args = ["--target", &pid, "--net", "--ipc", "cat", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/msgmax"];
    let output = Command::new("nsenter").args(args).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n4242\n");
}

#[test]
fn cve_2019_16884_a_label_is_not_lost_in_a_volume() {
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    // A profile that no host has: were it written to a volume nobody would notice.
    bundle.set("/process/apparmorProfile", json!("coracle-no-such-profile"));
    let volume = false_proc(&mut bundle);
    let created = bundle.create();
    let answer = if created.code == 0 { bundle.oci(&["start", &bundle.id]) } else { created };
    assert!(answer.code != 0 || !ours(), "it runs without its profile: {answer:?}");
    for file in FALSE_FILES {
        assert_eq!(fs::read_to_string(volume.path().join(file)).unwrap(), "false", "{file}");
    }
}

#[test]
fn settings_of_a_namespace_that_is_the_hosts_by_its_path_are_refused() {
    let read = |file: &str| fs::read_to_string(format!("/proc/sys/{file}")).unwrap();
    let before = (read("net/ipv4/ip_default_ttl"), read("kernel/msgmnb"), read("kernel/hostname"));
    let cases = [
        ("network", "/proc/self/ns/net", "/linux/sysctl", json!({ "net.ipv4.ip_default_ttl": "65" })),
        ("ipc", "/proc/self/ns/ipc", "/linux/sysctl", json!({ "kernel.msgmnb": "16385" })),
        ("uts", "/proc/self/ns/uts", "/hostname", json!("taken-over")),
    ];
    for (kind, path, pointer, value) in cases {
        let mut bundle = Bundle::new(&["/bin/true"]);
        if pointer != "/hostname" {
            bundle.config.as_object_mut().unwrap().remove("hostname");
        }
        bundle.namespace(kind, Some(Some(path)));
        bundle.set(pointer, value);
        if ours() {
            bundle.create().fails(kind);
            bundle.assert_gone();
        }
    }
    assert_eq!(before, (read("net/ipv4/ip_default_ttl"), read("kernel/msgmnb"), read("kernel/hostname")));
}

#[test]
fn links_of_an_image_to_procs_own_do_not_lead_out() {
    let outside = Outside::new();
    // In procfs there are links that jump: as a mount's target they would jump out of the root.
    for link in ["/proc/self/root", "/proc/1/root", "/proc/self/cwd", "/proc/self/fd/3", "/proc/thread-self/root"] {
        let mut bundle = Bundle::sh("echo ran");
        symlink(format!("{link}{}", outside.path().display()), bundle.rootfs().join("trap")).unwrap();
        bundle.mount("/trap/made", "tmpfs", "tmpfs", &[]);
        bundle.run();
        outside.assert_untouched();
        bundle.assert_gone();
    }
}

#[test]
fn what_is_masked_is_masked_for_root_with_capabilities() {
    let mut bundle = Bundle::sh(
        "cat /proc/keys /proc/kcore | wc -c; ls /sys/firmware | wc -l; for f in kernel/core_pattern vm/panic_on_oom; do
         echo x 2>/dev/null > /proc/sys/$f && echo wrote; done; mount -o remount,rw /proc/sys 2>/dev/null && echo remounted;
         umount /proc/keys 2>/dev/null && echo uncovered; true",
    );
    let names = ["CAP_DAC_OVERRIDE", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_NET_ADMIN", "CAP_MKNOD"];
    crate::tools::capabilities(&mut bundle, &names);
    let pattern = Setting::core_pattern();
    let out = bundle.run().ok().out;
    assert_eq!(out, "0\n0\n");
    pattern.assert_untouched();
    // The witness: unmasked, there is something to see.
    let mut bundle = Bundle::sh("cat /proc/keys | wc -c; sleep 1000");
    bundle.set("/linux/maskedPaths", json!([]));
    start(&bundle);
    crate::oci_support::wait_for("the keys", || bundle.file("out").trim().parse::<u64>().unwrap_or(0) > 0);
}
