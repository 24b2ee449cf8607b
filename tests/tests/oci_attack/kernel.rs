//! Ways through the kernel: cgroup files, devices, sysfs, and system calls by the numbers of another ABI.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::oci_support::{Bundle, ours, peer};
use crate::tools::{ALL, Code, capabilities, user_namespace, with_perl};

/// Every release_agent of the host, with what it holds.
fn release_agents() -> Vec<(PathBuf, String)> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path().join("release_agent"));
    hierarchies.filter_map(|path| Some((path.clone(), fs::read_to_string(path).ok()?))).collect()
}

/// Goes into a user namespace with a mount and a cgroup namespace of its own, mounts every hierarchy there is, and writes
/// its payload to every release_agent that can be found. 272 is unshare, 165 mount.
const RELEASE: &str = r#"
    my ($none, $type) = ("none", "cgroup"); my $n = 0;
    my $flags = $ARGV[0] eq "new" ? 0x10000000 | 0x20000 | 0x2000000 : 0x20000 | 0x2000000;
    syscall(272, $flags) == 0 or print "unshare: $!\n";
    for my $map ("uid_map", "gid_map") { open(my $f, ">", "/proc/self/$map"); syswrite($f, "0 0 1"); }
    open(my $list, "<", "/proc/self/cgroup");
    for my $line (<$list>) {
        my (undef, $names, $path) = split /:/, $line; next if $names eq ""; chomp $path;
        my $at = "/tmp/cg" . $n++; mkdir $at; $names = "none,$names" if $names =~ /^name=/;
        my $r = syscall(165, $none, $at, $type, 0, $names);
        print "mounted $names\n" if $r == 0;
        for my $file ("$at/release_agent", "/sys/fs/cgroup/$names/release_agent") {
            next unless -e $file; print "found $file\n";
            open(my $f, ">", $file) or next; print "written $file\n" if syswrite($f, "/coracle-payload");
        }
    }
    print "done $n\n";"#;

#[test]
fn cve_2022_0492_no_release_agent_is_within_reach() {
    let before = release_agents();
    let ways: [(&str, bool, bool); 3] = [("new", false, false), ("new", false, true), ("own", true, true)];
    for (mode, in_user_namespace, cgroups) in ways {
        let mut bundle = Bundle::new(&["/usr/bin/perl", "-e", RELEASE, mode]);
        with_perl(&mut bundle);
        if in_user_namespace {
            // All rights, in a user namespace of its own.
            user_namespace(&mut bundle);
            capabilities(&mut bundle, &ALL);
            fs::set_permissions(bundle.rootfs().join("tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o1777))
                .unwrap();
        }
        if cgroups {
            bundle.namespace("cgroup", Some(None));
            bundle.mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev"]);
        }
        if peer("crun") && cgroups {
            continue; // It refuses hybrid hosts.
        }
        let answer = bundle.run().ok();
        let after = release_agents();
        for (path, content) in &before {
            let _ = fs::write(path, content.trim_end());
        }
        assert!(answer.out.contains("done") && !answer.out.contains("written"), "{mode}: {answer:?}");
        assert_eq!(before, after, "{mode}");
    }
}

#[test]
fn cve_2022_0492_the_container_has_a_cgroup_in_every_hierarchy() {
    // Where it had none it would be in the root, whose release_agent it could reach.
    let bundle = Bundle::sh("cat /proc/self/cgroup");
    let out = bundle.run().ok().out;
    let roots: Vec<_> = out.lines().filter(|line| !line.starts_with("0::") && line.ends_with(":/")).collect();
    assert!(roots.is_empty() || !ours(), "{roots:?}");
    assert!(out.contains(&bundle.id), "{out}");
}

#[test]
fn cve_2023_25809_a_cgroup_mount_that_shall_be_read_only_is() {
    if !ours() {
        return; // The peers cannot be brought to it on this host.
    }
    for options in [&["nosuid", "noexec", "nodev", "ro"][..], &["nosuid", "noexec", "nodev"]] {
        let mut bundle = Bundle::sh(
            "for d in /sys/fs/cgroup/* /sys/fs/cgroup; do mkdir $d/stolen 2>/dev/null && echo made $d; done;
             grep ' /sys/fs/cgroup/' /proc/self/mountinfo | cut -d' ' -f6; echo done; sleep 1000",
        );
        // No cgroup namespace, and a user namespace whose root owns its cgroups on the host, as a delegated user does.
        user_namespace(&mut bundle);
        let sys = json!({ "destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "nosuid", "noexec", "nodev", "ro"] });
        bundle.config["mounts"].as_array_mut().unwrap().retain(|m| m["destination"] != "/sys");
        bundle.config["mounts"].as_array_mut().unwrap().push(sys);
        bundle.mount("/sys/fs/cgroup", "cgroup", "cgroup", options);
        bundle.create().ok();
        for cgroup in bundle.cgroups() {
            chown(cgroup, Some(100_000), Some(100_000)).unwrap();
        }
        bundle.oci(&["start", &bundle.id]).ok();
        crate::oci_support::wait_for("the attempts", || bundle.file("out").contains("done"));
        let out = bundle.file("out");
        let made = out.contains("made");
        for cgroup in bundle.cgroups() {
            let _ = fs::remove_dir(cgroup.join("stolen"));
        }
        // The witness: without `ro` it is its own to write. (Of v2 the mount shows the host's whole tree, of whose top nothing
        // is the container's, and which is never writable.)
        let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        assert_eq!(made, !options.contains(&"ro") && !v2, "{options:?}: {out}");
    }
}

#[test]
fn a_device_that_is_not_allowed_is_not_opened_by_a_node_of_ones_own() {
    let script =
        "rm -f /tmp/fuse; mknod /tmp/fuse c 10 229 && ( : < /tmp/fuse ) && echo opened; mknod /dev/vda b 254 0; true";
    let mut bundle = Bundle::sh(script);
    capabilities(&mut bundle, &["CAP_MKNOD", "CAP_DAC_OVERRIDE"]);
    bundle.set("/linux/resources/devices", json!([{ "allow": false, "access": "rwm" }]));
    let refused = bundle.run();
    assert!(!refused.out.contains("opened"), "{refused:?}");
    // What may be made and not be opened is no use either.
    bundle.set(
        "/linux/resources/devices",
        json!([{ "allow": false, "access": "rwm" }, { "allow": true, "type": "c", "access": "m" }]),
    );
    let refused = bundle.run();
    assert!(!refused.out.contains("opened") && refused.err.contains("not permitted"), "{refused:?}");
    // The witness.
    bundle.set(
        "/linux/resources/devices",
        json!([{ "allow": false, "access": "rwm" }, { "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm" }]),
    );
    let allowed = bundle.run();
    assert!(allowed.out.contains("opened"), "{allowed:?}");
}

#[test]
fn sysfs_is_not_writable_for_the_root_of_a_user_namespace() {
    let mut bundle = Bundle::sh(
        "for f in /sys/kernel/uevent_helper /sys/kernel/mm/transparent_hugepage/enabled /sys/power/state /sys/kernel/profiling
         do test -e $f && ( echo x > $f ) 2>/dev/null && echo wrote $f; done; echo done",
    );
    user_namespace(&mut bundle);
    capabilities(&mut bundle, &ALL);
    for mount in bundle.config["mounts"].as_array_mut().unwrap().iter_mut().filter(|m| m["destination"] == "/sys") {
        mount["options"] = json!(["nosuid", "noexec", "nodev"]);
    }
    assert_eq!(bundle.run().ok().out, "done\n");
}

/// A container that runs a few instructions under a profile that forbids mkdir (of which i386 and x32 have their own).
fn under_a_filter(code: Code, architectures: Value, default: &str) -> i32 {
    let mut bundle = Bundle::new(&["/program"]);
    code.exit_with_result().write(&bundle.rootfs().join("program"), &[b"/made"]);
    let mut rules = json!([{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 }]);
    if default != "SCMP_ACT_ALLOW" {
        rules =
            json!([{ "names": ["execve", "execveat", "exit", "exit_group", "getpid"], "action": "SCMP_ACT_ALLOW" }]);
    }
    let profile = json!({ "defaultAction": default, "architectures": architectures, "syscalls": rules });
    bundle.set("/linux/seccomp", profile);
    let answer = bundle.run();
    assert!(!bundle.rootfs().join("made").exists(), "the forbidden call was made: {answer:?}");
    answer.code
}

/// Killed by SIGSYS, which is 31, as a shell or the runtime tells it.
const KILLED: i32 = 128 + 31;

#[test]
fn seccomp_is_not_passed_by_the_numbers_of_another_abi() {
    let path = || Code::text(0);
    let native = || Code::default().call(libc::SYS_mkdir as u32, [path(), 0o755, 0]);
    // 39 is mkdir by int 0x80 and getpid by syscall, so a filter that looks at numbers alone is passed by it.
    let compat = || Code::default().call32(39, [path(), 0o755, 0]);
    let x32 = || Code::default().call(0x4000_0000 | libc::SYS_mkdir as u32, [path(), 0o755, 0]);

    // The witness: without a filter the 32-bit way makes the directory.
    let bundle = Bundle::new(&["/program"]);
    compat().exit_with_result().write(&bundle.rootfs().join("program"), &[b"/made"]);
    let answer = bundle.run();
    assert!(bundle.rootfs().join("made").is_dir(), "this kernel has no 32-bit calls: {answer:?}");

    for default in ["SCMP_ACT_ALLOW", "SCMP_ACT_KILL_PROCESS"] {
        let listed = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
        let refused = if default == "SCMP_ACT_ALLOW" { 28 } else { KILLED };
        assert_eq!(under_a_filter(native(), listed.clone(), default), refused, "{default}");
        assert_eq!(under_a_filter(compat(), listed.clone(), default), refused, "{default}");
        under_a_filter(x32(), listed, default);
        // Not listed: the way is closed altogether.
        let alone = json!(["SCMP_ARCH_X86_64"]);
        assert_eq!(under_a_filter(compat(), alone.clone(), default), KILLED, "{default}");
        under_a_filter(x32(), alone, default);
        assert_eq!(under_a_filter(compat(), json!([]), default), KILLED, "{default}");
    }
}
