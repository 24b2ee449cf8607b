//! What config.json asks for, seen from inside the container: process, mounts, devices, namespaces, hooks; and what is
//! refused, with nothing left behind.

mod oci_support;

use oci_support::{Answer, Bundle, ours, peer, wait_for};
use serde_json::json;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

#[test]
fn the_process_is_who_it_shall_be() {
    let mut bundle =
        Bundle::sh("id -u; id -g; id -G; pwd; umask; echo $HOME; echo $A; ulimit -c; cat /proc/self/oom_score_adj");
    bundle.set("/process/user", json!({ "uid": 7, "gid": 8, "additionalGids": [9, 10], "umask": 0o27 }));
    bundle.set("/process/cwd", json!("/made/for/this"));
    bundle.set("/process/env", json!(["PATH=/bin", "A=b"]));
    bundle.set("/process/rlimits", json!([{ "type": "RLIMIT_CORE", "hard": 0, "soft": 0 }]));
    bundle.set("/process/oomScoreAdj", json!(900));
    fs::write(bundle.rootfs().join("etc/passwd"), "u:x:7:8::/tmp:/bin/sh\n").unwrap();
    let out = bundle.run().ok().out;
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines, ["7", "8", "8 9 10", "/made/for/this", "0027", "/tmp", "b", "0", "900"]);
}

#[test]
fn an_oom_score_that_may_not_be_lowered_is_an_error_with_its_reason() {
    let own: i32 = fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.set("/process/oomScoreAdj", json!(own));
    bundle.run().ok();
    bundle.set("/process/oomScoreAdj", json!(own - 500));
    let answer = bundle.run();
    // With CAP_SYS_RESOURCE it is simply lowered.
    if answer.code != 0 {
        answer.fails("oom");
        bundle.assert_gone();
    }
}

fn sets(out: &str) -> Vec<u64> {
    out.lines()
        .filter_map(|l| l.strip_prefix("Cap"))
        .map(|l| u64::from_str_radix(l.split_whitespace().last().unwrap(), 16).unwrap())
        .collect()
}

#[test]
fn all_five_capability_sets_are_set() {
    let mut bundle = Bundle::new(&["/bin/grep", "^Cap", "/proc/self/status"]);
    bundle.set("/process/user", json!({ "uid": 7, "gid": 7 }));
    bundle.set(
        "/process/capabilities",
        json!({
            "bounding": ["CAP_KILL", "CAP_CHOWN", "CAP_SETUID"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL", "CAP_CHOWN"],
            "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"],
        }),
    );
    // Inheritable, permitted, effective, bounding, ambient; an exec as user 7 keeps what is ambient.
    assert_eq!(sets(&bundle.run().ok().out), [1 << 5, 1 << 5, 1 << 5, 1 << 5 | 1 | 1 << 7, 1 << 5]);
}

#[test]
fn without_capabilities_the_process_has_none() {
    let mut bundle = Bundle::new(&["/bin/grep", "^Cap", "/proc/self/status"]);
    bundle.config["process"].as_object_mut().unwrap().remove("capabilities");
    assert_eq!(sets(&bundle.run().ok().out), [0; 5]);
}

#[test]
fn no_new_privs_is_set_only_when_asked_with_and_without_a_filter() {
    for (wanted, filter) in [(true, false), (false, false), (true, true), (false, true)] {
        let mut bundle = Bundle::new(&["/bin/grep", "-E", "NoNewPrivs|Seccomp:|CapEff", "/proc/self/status"]);
        bundle.set("/process/noNewPrivileges", json!(wanted));
        if filter {
            let rule = json!({ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO" });
            bundle.set("/linux/seccomp", json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] }));
        }
        let out = bundle.run().ok().out;
        assert!(out.contains(&format!("NoNewPrivs:\t{}", wanted as u8)), "{out}");
        assert!(out.contains(&format!("Seccomp:\t{}", if filter { 2 } else { 0 })), "{out}");
        let effective = u64::from_str_radix(
            out.lines().find(|l| l.starts_with("CapEff")).unwrap().split_whitespace().last().unwrap(),
            16,
        )
        .unwrap();
        assert_eq!(effective & 1 << 21, 0, "CAP_SYS_ADMIN must not stay: {out}");
    }
}

#[test]
fn a_filter_applies_to_the_program_and_to_exec() {
    let mut bundle = Bundle::sh("mkdir /x 2>&1; sleep 1000");
    let rule = json!({ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 });
    bundle.set("/linux/seccomp", json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] }));
    bundle.create().ok();
    bundle.oci(&["start", &bundle.id]).ok();
    wait_for("the error", || bundle.file("out").contains("No space left"));
    bundle.exec(&["/bin/mkdir", "/y"]).fails("No space left");
}

#[test]
fn devices_and_links_are_made() {
    let mut bundle = Bundle::sh(
        "for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; done; for l in fd stdin ptmx; do readlink /dev/$l; done; stat -c '%t %T %a %u %g' /dev/mine",
    );
    bundle.set(
        "/linux/devices",
        json!([{ "path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 3, "gid": 4 }]),
    );
    let out = bundle.run().ok().out;
    assert_eq!(out.lines().last(), Some("1 5 640 3 4"), "{out}");
    assert!(out.starts_with("/proc/self/fd\n/proc/self/fd/0\n"), "{out}");
    assert!(out.contains("pts/ptmx"), "{out}");
}

#[test]
fn mount_options_are_applied() {
    let mut bundle = Bundle::sh("grep -E ' /(ro|flags|data|file) ' /proc/self/mountinfo; cat /file; touch /ro/x 2>&1");
    let source = bundle.dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(bundle.dir.path().join("file"), "content\n").unwrap();
    let source = source.to_str().unwrap().to_owned();
    bundle.mount("/ro", "bind", &source, &["rbind", "ro"]);
    bundle.mount("/flags", "bind", &source, &["bind", "nosuid", "nodev", "noexec"]);
    bundle.mount("/data", "tmpfs", "tmpfs", &["size=64k", "mode=700", "noatime"]);
    let file = bundle.dir.path().join("file").to_str().unwrap().to_owned();
    bundle.mount("/file", "bind", &file, &["bind"]);
    let out = bundle.run().out;
    let line =
        |point: &str| out.lines().find(|l| l.contains(point)).unwrap_or_else(|| panic!("{point} is not in {out}"));
    assert!(line(" /ro ").contains(" ro,"), "{out}");
    assert!(line(" /flags ").contains("nosuid,nodev,noexec"), "{out}");
    assert!(line(" /data ").contains("noatime") && line(" /data ").contains("size=64k"), "{out}");
    assert!(out.contains("content") && out.contains("Read-only file system"), "{out}");
}

#[test]
fn recursive_read_only_reaches_submounts() {
    let mut bundle = Bundle::sh("touch /tree/sub/x && echo written");
    let source = bundle.dir.path().join("tree");
    fs::create_dir_all(source.join("sub")).unwrap();
    let _mount = Mounted::tmpfs(&source.join("sub"));
    let source = source.to_str().unwrap().to_owned();
    bundle.mount("/tree", "bind", &source, &["rbind", "rro"]);
    if peer("runc") {
        return; // rro came with runc 1.2.
    }
    assert!(!bundle.run().out.contains("written"));
    let last = bundle.config["mounts"].as_array().unwrap().len() - 1;
    bundle.set(&format!("/mounts/{last}/options"), json!(["rbind", "ro"]));
    assert!(bundle.run().out.contains("written"), "plain ro is not recursive");
}

/// A mount of the test's own, unmounted at its end.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn tmpfs(path: &Path) -> Mounted {
        nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>).unwrap();
        Mounted(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_remount_changes_an_earlier_mount() {
    let mut bundle =
        Bundle::sh("grep -E ' (/|/t|/b) ' /proc/self/mountinfo; touch /t/x 2>&1; touch /b/x && echo written");
    let source = bundle.dir.path().join("source");
    fs::create_dir(&source).unwrap();
    bundle.mount("/t", "tmpfs", "tmpfs", &["size=64k", "nosuid", "lazytime"]);
    bundle.mount("/t", "tmpfs", "tmpfs", &["remount", "size=128k", "noexec", "ro", "nolazytime"]);
    bundle.mount("/b", "bind", source.to_str().unwrap(), &["bind", "ro", "nodev"]);
    bundle.mount("/b", "bind", source.to_str().unwrap(), &["remount", "bind", "rw"]);
    let out = bundle.run().out;
    if !ours() {
        return; // runc replaces all flags of the mount by those of the remount; ours keep the rest, as a shell's user expects.
    }
    let line = |point: &str| out.lines().find(|l| l.contains(point)).unwrap_or_else(|| panic!("{point}: {out}"));
    for words in ["ro,", "noexec", "nosuid", "size=128k"] {
        assert!(line(" /t ").contains(words), "{words}: {out}");
    }
    assert!(!line(" /t ").contains("lazytime"), "{out}");
    assert!(line(" /b ").contains(" rw,nodev"), "{out}");
    assert!(out.contains("Read-only file system") && out.contains("written"), "{out}");
    bundle.mount("/bin", "tmpfs", "tmpfs", &["remount", "ro"]);
    bundle.create().fails("remount /bin");
    bundle.assert_gone();
}

#[test]
fn options_of_the_whole_filesystem_reach_it() {
    if !ours() {
        return; // runc 1.1 and crun 1.8 pass on to the filesystem, which refuses them, `defaults` and `lazytime`.
    }
    let mut bundle = Bundle::sh("grep -E ' /(t|u) ' /proc/self/mountinfo");
    bundle.mount("/t", "tmpfs", "tmpfs", &["sync", "dirsync", "lazytime", "silent", "iversion", "nosymfollow"]);
    bundle.mount("/u", "tmpfs", "tmpfs", &["sync", "async", "loud", "noiversion", "strictatime"]);
    let out = bundle.run().ok().out;
    let line = |point: &str| out.lines().find(|l| l.contains(point)).unwrap_or_else(|| panic!("{point}: {out}"));
    assert!(line(" /t ").contains("sync,dirsync,lazytime"), "{out}");
    assert!(line(" /t ").contains("nosymfollow") || peer("runc"), "{out}");
    assert!(!line(" /u ").contains("sync") && !line(" /u ").contains("relatime"), "{out}");
}

#[test]
fn a_filesystem_of_a_device_counts_its_changes() {
    if peer("crun") {
        return; // It passes `iversion` on to the filesystem, which refuses it.
    }
    let mut bundle = Bundle::sh("grep ' /disk ' /proc/self/mountinfo; touch /disk/x && echo written");
    let image = bundle.dir.path().join("disk");
    fs::File::create(&image).unwrap().set_len(4 << 20).unwrap();
    let image = image.to_str().unwrap().to_owned();
    let run = |command: &str, args: &[&str]| {
        let output = std::process::Command::new(command).args(args).output().expect("e2fsprogs and losetup");
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    run("mkfs.ext4", &["-q", "-O", "^has_journal", &image]);
    let device = run("losetup", &["--find", "--show", &image]);
    // The init, which mounts it, is in the container's cgroup already.
    bundle.set("/linux/resources", json!({ "devices": [{ "allow": true, "access": "rwm" }] }));
    bundle.mount("/disk", "ext4", &device, &["iversion", "nosuid", "noatime", "sync"]);
    let answer = bundle.run();
    run("losetup", &["--detach", &device]);
    let out = answer.ok().out;
    assert!(out.contains("nosuid,noatime") && out.contains("sync") && out.contains("written"), "{out}");
}

#[test]
fn tmpcopyup_starts_with_what_was_there() {
    let mut bundle = Bundle::sh("cat /etc/a/file; ls -l /etc/link; stat -c %a:%u /etc/a; touch /etc/new");
    let etc = bundle.rootfs().join("etc");
    fs::create_dir(etc.join("a")).unwrap();
    fs::write(etc.join("a/file"), "copied\n").unwrap();
    fs::set_permissions(etc.join("a"), std::os::unix::fs::PermissionsExt::from_mode(0o710)).unwrap();
    symlink("a/file", etc.join("link")).unwrap();
    bundle.mount("/etc", "tmpfs", "tmpfs", &["tmpcopyup"]);
    let out = bundle.run().ok().out;
    assert!(out.contains("copied") && out.contains("-> a/file") && out.contains("710:0"), "{out}");
    assert!(!etc.join("new").exists());
}

#[test]
fn masked_and_readonly_paths_are_covered() {
    let mut bundle = Bundle::sh(
        "cat /proc/keys | wc -c; ls /sys/firmware | wc -l; cat /secret | wc -c; touch /kept/x 2>&1; echo 1 2>/dev/null > /proc/sys/kernel/domainname || echo ro",
    );
    fs::write(bundle.rootfs().join("secret"), "secret").unwrap();
    fs::create_dir(bundle.rootfs().join("kept")).unwrap();
    bundle.set("/linux/maskedPaths", json!(["/proc/keys", "/sys/firmware", "/secret", "/none"]));
    bundle.set("/linux/readonlyPaths", json!(["/proc/sys", "/kept", "/none"]));
    let out = bundle.run().out;
    assert!(out.starts_with("0\n0\n0\n"), "{out}");
    assert!(out.contains("Read-only file system") && out.ends_with("ro\n"), "{out}");
}

#[test]
fn a_readonly_root_is_read_only() {
    let mut bundle = Bundle::sh("touch /x 2>&1; touch /dev/shm/x && echo shm");
    bundle.set("/root/readonly", json!(true));
    let out = bundle.run().out;
    assert!(out.contains("Read-only file system") && out.contains("shm"), "{out}");
}

#[test]
fn names_and_sysctls_are_the_containers_own() {
    let before = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let mut bundle = Bundle::sh(
        "hostname; cat /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax; ip addr show lo | grep -c UP",
    );
    bundle.set("/hostname", json!("inside"));
    if !peer("runc") {
        bundle.set("/domainname", json!("domain")); // runc knows it since 1.2.
    }
    bundle.set("/linux/sysctl", json!({ "net.ipv4.ip_forward": "1", "kernel.msgmax": "4242" }));
    let out = bundle.run().ok().out;
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!((lines[0], lines[2], lines[3], lines[4]), ("inside", "1", "4242", "1"), "{out}");
    assert!(lines[1] == "domain" || peer("runc"));
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), before);
}

#[test]
fn sysctls_of_the_host_are_refused() {
    for name in ["vm.swappiness", "kernel.pid_max", "net.ipv4.ip_forward"] {
        let mut bundle = Bundle::new(&["/bin/true"]);
        bundle.set("/linux/sysctl", json!({ name: "1" }));
        if name.starts_with("net") {
            bundle.namespace("network", None);
        }
        let answer = bundle.run();
        assert_ne!(answer.code, 0, "{name}");
        bundle.assert_gone();
    }
}

#[test]
fn namespaces_are_joined_by_path() {
    let first = Bundle::sleeping();
    let pid = first.state()["pid"].to_string();
    let mut bundle = Bundle::sh("hostname; readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; ps");
    for (kind, file) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid")] {
        bundle.namespace(kind, Some(Some(&format!("/proc/{pid}/ns/{file}"))));
    }
    bundle.config.as_object_mut().unwrap().remove("hostname");
    let out = bundle.run().ok().out;
    assert!(out.starts_with("box\n"), "{out}");
    for file in ["net", "ipc"] {
        assert!(out.contains(fs::read_link(format!("/proc/{pid}/ns/{file}")).unwrap().to_str().unwrap()), "{out}");
    }
    assert!(out.contains("sleep 1000"), "the shared PID namespace shows the other's processes: {out}");
}

#[test]
fn a_user_namespace_maps_ids() {
    let mut bundle = Bundle::sh(
        "id -u; cat /proc/self/uid_map; touch /tmp/made; stat -c %u /bin/busybox; test -c /dev/null && echo null; id -G",
    );
    bundle.namespace("user", Some(None));
    bundle.set("/linux/uidMappings", json!([{ "containerID": 0, "hostID": 100000, "size": 1000 }]));
    bundle.set("/linux/gidMappings", json!([{ "containerID": 0, "hostID": 100000, "size": 1000 }]));
    fs::set_permissions(bundle.rootfs().join("tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
    let out = bundle.run().ok().out;
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "0");
    assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["0", "100000", "1000"]);
    assert_eq!(&lines[2..4], ["65534", "null"], "{out}");
    let made = fs::metadata(bundle.rootfs().join("tmp/made")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 100000);
}

#[test]
fn exec_enters_a_user_namespace() {
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    bundle.namespace("user", Some(None));
    bundle.set("/linux/uidMappings", json!([{ "containerID": 0, "hostID": 100000, "size": 1000 }]));
    bundle.set("/linux/gidMappings", json!([{ "containerID": 0, "hostID": 100000, "size": 1000 }]));
    bundle.create().ok();
    bundle.oci(&["start", &bundle.id]).ok();
    let out = bundle.exec(&["/bin/sh", "-c", "id -u; cat /proc/self/uid_map"]).ok().out;
    assert!(out.starts_with("0\n") && out.contains("100000"), "{out}");
}

#[test]
fn a_user_namespace_is_joined_together_with_others() {
    let mut first = Bundle::new(&["/bin/sleep", "1000"]);
    first.namespace("user", Some(None));
    let maps = json!([{ "containerID": 0, "hostID": 100000, "size": 1000 }]);
    first.set("/linux/uidMappings", maps.clone()).set("/linux/gidMappings", maps.clone());
    first.create().ok();
    first.oci(&["start", &first.id]).ok();
    let pid = first.state()["pid"].to_string();
    let mut bundle = Bundle::sh("readlink /proc/self/ns/user; readlink /proc/self/ns/net; id -u; echo $$");
    for (kind, file) in [("user", "user"), ("network", "net"), ("ipc", "ipc")] {
        bundle.namespace(kind, Some(Some(&format!("/proc/{pid}/ns/{file}"))));
    }
    // The kernel has the maps already; runc wants them again.
    bundle.set("/linux/uidMappings", maps.clone()).set("/linux/gidMappings", maps);
    let out = bundle.run().ok().out;
    for file in ["user", "net"] {
        assert!(out.contains(fs::read_link(format!("/proc/{pid}/ns/{file}")).unwrap().to_str().unwrap()), "{out}");
    }
    assert!(out.ends_with("\n0\n1\n"), "{out}");
}

#[test]
fn a_time_namespace_has_its_offset() {
    if !ours() {
        return; // runc has it since 1.2, and Debian's crun 1.8 fails with offsets.
    }
    let mut bundle = Bundle::sh("cut -d. -f1 /proc/uptime; sleep 1000");
    bundle.namespace("time", Some(None));
    bundle.set("/linux/timeOffsets", json!({ "boottime": { "secs": 1_000_000 } }));
    bundle.create().ok();
    bundle.oci(&["start", &bundle.id]).ok();
    wait_for("output", || !bundle.file("out").is_empty());
    assert!(bundle.file("out").trim().parse::<u64>().unwrap() > 1_000_000);
    if ours() {
        let out = bundle.exec(&["/bin/cut", "-d.", "-f1", "/proc/uptime"]).ok().out;
        assert!(out.trim().parse::<u64>().unwrap() > 1_000_000, "exec joins it too: {out}");
    }
}

#[test]
fn both_clocks_are_set_off_in_a_user_namespace_too() {
    if !ours() {
        return; // As above.
    }
    let mut bundle = Bundle::new(&["/bin/cat", "/proc/self/timens_offsets"]);
    bundle.namespace("time", Some(None)).namespace("user", Some(None));
    let maps = json!([{ "containerID": 0, "hostID": 100000, "size": 1000 }]);
    bundle.set("/linux/uidMappings", maps.clone()).set("/linux/gidMappings", maps);
    let offsets =
        json!({ "monotonic": { "secs": 86_400, "nanosecs": 5 }, "boottime": { "secs": -1, "nanosecs": 999_999_999 } });
    bundle.set("/linux/timeOffsets", offsets);
    let out = bundle.run().ok().out;
    let words: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(words, ["monotonic", "86400", "5", "boottime", "-1", "999999999"]);
    for (offsets, words) in [
        (json!({ "realtime": { "secs": 1 } }), "realtime"),
        (json!({ "boottime": { "nanosecs": 1_000_000_000 } }), "boottime.nanosecs"),
    ] {
        bundle.set("/linux/timeOffsets", offsets);
        bundle.create().fails("linux.timeOffsets").fails(words);
        bundle.assert_gone();
    }
}

/// Runs a container in a mount namespace in which all is shared, and sees to it that nothing comes back there.
fn on_shared_mounts(bundle: &Bundle) -> Answer {
    bundle.write_config();
    let (runtime, root, folder) = (oci_support::runtime(), bundle.state_root(), bundle.dir.path());
    let script = "\"$@\"; code=$?; grep -c \"$FOLDER\" /proc/self/mountinfo >&2 && exit 99; exit $code";
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "--propagation", "shared", "sh", "-c", script, "sh"]);
    command.args([runtime.as_os_str(), "--root".as_ref(), root.as_os_str(), "run".as_ref(), "--bundle".as_ref()]);
    command.args([folder.as_os_str(), bundle.id.as_ref()]).env("FOLDER", folder).stdin(Stdio::null());
    command.output().expect("unshare of util-linux").into()
}

#[test]
fn the_root_has_the_propagation_it_shall_have() {
    for (word, shown) in [
        ("private", ""),
        ("rprivate", ""),
        ("slave", "master:"),
        ("rslave", "master:"),
        ("shared", "shared:"),
        ("rshared", "shared:"),
        ("unbindable", "unbindable"),
    ] {
        let mut bundle = Bundle::sh("grep ' / / ' /proc/self/mountinfo || grep ' / ' /proc/self/mountinfo");
        bundle.set("/linux/rootfsPropagation", json!(word));
        // Once as this machine is, and once on one whose mounts are shared, as systemd has them.
        let answers = [bundle.run(), on_shared_mounts(&bundle)];
        if !ours() {
            continue; // crun 1.8 leaves another peer group; runc cannot copy what is unbindable.
        }
        for answer in answers {
            let out = answer.ok().out;
            let line = out.lines().find(|l| l.split(' ').nth(4) == Some("/")).unwrap_or_else(|| panic!("{out}"));
            let fields: Vec<&str> = line.split(' ').skip(6).take_while(|f| *f != "-").collect();
            match shown {
                "" => assert_eq!(fields, Vec::<&str>::new(), "{word}: {line}"),
                // Where the host's mount is private there is no master.
                "master:" => assert!(fields.iter().all(|f| f.starts_with(shown)), "{word}: {line}"),
                _ => assert!(fields.iter().any(|f| f.starts_with(shown)), "{word}: {line}"),
            }
        }
    }
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.set("/linux/rootfsPropagation", json!("everywhere"));
    let answer = bundle.create();
    assert_ne!(answer.code, 0);
    if ours() {
        answer.fails("linux.rootfsPropagation");
    }
}

#[test]
fn annotations_are_told_and_an_empty_key_is_none() {
    let mut bundle = Bundle::sleeping();
    bundle.oci(&["delete", "--force", &bundle.id]).ok();
    bundle.set("/annotations", json!({ "org.example.key": "a value", "org.example.empty": "" }));
    bundle.create().ok();
    let state = bundle.state();
    assert_eq!(state["annotations"]["org.example.key"], "a value");
    assert_eq!(state["annotations"]["org.example.empty"], "");
    bundle.oci(&["delete", "--force", &bundle.id]).ok();
    bundle.set("/annotations", json!({ "": "x" }));
    if ours() {
        bundle.create().fails("annotations");
    }
}

#[test]
fn a_cgroup_namespace_and_mount_show_the_containers_own() {
    let mut bundle = Bundle::sh(
        "cat /proc/self/cgroup; ls /sys/fs/cgroup; cat /sys/fs/cgroup/pids/tasks /sys/fs/cgroup/cgroup.procs 2>/dev/null | head -1
        for d in /sys/fs/cgroup/pids /sys/fs/cgroup; do [ -e $d/cgroup.procs ] && mkdir $d/x; done 2>&1",
    );
    bundle.namespace("cgroup", Some(None));
    bundle.mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]);
    let out = bundle.run().out;
    assert!(!out.contains("coracle-test-oci"), "{out}");
    assert!(out.contains("\n1\n"), "the init is in what is mounted: {out}");
    assert!(out.contains("Read-only"), "{out}");
}

#[test]
fn hooks_run_in_order_with_the_state() {
    let mut bundle = Bundle::sh("echo program >> /order");
    let order = bundle.rootfs().join("order");
    let hook = |name: &str, inside: bool| {
        let file = if inside { "/order".to_owned() } else { order.display().to_string() };
        let script =
            format!("read s; echo {name} $s | sed 's/{name}.*\"status\": *\"\\([a-z]*\\)\".*/{name} \\1/' >> {file}");
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] }])
    };
    for (kind, inside) in [
        ("prestart", false),
        ("createRuntime", false),
        ("createContainer", false),
        ("startContainer", true),
        ("poststart", false),
        ("poststop", false),
    ] {
        bundle.set(&format!("/hooks/{kind}"), hook(kind, inside));
    }
    bundle.create().ok();
    let created = fs::read_to_string(&order).unwrap();
    let names = |text: &str| text.lines().map(|l| l.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>();
    let mut so_far = names(&created);
    // runc 1.1 runs poststart at create.
    so_far.retain(|name| !(peer("runc") && name == "poststart"));
    assert_eq!(so_far, ["prestart", "createRuntime", "createContainer"], "{created}");
    assert!(created.contains("prestart creating") || !ours(), "{created}");
    bundle.oci(&["start", &bundle.id]).ok();
    bundle.wait_status("stopped");
    bundle.oci(&["delete", &bundle.id]).ok();
    let all = fs::read_to_string(&order).unwrap();
    assert_eq!(all.lines().count(), 7, "{all}");
    assert!(all.ends_with("poststop stopped\n") || peer("crun"), "{all}");
    let position =
        |name: &str| all.lines().position(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name} in {all}"));
    assert!(position("startContainer") < position("program"), "{all}");
    assert!(position("startContainer") < position("poststart") || !ours(), "{all}");
}

#[test]
fn a_failing_hook_undoes_the_create() {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let mut bundle = Bundle::new(&["/bin/true"]);
        bundle.set(
            &format!("/hooks/{kind}"),
            json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo out of luck >&2; exit 3"] }]),
        );
        let answer = bundle.create();
        assert_ne!(answer.code, 0);
        if ours() {
            answer.fails("exit status 3").fails("out of luck").fails(kind);
        }
        bundle.assert_gone();
    }
}

#[test]
fn a_hook_that_hangs_is_killed_after_its_timeout() {
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.set("/hooks/createRuntime", json!([{ "path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1 }]));
    let answer = bundle.create();
    assert_ne!(answer.code, 0);
    bundle.assert_gone();
}

#[test]
fn fields_that_are_not_done_are_refused_by_name() {
    if !ours() {
        return; // The peers do them, or ignore them.
    }
    // Where the kernel has AppArmor, it is the start that does not find the profile.
    let apparmor = fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|on| on.trim() == "Y");
    if apparmor {
        let mut bundle = Bundle::new(&["/bin/true"]);
        bundle.set("/process/apparmorProfile", json!("coracle-no-such-profile"));
        bundle.run().fails("coracle-no-such-profile").fails("is it loaded?");
    }
    for (pointer, value) in [
        ("/process/apparmorProfile", json!("p")),
        ("/process/selinuxLabel", json!("l")),
        ("/linux/mountLabel", json!("l")),
        ("/vm", json!({})),
    ] {
        if apparmor && pointer == "/process/apparmorProfile" {
            continue;
        }
        let mut bundle = Bundle::new(&["/bin/true"]);
        bundle.set(pointer, value);
        bundle.create().fails(&pointer.trim_start_matches('/').replace('/', "."));
        bundle.assert_gone();
    }
}

#[test]
fn errors_name_the_failing_step_and_leave_nothing() {
    type Change = fn(&mut Bundle);
    let cases: &[(&str, Change)] = &[
        ("no-such-program", |b| {
            b.set("/process/args", json!(["no-such-program"]));
        }),
        ("/etc", |b| {
            b.set("/process/args", json!(["/etc"]));
        }),
        ("/no/source", |b| {
            b.mount("/x", "bind", "/no/source", &["rbind"]);
        }),
        ("nofs", |b| {
            b.mount("/x", "nofs", "nofs", &[]);
        }),
        ("CAP_FLY", |b| {
            b.set("/process/capabilities/bounding", json!(["CAP_FLY"]));
        }),
        ("RLIMIT_FUN", |b| {
            b.set("/process/rlimits", json!([{ "type": "RLIMIT_FUN", "hard": 1, "soft": 1 }]));
        }),
        ("rootfs-missing", |b| {
            b.set("/root/path", json!("rootfs-missing"));
        }),
        ("/no/ns", |b| {
            b.namespace("network", Some(Some("/no/ns")));
        }),
        ("mount", |b| {
            b.namespace("mount", None);
        }),
        ("cwd", |b| {
            b.set("/process/cwd", json!("relative"));
        }),
        ("args", |b| {
            b.set("/process/args", json!([]));
        }),
        ("bogus=1", |b| {
            b.mount("/x", "tmpfs", "tmpfs", &["bogus=1"]);
        }),
        ("timeOffsets", |b| {
            b.set("/linux/timeOffsets", json!({ "boottime": { "secs": 1 } }));
        }),
    ];
    for (words, change) in cases {
        let mut bundle = Bundle::new(&["/bin/true"]);
        change(&mut bundle);
        let answer = bundle.create();
        if ours() {
            answer.fails(words);
            // runc 1.1 leaves cgroups behind in some of these cases.
            bundle.assert_gone();
        }
    }
}

#[test]
fn a_broken_config_says_where() {
    let bundle = Bundle::new(&["/bin/true"]);
    fs::write(bundle.dir.path().join("config.json"), "{\n \"process\": 5 }").unwrap();
    let answer = bundle.oci(&["create", "--bundle", bundle.dir.path().to_str().unwrap(), &bundle.id]);
    assert_ne!(answer.code, 0);
    if ours() {
        answer.fails("line 2");
    }
    bundle.oci(&["create", "--bundle", "/no/such/bundle", &bundle.id]).fails("no such");
}

// A root filesystem that wants out.

#[test]
fn a_mount_target_that_links_to_the_root_does_not_cover_it() {
    let mut bundle = Bundle::new(&["/bin/echo", "ran"]);
    symlink("/", bundle.rootfs().join("trap")).unwrap();
    bundle.mount("/trap", "tmpfs", "tmpfs", &[]);
    let answer = bundle.run();
    if ours() {
        answer.fails("root");
    }
    bundle.assert_gone();
}

#[test]
fn mount_targets_never_leave_the_root() {
    let outside = tempfile::tempdir().unwrap();
    let path = outside.path().to_str().unwrap();
    for link in [path.to_owned(), format!("../../../../../../../../..{path}"), format!("/proc/self/root{path}")] {
        let mut bundle = Bundle::sh("ls /trap 2>&1");
        symlink(&link, bundle.rootfs().join("trap")).unwrap();
        bundle.mount("/trap/made", "tmpfs", "tmpfs", &[]);
        bundle.run();
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0, "{link}");
        bundle.assert_gone();
    }
}

#[test]
fn symlinked_proc_and_sys_are_refused() {
    for name in ["proc", "sys"] {
        let mut bundle = Bundle::sh("echo ran");
        fs::remove_dir(bundle.rootfs().join(name)).unwrap();
        symlink("/tmp", bundle.rootfs().join(name)).unwrap();
        let answer = bundle.run();
        bundle.set("/hostname", json!("x"));
        assert!(answer.code != 0 || peer("crun"), "{answer:?}");
        bundle.assert_gone();
    }
}

#[test]
fn a_symlinked_dev_stays_inside() {
    let outside = tempfile::tempdir().unwrap();
    let bundle = Bundle::sh("test -c /dev/null && echo null");
    fs::remove_dir(bundle.rootfs().join("dev")).unwrap();
    symlink(outside.path(), bundle.rootfs().join("dev")).unwrap();
    bundle.run();
    // runc 1.1 makes its links (fd, stdin, ptmx, ...) outside.
    assert!(fs::read_dir(outside.path()).unwrap().count() == 0 || peer("runc"));
    bundle.assert_gone();
}

#[test]
fn a_hostile_passwd_does_not_hang_the_runtime() {
    let bundle = Bundle::sh("echo $HOME");
    nix::unistd::mkfifo(&bundle.rootfs().join("etc/passwd"), nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
    if ours() {
        assert_eq!(bundle.run().ok().out, "/\n");
    }
}

#[test]
fn masked_links_mask_what_they_point_to_inside() {
    let mut bundle = Bundle::sh("cat /secret | wc -c");
    fs::write(bundle.rootfs().join("secret"), "x").unwrap();
    symlink("/../../secret", bundle.rootfs().join("alias")).unwrap();
    bundle.set("/linux/maskedPaths", json!(["/alias"]));
    assert_eq!(bundle.run().ok().out, "0\n");
}

#[test]
fn a_program_that_is_the_runtime_itself_cannot_overwrite_it() {
    if !ours() {
        return; // The peers protect themselves in other ways: copies, re-execs.
    }
    // The class of CVE-2019-5736: the image makes the runtime exec itself, another process then opens /proc/PID/exe.
    let runtime = oci_support::runtime();
    let before = fs::metadata(&runtime).unwrap();
    let bundle = Bundle::sh("sleep 1000");
    fs::write(bundle.rootfs().join("trap"), "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(bundle.rootfs().join("trap"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    bundle.create().ok();
    // While the init waits it is still the runtime. A descriptor of its program outlives it ...
    let pid = bundle.state()["pid"].to_string();
    let exe = fs::File::open(format!("/proc/{pid}/exe")).unwrap();
    bundle.oci(&["start", &bundle.id]).ok();
    bundle.exec(&["/trap"]);
    bundle.oci(&["delete", "--force", &bundle.id]).ok();
    // ... but not even root on the host may write by it. ETXTBSY lasts only as long as someone runs the file.
    let again = format!("/proc/self/fd/{}", exe.as_raw_fd());
    wait_for("EROFS", || {
        let error = fs::OpenOptions::new().append(true).open(&again).expect_err("opened for writing");
        assert!(matches!(error.raw_os_error(), Some(libc::EROFS | libc::ETXTBSY)), "{error}");
        error.raw_os_error() == Some(libc::EROFS)
    });
    let after = fs::metadata(&runtime).unwrap();
    assert_eq!((before.len(), before.modified().unwrap()), (after.len(), after.modified().unwrap()));
}
